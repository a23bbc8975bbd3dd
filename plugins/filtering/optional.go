// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering

import (
	"context"
	"math"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
)

var (
	_ backend.ExemplarsBackend  = (*wrapped)(nil)
	_ backend.MetadataBackend   = (*wrapped)(nil)
	_ backend.RulesBackend      = (*wrapped)(nil)
	_ backend.TargetsBackend    = (*wrapped)(nil)
	_ backend.StatisticsBackend = (*wrapped)(nil)
)

func (w *wrapped) refused(what string) error {
	return backend.Errorf(backend.ErrUnsupported, "backend %s has no %s", w.name(), what)
}

// reader makes label sets of those of the wire. A name that is there twice would let
// a store show one value to whoever checks and another to whoever reads, so that it
// fails the store's whole answer.
type reader struct {
	backend string
	err     error
}

func (r *reader) labels(ls *storepb.LabelSet) labels.Labels {
	b := labels.NewBuilder(labels.EmptyLabels())
	seen := make([]string, 0, 16)
	for _, l := range ls.GetLabels() {
		if slices.Contains(seen, l.GetName()) && r.err == nil {
			r.err = backend.Errorf(backend.ErrInternal, "%s: the store sent a label set in which %q is there twice", named(r.backend), l.GetName())
		}
		if l.GetName() != "" {
			seen = append(seen, l.GetName())
			b.Set(l.GetName(), l.GetValue())
		}
	}
	return b.Labels()
}

func labelSetOf(ls labels.Labels) *storepb.LabelSet {
	out := &storepb.LabelSet{Labels: make([]*storepb.Label, 0, ls.Len())}
	ls.Range(func(l labels.Label) {
		out.Labels = append(out.Labels, &storepb.Label{Name: l.Name, Value: l.Value})
	})
	return out
}

// setsThrough takes label sets that are no series through the chain. What is left out,
// by a filter or because it does not match what is enforced or required, is not kept:
// no store can be asked for such label sets by matchers.
func (w *wrapped) setsThrough(ctx context.Context, d *descent, sets []labels.Labels) (out []labels.Labels, kept []bool, notices []backend.Notice, err error) {
	out, kept = make([]labels.Labels, len(sets)), make([]bool, len(sets))
	var asked []labels.Labels
	var place []int
	for i, ls := range sets {
		if shaping.Matches(ls, d.protected) {
			asked, place = append(asked, ls), append(place, i)
		}
	}
	r := w.c.newRunner(ctx, d)
	for from := 0; from < len(asked); from += runSeries {
		some := asked[from:min(from+runSeries, len(asked))]
		if err := r.run(some); err != nil {
			return nil, nil, nil, err
		}
		err := r.each(func(src int, ls labels.Labels) {
			i := place[from+src]
			out[i], kept[i] = ls, true
		})
		if err != nil {
			return nil, nil, nil, err
		}
	}
	return out, kept, r.notices, nil
}

