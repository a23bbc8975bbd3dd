// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package mutants holds backends with one deliberate fault each. They certify the suite:
// each has to be caught by the requirement that names its fault.
package mutants

import (
	"context"
	"iter"
	"slices"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/reference"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
)

type (
	sequence = iter.Seq2[*backend.Batch, error]
	call     = func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence
)

// Mutant is a fault.
type Mutant struct {
	// Name says what is wrong.
	Name string
	// Kills are the requirements that have to catch it.
	Kills []string
	// claims changes what is claimed from all that the reference backend does.
	claims func(*backend.Capabilities)
	// Each of these, if not nil, takes the place of a call.
	series    call
	names     func(b *Backend, ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error)
	values    func(b *Backend, ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error)
	info      func(b *Backend, ctx context.Context, in backend.Info) (backend.Info, error)
	exemplars func(b *Backend, ctx context.Context, sel [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, error)
	metadata  func(b *Backend, ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, error)
	// Server, if not nil, spoils the wire.
	Server func(storepb.StoreServer) storepb.StoreServer
	// Query, if not nil, is for mutants with a query API, and spoils the server that the
	// reference has. Unannounced says that Info does not tell of it.
	Query       func(storepb.QueryServer) storepb.QueryServer
	Unannounced bool
	// away is what happens while what is behind the backend is gone.
	away *absence
}

// Backend is a mutant at work.
type Backend struct {
	*reference.Backend
	m        *Mutant
	corpus   *corpus.Corpus
	external labels.Labels
	claims   backend.Capabilities
	// Away says that what is behind it is gone.
	Away atomic.Bool
	// flights and calls are of Series.
	flights, calls atomic.Int64
	memory         []byte
}

var _ backend.ExemplarsBackend = (*Backend)(nil)

// Claims of a mutant.
func (m *Mutant) Claims(c *corpus.Corpus) backend.Capabilities {
	caps := reference.AllCapabilities()
	caps.Downsampled = len(c.Levels) > 0
	if m.claims != nil {
		m.claims(&caps)
	}
	return caps
}

// New returns the mutant over a corpus.
func (m *Mutant) New(c *corpus.Corpus, external labels.Labels) *Backend {
	caps := m.Claims(c)
	return &Backend{Backend: reference.New(c, reference.Options{External: external, Capabilities: caps}), m: m, corpus: c, external: external, claims: caps}
}

// Info implements backend.Backend.
func (b *Backend) Info(ctx context.Context) (backend.Info, error) {
	if b.Away.Load() && b.m.away != nil {
		return b.m.away.info(b, ctx)
	}
	info, err := b.Backend.Info(ctx)
	if err == nil && b.m.info != nil {
		return b.m.info(b, ctx, info)
	}
	return info, err
}

// Series implements backend.Backend.
func (b *Backend) Series(ctx context.Context, req *backend.SeriesRequest) sequence {
	if b.m.away != nil && (b.Away.Load() || b.m.away.forEver && b.calls.Load() > 0) {
		b.calls.Add(1)
		return b.m.away.series(b, ctx, req)
	}
	if b.m.series != nil {
		return b.m.series(b, ctx, req)
	}
	return b.Backend.Series(ctx, req)
}

// LabelNames implements backend.Backend.
func (b *Backend) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	if b.m.names != nil {
		return b.m.names(b, ctx, req)
	}
	return b.Backend.LabelNames(ctx, req)
}

// LabelValues implements backend.Backend.
func (b *Backend) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if b.m.values != nil {
		return b.m.values(b, ctx, req)
	}
	return b.Backend.LabelValues(ctx, req)
}

// Exemplars implements backend.ExemplarsBackend.
func (b *Backend) Exemplars(ctx context.Context, sel [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	if b.m.exemplars != nil {
		out, err := b.m.exemplars(b, ctx, sel, minTime, maxTime)
		return out, nil, err
	}
	return b.Backend.Exemplars(ctx, sel, minTime, maxTime)
}

// MetricMetadata implements backend.MetadataBackend.
func (b *Backend) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	if b.m.metadata != nil {
		out, err := b.m.metadata(b, ctx, metric, limit)
		return out, nil, err
	}
	return b.Backend.MetricMetadata(ctx, metric, limit)
}

