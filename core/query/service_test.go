// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

var engines = []string{query.EnginePrometheus, query.EngineThanos}

// gauge is a series with a sample every 30 s from 0 to 1 h, whose value is v.
func gauge(v float64, kv ...string) backend.Series {
	var ts []int64
	var vs []float64
	for t := int64(0); t <= 3_600_000; t += 30_000 {
		ts, vs = append(ts, t), append(vs, v)
	}
	return fakestore.Floats(labels.FromStrings(kv...), ts, vs)
}

func spec(name string, b backend.Backend) membership.Entry {
	return membership.Entry{Spec: membership.Spec{Name: name, Kind: "fake"}, Backend: b}
}

func serve(t *testing.T, cfg query.Config, entries ...membership.Entry) (*query.Service, *membership.Set) {
	t.Helper()
	set := membership.New(entries, membership.Options{})
	set.Refresh(t.Context())
	if cfg.ReplicaLabels == nil {
		cfg.ReplicaLabels = []string{"replica"}
	}
	s, err := query.New(set, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close(); _ = s.Close() })
	return s, set
}

func at(minutes int) time.Time { return time.UnixMilli(int64(minutes) * 60_000) }

func text(v parser.Value) string { return v.String() }

func TestFaultsThroughEngines(t *testing.T) {
	faults := []struct {
		name   string
		wrap   func(context.Context, fakestore.Seq) fakestore.Seq
		reason report.Reason
	}{
		{"refuses", fakestore.Then(0, fakestore.Break(errors.New("refused"))), report.ReasonFailed},
		{"hangs", fakestore.Then(0, fakestore.Hang), report.ReasonTimeout},
		{"panics", fakestore.Then(0, fakestore.Panic), report.ReasonFailed},
		{"corrupt", func(_ context.Context, _ fakestore.Seq) fakestore.Seq {
			return func(yield func(*backend.Batch, error) bool) {
				b := backend.NewBatch(1)
				b.Append(backend.Series{Labels: labels.FromStrings("__name__", "up", "store", "bad"), Chunks: []backend.Chunk{
					{MinTime: 0, MaxTime: 3_600_000, Raw: backend.Encoded{Encoding: chunkenc.EncXOR, Data: []byte{0, 9, 1}}},
				}})
				yield(b, nil)
			}
		}, report.ReasonCorrupt},
	}
	for _, engine := range engines {
		for _, f := range faults {
			for _, kind := range []string{"instant", "range"} {
				for _, policy := range []string{"best-effort", "required", "no partial"} {
					t.Run(strings.Join([]string{engine, f.name, kind, policy}, "/"), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							bad := fakestore.Holding(labels.EmptyLabels(), gauge(2, "__name__", "up", "store", "bad"))
							bad.Wrap = f.wrap
							e := spec("bad", bad)
							e.Required = policy == "required"
							s, _ := serve(t, query.Config{Timeout: time.Minute}, spec("good", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "up", "store", "good"))), e)
							o := s.DefaultOptions()
							o.Engine, o.PartialResponse = engine, policy != "no partial"
							req := &query.Request{Query: `sum by (store) (up)`, Start: at(30), End: at(30), Options: o}
							ask := s.Instant
							if kind == "range" {
								ask, req.End, req.Step = s.Range, at(31), time.Minute
							}
							res, err := ask(t.Context(), req)
							if policy != "best-effort" {
								var x *query.Error
								if !errors.As(err, &x) || !strings.Contains(err.Error(), "bad") || x.Kind != query.ErrUnavailable || x.Report == nil {
									t.Fatalf("%v", err)
								}
								return
							}
							if err != nil {
								t.Fatal(err)
							}
							if got := text(res.Value); !strings.Contains(got, `{store="good"} =>`) || strings.Contains(got, "bad") {
								t.Errorf("%s", got)
							}
							if c := res.Report.Completeness; c.State != report.Partial || len(c.Missing) != 1 || c.Missing[0].Backend != "bad" || c.Missing[0].Reason != f.reason {
								t.Errorf("%+v", c)
							}
							res.Close()
						})
					})
				}
			}
		}
	}
}

