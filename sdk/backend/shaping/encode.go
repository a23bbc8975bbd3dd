// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package shaping

import (
	"fmt"
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
)

// MaxSamplesPerChunk is the most samples that [EncodeSamples] puts in a chunk
// (rule S-8), which is what the Prometheus TSDB aims at.
const MaxSamplesPerChunk = 120

// Sample is one value of a series: H if that is set, else FH if that is set,
// else the float F.
type Sample struct {
	T  int64 // ms
	F  float64
	H  *histogram.Histogram
	FH *histogram.FloatHistogram
}

// EncodeSamples makes chunks of samples, which MUST be in strictly ascending
// order of time; anything else, and a histogram that does not validate, is an
// error that names the time. A chunk holds samples of one kind, and at most
// [MaxSamplesPerChunk] of them. Counter-reset headers of histogram chunks are
// found from one chunk to the next. Histograms may be changed: their buckets
// are brought to a common layout.
func EncodeSamples(samples []Sample) ([]backend.Chunk, error) {
	if len(samples) == 0 {
		return nil, nil
	}
	enc := Encoder{chunks: make([]backend.Chunk, 0, (len(samples)+MaxSamplesPerChunk-1)/MaxSamplesPerChunk)}
	for i := range samples {
		if err := enc.Append(samples[i]); err != nil {
			return nil, err
		}
	}
	return enc.Chunks(), nil
}

// EncodeIterator is [EncodeSamples] for what it yields from minTime to maxTime,
// both inclusive.
func EncodeIterator(it chunkenc.Iterator, minTime, maxTime int64) ([]backend.Chunk, error) {
	var enc Encoder
	for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
		t := it.AtT()
		if t < minTime {
			continue
		}
		if t > maxTime {
			break
		}
		s := Sample{T: t}
		switch kind {
		case chunkenc.ValFloat:
			_, s.F = it.At()
		case chunkenc.ValHistogram:
			// Iterators may reuse what is passed in, never what they make.
			_, s.H = it.AtHistogram(nil)
		case chunkenc.ValFloatHistogram:
			_, s.FH = it.AtFloatHistogram(nil)
		default:
			return nil, fmt.Errorf("sample at %d is of unknown type %d", t, kind)
		}
		if err := enc.Append(s); err != nil {
			return nil, err
		}
	}
	if err := it.Err(); err != nil {
		return nil, err
	}
	return enc.Chunks(), nil
}

// Encoder makes chunks of samples that come one by one. The zero value is ready.
type Encoder struct {
	chunks []backend.Chunk
	chunk  chunkenc.Chunk // nil before the first sample
	app    chunkenc.Appender
	min    int64
	last   int64
}

// Append adds a sample; see [EncodeSamples]. After an error the Encoder is of
// no more use.
func (e *Encoder) Append(s Sample) error {
	if e.chunk != nil && s.T <= e.last {
		return fmt.Errorf("sample at %d came after the one at %d; samples must be in ascending order of time", s.T, e.last)
	}
	var err error
	switch {
	case s.H != nil:
		err = e.appendHistogram(s.T, s.H)
	case s.FH != nil:
		err = e.appendFloatHistogram(s.T, s.FH)
	default:
		if err = e.room(s.T, chunkenc.EncXOR); err == nil {
			e.app.Append(s.T, s.F)
		}
	}
	if err != nil {
		return fmt.Errorf("sample at %d: %w", s.T, err)
	}
	e.last = s.T
	return nil
}

// Chunks returns the chunks so far and starts anew.
func (e *Encoder) Chunks() []backend.Chunk {
	e.cut()
	chunks := e.chunks
	*e = Encoder{}
	return chunks
}

// room sees to a chunk of the encoding that has space for another sample.
func (e *Encoder) room(t int64, enc chunkenc.Encoding) error {
	if e.chunk != nil && e.chunk.Encoding() == enc && e.chunk.NumSamples() < MaxSamplesPerChunk {
		return nil
	}
	c, err := chunkenc.NewEmptyChunk(enc)
	if err != nil {
		return err
	}
	return e.begin(t, c)
}

// begin closes the current chunk and makes c the current one.
func (e *Encoder) begin(t int64, c chunkenc.Chunk) error {
	app, err := c.Appender()
	if err != nil {
		return err
	}
	e.cut()
	e.chunk, e.app, e.min = c, app, t
	return nil
}

func (e *Encoder) cut() {
	if e.chunk == nil {
		return
	}
	e.chunk.Compact()
	e.chunks = append(e.chunks, backend.Chunk{
		MinTime: e.min, MaxTime: e.last,
		Raw: backend.Encoded{Data: e.chunk.Bytes(), Encoding: e.chunk.Encoding()},
	})
	e.chunk = nil
}

func (e *Encoder) appendHistogram(t int64, h *histogram.Histogram) error {
	if isStale(h.Sum) {
		// A stale marker carries nothing else, and the TSDB stores it so.
		h = &histogram.Histogram{Sum: h.Sum}
	} else if err := h.Validate(); err != nil {
		return err
	}
	prev, _ := e.app.(*chunkenc.HistogramAppender)
	if err := e.room(t, chunkenc.EncHistogram); err != nil {
		return err
	}
	c, recoded, app, err := e.app.AppendHistogram(prev, t, h, false)
	return e.replaced(t, c, recoded, app, err)
}

func (e *Encoder) appendFloatHistogram(t int64, h *histogram.FloatHistogram) error {
	if isStale(h.Sum) {
		h = &histogram.FloatHistogram{Sum: h.Sum}
	} else if err := h.Validate(); err != nil {
		return err
	}
	prev, _ := e.app.(*chunkenc.FloatHistogramAppender)
	if err := e.room(t, chunkenc.EncFloatHistogram); err != nil {
		return err
	}
	c, recoded, app, err := e.app.AppendFloatHistogram(prev, t, h, false)
	return e.replaced(t, c, recoded, app, err)
}

// replaced takes in what an appender made: nothing new, the current chunk in
// another layout, or a chunk that begins with the sample at t.
func (e *Encoder) replaced(t int64, c chunkenc.Chunk, recoded bool, app chunkenc.Appender, err error) error {
	if err != nil {
		return err
	}
	if c != nil {
		if !recoded {
			e.cut()
			e.min = t
		}
		e.chunk = c
	}
	e.app = app
	return nil
}

// staleNaN is the bit pattern of a stale marker in Prometheus.
const staleNaN = 0x7ff0000000000002

func isStale(v float64) bool { return math.Float64bits(v) == staleNaN }
