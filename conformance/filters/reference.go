// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filters

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

const (
	// grace is how long after its limit a call may return before it counts as one that
	// never does.
	grace = 2 * time.Second
	// shrinkTries bounds how often a failing request is asked again in simpler forms.
	shrinkTries = 120
	// listed is the most failures of a requirement that a report lists.
	listed = 5
)

// probe is what a requirement asks through, and where it says what is wrong.
type probe struct {
	ctx    context.Context
	s      *Subject
	o      Options
	plan   filter.Plan
	broken error // what is wrong with the plan
	limit  time.Duration

	r        Requirement
	res      *report.Result
	requests atomic.Int64
	ground   *ground // of the law, made when it is needed first
}

func newProbe(ctx context.Context, s *Subject, o Options) *probe {
	p := &probe{ctx: ctx, s: s, o: o, limit: s.CallLimit, plan: s.Filter.Plan()}
	if p.limit <= 0 {
		p.limit = defaultLimit
	}
	p.broken = possible(&p.plan)
	return p
}

func (p *probe) hook(name string) bool { return slices.Contains(p.plan.Hooks, name) }

func (p *probe) rewrites() bool { return p.plan.Tier != filter.TierNone || len(p.plan.Operations) > 0 }

func (p *probe) fail(request, format string, args ...any) {
	p.failure(report.Failure{Request: request, Message: fmt.Sprintf(format, args...)})
}

func (p *probe) failure(f report.Failure) {
	p.res.Outcome = report.Failed
	// Many requests have the same shortest form.
	if len(p.res.Failures) == listed || slices.ContainsFunc(p.res.Failures, func(x report.Failure) bool { return x.Request == f.Request && x.Message == f.Message }) {
		p.res.More++
		return
	}
	p.res.Failures = append(p.res.Failures, f)
}

// enough says that more failures would tell nothing new.
func (p *probe) enough() bool {
	return len(p.res.Failures)+p.res.More >= listed || p.ctx.Err() != nil
}

// random is of its own for each requirement, so that one can be run alone.
func (p *probe) random() *rand.Rand {
	seed := p.o.Seed
	for _, b := range []byte(p.r.ID) {
		seed = seed*1099511628211 + uint64(b)
	}
	return rand.New(rand.NewPCG(seed, 11))
}

func (p *probe) fault(err error) bool {
	return errors.Is(err, ErrFault) || p.s.Fault != nil && p.s.Fault(err)
}

// timely makes one call and says how long it took. Whatever carries the filter, it does
// not wait for ever.
func timely[R any](p *probe, f func(ctx context.Context) (R, error)) (R, time.Duration, error) {
	p.requests.Add(1)
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	began := time.Now()
	r, err := within(ctx, p.limit+grace, func() (R, error) { return f(ctx) })
	return r, time.Since(began), err
}

func (p *probe) request(c *filter.RequestCall) (*filter.RequestReply, time.Duration, error) {
	r, took, err := timely(p, func(ctx context.Context) (*filter.RequestReply, error) { return p.s.Filter.Request(ctx, c) })
	if err == nil && r == nil {
		r = &filter.RequestReply{}
	}
	return r, took, err
}

func (p *probe) choose(c *filter.SelectCall) (*filter.SelectReply, time.Duration, error) {
	r, took, err := timely(p, func(ctx context.Context) (*filter.SelectReply, error) { return p.s.Filter.Select(ctx, c) })
	if err == nil && r == nil {
		r = &filter.SelectReply{}
	}
	return r, took, err
}

func (p *probe) exchange(data []byte) ([]byte, time.Duration, error) {
	return timely(p, func(ctx context.Context) ([]byte, error) { return p.s.Filter.Rewrite(ctx, data, nil) })
}

// outcome is what becomes of one label set.
type outcome struct {
	kept bool
	out  labels.Labels
}

func (o outcome) String() string {
	if !o.kept {
		return "left out"
	}
	return show(o.out)
}

func (o outcome) equal(x outcome) bool { return o.kept == x.kept && labels.Equal(o.out, x.out) }

