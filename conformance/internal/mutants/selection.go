// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package mutants

import (
	"context"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"

	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

var decode = oracle.Decode

// All are all mutants.
func All() []*Mutant {
	return slices.Concat(matching(), answers(), lists(), shapes(), bounds(), optionals(), queries())
}

// regex is a mutant whose regular expressions are f of the matcher's.
func regex(f func(string) string) call {
	return matcher(func(m *labels.Matcher, v string) bool {
		if m.Type != labels.MatchRegexp && m.Type != labels.MatchNotRegexp {
			return m.Matches(v)
		}
		re, err := regexp.Compile(f(m.Value))
		if err != nil {
			return false
		}
		return re.MatchString(v) == (m.Type == labels.MatchRegexp)
	})
}

func matching() []*Mutant {
	return []*Mutant{
		{Name: "equal matches a prefix", Kills: []string{"S-6.equal"}, series: matcher(func(m *labels.Matcher, v string) bool {
			if m.Type == labels.MatchEqual {
				return v == m.Value || m.Value != "" && strings.HasPrefix(v, m.Value)
			}
			return m.Matches(v)
		})},
		{Name: "not-equal wants the label to be there", Kills: []string{"S-6.not-equal", "S-6.missing-is-empty"}, series: matcher(func(m *labels.Matcher, v string) bool {
			return m.Matches(v) && (m.Type != labels.MatchNotEqual || v != "")
		})},
		{Name: "matchers for an empty value are ignored", Kills: []string{"S-6.missing-is-empty"}, series: changed(func(r *backend.SeriesRequest) {
			r.Matchers = slices.DeleteFunc(r.Matchers, func(m *labels.Matcher) bool { return m.Type == labels.MatchEqual && m.Value == "" })
		})},
		{Name: "regular expressions are not anchored", Kills: []string{"S-6.anchored"}, series: regex(func(s string) string { return "(?s:" + s + ")" })},
		{Name: "regular expressions are anchored at the front only", Kills: []string{"S-6.anchored"}, series: regex(func(s string) string { return "^(?s:" + s + ")" })},
		{Name: "anchors bind tighter than alternatives", Kills: []string{"S-6.anchored"}, series: regex(func(s string) string { return "(?s)^" + s + "$" })},
		{Name: "a dot does not match a newline", Kills: []string{"S-6.newline"}, series: regex(func(s string) string { return "^(?:" + s + ")$" })},
		{Name: "regular expressions ignore case", Kills: []string{"S-6.case"}, series: regex(func(s string) string { return "^(?is:" + s + ")$" })},
		{Name: "regular expressions are taken for text", Kills: []string{"S-6.regex"}, series: regex(func(s string) string { return "^" + regexp.QuoteMeta(s) + "$" })},
		{Name: "negated regular expressions want the label to be there", Kills: []string{"S-6.not-regex"}, series: matcher(func(m *labels.Matcher, v string) bool {
			return m.Matches(v) && (m.Type != labels.MatchNotRegexp || v != "")
		})},
		{Name: "the last matcher on a name wins", Kills: []string{"S-6.several"}, series: matched(func(_ *Backend, ls labels.Labels, ms []*labels.Matcher) bool {
			last := map[string]*labels.Matcher{}
			for _, m := range ms {
				last[m.Name] = m
			}
			for _, m := range last {
				if !m.Matches(ls.Get(m.Name)) {
					return false
				}
			}
			return true
		})},
		{Name: "empty alternatives are ignored", Kills: []string{"S-6.matrix"}, series: regex(func(s string) string {
			return "^(?s:" + strings.ReplaceAll(strings.ReplaceAll(s, "||", "|"), "?", "") + ")$"
		})},
		{Name: "nothing is asked for without matchers", Kills: []string{"S-6.no-matchers"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			if len(req.Matchers) == 0 {
				return backend.None()
			}
			return b.Backend.Series(ctx, req)
		}},
		{Name: "every seventh series is forgotten", Kills: []string{"S-6.generated", "S-7.samples"}, series: answered(func(_ *Backend, _ *backend.SeriesRequest, all []backend.Series) (out []backend.Series) {
			for i, s := range all {
				if i%7 != 1 {
					out = append(out, s)
				}
			}
			return out
		})},
		{Name: "no match is an error", Kills: []string{"S-12.no-match"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			all, err := gather(b.Backend.Series(ctx, req))
			if err == nil && len(all) == 0 {
				err = backend.Errorf(backend.ErrInvalid, "there are no such series")
			}
			if err != nil {
				return backend.Fail(err)
			}
			return emit(all, 16)
		}},
	}
}

func answers() []*Mutant {
	return []*Mutant{
		{Name: "Info takes six seconds", Kills: []string{"I-1.answers"}, info: func(b *Backend, ctx context.Context, in backend.Info) (backend.Info, error) {
			// Not the first time, when the suite learns who it is.
			if b.calls.Add(1) > 1 {
				time.Sleep(5100 * time.Millisecond)
			}
			return in, nil
		}},
		{Name: "Info has its bounds the wrong way round", Kills: []string{"I-1.answers", "I-2.bounds"}, info: func(_ *Backend, _ context.Context, in backend.Info) (backend.Info, error) {
			in.MinTime, in.MaxTime = in.MaxTime, in.MinTime
			return in, nil
		}},
		{Name: "Info's bounds end a minute early", Kills: []string{"I-2.bounds"}, info: func(_ *Backend, _ context.Context, in backend.Info) (backend.Info, error) {
			in.MaxTime -= 60_000
			return in, nil
		}},
		{Name: "Info advertises another label set", Kills: []string{"I-2.label-sets"}, info: func(b *Backend, _ context.Context, in backend.Info) (backend.Info, error) {
			if b.calls.Add(1) > 1 {
				in.LabelSets = []labels.Labels{labels.FromStrings("cluster", "us9")}
			}
			return in, nil
		}},
		{Name: "the last sample of a series is lost", Kills: []string{"S-7.samples"}, series: sampled(func(l []shaping.Sample) []shaping.Sample { return l[:max(1, len(l)-1)] })},
		{Name: "a sample is made up", Kills: []string{"S-7.samples"}, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			last := l[len(l)-1]
			last.T++
			return append(l, last)
		})},
		{Name: "values are kept in 32 bits", Kills: []string{"S-7.values"}, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			for i := range l {
				if !value.IsStaleNaN(l[i].F) {
					l[i].F = float64(float32(l[i].F))
				}
			}
			return l
		})},
		{Name: "zero has no sign", Kills: []string{"S-7.zero-sign"}, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			for i := range l {
				if l[i].F == 0 {
					l[i].F = 0
				}
			}
			return l
		})},
		{Name: "stale markers are lost", Kills: []string{"S-7.stale"}, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			return slices.DeleteFunc(l, func(s shaping.Sample) bool { return value.IsStaleNaN(s.F) })
		})},
		{Name: "stale markers become plain NaN", Kills: []string{"S-7.stale-unclaimed"}, claims: func(c *backend.Capabilities) { c.StaleMarkers = false }, series: sampled(func(l []shaping.Sample) []shaping.Sample {
			for i := range l {
				if value.IsStaleNaN(l[i].F) {
					l[i].F = math.NaN()
				}
			}
			return l
		})},
		{Name: "chunks claim to begin later than they do", Kills: []string{"S-8.enclose"}, series: chunked(func(c *backend.Chunk) { c.MinTime += 30_000 })},
		{Name: "chunks come last first", Kills: []string{"S-8.chunk-order"}, series: each(func(_ *backend.SeriesRequest, s backend.Series) backend.Series {
			s.Chunks = slices.Clone(s.Chunks)
			slices.Reverse(s.Chunks)
			return s
		})},
		{Name: "chunks hold all samples of a series", Kills: []string{"S-8.chunk-size"}, series: each(func(_ *backend.SeriesRequest, s backend.Series) backend.Series { return oneChunk(s) })},
		{Name: "chunks come although they are to be skipped", Kills: []string{"S-9.no-chunks"}, series: changed(func(r *backend.SeriesRequest) { r.SkipChunks = false })},
		{Name: "without chunks the range is ignored", Kills: []string{"S-9.selection"}, series: changed(func(r *backend.SeriesRequest) {
			if r.SkipChunks && r.MinTime <= r.MaxTime {
				r.MinTime, r.MaxTime = math.MinInt64, math.MaxInt64
			}
		})},
		{Name: "callers get in each other's way", Kills: []string{"B-1.concurrent"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			return func(yield func(*backend.Batch, error) bool) {
				defer b.flights.Add(-1)
				if b.flights.Add(1) > 1 {
					return
				}
				time.Sleep(2 * time.Millisecond)
				for batch, err := range b.Backend.Series(ctx, req) {
					if !yield(batch, err) {
						return
					}
				}
			}
		}},
		{Name: "the caller's matchers are sorted in place", Kills: []string{"B-3.requests"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			slices.SortFunc(req.Matchers, func(x, y *labels.Matcher) int { return strings.Compare(x.Name, y.Name) })
			return b.Backend.Series(ctx, req)
		}},
		{Name: "memory of chunks is used again", Kills: []string{"S-0.memory"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			all, err := gather(b.Backend.Series(ctx, req))
			if err != nil {
				return backend.Fail(err)
			}
			if b.memory == nil {
				b.memory = make([]byte, 1<<20)
			}
			return func(yield func(*backend.Batch, error) bool) {
				for batch := range emit(all, 4) {
					at, out := 0, backend.NewBatch(4)
					for i := range batch.Len() {
						s := batch.At(i)
						s.Chunks = slices.Clone(s.Chunks)
						for k := range s.Chunks {
							n := copy(b.memory[at:], s.Chunks[k].Raw.Data)
							s.Chunks[k].Raw.Data = b.memory[at : at+n]
							at += n
						}
						out.Append(s)
					}
					if !yield(out, nil) {
						return
					}
				}
			}
		}},
		{Name: "hints are trusted with which samples there are", Kills: []string{"S-10.hints"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			if req.Hints.Func == "" {
				return b.Backend.Series(ctx, req)
			}
			return sampled(func(l []shaping.Sample) []shaping.Sample { return l[len(l)-1:] })(b, ctx, req)
		}},
	}
}

