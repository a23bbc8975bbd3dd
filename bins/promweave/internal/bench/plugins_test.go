// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bench

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"golang.org/x/sys/unix"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/wasm"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// line is one line of the table of plug-ins.
type line struct {
	what     string
	target   float64 // 0 is none
	measured float64
	detail   string
}

// table prints lines, and the load of the machine that they were taken under. Ratios are
// reported as metrics too, so that benchstat can compare runs.
func table(b *testing.B, unit string, lines []line) {
	b.Helper()
	fmt.Printf("\n  %s  (load average %s)\n", b.Name(), loadAverage())
	for _, l := range lines {
		target, verdict := "", ""
		if l.target > 0 {
			target, verdict = fmt.Sprintf("target ≤ %.4g", l.target), "met"
			if l.measured > l.target {
				verdict = "MISSED"
			}
		}
		fmt.Printf("    %-58s %8.4f %s  %-16s %-6s  %s\n", l.what, l.measured, unit, target, verdict, l.detail)
		b.ReportMetric(l.measured, strings.ReplaceAll(strings.ReplaceAll(l.what, ",", ""), " ", "-"))
	}
	b.ReportMetric(0, "ns/op")
}

func loadAverage() string {
	s, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(s))[:3], " ")
}

// cpuTime is what all threads of a process have taken; 0 is this process. Other jobs on
// the machine are not in it, garbage collection is.
func cpuTime(pid int) time.Duration {
	clock := int32(unix.CLOCK_PROCESS_CPUTIME_ID)
	if pid != 0 {
		clock = int32(^pid)<<3 | 2 // as clock_getcpuclockid does
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// interleaved runs every function in turn, as often as fits into a few milliseconds, and
// returns the CPU time of one call, in each round.
func interleaved(rounds int, fs ...func()) [][]cost {
	const round = 10 * time.Millisecond
	calls := make([]int, len(fs))
	for i, f := range fs {
		n, spent := 0, time.Duration(0)
		for spent < round {
			begun := cpuTime(0)
			f()
			spent += cpuTime(0) - begun
			n++
		}
		calls[i] = n
	}
	costs := make([][]cost, len(fs))
	for range rounds {
		for i, f := range fs {
			runtime.GC()
			begun := cpuTime(0)
			for range calls[i] {
				f()
			}
			costs[i] = append(costs[i], cost{cpu: (cpuTime(0) - begun) / time.Duration(calls[i])})
		}
	}
	return costs
}

const boundaryRows = 1000

// podSet is a label set as Kubernetes makes them: ten labels, about 300 bytes.
func podSet(i int) labels.Labels {
	return labels.FromStrings("__name__", "container_cpu_usage_seconds_total", "cluster", "production-eu-west-1",
		"container", fmt.Sprintf("application-%d", i%7), "env", []string{"production", "staging", "development"}[i%3],
		"instance", fmt.Sprintf("10.0.%d.%d:9100", i/250, i%250), "job", "kubernetes-cadvisor", "namespace", fmt.Sprintf("team-%d", i%23),
		"node", fmt.Sprintf("ip-10-0-0-%d.eu-west-1.compute.internal", i%40), "pod", fmt.Sprintf("application-%d-5d8f7c9b6d-%05d", i%7, i),
		"pod_template_hash", fmt.Sprintf("5d8f7c9b%02d", i%7))
}

const podRewrite = `"drop": "pod_template_hash", "rename": "node=kubernetes_node", "set": "tenant=acme"`

// module writes a module where it can be loaded from, and returns path and digest.
func module(b *testing.B, path string) (string, string) {
	b.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	if strings.HasSuffix(path, ".gz") {
		r, err := gzip.NewReader(bytes.NewReader(data))
		if err == nil {
			data, err = io.ReadAll(r)
		}
		if err != nil {
			b.Fatal(err)
		}
		path = filepath.Join(b.TempDir(), strings.TrimSuffix(filepath.Base(path), ".gz"))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	sum := sha256.Sum256(data)
	return path, hex.EncodeToString(sum[:])
}

// loaded loads a module with the default limits, but for the time of a call: on a busy
// machine a goroutine may be kept waiting for longer.
func loaded(b *testing.B, path string) *wasm.Plugin {
	b.Helper()
	path, sum := module(b, path)
	p, err := wasm.Open(b.Context(), wasm.Config{Name: filepath.Base(path), Path: path, SHA256: sum, Limits: wasm.Limits{CallTime: time.Second}}, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Close() })
	return p
}

func configured(b *testing.B, p carrier.Plugin, config string) carrier.Filter {
	b.Helper()
	settings, err := filter.Settings([]byte(config))
	if err != nil {
		b.Fatal(err)
	}
	f, err := p.Filter(b.Context(), &filter.Config{Name: "bench", JSON: []byte(config), Settings: settings})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	return f
}

// boundary is a filter between two batches in the engine's form: what is measured is to
// show the batch to the module, its work, the check of its reply, and the new batch.
type boundary struct {
	f     carrier.Filter
	tier  frame.Tier
	names frame.NameLists
	shown frame.Frame
	buf   []byte
	reply frame.Changes
}

func (x *boundary) rewrite(ctx context.Context, b *backend.Batch) (*backend.Batch, error) {
	view, ok := b.Frame()
	if !ok {
		return nil, fmt.Errorf("the batch has no frame")
	}
	changes := new(frame.Changes)
	if x.tier == frame.TierRows {
		reply, err := x.f.Rewrite(ctx, view.Bytes(), nil)
		if err != nil {
			return nil, err
		}
		if err := changes.Parse(reply, view, x.tier); err != nil {
			return nil, err
		}
		return b.Rewritten(changes)
	}
	var err error
	if x.buf, err = x.names.Append(x.buf[:0], view); err != nil {
		return nil, err
	}
	if err := x.shown.Parse(x.buf); err != nil {
		return nil, err
	}
	reply, err := x.f.Rewrite(ctx, x.buf, nil)
	if err != nil {
		return nil, err
	}
	if err := x.reply.Parse(reply, &x.shown, x.tier); err != nil {
		return nil, err
	}
	x.names.Lift(&x.reply, changes)
	return b.Rewritten(changes)
}

// podBatch is the label sets in order, and the batch of them in the engine's form.
func podBatch(b *testing.B) ([]labels.Labels, *backend.Batch) {
	b.Helper()
	batch := backend.NewBatch(boundaryRows)
	var sets []labels.Labels
	for i := range boundaryRows {
		sets = append(sets, podSet(i))
	}
	slices.SortFunc(sets, labels.Compare)
	for _, ls := range sets {
		batch.Append(backend.Series{Labels: ls})
	}
	enc, err := backend.AppendFrame(nil, batch)
	if err == nil {
		batch, err = backend.NewFramed(enc)
	}
	if err != nil {
		b.Fatal(err)
	}
	return sets, batch
}

var guests = []struct {
	name, file string
	rows       float64 // target
}{
	{"C", "rewrite-c.wasm", 0.1}, {"Rust", "rewrite-rust.wasm", 0.1},
	{"AssemblyScript", "rewrite-assemblyscript.wasm", 0}, {"Go", "rewrite-go.wasm.gz", 0.25},
}

const goldenModules = "../../../../sdk/testdata/golden/v1.0/"

var boundaryModes = []struct {
	name, config string
	tier         frame.Tier
}{
	{"names", `{"tier": "names", ` + podRewrite + `}`, frame.TierNames},
	{"rows", `{` + podRewrite + `}`, frame.TierRows},
	{"rows and a mapped value", `{` + podRewrite + `, "map": "env:production=prod,env:staging=stage"}`, frame.TierRows},
}

// BenchmarkBoundary is for profiles of what BenchmarkRatioWASM compares.
func BenchmarkBoundary(b *testing.B) {
	_, batch := podBatch(b)
	for _, guest := range guests {
		p := loaded(b, goldenModules+guest.file)
		for _, mode := range boundaryModes {
			b.Run(guest.name+"/"+mode.name, func(b *testing.B) {
				x := &boundary{f: configured(b, p, mode.config), tier: mode.tier}
				b.ReportAllocs()
				begun := cpuTime(0)
				for b.Loop() {
					if _, err := x.rewrite(b.Context(), batch); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(cpuTime(0)-begun)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// BenchmarkRatioWASM: the rewrite of 1,000 label sets by modules, metered and checked,
// from one batch in the engine's form to the next, against labels.Builder.
func BenchmarkRatioWASM(b *testing.B) {
	sets, batch := podBatch(b)
	builder := labels.NewBuilder(labels.EmptyLabels())
	native := func(ls labels.Labels) labels.Labels {
		builder.Reset(ls)
		builder.Del("pod_template_hash", "node")
		builder.Set("kubernetes_node", ls.Get("node"))
		builder.Set("tenant", "acme")
		return builder.Labels()
	}
	fs := []func(){func() {
		for _, ls := range sets {
			_ = native(ls)
		}
	}}
	var lines []line
	for _, guest := range guests {
		p := loaded(b, goldenModules+guest.file)
		for _, mode := range boundaryModes {
			x := &boundary{f: configured(b, p, mode.config), tier: mode.tier}
			out, err := x.rewrite(b.Context(), batch)
			if err != nil {
				b.Fatalf("%s, %s: %v", guest.name, mode.name, err)
			}
			for i, ls := range sets {
				want := native(ls)
				if e := want.Get("env"); strings.Contains(mode.config, "map") && e != "development" {
					want = labels.NewBuilder(want).Set("env", map[string]string{"production": "prod", "staging": "stage"}[e]).Labels()
				}
				if got := out.At(i).Labels; !labels.Equal(got, want) {
					b.Fatalf("%s, %s: got %s, want %s", guest.name, mode.name, got, want)
				}
			}
			fs = append(fs, func() {
				if _, err := x.rewrite(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			})
			lines = append(lines, line{what: guest.name + ", " + mode.name, target: map[string]float64{"names": 0.01, "rows": guest.rows}[mode.name]})
		}
	}
	for b.Loop() {
		all := ratiosOf(interleaved(60, fs...))
		for i := range lines {
			lines[i].measured = all[i+1].cpuRatio
			lines[i].detail = fmt.Sprintf("at least %.1f ns/set, labels.Builder %.0f", float64(all[i+1].cpu)/boundaryRows, float64(all[0].cpu)/boundaryRows)
		}
	}
	table(b, "x", lines)
}

// BenchmarkRatioMetering: what metering costs, over the workloads of that package.
func BenchmarkRatioMetering(b *testing.B) {
	mean := regexp.MustCompile(`geometric mean of (\d+) workloads: metered ([0-9.]+)`)
	for b.Loop() {
		out, err := exec.CommandContext(b.Context(), "go", "test", "-run", "^$", "-bench", "Overhead", "-benchtime", "60x", "-v",
			"github.com/promweave/promweave/plugins/wasm/meter").CombinedOutput()
		m := mean.FindSubmatch(out)
		if err != nil || m == nil {
			b.Fatalf("%v\n%s", err, out)
		}
		var ratio float64
		if _, err := fmt.Sscan(string(m[2]), &ratio); err != nil || math.IsNaN(ratio) {
			b.Fatal(string(m[2]), err)
		}
		table(b, "x", []line{{what: "metered against plain, geometric mean", target: 1.15, measured: ratio, detail: string(m[1]) + " workloads in C, Rust and Go"}})
	}
}
