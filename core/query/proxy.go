// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"context"
	"iter"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
)

// Proxy is all backends of a Service as one backend: what it serves to others
// over StoreAPI. Replicas stay apart; to deduplicate is the business of whoever
// asks.
type Proxy struct{ s *Service }

var (
	_ backend.Backend           = Proxy{}
	_ backend.ExemplarsBackend  = Proxy{}
	_ backend.MetadataBackend   = Proxy{}
	_ backend.RulesBackend      = Proxy{}
	_ backend.TargetsBackend    = Proxy{}
	_ backend.StatisticsBackend = Proxy{}
)

// Proxy returns the service as a backend.
func (s *Service) Proxy() Proxy { return Proxy{s} }

func (p Proxy) options(partial bool) Options {
	o := p.s.DefaultOptions()
	o.Dedup = false
	o.PartialResponse = partial
	return o
}

// Info sums up what the backends say of themselves.
func (p Proxy) Info(context.Context) (backend.Info, error) {
	out := backend.Info{
		Component: "query", MinTime: math.MaxInt64, MaxTime: math.MinInt64,
		Capabilities: backend.Capabilities{
			Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true, Downsampled: true,
			NativeHistograms: true, StaleMarkers: true, Completeness: true,
			Exemplars: true, Metadata: true, Rules: true, Targets: true, Statistics: true,
		},
	}
	members := p.s.set.Status()
	for _, m := range members {
		// What passes through keeps only what all keep (rule I-3).
		c := &out.Capabilities
		c.NativeHistograms = c.NativeHistograms && m.Info.Capabilities.NativeHistograms
		c.StaleMarkers = c.StaleMarkers && m.Info.Capabilities.StaleMarkers
	}
	anything := len(members) == 0 // an empty querier may learn of backends at any time
	for _, m := range members {
		out.MinTime, out.MaxTime = min(out.MinTime, m.Info.MinTime), max(out.MaxTime, m.Info.MaxTime)
		if len(m.Info.LabelSets) == 0 {
			anything = true
		}
		for _, ls := range m.Info.LabelSets {
			if !slices.ContainsFunc(out.LabelSets, func(x labels.Labels) bool { return labels.Equal(x, ls) }) {
				out.LabelSets = append(out.LabelSets, ls)
			}
		}
		// A querier that hands over whole queries goes by the ranges of the label sets.
		out.Ranges = append(out.Ranges, m.Info.Ranges...)
		if len(m.Info.Ranges) == 0 {
			for _, ls := range m.Info.LabelSets {
				out.Ranges = append(out.Ranges, backend.LabelSetRange{Labels: ls, MinTime: m.Info.MinTime, MaxTime: m.Info.MaxTime})
			}
		}
	}
	if anything {
		// One that cannot say what it has makes the sum one that cannot say.
		out.LabelSets = nil
	}
	if len(members) == 0 {
		out.MinTime, out.MaxTime = math.MinInt64, math.MaxInt64
	}
	slices.SortFunc(out.LabelSets, labels.Compare)
	return out, nil
}

// Series merges the streams of all backends.
func (p Proxy) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		ctx, r, err := p.s.begin(ctx, "store_series", p.options(req.PartialAllowed))
		if err != nil {
			yield(nil, backend.Errorf(backend.ErrUnavailable, "%w", err))
			return
		}
		defer r.end()
		for b, err := range r.session.Stream(ctx, req, selectRow(req.Matchers, req.MinTime, req.MaxTime)) {
			if !yield(b, err) || err != nil {
				break
			}
		}
		r.finish()
	}
}

func (p Proxy) labels(ctx context.Context, kind string, partial bool, ms []*labels.Matcher, minTime, maxTime int64, limit int,
	call func(ctx context.Context, m *membership.Member, ms []*labels.Matcher, minTime, maxTime int64, limit int) (*backend.Labels, error),
) (*backend.Labels, error) {
	ctx, r, err := p.s.begin(ctx, kind, p.options(partial))
	if err != nil {
		return nil, backend.Errorf(backend.ErrUnavailable, "%w", err)
	}
	defer r.end()
	if minTime > maxTime {
		return &backend.Labels{}, nil
	}
	values, err := r.labelsOf(ctx, ms, minTime, maxTime, limit, call)
	if err != nil {
		return nil, err
	}
	return &backend.Labels{Values: shaping.SortedUnique(values, limit), Notices: notices(r.finish())}, nil
}

func notices(rep *report.Report) []backend.Notice {
	var out []backend.Notice
	for _, w := range rep.Completeness.Warnings() {
		out = append(out, backend.Notice{Kind: backend.NoticeMissing, Text: w})
	}
	return out
}

// LabelNames merges the names of all backends.
func (p Proxy) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	return p.labels(ctx, "store_label_names", req.PartialAllowed, req.Matchers, req.MinTime, req.MaxTime, req.Limit,
		func(ctx context.Context, m *membership.Member, ms []*labels.Matcher, minTime, maxTime int64, limit int) (*backend.Labels, error) {
			l, err := m.Backend.LabelNames(ctx, &backend.LabelNamesRequest{
				MinTime: minTime, MaxTime: maxTime, Matchers: ms, PartialAllowed: req.PartialAllowed, WithoutReplicaLabels: req.WithoutReplicaLabels,
			})
			if l != nil {
				l.Values = slices.DeleteFunc(slices.Clone(l.Values), func(n string) bool { return slices.Contains(req.WithoutReplicaLabels, n) })
			}
			return l, err
		})
}

