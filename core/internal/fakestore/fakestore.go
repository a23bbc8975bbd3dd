// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package fakestore holds backends for tests of core: one over any storage of
// Prometheus, one over a list of series, and faults to put on either.
package fakestore

import (
	"context"
	"iter"
	"math"
	"slices"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// Store is a correct backend, but for what its hooks do.
type Store struct {
	External labels.Labels
	// Source yields the stored series that match and are in range, in order.
	Source func(ctx context.Context, minTime, maxTime int64, ms []*labels.Matcher) iter.Seq2[backend.Series, error]

	// MinTime and MaxTime are advertised; both 0 is all time.
	MinTime, MaxTime int64
	// BatchSize is the number of series in a batch; 0 is 10.
	BatchSize int
	// Capabilities are claimed; what is not claimed is not done.
	Capabilities backend.Capabilities
	// InfoError, if not nil, is what Info fails with.
	InfoError func(ctx context.Context) error
	// Wrap, if not nil, spoils the answer.
	Wrap func(context.Context, iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error]
	// Calls counts the calls of Series, LabelNames and LabelValues.
	Calls atomic.Int64
	// Requests are those of Series, if Record is set.
	Record   bool
	Requests []*backend.SeriesRequest
}

var _ backend.Backend = (*Store)(nil)

// Over serves a storage of Prometheus.
func Over(q storage.ChunkQueryable, external labels.Labels) *Store {
	return &Store{External: external, Source: func(ctx context.Context, minTime, maxTime int64, ms []*labels.Matcher) iter.Seq2[backend.Series, error] {
		return func(yield func(backend.Series, error) bool) {
			cq, err := q.ChunkQuerier(minTime, maxTime)
			if err != nil {
				yield(backend.Series{}, err)
				return
			}
			defer cq.Close()
			if len(ms) == 0 {
				ms = []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".*")}
			}
			set := cq.Select(ctx, true, &storage.SelectHints{Start: minTime, End: maxTime, DisableTrimming: true}, ms...)
			var it storage.ChunkSeries
			for set.Next() {
				it = set.At()
				s := backend.Series{Labels: it.Labels()}
				ci := it.Iterator(nil)
				for ci.Next() {
					m := ci.At()
					if m.Chunk.NumSamples() == 0 || m.MinTime > maxTime || m.MaxTime < minTime {
						continue
					}
					s.Chunks = append(s.Chunks, backend.Chunk{
						MinTime: m.MinTime, MaxTime: m.MaxTime,
						Raw: backend.Encoded{Encoding: m.Chunk.Encoding(), Data: slices.Clone(m.Chunk.Bytes())},
					})
				}
				if err := ci.Err(); err != nil {
					yield(s, err)
					return
				}
				if len(s.Chunks) > 0 && !yield(s, nil) {
					return
				}
			}
			if err := set.Err(); err != nil {
				yield(backend.Series{}, err)
			}
		}
	}}
}

// Holding serves a list of series, stored label sets in any order.
func Holding(external labels.Labels, series ...backend.Series) *Store {
	series = slices.Clone(series)
	slices.SortFunc(series, func(a, b backend.Series) int { return labels.Compare(a.Labels, b.Labels) })
	return &Store{External: external, Source: func(_ context.Context, minTime, maxTime int64, ms []*labels.Matcher) iter.Seq2[backend.Series, error] {
		return func(yield func(backend.Series, error) bool) {
			for _, s := range series {
				if !shaping.Matches(s.Labels, ms) {
					continue
				}
				out := backend.Series{Labels: s.Labels}
				for _, c := range s.Chunks {
					if c.MaxTime >= minTime && c.MinTime <= maxTime {
						out.Chunks = append(out.Chunks, c)
					}
				}
				if len(out.Chunks) > 0 && !yield(out, nil) {
					return
				}
			}
		}
	}}
}

