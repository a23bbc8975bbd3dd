// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Builder makes a frame, row by row: Label or LabelIDs for each label, EndRow, and
// AddChunk for the chunks of that row. The zero value is ready; Reset makes it so again
// and keeps its memory. Strings and chunk data must not change before Append: they are
// copied then.
//
// Rows that follow each other and have the same names become one group. A row that
// lacks a few of the names of the group before it joins that too.
type Builder struct {
	names, values interned
	groups        []builtGroup
	groupNames    []uint32 // of all groups
	refs          []uint32 // of all groups, row by row
	rowNames      []uint32 // of the row that is being added, as are rowRefs
	rowRefs       []uint32
	rows          int
	records       []Chunk
	first         []uint32 // record at which each row's chunks begin
	chunks        bool
	dataBytes     int
	// inOrder keeps the names in the order in which they were interned.
	inOrder  bool
	withheld bool // some value is
	err      error

	// The names of the last row, and some values of late, by place: rows resemble those
	// before them, and to compare is cheaper than to look up.
	lastNames  []interning
	lastValues [][recentValues]interning
	// finals and forms are room for Append.
	finals []uint32
	order  []uint32
	forms  []uint32
}

type interning struct {
	text string
	id   uint32
}

// recentValues is a power of 2. Labels like code or le go round through a few values.
const recentValues = 16

// recent is a place among recentValues for s, which is not empty.
func recent(s string) int {
	n := len(s)
	return int(s[n-1]^s[n/2]<<1^s[0]<<2^byte(n)<<3) % recentValues
}

type builtGroup struct{ rows, columns, namesAt, refsAt int }

// withheldRef stands for a value that is withheld.
const withheldRef = 0xFFFFFFFF

// interned are strings with an id each, from 1 on; "" is 0.
type interned struct {
	ids   map[string]uint32
	list  []string
	bytes int
}

func (t *interned) reset() {
	clear(t.ids)
	clear(t.list)
	t.list, t.bytes = t.list[:0], 0
}

func (b *Builder) intern(t *interned, s string) uint32 {
	if s == "" {
		return 0
	}
	if id, ok := t.ids[s]; ok {
		return id
	}
	if !utf8.ValidString(s) {
		b.fail("not valid UTF-8: " + strconv.Quote(s))
	}
	if t.ids == nil {
		t.ids = make(map[string]uint32)
	}
	id := b.append(t, s)
	t.ids[s] = id
	return id
}

// append gives a string that is known to be new, and valid, an id without remembering it.
func (b *Builder) append(t *interned, s string) uint32 {
	t.list = append(t.list, s)
	t.bytes += len(s)
	return uint32(len(t.list))
}

func (b *Builder) fail(what string) {
	if b.err == nil {
		b.err = fault("row " + strconv.Itoa(b.rows) + ": " + what)
	}
}

// Reset makes b empty.
func (b *Builder) Reset() {
	b.names.reset()
	b.values.reset()
	clear(b.records)
	clear(b.lastNames)
	clear(b.lastValues)
	b.groups, b.groupNames, b.refs = b.groups[:0], b.groupNames[:0], b.refs[:0]
	b.rowNames, b.rowRefs, b.rows = b.rowNames[:0], b.rowRefs[:0], 0
	b.records, b.first, b.chunks, b.dataBytes = b.records[:0], b.first[:0], false, 0
	b.inOrder, b.withheld, b.err = false, false, nil
	b.lastNames, b.lastValues = b.lastNames[:0], b.lastValues[:0]
}

// Name returns the id of a label name in this frame, which is not its symbol.
func (b *Builder) Name(s string) uint32 { return b.intern(&b.names, s) }

// Value returns the id of a value in this frame, 0 for "". Names and values have ids
// of their own, and neither are symbols.
func (b *Builder) Value(s string) uint32 { return b.intern(&b.values, s) }

// Label adds a label to the row that is being made. Names must be in ascending order;
// a label whose value is "" is left out.
func (b *Builder) Label(name, value string) {
	if value == "" {
		return
	}
	i := len(b.rowNames)
	if i == len(b.lastNames) {
		b.lastNames, b.lastValues = append(b.lastNames, interning{}), append(b.lastValues, [recentValues]interning{})
	}
	if last := &b.lastNames[i]; last.text != name || last.id == 0 {
		*last = interning{name, b.Name(name)}
	}
	last := &b.lastValues[i][recent(value)]
	if last.text != value {
		*last = interning{value, b.Value(value)}
	}
	b.LabelIDs(b.lastNames[i].id, last.id)
}

// LabelIDs is Label with what Name and Value returned, for callers who have symbols of
// their own and ask only once for each.
func (b *Builder) LabelIDs(name, value uint32) {
	if value == 0 {
		return
	}
	if name == 0 {
		b.fail("a label without a name")
	}
	b.rowNames, b.rowRefs = append(b.rowNames, name), append(b.rowRefs, value)
}

