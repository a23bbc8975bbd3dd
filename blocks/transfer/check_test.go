// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/promweave/promweave/blocks/meta"
)

// FuzzSegment: whatever a segment file holds, checking it ends, reads nothing outside, and what
// is let pass consists of chunks from end to end.
func FuzzSegment(f *testing.F) {
	data, err := os.ReadFile("../testdata/thanos/bucket-raw/01M7ZYC52JECNQ4F55W1Y2QEYW/chunks/000001")
	if err != nil {
		f.Fatal(err)
	}
	first, k := binary.Uvarint(data[8:])
	end := 8 + k + 1 + int(first) + 4
	f.Add(data[:end])
	f.Add(data[:end-1])
	f.Add(data[:8])
	f.Add([]byte{})
	f.Add(append(bytes.Clone(data[:8]), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := checkSegment(t.Context(), bytes.NewReader(data), int64(len(data)), meta.Raw)
		if err != nil {
			if !errors.Is(err, ErrUnfit) {
				t.Fatal(err)
			}
			return
		}
		at, count := chunks.SegmentHeaderSize, uint64(0)
		for ; at < len(data); count++ {
			length, k := binary.Uvarint(data[at:])
			at += k + 1 + int(length) + 4
		}
		if at != len(data) || count != n {
			t.Fatalf("%d chunks to byte %d of %d, and %d were counted", count, at, len(data), n)
		}
	})
}
