// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/prometheus/prometheus/util/stats"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/dedup"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

// fake answers by what the text of the query, the name of the label or metric, or
// the first matcher says. It notes the last call as text.
type fake struct {
	mu   sync.Mutex
	call string
	ids  atomic.Int64
	// finished counts calls of ReadResult.Finish.
	finished atomic.Int64
	// admit decides; nil admits everybody as operator.
	admit func(context.Context, *access.Ask) (*access.Grant, error)
}

func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.call = fmt.Sprintf(format, args...)
}

func (f *fake) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.call
	f.call = ""
	return c
}

func (*fake) DefaultOptions() query.Options {
	return query.Options{
		Dedup: true, Algorithm: dedup.Default, ReplicaLabels: []string{"replica"}, PartialResponse: true,
		MaxSourceResolution: query.AutoResolution, Engine: "prometheus", Timeout: 2 * time.Minute,
	}
}

// changed describes the options that are not the default.
func (f *fake) changed(o query.Options) string {
	d := f.DefaultOptions()
	var out []string
	add := func(name string, got, def any) {
		if g := fmt.Sprint(got); g != fmt.Sprint(def) {
			out = append(out, name+"="+g)
		}
	}
	add("dedup", o.Dedup, d.Dedup)
	add("algorithm", o.Algorithm, d.Algorithm)
	add("replicas", o.ReplicaLabels, d.ReplicaLabels)
	add("partial", o.PartialResponse, d.PartialResponse)
	add("resolution", o.MaxSourceResolution, d.MaxSourceResolution)
	add("stores", o.StoreMatch, d.StoreMatch)
	add("engine", o.Engine, d.Engine)
	add("lookback", o.LookbackDelta, d.LookbackDelta)
	add("timeout", o.Timeout, d.Timeout)
	add("steps", o.PerStepStats, d.PerStepStats)
	if o.Shard != nil {
		add("shard", *o.Shard, nil)
	}
	return strings.Join(out, " ")
}

func (f *fake) report(kind, key string) *report.Report {
	r := &report.Report{
		Version: report.Version, ID: fmt.Sprintf("id-%d", f.ids.Add(1)), Kind: kind,
		Completeness: report.Completeness{State: report.Complete},
	}
	if strings.Contains(key, "ancient") {
		r.Start, r.End = minTime, maxTime
	}
	switch {
	case strings.Contains(key, "partial"):
		r.Completeness.State = report.Partial
		r.Completeness.Missing = []report.Missing{{Backend: "b", Reason: report.ReasonTimeout, Detail: "after 5s"}}
	case strings.Contains(key, "unknown"):
		r.Completeness.State = report.Unknown
	case strings.Contains(key, "covered"):
		r.Completeness.Covered = []report.Missing{{Backend: "b", Reason: report.ReasonFailed}}
	case strings.Contains(key, "noreport"):
		return nil
	}
	return r
}

func (f *fake) fail(key string) error {
	_, kind, ok := strings.Cut(key, "fail_")
	if !ok {
		return nil
	}
	for _, k := range []struct {
		name string
		err  error
	}{
		{"bad", &query.Error{Kind: query.ErrBadData, Err: errors.New("bad")}},
		// The kind counts, not what the error wraps.
		{"exec", &query.Error{Kind: query.ErrExecution, Err: fmt.Errorf("backend b: %w", context.DeadlineExceeded), Report: f.report("instant", "partial")}},
		{"timeout", &query.Error{Kind: query.ErrTimeout, Err: errors.New("query timed out")}},
		{"canceled", &query.Error{Kind: query.ErrCanceled, Err: errors.New("query was canceled")}},
		{"unavailable", &query.Error{Kind: query.ErrUnavailable, Err: errors.New("backend b is missing")}},
		{"internal", &query.Error{Kind: query.ErrInternal, Err: errors.New("broken")}},
		{"limit", backend.Errorf(backend.ErrLimit, "too many series")},
		{"denied", backend.Errorf(backend.ErrDenied, "not yours")},
		{"refused_large", &query.Error{Kind: query.ErrDenied, Err: &access.Denied{Status: 413, Message: "too large"}}},
		{"refused_down", &query.Error{Kind: query.ErrDenied, Err: &access.Denied{Status: 503, Message: "not now"}}},
		{"refused_odd", &query.Error{Kind: query.ErrDenied, Err: &access.Denied{Status: 200, Message: "no"}}},
		{"refused", &query.Error{Kind: query.ErrDenied, Err: access.Forbidden("not for you")}},
		{"plain", errors.New("who knows")},
	} {
		if strings.HasPrefix(kind, k.name) {
			return k.err
		}
	}
	if strings.HasPrefix(kind, "panic") {
		panic("fake panic")
	}
	return nil
}

