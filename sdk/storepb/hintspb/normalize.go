// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package hintspb

import "google.golang.org/protobuf/types/known/durationpb"

// Normalize fills the durations of the query statistics, which Thanos sends
// even when they are zero. Call it before packing the hints.
func (x *SeriesResponseHints) Normalize() {
	if s := x.QueryStats; s != nil {
		s.Normalize()
	}
}

// Normalize fills the durations; see [SeriesResponseHints.Normalize].
func (x *QueryStats) Normalize() {
	if x.GetAllDuration == nil {
		x.GetAllDuration = &durationpb.Duration{}
	}
	if x.MergeDuration == nil {
		x.MergeDuration = &durationpb.Duration{}
	}
}
