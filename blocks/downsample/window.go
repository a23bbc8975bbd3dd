// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package downsample makes a block of one point per five minutes from a raw one, and of one
// per hour from that. For the same input its chunks are those of Thanos (pkg/compact/downsample)
// to the byte, with the exceptions that histogram.go names.
//
// A series becomes aggregate chunks (package aggregate). Each holds a batch of the input and in
// it one point per window for count, sum, min, max and counter, stamped with the last
// millisecond of the window, or with the last sample of the batch if that is earlier. Windows
// are aligned to the epoch; an empty one has no point. All times and resolutions are ms.
package downsample

import (
	"math"

	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
)

// point is a float sample; t in ms.
type point struct {
	t int64
	v float64
}

// rawResolution is how far raw samples are taken to be apart, in ms. It only decides about
// the number of chunks.
const rawResolution = 60_000

const (
	// chunkPoints is how many points a chunk may be expected to have, on average.
	chunkPoints = 140
	// maxPoints is how many windows a chunk may have: its number of points has 16 bits, and
	// the counter has two more.
	maxPoints = math.MaxUint16 - 2
)

// windowEnd is the last millisecond of the window that t is in.
func windowEnd(t, resolution int64) int64 {
	m := t % resolution
	if m < 0 {
		m += resolution // before 1970, which Thanos cannot do
	}
	return t - m + resolution - 1
}

// chunkCount is how many chunks the output of n samples is to be cut into, which are from mint
// to maxt and were made with the resolution in: so many that with the resolution out each is
// expected to have 140 points at most.
func chunkCount(mint, maxt, in, out int64, n int) int {
	if n == 0 || maxt <= mint {
		return 1
	}
	// How much of the range is filled. The order of the operations decides about the last
	// bit, and so about bytes.
	fullness := min(1, float64(n)/(float64(maxt-mint)/float64(in)))
	expected := int(float64((maxt-mint)/out)*fullness) + 1
	return max(1, expected/(chunkPoints+1)+1) // times may be any, and overflow
}

// batchEnd is where the batch of samples ends that begins with number i of n: after size of
// them, and then at the end of the window, so that no window is cut. at(i) is the time of
// number i, and never decreases.
func batchEnd(at func(int) int64, i, n, size int, resolution int64) int {
	end := min(i+size, n)
	for w := windowEnd(at(end-1), resolution); end < n && at(end) <= w; {
		end++
	}
	if end-i <= maxPoints {
		return end
	}
	windows, w := 1, windowEnd(at(i), resolution)
	for j := i; j < end; j++ {
		if at(j) <= w {
			continue
		}
		if windows++; windows > maxPoints {
			return j
		}
		w = windowEnd(at(j), resolution)
	}
	return end
}

// window is what the samples of a window come to.
type window struct {
	count         int
	sum, min, max float64
}

func (w *window) reset() { *w = window{min: math.MaxFloat64, max: -math.MaxFloat64} }

func (w *window) add(v float64) {
	w.count++
	w.sum += v
	// Not the built-in functions: those let NaN win, and 0 over -0.
	if v < w.min {
		w.min = v
	}
	if v > w.max {
		w.max = v
	}
}

// increases adds up a counter: its first value, and what it gained since, over resets.
type increases struct {
	begun       bool
	last, total float64
}

func (c *increases) add(v float64) {
	switch {
	case !c.begun:
		c.begun, c.total = true, v
	case v < c.last:
		c.total += v // from 0
	default:
		c.total += v - c.last
	}
	c.last = v
}

// floats aggregates samples whose times do not decrease. It calls emit for each window that
// has any; total is the counter so far.
func floats(in []point, resolution int64, emit func(t int64, w *window, total float64)) {
	if len(in) == 0 {
		return
	}
	var (
		w       window
		c       increases
		last    = in[len(in)-1].t
		current = min(windowEnd(in[0].t, resolution), last)
	)
	w.reset()
	for _, p := range in {
		if p.t > current {
			emit(current, &w, c.total)
			w.reset()
			current = min(windowEnd(p.t, resolution), last)
		}
		w.add(p.v)
		c.add(p.v)
	}
	emit(current, &w, c.total)
}

// floatChunk collects the points of an aggregate chunk of floats.
type floatChunk struct{ count, sum, min, max, counter xorChunk }

