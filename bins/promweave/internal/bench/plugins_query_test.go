// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package bench

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/bins/promweave/internal/synthetic"
	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/dial"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/gate"
	"github.com/promweave/promweave/plugins/spawn"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/serve"
	"github.com/promweave/promweave/sdk/plugin/wire"
)

// built builds a command of this module, as a program or as a WASM module.
func built(b *testing.B, command string, wasm bool) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), command)
	args := []string{"build", "-trimpath", "-o", path}
	env := os.Environ()
	if wasm {
		args = append(args, "-buildmode=c-shared", "-ldflags=-s -w")
		env = append(env, "GOOS=wasip1", "GOARCH=wasm")
	}
	cmd := exec.CommandContext(b.Context(), "go", append(args, "github.com/promweave/promweave/bins/"+command)...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("go build %s: %v\n%s", command, err, out)
	}
	return path
}

// service is a Service over one backend, and who asks it.
func service(b *testing.B, be backend.Backend, g access.Gate) side {
	b.Helper()
	set := membership.New([]membership.Entry{{Spec: membership.Spec{Name: "store", Kind: "plugin"}, Backend: be}}, membership.Options{})
	b.Cleanup(set.Close)
	set.Refresh(context.Background())
	s, err := query.New(set, query.Config{MaxSamples: math.MaxInt, Timeout: time.Hour, Gate: g})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return func(ctx context.Context, q testQuery, at time.Time) (string, error) {
		if g != nil {
			ctx = access.WithCaller(ctx, &access.Caller{Method: "basic", Subject: "eu1"})
		}
		req := &query.Request{Query: q.expr, Start: at.Add(-q.span), End: at, Step: q.step, Options: s.DefaultOptions()}
		run := s.Range
		if q.span == 0 {
			run = s.Instant
		}
		res, err := run(ctx, req)
		if err != nil {
			return "", err
		}
		defer res.Close()
		if st := res.Report.Completeness; st.State != "complete" {
			return "", fmt.Errorf("answer is %s", st)
		}
		return shape(res.Value), nil
	}
}

// unclosed keeps a backend open that several services are over.
type unclosed struct{ backend.Backend }

// filtered puts filters around a backend as the program does.
func filtered(be backend.Backend, memo int, links ...filtering.Link) backend.Backend {
	return filtering.Wrap(be, links, filtering.Options{
		Backend: "store", MemoBytes: memo,
		Charge: func(ctx context.Context, series, samples, bytes int) error {
			return fanout.AccountOf(ctx).Charge(series, samples, bytes)
		},
		Release: func(ctx context.Context, bytes int) { fanout.AccountOf(ctx).Release(bytes) },
		Observe: func(ctx context.Context, e filtering.Effect) {
			fanout.AccountOf(ctx).Filter(report.FilterEffect{
				Name: e.Filter, SeriesIn: int64(e.SeriesIn), SeriesOut: int64(e.SeriesOut), Withheld: e.Withheld,
				Calls: int64(e.Calls), Seconds: e.Seconds, Note: e.Error,
			})
		},
	})
}

// cost is what one answer took, at both ends of a connection if there is one.
type cost struct{ cpu, wall time.Duration }

// compared is what answers of one side took.
type compared struct {
	// cost is the least.
	cost
	// cpuRatio and wallRatio are to the first side, the median of the rounds: what else
	// the machine does slows all the sides of a round alike, and not all rounds.
	cpuRatio, wallRatio float64
}

func medianRatio(costs, first []cost, of func(cost) time.Duration) float64 {
	ratios := make([]float64, len(costs))
	for i := range costs {
		ratios[i] = float64(of(costs[i])) / float64(max(of(first[i]), 1))
	}
	slices.Sort(ratios)
	return (ratios[(len(ratios)-1)/2] + ratios[len(ratios)/2]) / 2
}

// ratiosOf says what answers took, the costs of sides, by round.
func ratiosOf(costs [][]cost) []compared {
	out := make([]compared, len(costs))
	for i, all := range costs {
		cpu, wall := func(c cost) time.Duration { return c.cpu }, func(c cost) time.Duration { return c.wall }
		least := all[0]
		for _, c := range all {
			least = cost{min(least.cpu, c.cpu), min(least.wall, c.wall)}
		}
		out[i] = compared{least, medianRatio(all, costs[0], cpu), medianRatio(all, costs[0], wall)}
	}
	return out
}