// Floats makes a series of float samples: times, and a value for each.
func Floats(ls labels.Labels, times []int64, values []float64) backend.Series {
	s := backend.Series{Labels: ls}
	const most = 120
	for len(times) > 0 {
		n := min(most, len(times))
		c := chunkenc.NewXORChunk()
		app, err := c.Appender()
		if err != nil {
			panic(err)
		}
		for i := range n {
			app.Append(times[i], values[i])
		}
		s.Chunks = append(s.Chunks, backend.Chunk{
			MinTime: times[0], MaxTime: times[n-1], Raw: backend.Encoded{Encoding: chunkenc.EncXOR, Data: c.Bytes()},
		})
		times, values = times[n:], values[n:]
	}
	return s
}

// Info implements backend.Backend.
func (s *Store) Info(ctx context.Context) (backend.Info, error) {
	if s.InfoError != nil {
		if err := s.InfoError(ctx); err != nil {
			return backend.Info{}, err
		}
	}
	i := backend.Info{MinTime: s.MinTime, MaxTime: s.MaxTime, Capabilities: s.Capabilities}
	if s.MinTime == 0 && s.MaxTime == 0 {
		i.MinTime, i.MaxTime = math.MinInt64, math.MaxInt64
	}
	if !s.External.IsEmpty() {
		i.LabelSets = []labels.Labels{s.External}
	}
	return i, nil
}

// Series implements backend.Backend.
func (s *Store) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	s.Calls.Add(1)
	if s.Record {
		s.Requests = append(s.Requests, req)
	}
	req = shaping.Reduce(s.Capabilities, req)
	rest, ok := shaping.SplitMatchers(s.External, req.Matchers)
	if !ok {
		return backend.None()
	}
	seq := shaping.Apply(req, s.External, s.batches(ctx, req.MinTime, req.MaxTime, rest))
	if s.Wrap != nil {
		seq = s.Wrap(ctx, seq)
	}
	return seq
}

func (s *Store) batches(ctx context.Context, minTime, maxTime int64, ms []*labels.Matcher) iter.Seq2[*backend.Batch, error] {
	size := s.BatchSize
	if size <= 0 {
		size = 10
	}
	return func(yield func(*backend.Batch, error) bool) {
		b := backend.NewBatch(size)
		for x, err := range s.Source(ctx, minTime, maxTime, ms) {
			if err == nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if b.Append(x); b.Len() == size {
				if !yield(b, nil) {
					return
				}
				b = backend.NewBatch(size)
			}
		}
		if b.Len() > 0 {
			yield(b, nil)
		}
	}
}

func (s *Store) each(ctx context.Context, minTime, maxTime int64, ms []*labels.Matcher, f func(labels.Labels)) error {
	for x, err := range s.Source(ctx, minTime, maxTime, ms) {
		if err != nil {
			return err
		}
		f(x.Labels)
	}
	return nil
}

// LabelNames implements backend.Backend.
func (s *Store) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	s.Calls.Add(1)
	return shaping.LabelNames(s.External, req, func(rest []*labels.Matcher) (out []string, err error) {
		err = s.each(ctx, req.MinTime, req.MaxTime, rest, func(l labels.Labels) {
			l.Range(func(x labels.Label) { out = append(out, x.Name) })
		})
		return out, err
	})
}

// LabelValues implements backend.Backend.
func (s *Store) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	s.Calls.Add(1)
	found := func(rest []*labels.Matcher) (out []string, n int, err error) {
		err = s.each(ctx, req.MinTime, req.MaxTime, rest, func(l labels.Labels) {
			out = append(out, l.Get(req.Name))
			n++
		})
		return out, n, err
	}
	return shaping.LabelValues(s.External, req,
		func(rest []*labels.Matcher) ([]string, error) { out, _, err := found(rest); return out, err },
		func(rest []*labels.Matcher) (bool, error) { _, n, err := found(rest); return n > 0, err })
}
