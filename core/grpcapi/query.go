// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package grpcapi serves the thanos.Query API: PromQL over gRPC, by which a
// querier further up hands whole queries to this one. StoreAPI and Info, the other
// half of what a querier speaks, are served by sdk/storeapi over query.Proxy.
package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/matching"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

// Queries is what is served; *query.Service implements it.
type Queries interface {
	DefaultOptions() query.Options
	Instant(ctx context.Context, req *query.Request) (*query.Result, error)
	Range(ctx context.Context, req *query.Request) (*query.Result, error)
}

// Server serves thanos.Query. Times of that API are whole seconds; a request with
// a step below one second cannot be put in its words.
type Server struct {
	storepb.UnimplementedQueryServer
	q   Queries
	now func() time.Time
}

// Register adds the API to a gRPC server.
func Register(s grpc.ServiceRegistrar, q Queries) {
	storepb.RegisterQueryServer(s, &Server{q: q, now: time.Now})
}

// Query answers an instant query.
func (s *Server) Query(req *storepb.QueryRequest, out grpc.ServerStreamingServer[storepb.QueryResponse]) (err error) {
	defer guard(&err)
	o, err := s.options(req.Engine, req.EnableDedup, req.EnablePartialResponse, req.ReplicaLabels, req.StoreMatchers,
		req.MaxResolutionSeconds, req.TimeoutSeconds, req.LookbackDeltaSeconds, req.ShardInfo)
	if err != nil {
		return err
	}
	if req.MaxResolutionSeconds == 0 {
		o.MaxSourceResolution = s.q.DefaultOptions().MaxSourceResolution
	}
	at := s.now()
	if req.TimeSeconds != 0 {
		at = time.Unix(req.TimeSeconds, 0)
	}
	res, err := s.q.Instant(out.Context(), &query.Request{Query: req.Query, Start: at, End: at, Options: o})
	send := func(warnings string, series []*prompb.TimeSeries, st *storepb.QueryStats) error {
		switch {
		case st != nil:
			return out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_Stats{Stats: st}})
		case warnings != "":
			return out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_Warnings{Warnings: warnings}})
		case req.ResponseBatchSize > 1:
			return out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_TimeseriesBatch{TimeseriesBatch: &storepb.TimeSeriesBatch{Series: series}}})
		}
		return out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_Timeseries{Timeseries: series[0]}})
	}
	if err != nil {
		return failed(err)
	}
	defer res.Close()
	return answer(res, int(req.ResponseBatchSize), at.UnixMilli(), send)
}

// QueryRange answers a range query.
func (s *Server) QueryRange(req *storepb.QueryRangeRequest, out grpc.ServerStreamingServer[storepb.QueryRangeResponse]) (err error) {
	defer guard(&err)
	if req.IntervalSeconds < 0 || req.IntervalSeconds > mostSeconds {
		return status.Errorf(codes.InvalidArgument, "interval_seconds is %d: want 1 to %d", req.IntervalSeconds, int64(mostSeconds))
	}
	o, err := s.options(req.Engine, req.EnableDedup, req.EnablePartialResponse, req.ReplicaLabels, req.StoreMatchers,
		req.MaxResolutionSeconds, req.TimeoutSeconds, req.LookbackDeltaSeconds, req.ShardInfo)
	if err != nil {
		return err
	}
	res, err := s.q.Range(out.Context(), &query.Request{
		Query: req.Query, Start: time.Unix(req.StartTimeSeconds, 0), End: time.Unix(req.EndTimeSeconds, 0),
		Step: time.Duration(req.IntervalSeconds) * time.Second, Options: o,
	})
	if err != nil {
		return failed(err)
	}
	defer res.Close()
	return answer(res, int(req.ResponseBatchSize), 0, func(warnings string, series []*prompb.TimeSeries, st *storepb.QueryStats) error {
		switch {
		case st != nil:
			return out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_Stats{Stats: st}})
		case warnings != "":
			return out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_Warnings{Warnings: warnings}})
		case req.ResponseBatchSize > 1:
			return out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_TimeseriesBatch{TimeseriesBatch: &storepb.TimeSeriesBatch{Series: series}}})
		}
		return out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_Timeseries{Timeseries: series[0]}})
	})
}

// mostSeconds is a bound on durations; far above it they would overflow.
const mostSeconds = 1 << 31

// guard makes an error of a panic: one query must not end the process.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = status.Errorf(codes.Internal, "panic: %v", p)
	}
}

// options reads what both calls have in common. The plan that a Thanos querier
// sends beside the text says the same as the text and is not looked at.
func (s *Server) options(e storepb.EngineType, dedup, partial bool, replicaLabels []string, stores []*storepb.StoreMatchers,
	maxResolution, timeout, lookback int64, shard *storepb.ShardInfo,
) (query.Options, error) {
	o := s.q.DefaultOptions()
	o.Dedup, o.PartialResponse = dedup, partial
	if len(replicaLabels) > 0 {
		o.ReplicaLabels = replicaLabels
	}
	switch e {
	case storepb.EngineType_default:
	case storepb.EngineType_prometheus:
		o.Engine = query.EnginePrometheus
	case storepb.EngineType_thanos:
		o.Engine = query.EngineThanos
	default:
		return o, status.Errorf(codes.InvalidArgument, "engine %d is not known: want prometheus or thanos", e)
	}
	for _, m := range []struct {
		name string
		v    int64
	}{{"max_resolution_seconds", maxResolution}, {"timeout_seconds", timeout}, {"lookback_delta_seconds", lookback}} {
		if m.v < 0 || m.v > mostSeconds {
			return o, status.Errorf(codes.InvalidArgument, "%s is %d: want 0 to %d", m.name, m.v, int64(mostSeconds))
		}
	}
	o.MaxSourceResolution = maxResolution * 1000
	if timeout > 0 {
		o.Timeout = time.Duration(timeout) * time.Second
	}
	o.LookbackDelta = time.Duration(lookback) * time.Second
	var budget matching.Budget
	for _, sm := range stores {
		var ms []*labels.Matcher
		for _, m := range sm.LabelMatchers {
			x, err := budget.New(labels.MatchType(m.Type), m.Name, m.Value)
			if err != nil || m.Type < 0 || m.Type > storepb.LabelMatcher_NRE {
				return o, status.Errorf(codes.InvalidArgument, "store matcher on %q: type %s, value %q: %v", m.Name, m.Type, m.Value, err)
			}
			ms = append(ms, x)
		}
		o.StoreMatch = append(o.StoreMatch, ms)
	}
	if shard != nil && shard.TotalShards > 0 {
		o.Shard = &backend.Shard{Index: shard.ShardIndex, Total: shard.TotalShards, By: shard.By, Labels: shard.Labels}
	}
	return o, nil
}

