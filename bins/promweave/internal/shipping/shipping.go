// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package shipping runs the shipper of a TSDB directory beside the backend that serves it: again and
// again, more seldom after failures, and once more at the end.
package shipping

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/blocks/ship"
)

// Source is the Prometheus that writes a directory.
type Source interface {
	ExternalLabels(context.Context) (labels.Labels, error)
	Flags(context.Context) (map[string]string, error)
}

// Config of a Loop.
type Config struct {
	// Ship is how blocks are shipped; its Labels are not used.
	Ship ship.Config
	// Labels are the external labels, unless there is a Source.
	Labels labels.Labels
	// Source, if set, is asked for its labels and flags before each run.
	Source   Source
	Interval time.Duration
}

// Loop ships one directory from Start to Close.
type Loop struct {
	cfg     Config
	bkt     objstore.Bucket
	log     *slog.Logger
	sync    func(context.Context) (int, error) // that of the shipper
	success prometheus.Gauge

	external atomic.Pointer[labels.Labels]
	problem  atomic.Pointer[string]

	mu      sync.Mutex
	started bool
	closed  bool
	cancel  context.CancelFunc
	stop    chan struct{} // closed when no further run is to begin but the last
	done    chan struct{} // closed when the loop has ended
}

// ErrRefused says that blocks must not be shipped as things are.
var ErrRefused = errors.New("blocks are not shipped")

// longest is the longest time between two tries, unless the interval is longer.
const longest = 5 * time.Minute

// New returns a Loop that owns the bucket.
func New(bkt objstore.Bucket, cfg Config) *Loop {
	l := &Loop{cfg: cfg, bkt: bkt, log: cfg.Ship.Logger, stop: make(chan struct{}), done: make(chan struct{}),
		success: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "promweave_shipper_last_success_timestamp_seconds", Help: "When a run last ended with everything shipped.",
		})}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if reg := cfg.Ship.Registerer; reg != nil {
		if err := reg.Register(l.success); err != nil {
			l.log.Warn("a metric of shipping is not exposed", "err", err)
		}
	}
	if cfg.Source == nil {
		l.external.Store(&cfg.Labels)
	}
	c := cfg.Ship
	c.Labels = func() labels.Labels {
		if ls := l.external.Load(); ls != nil {
			return *ls
		}
		return labels.EmptyLabels()
	}
	l.sync = ship.New(bkt, c).Sync
	return l
}

// Check says whether blocks may be shipped; an ErrRefused is for the operator, and any other error
// may pass.
func (l *Loop) Check(ctx context.Context) error {
	if l.cfg.Source == nil {
		return nil
	}
	ls, err := l.cfg.Source.ExternalLabels(ctx)
	switch {
	case err == nil && ls.IsEmpty():
		err = fmt.Errorf("%w: there are no external labels, and nobody could tell whose the blocks are: set global.external_labels in the configuration of the Prometheus, or external_labels of the backend", ErrRefused)
	case err == nil && !l.cfg.Ship.Compacted:
		err = l.checkFlags(ctx)
	}
	switch {
	case err == nil:
		l.external.Store(&ls)
	case errors.Is(err, ErrRefused):
		l.external.Store(nil)
	case l.external.Load() != nil:
		// It was asked before, and the blocks that are there are of that time.
		return nil
	default:
		err = fmt.Errorf("the Prometheus cannot be asked for its labels and flags: %w", err)
	}
	return err
}

// The flags of Prometheus that matter.
const (
	flagMin   = "storage.tsdb.min-block-duration"
	flagMax   = "storage.tsdb.max-block-duration"
	flagPath  = "storage.tsdb.path"
	flagDelay = "storage.tsdb.delay-compact-file.path"
)

