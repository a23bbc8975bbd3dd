// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package compact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/verify"
	"github.com/promweave/promweave/core/dedup"
)

// Input is a block that is there as a directory, with its meta.json.
type Input struct {
	Meta *meta.Meta
	Dir  string
	// Replica are the values of its replica labels, in the order of their names as configured; they are not
	// among the labels of Meta.
	Replica []string
}

// Options of Merge.
type Options struct {
	// Vertical allows blocks that overlap in time, or have sources in common: samples at
	// the same time are kept once. It cannot be undone.
	Vertical bool
	// Dedup chooses among the samples of inputs that overlap and are of different replicas; "" keeps
	// all of them, those at the same time once.
	Dedup  dedup.Algorithm
	Logger *slog.Logger
}

// The errors that no other attempt will mend: somebody has to look at the blocks. They are
// wrapped, as verify.ErrBroken is.
var (
	// ErrOverlap: blocks overlap in time, which has to be allowed.
	ErrOverlap = errors.New("blocks overlap in time")
	// ErrSharedSources: two blocks were made of the same one, so that one of them is left over.
	ErrSharedSources = errors.New("blocks have sources in common")
	// ErrDownsampledOverlap: aggregates of the same windows cannot be added up.
	ErrDownsampledOverlap = errors.New("downsampled blocks overlap in time")
)

