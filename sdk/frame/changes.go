// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"
)

// Tier is how much of label sets a filter sees; see README.md.
type Tier uint8

// The tiers, numbered as in plugin.proto.
const (
	TierNames   Tier = 1
	TierColumns Tier = 2
	TierRows    Tier = 3
)

// Changes is the host's view of a reply. The zero value is empty; Parse fills it and
// may be called again. It is safe for concurrent use after Parse.
type Changes struct {
	in      *Frame
	base    uint32 // the first new symbol
	symbols symbolTable
	words   []uint32
	groups  []changedGroup
	columns []changedColumn // of all groups, each in order of names

	copied, place, used []uint32
}

type changedGroup struct {
	changed      bool
	none         bool
	keep         []uint32
	begin, limit int // in columns
}

type changedColumn struct {
	name, arg, place uint32
	source           Source
	refs             []uint32 // if source is FromRefs
}

// Parse checks all of b, a reply to in by a filter of the given tier, and makes c a view
// of both, which must not change while c is used. Empty b changes nothing. After an
// error c changes nothing either.
func (c *Changes) Parse(b []byte, in *Frame, tier Tier) error {
	c.reset(in)
	if len(b) == 0 {
		return nil
	}
	err := c.parse(b, tier)
	if err != nil {
		c.reset(in)
	}
	return err
}

func (c *Changes) reset(in *Frame) {
	*c = Changes{in: in, base: uint32(in.Symbols()), groups: c.groups, columns: c.columns[:0],
		copied: c.copied, place: c.place, used: c.used[:0]}
	c.groups = slices.Grow(c.groups[:0], in.Groups())[:in.Groups()]
	clear(c.groups)
}

func replyFault(what string) error { return fault("reply: " + what) }

func (c *Changes) parse(b []byte, tier Tier) error {
	switch {
	case len(b) < replyHeader:
		return replyFault(strconv.Itoa(len(b)) + " bytes are too few for a header")
	case string(b[:4]) != replyMagic:
		return replyFault("does not begin with " + replyMagic)
	case uint64(len(b)) > 4*uint64(len(c.in.Bytes()))+1<<20:
		return replyFault(strconv.Itoa(len(b)) + " bytes are more than 4 times the frame and 1 MiB")
	case len(b)%4 != 0 || uint64(binary.LittleEndian.Uint32(b[4:])) != uint64(len(b)):
		return replyFault("total does not say the length, " + strconv.Itoa(len(b)) + ", as a multiple of 4")
	case tier < TierNames || tier > TierRows:
		return replyFault("tier " + strconv.Itoa(int(tier)) + " has no replies")
	}
	c.words, c.copied = wordsOf(b, c.copied)
	groups, symbols, symbolsAt, bytesAt, symbolBytes := c.words[2], c.words[3], c.words[4], c.words[5], c.words[6]
	switch {
	case uint64(groups) != uint64(len(c.groups)):
		return replyFault(strconv.FormatUint(uint64(groups), 10) + " groups, where the frame has " + strconv.Itoa(len(c.groups)))
	case c.words[7] != 0:
		return replyFault("reserved bits that version 1 does not know")
	}
	r := reader{b: b, words: c.words, left: uint64(len(b) - replyHeader)}
	groupAt, ok := r.array(replyHeader, uint64(groups))
	if !ok {
		return replyFault("the offsets of the groups do not lie inside, or overlap with other parts")
	}
	if symbols != 0 || symbolsAt != 0 {
		if what := c.symbols.check(&r, symbols, symbolsAt, bytesAt, symbolBytes, 0); what != "" {
			return replyFault("new symbols: " + what)
		}
	} else if symbolBytes != 0 {
		return replyFault("bytes of symbols without symbols")
	}
	for i, at := range groupAt {
		if at == 0 {
			c.groups[i].begin, c.groups[i].limit = len(c.columns), len(c.columns)
			continue
		}
		if column, what := c.parseGroup(&r, i, at, tier); what != "" {
			return faultIn(i, column, "reply: "+what)
		}
	}
	return c.orderColumns()
}

