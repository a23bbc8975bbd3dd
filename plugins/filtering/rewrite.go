// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// A frame that is given to a filter has at most so many rows, and bytes: enough for
// the cost of a call not to matter, little enough for its time limit to be kept.
const (
	maxFrameRows   = 2048
	firstFrameRows = 512
	minFrameRows   = 256
	maxFrameBytes  = 4 << 20
	// callGoal is how long a call should take: a fifth of what one of a module may (50 ms),
	// for on a busy machine it takes several times as long, and what is late is a fault.
	callGoal = 10 * time.Millisecond
)

// pace is how many rows one filter is given at once: as many as it does within callGoal.
type pace struct{ next atomic.Int64 }

func (p *pace) rows() int {
	if n := p.next.Load(); n > 0 {
		return int(n)
	}
	return firstFrameRows
}

// took learns from a call. A frame of few rows says nothing of many.
func (p *pace) took(rows int, d time.Duration) {
	if rows < minFrameRows {
		return
	}
	can := int64(float64(rows) * float64(callGoal) / float64(max(d, time.Microsecond)))
	p.next.Store(min(max(can, minFrameRows), 2*int64(rows), maxFrameRows))
}

// guard calls a filter. A carrier that panics is a fault like others.
func (l *link) guard(ctx context.Context, e *Effect, call func() error) (err error) {
	begun := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: panic: %v", carrier.ErrFault, p)
		}
		e.Calls++
		e.Seconds += time.Since(begun).Seconds()
		if err != nil {
			e.Failures++
			e.Error = err.Error()
			err = fmt.Errorf("filter %q: %w", l.Name, err)
			if ctx.Err() != nil {
				err = fmt.Errorf("%w: %w", err, context.Cause(ctx))
			}
		}
	}()
	return call()
}

// exchange sends what r.builder has to the filter. The reply is in r.changes, and
// valid as far as frames can tell. The memory of both frames is new for each call:
// strings of rows point into it.
func (r *runner) exchange(l *link, e *Effect) error {
	b, err := r.builder.Append(nil)
	if err == nil {
		err = r.view.Parse(b)
	}
	if err != nil {
		return r.broken("S-3", "its label sets make no frame for filter %q: %v", l.Name, err)
	}
	var reply []byte
	begun := time.Now()
	err = l.guard(r.ctx, e, func() (err error) {
		reply, err = l.Filter.Rewrite(r.ctx, b, nil)
		return err
	})
	l.pace.took(r.view.Rows(), time.Since(begun))
	if err != nil {
		return err
	}
	if err := r.changes.Parse(reply, &r.view, frame.Tier(l.plan.Tier)); err != nil {
		return l.invalid(e, err)
	}
	return nil
}

// rewrite gives the rows to the filter as far as its tier shows them. After an error
// the rows are as they were.
func (r *runner) rewrite(l *link, s *linkState, e *Effect) error {
	switch l.plan.Tier {
	case filter.TierNames:
		return r.rewriteNames(l, s, e)
	case filter.TierColumns:
		return r.rewriteColumns(l, s, e)
	default:
		return r.rewriteRows(l, e)
	}
}

func (l *link) violation(e *Effect, format string, args ...any) error {
	return l.invalid(e, fmt.Errorf("against its plan: "+format, args...))
}

// namesReply is what a filter of tier names makes of one list of names.
type namesReply struct {
	drop, same bool
	names      []string
	from       []int // place in the list; -1: constant
	constant   []string
}

func (n *namesReply) program(r *runner) *program {
	p := &program{none: n.drop, same: n.same, names: n.names}
	for i, from := range n.from {
		p.outs = append(p.outs, source{col: from, constant: n.constant[i]})
	}
	p.schema = r.schemaOf(p.names)
	return p
}