// answer sends warnings, then data, then one frame of statistics, as a Thanos
// querier expects them. A warning is sent for what is missing and for PromQL's own
// remarks: this API has no other words for either.
func answer(res *query.Result, batch int, at int64, send func(string, []*prompb.TimeSeries, *storepb.QueryStats) error) error {
	warnings := res.Report.Completeness.Warnings()
	for _, err := range res.Annotations.AsErrors() {
		warnings = append(warnings, err.Error())
	}
	if len(warnings) > 0 {
		if err := send(strings.Join(warnings, ", "), nil, nil); err != nil {
			return err
		}
	}
	series, err := seriesOf(res.Value, at)
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(series, max(1, batch)) {
		if err := send("", chunk, nil); err != nil {
			return err
		}
	}
	st := &storepb.QueryStats{}
	if x := res.Statistics; x != nil && x.Samples != nil {
		st.SamplesTotal, st.PeakSamples = x.Samples.TotalSamples, int64(x.Samples.PeakSamples)
	}
	return send("", nil, st)
}

func seriesOf(v parser.Value, at int64) ([]*prompb.TimeSeries, error) {
	var out []*prompb.TimeSeries
	switch v := v.(type) {
	case promql.Scalar:
		out = append(out, &prompb.TimeSeries{Samples: []*prompb.Sample{{Value: v.V, Timestamp: v.T}}})
	case promql.Vector:
		for _, s := range v {
			ts := &prompb.TimeSeries{Labels: labelsOf(s.Metric)}
			if s.H != nil {
				ts.Histograms = []*prompb.Histogram{histogramOf(s.T, s.H)}
			} else {
				ts.Samples = []*prompb.Sample{{Value: s.F, Timestamp: s.T}}
			}
			out = append(out, ts)
		}
	case promql.Matrix:
		if at != 0 {
			return nil, nil // a range of samples at one instant: the API has no form for it
		}
		for _, s := range v {
			ts := &prompb.TimeSeries{Labels: labelsOf(s.Metric)}
			floats := make([]prompb.Sample, len(s.Floats))
			for i, p := range s.Floats {
				floats[i].Value, floats[i].Timestamp = p.F, p.T
				ts.Samples = append(ts.Samples, &floats[i])
			}
			for _, p := range s.Histograms {
				ts.Histograms = append(ts.Histograms, histogramOf(p.T, p.H))
			}
			out = append(out, ts)
		}
	case promql.String:
	default:
		return nil, status.Errorf(codes.Internal, "a result of type %T", v)
	}
	return out, nil
}

func labelsOf(l labels.Labels) []*prompb.Label {
	out := make([]*prompb.Label, 0, l.Len())
	l.Range(func(x labels.Label) { out = append(out, &prompb.Label{Name: x.Name, Value: x.Value}) })
	return out
}

func histogramOf(t int64, h *histogram.FloatHistogram) *prompb.Histogram {
	return &prompb.Histogram{
		Timestamp: t, Count: &prompb.Histogram_CountFloat{CountFloat: h.Count}, Sum: h.Sum,
		Schema: h.Schema, ZeroThreshold: h.ZeroThreshold, ZeroCount: &prompb.Histogram_ZeroCountFloat{ZeroCountFloat: h.ZeroCount},
		NegativeSpans: spansOf(h.NegativeSpans), NegativeCounts: h.NegativeBuckets,
		PositiveSpans: spansOf(h.PositiveSpans), PositiveCounts: h.PositiveBuckets,
		ResetHint: prompb.Histogram_ResetHint(h.CounterResetHint), CustomValues: h.CustomValues,
	}
}

func spansOf(in []histogram.Span) []*prompb.BucketSpan {
	var out []*prompb.BucketSpan
	for _, s := range in {
		out = append(out, &prompb.BucketSpan{Offset: s.Offset, Length: s.Length})
	}
	return out
}

// failed gives an error the code that a Thanos querier acts on.
func failed(err error) error {
	if denied := (*access.Denied)(nil); errors.Is(err, query.ErrDenied) && errors.As(err, &denied) {
		return denied.GRPCStatus().Err()
	}
	code := codes.Aborted
	switch {
	case errors.Is(err, query.ErrBadData):
		code = codes.InvalidArgument
	case errors.Is(err, query.ErrDenied):
		code = codes.PermissionDenied
	case errors.Is(err, query.ErrTimeout):
		code = codes.DeadlineExceeded
	case errors.Is(err, query.ErrCanceled):
		code = codes.Canceled
	case errors.Is(err, backend.ErrLimit):
		code = codes.ResourceExhausted
	}
	return status.Error(code, fmt.Sprintf("query: %v", err))
}