func TestErrorKinds(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "up"))
				s, _ := serve(t, query.Config{Timeout: time.Minute, Limits: limits.NewProcess(limits.Config{Samples: 50})}, spec("a", slow))
				o := s.DefaultOptions()
				o.Engine = engine
				run := func(q string, change func(*query.Request)) error {
					req := &query.Request{Query: q, Start: at(30), End: at(30), Options: o}
					if change != nil {
						change(req)
					}
					_, err := s.Instant(t.Context(), req)
					return err
				}
				check := func(what string, err, kind error, words ...string) {
					t.Helper()
					var x *query.Error
					if !errors.As(err, &x) || x.Kind != kind {
						t.Errorf("%s: %v, want kind %v", what, err, kind)
						return
					}
					for _, w := range words {
						if !strings.Contains(err.Error(), w) {
							t.Errorf("%s: %q does not say %q", what, err, w)
						}
					}
				}
				check("empty", run(" ", nil), query.ErrBadData)
				check("syntax", run("up{", nil), query.ErrBadData)
				check("engine", run("up", func(r *query.Request) { r.Engine = "fast" }), query.ErrBadData, "fast", query.EngineThanos)
				check("limit", run("up", nil), query.ErrExecution, "query.limits.samples", "50")
				_, err := s.Range(t.Context(), &query.Request{Query: "up", Start: at(1), End: at(2), Options: o})
				check("step", err, query.ErrBadData)
				_, err = s.Range(t.Context(), &query.Request{Query: "up", Start: at(2), End: at(1), Step: 1, Options: o})
				check("order", err, query.ErrBadData)
				ctx, cancel := context.WithCancel(t.Context())
				slow.Wrap = fakestore.Then(0, func(ctx context.Context, yield func(*backend.Batch, error) bool) {
					cancel()
					fakestore.Hang(ctx, yield)
				})
				_, err = s.Instant(ctx, &query.Request{Query: "up", Start: at(30), End: at(30), Options: o})
				check("client left", err, query.ErrCanceled)
			})
		})
	}
	if _, err := query.New(membership.New(nil, membership.Options{}), query.Config{Engine: "fast"}); err == nil {
		t.Error("unknown engine in the configuration")
	}
}

// TestDeafHangIsPartial: a hang that ignores its context costs its own share,
// and the request comes back in its time.
func TestDeafHangIsPartial(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				bad := fakestore.Holding(labels.EmptyLabels())
				bad.Wrap = fakestore.Then(0, fakestore.HangDeaf(release, nil))
				s, _ := serve(t, query.Config{}, spec("bad", bad), spec("good", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "up"))))
				o := s.DefaultOptions()
				o.Engine, o.Timeout = engine, 2*time.Second
				begin := time.Now()
				res, err := s.Instant(t.Context(), &query.Request{Query: "up", Start: at(30), End: at(30), Options: o})
				if err != nil {
					t.Fatal(err)
				}
				if d := time.Since(begin); d > 2*time.Second || res.Report.Completeness.State != report.Partial || !strings.Contains(text(res.Value), "=> 1") {
					t.Errorf("after %v: %s, %s", d, text(res.Value), res.Report.Completeness)
				}
				close(release)
				synctest.Wait()
			})
		})
	}
}

func TestFallbackIsReported(t *testing.T) {
	s, _ := serve(t, query.Config{Engine: query.EngineThanos}, spec("a", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "up"))))
	for q, fallback := range map[string]bool{"up": false, "sum(up)": false, "up[5m]": true, `"text"`: true} {
		res, err := s.Instant(t.Context(), &query.Request{Query: q, Start: at(30), End: at(30), Options: s.DefaultOptions()})
		if err != nil {
			t.Fatal(err)
		}
		want := query.EngineThanos
		if fallback {
			want = query.EnginePrometheus
		}
		if r := res.Report; r.Engine != want || (r.EngineFallback != "") != fallback {
			t.Errorf("%s: engine %s, fallback %q", q, r.Engine, r.EngineFallback)
		}
		res.Close()
	}
}

