// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package membership keeps the set of backends that a query is expected to ask,
// apart from those that can be reached just now. It asks each for its Info every
// few seconds; a backend that fails, or that discovery cannot find any more, stays
// in the set, so that a query knows that its share is missing.
package membership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
)

// Spec is what the configuration says of a backend beside what only the backend
// itself understands.
type Spec struct {
	Name, Kind string
	// Required: an answer without it is an error.
	Required bool
	// Timeout bounds each call to it; 0 leaves it to the request.
	Timeout time.Duration
	// Window is what may be asked of it.
	Window Window
	// TrustLabels: the operator vouches that label names and values from it are those
	// of series which match, so that they are taken as they are for requests that
	// must not see everything. Without it such requests learn them from its series,
	// whose label sets can be checked one by one.
	TrustLabels bool
	// CheckMatchers: each series of it is compared with the matchers that it was sent
	// (rule S-6). It is for backends that anybody may have written; ours are tested.
	CheckMatchers bool
	// External are labels that all its series have, as users see them, by configuration.
	// Until it has said more itself they tell which questions do not concern it: what never
	// came up is not missing from answers that it could have no part in.
	External labels.Labels
	// Warning, if set, says what is wrong with the backend that queries do not notice; "" if
	// nothing is.
	Warning func() string
}

// Window bounds in time what a backend may be asked for.
type Window struct{ Min, Max Bound }

// Bound is a point in time; its zero value is no bound.
type Bound struct {
	Set bool
	// At is in ms since the epoch, or if Relative in ms to be added to now.
	At       int64
	Relative bool
}

func (b Bound) resolve(now time.Time, none int64) int64 {
	switch {
	case !b.Set:
		return none
	case b.Relative:
		t := now.UnixMilli()
		switch {
		case b.At > 0 && t > math.MaxInt64-b.At:
			return math.MaxInt64
		case b.At < 0 && t < math.MinInt64-b.At:
			return math.MinInt64
		}
		return t + b.At
	default:
		return b.At
	}
}

// Range gives the window at a time, both bounds inclusive, in ms.
func (w Window) Range(now time.Time) (minTime, maxTime int64) {
	return w.Min.resolve(now, math.MinInt64), w.Max.resolve(now, math.MaxInt64)
}

// Entry is a configured backend. A backend.Group stands for its members.
type Entry struct {
	Spec
	Backend backend.Backend
	// Close, if not nil, is called instead of Backend's own once nothing uses the
	// backend: for one that shares what it is made of with the one that follows it.
	Close func() error
}

// Member is one expected store as it was at one moment; it does not change.
type Member struct {
	Status
	// Timeout bounds each call to it; 0 leaves it to the request.
	Timeout time.Duration
	// AskMin and AskMax are the configured window, to which requests are cut.
	AskMin, AskMax int64
	// TrustLabels and CheckMatchers: see Spec.
	TrustLabels, CheckMatchers bool
	Backend                    backend.Backend
}

// Options of a Set; zero values mean the defaults in brackets.
type Options struct {
	// Interval between two rounds of Info [5s]. A backend that was well less than five
	// minutes ago, or was never asked before, is asked every RetryInterval [1s] instead
	// while it is not: what was started again is of use at once.
	Interval, RetryInterval time.Duration
	// Timeout of one Info [5s]; the contract gives a backend no more (rule I-1).
	Timeout time.Duration
	Logger  *slog.Logger
}

// Set is the set of expected backends. It is safe for concurrent use.
type Set struct {
	opts Options
	// round serialises Refresh.
	round sync.Mutex

	mu  sync.Mutex
	gen *generation
	// retired are the generations that were replaced and are still in use.
	retired []*generation
	known   map[key]*record
	ready   bool
	// closed: nobody is expected any more, and nothing may pass for complete.
	closed bool
}

// key tells members apart. The value of the backend is part of it, so that a
// reload does not let a new backend inherit what is known of an old one.
type key struct {
	name string
	b    backend.Backend
}

type record struct {
	info      backend.Info
	known     bool
	healthy   bool
	lastCheck time.Time
	lastErr   string
	gone      string // as last logged
	checking  bool
	begun     time.Time // of that check
	// lapsed is when it was found unhealthy after it had been well, or was new.
	lapsed, tried time.Time
}

// lapse is how long after a backend was well it is asked more often.
const lapse = 5 * time.Minute

