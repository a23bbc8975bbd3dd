// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package pushdown

import (
	"context"
	"errors"
	"io"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"

	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

// Answer is what came.
type Answer struct {
	// Series in the order in which they came, with their faults.
	Series []Series
	// Warnings as they came: PromQL's own remarks are among them, so that one is no fault.
	Warnings []string
	// Batch is the most series in one message; EmptyBatch says that one had none.
	Batch      int
	EmptyBatch bool
	// Stats is the number of frames of statistics; Last says that such a one came last.
	Stats int
	Last  bool
	// Err is what the call ended with, a gRPC status; nil is its end.
	Err error
}

// frame is a message of either call.
type frame interface {
	GetWarnings() string
	GetTimeseries() *prompb.TimeSeries
	GetTimeseriesBatch() *storepb.TimeSeriesBatch
	GetStats() *storepb.QueryStats
}

// Ask makes the call and reads its answer to the end. Partial answers are not allowed, and
// without ReplicaLabels deduplication is off.
func Ask(ctx context.Context, conn grpc.ClientConnInterface, q *Query) *Answer {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := storepb.NewQueryClient(conn)
	dedup := len(q.ReplicaLabels) > 0
	if q.Step == 0 {
		st, err := c.Query(ctx, &storepb.QueryRequest{
			Query: q.Text, TimeSeconds: q.Start, TimeoutSeconds: q.Timeout, LookbackDeltaSeconds: q.lookback(),
			EnableDedup: dedup, ReplicaLabels: q.ReplicaLabels, ResponseBatchSize: q.Batch, Engine: q.Engine,
		}, storepb.ClientCodec())
		return read(err, func() (frame, error) { return st.Recv() })
	}
	st, err := c.QueryRange(ctx, &storepb.QueryRangeRequest{
		Query: q.Text, StartTimeSeconds: q.Start, EndTimeSeconds: q.End, IntervalSeconds: q.Step, TimeoutSeconds: q.Timeout, LookbackDeltaSeconds: q.lookback(),
		EnableDedup: dedup, ReplicaLabels: q.ReplicaLabels, ResponseBatchSize: q.Batch, Engine: q.Engine,
	}, storepb.ClientCodec())
	return read(err, func() (frame, error) { return st.Recv() })
}

func read(err error, next func() (frame, error)) *Answer {
	a := &Answer{Err: err}
	for a.Err == nil {
		f, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			a.Err = err
			break
		}
		a.add(f)
	}
	return a
}

func (a *Answer) add(f frame) {
	a.Last = f.GetStats() != nil
	if a.Last {
		a.Stats++
	}
	if w := f.GetWarnings(); w != "" {
		a.Warnings = append(a.Warnings, w)
	}
	if s := f.GetTimeseries(); s != nil {
		a.Series = append(a.Series, series(s))
		a.Batch = max(a.Batch, 1)
	}
	if b := f.GetTimeseriesBatch(); b != nil {
		for _, s := range b.GetSeries() {
			a.Series = append(a.Series, series(s))
		}
		a.Batch = max(a.Batch, len(b.GetSeries()))
		a.EmptyBatch = a.EmptyBatch || len(b.GetSeries()) == 0
	}
}

// series copies one. A label that comes twice stays so.
func series(m *prompb.TimeSeries) Series {
	b := labels.NewScratchBuilder(len(m.GetLabels()))
	for _, l := range m.GetLabels() {
		b.Add(l.GetName(), l.GetValue())
	}
	b.Sort()
	out := Series{Labels: b.Labels()}
	for _, s := range m.GetSamples() {
		out.Points = append(out.Points, shaping.Sample{T: s.GetTimestamp(), F: s.GetValue()})
	}
	floats := len(out.Points)
	for _, h := range m.GetHistograms() {
		out.Points = append(out.Points, shaping.Sample{T: h.GetTimestamp(), FH: histogramOf(h)})
	}
	if floats > 0 && floats < len(out.Points) {
		out.Points = interleaved(out.Points[:floats], out.Points[floats:])
	}
	return out
}

// interleaved merges two lists by time, each of which keeps its order.
func interleaved(a, b []shaping.Sample) []shaping.Sample {
	out := make([]shaping.Sample, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0].T <= b[0].T {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// histogramOf reads either form, of integers and of floats.
func histogramOf(h *prompb.Histogram) *histogram.FloatHistogram {
	out := &histogram.FloatHistogram{
		Schema: h.GetSchema(), ZeroThreshold: h.GetZeroThreshold(), Sum: h.GetSum(), CustomValues: h.GetCustomValues(),
		Count: h.GetCountFloat(), ZeroCount: h.GetZeroCountFloat(),
		PositiveSpans: spans(h.GetPositiveSpans()), NegativeSpans: spans(h.GetNegativeSpans()),
		PositiveBuckets: h.GetPositiveCounts(), NegativeBuckets: h.GetNegativeCounts(),
	}
	if _, ints := h.GetCount().(*prompb.Histogram_CountInt); ints {
		out.Count, out.ZeroCount = float64(h.GetCountInt()), float64(h.GetZeroCountInt())
		out.PositiveBuckets, out.NegativeBuckets = sums(h.GetPositiveDeltas()), sums(h.GetNegativeDeltas())
	}
	return out
}

func spans(in []*prompb.BucketSpan) []histogram.Span {
	var out []histogram.Span
	for _, s := range in {
		out = append(out, histogram.Span{Offset: s.GetOffset(), Length: s.GetLength()})
	}
	return out
}

// sums are counts of which there are the differences.
func sums(deltas []int64) []float64 {
	var out []float64
	at := int64(0)
	for _, d := range deltas {
		at += d
		out = append(out, float64(at))
	}
	return out
}
