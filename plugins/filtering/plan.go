// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// metricName is the label that names the metric.
const metricName = "__name__"

// stages is a chain whose plans were checked.
type stages struct {
	o     Options
	links []*link // the outermost first
	// replica are the replica labels under the names that they have along the chain.
	replica []string
	// transparent: no label set is changed and none is left out.
	transparent bool
	// inOrder: no label set is changed, though some may be left out.
	inOrder bool
	// exactNames: the names that come out follow from those of the store.
	exactNames bool
	memo       *setMemo // nil: nothing is remembered of whole label sets
	broken     error
}

// link is a Link whose plan was checked.
type link struct {
	Link
	plan     filter.Plan
	open     bool
	selects  bool
	rewrites bool
	changes  bool // label sets, so that series may become equal
	ops      []operation
	names    memo[*namesReply]          // tier names, by list of names
	values   []memo[*valueReply]        // tier columns, per column of the plan, by value
	reject   interface{ Reject(error) } // nil if the carrier does not care
	pace     pace
}

// operation is a filter.Operation that was checked; one field is set.
type operation struct {
	rename  *filter.Rename
	drop    []string
	keep    []string // sorted; not nil
	set     *filter.Label
	mapping *mapping
	require *labels.Matcher
}

// mapping maps values of one label.
type mapping struct {
	name string
	to   map[string]string
}

func (m *mapping) apply(v string) string {
	if to, ok := m.to[v]; ok {
		return to
	}
	return v
}

func compile(chain []Link, o Options) (*stages, error) {
	c := &stages{o: o, transparent: true, inOrder: true, exactNames: true, replica: slices.Clone(o.ReplicaLabels)}
	pure, remember := true, false
	size := o.MemoBytes
	if size == 0 {
		size = 32 << 20
	}
	for i := range chain {
		l := &link{Link: chain[i], plan: chain[i].Filter.Plan()}
		p := &l.plan
		if err := l.check(); err != nil {
			return nil, fmt.Errorf("filter %q: its plan is not possible: %w", l.Name, err)
		}
		if i > 0 && c.links[i-1].OfStore && !l.OfStore {
			return nil, fmt.Errorf("filter %q is inside of %q, which is the store's own: put it outside", l.Name, c.links[i-1].Name)
		}
		l.open = l.Policy() == Open
		l.selects = slices.Contains(p.Hooks, filter.HookSelect)
		l.rewrites = p.Tier != filter.TierNone
		l.reject, _ = l.Filter.(interface{ Reject(error) })
		l.values = make([]memo[*valueReply], len(p.Columns))
		if p.Pure {
			l.names.limit = size / 8
			for j := range l.values {
				l.values[j].limit = size / 8
			}
		}
		if l.rewrites {
			c.transparent = false
			l.changes = p.WritesAny || len(p.Writes) > 0
			c.exactNames = c.exactNames && p.Tier == filter.TierColumns && len(p.Writes) == 0 && !p.WritesAny
			pure = pure && p.Pure
			remember = true
		}
		for j := range l.ops {
			c.transparent, remember = false, true
			op := &l.ops[j]
			l.changes = l.changes || op.require == nil
			if m := op.mapping; m != nil {
				// Whether the label is still there depends on its values.
				for from, to := range m.to {
					c.exactNames = c.exactNames && from != "" && to != ""
				}
			}
		}
		c.inOrder = c.inOrder && !l.changes
		c.links = append(c.links, l)
		c.replica = inwardNames(l.ops, c.replica)
	}
	if remember && pure && size > 0 {
		c.memo = &setMemo{limit: size}
	}
	return c, nil
}

// inwardNames adds the names under which labels go before the operations.
func inwardNames(ops []operation, names []string) []string {
	for i := len(ops) - 1; i >= 0; i-- {
		if r := ops[i].rename; r != nil && slices.Contains(names, r.To) && !slices.Contains(names, r.From) {
			names = append(names, r.From)
		}
	}
	return names
}

func checkName(what, n string) error {
	if n == "" || !utf8.ValidString(n) {
		return fmt.Errorf("%s has the label name %q, which is empty or not valid UTF-8", what, n)
	}
	return nil
}

