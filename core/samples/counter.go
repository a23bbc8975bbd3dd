// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package samples

import (
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// counterIterator adds up a counter over chunks of which some are downsampled.
//
// The counter aggregate of a chunk (Thanos, pkg/compact/downsample) holds the
// first real sample, then for each window, at its end, how far the counter has
// come since then if resets are not counted, and last a marker that repeats the
// last timestamp and has the last real value. With that marker the first value of
// the next chunk can be compared, whatever happened within this one. Raw chunks in
// between are taken the same way, as their values continue what the aggregates
// began; their own resets would otherwise stand beside values that have none.
//
// Histograms pass unchanged: their counter aggregates have no such marker.
type counterIterator struct {
	// srcs are played one after another, first is their next.
	srcs  []chunkenc.Iterator
	next  int
	cur   chunkenc.Iterator
	lane  lane
	slots [1]chunkenc.Iterator

	from, to int64
	vt       chunkenc.ValueType
	done     bool
	// unknown: as in lane.
	unknown bool

	// last is the time of the last sample taken, once began; floats says that value,
	// the last real value, and total are there too.
	began, floats bool
	last          int64
	value, total  float64
	err           error
}

func newCounterIterator(chunks []Chunk, o *Options, reuse chunkenc.Iterator) *counterIterator {
	c, ok := reuse.(*counterIterator)
	if !ok {
		c = &counterIterator{}
	}
	c.next, c.cur = 0, nil
	c.from, c.to = o.MinTime, o.MaxTime
	c.vt, c.done, c.unknown = chunkenc.ValNone, false, false
	c.began, c.floats, c.last, c.value, c.total, c.err = false, false, 0, 0, 0, nil
	c.srcs = c.slots[:0]
	if !rawOverlaps(chunks) {
		// One lane can play chunks that overlap, one after the other; what comes a
		// second time is passed over below.
		c.lane.reset(chunks, nil, counter, o)
		c.srcs = append(c.srcs, &c.lane)
		return c
	}
	for len(chunks) > 0 {
		n := 1
		for n < len(chunks) && (chunks[n].Aggregates == nil) == (chunks[0].Aggregates == nil) {
			n++
		}
		if chunks[0].Aggregates == nil {
			c.srcs = append(c.srcs, newPlain(chunks[:n], counter, o, nil))
		} else {
			l := &lane{}
			l.reset(chunks[:n], nil, counter, o)
			c.srcs = append(c.srcs, l)
		}
		chunks = chunks[n:]
	}
	return c
}

// rawOverlaps says whether raw chunks that follow each other overlap.
func rawOverlaps(chunks []Chunk) bool {
	for i := 1; i < len(chunks); i++ {
		a, b := &chunks[i-1], &chunks[i]
		if a.Aggregates == nil && b.Aggregates == nil && b.MinTime <= a.MaxTime {
			return true
		}
	}
	return false
}

// Next implements chunkenc.Iterator.
func (c *counterIterator) Next() chunkenc.ValueType {
	c.unknown = false
	for !c.done {
		if c.cur == nil {
			if c.next == len(c.srcs) {
				break
			}
			c.cur = c.srcs[c.next]
			c.next++
		}
		vt := c.cur.Next()
		if vt == chunkenc.ValNone {
			if c.err = c.cur.Err(); c.err != nil {
				break
			}
			c.cur = nil
			continue
		}
		if !c.take(vt) {
			continue
		}
		if c.last > c.to {
			break
		}
		if c.last >= c.from {
			c.vt = vt
			return vt
		}
		c.unknown = true
	}
	c.done, c.vt = true, chunkenc.ValNone
	return chunkenc.ValNone
}

// take adds the sample at hand and says whether it is one to give out.
func (c *counterIterator) take(vt chunkenc.ValueType) bool {
	if vt != chunkenc.ValFloat {
		t := c.cur.AtT()
		if c.began && t <= c.last {
			c.unknown = true
			return false
		}
		c.began, c.last = true, t
		return true
	}
	t, v := c.cur.At()
	// Stale markers are NaN too: the counter goes on behind the gap.
	if math.IsNaN(v) || c.began && t < c.last {
		return false
	}
	switch {
	case !c.floats:
		if c.began && t == c.last {
			return false
		}
		c.total = v
	case t == c.last:
		// The marker; or an overlapping chunk, which goes on from its own value here.
		c.value = v
		return false
	case v >= c.value:
		c.total += v - c.value
	default:
		c.total += v
	}
	c.began, c.floats, c.last, c.value = true, true, t, v
	return true
}

// Seek implements chunkenc.Iterator. Every sample on the way is added up.
func (c *counterIterator) Seek(t int64) chunkenc.ValueType {
	if c.done || c.vt != chunkenc.ValNone && c.last >= t {
		return c.vt
	}
	skipped := c.vt != chunkenc.ValNone
	for n := 0; ; n++ {
		if vt := c.Next(); vt == chunkenc.ValNone || c.last >= t {
			c.unknown = c.unknown || n > 0 || !skipped
			return vt
		}
	}
}

// At implements chunkenc.Iterator.
func (c *counterIterator) At() (int64, float64) { return c.last, c.total }

// AtT implements chunkenc.Iterator.
func (c *counterIterator) AtT() int64 { return c.last }

// AtHistogram implements chunkenc.Iterator.
func (c *counterIterator) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	t, h := c.cur.AtHistogram(h)
	if c.unknown && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// AtFloatHistogram implements chunkenc.Iterator.
func (c *counterIterator) AtFloatHistogram(h *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	t, h := c.cur.AtFloatHistogram(h)
	if c.unknown && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// Err implements chunkenc.Iterator.
func (c *counterIterator) Err() error { return c.err }
