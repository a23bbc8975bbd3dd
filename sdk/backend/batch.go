// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// Batch is a run of series in order, and what the backend has to say about the
// answer so far. How it holds the label sets is not part of the contract, so that
// carriers with a symbol table can pass theirs through; use the methods.
type Batch struct {
	series  []Series
	framed  *framed // instead of series, not beside them
	notices []Notice
	// bytes is the size of label sets and chunk data, for limits.
	bytes int
}

// NewBatch returns an empty batch with room for n series.
func NewBatch(n int) *Batch { return &Batch{series: make([]Series, 0, n)} }

// NewNotices returns a batch that holds only notices.
func NewNotices(n ...Notice) *Batch { return &Batch{notices: n} }

// Append adds a series. The batch takes s.Chunks over.
func (b *Batch) Append(s Series) {
	b.thaw()
	b.bytes += s.Size()
	b.series = append(b.series, s)
}

// Notify adds a notice.
func (b *Batch) Notify(n Notice) { b.notices = append(b.notices, n) }

// Len is the number of series.
func (b *Batch) Len() int {
	if b.framed != nil {
		return b.framed.rows()
	}
	return len(b.series)
}

// At returns series i. Its chunks are the batch's own memory: read only.
func (b *Batch) At(i int) Series {
	if b.framed != nil {
		return b.framed.at(i)
	}
	return b.series[i]
}

// Chunks returns the chunks of series i, which is cheaper than At where label sets are
// not needed. They are read only.
func (b *Batch) Chunks(i int) []Chunk {
	if b.framed != nil {
		return b.framed.chunksAt(i)
	}
	return b.series[i].Chunks
}

// Bytes is the size in memory of label sets and chunk data, roughly.
func (b *Batch) Bytes() int { return b.bytes }

// Notices are what the backend says about the answer, not tied to a series.
func (b *Batch) Notices() []Notice { return b.notices }

// Series is a label set and chunks of samples, or a piece of them (rule S-2).
type Series struct {
	Labels labels.Labels
	Chunks []Chunk
}

// seriesOverhead is what a Series costs beside its strings and bytes.
const (
	seriesOverhead = 40
	chunkOverhead  = 64
)

// Size is the memory that the series takes, roughly, in bytes.
func (s Series) Size() int {
	n := seriesOverhead + int(s.Labels.ByteSize())
	for i := range s.Chunks {
		n += s.Chunks[i].Size()
	}
	return n
}

// Chunk holds samples of one series: either as they were stored (Raw), or one
// value per window and aggregate (Aggregates not nil, Raw empty).
type Chunk struct {
	// MinTime and MaxTime enclose the samples, both inclusive, in ms.
	MinTime, MaxTime int64
	Raw              Encoded
	Aggregates       *AggregateChunks
}

// Size is the memory that the chunk takes, roughly, in bytes.
func (c *Chunk) Size() int {
	n := chunkOverhead + len(c.Raw.Data)
	if a := c.Aggregates; a != nil {
		n += chunkOverhead + len(a.Count.Data) + len(a.Sum.Data) + len(a.Min.Data) + len(a.Max.Data) + len(a.Counter.Data)
	}
	return n
}

// Encoded is a run of samples in a Prometheus TSDB encoding. Encoding EncNone
// (the zero value) means that it is absent.
type Encoded struct {
	// Data are the chunk's bytes without encoding byte and checksum.
	Data []byte
	// Encoding is numbered as in the TSDB: XOR 1, histogram 2, float histogram 3.
	Encoding chunkenc.Encoding
}

// Present says whether there is anything in it.
func (e Encoded) Present() bool { return e.Encoding != chunkenc.EncNone }

// AggregateChunks are the aggregates of one downsampled chunk; those that were
// not asked for, or that the data lack, are absent.
type AggregateChunks struct {
	Count, Sum, Min, Max, Counter Encoded
}

// NoticeKind says what a Notice means for the completeness of an answer.
type NoticeKind uint8

const (
	// NoticeInfo is a remark that leaves the answer complete.
	NoticeInfo NoticeKind = iota
	// NoticeMissing says that some data which should be in the answer are not.
	NoticeMissing
)

// Notice is what a backend says about an answer beside its data.
type Notice struct {
	Kind NoticeKind
	// Text is for people. Nothing is ever derived from it.
	Text string
}
