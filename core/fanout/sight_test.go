// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
)

func tenant(m string) *access.Grant {
	g := access.Everything()
	g.Admin = false
	g.Enforce = []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "tenant", m)}
	return g
}

// granted is newWorld for somebody who does not see everything.
func granted(t *testing.T, g *access.Grant, ms ...*membership.Member) *world {
	t.Helper()
	w := newWorld(t, limits.Config{}, true, ms...)
	w.session.Grant = g
	w.session.RequestID = "the-request"
	return w
}

// TestMatchersAreSent: backends are asked for no more than the caller may see,
// whatever the caller asks for, and those that have nothing of it are not asked.
func TestMatchersAreSent(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		mixed := fakestore.Holding(labels.EmptyLabels(), one("m", "1", "tenant", "a"), one("m", "2", "tenant", "b"))
		theirs := fakestore.Holding(labels.FromStrings("tenant", "b"), one("m", "3", "tenant", "b"))
		mixed.Record = true
		w := granted(t, tenant("a"), member("mixed", mixed), member("theirs", theirs, "tenant", "b"))
		req := request()
		req.Matchers = []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, "m", ".+")}
		got, err := ask(t.Context(), w, req)
		if err != nil || !slices.Equal(got, []string{`{m="1", tenant="a"} 1`}) {
			t.Errorf("%q %v", got, err)
		}
		if len(req.Matchers) != 1 {
			t.Error("the request was changed")
		}
		if sent := fmt.Sprint(mixed.Requests[0].Matchers); sent != `[m=~".+" tenant="a"]` {
			t.Errorf("sent %s", sent)
		}
		if n := theirs.Calls.Load(); n != 0 {
			t.Errorf("the other one's backend was called %d times", n)
		}
		if r := w.sel.Backends[1]; r.State != report.RowPruned || r.Reason != report.ReasonTenantPolicy {
			t.Errorf("%+v", r)
		}
		if c := w.session.Completeness(); c.State != report.Complete {
			t.Errorf("%+v", c)
		}
	})
}

// TestEnforcedReplicaLabel: a label that is checked is taken off after that, also
// where the backend would take it off itself.
func TestEnforcedReplicaLabel(t *testing.T) {
	store := fakestore.Holding(labels.EmptyLabels(), one("m", "1", "tenant", "a"), one("m", "2", "tenant", "b"))
	store.Capabilities.WithoutReplicaLabels = true
	m := member("b", store)
	m.Info.Capabilities.WithoutReplicaLabels = true
	w := granted(t, tenant("a"), m)
	req := request()
	req.WithoutReplicaLabels = []string{"tenant"}
	var got []string
	for b, err := range w.session.Stream(t.Context(), req, w.sel) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Len() {
			got = append(got, b.At(i).Labels.String())
		}
	}
	if !slices.Equal(got, []string{`{m="1"}`}) || w.sel.Backends[0].State != report.RowAnswered {
		t.Errorf("%q %+v", got, w.sel.Backends[0])
	}
}

// TestForeignSeries: a series that must not be seen fails its backend, and nobody
// is told which it was.
func TestForeignSeries(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		for _, without := range [][]string{nil, {"tenant"}} {
			deaf := fakestore.Sends([]backend.Series{one("m", "1", "tenant", "a")}, []backend.Series{one("m", "2", "tenant", "SECRET")})
			m := member("deaf", deaf)
			m.Info.Capabilities.WithoutReplicaLabels = len(without) > 0 // a lie
			w := granted(t, tenant("a"), m)
			req := request()
			req.WithoutReplicaLabels = without
			got, err := ask(t.Context(), w, req)
			if err != nil || strings.Contains(fmt.Sprint(got), "SECRET") || strings.Contains(fmt.Sprint(got), `m="2"`) {
				t.Errorf("%q %v", got, err)
			}
			rep := w.session.Seen(&report.Report{Completeness: w.session.Completeness(), Selects: w.session.Selects()})
			r := rep.Selects[0].Backends[0]
			if r.State != report.RowFailed || r.Reason != report.ReasonProtocol || r.Series != 1 || !strings.Contains(r.Detail, "the-request") {
				t.Errorf("%+v", r)
			}
			if full := w.sel.Backends[0].Detail; strings.Contains(full, "SECRET") || !strings.Contains(full, "S-6") {
				t.Errorf("%s", full)
			}
			if rep.Completeness.State != report.Partial {
				t.Errorf("%+v", rep.Completeness)
			}
		}
	})
}

