// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package mutants

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"google.golang.org/grpc"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
)

// oneChunk puts all samples of a series into one chunk.
func oneChunk(s backend.Series) backend.Series {
	c := chunkenc.NewXORChunk()
	app, err := c.Appender()
	if err != nil || len(s.Chunks) < 2 {
		return s
	}
	for _, x := range s.Chunks {
		list, err := decode(x.Raw)
		if err != nil {
			return s
		}
		for _, v := range list {
			if v.H != nil || v.FH != nil {
				return s
			}
			app.Append(v.T, v.F)
		}
	}
	s.Chunks = []backend.Chunk{{MinTime: s.Chunks[0].MinTime, MaxTime: s.Chunks[len(s.Chunks)-1].MaxTime, Raw: backend.Encoded{Data: c.Bytes(), Encoding: chunkenc.EncXOR}}}
	return s
}

// shifted makes other bounds, and cuts what lies outside of them, as the reference sends
// whole chunks.
func shifted(f func(lo, hi int64) (int64, int64)) call {
	return func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
		r := *req
		r.MinTime, r.MaxTime = f(req.MinTime, req.MaxTime)
		return each(func(_ *backend.SeriesRequest, s backend.Series) backend.Series {
			var list []shaping.Sample
			for _, c := range s.Chunks {
				x, err := decode(c.Raw)
				if err != nil {
					return s
				}
				list = append(list, x...)
			}
			kept := slices.DeleteFunc(list, func(x shaping.Sample) bool { return x.T < r.MinTime || x.T > r.MaxTime })
			if len(s.Chunks) > 0 && len(kept) == 0 {
				return backend.Series{}
			}
			if chunks, err := shaping.EncodeSamples(kept); err == nil {
				s.Chunks = chunks
			}
			return s
		})(b, ctx, &r)
	}
}

// absence is what happens while what is behind a backend is gone. forEver: the first
// request after that is none to come back from.
type absence struct {
	series  call
	info    func(b *Backend, ctx context.Context) (backend.Info, error)
	forEver bool
}

func fails(context.Context) (backend.Info, error) {
	return backend.Info{}, backend.Errorf(backend.ErrUnavailable, "away")
}

func away(series call) *absence {
	return &absence{series: series, info: func(_ *Backend, ctx context.Context) (backend.Info, error) { return fails(ctx) }}
}

func honest(*Backend, context.Context, *backend.SeriesRequest) sequence {
	return backend.Fail(backend.Errorf(backend.ErrUnavailable, "away"))
}

// hangs does not look at its context for a while.
func hangs(d time.Duration) call {
	return func(*Backend, context.Context, *backend.SeriesRequest) sequence {
		return func(yield func(*backend.Batch, error) bool) {
			time.Sleep(d)
			yield(nil, context.Canceled)
		}
	}
}

// late is longer than the suite takes for prompt.
const late = 5500 * time.Millisecond

