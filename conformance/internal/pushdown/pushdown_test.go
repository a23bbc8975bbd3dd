// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package pushdown

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func floats(pairs ...float64) (out []shaping.Sample) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, shaping.Sample{T: int64(pairs[i]), F: pairs[i+1]})
	}
	return out
}

func named(name string, points ...float64) Series {
	return Series{labels.FromStrings("a", name), floats(points...)}
}

func TestCompare(t *testing.T) {
	h := func(n float64) Series {
		return Series{labels.FromStrings("a", "h"), []shaping.Sample{{T: 1, FH: &histogram.FloatHistogram{
			Count: n, Sum: 2, PositiveSpans: []histogram.Span{{Offset: 0, Length: 2}}, PositiveBuckets: []float64{n, 0},
		}}}}
	}
	trailing := h(3)
	trailing.Points = []shaping.Sample{{T: 1, FH: &histogram.FloatHistogram{Count: 3, Sum: 2, PositiveSpans: []histogram.Span{{Offset: 0, Length: 1}}, PositiveBuckets: []float64{3}}}}
	nan, inf := math.NaN(), math.Inf(1)
	for _, c := range []struct {
		name      string
		want, got []Series
		eps       float64
		message   string
	}{
		{"nothing", nil, nil, 0, ""},
		{"another order", []Series{named("x", 1, 2), named("y", 1, 2)}, []Series{named("y", 1, 2), named("x", 1, 2)}, 0, ""},
		{"missing", []Series{named("x", 1, 2), named("y", 1, 2)}, []Series{named("x", 1, 2)}, 0, "of 2 series 1 are missing"},
		{"extra", nil, []Series{named("x", 1, 2)}, 0, "1 series come that should not"},
		{"other labels", []Series{named("x", 1, 2)}, []Series{named("y", 1, 2)}, 0, "1 series are missing, and 1 come"},
		{"twice", []Series{named("x", 1, 2)}, []Series{named("x", 1, 2), named("x", 1, 2)}, 0, "comes twice"},
		{"value", []Series{named("x", 1, 2)}, []Series{named("x", 1, 3)}, Tolerance, "another value"},
		{"time", []Series{named("x", 1, 2)}, []Series{named("x", 2, 2)}, Tolerance, "a point is missing"},
		{"a point more", []Series{named("x", 1, 2)}, []Series{named("x", 1, 2, 3, 4)}, Tolerance, "a point that should not be"},
		{"not ascending", []Series{named("x", 1, 2, 3, 4)}, []Series{named("x", 3, 4, 1, 2)}, Tolerance, "not later"},
		{"one time twice", []Series{named("x", 1, 2)}, []Series{named("x", 1, 2, 1, 2)}, Tolerance, "not later"},
		{"NaN", []Series{named("x", 1, nan)}, []Series{named("x", 1, nan)}, 0, ""},
		{"NaN and a number", []Series{named("x", 1, nan)}, []Series{named("x", 1, 0)}, Tolerance, "another value"},
		{"infinite", []Series{named("x", 1, inf)}, []Series{named("x", 1, math.MaxFloat64)}, Tolerance, "another value"},
		{"infinities", []Series{named("x", 1, inf)}, []Series{named("x", 1, -inf)}, Tolerance, "another value"},
		{"rounding", []Series{named("x", 1, 1e15)}, []Series{named("x", 1, 1e15+1)}, Tolerance, ""},
		{"no rounding", []Series{named("x", 1, 1e15)}, []Series{named("x", 1, 1e15+1)}, 0, "another value"},
		{"small", []Series{named("x", 1, 1e-12)}, []Series{named("x", 1, 2e-12)}, Tolerance, "another value"},
		{"histogram", []Series{h(3)}, []Series{h(3)}, 0, ""},
		{"empty buckets", []Series{h(3)}, []Series{trailing}, 0, ""},
		{"other buckets", []Series{h(3)}, []Series{h(4)}, Tolerance, "another value"},
		{"histogram and float", []Series{h(3)}, []Series{{labels.FromStrings("a", "h"), floats(1, 3)}}, Tolerance, "another value"},
	} {
		d := Compare(c.want, c.got, c.eps)
		switch {
		case c.message == "" && d != nil:
			t.Errorf("%s: %s", c.name, d.Message)
		case c.message != "" && (d == nil || !strings.Contains(d.Message, c.message)):
			t.Errorf("%s: got %v, want %q", c.name, d, c.message)
		case d != nil && len(d.Expected)+len(d.Actual) == 0:
			t.Errorf("%s: nothing is shown", c.name)
		}
	}
}

