// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package corpus is the data that a backend is certified with: the odd cases of names,
// labels, values and times that stores get wrong, and generated series. It is a pure
// function of a few numbers, so that a store may have been loaded with it long ago by
// somebody else; a [Manifest] has the numbers.
package corpus

import (
	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend/shaping"
)

// Part is a portion of the corpus that a store may be unable to hold.
type Part string

// The parts.
const (
	// Base: floats with ordinary names, labels and values; every store has to hold it.
	Base Part = "base"
	// Names: no metric name, colons, dots, labels called time, value, name, …
	Names Part = "names"
	// LabelText: label values with quotes, newlines, UTF-8, trailing backslash, …
	LabelText Part = "label-text"
	// Collisions: stored labels with the names of external and of replica labels.
	Collisions Part = "collisions"
	// Values: NaN, infinities, negative zero, extremes.
	Values Part = "values"
	// Stale: stale markers.
	Stale Part = "stale"
	// Times: neighbours 1 ms apart, single samples, gaps, edges of blocks.
	Times Part = "times"
	// Wide: label values of 70 kB, several megabytes of them.
	Wide Part = "wide"
	// Histograms: native histograms, integer and float.
	Histograms Part = "histograms"
	// Downsampled: series of which there are windows of 5 minutes and of an hour.
	Downsampled Part = "downsampled"
	// Exemplars and Metadata are not series.
	Exemplars Part = "exemplars"
	Metadata  Part = "metadata"
)

// Series is a stored series: external labels are not on it.
type Series struct {
	Part   Part
	Labels labels.Labels
	// Samples in strictly ascending order of time.
	Samples []shaping.Sample
}

// Exemplar belongs to the stored series with the labels Series.
type Exemplar struct {
	Series labels.Labels
	Labels labels.Labels
	Value  float64
	Time   int64
}

// Metadata of a metric.
type MetricMetadata struct{ Metric, Type, Help, Unit string }

// Window is one window of downsampled data: values of the raw samples in it.
type Window struct {
	// T is the time of the window's sample, ms.
	T                             int64
	Count, Sum, Min, Max, Counter float64
}

// Level is downsampled data of one series.
type Level struct {
	Labels labels.Labels
	// Resolution in ms: 300_000 or 3_600_000.
	Resolution int64
	Windows    []Window
}
