// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package promjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	jsoniter "github.com/json-iterator/go"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/util/jsonutil"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// render returns what f writes.
func render(t testing.TB, f func(*Writer)) string {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	f(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func testHistogram() *histogram.FloatHistogram {
	return &histogram.FloatHistogram{
		Schema: 0, Count: 14, Sum: 18.5, ZeroThreshold: 0.25, ZeroCount: 3,
		PositiveSpans:   []histogram.Span{{Offset: 0, Length: 2}, {Offset: 1, Length: 2}},
		PositiveBuckets: []float64{4, 0, 2.5, 1e-7},
		NegativeSpans:   []histogram.Span{{Offset: 0, Length: 1}},
		NegativeBuckets: []float64{4.5},
	}
}

// TestValues compares with answers of Prometheus 3.
func TestValues(t *testing.T) {
	up := labels.FromStrings("__name__", "up", "job", "a\"b\\\n<é\x01")
	for _, tc := range []struct {
		name  string
		value parser.Value
		want  string
	}{
		{"scalar", promql.Scalar{T: 4000, V: 2}, `[4,"2"]`},
		{"scalar, no exponent", promql.Scalar{T: 1435781451781, V: 1e21}, `[1435781451.781,"1000000000000000000000"]`},
		{"scalar, shortest time", promql.Scalar{T: 1100, V: math.Inf(-1)}, `[1.1,"-Inf"]`},
		{"string", promql.String{T: 1500, V: "x\"y"}, `[1.5,"x\"y"]`},
		{"no vector", promql.Vector(nil), `[]`},
		{"no matrix", promql.Matrix(nil), `[]`},
		{"no metric", promql.Vector{{T: 1, F: 1}}, `[{"metric":{},"value":[0.001,"1"]}]`},
		{"vector", promql.Vector{
			{Metric: up, T: -1500, F: math.NaN()},
			{Metric: labels.FromStrings("a", "b"), T: 10, H: testHistogram()},
		}, `[{"metric":{"__name__":"up","job":"a\"b\\\n<é\u0001"},"value":[-1.500,"NaN"]},` +
			`{"metric":{"a":"b"},"histogram":[0.010,{"count":"14","sum":"18.5","buckets":[[1,"-1","-0.5","4.5"],[3,"-0.25","0.25","3"],[0,"0.5","1","4"],[0,"4","8","2.5"],[0,"8","16","1e-07"]]}]}]`},
		{"matrix", promql.Matrix{
			{Metric: labels.FromStrings("a", "1"), Floats: []promql.FPoint{{T: 1000, F: 1}, {T: 2001, F: math.Inf(1)}}},
			{Metric: labels.FromStrings("a", "2"), Floats: []promql.FPoint{{T: 1000, F: 1}}, Histograms: []promql.HPoint{{T: 2000, H: &histogram.FloatHistogram{}}}},
			{Metric: labels.FromStrings("a", "3"), Histograms: []promql.HPoint{{T: 2000, H: &histogram.FloatHistogram{}}}},
		}, `[{"metric":{"a":"1"},"values":[[1,"1"],[2.001,"+Inf"]]},` +
			`{"metric":{"a":"2"},"values":[[1,"1"]],"histograms":[[2,{"count":"0","sum":"0"}]]},` +
			`{"metric":{"a":"3"},"histograms":[[2,{"count":"0","sum":"0"}]]}]`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := render(t, func(w *Writer) { w.Value(tc.value) })
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if !json.Valid([]byte(got)) {
				t.Errorf("not JSON: %s", got)
			}
		})
	}
}

type otherValue struct{ promql.Vector }

func TestUnknownValue(t *testing.T) {
	w := NewWriter(io.Discard)
	w.Value(otherValue{})
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "otherValue") {
		t.Fatalf("error %v, want one that names the type", err)
	}
}

// reference is jsoniter with the functions that Prometheus itself uses.
func reference(f func(*jsoniter.Stream)) string {
	stream := jsoniter.NewStream(jsoniter.ConfigCompatibleWithStandardLibrary, nil, 64)
	f(stream)
	return string(stream.Buffer())
}

