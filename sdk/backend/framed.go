// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"sync"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/frame"
)

// framed is the series of a batch as a frame. Label sets are made when they are asked
// for, and kept.
type framed struct {
	view *frame.Frame
	// chunks of all rows, those of row i end at ends[i]; and what they take together.
	chunks     []Chunk
	ends       []int32
	chunkBytes int
	// sizes are of the columns of all groups, those of group i from sizesAt[i] on.
	sizes   []columnSize
	sizesAt []int32
	// changes, if not nil, are what a filter made of view; kept are the rows that it left,
	// nil for all of them.
	changes *frame.Changes
	kept    []int32

	mu   sync.Mutex
	sets []labels.Labels // empty until made
	sb   labels.ScratchBuilder
}

// maxFrameLabels bounds the label sets of one frame, in bytes: symbols may be used any
// number of times, so that a small frame could stand for any amount of memory.
const maxFrameLabels = 256 << 20

// plainSamplesPerChunk is the most samples that plain data are encoded to (rule S-8).
const plainSamplesPerChunk = 120

// NewFramed returns a batch of the series in an encoded frame (sdk/frame). It takes b
// over: chunks refer to it, label sets do not. Plain samples are encoded to XOR chunks.
// A frame that breaks a rule of the format, or that stands for more than 256 MiB of label
// sets or hides values, is refused; the rules of Series are not looked at.
func NewFramed(b []byte) (*Batch, error) {
	f := &framed{view: new(frame.Frame)}
	if err := f.view.Parse(b); err != nil {
		return nil, Errorf(ErrInternal, "a batch of series: %w", err)
	}
	size, err := f.labelBytes()
	if err != nil {
		return nil, err
	}
	if err := f.readChunks(); err != nil {
		return nil, err
	}
	for i := range f.chunks {
		f.chunkBytes += f.chunks[i].Size()
	}
	return &Batch{framed: f, bytes: size + f.chunkBytes + f.view.Rows()*seriesOverhead}, nil
}

// columnSize is what a column takes in the label sets of its group.
type columnSize struct {
	values uint64 // bytes of the values
	rows   int    // that have the label
}

func (s *columnSize) add(size int, rows int) {
	s.values += uint64(rows) * inSet(size)
	s.rows += rows
}

func (s *columnSize) total(name string) uint64 { return s.values + uint64(s.rows)*inSet(len(name)) }

// labelBytes is the size of all label sets in memory.
func (f *framed) labelBytes() (int, error) {
	total := uint64(0)
	for i := range f.view.Groups() {
		g := f.view.Group(i)
		f.sizesAt = append(f.sizesAt, int32(len(f.sizes)))
		for c := range g.Columns() {
			col := g.Column(c)
			if col.Form == frame.Withheld {
				return 0, Errorf(ErrInternal, "a batch of series: frame: group %d, column %d: values are withheld", i, c)
			}
			var size columnSize
			if refs := col.Refs(); refs == nil {
				if ref := col.Ref(0); ref != 0 {
					size.add(len(f.view.Symbol(ref)), g.Rows())
				}
			} else {
				for _, ref := range refs {
					if ref != 0 {
						size.add(len(f.view.Symbol(ref)), 1)
					}
				}
			}
			f.sizes = append(f.sizes, size)
			total += size.total(f.view.Symbol(col.Name))
		}
		if total > maxFrameLabels {
			return 0, tooLarge(len(f.view.Bytes()))
		}
	}
	return int(total), nil
}

func tooLarge(frame int) error {
	return Errorf(ErrLimit, "a batch of series: a frame of %d bytes stands for more than 256 MiB of label sets", frame)
}

// inSet is what a string of n bytes takes in a label set: its length is one byte, or four.
func inSet(n int) uint64 {
	if n < 255 {
		return uint64(n) + 1
	}
	return uint64(n) + 4
}

