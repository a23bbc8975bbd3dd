// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/promweave/promweave/plugins/wasm/meter"
)

// TestSlowToCompile has modules of up to some 100 KiB that would keep the compiler, or the process's memory, busy for
// minutes to years. They are refused; smaller ones of the same form are not.
func TestSlowToCompile(t *testing.T) {
	times := func(n int, parts ...any) []byte { return bytes.Repeat(raw(parts...), n) }
	each := func(n int, code func(i int) []byte) []byte {
		var b []byte
		for i := range n {
			b = append(b, code(i)...)
		}
		return b
	}
	take := ft(raw(i32), nil)
	ints := func(n int) []byte { return bytes.Repeat(raw(i32), n) }
	// body is a module with one function that takes an i32, of n i32 locals.
	body := func(n int, parts ...any) []byte {
		return one(take, raw(u(len(raw(1, u(n), i32, raw(parts...), 0x0b))), 1, u(n), i32, raw(parts...), 0x0b))
	}
	// mixed is a module with a function of type t, n mutable globals and a function of no parameters with the code.
	mixed := func(typ []byte, n int, callee, code []byte) []byte {
		return module(
			sec(1, vec(typ, ft(nil, nil))), sec(3, vec(raw(0), raw(1))), sec(5, vec(raw(1, 1, 16))),
			sec(6, raw(u(n), times(n, i32, 1, 0x41, 0, 0x0b))), sec(10, vec(callee, fn(nil, code))))
	}
	const slow, large = "too long to compile", "too much memory to compile"
	tests := []struct {
		name string
		wasm func(n int) []byte
		n    int // refused, and a tenth of it is not
		want string
	}{
		{"memory.fill", func(n int) []byte { return body(0, times(n, 0x41, 0, 0x41, 1, 0x20, 0, 0xfc, 11, 0)) }, 20_000, slow},
		{"memory.copy", func(n int) []byte { return body(0, times(n, 0x41, 0, 0x41, 1, 0x20, 0, 0xfc, 10, 0, 0)) }, 20_000, slow},
		{"memory.grow", func(n int) []byte { return body(0, times(n, 0x20, 0, 0x40, 0, 0x1a)) }, 20_000, slow},
		{"call_indirect", func(n int) []byte { return body(0, times(n, 0x20, 0, 0x20, 0, 0x11, 0, 0)) }, 30_000, slow},
		{"if", func(n int) []byte { return body(0, times(n, 0x20, 0, 0x04, 0x40, 0x0b)) }, 40_000, slow},
		{"nested if", func(n int) []byte { return body(0, times(n, 0x20, 0, 0x04, 0x40), times(n, 0x0b)) }, 30_000, slow},
		{"br_if", func(n int) []byte { return body(0, 0x02, 0x40, times(n, 0x20, 0, 0x0d, 0), 0x0b) }, 40_000, slow},
		{"return", func(n int) []byte { return body(0, times(n, 0x20, 0, 0x04, 0x40, 0x0f, 0x0b)) }, 20_000, slow},
		{"br_table", func(n int) []byte { return body(0, 0x02, 0x40, 0x20, 0, 0x0e, u(n), make([]byte, n+1), 0x0b) }, 100_000, slow},
		{"loops", func(n int) []byte { return body(0, times(n, 0x03, 0x40, 0x20, 0, 0x0d, 0, 0x0b)) }, 10_000, slow},
		{"nested loops", func(n int) []byte { return body(0, times(n, 0x03, 0x40), times(n, 0x20, 0, 0x0d, 0, 0x0b)) }, 10_000, slow},
		{"locals in nested loops", func(n int) []byte {
			return body(n, each(n, func(i int) []byte { return raw(0x03, 0x40, 0x20, u(i+1), 0x20, 0, 0x6a, 0x21, u(i+1)) }), times(n, 0x20, 0, 0x0d, 0, 0x0b))
		}, 1000, slow},
		{"locals set in branches", func(n int) []byte {
			return body(n, each(n, func(i int) []byte { return raw(0x20, 0, 0x04, 0x40, 0x20, 0, 0x21, u(i+1), 0x0b) }),
				each(n, func(i int) []byte { return raw(0x20, u(i+1), 0x21, 0) }))
		}, 5000, slow},
		{"locals alive across branches", func(n int) []byte {
			return body(n, each(n, func(i int) []byte { return raw(0x20, 0, 0x28, 2, u(4*i), 0x21, u(i+1)) }), times(n, 0x20, 0, 0x04, 0x40, 0x0b),
				each(n, func(i int) []byte { return raw(0x20, u(i+1), 0x21, 0) }))
		}, 5000, slow},
		{"locals that are never set", func(n int) []byte {
			return body(n, times(n, 0x20, 0, 0x04, 0x40, 0x0b), each(n, func(i int) []byte { return raw(0x20, u(i+1), 0x21, 0) }))
		}, 5000, slow},
		{"locals of an outer loop", func(n int) []byte {
			return body(n, 0x03, 0x40, each(n, func(i int) []byte { return raw(0x20, u(i+1), 0x41, 1, 0x6a, 0x21, u(i+1)) }),
				times(n, 0x20, 0, 0x04, 0x40, 0x0b), 0x20, 0, 0x0d, 0, 0x0b)
		}, 5000, slow},
		{"globals in loops", func(n int) []byte {
			return mixed(take, n, fn(nil, 0x03, 0x40, each(n, func(i int) []byte { return raw(0x23, u(i), 0x04, 0x40, 0x20, 0, 0x24, u(i), 0x0b) }), 0x20, 0, 0x0d, 0, 0x0b), nil)
		}, 5000, slow},
		{"results of blocks", func(n int) []byte {
			return mixed(ft(nil, ints(1000)), 0, fn(nil, times(1000, 0x41, 0), times(n, 0x41, 0, 0x0d, 0)), nil)
		}, 3000, slow},
		{"calls and globals", func(n int) []byte { return mixed(ft(nil, nil), n, fn(nil), times(n, 0x10, 0)) }, 5000, large},
		{"results of calls", func(n int) []byte {
			return mixed(ft(nil, ints(1000)), 0, fn(nil, times(1000, 0x41, 0)), raw(times(n, 0x10, 0), 0x00))
		}, 5000, large},
		{"straight code", func(n int) []byte { return body(0, times(n, 0x20, 0, 0x28, 2, 0, 0x1a)) }, 200_000, "bytes"},
		{"many functions", func(n int) []byte {
			body := fn(nil, times(5000, 0x41, 0, 0x04, 0x40, 0x0b))
			return module(sec(1, vec(ft(nil, nil))), sec(3, raw(u(n), make([]byte, n))), sec(10, raw(u(n), bytes.Repeat(body, n))))
		}, 50, "together"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := meter.Rewrite(tt.wasm(tt.n), meter.Options{})
			var e *meter.Error
			if !errors.As(err, &e) || !strings.Contains(e.What, tt.want) {
				t.Errorf("%d of them: got %v, want …%s…", tt.n, err, tt.want)
			}
			if _, err := meter.Rewrite(tt.wasm(tt.n/10), meter.Options{}); err != nil {
				t.Errorf("%d of them: %v", tt.n/10, err)
			}
		})
	}
}

// TestRefusalNamesFunction checks that one finds the function that was refused.
func TestRefusalNamesFunction(t *testing.T) {
	wasm := module(
		sec(1, vec(ft(nil, nil))), sec(3, vec(raw(0), raw(0))),
		sec(10, vec(fn(nil), fn(nil, bytes.Repeat(raw(0x41, 0, 0x04, 0x40, 0x0b), 40_000)))),
		sec(0, raw("name", raw(1, u(9), vec(raw(0, "a"), raw(1, "big"))))),
	)
	_, err := meter.Rewrite(wasm, meter.Options{})
	var e *meter.Error
	if !errors.As(err, &e) || e.Func != 1 || !strings.Contains(e.What, `"big"`) {
		t.Errorf("got %v", err)
	}
}
