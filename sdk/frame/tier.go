// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// NameLists makes the frame of tier names: each distinct list of label names of another
// frame once. It keeps its memory from one frame to the next.
type NameLists struct {
	of      *Frame
	builder Builder
	lists   map[string]int
	// first is the place in keys at which each list begins; keys are its names.
	first []int
	keys  []uint32
	// byGroup is the list of all rows of a group, or -1 and its rows' are in byRow.
	byGroup []int
	byRow   []int
	key     []byte
	at      []uint32
}

// Append appends the frame that a filter of tier names gets to see of f. The symbols of
// its names are those of f; the new ones of a reply begin at f.Names()+1.
func (n *NameLists) Append(dst []byte, f *Frame) ([]byte, error) {
	n.of = f
	n.builder.Reset()
	n.builder.inOrder = true
	for id := 1; id <= f.Names(); id++ {
		n.builder.append(&n.builder.names, f.Symbol(uint32(id)))
	}
	clear(n.lists)
	n.first, n.keys, n.byGroup, n.byRow = n.first[:0], n.keys[:0], n.byGroup[:0], n.byRow[:0]
	for i := range f.Groups() {
		g := f.Group(i)
		if !f.sparse[i] {
			n.byGroup = append(n.byGroup, n.list(g, 0))
			continue
		}
		n.byGroup = append(n.byGroup, -1)
		n.byRow = slices.Grow(n.byRow, f.Rows()-len(n.byRow))[:f.Rows()]
		for r := range g.Rows() {
			n.byRow[g.First()+r] = n.list(g, r)
		}
	}
	return n.builder.Append(dst)
}

// list is the number of the list of names that a row has.
func (n *NameLists) list(g Group, r int) int {
	begin := len(n.keys)
	for c := range g.Columns() {
		if col := g.Column(c); col.Form == Withheld || col.Ref(r) != 0 {
			n.keys = append(n.keys, col.Name)
		}
	}
	// Most frames have one list, which needs no map.
	if last := len(n.first) - 1; last >= 0 && slices.Equal(n.keys[n.first[last]:begin], n.keys[begin:]) {
		n.keys = n.keys[:begin]
		return last
	}
	list := len(n.first)
	if list > 0 {
		if n.lists == nil {
			n.lists = make(map[string]int)
		}
		if list == 1 {
			n.lists[string(n.keyOf(n.keys[:begin]))] = 0
		}
		key := n.keyOf(n.keys[begin:])
		if list, ok := n.lists[string(key)]; ok {
			n.keys = n.keys[:begin]
			return list
		}
		n.lists[string(key)] = list
	}
	n.first = append(n.first, begin)
	for _, name := range n.keys[begin:] {
		n.builder.withhold(name)
	}
	n.builder.EndRow()
	return list
}

func (n *NameLists) keyOf(names []uint32) []byte {
	n.key = n.key[:0]
	for _, name := range names {
		n.key = binary.LittleEndian.AppendUint32(n.key, name)
	}
	return n.key
}

// Of is the group, in the frame that was made, that stands for a row of f, by the
// row's number in f.
func (n *NameLists) Of(row int) int {
	g := n.of.GroupOf(row)
	if list := n.byGroup[g]; list >= 0 {
		return list
	}
	return n.byRow[row]
}

// Lift makes of c, a reply to the frame that was made last, the one to f that says the
// same of its rows. Like c it is a view of f and of the reply's bytes; c itself is not
// needed any more.
func (n *NameLists) Lift(c, out *Changes) {
	f := n.of
	out.reset(f)
	out.symbols = c.symbols
	columns := 0
	for _, list := range n.byGroup {
		if list >= 0 {
			columns += c.groups[list].limit - c.groups[list].begin
		}
	}
	out.columns = slices.Grow(out.columns, columns)
	for i := range f.Groups() {
		if list := n.byGroup[i]; list < 0 {
			n.liftRows(c, out, i)
		} else if from := &c.groups[list]; from.changed {
			to := &out.groups[i]
			to.changed, to.none, to.begin = true, from.none, len(out.columns)
			places := n.places(f.Group(i), list)
			out.columns = append(out.columns, c.columns[from.begin:from.limit]...)
			for j := to.begin; j < len(out.columns); j++ {
				out.columns[j].lift(c, out, places)
			}
			to.limit = len(out.columns)
		}
	}
}

// lift makes it a column of a group that has the columns of the list at places.
func (col *changedColumn) lift(c, out *Changes, places []uint32) {
	symbol := func(id uint32) uint32 {
		if id >= c.base {
			return id - c.base + out.base
		}
		return id
	}
	col.name = symbol(col.name)
	switch col.source {
	case FromInput:
		col.arg = places[col.arg]
	case FromConstant:
		col.arg = symbol(col.arg)
	}
}

// places are the columns of a group that a list of names has.
func (n *NameLists) places(g Group, list int) []uint32 {
	n.at = n.at[:0]
	keys := n.keys[n.first[list]:]
	if list+1 < len(n.first) {
		keys = n.keys[n.first[list]:n.first[list+1]]
	}
	for c := 0; c < g.Columns() && len(n.at) < len(keys); c++ {
		if g.cols[3*c] == keys[len(n.at)] {
			n.at = append(n.at, uint32(c))
		}
	}
	return n.at
}

