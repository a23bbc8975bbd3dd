// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filters

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
)

const lawText = "What is selected through a filter f is merge(sort(f(s) for every series s that f keeps and whose f(s) matches M))"

func law() []Requirement {
	must := func(id, rule string, check func(*probe)) Requirement {
		return Requirement{
			ID: id, Profile: Law, Level: report.Must, Rule: rule, Since: "1.0", check: check,
			unless: func(p *probe) string {
				if !p.rewrites() {
					return "the plan rewrites no label sets"
				}
				return ""
			},
			lacking: func(p *probe) string {
				if p.s.Wrap == nil {
					return "the harness was given no way to put the filter around a store"
				}
				return ""
			},
		}
	}
	vectors := func(f func(p *probe, g *ground, r *rand.Rand) [][]*labels.Matcher) func(*probe) {
		return func(p *probe) {
			if g := p.theGround(); g != nil {
				asks := f(p, g, p.random())
				if len(asks) == 0 {
					p.res.Outcome, p.res.Detail = report.NotApplicable, "this filter makes no such label sets of the suite's series"
				}
				p.asked(g.apart, asks)
			}
		}
	}
	return []Requirement{
		must("F-law.all", lawText+": all of them without matchers.", vectors(func(*probe, *ground, *rand.Rand) [][]*labels.Matcher { return [][]*labels.Matcher{nil} })),
		must("F-law.renamed", lawText+": a matcher on a name that is gone finds what lacks it.", vectors(renamedAway)),
		must("F-law.written", lawText+": a matcher on a name that is written finds what was written.", vectors(written)),
		must("F-law.absent", lawText+": the absent label has the value \"\", for every kind of matcher.", vectors(absent)),
		must("F-law.negative", lawText+": != and !~ are about the label sets that come out.", vectors(negative)),
		must("F-law.values", lawText+": of a label whose values change, only the new ones are found, all that become one of them with it.", vectors(mapped)),
		must("F-law.both", lawText+": series that had the old name and the new one are selected by what they became.", vectors(both)),
		must("F-law.external", lawText+": external and replica labels are labels like others.", vectors(external)),
		must("F-law.random", lawText+": whatever the matchers.", vectors(func(p *probe, g *ground, r *rand.Rand) (out [][]*labels.Matcher) {
			for range 150 {
				out = append(out, g.random(r))
			}
			return out
		})),
		must("F-law.order", "The result is in the order of the new label sets, each once.", (*probe).ordered),
		must("F-law.merge", "Merge: series that become equal are one, otherwise that is an error.", (*probe).merges),
		must("F-law.chunks", "A series keeps its samples under its new label set; those that are merged have the samples of all.", (*probe).chunked),
		must("F-law.label-names", "Label names are those of the result.", (*probe).labelNames),
		must("F-law.label-values", "Label values are those of the result.", (*probe).labelValues),
	}
}

// member is a series of the store and what f makes of it.
type member struct {
	in     labels.Labels
	out    outcome
	chunks []backend.Chunk
}

// ground is what the law is tested on.
type ground struct {
	all []member
	// apart are those of all that stay different, if the plan does not merge.
	apart []member
	// before and after are names, and values of each.
	before, after map[string][]string
	// writes are names that some series has with another value before and after.
	writes []string
}

