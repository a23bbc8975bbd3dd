// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

// everything is a question that no label and no time rules a backend out of.
var everything = fanout.Question{MinTime: math.MinInt64, MaxTime: math.MaxInt64}

// ask puts one question to all backends that offer the optional interface B.
func ask[B, T any](ctx context.Context, s *Service, kind, expr string, o Options, q fanout.Question, claims func(*backend.Capabilities) bool,
	call func(context.Context, B, *membership.Member) (T, []backend.Notice, error),
) ([]fanout.Answer[T], *report.Report, error) {
	ctx, r, err := s.begin(ctx, kind, o)
	if err != nil {
		return nil, nil, err
	}
	defer r.end()
	r.report.Query = expr
	can := func(m *membership.Member) bool {
		_, ok := m.Backend.(B)
		return ok && claims(&m.Info.Capabilities)
	}
	answers, err := fanout.Each(ctx, r.session, q, selectRow(q.Matchers, q.MinTime, q.MaxTime), can,
		func(ctx context.Context, m *membership.Member) (T, []backend.Notice, error) {
			return call(ctx, m.Backend.(B), m)
		})
	if err != nil {
		return nil, nil, r.fail(ctx, err)
	}
	return answers, r.finish(), nil
}

// without removes the replica labels from a label set of the wire.
func (o *Options) without(ls *storepb.LabelSet) *storepb.LabelSet {
	if !o.Dedup || ls == nil {
		return ls
	}
	out := &storepb.LabelSet{}
	for _, l := range ls.Labels {
		if !slices.Contains(o.ReplicaLabels, l.Name) {
			out.Labels = append(out.Labels, l)
		}
	}
	return out
}

func keyOf(ls *storepb.LabelSet) string {
	var b strings.Builder
	for _, l := range ls.GetLabels() {
		b.WriteString(l.Name + "\xff" + l.Value + "\xff")
	}
	return b.String()
}

func later(a, b *timestamppb.Timestamp) bool { return a.AsTime().After(b.AsTime()) }

// Rules returns the rule groups of all backends. With Dedup, replica labels go and
// what is then the same rule of the same group appears once: the one in the
// higher alert state, then the one evaluated later.
func (s *Service) Rules(ctx context.Context, req *storepb.RulesRequest, o Options) (*RulesResult, error) {
	answers, rep, err := ask(ctx, s, "rules", "", o, everything, func(c *backend.Capabilities) bool { return c.Rules },
		func(ctx context.Context, b backend.RulesBackend, _ *membership.Member) ([]*storepb.RuleGroup, []backend.Notice, error) {
			return b.Rules(ctx, req)
		})
	if err != nil {
		return nil, err
	}
	type groupKey struct{ file, name string }
	groups := map[groupKey]*storepb.RuleGroup{}
	index := map[groupKey]map[string]int{}
	var order []groupKey
	for _, a := range answers {
		for _, g := range a.Value {
			k := groupKey{g.File, g.Name}
			into := groups[k]
			if into == nil {
				into = g.CloneVT()
				into.Rules = nil
				groups[k], index[k] = into, map[string]int{}
				order = append(order, k)
			}
			for _, rule := range g.Rules {
				rule = rule.CloneVT()
				id := o.ruleKey(rule)
				i, seen := index[k][id]
				switch {
				case !seen:
					index[k][id] = len(into.Rules)
					into.Rules = append(into.Rules, rule)
				case preferred(rule, into.Rules[i]):
					into.Rules[i] = rule
				}
			}
		}
	}
	slices.SortFunc(order, func(a, b groupKey) int {
		return cmp.Or(strings.Compare(a.file, b.file), strings.Compare(a.name, b.name))
	})
	res := &RulesResult{Report: rep, Groups: []*storepb.RuleGroup{}}
	for _, k := range order {
		res.Groups = append(res.Groups, groups[k])
	}
	return res, nil
}

