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
	view frame.Frame
	// chunks of all rows; those of row i end at ends[i].
	chunks []Chunk
	ends   []int32

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
	f := &framed{}
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
		size += f.chunks[i].Size()
	}
	return &Batch{framed: f, bytes: size + f.view.Rows()*seriesOverhead}, nil
}

// labelBytes is the size of all label sets in memory.
func (f *framed) labelBytes() (int, error) {
	total := uint64(0)
	for i := range f.view.Groups() {
		g := f.view.Group(i)
		for c := range g.Columns() {
			col := g.Column(c)
			if col.Form == frame.Withheld {
				return 0, Errorf(ErrInternal, "a batch of series: frame: group %d, column %d: values are withheld", i, c)
			}
			name := inSet(f.view.Symbol(col.Name))
			refs := col.Refs()
			if refs == nil {
				if ref := col.Ref(0); ref != 0 {
					total += uint64(g.Rows()) * (name + inSet(f.view.Symbol(ref)))
				}
				continue
			}
			for _, ref := range refs {
				if ref != 0 {
					total += name + inSet(f.view.Symbol(ref))
				}
			}
		}
		if total > maxFrameLabels {
			return 0, Errorf(ErrLimit, "a batch of series: a frame of %d bytes stands for more than 256 MiB of label sets", len(f.view.Bytes()))
		}
	}
	return int(total), nil
}

// inSet is what a string takes in a label set: its length is one byte, or four.
func inSet(s string) uint64 {
	if len(s) < 255 {
		return uint64(len(s)) + 1
	}
	return uint64(len(s)) + 4
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

func (f *framed) chunksAt(i int) []Chunk {
	if f.ends == nil {
		return nil
	}
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
		f.sets = make([]labels.Labels, f.view.Rows())
	}
	if !f.sets[i].IsEmpty() {
		return f.sets[i]
	}
	g := f.view.Group(f.view.GroupOf(i))
	f.sb.Reset()
	for c := range g.Columns() {
		col := g.Column(c)
		if ref := col.Ref(i - g.First()); ref != 0 {
			f.sb.Add(f.view.Symbol(col.Name), f.view.Symbol(ref))
		}
	}
	f.sets[i] = f.sb.Labels()
	return f.sets[i]
}

// Frame returns the batch's series as a frame, if it holds them so: a batch that
// NewFramed made and to which nothing was appended since. It is read only. Notices are
// not in it.
func (b *Batch) Frame() (*frame.Frame, bool) {
	if b.framed == nil {
		return nil, false
	}
	return &b.framed.view, true
}

// thaw turns a framed batch into one that series can be appended to.
func (b *Batch) thaw() {
	f := b.framed
	if f == nil {
		return
	}
	b.series = make([]Series, f.view.Rows(), f.view.Rows()+1)
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
		if b.framed != nil {
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
			n, bytes, inSets := 0, 0, uint64(0)
			s.Labels.Range(func(l labels.Label) {
				n++
				bytes += len(l.Name) + len(l.Value)
				inSets += inSet(l.Name) + inSet(l.Value)
			})
			row, chunks := frame.RowCost(n, bytes), 0
			for k := range s.Chunks {
				chunks += chunkCost(&s.Chunks[k])
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
