// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package samples

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// point is a sample of a kind; histograms are made from v.
type point struct {
	t    int64
	v    float64
	kind chunkenc.Encoding
}

func intHistogram(v float64) *histogram.Histogram {
	n := int64(v)
	return &histogram.Histogram{
		Schema: 1, Count: uint64(3 * n), Sum: v, ZeroThreshold: 0.001, ZeroCount: uint64(n),
		PositiveSpans: []histogram.Span{{Offset: 2, Length: 1}, {Offset: 3, Length: 1}}, PositiveBuckets: []int64{n, 0},
	}
}

func encodeXOR(points ...point) []byte {
	c := chunkenc.NewXORChunk()
	app, _ := c.Appender()
	for _, p := range points {
		app.Append(p.t, p.v)
	}
	return c.Bytes()
}

// encode makes one chunk; n is how many points it took.
func encode(t testing.TB, points []point) (Chunk, int) {
	t.Helper()
	kind := points[0].kind
	n := 0
	var data []byte
	switch kind {
	case chunkenc.EncXOR:
		for n < len(points) && points[n].kind == kind {
			n++
		}
		data = encodeXOR(points[:n]...)
	default:
		var c chunkenc.Chunk = chunkenc.NewHistogramChunk()
		if kind == chunkenc.EncFloatHistogram {
			c = chunkenc.NewFloatHistogramChunk()
		}
		app, err := c.Appender()
		if err != nil {
			t.Fatal(err)
		}
		for n < len(points) && points[n].kind == kind {
			var (
				over     chunkenc.Chunk
				recoded  bool
				appended chunkenc.Appender
			)
			if kind == chunkenc.EncHistogram {
				over, recoded, appended, err = app.AppendHistogram(nil, points[n].t, intHistogram(points[n].v), true)
			} else {
				over, recoded, appended, err = app.AppendFloatHistogram(nil, points[n].t, intHistogram(points[n].v).ToFloat(nil), true)
			}
			if err != nil || over != nil || recoded {
				break // a counter reset ends a chunk
			}
			app = appended
			n++
		}
		data = c.Bytes()
	}
	return Chunk{Chunk: backend.Chunk{
		MinTime: points[0].t, MaxTime: points[n-1].t, Raw: backend.Encoded{Encoding: kind, Data: data},
	}}, n
}

// cut encodes points as chunks of at most per samples.
func cut(t testing.TB, points []point, per int) []Chunk {
	t.Helper()
	var out []Chunk
	for len(points) > 0 {
		c, n := encode(t, points[:min(per, len(points))])
		out = append(out, c)
		points = points[n:]
	}
	return out
}

// series makes up a series of all kinds of samples.
func series(r *rand.Rand, n int, kinds ...chunkenc.Encoding) []point {
	var (
		out  []point
		t    = r.Int64N(100000) - 50000
		v    = float64(r.IntN(1000))
		kind = kinds[0]
	)
	for range n {
		switch r.IntN(20) {
		case 0:
			t += r.Int64N(1 << r.IntN(40))
		case 1:
			v = float64(r.IntN(10))
		case 2:
			kind = kinds[r.IntN(len(kinds))]
		}
		t += 15000 + r.Int64N(1+int64(r.IntN(2))*100)
		v += float64(r.IntN(100))
		p := point{t: t, v: v, kind: kind}
		if kind == chunkenc.EncXOR {
			switch r.IntN(10) {
			case 0:
				p.v = math.Float64frombits(r.Uint64())
			case 1:
				p.v = math.Float64frombits(value.StaleNaN)
			case 2:
				p.v = v / 7
			}
		}
		out = append(out, p)
	}
	return out
}

var kinds = []chunkenc.Encoding{chunkenc.EncXOR, chunkenc.EncHistogram, chunkenc.EncFloatHistogram}

func all() Options { return Options{MinTime: math.MinInt64, MaxTime: math.MaxInt64} }