// enough is how long sides are asked for a query, so that one that costs little, and
// whose cost is noisy, is asked up to most times.
const (
	enough = 3 * time.Second
	most   = 60
	// slot is how long a side is asked in one round, at least once: what is collected in
	// between empties pools, which in a server it does once in very many queries.
	slot = 20 * time.Millisecond
)

// measured asks every side in turn, for rounds at least, and returns what answers took. All
// must answer with as much. pids are the processes behind the sides, 0 for none.
func measured(b *testing.B, rounds int, q testQuery, pids []func() int, sides ...side) []compared {
	b.Helper()
	costs := make([][]cost, len(sides))
	begun, calls := time.Now(), 1
	for round := 0; round <= rounds || round <= most && time.Since(begun) < enough; round++ {
		at := end.Add(-time.Minute - time.Duration(round%(rounds+1))*max(q.step, 30*time.Second))
		if q.span > 0 {
			at = at.Truncate(q.step)
		}
		first := ""
		for k := range sides {
			i := (k + round) % len(sides) // nobody is always the first
			s := sides[i]
			runtime.GC()
			pid := 0
			if pids != nil && pids[i] != nil {
				pid = pids[i]()
			}
			var child time.Duration
			if pid != 0 {
				child = cpuTime(pid)
			}
			cpu, begun := cpuTime(0), time.Now()
			got := ""
			for range calls {
				var err error
				if got, err = s(b.Context(), q, at); err != nil {
					b.Fatalf("%s, side %d: %v", q.name, i, err)
				}
			}
			c := cost{cpuTime(0) - cpu, time.Since(begun)}
			if pid != 0 {
				c.cpu += cpuTime(pid) - child
			}
			c = cost{c.cpu / time.Duration(calls), c.wall / time.Duration(calls)}
			if first == "" {
				first = got
			}
			if got != first {
				b.Fatalf("%s at %s: side %d has %s, the first %s", q.name, at, i, got, first)
			}
			if round > 0 { // the first warms up
				costs[i] = append(costs[i], c)
			} else if k == len(sides)-1 {
				calls = max(1, int(slot/max(c.wall, 1)))
			}
		}
	}
	return ratiosOf(costs)
}

// rangeQueries are typical ones. %s is a further matcher.
var rangeQueries = []testQuery{
	{"sum of rates, 1h", `sum by (app) (rate(http_requests_total{%s}[5m]))`, time.Hour, 15 * time.Second},
	{"sum of rates, 6h", `sum by (namespace, code) (rate(http_requests_total{%s}[5m]))`, 6 * time.Hour, time.Minute},
	{"p99 of a histogram, 6h", `histogram_quantile(0.99, sum by (le, app) (rate(http_request_duration_seconds_bucket{%s}[5m])))`, 6 * time.Hour, time.Minute},
	{"node CPU, 24h", `avg by (instance) (rate(node_cpu_seconds_total{mode!="idle",%s}[5m]))`, 24 * time.Hour, 5 * time.Minute},
	{"a plain selector, 1h", `container_memory_working_set_bytes{%s}`, time.Hour, 30 * time.Second},
}

// wide is a directory with 10,000 series of one cluster.
func wide(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	spec := synthetic.Spec{Start: end.Add(-2 * time.Hour), End: end, Series: 10000, Seed: 1, Clusters: []string{"eu1"}}
	if err := synthetic.Write(b.Context(), dir, spec, nil); err != nil {
		b.Fatal(err)
	}
	return dir
}

func openTSDB(b *testing.B, dir string) *tsdb.Backend {
	b.Helper()
	t, err := tsdb.Open(tsdb.Config{Path: dir}, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = t.Close() })
	return t
}

const (
	tenancyConfig    = `{"label": "cluster", "from": [{"subject": true}]}`
	operationsConfig = `{"rename": {"pod": "kubernetes_pod"}, "set": {"origin": "acme"}, "drop": ["job"]}`
	rowsConfig       = `{"drop": "job", "rename": "pod=kubernetes_pod", "set": "origin=acme"}`
)

