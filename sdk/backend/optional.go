// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"iter"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/storepb"
)

// The optional interfaces. A backend that implements one still says in its
// Capabilities whether it answers: a remote peer may serve some and not others.
// All of them add external labels to what they return, external ones winning,
// and return an error of kind ErrUnsupported where the capability is not claimed.
// Results are plain wire messages, because nothing computes with them.

// ExemplarsBackend returns exemplars.
type ExemplarsBackend interface {
	// Exemplars of the series that match any of the selectors, in [min, max] ms.
	Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []Notice, error)
}

// MetadataBackend returns type, help and unit of metrics.
type MetadataBackend interface {
	// MetricMetadata of one metric, or of all with an empty name; limit < 0 is none.
	MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []Notice, error)
}

// RulesBackend returns rule groups with their state.
type RulesBackend interface {
	Rules(ctx context.Context, req *storepb.RulesRequest) ([]*storepb.RuleGroup, []Notice, error)
}

// TargetsBackend returns scrape targets.
type TargetsBackend interface {
	Targets(ctx context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []Notice, error)
}

// StatisticsBackend returns what /api/v1/status/tsdb shows.
type StatisticsBackend interface {
	Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []Notice, error)
}

// Unimplemented may be embedded to satisfy Backend with calls that refuse. A
// backend that embeds it builds against later versions of this package.
type Unimplemented struct{}

var _ Backend = Unimplemented{}

// Info refuses.
func (Unimplemented) Info(context.Context) (Info, error) {
	return Info{}, Errorf(ErrUnsupported, "info is not supported")
}

// Series refuses.
func (Unimplemented) Series(context.Context, *SeriesRequest) iter.Seq2[*Batch, error] {
	return Fail(Errorf(ErrUnsupported, "series is not supported"))
}

// LabelNames refuses.
func (Unimplemented) LabelNames(context.Context, *LabelNamesRequest) (*Labels, error) {
	return nil, Errorf(ErrUnsupported, "label names are not supported")
}

// LabelValues refuses.
func (Unimplemented) LabelValues(context.Context, *LabelValuesRequest) (*Labels, error) {
	return nil, Errorf(ErrUnsupported, "label values are not supported")
}

// Fail is a sequence that only fails.
func Fail(err error) iter.Seq2[*Batch, error] {
	return func(yield func(*Batch, error) bool) { yield(nil, err) }
}

// None is a sequence without batches.
func None() iter.Seq2[*Batch, error] {
	return func(func(*Batch, error) bool) {}
}
