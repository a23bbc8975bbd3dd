// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package tsdb

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tombstones"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

const (
	batchSeries = 256
	batchBytes  = 1 << 20
)

// Series implements backend.Backend.
func (b *Backend) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	rest, ok := shaping.SplitMatchers(b.ext, req.Matchers)
	if !ok || req.MinTime > req.MaxTime {
		return backend.None()
	}
	return shaping.Apply(req, b.ext, b.stored(ctx, req, rest))
}

// stored streams the stored series, in order, whole chunks.
func (b *Backend) stored(ctx context.Context, req *backend.SeriesRequest, ms []*labels.Matcher) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(nil, context.Cause(ctx))
			return
		}
		sel, err := b.sources(req.MinTime, req.MaxTime, req.SkipChunks)
		if err != nil {
			yield(nil, err)
			return
		}
		defer sel.close()
		s := &stream{ctx: ctx, req: req, size: req.BatchSize, out: backend.NewBatch(0)}
		if s.size <= 0 || s.size > 4096 {
			s.size = batchSeries
		}
		for _, m := range sel.missing {
			if err := s.missing(m); err != nil {
				yield(nil, err)
				return
			}
		}
		for _, src := range sel.sources {
			c, err := src.open(ctx, ms, req)
			if err == nil {
				err = s.push(c)
			}
			if err != nil {
				if err = s.fail(src.what, err); err != nil {
					yield(nil, err)
					return
				}
			}
		}
		if err := s.run(yield); err != nil {
			yield(nil, err)
		}
	}
}

// allMatcher selects every series, also those without a name.
var allMatcher = labels.MustNewMatcher(labels.MatchEqual, "", "")

func orAll(ms []*labels.Matcher) []*labels.Matcher {
	if len(ms) == 0 {
		return []*labels.Matcher{allMatcher}
	}
	return ms
}

// source is one block, or the head.
type source struct {
	// what names it in errors.
	what   string
	index  tsdb.IndexReader
	chunks tsdb.ChunkReader // nil: the metas carry their chunks
	// deleted are the deleted intervals of a series.
	deleted func(storage.SeriesRef) (tombstones.Intervals, error)
	// querier replaces all of these in a writable backend.
	querier storage.ChunkQuerier
	labels  storage.Querier
	close   func()
}

// selection is what one call reads.
type selection struct {
	sources []*source
	// missing are the reasons why the answer cannot be whole.
	missing []error
	release func()
}

func (s *selection) close() {
	for _, src := range s.sources {
		src.close()
	}
	s.release()
}

// sources opens what has data in the range.
func (b *Backend) sources(mint, maxt int64, skipChunks bool) (*selection, error) {
	if b.own != nil {
		src, err := b.own.source(mint, maxt)
		if err != nil {
			return nil, err
		}
		return &selection{sources: []*source{src}, release: func() {}}, nil
	}
	v, stale, err := b.acquire()
	if err != nil {
		return nil, err
	}
	sel := &selection{release: func() { b.release(v) }}
	if stale != nil {
		sel.missing = append(sel.missing, fmt.Errorf("tsdb: %w", stale))
	}
	for _, bad := range v.bad {
		if bad.mint <= maxt && mint < bad.maxt {
			sel.missing = append(sel.missing, bad.err)
		}
	}
	for _, bl := range v.blocks {
		if bl.meta.MinTime > maxt || bl.meta.MaxTime <= mint {
			continue
		}
		src, err := openSource(bl)
		if err != nil {
			sel.missing = append(sel.missing, fmt.Errorf("block %s: %w", bl.dir, err))
			continue
		}
		sel.sources = append(sel.sources, src)
	}
	if v.headErr != nil && maxt >= v.window.MinTime {
		sel.missing = append(sel.missing, v.headErr)
	}
	if v.head != nil {
		if lo, hi, empty := v.head.Bounds(); !empty && lo <= maxt && hi >= mint {
			r := v.head.Reader(v.window, skipChunks)
			sel.sources = append(sel.sources, &source{
				what: "write-ahead log of " + b.cfg.Path, index: r,
				deleted: func(ref storage.SeriesRef) (tombstones.Intervals, error) { return r.Deleted(ref), nil },
				close:   func() {},
			})
		}
	}
	return sel, nil
}

func openSource(bl *block) (*source, error) {
	ix, err := bl.Index()
	if err != nil {
		return nil, err
	}
	cr, err := bl.Chunks()
	if err != nil {
		ix.Close()
		return nil, err
	}
	tr, err := bl.Tombstones()
	if err != nil {
		ix.Close()
		cr.Close()
		return nil, err
	}
	src := &source{what: "block " + bl.dir, index: ix, chunks: cr, close: func() {
		ix.Close()
		cr.Close()
		tr.Close()
	}}
	if bl.meta.Stats.NumTombstones > 0 || tr.Total() > 0 {
		src.deleted = tr.Get
	}
	return src, nil
}

// cursor walks the series of a source in order. Labels and chunks are valid until
// the next call of next; the chunks' data until the source is closed.
type cursor interface {
	next() bool
	labels() labels.Labels
	chunks() []backend.Chunk
	err() error
	source() *source
}

func (s *source) open(ctx context.Context, ms []*labels.Matcher, req *backend.SeriesRequest) (cursor, error) {
	if s.querier != nil {
		hints := &storage.SelectHints{Start: req.MinTime, End: req.MaxTime, DisableTrimming: true}
		return &setCursor{src: s, set: s.querier.Select(ctx, true, hints, orAll(ms)...), skipChunks: req.SkipChunks, mint: req.MinTime, maxt: req.MaxTime}, nil
	}
	p, err := tsdb.PostingsForMatchers(ctx, s.index, orAll(ms)...)
	if err != nil {
		return nil, err
	}
	return &indexCursor{
		src: s, postings: s.index.SortedPostings(p), skipChunks: req.SkipChunks,
		mint: req.MinTime, maxt: req.MaxTime,
	}, nil
}

// indexCursor reads an index and its chunks.
type indexCursor struct {
	src        *source
	postings   index.Postings
	mint, maxt int64
	skipChunks bool

	builder labels.ScratchBuilder
	metas   []chunks.Meta
	lset    labels.Labels
	chks    []backend.Chunk
	failed  error
}

func (c *indexCursor) source() *source         { return c.src }
func (c *indexCursor) labels() labels.Labels   { return c.lset }
func (c *indexCursor) chunks() []backend.Chunk { return c.chks }
func (c *indexCursor) err() error              { return c.failed }

func (c *indexCursor) next() bool {
	for c.failed == nil && c.postings.Next() {
		ref := c.postings.At()
		// Before the series: what the head leaves out depends on it.
		var deleted tombstones.Intervals
		if c.src.deleted != nil {
			if deleted, c.failed = c.src.deleted(ref); c.failed != nil {
				return false
			}
		}
		if err := c.src.index.Series(ref, &c.builder, &c.metas); err != nil {
			if errors.Is(err, storage.ErrNotFound) {
				continue // gone from the head since the postings were read
			}
			c.failed = err
			return false
		}
		n := 0
		for _, m := range c.metas {
			if m.MaxTime < c.mint || m.MinTime > c.maxt || (tombstones.Interval{Mint: m.MinTime, Maxt: m.MaxTime}).IsSubrange(deleted) {
				continue
			}
			c.metas[n] = m
			n++
		}
		if n == 0 {
			continue
		}
		c.metas = c.metas[:n]
		c.chks = c.chks[:0]
		// Only the samples tell whether anything is left of a chunk with deletions.
		if !c.skipChunks || len(deleted) > 0 {
			if c.failed = c.load(deleted); c.failed != nil {
				return false
			}
			if len(c.chks) == 0 {
				continue
			}
			if c.skipChunks {
				c.chks = c.chks[:0]
			}
		}
		c.lset = c.builder.Labels()
		return true
	}
	if c.failed == nil {
		c.failed = c.postings.Err()
	}
	return false
}