// check checks the plan and compiles its operations.
func (l *link) check() error {
	p := &l.plan
	if p.Tier > filter.TierRows {
		return fmt.Errorf("tier %d is unknown to this version", p.Tier)
	}
	for _, list := range []struct {
		what  string
		names []string
	}{{"columns", p.Columns}, {"writes", p.Writes}, {"keeps", p.Keeps}} {
		for _, n := range list.names {
			if err := checkName(list.what, n); err != nil {
				return err
			}
		}
	}
	if p.Tier == filter.TierColumns {
		for i, n := range p.Columns {
			if slices.Contains(p.Columns[:i], n) {
				return fmt.Errorf("columns has %q twice", n)
			}
		}
	}
	for i := range p.Operations {
		o, same, err := compileOperation(&p.Operations[i])
		if err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
		if !same {
			l.ops = append(l.ops, o)
		}
	}
	return nil
}

// compileOperation returns same if the operation changes nothing.
func compileOperation(o *filter.Operation) (op operation, same bool, err error) {
	set := 0
	name := func(what string, names ...string) {
		for _, n := range names {
			if e := checkName(what, n); e != nil && err == nil {
				err = e
			}
		}
	}
	value := func(vs ...string) {
		for _, v := range vs {
			if !utf8.ValidString(v) && err == nil {
				err = fmt.Errorf("the value %q is not valid UTF-8", v)
			}
		}
	}
	if r := o.Rename; r != nil {
		set++
		name("rename", r.From, r.To)
		op.rename, same = r, r.From == r.To
	}
	if o.Drop != nil {
		set++
		name("drop", o.Drop...)
		op.drop, same = o.Drop, len(o.Drop) == 0
	}
	if o.Keep != nil {
		set++
		name("keep", o.Keep...)
		op.keep = append([]string{}, o.Keep...)
	}
	if s := o.Set; s != nil {
		set++
		name("set", s.Name)
		value(s.Value)
		op.set = s
	}
	if m := o.Map; m != nil {
		set++
		name("map", m.Name)
		op.mapping = &mapping{m.Name, make(map[string]string, len(m.Values))}
		for _, p := range m.Values {
			value(p.From, p.To)
			if _, ok := op.mapping.to[p.From]; ok && err == nil {
				err = fmt.Errorf("map of %q has the value %q twice", m.Name, p.From)
			}
			op.mapping.to[p.From] = p.To
		}
		same = len(m.Values) == 0
	}
	if r := o.Require; r != nil {
		set++
		name("require", r.Name)
		var e error
		if op.require, e = matcherOf(*r); e != nil && err == nil {
			err = e
		}
	}
	if err == nil && set != 1 {
		err = fmt.Errorf("%d of its fields are set, which must be one; this version may not know it", set)
	}
	return op, same, err
}

func matcherOf(m filter.Matcher) (*labels.Matcher, error) {
	if m.Type > filter.MatchNotRegexp {
		return nil, fmt.Errorf("matcher on %q has the unknown type %d", m.Name, m.Type)
	}
	x, err := labels.NewMatcher(labels.MatchType(m.Type), m.Name, m.Value)
	if err != nil {
		return nil, fmt.Errorf("matcher on %q: %w", m.Name, err)
	}
	return x, nil
}

// descent is what becomes of the matchers of a request on their way inward.
type descent struct {
	// none: nothing can match, for a reason that is known without asking.
	none bool
	// sent go to the store, protected among them: what is enforced, and what select
	// hooks require. Protected ones are checked on what the store returns.
	sent, protected []*labels.Matcher
	enforced        int // of protected, the first ones
	// withheld are matchers of the request that the store was not sent, or not whole:
	// they are evaluated on what comes out of the chain.
	withheld []*labels.Matcher
	// exact: what the store selects is what comes out, no more.
	exact bool
	// everything: no matcher was left, and all series were asked for.
	everything bool
	effects    []Effect
}

// travelling is a matcher on its way: of the request, or of an operation if origin is nil.
type travelling struct{ m, origin *labels.Matcher }