// TestTimesAreClipped: nothing before or after what a grant shows is asked for, and
// what comes all the same is cut.
func TestTimesAreClipped(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		long := fakestore.Floats(labels.FromStrings("m", "long"), []int64{1000, 2000, 3000, 4000}, []float64{1, 2, 3, 4})
		early := fakestore.Floats(labels.FromStrings("m", "early"), []int64{1000, 1500}, []float64{1, 1})
		var asked []backend.SeriesRequest
		b := fakestore.Sends([]backend.Series{early, long})
		send := b.OnSeries
		b.OnSeries = func(ctx context.Context, req *backend.SeriesRequest) fakestore.Seq {
			asked = append(asked, *req)
			return send(ctx, req)
		}
		g := access.Everything()
		g.MinTime, g.MaxTime = 2000, 3000
		old := member("old", b)
		old.Info.MinTime, old.Info.MaxTime = 0, 1999
		w := granted(t, g, member("b", b), old)
		got, err := ask(t.Context(), w, request())
		if r := w.sel.Backends[1]; r.State != report.RowPruned || r.Reason != report.ReasonTimeRange {
			t.Errorf("%+v", r)
		}
		if err != nil || !slices.Equal(got, []string{`{m="long"} 1`}) {
			t.Errorf("%q %v", got, err)
		}
		if asked[0].MinTime != 2000 || asked[0].MaxTime != 3000 {
			t.Errorf("asked for %d to %d", asked[0].MinTime, asked[0].MaxTime)
		}
		w = granted(t, g, member("b", b))
		got, err = ask(t.Context(), w, &backend.SeriesRequest{MinTime: 5000, MaxTime: 6000})
		if err != nil || len(got) != 0 || len(asked) != 1 {
			t.Errorf("%q %v, asked %d times", got, err, len(asked))
		}
		if r := w.sel.Backends[0]; r.State != report.RowPruned || r.Reason != report.ReasonTimeRange {
			t.Errorf("%+v", r)
		}
	})
}

// TestStreamShowsNoWindowsOutside: a peer reads aggregates whole, so that those
// that reach out of what may be seen are left out, and raw data asked for.
func TestStreamShowsNoWindowsOutside(t *testing.T) {
	raw := one("m", "1").Chunks[0]
	agg := func(lo, hi int64) backend.Chunk {
		return backend.Chunk{MinTime: lo, MaxTime: hi, Aggregates: &backend.AggregateChunks{Sum: raw.Raw}}
	}
	var asked backend.SeriesRequest
	b := fakestore.Sends([]backend.Series{{Labels: labels.FromStrings("m", "1"), Chunks: []backend.Chunk{agg(1000, 2500), agg(2500, 2900)}}})
	send := b.OnSeries
	b.OnSeries = func(ctx context.Context, req *backend.SeriesRequest) fakestore.Seq {
		asked = *req
		return send(ctx, req)
	}
	g := access.Everything()
	g.MinTime, g.MaxTime = 2000, 3000
	w := granted(t, g, member("b", b))
	req := request()
	req.MaxResolution, req.Aggregates = 300_000, []backend.Aggregate{backend.AggregateSum}
	for batch, err := range w.session.Stream(t.Context(), req, w.sel) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range batch.Len() {
			if cs := batch.At(i).Chunks; len(cs) != 1 || cs[0].MinTime != 2500 {
				t.Errorf("%+v", cs)
			}
		}
	}
	if asked.MaxResolution != 0 || asked.Aggregates != nil {
		t.Errorf("asked for %+v", asked)
	}
}

