// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const page = 1 << 16

func TestLinear(t *testing.T) {
	b := NewBudget(10 * page)
	if _, err := New(b, 2*page, page); err == nil {
		t.Error("more than the most is given")
	}
	one, err := New(b, page, 8*page)
	if err != nil {
		t.Fatal(err)
	}
	first := one.Allocate(page, 8*page).Reallocate(page)
	if len(first) != page || cap(first) != page || one.Size() != page || b.Used() != page {
		t.Fatalf("%d bytes of %d, %d in use", len(first), cap(first), b.Used())
	}
	first[page-1] = 7
	grown := one.Reallocate(8 * page)
	if len(grown) != 8*page || &grown[0] != &first[0] || grown[page-1] != 7 || grown[8*page-1] != 0 {
		t.Error("the memory moved, or is not what it was")
	}
	grown[8*page-1] = 1
	if one.Refused() || one.Reallocate(9*page) != nil || !one.Refused() || one.Refused() {
		t.Error("it grew above its most, or does not tell")
	}
	if _, err := New(b, 3*page, 3*page); err == nil {
		t.Error("the budget is exceeded")
	}
	two, err := New(b, page, 8*page)
	if err != nil {
		t.Fatal(err)
	}
	if two.Reallocate(2*page) == nil || two.Reallocate(3*page) != nil || !two.Refused() {
		t.Error("growing does not follow the budget")
	}
	if two.Reallocate(1<<63) != nil {
		t.Error("a size that no memory has")
	}
	one.Free()
	one.Free()
	if b.Used() != 2*page || one.Reallocate(page) != nil {
		t.Errorf("%d bytes are in use", b.Used())
	}
	two.Free()
	if b.Used() != 0 || b.Limit() != 10*page {
		t.Errorf("%d bytes are left", b.Used())
	}
	none, err := New(b, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if m := none.Reallocate(0); m == nil {
		t.Error("an empty memory is refused")
	}
	none.Free()
}
