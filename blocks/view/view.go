// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package view says which blocks a bucket has, and which of them count. The rules are those
// of Thanos (pkg/block, fetcher.go); the requests that it takes are fewer: where the provider
// lists recursively and with times, one listing says which blocks and marks there are, and
// only what is new or has changed is read.
package view

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
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
// upload that goes on or was broken off, or a deletion.
type Partial struct {
	Reason error
	// Newest is when the newest of its objects was written; zero if that is not known.
	Newest time.Time
}

// View is what a bucket had at one moment. It is shared, and not changed.
type View struct {
	// Blocks ascend by id.
	Blocks []*Block
	// Partial are the ones that nobody may read.
	Partial map[ulid.ULID]*Partial
	// Problems are blocks of which something could not be read now. What was known of them
	// before is in Blocks: for a moment's fault nothing is dropped.
	Problems map[ulid.ULID]error
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
	Logger      *slog.Logger
}

// Fetcher looks into one bucket again and again. It is safe for concurrent use.
type Fetcher struct {
	bkt objstore.BucketReader
	cfg Config
	log *slog.Logger

	// turn is held by the look that is being taken.
	turn    chan struct{}
	started atomic.Int64
	// These belong to who has the turn.
	last    *View
	lastSeq int64
	known   map[ulid.ULID]*entry
}

// entry is what is remembered of a block.
type entry struct {
	metaAt time.Time
	meta   *meta.Meta
	marks  map[meta.Kind]*mark
	block  *Block // of the last look, if nothing has changed since
}

type mark struct {
	at time.Time
	m  *meta.Mark // nil if it is corrupt, which counts as absent
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
	return &Fetcher{bkt: bkt, cfg: cfg, log: log, turn: make(chan struct{}, 1), known: map[ulid.ULID]*entry{}}
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
	if err != nil {
		return nil, err
	}
	f.last, f.lastSeq = v, seq
	return v, nil
}

// listed is what a listing says of a block. Times are zero where the provider has none.
type listed struct {
	meta   *time.Time
	marks  map[meta.Kind]time.Time
	newest time.Time
}

func (l *listed) note(rel string, at time.Time) {
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
			e, partial, err := f.read(gctx, id, l, old, &requests)
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				v.Problems[id] = err
			case partial != nil:
				v.Partial[id] = &Partial{partial, l.newest}
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
	for _, e := range next {
		if e.meta != nil {
			v.Blocks = append(v.Blocks, e.block)
		}
	}
	slices.SortFunc(v.Blocks, func(a, b *Block) int { return a.Meta.ULID.Compare(b.Meta.ULID) })
	v.Requests = int(requests.Load())
	f.sweep(next)
	return v, nil
}

// list says which blocks there are, and which of their objects that matter here.
func (f *Fetcher) list(ctx context.Context, requests *atomic.Int64) (map[ulid.ULID]*listed, error) {
	found := map[ulid.ULID]*listed{}
	of := func(id ulid.ULID) *listed {
		l := found[id]
		if l == nil {
			l = &listed{marks: map[meta.Kind]time.Time{}}
			found[id] = l
		}
		return l
	}
	if can := f.bkt.SupportedIterOptions(); slices.Contains(can, objstore.Recursive) && slices.Contains(can, objstore.UpdatedAt) {
		requests.Add(1)
		err := f.bkt.IterWithAttributes(ctx, "", func(a objstore.IterObjectAttributes) error {
			id, ok := meta.IDFromName(a.Name)
			if !ok {
				return nil
			}
			at, _ := a.LastModified()
			_, rel, _ := strings.Cut(a.Name, objstore.DirDelim)
			of(id).note(rel, at)
			return nil
		}, objstore.WithRecursiveIter(), objstore.WithUpdatedAt())
		return found, err
	}
	requests.Add(1)
	err := f.bkt.Iter(ctx, "", func(name string) error {
		if id, ok := meta.IDFromName(name); ok {
			of(id)
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
			requests.Add(1)
			return f.bkt.Iter(gctx, id.String(), func(name string) error {
				_, rel, _ := strings.Cut(name, objstore.DirDelim)
				l.note(rel, time.Time{})
				return nil
			})
		})
	}
	return found, g.Wait()
}

// read reads what is new of a block. partial says why it is none; an error that something
// could not be read, and what is returned beside it is what was known before.
func (f *Fetcher) read(ctx context.Context, id ulid.ULID, l *listed, old *entry, requests *atomic.Int64) (e *entry, partial, err error) {
	if l.meta == nil {
		return nil, errors.New("it has no " + meta.File), nil
	}
	e = &entry{metaAt: *l.meta, marks: map[meta.Kind]*mark{}}
	same := old != nil && old.metaAt.Equal(*l.meta)
	if same {
		e.meta = old.meta
	} else if e.meta, err = f.readMeta(ctx, id, *l.meta, requests); err != nil {
		switch {
		case errors.Is(err, meta.ErrCorrupt):
			return nil, err, nil
		case f.bkt.IsObjNotFoundErr(err):
			return nil, errors.New("its " + meta.File + " went away"), nil
		}
		return old, nil, err
	}
	for kind, at := range l.marks {
		if old != nil && old.marks[kind] != nil && old.marks[kind].at.Equal(at) {
			e.marks[kind] = old.marks[kind]
			continue
		}
		same = false
		requests.Add(1)
		data, err := f.get(ctx, path.Join(id.String(), kind.File()), 1<<20)
		if f.bkt.IsObjNotFoundErr(err) {
			continue
		}
		if err != nil {
			return old, nil, err
		}
		m, err := meta.ParseMark(id, kind, data)
		if err != nil {
			f.log.Warn("a mark of a block cannot be read, and counts as none", "block", id, "err", err)
		}
		e.marks[kind] = &mark{at, m}
	}
	if same && len(e.marks) == len(old.marks) {
		return old, nil, nil
	}
	e.block = &Block{Meta: e.meta, Marks: map[meta.Kind]*meta.Mark{}}
	for kind, m := range e.marks {
		if m.m != nil {
			e.block.Marks[kind] = m.m
		}
	}
	return e, nil, nil
}

func (f *Fetcher) readMeta(ctx context.Context, id ulid.ULID, at time.Time, requests *atomic.Int64) (*meta.Meta, error) {
	if m := f.cached(id, at); m != nil {
		return m, nil
	}
	requests.Add(1)
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

func (f *Fetcher) get(ctx context.Context, name string, most int64) ([]byte, error) {
	r, err := f.bkt.Get(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, most+1))
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
func (f *Fetcher) sweep(known map[ulid.ULID]*entry) {
	if f.cfg.CacheDir == "" {
		return
	}
	files, err := os.ReadDir(f.cfg.CacheDir)
	if err != nil {
		return
	}
	for _, e := range files {
		id, ok := meta.IDFromName(strings.TrimSuffix(e.Name(), ".json"))
		if ok && known[id] != nil || !ok && !strings.HasPrefix(e.Name(), ".new-") {
			continue
		}
		if err := os.Remove(filepath.Join(f.cfg.CacheDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.log.Warn("what is left of a block that is gone cannot be removed", "file", e.Name(), "err", err)
		}
	}
}

// byID compares blocks.
func byID(a, b *Block) int { return cmp.Compare(a.Meta.ULID.String(), b.Meta.ULID.String()) }
