// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"golang.org/x/sync/errgroup"

	"github.com/promweave/promweave/backends/bucket/internal/block"
	"github.com/promweave/promweave/backends/bucket/internal/header"
	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// How much is read of a block at once, and given on.
const (
	firstSeries = 128
	mostSeries  = 4096
	loadBytes   = 2 << 20
	batchSeries = 256
	batchBytes  = 1 << 20
)

// Series implements backend.Backend.
func (b *Backend) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	if req.MinTime > req.MaxTime {
		return backend.None()
	}
	return func(yield func(*backend.Batch, error) bool) {
		if ctx.Err() != nil {
			yield(nil, context.Cause(ctx))
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var seqs []iter.Seq2[*backend.Batch, error]
		var levels [3]int
		t, u := &trouble{partial: req.PartialAllowed}, b.usage()
		for _, s := range sets(b.src.Blocks()) {
			rest, ok := shaping.SplitMatchers(s.ext, req.Matchers)
			if !ok {
				continue
			}
			parts := s.choose(req.MinTime, req.MaxTime, req.MaxResolution)
			if len(parts) == 0 {
				continue
			}
			for _, p := range parts {
				levels[slices.Index(meta.Resolutions(), p.m.Resolution())]++
			}
			seqs = append(seqs, shaping.Extend(b.stored(ctx, req, rest, parts, t, u), s.ext, req.WithoutReplicaLabels))
		}
		if said := levelsRead(req.MaxResolution, levels); said != "" && !yield(backend.NewNotices(backend.Notice{Text: said}), nil) {
			return
		}
		all := merged(seqs, req.BatchSize)
		for batch, err := range shaping.Limit(shaping.Sharded(all, req.Shard), req.Limit) {
			if !yield(batch, err) {
				return
			}
		}
	}
}

// stored streams the series of one set of external labels, in the order of their stored labels.
func (b *Backend) stored(ctx context.Context, req *backend.SeriesRequest, ms []*labels.Matcher, parts []part, t *trouble, u *block.Usage) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		cursors := make([]*cursor, len(parts))
		defer func() {
			for _, c := range cursors {
				if c != nil {
					c.close()
				}
			}
		}()
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(b.cfg.Concurrency)
		for i, p := range parts {
			g.Go(func() error {
				c, err := b.openCursor(gctx, req, ms, p, u)
				if err != nil {
					return t.missing(ctx, p.m, err)
				}
				cursors[i] = c
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			yield(nil, err)
			return
		}
		e := &emitter{yield: yield, size: req.BatchSize}
		var h cursorHeap
		// advance moves a cursor on, and leaves it out once it is done or cannot be read.
		advance := func(c *cursor) error {
			ok, err := c.next(ctx)
			if err != nil {
				err = t.missing(ctx, c.m, err)
			}
			for _, n := range t.take() {
				e.notify(n)
			}
			if err == nil && ok {
				heap.Push(&h, c)
			}
			return err
		}
		for _, n := range t.take() {
			e.notify(n)
		}
		for _, c := range cursors {
			if c == nil {
				continue
			}
			if err := advance(c); err != nil {
				yield(nil, err)
				return
			}
		}
		for len(h) > 0 {
			first := heap.Pop(&h).(*cursor)
			s := first.series()
			same := []*cursor{first}
			for len(h) > 0 && labels.Equal(h[0].at.Labels, s.Labels) {
				c := heap.Pop(&h).(*cursor)
				s.Chunks = append(s.Chunks, c.series().Chunks...)
				same = append(same, c)
			}
			s.Chunks = ordered(s.Chunks)
			if !e.add(s) {
				return
			}
			for _, c := range same {
				if err := advance(c); err != nil {
					if e.flush() {
						yield(nil, err)
					}
					return
				}
			}
		}
		e.flush()
	}
}