// Withhold adds a label whose value is not shown.
func (b *Builder) Withhold(name string) { b.withhold(b.Name(name)) }

func (b *Builder) withhold(name uint32) {
	b.withheld = true
	b.LabelIDs(name, withheldRef)
}

// AddRow adds a row of names and values in turn.
func (b *Builder) AddRow(pairs ...string) {
	for i := 0; i+1 < len(pairs); i += 2 {
		b.Label(pairs[i], pairs[i+1])
	}
	b.EndRow()
}

// EndRow adds the row whose labels were given.
func (b *Builder) EndRow() {
	if b.rows == MaxRows {
		b.fail("a frame has at most 65536")
	}
	if b.err != nil {
		b.rowNames, b.rowRefs = b.rowNames[:0], b.rowRefs[:0]
		return
	}
	if n := len(b.groups); n == 0 || !b.join(&b.groups[n-1]) {
		b.begin()
	}
	b.rows++
	b.rowNames, b.rowRefs = b.rowNames[:0], b.rowRefs[:0]
	b.first = append(b.first, uint32(len(b.records)))
}

// join adds the row to a group if that has its names, and not many more.
func (b *Builder) join(g *builtGroup) bool {
	names := b.groupNames[g.namesAt:]
	if b.withheld {
		// A column is withheld or it is not.
		first := b.refs[g.refsAt : g.refsAt+g.columns]
		if len(first) != len(b.rowRefs) {
			return false
		}
		for i, ref := range b.rowRefs {
			if (ref == withheldRef) != (first[i] == withheldRef) {
				return false
			}
		}
	}
	if !slices.Equal(names, b.rowNames) {
		if len(names) <= len(b.rowNames) || len(names) > 2*len(b.rowNames) {
			return false
		}
		i := 0
		for _, n := range names {
			if i < len(b.rowNames) && b.rowNames[i] == n {
				i++
			}
		}
		if i < len(b.rowNames) {
			return false
		}
		i = 0
		for _, n := range names {
			ref := uint32(0)
			if i < len(b.rowNames) && b.rowNames[i] == n {
				ref = b.rowRefs[i]
				i++
			}
			b.refs = append(b.refs, ref)
		}
	} else {
		b.refs = append(b.refs, b.rowRefs...)
	}
	g.rows++
	return true
}

// begin makes a group of the row.
func (b *Builder) begin() {
	for i := 1; i < len(b.rowNames); i++ {
		if x, y := b.names.list[b.rowNames[i-1]-1], b.names.list[b.rowNames[i]-1]; x >= y {
			b.fail("label " + strconv.Quote(y) + " comes after " + strconv.Quote(x) + "; names must be in ascending order, each once")
		}
	}
	b.groups = append(b.groups, builtGroup{rows: 1, columns: len(b.rowNames), namesAt: len(b.groupNames), refsAt: len(b.refs)})
	b.groupNames = append(b.groupNames, b.rowNames...)
	b.refs = append(b.refs, b.rowRefs...)
}

// AddChunk adds a chunk record to the row that was added last.
func (b *Builder) AddChunk(c Chunk) {
	if b.rows == 0 {
		b.fail("a chunk before any row")
		return
	}
	b.chunks = true
	b.records = append(b.records, c)
	b.dataBytes += len(c.Data)
}

// Rows is the number of rows so far.
func (b *Builder) Rows() int { return b.rows }

// Size is a bound on the length of the frame so far, in bytes. What a row can add to it
// is at most RowCost of its labels and ChunkCost of its chunks.
func (b *Builder) Size() int {
	return frameHeader + 12*len(b.groups) + 12*len(b.groupNames) + 4*len(b.refs) +
		4*(len(b.names.list)+len(b.values.list)+2) + b.names.bytes + b.values.bytes +
		4*(b.rows+1) + recordBytes*len(b.records) + b.dataBytes + 32
}

// RowCost is the most that a row with some labels adds to Size: columns of a group of
// its own or, as a row of the group before, places for twice as many; and new symbols.
func RowCost(labels, bytes int) int { return 16 + 28*labels + bytes }

// ChunkCost is the most that a chunk adds to Size.
func ChunkCost(data int) int { return recordBytes + data }

