// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"cmp"
	"context"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/core/syntax"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

// everything is a question that no label and no time rules a backend out of.
var everything = fanout.Question{MinTime: math.MinInt64, MaxTime: math.MaxInt64}

// ask puts one question to all backends that offer the optional interface B. If the
// error is nil, the request's end must be called.
func ask[B, T any](ctx context.Context, s *Service, what *access.Ask, o Options, q fanout.Question, claims func(*backend.Capabilities) bool,
	call func(context.Context, *request, B, *membership.Member) (T, []backend.Notice, error),
) (context.Context, *request, []fanout.Answer[T], error) {
	ctx, r, err := s.begin(ctx, what, o)
	if err != nil {
		return nil, nil, nil, err
	}
	r.report.Query = what.Query
	answers, err := fanout.Each(ctx, r.session, q, selectRow(q.Matchers, q.MinTime, q.MaxTime), offers[B](claims),
		func(ctx context.Context, m *membership.Member) (T, []backend.Notice, error) {
			return call(ctx, r, m.Backend.(B), m)
		})
	if err != nil {
		defer r.end()
		return nil, nil, nil, r.fail(ctx, err)
	}
	return ctx, r, answers, nil
}

// offers says whether a backend has the optional interface B and claims to answer.
func offers[B any](claims func(*backend.Capabilities) bool) func(*membership.Member) bool {
	return func(m *membership.Member) bool {
		_, ok := m.Backend.(B)
		return ok && claims(&m.Info.Capabilities)
	}
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
// higher alert state, then the one evaluated later. A grant lets rules and alerts
// pass that have all labels it enforces: what a rule without them computes, nobody
// can tell from here.
func (s *Service) Rules(ctx context.Context, req *storepb.RulesRequest, o Options) (*RulesResult, error) {
	if n := len(req.GetMatcherString()); n > maxSelectors {
		return nil, badData("%d selectors, and at most %d are allowed", n, maxSelectors)
	}
	var read syntax.Reader
	for _, m := range req.GetMatcherString() {
		// Backends parse it themselves; this says that they may.
		if _, err := read.Selector(m); err != nil {
			return nil, badData("rules: matcher %q: %v", m, err)
		}
	}
	_, r, answers, err := ask(ctx, s, &access.Ask{Kind: "rules"}, o, everything, func(c *backend.Capabilities) bool { return c.Rules },
		func(ctx context.Context, _ *request, b backend.RulesBackend, _ *membership.Member) ([]*storepb.RuleGroup, []backend.Notice, error) {
			return b.Rules(ctx, req)
		})
	if err != nil {
		return nil, err
	}
	defer r.end()
	type groupKey struct{ file, name string }
	groups := map[groupKey]*storepb.RuleGroup{}
	index := map[groupKey]map[string]int{}
	var order []groupKey
	for _, a := range answers {
		for _, g := range a.Value {
			if g = r.visibleRules(g); g == nil {
				continue
			}
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
	res := &RulesResult{Report: r.finish(), Groups: []*storepb.RuleGroup{}}
	for _, k := range order {
		res.Groups = append(res.Groups, groups[k])
	}
	return res, nil
}

// visibleRules returns of a group what the grant lets pass, nil for nothing.
func (r *request) visibleRules(g *storepb.RuleGroup) *storepb.RuleGroup {
	if !r.grant.Scoped() {
		return g
	}
	var kept []*storepb.Rule
	for _, rule := range g.GetRules() {
		switch a, rec := rule.GetAlert(), rule.GetRecording(); {
		case a != nil && r.grant.Owns(a.Labels):
			rule = rule.CloneVT()
			a = rule.GetAlert()
			all := len(a.Alerts)
			a.Alerts = slices.DeleteFunc(a.Alerts, func(x *storepb.AlertInstance) bool { return !r.grant.Owns(x.Labels) })
			if len(a.Alerts) < all {
				// The state is that of the alerts that are there.
				a.State = storepb.AlertState_INACTIVE
				for _, x := range a.Alerts {
					a.State = max(a.State, x.State)
				}
			}
			a.LastError = r.withheld(a.LastError)
			kept = append(kept, rule)
		case rec != nil && r.grant.Owns(rec.Labels):
			rule = rule.CloneVT()
			rec = rule.GetRecording()
			rec.LastError = r.withheld(rec.LastError)
			kept = append(kept, rule)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	out := g.CloneVT()
	out.Rules = kept
	return out
}

// withheld takes the place of why the evaluation of a rule failed: it reads all that
// its Prometheus holds, and tells of it.
func (r *request) withheld(text string) string {
	if text == "" || r.grant.Admin {
		return text
	}
	return "the evaluation failed; the Prometheus that evaluates the rule has the details"
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
// replicas appears once, the unhealthy one first, then the one scraped last. A grant
// lets those pass that have all labels it enforces; dropped ones have only those
// from before relabelling, and the external ones.
func (s *Service) Targets(ctx context.Context, state storepb.TargetsRequest_State, o Options) (*TargetsResult, error) {
	_, r, answers, err := ask(ctx, s, &access.Ask{Kind: "targets"}, o, everything, func(c *backend.Capabilities) bool { return c.Targets },
		func(ctx context.Context, _ *request, b backend.TargetsBackend, _ *membership.Member) (*storepb.TargetDiscovery, []backend.Notice, error) {
			return b.Targets(ctx, state)
		})
	if err != nil {
		return nil, err
	}
	defer r.end()
	out := &storepb.TargetDiscovery{}
	active, dropped := map[string]int{}, map[string]bool{}
	for _, a := range answers {
		for _, t := range a.Value.GetActiveTargets() {
			if !r.grant.Owns(t.Labels) {
				continue
			}
			t = t.CloneVT()
			t.Labels, t.DiscoveredLabels = o.without(t.Labels), o.without(r.discovered(t.DiscoveredLabels))
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
			if !r.grant.Owns(t.DiscoveredLabels) {
				continue
			}
			t = t.CloneVT()
			t.DiscoveredLabels = o.without(r.discovered(t.DiscoveredLabels))
			if k := keyOf(t.DiscoveredLabels); !dropped[k] {
				dropped[k] = true
				out.DroppedTargets = append(out.DroppedTargets, t)
			}
		}
	}
	slices.SortStableFunc(out.ActiveTargets, func(a, b *storepb.ActiveTarget) int {
		return cmp.Or(strings.Compare(a.ScrapePool, b.ScrapePool), strings.Compare(a.ScrapeUrl, b.ScrapeUrl))
	})
	return &TargetsResult{Targets: out, Report: r.finish()}, nil
}

// discovered leaves out what service discovery knows of a target's surroundings,
// such as the node it is on, and an enforced label with a value from before
// relabelling that does not match.
func (r *request) discovered(ls *storepb.LabelSet) *storepb.LabelSet {
	if !r.grant.Scoped() || ls == nil {
		return ls
	}
	out := &storepb.LabelSet{}
	for _, l := range ls.Labels {
		foreign := slices.ContainsFunc(r.grant.Enforce, func(m *labels.Matcher) bool { return m.Name == l.Name && !m.Matches(l.Value) })
		if !foreign && !strings.HasPrefix(l.Name, "__meta_") {
			out.Labels = append(out.Labels, l)
		}
	}
	return out
}

// Metadata returns type, help and unit by metric; different entries for one
// metric all stay. limit bounds the metrics, none below zero. A grant lets pass, from
// each backend, the metrics of which it has had visible series in the past day; of one that
// holds series of others as well, no more than its entries for a metric agree on.
func (s *Service) Metadata(ctx context.Context, metric string, limit int, o Options) (*MetadataResult, error) {
	claims := func(c *backend.Capabilities) bool { return c.Metadata }
	ctx, r, answers, err := ask(ctx, s, &access.Ask{Kind: "metadata", Query: metric}, o, everything, claims,
		func(ctx context.Context, r *request, b backend.MetadataBackend, _ *membership.Member) (map[string][]*storepb.Meta, []backend.Notice, error) {
			if r.grant.Scoped() {
				return b.MetricMetadata(ctx, metric, -1) // what is cut, is cut afterwards
			}
			return b.MetricMetadata(ctx, metric, limit)
		})
	if err != nil {
		return nil, err
	}
	defer r.end()
	if r.grant.Scoped() {
		if err := r.cutMetadata(ctx, metric, answers, offers[backend.MetadataBackend](claims)); err != nil {
			return nil, r.fail(ctx, err)
		}
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
	for name, metas := range all {
		// A type alone says nothing beside the same one with words.
		worded := map[string]bool{}
		for _, m := range metas {
			worded[m.GetType()] = worded[m.GetType()] || m.GetHelp() != ""
		}
		all[name] = slices.DeleteFunc(metas, func(m *storepb.Meta) bool { return m.GetHelp() == "" && m.GetUnit() == "" && worded[m.GetType()] })
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
	return &MetadataResult{Metadata: all, Report: r.finish()}, nil
}

// metadataReach is how far back metrics are looked for whose metadata may be shown.
const metadataReach = 24 * time.Hour

// familySuffixes are what the names of a metric's series may have behind the name
// that its metadata go by.
var familySuffixes = []string{"", "_total", "_bucket", "_count", "_sum", "_created", "_info"}

// belongs says whether a series with a suffix can be one of a metric of a type. A
// suffix alone says little: orders_count may be a gauge of its own, and no part of
// somebody else's histogram orders.
func belongs(typ, suffix string) bool {
	switch typ {
	case "counter":
		return suffix == "" || suffix == "_total"
	case "histogram", "gaugehistogram":
		return suffix == "" || suffix == "_bucket" // "" is a native one
	case "summary":
		return suffix == ""
	case "info":
		return suffix == "" || suffix == "_info"
	}
	return suffix == ""
}

// cutMetadata leaves in each backend's answer the metrics of which that backend has
// visible series: that somebody has a metric of the same name is no reason to show
// what others say of theirs.
func (r *request) cutMetadata(ctx context.Context, metric string, answers []fanout.Answer[map[string][]*storepb.Meta], can func(*membership.Member) bool) error {
	hi := min(time.Now().UnixMilli(), r.grant.MaxTime)
	lo := hi
	if lo > math.MinInt64+metadataReach.Milliseconds() {
		lo -= metadataReach.Milliseconds()
	}
	var ms []*labels.Matcher
	if metric != "" {
		var names []string
		for _, suffix := range familySuffixes {
			names = append(names, regexp.QuoteMeta(metric+suffix))
		}
		m, err := labels.NewMatcher(labels.MatchRegexp, model.MetricNameLabel, strings.Join(names, "|"))
		if err != nil {
			return badData("metric %q: %v", metric, err)
		}
		ms = append(ms, m)
	}
	visible, err := r.session.Labels(ctx, fanout.Question{MinTime: lo, MaxTime: hi, Matchers: ms}, model.MetricNameLabel, selectRow(ms, lo, hi), can,
		func(ctx context.Context, m *membership.Member, ms []*labels.Matcher, lo, hi int64) (*backend.Labels, error) {
			return m.Backend.LabelValues(ctx, &backend.LabelValuesRequest{Name: model.MetricNameLabel, MinTime: lo, MaxTime: hi, Matchers: ms, PartialAllowed: r.o.PartialResponse})
		})
	if err != nil {
		return err
	}
	for i := range answers {
		names := map[string]bool{}
		for _, v := range visible {
			if v.Member == answers[i].Member {
				for _, n := range v.Value {
					names[n] = true
				}
			}
		}
		kept := map[string][]*storepb.Meta{}
		for name, metas := range answers[i].Value {
			metas = slices.DeleteFunc(slices.Clone(metas), func(m *storepb.Meta) bool {
				return !slices.ContainsFunc(familySuffixes, func(suffix string) bool { return names[name+suffix] && belongs(m.GetType(), suffix) })
			})
			if len(metas) == 0 {
				continue
			}
			kept[name] = metas
			if !fanout.Within(r.grant, &answers[i].Member.Info) {
				kept[name] = agreed(metas)
			}
		}
		answers[i].Value = kept
	}
	return nil
}

// agreed is what may be shown of a metric of a backend that holds series of others too,
// where nobody can tell whose an entry is: its type, if all agree on that. Texts are
// somebody's own words.
func agreed(metas []*storepb.Meta) []*storepb.Meta {
	out := &storepb.Meta{Type: metas[0].GetType()}
	for _, m := range metas[1:] {
		if m.GetType() != out.Type {
			out.Type = "unknown"
		}
	}
	return []*storepb.Meta{out}
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
		if _, err := s.Admit(ctx, &access.Ask{Kind: "exemplars", Query: expr, Start: start.UnixMilli(), End: end.UnixMilli()}); err != nil {
			return nil, err
		}
		return &ExemplarsResult{Exemplars: []*storepb.ExemplarData{}, Report: &report.Report{Version: report.Version, Kind: "exemplars", Query: expr,
			Completeness: report.Completeness{State: report.Complete}, Selects: []*report.Select{}}}, nil
	}
	answers, r, err := s.exemplars(ctx, "exemplars", expr, selectors, start.UnixMilli(), end.UnixMilli(), o)
	if err != nil {
		return nil, err
	}
	defer r.end()
	index := map[string]*storepb.ExemplarData{}
	res := &ExemplarsResult{Exemplars: []*storepb.ExemplarData{}, Report: r.finish()}
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

// exemplars asks for those of the series that one of the selectors matches.
func (s *Service) exemplars(ctx context.Context, kind, expr string, selectors [][]*labels.Matcher, lo, hi int64, o Options) ([]fanout.Answer[[]*storepb.ExemplarData], *request, error) {
	_, r, answers, err := ask(ctx, s, &access.Ask{Kind: kind, Query: expr, Selectors: selectors, Start: lo, End: hi}, o,
		fanout.Question{MinTime: lo, MaxTime: hi}, func(c *backend.Capabilities) bool { return c.Exemplars },
		func(ctx context.Context, r *request, b backend.ExemplarsBackend, m *membership.Member) ([]*storepb.ExemplarData, []backend.Notice, error) {
			g := r.grant
			lo, hi := g.Clip(lo, hi)
			var mine [][]*labels.Matcher
			for _, sel := range selectors {
				if state, _, _ := fanout.Decide(m, fanout.Question{MinTime: lo, MaxTime: hi, Matchers: sel, Enforce: g.Enforce}); state == report.RowWouldAsk {
					mine = append(mine, g.Enforcing(sel))
				}
			}
			if len(mine) == 0 {
				return nil, nil, nil
			}
			out, notices, err := b.Exemplars(ctx, mine, max(lo, m.AskMin), min(hi, m.AskMax))
			if err != nil {
				return nil, nil, err
			}
			out = slices.Clone(out)
			for i, d := range out {
				if !g.PermitsSet(d.GetSeriesLabels()) {
					return nil, nil, r.session.Foreign(m, d.GetSeriesLabels().String())
				}
				if slices.ContainsFunc(d.Exemplars, func(e *storepb.Exemplar) bool { return e.GetTs() < g.MinTime || e.GetTs() > g.MaxTime }) {
					d = d.CloneVT()
					d.Exemplars = slices.DeleteFunc(d.Exemplars, func(e *storepb.Exemplar) bool { return e.GetTs() < g.MinTime || e.GetTs() > g.MaxTime })
					out[i] = d
				}
			}
			return out, notices, nil
		})
	return answers, r, err
}

// Statistics returns the head statistics of the backends that have some. They count
// what all series have, so that who must not see all is refused, and an operator who
// looks with the eyes of a tenant gets those of backends that hold nothing else.
func (s *Service) Statistics(ctx context.Context, limit int, o Options) (*StatisticsResult, error) {
	ctx, r, err := s.begin(ctx, &access.Ask{Kind: "statistics"}, o)
	if err != nil {
		return nil, err
	}
	defer r.end()
	if r.grant.Scoped() && !r.grant.Admin {
		return nil, &Error{Kind: ErrDenied, Err: access.Forbidden("statistics count the series of everybody, and are for operators only")}
	}
	has := offers[backend.StatisticsBackend](func(c *backend.Capabilities) bool { return c.Statistics })
	can := func(m *membership.Member) bool { return has(m) && fanout.Within(r.grant, &m.Info) }
	answers, err := fanout.Each(ctx, r.session, everything, selectRow(nil, everything.MinTime, everything.MaxTime), can,
		func(ctx context.Context, m *membership.Member) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
			return m.Backend.(backend.StatisticsBackend).Statistics(ctx, limit)
		})
	if err != nil {
		return nil, r.fail(ctx, err)
	}
	res := &StatisticsResult{Entries: map[string]*storepb.TSDBStatisticsEntry{}, Report: r.finish()}
	for _, a := range answers {
		res.Entries[a.Member.Name] = a.Value
	}
	return res, nil
}
