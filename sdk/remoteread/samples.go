// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remoteread

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

// EncodeChunks puts samples into chunks of at most shaping.MaxSamplesPerChunk.
// The samples are sorted by time, in place; of several with the same time the
// last one counts. Histograms may be changed and belong to the call.
func EncodeChunks(samples []shaping.Sample) ([]backend.Chunk, error) {
	byTime := func(a, b shaping.Sample) int { return cmp.Compare(a.T, b.T) }
	if !slices.IsSortedFunc(samples, byTime) {
		slices.SortStableFunc(samples, byTime)
	}
	kept := samples[:0]
	for i := range samples {
		if i+1 < len(samples) && samples[i+1].T == samples[i].T {
			continue
		}
		kept = append(kept, samples[i])
	}
	return shaping.EncodeSamples(kept)
}

// errWire is the error of a message whose bytes do not hold together.
var errWire = errors.New("malformed message")

// fields calls f for every field of a message. f returns the length of the
// field's value, or less than 0 to have it skipped.
func fields(b []byte, f func(num protowire.Number, typ protowire.Type, b []byte) (int, error)) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errWire
		}
		b = b[n:]
		n, err := f(num, typ, b)
		if err != nil {
			return err
		}
		if n < 0 {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return errWire
			}
		}
		b = b[n:]
	}
	return nil
}

// each yields the sub-messages of one field. It is how an answer is walked
// without building it up: a decoded sample costs six times its bytes.
func each(b []byte, field protowire.Number, yield func([]byte) error) error {
	return fields(b, func(num protowire.Number, typ protowire.Type, b []byte) (int, error) {
		if num != field || typ != protowire.BytesType {
			return -1, nil
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return 0, errWire
		}
		return n, yield(v)
	})
}

// errStop ends a walk early.
var errStop = errors.New("stop")

// DecodeSamples yields the series of a SAMPLES answer (decompressed), with the
// index of the query, in the order in which they come, which may be any. Series
// without samples are among them.
func DecodeSamples(b []byte) iter.Seq2[IndexedSeries, error] {
	return func(yield func(IndexedSeries, error) bool) {
		var (
			sb    = labels.NewScratchBuilder(16)
			query int
			buf   []shaping.Sample
		)
		err := each(b, 1, func(result []byte) error {
			err := each(result, 1, func(ts []byte) error {
				var (
					s   backend.Series
					err error
				)
				if s, buf, err = decodeTimeSeries(&sb, ts, buf[:0]); err != nil {
					return err
				}
				if !yield(IndexedSeries{Query: query, Series: s}, nil) {
					return errStop
				}
				return nil
			})
			query++
			return err
		})
		if err != nil && !errors.Is(err, errStop) {
			yield(IndexedSeries{}, fmt.Errorf("decode remote read answer: %w", err))
		}
	}
}

// IndexedSeries is a series, or a piece of one, and the query that it answers.
type IndexedSeries struct {
	Query  int
	Series backend.Series
}

func decodeTimeSeries(sb *labels.ScratchBuilder, ts []byte, buf []shaping.Sample) (backend.Series, []shaping.Sample, error) {
	var pairs []pair
	err := fields(ts, func(num protowire.Number, typ protowire.Type, b []byte) (int, error) {
		if num != 1 && num != 2 && num != 4 || typ != protowire.BytesType {
			return -1, nil
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return 0, errWire
		}
		switch num {
		case 1:
			var l prompb.Label
			// The strings are copied into the label set below.
			if err := l.UnmarshalVTUnsafe(v); err != nil {
				return 0, err
			}
			pairs = append(pairs, pair{l.Name, l.Value})
		case 2:
			s, err := decodeSample(v)
			if err != nil {
				return 0, err
			}
			buf = append(buf, s)
		case 4:
			var h prompb.Histogram
			if err := h.UnmarshalVT(v); err != nil {
				return 0, err
			}
			s, err := sampleFromPB(&h)
			if err != nil {
				return 0, err
			}
			buf = append(buf, s)
		}
		return n, nil
	})
	if err != nil {
		return backend.Series{}, buf, err
	}
	lset, err := labelSet(sb, pairs)
	if err != nil {
		return backend.Series{}, buf, err
	}
	chunks, err := EncodeChunks(buf)
	if err != nil {
		return backend.Series{}, buf, fmt.Errorf("series %s: %w", lset, err)
	}
	return backend.Series{Labels: lset, Chunks: chunks}, buf, nil
}

func decodeSample(b []byte) (shaping.Sample, error) {
	var s shaping.Sample
	err := fields(b, func(num protowire.Number, typ protowire.Type, b []byte) (int, error) {
		switch {
		case num == 1 && typ == protowire.Fixed64Type:
			v, n := protowire.ConsumeFixed64(b)
			if n < 0 {
				return 0, errWire
			}
			s.F = math.Float64frombits(v)
			return n, nil
		case num == 2 && typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return 0, errWire
			}
			s.T = int64(v)
			return n, nil
		}
		return -1, nil
	})
	return s, err
}