func (f *fake) Instant(_ context.Context, r *query.Request) (*query.Result, error) {
	f.note("instant %q at=%d %s", r.Query, r.Start.UnixMilli(), f.changed(r.Options))
	return f.result(r)
}

func (f *fake) Range(_ context.Context, r *query.Request) (*query.Result, error) {
	f.note("range %q start=%d end=%d step=%s %s", r.Query, r.Start.UnixMilli(), r.End.UnixMilli(), r.Step, f.changed(r.Options))
	return f.result(r)
}

func (f *fake) Explain(_ context.Context, r *query.Request) (*report.Report, error) {
	f.note("explain %q start=%d end=%d step=%s %s", r.Query, r.Start.UnixMilli(), r.End.UnixMilli(), r.Step, f.changed(r.Options))
	return f.report("explain", r.Query), f.fail(r.Query)
}

func (f *fake) result(r *query.Request) (*query.Result, error) {
	if err := f.fail(r.Query); err != nil {
		return nil, err
	}
	t := r.Start.UnixMilli()
	res := &query.Result{Report: f.report("instant", r.Query)}
	h := &histogram.FloatHistogram{Schema: 0, Count: 2, Sum: 3, PositiveSpans: []histogram.Span{{Length: 1}}, PositiveBuckets: []float64{2}}
	up := func(i string) labels.Labels { return labels.FromStrings("__name__", "up", "instance", i) }
	switch {
	case r.Query == "1+1":
		res.Value = promql.Scalar{T: t, V: 2}
	case r.Query == `"text"`:
		res.Value = promql.String{T: t, V: "text"}
	case strings.HasPrefix(r.Query, "special"):
		res.Value = promql.Vector{{Metric: up("a"), T: t, F: math.NaN()}, {Metric: up("b"), T: t, F: math.Inf(-1)}, {Metric: up("c"), T: t, H: h}}
	case strings.HasPrefix(r.Query, "big"):
		v := make(promql.Vector, 5000)
		for i := range v {
			v[i] = promql.Sample{Metric: up(fmt.Sprint(i)), T: t, F: float64(i)}
		}
		res.Value = v
	case r.Step > 0 || strings.HasSuffix(r.Query, "]"):
		res.Value = promql.Matrix{
			{Metric: up("a"), Floats: []promql.FPoint{{T: t, F: 1}, {T: t + 1500, F: 0.5}}},
			{Metric: up("b"), Histograms: []promql.HPoint{{T: t, H: h}}},
		}
	default:
		res.Value = promql.Vector{{Metric: up("a"), T: t, F: 1}, {Metric: up("b"), T: t, F: 0}}
	}
	if strings.Contains(r.Query, "annotated") {
		res.Annotations.Add(fmt.Errorf("%w: z", annotations.PromQLWarning))
		res.Annotations.Add(fmt.Errorf("%w: a", annotations.PromQLWarning))
		res.Annotations.Add(fmt.Errorf("%w: i", annotations.PromQLInfo))
	}
	res.Statistics = &stats.Statistics{Timers: stats.NewQueryTimers(), Samples: stats.NewQuerySamples(r.PerStepStats)}
	res.Statistics.Samples.TotalSamples = 7
	return res, nil
}

func (f *fake) meta(what string, r *query.MetaRequest) (string, error) {
	f.note("%s name=%q start=%d end=%d match=%v limit=%d %s", what, r.Name, r.Start.UnixMilli(), r.End.UnixMilli(), r.Matchers, r.Limit, f.changed(r.Options))
	key := r.Name
	if len(r.Matchers) > 0 {
		key += " " + r.Matchers[0][0].Value
	}
	return key, f.fail(key)
}

func (f *fake) Series(_ context.Context, r *query.MetaRequest) (*query.SeriesResult, error) {
	key, err := f.meta("series", r)
	if err != nil {
		return nil, err
	}
	res := &query.SeriesResult{Report: f.report("series", key)}
	if !strings.Contains(key, "none") {
		res.Series = []labels.Labels{labels.FromStrings("__name__", "up", "job", "a"), labels.FromStrings("__name__", "up", "job", "b")}
	}
	if r.Limit > 0 && r.Limit < len(res.Series) {
		res.Series, res.Truncated = res.Series[:r.Limit], true
	}
	return res, nil
}

func (f *fake) LabelNames(_ context.Context, r *query.MetaRequest) (*query.LabelsResult, error) {
	return f.labels("label_names", r, []string{"__name__", "job"})
}

func (f *fake) LabelValues(_ context.Context, r *query.MetaRequest) (*query.LabelsResult, error) {
	return f.labels("label_values", r, []string{"a", "b"})
}

