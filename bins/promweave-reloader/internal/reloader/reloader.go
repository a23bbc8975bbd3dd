// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package reloader watches the files of a configuration, writes one of them with variables replaced,
// and has somebody read them again.
package reloader

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
)

// Config of a Reloader.
type Config struct {
	// File is the configuration, plain or by gzip; "" is none.
	File string
	// Output, if set, gets File decompressed and with $(NAME) replaced.
	Output string
	// Rules are directories and files that are only watched.
	Rules []string
	// Lookup is os.LookupEnv. Unset variables are an error unless they are tolerated.
	Lookup        func(string) (string, bool)
	TolerateUnset bool
	Trigger       Trigger
	// Interval is the time between two looks at all files, whatever is noticed between them; Delay
	// that from a change to the look at it, for more to come; Retry that after a failure.
	Interval, Delay, Retry time.Duration
	Logger                 *slog.Logger
	Registerer             prometheus.Registerer
}

// Reloader watches one configuration.
type Reloader struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	// done is the hash of what was read last by who is to read it; nil if nothing was.
	done []byte
	// problem is the last error as it was logged.
	problem string
	ready   atomic.Bool
}

// New returns a Reloader.
func New(cfg Config) *Reloader {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Reloader{cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer)}
}

// Ready says whether the configuration has been read once.
func (r *Reloader) Ready() bool { return r.ready.Load() }

// watcher says that something has changed in a directory.
type watcher interface {
	watch(dirs []string) error
	changed() <-chan string
	failed() <-chan error
}

// Run watches until ctx is done. The first reload is at once.
func (r *Reloader) Run(ctx context.Context) error {
	n, err := newNotifier()
	if err != nil {
		return fmt.Errorf("files cannot be watched: %w", err)
	}
	defer n.close()
	r.loop(ctx, n)
	return nil
}

func (r *Reloader) loop(ctx context.Context, w watcher) {
	t := time.NewTimer(0)
	defer t.Stop()
	next := time.Now()
	set := func(at time.Time) {
		next = at
		t.Reset(time.Until(at))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changed():
			r.metrics.events.Inc()
			// The first of many changes counts: else a busy directory would never be looked at.
			if at := time.Now().Add(r.cfg.Delay); at.Before(next) {
				set(at)
			}
		case err := <-w.failed():
			r.metrics.watchErrors.Inc()
			r.log.Warn("changes may be noticed late", "interval", r.cfg.Interval, "err", err)
		case <-t.C:
			pause := r.cfg.Interval
			if err := r.apply(ctx, w); err != nil && ctx.Err() == nil {
				pause = r.cfg.Retry
				if err.Error() != r.problem {
					r.problem = err.Error()
					r.log.Error("the configuration is not in force; it is tried again", "every", pause, "err", err)
				}
			} else if err == nil && r.problem != "" {
				r.problem = ""
				r.log.Info("the configuration is in force again")
			}
			set(time.Now().Add(pause))
		}
	}
}

// apply looks at all files, and triggers a reload if they differ from what was reloaded last.
func (r *Reloader) apply(ctx context.Context, w watcher) (err error) {
	r.metrics.applies.Inc()
	read := false
	defer func() {
		if err != nil && !read {
			r.metrics.applyFailures.Inc()
		}
	}()
	h := sha256.New()
	var dirs []string
	if r.cfg.File != "" {
		// Watched even if it is not there: it may come.
		dirs = append(dirs, filepath.Dir(r.cfg.File))
	}
	// Before the files are read, so that no change is missed between the two.
	watchErr := w.watch(dirs)
	if r.cfg.File != "" {
		data, err := r.render()
		if err != nil {
			return err
		}
		add(h, r.cfg.File, data)
		if r.cfg.Output != "" {
			if err := replace(r.cfg.Output, data); err != nil {
				return err
			}
		}
	}
	for _, path := range r.cfg.Rules {
		more, err := tree(h, path, 0)
		if err != nil {
			return err
		}
		dirs = append(dirs, more...)
	}
	slices.Sort(dirs)
	dirs = slices.Compact(dirs)
	if err := errors.Join(watchErr, w.watch(dirs)); err != nil {
		r.metrics.watchErrors.Inc()
		r.log.Warn("changes may be noticed late", "interval", r.cfg.Interval, "err", err)
	}
	r.metrics.watches.Set(float64(len(dirs)))
	read = true
	sum := h.Sum(nil)
	if bytes.Equal(sum, r.done) {
		return nil
	}
	r.metrics.reloads.Inc()
	if err := r.cfg.Trigger(ctx); err != nil {
		r.metrics.reloadFailures.Inc()
		r.metrics.success.Set(0)
		return fmt.Errorf("reload: %w", err)
	}
	r.done = sum
	r.ready.Store(true)
	r.metrics.success.Set(1)
	r.metrics.successAt.SetToCurrentTime()
	r.log.Info("reloaded", "file", r.cfg.File, "output", r.cfg.Output, "rules", r.cfg.Rules)
	return nil
}

