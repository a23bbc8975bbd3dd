// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/core/samples"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// adapt returns the request for one backend, and what has to be done to its
// answer because the backend does not claim to do it, or is not to be believed. raw
// says that whoever gets the chunks reads them whole.
func (s *Session) adapt(a *ask, req *backend.SeriesRequest, raw bool) (*backend.SeriesRequest, func(iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error]) {
	caps := a.m.Info.Capabilities
	g := s.Grant
	if slices.ContainsFunc(g.Enforce, func(m *labels.Matcher) bool { return slices.Contains(req.WithoutReplicaLabels, m.Name) }) {
		// What is to be checked must not have been taken off before.
		caps.WithoutReplicaLabels = false
	}
	sent := *shaping.Reduce(caps, req)
	// Its own copy, for whoever breaks rule B-3: a slice of matchers that one
	// backend sorts while another reads it makes wrong answers.
	sent.Matchers = g.Enforcing(req.Matchers)
	lo, hi := g.Clip(a.m.AskMin, a.m.AskMax)
	sent.MinTime, sent.MaxTime = max(req.MinTime, lo), min(req.MaxTime, hi)
	// Aggregates of windows that lie partly in the dark cannot be cut.
	raw = raw && (lo > a.m.AskMin || hi < a.m.AskMax)
	if raw {
		sent.MaxResolution, sent.Aggregates = 0, nil
	}
	sent.PartialAllowed = s.Partial && !a.m.Required

	s.mu.Lock()
	defer s.mu.Unlock()
	row := a.row
	for _, m := range sent.Matchers {
		row.MatchersSent = append(row.MatchersSent, m.String())
	}
	if req.Shard != nil && !caps.Sharding {
		row.Compensated = append(row.Compensated, "shard")
	}
	if len(req.WithoutReplicaLabels) > 0 && !caps.WithoutReplicaLabels {
		row.Compensated = append(row.Compensated, "without_replica_labels")
	}
	if req.Limit > 0 && !caps.SeriesLimit {
		row.Compensated = append(row.Compensated, "limit")
	}
	return &sent, func(seq iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
		if g.Scoped() {
			seq = s.verified(a, seq)
		}
		if a.m.CheckMatchers {
			seq = matching(seq, &sent)
		}
		if lo != math.MinInt64 || hi != math.MaxInt64 {
			seq = within(seq, lo, hi, raw)
		}
		return shaping.Compensate(caps, req, seq)
	}
}

