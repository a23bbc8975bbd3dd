// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package teststore is the store backend that the tests of carriers use: generated
// series of every kind, all optional calls, and on demand every kind of fault.
package teststore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/store"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/storepb"
)

// The texts of its errors, for tests to look for.
const (
	PanicText = "the store panics as it was told to"
	ErrorText = "the store fails as it was told to"
)

// Config is its configuration.
type Config struct {
	// Series is how many there are, Samples how many each has, one per second from time 0.
	Series  int `json:"series"`
	Samples int `json:"samples"`
	// Batch is the number of series in a batch, 100 if absent.
	Batch int `json:"batch"`
	// Cluster is the value of the external label cluster.
	Cluster string `json:"cluster"`
	// Notice and Missing are texts of notices.
	Notice  string `json:"notice"`
	Missing string `json:"missing"`
	// Fault is panic, exit, block (until the context is done) or a word for a kind of
	// error; In is info, series, names, values or exemplars.
	Fault string `json:"fault"`
	In    string `json:"in"`
	// After is the number of series that come before the fault.
	After int `json:"after"`
}

// New returns the specification of the backend.
func New() store.Spec { return spec{} }

type spec struct{}

func (spec) Describe() filter.Description {
	return filter.Description{Name: "teststore", Version: "1.0.0", Summary: "The store that the tests of carriers use.", ConfigSchema: `{"type":"object"}`}
}

func (spec) Configure(c *filter.Config) (backend.Backend, error) {
	s := &generated{Config: Config{Series: 10, Samples: 10, Batch: 100, Cluster: "test"}}
	dec := json.NewDecoder(bytes.NewReader(c.JSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s.Config); err != nil {
		return nil, err
	}
	if s.Config.Series < 0 || s.Config.Series > 1_000_000 {
		return nil, fmt.Errorf("series: %d is not between 0 and 1000000", s.Config.Series)
	}
	s.external = labels.FromStrings("cluster", s.Cluster)
	for i := range s.Config.Series {
		s.order = append(s.order, i)
		s.stored = append(s.stored, labelsOf(i))
	}
	slices.SortFunc(s.order, func(a, b int) int { return labels.Compare(s.stored[a], s.stored[b]) })
	return s, nil
}

type generated struct {
	Config
	external labels.Labels
	// stored are the label sets of all series, order their order.
	stored []labels.Labels
	order  []int
}

// happen lets the fault happen if this is its place, unless the caller is gone.
func (s *generated) happen(ctx context.Context, in string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.In != in {
		return nil
	}
	switch s.Fault {
	case "":
		return nil
	case "panic":
		panic(PanicText)
	case "exit":
		os.Exit(3)
	case "block":
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return backend.Errorf(wire.Kind(s.Fault), "%s", ErrorText)
}

func (s *generated) notices() []backend.Notice {
	var out []backend.Notice
	if s.Notice != "" {
		out = append(out, backend.Notice{Text: s.Notice})
	}
	if s.Missing != "" {
		out = append(out, backend.Notice{Kind: backend.NoticeMissing, Text: s.Missing})
	}
	return out
}

func (s *generated) Info(ctx context.Context) (backend.Info, error) {
	if err := s.happen(ctx, "info"); err != nil {
		return backend.Info{}, err
	}
	return backend.Info{
		Component: "teststore", Version: "1.0.0", LabelSets: []labels.Labels{s.external},
		MinTime: 0, MaxTime: int64(s.Samples) * 1000,
		Ranges: []backend.LabelSetRange{{Labels: s.external, MinTime: 0, MaxTime: int64(s.Samples) * 1000}},
		Capabilities: backend.Capabilities{
			Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true, Downsampled: true, NativeHistograms: true,
			StaleMarkers: true, Completeness: true, Exemplars: true, Metadata: true, Rules: true, Targets: true, Statistics: true,
		},
	}, nil
}

// labelsOf are the stored labels of series i.
func labelsOf(i int) labels.Labels {
	if i%3 == 0 {
		return labels.FromStrings("__name__", fmt.Sprintf("metric_%06d", i/30), "pod", fmt.Sprintf("pod-%06d", i))
	}
	return labels.FromStrings("__name__", fmt.Sprintf("metric_%06d", i/30), "instance", fmt.Sprintf("host-%03d:9100", i%100),
		"job", "näme \"quoted\"", "mode", strings.Repeat("x", 1+i%7), "pod", fmt.Sprintf("pod-%06d", i))
}

// chunksOf are the chunks of series i: floats, histograms, float histograms, or
// downsampled, in turn.
func (s *generated) chunksOf(i int, req *backend.SeriesRequest) ([]backend.Chunk, error) {
	samples := make([]shaping.Sample, s.Samples)
	for k := range samples {
		samples[k] = shaping.Sample{T: int64(k) * 1000, F: float64(i*1000 + k*(k%5))}
		h := &histogram.Histogram{
			Schema: 1, Count: uint64(10 + k), Sum: float64(i + k), ZeroThreshold: 0.001,
			PositiveSpans: []histogram.Span{{Offset: int32(i % 3), Length: 2}}, PositiveBuckets: []int64{10, int64(k) - 10},
		}
		switch i % 4 {
		case 1:
			samples[k].H = h
		case 2:
			samples[k].FH = h.ToFloat(nil)
		}
	}
	chunks, err := shaping.EncodeSamples(samples)
	if err != nil || i%4 != 3 || req.MaxResolution < 1000 {
		return chunks, err
	}
	for k := range chunks {
		e := chunks[k].Raw
		a := &backend.AggregateChunks{}
		for _, want := range req.Aggregates {
			switch want {
			case backend.AggregateCount:
				a.Count = e
			case backend.AggregateSum:
				a.Sum = e
			case backend.AggregateMin:
				a.Min = e
			case backend.AggregateMax:
				a.Max = e
			case backend.AggregateCounter:
				a.Counter = e
			}
		}
		chunks[k].Raw, chunks[k].Aggregates = backend.Encoded{}, a
	}
	return chunks, nil
}

// Series implements backend.Backend.
func (s *generated) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	rest, ok := shaping.SplitMatchers(s.external, req.Matchers)
	stored := func(yield func(*backend.Batch, error) bool) {
		if n := s.notices(); len(n) > 0 && !yield(backend.NewNotices(n...), nil) {
			return
		}
		b := backend.NewBatch(s.Batch)
		for i := 0; ok && i <= s.Config.Series; i++ {
			if i == min(s.After, s.Config.Series) && s.In == "series" {
				if b.Len() > 0 && !yield(b, nil) {
					return
				}
				b = backend.NewBatch(s.Batch)
				if err := s.happen(ctx, "series"); err != nil {
					yield(nil, err)
					return
				}
			}
			if err := ctx.Err(); err != nil {
				yield(nil, context.Cause(ctx))
				return
			}
			if i == s.Config.Series {
				break
			}
			id := s.order[i]
			ls := s.stored[id]
			if !shaping.Matches(ls, rest) || req.MaxTime < 0 || req.MinTime >= int64(s.Samples)*1000 || req.MinTime > req.MaxTime {
				continue
			}
			series := backend.Series{Labels: ls}
			if !req.SkipChunks {
				var err error
				if series.Chunks, err = s.chunksOf(id, req); err != nil {
					yield(nil, err)
					return
				}
			}
			if b.Append(series); b.Len() >= s.Batch {
				if !yield(b, nil) {
					return
				}
				b = backend.NewBatch(s.Batch)
			}
		}
		if b.Len() > 0 {
			yield(b, nil)
		}
	}
	return shaping.Apply(req, s.external, stored)
}

func (s *generated) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	if err := s.happen(ctx, "names"); err != nil {
		return nil, err
	}
	out, err := shaping.LabelNames(s.external, req, func(rest []*labels.Matcher) ([]string, error) {
		var names []string
		for _, ls := range s.stored {
			if shaping.Matches(ls, rest) {
				ls.Range(func(l labels.Label) { names = append(names, l.Name) })
			}
		}
		return names, nil
	})
	if err == nil {
		out.Notices = append(out.Notices, s.notices()...)
	}
	return out, err
}