// ruleKey takes the replica labels off a rule and returns what tells it apart.
func (o *Options) ruleKey(r *storepb.Rule) string {
	if a := r.GetAlert(); a != nil {
		a.Labels = o.without(a.Labels)
		for _, x := range a.Alerts {
			x.Labels = o.without(x.Labels)
		}
		return "a\xff" + a.Name + "\xff" + a.Query + "\xff" + time.Duration(a.DurationSeconds*float64(time.Second)).String() + "\xff" + keyOf(a.Labels)
	}
	rec := r.GetRecording()
	if rec == nil {
		return ""
	}
	rec.Labels = o.without(rec.Labels)
	return "r\xff" + rec.Name + "\xff" + rec.Query + "\xff" + keyOf(rec.Labels)
}

func preferred(a, b *storepb.Rule) bool {
	if x, y := a.GetAlert(), b.GetAlert(); x != nil && y != nil {
		if x.State != y.State {
			return x.State > y.State
		}
		return later(x.LastEvaluation, y.LastEvaluation)
	}
	return later(a.GetRecording().GetLastEvaluation(), b.GetRecording().GetLastEvaluation())
}

// Targets returns the scrape targets of all backends; the same target of several
// replicas appears once, the unhealthy one first, then the one scraped last.
func (s *Service) Targets(ctx context.Context, state storepb.TargetsRequest_State, o Options) (*TargetsResult, error) {
	answers, rep, err := ask(ctx, s, "targets", "", o, everything, func(c *backend.Capabilities) bool { return c.Targets },
		func(ctx context.Context, b backend.TargetsBackend, _ *membership.Member) (*storepb.TargetDiscovery, []backend.Notice, error) {
			return b.Targets(ctx, state)
		})
	if err != nil {
		return nil, err
	}
	out := &storepb.TargetDiscovery{}
	active, dropped := map[string]int{}, map[string]bool{}
	for _, a := range answers {
		for _, t := range a.Value.GetActiveTargets() {
			t = t.CloneVT()
			t.Labels, t.DiscoveredLabels = o.without(t.Labels), o.without(t.DiscoveredLabels)
			k := t.ScrapeUrl + "\xff" + t.ScrapePool + "\xff" + keyOf(t.Labels)
			i, seen := active[k]
			switch {
			case !seen:
				active[k] = len(out.ActiveTargets)
				out.ActiveTargets = append(out.ActiveTargets, t)
			case t.Health != out.ActiveTargets[i].Health && t.Health == storepb.ActiveTarget_DOWN,
				t.Health == out.ActiveTargets[i].Health && later(t.LastScrape, out.ActiveTargets[i].LastScrape):
				out.ActiveTargets[i] = t
			}
		}
		for _, t := range a.Value.GetDroppedTargets() {
			t = t.CloneVT()
			t.DiscoveredLabels = o.without(t.DiscoveredLabels)
			if k := keyOf(t.DiscoveredLabels); !dropped[k] {
				dropped[k] = true
				out.DroppedTargets = append(out.DroppedTargets, t)
			}
		}
	}
	slices.SortStableFunc(out.ActiveTargets, func(a, b *storepb.ActiveTarget) int {
		return cmp.Or(strings.Compare(a.ScrapePool, b.ScrapePool), strings.Compare(a.ScrapeUrl, b.ScrapeUrl))
	})
	return &TargetsResult{Targets: out, Report: rep}, nil
}

// Metadata returns type, help and unit by metric; different entries for one
// metric all stay. limit bounds the metrics, none below zero.
func (s *Service) Metadata(ctx context.Context, metric string, limit int, o Options) (*MetadataResult, error) {
	answers, rep, err := ask(ctx, s, "metadata", metric, o, everything, func(c *backend.Capabilities) bool { return c.Metadata },
		func(ctx context.Context, b backend.MetadataBackend, _ *membership.Member) (map[string][]*storepb.Meta, []backend.Notice, error) {
			return b.MetricMetadata(ctx, metric, limit)
		})
	if err != nil {
		return nil, err
	}
	all := map[string][]*storepb.Meta{}
	for _, a := range answers {
		for name, metas := range a.Value {
			for _, m := range metas {
				if !slices.ContainsFunc(all[name], m.EqualVT) {
					all[name] = append(all[name], m)
				}
			}
		}
	}
	if limit >= 0 && len(all) > limit {
		names := make([]string, 0, len(all))
		for n := range all {
			names = append(names, n)
		}
		slices.Sort(names)
		for _, n := range names[limit:] {
			delete(all, n)
		}
	}
	return &MetadataResult{Metadata: all, Report: rep}, nil
}

