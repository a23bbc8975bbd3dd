// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package steady makes reads of a bucket that is slow, throttles or breaks off as good as they can
// be: a read that fails for a moment goes on where it was, and no more than so many run at once.
package steady

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"github.com/thanos-io/objstore"
)

// Config of a Bucket; zero values mean the defaults in brackets.
type Config struct {
	// Concurrency is how many reads run at once, over all requests [32].
	Concurrency int
	// Attempts is how often a read is tried in all [3], and Pause how long it waits before the
	// second, twice as long before the next, and so on [100ms]. A little chance is added, so that
	// readers who were throttled together do not come back together.
	Attempts int
	Pause    time.Duration
}

// Bucket reads ranges of a bucket. It is safe for concurrent use.
type Bucket struct {
	objstore.BucketReader
	cfg   Config
	slots chan struct{}
}

// New returns one over a bucket, which stays the caller's.
func New(bkt objstore.BucketReader, cfg Config) *Bucket {
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = 32
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = 3
	}
	if cfg.Pause <= 0 {
		cfg.Pause = 100 * time.Millisecond
	}
	return &Bucket{BucketReader: bkt, cfg: cfg, slots: make(chan struct{}, cfg.Concurrency)}
}

// GetRange implements objstore.BucketReader. The reader has to be closed: it holds a slot. What
// is not there, or not allowed, is not tried again.
func (b *Bucket) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	r := &reader{b: b, ctx: ctx, name: name, off: off, left: n}
	if err := r.open(); err != nil {
		<-b.slots
		return nil, err
	}
	return r, nil
}

// reader is a range that is read. It is used by one goroutine, as readers are.
type reader struct {
	b         *Bucket
	ctx       context.Context
	name      string
	off, left int64 // -1 is to the end
	failed    int
	now       io.ReadCloser
	closed    bool
}

// tried is how long an attempt takes that a provider's client has repeated itself, with pauses:
// to do all that again only makes a store that is down slower to notice.
const tried = time.Second

// open begins to read at off, as often as is allowed.
func (r *reader) open() error {
	for {
		began := time.Now()
		now, err := r.b.BucketReader.GetRange(r.ctx, r.name, r.off, r.left)
		if err == nil {
			r.now = now
			return nil
		}
		if time.Since(began) >= tried || !r.again(err) {
			return err
		}
	}
}

// again waits before another attempt; false is that there is none.
func (r *reader) again(err error) bool {
	if r.failed++; r.failed >= r.b.cfg.Attempts || r.ctx.Err() != nil || r.b.IsObjNotFoundErr(err) || r.b.IsAccessDeniedErr(err) {
		return false
	}
	pause := r.b.cfg.Pause << (r.failed - 1)
	t := time.NewTimer(pause + rand.N(pause))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	for {
		n, err := r.now.Read(p)
		r.off += int64(n)
		if r.left > 0 {
			r.left = max(0, r.left-int64(n))
		}
		switch {
		case err == nil, errors.Is(err, io.EOF):
			return n, err
		case n > 0:
			return n, nil // the next call finds the error again, or goes on
		case !r.again(err):
			return 0, err
		}
		_ = r.now.Close() // it is of no use any more
		if err := r.open(); err != nil {
			r.now = io.NopCloser(errorReader{err})
			return 0, err
		}
	}
}

// Close implements io.Closer.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	err := r.now.Close()
	<-r.b.slots
	return err
}

// errorReader is what is left of a read that failed.
type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }
