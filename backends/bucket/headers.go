// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/backends/bucket/internal/header"
	"github.com/promweave/promweave/blocks/meta"
)

// headers are the index headers of the blocks: on disk once somebody asked for a block, open as
// long as they are used, and for some time after.
type headers struct {
	bkt  objstore.BucketReader
	dir  string
	idle time.Duration
	log  *slog.Logger

	mu     sync.Mutex
	open   map[ulid.ULID]*opened
	closed bool
}

// opened is the header of one block. turn is held by who builds and opens it.
type opened struct {
	turn chan struct{}

	// These belong to headers.mu.
	h     *header.Reader
	users int
	used  time.Time
}

func newHeaders(bkt objstore.BucketReader, dir string, idle time.Duration, log *slog.Logger) *headers {
	return &headers{bkt: bkt, dir: dir, idle: idle, log: log, open: map[ulid.ULID]*opened{}}
}

var errClosed = errors.New("the backend was closed")

// acquire returns the header of a block, to be released. What failed is tried again by the next
// call: the fault may have been one of a moment.
func (hs *headers) acquire(ctx context.Context, m *meta.Meta) (*header.Reader, func(), error) {
	hs.mu.Lock()
	if hs.closed {
		hs.mu.Unlock()
		return nil, nil, errClosed
	}
	o := hs.open[m.ULID]
	if o == nil {
		o = &opened{turn: make(chan struct{}, 1)}
		hs.open[m.ULID] = o
	}
	o.users++
	h := o.h
	hs.mu.Unlock()
	release := func() {
		hs.mu.Lock()
		defer hs.mu.Unlock()
		o.users--
		o.used = time.Now()
	}
	if h != nil {
		return h, release, nil
	}
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
	case <-ctx.Done():
		release()
		return nil, nil, context.Cause(ctx)
	}
	hs.mu.Lock()
	h = o.h
	hs.mu.Unlock()
	if h == nil {
		var err error
		if h, err = hs.load(ctx, m); err != nil {
			release()
			return nil, nil, err
		}
		hs.mu.Lock()
		o.h = h
		hs.mu.Unlock()
	}
	return h, release, nil
}

func (hs *headers) load(ctx context.Context, m *meta.Meta) (*header.Reader, error) {
	dir := filepath.Join(hs.dir, m.ULID.String())
	file := filepath.Join(dir, header.FileName)
	h, err := header.Open(file)
	if err == nil {
		return h, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		hs.log.Warn("an index header on disk cannot be used, and is built again", "block", m.ULID, "err", err)
	}
	size, ok := m.Size(meta.IndexFile)
	if !ok {
		name := path.Join(m.ULID.String(), meta.IndexFile)
		a, err := hs.bkt.Attributes(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("size of %s: %w", name, err)
		}
		size = a.Size
	}
	if err := header.Build(ctx, hs.bkt, m.ULID, size, dir); err != nil {
		return nil, err
	}
	return header.Open(file)
}

// sweep closes what nobody has used for a while, and removes what is of blocks that are gone.
func (hs *headers) sweep(known func(ulid.ULID) bool, now time.Time) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for id, o := range hs.open {
		if o.users > 0 || known(id) && now.Sub(o.used) < hs.idle {
			continue
		}
		if o.h != nil {
			if err := o.h.Close(); err != nil {
				hs.log.Warn("closing an index header", "block", id, "err", err)
			}
		}
		delete(hs.open, id)
	}
	entries, err := os.ReadDir(hs.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		id, ok := meta.IDFromName(e.Name())
		if ok && !known(id) && hs.open[id] == nil {
			if err := os.RemoveAll(filepath.Join(hs.dir, e.Name())); err != nil {
				hs.log.Warn("what is left of a block that is gone cannot be removed", "block", id, "err", err)
			}
		}
	}
}

func (hs *headers) close() (err error) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.closed = true
	for _, o := range hs.open {
		if o.h != nil {
			err = errors.Join(err, o.h.Close())
		}
	}
	return err
}
