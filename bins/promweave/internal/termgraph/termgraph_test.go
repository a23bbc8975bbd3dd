// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package termgraph

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cockroachdb/datadriven"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var nan = math.NaN()

// TestGraph draws functions; testdata/graph shows what comes out. Commands:
//
//	graph f=NAME [width=N] [height=N] [color]
func TestGraph(t *testing.T) {
	functions := map[string][]func(i int) float64{
		"flat":  {func(int) float64 { return 7 }},
		"zero":  {func(int) float64 { return 0 }},
		"ramp":  {func(i int) float64 { return float64(i) }},
		"cross": {func(i int) float64 { return float64(i) }, func(i int) float64 { return float64(59 - i) }},
		"gap": {func(i int) float64 {
			return map[bool]float64{true: nan, false: 1e6 * math.Sin(float64(i)/9)}[i > 20 && i < 40]
		}},
		"spikes": {func(i int) float64 { return map[bool]float64{true: math.Inf(1), false: float64(i % 10)}[i == 30] }},
		"none":   {func(int) float64 { return nan }},
		"empty":  {},
	}
	for range 14 {
		n := len(functions["many"])
		functions["many"] = append(functions["many"], func(int) float64 { return float64(n) })
	}
	start := time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)
	datadriven.RunTest(t, "testdata/graph", func(t *testing.T, d *datadriven.TestData) string {
		o := Options{Width: 50, Height: 8, Start: start, End: start.Add(59 * time.Minute), Color: d.HasArg("color")}
		d.MaybeScanArgs(t, "width", &o.Width)
		d.MaybeScanArgs(t, "height", &o.Height)
		var name string
		d.ScanArgs(t, "f", &name)
		fs, ok := functions[name]
		if !ok {
			d.Fatalf(t, "no function %s", name)
		}
		var series []Series
		for n, f := range fs {
			s := Series{Name: fmt.Sprintf("%s{n=\"%d\"}", name, n)}
			for i := range 60 {
				// Samples that are missing are left out, as in an answer of the API.
				if v := f(i); !math.IsNaN(v) {
					s.Times, s.Values = append(s.Times, start.Add(time.Duration(i)*time.Minute)), append(s.Values, v)
				}
			}
			series = append(series, s)
		}
		var b strings.Builder
		if err := Graph(&b, series, o); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > max(o.Width, 40) && !o.Color {
				t.Errorf("line of %d characters, %d are there: %q", n, o.Width, line)
			}
		}
		return strings.NewReplacer("\x1b", "ESC", " \n", "$\n").Replace(b.String())
	})
}

func TestSpark(t *testing.T) {
	for _, c := range []struct {
		values []float64
		width  int
		want   string
	}{
		{nil, 5, ""},
		{[]float64{1}, 5, "▅"},
		{[]float64{0, 1, 2, 3, 4, 5, 6, 7}, 8, "▁▂▃▄▅▆▇█"},
		{[]float64{0, 9, 0, 0, 0, 0}, 3, "█▁▁"},
		{[]float64{0, nan, 1}, 9, "▁ █"},
		{[]float64{0, math.Inf(1), 1}, 9, "▁▅█"},
		{[]float64{nan, nan}, 9, "  "},
	} {
		if got := Spark(c.values, c.width); got != c.want {
			t.Errorf("Spark(%v, %d) is %q, want %q", c.values, c.width, got, c.want)
		}
	}
}

func TestValue(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1", -1.5: "-1.5", 999.96: "1000", 1234: "1.234k", -2e6: "-2M", 3.14159265e9: "3.142G", 1e12: "1T",
		1e20: "1.00e+20", 0.00001: "1.00e-05", 0.001: "0.001", math.Inf(-1): "-Inf",
	} {
		if got := Value(v); got != want {
			t.Errorf("Value(%v) is %q, want %q", v, got, want)
		}
	}
	if got := Value(nan); got != "NaN" {
		t.Errorf("Value(NaN) is %q", got)
	}
}

// FuzzGraph: whatever the values and times, nothing panics.
func FuzzGraph(f *testing.F) {
	f.Add(1.0, 2.0, math.MaxFloat64, int64(0), int64(60), 80, 20)
	f.Add(-math.MaxFloat64, math.MaxFloat64, 0.0, int64(60), int64(0), -1, 1<<20)
	f.Fuzz(func(t *testing.T, a, b, c float64, start, end int64, width, height int) {
		o := Options{Width: min(width, 500), Height: min(height, 200), Start: time.Unix(start, 0), End: time.Unix(end, 0)}
		s := Series{Name: "x", Values: []float64{a, b, c}, Times: []time.Time{time.Unix(start, 0), time.Unix(0, 0), time.Unix(end, 0)}}
		var out strings.Builder
		if err := Graph(&out, []Series{s}, o); err != nil {
			t.Error(err)
		}
		_ = Spark(s.Values, max(o.Width, 0))
	})
}
