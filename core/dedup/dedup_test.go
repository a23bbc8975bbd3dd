// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package dedup

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/core/samples"
	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// point is a sample: a float, or a histogram with that many observations.
type point struct {
	t    int64
	v    float64
	hist bool
}

// list is a replica that is no chunks. It counts how far it was read.
type list struct {
	points []point
	i      int
	err    error
}

func newList(points []point) *list { return &list{points: points, i: -1} }

func (l *list) vt() chunkenc.ValueType {
	switch {
	case l.i >= len(l.points):
		return chunkenc.ValNone
	case l.points[l.i].hist:
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}

func (l *list) Next() chunkenc.ValueType {
	if l.i < len(l.points) {
		l.i++
	}
	return l.vt()
}

func (l *list) Seek(t int64) chunkenc.ValueType {
	l.i = max(l.i, 0)
	for l.i < len(l.points) && l.points[l.i].t < t {
		l.i++
	}
	return l.vt()
}
func (l *list) At() (int64, float64) { return l.points[l.i].t, l.points[l.i].v }
func (l *list) AtT() int64           { return l.points[l.i].t }
func (l *list) Err() error           { return l.err }
func (l *list) AtHistogram(*histogram.Histogram) (int64, *histogram.Histogram) {
	panic("there are float histograms only")
}

func (l *list) AtFloatHistogram(*histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	return l.points[l.i].t, testHistogram(l.points[l.i].v, histogram.NotCounterReset)
}

func testHistogram(v float64, hint histogram.CounterResetHint) *histogram.FloatHistogram {
	return &histogram.FloatHistogram{
		CounterResetHint: hint, Count: v, Sum: v,
		PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []float64{v},
	}
}

// chunked encodes points, per samples in a chunk.
func chunked(t testing.TB, points []point, per int) []samples.Chunk {
	t.Helper()
	var out []samples.Chunk
	for len(points) > 0 {
		n := 1
		for n < len(points) && n < per && points[n].hist == points[0].hist {
			n++
		}
		out = append(out, encode(t, points[:n]))
		points = points[n:]
	}
	return out
}

func encode(t testing.TB, points []point) samples.Chunk {
	t.Helper()
	var c chunkenc.Chunk = chunkenc.NewXORChunk()
	if points[0].hist {
		c = chunkenc.NewFloatHistogramChunk()
	}
	app, err := c.Appender()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		if !p.hist {
			app.Append(p.t, p.v)
			continue
		}
		n, _, a, err := app.AppendFloatHistogram(nil, p.t, testHistogram(p.v, histogram.GaugeType), false)
		if err != nil || n != nil {
			t.Fatal("histogram does not fit", err)
		}
		app = a
	}
	return samples.Chunk{Chunk: backend.Chunk{
		MinTime: points[0].t, MaxTime: points[len(points)-1].t,
		Raw: backend.Encoded{Encoding: c.Encoding(), Data: c.Bytes()},
	}}
}

func all() samples.Options {
	return samples.Options{MinTime: math.MinInt64, MaxTime: math.MaxInt64}
}

// eager is the algorithm as it is written down, without any thrift.
type eager struct {
	a, b         chunkenc.Iterator
	avt, bvt     chunkenc.ValueType
	adjA, adjB   float64
	penA, penB   int64
	last         int64
	useA         bool
	counter      bool
	began, fresh bool
}

func newEager(replicas []chunkenc.Iterator, counter bool) chunkenc.Iterator {
	it := replicas[0]
	for _, r := range replicas[1:] {
		it = &eager{a: it, b: r, avt: it.Next(), bvt: r.Next(), last: math.MinInt64, useA: true, counter: counter}
	}
	return it
}

func add(v, adj float64) float64 {
	if adj == 0 || math.IsNaN(v) {
		return v
	}
	return v + adj
}

func (e *eager) current() (float64, bool) {
	it, vt, adj := e.a, e.avt, e.adjA
	if !e.useA {
		it, vt, adj = e.b, e.bvt, e.adjB
	}
	if vt != chunkenc.ValFloat {
		return 0, false
	}
	_, v := it.At()
	return add(v, adj), true
}

