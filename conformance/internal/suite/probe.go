// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/internal/pushdown"
	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/backend"
)

const (
	// patience is what one call may take before it counts as hanging.
	patience = 30 * time.Second
	// prompt is what "promptly" means where the contract says it, with room for a busy
	// machine: the contract's second, four times.
	prompt = 4 * time.Second
	// shrinkTries bounds how often a failing request is asked again in simpler forms.
	shrinkTries = 25
	// listed is the most failures of a requirement that a report lists.
	listed = 5
)

// probe is what a requirement asks through, and where it says what is wrong.
type probe struct {
	ctx      context.Context
	s        *Subject
	opts     Options
	c        *corpus.Corpus
	o        *oracle.Oracle
	info     backend.Info
	external []labels.Labels
	// queryAPI says that Info announces thanos.Query over the wire.
	queryAPI bool
	// evaluator of PromQL over what the subject has to have; made when it is first needed.
	evaluator *pushdown.Evaluator

	r        Requirement
	res      *report.Result
	requests int
}

// stop ends a check early.
type stop struct{}

func (p *probe) guard(f func()) {
	defer func() {
		switch v := recover().(type) {
		case nil, stop:
		default:
			p.fail("the last request", "the subject panics: %v\n%.2000s", v, debug.Stack())
		}
	}()
	f()
}

// refuse notes that the subject said it does not support what was asked.
func (p *probe) refuse(request string, err error) {
	if p.res.Outcome == report.Passed {
		p.res.Outcome, p.res.Detail = report.Refused, fmt.Sprintf("%s: %v", request, err)
	}
}

func (p *probe) fail(request, format string, args ...any) {
	p.failure(report.Failure{Request: request, Message: fmt.Sprintf(format, args...)})
}

func (p *probe) failure(f report.Failure) {
	p.res.Outcome = report.Failed
	if len(p.res.Failures) == listed {
		p.res.More++
		return
	}
	p.res.Failures = append(p.res.Failures, f)
}

// enough says that more failures would tell nothing new.
func (p *probe) enough() bool { return len(p.res.Failures) >= listed || p.ctx.Err() != nil }

// seed is of its own for each requirement, so that one can be run alone.
func (p *probe) seed() uint64 {
	seed := p.opts.Seed
	for _, b := range []byte(p.r.ID) {
		seed = seed*1099511628211 + uint64(b)
	}
	return seed
}

func (p *probe) generator() *oracle.Generator { return p.o.NewGenerator(p.seed()) }

// get makes one Series call and reads it to its end.
func (p *probe) get(ctx context.Context, req *backend.SeriesRequest) *oracle.Got {
	p.requests++
	return read(ctx, p.s.Backend, req)
}

func read(ctx context.Context, from backend.Backend, req *backend.SeriesRequest) *oracle.Got {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	got := &oracle.Got{}
	for b, err := range from.Series(ctx, req) {
		if err != nil {
			got.Err = err
			break
		}
		n := b.Len()
		if n > 1 {
			got.LargestBatch = max(got.LargestBatch, b.Bytes())
		}
		for i := range n {
			got.Pieces = append(got.Pieces, b.At(i))
		}
		got.Notices = append(got.Notices, b.Notices()...)
	}
	return got
}

// expect asks, and reports the faults of the kinds given; an error always is one.
func (p *probe) expect(req *backend.SeriesRequest, kinds ...oracle.Kind) {
	p.expectThat(req, func(v oracle.Violation) bool { return slices.Contains(kinds, v.Kind) })
}

// expectSeries is expect for which series there are.
func (p *probe) expectSeries(req *backend.SeriesRequest) {
	p.expect(req, oracle.MissingSeries, oracle.ExtraSeries)
}

// expectSamples is expect for what is in them.
func (p *probe) expectSamples(req *backend.SeriesRequest) {
	p.expect(req, oracle.MissingSample, oracle.ExtraSample, oracle.WrongValue, oracle.Undecodable, oracle.MissingSeries)
}