func bounds() []*Mutant {
	return []*Mutant{
		{Name: "the upper bound is exclusive", Kills: []string{"B-4.inclusive"}, series: shifted(func(lo, hi int64) (int64, int64) { return lo, max(hi-1, math.MinInt64+1) })},
		{Name: "the lower bound is exclusive", Kills: []string{"B-4.inclusive"}, series: shifted(func(lo, hi int64) (int64, int64) { return min(lo, math.MaxInt64-1) + 1, hi })},
		{Name: "times are cut to seconds", Kills: []string{"B-4.milliseconds"}, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			for i := range l {
				l[i].T -= l[i].T % 1000
			}
			return slices.CompactFunc(l, func(a, b shaping.Sample) bool { return a.T == b.T })
		})},
		{Name: "series come that have nothing in the range", Kills: []string{"S-7.outside", "S-7.generated"}, series: changed(func(r *backend.SeriesRequest) {
			if r.MinTime <= r.MaxTime && r.MinTime > math.MinInt64+10_000_000 {
				r.MinTime -= 10_000_000
			}
		})},
		{Name: "a series ends at its first gap", Kills: []string{"S-7.gap"}, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			for i := 1; i < len(l); i++ {
				if l[i].T-l[i-1].T > 600_000 {
					return l[:i]
				}
			}
			return l
		})},
		{Name: "a reversed range is turned round", Kills: []string{"B-4.reversed"}, series: changed(func(r *backend.SeriesRequest) {
			r.MinTime, r.MaxTime = min(r.MinTime, r.MaxTime), max(r.MinTime, r.MaxTime)
		})},
		{Name: "a second is added to the upper bound without a look", Kills: []string{"B-4.extremes"}, series: changed(func(r *backend.SeriesRequest) {
			if hi := r.MaxTime; hi > math.MaxInt64-1000 {
				r.MaxTime = math.MinInt64 + hi - (math.MaxInt64 - 1000)
			}
		})},
		{Name: "the limit is claimed and ignored", Kills: []string{"S-10.limit"}, series: changed(func(r *backend.SeriesRequest) { r.Limit = 0 })},
		{Name: "the limit takes the last series", Kills: []string{"S-10.limit"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			r := *req
			r.Limit = 0
			return answered(func(_ *Backend, _ *backend.SeriesRequest, all []backend.Series) []backend.Series {
				if req.Limit > 0 && len(all) > req.Limit {
					return all[len(all)-req.Limit:]
				}
				return all
			})(b, ctx, &r)
		}},
		{Name: "the limit cuts samples", Kills: []string{"S-10.limit-whole"}, series: each(func(req *backend.SeriesRequest, s backend.Series) backend.Series {
			if req.Limit > 0 {
				s.Chunks = s.Chunks[:min(1, len(s.Chunks))]
			}
			return s
		})},
		{Name: "a limit that is not claimed takes too few", Kills: []string{"S-10.limit-unclaimed"}, claims: func(c *backend.Capabilities) { c.SeriesLimit = false }, series: answered(func(_ *Backend, req *backend.SeriesRequest, all []backend.Series) []backend.Series {
			if req.Limit > 0 {
				return all[:min(len(all), req.Limit-1)]
			}
			return all
		})},
		{Name: "everything comes in one batch", Kills: []string{"S-2.batch-size"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			all, err := gather(b.Backend.Series(ctx, req))
			if err != nil {
				return backend.Fail(err)
			}
			return emit(all, len(all))
		}},
		{Name: "a context that is done is not looked at", Kills: []string{"B-2.before", "B-2.deadline"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			return b.Backend.Series(context.WithoutCancel(ctx), req)
		}},
		{Name: "a context that is done makes an empty answer", Kills: []string{"B-2.before", "B-2.deadline"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			return func(yield func(*backend.Batch, error) bool) {
				for batch, err := range b.Backend.Series(ctx, req) {
					if err != nil && ctx.Err() != nil {
						return
					}
					if !yield(batch, err) {
						return
					}
				}
			}
		}},
		{Name: "a call goes on for a while after it was cancelled", Kills: []string{"B-2.midway"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			return func(yield func(*backend.Batch, error) bool) {
				for batch, err := range b.Backend.Series(context.WithoutCancel(ctx), req) {
					if !yield(batch, err) {
						return
					}
					if ctx.Err() != nil {
						time.Sleep(late)
						yield(nil, context.Cause(ctx))
						return
					}
				}
			}
		}},
		{Name: "a sequence that is left holds a slot for ever", Kills: []string{"B-2.break"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			return func(yield func(*backend.Batch, error) bool) {
				if b.flights.Load() >= 20 {
					yield(nil, backend.Errorf(backend.ErrUnavailable, "all slots are taken"))
					return
				}
				b.flights.Add(1)
				for batch, err := range b.Backend.Series(ctx, req) {
					if !yield(batch, err) {
						return // and the slot is not given back
					}
				}
				b.flights.Add(-1)
			}
		}},
		{Name: "a cancelled call leaves a goroutine behind", Kills: []string{"B-2.leak"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			return func(yield func(*backend.Batch, error) bool) {
				for batch, err := range b.Backend.Series(ctx, req) {
					if !yield(batch, err) || err != nil {
						go time.Sleep(3 * time.Second) // long enough to be seen, and gone when the test ends
						return
					}
				}
			}
		}},
		{Name: "an unreachable store is an empty answer", Kills: []string{"B-7.away"}, away: away(func(*Backend, context.Context, *backend.SeriesRequest) sequence { return backend.None() })},
		{Name: "an unreachable store hangs", Kills: []string{"B-2.away"}, away: away(hangs(late + time.Second))},
		{Name: "Info hangs with the store", Kills: []string{"I-1.away"}, away: &absence{series: honest, info: func(*Backend, context.Context) (backend.Info, error) {
			time.Sleep(10 * time.Second)
			return backend.Info{}, context.DeadlineExceeded
		}}},
		{Name: "a store that was away never comes back", Kills: []string{"B-7.back"}, away: &absence{series: honest, forEver: true, info: func(_ *Backend, ctx context.Context) (backend.Info, error) { return fails(ctx) }}},
		{Name: "a bad regular expression matches nothing", Kills: []string{"W-1.bad-regex"}, Server: func(s storepb.StoreServer) storepb.StoreServer { return &badWire{StoreServer: s, regex: true} }},
		{Name: "an unknown matcher is taken for equal", Kills: []string{"W-2.matcher-type"}, Server: func(s storepb.StoreServer) storepb.StoreServer { return &badWire{StoreServer: s, types: true} }},
		{Name: "a chunk's hash is wrong", Kills: []string{"W-3.hash"}, Server: func(s storepb.StoreServer) storepb.StoreServer { return &badWire{StoreServer: s, hash: true} }},
		{Name: "batches are larger than asked for", Kills: []string{"W-4.batches"}, Server: func(s storepb.StoreServer) storepb.StoreServer { return &badWire{StoreServer: s, batches: true} }},
	}
}

