// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package testfilter

import "github.com/promweave/promweave/sdk/frame"

// edit changes the columns of one group after the other, and writes down in the end
// what has become of them. It is used again, so that a frame costs no memory.
type edit struct {
	in    *frame.Frame
	out   *frame.Reply
	g     frame.Group
	cols  []column
	names []named
	// memo[k] is what symbols of the frame become by mapping k, and 1 added to it; 0
	// is not known yet.
	memo [][]uint32
	strs []string // of new symbols, from the frame's number of symbols on
}

// named is a label name and its symbol.
type named struct {
	text string
	id   uint32
}

// column is a column to be: an input column, or one value.
type column struct {
	name  uint32
	input int // -1: value
	value uint32
	// mapped is the memo that values of the input go through, -1 without.
	mapped int
}

func (e *edit) begin(in *frame.Frame, out *frame.Reply, mappings int) {
	e.in, e.out = in, out
	e.names, e.strs = e.names[:0], e.strs[:0]
	for len(e.memo) < mappings {
		e.memo = append(e.memo, nil)
	}
	n := in.Symbols()
	for k := range e.memo[:mappings] {
		if cap(e.memo[k]) < n {
			e.memo[k] = make([]uint32, n)
		}
		e.memo[k] = e.memo[k][:n]
		clear(e.memo[k])
	}
}

// group begins with all columns of group i as they are.
func (e *edit) group(i int) {
	e.g = e.in.Group(i)
	e.out.Group(i)
	e.cols = e.cols[:0]
	for c := range e.g.Columns() {
		e.cols = append(e.cols, column{name: e.g.Name(c), input: c, mapped: -1})
	}
}

// name is the symbol of a label name: the frame's, or else a new one. Names are looked
// up once for all groups.
func (e *edit) name(s string) uint32 {
	for i := range e.names {
		if e.names[i].text == s {
			return e.names[i].id
		}
	}
	id := e.in.FindName(s)
	if id == 0 {
		id = e.intern(s)
	}
	e.names = append(e.names, named{s, id})
	return id
}

func (e *edit) intern(s string) uint32 {
	id := e.out.Intern(s)
	if i := int(id) - e.in.Symbols(); i == len(e.strs) {
		e.strs = append(e.strs, s)
	}
	return id
}

func (e *edit) find(name uint32) int {
	for i := range e.cols {
		if e.cols[i].name == name {
			return i
		}
	}
	return -1
}

func (e *edit) remove(name uint32) {
	if i := e.find(name); i >= 0 {
		e.cols[i] = e.cols[len(e.cols)-1]
		e.cols = e.cols[:len(e.cols)-1]
	}
}

func (e *edit) drop(name string) { e.remove(e.name(name)) }

func (e *edit) rename(from, to string) {
	if from == to {
		return
	}
	f, t := e.name(from), e.name(to)
	e.remove(t)
	if i := e.find(f); i >= 0 {
		e.cols[i].name = t
	}
}

func (e *edit) set(name, value string) {
	id := e.name(name)
	e.remove(id)
	if value != "" {
		e.cols = append(e.cols, column{name: id, input: -1, value: e.intern(value), mapped: -1})
	}
}

// leaveOut drops the rows whose label, as it came, has a value.
func (e *edit) leaveOut(name, value string) {
	i := e.g.Find(e.in.FindName(name))
	if i < 0 {
		return
	}
	c := e.g.Column(i)
	for r := range e.g.Rows() {
		if e.in.Symbol(c.Ref(r)) == value {
			e.out.Drop(r)
		}
	}
}

// mapValues has the values of label k of f go through its mapping, by way of memo k.
func (e *edit) mapValues(name string, k int, f *instance) {
	i := e.find(e.name(name))
	if i < 0 {
		return
	}
	c := &e.cols[i]
	if c.input < 0 {
		c.value = e.intern(f.mapValue(k, e.strs[int(c.value)-e.in.Symbols()]))
		return
	}
	c.mapped = k
	in, memo := e.g.Column(c.input), e.memo[k]
	for r := range e.g.Rows() {
		ref := in.Ref(r)
		if ref != 0 && memo[ref] == 0 {
			from := e.in.Symbol(ref)
			if to := f.mapValue(k, from); to == from {
				memo[ref] = ref + 1
			} else {
				memo[ref] = e.intern(to) + 1
			}
		}
		if in.Form != frame.References {
			break // all rows have this one
		}
	}
}

// end writes the group's columns.
func (e *edit) end() {
	for i := range e.cols {
		c := &e.cols[i]
		switch {
		case c.input < 0:
			if c.value != 0 {
				e.out.Constant(c.name, c.value)
			}
		case c.mapped < 0:
			e.out.Input(c.name, c.input)
		default:
			e.writeMapped(c)
		}
	}
}

func (e *edit) writeMapped(c *column) {
	in, memo := e.g.Column(c.input), e.memo[c.mapped]
	refs := in.Refs()
	if refs == nil {
		if ref := in.Ref(0); ref != 0 && memo[ref] > 1 {
			e.out.Constant(c.name, memo[ref]-1)
		}
		return
	}
	to := e.out.Refs(c.name)
	for r, ref := range refs {
		if ref != 0 {
			to[r] = memo[ref] - 1
		}
	}
}
