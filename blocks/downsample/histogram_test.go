// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package downsample

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/sdk/backend"
)

// hist is a histogram with counts in the buckets from 1 up, at schema 0 or 1.
func hist(schema int32, zero float64, buckets ...float64) *histogram.FloatHistogram {
	h := &histogram.FloatHistogram{Schema: schema, ZeroThreshold: zero, ZeroCount: 1, Count: 1, PositiveSpans: []histogram.Span{{Offset: schema + 1, Length: uint32(len(buckets))}}, PositiveBuckets: buckets}
	for i, n := range buckets {
		h.Count += n
		h.Sum += n * float64(i+1)
	}
	return h
}

func (s histogramSample) as(hint histogram.CounterResetHint) histogramSample {
	s.h.CounterResetHint = hint
	return s
}

// native are stored chunks of the samples; one begins wherever the library wants one.
func native(t testing.TB, in ...histogramSample) []stored {
	t.Helper()
	var out []stored
	var f *floatHistograms
	add := func() { out[len(out)-1].Encoded = f.encoded() }
	for _, s := range in {
		h := s.h.Copy()
		if f == nil {
			f = &floatHistograms{}
			out = append(out, stored{minTime: s.t, maxTime: s.t})
		}
		ok, err := f.append(s.t, h)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			add()
			f = &floatHistograms{}
			out = append(out, stored{minTime: s.t})
			if ok, err := f.append(s.t, h); err != nil || !ok {
				t.Fatal(ok, err)
			}
		}
		out[len(out)-1].maxTime = s.t
		add()
	}
	return out
}

func decodedHistograms(t testing.TB, e backend.Encoded) []histogramSample {
	t.Helper()
	var out []histogramSample
	r := newHistogramReader(e)
	for r.next() {
		out = append(out, histogramSample{r.t, r.h})
	}
	if r.err != nil {
		t.Fatal(r.err)
	}
	return out
}

