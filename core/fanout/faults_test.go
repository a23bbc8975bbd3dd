// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
)

// one is a series with a single sample at 1000 ms.
func one(kv ...string) backend.Series {
	return fakestore.Floats(labels.FromStrings(kv...), []int64{1000}, []float64{1})
}

func member(name string, b backend.Backend, ext ...string) *membership.Member {
	i := backend.AllTime()
	i.Capabilities.Completeness = true
	if len(ext) > 0 {
		i.LabelSets = []labels.Labels{labels.FromStrings(ext...)}
	}
	return membership.Always(name, "fake", b, i)
}

type world struct {
	session *fanout.Session
	process *limits.Process
	query   *limits.Query
	sel     *report.Select
}

func newWorld(t *testing.T, cfg limits.Config, partial bool, ms ...*membership.Member) *world {
	t.Helper()
	w := &world{process: limits.NewProcess(cfg), sel: &report.Select{}}
	var err error
	if w.query, err = w.process.Begin(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	w.session = fanout.NewSession(fanout.Options{
		View: membership.NewView(ms...), Limits: w.query, Partial: partial, ReplicaLabels: []string{"replica"},
	})
	return w
}

func request() *backend.SeriesRequest { return &backend.SeriesRequest{MinTime: 0, MaxTime: 10_000} }

// both runs a test through Collect and through Stream; ask returns the series as
// text, one for each piece of chunks, and the error.
func both(t *testing.T, f func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error))) {
	t.Run("collect", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f(t, func(ctx context.Context, w *world, req *backend.SeriesRequest) ([]string, error) {
				got, err := w.session.Collect(ctx, req, nil, w.sel)
				if err != nil {
					return nil, err
				}
				var out []string
				for _, s := range got.Series {
					n := 0
					for _, r := range s.Replicas {
						n += len(r.Chunks)
					}
					out = append(out, fmt.Sprint(s.Labels, " ", n))
				}
				return out, nil
			})
		})
	})
	t.Run("stream", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f(t, func(ctx context.Context, w *world, req *backend.SeriesRequest) (out []string, err error) {
				for b, err := range w.session.Stream(ctx, req, w.sel) {
					if err != nil {
						return nil, err
					}
					for i := range b.Len() {
						out = append(out, fmt.Sprint(b.At(i).Labels, " ", len(b.At(i).Chunks)))
					}
				}
				return out, nil
			})
		})
	})
}

