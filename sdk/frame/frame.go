// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package frame reads and writes frames: label sets, and chunks, as tables of
// symbols, which is how series cross the border of a plug-in. README.md beside this
// file is the specification. The package has no dependencies, so that a WASM module
// that uses it stays small.
package frame

// The limits of the format.
const (
	MaxBytes = 16 << 20
	MaxRows  = 1 << 16
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
	b []byte
	// symbols, bytes and the rest are found by Parse.
}

// Parse checks all of b and makes f a view of it: b must not change while f is used.
func (f *Frame) Parse(b []byte) error { panic("not yet") }

// Bytes are those that f is a view of.
func (f *Frame) Bytes() []byte { panic("not yet") }

// Symbols is the number of symbols; Names of them, from 1 on, are label names.
func (f *Frame) Symbols() int { panic("not yet") }

// Names is the number of label names: symbols 1 to Names.
func (f *Frame) Names() int { panic("not yet") }

// Symbol returns a symbol, without copying: it shares the memory of the frame.
func (f *Frame) Symbol(id uint32) string { panic("not yet") }

// FindName returns the symbol of a label name, 0 if the frame has none.
func (f *Frame) FindName(name string) uint32 { panic("not yet") }

// Rows is the number of rows of all groups.
func (f *Frame) Rows() int { panic("not yet") }

// Groups is the number of groups.
func (f *Frame) Groups() int { panic("not yet") }

// Group returns group i.
func (f *Frame) Group(i int) Group { panic("not yet") }

// HasChunks says whether the frame has chunks.
func (f *Frame) HasChunks() bool { panic("not yet") }

// Chunks returns the chunk records of a row, by its number in the frame.
func (f *Frame) Chunks(row int) Chunks { panic("not yet") }

// Group is a run of rows with the same columns.
type Group struct{ f *Frame }

// Rows is the number of rows, First the number of the first one in the frame.
func (g Group) Rows() int { panic("not yet") }

// First is the number of the group's first row in the frame.
func (g Group) First() int { panic("not yet") }

// Columns is the number of columns.
func (g Group) Columns() int { panic("not yet") }

// Column returns column i.
func (g Group) Column(i int) Column { panic("not yet") }

// Find returns the index of the column with a name, -1 if there is none.
func (g Group) Find(name uint32) int { panic("not yet") }

// Column is the values of one label in a group.
type Column struct {
	// Name is the symbol of the label name.
	Name uint32
	Form Form
}

// Ref is the symbol of row r's value; 0 if it lacks the label or is withheld.
func (c Column) Ref(r int) uint32 { panic("not yet") }

// Chunks are the chunk records of one row.
type Chunks struct{}

// Len is the number of records.
func (c Chunks) Len() int { panic("not yet") }

// At returns record i. Data shares the memory of the frame.
func (c Chunks) At(i int) Chunk { panic("not yet") }

// EncodingPlain is the encoding of chunks that are (i64 time, f64 value) pairs.
const EncodingPlain = 256

// Chunk is a chunk record; kinds and encodings are in README.md.
type Chunk struct {
	MinTime, MaxTime int64
	Kind, Encoding   uint32
	Data             []byte
}

// Reply is a reply that is being made. Reset it for each frame.
type Reply struct{}

// Reset begins a reply to in.
func (r *Reply) Reset(in *Frame) { panic("not yet") }

// Intern returns the symbol of s: a new one, or the one that Intern gave before, or
// 0 for "". It does not look among the frame's symbols.
func (r *Reply) Intern(s string) uint32 { panic("not yet") }

// Touched says whether anything was changed.
func (r *Reply) Touched() bool { panic("not yet") }

// Group begins the reply to group i, which then has the columns that are added and
// no others. Groups that are not begun stay as they are.
func (r *Reply) Group(i int) { panic("not yet") }

// Input adds a column under name with the values of the group's column col.
func (r *Reply) Input(name uint32, col int) { panic("not yet") }

// Constant adds a column with one value.
func (r *Reply) Constant(name, value uint32) { panic("not yet") }

// Refs adds a column and returns its references, one per row and all 0, to fill in.
func (r *Reply) Refs(name uint32) []uint32 { panic("not yet") }

// DropAll leaves out all rows of the group, Drop row i of it.
func (r *Reply) DropAll() { panic("not yet") }

// Drop leaves out one row of the group.
func (r *Reply) Drop(row int) { panic("not yet") }

// Append appends the encoded reply to b; nothing if it is not touched.
func (r *Reply) Append(b []byte) []byte { panic("not yet") }
