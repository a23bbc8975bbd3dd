// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package resolution decides how coarse the data of one selector may be, which
// aggregates of downsampled data it reads, and how far it looks back for a sample.
//
// Everything here is a pure function of the query, so that the same query always
// reads the same level, and each decision comes with its reason for the report.
// The rules are those of the Thanos querier.
package resolution

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/promweave/promweave/sdk/backend"
)

// The levels of downsampled data: the width of a window in ms.
const (
	Raw         int64 = 0
	FiveMinutes int64 = 5 * 60 * 1000
	OneHour     int64 = 60 * 60 * 1000
)

// Auto, as a requested resolution, derives it from the query's step.
const Auto int64 = -1

// Unlimited is the requested resolution that accepts every level; it is what a
// search for label sets uses.
const Unlimited int64 = math.MaxInt64

// Choice is what one selector asks backends for.
type Choice struct {
	// MaxResolution is the coarsest window that will do, in ms; 0 is raw data only.
	MaxResolution int64
	// Reason says why, for people.
	Reason string
	// Aggregates are those wanted of downsampled chunks.
	Aggregates []backend.Aggregate
}

// Choose decides for one selector. requested is the resolution that the user
// wants in ms, or Auto; rangeMillis is the range of the matrix selector or 0;
// stepMillis is the query's step, 0 for an instant query; fn is the innermost
// function or aggregation around the selector, "" if there is none.
func Choose(requested, rangeMillis, stepMillis int64, fn string) Choice {
	m, reason := MaxResolution(requested, rangeMillis, stepMillis, fn)
	return Choice{MaxResolution: m, Reason: reason, Aggregates: Aggregates(fn)}
}

// MaxResolution is the coarsest window in ms that will do, and why; see Choose
// for the parameters.
//
// Auto allows a fifth of the step, so that five windows go into each point, and
// raw data only for an instant query. Functions that need two samples in their
// range to give anything are held to half of it; without that they would return
// nothing at all on coarse data, and nobody would be told.
func MaxResolution(requested, rangeMillis, stepMillis int64, fn string) (int64, string) {
	var (
		m      int64
		reason string
	)
	switch {
	case requested == Auto && stepMillis > 0:
		m = stepMillis / 5
		reason = fmt.Sprintf("a fifth of the step of %s", millis(stepMillis))
	case requested == Auto:
		reason = "an instant query reads raw data unless told otherwise"
	case requested == Unlimited:
		m, reason = Unlimited, "any resolution will do"
	case requested <= 0:
		reason = "raw data asked for"
	default:
		m = requested
		reason = fmt.Sprintf("at most %s asked for", millis(requested))
	}
	if half := rangeMillis / 2; rangeMillis > 0 && m > half && needsTwo(fn) {
		m = half
		reason += fmt.Sprintf("; held to %s, as %s needs two samples in %s", millis(half), fn, millis(rangeMillis))
	}
	return m, reason
}

// needsTwo lists the functions that give nothing for fewer than two samples.
func needsTwo(fn string) bool {
	switch fn {
	case "rate", "irate", "increase", "delta", "idelta", "deriv",
		"predict_linear", "holt_winters", "double_exponential_smoothing":
		return true
	}
	return false
}

// Counter says whether fn reads a counter, and so the counter aggregate.
func Counter(fn string) bool {
	switch fn {
	case "increase", "rate", "irate", "resets", "xincrease", "xrate":
		return true
	}
	return false
}

// Aggregates are the aggregates of downsampled data from which fn, the innermost
// function or aggregation around a selector, is computed. Count and sum together
// stand for the average of a window. The slice is the caller's.
func Aggregates(fn string) []backend.Aggregate {
	switch {
	case fn == "min" || strings.HasPrefix(fn, "min_"):
		return []backend.Aggregate{backend.AggregateMin}
	case fn == "max" || strings.HasPrefix(fn, "max_"):
		return []backend.Aggregate{backend.AggregateMax}
	case fn == "count" || strings.HasPrefix(fn, "count_"):
		return []backend.Aggregate{backend.AggregateCount}
	// The aggregation sum adds up series at one time, and needs their values then;
	// sum_over_time adds up samples, and needs the sums of the windows.
	case strings.HasPrefix(fn, "sum_"):
		return []backend.Aggregate{backend.AggregateSum}
	case Counter(fn):
		return []backend.Aggregate{backend.AggregateCounter}
	}
	return []backend.Aggregate{backend.AggregateCount, backend.AggregateSum}
}

// Lookback is how far before an evaluation time a sample still counts, if data
// may be as coarse as maxResolution: at least the coarsest window that can occur,
// since samples lie that far apart then. base is the lookback for raw data. All in ms.
func Lookback(base, maxResolution int64) int64 {
	switch {
	case maxResolution > max(FiveMinutes, base):
		return max(OneHour, base)
	case maxResolution > max(Raw, base):
		return max(FiveMinutes, base)
	}
	return base
}

// millis prints a duration in ms for people.
func millis(ms int64) string {
	if ms > math.MaxInt64/int64(time.Millisecond) {
		return fmt.Sprintf("%d ms", ms)
	}
	return (time.Duration(ms) * time.Millisecond).String()
}
