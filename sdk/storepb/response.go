// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storepb

import "google.golang.org/protobuf/types/known/anypb"

// NewSeriesResponse returns a frame with one series.
func NewSeriesResponse(s *Series) *SeriesResponse {
	return &SeriesResponse{Result: &SeriesResponse_Series{Series: s}}
}

// NewBatchResponse returns a frame with several series.
func NewBatchResponse(series []*Series) *SeriesResponse {
	return &SeriesResponse{Result: &SeriesResponse_Batch{Batch: &SeriesBatch{Series: series}}}
}

// NewWarningResponse returns a frame with a warning.
func NewWarningResponse(warning string) *SeriesResponse {
	return &SeriesResponse{Result: &SeriesResponse_Warning{Warning: warning}}
}

// NewHintsResponse returns a frame with hints.
func NewHintsResponse(hints *anypb.Any) *SeriesResponse {
	return &SeriesResponse{Result: &SeriesResponse_Hints{Hints: hints}}
}
