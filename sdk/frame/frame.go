// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package frame reads and writes frames: label sets, and chunks, as tables of
// symbols, which is how series cross the border of a plug-in. README.md beside this
// file is the specification. The package has no dependencies, so that a WASM module
// that uses it stays small.
package frame

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"sort"
	"strconv"
	"unicode/utf8"
	"unsafe"
)

// The limits of the format.
const (
	MaxBytes = 16 << 20
	MaxRows  = 1 << 16
)

const (
	frameMagic  = "PWF1"
	replyMagic  = "PWR1"
	frameHeader = 48
	replyHeader = 32
	recordBytes = 32
	maxKind     = 5
	flagChunks  = 1
	keepNone    = 0xFFFFFFFF
)

// Form is how a column of a frame holds its values.
type Form uint32

// The forms of columns.
const (
	Withheld   Form = 0
	Constant   Form = 1
	References Form = 2
)

// Source is where a column of a reply has its values from.
type Source uint32

// The sources of a reply's columns.
const (
	FromInput    Source = 0
	FromConstant Source = 1
	FromRefs     Source = 2
)

// Frame is a view of the bytes of a frame. The zero value is empty; Parse fills it
// and may be called again. It is read only and safe for concurrent use after Parse.
type Frame struct {
	b       []byte
	words   []uint32 // all of b, in place or copied
	symbols symbolTable
	names   uint32
	rows    int
	groups  []uint32 // offset of each group in words
	records []byte   // of chunks, nil without
	first   []uint32 // record at which each row's chunks begin
	data    []byte   // of chunks

	// What a later Parse uses again.
	copied   []uint32
	groupRow []uint32 // number of the first row of each group
	sparse   []bool   // by group: rows may lack labels that others of it have
	rank     []uint32 // place of each name among all in order; empty: they are in order
	order    []uint32
}

// symbolTable is symbols one after the other: symbol i is the bytes from at[i] to at[i+1].
type symbolTable struct {
	at    []uint32
	bytes []byte
	// longest is the length of the longest one.
	longest uint32
}

func (t *symbolTable) len() int {
	if len(t.at) == 0 {
		return 0
	}
	return len(t.at) - 1
}

func (t *symbolTable) get(i uint32) string {
	s := t.bytes[t.at[i]:t.at[i+1]]
	return unsafe.String(unsafe.SliceData(s), len(s))
}

func (t *symbolTable) size(i uint32) uint32 { return t.at[i+1] - t.at[i] }

// check finds the table at and its n bytes from bytesAt on, and looks at every symbol.
// The first empties of them are empty, all others are not.
func (t *symbolTable) check(r *reader, count, at, bytesAt, n uint32, empties int) string {
	ends, ok := r.array(at, uint64(count)+1)
	if !ok {
		return "the table of symbols does not lie inside, or overlap with other parts"
	}
	data, ok := r.bytes(bytesAt, n)
	if !ok {
		return "the bytes of the symbols do not lie inside, or overlap with other parts"
	}
	if ends[0] != 0 || ends[count] != n {
		return "the table of symbols does not span their bytes"
	}
	if !utf8.Valid(data) {
		return "a symbol is not valid UTF-8"
	}
	longest := uint32(0)
	for i, from := range ends[:count] {
		to := ends[i+1]
		if to < from || to > n {
			return "the end of symbol " + strconv.Itoa(i) + " is before its begin"
		}
		if i < empties && to != from {
			return "symbol " + strconv.Itoa(i) + " must be empty"
		}
		if i >= empties && to == from {
			return "symbol " + strconv.Itoa(i) + " is empty, which only symbol 0 of a frame is"
		}
		// All bytes are valid together: what could go wrong is a border inside a character.
		if to > from && !utf8.RuneStart(data[from]) {
			return "symbol " + strconv.Itoa(i) + " is not valid UTF-8"
		}
		longest = max(longest, to-from)
	}
	t.at, t.bytes, t.longest = ends, data, longest
	return ""
}

// reader finds the parts of a frame or reply. What they take together must not exceed
// the whole, which bounds the work of whoever reads them: without it, a few bytes could
// be used again and again.
type reader struct {
	b     []byte
	words []uint32
	left  uint64
}

// array is n numbers at an offset.
func (r *reader) array(at uint32, n uint64) ([]uint32, bool) {
	if at%4 != 0 || n*4 > r.left || uint64(at)+n*4 > uint64(len(r.b)) {
		return nil, false
	}
	r.left -= n * 4
	return r.words[at/4 : uint64(at/4)+n : uint64(at/4)+n], true
}

