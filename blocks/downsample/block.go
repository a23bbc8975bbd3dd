// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package downsample

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/fileutil"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/sdk/backend"
)

// Options of Block; the zero value will do.
type Options struct {
	// Logger is told about series that are left out, and unfinished blocks that are removed.
	Logger *slog.Logger
	// Stats, if not nil, are set to what Block did.
	Stats *Stats
	// SegmentBytes is the largest size of a segment file, if not 0.
	SegmentBytes int64
}

// Stats count series.
type Stats struct {
	// Written are in the new block.
	Written int
	// Empty had no samples but stale markers and NaN.
	Empty int
	// CustomBuckets had histograms with custom buckets, for which there is no format.
	CustomBuckets int
}

// creating is the ending of the directory of a block that is not complete; it is that of the
// TSDB, whose programs remove such directories, too. locked is that of a file beside it, locked
// as long as the process that writes it lives.
const (
	creating = ".tmp-for-creation"
	locked   = creating + ".lock"
)

// Block downsamples the block src in the directory dir (dir/index, dir/chunks) to resolution,
// in ms, which is the one after src's, into a new directory out/<ULID>. It returns the meta of
// the new block, which is also in its meta.json; src is not changed.
//
// The new block is made in a directory beside and appears with all that it has, on disk, or not
// at all. What a process that died has left there is removed by the next call for the same out.
//
// Memory: the samples of one series at most, if they are floats, and the symbols of the index.
//
// An error names the block, and if it is the data's fault the series and the chunk; then
// nothing is left in out.
func Block(ctx context.Context, src *meta.Meta, dir, out string, resolution int64, o Options) (*meta.Meta, error) {
	m, err := block(ctx, src, dir, out, resolution, o)
	if err != nil {
		return nil, fmt.Errorf("downsample block %s: %w", src.ULID, err)
	}
	return m, nil
}

func block(ctx context.Context, src *meta.Meta, dir, out string, resolution int64, o Options) (_ *meta.Meta, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if next, ok := after(src.Resolution()); !ok || next != resolution {
		return nil, fmt.Errorf("from resolution %d to %d is not a step that there is", src.Resolution(), resolution)
	}
	if err := os.MkdirAll(out, 0o777); err != nil {
		return nil, err
	}
	if err := removeUnfinished(out, o.Logger); err != nil {
		return nil, err
	}
	id, release, err := claim(out)
	if err != nil {
		return nil, err
	}
	final := filepath.Join(out, id.String())
	tmp := final + creating
	// The lock is let go when there is nothing left that could be taken for unfinished.
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
		err = errors.Join(err, os.Remove(final+locked), release.Release())
	}()
	if err := os.Mkdir(tmp, 0o777); err != nil {
		return nil, err
	}
	m, err := write(ctx, src, dir, tmp, id, resolution, o)
	if err != nil {
		return nil, err
	}
	return m, fileutil.Rename(tmp, final)
}

// claim is a new id whose lock in out is held.
func claim(out string) (ulid.ULID, fileutil.Releaser, error) {
	var last error
	for range 10 {
		id, err := ulid.New(ulid.Timestamp(time.Now()), rand.Reader)
		if err != nil {
			return id, nil, err
		}
		name := filepath.Join(out, id.String()+locked)
		release, _, err := fileutil.Flock(name)
		if err == nil {
			if _, err = os.Stat(name); err == nil {
				return id, release, nil
			}
			err = errors.Join(err, release.Release())
		}
		// Somebody who removes what is unfinished came between making the file and locking it.
		last = err
	}
	return ulid.ULID{}, nil, last
}

// after is the resolution that blocks of one are downsampled to.
func after(resolution int64) (int64, bool) {
	all := meta.Resolutions()
	i := slices.Index(all, resolution)
	if i < 0 || i+1 == len(all) {
		return 0, false
	}
	return all[i+1], true
}

// removeUnfinished removes what processes left in out that did not come to an end. Who writes
// holds a lock, so others are left alone.
func removeUnfinished(out string, log *slog.Logger) error {
	entries, err := os.ReadDir(out)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(strings.TrimSuffix(e.Name(), ".lock"), creating)
		if _, isBlock := meta.IDFromName(name); !ok || !isBlock || seen[name] {
			continue
		}
		seen[name] = true
		release, _, err := fileutil.Flock(filepath.Join(out, name+locked))
		if err != nil {
			continue // somebody is at it
		}
		tmp := filepath.Join(out, name+creating)
		if _, err := os.Stat(tmp); err == nil {
			log.Info("removing a downsampled block that was never finished", "dir", tmp)
		}
		if err := errors.Join(os.RemoveAll(tmp), os.Remove(filepath.Join(out, name+locked)), release.Release()); err != nil {
			return err
		}
	}
	return nil
}

