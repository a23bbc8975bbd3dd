// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package compact

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/core/dedup"
	"github.com/promweave/promweave/core/samples"
	"github.com/promweave/promweave/sdk/backend"
)

// replica is what tells a block from those of other replicas. One that was made of replicas has
// the empty values, and comes first.
func replica(m *meta.Meta, names []string) (values []string) {
	for _, n := range names {
		values = append(values, m.Thanos.Labels[n])
	}
	return values
}

// replicasOverlap says whether blocks of two replicas overlap in time. Where none do there is
// nothing to choose, and chunks stay as they are.
func replicasOverlap(inputs []Input) bool {
	for i, a := range inputs {
		for _, b := range inputs[:i] {
			if a.Meta.MinTime < b.Meta.MaxTime && b.Meta.MinTime < a.Meta.MaxTime && !slices.Equal(a.Replica, b.Replica) {
				return true
			}
		}
	}
	return false
}

// ranks numbers the replicas in the order of their labels' values, which is that of a query.
func ranks(inputs []Input) map[ulid.ULID]int {
	var all [][]string
	for _, in := range inputs {
		all = append(all, in.Replica)
	}
	slices.SortFunc(all, slices.Compare)
	all = slices.CompactFunc(all, slices.Equal)
	out := map[ulid.ULID]int{}
	for _, in := range inputs {
		out[in.Meta.ULID], _ = slices.BinarySearchFunc(all, in.Replica, slices.Compare)
	}
	return out
}

// replicas writes a block of blocks of replicas: of each series the samples that a query would
// choose, by the same code.
//
// The compactor does not say which block a series is from, so their chunks do.
type replicas struct {
	of        map[ulid.ULID]int
	algorithm dedup.Algorithm
}

// PopulateBlock implements tsdb.BlockPopulator.
func (r *replicas) PopulateBlock(ctx context.Context, metrics *tsdb.CompactorMetrics, logger *slog.Logger, pool chunkenc.Pool, _ storage.VerticalChunkSeriesMergeFunc, blocks []tsdb.BlockReader, m *tsdb.BlockMeta, indexw tsdb.IndexWriter, chunkw tsdb.ChunkWriter, postings tsdb.IndexReaderPostingsFunc) error {
	named := make([]tsdb.BlockReader, len(blocks))
	for i, b := range blocks {
		named[i] = &namedBlock{b, r.of[b.Meta().ULID]}
	}
	return tsdb.DefaultBlockPopulator{}.PopulateBlock(ctx, metrics, logger, pool, r.merge, named, m, indexw, chunkw, postings)
}

// namedBlock is a block whose chunks know its replica.
type namedBlock struct {
	tsdb.BlockReader
	replica int
}

func (b *namedBlock) Chunks() (tsdb.ChunkReader, error) {
	r, err := b.BlockReader.Chunks()
	if err != nil {
		return nil, err
	}
	return &namedReader{r, b.replica}, nil
}

type namedReader struct {
	tsdb.ChunkReader
	replica int
}

func (r *namedReader) ChunkOrIterable(m chunks.Meta) (chunkenc.Chunk, chunkenc.Iterable, error) {
	c, it, err := r.ChunkReader.ChunkOrIterable(m)
	if c != nil {
		c = &namedChunk{c, r.replica}
	}
	return c, it, err
}

type namedChunk struct {
	chunkenc.Chunk
	replica int
}

var errNameless = errors.New("a chunk of no block")

// merge makes one series of those of some blocks.
func (r *replicas) merge(series ...storage.ChunkSeries) storage.ChunkSeries {
	if len(series) == 1 {
		return series[0]
	}
	return &storage.ChunkSeriesEntry{Lset: series[0].Labels(), ChunkIteratorFn: func(chunks.Iterator) chunks.Iterator {
		its, err := r.split(series)
		if err != nil {
			return failed{err}
		}
		s := &storage.SeriesEntry{Lset: labels.EmptyLabels(), SampleIteratorFn: func(chunkenc.Iterator) chunkenc.Iterator {
			// Values are kept as they are: what a query adds to those of counters depends on its function.
			return dedup.New(r.algorithm, false, its)
		}}
		return storage.NewSeriesToChunkEncoder(s).Iterator(nil)
	}}
}

// split is one iterator for each replica, in their order.
func (r *replicas) split(series []storage.ChunkSeries) (its []chunkenc.Iterator, err error) {
	of := map[int][]samples.Chunk{}
	for _, s := range series {
		it := s.Iterator(nil)
		for it.Next() {
			m := it.At()
			c, ok := m.Chunk.(*namedChunk)
			if !ok {
				return nil, fmt.Errorf("series %s: %w", s.Labels(), errNameless)
			}
			of[c.replica] = append(of[c.replica], samples.Chunk{Chunk: backend.Chunk{MinTime: m.MinTime, MaxTime: m.MaxTime,
				Raw: backend.Encoded{Encoding: c.Encoding(), Data: c.Bytes()}}})
		}
		if err := it.Err(); err != nil {
			return nil, err
		}
	}
	for _, k := range slices.Sorted(maps.Keys(of)) {
		its = append(its, samples.NewIterator(samples.Sort(of[k]), samples.Options{MinTime: math.MinInt64, MaxTime: math.MaxInt64}, nil))
	}
	return its, nil
}

// failed is a chunks.Iterator that has only an error.
type failed struct{ err error }

func (failed) At() chunks.Meta { return chunks.Meta{} }
func (failed) Next() bool      { return false }
func (f failed) Err() error    { return f.err }