// theGround is made once; nil after a failure, which is noted.
func (p *probe) theGround() *ground {
	if p.ground != nil {
		return p.ground
	}
	g := &ground{before: map[string][]string{}, after: map[string][]string{}}
	r := rand.New(rand.NewPCG(p.o.Seed, 5))
	sets := p.sets(r, 70, false)
	for i := range sets { // external labels are on every series of a store
		b := labels.NewBuilder(sets[i])
		b.Set("replica", []string{"r1", "r2"}[i%2])
		if !sets[i].Has("cluster") {
			b.Set("cluster", "eu1")
		}
		sets[i] = b.Labels()
	}
	// Pairs that the filter may make equal, since they differ in what it writes.
	for i := 0; i < len(sets) && i < 24 && p.ctx.Err() == nil; i++ {
		x, err := p.of(sets[i])
		if err != nil || !x.kept {
			continue
		}
		for _, n := range append(namesOf(sets[i]), namesOf(x.out)...) {
			if n != "__name__" && sets[i].Get(n) != x.out.Get(n) {
				sets = append(sets, labels.NewBuilder(sets[i]).Set(n, "").Labels(), labels.NewBuilder(sets[i]).Set(n, "other").Labels())
			}
		}
	}
	slices.SortFunc(sets, labels.Compare)
	sets = slices.CompactFunc(sets, labels.Equal)
	seen := map[string]bool{}
	refused := 0
	note := func(m map[string][]string, ls labels.Labels) {
		ls.Range(func(l labels.Label) {
			if !slices.Contains(m[l.Name], l.Value) {
				m[l.Name] = append(m[l.Name], l.Value)
			}
		})
	}
	for i, ls := range sets {
		out, err := p.of(ls)
		if p.fault(err) {
			p.fail("f("+show(ls)+")", "%v", err)
			return nil
		} else if err != nil {
			refused++
			continue
		}
		chunks, err := shaping.EncodeSamples([]shaping.Sample{{T: int64(1000 + i), F: float64(i)}})
		if err != nil {
			p.fail("a sample", "%v", err)
			return nil
		}
		m := member{ls, out, chunks}
		g.all = append(g.all, m)
		if k := out.out.String(); !out.kept || p.plan.Merge || !seen[k] {
			seen[k] = seen[k] || out.kept
			g.apart = append(g.apart, m)
		}
		note(g.before, ls)
		if out.kept {
			note(g.after, out.out)
			for _, n := range append(namesOf(ls), namesOf(out.out)...) {
				if ls.Get(n) != out.out.Get(n) && !slices.Contains(g.writes, n) {
					g.writes = append(g.writes, n)
				}
			}
		}
	}
	if len(g.all) == 0 {
		p.fail("f(s)", "it refuses each of %d label sets", refused)
		return nil
	}
	slices.Sort(g.writes)
	p.ground = g
	return g
}

// shelf is a store of label sets that answers what it is asked.
type shelf struct {
	backend.Unimplemented
	series []member
}

func (s *shelf) Info(context.Context) (backend.Info, error) { return backend.AllTime(), nil }

func (s *shelf) Series(_ context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		b := backend.NewBatch(len(s.series))
		for _, m := range s.series {
			if !shaping.Matches(m.in, req.Matchers) {
				continue
			}
			x := backend.Series{Labels: m.in}
			if !req.SkipChunks {
				x.Chunks = slices.Clone(m.chunks)
			}
			if b.Append(x); b.Len() == 16 {
				if !yield(b, nil) {
					return
				}
				b = backend.NewBatch(16)
			}
		}
		if b.Len() > 0 {
			yield(b, nil)
		}
	}
}

func (s *shelf) LabelNames(_ context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	var out []string
	for _, m := range s.series {
		if shaping.Matches(m.in, req.Matchers) {
			out = append(out, namesOf(m.in)...)
		}
	}
	out = slices.DeleteFunc(out, func(n string) bool { return slices.Contains(req.WithoutReplicaLabels, n) })
	return &backend.Labels{Values: shaping.SortedUnique(out, req.Limit)}, nil
}

func (s *shelf) LabelValues(_ context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	var out []string
	for _, m := range s.series {
		if v := m.in.Get(req.Name); v != "" && shaping.Matches(m.in, req.Matchers) {
			out = append(out, v)
		}
	}
	return &backend.Labels{Values: shaping.SortedUnique(out, req.Limit)}, nil
}

// expectation is what the law says of a request.
type expectation struct {
	series []member // in order; those that are to be one follow each other
	// conflict are two that become equal and must not, nil without.
	conflict []labels.Labels
	denied   bool
}

// required is what the select hook asks for, if there is one.
func (p *probe) required(ms []*labels.Matcher) (require []*labels.Matcher, none, denied bool) {
	if !p.hook(filter.HookSelect) {
		return nil, false, false
	}
	c := &filter.SelectCall{Backend: Backend, MaxTime: 1 << 40}
	for _, m := range ms {
		c.Matchers = append(c.Matchers, filter.Matcher{Type: filter.MatchType(m.Type), Name: m.Name, Value: m.Value})
	}
	r, _, err := p.choose(c)
	if err != nil || r.Deny != nil {
		return nil, false, true
	}
	for _, m := range r.Require {
		x, err := compile(m)
		if err != nil {
			return nil, false, true
		}
		require = append(require, x)
	}
	return require, r.None, false
}