func FuzzNumbers(f *testing.F) {
	for _, v := range []float64{0, math.Copysign(0, -1), 1, -1, 0.1, 1e-6, 9e-7, 1e15, 1e15 + 2, -1e15, 1e20, 1e21, 123456789.25, math.MaxFloat64, math.SmallestNonzeroFloat64, math.NaN(), math.Inf(1), math.Inf(-1)} {
		f.Add(v, int64(v))
	}
	f.Add(0.5, int64(-1001))
	f.Add(0.5, int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, v float64, ts int64) {
		want := reference(func(s *jsoniter.Stream) { jsonutil.MarshalFloat(v, s) })
		if got := string(appendFloat(nil, v)); got != want {
			t.Errorf("float %v: %s, want %s", v, got, want)
		}
		if ts == math.MinInt64 {
			return // the reference overflows; see TestLeastTimestamp
		}
		want = reference(func(s *jsoniter.Stream) { jsonutil.MarshalTimestamp(ts, s) })
		if got := string(appendTimestamp(nil, ts)); got != want {
			t.Errorf("time %d: %s, want %s", ts, got, want)
		}
	})
}

func TestLeastTimestamp(t *testing.T) {
	if got := string(appendTimestamp(nil, math.MinInt64)); got != "-9223372036854775.808" {
		t.Error(got)
	}
}

func FuzzString(f *testing.F) {
	for _, s := range []string{"", "abc", "\"\\\n\r\t\x00\x1f\x7f", "é€😀", "\xff\xfe", "a\xc3", "\u2028", "<&>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := appendString(nil, s)
		if !utf8.Valid(got) {
			t.Fatalf("%q is no UTF-8", got)
		}
		var back string
		if err := json.Unmarshal(got, &back); err != nil {
			t.Fatalf("%q: %v", got, err)
		}
		// Byte by byte, as package json replaces them.
		var want strings.Builder
		for _, r := range s {
			want.WriteRune(r)
		}
		if back != want.String() {
			t.Errorf("%q became %q", s, back)
		}
	})
}