// checkFlags refuses a Prometheus that would compact blocks before they are shipped.
func (l *Loop) checkFlags(ctx context.Context) error {
	flags, err := l.cfg.Source.Flags(ctx)
	if err != nil {
		return err
	}
	if file := flags[flagDelay]; file != "" {
		// It waits for what that file says, so that it may compact.
		if want := path.Join(flags[flagPath], "thanos.shipper.json"); path.Clean(file) != want {
			return fmt.Errorf("%w: the Prometheus was started with --%s=%s: it has to be %s", ErrRefused, flagDelay, file, want)
		}
		return nil
	}
	lo, errMin := model.ParseDuration(flags[flagMin])
	hi, errMax := model.ParseDuration(flags[flagMax])
	if errMin != nil || errMax != nil || lo != hi {
		return fmt.Errorf("%w: the Prometheus compacts them (--%s=%s, --%s=%s), and what was not shipped by then would be lost: start it with 2h for both, or set ship.compacted to ship compacted blocks",
			ErrRefused, flagMin, flags[flagMin], flagMax, flags[flagMax])
	}
	return nil
}

// Start begins to ship, unless it has begun, or has ended.
func (l *Loop) Start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.started || l.closed {
		return
	}
	l.started = true
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(context.Background())
	go l.run(ctx)
}

func (l *Loop) run(ctx context.Context) {
	defer close(l.done)
	failures := 0
	for {
		err := l.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil && failures > 0 {
			l.log.Info("blocks are shipped again", "dir", l.cfg.Ship.Dir, "failures", failures)
			failures = 0
		}
		if err != nil {
			failures++
		}
		pause := wait(l.cfg.Interval, failures)
		if err != nil {
			l.log.Error("blocks cannot be shipped; it is tried again", "dir", l.cfg.Ship.Dir, "failures", failures, "in", pause.Round(time.Second), "err", err)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-l.stop:
			t.Stop()
			if err := l.once(ctx); err != nil && ctx.Err() == nil {
				l.log.Error("the last blocks cannot be shipped; the next start will", "dir", l.cfg.Ship.Dir, "err", err)
			}
			return
		}
	}
}

// wait is the time to the next run: longer after each failure, and never quite the same, so that
// many who ship to one bucket do not come at once.
func wait(interval time.Duration, failures int) time.Duration {
	d := interval
	for range min(failures, 30) {
		d = min(2*d, max(interval, longest))
	}
	return d - d/20 + rand.N(d/10+1)
}

// once is one run.
func (l *Loop) once(ctx context.Context) error {
	err := l.Check(ctx)
	if err == nil {
		err = l.checkDir()
	}
	if err == nil {
		_, err = l.sync(ctx)
	}
	switch {
	case ctx.Err() != nil: // what comes of it is nobody's fault
	case err != nil:
		text := "blocks are not shipped: " + err.Error()
		if errors.Is(err, ErrRefused) {
			text = err.Error()
		}
		l.problem.Store(&text)
	default:
		l.problem.Store(nil)
		l.success.SetToCurrentTime()
	}
	return err
}

// checkDir finds a directory that is none of a Prometheus: an empty one has nothing to ship, and
// nobody would notice.
func (l *Loop) checkDir() error {
	if l.cfg.Source == nil {
		return nil
	}
	if _, err := os.Stat(filepath.Join(l.cfg.Ship.Dir, "wal")); err != nil {
		return fmt.Errorf("ship.dir has to be the data directory of the Prometheus, its --%s, with wal in it: %w", flagPath, err)
	}
	return nil
}

// Problem is why the last run failed; "" if it did not.
func (l *Loop) Problem() string {
	if p := l.problem.Load(); p != nil {
		return *p
	}
	return ""
}

// Stop ends shipping. What runs may finish within the time, and then a last run ships what came
// meanwhile; with no time both are left to the next start.
func (l *Loop) Stop(within time.Duration) {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	started := l.started
	l.mu.Unlock()
	if !started {
		return
	}
	if within <= 0 {
		l.cancel()
	}
	if first {
		close(l.stop)
	}
	t := time.AfterFunc(within, l.cancel)
	defer t.Stop()
	<-l.done
	l.cancel()
}

// Close stops at once and closes the bucket.
func (l *Loop) Close() error {
	l.Stop(0)
	return l.bkt.Close()
}
