// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package filters certifies filters: it calls the hooks of a configured instance with
// thousands of label sets, frames and callers, and compares what comes back with the
// contract of package filter; and it compares what is selected through the filter with
// the law of selection, by a reference of its own.
//
// In a test of your own:
//
//	s := &filters.Subject{Name: "mine", Filter: filters.InProcess(instance, 0), Wrap: wrap}
//	for _, r := range filters.Certify(t.Context(), s, filters.Options{}).Results { … }
package filters

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// Version of the suite of filters. The minor one grows when requirements are added.
const Version = "1.0"

// Backend is the name that select hooks are told; Wrap is to use it too, since a hook
// may decide by it.
const Backend = "certify"

// The profiles of filters, in the order of reports.
const (
	Hooks     = "hooks"
	Law       = "law"
	Decisions = "decisions"
	Hostile   = "hostile"
)

// Profiles are all of them, in order.
func Profiles() []string { return []string{Hooks, Law, Decisions, Hostile} }

// Filter is a configured instance as the host's carriers have it. Request and Select are
// called only if the plan names them. Rewrite appends its reply to reply[:0]; nothing is
// "unchanged". A call MUST return soon after its context is done.
type Filter interface {
	Plan() filter.Plan
	Request(ctx context.Context, c *filter.RequestCall) (*filter.RequestReply, error)
	Select(ctx context.Context, c *filter.SelectCall) (*filter.SelectReply, error)
	Rewrite(ctx context.Context, frame, reply []byte) ([]byte, error)
}

// Caller is one who asks, with what has to become of it.
type Caller struct {
	Caller filter.Caller
	// Denied: whatever this caller asks must be denied. Otherwise nothing is said.
	Denied bool
}

// Subject is a filter that is to be certified, and what the harness may do with it.
type Subject struct {
	// What the report says of it: see report.Subject.
	Name, Launch, Origin, SHA256, Version string
	Role                                  filter.Role
	// Filter is the configured instance.
	Filter Filter
	// Wrap puts the filter around a backend as a host does, without any replica labels
	// and under the name [Backend]; nil leaves the law untested. It may be called often.
	Wrap func(inner backend.Backend) backend.Backend
	// Fault says whether an error is a fault (a crash, a trap, a timeout, an invalid
	// reply) and not something that the filter said; nil knows those of InProcess only.
	Fault func(error) bool
	// Idempotent: f(f(s)) = f(s) is promised.
	Idempotent bool
	// Memory, if not nil, is what the filter takes now, in bytes. Heap is one for filters
	// in this process.
	Memory func() int64
	// CallLimit is what a call may take; 0 is 500 ms.
	CallLimit time.Duration
	// Callers to try the request hook with besides generic ones.
	Callers []Caller
	// Series are label sets that the configuration is about, besides generic ones made
	// from the plan: a regular expression within the filter is in no plan.
	Series []labels.Labels
	// NotClaimed are profiles that its owner leaves out, with the reason.
	NotClaimed map[string]string
}

// Requirement is one thing that is tested.
type Requirement struct {
	// ID is the contract's rule and what of it; it never changes.
	ID      string
	Profile string
	Level   report.Level
	// Rule is the sentence of the contract.
	Rule  string
	Since string

	// unless says why the requirement does not apply, "" if it does; lacking why it
	// cannot be tested here.
	unless, lacking func(*probe) string
	check           func(*probe)
}

// Requirements are all of them, in the order in which they run.
func Requirements() []Requirement {
	return slices.Concat(hooks(), law(), decisions(), hostile())
}

// Options of a run.
type Options struct {
	Seed uint64
	// Run, if not nil, selects requirements by id; Profiles, if not empty, by profile.
	Run      func(id string) bool
	Profiles []string
	// Progress, if not nil, is told of each requirement when it is done.
	Progress func(report.Result)
}

// Certify runs the suite. When ctx is done, what has not run yet is skipped.
func Certify(ctx context.Context, s *Subject, o Options) *report.Report {
	began := time.Now()
	rep := &report.Report{
		Suite: Version, Kind: "filter", Seed: o.Seed, Began: began.UTC().Truncate(time.Second),
		Subject: report.Subject{Name: s.Name, Launch: s.Launch, Origin: s.Origin, SHA256: s.SHA256, Version: s.Version, Claims: []string{}},
	}
	p := newProbe(ctx, s, o)
	rep.Subject.Claims = append(rep.Subject.Claims, p.claims()...)
	for _, name := range Profiles() {
		rep.Profiles = append(rep.Profiles, p.preset(name))
	}
	partial := false
	for _, r := range Requirements() {
		if o.Run != nil && !o.Run(r.ID) || len(o.Profiles) > 0 && !slices.Contains(o.Profiles, r.Profile) {
			partial = true
			continue
		}
		res := p.one(r)
		rep.Results = append(rep.Results, *res)
		rep.Requests += res.Requests
		if o.Progress != nil {
			o.Progress(*res)
		}
	}
	rep.Seconds = time.Since(began).Seconds()
	rep.Settle(partial)
	return rep
}

// claims are what the plan promises, in words.
func (p *probe) claims() (out []string) {
	add := func(on bool, word string) {
		if on {
			out = append(out, word)
		}
	}
	for _, h := range p.plan.Hooks {
		add(true, h)
	}
	add(p.plan.Tier != filter.TierNone, "rewrite")
	add(len(p.plan.Operations) > 0, "operations")
	add(p.plan.Drops, "drops")
	add(p.plan.Merge, "merge")
	add(p.plan.Pure, "pure")
	add(p.s.Idempotent, "idempotent")
	return out
}

