// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package shaping

import (
	"cmp"
	"iter"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
)

// Batches that are put together here end at either of these sizes, and never
// hold series back that the source has already handed over, unless for order.
const (
	maxBatchSeries = 1024
	maxBatchBytes  = 1 << 20
)

// Extend sets external labels on every series and removes the labels named in
// drop, as [ExtendLabels] does, and restores the order that this may break. seq
// MUST be in order of its own label sets, which is checked.
//
// Setting labels needs a look-ahead of a few series only: two series change
// places only if the labels of one are a proper prefix of those of the other.
// Where a stored label is overridden or removed, the series that agree in all
// labels before it are buffered and sorted. Removing labels that sort behind
// others buffers the series that have the first label, usually the metric
// name, in common: until they are through, a series with fewer labels may still
// come that belongs before them. That a series has labels left is taken for
// granted; one that has none is an error if it comes too late.
//
// Series that become equal come out as one if they met in the buffer, and as
// consecutive pieces if not.
func Extend(seq iter.Seq2[*backend.Batch, error], ext labels.Labels, drop []string) iter.Seq2[*backend.Batch, error] {
	if ext.IsEmpty() && len(drop) == 0 {
		return CheckOrder(seq)
	}
	return func(yield func(*backend.Batch, error) bool) {
		x := newExtender(ext, drop)
		e := &emitter{yield: yield}
		var last labels.Labels
		started := false
		for in, err := range seq {
			if err != nil {
				if x.drain(e) && e.flush() {
					yield(nil, err)
				}
				return
			}
			for i := range in.Len() {
				s := in.At(i)
				if started && labels.Compare(s.Labels, last) < 0 {
					if e.flush() {
						yield(nil, orderError(last, s.Labels))
					}
					return
				}
				started, last = true, s.Labels
				if !x.next(s, e) {
					return
				}
			}
			for _, n := range in.Notices() {
				e.notify(n)
			}
			if !e.flush() {
				return
			}
		}
		if x.drain(e) {
			e.flush()
		}
	}
}

// Resort buffers all series, sorts them by compare (labels.Compare if nil) and
// merges those whose label sets compare equal. It is for sources that have no
// order, or another one. Batches of notices pass through at once.
func Resort(seq iter.Seq2[*backend.Batch, error], compare func(a, b labels.Labels) int) iter.Seq2[*backend.Batch, error] {
	if compare == nil {
		compare = labels.Compare
	}
	return func(yield func(*backend.Batch, error) bool) {
		var all []backend.Series
		var failed error
		for in, err := range seq {
			if err != nil {
				failed = err
				break
			}
			for i := range in.Len() {
				all = append(all, in.At(i))
			}
			if n := in.Notices(); len(n) > 0 && !yield(backend.NewNotices(n...), nil) {
				return
			}
		}
		byLabels := func(a, b backend.Series) int { return compare(a.Labels, b.Labels) }
		if !slices.IsSortedFunc(all, byLabels) {
			slices.SortStableFunc(all, byLabels)
		}
		e := &emitter{yield: yield}
		for i := 0; i < len(all); {
			j := i + 1
			for j < len(all) && compare(all[i].Labels, all[j].Labels) == 0 {
				j++
			}
			if !e.add(mergePieces(all[i:j])) {
				return
			}
			clear(all[i:j]) // The receiver may be done with it long before the end.
			i = j
		}
		if e.flush() && failed != nil {
			yield(nil, failed)
		}
	}
}

// CheckOrder passes seq through and fails with ErrInternal, naming both series,
// if one comes after another that it belongs before (rules S-1, S-2).
func CheckOrder(seq iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		var last labels.Labels
		started := false
		for in, err := range seq {
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range in.Len() {
				ls := in.At(i).Labels
				if started && labels.Compare(ls, last) < 0 {
					yield(nil, orderError(last, ls))
					return
				}
				started, last = true, ls
			}
			if !yield(in, nil) {
				return
			}
		}
	}
}

func orderError(before, after labels.Labels) error {
	return backend.Errorf(backend.ErrInternal, "series out of order: %s came after %s; the backend must sort by labels (rule S-1)", after, before)
}

// mergePieces makes one series of pieces with equal label sets.
func mergePieces(pieces []backend.Series) backend.Series {
	if len(pieces) == 1 {
		return pieces[0]
	}
	n := 0
	for _, p := range pieces {
		n += len(p.Chunks)
	}
	out := backend.Series{Labels: pieces[0].Labels}
	if n == 0 {
		return out
	}
	out.Chunks = make([]backend.Chunk, 0, n)
	for _, p := range pieces {
		out.Chunks = append(out.Chunks, p.Chunks...)
	}
	slices.SortStableFunc(out.Chunks, func(a, b backend.Chunk) int {
		return cmp.Or(cmp.Compare(a.MinTime, b.MinTime), cmp.Compare(a.MaxTime, b.MaxTime))
	})
	return out
}

// emitter puts series into batches and yields those.
type emitter struct {
	yield func(*backend.Batch, error) bool
	batch *backend.Batch
	last  labels.Labels
	any   bool
}

func (e *emitter) add(s backend.Series) bool {
	if e.batch == nil {
		e.batch = backend.NewBatch(64)
	}
	e.batch.Append(s)
	e.last, e.any = s.Labels, true
	if e.batch.Len() < maxBatchSeries && e.batch.Bytes() < maxBatchBytes {
		return true
	}
	return e.flush()
}

func (e *emitter) notify(n backend.Notice) {
	if e.batch == nil {
		e.batch = backend.NewBatch(0)
	}
	e.batch.Notify(n)
}