// TestLabelsOfTheTrusted: lists are taken from series, unless the operator vouches
// for the backend; then the values of the enforced label are all that can be checked.
func TestLabelsOfTheTrusted(t *testing.T) {
	deaf := fakestore.Sends([]backend.Series{one("job", "x", "other", "1", "tenant", "a"), one("job", "x", "tenant", "a")})
	deaf.OnValues = func(_ context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
		return &backend.Labels{Values: []string{"a", "list", fmt.Sprint(req.Matchers)}}, nil
	}
	for _, c := range []struct {
		name    string
		trusted bool
		grant   *access.Grant
		want    string
	}{
		{"job", false, tenant("a"), "[x]"},
		{"tenant", false, tenant("a"), "[a]"},
		{"", false, tenant("a"), "[job other tenant]"},
		{"nothing", false, tenant("a"), "[]"},
		{"job", true, tenant("a"), `[a list [tenant="a"]]`},
		{"tenant", true, tenant("a"), "failed"},
		{"job", false, access.Everything(), "[a list []]"},
	} {
		m := member("b", deaf)
		m.TrustLabels = c.trusted
		w := granted(t, c.grant, m)
		answers, err := w.session.Labels(t.Context(), fanout.Question{MaxTime: 10_000}, c.name, w.sel, nil,
			func(ctx context.Context, m *membership.Member, ms []*labels.Matcher, lo, hi int64) (*backend.Labels, error) {
				return m.Backend.LabelValues(ctx, &backend.LabelValuesRequest{Name: "x", MinTime: lo, MaxTime: hi, Matchers: ms})
			})
		if err != nil {
			t.Fatal(err)
		}
		got := "failed"
		if len(answers) == 1 {
			got = fmt.Sprint(answers[0].Value)
		}
		if got != c.want {
			t.Errorf("%q, trusted %t: %s, want %s (%+v)", c.name, c.trusted, got, c.want, w.sel.Backends[0])
		}
		if !c.trusted && c.grant.Scoped() && !slices.Contains(w.sel.Backends[0].Compensated, "labels_by_series") {
			t.Errorf("the report does not tell: %+v", w.sel.Backends[0])
		}
	}
}

// TestLabelsOfBefore: lists may be of more time than was asked for, so that somebody who
// may not see all of that gets what series say.
func TestLabelsOfBefore(t *testing.T) {
	store := fakestore.Holding(labels.EmptyLabels(),
		fakestore.Floats(labels.FromStrings("job", "gone"), []int64{1000}, []float64{1}), fakestore.Floats(labels.FromStrings("job", "now"), []int64{9000}, []float64{1}))
	for since, want := range map[int64]string{math.MinInt64: "[a list]", 5000: "[now]"} {
		m := member("b", store)
		m.TrustLabels = true
		g := access.Everything()
		g.MinTime = since
		w := granted(t, g, m)
		answers, err := w.session.Labels(t.Context(), fanout.Question{MaxTime: 10_000}, "job", w.sel, nil,
			func(context.Context, *membership.Member, []*labels.Matcher, int64, int64) (*backend.Labels, error) {
				return &backend.Labels{Values: []string{"a list"}}, nil
			})
		if err != nil || len(answers) != 1 || fmt.Sprint(answers[0].Value) != want {
			t.Errorf("since %d: %+v, %v, want %s", since, answers, err, want)
		}
	}
}

