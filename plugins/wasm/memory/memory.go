// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package memory holds the linear memories of WASM instances outside the Go heap.
// All that an instance may ever have is reserved as addresses when it is made, and
// becomes memory as it grows, so that a memory never moves and never is copied; how
// much all instances of a plug-in have together is bounded by a Budget.
package memory

import (
	"fmt"
	"sync/atomic"

	"github.com/tetratelabs/wazero/experimental"
)

// Budget bounds the bytes of several memories. It is safe for concurrent use.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget returns a budget of so many bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Limit is the budget, Used the bytes that memories have of it.
func (b *Budget) Limit() int64 { return b.limit }

// Used is the number of bytes that memories have.
func (b *Budget) Used() int64 { return b.used.Load() }

func (b *Budget) take(n int64) bool {
	for {
		used := b.used.Load()
		if n > b.limit-used {
			return false
		}
		if b.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// Linear is the memory of one instance. It is a MemoryAllocator that allocates itself,
// once. It is not safe for concurrent use, as a WASM instance is not.
type Linear struct {
	budget   *Budget
	reserved []byte
	// charged is what was taken from the budget, committed what may be written.
	charged, committed int64
	refused            bool
}

// New reserves addresses for max bytes and takes minimum of them from the budget.
func New(budget *Budget, minimum, maximum int64) (*Linear, error) {
	if minimum > maximum {
		return nil, fmt.Errorf("the module wants %d bytes of memory at least, of which an instance may have %d", minimum, maximum)
	}
	if !budget.take(minimum) {
		return nil, fmt.Errorf("%d bytes of memory for another instance are not left: %d of %d are in use", minimum, budget.Used(), budget.limit)
	}
	reserved, err := reserve(maximum)
	if err != nil {
		budget.used.Add(-minimum)
		return nil, fmt.Errorf("reserve %d bytes of addresses: %w", maximum, err)
	}
	return &Linear{budget: budget, reserved: reserved, charged: minimum}, nil
}

// Allocate implements experimental.MemoryAllocator. The sizes are known already.
func (l *Linear) Allocate(_, _ uint64) experimental.LinearMemory { return l }

// Reallocate implements experimental.LinearMemory: nil if there is no more to be had.
func (l *Linear) Reallocate(size uint64) []byte {
	n := int64(min(size, 1<<62))
	if l.reserved == nil || n > int64(len(l.reserved)) {
		l.refused = true
		return nil
	}
	if more := n - l.charged; more > 0 {
		if !l.budget.take(more) {
			l.refused = true
			return nil
		}
		l.charged = n
	}
	if n > l.committed {
		if err := commit(l.reserved, l.committed, n); err != nil {
			// What was charged stays so until Free: the guest may ask again.
			l.refused = true
			return nil
		}
		l.committed = n
	}
	return l.reserved[:n:n]
}

// Free gives everything back. It may be called more than once: the runtime forgets
// it when an instance cannot be made.
func (l *Linear) Free() {
	if l.reserved == nil {
		return
	}
	release(l.reserved)
	l.budget.used.Add(-l.charged)
	l.reserved, l.charged, l.committed = nil, 0, 0
}

// Size is how large the memory is.
func (l *Linear) Size() int64 { return l.charged }

// Refused says whether more was asked for than there was, since it was last asked.
func (l *Linear) Refused() bool {
	r := l.refused
	l.refused = false
	return r
}
