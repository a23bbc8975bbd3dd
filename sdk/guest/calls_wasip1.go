// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build wasip1

package guest

import (
	"runtime"
	"runtime/metrics"
	"unsafe"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// Buffers that calls use again. input is what the host writes an argument to, output
// what a call returns; each stays until the next one.
var (
	input  []byte
	output []byte
	in     frame.Frame
	out    frame.Reply
)

// The configured instance and its hooks, nil if it has none.
var (
	configured bool
	requester  filter.Requester
	selector   filter.Selector
	rewriter   filter.Rewriter
)

const (
	isError  = 1 << 31
	minInput = 4 << 10
	// maxInput is more than any frame or message may have.
	maxInput = 64 << 20
)

//go:wasmexport promweave_abi_v1
func abi() int32 { return Minor }

//go:wasmexport promweave_alloc
func alloc(n uint32) unsafe.Pointer {
	if n > maxInput {
		return nil
	}
	if int(n) > cap(input) || input == nil {
		// What is too small is not kept while the next one is made.
		input = nil
		input = make([]byte, max(minInput, n+n/4))
	}
	return unsafe.Pointer(unsafe.SliceData(input[:cap(input)]))
}

// argument is the message that the host has written.
func argument(p unsafe.Pointer, n uint32) []byte {
	if n == 0 || p != unsafe.Pointer(unsafe.SliceData(input)) || int(n) > cap(input) {
		return nil
	}
	return input[:n]
}

// result ends a call: what is in output, or an error.
func result(size uint32, kind string, err error) uint64 {
	flag := uint64(0)
	if err != nil {
		output = filter.AppendError(output[:0], kind, err.Error())
		flag = isError
	}
	fed += int(size) + len(output)
	tidy()
	if len(output) == 0 {
		return flag
	}
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(output))))<<32 | flag | uint64(len(output))
}

type refusal string

func (r refusal) Error() string { return string(r) }

const (
	invalid     = "invalid"
	unsupported = "unsupported"
	internal    = "internal"
)

//go:wasmexport promweave_describe
func describe(p unsafe.Pointer, n uint32) uint64 {
	output = output[:0]
	if registered == nil {
		return result(n, internal, refusal("the module registers no filter: guest.Filter is to be called in an init function"))
	}
	d := registered.Describe()
	d.Minor = Minor
	output = filter.AppendDescription(output, &d)
	return result(n, "", nil)
}

//go:wasmexport promweave_configure
func configure(p unsafe.Pointer, n uint32) uint64 {
	output = output[:0]
	switch {
	case registered == nil:
		return result(n, internal, refusal("the module registers no filter: guest.Filter is to be called in an init function"))
	case configured:
		return result(n, internal, refusal("configured twice"))
	}
	c, _, err := filter.DecodeConfigureRequest(argument(p, n))
	if err != nil {
		return result(n, invalid, err)
	}
	f, err := registered.Configure(c)
	if err != nil {
		return result(n, invalid, err)
	}
	configured = true
	requester, _ = f.(filter.Requester)
	selector, _ = f.(filter.Selector)
	rewriter, _ = f.(filter.Rewriter)
	plan := f.Plan()
	output = filter.AppendConfigureReply(output, 1, &plan)
	return result(n, "", nil)
}

//go:wasmexport promweave_request
func request(p unsafe.Pointer, n uint32) uint64 {
	output = output[:0]
	if requester == nil {
		return result(n, unsupported, refusal("the filter has no request hook"))
	}
	c, err := filter.DecodeRequestCall(argument(p, n))
	if err != nil {
		return result(n, invalid, err)
	}
	r, err := requester.Request(c)
	if err != nil {
		return result(n, internal, err)
	}
	if r != nil {
		output = filter.AppendRequestReply(output, r)
	}
	return result(n, "", nil)
}

//go:wasmexport promweave_select
func selectHook(p unsafe.Pointer, n uint32) uint64 {
	output = output[:0]
	if selector == nil {
		return result(n, unsupported, refusal("the filter has no select hook"))
	}
	c, err := filter.DecodeSelectCall(argument(p, n))
	if err != nil {
		return result(n, invalid, err)
	}
	r, err := selector.Select(c)
	if err != nil {
		return result(n, internal, err)
	}
	if r != nil {
		output = filter.AppendSelectReply(output, r)
	}
	return result(n, "", nil)
}

//go:wasmexport promweave_rewrite
func rewrite(p unsafe.Pointer, n uint32) (r uint64) {
	output = output[:0]
	if rewriter == nil {
		return result(n, unsupported, refusal("the filter has no rewrite hook"))
	}
	// The host has checked the frame, which is not done again unless something is wrong.
	arg := argument(p, n)
	if err := in.View(arg); err != nil {
		return result(n, invalid, err)
	}
	defer func() {
		if p := recover(); p != nil {
			err := in.Parse(arg)
			if err == nil {
				panic(p) // of the filter's own
			}
			r = result(n, invalid, err)
		}
	}()
	out.Reset(&in)
	if err := rewriter.Rewrite(&in, &out); err != nil {
		return result(n, internal, err)
	}
	output = out.Append(output)
	return result(n, "", nil)
}

// Garbage. The collector's own worker is a goroutine, which runs only while a call is
// under way. A collection that begins in one call therefore stays half done through
// those that follow, which are several times slower meanwhile: every pointer that they
// write is noted for it. So collections are begun here and finished at once, before
// there is enough garbage for the runtime to begin one by itself (it does at about
// 3 MiB, or when what is alive has nearly doubled).
const (
	callsBetweenLooks = 16
	bytesBetweenLooks = 1 << 20
	garbageWorthwhile = 1 << 20
	garbageWhileIdle  = 128 << 10
)

var (
	calls, fed int
	collected  uint64
	heap       = []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
)

func tidy() {
	if calls++; calls < callsBetweenLooks && fed < bytesBetweenLooks {
		return
	}
	if garbage := lookAtHeap(); garbage >= max(garbageWorthwhile, heap[1].Value.Uint64()/2) {
		collect()
	}
}

//go:wasmexport promweave_idle
func idle() {
	if lookAtHeap() >= garbageWhileIdle {
		collect()
	}
}

// lookAtHeap is how much was allocated since the last collection.
func lookAtHeap() uint64 {
	calls, fed = 0, 0
	metrics.Read(heap)
	return heap[0].Value.Uint64() - collected
}

// collect ends with no collection under way.
func collect() {
	collected = heap[0].Value.Uint64()
	runtime.GC()
}