func (e *eager) Next() chunkenc.ValueType {
	v, float := e.current()
	before := e.useA
	vt := e.next()
	e.fresh = e.began && e.useA != before
	e.began = true
	if e.counter && float && e.useA != before {
		if e.avt == chunkenc.ValFloat {
			if _, f := e.a.At(); v > f+e.adjA {
				e.adjA += v - (f + e.adjA)
			}
		}
		if e.bvt == chunkenc.ValFloat {
			if _, f := e.b.At(); v > f+e.adjB {
				e.adjB += v - (f + e.adjB)
			}
		}
	}
	return vt
}

func (e *eager) next() chunkenc.ValueType {
	if e.avt != chunkenc.ValNone {
		e.avt = e.a.Seek(e.last + 1 + e.penA)
	}
	if e.bvt != chunkenc.ValNone {
		e.bvt = e.b.Seek(e.last + 1 + e.penB)
	}
	if e.avt == chunkenc.ValNone {
		e.useA = false
		if e.bvt != chunkenc.ValNone {
			e.last, e.penB = e.b.AtT(), 0
		}
		return e.bvt
	}
	if e.bvt == chunkenc.ValNone {
		e.useA, e.last, e.penA = true, e.a.AtT(), 0
		return e.avt
	}
	ta, tb := e.a.AtT(), e.b.AtT()
	e.useA = ta <= tb
	t := min(ta, tb)
	pen := int64(5000)
	if e.last != math.MinInt64 {
		pen = 2 * (t - e.last)
	}
	e.last = t
	if e.useA {
		e.penA, e.penB = 0, pen
		return e.avt
	}
	e.penA, e.penB = pen, 0
	return e.bvt
}

func (e *eager) Seek(t int64) chunkenc.ValueType {
	for n := 0; ; n++ {
		if e.began && e.last >= t {
			if n > 1 {
				e.fresh = true
			}
			if e.useA {
				return e.avt
			}
			return e.bvt
		}
		if e.Next() == chunkenc.ValNone {
			return chunkenc.ValNone
		}
	}
}
func (e *eager) At() (int64, float64) { v, _ := e.current(); return e.last, v }
func (e *eager) AtT() int64           { return e.last }
func (e *eager) Err() error           { return nil }
func (e *eager) AtHistogram(*histogram.Histogram) (int64, *histogram.Histogram) {
	panic("there are float histograms only")
}

