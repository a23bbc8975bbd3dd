// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/promweave/promweave/backends/bucket/internal/block"
)

// FuzzBlock: whatever a bit of a block is changed to, and wherever, the answer is an error or the
// right one; where the checksum of what was changed is right again, it is no panic, and takes no
// memory that the block does not have.
func FuzzBlock(f *testing.F) {
	const bucket = "bucket-downsampled-extra"
	bkt, err := filesystem.NewBucket(thanos + bucket)
	if err != nil {
		f.Fatal(err)
	}
	entries, err := os.ReadDir(thanos + bucket)
	if err != nil {
		f.Fatal(err)
	}
	dir := filepath.Join(thanos+bucket, entries[len(entries)-1].Name())
	m := load(f, dir)
	h := open(f, bkt, m)
	ms := []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".*")}
	want, err := ours(f, block.NewReader(bkt, m), h, &block.Usage{}, math.MinInt64, math.MaxInt64, ms...)
	if err != nil {
		f.Fatal(err)
	}
	files := [2][]byte{}
	names := [2]string{"index", "chunks/000001"}
	for i, name := range names {
		if files[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			f.Fatal(err)
		}
	}
	toc := files[0][len(files[0])-52:]
	series := uint32(binary.BigEndian.Uint64(toc[8:]))
	f.Add(false, uint32(8), []byte{0xff, 0xff, 0xff, 0xff, 0x06}, false) // the length of a chunk
	f.Add(true, series, []byte{0xff, 0xff, 0xff, 0xff, 0x06}, false)     // that of a series
	f.Add(true, series+2, []byte{0xff, 0xff, 0xff, 0xff, 0x06, 1}, true) // how many labels it has
	f.Add(true, uint32(binary.BigEndian.Uint64(toc[32:])), []byte{0, 0xff, 0xff, 0xff}, true)
	f.Add(false, uint32(11), []byte{3, 1, 0, 1}, true)
	f.Fuzz(func(t *testing.T, inIndex bool, at uint32, with []byte, repair bool) {
		i := 1
		if inIndex {
			i = 0
		}
		data := slices.Clone(files[i])
		at %= uint32(len(data))
		copy(data[at:], with)
		if repair && int(at) < len(data)-1 {
			// The entry that begins up to 16 bytes before, if it has a length that can be, gets the checksum
			// of what it is now.
			start := int(at) &^ 15
			if n, k := binary.Uvarint(data[start:]); k > 0 && n < uint64(len(data)) && start+k+int(n)+4 <= len(data) {
				binary.BigEndian.PutUint32(data[start+k+int(n):], crc32.Checksum(data[start+k:start+k+int(n)], crc32.MakeTable(crc32.Castagnoli)))
			}
		}
		s := &spoiled{Bucket: bkt, name: m.ULID.String() + "/" + names[i], data: data}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := ours(t, block.NewReader(s, m), h, &block.Usage{}, math.MinInt64, math.MaxInt64, ms...)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
			t.Errorf("%d bytes were allocated for a block of %d", n, len(files[0])+len(files[1]))
		}
		switch {
		case err != nil && !errors.Is(err, block.ErrBroken):
			t.Error(err)
		case err == nil && !repair && !slices.Equal(got, want):
			t.Error("another answer and no error")
		}
	})
}
