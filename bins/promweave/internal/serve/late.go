// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"iter"
	"sync"

	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

// late is a read-only TSDB whose directory could not be opened, because it is not
// mounted yet, say. It is expected and unhealthy, and every Info tries again; once
// it is open, it is that TSDB.
type late struct {
	open func() (*tsdb.Backend, error)

	mu     sync.Mutex
	b      *tsdb.Backend
	err    error         // of the last try
	trying chan struct{} // closed at the end of the try that runs; nil if none does
	closed bool
}

var (
	_ backend.Backend           = (*late)(nil)
	_ backend.Closer            = (*late)(nil)
	_ backend.StatisticsBackend = (*late)(nil)
)

// Info tries to open the directory. A try takes as long as it takes to read the
// log in it; one that outlasts ctx goes on, and a later Info finds what it opened.
func (l *late) Info(ctx context.Context) (backend.Info, error) {
	l.mu.Lock()
	if l.b == nil && !l.closed && l.trying == nil {
		l.trying = make(chan struct{})
		go l.try(l.trying)
	}
	trying := l.trying
	l.mu.Unlock()
	if trying != nil {
		select {
		case <-trying:
		case <-ctx.Done():
			return backend.Info{}, backend.Errorf(backend.ErrUnavailable, "the directory is still being opened: %w", context.Cause(ctx))
		}
	}
	b, err := l.now()
	if err != nil {
		return backend.Info{}, err
	}
	return b.Info(ctx)
}

func (l *late) try(done chan struct{}) {
	b, err := l.open()
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.b, l.err = b, err
	}
	l.trying = nil
	l.mu.Unlock()
	if closed && b != nil {
		_ = b.Close() // nobody has ever used it
	}
	close(done)
}

// now is the open TSDB, or why there is none.
func (l *late) now() (*tsdb.Backend, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.b != nil:
		return l.b, nil
	case l.closed:
		return nil, backend.Errorf(backend.ErrUnavailable, "the backend was closed")
	case l.err == nil:
		return nil, backend.Errorf(backend.ErrUnavailable, "the directory is not open yet")
	}
	return nil, backend.Errorf(backend.ErrUnavailable, "%w", l.err)
}

// Series asks the TSDB.
func (l *late) Series(ctx context.Context, r *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	b, err := l.now()
	if err != nil {
		return backend.Fail(err)
	}
	return b.Series(ctx, r)
}

// LabelNames asks the TSDB.
func (l *late) LabelNames(ctx context.Context, r *backend.LabelNamesRequest) (*backend.Labels, error) {
	b, err := l.now()
	if err != nil {
		return nil, err
	}
	return b.LabelNames(ctx, r)
}

// LabelValues asks the TSDB.
func (l *late) LabelValues(ctx context.Context, r *backend.LabelValuesRequest) (*backend.Labels, error) {
	b, err := l.now()
	if err != nil {
		return nil, err
	}
	return b.LabelValues(ctx, r)
}

// Statistics asks the TSDB. It is all that one which is only read offers beside
// the four calls of every backend.
func (l *late) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	b, err := l.now()
	if err != nil {
		return nil, nil, err
	}
	return b.Statistics(ctx, limit)
}

// Close closes the TSDB if it is open. A try that still runs cannot be stopped: it
// closes what it opens.
func (l *late) Close() error {
	l.mu.Lock()
	b := l.b
	l.b, l.closed = nil, true
	l.mu.Unlock()
	if b == nil {
		return nil
	}
	return b.Close()
}

// openReadOnly opens a TSDB that is only read. One that is required must be there;
// any other may come later.
func openReadOnly(required bool, open func() (*tsdb.Backend, error)) (backend.Backend, error) {
	b, err := open()
	switch {
	case err == nil:
		return b, nil
	case required:
		return nil, err
	}
	return &late{open: open, err: err}, nil
}