// load reads the chunks of the current series.
func (c *indexCursor) load(deleted tombstones.Intervals) error {
	for _, m := range c.metas {
		if m.Chunk == nil {
			chk, iterable, err := c.src.chunks.ChunkOrIterable(m)
			if err != nil {
				return fmt.Errorf("series %s: %w", c.builderLabels(), err)
			}
			if iterable != nil {
				return fmt.Errorf("series %s: a stored chunk was expected at %d", c.builderLabels(), m.Ref)
			}
			m.Chunk = chk
		}
		if overlaps(deleted, m) {
			kept, err := without(deleted, m)
			if err != nil {
				return fmt.Errorf("series %s: %w", c.builderLabels(), err)
			}
			for _, k := range kept {
				// What is left may lie outside.
				if k.MaxTime >= c.mint && k.MinTime <= c.maxt {
					c.chks = append(c.chks, k)
				}
			}
			continue
		}
		c.chks = append(c.chks, toChunk(m))
	}
	return nil
}

func toChunk(m chunks.Meta) backend.Chunk {
	return backend.Chunk{
		MinTime: m.MinTime, MaxTime: m.MaxTime,
		Raw: backend.Encoded{Data: m.Chunk.Bytes(), Encoding: m.Chunk.Encoding()},
	}
}

func (c *indexCursor) builderLabels() labels.Labels { return c.builder.Labels() }

func overlaps(deleted tombstones.Intervals, m chunks.Meta) bool {
	for _, iv := range deleted {
		if m.OverlapsClosedInterval(iv.Mint, iv.Maxt) {
			return true
		}
	}
	return false
}

// without encodes anew the samples of a chunk that are not deleted.
func without(deleted tombstones.Intervals, m chunks.Meta) ([]backend.Chunk, error) {
	it := storage.NewSeriesToChunkEncoder(&storage.SeriesEntry{
		SampleIteratorFn: func(chunkenc.Iterator) chunkenc.Iterator {
			return &tsdb.DeletedIterator{Iter: m.Chunk.Iterator(nil), Intervals: deleted}
		},
	}).Iterator(nil)
	var kept []backend.Chunk
	for it.Next() {
		kept = append(kept, toChunk(it.At()))
	}
	return kept, it.Err()
}

// setCursor reads a querier of the TSDB library.
type setCursor struct {
	src        *source
	set        storage.ChunkSeriesSet
	skipChunks bool
	mint, maxt int64

	lset   labels.Labels
	chks   []backend.Chunk
	it     chunks.Iterator
	failed error
}

func (c *setCursor) source() *source         { return c.src }
func (c *setCursor) labels() labels.Labels   { return c.lset }
func (c *setCursor) chunks() []backend.Chunk { return c.chks }
func (c *setCursor) err() error              { return c.failed }

func (c *setCursor) next() bool {
	for c.set.Next() {
		s := c.set.At()
		c.lset, c.chks = s.Labels(), c.chks[:0]
		if c.skipChunks {
			return true
		}
		c.it = s.Iterator(c.it)
		for c.it.Next() {
			if m := c.it.At(); m.MaxTime >= c.mint && m.MinTime <= c.maxt {
				c.chks = append(c.chks, toChunk(m))
			}
		}
		if c.failed = c.it.Err(); c.failed != nil {
			return false
		}
		if len(c.chks) > 0 {
			return true
		}
	}
	c.failed = c.set.Err()
	return false
}

// stream merges cursors into batches.
type stream struct {
	ctx     context.Context
	req     *backend.SeriesRequest
	size    int
	cursors cursorHeap
	out     *backend.Batch
	slab    slab
}

type cursorHeap []cursor

