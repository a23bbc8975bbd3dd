// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package meter rewrites a WebAssembly module so that whoever runs it stays in
// control: code that runs pays from a fuel counter and calls the host back when the
// counter is spent, and code that nests calls pays from a stack counter and is
// stopped when that one is.
//
// # Why
//
// wazero (looked at: 1.12.0) has no fuel and no epochs. What it has is
// WithCloseOnContextDone, which looks at a flag at loop headers, through a call out of compiled code,
// and not at all in code without loops: a tree of calls forty deep runs on long past its
// deadline. Without it a guest in a loop keeps Go's garbage collector, and so the whole process, waiting.
// CPU time, divided by that of the plain module, on amd64 (go test -bench Overhead -benchtime 60x: sixteen functions of
// C, Rust and Go modules, variants interleaved, the median of 60 rounds' ratios, seven runs on two shared cores at a load average of 1 to 1.7):
//
//	                                    metered        CloseOnContextDone
//	geometric mean of all               1.12 - 1.20    4.0 - 4.4
//	geometric mean, C and Rust          1.13 - 1.15    3.7 - 4.0
//	geometric mean, Go's toolchain      1.19 - 1.23    4.0 - 5.0
//	tight loops                         0.94 - 1.47    3 - 14
//	real work (sorting, symbols,
//	decoding, formatting)               0.97 - 1.37    2 - 9
//	recursion that does nothing else    1.04 - 1.95    1 - 9
//
// The metered module is 8 % larger (Go) to 39 % (C, 3 KiB).
//
// # How
//
// A function is divided into regions that are entered at their begin only. A region is paid for
// where it begins, or, if it is short, with one before it that control always passes; so code is paid
// for before it runs, and more is paid where some of it is skipped. Whether fuel is spent is asked
// where functions and loops begin, in straight code every few thousand instructions, and
// before instructions whose work depends on a length, which they pay for. Small functions without loops
// are paid for by their callers. Functions with a loop that calls nothing, or few others, keep the
// counter in a local. A function that begins with a loop, as all of Go's with branches do, asks only there.
//
// Stack is paid for in bytes, by estimate, by as few functions as are on all cycles of the call graph, and by
// calls through tables that can come back to themselves. The engine's own limit is behind this one.
//
// Host functions, and what they do for the module, cost a small constant here; a host that does much charges
// for it by subtracting from the counter. The host must keep memory.grow from copying (by reserving what memory may
// grow to), since only the pages that are added are paid for. Compiling is not
// metered, but what it takes is estimated, and a module that would take long is refused.
package meter

import "fmt"

// Version of the rewriting. The same module, Options and Version give the same
// bytes, so that a cache of compiled modules is keyed by all three.
const Version = 2

// What a rewritten module has on top of the original one.
const (
	// ImportModule and Yield name the one function that a rewritten module
	// imports besides its own imports: yield(reason i32) → (). No module may
	// import anything from ImportModule itself.
	ImportModule = "meter"
	Yield        = "yield"

	// Fuel is the export name of the fuel counter, a mutable i64 global that
	// starts at 0. The module subtracts what it is about to do, and calls yield
	// with ReasonFuel when the counter is below 0. The host sets it to what may
	// be spent until the next yield, and ends the call by panicking in yield (wazero
	// returns the panic's value as the call's error).
	Fuel = "__meter_fuel"

	// Stack is the export name of the stack counter, a mutable i32 global with the bytes of
	// stack that are left. Outside of calls it has its first value again,
	// unless a call was ended by a trap: such an instance must not be used again.
	Stack = "__meter_stack"
)

// Reasons that yield is called for. Of wazero's 64-bit parameter only the lower half counts (api.DecodeU32).
const (
	// ReasonFuel says that fuel is below 0. The call goes on when yield returns.
	ReasonFuel = 0
	// ReasonStack says that calls are nested too deeply. If yield returns, the
	// module traps.
	ReasonStack = 1
)

// Options are limits; 0 stands for the default.
type Options struct {
	// Bytes is the largest module that is looked at. Default 16 MiB.
	Bytes int
	// StackBytes is how much stack nested calls may take, as estimated from
	// their parameters, locals and operands. Default 4 MiB, with which wazero's stack, which
	// doubles, stays below 16 MiB even while it is copied.
	StackBytes int
	// TableElements is what all tables of a module may grow to together. Tables are not
	// part of a runtime's memory limit. Default 131072, which is 1 MiB.
	TableElements int
}

// A Result is a rewritten module, and what the original asks for and offers.
type Result struct {
	// Module is the rewritten module. It shares nothing with the original.
	Module []byte
	// Imports and Exports are those of the original, in its order.
	Imports []Extern
	Exports []Extern
	// Memory is the module's memory, nil if it has none.
	Memory *Memory
	// Start tells that some of the module's code runs while it is instantiated.
	Start bool
	// Functions counts the functions that the module defines.
	Functions int
}

// Kind of what is imported or exported, numbered as in the binary format.
type Kind byte

// The kinds of externs.
const (
	KindFunc Kind = iota
	KindTable
	KindMemory
	KindGlobal
)

// String returns the kind's name in the text format.
func (k Kind) String() string {
	switch k {
	case KindFunc:
		return "func"
	case KindTable:
		return "table"
	case KindMemory:
		return "memory"
	case KindGlobal:
		return "global"
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// An Extern is something imported or exported.
type Extern struct {
	// Module is the module it is imported from, "" for an export.
	Module string
	Name   string
	Kind   Kind
	// Type is, by kind: "(i32, i64) -> (f32)" with either list possibly empty;
	// "funcref 1 10"; "1 10", or "1" without a maximum, in pages; "mut i64" or "i64".
	Type string
}

// Memory is what a module declares about its memory, in pages of 64 KiB.
type Memory struct {
	Min uint32
	// Max is only there if HasMax is set.
	Max      uint32
	HasMax   bool
	Imported bool
}

// An Error says what in a module was refused, and where.
type Error struct {
	// Offset in the module, in bytes.
	Offset int
	// Func is the index of the function whose body it is in, -1 outside of bodies.
	Func int
	What string
}

func (e *Error) Error() string {
	if e.Func >= 0 {
		return fmt.Sprintf("wasm module, function %d, byte %#x: %s", e.Func, e.Offset, e.What)
	}
	return fmt.Sprintf("wasm module, byte %#x: %s", e.Offset, e.What)
}
