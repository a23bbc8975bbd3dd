// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package limits bounds what one query, and all queries of the process together,
// may take. Limits are charged while data arrive, before the next batch is asked
// for, and a refusal says which limit it was, its value, and what to do.
package limits

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
)

// Config holds the limits; 0 is no limit.
type Config struct {
	// Series, Samples and Bytes bound what one query may receive from backends:
	// series as each backend sent them, samples in their chunks, and bytes of label
	// sets and chunks.
	Series, Samples, Bytes int64
	// ProcessBytes bounds the bytes that all queries hold at a time.
	ProcessBytes int64
	// Concurrent bounds the queries that run at a time; others wait.
	Concurrent int
}

// Exceeded is a refusal. It is of kind backend.ErrLimit.
type Exceeded struct {
	// Name is the limit's name in the configuration.
	Name  string
	Limit int64
	// Used is what the query would have taken; 0 is not told.
	Used   int64
	Advice string
}

// Error names the limit, its value and what to do.
func (e *Exceeded) Error() string {
	if e.Used == 0 {
		return fmt.Sprintf("limit %s of %d exceeded; %s", e.Name, e.Limit, e.Advice)
	}
	return fmt.Sprintf("limit %s exceeded: %d is more than %d; %s", e.Name, e.Used, e.Limit, e.Advice)
}

// Own is what one caller may know: not how much the queries of others take.
func (e *Exceeded) Own() *Exceeded {
	if e.Name != processBytes {
		return e
	}
	return &Exceeded{Name: e.Name, Limit: e.Limit, Advice: "it is that of all queries together: ask again later, " + narrow}
}

const processBytes = "query.limits.process_bytes"

// Unwrap gives the kind.
func (e *Exceeded) Unwrap() error { return backend.ErrLimit }

// Process holds the limits of the process.
type Process struct {
	cfg   Config
	bytes atomic.Int64
	slots *slots // nil: no limit
}

// NewProcess returns limits for one process.
func NewProcess(cfg Config) *Process {
	p := &Process{cfg: cfg}
	if cfg.Concurrent > 0 {
		p.slots = newSlots(cfg.Concurrent)
	}
	return p
}

// Config is what NewProcess was given.
func (p *Process) Config() Config { return p.cfg }

// Bytes is what all queries hold just now.
func (p *Process) Bytes() int64 { return p.bytes.Load() }

// Running is the number of queries that hold a slot; 0 without a limit.
func (p *Process) Running() int {
	if p.slots == nil {
		return 0
	}
	return p.slots.taken()
}

// Begin waits for a slot and returns what charges one query. End must be called. Slots
// are shared fairly between those who ask; who is "" where nobody is told apart.
func (p *Process) Begin(ctx context.Context, who string) (*Query, error) {
	if p.slots != nil {
		if err := p.slots.take(ctx, who); err != nil {
			return nil, fmt.Errorf("waited for one of %d slots (query.max_concurrent), all taken by other queries: %w; ask again later or raise the limit",
				p.cfg.Concurrent, err)
		}
	}
	return &Query{p: p, who: who}, nil
}

// Query charges one query. It is safe for concurrent use.
type Query struct {
	p                      *Process
	who                    string
	series, samples, bytes atomic.Int64
	// own are lower limits of this query alone.
	own Config

	// mu orders Add and End: what is added after the end would never be given back.
	mu    sync.Mutex
	ended bool
	// held is what the process is charged with for this query.
	held int64
}

// Lower bounds the query by less than the configuration does; 0 leaves a limit as
// it is, and what is higher than the configured one changes nothing. It is to be
// called before the first Add.
func (q *Query) Lower(series, samples, bytes int64) {
	q.own = Config{Series: series, Samples: samples, Bytes: bytes}
}

// bound is the limit in force.
func bound(configured, own int64) int64 {
	if own > 0 && (configured <= 0 || own < configured) {
		return own
	}
	return configured
}

func exceeded(name string, configured, own, used int64) error {
	if b := bound(configured, own); b != configured {
		return &Exceeded{"access." + name, own, used, "narrow the matchers or the time range: the limit is that of the caller"}
	}
	return &Exceeded{"query.limits." + name, configured, used, narrow}
}

var errEnded = errors.New("the query has ended")

const narrow = "narrow the matchers or the time range, or raise it in the configuration"

// Add charges what a batch holds.
func (q *Query) Add(series, samples, bytes int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		// A backend that hangs and comes back late must not be charged to anyone.
		return errEnded
	}
	c := &q.p.cfg
	n, s, b := q.series.Add(int64(series)), q.samples.Add(int64(samples)), q.bytes.Add(int64(bytes))
	q.held += int64(bytes)
	all := q.p.bytes.Add(int64(bytes))
	switch {
	case over(n, c.Series, q.own.Series):
		return exceeded("series", c.Series, q.own.Series, n)
	case over(s, c.Samples, q.own.Samples):
		return exceeded("samples", c.Samples, q.own.Samples, s)
	case over(b, c.Bytes, q.own.Bytes):
		return exceeded("bytes", c.Bytes, q.own.Bytes, b)
	case c.ProcessBytes > 0 && all > c.ProcessBytes:
		if q.held == all {
			return &Exceeded{processBytes, c.ProcessBytes, all, narrow}
		}
		return &Exceeded{processBytes, c.ProcessBytes, all,
			fmt.Sprintf("other queries hold %d of it: ask again later, %s", all-q.held, narrow)}
	}
	return nil
}

func over(used, configured, own int64) bool {
	b := bound(configured, own)
	return b > 0 && used > b
}

// Return takes back a charge of bytes as if they had never come: for whoever
// gathers series on their way, and hands on what is charged again when it arrives.
func (q *Query) Return(bytes int) {
	q.Passed(bytes)
	q.bytes.Add(-int64(bytes))
}

// Passed gives bytes back that were handed on and are not held any more. They
// still count against what the query may receive.
func (q *Query) Passed(bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return
	}
	n := min(q.held, int64(bytes))
	q.held -= n
	q.p.bytes.Add(-n)
}

// End gives everything back. It may be called more than once.
func (q *Query) End() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return
	}
	q.ended = true
	q.p.bytes.Add(-q.held)
	if q.p.slots != nil {
		q.p.slots.give(q.who)
	}
}

// OwnUse is, of what Use told, what one caller may know: not how much the queries of
// others take.
func OwnUse(all []report.LimitUse) []report.LimitUse {
	return slices.DeleteFunc(slices.Clone(all), func(u report.LimitUse) bool { return u.Name == useOfProcess })
}

const useOfProcess = "process_bytes"

// Use tells how much of each limit was taken.
func (q *Query) Use() []report.LimitUse {
	c := &q.p.cfg
	return []report.LimitUse{
		{Name: "series", Used: q.series.Load(), Limit: bound(c.Series, q.own.Series)},
		{Name: "samples", Used: q.samples.Load(), Limit: bound(c.Samples, q.own.Samples)},
		{Name: "bytes", Used: q.bytes.Load(), Limit: bound(c.Bytes, q.own.Bytes)},
		{Name: useOfProcess, Used: q.p.bytes.Load(), Limit: c.ProcessBytes},
	}
}