func (p *probe) expect(store []member, ms []*labels.Matcher) (e expectation) {
	require, none, denied := p.required(ms)
	if e.denied = denied; denied || none {
		return e
	}
	for _, m := range store {
		if m.out.kept && shaping.Matches(m.in, require) && shaping.Matches(m.out.out, ms) {
			e.series = append(e.series, m)
		}
	}
	slices.SortStableFunc(e.series, func(a, b member) int { return labels.Compare(a.out.out, b.out.out) })
	for i := 1; i < len(e.series) && !p.plan.Merge && e.conflict == nil; i++ {
		if labels.Equal(e.series[i-1].out.out, e.series[i].out.out) {
			e.conflict = []labels.Labels{e.series[i-1].in, e.series[i].in}
		}
	}
	return e
}

// lines are label sets, each once, and with chunks the times of their samples.
func (e *expectation) lines(chunks bool) (out []string) {
	var last labels.Labels
	for i, m := range e.series {
		if i == 0 || !labels.Equal(m.out.out, last) {
			out = append(out, m.out.out.String())
		}
		last = m.out.out
		if chunks {
			out[len(out)-1] += fmt.Sprintf(" %d", m.chunks[0].MinTime)
		}
	}
	if chunks { // in order of time
		for i := range out {
			at := strings.LastIndexByte(out[i], '}')
			times := strings.Fields(out[i][at+1:])
			slices.Sort(times)
			out[i] = out[i][:at+1] + " " + strings.Join(times, " ")
		}
	}
	return out
}

// selected reads an answer; ordered is the first breach of order, "" without.
func (p *probe) selected(store []member, ms []*labels.Matcher, skip bool) (lines []string, order string, err error) {
	type read struct {
		lines []string
		order string
	}
	got, err := timelyLong(p, func(ctx context.Context) (read, error) {
		var r read
		var last labels.Labels
		for b, err := range p.s.Wrap(&shelf{series: store}).Series(ctx, &backend.SeriesRequest{Matchers: ms, MaxTime: 1 << 40, SkipChunks: skip}) {
			if err != nil {
				return r, err
			}
			for _, n := range b.Notices() {
				if n.Kind == backend.NoticeMissing {
					return r, fmt.Errorf("the answer is not whole: %s", n.Text)
				}
			}
			for i := range b.Len() {
				x := b.At(i)
				piece := len(r.lines) > 0 && labels.Equal(last, x.Labels) && len(x.Chunks) > 0
				if d := labels.Compare(last, x.Labels); len(r.lines) > 0 && r.order == "" && (d > 0 || d == 0 && !piece) {
					r.order = fmt.Sprintf("%s comes after %s", show(x.Labels), show(last))
				}
				if last = x.Labels; !piece {
					r.lines = append(r.lines, x.Labels.String())
				}
				for _, c := range x.Chunks {
					r.lines[len(r.lines)-1] += fmt.Sprintf(" %d", c.MinTime)
				}
			}
		}
		return r, nil
	})
	return got.lines, got.order, err
}

// timelyLong is for calls that make many calls of the filter.
func timelyLong[R any](p *probe, f func(ctx context.Context) (R, error)) (R, error) {
	p.requests.Add(1)
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	return within(ctx, 20*p.limit+grace, func() (R, error) { return f(ctx) })
}

// differs compares one request with the law; nil if it holds.
func (p *probe) differs(store []member, ms []*labels.Matcher, skip bool) *report.Failure {
	e := p.expect(store, ms)
	got, _, err := p.selected(store, ms, skip)
	f := &report.Failure{Request: requestText(store, ms)}
	switch {
	case e.denied && err == nil:
		f.Message = "the select hook denies it, and it is answered"
	case e.denied:
		return nil
	case len(e.conflict) > 0 && err == nil:
		f.Message = fmt.Sprintf("%s and %s become equal and the plan does not merge, which has to be an error", show(e.conflict[0]), show(e.conflict[1]))
		f.Actual = got[:min(len(got), 5)]
	case len(e.conflict) > 0 && p.fault(err):
		f.Message = err.Error()
	case len(e.conflict) > 0:
		return nil
	case err != nil:
		f.Message = "it fails: " + short(err.Error())
	default:
		want := e.lines(!skip)
		if slices.Equal(got, want) {
			return nil
		}
		f.Message = fmt.Sprintf("%d series, want %d", len(got), len(want))
		f.Expected, f.Actual = difference(want, got)
	}
	return f
}

