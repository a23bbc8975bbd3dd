// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package corpus

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/promweave/promweave/sdk/backend/shaping"
)

// DefaultStart is when the data begin unless they are to begin elsewhere:
// 2026-01-05T08:00:00Z, in ms.
const DefaultStart int64 = 1767600000000

const (
	second   int64 = 1000
	minute         = 60 * second
	hour           = 60 * minute
	blockLen       = 2 * hour // of a TSDB: series cross its edges
	span           = 5 * hour // of raw samples
)

// Options say which corpus it is.
type Options struct {
	// Start of the data, ms; 0 is DefaultStart. It is rounded down to two hours.
	Start int64
	// Seed of the generated series; 0 is 1. Generated is their number; 0 is 200.
	Seed      uint64
	Generated int
}

// Corpus is the data.
type Corpus struct {
	Start     int64
	Seed      uint64
	Generated int
	// Series in order of their stored labels.
	Series    []Series
	Exemplars []Exemplar
	Metadata  []MetricMetadata
	Levels    []Level
}

// All are the parts there are.
func All() []Part {
	return []Part{Base, Names, LabelText, Collisions, Values, Stale, Times, Wide, Histograms, Downsampled, Exemplars, Metadata}
}

// New makes the corpus.
func New(o Options) *Corpus {
	c := &Corpus{Start: cmp.Or(o.Start, DefaultStart), Seed: cmp.Or(o.Seed, 1), Generated: cmp.Or(o.Generated, 200)}
	c.Start -= ((c.Start % blockLen) + blockLen) % blockLen
	c.base()
	c.generated()
	c.odd()
	c.values()
	c.times()
	c.histograms()
	c.downsampled()
	c.beside()
	slices.SortFunc(c.Series, func(a, b Series) int { return labels.Compare(a.Labels, b.Labels) })
	return c
}

// Only is the corpus with some of its parts.
func (c *Corpus) Only(parts ...Part) *Corpus {
	out := &Corpus{Start: c.Start, Seed: c.Seed, Generated: c.Generated}
	for _, s := range c.Series {
		if slices.Contains(parts, s.Part) {
			out.Series = append(out.Series, s)
		}
	}
	if slices.Contains(parts, Downsampled) {
		out.Levels = c.Levels
	}
	if slices.Contains(parts, Exemplars) {
		out.Exemplars = c.Exemplars
	}
	if slices.Contains(parts, Metadata) {
		out.Metadata = c.Metadata
	}
	return out
}

// Parts that are there.
func (c *Corpus) Parts() (out []Part) {
	for _, p := range All() {
		if p == Exemplars && len(c.Exemplars) > 0 || p == Metadata && len(c.Metadata) > 0 ||
			slices.ContainsFunc(c.Series, func(s Series) bool { return s.Part == p }) {
			out = append(out, p)
		}
	}
	return out
}

// Bounds of samples and windows, ms.
func (c *Corpus) Bounds() (minTime, maxTime int64) {
	minTime, maxTime = math.MaxInt64, math.MinInt64
	for _, s := range c.Series {
		minTime, maxTime = min(minTime, s.Samples[0].T), max(maxTime, s.Samples[len(s.Samples)-1].T)
	}
	for _, l := range c.Levels {
		minTime, maxTime = min(minTime, l.Windows[0].T), max(maxTime, l.Windows[len(l.Windows)-1].T)
	}
	return minTime, maxTime
}

// Samples is their number, without windows.
func (c *Corpus) Samples() (n int) {
	for _, s := range c.Series {
		n += len(s.Samples)
	}
	return n
}

