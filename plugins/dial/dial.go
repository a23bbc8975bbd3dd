// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package dial carries plug-ins that are services on the network, which is how they
// run in Kubernetes: somebody else starts them, and starts them again. A service that is
// down, or comes back without knowing us, is noticed and configured again.
package dial

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/internal/remote"
	"github.com/promweave/promweave/plugins/internal/tally"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/wire"
)

// Config says what to dial. Zero durations and counts are the defaults.
type Config struct {
	// Name of the plug-in in errors and metrics.
	Name string
	// Address is host:port, dns+host:port (looked up again when connections break),
	// dnssrv+name (a DNS service record) or unix:///path. One of the addresses that
	// a name has is used at a time.
	Address string
	// TLS, if set, is used for the connection; nil is plain text.
	TLS *TLS
	// OpenTime is how long Open waits for the first contact: 3 s.
	OpenTime time.Duration
	// ControlTime bounds describe, configure, release and info: 5 s. CallTime bounds a
	// call of a filter's hook: 500 ms.
	ControlTime, CallTime time.Duration
	// HealthEvery is the time between two looks at the plug-in's health, each with a
	// deadline of HealthTime: 5 s and 1 s.
	HealthEvery, HealthTime time.Duration
	// MaxFaults is how many faults of calls within FaultTime open the circuit: 20 in 30 s.
	// It is closed again when the plug-in has been left alone for FaultTime.
	MaxFaults int
	FaultTime time.Duration
	// FailAfter is how many looks in a row, HealthEvery apart, may find nothing before
	// the state is failed: 5.
	FailAfter int
}

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.OpenTime, 3*time.Second)
	def(&c.HealthEvery, 5*time.Second)
	def(&c.HealthTime, time.Second)
	def(&c.FaultTime, 30*time.Second)
	if c.MaxFaults == 0 {
		c.MaxFaults = 20
	}
	if c.FailAfter == 0 {
		c.FailAfter = 5
	}
	if c.Name == "" {
		c.Name = c.Address
	}
}

// Plugin is a carrier.Plugin.
type Plugin struct {
	cfg     Config
	log     *slog.Logger
	host    *remote.Host
	tally   *tally.Tally
	metrics prometheus.Registerer
	cc      *grpc.ClientConn

	stop  context.CancelFunc
	ended chan struct{}
	// poke makes run look at once.
	poke chan struct{}
	// met is closed after the first contact.
	met     chan struct{}
	metOnce sync.Once

	closeOnce sync.Once

	mu          sync.Mutex
	description carrier.Description
	faults      []time.Time
	// openUntil is when the circuit closes again.
	openUntil time.Time
}

var _ carrier.Plugin = (*Plugin)(nil)

// Open dials a plug-in. If the service does not answer within OpenTime, or not as a
// plug-in, the result is a plug-in that is backing off and says why in its status: what
// to do about it is the caller's decision. An error is one of the configuration.
//
// metrics may be nil. opts are added to those of the connection, such as
// grpc.WithStatsHandler for traces.
func Open(ctx context.Context, cfg Config, log *slog.Logger, metrics prometheus.Registerer, opts ...grpc.DialOption) (*Plugin, error) {
	cfg.setDefaults()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	target, resolving, err := resolve(cfg.Address, log)
	if err != nil {
		return nil, fmt.Errorf("plug-in %s: %w", cfg.Name, err)
	}
	creds := insecure.NewCredentials()
	if cfg.TLS != nil {
		if creds, err = cfg.TLS.credentials(); err != nil {
			return nil, fmt.Errorf("plug-in %s: tls: %w", cfg.Name, err)
		}
	}
	all := append(wire.DialOptions(),
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
		// It is tried more rarely as time goes by, but often enough that a service which
		// is back is used soon.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 10 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// Whether the service is there is looked at here, also when nothing is asked.
		grpc.WithIdleTimeout(0),
	)
	all = append(append(all, resolving...), opts...)
	cc, err := grpc.NewClient(target, all...)
	if err != nil {
		return nil, fmt.Errorf("plug-in %s: address %q: %w", cfg.Name, cfg.Address, err)
	}
	p := &Plugin{
		cfg: cfg, log: log.With("plugin", cfg.Name), metrics: metrics, cc: cc,
		tally: tally.New(cfg.Name, "dial", cfg.Address),
		ended: make(chan struct{}), poke: make(chan struct{}, 1), met: make(chan struct{}),
	}
	p.description.Name = cfg.Name
	if metrics != nil {
		if err := metrics.Register(p.tally); err != nil {
			_ = cc.Close()
			return nil, fmt.Errorf("plug-in %s: metrics: %w", cfg.Name, err)
		}
	}
	p.host = remote.New(remote.Config{
		Name: cfg.Name, ControlTime: cfg.ControlTime, CallTime: cfg.CallTime,
		Tally: p.tally, OnFault: p.fault, Logger: p.log,
	})
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	p.stop = stop
	go p.run(running)
	timer := time.NewTimer(cfg.OpenTime)
	defer timer.Stop()
	select {
	case <-p.met:
	case <-timer.C:
	case <-ctx.Done():
	}
	return p, nil
}