// LabelValues merges the values of all backends.
func (p Proxy) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if req.Name == "" {
		return nil, backend.Errorf(backend.ErrInvalid, "label name parameter cannot be empty")
	}
	if slices.Contains(req.WithoutReplicaLabels, req.Name) {
		return &backend.Labels{}, nil
	}
	return p.labels(ctx, "store_label_values", req.PartialAllowed, req.Matchers, req.MinTime, req.MaxTime, req.Limit,
		func(ctx context.Context, m *membership.Member, ms []*labels.Matcher, minTime, maxTime int64, limit int) (*backend.Labels, error) {
			return m.Backend.LabelValues(ctx, &backend.LabelValuesRequest{
				Name: req.Name, MinTime: minTime, MaxTime: maxTime, Matchers: ms, Limit: limit, PartialAllowed: req.PartialAllowed,
			})
		})
}

// Exemplars asks all backends that have some.
func (p Proxy) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	answers, rep, err := ask(ctx, p.s, "store_exemplars", "", p.options(true), fanout.Question{MinTime: minTime, MaxTime: maxTime},
		func(c *backend.Capabilities) bool { return c.Exemplars },
		func(ctx context.Context, b backend.ExemplarsBackend, _ *membership.Member) ([]*storepb.ExemplarData, []backend.Notice, error) {
			return b.Exemplars(ctx, selectors, minTime, maxTime)
		})
	if err != nil {
		return nil, nil, err
	}
	var out []*storepb.ExemplarData
	for _, a := range answers {
		out = append(out, a.Value...)
	}
	return out, notices(rep), nil
}

// MetricMetadata asks all backends that have some.
func (p Proxy) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	res, err := p.s.Metadata(ctx, metric, limit, p.options(true))
	if err != nil {
		return nil, nil, err
	}
	return res.Metadata, notices(res.Report), nil
}

// Rules asks all backends that have some.
func (p Proxy) Rules(ctx context.Context, req *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	res, err := p.s.Rules(ctx, req, p.options(req.PartialResponseStrategy != storepb.PartialResponseStrategy_ABORT))
	if err != nil {
		return nil, nil, err
	}
	return res.Groups, notices(res.Report), nil
}

// Targets asks all backends that have some.
func (p Proxy) Targets(ctx context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	res, err := p.s.Targets(ctx, state, p.options(true))
	if err != nil {
		return nil, nil, err
	}
	return res.Targets, notices(res.Report), nil
}

// Statistics adds up the heads of all backends that have one.
func (p Proxy) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	res, err := p.s.Statistics(ctx, limit, p.options(true))
	if err != nil {
		return nil, nil, err
	}
	return SumStatistics(res.Entries, limit), notices(res.Report), nil
}

// SumStatistics adds up statistics; lists are summed by name and cut to the
// greatest limit entries.
func SumStatistics(entries map[string]*storepb.TSDBStatisticsEntry, limit int) *storepb.TSDBStatisticsEntry {
	out := &storepb.TSDBStatisticsEntry{HeadStatistics: &storepb.HeadStatistics{MinTime: math.MaxInt64, MaxTime: math.MinInt64}}
	h := out.HeadStatistics
	lists := make([]map[string]uint64, 4)
	for i := range lists {
		lists[i] = map[string]uint64{}
	}
	for _, e := range entries {
		if x := e.GetHeadStatistics(); x != nil {
			h.NumSeries += x.NumSeries
			h.NumLabelPairs += x.NumLabelPairs
			h.ChunkCount += x.ChunkCount
			h.MinTime, h.MaxTime = min(h.MinTime, x.MinTime), max(h.MaxTime, x.MaxTime)
		}
		for i, l := range [][]*storepb.Statistic{e.SeriesCountByMetricName, e.LabelValueCountByLabelName, e.MemoryInBytesByLabelName, e.SeriesCountByLabelValuePair} {
			for _, x := range l {
				lists[i][x.Name] += x.Value
			}
		}
	}
	if h.MinTime > h.MaxTime {
		h.MinTime, h.MaxTime = 0, 0 // nobody has a head
	}
	for i, into := range []*[]*storepb.Statistic{&out.SeriesCountByMetricName, &out.LabelValueCountByLabelName, &out.MemoryInBytesByLabelName, &out.SeriesCountByLabelValuePair} {
		for n, v := range lists[i] {
			*into = append(*into, &storepb.Statistic{Name: n, Value: v})
		}
		slices.SortFunc(*into, func(a, b *storepb.Statistic) int {
			switch {
			case a.Value != b.Value && a.Value > b.Value:
				return -1
			case a.Value != b.Value:
				return 1
			case a.Name < b.Name:
				return -1
			}
			return 1
		})
		if limit > 0 && len(*into) > limit {
			*into = (*into)[:limit]
		}
	}
	return out
}

// selectorsOf returns the matcher lists of all selectors in an expression.
func selectorsOf(expr string) ([][]*labels.Matcher, error) {
	e, err := parser.ParseExpr(expr)
	if err != nil {
		return nil, badData("%s", err)
	}
	return parser.ExtractSelectors(e), nil
}