func (r *reader) bytes(at, n uint32) ([]byte, bool) {
	if uint64(n) > r.left || uint64(at)+uint64(n) > uint64(len(r.b)) {
		return nil, false
	}
	r.left -= uint64(n)
	return r.b[at : at+n : at+n], true
}

// wordsOf is b, whose length is a multiple of 4, as little-endian numbers: in place if
// the machine is so and b is aligned, otherwise copied to buf, which it returns too.
func wordsOf(b []byte, buf []uint32) (words, kept []uint32) {
	n := len(b) / 4
	if n == 0 {
		return nil, buf
	}
	little := binary.NativeEndian.Uint16([]byte{1, 0}) == 1
	p := unsafe.Pointer(unsafe.SliceData(b))
	if little && uintptr(p)%4 == 0 {
		return unsafe.Slice((*uint32)(p), n), buf
	}
	buf = slices.Grow(buf[:0], n)[:n]
	if little {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(buf))), n*4), b)
	} else {
		for i := range buf {
			buf[i] = binary.LittleEndian.Uint32(b[i*4:])
		}
	}
	return buf, buf
}

func fault(what string) error { return errors.New("frame: " + what) }

func faultIn(group int, column int, what string) error {
	s := "group " + strconv.Itoa(group)
	if column >= 0 {
		s += ", column " + strconv.Itoa(column)
	}
	return errors.New("frame: " + s + ": " + what)
}

// Parse checks all of b but the order of the rows (rule S-1), and makes f a view of it:
// b must not change while f is used. After an error f is empty. It allocates only if f
// has not yet had a frame as large, or b is not aligned to 4 bytes.
func (f *Frame) Parse(b []byte) error {
	*f = Frame{copied: f.copied, groupRow: f.groupRow[:0], sparse: f.sparse[:0], rank: f.rank[:0], order: f.order[:0]}
	err := f.parse(b)
	if err != nil {
		*f = Frame{copied: f.copied, groupRow: f.groupRow[:0], sparse: f.sparse[:0], rank: f.rank[:0], order: f.order[:0]}
	}
	return err
}

func (f *Frame) parse(b []byte) error {
	switch {
	case len(b) < frameHeader:
		return fault(strconv.Itoa(len(b)) + " bytes are too few for a header")
	case string(b[:4]) != frameMagic:
		return fault("does not begin with " + frameMagic)
	case len(b) > MaxBytes:
		return fault(strconv.Itoa(len(b)) + " bytes are more than 16 MiB")
	case len(b)%4 != 0 || uint64(binary.LittleEndian.Uint32(b[4:])) != uint64(len(b)):
		return fault("total does not say the length, " + strconv.Itoa(len(b)) + ", as a multiple of 4")
	}
	f.words, f.copied = wordsOf(b, f.copied)
	w := f.words
	flags, names, symbols, symbolBytes := w[2], w[3], w[4], w[5]
	groups, rows, symbolsAt, bytesAt, chunksAt := w[6], w[7], w[8], w[9], w[10]
	switch {
	case flags&^flagChunks != 0 || w[11] != 0:
		return fault("flags or reserved bits that version 1 does not know")
	case uint64(symbols) < uint64(names)+1:
		return fault("fewer symbols than names")
	case rows > MaxRows || groups > rows:
		return fault(strconv.FormatUint(uint64(rows), 10) + " rows; at most 65536, and at least as many as groups")
	}
	r := reader{b: b, words: w, left: uint64(len(b) - frameHeader)}
	groupAt, ok := r.array(frameHeader, uint64(groups))
	if !ok {
		return fault("the offsets of the groups do not lie inside, or overlap with other parts")
	}
	if what := f.symbols.check(&r, symbols, symbolsAt, bytesAt, symbolBytes, 1); what != "" {
		return fault(what)
	}
	f.names = names
	if !f.rankNames() {
		return fault("two symbols of names are the same")
	}
	row := uint32(0)
	for i, at := range groupAt {
		n, err := f.checkGroup(&r, i, at)
		if err != nil {
			return err
		}
		f.groupRow = append(f.groupRow, row)
		if row += n; row > rows {
			break
		}
	}
	if row != rows {
		return fault("the rows of the groups are not as many as the header says")
	}
	if flags&flagChunks != 0 {
		if what := f.checkChunks(&r, chunksAt, rows); what != "" {
			return fault("chunks: " + what)
		}
	} else if chunksAt != 0 {
		return fault("an offset of chunks, but no flag for them")
	}
	f.b, f.rows, f.groups = b, int(rows), groupAt
	return nil
}

