// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/storepb"
)

// TestReportCanBeWritten: any report goes through JSON and back, also that of a
// request for all of time, whose years JSON has no form for.
func TestReportCanBeWritten(t *testing.T) {
	set := membership.New([]membership.Entry{{
		Spec:    membership.Spec{Name: "a", Kind: "test"},
		Backend: fakestore.Holding(labels.EmptyLabels(), fakestore.Floats(labels.FromStrings("__name__", "up"), []int64{0}, []float64{1})),
	}}, membership.Options{})
	defer set.Close()
	set.Refresh(t.Context())
	s, err := query.New(set, query.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	res, err := s.Series(t.Context(), &query.MetaRequest{
		Start: time.UnixMilli(math.MinInt64 / 2), End: time.UnixMilli(math.MaxInt64 / 2), Options: s.DefaultOptions(),
	})
	if err != nil || len(res.Series) != 1 {
		t.Fatalf("%v, %v", res, err)
	}
	b, err := json.Marshal(res.Report)
	if err != nil {
		t.Fatal(err)
	}
	var back report.Report
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if back.Completeness.State != report.Complete || back.ID != res.Report.ID || len(back.Selects) != 1 || back.Selects[0].Backends[0].Series != 1 {
		t.Errorf("%s", b)
	}
	for _, state := range []report.State{report.Unknown, report.Partial, report.Complete} {
		b, err := json.Marshal(state)
		var got report.State
		if err := json.Unmarshal(b, &got); err != nil || got != state {
			t.Errorf("%s became %q: %v", b, got, err)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if err := new(report.State).UnmarshalText([]byte("mostly")); err == nil {
		t.Error("a state that does not exist is read")
	}
}

func TestSumOfStatistics(t *testing.T) {
	stat := func(name string, v uint64) *storepb.Statistic { return &storepb.Statistic{Name: name, Value: v} }
	got := query.SumStatistics(map[string]*storepb.TSDBStatisticsEntry{
		"a": {HeadStatistics: &storepb.HeadStatistics{NumSeries: 2, MinTime: 5, MaxTime: 9}, SeriesCountByMetricName: []*storepb.Statistic{stat("up", 2), stat("x", 1)}},
		"b": {HeadStatistics: &storepb.HeadStatistics{NumSeries: 3, MinTime: 1, MaxTime: 7}, SeriesCountByMetricName: []*storepb.Statistic{stat("x", 3), stat("y", 1)}},
	}, 2)
	h := got.HeadStatistics
	if h.NumSeries != 5 || h.MinTime != 1 || h.MaxTime != 9 {
		t.Errorf("head %v", h)
	}
	if l := got.SeriesCountByMetricName; len(l) != 2 || l[0].Name != "x" || l[0].Value != 4 || l[1].Name != "up" {
		t.Errorf("by name %v, want x 4, up 2", l)
	}
	if h := query.SumStatistics(nil, 2).HeadStatistics; h.MinTime != 0 || h.MaxTime != 0 {
		t.Errorf("no head is %v", h)
	}
}

// TestDedupEffect: the report says what deduplication took from whom.
func TestDedupEffect(t *testing.T) {
	replica := func(name string, from, to int64) membership.Entry {
		var times []int64
		var values []float64
		for ts := from; ts < to; ts += 30_000 {
			times, values = append(times, ts), append(values, 1)
		}
		return membership.Entry{Spec: membership.Spec{Name: name, Kind: "test"}, Backend: fakestore.Holding(labels.FromStrings("replica", name, "zone", "z"),
			fakestore.Floats(labels.FromStrings("__name__", "up"), times, values))}
	}
	// a ends after ten minutes, b goes on.
	set := membership.New([]membership.Entry{replica("a", 0, 600_000), replica("b", 3000, 1_200_000)}, membership.Options{})
	defer set.Close()
	set.Refresh(t.Context())
	s, err := query.New(set, query.Config{ReplicaLabels: []string{"replica"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, engine := range engines {
		o := s.DefaultOptions()
		o.Engine = engine
		res, err := s.Instant(t.Context(), &query.Request{Query: "count_over_time(up[20m])", Start: time.UnixMilli(1_199_999), End: time.UnixMilli(1_199_999), Options: o})
		if err != nil {
			t.Fatal(err)
		}
		d := res.Report.Selects[0].Dedup
		if d.SeriesBefore != 2 || d.SeriesAfter != 1 || d.Switches != 1 || d.Samples["a"] != 20 || d.Samples["b"] != 19 || len(d.Samples) != 2 {
			t.Errorf("%s: %+v", engine, d)
		}
	}
}
