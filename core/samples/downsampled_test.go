// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package samples

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
)

// parseAggregates reads an aggregate chunk as it lies in a block, without its
// encoding byte 0xff: for count, sum, min, max and counter a length as uvarint,
// and if that is not 0 an encoding byte and as many bytes.
func parseAggregates(t *testing.T, b []byte) *backend.AggregateChunks {
	t.Helper()
	var a backend.AggregateChunks
	for _, e := range []*backend.Encoded{&a.Count, &a.Sum, &a.Min, &a.Max, &a.Counter} {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > 0 && uint64(len(b)) < uint64(k)+1+n {
			t.Fatal("short aggregate chunk")
		}
		if b = b[k:]; n > 0 {
			e.Encoding, e.Data = chunkenc.Encoding(b[0]), b[1:1+n]
			b = b[1+n:]
		}
	}
	if len(b) > 0 {
		t.Fatalf("%d bytes are left", len(b))
	}
	return &a
}

// recorded is one series of a downsampled block: its chunks as bytes and as the
// program that wrote them decodes them.
type recorded struct {
	Labels map[string]string `json:"labels"`
	Chunks []struct {
		Payload                       []byte `json:"payload"`
		MinTime                       int64  `json:"min_time"`
		MaxTime                       int64  `json:"max_time"`
		Count, Sum, Min, Max, Counter *struct {
			Encoding chunkenc.Encoding   `json:"encoding"`
			Samples  [][]json.RawMessage `json:"samples"`
		}
	} `json:"chunks"`
	// Truth is, for counters, the first value and all increases up to a time,
	// computed from the raw samples.
	Truth [][2]float64 `json:"truth"`
}

func recordings(t *testing.T) []recorded {
	t.Helper()
	f, err := os.Open("testdata/downsampled.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []recorded
	s := bufio.NewScanner(z)
	s.Buffer(nil, 1<<23)
	for s.Scan() {
		var r recorded
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	if s.Err() != nil || len(out) < 9 {
		t.Fatal(len(out), s.Err())
	}
	return out
}

func (r *recorded) chunks(t *testing.T) []Chunk {
	var out []Chunk
	for _, c := range r.Chunks {
		out = append(out, Chunk{Chunk: backend.Chunk{MinTime: c.MinTime, MaxTime: c.MaxTime, Aggregates: parseAggregates(t, c.Payload)}})
	}
	return Sort(out)
}

// number reads a value of the recordings; a histogram is its count and sum.
func number(t *testing.T, m json.RawMessage) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(m, &v); err != nil {
		t.Fatal(err)
	}
	switch v := v.(type) {
	case map[string]any:
		return fmt.Sprintf("h %v %v", v["count"], v["sum"])
	case string:
		f, err := strconv.ParseFloat(v, 64)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(f)
	}
	return fmt.Sprint(v)
}

func got(it chunkenc.Iterator, vt chunkenc.ValueType) string {
	if vt == chunkenc.ValFloat {
		_, v := it.At()
		return fmt.Sprint(v)
	}
	_, h := it.AtFloatHistogram(nil)
	return fmt.Sprintf("h %v %v", h.Count, h.Sum)
}

func TestRecordedAggregates(t *testing.T) {
	for _, r := range recordings(t) {
		for fn, pick := range map[string]int{"count_over_time": 0, "sum_over_time": 1, "min_over_time": 2, "max": 3} {
			var want []string
			complete := true
			for _, c := range r.Chunks {
				a := [...]*struct {
					Encoding chunkenc.Encoding   `json:"encoding"`
					Samples  [][]json.RawMessage `json:"samples"`
				}{c.Count, c.Sum, c.Min, c.Max}[pick]
				if a == nil {
					complete = false
					continue
				}
				for _, s := range a.Samples {
					want = append(want, string(s[0])+" "+number(t, s[1]))
				}
			}
			o := all()
			o.Func = fn
			bad := 0
			o.OnCorrupt = func(int32, error) { bad++ }
			it := NewIterator(r.chunks(t), o, nil)
			var have []string
			for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
				have = append(have, fmt.Sprint(it.AtT())+" "+got(it, vt))
			}
			if !slices.Equal(want, have) {
				t.Errorf("%v %s: %d samples, want %d", r.Labels, fn, len(have), len(want))
			}
			// Histograms have no min and max; nothing may be left out silently.
			if complete != (bad == 0) {
				t.Errorf("%v %s: %d chunks reported", r.Labels, fn, bad)
			}
		}
	}
}

