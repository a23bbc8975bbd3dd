// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/promweave/promweave/core/dedup"
	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/core/resolution"
	"github.com/promweave/promweave/core/samples"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// queryable is what an engine reads through, for one request.
type queryable struct {
	r             *request
	maxResolution int64
	step          int64
	dry           bool
	// strict: what is found missing during evaluation is an error at once.
	strict bool
	// rewritten: selectors may be marked (see rewrite.go).
	rewritten bool
}

// Querier implements storage.Queryable.
func (q *queryable) Querier(minTime, maxTime int64) (storage.Querier, error) {
	return &querier{queryable: q, minTime: minTime, maxTime: maxTime}, nil
}

type querier struct {
	*queryable
	minTime, maxTime int64

	wg      sync.WaitGroup
	mu      sync.Mutex
	cancels []context.CancelFunc
}

// Select begins to ask at once and returns; the set waits. So all selections of a
// query are under way together, whatever order the engine looks at them in.
func (q *querier) Select(ctx context.Context, _ bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	o := &q.r.o
	counts := false
	if q.rewritten {
		matchers, counts = counted(matchers)
	}
	req := &backend.SeriesRequest{MinTime: q.minTime, MaxTime: q.maxTime, Matchers: matchers, PartialAllowed: o.PartialResponse}
	if hints != nil {
		req.MinTime, req.MaxTime = hints.Start, hints.End
		req.SkipChunks = hints.Func == "series"
		req.Hints = backend.Hints{StepMillis: hints.Step, RangeMillis: hints.Range, Func: hints.Func, Grouping: hints.Grouping, By: hints.By}
	}
	if counts {
		req.Hints.Func = "count_over_time"
	}
	// Chunks may hold more than was asked for; what is read of them is cut by this.
	req.MinTime, req.MaxTime = q.r.grant.Clip(req.MinTime, req.MaxTime)
	choice := resolution.Choose(q.maxResolution, req.Hints.RangeMillis, req.Hints.StepMillis, req.Hints.Func)
	req.MaxResolution, req.Aggregates = choice.MaxResolution, choice.Aggregates
	sel := &report.Select{
		MinTime: req.MinTime, MaxTime: req.MaxTime, Func: req.Hints.Func,
		MaxResolution: choice.MaxResolution, ResolutionReason: choice.Reason,
	}
	for _, m := range matchers {
		sel.Matchers = append(sel.Matchers, m.String())
	}
	if choice.MaxResolution > 0 {
		for _, a := range choice.Aggregates {
			sel.Aggregates = append(sel.Aggregates, aggregateNames[a])
		}
	}
	var replicaLabels []string
	if o.Dedup && len(o.ReplicaLabels) > 0 {
		replicaLabels = o.ReplicaLabels
		sel.Dedup = report.Dedup{Enabled: true, Algorithm: string(o.Algorithm), ReplicaLabels: replicaLabels}
	}
	if q.dry {
		q.r.session.Explain(fanout.Question{MinTime: req.MinTime, MaxTime: req.MaxTime, Matchers: matchers}, sel)
		return storage.EmptySeriesSet()
	}
	set := &seriesSet{
		done: make(chan struct{}), i: -1,
		o:         samples.Options{MinTime: req.MinTime, MaxTime: req.MaxTime, Func: req.Hints.Func, Counts: counts},
		algorithm: o.Algorithm, counter: dedup.Counter(req.Hints.Func),
	}
	q.r.session.Reserve(sel)
	ctx, cancelCause := context.WithCancelCause(ctx)
	cancel := func() { cancelCause(fanout.ErrUnneeded) }
	q.mu.Lock()
	q.cancels = append(q.cancels, cancel)
	q.mu.Unlock()
	q.r.mu.Lock()
	q.r.sets = append(q.r.sets, selected{set, sel, cancel})
	q.r.mu.Unlock()
	q.wg.Go(func() {
		defer close(set.done)
		set.selection, set.err = q.r.session.Collect(ctx, req, replicaLabels, sel)
		if set.err != nil {
			return
		}
		if q.strict {
			// Nobody asks for the completeness afterwards: a corrupt chunk fails the
			// series in which it is.
			set.o.OnCorrupt = nil
		} else {
			set.o.OnCorrupt = set.selection.Corrupt
		}
		set.series = set.selection.Series
		if o.Shard != nil {
			set.series = inShard(o.Shard, set.series)
		}
		set.observe()
		q.r.collected()
	})
	return set
}

// selected is a selection and its row in the report.
type selected struct {
	set    *seriesSet
	row    *report.Select
	cancel func()
}

// settle calls off the selections that the engine began and then did without, as
// info() does where nothing is to be joined, so that the report stands still.
func (r *request) settle() {
	r.mu.Lock()
	sets := slices.Clone(r.sets)
	r.mu.Unlock()
	for _, s := range sets {
		select {
		case <-s.set.done:
		default:
			s.cancel()
		}
	}
	for _, s := range sets {
		<-s.set.done
	}
}