// text is what tests compare: per point its time, then count and sum of the counter, of the
// sum, and the number of samples.
func text(t testing.TB, chunks []backend.Chunk) string {
	t.Helper()
	var b strings.Builder
	for _, c := range chunks {
		a := c.Aggregates
		counter, sum, count := decodedHistograms(t, a.Counter), decodedHistograms(t, a.Sum), decoded(t, a.Count)
		if len(counter) != len(count) || len(sum) != len(count) || a.Min.Present() || a.Max.Present() {
			t.Fatalf("%d points of the counter, %d of the sum, %d of the count", len(counter), len(sum), len(count))
		}
		fmt.Fprintf(&b, "%d-%d:", c.MinTime, c.MaxTime)
		for i, p := range count {
			if counter[i].t != p.t || sum[i].t != p.t || sum[i].h.CounterResetHint != histogram.GaugeType {
				t.Errorf("at %d: counter at %d, sum at %d, a %v", p.t, counter[i].t, sum[i].t, sum[i].h.CounterResetHint)
			}
			fmt.Fprintf(&b, " %d=%g/%g,%g/%g,%g", p.t, counter[i].h.Count, counter[i].h.Sum, sum[i].h.Count, sum[i].h.Sum, p.v)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestHistograms(t *testing.T) {
	nan := hist(1, 0, 1)
	nan.Sum = math.NaN()
	stale := &histogram.FloatHistogram{Sum: staleNaN}
	const gauge = histogram.GaugeType
	for _, c := range []struct {
		name string
		in   []histogramSample
		want string
	}{
		{"windows, and a reset", []histogramSample{
			{10, hist(1, 0, 1, 1)}, {20, hist(1, 0, 2, 1)}, {110, hist(1, 0, 2, 2)}, {250, hist(1, 0, 1, 0)}, {260, hist(1, 0, 2, 0)},
		}, "99-260: 99=4/4,7/7,2 199=5/6,5/6,1 260=8/8,5/3,2\n"},
		{"NaN is none, stale neither", []histogramSample{
			{10, hist(1, 0, 1)}, {20, nan}, {110, hist(1, 0, 2)}, {120, stale}, {310, nan},
		}, "99-110: 99=2/1,2/1,1 110=3/2,3/2,1\n"},
		{"gauges fall, and are summed", []histogramSample{
			histogramSample{10, hist(1, 0, 5)}.as(gauge), histogramSample{20, hist(1, 0, 1)}.as(gauge), histogramSample{110, hist(1, 0, 3)}.as(gauge),
		}, "99-110: 99=2/1,8/6,2 110=4/3,4/3,1\n"},
		// 40 is reset to 3, and the schema becomes coarser; all before it are finer, and none is reset.
		{"schemas", []histogramSample{
			{10, hist(1, 0, 10, 9)}, {20, hist(1, 0, 20, 19)}, {110, hist(0, 0, 1, 1)}, {120, hist(0, 0, 2, 1)},
		}, "99-120: 99=40/58,60/86,2 120=44/62,7/7,2\n"},
		{"a finer schema is a reset", []histogramSample{
			{10, hist(0, 0, 10)}, {20, hist(1, 0, 11)},
		}, "20-20: 20=23/21,23/21,2\n"},
		// The wider zero bucket fits into no chunk with the others: the counter goes on in another.
		{"zero buckets", []histogramSample{
			{10, hist(1, 0.001, 1)}, {20, hist(1, 0.001, 2)}, {110, hist(1, 0.001, 3)}, {210, hist(1, 0.01, 4)}, {310, hist(1, 0.01, 5)},
		}, "99-199: 99=3/2,5/3,2 199=4/3,4/3,1\n299-310: 299=5/4,5/4,1 310=6/5,6/5,1\n"},
		// A narrower one counts as a reset. The counter keeps the width, the sums do not.
		{"narrower zero buckets", []histogramSample{
			{10, hist(1, 0.01, 1)}, {110, hist(1, 0.001, 2)}, {210, hist(1, 0.001, 3)},
		}, "99-99: 99=2/1,2/1,1\n199-210: 199=5/3,3/2,1 210=6/4,4/3,1\n"},
		{"counters that become gauges", []histogramSample{
			{10, hist(1, 0, 1)}, {110, hist(1, 0, 2)}, histogramSample{210, hist(1, 0, 7)}.as(gauge), histogramSample{310, hist(1, 0, 3)}.as(gauge),
		}, "99-199: 99=2/1,2/1,1 199=3/2,3/2,1\n299-310: 299=8/7,8/7,1 310=4/3,4/3,1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			made, err := raw(native(t, c.in...), 100)
			if err != nil {
				t.Fatal(err)
			}
			if got := text(t, made); got != c.want {
				t.Errorf("\n%swant\n%s", got, c.want)
			}
		})
	}
}

// TestChunkBoundariesOfSchemas: each finer histogram that begins a chunk is compared with the
// one before as that was, not as it was reduced to the coarsest of the batch.
func TestChunkBoundariesOfSchemas(t *testing.T) {
	var in []stored
	for i := range int64(5) {
		in = append(in, native(t, histogramSample{10 + 20*i, hist(1, 0, float64(100+2*i))}, histogramSample{20 + 20*i, hist(1, 0, float64(101+2*i))})...)
	}
	in = append(in, native(t, histogramSample{150, hist(0, 0, 110)})...)
	made, err := raw(in, 100)
	if err != nil || len(made) != 1 || len(in) != 6 {
		t.Fatal(made, err)
	}
	counter := decodedHistograms(t, made[0].Aggregates.Counter)
	if n := len(counter); n != 2 || counter[0].h.Count != 109 || counter[1].h.Count != 111 || counter[1].h.Schema != 0 {
		t.Errorf("%+v", counter)
	}
}

// TestCoarserHistograms: from the windows of several chunks, which hold floats in between, and
// where the zero buckets of two chunks do not fit together.
func TestCoarserHistograms(t *testing.T) {
	var in []stored
	in = append(in, native(t, histogramSample{10, hist(1, 0.001, 1)}, histogramSample{110, hist(1, 0.001, 2)})...)
	in = append(in, native(t, histogramSample{210, hist(1, 0.01, 3)}, histogramSample{310, hist(1, 0.01, 4)})...)
	in = append(in, xor(point{420, 7}, point{430, 8}))
	in = append(in, native(t, histogramSample{510, hist(1, 0.01, 1)})...)
	fine, err := raw(in, 100)
	if err != nil {
		t.Fatal(err)
	}
	again, err := coarser(store(fine), 100, 200)
	if err != nil || len(fine) != 4 || len(again) != 4 {
		t.Fatal(len(fine), len(again), err)
	}
	if got, want := text(t, append(again[:2:2], again[3])), "199-199: 199=3/2,5/3,2\n310-310: 310=5/4,9/7,2\n510-510: 510=2/1,2/1,1\n"; got != want {
		t.Errorf("\n%swant\n%s", got, want)
	}
	if got := decoded(t, again[2].Aggregates.Counter); again[2].MinTime != 430 || len(got) != 3 {
		t.Errorf("floats %+v", got)
	}
}

// TestRawBetweenAggregates: raw chunks in a downsampled block count as what they would have been
// downsampled to, empty ones as nothing.
func TestRawBetweenAggregates(t *testing.T) {
	a, err := raw([]stored{xor(point{10, 1}, point{110, 2})}, 100)
	if err != nil {
		t.Fatal(err)
	}
	empty := stored{minTime: 150, maxTime: 150, Encoded: backend.Encoded{Encoding: chunkenc.EncXOR, Data: []byte{0, 0}}}
	made, err := coarser(append(store(a), empty, xor(point{210, 1}, point{220, 5})), 100, 1000)
	if err != nil || len(made) != 1 {
		t.Fatal(made, err)
	}
	m := made[0].Aggregates
	if got := fmt.Sprint(decoded(t, m.Count), decoded(t, m.Sum), decoded(t, m.Max), decoded(t, m.Counter)); got != "[{220 4}] [{220 9}] [{220 5}] [{10 1} {220 7} {220 5}]" {
		t.Error(got)
	}
	if made, err = coarser([]stored{empty}, 100, 1000); err != nil || len(made) != 0 {
		t.Error(made, err)
	}
}

// custom is a chunk of a histogram with custom buckets.
func custom(t testing.TB, at int64) stored {
	h := &histogram.FloatHistogram{Schema: histogram.CustomBucketsSchema, Count: 3, Sum: 3, CustomValues: []float64{1, 2}, PositiveSpans: []histogram.Span{{Length: 2}}, PositiveBuckets: []float64{1, 2}}
	return native(t, histogramSample{at, h})[0]
}

func TestCustomBuckets(t *testing.T) {
	c := custom(t, 200)
	if made, err := raw([]stored{xor(point{10, 1}), c}, 100); !errors.Is(err, errCustomBuckets) || made != nil {
		t.Error(made, err)
	}
	s := store([]backend.Chunk{{MinTime: 200, MaxTime: 200, Aggregates: &backend.AggregateChunks{Count: xor(point{200, 1}).Encoded, Sum: c.Encoded, Counter: c.Encoded}}})
	if made, err := coarser(s, 100, 1000); !errors.Is(err, errCustomBuckets) || made != nil {
		t.Error(made, err)
	}
}

// TestCorruptChunks: the error names the chunk and what is wrong.
func TestCorruptChunks(t *testing.T) {
	data := func(encoding chunkenc.Encoding, data string) stored {
		return stored{ref: 2<<32 | 77, minTime: 1, maxTime: 9, Encoded: backend.Encoded{Encoding: encoding, Data: []byte(data)}}
	}
	short := xor(point{1, 1}, point{5, 2}, point{9, 3})
	short.Data = short.Data[:len(short.Data)-3]
	back, outer := xor(point{1, 1}, point{9, 2}, point{5, 3}), xor(point{1, 1}, point{9, 2})
	back.maxTime, outer.maxTime = 9, 8
	nh := native(t, histogramSample{1, hist(1, 0, 1)}, histogramSample{9, hist(1, 0, 2)})[0]
	cut, late := nh, nh
	cut.Data, late.minTime = nh.Data[:len(nh.Data)-8], 2
	within := native(t, histogramSample{1, hist(1, 0, 1)}, histogramSample{7, hist(1, 0, 2)}, histogramSample{5, hist(1, 0, 3)}, histogramSample{9, hist(1, 0, 3)})[0]
	ends := xor(point{9, 1})
	ends.maxTime = 8
	for _, c := range []struct {
		name string
		in   []stored
		want string
	}{
		{"another encoding", []stored{data(4, "\x00\x01xyz")}, "the chunk from 1 to 9 at byte 77 of segment 000003: encoding 4 is not one of floats"},
		{"no header", []stored{data(chunkenc.EncXOR, "\x00")}, "it has 1 bytes"},
		{"nothing", []stored{data(chunkenc.EncFloatHistogram, "")}, "the chunk from 1 to 9"},
		{"cut", []stored{short}, "the chunk from 1 to 9 at byte 0 of segment 000001: EOF"},
		{"back in time", []stored{back}, "go back in time at 5"},
		{"longer than declared", []stored{outer}, "a sample at 9, which is not in its range"},
		{"ends before it begins", []stored{ends}, "it ends before it begins"},
		{"overlap", []stored{xor(point{1, 1}, point{5, 1}), xor(point{5, 1})}, "the chunk from 5 to 5 at byte 0 of segment 000001: it overlaps"},
		{"order", []stored{xor(point{5, 1}), xor(point{1, 1})}, "it overlaps the chunk before, or is out of order: that ends at 5"},
		{"histogram cut", []stored{cut}, "the chunk from 1 to 9 at byte 0 of segment 000001: EOF"},
		{"histogram too early", []stored{late}, "a sample at 1, which is not in its range"},
		{"histogram back in time", native(t, histogramSample{9, hist(1, 0, 1)}, histogramSample{5, hist(1, 0, 2)}), "it ends before it begins"},
		{"histogram back in between", []stored{within}, "go back in time at 5"},
		{"buckets without end", []stored{data(chunkenc.EncFloatHistogram, "\x00\x01\x00\xff\x00\x00\x00\x00\x00\x00\x00\x00\x0f\xff\xff\xff\xff\xff\xff\xff\xff\xff")}, "the chunk from 1 to 9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if made, err := resample(c.in, 0, 100); err == nil || !strings.Contains(err.Error(), c.want) || made != nil {
				t.Errorf("want an error with %q, got %v", c.want, err)
			}
		})
	}
	agg := func(a backend.AggregateChunks) stored {
		return stored{minTime: 1, maxTime: 9, Encoded: backend.Encoded{Encoding: aggregate.Encoding, Data: aggregate.Append(nil, &a)}}
	}
	for _, c := range []struct {
		in   stored
		want string
	}{
		{data(aggregate.Encoding, "\x00\x00"), "the chunk from 1 to 9 at byte 77 of segment 000003: aggregate chunk is corrupt: it ends before min"},
		{agg(backend.AggregateChunks{Count: short.Encoded}), "its count: EOF"},
		{agg(backend.AggregateChunks{Min: back.Encoded}), "its min: its samples go back in time at 5"},
		{agg(backend.AggregateChunks{Sum: xor(point{1, 1}, point{10, 1}).Encoded}), "its sum: it has a sample at 10"},
		{agg(backend.AggregateChunks{Counter: short.Encoded}), "its counter: EOF"},
		{agg(backend.AggregateChunks{Sum: xor(point{1, 1}).Encoded, Counter: nh.Encoded}), "its sum: encoding 1 is not one of histograms"},
		{agg(backend.AggregateChunks{Max: nh.Encoded}), "its max: encoding 3 is not one of floats"},
		{agg(backend.AggregateChunks{Count: nh.Encoded, Sum: nh.Encoded}), "its count: encoding 3 is not one of floats"},
		{agg(backend.AggregateChunks{Counter: cut.Encoded}), "its counter: EOF"},
	} {
		if made, err := resample([]stored{c.in}, 100, 1000); err == nil || !strings.Contains(err.Error(), c.want) || made != nil {
			t.Errorf("want an error with %q, got %v", c.want, err)
		}
	}
}

