// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package downsample

import (
	"errors"
	"fmt"
	"iter"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/core/samples"
	"github.com/promweave/promweave/sdk/backend"
)

// errCustomBuckets is about a series with histograms of custom buckets, whose aggregates have
// no form that Thanos reads.
var errCustomBuckets = errors.New("histograms with custom buckets cannot be downsampled")

// stored is a chunk as the block has it; the bytes are those of the block.
type stored struct {
	// ref is the number of the segment file, from 0, and the place in it.
	ref uint64
	// minTime and maxTime are inclusive, in ms, from the index.
	minTime, maxTime int64
	backend.Encoded
}

func (s *stored) wrap(err error) error {
	return fmt.Errorf("the chunk from %d to %d at byte %d of segment %06d: %w", s.minTime, s.maxTime, s.ref&math.MaxUint32, s.ref>>32+1, err)
}

// checkOrder: chunks of a series follow each other in time.
func checkOrder(in []stored) error {
	for i := range in {
		if s := &in[i]; s.minTime > s.maxTime {
			return s.wrap(errors.New("it ends before it begins"))
		} else if i > 0 && s.minTime <= in[i-1].maxTime {
			return s.wrap(fmt.Errorf("it overlaps the chunk before, or is out of order: that ends at %d", in[i-1].maxTime))
		}
	}
	return nil
}

// raw is a series of raw chunks at a resolution, in ms. A change between floats and histograms
// ends a batch.
func raw(in []stored, resolution int64) ([]backend.Chunk, error) {
	if err := checkOrder(in); err != nil {
		return nil, err
	}
	var out []backend.Chunk
	for len(in) > 0 {
		n := 1
		for n < len(in) && isHistogram(in[n].Encoded) == isHistogram(in[0].Encoded) {
			n++
		}
		var chunks []backend.Chunk
		var err error
		if isHistogram(in[0].Encoded) {
			chunks, err = rawHistogramRun(in[:n], resolution)
		} else {
			chunks, err = rawFloatRun(in[:n], resolution)
		}
		if err != nil {
			return nil, err
		}
		out, in = append(out, chunks...), in[n:]
	}
	return out, nil
}

func isHistogram(e backend.Encoded) bool {
	return e.Encoding == chunkenc.EncHistogram || e.Encoding == chunkenc.EncFloatHistogram
}

func rawFloatRun(in []stored, resolution int64) ([]backend.Chunk, error) {
	var all []point
	for i := range in {
		n := len(all)
		var err error
		if all, err = readFloats(in[i].Encoded, all); err == nil {
			err = inBounds(&in[i], all[n:])
		}
		if err != nil {
			return nil, in[i].wrap(err)
		}
	}
	return rawFloatBatches(all, resolution), nil
}

// rawFloatBatches are the chunks of samples whose times do not decrease. It changes all.
func rawFloatBatches(all []point, resolution int64) []backend.Chunk {
	if len(all) == 0 {
		return nil
	}
	var out []backend.Chunk
	at := func(i int) int64 { return all[i].t }
	size := len(all)/chunkCount(all[0].t, all[len(all)-1].t, rawResolution, resolution, len(all)) + 1
	for i := 0; i < len(all); {
		end := batchEnd(at, i, len(all), size, resolution)
		// NaN counts where batches are cut, but is no value.
		batch := all[i:i]
		for _, p := range all[i:end] {
			if !math.IsNaN(p.v) {
				batch = append(batch, p)
			}
		}
		if len(batch) > 0 {
			out = append(out, rawFloats(batch, resolution))
		}
		i = end
	}
	return out
}

// seen is what has to be known of a histogram before batches are made.
type seen struct {
	t int64
	// schema, or unusable if the sum is NaN.
	schema int32
}

const unusable = math.MaxInt32

