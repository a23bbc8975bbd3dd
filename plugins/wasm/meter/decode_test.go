// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"

	"github.com/promweave/promweave/plugins/wasm/meter"
)

// TestRefused has one module for every kind of index and for everything that is not supported.
func TestRefused(t *testing.T) {
	void := ft(nil, nil)
	code := func(parts ...any) []byte { return one(void, fn(nil, parts...)) }
	bare := func(parts ...any) []byte {
		return module(sec(1, vec(void)), sec(3, vec(raw(0))), sec(10, vec(fn(nil, parts...))))
	}
	tests := []struct {
		name string
		wasm []byte
		want string
	}{
		{"nothing", nil, "does not begin with"},
		{"a component", []byte("\x00asm\x0d\x00\x01\x00"), "component"},
		{"local", code(0x20, 0, 0x1a), "local 0 does not exist"},
		{"global that metering adds", code(0x23, 0, 0x1a), "global 0 does not exist"},
		{"function that metering adds", code(0x10, 1), "function 1 does not exist"},
		{"ref.func", code(0xd2, 1, 0x1a), "function 1 does not exist"},
		{"label", code(0x0c, 1), "label 1 does not exist"},
		{"label in a table", code(0x41, 0, 0x0e, vec(raw(0)), 1), "label 1 does not exist"},
		{"type that metering adds", code(0x41, 0, 0x11, 1, 0), "type 1 does not exist"},
		{"block type that metering adds", code(0x41, 0, 0x02, 1, 0x0b, 0x1a), "block type 1 does not exist"},
		{"table", code(0x41, 0, 0x11, 0, 1), "table 1 does not exist"},
		{"memory", bare(0x3f, 0, 0x1a), "there is none"},
		{"second memory", code(0x3f, 1, 0x1a), "memory 1 does not exist"},
		{"data segment", code(0xfc, 9, 0), "without a data count"},
		{"element segment", code(0xfc, 13, 1), "element segment 1 does not exist"},
		{"function type", module(sec(1, vec(void)), sec(3, vec(raw(1)))), "type 1 does not exist"},
		{"export", module(sec(7, vec(export("a", 0, 0)))), "function 0 does not exist"},
		{"exported memory", module(sec(7, vec(export("a", 2, 0)))), "memory 0 does not exist"},
		{"exported global", module(sec(7, vec(export("a", 3, 0)))), "global 0 does not exist"},
		{"start", module(sec(1, vec(void)), sec(8, raw(0))), "function 0 does not exist"},
		{"element", module(sec(4, vec(raw(0x70, 0, 1))), sec(9, vec(raw(0, 0x41, 0, 0x0b, vec(raw(0)))))), "function 0 does not exist"},
		{"global initializer", module(sec(6, vec(raw(i32, 0, 0x23, 0, 0x0b)))), "imported global 0 does not exist"},
		{"alignment", code(0x41, 0, 0x28, 3, 0, 0x1a), "alignment"},
		{"reserved import", module(sec(1, vec(void)), sec(2, vec(raw("meter", "yield", 0, 0)))), "reserved"},
		{"reserved export", module(sec(6, vec(raw(i64, 1, 0x42, 0, 0x0b))), sec(7, vec(export(meter.Fuel, 3, 0)))), "reserved"},
		{"imported table", module(sec(2, vec(raw("env", "t", 1, 0x70, 0, 1)))), "imports a table"},
		{"two exports of one name", module(sec(5, vec(raw(0, 1))), sec(7, vec(export("a", 2, 0), export("a", 2, 0)))), "twice"},
		{"two memories", module(sec(5, vec(raw(0, 1), raw(0, 1)))), "more than one memory"},
		{"shared memory", module(sec(5, vec(raw(3, 1, 1)))), "shared"},
		{"64-bit memory", module(sec(5, vec(raw(4, 1)))), "64-bit"},
		{"huge table", module(sec(4, vec(raw(0x70, 0, u(1<<27))))), "at most"},
		{"tail call", code(0x12, 0), "tail calls"},
		{"atomic", code(0xfe, 0x03, 0x00), "threads"},
		{"exception", code(0x08, 0), "exception handling"},
		{"tags", module(sec(13, vec(raw(0, 0)))), "exception handling"},
		{"gc", code(0xfb, 0), "garbage collection"},
		{"gc type", module(sec(1, vec(raw(0x5f, 0, 0)))), "GC"},
		{"unknown opcode", code(0x27), "opcode 0x27 is not supported"},
		{"unknown misc opcode", code(0xfc, 18), "0xfc 18"},
		{"relaxed SIMD", code(0xfd, u(0x100)), "relaxed SIMD"},
		{"a long vector opcode", code(0xfd, 0x8c, 0, make([]byte, 16), 0x1a), "relaxed SIMD"},
		{"four billion types", module(sec(1, raw(u(0xffffffff)))), "4294967295 types"},
		{"many types that are not there", module(sec(1, raw(u(9000)))), "do not fit"},
		{"four billion locals", module(sec(1, vec(void)), sec(3, vec(raw(0))), sec(10, vec(fn(raw(0xff, 0xff, 0xff, 0xff, 0x0f, i32))))), "20000 locals"},
		{"many locals", module(sec(1, vec(void)), sec(3, vec(raw(0))), sec(10, vec(raw(u(7), 1, u(20_001), i32, 0x0b, 0x0b)))), "locals"},
		{"deep nesting", code(bytes.Repeat([]byte{0x02, 0x40}, 60_000)), "nested"},
		{"else without if", code(0x05), "else"},
		{"code behind its end", code(0x0b, 0x01), "behind its end"},
		{"sections out of order", module(sec(3, vec()), sec(1, vec())), "out of order"},
		{"a function without code", module(sec(1, vec(void)), sec(3, vec(raw(0)))), "1 functions are declared and 0 have code"},
		{"code without a function", module(sec(10, vec(fn(nil)))), "0 functions are declared and 1 have code"},
		{"a name that is not UTF-8", module(sec(0, raw("\xff"))), "UTF-8"},
		{"large", make([]byte, 17<<20), "at most 16777216"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := meter.Rewrite(tt.wasm, meter.Options{})
			var e *meter.Error
			if !errors.As(err, &e) || !strings.Contains(e.What, tt.want) {
				t.Errorf("got %v, want …%s…", err, tt.want)
			}
		})
	}
}

