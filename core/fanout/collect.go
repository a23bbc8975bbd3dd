// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/core/samples"
	"github.com/promweave/promweave/sdk/backend"
)

// Series is one series of a selection with the chunks of all its replicas.
type Series struct {
	// Labels are without the replica labels.
	Labels labels.Labels
	// Replicas are in order of their replica-label values, which makes all that
	// follows independent of the order in which backends answer.
	Replicas []Replica
}

// Replica is what one replica has of a series, from whichever backends.
type Replica struct {
	// Key is the values of the replica labels, in the order of the labels, with a
	// byte 0xff behind each; empty without replica labels.
	Key string
	// Chunks are sorted by samples.Sort.
	Chunks []samples.Chunk
}

// Name is the values of the replica labels, for people.
func (r *Replica) Name() string {
	return strings.ReplaceAll(strings.TrimSuffix(r.Key, "\xff"), "\xff", ",")
}

// Selection is what a Collect gathered.
type Selection struct {
	Series []Series

	asks []*ask // Origin of a chunk is the index in it
}

// Corrupt notes that a chunk of a backend did not decode. It may be called while
// the query is evaluated, and concurrently.
func (s *Selection) Corrupt(origin int32, err error) {
	a := s.asks[origin]
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if a.row.State != report.RowAnswered && a.row.State != report.RowPartial {
		return // its share is missing already, for a reason that says more
	}
	a.row.State, a.row.Reason = report.RowPartial, report.ReasonCorrupt
	a.row.Detail = err.Error()
	a.log("a backend sent a chunk that does not decode", "detail", a.row.Detail)
}

// Failure returns an error if a share went missing after Collect, as a corrupt
// chunk does, that the request cannot do without.
func (s *Session) Failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, all := range s.asks {
		for _, a := range all {
			if a.row.State == report.RowPartial && (a.row.Required || !s.Partial) {
				return a.missingError(nil)
			}
		}
	}
	return nil
}

// piece is a series, or a part of one, as one backend sent it.
type piece struct {
	labels labels.Labels // without replica labels
	key    string        // the values of the replica labels
	chunks []backend.Chunk
	origin int32
}

func comparePieces(a, b *piece) int {
	if c := labels.Compare(a.labels, b.labels); c != 0 {
		return c
	}
	return strings.Compare(a.key, b.key)
}

// run is what one backend sent, in order of comparePieces.
type run struct {
	pieces []piece
	err    error
}

// hangGrace is how long a backend whose time is up may take to come back before
// it is left to itself (rule B-2).
const hangGrace = time.Second

// wait returns what comes out of got, or late() if the backend is still not back
// a while after its context actx is done. parent is the request's context: a
// backend that hangs must not take the time in which the others are evaluated.
func wait[T any](parent, actx context.Context, got <-chan T, late func(error) T) T {
	select {
	case r := <-got:
		return r
	case <-actx.Done():
	}
	grace := hangGrace
	if deadline, ok := parent.Deadline(); ok && parent.Err() == nil {
		grace = min(grace, time.Until(deadline)/2)
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case r := <-got:
		return r
	case <-t.C:
		return late(fmt.Errorf("hangs: %w", context.Cause(actx)))
	}
}

// Collect asks all backends that may have series for req and returns what they
// sent, sorted by label set, with the series of all replicas together. The rows
// of sel are filled in. An error fails the request as a whole; it says which
// limit or which backend it was.
func (s *Session) Collect(ctx context.Context, req *backend.SeriesRequest, replicaLabels []string, sel *report.Select) (*Selection, error) {
	all, err := s.plan(Question{MinTime: req.MinTime, MaxTime: req.MaxTime, Matchers: req.Matchers}, sel)
	if err != nil {
		return nil, err
	}
	asks := toAsk(all)
	out := &Selection{asks: asks}
	select {
	case s.gate <- struct{}{}:
		defer func() { <-s.gate }()
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), ErrUnneeded) {
			s.mu.Lock()
			for _, a := range asks {
				a.row.State = report.RowCancelled
			}
			s.mu.Unlock()
		}
		return nil, context.Cause(ctx)
	}
	if lo, hi := s.Grant.Clip(req.MinTime, req.MaxTime); lo > hi {
		return out, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	runs := make([]run, len(asks))
	type ended struct {
		i   int
		err error
	}
	done := make(chan ended, len(asks))
	for i, a := range asks {
		go func() {
			actx, stop := a.begin(ctx)
			got := make(chan run, 1)
			go func() {
				var r run
				defer func() {
					// A backend that goes on after the end of its sequence panics too; what
					// ended it counts then.
					if p := recover(); p != nil && r.err == nil {
						r.err = backend.Errorf(backend.ErrInternal, "panic in Series: %v", p)
					}
					got <- r
				}()
				s.collectOne(actx, a, int32(i), req, replicaLabels, &r)
			}()
			r := wait(ctx, actx, got, func(err error) run { return run{err: err} })
			runs[i] = r
			err := a.finish(actx, r.err)
			stop() // before anybody is told, so that no span outlives its request
			done <- ended{i, err}
		}()
	}
	var fatal error
	for range asks {
		if e := <-done; e.err != nil && fatal == nil {
			fatal = e.err
			cancel(fatal)
		}
	}
	if fatal != nil {
		return nil, fatal
	}
	out.Series = group(runs, sel)
	return out, nil
}