func TestExplainAsksNobody(t *testing.T) {
	for _, step := range []time.Duration{0, time.Minute, time.Hour} {
		a := fakestore.Holding(labels.FromStrings("cluster", "eu1"), gauge(1, "__name__", "up"))
		b := fakestore.Holding(labels.FromStrings("cluster", "us1"), gauge(1, "__name__", "up"))
		s, _ := serve(t, query.Config{AutoDownsampling: true}, spec("a", a), spec("b", b))
		req := &query.Request{Query: `rate(up{cluster="eu1"}[5m] offset 1m) + on(cluster) max_over_time(up[10m:1m]) or up`, Start: at(30), End: at(30), Options: s.DefaultOptions()}
		ask := s.Instant
		if step > 0 {
			ask, req.Step, req.End = s.Range, step, at(40)
		}
		plan, err := s.Explain(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if n := a.Calls.Load() + b.Calls.Load(); n != 0 {
			t.Errorf("%d calls", n)
		}
		res, err := ask(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		rows := func(r *report.Report) (out []string) {
			for _, sel := range r.Selects {
				x := fmt.Sprint(sel.Matchers, sel.MinTime, sel.MaxTime, sel.Func, sel.MaxResolution, sel.Aggregates)
				for _, row := range sel.Backends {
					x += fmt.Sprint(" ", row.Backend, row.State == report.RowPruned, row.Reason)
				}
				out = append(out, x)
			}
			slices.Sort(out) // selections are under way together
			return out
		}
		if d := cmp.Diff(rows(res.Report), rows(plan)); d != "" || len(plan.Selects) != 3 {
			t.Errorf("step %v: plan (-query +explain):\n%s", step, d)
		}
	}
}

func TestUnknownBeforeFirstRefresh(t *testing.T) {
	set := membership.New([]membership.Entry{spec("a", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "up")))}, membership.Options{})
	s, err := query.New(set, query.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { set.Close(); _ = s.Close() }()
	ask := func() *query.Result {
		res, err := s.Instant(t.Context(), &query.Request{Query: "up", Start: at(30), End: at(30), Options: s.DefaultOptions()})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	res := ask()
	if res.Report.Completeness.State != report.Unknown || !strings.Contains(text(res.Value), "=> 1") || len(res.Report.Completeness.Warnings()) != 1 {
		t.Errorf("%s: %s", res.Report.Completeness, text(res.Value))
	}
	set.Refresh(t.Context())
	if res = ask(); res.Report.Completeness.State != report.Complete {
		t.Errorf("%s", res.Report.Completeness)
	}
}

func TestRegisteredTwice(t *testing.T) {
	reg := prometheus.NewRegistry()
	set := membership.New(nil, membership.Options{})
	for i := range 2 {
		s, err := query.New(set, query.Config{Registerer: reg})
		if i == 0 && err != nil || i == 1 && err == nil {
			t.Errorf("service %d: %v", i, err)
		}
		if s != nil {
			defer s.Close()
		}
	}
	if _, err := reg.Gather(); err != nil {
		t.Error(err)
	}
}

func matchers(t *testing.T, s string) []*labels.Matcher {
	t.Helper()
	ms, err := parser.ParseMetricSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return ms
}

func twoReplicas(t *testing.T) *query.Service {
	a := fakestore.Holding(labels.FromStrings("cluster", "eu1", "replica", "a"), gauge(1, "__name__", "up", "job", "x"), gauge(2, "__name__", "up", "job", "y"))
	b := fakestore.Holding(labels.FromStrings("cluster", "eu1", "replica", "b"), gauge(1, "__name__", "up", "job", "x"), gauge(3, "__name__", "down", "job", "z"))
	c := fakestore.Holding(labels.FromStrings("cluster", "us1"), gauge(4, "__name__", "up", "job", "x"))
	s, _ := serve(t, query.Config{}, spec("a", a), spec("b", b), spec("c", c))
	return s
}

func TestSeriesAndLabels(t *testing.T) {
	s := twoReplicas(t)
	for _, c := range []struct {
		what   string
		change func(*query.MetaRequest)
		series []string
	}{
		{"dedup", nil, []string{
			`{__name__="down", cluster="eu1", job="z"}`, `{__name__="up", cluster="eu1", job="x"}`, `{__name__="up", cluster="eu1", job="y"}`, `{__name__="up", cluster="us1", job="x"}`,
		}},
		{"no dedup", func(r *query.MetaRequest) { r.Dedup = false; r.Matchers = r.Matchers[:1] }, []string{
			`{__name__="up", cluster="eu1", job="x", replica="a"}`, `{__name__="up", cluster="eu1", job="x", replica="b"}`,
			`{__name__="up", cluster="eu1", job="y", replica="a"}`, `{__name__="up", cluster="us1", job="x"}`,
		}},
		{"other replica labels", func(r *query.MetaRequest) {
			r.ReplicaLabels = []string{"cluster", "replica"}
			r.Matchers = r.Matchers[:1]
		}, []string{
			`{__name__="up", job="x"}`, `{__name__="up", job="y"}`,
		}},
		{"external labels only", func(r *query.MetaRequest) { r.Matchers = [][]*labels.Matcher{matchers(t, `{cluster="us1"}`)} }, []string{
			`{__name__="up", cluster="us1", job="x"}`,
		}},
		{"store match", func(r *query.MetaRequest) { r.StoreMatch = [][]*labels.Matcher{matchers(t, `{__address__="c"}`)} }, []string{
			`{__name__="up", cluster="us1", job="x"}`,
		}},
		{"all", func(r *query.MetaRequest) { r.Matchers = nil }, []string{
			`{__name__="down", cluster="eu1", job="z"}`, `{__name__="up", cluster="eu1", job="x"}`, `{__name__="up", cluster="eu1", job="y"}`, `{__name__="up", cluster="us1", job="x"}`,
		}},
		{"no match", func(r *query.MetaRequest) { r.Matchers = [][]*labels.Matcher{matchers(t, `nothing`)} }, nil},
		{"out of time", func(r *query.MetaRequest) { r.Start, r.End = at(100), at(101) }, nil},
	} {
		for limit := range len(c.series) + 2 {
			req := &query.MetaRequest{Start: at(0), End: at(60), Matchers: [][]*labels.Matcher{matchers(t, `up`), matchers(t, `{job=~"x|z"}`)}, Limit: limit, Options: s.DefaultOptions()}
			if c.change != nil {
				c.change(req)
			}
			want, cut := c.series, false
			if limit > 0 && limit < len(want) {
				want, cut = want[:limit], true
			}
			res, err := s.Series(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, l := range res.Series {
				got = append(got, l.String())
			}
			if d := cmp.Diff(want, got); d != "" || res.Truncated != cut || res.Report.Completeness.State != report.Complete {
				t.Errorf("%s, limit %d, truncated %v, %s: %s", c.what, limit, res.Truncated, res.Report.Completeness, d)
			}
		}
	}
	for n := range 12 {
		limit, deduplicated := n%6, n >= 6
		names := []string{"__name__", "cluster", "job", "replica"}
		if deduplicated {
			names = names[:3]
		}
		req := &query.MetaRequest{Name: "job", Start: at(0), End: at(60), Limit: limit, Options: s.DefaultOptions(), Matchers: [][]*labels.Matcher{matchers(t, `up`), matchers(t, `down`)}}
		req.Dedup = deduplicated
		for _, c := range []struct {
			want []string
			call func(context.Context, *query.MetaRequest) (*query.LabelsResult, error)
		}{{[]string{"x", "y", "z"}, s.LabelValues}, {names, s.LabelNames}} {
			res, err := c.call(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			want, cut := c.want, limit > 0 && limit < len(c.want)
			if cut {
				want = want[:limit]
			}
			if d := cmp.Diff(want, res.Values); d != "" || res.Truncated != cut {
				t.Errorf("limit %d, truncated %v: %s", limit, res.Truncated, d)
			}
		}
	}
	if _, err := s.LabelValues(t.Context(), &query.MetaRequest{Options: s.DefaultOptions()}); err == nil {
		t.Error("no name")
	}
}

// TestBadLabelLists: label names and values are checked as label sets are.
func TestBadLabelLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := &fakestore.Script{
			OnNames: func(context.Context, *backend.LabelNamesRequest) (*backend.Labels, error) {
				return &backend.Labels{Values: []string{"a", "\xff"}}, nil
			},
			OnValues: func(context.Context, *backend.LabelValuesRequest) (*backend.Labels, error) { return nil, nil },
		}
		s, _ := serve(t, query.Config{}, spec("bad", bad), spec("good", fakestore.Holding(labels.EmptyLabels(), gauge(1, "job", "x"))))
		req := &query.MetaRequest{Name: "job", Start: at(0), End: at(60), Options: s.DefaultOptions()}
		for i, call := range []func(context.Context, *query.MetaRequest) (*query.LabelsResult, error){s.LabelNames, s.LabelValues} {
			req.PartialResponse = true
			res, err := call(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if c := res.Report.Completeness; len(res.Values) != 1 || len(c.Missing) != 1 || c.Missing[0].Backend != "bad" || i == 0 && c.Missing[0].Reason != report.ReasonProtocol {
				t.Errorf("%q, %+v", res.Values, c)
			}
			req.PartialResponse = false
			if _, err := call(t.Context(), req); err == nil || !strings.Contains(err.Error(), "bad") {
				t.Errorf("%v", err)
			}
		}
	})
}

func TestShardsSumUp(t *testing.T) {
	s := twoReplicas(t)
	for _, engine := range engines {
		o := s.DefaultOptions()
		o.Engine = engine
		run := func(o query.Options) (out []string) {
			res, err := s.Instant(t.Context(), &query.Request{Query: `up`, Start: at(30), End: at(30), Options: o})
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range res.Value.(promql.Vector) {
				out = append(out, x.String())
			}
			return out
		}
		whole := run(o)
		var sum []string
		for i := range 3 {
			o.Shard = &backend.Shard{Index: int64(i), Total: 3}
			sum = append(sum, run(o)...)
		}
		slices.Sort(whole)
		slices.Sort(sum)
		if d := cmp.Diff(whole, sum); d != "" || len(whole) != 3 {
			t.Error(d)
		}
	}
}

func TestConcurrencyGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "up"))
		slow.Wrap = func(_ context.Context, seq fakestore.Seq) fakestore.Seq { time.Sleep(10 * time.Second); return seq }
		s, _ := serve(t, query.Config{Limits: limits.NewProcess(limits.Config{Concurrent: 1})}, spec("a", slow))
		o := s.DefaultOptions()
		begin := time.Now()
		done := make(chan error, 2)
		for range 2 {
			go func() {
				res, err := s.Instant(t.Context(), &query.Request{Query: "up", Start: at(30), End: at(30), Options: o})
				if res != nil {
					res.Close()
				}
				done <- err
			}()
		}
		synctest.Wait()
		o.Timeout = 5 * time.Second
		_, err := s.Instant(t.Context(), &query.Request{Query: "up", Start: at(30), End: at(30), Options: o})
		var x *query.Error
		if !errors.As(err, &x) || x.Kind != query.ErrUnavailable || !strings.Contains(err.Error(), "query.max_concurrent") {
			t.Errorf("%v", err)
		}
		if err := errors.Join(<-done, <-done); err != nil || time.Since(begin) != 20*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

