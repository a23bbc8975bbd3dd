// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package frame

import "encoding/binary"

// NameLists makes the frame of tier names: each distinct list of label names of another
// frame once. It keeps its memory from one frame to the next.
type NameLists struct {
	builder Builder
	lists   map[string]int
	byRow   []int
	key     []byte
}

// Append appends the frame that a filter of tier names gets to see of f. The symbols of
// its names are those of f; the new ones of a reply begin at f.Names()+1.
func (n *NameLists) Append(dst []byte, f *Frame) ([]byte, error) {
	n.builder.Reset()
	n.builder.inOrder = true
	for id := 1; id <= f.Names(); id++ {
		n.builder.Name(f.Symbol(uint32(id)))
	}
	if n.lists == nil {
		n.lists = make(map[string]int)
	}
	clear(n.lists)
	n.byRow = n.byRow[:0]
	for i := range f.Groups() {
		g := f.Group(i)
		if !sparse(g) {
			list := n.list(g, 0)
			for range g.Rows() {
				n.byRow = append(n.byRow, list)
			}
			continue
		}
		for r := range g.Rows() {
			n.byRow = append(n.byRow, n.list(g, r))
		}
	}
	return n.builder.Append(dst)
}

// sparse says whether rows of a group may lack labels that others of it have.
func sparse(g Group) bool {
	for c := range g.Columns() {
		for _, ref := range g.Column(c).Refs() {
			if ref == 0 {
				return true
			}
		}
	}
	return false
}

// list is the number of the list of names that a row has.
func (n *NameLists) list(g Group, r int) int {
	n.key = n.key[:0]
	for c := range g.Columns() {
		if col := g.Column(c); col.Form == Withheld || col.Ref(r) != 0 {
			n.key = binary.LittleEndian.AppendUint32(n.key, col.Name)
		}
	}
	if list, ok := n.lists[string(n.key)]; ok {
		return list
	}
	list := len(n.lists)
	n.lists[string(n.key)] = list
	for i := 0; i < len(n.key); i += 4 {
		n.builder.withhold(binary.LittleEndian.Uint32(n.key[i:]))
	}
	n.builder.EndRow()
	return list
}

// Of is the group, in the frame that was made, that stands for a row of f, by the
// row's number in f.
func (n *NameLists) Of(row int) int { return n.byRow[row] }

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
