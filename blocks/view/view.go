// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package view says which blocks a bucket has, and which of them count. The rules are those
// of Thanos (pkg/block, fetcher.go); the requests that it takes are fewer: where the provider
// lists recursively and with times, one listing says which blocks and marks there are, and
// only what is new or has changed is read.
package view

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"

	"github.com/promweave/promweave/blocks/meta"
)

// Block is a block that is in a bucket, whole. It is not changed after it was made.
type Block struct {
	Meta  *meta.Meta
	Marks map[meta.Kind]*meta.Mark
}

// Partial is what there is of a block without a meta.json, or with one that is corrupt: an
// upload that goes on or was broken off, or a deletion. Who cleans up needs the rest.
type Partial struct {
	// State is NoMeta or Corrupt, and Reason says more.
	State  State
	Reason error
	// Newest is when the newest of its objects was written; zero if that is not known.
	Newest time.Time
	// Objects is how many there are. If they were not listed recursively, those in chunks/ are one.
	Objects int
	// Marks are there too: a deletion that was broken off leaves its mark.
	Marks map[meta.Kind]*meta.Mark
}

// View is what a bucket had at one moment. It is shared, and not changed.
type View struct {
	// Blocks ascend by id.
	Blocks []*Block
	// Partial are the ones that nobody may read.
	Partial map[ulid.ULID]*Partial
	// Problems are blocks of which something could not be read now. What was known of them
	// before is in Blocks or Partial: for a moment's fault nothing is dropped.
	Problems map[ulid.ULID]error
	// Gone are blocks whose meta.json was listed, and was not there when it was to be read.
	// Somebody deletes them; what there is of them is for the next look to say.
	Gone []ulid.ULID
	// Requests to the bucket that it took; a listing of many pages counts as one.
	Requests int
}

// Complete says whether everything could be read.
func (v *View) Complete() bool { return len(v.Problems) == 0 }

// Config of a Fetcher.
type Config struct {
	// CacheDir keeps meta.json files between two lives of the process; "" keeps none.
	CacheDir string
	// Concurrency is how many objects are read at once; 0 is 32.
	Concurrency int
	// Timeout is how long it may take to read one object, or to list one block: one that hangs
	// is a problem of its block, and not of all. 0 is a minute.
	Timeout time.Duration
	Logger  *slog.Logger
	// Registerer gets the metrics promweave_bucket_view_…; nil is none.
	Registerer prometheus.Registerer
}

// Fetcher looks into one bucket again and again. It is safe for concurrent use.
type Fetcher struct {
	bkt     objstore.BucketReader
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	// turn is held by the look that is being taken.
	turn    chan struct{}
	started atomic.Int64
	// These belong to who has the turn.
	last    *View
	lastSeq int64
	known   map[ulid.ULID]*entry
}

// entry is what is remembered of a block: it is a block, or partial.
type entry struct {
	metaAt  time.Time
	marks   map[meta.Kind]*mark
	block   *Block
	partial *Partial
}

type mark struct {
	at time.Time
	m  *meta.Mark
}

// NewFetcher returns one for a bucket, which is only read.
func NewFetcher(bkt objstore.BucketReader, cfg Config) *Fetcher {
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = 32
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = time.Minute
	}
	return &Fetcher{bkt: bkt, cfg: cfg, log: log, metrics: newMetrics(cfg.Registerer, log), turn: make(chan struct{}, 1), known: map[ulid.ULID]*entry{}}
}

// Fetch takes a look that begins after the call: who has just uploaded a block sees it. Calls
// that wait for each other share one. An error says that nothing could be seen.
func (f *Fetcher) Fetch(ctx context.Context) (*View, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	began := f.started.Load()
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if f.last != nil && f.lastSeq > began {
		return f.last, nil
	}
	seq := f.started.Add(1)
	v, err := f.look(ctx)
	f.metrics.looked(v, err)
	if err != nil {
		return nil, err
	}
	f.last, f.lastSeq = v, seq
	return v, nil
}

