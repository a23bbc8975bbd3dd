// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package tsdb

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

const (
	defaultRetention = 15 * 24 * time.Hour
	outOfOrderWindow = 5 * time.Minute
	exemplarsHeld    = 10_000
)

// writable is an embedded database.
type writable struct {
	db *tsdb.DB
}

// OpenWritable opens or makes a TSDB in the directory and locks it. reg may be
// nil; it gets the metrics of the TSDB library.
func OpenWritable(cfg Config, logger *slog.Logger, reg prometheus.Registerer) (*Backend, error) {
	if cfg.Retention == 0 {
		cfg.Retention = defaultRetention
	}
	if cfg.Retention < 0 {
		return nil, fmt.Errorf("tsdb %s: retention is %s, it must be above zero", cfg.Path, cfg.Retention)
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	opts := tsdb.DefaultOptions()
	opts.RetentionDuration = cfg.Retention.Milliseconds()
	opts.OutOfOrderTimeWindow = outOfOrderWindow.Milliseconds()
	opts.EnableExemplarStorage = true
	opts.MaxExemplars = exemplarsHeld
	db, err := tsdb.Open(cfg.Path, logger, reg, opts, nil)
	if err != nil {
		return nil, fmt.Errorf("tsdb: cannot open %s for writing, check that it is writable and that no other process owns it: %w", cfg.Path, err)
	}
	b := &Backend{
		cfg: cfg, logger: logger, ext: withoutEmpty(cfg.ExternalLabels), own: &writable{db: db},
		cancel: func(error) {}, done: make(chan struct{}),
	}
	close(b.done)
	return b, nil
}

func (w *writable) close() error { return w.db.Close() }

// Appendable takes samples; nil for a read-only backend.
func (b *Backend) Appendable() storage.Appendable {
	if b.own == nil {
		return nil
	}
	return b.own.db
}

// DB is the database underneath; nil for a read-only backend.
func (b *Backend) DB() *tsdb.DB {
	if b.own == nil {
		return nil
	}
	return b.own.db
}

func (w *writable) minTime() int64 {
	mint := w.db.Head().MinTime()
	for _, bl := range w.db.Blocks() {
		mint = min(mint, bl.Meta().MinTime)
	}
	if mint == math.MaxInt64 {
		return math.MinInt64
	}
	// Samples may still come in this much late.
	if late := outOfOrderWindow.Milliseconds(); mint > math.MinInt64+late {
		mint -= late
	}
	return mint
}

func (w *writable) source(mint, maxt int64) (*source, error) {
	q, err := w.db.ChunkQuerier(mint, maxt)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInternal, "tsdb %s: %w", w.db.Dir(), err)
	}
	lq, err := w.db.Querier(mint, maxt)
	if err != nil {
		q.Close()
		return nil, backend.Errorf(backend.ErrInternal, "tsdb %s: %w", w.db.Dir(), err)
	}
	return &source{what: "tsdb " + w.db.Dir(), querier: q, labels: lq, close: func() {
		q.Close()
		lq.Close()
	}}, nil
}

// Exemplars implements backend.ExemplarsBackend for a writable backend.
func (b *Backend) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, mint, maxt int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	return nil, nil, backend.Errorf(backend.ErrUnsupported, "tsdb %s: exemplars are not read from a directory that another process owns", b.cfg.Path)
}