// TestEvaluate: by hand what the engine is given, and what becomes of its result.
func TestEvaluate(t *testing.T) {
	series := []oracle.Series{
		{Labels: labels.FromStrings("__name__", "m", "replica", "a"), Samples: floats(1000, 1, 61_000, 2)},
		{Labels: labels.FromStrings("__name__", "m", "replica", "b"), Samples: floats(1000, 1, 61_000, 2)},
		{Labels: labels.FromStrings("__name__", "odd", "replica", "a"), Samples: floats(1000, 1)},
		{Labels: labels.FromStrings("__name__", "odd", "replica", "b"), Samples: floats(1000, 2)},
	}
	e := NewEvaluator(series)
	m := func(points ...float64) Series {
		return Series{labels.FromStrings("__name__", "m"), floats(points...)}
	}
	bare := func(points ...float64) Series { return Series{labels.EmptyLabels(), floats(points...)} }
	for _, c := range []struct {
		q    Query
		want []Series
	}{
		{Query{Text: `m{replica="a"} - 0`, Start: 70}, []Series{{labels.FromStrings("replica", "a"), floats(70_000, 2)}}},
		{Query{Text: `count(m)`, Start: 70}, []Series{bare(70_000, 2)}},
		{Query{Text: `m`, Start: 70, ReplicaLabels: []string{"replica"}}, []Series{m(70_000, 2)}},
		{Query{Text: `count(m)`, Start: 70, ReplicaLabels: []string{"replica"}}, []Series{bare(70_000, 1)}},
		{Query{Text: `sum(m)`, Start: 0, End: 130, Step: 60, Lookback: 60, ReplicaLabels: []string{"replica"}}, []Series{bare(60_000, 1, 120_000, 2)}},
		{Query{Text: `1`, Start: 7}, []Series{bare(7000, 1)}},
		{Query{Text: `"x"`, Start: 7}, nil},
		{Query{Text: `m[1m]`, Start: 70}, nil},
	} {
		got, err := e.Evaluate(t.Context(), &c.q)
		if err != nil {
			t.Errorf("%s: %v", &c.q, err)
		} else if d := Compare(c.want, got, 0); d != nil {
			t.Errorf("%s: %s, want %v, got %v", &c.q, d.Message, c.want, got)
		}
	}
	if _, err := e.Evaluate(t.Context(), &Query{Text: `odd`, Start: 7, ReplicaLabels: []string{"replica"}}); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("two values at one time: %v", err)
	}
	if _, err := e.Evaluate(t.Context(), &Query{Text: `m * on () m`, Start: 7}); err == nil || errors.Is(err, ErrAmbiguous) {
		t.Errorf("many to many: %v", err)
	}
}