// Append appends the frame to dst. An error says what was wrong with the first row that
// cannot be in a frame, or that the frame is larger than MaxBytes.
func (b *Builder) Append(dst []byte) ([]byte, error) {
	if b.err != nil {
		return dst, b.err
	}
	// A column is constant if it has one value in all rows of a group.
	b.forms = b.forms[:0]
	total := frameHeader + 4*len(b.groups)
	for _, g := range b.groups {
		total += 8 + 12*g.columns
		for c := range g.columns {
			refs := b.refs[g.refsAt+c : g.refsAt+g.rows*g.columns]
			form := Constant
			if refs[0] == withheldRef {
				form = Withheld
			}
			for i := g.columns; i < len(refs); i += g.columns {
				if refs[i] != refs[0] {
					form = References
					total += 4 * g.rows
					break
				}
			}
			b.forms = append(b.forms, uint32(form))
		}
	}
	names, values := len(b.names.list), len(b.values.list)
	symbols, symbolBytes := 1+names+values, b.names.bytes+b.values.bytes
	symbolsAt := total
	total += 4 * (symbols + 1)
	bytesAt := total
	total = (total + symbolBytes + 3) / 4 * 4
	chunksAt, recordsAt, dataAt := 0, 0, 0
	if b.chunks {
		chunksAt = (total + 7) / 8 * 8
		recordsAt = (chunksAt + 4*(b.rows+1) + 7) / 8 * 8
		dataAt = recordsAt + recordBytes*len(b.records)
		total = (dataAt + b.dataBytes + 3) / 4 * 4
	}
	if total > MaxBytes {
		return dst, fault(strconv.Itoa(total) + " bytes are more than 16 MiB; make several frames of it")
	}

	begin := len(dst)
	dst = slices.Grow(dst, total)[:begin+total]
	out := dst[begin:]
	flags := uint32(0)
	if b.chunks {
		flags = flagChunks
	}
	copy(out, frameMagic)
	head := writer{out, 4}
	head.put(uint32(total), flags, uint32(names), uint32(symbols), uint32(symbolBytes), uint32(len(b.groups)),
		uint32(b.rows), uint32(symbolsAt), uint32(bytesAt), uint32(chunksAt), 0)

	b.orderNames()
	b.appendGroups(out, head.at)

	table := writer{out, symbolsAt}
	end := bytesAt
	table.put(0, 0)
	for _, id := range b.order {
		end += copy(out[end:], b.names.list[id-1])
		table.put(uint32(end - bytesAt))
	}
	for _, s := range b.values.list {
		end += copy(out[end:], s)
		table.put(uint32(end - bytesAt))
	}
	if !b.chunks {
		clear(out[end:])
		return dst, nil
	}
	clear(out[end:chunksAt])
	at := writeAll(out, chunksAt, b.first)
	at = writeAll(out, at, []uint32{uint32(len(b.records))})
	clear(out[at:recordsAt])
	from := 0
	for i := range b.records {
		c := &b.records[i]
		rec := out[recordsAt+i*recordBytes:]
		binary.LittleEndian.PutUint64(rec, uint64(c.MinTime))
		binary.LittleEndian.PutUint64(rec[8:], uint64(c.MaxTime))
		fields := writer{rec, 16}
		fields.put(c.Kind, c.Encoding, uint32(from), uint32(len(c.Data)))
		from += copy(out[dataAt+from:], c.Data)
	}
	clear(out[dataAt+from:])
	return dst, nil
}

// orderNames gives the names their symbols, in ascending order: who reads the frame
// finds at once that no two are the same.
func (b *Builder) orderNames() {
	n := len(b.names.list)
	b.order = slices.Grow(b.order[:0], n)[:n]
	for i := range b.order {
		b.order[i] = uint32(i) + 1
	}
	if !b.inOrder {
		slices.SortFunc(b.order, func(x, y uint32) int { return cmp.Compare(b.names.list[x-1], b.names.list[y-1]) })
	}
	b.finals = slices.Grow(b.finals[:0], n+1)[:n+1]
	for i, id := range b.order {
		b.finals[id] = uint32(i) + 1
	}
}

func (b *Builder) appendGroups(out []byte, offsets int) {
	names := uint32(len(b.names.list))
	at := offsets + 4*len(b.groups)
	forms := b.forms
	for i, g := range b.groups {
		binary.LittleEndian.PutUint32(out[offsets+4*i:], uint32(at))
		head := writer{out, at}
		head.put(uint32(g.rows), uint32(g.columns))
		at += 8 + 12*g.columns
		for c := range g.columns {
			arg := uint32(0)
			switch Form(forms[c]) {
			case Constant:
				if arg = b.refs[g.refsAt+c]; arg != 0 {
					arg += names
				}
			case References:
				arg = uint32(at)
				refs := b.refs[g.refsAt+c : g.refsAt+g.rows*g.columns]
				for r := 0; r < len(refs); r += g.columns {
					ref := refs[r]
					if ref != 0 {
						ref += names
					}
					binary.LittleEndian.PutUint32(out[at:], ref)
					at += 4
				}
			}
			head.put(b.finals[b.groupNames[g.namesAt+c]], forms[c], arg)
		}
		forms = forms[g.columns:]
	}
}