// Digest is the SHA-256 of everything in it, in hex.
func (c *Corpus) Digest() string {
	h := sha256.New()
	text := func(s string) {
		_ = binary.Write(h, binary.LittleEndian, int64(len(s)))
		_, _ = h.Write([]byte(s))
	}
	set := func(ls labels.Labels) {
		ls.Range(func(l labels.Label) { text(l.Name); text(l.Value) })
		text("")
	}
	number := func(v ...any) {
		for _, x := range v {
			if f, ok := x.(float64); ok {
				x = math.Float64bits(f)
			}
			_ = binary.Write(h, binary.LittleEndian, x)
		}
	}
	for _, s := range c.Series {
		text(string(s.Part))
		set(s.Labels)
		for _, x := range s.Samples {
			number(x.T, x.F)
			switch {
			case x.H != nil:
				text(x.H.String())
				number(int64(x.H.CounterResetHint))
			case x.FH != nil:
				text(x.FH.String())
				number(int64(x.FH.CounterResetHint))
			}
		}
	}
	for _, e := range c.Exemplars {
		set(e.Series)
		set(e.Labels)
		number(e.Time, e.Value)
	}
	for _, m := range c.Metadata {
		text(m.Metric + "\x00" + m.Type + "\x00" + m.Help + "\x00" + m.Unit)
	}
	for _, l := range c.Levels {
		set(l.Labels)
		number(l.Resolution)
		for _, w := range l.Windows {
			number(w.T, w.Count, w.Sum, w.Min, w.Max, w.Counter)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (c *Corpus) add(p Part, samples []shaping.Sample, pairs ...string) {
	c.Series = append(c.Series, Series{p, labels.FromStrings(pairs...), samples})
}

// each is one sample a minute over the whole span.
func (c *Corpus) each(f func(i int) float64) (out []shaping.Sample) {
	for i := range int(span / minute) {
		out = append(out, shaping.Sample{T: c.Start + int64(i)*minute, F: f(i)})
	}
	return out
}

// at is the samples at these times after the start, 1, 2, 3, ….
func (c *Corpus) at(times ...int64) (out []shaping.Sample) {
	for i, t := range times {
		out = append(out, shaping.Sample{T: c.Start + t, F: float64(i + 1)})
	}
	return out
}

func constant(v float64) func(int) float64 { return func(int) float64 { return v } }

func (c *Corpus) base() {
	// The series of the Thanos acceptance test "matching behavior".
	for i, s := range [][]string{{"n", "1"}, {"n", "1", "i", "a"}, {"n", "1", "i", "b"}, {"n", "2"}, {"n", "2.5"}} {
		c.add(Base, c.each(func(k int) float64 { return float64(i*1000 + k) }), append([]string{"__name__", "cert_matrix"}, s...)...)
	}
	c.add(Base, c.each(constant(1)), "__name__", "cert_env", "tier", "absent")
	for i, v := range []string{"PROD", "prod", "production", "None", "none"} {
		c.add(Base, c.each(constant(float64(i))), "__name__", "cert_env", "env", v)
	}
	// Label sets that others begin with, and names on both sides of those of external labels.
	for _, s := range [][]string{{"a", "1"}, {"a", "1", "b", "2"}, {"ab", "1"}, {"a", "1", "zone", "x"}, {"cluster_name", "x"}, {"clusteq", "x"}, {"replica_set", "y"}, {"zone", "x"}} {
		c.add(Base, c.each(constant(2)), append([]string{"__name__", "cert_prefix"}, s...)...)
	}
	for i := range 8 {
		every := 50 + 13*i
		c.add(Base, c.each(func(k int) float64 { return float64(k % every * (i + 1)) }), // begins anew, as counters do
			"__name__", "cert_requests_total", "job", fmt.Sprint("api-", i%3), "instance", fmt.Sprintf("10.0.0.%d:9100", i))
	}
	for i := range 3 {
		c.add(Base, c.each(func(k int) float64 { return 20 + float64(i) + math.Round(1000*math.Sin(float64(k)/7))/1000 }),
			"__name__", "cert_temperature_celsius", "job", "rooms", "room", string(rune('a'+i)))
	}
}

func (c *Corpus) generated() {
	r := rand.New(rand.NewPCG(c.Seed, 2))
	names := []string{"app", "code", "pod", "zone"}
	for i := range c.Generated {
		pairs := []string{"__name__", fmt.Sprint("cert_generated_", i%20), "series", fmt.Sprint(i)}
		for k, n := range names {
			if r.IntN(3) > 0 {
				pairs = append(pairs, n, fmt.Sprintf("%c%d", 'w'+rune(k%3), r.IntN(4+8*k)))
			}
		}
		var samples []shaping.Sample
		t := c.Start + r.Int64N(span/2)
		for range 1 + r.IntN(40) {
			samples = append(samples, shaping.Sample{T: t, F: float64(r.IntN(1_000_000)) / 64})
			if t += 1 + r.Int64N(10*minute); t >= c.Start+span {
				break
			}
		}
		c.add(Base, samples, pairs...)
	}
}

func (c *Corpus) odd() {
	names := [][]string{
		{"instance", "nameless", "job", "x"}, {"job", "y", "zone", "nameless"},
		{"__name__", "cert:rate:5m", "job", "x"}, {"__name__", "job:cert_requests:rate5m"}, {"__name__", "cert.m.dot-dash"}, {"__name__", "cert_ü"},
		{"__name__", "cert_names", "A", "1", "_x", "2"}, {"__name__", "cert_names", "time", "1", "value", "2", "name", "3"},
		{"__name__", "cert_names", "_field", "1", "_measurement", "2"}, {"__name__", "cert_names", "le", "+Inf", "quantile", "0.9"},
		{"__name__", "cert_names", "label.with-dots", "1"}, {"__name__", "cert_names", "größe", "1"}, {"__name__", "cert_names", "a", "1", "B", "2", "b", "3"},
	}
	for i, s := range names {
		c.add(Names, c.each(constant(float64(i))), s...)
	}
	texts := []string{
		"with space", "a,b", "a=b", `say "hi"`, "it's", `back\slash`, `ends in \`, "pr\nod", "tab\there", "ü", "漢字", "\U0001F600", "\uFF5E", "\U00010000",
		" leading", "trailing ", `a.c|(b+`, "prod", "{}", "%s%d", "\x01", "\u00a0", "null", "0", "-", "e\u0301", "\u00e9",
	}
	for i, v := range texts {
		c.add(LabelText, c.each(constant(float64(i))), "__name__", "cert_text", "text", v)
	}
	for _, s := range [][]string{
		{"cluster", "stored", "n", "1"}, {"region", "stored", "n", "2"}, {"cluster", "stored", "region", "stored", "n", "3"},
		{"n", "4", "replica", "a"}, {"n", "4", "replica", "b"}, {"n", "5", "replica", "a", "zone", "q"}, {"n", "5", "replica", "b", "zone", "q"}, {"n", "5", "q", "1"},
		{"n", "6"}, {"n", "6", "q", "1", "replica", "x"}, {"a", "1", "replica", "x"}, {"a", "1", "q", "1", "replica", "x"},
	} {
		c.add(Collisions, c.each(constant(float64(len(s)))), append([]string{"__name__", "cert_collision"}, s...)...)
	}
	for i := range 70 {
		word := fmt.Sprintf("wide-%02d-", i)
		c.add(Wide, c.at(0, minute), "__name__", "cert_wide", "wide", strings.Repeat(word, 70_000/len(word)))
	}
}

func (c *Corpus) values() {
	nan, inf := math.Float64frombits(value.NormalNaN), math.Inf(1)
	for name, list := range map[string][]float64{
		"nan": {nan}, "inf": {inf}, "minus_inf": {-inf}, "zero": {math.Copysign(0, -1), 0}, "odd_integer": {1<<53 + 1, 1<<53 - 1}, "huge": {1e308, -1e308, math.MaxFloat64},
		"tiny": {5e-324, -5e-324}, "fraction": {1e15 + 0.123456789, 0.1, 1.0 / 3}, "mixed": {nan, 1, inf, -inf, 0, 1e308, 5e-324, -1},
	} {
		c.add(Values, c.each(func(i int) float64 { return list[i%len(list)] }), "__name__", "cert_value", "kind", name)
	}
	stale := math.Float64frombits(value.StaleNaN)
	c.add(Stale, c.each(func(i int) float64 {
		if i%50 == 10 {
			return stale
		}
		return float64(i)
	}), "__name__", "cert_stale", "kind", "middle")
	c.add(Stale, c.each(func(i int) float64 {
		if i == int(span/minute)-1 {
			return stale
		}
		return float64(i)
	}), "__name__", "cert_stale", "kind", "end")
	c.add(Stale, []shaping.Sample{{T: c.Start + hour, F: stale}}, "__name__", "cert_stale", "kind", "only")
}

func (c *Corpus) times() {
	add := func(kind string, times ...int64) { c.add(Times, c.at(times...), "__name__", "cert_time", "kind", kind) }
	add("neighbours", 17*minute, 17*minute+1)
	add("edge", 2*hour)
	add("before_edge", 2*hour-1)
	add("after_edge", 2*hour+1)
	add("first", 0)
	var gap, early, late, dense []int64
	for i := range int64(10) {
		gap, early, late = append(gap, i*minute), append(early, i*minute), append(late, span-10*minute+i*minute)
	}
	for i := range int64(300) {
		dense = append(dense, 90*minute+i)
	}
	add("gap", append(gap, late...)...)
	add("early", early...)
	add("late", late...)
	add("dense", dense...)
	add("odd_seconds", 1, 999, 1001, 59_999, 60_001, 61_500)
}

// bucketed is a native histogram with n observations in each of its buckets, as it grows.
func bucketed(n uint64, hint histogram.CounterResetHint) *histogram.Histogram {
	return &histogram.Histogram{
		CounterResetHint: hint, Schema: 1, ZeroThreshold: 0.001, ZeroCount: n, Count: 7 * n, Sum: float64(n) * 18.4,
		PositiveSpans: []histogram.Span{{Offset: 0, Length: 2}, {Offset: 1, Length: 2}}, PositiveBuckets: []int64{int64(n), 0, 0, 0},
		NegativeSpans: []histogram.Span{{Offset: 0, Length: 2}}, NegativeBuckets: []int64{int64(n), 0},
	}
}

func (c *Corpus) histograms() {
	var ints, floats, gauges, mixed []shaping.Sample
	for i := range int(span / minute) {
		t, n := c.Start+int64(i)*minute, uint64(1+i%130)
		ints = append(ints, shaping.Sample{T: t, H: bucketed(n, histogram.UnknownCounterReset)})
		floats = append(floats, shaping.Sample{T: t, FH: bucketed(n, histogram.UnknownCounterReset).ToFloat(nil)})
		gauges = append(gauges, shaping.Sample{T: t, H: bucketed(uint64(1+(i*7)%13), histogram.GaugeType)})
		if i%100 < 50 {
			mixed = append(mixed, shaping.Sample{T: t, F: float64(i)})
		} else {
			mixed = append(mixed, shaping.Sample{T: t, H: bucketed(n, histogram.UnknownCounterReset)})
		}
	}
	c.add(Histograms, ints, "__name__", "cert_histogram", "kind", "integer")
	c.add(Histograms, floats, "__name__", "cert_histogram", "kind", "float")
	c.add(Histograms, gauges, "__name__", "cert_histogram", "kind", "gauge")
	c.add(Histograms, mixed, "__name__", "cert_histogram", "kind", "mixed")
}

// downsampled is all before the start, where nothing else is: in a bucket a downsampled block is
// read in place of all series of its time. Raw samples, windows of 5 minutes and of an hour end
// together, and each reaches farther back than the ones before.
func (c *Corpus) downsampled() {
	for i := range 3 {
		value := func(t int64) float64 { return float64((t-c.Start)/minute+4000) * float64(i+1) }
		pairs := []string{"__name__", "cert_downsampled", "app", fmt.Sprint("app-", i)}
		var raw []shaping.Sample
		for t := c.Start - 4*hour; t < c.Start; t += minute {
			raw = append(raw, shaping.Sample{T: t, F: value(t)})
		}
		c.add(Downsampled, raw, pairs...)
		for _, l := range []struct{ resolution, from int64 }{{5 * minute, -10 * hour}, {hour, -48 * hour}} {
			out := Level{Labels: labels.FromStrings(pairs...), Resolution: l.resolution}
			for t := c.Start + l.from; t < c.Start; t += l.resolution {
				// One hour is missing, so that there is a gap to fill.
				if l.resolution == hour && t == c.Start-6*hour {
					continue
				}
				w := Window{T: t + l.resolution - 1, Min: math.Inf(1), Max: math.Inf(-1)}
				for x := t; x < t+l.resolution; x += minute {
					v := value(x)
					w.Count, w.Sum, w.Min, w.Max, w.Counter = w.Count+1, w.Sum+v, min(w.Min, v), max(w.Max, v), v
				}
				out.Windows = append(out.Windows, w)
			}
			c.Levels = append(c.Levels, out)
		}
	}
}

func (c *Corpus) beside() {
	for _, s := range c.Series {
		if s.Labels.Get("__name__") != "cert_requests_total" {
			continue
		}
		for k, t := range []int64{3 * minute, 100*minute + 1} {
			c.Exemplars = append(c.Exemplars, Exemplar{Series: s.Labels, Labels: labels.FromStrings("trace_id", fmt.Sprintf("%s-%d", s.Labels.Get("instance"), k)), Value: float64(k) + 0.5, Time: c.Start + t})
		}
	}
	c.Metadata = []MetricMetadata{
		{"cert_env", "gauge", "An environment.", ""},
		{"cert_histogram", "histogram", "How long it took.", "seconds"},
		{"cert_matrix", "gauge", `With "quotes" and a \ backslash.`, ""},
		{"cert_requests_total", "counter", "Requests so far.", ""},
		{"cert_temperature_celsius", "gauge", "Température.", "celsius"},
	}
}
