// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

func checkRange(start, end time.Time) error {
	if end.Before(start) {
		return badData("end %s is before start %s", end.Format(time.RFC3339Nano), start.Format(time.RFC3339Nano))
	}
	return nil
}

func (r *request) describe(req *MetaRequest) {
	r.report.Start, r.report.End = req.Start, req.End
	for i, ms := range req.Matchers {
		if i > 0 {
			r.report.Query += " or "
		}
		r.report.Query += fmt.Sprint(ms)
	}
}

// questions returns the matcher lists to ask for; one that selects all if there
// are none.
func questions(lists [][]*labels.Matcher) [][]*labels.Matcher {
	if len(lists) == 0 {
		return [][]*labels.Matcher{nil}
	}
	return lists
}

func (req *MetaRequest) check() error {
	if n := len(req.Matchers); n > maxSelectors {
		return badData("%d selectors, and at most %d are allowed; select by one regular expression", n, maxSelectors)
	}
	return checkRange(req.Start, req.End)
}

func selectRow(ms []*labels.Matcher, minTime, maxTime int64) *report.Select {
	sel := &report.Select{MinTime: minTime, MaxTime: maxTime}
	for _, m := range ms {
		sel.Matchers = append(sel.Matchers, m.String())
	}
	return sel
}

// Series returns the label sets that match one of the matcher lists, sorted, each
// once; with Dedup without replica labels.
func (s *Service) Series(ctx context.Context, req *MetaRequest) (*SeriesResult, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	ctx, r, err := s.begin(ctx, req.ask("series"), req.Options)
	if err != nil {
		return nil, err
	}
	defer r.end()
	r.describe(req)
	var replicaLabels []string
	if req.Dedup {
		replicaLabels = req.ReplicaLabels
	}
	var out []labels.Labels
	for _, ms := range questions(req.Matchers) {
		q := &backend.SeriesRequest{MinTime: req.Start.UnixMilli(), MaxTime: req.End.UnixMilli(), Matchers: ms, SkipChunks: true}
		if req.Limit > 0 && len(replicaLabels) == 0 {
			// One more tells whether something was cut. With replicas the number that
			// is left after them is not known before.
			q.Limit = req.Limit + 1
		}
		sel, err := r.session.Collect(ctx, q, replicaLabels, selectRow(ms, q.MinTime, q.MaxTime))
		if err != nil {
			return nil, r.fail(ctx, err)
		}
		for i := range sel.Series {
			out = append(out, sel.Series[i].Labels)
		}
	}
	if len(req.Matchers) > 1 {
		slices.SortFunc(out, labels.Compare)
		out = slices.CompactFunc(out, labels.Equal)
	}
	res := &SeriesResult{Series: out, Report: r.finish()}
	if req.Limit > 0 && len(out) > req.Limit {
		res.Series, res.Truncated = out[:req.Limit], true
	}
	return res, nil
}

// hidden are the labels that the answer is not to show.
func (req *MetaRequest) hidden() []string {
	if !req.Dedup {
		return nil
	}
	return req.ReplicaLabels
}

// LabelNames returns the names of labels on series that match one of the lists.
func (s *Service) LabelNames(ctx context.Context, req *MetaRequest) (*LabelsResult, error) {
	return s.labels(ctx, "label_names", req, func(ctx context.Context, m *membership.Member, ms []*labels.Matcher, minTime, maxTime int64) (*backend.Labels, error) {
		return m.Backend.LabelNames(ctx, &backend.LabelNamesRequest{
			MinTime: minTime, MaxTime: maxTime, Matchers: ms, Limit: req.askFor(), PartialAllowed: req.PartialResponse,
			WithoutReplicaLabels: req.hidden(),
		})
	})
}

// LabelValues returns the values of req.Name on series that match one of the lists.
func (s *Service) LabelValues(ctx context.Context, req *MetaRequest) (*LabelsResult, error) {
	if req.Name == "" {
		return nil, badData("the name of the label is empty")
	}
	return s.labels(ctx, "label_values", req, func(ctx context.Context, m *membership.Member, ms []*labels.Matcher, minTime, maxTime int64) (*backend.Labels, error) {
		return m.Backend.LabelValues(ctx, &backend.LabelValuesRequest{
			Name: req.Name, MinTime: minTime, MaxTime: maxTime, Matchers: ms, Limit: req.askFor(), PartialAllowed: req.PartialResponse,
			WithoutReplicaLabels: req.hidden(),
		})
	})
}

