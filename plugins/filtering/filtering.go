// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package filtering puts a chain of filters around a backend so that the result is
// a backend again, one that keeps the law of selection (sdk/filter) by construction,
// whatever the filters do: selecting M through the chain gives exactly the series s
// of the store for which the chain keeps s and its result matches M, under their
// new label sets and in order; label names and values are those of that result.
//
// A request goes inward: a matcher on a label that no link writes reaches the store
// as it is; one on a label that operations write is turned round where that is
// exact; any other is withheld, and evaluated on what comes out. The answer goes
// outward, the innermost link first.
//
// The matchers that the grant of a request enforces (core/access) are sent to the
// store besides all else, and are checked on every label set that it returns, before
// any filter sees that.
package filtering

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// OnFailure says what becomes of an answer if a filter cannot rewrite it.
type OnFailure uint8

const (
	// Closed fails the backend's share of the answer.
	Closed OnFailure = iota
	// Open passes label sets on as they are, with a notice that the answer is not
	// whole. Operations of the plan are done all the same.
	Open
)

// Link is one filter of a chain.
type Link struct {
	// Name is the filter's in the configuration.
	Name   string
	Filter carrier.Filter
	// Role is that of the plug-in's description.
	Role filter.Role
	// OnFailure is taken for Closed where a filter that is skipped would show more
	// than it may: see [Link.Policy].
	OnFailure OnFailure
	// OfStore says that what comes out of the link is what counts as the store's own:
	// external labels that the host adds for it, for one. What is enforced is turned
	// round through it and may be about labels that it writes, by operations that have
	// an inverse. Only the innermost links can be.
	OfStore bool
}

// Policy is OnFailure, or Closed for a filter of role auth or tenancy, and for one
// that drops or requires series or has the select hook.
func (l *Link) Policy() OnFailure {
	p := l.Filter.Plan()
	if l.Role != filter.RoleRewrite || p.Drops || slices.Contains(p.Hooks, filter.HookSelect) ||
		slices.ContainsFunc(p.Operations, func(o filter.Operation) bool { return o.Require != nil }) {
		return Closed
	}
	return l.OnFailure
}

// Options of a chain. The zero value is usable.
type Options struct {
	// Backend is the name of the backend in the configuration: filters with the
	// select hook are told, and errors say it.
	Backend string
	// ReplicaLabels are those by which users tell replicas apart: series that become
	// equal, and differed in these only, are pieces of one series.
	ReplicaLabels []string
	// Charge, if not nil, counts against the limits of the request what does not count
	// by being handed on: the bytes of what is about to be gathered because the order
	// has to be made anew, and series with their samples that were read and left out, or
	// read to find label names and values. Its error ends the call.
	Charge func(ctx context.Context, series, samples, bytes int) error
	// Release, if not nil, takes charged bytes back, before they are handed on and count
	// again, or when they are not held any more.
	Release func(ctx context.Context, bytes int)
	// Observe, if not nil, is told what each link did in each call, when the call ends.
	// It may be called concurrently, for different calls.
	Observe func(ctx context.Context, e Effect)
	// MemoBytes bounds what a chain of pure filters remembers; 0 is 32 MiB, below 0 is nothing.
	MemoBytes int
}

// Effect is what one link did in one call.
type Effect struct {
	Filter  string `json:"filter"`
	Backend string `json:"backend"`
	// Call is series, label_names, label_values, exemplars, metadata, rules or targets.
	Call string `json:"call"`
	// SeriesIn and SeriesOut are label sets before and after the link. Of the outermost
	// link SeriesOut counts those that the withheld matchers of the chain kept.
	SeriesIn  int `json:"series_in"`
	SeriesOut int `json:"series_out"`
	// Withheld are matchers that could not be sent past this link and were evaluated
	// on the result; Inward those that went on from it to the next link, or the store.
	Withheld []string `json:"withheld,omitempty"`
	Inward   []string `json:"inward,omitempty"`
	// Calls of the filter, the time they took, and rows or values that needed none
	// because the result was known from before.
	Calls    int     `json:"calls"`
	Seconds  float64 `json:"seconds"`
	MemoHits int     `json:"memo_hits"`
	// Failures are calls that failed; Error is the last of them.
	Failures int    `json:"failures,omitempty"`
	Error    string `json:"error,omitempty"`
}