// difference cuts two lists to what they do not share.
func difference(want, got []string) (w, g []string) {
	cut := func(a, b []string) (out []string) {
		for _, x := range a {
			if !slices.Contains(b, x) && len(out) < 5 {
				out = append(out, short(x))
			}
		}
		return out
	}
	w, g = cut(want, got), cut(got, want)
	if len(w)+len(g) == 0 { // the same, in another order or more than once
		return want[:min(len(want), 5)], got[:min(len(got), 5)]
	}
	return w, g
}

func matchersText(ms []*labels.Matcher) string {
	var out []string
	for _, m := range ms {
		out = append(out, short(m.String()))
	}
	return "{" + strings.Join(out, ", ") + "}"
}

func requestText(store []member, ms []*labels.Matcher) string {
	var out []string
	for i, m := range store {
		if i == 4 {
			out = append(out, fmt.Sprintf("and %d more", len(store)-i))
			break
		}
		out = append(out, show(m.in)+" → "+m.out.String())
	}
	return fmt.Sprintf("select %s from %s", matchersText(ms), strings.Join(out, "; "))
}

// asked compares requests with the law, and notes the shortest forms of what fails.
func (p *probe) asked(store []member, asks [][]*labels.Matcher) {
	for _, ms := range asks {
		if p.differs(store, ms, true) != nil {
			p.shortest(store, ms, func(store []member, ms []*labels.Matcher) *report.Failure { return p.differs(store, ms, true) })
		}
		if p.enough() {
			return
		}
	}
}

// shortest notes a failure in the shortest form that is found: fewer series, fewer
// matchers.
func (p *probe) shortest(store []member, ms []*labels.Matcher, differs func([]member, []*labels.Matcher) *report.Failure) {
	tries := shrinkTries
	f := differs(store, ms)
	if f == nil {
		p.fail(requestText(store, ms), "it fails at times only")
		return
	}
	ms = shrink(ms, &tries, func(l []*labels.Matcher) bool { return differs(store, l) != nil })
	store = shrink(store, &tries, func(l []member) bool { return differs(l, ms) != nil })
	if again := differs(store, ms); again != nil {
		f = again
	}
	p.failure(*f)
}

func match(t labels.MatchType, name, value string) []*labels.Matcher {
	m, err := labels.NewMatcher(t, name, value)
	if err != nil {
		return nil
	}
	return []*labels.Matcher{m}
}

func some[T any](r *rand.Rand, n int, list []T) []T {
	if len(list) <= n {
		return list
	}
	r.Shuffle(len(list), func(a, b int) { list[a], list[b] = list[b], list[a] })
	return list[:n]
}

const (
	equal = labels.MatchEqual
	not   = labels.MatchNotEqual
	like  = labels.MatchRegexp
	nlike = labels.MatchNotRegexp
)

// about are matchers of every kind on one name, with the values that it has before and after.
func (g *ground) about(name string) (out [][]*labels.Matcher) {
	values := slices.Concat(g.before[name], g.after[name])
	slices.Sort(values)
	values = slices.Compact(values)
	for _, v := range values {
		q := regexp.QuoteMeta(v)
		out = append(out, match(equal, name, v), match(not, name, v), match(like, name, q+"|nothing"), match(nlike, name, q))
	}
	if len(values) > 1 {
		q := regexp.QuoteMeta(values[0]) + "|" + regexp.QuoteMeta(values[len(values)-1])
		out = append(out, match(like, name, q), match(nlike, name, q), match(nlike, name, "(?:"+q+").*"))
	}
	return append(out, g.empty(name)...)
}

func (g *ground) empty(name string) [][]*labels.Matcher {
	return [][]*labels.Matcher{
		match(equal, name, ""), match(not, name, ""), match(like, name, ".*"), match(nlike, name, ".*"), match(like, name, ".+"),
		match(nlike, name, ".+"), match(like, name, "|x"), match(nlike, name, "|x"), match(not, name, "nothing"), match(nlike, name, "nothing.*"),
	}
}

