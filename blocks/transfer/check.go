// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tombstones"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/meta"
)

// ErrUnfit is wrapped by errors about blocks that must not enter a bucket.
var ErrUnfit = errors.New("block is not fit for a bucket")

func unfit(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnfit}, args...)...)
}

// check says why a block must not enter a bucket: it lacks external labels or files, or Thanos'
// programs could not read it. Newer versions of the TSDB have encodings, and a version of the
// index, that those do not know.
func check(ctx context.Context, dir string, m *meta.Meta, files []meta.BlockFile) error {
	if len(m.Thanos.Labels) == 0 {
		return unfit("it has no external labels: without them nobody can tell whose it is")
	}
	if err := checkTombstones(dir); err != nil {
		return err
	}
	if err := checkIndex(filepath.Join(dir, meta.IndexFile)); err != nil {
		return err
	}
	var count uint64
	for _, f := range files {
		if strings.HasPrefix(f.RelPath, meta.ChunksDir+"/") {
			n, err := checkFile(ctx, filepath.Join(dir, filepath.FromSlash(f.RelPath)), f.SizeBytes, m.Resolution())
			if err != nil {
				return fmt.Errorf("%s: %w", f.RelPath, err)
			}
			count += n
		}
	}
	if count < m.Stats.NumChunks {
		return unfit("its segments have %d chunks, and %s says %d: one is missing, or broke off", count, meta.File, m.Stats.NumChunks)
	}
	return nil
}

// checkTombstones: no bucket has tombstones, so samples that were deleted would be back. The
// file that the TSDB writes when there are none is nothing to mind.
func checkTombstones(dir string) error {
	all, _, err := tombstones.ReadTombstones(dir)
	if err != nil {
		return unfit("its tombstones cannot be read: %v", err)
	}
	if n := all.Total(); n > 0 {
		return unfit("%d times are deleted in it by tombstones, which do not go into buckets: let the TSDB clean them first", n)
	}
	return all.Close()
}

func checkIndex(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var head [5]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return unfit("%s: it has no header: %v", meta.IndexFile, err)
	}
	if binary.BigEndian.Uint32(head[:]) != index.MagicIndex || head[4] != index.FormatV1 && head[4] != index.FormatV2 {
		return unfit("%s: its header is %x: want an index of version 1 or 2", meta.IndexFile, head)
	}
	return nil
}

func checkFile(ctx context.Context, file string, size, resolution int64) (uint64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return checkSegment(ctx, f, size, resolution)
}

// checkSegment looks at the head of each chunk of a segment of so many bytes, not at what is in
// it, and counts them: 8 bytes, then for each chunk its length as uvarint, its encoding, data and
// a checksum of 4 bytes.
func checkSegment(ctx context.Context, r io.ReaderAt, size, resolution int64) (count uint64, err error) {
	var head [binary.MaxVarintLen32 + 1]byte
	n, err := r.ReadAt(head[:5], 0)
	if err != nil || n < 5 || binary.BigEndian.Uint32(head[:]) != chunks.MagicChunks || head[4] != 1 {
		return 0, unfit("its header is %x: want a segment of version 1", head[:n])
	}
	if size < chunks.SegmentHeaderSize {
		return 0, unfit("it has %d bytes, fewer than a header", size)
	}
	for at := int64(chunks.SegmentHeaderSize); at < size; count++ {
		if count%1024 == 0 && ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		n, err := r.ReadAt(head[:], at)
		if err != nil && err != io.EOF {
			return 0, err
		}
		length, k := binary.Uvarint(head[:n])
		if k <= 0 || k >= n {
			return 0, unfit("the chunk at byte %d has no length", at)
		}
		switch e := chunkenc.Encoding(head[k]); {
		case e == chunkenc.EncXOR, e == chunkenc.EncHistogram, e == chunkenc.EncFloatHistogram:
		case e == aggregate.Encoding && resolution != meta.Raw:
		default:
			return 0, unfit("the chunk at byte %d has the encoding %d, which Thanos does not read", at, e)
		}
		next := at + int64(k) + 1 + int64(length) + 4
		if length > 1<<31 || next > size {
			return 0, unfit("the chunk at byte %d, of %d bytes, ends beyond the %d of the file", at, length, size)
		}
		if length < minChunk {
			return 0, unfit("the chunk at byte %d has %d bytes, too few for a count of samples", at, length)
		}
		at = next
	}
	return count, nil
}

// minChunk is the least that any chunk has, in bytes.
const minChunk = 2