// badWire spoils what only the wire shows.
type badWire struct {
	storepb.StoreServer
	regex, types, hash, batches bool
}

func (w *badWire) matchers(ms []*storepb.LabelMatcher) []*storepb.LabelMatcher {
	var out []*storepb.LabelMatcher
	for _, m := range ms {
		n := &storepb.LabelMatcher{Type: m.GetType(), Name: m.GetName(), Value: m.GetValue()}
		if w.types && n.Type > storepb.LabelMatcher_NRE {
			n.Type = storepb.LabelMatcher_EQ
		}
		if w.regex && n.Value == "a(b" {
			n.Type = storepb.LabelMatcher_EQ
		}
		out = append(out, n)
	}
	return out
}

func (w *badWire) LabelNames(ctx context.Context, m *storepb.LabelNamesRequest) (*storepb.LabelNamesResponse, error) {
	m.Matchers = w.matchers(m.GetMatchers())
	return w.StoreServer.LabelNames(ctx, m)
}

func (w *badWire) LabelValues(ctx context.Context, m *storepb.LabelValuesRequest) (*storepb.LabelValuesResponse, error) {
	m.Matchers = w.matchers(m.GetMatchers())
	return w.StoreServer.LabelValues(ctx, m)
}

func (w *badWire) Series(m *storepb.SeriesRequest, st grpc.ServerStreamingServer[storepb.SeriesResponse]) error {
	m.Matchers = w.matchers(m.GetMatchers())
	if w.batches {
		m.ResponseBatchSize = 1000
	}
	return w.StoreServer.Series(m, &badStream{st, w})
}

type badStream struct {
	grpc.ServerStreamingServer[storepb.SeriesResponse]
	w *badWire
}

func (s *badStream) Send(m *storepb.SeriesResponse) error {
	if s.w.hash {
		list := m.GetBatch().GetSeries()
		if x := m.GetSeries(); x != nil {
			list = append(list, x)
		}
		for _, x := range list {
			for _, c := range x.GetChunks() {
				if c.GetRaw() != nil {
					c.Raw.Hash++
				}
			}
		}
	}
	return s.ServerStreamingServer.Send(m)
}