func TestFaults(t *testing.T) {
	type fault struct {
		name   string
		make   func(release chan struct{}) backend.Backend
		reason report.Reason
		detail string
		// got is what of the bad one's own series counts: those before the fault.
		// Stream takes batches whole, so every case breaks between batches.
		got []string
		// hangs: the budget has to run out.
		hangs bool
	}
	good := []string{`{m="a"} 1`, `{m="c"} 1`}
	held := []backend.Series{one("m", "b"), one("m", "d")}
	wrap := func(n int, end func(context.Context, func(*backend.Batch, error) bool)) func(chan struct{}) backend.Backend {
		return func(chan struct{}) backend.Backend {
			s := fakestore.Holding(labels.EmptyLabels(), held...)
			s.BatchSize = 1
			s.Wrap = fakestore.Then(n, end)
			return s
		}
	}
	sends := func(batches ...[]backend.Series) func(chan struct{}) backend.Backend {
		return func(chan struct{}) backend.Backend { return fakestore.Sends(batches...) }
	}
	b := []backend.Series{one("m", "b")}
	bGot := []string{`{m="b"} 1`}
	faults := []fault{
		{"refuses", wrap(0, fakestore.Break(errors.New("connection refused"))), report.ReasonFailed, "connection refused", nil, false},
		{"breaks off", wrap(1, fakestore.Break(errors.New("reset by peer"))), report.ReasonFailed, "reset by peer", bGot, false},
		{"its own limit", wrap(1, fakestore.Break(backend.Errorf(backend.ErrLimit, "too much"))), report.ReasonLimit, "too much", bGot, false},
		{"panics", wrap(0, fakestore.Panic), report.ReasonFailed, "on purpose", nil, false},
		{"panics mid-stream", wrap(1, fakestore.Panic), report.ReasonFailed, "on purpose", bGot, false},
		{"hangs", wrap(0, fakestore.Hang), report.ReasonTimeout, "time budget", nil, true},
		{"hangs mid-stream", wrap(1, fakestore.Hang), report.ReasonTimeout, "time budget", bGot, true},
		{"hangs and conceals it", wrap(1, fakestore.HangSilently), report.ReasonTimeout, "time budget", bGot, true},
		{"hangs deaf", func(release chan struct{}) backend.Backend {
			s := fakestore.Holding(labels.EmptyLabels())
			late := backend.NewBatch(1)
			late.Append(one("m", "late"))
			late.Notify(backend.Notice{Kind: backend.NoticeMissing, Text: "late"})
			s.Wrap = fakestore.Then(0, fakestore.HangDeaf(release, late))
			return s
		}, report.ReasonTimeout, "time budget", nil, true},
		{"unsorted", sends(b, []backend.Series{one("m", "a")}), report.ReasonProtocol, "S-1", bGot, false},
		{"comes again", sends(b, []backend.Series{one("m", "d")}, b), report.ReasonProtocol, "S-1", []string{`{m="b"} 1`, `{m="d"} 1`}, false},
		{"bad UTF-8", sends(b, []backend.Series{{Labels: labels.FromStrings("m", "x\xff")}}), report.ReasonProtocol, "UTF-8", bGot, false},
		{"bad UTF-8 name", sends(b, []backend.Series{{Labels: labels.FromStrings("m\xff", "x")}}), report.ReasonProtocol, "UTF-8", bGot, false},
		{"empty value", sends(b, []backend.Series{{Labels: labels.FromStrings("m", "c", "n", "")}}), report.ReasonProtocol, "S-3", bGot, false},
		{"names twice", sends(b, []backend.Series{{Labels: labels.FromStrings("m", "c", "n", "1", "n", "2")}}), report.ReasonProtocol, "S-3", bGot, false},
		{"no batch", func(chan struct{}) backend.Backend {
			return &fakestore.Script{OnSeries: func(context.Context, *backend.SeriesRequest) fakestore.Seq {
				return func(yield func(*backend.Batch, error) bool) { yield(nil, nil) }
			}}
		}, report.ReasonFailed, "panic", nil, false},
		{"no sequence", func(chan struct{}) backend.Backend {
			return &fakestore.Script{OnSeries: func(context.Context, *backend.SeriesRequest) fakestore.Seq { return nil }}
		}, report.ReasonFailed, "panic", nil, false},
		{"says it is incomplete", func(chan struct{}) backend.Backend {
			s := fakestore.Holding(labels.EmptyLabels(), one("m", "b"))
			s.Wrap = fakestore.Then(9, func(_ context.Context, yield func(*backend.Batch, error) bool) {
				yield(backend.NewNotices(backend.Notice{Kind: backend.NoticeMissing, Text: "block 7 is unreadable"}), nil)
			})
			return s
		}, report.ReasonIncomplete, "block 7", bGot, false},
	}
	for _, f := range faults {
		for _, policy := range []string{"best-effort", "required", "no partial"} {
			t.Run(f.name+"/"+policy, func(t *testing.T) {
				both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
					release := make(chan struct{})
					bad := member("bad", f.make(release))
					bad.Timeout = 3 * time.Second
					bad.Required = policy == "required"
					w := newWorld(t, limits.Config{}, policy != "no partial", member("good", fakestore.Holding(labels.EmptyLabels(), one("m", "a"), one("m", "c"))), bad)
					begin := time.Now()
					got, err := ask(t.Context(), w, request())
					switch d := time.Since(begin); {
					case !f.hangs && d != 0:
						t.Errorf("took %v", d)
					case f.hangs && (d < 3*time.Second || d > 4*time.Second):
						t.Errorf("took %v with a budget of 3s", d)
					}
					row := w.sel.Backends[1]
					if policy == "best-effort" {
						if err != nil {
							t.Fatal(err)
						}
						want := append([]string(nil), good...)
						want = append(want, f.got...)
						sortStrings(want)
						if d := cmp.Diff(want, got); d != "" {
							t.Errorf("series (-want +got):\n%s", d)
						}
						c := w.session.Completeness()
						if c.State != report.Partial || len(c.Missing) != 1 || c.Missing[0].Backend != "bad" || c.Missing[0].Reason != f.reason {
							t.Errorf("completeness %+v, want partial for reason %s", c, f.reason)
						}
						if ws := c.Warnings(); len(ws) != 1 || !strings.Contains(ws[0], "bad") || !strings.Contains(ws[0], f.detail) {
							t.Errorf("warnings %q have to name the backend and %q", ws, f.detail)
						}
						if st := w.sel.Backends[0].State; st != report.RowAnswered {
							t.Errorf("the good one: %s", st)
						}
					} else {
						var missing *fanout.MissingError
						if !errors.As(err, &missing) || missing.Missing.Backend != "bad" || missing.Required != (policy == "required") || !strings.Contains(err.Error(), "bad") {
							t.Errorf("error %v has to name the backend", err)
						}
					}
					if row.Reason != f.reason || row.Total != time.Since(begin).Seconds() {
						t.Errorf("row %+v", row)
					}
					// Whatever comes late changes nothing: the report is out.
					before, _ := json.Marshal(w.sel)
					bytes := w.process.Bytes()
					w.query.End()
					close(release)
					synctest.Wait()
					if after, _ := json.Marshal(w.sel); string(after) != string(before) {
						t.Errorf("the report changed afterwards:\n%s\n%s", before, after)
					}
					if w.process.Bytes() != 0 {
						t.Errorf("%d bytes stay charged, were %d", w.process.Bytes(), bytes)
					}
				})
			})
		}
	}
}

