// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package reference is a backend that keeps the contract to the letter, over the corpus
// and in memory: the suite's own proof that it can be passed, and what broken backends
// are made of.
package reference

import (
	"cmp"
	"context"
	"iter"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
)

// Options of a backend.
type Options struct {
	External labels.Labels
	// Capabilities that are claimed; what is not claimed is not done.
	Capabilities backend.Capabilities
	// BatchSize is the most series in a batch unless the request says; 0 is 64.
	BatchSize int
	// ChunkSamples is the most samples in a chunk; 0, and more than rule S-8 has, is 120.
	ChunkSamples int
}

// Backend is the reference.
type Backend struct {
	o      Options
	c      *corpus.Corpus
	series []stored
}

// stored is a series with its chunks, and its levels with theirs, the coarsest first.
type stored struct {
	labels  labels.Labels
	samples []shaping.Sample // the corpus's own
	chunks  []backend.Chunk
	levels  []level
}

type level struct {
	resolution int64
	windows    []corpus.Window
}

var (
	_ backend.Backend          = (*Backend)(nil)
	_ backend.ExemplarsBackend = (*Backend)(nil)
	_ backend.MetadataBackend  = (*Backend)(nil)
)

// AllCapabilities are those that it has, but for downsampled data, which the corpus has
// to hold.
func AllCapabilities() backend.Capabilities {
	return backend.Capabilities{
		Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true, BoundedLabels: true,
		NativeHistograms: true, StaleMarkers: true, Completeness: true, Exemplars: true, Metadata: true,
	}
}

// New returns the reference over a corpus.
func New(c *corpus.Corpus, o Options) *Backend {
	if o.BatchSize <= 0 {
		o.BatchSize = 64
	}
	if o.ChunkSamples <= 0 || o.ChunkSamples > shaping.MaxSamplesPerChunk {
		o.ChunkSamples = shaping.MaxSamplesPerChunk
	}
	b := &Backend{o: o, c: c}
	for _, s := range c.Series {
		st := stored{labels: s.Labels, samples: s.Samples, chunks: b.encode(s.Samples)}
		for _, l := range c.Levels {
			if labels.Equal(l.Labels, s.Labels) {
				st.levels = append(st.levels, level{l.Resolution, l.Windows})
			}
		}
		slices.SortFunc(st.levels, func(a, b level) int { return int(b.resolution - a.resolution) })
		b.series = append(b.series, st)
	}
	return b
}

// encode makes chunks of samples of the corpus.
func (b *Backend) encode(in []shaping.Sample) (out []backend.Chunk) {
	n := len(in)
	if b.o.ChunkSamples < shaping.MaxSamplesPerChunk {
		n = b.o.ChunkSamples
	}
	for part := range slices.Chunk(in, max(n, 1)) {
		chunks, err := shaping.EncodeSamples(copies(part))
		if err != nil {
			panic(err) // the corpus is ours
		}
		out = append(out, chunks...)
	}
	return out
}

// copies keeps the encoder from changing histograms of the corpus.
func copies(in []shaping.Sample) []shaping.Sample {
	out := slices.Clone(in)
	for i := range out {
		if out[i].H != nil {
			out[i].H = out[i].H.Copy()
		}
		if out[i].FH != nil {
			out[i].FH = out[i].FH.Copy()
		}
	}
	return out
}

// Info implements backend.Backend.
func (b *Backend) Info(ctx context.Context) (backend.Info, error) {
	if ctx.Err() != nil {
		return backend.Info{}, context.Cause(ctx)
	}
	info := backend.Info{Capabilities: b.o.Capabilities, Version: "1"}
	info.MinTime, info.MaxTime = b.c.Bounds()
	if !b.o.External.IsEmpty() {
		info.LabelSets = []labels.Labels{b.o.External}
	}
	return info, nil
}

// Series implements backend.Backend.
func (b *Backend) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	if ctx.Err() != nil {
		return backend.Fail(context.Cause(ctx))
	}
	rest, ok := shaping.SplitMatchers(b.o.External, req.Matchers)
	if !ok {
		return backend.None()
	}
	size := b.o.BatchSize
	if req.BatchSize > 0 {
		size = req.BatchSize
	}
	// Room is made for a batch, and a peer may ask for one of any size.
	size = min(size, max(len(b.series), 1))
	r := *shaping.Reduce(b.o.Capabilities, req)
	return b.batches(ctx, size, shaping.Apply(&r, b.o.External, b.stored(ctx, size, &r, rest)))
}

// maxBytes of a batch of several series.
const maxBytes = 1 << 20

// fits says whether a batch may have another series.
func fits(b *backend.Batch, size int, s backend.Series) bool {
	return b.Len() == 0 || b.Len() < size && b.Bytes()+s.Size() <= maxBytes
}