// write makes the block in the directory to.
func write(ctx context.Context, src *meta.Meta, dir, to string, id ulid.ULID, resolution int64, o Options) (*meta.Meta, error) {
	m := src.Clone()
	m.ULID, m.Thanos.Downsample.Resolution = id, resolution
	// Level, sources and parents are those of src, and so are the numbers of floats and
	// histograms, which Thanos does not count either.
	m.Stats.NumSamples, m.Stats.NumSeries, m.Stats.NumChunks = 0, 0, 0
	m.Thanos.Source, m.Thanos.SegmentFiles, m.Thanos.Files, m.Thanos.IndexStats = meta.SourceCompactor, nil, nil, meta.IndexStats{}
	m.Thanos.UploadTime = time.Time{}

	stats, err := writeData(ctx, src, dir, to, m, o)
	if err != nil {
		return nil, err
	}
	if m.Thanos.IndexStats.SeriesMaxSize, err = seriesMaxSize(filepath.Join(to, meta.IndexFile)); err != nil {
		return nil, err
	}
	segments, err := os.ReadDir(filepath.Join(to, meta.ChunksDir)) // in order
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(segments)+1)
	for _, s := range segments {
		m.Thanos.SegmentFiles = append(m.Thanos.SegmentFiles, s.Name())
		names = append(names, path.Join(meta.ChunksDir, s.Name()))
	}
	for _, name := range append(names, meta.IndexFile) {
		info, err := os.Stat(filepath.Join(to, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		m.Thanos.Files = append(m.Thanos.Files, meta.BlockFile{RelPath: name, SizeBytes: info.Size()})
	}
	m.Thanos.Files = append(m.Thanos.Files, meta.BlockFile{RelPath: meta.File})

	data, err := m.Encode()
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(to, meta.File), data); err != nil {
		return nil, err
	}
	// The files are on disk; now their names.
	for _, d := range []string{filepath.Join(to, meta.ChunksDir), to} {
		if err := syncDir(d); err != nil {
			return nil, err
		}
	}
	if o.Stats != nil {
		*o.Stats = stats
	}
	return m, nil
}

func writeFile(name string, data []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writeData writes index and chunks, and counts in the stats of m.
func writeData(ctx context.Context, src *meta.Meta, dir, to string, m *meta.Meta, o Options) (stats Stats, err error) {
	in, err := openInput(dir)
	if err != nil {
		return stats, err
	}
	defer func() { err = errors.Join(err, in.close()) }()

	var options []chunks.WriterOption
	if o.SegmentBytes > 0 {
		options = append(options, chunks.WithSegmentSize(o.SegmentBytes))
	}
	cw, err := chunks.NewWriter(filepath.Join(to, meta.ChunksDir), options...)
	if err != nil {
		return stats, err
	}
	defer func() { err = errors.Join(err, cw.Close()) }()
	iw, err := index.NewWriter(ctx, filepath.Join(to, meta.IndexFile))
	if err != nil {
		return stats, err
	}
	// Close writes most of the index, also after an error; then all of it is thrown away.
	defer func() { err = errors.Join(err, iw.Close()) }()

	symbols := in.index.Symbols()
	for symbols.Next() {
		if err := iw.AddSymbol(symbols.At()); err != nil {
			return stats, err
		}
	}
	if err := symbols.Err(); err != nil {
		return stats, fmt.Errorf("its symbols: %w", err)
	}

	name, value := index.AllPostingsKey()
	postings, err := in.index.Postings(ctx, name, value)
	if err != nil {
		return stats, fmt.Errorf("its postings: %w", err)
	}
	for postings.Next() {
		if err := ctx.Err(); err != nil {
			return stats, err
		}
		made, err := in.series(postings.At(), src.Resolution(), m.Resolution())
		switch {
		case errors.Is(err, errCustomBuckets):
			stats.CustomBuckets++
			o.Logger.Warn("left out of the downsampled block", "block", src.ULID, "series", in.labels().String(), "reason", err)
			continue
		case err != nil:
			return stats, err
		case len(made) == 0:
			stats.Empty++
			continue
		}
		if err := cw.WriteChunks(made...); err != nil {
			return stats, err
		}
		if err := iw.AddSeries(storage.SeriesRef(stats.Written), in.labels(), made...); err != nil {
			return stats, fmt.Errorf("series %s: %w", in.labels(), err)
		}
		stats.Written++
		m.Stats.NumSeries++
		m.Stats.NumChunks += uint64(len(made))
		for i := range made {
			m.Stats.NumSamples += uint64(made[i].Chunk.NumSamples())
			m.Thanos.IndexStats.ChunkMaxSize = max(m.Thanos.IndexStats.ChunkMaxSize, sizeInSegment(made[i].Chunk))
		}
	}
	if err := postings.Err(); err != nil {
		return stats, fmt.Errorf("its postings: %w", err)
	}
	if stats.CustomBuckets > 0 {
		o.Logger.Warn("series with custom buckets were left out of a downsampled block: they are in the raw one only", "block", src.ULID, "series", stats.CustomBuckets)
	}
	return stats, nil
}

// input is a block that is open, and the series of it that was read last.
type input struct {
	index   *index.Reader
	chunks  *chunks.Reader
	builder labels.ScratchBuilder
	metas   []chunks.Meta
	stored  []stored
}

func openInput(dir string) (*input, error) {
	ir, err := index.NewFileReader(filepath.Join(dir, meta.IndexFile), index.DecodePostingsRaw)
	if err != nil {
		return nil, fmt.Errorf("its index: %w", err)
	}
	cr, err := chunks.NewDirReader(filepath.Join(dir, meta.ChunksDir), aggregate.NewPool())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("its chunks: %w", err), ir.Close())
	}
	return &input{index: ir, chunks: cr, builder: labels.NewScratchBuilder(16)}, nil
}

