// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package gate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/gate"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hook is a filter that is a function.
type hook struct {
	carrier.Filter
	plan filter.Plan
	f    func(*filter.RequestCall) (*filter.RequestReply, error)
}

func (h hook) Plan() filter.Plan { return h.plan }

func (h hook) Request(_ context.Context, c *filter.RequestCall) (*filter.RequestReply, error) {
	return h.f(c)
}

func link(name string, f func(*filter.RequestCall) (*filter.RequestReply, error)) gate.Link {
	return gate.Link{Name: name, Filter: hook{plan: filter.Plan{Hooks: []string{filter.HookRequest}}, f: f}}
}

func says(r *filter.RequestReply) func(*filter.RequestCall) (*filter.RequestReply, error) {
	return func(*filter.RequestCall) (*filter.RequestReply, error) { return r, nil }
}

var quiet = slog.New(slog.DiscardHandler)

func TestBoundsAddUp(t *testing.T) {
	g := gate.New([]gate.Link{
		link("a", says(&filter.RequestReply{
			Enforce: []filter.Matcher{{Type: filter.MatchEqual, Name: "tenant", Value: "a"}}, Tenants: []string{"a"},
			HasTimeRange: true, MinTime: 10, MaxTime: 100, MaxSeries: 5, MaxBytes: 7,
		})),
		{Name: "not asked", Filter: hook{f: func(*filter.RequestCall) (*filter.RequestReply, error) { panic("asked") }}},
		link("b", says(&filter.RequestReply{
			Enforce: []filter.Matcher{{Type: filter.MatchNotRegexp, Name: "team", Value: "x|y"}}, Tenants: []string{"a", "b"},
			HasTimeRange: true, MinTime: 5, MaxTime: 90, MaxSeries: 9, MaxSamples: 3, MaxBytes: math.MaxUint64, Subject: "carol\n",
		})),
		link("c", says(nil)),
	}, "", quiet)
	got, err := g.Admit(access.WithCaller(context.Background(), &access.Caller{Method: "basic", Subject: "alice"}), &access.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	want := &access.Grant{
		Subject: "carol ", Tenants: []string{"a", "b"}, MinTime: 10, MaxTime: 90, MaxSeries: 5, MaxSamples: 3, MaxBytes: 7, Filters: []string{"a", "b", "c"},
		Enforce: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "tenant", "a"), labels.MustNewMatcher(labels.MatchNotRegexp, "team", "x|y")},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b *labels.Matcher) bool { return a.String() == b.String() })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWhatFiltersAreTold(t *testing.T) {
	var got *filter.RequestCall
	g := gate.New([]gate.Link{link("a", func(c *filter.RequestCall) (*filter.RequestReply, error) { got = c; return nil, nil })}, "", quiet)
	ctx := access.WithCaller(context.Background(), &access.Caller{
		Method: "bearer", Subject: "alice", Claims: []byte(`{"groups":["x","y"],"n":1}`), Headers: map[string][]string{"z": {"1"}, "a": {"2", "3"}},
	})
	ms := [][]*labels.Matcher{{labels.MustNewMatcher(labels.MatchRegexp, "job", "a.*"), labels.MustNewMatcher(labels.MatchNotEqual, "x", "")}}
	if _, err := g.Admit(ctx, &access.Ask{Kind: "range", Query: "up", Selectors: ms, Start: 1, End: 2, Step: 3}); err != nil {
		t.Fatal(err)
	}
	want := &filter.RequestCall{
		Kind: "range", Query: "up", Start: 1, End: 2, Step: 3,
		Selectors: [][]filter.Matcher{{{Type: filter.MatchRegexp, Name: "job", Value: "a.*"}, {Type: filter.MatchNotEqual, Name: "x"}}},
		Caller: filter.Caller{
			Method: "bearer", Subject: "alice", Claims: []byte(`{"groups":["x","y"],"n":1}`),
			ClaimSettings: []filter.Setting{{Path: "groups[0]", Value: "x"}, {Path: "groups[1]", Value: "y"}, {Path: "n", Value: "1"}},
			Headers:       []filter.Header{{Name: "a", Values: []string{"2", "3"}}, {Name: "z", Values: []string{"1"}}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		f      func(*filter.RequestCall) (*filter.RequestReply, error)
		status int // 0: unavailable
		text   string
	}{
		"denied":  {says(&filter.RequestReply{Deny: &filter.Denial{Message: "not\nyou"}}), 403, "not you"},
		"nobody":  {says(&filter.RequestReply{Deny: &filter.Denial{Status: 401}}), 401, "filter f refuses this"},
		"strange": {says(&filter.RequestReply{Deny: &filter.Denial{Status: 200, Message: "no"}}), 403, "no"},
		"long":    {says(&filter.RequestReply{Deny: &filter.Denial{Message: strings.Repeat("é", 1000)}}), 403, strings.Repeat("é", 250) + "…"},
		"failed":  {func(*filter.RequestCall) (*filter.RequestReply, error) { return nil, errors.New("SECRET") }, 0, "filter f cannot decide about requests at the moment: ask the operator"},
		"fault": {func(*filter.RequestCall) (*filter.RequestReply, error) {
			return nil, fmt.Errorf("SECRET %w", carrier.ErrFault)
		}, 0, "filter f cannot decide about requests at the moment: ask the operator"},
		"bad regexp":    {says(&filter.RequestReply{Enforce: []filter.Matcher{{Type: filter.MatchRegexp, Name: "a", Value: "("}}}), 0, "filter f cannot decide about requests at the moment"},
		"unknown type":  {says(&filter.RequestReply{Enforce: []filter.Matcher{{Type: 4, Name: "a"}}}), 0, "filter f cannot decide about requests at the moment"},
		"without label": {says(&filter.RequestReply{Enforce: []filter.Matcher{{Value: "x"}}}), 0, "filter f cannot decide about requests at the moment"},
	} {
		g := gate.New([]gate.Link{link("ok", says(nil)), link("f", tc.f)}, `Basic realm="x"`, quiet)
		grant, err := g.Admit(context.Background(), &access.Ask{})
		if err == nil || grant != nil || err.Error() != tc.text {
			t.Errorf("%s: %v, %v", name, grant, err)
			continue
		}
		var denied *access.Denied
		switch {
		case tc.status == 0 && !errors.Is(err, backend.ErrUnavailable):
			t.Errorf("%s: kind of %v", name, err)
		case tc.status != 0 && (!errors.As(err, &denied) || denied.Status != tc.status || (denied.Challenge != "") != (tc.status == 401)):
			t.Errorf("%s: %+v", name, denied)
		}
	}
}

func TestAdmins(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	g := gate.New([]gate.Link{link("a", says(&filter.RequestReply{Admin: true, Tenants: []string{"*"}})), link("b", says(nil))}, "", logger)
	grant, err := g.Admit(access.WithCaller(context.Background(), &access.Caller{Subject: "root"}), &access.Ask{Query: "sum(x)"})
	if err != nil || !grant.Admin || grant.Scoped() {
		t.Errorf("%+v, %v", grant, err)
	}
	if s := log.String(); !strings.Contains(s, "all tenants") || !strings.Contains(s, "root") || !strings.Contains(s, "sum(x)") {
		t.Errorf("the log says %q", s)
	}
	if grant, err = gate.New(nil, "", quiet).Admit(context.Background(), &access.Ask{}); err != nil || !grant.Admin {
		t.Errorf("without filters: %+v, %v", grant, err)
	}
	if grant, err = gate.New([]gate.Link{link("a", says(nil))}, "", quiet).Admit(context.Background(), &access.Ask{}); err != nil || grant.Admin {
		t.Errorf("nobody said admin: %+v, %v", grant, err)
	}
}

// TestLate: a filter that is late with a large request refuses that one, and is told that
// it is excused; with any other it is out of order.
func TestLate(t *testing.T) {
	excused := false
	g := gate.New([]gate.Link{{Name: "a", Filter: late{&excused}}}, "", quiet)
	for size, status := range map[int]int{100: 0, 100 << 10: http.StatusRequestEntityTooLarge} {
		_, err := g.Admit(t.Context(), &access.Ask{Query: strings.Repeat("x", size)})
		var denied *access.Denied
		if errors.As(err, &denied) != (status != 0) || denied != nil && denied.Status != status || excused != (status != 0) || err == nil {
			t.Errorf("%d bytes: %v, excused %t", size, err, excused)
		}
	}
}

// late is a filter that never answers in time.
type late struct{ excused *bool }

func (late) Plan() filter.Plan { return filter.Plan{Hooks: []string{filter.HookRequest}} }
func (l late) Request(ctx context.Context, _ *filter.RequestCall) (*filter.RequestReply, error) {
	*l.excused = carrier.IsLarge(ctx)
	return nil, fmt.Errorf("plug-in a: %w", errors.Join(carrier.ErrFault, carrier.ErrTimeout))
}
func (late) Select(context.Context, *filter.SelectCall) (*filter.SelectReply, error) { return nil, nil }
func (late) Rewrite(context.Context, []byte, []byte) ([]byte, error)                 { return nil, nil }
func (late) Close() error                                                            { return nil }

// TestWhatCannotBeAsked: what a filter could not read, or not in its time, is refused
// before any filter sees it, so that nobody makes a filter fail by what they ask.
func TestWhatCannotBeAsked(t *testing.T) {
	asked := false
	g := gate.New([]gate.Link{link("a", func(*filter.RequestCall) (*filter.RequestReply, error) { asked = true; return nil, nil })}, "", quiet)
	many := make([][]*labels.Matcher, 1000)
	for i := range many {
		for range 300 {
			many[i] = append(many[i], labels.MustNewMatcher(labels.MatchEqual, "a", "x"))
		}
	}
	of := func(name, value string) [][]*labels.Matcher {
		return [][]*labels.Matcher{{labels.MustNewMatcher(labels.MatchEqual, name, value)}}
	}
	header := func(v string) map[string][]string { return map[string][]string{"thanos-tenant": {v}} }
	for _, c := range []struct {
		name    string
		ask     access.Ask
		headers map[string][]string
		want    int // 0: it is asked
	}{
		{"plain", access.Ask{Query: "up", Selectors: of("a", "ü")}, header("a"), 0},
		{"a large query", access.Ask{Query: strings.Repeat("x", 256<<10), Selectors: of("a", strings.Repeat("x", 200<<10))}, nil, 0},
		{"many matchers", access.Ask{Selectors: many}, nil, 413},
		{"many small matchers", access.Ask{Selectors: many[:10]}, nil, 413},
		{"some matchers", access.Ask{Selectors: many[:5]}, nil, 0},
		{"long matcher", access.Ask{Selectors: of("a", strings.Repeat("x", 1<<20))}, nil, 413},
		{"long header", access.Ask{}, header(strings.Repeat("x", 1<<20)), 413},
		{"many empty headers", access.Ask{}, map[string][]string{"thanos-tenant": make([]string, 3000)}, 413},
		{"query", access.Ask{Query: "\xff"}, nil, 400},
		{"value", access.Ask{Selectors: of("a", "\xff")}, nil, 400},
		{"name", access.Ask{Selectors: of("\xff", "a")}, nil, 400},
		{"header", access.Ask{}, header("a\xff"), 400},
	} {
		asked = false
		_, err := g.Admit(access.WithCaller(context.Background(), &access.Caller{Method: "basic", Subject: "a", Headers: c.headers}), &c.ask)
		var denied *access.Denied
		status := 0
		if errors.As(err, &denied) {
			status = denied.Status
		}
		if status != c.want || (err == nil) != (c.want == 0) || asked != (c.want == 0) {
			t.Errorf("%s: %v, %d, asked: %t", c.name, err, status, asked)
		}
	}
}
