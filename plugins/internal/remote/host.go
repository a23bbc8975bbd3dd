// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package remote is the host's side of the contract in pluginpb over gRPC, for
// plug-ins that are processes of their own: spawned or dialled.
//
// A [Host] stands for the plug-in, a [Conn] for one life of it. Who starts or dials
// it makes a Conn for each life and gives it to [Host.Use]; configured filters and
// backends belong to the Host and are configured again on each new Conn, so that
// whoever holds one notices nothing but a retry.
package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/internal/tally"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// Config are the settings of a Host. Zero durations are the defaults.
type Config struct {
	// Name of the plug-in in errors.
	Name string
	// ControlTime bounds describe, configure, release and info: 5 s.
	ControlTime time.Duration
	// CallTime bounds one call of a filter's hook. A filter is to return within 50 ms
	// (rule F-3); the rest is for the way there and back: 500 ms.
	CallTime time.Duration
	// RetryTime is the longest that a call waits for the next life of the plug-in: 1 s.
	RetryTime time.Duration
	// Tally counts calls and faults; nil makes one that nobody sees.
	Tally *tally.Tally
	// OnFault, if set, is told of each fault of a call, by kind (package tally). It must
	// not wait for anything and may call Lost.
	OnFault func(c *Conn, kind string, err error)
	Logger  *slog.Logger
}

// Conn is one life of the plug-in: a connection to one process of it.
type Conn struct {
	cc     grpc.ClientConnInterface
	plugin pluginpb.PluginClient

	mu      sync.Mutex
	calls   int
	retired bool
	idle    chan struct{}
}

// NewConn returns a life of the plug-in behind cc, which should be made with
// wire.DialOptions and is not closed here.
func NewConn(cc grpc.ClientConnInterface) *Conn {
	return &Conn{cc: cc, plugin: pluginpb.NewPluginClient(cc), idle: make(chan struct{})}
}

// Idle is closed when the Conn has been replaced or lost and its last call has ended.
func (c *Conn) Idle() <-chan struct{} { return c.idle }

// begin counts a call; false means that the Conn is retired.
func (c *Conn) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired {
		return false
	}
	c.calls++
	return true
}

func (c *Conn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls--; c.calls == 0 && c.retired {
		close(c.idle)
	}
}

func (c *Conn) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired {
		return
	}
	c.retired = true
	if c.calls == 0 {
		close(c.idle)
	}
}

// Host is a plug-in over all its lives.
type Host struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	current *Conn
	// lost says why there is none, hope until when calls may wait for one.
	lost error
	hope time.Time
	// changed is closed when one of these changes.
	changed   chan struct{}
	instances map[*instance]struct{}
	closed    bool
}

var (
	errStarting = errors.New("it has not been reached yet")
	errClosed   = errors.New("it is closed")
	errReleased = errors.New("the instance is closed")
	// errNone marks errors of calls that found no life of the plug-in to go to.
	errNone = errors.New("no connection")
)

// New returns a Host without a connection: its calls are refused, or wait, until Use.
func New(cfg Config) *Host {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&cfg.ControlTime, 5*time.Second)
	def(&cfg.CallTime, 500*time.Millisecond)
	def(&cfg.RetryTime, time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Tally == nil {
		cfg.Tally = tally.New(cfg.Name, "", "")
	}
	return &Host{cfg: cfg, log: cfg.Logger, lost: errStarting, changed: make(chan struct{}), instances: map[*instance]struct{}{}}
}

// Describe asks a life of the plug-in what it is, whether it is in use yet or not.
func (h *Host) Describe(ctx context.Context, c *Conn) (carrier.Description, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.ControlTime)
	defer cancel()
	m, err := c.plugin.Describe(ctx, &pluginpb.DescribeRequest{Minor: pluginpb.Minor}, control()...)
	if status.Code(err) == codes.Unimplemented {
		err = errors.New("it does not serve promweave.plugin.v1.Plugin: it is no plug-in, or one for another major version of the contract; " +
			"this host speaks version 1")
	}
	if err != nil {
		return carrier.Description{}, h.fail(ctx, ctx, c, "describe", err)
	}
	d, isBackend, err := wire.DescriptionFromWire(m)
	if err != nil {
		return carrier.Description{}, h.lied(c, "describe", err)
	}
	return carrier.Description{Description: d, Backend: isBackend, Known: true}, nil
}

// Health asks a life of the plug-in how it is; ctx has the deadline. An error is no
// fault yet: what to make of it is the caller's business.
func (h *Host) Health(ctx context.Context, c *Conn) error {
	m, err := c.plugin.Health(ctx, &pluginpb.HealthRequest{}, control()...)
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("plug-in %s: health: no answer in time: %w", h.cfg.Name, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("plug-in %s: health: %w", h.cfg.Name, err)
	}
	if p := m.GetProblem(); p != "" {
		return fmt.Errorf("plug-in %s says: %.500q", h.cfg.Name, p)
	}
	return nil
}

