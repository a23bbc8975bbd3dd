// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package builtin carries plug-ins that are compiled in. A filter gets and gives the
// same frames as with any other carrier, and neither a panic nor a call that hangs
// stops the host; but the plug-in shares its memory, and what it leaks is leaked.
package builtin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/internal/tally"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/store"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// Config says what to carry.
type Config struct {
	// Name of the plug-in in errors and metrics; what it calls itself if empty.
	Name string
	// Filter or Backend is the plug-in; one of them is set.
	Filter  filter.Filter
	Backend store.Spec
	// CallTime bounds one call of a filter's hook, 500 ms if 0. A filter is to return
	// within 50 ms (rule F-3); the rest is for a host that is busy.
	CallTime time.Duration
	Logger   *slog.Logger
	// Metrics, if set, gets the plug-in's counters until Close.
	Metrics prometheus.Registerer
}

// maxHanging is how many calls that hang are left behind before a filter is refused:
// each keeps a goroutine and its memory.
const maxHanging = 16

// stopTime is what calls under way get to end in when the plug-in is closed.
const stopTime = 5 * time.Second

// Plugin is a carrier.Plugin.
type Plugin struct {
	cfg         Config
	description carrier.Description
	tally       *tally.Tally
	log         *slog.Logger

	mu        sync.Mutex
	closed    bool
	instances int
	hanging   int
	running   int
	// quiet is signalled when running falls to 0.
	quiet chan struct{}
}

var _ carrier.Plugin = (*Plugin)(nil)

var errClosed = errors.New("it is closed")

// New returns a plug-in that is compiled in.
func New(cfg Config) (p *Plugin, err error) {
	if (cfg.Filter == nil) == (cfg.Backend == nil) {
		return nil, errors.New("builtin: exactly one of Filter and Backend must be set")
	}
	if cfg.CallTime == 0 {
		cfg.CallTime = 500 * time.Millisecond
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p = &Plugin{cfg: cfg, log: cfg.Logger, quiet: make(chan struct{}, 1)}
	d := filter.Description{}
	if cfg.Filter != nil {
		d = cfg.Filter.Describe()
	} else {
		d = cfg.Backend.Describe()
	}
	d.Minor = pluginpb.Minor
	p.description = carrier.Description{Description: d, Backend: cfg.Backend != nil, Known: true}
	if p.cfg.Name == "" {
		p.cfg.Name = d.Name
	}
	p.tally = tally.New(p.cfg.Name, "builtin", "compiled in")
	p.tally.State(carrier.Serving)
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(p.tally); err != nil {
			return nil, fmt.Errorf("plug-in %s: metrics: %w", p.cfg.Name, err)
		}
	}
	return p, nil
}

// Description implements carrier.Plugin.
func (p *Plugin) Description() carrier.Description { return p.description }

// Status implements carrier.Plugin.
func (p *Plugin) Status() carrier.Status {
	s := p.tally.Status()
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Instances = p.instances
	return s
}

// Filter implements carrier.Plugin.
func (p *Plugin) Filter(ctx context.Context, c *filter.Config) (carrier.Filter, error) {
	if p.cfg.Filter == nil {
		return nil, backend.Errorf(backend.ErrUnsupported, "plug-in %s is a store backend, not a filter", p.cfg.Name)
	}
	c, err := wire.Complete(c)
	if err != nil {
		return nil, err
	}
	type made struct {
		in   filter.Instance
		plan filter.Plan
	}
	m, err := call(ctx, p, "configure "+c.Name, 20*p.cfg.CallTime, func() (made, error) {
		in, err := p.cfg.Filter.Configure(c)
		if err != nil {
			return made{}, &backend.Error{Kind: backend.ErrInvalid, Text: err.Error(), Err: err}
		}
		if in == nil {
			return made{}, errors.New("the filter returned neither an instance nor an error")
		}
		return made{in, in.Plan()}, nil
	})
	if err != nil {
		return nil, err
	}
	p.count(1)
	return &builtinFilter{p: p, in: m.in, plan: m.plan}, nil
}

