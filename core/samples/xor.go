// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package samples

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
)

var (
	errShort = errors.New("the data end before the last sample")
	errBits  = errors.New("a value has more than 64 bits")
)

// xorDecoder reads one chunk in the TSDB's XOR encoding: after the count, two
// bytes big-endian, the first timestamp as a varint and value as 64 bits, then the
// first difference of timestamps as an unsigned varint, then differences of that
// difference; values are XORed with the one before. Everything after the first
// value is a stream of bits, most significant first.
type xorDecoder struct {
	data []byte
	// pos is the place in the stream, in bits; it may be beyond the end, where
	// bits are 0, until that is noticed.
	pos uint
	// left and read count samples.
	left, read int
	// low and high bound the timestamps as declared.
	low, high int64
	// marker: the second and the last sample may repeat the timestamp before (see counter.go).
	marker bool

	t, delta int64
	v        uint64
	// size and trail are the number of bits in the last XOR that had its own, and
	// the zero bits behind them.
	size, trail uint
}

// reset starts a chunk.
func (d *xorDecoder) reset(data []byte, low, high int64, marker bool) error {
	*d = xorDecoder{}
	if len(data) < 2 {
		return errShort
	}
	d.data, d.pos, d.size = data, 16, 64
	d.left = int(binary.BigEndian.Uint16(data))
	d.low, d.high, d.marker = low, high, marker
	return nil
}

// fill decodes samples into ts and vs, of equal length, until these are full, the
// chunk ends, or a sample is later than to, which ends the chunk. Samples before
// from are left out. It returns how many it stored, also beside an error.
func (d *xorDecoder) fill(ts []int64, vs []float64, from, to int64) (int, error) {
	n := 0
	for d.read < 2 && d.left > 0 && n < len(ts) {
		if err := d.head(); err != nil {
			d.left = 0
			return n, err
		}
		if d.t > to {
			d.left = 0
			break
		}
		if d.t >= from {
			ts[n], vs[n] = d.t, math.Float64frombits(d.v)
			n++
		}
	}
	if d.left == 0 || n == len(ts) {
		return n, nil
	}
	// The state lives in locals: the compiler keeps these in registers.
	var (
		data        = d.data
		end         = uint(len(data)) * 8
		pos, left   = d.pos, d.left
		t, delta, v = d.t, d.delta, d.v
		size, trail = d.size, d.trail
		err         error
	)
	vs = vs[:len(ts)]
	for left > 0 && n < len(ts) {
		w := load(data, pos)
		if w>>63 == 0 {
			w <<= 1
			pos++
		} else {
			var sz uint
			switch ones := uint(bits.LeadingZeros64(^w)); ones {
			case 1:
				sz = 14
			case 2:
				sz = 17
			case 3:
				sz = 20
			default:
				delta += int64(load64(data, pos+4))
				pos += 68
			}
			if sz != 0 {
				prefix := (sz-14)/3 + 2
				dod := int64(w << prefix >> (64 - sz))
				if dod > 1<<(sz-1) {
					dod -= 1 << sz
				}
				delta += dod
				pos += prefix + sz
			}
			w = load(data, pos)
		}
		// At least 56 bits of w are real.
		if w>>63 == 0 {
			pos++
		} else {
			if w>>62&1 == 0 {
				w <<= 2
				pos += 2
			} else {
				lead := uint(w << 2 >> 59)
				if size = uint(w << 7 >> 58); size == 0 {
					size = 64
				}
				if lead+size > 64 {
					err = errBits
					break
				}
				trail = 64 - lead - size
				w <<= 13
				pos += 13
			}
			if size <= 43 {
				v ^= w >> (64 - size) << trail
			} else {
				v ^= load64(data, pos) >> (64 - size) << trail
			}
			pos += size
		}
		if pos > end {
			err = errShort
			break
		}
		next := t + delta
		if next <= t && !(d.marker && next == t && left == 1) {
			err = fmt.Errorf("time %d follows %d", next, t)
			break
		}
		if next > d.high || next < d.low {
			err = d.outside(next)
			break
		}
		t = next
		left--
		if t < from {
			continue
		}
		if t > to {
			left = 0
			break
		}
		ts[n], vs[n] = t, math.Float64frombits(v)
		n++
	}
	if err != nil {
		left = 0
	}
	d.pos, d.left, d.t, d.delta, d.v, d.size, d.trail = pos, left, t, delta, v, size, trail
	return n, err
}

// head decodes the first or second sample.
func (d *xorDecoder) head() error {
	if d.read == 0 {
		t, n := binary.Varint(d.data[2:])
		if n <= 0 || len(d.data) < 2+n+8 {
			return errShort
		}
		d.t, d.v = t, binary.BigEndian.Uint64(d.data[2+n:])
		d.pos = uint(2+n+8) * 8
		if !d.marker && t < d.low || t > d.high {
			return d.outside(t)
		}
		// The first sample of a counter aggregate is a real one from before the end
		// of the first window, which is what its chunk declares as the start.
		d.low = t
		d.read, d.left = 1, d.left-1
		return nil
	}
	u, n := binary.Uvarint(d.data[d.pos/8:])
	if n <= 0 {
		return errShort
	}
	d.delta = int64(u)
	d.pos += uint(n) * 8
	next := d.t + d.delta
	// The first window of a counter ends with its first sample if that is all it has, or
	// comes in its last millisecond.
	if next < d.t || next == d.t && !d.marker {
		return fmt.Errorf("time %d follows %d", next, d.t)
	}
	if next > d.high {
		return d.outside(next)
	}
	if err := d.value(); err != nil {
		return err
	}
	d.t = next
	d.read, d.left = 2, d.left-1
	return nil
}

// value decodes one value, outside of the hot loop.
func (d *xorDecoder) value() error {
	w := load(d.data, d.pos)
	d.pos++
	if w>>63 == 1 {
		d.pos++
		if w>>62&1 == 1 {
			lead := uint(w << 2 >> 59)
			if d.size = uint(w << 7 >> 58); d.size == 0 {
				d.size = 64
			}
			if lead+d.size > 64 {
				return errBits
			}
			d.trail = 64 - lead - d.size
			d.pos += 11
		}
		d.v ^= load64(d.data, d.pos) >> (64 - d.size) << d.trail
		d.pos += d.size
	}
	if d.pos > uint(len(d.data))*8 {
		return errShort
	}
	return nil
}

func (d *xorDecoder) outside(t int64) error { return outside(t, d.low, d.high) }

func outside(t, low, high int64) error {
	return fmt.Errorf("time %d lies outside of the declared %d to %d", t, low, high)
}

// load returns the bits from pos on, at least 57 of them, at the high end.
func load(data []byte, pos uint) uint64 {
	if off := pos >> 3; off+8 <= uint(len(data)) {
		return binary.BigEndian.Uint64(data[off:]) << (pos & 7)
	}
	return loadTail(data, pos)
}

// loadTail is load near the end of the data, behind which it finds zeros.
func loadTail(data []byte, pos uint) uint64 {
	var b [8]byte
	if off := pos >> 3; off < uint(len(data)) {
		copy(b[:], data[off:])
	}
	return binary.BigEndian.Uint64(b[:]) << (pos & 7)
}

// load64 returns the 64 bits from pos on.
func load64(data []byte, pos uint) uint64 {
	return load(data, pos)&^0xffffffff | load(data, pos+32)>>32
}
