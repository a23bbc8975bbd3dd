// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// threeSeries is a store with series of one metric.
func threeSeries() *store {
	s := &store{}
	for i, v := range []string{"1", "2", "3"} {
		s.series = append(s.series, backend.Series{Labels: labels.FromStrings("__name__", "m", "a", v, "tenant", "t"), Chunks: []backend.Chunk{chunk(i)}})
	}
	return s
}

func everyTime(ms ...*labels.Matcher) *backend.SeriesRequest {
	return &backend.SeriesRequest{MaxTime: 1 << 40, Matchers: ms}
}

func eq(name, value string) *labels.Matcher {
	return labels.MustNewMatcher(labels.MatchEqual, name, value)
}

func enforcing(ms ...*labels.Matcher) context.Context {
	g := *access.Everything()
	g.Enforce = ms
	return access.WithGrant(context.Background(), &g)
}

// replying makes a fake that replies to each frame what f makes of it.
func replying(p filter.Plan, f func(in *frame.Frame, out *frame.Reply)) *fake {
	return &fake{plan: p, rewrite: func(_ context.Context, b, reply []byte) ([]byte, error) {
		var in frame.Frame
		if err := in.Parse(b); err != nil {
			return nil, err
		}
		var out frame.Reply
		out.Reset(&in)
		f(&in, &out)
		return out.Append(reply[:0]), nil
	}}
}

// keepAll begins the reply to a group with all its columns but those left out.
func keepAll(in *frame.Frame, out *frame.Reply, i int, without ...string) {
	out.Group(i)
	g := in.Group(i)
next:
	for c := range g.Columns() {
		for _, n := range without {
			if in.Symbol(g.Column(c).Name) == n {
				continue next
			}
		}
		out.Input(g.Column(c).Name, c)
	}
}

func hostile() map[string]*fake {
	all := map[string]*fake{
		"error": {plan: filter.Plan{Tier: filter.TierRows, Writes: []string{"a"}}, rewrite: func(context.Context, []byte, []byte) ([]byte, error) {
			return nil, errors.New("out of ideas")
		}},
		"panic": {plan: filter.Plan{Tier: filter.TierRows, Writes: []string{"a"}}, rewrite: func(context.Context, []byte, []byte) ([]byte, error) { panic("boom") }},
		"a sum of all": replying(filter.Plan{Tier: filter.TierRows, Writes: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
			keepAll(in, out, 0, "a")
			out.Constant(out.Intern("a"), out.Intern(strings.Repeat("x", 1<<10)))
			out.Drop(1)
		}),
		"writes tenant, rows": replying(filter.Plan{Tier: filter.TierRows, Writes: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
			keepAll(in, out, 0, "tenant")
			out.Refs(in.FindName("tenant"))[0] = out.Intern("other")
		}),
		"removes tenant, rows": replying(filter.Plan{Tier: filter.TierRows, Writes: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
			keepAll(in, out, 0, "tenant")
		}),
		"tenant of another column, rows": replying(filter.Plan{Tier: filter.TierRows, WritesAny: true, Keeps: []string{"tenant"}}, func(in *frame.Frame, out *frame.Reply) {
			keepAll(in, out, 0, "tenant")
			out.Input(in.FindName("tenant"), in.Group(0).Find(in.FindName("a")))
		}),
		"new label, rows": replying(filter.Plan{Tier: filter.TierRows, Writes: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
			keepAll(in, out, 0)
			out.Constant(out.Intern("new"), out.Intern("x"))
		}),
		"writes tenant, names": replying(filter.Plan{Tier: filter.TierNames, Writes: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
			keepAll(in, out, 0, "tenant")
			out.Constant(in.FindName("tenant"), out.Intern("t"))
		}),
		"removes tenant, names": replying(filter.Plan{Tier: filter.TierNames, Writes: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
			keepAll(in, out, 0, "tenant")
		}),
		"swaps, names": replying(filter.Plan{Tier: filter.TierNames, Writes: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
			keepAll(in, out, 0, "tenant", "a")
			g := in.Group(0)
			out.Input(in.FindName("tenant"), g.Find(in.FindName("a")))
			out.Input(in.FindName("a"), g.Find(in.FindName("tenant")))
		}),
		"drops, names": replying(filter.Plan{Tier: filter.TierNames, Writes: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
			out.Group(0)
			out.DropAll()
		}),
		"writes tenant, columns": replying(filter.Plan{Tier: filter.TierColumns, Columns: []string{"a"}, Writes: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
			out.Group(0)
			out.Constant(out.Intern("tenant"), out.Intern("t"))
		}),
		"writes what it may only read, columns": replying(filter.Plan{Tier: filter.TierColumns, Columns: []string{"tenant", "a"}, Writes: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
			out.Group(0)
			out.Constant(in.FindName("tenant"), out.Intern("other"))
		}),
	}
	for name, garbage := range map[string][]byte{
		"a word":    []byte("hello"),
		"a header":  []byte("PWR1"),
		"too long":  append([]byte("PWR1"), make([]byte, 3<<20)...),
		"its input": nil,
	} {
		for _, tier := range []filter.Tier{filter.TierNames, filter.TierColumns, filter.TierRows} {
			all[fmt.Sprintf("garbage: %s, tier %d", name, tier)] = &fake{plan: filter.Plan{Tier: tier, Columns: []string{"a"}, Writes: []string{"a"}},
				rewrite: func(_ context.Context, b, reply []byte) ([]byte, error) {
					if garbage == nil {
						return append(reply[:0], b...), nil
					}
					g := append(reply[:0], garbage...)
					if len(g) > 32 {
						binary.LittleEndian.PutUint32(g[4:], uint32(len(g)))
					}
					return g, nil
				}}
		}
	}
	return all
}

