// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package dedup

import (
	"math"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// lifted is what Default makes of a counter over the samples that penalty chooses.
//
// Where one replica takes over from another and its value is lower, that is either
// because it lags behind, or because the counter was reset in the gap of the other.
// PromQL would take both for a reset and count the whole value again. So:
//
//   - a value down to half of the one before is lag: the replica's values are
//     lifted by the difference, until it shows a reset itself or another one takes
//     over;
//   - a lower value is a reset, and stays as it is.
//
// Penalty, as Thanos, lifts for good: a reset that comes later is then counted with
// all that was ever added, and lifts of several changes add up.
type lifted struct {
	*penalty
	adj float64
	// raw and last are the value before, as it was and as it was given out; leaf is
	// the replica that it came from, -1 before the first.
	raw, last float64
	leaf      int
}

// Next implements chunkenc.Iterator.
func (l *lifted) Next() chunkenc.ValueType {
	vt := l.penalty.Next()
	if vt != chunkenc.ValFloat {
		return vt
	}
	raw := l.vs[l.i]
	if math.IsNaN(raw) { // it says nothing of the counter
		return vt
	}
	w := &l.a
	if !l.useA {
		w = &l.b
	}
	switch leaf := w.source(); {
	case leaf != l.leaf:
		l.adj = 0
		if l.leaf >= 0 && raw < l.last && raw >= l.last/2 {
			l.adj = l.last - raw
		}
		l.leaf = leaf
	case raw < l.raw:
		l.adj = 0
	}
	l.raw, l.last = raw, raw+l.adj
	return vt
}

// Seek implements chunkenc.Iterator, as penalty does.
func (l *lifted) Seek(t int64) chunkenc.ValueType {
	if l.done || l.began && l.AtT() >= t {
		return l.vt
	}
	for n := 0; ; n++ {
		if vt := l.Next(); vt == chunkenc.ValNone || l.AtT() >= t {
			l.unknown = l.unknown || n > 0
			return vt
		}
	}
}

// At implements chunkenc.Iterator.
func (l *lifted) At() (int64, float64) {
	t, v := l.penalty.At()
	if l.adj == 0 || math.IsNaN(v) {
		return t, v
	}
	return t, v + l.adj
}
