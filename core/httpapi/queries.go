// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/util/stats"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/httpapi/promjson"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/remoteread"
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
		data: func(w *promjson.Writer) { w.JSON(encodable(rep)) }, queried: true, report: rep, noStore: true,
	}, nil
}

func (s *Server) instantRequest(c *call) (*query.Request, error) {
	text, _, err := c.form.expr()
	if err != nil {
		return nil, err
	}
	t, err := c.form.evalTime("time", s.now())
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
		if _, err := f.evalTime(name, time.Time{}); err != nil {
			return nil, err
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
	a := &answer{queried: true, report: res.Report, done: res.Close}
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

// read serves remote read. The protocol has no words for an answer from which
// something is missing, and its clients store or merge what they get, so that a
// partial answer is an error here unless partial_response=true stands in the
// address. Errors are plain text, which is what clients show.
func (s *Server) read(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	refusal := &refusing{ResponseWriter: w}
	w = refusal
	fail := func(err error) {
		s.log.Log(r.Context(), failureLevel(err), "remote read failed", "err", err)
		http.Error(w, err.Error(), remoteread.Status(err))
	}
	def := s.q.DefaultOptions()
	def.PartialResponse = false
	o, err := newForm(r.URL.Query()).options(def)
	if err != nil {
		fail(readError(err))
		return
	}
	// Downsampled data are no samples.
	o.MaxSourceResolution = 0

	req, err := remoteread.DecodeRequest(r.Body, remoteread.RequestLimits{Bytes: int(s.o.MaxReadBytes)})
	if err != nil {
		fail(err)
		return
	}
	form, err := remoteread.Negotiate(req.Accept)
	if err != nil {
		fail(err)
		return
	}
	if len(req.Queries) == 0 {
		// Nothing is asked, but whoever is not let in gets no answer all the same.
		if _, err := s.q.Admit(r.Context(), &access.Ask{Kind: "read"}); err != nil {
			refusal.because(err)
			fail(readError(err))
			return
		}
	}
	results := make([]iter.Seq2[remoteread.SampleSeries, error], len(req.Queries))
	if form == remoteread.Samples {
		for i, q := range req.Queries {
			results[i] = s.readSeries(r.Context(), q, o, refusal, func(rep *report.Report) { s.describeWorst(w.Header(), "", rep) })
		}
		err = remoteread.WriteSamples(w, req.Queries, results, remoteread.SamplesOptions{Limit: s.o.MaxReadSamples})
	} else {
		batches := make([]iter.Seq2[*backend.Batch, error], len(req.Queries))
		for i, q := range req.Queries {
			// By then frames are on their way, so that only a trailer is left.
			batches[i] = encodeSeries(q, s.readSeries(r.Context(), q, o, refusal, func(rep *report.Report) {
				s.describeWorst(w.Header(), http.TrailerPrefix, rep)
			}))
		}
		err = remoteread.WriteStreamed(w, batches, remoteread.StreamOptions{})
	}
	if err != nil {
		s.log.Log(r.Context(), failureLevel(err), "remote read failed", "err", err)
	}
}

// refusing makes a 401 with its challenge of the 403 that a refusal otherwise is.
type refusing struct {
	http.ResponseWriter
	challenge string
	unknown   bool
}

func (w *refusing) because(err error) {
	if e := toAPIError(err); e.status == http.StatusUnauthorized {
		w.unknown, w.challenge = true, e.challenge
	}
}

func (w *refusing) WriteHeader(status int) {
	if status == http.StatusForbidden && w.unknown {
		status = http.StatusUnauthorized
		if w.challenge != "" {
			w.Header().Set("WWW-Authenticate", w.challenge)
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap serves http.ResponseController.
func (w *refusing) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// describeWorst is describe for a request with several reports.
func (s *Server) describeWorst(h http.Header, prefix string, rep *report.Report) {
	before := h.Get(prefix + headerCompleteness)
	one := http.Header{}
	s.describe(one, rep)
	state := one.Get(headerCompleteness)
	if before == report.Partial.String() || before == report.Unknown.String() && state == report.Complete.String() {
		state = before
	}
	h.Set(prefix+headerCompleteness, state)
	if id := one.Get(headerReportID); id != "" {
		h.Add(prefix+headerReportID, id)
	}
}

// readSeries asks for one query's series when it is iterated.
func (s *Server) readSeries(ctx context.Context, q remoteread.Query, o query.Options, refusal *refusing, done func(*report.Report)) iter.Seq2[remoteread.SampleSeries, error] {
	return func(yield func(remoteread.SampleSeries, error) bool) {
		res, err := s.q.Read(ctx, &query.ReadRequest{MinTime: q.MinTime, MaxTime: q.MaxTime, Matchers: q.Matchers, Options: o})
		if err != nil {
			refusal.because(err)
			yield(remoteread.SampleSeries{}, readError(err))
			return
		}
		finish := sync.OnceValues(res.Finish)
		// For a receiver that stops, and for a panic.
		defer func() { _, _ = finish() }()

		var it chunkenc.Iterator
		for res.Series.Next() {
			series := res.Series.At()
			it = series.Iterator(it)
			if !yield(remoteread.SampleSeries{Labels: series.Labels(), Samples: it}, nil) {
				return
			}
		}
		err = res.Series.Err()
		rep, ferr := finish()
		if err == nil {
			err = ferr
		}
		if err == nil && !o.PartialResponse && rep != nil && rep.Completeness.State == report.Partial {
			err = backend.Errorf(backend.ErrUnavailable, "%s; add partial_response=true to the address to read what there is", rep.Completeness)
		}
		if err != nil {
			yield(remoteread.SampleSeries{}, readError(err))
			return
		}
		done(rep)
	}
}

// readError gives an error a kind that remoteread.Status knows.
func readError(err error) error {
	kind := backend.ErrInternal
	switch e := toAPIError(err); {
	case e.typ == typeBadData:
		kind = backend.ErrInvalid
	case e.typ == typeTimeout, e.typ == typeCanceled, e.typ == typeUnavailable:
		kind = backend.ErrUnavailable
	case e.typ == typeForbidden, e.typ == typeUnauthorized:
		kind = backend.ErrDenied
	case e.typ == typeExecution:
		kind = backend.Kind(err)
	}
	return &backend.Error{Kind: kind, Text: err.Error(), Err: err}
}

// failureLevel keeps what clients do wrong, or give up, out of an operator's log.
func failureLevel(err error) slog.Level {
	if backend.Kind(err) == backend.ErrInternal && !errors.Is(err, context.Canceled) {
		return slog.LevelError
	}
	return slog.LevelDebug
}

// encodeSeries puts samples in the range of the query into chunks, a series in a
// batch.
func encodeSeries(q remoteread.Query, seq iter.Seq2[remoteread.SampleSeries, error]) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		for series, err := range seq {
			if err != nil {
				yield(nil, err)
				return
			}
			chunks, err := shaping.EncodeIterator(series.Samples, q.MinTime, q.MaxTime)
			if err != nil {
				yield(nil, fmt.Errorf("series %s: %w", series.Labels, err))
				return
			}
			if len(chunks) == 0 {
				continue
			}
			b := backend.NewBatch(1)
			b.Append(backend.Series{Labels: series.Labels, Chunks: chunks})
			if !yield(b, nil) {
				return
			}
		}
	}
}