// View makes f a view of b, of which somebody who is believed has checked everything, as
// the host has of each frame that it sends: only what finding the parts needs is looked
// at. In a module this is a large share of a call. Using f can panic if b is not as it
// should be, but reads nothing beyond b. Chunks are left out; NameLists needs a frame that
// was parsed.
func (f *Frame) View(b []byte) error {
	*f = Frame{copied: f.copied, groupRow: f.groupRow[:0], sparse: f.sparse[:0], rank: f.rank[:0], order: f.order[:0]}
	if len(b) < frameHeader || string(b[:4]) != frameMagic || len(b)%4 != 0 || uint64(binary.LittleEndian.Uint32(b[4:])) != uint64(len(b)) {
		return fault("does not begin with " + frameMagic + " and its length")
	}
	f.words, f.copied = wordsOf(b, f.copied)
	w := f.words
	names, symbols, symbolBytes, groups, rows := w[3], w[4], w[5], w[6], w[7]
	r := reader{b: b, words: w, left: 1 << 62}
	groupAt, ok1 := r.array(frameHeader, uint64(groups))
	ends, ok2 := r.array(w[8], uint64(symbols)+1)
	data, ok3 := r.bytes(w[9], symbolBytes)
	if !ok1 || !ok2 || !ok3 || uint64(names) >= uint64(symbols) || groups > rows || rows > MaxRows {
		return fault("its parts do not lie inside, or it has too many rows")
	}
	row := uint32(0)
	for _, at := range groupAt {
		head, ok := r.array(at, 2)
		if !ok || head[0] > rows-row {
			return fault("a group does not lie inside, or has too many rows")
		}
		f.groupRow = append(f.groupRow, row)
		row += head[0]
	}
	f.symbols = symbolTable{at: ends, bytes: data}
	f.names, f.b, f.rows, f.groups = names, b, int(rows), groupAt
	return nil
}

// rankNames finds the order of the names, once and not for each group, so that long
// names cannot cost more than their length. It is false if two are the same.
func (f *Frame) rankNames() bool {
	n, t := f.names, &f.symbols
	sorted := true
	for i := uint32(2); i <= n && sorted; i++ {
		sorted = t.get(i-1) < t.get(i)
	}
	if sorted {
		return true
	}
	f.rank = slices.Grow(f.rank, int(n)+1)[:n+1]
	f.order = slices.Grow(f.order, int(n))[:n]
	for i := range f.order {
		f.order[i] = uint32(i) + 1
	}
	slices.SortFunc(f.order, func(a, b uint32) int { return cmp.Compare(t.get(a), t.get(b)) })
	for i, id := range f.order {
		if i > 0 && t.get(f.order[i-1]) == t.get(id) {
			return false
		}
		f.rank[id] = uint32(i) + 1
	}
	return true
}

func (f *Frame) checkGroup(r *reader, i int, at uint32) (rows uint32, err error) {
	head, ok := r.array(at, 2)
	if !ok {
		return 0, faultIn(i, -1, "does not lie inside, or overlap with other parts")
	}
	rows, columns := head[0], head[1]
	if rows == 0 || rows > MaxRows {
		return 0, faultIn(i, -1, "must have 1 to 65536 rows")
	}
	cols, ok := r.array(at+8, 3*uint64(columns))
	if !ok {
		return 0, faultIn(i, -1, "its columns do not lie inside, or overlap with other parts")
	}
	symbols, names, before, sparse := uint32(f.symbols.len()), f.names, uint32(0), false
	for c := 0; c < len(cols); c += 3 {
		name, form, arg := cols[c], Form(cols[c+1]), cols[c+2]
		if name == 0 || name > names {
			return 0, faultIn(i, c/3, "its name is not a symbol of a name")
		}
		place := name
		if len(f.rank) > 0 {
			place = f.rank[name]
		}
		if place <= before {
			return 0, faultIn(i, c/3, "names must be in ascending order")
		}
		before = place
		switch form {
		case Withheld:
			if arg != 0 {
				return 0, faultIn(i, c/3, "is withheld and has a value")
			}
		case Constant:
			if arg >= symbols || arg-1 < names {
				return 0, faultIn(i, c/3, "its value is not a symbol of a value")
			}
		case References:
			refs, ok := r.array(arg, uint64(rows))
			if !ok {
				return 0, faultIn(i, c/3, "its references do not lie inside, or overlap with other parts")
			}
			least := symbols
			for _, ref := range refs {
				// 0 wraps around and is no name.
				if ref >= symbols || ref-1 < names {
					return 0, faultIn(i, c/3, "a reference is not to a symbol of a value")
				}
				least = min(least, ref)
			}
			sparse = sparse || least == 0
		default:
			return 0, faultIn(i, c/3, "its form is none of 0, 1, 2")
		}
	}
	f.sparse = append(f.sparse, sparse)
	// Symbols may be used any number of times, so a few bytes could stand for a label
	// set of any size.
	if 2*uint64(columns)*uint64(f.symbols.longest) > MaxBytes {
		g := Group{f: f, rows: int(rows), cols: cols}
		for row := range int(rows) {
			if g.RowBytes(row) > MaxBytes {
				return 0, faultIn(i, -1, "a label set of more than 16 MiB")
			}
		}
	}
	return rows, nil
}

