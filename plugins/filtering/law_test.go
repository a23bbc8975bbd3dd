// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering_test

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
)

// truth is the law, computed from its words: the chain is applied to every series.
type truth struct {
	out  labels.Labels
	in   backend.Series
	path []string // label sets behind each link, the innermost first
}

type law struct {
	chain   []*fake
	replica []string
	ofStore bool // the innermost link is the store's own: inner is about what it makes
}

func (l *law) all(s *store) (out []truth) {
	for _, x := range s.series {
		m := x.Labels.Map()
		t := truth{in: x}
		kept := true
		for _, f := range slices.Backward(l.chain) {
			if kept = f.apply(m); !kept {
				break
			}
			t.path = append(t.path, labels.FromMap(m).String())
		}
		if kept {
			t.out = labels.FromMap(m)
			out = append(out, t)
		}
	}
	return out
}

// selected is what M selects of it, in order; a conflict is a text if two series
// must not be one.
func (l *law) selected(s *store, ms, inner []*labels.Matcher) (out []truth, conflict bool) {
	for _, t := range l.all(s) {
		own := t.in.Labels
		if l.ofStore {
			m := own.Map()
			l.chain[len(l.chain)-1].apply(m)
			own = labels.FromMap(m)
		}
		if shaping.Matches(t.out, ms) && shaping.Matches(own, inner) {
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, func(a, b truth) int { return labels.Compare(a.out, b.out) })
	for i := 1; i < len(out); i++ {
		a, b := out[i-1], out[i]
		if !labels.Equal(a.out, b.out) {
			continue
		}
		if labels.Equal(a.in.Labels.MatchLabels(false, l.replica...), b.in.Labels.MatchLabels(false, l.replica...)) && len(l.replica) > 0 {
			continue
		}
		for k := range a.path {
			if a.path[k] == b.path[k] {
				conflict = conflict || !l.chain[len(l.chain)-1-k].plan.Merge
				break
			}
		}
	}
	return out, conflict
}

type caseOf struct {
	s     *store
	chain []*fake
	links []filtering.Link
	law   *law
	ms    []*labels.Matcher
	inner []*labels.Matcher // enforced, and required by select hooks
	none  bool
	ctx   context.Context
	bad   bool // an enforced label is written
	o     filtering.Options
}

func (c *caseOf) String() string {
	var b strings.Builder
	for i, f := range c.chain {
		fmt.Fprintf(&b, "link %d: tier %d columns %q writes %q any %v keeps %q drops %v merge %v pure %v\n", i, f.plan.Tier, f.plan.Columns, f.plan.Writes, f.plan.WritesAny, f.plan.Keeps, f.plan.Drops, f.plan.Merge, f.plan.Pure)
		for _, o := range f.plan.Operations {
			switch {
			case o.Rename != nil:
				fmt.Fprintf(&b, "  rename %+v\n", *o.Rename)
			case o.Drop != nil:
				fmt.Fprintf(&b, "  drop %q\n", o.Drop)
			case o.Keep != nil:
				fmt.Fprintf(&b, "  keep %q\n", o.Keep)
			case o.Set != nil:
				fmt.Fprintf(&b, "  set %+v\n", *o.Set)
			case o.Map != nil:
				fmt.Fprintf(&b, "  map %q\n", *o.Map)
			case o.Require != nil:
				fmt.Fprintf(&b, "  require %+v\n", *o.Require)
			}
		}
	}
	fmt.Fprintf(&b, "matchers %v inner %v\n", c.ms, c.inner)
	for _, x := range c.s.series {
		fmt.Fprintf(&b, "  %s\n", x.Labels)
	}
	return b.String()
}

func randomCase(seed uint64) *caseOf {
	r := rand.New(rand.NewPCG(seed, 7))
	c := &caseOf{s: randomStore(r), law: &law{}, ctx: context.Background()}
	for i := range 1 + r.IntN(3) {
		f := randomFilter(r)
		c.chain = append(c.chain, f)
		c.links = append(c.links, filtering.Link{Name: fmt.Sprint("f", i), Filter: f})
		if f.sel != nil {
			reply, _ := f.sel(nil)
			c.none = c.none || reply.None
			for _, m := range reply.Require {
				c.inner = append(c.inner, labels.MustNewMatcher(labels.MatchType(m.Type), m.Name, m.Value))
			}
		}
	}
	c.law.chain = c.chain
	if c.law.ofStore = r.IntN(3) == 0; c.law.ofStore {
		// Constants, as external labels are, and once more what can be turned round.
		f := &fake{rnd: r, plan: filter.Plan{Pure: true, Operations: []filter.Operation{{Set: &filter.Label{Name: pick(r, someNames[1:]...), Value: "1"}}, {Rename: &filter.Rename{From: "d", To: "b"}}}}}
		c.chain = append(c.chain, f)
		c.law.chain = c.chain
		c.links = append(c.links, filtering.Link{Name: "external", Filter: f, OfStore: true})
	}
	if r.IntN(3) == 0 {
		// No operation writes r: whether it tells series apart is the same all along.
		c.law.replica = []string{"r"}
		c.o.ReplicaLabels = c.law.replica
	}
	for range r.IntN(4) {
		c.ms = append(c.ms, randomMatcher(r, append([]string{"z", "n"}, someNames...)...))
	}
	if r.IntN(4) == 0 {
		m := randomMatcher(r, someNames...)
		g := *access.Everything()
		g.Enforce = []*labels.Matcher{m}
		c.ctx = access.WithGrant(c.ctx, &g)
		c.inner = append(c.inner, m)
		for i, f := range c.chain {
			c.bad = c.bad || !c.links[i].OfStore && filtering.CheckProtected(f.plan, []string{m.Name}) != nil
		}
	}
	return c
}

// pieces collects an answer, and checks its order.
func pieces(t *testing.T, b backend.Backend, ctx context.Context, req *backend.SeriesRequest) (out []backend.Series, err error) {
	t.Helper()
	for batch, err := range b.Series(ctx, req) {
		if err != nil {
			return out, err
		}
		for i := range batch.Len() {
			x := batch.At(i)
			if n := len(out); n > 0 {
				switch d := labels.Compare(out[n-1].Labels, x.Labels); {
				case d > 0:
					t.Fatalf("%s came after %s", x.Labels, out[n-1].Labels)
				case d == 0:
					out[n-1].Chunks = append(slices.Clip(out[n-1].Chunks), x.Chunks...)
					continue
				}
			}
			out = append(out, x)
		}
	}
	return out, nil
}

func describe(ls labels.Labels, chunks []backend.Chunk) string {
	var b strings.Builder
	b.WriteString(ls.String())
	for _, c := range chunks {
		fmt.Fprint(&b, " ", c.MinTime)
	}
	return b.String()
}

// TestLaw compares random chains around random stores with the law, for series, label
// names and values, exemplars and Info.
func TestLaw(t *testing.T) {
	cases, conflicts, exact := uint64(2000), 0, 0
	if testing.Short() {
		cases = 500
	}
	for seed := range cases {
		c := randomCase(seed)
		w := filtering.Wrap(c.s, c.links, c.o)
		want, conflict := c.law.selected(c.s, c.ms, c.inner)
		if c.none {
			want, conflict = nil, false
		}
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d: %s\n%s", seed, fmt.Sprintf(format, args...), c)
		}
		// Twice: the second time with what is remembered of the first.
		for round := range 2 {
			got, err := pieces(t, w, c.ctx, &backend.SeriesRequest{Matchers: c.ms, MinTime: 0, MaxTime: 1 << 40})
			switch {
			case c.bad:
				if backend.Kind(err) != backend.ErrUnsupported {
					fail("a link writes an enforced label: %v", err)
				}
				continue
			case conflict:
				conflicts++
				if err == nil || !strings.Contains(err.Error(), "both become") {
					fail("series become equal: %v", err)
				}
			case err != nil:
				fail("round %d: %v", round, err)
			default:
				var lines, wanted []string
				for _, x := range got {
					lines = append(lines, describe(x.Labels, x.Chunks))
				}
				for i := 0; i < len(want); {
					j := i + 1
					chunks := slices.Clone(want[i].in.Chunks)
					for ; j < len(want) && labels.Equal(want[j].out, want[i].out); j++ {
						chunks = append(chunks, want[j].in.Chunks...)
					}
					slices.SortFunc(chunks, func(a, b backend.Chunk) int { return cmp.Compare(a.MinTime, b.MinTime) })
					wanted = append(wanted, describe(want[i].out, chunks))
					i = j
				}
				if !slices.Equal(lines, wanted) {
					fail("round %d: series\n%s\nwant\n%s", round, strings.Join(lines, "\n"), strings.Join(wanted, "\n"))
				}
			}
		}
		names := map[string]bool{}
		values := map[string]map[string]bool{}
		for _, x := range want {
			x.out.Range(func(l labels.Label) {
				names[l.Name] = true
				if values[l.Name] == nil {
					values[l.Name] = map[string]bool{}
				}
				values[l.Name][l.Value] = true
			})
		}
		before := len(c.s.requests)
		gotNames, err := w.LabelNames(c.ctx, &backend.LabelNamesRequest{Matchers: c.ms, MinTime: 0, MaxTime: 1 << 40})
		if c.bad {
			if err == nil {
				fail("label names although a link writes an enforced label")
			}
			continue
		}
		if err != nil || !slices.Equal(gotNames.Values, slices.Sorted(maps.Keys(names))) {
			fail("label names %v %v, want %q", gotNames, err, slices.Sorted(maps.Keys(names)))
		}
		for _, n := range append([]string{"z", "n", "r"}, someNames...) {
			got, err := w.LabelValues(c.ctx, &backend.LabelValuesRequest{Name: n, Matchers: c.ms, MinTime: 0, MaxTime: 1 << 40})
			if err != nil || !slices.Equal(got.Values, slices.Sorted(maps.Keys(values[n]))) {
				fail("label values of %s: %v %v, want %q", n, got, err, slices.Sorted(maps.Keys(values[n])))
			}
		}
		if len(c.s.requests) == before && len(want) > 0 {
			exact++
		}
		c.exemplars(t, w, want, conflict, fail)
		c.info(w, fail)
		for _, f := range c.chain {
			if len(f.rejected) > 0 {
				fail("a filter that keeps to its plan was rejected: %v", f.rejected)
			}
		}
	}
	if least := int(cases / 50); conflicts < least || exact < least {
		t.Errorf("%d conflicts and %d answers without asking for series: the cases are too tame", conflicts, exact)
	}
}