// liftRows makes the reply to a group whose rows have several lists of names.
func (n *NameLists) liftRows(c, out *Changes, i int) {
	g := n.of.Group(i)
	lists := n.byRow[g.First() : g.First()+g.Rows()]
	changed, drops := false, 0
	for _, list := range lists {
		changed = changed || c.groups[list].changed
		if c.groups[list].none {
			drops++
		}
	}
	if !changed {
		return
	}
	to := &out.groups[i]
	to.changed, to.begin = true, len(out.columns)
	if to.none = drops == len(lists); !to.none && drops > 0 {
		to.keep = make([]uint32, (len(lists)+31)/32)
	}
	var columns []changedColumn
	byName := map[string]int{}
	set := func(r int, name, value uint32) {
		at, ok := byName[out.Symbol(name)]
		if !ok {
			at = len(columns)
			byName[out.Symbol(name)] = at
			columns = append(columns, changedColumn{name: name, source: FromRefs, refs: make([]uint32, len(lists))})
		}
		columns[at].refs[r] = value
	}
	for r, list := range lists {
		from := &c.groups[list]
		if to.keep != nil && !from.none {
			to.keep[r/32] |= 1 << (r % 32)
		}
		places := n.places(g, list)
		if !from.changed {
			for _, p := range places {
				set(r, g.cols[3*p], g.Column(int(p)).Ref(r))
			}
			continue
		}
		for _, col := range c.columns[from.begin:from.limit] {
			col.lift(c, out, places)
			switch col.source {
			case FromInput:
				set(r, col.name, g.Column(int(col.arg)).Ref(r))
			case FromConstant:
				set(r, col.name, col.arg)
			}
		}
	}
	slices.SortFunc(columns, func(x, y changedColumn) int { return cmp.Compare(out.Symbol(x.name), out.Symbol(y.name)) })
	out.columns = append(out.columns, columns...)
	to.limit = len(out.columns)
}

// ColumnValues makes the frame of tier columns: each distinct value of some labels of
// another frame once. It keeps its memory from one frame to the next.
type ColumnValues struct {
	builder Builder
	columns []valueColumn
	origin  []uint32 // symbol of f, by id of the builder's values
	names   int
	values  []uint32 // id of the builder's value, by symbol of f
}

type valueColumn struct {
	name uint32 // symbol of f
	// rows is 1 + the row in the group, by symbol of f.
	rows []uint32
	list []uint32
}

// Append appends the frame that a filter of tier columns gets to see of f, and of all
// labels of f only the values of those named. Labels that no row of f has have no group.
func (v *ColumnValues) Append(dst []byte, f *Frame, names []string) ([]byte, error) {
	v.builder.Reset()
	v.columns = v.columns[:0]
	v.origin = append(v.origin[:0], 0)
	symbols := f.Symbols()
	v.values = cleared(v.values, symbols)
	for _, name := range names {
		id := f.FindName(name)
		if id == 0 || v.find(id) >= 0 {
			continue
		}
		if col := v.collect(f, id); col != nil {
			v.add(f, name, col)
		}
	}
	v.names = len(v.builder.names.list)
	v.builder.inOrder = true
	return v.builder.Append(dst)
}

func cleared(s []uint32, n int) []uint32 {
	if cap(s) < n {
		return make([]uint32, n)
	}
	s = s[:n]
	clear(s)
	return s
}

// collect finds the distinct values of a label, nil if there are none.
func (v *ColumnValues) collect(f *Frame, name uint32) *valueColumn {
	if len(v.columns) < cap(v.columns) {
		v.columns = v.columns[:len(v.columns)+1]
	} else {
		v.columns = append(v.columns, valueColumn{})
	}
	col := &v.columns[len(v.columns)-1]
	col.name, col.rows, col.list = name, cleared(col.rows, f.Symbols()), col.list[:0]
	add := func(ref uint32) {
		if ref != 0 && col.rows[ref] == 0 {
			col.list = append(col.list, ref)
			col.rows[ref] = uint32(len(col.list))
		}
	}
	for i := range f.Groups() {
		g := f.Group(i)
		c := g.Find(name)
		if c < 0 {
			continue
		}
		values := g.Column(c)
		if refs := values.Refs(); refs != nil {
			for _, ref := range refs {
				add(ref)
			}
		} else {
			add(values.Ref(0))
		}
	}
	if len(col.list) == 0 {
		v.columns = v.columns[:len(v.columns)-1]
		return nil
	}
	return col
}

// add makes the group of a label.
func (v *ColumnValues) add(f *Frame, name string, col *valueColumn) {
	id := v.builder.Name(name)
	for _, ref := range col.list {
		if v.values[ref] == 0 {
			v.values[ref] = v.builder.Value(f.Symbol(ref))
			if int(v.values[ref]) == len(v.origin) {
				v.origin = append(v.origin, ref)
			}
		}
		v.builder.LabelIDs(id, v.values[ref])
		v.builder.EndRow()
	}
}

func (v *ColumnValues) find(name uint32) int {
	for i := range v.columns {
		if v.columns[i].name == name {
			return i
		}
	}
	return -1
}

// Group is the group, in the frame that was made, of the values of a label of f, by its
// symbol in f; -1 if there is none.
func (v *ColumnValues) Group(name uint32) int { return v.find(name) }

// Row is the row of that group which stands for a value, by its symbol in f.
func (v *ColumnValues) Row(group int, value uint32) int { return int(v.columns[group].rows[value]) - 1 }

// Origin is the symbol in f of a symbol of the frame that was made.
func (v *ColumnValues) Origin(symbol uint32) uint32 {
	if symbol == 0 {
		return 0
	}
	if int(symbol) <= v.names {
		return v.columns[symbol-1].name
	}
	return v.origin[int(symbol)-v.names]
}