func TestRecordedAverages(t *testing.T) {
	for _, r := range recordings(t) {
		it := NewIterator(r.chunks(t), all(), nil)
		for _, c := range r.Chunks {
			for i, s := range c.Sum.Samples {
				vt := it.Next()
				if vt == chunkenc.ValNone || fmt.Sprint(it.AtT()) != string(s[0]) {
					t.Fatalf("%v: %s at %d, want %s", r.Labels, vt, it.AtT(), s[0])
				}
				n, _ := strconv.ParseFloat(number(t, c.Count.Samples[i][1]), 64)
				var want, have float64
				if vt == chunkenc.ValFloat {
					_, have = it.At()
					sum, _ := strconv.ParseFloat(number(t, s[1]), 64)
					want = sum / n
				} else {
					for range 2 { // twice: reading changes nothing
						_, h := it.AtFloatHistogram(nil)
						have = h.Count
					}
					var h struct{ Count float64 }
					if err := json.Unmarshal(s[1], &h); err != nil {
						t.Fatal(err)
					}
					want = h.Count / n
				}
				if math.Float64bits(want) != math.Float64bits(have) && !(math.IsNaN(want) && math.IsNaN(have)) {
					t.Fatalf("%v at %s: %g, want %g", r.Labels, s[0], have, want)
				}
			}
		}
		if it.Next() != chunkenc.ValNone || it.Err() != nil {
			t.Errorf("%v: more samples, or %v", r.Labels, it.Err())
		}
	}
}

// TestRecordedCounters holds the decoded counters against what the raw samples
// add up to, resets on chunk edges and all.
func TestRecordedCounters(t *testing.T) {
	n := 0
	for _, r := range recordings(t) {
		if len(r.Truth) == 0 {
			continue
		}
		n++
		o := all()
		o.Func = "rate"
		o.OnCorrupt = func(_ int32, err error) { t.Error(r.Labels, err) }
		it := NewIterator(r.chunks(t), o, nil)
		for _, want := range r.Truth {
			if it.Next() != chunkenc.ValFloat {
				t.Fatalf("%v ends before %g", r.Labels, want[0])
			}
			if at, v := it.At(); float64(at) != want[0] || math.Abs(v-want[1]) > 1e-9*want[1] {
				t.Fatalf("%v: %d:%g, want %g:%g", r.Labels, at, v, want[0], want[1])
			}
		}
		if it.Next() != chunkenc.ValNone {
			t.Errorf("%v goes on", r.Labels)
		}
		// A cut changes which samples there are, not their values.
		k := len(r.Truth) / 3
		o.MinTime, o.MaxTime = int64(r.Truth[k][0]), int64(r.Truth[2*k][0])
		it = NewIterator(r.chunks(t), o, it)
		for i := k; i <= 2*k; i++ {
			if it.Next() != chunkenc.ValFloat {
				t.Fatal("cut too short")
			}
			if at, v := it.At(); float64(at) != r.Truth[i][0] || math.Abs(v-r.Truth[i][1]) > 1e-9*r.Truth[i][1] {
				t.Fatalf("cut: %d:%g, want %v", at, v, r.Truth[i])
			}
		}
		if it.Next() != chunkenc.ValNone || it.Seek(0) != chunkenc.ValNone {
			t.Error("cut too long")
		}
	}
	if n != 3 {
		t.Errorf("%d counters", n)
	}
}

