// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tetratelabs/wazero"

	"github.com/promweave/promweave/plugins/wasm/meter"
)

// TestSameResults runs real work unmetered and metered, compiled and interpreted: results are the same, and
// fuel is the same in both engines and from run to run.
func TestSameResults(t *testing.T) {
	small := map[string]uint64{"fib": 12, "sieve": 5000, "sum": 5000, "intern": 300, "sort": 301, "copy": 70, "varint": 2, "shapes": 300, "matrix": 1, "numbers": 100, "deep": 20, "labels": 3, "parse": 5, "down": 200}
	for _, w := range works {
		t.Run(w.module+"/"+w.name, func(t *testing.T) {
			if raced && w.module == "go" {
				// Nothing here runs concurrently, and the same code is tested with smaller modules.
				t.Log("left out under the race detector: compiling a module of 2 MiB takes minutes with it")
				return
			}
			plain := moduleOf(t, w.module)
			res := rewrite(t, plain)
			want := run(t, false, plain, w.name, small[w.name])
			compiled := run(t, false, res.Module, w.name, small[w.name])
			interpreted := run(t, true, res.Module, w.name, small[w.name])
			if diff := cmp.Diff(want.results, compiled.results); diff != "" {
				t.Errorf("metered (+) and not (-) differ:\n%s", diff)
			}
			if w.module == "go" && w.name != "sum" && w.name != "fib" && w.name != "down" {
				// Go's runtime looks at a clock and schedules itself.
				interpreted.fuel, compiled.fuel = 0, 0
			}
			if diff := cmp.Diff(compiled, interpreted, cmp.AllowUnexported(outcome{})); diff != "" {
				t.Errorf("compiled (-) and interpreted (+) differ:\n%s", diff)
			}
			if w.module != "go" && compiled.fuel < int64(small[w.name]) {
				t.Errorf("fuel for %d rounds is %d", small[w.name], compiled.fuel)
			}
		})
	}
}

type outcome struct {
	results []uint64
	fuel    int64
	stack   uint64
}

func run(t *testing.T, interpreter bool, wasm []byte, name string, n uint64) outcome {
	t.Helper()
	m, err := start(t, config(interpreter), wasm)
	if err != nil {
		t.Fatal(err)
	}
	var o outcome
	if m.fuel == nil {
		if o.results, err = m.call(name, n); err != nil {
			t.Fatal(err)
		}
		return o
	}
	stack := m.mod.ExportedGlobal(meter.Stack)
	full := stack.Get()
	before := m.spent()
	if o.results, err = m.call(name, n); err != nil {
		t.Fatal(err)
	}
	o.fuel, o.stack = m.spent()-before, stack.Get()
	if o.stack != full {
		t.Errorf("after the call %d bytes of stack are left of %d", o.stack, full)
	}
	return o
}