// rawFloats is the chunk of one batch of raw samples, which are not NaN.
func rawFloats(in []point, resolution int64) backend.Chunk {
	var c floatChunk
	// What the counter was at the start and at the end is kept beside how far it has come:
	// only so can a reader tell whether it was reset between two chunks.
	c.counter.append(in[0].t, in[0].v)
	b := newBounds()
	floats(in, resolution, func(t int64, w *window, total float64) {
		b.add(t)
		c.count.append(t, float64(w.count))
		c.sum.append(t, w.sum)
		c.min.append(t, w.min)
		c.max.append(t, w.max)
		c.counter.append(t, total)
	})
	c.counter.append(b.max, in[len(in)-1].v)
	return b.chunk(backend.AggregateChunks{
		Count: c.count.encoded(), Sum: c.sum.encoded(), Min: c.min.encoded(), Max: c.max.encoded(), Counter: c.counter.encoded(),
	})
}

// coarserFloats is the chunk of one batch of aggregate chunks; what none of them has, it has not.
// The points of each but the counter's do not decrease in time; counters are the samples of
// resetless, and last is what it says.
func coarserFloats(count, sum, low, high, counters []point, last float64, resolution int64) backend.Chunk {
	var c floatChunk
	b := newBounds()
	floats(count, resolution, func(t int64, w *window, _ float64) { b.add(t); c.count.append(t, w.sum) })
	floats(sum, resolution, func(t int64, w *window, _ float64) { b.add(t); c.sum.append(t, w.sum) })
	floats(low, resolution, func(t int64, w *window, _ float64) { b.add(t); c.min.append(t, w.min) })
	floats(high, resolution, func(t int64, w *window, _ float64) { b.add(t); c.max.append(t, w.max) })
	if len(counters) > 0 {
		c.counter.append(counters[0].t, counters[0].v)
		end := int64(0)
		floats(counters, resolution, func(t int64, _ *window, total float64) {
			b.add(t)
			c.counter.append(t, total)
			end = t
		})
		c.counter.append(end, last)
	}
	return b.chunk(backend.AggregateChunks{
		Count: c.count.encoded(), Sum: c.sum.encoded(), Min: c.min.encoded(), Max: c.max.encoded(), Counter: c.counter.encoded(),
	})
}

// resetless takes the points of counter aggregates, chunk after chunk, and makes one counter of
// them that is never reset: the points that it adds to out, each later than the one before.
type resetless struct {
	out   []point
	begun bool
	t     int64
	// last is the true value of the counter, not what was added up.
	last, total float64
}

func (r *resetless) add(p point) {
	switch {
	case math.IsNaN(p.v):
		return
	case !r.begun:
		r.begun, r.total = true, p.v
	case p.t > r.t && p.v < r.last:
		r.total += p.v
	case p.t > r.t:
		r.total += p.v - r.last
	case p.t == r.t:
		// The mark at the end of a chunk: where the counter was really.
		r.last = p.v
		return
	default:
		return // chunks that overlap: what is known stays
	}
	r.t, r.last = p.t, p.v
	r.out = append(r.out, point{r.t, r.total})
}

// bounds are of the windows of a chunk.
type bounds struct{ min, max int64 }

func newBounds() bounds { return bounds{math.MaxInt64, math.MinInt64} }

func (b *bounds) add(t int64) { b.min, b.max = min(b.min, t), max(b.max, t) }

func (b *bounds) chunk(a backend.AggregateChunks) backend.Chunk {
	return backend.Chunk{MinTime: b.min, MaxTime: b.max, Aggregates: &a}
}

// xorChunk is one aggregate of floats, absent until something is appended.
type xorChunk struct {
	c   *chunkenc.XORChunk
	app chunkenc.Appender
}

func (x *xorChunk) append(t int64, v float64) {
	if x.c == nil {
		x.c = chunkenc.NewXORChunk()
		x.app, _ = x.c.Appender() // of an empty chunk: no error
	}
	x.app.Append(t, v)
}

func (x *xorChunk) encoded() backend.Encoded {
	if x.c == nil {
		return backend.Encoded{}
	}
	return backend.Encoded{Encoding: chunkenc.EncXOR, Data: x.c.Bytes()}
}