func (e *emitter) flush() bool {
	b := e.batch
	e.batch = nil
	return b == nil || e.yield(b, nil)
}

// extender is the state of Extend: the series that are held back because one
// that is still to come may belong before them.
type extender struct {
	ext     []labels.Label // without the removed and the empty ones, sorted
	drop    []string
	maxDrop string
	builder *labels.Builder
	bound   []labels.Label
	held    []heldSeries // a heap
	seq     uint64
}

type heldSeries struct {
	backend.Series
	seq uint64 // keeps pieces of a series in the order they came
}

func newExtender(ext labels.Labels, drop []string) *extender {
	x := &extender{drop: drop, builder: labels.NewBuilder(labels.EmptyLabels())}
	ext.Range(func(l labels.Label) {
		if l.Value != "" && !slices.Contains(drop, l.Name) {
			x.ext = append(x.ext, l)
		}
	})
	for _, d := range drop {
		x.maxDrop = max(x.maxDrop, d)
	}
	return x
}

// next takes a series in and emits those that nothing can come before any more.
func (x *extender) next(s backend.Series, e *emitter) bool {
	x.setBound(s.Labels)
	for len(x.held) > 0 && x.withinBound(x.held[0].Labels) {
		if !x.emitFirst(e) {
			return false
		}
	}
	x.builder.Reset(s.Labels)
	for _, l := range x.ext {
		x.builder.Set(l.Name, l.Value)
	}
	x.builder.Del(x.drop...)
	s.Labels = x.builder.Labels()
	if len(x.held) == 0 && s.Labels.Len() == len(x.bound) {
		// The bound is the beginning of the result, here all of it.
		return x.emit(s, e)
	}
	x.push(s)
	return true
}

// setBound computes a label set that no series from ls on can come before once
// it is extended. That is the longest prefix P of ls, with the external labels
// that sort into it, such that every series y after ls which differs from ls
// within P is extended to something behind P: at each position y has a larger
// value, or a label with a larger name instead. The latter fails if y's label
// there, and all behind it, are removed and no external label follows.
func (x *extender) setBound(ls labels.Labels) {
	x.bound = x.bound[:0]
	next := 0 // the external label to come next
	open := true
	// Without external labels the metric name would be such a position too if
	// there were a series of removed labels only. There is none (see Extend).
	first := len(x.ext) == 0
	ls.Range(func(l labels.Label) {
		if !open {
			return
		}
		for next < len(x.ext) && x.ext[next].Name < l.Name {
			next++
		}
		if next < len(x.ext) && x.ext[next].Name == l.Name || slices.Contains(x.drop, l.Name) {
			open = false
			return
		}
		if !first && l.Name < x.maxDrop && next == len(x.ext) {
			open = false
			return
		}
		first = false
		for _, e := range x.ext[:next] {
			if len(x.bound) == 0 || x.bound[len(x.bound)-1].Name < e.Name {
				x.bound = append(x.bound, e)
			}
		}
		x.bound = append(x.bound, l)
	})
}

// withinBound says whether ls is not behind the bound.
func (x *extender) withinBound(ls labels.Labels) bool {
	i, result := 0, 0
	ls.Range(func(l labels.Label) {
		if result != 0 {
			return
		}
		if i == len(x.bound) {
			result = 1
			return
		}
		result = cmp.Or(cmp.Compare(l.Name, x.bound[i].Name), cmp.Compare(l.Value, x.bound[i].Value))
		i++
	})
	return result <= 0
}

// drain emits all that is held.
func (x *extender) drain(e *emitter) bool {
	for len(x.held) > 0 {
		if !x.emitFirst(e) {
			return false
		}
	}
	return true
}

// emitFirst emits the first of the held series, with all pieces of it.
func (x *extender) emitFirst(e *emitter) bool {
	first := x.pop()
	if len(x.held) == 0 || !labels.Equal(x.held[0].Labels, first.Labels) {
		return x.emit(first, e)
	}
	pieces := []backend.Series{first}
	for len(x.held) > 0 && labels.Equal(x.held[0].Labels, first.Labels) {
		pieces = append(pieces, x.pop())
	}
	return x.emit(mergePieces(pieces), e)
}

func (x *extender) emit(s backend.Series, e *emitter) bool {
	if e.any && labels.Compare(s.Labels, e.last) < 0 {
		last := e.last
		if e.flush() {
			e.yield(nil, orderError(last, s.Labels))
		}
		return false
	}
	return e.add(s)
}

func (x *extender) less(i, j int) bool {
	if c := labels.Compare(x.held[i].Labels, x.held[j].Labels); c != 0 {
		return c < 0
	}
	return x.held[i].seq < x.held[j].seq
}

func (x *extender) push(s backend.Series) {
	x.held = append(x.held, heldSeries{Series: s, seq: x.seq})
	x.seq++
	for i := len(x.held) - 1; i > 0; {
		up := (i - 1) / 2
		if !x.less(i, up) {
			return
		}
		x.held[i], x.held[up] = x.held[up], x.held[i]
		i = up
	}
}

func (x *extender) pop() backend.Series {
	first := x.held[0].Series
	n := len(x.held) - 1
	x.held[0] = x.held[n]
	x.held[n] = heldSeries{}
	x.held = x.held[:n]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < n; child++ {
			if x.less(child, least) {
				least = child
			}
		}
		if least == i {
			return first
		}
		x.held[i], x.held[least] = x.held[least], x.held[i]
		i = least
	}
}
