// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/promweave/promweave/conformance/corpus"
)

// aggregatesEncoding is the encoding byte of chunks that hold aggregates.
const aggregatesEncoding = chunkenc.Encoding(0xff)

// chunkWindows is how many windows a chunk holds at most.
const chunkWindows = 120

// WriteDownsampled writes the levels of downsampled data to dir, as blocks in the form of Thanos,
// for stores that read buckets: for each resolution a block of each run of windows without a gap.
// It returns their ids. Thanos knows a block by its external labels, so ext must not be empty.
func WriteDownsampled(ctx context.Context, dir string, c *corpus.Corpus, ext labels.Labels) (ids []string, err error) {
	if ext.IsEmpty() {
		return nil, errors.New("downsampled blocks need external labels")
	}
	levels := map[int64][]corpus.Level{}
	for _, l := range c.Levels {
		levels[l.Resolution] = append(levels[l.Resolution], l)
	}
	for resolution, of := range levels {
		for _, r := range runs(resolution, of) {
			if ctx.Err() != nil {
				return ids, context.Cause(ctx)
			}
			id, err := writeLevel(ctx, dir, resolution, of, r, ext)
			if err != nil {
				return ids, err
			}
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// run is a time that windows cover, half-open, ms.
type run struct{ from, to int64 }

// runs are the times that the windows of a resolution cover.
func runs(resolution int64, of []corpus.Level) (out []run) {
	var ends []int64
	for _, l := range of {
		for _, w := range l.Windows {
			ends = append(ends, w.T+1)
		}
	}
	slices.Sort(ends)
	for _, end := range slices.Compact(ends) {
		if n := len(out); n > 0 && out[n-1].to == end-resolution {
			out[n-1].to = end
			continue
		}
		out = append(out, run{end - resolution, end})
	}
	return out
}

func writeLevel(ctx context.Context, dir string, resolution int64, of []corpus.Level, r run, ext labels.Labels) (_ string, err error) {
	id, err := ulid.New(ulid.Timestamp(time.Now()), rand.Reader)
	if err != nil {
		return "", err
	}
	block := filepath.Join(dir, id.String())
	if err := os.MkdirAll(block, 0o755); err != nil {
		return "", err
	}
	cw, err := chunks.NewWriter(filepath.Join(block, "chunks"))
	if err != nil {
		return "", err
	}
	iw, err := index.NewWriter(ctx, filepath.Join(block, "index"))
	if err != nil {
		return "", errors.Join(err, cw.Close())
	}
	stats, err := fill(cw, iw, of, r)
	if err = errors.Join(err, cw.Close(), iw.Close()); err != nil {
		return "", fmt.Errorf("block %s: %w", id, err)
	}
	files, err := listed(block)
	if err != nil {
		return "", err
	}
	meta := map[string]any{
		"ulid": id.String(), "version": 1, "minTime": r.from, "maxTime": r.to, "stats": stats,
		"compaction": map[string]any{"level": 1, "sources": []string{id.String()}},
		"thanos": map[string]any{
			"labels": ext.Map(), "downsample": map[string]any{"resolution": resolution}, "source": "certify", "files": files,
		},
	}
	data, err := json.MarshalIndent(meta, "", "\t")
	if err != nil {
		return "", err
	}
	return id.String(), os.WriteFile(filepath.Join(block, "meta.json"), append(data, '\n'), 0o644)
}

// fill writes series and their chunks, and returns the stats of the block.
func fill(cw *chunks.Writer, iw *index.Writer, of []corpus.Level, r run) (map[string]any, error) {
	of = slices.Clone(of)
	slices.SortFunc(of, func(a, b corpus.Level) int { return labels.Compare(a.Labels, b.Labels) })
	symbols := map[string]bool{}
	for _, l := range of {
		l.Labels.Range(func(l labels.Label) { symbols[l.Name], symbols[l.Value] = true, true })
	}
	sorted := make([]string, 0, len(symbols))
	for s := range symbols {
		sorted = append(sorted, s)
	}
	slices.Sort(sorted)
	for _, s := range sorted {
		if err := iw.AddSymbol(s); err != nil {
			return nil, err
		}
	}
	series, samples, count := 0, 0, 0
	for _, l := range of {
		var metas []chunks.Meta
		windows := slices.DeleteFunc(slices.Clone(l.Windows), func(w corpus.Window) bool { return w.T < r.from || w.T >= r.to })
		for part := range slices.Chunk(windows, chunkWindows) {
			metas = append(metas, chunks.Meta{MinTime: part[0].T, MaxTime: part[len(part)-1].T, Chunk: aggregated(part)})
			samples += len(part)
		}
		if len(metas) == 0 {
			continue
		}
		if err := cw.WriteChunks(metas...); err != nil {
			return nil, err
		}
		if err := iw.AddSeries(storage.SeriesRef(series), l.Labels, metas...); err != nil {
			return nil, err
		}
		series, count = series+1, count+len(metas)
	}
	return map[string]any{"numSamples": samples, "numFloatSamples": samples, "numSeries": series, "numChunks": count}, nil
}

// bytesChunk is a chunk of which nothing but the bytes is asked.
type bytesChunk struct {
	chunkenc.Chunk
	data []byte
}

func (c bytesChunk) Encoding() chunkenc.Encoding { return aggregatesEncoding }
func (c bytesChunk) Bytes() []byte               { return c.data }

// aggregated is the chunk of some windows: for count, sum, min, max and counter the length of a
// chunk's data as uvarint, its encoding, and the data (Thanos, pkg/compact/downsample, AggrChunk).
func aggregated(windows []corpus.Window) chunkenc.Chunk {
	var data []byte
	last := windows[len(windows)-1]
	for i, f := range []func(corpus.Window) float64{
		func(w corpus.Window) float64 { return w.Count }, func(w corpus.Window) float64 { return w.Sum }, func(w corpus.Window) float64 { return w.Min },
		func(w corpus.Window) float64 { return w.Max }, func(w corpus.Window) float64 { return w.Counter },
	} {
		c := chunkenc.NewXORChunk()
		app, err := c.Appender()
		if err != nil {
			panic(err) // of an empty chunk
		}
		for _, w := range windows {
			app.Append(w.T, f(w))
		}
		if i == 4 {
			// A chunk of counters ends in its last raw value, by which a reset between two
			// chunks is found.
			app.Append(last.T, last.Counter)
		}
		data = binary.AppendUvarint(data, uint64(len(c.Bytes())))
		data = append(append(data, byte(c.Encoding())), c.Bytes()...)
	}
	return bytesChunk{data: data}
}

// listed are the files of a block as meta.json has them.
func listed(block string) (out []map[string]any, err error) {
	for _, pattern := range []string{"chunks/*", "index"} {
		names, err := filepath.Glob(filepath.Join(block, pattern))
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			info, err := os.Stat(name)
			if err != nil {
				return nil, err
			}
			rel, err := filepath.Rel(block, name)
			if err != nil {
				return nil, err
			}
			out = append(out, map[string]any{"rel_path": filepath.ToSlash(rel), "size_bytes": info.Size()})
		}
	}
	return append(out, map[string]any{"rel_path": "meta.json"}), nil
}
