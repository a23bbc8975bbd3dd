// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storepb

import (
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// EncodingFromTSDB returns the number that stands for e on the wire, where XOR
// is 0 while it is 1 in the TSDB.
func EncodingFromTSDB(e chunkenc.Encoding) (Chunk_Encoding, error) {
	switch e {
	case chunkenc.EncXOR:
		return Chunk_XOR, nil
	case chunkenc.EncHistogram:
		return Chunk_HISTOGRAM, nil
	case chunkenc.EncFloatHistogram:
		return Chunk_FLOAT_HISTOGRAM, nil
	}
	return 0, fmt.Errorf("chunk encoding %d of the TSDB has no number on the wire", e)
}

// EncodingToTSDB is the inverse of [EncodingFromTSDB].
func EncodingToTSDB(e Chunk_Encoding) (chunkenc.Encoding, error) {
	switch e {
	case Chunk_XOR:
		return chunkenc.EncXOR, nil
	case Chunk_HISTOGRAM:
		return chunkenc.EncHistogram, nil
	case Chunk_FLOAT_HISTOGRAM:
		return chunkenc.EncFloatHistogram, nil
	}
	return chunkenc.EncNone, fmt.Errorf("unknown chunk encoding %d", e)
}

// ChunkFromTSDB returns c for sending, with its hash. The data is not copied.
func ChunkFromTSDB(c chunkenc.Chunk) (*Chunk, error) {
	enc, err := EncodingFromTSDB(c.Encoding())
	if err != nil {
		return nil, err
	}
	data := c.Bytes()
	return &Chunk{Type: enc, Data: data, Hash: Hash(data)}, nil
}

// ChunkToTSDB returns c for reading. The data is not copied and must not be
// appended to.
func ChunkToTSDB(c *Chunk) (chunkenc.Chunk, error) {
	enc, err := EncodingToTSDB(c.GetType())
	if err != nil {
		return nil, err
	}
	// The iterators of the TSDB panic on data shorter than the chunk header,
	// and what a peer sends must not do that.
	header := 2
	if enc != chunkenc.EncXOR {
		header = 3
	}
	if len(c.GetData()) < header {
		return nil, fmt.Errorf("chunk with encoding %s has only %d bytes", enc, len(c.GetData()))
	}
	return chunkenc.FromData(enc, c.GetData())
}

// Hash returns the value of the hash field for a chunk with this data.
func Hash(data []byte) uint64 { return xxhash.Sum64(data) }

// HashOf returns the hash of c, computing it if the sender did not.
func HashOf(c *Chunk) uint64 {
	if h := c.GetHash(); h != 0 {
		return h
	}
	return Hash(c.GetData())
}