// Description implements carrier.Plugin. Before the first contact it has only the
// name of the configuration.
func (p *Plugin) Description() carrier.Description {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.description
}

// Status implements carrier.Plugin.
func (p *Plugin) Status() carrier.Status {
	s := p.tally.Status()
	s.Instances = p.host.Instances()
	return s
}

// Filter implements carrier.Plugin. It needs the plug-in to be there.
func (p *Plugin) Filter(ctx context.Context, c *filter.Config) (carrier.Filter, error) {
	if p.known() && p.Description().Backend {
		return nil, backend.Errorf(backend.ErrUnsupported, "plug-in %s is a store backend, not a filter", p.cfg.Name)
	}
	return p.host.Filter(ctx, c)
}

// Backend implements carrier.Plugin. If the plug-in is not there now the backend
// fails until it is.
func (p *Plugin) Backend(ctx context.Context, c *filter.Config) (backend.Backend, error) {
	if p.known() && !p.Description().Backend {
		return nil, backend.Errorf(backend.ErrUnsupported, "plug-in %s is a filter, not a store backend", p.cfg.Name)
	}
	return p.host.Backend(ctx, c)
}

func (p *Plugin) known() bool {
	select {
	case <-p.met:
		return true
	default:
		return false
	}
}

// stopTime is what calls under way get to end in when the plug-in is closed.
const stopTime = 3 * time.Second

// Close implements carrier.Plugin.
func (p *Plugin) Close() error {
	last := p.host.Close()
	p.tally.State(carrier.Closed)
	p.stop()
	<-p.ended
	if last != nil {
		timer := time.NewTimer(stopTime)
		defer timer.Stop()
		select {
		case <-last.Idle():
		case <-timer.C:
		}
	}
	if p.metrics != nil {
		p.metrics.Unregister(p.tally)
	}
	var err error
	p.closeOnce.Do(func() { err = p.cc.Close() })
	return err
}

// fault counts faults of calls, and opens the circuit if there are too many. A
// connection that breaks is not one: run sees that by itself.
func (p *Plugin) fault(c *remote.Conn, kind string, err error) {
	p.log.Warn("a plug-in failed", "kind", kind, "error", err)
	if kind == tally.Crash {
		return
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	recent := p.faults[:0]
	for _, t := range p.faults {
		if now.Sub(t) < p.cfg.FaultTime {
			recent = append(recent, t)
		}
	}
	p.faults = append(recent, now)
	if len(p.faults) < p.cfg.MaxFaults {
		return
	}
	p.faults = nil
	p.openUntil = now.Add(p.cfg.FaultTime)
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

// circuit is how long the circuit stays open.
func (p *Plugin) circuit() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Until(p.openUntil)
}

// run keeps the connection, gives each life of it to the host, and looks at its health.
func (p *Plugin) run(ctx context.Context) {
	defer close(p.ended)
	var life *remote.Conn
	failures := 0
	lose := func(kind string, err error, wait time.Duration) {
		p.host.Lost(life, err, wait)
		life = nil
		failures++
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, carrier.ErrFault) { // otherwise it is counted already
			p.tally.Fault(kind, err)
		}
		if failures >= p.cfg.FailAfter {
			p.tally.State(carrier.Failed)
		} else {
			p.tally.State(carrier.BackingOff)
		}
		level := slog.LevelDebug
		if failures == 1 || failures == p.cfg.FailAfter {
			level = slog.LevelWarn
		}
		p.log.Log(ctx, level, "a plug-in is not available", "error", err)
	}
	for ctx.Err() == nil {
		if d := p.circuit(); d > 0 {
			p.host.Lost(life, fmt.Errorf("%d faults in %v: it is left alone for as long", p.cfg.MaxFaults, p.cfg.FaultTime), 0)
			life = nil
			p.tally.State(carrier.Failed)
			p.pause(ctx, d)
			continue
		}
		state := p.cc.GetState()
		switch {
		case state == connectivity.Ready && life == nil:
			c := remote.NewConn(p.cc)
			if err := p.begin(ctx, c); err != nil {
				life = c
				lose(tally.Unhealthy, err, 0)
				p.pause(ctx, p.cfg.HealthEvery)
				continue
			}
			life, failures = c, 0
		case state == connectivity.Ready:
			if !p.wait(ctx, state, p.cfg.HealthEvery) {
				if err := p.look(ctx, life); err != nil && ctx.Err() == nil {
					lose(tally.Unhealthy, err, 0)
				}
			}
		default:
			if life != nil {
				lose(tally.Crash, fmt.Errorf("the connection to %s is lost", p.cfg.Address), time.Second)
			}
			p.cc.Connect()
			look := time.Duration(0)
			if state == connectivity.TransientFailure {
				// It stays so until it is ready, although there are attempts.
				lose(tally.Unhealthy, p.unreachable(ctx), 0)
				look = p.cfg.HealthEvery
			}
			p.wait(ctx, state, look)
		}
	}
}