// render is the configuration as it is to be read.
func (r *Reloader) render() ([]byte, error) {
	data, err := readFile(r.cfg.File)
	if err != nil {
		return nil, err
	}
	if r.cfg.Output == "" {
		return data, nil
	}
	if data, err = plain(data); err != nil {
		return nil, fmt.Errorf("%s: %w", r.cfg.File, err)
	}
	data, missing := expand(data, r.cfg.Lookup)
	r.metrics.unresolved.Set(float64(len(missing)))
	if len(missing) > 0 && !r.cfg.TolerateUnset {
		return nil, fmt.Errorf("%s: not set in the environment: %s; set them, or leave them as they are by --allow-unset", r.cfg.File, strings.Join(missing, ", "))
	}
	return data, nil
}

// notifier is a watcher of the operating system.
type notifier struct {
	w       *fsnotify.Watcher
	changes chan string
	ended   chan struct{}
}

func newNotifier() (*notifier, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	n := &notifier{w: w, changes: make(chan string, 1), ended: make(chan struct{})}
	go func() {
		defer close(n.ended)
		for e := range w.Events {
			if e.Op == fsnotify.Chmod {
				continue
			}
			select {
			case n.changes <- e.Name:
			default: // one is waiting to be seen
			}
		}
	}()
	return n, nil
}

// watch watches these directories and no others.
func (n *notifier) watch(dirs []string) error {
	var errs []error
	for _, d := range dirs {
		// One that was removed and made again is another one: adding it twice does no harm.
		if err := n.w.Add(d); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", d, err))
		}
	}
	return errors.Join(errs...)
}

func (n *notifier) changed() <-chan string { return n.changes }
func (n *notifier) failed() <-chan error   { return n.w.Errors }

func (n *notifier) close() {
	_ = n.w.Close()
	<-n.ended
}

// metrics have the names of Thanos' reloader behind our prefix.
type metrics struct {
	reloads, reloadFailures, applies, applyFailures, events, watchErrors prometheus.Counter
	success, successAt, watches, unresolved                              prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "promweave_reloader_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "promweave_reloader_" + name, Help: help})
	}
	m := &metrics{
		reloads:        counter("reloads_total", "Reloads that were asked for."),
		reloadFailures: counter("reloads_failed_total", "Reloads that failed, tries counted."),
		applies:        counter("config_apply_operations_total", "Looks at all files."),
		applyFailures:  counter("config_apply_operations_failed_total", "Looks at which a file could not be read, or the output not be written."),
		events:         counter("watch_events_total", "Changes that were noticed."),
		watchErrors:    counter("watch_errors_total", "Failures to watch."),
		success:        gauge("last_reload_successful", "Whether the last reload succeeded."),
		successAt:      gauge("last_reload_success_timestamp_seconds", "When a reload last succeeded."),
		watches:        gauge("watches", "Directories that are watched."),
		unresolved:     gauge("config_environment_variables_unset", "Variables of the configuration that are not set."),
	}
	if reg != nil {
		reg.MustRegister(m.reloads, m.reloadFailures, m.applies, m.applyFailures, m.events, m.watchErrors, m.success, m.successAt, m.watches, m.unresolved)
	}
	return m
}
