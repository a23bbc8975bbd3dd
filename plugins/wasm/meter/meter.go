// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package meter rewrites a WebAssembly module so that whoever runs it stays in
// control: code that runs pays from a fuel counter and calls the host back when the
// counter is spent, and code that nests calls pays from a stack counter and is
// stopped when that one is.
package meter

import "fmt"

// Version of the rewriting. The same module, Options and Version give the same
// bytes, so that a cache of compiled modules is keyed by all three.
const Version = 1

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