func (p *probe) expectThat(req *backend.SeriesRequest, about func(oracle.Violation) bool) {
	if p.enough() {
		return
	}
	find := func(req *backend.SeriesRequest) (out []oracle.Violation, err error) {
		got := p.get(p.ctx, req)
		if errors.Is(got.Err, backend.ErrUnsupported) {
			return nil, got.Err
		}
		for _, v := range p.o.Judge(req, got) {
			if v.Kind == oracle.Failed || v.Kind == oracle.Gap || about(v) {
				out = append(out, v)
			}
		}
		return out, nil
	}
	bad, err := find(req)
	if err != nil {
		p.refuse(oracle.Text(req), err)
		return
	}
	if len(bad) == 0 {
		return
	}
	minTime, maxTime := p.o.Bounds()
	kind := bad[0].Kind
	// A fault that does not come again is shown as it was.
	shortest := oracle.Shrink(req, [2]int64{minTime, maxTime}, shrinkTries, func(r *backend.SeriesRequest) bool {
		again, err := find(r)
		if err != nil || len(again) == 0 || again[0].Kind != kind {
			return false
		}
		bad = again
		return true
	})
	for _, v := range bad[:min(len(bad), 2)] {
		p.failure(report.Failure{Request: oracle.Text(shortest), Message: v.Text, Expected: v.Expected, Actual: v.Actual})
	}
	p.res.More += max(0, len(bad)-2)
}

// all is a request for everything there is.
func (p *probe) all(ms ...*labels.Matcher) *backend.SeriesRequest {
	minTime, maxTime := p.o.Bounds()
	return &backend.SeriesRequest{MinTime: minTime, MaxTime: maxTime, Matchers: ms}
}

// narrow leaves out the series with very long values, which others ask for.
func (p *probe) narrow() *backend.SeriesRequest { return p.all(ne(metricName, "cert_wide")) }

func (p *probe) names(req *backend.LabelNamesRequest) []string {
	p.requests++
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	got, err := p.s.Backend.LabelNames(ctx, req)
	return p.list(oracle.NamesText(req), got, err)
}

func (p *probe) values(req *backend.LabelValuesRequest) []string {
	p.requests++
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	got, err := p.s.Backend.LabelValues(ctx, req)
	return p.list(oracle.ValuesText(req), got, err)
}

// list ends the check if there is no answer.
func (p *probe) list(request string, got *backend.Labels, err error) []string {
	switch {
	case errors.Is(err, backend.ErrUnsupported):
		p.refuse(request, err)
		panic(stop{})
	case err != nil:
		p.fail(request, "the call failed: %v", err)
		panic(stop{})
	case got == nil:
		p.fail(request, "neither an answer nor an error")
		panic(stop{})
	}
	for _, n := range got.Notices {
		if n.Kind == backend.NoticeMissing {
			p.fail(request, "it says that something is missing: %s", n.Text)
		}
	}
	return got.Values
}

// expectNames and expectValues report faults of the kinds given.
func (p *probe) expectNames(req *backend.LabelNamesRequest, kinds ...oracle.Kind) {
	if p.enough() {
		return
	}
	must, may := p.o.Names(req)
	p.expectList(oracle.NamesText(req), oracle.JudgeList(p.names(req), must, may, req.Limit), kinds)
}

func (p *probe) expectValues(req *backend.LabelValuesRequest, kinds ...oracle.Kind) {
	if p.enough() {
		return
	}
	must, may := p.o.Values(req)
	p.expectList(oracle.ValuesText(req), oracle.JudgeList(p.values(req), must, may, req.Limit), kinds)
}

func (p *probe) expectList(request string, bad []oracle.Violation, kinds []oracle.Kind) {
	shown := 0
	for _, v := range bad {
		if !slices.Contains(kinds, v.Kind) {
			continue
		}
		if shown++; shown > 2 {
			p.res.More++
			continue
		}
		p.failure(report.Failure{Request: request, Message: v.Text, Expected: v.Expected, Actual: v.Actual})
	}
}

const metricName = "__name__"

func eq(name, v string) *labels.Matcher { return labels.MustNewMatcher(labels.MatchEqual, name, v) }
func ne(name, v string) *labels.Matcher { return labels.MustNewMatcher(labels.MatchNotEqual, name, v) }
func re(name, v string) *labels.Matcher { return labels.MustNewMatcher(labels.MatchRegexp, name, v) }
func nre(name, v string) *labels.Matcher {
	return labels.MustNewMatcher(labels.MatchNotRegexp, name, v)
}