// askFor is how many names or values to ask each backend for; 0 is all.
func (req *MetaRequest) askFor() int {
	if req.Limit <= 0 {
		return 0
	}
	// One more tells whether something was cut; and replica labels may be among
	// what a backend returns although it was told to leave them out.
	return req.Limit + 1 + len(req.hidden())
}

func (s *Service) labels(ctx context.Context, kind string, req *MetaRequest, call fanout.LabelsCall) (*LabelsResult, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	ctx, r, err := s.begin(ctx, req.ask(kind), req.Options)
	if err != nil {
		return nil, err
	}
	defer r.end()
	if !slices.Contains(req.ReplicaLabels, req.Name) {
		// What a missing replica would have told, another one tells, also where
		// replicas are shown.
		r.session.ReplicaLabels = req.ReplicaLabels
	}
	r.describe(req)
	r.report.Query = req.Name + r.report.Query
	var all []string
	for _, ms := range questions(req.Matchers) {
		values, err := r.labelsOf(ctx, req.Name, ms, req.Start.UnixMilli(), req.End.UnixMilli(), call)
		if err != nil {
			return nil, r.fail(ctx, err)
		}
		all = append(all, values...)
	}
	if req.Name == "" {
		all = slices.DeleteFunc(all, func(n string) bool { return slices.Contains(req.hidden(), n) })
	} else if slices.Contains(req.hidden(), req.Name) {
		all = nil
	}
	res := &LabelsResult{Values: shaping.SortedUnique(all, 0), Report: r.finish()}
	if req.Limit > 0 && len(res.Values) > req.Limit {
		res.Values, res.Truncated = res.Values[:req.Limit], true
	}
	return res, nil
}

func (r *request) labelsOf(ctx context.Context, name string, ms []*labels.Matcher, minTime, maxTime int64, call fanout.LabelsCall) ([]string, error) {
	answers, err := r.session.Labels(ctx, fanout.Question{MinTime: minTime, MaxTime: maxTime, Matchers: ms}, name, selectRow(ms, minTime, maxTime), nil, call)
	var out []string
	for _, a := range answers {
		out = append(out, a.Value...)
	}
	return out, err
}

// Read selects raw samples, deduplicated as a query would see them.
func (s *Service) Read(ctx context.Context, req *ReadRequest) (*ReadResult, error) {
	ctx, r, err := s.begin(ctx, &access.Ask{
		Kind: "read", Query: fmt.Sprint(req.Matchers), Selectors: [][]*labels.Matcher{req.Matchers}, Start: req.MinTime, End: req.MaxTime,
	}, req.Options)
	if err != nil {
		return nil, err
	}
	r.report.Query = fmt.Sprint(req.Matchers)
	r.report.Start, r.report.End = time.UnixMilli(req.MinTime).UTC(), time.UnixMilli(req.MaxTime).UTC()
	q := &querier{queryable: &queryable{r: r, maxResolution: max(0, req.MaxSourceResolution)}, minTime: req.MinTime, maxTime: req.MaxTime}
	set := q.Select(ctx, true, nil, req.Matchers...)
	if err := set.Err(); err != nil { // waits for the selection
		_ = q.Close()
		defer r.end()
		return nil, r.fail(ctx, err)
	}
	finish := func() (*report.Report, error) {
		defer r.end()
		_ = q.Close()
		if err := r.session.Failure(); err != nil {
			return nil, r.fail(ctx, err)
		}
		r.evaluated()
		return r.finish(), nil
	}
	return &ReadResult{Series: set, Finish: finish}, nil
}

var _ storage.Queryable = (*queryable)(nil)

// Queryable reads the backends as one storage, for embedding an engine of one's
// own. Each Querier is one request and ends with its Close; o says how it is
// answered: without o.PartialResponse, what is missing fails the Select. A gate is
// asked on behalf of nobody.
func (s *Service) Queryable(o Options) storage.Queryable {
	return storage.QueryableFunc(func(minTime, maxTime int64) (storage.Querier, error) {
		_, r, err := s.begin(context.Background(), &access.Ask{Kind: "embedded", Start: minTime, End: maxTime}, o)
		if err != nil {
			return nil, err
		}
		q := &querier{queryable: &queryable{r: r, maxResolution: max(0, o.MaxSourceResolution), strict: !o.PartialResponse}, minTime: minTime, maxTime: maxTime}
		return &embedded{q}, nil
	})
}

// embedded is a querier that is a request by itself.
type embedded struct{ *querier }

// Close ends the request.
func (e *embedded) Close() error {
	err := e.querier.Close()
	e.r.finish()
	e.r.end()
	return err
}
