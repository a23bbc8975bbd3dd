// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package verify reads a whole block that is there as a directory and says what is wrong with
// it: what no program should read, and what others refuse to compact.
package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/meta"
)

// Kind is what kind of thing is wrong.
type Kind string

// The kinds. The texts are for people, and stay the same.
const (
	Unreadable    Kind = "unreadable"         // the index or a segment cannot be opened, or broke off
	SeriesOrder   Kind = "series order"       // series do not ascend, or one is there twice
	LabelOrder    Kind = "label order"        // labels of a series do not ascend, or are empty
	NoChunks      Kind = "no chunks"          // a series has none
	ChunkOrder    Kind = "chunk order"        // chunks of a series overlap or do not ascend
	OutsideRange  Kind = "outside of range"   // a chunk reaches beyond the times of the block
	BrokenChunk   Kind = "broken chunk"       // a checksum does not hold, or it does not decode
	Encoding      Kind = "encoding"           // a chunk's encoding is none that Thanos reads
	WrongTimes    Kind = "times of a chunk"   // its samples are not in the times that the index gives it
	WrongPostings Kind = "postings"           // the lists of series by label are not those of the series
	WrongCounts   Kind = "counts in the meta" // meta.json counts something else
)

// Problem is one kind of thing that is wrong.
type Problem struct {
	Kind Kind
	// Count is how often, First the first of them.
	Count int
	First string
}

// Found is what a block holds. Stats are as in meta.json; samples are counted only if the
// chunks were read.
type Found struct {
	Series, Chunks, Samples uint64
	// MinTime and MaxTime of its chunks, ms, both inclusive; 0 without any.
	MinTime, MaxTime int64
	IndexStats       meta.IndexStats
	// Problems by kind, in the order in which they came up.
	Problems []Problem
}

// ErrBroken is wrapped by the error of Err.
var ErrBroken = errors.New("block is broken")

// Err is an error that names the block and what is wrong, nil if nothing is.
func (f *Found) Err(m *meta.Meta) error {
	if len(f.Problems) == 0 {
		return nil
	}
	var parts []string
	for _, p := range f.Problems {
		part := string(p.Kind) + ": " + p.First
		if p.Count > 1 {
			part += fmt.Sprintf(" (and %d more)", p.Count-1)
		}
		parts = append(parts, part)
	}
	return fmt.Errorf("%w: %s: %s", ErrBroken, m.ULID, strings.Join(parts, "; "))
}

func (f *Found) problem(kind Kind, format string, args ...any) {
	for i := range f.Problems {
		if f.Problems[i].Kind == kind {
			f.Problems[i].Count++
			return
		}
	}
	f.Problems = append(f.Problems, Problem{kind, 1, fmt.Sprintf(format, args...)})
}

// Has says whether something of a kind is wrong.
func (f *Found) Has(kind Kind) bool {
	for _, p := range f.Problems {
		if p.Kind == kind {
			return true
		}
	}
	return false
}

// Options of Block.
type Options struct {
	// Chunks are read and decoded too, and postings compared with the series; without it
	// only the index is walked.
	Chunks bool
}

// Block walks over the block m in a directory. An error says that the walk was called off, or
// that there is no such directory; what is wrong with the block is in Found.
//
// Memory: one series, and the postings offsets of the index.
func Block(ctx context.Context, dir string, m *meta.Meta, o Options) (*Found, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	w := &walk{f: &Found{}, m: m, o: o, pool: aggregate.NewPool()}
	err := w.run(ctx, dir)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		w.f.problem(Unreadable, "%v", err)
	}
	return w.f, nil
}

type walk struct {
	f    *Found
	m    *meta.Meta
	o    Options
	pool chunkenc.Pool
	cr   *chunks.Reader

	sizes   []int64 // of segments, bytes
	lastRef chunks.ChunkRef
	pairs   uint64 // of labels, over all series
}