func (e *eager) AtFloatHistogram(h *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	it := e.b
	if e.useA {
		it = e.a
	}
	t, h := it.AtFloatHistogram(h)
	if e.fresh && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// show describes the current sample down to the bits.
func show(it chunkenc.Iterator, vt chunkenc.ValueType) string {
	switch vt {
	case chunkenc.ValFloat:
		t, v := it.At()
		return fmt.Sprintf("%d/%d:%x", t, it.AtT(), math.Float64bits(v))
	case chunkenc.ValFloatHistogram:
		t, h := it.AtFloatHistogram(nil)
		return fmt.Sprintf("%d/%d:h%g/%d", t, it.AtT(), h.Count, h.CounterResetHint)
	}
	return vt.String()
}

// replica makes up a scraper: interval, jitter, gaps, resets, stale markers, and
// spells of histograms.
func replica(r *rand.Rand, n int) []point {
	var (
		out  []point
		step = []int64{1000, 15000, 30000}[r.IntN(3)]
		t    = r.Int64N(2 * step)
		v    = float64(r.IntN(1000))
		hist bool
	)
	for range n {
		t += step
		if r.IntN(3) == 0 {
			t += r.Int64N(step/10) - step/20
		}
		switch r.IntN(30) {
		case 0:
			t += step * r.Int64N(20)
		case 1:
			v = 0
		case 2:
			out = append(out, point{t: t, v: math.Float64frombits(value.StaleNaN), hist: false})
			t += step * r.Int64N(6)
			continue
		case 3:
			hist = !hist
		case 4:
			continue
		}
		v += float64(r.IntN(50)) / 4
		if r.IntN(40) == 0 {
			out = append(out, point{t: t, v: math.Copysign(0, -1)})
			continue
		}
		out = append(out, point{t: t, v: v, hist: hist})
	}
	// Ascending times are all that an iterator promises.
	kept := out[:0]
	for _, p := range out {
		if len(kept) == 0 || p.t > kept[len(kept)-1].t {
			kept = append(kept, p)
		}
	}
	return kept
}

func TestPenaltyEqualsEager(t *testing.T) {
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var (
			data       [][]point
			lists      []chunkenc.Iterator
			reference  []chunkenc.Iterator
			fromChunks []chunkenc.Iterator
			effect     Effect
			counter    = r.IntN(2) == 0
		)
		for range 2 + r.IntN(2) {
			p := replica(r, r.IntN(200))
			data = append(data, p)
			lists = append(lists, newList(p))
			reference = append(reference, newList(p))
			fromChunks = append(fromChunks, samples.NewIterator(chunked(t, p, 1+r.IntN(150)), all(), nil))
		}
		want := newEager(reference, counter)
		got := New(Penalty, counter, lists, WithEffect(&effect))
		// Chunks are gauge histograms, so hints differ: compare them by name only.
		runs := New(Penalty, counter, fromChunks)
		taken, at := 0, int64(0)
		for step := 0; ; step++ {
			var a, b, c chunkenc.ValueType
			if r.IntN(8) == 0 {
				to := at + r.Int64N(200000) - 50000
				a, b, c = want.Seek(to), got.Seek(to), runs.Seek(to)
			} else {
				a, b, c = want.Next(), got.Next(), runs.Next()
			}
			if x, y := show(want, a), show(got, b); x != y {
				t.Fatalf("seed %d, step %d: eager %s, lazy %s\n%v", seed, step, x, y, data)
			}
			x, y := show(want, a), show(runs, c)
			if a == chunkenc.ValFloatHistogram {
				x, y = x[:strings.LastIndex(x, "/")], y[:strings.LastIndex(y, "/")]
			}
			if x != y {
				t.Fatalf("seed %d, step %d: eager %s, lazy over chunks %s\n%v", seed, step, x, y, data)
			}
			if a == chunkenc.ValNone {
				break
			}
			if taken == 0 || want.AtT() > at {
				taken++
			}
			at = want.AtT()
		}
		sum := 0
		for _, n := range effect.Samples {
			sum += n
		}
		if sum < taken || len(effect.Samples) != len(data) {
			t.Fatalf("seed %d: effect %+v for %d samples", seed, effect, taken)
		}
		if got.Next() != chunkenc.ValNone || got.Seek(math.MinInt64) != chunkenc.ValNone || got.Err() != nil {
			t.Fatalf("seed %d: an ended iterator goes on", seed)
		}
	}
}

// parse reads samples as time:value pairs.
func parse(t *testing.T, line string) []point {
	t.Helper()
	var out []point
	for _, f := range strings.Fields(line) {
		at, v, ok := strings.Cut(f, ":")
		p := point{}
		var err error
		if p.t, err = strconv.ParseInt(at, 10, 64); err != nil || !ok {
			t.Fatalf("bad sample %q", f)
		}
		switch {
		case v == "stale":
			p.v = math.Float64frombits(value.StaleNaN)
		case strings.HasPrefix(v, "h"):
			p.hist = true
			v = v[1:]
			fallthrough
		default:
			if p.v, err = strconv.ParseFloat(v, 64); err != nil {
				t.Fatalf("bad sample %q", f)
			}
		}
		out = append(out, p)
	}
	return out
}

func format(it chunkenc.Iterator, vt chunkenc.ValueType) string {
	if vt == chunkenc.ValFloatHistogram {
		t, h := it.AtFloatHistogram(nil)
		return fmt.Sprintf("%d:h%g", t, h.Count)
	}
	t, v := it.At()
	if value.IsStaleNaN(v) {
		return fmt.Sprintf("%d:stale", t)
	}
	return fmt.Sprintf("%d:%g", t, v)
}