// TestHostile runs modules that would never end, or take much memory or stack. Each is stopped, in both engines.
func TestHostile(t *testing.T) {
	void := ft(nil, nil)
	tests := []struct {
		name string
		wasm []byte
		want error
	}{
		{"spin", one(void, fn(nil, 0x03, 0x40, 0x0c, 0, 0x0b)), errFuel},
		{"spin without end of the loop's body", one(void, fn(nil, 0x03, 0x40, 0x41, 1, 0x0d, 0, 0x0b)), errFuel},
		{"two loops that leave each other", one(void, fn(nil, 0x03, 0x40, 0x03, 0x40, 0x41, 0, 0x0d, 0, 0x0c, 1, 0x0b, 0x0b)), errFuel},
		{"br_table", one(void, fn(nil, 0x03, 0x40, 0x02, 0x40, 0x02, 0x40, 0x41, 1, 0x0e, vec(raw(0), raw(1)), 2, 0x0b, 0x0c, 1, 0x0b, 0x0c, 0, 0x0b)), errFuel},
		{"loop with a parameter", module(
			sec(1, vec(void, ft(raw(i32), nil))), sec(3, vec(raw(0))), sec(7, vec(export("f", 0, 0))),
			sec(10, vec(fn(nil, 0x41, 7, 0x03, u(1), 0x0c, 0, 0x0b)))), errFuel},
		{"tree of calls", tree(40), errFuel},
		{"tree of calls of functions that begin with a loop", treeOf(40, 0x03, 0x40), errFuel},
		{"recursion in functions that begin with a loop", one(void, fn(nil, 0x03, 0x40, 0x10, 0, 0x0b)), errStack},
		{"recursion in a loop that a branch ends", one(void, fn(nil, 0x03, 0x40, 0x41, 0, 0x0d, 0, 0x10, 0, 0x0b, 0x0f)), errStack},
		{"a loop that is left before its end, again and again", module(
			sec(1, vec(void)), sec(3, vec(raw(0), raw(0))), sec(7, vec(export("f", 0, 0))),
			sec(10, vec(fn(nil, 0x03, 0x40, 0x10, 1, 0x0c, 0, 0x0b), fn(nil, 0x01, 0x03, 0x40, 0x0f, 0x0b)))), errFuel},
		{"recursion", one(void, fn(nil, 0x10, 0)), errStack},
		{"recursion with many locals", one(void, fn(raw(100, i64), locals(100), 0x10, 0, locals(100))), errStack},
		{"recursion with many operands", one(void, fn(nil, operands(300), 0x10, 0, bytes.Repeat([]byte{0x1a}, 300))), errStack},
		{"recursion with a result", one(ft(nil, raw(i32, i64)), fn(nil, 0x10, 0, 0x0f)), errStack},
		{"mutual recursion", module(
			sec(1, vec(void)), sec(3, vec(raw(0), raw(0), raw(0))), sec(7, vec(export("f", 0, 0))),
			sec(10, vec(fn(nil, 0x10, 1), fn(nil, 0x10, 2), fn(nil, 0x10, 0)))), errStack},
		{"recursion through a table", one(void, fn(nil, 0x41, 0, 0x11, 0, 0)), errStack},
		{"recursion through ref.func and table.set", module(
			sec(1, vec(void)), sec(3, vec(raw(0), raw(0))), sec(4, vec(raw(0x70, 0, 1))), sec(7, vec(export("f", 0, 0))),
			sec(9, vec(raw(3, 0, vec(raw(0))))),
			sec(10, vec(fn(nil, 0x10, 1), fn(nil, 0x41, 0, 0xd2, 0, 0x26, 0, 0x41, 0, 0x11, 0, 0)))), errStack},
		{"memory.fill", one(void, fn(nil, 0x03, 0x40, 0x41, 0, 0x41, 1, 0x41, s(65536), 0xfc, 11, 0, 0x0c, 0, 0x0b)), errFuel},
		{"memory.fill without a loop", one(void, fn(nil, bytes.Repeat(raw(0x41, 0, 0x41, 1, 0x41, s(65536), 0xfc, 11, 0), 300), 0x03, 0x40, 0x0c, 0, 0x0b)), errFuel},
		{"memory.copy", one(void, fn(nil, 0x03, 0x40, 0x41, 0, 0x41, 1, 0x41, s(65535), 0xfc, 10, 0, 0, 0x0c, 0, 0x0b)), errFuel},
		{"memory.grow", one(void, fn(nil, 0x03, 0x40, 0x41, 1, 0x40, 0, 0x1a, 0x0c, 0, 0x0b)), errFuel},
		{"table.grow", one(void, fn(nil, 0x03, 0x40, 0xd0, 0x70, 0x41, s(1<<20), 0xfc, 15, 0, 0x1a, 0x0c, 0, 0x0b)), errFuel},
		{"table.fill", one(void, fn(nil, 0x03, 0x40, 0x41, 0, 0xd0, 0x70, 0x41, 10, 0xfc, 17, 0, 0x0c, 0, 0x0b)), errFuel},
		{"straight code in a loop", one(void, fn(nil, 0x03, 0x40, bytes.Repeat(raw(0x41, 1, 0x1a), 30_000), 0x0c, 0, 0x0b)), errFuel},
		{"start function", module(
			sec(1, vec(void)), sec(3, vec(raw(0))), sec(8, raw(0)), sec(10, vec(fn(nil, 0x03, 0x40, 0x0c, 0, 0x0b)))), errFuel},
		{"start function that recurses", module(
			sec(1, vec(void)), sec(3, vec(raw(0))), sec(8, raw(0)), sec(10, vec(fn(nil, 0x10, 0)))), errStack},
	}
	for _, tt := range tests {
		for _, interpreter := range []bool{false, true} {
			engine := map[bool]string{false: "compiled", true: "interpreted"}[interpreter]
			t.Run(tt.name+"/"+engine, func(t *testing.T) {
				if interpreter && tt.want == errStack {
					// The interpreter has a limit of its own, of 2000 frames.
					return
				}
				res := rewrite(t, tt.wasm)
				var before, after runtime.MemStats
				m, err := start(t, config(interpreter), res.Module, func(m *machine) {
					if m.limit = 20_000_000; interpreter {
						m.limit = 1_000_000
						if raced {
							m.limit = 200_000
						}
					}
					runtime.ReadMemStats(&before)
				})
				if err == nil {
					_, err = m.call("f")
				} else if !res.Start {
					t.Fatal(err)
				}
				runtime.ReadMemStats(&after)
				if !errors.Is(err, tt.want) {
					t.Fatalf("it ended with %v, want %v", err, tt.want)
				}
				if grown := int64(after.TotalAlloc) - int64(before.TotalAlloc); tt.want == errStack && grown > 24<<20 {
					t.Errorf("%d MiB were allocated", grown>>20)
				}
			})
		}
	}
}