func TestLabelsBySeriesAreCharged(t *testing.T) {
	var all []backend.Series
	for i := range 100 {
		all = append(all, one("job", fmt.Sprintf("%04d", i), "tenant", "a"))
	}
	for _, cfg := range []limits.Config{{Series: 50}, {Bytes: 5000}, {ProcessBytes: 1000}} {
		w := newWorld(t, cfg, true, member("b", fakestore.Sends(all[:40], all[40:80], all[80:])))
		w.session.Grant = tenant("a")
		_, err := w.session.Labels(t.Context(), fanout.Question{MaxTime: 10_000}, "job", w.sel, nil, nil)
		if !errors.Is(err, backend.ErrLimit) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestCut(t *testing.T) {
	set := func(kv ...string) labels.Labels { return labels.FromStrings(kv...) }
	info := func(sets ...labels.Labels) backend.Info { i := backend.AllTime(); i.LabelSets = sets; return i }
	for _, c := range []struct {
		name         string
		st           membership.Status
		shown        bool
		sets, within string
	}{
		{"mine", membership.Status{Known: true, Info: info(set("tenant", "a"))}, true, `[{tenant="a"}]`, "true"},
		{"theirs", membership.Status{Known: true, Info: info(set("tenant", "b"))}, false, "", "false"},
		{"both", membership.Status{Known: true, Info: info(set("tenant", "b"), set("tenant", "a", "x", "1"))}, true, `[{tenant="a", x="1"}]`, "false"},
		{"silent", membership.Status{Known: true, Info: info()}, true, `[]`, "false"},
		{"neutral", membership.Status{Known: true, Info: info(set("x", "1"))}, true, `[{x="1"}]`, "false"},
		{"unknown", membership.Status{Info: info()}, false, "", "false"},
	} {
		if got := fmt.Sprint(fanout.Within(tenant("a"), &c.st.Info)); got != c.within {
			t.Errorf("%s: within: %s", c.name, got)
		}
		if _, ok := fanout.Cut(access.Everything(), c.st); !ok || !fanout.Within(access.Everything(), &c.st.Info) {
			t.Errorf("%s is cut for everybody", c.name)
		}
		for _, ls := range c.st.Info.LabelSets {
			c.st.Info.Ranges = append(c.st.Info.Ranges, backend.LabelSetRange{Labels: ls})
		}
		c.st.Info.MinTime = 5
		got, ok := fanout.Cut(tenant("a"), c.st)
		if ok && (got.Info.MinTime == 5) != (c.within == "true") {
			t.Errorf("%s: its data begin at %d", c.name, got.Info.MinTime)
		}
		if ok != c.shown {
			t.Errorf("%s: shown: %t", c.name, ok)
		}
		if ok && fmt.Sprint(got.Info.LabelSets) != c.sets {
			t.Errorf("%s: %s", c.name, got.Info.LabelSets)
		}
		if ok && len(got.Info.Ranges) != len(got.Info.LabelSets) {
			t.Errorf("%s: ranges %v", c.name, got.Info.Ranges)
		}
	}
}

// TestAccount: what is wrapped around a backend charges what it gathers, and tells
// the report what it did.
func TestAccount(t *testing.T) {
	var late *fanout.Account
	charge := 0
	b := &fakestore.Script{OnSeries: func(ctx context.Context, _ *backend.SeriesRequest) fakestore.Seq {
		return func(yield func(*backend.Batch, error) bool) {
			acct := fanout.AccountOf(ctx)
			late = acct
			if access.GrantOf(ctx) == nil {
				yield(nil, errors.New("no grant"))
				return
			}
			if err := acct.Charge(0, 0, charge); err != nil {
				yield(nil, err)
				return
			}
			acct.Filter(report.FilterEffect{Name: "f", SeriesIn: 3, SeriesOut: 1, Calls: 1, Seconds: 1, Withheld: []string{`a="1"`}, Note: "SECRET"})
			acct.Filter(report.FilterEffect{Name: "g", Calls: 1})
			acct.Filter(report.FilterEffect{Name: "f", SeriesIn: 2, SeriesOut: 2, Calls: 1, Seconds: 1, Withheld: []string{`a="1"`, `b="2"`}})
			acct.Release(charge)
			batch := backend.NewBatch(1)
			batch.Append(one("m", "1", "tenant", "a"))
			yield(batch, nil)
		}
	}}
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		charge = 500
		w := newWorld(t, limits.Config{Bytes: 600}, true, member("b", b))
		w.session.Grant = tenant("a")
		got, err := ask(t.Context(), w, request())
		if err != nil || len(got) != 1 {
			t.Fatalf("%q %v %+v", got, err, w.sel.Backends[0])
		}
		want := []report.FilterEffect{
			{Name: "f", SeriesIn: 5, SeriesOut: 3, Calls: 2, Seconds: 2, Withheld: []string{`a="1"`, `b="2"`}, Note: "SECRET"}, {Name: "g", Calls: 1},
		}
		if d := cmp.Diff(want, w.sel.Backends[0].Filters); d != "" {
			t.Error(d)
		}
		late.Filter(report.FilterEffect{Name: "too late"})
		if err := late.Charge(0, 0, 1); err == nil {
			t.Error("charged after the end")
		}
		if n := len(w.sel.Backends[0].Filters); n != 2 {
			t.Errorf("%d effects", n)
		}
		seen := w.session.Seen(&report.Report{Selects: w.session.Selects()}).Selects[0].Backends[0].Filters
		if seen[0].Note == "SECRET" || seen[0].SeriesIn != 3 || w.sel.Backends[0].Filters[0].Note != "SECRET" {
			t.Errorf("%+v", seen)
		}
		charge = 601
		w = newWorld(t, limits.Config{Bytes: 600}, true, member("b", b))
		w.session.Grant = tenant("a")
		if _, err := ask(t.Context(), w, request()); !errors.Is(err, backend.ErrLimit) {
			t.Errorf("gathered beyond the limit: %v", err)
		}
	})
	var none *fanout.Account
	none.Filter(report.FilterEffect{})
	none.Release(1)
	if err := none.Charge(1, 1, 1); err != nil || fanout.AccountOf(t.Context()) != nil {
		t.Error("an account outside of a call")
	}
}

