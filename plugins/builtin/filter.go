// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/internal/tally"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// builtinFilter is a configured filter.
type builtinFilter struct {
	p    *Plugin
	in   filter.Instance
	plan filter.Plan
	gone atomic.Bool
}

var (
	_ carrier.Filter   = (*builtinFilter)(nil)
	_ carrier.Rejecter = (*builtinFilter)(nil)
)

// rewriting is what one call of Rewrite needs, kept for the next one. The frame is a
// copy: a call that was left behind may read it for ever.
type rewriting struct {
	frame []byte
	in    frame.Frame
	out   frame.Reply
	reply []byte
}

var rewritings = sync.Pool{New: func() any { return new(rewriting) }}

func (f *builtinFilter) Plan() filter.Plan { return f.plan }

func (f *builtinFilter) Request(ctx context.Context, c *filter.RequestCall) (*filter.RequestReply, error) {
	r, ok := f.in.(filter.Requester)
	if !ok {
		return nil, unsupported(f.p, "request")
	}
	out, err := call(ctx, f.p, "request", f.p.cfg.CallTime, func() (*filter.RequestReply, error) { return r.Request(c) })
	if err == nil && out == nil {
		out = &filter.RequestReply{}
	}
	return out, err
}

func (f *builtinFilter) Select(ctx context.Context, c *filter.SelectCall) (*filter.SelectReply, error) {
	s, ok := f.in.(filter.Selector)
	if !ok {
		return nil, unsupported(f.p, "select")
	}
	out, err := call(ctx, f.p, "select", f.p.cfg.CallTime, func() (*filter.SelectReply, error) { return s.Select(c) })
	if err == nil && out == nil {
		out = &filter.SelectReply{}
	}
	return out, err
}

func unsupported(p *Plugin, what string) error {
	return backend.Errorf(backend.ErrUnsupported, "plug-in %s: this plug-in has no %s hook", p.cfg.Name, what)
}

// Rewrite implements carrier.Filter.
func (f *builtinFilter) Rewrite(ctx context.Context, in, reply []byte) ([]byte, error) {
	r, ok := f.in.(filter.Rewriter)
	if !ok {
		return nil, unsupported(f.p, "rewrite")
	}
	w := rewritings.Get().(*rewriting)
	w.frame = append(w.frame[:0], in...)
	_, err := call(ctx, f.p, "rewrite", f.p.cfg.CallTime, func() (struct{}, error) {
		if err := w.in.Parse(w.frame); err != nil {
			return struct{}{}, backend.Errorf(backend.ErrInvalid, "the frame is invalid: %w", err)
		}
		w.out.Reset(&w.in)
		if err := r.Rewrite(&w.in, &w.out); err != nil {
			return struct{}{}, err
		}
		w.reply = w.out.Append(w.reply[:0])
		return struct{}{}, nil
	})
	if err != nil {
		// The call may still be using w.
		return nil, err
	}
	defer rewritings.Put(w)
	if limit := 4*len(in) + 1<<20; len(w.reply) > limit {
		err := tally.Fault(f.p.cfg.Name, "rewrite", backend.ErrInternal, fmt.Errorf("the reply has %d bytes, more than the %d that it may have", len(w.reply), limit))
		f.p.tally.Fault(tally.InvalidReply, err)
		return nil, err
	}
	if len(w.reply) == 0 {
		return nil, nil
	}
	return append(reply[:0], w.reply...), nil
}

// Reject implements carrier.Rejecter.
func (f *builtinFilter) Reject(err error) error {
	err = tally.Fault(f.p.cfg.Name, "rewrite", backend.ErrInternal, err)
	f.p.tally.Fault(tally.InvalidReply, err)
	return err
}

func (f *builtinFilter) Close() error {
	if f.gone.Swap(true) {
		return nil
	}
	f.p.count(-1)
	if c, ok := f.in.(backend.Closer); ok {
		return c.Close()
	}
	return nil
}