// possible says what is wrong with a plan, by itself.
func possible(plan *filter.Plan) error {
	name := func(what, n string) error {
		if n == "" || !utf8.ValidString(n) {
			return fmt.Errorf("%s: the label name %q is empty or not valid UTF-8", what, n)
		}
		return nil
	}
	if plan.Tier > filter.TierRows {
		return fmt.Errorf("there is no tier %d", plan.Tier)
	}
	if plan.Tier == filter.TierColumns && len(plan.Columns) == 0 {
		return errors.New("tier columns without columns: rewrite would never be called")
	}
	lists := map[string][]string{"columns": plan.Columns, "reads": plan.Reads, "writes": plan.Writes, "keeps": plan.Keeps}
	for _, what := range sortedKeys(lists) {
		list := lists[what]
		for i, n := range list {
			if err := name(what, n); err != nil {
				return err
			}
			if what == "columns" && slices.Contains(list[:i], n) {
				return fmt.Errorf("columns: %q is there twice", n)
			}
		}
	}
	for _, h := range plan.Hooks {
		if !slices.Contains([]string{filter.HookRequest, filter.HookSelect, filter.HookRewrite}, h) {
			return fmt.Errorf("hooks: there is no hook %q", h)
		}
	}
	for i := range plan.Operations {
		if err := possibleOperation(&plan.Operations[i], name); err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
	}
	return nil
}

func possibleOperation(o *filter.Operation, name func(what, n string) error) error {
	var errs []error
	set := 0
	if o.Rename != nil {
		set++
		errs = append(errs, name("rename", o.Rename.From), name("rename", o.Rename.To))
	}
	for what, list := range map[string][]string{"drop": o.Drop, "keep": o.Keep} {
		if list != nil {
			set++
		}
		for _, n := range list {
			errs = append(errs, name(what, n))
		}
	}
	if o.Set != nil {
		set++
		errs = append(errs, name("set", o.Set.Name))
		if !utf8.ValidString(o.Set.Value) {
			errs = append(errs, fmt.Errorf("set: the value %q is not valid UTF-8", o.Set.Value))
		}
	}
	if o.Map != nil {
		set++
		errs = append(errs, name("map", o.Map.Name))
		seen := map[string]bool{}
		for _, v := range o.Map.Values {
			if seen[v.From] || !utf8.ValidString(v.From) || !utf8.ValidString(v.To) {
				errs = append(errs, fmt.Errorf("map: the value %q is there twice, or is not valid UTF-8", v.From))
			}
			seen[v.From] = true
		}
	}
	if o.Require != nil {
		set++
		_, err := compile(*o.Require)
		errs = append(errs, err)
	}
	if set != 1 {
		errs = append(errs, fmt.Errorf("%d of its fields are set, which must be one", set))
	}
	return errors.Join(errs...)
}

// compile makes a matcher of one of the contract.
func compile(m filter.Matcher) (*labels.Matcher, error) {
	if m.Name == "" || !utf8.ValidString(m.Name) {
		return nil, fmt.Errorf("a matcher has the label name %q, which is empty or not valid UTF-8", m.Name)
	}
	if m.Type > filter.MatchNotRegexp {
		return nil, fmt.Errorf("the matcher on %q has the unknown type %d", m.Name, m.Type)
	}
	x, err := labels.NewMatcher(labels.MatchType(m.Type), m.Name, m.Value)
	if err != nil {
		return nil, fmt.Errorf("the matcher on %q does not compile: %w", m.Name, err)
	}
	return x, nil
}

// operate does the plan's operations by their words.
func (p *probe) operate(ls labels.Labels) outcome {
	m := ls.Map()
	set := func(n, v string) {
		if m[n] = v; v == "" {
			delete(m, n)
		}
	}
	for _, o := range p.plan.Operations {
		switch {
		case o.Rename != nil:
			v := m[o.Rename.From]
			delete(m, o.Rename.From)
			set(o.Rename.To, v)
		case o.Drop != nil:
			for _, n := range o.Drop {
				delete(m, n)
			}
		case o.Keep != nil:
			for n := range m {
				if !slices.Contains(o.Keep, n) {
					delete(m, n)
				}
			}
		case o.Set != nil:
			set(o.Set.Name, o.Set.Value)
		case o.Map != nil:
			for _, x := range o.Map.Values {
				if m[o.Map.Name] == x.From {
					set(o.Map.Name, x.To)
					break
				}
			}
		case o.Require != nil:
			// It compiles, or nothing is tested.
			if x, err := compile(*o.Require); err == nil && !x.Matches(m[x.Name]) {
				return outcome{}
			}
		}
	}
	return outcome{true, labels.FromMap(m)}
}