// Exemplars returns the exemplars of the series that the selectors in expr match.
func (s *Service) Exemplars(ctx context.Context, expr string, start, end time.Time, o Options) (*ExemplarsResult, error) {
	if err := checkRange(start, end); err != nil {
		return nil, err
	}
	selectors, err := selectorsOf(expr)
	if err != nil {
		return nil, err
	}
	if len(selectors) == 0 {
		return &ExemplarsResult{Exemplars: []*storepb.ExemplarData{}, Report: &report.Report{Version: report.Version, Kind: "exemplars", Query: expr,
			Completeness: report.Completeness{State: report.Complete}, Selects: []*report.Select{}}}, nil
	}
	lo, hi := start.UnixMilli(), end.UnixMilli()
	answers, rep, err := ask(ctx, s, "exemplars", expr, o, fanout.Question{MinTime: lo, MaxTime: hi}, func(c *backend.Capabilities) bool { return c.Exemplars },
		func(ctx context.Context, b backend.ExemplarsBackend, m *membership.Member) ([]*storepb.ExemplarData, []backend.Notice, error) {
			var mine [][]*labels.Matcher
			for _, sel := range selectors {
				if state, _, _ := fanout.Decide(m, fanout.Question{MinTime: lo, MaxTime: hi, Matchers: sel}); state == report.RowWouldAsk {
					mine = append(mine, sel)
				}
			}
			if len(mine) == 0 {
				return nil, nil, nil
			}
			return b.Exemplars(ctx, mine, max(lo, m.AskMin), min(hi, m.AskMax))
		})
	if err != nil {
		return nil, err
	}
	index := map[string]*storepb.ExemplarData{}
	res := &ExemplarsResult{Exemplars: []*storepb.ExemplarData{}, Report: rep}
	for _, a := range answers {
		for _, d := range a.Value {
			ls := o.without(d.SeriesLabels)
			k := keyOf(ls)
			if index[k] == nil {
				index[k] = &storepb.ExemplarData{SeriesLabels: ls}
				res.Exemplars = append(res.Exemplars, index[k])
			}
			index[k].Exemplars = append(index[k].Exemplars, d.Exemplars...)
		}
	}
	for _, d := range res.Exemplars {
		slices.SortStableFunc(d.Exemplars, func(a, b *storepb.Exemplar) int {
			return cmp.Or(cmp.Compare(a.Ts, b.Ts), strings.Compare(keyOf(a.Labels), keyOf(b.Labels)), cmp.Compare(a.Value, b.Value))
		})
		d.Exemplars = slices.CompactFunc(d.Exemplars, func(a, b *storepb.Exemplar) bool { return a.EqualVT(b) })
	}
	slices.SortFunc(res.Exemplars, func(a, b *storepb.ExemplarData) int {
		return strings.Compare(keyOf(a.SeriesLabels), keyOf(b.SeriesLabels))
	})
	return res, nil
}

// Statistics returns the head statistics of the backends that have some.
func (s *Service) Statistics(ctx context.Context, limit int, o Options) (*StatisticsResult, error) {
	answers, rep, err := ask(ctx, s, "statistics", "", o, everything, func(c *backend.Capabilities) bool { return c.Statistics },
		func(ctx context.Context, b backend.StatisticsBackend, _ *membership.Member) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
			return b.Statistics(ctx, limit)
		})
	if err != nil {
		return nil, err
	}
	res := &StatisticsResult{Entries: map[string]*storepb.TSDBStatisticsEntry{}, Report: rep}
	for _, a := range answers {
		res.Entries[a.Member.Name] = a.Value
	}
	return res, nil
}
