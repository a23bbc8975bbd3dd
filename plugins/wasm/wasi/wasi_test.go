// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wasi

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errExit = errors.New("exit")

// host notes what it is asked for.
type host struct {
	output []byte
	now    int64
	slept  time.Duration
	charge int
	code   uint32
}

func (h *host) Output(b []byte) { h.output = append(h.output, b...) }
func (h *host) Now(bool) int64  { return h.now }
func (h *host) Random(b []byte) {
	for i := range b {
		b[i] = byte(i + 1)
	}
}
func (h *host) Sleep(d time.Duration) { h.slept += d }
func (h *host) Charge(n int)          { h.charge += n }
func (h *host) Exit(code uint32) {
	h.code = code
	panic(errExit)
}

// newMemory is one page of a module's memory.
func newMemory(t testing.TB) api.Memory {
	r := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfigInterpreter())
	t.Cleanup(func() { _ = r.Close(t.Context()) })
	m, err := r.Instantiate(t.Context(), []byte("\x00asm\x01\x00\x00\x00\x05\x04\x01\x01\x01\x01\x07\x05\x01\x01m\x02\x00"))
	if err != nil {
		t.Fatal(err)
	}
	return m.Memory()
}

func call(t testing.TB, h Host, mem api.Memory, name string, args ...uint64) uint32 {
	for _, f := range Functions() {
		if f.Name == name {
			stack := append(args[:len(args):len(args)], 0)
			f.Call(h, mem, stack)
			return uint32(stack[0])
		}
	}
	t.Fatalf("no function %s", name)
	return 0
}

func TestFunctions(t *testing.T) {
	mem, h := newMemory(t), &host{now: 1000}
	const outside = 0xfffffff0
	want := func(name string, errno uint32, args ...uint64) {
		t.Helper()
		if got := call(t, h, mem, name, args...); got != errno {
			t.Errorf("%s%v is %d, want %d", name, args, got, errno)
		}
	}
	if n := len(Functions()); n != 16 {
		t.Errorf("%d functions", n)
	}
	mem.WriteUint32Le(0, 64)
	mem.WriteUint32Le(4, 5)
	mem.WriteUint32Le(8, 100)
	mem.WriteUint32Le(12, 6)
	mem.Write(64, []byte("hello"))
	mem.Write(100, []byte(" world"))
	want("fd_write", success, 1, 0, 2, 32)
	if n, _ := mem.ReadUint32Le(32); n != 11 || string(h.output) != "hello world" {
		t.Errorf("wrote %d bytes: %q", n, h.output)
	}
	want("fd_write", badf, 3, 0, 2, 32)
	want("fd_write", inval, 1, 0, 0xffffffff, 32)
	want("fd_write", fault, 2, outside, 1, 32)
	want("fd_write", fault, 2, 0, 1, outside)
	want("fd_read", success, 0, 0, 1, 32)
	want("fd_read", badf, 4, 0, 1, 32)
	want("fd_close", badf, 0)
	want("fd_prestat_get", badf, 3, 0)
	want("fd_fdstat_get", success, 1, 200)
	want("fd_fdstat_get", badf, 3, 200)
	want("fd_fdstat_get", fault, 1, outside)
	want("fd_fdstat_set_flags", success, 2, 4)
	want("args_sizes_get", success, 300, 304)
	want("environ_sizes_get", fault, 300, outside)
	want("clock_time_get", success, 1, 0, 400)
	want("clock_time_get", inval, 2, 0, 400)
	want("clock_time_get", fault, 0, 0, outside)
	if n, _ := mem.ReadUint64Le(400); n != 1000 {
		t.Errorf("it is %d", n)
	}
	want("random_get", success, 500, 4)
	want("random_get", fault, 500, 0xffffffff)
	want("sched_yield", success)

	// A clock in 500 ns, one at 1700 ns, and a descriptor's event.
	subscription := func(i int, kind byte, timeout uint64, flags byte) {
		s := make([]byte, 48)
		binary.LittleEndian.PutUint64(s, uint64(i))
		s[8], s[40] = kind, flags
		binary.LittleEndian.PutUint64(s[24:], timeout)
		mem.Write(uint32(1000+48*i), s)
	}
	subscription(0, 0, 500, 0)
	subscription(1, 0, 1300, 1)
	want("poll_oneoff", success, 1000, 2000, 2, 3000)
	if n, _ := mem.ReadUint32Le(3000); n != 2 || h.slept != 300 {
		t.Errorf("%d events after %v", n, h.slept)
	}
	subscription(1, 1, 0, 0)
	want("poll_oneoff", success, 1000, 2000, 2, 3000)
	if h.slept != 300 {
		t.Errorf("a descriptor is waited for")
	}
	want("poll_oneoff", inval, 1000, 2000, 0, 3000)
	want("poll_oneoff", inval, 1000, 2000, 1<<31, 3000)
	want("poll_oneoff", fault, 65530, 2000, 1, 3000)

	func() {
		defer func() {
			if r := recover(); r != errExit || h.code != 3 {
				t.Errorf("%v, code %d", r, h.code)
			}
		}()
		call(t, h, mem, "proc_exit", 3)
	}()
}

// FuzzFunctions calls each function with anything over any memory.
func FuzzFunctions(f *testing.F) {
	f.Add(uint8(12), uint64(0), uint64(64), uint64(2), uint64(8), []byte("0123456789"))
	f.Fuzz(func(t *testing.T, which uint8, a, b, c, d uint64, content []byte) {
		mem := newMemory(t)
		mem.Write(0, content[:min(len(content), 1<<16)])
		all := Functions()
		fn := all[int(which)%len(all)]
		h := &host{now: 1}
		defer func() {
			if r := recover(); r != nil && r != errExit {
				panic(r)
			}
			if h.charge > 1<<21 || len(h.output) > maxWrite {
				t.Errorf("%s makes the host do %d bytes of work", fn.Name, h.charge)
			}
		}()
		fn.Call(h, mem, []uint64{a, b, c, d, 0})
	})
}