func sortStrings(s []string) {
	for i := range s {
		for j := i; j > 0 && s[j] < s[j-1]; j-- {
			s[j], s[j-1] = s[j-1], s[j]
		}
	}
}

// TestManyHang: the time of a request must not grow with the number of backends
// that hang, even deaf ones.
func TestManyHang(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		release := make(chan struct{})
		defer close(release)
		ms := []*membership.Member{member("good", fakestore.Sends([]backend.Series{one("m", "a")}))}
		for i := range 10 {
			s := fakestore.Holding(labels.EmptyLabels())
			s.Wrap = fakestore.Then(0, fakestore.HangDeaf(release, nil))
			m := member(fmt.Sprint("z", i), s)
			m.Timeout = 2 * time.Second
			ms = append(ms, m)
		}
		w := newWorld(t, limits.Config{}, true, ms...)
		begin := time.Now()
		got, err := ask(t.Context(), w, request())
		if d := time.Since(begin); err != nil || len(got) != 1 || d > 3*time.Second {
			t.Errorf("%v after %v: %v", got, d, err)
		}
	})
}

// TestDeadlineShare: a backend without a timeout of its own leaves time for the
// answer of the others, however short the request's deadline and deaf it is.
func TestDeadlineShare(t *testing.T) {
	for _, timeout := range []time.Duration{time.Second, 10 * time.Second, time.Minute} {
		for _, deaf := range []bool{false, true} {
			t.Run(fmt.Sprint(timeout, deaf), func(t *testing.T) {
				both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
					release := make(chan struct{})
					defer close(release)
					end := fakestore.Hang
					if deaf {
						end = fakestore.HangDeaf(release, nil)
					}
					s := fakestore.Holding(labels.EmptyLabels())
					s.Wrap = fakestore.Then(0, end)
					w := newWorld(t, limits.Config{}, true, member("good", fakestore.Sends([]backend.Series{one("m", "a")})), member("hangs", s))
					ctx, cancel := context.WithTimeout(t.Context(), timeout)
					defer cancel()
					got, err := ask(ctx, w, request())
					if err != nil || len(got) != 1 || ctx.Err() != nil {
						t.Errorf("%v, %v, the request's context: %v", got, err, ctx.Err())
					}
					if c := w.session.Completeness(); c.State != report.Partial || c.Missing[0].Reason != report.ReasonTimeout {
						t.Errorf("%+v", c)
					}
				})
			})
		}
	}
}

