// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

// everything has all optional interfaces and gives back what it was asked.
type everything struct {
	memory
	fail error
	ns   []backend.Notice
}

func (e *everything) Exemplars(_ context.Context, sel [][]*labels.Matcher, lo, hi int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	return []*storepb.ExemplarData{{Exemplars: []*storepb.Exemplar{{Ts: lo, Labels: &storepb.LabelSet{Labels: []*storepb.Label{{Name: "q", Value: FormatSelectors(sel)}}}}, {Ts: hi}}}}, e.ns, e.fail
}

func (e *everything) MetricMetadata(_ context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	return map[string][]*storepb.Meta{metric: {{Type: "counter", Help: string(rune('a' + limit))}}}, e.ns, e.fail
}

func (e *everything) Rules(_ context.Context, req *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	return []*storepb.RuleGroup{{Name: req.GetType().String()}, {Name: "2"}}, e.ns, e.fail
}

func (e *everything) Targets(_ context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	return &storepb.TargetDiscovery{ActiveTargets: []*storepb.ActiveTarget{{ScrapePool: state.String()}}}, e.ns, e.fail
}

func (e *everything) Statistics(_ context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	return &storepb.TSDBStatisticsEntry{HeadStatistics: &storepb.HeadStatistics{NumSeries: uint64(limit)}}, e.ns, e.fail
}

func TestOptionalInterfaces(t *testing.T) {
	e := &everything{}
	e.info.Capabilities = backend.Capabilities{Exemplars: true, Metadata: true, Rules: true, Targets: true, Statistics: true}
	c := through(t, e)
	info, err := c.Info(t.Context())
	if got := info.Capabilities; err != nil || !got.Exemplars || !got.Metadata || !got.Rules || !got.Targets || !got.Statistics {
		t.Errorf("capabilities %+v, %v", got, err)
	}
	sel := [][]*labels.Matcher{
		{labels.MustNewMatcher(labels.MatchEqual, "__name__", "up"), labels.MustNewMatcher(labels.MatchRegexp, "utf 8", `"x"|y`)},
		{labels.MustNewMatcher(labels.MatchNotEqual, "a", "")},
	}
	calls := map[string]func(backend.Backend) (any, []backend.Notice, error){
		"exemplars": func(b backend.Backend) (any, []backend.Notice, error) {
			v, ns, err := b.(backend.ExemplarsBackend).Exemplars(t.Context(), sel, 5, 7)
			for _, d := range v {
				d.Normalize()
			}
			return v, ns, err
		},
		"metadata": func(b backend.Backend) (any, []backend.Notice, error) {
			v, ns, err := b.(backend.MetadataBackend).MetricMetadata(t.Context(), "up", 3)
			return v, ns, err
		},
		"rules": func(b backend.Backend) (any, []backend.Notice, error) {
			v, ns, err := b.(backend.RulesBackend).Rules(t.Context(), &storepb.RulesRequest{Type: storepb.RulesRequest_ALERT})
			for _, g := range v {
				g.Normalize()
			}
			return v, ns, err
		},
		"targets": func(b backend.Backend) (any, []backend.Notice, error) {
			v, ns, err := b.(backend.TargetsBackend).Targets(t.Context(), storepb.TargetsRequest_DROPPED)
			if v != nil {
				v.Normalize()
			}
			return v, ns, err
		},
		"statistics": func(b backend.Backend) (any, []backend.Notice, error) {
			v, ns, err := b.(backend.StatisticsBackend).Statistics(t.Context(), 4)
			return v, ns, err
		},
	}
	for name, call := range calls {
		e.ns, e.fail = nil, nil
		want, _, _ := call(e)
		got, _, err := call(c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		e.ns = []backend.Notice{{Kind: backend.NoticeMissing, Text: "half of it"}}
		if _, ns, err := call(c); len(ns) != 1 && !errors.Is(err, backend.ErrUnavailable) {
			t.Errorf("%s: notices %v, %v", name, ns, err)
		}
		e.ns, e.fail = nil, backend.Errorf(backend.ErrDenied, "no")
		if _, _, err := call(c); !errors.Is(err, backend.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}

	plain := through(t, &memory{})
	for name, call := range calls {
		if _, _, err := call(plain); !errors.Is(err, backend.ErrUnsupported) {
			t.Errorf("%s of a backend without: %v", name, err)
		}
	}
}

func TestAddStatistics(t *testing.T) {
	stat := func(n string, v uint64) *storepb.Statistic { return &storepb.Statistic{Name: n, Value: v} }
	got := addStatistics([]*storepb.TSDBStatisticsEntry{
		{HeadStatistics: &storepb.HeadStatistics{NumSeries: 1, MinTime: 5, MaxTime: 6}, SeriesCountByMetricName: []*storepb.Statistic{stat("a", 1), stat("b", 2)}},
		{HeadStatistics: &storepb.HeadStatistics{NumSeries: 2, MinTime: 3, MaxTime: 4}, SeriesCountByMetricName: []*storepb.Statistic{stat("a", 5), stat("c", 1)}},
	}, 2)
	want := &storepb.TSDBStatisticsEntry{
		HeadStatistics:          &storepb.HeadStatistics{NumSeries: 3, MinTime: 3, MaxTime: 6},
		SeriesCountByMetricName: []*storepb.Statistic{stat("a", 6), stat("b", 2)},
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
