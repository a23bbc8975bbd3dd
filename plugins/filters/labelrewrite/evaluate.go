// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package labelrewrite

import (
	"encoding/binary"

	"github.com/promweave/promweave/sdk/frame"
)

// evaluation does the steps on a frame. It is used again for the next one.
type evaluation struct {
	i   *instance
	set labelSet
	key []byte
	// results by the references of the columns that matter: rows that are alike there
	// are worked out once.
	memo    map[string]*result
	results []*result
	columnsOf
}

// result is what becomes of a row's labels that matter.
type result struct {
	drop   bool
	same   bool
	labels []label
}

// columnsOf are the columns of a group: touched ones, whose values the steps may
// look at or change, and the others, which stay.
type columnsOf struct {
	touched []touched
	others  []int
}

type touched struct {
	frame.Column
	name string
}

func (e *evaluation) run(r *result, labels func(add func(name, value string, ref uint32))) {
	e.set.protect = e.i.protect
	e.set.labels = e.set.labels[:0]
	n := 0
	labels(func(name, value string, ref uint32) {
		e.set.labels = append(e.set.labels, label{name, value, ref})
		n++
	})
	for k := range e.i.steps {
		if !e.i.steps[k].apply(&e.set) {
			r.drop = true
			return
		}
	}
	r.same = len(e.set.labels) == n
	for k := range e.set.labels {
		l := e.set.labels[k]
		// What is new has no symbol yet; what moved has one, at another place.
		r.same = r.same && l.ref != 0
		if l.value != "" {
			r.labels = append(r.labels, l)
		}
	}
}

// columns maps the values of single labels: each group has one column.
func (e *evaluation) columns(in *frame.Frame, out *frame.Reply) {
	for g := range in.Groups() {
		group := in.Group(g)
		col := group.Column(0)
		name := in.Symbol(col.Name)
		var refs []uint32
		for row := range group.Rows() {
			ref := col.Ref(row)
			var r result
			e.run(&r, func(add func(string, string, uint32)) { add(name, in.Symbol(ref), ref) })
			if r.same {
				if refs != nil {
					refs[row] = ref
				}
				continue
			}
			if refs == nil {
				out.Group(g)
				refs = out.Refs(col.Name)
				for before := range row {
					refs[before] = col.Ref(before)
				}
			}
			refs[row] = 0
			if len(r.labels) > 0 {
				refs[row] = symbol(out, r.labels[0])
			}
		}
	}
}

func symbol(out *frame.Reply, l label) uint32 {
	if l.ref != 0 {
		return l.ref
	}
	return out.Intern(l.value)
}

func (e *evaluation) rows(in *frame.Frame, out *frame.Reply) {
	for g := range in.Groups() {
		e.group(in, out, g)
	}
}

func (e *evaluation) group(in *frame.Frame, out *frame.Reply, g int) {
	group := in.Group(g)
	e.touched, e.others = e.touched[:0], e.others[:0]
	for c := range group.Columns() {
		col := group.Column(c)
		if name := in.Symbol(col.Name); e.i.any || e.i.names[name] {
			e.touched = append(e.touched, touched{col, name})
		} else {
			e.others = append(e.others, c)
		}
	}
	if e.memo == nil {
		e.memo = map[string]*result{}
	}
	clear(e.memo)
	e.results = e.results[:0]
	changed := false
	for row := range group.Rows() {
		e.key = e.key[:0]
		for k := range e.touched {
			e.key = binary.LittleEndian.AppendUint32(e.key, e.touched[k].Ref(row))
		}
		r := e.memo[string(e.key)]
		if r == nil {
			r = &result{}
			e.run(r, func(add func(string, string, uint32)) {
				for k := range e.touched {
					if ref := e.touched[k].Ref(row); ref != 0 {
						add(e.touched[k].name, in.Symbol(ref), ref)
					}
				}
			})
			r.same = r.same && !r.drop && e.inPlace(r, row)
			e.memo[string(e.key)] = r
		}
		changed = changed || !r.same
		e.results = append(e.results, r)
	}
	if changed {
		e.write(in, out, g)
	}
}

// inPlace says whether every label still has the value that it had.
func (e *evaluation) inPlace(r *result, row int) bool {
	k := 0
	for t := range e.touched {
		ref := e.touched[t].Ref(row)
		if ref == 0 {
			continue
		}
		if k >= len(r.labels) || r.labels[k].name != e.touched[t].name || r.labels[k].ref != ref {
			return false
		}
		k++
	}
	return k == len(r.labels)
}

// write puts the results of a group into the reply.
func (e *evaluation) write(in *frame.Frame, out *frame.Reply, g int) {
	group := in.Group(g)
	out.Group(g)
	for _, c := range e.others {
		out.Input(group.Column(c).Name, c)
	}
	columns := map[string][]uint32{}
	for row, r := range e.results {
		if r.drop {
			out.Drop(row)
			continue
		}
		for k := range r.labels {
			l := &r.labels[k]
			refs := columns[l.name]
			if refs == nil {
				name := in.FindName(l.name)
				if name == 0 {
					name = out.Intern(l.name)
				}
				refs = out.Refs(name)
				columns[l.name] = refs
			}
			if l.ref == 0 {
				l.ref = out.Intern(l.value) // once for all rows that are alike
			}
			refs[row] = l.ref
		}
	}
}