// Check says whether the plans of a chain can be carried out at all: names that are
// empty or not valid UTF-8, matchers that do not compile, values mapped twice. It is for
// the start of a program; [Wrap] makes a backend that refuses everything of such a chain.
func Check(chain []Link) error {
	_, err := compile(chain, Options{})
	return err
}

// CheckProtected says whether a filter with this plan leaves the named labels alone,
// as every filter has to that stands outside of one which enforces them.
func CheckProtected(p filter.Plan, names []string) error {
	for _, n := range names {
		if why := writes(&p, n); why != "" {
			return fmt.Errorf("its plan writes the label %q (%s), which is enforced: leave that label alone, or take the filter out", n, why)
		}
	}
	return nil
}

// writes says, in words, how a plan writes a label; "" if it does not.
func writes(p *filter.Plan, name string) string {
	for i := range p.Operations {
		switch o := &p.Operations[i]; {
		case o.Rename != nil && o.Rename.From != o.Rename.To && (o.Rename.From == name || o.Rename.To == name):
			return fmt.Sprintf("operation %d renames %q to %q", i, o.Rename.From, o.Rename.To)
		case slices.Contains(o.Drop, name):
			return fmt.Sprintf("operation %d drops it", i)
		case o.Keep != nil && !slices.Contains(o.Keep, name):
			return fmt.Sprintf("operation %d keeps others only", i)
		case o.Set != nil && o.Set.Name == name:
			return fmt.Sprintf("operation %d sets it", i)
		case o.Map != nil && o.Map.Name == name:
			return fmt.Sprintf("operation %d maps its values", i)
		}
	}
	if mayWrite(p, name) {
		return "rewrite may write it"
	}
	return ""
}

// mayWrite says whether Rewrite, not the operations, may write a label.
func mayWrite(p *filter.Plan, name string) bool {
	if p.Tier == filter.TierNone {
		return false
	}
	if p.WritesAny && !slices.Contains(p.Keeps, name) {
		return true
	}
	return slices.Contains(p.Writes, name)
}

// Wrap returns b behind the chain, the outermost link first. The result is a
// backend.Group if b is one, and has all the optional interfaces; Info claims what b
// claims of them as far as it can be had through the chain. Closing it closes b and
// leaves the filters to whoever made them. b and the filters must not be used for
// calls of other meaning: what is wrapped may be called concurrently, as any backend.
func Wrap(b backend.Backend, chain []Link, o Options) backend.Backend {
	c, err := compile(chain, o)
	if err != nil {
		c = &stages{o: o, broken: backend.Errorf(backend.ErrInternal, "%s: %w", named(o.Backend), err)}
	}
	w := &wrapped{b: b, c: c}
	if g, ok := b.(backend.Group); ok {
		return &group{wrapped: w, g: g, members: map[backend.Backend]*wrapped{}}
	}
	return w
}

func named(backend string) string {
	if backend == "" {
		return "filters"
	}
	return "filters of backend " + backend
}

// group wraps the members of a backend.Group.
type group struct {
	*wrapped
	g backend.Group

	mu      sync.Mutex
	members map[backend.Backend]*wrapped
}

var _ backend.Group = (*group)(nil)

// Members implements backend.Group: the same member is the same wrapped backend for
// as long as the group has it.
func (g *group) Members() []backend.Member {
	in := g.g.Members()
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]backend.Member, len(in))
	there := make(map[backend.Backend]*wrapped, len(in))
	for i, m := range in {
		w := g.members[m.Backend]
		if w == nil {
			w = &wrapped{b: m.Backend, c: g.c, member: m.Name}
		}
		there[m.Backend] = w
		out[i] = m
		out[i].Backend = w
	}
	g.members = there
	return out
}