// show describes the current sample to the bit, but for hints.
func show(it chunkenc.Iterator, vt chunkenc.ValueType) string {
	at := it.AtT()
	switch vt {
	case chunkenc.ValFloat:
		t, v := it.At()
		return fmt.Sprintf("%d/%d:%x", t, at, math.Float64bits(v))
	case chunkenc.ValHistogram:
		t, h := it.AtHistogram(nil)
		_, f := it.AtFloatHistogram(&histogram.FloatHistogram{})
		return fmt.Sprintf("%d/%d:%s %s", t, at, h, f)
	case chunkenc.ValFloatHistogram:
		t, h := it.AtFloatHistogram(nil)
		return fmt.Sprintf("%d/%d:%s", t, at, h)
	}
	return ""
}

func (p point) String() string {
	switch p.kind {
	case chunkenc.EncHistogram:
		h := intHistogram(p.v)
		return fmt.Sprintf("%d/%d:%s %s", p.t, p.t, h, h.ToFloat(nil))
	case chunkenc.EncFloatHistogram:
		return fmt.Sprintf("%d/%d:%s", p.t, p.t, intHistogram(p.v).ToFloat(nil))
	}
	return fmt.Sprintf("%d/%d:%x", p.t, p.t, math.Float64bits(p.v))
}

// hint returns what the current histogram says about resets.
func hint(it chunkenc.Iterator, vt chunkenc.ValueType) histogram.CounterResetHint {
	switch vt {
	case chunkenc.ValHistogram:
		_, h := it.AtHistogram(nil)
		_, f := it.AtFloatHistogram(nil)
		if f.CounterResetHint != h.CounterResetHint {
			return 99
		}
		return h.CounterResetHint
	case chunkenc.ValFloatHistogram:
		_, h := it.AtFloatHistogram(nil)
		return h.CounterResetHint
	}
	return histogram.UnknownCounterReset
}

// walk compares an iterator with points, by Next and Seek at random.
func walk(t *testing.T, r *rand.Rand, it chunkenc.Iterator, want []point) {
	t.Helper()
	i := -1
	for {
		prev := i
		var vt chunkenc.ValueType
		if r.IntN(6) == 0 {
			to := r.Int64N(3000000) - 1500000
			if i >= 0 {
				to = want[i].t + r.Int64N(int64(1)<<(10+r.IntN(30))) - 20000
			}
			vt = it.Seek(to)
			i = max(i, 0)
			for i < len(want) && want[i].t < to {
				i++
			}
		} else {
			vt = it.Next()
			i++
		}
		if i >= len(want) {
			if vt != chunkenc.ValNone || it.Err() != nil || it.Next() != chunkenc.ValNone || it.Seek(0) != chunkenc.ValNone {
				t.Fatalf("more than %d samples, or an error: %v", len(want), it.Err())
			}
			return
		}
		if vt.ChunkEncoding() != want[i].kind || show(it, vt) != want[i].String() {
			t.Fatalf("sample %d is %s %q, want %q", i, vt, show(it, vt), want[i])
		}
		// "No reset" must be true of what came right before, if that was given out.
		if hint(it, vt) == histogram.NotCounterReset && prev >= 0 && i == prev+1 && (want[prev].kind != want[i].kind || want[prev].v > want[i].v) {
			t.Fatalf("sample %d after %d has hint %d", i, prev, hint(it, vt))
		}
		if hint(it, vt) == 99 {
			t.Fatal("hints of AtHistogram and AtFloatHistogram differ")
		}
	}
}

func TestSamplesSurvive(t *testing.T) {
	var reuse chunkenc.Iterator
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 3))
		points := series(r, r.IntN(300), kinds[:1+r.IntN(3)]...)
		chunks := cut(t, points, 1+r.IntN(150))
		if n := CountSamples(chunks); n != len(points) {
			t.Fatalf("seed %d: counted %d of %d", seed, n, len(points))
		}
		o := all()
		o.Func = []string{"", "rate", "sum_over_time", "max"}[r.IntN(4)]
		if len(points) > 0 && r.IntN(2) == 0 {
			o.MinTime = points[r.IntN(len(points))].t + r.Int64N(3) - 1
			o.MaxTime = points[r.IntN(len(points))].t + r.Int64N(3) - 1
			points = slices.DeleteFunc(slices.Clone(points), func(p point) bool { return p.t < o.MinTime || p.t > o.MaxTime })
		}
		reuse = NewIterator(Sort(chunks), o, reuse)
		t.Run(fmt.Sprint(seed), func(t *testing.T) { walk(t, r, reuse, points) })
	}
}