// BenchmarkRatioFiltered: queries behind a tenancy and a rewrite filter, both WASM,
// against the same queries without, which ask for the tenant's series themselves.
func BenchmarkRatioFiltered(b *testing.B) {
	tenancy := configured(b, loaded(b, built(b, "promweave-tenancy", true)), tenancyConfig)
	declared := configured(b, loaded(b, built(b, "promweave-label-rewrite", true)), operationsConfig)
	rows := configured(b, loaded(b, goldenModules+"rewrite-c.wasm"), rowsConfig)
	links := func(rewrite carrier.Filter) []filtering.Link {
		return []filtering.Link{{Name: "rewrite", Filter: rewrite}, {Name: "tenancy", Filter: tenancy, Role: filter.RoleTenancy}}
	}
	g := gate.New([]gate.Link{{Name: "tenancy", Filter: tenancy}}, "", slog.New(slog.DiscardHandler))
	day, many := openTSDB(b, open(b).reference), openTSDB(b, wide(b))
	sidesOver := func(t backend.Backend) []side {
		return []side{
			service(b, unclosed{t}, nil),
			service(b, filtered(unclosed{t}, 0, links(declared)...), g),
			service(b, filtered(unclosed{t}, 0, links(rows)...), g),
			service(b, filtered(unclosed{t}, -1, links(declared)...), g),
			service(b, filtered(unclosed{t}, -1, links(rows)...), g),
		}
	}
	variants := []string{"rewrite by operations", "rewrite of rows in C", "by operations, nothing remembered", "of rows in C, nothing remembered"}
	for b.Loop() {
		var lines []line
		sides := sidesOver(day)
		sums := make([]float64, len(variants))
		for _, q := range rangeQueries {
			q.expr = fmt.Sprintf(q.expr, `cluster="eu1"`)
			costs := measured(b, 9, q, nil, sides...)
			detail := ""
			for i := range variants {
				r := costs[i+1].cpuRatio
				sums[i] += math.Log(r)
				detail += fmt.Sprintf("%.3f ", r)
			}
			fmt.Printf("\n    %-30s %8.2f ms CPU without; %s", q.name, 1e3*costs[0].cpu.Seconds(), detail)
		}
		for i, v := range variants {
			l := line{what: "range, " + v, measured: math.Exp(sums[i] / float64(len(rangeQueries))), detail: fmt.Sprintf("geometric mean of %d queries", len(rangeQueries))}
			if i < 2 {
				l.target = 1.05
			}
			lines = append(lines, l)
		}
		sides = sidesOver(many)
		for _, q := range []testQuery{{name: "count", expr: `count({__name__=~".+",cluster="eu1"})`}, {name: "every series", expr: `{__name__=~".+",cluster="eu1"}`}} {
			costs := measured(b, 9, q, nil, sides...)
			for i, v := range variants {
				l := line{what: "instant, " + q.name + ", " + v, measured: costs[i+1].cpuRatio, detail: fmt.Sprintf("%.2f ms CPU without", 1e3*costs[0].cpu.Seconds())}
				if i < 2 {
					l.target = 1.2
				}
				lines = append(lines, l)
			}
		}
		table(b, "x", lines)
	}
}

// BenchmarkFiltered is for profiles of what BenchmarkRatioFiltered compares: the query
// that costs the least, in which what is done once for each query shows.
func BenchmarkFiltered(b *testing.B) {
	tenancy := configured(b, loaded(b, built(b, "promweave-tenancy", true)), tenancyConfig)
	rows := configured(b, loaded(b, goldenModules+"rewrite-c.wasm"), rowsConfig)
	t := openTSDB(b, open(b).reference)
	for name, s := range map[string]side{
		"without": service(b, unclosed{t}, nil),
		"tenancy": service(b, filtered(unclosed{t}, 0, filtering.Link{Name: "tenancy", Filter: tenancy, Role: filter.RoleTenancy}), gate.New([]gate.Link{{Name: "tenancy", Filter: tenancy}}, "", slog.New(slog.DiscardHandler))),
		"rewrite": service(b, filtered(unclosed{t}, 0, filtering.Link{Name: "rewrite", Filter: rows}), nil),
	} {
		b.Run(name, func(b *testing.B) {
			q := rangeQueries[len(rangeQueries)-1]
			q.expr = fmt.Sprintf(q.expr, `cluster="eu1"`)
			begun := cpuTime(0)
			for b.Loop() {
				if _, err := s(b.Context(), q, end.Add(-time.Hour)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpuTime(0)-begun)/float64(b.N)/1e3, "cpu-µs/op")
		})
	}
}