func optionals() []*Mutant {
	unclaimed := func(c *backend.Capabilities) { c.Exemplars, c.Metadata = false, false }
	out := []*Mutant{
		{Name: "without downsampled data nothing comes for a coarse request", Kills: []string{"S-11.ignored"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			if req.MaxResolution > 0 {
				return backend.None()
			}
			return b.Backend.Series(ctx, req)
		}},
		{Name: "aggregates come where raw data were asked for", Kills: []string{"S-11.raw"}, series: changed(func(r *backend.SeriesRequest) { r.MaxResolution = 300_000 })},
		{Name: "the finest level is used", Kills: []string{"S-11.level"}, series: changed(func(r *backend.SeriesRequest) { r.MaxResolution = min(r.MaxResolution, 300_000) })},
		{Name: "sums are means", Kills: []string{"S-11.level"}, series: chunked(func(c *backend.Chunk) {
			if c.Aggregates != nil && c.Aggregates.Min.Present() {
				a := *c.Aggregates
				a.Sum = a.Min
				c.Aggregates = &a
			}
		})},
		{Name: "gaps are filled with coarser windows", Kills: []string{"S-11.never-coarser"}, series: changed(func(r *backend.SeriesRequest) {
			if r.MaxResolution > 0 {
				r.MaxResolution = 3_600_000
			}
		})},
		{Name: "all aggregates come whatever was asked for", Kills: []string{"S-11.aggregates"}, series: changed(func(r *backend.SeriesRequest) {
			r.Aggregates = []backend.Aggregate{backend.AggregateCount, backend.AggregateSum, backend.AggregateMin, backend.AggregateMax, backend.AggregateCounter}
		})},
		{Name: "histograms lose their last sample", Kills: []string{"S-7.histograms"}, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			return slices.DeleteFunc(l, func(s shaping.Sample) bool { return s.T == l[len(l)-1].T && (s.H != nil || s.FH != nil) })
		})},
		{Name: "histograms become their count", Kills: []string{"S-7.histograms-unclaimed"}, claims: func(c *backend.Capabilities) { c.NativeHistograms = false }, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			for i := range l {
				if h := l[i].H; h != nil {
					l[i].H, l[i].F = (*histogram.Histogram)(nil), float64(h.Count)
				}
			}
			return l
		})},
		{Name: "the last exemplar is lost", Kills: []string{"E-1.selected"}, exemplars: func(b *Backend, ctx context.Context, sel [][]*labels.Matcher, lo, hi int64) ([]*storepb.ExemplarData, error) {
			out, _, err := b.Backend.Exemplars(ctx, sel, lo, hi)
			return out[:max(0, len(out)-1)], err
		}},
		{Name: "exemplars ignore the range", Kills: []string{"E-2.range"}, exemplars: func(b *Backend, ctx context.Context, sel [][]*labels.Matcher, _, _ int64) ([]*storepb.ExemplarData, error) {
			out, _, err := b.Backend.Exemplars(ctx, sel, math.MinInt64, math.MaxInt64)
			return out, err
		}},
		{Name: "exemplars ignore selectors", Kills: []string{"E-3.no-match"}, exemplars: func(b *Backend, ctx context.Context, _ [][]*labels.Matcher, lo, hi int64) ([]*storepb.ExemplarData, error) {
			out, _, err := b.Backend.Exemplars(ctx, [][]*labels.Matcher{{labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+")}}, lo, hi)
			return out, err
		}},
		{Name: "exemplars are empty instead of refused", Kills: []string{"E-4.unclaimed"}, claims: unclaimed, exemplars: func(*Backend, context.Context, [][]*labels.Matcher, int64, int64) ([]*storepb.ExemplarData, error) {
			return nil, nil
		}},
		{Name: "the help of a metric is lost", Kills: []string{"M-1.one", "M-2.all"}, metadata: func(b *Backend, ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, error) {
			out, _, err := b.Backend.MetricMetadata(ctx, metric, limit)
			for name, list := range out {
				var l []*storepb.Meta
				for _, x := range list {
					l = append(l, &storepb.Meta{Type: x.GetType(), Unit: x.GetUnit()})
				}
				out[name] = l
			}
			return out, err
		}},
		{Name: "the limit of metadata is ignored", Kills: []string{"M-3.limit"}, metadata: func(b *Backend, ctx context.Context, metric string, _ int) (map[string][]*storepb.Meta, error) {
			out, _, err := b.Backend.MetricMetadata(ctx, metric, -1)
			return out, err
		}},
		{Name: "metadata are empty instead of refused", Kills: []string{"M-4.unclaimed"}, claims: unclaimed, metadata: func(*Backend, context.Context, string, int) (map[string][]*storepb.Meta, error) { return nil, nil }},
	}
	return out
}
