// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/util/stats"

	"github.com/promweave/promweave/core/httpapi/promjson"
	"github.com/promweave/promweave/core/query"
)

const truncated = "results truncated due to limit"

// maxAnnotations bounds PromQL's own warnings, and as many infos, in an answer.
const maxAnnotations = 10

func (s *Server) instant(c *call) (*answer, error) {
	req, err := s.instantRequest(c)
	if err != nil {
		return nil, err
	}
	limit, err := c.form.limit("limit")
	if err != nil {
		return nil, err
	}
	res, err := s.q.Instant(c.ctx, req)
	if err != nil {
		return nil, err
	}
	return queryAnswer(c, req, res, limit), nil
}

func (s *Server) rangeQuery(c *call) (*answer, error) {
	req, err := s.rangeRequest(c)
	if err != nil {
		return nil, err
	}
	limit, err := c.form.limit("limit")
	if err != nil {
		return nil, err
	}
	res, err := s.q.Range(c.ctx, req)
	if err != nil {
		return nil, err
	}
	return queryAnswer(c, req, res, limit), nil
}

// explain says what a query would do. It is a range query if it has a start, an
// end or a step.
func (s *Server) explain(c *call) (*answer, error) {
	build := s.instantRequest
	if c.form.has("start") || c.form.has("end") || c.form.has("step") {
		build = s.rangeRequest
	}
	req, err := build(c)
	if err != nil {
		return nil, err
	}
	rep, err := s.q.Explain(c.ctx, req)
	if err != nil {
		return nil, err
	}
	return &answer{
		data: func(w *promjson.Writer) { w.JSON(rep) }, queried: true, report: rep, noStore: true,
	}, nil
}

func (s *Server) instantRequest(c *call) (*query.Request, error) {
	text, _, err := c.form.expr()
	if err != nil {
		return nil, err
	}
	t, err := c.form.time("time", s.now())
	if err != nil {
		return nil, err
	}
	o, err := c.form.options(s.q.DefaultOptions())
	if err != nil {
		return nil, err
	}
	return &query.Request{Query: text, Start: t, End: t, Options: o}, nil
}

func (s *Server) rangeRequest(c *call) (*query.Request, error) {
	f := c.form
	text, expr, err := f.expr()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"start", "end"} {
		if !f.has(name) {
			return nil, badParam(name, "it is missing; give seconds since 1970, or RFC 3339")
		}
	}
	start, end, err := f.timeRange(time.Time{}, time.Time{})
	if err != nil {
		return nil, err
	}
	step, err := f.step(start, end, s.o.DefaultStep)
	if err != nil {
		return nil, err
	}
	if err := checkPoints(start, end, step, s.o.MaxPoints); err != nil {
		return nil, err
	}
	if t := expr.Type(); t != parser.ValueTypeVector && t != parser.ValueTypeScalar {
		return nil, badParam("query", "a range query cannot return a %s; wrap it in a function such as rate(), or ask for an instant query", parser.DocumentedType(t))
	}
	o, err := f.options(s.q.DefaultOptions())
	if err != nil {
		return nil, err
	}
	return &query.Request{Query: text, Start: start, End: end, Step: step, Options: o}, nil
}

func queryAnswer(c *call, req *query.Request, res *query.Result, limit int) *answer {
	a := &answer{queried: true, report: res.Report}
	a.warnings, a.infos = res.Annotations.AsStrings(req.Query, maxAnnotations, maxAnnotations)
	// They come out of a map.
	slices.Sort(a.warnings)
	slices.Sort(a.infos)

	value := res.Value
	switch v := value.(type) {
	case promql.Matrix:
		if limit > 0 && len(v) > limit {
			value = v[:limit]
			a.warnings = append(a.warnings, truncated)
		}
	case promql.Vector:
		if limit > 0 && len(v) > limit {
			value = v[:limit]
			a.warnings = append(a.warnings, truncated)
		}
	}
	if want, err := c.form.boolean("analyze", false); err != nil || want {
		a.warnings = append(a.warnings, "parameter analyze is not supported; report=1 says what the query did")
	}
	a.data = func(w *promjson.Writer) {
		// The type comes first: clients then read the result as it arrives.
		w.Raw(`{"resultType":`)
		w.String(string(value.Type()))
		w.Raw(`,"result":`)
		w.Value(value)
		if c.form.has("stats") && res.Statistics != nil && res.Statistics.Timers != nil {
			w.Raw(`,"stats":`)
			w.JSON(stats.NewQueryStats(res.Statistics))
		}
		w.Raw("}")
	}
	return a
}