// sampleFromPB converts a native histogram. Whether its spans and buckets agree
// is checked by the encoder.
func sampleFromPB(h *prompb.Histogram) (shaping.Sample, error) {
	if h.ResetHint < 0 || h.ResetHint > 3 {
		return shaping.Sample{}, fmt.Errorf("histogram at %d has the unknown reset hint %d", h.Timestamp, h.ResetHint)
	}
	s := shaping.Sample{T: h.Timestamp}
	hint := histogram.CounterResetHint(h.ResetHint)
	if c, isFloat := h.Count.(*prompb.Histogram_CountFloat); isFloat {
		s.FH = &histogram.FloatHistogram{
			CounterResetHint: hint, Schema: h.Schema,
			ZeroThreshold: h.ZeroThreshold, ZeroCount: h.GetZeroCountFloat(),
			Count: c.CountFloat, Sum: h.Sum,
			PositiveSpans: spansFromPB(h.PositiveSpans), NegativeSpans: spansFromPB(h.NegativeSpans),
			PositiveBuckets: h.PositiveCounts, NegativeBuckets: h.NegativeCounts,
			CustomValues: h.CustomValues,
		}
	} else {
		s.H = &histogram.Histogram{
			CounterResetHint: hint, Schema: h.Schema,
			ZeroThreshold: h.ZeroThreshold, ZeroCount: h.GetZeroCountInt(),
			Count: h.GetCountInt(), Sum: h.Sum,
			PositiveSpans: spansFromPB(h.PositiveSpans), NegativeSpans: spansFromPB(h.NegativeSpans),
			PositiveBuckets: h.PositiveDeltas, NegativeBuckets: h.NegativeDeltas,
			CustomValues: h.CustomValues,
		}
	}
	return s, nil
}

func spansFromPB(in []*prompb.BucketSpan) []histogram.Span {
	if len(in) == 0 {
		return nil
	}
	out := make([]histogram.Span, len(in))
	for i, s := range in {
		out[i] = histogram.Span{Offset: s.Offset, Length: s.Length}
	}
	return out
}

func spansToPB(in []histogram.Span) []*prompb.BucketSpan {
	out := make([]*prompb.BucketSpan, len(in))
	for i, s := range in {
		out[i] = &prompb.BucketSpan{Offset: s.Offset, Length: s.Length}
	}
	return out
}

func histogramToPB(t int64, h *histogram.Histogram) *prompb.Histogram {
	return &prompb.Histogram{
		Count: &prompb.Histogram_CountInt{CountInt: h.Count}, Sum: h.Sum, Schema: h.Schema,
		ZeroThreshold: h.ZeroThreshold, ZeroCount: &prompb.Histogram_ZeroCountInt{ZeroCountInt: h.ZeroCount},
		NegativeSpans: spansToPB(h.NegativeSpans), NegativeDeltas: h.NegativeBuckets,
		PositiveSpans: spansToPB(h.PositiveSpans), PositiveDeltas: h.PositiveBuckets,
		ResetHint: prompb.Histogram_ResetHint(h.CounterResetHint), Timestamp: t, CustomValues: h.CustomValues,
	}
}

func floatHistogramToPB(t int64, h *histogram.FloatHistogram) *prompb.Histogram {
	return &prompb.Histogram{
		Count: &prompb.Histogram_CountFloat{CountFloat: h.Count}, Sum: h.Sum, Schema: h.Schema,
		ZeroThreshold: h.ZeroThreshold, ZeroCount: &prompb.Histogram_ZeroCountFloat{ZeroCountFloat: h.ZeroCount},
		NegativeSpans: spansToPB(h.NegativeSpans), NegativeCounts: h.NegativeBuckets,
		PositiveSpans: spansToPB(h.PositiveSpans), PositiveCounts: h.PositiveBuckets,
		ResetHint: prompb.Histogram_ResetHint(h.CounterResetHint), Timestamp: t, CustomValues: h.CustomValues,
	}
}

// appendSample appends a prompb.Sample as field 2. A zero is left out as usual,
// but a negative zero is not one: some encoders lose its sign here.
func appendSample(b []byte, t int64, v float64) []byte {
	var m [20]byte
	s := m[:0]
	if bits := math.Float64bits(v); bits != 0 {
		s = protowire.AppendTag(s, 1, protowire.Fixed64Type)
		s = protowire.AppendFixed64(s, bits)
	}
	if t != 0 {
		s = protowire.AppendTag(s, 2, protowire.VarintType)
		s = protowire.AppendVarint(s, uint64(t))
	}
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	return protowire.AppendBytes(b, s)
}
