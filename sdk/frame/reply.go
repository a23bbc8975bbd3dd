// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/binary"
	"slices"
)

// Reply is a reply that is being made. Reset it for each frame. Calls that make no
// sense, like a column before any group, panic; what is merely wrong, like a name
// twice, is found by who receives the reply.
type Reply struct {
	in       *Frame
	ids      map[string]uint32
	ends     []uint32 // of each new symbol in bytes
	bytes    []byte
	groups   []replyGroup // one per group of in
	current  int          // -1 before the first group
	begun    bool
	blocks   [][]uint32 // of references; they never move once they are given out
	block    int
	blockLen int
}

type replyGroup struct {
	begun   bool
	none    bool
	keep    []uint32 // nil: all rows stay
	columns []replyColumn
}

type replyColumn struct {
	name, arg uint32
	source    Source
	refs      []uint32
}

// Reset begins a reply to in.
func (r *Reply) Reset(in *Frame) {
	r.in, r.current, r.begun = in, -1, false
	clear(r.ids)
	r.ends, r.bytes = r.ends[:0], r.bytes[:0]
	n := in.Groups()
	r.groups = slices.Grow(r.groups[:0], n)[:n]
	for i := range r.groups {
		g := &r.groups[i]
		*g = replyGroup{columns: g.columns[:0]}
	}
	r.block, r.blockLen = 0, 0
}

// Intern returns the symbol of s: a new one, or the one that Intern gave before, or
// 0 for "". It does not look among the frame's symbols. The memory of s must not
// change before the next Reset.
func (r *Reply) Intern(s string) uint32 {
	if s == "" {
		return 0
	}
	if id, ok := r.ids[s]; ok {
		return id
	}
	if r.ids == nil {
		r.ids = make(map[string]uint32)
	}
	id := uint32(r.in.Symbols() + len(r.ends))
	r.bytes = append(r.bytes, s...)
	r.ends = append(r.ends, uint32(len(r.bytes)))
	r.ids[s] = id
	return id
}

// Touched says whether anything was changed.
func (r *Reply) Touched() bool { return r.begun }

// Group begins the reply to group i, which then has the columns that are added and
// no others. Groups that are not begun stay as they are. To begin one again is to
// forget what was said of it.
func (r *Reply) Group(i int) {
	g := &r.groups[i]
	*g = replyGroup{begun: true, columns: g.columns[:0]}
	r.current, r.begun = i, true
}

func (r *Reply) group() *replyGroup {
	if r.current < 0 {
		panic("frame: Reply: Group was not called")
	}
	return &r.groups[r.current]
}

// Input adds a column under name with the values of the group's column col.
func (r *Reply) Input(name uint32, col int) {
	g := r.group()
	g.columns = append(g.columns, replyColumn{name: name, source: FromInput, arg: uint32(col)})
}

// Constant adds a column with one value.
func (r *Reply) Constant(name, value uint32) {
	g := r.group()
	g.columns = append(g.columns, replyColumn{name: name, source: FromConstant, arg: value})
}

// Refs adds a column and returns its references, one per row and all 0, to fill in.
func (r *Reply) Refs(name uint32) []uint32 {
	g := r.group()
	refs := r.room(r.in.Group(r.current).Rows())
	g.columns = append(g.columns, replyColumn{name: name, source: FromRefs, refs: refs})
	return refs
}

// room is n numbers, all 0, that stay where they are until Reset.
func (r *Reply) room(n int) []uint32 {
	for r.block < len(r.blocks) && r.blockLen+n > len(r.blocks[r.block]) {
		r.block, r.blockLen = r.block+1, 0
	}
	if r.block == len(r.blocks) {
		r.blocks = append(r.blocks, make([]uint32, max(n, 1024<<min(r.block, 8))))
	}
	p := r.blocks[r.block][r.blockLen : r.blockLen+n : r.blockLen+n]
	r.blockLen += n
	clear(p)
	return p
}

// DropAll leaves out all rows of the group.
func (r *Reply) DropAll() { r.group().none = true }

// Drop leaves out row i of the group.
func (r *Reply) Drop(row int) {
	g := r.group()
	if g.keep == nil {
		n := r.in.Group(r.current).Rows()
		g.keep = r.room((n + 31) / 32)
		for i := range g.keep {
			g.keep[i] = 0xFFFFFFFF
		}
		if n%32 != 0 {
			g.keep[len(g.keep)-1] = 1<<(n%32) - 1
		}
	}
	g.keep[row/32] &^= 1 << (row % 32)
}

// Append appends the encoded reply to b; nothing if it is not touched.
func (r *Reply) Append(b []byte) []byte {
	if !r.begun {
		return b
	}
	total := replyHeader + 4*len(r.groups)
	for i := range r.groups {
		if g := &r.groups[i]; g.begun {
			total += 8 + 12*len(g.columns)
			if !g.none {
				total += 4 * len(g.keep)
			}
			for j := range g.columns {
				total += 4 * len(g.columns[j].refs)
			}
		}
	}
	symbolsAt := total
	total += 4 * (len(r.ends) + 1)
	bytesAt := total
	total += (len(r.bytes) + 3) / 4 * 4

	begin := len(b)
	b = slices.Grow(b, total)[:begin+total]
	out := b[begin:]
	copy(out, replyMagic)
	head := writer{out, 4}
	head.put(uint32(total), uint32(len(r.groups)), uint32(len(r.ends)), uint32(symbolsAt),
		uint32(bytesAt), uint32(len(r.bytes)), 0)
	at := replyHeader + 4*len(r.groups)
	for i := range r.groups {
		g := &r.groups[i]
		if !g.begun {
			head.put(0)
			continue
		}
		head.put(uint32(at))
		group := writer{out, at}
		at += 8 + 12*len(g.columns)
		keep := uint32(0)
		switch {
		case g.none:
			keep = keepNone
		case g.keep != nil:
			keep = uint32(at)
			at = writeAll(out, at, g.keep)
		}
		group.put(uint32(len(g.columns)), keep)
		for j := range g.columns {
			c := &g.columns[j]
			if c.source == FromRefs {
				c.arg = uint32(at)
				at = writeAll(out, at, c.refs)
			}
			group.put(c.name, uint32(c.source), c.arg)
		}
	}
	symbols := writer{out, symbolsAt}
	symbols.put(0)
	writeAll(out, symbolsAt+4, r.ends)
	clear(out[bytesAt+copy(out[bytesAt:], r.bytes):])
	return b
}

// writer writes numbers one after the other into room that is there.
type writer struct {
	b  []byte
	at int
}

func (w *writer) put(vs ...uint32) {
	for _, v := range vs {
		binary.LittleEndian.PutUint32(w.b[w.at:], v)
		w.at += 4
	}
}

func writeAll(b []byte, at int, vs []uint32) int {
	for _, v := range vs {
		binary.LittleEndian.PutUint32(b[at:], v)
		at += 4
	}
	return at
}