// listed is what a listing says of a block. Times are zero where the provider has none.
type listed struct {
	meta    *time.Time
	marks   map[meta.Kind]time.Time
	newest  time.Time
	objects int
	// err is why the block could not be listed.
	err error
}

func (l *listed) note(rel string, at time.Time) {
	l.objects++
	if at.After(l.newest) {
		l.newest = at
	}
	if rel == meta.File {
		l.meta = &at
	}
	for _, k := range meta.Kinds() {
		if rel == k.File() {
			l.marks[k] = at
		}
	}
}

// request counts one request of a look.
func (f *Fetcher) request(requests *atomic.Int64, operation string) {
	requests.Add(1)
	f.metrics.requests.WithLabelValues(operation).Inc()
}

func (f *Fetcher) look(ctx context.Context) (*View, error) {
	var requests atomic.Int64
	found, err := f.list(ctx, &requests)
	if err != nil {
		return nil, fmt.Errorf("list the blocks of the bucket: %w", err)
	}
	v := &View{Partial: map[ulid.ULID]*Partial{}, Problems: map[ulid.ULID]error{}}
	var mu sync.Mutex
	next := map[ulid.ULID]*entry{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(f.cfg.Concurrency)
	for id, l := range found {
		old := f.known[id]
		g.Go(func() error {
			e, err := f.read(gctx, id, l, old, &requests)
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, errGone):
				v.Gone = append(v.Gone, id)
				return nil
			case err != nil:
				v.Problems[id], e = err, old
			}
			if e != nil {
				next[id] = e
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	f.known = next
	for id, e := range next {
		if e.block != nil {
			v.Blocks = append(v.Blocks, e.block)
		} else {
			v.Partial[id] = e.partial
		}
	}
	slices.SortFunc(v.Blocks, byID)
	slices.SortFunc(v.Gone, ulid.ULID.Compare)
	v.Requests = int(requests.Load())
	f.sweep(found)
	return v, nil
}

// listAgain is how often a listing is begun in which an object went away under the provider's
// hands: a file system reads what it is about to name.
const listAgain = 5

// list says which blocks there are, and which of their objects that matter here.
func (f *Fetcher) list(ctx context.Context, requests *atomic.Int64) (map[ulid.ULID]*listed, error) {
	can := f.bkt.SupportedIterOptions()
	var err error
	for range listAgain {
		var found map[ulid.ULID]*listed
		switch {
		case !slices.Contains(can, objstore.Recursive):
			found, err = f.listEach(ctx, requests)
		case slices.Contains(can, objstore.UpdatedAt):
			found, err = f.listAll(ctx, requests, func(each func(string, time.Time)) error {
				return f.bkt.IterWithAttributes(ctx, "", func(a objstore.IterObjectAttributes) error {
					at, _ := a.LastModified()
					each(a.Name, at)
					return nil
				}, objstore.WithRecursiveIter(), objstore.WithUpdatedAt())
			})
		default:
			found, err = f.listAll(ctx, requests, func(each func(string, time.Time)) error {
				return f.bkt.Iter(ctx, "", func(name string) error {
					each(name, time.Time{})
					return nil
				}, objstore.WithRecursiveIter())
			})
		}
		if err == nil {
			return found, nil
		}
		if !f.bkt.IsObjNotFoundErr(err) {
			break
		}
	}
	return nil, err
}

// listAll takes one listing of everything.
func (f *Fetcher) listAll(ctx context.Context, requests *atomic.Int64, iter func(func(string, time.Time)) error) (map[ulid.ULID]*listed, error) {
	found := map[ulid.ULID]*listed{}
	f.request(requests, opList)
	err := iter(func(name string, at time.Time) {
		if id, ok := meta.IDFromName(name); ok {
			l := found[id]
			if l == nil {
				l = &listed{marks: map[meta.Kind]time.Time{}}
				found[id] = l
			}
			_, rel, _ := strings.Cut(name, objstore.DirDelim)
			l.note(rel, at)
		}
	})
	if err == nil {
		err = ctx.Err() // providers may end a listing without a word
	}
	return found, err
}

// listEach takes one listing of the root, and one of each block: of those it says alone why
// they could not be listed.
func (f *Fetcher) listEach(ctx context.Context, requests *atomic.Int64) (map[ulid.ULID]*listed, error) {
	found := map[ulid.ULID]*listed{}
	f.request(requests, opList)
	err := f.bkt.Iter(ctx, "", func(name string) error {
		if id, ok := meta.IDFromName(name); ok {
			found[id] = &listed{marks: map[meta.Kind]time.Time{}}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(f.cfg.Concurrency)
	for id, l := range found {
		g.Go(func() error {
			f.request(requests, opList)
			one, cancel := context.WithTimeout(gctx, f.cfg.Timeout)
			defer cancel()
			l.err = f.bkt.Iter(one, id.String(), func(name string) error {
				_, rel, _ := strings.Cut(name, objstore.DirDelim)
				l.note(rel, time.Time{})
				return nil
			})
			return gctx.Err()
		})
	}
	return found, g.Wait()
}

// errGone says that an object that was listed is not there any more.
var errGone = errors.New("it went away")

// read reads what is new of a block. An error says what could not be read.
func (f *Fetcher) read(ctx context.Context, id ulid.ULID, l *listed, old *entry, requests *atomic.Int64) (*entry, error) {
	if l.err != nil {
		return nil, fmt.Errorf("list %s: %w", id, l.err)
	}
	e := &entry{marks: map[meta.Kind]*mark{}}
	var m *meta.Meta
	if l.meta == nil {
		e.partial = &Partial{State: NoMeta, Reason: errors.New("it has no " + meta.File)}
	} else if e.metaAt = *l.meta; old != nil && old.block != nil && old.metaAt.Equal(e.metaAt) {
		m = old.block.Meta
	} else {
		var err error
		switch m, err = f.readMeta(ctx, id, e.metaAt, requests); {
		case errors.Is(err, meta.ErrCorrupt):
			// It is not remembered: a file system shows a file while it is written, and the whole
			// one may have the same time.
			e.partial = &Partial{State: Corrupt, Reason: err}
		case err != nil:
			return nil, err
		}
	}
	marks, err := f.readMarks(ctx, id, l, old, e, requests)
	if err != nil {
		return nil, err
	}
	if e.partial != nil {
		e.partial.Newest, e.partial.Objects, e.partial.Marks = l.newest, l.objects, marks
		return e, nil
	}
	if old != nil && old.block != nil && old.block.Meta == m && maps.Equal(old.block.Marks, marks) {
		e.block = old.block
	} else {
		e.block = &Block{Meta: m, Marks: marks}
	}
	return e, nil
}

// readMarks reads the marks that were listed, into the entry for the next look too. Without a
// time it is not known whether a mark is the one of before, and it is read again: one that was
// taken away and made anew would otherwise count from its first making.
func (f *Fetcher) readMarks(ctx context.Context, id ulid.ULID, l *listed, old, e *entry, requests *atomic.Int64) (map[meta.Kind]*meta.Mark, error) {
	marks := map[meta.Kind]*meta.Mark{}
	for kind, at := range l.marks {
		if old != nil && old.marks[kind] != nil && !at.IsZero() && old.marks[kind].at.Equal(at) {
			e.marks[kind], marks[kind] = old.marks[kind], old.marks[kind].m
			continue
		}
		f.request(requests, opGet)
		data, err := f.get(ctx, path.Join(id.String(), kind.File()), maxMark)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, err := meta.ParseMark(id, kind, data)
		if err != nil {
			f.log.Warn("a mark of a block cannot be read, and counts as none", "block", id, "err", err)
			continue
		}
		if old != nil && old.marks[kind] != nil && *old.marks[kind].m == *m {
			m = old.marks[kind].m
		}
		e.marks[kind], marks[kind] = &mark{at, m}, m
	}
	return marks, nil
}

// maxMark is how much of a mark is read, in bytes; meta.ParseMark refuses what is longer.
const maxMark = 1 << 20

func (f *Fetcher) readMeta(ctx context.Context, id ulid.ULID, at time.Time, requests *atomic.Int64) (*meta.Meta, error) {
	if m := f.cached(id, at); m != nil {
		return m, nil
	}
	f.request(requests, opGet)
	data, err := f.get(ctx, path.Join(id.String(), meta.File), meta.MaxBytes)
	if err != nil {
		return nil, err
	}
	m, err := meta.Parse(id, data)
	if err != nil {
		return nil, err
	}
	if err := f.keep(id, at, data); err != nil {
		f.log.Warn("a meta.json cannot be kept on disk, and is read again after a restart", "block", id, "err", err)
	}
	return m, nil
}

// get reads an object of most bytes at the most, and one more of what is longer. Its error is
// errGone if the object is not there.
func (f *Fetcher) get(ctx context.Context, name string, most int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.Timeout)
	defer cancel()
	r, err := f.bkt.Get(ctx, name)
	var data []byte
	if err == nil {
		defer r.Close()
		data, err = io.ReadAll(io.LimitReader(r, most+1))
	}
	// Some providers do not know their own errors again once they are wrapped.
	if err != nil && f.bkt.IsObjNotFoundErr(err) {
		err = errGone
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	return data, nil
}

// On disk a meta.json has the time of the object that it was read from.

func (f *Fetcher) cacheFile(id ulid.ULID) string {
	return filepath.Join(f.cfg.CacheDir, id.String()+".json")
}

func (f *Fetcher) cached(id ulid.ULID, at time.Time) *meta.Meta {
	if f.cfg.CacheDir == "" {
		return nil
	}
	info, err := os.Stat(f.cacheFile(id))
	if err != nil || !at.IsZero() && !info.ModTime().Equal(at) {
		return nil
	}
	data, err := os.ReadFile(f.cacheFile(id))
	if err != nil {
		return nil
	}
	m, err := meta.Parse(id, data)
	if err != nil {
		f.log.Warn("a meta.json that was kept on disk is broken, and is read again", "block", id, "err", err)
		return nil
	}
	return m
}

func (f *Fetcher) keep(id ulid.ULID, at time.Time, data []byte) error {
	if f.cfg.CacheDir == "" {
		return nil
	}
	if err := os.MkdirAll(f.cfg.CacheDir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(f.cfg.CacheDir, ".new-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil && !at.IsZero() {
		err = os.Chtimes(tmp.Name(), at, at)
	}
	if err == nil {
		err = os.Rename(tmp.Name(), f.cacheFile(id))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
	return err
}

// sweep removes from the disk what is not in the bucket any more, and what was never
// finished.
func (f *Fetcher) sweep(found map[ulid.ULID]*listed) {
	if f.cfg.CacheDir == "" {
		return
	}
	files, err := os.ReadDir(f.cfg.CacheDir)
	if err != nil {
		return
	}
	for _, e := range files {
		id, ok := meta.IDFromName(strings.TrimSuffix(e.Name(), ".json"))
		if ok && found[id] != nil && (found[id].meta != nil || found[id].err != nil) || !ok && !strings.HasPrefix(e.Name(), ".new-") {
			continue
		}
		if err := os.Remove(filepath.Join(f.cfg.CacheDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.log.Warn("what is left of a block that is gone cannot be removed", "file", e.Name(), "err", err)
		}
	}
}

// byID compares blocks.
func byID(a, b *Block) int { return a.Meta.ULID.Compare(b.Meta.ULID) }