// stored are the series that match, with their stored labels.
func (b *Backend) stored(ctx context.Context, size int, req *backend.SeriesRequest, ms []*labels.Matcher) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		out := backend.NewBatch(size)
		for i := range b.series {
			s := &b.series[i]
			if !shaping.Matches(s.labels, ms) {
				continue
			}
			chunks := b.chunks(s, req)
			if len(chunks) == 0 {
				continue
			}
			next := backend.Series{Labels: s.labels, Chunks: chunks}
			if !fits(out, size, next) {
				if !yield(out, nil) {
					return
				}
				if ctx.Err() != nil {
					yield(nil, context.Cause(ctx))
					return
				}
				out = backend.NewBatch(size)
			}
			out.Append(next)
		}
		if out.Len() > 0 && yield(out, nil) && ctx.Err() != nil {
			yield(nil, context.Cause(ctx))
		}
	}
}

// batches cuts those that have grown by labels, or by series that were held back for
// order, to size again.
func (b *Backend) batches(ctx context.Context, size int, seq iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		for in, err := range seq {
			if err != nil {
				yield(nil, err)
				return
			}
			if in.Len() <= 1 || in.Len() <= size && in.Bytes() <= maxBytes {
				if !yield(in, nil) {
					return
				}
				continue
			}
			out := backend.NewBatch(size)
			for i := range in.Len() {
				if s := in.At(i); fits(out, size, s) {
					out.Append(s)
					continue
				}
				if !yield(out, nil) {
					return
				}
				if ctx.Err() != nil {
					yield(nil, context.Cause(ctx))
					return
				}
				out = backend.NewBatch(size)
				out.Append(in.At(i))
			}
			for _, n := range in.Notices() {
				out.Notify(n)
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}

// chunks of a series in the range, whole, each with memory of its own. Raw ones hold
// nothing that is in a window too.
func (b *Backend) chunks(s *stored, req *backend.SeriesRequest) (out []backend.Chunk) {
	covered := func(int64) bool { return false }
	if b.o.Capabilities.Downsampled && req.MaxResolution > 0 {
		out, covered = b.aggregated(s, req)
	}
	inRange := func(c backend.Chunk) bool { return c.MaxTime >= req.MinTime && c.MinTime <= req.MaxTime }
	for _, c := range s.chunks {
		if !inRange(c) {
			continue
		}
		var rest []shaping.Sample
		part := s.between(c.MinTime, c.MaxTime)
		for _, x := range part {
			if !covered(x.T) {
				rest = append(rest, x)
			}
		}
		if len(rest) == len(part) {
			c.Raw.Data = slices.Clone(c.Raw.Data)
			out = append(out, c)
			continue
		}
		for _, c := range b.encode(rest) {
			if inRange(c) {
				out = append(out, c)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b backend.Chunk) int {
		return cmp.Or(cmp.Compare(a.MinTime, b.MinTime), cmp.Compare(a.MaxTime, b.MaxTime))
	})
	return out
}

// between are the samples in a range.
func (s *stored) between(minTime, maxTime int64) []shaping.Sample {
	at := func(t int64) (i int, exact bool) {
		return slices.BinarySearchFunc(s.samples, t, func(x shaping.Sample, t int64) int { return cmp.Compare(x.T, t) })
	}
	from, _ := at(minTime)
	to, exact := at(maxTime)
	if exact {
		to++
	}
	return s.samples[from:to]
}

// aggregated are the windows of the coarsest level that will do, with finer ones where it
// has none (rule S-11).
func (b *Backend) aggregated(s *stored, req *backend.SeriesRequest) (out []backend.Chunk, covered func(t int64) bool) {
	type span struct{ from, to int64 }
	var have []span
	covered = func(t int64) bool {
		return slices.ContainsFunc(have, func(x span) bool { return t >= x.from && t <= x.to })
	}
	var windows []corpus.Window
	for _, l := range s.levels {
		if l.resolution > req.MaxResolution {
			continue
		}
		var new []span
		for _, w := range l.windows {
			if from := w.T - l.resolution + 1; !covered(from) {
				new = append(new, span{from, w.T})
				if w.T >= req.MinTime && w.T <= req.MaxTime {
					windows = append(windows, w)
				}
			}
		}
		have = append(have, new...)
	}
	slices.SortFunc(windows, func(a, b corpus.Window) int { return cmp.Compare(a.T, b.T) })
	for part := range slices.Chunk(windows, b.o.ChunkSamples) {
		a := &backend.AggregateChunks{}
		for _, kind := range req.Aggregates {
			switch kind {
			case backend.AggregateCount:
				a.Count = encode(part, func(w corpus.Window) float64 { return w.Count })
			case backend.AggregateSum:
				a.Sum = encode(part, func(w corpus.Window) float64 { return w.Sum })
			case backend.AggregateMin:
				a.Min = encode(part, func(w corpus.Window) float64 { return w.Min })
			case backend.AggregateMax:
				a.Max = encode(part, func(w corpus.Window) float64 { return w.Max })
			case backend.AggregateCounter:
				a.Counter = encode(part, func(w corpus.Window) float64 { return w.Counter })
			}
		}
		out = append(out, backend.Chunk{MinTime: part[0].T, MaxTime: part[len(part)-1].T, Aggregates: a})
	}
	return out, covered
}

func encode(windows []corpus.Window, f func(corpus.Window) float64) backend.Encoded {
	c := chunkenc.NewXORChunk()
	app, err := c.Appender()
	if err != nil {
		panic(err) // of an empty chunk
	}
	for _, w := range windows {
		app.Append(w.T, f(w))
	}
	return backend.Encoded{Data: c.Bytes(), Encoding: chunkenc.EncXOR}
}

// each calls f with the labels of series that match and have something in the range.
func (b *Backend) each(minTime, maxTime int64, ms []*labels.Matcher, f func(labels.Labels)) {
	for i := range b.series {
		s := &b.series[i]
		if shaping.Matches(s.labels, ms) && b.holds(s, minTime, maxTime) {
			f(s.labels)
		}
	}
}

// holds says whether a series has a chunk, or a window of any level, in the range: calls
// for labels do not say which resolution will do.
func (b *Backend) holds(s *stored, minTime, maxTime int64) bool {
	return slices.ContainsFunc(s.chunks, func(c backend.Chunk) bool { return c.MaxTime >= minTime && c.MinTime <= maxTime }) ||
		b.o.Capabilities.Downsampled && slices.ContainsFunc(s.levels, func(l level) bool {
			return slices.ContainsFunc(l.windows, func(w corpus.Window) bool { return w.T >= minTime && w.T <= maxTime })
		})
}

// LabelNames implements backend.Backend.
func (b *Backend) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return shaping.LabelNames(b.o.External, req, func(rest []*labels.Matcher) (names []string, _ error) {
		b.each(req.MinTime, req.MaxTime, rest, func(ls labels.Labels) {
			ls.Range(func(l labels.Label) { names = append(names, l.Name) })
		})
		return names, nil
	})
}

// LabelValues implements backend.Backend.
func (b *Backend) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return shaping.LabelValues(b.o.External, req, func(rest []*labels.Matcher) (values []string, _ error) {
		b.each(req.MinTime, req.MaxTime, rest, func(ls labels.Labels) { values = append(values, ls.Get(req.Name)) })
		return values, nil
	}, func(rest []*labels.Matcher) (found bool, _ error) {
		b.each(req.MinTime, req.MaxTime, rest, func(labels.Labels) { found = true })
		return found, nil
	})
}

// Exemplars implements backend.ExemplarsBackend.
func (b *Backend) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) (out []*storepb.ExemplarData, _ []backend.Notice, _ error) {
	if !b.o.Capabilities.Exemplars {
		return nil, nil, backend.Errorf(backend.ErrUnsupported, "exemplars are not supported")
	}
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	for _, e := range b.c.Exemplars {
		final := shaping.ExtendLabels(e.Series, b.o.External, nil)
		if e.Time < minTime || e.Time > maxTime || !slices.ContainsFunc(selectors, func(ms []*labels.Matcher) bool { return shaping.Matches(final, ms) }) {
			continue
		}
		out = append(out, &storepb.ExemplarData{SeriesLabels: wire(final), Exemplars: []*storepb.Exemplar{{Labels: wire(e.Labels), Value: e.Value, Ts: e.Time}}})
	}
	return out, nil, nil
}

func wire(ls labels.Labels) *storepb.LabelSet {
	out := &storepb.LabelSet{}
	ls.Range(func(l labels.Label) { out.Labels = append(out.Labels, &storepb.Label{Name: l.Name, Value: l.Value}) })
	return out
}

// MetricMetadata implements backend.MetadataBackend.
func (b *Backend) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	if !b.o.Capabilities.Metadata {
		return nil, nil, backend.Errorf(backend.ErrUnsupported, "metadata are not supported")
	}
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	out := map[string][]*storepb.Meta{}
	for _, m := range b.c.Metadata {
		if metric != "" && metric != m.Metric || limit >= 0 && len(out) >= limit {
			continue
		}
		out[m.Metric] = []*storepb.Meta{{Type: m.Type, Help: m.Help, Unit: m.Unit}}
	}
	return out, nil, nil
}
