// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/frame"
)

// A label set is a row between the store and the user: a schema, which is its list
// of label names, and a value for each. Series come in runs of few schemas, so that
// what operations do to names, and to which places values go, is worked out once
// for each schema and not for each series.
type row struct {
	schema *schema
	vals   []string
	src    int  // the number of the label set that it was made of
	same   bool // it is still that label set
}

type schema struct {
	names []string // in ascending order
	key   string   // the names, each with a byte 0xff behind it
}

// source is where a value comes from: a place of the row before, or a constant; and
// what it is mapped through then.
type source struct {
	col      int // -1: constant
	constant string
	maps     []*mapping

	lastIn, lastOut string // values repeat from row to row
}

func (s *source) value(vals []string) string {
	if s.col < 0 {
		return s.constant
	}
	v := vals[s.col]
	if len(s.maps) == 0 {
		return v
	}
	if v == s.lastIn && v != "" {
		return s.lastOut
	}
	in := v
	for _, m := range s.maps {
		v = m.apply(v)
	}
	s.lastIn, s.lastOut = in, v
	return v
}

func (s source) through(m *mapping) source {
	if s.col < 0 {
		return source{col: -1, constant: m.apply(s.constant)}
	}
	s.maps = append(slices.Clone(s.maps), m)
	return s
}

// program is what becomes of the rows of one schema. It belongs to one runner.
type program struct {
	none   bool // no row stays
	same   bool // rows that meet the conditions stay as they are
	conds  []condition
	names  []string // of outs
	outs   []source
	schema *schema // of names; nil if values may turn out to be ""
}

type condition struct {
	source
	m         *labels.Matcher
	last      string
	lastHolds bool
}

func (c *condition) holds(vals []string) bool {
	v := c.value(vals)
	if v == c.last {
		return c.lastHolds
	}
	c.last, c.lastHolds = v, c.m.Matches(v)
	return c.lastHolds
}

// compileProgram works out what operations do to rows with these names.
func compileProgram(ops []operation, names []string) *program {
	p := &program{same: true}
	at := make(map[string]source, len(names))
	for i, n := range names {
		at[n] = source{col: i}
	}
	get := func(n string) source {
		if s, ok := at[n]; ok {
			return s
		}
		return source{col: -1}
	}
	put := func(n string, s source) {
		p.same = false
		if s.col < 0 && s.constant == "" {
			delete(at, n)
			return
		}
		at[n] = s
	}
	for i := range ops {
		switch o := &ops[i]; {
		case o.rename != nil:
			_, from := at[o.rename.From]
			_, to := at[o.rename.To]
			if from || to {
				put(o.rename.To, get(o.rename.From))
				delete(at, o.rename.From)
			}
		case o.set != nil:
			put(o.set.Name, source{col: -1, constant: o.set.Value})
		case o.mapping != nil:
			s := get(o.mapping.name)
			if s.col >= 0 || o.mapping.apply(s.constant) != s.constant {
				put(o.mapping.name, s.through(o.mapping))
			}
		case o.require != nil:
			s := get(o.require.Name)
			if s.col >= 0 {
				c := condition{source: s, m: o.require}
				c.lastHolds = o.require.Matches("")
				p.conds = append(p.conds, c)
			} else if !o.require.Matches(s.constant) {
				p.none = true
				return p
			}
		default:
			for n := range at {
				if slices.Contains(o.drop, n) || o.keep != nil && !slices.Contains(o.keep, n) {
					p.same = false
					delete(at, n)
				}
			}
		}
	}
	p.finish(at)
	return p
}

// finish lays out what came of a row's labels, in order of their names.
func (p *program) finish(at map[string]source) {
	for n := range at {
		p.names = append(p.names, n)
	}
	slices.Sort(p.names)
	for _, n := range p.names {
		p.outs = append(p.outs, at[n])
	}
}

func (p *program) settled() bool {
	return !slices.ContainsFunc(p.outs, func(s source) bool { return len(s.maps) > 0 })
}

// memo remembers what pure filters said, up to a number of bytes: what was not asked
// for since the younger half was begun is forgotten. Without a limit it remembers nothing.
type memo[V any] struct {
	limit int

	mu         sync.RWMutex
	young, old map[string]V
	size       int // of young
}

func (m *memo[V]) get(key string) (v V, ok bool) {
	if m.limit <= 0 {
		return v, false
	}
	m.mu.RLock()
	v, ok = m.young[key]
	if ok {
		m.mu.RUnlock()
		return v, true
	}
	v, ok = m.old[key]
	m.mu.RUnlock()
	return v, ok
}

// put takes size for what v and key need beside the map itself.
func (m *memo[V]) put(key string, v V, size int) {
	const overhead = 64
	if size += overhead; size > m.limit/4 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.young == nil || m.size+size > m.limit/2 {
		m.old, m.young, m.size = m.young, make(map[string]V), 0
	}
	m.young[key] = v
	m.size += size
}

