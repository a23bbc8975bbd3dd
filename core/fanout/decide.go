// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout

import (
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
)

// Question is what decides whether a backend has to be asked.
type Question struct {
	MinTime, MaxTime int64
	Matchers         []*labels.Matcher
	// StoreMatch: see query.Options.
	StoreMatch [][]*labels.Matcher
	// Enforce are the matchers of the caller's grant, which hold on all that is
	// selected, beside Matchers.
	Enforce []*labels.Matcher

	// all are Matchers and Enforce. They are judged together: that one label set
	// meets these and another one those makes no backend worth asking.
	all []*labels.Matcher
	// outside: nothing of the range is visible to the caller.
	outside bool
}

// Decide says whether a member is to be asked. State is RowWouldAsk if so,
// RowPruned if it rightly is not, and RowSkipped if it should be but cannot be.
// Whether it could hold data is judged before whether it can be reached: a store
// that is down, but has nothing to say, makes no answer partial.
func Decide(m *membership.Member, q Question) (report.RowState, report.Reason, string) {
	return newDecider(q).decide(m)
}

func newDecider(q Question) *decider {
	q.all = q.Matchers
	if len(q.Enforce) > 0 {
		q.all = slices.Concat(q.Matchers, q.Enforce)
	}
	return &decider{Question: q}
}

// decider decides about many members. A store that is ruled out should cost next
// to nothing, so that texts are made once for all of which they are true.
type decider struct {
	Question
	texts map[*labels.Matcher]string
	asked string
}

func (q *decider) decide(m *membership.Member) (report.RowState, report.Reason, string) {
	if contradiction(m.Info.LabelSets, q.Enforce) != nil {
		// Before all else, so that whatever the caller tries with names, addresses and
		// times, it is as if the backend were not there.
		return report.RowPruned, report.ReasonTenantPolicy, "the caller may see none of its external label sets"
	}
	if q.outside {
		return report.RowPruned, report.ReasonTimeRange, "the caller may see nothing of the range asked for"
	}
	// Of one that never said what it has, a caller who must not see everything is not
	// told the name (see sight): then no selector may find it out either.
	if (m.Known || len(q.Enforce) == 0) && !storeMatches(m, q.StoreMatch) {
		return report.RowPruned, report.ReasonStoreMatch, "no storeMatch[] selector holds on " + m.Address
	}
	if q.MaxTime < m.Info.MinTime || q.MinTime > m.Info.MaxTime {
		return report.RowPruned, report.ReasonTimeRange, q.askedFor() + formatTime(m.Info.MinTime) + " to " + formatTime(m.Info.MaxTime)
	}
	if bad := contradiction(m.Info.LabelSets, q.all); bad != nil {
		return report.RowPruned, report.ReasonExternalLabels, q.unmet(bad)
	}
	switch {
	case m.Gone != "":
		return report.RowSkipped, report.ReasonGone, m.Gone
	case !m.Healthy && m.LastError == "":
		// Not looked at yet, or not since discovery found it again: nothing speaks
		// against it, and asking is the best there is.
		return report.RowWouldAsk, "", ""
	case !m.Healthy:
		return report.RowSkipped, report.ReasonUnhealthy, m.LastError
	}
	return report.RowWouldAsk, "", ""
}

func (q *decider) unmet(m *labels.Matcher) string {
	text, ok := q.texts[m]
	if !ok {
		text = "none of its external label sets meets " + m.String()
		if q.texts == nil {
			q.texts = map[*labels.Matcher]string{}
		}
		q.texts[m] = text
	}
	return text
}

func (q *decider) askedFor() string {
	if q.asked == "" {
		q.asked = fmt.Sprintf("asked for %s to %s, it has ", formatTime(q.MinTime), formatTime(q.MaxTime))
	}
	return q.asked
}

func formatTime(ms int64) string {
	const farthest = 253402300799999 // end of year 9999
	switch {
	case ms < -62135596800000:
		return "the beginning"
	case ms > farthest:
		return "the end"
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}

// contradiction returns nil if one of the sets contradicts no matcher, or if
// there are none; otherwise a matcher that fails on the set which came closest.
// A matcher on a name that a set lacks is neutral: series may have that label.
func contradiction(sets []labels.Labels, ms []*labels.Matcher) *labels.Matcher {
	var worst *labels.Matcher
	best := -1
	for _, set := range sets {
		i := firstContradiction(set, ms)
		if i < 0 {
			return nil
		}
		if i > best {
			best, worst = i, ms[i]
		}
	}
	return worst
}

func firstContradiction(set labels.Labels, ms []*labels.Matcher) int {
	for i, m := range ms {
		if v := set.Get(m.Name); v != "" && !m.Matches(v) {
			return i
		}
	}
	return -1
}

func storeMatches(m *membership.Member, selectors [][]*labels.Matcher) bool {
	if len(selectors) == 0 {
		return true
	}
next:
	for _, sel := range selectors {
		for _, x := range sel {
			var v string
			switch x.Name {
			case "__address__":
				v = m.Address
			case "__name__":
				v = m.Name
			case "__kind__":
				v = m.Kind
			default:
				continue // as in Thanos: other names are ignored
			}
			if !x.Matches(v) {
				continue next
			}
		}
		return true
	}
	return false
}