// spawned is the tsdb backend as a process.
func spawned(b *testing.B, program, dir string, plain bool) (carrier.Plugin, backend.Backend) {
	b.Helper()
	path, sum := module(b, program)
	run, err := os.MkdirTemp("", "pw-bench-") // short: sockets lie there
	if err != nil {
		b.Fatal(err)
	}
	p, err := spawn.Open(b.Context(), spawn.Config{
		Name: "tsdb", Path: path, SHA256: sum, RuntimeDir: run, DisableMTLS: plain, RetryTime: 30 * time.Second,
		Limits: spawn.Limits{StartTimeout: time.Minute, HealthTimeout: 10 * time.Second},
	}, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = p.Close()
		_ = os.RemoveAll(run)
	})
	config := []byte(fmt.Sprintf(`{"path": %q}`, dir))
	settings, err := filter.Settings(config)
	if err != nil {
		b.Fatal(err)
	}
	be, err := p.Backend(b.Context(), &filter.Config{Name: "tsdb", JSON: config, Settings: settings})
	if err != nil {
		b.Fatal(err)
	}
	return p, be
}

// BenchmarkRatioSpawned: range queries over a backend in a process of its own, against
// the same backend in this one. CPU time is that of both processes.
func BenchmarkRatioSpawned(b *testing.B) {
	dir := open(b).reference
	program := built(b, "promweave-tsdb", false)
	plain, plainBackend := spawned(b, program, dir, true)
	mutual, mutualBackend := spawned(b, program, dir, false)
	sides := []side{
		service(b, unclosed{openTSDB(b, dir)}, nil), service(b, unclosed{plainBackend}, nil), service(b, unclosed{mutualBackend}, nil),
	}
	pids := []func() int{nil, func() int { return plain.Status().PID }, func() int { return mutual.Status().PID }}
	for b.Loop() {
		var cpu, wall [3]float64
		for _, q := range rangeQueries {
			q.expr = fmt.Sprintf(q.expr, "")
			costs := measured(b, 9, q, pids, sides...)
			for i := range costs {
				cpu[i] += math.Log(costs[i].cpuRatio)
				wall[i] += math.Log(costs[i].wallRatio)
			}
			fmt.Printf("\n    %-30s in process %8.2f ms CPU, %8.2f ms; plain socket %.3f CPU, %.3f time; mutual TLS %.3f CPU, %.3f time", q.name,
				1e3*costs[0].cpu.Seconds(), 1e3*costs[0].wall.Seconds(),
				costs[1].cpuRatio, costs[1].wallRatio, costs[2].cpuRatio, costs[2].wallRatio)
		}
		mean := func(sum float64) float64 { return math.Exp(sum / float64(len(rangeQueries))) }
		table(b, "x", []line{
			{what: "plain socket, CPU of both ends", target: 1.15, measured: mean(cpu[1])},
			{what: "plain socket, time of the answer", target: 1.15, measured: mean(wall[1]), detail: "on a shared machine"},
			{what: "AutoMTLS, CPU of both ends", target: 1.15, measured: mean(cpu[2])},
			{what: "AutoMTLS, time of the answer", target: 1.15, measured: mean(wall[2]), detail: "on a shared machine"},
		})
	}
}

// inPlace is a store.Spec of a backend that is there already.
type inPlace struct{ backend.Backend }

func (inPlace) Describe() filter.Description {
	return filter.Description{Name: "in_place", Version: "1.0.0"}
}

func (p inPlace) Configure(*filter.Config) (backend.Backend, error) { return unclosed(p), nil }