// parseGroup returns what is wrong, and with which column; -1 is the group itself.
func (c *Changes) parseGroup(r *reader, i int, at uint32, tier Tier) (int, string) {
	in := c.in.Group(i)
	head, ok := r.array(at, 2)
	if !ok {
		return -1, "does not lie inside, or overlap with other parts"
	}
	g := &c.groups[i]
	g.changed, g.begin = true, len(c.columns)
	switch keep := head[1]; {
	case keep == 0:
	case tier == TierColumns:
		return -1, "leaves out rows, which tier columns must not"
	case keep == keepNone:
		g.none = true
	case tier == TierNames:
		return -1, "leaves out some rows, where tier names may leave out all or none"
	default:
		if g.keep, ok = r.array(keep, (uint64(in.Rows())+31)/32); !ok {
			return -1, "the bits of the rows to keep do not lie inside, or overlap with other parts"
		}
	}
	cols, ok := r.array(at+8, 3*uint64(head[0]))
	if !ok {
		return -1, "its columns do not lie inside, or overlap with other parts"
	}
	symbols := uint64(c.base) + uint64(c.symbols.len())
	for j := 0; j < len(cols); j += 3 {
		name, source, arg := cols[j], Source(cols[j+1]), cols[j+2]
		if name == 0 || uint64(name) >= symbols {
			return j / 3, "its name is an unknown symbol"
		}
		col := changedColumn{name: name, arg: arg, source: source}
		switch source {
		case FromInput:
			if uint64(arg) >= uint64(in.Columns()) {
				return j / 3, "the frame has no such column"
			}
		case FromConstant:
			if uint64(arg) >= symbols {
				return j / 3, "its value is an unknown symbol"
			}
		case FromRefs:
			if tier == TierNames {
				return j / 3, "has references, which tier names must not"
			}
			if col.refs, ok = r.array(arg, uint64(in.Rows())); !ok {
				return j / 3, "its references do not lie inside, or overlap with other parts"
			}
			for _, ref := range col.refs {
				if uint64(ref) >= symbols {
					return j / 3, "a reference is to an unknown symbol"
				}
			}
		default:
			return j / 3, "its source is none of 0, 1, 2"
		}
		c.columns = append(c.columns, col)
	}
	g.limit = len(c.columns)
	return -1, ""
}

// orderColumns brings the columns of each group into order. The names are compared
// once and not for each group, so that long ones cannot cost more than their length.
func (c *Changes) orderColumns() error {
	n := int(c.base) + c.symbols.len()
	c.place = slices.Grow(c.place[:0], n)[:n]
	clear(c.place)
	for i := range c.columns {
		if name := c.columns[i].name; c.place[name] == 0 {
			c.place[name] = 1
			c.used = append(c.used, name)
		}
	}
	slices.SortFunc(c.used, func(x, y uint32) int { return cmp.Compare(c.Symbol(x), c.Symbol(y)) })
	place := uint32(0)
	for i, name := range c.used {
		// An old symbol and a new one may be the same name.
		if i == 0 || c.Symbol(c.used[i-1]) != c.Symbol(name) {
			place++
		}
		c.place[name] = place
	}
	for i := range c.groups {
		cols := c.columns[c.groups[i].begin:c.groups[i].limit]
		for j := range cols {
			cols[j].place = c.place[cols[j].name]
		}
		slices.SortFunc(cols, func(x, y changedColumn) int { return cmp.Compare(x.place, y.place) })
		for j := 1; j < len(cols); j++ {
			if cols[j-1].place == cols[j].place {
				return faultIn(i, -1, "reply: two columns are named "+strconv.Quote(shorten(c.Symbol(cols[j].name))))
			}
		}
	}
	return nil
}

