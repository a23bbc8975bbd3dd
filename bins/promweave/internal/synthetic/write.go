// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package synthetic

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"golang.org/x/sync/errgroup"
)

const (
	// blockRange is the range of blocks, in ms, and what their bounds align to.
	blockRange      = int64(2 * time.Hour / time.Millisecond)
	samplesPerChunk = 120
	// segmentSize keeps the chunk writer from claiming its usual 512 MiB per block.
	segmentSize = 64 << 20
)

// Interval is a half-open span of time.
type Interval struct {
	From, To time.Time
}

// Spec says which series one scraper scraped, and when.
type Spec struct {
	// Start and End bound the samples: Start <= t < End.
	Start, End time.Time
	// Interval is the time between scrapes; 0 is 30 s. Scrapes are at multiples of
	// it since the epoch, plus Offset.
	Interval, Offset time.Duration
	// Series is the number of series per cluster, at most. 0 is 500.
	Series int
	// Seed and the name of a cluster decide its truth.
	Seed uint64
	// Gaps are times without scrapes.
	Gaps []Interval
	// Cluster is the cluster scraped. Its name is not stored with the series.
	Cluster string
	// Clusters, instead of Cluster, are several, and their names are stored as the
	// label cluster: what a reference directory without external labels has.
	Clusters []string
}

// List returns the series of the spec, sorted by labels.
func (s Spec) List() []*Series {
	n := s.Series
	if n == 0 {
		n = 500
	}
	if len(s.Clusters) == 0 {
		return Cluster(s.Cluster, n, s.Seed, false)
	}
	lists := make([][]*Series, len(s.Clusters))
	for i, c := range s.Clusters {
		lists[i] = Cluster(c, n, s.Seed, true)
	}
	return Merge(lists...)
}

// Scrapes are the times of the samples in [from, to), in ms.
func (s Spec) Scrapes(from, to int64) []int64 {
	step, offset := s.Interval.Milliseconds(), s.Offset.Milliseconds()
	if step <= 0 {
		step = 30_000
	}
	t := from - floorMod(from-offset, step)
	if t < from {
		t += step
	}
	var all []int64
	for ; t < to; t += step {
		if !slices.ContainsFunc(s.Gaps, func(g Interval) bool { return t >= g.From.UnixMilli() && t < g.To.UnixMilli() }) {
			all = append(all, t)
		}
	}
	return all
}

func floorMod(a, b int64) int64 {
	if m := a % b; m < 0 {
		return m + b
	} else {
		return m
	}
}

// Write makes the directory, if need be, and writes blocks of two hours into it;
// the last ends with End. A block appears whole or not at all. progress, if not
// nil, is called with the number of blocks after each, from several goroutines.
// Equal specs give equal samples and equal block names.
func Write(ctx context.Context, dir string, spec Spec, progress func(done, total int)) error {
	start, end := spec.Start.UnixMilli(), spec.End.UnixMilli()
	switch {
	case start >= end:
		return fmt.Errorf("synthetic: start %s is not before end %s", spec.Start, spec.End)
	case start < 0:
		return fmt.Errorf("synthetic: start %s is before 1970", spec.Start)
	case spec.Interval < 0 || spec.Interval > 0 && spec.Interval < time.Millisecond:
		return fmt.Errorf("synthetic: interval %s is shorter than a millisecond", spec.Interval)
	}
	list := spec.List()
	if len(list) == 0 {
		return errors.New("synthetic: no series: a pod and its node need 60")
	}
	// Without an (empty) log the library's read-only database refuses a directory.
	if err := os.MkdirAll(filepath.Join(dir, "wal"), 0o777); err != nil {
		return fmt.Errorf("synthetic: %w", err)
	}
	symbols := map[string]struct{}{}
	for _, s := range list {
		s.Labels.Range(func(l labels.Label) {
			symbols[l.Name] = struct{}{}
			symbols[l.Value] = struct{}{}
		})
	}
	sorted := slices.Sorted(maps.Keys(symbols))

	first := start - start%blockRange
	total := int((end - first + blockRange - 1) / blockRange)
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for from := first; from < end; from += blockRange {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if err := writeBlock(ctx, dir, spec, list, sorted, max(from, start), min(from+blockRange, end)); err != nil {
				return fmt.Errorf("synthetic: block at %s: %w", time.UnixMilli(from).UTC().Format(time.RFC3339), err)
			}
			if progress != nil {
				progress(int(done.Add(1)), total)
			}
			return nil
		})
	}
	return g.Wait()
}

// writeBlock writes one block as tsdb/docs/format of Prometheus describes it.
func writeBlock(ctx context.Context, dir string, spec Spec, list []*Series, symbols []string, mint, maxt int64) (err error) {
	times := spec.Scrapes(mint, maxt)
	if len(times) == 0 {
		return nil
	}
	id := blockID(spec, mint, maxt)
	final := filepath.Join(dir, id.String())
	tmp := final + ".tmp-for-creation"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := os.MkdirAll(filepath.Join(tmp, "chunks"), 0o777); err != nil {
		return err
	}
	meta := tsdb.BlockMeta{
		ULID: id, Version: 1, MinTime: mint, MaxTime: maxt,
		Compaction: tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{id}},
	}
	if err := writeSeries(ctx, tmp, list, symbols, times, &meta.Stats); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(meta, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "meta.json"), raw, 0o666); err != nil {
		return err
	}
	return os.Rename(tmp, final)
}

func writeSeries(ctx context.Context, dir string, list []*Series, symbols []string, times []int64, stats *tsdb.BlockStats) (err error) {
	cw, err := chunks.NewWriter(filepath.Join(dir, "chunks"), chunks.WithSegmentSize(segmentSize))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cw.Close()) }()
	iw, err := index.NewWriter(ctx, filepath.Join(dir, "index"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, iw.Close()) }()
	for _, s := range symbols {
		if err := iw.AddSymbol(s); err != nil {
			return err
		}
	}
	metas := make([]chunks.Meta, 0, len(times)/samplesPerChunk+1)
	for i, s := range list {
		if i%256 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		metas = metas[:0]
		for from := 0; from < len(times); from += samplesPerChunk {
			part := times[from:min(from+samplesPerChunk, len(times))]
			c := chunkenc.NewXORChunk()
			app, err := c.Appender()
			if err != nil {
				return err
			}
			for _, t := range part {
				app.Append(t, s.Value(t))
			}
			metas = append(metas, chunks.Meta{MinTime: part[0], MaxTime: part[len(part)-1], Chunk: c})
		}
		if err := cw.WriteChunks(metas...); err != nil {
			return err
		}
		if err := iw.AddSeries(storage.SeriesRef(i+1), s.Labels, metas...); err != nil {
			return err
		}
		stats.NumSeries++
		stats.NumChunks += uint64(len(metas))
		stats.NumSamples += uint64(len(times))
		stats.NumFloatSamples += uint64(len(times))
	}
	return nil
}

// blockID is derived from what the block holds, so that writing twice does not
// make two of them.
func blockID(spec Spec, mint, maxt int64) ulid.ULID {
	var entropy [10]byte
	h := mix(spec.Seed ^ mix(uint64(spec.Offset)) ^ uint64(maxt))
	for _, r := range fmt.Sprint(spec.Cluster, spec.Clusters, spec.Series, spec.Interval) {
		h = mix(h ^ uint64(r))
	}
	binary.BigEndian.PutUint64(entropy[:8], h)
	var id ulid.ULID
	// The time of a ULID has 48 bits, enough for the years to come.
	if err := id.SetTime(uint64(mint)); err == nil {
		_ = id.SetEntropy(entropy[:])
	}
	return id
}
