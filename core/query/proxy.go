// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/core/syntax"
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

// refused gives an error of a request that did not begin a form that StoreAPI has.
func refused(err error) error {
	var denied *access.Denied
	switch {
	case errors.As(err, &denied):
		return denied // it knows its gRPC status itself
	case errors.Is(err, ErrDenied):
		return backend.Errorf(backend.ErrDenied, "%v", err)
	}
	return backend.Errorf(backend.ErrUnavailable, "%w", err)
}

// plain is an error of a call that is answered by a Service as a whole.
func plain(err error) error {
	if errors.Is(err, ErrDenied) {
		return refused(err)
	}
	return err
}

// offered adds what can be had from some of the members: nobody should be asked for what
// nobody has. What is not known of them yet they may have.
func offered(c backend.Capabilities, members []membership.Status, anything bool) backend.Capabilities {
	c.Exemplars, c.Metadata, c.Rules, c.Targets, c.Statistics = anything, anything, anything, anything, anything
	for _, m := range members {
		has := m.Info.Capabilities
		c.Exemplars = c.Exemplars || !m.Known || has.Exemplars
		c.Metadata = c.Metadata || !m.Known || has.Metadata
		c.Rules = c.Rules || !m.Known || has.Rules
		c.Targets = c.Targets || !m.Known || has.Targets
		c.Statistics = c.Statistics || !m.Known || has.Statistics
	}
	return c
}

// Info sums up what the backends say of themselves, as far as the caller may see it.
func (p Proxy) Info(ctx context.Context) (backend.Info, error) {
	g, err := p.s.Admit(ctx, &access.Ask{Kind: "store_info"})
	if err != nil {
		return backend.Info{}, refused(err)
	}
	out := backend.Info{
		Component: "query", MinTime: math.MaxInt64, MaxTime: math.MinInt64,
		Capabilities: backend.Capabilities{
			Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true, Downsampled: true,
			NativeHistograms: true, StaleMarkers: true, Completeness: true,
		},
	}
	var members []membership.Status
	anything := false
	for _, st := range p.s.set.Status() {
		if cut, ok := fanout.Cut(g, st); ok {
			members = append(members, cut)
		} else if !st.Known {
			anything = true // who knows what it will turn out to have
		}
	}
	for _, m := range members {
		// What passes through keeps only what all keep (rule I-3).
		c := &out.Capabilities
		c.NativeHistograms = c.NativeHistograms && m.Info.Capabilities.NativeHistograms
		c.StaleMarkers = c.StaleMarkers && m.Info.Capabilities.StaleMarkers
	}
	anything = anything || len(members) == 0 // an empty querier may learn of backends at any time
	out.Capabilities = offered(out.Capabilities, members, anything)
	for _, m := range members {
		out.MinTime, out.MaxTime = min(out.MinTime, m.Info.MinTime), max(out.MaxTime, m.Info.MaxTime)
		if !m.Known {
			anything = true // its configuration may not be all there is to say
			continue
		}
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
	if anything && g.Scoped() || len(members) == 0 {
		out.MinTime, out.MaxTime = math.MinInt64, math.MaxInt64
	}
	out.MinTime, out.MaxTime = g.Clip(out.MinTime, out.MaxTime)
	for i := range out.Ranges {
		x := &out.Ranges[i]
		x.MinTime, x.MaxTime = g.Clip(x.MinTime, x.MaxTime)
	}
	slices.SortFunc(out.LabelSets, labels.Compare)
	return out, nil
}

// Series merges the streams of all backends.
func (p Proxy) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		ctx, r, err := p.s.begin(ctx, storeAsk("store_series", req.Matchers, req.MinTime, req.MaxTime), p.options(req.PartialAllowed))
		if err != nil {
			yield(nil, refused(err))
			return
		}
		defer r.end()
		for b, err := range r.session.Stream(ctx, req, selectRow(req.Matchers, req.MinTime, req.MaxTime)) {
			if !yield(b, r.session.SeenError(err)) || err != nil {
				break
			}
		}
		r.finish()
	}
}

func storeAsk(kind string, ms []*labels.Matcher, minTime, maxTime int64) *access.Ask {
	return &access.Ask{Kind: kind, Query: fmt.Sprint(ms), Selectors: [][]*labels.Matcher{ms}, Start: minTime, End: maxTime}
}