// TestOverlap spreads one set of samples over chunks that overlap and repeat it,
// in any order: the samples stay the same.
func TestOverlap(t *testing.T) {
	var reuse chunkenc.Iterator
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 4))
		points := series(r, 1+r.IntN(200), kinds[:1+r.IntN(3)]...)
		var chunks []Chunk
		missing := slices.Clone(points)
		for range 1 + r.IntN(6) {
			from := r.IntN(len(points))
			some := slices.Clone(points[from : from+1+r.IntN(len(points)-from)])
			some = slices.DeleteFunc(some, func(point) bool { return r.IntN(3) == 0 })
			missing = slices.DeleteFunc(missing, func(p point) bool {
				return slices.ContainsFunc(some, func(q point) bool { return q.t == p.t })
			})
			chunks = append(chunks, cut(t, some, 1+r.IntN(100))...)
		}
		chunks = append(chunks, cut(t, missing, 1+r.IntN(50))...)
		chunks = append(chunks, chunks[:r.IntN(len(chunks))]...)
		r.Shuffle(len(chunks), func(i, j int) { chunks[i], chunks[j] = chunks[j], chunks[i] })
		reuse = NewIterator(Sort(chunks), all(), reuse)
		t.Run(fmt.Sprint(seed), func(t *testing.T) { walk(t, r, reuse, points) })
	}
}

func bounds(s string) []Chunk {
	var out []Chunk
	for f := range strings.FieldsSeq(s) {
		var c Chunk
		if _, err := fmt.Sscanf(f, "%d-%d", &c.MinTime, &c.MaxTime); err != nil {
			panic(err)
		}
		out = append(out, c)
	}
	return out
}

func TestSplit(t *testing.T) {
	got := split(bounds("0-20 0-30 1-15 2-36 16-200 21-50 31-60 100-160"))
	want := [][]int32{{0, 5, 7}, {1, 6}, {2, 4}, {3}}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestSplitIsFirstFit compares with the plain search for the first lane.
func TestSplitIsFirstFit(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 10))
		var chunks []Chunk
		for range r.IntN(60) {
			from := r.Int64N(500)
			chunks = append(chunks, Chunk{Chunk: backend.Chunk{MinTime: from, MaxTime: from + r.Int64N(100)}})
		}
		slices.SortStableFunc(chunks, func(a, b Chunk) int { return int(a.MinTime - b.MinTime) })
		var want [][]int32
	next:
		for i := range chunks {
			for k, lane := range want {
				if chunks[lane[len(lane)-1]].MaxTime < chunks[i].MinTime {
					want[k] = append(lane, int32(i))
					continue next
				}
			}
			want = append(want, []int32{int32(i)})
		}
		if diff := gocmp.Diff(want, split(chunks)); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
	}
}

// TestManyLanes plays as many chunks of one range as a broken store may send.
func TestManyLanes(t *testing.T) {
	var chunks []Chunk
	for i := range 3000 {
		c, _ := encode(t, []point{{t: 0, v: 1, kind: chunkenc.EncXOR}, {t: int64(i + 1), v: 2, kind: chunkenc.EncXOR}, {t: 5000, v: 3, kind: chunkenc.EncXOR}})
		chunks = append(chunks, c)
	}
	if got := collect(t, NewIterator(Sort(chunks), all(), nil)); len(got) != 3002 {
		t.Errorf("%d samples", len(got))
	}
}

