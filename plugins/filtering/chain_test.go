// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/storepb"
)

// parseLink reads a plan: one word and its arguments a line.
func parseLink(t *testing.T, d *datadriven.TestData, text string) *fake {
	f := &fake{rewrite: func(context.Context, []byte, []byte) ([]byte, error) { return nil, nil }}
	p := &f.plan
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		if len(w) == 0 {
			continue
		}
		op := func(o filter.Operation) { p.Operations = append(p.Operations, o) }
		unquote := func(s string) string { return strings.Trim(s, `"`) }
		switch w[0] {
		case "rename":
			op(filter.Operation{Rename: &filter.Rename{From: w[1], To: w[2]}})
		case "drop":
			op(filter.Operation{Drop: w[1:]})
		case "keep":
			op(filter.Operation{Keep: w[1:]})
		case "set":
			op(filter.Operation{Set: &filter.Label{Name: w[1], Value: unquote(w[2])}})
		case "map":
			m := &filter.MapValues{Name: w[1]}
			for _, pair := range w[2:] {
				from, to, _ := strings.Cut(pair, ">")
				m.Values = append(m.Values, filter.Pair{From: unquote(from), To: unquote(to)})
			}
			op(filter.Operation{Map: m})
		case "require":
			m := selector(t, strings.Join(w[1:], " "))[0]
			x := filterMatcher(m)
			op(filter.Operation{Require: &x})
		case "writes":
			p.Tier, p.Writes = filter.TierRows, w[1:]
		case "drops":
			p.Tier, p.Drops = filter.TierRows, true
		case "writes-any":
			p.Tier, p.WritesAny, p.Keeps = filter.TierRows, true, w[2:]
		case "select":
			p.Hooks = []string{filter.HookSelect}
			reply := &filter.SelectReply{}
			switch w[1] {
			case "none":
				reply.None = true
			case "deny":
				reply.Deny = &filter.Denial{Message: strings.Join(w[2:], " ")}
			default:
				for _, m := range selector(t, strings.Join(w[1:], " ")) {
					reply.Require = append(reply.Require, filterMatcher(m))
				}
			}
			f.sel = func(*filter.SelectCall) (*filter.SelectReply, error) { return reply, nil }
		default:
			d.Fatalf(t, "unknown word %s", w[0])
		}
	}
	return f
}

func selector(t *testing.T, s string) []*labels.Matcher {
	if s == "{}" {
		return nil
	}
	ms, err := parser.ParseMetricSelector(s)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return ms
}

// TestInward shows what stores are asked.
func TestInward(t *testing.T) {
	datadriven.RunTest(t, "testdata/inward", func(t *testing.T, d *datadriven.TestData) string {
		var links []filtering.Link
		for i, text := range strings.Split(d.Input, "--") {
			text, own := strings.CutPrefix(strings.TrimSpace(text), "of-store")
			links = append(links, filtering.Link{Name: fmt.Sprint("f", i), Filter: parseLink(t, d, text), OfStore: own})
		}
		s := &store{}
		var out strings.Builder
		o := filtering.Options{Backend: "b", Observe: func(_ context.Context, e filtering.Effect) {
			for _, m := range e.Withheld {
				fmt.Fprintf(&out, "%s withholds %s\n", e.Filter, m)
			}
		}}
		ctx := context.Background()
		if d.HasArg("enforce") {
			var e string
			d.ScanArgs(t, "enforce", &e)
			ctx = enforcing(selector(t, e)...)
		}
		var m string
		d.ScanArgs(t, "select", &m)
		for b, err := range filtering.Wrap(s, links, o).Series(ctx, everyTime(selector(t, m)...)) {
			if err != nil {
				return fmt.Sprintf("error: %v\n", err)
			}
			for _, n := range b.Notices() {
				fmt.Fprintf(&out, "notice: %s\n", n.Text)
			}
		}
		if len(s.sent) == 0 {
			return out.String() + "nothing is asked\n"
		}
		fmt.Fprintf(&out, "asked %v\n", s.sent[0])
		return out.String()
	})
}

