// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package tsdb

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// block is an open block. refs is guarded by the backend's mutex and counts the
// views it is in.
type block struct {
	*tsdb.Block
	dir  string
	meta tsdb.BlockMeta
	// tombstones tells versions of the tombstone file apart: Prometheus replaces
	// it in place when series are deleted.
	tombstones fileID
	refs       int
}

// badBlock is a block that cannot be read. Its bounds are all of time if its meta
// file is what cannot be read.
type badBlock struct {
	name       string
	err        error
	mint, maxt int64 // half-open, as in meta.json
}

type fileID struct {
	size int64
	mod  time.Time
}

func idOf(path string) fileID {
	st, err := os.Stat(path)
	if err != nil {
		return fileID{}
	}
	return fileID{st.Size(), st.ModTime()}
}

// found is a block directory as listed.
type found struct {
	name string
	meta tsdb.BlockMeta
	err  error
}

// listBlocks returns the blocks that are there, those superseded by others left
// out. Reading a directory is not atomic against renames: where Prometheus replaces
// blocks by one made of them, a listing may show neither. Two equal listings in a
// row cannot both have missed the new one.
func listBlocks(dir string) ([]found, error) {
	var names []string
	for try := 0; ; try++ {
		again, err := blockNames(dir)
		if err != nil {
			return nil, err
		}
		if try > 0 && slices.Equal(names, again) || try > 10 {
			break
		}
		names = again
	}
	all := make([]found, 0, len(names))
	parents := map[string]bool{}
	for _, n := range names {
		f := found{name: n}
		f.meta, f.err = readMeta(filepath.Join(dir, n))
		if f.err == nil {
			for _, p := range f.meta.Compaction.Parents {
				parents[p.ULID.String()] = true
			}
		}
		all = append(all, f)
	}
	return slices.DeleteFunc(all, func(f found) bool {
		if parents[f.name] {
			return true
		}
		// Gone since it was listed.
		return f.err != nil && !isDir(filepath.Join(dir, f.name))
	}), nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

func blockNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if _, err := ulid.ParseStrict(e.Name()); err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// readMeta reads meta.json, the format of which is in
// tsdb/docs/format of Prometheus.
func readMeta(dir string) (tsdb.BlockMeta, error) {
	var m tsdb.BlockMeta
	raw, err := os.ReadFile(filepath.Join(dir, "meta.json"))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("meta.json: %w", err)
	}
	if m.Version != 1 {
		return m, fmt.Errorf("meta.json: version %d is not known", m.Version)
	}
	return m, nil
}

// inOrderEnd is the end of the last block that does not come from out-of-order
// samples: what is older is not needed from the head.
func inOrderEnd(all []found) int64 {
	end := int64(math.MinInt64)
	for _, f := range all {
		if f.err == nil && !f.meta.Compaction.FromOutOfOrder() {
			end = max(end, f.meta.MaxTime)
		}
	}
	return end
}

// openBlocks fills in the blocks of the next view: those of the old one that are
// still there, and new ones.
func (b *Backend) openBlocks(ctx context.Context, old, next *view) ([]found, error) {
	have := map[string]*block{}
	if old != nil {
		for _, bl := range old.blocks {
			have[bl.meta.ULID.String()] = bl
		}
	}
	for try := 0; ; try++ {
		all, err := listBlocks(b.cfg.Path)
		if err != nil {
			return nil, err
		}
		fresh := map[string]*block{}
		vanished := false
		next.blocks, next.bad = nil, nil
		for _, f := range all {
			if err := ctx.Err(); err != nil {
				closeAll(maps.Values(fresh))
				return nil, context.Cause(ctx)
			}
			dir := b.blockPath(f.name)
			tomb := idOf(filepath.Join(dir, "tombstones"))
			bl := have[f.name]
			if bl == nil || bl.tombstones != tomb {
				if f.err == nil {
					var opened *tsdb.Block
					if opened, f.err = tsdb.OpenBlock(b.logger, dir, chunkenc.NewPool(), nil); f.err == nil {
						bl = &block{Block: opened, dir: dir, meta: opened.Meta(), tombstones: tomb}
						fresh[f.name] = bl
					}
				}
				if f.err != nil {
					if !isDir(dir) {
						vanished = true
						break
					}
					next.bad = append(next.bad, b.badBlock(f, old))
					continue
				}
			}
			next.blocks = append(next.blocks, bl)
		}
		if vanished && try < 10 {
			// Deleted between listing and opening; what replaces it is listed now.
			closeAll(maps.Values(fresh))
			continue
		}
		b.mu.Lock()
		for _, bl := range next.blocks {
			bl.refs++
		}
		b.mu.Unlock()
		slices.SortFunc(next.blocks, func(x, y *block) int {
			return slices.Compare([]int64{x.meta.MinTime, x.meta.MaxTime}, []int64{y.meta.MinTime, y.meta.MaxTime})
		})
		return all, nil
	}
}

func closeAll(blocks func(func(*block) bool)) {
	for bl := range blocks {
		bl.Close()
	}
}

func (b *Backend) badBlock(f found, old *view) badBlock {
	bad := badBlock{name: f.name, mint: math.MinInt64, maxt: math.MaxInt64}
	if f.meta.Version != 0 {
		bad.mint, bad.maxt = f.meta.MinTime, f.meta.MaxTime
	}
	bad.err = fmt.Errorf("block %s cannot be opened: %w; restore it from a backup, or move it out of the directory to go on without its data",
		b.blockPath(f.name), f.err)
	if old == nil || !slices.ContainsFunc(old.bad, func(o badBlock) bool { return o.name == f.name }) {
		b.logger.Error("a block cannot be opened", "err", bad.err)
	}
	return bad
}
