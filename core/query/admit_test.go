// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

type gateFunc func(context.Context, *access.Ask) (*access.Grant, error)

func (f gateFunc) Admit(ctx context.Context, ask *access.Ask) (*access.Grant, error) {
	return f(ctx, ask)
}

// everyCall are all methods by which anything can be asked.
func everyCall(s *query.Service) map[string]func(context.Context) error {
	o := s.DefaultOptions()
	req := &query.Request{Query: "up", Start: at(30), End: at(31), Step: time.Minute, Options: o}
	meta := &query.MetaRequest{Name: "job", Start: at(0), End: at(60), Options: o}
	ms := []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "__name__", "up")}
	p := s.Proxy()
	last := func(_ any, err error) error { return err }
	last3 := func(_, _ any, err error) error { return err }
	return map[string]func(context.Context) error{
		"instant":      func(ctx context.Context) error { return last(s.Instant(ctx, req)) },
		"range":        func(ctx context.Context) error { return last(s.Range(ctx, req)) },
		"explain":      func(ctx context.Context) error { return last(s.Explain(ctx, req)) },
		"series":       func(ctx context.Context) error { return last(s.Series(ctx, meta)) },
		"label_names":  func(ctx context.Context) error { return last(s.LabelNames(ctx, meta)) },
		"label_values": func(ctx context.Context) error { return last(s.LabelValues(ctx, meta)) },
		"read": func(ctx context.Context) error {
			res, err := s.Read(ctx, &query.ReadRequest{Matchers: ms, MaxTime: 1000, Options: o})
			if err == nil {
				_, err = res.Finish()
			}
			return err
		},
		"rules":     func(ctx context.Context) error { return last(s.Rules(ctx, &storepb.RulesRequest{}, o)) },
		"targets":   func(ctx context.Context) error { return last(s.Targets(ctx, 0, o)) },
		"metadata":  func(ctx context.Context) error { return last(s.Metadata(ctx, "", -1, o)) },
		"exemplars": func(ctx context.Context) error { return last(s.Exemplars(ctx, "up", at(0), at(1), o)) },
		"exemplars 0": func(ctx context.Context) error {
			return last(s.Exemplars(ctx, "1", at(0), at(1), o))
		},
		"statistics": func(ctx context.Context) error { return last(s.Statistics(ctx, 10, o)) },
		"stores":     func(ctx context.Context) error { return last(s.Stores(ctx)) },
		"embedded": func(context.Context) error {
			q, err := s.Queryable(o).Querier(0, 1)
			if err == nil {
				err = q.Close()
			}
			return err
		},
		"store_info": func(ctx context.Context) error { return last(p.Info(ctx)) },
		"store_series": func(ctx context.Context) error {
			for _, err := range p.Series(ctx, &backend.SeriesRequest{Matchers: ms, MaxTime: 1000}) {
				if err != nil {
					return err
				}
			}
			return nil
		},
		"store_label_names": func(ctx context.Context) error {
			return last(p.LabelNames(ctx, &backend.LabelNamesRequest{Matchers: ms, MaxTime: 1000}))
		},
		"store_label_values": func(ctx context.Context) error {
			return last(p.LabelValues(ctx, &backend.LabelValuesRequest{Name: "a", Matchers: ms, MaxTime: 1000}))
		},
		"store_label_values 0": func(ctx context.Context) error {
			return last(p.LabelValues(ctx, &backend.LabelValuesRequest{Name: "a", WithoutReplicaLabels: []string{"a"}, Matchers: ms, MaxTime: 1000}))
		},
		"store_exemplars": func(ctx context.Context) error {
			return last3(p.Exemplars(ctx, [][]*labels.Matcher{ms}, 0, 1))
		},
		"metadata 2":   func(ctx context.Context) error { return last3(p.MetricMetadata(ctx, "", -1)) },
		"rules 2":      func(ctx context.Context) error { return last3(p.Rules(ctx, &storepb.RulesRequest{})) },
		"targets 2":    func(ctx context.Context) error { return last3(p.Targets(ctx, 0)) },
		"statistics 2": func(ctx context.Context) error { return last3(p.Statistics(ctx, 1)) },
	}
}