// metaRequest is what series, label names and label values have in common.
func (s *Server) metaRequest(c *call) (*query.MetaRequest, error) {
	var (
		req query.MetaRequest
		err error
	)
	if req.Limit, err = c.form.limit("limit"); err != nil {
		return nil, err
	}
	if req.Start, req.End, err = c.form.timeRange(minTime, maxTime); err != nil {
		return nil, err
	}
	if req.Matchers, err = c.form.matchers(); err != nil {
		return nil, err
	}
	if req.Options, err = c.form.options(s.q.DefaultOptions()); err != nil {
		return nil, err
	}
	return &req, nil
}

func (s *Server) series(c *call) (*answer, error) {
	if len(c.form.values["match[]"]) == 0 {
		return nil, badParam("match[]", "it is missing; give at least one series selector, as in up{job=\"node\"}")
	}
	req, err := s.metaRequest(c)
	if err != nil {
		return nil, err
	}
	res, err := s.q.Series(c.ctx, req)
	if err != nil {
		return nil, err
	}
	a := &answer{queried: true, report: res.Report, data: func(w *promjson.Writer) { w.LabelSets(res.Series) }}
	if res.Truncated {
		a.warnings = append(a.warnings, truncated)
	}
	return a, nil
}

func (s *Server) labelNames(c *call) (*answer, error) {
	req, err := s.labelsRequest(c)
	if err != nil {
		return nil, err
	}
	res, err := s.q.LabelNames(c.ctx, req)
	if err != nil {
		return nil, err
	}
	return labelsAnswer(res), nil
}

func (s *Server) labelValues(c *call) (*answer, error) {
	name := c.r.PathValue("name")
	if strings.HasPrefix(name, "U__") {
		name = model.UnescapeName(name, model.ValueEncodingEscaping)
	}
	if !model.UTF8Validation.IsValidLabelName(name) {
		return nil, badData("invalid label name in the path: %s is empty or no UTF-8", clip(name))
	}
	req, err := s.labelsRequest(c)
	if err != nil {
		return nil, err
	}
	req.Name = name
	res, err := s.q.LabelValues(c.ctx, req)
	if err != nil {
		return nil, err
	}
	return labelsAnswer(res), nil
}

// labelsRequest leaves replica labels visible unless dedup is asked for, as Thanos
// does: who wants to look at one replica finds its name here.
func (s *Server) labelsRequest(c *call) (*query.MetaRequest, error) {
	req, err := s.metaRequest(c)
	if err == nil && !c.form.has("dedup") {
		req.Dedup = false
	}
	return req, err
}

func labelsAnswer(res *query.LabelsResult) *answer {
	a := &answer{queried: true, report: res.Report, data: func(w *promjson.Writer) { w.Strings(res.Values) }}
	if res.Truncated {
		a.warnings = append(a.warnings, truncated)
	}
	return a
}

func (s *Server) formatQuery(c *call) (*answer, error) {
	_, expr, err := c.form.expr()
	if err != nil {
		return nil, err
	}
	return &answer{data: func(w *promjson.Writer) { w.String(expr.Pretty(0)) }}, nil
}

func (s *Server) parseQuery(c *call) (*answer, error) {
	_, expr, err := c.form.expr()
	if err != nil {
		return nil, err
	}
	tree, err := promjson.Tree(expr)
	if err != nil {
		return nil, badParam("query", "%v", err)
	}
	return jsonAnswer(tree), nil
}