func TestCheck(t *testing.T) {
	for want, o := range map[string]filter.Operation{
		"label name":            {Rename: &filter.Rename{To: "x"}},
		"not valid UTF-8":       {Set: &filter.Label{Name: "a", Value: "\xff"}},
		`has the value "1" twi`: {Map: &filter.MapValues{Name: "a", Values: []filter.Pair{{From: "1"}, {From: "1"}}}},
		"missing argument to":   {Require: &filter.Matcher{Type: filter.MatchRegexp, Name: "a", Value: "**"}},
		"unknown type 9":        {Require: &filter.Matcher{Type: 9, Name: "a"}},
		"0 of its fields":       {},
		"2 of its fields":       {Drop: []string{"a"}, Keep: []string{"b"}},
	} {
		chain := []filtering.Link{{Name: "f", Filter: &fake{plan: filter.Plan{Operations: []filter.Operation{{Drop: []string{"z"}}, o}}}}}
		err := filtering.Check(chain)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `filter "f"`) || !strings.Contains(err.Error(), "operation 1") {
			t.Errorf("%+v: error %v, want %s", o, err, want)
		}
		// And what was not checked refuses everything.
		w := filtering.Wrap(threeSeries(), chain, filtering.Options{})
		if _, err := pieces(t, w, context.Background(), everyTime()); err == nil {
			t.Errorf("%s: series", want)
		}
		if _, err := w.Info(context.Background()); err == nil {
			t.Errorf("%s: info", want)
		}
	}
	for _, p := range []filter.Plan{{Tier: 9}, {Tier: filter.TierColumns, Columns: []string{"a", "a"}}, {Writes: []string{""}}} {
		if filtering.Check([]filtering.Link{{Filter: &fake{plan: p}}}) == nil {
			t.Errorf("%+v: no error", p)
		}
	}
}