// Backend implements carrier.Plugin.
func (p *Plugin) Backend(ctx context.Context, c *filter.Config) (backend.Backend, error) {
	if p.cfg.Backend == nil {
		return nil, backend.Errorf(backend.ErrUnsupported, "plug-in %s is a filter, not a store backend", p.cfg.Name)
	}
	c, err := wire.Complete(c)
	if err != nil {
		return nil, err
	}
	b, err := call(ctx, p, "configure "+c.Name, 20*p.cfg.CallTime, func() (backend.Backend, error) {
		b, err := p.cfg.Backend.Configure(c)
		if err != nil {
			return nil, &backend.Error{Kind: backend.ErrInvalid, Text: err.Error(), Err: err}
		}
		if b == nil {
			return nil, errors.New("it returned neither a backend nor an error")
		}
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	p.count(1)
	return &builtinBackend{p: p, b: b}, nil
}

func (p *Plugin) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.instances += n
}

// begin counts a call that runs.
func (p *Plugin) begin(what string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return tally.Fault(p.cfg.Name, what, backend.ErrUnavailable, errClosed)
	}
	if p.hanging >= maxHanging {
		return tally.Fault(p.cfg.Name, what, backend.ErrUnavailable, fmt.Errorf("%d calls hang; restart the host, and tell the author", p.hanging))
	}
	p.running++
	return nil
}

func (p *Plugin) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running--; p.running == 0 && p.closed {
		select {
		case p.quiet <- struct{}{}:
		default:
		}
	}
}

// Close implements carrier.Plugin. Calls that hang are reported, not ended.
func (p *Plugin) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	running := p.running
	p.mu.Unlock()
	p.tally.State(carrier.Closed)
	if p.cfg.Metrics != nil {
		p.cfg.Metrics.Unregister(p.tally)
	}
	if running == 0 {
		return nil
	}
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case <-p.quiet:
		return nil
	case <-timer.C:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Errorf("plug-in %s: %d calls are still running", p.cfg.Name, p.running)
}

// caught makes a fault of a panic.
func (p *Plugin) caught(what string, v any) error {
	p.log.Error("a compiled-in plug-in panicked", "plugin", p.cfg.Name, "call", what, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	err := tally.Fault(p.cfg.Name, what, backend.ErrInternal, fmt.Errorf("%s panicked: %v", what, v))
	p.tally.Fault(tally.Panic, err)
	return err
}

// said is an error of the plug-in's own, with its kind.
func (p *Plugin) said(ctx context.Context, what string, err error) error {
	if errors.Is(err, carrier.ErrFault) || ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return err
	}
	return &backend.Error{Kind: backend.Kind(err), Text: fmt.Sprintf("plug-in %s: %s: %v", p.cfg.Name, what, err), Err: err}
}

type result[R any] struct {
	r   R
	err error
}

// call runs f and leaves it behind when ctx or the limit is over.
func call[R any](ctx context.Context, p *Plugin, what string, limit time.Duration, f func() (R, error)) (R, error) {
	var none R
	if err := p.begin(what); err != nil {
		return none, err
	}
	done := p.tally.Call()
	if err := ctx.Err(); err != nil {
		done()
		p.end()
		return none, fmt.Errorf("plug-in %s: %s: %w", p.cfg.Name, what, context.Cause(ctx))
	}
	ch := make(chan result[R], 1)
	// mu decides who was first: the call that ends or the caller that leaves.
	var mu sync.Mutex
	left, ended := false, false
	go func() {
		var res result[R]
		defer func() {
			if v := recover(); v != nil {
				res = result[R]{err: p.caught(what, v)}
			}
			mu.Lock()
			ended = true
			if left {
				p.hang(-1)
			}
			mu.Unlock()
			done()
			p.end()
			ch <- res
		}()
		res.r, res.err = f()
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var err error
	select {
	case res := <-ch:
		if res.err != nil {
			return none, p.said(ctx, what, res.err)
		}
		return res.r, nil
	case <-ctx.Done():
		err = fmt.Errorf("plug-in %s: %s: %w", p.cfg.Name, what, context.Cause(ctx))
	case <-timer.C:
		err = tally.Fault(p.cfg.Name, what, backend.ErrUnavailable, fmt.Errorf("%w: %v", carrier.ErrTimeout, limit))
		p.tally.Fault(tally.Timeout, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !ended {
		left = true
		p.hang(1)
	}
	return none, err
}

func (p *Plugin) hang(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hanging += n
}
