// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package aggregate is the codec of aggregate chunks: the chunks of downsampled blocks, which
// hold up to five chunks of one series and time, for count, sum, min, max and counter. The
// format is that of Thanos (pkg/compact/downsample, AggrChunk).
//
// In a segment file such a chunk has the encoding byte 0xff. Its data are five entries in the
// order above, each the length of a chunk's data as uvarint, then, if that is not 0, the
// chunk's encoding byte, which the length does not count, and its data. Length 0 says that
// the series has no such aggregate.
package aggregate

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
)

// Encoding is the encoding byte of aggregate chunks.
const Encoding = chunkenc.Encoding(0xff)

// ErrCorrupt is wrapped by the errors of Parse.
var ErrCorrupt = errors.New("aggregate chunk is corrupt")

// names of the entries, in their order.
var names = [...]string{"count", "sum", "min", "max", "counter"}

func entries(a *backend.AggregateChunks) [len(names)]*backend.Encoded {
	return [...]*backend.Encoded{&a.Count, &a.Sum, &a.Min, &a.Max, &a.Counter}
}

// Append appends the data of the chunk that holds a, without encoding byte and checksum. An
// aggregate without data counts as absent; encodings are the caller's business.
func Append(dst []byte, a *backend.AggregateChunks) []byte {
	for _, e := range entries(a) {
		if !e.Present() || len(e.Data) == 0 {
			dst = append(dst, 0)
			continue
		}
		dst = binary.AppendUvarint(dst, uint64(len(e.Data)))
		dst = append(dst, byte(e.Encoding))
		dst = append(dst, e.Data...)
	}
	return dst
}

// Parse takes the data of an aggregate chunk apart; what it returns are slices of data. The
// samples are not looked at. An error wraps ErrCorrupt: data that end early or late, and
// aggregates in encodings other than XOR, histogram and float histogram, or too short to be any.
func Parse(data []byte) (*backend.AggregateChunks, error) {
	var a backend.AggregateChunks
	rest := data
	for i, e := range entries(&a) {
		size, n := binary.Uvarint(rest)
		if n == 0 {
			return nil, fmt.Errorf("%w: it ends before %s", ErrCorrupt, names[i])
		}
		if n < 0 {
			return nil, fmt.Errorf("%w: the length of %s overflows", ErrCorrupt, names[i])
		}
		if rest = rest[n:]; size == 0 {
			continue
		}
		// The encoding byte comes on top of size.
		if uint64(len(rest)) <= size {
			return nil, fmt.Errorf("%w: %s has %d bytes, of which %d are there", ErrCorrupt, names[i], size, max(len(rest)-1, 0))
		}
		e.Encoding = chunkenc.Encoding(rest[0])
		if !chunkenc.IsValidEncoding(e.Encoding) {
			return nil, fmt.Errorf("%w: %s has encoding %d", ErrCorrupt, names[i], rest[0])
		}
		// The library reads the header of a chunk without looking.
		if header := headerSize(e.Encoding); size < header {
			return nil, fmt.Errorf("%w: %s has %d bytes, fewer than the %d of a header", ErrCorrupt, names[i], size, header)
		}
		// No append to one entry may write into the next.
		e.Data, rest = rest[1:1+size:1+size], rest[1+size:]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes are left over", ErrCorrupt, len(rest))
	}
	return &a, nil
}

// headerSize is what each chunk begins with: the number of samples in two bytes, and of
// histograms one of flags.
func headerSize(e chunkenc.Encoding) uint64 {
	if e == chunkenc.EncXOR {
		return 2
	}
	return 3
}

// Points is the number of points of an aggregate, as its first two bytes say: 0 if it is absent.
func Points(e backend.Encoded) int {
	if len(e.Data) < 2 {
		return 0
	}
	return int(binary.BigEndian.Uint16(e.Data))
}
