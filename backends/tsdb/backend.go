// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package tsdb is the backend over a Prometheus TSDB directory.
//
// # Read-only
//
// Open reads a directory that a running Prometheus may own. It takes no lock and
// writes nothing there, so that a read-only mount will do. It needs no scratch
// directory either.
//
// A view is what one query sees: a set of open blocks, and an image in memory of
// what Prometheus has in its head. A new view is made every Config.Refresh (5 s),
// so that a sample is seen at most that long after Prometheus wrote it to its log.
// A query holds its view to the end: blocks deleted meanwhile stay open (their
// files are mapped, and unlinking does not hurt a map), and the image keeps what
// the view may ask for.
//
// The image comes from the write-ahead log, followed as it grows, and from the
// write-behind log, which holds out-of-order samples; see package follow. It
// needs about the memory of Prometheus' own head: some 1.5 to 2 bytes a sample and
// one to two kilobytes a series. Open reads the log from its checkpoint, which
// takes as long as a restart of Prometheus does; afterwards the cost of a view is
// that of what is new.
//
// No sample is missing and none is wrong, because of the order of things:
// Prometheus makes a block visible before it cuts off the log that the block was
// made of, and a view lists the blocks after it has read the logs. Samples older
// than the end of the last block that was not made of out-of-order samples come
// from blocks only; this is the rule by which Prometheus itself restarts. So a
// block imported by hand that reaches into the head's time range hides the head
// before its end, here and after a restart of Prometheus.
// A sample that is both in a block and in the image comes twice, in overlapping
// chunks, which callers merge.
//
// Limits: label names and values of the image are not bounded in time. Exemplars
// and metadata are not read from the log. Series of an agent-mode directory, which
// has no blocks, are those of its log.
//
// # Writable
//
// OpenWritable owns the directory: it is an embedded database for Promweave's own
// metrics, which package scrape fills.
package tsdb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/promweave/promweave/backends/tsdb/internal/follow"
	"github.com/promweave/promweave/sdk/backend"
)

// Config says which directory to serve, and how.
type Config struct {
	// Path is the TSDB directory, the one with wal/ and the blocks in it.
	Path string
	// ExternalLabels are put on every series. They win over stored labels.
	ExternalLabels labels.Labels
	// Refresh is how often a read-only backend looks for new data; 0 is 5 s, and
	// more than 15 s is refused.
	Refresh time.Duration
	// Retention is how long a writable backend keeps data; 0 is 15 days.
	Retention time.Duration
	// Uncompacted has a writable backend leave blocks as they come out of memory, two hours each:
	// somebody else compacts them, elsewhere.
	Uncompacted bool
	// Keep says of a block past its retention that a writable backend has to keep it for now; nil
	// keeps none.
	Keep func(tsdb.BlockMeta) bool
}

const (
	defaultRefresh = 5 * time.Second
	maxRefresh     = 15 * time.Second
)

// Backend serves one TSDB directory.
type Backend struct {
	cfg    Config
	logger *slog.Logger
	ext    labels.Labels

	// own is the database of a writable backend, otherwise nil.
	own *writable

	cancel context.CancelCauseFunc
	done   chan struct{}

	refreshing sync.Mutex // held while a view is made
	follower   *follow.Follower
	metrics    *metrics

	mu      sync.Mutex
	current *view
	views   map[*view]struct{}
	closed  bool
	// stale says why the current view is older than it should be.
	stale error
}

var errClosed = errors.New("the backend was closed")

