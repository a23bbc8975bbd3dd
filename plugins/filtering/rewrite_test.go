// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering

import (
	"testing"
	"time"
)

// TestPace: a filter gets as many rows at once as it does in the time that a call should
// take, within bounds, and a short frame says nothing.
func TestPace(t *testing.T) {
	var p pace
	if p.rows() != firstFrameRows {
		t.Errorf("%d rows at first", p.rows())
	}
	for _, c := range []struct {
		perRow time.Duration
		want   int
	}{
		{time.Nanosecond, maxFrameRows}, {20 * time.Microsecond, 500}, {8 * time.Microsecond, 1250},
		{time.Millisecond, minFrameRows}, {0, maxFrameRows}, {100 * time.Microsecond, minFrameRows},
	} {
		for range 5 {
			before := p.rows()
			p.took(before, time.Duration(before)*c.perRow)
			if p.rows() > 2*before {
				t.Errorf("%v a row: from %d to %d rows at once", c.perRow, before, p.rows())
			}
		}
		if p.rows() != c.want {
			t.Errorf("%v a row: %d rows, want %d", c.perRow, p.rows(), c.want)
		}
		p.took(minFrameRows-1, time.Hour)
		if p.rows() != c.want {
			t.Errorf("a short frame makes it %d rows", p.rows())
		}
	}
}