// mayWrite says whether Rewrite may write a label.
func (p *probe) mayWrite(name string) bool {
	return p.plan.WritesAny && !slices.Contains(p.plan.Keeps, name) || slices.Contains(p.plan.Writes, name)
}

// frameOf is the frame of the plan's tier for label sets behind the operations. Of tier
// rows its rows are the sets; otherwise their lists of names, or values, each once.
func (p *probe) frameOf(sets []labels.Labels) ([]byte, error) {
	var b frame.Builder
	switch p.plan.Tier {
	case filter.TierNames:
		for _, list := range nameLists(sets) {
			for _, n := range list {
				b.Withhold(n)
			}
			b.EndRow()
		}
	case filter.TierColumns:
		for _, n := range p.plan.Columns {
			for _, v := range valuesOf(sets, n) {
				b.Label(n, v)
				b.EndRow()
			}
		}
	default:
		for _, ls := range sets {
			ls.Range(func(l labels.Label) { b.Label(l.Name, l.Value) })
			b.EndRow()
		}
	}
	return b.Append(nil)
}

func namesOf(ls labels.Labels) (out []string) {
	ls.Range(func(l labels.Label) { out = append(out, l.Name) })
	return out
}

func key(list []string) string { return strings.Join(list, "\x00") }

// nameLists are the distinct lists of names, in the order in which they appear.
func nameLists(sets []labels.Labels) (out [][]string) {
	seen := map[string]bool{}
	for _, ls := range sets {
		if list := namesOf(ls); !seen[key(list)] {
			seen[key(list)] = true
			out = append(out, list)
		}
	}
	return out
}

