// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package broken

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/filters"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// rowsBut is the filter of tier rows with something else after what it does.
func rowsBut(f func(m map[string]string, keep bool) bool) *instance {
	i := rows()
	i.rows = eachRow(func(m map[string]string) bool { return f(m, zone(m)) })
	return i
}

func frameBut(f func(rows []map[string]string, keep []bool)) *instance {
	i := rows()
	i.rows = func(rows []map[string]string) ([]bool, error) {
		keep, _ := eachRow(zone)(rows)
		f(rows, keep)
		return keep, nil
	}
	return i
}

func planBut(i *instance, f func(*filter.Plan)) *instance {
	f(&i.plan)
	return i
}

func requestBut(f func(c *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply) *instance {
	i := request()
	i.request = func(c *filter.RequestCall) (*filter.RequestReply, error) {
		r, err := decide(c)
		return f(c, r), err
	}
	return i
}

func selectBut(f func(c *filter.SelectCall, r *filter.SelectReply) *filter.SelectReply) *instance {
	i := selecting()
	i.sel = func(c *filter.SelectCall) (*filter.SelectReply, error) {
		r, err := choose(c)
		return f(c, r), err
	}
	return i
}

// carried changes how a filter is carried.
type carried struct {
	filters.Filter
	rewrite func(ctx context.Context, frame, reply []byte) ([]byte, error)
	plan    *filter.Plan
}

func (c *carried) Rewrite(ctx context.Context, frame, reply []byte) ([]byte, error) {
	if c.rewrite == nil {
		return c.Filter.Rewrite(ctx, frame, reply)
	}
	return c.rewrite(ctx, frame, reply)
}

func (c *carried) Plan() filter.Plan {
	if c.plan != nil {
		return *c.plan
	}
	return c.Filter.Plan()
}

func replyBut(f func(reply []byte) []byte) func(filters.Filter) filters.Filter {
	return func(in filters.Filter) filters.Filter {
		return &carried{Filter: in, rewrite: func(ctx context.Context, frame, reply []byte) ([]byte, error) {
			out, err := in.Rewrite(ctx, frame, reply)
			if len(out) > 0 {
				out = f(out)
			}
			return out, err
		}}
	}
}

// Mutants are filters and hosts with a fault each.
func Mutants() []*Case {
	return slices.Concat(plans(), neighbours(), arguments(), deciding(), enduring(), hosts())
}

func plans() []*Case {
	return []*Case{
		{
			Name: "a map has a value twice", Kills: []string{"F-plan.valid"},
			Instance: planBut(operations(), func(p *filter.Plan) {
				p.Operations[1].Map.Values = append(p.Operations[1].Map.Values, filter.Pair{From: "live", To: "other"})
			}),
		},
		{
			Name: "an operation with two fields", Kills: []string{"F-plan.valid"},
			Instance: planBut(operations(), func(p *filter.Plan) { p.Operations[0].Drop = []string{"x"} }),
		},
		{Name: "garbage for a reply", Kills: []string{"F-frames.ordinary"}, Instance: rows(), Carry: replyBut(func([]byte) []byte { return []byte("no reply at all") })},
		{Name: "a truncated reply", Kills: []string{"F-frames.ordinary", "F-frames.odd"}, Instance: names(), Carry: replyBut(func(b []byte) []byte { return b[:len(b)-4] })},
		{
			Name: "writes a label that is not in writes", Kills: []string{"F-plan.writes", "F-law.all"},
			Instance: rowsBut(func(m map[string]string, keep bool) bool { m["written"] = "1"; return keep }),
		},
		{
			Name: "renames to a name that is not in writes", Kills: []string{"F-plan.writes"},
			Instance: planBut(names(), func(p *filter.Plan) { p.Writes = []string{"kubernetes_node", "origin"} }), Series: Correct()[1].Series,
		},
		{
			Name: "maps a column that is not in writes", Kills: []string{"F-plan.writes"},
			Instance: planBut(columns(), func(p *filter.Plan) { p.Writes = nil }), Series: stages(),
		},
		{Name: "leaves rows out without saying so", Kills: []string{"F-plan.drops"}, Instance: planBut(rows(), func(p *filter.Plan) { p.Drops = false }), Series: secret()},
		{
			Name: "reads a label that is not in reads", Kills: []string{"F-plan.reads"},
			Instance: rowsBut(func(m map[string]string, keep bool) bool { m["zone"] += m["namespace"]; return keep }),
		},
		{
			Name: "drops by a label that is not in reads", Kills: []string{"F-plan.reads"},
			Instance: planBut(rows(), func(p *filter.Plan) { p.Reads = []string{"cluster", "environment"} }), Series: secret(),
		},
		{
			Name: "not idempotent", Kills: []string{"F-idempotent.twice"}, Idempotent: true,
			Instance: rowsBut(func(m map[string]string, keep bool) bool { m["zone"] += "x"; return keep }),
		},
	}
}

func neighbours() []*Case {
	var calls, rowNumber atomic.Int64
	shared := struct {
		sync.Mutex
		value string
	}{}
	return []*Case{
		{
			Name: "pure, and counts its calls", Kills: []string{"F-2.same"},
			Instance: rowsBut(func(m map[string]string, keep bool) bool {
				m["zone"] = fmt.Sprint(calls.Add(1) / 50)
				return keep
			}),
		},
		{
			Name: "takes a value from the row before", Kills: []string{"F-2.batches", "F-2.order"},
			Instance: frameBut(func(rows []map[string]string, _ []bool) {
				for i, m := range rows[min(1, len(rows)):] {
					if m["zone"] == "" && rows[i]["zone"] != "" {
						m["zone"] = rows[i]["zone"]
					}
				}
			}),
		},
		{
			Name: "numbers the rows of a frame", Kills: []string{"F-2.order"},
			Instance: frameBut(func(rows []map[string]string, _ []bool) {
				for i, m := range rows {
					m["zone"] = fmt.Sprint(i)
				}
			}),
		},
		{
			Name: "clears a label for values of which it says nothing", Kills: []string{"F-2.batches", "F-law.random"},
			Instance: func() *instance {
				i := columns()
				i.plan.Writes = append(i.plan.Writes, "note")
				i.column = func(name, v string) map[string]string {
					if v == "gone" {
						return map[string]string{"note": "gone"}
					}
					return stage(name, v)
				}
				return i
			}(),
			Series: append(stages(), labels.FromStrings("__name__", "m", "environment", "test", "note", "kept", "series", "n")),
		},
		{
			Name: "does more in large frames", Kills: []string{"F-2.batches"},
			Instance: frameBut(func(rows []map[string]string, _ []bool) {
				for _, m := range rows {
					if len(rows) > 50 {
						m["zone"] = "many"
					}
				}
			}),
		},
		{
			Name: "makes one of equal rows itself", Kills: []string{"F-2.batches"},
			Instance: frameBut(func(rows []map[string]string, keep []bool) {
				for i := 1; i < len(rows); i++ {
					keep[i] = keep[i] && !maps.Equal(rows[i], rows[i-1])
				}
			}),
		},
		{
			Name: "the last column of names decides", Kills: []string{"F-2.batches"},
			Instance: func() *instance {
				i := names()
				i.rewrite = func(in *frame.Frame, out *frame.Reply) error {
					i.rewriteNames(in, out)
					if in.Groups() > 1 {
						out.Group(0)
						for c := range in.Group(0).Columns() {
							out.Input(in.Group(0).Name(c), c)
						}
					}
					return nil
				}
				return i
			}(),
			Series: Correct()[1].Series,
		},
		{
			Name: "calls at the same time share a variable", Kills: []string{"F-1.concurrent"},
			Instance: frameBut(func(rows []map[string]string, _ []bool) {
				for _, m := range rows {
					// It is locked, so that it is wrong and no data race.
					shared.Lock()
					shared.value = m["zone"]
					shared.Unlock()
					time.Sleep(20 * time.Microsecond)
					shared.Lock()
					if m["zone"] = shared.value; m["zone"] == "" {
						delete(m, "zone")
					}
					shared.Unlock()
				}
			}),
		},
		{
			Name: "answers nothing more after an error", Kills: []string{"F-5.instance"},
			Instance: func() *instance {
				var ended atomic.Bool
				i := rows()
				i.rows = func(rows []map[string]string) ([]bool, error) {
					for _, m := range rows {
						if len(m) == 0 {
							ended.Store(true)
						}
					}
					if ended.Load() {
						return nil, errors.New("a series has no labels")
					}
					return eachRow(zone)(rows)
				}
				return i
			}(),
		},
		{
			Name: "panics at an empty frame", Kills: []string{"F-frames.odd"},
			Instance: frameBut(func(rows []map[string]string, _ []bool) { _ = rows[0] }),
		},
		{
			Name: "panics after 1500 calls", Kills: []string{"F-hostile.repeated"},
			Instance: frameBut(func([]map[string]string, []bool) {
				if rowNumber.Add(1) > 1500 {
					panic("out of numbers")
				}
			}),
		},
	}
}

func arguments() []*Case {
	var mu sync.Mutex
	last := map[string]string{}
	return []*Case{
		{
			Name: "changes its frame", Kills: []string{"F-4.arguments"},
			Instance: func() *instance {
				i := rows()
				i.rewrite = func(in *frame.Frame, out *frame.Reply) error {
					err := i.rewriteRows(in, out)
					if b := in.Bytes(); len(b) > 0 {
						b[len(b)-1]++
					}
					return err
				}
				return i
			}(),
		},
		{
			Name: "changes the call", Kills: []string{"F-4.arguments"},
			Instance: requestBut(func(c *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				c.Caller.Subject = strings.ToUpper(c.Caller.Subject)
				return r
			}),
		},
		{
			Name: "keeps values of its frame", Kills: []string{"F-4.kept"},
			Instance: func() *instance {
				i := columns()
				i.plan.Writes = []string{"note"}
				i.column = func(name, v string) map[string]string {
					mu.Lock()
					defer mu.Unlock()
					before, ok := last[v]
					last[strings.Clone(v)] = v // a view of the frame
					if ok {
						return map[string]string{"note": strings.Clone(before)}
					}
					return map[string]string{"note": strings.Clone(v)}
				}
				return i
			}(),
			Series: stages(),
		},
	}
}

func deciding() []*Case {
	var asked, chosen atomic.Int64
	allow := &filter.RequestReply{}
	return []*Case{
		{
			Name: "panics at callers without claims", Kills: []string{"F-request.answers"},
			Instance: requestBut(func(c *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				_ = c.Caller.Claims[0]
				return r
			}),
		},
		{
			Name: "allows the second time", Kills: []string{"F-deny.final"},
			Instance: requestBut(func(_ *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				if r.Deny != nil && asked.Add(1) > 8 {
					return allow
				}
				return r
			}),
		},
		{
			Name: "allows metadata to everybody", Kills: []string{"F-deny.callers"}, Callers: callers(),
			Instance: requestBut(func(c *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				if c.Kind == "metadata" {
					return allow
				}
				return r
			}),
		},
		{
			Name: "denies with status 200", Kills: []string{"F-deny.status"},
			Instance: requestBut(func(_ *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				if r.Deny != nil {
					r.Deny.Status = 200
				}
				return r
			}),
		},
		{
			Name: "takes nobody for the operator", Kills: []string{"F-admin.nobody"},
			Instance: requestBut(func(c *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				if c.Caller.Subject == "" {
					return &filter.RequestReply{Admin: true}
				}
				return r
			}),
		},
		{
			Name: "enforces what does not compile", Kills: []string{"F-enforce.compiles"},
			Instance: requestBut(func(c *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				r.Enforce = append(r.Enforce, filter.Matcher{Type: filter.MatchRegexp, Name: "tenant", Value: c.Caller.Subject + "("})
				return r
			}),
		},
		{
			Name: "enforces nothing by name", Kills: []string{"F-enforce.compiles"},
			Instance: requestBut(func(_ *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				r.Enforce = append(r.Enforce, filter.Matcher{Value: "acme"})
				return r
			}),
		},
		{
			Name: "a limit of -1", Kills: []string{"F-limits.lower"},
			Instance: requestBut(func(_ *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				r.MaxSamples = math.MaxUint64
				return r
			}),
		},
		{
			Name: "names tenants and enforces nothing", Kills: []string{"F-tenancy.enforces"}, Role: filter.RoleTenancy,
			Instance: requestBut(func(_ *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				r.Enforce = nil
				return r
			}),
		},
		{
			Name: "requires what does not compile", Kills: []string{"F-select.compiles"},
			Instance: selectBut(func(_ *filter.SelectCall, r *filter.SelectReply) *filter.SelectReply {
				r.Require = append(r.Require, filter.Matcher{Type: filter.MatchNotRegexp, Name: "a", Value: "[b"})
				return r
			}),
		},
		{
			Name: "selects nothing at times", Kills: []string{"F-select.stable"},
			Instance: selectBut(func(_ *filter.SelectCall, r *filter.SelectReply) *filter.SelectReply {
				r.None = chosen.Add(1)%5 == 0
				return r
			}),
		},
		{
			Name: "panics at claims that are no object", Kills: []string{"F-hostile.requests"},
			Instance: requestBut(func(c *filter.RequestCall, r *filter.RequestReply) *filter.RequestReply {
				if len(c.Caller.Claims) > 0 && c.Caller.Claims[len(c.Caller.Claims)-1] != '}' {
					panic("not an object")
				}
				return r
			}),
		},
	}
}

func enduring() []*Case {
	stop, stuck := make(chan struct{}), make(chan struct{})
	var hoard [][]byte
	var mu sync.Mutex
	panicsAt := func(bad func(m map[string]string) bool) *instance {
		return rowsBut(func(m map[string]string, keep bool) bool {
			if bad(m) {
				panic("too much")
			}
			return keep
		})
	}
	return []*Case{
		{
			Name: "never returns", Kills: []string{"F-3.time"}, Release: sync.OnceFunc(func() { close(stop) }),
			Instance: frameBut(func([]map[string]string, []bool) { <-stop }),
		},
		{
			Name: "panics at a thousand rows", Kills: []string{"F-hostile.rows"},
			Instance: frameBut(func(rows []map[string]string, _ []bool) {
				if len(rows) > 1000 {
					panic("too many")
				}
			}),
		},
		{
			Name: "takes time for each row", Kills: []string{"F-hostile.most"},
			Instance: frameBut(func(rows []map[string]string, _ []bool) { time.Sleep(time.Duration(len(rows)) * 20 * time.Microsecond) }),
		},
		{
			Name: "panics at long values", Kills: []string{"F-hostile.values"},
			Instance: panicsAt(func(m map[string]string) bool { return len(m["cluster"]) > 1<<16 }),
		},
		{
			Name: "panics at a thousand labels", Kills: []string{"F-hostile.labels"},
			Instance: panicsAt(func(m map[string]string) bool { return len(m) > 1000 }),
		},
		{
			Name: "panics at runes beyond 16 bits", Kills: []string{"F-hostile.text"},
			Instance: panicsAt(func(m map[string]string) bool { return strings.ContainsRune(m["tenant"], '\U0010ffff') }),
		},
		{
			Name: "remembers every frame", Kills: []string{"F-hostile.memory"}, Release: func() { hoard = nil },
			Instance: frameBut(func([]map[string]string, []bool) {
				mu.Lock()
				defer mu.Unlock()
				hoard = append(hoard, make([]byte, 128<<10))
			}),
		},
		{
			Name: "does not notice that nobody waits", Kills: []string{"F-hostile.cancelled"}, Release: sync.OnceFunc(func() { close(stuck) }),
			Instance: rows(),
			Carry: func(in filters.Filter) filters.Filter {
				return &carried{Filter: in, rewrite: func(ctx context.Context, frame, reply []byte) ([]byte, error) {
					if ctx.Err() != nil {
						<-stuck
					}
					return in.Rewrite(ctx, frame, reply)
				}}
			},
		},
	}
}

// host is a host with a fault around a correct one.
type host struct {
	backend.Backend
	series func(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error]
	names  func(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error)
	values func(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error)
}

func (h *host) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	if h.series == nil {
		return h.Backend.Series(ctx, req)
	}
	return h.series(ctx, req)
}

