// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package reference

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

// Query serves thanos.Query over backends, by Prometheus' engine: what the profile
// pushdown is passed by. It reads raw data, and deduplicates by taking each time once.
type Query struct {
	storepb.UnimplementedQueryServer
	engine *promql.Engine
	from   []backend.Backend
}

// NewQuery returns a server of what the backends have together. It does not own them.
func NewQuery(from ...backend.Backend) *Query {
	return &Query{from: from, engine: promql.NewEngine(promql.EngineOpts{
		MaxSamples: 50_000_000, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, EnableAtModifier: true, EnableNegativeOffset: true,
		NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() },
	})}
}

// Query implements storepb.QueryServer.
func (q *Query) Query(m *storepb.QueryRequest, out grpc.ServerStreamingServer[storepb.QueryResponse]) error {
	at := time.Now()
	if m.GetTimeSeconds() != 0 {
		at = time.Unix(m.GetTimeSeconds(), 0)
	}
	return q.run(out.Context(), m, m.GetTimeoutSeconds(), func(ctx context.Context, from storage.Queryable, o promql.QueryOpts) (promql.Query, error) {
		return q.engine.NewInstantQuery(ctx, from, o, m.GetQuery(), at)
	}, func(warnings string, list []*prompb.TimeSeries, stats *storepb.QueryStats) error {
		switch {
		case warnings != "":
			return out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_Warnings{Warnings: warnings}})
		case stats != nil:
			return out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_Stats{Stats: stats}})
		case len(list) == 1:
			return out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_Timeseries{Timeseries: list[0]}})
		}
		return out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_TimeseriesBatch{TimeseriesBatch: &storepb.TimeSeriesBatch{Series: list}}})
	})
}

// QueryRange implements storepb.QueryServer.
func (q *Query) QueryRange(m *storepb.QueryRangeRequest, out grpc.ServerStreamingServer[storepb.QueryRangeResponse]) error {
	if m.GetIntervalSeconds() <= 0 || m.GetEndTimeSeconds() < m.GetStartTimeSeconds() {
		return status.Errorf(codes.InvalidArgument, "a step of %d s from %d to %d", m.GetIntervalSeconds(), m.GetStartTimeSeconds(), m.GetEndTimeSeconds())
	}
	return q.run(out.Context(), m, m.GetTimeoutSeconds(), func(ctx context.Context, from storage.Queryable, o promql.QueryOpts) (promql.Query, error) {
		return q.engine.NewRangeQuery(ctx, from, o, m.GetQuery(), time.Unix(m.GetStartTimeSeconds(), 0), time.Unix(m.GetEndTimeSeconds(), 0), time.Duration(m.GetIntervalSeconds())*time.Second)
	}, func(warnings string, list []*prompb.TimeSeries, stats *storepb.QueryStats) error {
		switch {
		case warnings != "":
			return out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_Warnings{Warnings: warnings}})
		case stats != nil:
			return out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_Stats{Stats: stats}})
		case len(list) == 1:
			return out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_Timeseries{Timeseries: list[0]}})
		}
		return out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_TimeseriesBatch{TimeseriesBatch: &storepb.TimeSeriesBatch{Series: list}}})
	})
}

// request is what both calls have in common.
type request interface {
	GetEnableDedup() bool
	GetReplicaLabels() []string
	GetLookbackDeltaSeconds() int64
	GetResponseBatchSize() int64
	GetEngine() storepb.EngineType
}

func (q *Query) run(ctx context.Context, m request, timeout int64, build func(context.Context, storage.Queryable, promql.QueryOpts) (promql.Query, error),
	send func(string, []*prompb.TimeSeries, *storepb.QueryStats) error,
) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(timeout)*time.Second)
		defer cancel()
	}
	if m.GetEngine() > storepb.EngineType_thanos {
		return status.Errorf(codes.InvalidArgument, "there is no engine %d", m.GetEngine())
	}
	data := &stores{from: q.from}
	if m.GetEnableDedup() {
		data.drop = m.GetReplicaLabels()
	}
	run, err := build(ctx, data, promql.NewPrometheusQueryOpts(false, time.Duration(m.GetLookbackDeltaSeconds())*time.Second))
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	defer run.Close()
	res := run.Exec(ctx)
	switch err := res.Err; {
	case err != nil && ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case err != nil:
		return status.Error(codes.Aborted, err.Error())
	}
	if w := res.Warnings.AsErrors(); len(w) > 0 {
		var list []string
		for _, err := range w {
			list = append(list, err.Error())
		}
		if err := send(strings.Join(list, ", "), nil, nil); err != nil {
			return err
		}
	}
	for part := range slices.Chunk(answerOf(res), int(min(max(m.GetResponseBatchSize(), 1), 1000))) {
		if err := send("", part, nil); err != nil {
			return err
		}
	}
	return send("", nil, &storepb.QueryStats{})
}