func (in *input) close() error { return errors.Join(in.chunks.Close(), in.index.Close()) }

func (in *input) labels() labels.Labels { return in.builder.Labels() }

// series downsamples one.
func (in *input) series(ref storage.SeriesRef, from, to int64) ([]chunks.Meta, error) {
	if err := in.index.Series(ref, &in.builder, &in.metas); err != nil {
		return nil, fmt.Errorf("series %d: %w", ref, err)
	}
	in.stored = in.stored[:0]
	for _, m := range in.metas {
		s := stored{ref: uint64(m.Ref), minTime: m.MinTime, maxTime: m.MaxTime}
		c, _, err := in.chunks.ChunkOrIterable(m)
		if err != nil {
			return nil, fmt.Errorf("series %s: %w", in.labels(), s.wrap(err))
		}
		s.Encoded = backend.Encoded{Encoding: c.Encoding(), Data: c.Bytes()}
		if c.Encoding() == aggregate.Encoding && from == meta.Raw {
			return nil, fmt.Errorf("series %s: %w", in.labels(), s.wrap(errors.New("an aggregate chunk in a raw block")))
		}
		in.stored = append(in.stored, s)
	}
	made, err := resample(in.stored, from, to)
	if err != nil {
		return nil, fmt.Errorf("series %s: %w", in.labels(), err)
	}
	out := make([]chunks.Meta, len(made))
	for i, c := range made {
		if aggregate.Points(c.Aggregates.Counter) == math.MaxUint16 {
			// The number of points may have begun at 0 again.
			return nil, fmt.Errorf("series %s: the chunk from %d to %d has too many points", in.labels(), c.MinTime, c.MaxTime)
		}
		out[i] = chunks.Meta{MinTime: c.MinTime, MaxTime: c.MaxTime, Chunk: aggregate.Chunk(aggregate.Append(nil, c.Aggregates))}
	}
	return out, nil
}

// sizeInSegment is what a chunk takes in a segment file, in bytes: its length, encoding, data
// and checksum. Thanos takes the largest distance between two chunks, and not that of the last of
// a series, so its maximum may be smaller: too small for a reader that believes it.
func sizeInSegment(c chunkenc.Chunk) int64 {
	n := len(c.Bytes())
	return int64(len(binary.AppendUvarint(nil, uint64(n))) + chunks.ChunkEncodingSize + n + crc32.Size)
}

// seriesMaxSize is the largest distance between two series in an index, in bytes, which is what
// Thanos takes for the largest entry of a series.
func seriesMaxSize(name string) (most int64, err error) {
	r, err := index.NewFileReader(name, index.DecodePostingsRaw)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	key, value := index.AllPostingsKey()
	p, err := r.Postings(context.Background(), key, value)
	if err != nil {
		return 0, err
	}
	const align = 16 // of series, in this version of the format
	for before := storage.SeriesRef(0); p.Next(); before = p.At() {
		if before != 0 {
			most = max(most, int64(p.At()-before)*align)
		}
	}
	return most, p.Err()
}
