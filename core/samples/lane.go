// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package samples

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
)

// runLen is how many float samples are decoded at a time. More would be a little
// faster, but an engine may hold one iterator for each of a million series.
const runLen = 32

// aggregate is what is read of a downsampled chunk.
type aggregate uint8

const (
	average aggregate = iota
	count
	sum
	minimum
	maximum
	counter
)

// aggregateOf names the aggregate that fn, the innermost function around a
// selector, is computed from; see package resolution for what is asked of backends.
func aggregateOf(fn string) aggregate {
	switch fn {
	case "":
		return average
	case "min":
		return minimum
	case "max":
		return maximum
	case "count":
		return count
	case "increase", "rate", "irate", "resets", "xincrease", "xrate":
		return counter
	}
	switch {
	case strings.HasPrefix(fn, "min_"):
		return minimum
	case strings.HasPrefix(fn, "max_"):
		return maximum
	case strings.HasPrefix(fn, "count_"):
		return count
	case strings.HasPrefix(fn, "sum_"):
		return sum
	}
	return average
}

// source is what the open chunk of a lane is read with.
type source uint8

const (
	none         source = iota
	floats              // floats
	floatAverage        // floats and counts
	histograms          // hist
	histAverage         // hist and counts
)

// lane plays chunks one after another. It is the iterator itself when chunks do
// not overlap, which is why it is one struct without layers: the hot path is one
// comparison for a sample.
type lane struct {
	// i is the current sample of the n decoded ones.
	i, n int
	ts   [runLen]int64
	vs   [runLen]float64

	vt   chunkenc.ValueType
	src  source
	done bool
	// unknown: the current histogram is the first of its chunk, so what it says
	// about a counter reset says nothing.
	unknown bool
	want    aggregate
	// counting: raw samples count 1; ones says that the open chunk has such.
	counting, ones bool

	// from is the least time still of interest, to the greatest.
	from, to int64
	chunks   []Chunk
	// order are the indices in chunks that this lane plays, nil for all.
	order []int32
	next  int
	open  *Chunk

	floats xorDecoder
	counts xorDecoder
	// hist reads the open histogram chunk, ints and floatsHist are kept for reuse.
	hist       chunkenc.Iterator
	ints, flts *histogramReader
	low, high  int64
	prev       int64

	onCorrupt func(int32, error)
	err       error
}

// histogramReader is a chunk of the library and its iterator, used again and again.
type histogramReader struct {
	chunk chunkenc.Chunk
	it    chunkenc.Iterator
}

func (r *histogramReader) reset(data []byte) chunkenc.Iterator {
	r.chunk.Reset(data)
	r.it = r.chunk.Iterator(r.it)
	return r.it
}

// reset makes l play chunks, or those of them in order.
func (l *lane) reset(chunks []Chunk, order []int32, want aggregate, o *Options) {
	l.i, l.n = 0, 0
	l.vt, l.src, l.done, l.unknown = chunkenc.ValNone, none, false, false
	l.want, l.counting = want, o.Counts
	l.from, l.to = o.MinTime, o.MaxTime
	if want == counter {
		// Windows before the cut count: see counter.go.
		l.from = math.MinInt64
	}
	l.chunks, l.order, l.next, l.open = chunks, order, 0, nil
	l.onCorrupt, l.err = o.OnCorrupt, nil
}

// Next implements chunkenc.Iterator.
func (l *lane) Next() chunkenc.ValueType {
	if i := l.i + 1; i < l.n {
		l.i = i
		return chunkenc.ValFloat
	}
	return l.advance()
}

// Seek implements chunkenc.Iterator. Chunks that end before t are not decoded.
func (l *lane) Seek(t int64) chunkenc.ValueType {
	if l.done {
		return chunkenc.ValNone
	}
	if l.n > 0 {
		if l.ts[l.i] >= t {
			return l.vt
		}
		if l.ts[l.n-1] >= t {
			for l.ts[l.i] < t {
				l.i++
			}
			return l.vt
		}
	}
	l.from = max(l.from, t)
	if l.open != nil && l.open.MaxTime < t {
		l.src = none
	}
	return l.advance()
}

// At implements chunkenc.Iterator.
func (l *lane) At() (int64, float64) {
	i := l.i & (runLen - 1)
	return l.ts[i], l.vs[i]
}

// AtT implements chunkenc.Iterator.
func (l *lane) AtT() int64 { return l.ts[l.i&(runLen-1)] }

// AtHistogram implements chunkenc.Iterator.
func (l *lane) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	t, h := l.hist.AtHistogram(h)
	if l.unknown && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// AtFloatHistogram implements chunkenc.Iterator.
