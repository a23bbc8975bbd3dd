// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/frame"
)

func randomEncoded(t testing.TB, r *rand.Rand, begin int64) Encoded {
	t.Helper()
	switch r.IntN(3) {
	case 0:
		c := chunkenc.NewXORChunk()
		app, err := c.Appender()
		if err != nil {
			t.Fatal(err)
		}
		for i := range 1 + r.Int64N(30) {
			app.Append(begin+i, r.Float64())
		}
		return Encoded{Data: c.Bytes(), Encoding: chunkenc.EncXOR}
	case 1:
		c := chunkenc.NewHistogramChunk()
		app, err := c.Appender()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := app.AppendHistogram(nil, begin, &histogram.Histogram{Count: 1, Sum: 2, ZeroCount: 1}, false); err != nil {
			t.Fatal(err)
		}
		return Encoded{Data: c.Bytes(), Encoding: chunkenc.EncHistogram}
	default:
		c := chunkenc.NewFloatHistogramChunk()
		app, err := c.Appender()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := app.AppendFloatHistogram(nil, begin, &histogram.FloatHistogram{Count: 1.5, Sum: 2}, false); err != nil {
			t.Fatal(err)
		}
		return Encoded{Data: c.Bytes(), Encoding: chunkenc.EncFloatHistogram}
	}
}

func randomBatch(t testing.TB, r *rand.Rand, n int) *Batch {
	t.Helper()
	b := NewBatch(n)
	var sb labels.ScratchBuilder
	for range n {
		sb.Reset()
		sb.Add("__name__", fmt.Sprintf("metric_%d", r.IntN(3)))
		for k := range r.IntN(5) {
			sb.Add(fmt.Sprintf("l%02d", k*3+r.IntN(3)), strings.Repeat("v", r.IntN(300)*r.IntN(2))+fmt.Sprint(r.IntN(3)))
		}
		s := Series{Labels: sb.Labels()}
		for pieces := 1 + r.IntN(3)/2; pieces > 0; pieces-- {
			s.Chunks = nil
			for k := range r.IntN(4) {
				begin := int64(k) * 1000 * int64(1-2*r.IntN(2))
				c := Chunk{MinTime: begin, MaxTime: begin + 500}
				if r.IntN(3) > 0 {
					c.Raw = randomEncoded(t, r, begin)
				} else {
					c.Aggregates = &AggregateChunks{}
					for kind := uint32(1); kind <= 5; kind++ {
						if r.IntN(2) == 0 {
							*aggregate(c.Aggregates, kind) = randomEncoded(t, r, begin)
						}
					}
				}
				s.Chunks = append(s.Chunks, c)
			}
			s.Chunks = slices.Clip(s.Chunks)
			b.Append(s)
		}
	}
	return b
}

// seriesOf is what a batch holds; pieces of one series are put together if joined.
func seriesOf(b *Batch, joined bool) []Series {
	var out []Series
	for i := range b.Len() {
		s := b.At(i)
		if n := len(out); joined && n > 0 && labels.Equal(out[n-1].Labels, s.Labels) {
			out[n-1].Chunks = append(slices.Clip(out[n-1].Chunks), s.Chunks...)
			continue
		}
		out = append(out, s)
	}
	return out
}

// diffSeries is "" if two lists are the same. It asks go-cmp only if they are not, which
// would be most of the time of these tests.
func diffSeries(want, got []Series) string {
	if len(want)+len(got) == 0 || reflect.DeepEqual(want, got) {
		return ""
	}
	return gocmp.Diff(want, got, gocmp.Comparer(func(a, b labels.Labels) bool { return labels.Equal(a, b) }))
}

