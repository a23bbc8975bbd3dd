// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/record"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/prometheus/prometheus/tsdb/wlog"
)

// errRestart says that a log is no longer the one that was being followed.
var errRestart = errors.New("the log was rewritten")

// tail reads the segments of one log, in order, as they grow.
type tail struct {
	dir    string
	logger *slog.Logger
	// index is the segment being read; file is nil before it exists.
	index  int
	file   *os.File
	reader *wlog.LiveReader
}

// poll hands every record that is there now to fn.
func (t *tail) poll(ctx context.Context, fn func(segment int, rec []byte) error) error {
	for n := 0; ; {
		if t.file == nil {
			ok, err := t.open()
			if err != nil || !ok {
				return err
			}
		}
		// Whether there is a next segment must be known before this one is read to
		// its end: the writer finishes one before it creates the next.
		next := exists(filepath.Join(t.dir, segmentName(t.index+1)))
		if !next {
			if err := t.same(); err != nil {
				return err
			}
		}
		for t.reader.Next() {
			if n++; n%256 == 0 && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := fn(t.index, t.reader.Record()); err != nil {
				return fmt.Errorf("%s: segment %d, offset %d: %w", t.dir, t.index, t.reader.Offset(), err)
			}
		}
		if err := t.reader.Err(); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: segment %d, offset %d: %w", t.dir, t.index, t.reader.Offset(), err)
		}
		if !next {
			return nil
		}
		t.close()
		t.index++
	}
}

// open opens the current segment. A segment that is missing while a later one is
// there was cut off before it was read.
func (t *tail) open() (bool, error) {
	f, err := os.Open(filepath.Join(t.dir, segmentName(t.index)))
	if errors.Is(err, fs.ErrNotExist) {
		first, last, err := wlog.Segments(t.dir)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && last < t.index && (last == -1 || last == t.index-1)) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return false, fmt.Errorf("%s: segment %d is wanted, %d to %d are there: %w", t.dir, t.index, first, last, errRestart)
	}
	if err != nil {
		return false, err
	}
	t.file = f
	t.reader = wlog.NewLiveReader(t.logger, wlog.NewLiveReaderMetrics(nil), f)
	return true, nil
}

// same checks that the open file is still the segment and has not shrunk.
func (t *tail) same() error {
	here, err := t.file.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(filepath.Join(t.dir, segmentName(t.index)))
	if errors.Is(err, fs.ErrNotExist) {
		// A next segment may have come in the meantime, and this one may be cut off.
		if exists(filepath.Join(t.dir, segmentName(t.index+1))) {
			return nil
		}
		return fmt.Errorf("%s: segment %d is gone: %w", t.dir, t.index, errRestart)
	}
	if err != nil {
		return err
	}
	if !os.SameFile(here, there) || there.Size() < t.reader.Offset() {
		return fmt.Errorf("%s: segment %d was replaced: %w", t.dir, t.index, errRestart)
	}
	return nil
}

