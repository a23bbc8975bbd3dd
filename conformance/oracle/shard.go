// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"math/bits"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
)

// InShard says whether a series with these final labels is in a shard. It is written
// down here a second time, with a hash of its own, so that a fault of package shaping
// is not its own witness.
func InShard(shard *backend.Shard, ls labels.Labels) bool {
	if shard == nil || shard.Total < 1 {
		return true
	}
	var b []byte
	ls.Range(func(l labels.Label) {
		if slices.Contains(shard.Labels, l.Name) == shard.By {
			b = append(append(append(append(b, l.Name...), 0xFF), l.Value...), 0xFF)
		}
	})
	return xxh64(b)%uint64(shard.Total) == uint64(shard.Index)
}

// The constants of XXH64 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
const (
	prime1 uint64 = 0x9E3779B185EBCA87
	prime2 uint64 = 0xC2B2AE3D27D4EB4F
	prime3 uint64 = 0x165667B19E3779F9
	prime4 uint64 = 0x85EBCA77C2B2AE63
	prime5 uint64 = 0x27D4EB2F165667C5
)

// xxh64 is XXH64 with seed 0, after its specification.
func xxh64(b []byte) uint64 {
	word := func(n int) (w uint64) {
		for i := range n {
			w |= uint64(b[i]) << (8 * i)
		}
		return w
	}
	round := func(acc, lane uint64) uint64 { return bits.RotateLeft64(acc+lane*prime2, 31) * prime1 }
	length, acc := uint64(len(b)), prime5
	if len(b) >= 32 {
		// Sums run over 64 bits, which constants may not.
		p1, p2 := prime1, prime2
		lanes := [4]uint64{p1 + p2, p2, 0, -p1}
		for len(b) >= 32 {
			for i := range lanes {
				lanes[i] = round(lanes[i], word(8))
				b = b[8:]
			}
		}
		acc = bits.RotateLeft64(lanes[0], 1) + bits.RotateLeft64(lanes[1], 7) + bits.RotateLeft64(lanes[2], 12) + bits.RotateLeft64(lanes[3], 18)
		for _, l := range lanes {
			acc = (acc^round(0, l))*prime1 + prime4
		}
	}
	acc += length
	for ; len(b) >= 8; b = b[8:] {
		acc = bits.RotateLeft64(acc^round(0, word(8)), 27)*prime1 + prime4
	}
	if len(b) >= 4 {
		acc = bits.RotateLeft64(acc^word(4)*prime1, 23)*prime2 + prime3
		b = b[4:]
	}
	for _, c := range b {
		acc = bits.RotateLeft64(acc^uint64(c)*prime5, 11) * prime1
	}
	acc = (acc ^ acc>>33) * prime2
	acc = (acc ^ acc>>29) * prime3
	return acc ^ acc>>32
}
