// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package wasi is the part of WASI preview 1 that modules built by Go's toolchain
// import, with nothing behind it: output goes to the host's log, there are no
// arguments, no environment, no files, no sockets. Layouts and numbers are those of
// https://github.com/WebAssembly/WASI/blob/main/legacy/preview1/docs.md.
package wasi

import (
	"encoding/binary"
	"time"

	"github.com/tetratelabs/wazero/api"
)

// Module is the name under which the functions are imported.
const Module = "wasi_snapshot_preview1"

// Host is what is behind the functions. Its methods may panic to end the call.
type Host interface {
	// Output gets what is written to standard output or error.
	Output(b []byte)
	// Now is the time in ns: since 1970, or monotonic and above 0.
	Now(monotonic bool) int64
	// Random fills b.
	Random(b []byte)
	// Sleep returns after d, or when the call must end.
	Sleep(d time.Duration)
	// Exit ends the call and the instance; it does not return.
	Exit(code uint32)
	// Charge counts host work of so many bytes against the call.
	Charge(bytes int)
}

// Function is one function: its type, and what it does with parameters on the stack,
// where it leaves its result.
type Function struct {
	Name            string
	Params, Results []api.ValueType
	Call            func(h Host, mem api.Memory, stack []uint64)
}

// errno are the errors of WASI that occur here.
const (
	success = 0
	badf    = 8
	fault   = 21
	inval   = 28
	notsup  = 58
)

// The most that one call may hand over; more is a short write, which is legal.
const (
	maxWrite         = 64 << 10
	maxVectors       = 1024
	maxSubscriptions = 64
)

// Functions returns all there are. A module that imports another one is refused.
func Functions() []Function {
	const i32, i64 = api.ValueTypeI32, api.ValueTypeI64
	t := func(p ...api.ValueType) []api.ValueType { return p }
	f := func(name string, params []api.ValueType, call func(Host, api.Memory, []uint64) uint32) Function {
		return Function{name, params, t(i32), func(h Host, mem api.Memory, stack []uint64) {
			stack[0] = uint64(call(h, mem, stack))
		}}
	}
	return []Function{
		f("args_get", t(i32, i32), nothing),
		f("args_sizes_get", t(i32, i32), noSizes),
		f("environ_get", t(i32, i32), nothing),
		f("environ_sizes_get", t(i32, i32), noSizes),
		f("clock_time_get", t(i32, i64, i32), clockTimeGet),
		f("fd_close", t(i32), badDescriptor),
		f("fd_fdstat_get", t(i32, i32), fdstatGet),
		f("fd_fdstat_set_flags", t(i32, i32), fdstatSetFlags),
		f("fd_prestat_dir_name", t(i32, i32, i32), badDescriptor),
		f("fd_prestat_get", t(i32, i32), badDescriptor),
		f("fd_read", t(i32, i32, i32, i32), fdRead),
		f("fd_write", t(i32, i32, i32, i32), fdWrite),
		f("poll_oneoff", t(i32, i32, i32, i32), pollOneoff),
		{"proc_exit", t(i32), nil, func(h Host, _ api.Memory, stack []uint64) { h.Exit(uint32(stack[0])) }},
		f("random_get", t(i32, i32), randomGet),
		f("sched_yield", nil, nothing),
	}
}

func nothing(Host, api.Memory, []uint64) uint32 { return success }

func badDescriptor(Host, api.Memory, []uint64) uint32 { return badf }

func noSizes(_ Host, mem api.Memory, stack []uint64) uint32 {
	if !mem.WriteUint32Le(uint32(stack[0]), 0) || !mem.WriteUint32Le(uint32(stack[1]), 0) {
		return fault
	}
	return success
}

func clockTimeGet(h Host, mem api.Memory, stack []uint64) uint32 {
	id := uint32(stack[0])
	if id > 1 {
		return inval
	}
	if !mem.WriteUint64Le(uint32(stack[2]), uint64(h.Now(id == 1))) {
		return fault
	}
	return success
}

func fdstatGet(_ Host, mem api.Memory, stack []uint64) uint32 {
	if uint32(stack[0]) > 2 {
		return badf
	}
	const characterDevice = 2
	if !mem.Write(uint32(stack[1]), []byte{characterDevice, 23: 0}) {
		return fault
	}
	return success
}

func fdstatSetFlags(_ Host, _ api.Memory, stack []uint64) uint32 {
	if uint32(stack[0]) > 2 {
		return badf
	}
	return success
}

// fdRead is at the end of standard input.
func fdRead(_ Host, mem api.Memory, stack []uint64) uint32 {
	if uint32(stack[0]) != 0 {
		return badf
	}
	if !mem.WriteUint32Le(uint32(stack[3]), 0) {
		return fault
	}
	return success
}

func fdWrite(h Host, mem api.Memory, stack []uint64) uint32 {
	fd, at, n, written := uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])
	if fd != 1 && fd != 2 {
		return badf
	}
	if n > maxVectors {
		return inval
	}
	vectors, ok := mem.Read(at, 8*n)
	if !ok {
		return fault
	}
	h.Charge(8 * int(n))
	total := uint32(0)
	for ; len(vectors) > 0 && total < maxWrite; vectors = vectors[8:] {
		p, size := binary.LittleEndian.Uint32(vectors), binary.LittleEndian.Uint32(vectors[4:])
		b, ok := mem.Read(p, size)
		if !ok {
			return fault
		}
		b = b[:min(size, maxWrite-total)]
		h.Charge(len(b))
		h.Output(b)
		total += uint32(len(b))
	}
	if !mem.WriteUint32Le(written, total) {
		return fault
	}
	return success
}

func randomGet(h Host, mem api.Memory, stack []uint64) uint32 {
	b, ok := mem.Read(uint32(stack[0]), uint32(stack[1]))
	if !ok {
		return fault
	}
	h.Charge(len(b))
	h.Random(b)
	return success
}

// pollOneoff sleeps until the first clock of the subscriptions; descriptors are
// never ready. Go uses it for timers only.
func pollOneoff(h Host, mem api.Memory, stack []uint64) uint32 {
	in, out, n, stored := uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])
	if n == 0 || n > maxSubscriptions {
		return inval
	}
	subscriptions, ok := mem.Read(in, 48*n)
	if !ok {
		return fault
	}
	events, ok := mem.Read(out, 32*n)
	if !ok {
		return fault
	}
	// The two may overlap, if the module is malicious; it then reads nonsense.
	h.Charge(len(subscriptions) + len(events))
	const maxSleep = uint64(1 << 62)
	first := maxSleep
	for i := range int(n) {
		s := subscriptions[48*i:]
		if s[8] != 0 {
			first = 0 // a descriptor: its event is an error, at once
			continue
		}
		timeout := binary.LittleEndian.Uint64(s[24:])
		if s[40]&1 != 0 { // the time is absolute
			now := uint64(h.Now(binary.LittleEndian.Uint32(s[16:]) == 1))
			timeout -= min(now, timeout)
		}
		first = min(first, timeout)
	}
	if first > 0 {
		h.Sleep(time.Duration(first))
	}
	// Every clock is reported: whoever sleeps looks at the time again.
	for i := range int(n) {
		s, e := subscriptions[48*i:], events[32*i:32*i+32]
		kind, user := s[8], binary.LittleEndian.Uint64(s)
		clear(e)
		binary.LittleEndian.PutUint64(e, user)
		if kind != 0 {
			binary.LittleEndian.PutUint16(e[8:], notsup)
		}
		e[10] = kind
	}
	if !mem.WriteUint32Le(stored, n) {
		return fault
	}
	return success
}
