// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package mutants

import (
	"context"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/value"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

// question is a request of thanos.Query, of either call: what it points to is the request's.
// Start and end of an instant query are the same field; step is nil there.
type question struct {
	ctx                    context.Context
	text                   *string
	start, end, step       *int64
	lookback, batch, limit *int64
	dedup                  *bool
	replicas               *[]string
	engine                 *storepb.EngineType
}

// reply is an answer before it is sent.
type reply struct {
	warnings []string
	series   []*prompb.TimeSeries
	// batches is how many series come in a message; 1 and less is one, without a batch.
	batches int64
	stats   int
	err     error
}

// badQuery spoils a query server: ask changes the question, and answers it itself if it
// returns a reply; spoil changes the reply.
type badQuery struct {
	storepb.QueryServer
	ask   func(q *question) *reply
	spoil func(q *question, r *reply)
}

func asking(f func(q *question)) func(storepb.QueryServer) storepb.QueryServer {
	return func(s storepb.QueryServer) storepb.QueryServer {
		return &badQuery{QueryServer: s, ask: func(q *question) *reply { f(q); return nil }}
	}
}

func replying(f func(q *question, r *reply)) func(storepb.QueryServer) storepb.QueryServer {
	return func(s storepb.QueryServer) storepb.QueryServer { return &badQuery{QueryServer: s, spoil: f} }
}

// points changes every point of a reply, one whose time is 0 afterwards is left out.
func points(f func(q *question, s *prompb.Sample)) func(storepb.QueryServer) storepb.QueryServer {
	return replying(func(q *question, r *reply) {
		for _, x := range r.series {
			for _, s := range x.Samples {
				f(q, s)
			}
			x.Samples = slices.DeleteFunc(x.Samples, func(s *prompb.Sample) bool { return s.Timestamp == 0 })
		}
		r.series = slices.DeleteFunc(r.series, func(x *prompb.TimeSeries) bool { return len(x.Samples)+len(x.Histograms) == 0 })
	})
}

// text changes the expression.
func text(pattern, with string) func(storepb.QueryServer) storepb.QueryServer {
	re := regexp.MustCompile(pattern)
	return asking(func(q *question) { *q.text = re.ReplaceAllString(*q.text, with) })
}

// kept is a stream of which the messages are not sent.
type kept[T any] struct {
	grpc.ServerStreamingServer[T]
	frames []*T
}

func (k *kept[T]) Send(m *T) error { k.frames = append(k.frames, m); return nil }

// message is a frame of either call.
type message interface {
	GetWarnings() string
	GetTimeseries() *prompb.TimeSeries
	GetTimeseriesBatch() *storepb.TimeSeriesBatch
	GetStats() *storepb.QueryStats
}

func (r *reply) take(m message) {
	if w := m.GetWarnings(); w != "" {
		r.warnings = append(r.warnings, w)
	}
	if s := m.GetTimeseries(); s != nil {
		r.series = append(r.series, s)
	}
	r.series = append(r.series, m.GetTimeseriesBatch().GetSeries()...)
	if m.GetStats() != nil {
		r.stats++
	}
}

// Query implements storepb.QueryServer.
func (b *badQuery) Query(m *storepb.QueryRequest, out grpc.ServerStreamingServer[storepb.QueryResponse]) error {
	q := &question{ctx: out.Context(), text: &m.Query, start: &m.TimeSeconds, end: &m.TimeSeconds, lookback: &m.LookbackDeltaSeconds, batch: &m.ResponseBatchSize, limit: &m.TimeoutSeconds, dedup: &m.EnableDedup, replicas: &m.ReplicaLabels, engine: &m.Engine}
	r := b.answer(q, func() *reply {
		k := &kept[storepb.QueryResponse]{ServerStreamingServer: out}
		r := &reply{err: b.QueryServer.Query(m, k)}
		for _, f := range k.frames {
			r.take(f)
		}
		return r
	})
	for _, w := range r.warnings {
		_ = out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_Warnings{Warnings: w}})
	}
	for part := range slices.Chunk(r.series, int(max(r.batches, 1))) {
		if r.batches > 1 {
			_ = out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_TimeseriesBatch{TimeseriesBatch: &storepb.TimeSeriesBatch{Series: part}}})
		} else {
			_ = out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_Timeseries{Timeseries: part[0]}})
		}
	}
	for range r.stats {
		_ = out.Send(&storepb.QueryResponse{Result: &storepb.QueryResponse_Stats{Stats: &storepb.QueryStats{}}})
	}
	return r.err
}

