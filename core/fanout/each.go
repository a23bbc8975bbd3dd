// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout

import (
	"context"

	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
)

// Answer is what one backend said.
type Answer[T any] struct {
	Member *membership.Member
	Value  T
}

// Each asks every backend that q concerns and for which can, if not nil, is true,
// all at once, and returns the answers in order of the backends' names. Backends
// that cannot are pruned for lack of the capability. An error fails the request.
func Each[T any](ctx context.Context, s *Session, q Question, sel *report.Select, can func(*membership.Member) bool,
	call func(context.Context, *membership.Member) (T, []backend.Notice, error),
) ([]Answer[T], error) {
	return each(ctx, s, q, sel, can, func(ctx context.Context, a *ask) (T, []backend.Notice, error) { return call(ctx, a.m) })
}

func each[T any](ctx context.Context, s *Session, q Question, sel *report.Select, can func(*membership.Member) bool,
	call func(context.Context, *ask) (T, []backend.Notice, error),
) ([]Answer[T], error) {
	all, err := s.plan(q, sel)
	if err != nil {
		return nil, err
	}
	asks := toAsk(all)
	if can != nil {
		s.mu.Lock()
		kept := asks[:0]
		for _, a := range asks {
			if can(a.m) {
				kept = append(kept, a)
				continue
			}
			a.row.State, a.row.Reason = report.RowPruned, report.ReasonCapability
		}
		asks = kept
		s.mu.Unlock()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type reply struct {
		i   int
		v   T
		ns  []backend.Notice
		err error
	}
	done := make(chan reply, len(asks))
	for i, a := range asks {
		go func() {
			actx, stop := a.begin(ctx)
			got := make(chan reply, 1)
			go func() {
				r := reply{i: i}
				defer func() {
					if p := recover(); p != nil {
						r.err = backend.Errorf(backend.ErrInternal, "panic: %v", p)
					}
					got <- r
				}()
				if r.v, r.ns, r.err = call(actx, a); r.err == nil && actx.Err() != nil {
					// It may have ended for that, without a word.
					r.err = context.Cause(actx)
				}
			}()
			r := wait(ctx, actx, got, func(err error) reply { return reply{i: i, err: err} })
			for _, n := range r.ns {
				a.notice(n)
			}
			failed := r.err != nil
			if r.err = a.finish(actx, r.err); r.err == nil && failed {
				r.i = -1
			}
			stop()
			done <- r
		}()
	}
	values := make([]*reply, len(asks))
	var fatal error
	for range asks {
		r := <-done
		switch {
		case r.err != nil:
			if fatal == nil {
				fatal = r.err
				cancel(fatal)
			}
		case r.i >= 0:
			values[r.i] = &r
		}
	}
	if fatal != nil {
		return nil, fatal
	}
	var out []Answer[T]
	for i, r := range values {
		if r != nil {
			out = append(out, Answer[T]{asks[i].m, r.v})
		}
	}
	return out, nil
}
