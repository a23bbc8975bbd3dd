// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"gopkg.in/yaml.v3"
)

// expected is an endpoint that ought to answer, or, without an address, a name
// that led to none.
type expected struct {
	name, addr, serverName string
	gone                   string
}

// target is an address and the name that its certificate should have.
type target struct{ addr, serverName string }

// source is one configured name, static or for DNS.
type source struct {
	text   string
	prefix string // "" for a plain address
	host   string
	port   string // "" if not given, only with SRV
}

func parseSource(text string) (source, error) {
	s := source{text: text}
	rest := text
	if prefix, after, ok := strings.Cut(text, "+"); ok {
		s.prefix, rest = prefix, after
	}
	switch s.prefix {
	case "", "dns", "dnsdualstack":
	case "dnssrv", "dnssrvnoa":
		s.host = rest
		if host, port, err := net.SplitHostPort(rest); err == nil {
			s.host, s.port = host, port
		}
		if s.host == "" || strings.Contains(s.host, ":") {
			return s, fmt.Errorf("address %q: %q is no name of SRV records", text, rest)
		}
		return s, nil
	default:
		return s, fmt.Errorf("address %q: unknown prefix %q; use dns+, dnssrv+ or dnssrvnoa+", text, s.prefix+"+")
	}
	var err error
	if s.host, s.port, err = net.SplitHostPort(rest); err != nil || s.host == "" || s.port == "" {
		return s, fmt.Errorf("address %q: want host:port with a port", text)
	}
	return s, nil
}

// known is what a source led to so far.
type known struct {
	source
	targets map[string]*seen // by address
	problem string           // of the last lookup
}

type seen struct {
	target
	gone  string
	since time.Time
}

// finder finds endpoints. It is not for concurrent use.
type finder struct {
	static []string
	files  []string
	forget time.Duration
	dns    *resolver
	log    *slog.Logger

	// listed are the targets of each file as last read.
	listed  map[string][]string
	sources map[string]*known
}

func newFinder(static, files []string, forget time.Duration, dns *resolver, log *slog.Logger) (*finder, error) {
	for _, name := range static {
		if _, err := parseSource(name); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		if _, err := filepath.Match(f, ""); err != nil {
			return nil, fmt.Errorf("files: %q: %w", f, err)
		}
	}
	return &finder{static: static, files: files, forget: forget, dns: dns, log: log, listed: map[string][]string{}, sources: map[string]*known{}}, nil
}

// round looks everything up and returns what is expected now, sorted by name.
func (f *finder) round(ctx context.Context, now time.Time) []expected {
	names := slices.Clone(f.static)
	fileNames, lost := f.readFiles()
	names = append(names, fileNames...)

	current := map[string]*known{}
	var wg sync.WaitGroup
	for _, name := range names {
		if current[name] != nil {
			continue
		}
		k := f.sources[name]
		if k == nil {
			src, err := parseSource(name)
			if err != nil { // Only from files; others were checked.
				f.log.Error("a target is of no use", "err", err)
				lost = append(lost, expected{name: name, gone: err.Error()})
				continue
			}
			k = &known{source: src, targets: map[string]*seen{}}
		}
		current[name] = k
		if k.prefix == "" {
			k.targets[net.JoinHostPort(k.host, k.port)] = &seen{target: target{net.JoinHostPort(k.host, k.port), k.host}}
			continue
		}
		wg.Go(func() {
			targets, err := f.dns.lookup(ctx, k.source)
			k.update(targets, err, now, f.forget, f.log)
		})
	}
	wg.Wait()
	// What is in no file any more was taken out on purpose.
	f.sources = current
	return f.expected(lost)
}

// update takes in the result of a lookup.
func (k *known) update(found []target, err error, now time.Time, forget time.Duration, log *slog.Logger) {
	if err != nil && !errors.Is(err, errNotFound) {
		k.problem = err.Error()
		log.Warn("lookup failed; what it gave before is kept", "name", k.text, "endpoints", len(k.targets), "err", err)
		return
	}
	k.problem = fmt.Sprintf("%s: DNS has no records of that name", k.text)
	here := map[string]bool{}
	for _, t := range found {
		here[t.addr] = true
		k.targets[t.addr] = &seen{target: t}
	}
	for addr, s := range k.targets {
		if here[addr] {
			continue
		}
		if s.gone == "" {
			s.gone, s.since = fmt.Sprintf("%s: not in DNS any more since %s", k.text, now.UTC().Format(time.RFC3339)), now
		}
		if now.Sub(s.since) >= forget {
			delete(k.targets, addr)
		}
	}
}