func TestRead(t *testing.T) {
	s := twoReplicas(t)
	res, err := s.Read(t.Context(), &query.ReadRequest{MinTime: 60_000, MaxTime: 120_000, Matchers: matchers(t, `up{cluster="eu1"}`), Options: s.DefaultOptions()})
	if err != nil {
		t.Fatal(err)
	}
	n, samples := 0, 0
	for res.Series.Next() {
		n++
		for it := res.Series.At().Iterator(nil); it.Next() != chunkenc.ValNone; samples++ {
		}
	}
	rep, err := res.Finish()
	if err != nil || n != 2 || samples != 6 || rep.Completeness.State != report.Complete {
		t.Errorf("%d series, %d samples, %v", n, samples, err)
	}
}

// TestProxyOfUnknown: as long as one behind it has said nothing, a proxy cannot say what
// it has itself; what the configuration says of that one is not all there is to say.
func TestProxyOfUnknown(t *testing.T) {
	known := fakestore.Holding(labels.FromStrings("cluster", "eu1"))
	down := &fakestore.Script{OnInfo: func(context.Context) (backend.Info, error) { return backend.Info{}, errors.New("refused") }}
	e := spec("down", down)
	e.External = labels.FromStrings("cluster", "us1")
	s, _ := serve(t, query.Config{}, spec("known", known), e)
	info, err := s.Proxy().Info(t.Context())
	if err != nil || info.LabelSets != nil || info.MinTime != math.MinInt64 || info.MaxTime != math.MaxInt64 {
		t.Errorf("%+v, %v", info, err)
	}
	for _, r := range info.Ranges {
		if r.Labels.Get("cluster") != "eu1" {
			t.Errorf("a range of %s", r.Labels)
		}
	}
	if len(info.Ranges) == 0 {
		t.Error("no range of the one that is known")
	}
}