func TestDeniedByABackend(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		b := &fakestore.Script{OnSeries: func(context.Context, *backend.SeriesRequest) fakestore.Seq {
			return backend.Fail(fmt.Errorf("filter: %w", backend.Errorf(backend.ErrDenied, "no")))
		}}
		w := newWorld(t, limits.Config{}, true, member("b", b))
		if got, err := ask(t.Context(), w, request()); err != nil && len(got) == 0 {
			t.Fatal(err)
		}
		if r := w.sel.Backends[0]; r.State != report.RowFailed || r.Reason != report.ReasonDenied {
			t.Errorf("%+v", r)
		}
	})
}

// TestSeenError: of an error a caller learns the name of a backend that may be known,
// and no more.
func TestSeenError(t *testing.T) {
	mine, unknown := member("mine", nil, "tenant", "a"), member("SECRET", nil)
	unknown.Known = false
	w := granted(t, tenant("a"), mine, unknown)
	for name, want := range map[string]string{
		"mine":   "backend mine: failed: the log of the server has the details, under request the-request and it is required",
		"SECRET": "backend (not shown): failed: the log of the server has the details, under request the-request and it is required",
	} {
		err := fmt.Errorf("wrapped by SECRET: %w", &fanout.MissingError{
			Missing: report.Missing{Backend: name, Reason: report.ReasonFailed, Detail: "SECRET"}, Required: true, Err: backend.Errorf(backend.ErrLimit, "SECRET"),
		})
		got := w.session.SeenError(err)
		if got.Error() != want || backend.Kind(got) != backend.ErrLimit {
			t.Errorf("%v, kind %v", got, backend.Kind(got))
		}
		for e := got; e != nil; e = errors.Unwrap(e) {
			if strings.Contains(e.Error(), "SECRET") {
				t.Errorf("inside: %v", e)
			}
		}
	}
	limit := &limits.Exceeded{Name: "n", Limit: 1, Used: 2}
	if got := w.session.SeenError(fmt.Errorf("SECRET: %w", limit)); got != error(limit) {
		t.Errorf("%v", got)
	}
	if w.session.SeenError(nil) != nil {
		t.Error("an error of none")
	}
}

// TestRemarksAreForTheOperator: what a backend remarks of a complete answer is in the report of who
// may see everything, and neither there nor in the log of anybody else.
func TestRemarksAreForTheOperator(t *testing.T) {
	for _, g := range []*access.Grant{access.Everything(), tenant("a")} {
		b := fakestore.Holding(labels.EmptyLabels(), one("m", "1", "tenant", "a"))
		b.Wrap = fakestore.Then(9, func(_ context.Context, yield func(*backend.Batch, error) bool) {
			yield(backend.NewNotices(backend.Notice{Kind: backend.NoticeInfo, Text: "resolution: 5m"}), nil)
		})
		w := granted(t, g, member("b", b))
		var log bytes.Buffer
		w.session.Logger = slog.New(slog.NewTextHandler(&log, nil))
		for _, err := range w.session.Stream(t.Context(), request(), w.sel) {
			if err != nil {
				t.Fatal(err)
			}
		}
		want := []string(nil)
		if g.Admin {
			want = []string{"resolution: 5m"}
		}
		if row := w.sel.Backends[0]; !slices.Equal(row.Notices, want) || row.State != report.RowAnswered || log.Len() > 0 {
			t.Errorf("admin %v: %q, %s, log %q", g.Admin, row.Notices, row.State, log.String())
		}
	}
}