func (s *Session) collectOne(ctx context.Context, a *ask, origin int32, req *backend.SeriesRequest, replicaLabels []string, r *run) {
	sent, compensate := s.adapt(a, req, false)
	var (
		chk    checker
		sorted = true
		strip  = stripper{names: replicaLabels}
	)
	for batch, err := range compensate(a.m.Backend.Series(ctx, sent)) {
		if err != nil {
			r.err = err
			break
		}
		if r.err = s.arrived(a, batch); r.err != nil {
			return
		}
		for i := range batch.Len() {
			x := batch.At(i)
			if r.err = chk.check(x); r.err != nil {
				break
			}
			p := piece{chunks: x.Chunks, origin: origin}
			p.labels, p.key = strip.strip(x.Labels)
			if k := len(r.pieces); sorted && k > 0 && comparePieces(&r.pieces[k-1], &p) > 0 {
				sorted = false
			}
			r.pieces = append(r.pieces, p)
		}
		if r.err != nil {
			break
		}
		if ctx.Err() != nil {
			r.err = context.Cause(ctx)
			break
		}
	}
	if r.err == nil && ctx.Err() != nil {
		// It may have ended for that, without a word.
		r.err = context.Cause(ctx)
	}
	if !sorted {
		// Taking labels away can change the order even where the value is the same
		// on all series: {a, replica} comes after {a, q, replica}, {a} before {a, q}.
		slices.SortStableFunc(r.pieces, func(a, b piece) int { return comparePieces(&a, &b) })
	}
}

// arrived accounts for a batch in the row and charges it to the limits.
func (s *Session) arrived(a *ask, b *backend.Batch) error {
	chunks, n := 0, 0
	for i := range b.Len() {
		x := b.At(i)
		chunks += len(x.Chunks)
		for j := range x.Chunks {
			n += samples.Count(x.Chunks[j])
		}
	}
	for _, x := range b.Notices() {
		a.notice(x)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.over {
		return errOver
	}
	r := a.row
	if r.Batches == 0 {
		r.FirstByte = time.Since(a.begun).Seconds()
	}
	r.Batches++
	r.Series += b.Len()
	r.Chunks += chunks
	r.Samples += n
	r.Bytes += b.Bytes()
	return s.Limits.Add(b.Len(), n, b.Bytes())
}

// stripper takes replica labels off label sets.
type stripper struct {
	names []string
	sb    labels.ScratchBuilder
	key   []byte
	last  string
}

func (s *stripper) strip(l labels.Labels) (labels.Labels, string) {
	if len(s.names) == 0 {
		return l, ""
	}
	s.key = s.key[:0]
	for _, n := range s.names {
		s.key = append(s.key, l.Get(n)...)
		s.key = append(s.key, 0xff)
	}
	if len(s.key) == len(s.names) {
		return l, "" // none of them is there
	}
	s.sb.Reset()
	l.Range(func(x labels.Label) {
		if !slices.Contains(s.names, x.Name) {
			s.sb.Add(x.Name, x.Value)
		}
	})
	if string(s.key) != s.last {
		s.last = string(s.key)
	}
	return s.sb.Labels(), s.last
}

// group merges runs that are each in order into series with their replicas.
func group(runs []run, sel *report.Select) []Series {
	total, chunks := 0, 0
	for i := range runs {
		total += len(runs[i].pieces)
		for j := range runs[i].pieces {
			chunks += len(runs[i].pieces[j].chunks)
		}
	}
	if total == 0 {
		return nil
	}
	var (
		// One allocation for all chunks and one for all replicas; every series has a
		// slice of each, cut to its capacity.
		slab     = make([]samples.Chunk, 0, chunks)
		replicas = make([]Replica, 0, total)
		out      = make([]Series, 0, total)
		key      string
		first    int // of the chunks of the present replica
		firstRep int // of the replicas of the present series
		mixed    bool
	)
	endReplica := func() {
		cs := slab[first:len(slab):len(slab)]
		if mixed || !slices.IsSortedFunc(cs, compareTimes) {
			cs = samples.Sort(cs)
		}
		replicas = append(replicas, Replica{Key: key, Chunks: cs})
		first = len(slab)
		mixed = false
	}
	m := newMerger(runs)
	for p := m.next(); p != nil; p = m.next() {
		n := len(out)
		sameSeries := n > 0 && labels.Equal(out[n-1].Labels, p.labels)
		switch {
		case sameSeries && p.key == key:
			mixed = true
		case sameSeries:
			endReplica()
		default:
			if n > 0 {
				endReplica()
				out[n-1].Replicas = replicas[firstRep:len(replicas):len(replicas)]
			}
			firstRep = len(replicas)
			out = append(out, Series{Labels: p.labels})
		}
		key = p.key
		for i := range p.chunks {
			slab = append(slab, samples.Chunk{Chunk: p.chunks[i], Origin: p.origin})
		}
	}
	endReplica()
	out[len(out)-1].Replicas = replicas[firstRep:len(replicas):len(replicas)]
	sel.Dedup.SeriesBefore = len(replicas)
	sel.Dedup.SeriesAfter = len(out)
	return slices.Clip(out)
}

func compareTimes(a, b samples.Chunk) int {
	switch {
	case a.MinTime < b.MinTime:
		return -1
	case a.MinTime > b.MinTime:
		return 1
	case a.MaxTime < b.MaxTime:
		return -1
	}
	// Equal times may be equal chunks, which Sort drops, or chunks of which the
	// order must not depend on who came first. slices.IsSortedFunc asks whether the
	// later one is less: it is to say so.
	return -1
}
