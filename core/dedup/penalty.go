// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package dedup

import (
	"math"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/core/samples"
)

// initialPenalty is how far, in ms, the side that lost the first sample has to be
// ahead; there is no interval to go by yet.
const initialPenalty = 5000

// penalty merges two sides. The rule, as Thanos has it: before each sample both
// sides seek to one millisecond behind the last sample plus their penalty; the
// earlier one wins, a on a tie; the winner's penalty becomes 0 and the loser's
// twice the distance of the last two samples. So a missed scrape changes nothing,
// and a longer gap makes the other side take over, and keep on.
//
// Seeking the loser each time would decode all of it, for nothing. But it can only
// be at or behind the place it was last told to seek to: as long as the winner's
// next sample is not behind that place, the loser cannot win wherever it really is.
// Because a side never moves back, only the largest of those places matters, and
// the loser is moved there when it may win. The outcome is the same; and since that
// largest place is usually beyond the next sample, the loser usually rests.
type penalty struct {
	// ts and vs are the winner's samples at hand, i the current one. Values lack
	// the winner's adjustment. The underlying iterator stands at ts[0].
	ts []int64
	vs []float64
	i  int
	// safe is how many of them the winner gives without a look at the loser.
	safe int
	adj  float64
	// limit is the last time at which the winner wins without that look, and last
	// the time of the sample before, as they are behind the safe ones.
	limit, last int64
	// tie is 0 if the winner wins on a tie, 1 if not.
	tie int64

	a, b    side
	useA    bool
	counter bool
	began   bool
	done    bool
	// unknown: the sample before the current one came from the other side, or was
	// passed over by Seek.
	unknown bool
	vt      chunkenc.ValueType
	// oneT and oneV are ts and vs of a winner that does not decode ahead.
	oneT [1]int64
	oneV [1]float64

	// effect and idle serve counting; leaf is the replica of the last sample.
	effect *Effect
	leaf   int
}

// side is one input and where it stands.
type side struct {
	it   chunkenc.Iterator
	runs samples.Runs
	// inner is it if that is a penalty itself, else leaf is its replica's index.
	inner *penalty
	leaf  int

	started, done bool
	vt            chunkenc.ValueType
	t             int64
	// target is the place to seek to before anybody looks.
	target int64
	// adj is added to all values of a counter.
	adj float64
}

// newPenalty folds replicas from the left.
func newPenalty(replicas []chunkenc.Iterator, counter bool, e *Effect) *penalty {
	var p *penalty
	for k := 1; k < len(replicas); k++ {
		n := &penalty{useA: true, counter: counter, last: math.MinInt64, leaf: -1}
		if p == nil {
			n.a.set(replicas[0], 0)
		} else {
			n.a.set(p, -1)
			n.a.inner = p
		}
		n.b.set(replicas[k], k)
		p = n
	}
	p.effect = e
	return p
}

func (s *side) set(it chunkenc.Iterator, leaf int) {
	s.it, s.leaf, s.target = it, leaf, math.MinInt64
	s.runs, _ = it.(samples.Runs)
}

// next moves to the next sample.
func (s *side) next() {
	s.started = true
	s.at(s.it.Next())
}

func (s *side) at(vt chunkenc.ValueType) {
	if s.vt = vt; vt == chunkenc.ValNone {
		s.done = true
		return
	}
	s.t = s.it.AtT()
}

// settle moves to the target.
func (s *side) settle() {
	if !s.started {
		s.next()
	}
	if !s.done && s.t < s.target {
		s.at(s.it.Seek(s.target))
	}
}

// bound is a time before which s has no sample.
func (s *side) bound() int64 {
	if s.done {
		return math.MaxInt64
	}
	if s.started {
		return max(s.target, s.t)
	}
	return s.target
}

// raise adds to the adjustment what the current value is below v.
func (s *side) raise(v float64) {
	if s.done || s.vt != chunkenc.ValFloat {
		return
	}
	if _, f := s.it.At(); v > f+s.adj {
		s.adj += v - (f + s.adj)
	}
}

// Next implements chunkenc.Iterator.
func (p *penalty) Next() chunkenc.ValueType {
	if i := p.i + 1; i < p.safe {
		p.i = i
		return chunkenc.ValFloat
	}
	return p.choose()
}