func (r *runner) rewriteNames(l *link, s *linkState, e *Effect) error {
	if !l.plan.Pure {
		clear(s.replies)
	}
	var asked []*schema
	var last *schema
	for i := range r.rows {
		x := r.rows[i].schema
		if x == last {
			continue
		}
		last = x
		if _, ok := s.replies[x]; ok {
			continue
		}
		if n, ok := l.names.get(x.key); ok {
			s.replies[x] = n.program(r)
			e.MemoHits++
			continue
		}
		s.replies[x] = nil
		asked = append(asked, x)
	}
	if len(asked) > 0 {
		r.builder.Reset()
		for _, x := range asked {
			for _, n := range x.names {
				r.builder.Withhold(n)
			}
			r.builder.EndRow()
		}
		if err := r.exchange(l, e); err != nil {
			return err
		}
		for i, x := range asked {
			n, err := r.namesReply(l, e, i, x)
			if err != nil {
				return err
			}
			s.replies[x] = n.program(r)
			size := 2 * len(x.key)
			for j, name := range n.names {
				size += 48 + len(name) + len(n.constant[j])
			}
			l.names.put(x.key, n, size)
		}
	}
	kept := r.rows[:0]
	for _, x := range r.rows {
		if r.execute(s.replies[x.schema], &x) {
			kept = append(kept, x)
		}
	}
	clear(r.rows[len(kept):])
	r.rows = kept
	return nil
}

// namesReply reads the reply to group i, which stands for a schema.
func (r *runner) namesReply(l *link, e *Effect, i int, x *schema) (*namesReply, error) {
	g := r.changes.Group(i)
	n := &namesReply{}
	if !g.Changed() {
		n.same = true
		return n, nil
	}
	if g.KeepsNone() {
		if !l.plan.Drops {
			return nil, l.violation(e, "it leaves out series, which needs drops")
		}
		n.drop = true
		return n, nil
	}
	stays := make([]bool, len(x.names))
	for j := range g.Columns() {
		c := g.Column(j)
		// Not the reply's memory, which a memo must not hold on to.
		name := strings.Clone(r.changes.Symbol(c.Name))
		if c.Source == frame.FromInput && x.names[c.Input] == name {
			stays[c.Input] = true
		} else if !mayWrite(&l.plan, name) {
			return nil, l.violation(e, "it writes the label %q: declare it in the plan's writes", name)
		} else if p, ok := slices.BinarySearch(x.names, name); ok {
			stays[p] = true // or is written, by right
		}
		constant := ""
		if c.Source != frame.FromInput {
			if constant = strings.Clone(r.changes.Symbol(c.Ref(0))); constant == "" {
				continue
			}
		}
		n.names, n.from, n.constant = append(n.names, name), append(n.from, c.Input), append(n.constant, constant)
	}
	for p, name := range x.names {
		if !stays[p] && !mayWrite(&l.plan, name) {
			return nil, l.violation(e, "it removes the label %q: declare it in the plan's writes", name)
		}
	}
	return n, nil
}

// valueReply is what a filter of tier columns makes of one value: labels to set.
type valueReply struct{ set []labels.Label }