// A batch is the same as a frame and as a list, whatever asks it, and again after
// another series was appended.
func TestFramed(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		want := randomBatch(t, r, r.IntN(20))
		enc, err := AppendFrame([]byte("before"), want)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got, err := NewFramed(enc[len("before"):])
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if _, ok := got.Frame(); !ok {
			t.Fatal("a framed batch says that it is none")
		}
		if got.Len() != want.Len() || got.Bytes() != want.Bytes() {
			t.Fatalf("seed %d: %d series of %d bytes, want %d of %d", seed, got.Len(), got.Bytes(), want.Len(), want.Bytes())
		}
		for range 2 {
			if diff := diffSeries(seriesOf(want, false), seriesOf(got, false)); diff != "" {
				t.Fatalf("seed %d: %s", seed, diff)
			}
		}
		for i := range got.Len() {
			if want, got := want.At(i).Chunks, got.Chunks(i); len(want)+len(got) > 0 && !reflect.DeepEqual(want, got) {
				t.Fatalf("seed %d: series %d: Chunks and At differ", seed, i)
			}
		}
		again, err := AppendFrame(nil, got)
		if err != nil || !slices.Equal(again, enc[len("before"):]) {
			t.Fatalf("seed %d: the frame of a framed batch is another one (%v)", seed, err)
		}
		more := Series{Labels: labels.FromStrings("z", "z")}
		got.Append(more)
		want.Append(more)
		if _, ok := got.Frame(); ok {
			t.Fatal("Frame lacks the series that was appended")
		}
		if diff := diffSeries(seriesOf(want, false), seriesOf(got, false)); diff != "" || got.Bytes() != want.Bytes() {
			t.Fatalf("seed %d: after Append: %s", seed, diff)
		}
	}
}

// randomReply is a reply of tier rows that does a bit of everything.
func randomReply(t testing.TB, r *rand.Rand, in *frame.Frame) *frame.Changes {
	t.Helper()
	var out frame.Reply
	out.Reset(in)
	for i := range in.Groups() {
		g := in.Group(i)
		if r.IntN(4) == 0 {
			continue
		}
		out.Group(i)
		for j := range g.Columns() {
			switch r.IntN(5) {
			case 0:
			case 1:
				out.Input(out.Intern(fmt.Sprintf("moved%02d", j)), j)
			case 2:
				out.Constant(g.Column(j).Name, out.Intern(strings.Repeat("c", 1+r.IntN(300))))
			case 3:
				for k, refs := 0, out.Refs(out.Intern(fmt.Sprintf("refs%02d", j))); k < len(refs); k++ {
					refs[k] = []uint32{0, g.Column(j).Ref(k), out.Intern("other")}[r.IntN(3)]
				}
			default:
				out.Input(g.Column(j).Name, j)
			}
		}
		switch r.IntN(5) {
		case 0:
			out.DropAll()
		case 1:
			for k := range g.Rows() {
				if r.IntN(2) == 0 {
					out.Drop(k)
				}
			}
		}
	}
	c := new(frame.Changes)
	if err := c.Parse(out.Append(nil), in, frame.TierRows); err != nil {
		t.Fatal(err)
	}
	return c
}

