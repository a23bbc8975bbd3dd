// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wasm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// The circuit: so many faults in such a time open it, for first and then ever twice
// as long up to last. Ten minutes of calm without it opening make it forget.
const (
	circuitFaults = 5
	circuitWindow = 10 * time.Second
	firstBackoff  = time.Second
	lastBackoff   = time.Minute
	calm          = 10 * time.Minute
	// tidyAfter calls, or when memory grew, a module may tidy up.
	tidyAfter = 256
)

var errClosed = fmt.Errorf("%w: the plug-in is closed", backend.ErrUnavailable)

// configuration is one instance of the plug-in as the host's configuration knows it:
// any number of instances of the module, all configured with the same request.
type configuration struct {
	name    string
	request []byte
	// plan is that of the first instance; configured says that there was one.
	plan       filter.Plan
	configured bool
	// Under the plug-in's lock: instances that wait, the last used at the end; those
	// of an older epoch are not to be used again.
	idle   []*instance
	epoch  int
	closed bool
	// trial: nothing uses it yet. It may be what mends a plug-in that is out, so that an
	// open circuit does not keep it away; and what is wrong with it harms only itself, so
	// that its faults do not open the circuit.
	trial bool
}

// waiter waits for its turn.
type waiter struct {
	ready chan struct{} // closed when it has it
	given bool
}

// pool is the part of a Plugin that its lock guards.
type pool struct {
	current        *version
	versions       map[*version]bool
	configurations map[*configuration]bool
	// alive instances are busy ones, idle ones, and those being made.
	alive, busy int
	waiters     []*waiter

	state  carrier.State
	since  time.Time
	closed bool
	// recent faults, and the circuit that they open.
	recent  []time.Time
	open    bool
	until   time.Time
	backoff time.Duration
	opened  time.Time
	probing bool

	restarts      int
	faults        map[string]int
	lastFault     string
	lastFaultTime time.Time
	lines         []string
	faultLines    []string
	logSecond     int64
	logged        int
	dropped       int
	counters      map[string]float64

	hooks [hookCount]hookCounts
	fuel  int64
}

type hookCounts struct {
	calls   int64
	seconds float64
}

// enter says whether calls of a configuration may begin. Lock held.
func (p *Plugin) enter(c *configuration) (probe bool, err error) {
	switch {
	case p.closed:
		return false, fmt.Errorf("plug-in %q: %w: %w", p.config.Name, carrier.ErrFault, errClosed)
	case !p.open || c.trial:
		return false, nil
	case p.probing || time.Now().Before(p.until):
		return false, fmt.Errorf("plug-in %q: %w: %w: it is out after %d faults within %v, the last one: %s; the next attempt is %s",
			p.config.Name, carrier.ErrFault, backend.ErrUnavailable, circuitFaults, circuitWindow, p.lastFault, p.until.UTC().Format(time.RFC3339))
	}
	p.probing = true
	return true, nil
}

// acquire returns an instance for c that nobody else uses, a new one if there is none.
// It waits while all that may exist are busy.
func (p *Plugin) acquire(ctx context.Context, c *configuration) (*instance, error) {
	p.mu.Lock()
	probe, err := p.enter(c)
	if err == nil && c.closed {
		err = fmt.Errorf("plug-in %q: %s is closed", p.config.Name, c.name)
	}
	if err != nil {
		p.leaveProbe(probe)
		p.mu.Unlock()
		return nil, err
	}
	if p.busy >= p.config.Limits.Instances || len(p.waiters) > 0 {
		if err := p.wait(ctx); err != nil {
			p.leaveProbe(probe)
			p.mu.Unlock()
			return nil, err
		}
	} else {
		p.busy++
	}
	if n := len(c.idle); n > 0 {
		in := c.idle[n-1]
		c.idle[n-1] = nil
		c.idle = c.idle[:n-1]
		in.probe = probe
		p.mu.Unlock()
		return in, nil
	}
	old := p.room()
	v := p.current
	v.alive++
	p.alive++
	epoch := c.epoch
	p.mu.Unlock()
	p.discard(old...)

	in, err := p.build(ctx, v, c)
	if err != nil {
		p.finish(nil, v, c, probe, err)
		return nil, err
	}
	in.config, in.epoch, in.probe = c, epoch, probe
	return in, nil
}