func (r *runner) rewriteColumns(l *link, s *linkState, e *Effect) error {
	columns := l.plan.Columns
	if s.columns == nil {
		s.columns = make([]columnState, len(columns))
	}
	const mostKnown = 1 << 16
	for j := range s.columns {
		if c := &s.columns[j]; c.known == nil || !l.plan.Pure || len(c.known) > mostKnown {
			*c = columnState{known: make(map[string]*valueReply)}
		}
	}
	asked := make([][]string, len(columns))
	replies := make([]*valueReply, len(r.rows)*len(columns))
	places, placesOf := make([]int, len(columns)), (*schema)(nil)
	hits := 0
	for i := range r.rows {
		x := &r.rows[i]
		if x.schema != placesOf {
			placesOf = x.schema
			for j, n := range columns {
				p, ok := slices.BinarySearch(x.schema.names, n)
				if places[j] = p; !ok {
					places[j] = -1
				}
			}
		}
		for j, p := range places {
			if p < 0 {
				continue
			}
			c, v := &s.columns[j], x.vals[p]
			if c.reply == nil || c.last != v {
				known, ok := c.known[v]
				if !ok {
					if known, ok = l.values[j].get(v); ok {
						hits++
					} else {
						known = &valueReply{}
						asked[j] = append(asked[j], v)
					}
					c.known[v] = known
				}
				c.last, c.reply = v, known
			}
			replies[i*len(columns)+j] = c.reply
		}
	}
	e.MemoHits += hits
	if err := r.askValues(l, s, e, asked); err != nil {
		return err
	}
	for i := range r.rows {
		if mine := replies[i*len(columns) : (i+1)*len(columns)]; slices.ContainsFunc(mine, func(v *valueReply) bool { return v != nil && len(v.set) > 0 }) {
			r.assign(&r.rows[i], mine)
		}
	}
	return nil
}

// askValues fills in the replies for values that are not known yet.
func (r *runner) askValues(l *link, s *linkState, e *Effect, asked [][]string) error {
	for {
		r.builder.Reset()
		type part struct {
			column int
			values []string
		}
		var parts []part
		atOnce := l.pace.rows()
		for j := range asked {
			n := 0
			for n < len(asked[j]) && (r.builder.Rows() == 0 || r.builder.Rows() < atOnce && r.builder.Size() < maxFrameBytes) {
				r.builder.Label(l.plan.Columns[j], asked[j][n])
				r.builder.EndRow()
				n++
			}
			if n > 0 {
				parts = append(parts, part{j, asked[j][:n]})
				asked[j] = asked[j][n:]
			}
		}
		if len(parts) == 0 {
			return nil
		}
		if err := r.exchange(l, e); err != nil {
			return err
		}
		for i, p := range parts {
			if err := r.valueReplies(l, e, i, p.column, p.values, s.columns[p.column].known); err != nil {
				return err
			}
		}
	}
}

// valueReplies reads the reply to group i, which has values of one column.
func (r *runner) valueReplies(l *link, e *Effect, i, column int, values []string, known map[string]*valueReply) error {
	g := r.changes.Group(i)
	name := l.plan.Columns[column]
	for j := range g.Columns() {
		if !g.Changed() {
			break
		}
		c := g.Column(j)
		n := strings.Clone(r.changes.Symbol(c.Name))
		may := mayWrite(&l.plan, n)
		if !may && n != name {
			return l.violation(e, "it writes the label %q: declare it in the plan's writes", n)
		}
		for k, v := range values {
			to := r.changes.Symbol(c.Ref(k))
			if n == name && to == v {
				continue
			}
			if !may {
				return l.violation(e, "it writes the label %q: declare it in the plan's writes", n)
			}
			known[v].set = append(known[v].set, labels.Label{Name: n, Value: strings.Clone(to)})
		}
	}
	for _, v := range values {
		size := 48 + len(v)
		for _, x := range known[v].set {
			size += 32 + len(x.Name) + len(x.Value)
		}
		l.values[column].put(strings.Clone(v), known[v], size)
	}
	return nil
}

// assign sets what the replies for the values of a row say, those of later columns
// of the plan last.
func (r *runner) assign(x *row, replies []*valueReply) {
	begin := len(r.slab)
	r.slab = append(r.slab, x.vals...)
	vals := r.slab[begin:]
	r.scratch = append(r.scratch[:0], x.schema.names...)
	for _, reply := range replies {
		if reply == nil {
			continue
		}
		for _, s := range reply.set {
			p, ok := slices.BinarySearch(r.scratch, s.Name)
			if !ok {
				r.scratch = slices.Insert(r.scratch, p, s.Name)
				vals = slices.Insert(vals, p, s.Value)
				continue
			}
			vals[p] = s.Value
		}
	}
	n := 0
	for i, v := range vals {
		if v != "" {
			r.scratch[n], vals[n] = r.scratch[i], v
			n++
		}
	}
	// Insert may have moved the values, and the slab with them.
	r.slab = append(r.slab[:begin], vals[:n]...)
	x.schema, x.vals, x.same = r.schemaOf(r.scratch[:n]), r.slab[begin:len(r.slab):len(r.slab)], false
}