// generation is the entries between two reloads. Its backends are closed when
// it has been replaced and the last query that uses it is done.
type generation struct {
	entries []Entry
	users   int
	retired bool
}

// New returns a set of the entries, which it closes when they are replaced and no
// longer used. Call Run, or Refresh, before the first query.
func New(entries []Entry, o Options) *Set {
	if o.Interval <= 0 {
		o.Interval = 5 * time.Second
	}
	if o.RetryInterval <= 0 {
		o.RetryInterval = min(time.Second, o.Interval)
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Set{opts: o, gen: &generation{entries: entries}, known: map[key]*record{}}
}

// Run refreshes until ctx is done, then closes the backends as soon as no query
// uses them, and returns nil.
func (s *Set) Run(ctx context.Context) error {
	t := time.NewTicker(s.opts.Interval)
	defer t.Stop()
	again := time.NewTicker(s.opts.RetryInterval)
	defer again.Stop()
	defer s.Close()
	for {
		s.Refresh(ctx)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-again.C:
				s.retry(ctx)
			case <-t.C:
				waiting = false
			}
		}
	}
}

// retry asks those who were well a while ago, and waits for nobody.
func (s *Set) retry(ctx context.Context) {
	now := time.Now()
	due := func(r *record) bool {
		return r != nil && !r.healthy && !r.checking && !r.lapsed.IsZero() && now.Sub(r.lapsed) < lapse && now.Sub(r.tried) >= s.opts.RetryInterval/2
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	some := false
	for _, r := range s.known {
		some = some || due(r)
	}
	if !some {
		return
	}
	gen := s.gen
	for _, e := range gen.entries {
		for _, x := range expand(e) {
			r := s.known[key{x.name, x.b}]
			if x.gone != "" || !due(r) {
				continue
			}
			r.checking, r.begun = true, now
			gen.users++
			go func() {
				ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
				defer cancel()
				s.check(ctx, x, r)
				(&View{set: s, gen: gen}).Release()
			}()
		}
	}
}

// Close retires all entries; what queries still use is closed after them.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.Replace(nil)
}

// Replace puts new entries in the place of the present ones. A backend that is in
// both (the same value) is kept open.
func (s *Set) Replace(entries []Entry) {
	s.mu.Lock()
	old := s.gen
	s.gen = &generation{entries: entries}
	old.retired = true
	s.retired = append(s.retired, old)
	idle := s.unused(old)
	s.mu.Unlock()
	s.closeAll(idle)
}

// unused returns what has to be closed because g has come to its end: each of its
// backends once, but for those of a generation that is not at its end. It needs
// s.mu, so that of two generations that end together the last one closes what
// both have.
func (s *Set) unused(g *generation) (out []Entry) {
	if !g.retired || g.users > 0 {
		return nil
	}
	s.retired = slices.DeleteFunc(s.retired, func(x *generation) bool { return x == g })
	for i, e := range g.entries {
		same := func(x Entry) bool { return x.Backend == e.Backend }
		if slices.ContainsFunc(g.entries[:i], same) || slices.ContainsFunc(s.gen.entries, same) ||
			slices.ContainsFunc(s.retired, func(x *generation) bool { return slices.ContainsFunc(x.entries, same) }) {
			continue
		}
		out = append(out, e)
	}
	return out
}

func (s *Set) closeAll(entries []Entry) {
	for _, e := range entries {
		end := e.Close
		if c, ok := e.Backend.(backend.Closer); ok && end == nil {
			end = c.Close
		}
		if end != nil {
			if err := end(); err != nil {
				s.opts.Logger.Warn("closing a backend", "backend", e.Name, "err", err)
			}
		}
	}
}

// View is the set as it was when it was acquired. Its backends stay open until
// Release.
type View struct {
	Members []*Member
	// Checked says that every member has been asked for its Info at least once.
	Checked bool
	// Closed says that the set was closed: there is nobody to ask any more.
	Closed bool

	set  *Set
	gen  *generation
	once sync.Once
}

// Release gives the view back. It may be called more than once.
func (v *View) Release() {
	v.once.Do(func() {
		if v.set == nil {
			return
		}
		v.set.mu.Lock()
		v.gen.users--
		idle := v.set.unused(v.gen)
		v.set.mu.Unlock()
		v.set.closeAll(idle)
	})
}