// TestProxy: all stores as one backend give what the stores give.
func TestProxy(t *testing.T) {
	s := twoReplicas(t)
	info, err := s.Proxy().Info(t.Context())
	if err != nil || len(info.LabelSets) != 3 || info.MinTime != math.MinInt64 || info.MaxTime != math.MaxInt64 {
		t.Errorf("%+v, %v", info, err)
	}
	if info.Capabilities.NativeHistograms || info.Capabilities.StaleMarkers {
		t.Error("claims what the backends behind it do not (rule I-3)")
	}
	above, _ := serve(t, query.Config{}, spec("proxy", s.Proxy()))
	for _, engine := range engines {
		for _, q := range []string{`up`, `sum by (cluster) (rate(up[5m]))`, `{cluster="eu1"}`, `count({__name__=~".+"})`} {
			var got [2]string
			for i, x := range []*query.Service{s, above} {
				o := x.DefaultOptions()
				o.Engine = engine
				res, err := x.Instant(t.Context(), &query.Request{Query: q, Start: at(30), End: at(30), Options: o})
				if err != nil {
					t.Fatal(err)
				}
				lines := strings.Split(text(res.Value), "\n")
				slices.Sort(lines)
				got[i] = strings.Join(lines, "\n")
			}
			if got[0] != got[1] || got[0] == "" {
				t.Errorf("%s: direct\n%s\nthrough a proxy\n%s", q, got[0], got[1])
			}
		}
	}
	var last labels.Labels
	n := 0
	for b, err := range s.Proxy().Series(t.Context(), &backend.SeriesRequest{MaxTime: 3_600_000, BatchSize: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Len() {
			if n++; n > 1 && labels.Compare(last, b.At(i).Labels) >= 0 {
				t.Errorf("%s after %s", b.At(i).Labels, last)
			}
			last = b.At(i).Labels
		}
	}
	if n != 5 {
		t.Errorf("%d series", n)
	}
	total := 0
	for i := range 4 {
		shard := &backend.Shard{Index: int64(i), Total: 4}
		for b, err := range s.Proxy().Series(t.Context(), &backend.SeriesRequest{MaxTime: 3_600_000, Shard: shard}) {
			if err != nil {
				t.Fatal(err)
			}
			for j := range b.Len() {
				if total++; !shaping.InShard(shard, b.At(j).Labels) {
					t.Errorf("%s is not in shard %d", b.At(j).Labels, i)
				}
			}
		}
	}
	if total != 5 {
		t.Errorf("shards hold %d series", total)
	}
}