// setMemo remembers what becomes of whole label sets. Where that does not pay, because
// the same series are hardly ever asked for again before they are forgotten, it rests.
type setMemo struct {
	limit int
	hits  atomic.Int64 // since young was begun
	rest  atomic.Int64 // runs for which it is left alone

	mu         sync.RWMutex
	young, old map[uint64]remembered
	size       int
}

// restRuns is how many runs a memo rests: it costs a fraction of one then to see
// whether the times have changed.
const restRuns = 1000

type remembered struct {
	in, out labels.Labels
	kept    bool
}

func (m *setMemo) get(hash uint64, in labels.Labels) (r remembered, ok bool) {
	if r, ok = m.young[hash]; !ok {
		r, ok = m.old[hash]
	}
	return r, ok && labels.Equal(r.in, in)
}

func (m *setMemo) put(hash uint64, r remembered) {
	size := 128 + int(r.in.ByteSize()) + int(r.out.ByteSize())
	if size > m.limit/4 {
		return
	}
	if m.young == nil || m.size+size > m.limit/2 {
		if m.hits.Swap(0) < int64(len(m.young)/4) {
			m.rest.Store(restRuns)
		}
		m.old, m.young, m.size = m.young, make(map[uint64]remembered), 0
	}
	m.young[hash] = r
	m.size += size
}

// runner takes label sets through a chain, for one call. It is used by one goroutine.
type runner struct {
	c        *stages
	ctx      context.Context
	memo     *setMemo
	withheld []*labels.Matcher
	effects  []Effect
	links    []linkState
	notices  []backend.Notice // that were not handed on yet

	schemas map[string]*schema
	last    *schema
	scratch []string
	key     []byte
	decode  func(labels.Label)

	sets  []labels.Labels
	rows  []row
	slab  []string // values of rows
	sb    labels.ScratchBuilder
	in    int // bytes of label sets that came in, and
	out   int // went out, in this run
	hash  []uint64
	known []remembered
	found []bool
	rests bool

	at       []int // places of the withheld matchers in atSchema
	atSchema *schema

	builder frame.Builder
	view    frame.Frame
	changes frame.Changes
}

// linkState is what a runner knows of one link.
type linkState struct {
	off      bool // it failed, and is skipped for the rest of the call
	programs map[*schema]*program
	last     *schema
	lastOf   *program
	replies  map[*schema]*program // of tier names
	columns  []columnState        // of tier columns
}

type columnState struct {
	known map[string]*valueReply
	last  string
	reply *valueReply
}

// mostSchemas bounds what a runner keeps: a store that gives every series names of
// its own gets no advantage of it.
const mostSchemas = 8192

func (c *stages) newRunner(ctx context.Context, d *descent) *runner {
	r := &runner{c: c, ctx: ctx, memo: c.memo, withheld: d.withheld, effects: d.effects, links: make([]linkState, len(c.links)), sb: labels.NewScratchBuilder(16)}
	r.decode = func(l labels.Label) {
		r.scratch = append(r.scratch, l.Name)
		r.slab = append(r.slab, l.Value)
	}
	r.forget()
	return r
}

func (r *runner) forget() {
	r.schemas, r.last, r.atSchema = make(map[string]*schema), nil, nil
	for i := range r.links {
		s := &r.links[i]
		s.programs, s.replies, s.last = make(map[*schema]*program), make(map[*schema]*program), nil
	}
}

// schemaOf returns the schema with these names, which it copies.
func (r *runner) schemaOf(names []string) *schema {
	if r.last != nil && slices.Equal(r.last.names, names) {
		return r.last
	}
	r.key = r.key[:0]
	for _, n := range names {
		r.key = append(r.key, n...)
		r.key = append(r.key, 0xff)
	}
	s := r.schemas[string(r.key)]
	if s == nil {
		s = &schema{key: string(r.key), names: make([]string, len(names))}
		at := 0
		for i, n := range names {
			s.names[i] = s.key[at : at+len(n)]
			at += len(n) + 1
		}
		r.schemas[s.key] = s
	}
	r.last = s
	return s
}

// run takes label sets through the chain. What is left of them is in r.rows, in the
// order of sets.
func (r *runner) run(sets []labels.Labels) error {
	if err := r.ctx.Err(); err != nil {
		return context.Cause(r.ctx)
	}
	if err := r.load(sets); err != nil {
		return err
	}
	for i := len(r.links) - 1; i >= 0; i-- {
		if err := r.stage(i); err != nil {
			return err
		}
	}
	r.postFilter()
	return nil
}