func (c *caseOf) exemplars(t *testing.T, w backend.Backend, want []truth, conflict bool, fail func(string, ...any)) {
	t.Helper()
	got, _, err := w.(backend.ExemplarsBackend).Exemplars(c.ctx, [][]*labels.Matcher{c.ms}, 0, 1<<40)
	if conflict {
		if err == nil {
			fail("exemplars of series that become equal")
		}
		return
	}
	if err != nil {
		fail("exemplars: %v", err)
	}
	var lines, wanted []string
	for _, x := range got {
		for _, e := range x.Exemplars {
			m := map[string]string{}
			for _, l := range x.SeriesLabels.Labels {
				m[l.Name] = l.Value
			}
			lines = append(lines, fmt.Sprint(labels.FromMap(m), e.Value))
		}
	}
	for _, x := range want {
		i := slices.IndexFunc(c.s.series, func(s backend.Series) bool { return labels.Equal(s.Labels, x.in.Labels) })
		wanted = append(wanted, fmt.Sprint(x.out, float64(i)))
	}
	slices.Sort(lines)
	slices.Sort(wanted)
	if !slices.Equal(lines, wanted) {
		fail("exemplars\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(wanted, "\n"))
	}
}

// info checks that what is advertised rules out no series.
func (c *caseOf) info(w backend.Backend, fail func(string, ...any)) {
	info, err := w.Info(context.Background())
	if err != nil {
		fail("info: %v", err)
	}
	if caps := info.Capabilities; !slices.ContainsFunc(c.chain, func(f *fake) bool { return f.plan.Tier != filter.TierNone || len(f.plan.Operations) > 0 }) {
		if !caps.Sharding || !caps.SeriesLimit {
			fail("a chain that changes nothing takes capabilities away")
		}
	} else if caps.Sharding || caps.SeriesLimit || caps.WithoutReplicaLabels {
		// A rename of a label to itself, and the like, changes nothing.
		if slices.ContainsFunc(c.chain, func(f *fake) bool { return f.plan.Tier != filter.TierNone }) {
			fail("a chain that changes label sets claims %+v", caps)
		}
	}
	// What all series have is all that can be told of a store that has said nothing yet.
	common := map[string]string{}
	for i, ls := range c.s.info.LabelSets {
		if i == 0 {
			common = ls.Map()
		}
		for n, v := range common {
			if ls.Get(n) != v {
				delete(common, n)
			}
		}
	}
	external := filtering.External(w, labels.FromMap(common))
	for _, x := range c.law.all(c.s) {
		fits := func(set labels.Labels) bool {
			ok := true
			set.Range(func(l labels.Label) { ok = ok && x.out.Get(l.Name) == l.Value })
			return ok
		}
		if !fits(external) {
			fail("series %s, %s in the store, does not have %v, which all series should have, as all have %v in the store", x.out, x.in.Labels, external, common)
		}
		if len(info.LabelSets) > 0 && !slices.ContainsFunc(info.LabelSets, fits) {
			fail("series %s, %s in the store, is not in any of the label sets %v, %v in the store", x.out, x.in.Labels, info.LabelSets, c.s.info.LabelSets)
		}
		if len(info.Ranges) > 0 && !slices.ContainsFunc(info.Ranges, func(r backend.LabelSetRange) bool { return fits(r.Labels) }) {
			fail("series %s is in none of the ranges %v", x.out, info.Ranges)
		}
	}
}

// TestManySeries: an answer of several runs, in batches and pieces of any size.
func TestManySeries(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 3))
		s := &store{framed: seed%2 == 0}
		for i := range 2500 {
			s.series = append(s.series, backend.Series{
				Labels: labels.FromStrings("__name__", "m", "a", fmt.Sprintf("%04d", i), "b", fmt.Sprintf("%04d", (i*7919)%2500)),
				Chunks: []backend.Chunk{chunk(3 * i), chunk(3*i + 1), chunk(3*i + 2)},
			})
		}
		f := &fake{rnd: r, plan: filter.Plan{Tier: filter.TierRows, Writes: []string{"a"}, Drops: true, Pure: seed > 2, Operations: []filter.Operation{{Rename: &filter.Rename{From: "a", To: "z"}}}},
			row: func(m map[string]string) bool { return !strings.HasSuffix(m["z"], "3") }}
		if seed == 5 {
			f.plan.Operations, f.plan.Writes = nil, nil
			f.row = func(m map[string]string) bool { return !strings.HasSuffix(m["a"], "3") }
		}
		want, _ := (&law{chain: []*fake{f}}).selected(s, nil, nil)
		// Batches of a few dozen pieces, so that runs end within series.
		b := filtering.Wrap(&rebatched{s, r}, []filtering.Link{{Filter: f}}, filtering.Options{})
		for range 2 {
			got, err := pieces(t, b, context.Background(), everyTime())
			if err != nil || len(got) != len(want) || len(got) != 2250 {
				t.Fatalf("seed %d: %d series, want %d, error %v", seed, len(got), len(want), err)
			}
			for i, x := range got {
				if a, b := describe(x.Labels, x.Chunks), describe(want[i].out, want[i].in.Chunks); a != b {
					t.Fatalf("seed %d: %s, want %s", seed, a, b)
				}
			}
		}
	}
}

// rebatched cuts each series into pieces and those into small batches.
type rebatched struct {
	*store
	r *rand.Rand
}

func (s *rebatched) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		out := backend.NewBatch(0)
		for b, err := range s.store.Series(ctx, req) {
			if err != nil {
				yield(b, err)
				return
			}
			for i := range b.Len() {
				x := b.At(i)
				for len(x.Chunks) > 0 {
					n := 1 + s.r.IntN(len(x.Chunks))
					out.Append(backend.Series{Labels: x.Labels, Chunks: x.Chunks[:n:n]})
					x.Chunks = x.Chunks[n:]
					if s.r.IntN(50) == 0 {
						if !yield(out, nil) {
							return
						}
						out = backend.NewBatch(0)
					}
				}
			}
		}
		yield(out, nil)
	}
}