func TestCheckProtected(t *testing.T) {
	for _, p := range []filter.Plan{
		{Operations: []filter.Operation{{Rename: &filter.Rename{From: "tenant", To: "x"}}}},
		{Operations: []filter.Operation{{Rename: &filter.Rename{From: "x", To: "tenant"}}}},
		{Operations: []filter.Operation{{Drop: []string{"tenant"}}}},
		{Operations: []filter.Operation{{Keep: []string{"x"}}}},
		{Operations: []filter.Operation{{Set: &filter.Label{Name: "tenant"}}}},
		{Operations: []filter.Operation{{Map: &filter.MapValues{Name: "tenant", Values: []filter.Pair{{From: "a", To: "b"}}}}}},
		{Tier: filter.TierNames, Writes: []string{"tenant"}},
		{Tier: filter.TierRows, WritesAny: true, Keeps: []string{"x"}},
	} {
		if filtering.CheckProtected(p, []string{"a", "tenant"}) == nil {
			t.Errorf("%+v: no error", p)
		}
	}
	for _, p := range []filter.Plan{
		{Operations: []filter.Operation{{Require: &filter.Matcher{Name: "tenant"}}, {Keep: []string{"tenant"}}}},
		{Tier: filter.TierRows, WritesAny: true, Keeps: []string{"tenant"}, Reads: []string{"tenant"}, Drops: true},
		{Writes: []string{"tenant"}}, // without a tier that rewrites
	} {
		if err := filtering.CheckProtected(p, []string{"tenant"}); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// TestSelectHook: what the hook is told.
func TestSelectHook(t *testing.T) {
	var calls []filter.SelectCall
	f := &fake{plan: filter.Plan{Hooks: []string{filter.HookSelect}}, sel: func(c *filter.SelectCall) (*filter.SelectReply, error) {
		calls = append(calls, *c)
		return nil, nil
	}}
	outer := &fake{plan: filter.Plan{Operations: []filter.Operation{{Rename: &filter.Rename{From: "a", To: "b"}}}}}
	g := *access.Everything()
	g.Tenants = []string{"acme"}
	ctx := access.WithGrant(context.Background(), &g)
	w := filtering.Wrap(threeSeries(), []filtering.Link{{Filter: outer}, {Filter: f}}, filtering.Options{Backend: "b"})
	req := everyTime(eq("b", "2"))
	req.MinTime = 1
	got, err := pieces(t, w, ctx, req)
	if err != nil || len(got) != 1 {
		t.Fatal(len(got), err)
	}
	want := []filter.SelectCall{{Backend: "b", Matchers: []filter.Matcher{{Name: "a", Value: "2"}}, MinTime: 1, MaxTime: 1 << 40, Tenants: []string{"acme"}}}
	if d := cmp.Diff(want, calls); d != "" {
		t.Error(d)
	}

	for name, sel := range map[string]func(*filter.SelectCall) (*filter.SelectReply, error){
		"error": func(*filter.SelectCall) (*filter.SelectReply, error) { return nil, errors.New("no") },
		"panic": func(*filter.SelectCall) (*filter.SelectReply, error) { panic("no") },
		"matcher": func(*filter.SelectCall) (*filter.SelectReply, error) {
			return &filter.SelectReply{Require: []filter.Matcher{{Type: filter.MatchRegexp, Name: "a", Value: "("}}}, nil
		},
		"name": func(*filter.SelectCall) (*filter.SelectReply, error) {
			return &filter.SelectReply{Require: []filter.Matcher{{Value: "x"}}}, nil
		},
	} {
		f.sel = sel
		s := threeSeries()
		w := filtering.Wrap(s, []filtering.Link{{Name: "hook", Filter: f, OnFailure: filtering.Open}}, filtering.Options{})
		if _, err := pieces(t, w, context.Background(), everyTime()); err == nil || !strings.Contains(err.Error(), `"hook"`) || len(s.sent) > 0 {
			t.Errorf("%s: error %v, asked %v", name, err, s.sent)
		}
	}
}

// TestUnclaimed: what is about label sets of the result does not go inward, unless
// they are those of the store.
func TestUnclaimed(t *testing.T) {
	req := everyTime()
	req.Limit, req.Shard, req.WithoutReplicaLabels = 2, &backend.Shard{Total: 2}, []string{"r"}
	req.Hints = backend.Hints{StepMillis: 1, RangeMillis: 2, Func: "sum", Grouping: []string{"a"}, By: true}
	req.BatchSize, req.MaxResolution, req.Aggregates, req.PartialAllowed = 7, 3, []backend.Aggregate{backend.AggregateSum}, true
	for _, changes := range []bool{false, true} {
		f := &fake{}
		want := *req
		if changes {
			f.plan.Operations = []filter.Operation{{Set: &filter.Label{Name: "x", Value: "y"}}}
			want.Limit, want.Shard, want.WithoutReplicaLabels, want.Hints = 0, nil, nil, backend.Hints{StepMillis: 1, RangeMillis: 2}
		}
		s := threeSeries()
		s.info.Capabilities = backend.Capabilities{Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true, Downsampled: true, BoundedLabels: true,
			NativeHistograms: true, StaleMarkers: true, Completeness: true, Exemplars: true, Rules: true}
		w := filtering.Wrap(s, []filtering.Link{{Filter: f}}, filtering.Options{})
		if _, err := pieces(t, w, context.Background(), req); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(&want, s.requests[0]); d != "" {
			t.Errorf("changes %v: %s", changes, d)
		}
		info, err := w.Info(context.Background())
		caps := s.info.Capabilities
		caps.Sharding, caps.WithoutReplicaLabels, caps.SeriesLimit = !changes, !changes, !changes
		caps.Rules = false // the store claims it and has it not
		if d := cmp.Diff(caps, info.Capabilities); d != "" || err != nil {
			t.Errorf("changes %v: %s %v", changes, d, err)
		}
	}
}

// watched counts how far its sequence was read, and whether it was left.
type watched struct {
	backend.Unimplemented
	n    int
	left bool
}

func (s *watched) Series(context.Context, *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		defer func() { s.left = true }()
		for i := range 5 {
			b := backend.NewBatch(1)
			b.Append(backend.Series{Labels: labels.FromStrings("__name__", "m", "a", fmt.Sprint(i)), Chunks: []backend.Chunk{chunk(i)}})
			s.n++
			if !yield(b, nil) {
				return
			}
		}
	}
}

// account is what limits see.
type account struct{ series, samples, bytes, most, limit int }

func (a *account) options() filtering.Options {
	return filtering.Options{
		Charge: func(_ context.Context, series, samples, bytes int) error {
			a.series, a.samples, a.bytes = a.series+series, a.samples+samples, a.bytes+bytes
			if a.most = max(a.most, a.bytes); a.limit > 0 && a.most > a.limit {
				return backend.Errorf(backend.ErrLimit, "more than %d bytes", a.limit)
			}
			return nil
		},
		Release: func(_ context.Context, bytes int) { a.bytes -= bytes },
	}
}

// TestStreams: where the order stays, nothing is kept back; where it may not, what is
// kept back is charged, and what is left out counts.
func TestStreams(t *testing.T) {
	drops := replying(filter.Plan{Tier: filter.TierRows, Drops: true}, func(in *frame.Frame, out *frame.Reply) {
		keepAll(in, out, 0)
		for r := range in.Rows() {
			if in.Symbol(in.Group(0).Column(1).Ref(r)) == "0" {
				out.Drop(r)
			}
		}
	})
	s, a, n := &watched{}, &account{}, 0
	for b, err := range filtering.Wrap(s, []filtering.Link{{Filter: drops}}, a.options()).Series(context.Background(), everyTime()) {
		if err != nil {
			t.Fatal(err)
		}
		if n += b.Len(); n == 2 {
			break
		}
	}
	if s.n != 3 || !s.left || *a != (account{series: 1, samples: 1}) {
		t.Errorf("read %d batches of which the second and third are wanted, left %v, charged %+v", s.n, s.left, a)
	}

	set := &fake{plan: filter.Plan{Operations: []filter.Operation{{Set: &filter.Label{Name: "x", Value: "y"}}}}}
	both := []filtering.Link{{Filter: set}, {Filter: drops}}
	s, a, n = &watched{}, &account{}, 0
	for b, err := range filtering.Wrap(s, both, a.options()).Series(context.Background(), everyTime()) {
		if err != nil {
			t.Fatal(err)
		}
		n += b.Len()
		if a.bytes > a.most-b.Bytes()/2 {
			t.Errorf("%d of %d bytes are charged while %d are handed on", a.bytes, a.most, b.Bytes())
		}
	}
	if n != 4 || a.series != 1 || a.samples != 1 || a.bytes != 0 || a.most < 100 {
		t.Errorf("%d series, charged %+v", n, a)
	}
	whole := a.most

	s, a = &watched{}, &account{limit: whole / 2}
	got, err := pieces(t, filtering.Wrap(s, both, a.options()), context.Background(), everyTime())
	if !errors.Is(err, backend.ErrLimit) || len(got) != 0 || s.n != 3 || !s.left || a.bytes != 0 {
		t.Errorf("%d series, read %d batches, left %v, charged %+v, error %v", len(got), s.n, s.left, a, err)
	}

	s, a = &watched{}, &account{}
	values, err := filtering.Wrap(s, both, a.options()).LabelValues(context.Background(), &backend.LabelValuesRequest{Name: "a", MaxTime: 1})
	if err != nil || len(values.Values) != 4 || *a != (account{series: 5}) {
		t.Errorf("%v %v, charged %+v", values, err, a)
	}
}

type members struct {
	backend.Unimplemented
	list   []backend.Member
	closed int
}

func (m *members) Members() []backend.Member { return m.list }
func (m *members) Close() error              { m.closed++; return nil }

// TestGroup: members are wrapped, each in the same backend from call to call.
func TestGroup(t *testing.T) {
	g := &members{list: []backend.Member{{Name: "x", Address: "x:1", Backend: threeSeries()}, {Name: "y", Backend: threeSeries(), Gone: "it left"}}}
	f := &fake{plan: filter.Plan{Operations: []filter.Operation{{Rename: &filter.Rename{From: "a", To: "b"}}}}}
	w, ok := filtering.Wrap(g, []filtering.Link{{Filter: f}}, filtering.Options{Backend: "g"}).(backend.Group)
	if !ok {
		t.Fatal("no group")
	}
	first, second := w.Members(), w.Members()
	if first[0].Backend != second[0].Backend || first[1].Backend != second[1].Backend || first[0].Backend == first[1].Backend {
		t.Error("members are not the same from call to call, or not told apart")
	}
	if first[0].Name != "x" || first[0].Address != "x:1" || first[1].Gone != "it left" {
		t.Errorf("members %+v", first)
	}
	got, err := pieces(t, first[0].Backend, context.Background(), everyTime(eq("b", "1")))
	if err != nil || len(got) != 1 || got[0].Labels.Get("b") != "1" {
		t.Errorf("%v %v", got, err)
	}
	g.list = slices.Clone(g.list[:1])
	if third := w.Members(); len(third) != 1 || third[0].Backend != first[0].Backend {
		t.Error("a member is another one after its neighbour left")
	}
	if err := w.(backend.Closer).Close(); err != nil || g.closed != 1 || g.list[0].Backend.(*store).closed {
		t.Error("closing a wrapped group closes the group, which closes its members")
	}
}

// TestEffects are what the report shows.
func TestEffects(t *testing.T) {
	var got []filtering.Effect
	o := filtering.Options{Backend: "b", Observe: func(_ context.Context, e filtering.Effect) {
		if e.Seconds < 0 {
			t.Error("negative time")
		}
		e.Seconds = 0
		got = append(got, e)
	}}
	rows := replying(filter.Plan{Tier: filter.TierRows, Writes: []string{"c"}, Pure: true}, func(in *frame.Frame, out *frame.Reply) {
		keepAll(in, out, 0)
		out.Input(out.Intern("c"), in.Group(0).Find(in.FindName("a")))
	})
	require := &fake{plan: filter.Plan{Operations: []filter.Operation{{Require: &filter.Matcher{Type: filter.MatchNotEqual, Name: "c", Value: "3"}}}}}
	w := filtering.Wrap(threeSeries(), []filtering.Link{{Name: "outer", Filter: require}, {Name: "inner", Filter: rows}}, o)
	for range 2 {
		if _, err := pieces(t, w, context.Background(), everyTime(eq("c", "2"), eq("__name__", "m"))); err != nil {
			t.Fatal(err)
		}
	}
	outer := filtering.Effect{Filter: "outer", Backend: "b", Call: "series", SeriesIn: 3, SeriesOut: 1, Inward: []string{`c="2"`, `__name__="m"`, `c!="3"`}}
	inner := filtering.Effect{Filter: "inner", Backend: "b", Call: "series", SeriesIn: 3, SeriesOut: 3, Calls: 1, Withheld: []string{`c="2"`, `c!="3"`}, Inward: []string{`__name__="m"`}}
	outer2, inner2 := outer, inner
	outer2.MemoHits, inner2.MemoHits, inner2.Calls = 3, 3, 0
	outer2.SeriesIn, inner2.SeriesOut = 2, 2 // what is left out was so by the innermost, as it were
	if d := cmp.Diff([]filtering.Effect{outer, inner, outer2, inner2}, got); d != "" {
		t.Error(d)
	}
}

// full has all optional interfaces.
type full struct{ *store }

func set(pairs ...string) *storepb.LabelSet { return wire(labels.FromStrings(pairs...)) }

func (f full) Rules(_ context.Context, req *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	if len(req.MatcherString) > 0 || len(req.RuleName) > 0 {
		return nil, nil, errors.New("users' matchers are not for stores")
	}
	recording := func(name string, ls *storepb.LabelSet) *storepb.Rule {
		return &storepb.Rule{Result: &storepb.Rule_Recording{Recording: &storepb.RecordingRule{Name: name, Labels: ls}}}
	}
	alert := &storepb.Alert{Name: "Down", State: storepb.AlertState_FIRING, Labels: set("cluster", "eu", "tenant", "t"), Alerts: []*storepb.AlertInstance{
		{Labels: set("cluster", "eu", "tenant", "t"), State: storepb.AlertState_PENDING},
		{Labels: set("cluster", "eu", "tenant", "other"), State: storepb.AlertState_FIRING},
	}}
	return []*storepb.RuleGroup{
		{Name: "g", Rules: []*storepb.Rule{recording("a:sum", set("cluster", "eu", "tenant", "t")), recording("b:sum", set("cluster", "us", "tenant", "t")), {Result: &storepb.Rule_Alert{Alert: alert}}}},
		{Name: "other", Rules: []*storepb.Rule{recording("c:sum", set("tenant", "other"))}},
		{Name: "empty"},
	}, nil, nil
}

func (f full) Targets(context.Context, storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	return &storepb.TargetDiscovery{
		ActiveTargets: []*storepb.ActiveTarget{
			{Labels: set("cluster", "eu", "tenant", "t"), DiscoveredLabels: set("__address__", "x", "cluster", "eu")},
			{Labels: set("cluster", "eu", "tenant", "other"), DiscoveredLabels: set("__address__", "y")},
		},
		DroppedTargets: []*storepb.DroppedTarget{{DiscoveredLabels: set("tenant", "t", "cluster", "eu")}, {DiscoveredLabels: set("cluster", "eu")}},
	}, nil, nil
}

func (f full) MetricMetadata(_ context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	out := map[string][]*storepb.Meta{}
	for _, n := range []string{"m", "old", "hidden"} {
		if metric == "" || metric == n {
			out[n] = []*storepb.Meta{{Help: "of " + n}}
		}
	}
	return out, nil, nil
}

func (f full) Statistics(context.Context, int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	return &storepb.TSDBStatisticsEntry{
		HeadStatistics:              &storepb.HeadStatistics{NumSeries: 3},
		SeriesCountByMetricName:     []*storepb.Statistic{{Name: "m", Value: 3}},
		LabelValueCountByLabelName:  []*storepb.Statistic{{Name: "a", Value: 3}, {Name: "cluster", Value: 1}},
		SeriesCountByLabelValuePair: []*storepb.Statistic{{Name: "a=1", Value: 1}, {Name: "cluster=eu", Value: 2}},
	}, nil, nil
}

// TestOptional: label sets that are no series keep the same law.
func TestOptional(t *testing.T) {
	s := threeSeries()
	rename := func() *fake {
		return &fake{plan: filter.Plan{Operations: []filter.Operation{
			{Rename: &filter.Rename{From: "cluster", To: "region"}},
			{Map: &filter.MapValues{Name: "__name__", Values: []filter.Pair{{From: "old", To: "m"}, {From: "a:sum", To: "A"}}}},
		}}}
	}
	w := filtering.Wrap(full{s}, []filtering.Link{{Filter: rename()}}, filtering.Options{})
	scoped := enforcing(eq("tenant", "t"))
	all := context.Background()

	rules := func(ctx context.Context, req *storepb.RulesRequest) string {
		t.Helper()
		groups, _, err := w.(backend.RulesBackend).Rules(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, g := range groups {
			out = append(out, g.Name+":")
			for _, r := range g.Rules {
				if rec := r.GetRecording(); rec != nil {
					out = append(out, rec.Name+labelsText(rec.Labels))
				} else {
					out = append(out, fmt.Sprintf("%s%s%v%d", r.GetAlert().Name, labelsText(r.GetAlert().Labels), r.GetAlert().State, len(r.GetAlert().Alerts)))
				}
			}
		}
		return strings.Join(out, " ")
	}
	eu := `{region="eu",tenant="t"}`
	for _, c := range []struct {
		ctx  context.Context
		req  *storepb.RulesRequest
		want string
	}{
		{all, &storepb.RulesRequest{}, `g: A` + eu + ` b:sum{region="us",tenant="t"} Down` + eu + `FIRING2 other: c:sum{tenant="other"} empty:`},
		{all, &storepb.RulesRequest{MatcherString: []string{`{region="eu"}`}}, `g: A` + eu + ` Down` + eu + `FIRING2 empty:`},
		{all, &storepb.RulesRequest{RuleName: []string{"A"}}, `g: A` + eu + ` empty:`},
		{scoped, &storepb.RulesRequest{}, `g: A` + eu + ` b:sum{region="us",tenant="t"} Down` + eu + `PENDING1`},
	} {
		if got := rules(c.ctx, c.req); got != c.want {
			t.Errorf("rules %v:\n%s\nwant\n%s", c.req, got, c.want)
		}
	}
	if _, _, err := w.(backend.RulesBackend).Rules(all, &storepb.RulesRequest{MatcherString: []string{"{"}}); backend.Kind(err) != backend.ErrInvalid {
		t.Errorf("error %v", err)
	}

	targets, _, err := w.(backend.TargetsBackend).Targets(scoped, storepb.TargetsRequest_ANY)
	if err != nil || len(targets.ActiveTargets) != 1 || len(targets.DroppedTargets) != 1 ||
		labelsText(targets.ActiveTargets[0].Labels) != eu || labelsText(targets.ActiveTargets[0].DiscoveredLabels) != `{__address__="x",region="eu"}` ||
		labelsText(targets.DroppedTargets[0].DiscoveredLabels) != eu {
		t.Errorf("targets %v %v", targets, err)
	}

	metadata := func(w backend.Backend, ctx context.Context, metric string, limit int) string {
		t.Helper()
		out, _, err := w.(backend.MetadataBackend).MetricMetadata(ctx, metric, limit)
		if err != nil {
			return "error " + backend.Kind(err).Error()
		}
		var text []string
		for n, ms := range out {
			for _, m := range ms {
				text = append(text, n+" "+m.Help)
			}
		}
		slices.Sort(text)
		return strings.Join(text, ", ")
	}
	same := filtering.Wrap(full{s}, []filtering.Link{{Filter: &fake{}}}, filtering.Options{})
	lost := filtering.Wrap(full{s}, []filtering.Link{{Filter: &fake{plan: filter.Plan{Operations: []filter.Operation{{Rename: &filter.Rename{From: "a", To: "__name__"}}}}}}}, filtering.Options{})
	for _, c := range []struct {
		w      backend.Backend
		ctx    context.Context
		metric string
		limit  int
		want   string
	}{
		{w, all, "", -1, "hidden of hidden, m of m, m of old"},
		{w, all, "m", -1, "m of m, m of old"},
		{w, all, "old", -1, ""},
		{w, all, "", 1, "hidden of hidden"},
		{w, all, "", 0, ""},
		{w, scoped, "", -1, "m of m, m of old"},
		{w, scoped, "hidden", -1, ""},
		{same, all, "", -1, "hidden of hidden, m of m, old of old"},
		{same, scoped, "", -1, "m of m"},
		{same, enforcing(eq("tenant", "nobody")), "", -1, ""},
		{lost, all, "", -1, "error not supported"},
	} {
		if got := metadata(c.w, c.ctx, c.metric, c.limit); got != c.want {
			t.Errorf("metadata of %q, at most %d: %s, want %s", c.metric, c.limit, got, c.want)
		}
	}

	stats, _, err := w.(backend.StatisticsBackend).Statistics(all, 10)
	want := &storepb.TSDBStatisticsEntry{
		HeadStatistics:              &storepb.HeadStatistics{NumSeries: 3},
		LabelValueCountByLabelName:  []*storepb.Statistic{{Name: "a", Value: 3}},
		SeriesCountByLabelValuePair: []*storepb.Statistic{{Name: "a=1", Value: 1}},
	}
	if err != nil || !stats.EqualVT(want) {
		t.Errorf("statistics %v %v", stats, err)
	}
	if _, _, err := same.(backend.StatisticsBackend).Statistics(scoped, 10); backend.Kind(err) != backend.ErrUnsupported {
		t.Errorf("statistics of a whole store for a tenant: %v", err)
	}

	// A store without them has none behind filters either.
	bare := filtering.Wrap(&watched{}, []filtering.Link{{Filter: rename()}}, filtering.Options{})
	if _, _, err := bare.(backend.RulesBackend).Rules(all, &storepb.RulesRequest{}); backend.Kind(err) != backend.ErrUnsupported {
		t.Errorf("error %v", err)
	}
	if _, _, err := bare.(backend.ExemplarsBackend).Exemplars(all, nil, 0, 1); backend.Kind(err) != backend.ErrUnsupported {
		t.Errorf("error %v", err)
	}
}

func labelsText(ls *storepb.LabelSet) string {
	var out []string
	for _, l := range ls.GetLabels() {
		out = append(out, fmt.Sprintf("%s=%q", l.Name, l.Value))
	}
	return "{" + strings.Join(out, ",") + "}"
}

// double is a store whose rules, targets and exemplars have a label twice.
type double struct{ full }

func (d double) Rules(context.Context, *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	a := &storepb.Alert{Name: "x", Labels: set("tenant", "t", "tenant", "other")}
	return []*storepb.RuleGroup{{Name: "g", Rules: []*storepb.Rule{{Result: &storepb.Rule_Alert{Alert: a}}}}}, nil, nil
}

func (d double) Targets(context.Context, storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	return &storepb.TargetDiscovery{DroppedTargets: []*storepb.DroppedTarget{{DiscoveredLabels: set("tenant", "t", "tenant", "other")}}}, nil, nil
}

func (d double) Exemplars(context.Context, [][]*labels.Matcher, int64, int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	return []*storepb.ExemplarData{{SeriesLabels: set("tenant", "t", "tenant", "other")}}, nil, nil
}

// TestLabelTwice: what is no series must not show one value of a label to whoever
// checks and another to whoever reads.
func TestLabelTwice(t *testing.T) {
	f := &fake{plan: filter.Plan{Operations: []filter.Operation{{Rename: &filter.Rename{From: "a", To: "b"}}}}}
	w := filtering.Wrap(double{full{threeSeries()}}, []filtering.Link{{Filter: f}}, filtering.Options{})
	ctx := enforcing(eq("tenant", "t"))
	_, _, rules := w.(backend.RulesBackend).Rules(ctx, &storepb.RulesRequest{})
	_, _, targets := w.(backend.TargetsBackend).Targets(ctx, storepb.TargetsRequest_ANY)
	_, _, exemplars := w.(backend.ExemplarsBackend).Exemplars(ctx, [][]*labels.Matcher{{eq("c", "1")}}, 0, 1)
	for what, err := range map[string]error{"rules": rules, "targets": targets, "exemplars": exemplars} {
		if err == nil || !strings.Contains(err.Error(), "twice") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