// answerOf has a series of its own for each of the result, which the engine takes back.
func answerOf(res *promql.Result) (out []*prompb.TimeSeries) {
	sample := func(t int64, f float64) *prompb.Sample { return &prompb.Sample{Timestamp: t, Value: f} }
	switch v := res.Value.(type) {
	case promql.Scalar:
		out = append(out, &prompb.TimeSeries{Samples: []*prompb.Sample{sample(v.T, v.V)}})
	case promql.Vector:
		for _, s := range v {
			x := &prompb.TimeSeries{Labels: pairs(s.Metric)}
			if s.H != nil {
				x.Histograms = append(x.Histograms, histogramOf(s.T, s.H))
			} else {
				x.Samples = append(x.Samples, sample(s.T, s.F))
			}
			out = append(out, x)
		}
	case promql.Matrix:
		for _, s := range v {
			x := &prompb.TimeSeries{Labels: pairs(s.Metric)}
			for _, p := range s.Floats {
				x.Samples = append(x.Samples, sample(p.T, p.F))
			}
			for _, p := range s.Histograms {
				x.Histograms = append(x.Histograms, histogramOf(p.T, p.H))
			}
			out = append(out, x)
		}
	}
	return out
}

func pairs(ls labels.Labels) (out []*prompb.Label) {
	ls.Range(func(l labels.Label) { out = append(out, &prompb.Label{Name: l.Name, Value: l.Value}) })
	return out
}

func histogramOf(t int64, from *histogram.FloatHistogram) *prompb.Histogram {
	h := from.Copy()
	spans := func(in []histogram.Span) (out []*prompb.BucketSpan) {
		for _, s := range in {
			out = append(out, &prompb.BucketSpan{Offset: s.Offset, Length: s.Length})
		}
		return out
	}
	return &prompb.Histogram{
		Timestamp: t, Schema: h.Schema, Sum: h.Sum, ZeroThreshold: h.ZeroThreshold, CustomValues: h.CustomValues,
		Count: &prompb.Histogram_CountFloat{CountFloat: h.Count}, ZeroCount: &prompb.Histogram_ZeroCountFloat{ZeroCountFloat: h.ZeroCount},
		PositiveSpans: spans(h.PositiveSpans), PositiveCounts: h.PositiveBuckets, NegativeSpans: spans(h.NegativeSpans), NegativeCounts: h.NegativeBuckets,
	}
}

// stores are backends as the engine reads them. drop are the replica labels.
type stores struct {
	from []backend.Backend
	drop []string
}

func (s *stores) Querier(minTime, maxTime int64) (storage.Querier, error) {
	return &reader{s, minTime, maxTime}, nil
}

type reader struct {
	*stores
	minTime, maxTime int64
}

// Select merges what becomes equal: of two samples at one time the first is taken.
func (r *reader) Select(ctx context.Context, _ bool, hints *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	req := &backend.SeriesRequest{MinTime: r.minTime, MaxTime: r.maxTime, Matchers: ms}
	if hints != nil {
		req.MinTime, req.MaxTime = hints.Start, hints.End
	}
	type row struct {
		labels  labels.Labels
		samples []shaping.Sample
	}
	var rows []row
	for _, b := range r.from {
		for batch, err := range b.Series(ctx, req) {
			if err != nil {
				return storage.ErrSeriesSet(err)
			}
			for i := range batch.Len() {
				s := batch.At(i)
				x := row{labels: shaping.ExtendLabels(s.Labels, labels.EmptyLabels(), r.drop)}
				for _, c := range s.Chunks {
					list, err := oracle.Decode(c.Raw)
					if err != nil {
						return storage.ErrSeriesSet(err)
					}
					x.samples = append(x.samples, list...)
				}
				rows = append(rows, x)
			}
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return labels.Compare(a.labels, b.labels) })
	set := &rowSet{}
	for i, x := range rows {
		if i+1 < len(rows) && labels.Equal(x.labels, rows[i+1].labels) {
			rows[i+1].samples = append(x.samples, rows[i+1].samples...)
			continue
		}
		slices.SortStableFunc(x.samples, func(a, b shaping.Sample) int { return int(min(max(a.T-b.T, -1), 1)) })
		x.samples = slices.CompactFunc(x.samples, func(a, b shaping.Sample) bool { return a.T == b.T })
		x.samples = slices.DeleteFunc(x.samples, func(s shaping.Sample) bool { return s.T < req.MinTime || s.T > req.MaxTime })
		list := make([]chunks.Sample, len(x.samples))
		for k, s := range x.samples {
			if s.H != nil {
				s.FH = s.H.ToFloat(nil) // which is all that the engine knows
			}
			list[k] = sample{s}
		}
		set.rest = append(set.rest, storage.NewListSeries(x.labels, list))
	}
	return set
}

func (r *reader) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.ErrUnsupported
}

func (r *reader) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.ErrUnsupported
}

func (r *reader) Close() error { return nil }

type rowSet struct {
	at   storage.Series
	rest []storage.Series
}

func (s *rowSet) Next() bool {
	if len(s.rest) == 0 {
		return false
	}
	s.at, s.rest = s.rest[0], s.rest[1:]
	return true
}

func (s *rowSet) At() storage.Series                { return s.at }
func (s *rowSet) Err() error                        { return nil }
func (s *rowSet) Warnings() annotations.Annotations { return nil }

// sample is one that was decoded for this reader alone.
type sample struct{ s shaping.Sample }

func (x sample) T() int64                      { return x.s.T }
func (x sample) F() float64                    { return x.s.F }
func (x sample) H() *histogram.Histogram       { return nil }
func (x sample) FH() *histogram.FloatHistogram { return x.s.FH }
func (x sample) Copy() chunks.Sample           { return x }

func (x sample) Type() chunkenc.ValueType {
	if x.s.FH != nil {
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}