// Exemplars implements backend.ExemplarsBackend.
func (w *wrapped) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	b, ok := w.b.(backend.ExemplarsBackend)
	if !ok {
		return nil, nil, w.refused("exemplars")
	}
	type selector struct {
		matchers []*labels.Matcher
		required []*labels.Matcher
	}
	var (
		asked   []selector
		sent    [][]*labels.Matcher
		all     = &descent{effects: w.c.newEffects("exemplars")} // with what is enforced, and nothing else
		notices []backend.Notice
	)
	for _, ms := range selectors {
		d, err := w.c.descend(ctx, "exemplars", ms, minTime, maxTime)
		if err != nil {
			return nil, nil, err
		}
		for i, e := range d.effects {
			x := &all.effects[i]
			x.Withheld, x.Inward = append(x.Withheld, e.Withheld...), append(x.Inward, e.Inward...)
			x.Calls, x.Seconds = x.Calls+e.Calls, x.Seconds+e.Seconds
		}
		if d.none {
			continue
		}
		if d.everything {
			notices = append(notices, backend.Notice{Text: everythingText})
		}
		all.protected, all.enforced = d.protected[:d.enforced:d.enforced], d.enforced // the same for each
		asked = append(asked, selector{ms, d.protected[d.enforced:]})
		sent = append(sent, d.sent)
	}
	defer w.observe(ctx, all)
	if len(asked) == 0 {
		return nil, nil, nil
	}
	data, ns, err := b.Exemplars(ctx, sent, minTime, maxTime)
	if err != nil {
		return nil, nil, err
	}
	notices = append(notices, ns...)
	read := reader{backend: w.c.o.Backend}
	sets := make([]labels.Labels, len(data))
	for i, x := range data {
		if sets[i] = read.labels(x.GetSeriesLabels()); read.err != nil {
			return nil, nil, read.err
		}
		if err := w.protect(all, sets[i]); err != nil {
			return nil, nil, err
		}
	}
	out, kept, ns, err := w.setsThrough(ctx, all, sets)
	if err != nil {
		return nil, nil, err
	}
	notices = append(notices, ns...)
	var result []*storepb.ExemplarData
	var from []labels.Labels // the label set in the store, of each of result
	index := map[string]int{}
	for i, x := range data {
		if !kept[i] || !slices.ContainsFunc(asked, func(s selector) bool {
			return shaping.Matches(out[i], s.matchers) && shaping.Matches(sets[i], s.required)
		}) {
			continue
		}
		key := string(out[i].Bytes(nil))
		at, again := index[key]
		if !again {
			index[key] = len(result)
			result = append(result, &storepb.ExemplarData{SeriesLabels: labelSetOf(out[i]), Exemplars: slices.Clip(x.GetExemplars())})
			from = append(from, sets[i])
			continue
		}
		if !labels.Equal(from[at], sets[i]) {
			if err := w.mayMerge(ctx, from[at], sets[i], out[i], w.c.replica); err != nil {
				return nil, nil, err
			}
			from[at] = sets[i]
		}
		result[at].Exemplars = append(result[at].Exemplars, x.GetExemplars()...)
	}
	return result, notices, nil
}

// mapsMetricNames says whether the names of metrics can be followed through the chain.
func (c *stages) mapsMetricNames() bool {
	p, ok := c.inwardValues(metricName)
	return ok && !p.constant && p.name == metricName
}

// bounds is the time range that a request may see.
func bounds(ctx context.Context) (minTime, maxTime int64) {
	if g := access.GrantOf(ctx); g != nil {
		return g.MinTime, g.MaxTime
	}
	return math.MinInt64, math.MaxInt64
}

// MetricMetadata implements backend.MetadataBackend. Where series may be left out, it
// is cut to the metrics that have some left.
func (w *wrapped) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	b, ok := w.b.(backend.MetadataBackend)
	if !ok {
		return nil, nil, w.refused("metadata")
	}
	if w.c.broken != nil {
		return nil, nil, w.c.broken
	}
	p, ok := w.c.inwardValues(metricName)
	if !ok || p.constant || p.name != metricName {
		return nil, nil, backend.Errorf(backend.ErrUnsupported, "metadata of backend %s: its filters make metric names of other labels, so that nobody can say whose metadata it is", w.name())
	}
	if limit == 0 {
		return map[string][]*storepb.Meta{}, nil, nil
	}
	g := access.GrantOf(ctx)
	cut := w.c.drops() || w.c.narrows() || g != nil && g.Scoped()
	if len(p.steps) == 0 && !cut {
		return b.MetricMetadata(ctx, metric, limit)
	}
	var visible []string
	var notices []backend.Notice
	if cut {
		lo, hi := bounds(ctx)
		req := &backend.LabelValuesRequest{Name: metricName, MinTime: lo, MaxTime: hi, PartialAllowed: true}
		if metric != "" {
			req.Matchers = []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, metricName, metric)}
		}
		values, err := w.LabelValues(ctx, req)
		if err != nil {
			return nil, nil, err
		}
		visible, notices = values.Values, values.Notices
	}
	asked := metric
	if len(p.steps) > 0 {
		asked = "" // several may have become it
	}
	data, ns, err := b.MetricMetadata(ctx, asked, -1)
	if err != nil {
		return nil, nil, err
	}
	notices = append(slices.Clip(ns), notices...)
	names := make([]string, 0, len(data))
	for n := range data {
		names = append(names, n)
	}
	slices.Sort(names)
	mapped := slices.Clone(names)
	d := &descent{effects: w.c.newEffects("metadata")}
	defer w.observe(ctx, d)
	r := w.c.newRunner(ctx, d)
	if err := w.c.valuesOut(r, &p, mapped); err != nil {
		return nil, nil, err
	}
	out := make(map[string][]*storepb.Meta, len(data))
	for i, n := range mapped {
		if n == "" || metric != "" && n != metric {
			continue
		}
		if _, ok := slices.BinarySearch(visible, n); cut && !ok {
			continue
		}
		for _, m := range data[names[i]] {
			if !slices.ContainsFunc(out[n], m.EqualVT) {
				out[n] = append(slices.Clip(out[n]), m)
			}
		}
	}
	if limit > 0 && len(out) > limit {
		kept := make([]string, 0, len(out))
		for n := range out {
			kept = append(kept, n)
		}
		slices.Sort(kept)
		for _, n := range kept[limit:] {
			delete(out, n)
		}
	}
	return out, append(notices, r.notices...), nil
}

