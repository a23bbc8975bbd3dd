// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter_test

import (
	"context"
	"math"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/promweave/promweave/plugins/wasm/meter"
)

// work is one exported function of a module that is compiled from C, Rust or Go.
type work struct {
	module, name string
	n            uint64
}

var works = []work{
	{"c", "sum", 300_000}, {"c", "sieve", 200_000}, {"c", "fib", 24}, {"c", "intern", 4000},
	{"c", "sort", 10_000}, {"c", "copy", 200}, {"c", "varint", 60},
	{"rust", "shapes", 50_000}, {"rust", "matrix", 40}, {"rust", "numbers", 4000}, {"rust", "deep", 120},
	{"go", "sum", 300_000}, {"go", "fib", 20}, {"go", "labels", 200}, {"go", "parse", 600}, {"go", "down", 900},
}

func moduleOf(t testing.TB, name string) []byte {
	if name == "go" {
		return goBuilt(t)
	}
	return golden(t, "work_"+name+".wasm")
}

func cpu() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// BenchmarkOverhead compares CPU time of metered modules and of modules with
// wazero's own checks with that of plain ones. Variants take turns, and the median of the rounds' ratios counts:
// what else the machine does slows all the variants of a round alike.
func BenchmarkOverhead(b *testing.B) {
	ctx := context.Background()
	logMetered, logDone, count := 0.0, 0.0, 0.0
	machines := map[string][3]*machine{}
	for _, w := range works {
		b.Run(w.module+"/"+w.name, func(b *testing.B) {
			if _, ok := machines[w.module]; !ok {
				plain := moduleOf(b, w.module)
				var m [3]*machine
				for i := range m {
					wasm, cfg := plain, config(false)
					if i == 1 {
						wasm = rewrite(b, plain).Module
					}
					if i == 2 {
						cfg = cfg.WithCloseOnContextDone(true)
					}
					var err error
					if m[i], err = start(b, cfg, wasm); err != nil {
						b.Fatal(err)
					}
				}
				defer delete(machines, w.module) // closed with b
				machines[w.module] = m
			}
			var took [3][]float64
			fns := machines[w.module]
			done, cancel := context.WithCancel(ctx)
			defer cancel()
			for b.Loop() {
				for i, m := range fns {
					f := m.mod.ExportedFunction(w.name)
					before := cpu()
					if _, err := f.Call(done, w.n); err != nil {
						b.Fatal(err)
					}
					took[i] = append(took[i], float64(cpu()-before))
				}
			}
			least := slices.Min(took[0])
			metered, closing := ratio(took[1], took[0]), ratio(took[2], took[0])
			b.ReportMetric(metered, "x-metered")
			b.ReportMetric(closing, "x-CloseOnContextDone")
			b.ReportMetric(least/1e3, "µs-plain")
			if fuel := fns[1]; fuel.used > 0 {
				before := fuel.spent()
				if _, err := fuel.call(w.name, w.n); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(fuel.spent()-before)/(least/1e3), "fuel/µs")
			}
			b.ReportMetric(0, "ns/op")
			logMetered += math.Log(metered)
			logDone += math.Log(closing)
			count++
		})
	}
	if count > 0 {
		b.Logf("geometric mean of %v workloads: metered %.3f, CloseOnContextDone %.1f", count, math.Exp(logMetered/count), math.Exp(logDone/count))
	}
}

// ratio is the median of the rounds' ratios.
func ratio(costs, plain []float64) float64 {
	var all []float64
	for i, c := range costs {
		all = append(all, c/plain[i])
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

func BenchmarkRewrite(b *testing.B) {
	for _, name := range []string{"c", "rust", "go"} {
		b.Run(name, func(b *testing.B) {
			wasm := moduleOf(b, name)
			b.SetBytes(int64(len(wasm)))
			b.ReportAllocs()
			var out []byte
			for b.Loop() {
				res, err := meter.Rewrite(wasm, meter.Options{})
				if err != nil {
					b.Fatal(err)
				}
				out = res.Module
			}
			b.ReportMetric(float64(len(out))/float64(len(wasm)), "x-size")
			if bytes := slices.Clip(out); len(bytes) == 0 {
				b.Fatal("nothing")
			}
		})
	}
}
