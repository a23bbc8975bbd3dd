// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package downsample

import (
	"errors"
	"fmt"
	"iter"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
)

// Thanos is not imitated in two things. Where a batch has histograms of several
// schemas, it asks whether each was reset since the one before as reduced to the coarsest: a
// finer one always counts as reset then, unless its own chunk says otherwise, and the counter
// gains its whole value (of a series that came to 78,352 it made 610,696). Here histograms are
// compared as they were. The other exception is told at rawHistograms.

// Native histograms have no min and max. Count is a chunk of floats; sum holds the sum of the
// histograms of each window, as gauges; counter holds what the histogram has come to since the
// first of the batch, resets taken out. There are no marks of the true first and last value.
// All of a batch are brought to the schema of the coarsest.

// histogramWindows aggregates the histograms of one batch.
type histogramWindows struct {
	schema int32
	// previous is the histogram before this one as it was, and reduced to schema.
	previous, reduced *histogram.FloatHistogram
	// counter is since the start of the batch, sum and count are of the current window.
	counter, sum *histogram.FloatHistogram
	count        int
}

func (w *histogramWindows) nextWindow() { w.sum, w.count = nil, 0 }

// add takes h over; its schema is w's or a finer one.
func (w *histogramWindows) add(h *histogram.FloatHistogram) error {
	own := h
	if h.Schema > w.schema {
		h = h.CopyToSchema(w.schema)
	}
	if w.counter == nil {
		w.counter = h.Copy()
	} else {
		delta := h
		if h.CounterResetHint == histogram.GaugeType || !own.DetectReset(w.previous) {
			var err error
			if delta, _, _, err = h.Copy().Sub(w.reduced); err != nil {
				return err
			}
		}
		if _, _, _, err := w.counter.Add(delta); err != nil {
			return err
		}
	}
	if w.sum == nil {
		w.sum = h.Copy()
	} else if _, _, _, err := w.sum.Add(h); err != nil {
		return err
	}
	// A sum may be smaller than the one before it: as a counter that would be a reset.
	w.sum.CounterResetHint = histogram.GaugeType
	w.previous, w.reduced = own, h
	w.count++
	return nil
}

// histogramChunk collects the points of an aggregate chunk of histograms.
type histogramChunk struct {
	bounds
	count        xorChunk
	sum, counter floatHistograms
}

func newHistogramChunk() *histogramChunk { return &histogramChunk{bounds: newBounds()} }

func (c *histogramChunk) chunk() backend.Chunk {
	return c.bounds.chunk(backend.AggregateChunks{Count: c.count.encoded(), Sum: c.sum.encoded(), Counter: c.counter.encoded()})
}

// rawHistograms are the chunks of one batch of raw histograms: one, or more if the library does
// not append to it what came out. Of the batch, schema is the coarsest, last the time of the
// last.
//
// Thanos then goes on with a new chunk for the counter and loses the one it had. It comes to
// that where the width of the zero bucket changes, or counters become gauges. Here a new
// aggregate chunk begins, in which the counter goes on.
func rawHistograms(in iter.Seq2[int64, *histogram.FloatHistogram], schema int32, last, resolution int64) ([]backend.Chunk, error) {
	var (
		out          []backend.Chunk
		w            = histogramWindows{schema: schema}
		c            = newHistogramChunk()
		begun, gauge bool
		current      int64
	)
	emit := func() error {
		if gauge {
			w.counter.CounterResetHint = histogram.GaugeType
		}
		if !c.counter.takes(w.counter) || !c.sum.takes(w.sum) {
			out, c = append(out, c.chunk()), newHistogramChunk()
		}
		ok, err := c.counter.append(current, w.counter)
		if err == nil && !ok {
			out, c = append(out, c.chunk()), newHistogramChunk()
			ok, err = c.counter.append(current, w.counter)
		}
		if err == nil && ok {
			ok, err = c.sum.append(current, w.sum)
		}
		if err == nil && !ok {
			err = errNoFit(current)
		}
		c.count.append(current, float64(w.count))
		c.add(current)
		return err
	}
	for t, h := range in {
		if !begun || t > current {
			if begun {
				if err := emit(); err != nil {
					return nil, err
				}
			} else {
				begun, gauge = true, h.CounterResetHint == histogram.GaugeType
			}
			w.nextWindow()
			current = min(windowEnd(t, resolution), last)
		}
		if err := w.add(h); err != nil {
			return nil, fmt.Errorf("the histogram at %d: %w", t, err)
		}
	}
	if !begun {
		return nil, nil
	}
	if err := emit(); err != nil {
		return nil, err
	}
	return append(out, c.chunk()), nil
}