// load makes rows of label sets, except of those of which the end is known.
func (r *runner) load(sets []labels.Labels) error {
	if len(r.schemas) > mostSchemas {
		r.forget()
	}
	r.sets, r.rows, r.slab, r.in, r.out = sets, r.rows[:0], r.slab[:0], 0, 0
	r.lookUp()
	for i, ls := range sets {
		r.in += int(ls.ByteSize())
		if len(r.found) > 0 && r.found[i] {
			continue
		}
		begin := len(r.slab)
		r.scratch = r.scratch[:0]
		ls.Range(r.decode)
		if r.last == nil || !slices.Equal(r.last.names, r.scratch) {
			for j, n := range r.scratch {
				if n == "" || j > 0 && n <= r.scratch[j-1] || !utf8.ValidString(n) {
					return r.broken("S-3", "label names are empty, repeated, out of order or not valid UTF-8 in %q", ls.String())
				}
			}
		}
		vals := r.slab[begin:len(r.slab):len(r.slab)]
		if slices.Contains(vals, "") {
			return r.broken("S-3", "a label of %s has an empty value", ls)
		}
		r.rows = append(r.rows, row{schema: r.schemaOf(r.scratch), vals: vals, src: i, same: true})
	}
	return nil
}

func (r *runner) broken(rule, format string, args ...any) error {
	return brokenRule(r.c.o.Backend, rule, format, args...)
}

func brokenRule(name, rule, format string, args ...any) error {
	if name != "" {
		name = " " + name
	}
	return backend.Errorf(backend.ErrInternal, "backend%s broke rule %s of the backend contract: %s", name, rule, fmt.Sprintf(format, args...))
}

// lookUp finds what is remembered of the label sets.
func (r *runner) lookUp() {
	m := r.memo
	if m == nil {
		return
	}
	n := len(r.sets)
	if r.rests = m.rest.Load() > 0; r.rests {
		m.rest.Add(-1)
		r.known, r.found = slices.Grow(r.known[:0], n)[:n], slices.Grow(r.found[:0], n)[:n]
		clear(r.found)
		return
	}
	r.hash, r.known, r.found = slices.Grow(r.hash[:0], n)[:n], slices.Grow(r.known[:0], n)[:n], slices.Grow(r.found[:0], n)[:n]
	for i, ls := range r.sets {
		r.hash[i] = ls.Hash()
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	hits := 0
	for i, ls := range r.sets {
		if r.known[i], r.found[i] = m.get(r.hash[i], ls); r.found[i] {
			hits++
		}
	}
	m.hits.Add(int64(hits))
}

// stage does what one link does, to all rows.
func (r *runner) stage(i int) error {
	l, s := r.c.links[i], &r.links[i]
	e := &r.effects[i]
	e.SeriesIn += len(r.rows)
	if len(l.ops) > 0 {
		r.operate(l, s)
	}
	if l.rewrites && !s.off && len(r.rows) > 0 {
		if err := r.rewrite(l, s, e); err != nil {
			if err = r.failed(l, s, err); err != nil {
				return err
			}
		}
	}
	e.SeriesOut += len(r.rows)
	return nil
}

// failed decides about a filter that could not rewrite.
func (r *runner) failed(l *link, s *linkState, err error) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	if !l.open {
		return err
	}
	// It is not tried again for this call: an answer of two kinds is worse than one,
	// and a filter that hangs would cost its time limit for each batch.
	s.off = true
	r.notices = append(r.notices, backend.Notice{
		Kind: backend.NoticeMissing,
		Text: fmt.Sprintf("label sets from here on are not rewritten, as on_failure: open has it: %v", err),
	})
	return nil
}

func (r *runner) operate(l *link, s *linkState) {
	kept := r.rows[:0]
	for _, x := range r.rows {
		if x.schema != s.last {
			s.last, s.lastOf = x.schema, s.programs[x.schema]
			if s.lastOf == nil {
				p := compileProgram(l.ops, x.schema.names)
				if p.settled() {
					p.schema = r.schemaOf(p.names)
				}
				s.programs[x.schema], s.lastOf = p, p
			}
		}
		if r.execute(s.lastOf, &x) {
			kept = append(kept, x)
		}
	}
	clear(r.rows[len(kept):])
	r.rows = kept
}

// execute says whether the row stays.
func (r *runner) execute(p *program, x *row) bool {
	if p.none {
		return false
	}
	for i := range p.conds {
		if !p.conds[i].holds(x.vals) {
			return false
		}
	}
	if p.same {
		return true
	}
	x.same = false
	begin := len(r.slab)
	if p.schema != nil {
		for i := range p.outs {
			r.slab = append(r.slab, p.outs[i].value(x.vals))
		}
		x.schema = p.schema
	} else {
		r.scratch = r.scratch[:0]
		for i := range p.outs {
			if v := p.outs[i].value(x.vals); v != "" {
				r.scratch = append(r.scratch, p.names[i])
				r.slab = append(r.slab, v)
			}
		}
		x.schema = r.schemaOf(r.scratch)
	}
	x.vals = r.slab[begin:len(r.slab):len(r.slab)]
	return true
}

