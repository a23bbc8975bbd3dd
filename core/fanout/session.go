// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package fanout asks the backends: it decides which of them have to be asked,
// asks those all at once, each within its own time budget, checks and merges
// what they send, and keeps account of who is missing.
//
// A request makes one Session. Collect gathers whole selections for the PromQL
// engines, Stream merges without gathering for peers that speak StoreAPI, and
// Each is for everything that is not series.
package fanout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
)

// Options of a Session.
type Options struct {
	View *membership.View
	// Limits are charged with all that arrives.
	Limits *limits.Query
	// Partial allows an answer without some best-effort backends.
	Partial bool
	// StoreMatch: see query.Options.
	StoreMatch [][]*labels.Matcher
	// ReplicaLabels tell replicas apart; a missing backend is covered by another
	// one with the same external labels but for these.
	ReplicaLabels []string
	// Tracer makes one span per backend asked; nil makes none.
	Tracer trace.Tracer
	// Grant is what the request may see; nil is everything. Its matchers are part of
	// every question, and hold on everything that is returned.
	Grant *access.Grant
	// RequestID tells a caller who may not know details where the operator finds them.
	RequestID string
	// Logger gets those details; nil discards them.
	Logger *slog.Logger
}

// Session is one request's use of the backends. It is safe for concurrent use.
type Session struct {
	Options

	// gate bounds the selections that are under way at a time.
	gate chan struct{}

	mu      sync.Mutex
	selects []*report.Select
	asks    [][]*ask
}

// maxSelections is more than the selectors of all but the strangest queries.
const maxSelections = 32

// NewSession begins a request. The view stays the caller's.
func NewSession(o Options) *Session {
	if o.Tracer == nil {
		o.Tracer = noop.Tracer{}
	}
	if o.Grant == nil {
		o.Grant = access.Everything()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Session{Options: o, gate: make(chan struct{}, maxSelections)}
}

// MissingError is a request that failed because a backend is missing which is
// required, or because no partial answer was wanted.
type MissingError struct {
	Missing  report.Missing
	Required bool
	Err      error
}

// Error names the backend.
func (e *MissingError) Error() string {
	why := "a partial answer is not allowed"
	if e.Required {
		why = "it is required"
	}
	return fmt.Sprintf("backend %s and %s", e.Missing, why)
}

// Unwrap gives the cause.
func (e *MissingError) Unwrap() error { return e.Err }

// ask is one backend in one selection. Its row is written under the session's
// lock, and read after finish.
type ask struct {
	s     *Session
	m     *membership.Member
	row   *report.Row
	q     *Question
	begun time.Time
	// over: nobody listens any more. A backend that hangs and comes back late must
	// not change a report that is already out.
	over bool
}

var errOver = errors.New("came too late")

// ErrUnneeded as the cause of a cancelled context says that the rest of an answer is
// not wanted any more: nothing is missing for it.
var ErrUnneeded = errors.New("not needed any more")

// plan decides about every member and notes it in sel. It returns an ask per
// member, the ones to be asked among them in state RowWouldAsk, and fails if
// the answer cannot become what is wanted.
func (s *Session) plan(q Question, sel *report.Select) ([]*ask, error) {
	q.StoreMatch, q.Enforce = s.StoreMatch, s.Grant.Enforce
	lo, hi := s.Grant.Clip(q.MinTime, q.MaxTime)
	q.outside = q.MinTime <= q.MaxTime && lo > hi
	q.MinTime, q.MaxTime = lo, hi
	n := len(s.View.Members)
	all, asks, rows := make([]*ask, n), make([]ask, n), make([]report.Row, n)
	sel.Backends = make([]*report.Row, n)
	d := newDecider(q)
	for i, m := range s.View.Members {
		row := &rows[i]
		row.Backend, row.Kind, row.Required = m.Name, m.Kind, m.Required
		row.LabelSets, row.MinTime, row.MaxTime = m.Info.LabelSets, m.Info.MinTime, m.Info.MaxTime
		row.State, row.Reason, row.Detail = d.decide(m)
		asks[i] = ask{s: s, m: m, row: row, q: &d.Question}
		all[i], sel.Backends[i] = &asks[i], row
	}
	s.mu.Lock()
	s.asks[s.reserve(sel)] = all
	s.mu.Unlock()
	for _, a := range all {
		if a.row.State != report.RowSkipped {
			continue
		}
		if a.m.Required || !s.Partial && !covered(a, all, s.ReplicaLabels) {
			return nil, a.missingError(backend.ErrUnavailable)
		}
	}
	return all, nil
}

// Reserve gives a selection that is going to be made its place in the report, so
// that the order there is the caller's although selections run side by side.
func (s *Session) Reserve(sel *report.Select) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserve(sel)
}

// reserve needs s.mu.
func (s *Session) reserve(sel *report.Select) int {
	i := slices.Index(s.selects, sel)
	if i < 0 {
		i = len(s.selects)
		s.selects, s.asks = append(s.selects, sel), append(s.asks, nil)
	}
	return i
}

