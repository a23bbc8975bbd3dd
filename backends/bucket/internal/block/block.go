// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package block reads one block in a bucket: which series match, their labels and chunks. What
// is read is checked, byte by byte, before anything is made of it.
package block

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"path"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"golang.org/x/sync/errgroup"

	"github.com/promweave/promweave/backends/bucket/internal/header"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/sdk/backend"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrBroken is wrapped by errors about what is in the bucket and cannot be what was written.
var ErrBroken = errors.New("block is broken")

var errChecksum = errors.New("its checksum does not hold")

// The sizes of first reads, in bytes, where meta.json does not say.
const (
	seriesGuess = 512
	maxSeries   = 64 << 10
	chunkGuess  = 1 << 10
	maxChunk    = 16 << 10
)

// Reader reads one block. It has no state but what it is of, and is safe for concurrent use.
type Reader struct {
	meta      *meta.Meta
	bkt       Bucket
	indexName string
}

// NewReader returns one for a block.
func NewReader(bkt Bucket, m *meta.Meta) *Reader {
	return &Reader{meta: m, bkt: bkt, indexName: path.Join(m.ULID.String(), meta.IndexFile)}
}

// Series is one of a block, with its chunks that overlap what was asked for.
type Series struct {
	Labels labels.Labels
	Chunks []Chunk
}

// Chunk is one of a series. Data and Encoding are there once they were read.
type Chunk struct {
	MinTime, MaxTime int64 // ms, inclusive
	Encoding         chunkenc.Encoding
	Data             []byte
	// Aggregates are for the caller, who parses an aggregate chunk.
	Aggregates *backend.AggregateChunks

	ref  chunks.ChunkRef
	size int64 // in the segment, if the next chunk says; 0 otherwise
}

// Size of the chunk in its segment, in bytes, if it is known; 0 otherwise.
func (c *Chunk) Size() int64 { return c.size }

// Symbols remembers texts of one block for one request.
type Symbols map[uint32]string

// Series reads series by their references, which ascend, with the chunks that overlap
// [minTime, maxTime]; those without one are left out. The result is in the order of the index:
// by labels without external ones.
func (b *Reader) Series(ctx context.Context, h *header.Reader, u *Usage, symbols Symbols, refs []uint32, minTime, maxTime int64) ([]Series, error) {
	guess := b.meta.Thanos.IndexStats.SeriesMaxSize
	if guess <= 0 {
		guess = seriesGuess
	}
	guess = min(guess, maxSeries) + binary.MaxVarintLen32 + 4
	unit := int64(16) // of references, since version 2 of the index
	if h.IndexVersion() == index.FormatV1 {
		unit = 1
	}
	size, known := b.meta.Size(meta.IndexFile)
	if !known {
		size = math.MaxInt64
	}
	spans := make([]span, len(refs))
	for i, ref := range refs {
		at := unit * int64(ref)
		if at >= size {
			return nil, fmt.Errorf("%w: %s: there is no series at byte %d", ErrBroken, b.indexName, at)
		}
		spans[i] = span{at, min(at+guess, size)}
	}
	read, err := object(ctx, b.bkt, u, b.indexName, spans)
	if err != nil {
		return nil, err
	}
	d := decoder{b: b, h: h, symbols: symbols, minTime: minTime, maxTime: maxTime}
	d.LookupSymbol = func(_ context.Context, ref uint32) (string, error) { return d.symbol(ref) }
	out := make([]Series, 0, len(refs))
	for _, s := range spans {
		body, need, err := entry(read.from(s.from))
		if need > 0 { // it is longer than the guess
			var more *pieces
			if more, err = object(ctx, b.bkt, u, b.indexName, []span{{s.from, s.from + need}}); err != nil {
				return nil, err
			}
			if body, need, err = entry(more.from(s.from)); need > 0 {
				err = errors.New("it is cut off")
			}
		}
		var x Series
		if err == nil {
			x, err = d.series(body)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s: the series at byte %d: %w", ErrBroken, b.indexName, s.from, err)
		}
		if len(x.Chunks) > 0 {
			out = append(out, x)
		}
	}
	return out, nil
}

// entry is the body of an entry with its length as uvarint before and a checksum behind. need
// is how many bytes there should be, if there are fewer.
func entry(b []byte) (body []byte, need int64, err error) {
	n, k := binary.Uvarint(b)
	switch {
	case k == 0 && len(b) < binary.MaxVarintLen32, k < 0:
		return nil, 0, errors.New("it has no length")
	case k == 0 || n > math.MaxInt32:
		return nil, 0, fmt.Errorf("its length is %d", n)
	}
	if need = int64(k) + int64(n) + 4; need > int64(len(b)) {
		return nil, need, nil
	}
	body = b[k : k+int(n)]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[k+int(n):]) {
		return nil, 0, errChecksum
	}
	return body, 0, nil
}