// TestHostile: whatever a filter does, its error names it and nothing of the answer is
// used, or the answer is that of the store and says so.
func TestHostile(t *testing.T) {
	for name, f := range hostile() {
		t.Run(name, func(t *testing.T) {
			var effects []filtering.Effect
			o := filtering.Options{Backend: "b", Observe: func(_ context.Context, e filtering.Effect) { effects = append(effects, e) }}
			w := filtering.Wrap(threeSeries(), []filtering.Link{{Name: "bad", Filter: f}}, o)
			got, err := pieces(t, w, enforcing(eq("tenant", "t")), everyTime())
			if err == nil || !strings.Contains(err.Error(), `"bad"`) || len(got) > 0 {
				t.Fatalf("closed: %d series, error %v", len(got), err)
			}
			t.Log(err)
			if name != "error" && !errors.Is(err, carrier.ErrFault) {
				t.Error("it does not wrap ErrFault")
			}
			if name != "error" && name != "panic" && len(f.rejected) == 0 {
				t.Error("the carrier was not told")
			}
			if len(effects) != 1 || effects[0].Failures != 1 || effects[0].Error == "" || effects[0].Backend != "b" {
				t.Errorf("effects %+v", effects)
			}
			if _, err := w.LabelValues(context.Background(), &backend.LabelValuesRequest{Name: "a", MaxTime: 1}); err == nil {
				t.Error("label values in spite of it")
			}

			f.calls = 0
			w = filtering.Wrap(threeSeries(), []filtering.Link{{Name: "bad", Filter: f, OnFailure: filtering.Open}}, o)
			notices, n := []backend.Notice(nil), 0
			for b, err := range w.Series(context.Background(), everyTime()) {
				if err != nil {
					t.Fatalf("open: %v", err)
				}
				n += b.Len()
				notices = append(notices, b.Notices()...)
			}
			if n != 3 || len(notices) != 1 || notices[0].Kind != backend.NoticeMissing || !strings.Contains(notices[0].Text, `"bad"`) || f.calls != 1 {
				t.Fatalf("open: %d series after %d calls, notices %v", n, f.calls, notices)
			}
		})
	}
}

// TestNeverOpen: a filter that is skipped must not show what it hides.
func TestNeverOpen(t *testing.T) {
	require := []filter.Operation{{Require: &filter.Matcher{Name: "a", Value: "1"}}}
	for name, l := range map[string]filtering.Link{
		"auth":    {Role: filter.RoleAuth, Filter: &fake{}},
		"tenancy": {Role: filter.RoleTenancy, Filter: &fake{}},
		"drops":   {Filter: &fake{plan: filter.Plan{Tier: filter.TierRows, Drops: true}}},
		"require": {Filter: &fake{plan: filter.Plan{Operations: require}}},
		"select":  {Filter: &fake{plan: filter.Plan{Hooks: []string{filter.HookSelect}}}},
	} {
		l.OnFailure = filtering.Open
		if l.Policy() != filtering.Closed {
			t.Errorf("%s: open", name)
		}
	}
	if l := (filtering.Link{Filter: &fake{}, OnFailure: filtering.Open}); l.Policy() != filtering.Open {
		t.Error("what an operator chooses is not taken")
	}
}

// TestHangs: a filter that hangs ends with the request, also where it may be skipped.
func TestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		for _, f := range []*fake{
			{plan: filter.Plan{Tier: filter.TierRows, Writes: []string{"a"}}, rewrite: func(ctx context.Context, _, _ []byte) ([]byte, error) { return nil, hang(ctx) }},
		} {
			cause := errors.New("enough")
			ctx, cancel := context.WithTimeoutCause(context.Background(), time.Minute, cause)
			defer cancel()
			w := filtering.Wrap(threeSeries(), []filtering.Link{{Filter: f, OnFailure: filtering.Open}}, filtering.Options{})
			if _, err := pieces(t, w, ctx, everyTime()); !errors.Is(err, cause) {
				t.Errorf("error %v", err)
			}
		}
	})
}