func (f *framed) readChunks() error {
	rows := f.view.Rows()
	if !f.view.HasChunks() {
		return nil
	}
	n := 0
	for i := range rows {
		n += f.view.Chunks(i).Len()
	}
	f.chunks, f.ends = make([]Chunk, 0, n), make([]int32, rows)
	for i := range rows {
		recs := f.view.Chunks(i)
		joins := uint32(0) // kind of the record before, if this one may belong to it
		for k := range recs.Len() {
			rec := recs.At(k)
			if rec.Encoding == frame.EncodingPlain {
				var err error
				if f.chunks, err = appendPlain(f.chunks, rec.Data); err != nil {
					return Errorf(ErrInternal, "a batch of series: row %d, record %d: %w", i, k, err)
				}
				joins = 0
				continue
			}
			encoded := Encoded{Data: rec.Data, Encoding: chunkenc.Encoding(rec.Encoding)}
			if joins != 0 && rec.Kind > joins {
				if last := &f.chunks[len(f.chunks)-1]; last.MinTime == rec.MinTime && last.MaxTime == rec.MaxTime {
					*aggregate(last.Aggregates, rec.Kind) = encoded
					joins = rec.Kind
					continue
				}
			}
			c := Chunk{MinTime: rec.MinTime, MaxTime: rec.MaxTime}
			switch {
			case rec.Kind != 0:
				c.Aggregates = &AggregateChunks{}
				*aggregate(c.Aggregates, rec.Kind) = encoded
			case rec.Encoding == frame.EncodingNone:
				c.Aggregates = &AggregateChunks{}
			default:
				c.Raw = encoded
			}
			f.chunks = append(f.chunks, c)
			joins = rec.Kind
		}
		f.ends[i] = int32(len(f.chunks))
	}
	return nil
}

// aggregate is the one of a kind, from 1 to 5.
func aggregate(a *AggregateChunks, kind uint32) *Encoded {
	return [...]*Encoded{&a.Count, &a.Sum, &a.Min, &a.Max, &a.Counter}[kind-1]
}

// appendPlain encodes samples; Parse has looked at their order.
func appendPlain(chunks []Chunk, data []byte) ([]Chunk, error) {
	for len(data) > 0 {
		n := min(len(data), 16*plainSamplesPerChunk)
		x := chunkenc.NewXORChunk()
		app, err := x.Appender()
		if err != nil {
			return chunks, err
		}
		for i := 0; i < n; i += 16 {
			app.Append(int64(binary.LittleEndian.Uint64(data[i:])), math.Float64frombits(binary.LittleEndian.Uint64(data[i+8:])))
		}
		x.Compact()
		chunks = append(chunks, Chunk{
			MinTime: int64(binary.LittleEndian.Uint64(data)), MaxTime: int64(binary.LittleEndian.Uint64(data[n-16:])),
			Raw: Encoded{Data: x.Bytes(), Encoding: chunkenc.EncXOR},
		})
		data = data[n:]
	}
	return chunks, nil
}

// rows is the number of series.
func (f *framed) rows() int {
	if f.kept != nil {
		return len(f.kept)
	}
	return f.view.Rows()
}

// row is the row of the frame that series i is.
func (f *framed) row(i int) int {
	if f.kept != nil {
		return int(f.kept[i])
	}
	return i
}

func (f *framed) chunksAt(i int) []Chunk {
	if f.ends == nil {
		return nil
	}
	i = f.row(i)
	begin := int32(0)
	if i > 0 {
		begin = f.ends[i-1]
	}
	if begin == f.ends[i] {
		return nil
	}
	return f.chunks[begin:f.ends[i]:f.ends[i]]
}

func (f *framed) at(i int) Series { return Series{Labels: f.labelsAt(i), Chunks: f.chunksAt(i)} }

func (f *framed) labelsAt(i int) labels.Labels {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sets == nil {
		f.sets = make([]labels.Labels, f.rows())
	}
	if !f.sets[i].IsEmpty() {
		return f.sets[i]
	}
	row := f.row(i)
	group := f.view.GroupOf(row)
	f.sb.Reset()
	if g := f.view.Group(group); f.changes == nil {
		for c := range g.Columns() {
			col := g.Column(c)
			if ref := col.Ref(row - g.First()); ref != 0 {
				f.sb.Add(f.view.Symbol(col.Name), f.view.Symbol(ref))
			}
		}
	} else {
		changed := f.changes.Group(group)
		for c := range changed.Columns() {
			col := changed.Column(c)
			if ref := col.Ref(row - g.First()); ref != 0 {
				f.sb.Add(f.changes.Symbol(col.Name), f.changes.Symbol(ref))
			}
		}
	}
	f.sets[i] = f.sb.Labels()
	return f.sets[i]
}

// Frame returns the batch's series as a frame, if it holds them so: a batch that
// NewFramed made and to which nothing was appended since. It is read only. Notices are
// not in it.
func (b *Batch) Frame() (*frame.Frame, bool) {
	if b.framed == nil || b.framed.changes != nil {
		return nil, false
	}
	return b.framed.view, true
}