var errMapping = errors.New("has no inverse")

// descend takes the matchers of a request through the chain to the store.
func (c *stages) descend(ctx context.Context, call string, ms []*labels.Matcher, minTime, maxTime int64) (*descent, error) {
	if c.broken != nil {
		return nil, c.broken
	}
	d := &descent{exact: true, effects: make([]Effect, len(c.links))}
	grant := access.GrantOf(ctx)
	if grant != nil {
		d.protected = slices.Clone(grant.Enforce)
		d.enforced = len(d.protected)
		for _, m := range grant.Enforce {
			for _, l := range c.links {
				if l.OfStore {
					break
				}
				if why := writes(&l.plan, m.Name); why != "" {
					return nil, backend.Errorf(backend.ErrUnsupported, "%s: filter %q would change the label %q (%s), by which this request's access is bounded: the operator has to take the filter out of the backend, or the label out of the filter",
						named(c.o.Backend), l.Name, m.Name, why)
				}
			}
		}
	}
	at := make([]travelling, len(ms))
	for i, m := range ms {
		at[i] = travelling{m, m}
	}
	var err error
	for i, l := range c.links {
		e := &d.effects[i]
		e.Filter, e.Backend, e.Call = l.Name, c.o.Backend, call
		if l.selects {
			done, err := c.callSelect(ctx, l, e, d, at, minTime, maxTime)
			if err != nil || done {
				d.none = true
				return d, err
			}
		}
		at = d.through(l, at, e, c.o.Observe != nil)
		if d.none {
			return d, nil
		}
	}
	if d.protected, err = c.intoStore(d); err != nil || d.none {
		return d, err
	}
	for _, m := range d.protected {
		d.send(m)
	}
	for _, t := range at {
		d.send(t.m)
	}
	if len(d.sent) == 0 && len(ms) > 0 {
		d.everything = true // by rule S-6: no matcher would let all through, series without a metric name among them
	}
	return d, nil
}

// intoStore turns what is protected round through the links that are the store's own.
func (c *stages) intoStore(d *descent) ([]*labels.Matcher, error) {
	var out []*labels.Matcher
	enforced := d.enforced
	for i, m := range d.protected {
		if i == enforced {
			d.enforced = len(out)
		}
		ms := []*labels.Matcher{m}
		for _, l := range c.links {
			if !l.OfStore {
				continue
			}
			var ok bool
			if ms, ok = l.inverse(ms); !ok {
				return nil, backend.Errorf(backend.ErrUnsupported, "%s: %q may write the label %q, by which this request's access is bounded, in a way that cannot be turned round", named(c.o.Backend), l.Name, m.Name)
			}
			if ms == nil {
				d.none, d.enforced = true, 0
				return nil, nil
			}
		}
		out = append(out, ms...)
	}
	if enforced == len(d.protected) {
		d.enforced = len(out)
	}
	return out, nil
}

// inverse turns matchers round through a link; nil if they never hold. It fails if
// that cannot be done exactly.
func (l *link) inverse(ms []*labels.Matcher) (_ []*labels.Matcher, ok bool) {
	for _, m := range ms {
		if l.rewrites && mayWrite(&l.plan, m.Name) {
			return nil, false
		}
	}
	for i := len(l.ops) - 1; i >= 0; i-- {
		before := []*labels.Matcher{}
		for _, m := range ms {
			x, constant, err := l.ops[i].inverse(m)
			switch {
			case err != nil:
				return nil, false
			case len(x) == 0 && !constant:
				return nil, true
			}
			before = append(before, x...)
		}
		ms = before
	}
	return ms, true
}

func (d *descent) send(m *labels.Matcher) {
	if !slices.ContainsFunc(d.sent, func(x *labels.Matcher) bool {
		return x == m || x.Type == m.Type && x.Name == m.Name && x.Value == m.Value
	}) {
		d.sent = append(d.sent, m)
	}
}

