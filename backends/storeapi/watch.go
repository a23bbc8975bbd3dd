// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settleTime is how long a change waits for further ones, so that a burst makes
// one round, and a file that is written all the time a few in a second.
const settleTime = 200 * time.Millisecond

// watcher tells of changes of files. It watches their folders, since files are
// often replaced, and mounted ones are links that change their end. What else
// goes on in a folder, where there may well be our own log, is of no interest.
type watcher struct {
	patterns []string
	log      *slog.Logger
	events   <-chan fsnotify.Event // nil if there is nothing to watch
	errs     <-chan error
	close    func() error
	// changed has a value if something has changed.
	changed chan struct{}
	ends    map[string]string // of files, as links() had it last
}

func newWatcher(files []string, log *slog.Logger) (*watcher, error) {
	w := &watcher{patterns: files, log: log, close: func() error { return nil }, changed: make(chan struct{}, 1)}
	if len(files) == 0 {
		return w, nil
	}
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := fs.Add(filepath.Dir(f)); err != nil {
			_ = fs.Close()
			return nil, fmt.Errorf("folder of %s: %w", f, err)
		}
	}
	w.events, w.errs, w.close, w.ends = fs.Events, fs.Errors, fs.Close, w.links()
	return w, nil
}

// run works until ctx is done.
func (w *watcher) run(ctx context.Context) {
	defer func() { _ = w.close() }()
	var settled <-chan time.Time // nil if nothing has happened
	var ours bool                // It happened to one of the files,
	var problem string
	for {
		select {
		case <-ctx.Done():
			return
		case ev := <-w.events:
			switch {
			case w.matches(ev.Name):
				ours = true
			case !ev.Has(fsnotify.Create | fsnotify.Rename | fsnotify.Remove):
				continue
			}
			// or to something that could be a link on the way to one.
		case err := <-w.errs:
			if err.Error() != problem {
				problem = err.Error()
				w.log.Warn("watching files failed; some changes are seen after refresh_interval only", "err", err)
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				continue
			}
			ours = true // Nobody knows what was lost.
		case <-settled:
			settled = nil
			ends := w.links()
			if ours || !maps.Equal(ends, w.ends) {
				select {
				case w.changed <- struct{}{}:
				default: // It is not yet known of the last one.
				}
			}
			ours, w.ends = false, ends
			continue
		}
		if settled == nil {
			settled = time.After(settleTime)
		}
	}
}

// matches reports whether path is or may become one of the files.
func (w *watcher) matches(path string) bool {
	return slices.ContainsFunc(w.patterns, func(p string) bool {
		ok, _ := filepath.Match(filepath.Base(p), filepath.Base(path)) // Patterns were checked.
		return ok && filepath.Dir(p) == filepath.Dir(path)
	})
}

// links returns where the files really are. Kubernetes, for one, replaces mounted
// files by turning a link to their folder, which has a name of its own:
// https://pkg.go.dev/k8s.io/kubernetes/pkg/volume/util#AtomicWriter
func (w *watcher) links() map[string]string {
	ends := map[string]string{}
	for _, p := range w.patterns {
		paths, _ := filepath.Glob(p)
		for _, path := range paths {
			// One that leads nowhere has the end "".
			ends[path], _ = filepath.EvalSymlinks(path)
		}
	}
	return ends
}