func (w *walk) run(ctx context.Context, dir string) (err error) {
	ir, err := index.NewFileReader(filepath.Join(dir, meta.IndexFile), index.DecodePostingsRaw)
	if err != nil {
		return fmt.Errorf("%s: %w", meta.IndexFile, err)
	}
	defer func() { err = errors.Join(err, ir.Close()) }()
	if err := w.openChunks(filepath.Join(dir, meta.ChunksDir)); err != nil {
		return fmt.Errorf("%s: %w", meta.ChunksDir, err)
	}
	if w.cr != nil {
		defer func() { err = errors.Join(err, w.cr.Close()) }()
	}
	if err := w.series(ctx, ir); err != nil {
		return fmt.Errorf("%s: %w", meta.IndexFile, err)
	}
	if w.o.Chunks {
		if err := w.postings(ctx, ir); err != nil {
			return fmt.Errorf("%s: %w", meta.IndexFile, err)
		}
	}
	w.counts()
	return nil
}

func (w *walk) openChunks(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // an empty block has none
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		w.sizes = append(w.sizes, info.Size())
	}
	if w.o.Chunks && len(entries) > 0 {
		w.cr, err = chunks.NewDirReader(dir, w.pool)
		return err
	}
	return nil
}

func (w *walk) series(ctx context.Context, ir *index.Reader) error {
	name, value := index.AllPostingsKey()
	all, err := ir.Postings(ctx, name, value)
	if err != nil {
		return err
	}
	var (
		b       labels.ScratchBuilder
		list    []chunks.Meta
		last    labels.Labels
		lastRef storage.SeriesRef
	)
	for all.Next() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		ref := all.At()
		if err := ir.Series(ref, &b, &list); err != nil {
			return fmt.Errorf("series %d: %w", ref, err)
		}
		ls := b.Labels()
		if w.f.Series > 0 {
			if labels.Compare(last, ls) >= 0 {
				w.f.problem(SeriesOrder, "%s comes behind %s", ls, last)
			}
			// References are in units of 16 bytes.
			w.f.IndexStats.SeriesMaxSize = max(w.f.IndexStats.SeriesMaxSize, 16*int64(ref-lastRef))
		}
		last, lastRef = ls, ref
		w.f.Series++
		w.labels(ls)
		w.chunks(ls, list)
	}
	w.chunkEnd(chunks.ChunkRef(uint64(len(w.sizes)) << 32))
	return all.Err()
}

func (w *walk) labels(ls labels.Labels) {
	last := ""
	ls.Range(func(l labels.Label) {
		if l.Name <= last || l.Value == "" {
			w.f.problem(LabelOrder, "%s: label %q", ls, l.Name)
		}
		last = l.Name
		w.pairs++
	})
}

func (w *walk) chunks(ls labels.Labels, list []chunks.Meta) {
	if len(list) == 0 {
		w.f.problem(NoChunks, "%s", ls)
	}
	for i := range list {
		c := &list[i]
		where := func() string { return fmt.Sprintf("%s: chunk of %d to %d", ls, c.MinTime, c.MaxTime) }
		if c.MinTime > c.MaxTime || i > 0 && c.MinTime <= list[i-1].MaxTime {
			w.f.problem(ChunkOrder, "%s", where())
		}
		// The times of a block are half-open.
		if c.MinTime < w.m.MinTime || c.MaxTime >= w.m.MaxTime {
			w.f.problem(OutsideRange, "%s, block from %d to %d", where(), w.m.MinTime, w.m.MaxTime)
		}
		if w.f.Chunks == 0 {
			w.f.MinTime, w.f.MaxTime = c.MinTime, c.MaxTime
		}
		w.f.MinTime, w.f.MaxTime = min(w.f.MinTime, c.MinTime), max(w.f.MaxTime, c.MaxTime)
		w.f.Chunks++
		w.chunkEnd(c.Ref)
		if w.cr != nil {
			w.decode(c, where)
		}
	}
}

// chunkEnd takes the size of the chunk before the one at ref: writers put them one after
// the other, in the order of the index.
func (w *walk) chunkEnd(ref chunks.ChunkRef) {
	if last := w.lastRef; last != 0 {
		segment, at := chunks.BlockChunkRef(last).Unpack()
		next, end := chunks.BlockChunkRef(ref).Unpack()
		if next != segment && segment < len(w.sizes) {
			end = int(w.sizes[segment])
		}
		w.f.IndexStats.ChunkMaxSize = max(w.f.IndexStats.ChunkMaxSize, int64(end-at))
	}
	w.lastRef = ref
}