func valuesOf(sets []labels.Labels, name string) (out []string) {
	seen := map[string]bool{"": true}
	for _, ls := range sets {
		if v := ls.Get(name); !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	return out
}

// rewritten is what Rewrite makes of label sets, read from its reply.
type rewritten struct {
	outs []outcome
	// against are the ways in which the reply breaks the plan, of writes and of drops.
	writes, drops []string
	took          time.Duration
}

// rewrite sends label sets, behind the operations, through Rewrite in one frame. A reply
// that is not valid is a fault.
func (p *probe) rewrite(sets []labels.Labels) (*rewritten, error) {
	w := &rewritten{}
	if p.plan.Tier == filter.TierNone {
		for _, ls := range sets {
			w.outs = append(w.outs, outcome{true, ls})
		}
		return w, nil
	}
	data, err := p.frameOf(sets)
	if err != nil {
		return nil, err
	}
	return p.rewriteFrame(data, sets)
}

func (p *probe) rewriteFrame(data []byte, sets []labels.Labels) (w *rewritten, err error) {
	reply, took, err := p.exchange(slices.Clone(data))
	w = &rewritten{took: took}
	if err != nil {
		return w, err
	}
	var in frame.Frame
	if err := in.Parse(data); err != nil {
		return w, err
	}
	var c frame.Changes
	if err := c.Parse(reply, &in, frame.Tier(p.plan.Tier)); err != nil {
		return w, fmt.Errorf("%w: the reply is not valid: %w", ErrFault, err)
	}
	r := reading{p: p, w: w, c: &c, in: &in}
	switch p.plan.Tier {
	case filter.TierNames:
		r.names(sets)
	case filter.TierColumns:
		r.columns(sets)
	default:
		r.rows(sets)
	}
	slices.Sort(w.writes)
	w.writes = slices.Compact(w.writes)
	return w, nil
}

// reading reads a reply.
type reading struct {
	p  *probe
	w  *rewritten
	c  *frame.Changes
	in *frame.Frame
}

func (r *reading) against(name, how string) {
	if !r.p.mayWrite(name) {
		r.w.writes = append(r.w.writes, fmt.Sprintf("it %s the label %q", how, name))
	}
}

func (r *reading) drop(what string) {
	if !r.p.plan.Drops {
		r.w.drops = append(r.w.drops, what)
	}
}

func (r *reading) rows(sets []labels.Labels) {
	row := 0
	for i := range r.in.Groups() {
		g := r.c.Group(i)
		for k := range g.Input().Rows() {
			ls := sets[row]
			row++
			switch {
			case !g.Keeps(k):
				r.drop(show(ls))
				r.w.outs = append(r.w.outs, outcome{})
			case !g.Changed():
				r.w.outs = append(r.w.outs, outcome{true, ls})
			default:
				m := map[string]string{}
				for j := range g.Columns() {
					c := g.Column(j)
					if v := r.c.Symbol(c.Ref(k)); v != "" {
						m[strings.Clone(r.c.Symbol(c.Name))] = strings.Clone(v)
					}
				}
				ls.Range(func(l labels.Label) {
					if v, ok := m[l.Name]; !ok {
						r.against(l.Name, "removes")
					} else if v != l.Value {
						r.against(l.Name, "changes")
					}
				})
				for n := range m {
					if !ls.Has(n) {
						r.against(n, "adds")
					}
				}
				r.w.outs = append(r.w.outs, outcome{true, labels.FromMap(m)})
			}
		}
	}
}

func (r *reading) names(sets []labels.Labels) {
	at := map[string]int{}
	for i, list := range nameLists(sets) {
		at[key(list)] = i
	}
	for _, ls := range sets {
		list := namesOf(ls)
		g := r.c.Group(at[key(list)])
		switch {
		case g.KeepsNone():
			r.drop("series with the names " + strings.Join(list, ", "))
			r.w.outs = append(r.w.outs, outcome{})
			continue
		case !g.Changed():
			r.w.outs = append(r.w.outs, outcome{true, ls})
			continue
		}
		m, named := map[string]string{}, map[string]bool{}
		for j := range g.Columns() {
			c := g.Column(j)
			n := strings.Clone(r.c.Symbol(c.Name))
			named[n] = true
			if c.Source == frame.FromInput {
				if m[n] = ls.Get(list[c.Input]); list[c.Input] != n {
					r.against(n, "changes")
				}
				continue
			}
			r.against(n, "changes")
			m[n] = strings.Clone(r.c.Symbol(c.Ref(0)))
		}
		for _, n := range list {
			if !named[n] {
				r.against(n, "removes")
			}
		}
		r.w.outs = append(r.w.outs, outcome{true, labels.FromMap(present(m))})
	}
}

func present(m map[string]string) map[string]string {
	for n, v := range m {
		if v == "" {
			delete(m, n)
		}
	}
	return m
}

func (r *reading) columns(sets []labels.Labels) {
	// Groups are the columns that some set has, in the order of the plan.
	type change struct{ name, value string }
	said := map[[2]string][]change{}
	group := 0
	for _, n := range r.p.plan.Columns {
		values := valuesOf(sets, n)
		if len(values) == 0 {
			continue
		}
		g := r.c.Group(group)
		group++
		for j := 0; g.Changed() && j < g.Columns(); j++ {
			c := g.Column(j)
			to := strings.Clone(r.c.Symbol(c.Name))
			for k, v := range values {
				w := strings.Clone(r.c.Symbol(c.Ref(k)))
				if to == n && w == v {
					continue // it stays, which sets nothing
				}
				r.against(to, "changes")
				said[[2]string{n, v}] = append(said[[2]string{n, v}], change{to, w})
			}
		}
	}
	for _, ls := range sets {
		m := ls.Map()
		for _, n := range r.p.plan.Columns {
			for _, x := range said[[2]string{n, ls.Get(n)}] {
				m[x.name] = x.value
			}
		}
		r.w.outs = append(r.w.outs, outcome{true, labels.FromMap(present(m))})
	}
}

// of is f(s): operations, and then Rewrite on a frame of this one label set.
func (p *probe) of(ls labels.Labels) (outcome, error) {
	x := p.operate(ls)
	if !x.kept || p.plan.Tier == filter.TierNone {
		return x, nil
	}
	if p.plan.Tier == filter.TierColumns && !slices.ContainsFunc(p.plan.Columns, x.out.Has) {
		return x, nil // a host has nothing to ask
	}
	w, err := p.rewrite([]labels.Labels{x.out})
	if err != nil {
		return outcome{}, err
	}
	return w.outs[0], nil
}

// words are names and values that the plan speaks of.
func (p *probe) words() (names []string, values []string, of map[string][]string) {
	names = []string{"cluster", "environment", "job", "namespace", "node", "pod", "tenant", "überschrift.name"}
	of = map[string][]string{}
	name := func(list ...string) {
		for _, n := range list {
			if n != "__name__" && !slices.Contains(names, n) && len(names) < 48 {
				names = append(names, n)
			}
		}
	}
	value := func(n string, list ...string) {
		for _, v := range list {
			if v != "" && len(of[n]) < 40 {
				of[n] = append(of[n], v)
				if !slices.Contains(values, v) && len(values) < 80 {
					values = append(values, v)
				}
			}
		}
	}
	for _, o := range p.plan.Operations {
		switch {
		case o.Rename != nil:
			name(o.Rename.From, o.Rename.To)
		case o.Drop != nil:
			name(o.Drop...)
		case o.Keep != nil:
			name(o.Keep...)
		case o.Set != nil:
			name(o.Set.Name)
			value(o.Set.Name, o.Set.Value)
		case o.Map != nil:
			name(o.Map.Name)
			for _, x := range o.Map.Values {
				value(o.Map.Name, x.From, x.To)
			}
		case o.Require != nil:
			name(o.Require.Name)
			value(o.Require.Name, strings.Split(o.Require.Value, "|")...)
		}
	}
	for _, list := range [][]string{p.plan.Reads, p.plan.Writes, p.plan.Columns, p.plan.Keeps} {
		name(list...)
	}
	for _, ls := range p.s.Series {
		ls.Range(func(l labels.Label) { name(l.Name); value(l.Name, l.Value) })
	}
	return names, values, of
}

var someValues = []string{"a", "b", "x1", "production", "eu1", "10.0.0.1:9090", "node-7", "é ü 漢字"}

// sets are label sets in order, each once, with the names that the plan speaks of.
func (p *probe) sets(r *rand.Rand, n int, unique bool) []labels.Labels {
	names, values, of := p.words()
	values = append(values, someValues...)
	out := slices.Clone(p.s.Series)
	for i := range n {
		m := map[string]string{"__name__": fmt.Sprint("metric_", r.IntN(4))}
		if unique || r.IntN(3) == 0 {
			m["series"] = fmt.Sprint(i)
		}
		for _, name := range names {
			own := of[name]
			switch k := r.IntN(6); {
			case k < 2 || name == "series":
			case k < 5 && len(own) > 0:
				m[name] = own[r.IntN(len(own))]
			case k < 5:
				m[name] = someValues[r.IntN(3)]
			default:
				m[name] = values[r.IntN(len(values))]
			}
		}
		out = append(out, labels.FromMap(m))
	}
	slices.SortFunc(out, labels.Compare)
	return slices.CompactFunc(out, labels.Equal)
}

// behind are label sets behind the operations, as Rewrite sees them.
func (p *probe) behind(sets []labels.Labels) (out []labels.Labels) {
	for _, ls := range sets {
		if x := p.operate(ls); x.kept {
			out = append(out, x.out)
		}
	}
	return out
}

// show is a label set as text that a report has room for.
func show(ls labels.Labels) string {
	var b strings.Builder
	b.WriteByte('{')
	ls.Range(func(l labels.Label) {
		if b.Len() > 1 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s=%q", l.Name, short(l.Value))
	})
	b.WriteByte('}')
	return short(b.String())
}

func short(s string) string {
	const most = 600
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + fmt.Sprintf("… (%d bytes)", len(s))
	}
	return s
}