func (r *runner) rewriteRows(l *link, e *Effect) error {
	all := r.rows
	out := make([]row, 0, len(all))
	for len(all) > 0 {
		r.builder.Reset()
		n, atOnce := 0, l.pace.rows()
		for n < len(all) && n < atOnce && (n == 0 || r.builder.Size() < maxFrameBytes) {
			x := &all[n]
			for i, name := range x.schema.names {
				r.builder.Label(name, x.vals[i])
			}
			r.builder.EndRow()
			n++
		}
		if err := r.exchange(l, e); err != nil {
			return err
		}
		var err error
		if out, err = r.rowsReply(l, e, all[:n], out); err != nil {
			return err
		}
		all = all[n:]
	}
	r.rows = append(r.rows[:0], out...)
	return nil
}

// newColumn is one column of a reply of tier rows.
type newColumn struct {
	name string
	frame.NewColumn
	// was is the input's column of that name if it must not be written, and is to be
	// compared; nil otherwise.
	was *frame.Column
}

// rowsReply appends to out what became of rows, all that the frame had.
func (r *runner) rowsReply(l *link, e *Effect, rows, out []row) ([]row, error) {
	var columns []newColumn
	for i := range r.view.Groups() {
		g := r.changes.Group(i)
		in := g.Input()
		mine := rows[:in.Rows()]
		rows = rows[in.Rows():]
		if !l.plan.Drops && !g.KeepsAll() {
			for k := range mine {
				if !g.Keeps(k) {
					return nil, l.violation(e, "it leaves out series, which needs drops")
				}
			}
		}
		if !g.Changed() {
			out = append(out, mine...)
			continue
		}
		columns = columns[:0]
		for j := range g.Columns() {
			c := newColumn{name: r.changes.Symbol(g.Column(j).Name), NewColumn: g.Column(j)}
			if !mayWrite(&l.plan, c.name) && (c.Source != frame.FromInput || r.view.Symbol(in.Column(c.Input).Name) != c.name) {
				was := frame.Column{}
				if id := r.view.FindName(c.name); id != 0 && in.Find(id) >= 0 {
					was = in.Column(in.Find(id))
				}
				c.was = &was
			}
			columns = append(columns, c)
		}
		for j := range in.Columns() {
			// Columns that are gone count as written too.
			was := in.Column(j)
			name := r.view.Symbol(was.Name)
			if mayWrite(&l.plan, name) || slices.ContainsFunc(columns, func(c newColumn) bool { return c.name == name }) {
				continue
			}
			for k := range mine {
				if g.Keeps(k) && was.Ref(k) != 0 {
					return nil, l.violation(e, "it removes the label %q: declare it in the plan's writes", name)
				}
			}
		}
		for k := range mine {
			if !g.Keeps(k) {
				continue
			}
			x := mine[k]
			begin := len(r.slab)
			r.scratch = r.scratch[:0]
			for j := range columns {
				c := &columns[j]
				ref := c.Ref(k)
				v := r.changes.Symbol(ref)
				if c.was != nil && r.view.Symbol(c.was.Ref(k)) != v {
					return nil, l.violation(e, "it writes the label %q: declare it in the plan's writes", c.name)
				}
				if ref != 0 {
					r.scratch = append(r.scratch, c.name)
					r.slab = append(r.slab, v)
				}
			}
			x.vals, x.same = r.slab[begin:len(r.slab):len(r.slab)], false
			x.schema = r.schemaOf(r.scratch)
			out = append(out, x)
		}
	}
	return out, nil
}
