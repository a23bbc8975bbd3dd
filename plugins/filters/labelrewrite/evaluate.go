// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package labelrewrite

import (
	"slices"

	"github.com/promweave/promweave/sdk/frame"
)

// evaluation does the steps on a frame. It is used again for the next one, and keeps
// nothing for each row but what is in the reply.
type evaluation struct {
	i   *instance
	set labelSet
	// memo has by a hash of the references of the columns that matter the first row that
	// has these: rows that are alike there are worked out once. dropped are rows.
	memo    map[uint64]int
	dropped []bool
	// names are the symbols of a frame's names, if it has many of them and many are
	// looked for.
	names    map[string]uint32
	searches int
	// The columns of a group: touched ones, whose values the steps may look at or
	// change, and the others, which stay.
	touched []touched
	others  []int
	// written are the columns of the reply's group in the order in which they came up,
	// and their places by name, if there are many and many are looked for.
	written       []written
	places        map[string]int
	placeSearches int
}

type touched struct {
	frame.Column
	name string
}

type written struct {
	name string
	refs []uint32
}

// run does the steps on labels. same says that those of e.set are what they were, drop
// that the series is left out.
func (e *evaluation) run(labels func(add func(name, value string, ref uint32))) (same, drop bool) {
	e.set.reset(e.i.protect)
	labels(func(name, value string, ref uint32) { e.set.labels = append(e.set.labels, label{name, value, ref}) })
	n := len(e.set.labels)
	for k := range e.i.steps {
		if !e.i.steps[k].apply(&e.set) {
			return false, true
		}
	}
	same = len(e.set.labels) == n
	for k := range e.set.labels {
		// What is new has no symbol yet; what moved has one, at another place.
		same = same && e.set.labels[k].ref != 0
	}
	return same, false
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
			same, drop := e.run(func(add func(string, string, uint32)) { add(name, in.Symbol(ref), ref) })
			if same {
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
			for _, l := range e.set.labels {
				if l.value != "" && !drop {
					refs[row] = symbol(out, l)
					break
				}
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
	clear(e.names)
	e.searches = 0
	for g := range in.Groups() {
		e.group(in, out, g)
	}
}

// nameSymbol is the symbol of a name in the frame, 0 if it has none.
func (e *evaluation) nameSymbol(in *frame.Frame, name string) uint32 {
	if e.searches++; in.Names() <= manyLabels || e.searches <= manySearches {
		return in.FindName(name)
	}
	if len(e.names) == 0 {
		if e.names == nil {
			e.names = make(map[string]uint32, in.Names())
		}
		for id := uint32(1); id <= uint32(in.Names()); id++ {
			e.names[in.Symbol(id)] = id
		}
	}
	return e.names[name]
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
		e.memo, e.places = map[uint64]int{}, map[string]int{}
	}
	clear(e.memo)
	e.dropped = append(e.dropped[:0], make([]bool, group.Rows())...)
	begun := false
	for row := range group.Rows() {
		h := e.hash(row)
		first, known := e.memo[h]
		switch {
		case known && e.alike(first, row):
			if !begun {
				continue // it stays, as that one does
			}
			if e.dropped[first] {
				e.drop(out, row)
				continue
			}
			for _, w := range e.written {
				w.refs[row] = w.refs[first]
			}
			continue
		case !known:
			e.memo[h] = row
		}
		same, drop := e.run(func(add func(string, string, uint32)) {
			for k := range e.touched {
				if ref := e.touched[k].Ref(row); ref != 0 {
					add(e.touched[k].name, in.Symbol(ref), ref)
				}
			}
		})
		if !begun {
			if same && e.inPlace(row) {
				continue
			}
			e.begin(in, out, g, row)
			begun = true
		}
		if drop {
			e.drop(out, row)
			continue
		}
		e.write(in, out, row)
	}
}

// hash is one of the references of a row's touched columns; rows with different ones may
// have the same.
func (e *evaluation) hash(row int) uint64 {
	h := uint64(14695981039346656037) // FNV-1a, a reference at a time
	for k := range e.touched {
		h = (h ^ uint64(e.touched[k].Ref(row))) * 1099511628211
	}
	return h
}

func (e *evaluation) alike(a, b int) bool {
	for k := range e.touched {
		if e.touched[k].Ref(a) != e.touched[k].Ref(b) {
			return false
		}
	}
	return true
}

func (e *evaluation) drop(out *frame.Reply, row int) {
	e.dropped[row] = true
	out.Drop(row)
}

// inPlace says whether every label still has the value that it had.
func (e *evaluation) inPlace(row int) bool {
	k := 0
	next := func() *label {
		for k < len(e.set.labels) && e.set.labels[k].value == "" {
			k++
		}
		if k == len(e.set.labels) {
			return nil
		}
		k++
		return &e.set.labels[k-1]
	}
	for t := range e.touched {
		ref := e.touched[t].Ref(row)
		if ref == 0 {
			continue
		}
		if l := next(); l == nil || l.name != e.touched[t].name || l.ref != ref {
			return false
		}
	}
	return next() == nil
}

// begin begins the reply to a group of which the first rows stay as they are.
func (e *evaluation) begin(in *frame.Frame, out *frame.Reply, g, rows int) {
	group := in.Group(g)
	out.Group(g)
	for _, c := range e.others {
		out.Input(group.Column(c).Name, c)
	}
	e.written, e.placeSearches = e.written[:0], 0
	clear(e.places)
	for k := range e.touched {
		t := &e.touched[k]
		var refs []uint32
		for row := range rows {
			ref := t.Ref(row)
			if ref == 0 {
				continue
			}
			if refs == nil {
				refs = out.Refs(t.Name)
				e.written = append(e.written, written{t.name, refs})
			}
			refs[row] = ref
		}
	}
}

// write puts the labels of a row into the reply.
func (e *evaluation) write(in *frame.Frame, out *frame.Reply, row int) {
	at := 0
	for k := range e.set.labels {
		l := &e.set.labels[k]
		if l.value == "" {
			continue
		}
		// Mostly a row has the names of the one before it, in their order.
		if at >= len(e.written) || e.written[at].name != l.name {
			if at = e.place(l.name); at < 0 {
				name := e.nameSymbol(in, l.name)
				if name == 0 {
					name = out.Intern(l.name)
				}
				at = len(e.written)
				if len(e.places) > 0 {
					e.places[l.name] = at
				}
				e.written = append(e.written, written{l.name, out.Refs(name)})
			}
		}
		e.written[at].refs[row] = symbol(out, *l)
		at++
	}
}

// place is where a column of the reply is, -1 if it is not there yet.
func (e *evaluation) place(name string) int {
	if e.placeSearches++; len(e.written) <= manyLabels || e.placeSearches <= manySearches {
		return slices.IndexFunc(e.written, func(w written) bool { return w.name == name })
	}
	if len(e.places) == 0 {
		for i, w := range e.written {
			e.places[w.name] = i
		}
	}
	if i, ok := e.places[name]; ok {
		return i
	}
	return -1
}