func (h *host) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	if h.names == nil {
		return h.Backend.LabelNames(ctx, req)
	}
	return h.names(ctx, req)
}

func (h *host) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if h.values == nil {
		return h.Backend.LabelValues(ctx, req)
	}
	return h.values(ctx, req)
}

// narrowed is a store of which only what matches is there.
type narrowed struct {
	backend.Backend
	ms []*labels.Matcher
}

func (n *narrowed) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	x := *req
	x.Matchers = slices.Concat(req.Matchers, n.ms)
	return n.Backend.Series(ctx, &x)
}

type wrap = func(backend.Backend) backend.Backend

// answering changes the series of every answer.
func answering(f func(all []backend.Series, req *backend.SeriesRequest) []backend.Series) func(backend.Backend, wrap) backend.Backend {
	return func(inner backend.Backend, right wrap) backend.Backend {
		b := right(inner)
		return &host{Backend: b, series: func(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
			return func(yield func(*backend.Batch, error) bool) {
				var all []backend.Series
				for b, err := range b.Series(ctx, req) {
					if err != nil {
						yield(nil, err)
						return
					}
					for i := range b.Len() {
						all = append(all, b.At(i))
					}
				}
				out := backend.NewBatch(len(all))
				for _, s := range f(all, req) {
					out.Append(s)
				}
				yield(out, nil)
			}
		}}
	}
}