func shorten(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

// Symbols is the number of symbols: those of the frame and then the new ones.
func (c *Changes) Symbols() int { return int(c.base) + c.symbols.len() }

// Symbol returns a symbol of the frame or a new one, without copying.
func (c *Changes) Symbol(id uint32) string {
	if id < c.base {
		return c.in.Symbol(id)
	}
	return c.symbols.get(id - c.base)
}

func (c *Changes) size(id uint32) uint32 {
	if id < c.base {
		return c.in.symbols.size(id)
	}
	return c.symbols.size(id - c.base)
}

// Size is the length of a symbol.
func (c *Changes) Size(id uint32) int { return int(c.size(id)) }

// Input is the frame that was replied to.
func (c *Changes) Input() *Frame { return c.in }

// Longest is at least the length of the longest symbol.
func (c *Changes) Longest() int { return int(max(c.in.symbols.longest, c.symbols.longest)) }

// Group returns what becomes of group i of the frame.
func (c *Changes) Group(i int) GroupChanges {
	return GroupChanges{c: c, g: &c.groups[i], in: c.in.Group(i)}
}

// GroupChanges is what becomes of one group.
type GroupChanges struct {
	c  *Changes
	g  *changedGroup
	in Group
}

// Changed says whether the reply says anything of the group. If not, the columns below
// are those of the frame and all rows stay.
func (g GroupChanges) Changed() bool { return g.g.changed }

// Input is the group of the frame.
func (g GroupChanges) Input() Group { return g.in }

// KeepsAll says that every row stays, KeepsNone that none does. Both can be false.
func (g GroupChanges) KeepsAll() bool  { return !g.g.none && g.g.keep == nil }
func (g GroupChanges) KeepsNone() bool { return g.g.none }

// Keeps says whether row r stays.
func (g GroupChanges) Keeps(r int) bool {
	return !g.g.none && (g.g.keep == nil || g.g.keep[r/32]&(1<<(r%32)) != 0)
}

// Columns is the number of columns that the group has now.
func (g GroupChanges) Columns() int {
	if !g.g.changed {
		return g.in.Columns()
	}
	return g.g.limit - g.g.begin
}

// Column returns column j, in ascending order of the bytes of their names.
func (g GroupChanges) Column(j int) NewColumn {
	if !g.g.changed {
		in := g.in.Column(j)
		return NewColumn{Name: in.Name, Source: FromInput, Input: j, values: in}
	}
	col := g.c.columns[g.g.begin+j]
	n := NewColumn{Name: col.name, Source: col.source, Input: -1}
	switch col.source {
	case FromInput:
		n.Input = int(col.arg)
		n.values = g.in.Column(n.Input)
	case FromConstant:
		n.values = Column{Name: col.name, Form: Constant, constant: col.arg}
	case FromRefs:
		n.values = Column{Name: col.name, Form: References, refs: col.refs}
	}
	return n
}

// RowBytes is the length of the names and values that row r of the group has now, in
// bytes, as far as they are shown. A reply of a few bytes can make label sets of any
// size, since symbols may be used any number of times: who makes label sets of it asks
// this before.
func (g GroupChanges) RowBytes(r int) uint64 {
	n := uint64(0)
	for j := range g.Columns() {
		col := g.Column(j)
		if ref := col.Ref(r); ref != 0 {
			n += uint64(g.c.size(col.Name)) + uint64(g.c.size(ref))
		}
	}
	return n
}

// NewColumn is the values of one label after a reply.
type NewColumn struct {
	// Name is the symbol of the label name, as Changes counts them.
	Name   uint32
	Source Source
	// Input is the index of the frame's column that the values are from, -1 if they
	// are not. It may be withheld there.
	Input int

	values Column
}

// Ref is the symbol, as Changes counts them, of row r's value; 0 if it lacks the label
// or the value is withheld.
func (c NewColumn) Ref(r int) uint32 { return c.values.Ref(r) }

// Refs are the symbols of all rows if each has its own, nil if Ref is the same for all.
// They are read only.
func (c NewColumn) Refs() []uint32 { return c.values.refs }

// Withheld says that the values are those of a column which the filter did not see.
func (c NewColumn) Withheld() bool { return c.values.Form == Withheld }