func (f *Frame) checkChunks(r *reader, at, rows uint32) string {
	if at%8 != 0 {
		return "their offset is not a multiple of 8"
	}
	first, ok := r.array(at, uint64(rows)+1)
	if !ok {
		return "the records of the rows do not lie inside, or overlap with other parts"
	}
	if first[0] != 0 || !slices.IsSorted(first) {
		return "the records of the rows must begin at 0 and never fall"
	}
	count := first[rows]
	recordsAt := (uint64(at) + 4*(uint64(rows)+1) + 7) / 8 * 8
	if recordsAt > uint64(len(r.b)) || uint64(count)*recordBytes > uint64(len(r.b))-recordsAt {
		return "the records do not lie inside, or overlap with other parts"
	}
	records, ok := r.bytes(uint32(recordsAt), count*recordBytes)
	if !ok {
		return "the records do not lie inside, or overlap with other parts"
	}
	data := r.b[int(recordsAt)+len(records):]
	for i := range int(count) {
		rec := records[i*recordBytes : (i+1)*recordBytes]
		minTime, maxTime := int64(binary.LittleEndian.Uint64(rec)), int64(binary.LittleEndian.Uint64(rec[8:]))
		kind, encoding := binary.LittleEndian.Uint32(rec[16:]), binary.LittleEndian.Uint32(rec[20:])
		from, n := binary.LittleEndian.Uint32(rec[24:]), binary.LittleEndian.Uint32(rec[28:])
		what := ""
		switch {
		case minTime > maxTime:
			what = "its min time is after its max time"
		case uint64(from)+uint64(n) > uint64(len(data)) || uint64(n) > r.left:
			what = "its bytes do not lie inside, or overlap with other parts"
		case kind > maxKind:
			what = "its kind is unknown"
		case encoding == EncodingPlain:
			if kind != 0 {
				what = "plain is for samples, kind 0"
			} else {
				what = checkPlain(data[from:from+n], minTime, maxTime)
			}
		case encoding == EncodingNone:
			if kind != 0 || n != 0 {
				what = "has an encoding of nothing, but a kind or bytes"
			}
		case encoding > 3:
			what = "its encoding is unknown"
		case n < 2 || (n < 3 && encoding > 1):
			// Decoders of chunks rely on their header.
			what = "its bytes are too few for a header"
		}
		if what != "" {
			return "record " + strconv.Itoa(i) + ": " + what
		}
		r.left -= uint64(n)
	}
	f.records, f.first, f.data = records, first, data
	return ""
}

func checkPlain(b []byte, minTime, maxTime int64) string {
	if len(b) == 0 || len(b)%16 != 0 {
		return "its length is not that of one or more samples"
	}
	last := minTime
	for i := 0; i < len(b); i += 16 {
		t := int64(binary.LittleEndian.Uint64(b[i:]))
		if t < last || t > maxTime || (i > 0 && t == last) {
			return "a sample is out of order or outside of its times"
		}
		last = t
	}
	return ""
}

// Bytes are those that f is a view of.
func (f *Frame) Bytes() []byte { return f.b }

// Symbols is the number of symbols; Names of them, from 1 on, are label names.
func (f *Frame) Symbols() int { return f.symbols.len() }

// Names is the number of label names: symbols 1 to Names.
func (f *Frame) Names() int { return int(f.names) }

// Symbol returns a symbol, without copying: it shares the memory of the frame.
func (f *Frame) Symbol(id uint32) string { return f.symbols.get(id) }

// FindName returns the symbol of a label name, 0 if the frame has none.
func (f *Frame) FindName(name string) uint32 {
	if f.names == 0 {
		return 0
	}
	at := f.symbols.at[1 : f.names+2]
	from := at[0]
	for i, to := range at[1:] {
		if to-from == uint32(len(name)) && string(f.symbols.bytes[from:to]) == name {
			return uint32(i) + 1
		}
		from = to
	}
	return 0
}