func TestSort(t *testing.T) {
	raw := func(from, to int64, origin int32, enc chunkenc.Encoding, data string) Chunk {
		return Chunk{Origin: origin, Chunk: backend.Chunk{MinTime: from, MaxTime: to, Raw: backend.Encoded{Encoding: enc, Data: []byte(data)}}}
	}
	agg := func(from, to int64, sum string) Chunk {
		return Chunk{Chunk: backend.Chunk{MinTime: from, MaxTime: to, Aggregates: &backend.AggregateChunks{Sum: backend.Encoded{Encoding: 1, Data: []byte(sum)}}}}
	}
	want := []Chunk{
		agg(0, 9, "a"), agg(0, 9, "b"),
		raw(0, 9, 1, 1, "a"), raw(0, 9, 0, 1, "b"), raw(0, 9, 0, 2, "a"), raw(0, 10, 2, 1, "a"), raw(5, 6, 0, 1, "x"),
	}
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 5))
		got := append(slices.Clone(want), agg(0, 9, "a"), raw(0, 9, 3, 1, "a"), raw(5, 6, 9, 1, "x"))
		r.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		if diff := gocmp.Diff(want, Sort(got)); diff != "" {
			t.Fatal(diff)
		}
	}
	if got := Sort(nil); len(got) != 0 {
		t.Error(got)
	}
}

// collect reads everything, and checks what holds for any input.
func collect(t testing.TB, it chunkenc.Iterator) (out []string) {
	t.Helper()
	last, first := int64(0), true
	for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
		if !first && it.AtT() <= last {
			t.Fatalf("time %d follows %d", it.AtT(), last)
		}
		first, last = false, it.AtT()
		s := show(it, vt)
		if vt == chunkenc.ValFloat {
			_, v := it.At()
			s = fmt.Sprintf("%d:%g", last, v)
		}
		out = append(out, s)
	}
	return out
}

func floatPoints(n int) []point {
	var out []point
	for i := range n {
		out = append(out, point{t: int64(i+1) * 1000, v: float64(i), kind: chunkenc.EncXOR})
	}
	return out
}