// matching ends a sequence at the first series that req did not ask for. Of labels that
// the backend took off nothing can be said.
func matching(seq iter.Seq2[*backend.Batch, error], req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	ms := slices.DeleteFunc(slices.Clone(req.Matchers), func(m *labels.Matcher) bool { return slices.Contains(req.WithoutReplicaLabels, m.Name) })
	return func(yield func(*backend.Batch, error) bool) {
		for b, err := range seq {
			if err == nil {
				for i := range b.Len() {
					ls := b.At(i).Labels
					for _, m := range ms {
						if !m.Matches(ls.Get(m.Name)) {
							yield(nil, &protocolError{"S-6", fmt.Sprintf("it sent %s, which does not match %s", ls, m)})
							return
						}
					}
				}
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// within cuts chunks to a backend's configured window, or to what the caller may
// see: backends may return whole chunks (rule S-7), and what lies outside is somebody
// else's. Chunks of aggregates are left whole, their windows are hours wide anyway;
// with raw those that reach outside are left out.
func within(seq iter.Seq2[*backend.Batch, error], lo, hi int64, raw bool) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		for b, err := range seq {
			if err != nil {
				yield(b, err)
				return
			}
			out := backend.NewBatch(b.Len())
			for _, n := range b.Notices() {
				out.Notify(n)
			}
			for i := range b.Len() {
				s := b.At(i)
				if slices.ContainsFunc(s.Chunks, func(c backend.Chunk) bool { return c.MinTime < lo || c.MaxTime > hi }) {
					if s.Chunks, err = cutChunks(s.Chunks, lo, hi, raw); err != nil {
						yield(nil, err)
						return
					}
					if len(s.Chunks) == 0 {
						continue
					}
				}
				out.Append(s)
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}

func cutChunks(in []backend.Chunk, lo, hi int64, raw bool) ([]backend.Chunk, error) {
	var out []backend.Chunk
	for _, c := range in {
		switch {
		case c.MinTime > hi || c.MaxTime < lo:
		case c.MinTime >= lo && c.MaxTime <= hi || c.Aggregates != nil && !raw:
			out = append(out, c)
		case c.Aggregates != nil:
		default:
			it := samples.NewIterator([]samples.Chunk{{Chunk: c}}, samples.Options{MinTime: lo, MaxTime: hi}, nil)
			cut, err := shaping.EncodeIterator(it, lo, hi)
			if err != nil {
				return nil, fmt.Errorf("chunk from %d to %d: %w", c.MinTime, c.MaxTime, err)
			}
			out = append(out, cut...)
		}
	}
	return out, nil
}

// batchBytes is about as much as a batch, or a piece of a series, may hold.
const batchBytes = 1 << 20

// streamDepth is how many batches of a backend may wait to be merged.
const streamDepth = 2

// source is one backend's stream while it is merged.
type source struct {
	a      *ask
	ctx    context.Context
	stop   context.CancelFunc
	ch     chan *backend.Batch
	end    chan error
	ended  bool
	result error

	batch *backend.Batch
	i     int
	cur   backend.Series
}

// Stream asks all backends that may have series for req and merges what they
// send without gathering it: at most a few batches of each are held at a time.
// The sequence keeps the rules of backend.Backend.Series, replica labels included,
// and tells with notices what is missing.
func (s *Session) Stream(ctx context.Context, req *backend.SeriesRequest, sel *report.Select) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		all, err := s.plan(Question{MinTime: req.MinTime, MaxTime: req.MaxTime, Matchers: req.Matchers}, sel)
		if err != nil {
			yield(nil, err)
			return
		}
		if lo, hi := s.Grant.Clip(req.MinTime, req.MaxTime); lo <= hi {
			if !s.merge(ctx, req, toAsk(all), yield) {
				return
			}
		}
		if c := s.seen(s.Completeness()); c.State != report.Complete {
			b := backend.NewBatch(0)
			for _, w := range c.Warnings() {
				b.Notify(backend.Notice{Kind: backend.NoticeMissing, Text: w})
			}
			yield(b, nil)
		}
	}
}

// merge returns false if the consumer is done or the request failed.
func (s *Session) merge(ctx context.Context, req *backend.SeriesRequest, asks []*ask, yield func(*backend.Batch, error) bool) bool {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var live []*source
	for _, a := range asks {
		src := &source{a: a, ch: make(chan *backend.Batch, streamDepth), end: make(chan error, 1)}
		var held *clock
		src.ctx, src.stop, held = a.beginClock(ctx)
		got := make(chan error, 1)
		go s.pump(src, req, held, got)
		go func() {
			src.end <- wait(ctx, src.ctx, got, func(err error) error { return err })
		}()
		live = append(live, src)
	}
	defer func() {
		// Whatever way out: nobody is left behind, but for a backend that hangs.
		cancel(nil)
		for _, src := range live {
			src.await()
			src.a.callOff()
			src.stop()
		}
	}()
	drop := func(i int) error {
		src := live[i]
		err := src.a.finish(src.ctx, src.result)
		src.stop()
		live = slices.Delete(live, i, i+1)
		return err
	}
	// advance moves a source to its next piece, and drops it at its end.
	advance := func(i int) (kept bool, err error) {
		if live[i].advance() {
			return true, nil
		}
		return false, drop(i)
	}
	for i := 0; i < len(live); {
		kept, err := advance(i)
		if err != nil {
			yield(nil, err)
			return false
		}
		if kept {
			i++
		}
	}
	most := req.BatchSize
	if most <= 0 {
		most = 128
	}
	out := backend.NewBatch(most)
	var last labels.Labels
	for n := 0; len(live) > 0; {
		// Backends that have anything for a query are few: looking at each head is
		// cheaper than keeping a tree.
		least := live[0].cur.Labels
		for _, src := range live[1:] {
			if labels.Compare(src.cur.Labels, least) < 0 {
				least = src.cur.Labels
			}
		}
		if n == 0 || !labels.Equal(last, least) {
			if n++; req.Limit > 0 && n > req.Limit {
				break
			}
			last = least
		}
		series := backend.Series{Labels: least}
		from, pieces, size := 0, 0, 0
		for _, src := range live {
			if labels.Equal(src.cur.Labels, least) {
				from++
			}
		}
		for i := 0; i < len(live); {
			if !labels.Equal(live[i].cur.Labels, least) {
				i++
				continue
			}
			kept := true
			for kept && labels.Equal(live[i].cur.Labels, least) {
				pieces++
				size += live[i].cur.Size()
				if series.Chunks == nil {
					// Read only, as everything of a batch; appending makes a copy.
					series.Chunks = slices.Clip(live[i].cur.Chunks)
				} else {
					series.Chunks = append(series.Chunks, live[i].cur.Chunks...)
				}
				var err error
				if kept, err = advance(i); err != nil {
					yield(nil, err)
					return false
				}
				if from == 1 && size > batchBytes {
					// Nobody else has it: it goes on in pieces (rule S-2), so that a long series
					// is never held whole for no reason.
					break
				}
			}
			if kept {
				i++
			}
			if from == 1 {
				break
			}
		}
		if pieces > 1 {
			series.Chunks = withoutDuplicates(series.Chunks)
		}
		out.Append(series)
		if out.Len() >= most || out.Bytes() > batchBytes {
			if !s.pass(out, yield) {
				return false
			}
			out = backend.NewBatch(most)
		}
	}
	return out.Len() == 0 || s.pass(out, yield)
}

// pass hands a batch on. After that it is not held here any more.
func (s *Session) pass(b *backend.Batch, yield func(*backend.Batch, error) bool) bool {
	ok := yield(b, nil)
	s.Limits.Passed(b.Bytes())
	return ok
}

// pump runs a backend's sequence into the source's channel.
func (s *Session) pump(src *source, req *backend.SeriesRequest, held *clock, got chan<- error) {
	var err error
	defer func() {
		if p := recover(); p != nil && err == nil {
			err = backend.Errorf(backend.ErrInternal, "panic in Series: %v", p)
		}
		got <- err
	}()
	sent, compensate := s.adapt(src.a, req, true)
	var chk checker
	for b, e := range compensate(src.a.m.Backend.Series(src.ctx, sent)) {
		if e != nil {
			err = e
			return
		}
		if err = s.arrived(src.a, b); err != nil {
			return
		}
		for i := range b.Len() {
			if err = chk.check(b.At(i)); err != nil {
				return
			}
		}
		if b.Len() == 0 {
			continue
		}
		held.hold()
		select {
		case src.ch <- b:
		case <-src.ctx.Done():
			err = context.Cause(src.ctx)
			return
		}
		held.run()
	}
	if src.ctx.Err() != nil {
		// It may have ended for that, without a word.
		err = context.Cause(src.ctx)
	}
}

// advance moves to the next piece; false is the end, with result set.
func (src *source) advance() bool {
	src.i++
	for src.batch == nil || src.i >= src.batch.Len() {
		if src.batch = src.receive(); src.batch == nil {
			return false
		}
		src.i = 0
	}
	src.cur = src.batch.At(src.i)
	return true
}

func (src *source) receive() *backend.Batch {
	for {
		select {
		case b := <-src.ch:
			return b
		default:
		}
		if src.ended {
			return nil
		}
		select {
		case b := <-src.ch:
			return b
		case src.result = <-src.end:
			src.ended = true
		}
	}
}

// await waits for the end of a source whose context is done. It comes soon, even
// if the backend hangs.
func (src *source) await() {
	if src.ended {
		return
	}
	src.result = <-src.end
	src.ended = true
}

// withoutDuplicates sorts chunks by time and drops those that several backends
// hold alike, as a sidecar and the bucket it ships to do.
func withoutDuplicates(cs []backend.Chunk) []backend.Chunk {
	cs = slices.Clone(cs) // the backends' batches are read only
	slices.SortFunc(cs, func(a, b backend.Chunk) int { return samples.Compare(&a, &b) })
	return slices.CompactFunc(cs, func(a, b backend.Chunk) bool { return samples.Compare(&a, &b) == 0 })
}