// holds evaluates the withheld matchers on a row.
func (r *runner) holds(x *row) bool {
	if x.schema != r.atSchema {
		r.atSchema, r.at = x.schema, r.at[:0]
		for _, m := range r.withheld {
			i, ok := slices.BinarySearch(x.schema.names, m.Name)
			if !ok {
				i = -1
			}
			r.at = append(r.at, i)
		}
	}
	for i, m := range r.withheld {
		v := ""
		if r.at[i] >= 0 {
			v = x.vals[r.at[i]]
		}
		if !m.Matches(v) {
			return false
		}
	}
	return true
}

func (r *runner) postFilter() {
	n := len(r.rows)
	if len(r.withheld) > 0 && r.memo == nil {
		r.rows = slices.DeleteFunc(r.rows, func(x row) bool { return !r.holds(&x) })
	}
	if len(r.effects) > 0 {
		r.effects[0].SeriesOut -= n - len(r.rows)
	}
}

// maxGrowth bounds the label sets that come out of a run: a reply, or a plan, of a few
// bytes can make label sets of any size, as it may use a symbol any number of times.
func maxGrowth(in int) int { return 16*in + 16<<20 }

// labels makes the label set of a row.
func (r *runner) labels(x *row) (labels.Labels, error) {
	if x.same {
		return r.sets[x.src], nil
	}
	r.sb.Reset()
	for i, n := range x.schema.names {
		r.sb.Add(n, x.vals[i])
		r.out += len(n) + len(x.vals[i])
	}
	if r.out > maxGrowth(r.in) {
		return labels.Labels{}, backend.Errorf(backend.ErrLimit, "%s make more than %d bytes out of label sets of %d bytes together: let them set shorter values", named(r.c.o.Backend), maxGrowth(r.in), r.in)
	}
	return r.sb.Labels(), nil
}

// each calls f with what became of the label sets that run took, in their order.
func (r *runner) each(f func(src int, ls labels.Labels)) error {
	if r.memo == nil {
		for i := range r.rows {
			ls, err := r.labels(&r.rows[i])
			if err != nil {
				return err
			}
			f(r.rows[i].src, ls)
		}
		return nil
	}
	next, hits, keptHits := 0, 0, 0
	for i := range r.sets {
		if r.found[i] {
			if hits++; r.known[i].kept {
				keptHits++
			}
			continue
		}
		k := &r.known[i]
		*k = remembered{in: r.sets[i]}
		if next < len(r.rows) && r.rows[next].src == i {
			var err error
			if k.out, err = r.labels(&r.rows[next]); err != nil {
				return err
			}
			k.kept = true
			next++
		}
	}
	r.remember()
	for i := range r.effects {
		// Which link left out the others is not remembered: the innermost, as it were.
		e := &r.effects[i]
		e.MemoHits += hits
		if e.SeriesIn += keptHits; i == len(r.effects)-1 {
			e.SeriesIn += hits - keptHits
		}
		if i > 0 {
			e.SeriesOut += keptHits
		}
	}
	for i := range r.sets {
		if k := &r.known[i]; k.kept {
			if e := &r.effects[0]; !slices.ContainsFunc(r.withheld, func(m *labels.Matcher) bool { return !m.Matches(k.out.Get(m.Name)) }) {
				f(i, k.out)
				if r.found[i] {
					e.SeriesOut++
				}
			} else if !r.found[i] {
				e.SeriesOut--
			}
		}
	}
	clear(r.known)
	return nil
}

// remember keeps what was new, unless a link was skipped.
func (r *runner) remember() {
	if r.rests || slices.ContainsFunc(r.links, func(s linkState) bool { return s.off }) || !slices.Contains(r.found, false) {
		return
	}
	m := r.memo
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range r.sets {
		if !r.found[i] {
			m.put(r.hash[i], r.known[i])
		}
	}
}

// equalAt says whether two label sets are the same after a link, and which is the
// first, from the store, after which they are; -1 if they never are. It takes them
// through the chain once more: series that become equal are rare, or a mistake.
func (c *stages) equalAt(ctx context.Context, a, b labels.Labels) (int, error) {
	r := c.newRunner(ctx, &descent{effects: make([]Effect, len(c.links))})
	r.memo = nil
	if err := r.load([]labels.Labels{a, b}); err != nil {
		return -1, err
	}
	for i := len(r.links) - 1; i >= 0; i-- {
		if err := r.stage(i); err != nil {
			return -1, err
		}
		if len(r.rows) < 2 {
			return -1, nil
		}
		if x, y := &r.rows[0], &r.rows[1]; x.schema.key == y.schema.key && slices.Equal(x.vals, y.vals) {
			return i, nil
		}
	}
	return -1, nil
}
