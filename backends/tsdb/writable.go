// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package tsdb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
)

const (
	defaultRetention = 15 * 24 * time.Hour
	outOfOrderWindow = 5 * time.Minute
	exemplarsHeld    = 10_000
)

// writable is an embedded database.
type writable struct {
	db       *tsdb.DB
	metadata MetadataSource
	// reg holds the metrics of db.
	reg prometheus.Gatherer
	// exposed is where they are seen too, if anywhere.
	exposed prometheus.Registerer
	view    prometheus.Collector
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
	if cfg.Uncompacted {
		// By default the library compacts nothing but what overlaps.
		opts.EnableOverlappingCompaction = false
	}
	var opened atomic.Pointer[tsdb.DB]
	if cfg.Keep != nil {
		opts.BlocksToDelete = func(blocks []*tsdb.Block) map[ulid.ULID]struct{} {
			db := opened.Load()
			if db == nil { // it is being opened, and will ask again
				return nil
			}
			out := tsdb.DefaultBlocksToDelete(db)(blocks)
			for _, bl := range blocks {
				if _, old := out[bl.Meta().ULID]; old && cfg.Keep(bl.Meta()) {
					delete(out, bl.Meta().ULID)
				}
			}
			return out
		}
	}
	// The library never unregisters; a registry of its own lets a directory be
	// opened again.
	own := prometheus.NewRegistry()
	db, err := tsdb.Open(cfg.Path, logger, own, opts, nil)
	if err != nil {
		return nil, fmt.Errorf("tsdb: cannot open %s for writing, check that it is writable and that no other process owns it: %w", cfg.Path, err)
	}
	opened.Store(db)
	b := &Backend{
		cfg: cfg, logger: logger, ext: withoutEmpty(cfg.ExternalLabels), own: &writable{db: db, reg: own},
		cancel: func(error) {}, done: make(chan struct{}),
	}
	close(b.done)
	if reg != nil {
		if err := reg.Register(own); err != nil {
			return nil, errors.Join(fmt.Errorf("tsdb %s: %w", cfg.Path, err), db.Close())
		}
		b.own.exposed, b.own.view = reg, own
	}
	return b, nil
}

func (w *writable) close() error {
	if w.exposed != nil {
		w.exposed.Unregister(w.view)
	}
	return w.db.Close()
}

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

// MetadataSource knows type, help and unit of metrics; a scrape.Scraper is one.
type MetadataSource interface {
	Metadata(metric string, limit int) map[string][]*storepb.Meta
}

// UseMetadata makes MetricMetadata answer from src. It is to be called before the
// backend is used, on a writable one.
func (b *Backend) UseMetadata(src MetadataSource) { b.own.metadata = src }

// MetricMetadata implements backend.MetadataBackend.
func (b *Backend) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	if b.own == nil || b.own.metadata == nil {
		return nil, nil, backend.Errorf(backend.ErrUnsupported, "tsdb %s: nothing here knows the metadata of metrics", b.cfg.Path)
	}
	return b.own.metadata.Metadata(metric, limit), nil, nil
}

// Exemplars implements backend.ExemplarsBackend for a writable backend.
func (b *Backend) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, mint, maxt int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	if b.own == nil {
		return nil, nil, backend.Errorf(backend.ErrUnsupported, "tsdb %s: exemplars are not read from a directory that another process owns", b.cfg.Path)
	}
	var rest [][]*labels.Matcher
	for _, ms := range selectors {
		if r, ok := shaping.SplitMatchers(b.ext, ms); ok {
			rest = append(rest, r)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	if len(rest) == 0 || mint > maxt {
		return nil, nil, nil
	}
	q, err := b.own.db.ExemplarQuerier(ctx)
	if err != nil {
		return nil, nil, backend.Errorf(backend.ErrInternal, "tsdb %s: %w", b.cfg.Path, err)
	}
	found, err := q.Select(mint, maxt, rest...)
	if err != nil {
		return nil, nil, backend.Errorf(backend.ErrInternal, "tsdb %s: %w", b.cfg.Path, err)
	}
	out := make([]*storepb.ExemplarData, len(found))
	for i, f := range found {
		d := &storepb.ExemplarData{SeriesLabels: labelSet(shaping.ExtendLabels(f.SeriesLabels, b.ext, nil))}
		for _, e := range f.Exemplars {
			d.Exemplars = append(d.Exemplars, &storepb.Exemplar{Labels: labelSet(e.Labels), Value: e.Value, Ts: e.Ts})
		}
		out[i] = d
	}
	return out, nil, nil
}

func labelSet(ls labels.Labels) *storepb.LabelSet {
	out := &storepb.LabelSet{}
	ls.Range(func(l labels.Label) { out.Labels = append(out.Labels, &storepb.Label{Name: l.Name, Value: l.Value}) })
	return out
}

// Statistics implements backend.StatisticsBackend: they are of the head, as those
// of Prometheus are. limit < 1 is 10 entries a table.
func (b *Backend) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	if limit < 1 {
		limit = 10
	}
	head := &storepb.HeadStatistics{}
	stats := &index.PostingsStats{}
	var notices []backend.Notice
	if b.own != nil {
		h := b.own.db.Head().Stats(model.MetricNameLabel, limit)
		head.NumSeries, head.MinTime, head.MaxTime, stats = h.NumSeries, h.MinTime, h.MaxTime, h.IndexPostingStats
		if n, err := gatheredChunks(b.own.reg); err == nil {
			head.ChunkCount = n
		}
	} else {
		v, _, err := b.acquire()
		if err != nil {
			return nil, nil, err
		}
		defer b.release(v)
		if v.headErr != nil {
			notices = append(notices, backend.Notice{Kind: backend.NoticeMissing, Text: v.headErr.Error()})
		}
		if v.head != nil {
			series, chunks := v.head.Stats()
			head.NumSeries, head.ChunkCount = uint64(series), int64(chunks)
			head.MinTime, head.MaxTime, _ = v.head.Bounds()
			stats = v.head.PostingsStats(model.MetricNameLabel, limit)
		}
	}
	head.NumLabelPairs = uint64(stats.NumLabelPairs)
	return &storepb.TSDBStatisticsEntry{
		HeadStatistics:              head,
		SeriesCountByMetricName:     table(stats.CardinalityMetricsStats),
		LabelValueCountByLabelName:  table(stats.CardinalityLabelStats),
		MemoryInBytesByLabelName:    table(stats.LabelValueStats),
		SeriesCountByLabelValuePair: table(stats.LabelValuePairsStats),
	}, notices, nil
}

func table(stats []index.Stat) []*storepb.Statistic {
	out := make([]*storepb.Statistic, len(stats))
	for i, s := range stats {
		out[i] = &storepb.Statistic{Name: s.Name, Value: s.Count}
	}
	return out
}

// gatheredChunks is the number of chunks in the head, which the library tells in
// a metric only.
func gatheredChunks(g prometheus.Gatherer) (int64, error) {
	families, err := g.Gather()
	if err != nil {
		return 0, err
	}
	for _, f := range families {
		if f.GetName() == "prometheus_tsdb_head_chunks" && len(f.GetMetric()) == 1 {
			return int64(f.GetMetric()[0].GetGauge().GetValue()), nil
		}
	}
	return 0, fmt.Errorf("no prometheus_tsdb_head_chunks")
}

var (
	_ backend.ExemplarsBackend  = (*Backend)(nil)
	_ backend.MetadataBackend   = (*Backend)(nil)
	_ backend.StatisticsBackend = (*Backend)(nil)
	_ backend.Closer            = (*Backend)(nil)
)