// wait gives up the lock until a busy instance is given back, whose place the caller
// then has.
func (p *Plugin) wait(ctx context.Context) error {
	w := &waiter{ready: make(chan struct{})}
	p.waiters = append(p.waiters, w)
	p.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
	}
	p.mu.Lock()
	switch {
	case p.closed || ctx.Err() != nil:
		if w.given {
			p.giveBack()
		} else {
			p.waiters = slices.DeleteFunc(p.waiters, func(o *waiter) bool { return o == w })
		}
		if p.closed {
			return fmt.Errorf("plug-in %q: %w: %w", p.config.Name, carrier.ErrFault, errClosed)
		}
		return fmt.Errorf("plug-in %q: all %d instances are busy (instances): %w", p.config.Name, p.config.Limits.Instances, context.Cause(ctx))
	}
	return nil
}

// giveBack ends the use of a place. Lock held.
func (p *Plugin) giveBack() {
	if len(p.waiters) > 0 {
		w := p.waiters[0]
		p.waiters = slices.Delete(p.waiters, 0, 1)
		w.given = true
		close(w.ready)
		return
	}
	p.busy--
}

// room takes idle instances of other configurations away if there are as many as may
// be. Lock held.
func (p *Plugin) room() (old []*instance) {
	for p.alive >= p.config.Limits.Instances {
		var oldest *configuration
		for c := range p.configurations {
			if len(c.idle) > 0 && (oldest == nil || c.idle[0].lastUse.Before(oldest.idle[0].lastUse)) {
				oldest = c
			}
		}
		if oldest == nil {
			break
		}
		old = append(old, oldest.idle[0])
		oldest.idle = slices.Delete(oldest.idle, 0, 1)
		p.alive--
	}
	return old
}

// release takes an instance back after a call that ended with err.
func (p *Plugin) release(in *instance, err error) {
	p.finish(in, in.version, in.config, in.probe, err)
}

// finish accounts for a call, or for an instance that could not be made, which is nil.
func (p *Plugin) finish(in *instance, v *version, c *configuration, probe bool, err error) {
	fault, ended := verdict(err)
	faulty := fault != nil
	if faulty {
		p.log.Error("plug-in fault", "plugin", p.config.Name, "kind", fault.Kind, "hook", fault.Hook, "error", err, "trace", fault.trace)
	}
	p.mu.Lock()
	p.giveBack()
	// Late with something that large anybody is.
	excused := faulty && fault.late() && in != nil && in.call.ctx != nil && carrier.IsLarge(in.call.ctx)
	if in != nil && in.call.ctx != nil {
		p.count(&in.call)
		in.call.ctx = nil // nor is the request kept
	}
	switch {
	case faulty:
		p.record(fault, probe, c.trial || excused)
		if excused && probe {
			p.probing = false // nothing was learned
		}
	case probe && (in == nil || ended):
		p.probing = false // nothing was learned
	case probe:
		p.probing, p.open = false, false
		p.recent = nil
		p.become(carrier.Serving)
	}
	keep := in != nil && !faulty && !ended &&
		!p.closed && !c.closed && !v.retired && in.epoch == c.epoch
	if keep {
		in.probe = false
		in.uses++
		tidy := in.hooks[hookIdle] != nil && (in.uses >= tidyAfter || in.linear.Size() > in.size)
		c.idle = append(c.idle, in)
		p.mu.Unlock()
		if tidy {
			select {
			case p.tidy <- struct{}{}:
			default:
			}
		}
		return
	}
	p.alive--
	if in != nil {
		p.mu.Unlock()
		p.discard(in)
		return
	}
	p.gone(v)
	p.mu.Unlock()
}

// verdict says whether err is a fault, and whether the call was ended from outside.
func verdict(err error) (fault *Fault, ended bool) {
	if err == nil {
		return nil, false
	}
	var s *stopped
	errors.As(err, &fault)
	return fault, errors.As(err, &s)
}

