// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
)

// Text is a request as people read it, and as it can be made again from.
func Text(req *backend.SeriesRequest) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Series %s %s", Matchers(req.Matchers), span(req.MinTime, req.MaxTime))
	if req.SkipChunks {
		b.WriteString(" skip_chunks")
	}
	if req.Limit > 0 {
		fmt.Fprintf(&b, " limit=%d", req.Limit)
	}
	if s := req.Shard; s != nil {
		how := "without"
		if s.By {
			how = "by"
		}
		fmt.Fprintf(&b, " shard=%d/%d %s (%s)", s.Index, s.Total, how, strings.Join(s.Labels, ", "))
	}
	if len(req.WithoutReplicaLabels) > 0 {
		fmt.Fprintf(&b, " without_replica_labels=(%s)", strings.Join(req.WithoutReplicaLabels, ", "))
	}
	if req.MaxResolution > 0 {
		fmt.Fprintf(&b, " max_resolution=%d", req.MaxResolution)
	}
	if len(req.Aggregates) > 0 {
		fmt.Fprintf(&b, " aggregates=%v", req.Aggregates)
	}
	if req.BatchSize > 0 {
		fmt.Fprintf(&b, " batch=%d", req.BatchSize)
	}
	if h := req.Hints; h.Func != "" || h.StepMillis > 0 || h.RangeMillis > 0 || len(h.Grouping) > 0 {
		fmt.Fprintf(&b, " hints=(func=%s step=%d range=%d by=%v grouping=%v)", h.Func, h.StepMillis, h.RangeMillis, h.By, h.Grouping)
	}
	return b.String()
}

// NamesText and ValuesText are the same for the other calls.
func NamesText(req *backend.LabelNamesRequest) string {
	return fmt.Sprintf("LabelNames %s %s%s", Matchers(req.Matchers), span(req.MinTime, req.MaxTime), tail(req.Limit, req.WithoutReplicaLabels))
}

// ValuesText is the text of a LabelValues request.
func ValuesText(req *backend.LabelValuesRequest) string {
	return fmt.Sprintf("LabelValues(%q) %s %s%s", req.Name, Matchers(req.Matchers), span(req.MinTime, req.MaxTime), tail(req.Limit, req.WithoutReplicaLabels))
}

func tail(limit int, without []string) (s string) {
	if limit > 0 {
		s = fmt.Sprintf(" limit=%d", limit)
	}
	if len(without) > 0 {
		s += fmt.Sprintf(" without_replica_labels=(%s)", strings.Join(without, ", "))
	}
	return s
}

func span(minTime, maxTime int64) string { return Stamp(minTime) + " to " + Stamp(maxTime) }

// Matchers are text in PromQL's form, long values shortened.
func Matchers(ms []*labels.Matcher) string {
	var list []string
	for _, m := range ms {
		list = append(list, fmt.Sprintf("%s%s%q", m.Name, m.Type, short(m.Value)))
	}
	return "{" + strings.Join(list, ", ") + "}"
}

// Generator makes requests at random, the same for the same seed.
type Generator struct {
	o     *Oracle
	r     *rand.Rand
	pairs []labels.Label
	names []string
	times []int64
}

// NewGenerator returns one for the series of o; those with very long values are not
// asked for, which requirements of their own do.
func (o *Oracle) NewGenerator(seed uint64) *Generator {
	g := &Generator{o: o, r: rand.New(rand.NewPCG(seed, 0x70726f6d))}
	for _, s := range o.series {
		if len(s.Samples) == 0 {
			continue
		}
		s.Labels.Range(func(l labels.Label) {
			if len(l.Value) > 1000 {
				return
			}
			g.pairs = append(g.pairs, l)
			g.names = append(g.names, l.Name)
		})
		g.times = append(g.times, s.Samples[g.r.IntN(len(s.Samples))].T)
	}
	slices.Sort(g.names)
	g.names = slices.Compact(g.names)
	return g
}

// Rand is the generator's source.
func (g *Generator) Rand() *rand.Rand { return g.r }

// Matchers are one to three, the first mostly on the metric's name.
func (g *Generator) Matchers() []*labels.Matcher {
	var out []*labels.Matcher
	if g.r.IntN(5) > 0 {
		s := g.o.series[g.r.IntN(len(g.o.series))]
		if name := s.Labels.Get(metricName); name != "" && name != "cert_wide" {
			out = append(out, labels.MustNewMatcher(labels.MatchEqual, metricName, name))
		}
	} else {
		out = append(out, labels.MustNewMatcher(labels.MatchNotEqual, metricName, "cert_wide"))
	}
	for range 1 + g.r.IntN(2) {
		out = append(out, g.matcher())
	}
	return out
}

