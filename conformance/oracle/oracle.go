// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package oracle says what a correct backend with the corpus answers, as far as the
// contract fixes it, and what is wrong with an answer. Where the contract leaves
// freedom (whole chunks or cut ones, a series of which only a chunk overlaps the range,
// label names of a wider range) every answer within it is right.
package oracle

import (
	"math"
	"slices"
	"sort"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// Claims are the capabilities that decide which answers are right.
type Claims struct {
	Sharding, WithoutReplicaLabels, SeriesLimit bool
	StaleMarkers, NativeHistograms              bool
}

// Oracle knows the series of a subject with their external labels.
type Oracle struct {
	Claims   Claims
	external []labels.Labels
	series   []Series
	min, max int64
}

// Series is a series as it has to come back: Labels are final, Samples in order.
type Series struct {
	Labels  labels.Labels
	Samples []shaping.Sample
}

// New returns what is known of a subject that has the corpus once for each external
// label set; none is one without labels.
func New(c *corpus.Corpus, external []labels.Labels, claims Claims) *Oracle {
	if len(external) == 0 {
		external = []labels.Labels{labels.EmptyLabels()}
	}
	o := &Oracle{Claims: claims, external: external}
	o.min, o.max = c.Bounds()
	for _, ext := range external {
		for _, s := range c.Series {
			o.series = append(o.series, Series{shaping.ExtendLabels(s.Labels, ext, nil), s.Samples})
		}
	}
	o.series = merge(o.series)
	return o
}

// Series are all of them, in order.
func (o *Oracle) Series() []Series { return o.series }

// Bounds of the samples, ms.
func (o *Oracle) Bounds() (minTime, maxTime int64) { return o.min, o.max }

// External are the external label sets; at least one.
func (o *Oracle) External() []labels.Labels { return o.external }

// merge sorts and makes one series of those with equal labels.
func merge(all []Series) []Series {
	slices.SortStableFunc(all, func(a, b Series) int { return labels.Compare(a.Labels, b.Labels) })
	var out []Series
	for _, s := range all {
		if n := len(out); n > 0 && labels.Equal(out[n-1].Labels, s.Labels) {
			out[n-1].Samples = union(out[n-1].Samples, s.Samples)
			continue
		}
		out = append(out, s)
	}
	return out
}

// union is in order of time; samples of one time are all kept unless they are equal.
func union(a, b []shaping.Sample) []shaping.Sample {
	all := slices.Concat(a, b)
	slices.SortStableFunc(all, func(x, y shaping.Sample) int {
		switch {
		case x.T < y.T:
			return -1
		case x.T > y.T:
			return 1
		}
		return 0
	})
	return slices.CompactFunc(all, func(x, y shaping.Sample) bool { return x.T == y.T && same(x, y) })
}

// same compares two values: bits of floats, buckets of histograms. Any two NaN that are
// no stale markers are the same.
func same(a, b shaping.Sample) bool {
	ah, bh := isHistogram(a), isHistogram(b)
	if ah != bh {
		return false
	}
	if ah {
		x, y := a.FH, b.FH
		if a.H != nil {
			x = a.H.ToFloat(nil)
		}
		if b.H != nil {
			y = b.H.ToFloat(nil)
		}
		if value.IsStaleNaN(x.Sum) != value.IsStaleNaN(y.Sum) {
			return false
		}
		return x.Copy().Compact(0).Equals(y.Copy().Compact(0))
	}
	if math.Float64bits(a.F) == math.Float64bits(b.F) {
		return true
	}
	return math.IsNaN(a.F) && math.IsNaN(b.F) && !value.IsStaleNaN(a.F) && !value.IsStaleNaN(b.F)
}

func isHistogram(s shaping.Sample) bool { return s.H != nil || s.FH != nil }

func isStale(s shaping.Sample) bool {
	switch {
	case s.H != nil:
		return value.IsStaleNaN(s.H.Sum)
	case s.FH != nil:
		return value.IsStaleNaN(s.FH.Sum)
	}
	return value.IsStaleNaN(s.F)
}

// optional says that a subject with these claims may lack the sample.
func (c *Claims) optional(s shaping.Sample) bool {
	return !c.StaleMarkers && isStale(s) || !c.NativeHistograms && isHistogram(s)
}

// candidate is a series of an answer. Must: it has to be there; otherwise it may.
type candidate struct {
	Series
	must bool
}

// honour says which fields of a request the answer is computed with.
type honour struct{ limit, shard, replica bool }

// expect are the series that an answer may have, in order, before the limit.
func (o *Oracle) expect(req *backend.SeriesRequest, h honour) []candidate {
	if req.MinTime > req.MaxTime {
		return nil
	}
	var out []candidate
	for _, s := range o.series {
		if !shaping.Matches(s.Labels, req.Matchers) {
			continue
		}
		if c, ok := o.inRange(s, req.MinTime, req.MaxTime); ok {
			out = append(out, c)
		}
	}
	if h.replica && len(req.WithoutReplicaLabels) > 0 {
		out = o.withoutLabels(out, req.WithoutReplicaLabels)
	}
	if h.shard {
		out = slices.DeleteFunc(out, func(c candidate) bool { return !InShard(req.Shard, c.Labels) })
	}
	return out
}

func (o *Oracle) inRange(s Series, minTime, maxTime int64) (c candidate, ok bool) {
	if len(s.Samples) == 0 || s.Samples[0].T > maxTime || s.Samples[len(s.Samples)-1].T < minTime {
		return c, false
	}
	c.Series = s
	for i := sort.Search(len(s.Samples), func(i int) bool { return s.Samples[i].T >= minTime }); i < len(s.Samples) && s.Samples[i].T <= maxTime; i++ {
		if !o.Claims.optional(s.Samples[i]) {
			c.must = true
			break
		}
	}
	return c, true
}

func (o *Oracle) withoutLabels(in []candidate, names []string) []candidate {
	for i := range in {
		in[i].Labels = shaping.ExtendLabels(in[i].Labels, labels.EmptyLabels(), names)
	}
	slices.SortStableFunc(in, func(a, b candidate) int { return labels.Compare(a.Labels, b.Labels) })
	var out []candidate
	for _, c := range in {
		if n := len(out); n > 0 && labels.Equal(out[n-1].Labels, c.Labels) {
			out[n-1].Samples = union(out[n-1].Samples, c.Samples)
			out[n-1].must = out[n-1].must || c.must
			continue
		}
		out = append(out, c)
	}
	return out
}

// Names are the label names that an answer must and may have, each sorted.
func (o *Oracle) Names(req *backend.LabelNamesRequest) (must, may []string) {
	if req.MinTime > req.MaxTime {
		return nil, nil
	}
	collect := func(s Series) (names []string) {
		s.Labels.Range(func(l labels.Label) {
			if !slices.Contains(req.WithoutReplicaLabels, l.Name) {
				names = append(names, l.Name)
			}
		})
		return names
	}
	return o.lists(req.Matchers, req.MinTime, req.MaxTime, collect)
}

// Values are the values that an answer must and may have, each sorted.
func (o *Oracle) Values(req *backend.LabelValuesRequest) (must, may []string) {
	if req.MinTime > req.MaxTime || slices.Contains(req.WithoutReplicaLabels, req.Name) {
		return nil, nil
	}
	must, may = o.lists(req.Matchers, req.MinTime, req.MaxTime, func(s Series) []string {
		if v := s.Labels.Get(req.Name); v != "" {
			return []string{v}
		}
		return nil
	})
	// Rule L-6: an external label's value may come although no series is there.
	for _, ext := range o.external {
		v := ext.Get(req.Name)
		if v == "" || slices.Contains(may, v) {
			continue
		}
		if !slices.ContainsFunc(req.Matchers, func(m *labels.Matcher) bool { return ext.Get(m.Name) == "" || !m.Matches(ext.Get(m.Name)) }) {
			may = append(may, v)
		}
	}
	slices.Sort(may)
	return must, may
}

func (o *Oracle) lists(ms []*labels.Matcher, minTime, maxTime int64, of func(Series) []string) (must, may []string) {
	for _, s := range o.series {
		if !shaping.Matches(s.Labels, ms) {
			continue
		}
		list := of(s)
		may = append(may, list...)
		if c, ok := o.inRange(s, minTime, maxTime); ok && c.must {
			must = append(must, list...)
		}
	}
	slices.Sort(must)
	slices.Sort(may)
	return slices.Compact(must), slices.Compact(may)
}