func toAsk(all []*ask) []*ask {
	var out []*ask
	for _, a := range all {
		if a.row.State == report.RowWouldAsk {
			out = append(out, a)
		}
	}
	return out
}

// budgetShare is the part of a request's remaining time that a backend without a
// timeout of its own may take; the rest is for evaluating what the others sent.
const budgetShare = 0.9

// begin starts the clock of one backend. The context ends with its budget.
func (a *ask) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, span := a.start(ctx)
	budget, ok := a.budget(ctx)
	if !ok {
		ctx, cancel := context.WithCancel(ctx)
		return ctx, func() { span.End(); cancel() }
	}
	ctx, cancel := context.WithTimeoutCause(ctx, budget, &budgetError{budget})
	return ctx, func() { span.End(); cancel() }
}

func (a *ask) start(ctx context.Context) (context.Context, trace.Span) {
	a.begun = time.Now()
	ctx = context.WithValue(access.WithGrant(ctx, a.s.Grant), accountKey{}, &Account{a})
	return a.s.Tracer.Start(ctx, "backend "+a.m.Name, trace.WithAttributes(
		attribute.String("promweave.backend", a.m.Name), attribute.String("promweave.kind", a.m.Kind)))
}

// budget is the time that the backend may take; false if there is no bound.
func (a *ask) budget(ctx context.Context) (time.Duration, bool) {
	budget := a.m.Timeout
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Duration(float64(time.Until(deadline)) * budgetShare)
		if budget <= 0 || left < budget {
			budget = left
		}
		return budget, true
	}
	return budget, budget > 0
}

// clock is a backend's time budget that stands still while the backend waits for
// us: while its batches are not yet wanted, because the consumer is slow or others
// come first.
type clock struct {
	left    time.Duration
	since   time.Time
	timer   *time.Timer // nil: no bound
	running bool
}