// TestGolden runs testdata: each input line is a replica, the first argument the
// algorithm; counter and seek=<t> are arguments too.
func TestGolden(t *testing.T) {
	datadriven.RunTest(t, "testdata/golden", func(t *testing.T, d *datadriven.TestData) string {
		run := func(source func([]point) chunkenc.Iterator) string {
			var its []chunkenc.Iterator
			for line := range strings.Lines(d.Input) {
				its = append(its, source(parse(t, line)))
			}
			algorithm, err := Parse(d.Cmd)
			if err != nil {
				return err.Error() + "\n"
			}
			var e Effect
			it := New(algorithm, d.HasArg("counter"), its, WithEffect(&e))
			var out []string
			vt := chunkenc.ValNone
			if d.HasArg("seek") {
				var to int64
				d.ScanArgs(t, "seek", &to)
				vt = it.Seek(to)
			} else {
				vt = it.Next()
			}
			for ; vt != chunkenc.ValNone; vt = it.Next() {
				out = append(out, format(it, vt))
			}
			if it.Err() != nil {
				t.Fatal(it.Err())
			}
			return fmt.Sprintf("%s\nswitches %d, taken %v\n", strings.Join(out, " "), e.Switches, e.Samples)
		}
		lists := run(func(p []point) chunkenc.Iterator { return newList(p) })
		for _, per := range []int{1, 2, 120} {
			got := run(func(p []point) chunkenc.Iterator { return samples.NewIterator(chunked(t, p, per), all(), nil) })
			if diff := cmp.Diff(lists, got); diff != "" {
				t.Errorf("%s: chunks of %d differ: %s", d.Pos, per, diff)
			}
		}
		return lists
	})
}

// TestRestingReplicaIsNotDecoded breaks everything of the second replica but its
// first chunk and what lies in the first's gap: nobody may notice the rest.
func TestRestingReplicaIsNotDecoded(t *testing.T) {
	var a, b []point
	for i := range int64(1200) {
		if i < 600 || i > 640 {
			a = append(a, point{t: i * 30000, v: float64(i)})
		}
		b = append(b, point{t: i*30000 + 7000, v: float64(i)})
	}
	broken := chunked(t, b, 120)
	for _, k := range []int{1, 2, 3} {
		broken[k].Raw.Data = broken[k].Raw.Data[:10]
	}
	o := all()
	o.OnCorrupt = func(_ int32, err error) { t.Error("a chunk was decoded that is not needed:", err) }
	var e Effect
	it := New(Penalty, true, []chunkenc.Iterator{
		samples.NewIterator(chunked(t, a, 120), all(), nil), samples.NewIterator(broken, o, nil),
	}, WithEffect(&e))
	n := 0
	for it.Next() != chunkenc.ValNone {
		n++
	}
	// The initial penalty of 5 s is less than the 7 s between the two, so the second
	// sample is of b; the gap is the third change.
	if n != 1200 || e.Switches != 3 {
		t.Errorf("%d samples, %+v", n, e)
	}
}

func TestSingleReplicaIsUntouched(t *testing.T) {
	l := newList(nil)
	if New(Default, true, []chunkenc.Iterator{l}) != chunkenc.Iterator(l) {
		t.Error("a single replica was wrapped")
	}
	if it := New(Default, true, nil); it.Next() != chunkenc.ValNone {
		t.Error("no replica has samples")
	}
}

func TestErrorsOfReplicas(t *testing.T) {
	for _, a := range []Algorithm{Penalty, Chain} {
		bad := newList(nil)
		bad.err = fmt.Errorf("broken pipe")
		it := New(a, false, []chunkenc.Iterator{newList([]point{{t: 1, v: 1}}), bad})
		for it.Next() != chunkenc.ValNone {
			_ = it
		}
		if it.Err() == nil {
			t.Errorf("%s hides the error of a replica", a)
		}
	}
}

func TestParse(t *testing.T) {
	for name, want := range map[string]Algorithm{"": Default, "default": Default, "penalty": Penalty, "chain": Chain} {
		if got, err := Parse(name); err != nil || got != want {
			t.Errorf("Parse(%q) = %q, %v", name, got, err)
		}
	}
	if _, err := Parse("Penalty"); err == nil {
		t.Error("a wrong name is accepted")
	}
	for fn, want := range map[string]bool{"rate": true, "increase": true, "irate": true, "resets": true, "xrate": false, "delta": false, "": false} {
		if Counter(fn) != want {
			t.Errorf("Counter(%q) is not %v", fn, want)
		}
	}
}