// kitchen has something of everything that is supported.
func kitchen() []byte {
	return module(
		sec(1, vec(ft(nil, nil), ft(raw(i32, i64), raw(i64, i32)), ft(raw(i32), raw(i32)))),
		sec(2, vec(raw("env", "f", 0, 2), raw("env", "g", 3, i32, 0))),
		sec(3, vec(raw(0), raw(1), raw(2))),
		sec(4, vec(raw(0x70, 0, 6), raw(0x6f, 1, 1, 2))),
		sec(5, vec(raw(1, 1, 4))),
		sec(6, vec(raw(i32, 1, 0x41, 5, 0x0b), raw(0x70, 0, 0xd2, 1, 0x0b), raw(i32, 0, 0x23, 0, 0x0b), raw(0x7c, 0, 0x44, make([]byte, 8), 0x0b))),
		sec(7, vec(export("run", 0, 1), export("swap", 0, 2), export("f", 0, 3), export("memory", 2, 0))),
		sec(8, raw(1)),
		sec(9, vec(
			raw(0, 0x41, 0, 0x0b, vec(raw(1), raw(3))),
			raw(1, 0, vec(raw(2))),
			raw(2, 0, 0x41, 2, 0x0b, 0, vec(raw(0))),
			raw(3, 0, vec(raw(3))),
			raw(4, 0x41, 3, 0x0b, vec(raw(0xd2, 2, 0x0b), raw(0xd0, 0x70, 0x0b))),
			raw(5, 0x70, vec(raw(0xd2, 1, 0x0b))),
			raw(6, 1, 0x41, 0, 0x0b, 0x6f, vec(raw(0xd0, 0x6f, 0x0b))),
			raw(7, 0x70, vec(raw(0xd2, 3, 0x0b))),
		)),
		sec(12, raw(2)),
		sec(10, vec(
			fn(nil, 0x01, 0xd0, 0x70, 0x1a, 0xfc, 13, 1, 0xfc, 9, 1),
			fn(raw(1, i32), 0x20, 0, 0x20, 1, 0x02, 1, 0x1a, 0x1a, 0x20, 1, 0x20, 0, 0x0f, 0x0b),
			fn(raw(2, i64, 1, 0x7b),
				0x20, 0, 0x04, i32, 0x20, 0, 0x10, 0, 0x05, 0x41, 0, 0x20, 0, 0x11, 0, 0, 0x0b, 0x21, 0,
				0x02, 0x40, 0x03, 0x40, 0x20, 0, 0x45, 0x0d, 1, 0x20, 0, 0x41, 1, 0x6b, 0x22, 0, 0x0e, vec(raw(0), raw(1)), 0, 0x0b, 0x0b,
				0x41, 0, 0x41, 1, 0x20, 0, 0xfc, 11, 0, 0x41, 0, 0x41, 0, 0x41, 3, 0xfc, 8, 1, 0,
				0x20, 0, 0xfd, 0x0f, 0xfd, 0x80, 1, 0x22, 3, 0x20, 3, 0xfd, 0x0d, make([]byte, 16), 0xfd, 0x15, 3,
				0x41, 0, 0x2b, 3, 0, 0xfc, 2, 0x6a, 0x23, 1, 0x20, 0, 0x1c, 1, i32),
		)),
		sec(11, vec(raw(0, 0x41, 8, 0x0b, "hello"), raw(1, "passive"))),
		sec(0, raw("name", raw(0, 2, "m"), raw(1, u(10), vec(raw(0, "host"), raw(1, "a"))), raw(2, 6, vec(raw(2, vec(raw(0, "x"))))))),
	)
}