// coarserHistograms is the chunk of one batch of aggregate chunks: counters and sums are their
// points, count those of all counts. An error wraps errDoesNotFit if one chunk does not hold
// them.
func coarserHistograms(counters, sums []histogramSample, count []point, resolution int64) (backend.Chunk, error) {
	c := newHistogramChunk()
	if err := c.windows(counters, resolution, &c.counter, func(w *histogramWindows) *histogram.FloatHistogram { return w.counter }); err != nil {
		return backend.Chunk{}, err
	}
	if err := c.windows(sums, resolution, &c.sum, func(w *histogramWindows) *histogram.FloatHistogram { return w.sum }); err != nil {
		return backend.Chunk{}, err
	}
	floats(count, resolution, func(t int64, w *window, _ float64) {
		c.add(t)
		c.count.append(t, w.sum)
	})
	return c.chunk(), nil
}

// windows appends what take gives of each window of in to dst. An error wraps errDoesNotFit if
// the windows do not fit into one chunk.
func (c *histogramChunk) windows(in []histogramSample, resolution int64, dst *floatHistograms, take func(*histogramWindows) *histogram.FloatHistogram) error {
	if len(in) == 0 {
		return nil
	}
	w := histogramWindows{schema: in[0].h.Schema}
	for _, s := range in {
		w.schema = min(w.schema, s.h.Schema)
	}
	emit := func(t int64) error {
		ok, err := dst.append(t, take(&w))
		if err == nil && !ok {
			err = errNoFit(t)
		}
		c.add(t)
		return err
	}
	last := in[len(in)-1].t
	current := min(windowEnd(in[0].t, resolution), last)
	for _, s := range in {
		if s.t > current {
			if err := emit(current); err != nil {
				return err
			}
			w.nextWindow()
			current = min(windowEnd(s.t, resolution), last)
		}
		if err := w.add(s.h); err != nil {
			return fmt.Errorf("the histogram at %d: %w", s.t, err)
		}
	}
	return emit(current)
}

// floatHistograms is one aggregate of histograms, absent until something is appended.
type floatHistograms struct {
	c   chunkenc.Chunk
	app chunkenc.Appender
	// zero is the width of the zero bucket, of all in the chunk.
	zero float64
}

// takes is false if h does not fit into the chunk for the width of its zero bucket.
func (f *floatHistograms) takes(h *histogram.FloatHistogram) bool {
	return f.c == nil || f.zero == h.ZeroThreshold
}

// append may change the layout of h. False says that h does not fit into the chunk, which is as
// it was.
func (f *floatHistograms) append(t int64, h *histogram.FloatHistogram) (bool, error) {
	if f.c == nil {
		c := chunkenc.NewFloatHistogramChunk()
		app, err := c.Appender()
		if err != nil {
			return false, err
		}
		f.c, f.app, f.zero = c, app, h.ZeroThreshold
	}
	// The appender is its own predecessor, as in Thanos: so the header of the chunk says "not
	// reset" unless h says otherwise.
	own := f.app.(*chunkenc.FloatHistogramAppender)
	c, recoded, app, err := f.app.AppendFloatHistogram(own, t, h, false)
	if err != nil || c != nil && !recoded {
		return false, err
	}
	if c != nil {
		f.c = c
	}
	f.app = app
	return true, nil
}

func (f *floatHistograms) encoded() backend.Encoded {
	if f.c == nil {
		return backend.Encoded{}
	}
	return backend.Encoded{Encoding: chunkenc.EncFloatHistogram, Data: f.c.Bytes()}
}

// histogramSample is a histogram at a time in ms.
type histogramSample struct {
	t int64
	h *histogram.FloatHistogram
}

// errDoesNotFit is about a histogram that the library does not append to a chunk.
var errDoesNotFit = errors.New("does not fit into its chunk")

func errNoFit(t int64) error { return fmt.Errorf("the histogram at %d %w", t, errDoesNotFit) }
