// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package header

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/tsdb/index"
)

// sampling is of how many entries in a row one is kept in memory.
const sampling = 32

// Reader finds things by a header. It holds a sample of the symbols and of the label values
// in memory and reads what lies between from the file, by pread: a page fault in memory that is
// mapped stops a whole thread of the runtime, which no limit of ours sees. It is safe for
// concurrent use.
type Reader struct {
	f *os.File
	// indexVersion is 1 or 2.
	indexVersion byte
	// symbols has where every 32nd symbol lies in the file, symbolsEnd where they end.
	symbols    []int64
	symbolsEnd int64
	count      uint32
	names      []string
	tables     map[string]*table
	// tableEnd is where the table of postings offsets ends in the file, listsEnd where the
	// lists end in the index, with the checksum of the last.
	tableEnd, listsEnd int64
}

// table is the part of the table of postings offsets that is of one label name.
type table struct {
	// samples are the first value, every 32nd, and the last.
	samples []sample
	// end is behind its last entry.
	end int64
}

type sample struct {
	value string
	at    int64 // of the entry in the file
}

// Range is where the entries of a list of series lie in the index: references of 4 bytes each.
type Range struct{ Start, End int64 }

// Series is the number of references.
func (r Range) Series() int64 { return (r.End - r.Start) / 4 }

// Open opens a header and checks it, all of it: what is broken is ErrCorrupt, and to be built
// again.
func Open(file string) (_ *Reader, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	r := &Reader{f: f, tables: map[string]*table{}}
	if err := r.load(); err != nil {
		return nil, corrupt(file, "%w", err)
	}
	return r, nil
}

// Close implements io.Closer. Calls that run fail.
func (r *Reader) Close() error { return r.f.Close() }

func (r *Reader) load() error {
	info, err := r.f.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if size < prefixSize+tocSize+trailerSize {
		return fmt.Errorf("it has %d bytes", size)
	}
	var head [prefixSize]byte
	var end [trailerSize]byte
	if _, err := r.f.ReadAt(head[:], 0); err != nil {
		return err
	}
	if _, err := r.f.ReadAt(end[:], size-trailerSize); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(head[:]) != magic || head[4] != version {
		return fmt.Errorf("it begins with %x: want a header of version %d", head[:5], version)
	}
	if crc32.Checksum(end[:16], castagnoli) != binary.BigEndian.Uint32(end[16:]) {
		return errors.New("the checksum at its end does not hold")
	}
	r.indexVersion = head[5]
	if r.indexVersion != index.FormatV1 && r.indexVersion != index.FormatV2 {
		return fmt.Errorf("it is of an index of version %d", r.indexVersion)
	}
	symbols, postings := binary.BigEndian.Uint64(end[:]), binary.BigEndian.Uint64(end[8:])
	if symbols < prefixSize || postings <= symbols || postings > uint64(size-trailerSize-tocSize) {
		return fmt.Errorf("symbols at %d, postings offsets at %d of %d bytes", symbols, postings, size)
	}
	r.listsEnd = int64(binary.BigEndian.Uint64(head[6:]))
	if err := r.loadSymbols(int64(symbols), int64(postings)); err != nil {
		return fmt.Errorf("symbols: %w", err)
	}
	if err := r.loadTables(int64(postings), size-trailerSize-tocSize); err != nil {
		return fmt.Errorf("postings offsets: %w", err)
	}
	return nil
}

// scanner reads a section and its checksum on the way.
type scanner struct {
	b    *bufio.Reader
	sum  hash.Hash32
	want uint32
	at   int64
	left int64
	err  error
}

// scan begins to read the section at a place; limit is where the file's part ends that it is in.
func (r *Reader) scan(at, limit int64) (*scanner, error) {
	var head, sum [4]byte
	if _, err := r.f.ReadAt(head[:], at); err != nil {
		return nil, err
	}
	n := int64(binary.BigEndian.Uint32(head[:]))
	if at+8+n > limit {
		return nil, fmt.Errorf("the section has %d bytes, of which %d are there", n, limit-at-8)
	}
	if _, err := r.f.ReadAt(sum[:], at+4+n); err != nil {
		return nil, err
	}
	s := &scanner{sum: crc32.New(castagnoli), want: binary.BigEndian.Uint32(sum[:]), at: at + 4, left: n}
	s.b = bufio.NewReaderSize(io.TeeReader(io.NewSectionReader(r.f, at+4, n), s.sum), 64<<10)
	return s, nil
}