// Rewritten returns the batch that a reply of tier rows, to the frame of b, makes of it.
// It shares the memory of b and of the reply: c and what it is a view of belong to the
// batch from here on. Label sets are made when they are asked for. Notices stay with b.
// The order of the new label sets is whatever it is. A batch without a frame, or a reply
// to another one, is an error of the kind ErrInternal, and what stands for more than
// 256 MiB of label sets, or for one of more than 16 MiB, one of the kind ErrLimit.
func (b *Batch) Rewritten(c *frame.Changes) (*Batch, error) {
	f := b.framed
	if f == nil || f.changes != nil || c.Input() != f.view {
		return nil, Errorf(ErrInternal, "a reply to a frame that the batch does not have")
	}
	out := &framed{view: f.view, chunks: f.chunks, ends: f.ends, chunkBytes: f.chunkBytes, changes: c}
	size, err := out.changedBytes(f)
	if err != nil {
		return nil, err
	}
	if out.kept != nil {
		out.chunkBytes = 0
		for i := range out.kept {
			for _, x := range out.chunksAt(i) {
				out.chunkBytes += x.Size()
			}
		}
	}
	return &Batch{framed: out, bytes: size + out.chunkBytes + out.rows()*seriesOverhead}, nil
}

// changedBytes is labelBytes for what the reply makes of f, and finds the rows that stay.
func (f *framed) changedBytes(before *framed) (int, error) {
	all := true
	for i := range f.view.Groups() {
		all = all && f.changes.Group(i).KeepsAll()
	}
	if !all {
		f.kept = make([]int32, 0, f.view.Rows())
	}
	total := uint64(0)
	for i := range f.view.Groups() {
		g := f.changes.Group(i)
		rows := g.Input().Rows()
		if !all {
			for r := range rows {
				if g.Keeps(r) {
					f.kept = append(f.kept, int32(g.Input().First()+r))
				}
			}
		}
		if g.KeepsNone() {
			continue
		}
		if 2*g.Columns()*f.changes.Longest() > frame.MaxBytes {
			for r := range rows {
				if g.Keeps(r) && g.RowBytes(r) > frame.MaxBytes {
					return 0, Errorf(ErrLimit, "a filter makes a label set of more than 16 MiB")
				}
			}
		}
		for j := range g.Columns() {
			col := g.Column(j)
			var size columnSize
			switch refs := col.Refs(); {
			case !g.KeepsAll():
				for r := range rows {
					if ref := col.Ref(r); ref != 0 && g.Keeps(r) {
						size.add(f.changes.Size(ref), 1)
					}
				}
			case col.Source == frame.FromInput:
				size = before.sizes[int(before.sizesAt[i])+col.Input]
			case refs == nil:
				if ref := col.Ref(0); ref != 0 {
					size.add(f.changes.Size(ref), rows)
				}
			default:
				for _, ref := range refs {
					if ref != 0 {
						size.add(f.changes.Size(ref), 1)
					}
				}
			}
			total += size.total(f.changes.Symbol(col.Name))
		}
		if total > maxFrameLabels {
			return 0, tooLarge(len(f.view.Bytes()))
		}
	}
	return int(total), nil
}

// thaw turns a framed batch into one that series can be appended to.
func (b *Batch) thaw() {
	f := b.framed
	if f == nil {
		return
	}
	b.series = make([]Series, f.rows(), f.rows()+1)
	for i := range b.series {
		b.series[i] = f.at(i)
	}
	b.framed = nil
}

// AppendFrame appends the series of b, without notices, to dst as one frame. If they are
// more than fit into one, the error is of the kind ErrLimit; FrameEncoder makes several.
func AppendFrame(dst []byte, b *Batch) ([]byte, error) {
	var e FrameEncoder
	begin, done := len(dst), false
	for out, err := range e.frames(dst, b) {
		switch {
		case err != nil:
			return dst[:begin], err
		case done:
			return dst[:begin], Errorf(ErrLimit, "%d series do not fit into one frame; make several with a FrameEncoder", b.Len())
		}
		dst, done = out, true
	}
	return dst, nil
}

// FrameEncoder makes frames of batches. It keeps its memory from one batch to the next.
// The zero value is ready.
type FrameEncoder struct {
	// Limit is the size, in bytes, beyond which another frame is begun, at most and by
	// default frame.MaxBytes. A frame of one chunk may exceed it.
	Limit int

	builder frame.Builder
	buf     []byte
	records [5]frame.Chunk
	labels  uint64 // bytes of the label sets in builder
}

// Frames yields the series of b, without notices, as one or more encoded frames, one
// even if there are no series. A frame is valid until the next one is asked for. Series
// whose chunks do not fit come in pieces (rule S-2). An error ends the sequence: a label
// set that breaks rule S-3, or a label set or a chunk of more than 16 MiB.
func (e *FrameEncoder) Frames(b *Batch) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for out, err := range e.frames(e.buf[:0], b) {
			e.buf = out[:0]
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}