func (g *ground) names() []string {
	out := slices.Concat(slices.Collect(maps.Keys(g.before)), slices.Collect(maps.Keys(g.after)), []string{"no_such_label"})
	slices.Sort(out)
	return slices.Compact(out)
}

func renamedAway(_ *probe, g *ground, r *rand.Rand) (out [][]*labels.Matcher) {
	for _, n := range sortedKeys(g.before) {
		if g.after[n] == nil {
			out = append(out, g.about(n)...)
		}
	}
	return some(r, 120, out)
}

func written(_ *probe, g *ground, r *rand.Rand) (out [][]*labels.Matcher) {
	for _, n := range g.writes {
		for _, v := range g.after[n] {
			out = append(out, match(equal, n, v), match(like, n, regexp.QuoteMeta(v)))
		}
		out = append(out, match(not, n, ""), match(like, n, ".+"))
	}
	return some(r, 120, out)
}

func absent(_ *probe, g *ground, r *rand.Rand) (out [][]*labels.Matcher) {
	for _, n := range g.writes {
		out = append(out, g.empty(n)...)
	}
	var others [][]*labels.Matcher
	for _, n := range g.names() {
		others = append(others, g.empty(n)...)
	}
	return append(some(r, 90, out), some(r, 60, others)...)
}

func negative(_ *probe, g *ground, r *rand.Rand) (out [][]*labels.Matcher) {
	for _, n := range g.writes {
		for _, v := range slices.Concat(g.after[n], g.before[n]) {
			out = append(out, match(not, n, v), match(nlike, n, regexp.QuoteMeta(v)), match(nlike, n, regexp.QuoteMeta(v)+"|a.*"))
		}
	}
	return some(r, 120, out)
}

func mapped(_ *probe, g *ground, r *rand.Rand) (out [][]*labels.Matcher) {
	for _, n := range g.writes {
		if g.before[n] != nil && g.after[n] != nil {
			out = append(out, g.about(n)...)
		}
	}
	return some(r, 120, out)
}

// both are two matchers at once: on a name that loses values and on one that gains them.
func both(_ *probe, g *ground, r *rand.Rand) (out [][]*labels.Matcher) {
	for _, a := range g.writes {
		for _, b := range g.writes {
			if a == b {
				continue
			}
			x, y := some(r, 6, g.about(a)), some(r, 6, g.about(b))
			for i := range min(len(x), len(y)) {
				out = append(out, slices.Concat(x[i], y[i]))
			}
		}
	}
	return some(r, 120, out)
}

func external(_ *probe, g *ground, r *rand.Rand) (out [][]*labels.Matcher) {
	for _, n := range []string{"cluster", "replica"} {
		out = append(out, g.about(n)...)
		for _, w := range g.writes {
			out = append(out, slices.Concat(match(equal, n, anyOf(g.before[n])), match(not, w, "")), slices.Concat(match(not, n, anyOf(g.before[n])), match(equal, w, anyOf(g.after[w]))))
		}
	}
	return some(r, 120, out)
}

