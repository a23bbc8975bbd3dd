// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package supervise keeps one process of a plug-in alive: it starts it, asks for its
// health, starts it again after a fault with growing pauses, gives up for a while when
// faults pile up, and hands over to another process without a gap. It knows nothing of
// how a process is started, so that it is tested without any.
//
//	          start ok                    fault
//	starting ──────────► serving ─────────────────────► backing off ─┐
//	   ▲  │                 ▲ │                           ▲    │     │ too many faults
//	   │  └─ fault ─────────┼─┼───────────────────────────┘    │     ▼ in the window
//	   │                    │ └─ Replace ─► serving (other)    │   failed
//	   └────────────────────┼──── after the pause ─────────────┘     │
//	   └────────────────────┼──── after the long pause ──────────────┘
//	                        └ Replace, from every state but closed
//
// Close leads from every state to closed.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/promweave/promweave/plugins/carrier"
)

// Process is a running process of the plug-in.
type Process interface {
	comparable
	// Health is nil if the process answers and is within its limits. It returns when
	// ctx is done. An error that is a *Fault ends the process at once, any other
	// counts towards Limits.HealthFailures.
	Health(ctx context.Context) error
	// Done is closed when the process has ended.
	Done() <-chan struct{}
	// Err says how it ended, once Done is closed.
	Err() error
	// Drain returns when no call is under way on it, or ctx is done.
	Drain(ctx context.Context)
	// Kill ends the process at once and does not wait for it.
	Kill()
	// Stop asks the process to end, kills it when ctx is done, and returns when
	// nothing of it is left. It is called once for each process, also after Done.
	Stop(ctx context.Context)
}

// Fault is an error with the kind under which it is counted.
type Fault struct {
	Kind string
	Err  error
}

// The kinds of faults.
const (
	KindStart     = "start"     // it did not come up
	KindCrash     = "crash"     // it ended by itself or by a signal
	KindUnhealthy = "unhealthy" // it did not answer, or said that it cannot work
	KindMemory    = "memory"    // it took more than it may
	KindConfigure = "configure" // it refused a configuration that it had accepted before
)

// Error is the error's text.
func (f *Fault) Error() string { return f.Err.Error() }

// Unwrap gives the error.
func (f *Fault) Unwrap() error { return f.Err }

// Limits are the times and counts of a supervisor. Zero values get defaults.
type Limits struct {
	// StartTimeout bounds a start until the process serves. Default 10 s.
	StartTimeout time.Duration
	// HealthInterval lies between two questions, each answered within HealthTimeout;
	// HealthFailures in a row are a fault. Defaults 2 s, 1 s, 3.
	HealthInterval, HealthTimeout time.Duration
	HealthFailures                int
	// MinBackoff is the pause before the second start in a row, doubled up to
	// MaxBackoff; the first comes at once. Defaults 50 ms, 30 s.
	MinBackoff, MaxBackoff time.Duration
	// MaxFaults within FaultWindow open the circuit: a start is tried every OpenFor only,
	// until one has served for FaultWindow. Defaults 5 in 1 min, 1 min.
	MaxFaults            int
	FaultWindow, OpenFor time.Duration
	// DrainTimeout is how long a process that is replaced or closed may finish its
	// calls, StopTimeout how long it may take to end after that. Defaults 5 s, 2 s.
	DrainTimeout, StopTimeout time.Duration
}

// WithDefaults fills in what is zero.
func (l Limits) WithDefaults() Limits {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&l.StartTimeout, 10 * time.Second}, {&l.HealthInterval, 2 * time.Second}, {&l.HealthTimeout, time.Second},
		{&l.MinBackoff, 50 * time.Millisecond}, {&l.MaxBackoff, 30 * time.Second},
		{&l.FaultWindow, time.Minute}, {&l.OpenFor, time.Minute},
		{&l.DrainTimeout, 5 * time.Second}, {&l.StopTimeout, 2 * time.Second},
	} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	if l.HealthFailures <= 0 {
		l.HealthFailures = 3
	}
	if l.MaxFaults <= 0 {
		l.MaxFaults = 5
	}
	return l
}

