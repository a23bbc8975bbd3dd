// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package gate asks filters about requests: it is the access.Gate of an engine whose
// configuration names filters with the request hook. Every one of them has to let a
// request go on; what they enforce adds up, of bounds the narrowest counts. A filter
// that fails refuses: there is no other way to be safe.
package gate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// Link is a filter that is asked.
type Link struct {
	Name   string
	Filter carrier.Filter
}

// Gate implements access.Gate. It is safe for concurrent use.
type Gate struct {
	links     []Link
	challenge string
	log       *slog.Logger
	large     chan struct{}
}

var _ access.Gate = (*Gate)(nil)

// New returns a gate that asks those of the links, in order, whose plan has the
// request hook. challenge goes with refusals of callers whom nobody knows.
func New(links []Link, challenge string, log *slog.Logger) *Gate {
	g := &Gate{challenge: challenge, log: log, large: make(chan struct{}, 1)}
	for _, l := range links {
		if slices.Contains(l.Filter.Plan().Hooks, filter.HookRequest) {
			g.links = append(g.links, l)
		}
	}
	return g
}

// Admit implements access.Gate.
func (g *Gate) Admit(ctx context.Context, ask *access.Ask) (*access.Grant, error) {
	caller := access.CallerOf(ctx)
	// Somebody who is known may see everything where no filter says less: then there
	// is no rule that could be broken.
	grant := &access.Grant{Subject: caller.Subject, MinTime: math.MinInt64, MaxTime: math.MaxInt64, Admin: len(g.links) == 0}
	if len(g.links) == 0 {
		return grant, nil
	}
	size, err := check(caller, ask)
	if err != nil {
		return nil, err
	}
	if size > largeText {
		// One after the other, so that they do not take each other's time.
		select {
		case g.large <- struct{}{}:
			defer func() { <-g.large }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	call, err := callOf(caller, ask)
	if err != nil {
		return nil, err
	}
	asked := ctx
	if size > largeText {
		asked = carrier.Large(ctx)
	}
	for _, l := range g.links {
		r, err := l.Filter.Request(asked, call)
		if err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if size > largeText && errors.Is(err, carrier.ErrTimeout) {
				g.log.Warn("a filter could not decide in time about a large request, which is refused", "filter", l.Name, "subject", caller.Subject, "bytes", size)
				return nil, &access.Denied{Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf(
					"filter %s could not decide in time about a request of this size; ask for less at once", l.Name)}
			}
			g.log.Error("a filter could not decide about a request, which is refused", "filter", l.Name, "subject", caller.Subject, "err", err)
			return nil, backend.Errorf(backend.ErrUnavailable, "filter %s cannot decide about requests at the moment: %w", l.Name, hidden{err})
		}
		if r == nil {
			r = &filter.RequestReply{}
		}
		if r.Deny != nil {
			g.log.Info("refused", "filter", l.Name, "subject", caller.Subject, "method", caller.Method, "kind", ask.Kind, "reason", r.Deny.Message)
			return nil, g.denied(l.Name, r.Deny)
		}
		if err := narrow(grant, r); err != nil {
			g.log.Error("a filter gave an answer that means nothing; the request is refused", "filter", l.Name, "err", err)
			return nil, backend.Errorf(backend.ErrUnavailable, "filter %s cannot decide about requests at the moment", l.Name)
		}
		grant.Filters = append(grant.Filters, l.Name)
	}
	if grant.Admin && len(grant.Enforce) == 0 && len(grant.Tenants) > 0 {
		g.log.Info("all tenants at once", "subject", grant.Subject, "method", caller.Method, "kind", ask.Kind, "query", ask.Query)
	}
	return grant, nil
}

// hidden keeps the text of an error, which may say more than a caller should know,
// out of the answer; what kind it was stays known.
type hidden struct{ err error }

func (hidden) Error() string { return "ask the operator" }

// Unwrap gives the cause to errors.Is.
func (h hidden) Unwrap() error { return h.err }

func (g *Gate) denied(name string, d *filter.Denial) error {
	status := int(d.Status)
	if status < 400 || status > 599 {
		status = http.StatusForbidden
	}
	out := &access.Denied{Status: status, Message: cmp.Or(clean(d.Message), "filter "+name+" refuses this")}
	if status == http.StatusUnauthorized {
		out.Challenge = g.challenge
	}
	return out
}

// clean makes a line of text of what a filter says.
func clean(s string) string {
	const most = 500
	s = strings.ToValidUTF8(s, "�")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// narrow adds what a filter said to a grant.
func narrow(g *access.Grant, r *filter.RequestReply) error {
	for _, m := range r.Enforce {
		if m.Name == "" {
			return errors.New("a matcher without a label name")
		}
		x, err := labels.NewMatcher(matchTypes[m.Type&3], m.Name, m.Value)
		if err != nil || m.Type > filter.MatchNotRegexp {
			return fmt.Errorf("matcher on %q: %v", m.Name, err)
		}
		g.Enforce = append(g.Enforce, x)
	}
	for _, t := range r.Tenants {
		if !slices.Contains(g.Tenants, t) {
			g.Tenants = append(g.Tenants, t)
		}
	}
	g.Admin = g.Admin || r.Admin
	if r.Subject != "" {
		g.Subject = clean(r.Subject)
	}
	if r.HasTimeRange {
		g.MinTime, g.MaxTime = max(g.MinTime, r.MinTime), min(g.MaxTime, r.MaxTime)
	}
	lower(&g.MaxSeries, r.MaxSeries)
	lower(&g.MaxSamples, r.MaxSamples)
	lower(&g.MaxBytes, r.MaxBytes)
	return nil
}

func lower(limit *int64, by uint64) {
	if n := int64(min(by, math.MaxInt64)); n > 0 && (*limit == 0 || n < *limit) {
		*limit = n
	}
}

var matchTypes = [...]labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp}

var filterTypes = map[labels.MatchType]filter.MatchType{
	labels.MatchEqual: filter.MatchEqual, labels.MatchNotEqual: filter.MatchNotEqual,
	labels.MatchRegexp: filter.MatchRegexp, labels.MatchNotRegexp: filter.MatchNotRegexp,
}

// mostText bounds the text of a request that filters are shown, with what each matcher
// costs beside its text. It is far above what people and dashboards ask. A filter has
// only so much time, and one that takes too long may be taken for faulty: nobody is to
// get a filter out of service, for everybody, by what they ask.
const (
	mostText    = 512 << 10
	largeText   = 32 << 10
	matcherCost = 256
)

// check refuses what cannot be put to filters: every one of them is to see the whole
// request, and in the messages of the contract text is UTF-8.
func check(c *access.Caller, ask *access.Ask) (int, error) {
	size := len(ask.Query)
	valid := utf8.ValidString(ask.Query)
	for _, values := range c.Headers {
		for _, v := range values {
			size += len(v) + matcherCost // also of an empty one
			valid = valid && utf8.ValidString(v)
		}
	}
	for _, ms := range ask.Selectors {
		for _, m := range ms {
			size += len(m.Name) + len(m.Value) + matcherCost
			valid = valid && utf8.ValidString(m.Name) && utf8.ValidString(m.Value)
		}
	}
	switch {
	case size > mostText:
		return 0, &access.Denied{Status: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf(
			"the request is too large for the filters that decide about it: its matchers and headers come to %d bytes, and at most %d are allowed; ask for less at once", size, mostText)}
	case !valid:
		return 0, &access.Denied{Status: http.StatusBadRequest, Message: "a matcher, a name or a header of the request is not valid UTF-8"}
	}
	return size, nil
}

func callOf(c *access.Caller, ask *access.Ask) (*filter.RequestCall, error) {
	out := &filter.RequestCall{
		Kind: ask.Kind, Query: ask.Query, Start: ask.Start, End: ask.End, Step: ask.Step, Window: ask.Window,
		Caller: filter.Caller{Method: c.Method, Subject: c.Subject, Claims: c.Claims},
	}
	if len(c.Claims) > 0 {
		var err error
		if out.Caller.ClaimSettings, err = filter.Settings(c.Claims); err != nil {
			return nil, access.Forbidden("the claims of %s cannot be read", c.Subject)
		}
	}
	for name, values := range c.Headers {
		out.Caller.Headers = append(out.Caller.Headers, filter.Header{Name: name, Values: values})
	}
	slices.SortFunc(out.Caller.Headers, func(a, b filter.Header) int { return strings.Compare(a.Name, b.Name) })
	for _, ms := range ask.Selectors {
		list := make([]filter.Matcher, len(ms))
		for i, m := range ms {
			list[i] = filter.Matcher{Type: filterTypes[m.Type], Name: m.Name, Value: m.Value}
		}
		out.Selectors = append(out.Selectors, list)
	}
	return out, nil
}
