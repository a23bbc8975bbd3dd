// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

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
	problem string           // of the last lookup, or what to say if there are no targets
	failed  error            // of the last lookup; errNotFound if it found nothing
	left    string           // why all of it is gone: no file lists it any more
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

	listed  map[string]*list // by path
	sources map[string]*known
	last    []expected // of the last round

	// problems are what is wrong, by what has it, for logging changes only: a log
	// in a watched folder must not feed itself. round fills checked.
	problems, checked map[string]string
}

// list is what a file said when it could last be read.
type list struct {
	targets []string
	left    map[string]time.Time // targets that it had before, and since when not
}

// update takes in a new version of the file.
func (l *list) update(targets []string, now time.Time, forget time.Duration) {
	for _, t := range l.targets {
		l.left[t] = now
	}
	for _, t := range targets {
		delete(l.left, t)
	}
	maps.DeleteFunc(l.left, func(_ string, since time.Time) bool { return now.Sub(since) >= forget })
	l.targets = targets
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
	return &finder{static: static, files: files, forget: forget, dns: dns, log: log, listed: map[string]*list{}, sources: map[string]*known{}}, nil
}

// round looks everything up and returns what is expected now, sorted by name.
func (f *finder) round(ctx context.Context, now time.Time) []expected {
	f.checked = map[string]string{}
	names := slices.Clone(f.static)
	fileNames, left, lost := f.readFiles(now)
	names = append(names, fileNames...)

	current := map[string]*known{}
	var lookups []*known
	var wg sync.WaitGroup
	for _, name := range names {
		if current[name] != nil {
			continue
		}
		k := f.sources[name]
		if k == nil {
			src, err := parseSource(name)
			if err != nil { // Only from files; others were checked.
				f.check("target", name, err)
				lost = append(lost, expected{name: name, gone: err.Error()})
				continue
			}
			k = &known{source: src, targets: map[string]*seen{}}
		}
		current[name] = k
		k.left = ""
		if k.prefix == "" {
			k.targets[net.JoinHostPort(k.host, k.port)] = &seen{target: target{net.JoinHostPort(k.host, k.port), k.host}}
			continue
		}
		lookups = append(lookups, k)
		wg.Go(func() {
			targets, err := f.dns.lookup(ctx, k.source)
			k.update(targets, err, now, f.forget)
		})
	}
	wg.Wait()
	for _, k := range lookups {
		f.check("name", k.text, k.failed)
	}
	for name, why := range left {
		// What was of no use is not missed.
		if k := f.sources[name]; k != nil && current[name] == nil {
			k.left = why
			current[name] = k
		}
	}
	f.sources = current
	out := f.expected(lost)
	f.logForgotten(out)
	f.last = out
	f.problems = f.checked
	return out
}

// errNothing: a source is there and holds nothing, which may be meant so, but then
// also may not.
var errNothing = errors.New("it lists no target; what it listed before counts as missing until it is forgotten")

// errNoMatch: there is no file of a pattern.
var errNoMatch = errors.New("no file matches")

// check logs the problem of a source if it is another one than in the last round,
// and the end of it; nil is no problem. It has to be called in
// each round.
func (f *finder) check(kind, name string, err error) {
	key, problem := kind+" "+name, ""
	if err != nil {
		problem = err.Error()
	}
	if _, ok := f.checked[key]; ok {
		return // A target of several files.
	}
	before := f.problems[key]
	f.checked[key] = problem
	switch {
	case problem == before:
	case problem == "":
		f.log.Info("discovery works again", kind, name)
	case errors.Is(err, errNothing), errors.Is(err, errNoMatch), errors.Is(err, errNotFound):
		f.log.Warn("discovery finds nothing", kind, name, "why", problem)
	default:
		f.log.Warn("discovery fails; what was found before is kept", kind, name, "err", problem)
	}
}

// logForgotten tells of what was expected before this round and is not any more.
func (f *finder) logForgotten(out []expected) {
	still := make(map[string]bool, len(out))
	for _, x := range out {
		still[x.name] = true
	}
	for _, x := range f.last {
		// A name or file that was lost and is found now is not forgotten.
		if !still[x.name] && f.sources[x.name] == nil && f.listed[x.name] == nil {
			f.log.Info("endpoint is forgotten and not expected any more", "endpoint", x.name, "why", x.gone)
		}
	}
}

// update takes in the result of a lookup.
func (k *known) update(found []target, err error, now time.Time, forget time.Duration) {
	k.failed = err
	if err != nil && !errors.Is(err, errNotFound) {
		k.problem = err.Error()
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
			out = append(out, expected{name: k.text, gone: cmp.Or(k.left, k.problem)})
		}
		for addr, s := range k.targets {
			if x, ok := byAddr[addr]; ok && x.gone == "" {
				continue
			}
			byAddr[addr] = expected{name: addr, addr: addr, serverName: s.serverName, gone: cmp.Or(s.gone, k.left)}
		}
	}
	for _, x := range byAddr {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b expected) int { return cmp.Compare(a.name, b.name) })
	return slices.CompactFunc(out, func(a, b expected) bool { return a.name == b.name })
}

// readFiles returns the targets in all files, and those that have left one, with
// the reason to give; a name may be both. The targets of a file that cannot be
// read now stay as they were. A file that never could be read is lost.
func (f *finder) readFiles(now time.Time) (names []string, left map[string]string, lost []expected) {
	var paths []string
	for _, pattern := range f.files {
		matches, _ := filepath.Glob(pattern) // Patterns were checked.
		if len(matches) == 0 && !strings.ContainsAny(pattern, "*?[") {
			matches = []string{pattern}
		}
		if len(matches) == 0 && !f.listedAny(pattern) {
			f.check("pattern", pattern, errNoMatch)
		} else {
			f.check("pattern", pattern, nil)
		}
		paths = append(paths, matches...)
	}
	// A file that has vanished keeps its targets: it may be on its way back.
	for path := range f.listed {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	left = map[string]string{}
	latest := map[string]time.Time{}
	for _, path := range slices.Compact(paths) {
		targets, err := readTargets(path)
		l := f.listed[path]
		problem := err
		if err == nil && len(targets) == 0 {
			problem = errNothing
		}
		f.check("file", path, problem)
		if err == nil {
			if l == nil {
				l = &list{left: map[string]time.Time{}}
				f.listed[path] = l
			}
			l.update(targets, now, f.forget)
		} else if l == nil {
			lost = append(lost, expected{name: path, gone: err.Error()})
			continue
		}
		names = append(names, l.targets...)
		for name, since := range l.left {
			// Of several files the last to have it says most.
			if since.After(latest[name]) || left[name] == "" {
				latest[name] = since
				left[name] = fmt.Sprintf("no longer in %s since %s", path, since.UTC().Format(time.RFC3339))
			}
		}
	}
	return names, left, lost
}

// listedAny reports whether a file of the pattern was there once; if it is not now,
// that is told of the file.
func (f *finder) listedAny(pattern string) bool {
	for path := range f.listed {
		if ok, _ := filepath.Match(pattern, path); ok {
			return true
		}
	}
	return false
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
		// Without its size, so that one that grows is one problem and no new one each time.
		return nil, fmt.Errorf("%s has more than the %d bytes allowed", path, maxFileSize)
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