func TestCorruption(t *testing.T) {
	good := func() Chunk { c, _ := encode(t, floatPoints(100)); return c }
	var hists []point
	for i := range 50 {
		hists = append(hists, point{t: int64(i+1) * 1000, v: float64(i + 1), kind: chunkenc.EncHistogram})
	}
	hist := func() Chunk { c, _ := encode(t, hists); return c }
	back := encodeXOR(point{t: 1000, v: 1}, point{t: 2000, v: 2}, point{t: 3000, v: 3}, point{t: 2500, v: 4}, point{t: 4000, v: 5})
	same := encodeXOR(point{t: 1000, v: 1}, point{t: 1000, v: 2}, point{t: 3000, v: 3})
	sums := backend.Encoded{Encoding: 1, Data: encodeXOR(point{t: 1000, v: 10}, point{t: 2000, v: 20}, point{t: 3000, v: 30})}
	for name, c := range map[string]struct {
		chunk Chunk
		fn    string
		least int
		most  int
		text  string
	}{
		"cut off":               {chunk: change(good(), func(c *Chunk) { c.Raw.Data = c.Raw.Data[:len(c.Raw.Data)/2] }), least: 20, most: 80, text: "end before"},
		"no bytes":              {chunk: change(good(), func(c *Chunk) { c.Raw.Data = nil }), text: "end before"},
		"header only":           {chunk: change(good(), func(c *Chunk) { c.Raw.Data = c.Raw.Data[:2] }), text: "end before"},
		"too early":             {chunk: change(good(), func(c *Chunk) { c.MinTime = 1001 }), text: "outside"},
		"too late":              {chunk: change(good(), func(c *Chunk) { c.MaxTime = 50999 }), least: 50, most: 50, text: "outside"},
		"inverted bounds":       {chunk: change(good(), func(c *Chunk) { c.MinTime, c.MaxTime = c.MaxTime, c.MinTime }), text: "outside"},
		"time goes back":        {chunk: change(good(), func(c *Chunk) { c.Raw.Data = back }), least: 3, most: 3, text: "time 2500 follows 3000"},
		"time stands still":     {chunk: change(good(), func(c *Chunk) { c.Raw.Data = same }), least: 1, most: 1, text: "time 1000 follows 1000"},
		"nothing in it":         {chunk: change(good(), func(c *Chunk) { c.Raw = backend.Encoded{} }), text: "neither"},
		"unknown encoding":      {chunk: change(good(), func(c *Chunk) { c.Raw.Encoding = 77 }), text: "encoding 77"},
		"histogram cut off":     {chunk: change(hist(), func(c *Chunk) { c.Raw.Data = c.Raw.Data[:len(c.Raw.Data)/2] }), least: 5, most: 45, text: "EOF"},
		"histogram too late":    {chunk: change(hist(), func(c *Chunk) { c.MaxTime = 9999 }), least: 9, most: 9, text: "outside"},
		"histogram layout":      {chunk: change(hist(), func(c *Chunk) { c.Raw.Data = c.Raw.Data[:6] }), text: "end before"},
		"histogram no bytes":    {chunk: change(hist(), func(c *Chunk) { c.Raw.Data = nil }), text: "end before"},
		"four thousand million": {chunk: change(hist(), func(c *Chunk) { c.Raw.Data = hugeLayout }), text: "span of 4294967295"},
		"aggregate is absent": {chunk: change(good(), func(c *Chunk) {
			c.Raw, c.Aggregates = backend.Encoded{}, &backend.AggregateChunks{Sum: sums}
		}), fn: "min", text: "neither"},
		"average without counts": {chunk: change(good(), func(c *Chunk) {
			c.Raw, c.Aggregates = backend.Encoded{}, &backend.AggregateChunks{Sum: sums}
		}), text: "neither"},
		"counts end first": {chunk: change(good(), func(c *Chunk) {
			n := backend.Encoded{Encoding: 1, Data: encodeXOR(point{t: 1000, v: 10}, point{t: 2000, v: 20})}
			c.Raw, c.Aggregates = backend.Encoded{}, &backend.AggregateChunks{Sum: sums, Count: n}
		}), least: 2, most: 2, text: "different timestamps"},
		"sums end first": {chunk: change(good(), func(c *Chunk) {
			n := backend.Encoded{Encoding: 1, Data: encodeXOR(point{t: 1000, v: 1}, point{t: 2000, v: 1}, point{t: 3000, v: 1}, point{t: 4000, v: 1})}
			c.Raw, c.Aggregates = backend.Encoded{}, &backend.AggregateChunks{Sum: sums, Count: n}
		}), least: 3, most: 3, text: "different timestamps"},
		"counts of other windows": {chunk: change(good(), func(c *Chunk) {
			n := backend.Encoded{Encoding: 1, Data: encodeXOR(point{t: 1000, v: 1}, point{t: 2001, v: 1}, point{t: 3000, v: 1})}
			c.Raw, c.Aggregates = backend.Encoded{}, &backend.AggregateChunks{Sum: sums, Count: n}
		}), least: 1, most: 1, text: "different timestamps"},
	} {
		t.Run(name, func(t *testing.T) {
			after, _ := encode(t, []point{{t: 1e9, v: 1, kind: chunkenc.EncXOR}})
			c.chunk.Origin = 7
			chunks := []Chunk{c.chunk, after}
			if c.fn == "min" || c.chunk.Aggregates != nil {
				after.Origin = 8
			}
			var told []string
			o := all()
			o.Func = c.fn
			o.OnCorrupt = func(origin int32, err error) {
				if origin != 7 {
					t.Errorf("origin is %d", origin)
				}
				told = append(told, err.Error())
			}
			it := NewIterator(chunks, o, nil)
			got := collect(t, it)
			if len(told) != 1 || !strings.Contains(told[0], c.text) {
				t.Errorf("told %q", told)
			}
			if n := len(got) - 1; n < c.least || n > c.most || got[n] != "1000000000:1" {
				t.Errorf("%d samples of it: %v", n, got)
			}
			if it.Err() != nil {
				t.Error(it.Err())
			}
			// Nobody listens: the samples before it, and an error.
			o.OnCorrupt = nil
			for _, overlapping := range [][]Chunk{chunks, {c.chunk, after, after}} {
				it = NewIterator(overlapping, o, it)
				if again := collect(t, it); len(again) != len(got)-1 || it.Err() == nil || !strings.Contains(it.Err().Error(), c.text) {
					t.Errorf("%d samples and error %v", len(again), it.Err())
				}
				if it.Next() != chunkenc.ValNone || it.Seek(0) != chunkenc.ValNone {
					t.Error("it goes on after an error")
				}
			}
		})
	}
}

