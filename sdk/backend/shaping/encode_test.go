// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package shaping_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

func testHistogram(r *rand.Rand, n int) *histogram.Histogram {
	h := &histogram.Histogram{Schema: 1, ZeroThreshold: 0.001, Sum: float64(n)}
	spans := 1 + r.IntN(2)
	for i := range spans {
		h.PositiveSpans = append(h.PositiveSpans, histogram.Span{Offset: int32(i + r.IntN(2)), Length: 2})
		h.PositiveBuckets = append(h.PositiveBuckets, int64(n), 0)
	}
	total := int64(0)
	for _, d := range h.PositiveBuckets {
		total += d
		h.Count += uint64(total)
	}
	return h
}

func decode(t *testing.T, chunks []backend.Chunk) (out []shaping.Sample) {
	t.Helper()
	for i, c := range chunks {
		ch, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
		if err != nil {
			t.Fatal(err)
		}
		if n := ch.NumSamples(); n < 1 || n > shaping.MaxSamplesPerChunk {
			t.Fatalf("chunk %d has %d samples", i, n)
		}
		it := ch.Iterator(nil)
		start := len(out)
		for k := it.Next(); k != chunkenc.ValNone; k = it.Next() {
			s := shaping.Sample{T: it.AtT()}
			switch k {
			case chunkenc.ValFloat:
				_, s.F = it.At()
			case chunkenc.ValHistogram:
				_, s.H = it.AtHistogram(nil)
			case chunkenc.ValFloatHistogram:
				_, s.FH = it.AtFloatHistogram(nil)
			}
			out = append(out, s)
		}
		if it.Err() != nil {
			t.Fatal(it.Err())
		}
		if out[start].T != c.MinTime || out[len(out)-1].T != c.MaxTime {
			t.Fatalf("chunk %d says %d..%d and holds %d..%d", i, c.MinTime, c.MaxTime, out[start].T, out[len(out)-1].T)
		}
	}
	return out
}

func sameSample(a, b shaping.Sample) bool {
	switch {
	case a.T != b.T || (a.H == nil) != (b.H == nil) || (a.FH == nil) != (b.FH == nil):
		return false
	case a.H != nil:
		return math.Float64bits(a.H.Sum) == math.Float64bits(b.H.Sum) && a.H.Copy().Compact(0).Equals(b.H.Copy().Compact(0))
	case a.FH != nil:
		return math.Float64bits(a.FH.Sum) == math.Float64bits(b.FH.Sum) && a.FH.Copy().Compact(0).Equals(b.FH.Copy().Compact(0))
	}
	return math.Float64bits(a.F) == math.Float64bits(b.F)
}

func TestEncodeRoundTrip(t *testing.T) {
	stale := math.Float64frombits(0x7ff0000000000002)
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 4))
		var in, want []shaping.Sample
		ts, kind := r.Int64N(1e12)-5e11, 0
		for i := range r.IntN(500) {
			ts += 1 + r.Int64N(60000)
			if r.IntN(50) == 0 {
				kind = r.IntN(3)
			}
			s := shaping.Sample{T: ts}
			switch kind {
			case 0:
				s.F = []float64{r.NormFloat64(), stale, math.Inf(1), 0}[r.IntN(4)]
			case 1:
				s.H = testHistogram(r, 1+i%7) // i%7: resets
				if r.IntN(3) == 0 {
					s.H.CounterResetHint = histogram.GaugeType
				}
			case 2:
				s.FH = testHistogram(r, 1+i%7).ToFloat(nil)
			}
			if kind == 1 && r.IntN(20) == 0 {
				s.H = &histogram.Histogram{Sum: stale}
			}
			in = append(in, s)
			w := s
			if s.H != nil {
				w.H = s.H.Copy()
			}
			if s.FH != nil {
				w.FH = s.FH.Copy()
			}
			want = append(want, w)
		}
		chunks, err := shaping.EncodeSamples(in)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got := decode(t, chunks)
		if !slices.EqualFunc(got, want, sameSample) {
			t.Fatalf("seed %d: %d samples in, %d out, or some differ", seed, len(want), len(got))
		}

		// And once more through an iterator over the chunks, cut to a range.
		if len(want) < 3 {
			continue
		}
		lo, hi := want[1].T, want[len(want)-2].T
		var enc shaping.Encoder
		for _, c := range chunks {
			ch, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
			if err != nil {
				t.Fatal(err)
			}
			cut, err := shaping.EncodeIterator(ch.Iterator(nil), lo, hi)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range decode(t, cut) {
				if err := enc.Append(s); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := decode(t, enc.Chunks()); !slices.EqualFunc(got, want[1:len(want)-1], sameSample) {
			t.Fatalf("seed %d: cut to a range: %d samples, want %d", seed, len(got), len(want)-2)
		}
	}
}

// TestEncodeChunkSize is case 10 of the Thanos acceptance suite.
func TestEncodeChunkSize(t *testing.T) {
	in := make([]shaping.Sample, 131075)
	for i := range in {
		in[i] = shaping.Sample{T: int64(i), F: float64(i)}
	}
	chunks, err := shaping.EncodeSamples(in)
	if err != nil {
		t.Fatal(err)
	}
	last := chunks[len(chunks)-1]
	if len(chunks) != 1093 || last.MaxTime-last.MinTime != 34 {
		t.Errorf("%d chunks, the last %d..%d", len(chunks), last.MinTime, last.MaxTime)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, in := range map[string][]shaping.Sample{
		"same time":   {{T: 1}, {T: 1}},
		"earlier":     {{T: 2}, {T: 1}},
		"bad buckets": {{T: 1, H: &histogram.Histogram{PositiveSpans: []histogram.Span{{Length: 3}}}}},
		"bad spans":   {{T: 1, FH: &histogram.FloatHistogram{PositiveSpans: []histogram.Span{{Length: 1}, {Offset: -9, Length: 1}}, PositiveBuckets: []float64{1, 1}}}},
	} {
		if _, err := shaping.EncodeSamples(in); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if c, err := shaping.EncodeSamples(nil); c != nil || err != nil {
		t.Errorf("nothing: %v, %v", c, err)
	}
}

func BenchmarkEncodeSamples(b *testing.B) {
	in := make([]shaping.Sample, 12000)
	for i := range in {
		in[i] = shaping.Sample{T: int64(i) * 15000, F: float64(i * 3)}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := shaping.EncodeSamples(in); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(in)), "ns/sample")
}