// gather reads an answer whole.
func gather(seq sequence) (out []backend.Series, err error) {
	for batch, err := range seq {
		if err != nil {
			return out, err
		}
		for i := range batch.Len() {
			out = append(out, batch.At(i))
		}
	}
	return out, nil
}

// emit hands series out in batches.
func emit(list []backend.Series, size int) sequence {
	return func(yield func(*backend.Batch, error) bool) {
		for part := range slices.Chunk(list, max(size, 1)) {
			b := backend.NewBatch(len(part))
			for _, s := range part {
				b.Append(s)
			}
			if !yield(b, nil) {
				return
			}
		}
	}
}

// changed asks the reference for something else.
func changed(f func(r *backend.SeriesRequest)) call {
	return func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
		r := *req
		r.Matchers = slices.Clone(req.Matchers)
		f(&r)
		return b.Backend.Series(ctx, &r)
	}
}

// answered changes the whole answer.
func answered(f func(b *Backend, req *backend.SeriesRequest, all []backend.Series) []backend.Series) call {
	return func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
		all, err := gather(b.Backend.Series(ctx, req))
		if err != nil {
			return backend.Fail(err)
		}
		return emit(f(b, req, all), 16)
	}
}

// each changes every series; one without labels is left out.
func each(f func(req *backend.SeriesRequest, s backend.Series) backend.Series) call {
	return answered(func(_ *Backend, req *backend.SeriesRequest, all []backend.Series) (out []backend.Series) {
		for _, s := range all {
			if s = f(req, s); !s.Labels.IsEmpty() {
				out = append(out, s)
			}
		}
		return out
	})
}

// matched does the matching by keep, on final labels.
func matched(keep func(b *Backend, ls labels.Labels, ms []*labels.Matcher) bool) call {
	return func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
		r := *req
		r.Matchers, r.Limit, r.Shard, r.WithoutReplicaLabels = nil, 0, nil, nil
		all, err := gather(b.Backend.Series(ctx, &r))
		if err != nil {
			return backend.Fail(err)
		}
		all = slices.DeleteFunc(all, func(s backend.Series) bool { return !keep(b, s.Labels, req.Matchers) })
		return shaping.Limit(shaping.Sharded(shaping.WithoutLabels(emit(all, 16), req.WithoutReplicaLabels), req.Shard), req.Limit)
	}
}

// matcher is matched with matchers one by one, with ok for those that are as they should be.
func matcher(keep func(m *labels.Matcher, v string) bool) call {
	return matched(func(_ *Backend, ls labels.Labels, ms []*labels.Matcher) bool {
		for _, m := range ms {
			if !keep(m, ls.Get(m.Name)) {
				return false
			}
		}
		return true
	})
}

// sampled changes the samples of every series.
func sampled(f func(list []shaping.Sample) []shaping.Sample) call {
	return each(func(_ *backend.SeriesRequest, s backend.Series) backend.Series {
		var list []shaping.Sample
		for _, c := range s.Chunks {
			x, err := decode(c.Raw)
			if err != nil {
				return s // aggregates
			}
			list = append(list, x...)
		}
		if len(list) > 0 {
			if chunks, err := shaping.EncodeSamples(f(list)); err == nil {
				s.Chunks = chunks
			}
		}
		return s
	})
}

// without takes labels off.
func without(ls labels.Labels, names ...string) labels.Labels {
	return labels.NewBuilder(ls).Del(names...).Labels()
}

func ordered(all []backend.Series, compare func(a, b labels.Labels) int) []backend.Series {
	slices.SortStableFunc(all, func(a, b backend.Series) int { return compare(a.Labels, b.Labels) })
	return all
}