// TestChunks runs testdata/chunks: each input line is a chunk, its kind first (raw,
// or the aggregates as name=... separated by |), then samples as time:value.
func TestChunks(t *testing.T) {
	datadriven.RunTest(t, "testdata/chunks", func(t *testing.T, d *datadriven.TestData) string {
		var chunks []Chunk
		for line := range strings.Lines(d.Input) {
			c := Chunk{Origin: int32(len(chunks)), Chunk: backend.Chunk{MinTime: math.MaxInt64, MaxTime: math.MinInt64}}
			for part := range strings.SplitSeq(strings.TrimSpace(line), "|") {
				name, rest, _ := strings.Cut(strings.TrimSpace(part), " ")
				var points []point
				for f := range strings.FieldsSeq(rest) {
					at, v, _ := strings.Cut(f, ":")
					p := point{}
					p.t, _ = strconv.ParseInt(at, 10, 64)
					if p.v, _ = strconv.ParseFloat(v, 64); v == "stale" {
						p.v = math.Float64frombits(value.StaleNaN)
					}
					points = append(points, p)
					c.MaxTime = max(c.MaxTime, p.t)
					if name != "counter" || len(points) == 2 {
						c.MinTime = min(c.MinTime, p.t)
					}
				}
				e := backend.Encoded{Encoding: chunkenc.EncXOR, Data: encodeXOR(points...)}
				if name == "raw" {
					c.Raw = e
					continue
				}
				if c.Aggregates == nil {
					c.Aggregates = &backend.AggregateChunks{}
				}
				*map[string]*backend.Encoded{
					"count": &c.Aggregates.Count, "sum": &c.Aggregates.Sum, "min": &c.Aggregates.Min,
					"max": &c.Aggregates.Max, "counter": &c.Aggregates.Counter,
				}[name] = e
			}
			chunks = append(chunks, c)
		}
		var out strings.Builder
		o := all()
		if d.HasArg("func") {
			d.ScanArgs(t, "func", &o.Func)
		}
		if d.HasArg("from") {
			d.ScanArgs(t, "from", &o.MinTime)
		}
		o.OnCorrupt = func(origin int32, err error) { fmt.Fprintf(&out, "chunk %d: %s\n", origin, err) }
		it := NewIterator(Sort(chunks), o, nil)
		if d.HasArg("seek") {
			var to int64
			d.ScanArgs(t, "seek", &to)
			it.Seek(to)
			at, v := it.At()
			fmt.Fprintf(&out, "%d:%g ", at, v)
		}
		for it.Next() != chunkenc.ValNone {
			at, v := it.At()
			if value.IsStaleNaN(v) {
				fmt.Fprintf(&out, "%d:stale ", at)
				continue
			}
			fmt.Fprintf(&out, "%d:%g ", at, v)
		}
		return strings.TrimSpace(out.String()) + "\n"
	})
}

// TestSeekEqualsNext: over counters, too, it makes no difference how one gets to a
// sample.
func TestSeekEqualsNext(t *testing.T) {
	for _, r := range recordings(t) {
		for _, fn := range []string{"rate", "sum_over_time", ""} {
			o := all()
			o.Func = fn
			o.OnCorrupt = func(int32, error) {}
			one := NewIterator(r.chunks(t), o, nil)
			var times []int64
			values := map[int64]string{}
			for vt := one.Next(); vt != chunkenc.ValNone; vt = one.Next() {
				times = append(times, one.AtT())
				values[one.AtT()] = got(one, vt)
			}
			rnd := rand.New(rand.NewPCG(1, 8))
			for range 20 {
				it := NewIterator(r.chunks(t), o, nil)
				for at := int64(0); ; {
					to := at + rnd.Int64N(3e8)
					if at == 0 {
						to = times[rnd.IntN(len(times))]
					}
					vt := it.Seek(to)
					k, _ := slices.BinarySearch(times, to)
					if k == len(times) {
						if vt != chunkenc.ValNone {
							t.Fatal("there is more")
						}
						break
					}
					if at = it.AtT(); at != times[k] || got(it, vt) != values[at] {
						t.Fatalf("%v %s Seek(%d): %d:%s, want %d:%s", r.Labels, fn, to, at, got(it, vt), times[k], values[times[k]])
					}
				}
			}
		}
	}
}