// rawHistogramRun decodes all histograms twice, so that it never holds more than a few.
func rawHistogramRun(in []stored, resolution int64) ([]backend.Chunk, error) {
	var all []seen
	for i := range in {
		r := newHistogramReader(in[i].Encoded)
		for r.next() {
			s := seen{r.t, r.h.Schema}
			if math.IsNaN(r.h.Sum) {
				s.schema = unusable
			}
			if r.t < in[i].minTime || r.t > in[i].maxTime {
				r.err = outside(r.t)
				break
			}
			all = append(all, s)
		}
		if r.err != nil {
			return nil, in[i].wrap(r.err)
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	var out []backend.Chunk
	next, stop := iter.Pull2(histograms(in))
	defer stop()
	at := func(i int) int64 { return all[i].t }
	size := len(all)/chunkCount(all[0].t, all[len(all)-1].t, rawResolution, resolution, len(all)) + 1
	for i := 0; i < len(all); {
		end := batchEnd(at, i, len(all), size, resolution)
		schema, last := int32(unusable), int64(0)
		for _, s := range all[i:end] {
			if s.schema != unusable {
				schema, last = min(schema, s.schema), s.t
			}
		}
		chunks, err := rawHistograms(func(yield func(int64, *histogram.FloatHistogram) bool) {
			for _, s := range all[i:end] {
				if t, h, ok := next(); !ok || s.schema != unusable && !yield(t, h) {
					return
				}
			}
		}, schema, last, resolution)
		if err != nil {
			return nil, fmt.Errorf("from %d to %d: %w", at(i), at(end-1), err)
		}
		out, i = append(out, chunks...), end
	}
	return out, nil
}

// histograms are those of chunks that have been read before without an error.
func histograms(in []stored) iter.Seq2[int64, *histogram.FloatHistogram] {
	return func(yield func(int64, *histogram.FloatHistogram) bool) {
		for i := range in {
			for r := newHistogramReader(in[i].Encoded); r.next(); {
				if !yield(r.t, r.h) {
					return
				}
			}
		}
	}
}

// part is an aggregate chunk of the input, and where it comes from.
type part struct {
	minTime, maxTime int64
	*backend.AggregateChunks
	from *stored
}

func (p *part) histograms() bool { return isHistogram(p.Counter) || isHistogram(p.Sum) }

// coarser is a series of aggregate chunks of the resolution in, at the resolution out, both ms.
// Raw chunks between them, which old versions of Thanos left there, are downsampled first.
func coarser(chunks []stored, in, out int64) ([]backend.Chunk, error) {
	if err := checkOrder(chunks); err != nil {
		return nil, err
	}
	var parts []part
	for i := range chunks {
		s := &chunks[i]
		if s.Encoding == aggregate.Encoding {
			a, err := aggregate.Parse(s.Data)
			if err != nil {
				return nil, s.wrap(err)
			}
			parts = append(parts, part{s.minTime, s.maxTime, a, s})
			continue
		}
		made, err := raw(chunks[i:i+1], in)
		if err != nil {
			return nil, err
		}
		for _, c := range made {
			parts = append(parts, part{c.MinTime, c.MaxTime, c.Aggregates, s})
		}
	}
	var made []backend.Chunk
	for len(parts) > 0 {
		n, points := 0, 0
		for n < len(parts) && parts[n].histograms() == parts[0].histograms() {
			points += aggregate.Points(parts[n].Count)
			n++
		}
		run := parts[:n]
		parts = parts[n:]
		// Chunks are never cut: only at their ends is it known where a counter really was.
		size := max(1, n/chunkCount(run[0].minTime, run[n-1].maxTime, in, out, points))
		for len(run) > 0 {
			batch := run[:min(size, len(run))]
			run = run[len(batch):]
			cs, err := coarserBatch(batch, out)
			if err != nil {
				return nil, err
			}
			made = append(made, cs...)
		}
	}
	return made, nil
}

// coarserBatch is one chunk, or none if the batch is empty; more if histograms do not fit into one.
func coarserBatch(batch []part, out int64) ([]backend.Chunk, error) {
	var c backend.Chunk
	var err error
	if batch[0].histograms() {
		if c, err = coarserHistogramBatch(batch, out); errors.Is(err, errDoesNotFit) && len(batch) > 1 {
			// Each half starts its counter anew, as all chunks do.
			half := len(batch) / 2
			first, err := coarserBatch(batch[:half], out)
			if err != nil {
				return nil, err
			}
			second, err := coarserBatch(batch[half:], out)
			return append(first, second...), err
		}
	} else {
		c, err = coarserFloatBatch(batch, out)
	}
	if err != nil || c.MinTime > c.MaxTime {
		return nil, err
	}
	return []backend.Chunk{c}, nil
}

func coarserFloatBatch(batch []part, out int64) (backend.Chunk, error) {
	var count, sum, low, high, scratch []point
	var counters resetless
	for i := range batch {
		p := &batch[i]
		for _, a := range []struct {
			name string
			e    backend.Encoded
			to   *[]point
		}{{"count", p.Count, &count}, {"sum", p.Sum, &sum}, {"min", p.Min, &low}, {"max", p.Max, &high}} {
			if err := p.floats(a.e, a.to); err != nil {
				return backend.Chunk{}, p.from.wrap(fmt.Errorf("its %s: %w", a.name, err))
			}
		}
		scratch = scratch[:0]
		if p.Counter.Present() {
			var err error
			if scratch, err = readFloats(p.Counter, scratch); err != nil {
				return backend.Chunk{}, p.from.wrap(fmt.Errorf("its counter: %w", err))
			}
		}
		for _, s := range scratch {
			counters.add(s)
		}
	}
	return coarserFloats(count, sum, low, high, counters.out, counters.last, out), nil
}

func coarserHistogramBatch(batch []part, out int64) (backend.Chunk, error) {
	var counters, sums []histogramSample
	var count []point
	for i := range batch {
		p := &batch[i]
		if err := p.floats(p.Count, &count); err != nil {
			return backend.Chunk{}, p.from.wrap(fmt.Errorf("its count: %w", err))
		}
		if err := p.read(p.Counter, &counters); err != nil {
			return backend.Chunk{}, p.from.wrap(fmt.Errorf("its counter: %w", err))
		}
		if err := p.read(p.Sum, &sums); err != nil {
			return backend.Chunk{}, p.from.wrap(fmt.Errorf("its sum: %w", err))
		}
	}
	c, err := coarserHistograms(counters, sums, count, out)
	if err != nil {
		err = batch[0].from.wrap(err)
	}
	return c, err
}

// floats appends the points of an aggregate, which are in the chunk's bounds, if it is there.
func (p *part) floats(e backend.Encoded, to *[]point) error {
	if !e.Present() {
		return nil
	}
	n := len(*to)
	var err error
	if *to, err = readFloats(e, *to); err != nil {
		return err
	}
	return inBounds(&stored{minTime: p.minTime, maxTime: p.maxTime}, (*to)[n:])
}

// read appends the histograms of an aggregate, as floats does.
func (p *part) read(e backend.Encoded, to *[]histogramSample) error {
	if !e.Present() {
		return nil
	}
	r := newHistogramReader(e)
	for r.next() {
		if r.t < p.minTime || r.t > p.maxTime {
			return outside(r.t)
		}
		*to = append(*to, histogramSample{r.t, r.h})
	}
	return r.err
}

func outside(t int64) error {
	return fmt.Errorf("it has a sample at %d, which is not in its range", t)
}

// inBounds makes sure that samples of one chunk cannot get behind those of the next. The order
// within the chunk has been looked at.
func inBounds(s *stored, in []point) error {
	if len(in) > 0 && in[0].t < s.minTime {
		return outside(in[0].t)
	}
	if len(in) > 0 && in[len(in)-1].t > s.maxTime {
		return outside(in[len(in)-1].t)
	}
	return nil
}

func back(t int64) error { return fmt.Errorf("its samples go back in time at %d", t) }

// decodable reports whether the library may be let at the chunk.
func decodable(e backend.Encoded) error {
	switch {
	case isHistogram(e):
		return samples.CheckHistograms(e.Encoding, e.Data)
	case e.Encoding != chunkenc.EncXOR:
		return fmt.Errorf("encoding %d is not known", e.Encoding)
	case len(e.Data) < 2:
		return fmt.Errorf("it has %d bytes", len(e.Data))
	}
	return nil
}

// readFloats appends the samples of a chunk of floats, without stale markers: their times do
// not decrease.
func readFloats(e backend.Encoded, dst []point) (_ []point, err error) {
	if e.Encoding != chunkenc.EncXOR {
		return dst, fmt.Errorf("encoding %d is not one of floats", e.Encoding)
	}
	if err := decodable(e); err != nil {
		return dst, err
	}
	c, err := chunkenc.FromData(e.Encoding, e.Data)
	if err != nil {
		return dst, err
	}
	last := int64(math.MinInt64)
	it := c.Iterator(nil)
	for it.Next() != chunkenc.ValNone {
		t, v := it.At()
		if t < last {
			return dst, back(t)
		}
		last = t
		if !value.IsStaleNaN(v) {
			dst = append(dst, point{t, v})
		}
	}
	return dst, it.Err()
}

// histogramReader reads a chunk of histograms, without stale markers: their times do not decrease.
type histogramReader struct {
	it   chunkenc.Iterator
	last int64
	err  error
	// t and h are the current one, in floats; h is the caller's.
	t int64
	h *histogram.FloatHistogram
}

func newHistogramReader(e backend.Encoded) *histogramReader {
	r := &histogramReader{last: math.MinInt64}
	if !isHistogram(e) {
		r.err = fmt.Errorf("encoding %d is not one of histograms", e.Encoding)
		return r
	}
	if r.err = decodable(e); r.err != nil {
		return r
	}
	c, err := chunkenc.FromData(e.Encoding, e.Data)
	if r.err = err; err == nil {
		r.it = c.Iterator(nil)
	}
	return r
}

func (r *histogramReader) next() (ok bool) {
	if r.err != nil {
		return false
	}
	// The library panics on layouts that contradict themselves.
	defer func() {
		if p := recover(); p != nil {
			ok, r.err = false, fmt.Errorf("it does not decode: %v", p)
		}
	}()
	for r.it.Next() != chunkenc.ValNone {
		r.t, r.h = r.it.AtFloatHistogram(nil)
		if r.t < r.last {
			r.err = back(r.t)
			return false
		}
		r.last = r.t
		if value.IsStaleNaN(r.h.Sum) {
			continue
		}
		if r.h.UsesCustomBuckets() {
			r.err = errCustomBuckets
			return false
		}
		return true
	}
	r.err = r.it.Err()
	return false
}

// resample is a series at the resolution to, in ms, of chunks that have the one before.
func resample(in []stored, from, to int64) (_ []backend.Chunk, err error) {
	defer func() {
		// Histograms come from outside, and the library panics on some that make no sense.
		if p := recover(); p != nil {
			err = fmt.Errorf("histograms that make no sense: %v", p)
			if len(in) > 0 {
				err = fmt.Errorf("the chunks from %d to %d: %w", in[0].minTime, in[len(in)-1].maxTime, err)
			}
		}
	}()
	if from == meta.Raw {
		return raw(in, to)
	}
	return coarser(in, from, to)
}
