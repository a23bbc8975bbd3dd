// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package samples

import (
	"errors"
	"fmt"
	"math"
	"math/bits"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// maxBuckets is more than a histogram can have at the finest schema, whose
// buckets cover the range of a float in 2^19 steps for each sign.
const maxBuckets = 1 << 20

// CheckHistograms looks over the start of a chunk of histograms that nobody vouches for, before
// the library decodes it: an error says that it promises more buckets than it has bytes for.
func CheckHistograms(enc chunkenc.Encoding, data []byte) error { return checkLayout(enc, data) }

// checkLayout looks over the start of a histogram chunk. The library believes the
// bucket counts there, and would allocate for four thousand million buckets that
// a few bytes promise; and it panics later on spans that overlap.
func checkLayout(enc chunkenc.Encoding, data []byte) error {
	if len(data) < 3 {
		return errShort
	}
	if data[0] == 0 && data[1] == 0 {
		return nil
	}
	r := bitReader{data: data, pos: 24}
	if r.read(8) == 255 {
		r.read(64)
	}
	schema := int32(r.varbitInt())
	if !histogram.IsKnownSchema(schema) {
		return histogram.UnknownSchemaError(schema)
	}
	buckets := uint64(0)
	for range 2 {
		n, err := r.spans()
		if err != nil {
			return err
		}
		buckets += n
	}
	if histogram.IsCustomBucketsSchema(schema) {
		// Each bound takes a bit at least, so a false count runs into the end.
		for n := r.varbit(); n > 0; n-- {
			if r.varbit() == 0 {
				r.read(64)
			}
			if r.over() {
				return errShort
			}
		}
	}
	if r.over() {
		return errShort
	}
	least := uint64(1)
	if enc == chunkenc.EncFloatHistogram {
		least = 64
	}
	if buckets > maxBuckets || buckets*least > uint64(len(data))*8-uint64(r.pos) {
		return fmt.Errorf("%d buckets are more than fit into %d bytes", buckets, len(data))
	}
	return nil
}

// bitReader reads a stream of bits, zeros behind its end.
type bitReader struct {
	data []byte
	pos  uint
}

func (r *bitReader) over() bool { return r.pos > uint(len(r.data))*8 }

// read returns the next n bits, 1 to 64.
func (r *bitReader) read(n uint) uint64 {
	v := load64(r.data, r.pos) >> (64 - n)
	r.pos += n
	return v
}

// varbitSizes are the bits of a number behind 0 to 8 ones (the 0 ends them, but
// for the last) in the TSDB's varbit encoding.
var varbitSizes = [9]uint{0, 3, 6, 9, 12, 18, 25, 56, 64}

func (r *bitReader) sized() (uint64, uint) {
	ones := min(uint(bits.LeadingZeros64(^load(r.data, r.pos))), 8)
	r.pos += min(ones+1, 8)
	if ones == 0 {
		return 0, 0
	}
	return r.read(varbitSizes[ones]), varbitSizes[ones]
}

func (r *bitReader) varbit() uint64 {
	v, _ := r.sized()
	return v
}

func (r *bitReader) varbitInt() int64 {
	v, n := r.sized()
	if n > 0 && n < 64 && v > 1<<(n-1) {
		v -= 1 << n
	}
	return int64(v)
}

// spans reads one list of spans and returns its number of buckets.
func (r *bitReader) spans() (uint64, error) {
	var (
		buckets uint64
		index   int64
	)
	n := r.varbit()
	for i := range n {
		length := r.varbit()
		offset := r.varbitInt()
		if r.over() {
			return 0, errShort
		}
		if length > maxBuckets || offset != int64(int32(offset)) {
			return 0, fmt.Errorf("a span of %d buckets at %d", length, offset)
		}
		if i > 0 && offset < 0 {
			return 0, errors.New("spans overlap")
		}
		buckets += length
		if index += offset + int64(length); buckets > maxBuckets || index > math.MaxInt32 {
			return 0, errors.New("spans reach too far")
		}
	}
	return buckets, nil
}