// decoder decodes series of one request.
type decoder struct {
	index.Decoder
	b                *Reader
	h                *header.Reader
	symbols          Symbols
	minTime, maxTime int64

	builder labels.ScratchBuilder
	metas   []chunks.Meta
}

func (d *decoder) symbol(ref uint32) (string, error) {
	if s, ok := d.symbols[ref]; ok {
		return s, nil
	}
	s, err := d.h.Symbol(ref)
	if err == nil {
		d.symbols[ref] = s
	}
	return s, err
}

func (d *decoder) series(body []byte) (s Series, err error) {
	if err := d.Series(body, &d.builder, &d.metas); err != nil {
		return s, err
	}
	for i, m := range d.metas {
		if m.MinTime > m.MaxTime {
			return s, fmt.Errorf("a chunk from %d to %d", m.MinTime, m.MaxTime)
		}
		if m.MaxTime < d.minTime || m.MinTime > d.maxTime {
			continue
		}
		c := Chunk{MinTime: m.MinTime, MaxTime: m.MaxTime, ref: m.Ref}
		// Chunks of a series lie one behind the other.
		if i+1 < len(d.metas) {
			segment, at := chunks.BlockChunkRef(m.Ref).Unpack()
			next, end := chunks.BlockChunkRef(d.metas[i+1].Ref).Unpack()
			if next == segment && end > at {
				c.size = int64(end - at)
			}
		}
		s.Chunks = append(s.Chunks, c)
	}
	if len(s.Chunks) > 0 {
		s.Labels = d.builder.Labels()
	}
	return s, nil
}

// Load reads the data of all chunks of the series.
func (b *Reader) Load(ctx context.Context, u *Usage, series []Series) error {
	bySegment := map[int][]*Chunk{}
	for i := range series {
		for k := range series[i].Chunks {
			c := &series[i].Chunks[k]
			segment, _ := chunks.BlockChunkRef(c.ref).Unpack()
			bySegment[segment] = append(bySegment[segment], c)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for segment, list := range bySegment {
		g.Go(func() error { return b.segment(gctx, u, segment, list) })
	}
	return g.Wait()
}

// segmentName is the object of a segment.
func (b *Reader) segmentName(segment int) (string, error) {
	names := b.meta.Thanos.SegmentFiles
	if len(names) == 0 { // of old blocks
		return path.Join(b.meta.ULID.String(), meta.ChunksDir, fmt.Sprintf("%06d", segment+1)), nil
	}
	if segment >= len(names) {
		return "", fmt.Errorf("%w: %s: there is no segment %d", ErrBroken, b.meta.ULID, segment)
	}
	return path.Join(b.meta.ULID.String(), meta.ChunksDir, names[segment]), nil
}

func (b *Reader) segment(ctx context.Context, u *Usage, segment int, list []*Chunk) error {
	name, err := b.segmentName(segment)
	if err != nil {
		return err
	}
	guess := b.meta.Thanos.IndexStats.ChunkMaxSize
	if guess <= 0 {
		guess = chunkGuess
	}
	guess = min(guess, maxChunk)
	slices.SortFunc(list, func(a, b *Chunk) int { return int(int64(a.ref) - int64(b.ref)) })
	spans := make([]span, len(list))
	for i, c := range list {
		_, at := chunks.BlockChunkRef(c.ref).Unpack()
		n := c.size
		if n == 0 || n > 1<<20 {
			n = guess
		}
		spans[i] = span{int64(at), int64(at) + n}
	}
	read, err := object(ctx, b.bkt, u, name, spans)
	if err != nil {
		return err
	}
	for i, c := range list {
		need, err := c.parse(read.from(spans[i].from))
		if need > 0 {
			var more *pieces
			if more, err = object(ctx, b.bkt, u, name, []span{{spans[i].from, spans[i].from + need}}); err != nil {
				return err
			}
			if need, err = c.parse(more.from(spans[i].from)); need > 0 {
				err = errors.New("it is cut off")
			}
		}
		if err != nil {
			return fmt.Errorf("%w: %s: the chunk at byte %d: %w", ErrBroken, name, spans[i].from, err)
		}
	}
	return nil
}

// parse takes a chunk off the front of b: its length as uvarint, its encoding, which the length
// does not count, its data, and the checksum of both.
func (c *Chunk) parse(b []byte) (need int64, err error) {
	n, k := binary.Uvarint(b)
	switch {
	case k == 0 && len(b) < binary.MaxVarintLen32, k < 0:
		return 0, errors.New("it has no length")
	case k == 0 || n > math.MaxInt32:
		return 0, fmt.Errorf("its length is %d", n)
	}
	if need = int64(k) + 1 + int64(n) + 4; need > int64(len(b)) {
		return need, nil
	}
	data := b[k : k+1+int(n)]
	if crc32.Checksum(data, castagnoli) != binary.BigEndian.Uint32(b[k+1+int(n):]) {
		return 0, errChecksum
	}
	c.Encoding, c.Data = chunkenc.Encoding(data[0]), data[1:len(data):len(data)]
	return 0, nil
}