// choose finds the next sample where a look at both sides may be necessary.
func (p *penalty) choose() chunkenc.ValueType {
	if p.done {
		return chunkenc.ValNone
	}
	var (
		before float64
		float  bool
		usedA  = p.useA
		w, o   = &p.a, &p.b
	)
	if !usedA {
		w, o = o, w
	}
	if !p.began {
		w.settle()
		// A start of b before a counts as a change of sides, from the first of a.
		if float = w.vt == chunkenc.ValFloat; float && p.counter {
			_, before = w.it.At()
		}
		p.limit = o.target
	} else {
		if float = p.vt == chunkenc.ValFloat; float {
			before = p.value()
		}
		if !o.done && p.limit < math.MaxInt64 {
			o.target = max(o.target, p.limit+p.tie)
		}
		if p.i > 0 {
			w.runs.Skip(p.i)
		}
		w.next()
	}
	if w.done || w.t > p.limit {
		o.settle()
		switch {
		case w.done && o.done:
			p.done, p.vt, p.ts, p.vs, p.i, p.safe = true, chunkenc.ValNone, nil, nil, 0, 0
			return chunkenc.ValNone
		case w.done:
			w, o = o, w
		case !o.done && (o.t < w.t || o.t == w.t && !usedA):
			w, o = o, w
		}
		p.useA = w == &p.a
	}
	switched := p.useA != usedA
	if switched && float && p.counter {
		p.a.raise(before)
		p.b.raise(before)
	}
	p.unknown = switched && p.began

	t := w.t
	pen := int64(initialPenalty)
	if p.last != math.MinInt64 {
		pen = 2 * (t - p.last)
	}
	o.target = max(o.target, t+1+pen)
	p.tie = 1
	if p.useA {
		p.tie = 0
	}
	p.limit = o.bound() - p.tie
	p.last, p.vt, p.adj = t, w.vt, w.adj
	p.load(w)
	p.ahead()
	p.began = true
	p.count(w)
	return p.vt
}

// ahead finds out how long the winner goes on winning with what it has at hand.
func (p *penalty) ahead() {
	n, last, limit := 1, p.last, p.limit
	for n < len(p.ts) && p.ts[n] <= limit {
		t := p.ts[n]
		// Overflow makes q small, which is what becomes of the seek in Thanos.
		limit = max(limit, t+1-p.tie+2*(t-last))
		last = t
		n++
	}
	p.safe, p.last, p.limit = n, last, limit
}

// load takes over the samples that w has at hand.
func (p *penalty) load(w *side) {
	p.i = 0
	if w.runs != nil && w.vt == chunkenc.ValFloat {
		if p.ts, p.vs = w.runs.Run(); len(p.ts) > 0 {
			return
		}
	}
	p.oneT[0], p.oneV[0] = w.t, 0
	if w.vt == chunkenc.ValFloat {
		_, p.oneV[0] = w.it.At()
	}
	p.ts, p.vs = p.oneT[:], p.oneV[:]
}

// count notes the safe samples as taken from w.
func (p *penalty) count(w *side) {
	if p.effect == nil {
		return
	}
	leaf := w.source()
	if p.leaf >= 0 && p.leaf != leaf {
		p.effect.Switches++
	}
	p.leaf = leaf
	p.effect.Samples[leaf] += p.safe
}

// source is the index of the replica that the current sample comes from.
func (s *side) source() int {
	for s.inner != nil {
		if s.inner.useA {
			s = &s.inner.a
		} else {
			s = &s.inner.b
		}
	}
	return s.leaf
}

// Seek implements chunkenc.Iterator. It goes through all samples, because which
// ones are chosen depends on those before them.
func (p *penalty) Seek(t int64) chunkenc.ValueType {
	if p.done || p.began && p.AtT() >= t {
		return p.vt
	}
	for n := 0; ; n++ {
		if vt := p.Next(); vt == chunkenc.ValNone || p.AtT() >= t {
			p.unknown = p.unknown || n > 0
			return vt
		}
	}
}

// value is the current float.
func (p *penalty) value() float64 {
	v := p.vs[p.i]
	// NaN stays as it is to the bit, because a stale marker is one of a kind; and
	// adding 0 would take the sign of -0 away.
	if p.adj == 0 || v != v {
		return v
	}
	return v + p.adj
}

// At implements chunkenc.Iterator.
func (p *penalty) At() (int64, float64) {
	if p.i >= len(p.vs) {
		return p.last, 0
	}
	return p.ts[p.i], p.value()
}

// AtT implements chunkenc.Iterator.
func (p *penalty) AtT() int64 {
	if p.i >= len(p.ts) {
		return p.last
	}
	return p.ts[p.i]
}

func (p *penalty) winner() chunkenc.Iterator {
	if p.useA {
		return p.a.it
	}
	return p.b.it
}

// AtHistogram implements chunkenc.Iterator.
func (p *penalty) AtHistogram(h *histogram.Histogram) (int64, *histogram.Histogram) {
	t, h := p.winner().AtHistogram(h)
	if p.unknown && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// AtFloatHistogram implements chunkenc.Iterator.
func (p *penalty) AtFloatHistogram(h *histogram.FloatHistogram) (int64, *histogram.FloatHistogram) {
	t, h := p.winner().AtFloatHistogram(h)
	if p.unknown && h.CounterResetHint != histogram.GaugeType {
		h.CounterResetHint = histogram.UnknownCounterReset
	}
	return t, h
}

// Err implements chunkenc.Iterator. A side that failed counts as ended, so its
// error comes with the end of the other.
func (p *penalty) Err() error {
	if err := p.a.it.Err(); err != nil {
		return err
	}
	return p.b.it.Err()
}