func (c *stages) newEffects(call string) []Effect {
	out := make([]Effect, len(c.links))
	for i, l := range c.links {
		out[i] = Effect{Filter: l.Name, Backend: c.o.Backend, Call: call}
	}
	return out
}

// aside begins a call that has no matchers which a store could be sent.
func (w *wrapped) aside(ctx context.Context, call string) (*descent, error) {
	lo, hi := bounds(ctx)
	d, err := w.c.descend(ctx, call, nil, lo, hi)
	if err != nil {
		return nil, err
	}
	d.withheld = nil
	return d, nil
}

// Rules implements backend.RulesBackend. Label sets of rules and of alerts go through
// the chain as those of series do, with __name__ the name of a recording rule; matchers
// and names are evaluated on what comes out, since users know no others.
func (w *wrapped) Rules(ctx context.Context, req *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	b, ok := w.b.(backend.RulesBackend)
	if !ok {
		return nil, nil, w.refused("rules")
	}
	var selectors [][]*labels.Matcher
	for _, s := range req.GetMatcherString() {
		ms, err := parser.ParseMetricSelector(s)
		if err != nil {
			return nil, nil, backend.Errorf(backend.ErrInvalid, "rules: matcher %q: %w", s, err)
		}
		selectors = append(selectors, ms)
	}
	d, err := w.aside(ctx, "rules")
	defer w.observe(ctx, d)
	if err != nil || d.none {
		return nil, nil, err
	}
	sent := req.CloneVT()
	sent.MatcherString, sent.RuleName = nil, nil
	in, notices, err := b.Rules(ctx, sent)
	if err != nil {
		return nil, nil, err
	}
	read := reader{backend: w.c.o.Backend}
	var sets []labels.Labels
	for _, g := range in {
		for _, rule := range g.GetRules() {
			if a := rule.GetAlert(); a != nil {
				sets = append(sets, read.labels(a.GetLabels()))
				for _, x := range a.GetAlerts() {
					sets = append(sets, read.labels(x.GetLabels()))
				}
				continue
			}
			lb := labels.NewBuilder(read.labels(rule.GetRecording().GetLabels()))
			sets = append(sets, lb.Set(metricName, rule.GetRecording().GetName()).Labels())
		}
	}
	if read.err != nil {
		return nil, nil, read.err
	}
	sets, kept, ns, err := w.setsThrough(ctx, d, sets)
	if err != nil {
		return nil, nil, err
	}
	next := func() (ls labels.Labels, ok bool) {
		ls, ok = sets[0], kept[0]
		sets, kept = sets[1:], kept[1:]
		return ls, ok
	}
	named := func(n string) bool { return len(req.GetRuleName()) == 0 || slices.Contains(req.GetRuleName(), n) }
	matches := func(ls labels.Labels) bool {
		return len(selectors) == 0 || slices.ContainsFunc(selectors, func(ms []*labels.Matcher) bool { return shaping.Matches(ls, ms) })
	}
	var out []*storepb.RuleGroup
	for _, g := range in {
		group := g.CloneVT()
		group.Rules = nil
		for _, rule := range g.GetRules() {
			rule = rule.CloneVT()
			ls, ok := next()
			if a := rule.GetAlert(); a != nil {
				all := a.Alerts
				a.Alerts = nil
				for _, x := range all {
					if xs, ok := next(); ok {
						x.Labels = labelSetOf(xs)
						a.Alerts = append(a.Alerts, x)
					}
				}
				if len(a.Alerts) < len(all) {
					// The state is that of the alerts that are there.
					a.State = storepb.AlertState_INACTIVE
					for _, x := range a.Alerts {
						a.State = max(a.State, x.State)
					}
				}
				a.Labels = labelSetOf(ls)
				ok = ok && named(a.Name)
			} else if rec := rule.GetRecording(); rec != nil {
				if n := ls.Get(metricName); n != "" {
					rec.Name = n
				}
				ls = ls.DropReserved(func(n string) bool { return n == metricName })
				rec.Labels = labelSetOf(ls)
				ok = ok && named(rec.Name)
			}
			if ok && matches(ls) {
				group.Rules = append(group.Rules, rule)
			}
		}
		// A group of which all rules are left out is not for who asks; one that never
		// had any is for those only from whom nothing is kept.
		if len(group.Rules) > 0 || len(g.GetRules()) == 0 && len(d.protected) == 0 {
			out = append(out, group)
		}
	}
	return out, append(slices.Clip(notices), ns...), nil
}