// beginClock is begin with a budget that can be held.
func (a *ask) beginClock(ctx context.Context) (context.Context, context.CancelFunc, *clock) {
	ctx, span := a.start(ctx)
	budget, ok := a.budget(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	c := &clock{left: budget, since: a.begun, running: true}
	if ok {
		c.timer = time.AfterFunc(budget, func() { cancel(&budgetError{budget}) })
	}
	return ctx, func() {
		if c.timer != nil {
			c.timer.Stop()
		}
		span.End()
		cancel(nil)
	}, c
}

// hold stops the clock, and run lets it go on. Both are called by one goroutine.
func (c *clock) hold() {
	if c.timer != nil && c.running && c.timer.Stop() {
		c.left -= time.Since(c.since)
		c.running = false
	}
}

func (c *clock) run() {
	if c.timer != nil && !c.running {
		c.since, c.running = time.Now(), true
		c.timer.Reset(c.left)
	}
}

type budgetError struct{ budget time.Duration }

func (e *budgetError) Error() string {
	return fmt.Sprintf("no whole answer within its time budget of %s", e.budget.Round(time.Millisecond))
}
func (*budgetError) Unwrap() error { return context.DeadlineExceeded }

// finish notes how one backend's share ended. It returns an error if the whole
// request has to fail for it.
func (a *ask) finish(ctx context.Context, err error) error {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	r := a.row
	a.over = true
	r.Total = time.Since(a.begun).Seconds()
	span := trace.SpanFromContext(ctx)
	span.SetAttributes(attribute.Int("promweave.series", r.Series), attribute.Int("promweave.chunks", r.Chunks), attribute.Int("promweave.bytes", r.Bytes))
	if err == nil {
		if r.State == report.RowWouldAsk {
			r.State = report.RowAnswered
		}
		if r.State == report.RowPartial && (r.Required || !s.Partial) {
			return a.missingError(nil)
		}
		return nil
	}
	span.SetStatus(codes.Error, err.Error())
	var (
		budget *budgetError
		proto  *protocolError
		limit  *limits.Exceeded
	)
	r.State = report.RowFailed
	r.Detail = err.Error()
	switch {
	case errors.As(err, &limit):
		r.State, r.Reason = report.RowCancelled, report.ReasonLimit
		return err
	case errors.As(err, &proto):
		r.Reason = report.ReasonProtocol
	case errors.As(context.Cause(ctx), &budget):
		r.Reason, r.Detail = report.ReasonTimeout, budget.Error()
	case errors.Is(context.Cause(ctx), ErrUnneeded):
		r.State, r.Detail = report.RowCancelled, ""
		return context.Cause(ctx)
	case ctx.Err() != nil:
		// Called off from here: by the client, or because another one failed.
		r.State, r.Reason = report.RowCancelled, report.ReasonTimeout
		return context.Cause(ctx)
	case errors.Is(err, backend.ErrLimit):
		r.Reason = report.ReasonLimit
	case errors.Is(err, backend.ErrDenied):
		r.Reason = report.ReasonDenied
	default:
		r.Reason = report.ReasonFailed
	}
	a.log("the share of a backend is missing", "reason", r.Reason, "detail", r.Detail)
	if r.Required || !s.Partial && !covered(a, a.siblings(), s.ReplicaLabels) {
		return a.missingError(err)
	}
	return nil
}

// callOff notes that the rest of the answer is not wanted. That is no fault, and
// nothing is missing for it.
func (a *ask) callOff() {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if a.over {
		return
	}
	a.over = true
	a.row.Total = time.Since(a.begun).Seconds()
	if a.row.State == report.RowWouldAsk {
		a.row.State = report.RowCancelled
	}
}

// siblings are the asks of the same selection. It needs s.mu.
func (a *ask) siblings() []*ask {
	for _, all := range a.s.asks {
		if slices.Contains(all, a) {
			return all
		}
	}
	return nil
}

func (a *ask) missing() report.Missing {
	return report.Missing{Backend: a.m.Name, Reason: a.row.Reason, Detail: a.row.Detail}
}

func (a *ask) missingError(err error) error {
	return &MissingError{Missing: a.missing(), Required: a.m.Required, Err: err}
}

// notice takes what a backend says about its answer.
func (a *ask) notice(n backend.Notice) {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if a.over {
		return
	}
	if n.Kind == backend.NoticeInfo && !a.s.Grant.Admin {
		return // nothing is wrong, and the words of a backend are for its operator
	}
	const most = 20 // a peer may send one per block, for ever
	if len(a.row.Notices) < most {
		a.row.Notices = append(a.row.Notices, n.Text)
		a.log("a backend says", "text", n.Text)
	}
	if n.Kind == backend.NoticeMissing {
		a.row.State, a.row.Reason = report.RowPartial, report.ReasonIncomplete
		if a.row.Detail == "" {
			a.row.Detail = n.Text
		}
	}
}

// covered says whether what a missing backend would have sent can be had from
// others: for each of its external label sets there is a backend that has the
// same set, replica labels aside, over at least the same time, and that answered,
// or is being asked.
func covered(a *ask, all []*ask, replicaLabels []string) bool {
	sets := a.m.Info.LabelSets
	if len(replicaLabels) == 0 || len(sets) == 0 || !a.m.Known {
		return false
	}
	lo, hi := max(a.q.MinTime, a.m.Info.MinTime), min(a.q.MaxTime, a.m.Info.MaxTime)
	for _, set := range sets {
		if firstContradiction(set, a.q.all) >= 0 {
			continue // not part of the question
		}
		stripped := set.MatchLabels(false, replicaLabels...)
		if stripped.Len() == set.Len() {
			return false // no replica of anything
		}
		ok := slices.ContainsFunc(all, func(o *ask) bool {
			if o == a || o.row.State != report.RowAnswered && o.row.State != report.RowWouldAsk ||
				o.m.Info.MinTime > lo || o.m.Info.MaxTime < hi {
				return false
			}
			same := func(x labels.Labels) bool {
				return x.Len() > stripped.Len() && labels.Equal(x.MatchLabels(false, replicaLabels...), stripped)
			}
			if rs := o.m.Info.Ranges; len(rs) > 0 {
				// It says more exactly what it has of which set.
				return slices.ContainsFunc(rs, func(x backend.LabelSetRange) bool {
					return same(x.Labels) && x.MinTime <= lo && x.MaxTime >= hi
				})
			}
			return slices.ContainsFunc(o.m.Info.LabelSets, same)
		})
		if !ok {
			return false
		}
	}
	return true
}

// Completeness is how whole the answers were so far.
func (s *Session) Completeness() report.Completeness {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := report.Completeness{State: report.Complete}
	if !s.View.Checked {
		c.State = report.Unknown
	}
	for _, all := range s.asks {
		for _, a := range all {
			switch a.row.State {
			case report.RowAnswered:
				// Plain StoreAPI, for one, has no words for completeness.
				if !a.m.Info.Capabilities.Completeness && !slices.Contains(c.OnPeersWord, a.m.Name) {
					c.OnPeersWord = append(c.OnPeersWord, a.m.Name)
				}
			case report.RowSkipped, report.RowFailed, report.RowPartial, report.RowCancelled:
				m := a.missing()
				if m.Reason == "" {
					continue // called off when all that was wanted had come
				}
				if a.row.State != report.RowPartial && covered(a, all, s.ReplicaLabels) {
					if !slices.Contains(c.Covered, m) {
						c.Covered = append(c.Covered, m)
					}
					continue
				}
				c.State = report.Partial
				if !slices.ContainsFunc(c.Missing, func(x report.Missing) bool { return x.Backend == m.Backend && x.Reason == m.Reason }) {
					c.Missing = append(c.Missing, m)
				}
			}
		}
	}
	return c
}

// Selects are the rows of the report so far.
func (s *Session) Selects() []*report.Select {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.selects)
}

// Explain notes in sel what would be asked, and asks nobody.
func (s *Session) Explain(q Question, sel *report.Select) {
	_, _ = s.plan(q, sel)
}