// quoted is how gRPC wraps the error of a connection.
var quoted = regexp.MustCompile(`(?s)^connection error: desc = "(.*)"$`)

// unreachable is why there is no connection: a call that does not wait for one is told.
func (p *Plugin) unreachable(ctx context.Context) error {
	why := "no connection"
	var st interface{ GRPCStatus() *status.Status }
	if err := p.look(ctx, remote.NewConn(p.cc)); errors.As(err, &st) {
		why = st.GRPCStatus().Message()
		if m := quoted.FindStringSubmatch(why); m != nil {
			why = m[1]
		}
		for _, prefix := range []string{"transport: ", "Error while dialing: ", "authentication handshake failed: "} {
			why = strings.TrimPrefix(why, prefix)
		}
	}
	hint := ""
	switch {
	case strings.Contains(why, "server preface") && p.cfg.TLS == nil:
		hint = "; does it want TLS, or is it no gRPC service?"
	case strings.Contains(why, "server preface"):
		hint = "; does it want a client certificate, or is it no gRPC service?"
	case strings.Contains(why, "does not look like a TLS handshake"):
		hint = "; it speaks without TLS"
	case strings.Contains(why, "refused"):
		hint = "; is it running?"
	}
	return fmt.Errorf("%s cannot be reached: %s%s", p.cfg.Address, why, hint)
}

// begin makes c the life in use.
func (p *Plugin) begin(ctx context.Context, c *remote.Conn) error {
	d, err := p.host.Describe(ctx, c)
	if err != nil {
		return err
	}
	p.mu.Lock()
	before, known := p.description, p.known()
	p.mu.Unlock()
	if err := p.host.Fits(d.Backend); err != nil {
		return err
	}
	if known && (before.Backend != d.Backend || before.Role != d.Role || before.Name != d.Name) {
		return fmt.Errorf("plug-in %s: at %s there is now %q instead of %q; reload the configuration", p.cfg.Name, p.cfg.Address, d.Name, before.Name)
	}
	if err := p.look(ctx, c); err != nil {
		return err
	}
	if err := p.host.Use(ctx, c); err != nil {
		return err
	}
	if !known {
		p.mu.Lock()
		p.description = d
		p.mu.Unlock()
	}
	p.tally.State(carrier.Serving)
	if known {
		p.tally.Restarted()
	}
	p.metOnce.Do(func() { close(p.met) })
	p.log.Info("a plug-in is connected", "is", d.Name, "version", d.Version)
	return nil
}

func (p *Plugin) look(ctx context.Context, c *remote.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.HealthTime)
	defer cancel()
	return p.host.Health(ctx, c)
}

// wait returns true when the state of the connection is another one or something
// else asks for a look, false after d; d 0 is without end.
func (p *Plugin) wait(ctx context.Context, state connectivity.State, d time.Duration) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		p.cc.WaitForStateChange(ctx, state)
	}()
	defer func() {
		cancel()
		<-changed
	}()
	var timeout <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-changed:
		return true
	case <-p.poke:
		return true
	case <-timeout:
		return false
	}
}

func (p *Plugin) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