func (l *lane) AtFloatHistogram(h *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	if l.src == histAverage && h == nil {
		// Given nil, the library hands out its own buckets, which are divided below.
		h = &histogram.FloatHistogram{}
	}
	t, h := l.hist.AtFloatHistogram(h)
	if l.src == histAverage {
		h.Div(l.vs[0])
	}
	if l.unknown && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// Err implements chunkenc.Iterator.
func (l *lane) Err() error { return l.err }

// Run implements Runs.
func (l *lane) Run() ([]int64, []float64) {
	if l.vt != chunkenc.ValFloat || l.done {
		return nil, nil
	}
	return l.ts[l.i:l.n], l.vs[l.i:l.n]
}

// Skip implements Runs.
func (l *lane) Skip(n int) { l.i += n }

// advance moves to the first sample of the next run that is not before from.
func (l *lane) advance() chunkenc.ValueType {
	for !l.done {
		switch l.src {
		case none:
			l.openNext()
			continue
		case floats:
			n, err := l.floats.fill(l.ts[:], l.vs[:], l.from, l.to)
			if l.ones {
				for i, v := range l.vs[:n] {
					if !value.IsStaleNaN(v) {
						l.vs[i] = 1
					}
				}
			}
			if l.give(n, err, l.floats.left == 0) {
				return chunkenc.ValFloat
			}
		case floatAverage:
			n, err := l.fillAverage()
			if l.give(n, err, l.floats.left == 0) {
				return chunkenc.ValFloat
			}
		default:
			if vt := l.histogram(); vt != chunkenc.ValNone {
				return vt
			}
		}
	}
	return chunkenc.ValNone
}

// give makes the n samples that were decoded the current run.
func (l *lane) give(n int, err error, last bool) bool {
	if last {
		l.src = none
	}
	if err != nil {
		l.corrupt(err)
	}
	if n == 0 {
		return false
	}
	// What was read before the broken place is good; the end comes after it.
	l.done = false
	l.i, l.n, l.vt = 0, n, chunkenc.ValFloat
	return true
}

// corrupt reports the open chunk and leaves its rest out.
func (l *lane) corrupt(err error) {
	l.src = none
	if l.err != nil {
		return
	}
	err = fmt.Errorf("corrupt chunk of %d to %d: %w", l.open.MinTime, l.open.MaxTime, err)
	if l.onCorrupt != nil {
		l.onCorrupt(l.open.Origin, err)
		return
	}
	l.err = err
	l.end()
}

// end is the state behind the last sample.
func (l *lane) end() {
	l.done, l.src, l.vt = true, none, chunkenc.ValNone
	l.i, l.n = 0, 0
}

// openNext starts the next chunk that may hold samples of interest.
func (l *lane) openNext() {
	if l.err != nil {
		l.end()
		return
	}
	for {
		var c *Chunk
		switch {
		case l.order == nil && l.next < len(l.chunks):
			c = &l.chunks[l.next]
		case l.order != nil && l.next < len(l.order):
			c = &l.chunks[l.order[l.next]]
		default:
			l.end()
			return
		}
		l.next++
		if c.MaxTime < l.from {
			continue
		}
		if c.MinTime > l.to {
			if l.want != counter {
				// They are in order of MinTime, so no later one begins in time either.
				l.end()
				return
			}
			if c.Aggregates == nil {
				continue
			}
		}
		l.open = c
		if err := l.start(c); err != nil {
			l.corrupt(err)
			if l.done {
				return
			}
			continue
		}
		return
	}
}

var errAbsent = errors.New("it holds neither samples nor the aggregates asked for")

// start opens c for reading.
func (l *lane) start(c *Chunk) error {
	data, a := &c.Raw, c.Aggregates
	l.ones = false
	switch {
	case a == nil:
	case l.want == average:
		if !data.Present() && a.Sum.Present() && a.Count.Present() {
			return l.startAverage(c, &a.Sum, &a.Count)
		}
	default:
		if e := [...]*backend.Encoded{count: &a.Count, sum: &a.Sum, minimum: &a.Min, maximum: &a.Max, counter: &a.Counter}[l.want]; e.Present() {
			return l.startOne(e, c.MinTime, c.MaxTime, l.want == counter)
		}
	}
	if !data.Present() {
		return errAbsent
	}
	l.ones = l.counting
	return l.startOne(data, c.MinTime, c.MaxTime, false)
}

func (l *lane) startOne(e *backend.Encoded, low, high int64, marker bool) error {
	if e.Encoding == chunkenc.EncXOR {
		l.src = floats
		return l.floats.reset(e.Data, low, high, marker)
	}
	if err := l.startHistogram(e, low, high); err != nil {
		return err
	}
	l.src = histograms
	return nil
}

func (l *lane) startHistogram(e *backend.Encoded, low, high int64) error {
	r := &l.ints
	switch e.Encoding {
	case chunkenc.EncHistogram:
	case chunkenc.EncFloatHistogram:
		r = &l.flts
	default:
		return fmt.Errorf("unknown encoding %d", e.Encoding)
	}
	if err := checkLayout(e.Encoding, e.Data); err != nil {
		return err
	}
	if *r == nil {
		*r = &histogramReader{chunk: chunkenc.NewHistogramChunk()}
		if e.Encoding == chunkenc.EncFloatHistogram {
			(*r).chunk = chunkenc.NewFloatHistogramChunk()
		}
	}
	l.hist = (*r).reset(e.Data)
	l.low, l.high, l.prev = low, high, math.MinInt64
	l.unknown = false
	return nil
}

func (l *lane) startAverage(c *Chunk, sums, counts *backend.Encoded) error {
	if counts.Encoding != chunkenc.EncXOR {
		return fmt.Errorf("counts in encoding %d", counts.Encoding)
	}
	if err := l.counts.reset(counts.Data, c.MinTime, c.MaxTime, false); err != nil {
		return err
	}
	if err := l.startOne(sums, c.MinTime, c.MaxTime, false); err != nil {
		return err
	}
	l.src++ // floats to floatAverage, histograms to histAverage
	return nil
}

var errLockstep = errors.New("sum and count have different timestamps")

// fillAverage decodes sums, and divides them by the counts of the same windows.
func (l *lane) fillAverage() (int, error) {
	var (
		ts [runLen]int64
		vs [runLen]float64
	)
	n, err := l.floats.fill(l.ts[:], l.vs[:], l.from, l.to)
	m, cerr := l.counts.fill(ts[:n], vs[:n], l.from, l.to)
	for i := range m {
		if ts[i] != l.ts[i] {
			m, cerr = i, errLockstep
			break
		}
		l.vs[i] /= vs[i]
	}
	switch {
	case err != nil:
	case cerr != nil:
		err = cerr
	case m < n:
		err = errLockstep
	case l.floats.left == 0 && l.floats.t <= l.to:
		// The end itself and not the cut: nothing may be left of the counts either.
		if k, cerr := l.counts.fill(ts[:1], vs[:1], l.from, l.to); k > 0 || cerr != nil {
			err = errLockstep
		}
	}
	return min(m, n), err
}

// histogram moves to the next histogram of the open chunk.
func (l *lane) histogram() (vt chunkenc.ValueType) {
	// Layouts are checked before, so nothing is known to panic here; but this is a
	// decoder of other people's bytes, and a process full of other queries.
	defer func() {
		if r := recover(); r != nil {
			l.corrupt(fmt.Errorf("decoder panic: %v", r))
			vt = chunkenc.ValNone
		}
	}()
	// What a chunk's first sample says is about another chunk, which may not be the
	// one played before. Further in, a hint is about the sample before it in the
	// chunk, given out or passed over by a Seek: so do the library's iterators, and
	// PromQL's own tests count on it.
	unknown := l.prev == math.MinInt64
	for ; ; unknown = false {
		vt = l.hist.Next()
		if vt == chunkenc.ValNone {
			if err := l.hist.Err(); err != nil {
				l.corrupt(err)
			}
			l.src = none
			return vt
		}
		t := l.hist.AtT()
		if t <= l.prev && l.prev != math.MinInt64 {
			l.corrupt(fmt.Errorf("time %d follows %d", t, l.prev))
			return chunkenc.ValNone
		}
		if t < l.low || t > l.high {
			l.corrupt(outside(t, l.low, l.high))
			return chunkenc.ValNone
		}
		l.prev = t
		if t > l.to {
			l.src = none
			return chunkenc.ValNone
		}
		if l.src == histAverage {
			var ct [1]int64
			n, err := l.counts.fill(ct[:], l.vs[:1], math.MinInt64, math.MaxInt64)
			if err == nil && (n == 0 || ct[0] != t) {
				err = errLockstep
			}
			if err != nil {
				l.corrupt(err)
				return chunkenc.ValNone
			}
		}
		if t < l.from {
			continue
		}
		if l.ones {
			vt, l.vs[0] = chunkenc.ValFloat, l.one()
		}
		l.i, l.n, l.ts[0], l.vt, l.unknown = 0, 1, t, vt, unknown
		return vt
	}
}

// one is the current histogram as a count.
func (l *lane) one() float64 {
	if _, h := l.hist.AtFloatHistogram(nil); value.IsStaleNaN(h.Sum) {
		return h.Sum
	}
	return 1
}