// BenchmarkCarried is for profiles of what BenchmarkRatioSpawned compares, with both ends
// of the socket in one process.
func BenchmarkCarried(b *testing.B) {
	dir := open(b).reference
	for _, q := range rangeQueries {
		q.expr = fmt.Sprintf(q.expr, "")
		b.Run(q.name, func(b *testing.B) {
			srv, err := serve.NewServer(serve.Config{Backend: inPlace{openTSDB(b, dir)}})
			if err != nil {
				b.Fatal(err)
			}
			socket := filepath.Join(b.TempDir(), "s")
			lis, err := net.Listen("unix", socket)
			if err != nil {
				b.Fatal(err)
			}
			g := grpc.NewServer(wire.ServerOptions()...)
			srv.Register(g)
			go func() { _ = g.Serve(lis) }()
			p, err := dial.Open(b.Context(), dial.Config{Name: "carried", Address: "unix://" + socket}, nil, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				_ = p.Close()
				g.Stop()
				_ = srv.Close()
			})
			be, err := p.Backend(b.Context(), &filter.Config{Name: "carried", JSON: []byte("{}")})
			if err != nil {
				b.Fatal(err)
			}
			s := service(b, unclosed{be}, nil)
			begun := cpuTime(0)
			for b.Loop() {
				if _, err := s(b.Context(), q, end.Add(-time.Hour)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpuTime(0)-begun)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}

// BenchmarkRatioFaults is not of ratios: how long until a query is answered again after
// its backend's process was killed, and what a module that spins does to the host's
// garbage collections.
func BenchmarkRatioFaults(b *testing.B) {
	dir := open(b).reference
	program := built(b, "promweave-tsdb", false)
	q := testQuery{name: "up", expr: `count(up)`}
	for b.Loop() {
		var recovered []time.Duration
		for range 5 {
			p, be := spawned(b, program, dir, false)
			s := service(b, unclosed{be}, nil)
			if _, err := s(b.Context(), q, end.Add(-time.Minute)); err != nil {
				b.Fatal(err)
			}
			begun := time.Now()
			if err := syscall.Kill(p.Status().PID, syscall.SIGKILL); err != nil {
				b.Fatal(err)
			}
			for {
				if _, err := s(b.Context(), q, end.Add(-time.Minute)); err == nil {
					break
				} else if time.Since(begun) > time.Minute {
					b.Fatal(err)
				}
			}
			recovered = append(recovered, time.Since(begun))
			_ = p.Close()
		}
		slices.Sort(recovered)

		collections := func(n int) []time.Duration {
			var out []time.Duration
			for range n {
				begun := time.Now()
				runtime.GC()
				out = append(out, time.Since(begun))
			}
			slices.SortFunc(out, cmp.Compare)
			return out
		}
		alone := collections(40)
		// What the machine alone does to collections beside a busy thread.
		var stop atomic.Bool
		var busy sync.WaitGroup
		busy.Go(func() {
			for !stop.Load() {
			}
		})
		control := collections(40)
		stop.Store(true)
		busy.Wait()

		p := loaded(b, "../../../../plugins/wasm/testdata/hostile.wasm")
		spin, err := p.Filter(b.Context(), &filter.Config{Name: "request spin", JSON: []byte("{}")})
		if err != nil {
			b.Fatal(err)
		}
		over := make(chan struct{})
		go func() {
			defer close(over)
			for range 4 { // one more would open its circuit
				if _, err := spin.Request(b.Context(), &filter.RequestCall{Query: "up"}); err == nil {
					b.Error("a module that spins answered")
				}
			}
		}()
		var beside []time.Duration
		for running := true; running; {
			select {
			case <-over:
				running = false
			default:
				beside = append(beside, collections(1)...)
			}
		}
		slices.Sort(beside)
		_ = spin.Close()
		table(b, "ms", []line{
			{what: "answered again after kill -9, median of 5", measured: ms(recovered[2]), detail: fmt.Sprintf("worst %.1f ms", ms(recovered[4]))},
			{what: "a collection of the host alone, median", measured: ms(alone[20]), detail: fmt.Sprintf("95 %% within %.1f ms, worst of 40 %.1f ms", ms(alone[37]), ms(alone[39]))},
			{what: "a collection beside a busy goroutine, median", measured: ms(control[20]), detail: fmt.Sprintf("95 %% within %.1f ms, worst of 40 %.1f ms", ms(control[37]), ms(control[39]))},
			{what: "a collection while a module spins, median", measured: ms(beside[len(beside)/2]), detail: fmt.Sprintf("95 %% within %.1f ms, worst of %d %.1f ms", ms(beside[len(beside)*95/100]), len(beside), ms(beside[len(beside)-1]))},
		})
	}
}

func ms(d time.Duration) float64 { return 1e3 * d.Seconds() }