// TestDownsampledHintsAreSafe: histograms of a counter aggregate say "no reset" only
// of their own predecessor.
func TestDownsampledHintsAreSafe(t *testing.T) {
	for _, r := range recordings(t) {
		if r.Labels["__name__"] != "nh_int" {
			continue
		}
		o := all()
		o.Func = "increase"
		it := NewIterator(r.chunks(t), o, nil)
		var prev *histogram.FloatHistogram
		n := 0
		for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
			_, h := it.AtFloatHistogram(nil)
			if h.CounterResetHint == histogram.NotCounterReset && (prev == nil || h.DetectReset(prev)) {
				t.Fatalf("hint of no reset at %d", it.AtT())
			}
			prev = h.Copy()
			prev.CounterResetHint = histogram.UnknownCounterReset
			n++
			if n%20 == 0 {
				vt = it.Seek(it.AtT() + 10*3600000)
				if vt == chunkenc.ValNone {
					break
				}
				if _, h := it.AtFloatHistogram(nil); h.CounterResetHint != histogram.UnknownCounterReset {
					t.Fatalf("hint %d after Seek", h.CounterResetHint)
				}
				_, prev = it.AtFloatHistogram(&histogram.FloatHistogram{})
			}
		}
		if n < 100 {
			t.Errorf("%d histograms", n)
		}
	}
}

// TestCounts: of a window its count, of a raw sample 1, whatever it is, and of a stale marker
// what it was.
func TestCounts(t *testing.T) {
	for _, r := range recordings(t) {
		chunks := r.chunks(t)
		var want []string
		for _, c := range r.Chunks {
			for _, s := range c.Count.Samples {
				want = append(want, string(s[0])+" "+number(t, s[1]))
			}
		}
		last := chunks[len(chunks)-1].MaxTime
		stale := math.Float64frombits(value.StaleNaN)
		floats, hists := chunkenc.NewXORChunk(), chunkenc.NewHistogramChunk()
		fa, err := floats.Appender()
		if err != nil {
			t.Fatal(err)
		}
		ha, err := hists.Appender()
		if err != nil {
			t.Fatal(err)
		}
		for i := range int64(100) {
			v, n := float64(i), "1"
			h := &histogram.Histogram{Count: 3, Sum: 2, Schema: 1, ZeroThreshold: 1e-100, PositiveSpans: []histogram.Span{{Length: 2}}, PositiveBuckets: []int64{1, 1}}
			if i == 99 { // the library begins a chunk after it
				v, n = stale, "NaN"
				h = &histogram.Histogram{Sum: stale}
			}
			fa.Append(last+1+i, v)
			if _, _, ha, err = ha.AppendHistogram(nil, last+200+i, h, false); err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprint(last+1+i)+" "+n)
		}
		for i := range int64(100) {
			n := "1"
			if i == 99 {
				n = "NaN"
			}
			want = append(want, fmt.Sprint(last+200+i)+" "+n)
		}
		for _, c := range []struct {
			chunk chunkenc.Chunk
			first int64
		}{{floats, last + 1}, {hists, last + 200}} {
			chunks = append(chunks, Chunk{Chunk: backend.Chunk{MinTime: c.first, MaxTime: c.first + 99, Raw: backend.Encoded{Encoding: c.chunk.Encoding(), Data: c.chunk.Bytes()}}})
		}
		o := all()
		o.Func, o.Counts = "sum_over_time", true
		o.OnCorrupt = func(_ int32, err error) { t.Error(err) }
		it := NewIterator(chunks, o, nil)
		var have []string
		for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
			if vt != chunkenc.ValFloat {
				t.Fatalf("%v at %d", vt, it.AtT())
			}
			have = append(have, fmt.Sprint(it.AtT())+" "+got(it, vt))
		}
		if !slices.Equal(want, have) {
			t.Errorf("%v: %d samples, want %d", r.Labels, len(have), len(want))
		}
	}
}