// Rows is the number of rows of all groups.
func (f *Frame) Rows() int { return f.rows }

// Groups is the number of groups.
func (f *Frame) Groups() int { return len(f.groups) }

// Group returns group i.
func (f *Frame) Group(i int) Group {
	at := f.groups[i] / 4
	n := 3 * f.words[at+1]
	return Group{f: f, rows: int(f.words[at]), first: int(f.groupRow[i]), cols: f.words[at+2 : at+2+n]}
}

// GroupOf is the number of the group that has a row, by the row's number in the frame.
func (f *Frame) GroupOf(row int) int {
	return sort.Search(len(f.groupRow), func(i int) bool { return int(f.groupRow[i]) > row }) - 1
}

// HasChunks says whether the frame has chunks.
func (f *Frame) HasChunks() bool { return f.first != nil }

// Chunks returns the chunk records of a row, by its number in the frame. Without
// chunks there are none.
func (f *Frame) Chunks(row int) Chunks {
	if f.first == nil {
		return Chunks{}
	}
	return Chunks{records: f.records[f.first[row]*recordBytes : f.first[row+1]*recordBytes], data: f.data}
}

// Group is a run of rows with the same columns.
type Group struct {
	f           *Frame
	rows, first int
	cols        []uint32
}

// Rows is the number of rows.
func (g Group) Rows() int { return g.rows }

// First is the number of the group's first row in the frame.
func (g Group) First() int { return g.first }

// Columns is the number of columns.
func (g Group) Columns() int { return len(g.cols) / 3 }

// Name is the symbol of column i's name.
func (g Group) Name(i int) uint32 { return g.cols[3*i] }

// Column returns column i.
func (g Group) Column(i int) Column {
	c := Column{Name: g.cols[3*i], Form: Form(g.cols[3*i+1])}
	switch arg := g.cols[3*i+2]; c.Form {
	case Constant:
		c.constant = arg
	case References:
		c.refs = g.f.words[arg/4 : int(arg/4)+g.rows : int(arg/4)+g.rows]
	}
	return c
}

// Find returns the index of the column with a name, -1 if there is none.
func (g Group) Find(name uint32) int {
	for i := 0; i < len(g.cols); i += 3 {
		if g.cols[i] == name {
			return i / 3
		}
	}
	return -1
}

// RowBytes is the length of the names and values of a row of the group, in bytes, as
// far as they are shown.
func (g Group) RowBytes(r int) uint64 {
	n := uint64(0)
	for i := range g.Columns() {
		c := g.Column(i)
		if ref := c.Ref(r); ref != 0 {
			n += uint64(g.f.symbols.size(c.Name)) + uint64(g.f.symbols.size(ref))
		}
	}
	return n
}

// Column is the values of one label in a group.
type Column struct {
	// Name is the symbol of the label name.
	Name uint32
	Form Form

	constant uint32
	refs     []uint32
}

// Ref is the symbol of row r's value; 0 if it lacks the label or is withheld.
func (c Column) Ref(r int) uint32 {
	if c.refs != nil {
		return c.refs[r]
	}
	return c.constant
}

// Refs are the symbols of all rows if the form is References, otherwise nil. They are
// read only.
func (c Column) Refs() []uint32 { return c.refs }

// Chunks are the chunk records of one row.
type Chunks struct{ records, data []byte }

// Len is the number of records.
func (c Chunks) Len() int { return len(c.records) / recordBytes }

// At returns record i. Data shares the memory of the frame.
func (c Chunks) At(i int) Chunk {
	rec := c.records[i*recordBytes : (i+1)*recordBytes]
	from, n := binary.LittleEndian.Uint32(rec[24:]), binary.LittleEndian.Uint32(rec[28:])
	return Chunk{
		MinTime: int64(binary.LittleEndian.Uint64(rec)), MaxTime: int64(binary.LittleEndian.Uint64(rec[8:])),
		Kind: binary.LittleEndian.Uint32(rec[16:]), Encoding: binary.LittleEndian.Uint32(rec[20:]),
		Data: c.data[from : from+n : from+n],
	}
}

// Encodings beside those of the TSDB. EncodingNone is a downsampled chunk without any
// of its aggregates, since none was asked for; EncodingPlain is (i64 time, f64 value) pairs.
const (
	EncodingNone  = 0
	EncodingPlain = 256
)

// Chunk is a chunk record; kinds and encodings are in README.md.
type Chunk struct {
	// MinTime and MaxTime enclose the samples, both inclusive, ms.
	MinTime, MaxTime int64
	Kind, Encoding   uint32
	Data             []byte
}