// A batch that was rewritten is what one gets by doing to each series what the reply says.
func TestRewritten(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		enc, err := AppendFrame(nil, randomBatch(t, r, r.IntN(20)))
		if err != nil {
			t.Fatal(err)
		}
		b, err := NewFramed(enc)
		if err != nil {
			t.Fatal(err)
		}
		view, _ := b.Frame()
		c := randomReply(t, r, view)
		got, err := b.Rewritten(c)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		want := NewBatch(0)
		for i := range b.Len() {
			group := view.GroupOf(i)
			g, row := c.Group(group), i-view.Group(group).First()
			if !g.Keeps(row) {
				continue
			}
			ls := labels.NewScratchBuilder(8)
			for j := range g.Columns() {
				if v := c.Symbol(g.Column(j).Ref(row)); v != "" {
					ls.Add(c.Symbol(g.Column(j).Name), v)
				}
			}
			want.Append(Series{Labels: ls.Labels(), Chunks: b.Chunks(i)})
		}
		if got.Len() != want.Len() || got.Bytes() != want.Bytes() {
			t.Fatalf("seed %d: %d series of %d bytes, want %d of %d", seed, got.Len(), got.Bytes(), want.Len(), want.Bytes())
		}
		if diff := diffSeries(seriesOf(want, false), seriesOf(got, false)); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		if _, ok := got.Frame(); ok {
			t.Fatal("a frame is shown that is not that of the series")
		}
		if _, err := got.Rewritten(c); !errors.Is(err, ErrInternal) {
			t.Fatalf("rewritten by a reply to another frame: %v", err)
		}
		x, err := AppendFrame(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		if y, err := AppendFrame(nil, got); err != nil || !slices.Equal(x, y) {
			t.Fatalf("seed %d: encoded it is another frame (%v)", seed, err)
		}
		got.Append(Series{Labels: labels.FromStrings("z", "z")})
		want.Append(Series{Labels: labels.FromStrings("z", "z")})
		if diff := diffSeries(seriesOf(want, false), seriesOf(got, false)); diff != "" {
			t.Fatalf("seed %d: after Append: %s", seed, diff)
		}
	}
}

// A reply of a few bytes must not stand for label sets of any size.
func TestRewrittenLimits(t *testing.T) {
	b := NewBatch(0)
	for i := range 1000 {
		b.Append(Series{Labels: labels.FromStrings("a", fmt.Sprint(i))})
	}
	enc, err := AppendFrame(nil, b)
	if err == nil {
		b, err = NewFramed(enc)
	}
	if err != nil {
		t.Fatal(err)
	}
	view, _ := b.Frame()
	for columns, want := range map[int]string{1: "256 MiB", 40: "16 MiB"} {
		var r frame.Reply
		r.Reset(view)
		r.Group(0)
		long := r.Intern(strings.Repeat("x", 512<<10))
		for j := range columns {
			r.Constant(r.Intern(fmt.Sprint("n", j)), long)
		}
		var c frame.Changes
		if err := c.Parse(r.Append(nil), view, frame.TierRows); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Rewritten(&c); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), want) {
			t.Errorf("%d columns: %v, want %s", columns, err, want)
		}
	}
}

// Frames keeps its limit, leaves nothing out and cuts series only where it must.
func TestFrameEncoderSplits(t *testing.T) {
	var e FrameEncoder
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 2))
		e.Limit = 3000 + r.IntN(10000)
		want := randomBatch(t, r, r.IntN(60))
		whole, err := AppendFrame(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		framed, err := NewFramed(whole)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range []*Batch{want, framed} {
			got, frames := NewBatch(0), 0
			for b, err := range e.Frames(in) {
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if len(b) > e.Limit {
					t.Fatalf("seed %d: %d bytes, limit %d", seed, len(b), e.Limit)
				}
				part, err := NewFramed(slices.Clone(b))
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				for i := range part.Len() {
					got.Append(part.At(i))
				}
				frames++
			}
			if frames == 0 {
				t.Fatal("no frame at all")
			}
			if diff := diffSeries(seriesOf(want, true), seriesOf(got, true)); diff != "" {
				t.Fatalf("seed %d: %s", seed, diff)
			}
		}
	}
}