// TestSlowFilter: a filter that takes long for a row is given fewer of them at once, one
// that is quick gets more.
func TestSlowFilter(t *testing.T) {
	for perRow, most := range map[time.Duration]int{100 * time.Microsecond: 256, 20 * time.Microsecond: 500, time.Nanosecond: 1024} {
		synctest.Test(t, func(t *testing.T) {
			s := &store{}
			for i := range 6000 {
				s.series = append(s.series, backend.Series{Labels: labels.FromStrings("__name__", "m", "a", fmt.Sprintf("%04d", i))})
			}
			var frames []int
			f := &fake{plan: filter.Plan{Tier: filter.TierRows, Writes: []string{"b"}}, rewrite: func(_ context.Context, b, _ []byte) ([]byte, error) {
				var in frame.Frame
				if err := in.Parse(b); err != nil {
					return nil, err
				}
				frames = append(frames, in.Rows())
				time.Sleep(perRow * time.Duration(in.Rows()))
				return nil, nil
			}}
			got, err := pieces(t, filtering.Wrap(s, []filtering.Link{{Filter: f}}, filtering.Options{}), t.Context(), everyTime())
			if len(got) != 6000 || err != nil {
				t.Fatalf("%d series, %v", len(got), err)
			}
			if largest := slices.Max(frames[2:]); largest != most {
				t.Errorf("%v a row: frames of %v rows, want %d at most", perRow, frames, most)
			}
		})
	}
}

// TestGrowth: a reply of a few bytes must not make label sets of any size.
func TestGrowth(t *testing.T) {
	s := &store{}
	for i := range 2000 {
		s.series = append(s.series, backend.Series{Labels: labels.FromStrings("__name__", "m", "a", fmt.Sprintf("%04d", i))})
	}
	f := replying(filter.Plan{Tier: filter.TierRows, WritesAny: true, Keeps: []string{"a"}}, func(in *frame.Frame, out *frame.Reply) {
		keepAll(in, out, 0)
		big := out.Intern(strings.Repeat("x", 500<<10))
		for i := range 100 {
			out.Constant(out.Intern(fmt.Sprint("l", i)), big)
		}
	})
	_, err := pieces(t, filtering.Wrap(s, []filtering.Link{{Filter: f}}, filtering.Options{}), context.Background(), everyTime())
	if !errors.Is(err, backend.ErrLimit) {
		t.Fatalf("error %v", err)
	}
}

// TestStoreOutsideOfGrant: a store that ignores what is enforced is named, and what
// it sent is not, neither to users nor to filters.
func TestStoreOutsideOfGrant(t *testing.T) {
	for name, f := range map[string]*fake{
		"nothing": {},
		"rows": {plan: filter.Plan{Tier: filter.TierRows, Writes: []string{"a"}}, rewrite: func(context.Context, []byte, []byte) ([]byte, error) {
			t.Error("a filter sees it")
			return nil, nil
		}},
		"select": {plan: filter.Plan{Hooks: []string{filter.HookSelect}}, sel: func(*filter.SelectCall) (*filter.SelectReply, error) {
			return &filter.SelectReply{Require: []filter.Matcher{{Name: "tenant", Value: "t"}}}, nil
		}},
	} {
		ctx := enforcing(eq("tenant", "t"))
		if name == "select" {
			ctx = context.Background()
		}
		s := threeSeries()
		s.spoil = func(ls labels.Labels) labels.Labels {
			return labels.NewBuilder(ls).Set("tenant", "secret").Labels()
		}
		w := filtering.Wrap(s, []filtering.Link{{Filter: f}}, filtering.Options{Backend: "leaky"})
		for _, strip := range [][]string{nil, {"tenant"}} {
			req := everyTime()
			req.WithoutReplicaLabels = strip
			got, err := pieces(t, w, ctx, req)
			if len(got) > 0 || err == nil || !strings.Contains(err.Error(), "leaky") || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %d series, error %v", name, len(got), err)
			}
		}
	}
}

// TestStoreRepeats: what cannot be told from a collision is the store's fault.
func TestStoreRepeats(t *testing.T) {
	for _, p := range []filter.Plan{
		{Operations: []filter.Operation{{Set: &filter.Label{Name: "x", Value: "y"}}}},
		{Operations: []filter.Operation{{Set: &filter.Label{Name: "x", Value: "y"}}}, Merge: true},
	} {
		s := threeSeries()
		s.series[2] = s.series[0]
		w := filtering.Wrap(s, []filtering.Link{{Filter: &fake{plan: p}}}, filtering.Options{Backend: "b", ReplicaLabels: []string{"r"}})
		_, err := pieces(t, w, context.Background(), everyTime())
		if err == nil || !strings.Contains(err.Error(), "rule S-2") || !strings.Contains(err.Error(), "backend b ") {
			t.Errorf("error %v", err)
		}
	}
}

