// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package dedup

import (
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// chain gives every distinct timestamp once, on a tie the sample of the first
// replica that has it.
type chain struct {
	its []chunkenc.Iterator
	// ts and vts are where each replica stands; ValNone has ended.
	ts  []int64
	vts []chunkenc.ValueType

	began bool
	// cur is the replica of the current sample, -1 if there is none.
	cur     int
	last    int64
	vt      chunkenc.ValueType
	unknown bool
	effect  *Effect
	// leaf is the replica of the last sample, -1 before the first.
	leaf int
	err  error
}

func newChain(replicas []chunkenc.Iterator, e *Effect) *chain {
	return &chain{
		its: replicas, ts: make([]int64, len(replicas)), vts: make([]chunkenc.ValueType, len(replicas)),
		cur: -1, leaf: -1, effect: e,
	}
}

func (c *chain) move(k int, vt chunkenc.ValueType) {
	if c.vts[k] = vt; vt != chunkenc.ValNone {
		c.ts[k] = c.its[k].AtT()
		return
	}
	if err := c.its[k].Err(); err != nil && c.err == nil {
		c.err = err
	}
}

// Next implements chunkenc.Iterator.
func (c *chain) Next() chunkenc.ValueType {
	if c.began && c.cur < 0 {
		return chunkenc.ValNone
	}
	for k := range c.its {
		if !c.began || c.vts[k] != chunkenc.ValNone && c.ts[k] <= c.last {
			c.move(k, c.its[k].Next())
		}
	}
	return c.choose(c.cur)
}

// Seek implements chunkenc.Iterator.
func (c *chain) Seek(t int64) chunkenc.ValueType {
	if c.began && (c.cur < 0 || c.last >= t) {
		return c.vt
	}
	for k := range c.its {
		if !c.began || c.vts[k] != chunkenc.ValNone && c.ts[k] < t {
			c.move(k, c.its[k].Seek(t))
		}
	}
	return c.choose(-1)
}

// choose makes the earliest sample the current one; prev is where a sample has to
// come from to follow directly on the one before.
func (c *chain) choose(prev int) chunkenc.ValueType {
	c.began = true
	cur, least := -1, int64(math.MaxInt64)
	if c.err == nil {
		for k, vt := range c.vts {
			if vt != chunkenc.ValNone && (cur < 0 || c.ts[k] < least) {
				cur, least = k, c.ts[k]
			}
		}
	}
	c.cur = cur
	if cur < 0 {
		c.vt = chunkenc.ValNone
		return chunkenc.ValNone
	}
	c.last, c.vt, c.unknown = least, c.vts[cur], cur != prev
	if c.effect != nil {
		c.effect.Samples[cur]++
		if c.leaf >= 0 && c.leaf != cur {
			c.effect.Switches++
		}
		c.leaf = cur
	}
	return c.vt
}

// At implements chunkenc.Iterator.
func (c *chain) At() (int64, float64) {
	if c.cur < 0 {
		return c.last, 0
	}
	return c.its[c.cur].At()
}

// AtT implements chunkenc.Iterator.
func (c *chain) AtT() int64 { return c.last }

// AtHistogram implements chunkenc.Iterator.
func (c *chain) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	t, h := c.its[c.cur].AtHistogram(h)
	if c.unknown && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// AtFloatHistogram implements chunkenc.Iterator.
func (c *chain) AtFloatHistogram(h *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	t, h := c.its[c.cur].AtFloatHistogram(h)
	if c.unknown && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// Err implements chunkenc.Iterator.
func (c *chain) Err() error { return c.err }