func (h cursorHeap) Len() int           { return len(h) }
func (h cursorHeap) Less(i, j int) bool { return labels.Compare(h[i].labels(), h[j].labels()) < 0 }
func (h cursorHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *cursorHeap) Push(x any)        { *h = append(*h, x.(cursor)) }
func (h *cursorHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	*h = old[:len(old)-1]
	return c
}

// fail turns the failure of one source into a notice where the caller can use the
// rest of the answer.
func (s *stream) fail(what string, err error) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	return s.missing(fmt.Errorf("%s cannot be read: %w; restore it from a backup, or move it out of the directory to go on without its data", what, err))
}

func (s *stream) missing(err error) error {
	if !s.req.PartialAllowed {
		return backend.Errorf(backend.ErrInternal, "%w", err)
	}
	s.out.Notify(backend.Notice{Kind: backend.NoticeMissing, Text: err.Error()})
	return nil
}

// push takes up a cursor if it has anything.
func (s *stream) push(c cursor) error {
	if c.next() {
		heap.Push(&s.cursors, c)
	}
	return c.err()
}

// advance moves the first cursor on.
func (s *stream) advance() error {
	c := s.cursors[0]
	if c.next() {
		if len(s.cursors) > 1 {
			heap.Fix(&s.cursors, 0)
		}
		return nil
	}
	heap.Pop(&s.cursors)
	if err := c.err(); err != nil {
		return s.fail(c.source().what, err)
	}
	return nil
}

func (s *stream) run(yield func(*backend.Batch, error) bool) error {
	for n := 0; len(s.cursors) > 0; n++ {
		if n%64 == 0 && s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		next := backend.Series{Labels: s.cursors[0].labels()}
		for pieces := 0; len(s.cursors) > 0 && (pieces == 0 || labels.Equal(s.cursors[0].labels(), next.Labels)); pieces++ {
			next.Chunks = s.slab.copy(next.Chunks, s.cursors[0].chunks())
			if err := s.advance(); err != nil {
				return err
			}
		}
		next.Chunks = tidy(next.Chunks)
		s.out.Append(next)
		if s.out.Len() >= s.size || s.out.Bytes() >= batchBytes {
			if !yield(s.out, nil) {
				return nil
			}
			s.out = backend.NewBatch(s.size)
		}
	}
	if s.out.Len() > 0 || len(s.out.Notices()) > 0 {
		yield(s.out, nil)
	}
	return nil
}

// tidy orders chunks by time and drops exact repetitions, as of a chunk that is in
// a block and still in the head.
func tidy(chks []backend.Chunk) []backend.Chunk {
	order := func(a, b backend.Chunk) int {
		return cmp.Or(cmp.Compare(a.MinTime, b.MinTime), cmp.Compare(a.MaxTime, b.MaxTime))
	}
	for i := 1; i < len(chks); i++ {
		if order(chks[i-1], chks[i]) >= 0 {
			slices.SortStableFunc(chks, order)
			return slices.CompactFunc(chks, func(a, b backend.Chunk) bool {
				return order(a, b) == 0 && a.Raw.Encoding == b.Raw.Encoding && bytes.Equal(a.Raw.Data, b.Raw.Data)
			})
		}
	}
	return chks
}

// slab gives out memory for chunk data in large pieces, which are never reused:
// they belong to the receiver of the batch.
type slab struct {
	buf  []byte
	size int
}

const (
	slabMin = 8 << 10
	slabMax = 256 << 10
)

// copy appends chks to dst with data of their own.
func (s *slab) copy(dst, chks []backend.Chunk) []backend.Chunk {
	dst = slices.Grow(dst, len(chks))
	for _, c := range chks {
		n := len(c.Raw.Data)
		if n > cap(s.buf)-len(s.buf) {
			s.size = min(max(2*s.size, slabMin), slabMax)
			s.buf = make([]byte, 0, max(s.size, n))
		}
		from := len(s.buf)
		s.buf = append(s.buf, c.Raw.Data...)
		c.Raw.Data = s.buf[from:len(s.buf):len(s.buf)]
		dst = append(dst, c)
	}
	return dst
}