// QueryRange implements storepb.QueryServer.
func (b *badQuery) QueryRange(m *storepb.QueryRangeRequest, out grpc.ServerStreamingServer[storepb.QueryRangeResponse]) error {
	q := &question{ctx: out.Context(), text: &m.Query, start: &m.StartTimeSeconds, end: &m.EndTimeSeconds, step: &m.IntervalSeconds, lookback: &m.LookbackDeltaSeconds, batch: &m.ResponseBatchSize, limit: &m.TimeoutSeconds, dedup: &m.EnableDedup, replicas: &m.ReplicaLabels, engine: &m.Engine}
	r := b.answer(q, func() *reply {
		k := &kept[storepb.QueryRangeResponse]{ServerStreamingServer: out}
		r := &reply{err: b.QueryServer.QueryRange(m, k)}
		for _, f := range k.frames {
			r.take(f)
		}
		return r
	})
	for _, w := range r.warnings {
		_ = out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_Warnings{Warnings: w}})
	}
	for part := range slices.Chunk(r.series, int(max(r.batches, 1))) {
		if r.batches > 1 {
			_ = out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_TimeseriesBatch{TimeseriesBatch: &storepb.TimeSeriesBatch{Series: part}}})
		} else {
			_ = out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_Timeseries{Timeseries: part[0]}})
		}
	}
	for range r.stats {
		_ = out.Send(&storepb.QueryRangeResponse{Result: &storepb.QueryRangeResponse_Stats{Stats: &storepb.QueryStats{}}})
	}
	return r.err
}

func (b *badQuery) answer(q *question, ask func() *reply) (r *reply) {
	if b.ask != nil {
		r = b.ask(q)
	}
	if r == nil {
		r = ask()
	}
	r.batches = *q.batch
	if b.spoil != nil {
		b.spoil(q, r)
	}
	return r
}

// nothing is an answer without series.
func nothing() *reply { return &reply{stats: 1} }

// ignoring answers errors with an empty answer and a warning.
func ignoring(code codes.Code) func(storepb.QueryServer) storepb.QueryServer {
	return replying(func(_ *question, r *reply) {
		if status.Code(r.err) == code {
			*r = reply{warnings: []string{status.Convert(r.err).Message()}, stats: 1, batches: r.batches}
		}
	})
}

func unlabelled(names ...string) func(storepb.QueryServer) storepb.QueryServer {
	return replying(func(_ *question, r *reply) {
		for _, x := range r.series {
			x.Labels = slices.DeleteFunc(x.Labels, func(l *prompb.Label) bool { return slices.Contains(names, l.Name) })
		}
	})
}

// stuck holds up everybody for a while once a query was cancelled.
func stuck(s storepb.QueryServer) storepb.QueryServer {
	var mu sync.Mutex
	var until time.Time
	return &badQuery{
		QueryServer: s,
		ask: func(q *question) *reply {
			mu.Lock()
			wait := time.Until(until)
			mu.Unlock()
			select {
			case <-time.After(wait):
			case <-q.ctx.Done():
			}
			return nil
		},
		spoil: func(q *question, _ *reply) {
			mu.Lock()
			defer mu.Unlock()
			if q.ctx.Err() != nil && until.IsZero() {
				until = time.Now().Add(late + time.Second)
			}
		},
	}
}