// TestFailFast: what cannot become an answer is called off at once.
func TestFailFast(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		slow := fakestore.Holding(labels.EmptyLabels())
		slow.Wrap = fakestore.Then(0, fakestore.Hang)
		bad := member("bad", backend.Unimplemented{})
		bad.Required = true
		w := newWorld(t, limits.Config{}, true, bad, member("slow", slow))
		begin := time.Now()
		_, err := ask(t.Context(), w, request())
		var missing *fanout.MissingError
		if d := time.Since(begin); d != 0 || !errors.As(err, &missing) || missing.Missing.Backend != "bad" {
			t.Errorf("after %v: %v", d, err)
		}
	})
}

// TestClientLeaves: a cancelled request is an error of its own and blames nobody.
func TestClientLeaves(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		s := fakestore.Holding(labels.EmptyLabels())
		s.Wrap = fakestore.Then(0, fakestore.Hang)
		w := newWorld(t, limits.Config{}, true, member("a", s))
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("the client went away")
		time.AfterFunc(time.Second, func() { cancel(gone) })
		if _, err := ask(ctx, w, request()); !errors.Is(err, gone) {
			t.Errorf("%v", err)
		}
	})
}

func TestLimitsWhileArriving(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  limits.Config
	}{
		{"query.limits.series", limits.Config{Series: 3}},
		{"query.limits.samples", limits.Config{Samples: 3}},
		{"query.limits.bytes", limits.Config{Bytes: 500}},
		{"query.limits.process_bytes", limits.Config{ProcessBytes: 500}},
	} {
		t.Run(c.name, func(t *testing.T) {
			both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
				var pulled, over atomic.Int64
				var w *world
				endless := &fakestore.Script{OnSeries: func(context.Context, *backend.SeriesRequest) fakestore.Seq {
					return func(yield func(*backend.Batch, error) bool) {
						for i := range 10_000 {
							for _, u := range w.query.Use() {
								if u.Limit > 0 && u.Used > u.Limit {
									over.Add(1)
									break
								}
							}
							pulled.Add(1)
							b := backend.NewBatch(1)
							b.Append(one("m", fmt.Sprintf("%08d", i)))
							if !yield(b, nil) {
								return
							}
						}
					}
				}}
				w = newWorld(t, c.cfg, true, member("a", endless))
				_, err := ask(t.Context(), w, request())
				var x *limits.Exceeded
				if !errors.As(err, &x) || x.Name != c.name || !errors.Is(err, backend.ErrLimit) {
					t.Fatalf("%v", err)
				}
				for _, want := range []string{c.name, fmt.Sprint(x.Limit), "raise it"} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q does not say %q", err, want)
					}
				}
				if over.Load() > 0 || pulled.Load() > 10 {
					t.Errorf("%d batches were pulled, %d of them after the limit", pulled.Load(), over.Load())
				}
				w.query.End()
				if w.process.Bytes() != 0 {
					t.Errorf("%d bytes stay charged", w.process.Bytes())
				}
			})
		})
	}
}