// preset is a profile before anything was tested.
func (p *probe) preset(name string) report.Profile {
	out := report.Profile{Name: name}
	why := p.s.NotClaimed[name]
	switch {
	case why != "":
	case name == Law && !p.rewrites():
		why = "the plan rewrites no label sets"
	case name == Decisions && !p.hook(filter.HookRequest) && !p.hook(filter.HookSelect):
		why = "the plan names neither the request nor the select hook"
	case name == Hostile && p.plan.Tier == filter.TierNone && len(p.plan.Hooks) == 0:
		why = "with this plan the host does everything and never calls the filter"
	}
	if why != "" {
		out.State, out.Reason = report.ProfileNotClaimed, why
	}
	return out
}

// one runs one requirement.
func (p *probe) one(r Requirement) *report.Result {
	began := time.Now()
	res := &report.Result{ID: r.ID, Profile: r.Profile, Level: r.Level, Rule: r.Rule, Since: r.Since}
	p.r, p.res = r, res
	p.requests.Store(0)
	defer func() { res.Requests, res.Seconds = int(p.requests.Load()), time.Since(began).Seconds() }()
	if p.ctx.Err() != nil {
		res.Outcome, res.Detail = report.Skipped, "the run ended before"
		return res
	}
	if p.broken != nil && r.ID != "F-plan.valid" {
		res.Outcome = report.Failed
		p.fail("plan", "nothing can be tested with a plan that is not possible: %v", p.broken)
		return res
	}
	if r.unless != nil {
		if why := r.unless(p); why != "" {
			res.Outcome, res.Detail = report.NotApplicable, why
			return res
		}
	}
	if r.lacking != nil {
		if why := r.lacking(p); why != "" {
			res.Outcome, res.Detail = report.Skipped, why
			return res
		}
	}
	res.Outcome = report.Passed
	func() {
		defer func() {
			// Not of the filter, whose panics are faults: of what the harness was given.
			if v := recover(); v != nil {
				p.fail("the last call", "the harness panics: %v\n%.2000s", v, debug.Stack())
			}
		}()
		r.check(p)
	}()
	if p.ctx.Err() != nil && res.Outcome == report.Passed {
		res.Outcome, res.Detail = report.Skipped, "the run ended before the requirement was tested"
	}
	return res
}

// ErrFault is wrapped by faults of filters that InProcess carries, and by those that
// the suite itself finds.
var ErrFault = errors.New("fault of the filter")

// InProcess carries an instance as hosts do that have it compiled in: a panic, a reply
// that is too long and a call of more than limit (0 is 500 ms) are errors that wrap
// ErrFault. A call that is late is left behind with its goroutine.
func InProcess(in filter.Instance, limit time.Duration) Filter {
	if limit <= 0 {
		limit = defaultLimit
	}
	return &inProcess{in, limit}
}

const defaultLimit = 500 * time.Millisecond

type inProcess struct {
	in    filter.Instance
	limit time.Duration
}

func (f *inProcess) Plan() filter.Plan { return f.in.Plan() }

func (f *inProcess) Request(ctx context.Context, c *filter.RequestCall) (*filter.RequestReply, error) {
	r, ok := f.in.(filter.Requester)
	if !ok {
		return nil, backend.Errorf(backend.ErrUnsupported, "the instance has no request hook")
	}
	return within(ctx, f.limit, func() (*filter.RequestReply, error) { return r.Request(c) })
}

func (f *inProcess) Select(ctx context.Context, c *filter.SelectCall) (*filter.SelectReply, error) {
	s, ok := f.in.(filter.Selector)
	if !ok {
		return nil, backend.Errorf(backend.ErrUnsupported, "the instance has no select hook")
	}
	return within(ctx, f.limit, func() (*filter.SelectReply, error) { return s.Select(c) })
}

func (f *inProcess) Rewrite(ctx context.Context, b, reply []byte) ([]byte, error) {
	r, ok := f.in.(filter.Rewriter)
	if !ok {
		return nil, backend.Errorf(backend.ErrUnsupported, "the instance has no rewrite hook")
	}
	got, err := within(ctx, f.limit, func() ([]byte, error) {
		// Not kept from call to call: one that was left behind may use them for ever.
		var in frame.Frame
		var out frame.Reply
		if err := in.Parse(b); err != nil {
			return nil, backend.Errorf(backend.ErrInvalid, "the frame is invalid: %w", err)
		}
		out.Reset(&in)
		if err := r.Rewrite(&in, &out); err != nil {
			return nil, err
		}
		return out.Append(nil), nil
	})
	if most := 4*len(b) + 1<<20; err == nil && len(got) > most {
		return nil, fmt.Errorf("%w: the reply has %d bytes, more than the %d that it may have", ErrFault, len(got), most)
	}
	if err != nil || len(got) == 0 {
		return nil, err
	}
	return append(reply[:0], got...), nil
}

// answer is what a call returned.
type answer[R any] struct {
	r   R
	err error
}

// within calls f, which may panic, in a goroutine of its own, and waits no longer than limit.
func within[R any](ctx context.Context, limit time.Duration, f func() (R, error)) (R, error) {
	done := make(chan answer[R], 1)
	go func() {
		var a answer[R]
		defer func() {
			if v := recover(); v != nil {
				a.err = fmt.Errorf("%w: panic: %v\n%.2000s", ErrFault, v, debug.Stack())
			}
			done <- a
		}()
		a.r, a.err = f()
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	var none R
	select {
	case a := <-done:
		return a.r, a.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	case <-t.C:
		return none, fmt.Errorf("%w: no answer within %v: %w", ErrFault, limit, context.DeadlineExceeded)
	}
}

// Heap is the memory of this process that is in use, for Subject.Memory.
func Heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