// NewView makes a view of members that no Set keeps, for tests and tools.
func NewView(members ...*Member) *View { return &View{Members: members, Checked: true} }

// Always returns a healthy member for a backend, for tests and tools.
func Always(name, kind string, b backend.Backend, info backend.Info) *Member {
	return &Member{
		Status: Status{Name: name, Kind: kind, Address: name, Healthy: true, Known: true, Info: info},
		AskMin: math.MinInt64, AskMax: math.MaxInt64, Backend: b,
	}
}

// Acquire returns the set as it is now, members in order of their names.
func (s *Set) Acquire() *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen.users++
	v := &View{set: s, gen: s.gen, Members: s.members(time.Now()), Checked: s.ready && !s.closed, Closed: s.closed}
	for _, m := range v.Members {
		if !m.Known && m.LastError == "" && m.Gone == "" {
			v.Checked = false
		}
	}
	return v
}

// Status tells what is known of each expected backend, in order of their names.
func (s *Set) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	ms := s.members(time.Now())
	out := make([]Status, len(ms))
	for i, m := range ms {
		out[i] = m.Status
	}
	return out
}

// Ready says whether a first round of Info has been finished.
func (s *Set) Ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// members needs s.mu.
func (s *Set) members(now time.Time) []*Member {
	// Queries over a thousand stores of which three matter come through here too:
	// one allocation for all, and no sorting of what is in order.
	members := make([]Member, 0, len(s.gen.entries))
	for _, e := range s.gen.entries {
		lo, hi := e.Window.Range(now)
		for _, x := range expand(e) {
			st := Status{Name: x.name, Kind: e.Kind, Address: x.address, Required: e.Required, Gone: x.gone}
			st.Info = backend.AllTime()
			if !e.External.IsEmpty() {
				st.Info.LabelSets = []labels.Labels{e.External}
			}
			if e.Warning != nil {
				st.Warning = e.Warning()
			}
			if r := s.known[key{x.name, x.b}]; r != nil {
				st.Healthy, st.Known = r.healthy && x.gone == "", r.known
				st.LastCheck, st.LastError = r.lastCheck, r.lastErr
				if r.known {
					st.Info = r.info
				}
				if down := now.Sub(r.lastCheck).Milliseconds(); r.known && !st.Healthy && down > 0 && st.Info.MaxTime < math.MaxInt64-down {
					// While nobody can ask it, its data may have gone on with time: bounds as
					// they were would rule it out of what it would answer.
					st.Info.MaxTime += down
				}
			}
			st.Info.MinTime = max(st.Info.MinTime, lo)
			st.Info.MaxTime = min(st.Info.MaxTime, hi)
			members = append(members, Member{Status: st, Timeout: e.Timeout, AskMin: lo, AskMax: hi, TrustLabels: e.TrustLabels, CheckMatchers: e.CheckMatchers, Backend: x.b})
		}
	}
	byName := func(a, b *Member) int { return strings.Compare(a.Name, b.Name) }
	out := make([]*Member, len(members))
	for i := range members {
		out[i] = &members[i]
	}
	if !slices.IsSortedFunc(out, byName) {
		slices.SortFunc(out, byName)
	}
	return out
}

type expected struct {
	name, address, gone string
	b                   backend.Backend
}

func expand(e Entry) []expected {
	g, ok := e.Backend.(backend.Group)
	if !ok {
		return []expected{{name: e.Name, address: e.Name, b: e.Backend}}
	}
	ms, err := safeMembers(g)
	if err != nil {
		return []expected{{name: e.Name, address: e.Name, b: e.Backend, gone: err.Error()}}
	}
	if len(ms) == 0 {
		// Nothing found yet, or nothing left: the entry is expected all the same.
		return []expected{{name: e.Name, address: e.Name, b: e.Backend, gone: "no store found by discovery"}}
	}
	out := make([]expected, len(ms))
	for i, m := range ms {
		name := e.Name
		if m.Name != "" {
			name += "/" + m.Name
		}
		out[i] = expected{name: name, address: cmp.Or(m.Address, m.Name, e.Name), gone: m.Gone, b: m.Backend}
	}
	return out
}