// TestLimitStaysTheCause: a backend that does not heed the end of its sequence
// panics in the runtime, and that must not hide the refusal.
func TestLimitStaysTheCause(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		stubborn := &fakestore.Script{OnSeries: func(context.Context, *backend.SeriesRequest) fakestore.Seq {
			return func(yield func(*backend.Batch, error) bool) {
				for i := range 10 {
					b := backend.NewBatch(1)
					b.Append(one("m", fmt.Sprint(i)))
					yield(b, nil)
				}
			}
		}}
		w := newWorld(t, limits.Config{Series: 3}, true, member("a", stubborn))
		_, err := ask(t.Context(), w, request())
		if !errors.Is(err, backend.ErrLimit) {
			t.Errorf("%v", err)
		}
	})
}

func TestEarlyBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Int64
		endless := func() backend.Backend {
			return &fakestore.Script{OnSeries: func(context.Context, *backend.SeriesRequest) fakestore.Seq {
				return func(yield func(*backend.Batch, error) bool) {
					defer ended.Add(1)
					for i := 0; ; i++ {
						b := backend.NewBatch(1)
						b.Append(one("m", fmt.Sprintf("%08d", i)))
						if !yield(b, nil) {
							return
						}
					}
				}
			}}
		}
		w := newWorld(t, limits.Config{}, true, member("a", endless()), member("b", endless()))
		req := request()
		req.BatchSize = 1
		n := 0
		for range w.session.Stream(t.Context(), req, w.sel) {
			if n++; n == 3 {
				break
			}
		}
		if ended.Load() != 2 {
			t.Errorf("%d of 2 backends are done after the consumer left", ended.Load())
		}
		for _, r := range w.sel.Backends {
			if r.State != report.RowCancelled || r.Reason != "" {
				t.Errorf("%s is %q for reason %q, want cancelled for none", r.Backend, r.State, r.Reason)
			}
		}
	})
}

// TestStreamLimitTellsWhatIsMissing: a limit cuts series, not the notice that a
// backend whose series might have been among them is missing.
func TestStreamLimitTellsWhatIsMissing(t *testing.T) {
	w := newWorld(t, limits.Config{}, true,
		member("bad", backend.Unimplemented{}),
		member("good1", fakestore.Holding(labels.EmptyLabels(), one("m", "a"), one("m", "c"), one("m", "e"))),
		member("good2", fakestore.Holding(labels.EmptyLabels(), one("m", "b"), one("m", "d"))))
	req := request()
	req.Limit = 2
	n, notices := 0, 0
	for b, err := range w.session.Stream(t.Context(), req, w.sel) {
		if err != nil {
			t.Fatal(err)
		}
		n += b.Len()
		for _, x := range b.Notices() {
			if x.Kind == backend.NoticeMissing && strings.Contains(x.Text, "bad") {
				notices++
			}
		}
	}
	if n != 2 || notices != 1 {
		t.Errorf("%d series and %d notices, want 2 and 1", n, notices)
	}
	if c := w.session.Completeness(); len(c.Missing) != 1 {
		t.Errorf("only the bad one is missing, not what a limit cut: %+v", c)
	}
}