// callSelect calls the hook; done says that nothing can match.
func (c *stages) callSelect(ctx context.Context, l *link, e *Effect, d *descent, at []travelling, minTime, maxTime int64) (done bool, err error) {
	q := &filter.SelectCall{Backend: c.o.Backend, MinTime: minTime, MaxTime: maxTime}
	for _, t := range at {
		q.Matchers = append(q.Matchers, filter.Matcher{Type: filter.MatchType(t.m.Type), Name: t.m.Name, Value: t.m.Value})
	}
	if g := access.GrantOf(ctx); g != nil {
		q.Tenants = slices.Clone(g.Tenants)
	}
	var reply *filter.SelectReply
	err = l.guard(ctx, e, func() (err error) {
		reply, err = l.Filter.Select(ctx, q)
		return err
	})
	if err != nil {
		return true, err
	}
	if reply == nil {
		return false, nil
	}
	if reply.Deny != nil {
		text := reply.Deny.Message
		if text == "" {
			text = "it gives no reason"
		}
		return true, backend.Errorf(backend.ErrDenied, "denied by filter %q: %s", l.Name, text)
	}
	for _, m := range reply.Require {
		x, err := matcherOf(m)
		if err == nil && (m.Name == "" || !utf8.ValidString(m.Name)) {
			err = checkName("require", m.Name)
		}
		if err != nil {
			return true, l.invalid(e, fmt.Errorf("its reply to select: %w", err))
		}
		d.protected = append(d.protected, x)
	}
	return reply.None, nil
}

// through takes matchers from the outer side of a link to its inner side.
func (d *descent) through(l *link, at []travelling, e *Effect, observed bool) []travelling {
	stuck := func(t travelling) {
		d.exact = false
		if t.origin != nil && !slices.Contains(d.withheld, t.origin) {
			d.withheld = append(d.withheld, t.origin)
		}
		if observed {
			e.Withheld = append(e.Withheld, t.m.String())
		}
	}
	if l.rewrites {
		d.exact = d.exact && !l.plan.Drops
		kept := at[:0]
		for _, t := range at {
			if mayWrite(&l.plan, t.m.Name) {
				stuck(t)
				continue
			}
			kept = append(kept, t)
		}
		at = kept
	}
	for i := len(l.ops) - 1; i >= 0; i-- {
		if r := l.ops[i].require; r != nil {
			at = append(at, travelling{m: r})
			continue
		}
		var before []travelling // one may become two
		for _, t := range at {
			ms, constant, err := l.ops[i].inverse(t.m)
			switch {
			case err != nil:
				stuck(t)
			case len(ms) == 0 && !constant:
				d.none = true
				return nil
			}
			for _, m := range ms {
				before = append(before, travelling{m, t.origin})
			}
		}
		at = before
	}
	if observed {
		for _, t := range at {
			e.Inward = append(e.Inward, t.m.String())
		}
	}
	return at
}

// inverse returns the matchers that all hold before the operation exactly where m
// holds after it; none and the answer if that is the same for all series.
func (o *operation) inverse(m *labels.Matcher) (before []*labels.Matcher, constant bool, err error) {
	switch {
	case o.rename != nil && m.Name == o.rename.To:
		// Not compiled again: a matcher with a large regular expression is dear.
		renamed := *m
		renamed.Name = o.rename.From
		return []*labels.Matcher{&renamed}, false, nil
	case o.rename != nil && m.Name == o.rename.From,
		slices.Contains(o.drop, m.Name),
		o.keep != nil && !slices.Contains(o.keep, m.Name):
		return nil, m.Matches(""), nil
	case o.set != nil && m.Name == o.set.Name:
		return nil, m.Matches(o.set.Value), nil
	case o.mapping != nil && m.Name == o.mapping.name:
		return o.mapping.inverse(m)
	}
	return []*labels.Matcher{m}, false, nil // as it is, before require too
}

