// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package samples turns the chunks of one series, from one replica, into samples.
//
// Chunks come from the network and from other people's stores, so they are
// decoded with suspicion: a broken chunk costs its own broken rest and nothing
// else, never a panic, endless work or memory out of proportion.
//
// Float chunks are decoded here, a run of samples at a time, because going
// through the library's iterator costs a dynamic call per sample and check; the
// format is the XOR encoding of the Prometheus TSDB (tsdb/docs/format/chunks.md).
// Histogram chunks are left to the library once their layout was looked over.
package samples

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/promweave/promweave/sdk/backend"
)

// Chunk is a chunk and where it came from.
type Chunk struct {
	backend.Chunk
	// Origin is the index in the query of the backend that sent it.
	Origin int32
}

// Options say which samples are wanted of the chunks.
type Options struct {
	// MinTime and MaxTime cut the samples, both inclusive, in ms.
	MinTime, MaxTime int64
	// Func is the innermost function or aggregation around the selector. It decides
	// which aggregate of a downsampled chunk is read.
	Func string
	// Counts has how many samples there were as values, in place of theirs: of a window the count,
	// of a raw sample, be it a float or a histogram, 1. Stale markers stay what they are.
	Counts bool
	// OnCorrupt is called once for each chunk found to be broken; what was read
	// before the broken place counts, the rest of the chunk is left out. If it is
	// nil the samples end there, and Err tells. It is called by whoever iterates.
	OnCorrupt func(origin int32, err error)
}

// Sort brings chunks into the order in which NewIterator wants them: by MinTime,
// MaxTime, encoding and payload, so that it depends on nothing but the data. Of
// exact duplicates only the one with the least Origin stays. It works in place and
// returns the shortened slice.
func Sort(chunks []Chunk) []Chunk {
	sorted := true
	for i := 1; i < len(chunks); i++ {
		a, b := &chunks[i-1], &chunks[i]
		// The usual case, one backend and no overlap, must not touch payloads.
		if a.MinTime < b.MinTime || a.MinTime == b.MinTime && a.MaxTime < b.MaxTime {
			continue
		}
		sorted = false
		break
	}
	if sorted {
		return chunks
	}
	slices.SortFunc(chunks, func(a, b Chunk) int {
		return cmp.Or(Compare(&a.Chunk, &b.Chunk), cmp.Compare(a.Origin, b.Origin))
	})
	return slices.CompactFunc(chunks, func(a, b Chunk) bool { return Compare(&a.Chunk, &b.Chunk) == 0 })
}

// Compare orders chunks by MinTime, MaxTime, encoding and payload; 0 means that they
// are the same to the bit.
func Compare(a, b *backend.Chunk) int {
	if c := cmp.Or(cmp.Compare(a.MinTime, b.MinTime), cmp.Compare(a.MaxTime, b.MaxTime)); c != 0 {
		return c
	}
	if c := compareEncoded(&a.Raw, &b.Raw); c != 0 {
		return c
	}
	switch x, y := a.Aggregates, b.Aggregates; {
	case x == y:
		return 0
	case x == nil:
		return -1
	case y == nil:
		return 1
	default:
		return cmp.Or(
			compareEncoded(&x.Count, &y.Count), compareEncoded(&x.Sum, &y.Sum),
			compareEncoded(&x.Min, &y.Min), compareEncoded(&x.Max, &y.Max),
			compareEncoded(&x.Counter, &y.Counter))
	}
}

func compareEncoded(a, b *backend.Encoded) int {
	if c := cmp.Compare(a.Encoding, b.Encoding); c != 0 {
		return c
	}
	return bytes.Compare(a.Data, b.Data)
}

// Count is the number of samples that a chunk claims to hold, without decoding
// it. Of a downsampled chunk it is that of the largest aggregate.
func Count(c backend.Chunk) int {
	n := claimed(&c.Raw)
	if a := c.Aggregates; a != nil {
		n = max(n, claimed(&a.Count), claimed(&a.Sum), claimed(&a.Min), claimed(&a.Max), claimed(&a.Counter))
	}
	return n
}

// CountSamples is the sum of Count over chunks: an upper estimate of what an
// iterator over them gives, for limits.
func CountSamples(chunks []Chunk) int {
	n := 0
	for i := range chunks {
		n += Count(chunks[i].Chunk)
	}
	return n
}

// claimed reads the count that every encoding starts with.
func claimed(e *backend.Encoded) int {
	if !e.Present() || len(e.Data) < 2 {
		return 0
	}
	return int(binary.BigEndian.Uint16(e.Data))
}
