// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout

import (
	"context"
	"errors"
	"iter"
	"math"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// Cut reduces what is known of a backend to what a grant's matchers let pass: label
// sets that contradict them are left out. It returns false if the backend has
// nothing else, or never said what it has.
func Cut(g *access.Grant, st membership.Status) (membership.Status, bool) {
	if !g.Scoped() {
		return st, true
	}
	if sight(g, &st) != shown {
		return st, false
	}
	if !Within(g, &st.Info) {
		// How old its oldest data are may be somebody else's matter.
		st.Info.MinTime, st.Info.MaxTime = math.MinInt64, math.MaxInt64
	}
	st.Info.LabelSets = cutSets(g, st.Info.LabelSets)
	var ranges []backend.LabelSetRange
	for _, r := range st.Info.Ranges {
		if firstContradiction(r.Labels, g.Enforce) < 0 {
			ranges = append(ranges, r)
		}
	}
	st.Info.Ranges = ranges
	return st, true
}

func cutSets(g *access.Grant, sets []labels.Labels) []labels.Labels {
	var out []labels.Labels
	for _, ls := range sets {
		if firstContradiction(ls, g.Enforce) < 0 {
			out = append(out, ls)
		}
	}
	return out
}

// Within says whether everything a backend has lies within a grant, by its own
// word: each of its label sets has all labels that are enforced, and matches.
func Within(g *access.Grant, info *backend.Info) bool {
	for _, ls := range info.LabelSets {
		for _, m := range g.Enforce {
			if !ls.Has(m.Name) || !m.Matches(ls.Get(m.Name)) {
				return false
			}
		}
	}
	return len(info.LabelSets) > 0 || !g.Scoped()
}

// Sights of a backend.
const (
	// shown: the caller may know that it is there.
	shown = iota
	// concealed: it never said what it has. Its share may be the caller's and counts
	// as missing, but its name may be that of somebody else.
	concealed
	// hidden: it has nothing that the caller may see.
	hidden
)

func sight(g *access.Grant, st *membership.Status) int {
	switch {
	case !g.Scoped():
		return shown
	case contradiction(st.Info.LabelSets, g.Enforce) != nil:
		return hidden
	case !st.Known:
		return concealed
	}
	return shown
}

// notShown stands for the name of a concealed backend.
const notShown = "(not shown)"

// neutral takes the place of what a backend says about itself.
func (s *Session) neutral() string {
	return "the log of the server has the details, under request " + s.RequestID
}

// log writes what a caller who is not the operator is not told.
func (a *ask) log(msg string, args ...any) {
	if !a.s.Grant.Admin {
		a.s.Logger.Warn(msg, append([]any{"request", a.s.RequestID, "backend", a.m.Name}, args...)...)
	}
}

// sights are those of all backends that not everybody is shown.
func (s *Session) sights() map[string]int {
	out := map[string]int{}
	for _, m := range s.View.Members {
		if x := sight(s.Grant, &m.Status); x != shown {
			out[m.Name] = x
		}
	}
	return out
}

// Seen is a report as its caller may see it: for an operator as it is, for others
// without the backends that they may not know of, and without words of backends,
// which may tell anything.
func (s *Session) Seen(rep *report.Report) *report.Report {
	if s.Grant.Admin {
		return rep
	}
	out := *rep
	out.Completeness = s.seen(rep.Completeness)
	out.Limits = limits.OwnUse(rep.Limits)
	sights := s.sights()
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Selects = make([]*report.Select, len(rep.Selects))
	for i, sel := range rep.Selects {
		x := *sel
		x.Backends = make([]*report.Row, 0, len(sel.Backends))
		for _, row := range sel.Backends {
			if sights[row.Backend] != hidden {
				x.Backends = append(x.Backends, s.seenRow(*row, sights[row.Backend]))
			}
		}
		out.Selects[i] = &x
	}
	return &out
}

func (s *Session) seenRow(row report.Row, sight int) *report.Row {
	if sight == concealed {
		row.Backend, row.Kind = notShown, ""
	}
	row.LabelSets = cutSets(s.Grant, row.LabelSets)
	switch {
	case row.Detail == "":
	case row.State != report.RowPruned:
		row.Detail = s.neutral()
	case row.Reason == report.ReasonTimeRange && s.Grant.Scoped():
		row.Detail = "it has nothing of the time asked for"
	}
	if len(row.Notices) > 0 {
		row.Notices = []string{s.neutral()}
	}
	row.Filters = slices.Clone(row.Filters)
	for i := range row.Filters {
		f := &row.Filters[i]
		if f.Note != "" {
			f.Note = s.neutral()
		}
		if s.Grant.Scoped() {
			f.SeriesIn = f.SeriesOut // what it took away may be others'
		}
	}
	return &row
}

// seen is a completeness as its caller may see it.
func (s *Session) seen(c report.Completeness) report.Completeness {
	if s.Grant.Admin {
		return c
	}
	sights := s.sights()
	list := func(in []report.Missing) (out []report.Missing) {
		for _, m := range in {
			if m = s.seenMissing(m, sights[m.Backend]); !slices.Contains(out, m) {
				out = append(out, m)
			}
		}
		return out
	}
	c.Missing, c.Covered = list(c.Missing), list(c.Covered)
	c.OnPeersWord = slices.DeleteFunc(slices.Clone(c.OnPeersWord), func(n string) bool { return sights[n] != shown })
	return c
}

func (s *Session) seenMissing(m report.Missing, sight int) report.Missing {
	if sight != shown {
		m.Backend = notShown
	}
	if m.Detail != "" {
		m.Detail = s.neutral()
	}
	return m
}

// SeenError is what a caller may know of why a request failed. Errors of the engines
// are made of what the caller may see; the others are taken apart here.
func (s *Session) SeenError(err error) error {
	if s.Grant.Admin || err == nil {
		return err
	}
	var (
		missing *MissingError
		limit   *limits.Exceeded
	)
	switch {
	case errors.As(err, &missing):
		kind := backend.ErrUnavailable
		switch {
		case errors.Is(missing.Err, context.DeadlineExceeded):
			kind = context.DeadlineExceeded
		case missing.Err != nil:
			kind = backend.Kind(missing.Err)
		}
		return &MissingError{
			Missing:  s.seenMissing(missing.Missing, s.sights()[missing.Missing.Backend]),
			Required: missing.Required, Err: kind,
		}
	case errors.As(err, &limit):
		return limit.Own()
	}
	return err
}

// verified checks every label set that a backend sends against the grant: matchers
// that it was sent prove nothing about what it returns.
func (s *Session) verified(a *ask, seq iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		for b, err := range seq {
			if err == nil {
				for i := range b.Len() {
					if ls := b.At(i).Labels; !s.Grant.Permits(ls) {
						s.foreign(a.m, ls.String())
						yield(nil, errForeign)
						return
					}
				}
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// errForeign does not say what was sent: it ends up in reports.
var errForeign = &protocolError{"S-6", "it sent what the matchers rule out that the caller's grant enforces"}

// foreign tells the operator which backend does not do what its filters rely on.
func (s *Session) foreign(m *membership.Member, what string) {
	s.Logger.Error("a backend sent what the caller must not see, its share of the answer is dropped", "request", s.RequestID,
		"backend", m.Name, "labels", what, "subject", s.Grant.Subject, "tenants", strings.Join(s.Grant.Tenants, ","))
}

// Foreign is the error of a call in which a backend sent, beside series, what the
// caller must not see. what is for the log.
func (s *Session) Foreign(m *membership.Member, what string) error {
	s.foreign(m, what)
	return errForeign
}

// LabelsCall asks one backend for label names or values.
type LabelsCall func(ctx context.Context, m *membership.Member, ms []*labels.Matcher, minTime, maxTime int64) (*backend.Labels, error)

// Labels asks for the names of labels, or the values of the label name if it is not
// empty, on series that q selects.
//
// Nothing in a list of names or values says of which series it is. A backend that
// does not heed matchers there would show everything to everybody. So a request that
// must not see everything gets them from the series themselves, unless the operator
// vouches for the backend (membership.Spec.TrustLabels) and all of the time that is
// asked for may be seen. can is that of Each.
func (s *Session) Labels(ctx context.Context, q Question, name string, sel *report.Select, can func(*membership.Member) bool, call LabelsCall) ([]Answer[[]string], error) {
	lo, hi := s.Grant.Clip(q.MinTime, q.MaxTime)
	return each(ctx, s, q, sel, can, func(ctx context.Context, a *ask) ([]string, []backend.Notice, error) {
		// Nor does a backend that answers for more time than it was asked for, as rule L-2
		// allows, keep from a caller what lies before what they may see.
		clipped := lo != q.MinTime || hi != q.MaxTime
		if s.Grant.Scoped() && !a.m.TrustLabels || clipped {
			values, err := s.labelsBySeries(ctx, a, &backend.SeriesRequest{MinTime: lo, MaxTime: hi, Matchers: q.Matchers, SkipChunks: true}, name)
			return values, nil, err
		}
		l, err := call(ctx, a.m, s.Grant.Enforcing(q.Matchers), max(lo, a.m.AskMin), min(hi, a.m.AskMax))
		if err != nil {
			return nil, nil, err
		}
		if err := CheckList(l.Values); err != nil {
			return nil, l.Notices, err
		}
		// Bytes are charged as they arrive; a list is one arrival.
		n := 0
		for _, v := range l.Values {
			n += len(v) + listOverhead
		}
		for _, m := range s.Grant.Enforce {
			for _, v := range l.Values {
				if m.Name == name && !m.Matches(v) {
					return nil, l.Notices, s.Foreign(a.m, v)
				}
			}
		}
		return l.Values, l.Notices, s.Limits.Add(0, 0, n)
	})
}

// listOverhead is what a string costs beside its bytes.
const listOverhead = 16

func (s *Session) labelsBySeries(ctx context.Context, a *ask, req *backend.SeriesRequest, name string) ([]string, error) {
	sent, compensate := s.adapt(a, req, false)
	s.mu.Lock()
	a.row.Compensated = append(a.row.Compensated, "labels_by_series")
	s.mu.Unlock()
	var (
		chk  checker
		seen = map[string]bool{}
		out  []string
	)
	for b, err := range compensate(a.m.Backend.Series(ctx, sent)) {
		if err != nil {
			return nil, err
		}
		if err := s.arrived(a, b); err != nil {
			return nil, err
		}
		fresh := 0
		take := func(v string) {
			if v != "" && !seen[v] {
				v = strings.Clone(v) // or it would keep the whole label set
				seen[v] = true
				out = append(out, v)
				fresh += len(v) + listOverhead
			}
		}
		for i := range b.Len() {
			x := b.At(i)
			if err := chk.check(x); err != nil {
				return nil, err
			}
			if name != "" {
				take(x.Labels.Get(name))
				continue
			}
			x.Labels.Range(func(l labels.Label) { take(l.Name) })
		}
		s.Limits.Passed(b.Bytes())
		if err := s.Limits.Add(0, 0, fresh); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return shaping.SortedUnique(out, 0), nil
}