func FuzzHistogram(f *testing.F) {
	f.Add(int32(0), 1.5, 2.5, 0.25, uint32(3))
	f.Add(int32(-4), -1.5, math.Inf(1), 0.0, uint32(1))
	f.Fuzz(func(t *testing.T, schema int32, a, b, zero float64, gap uint32) {
		h := &histogram.FloatHistogram{
			Schema: schema%5 + 1, Count: a, Sum: b, ZeroThreshold: math.Abs(zero), ZeroCount: a,
			PositiveSpans: []histogram.Span{{Offset: 1, Length: 1}, {Offset: int32(gap % 100), Length: 1}}, PositiveBuckets: []float64{a, b},
			NegativeSpans: []histogram.Span{{Offset: -1, Length: 1}}, NegativeBuckets: []float64{b},
		}
		want := reference(func(s *jsoniter.Stream) { jsonutil.MarshalHistogram(h, s) })
		if got := string(appendHistogram(nil, h)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

func TestCustomBuckets(t *testing.T) {
	h := &histogram.FloatHistogram{
		Schema: histogram.CustomBucketsSchema, Count: 3, Sum: 4, CustomValues: []float64{1, 2},
		PositiveSpans: []histogram.Span{{Length: 3}}, PositiveBuckets: []float64{1, 1, 1},
	}
	want := reference(func(s *jsoniter.Stream) { jsonutil.MarshalHistogram(h, s) })
	if got := string(appendHistogram(nil, h)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// broken fails from the nth write on.
type broken struct{ writes, failAt, largest int }

var errBroken = errors.New("broken")

func (b *broken) Write(p []byte) (int, error) {
	b.writes++
	b.largest = max(b.largest, len(p))
	if b.failAt > 0 && b.writes >= b.failAt {
		return 0, errBroken
	}
	return len(p), nil
}

func matrix(series, points int) promql.Matrix {
	m := make(promql.Matrix, series)
	for i := range m {
		m[i].Metric = labels.FromStrings("__name__", "http_requests_total", "cluster", "eu1", "instance", fmt.Sprintf("host-%d:9100", i), "job", "node")
		m[i].Floats = make([]promql.FPoint, points)
		for j := range m[i].Floats {
			m[i].Floats[j] = promql.FPoint{T: 1700000000000 + int64(j)*15000, F: float64(i*j) + float64(j)/7}
		}
	}
	return m
}

// TestStreams checks that an answer passes through in pieces, and that nothing
// more is done for a client that has gone.
func TestStreams(t *testing.T) {
	m := matrix(200, 250)
	out := &broken{}
	w := NewWriter(out)
	w.Value(m)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if out.writes < 10 || out.largest > 2*flushSize {
		t.Errorf("%d writes of at most %d bytes, want many small ones", out.writes, out.largest)
	}

	out = &broken{failAt: 2}
	w = NewWriter(out)
	w.Value(m)
	w.JSON(map[string]int{"a": 1})
	if err := w.Err(); !errors.Is(err, errBroken) {
		t.Errorf("Err: %v", err)
	}
	if err := w.Close(); !errors.Is(err, errBroken) {
		t.Errorf("Close: %v", err)
	}
	if out.writes != 2 {
		t.Errorf("%d writes, want none after the one that failed", out.writes)
	}
}

func TestJSON(t *testing.T) {
	got := render(t, func(w *Writer) {
		w.Raw("[")
		w.JSON(map[string]string{"a": "<b>"})
		w.Raw(",")
		w.Strings(nil)
		w.Raw(",")
		w.Strings([]string{"x", "y"})
		w.Raw(",")
		w.LabelSets([]labels.Labels{labels.EmptyLabels(), labels.FromStrings("a", "b")})
		w.Raw("]")
	})
	if want := `[{"a":"<b>"},[],["x","y"],[{},{"a":"b"}]]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	w := NewWriter(io.Discard)
	w.JSON(math.NaN())
	if w.Close() == nil {
		t.Error("no error for a value that has no JSON")
	}
}

func TestTree(t *testing.T) {
	datadriven.RunTest(t, "testdata/tree", func(t *testing.T, d *datadriven.TestData) string {
		e, err := parser.ParseExpr(d.Input)
		if err != nil {
			return err.Error() + "\n"
		}
		tree, err := Tree(e)
		if err != nil {
			return err.Error() + "\n"
		}
		b, err := json.MarshalIndent(tree, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		return string(b) + "\n"
	})
}

func TestTreeUnknown(t *testing.T) {
	for _, e := range []parser.Expr{
		&parser.StepInvariantExpr{},
		&parser.ParenExpr{Expr: &parser.StepInvariantExpr{}},
		&parser.MatrixSelector{VectorSelector: &parser.StepInvariantExpr{}},
		&parser.AggregateExpr{Param: &parser.StepInvariantExpr{}},
		&parser.BinaryExpr{LHS: &parser.StepInvariantExpr{}},
		&parser.Call{Func: &parser.Function{}, Args: parser.Expressions{&parser.StepInvariantExpr{}}},
	} {
		if _, err := Tree(e); err == nil {
			t.Errorf("%T: no error", e)
		}
	}
}

func BenchmarkMatrix(b *testing.B) {
	m := matrix(1000, 250)
	b.Run("promjson", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w := NewWriter(io.Discard)
			w.Value(m)
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoding-json", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := json.NewEncoder(io.Discard).Encode(m); err != nil {
				b.Fatal(err)
			}
		}
	})
	// What Prometheus does, without the reflection around it.
	b.Run("jsoniter", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s := jsoniter.NewStream(jsoniter.ConfigCompatibleWithStandardLibrary, io.Discard, 4096)
			s.WriteArrayStart()
			for _, series := range m {
				s.WriteObjectStart()
				series.Metric.Range(func(l labels.Label) {
					s.WriteString(l.Name)
					s.WriteRaw(`:`)
					s.WriteString(l.Value)
				})
				for _, p := range series.Floats {
					s.WriteArrayStart()
					jsonutil.MarshalTimestamp(p.T, s)
					s.WriteMore()
					jsonutil.MarshalFloat(p.F, s)
					s.WriteArrayEnd()
				}
				s.WriteObjectEnd()
			}
			s.WriteArrayEnd()
			_ = s.Flush()
		}
	})
}
