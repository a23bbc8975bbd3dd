// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package aggregate

import (
	"errors"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// Chunk is the data of an aggregate chunk as a chunk of the TSDB library, so that its readers
// and writers of segment files carry it. It has no samples of its own: Parse the Bytes.
type Chunk []byte

var _ chunkenc.Chunk = Chunk(nil)

// Bytes are the data, not a copy.
func (c Chunk) Bytes() []byte { return c }

// Encoding is that of aggregate chunks.
func (Chunk) Encoding() chunkenc.Encoding { return Encoding }

// NumSamples is the number of points of the count, which all aggregates but the counter have
// as well; 0 if the data are corrupt.
func (c Chunk) NumSamples() int {
	a, err := Parse(c)
	if err != nil {
		return 0
	}
	return Points(a.Count)
}

var errOpaque = errors.New("an aggregate chunk has to be parsed to get at its samples")

// Appender is an error.
func (Chunk) Appender() (chunkenc.Appender, error) { return nil, errOpaque }

// Iterator is empty: a caller that takes an aggregate chunk for samples is wrong.
func (Chunk) Iterator(chunkenc.Iterator) chunkenc.Iterator { return chunkenc.NewNopIterator() }

// Compact does nothing.
func (Chunk) Compact() {}

// Reset is never called: it is for pools that take chunks back.
func (Chunk) Reset([]byte) {}

type pool struct{ chunkenc.Pool }

// NewPool is the pool of the TSDB library that knows aggregate chunks, too, as Chunk.
func NewPool() chunkenc.Pool { return pool{chunkenc.NewPool()} }

func (p pool) Get(e chunkenc.Encoding, b []byte) (chunkenc.Chunk, error) {
	if e == Encoding {
		return Chunk(b), nil
	}
	return p.Pool.Get(e, b)
}

func (p pool) Put(c chunkenc.Chunk) error {
	if _, ok := c.(Chunk); ok {
		return nil
	}
	return p.Pool.Put(c)
}