// oracle checks that what is accepted is a module to wazero, and that the result is one, too.
func oracle(t testing.TB, rt wazero.Runtime, wasm []byte, what string, n int) {
	t.Helper()
	res, err := meter.Rewrite(wasm, meter.Options{})
	if err != nil {
		var e *meter.Error
		if !errors.As(err, &e) {
			t.Fatalf("%s %d: error %v is of another type", what, n, err)
		}
		return
	}
	result := compiles(t, rt, res.Module)
	original := compiles(t, rt, wasm)
	if original != nil && strings.Contains(original.Error(), "failed to read custom section name[") {
		// wazero refuses a custom section without content at the module's end, which the specification allows. Results have none.
		return
	}
	if result == nil && original != nil {
		t.Fatalf("%s %d: rewritten it is accepted, the original is not: %v", what, n, original)
	}
	if result != nil && original == nil {
		t.Fatalf("%s %d: the original is accepted, rewritten it is not: %v", what, n, result)
	}
}

func interpreter(t testing.TB) wazero.Runtime {
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithMemoryLimitPages(1<<16))
	t.Cleanup(func() {
		if err := rt.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return rt
}

// TestMutations truncates modules everywhere and changes each of their bytes.
func TestMutations(t *testing.T) {
	rt := interpreter(t)
	for name, wasm := range map[string][]byte{"kitchen": kitchen(), "c": golden(t, "work_c.wasm")} {
		t.Run(name, func(t *testing.T) {
			if err := compiles(t, rt, wasm); err != nil {
				t.Fatal(err)
			}
			if err := compiles(t, rt, rewrite(t, wasm).Module); err != nil {
				t.Fatal(err)
			}
			values := []byte{0, 1, 2, 0x0b, 0x40, 0x7f, 0x80, 0xff}
			cuts, changes := 1, 1
			if name == "c" {
				values, changes = []byte{0xff}, 3
				if raced {
					cuts, changes = 7, 13
				}
			}
			for i := 0; i < len(wasm); i += cuts {
				oracle(t, rt, wasm[:i], "cut at", i)
			}
			for i := 0; i < len(wasm); i += changes {
				for _, v := range append(values, wasm[i]+1, wasm[i]-1, wasm[i]^0x80) {
					m := bytes.Clone(wasm)
					m[i] = v
					oracle(t, rt, m, "changed at", i)
				}
			}
		})
	}
}

func FuzzRewrite(f *testing.F) {
	f.Add(kitchen())
	f.Add(golden(f, "work_c.wasm"))
	f.Add(golden(f, "work_rust.wasm"))
	f.Add(tree(5))
	f.Add(one(ft(nil, nil), fn(nil, 0x41, 0, 0x11, 0, 0)))
	f.Fuzz(func(t *testing.T, wasm []byte) {
		oracle(t, interpreter(t), wasm, "input", 0)
	})
}