// TestConcurrent is for the race detector: what is remembered is shared.
func TestConcurrent(t *testing.T) {
	s := &store{}
	for i := range 3000 {
		s.series = append(s.series, backend.Series{Labels: labels.FromStrings("__name__", "m", "a", fmt.Sprintf("%04d", i))})
	}
	write := func(m map[string]string) bool { m["b"] = "x" + m["a"]; return m["a"] != "0001" }
	rows := func() *fake {
		return replying(filter.Plan{Tier: filter.TierRows, Writes: []string{"b"}, Drops: true, Pure: true}, func(in *frame.Frame, out *frame.Reply) {
			keepAll(in, out, 0)
			refs := out.Refs(out.Intern("b"))
			for r := range refs {
				m := map[string]string{"a": in.Symbol(in.Group(0).Column(1).Ref(r))}
				if !write(m) {
					out.Drop(r)
				}
				refs[r] = out.Intern(m["b"])
			}
		})
	}
	names := &fake{plan: filter.Plan{Tier: filter.TierNames, Writes: []string{"c"}, Pure: true}, names: func([]string) (map[string]string, map[string]string, []string, bool) {
		return map[string]string{"c": "1"}, nil, nil, true
	}}
	column := &fake{plan: filter.Plan{Tier: filter.TierColumns, Columns: []string{"a"}, Writes: []string{"d"}, Pure: true},
		column: map[string]func(string) map[string]string{"a": func(v string) map[string]string { return map[string]string{"d": v[:2]} }}}
	w := filtering.Wrap(s, []filtering.Link{{Filter: names}, {Filter: column}, {Filter: rows()}}, filtering.Options{MemoBytes: 300 << 10})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 3 {
				got, err := pieces(t, w, context.Background(), everyTime(labels.MustNewMatcher(labels.MatchNotEqual, "b", fmt.Sprintf("x%04d", i+2))))
				if err != nil || len(got) != 2998 {
					t.Errorf("%d series, error %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzReply: whatever the bytes of a reply are, labels that the plan does not write stay.
func FuzzReply(f *testing.F) {
	for _, tier := range []filter.Tier{filter.TierNames, filter.TierColumns, filter.TierRows} {
		seed := replying(filter.Plan{Tier: tier, Columns: []string{"a"}, Writes: []string{"a", "b"}, Drops: true}, nil)
		honest := func(in *frame.Frame, out *frame.Reply) {
			for i := range in.Groups() {
				keepAll(in, out, i, "a")
				out.Constant(symbol(in, out, "b"), out.Intern("x"))
				if tier == filter.TierRows {
					out.Drop(0)
					out.Refs(symbol(in, out, "a"))[0] = out.Intern("y")
				}
			}
		}
		seed.rewrite = func(_ context.Context, b, _ []byte) ([]byte, error) {
			var in frame.Frame
			if err := in.Parse(b); err != nil {
				return nil, err
			}
			var out frame.Reply
			out.Reset(&in)
			honest(&in, &out)
			reply := out.Append(nil)
			f.Add(uint8(tier)-1, reply)
			f.Add(uint8(tier)+2, reply)
			return reply, nil
		}
		s := threeSeries()
		s.series = append(s.series, backend.Series{Labels: labels.FromStrings("__name__", "m", "tenant", "t")})
		for range filtering.Wrap(s, []filtering.Link{{Filter: seed}}, filtering.Options{}).Series(context.Background(), everyTime()) {
		}
	}
	f.Fuzz(func(t *testing.T, tier uint8, reply []byte) {
		x := &fake{plan: filter.Plan{Tier: filter.Tier(1 + tier%3), Columns: []string{"a"}, Writes: []string{"a", "b"}, Drops: tier > 2, Merge: true, Pure: tier > 5},
			rewrite: func(context.Context, []byte, []byte) ([]byte, error) { return reply, nil }}
		s := threeSeries()
		s.series = append(s.series, backend.Series{Labels: labels.FromStrings("__name__", "m", "tenant", "t")})
		got, err := pieces(t, filtering.Wrap(s, []filtering.Link{{Filter: x}}, filtering.Options{}), context.Background(), everyTime())
		if err != nil {
			return
		}
		for _, y := range got {
			if y.Labels.Get("__name__") != "m" || y.Labels.Get("tenant") != "t" {
				t.Fatalf("series %s", y.Labels)
			}
			y.Labels.Range(func(l labels.Label) {
				if l.Name != "__name__" && l.Name != "tenant" && l.Name != "a" && l.Name != "b" || l.Value == "" {
					t.Fatalf("series %s", y.Labels)
				}
			})
		}
	})
}