// FuzzChunks: no chunk makes it crash, and what comes out is in order and can be decoded.
func FuzzChunks(f *testing.F) {
	for _, c := range append(native(f, histogramSample{10, hist(1, 0, 1, 5)}, histogramSample{110, hist(1, 0, 2, 7)}, histogramSample{210, hist(0, 0, 2, 7)}), xor(point{1, 1}, point{500, 7}, point{1000, staleNaN}, point{2000, 3}), custom(f, 7)) {
		f.Add(false, byte(c.Encoding), c.Data, []byte{0, 1})
		if made, err := resample([]stored{c}, 0, 100); err == nil {
			for _, s := range store(made) {
				f.Add(true, byte(s.Encoding), s.Data, c.Data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, aggregates bool, encoding byte, first, second []byte) {
		in := []stored{
			{minTime: math.MinInt64 / 4, maxTime: 1 << 20, Encoded: backend.Encoded{Encoding: chunkenc.Encoding(encoding), Data: first}},
			{minTime: 1<<20 + 1, maxTime: 1 << 40, Encoded: backend.Encoded{Encoding: chunkenc.Encoding(encoding), Data: second}},
		}
		from, to := int64(0), int64(300_000)
		if aggregates {
			from, to = 300_000, 3_600_000
		}
		made, err := resample(in[:1], from, to)
		if err == nil {
			var two []backend.Chunk
			if two, err = resample(in, from, to); err == nil {
				made = two
			}
		}
		end := int64(math.MinInt64)
		for i, c := range made {
			if c.MinTime <= end || c.MaxTime < c.MinTime {
				t.Fatalf("chunk %d of %d is from %d to %d, after one to %d", i, len(made), c.MinTime, c.MaxTime, end)
			}
			end = c.MaxTime
		}
		for _, s := range store(made) {
			a, err := aggregate.Parse(s.Data)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range []backend.Encoded{a.Count, a.Sum, a.Min, a.Max, a.Counter} {
				if isHistogram(e) {
					decodedHistograms(t, e)
				} else {
					decoded(t, e)
				}
			}
		}
	})
}

// TestHistogramOracle: whatever the schemas, zero buckets and resets, no sample is lost or
// counted twice, and each chunk's counter comes to what the samples in it do.
func TestHistogramOracle(t *testing.T) {
	const resolution = 1000
	cut := 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 3))
		var in []histogramSample
		at, schema, zero := r.Int64N(5000), int32(r.IntN(2)), 0.001
		buckets := []float64{1, 1, 1}
		for range 200 + r.IntN(800) {
			switch r.IntN(60) {
			case 0:
				schema = 1 - schema
			case 1:
				zero = []float64{0.001, 0.01}[r.IntN(2)]
			case 2, 3:
				buckets = []float64{0, 1, 0}
			}
			buckets[r.IntN(3)] += float64(r.IntN(10))
			in = append(in, histogramSample{at, hist(schema, zero, slices.Clone(buckets)...)})
			at += 1 + r.Int64N(400)
		}
		stored := native(t, in...)
		made, err := raw(stored, resolution)
		if err != nil {
			t.Fatal(err)
		}
		// The library knows about resets what the chunks say: the first of each may be one.
		var all []histogramSample
		for _, s := range stored {
			all = append(all, decodedHistograms(t, s.Encoded)...)
		}
		samples, i, before, total := 0, 0, (*histogram.FloatHistogram)(nil), 0.0
		for k, c := range made {
			if k > 0 && made[k-1].MaxTime >= c.MinTime {
				t.Fatalf("seed %d: chunks overlap", seed)
			}
			counter, sum, count := decodedHistograms(t, c.Aggregates.Counter), decodedHistograms(t, c.Aggregates.Sum), decoded(t, c.Aggregates.Count)
			// A counter either begins anew, at the first sample, or goes on.
			if k > 0 && counter[0].h.Count < total {
				before, total = nil, 0
			} else if k > 0 {
				cut++
			}
			for j, p := range count {
				n, observed := 0.0, 0.0
				for ; i < len(all) && all[i].t <= p.t; i++ {
					h := all[i].h
					switch {
					case before == nil, h.DetectReset(before):
						total += h.Count
					default:
						total += h.Count - before.Count
					}
					before = h
					n, observed = n+1, observed+h.Count
				}
				if n != p.v || sum[j].h.Count != observed || counter[j].h.Count != total {
					t.Fatalf("seed %d: window to %d of chunk %d: %g samples with %g in all and a counter of %g, want %g, %g, %g", seed, p.t, k, p.v, sum[j].h.Count, counter[j].h.Count, n, observed, total)
				}
				samples += int(n)
			}
		}
		if samples != len(in) {
			t.Fatalf("seed %d: %d of %d samples", seed, samples, len(in))
		}
	}
	if cut < 20 {
		t.Errorf("%d counters went on in another chunk", cut)
	}
}
