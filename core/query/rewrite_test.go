// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/sdk/backend"
)

// windowed is a series with a sample every half minute whose value is the minute: an hour of it as
// windows of five minutes, then ten minutes raw, of which the last sample is stale.
func windowed(ls labels.Labels) backend.Series {
	out := backend.Series{Labels: ls}
	var ts [5][]int64
	var vs [5][]float64
	for end := int64(299_999); end < 3_600_000; end += 300_000 {
		n, sum, low, high := 0.0, 0.0, math.Inf(1), math.Inf(-1)
		for t := end - 299_999; t <= end; t += 30_000 {
			v := float64(t / 60_000)
			n, sum, low, high = n+1, sum+v, min(low, v), max(high, v)
		}
		for i, v := range []float64{n, sum, low, high, high} {
			ts[i], vs[i] = append(ts[i], end), append(vs[i], v)
		}
	}
	a := &backend.AggregateChunks{}
	for i, e := range []*backend.Encoded{&a.Count, &a.Sum, &a.Min, &a.Max, &a.Counter} {
		c := fakestore.Floats(ls, ts[i], vs[i]).Chunks[0]
		*e = c.Raw
		if i == 0 {
			out.Chunks = append(out.Chunks, backend.Chunk{MinTime: c.MinTime, MaxTime: c.MaxTime, Aggregates: a})
		}
	}
	var raw []int64
	var values []float64
	for t := int64(3_600_000); t <= 4_200_000; t += 30_000 {
		raw, values = append(raw, t), append(values, float64(t/60_000))
	}
	values[len(values)-1] = math.Float64frombits(value.StaleNaN)
	out.Chunks = append(out.Chunks, fakestore.Floats(ls, raw, values).Chunks...)
	return out
}

// TestWindowsCount: what counts and averages samples is as right over windows, and over windows
// and raw samples together, as it would be over all of the samples.
func TestWindowsCount(t *testing.T) {
	b := fakestore.Holding(labels.EmptyLabels(), windowed(labels.FromStrings("__name__", "up", "job", "x")), windowed(labels.FromStrings("__name__", "up", "job", "y")))
	b.Capabilities.Downsampled = true
	s, _ := serve(t, query.Config{}, spec("coarse", b))
	end := time.UnixMilli(4_199_999)
	for _, engine := range engines {
		o := s.DefaultOptions()
		o.Engine, o.MaxSourceResolution = engine, 300_000
		for q, want := range map[string]string{
			`count_over_time(up{job="x"}[70m])`:                                        `{job="x"} => 140 @[4199999]`,
			`count_over_time(((up{job="x"}[20m])))`:                                    `{job="x"} => 40 @[4199999]`,
			`count_over_time(up{job="x"}[10m] offset 10m)`:                             `{job="x"} => 20 @[4199999]`,
			`count_over_time(up{job="x"}[5m] @ 1799.999)`:                              `{job="x"} => 10 @[4199999]`,
			`avg_over_time(up{job="x"}[70m])`:                                          `{job="x"} => 34.5 @[4199999]`,
			`avg_over_time(up{job="x"}[20m]) * 2`:                                      `{job="x"} => 119 @[4199999]`,
			`sum(count_over_time(up[70m])) + count(up)`:                                `{} => 282 @[4199999]`,
			`count_over_time(up{job="x"}[70m]) - count_over_time(up{job="x"}[70m])`:    `{job="x"} => 0 @[4199999]`,
			`-max without (job) (avg_over_time(up[70m])) + sum(avg_over_time(up[1h]))`: `{} => 44.5 @[4199999]`,
			`sum_over_time(up{job="x"}[70m]) / count_over_time(up{job="x"}[70m])`:      `{job="x"} => 34.5 @[4199999]`,
			`max_over_time(count_over_time(up{job="x"}[10m] offset 1ms)[30m:10m])`:     `{job="x"} => 20 @[4199999]`,
			`count_over_time(up{job="x"}[10m:1m])`:                                     `{job="x"} => 10 @[4199999]`,
			`topk(scalar(count_over_time(up{job="x"}[30s])), up{job="y"})`:             `{__name__="up", job="y"} => 69 @[4199999]`,
		} {
			res, err := s.Instant(t.Context(), &query.Request{Query: q, Start: end, End: end, Options: o})
			if err != nil {
				t.Errorf("%s: %s: %v", engine, q, err)
				continue
			}
			if got := text(res.Value); got != want {
				t.Errorf("%s: %s: %s, want %s", engine, q, got, want)
			}
			if res.Report.Query != q {
				t.Errorf("the report is of %q", res.Report.Query)
			}
			res.Close()
		}
	}
}

// TestWindowsReport: the report says what was asked of backends, and nothing of the mark; a query
// that has such a label of its own keeps it, and is left alone.
func TestWindowsReport(t *testing.T) {
	b := fakestore.Holding(labels.EmptyLabels(), windowed(labels.FromStrings("__name__", "up", "__promweave_counts__", "1")))
	b.Capabilities.Downsampled = true
	s, _ := serve(t, query.Config{}, spec("coarse", b))
	end := time.UnixMilli(3_599_999)
	o := s.DefaultOptions()
	o.MaxSourceResolution = 300_000
	for q, want := range map[string]struct {
		value string
		aggs  [][]string
		match int
	}{
		`sum(avg_over_time(up[1h]))`:                              {`{} => 29.5 @[3599999]`, [][]string{{"sum"}, {"count"}}, 1},
		`sum(count_over_time(up{__promweave_counts__="1"}[1h]))`:  {`{} => 12 @[3599999]`, [][]string{{"count"}}, 2},
		`sum(count_over_time(up{__promweave_counts__!="1"}[1h]))`: {``, [][]string{{"count"}}, 2},
	} {
		res, err := s.Instant(t.Context(), &query.Request{Query: q, Start: end, End: end, Options: o})
		if err != nil {
			t.Fatal(err)
		}
		if got := text(res.Value); got != want.value {
			t.Errorf("%s: %s, want %s", q, got, want.value)
		}
		var aggs [][]string
		for _, sel := range res.Report.Selects {
			aggs = append(aggs, sel.Aggregates)
			if len(sel.Matchers) != want.match {
				t.Errorf("%s: %q", q, sel.Matchers)
			}
		}
		if !slices.EqualFunc(aggs, want.aggs, slices.Equal[[]string]) {
			t.Errorf("%s: aggregates %q, want %q", q, aggs, want.aggs)
		}
		res.Close()
	}
}