// ordered puts chunks in order, those that are there twice once.
func ordered(list []backend.Chunk) []backend.Chunk {
	slices.SortStableFunc(list, func(a, b backend.Chunk) int {
		return cmp.Or(cmp.Compare(a.MinTime, b.MinTime), cmp.Compare(a.MaxTime, b.MaxTime))
	})
	return slices.CompactFunc(list, func(a, b backend.Chunk) bool {
		if a.MinTime != b.MinTime || a.MaxTime != b.MaxTime || (a.Aggregates == nil) != (b.Aggregates == nil) {
			return false
		}
		same := func(x, y backend.Encoded) bool { return x.Encoding == y.Encoding && bytes.Equal(x.Data, y.Data) }
		if x, y := a.Aggregates, b.Aggregates; x != nil {
			return same(x.Count, y.Count) && same(x.Sum, y.Sum) && same(x.Min, y.Min) && same(x.Max, y.Max) && same(x.Counter, y.Counter)
		}
		return same(a.Raw, b.Raw)
	})
}

// cursor walks the series of one block, in order.
type cursor struct {
	part
	r       *block.Reader
	h       *header.Reader
	release func()
	req     *backend.SeriesRequest
	usage   *block.Usage
	symbols block.Symbols

	refs []uint32
	step int
	// queue are series that were read; the chunks of the first loaded of them too.
	queue  []block.Series
	loaded int
	at     block.Series
}

func (b *Backend) openCursor(ctx context.Context, req *backend.SeriesRequest, ms []*labels.Matcher, p part, u *block.Usage) (_ *cursor, err error) {
	h, release, err := b.headers.acquire(ctx, p.m)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	c := &cursor{part: p, r: block.NewReader(b.bkt, p.m), h: h, release: release, req: req, usage: u, symbols: block.Symbols{}, step: firstSeries}
	if c.refs, err = c.r.Postings(ctx, h, c.usage, ms); err != nil {
		return nil, err
	}
	return c, c.fill(ctx)
}

func (c *cursor) close() { c.release() }

// fill reads more series, and chunks of the first of them, until something is there or the end
// is reached.
func (c *cursor) fill(ctx context.Context) (err error) {
	for len(c.queue) == 0 && len(c.refs) > 0 {
		n := min(len(c.refs), c.step)
		c.step = min(2*c.step, mostSeries)
		if c.queue, err = c.r.Series(ctx, c.h, c.usage, c.symbols, c.refs[:n], c.minTime, c.maxTime); err != nil {
			return err
		}
		c.refs = c.refs[n:]
		c.loaded = 0
	}
	if c.req.SkipChunks {
		c.loaded = len(c.queue)
	}
	if c.loaded > 0 || len(c.queue) == 0 {
		return nil
	}
	var size int64
	n := 0
	for n < len(c.queue) && (n == 0 || size < loadBytes) {
		for i := range c.queue[n].Chunks {
			size += max(c.queue[n].Chunks[i].Size(), 512)
		}
		n++
	}
	if err := c.r.Load(ctx, c.usage, c.queue[:n]); err != nil {
		return err
	}
	c.loaded = n
	return nil
}

// next moves to the next series; false is the end.
func (c *cursor) next(ctx context.Context) (bool, error) {
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if c.loaded == 0 {
		if err := c.fill(ctx); err != nil {
			return false, err
		}
	}
	if len(c.queue) == 0 {
		return false, nil
	}
	c.at = c.queue[0]
	c.queue[0] = block.Series{}
	c.queue, c.loaded = c.queue[1:], c.loaded-1
	if c.req.SkipChunks {
		c.at.Chunks = nil
		return true, nil
	}
	return true, c.check()
}

// check parses what the chunks of the current series are.
func (c *cursor) check() error {
	for i := range c.at.Chunks {
		x := &c.at.Chunks[i]
		switch x.Encoding {
		case chunkenc.EncXOR, chunkenc.EncHistogram, chunkenc.EncFloatHistogram:
		case aggregate.Encoding:
			a, err := aggregate.Parse(x.Data)
			if err != nil {
				return fmt.Errorf("series %s, chunk of %d to %d: %w", c.at.Labels, x.MinTime, x.MaxTime, err)
			}
			x.Aggregates = c.wanted(a)
		default:
			return fmt.Errorf("series %s, chunk of %d to %d: it has the encoding %d, which this version does not know", c.at.Labels, x.MinTime, x.MaxTime, x.Encoding)
		}
	}
	return nil
}

// wanted leaves the aggregates that were asked for.
func (c *cursor) wanted(a *backend.AggregateChunks) *backend.AggregateChunks {
	out := &backend.AggregateChunks{}
	for _, kind := range c.req.Aggregates {
		switch kind {
		case backend.AggregateCount:
			out.Count = a.Count
		case backend.AggregateSum:
			out.Sum = a.Sum
		case backend.AggregateMin:
			out.Min = a.Min
		case backend.AggregateMax:
			out.Max = a.Max
		case backend.AggregateCounter:
			out.Counter = a.Counter
		}
	}
	return out
}

