// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"math"

	"github.com/prometheus/prometheus/model/labels"
)

// Aggregate is one of the per-window values that downsampled data holds.
type Aggregate uint8

// The aggregates, numbered as in the Thanos StoreAPI.
const (
	AggregateRaw Aggregate = iota
	AggregateCount
	AggregateSum
	AggregateMin
	AggregateMax
	AggregateCounter
)

// SeriesRequest asks for series. Its zero value asks for everything at time 0.
type SeriesRequest struct {
	// MinTime and MaxTime bound the samples asked for, both inclusive, in ms.
	MinTime, MaxTime int64
	// Matchers must all hold. Regular expressions are compiled already.
	Matchers []*labels.Matcher
	// SkipChunks asks for label sets only.
	SkipChunks bool
	// Limit is the most series wanted; 0 is no limit.
	Limit int
	// Shard, if not nil, selects a part of the series by hash.
	Shard *Shard
	// WithoutReplicaLabels are label names to remove from the result.
	WithoutReplicaLabels []string
	// MaxResolution is the coarsest downsampling window that will do, in ms; 0 is raw.
	MaxResolution int64
	// Aggregates are those wanted where a chunk is downsampled.
	Aggregates []Aggregate
	// Hints say what the series are for. They never change which samples are right.
	Hints Hints
	// BatchSize is the number of series wanted in a batch; 0 leaves it to the backend.
	BatchSize int
	// PartialAllowed says that an answer with NoticeMissing is of use to the caller;
	// without it a backend SHOULD fail instead as soon as something is missing.
	PartialAllowed bool
}

// Hints carry what the query engine knows about the use of a selection.
type Hints struct {
	// StepMillis is the query's step; 0 for an instant query.
	StepMillis int64
	// RangeMillis is the range of a matrix selector, 0 if there is none.
	RangeMillis int64
	// Func is the innermost function or aggregation around the selector.
	Func string
	// Grouping and By are those of the innermost aggregation.
	Grouping []string
	By       bool
}

// Shard selects the series whose hash over some labels, modulo Total, is Index.
type Shard struct {
	Index, Total int64
	// By: hash only Labels; otherwise hash all labels but those.
	By     bool
	Labels []string
}

// LabelNamesRequest asks for label names; see SeriesRequest for the fields.
type LabelNamesRequest struct {
	MinTime, MaxTime     int64
	Matchers             []*labels.Matcher
	WithoutReplicaLabels []string
	Limit                int
	PartialAllowed       bool
}

// LabelValuesRequest asks for the values of the label Name.
type LabelValuesRequest struct {
	Name                 string
	MinTime, MaxTime     int64
	Matchers             []*labels.Matcher
	WithoutReplicaLabels []string
	Limit                int
	PartialAllowed       bool
}

// Labels is a sorted list of label names or values.
type Labels struct {
	Values  []string
	Notices []Notice
}

// Info describes a backend.
type Info struct {
	// Component is what Thanos calls the type: sidecar, store, rule, receive,
	// query; anything else, or "", for a kind of its own.
	Component string
	// LabelSets are the external label sets of the data. None: cannot say.
	LabelSets []labels.Labels
	// MinTime and MaxTime bound the data, both inclusive, in ms.
	MinTime, MaxTime int64
	// Ranges, if known, bound the data per external label set.
	Ranges []LabelSetRange
	// Capabilities are claims; the zero value claims nothing.
	Capabilities Capabilities
	// Version is the backend's own version, for display.
	Version string
}

// LabelSetRange is the time range of the data with one external label set.
type LabelSetRange struct {
	Labels           labels.Labels
	MinTime, MaxTime int64
}

// AllTime is an Info without bounds on time.
func AllTime() Info { return Info{MinTime: math.MinInt64, MaxTime: math.MaxInt64} }

// Capabilities say what a backend does beyond the least. The zero value is the
// least capable backend, and every caller copes with it.
type Capabilities struct {
	// Sharding: Shard is honoured. Unclaimed: the caller filters.
	Sharding bool
	// WithoutReplicaLabels: replica labels are removed and the result is in the
	// order of what remains. Unclaimed: the caller removes and re-sorts.
	WithoutReplicaLabels bool
	// SeriesLimit: Limit is honoured by Series, exactly. Unclaimed: the caller cuts.
	SeriesLimit bool
	// Downsampled: the backend may hold downsampled data.
	Downsampled bool
	// BoundedLabels: label names and values honour the time range, at least coarsely.
	BoundedLabels bool
	// NativeHistograms: native histogram chunks are kept.
	NativeHistograms bool
	// StaleMarkers: stale markers are kept bit for bit.
	StaleMarkers bool
	// Completeness: whatever is missing is said with a Notice (rule B-7).
	// Unclaimed: silence counts as complete, on the peer's word, and is marked so.
	Completeness bool

	// Which of the optional interfaces answer. They are here too, because a
	// remote peer says it at run time and a Go type cannot.
	Exemplars, Metadata, Rules, Targets, Statistics bool
}
