// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/binary"
	"slices"
	"unsafe"
)

// Reply is a reply that is being made. Reset it for each frame. Calls that make no
// sense, like a column before any group, panic; what is merely wrong, like a name
// twice, is found by who receives the reply.
type Reply struct {
	in *Frame
	// ids are the new symbols; the first few are only in few, where to compare is
	// cheaper than to look up, by far in a module.
	ids      map[string]uint32
	few      []string
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
	clear(r.few)
	r.few = r.few[:0]
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
	for i, t := range r.few {
		if t == s {
			return uint32(r.in.Symbols() + i)
		}
	}
	if len(r.ends) >= fewSymbols {
		if id, ok := r.ids[s]; ok {
			return id
		}
	}
	id := uint32(r.in.Symbols() + len(r.ends))
	switch {
	case len(r.few) < fewSymbols:
		r.few = append(r.few, s)
	case r.ids == nil:
		r.ids = make(map[string]uint32)
		fallthrough
	default:
		r.ids[s] = id
	}
	r.bytes = append(r.bytes, s...)
	r.ends = append(r.ends, uint32(len(r.bytes)))
	return id
}

const fewSymbols = 8

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
	words, inPlace := numbers(out[:bytesAt])
	words[0] = binary.LittleEndian.Uint32([]byte(replyMagic))
	words[1], words[2], words[3] = uint32(total), uint32(len(r.groups)), uint32(len(r.ends))
	words[4], words[5], words[6], words[7] = uint32(symbolsAt), uint32(bytesAt), uint32(len(r.bytes)), 0
	at := replyHeader/4 + len(r.groups)
	for i := range r.groups {
		g := &r.groups[i]
		if !g.begun {
			words[replyHeader/4+i] = 0
			continue
		}
		words[replyHeader/4+i] = uint32(4 * at)
		group := words[at : at+2+3*len(g.columns)]
		at += len(group)
		group[0], group[1] = uint32(len(g.columns)), 0
		switch {
		case g.none:
			group[1] = keepNone
		case g.keep != nil:
			group[1] = uint32(4 * at)
			at += copy(words[at:], g.keep)
		}
		group = group[2:]
		for j := range g.columns {
			c := &g.columns[j]
			if c.source == FromRefs {
				c.arg = uint32(4 * at)
				at += copy(words[at:], c.refs)
			}
			group[0], group[1], group[2] = c.name, uint32(c.source), c.arg
			group = group[3:]
		}
	}
	words[at] = 0
	copy(words[at+1:], r.ends)
	if !inPlace {
		writeAll(out, 0, words)
	}
	clear(out[bytesAt+copy(out[bytesAt:], r.bytes):])
	return b
}

// numbers is room for as many little-endian numbers as b holds: b itself if the machine
// is so and b is aligned, otherwise memory of its own, to be written to b in the end.
func numbers(b []byte) (words []uint32, inPlace bool) {
	p := unsafe.Pointer(unsafe.SliceData(b))
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 && uintptr(p)%4 == 0 {
		return unsafe.Slice((*uint32)(p), len(b)/4), true
	}
	return make([]uint32, len(b)/4), false
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