// Merge makes one block of several of a group, in a new directory out/<ULID>, and returns its
// meta, nil if there was not one sample in them. The inputs are checked before and the result
// afterwards: an error that wraps verify.ErrBroken names the block. Nothing is left in out
// after an error.
//
// Inputs are only read. The work is that of the TSDB's own compactor, which holds the symbols of all inputs and one
// series in memory.
func Merge(ctx context.Context, inputs []Input, out string, o Options) (_ *meta.Meta, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := fit(inputs, o.Vertical); err != nil {
		return nil, err
	}
	// The compactor writes to the meta.json of blocks that it fails with.
	shadows, err := os.MkdirTemp(out, shadowPrefix)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(shadows)) }()
	var dirs []string
	for _, in := range inputs {
		f, err := verify.Block(ctx, in.Dir, in.Meta, verify.Options{})
		if err == nil {
			err = f.Err(in.Meta)
		}
		if err != nil {
			return nil, err
		}
		dir, err := shadow(in, shadows)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	merge := storage.NewCompactingChunkSeriesMerger(storage.ChainedSeriesMerge)
	if inputs[0].Meta.Resolution() != meta.Raw {
		merge = storage.NewConcatenatingChunkSeriesMerger() // they do not overlap
	}
	// The one range is not looked at: what is to be merged was planned before.
	c, err := tsdb.NewLeveledCompactorWithOptions(ctx, nil, o.Logger, []int64{math.MaxInt64}, aggregate.NewPool(), tsdb.LeveledCompactorOptions{
		MergeFunc: merge, EnableOverlappingCompaction: o.Vertical,
	})
	if err != nil {
		return nil, err
	}
	var ids []ulid.ULID
	if o.Dedup != "" && replicasOverlap(inputs) {
		ids, err = c.CompactWithBlockPopulator(out, dirs, nil, &replicas{of: ranks(inputs), algorithm: o.Dedup})
	} else {
		ids, err = c.Compact(out, dirs, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("compact %s: %w", names(inputs), err)
	}
	if len(ids) == 0 {
		return nil, nil
	}
	dir := filepath.Join(out, ids[0].String())
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	return finish(ctx, inputs, dir, ids[0])
}

// shadowPrefix is that of directories which Merge makes in out and removes again.
const shadowPrefix = "inputs-"

// shadow is a directory that is the block in, but for its meta.json.
func shadow(in Input, parent string) (string, error) {
	dir := filepath.Join(parent, in.Meta.ULID.String())
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	from, err := filepath.Abs(in.Dir)
	if err != nil {
		return "", err
	}
	for _, name := range []string{meta.IndexFile, meta.ChunksDir} {
		if err := os.Symlink(filepath.Join(from, name), filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	data, err := json.Marshal(&in.Meta.BlockMeta)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, meta.File), data, 0o644)
}

func names(inputs []Input) string {
	s := ""
	for i, in := range inputs {
		if i > 0 {
			s += ", "
		}
		s += in.Meta.ULID.String()
	}
	return s
}

// fit says why blocks must not be merged.
func fit(inputs []Input, vertical bool) error {
	if len(inputs) == 0 {
		return errors.New("there are no blocks to compact")
	}
	sources := map[ulid.ULID]ulid.ULID{}
	for i, in := range inputs {
		m := in.Meta
		if m.Stream() != inputs[0].Meta.Stream() {
			return fmt.Errorf("blocks %s and %s are of two streams, %s and %s", inputs[0].Meta.ULID, m.ULID, inputs[0].Meta.Stream(), m.Stream())
		}
		for _, s := range m.Compaction.Sources {
			if other, ok := sources[s]; ok && !vertical {
				return fmt.Errorf("%w: %s and %s were both made of %s", ErrSharedSources, other, m.ULID, s)
			}
			sources[s] = m.ULID
		}
		for _, other := range inputs[:i] {
			if m.MinTime >= other.Meta.MaxTime || other.Meta.MinTime >= m.MaxTime {
				continue
			}
			if m.Resolution() != meta.Raw {
				return fmt.Errorf("%w: %s and %s", ErrDownsampledOverlap, other.Meta.ULID, m.ULID)
			}
			if !vertical {
				return fmt.Errorf("%w: %s and %s", ErrOverlap, other.Meta.ULID, m.ULID)
			}
		}
	}
	return nil
}

// finish checks the new block and says in its meta.json what belongs to a bucket.
func finish(ctx context.Context, inputs []Input, dir string, id ulid.ULID) (*meta.Meta, error) {
	// The compactor leaves one, which is empty; nobody in a bucket reads it.
	if err := os.Remove(filepath.Join(dir, "tombstones")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, meta.File))
	if err != nil {
		return nil, err
	}
	m, err := meta.Parse(id, data)
	if err != nil {
		return nil, err
	}
	first := inputs[0].Meta
	m.Thanos = meta.Thanos{Version: first.Thanos.Version, Labels: first.Thanos.Labels, Downsample: first.Thanos.Downsample, Source: meta.SourceCompactor}
	if m.Thanos.Extensions, err = extensions(inputs); err != nil {
		return nil, err
	}
	f, err := verify.Block(ctx, dir, m, verify.Options{})
	if err == nil {
		err = f.Err(m)
	}
	if err != nil {
		return nil, err
	}
	m.Thanos.IndexStats = f.IndexStats
	segments, err := os.ReadDir(filepath.Join(dir, meta.ChunksDir))
	if err != nil {
		return nil, err
	}
	files := []string{meta.IndexFile}
	for _, s := range segments {
		m.Thanos.SegmentFiles = append(m.Thanos.SegmentFiles, s.Name())
		files = append(files, path.Join(meta.ChunksDir, s.Name()))
	}
	slices.Sort(files)
	for _, name := range files {
		info, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		m.Thanos.Files = append(m.Thanos.Files, meta.BlockFile{RelPath: name, SizeBytes: info.Size()})
	}
	m.Thanos.Files = append(m.Thanos.Files, meta.BlockFile{RelPath: meta.File})
	m.Thanos.UploadTime = time.Time{}
	if data, err = m.Encode(); err != nil {
		return nil, err
	}
	return m, os.WriteFile(filepath.Join(dir, meta.File), data, 0o644)
}

// extensions are those that every block has that has any, as the first has them.
func extensions(inputs []Input) (json.RawMessage, error) {
	var kept map[string]json.RawMessage
	for _, in := range inputs {
		var x map[string]json.RawMessage
		if e := in.Meta.Thanos.Extensions; len(e) > 0 {
			if err := json.Unmarshal(e, &x); err != nil {
				return nil, fmt.Errorf("block %s: extensions in meta.json: %w", in.Meta.ULID, err)
			}
		}
		switch {
		case len(x) == 0:
		case kept == nil:
			kept = x
		default:
			for key := range kept {
				if _, ok := x[key]; !ok {
					delete(kept, key)
				}
			}
		}
	}
	if len(kept) == 0 {
		return nil, nil
	}
	return json.Marshal(kept)
}
