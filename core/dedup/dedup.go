// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package dedup makes one series out of the replicas of a series.
//
// Penalty and Chain choose as the Thanos querier does (pkg/dedup there), sample for
// sample; they differ in doing less work for it. Histograms are chosen by their
// timestamps only, like floats, and where a histogram follows one of another
// replica its hint about counter resets is taken back.
package dedup

import (
	"fmt"

	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// Algorithm names a way to choose among replicas.
type Algorithm string

// The algorithms.
const (
	// Default is the best there is. For now it chooses the samples that Penalty
	// chooses, and differs in what it makes of counters at a change of replicas.
	Default Algorithm = "default"
	// Penalty follows one replica and changes over only at a gap, as Thanos does by
	// default. It is for replicas that scrape the same targets each for themselves.
	Penalty Algorithm = "penalty"
	// Chain keeps every distinct timestamp. It is for copies of the same samples.
	Chain Algorithm = "chain"
)

// Parse returns the algorithm of a name; "" is Default.
func Parse(name string) (Algorithm, error) {
	switch a := Algorithm(name); a {
	case "":
		return Default, nil
	case Default, Penalty, Chain:
		return a, nil
	}
	return "", fmt.Errorf("deduplication: unknown algorithm %q: use %q, %q or %q", name, Default, Penalty, Chain)
}

// Counter says whether fn, the innermost function around a selector, makes
// Penalty adjust values so that a change of replica is no counter reset.
func Counter(fn string) bool {
	switch fn {
	case "rate", "increase", "irate", "resets":
		return true
	}
	return false
}

// Effect counts what deduplication did. One Effect may serve many series of one
// goroutine; the counts add up. Samples that were decoded together count together,
// so a series that is not read to its end may count a few more than were read.
type Effect struct {
	// Switches is how often the source of samples changed from one replica to another.
	Switches int
	// Samples is how many samples were taken of each replica, by its index. A series
	// with a single replica, which passes as it is, is not in it.
	Samples []int
}

// Option changes what New does.
type Option func(*options)

type options struct{ effect *Effect }

// WithEffect collects counts in e, which must not be used by another goroutine
// while the iterator is.
func WithEffect(e *Effect) Option { return func(o *options) { o.effect = e } }

// New merges replicas, which come in order of their replica-label values, into
// one iterator. counter is the result of Counter for the selector. A single
// replica is returned as it is.
func New(a Algorithm, counter bool, replicas []chunkenc.Iterator, opts ...Option) chunkenc.Iterator {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if o.effect != nil {
		for len(o.effect.Samples) < len(replicas) {
			o.effect.Samples = append(o.effect.Samples, 0)
		}
	}
	switch {
	case len(replicas) == 0:
		return chunkenc.NewNopIterator()
	case len(replicas) == 1:
		return replicas[0]
	case a == Chain:
		return newChain(replicas, o.effect)
	}
	if a == Penalty {
		return newPenalty(replicas, counter, o.effect)
	}
	p := newPenalty(replicas, false, o.effect)
	if !counter {
		return p
	}
	return &lifted{penalty: p, leaf: -1}
}