// TestChainEqualsUnion compares with a map filled in reverse order of replicas.
func TestChainEqualsUnion(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		var its []chunkenc.Iterator
		var data [][]point
		for range 2 + r.IntN(3) {
			p := replica(r, r.IntN(100))
			data = append(data, p)
			its = append(its, newList(p))
		}
		want := map[int64]string{}
		for k := len(data) - 1; k >= 0; k-- {
			l := newList(data[k])
			for vt := l.Next(); vt != chunkenc.ValNone; vt = l.Next() {
				want[l.AtT()] = format(l, vt)
			}
		}
		it := New(Chain, true, its)
		last := int64(math.MinInt64)
		for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
			if it.AtT() <= last || format(it, vt) != want[it.AtT()] {
				t.Fatalf("seed %d: %s after %d, want %s", seed, format(it, vt), last, want[it.AtT()])
			}
			last = it.AtT()
			delete(want, last)
			if r.IntN(10) == 0 {
				to := last + r.Int64N(100000)
				for at := range want {
					if at > last && at < to {
						delete(want, at)
					}
				}
				if vt := it.Seek(to); vt == chunkenc.ValNone {
					break
				}
				if last < to {
					last = it.AtT()
					if format(it, it.Seek(to)) != want[last] {
						t.Fatalf("seed %d: after Seek(%d): %d", seed, to, last)
					}
					delete(want, last)
				}
			}
		}
		if len(want) > 0 {
			t.Fatalf("seed %d: %d samples are missing", seed, len(want))
		}
	}
}

// pair is two replicas of one counter 7 s apart, the first with a ten-minute gap.
func pair(b *testing.B) (first, second []samples.Chunk) {
	var x, y []point
	for i := range int64(2880) {
		if i < 1000 || i >= 1020 {
			x = append(x, point{t: i * 30000, v: float64(i * 17)})
		}
		y = append(y, point{t: i*30000 + 7000, v: float64(i*17 + 4)})
	}
	return chunked(b, x, 120), chunked(b, y, 120)
}

func drain(it chunkenc.Iterator) (n int, sum float64) {
	for it.Next() != chunkenc.ValNone {
		_, v := it.At()
		sum += v
		n++
	}
	return n, sum
}

func BenchmarkPenalty(b *testing.B) {
	x, y := pair(b)
	upToGap := x[:8]
	restingY := y[:8]
	report := func(b *testing.B, n int) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/sample")
	}
	b.Run("one replica", func(b *testing.B) {
		var it chunkenc.Iterator
		n := 0
		for b.Loop() {
			it = samples.NewIterator(upToGap, all(), it)
			n, _ = drain(it)
		}
		report(b, n)
	})
	b.Run("two replicas, second rests", func(b *testing.B) {
		var p, q chunkenc.Iterator
		n := 0
		for b.Loop() {
			p, q = samples.NewIterator(upToGap, all(), p), samples.NewIterator(restingY, all(), q)
			n, _ = drain(New(Penalty, true, []chunkenc.Iterator{p, q}))
		}
		report(b, n)
	})
	b.Run("two replicas, one gap", func(b *testing.B) {
		var p, q chunkenc.Iterator
		n := 0
		for b.Loop() {
			p, q = samples.NewIterator(x, all(), p), samples.NewIterator(y, all(), q)
			n, _ = drain(New(Penalty, true, []chunkenc.Iterator{p, q}))
		}
		report(b, n)
	})
	b.Run("two replicas, one gap, eager", func(b *testing.B) {
		var p, q chunkenc.Iterator
		n := 0
		for b.Loop() {
			p, q = samples.NewIterator(x, all(), p), samples.NewIterator(y, all(), q)
			n, _ = drain(newEager([]chunkenc.Iterator{p, q}, true))
		}
		report(b, n)
	})
}

