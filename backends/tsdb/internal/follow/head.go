// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package follow keeps, in memory, what a running Prometheus has in its head: it
// reads the write-ahead logs of a TSDB directory that somebody else owns, and
// goes on reading as they grow. It opens files for reading only.
//
// The logs alone are enough. The memory-mapped chunks in chunks_head, and chunk
// snapshots, save Prometheus time at a restart, but a checkpoint together with
// the segments after it holds every in-order sample since the last truncation,
// and the write-behind log every out-of-order sample since the last out-of-order
// compaction (tsdb/head.go, tsdb/head_wal.go and tsdb/docs/format/wal.md of
// Prometheus v0.309.1).
//
// Cost is proportional to what was written since the last Poll. Everything is
// read again only if the logs were changed other than by appending and cutting off
// at the front: after a repair, or when Poll was away while segments went by.
package follow

import (
	"math"
	"slices"
	"sort"
	"sync"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tombstones"
)

const (
	// chunkRange is the default block range: a chunk never crosses a multiple of
	// it, so that it lies wholly inside or outside a compacted block.
	chunkRange = 2 * 60 * 60 * 1000
	// samplesPerChunk is the number of samples that Prometheus aims at.
	samplesPerChunk = 120
	// bytesPerChunk ends a chunk of large native histograms early.
	bytesPerChunk = 4096
)

// sample is one value of a series: a float, or one of the histograms.
type sample struct {
	t  int64
	v  float64
	h  *histogram.Histogram
	fh *histogram.FloatHistogram
	// segment of the write-behind log that it came from.
	segment int
}

// heldChunk is a chunk that is not appended to any more.
type heldChunk struct {
	mint, maxt int64
	chunk      chunkenc.Chunk
}

type series struct {
	id   storage.SeriesRef
	lset labels.Labels

	mu     sync.Mutex
	closed []heldChunk
	// open is the chunk that app appends to; nil before the first sample.
	open             chunkenc.Chunk
	app              chunkenc.Appender
	openMin, openMax int64
	openEnd          int64
	lastT            int64
	// ooo are out-of-order samples by time.
	ooo []sample
	// deleted are the intervals of deletions that the log told of.
	deleted tombstones.Intervals
	// listed says whether the series is in the postings: one without samples is
	// not, but keeps its reference, because the log names it only once.
	listed bool
}

// Head is the in-memory image. One goroutine changes it, any number read it.
type Head struct {
	postings *index.MemPostings

	mu     sync.RWMutex
	byID   map[storage.SeriesRef]*series
	nextID storage.SeriesRef

	// Used by the changing goroutine only.
	byRef  map[chunks.HeadSeriesRef]*series
	byHash map[uint64][]*series
	// unknown counts samples whose series the log does not name.
	unknown int

	bounds     sync.Mutex
	mint, maxt int64
	samples    uint64
	dead       int
}

func newHead() *Head {
	return &Head{
		postings: index.NewMemPostings(),
		byID:     map[storage.SeriesRef]*series{},
		byRef:    map[chunks.HeadSeriesRef]*series{},
		byHash:   map[uint64][]*series{},
		mint:     math.MaxInt64,
		maxt:     math.MinInt64,
	}
}

// addSeries gives a reference of the log its label set. Several references may
// stand for one label set, and a later one wins a reference used before.
func (h *Head) addSeries(ref chunks.HeadSeriesRef, lset labels.Labels) {
	hash := lset.Hash()
	for _, s := range h.byHash[hash] {
		if labels.Equal(s.lset, lset) {
			h.byRef[ref] = s
			return
		}
	}
	h.nextID++
	s := &series{id: h.nextID, lset: lset, lastT: math.MinInt64}
	h.byHash[hash] = append(h.byHash[hash], s)
	h.byRef[ref] = s
	h.bounds.Lock()
	h.dead++
	h.bounds.Unlock()
}

// list makes a series visible with its first sample.
func (h *Head) list(s *series) {
	if s.listed {
		return
	}
	s.listed = true
	h.mu.Lock()
	h.byID[s.id] = s
	h.mu.Unlock()
	h.postings.Add(s.id, s.lset)
	h.bounds.Lock()
	h.dead--
	h.bounds.Unlock()
}

func (h *Head) saw(mint, maxt int64, n int) {
	h.bounds.Lock()
	h.mint, h.maxt = min(h.mint, mint), max(h.maxt, maxt)
	h.samples += uint64(n)
	h.bounds.Unlock()
}