// Refresh asks every expected backend for its Info, all at once, and returns when
// all have answered or their time is up. A backend that hangs beyond its timeout
// is left alone until it comes back, and holds up nobody.
func (s *Set) Refresh(ctx context.Context) {
	s.round.Lock()
	defer s.round.Unlock()
	s.mu.Lock()
	gen := s.gen
	gen.users++ // keeps the backends open meanwhile
	var all []expected
	live := map[key]bool{}
	for _, e := range gen.entries {
		for _, x := range expand(e) {
			all = append(all, x)
			live[key{x.name, x.b}] = true
		}
	}
	for k, r := range s.known {
		if !live[k] && !r.checking {
			delete(s.known, k)
		}
	}
	s.mu.Unlock()
	s.learn(ctx, all)
	s.mu.Lock()
	s.ready = true
	s.mu.Unlock()
	(&View{set: s, gen: gen}).Release()
}

// Swap is Replace for a set in use: it asks the backends that are new for their
// Info first, so that no query meets backends of which nothing is known. It takes
// no longer than Refresh.
func (s *Set) Swap(ctx context.Context, entries []Entry) {
	s.round.Lock()
	defer s.round.Unlock()
	var fresh []expected
	s.mu.Lock()
	for _, e := range entries {
		for _, x := range expand(e) {
			if s.known[key{x.name, x.b}] == nil {
				fresh = append(fresh, x)
			}
		}
	}
	s.mu.Unlock()
	s.learn(ctx, fresh)
	s.Replace(entries)
}

// learn asks for Info and returns when all have answered or their time is up. It
// needs s.round.
func (s *Set) learn(ctx context.Context, all []expected) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	s.mu.Lock()
	done := make(chan struct{}, len(all))
	waiting := 0
	for _, x := range all {
		k := key{x.name, x.b}
		r := s.known[k]
		if r == nil {
			r = &record{}
			s.known[k] = r
		}
		if x.gone != r.gone {
			r.gone = x.gone
			if x.gone != "" {
				s.opts.Logger.Warn("backend is expected but not to be found", "backend", x.name, "reason", x.gone)
			}
		}
		if x.gone != "" {
			r.healthy = false
			continue
		}
		if r.checking {
			continue
		}
		r.checking, r.begun = true, time.Now()
		waiting++
		go func() {
			s.check(ctx, x, r)
			done <- struct{}{}
		}()
	}
	s.mu.Unlock()

	for range waiting {
		select {
		case <-done:
			continue
		case <-ctx.Done():
		}
		// The others are late. Those that heed their context are back in no time.
		grace := time.NewTimer(100 * time.Millisecond)
		select {
		case <-done:
			grace.Stop()
			continue
		case <-grace.C:
		}
		break
	}
	s.mu.Lock()
	for _, x := range all {
		if r := s.known[key{x.name, x.b}]; r != nil && r.checking && time.Since(r.begun) >= s.opts.Timeout {
			r.healthy, r.lastErr = false, fmt.Sprintf("no Info within %s, and still hanging", s.opts.Timeout)
		}
	}
	s.mu.Unlock()
}

func (s *Set) check(ctx context.Context, x expected, r *record) {
	info, err := safeInfo(ctx, x.b)
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	was, first := r.healthy, !r.known && r.lastErr == ""
	r.checking, r.tried = false, now
	if err != nil && (was || r.lapsed.IsZero()) {
		r.lapsed = now
	}
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no Info within %s: %w", s.opts.Timeout, err)
		}
		r.healthy, r.lastErr = false, err.Error()
	} else {
		r.healthy, r.known, r.lastErr = true, true, ""
		r.info, r.lastCheck = info, now
	}
	switch {
	case err != nil && (was || first):
		s.opts.Logger.Warn("backend is unhealthy", "backend", x.name, "err", err)
	case err == nil && !was:
		s.opts.Logger.Info("backend is healthy", "backend", x.name, "component", info.Component, "labelSets", len(info.LabelSets))
	}
}

// safeMembers keeps a panic in discovery from ending the process.
func safeMembers(g backend.Group) (ms []backend.Member, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = backend.Errorf(backend.ErrInternal, "panic in Members: %v", p)
		}
	}()
	return g.Members(), nil
}

// safeInfo keeps a panic in a backend from ending the process.
func safeInfo(ctx context.Context, b backend.Backend) (info backend.Info, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = backend.Errorf(backend.ErrInternal, "panic in Info: %v", p)
		}
	}()
	return b.Info(ctx)
}
