// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package query answers requests: PromQL by one of two engines over the fan-out,
// and the questions about series, labels, rules, targets, metadata and exemplars.
// What serves it over HTTP or gRPC lives in other packages and sees only Service.
package query

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/prometheus/prometheus/util/stats"

	"github.com/promweave/promweave/core/dedup"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

// AutoResolution as MaxSourceResolution lets the step decide.
const AutoResolution int64 = -1

// Options are what a caller may say about how a request is to be answered. Get
// them from Service.DefaultOptions and change what the caller gave.
type Options struct {
	// Dedup removes the replica labels and merges replicas.
	Dedup bool
	// Algorithm is that of deduplication.
	Algorithm dedup.Algorithm
	// ReplicaLabels are the labels that tell replicas apart.
	ReplicaLabels []string
	// PartialResponse allows an answer although a best-effort backend is missing.
	// Without it that is an error that names the backend.
	PartialResponse bool
	// MaxSourceResolution is the coarsest downsampling window allowed, in ms.
	MaxSourceResolution int64
	// StoreMatch keeps only the backends of which one of the matcher lists holds on
	// the labels __address__, __name__ and __kind__ of the backend. Empty keeps all.
	StoreMatch [][]*labels.Matcher
	// Engine is "prometheus" or "thanos".
	Engine string
	// LookbackDelta, if not 0, replaces the configured one.
	LookbackDelta time.Duration
	// Timeout bounds the whole request, at most the configured one.
	Timeout time.Duration
	// PerStepStats asks the engine for samples per step.
	PerStepStats bool
	// Shard answers only a part of the series.
	Shard *backend.Shard
}

// Request is a PromQL query. An instant query has Start == End and no Step.
type Request struct {
	Query      string
	Start, End time.Time
	Step       time.Duration
	Options
}

// Result is the answer to a query.
type Result struct {
	Value parser.Value
	// Annotations are PromQL's own warnings and infos. They say nothing about
	// completeness.
	Annotations annotations.Annotations
	Statistics  *stats.Statistics
	Report      *report.Report

	release func()
}

// Close gives back Value's memory, and the slot and the bytes that the request is
// charged with; without it those come back at the request's deadline. After it Value
// must not be used.
func (r *Result) Close() {
	if r.release != nil {
		r.release()
		r.release = nil
	}
}

// MetaRequest asks for series, label names, or values of the label Name.
type MetaRequest struct {
	Name       string
	Start, End time.Time
	// Matchers are lists of matchers, of which one is to hold; none selects all.
	Matchers [][]*labels.Matcher
	Limit    int
	Options
}

// SeriesResult is the answer to a question for series.
type SeriesResult struct {
	Series []labels.Labels
	// Truncated says that Limit cut it.
	Truncated bool
	Report    *report.Report
}

// LabelsResult is the answer to a question for label names or values.
type LabelsResult struct {
	Values    []string
	Truncated bool
	Report    *report.Report
}

// Kinds of errors. Each maps to an error type and a status of the HTTP API.
var (
	ErrBadData     = errors.New("bad_data")
	ErrExecution   = errors.New("execution")
	ErrTimeout     = errors.New("timeout")
	ErrCanceled    = errors.New("canceled")
	ErrInternal    = errors.New("internal")
	ErrUnavailable = errors.New("unavailable")
	// ErrDenied: the caller may not have this. Often there is an *access.Denied in
	// the chain, which says more.
	ErrDenied = errors.New("forbidden")
)

// Error is a failed request.
type Error struct {
	// Kind is one of the kinds of this package.
	Kind error
	Err  error
	// Report says how far it came; nil if nothing had begun.
	Report *report.Report
}

// Error returns the text of the cause.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives both kind and cause.
func (e *Error) Unwrap() []error { return []error{e.Kind, e.Err} }

func badData(format string, args ...any) error {
	return &Error{Kind: ErrBadData, Err: fmt.Errorf(format, args...)}
}

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
