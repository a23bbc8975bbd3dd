// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/storepb"
)

// ReadRequest selects raw samples, for remote read.
type ReadRequest struct {
	// MinTime and MaxTime are in ms, both inclusive.
	MinTime, MaxTime int64
	Matchers         []*labels.Matcher
	Options
}

// ReadResult is a set of series that is being read. Finish must be called once,
// after the last use of Series; it returns what became of the request.
type ReadResult struct {
	Series storage.SeriesSet
	Finish func() (*report.Report, error)
}

// RulesResult holds rule groups, identical ones of several backends once.
type RulesResult struct {
	Groups []*storepb.RuleGroup
	Report *report.Report
}

// TargetsResult holds scrape targets.
type TargetsResult struct {
	Targets *storepb.TargetDiscovery
	Report  *report.Report
}

// MetadataResult holds metadata by name of metric.
type MetadataResult struct {
	Metadata map[string][]*storepb.Meta
	Report   *report.Report
}

// ExemplarsResult holds exemplars.
type ExemplarsResult struct {
	Exemplars []*storepb.ExemplarData
	Report    *report.Report
}

// StatisticsResult holds the head statistics of all backends that have some, by
// name of backend.
type StatisticsResult struct {
	Entries map[string]*storepb.TSDBStatisticsEntry
	Report  *report.Report
}