// evaluated notes what deduplication did, once an engine is done.
func (r *request) evaluated() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sets {
		s.set.effect(&s.row.Dedup)
	}
	r.sets = nil
}

// collected notes when the last selection had its series.
func (r *request) collected() {
	d := time.Since(r.report.StartedAt).Seconds()
	r.mu.Lock()
	r.report.SelectSeconds = max(r.report.SelectSeconds, d)
	r.mu.Unlock()
}

var aggregateNames = map[backend.Aggregate]string{
	backend.AggregateRaw: "raw", backend.AggregateCount: "count", backend.AggregateSum: "sum",
	backend.AggregateMin: "min", backend.AggregateMax: "max", backend.AggregateCounter: "counter",
}

// inShard filters after deduplication: a shard is part of the result, and its
// hash is over labels that no longer tell replicas apart.
func inShard(shard *backend.Shard, in []fanout.Series) []fanout.Series {
	out := in[:0]
	for _, s := range in {
		if shaping.InShard(shard, s.Labels) {
			out = append(out, s)
		}
	}
	return out
}

// LabelValues is not used by the engines.
func (q *querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, fmt.Errorf("label values: %w", backend.ErrUnsupported)
}

// LabelNames is not used by the engines.
func (q *querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, fmt.Errorf("label names: %w", backend.ErrUnsupported)
}

// Close calls off selections that were begun and that nobody waits for any more.
func (q *querier) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, cancel := range q.cancels {
		cancel()
	}
	q.cancels = nil
	q.wg.Wait()
	return nil
}

// seriesSet is a selection as the engines see it.
type seriesSet struct {
	done      chan struct{}
	selection *fanout.Selection
	series    []fanout.Series
	err       error
	i         int

	o         samples.Options
	algorithm dedup.Algorithm
	counter   bool

	// effects has an entry per series, if any has several replicas; the first
	// iteration of a series claims it.
	effects []effect
}

type effect struct {
	claimed atomic.Bool
	dedup.Effect
}

// observe makes room for what deduplication does to the series.
func (s *seriesSet) observe() {
	n, several := 0, false
	for i := range s.series {
		n += len(s.series[i].Replicas)
		several = several || len(s.series[i].Replicas) > 1
	}
	if !several {
		return
	}
	s.effects = make([]effect, len(s.series))
	counts := make([]int, n)
	for i := range s.effects {
		k := len(s.series[i].Replicas)
		s.effects[i].Samples, counts = counts[:0:k], counts[k:]
	}
}

// effect adds up what deduplication did, once nobody iterates any more.
func (s *seriesSet) effect(into *report.Dedup) {
	for i := range s.effects {
		e := &s.effects[i]
		if len(s.series[i].Replicas) < 2 || !e.claimed.Load() {
			continue
		}
		into.Switches += int64(e.Switches)
		for k, n := range e.Samples {
			if into.Samples == nil {
				into.Samples = map[string]int64{}
			}
			into.Samples[s.series[i].Replicas[k].Name()] += int64(n)
		}
	}
}

func (s *seriesSet) Next() bool {
	if s.i < 0 {
		<-s.done
	}
	s.i++
	return s.i < len(s.series)
}

func (s *seriesSet) At() storage.Series { return &series{set: s, data: &s.series[s.i], i: s.i} }

func (s *seriesSet) Err() error {
	<-s.done
	return s.err
}

// Warnings are none: what is missing is told by the report's completeness.
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

type series struct {
	set  *seriesSet
	data *fanout.Series
	i    int
}

func (s *series) Labels() labels.Labels { return s.data.Labels }

// merged is the iterator of a series with several replicas; it keeps their
// iterators for reuse.
type merged struct {
	chunkenc.Iterator
	replicas []chunkenc.Iterator
}

// Iterator returns the samples, replicas merged. It may be called concurrently.
func (s *series) Iterator(reuse chunkenc.Iterator) chunkenc.Iterator {
	rs := s.data.Replicas
	if len(rs) == 1 {
		if m, ok := reuse.(*merged); ok {
			reuse = m.replicas[0]
		}
		return samples.NewIterator(rs[0].Chunks, s.set.o, reuse)
	}
	m, ok := reuse.(*merged)
	if !ok {
		m = &merged{}
		if reuse != nil {
			m.replicas = append(m.replicas, reuse)
		}
	}
	for len(m.replicas) < len(rs) {
		m.replicas = append(m.replicas, nil)
	}
	its := m.replicas[:len(rs)]
	for i := range rs {
		its[i] = samples.NewIterator(rs[i].Chunks, s.set.o, its[i])
	}
	if e := s.set.effects; e != nil && e[s.i].claimed.CompareAndSwap(false, true) {
		m.Iterator = dedup.New(s.set.algorithm, s.set.counter, its, dedup.WithEffect(&e[s.i].Effect))
	} else {
		m.Iterator = dedup.New(s.set.algorithm, s.set.counter, its)
	}
	return m
}