// series is the current one, with memory of its own.
func (c *cursor) series() backend.Series {
	s := backend.Series{Labels: c.at.Labels}
	for i := range c.at.Chunks {
		x := &c.at.Chunks[i]
		k := backend.Chunk{MinTime: x.MinTime, MaxTime: x.MaxTime, Aggregates: x.Aggregates}
		if k.Aggregates == nil {
			k.Raw = backend.Encoded{Data: x.Data, Encoding: x.Encoding}
		}
		s.Chunks = append(s.Chunks, k)
	}
	return s
}

// cursorHeap has the cursor with the least label set first.
type cursorHeap []*cursor

func (h cursorHeap) Len() int           { return len(h) }
func (h cursorHeap) Less(i, j int) bool { return labels.Compare(h[i].at.Labels, h[j].at.Labels) < 0 }
func (h cursorHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *cursorHeap) Push(x any)        { *h = append(*h, x.(*cursor)) }
func (h *cursorHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// emitter puts series into batches.
type emitter struct {
	yield func(*backend.Batch, error) bool
	size  int
	batch *backend.Batch
}

func (e *emitter) room() *backend.Batch {
	if e.batch == nil {
		e.batch = backend.NewBatch(0)
	}
	return e.batch
}

func (e *emitter) notify(n backend.Notice) { e.room().Notify(n) }

func (e *emitter) add(s backend.Series) bool {
	size := e.size
	if size <= 0 || size > mostSeries {
		size = batchSeries
	}
	if b := e.room(); b.Len() > 0 && b.Bytes()+s.Size() > batchBytes && !e.flush() {
		return false
	}
	e.room().Append(s)
	return e.batch.Len() < size || e.flush()
}

func (e *emitter) flush() bool {
	b := e.batch
	if e.batch = nil; b == nil || b.Len() == 0 && len(b.Notices()) == 0 {
		return true
	}
	return e.yield(b, nil)
}

// merged merges sequences that are each in order of their label sets. Equal series of several
// come as consecutive pieces (rule S-2).
func merged(seqs []iter.Seq2[*backend.Batch, error], size int) iter.Seq2[*backend.Batch, error] {
	if len(seqs) == 1 {
		return seqs[0]
	}
	return func(yield func(*backend.Batch, error) bool) {
		e := &emitter{yield: yield, size: size}
		var h pullHeap
		defer func() {
			for _, p := range h {
				p.stop()
			}
		}()
		// advance moves on to the next series of a sequence; false ends everything.
		advance := func(p *pull) bool {
			for p.i++; p.batch == nil || p.i >= p.batch.Len(); {
				batch, err, ok := p.next()
				if !ok {
					p.stop()
					return true
				}
				if err != nil {
					p.stop()
					if e.flush() {
						yield(nil, err)
					}
					return false
				}
				for _, n := range batch.Notices() {
					e.notify(n)
				}
				p.batch = batch
				if batch.Len() > 0 {
					p.i = 0
					break
				}
			}
			p.labels = p.batch.At(p.i).Labels
			heap.Push(&h, p)
			return true
		}
		for _, seq := range seqs {
			next, stop := iter.Pull2(seq)
			if !advance(&pull{next: next, stop: stop}) {
				return
			}
		}
		for len(h) > 0 {
			p := heap.Pop(&h).(*pull)
			if !e.add(p.batch.At(p.i)) {
				p.stop()
				return
			}
			if !advance(p) {
				return
			}
		}
		e.flush()
	}
}

// pull is one of the sequences that are merged.
type pull struct {
	next   func() (*backend.Batch, error, bool)
	stop   func()
	batch  *backend.Batch
	i      int
	labels labels.Labels
}

type pullHeap []*pull

func (h pullHeap) Len() int           { return len(h) }
func (h pullHeap) Less(i, j int) bool { return labels.Compare(h[i].labels, h[j].labels) < 0 }
func (h pullHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *pullHeap) Push(x any)        { *h = append(*h, x.(*pull)) }
func (h *pullHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