// TestNothingWithoutTheGate: each call asks the gate once, under its kind, and what
// the gate refuses reaches no backend and takes no slot.
func TestNothingWithoutTheGate(t *testing.T) {
	for name, c := range map[string]struct {
		answer func() (*access.Grant, error)
		kind   error
		grpc   codes.Code
		text   string
	}{
		"unknown":     {func() (*access.Grant, error) { return nil, access.Unauthenticated("Basic", "who") }, query.ErrDenied, codes.Unauthenticated, "who"},
		"forbidden":   {func() (*access.Grant, error) { return nil, fmt.Errorf("gate: %w", access.Forbidden("no")) }, query.ErrDenied, codes.PermissionDenied, "no"},
		"error":       {func() (*access.Grant, error) { return access.Everything(), errors.New("odd") }, query.ErrDenied, codes.PermissionDenied, "odd"},
		"nothing":     {func() (*access.Grant, error) { return nil, nil }, query.ErrDenied, codes.PermissionDenied, "granted"},
		"panic":       {func() (*access.Grant, error) { panic("SECRET") }, query.ErrDenied, codes.PermissionDenied, "log"},
		"unavailable": {func() (*access.Grant, error) { return nil, backend.Errorf(backend.ErrUnavailable, "later") }, query.ErrUnavailable, codes.Unavailable, "later"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			store := fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "up", "job", "x"))
			process := limits.NewProcess(limits.Config{Concurrent: 1})
			// All slots are taken: whoever waits for one would wait for ever.
			held, err := process.Begin(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer held.End()
			reg := prometheus.NewRegistry()
			s, _ := serve(t, query.Config{Limits: process, Registerer: reg, Gate: gateFunc(func(_ context.Context, ask *access.Ask) (*access.Grant, error) {
				asked = append(asked, ask.Kind)
				return c.answer()
			})}, spec("a", store))
			calls := everyCall(s)
			for what, call := range calls {
				asked = nil
				err := call(t.Context())
				kind, _, _ := strings.Cut(what, " ")
				if len(asked) != 1 || asked[0] != kind {
					t.Errorf("%s: asked as %q", what, asked)
				}
				if err == nil || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "SECRET") {
					t.Errorf("%s: %v", what, err)
					continue
				}
				var x *query.Error
				var d *access.Denied
				store := strings.HasPrefix(what, "store_") || strings.HasSuffix(what, " 2")
				switch {
				case !store && (!errors.As(err, &x) || x.Kind != c.kind):
					t.Errorf("%s: %v of kind %v", what, err, x)
				case store && errors.As(err, &d) && status.Code(err) != c.grpc:
					t.Errorf("%s: %s", what, status.Code(err))
				case store && c.kind == query.ErrDenied && backend.Kind(err) != backend.ErrDenied && !errors.Is(err, query.ErrDenied):
					t.Errorf("%s: %v", what, err)
				}
			}
			if n := store.Calls.Load(); n != 0 {
				t.Errorf("%d calls reached the backend", n)
			}
			if n := testutil.CollectAndCount(reg, "promweave_requests_denied_total"); n != 19 {
				t.Errorf("%d kinds are counted as denied", n)
			}
		})
	}
}

