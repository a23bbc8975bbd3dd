// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storepb

import "google.golang.org/protobuf/types/known/timestamppb"

// The Normalize methods fill the fields that Thanos sends even when they have
// nothing to say. Go peers that decode into structs see no difference, but with
// them our bytes equal theirs. Call the method of the outermost message before
// sending; like any other change it must not run while somebody else reads the
// message.

// unsetTime is what Thanos sends for a time that was never set: the zero time
// of Go, year 1, which its HTTP API shows as such. An empty timestamp would come
// out as 1970.
const unsetTime = -62135596800

func orEmpty(s *LabelSet) *LabelSet {
	if s == nil {
		return &LabelSet{}
	}
	return s
}

func orUnset(t *timestamppb.Timestamp) *timestamppb.Timestamp {
	if t == nil {
		return &timestamppb.Timestamp{Seconds: unsetTime}
	}
	return t
}

// Normalize fills the fields of the group, if there is one.
func (x *RulesResponse) Normalize() {
	if g := x.GetGroup(); g != nil {
		g.Normalize()
	}
}

// Normalize fills last_evaluation and the fields of all rules.
func (x *RuleGroup) Normalize() {
	x.LastEvaluation = orUnset(x.LastEvaluation)
	for _, r := range x.Rules {
		if a := r.GetAlert(); a != nil {
			a.Normalize()
		}
		if rec := r.GetRecording(); rec != nil {
			rec.Normalize()
		}
	}
}

// Normalize fills labels and last_evaluation.
func (x *RecordingRule) Normalize() {
	x.Labels = orEmpty(x.Labels)
	x.LastEvaluation = orUnset(x.LastEvaluation)
}

// Normalize fills labels, annotations and last_evaluation, here and in the
// alerts.
func (x *Alert) Normalize() {
	x.Labels = orEmpty(x.Labels)
	x.Annotations = orEmpty(x.Annotations)
	x.LastEvaluation = orUnset(x.LastEvaluation)
	for _, a := range x.Alerts {
		a.Labels = orEmpty(a.Labels)
		a.Annotations = orEmpty(a.Annotations)
	}
}

// Normalize fills the label sets and the time of the last scrape of all
// targets.
func (x *TargetsResponse) Normalize() {
	if t := x.GetTargets(); t != nil {
		t.Normalize()
	}
}

// Normalize fills the label sets and the time of the last scrape of all
// targets.
func (x *TargetDiscovery) Normalize() {
	for _, t := range x.ActiveTargets {
		t.DiscoveredLabels = orEmpty(t.DiscoveredLabels)
		t.Labels = orEmpty(t.Labels)
		t.LastScrape = orUnset(t.LastScrape)
	}
	for _, t := range x.DroppedTargets {
		t.DiscoveredLabels = orEmpty(t.DiscoveredLabels)
	}
}

// Normalize fills the label sets of the data, if there is any.
func (x *ExemplarsResponse) Normalize() {
	if d := x.GetData(); d != nil {
		d.Normalize()
	}
}

// Normalize fills the label sets.
func (x *ExemplarData) Normalize() {
	x.SeriesLabels = orEmpty(x.SeriesLabels)
	for _, e := range x.Exemplars {
		e.Labels = orEmpty(e.Labels)
	}
}

// Normalize fills the head statistics of each tenant.
func (x *TSDBStatisticsResponse) Normalize() {
	if s := x.GetStatistics(); s != nil {
		s.Normalize()
	}
}

// Normalize fills the head statistics of each tenant.
func (x *TSDBStatistics) Normalize() {
	for _, e := range x.Statistics {
		if e.HeadStatistics == nil {
			e.HeadStatistics = &HeadStatistics{}
		}
	}
}