// Hooks are what a supervisor needs of its owner. Start, Serve and Lost are called
// from one goroutine at a time.
type Hooks[P Process] struct {
	// Start makes a process. It returns promptly when ctx is done.
	Start func(ctx context.Context) (P, error)
	// Serve prepares a process, so that calls may go to it from the moment it returns nil.
	Serve func(ctx context.Context, p P) error
	// Lost says that p takes no more calls and why: a fault, or nil if it was replaced
	// or is closed. It is called with the zero P when a start has failed. Another process
	// may serve within wait; 0 is never soon.
	Lost func(p P, fault *Fault, wait time.Duration)
	// Changed is told of every change of state, and returns at once.
	Changed func(Snapshot)
	// Jitter is between 0 and 1; nil is random.
	Jitter func() float64
}

// Snapshot is what a supervisor is doing.
type Snapshot struct {
	State carrier.State
	Since time.Time
	// Restarts counts starts that served, but for the first.
	Restarts int
	// Faults by kind; the last one and its time.
	Faults        map[string]int
	LastFault     *Fault
	LastFaultTime time.Time
	// Next is the time of the next start while backing off or failed.
	Next time.Time
}

// Supervisor supervises the process of one plug-in.
type Supervisor[P Process] struct {
	hooks  Hooks[P]
	limits Limits

	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	// tried is closed after the first start, by closeTried.
	tried      chan struct{}
	closeTried func()
	// stopping are processes on their way out.
	stopping sync.WaitGroup
	replace  chan replacement[P]

	// Only the goroutine of run uses these.
	recent []time.Time // of faults in the window
	streak int         // faults since a process was last stable
	open   bool
	served bool // a process has

	mu      sync.Mutex
	now     Snapshot
	current P
}

type replacement[P Process] struct {
	ctx context.Context
	p   P
	// start makes further processes of the same kind.
	start func(context.Context) (P, error)
	err   chan error
}

// ErrClosed says that the supervisor was closed.
var ErrClosed = errors.New("the plug-in is closed")

// Open starts the first process, and fails if that does.
func Open[P Process](ctx context.Context, limits Limits, hooks Hooks[P]) (*Supervisor[P], error) {
	s := create(limits, hooks)
	s.set(carrier.Starting, time.Time{})
	p, err := s.start(ctx)
	if err != nil {
		s.cancel()
		s.stopping.Wait()
		close(s.done)
		s.set(carrier.Closed, time.Time{})
		return nil, err
	}
	s.closeTried()
	s.serving(p)
	go s.run(p)
	return s, nil
}

// Begin has the first process started, which may fail like all others.
func Begin[P Process](limits Limits, hooks Hooks[P]) *Supervisor[P] {
	s := create(limits, hooks)
	var none P
	go s.run(none)
	return s
}

func create[P Process](limits Limits, hooks Hooks[P]) *Supervisor[P] {
	if hooks.Jitter == nil {
		hooks.Jitter = rand.Float64
	}
	if hooks.Changed == nil {
		hooks.Changed = func(Snapshot) {}
	}
	s := &Supervisor[P]{
		hooks: hooks, limits: limits.WithDefaults(), done: make(chan struct{}), tried: make(chan struct{}),
		replace: make(chan replacement[P]),
	}
	s.now.Faults, s.now.State, s.now.Since = map[string]int{}, carrier.Starting, time.Now()
	s.closeTried = sync.OnceFunc(func() { close(s.tried) })
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Tried is closed when the first start has succeeded or failed, or the supervisor is
// closed.
func (s *Supervisor[P]) Tried() <-chan struct{} { return s.tried }

// Snapshot returns what the supervisor is doing.
func (s *Supervisor[P]) Snapshot() Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot()
}

func (s *Supervisor[P]) snapshot() Snapshot {
	n := s.now
	n.Faults = maps.Clone(n.Faults)
	return n
}

