// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package report is what Promweave tells about one query: which backends were
// asked and which not and why, what they sent, what deduplication did, which
// limits were near, and how complete the answer is. The HTTP API, the command
// line, the console, tests and bug reports all read this one schema.
package report

import (
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// Version of the schema; raised when a field changes its meaning.
const Version = 1

// Report describes one request from beginning to end.
type Report struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	// Kind is instant, range, series, label_names, label_values, read, explain, or
	// the name of another call, such as rules; store_ is before those of StoreAPI.
	Kind  string    `json:"kind"`
	Query string    `json:"query,omitempty"`
	Start time.Time `json:"start,omitzero"`
	End   time.Time `json:"end,omitzero"`
	// StepSeconds is 0 for everything but a range query.
	StepSeconds float64 `json:"stepSeconds,omitempty"`
	// Engine is the one that ran the query, EngineFallback why it is not the one
	// that was asked for.
	Engine         string `json:"engine,omitempty"`
	EngineFallback string `json:"engineFallback,omitempty"`

	// Access is who asked and what they were granted; nil where nobody decides.
	Access *Access `json:"access,omitempty"`

	Completeness Completeness `json:"completeness"`
	// Selects has a row per selection of series that the query made.
	Selects []*Select  `json:"selects"`
	Limits  []LimitUse `json:"limits,omitempty"`

	StartedAt time.Time `json:"startedAt,omitzero"`
	// Seconds is the whole time that the request took, SelectSeconds that until the
	// last selection had all its series.
	Seconds       float64 `json:"seconds"`
	SelectSeconds float64 `json:"selectSeconds"`
}

// Select is one selection of series.
type Select struct {
	Matchers []string `json:"matchers"`
	MinTime  int64    `json:"minTime"`
	MaxTime  int64    `json:"maxTime"`
	Func     string   `json:"func,omitempty"`
	// MaxResolution is the coarsest window allowed, in ms, and why.
	MaxResolution    int64    `json:"maxResolution"`
	ResolutionReason string   `json:"resolutionReason,omitempty"`
	Aggregates       []string `json:"aggregates,omitempty"`

	// Backends has a row for every expected backend, asked or not.
	Backends []*Row `json:"backends"`
	Dedup    Dedup  `json:"dedup"`
}

// RowState says what became of one backend in one selection.
type RowState string

const (
	RowPruned    RowState = "pruned"    // not asked, and rightly so
	RowSkipped   RowState = "skipped"   // not asked although it should have been
	RowAnswered  RowState = "answered"  // asked, and the answer is whole
	RowPartial   RowState = "partial"   // asked, and part of the answer is missing
	RowFailed    RowState = "failed"    // asked, in vain
	RowCancelled RowState = "cancelled" // asked, and called off from here
	RowWouldAsk  RowState = "would_ask" // explain: it would be asked
)

// Row is one backend in one selection. Durations are in seconds from its start.
type Row struct {
	Backend  string   `json:"backend"`
	Kind     string   `json:"kind"`
	Required bool     `json:"required,omitempty"`
	State    RowState `json:"state"`
	Reason   Reason   `json:"reason,omitempty"`
	Detail   string   `json:"detail,omitempty"`
	// LabelSets and time bounds are those it was judged by.
	LabelSets []labels.Labels `json:"labelSets,omitempty"`
	MinTime   int64           `json:"minTime"`
	MaxTime   int64           `json:"maxTime"`

	MatchersSent []string `json:"matchersSent,omitempty"`
	// Compensated names the abilities that the backend does not claim and that
	// were done here instead.
	Compensated []string `json:"compensated,omitempty"`
	FirstByte   float64  `json:"firstByteSeconds"`
	Total       float64  `json:"totalSeconds"`
	Batches     int      `json:"batches"`
	Series      int      `json:"series"`
	Chunks      int      `json:"chunks"`
	Samples     int      `json:"samples"`
	Bytes       int      `json:"bytes"`
	Notices     []string `json:"notices,omitempty"`
	// Filters are those around the backend that did anything, in the order in which
	// they first did.
	Filters []FilterEffect `json:"filters,omitempty"`
}

// Access is what a request was granted.
type Access struct {
	Subject string   `json:"subject,omitempty"`
	Tenants []string `json:"tenants,omitempty"`
	// Enforced are the matchers that hold on all that the request sees.
	Enforced []string `json:"enforced,omitempty"`
	Admin    bool     `json:"admin,omitempty"`
	// Filters that decided, in order.
	Filters []string `json:"filters,omitempty"`
}

// FilterEffect is what a filter did to the answer of one backend.
type FilterEffect struct {
	Name string `json:"name"`
	// SeriesIn and SeriesOut count series before and after it.
	SeriesIn  int64 `json:"seriesIn"`
	SeriesOut int64 `json:"seriesOut"`
	// Withheld are matchers that were not sent to the backend but evaluated on what
	// came back.
	Withheld []string `json:"withheld,omitempty"`
	// Calls and Seconds are those spent in the filter.
	Calls   int64   `json:"calls"`
	Seconds float64 `json:"seconds"`
	// Note is for people.
	Note string `json:"note,omitempty"`
}

// Dedup is what deduplication did in one selection.
type Dedup struct {
	Enabled       bool     `json:"enabled"`
	Algorithm     string   `json:"algorithm,omitempty"`
	ReplicaLabels []string `json:"replicaLabels,omitempty"`
	// SeriesBefore counts series as the backends sent them, identical ones of
	// several backends once; SeriesAfter those that the engine saw.
	SeriesBefore int `json:"seriesBefore"`
	SeriesAfter  int `json:"seriesAfter"`
	// Samples counts, for series with several replicas, the samples that each gave,
	// by the values of the replica labels; Switches how often one replica took over
	// from another. A sample that several iterations saw counts once.
	Samples  map[string]int64 `json:"samples,omitempty"`
	Switches int64            `json:"switches"`
}

// LimitUse is a limit and how much of it the request took.
type LimitUse struct {
	Name  string `json:"name"`
	Used  int64  `json:"used"`
	Limit int64  `json:"limit"`
}
