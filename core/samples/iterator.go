// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package samples

import (
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// Runs is implemented by iterators that decode float samples ahead. A consumer
// that looks at many samples in a row saves itself a dynamic call for each.
type Runs interface {
	chunkenc.Iterator
	// Run returns the float samples from the current one on that are at hand, the
	// current one first, or nothing if that is no float. The slices are read only
	// and good until the next call of Next or Seek.
	Run() ([]int64, []float64)
	// Skip moves n samples ahead; n is less than the length of the Run.
	Skip(n int)
}

// NewIterator returns the samples of one replica's chunks, which are in the order
// of Sort, as an iterator. Chunks are decoded only when their samples are reached,
// and not at all when Seek passes them. Where chunks overlap every distinct
// timestamp comes once. The iterator refers to chunks and their data until it is
// dropped or reused; reuse, if not nil, is an iterator that is not needed any more.
//
// Where the func reads counters and any of the chunks is downsampled, the values
// are those of the counter without its resets. A series of raw chunks alone is
// passed through untouched: PromQL handles resets in raw samples better than any
// preparation can, and resets() finds them there only.
func NewIterator(chunks []Chunk, o Options, reuse chunkenc.Iterator) chunkenc.Iterator {
	want := aggregateOf(o.Func)
	if o.Counts {
		want = count
	}
	if want == counter {
		for i := range chunks {
			if chunks[i].Aggregates != nil {
				return newCounterIterator(chunks, &o, reuse)
			}
		}
		want = average
	}
	return newPlain(chunks, want, &o, reuse)
}

// newPlain plays chunks as they are, in one lane if they do not overlap.
func newPlain(chunks []Chunk, want aggregate, o *Options, reuse chunkenc.Iterator) chunkenc.Iterator {
	if overlaps(chunks) {
		m, ok := reuse.(*merged)
		if !ok {
			m = &merged{}
		}
		m.reset(chunks, want, o)
		return m
	}
	l, ok := reuse.(*lane)
	if !ok {
		l = &lane{}
	}
	l.reset(chunks, nil, want, o)
	return l
}

// overlaps says whether some chunk begins before another one has ended.
func overlaps(chunks []Chunk) bool {
	for i := 1; i < len(chunks); i++ {
		if chunks[i].MinTime <= chunks[i-1].MaxTime {
			return true
		}
	}
	return false
}

// split puts each chunk into the first lane that has ended before it begins. The
// lanes in use are kept by their ends, and those that have ended by their number,
// so that a hostile number of overlapping chunks costs no hostile time.
func split(chunks []Chunk) [][]int32 {
	var (
		lanes [][]int32
		ended []int32
		busy  []int32
	)
	end := func(k int32) int64 { return chunks[lanes[k][len(lanes[k])-1]].MaxTime }
	byEnd := func(a, b int32) bool { return end(a) < end(b) }
	byNumber := func(a, b int32) bool { return a < b }
	for i := range chunks {
		for len(busy) > 0 && end(busy[0]) < chunks[i].MinTime {
			ended = push(ended, busy[0], byNumber)
			busy = pop(busy, byEnd)
		}
		k := int32(len(lanes))
		if len(ended) > 0 {
			k = ended[0]
			ended = pop(ended, byNumber)
			lanes[k] = append(lanes[k], int32(i))
		} else {
			lanes = append(lanes, []int32{int32(i)})
		}
		busy = push(busy, k, byEnd)
	}
	return lanes
}

// push adds k to the binary heap h.
func push(h []int32, k int32, less func(a, b int32) bool) []int32 {
	h = append(h, k)
	for i := len(h) - 1; i > 0 && less(h[i], h[(i-1)/2]); i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
	return h
}

// pop removes the first of the binary heap h.
func pop(h []int32, less func(a, b int32) bool) []int32 {
	last := len(h) - 1
	h[0] = h[last]
	h = h[:last]
	for i := 0; ; {
		c := 2*i + 1
		if c >= last {
			return h
		}
		if c+1 < last && less(h[c+1], h[c]) {
			c++
		}
		if !less(h[c], h[i]) {
			return h
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

// merged plays overlapping chunks, as lanes of chunks that do not overlap, in the
// order of time. Of equal timestamps the one in the earlier lane counts.
type merged struct {
	lanes []lane
	// heap holds the indices of unfinished lanes, ordered by key and then index.
	heap []int32
	// keys are the lanes' current timestamps, or where a lane has not started a
	// bound below them, so that a chunk is decoded only when its time has come.
	keys    []int64
	started []bool
	// cur is the lane of the current sample, -1 if there is none.
	cur int32
	// last is the current timestamp once moved.
	last  int64
	moved bool
	vt    chunkenc.ValueType
	// unknown: the sample before the current one came from elsewhere.
	unknown bool
	err     error
}

func (m *merged) reset(chunks []Chunk, want aggregate, o *Options) {
	orders := split(chunks)
	if cap(m.lanes) < len(orders) {
		m.lanes = make([]lane, len(orders))
	}
	m.lanes = m.lanes[:len(orders)]
	m.heap, m.keys, m.started = m.heap[:0], m.keys[:0], m.started[:0]
	for k, order := range orders {
		m.lanes[k].reset(chunks, order, want, o)
		m.keys = append(m.keys, max(chunks[order[0]].MinTime, m.lanes[k].from))
		m.started = append(m.started, false)
		m.heap = append(m.heap, int32(k))
	}
	m.cur, m.last, m.moved, m.vt, m.unknown, m.err = -1, 0, false, chunkenc.ValNone, false, nil
	m.heapify()
}

// Next implements chunkenc.Iterator.
func (m *merged) Next() chunkenc.ValueType {
	prev := m.cur
	if prev >= 0 {
		// The current lane is always on top.
		m.step()
	}
	return m.settle(prev)
}

// Seek implements chunkenc.Iterator.
func (m *merged) Seek(t int64) chunkenc.ValueType {
	if m.moved && (m.cur < 0 || m.last >= t) {
		return m.vt
	}
	kept := m.heap[:0]
	for _, k := range m.heap {
		if m.keys[k] < t {
			if !m.started[k] {
				m.keys[k] = t
				m.lanes[k].from = max(m.lanes[k].from, t)
			} else if m.lanes[k].Seek(t) == chunkenc.ValNone {
				if m.failed(k) {
					return chunkenc.ValNone
				}
				continue
			} else {
				m.keys[k] = m.lanes[k].AtT()
			}
		}
		kept = append(kept, k)
	}
	m.heap = kept
	m.heapify()
	return m.settle(-1)
}

// settle makes the sample on top of the heap the current one.
func (m *merged) settle(prev int32) chunkenc.ValueType {
	for len(m.heap) > 0 {
		k := m.heap[0]
		if !m.started[k] || m.moved && m.keys[k] <= m.last {
			m.step()
			continue
		}
		m.cur, m.last, m.moved = k, m.keys[k], true
		m.unknown = k != prev
		m.vt = m.lanes[k].vt
		return m.vt
	}
	m.cur, m.moved, m.vt = -1, true, chunkenc.ValNone
	return chunkenc.ValNone
}

// step moves the lane on top of the heap one sample ahead.
func (m *merged) step() {
	k := m.heap[0]
	m.started[k] = true
	if m.lanes[k].Next() == chunkenc.ValNone {
		if m.failed(k) {
			return
		}
		last := len(m.heap) - 1
		m.heap[0] = m.heap[last]
		m.heap = m.heap[:last]
	} else {
		m.keys[k] = m.lanes[k].AtT()
	}
	m.down(0)
}

// failed ends everything if lane k ended in an error.
func (m *merged) failed(k int32) bool {
	if m.err = m.lanes[k].err; m.err == nil {
		return false
	}
	m.heap = m.heap[:0]
	m.cur, m.moved, m.vt = -1, true, chunkenc.ValNone
	return true
}

func (m *merged) less(i, j int) bool {
	a, b := m.heap[i], m.heap[j]
	return m.keys[a] < m.keys[b] || m.keys[a] == m.keys[b] && a < b
}

func (m *merged) heapify() {
	for i := len(m.heap)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
}

func (m *merged) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(m.heap) {
			return
		}
		if c+1 < len(m.heap) && m.less(c+1, c) {
			c++
		}
		if !m.less(c, i) {
			return
		}
		m.heap[i], m.heap[c] = m.heap[c], m.heap[i]
		i = c
	}
}

// At implements chunkenc.Iterator.
func (m *merged) At() (int64, float64) {
	if m.cur < 0 {
		return math.MinInt64, 0
	}
	return m.lanes[m.cur].At()
}

// AtT implements chunkenc.Iterator.
func (m *merged) AtT() int64 { return m.last }

// AtHistogram implements chunkenc.Iterator.
func (m *merged) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	t, h := m.lanes[m.cur].AtHistogram(h)
	if m.unknown && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// AtFloatHistogram implements chunkenc.Iterator.
func (m *merged) AtFloatHistogram(h *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	t, h := m.lanes[m.cur].AtFloatHistogram(h)
	if m.unknown && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// Err implements chunkenc.Iterator.
func (m *merged) Err() error { return m.err }