func queries() []*Mutant {
	right := func(s storepb.QueryServer) storepb.QueryServer { return s }
	return []*Mutant{
		{Name: "the query API is announced and not there", Kills: []string{"P-1.instant", "P-1.range", "P-8.bad-expression"}, Query: func(storepb.QueryServer) storepb.QueryServer { return storepb.UnimplementedQueryServer{} }},
		{Name: "a query API that is not announced answers with nothing", Kills: []string{"P-0.unclaimed"}, Unannounced: true, Query: func(s storepb.QueryServer) storepb.QueryServer {
			return &badQuery{QueryServer: s, ask: func(*question) *reply { return nothing() }}
		}},
		{Name: "a query's last series is lost", Kills: []string{"P-1.instant", "P-1.range", "P-1.generated", "P-6.every"}, Query: replying(func(_ *question, r *reply) {
			r.series = r.series[:max(0, len(r.series)-1)]
		})},
		{Name: "a query's first series comes twice", Kills: []string{"P-1.instant", "P-1.range", "P-1.generated"}, Query: replying(func(_ *question, r *reply) {
			if len(r.series) > 0 {
				r.series = append(r.series, r.series[0])
			}
		})},
		{Name: "times of a vector are those of its samples", Kills: []string{"P-1.instant"}, Query: points(func(q *question, s *prompb.Sample) {
			if q.step == nil {
				s.Timestamp -= s.Timestamp % 60_000
			}
		})},
		{Name: "times of answers are seconds", Kills: []string{"P-1.instant", "P-1.range", "P-2.scalar"}, Query: points(func(_ *question, s *prompb.Sample) { s.Timestamp /= 1000 })},
		{Name: "the time of an instant query is not looked at", Kills: []string{"P-1.instant"}, Query: asking(func(q *question) {
			if q.step == nil {
				*q.start += 86_400
			}
		})},
		{Name: "values are of single precision", Kills: []string{"P-1.generated", "P-4.counters"}, Query: points(func(_ *question, s *prompb.Sample) { s.Value = float64(float32(s.Value)) })},
		{Name: "one engine does not drop names", Kills: []string{"P-1.engines"}, Query: replying(func(q *question, r *reply) {
			if *q.engine == storepb.EngineType_thanos && strings.HasPrefix(*q.text, "avg_over_time") {
				for _, x := range r.series {
					x.Labels = append([]*prompb.Label{{Name: "__name__", Value: "cert_temperature_celsius"}}, x.Labels...)
				}
			}
		})},
		{Name: "a named engine is answered with nothing", Kills: []string{"P-1.engines"}, Query: replying(func(q *question, r *reply) {
			if *q.engine != storepb.EngineType_default {
				r.series = nil
			}
		})},
		{Name: "an unknown engine is the default", Kills: []string{"P-8.engine"}, Query: asking(func(q *question) { *q.engine = storepb.EngineType_default })},
		{Name: "a scalar is lost", Kills: []string{"P-2.scalar"}, Query: replying(func(_ *question, r *reply) {
			r.series = slices.DeleteFunc(r.series, func(x *prompb.TimeSeries) bool { return len(x.Labels) == 0 })
		})},
		{Name: "a scalar has a label", Kills: []string{"P-2.scalar"}, Query: replying(func(_ *question, r *reply) {
			for _, x := range r.series {
				if len(x.Labels) == 0 {
					x.Labels = []*prompb.Label{{Name: "__name__", Value: "scalar"}}
				}
			}
		})},
		{Name: "a string is refused", Kills: []string{"P-2.string"}, Query: replying(func(q *question, r *reply) {
			if strings.HasPrefix(*q.text, `"`) {
				r.err = status.Error(codes.Internal, "a result of type string")
			}
		})},
		{Name: "a string is a series", Kills: []string{"P-2.string"}, Query: replying(func(q *question, r *reply) {
			if strings.HasPrefix(*q.text, `"`) {
				r.series = []*prompb.TimeSeries{{Labels: []*prompb.Label{{Name: "value", Value: *q.text}}}}
			}
		})},
		{Name: "steps are aligned", Kills: []string{"P-3.steps"}, Query: asking(func(q *question) {
			if q.step != nil && *q.step > 0 {
				*q.start -= *q.start % *q.step
			}
		})},
		{Name: "the end of a range is exclusive", Kills: []string{"P-3.steps"}, Query: points(func(q *question, s *prompb.Sample) {
			if q.step != nil && s.Timestamp == *q.end*1000 {
				s.Timestamp = 0
			}
		})},
		{Name: "the end of a range is a step", Kills: []string{"P-3.steps"}, Query: asking(func(q *question) {
			if q.step != nil && *q.step > 0 && (*q.end-*q.start)%*q.step > 0 {
				*q.end += *q.step - (*q.end-*q.start)%*q.step
			}
		})},
		{Name: "a step is a minute at least", Kills: []string{"P-3.steps"}, Query: asking(func(q *question) {
			if q.step != nil && *q.step > 0 {
				*q.step = max(60, *q.step)
			}
		})},
		{Name: "by is without", Kills: []string{"P-4.aggregations"}, Query: text(`\bby\b`, "without")},
		{Name: "quantiles are maxima", Kills: []string{"P-4.aggregations"}, Query: text(`quantile( by \(job\))? \(0\.\d, `, "max$1 (")},
		{Name: "the first k are the last", Kills: []string{"P-4.aggregations"}, Query: text(`\btopk\b`, "bottomk")},
		{Name: "partial averages are averaged", Kills: []string{"P-4.aggregations"}, Query: text(`^avg\(cert_requests_total\)$`, `avg(avg by (job) (cert_requests_total))`)},
		{Name: "rates are not extrapolated", Kills: []string{"P-4.counters"}, Query: points(func(q *question, s *prompb.Sample) {
			if strings.HasPrefix(*q.text, "rate(") {
				s.Value *= 0.8
			}
		})},
		{Name: "rates do not know that counters begin anew", Kills: []string{"P-4.counters"}, Query: text(`\brate\((.*)\[5m\]\)$`, "(delta($1[5m]) / 300)")},
		{Name: "increases go from sample to sample", Kills: []string{"P-4.counters"}, Query: text(`increase\((.*)\[10m\]\)`, "($1 - $1 offset 10m)")},
		{Name: "a range ends before its oldest sample", Kills: []string{"P-4.over-time"}, Query: text(`\[10m\]`, "[9m]")},
		{Name: "the last over time is the least", Kills: []string{"P-4.over-time"}, Query: text(`last_over_time`, "min_over_time")},
		{Name: "offset is ignored", Kills: []string{"P-4.offset"}, Query: text(` offset -?\d+m`, "")},
		{Name: "negative offsets are positive", Kills: []string{"P-4.offset"}, Query: text(` offset -`, " offset ")},
		{Name: "@ is ignored", Kills: []string{"P-4.offset"}, Query: text(` @ (\d+|start\(\)|end\(\))`, "")},
		{Name: "an offset moves the times of the answer", Kills: []string{"P-4.offset"}, Query: points(func(q *question, s *prompb.Sample) {
			if strings.HasSuffix(*q.text, " offset 17m") {
				s.Timestamp -= 17 * 60_000
			}
		})},
		{Name: "steps of subqueries are a minute", Kills: []string{"P-4.subqueries"}, Query: text(`\[(\w+):\w+\]`, "[$1:1m]")},
		{Name: "a subquery is one step too long", Kills: []string{"P-4.subqueries"}, Query: text(`\[1h:13m\]`, "[73m:13m]")},
		{Name: "on is ignoring", Kills: []string{"P-4.operators"}, Query: text(`\bon \(`, "ignoring (")},
		{Name: "comparisons do not filter", Kills: []string{"P-4.operators"}, Query: text(` (==|>) (\d)`, " $1 bool $2")},
		{Name: "unless is and", Kills: []string{"P-4.operators"}, Query: text(`\bunless\b`, "and")},
		{Name: "or is and", Kills: []string{"P-4.operators"}, Query: text(` or `, " and ")},
		{Name: "absent has no labels", Kills: []string{"P-4.labels"}, Query: text(`absent(_over_time)?\(cert_no_such_metric\{[^}]*\}`, "absent$1(cert_no_such_metric")},
		{Name: "absent is empty", Kills: []string{"P-4.labels"}, Query: replying(func(q *question, r *reply) {
			if strings.HasPrefix(*q.text, "absent") {
				r.series = nil
			}
		})},
		{Name: "label_replace is not anchored", Kills: []string{"P-4.labels"}, Query: text(`"\(\.\.\)\.\*"`, `".*?(..)$"`)},
		{Name: "histograms are dropped from answers", Kills: []string{"P-4.histograms"}, Query: replying(func(_ *question, r *reply) {
			for _, x := range r.series {
				x.Histograms = nil
			}
			r.series = slices.DeleteFunc(r.series, func(x *prompb.TimeSeries) bool { return len(x.Samples) == 0 })
		})},
		{Name: "histograms lose their negative buckets", Kills: []string{"P-4.histograms"}, Query: replying(func(_ *question, r *reply) {
			for _, x := range r.series {
				for _, h := range x.Histograms {
					h.NegativeSpans, h.NegativeCounts = nil, nil
				}
			}
		})},
		{Name: "quantiles of histograms are those of ordinary values", Kills: []string{"P-4.histograms"}, Query: text(`histogram_quantile\(0\.9, (.*)\)$`, "histogram_avg($1)")},
		{Name: "answers have no NaN", Kills: []string{"P-5.values"}, Query: points(func(_ *question, s *prompb.Sample) {
			if math.IsNaN(s.Value) {
				s.Timestamp = 0
			}
		})},
		{Name: "infinities become the largest number", Kills: []string{"P-5.values"}, Query: points(func(_ *question, s *prompb.Sample) {
			if math.IsInf(s.Value, 0) {
				s.Value = math.Copysign(math.MaxFloat64, s.Value)
			}
		})},
		{Name: "small values are rounded away", Kills: []string{"P-5.values"}, Query: points(func(_ *question, s *prompb.Sample) {
			if math.Abs(s.Value) < 1e-300 {
				s.Value = 0
			}
		})},
		{Name: "stale markers are values of queries", Kills: []string{"P-5.stale"}, Query: right, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			for i := range l {
				if value.IsStaleNaN(l[i].F) {
					l[i].F = math.Float64frombits(value.NormalNaN)
				}
			}
			return l
		})},
		{Name: "stale markers are dropped before queries", Kills: []string{"P-5.stale"}, Query: right, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			kept := slices.DeleteFunc(slices.Clone(l), func(s shaping.Sample) bool { return value.IsStaleNaN(s.F) })
			if len(kept) == 0 {
				return l
			}
			return kept
		})},
		{Name: "the request's lookback is ignored", Kills: []string{"P-5.lookback"}, Query: asking(func(q *question) { *q.lookback = 0 })},
		{Name: "lookback is taken for milliseconds", Kills: []string{"P-5.lookback"}, Query: asking(func(q *question) { *q.lookback = max(1, *q.lookback/1000) })},
		{Name: "lookback is the longer one of two", Kills: []string{"P-5.lookback"}, Query: asking(func(q *question) { *q.lookback = max(300, *q.lookback) })},
		{Name: "answers lack external labels", Kills: []string{"P-6.external", "P-6.every"}, Query: unlabelled("cluster")},
		{Name: "matchers on external labels are ignored by queries", Kills: []string{"P-6.external"}, Query: text(`(cluster|replica)(!=|=~|!~|=)"[^"]*"`, `no_such_label=""`)},
		{Name: "a query for an external label selects nothing", Kills: []string{"P-6.external"}, Query: replying(func(q *question, r *reply) {
			if strings.Contains(*q.text, "cluster") {
				r.series = nil
			}
		})},
		{Name: "deduplication is always on", Kills: []string{"P-6.every"}, Query: asking(func(q *question) { *q.dedup, *q.replicas = true, []string{"replica"} })},
		{Name: "deduplication is ignored", Kills: []string{"P-7.dedup", "P-7.replica-labels"}, Query: asking(func(q *question) { *q.dedup = false })},
		{Name: "replica labels are removed, and replicas counted twice", Kills: []string{"P-7.dedup"}, Query: func(s storepb.QueryServer) storepb.QueryServer {
			return &badQuery{
				QueryServer: s, ask: func(q *question) *reply { *q.dedup = *q.dedup && !strings.Contains(*q.text, "("); return nil },
				spoil: func(_ *question, r *reply) {
					for _, x := range r.series {
						x.Labels = slices.DeleteFunc(x.Labels, func(l *prompb.Label) bool { return l.Name == "replica" })
					}
				},
			}
		}},
		{Name: "replica labels are the server's own", Kills: []string{"P-7.replica-labels"}, Query: asking(func(q *question) { *q.replicas = []string{"replica"} })},
		{Name: "only the first replica label counts", Kills: []string{"P-7.replica-labels"}, Query: asking(func(q *question) { *q.replicas = (*q.replicas)[:min(1, len(*q.replicas))] })},
		{Name: "nothing selected is an error of the query", Kills: []string{"P-8.no-match"}, Query: replying(func(_ *question, r *reply) {
			if r.err == nil && len(r.series) == 0 {
				r.err = status.Error(codes.NotFound, "no series")
			}
		})},
		{Name: "nothing selected is zero", Kills: []string{"P-8.no-match"}, Query: text(`^sum\(cert_no_such_metric\)$`, "vector(0)")},
		{Name: "a bad expression is a warning", Kills: []string{"P-8.bad-expression"}, Query: ignoring(codes.InvalidArgument)},
		{Name: "a bad expression is an internal error", Kills: []string{"P-8.bad-expression-code"}, Query: replying(func(_ *question, r *reply) {
			if status.Code(r.err) == codes.InvalidArgument {
				r.err = status.Error(codes.Internal, status.Convert(r.err).Message())
			}
		})},
		{Name: "a failed evaluation is a warning", Kills: []string{"P-8.evaluation"}, Query: ignoring(codes.Aborted)},
		{Name: "a reversed range is empty", Kills: []string{"P-8.range"}, Query: ignoring(codes.InvalidArgument)},
		{Name: "a query's timeout is not looked at", Kills: []string{"P-9.timeout"}, Query: func(s storepb.QueryServer) storepb.QueryServer {
			return &badQuery{QueryServer: s, ask: func(q *question) *reply {
				select {
				case <-time.After(late + time.Second):
				case <-q.ctx.Done():
				}
				return nothing()
			}}
		}},
		{Name: "a cancelled query keeps others waiting", Kills: []string{"P-9.cancel"}, Query: stuck},
		{Name: "batches of queries are larger than asked for", Kills: []string{"P-10.batches"}, Query: replying(func(_ *question, r *reply) { r.batches *= 2 })},
		{Name: "only the first batch of a query comes", Kills: []string{"P-10.batches"}, Query: replying(func(_ *question, r *reply) {
			if r.batches > 1 {
				r.series = r.series[:min(len(r.series), int(r.batches))]
			}
		})},
		{Name: "a query has no statistics", Kills: []string{"P-10.stats"}, Query: replying(func(_ *question, r *reply) { r.stats = 0 })},
	}
}