// locals is code that gives n i64 locals different values and reads them again.
func locals(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, raw(0x20, u(i), 0x42, s(i+1), 0x7c, 0x21, u(i))...)
	}
	return b
}

// operands is code that leaves n different numbers on the stack, none of them constant.
func operands(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, raw(0x41, s(i*4), 0x28, 2, 0)...)
	}
	return b
}

// tree is a module whose function f calls a function that calls the next one twice, n deep.
func tree(n int) []byte { return treeOf(n, 0x02, 0x40) }

// treeOf is a tree of functions whose code is inside of a block.
func treeOf(n int, block ...any) []byte {
	var types, bodies [][]byte
	for i := range n {
		types = append(types, raw(0))
		if i == n-1 {
			bodies = append(bodies, fn(nil, raw(block...), 0x0b))
		} else {
			bodies = append(bodies, fn(nil, raw(block...), 0x10, u(i+1), 0x10, u(i+1), 0x0b))
		}
	}
	return module(sec(1, vec(ft(nil, nil))), sec(3, vec(types...)), sec(7, vec(export("f", 0, 0))), sec(10, vec(bodies...)))
}

// TestCollectorRuns checks that Go's garbage collector gets to run while a guest spins: it
// needs every thread to stop somewhere, and a yield is such a place.
func TestCollectorRuns(t *testing.T) {
	res := rewrite(t, one(ft(nil, nil), fn(nil, 0x03, 0x40, 0x0c, 0, 0x0b)))
	spinning, collected := make(chan struct{}), make(chan struct{})
	stopped := errors.New("collected")
	m, err := start(t, config(false), res.Module, func(m *machine) {
		m.onYield = func() error {
			if m.yields == 1 {
				close(spinning)
			}
			select {
			case <-collected:
				return stopped
			default:
				return nil
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-spinning
		runtime.GC()
		close(collected)
	}()
	if _, err := m.call("f"); !errors.Is(err, stopped) {
		t.Fatalf("got %v", err)
	}
}

// TestFuelCoversWork compares fuel with what a loop does: every round is paid for, at most a few times over.
func TestFuelCoversWork(t *testing.T) {
	// for n := param; n != 0; n-- { if n&1 … }: 12 instructions a round or less
	body := fn(nil, 0x03, 0x40, 0x20, 0, 0x41, 1, 0x71, 0x04, 0x40, 0x01, 0x0b, 0x20, 0, 0x41, 1, 0x6b, 0x22, 0, 0x0d, 0, 0x0b)
	m, err := start(t, config(false), rewrite(t, one(ft(raw(i32), nil), body)).Module)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{1, 1000, 1_000_000} {
		before := m.spent()
		if _, err := m.call("f", uint64(n)); err != nil {
			t.Fatal(err)
		}
		if got := m.spent() - before; got < n*9 || got > n*12+10 {
			t.Errorf("%d rounds cost %d", n, got)
		}
	}
	// Memory is paid for by length.
	m, err = start(t, config(false), rewrite(t, one(ft(raw(i32), nil), fn(nil, 0x41, 0, 0x41, 1, 0x20, 0, 0xfc, 11, 0))).Module)
	if err != nil {
		t.Fatal(err)
	}
	before := m.spent()
	if _, err := m.call("f", 65536); err != nil {
		t.Fatal(err)
	}
	if got := m.spent() - before; got < 65536/64 || got > 65536/64+100 {
		t.Errorf("filling 64 KiB cost %d", got)
	}
}

// TestResult checks what a result tells about the original.
func TestResult(t *testing.T) {
	wasm := module(
		sec(1, vec(ft(nil, nil), ft(raw(i32, i64), raw(i64, i32)))),
		sec(2, vec(raw("env", "f", 0, 1), raw("env", "g", 3, i64, 0), raw("env", "m", 2, 1, 1, 2))),
		sec(3, vec(raw(0), raw(1))),
		sec(4, vec(raw(0x70, 0, 3))),
		sec(6, vec(raw(i32, 1, 0x41, 5, 0x0b))),
		sec(7, vec(export("run", 0, 1), export("swap", 0, 2), export("host", 0, 0), export("table", 1, 0), export("memory", 2, 0), export("n", 3, 1))),
		sec(8, raw(1)),
		sec(10, vec(fn(nil), fn(nil, 0x20, 1, 0x20, 0, 0x0f))),
		sec(0, raw("name", raw(1, u(10), vec(raw(0, "host"), raw(1, "a"))))),
		sec(0, raw("producers", 1, 2, 3)),
	)
	res := rewrite(t, wasm)
	again := rewrite(t, wasm)
	if !bytes.Equal(res.Module, again.Module) {
		t.Error("two runs give different modules")
	}
	want := &meter.Result{
		Module: res.Module,
		Imports: []meter.Extern{
			{Module: "env", Name: "f", Kind: meter.KindFunc, Type: "(i32, i64) -> (i64, i32)"},
			{Module: "env", Name: "g", Kind: meter.KindGlobal, Type: "i64"},
			{Module: "env", Name: "m", Kind: meter.KindMemory, Type: "1 2"},
		},
		Exports: []meter.Extern{
			{Name: "run", Kind: meter.KindFunc, Type: "() -> ()"},
			{Name: "swap", Kind: meter.KindFunc, Type: "(i32, i64) -> (i64, i32)"},
			{Name: "host", Kind: meter.KindFunc, Type: "(i32, i64) -> (i64, i32)"},
			{Name: "table", Kind: meter.KindTable, Type: "funcref 3"},
			{Name: "memory", Kind: meter.KindMemory, Type: "1 2"},
			{Name: "n", Kind: meter.KindGlobal, Type: "mut i32"},
		},
		Memory:    &meter.Memory{Min: 1, Max: 2, HasMax: true, Imported: true},
		Start:     true,
		Functions: 2,
	}
	if diff := cmp.Diff(want, res); diff != "" {
		t.Errorf("unexpected (+):\n%s", diff)
	}
	for _, custom := range []string{"host", meter.ImportModule + "." + meter.Yield, "a"} {
		if !bytes.Contains(res.Module, raw(custom)) {
			t.Errorf("the name %q is gone", custom)
		}
	}
	if bytes.Contains(res.Module, []byte("producers")) {
		t.Error("another custom section is still there")
	}
}

// TestTraceHasNames checks that a trap names the functions of the original.
func TestTraceHasNames(t *testing.T) {
	wasm := module(
		sec(1, vec(ft(nil, nil))), sec(3, vec(raw(0), raw(0))), sec(7, vec(export("f", 0, 0))),
		sec(10, vec(fn(nil, 0x10, 1), fn(nil, 0x00))),
		sec(0, raw("name", raw(1, u(15), vec(raw(0, "outer"), raw(1, "inner"))))),
	)
	m, err := start(t, config(false), rewrite(t, wasm).Module)
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.call("f")
	if err == nil || !strings.Contains(err.Error(), ".inner()") || !strings.Contains(err.Error(), ".outer()") {
		t.Errorf("got %v", err)
	}
}

// TestTablesStayWithinLimit checks that table.grow is refused beyond the limit, which is not the runtime's.
func TestTablesStayWithinLimit(t *testing.T) {
	m, err := start(t, config(false), rewrite(t, one(ft(raw(i32), raw(i32)), fn(nil, 0xd0, 0x70, 0x20, 0, 0xfc, 15, 0))).Module)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[uint64]uint32{1 << 17: 0xffffffff, 1000: 10} {
		got, err := m.call("f", n)
		if err != nil {
			t.Fatal(err)
		}
		if uint32(got[0]) != want {
			t.Errorf("growing by %d gives %d, want %d", n, int32(got[0]), int32(want))
		}
	}
}

func compiles(t testing.TB, rt wazero.Runtime, wasm []byte) error {
	t.Helper()
	code, err := rt.CompileModule(context.Background(), wasm)
	if err == nil {
		err = code.Close(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return nil
	}
	return err
}