func (s *scanner) take(n int64) []byte {
	if s.err != nil {
		return nil
	}
	if n < 0 || n > s.left {
		s.err = fmt.Errorf("at byte %d: %d bytes are wanted, %d are left", s.at, n, s.left)
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(s.b, b); err != nil {
		s.err = err
		return nil
	}
	s.at, s.left = s.at+n, s.left-n
	return b
}

func (s *scanner) uvarint() uint64 {
	var v uint64
	for shift := uint(0); shift < 64 && s.err == nil; shift += 7 {
		if s.left == 0 {
			break
		}
		b, err := s.b.ReadByte()
		if err != nil {
			s.err = err
			return 0
		}
		s.at, s.left = s.at+1, s.left-1
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	if s.err == nil {
		s.err = fmt.Errorf("at byte %d: a number without end", s.at)
	}
	return 0
}

func (s *scanner) text() string {
	n := s.uvarint()
	if n > uint64(s.left) {
		s.err = fmt.Errorf("at byte %d: a text of %d bytes, %d are left", s.at, n, s.left)
		return ""
	}
	return string(s.take(int64(n)))
}

// end checks that all was read, and the checksum.
func (s *scanner) end() error {
	if s.err != nil {
		return s.err
	}
	if s.left != 0 {
		return fmt.Errorf("%d bytes are left over", s.left)
	}
	if s.sum.Sum32() != s.want {
		return errors.New("the checksum does not hold")
	}
	return nil
}

func (r *Reader) loadSymbols(at, limit int64) error {
	s, err := r.scan(at, limit)
	if err != nil {
		return err
	}
	count := s.take(4)
	if s.err != nil {
		return s.err
	}
	r.count = binary.BigEndian.Uint32(count)
	last := ""
	for i := range r.count {
		if i%sampling == 0 {
			r.symbols = append(r.symbols, s.at)
		}
		text := s.text()
		if s.err != nil {
			return s.err
		}
		if i > 0 && text <= last {
			return fmt.Errorf("%q comes behind %q", text, last)
		}
		last = text
	}
	r.symbolsEnd = s.at
	return s.end()
}

func (r *Reader) loadTables(at, limit int64) error {
	s, err := r.scan(at, limit)
	if err != nil {
		return err
	}
	head := s.take(4)
	if s.err != nil {
		return s.err
	}
	var (
		t          *table
		name       string
		value      string
		entry      int64
		n          int
		lastOffset uint64
	)
	finish := func() {
		if t == nil {
			return
		}
		if t.samples[len(t.samples)-1].at != entry {
			t.samples = append(t.samples, sample{value, entry})
		}
		t.end = s.at
	}
	for i := range binary.BigEndian.Uint32(head) {
		here := s.at
		if keys := s.uvarint(); s.err == nil && keys != 2 {
			return fmt.Errorf("at byte %d: an entry of %d keys", here, keys)
		}
		nextName, nextValue := s.text(), s.text()
		offset := s.uvarint()
		if s.err != nil {
			return s.err
		}
		if i > 0 && (nextName < name || nextName == name && nextValue <= value) {
			return fmt.Errorf("%s=%q comes behind %s=%q", nextName, nextValue, name, value)
		}
		if i > 0 && offset <= lastOffset || offset >= uint64(r.listsEnd) {
			return fmt.Errorf("the list of %s=%q is at byte %d of the index, behind that at %d", nextName, nextValue, offset, lastOffset)
		}
		lastOffset = offset
		if t == nil || nextName != name {
			if t != nil {
				end := s.at
				s.at = here
				finish()
				s.at = end
			}
			t, n = &table{}, 0
			r.tables[nextName] = t
			if nextName != "" { // that is the list of all series
				r.names = append(r.names, nextName)
			}
		}
		if n%sampling == 0 {
			t.samples = append(t.samples, sample{nextValue, here})
		}
		name, value, entry, n = nextName, nextValue, here, n+1
	}
	finish()
	r.tableEnd = s.at
	return s.end()
}

// LabelNames are all, in order. They are not to be changed.
func (r *Reader) LabelNames() []string { return r.names }

// cursor reads texts and numbers of the file between two places.
type cursor struct {
	b   []byte
	off int
}

var errShort = errors.New("the header is shorter than when it was opened")

func (r *Reader) cursor(from, to int64) (*cursor, error) {
	b := make([]byte, to-from)
	if _, err := r.f.ReadAt(b, from); err != nil {
		return nil, err
	}
	return &cursor{b: b}, nil
}

func (c *cursor) uvarint() (uint64, error) {
	v, n := binary.Uvarint(c.b[c.off:])
	if n <= 0 {
		return 0, errShort
	}
	c.off += n
	return v, nil
}

// text is a part of the cursor's memory.
func (c *cursor) text() ([]byte, error) {
	n, err := c.uvarint()
	if err != nil {
		return nil, err
	}
	if n > uint64(len(c.b)-c.off) {
		return nil, errShort
	}
	c.off += int(n)
	return c.b[c.off-int(n) : c.off], nil
}

// entry is one of the table of postings offsets.
func (c *cursor) entry() (value []byte, offset uint64, err error) {
	if _, err = c.uvarint(); err == nil {
		if _, err = c.text(); err == nil {
			if value, err = c.text(); err == nil {
				offset, err = c.uvarint()
			}
		}
	}
	return value, offset, err
}

// Symbol is the text that series refer to by ref. In an index of version 1 that is where it
// lies in the file of the index.
func (r *Reader) Symbol(ref uint32) (string, error) {
	if r.indexVersion == index.FormatV1 {
		// The copy of the symbols lies as far behind as this file's prefix is longer.
		at := int64(ref) + prefixSize - index.HeaderLen
		if at < prefixSize || at >= r.symbolsEnd {
			return "", fmt.Errorf("%w: there is no symbol at %d", ErrCorrupt, ref)
		}
		return r.symbolAt(at, 0, r.symbolsEnd)
	}
	if ref >= r.count {
		return "", fmt.Errorf("%w: there is no symbol %d, there are %d", ErrCorrupt, ref, r.count)
	}
	k := int(ref / sampling)
	to := r.symbolsEnd
	if k+1 < len(r.symbols) {
		to = r.symbols[k+1]
	}
	return r.symbolAt(r.symbols[k], int(ref%sampling), to)
}

// symbolAt is the symbol that many behind the one at a place.
func (r *Reader) symbolAt(at int64, skip int, end int64) (string, error) {
	// Mostly texts are short.
	for room := int64(2 << 10); ; room *= 16 {
		to := min(at+room, end)
		c, err := r.cursor(at, to)
		if err != nil {
			return "", err
		}
		for i := 0; ; i++ {
			text, err := c.text()
			if err != nil && to < end {
				break // more of it
			}
			if err != nil {
				return "", err
			}
			if i == skip {
				return string(text), nil
			}
		}
	}
}

// Values calls f for the values of a label in order, until it returns false. A value is
// valid during the call.
func (r *Reader) Values(name string, f func(value []byte, list Range) bool) error {
	t := r.tables[name]
	if t == nil {
		return nil
	}
	for i := range t.samples {
		from, to := t.samples[i].at, t.end
		if i+1 < len(t.samples) {
			to = t.samples[i+1].at
		}
		ok, err := r.entries(from, to, f)
		if err != nil || !ok {
			return err
		}
	}
	return nil
}

// entries calls f for the entries between two places.
func (r *Reader) entries(from, to int64, f func(value []byte, list Range) bool) (bool, error) {
	// The end of a list is where the next one begins: one more entry is read, whose offset
	// may be anywhere behind long texts.
	c, err := r.cursor(from, to)
	if err != nil {
		return false, err
	}
	value, offset, err := c.entry()
	for err == nil && value != nil {
		var next uint64
		var nextValue []byte
		if c.off < len(c.b) {
			nextValue, next, err = c.entry()
		} else {
			next, err = r.offsetAt(to)
		}
		if err != nil {
			break
		}
		// A list begins with its length in 4 bytes and ends with a checksum of 4.
		if !f(value, Range{int64(offset) + 4 + 4, int64(next) - 4}) {
			return false, nil
		}
		value, offset = nextValue, next
	}
	return true, err
}

// offsetAt is the offset of the entry at a place, or behind the last where the lists end.
func (r *Reader) offsetAt(at int64) (uint64, error) {
	if at >= r.tableEnd {
		return uint64(r.listsEnd), nil
	}
	for room := int64(512); ; room *= 16 {
		to := min(at+room, r.tableEnd)
		c, err := r.cursor(at, to)
		if err != nil {
			return 0, err
		}
		_, offset, err := c.entry()
		if err == nil || to == r.tableEnd {
			return offset, err
		}
	}
}

// Postings are where the lists of some values of a label lie, in the order of the values, which
// ascend. Of values that there are none it is the zero Range.
func (r *Reader) Postings(name string, values ...string) ([]Range, error) {
	out := make([]Range, len(values))
	t := r.tables[name]
	if t == nil {
		return out, nil
	}
	for i := 0; i < len(values); {
		v := values[i]
		k, exact := slices.BinarySearchFunc(t.samples, v, func(s sample, v string) int { return strings.Compare(s.value, v) })
		if !exact {
			k--
		}
		if k < 0 || k == len(t.samples)-1 && !exact {
			i++ // before the first, or behind the last
			continue
		}
		from, to := t.samples[k].at, t.end
		if k+1 < len(t.samples) {
			to = t.samples[k+1].at
		}
		// All values that lie between the same two samples are found in one reading.
		last := ""
		more := k+1 < len(t.samples)
		if more {
			last = t.samples[k+1].value
		}
		_, err := r.entries(from, to, func(value []byte, list Range) bool {
			for i < len(values) && values[i] < string(value) {
				i++
			}
			if i < len(values) && values[i] == string(value) {
				out[i] = list
				i++
			}
			return i < len(values) && (!more || values[i] < last)
		})
		if err != nil {
			return nil, err
		}
		for i < len(values) && more && values[i] < last {
			i++ // not there
		}
		if !more {
			break
		}
	}
	return out, nil
}

// All is where the list of all series lies.
func (r *Reader) All() (Range, error) {
	p, err := r.Postings("", "")
	if err != nil {
		return Range{}, err
	}
	return p[0], nil
}

// IndexVersion is that of the index, 1 or 2.
func (r *Reader) IndexVersion() byte { return r.indexVersion }