// Targets implements backend.TargetsBackend. A target is shown if its labels, or
// those that it was discovered with if it was dropped, get through the chain.
func (w *wrapped) Targets(ctx context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	b, ok := w.b.(backend.TargetsBackend)
	if !ok {
		return nil, nil, w.refused("targets")
	}
	d, err := w.aside(ctx, "targets")
	defer w.observe(ctx, d)
	if err != nil || d.none {
		return &storepb.TargetDiscovery{}, nil, err
	}
	in, notices, err := b.Targets(ctx, state)
	if err != nil {
		return nil, nil, err
	}
	read := reader{backend: w.c.o.Backend}
	var shown, found []labels.Labels
	for _, t := range in.GetActiveTargets() {
		shown, found = append(shown, read.labels(t.GetLabels())), append(found, read.labels(t.GetDiscoveredLabels()))
	}
	for _, t := range in.GetDroppedTargets() {
		shown = append(shown, read.labels(t.GetDiscoveredLabels()))
	}
	if read.err != nil {
		return nil, nil, read.err
	}
	shown, kept, ns, err := w.setsThrough(ctx, d, shown)
	if err != nil {
		return nil, nil, err
	}
	// What an active target was found with is rewritten too, but decides nothing: labels
	// that relabelling adds are not there yet.
	found, foundKept, _, err := w.setsThrough(ctx, &descent{effects: w.c.newEffects("targets")}, found)
	if err != nil {
		return nil, nil, err
	}
	out := &storepb.TargetDiscovery{}
	for i, t := range in.GetActiveTargets() {
		if !kept[i] {
			continue
		}
		t = t.CloneVT()
		t.Labels, t.DiscoveredLabels = labelSetOf(shown[i]), &storepb.LabelSet{}
		if foundKept[i] {
			t.DiscoveredLabels = labelSetOf(found[i])
		}
		out.ActiveTargets = append(out.ActiveTargets, t)
	}
	active := len(in.GetActiveTargets())
	for i := range in.GetDroppedTargets() {
		if kept[active+i] {
			out.DroppedTargets = append(out.DroppedTargets, &storepb.DroppedTarget{DiscoveredLabels: labelSetOf(shown[active+i])})
		}
	}
	return out, append(slices.Clip(notices), ns...), nil
}

// Statistics implements backend.StatisticsBackend. They are of the whole store, and
// refused where some of it is not to be seen; entries about labels that filters write
// are left out.
func (w *wrapped) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	b, ok := w.b.(backend.StatisticsBackend)
	if !ok {
		return nil, nil, w.refused("statistics")
	}
	if w.c.broken != nil {
		return nil, nil, w.c.broken
	}
	if g := access.GrantOf(ctx); w.c.drops() || w.c.narrows() || g != nil && g.Scoped() {
		return nil, nil, backend.Errorf(backend.ErrUnsupported, "statistics of backend %s are of all its series, of which filters or this request's access leave some out", w.name())
	}
	in, notices, err := b.Statistics(ctx, limit)
	if err != nil || w.c.transparent {
		return in, notices, err
	}
	written := func(name string) bool {
		return slices.ContainsFunc(w.c.links, func(l *link) bool { return writes(&l.plan, name) != "" })
	}
	byLabel := func(list []*storepb.Statistic) []*storepb.Statistic {
		return slices.DeleteFunc(slices.Clone(list), func(s *storepb.Statistic) bool {
			name, _, _ := strings.Cut(s.GetName(), "=")
			return written(name)
		})
	}
	out := in.CloneVT()
	if written(metricName) {
		out.SeriesCountByMetricName = nil
	}
	out.LabelValueCountByLabelName = byLabel(out.LabelValueCountByLabelName)
	out.MemoryInBytesByLabelName = byLabel(out.MemoryInBytesByLabelName)
	out.SeriesCountByLabelValuePair = byLabel(out.SeriesCountByLabelValuePair)
	return out, append(slices.Clip(notices), backend.Notice{Text: "statistics are of the series before filters rewrite them, without labels that those write"}), nil
}