// TestWhatTheGateIsAsked: the gate sees what is asked for, parsed.
func TestWhatTheGateIsAsked(t *testing.T) {
	var asked []access.Ask
	s, _ := serve(t, query.Config{Gate: gateFunc(func(_ context.Context, ask *access.Ask) (*access.Grant, error) {
		asked = append(asked, *ask)
		return access.Everything(), nil
	})}, spec("a", fakestore.Holding(labels.EmptyLabels())))
	o := s.DefaultOptions()
	res, err := s.Range(t.Context(), &query.Request{Query: `a{x="1"} + b`, Start: at(30), End: at(31), Step: time.Second, Options: o})
	if err != nil {
		t.Fatal(err)
	}
	res.Close()
	b := labels.MustNewMatcher(labels.MatchEqual, "__name__", "b")
	if _, err := s.Series(t.Context(), &query.MetaRequest{Start: at(1), End: at(2), Matchers: [][]*labels.Matcher{{b}}, Options: o}); err != nil {
		t.Fatal(err)
	}
	eq := func(n, v string) *labels.Matcher { return labels.MustNewMatcher(labels.MatchEqual, n, v) }
	want := []access.Ask{
		{Kind: "range", Query: `a{x="1"} + b`, Selectors: [][]*labels.Matcher{{eq("x", "1"), eq("__name__", "a")}, {b}}, Start: 30 * 60_000, End: 31 * 60_000, Step: 1000},
		{Kind: "series", Selectors: [][]*labels.Matcher{{b}}, Start: 60_000, End: 120_000},
	}
	if d := cmp.Diff(want, asked, cmp.Comparer(func(a, b *labels.Matcher) bool { return a.String() == b.String() }), cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
}

// TestGateThatHangs: it has as long as the request.
func TestGateThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := serve(t, query.Config{Timeout: time.Minute, Gate: gateFunc(func(ctx context.Context, _ *access.Ask) (*access.Grant, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})}, spec("a", fakestore.Holding(labels.EmptyLabels())))
		begin := time.Now()
		_, err := s.Instant(t.Context(), &query.Request{Query: "up", Start: at(1), End: at(1), Options: s.DefaultOptions()})
		var x *query.Error
		if !errors.As(err, &x) || x.Kind != query.ErrTimeout || time.Since(begin) != time.Minute {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
	})
}

// TestGrantedTimesOfExemplars: backends may return more than they were asked for.
func TestGrantedTimesOfExemplars(t *testing.T) {
	h := estate(alice, "mine", 1, 0)
	early := &storepb.Exemplar{Labels: pairs("trace", "early"), Ts: h.exemplars[0].Exemplars[0].Ts - 1000}
	h.exemplars[0].Exemplars = append(h.exemplars[0].Exemplars, early)
	g := access.Everything()
	g.MinTime = early.Ts + 1
	s, _ := serve(t, query.Config{Gate: gateFunc(func(context.Context, *access.Ask) (*access.Grant, error) { return g, nil })}, spec("a", h))
	res, err := s.Exemplars(t.Context(), "up", time.Unix(0, 0), time.Now(), s.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Exemplars) != 1 || len(res.Exemplars[0].Exemplars) != 1 || res.Exemplars[0].Exemplars[0].Ts <= early.Ts {
		t.Errorf("%v", res.Exemplars)
	}
	if len(h.exemplars[0].Exemplars) != 2 {
		t.Error("the backend's own exemplars were changed")
	}
}