// chunked changes the chunks of every series.
func chunked(f func(c *backend.Chunk)) call {
	return each(func(_ *backend.SeriesRequest, s backend.Series) backend.Series {
		s.Chunks = slices.Clone(s.Chunks)
		for i := range s.Chunks {
			f(&s.Chunks[i])
		}
		return s
	})
}

func lists() []*Mutant {
	names := func(f func(b *Backend, req *backend.LabelNamesRequest, out []string) []string) func(*Backend, context.Context, *backend.LabelNamesRequest) (*backend.Labels, error) {
		return func(b *Backend, ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
			l, err := b.Backend.LabelNames(ctx, req)
			if err != nil {
				return nil, err
			}
			return &backend.Labels{Values: f(b, req, slices.Clone(l.Values))}, nil
		}
	}
	values := func(f func(b *Backend, req *backend.LabelValuesRequest, out []string) []string) func(*Backend, context.Context, *backend.LabelValuesRequest) (*backend.Labels, error) {
		return func(b *Backend, ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
			l, err := b.Backend.LabelValues(ctx, req)
			if err != nil {
				return nil, err
			}
			return &backend.Labels{Values: f(b, req, slices.Clone(l.Values))}, nil
		}
	}
	reversed := func(l []string) []string { slices.Reverse(l); return l }
	return []*Mutant{
		{Name: "the last label name is lost", Kills: []string{"L-1.names"}, names: names(func(_ *Backend, _ *backend.LabelNamesRequest, l []string) []string { return l[:max(0, len(l)-1)] })},
		{Name: "label names ignore matchers", Kills: []string{"L-2.names-match"}, names: func(b *Backend, ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
			r := *req
			r.Matchers = nil
			return b.Backend.LabelNames(ctx, &r)
		}},
		{Name: "label names come in any order", Kills: []string{"L-1.sorted"}, names: names(func(_ *Backend, _ *backend.LabelNamesRequest, l []string) []string { return reversed(l) })},
		{Name: "the last label value is lost", Kills: []string{"L-4.values"}, values: values(func(_ *Backend, _ *backend.LabelValuesRequest, l []string) []string { return l[:max(0, len(l)-1)] })},
		{Name: "label values ignore matchers", Kills: []string{"L-2.values-match"}, values: func(b *Backend, ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
			r := *req
			r.Matchers = nil
			return b.Backend.LabelValues(ctx, &r)
		}},
		{Name: "label values come twice", Kills: []string{"L-4.sorted"}, values: values(func(_ *Backend, _ *backend.LabelValuesRequest, l []string) []string {
			return slices.Concat(l, l)
		})},
		{Name: "values of the empty name are nothing", Kills: []string{"L-5.empty-name"}, values: func(b *Backend, ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
			if req.Name == "" {
				return &backend.Labels{}, nil
			}
			return b.Backend.LabelValues(ctx, req)
		}},
		{Name: "external names are always there", Kills: []string{"L-1.external"}, names: names(func(b *Backend, _ *backend.LabelNamesRequest, l []string) []string {
			b.external.Range(func(x labels.Label) { l = append(l, x.Name) })
			slices.Sort(l)
			return slices.Compact(l)
		})},
		{Name: "the external value is there whatever matches", Kills: []string{"L-6.external-values"}, values: func(b *Backend, ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
			if v := b.external.Get(req.Name); v != "" {
				return &backend.Labels{Values: []string{v}}, nil
			}
			return b.Backend.LabelValues(ctx, req)
		}},
		{Name: "names of replica labels are shown", Kills: []string{"L-1.replica", "L-1.replica-stored"}, names: func(b *Backend, ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
			r := *req
			r.WithoutReplicaLabels = nil
			return b.Backend.LabelNames(ctx, &r)
		}},
		{Name: "values of replica labels are shown", Kills: []string{"L-7.replica"}, values: func(b *Backend, ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
			r := *req
			r.WithoutReplicaLabels = nil
			return b.Backend.LabelValues(ctx, &r)
		}},
		{Name: "label names ignore the limit", Kills: []string{"L-3.names"}, names: func(b *Backend, ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
			r := *req
			r.Limit = 0
			return b.Backend.LabelNames(ctx, &r)
		}},
		{Name: "label values are cut before they are sorted", Kills: []string{"L-3.values"}, values: func(b *Backend, ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
			r := *req
			r.Limit = 0
			l, err := b.Backend.LabelValues(ctx, &r)
			if err != nil || req.Limit == 0 || len(l.Values) <= req.Limit {
				return l, err
			}
			return &backend.Labels{Values: l.Values[len(l.Values)-req.Limit:]}, nil
		}},
		{Name: "label names ignore the time range", Kills: []string{"L-2.bounded"}, names: func(b *Backend, ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
			r := *req
			r.MinTime, r.MaxTime = math.MinInt64, math.MaxInt64
			return b.Backend.LabelNames(ctx, &r)
		}},
	}
}