func (p Proxy) labels(ctx context.Context, kind, name string, partial bool, ms []*labels.Matcher, minTime, maxTime int64, limit int, call fanout.LabelsCall) (*backend.Labels, error) {
	ctx, r, err := p.s.begin(ctx, storeAsk(kind, ms, minTime, maxTime), p.options(partial))
	if err != nil {
		return nil, refused(err)
	}
	defer r.end()
	if minTime > maxTime {
		return &backend.Labels{}, nil
	}
	values, err := r.labelsOf(ctx, name, ms, minTime, maxTime, call)
	if err != nil {
		return nil, r.session.SeenError(err)
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
	l, err := p.labels(ctx, "store_label_names", "", req.PartialAllowed, req.Matchers, req.MinTime, req.MaxTime, 0,
		func(ctx context.Context, m *membership.Member, ms []*labels.Matcher, minTime, maxTime int64) (*backend.Labels, error) {
			return m.Backend.LabelNames(ctx, &backend.LabelNamesRequest{
				MinTime: minTime, MaxTime: maxTime, Matchers: ms, PartialAllowed: req.PartialAllowed, WithoutReplicaLabels: req.WithoutReplicaLabels,
			})
		})
	if err != nil {
		return nil, err
	}
	l.Values = slices.DeleteFunc(l.Values, func(n string) bool { return slices.Contains(req.WithoutReplicaLabels, n) })
	if req.Limit > 0 && len(l.Values) > req.Limit {
		l.Values = l.Values[:req.Limit]
	}
	return l, nil
}

// LabelValues merges the values of all backends.
func (p Proxy) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if req.Name == "" {
		return nil, backend.Errorf(backend.ErrInvalid, "label name parameter cannot be empty")
	}
	if slices.Contains(req.WithoutReplicaLabels, req.Name) {
		if _, err := p.s.Admit(ctx, storeAsk("store_label_values", req.Matchers, req.MinTime, req.MaxTime)); err != nil {
			return nil, refused(err)
		}
		return &backend.Labels{}, nil
	}
	return p.labels(ctx, "store_label_values", req.Name, req.PartialAllowed, req.Matchers, req.MinTime, req.MaxTime, req.Limit,
		func(ctx context.Context, m *membership.Member, ms []*labels.Matcher, minTime, maxTime int64) (*backend.Labels, error) {
			return m.Backend.LabelValues(ctx, &backend.LabelValuesRequest{
				Name: req.Name, MinTime: minTime, MaxTime: maxTime, Matchers: ms, Limit: req.Limit, PartialAllowed: req.PartialAllowed,
			})
		})
}

// has refuses what none of the backends has: an empty answer would look like one. It is
// asked once the gate has let the caller in, who would otherwise learn something by it.
func (p Proxy) has(what string, claims func(*backend.Capabilities) bool) error {
	all := p.s.set.Status()
	if c := offered(backend.Capabilities{}, all, len(all) == 0); !claims(&c) {
		return backend.Errorf(backend.ErrUnsupported, "no backend has %s", what)
	}
	return nil
}

// Exemplars asks all backends that have some.
func (p Proxy) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	answers, r, err := p.s.exemplars(ctx, "store_exemplars", "", selectors, minTime, maxTime, p.options(true))
	if err != nil {
		return nil, nil, plain(err)
	}
	defer r.end()
	if err := p.has("exemplars", func(c *backend.Capabilities) bool { return c.Exemplars }); err != nil {
		return nil, nil, err
	}
	var out []*storepb.ExemplarData
	for _, a := range answers {
		out = append(out, a.Value...)
	}
	return out, notices(r.finish()), nil
}

// MetricMetadata asks all backends that have some.
func (p Proxy) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	res, err := p.s.Metadata(ctx, metric, limit, p.options(true))
	if err != nil {
		return nil, nil, plain(err)
	}
	if err := p.has("metadata", func(c *backend.Capabilities) bool { return c.Metadata }); err != nil {
		return nil, nil, err
	}
	return res.Metadata, notices(res.Report), nil
}

// Rules asks all backends that have some.
func (p Proxy) Rules(ctx context.Context, req *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	res, err := p.s.Rules(ctx, req, p.options(req.PartialResponseStrategy != storepb.PartialResponseStrategy_ABORT))
	if err != nil {
		return nil, nil, plain(err)
	}
	if err := p.has("rules", func(c *backend.Capabilities) bool { return c.Rules }); err != nil {
		return nil, nil, err
	}
	return res.Groups, notices(res.Report), nil
}

// Targets asks all backends that have some.
func (p Proxy) Targets(ctx context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	res, err := p.s.Targets(ctx, state, p.options(true))
	if err != nil {
		return nil, nil, plain(err)
	}
	if err := p.has("targets", func(c *backend.Capabilities) bool { return c.Targets }); err != nil {
		return nil, nil, err
	}
	return res.Targets, notices(res.Report), nil
}

// Statistics adds up the heads of all backends that have one.
func (p Proxy) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	res, err := p.s.Statistics(ctx, limit, p.options(true))
	if err != nil {
		return nil, nil, plain(err)
	}
	if err := p.has("statistics", func(c *backend.Capabilities) bool { return c.Statistics }); err != nil {
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
	e, err := new(syntax.Reader).Expr(expr)
	if err != nil {
		return nil, badData("%s", err)
	}
	return parser.ExtractSelectors(e), nil
}