// TestGrantedTimesAndLimits: by the engines nothing is seen outside of the times
// that are granted, and no more is read than that.
func TestGrantedTimesAndLimits(t *testing.T) {
	g := access.Everything()
	g.Admin = false
	s, _ := serve(t, query.Config{Gate: gateFunc(func(context.Context, *access.Ask) (*access.Grant, error) { return g, nil })},
		spec("a", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "up", "job", "x"), gauge(1, "__name__", "up", "job", "y"))))
	for _, engine := range engines {
		o := s.DefaultOptions()
		o.Engine = engine
		g.MinTime, g.MaxTime, g.MaxSamples, g.MaxSeries = at(10).UnixMilli(), at(20).UnixMilli(), 0, 0
		for q, want := range map[string]string{
			`sum(count_over_time(up[1h]))`:              `{} => 42 @[2400000]`, // 21 of 121 samples of each
			`count(up)`:                                 ``,
			`count(up @ 1200)`:                          `{} => 2 @[2400000]`,
			`count(up @ 1201)`:                          `{} => 2 @[2400000]`, // looks back
			`count(up offset 35m)`:                      ``,
			`max(max_over_time(timestamp(up)[1h:1s]))`:  `{} => 1200 @[2400000]`,
			`min(min_over_time(timestamp(up)[1h:30s]))`: `{} => 600 @[2400000]`,
		} {
			res, err := s.Instant(t.Context(), &query.Request{Query: q, Start: at(40), End: at(40), Options: o})
			if err != nil {
				t.Fatalf("%s: %s: %v", engine, q, err)
			}
			if got := text(res.Value); got != want {
				t.Errorf("%s: %s: %s, want %s", engine, q, got, want)
			}
			res.Close()
		}
		g.MinTime, g.MaxTime, g.MaxSeries = 0, at(60).UnixMilli(), 1
		_, err := s.Instant(t.Context(), &query.Request{Query: "up", Start: at(40), End: at(40), Options: o})
		if !errors.Is(err, backend.ErrLimit) || !strings.Contains(err.Error(), "access.series") {
			t.Errorf("%s: %v", engine, err)
		}
	}
	// Windows of downsampled data come whole, and are cut where they are read.
	var window backend.Series
	for i, of := range []float64{10, 10, 1, 1, 10} { // count, sum, min, max, counter
		var ts []int64
		var vs []float64
		for t := int64(300_000); t <= 3_600_000; t += 300_000 {
			ts, vs = append(ts, t), append(vs, of)
		}
		c := fakestore.Floats(labels.FromStrings("__name__", "up"), ts, vs).Chunks[0]
		if i == 0 {
			window = backend.Series{Labels: labels.FromStrings("__name__", "up"), Chunks: []backend.Chunk{{MinTime: c.MinTime, MaxTime: c.MaxTime, Aggregates: &backend.AggregateChunks{}}}}
		}
		a := window.Chunks[0].Aggregates
		*[]*backend.Encoded{&a.Count, &a.Sum, &a.Min, &a.Max, &a.Counter}[i] = c.Raw
	}
	coarse := fakestore.Holding(labels.EmptyLabels(), window)
	coarse.Capabilities.Downsampled = true
	g.MinTime, g.MaxTime, g.MaxSeries = at(10).UnixMilli(), at(20).UnixMilli(), 0
	down, _ := serve(t, query.Config{Gate: gateFunc(func(context.Context, *access.Ask) (*access.Grant, error) { return g, nil })}, spec("coarse", coarse))
	o := down.DefaultOptions()
	o.MaxSourceResolution = 300_000
	res, err := down.Instant(t.Context(), &query.Request{Query: `sum(count_over_time(up[1h]))`, Start: at(60), End: at(60), Options: o})
	if err != nil {
		t.Fatal(err)
	}
	if got := text(res.Value); got != `{} => 30 @[3600000]` {
		t.Errorf("of twelve windows of ten samples, the visible ones at 10, 15 and 20 minutes: %s", got)
	}
	res.Close()
	g.MinTime, g.MaxTime = 0, at(60).UnixMilli()
	names, err := s.LabelValues(t.Context(), &query.MetaRequest{Name: "job", Start: at(61), End: at(90), Options: s.DefaultOptions()})
	if err != nil || len(names.Values) != 0 {
		t.Errorf("%v %v", names, err)
	}
	g.MinTime, g.MaxTime = at(10).UnixMilli(), at(20).UnixMilli()
	if i, err := s.Proxy().Info(t.Context()); err != nil || i.MinTime != g.MinTime || i.MaxTime != g.MaxTime {
		t.Errorf("%+v %v", i, err)
	}
}