func (w *walk) decode(c *chunks.Meta, where func() string) {
	chk, _, err := w.cr.ChunkOrIterable(*c)
	if err != nil {
		w.f.problem(BrokenChunk, "%s: %v", where(), err)
		return
	}
	switch chk.Encoding() {
	case chunkenc.EncXOR, chunkenc.EncHistogram, chunkenc.EncFloatHistogram:
		w.samples(chk, c, where, false)
	case aggregate.Encoding:
		a, err := aggregate.Parse(chk.Bytes())
		if err != nil {
			w.f.problem(BrokenChunk, "%s: %v", where(), err)
			return
		}
		for i, e := range []struct {
			data    []byte
			enc     chunkenc.Encoding
			counter bool
		}{
			{a.Count.Data, a.Count.Encoding, false}, {a.Sum.Data, a.Sum.Encoding, false}, {a.Min.Data, a.Min.Encoding, false},
			{a.Max.Data, a.Max.Encoding, false}, {a.Counter.Data, a.Counter.Encoding, true},
		} {
			if len(e.data) == 0 {
				continue
			}
			part, err := w.pool.Get(e.enc, e.data)
			if err != nil {
				w.f.problem(BrokenChunk, "%s: aggregate %d: %v", where(), i, err)
				continue
			}
			before := w.f.Samples
			w.samples(part, c, where, e.counter)
			if i > 0 {
				w.f.Samples = before // points are counted once
			}
		}
	default:
		w.f.problem(Encoding, "%s: encoding %d", where(), chk.Encoding())
	}
}

// samples decodes a chunk. That of counters begins with a sample of before its first window,
// and its last time comes twice.
func (w *walk) samples(chk chunkenc.Chunk, c *chunks.Meta, where func() string, counter bool) {
	defer func() {
		// The library trusts what a histogram's chunk promises.
		if v := recover(); v != nil {
			w.f.problem(BrokenChunk, "%s: %v", where(), v)
		}
	}()
	it := chk.Iterator(nil)
	n, last := 0, int64(0)
	for it.Next() != chunkenc.ValNone {
		t := it.AtT()
		if n > 0 && (t < last || t == last && !counter) || t > c.MaxTime || t < c.MinTime && !(counter && n == 0) {
			w.f.problem(WrongTimes, "%s: a sample at %d", where(), t)
		}
		n, last = n+1, t
	}
	if err := it.Err(); err != nil {
		w.f.problem(BrokenChunk, "%s: after %d samples: %v", where(), n, err)
	} else if n != chk.NumSamples() || n == 0 {
		w.f.problem(BrokenChunk, "%s: it has %d samples, and says %d", where(), n, chk.NumSamples())
	}
	w.f.Samples += uint64(n)
}

// postings compares the number of entries in all lists with that of labels of all series, and
// looks at the order of each.
func (w *walk) postings(ctx context.Context, ir *index.Reader) error {
	names, err := ir.LabelNames(ctx)
	if err != nil {
		return err
	}
	var entries uint64
	for _, name := range names {
		values, err := ir.LabelValues(ctx, name, nil)
		if err != nil {
			return err
		}
		for _, value := range values {
			p, err := ir.Postings(ctx, name, value)
			if err != nil {
				return err
			}
			last := storage.SeriesRef(0)
			for n := 0; p.Next(); n++ {
				if n > 0 && p.At() <= last {
					w.f.problem(WrongPostings, "%s=%q: not ascending", name, value)
				}
				last = p.At()
				entries++
			}
			if err := p.Err(); err != nil {
				return fmt.Errorf("postings of %s=%q: %w", name, value, err)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	if entries != w.pairs {
		w.f.problem(WrongPostings, "they have %d entries, and series have %d labels", entries, w.pairs)
	}
	return nil
}

func (w *walk) counts() {
	s := &w.m.Stats
	if s.NumSeries != w.f.Series || s.NumChunks != w.f.Chunks || w.o.Chunks && s.NumSamples != w.f.Samples {
		if w.o.Chunks {
			w.f.problem(WrongCounts, "%d series, %d chunks, %d samples, and there are %d, %d, %d", s.NumSeries, s.NumChunks, s.NumSamples, w.f.Series, w.f.Chunks, w.f.Samples)
		} else {
			w.f.problem(WrongCounts, "%d series, %d chunks, and there are %d, %d", s.NumSeries, s.NumChunks, w.f.Series, w.f.Chunks)
		}
	}
}