func (s *generated) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if err := s.happen(ctx, "values"); err != nil {
		return nil, err
	}
	return shaping.LabelValues(s.external, req, func(rest []*labels.Matcher) ([]string, error) {
		var values []string
		for _, ls := range s.stored {
			if shaping.Matches(ls, rest) && ls.Has(req.Name) {
				values = append(values, ls.Get(req.Name))
			}
		}
		return values, nil
	}, func(rest []*labels.Matcher) (bool, error) {
		return slices.ContainsFunc(s.stored, func(ls labels.Labels) bool { return shaping.Matches(ls, rest) }), nil
	})
}

func (s *generated) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	if err := s.happen(ctx, "exemplars"); err != nil {
		return nil, nil, err
	}
	return []*storepb.ExemplarData{{
		SeriesLabels: &storepb.LabelSet{Labels: []*storepb.Label{{Name: "cluster", Value: s.Cluster}, {Name: "query", Value: fmt.Sprint(selectors)}}},
		Exemplars:    []*storepb.Exemplar{{Value: 1.5, Ts: minTime}, {Value: 2.5, Ts: maxTime}},
	}}, nil, nil
}

func (s *generated) MetricMetadata(_ context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	return map[string][]*storepb.Meta{"metric_000000": {{Type: "counter", Help: fmt.Sprintf("asked for %q, %d", metric, limit), Unit: s.Cluster}}}, nil, nil
}

func (s *generated) Rules(context.Context, *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	return []*storepb.RuleGroup{{Name: "group", File: s.Cluster, Interval: 30}}, nil, nil
}

func (s *generated) Targets(context.Context, storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	return &storepb.TargetDiscovery{ActiveTargets: []*storepb.ActiveTarget{{ScrapePool: s.Cluster, ScrapeUrl: "http://localhost/"}}}, nil, nil
}

func (s *generated) Statistics(context.Context, int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	return &storepb.TSDBStatisticsEntry{HeadStatistics: &storepb.HeadStatistics{NumSeries: uint64(s.Config.Series)}}, nil, nil
}
