// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package bucketstore keeps the view of the blocks of a bucket up to date, for the backend that
// reads them.
package bucketstore

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/backends/bucket"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/view"
	"github.com/promweave/promweave/sdk/backend"
)

// Config of a Store.
type Config struct {
	// Dir is for index headers and metas, and can be lost.
	Dir string
	// SyncInterval is the time between two looks.
	SyncInterval time.Duration
	Policy       view.Policy
	Concurrency  int
	// MaxBytes is the most that one request may fetch; 0 is any number.
	MaxBytes int64
}

// Store is the backend over the blocks of a bucket as they are.
type Store struct {
	*bucket.Backend
	bkt     objstore.Bucket
	fetcher *view.Fetcher
	policy  view.Policy
	log     *slog.Logger
	blocks  atomic.Pointer[[]*meta.Meta]
	seen    atomic.Pointer[Look]

	cancel context.CancelFunc
	done   chan struct{}
}

var _ backend.Closer = (*Store)(nil)

// Look is what a look at the bucket came to. It is shared, and not changed.
type Look struct {
	At        time.Time
	View      *view.View
	Selection *view.Selection
	// Err is why a later look failed.
	Err error
}

// Last is the last look that succeeded.
func (s *Store) Last() *Look { return s.seen.Load() }

// firstLook is how long Open waits for the first look.
const firstLook = 30 * time.Second

// Open takes a first look at the bucket, which has to succeed: with no idea of what
// is there, nothing would be missed.
//
// The store owns the bucket, and closes it, if it is opened or not.
func Open(ctx context.Context, bkt objstore.Bucket, cfg Config, log *slog.Logger) (_ *Store, err error) {
	s := &Store{bkt: bkt, policy: cfg.Policy, log: log, done: make(chan struct{}),
		fetcher: view.NewFetcher(bkt, view.Config{CacheDir: filepath.Join(cfg.Dir, "metas"), Concurrency: cfg.Concurrency, Logger: log})}
	defer func() {
		if err != nil {
			err = errors.Join(err, bkt.Close())
		}
	}()
	look, cancel := context.WithTimeout(ctx, firstLook)
	defer cancel()
	if err := s.look(look); err != nil {
		return nil, err
	}
	s.Backend, err = bucket.New(bkt, s, bucket.Config{Dir: filepath.Join(cfg.Dir, "headers"), Concurrency: cfg.Concurrency, MaxBytes: cfg.MaxBytes}, log)
	if err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	s.cancel = stop
	go s.run(run, cfg.SyncInterval)
	return s, nil
}

// Blocks implements bucket.Source.
func (s *Store) Blocks() []*meta.Meta { return *s.blocks.Load() }

func (s *Store) look(ctx context.Context) error {
	began := time.Now()
	v, err := s.fetcher.Fetch(ctx)
	if err != nil {
		return err
	}
	sel := v.Select(s.policy.Filters(time.Now())...)
	metas := sel.Metas()
	s.seen.Store(&Look{At: began, View: v, Selection: sel})
	old := s.blocks.Swap(&metas)
	for id, err := range v.Problems {
		s.log.Warn("something of a block cannot be read now; it is taken as it was", "block", id, "err", err)
	}
	if old == nil || len(*old) != len(metas) {
		s.log.Info("the blocks of the bucket", "blocks", len(metas), "partial", len(v.Partial), "left_out", len(sel.Dropped), "requests", v.Requests, "took", time.Since(began).Round(time.Millisecond))
	}
	return nil
}

func (s *Store) run(ctx context.Context, every time.Duration) {
	defer close(s.done)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := s.look(ctx); err != nil && ctx.Err() == nil {
				last := *s.seen.Load()
				last.Err = err
				s.seen.Store(&last)
				s.log.Error("the bucket cannot be looked at; its blocks are taken as they were", "err", err)
			}
		}
	}
}

// Close implements backend.Closer.
func (s *Store) Close() error {
	s.cancel()
	<-s.done
	return errors.Join(s.Backend.Close(), s.bkt.Close())
}