func anyOf(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func (g *ground) random(r *rand.Rand) (out []*labels.Matcher) {
	names := g.names()
	for range 1 + r.IntN(3) {
		n := names[r.IntN(len(names))]
		if len(g.writes) > 0 && r.IntN(2) == 0 {
			n = g.writes[r.IntN(len(g.writes))]
		}
		list := g.about(n)
		out = append(out, list[r.IntN(len(list))]...)
	}
	return out
}

func (p *probe) ordered() {
	g := p.theGround()
	if g == nil {
		return
	}
	asks := [][]*labels.Matcher{nil}
	r := p.random()
	for range 20 {
		asks = append(asks, g.random(r))
	}
	breach := func(store []member, ms []*labels.Matcher) *report.Failure {
		for _, skip := range []bool{true, false} {
			if _, order, err := p.selected(store, ms, skip); err == nil && order != "" {
				return &report.Failure{Request: requestText(store, ms), Message: order}
			}
		}
		return nil
	}
	for _, ms := range asks {
		if breach(g.apart, ms) != nil {
			p.shortest(g.apart, ms, breach)
		}
		if p.enough() {
			return
		}
	}
}

func (p *probe) merges() {
	g := p.theGround()
	if g == nil {
		return
	}
	// Pairs that become equal, each by itself and all together.
	first := map[string]member{}
	var pairs [][]member
	for _, m := range g.all {
		k := m.out.out.String()
		if a, ok := first[k]; ok && m.out.kept {
			pairs = append(pairs, []member{a, m})
		} else if m.out.kept {
			first[k] = m
		}
	}
	if len(pairs) == 0 {
		p.res.Outcome, p.res.Detail = report.NotApplicable, "no two of the suite's series become equal"
		return
	}
	for _, pair := range append(pairs[:min(len(pairs), 20)], g.all) {
		for _, skip := range []bool{true, false} {
			if p.differs(pair, nil, skip) != nil {
				p.shortest(pair, nil, func(store []member, ms []*labels.Matcher) *report.Failure { return p.differs(store, ms, skip) })
			}
			if p.enough() {
				return
			}
		}
	}
}

func (p *probe) chunked() {
	g := p.theGround()
	if g == nil {
		return
	}
	asks := [][]*labels.Matcher{nil}
	r := p.random()
	for range 30 {
		asks = append(asks, g.random(r))
	}
	withChunks := func(store []member, ms []*labels.Matcher) *report.Failure { return p.differs(store, ms, false) }
	for _, ms := range asks {
		if withChunks(g.apart, ms) != nil {
			p.shortest(g.apart, ms, withChunks)
		}
		if p.enough() {
			return
		}
	}
}

// listing compares a list of names or values with the law.
func (p *probe) listing(what string, list func(ctx context.Context, b backend.Backend, ms []*labels.Matcher) (*backend.Labels, error), of func(labels.Labels) []string, ms []*labels.Matcher) {
	differs := func(store []member, ms []*labels.Matcher) *report.Failure {
		e := p.expect(store, ms)
		var want []string
		for _, m := range e.series {
			want = append(want, of(m.out.out)...)
		}
		want = shaping.SortedUnique(want, 0)
		got, err := timelyLong(p, func(ctx context.Context) (*backend.Labels, error) {
			return list(ctx, p.s.Wrap(&shelf{series: store}), ms)
		})
		f := &report.Failure{Request: what + " of " + requestText(store, ms)}
		switch {
		case e.denied && err == nil:
			f.Message = "the select hook denies it, and it is answered"
		case e.denied:
			return nil
		case err != nil:
			f.Message = "it fails: " + short(err.Error())
		case !slices.Equal(got.Values, want):
			f.Message = fmt.Sprintf("%d, want %d", len(got.Values), len(want))
			f.Expected, f.Actual = difference(want, got.Values)
		default:
			return nil
		}
		return f
	}
	store := p.ground.apart
	if differs(store, ms) != nil {
		p.shortest(store, ms, differs)
	}
}

func (p *probe) labelNames() {
	g := p.theGround()
	if g == nil {
		return
	}
	r := p.random()
	for i := range 25 {
		var ms []*labels.Matcher
		if i > 0 {
			ms = g.random(r)
		}
		p.listing("label names", func(ctx context.Context, b backend.Backend, ms []*labels.Matcher) (*backend.Labels, error) {
			return b.LabelNames(ctx, &backend.LabelNamesRequest{Matchers: ms, MaxTime: 1 << 40})
		}, namesOf, ms)
		if p.enough() {
			return
		}
	}
}

func (p *probe) labelValues() {
	g := p.theGround()
	if g == nil {
		return
	}
	r := p.random()
	for _, n := range g.names() {
		for i := range 3 {
			var ms []*labels.Matcher
			if i > 0 {
				ms = g.random(r)
			}
			p.listing("values of "+n, func(ctx context.Context, b backend.Backend, ms []*labels.Matcher) (*backend.Labels, error) {
				return b.LabelValues(ctx, &backend.LabelValuesRequest{Name: n, Matchers: ms, MaxTime: 1 << 40})
			}, func(ls labels.Labels) []string {
				if v := ls.Get(n); v != "" {
					return []string{v}
				}
				return nil
			}, ms)
			if p.enough() {
				return
			}
		}
	}
}