func change(c Chunk, f func(*Chunk)) Chunk { f(&c); return c }

// hugeLayout is a histogram chunk of one sample, one span of 2^32-1 buckets: count
// 1, no flags, zero threshold 0, schema 0 (1 bit), one span (10 001), length as 56
// bits (11111110 ...).
var hugeLayout = []byte{
	0, 1, 0, 0,
	0b0_10_001_11, 0b111110_00, 0, 0, 0b00000011, 0xff, 0xff, 0xff, 0b11111100, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
}

func TestSeekPassesChunksUndecoded(t *testing.T) {
	chunks := cut(t, floatPoints(600), 100)
	for _, k := range []int{0, 1, 3} {
		chunks[k].Raw.Data = nil
	}
	o := all()
	o.OnCorrupt = func(_ int32, err error) { t.Error(err) }
	it := NewIterator(chunks, o, nil)
	for _, to := range []int64{250_000, 260_500, 401_000, 600_000} {
		if it.Seek(to) != chunkenc.ValFloat || it.AtT() != (to+999)/1000*1000 {
			t.Errorf("Seek(%d) is at %d", to, it.AtT())
		}
	}
	if it.Seek(600_001) != chunkenc.ValNone || it.Next() != chunkenc.ValNone {
		t.Error("there is more")
	}
}

func TestNoAllocationPerChunk(t *testing.T) {
	chunks := cut(t, floatPoints(6000), 120)
	it := NewIterator(chunks, all(), nil)
	if n := testing.AllocsPerRun(10, func() {
		it = NewIterator(chunks, all(), it)
		for it.Next() != chunkenc.ValNone {
			it.At()
		}
	}); n != 0 {
		t.Errorf("%g allocations for 50 chunks", n)
	}
}

// FuzzXOR holds the decoder against the library's on arbitrary bytes: the same
// samples, up to the first broken place.
func FuzzXOR(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 6))
	for range 8 {
		f.Add(encodeXOR(series(r, 60, chunkenc.EncXOR)...), int64(math.MinInt64), int64(math.MaxInt64), uint8(0))
	}
	f.Fuzz(func(t *testing.T, data []byte, from, to int64, n uint8) {
		if len(data) < 2 {
			return
		}
		var d xorDecoder
		if err := d.reset(data, math.MinInt64, math.MaxInt64, false); err != nil {
			t.Fatal(err)
		}
		c, err := chunkenc.FromData(chunkenc.EncXOR, data)
		if err != nil {
			t.Fatal(err)
		}
		lib := c.Iterator(nil)
		ts, vs := make([]int64, 1+n%64), make([]float64, 1+n%64)
		last, first := int64(0), true
		for {
			got, err := d.fill(ts, vs, from, to)
			for i := range got {
				for {
					if lib.Next() == chunkenc.ValNone {
						t.Fatalf("the library has no sample at %d", ts[i])
					}
					if lib.AtT() >= from {
						break
					}
				}
				lt, lv := lib.At()
				if lt != ts[i] || math.Float64bits(lv) != math.Float64bits(vs[i]) {
					t.Fatalf("%d:%x, the library has %d:%x", ts[i], math.Float64bits(vs[i]), lt, math.Float64bits(lv))
				}
				if lt > to || !first && lt <= last {
					t.Fatalf("time %d follows %d up to %d", lt, last, to)
				}
				first, last = false, lt
			}
			if err != nil || d.left == 0 {
				if _, err := d.fill(ts, vs, from, to); err != nil {
					t.Fatal("an ended chunk fails again")
				}
				return
			}
			if got < len(ts) {
				t.Fatal("not full, no end, no error")
			}
		}
	})
}