// Fits says why a plug-in that is a backend, or a filter, is not what it was configured
// as before it was known.
func (h *Host) Fits(isBackend bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for in := range h.instances {
		if in.isBackend != isBackend {
			kinds := map[bool]string{true: "a store backend", false: "a filter"}
			return fmt.Errorf("plug-in %s is %s, and is configured as %s", h.cfg.Name, kinds[isBackend], kinds[in.isBackend])
		}
	}
	return nil
}

// Use configures all instances on c and then makes it the life that calls go to. The
// one before is retired: calls that run on it go on, see Conn.Idle. An error leaves
// everything as it was: c is faulty, or refuses an instance that works on the life in
// use. Where there is nothing to lose, an instance that is refused fails by itself.
func (h *Host) Use(ctx context.Context, c *Conn) error {
	done := map[*instance]bool{}
	for {
		h.mu.Lock()
		old := h.current
		var todo []*instance
		for in := range h.instances {
			if !done[in] {
				todo = append(todo, in)
			}
		}
		if h.closed {
			h.mu.Unlock()
			return fmt.Errorf("plug-in %s: %w", h.cfg.Name, errClosed)
		}
		if len(todo) == 0 {
			h.current, h.lost = c, nil
			h.changeLocked()
			h.mu.Unlock()
			if old != nil && old != c {
				old.retire()
			}
			return nil
		}
		h.mu.Unlock()
		for _, in := range todo {
			_, _, err := in.configure(ctx, c)
			if err != nil && (errors.Is(err, carrier.ErrFault) || ctx.Err() != nil || old != nil && in.worksOn(old)) {
				h.forget(c)
				return err
			}
			done[in] = true
		}
	}
}

// Lost says that c, if it is the life in use, is gone. Calls wait for the next one
// for as long as wait, and RetryTime at most; then they are refused with why.
func (h *Host) Lost(c *Conn, why error, wait time.Duration) {
	h.mu.Lock()
	if h.current == c {
		h.current = nil
	}
	if h.current == nil && !h.closed {
		h.lost, h.hope = why, time.Now().Add(wait)
		h.changeLocked()
	}
	h.mu.Unlock()
	if c != nil {
		c.retire()
		h.forget(c)
	}
}

// Current returns the life in use, nil if there is none.
func (h *Host) Current() *Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.current
}

// Instances is the number of configured instances.
func (h *Host) Instances() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.instances)
}

// Close refuses all further calls and retires the life in use, which it returns, nil
// if there is none.
func (h *Host) Close() *Conn {
	h.mu.Lock()
	c := h.current
	h.current, h.closed, h.lost = nil, true, errClosed
	h.changeLocked()
	h.mu.Unlock()
	if c != nil {
		c.retire()
	}
	return c
}

func (h *Host) changeLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Host) forget(c *Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for in := range h.instances {
		in.forget(c)
	}
}

// acquire returns the life in use, counted as called. With avoid it waits for
// another one than that.
func (h *Host) acquire(ctx context.Context, avoid *Conn) (*Conn, error) {
	deadline := time.Now().Add(h.cfg.RetryTime)
	for {
		h.mu.Lock()
		c, lost, hope, changed := h.current, h.lost, h.hope, h.changed
		h.mu.Unlock()
		if c != nil && c != avoid && c.begin() {
			return c, nil
		}
		if c == nil && hope.Before(deadline) {
			deadline = hope
		}
		wait := time.Until(deadline)
		if wait <= 0 || errors.Is(lost, errClosed) {
			if lost == nil {
				lost = errors.New("the connection is gone")
			}
			return nil, &none{tally.Fault(h.cfg.Name, "not available", backend.ErrUnavailable, lost)}
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("plug-in %s: %w", h.cfg.Name, context.Cause(ctx))
		}
		timer.Stop()
	}
}

// none is the error of a call that found no life of the plug-in to go to.
type none struct{ error }

func (n *none) Unwrap() []error { return []error{n.error, errNone} }

// Filter configures an instance of a filter, which takes the plug-in to be there:
// its plan has to be known.
func (h *Host) Filter(ctx context.Context, c *filter.Config) (carrier.Filter, error) {
	in, err := h.add(ctx, c, false)
	if err != nil {
		return nil, err
	}
	return &remoteFilter{in: in}, nil
}

// Backend configures an instance of a store backend. If the plug-in is not there
// that is left for later, and what is wrong with the configuration is an error of Info. It has all optional interfaces
// of package backend; which of them answer is in its capabilities.
func (h *Host) Backend(ctx context.Context, c *filter.Config) (backend.Backend, error) {
	in, err := h.add(ctx, c, true)
	if err != nil {
		return nil, err
	}
	return &remoteBackend{in: in}, nil
}