func TestCovered(t *testing.T) {
	ok := func() backend.Backend { return fakestore.Sends([]backend.Series{one("m", "a")}) }
	gap := fakestore.Holding(labels.EmptyLabels(), one("m", "a"))
	gap.Wrap = fakestore.Then(9, func(_ context.Context, yield func(*backend.Batch, error) bool) {
		yield(backend.NewNotices(backend.Notice{Kind: backend.NoticeMissing, Text: "gap"}), nil)
	})
	for _, c := range []struct {
		name    string
		other   *membership.Member
		covered bool
	}{
		{"a replica that answered", member("b", ok(), "cluster", "eu1", "replica", "b"), true},
		{"a replica that failed", member("b", backend.Unimplemented{}, "cluster", "eu1", "replica", "b"), false},
		{"a replica with a gap", member("b", gap, "cluster", "eu1", "replica", "b"), false},
		{"another cluster", member("b", ok(), "cluster", "us1", "replica", "b"), false},
		{"no replica label", member("b", ok(), "cluster", "eu1"), false},
		{"one that cannot say", member("b", ok()), false},
		{"a replica with less time", func() *membership.Member {
			m := member("b", ok(), "cluster", "eu1", "replica", "b")
			m.Info.MinTime = 5000
			return m
		}(), false},
	} {
		for _, how := range []string{"failed", "unhealthy", "gone"} {
			for _, partial := range []bool{true, false} {
				t.Run(fmt.Sprint(c.name, "/", how, "/", partial), func(t *testing.T) {
					a := member("a", backend.Unimplemented{}, "cluster", "eu1", "replica", "a")
					switch how {
					case "unhealthy":
						a.Healthy, a.LastError = false, "refused"
					case "gone":
						a.Healthy, a.Gone = false, "not in DNS"
					}
					w := newWorld(t, limits.Config{}, partial, a, c.other)
					_, err := w.session.Collect(t.Context(), request(), nil, w.sel)
					if !partial && !c.covered {
						if err == nil {
							t.Error("no error")
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					got := w.session.Completeness()
					if c.covered != (got.State == report.Complete) || c.covered != (len(got.Covered) == 1 && len(got.Infos()) == 1 && len(got.Missing) == 0 && len(got.Warnings()) == 0) {
						t.Errorf("%+v", got)
					}
				})
			}
		}
	}
	t.Run("required is required", func(t *testing.T) {
		a := member("a", backend.Unimplemented{}, "cluster", "eu1", "replica", "a")
		a.Required = true
		w := newWorld(t, limits.Config{}, true, a, member("b", ok(), "cluster", "eu1", "replica", "b"))
		if _, err := w.session.Collect(t.Context(), request(), nil, w.sel); err == nil {
			t.Error("no error")
		}
	})
}

func TestOnPeersWord(t *testing.T) {
	m := member("a", fakestore.Sends())
	m.Info.Capabilities.Completeness = false
	w := newWorld(t, limits.Config{}, true, m, member("b", fakestore.Sends()))
	if _, err := w.session.Collect(t.Context(), request(), nil, w.sel); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(report.Completeness{State: report.Complete, OnPeersWord: []string{"a"}}, w.session.Completeness()); d != "" {
		t.Error(d)
	}
}

// TestCorruptIsReportedLate: chunks are decoded while the query is evaluated.
func TestCorruptIsReportedLate(t *testing.T) {
	for _, partial := range []bool{true, false} {
		w := newWorld(t, limits.Config{}, partial, member("a", fakestore.Sends([]backend.Series{one("m", "a")})), member("b", fakestore.Sends([]backend.Series{one("m", "b")})))
		got, err := w.session.Collect(t.Context(), request(), nil, w.sel)
		if err != nil {
			t.Fatal(err)
		}
		if c := w.session.Completeness(); c.State != report.Complete {
			t.Errorf("%+v", c)
		}
		got.Corrupt(got.Series[1].Replicas[0].Chunks[0].Origin, errors.New("bad bits"))
		c := w.session.Completeness()
		if len(c.Missing) != 1 || c.Missing[0].Backend != "b" || c.Missing[0].Reason != report.ReasonCorrupt || c.Missing[0].Detail != "bad bits" {
			t.Errorf("%+v", c)
		}
		if err := w.session.Failure(); (err == nil) != partial || err != nil && !strings.Contains(err.Error(), "b: corrupt") {
			t.Errorf("partial %v: %v", partial, err)
		}
	}
}

func TestNothing(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		w := newWorld(t, limits.Config{}, false)
		if got, err := ask(t.Context(), w, request()); err != nil || len(got) != 0 {
			t.Errorf("no members: %v, %v", got, err)
		}
		w = newWorld(t, limits.Config{}, false, member("a", fakestore.Sends(nil, []backend.Series{one("m", "a")}, nil, nil, []backend.Series{one("m", "b")}, nil)), member("b", fakestore.Sends(nil, nil)))
		got, err := ask(t.Context(), w, request())
		if d := cmp.Diff([]string{`{m="a"} 1`, `{m="b"} 1`}, got); err != nil || d != "" {
			t.Errorf("empty batches: %v %s", err, d)
		}
		asked := &fakestore.Script{OnSeries: func(context.Context, *backend.SeriesRequest) fakestore.Seq {
			t.Error("asked for an empty range")
			return backend.None()
		}}
		w = newWorld(t, limits.Config{}, false, member("a", asked))
		if got, err := ask(t.Context(), w, &backend.SeriesRequest{MinTime: 2, MaxTime: 1}); err != nil || len(got) != 0 {
			t.Errorf("empty range: %v, %v", got, err)
		}
	})
}