func TestGenerator(t *testing.T) {
	o := oracle.New(corpus.New(corpus.Options{}), []labels.Labels{labels.FromStrings("cluster", "eu1", "an odd-name", "x")}, oracle.Claims{})
	keep := func(m string) bool { return m == "cert_matrix" || strings.HasPrefix(m, "cert_generated_") }
	a, b := NewGenerator(7, o.Series(), keep), NewGenerator(7, o.Series(), keep)
	ranges := 0
	for range 500 {
		q := a.Query()
		if again := b.Query(); q.String() != again.String() {
			t.Fatalf("the same seed gives %s and %s", q, again)
		}
		x, err := parser.ParseExpr(q.Text)
		if err != nil || x.Type() != parser.ValueTypeVector {
			t.Errorf("%s: %v", q, err)
			continue
		}
		for _, ms := range parser.ExtractSelectors(x) {
			if !slices.ContainsFunc(ms, func(m *labels.Matcher) bool { return m.Name == "__name__" && keep(m.Value) }) {
				t.Errorf("%s selects something else", q)
			}
		}
		if q.Step > 0 {
			ranges++
			if q.End < q.Start {
				t.Errorf("%s ends before it starts", q)
			}
		}
	}
	if ranges < 150 || ranges > 350 {
		t.Errorf("of 500 queries %d are ranges", ranges)
	}
	if q := NewGenerator(7, o.Series(), func(string) bool { return false }).Query(); q != nil {
		t.Errorf("out of nothing there is %s", q)
	}
}

func TestShrink(t *testing.T) {
	q := &Query{Text: `sum by (a) (abs(x) + rate(y[5m])) > 3`, Start: 7}
	tried := 0
	got := Shrink(q, 25, func(r *Query) bool { tried++; return strings.Contains(r.Text, "rate(") })
	if got.Text != `rate(y[5m])` || got.Start != 7 {
		t.Errorf("got %s", got)
	}
	if got := Shrink(q, 25, func(*Query) bool { return false }); got.Text != q.Text {
		t.Errorf("what fails only as a whole becomes %s", got)
	}
	tried = 0
	Shrink(q, 2, func(*Query) bool { tried++; return false })
	if tried != 2 {
		t.Errorf("%d tries", tried)
	}
	if got := Shrink(&Query{Text: `sum(`}, 25, func(*Query) bool { return true }); got.Text != `sum(` {
		t.Errorf("got %s", got)
	}
}

// TestRead: both forms of histograms, and points of both kinds in one series.
func TestRead(t *testing.T) {
	ints := &prompb.Histogram{Timestamp: 2, Schema: 1, Sum: 9, Count: &prompb.Histogram_CountInt{CountInt: 7}, ZeroCount: &prompb.Histogram_ZeroCountInt{ZeroCountInt: 1},
		PositiveSpans: []*prompb.BucketSpan{{Offset: 1, Length: 3}}, PositiveDeltas: []int64{1, 1, -1}, NegativeSpans: []*prompb.BucketSpan{{Length: 1}}, NegativeDeltas: []int64{2}}
	fl := &prompb.Histogram{Timestamp: 4, Schema: 1, Sum: 9, Count: &prompb.Histogram_CountFloat{CountFloat: 7}, ZeroCount: &prompb.Histogram_ZeroCountFloat{ZeroCountFloat: 1},
		PositiveSpans: []*prompb.BucketSpan{{Offset: 1, Length: 3}}, PositiveCounts: []float64{1, 2, 1}, NegativeSpans: []*prompb.BucketSpan{{Length: 1}}, NegativeCounts: []float64{2}}
	got := series(&prompb.TimeSeries{
		Labels:  []*prompb.Label{{Name: "b", Value: "2"}, {Name: "a", Value: "1"}},
		Samples: []*prompb.Sample{{Timestamp: 1, Value: 5}, {Timestamp: 3, Value: 6}}, Histograms: []*prompb.Histogram{ints, fl},
	})
	var times []int64
	for _, p := range got.Points {
		times = append(times, p.T)
	}
	if !slices.Equal(times, []int64{1, 2, 3, 4}) || got.Labels.String() != `{a="1", b="2"}` {
		t.Fatalf("got %s at %v", got.Labels, times)
	}
	if got.Points[1].FH == nil || !equal(got.Points[1], got.Points[3], 0) {
		t.Errorf("%v and %v", got.Points[1].FH, got.Points[3].FH)
	}
}