// frames appends each frame to dst anew; what was yielded before is overwritten.
func (e *FrameEncoder) frames(dst []byte, b *Batch) iter.Seq2[[]byte, error] {
	limit := e.Limit
	if limit <= 0 || limit > frame.MaxBytes {
		limit = frame.MaxBytes
	}
	return func(yield func([]byte, error) bool) {
		if b.framed != nil && b.framed.changes == nil {
			if whole := b.framed.view.Bytes(); len(whole) <= limit {
				yield(append(dst, whole...), nil)
				return
			}
		}
		e.reset()
		// What was added must not be kept alive until the next batch.
		defer e.reset()
		flush := func() bool {
			out, err := e.builder.Append(dst)
			if err != nil {
				err = fmt.Errorf("%d series: %w", b.Len(), err)
			}
			e.reset()
			return yield(out, err) && err == nil
		}
		for i := range b.Len() {
			s := b.At(i)
			// Two bytes for a label is the least, which is as good as the number of labels
			// while there is room.
			inSets, chunks := s.Labels.ByteSize(), 0
			row := frame.RowCost(int(inSets)/2, int(inSets))
			for k := range s.Chunks {
				chunks += chunkCost(&s.Chunks[k])
			}
			if e.builder.Size()+row+chunks > limit {
				n, bytes := 0, 0
				s.Labels.Range(func(l labels.Label) {
					n++
					bytes += len(l.Name) + len(l.Value)
				})
				row = frame.RowCost(n, bytes)
			}
			full := e.builder.Size()+row+chunks > limit || e.builder.Rows() == frame.MaxRows || e.labels+inSets > maxFrameLabels
			if full && e.builder.Rows() > 0 && !flush() {
				return
			}
			e.row(s.Labels, inSets)
			for k := range s.Chunks {
				c := &s.Chunks[k]
				if k > 0 && e.builder.Size()+chunkCost(c) > limit {
					if !flush() {
						return
					}
					e.row(s.Labels, inSets)
				}
				if err := e.chunk(c); err != nil {
					yield(dst, fmt.Errorf("series %s: %w", s.Labels, err))
					return
				}
			}
		}
		flush()
	}
}

func (e *FrameEncoder) reset() {
	e.builder.Reset()
	clear(e.records[:])
	e.labels = 0
}

func (e *FrameEncoder) row(ls labels.Labels, inSets uint64) {
	ls.Range(func(l labels.Label) { e.builder.Label(l.Name, l.Value) })
	e.builder.EndRow()
	e.labels += inSets
}

func chunkCost(c *Chunk) int {
	n := frame.ChunkCost(len(c.Raw.Data))
	if a := c.Aggregates; a != nil {
		for kind := uint32(1); kind <= 5; kind++ {
			n += frame.ChunkCost(len(aggregate(a, kind).Data))
		}
	}
	return n
}

// chunk adds the records of a chunk.
func (e *FrameEncoder) chunk(c *Chunk) error {
	records := e.records[:0]
	if c.Aggregates == nil {
		records = append(records, frame.Chunk{Encoding: uint32(c.Raw.Encoding), Data: c.Raw.Data})
	} else {
		for kind := uint32(1); kind <= 5; kind++ {
			if a := aggregate(c.Aggregates, kind); a.Present() {
				records = append(records, frame.Chunk{Kind: kind, Encoding: uint32(a.Encoding), Data: a.Data})
			}
		}
		if len(records) == 0 {
			records = append(records, frame.Chunk{Encoding: frame.EncodingNone})
		}
	}
	for _, rec := range records {
		header := 0
		switch chunkenc.Encoding(rec.Encoding) {
		case chunkenc.EncNone:
			if c.Aggregates == nil {
				return Errorf(ErrInternal, "a chunk from %d to %d holds nothing", c.MinTime, c.MaxTime)
			}
		case chunkenc.EncXOR:
			header = 2
		case chunkenc.EncHistogram, chunkenc.EncFloatHistogram:
			header = 3
		default:
			return Errorf(ErrUnsupported, "frames have no chunks with encoding %d", rec.Encoding)
		}
		if len(rec.Data) < header {
			return Errorf(ErrInternal, "a chunk from %d to %d has %d bytes, too few for its header", c.MinTime, c.MaxTime, len(rec.Data))
		}
		if c.MinTime > c.MaxTime {
			return Errorf(ErrInternal, "a chunk from %d to %d ends before it begins", c.MinTime, c.MaxTime)
		}
		rec.MinTime, rec.MaxTime = c.MinTime, c.MaxTime
		e.builder.AddChunk(rec)
	}
	return nil
}