// TestPiecesAndDuplicates: one series in pieces over batches, from two backends
// that hold some chunks alike.
func TestPiecesAndDuplicates(t *testing.T) {
	at := func(ts ...int64) backend.Series {
		return fakestore.Floats(labels.FromStrings("m", "a"), ts, make([]float64, len(ts)))
	}
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		a := fakestore.Sends([]backend.Series{at(1, 2)}, nil, []backend.Series{at(3), at(4, 5)}, []backend.Series{at(9), one("m", "b")})
		b := fakestore.Sends([]backend.Series{at(3), at(4, 6)}, []backend.Series{one("m", "b"), one("m", "c")})
		w := newWorld(t, limits.Config{}, true, member("a", a), member("b", b))
		got, err := ask(t.Context(), w, request())
		if d := cmp.Diff([]string{`{m="a"} 5`, `{m="b"} 1`, `{m="c"} 1`}, got); err != nil || d != "" {
			t.Errorf("%v %s", err, d)
		}
	})
}

// TestStripping: taking replica labels away changes the order of series.
func TestStripping(t *testing.T) {
	s := []backend.Series{
		one("a", "1", "q", "1", "replica", "x"), one("a", "1", "q", "1", "replica", "y"),
		one("a", "1", "replica", "x"), one("a", "1", "replica", "x", "z", "1"), one("a", "1", "replica", "y"), one("a", "2"), one("a", "2", "replica", "x"),
	}
	w := newWorld(t, limits.Config{}, true, member("s", fakestore.Sends(s[:3], s[3:])))
	got, err := w.session.Collect(t.Context(), request(), []string{"replica"}, w.sel)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, x := range got.Series {
		out = append(out, fmt.Sprint(x.Labels, " ", len(x.Replicas)))
	}
	if d := cmp.Diff([]string{`{a="1"} 2`, `{a="1", q="1"} 2`, `{a="1", z="1"} 1`, `{a="2"} 2`}, out); d != "" {
		t.Error(d)
	}
	if w.sel.Dedup.SeriesBefore != 7 || w.sel.Dedup.SeriesAfter != 4 {
		t.Errorf("%+v", w.sel.Dedup)
	}
	// The same through Stream, where it is a compensated ability.
	w = newWorld(t, limits.Config{}, true, member("s", fakestore.Sends(s[:3], s[3:])))
	req := request()
	req.WithoutReplicaLabels = []string{"replica"}
	out = nil
	for b, err := range w.session.Stream(t.Context(), req, w.sel) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Len() {
			out = append(out, b.At(i).Labels.String())
		}
	}
	if d := cmp.Diff([]string{`{a="1"}`, `{a="1", q="1"}`, `{a="1", z="1"}`, `{a="2"}`}, out); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"without_replica_labels"}, w.sel.Backends[0].Compensated); d != "" {
		t.Error(d)
	}
}