// append adds a sample in order. One that is not newer than the last is what
// Prometheus logged and then refused (or wrote to the other log): the first wins.
func (s *series) append(p sample) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.t <= s.lastT {
		return false
	}
	enc := chunkenc.EncXOR
	switch {
	case p.h != nil:
		enc = chunkenc.EncHistogram
	case p.fh != nil:
		enc = chunkenc.EncFloatHistogram
	}
	prev := s.app
	cut := s.open == nil || s.open.Encoding() != enc || p.t >= s.openEnd || s.open.NumSamples() >= samplesPerChunk ||
		len(s.open.Bytes()) >= bytesPerChunk
	if cut {
		s.begin(newChunk(enc), p.t)
	}
	var (
		next    chunkenc.Chunk
		recoded bool
		err     error
	)
	switch {
	case p.h != nil:
		before, _ := prev.(*chunkenc.HistogramAppender)
		if !cut {
			before = nil
		}
		next, recoded, s.app, err = s.app.AppendHistogram(before, p.t, p.h, false)
	case p.fh != nil:
		before, _ := prev.(*chunkenc.FloatHistogramAppender)
		if !cut {
			before = nil
		}
		next, recoded, s.app, err = s.app.AppendFloatHistogram(before, p.t, p.fh, false)
	default:
		s.app.Append(p.t, p.v)
	}
	if err != nil {
		return false
	}
	switch {
	case next == nil:
	case recoded:
		s.open = next
	default:
		app := s.app
		s.begin(next, p.t)
		s.app = app
	}
	s.openMax, s.lastT = p.t, p.t
	return true
}

// begin closes the open chunk and goes on in c.
func (s *series) begin(c chunkenc.Chunk, t int64) {
	if s.open != nil && s.open.NumSamples() > 0 {
		s.open.Compact()
		s.closed = append(s.closed, heldChunk{s.openMin, s.openMax, s.open})
	}
	// A new chunk of its own kind cannot refuse an appender.
	s.open, s.openMin, s.openMax = c, t, t
	s.app, _ = c.Appender()
	s.openEnd = endOfRange(t)
}

func newChunk(enc chunkenc.Encoding) chunkenc.Chunk {
	switch enc {
	case chunkenc.EncHistogram:
		return chunkenc.NewHistogramChunk()
	case chunkenc.EncFloatHistogram:
		return chunkenc.NewFloatHistogramChunk()
	default:
		return chunkenc.NewXORChunk()
	}
}

// endOfRange is the end of the block range around t.
func endOfRange(t int64) int64 {
	start := t - t%chunkRange
	if t < 0 && t%chunkRange != 0 {
		start -= chunkRange
	}
	if start > math.MaxInt64-chunkRange {
		return math.MaxInt64
	}
	return start + chunkRange
}

// insert adds an out-of-order sample; for equal times the first wins.
func (s *series) insert(p sample) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := sort.Search(len(s.ooo), func(i int) bool { return s.ooo[i].t >= p.t })
	if i < len(s.ooo) && s.ooo[i].t == p.t {
		return false
	}
	s.ooo = slices.Insert(s.ooo, i, p)
	return true
}

// truncate drops chunks that end before mint and out-of-order samples of segments
// before segment. It reports whether anything is left.
func (s *series) truncate(mint int64, segment int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(s.closed) && s.closed[n].maxt < mint {
		n++
	}
	if n > 0 {
		// A new array: readers may hold the old one.
		s.closed = slices.Clone(s.closed[n:])
	}
	if s.open != nil && s.openMax < mint {
		s.open, s.app = nil, nil
	}
	if len(s.ooo) > 0 {
		s.ooo = slices.DeleteFunc(slices.Clone(s.ooo), func(p sample) bool { return p.segment < segment })
	}
	return len(s.closed) > 0 || s.open != nil || len(s.ooo) > 0
}

// truncate frees what no reader with these bounds may see.
func (h *Head) truncate(mint int64, segment int) {
	gone := map[storage.SeriesRef]struct{}{}
	affected := map[labels.Label]struct{}{}
	lowest := int64(math.MaxInt64)
	h.mu.RLock()
	all := make([]*series, 0, len(h.byID))
	for _, s := range h.byID {
		all = append(all, s)
	}
	h.mu.RUnlock()
	for _, s := range all {
		if s.truncate(mint, segment) {
			s.mu.Lock()
			if len(s.closed) > 0 {
				lowest = min(lowest, s.closed[0].mint)
			} else if s.open != nil {
				lowest = min(lowest, s.openMin)
			}
			if len(s.ooo) > 0 {
				lowest = min(lowest, s.ooo[0].t)
			}
			s.mu.Unlock()
			continue
		}
		gone[s.id] = struct{}{}
		s.lset.Range(func(l labels.Label) { affected[l] = struct{}{} })
		s.listed = false
	}
	h.postings.Delete(gone, affected)
	h.mu.Lock()
	for id := range gone {
		delete(h.byID, id)
	}
	h.mu.Unlock()
	h.bounds.Lock()
	h.mint = lowest
	h.dead += len(gone)
	h.bounds.Unlock()
}