// Current returns the process that serves, or the zero P.
func (s *Supervisor[P]) Current() P {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// Replace starts another process with start and puts it in the place of the current
// one, which finishes its calls and ends. Later starts use start as well. On an error
// everything is as it was.
func (s *Supervisor[P]) Replace(ctx context.Context, start func(context.Context) (P, error)) error {
	if s.ctx.Err() != nil {
		return ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.StartTimeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	p, err := start(ctx)
	if err != nil {
		if s.ctx.Err() != nil {
			return ErrClosed
		}
		return err
	}
	r := replacement[P]{ctx: ctx, p: p, start: start, err: make(chan error, 1)}
	select {
	case s.replace <- r:
		// From here on the process belongs to run.
		return <-r.err
	case <-ctx.Done():
		err = context.Cause(ctx)
		if s.ctx.Err() != nil {
			err = ErrClosed
		}
		p.Kill()
		p.Stop(context.WithoutCancel(ctx))
		return err
	}
}

// Close ends the process, which may finish its calls first. It returns when nothing of
// any process is left, or with an error when one cannot be ended.
func (s *Supervisor[P]) Close() error {
	s.cancel()
	<-s.done
	gone := make(chan struct{})
	go func() {
		s.stopping.Wait()
		close(gone)
	}()
	// Stop has its own limits; what takes longer sits in the kernel and obeys nobody.
	t := time.NewTimer(s.limits.DrainTimeout + s.limits.StopTimeout + 3*time.Second)
	defer t.Stop()
	select {
	case <-gone:
		return nil
	case <-t.C:
		return errors.New("a process of the plug-in does not end although it was killed; it probably waits for a device in the kernel")
	}
}

// start makes a process and prepares it. A process that cannot be used is ended.
func (s *Supervisor[P]) start(ctx context.Context) (P, *Fault) {
	var zero P
	ctx, cancel := context.WithTimeout(ctx, s.limits.StartTimeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	p, err := s.hooks.Start(ctx)
	if err != nil {
		return zero, asFault(KindStart, err)
	}
	if err := s.hooks.Serve(ctx, p); err != nil {
		s.discard(p)
		return zero, asFault(KindConfigure, err)
	}
	return p, nil
}

func asFault(kind string, err error) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return &Fault{Kind: f.Kind, Err: err}
	}
	return &Fault{Kind: kind, Err: err}
}

// discard ends a process that has failed, without waiting for its end.
func (s *Supervisor[P]) discard(p P) {
	p.Kill()
	s.stopping.Add(1)
	go func() {
		defer s.stopping.Done()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p.Stop(ctx)
	}()
}

// retire ends a process that is well.
func (s *Supervisor[P]) retire(p P) {
	s.stopping.Add(1)
	go func() {
		defer s.stopping.Done()
		ctx, cancel := context.WithTimeout(context.Background(), s.limits.DrainTimeout)
		p.Drain(ctx)
		cancel()
		ctx, cancel = context.WithTimeout(context.Background(), s.limits.StopTimeout)
		defer cancel()
		p.Stop(ctx)
	}()
}

func (s *Supervisor[P]) run(p P) {
	defer close(s.done)
	defer s.set(carrier.Closed, time.Time{})
	var zero P
	defer s.closeTried()
	for {
		var fault *Fault
		if p != zero {
			p, fault = s.watch(p)
			s.notServing()
			if fault == nil { // closed
				s.hooks.Lost(p, nil, 0)
				s.retire(p)
				return
			}
		} else {
			s.set(carrier.Starting, time.Time{})
			if p, fault = s.start(s.ctx); fault == nil {
				s.serving(p)
				s.closeTried()
				continue
			}
			if s.ctx.Err() != nil {
				return
			}
		}
		pause, state := s.failed(fault)
		wait := pause + s.limits.StartTimeout
		if state == carrier.Failed {
			wait = 0
		}
		s.hooks.Lost(p, fault, wait)
		if p != zero {
			s.discard(p)
			p = zero
		}
		s.set(state, time.Now().Add(pause))
		s.closeTried()
		if pause <= 0 {
			continue
		}
		t := time.NewTimer(pause)
	wait:
		for {
			select {
			case <-s.ctx.Done():
				t.Stop()
				return
			case r := <-s.replace:
				if s.take(r) == nil {
					p = r.p
					s.serving(p)
					r.err <- nil
					break wait
				}
			case <-t.C:
				break wait
			}
		}
		t.Stop()
	}
}

// watch returns when the process is lost: with its fault, or nil when the supervisor
// is closed. The process that it returns may be another one, by Replace.
func (s *Supervisor[P]) watch(p P) (P, *Fault) {
	failures := 0
	tick := time.NewTimer(s.limits.HealthInterval)
	defer tick.Stop()
	stable := time.NewTimer(s.limits.FaultWindow)
	defer stable.Stop()
	// Health is asked beside the loop: the end of the process is noticed at once.
	answer := make(chan error, 1)
	asked := false
	for {
		select {
		case <-s.ctx.Done():
			return p, nil
		case <-p.Done():
			return p, asFault(KindCrash, p.Err())
		case <-stable.C:
			s.streak, s.open, s.recent = 0, false, nil
		case <-tick.C:
			asked = true
			go func(p P, answer chan<- error) {
				ctx, cancel := context.WithTimeout(s.ctx, s.limits.HealthTimeout)
				defer cancel()
				answer <- p.Health(ctx)
			}(p, answer)
		case err := <-answer:
			asked = false
			var f *Fault
			switch {
			case err == nil:
				failures = 0
			case errors.As(err, &f):
				return p, &Fault{Kind: f.Kind, Err: err}
			default:
				failures++
				if failures >= s.limits.HealthFailures {
					return p, &Fault{Kind: KindUnhealthy, Err: fmt.Errorf("%d health checks in a row failed: %w", failures, err)}
				}
			}
			if failures == 0 {
				tick.Reset(s.limits.HealthInterval)
			} else {
				tick.Reset(min(s.limits.HealthInterval, s.limits.HealthTimeout))
			}
		case r := <-s.replace:
			if s.take(r) != nil {
				continue
			}
			old := p
			p = r.p
			s.serving(p)
			s.hooks.Lost(old, nil, 0)
			s.retire(old)
			r.err <- nil
			// The other process starts with a clean slate; an answer of the old one goes nowhere.
			answer = make(chan error, 1)
			failures = 0
			if asked {
				asked = false
				tick.Reset(s.limits.HealthInterval)
			}
			stable.Reset(s.limits.FaultWindow)
		}
	}
}

// take prepares the process of a replacement. On an error it has answered r.
func (s *Supervisor[P]) take(r replacement[P]) error {
	if err := s.hooks.Serve(r.ctx, r.p); err != nil {
		s.discard(r.p)
		r.err <- err
		return err
	}
	s.hooks.Start = r.start
	s.streak, s.open, s.recent = 0, false, nil
	return nil
}

// failed counts a fault, and says how long to pause and as what.
func (s *Supervisor[P]) failed(fault *Fault) (time.Duration, carrier.State) {
	now := time.Now()
	s.mu.Lock()
	s.now.Faults[fault.Kind]++
	s.now.LastFault, s.now.LastFaultTime = fault, now
	s.mu.Unlock()

	s.recent = append(s.recent, now)
	for now.Sub(s.recent[0]) > s.limits.FaultWindow {
		s.recent = s.recent[1:]
	}
	s.streak++
	if len(s.recent) >= s.limits.MaxFaults {
		s.open = true
	}
	if s.open {
		return s.jitter(s.limits.OpenFor), carrier.Failed
	}
	if s.streak == 1 {
		return 0, carrier.BackingOff
	}
	pause := s.limits.MaxBackoff
	if shift := s.streak - 2; shift < 30 {
		pause = min(pause, s.limits.MinBackoff<<shift)
	}
	return s.jitter(pause), carrier.BackingOff
}

// jitter spreads d over [3/4 d, 5/4 d), so that plug-ins that failed together do not
// start together.
func (s *Supervisor[P]) jitter(d time.Duration) time.Duration {
	return d*3/4 + time.Duration(s.hooks.Jitter()*float64(d)/2)
}

func (s *Supervisor[P]) serving(p P) {
	s.mu.Lock()
	s.current = p
	if s.served {
		s.now.Restarts++
	}
	s.mu.Unlock()
	s.served = true
	s.set(carrier.Serving, time.Time{})
}

func (s *Supervisor[P]) notServing() {
	var zero P
	s.mu.Lock()
	s.current = zero
	s.mu.Unlock()
}

func (s *Supervisor[P]) set(state carrier.State, next time.Time) {
	s.mu.Lock()
	s.now.State, s.now.Since, s.now.Next = state, time.Now(), next
	n := s.snapshot()
	s.mu.Unlock()
	s.hooks.Changed(n)
}