func (p *Plugin) leaveProbe(probe bool) {
	if probe {
		p.probing = false
	}
}

// discard frees instances that are in no list any more.
func (p *Plugin) discard(list ...*instance) {
	for _, in := range list {
		in.close()
		p.mu.Lock()
		p.gone(in.version)
		p.mu.Unlock()
	}
}

// gone closes a version that was replaced with its last instance. Lock held.
func (p *Plugin) gone(v *version) {
	v.alive--
	if v.alive == 0 && v.retired {
		v.close()
		delete(p.versions, v)
		if len(p.versions) == 0 {
			close(p.drained)
		}
	}
}

// retire lets a version go when its instances have. Lock held.
func (p *Plugin) retire(v *version) {
	v.retired = true
	v.alive++
	p.gone(v)
}

// record counts a fault and opens the circuit if there were too many, not counting those
// of a configuration on trial. Lock held.
func (p *Plugin) record(f *Fault, probe, trial bool) {
	now := time.Now()
	p.faults[f.Kind]++
	p.restarts++
	p.lastFault, p.lastFaultTime = f.Error(), now
	p.faultLines = slices.Clone(p.lines)
	if trial {
		return
	}
	p.recent = append(p.recent, now)
	p.recent = slices.DeleteFunc(p.recent, func(t time.Time) bool { return now.Sub(t) >= circuitWindow })
	if p.closed || !probe && (p.open || len(p.recent) < circuitFaults) {
		return
	}
	switch {
	case p.backoff == 0 || now.Sub(p.opened) > calm+p.backoff:
		p.backoff = firstBackoff
	default:
		p.backoff = min(2*p.backoff, lastBackoff)
	}
	p.open, p.probing, p.opened, p.until, p.recent = true, false, now, now.Add(p.backoff), nil
	p.become(carrier.Failed)
	p.log.Error("plug-in is out", "plugin", p.config.Name, "for", p.backoff, "last_fault", p.lastFault)
}

func (p *Plugin) become(s carrier.State) {
	if p.state != s && p.state != carrier.Closed {
		p.state, p.since = s, time.Now()
	}
}

// janitor lets modules tidy up while nobody asks them anything, and closes instances
// that nobody has used for a while.
func (p *Plugin) janitor() {
	defer p.janitors.Done()
	every := time.NewTicker(p.config.Limits.IdleTime)
	defer every.Stop()
	for {
		select {
		case <-p.kill:
			return
		case <-p.stopping:
			return
		case <-p.tidy:
			for p.tidyOne() {
			}
		case <-every.C:
			p.shrink()
		}
	}
}

// tidyOne calls the idle hook of one instance that needs it.
func (p *Plugin) tidyOne() bool {
	p.mu.Lock()
	var in *instance
	if !p.closed && !p.open && p.busy < p.config.Limits.Instances && len(p.waiters) == 0 {
		for c := range p.configurations {
			i := slices.IndexFunc(c.idle, func(in *instance) bool {
				return in.hooks[hookIdle] != nil && (in.uses >= tidyAfter || in.linear.Size() > in.size)
			})
			if i >= 0 {
				in = c.idle[i]
				c.idle = slices.Delete(c.idle, i, i+1)
				p.busy++
				break
			}
		}
	}
	p.mu.Unlock()
	if in == nil {
		return false
	}
	in.begin(context.Background(), hookIdle)
	err := in.hooks[hookIdle].CallWithStack(in, nil)
	if err != nil {
		err = in.failure(err)
	}
	in.end()
	in.uses, in.size = -1, in.linear.Size()
	p.release(in, err)
	return true
}

// shrink closes what was idle too long, but for one instance of each configuration.
func (p *Plugin) shrink() {
	p.mu.Lock()
	var old []*instance
	now := time.Now()
	for c := range p.configurations {
		for len(c.idle) > 1 && now.Sub(c.idle[0].lastUse) >= p.config.Limits.IdleTime {
			old = append(old, c.idle[0])
			c.idle = slices.Delete(c.idle, 0, 1)
			p.alive--
		}
	}
	p.mu.Unlock()
	p.discard(old...)
}
