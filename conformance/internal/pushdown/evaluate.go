// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package pushdown knows what PromQL over the corpus comes to, asks a thanos.Query service
// for it, and compares the two. What is right is what Prometheus' own engine makes of the
// series that the subject has to have; package suite has the requirements.
package pushdown

import (
	"context"
	"errors"
	"fmt"
	"math"
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

	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
)

// Query is one question, in the units of thanos.Query: seconds since 1970 and seconds.
type Query struct {
	Text string
	// Start and End are inclusive. Step 0 is an instant query, at Start.
	Start, End, Step int64
	// Lookback is how far the engine looks back for a sample; 0 is 300, and is sent so:
	// the subject's own default is its owner's affair.
	Lookback int64
	// ReplicaLabels, if not empty, asks for deduplication over them.
	ReplicaLabels []string
	// Batch is the most series in a message; 0 leaves it to the subject.
	Batch int64
	// Timeout of the evaluation; 0 is the subject's own.
	Timeout int64
	// Engine that is named; 0 leaves it to the subject.
	Engine storepb.EngineType
}

// lookback is the default of Prometheus.
const lookback = 300

func (q *Query) lookback() int64 {
	if q.Lookback > 0 {
		return q.Lookback
	}
	return lookback
}

// String is the query as people read it, and as it can be made again from.
func (q *Query) String() string {
	var b strings.Builder
	if q.Step == 0 {
		fmt.Fprintf(&b, "Query `%s` at %s", q.Text, oracle.Stamp(q.Start*1000))
	} else {
		fmt.Fprintf(&b, "QueryRange `%s` %s to %s step=%ds", q.Text, oracle.Stamp(q.Start*1000), oracle.Stamp(q.End*1000), q.Step)
	}
	if q.Lookback > 0 {
		fmt.Fprintf(&b, " lookback=%ds", q.Lookback)
	}
	if len(q.ReplicaLabels) > 0 {
		fmt.Fprintf(&b, " dedup over (%s)", strings.Join(q.ReplicaLabels, ", "))
	}
	if q.Batch > 0 {
		fmt.Fprintf(&b, " batch=%d", q.Batch)
	}
	if q.Timeout > 0 {
		fmt.Fprintf(&b, " timeout=%ds", q.Timeout)
	}
	if q.Engine != 0 {
		fmt.Fprintf(&b, " engine=%s", q.Engine)
	}
	return b.String()
}

// Series is a series of an answer. Points have a float, or a histogram in FH; their order
// is that in which they came, their times are ms.
type Series struct {
	Labels labels.Labels
	Points []shaping.Sample
}

// Evaluator answers by Prometheus' engine over known series.
type Evaluator struct {
	engine *promql.Engine
	series []oracle.Series
}

// NewEvaluator returns one over series, which it only reads: the subject's, with their
// external labels, in order.
func NewEvaluator(series []oracle.Series) *Evaluator {
	return &Evaluator{series: series, engine: promql.NewEngine(promql.EngineOpts{
		MaxSamples: 50_000_000, Timeout: time.Minute, LookbackDelta: lookback * time.Second,
		EnableAtModifier: true, EnableNegativeOffset: true,
		NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() },
	})}
}

// ErrAmbiguous is the error of a query that selects a series of which nobody can say what
// it holds: two stored ones have become one, with different values at one time.
var ErrAmbiguous = errors.New("series that became equal have different values at one time")

// Evaluate answers a query. An error is one that the query has, as many-to-many matching,
// or ErrAmbiguous. A string has no form in thanos.Query and is an empty answer.
func (e *Evaluator) Evaluate(ctx context.Context, q *Query) ([]Series, error) {
	opts := promql.NewPrometheusQueryOpts(false, time.Duration(q.lookback())*time.Second)
	from := &queryable{e.series, q.ReplicaLabels}
	var run promql.Query
	var err error
	if q.Step == 0 {
		run, err = e.engine.NewInstantQuery(ctx, from, opts, q.Text, time.Unix(q.Start, 0))
	} else {
		run, err = e.engine.NewRangeQuery(ctx, from, opts, q.Text, time.Unix(q.Start, 0), time.Unix(q.End, 0), time.Duration(q.Step)*time.Second)
	}
	if err != nil {
		return nil, err
	}
	defer run.Close()
	res := run.Exec(ctx)
	if res.Err != nil {
		return nil, res.Err
	}
	var out []Series
	switch v := res.Value.(type) {
	case promql.Scalar:
		out = append(out, Series{Points: []shaping.Sample{{T: v.T, F: v.V}}})
	case promql.Vector:
		for _, s := range v {
			out = append(out, Series{s.Metric, []shaping.Sample{point(s.T, s.F, s.H)}})
		}
	case promql.Matrix:
		if q.Step == 0 {
			break // a range of samples at one instant has no form either
		}
		for _, s := range v {
			x := Series{Labels: s.Metric}
			for _, p := range s.Floats {
				x.Points = append(x.Points, point(p.T, p.F, nil))
			}
			for _, p := range s.Histograms {
				x.Points = append(x.Points, point(p.T, 0, p.H))
			}
			slices.SortStableFunc(x.Points, byTime)
			out = append(out, x)
		}
	}
	return out, nil
}