// TestBeginning: wherever a range begins in the scrapes of two replicas of one
// counter, Default shows what was counted in it. Penalty loses up to the time
// between the two replicas, which is why they differ.
func TestBeginning(t *testing.T) {
	const rate = 20.0 // a second
	scrapes := func(from, offset int64) (out []point) {
		for ts := offset; ts < 600_000; ts += 30_000 {
			if ts >= from {
				out = append(out, point{t: ts, v: rate * float64(ts) / 1000})
			}
		}
		return out
	}
	worst := func(a Algorithm) (worst float64) {
		for from := int64(0); from < 60_000; from += 1000 {
			it := New(a, true, []chunkenc.Iterator{newList(scrapes(from, 0)), newList(scrapes(from, 7000))})
			var first, last point
			for n := 0; it.Next() != chunkenc.ValNone; n++ {
				last.t, last.v = it.At()
				if n == 0 {
					first = last
				}
			}
			got := (last.v - first.v) / (float64(last.t-first.t) / 1000)
			worst = max(worst, math.Abs(got-rate)/rate)
		}
		return worst
	}
	if got := worst(Default); got > 1e-9 {
		t.Errorf("default is off by %.1f %%", 100*got)
	}
	if got := worst(Penalty); got < 0.03 {
		t.Errorf("penalty is off by %.1f %% only: its rule of the beginning is gone", 100*got)
	}
}

// TestCounted: what Default shows of a counter that two or three replicas scraped,
// with resets, gaps and offsets, against what was counted. It must not count
// anything twice; Penalty, as Thanos, does where a reset follows a change of
// replicas that hid another one.
func TestCounted(t *testing.T) {
	type history struct {
		truth    float64 // counted from the first to the last sample of anybody
		replicas [][]point
		step     float64 // the most that is counted in an interval
	}
	make := func(r *rand.Rand, replicas int) (h history) {
		const interval, n = 30_000, 200
		h.step = 30
		var at []float64 // the counter, each second
		v := 0.0
		for range n * interval / 1000 {
			if r.IntN(1500) == 0 {
				v = 0
			}
			inc := r.Float64()
			v += inc
			h.truth += inc
			at = append(at, v)
		}
		for range replicas {
			offset, gap, width := r.Int64N(interval), r.IntN(n), 3+r.IntN(40)
			var p []point
			for i := range n {
				if ts := int64(i)*interval + offset; i < gap || i >= gap+width {
					p = append(p, point{t: ts, v: at[ts/1000]})
				}
			}
			h.replicas = append(h.replicas, p)
		}
		return h
	}
	counted := func(a Algorithm, h history) (sum float64) {
		var its []chunkenc.Iterator
		for _, p := range h.replicas {
			its = append(its, newList(p))
		}
		it := New(a, true, its)
		last, began := 0.0, false
		for it.Next() != chunkenc.ValNone {
			_, v := it.At()
			switch {
			case !began:
			case v < last:
				sum += v
			default:
				sum += v - last
			}
			last, began = v, true
		}
		return sum
	}
	over := map[Algorithm]int{}
	worst, mean := 0.0, 0.0
	const runs = 3000
	for seed := range uint64(runs) {
		r := rand.New(rand.NewPCG(seed, 77))
		h := make(r, 2+int(seed%2))
		for _, a := range []Algorithm{Default, Penalty} {
			got := counted(a, h)
			if got > h.truth+h.step {
				over[a]++
			}
			if a == Default {
				worst = max(worst, (got-h.truth)/h.truth)
				mean += (got/h.truth - 1) / runs
			}
		}
	}
	t.Logf("counted too much: %v of %d; default at worst by %.1f %%, %.2f %% on average", over, runs, 100*worst, 100*mean)
	if over[Default] > 0 {
		t.Errorf("default counted too much in %d of %d histories, at worst %.1f %%", over[Default], runs, 100*worst)
	}
	if mean < -0.02 {
		t.Errorf("default lacks %.1f %% on average", -100*mean)
	}
	if over[Penalty] == 0 {
		t.Error("penalty counts nothing twice: it is not the algorithm that it is for comparing with")
	}
}