func (g *Generator) matcher() *labels.Matcher {
	l := g.pairs[g.r.IntN(len(g.pairs))]
	other := g.pairs[g.r.IntN(len(g.pairs))].Value
	value := l.Value
	types := []labels.MatchType{labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp}
	t := types[g.r.IntN(4)]
	if t == labels.MatchEqual || t == labels.MatchNotEqual {
		switch g.r.IntN(6) {
		case 0:
			value = ""
		case 1:
			value = other
		}
		return labels.MustNewMatcher(t, l.Name, value)
	}
	q := regexp.QuoteMeta(value)
	cut := len(value) / 2
	for cut > 0 && cut < len(value) && value[cut]&0xC0 == 0x80 {
		cut--
	}
	half := regexp.QuoteMeta(value[:cut])
	forms := []string{q, half + ".*", half, ".+", ".*", "", q + "|" + regexp.QuoteMeta(other), q + "|", "(?i)" + q, half + ".", "^" + q + "$"}
	m, err := labels.NewMatcher(t, l.Name, forms[g.r.IntN(len(forms))])
	if err != nil {
		return labels.MustNewMatcher(t, l.Name, q)
	}
	return m
}

// Range is all time, a part of it, or one instant at or beside a sample.
func (g *Generator) Range() (minTime, maxTime int64) {
	a, b := g.times[g.r.IntN(len(g.times))], g.times[g.r.IntN(len(g.times))]
	a, b = a+int64(g.r.IntN(3))-1, b+int64(g.r.IntN(3))-1
	switch g.r.IntN(6) {
	case 0:
		return g.o.min, g.o.max
	case 1:
		return a, a
	case 2:
		return math.MinInt64, b
	case 3:
		return a, math.MaxInt64
	}
	return min(a, b), max(a, b)
}

// Request is one for series, without limit, shard and replica labels.
func (g *Generator) Request() *backend.SeriesRequest {
	req := &backend.SeriesRequest{Matchers: g.Matchers(), SkipChunks: g.r.IntN(3) == 0, BatchSize: []int{0, 1, 2, 7, 64}[g.r.IntN(5)]}
	req.MinTime, req.MaxTime = g.Range()
	return req
}

// Shrink looks for a simpler request that still fails, with at most tries calls of fails.
func Shrink(req *backend.SeriesRequest, full [2]int64, tries int, fails func(*backend.SeriesRequest) bool) *backend.SeriesRequest {
	best := req
	try := func(change func(*backend.SeriesRequest) bool) bool {
		next := *best
		next.Matchers = slices.Clone(best.Matchers)
		if tries == 0 || !change(&next) {
			return false
		}
		tries--
		if !fails(&next) {
			return false
		}
		best = &next
		return true
	}
	try(func(r *backend.SeriesRequest) bool { ok := r.BatchSize != 0; r.BatchSize = 0; return ok })
	try(func(r *backend.SeriesRequest) bool {
		ok := r.Hints.Func != "" || r.Hints.StepMillis != 0 || len(r.Hints.Grouping) > 0
		r.Hints = backend.Hints{}
		return ok
	})
	try(func(r *backend.SeriesRequest) bool { ok := !r.SkipChunks; r.SkipChunks = true; return ok })
	try(func(r *backend.SeriesRequest) bool { ok := r.Limit > 0; r.Limit = 0; return ok })
	try(func(r *backend.SeriesRequest) bool { ok := r.Shard != nil; r.Shard = nil; return ok })
	try(func(r *backend.SeriesRequest) bool {
		ok := len(r.WithoutReplicaLabels) > 0
		r.WithoutReplicaLabels = nil
		return ok
	})
	try(func(r *backend.SeriesRequest) bool {
		ok := r.MinTime != full[0] || r.MaxTime != full[1]
		r.MinTime, r.MaxTime = full[0], full[1]
		return ok
	})
	for i := 0; i < len(best.Matchers); {
		if !try(func(r *backend.SeriesRequest) bool {
			r.Matchers = slices.Delete(r.Matchers, i, i+1)
			return true
		}) {
			i++
		}
	}
	return best
}

// metricName is the label with the name of the metric.
const metricName = "__name__"