// Bounds are the times of the first and last sample held, in ms; empty if there is none.
func (h *Head) Bounds() (mint, maxt int64, empty bool) {
	h.bounds.Lock()
	defer h.bounds.Unlock()
	return h.mint, h.maxt, h.mint == math.MaxInt64
}

// Stats are the number of series and of chunks held.
func (h *Head) Stats() (nseries, nchunks int) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, s := range h.byID {
		s.mu.Lock()
		nchunks += len(s.closed)
		if s.open != nil {
			nchunks++
		}
		s.mu.Unlock()
	}
	return len(h.byID), nchunks
}

// PostingsStats counts series by label.
func (h *Head) PostingsStats(label string, limit int) *index.PostingsStats {
	return h.postings.Stats(label, limit, func(name, value string, n uint64) uint64 { return n * uint64(len(name)+len(value)) })
}

// Window is what a reader may see of a Head: in-order samples from MinTime on, and
// out-of-order samples of write-behind segments from Segment on. What lies before
// is in blocks already.
type Window struct {
	MinTime int64
	Segment int
}

// Reader reads a Head through a window. It is a tsdb.IndexReader; chunks come with
// the metas of Series, as private copies where they still change.
type Reader struct {
	head   *Head
	window Window
	// skipChunks leaves the Chunk of metas empty, where no deletions ask for it.
	skipChunks bool
}

var _ tsdb.IndexReader = (*Reader)(nil)

// Reader returns a reader.
func (h *Head) Reader(w Window, skipChunks bool) *Reader {
	return &Reader{head: h, window: w, skipChunks: skipChunks}
}

// Deleted are the intervals in which samples of a series were deleted.
func (r *Reader) Deleted(ref storage.SeriesRef) tombstones.Intervals {
	s := r.head.get(ref)
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deleted
}

func (h *Head) get(ref storage.SeriesRef) *series {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.byID[ref]
}

// Series implements tsdb.IndexReader.
func (r *Reader) Series(ref storage.SeriesRef, b *labels.ScratchBuilder, chks *[]chunks.Meta) error {
	s := r.head.get(ref)
	if s == nil {
		return storage.ErrNotFound
	}
	b.Assign(s.lset)
	if chks == nil {
		return nil
	}
	*chks = (*chks)[:0]
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.closed {
		if c.maxt >= r.window.MinTime {
			*chks = append(*chks, chunks.Meta{MinTime: c.mint, MaxTime: c.maxt, Chunk: c.chunk})
		}
	}
	if s.open != nil && s.openMax >= r.window.MinTime {
		m := chunks.Meta{MinTime: s.openMin, MaxTime: s.openMax}
		if !r.skipChunks || len(s.deleted) > 0 {
			// The open chunk is appended to in place, down to its last byte.
			c, err := chunkenc.FromData(s.open.Encoding(), slices.Clone(s.open.Bytes()))
			if err != nil {
				return err
			}
			m.Chunk = c
		}
		*chks = append(*chks, m)
	}
	return r.outOfOrder(s, chks)
}

// outOfOrder adds the out-of-order samples as chunks of their own.
func (r *Reader) outOfOrder(s *series, chks *[]chunks.Meta) error {
	if len(s.ooo) == 0 {
		return nil
	}
	visible := make([]chunks.Sample, 0, len(s.ooo))
	for i := range s.ooo {
		if s.ooo[i].segment >= r.window.Segment {
			visible = append(visible, oooSample{&s.ooo[i]})
		}
	}
	if len(visible) == 0 {
		return nil
	}
	it := storage.NewSeriesToChunkEncoder(storage.NewListSeries(s.lset, visible)).Iterator(nil)
	for it.Next() {
		*chks = append(*chks, it.At())
	}
	return it.Err()
}

// oooSample makes a sample a chunks.Sample.
type oooSample struct{ p *sample }

func (o oooSample) T() int64                      { return o.p.t }
func (o oooSample) F() float64                    { return o.p.v }
func (o oooSample) H() *histogram.Histogram       { return o.p.h }
func (o oooSample) FH() *histogram.FloatHistogram { return o.p.fh }
func (o oooSample) Copy() chunks.Sample           { c := *o.p; return oooSample{&c} }
func (o oooSample) Type() chunkenc.ValueType {
	switch {
	case o.p.h != nil:
		return chunkenc.ValHistogram
	case o.p.fh != nil:
		return chunkenc.ValFloatHistogram
	default:
		return chunkenc.ValFloat
	}
}