// inverse is exact, but for a negated regular expression that a value matches and
// what it becomes does not: there is no matcher for "not this, unless that".
func (m *mapping) inverse(x *labels.Matcher) ([]*labels.Matcher, bool, error) {
	positive := x.Type == labels.MatchEqual || x.Type == labels.MatchRegexp
	pattern := x.Value
	named := []string{pattern}
	if x.Type == labels.MatchRegexp || x.Type == labels.MatchNotRegexp {
		named = x.SetMatches()
	}
	// What x names, or rules out if it is negative, is a set of values. Of those that
	// are mapped, some enter the set thereby, and some leave it.
	var enter, leave, stay []string
	for from, to := range m.to {
		switch was, is := x.Matches(from) == positive, x.Matches(to) == positive; {
		case was && is:
			stay = append(stay, from)
		case was:
			leave = append(leave, from)
		case is:
			enter = append(enter, from)
		}
	}
	if len(named) == 0 {
		if len(enter)+len(leave) == 0 {
			return []*labels.Matcher{x}, false, nil
		}
		if !positive && len(leave) > 0 {
			return nil, false, errMapping
		}
		var out []*labels.Matcher
		y, err := labels.NewMatcher(x.Type, x.Name, strings.Join(append([]string{"(?:" + pattern + ")"}, quoted(enter)...), "|"))
		out = append(out, y)
		if err == nil && len(leave) > 0 {
			y, err = labels.NewMatcher(labels.MatchNotRegexp, x.Name, strings.Join(quoted(leave), "|"))
			out = append(out, y)
		}
		return out, false, err
	}
	before := append(enter, stay...)
	for _, v := range named {
		if _, ok := m.to[v]; !ok {
			before = append(before, v)
		}
	}
	slices.Sort(before)
	before = slices.Compact(before)
	if len(before) == 0 {
		return nil, !positive, nil
	}
	types := [2]labels.MatchType{labels.MatchNotEqual, labels.MatchNotRegexp}
	if positive {
		types = [2]labels.MatchType{labels.MatchEqual, labels.MatchRegexp}
	}
	y, err := labels.NewMatcher(types[0], x.Name, before[0])
	if len(before) > 1 {
		y, err = labels.NewMatcher(types[1], x.Name, strings.Join(quoted(before), "|"))
	}
	return []*labels.Matcher{y}, false, err
}

// quoted are patterns for the values, in order.
func quoted(values []string) []string {
	out := make([]string, len(values))
	for i, v := range slices.Sorted(slices.Values(values)) {
		out[i] = regexp.QuoteMeta(v)
	}
	return out
}

// outward takes a label set that is on all series of some data from the store's side
// to the user's. With ok false there is a label of which nothing is known any more;
// with none, no series can have the label set.
func (c *stages) outward(ls labels.Labels) (out labels.Labels, none, ok bool) {
	known := ls.Map()
	for i := len(c.links) - 1; i >= 0; i-- {
		l := c.links[i]
		for j := range l.ops {
			switch o := &l.ops[j]; {
			case o.rename != nil:
				v, there := known[o.rename.From]
				_, hides := known[o.rename.To]
				if !there && hides {
					return out, false, false // it has the value of a label of which nothing is known
				}
				delete(known, o.rename.From)
				if there {
					known[o.rename.To] = v
				}
			case o.set != nil:
				known[o.set.Name] = o.set.Value
			case o.mapping != nil:
				if v, there := known[o.mapping.name]; there {
					known[o.mapping.name] = o.mapping.apply(v)
				}
			case o.require != nil:
				if v, there := known[o.require.Name]; there && !o.require.Matches(v) {
					return out, true, true
				}
			default:
				for n := range known {
					if slices.Contains(o.drop, n) || o.keep != nil && !slices.Contains(o.keep, n) {
						delete(known, n)
					}
				}
			}
		}
		if !l.rewrites {
			continue
		}
		for n := range known {
			if mayWrite(&l.plan, n) {
				return out, false, false
			}
		}
	}
	for n, v := range known {
		if v == "" {
			delete(known, n)
		}
	}
	return labels.FromMap(known), false, len(known) > 0
}

// invalid is the error for a reply that breaks the contract, which the carrier is
// told of: it may know the plug-in as faulty.
func (l *link) invalid(e *Effect, err error) error {
	e.Failures++
	e.Error = err.Error()
	if l.reject != nil {
		l.reject.Reject(err)
	}
	return fmt.Errorf("filter %q: %w: %w", l.Name, carrier.ErrFault, err)
}
