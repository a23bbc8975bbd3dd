// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
)

// Admit asks the gate, for requests that no other method of Service stands for. It
// fails closed: whatever goes wrong, and an answer without a grant, is a refusal.
// Errors are of kind ErrDenied, or ErrUnavailable where there is nobody to decide.
func (s *Service) Admit(ctx context.Context, q *access.Ask) (grant *access.Grant, err error) {
	if s.cfg.Gate == nil {
		return access.Everything(), nil
	}
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Logger.Error("the decision about a request panicked", "kind", q.Kind, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			grant, err = nil, &Error{Kind: ErrDenied, Err: access.Forbidden("the decision about the request failed; the log of the server has the details")}
		}
		if err != nil {
			s.metrics.denied.WithLabelValues(q.Kind).Inc()
		}
	}()
	grant, err = s.cfg.Gate.Admit(ctx, q)
	if err == nil && grant == nil {
		err = access.Forbidden("nothing was granted")
	}
	var denied *access.Denied
	switch {
	case err == nil:
		return grant, nil
	case errors.As(err, &denied):
		return nil, &Error{Kind: ErrDenied, Err: denied}
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return nil, &Error{Kind: ErrTimeout, Err: err}
	case ctx.Err() != nil:
		return nil, &Error{Kind: ErrCanceled, Err: err}
	case errors.Is(err, backend.ErrUnavailable):
		return nil, &Error{Kind: ErrUnavailable, Err: err}
	}
	return nil, &Error{Kind: ErrDenied, Err: err}
}

// AccessOf is a grant as reports show it.
func AccessOf(g *access.Grant) *report.Access {
	out := &report.Access{Subject: g.Subject, Tenants: g.Tenants, Admin: g.Admin, Filters: g.Filters}
	for _, m := range g.Enforce {
		out.Enforced = append(out.Enforced, m.String())
	}
	return out
}

// ask is the request as the gate sees it.
func (req *Request) ask(kind string, c *checked) *access.Ask {
	return &access.Ask{
		Kind: kind, Query: req.Query, Selectors: c.selectors,
		Start: req.Start.UnixMilli(), End: req.End.UnixMilli(), Step: req.Step.Milliseconds(), Window: c.window.Milliseconds(),
	}
}

func (req *MetaRequest) ask(kind string) *access.Ask {
	return &access.Ask{
		Kind: kind, Query: req.Name, Selectors: req.Matchers,
		Start: req.Start.UnixMilli(), End: req.End.UnixMilli(),
	}
}

// Stores tells what is known of each expected backend that the caller may know of.
// Who is not the operator does not learn why a backend fails: its errors may tell
// anything.
func (s *Service) Stores(ctx context.Context) ([]membership.Status, error) {
	g, err := s.Admit(ctx, &access.Ask{Kind: "stores"})
	if err != nil {
		return nil, err
	}
	all := s.set.Status()
	if g.Admin {
		return all, nil
	}
	out := make([]membership.Status, 0, len(all))
	for _, st := range all {
		st, ok := fanout.Cut(g, st)
		if !ok {
			continue
		}
		if st.LastError != "" {
			st.LastError = "the log of the server has the details"
		}
		if st.Gone != "" {
			st.Gone = "it is not to be found"
		}
		st.Warning = ""
		out = append(out, st)
	}
	return out, nil
}