// point copies: the engine uses its memory again.
func point(t int64, f float64, h *histogram.FloatHistogram) shaping.Sample {
	if h != nil {
		return shaping.Sample{T: t, FH: h.Copy()}
	}
	return shaping.Sample{T: t, F: f}
}

// queryable is series with the replica labels taken off, after matching.
type queryable struct {
	series []oracle.Series
	drop   []string
}

func (q *queryable) Querier(minTime, maxTime int64) (storage.Querier, error) {
	return &querier{q, minTime, maxTime}, nil
}

type querier struct {
	*queryable
	minTime, maxTime int64
}

func (q *querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, ms ...*labels.Matcher) storage.SeriesSet {
	var list []oracle.Series
	for _, s := range q.series {
		if shaping.Matches(s.Labels, ms) {
			s.Labels = shaping.ExtendLabels(s.Labels, labels.EmptyLabels(), q.drop)
			list = append(list, s)
		}
	}
	slices.SortStableFunc(list, func(a, b oracle.Series) int { return labels.Compare(a.Labels, b.Labels) })
	set := &seriesSet{at: -1}
	for i := 0; i < len(list); {
		from := i
		var samples []shaping.Sample
		for ; i < len(list) && labels.Equal(list[i].Labels, list[from].Labels); i++ {
			samples = append(samples, list[i].Samples...)
		}
		if i-from > 1 {
			slices.SortStableFunc(samples, byTime)
			samples = slices.CompactFunc(samples, func(a, b shaping.Sample) bool { return a.T == b.T && equal(a, b, 0) })
		}
		data := make(points, 0, len(samples)) // the engine knows histograms of floats only
		for k, x := range samples {
			if k > 0 && samples[k-1].T == x.T {
				return storage.ErrSeriesSet(fmt.Errorf("%s at %s: %w", list[from].Labels, oracle.Stamp(x.T), ErrAmbiguous))
			}
			if x.T >= q.minTime && x.T <= q.maxTime {
				data = append(data, point(x.T, x.F, float(x)))
			}
		}
		set.list = append(set.list, &storage.SeriesEntry{Lset: list[from].Labels, SampleIteratorFn: func(chunkenc.Iterator) chunkenc.Iterator {
			return storage.NewListSeriesIteratorWithCopy(data)
		}})
	}
	return set
}

func (q *querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.ErrUnsupported
}

func (q *querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, errors.ErrUnsupported
}

func (q *querier) Close() error { return nil }

type seriesSet struct {
	list []storage.Series
	at   int
}

func (s *seriesSet) Next() bool                        { s.at++; return s.at < len(s.list) }
func (s *seriesSet) At() storage.Series                { return s.list[s.at] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// points are samples as the engine wants them.
type points []shaping.Sample

func (p points) Get(i int) chunks.Sample { return stored{p[i]} }
func (p points) Len() int                { return len(p) }

type stored struct{ s shaping.Sample }

func (s stored) T() int64                      { return s.s.T }
func (s stored) F() float64                    { return s.s.F }
func (s stored) H() *histogram.Histogram       { return nil }
func (s stored) FH() *histogram.FloatHistogram { return s.s.FH }
func (s stored) Copy() chunks.Sample           { return s } // nobody writes to it

func (s stored) Type() chunkenc.ValueType {
	if s.s.FH != nil {
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}

func byTime(a, b shaping.Sample) int {
	switch {
	case a.T < b.T:
		return -1
	case a.T > b.T:
		return 1
	}
	return 0
}

// equal compares values, up to a relative difference of eps. Any two NaN are equal, and so
// are the zeros.
func equal(a, b shaping.Sample, eps float64) bool {
	ah, bh := float(a), float(b)
	if ah == nil || bh == nil {
		return ah == nil && bh == nil && near(a.F, b.F, eps)
	}
	ah, bh = ah.Copy().Compact(0), bh.Copy().Compact(0)
	close := func(x, y float64) bool { return near(x, y, eps) }
	return ah.Schema == bh.Schema && ah.ZeroThreshold == bh.ZeroThreshold && slices.Equal(ah.CustomValues, bh.CustomValues) &&
		close(ah.Count, bh.Count) && close(ah.Sum, bh.Sum) && close(ah.ZeroCount, bh.ZeroCount) &&
		slices.Equal(ah.PositiveSpans, bh.PositiveSpans) && slices.EqualFunc(ah.PositiveBuckets, bh.PositiveBuckets, close) &&
		slices.Equal(ah.NegativeSpans, bh.NegativeSpans) && slices.EqualFunc(ah.NegativeBuckets, bh.NegativeBuckets, close)
}

func float(s shaping.Sample) *histogram.FloatHistogram {
	if s.H != nil {
		return s.H.ToFloat(nil)
	}
	return s.FH
}

func near(a, b, eps float64) bool {
	if a == b || math.IsNaN(a) && math.IsNaN(b) {
		return true
	}
	return !math.IsInf(a, 0) && !math.IsInf(b, 0) && math.Abs(a-b) <= eps*max(math.Abs(a), math.Abs(b))
}