func TestWindowCutsRequests(t *testing.T) {
	var got *backend.SeriesRequest
	m := member("a", &fakestore.Script{OnSeries: func(_ context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
		got = req
		return backend.None()
	}})
	m.AskMin, m.AskMax = 100, 200
	w := newWorld(t, limits.Config{}, true, m)
	req := request()
	if _, err := w.session.Collect(t.Context(), req, nil, w.sel); err != nil {
		t.Fatal(err)
	}
	if got.MinTime != 100 || got.MaxTime != 200 || !got.PartialAllowed {
		t.Errorf("%+v", got)
	}
	if req.MinTime != 0 || req.MaxTime != 10_000 {
		t.Error("the caller's request was changed")
	}
}

// TestReplicaOrder: replicas come in order of their label values and each once,
// whichever stores hold parts of them and in whatever order those are asked.
func TestReplicaOrder(t *testing.T) {
	at := func(replica string, ts int64) backend.Series {
		return fakestore.Floats(labels.FromStrings("m", "a", "replica", replica), []int64{ts}, []float64{1})
	}
	first, second := fakestore.Sends([]backend.Series{at("b", 1), at("c", 2)}), fakestore.Sends([]backend.Series{at("a", 3), at("b", 4), at("c", 5)})
	for _, ms := range [][]*membership.Member{{member("1", first), member("2", second)}, {member("2", second), member("1", first)}} {
		w := newWorld(t, limits.Config{}, true, ms...)
		got, err := w.session.Collect(t.Context(), request(), []string{"replica"}, w.sel)
		if err != nil || len(got.Series) != 1 {
			t.Fatal(got.Series, err)
		}
		var times [][]int64
		for _, r := range got.Series[0].Replicas {
			var ts []int64
			for _, c := range r.Chunks {
				ts = append(ts, c.MinTime)
			}
			times = append(times, ts)
		}
		if d := cmp.Diff([][]int64{{3}, {1, 4}, {2, 5}}, times); d != "" {
			t.Error(d)
		}
	}
}

// TestMatchersAreChecked: a backend that anybody may have written is told from one that
// heeds matchers, also of labels that it lacks. Of a label that it took off it cannot be.
func TestMatchersAreChecked(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		for _, c := range []struct {
			matcher *labels.Matcher
			without []string
			trusted bool
			caught  bool
		}{
			{matcher: labels.MustNewMatcher(labels.MatchEqual, "m", "1"), caught: true},
			{matcher: labels.MustNewMatcher(labels.MatchEqual, "m", "1"), trusted: true},
			{matcher: labels.MustNewMatcher(labels.MatchNotEqual, "absent", ""), caught: true},
			{matcher: labels.MustNewMatcher(labels.MatchEqual, "absent", "")},
			{matcher: labels.MustNewMatcher(labels.MatchRegexp, "m", "1|2")},
			{matcher: labels.MustNewMatcher(labels.MatchEqual, "replica", "x"), caught: true},
			{matcher: labels.MustNewMatcher(labels.MatchEqual, "replica", "x"), without: []string{"replica"}},
		} {
			m := member("deaf", fakestore.Sends([]backend.Series{one("m", "1")}, []backend.Series{one("m", "2")}))
			m.CheckMatchers = !c.trusted
			m.Info.Capabilities.WithoutReplicaLabels = true
			w := newWorld(t, limits.Config{}, true, m)
			req := request()
			req.Matchers, req.WithoutReplicaLabels = []*labels.Matcher{c.matcher}, c.without
			if _, err := ask(t.Context(), w, req); err != nil {
				t.Fatal(err)
			}
			r := w.sel.Backends[0]
			if caught := r.State == report.RowFailed && r.Reason == report.ReasonProtocol && strings.Contains(r.Detail, "S-6") && strings.Contains(r.Detail, c.matcher.String()); caught != c.caught {
				t.Errorf("%s, %+v: %+v", c.matcher, c, r)
			}
		}
	})
}