func TestFrameEncoderLimits(t *testing.T) {
	t.Run("more rows than a frame has", func(t *testing.T) {
		b := NewBatch(frame.MaxRows + 1)
		for range frame.MaxRows + 1 {
			b.Append(Series{Labels: labels.FromStrings("a", "b")})
		}
		if _, err := AppendFrame(nil, b); !errors.Is(err, ErrLimit) {
			t.Fatalf("error %v, want one of the kind ErrLimit", err)
		}
		var e FrameEncoder
		var rows []int
		for f, err := range e.Frames(b) {
			if err != nil {
				t.Fatal(err)
			}
			part, err := NewFramed(slices.Clone(f))
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, part.Len())
		}
		if want := []int{frame.MaxRows, 1}; !slices.Equal(rows, want) {
			t.Fatalf("rows %v, want %v", rows, want)
		}
	})
	t.Run("a series larger than a frame comes in pieces", func(t *testing.T) {
		b, s := NewBatch(1), Series{Labels: labels.FromStrings("a", "b")}
		for i := range int64(20) {
			s.Chunks = append(s.Chunks, Chunk{MinTime: i, MaxTime: i, Raw: Encoded{Data: make([]byte, 1<<20), Encoding: chunkenc.EncXOR}})
		}
		b.Append(s)
		chunks := 0
		for f, err := range new(FrameEncoder).Frames(b) {
			if err != nil {
				t.Fatal(err)
			}
			part, err := NewFramed(slices.Clone(f))
			if err != nil {
				t.Fatal(err)
			}
			chunks += len(part.Chunks(0))
		}
		if chunks != 20 {
			t.Fatalf("%d chunks, want 20", chunks)
		}
	})
	chunk := func(c Chunk) Series { return Series{Labels: labels.FromStrings("a", "b"), Chunks: []Chunk{c}} }
	for name, s := range map[string]Series{
		"a chunk larger than a frame":     chunk(Chunk{Raw: Encoded{Data: make([]byte, frame.MaxBytes), Encoding: chunkenc.EncXOR}}),
		"a label set larger than a frame": {Labels: labels.FromStrings("a", strings.Repeat("a", frame.MaxBytes-10))},
		"an encoding that is unknown":     chunk(Chunk{Raw: Encoded{Data: make([]byte, 10), Encoding: 77}}),
		"a chunk of nothing":              chunk(Chunk{}),
		"a chunk without a header":        chunk(Chunk{Raw: Encoded{Data: []byte{0}, Encoding: chunkenc.EncXOR}}),
		"times the wrong way round":       chunk(Chunk{MinTime: 1, Raw: Encoded{Data: make([]byte, 10), Encoding: chunkenc.EncXOR}}),
		"a value that is not UTF-8":       {Labels: labels.FromStrings("a", "\xff")},
		"a name twice":                    {Labels: labels.New(labels.Label{Name: "a", Value: "b"}, labels.Label{Name: "a", Value: "c"})},
	} {
		b := NewBatch(2)
		b.Append(Series{Labels: labels.FromStrings("a", "a")})
		b.Append(s)
		if _, err := AppendFrame(nil, b); err == nil {
			t.Errorf("%s: no error", name)
		}
		var last error
		for f, err := range new(FrameEncoder).Frames(b) {
			if last = err; err == nil {
				if _, err := NewFramed(slices.Clone(f)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if last == nil {
			t.Errorf("%s: Frames has no error", name)
		}
	}
}

func TestFramedPlain(t *testing.T) {
	var data []byte
	for i := range int64(250) {
		data = binary.LittleEndian.AppendUint64(data, uint64(i*1000-5000))
		data = binary.LittleEndian.AppendUint64(data, math.Float64bits(float64(i)/3))
	}
	var fb frame.Builder
	fb.AddRow("a", "b")
	fb.AddChunk(frame.Chunk{MinTime: -5000, MaxTime: 244000, Encoding: frame.EncodingPlain, Data: data})
	enc, err := fb.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewFramed(enc)
	if err != nil {
		t.Fatal(err)
	}
	next := int64(0)
	for _, c := range b.At(0).Chunks {
		x, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
		if err != nil {
			t.Fatal(err)
		}
		if x.NumSamples() > 120 || c.MinTime != next*1000-5000 {
			t.Fatalf("a chunk of %d samples from %d", x.NumSamples(), c.MinTime)
		}
		it, last := x.Iterator(nil), int64(0)
		for it.Next() != chunkenc.ValNone {
			var v float64
			if last, v = it.At(); last != next*1000-5000 || v != float64(next)/3 {
				t.Fatalf("sample %d is %v at %d", next, v, last)
			}
			next++
		}
		if c.MaxTime != last {
			t.Fatalf("max time %d, last sample %d", c.MaxTime, last)
		}
	}
	if next != 250 {
		t.Fatalf("%d samples, want 250", next)
	}
}

func TestFramedRefuses(t *testing.T) {
	if _, err := NewFramed([]byte("PWF1")); !errors.Is(err, ErrInternal) {
		t.Errorf("broken frame: error %v", err)
	}
	var fb frame.Builder
	fb.Withhold("a")
	fb.EndRow()
	enc, err := fb.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewFramed(enc); !errors.Is(err, ErrInternal) {
		t.Errorf("withheld values: error %v", err)
	}
	// A megabyte, and as many label sets of a megabyte as there are rows.
	fb.Reset()
	big := strings.Repeat("a", 1<<20)
	for range 1000 {
		fb.AddRow("a", big)
	}
	if enc, err = fb.Append(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFramed(enc); !errors.Is(err, ErrLimit) {
		t.Errorf("label sets of 1 GiB in %d bytes: error %v", len(enc), err)
	}
}

func FuzzNewFramed(f *testing.F) {
	for seed := range uint64(5) {
		b, err := AppendFrame(nil, randomBatch(f, rand.New(rand.NewPCG(seed, 3)), int(seed)*2))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		// The length is what a fuzzer rarely gets right.
		in = slices.Clone(in[:len(in)/4*4])
		if len(in) >= 8 {
			binary.LittleEndian.PutUint32(in[4:], uint32(len(in)))
		}
		b, err := NewFramed(in)
		if err != nil {
			return
		}
		bytes, list := 0, NewBatch(0)
		for i := range b.Len() {
			bytes += b.At(i).Size()
			list.Append(b.At(i))
		}
		if bytes != b.Bytes() {
			t.Fatalf("Bytes is %d, the series have %d", b.Bytes(), bytes)
		}
		enc, err := AppendFrame(nil, list)
		if err != nil {
			return // what was shared in the frame may be too much once it is not
		}
		again, err := NewFramed(enc)
		if err != nil {
			t.Fatal(err)
		}
		if diff := diffSeries(seriesOf(b, false), seriesOf(again, false)); diff != "" {
			t.Fatal(diff)
		}
	})
}

func benchBatch() *Batch {
	b := NewBatch(1000)
	for i := range 1000 {
		b.Append(Series{Labels: labels.FromStrings("__name__", "http_requests_total", "cluster", "eu1", "code", fmt.Sprint(200+i%5),
			"container", "server", "endpoint", "http", "instance", fmt.Sprintf("10.0.%d.%d:8080", i/50, i/5%10),
			"job", "shop", "method", []string{"GET", "PUT", "POST"}[i%3], "namespace", fmt.Sprintf("team-%d", i/100), "pod", fmt.Sprintf("shop-%d", i/5))})
	}
	return b
}

// What frames cost for 1000 label sets of 10 labels, and what the cheapest rewriting of
// the same label sets with Prometheus' own means does.
func BenchmarkFrame(b *testing.B) {
	batch := benchBatch()
	enc, err := AppendFrame(nil, batch)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		var e FrameEncoder
		for b.Loop() {
			for _, err := range e.Frames(batch) {
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		var f frame.Frame
		for b.Loop() {
			if err := f.Parse(enc); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("materialize", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			got, err := NewFramed(enc)
			if err != nil {
				b.Fatal(err)
			}
			for i := range got.Len() {
				_ = got.At(i)
			}
		}
	})
	b.Run("labels.Builder", func(b *testing.B) {
		b.ReportAllocs()
		lb := labels.NewBuilder(labels.EmptyLabels())
		for b.Loop() {
			for i := range batch.Len() {
				ls := batch.At(i).Labels
				lb.Reset(ls)
				lb.Del("endpoint")
				lb.Set("node", ls.Get("instance"))
				_ = lb.Labels()
			}
		}
	})
}