func (f *fake) labels(what string, r *query.MetaRequest, values []string) (*query.LabelsResult, error) {
	key, err := f.meta(what, r)
	if err != nil {
		return nil, err
	}
	res := &query.LabelsResult{Values: values, Report: f.report(what, key)}
	if strings.Contains(key, "none") {
		res.Values = nil
	}
	if r.Limit > 0 && r.Limit < len(values) {
		res.Values, res.Truncated = values[:r.Limit], true
	}
	return res, nil
}

type sample struct {
	t int64
	f float64
}

func (s sample) T() int64                    { return s.t }
func (s sample) F() float64                  { return s.f }
func (sample) H() *histogram.Histogram       { return nil }
func (sample) FH() *histogram.FloatHistogram { return nil }
func (sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample         { return s }

// seriesList is a storage.SeriesSet.
type seriesList struct {
	list []storage.Series
	i    int
	err  error
}

func (s *seriesList) Next() bool                      { s.i++; return s.i <= len(s.list) }
func (s *seriesList) At() storage.Series              { return s.list[s.i-1] }
func (s *seriesList) Err() error                      { return s.err }
func (*seriesList) Warnings() annotations.Annotations { return nil }

// Read serves three series of 300 samples, a second apart from time 0 on, or as
// many as follow a # in the first matcher.
func (f *fake) Read(_ context.Context, r *query.ReadRequest) (*query.ReadResult, error) {
	f.note("read start=%d end=%d match=%v %s", r.MinTime, r.MaxTime, r.Matchers, f.changed(r.Options))
	key := r.Matchers[0].Value
	if !strings.Contains(key, "late") {
		if err := f.fail(key); err != nil {
			return nil, err
		}
	}
	n := 3
	if _, s, ok := strings.Cut(key, "#"); ok {
		_, _ = fmt.Sscan(s, &n)
	}
	set := &seriesList{}
	for i := range n {
		var samples []chunks.Sample
		for j := range 300 {
			samples = append(samples, sample{int64(j) * 1000, float64(i*1000 + j)})
		}
		set.list = append(set.list, storage.NewListSeries(labels.FromStrings("__name__", "up", "instance", fmt.Sprintf("%06d", i)), samples))
	}
	if strings.Contains(key, "late") {
		set.err = f.fail(key)
	}
	return &query.ReadResult{Series: set, Finish: func() (*report.Report, error) {
		f.finished.Add(1)
		return f.report("read", key), nil
	}}, nil
}

func pbLabels(kv ...string) *storepb.LabelSet {
	ls := &storepb.LabelSet{}
	for i := 0; i < len(kv); i += 2 {
		ls.Labels = append(ls.Labels, &storepb.Label{Name: kv[i], Value: kv[i+1]})
	}
	return ls
}

func (f *fake) Rules(_ context.Context, r *storepb.RulesRequest, o query.Options) (*query.RulesResult, error) {
	f.note("rules type=%s strategy=%s match=%q name=%q group=%q file=%q %s", r.Type, r.PartialResponseStrategy, r.MatcherString, r.RuleName, r.RuleGroup, r.File, f.changed(o))
	at := timestamppb.New(time.Unix(1600000000, 5000000))
	alert := &storepb.Alert{
		State: storepb.AlertState_FIRING, Name: "Down", Query: "up == 0", DurationSeconds: 60, KeepFiringForSeconds: 30,
		Labels: pbLabels("severity", "page"), Annotations: pbLabels("summary", "<it> is {{ $value }}"),
		Alerts: []*storepb.AlertInstance{
			{Labels: pbLabels("alertname", "Down", "job", "a"), State: storepb.AlertState_FIRING, ActiveAt: at, Value: "1e+00"},
			{Labels: pbLabels("alertname", "Down", "job", "b"), Annotations: pbLabels("x", "y"), State: storepb.AlertState_PENDING, Value: "0e+00"},
		},
		Health: "ok", EvaluationDurationSeconds: 0.001, LastEvaluation: at,
	}
	rec := &storepb.RecordingRule{Name: "job:up:sum", Query: "sum(up)", Labels: pbLabels("team", "x"), Health: "err", LastError: "boom"}
	return &query.RulesResult{
		Groups: []*storepb.RuleGroup{
			{Name: "g1", File: "a.yml", Interval: 30, Limit: 5, LastEvaluation: at, Rules: []*storepb.Rule{
				{Result: &storepb.Rule_Alert{Alert: alert}}, {Result: &storepb.Rule_Recording{Recording: rec}},
			}},
			{Name: "g2", File: "b.yml", Interval: 60, EvaluationDurationSeconds: math.NaN(), LastEvaluation: timestamppb.New(time.Unix(1<<50, 0)), Rules: []*storepb.Rule{{Result: &storepb.Rule_Recording{Recording: rec}}}},
			{Name: "empty", File: "b.yml"},
		},
		Report: f.report("rules", ""),
	}, nil
}

func (f *fake) Targets(_ context.Context, s storepb.TargetsRequest_State, o query.Options) (*query.TargetsResult, error) {
	f.note("targets %s %s", s, f.changed(o))
	return &query.TargetsResult{
		Targets: &storepb.TargetDiscovery{
			ActiveTargets: []*storepb.ActiveTarget{{
				DiscoveredLabels: pbLabels("__address__", "a:80", "__scrape_interval__", "15s", "__scrape_timeout__", "10s", "job", "node"),
				Labels:           pbLabels("instance", "a:80", "job", "node"),
				ScrapePool:       "node", ScrapeUrl: "http://a:80/metrics", GlobalUrl: "http://a:80/metrics",
				LastScrape: timestamppb.New(time.Unix(1600000000, 0)), LastScrapeDuration: 0.25, Health: storepb.ActiveTarget_UP,
			}, {ScrapePool: "other", Health: storepb.ActiveTarget_UNKNOWN, LastError: "refused"}},
			DroppedTargets: []*storepb.DroppedTarget{{DiscoveredLabels: pbLabels("job", "node")}, {DiscoveredLabels: pbLabels("job", "x")}},
		},
		Report: f.report("targets", ""),
	}, nil
}

func (f *fake) Metadata(_ context.Context, metric string, limit int, o query.Options) (*query.MetadataResult, error) {
	f.note("metadata %q limit=%d %s", metric, limit, f.changed(o))
	return &query.MetadataResult{
		Metadata: map[string][]*storepb.Meta{
			"up":   {{Type: "gauge", Help: "Is it <up>?"}, {Type: "unknown"}},
			"a":    {{Type: "counter", Help: "h", Unit: "bytes"}},
			"none": nil,
		},
		Report: f.report("metadata", metric),
	}, nil
}

func (f *fake) Exemplars(_ context.Context, expr string, start, end time.Time, o query.Options) (*query.ExemplarsResult, error) {
	f.note("exemplars %q start=%d end=%d %s", expr, start.UnixMilli(), end.UnixMilli(), f.changed(o))
	res := &query.ExemplarsResult{Report: f.report("exemplars", expr)}
	if expr != "none" {
		res.Exemplars = []*storepb.ExemplarData{
			{SeriesLabels: pbLabels("__name__", "x_bucket", "le", "1"), Exemplars: []*storepb.Exemplar{
				{Labels: pbLabels("trace_id", "abc"), Value: 0.5, Ts: 1600000000123}, {Value: math.Inf(1), Ts: 1000},
			}},
			{SeriesLabels: pbLabels("a", "b")},
		}
	}
	return res, f.fail(expr)
}

func (f *fake) Statistics(_ context.Context, limit int, o query.Options) (*query.StatisticsResult, error) {
	f.note("statistics limit=%d %s", limit, f.changed(o))
	return &query.StatisticsResult{
		Entries: map[string]*storepb.TSDBStatisticsEntry{
			"a": {
				HeadStatistics:          &storepb.HeadStatistics{NumSeries: 5, NumLabelPairs: 3, ChunkCount: 7, MinTime: 100, MaxTime: 200},
				SeriesCountByMetricName: []*storepb.Statistic{{Name: "up", Value: 3}, {Name: "x", Value: 2}},
			},
			"b": {
				HeadStatistics:          &storepb.HeadStatistics{NumSeries: 4, ChunkCount: 1, MinTime: 50, MaxTime: 150},
				SeriesCountByMetricName: []*storepb.Statistic{{Name: "x", Value: 4}, {Name: "y", Value: 3}},
			},
			"c": {},
		},
		Report: f.report("statistics", ""),
	}, nil
}

func (f *fake) Admit(ctx context.Context, ask *access.Ask) (*access.Grant, error) {
	if f.admit == nil {
		return access.Everything(), nil
	}
	return f.admit(ctx, ask)
}

func (*fake) Stores(context.Context) ([]membership.Status, error) {
	return []membership.Status{
		{
			Name: "thanos/b:10901", Kind: "storeapi", Address: "b:10901", Healthy: true, Known: true,
			Info: backend.Info{
				Component: "sidecar", LabelSets: []labels.Labels{labels.FromStrings("cluster", "eu1", "replica", "b")},
				MinTime: 1000, MaxTime: math.MaxInt64, Version: "0.39.0", Capabilities: backend.Capabilities{Sharding: true, Rules: true},
			},
			LastCheck: time.Unix(1600000000, 0).UTC(), Warning: "blocks are not shipped",
		},
		{Name: "thanos/a:10901", Kind: "storeapi", Address: "a:10901", Known: true, Info: backend.Info{Component: "sidecar"}, LastError: "refused", Gone: "not in DNS"},
		{Name: "influx", Kind: "influxdb", Address: "influx", Required: true},
	}, nil
}