// Open opens the directory for reading. It returns after the write-ahead log has
// been read once. reg may be nil.
func Open(cfg Config, logger *slog.Logger, reg prometheus.Registerer) (*Backend, error) {
	if cfg.Refresh == 0 {
		cfg.Refresh = defaultRefresh
	}
	if cfg.Refresh < 0 || cfg.Refresh > maxRefresh {
		return nil, fmt.Errorf("tsdb %s: refresh is %s, it must be at most %s", cfg.Path, cfg.Refresh, maxRefresh)
	}
	if st, err := os.Stat(cfg.Path); err != nil {
		return nil, fmt.Errorf("tsdb: cannot open the directory, check the path and its permissions: %w", err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("tsdb: %s is not a directory, give the one that holds wal and the blocks", cfg.Path)
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	b := &Backend{
		cfg: cfg, logger: logger, ext: withoutEmpty(cfg.ExternalLabels),
		cancel: cancel, done: make(chan struct{}),
		views: map[*view]struct{}{}, metrics: newMetrics(reg),
	}
	if err := b.refresh(ctx); err != nil {
		cancel(errClosed)
		b.metrics.unregister()
		return nil, fmt.Errorf("tsdb: %w", err)
	}
	go b.run(ctx)
	return b, nil
}

func withoutEmpty(ls labels.Labels) labels.Labels {
	b := labels.NewBuilder(ls)
	ls.Range(func(l labels.Label) {
		if l.Value == "" {
			b.Del(l.Name)
		}
	})
	return b.Labels()
}

func (b *Backend) run(ctx context.Context) {
	defer close(b.done)
	tick := time.NewTicker(b.cfg.Refresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := b.refresh(ctx); err != nil && ctx.Err() == nil {
			b.logger.Error("the view of the TSDB directory is not up to date", "dir", b.cfg.Path, "err", err)
		}
	}
}

// Close stops following and closes the files. Queries still running end well.
func (b *Backend) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.mu.Unlock()
	b.cancel(errClosed)
	<-b.done
	var err error
	if b.own != nil {
		err = b.own.close()
	}
	b.mu.Lock()
	old := b.current
	b.current = nil
	b.mu.Unlock()
	if b.follower != nil {
		b.follower.Close()
	}
	if old != nil {
		b.release(old)
	}
	b.metrics.unregister()
	return err
}

// view is what one query sees. refs counts its users, the backend itself among
// them while it is the current one.
type view struct {
	refs   int
	blocks []*block
	bad    []badBlock
	head   *follow.Head
	window follow.Window
	// headErr says why the image of the head is not whole.
	headErr error
}

// acquire returns the current view. It must be released.
func (b *Backend) acquire() (*view, error, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current == nil {
		return nil, nil, backend.Errorf(backend.ErrUnavailable, "tsdb %s: %w", b.cfg.Path, errClosed)
	}
	b.current.refs++
	return b.current, b.stale, nil
}

func (b *Backend) release(v *view) {
	b.mu.Lock()
	v.refs--
	last := v.refs == 0
	var shut []*block
	if last {
		delete(b.views, v)
		for _, bl := range v.blocks {
			if bl.refs--; bl.refs == 0 {
				shut = append(shut, bl)
			}
		}
	}
	b.mu.Unlock()
	for _, bl := range shut {
		if err := bl.Close(); err != nil {
			b.logger.Warn("cannot close a block", "block", bl.dir, "err", err)
		}
	}
}

// refresh makes a new view. The order matters: logs before blocks, see the
// package comment.
func (b *Backend) refresh(ctx context.Context) (err error) {
	b.refreshing.Lock()
	defer b.refreshing.Unlock()
	defer func() {
		b.mu.Lock()
		b.stale = err
		b.mu.Unlock()
		b.metrics.refreshed(err)
	}()
	var headErr error
	next := &view{refs: 1, window: follow.Window{MinTime: math.MinInt64}}
	old := b.current // only refresh sets it, and Close after the last refresh
	if b.follower != nil && b.follower.Wasteful() {
		b.follower.Close()
		b.follower = nil
	}
	if b.follower == nil {
		// What is in blocks by now need not be kept while the log is read.
		bl, err := listBlocks(b.cfg.Path)
		if err != nil {
			return err
		}
		b.follower = follow.New(b.cfg.Path, inOrderEnd(bl), b.logger)
	}
	if _, err := b.follower.Poll(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		headErr = fmt.Errorf("%s: the samples of the last hours cannot be read in full: %w; a restart of the Prometheus that owns the directory repairs a damaged log", b.cfg.Path, err)
		b.logger.Error("cannot follow the write-ahead log", "dir", b.cfg.Path, "err", err)
	}
	next.head, next.headErr = b.follower.Head(), headErr
	if old != nil {
		next.window = old.window
		if next.head == nil {
			next.head = old.head
		}
	}
	if headErr == nil {
		next.window.Segment = max(next.window.Segment, b.follower.FirstSegment())
	}
	metas, err := b.openBlocks(ctx, old, next)
	if err != nil {
		return err
	}
	next.window.MinTime = max(next.window.MinTime, inOrderEnd(metas))

	b.mu.Lock()
	b.current = next
	b.views[next] = struct{}{}
	b.mu.Unlock()
	if old != nil {
		b.release(old)
	}
	b.truncate(next)
	return nil
}

// truncate frees what no view can see.
func (b *Backend) truncate(now *view) {
	b.mu.Lock()
	low := now.window
	for v := range b.views {
		if v.head == now.head {
			low.MinTime = min(low.MinTime, v.window.MinTime)
			low.Segment = min(low.Segment, v.window.Segment)
		}
	}
	b.mu.Unlock()
	b.follower.Truncate(low)
}

// Info describes the directory as it is in the current view.
func (b *Backend) Info(ctx context.Context) (backend.Info, error) {
	info := backend.AllTime()
	if !b.ext.IsEmpty() {
		info.LabelSets = []labels.Labels{b.ext}
	}
	info.Capabilities = backend.Capabilities{
		Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true, BoundedLabels: true,
		NativeHistograms: true, StaleMarkers: true, Completeness: true, Statistics: true,
		Exemplars: b.own != nil, Metadata: b.own != nil && b.own.metadata != nil,
	}
	if err := ctx.Err(); err != nil {
		return backend.Info{}, context.Cause(ctx)
	}
	if b.own != nil {
		info.MinTime = b.own.minTime()
		return info, nil
	}
	v, stale, err := b.acquire()
	if err != nil {
		return backend.Info{}, err
	}
	defer b.release(v)
	if stale != nil {
		return backend.Info{}, backend.Errorf(backend.ErrUnavailable, "tsdb: %w", stale)
	}
	info.MinTime = v.minTime()
	return info, nil
}

// minTime is the time of the oldest sample, MinInt64 where that cannot be said.
func (v *view) minTime() int64 {
	mint := int64(math.MaxInt64)
	for _, bl := range v.blocks {
		mint = min(mint, bl.meta.MinTime)
	}
	for _, bad := range v.bad {
		mint = min(mint, bad.mint)
	}
	if v.head != nil {
		if m, _, empty := v.head.Bounds(); !empty {
			mint = min(mint, m)
		}
	}
	if mint == math.MaxInt64 || v.headErr != nil {
		return math.MinInt64
	}
	return mint
}

// metrics are the backend's own.
type metrics struct {
	reg      prometheus.Registerer
	total    prometheus.Counter
	failures prometheus.Counter
	last     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		reg: reg,
		total: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "promweave_tsdb_refreshes_total", Help: "Views of the TSDB directory made or tried.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "promweave_tsdb_refresh_failures_total", Help: "Views of the TSDB directory that could not be made.",
		}),
		last: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "promweave_tsdb_last_refresh_timestamp_seconds", Help: "When the current view of the TSDB directory was made.",
		}),
	}
	if reg != nil {
		for _, c := range m.collectors() {
			if err := reg.Register(c); err != nil {
				m.reg = nil
			}
		}
	}
	return m
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.total, m.failures, m.last}
}

func (m *metrics) refreshed(err error) {
	m.total.Inc()
	if err != nil {
		m.failures.Inc()
		return
	}
	m.last.SetToCurrentTime()
}

func (m *metrics) unregister() {
	if m == nil || m.reg == nil {
		return
	}
	for _, c := range m.collectors() {
		m.reg.Unregister(c)
	}
}

// blockPath is where a block is.
func (b *Backend) blockPath(name string) string { return filepath.Join(b.cfg.Path, name) }