// before asks the store with matchers that are about what comes out.
func before(which func(m *labels.Matcher) bool) func(backend.Backend, wrap) backend.Backend {
	return func(inner backend.Backend, right wrap) backend.Backend {
		return &host{Backend: right(inner), series: func(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
			var early, late []*labels.Matcher
			for _, m := range req.Matchers {
				if which(m) {
					early = append(early, m)
				} else {
					late = append(late, m)
				}
			}
			x := *req
			x.Matchers = late
			return right(&narrowed{inner, early}).Series(ctx, &x)
		}}
	}
}

func hosts() []*Case {
	with := func(name string, in *instance, spoil func(backend.Backend, wrap) backend.Backend, kills ...string) *Case {
		return &Case{Name: name, Kills: kills, Instance: in, Spoil: spoil, Series: secret()}
	}
	every := func(*labels.Matcher) bool { return true }
	out := []*Case{
		with("matchers go to the store as they are", operations(), before(every),
			"F-law.renamed", "F-law.written", "F-law.absent", "F-law.negative", "F-law.values", "F-law.both", "F-law.external", "F-law.random"),
		with("negative matchers go to the store as they are", operations(),
			before(func(m *labels.Matcher) bool { return m.Type == labels.MatchNotEqual || m.Type == labels.MatchNotRegexp }), "F-law.negative"),
		with("matchers go to the store as they are, tier names", names(), before(every), "F-law.renamed"),
		with("matchers go to the store as they are, tier rows", rows(), before(every), "F-law.written"),
		with("absent labels match nothing", rows(), answering(func(all []backend.Series, req *backend.SeriesRequest) []backend.Series {
			return slices.DeleteFunc(all, func(s backend.Series) bool {
				return slices.ContainsFunc(req.Matchers, func(m *labels.Matcher) bool { return !s.Labels.Has(m.Name) })
			})
		}), "F-law.absent"),
		with("one series is lost", rows(), answering(func(all []backend.Series, _ *backend.SeriesRequest) []backend.Series {
			return all[:max(len(all)-1, 0)]
		}), "F-law.all", "F-law.random"),
		with("the order is that of the store", operations(), answering(func(all []backend.Series, _ *backend.SeriesRequest) []backend.Series {
			slices.Reverse(all)
			return all
		}), "F-law.order"),
		with("samples are lost", rows(), answering(func(all []backend.Series, _ *backend.SeriesRequest) []backend.Series {
			for i := range all {
				if i%3 == 0 {
					all[i].Chunks = nil
				}
			}
			return all
		}), "F-law.chunks"),
		with("label names are those of the store", operations(), func(inner backend.Backend, right wrap) backend.Backend {
			return &host{Backend: right(inner), names: inner.LabelNames}
		}, "F-law.label-names"),
		with("label values are those of the store", columns(), func(inner backend.Backend, right wrap) backend.Backend {
			return &host{Backend: right(inner), values: inner.LabelValues}
		}, "F-law.label-values"),
		with("only the first of equal series is answered", merging(), answering(func(all []backend.Series, _ *backend.SeriesRequest) []backend.Series {
			for i := range all {
				all[i].Chunks = all[i].Chunks[:min(1, len(all[i].Chunks))]
			}
			return all
		}), "F-law.merge", "F-law.chunks"),
	}
	silent := with("series are merged though the plan does not say so", operations(), nil, "F-law.merge")
	silent.Host = func(f filters.Filter) filters.Filter {
		p := f.Plan()
		p.Merge = true
		return &carried{Filter: f, plan: &p}
	}
	refuses := with("series that are to be one are refused", merging(), func(inner backend.Backend, right wrap) backend.Backend {
		return right(inner)
	}, "F-law.merge")
	refuses.Host = func(f filters.Filter) filters.Filter {
		p := f.Plan()
		p.Merge = false
		return &carried{Filter: f, plan: &p}
	}
	return append(out, silent, refuses)
}
