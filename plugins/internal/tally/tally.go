// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package tally counts what a plug-in does, for operators: calls, faults by kind,
// states and restarts. It is the same for every carrier.
package tally

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/sdk/backend"
)

// Kinds of faults.
const (
	Crash        = "crash"         // the process or the connection is gone
	Timeout      = "timeout"       // a call took longer than it may
	Panic        = "panic"         // a call panicked, the plug-in survived
	InvalidReply = "invalid reply" // what came back is not what the contract says
	Unhealthy    = "unhealthy"     // it says so, or does not answer when asked
)

// Fault is the error for a fault: it wraps carrier.ErrFault, a kind of package
// backend and the cause.
func Fault(name, what string, kind, cause error) error {
	return &backend.Error{Kind: kind, Text: fmt.Sprintf("plug-in %s: %s: %v", name, what, cause), Err: errors.Join(carrier.ErrFault, cause)}
}

// Tally is safe for concurrent use. It is a prometheus.Collector.
type Tally struct {
	calls atomic.Int64
	busy  atomic.Int64

	mu     sync.Mutex
	status carrier.Status
	now    func() time.Time

	callsDesc, busyDesc, faultsDesc, restartsDesc, stateDesc *prometheus.Desc
}

var _ prometheus.Collector = (*Tally)(nil)

// New returns a tally in state starting. name is the label "plugin" of metrics.
func New(name, launch, origin string) *Tally {
	fixed := prometheus.Labels{"plugin": name, "launch": launch}
	desc := func(metric, help string, variable ...string) *prometheus.Desc {
		return prometheus.NewDesc("promweave_plugin_"+metric, help, variable, fixed)
	}
	t := &Tally{
		now:          time.Now,
		callsDesc:    desc("calls_total", "Calls of a plug-in."),
		busyDesc:     desc("calls_running", "Calls of a plug-in that are running."),
		faultsDesc:   desc("faults_total", "Faults of a plug-in.", "kind"),
		restartsDesc: desc("restarts_total", "Times that a plug-in was started again."),
		stateDesc:    desc("state", "1 for the state that a plug-in is in, 0 for the others.", "state"),
	}
	t.status = carrier.Status{Launch: launch, Origin: origin, State: carrier.Starting, Since: t.now(), Faults: map[string]int{}}
	return t
}

// Call counts a call and returns what ends it.
func (t *Tally) Call() (done func()) {
	t.calls.Add(1)
	t.busy.Add(1)
	return func() { t.busy.Add(-1) }
}

// Fault counts a fault.
func (t *Tally) Fault(kind string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status.Faults[kind]++
	t.status.LastFault, t.status.LastFaultTime = err.Error(), t.now()
}

// State notes the state; nothing leaves closed.
func (t *Tally) State(s carrier.State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.status.State != s && t.status.State != carrier.Closed {
		t.status.State, t.status.Since = s, t.now()
	}
}

// Restarted counts a restart.
func (t *Tally) Restarted() { t.Set(func(s *carrier.Status) { s.Restarts++ }) }

// Set changes what else the status says.
func (t *Tally) Set(change func(*carrier.Status)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.status)
}

// Status returns a copy.
func (t *Tally) Status() carrier.Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.status
	s.Faults = maps.Clone(s.Faults)
	s.Calls, s.Busy = t.calls.Load(), int(t.busy.Load())
	return s
}

// Describe implements prometheus.Collector.
func (t *Tally) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{t.callsDesc, t.busyDesc, t.faultsDesc, t.restartsDesc, t.stateDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (t *Tally) Collect(ch chan<- prometheus.Metric) {
	s := t.Status()
	ch <- prometheus.MustNewConstMetric(t.callsDesc, prometheus.CounterValue, float64(s.Calls))
	ch <- prometheus.MustNewConstMetric(t.busyDesc, prometheus.GaugeValue, float64(s.Busy))
	ch <- prometheus.MustNewConstMetric(t.restartsDesc, prometheus.CounterValue, float64(s.Restarts))
	for kind, n := range s.Faults {
		ch <- prometheus.MustNewConstMetric(t.faultsDesc, prometheus.CounterValue, float64(n), kind)
	}
	for _, state := range []carrier.State{carrier.Starting, carrier.Serving, carrier.BackingOff, carrier.Failed, carrier.Closed} {
		v := 0.0
		if s.State == state {
			v = 1
		}
		ch <- prometheus.MustNewConstMetric(t.stateDesc, prometheus.GaugeValue, v, string(state))
	}
}