func (t *tail) close() {
	if t.file != nil {
		t.file.Close()
		t.file, t.reader = nil, nil
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func segmentName(i int) string { return fmt.Sprintf("%08d", i) }

// Follower follows the logs under one TSDB directory. Its methods are for one
// goroutine; the Head it returns is for any.
type Follower struct {
	dir    string
	logger *slog.Logger

	head *Head
	wal  *tail
	wbl  *tail
	// skipBefore is the time before which samples were in blocks when it started.
	skipBefore int64
	firstWBL   int
	dec        record.Decoder
	// late are out-of-order samples, held until their series are known.
	late []lateSample
	// truncated is the last window truncated to.
	truncated Window
	// failed is what was wrong with the log at lastStart. It is read again from the
	// beginning once in a while, in case that its owner has repaired it.
	failed    error
	lastStart time.Time
}

// retryAfter is the time between attempts to read a damaged log from the beginning.
const retryAfter = time.Minute

type lateSample struct {
	ref chunks.HeadSeriesRef
	p   sample
}

// New makes a follower of the TSDB in dir. Samples before minTime (ms) are taken
// to be in blocks.
func New(dir string, minTime int64, logger *slog.Logger) *Follower {
	return &Follower{dir: dir, logger: logger, skipBefore: minTime}
}

// Close closes the files. The Head stays readable.
func (f *Follower) Close() {
	if f.wal != nil {
		f.wal.close()
	}
	if f.wbl != nil {
		f.wbl.close()
	}
}

// Head is the image so far; nil before the first Poll that succeeded.
func (f *Follower) Head() *Head { return f.head }

// FirstSegment is the first write-behind segment that was there at the last Poll.
// Samples of earlier ones are in blocks.
func (f *Follower) FirstSegment() int { return f.firstWBL }

// Wasteful says that so much of what is remembered belongs to series that have no
// samples any more that starting anew is cheaper.
func (f *Follower) Wasteful() bool {
	if f.head == nil {
		return false
	}
	f.head.bounds.Lock()
	dead := f.head.dead
	f.head.bounds.Unlock()
	if dead <= 10_000 {
		return false
	}
	live, _ := f.head.Stats()
	return dead > live
}

// Truncate frees samples that no reader will ask for: those before w.
func (f *Follower) Truncate(w Window) {
	if f.head != nil && f.truncated != w {
		f.truncated = w
		f.head.truncate(w.MinTime, w.Segment)
	}
}

// Poll reads what is new. restarted says that Head is another one from now on.
// After an error the head is as before, or holds a part of what is new; the error
// stays until the log is found repaired, which is tried once a minute.
func (f *Follower) Poll(ctx context.Context) (restarted bool, err error) {
	switch {
	case f.failed != nil && time.Since(f.lastStart) < retryAfter:
		return false, f.failed
	case f.failed == nil && f.head != nil:
		err = f.advance(ctx)
		switch {
		case err == nil || ctx.Err() != nil:
			return false, err
		case !errors.Is(err, errRestart):
			f.failed, f.lastStart = err, time.Now()
			return false, err
		}
		f.logger.Info("reading the write-ahead log again from its checkpoint", "dir", f.dir, "reason", err)
	}
	// A checkpoint may be replaced while it is read; the next one is complete again.
	for try := 0; ; try++ {
		g := New(f.dir, f.skipBefore, f.logger)
		err = g.start(ctx)
		if err == nil {
			f.Close()
			*f = *g
			return true, nil
		}
		g.Close()
		if ctx.Err() != nil {
			return false, err
		}
		if try >= 3 || !(errors.Is(err, errRestart) || errors.Is(err, fs.ErrNotExist)) {
			f.failed, f.lastStart = err, time.Now()
			return false, err
		}
	}
}

// start reads the checkpoint and then all segments after it.
func (f *Follower) start(ctx context.Context) error {
	f.head = newHead()
	f.dec = record.NewDecoder(labels.NewSymbolTable(), f.logger)
	walDir := filepath.Join(f.dir, "wal")
	from := -1
	cp, at, err := wlog.LastCheckpoint(walDir)
	switch {
	case err == nil:
		from = at + 1
		if err := f.readCheckpoint(ctx, cp); err != nil {
			return err
		}
	case errors.Is(err, record.ErrNotFound), errors.Is(err, fs.ErrNotExist):
	default:
		return err
	}
	first, _, err := wlog.Segments(walDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case from < 0:
		from = max(first, 0)
		if cp2, _, err := wlog.LastCheckpoint(walDir); err == nil {
			return fmt.Errorf("%s has come: %w", cp2, errRestart)
		}
	case first > from:
		return fmt.Errorf("%s: segment %d is wanted, %d is the first: %w", walDir, from, first, errRestart)
	}
	f.wal = &tail{dir: walDir, index: from, logger: f.logger}
	wblDir := filepath.Join(f.dir, wlog.WblDirName)
	first, _, err = wlog.Segments(wblDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f.firstWBL = max(first, 0)
	f.wbl = &tail{dir: wblDir, index: f.firstWBL, logger: f.logger}
	return f.advance(ctx)
}

// advance reads to the present end of both logs. The write-behind log is read
// first and applied last, so that the series of its samples are known.
func (f *Follower) advance(ctx context.Context) error {
	first, _, err := wlog.Segments(f.wbl.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if first > f.wbl.index {
		// Cut off before it was read: its samples are in blocks.
		f.wbl.close()
		f.wbl.index = first
	}
	if err := f.wbl.poll(ctx, f.outOfOrder); err != nil {
		return err
	}
	if err := f.wal.poll(ctx, f.inOrder); err != nil {
		return err
	}
	for _, l := range f.late {
		s := f.head.byRef[l.ref]
		if s == nil {
			f.head.unknown++
			continue
		}
		if s.insert(l.p) {
			f.head.list(s)
			f.head.saw(l.p.t, l.p.t, 1)
		}
	}
	f.late = f.late[:0]
	f.firstWBL = max(f.firstWBL, first)
	return nil
}

func (f *Follower) readCheckpoint(ctx context.Context, dir string) error {
	sr, err := wlog.NewSegmentsReader(dir)
	if err != nil {
		return err
	}
	defer sr.Close()
	r := wlog.NewReader(sr)
	for n := 1; r.Next(); n++ {
		if n%256 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := f.inOrder(0, r.Record()); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	if err := r.Err(); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}

// inOrder applies a record of the write-ahead log.
func (f *Follower) inOrder(_ int, rec []byte) error {
	h := f.head
	switch f.dec.Type(rec) {
	case record.Series:
		all, err := f.dec.Series(rec, nil)
		if err != nil {
			return err
		}
		for _, s := range all {
			h.addSeries(s.Ref, s.Labels)
		}
	case record.Tombstones:
		stones, err := f.dec.Tombstones(rec, nil)
		if err != nil {
			return err
		}
		for _, st := range stones {
			f.delete(st)
		}
	default:
		mint, maxt, n := int64(math.MaxInt64), int64(math.MinInt64), 0
		err := f.samples(rec, func(ref chunks.HeadSeriesRef, p sample) {
			if p.t < f.skipBefore {
				return
			}
			s := h.byRef[ref]
			if s == nil {
				h.unknown++
				return
			}
			if s.append(p) {
				h.list(s)
				mint, maxt = min(mint, p.t), max(maxt, p.t)
				n++
			}
		})
		if n > 0 {
			h.saw(mint, maxt, n)
		}
		return err
	}
	return nil
}

// outOfOrder holds the samples of a record of the write-behind log.
func (f *Follower) outOfOrder(segment int, rec []byte) error {
	return f.samples(rec, func(ref chunks.HeadSeriesRef, p sample) {
		p.segment = segment
		f.late = append(f.late, lateSample{ref, p})
	})
}

// samples calls fn for each sample of a record; other records have none.
func (f *Follower) samples(rec []byte, fn func(chunks.HeadSeriesRef, sample)) error {
	switch f.dec.Type(rec) {
	case record.Samples:
		all, err := f.dec.Samples(rec, nil)
		for _, s := range all {
			fn(s.Ref, sample{t: s.T, v: s.V})
		}
		return err
	case record.HistogramSamples, record.CustomBucketsHistogramSamples:
		all, err := f.dec.HistogramSamples(rec, nil)
		for _, s := range all {
			fn(s.Ref, sample{t: s.T, h: s.H})
		}
		return err
	case record.FloatHistogramSamples, record.CustomBucketsFloatHistogramSamples:
		all, err := f.dec.FloatHistogramSamples(rec, nil)
		for _, s := range all {
			fn(s.Ref, sample{t: s.T, fh: s.FH})
		}
		return err
	}
	return nil
}

func (f *Follower) delete(st tombstones.Stone) {
	s := f.head.byRef[chunks.HeadSeriesRef(st.Ref)]
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Add changes its receiver; readers hold the old slice.
	var all tombstones.Intervals
	all = append(all, s.deleted...)
	for _, iv := range st.Intervals {
		all = all.Add(iv)
	}
	s.deleted = all
}