// FuzzIterator plays arbitrary bytes as chunks of every kind.
func FuzzIterator(f *testing.F) {
	r := rand.New(rand.NewPCG(2, 6))
	for _, k := range kinds {
		p := series(r, 40, k)
		c := cut(f, p, 40)
		f.Add(c[0].Raw.Data, c[len(c)-1].Raw.Data, uint8(k), c[0].MinTime, c[len(c)-1].MaxTime, uint8(0))
	}
	f.Add(hugeLayout, hugeLayout, uint8(2), int64(0), int64(9), uint8(3))
	funcs := []string{"", "rate", "min", "count_over_time", "sum_over_time"}
	f.Fuzz(func(t *testing.T, a, b []byte, enc uint8, from, to int64, mode uint8) {
		x, y := backend.Encoded{Encoding: chunkenc.Encoding(enc % 5), Data: a}, backend.Encoded{Encoding: chunkenc.Encoding(enc / 5 % 5), Data: b}
		chunks := []Chunk{{Chunk: backend.Chunk{MinTime: from, MaxTime: to, Raw: x}}, {Chunk: backend.Chunk{MinTime: from, MaxTime: to, Raw: y}}}
		if mode&1 == 1 {
			chunks[0].Raw, chunks[0].Aggregates = backend.Encoded{}, &backend.AggregateChunks{Count: y, Sum: x, Min: x, Counter: x}
		}
		o := all()
		o.Func = funcs[int(mode/2)%len(funcs)]
		o.OnCorrupt = func(int32, error) {}
		chunks = Sort(chunks)
		got := collect(t, NewIterator(chunks, o, nil))
		if len(got) > CountSamples(chunks) {
			t.Fatalf("%d samples, %d were claimed", len(got), CountSamples(chunks))
		}
		it := NewIterator(chunks, o, nil)
		if vt := it.Seek(from/2 + to/2); vt != chunkenc.ValNone && it.AtT() < from/2+to/2 {
			t.Fatal("Seek stays behind")
		}
	})
}

func BenchmarkIterator(b *testing.B) {
	var points []point
	r := rand.New(rand.NewPCG(1, 7))
	for i := range 2880 {
		points = append(points, point{t: int64(i)*30000 + r.Int64N(5), v: float64(i*17 + r.IntN(9)), kind: chunkenc.EncXOR})
	}
	chunks := cut(b, points, 120)
	report := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2880, "ns/sample")
	}
	b.Run("library", func(b *testing.B) {
		x := chunkenc.NewXORChunk()
		var it chunkenc.Iterator
		for b.Loop() {
			sum := 0.0
			for i := range chunks {
				x.Reset(chunks[i].Raw.Data)
				it = x.Iterator(it)
				for it.Next() != chunkenc.ValNone {
					_, v := it.At()
					sum += v
				}
			}
		}
		report(b)
	})
	b.Run("here", func(b *testing.B) {
		var it chunkenc.Iterator
		for b.Loop() {
			it = NewIterator(chunks, all(), it)
			sum := 0.0
			for it.Next() != chunkenc.ValNone {
				_, v := it.At()
				sum += v
			}
		}
		report(b)
	})
	b.Run("two lanes", func(b *testing.B) {
		double := append(slices.Clone(chunks), cut(b, points, 100)...)
		double = Sort(double)
		var it chunkenc.Iterator
		for b.Loop() {
			it = NewIterator(double, all(), it)
			for it.Next() != chunkenc.ValNone {
				it.At()
			}
		}
		report(b)
	})
}