// expected puts all sources together: an address is there if any source has it.
func (f *finder) expected(out []expected) []expected {
	byAddr := map[string]expected{}
	names := make([]string, 0, len(f.sources))
	for name := range f.sources {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		k := f.sources[name]
		if len(k.targets) == 0 {
			out = append(out, expected{name: k.text, gone: k.problem})
		}
		for addr, s := range k.targets {
			if x, ok := byAddr[addr]; ok && x.gone == "" {
				continue
			}
			byAddr[addr] = expected{name: addr, addr: addr, serverName: s.serverName, gone: s.gone}
		}
	}
	for _, x := range byAddr {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b expected) int { return cmp.Compare(a.name, b.name) })
	return slices.CompactFunc(out, func(a, b expected) bool { return a.name == b.name })
}

// readFiles returns the targets in all files; those of a file that cannot be
// read now stay as they were. A file that never could be read is lost.
func (f *finder) readFiles() (names []string, lost []expected) {
	var paths []string
	for _, pattern := range f.files {
		matches, _ := filepath.Glob(pattern) // Patterns were checked.
		if len(matches) == 0 && !strings.ContainsAny(pattern, "*?[") {
			matches = []string{pattern}
		}
		paths = append(paths, matches...)
	}
	// A file that has vanished keeps its targets: it may be on its way back.
	for path := range f.listed {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range slices.Compact(paths) {
		targets, err := readTargets(path)
		if err == nil {
			f.listed[path] = targets
		} else if _, ok := f.listed[path]; ok {
			f.log.Warn("file cannot be read; its targets are kept", "file", path, "err", err)
		} else {
			f.log.Error("file cannot be read", "file", path, "err", err)
			lost = append(lost, expected{name: path, gone: err.Error()})
		}
		names = append(names, f.listed[path]...)
	}
	return names, lost
}

// maxFileSize is far above any list of endpoints.
const maxFileSize = 16 << 20

// readTargets reads a list of targets; JSON is YAML too.
func readTargets(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFileSize {
		return nil, fmt.Errorf("%s has %d bytes, more than the %d allowed", path, info.Size(), maxFileSize)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseTargets(path, data)
}

func parseTargets(path string, data []byte) ([]string, error) {
	var groups []struct {
		Targets []string          `yaml:"targets"`
		Labels  map[string]string `yaml:"labels"`
	}
	if len(strings.TrimSpace(string(data))) == 0 {
		// A writer that truncates first is seen in between. An empty list is [].
		return nil, fmt.Errorf("%s is empty; write [] for no targets", path)
	}
	if err := yaml.Unmarshal(data, &groups); err != nil {
		return nil, fmt.Errorf("%s: want a list of {targets: [host:port, ...]}: %w", path, err)
	}
	var out []string
	for _, g := range groups {
		out = append(out, g.Targets...)
	}
	return out, nil
}

// watcher tells of changes in the folders of files, since files are often
// replaced, and mounted ones are links that change their end.
type watcher struct{ fs *fsnotify.Watcher }

func newWatcher(files []string) (*watcher, error) {
	if len(files) == 0 {
		return &watcher{}, nil
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
	return &watcher{fs: fs}, nil
}

func (w *watcher) changed() <-chan fsnotify.Event {
	if w.fs == nil {
		return nil
	}
	return w.fs.Events
}

// drain takes what else has happened, so that a burst makes one round.
func (w *watcher) drain() {
	for {
		select {
		case _, ok := <-w.fs.Events:
			if !ok {
				return
			}
		default:
			return
		}
	}
}

func (w *watcher) errors() <-chan error {
	if w.fs == nil {
		return nil
	}
	return w.fs.Errors
}

func (w *watcher) close() {
	if w.fs != nil {
		_ = w.fs.Close()
	}
}