// TestMetadataOfOthers: that somebody has a metric of the same name is no reason to
// show what others say of theirs.
func TestMetadataOfOthers(t *testing.T) {
	mine, theirs := sets(estate(alice, "mine", 1, 0), labels.FromStrings("tenant", alice)), estate("b", "SECRET", 1, 0)
	mine.metas = map[string][]*storepb.Meta{"up": {{Type: "gauge", Help: "mine"}}}
	theirs.metas = map[string][]*storepb.Meta{"up": {{Type: "gauge", Help: "SECRET"}}}
	// One that does not say that all it has is alice's, and has one series of hers: what
	// begins like a part of somebody's metric may be a metric of its own.
	silent := estate(alice, "mine", 1, 0)
	silent.metas = map[string][]*storepb.Meta{
		"up": {{Type: "gauge", Help: "SECRET"}}, "target": {{Type: "histogram", Help: "SECRET"}, {Type: "counter", Help: "SECRET"}, {Type: "info", Help: "SECRET"}},
		"only_mine": {{Type: "histogram", Help: "SECRET"}},
	}
	s, _ := serve(t, query.Config{Gate: &doorman{}}, spec("mine", mine), spec("theirs", theirs), spec("silent", silent))
	res, err := s.Metadata(access.WithCaller(t.Context(), &access.Caller{Subject: alice}), "", -1, s.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for name, metas := range res.Metadata {
		for _, m := range metas {
			got[name] = append(got[name], m.Type+" "+m.Help)
		}
	}
	want := map[string][]string{"up": {"gauge mine"}, "target": {"info "}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestStoresWithoutWords: why a store fails is for operators.
func TestStoresWithoutWords(t *testing.T) {
	b := estate(alice, "mine", 1, 0)
	e := spec("mine", b)
	e.Warning = func() string { return "SECRET" }
	s, set := serve(t, query.Config{Gate: &doorman{}}, e)
	b.infoError = errors.New("SECRET")
	set.Refresh(t.Context())
	for who, want := range map[string]string{alice: "the log of the server has the details", "reader": "the log of the server has the details", "operator": "SECRET"} {
		got, err := s.Stores(access.WithCaller(t.Context(), &access.Caller{Subject: who}))
		if err != nil || len(got) != 1 || got[0].LastError != want {
			t.Errorf("%s: %+v %v", who, got, err)
		} else if shown := got[0].Warning == "SECRET"; shown != (who == "operator") {
			t.Errorf("%s sees the warning %q", who, got[0].Warning)
		}
	}
}

// TestStatisticsOfAScopedOperator: an operator with the eyes of a tenant gets those of
// backends that say of all they have that it is the tenant's.
func TestStatisticsOfAScopedOperator(t *testing.T) {
	g := access.Everything()
	g.Enforce = []*labels.Matcher{labels.MustNewMatcher(labels.MatchNotEqual, "tenant", "b")}
	named := func(sets ...labels.Labels) backend.Backend {
		h := estate(alice, "mine", 1, 0)
		h.info.LabelSets = sets
		return h
	}
	s, _ := serve(t, query.Config{Gate: gateFunc(func(context.Context, *access.Ask) (*access.Grant, error) { return g, nil })},
		spec("mine", named(labels.FromStrings("tenant", "a"))), spec("silent", named()), spec("neutral", named(labels.FromStrings("x", "1"))),
		spec("mixed", named(labels.FromStrings("tenant", "a"), labels.FromStrings("tenant", "b"))), spec("theirs", named(labels.FromStrings("tenant", "b"))))
	res, err := s.Statistics(t.Context(), 10, s.DefaultOptions())
	if err != nil || len(res.Entries) != 1 || res.Entries["mine"] == nil {
		t.Errorf("%v %v", res, err)
	}
}

// TestMetadataOfSharedBackends: of a backend that two share nobody can tell whose entry
// for a metric is whose.
func TestMetadataOfSharedBackends(t *testing.T) {
	shared := joined(estate(alice, "mine", 1, 0), estate("b", "SECRET", 1, 0))
	shared.metas = map[string][]*storepb.Meta{"up": {{Type: "gauge", Help: "mine", Unit: "s"}, {Type: "gauge", Help: "SECRET", Unit: "SECRET"}}}
	mine := sets(estate(alice, "mine", 1, 0), labels.FromStrings("tenant", alice))
	mine.metas = map[string][]*storepb.Meta{"target_info": {{Type: "gauge", Help: "one"}, {Type: "gauge", Help: "two"}}}
	s, _ := serve(t, query.Config{Gate: &doorman{}}, spec("shared", shared), spec("mine", mine))
	res, err := s.Metadata(access.WithCaller(t.Context(), &access.Caller{Subject: alice}), "", -1, s.DefaultOptions())
	if err != nil {
		t.Fatal(err)
	}
	if up := res.Metadata["up"]; len(up) != 1 || up[0].Type != "gauge" || up[0].Help != "" || up[0].Unit != "" {
		t.Errorf("up: %v", up)
	}
	if info := res.Metadata["target_info"]; len(info) != 2 {
		t.Errorf("target_info: %v", info)
	}
}

// TestStateOfAlertsThatAreNotShown: that a rule fires for somebody else is nothing to
// be told.
func TestStateOfAlertsThatAreNotShown(t *testing.T) {
	own, other := pairs("tenant", alice), pairs("tenant", "b")
	b := estate(alice, "mine", 1, 0)
	rule := func(name string, alerts ...*storepb.AlertInstance) *storepb.Rule {
		return &storepb.Rule{Result: &storepb.Rule_Alert{Alert: &storepb.Alert{Name: name, State: storepb.AlertState_FIRING, Labels: own, Alerts: alerts}}}
	}
	firing := &storepb.AlertInstance{Labels: other, State: storepb.AlertState_FIRING}
	b.rules = []*storepb.RuleGroup{{Name: "g", Rules: []*storepb.Rule{
		rule("theirs", firing), rule("both", firing, &storepb.AlertInstance{Labels: own, State: storepb.AlertState_PENDING}),
	}}}
	s, _ := serve(t, query.Config{Gate: &doorman{}}, spec("mine", b))
	res, err := s.Rules(access.WithCaller(t.Context(), &access.Caller{Subject: alice}), &storepb.RulesRequest{}, s.DefaultOptions())
	if err != nil || len(res.Groups) != 1 || len(res.Groups[0].Rules) != 2 {
		t.Fatalf("%v %v", res, err)
	}
	for i, want := range []storepb.AlertState{storepb.AlertState_INACTIVE, storepb.AlertState_PENDING} {
		if a := res.Groups[0].Rules[i].GetAlert(); a.State != want {
			t.Errorf("%s: %s, want %s", a.Name, a.State, want)
		}
	}
}

// TestUseOfOthersIsNotTold: what all queries together hold is for operators.
func TestUseOfOthersIsNotTold(t *testing.T) {
	p := limits.NewProcess(limits.Config{ProcessBytes: 1 << 20})
	other, err := p.Begin(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer other.End()
	if err := other.Add(0, 0, 1<<20-7); err != nil {
		t.Fatal(err)
	}
	s, _ := serve(t, query.Config{Gate: &doorman{}, Limits: p}, spec("mine", estate(alice, "mine", 1, 0)))
	for who, told := range map[string]bool{alice: false, "reader": false, "operator": true} {
		ctx := access.WithCaller(t.Context(), &access.Caller{Subject: who})
		o := s.DefaultOptions()
		o.PartialResponse = false
		_, err := s.Instant(ctx, &query.Request{Query: "up", Start: time.Now(), End: time.Now(), Options: o})
		var failed *query.Error
		if !errors.Is(err, backend.ErrLimit) || !errors.As(err, &failed) {
			t.Fatalf("%s: %v", who, err)
		}
		out, merr := json.Marshal(failed.Report)
		if merr != nil {
			t.Fatal(merr)
		}
		if got := strings.Contains(err.Error(), "other queries hold 1048569"); got != told {
			t.Errorf("%s is told in the error: %t: %v", who, got, err)
		}
		if got := strings.Contains(string(out), "process_bytes\",\"used"); got != told {
			t.Errorf("%s is told in the report: %t: %s", who, got, out)
		}
	}
}

// TestWindow: filters are told how far back a selector reads, however it is written.
func TestWindow(t *testing.T) {
	var got time.Duration
	s, _ := serve(t, query.Config{Gate: gateFunc(func(_ context.Context, ask *access.Ask) (*access.Grant, error) {
		got = time.Duration(ask.Window) * time.Millisecond
		return nil, access.Forbidden("no")
	})})
	for expr, want := range map[string]time.Duration{
		"1":            0,
		"up":           0,
		"up offset 1y": 0,
		"up[5m]":       5 * time.Minute,
		"rate(up[5m]) + max_over_time(up[1h] offset 1d)":       time.Hour,
		"max_over_time(rate(up[5m])[1h:1m])":                   65 * time.Minute,
		"max_over_time(min_over_time(up[1d:])[2d:] @ start())": 3 * 24 * time.Hour,
		"sum_over_time(vector(1)[1h:1m])":                      0,
		"max_over_time(min_over_time(up[200y:1d])[200y:1d])":   math.MaxInt64 / 1_000_000 * time.Millisecond,
	} {
		got = -1
		_, err := s.Instant(t.Context(), &query.Request{Query: expr, Start: at(1), End: at(1), Options: s.DefaultOptions()})
		if err == nil || got != want {
			t.Errorf("%s: %v, want %v (%v)", expr, got, want, err)
		}
	}
}
