// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"fmt"
	"math"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/backend"
)

// matching is a requirement that asks with lists of matchers, and looks at which series
// come.
func matching(id, rule string, needs []corpus.Part, level report.Level, lists ...[]*labels.Matcher) Requirement {
	return Requirement{ID: id, Profile: Core, Level: level, Rule: rule, Since: "1.0", needs: needs, check: func(p *probe) {
		for _, ms := range lists {
			p.expectSeries(p.all(ms...))
			bare := p.all(ms...)
			bare.SkipChunks = true
			p.expectSeries(bare)
		}
	}}
}

func ms(list ...*labels.Matcher) []*labels.Matcher { return list }

// matrix are the matcher sets of the Thanos acceptance test "matching behavior", on the
// series with n and i of the corpus.
func matrix() (out [][]*labels.Matcher) {
	n1 := eq("n", "1")
	for _, list := range [][]*labels.Matcher{
		{n1}, {n1, eq("i", "a")}, {n1, eq("i", "missing")}, {eq("missing", "")}, {ne("n", "1")}, {re("i", ".+")}, {re("i", ".*")}, {eq("i", "")},
		{ne("i", "")}, {ne("missing", "")}, {n1, ne("i", "a")}, {re("n", "^1$")}, {n1, re("i", "^a$")}, {n1, re("i", "^a?$")}, {re("i", "^$")},
		{n1, re("i", "^$")}, {n1, re("i", "^.*$")}, {n1, re("i", "^.+$")}, {nre("n", "^1$")}, {nre("n", "1")}, {nre("n", "1|2.5")}, {nre("n", "(1|2.5)")},
		{n1, nre("i", "^a$")}, {n1, nre("i", "^a?$")}, {n1, nre("i", "^$")}, {n1, nre("i", "^.*$")}, {n1, nre("i", "^.+$")}, {n1, ne("i", ""), eq("i", "a")},
		{n1, ne("i", "b"), re("i", "^(b|a).*$")}, {re("n", "(1|2)")}, {re("i", "a|b")}, {re("i", "(a|b)")}, {re("n", "x1|2")}, {re("n", `2|2\.5`)},
		{re("i", "c||d")}, {re("i", "(c||d)")},
	} {
		out = append(out, append(ms(eq(metricName, "cert_matrix")), list...))
	}
	return out
}

func core() []Requirement {
	base, text := []corpus.Part{corpus.Base}, []corpus.Part{corpus.LabelText}
	env := eq(metricName, "cert_env")
	const s6 = "Matchers are PromQL's: a missing label equals \"\", regular expressions are RE2 and anchored at both ends, a dot matches a newline, and several matchers on one name are all to hold."
	return []Requirement{
		{ID: "I-1.answers", Profile: Core, Level: report.Must, Since: "1.0", Rule: "Info MUST answer within five seconds.", check: infoAnswers},
		{ID: "I-2.bounds", Profile: Core, Level: report.Must, Since: "1.0", Rule: "The advertised time bounds MUST over-approximate the data.", check: infoBounds},
		{ID: "I-2.label-sets", Profile: Core, Level: report.Must, Since: "1.0", Rule: "The advertised label sets MUST over-approximate the data; none means \"cannot say\".", check: infoLabelSets},
		matching("S-6.equal", s6, base, report.Must, ms(eq(metricName, "cert_matrix")), ms(env, eq("env", "prod")), ms(eq("env", "PROD")), ms(env, eq("env", "pro"))),
		matching("S-6.not-equal", s6, base, report.Must, ms(env, ne("env", "prod")), ms(env, ne("env", "nothing")), ms(env, ne("absent", "x"))),
		matching("S-6.missing-is-empty", s6, base, report.Must, ms(env, eq("env", "")), ms(env, ne("env", "")), ms(env, eq("absent", "")), ms(env, ne("absent", "")), ms(env, ne("absent", "x")), ms(env, re("env", "prod|")),
			ms(env, re("absent", ".*")), ms(env, re("absent", "")), ms(env, nre("absent", ".+")), ms(env, nre("env", ".+")), ms(env, re("env", ""))),
		matching("S-6.regex", s6, base, report.Must, ms(env, re("env", "pr.*")), ms(env, re("env", "prod|none")), ms(env, re("env", ".+")), ms(re(metricName, "cert_e.v")), ms(env, re("env", "[nN]one")),
			ms(env, re("env", "p{1}r(o|x)d")), ms(env, re("env", `\x70rod`))),
		matching("S-6.case", s6, base, report.Must, ms(env, re("env", "prod")), ms(env, re("env", "(?i)prod")), ms(env, re("env", "(?i:pr)od")), ms(env, nre("env", "(?i)prod"))),
		matching("S-6.not-regex", s6, base, report.Must, ms(env, nre("env", "prod.*")), ms(env, nre("env", "prod|none")), ms(env, nre("env", ".*")), ms(env, nre("env", "none|"))),
		matching("S-6.anchored", s6, base, report.Must, ms(env, re("env", "ro")), ms(env, re("env", "pro")), ms(env, re("env", "rod")), ms(env, nre("env", "ro")), ms(env, re("env", "x|prod")), ms(env, re("env", "x|rod")), ms(env, re("env", "pro|x")), ms(re(metricName, "cert_en"))),
		matching("S-6.several", s6, base, report.Must, ms(env, ne("env", ""), ne("env", "prod")), ms(env, re("env", "p.*"), re("env", ".*d")), ms(env, eq("env", "prod"), eq("env", "none")), ms(env, ne("env", "prod"), re("env", "prod.*"))),
		matching("S-6.newline", s6, text, report.Must, ms(eq(metricName, "cert_text"), re("text", "pr.od")), ms(eq(metricName, "cert_text"), nre("text", "pr.od")), ms(eq(metricName, "cert_text"), re("text", ".*"))),
		matching("S-6.matrix", s6, base, report.Must, matrix()...),
		{ID: "S-6.no-matchers", Profile: Core, Level: report.Should, Since: "1.0", Rule: "A request without matchers selects everything. (Thanos' sidecar and TSDB refuse it.)", check: func(p *probe) { p.expectSeries(p.all()) }},
		{ID: "S-6.generated", Profile: Core, Level: report.Must, Since: "1.0", Rule: "Every returned series MUST match all matchers, and every series that matches and has a sample in the range MUST be returned.", check: func(p *probe) {
			for g, i := p.generator(), 0; i < p.opts.Generated; i++ {
				p.expectSeries(g.Request())
			}
		}},
		{ID: "S-7.samples", Profile: Core, Level: report.Must, Since: "1.0", needs: base, Rule: "All samples of a series in the range MUST be there, with their times and values, and none that were never stored.", check: func(p *probe) {
			p.expectSamples(p.all(re(metricName, "cert_(matrix|env|requests_total|generated_.*)")))
			for g, i := p.generator(), 0; i < p.opts.Generated; i++ {
				req := g.Request()
				req.SkipChunks = false
				p.expectSamples(req)
			}
		}},
		{ID: "S-7.values", Profile: Core, Level: report.Must, Since: "1.0", needs: []corpus.Part{corpus.Values}, Rule: "Values MUST come back bit for bit: NaN, infinities, the largest and the smallest, 2^53+1.", check: func(p *probe) {
			p.expectSamples(p.partial(corpus.Values))
		}},
		{ID: "S-7.zero-sign", Profile: Core, Level: report.Should, Since: "1.0", needs: []corpus.Part{corpus.Values}, Rule: "A negative zero SHOULD keep its sign.", check: func(p *probe) {
			p.expect(p.partial(corpus.Values), oracle.ZeroSign)
		}},
		{ID: "S-7.stale", Profile: Core, Level: report.Must, Since: "1.0", needs: []corpus.Part{corpus.Stale}, claim: claimStale, Rule: "StaleMarkers: stale markers are kept bit for bit.", check: func(p *probe) {
			p.expectSamples(p.partial(corpus.Stale))
		}},
		{ID: "S-7.stale-unclaimed", Profile: Core, Level: report.Must, Since: "1.0", needs: []corpus.Part{corpus.Stale}, claim: claimStale, unclaimed: true, Rule: "A stale marker that is not kept MUST be left out, and never become a value.", check: func(p *probe) {
			p.expectSamples(p.partial(corpus.Stale))
		}},
		{ID: "S-8.enclose", Profile: Core, Level: report.Must, Since: "1.0", Rule: "MinTime and MaxTime of a chunk MUST enclose its samples.", check: func(p *probe) { p.expect(p.narrow(), oracle.ChunkBounds) }},
		{ID: "S-8.chunk-order", Profile: Core, Level: report.Should, Since: "1.0", Rule: "Chunks SHOULD be ordered by MinTime and then MaxTime.", check: func(p *probe) { p.expect(p.narrow(), oracle.ChunkOrder) }},
		{ID: "S-8.chunk-size", Profile: Core, Level: report.Should, Since: "1.0", Rule: "A backend that encodes chunks itself SHOULD put at most 120 samples in one.", check: func(p *probe) { p.expect(p.narrow(), oracle.ChunkSize) }},
		{ID: "S-9.no-chunks", Profile: Core, Level: report.Must, Since: "1.0", Rule: "With SkipChunks a series has no chunks.", check: func(p *probe) {
			req := p.narrow()
			req.SkipChunks = true
			p.expect(req, oracle.HasChunks)
		}},
		{ID: "S-9.selection", Profile: Core, Level: report.Must, Since: "1.0", Rule: "With SkipChunks series are selected exactly as without.", check: func(p *probe) {
			for g, i := p.generator(), 0; i < p.opts.Generated/2; i++ {
				req := g.Request()
				req.SkipChunks = true
				p.expectSeries(req)
			}
		}},
		{ID: "S-12.no-match", Profile: Core, Level: report.Must, Since: "1.0", Rule: "No match is an empty sequence, not an error.", check: func(p *probe) {
			p.expectSeries(p.all(eq(metricName, "cert_no_such_metric")))
			p.expectSeries(p.all(eq(metricName, "cert_env"), eq("cert_no_such_label", "x")))
			minTime, maxTime := p.o.Bounds()
			req := p.all(ne(metricName, ""))
			req.MinTime, req.MaxTime = maxTime+365*day, maxTime+366*day
			p.expectSeries(req)
			p.expectNames(&backend.LabelNamesRequest{MinTime: minTime, MaxTime: maxTime, Matchers: ms(eq(metricName, "cert_no_such_metric"))}, oracle.ExtraSeries)
			p.expectValues(&backend.LabelValuesRequest{Name: "cert_no_such_label", MinTime: minTime, MaxTime: maxTime}, oracle.ExtraSeries)
		}},
		{ID: "L-1.names", Profile: Core, Level: report.Must, Since: "1.0", Rule: "LabelNames returns the names of labels on matching series, all of them.", check: func(p *probe) {
			p.eachNames(oracle.MissingSeries)
		}},
		{ID: "L-2.names-match", Profile: Core, Level: report.Must, Since: "1.0", Rule: "LabelNames honours matchers exactly.", check: func(p *probe) { p.eachNames(oracle.ExtraSeries) }},
		{ID: "L-1.sorted", Profile: Core, Level: report.Must, Since: "1.0", Rule: "Names are sorted and unique.", check: func(p *probe) { p.eachNames(oracle.Unsorted) }},
		{ID: "L-4.values", Profile: Core, Level: report.Must, Since: "1.0", Rule: "LabelValues returns the values of one label on matching series, all of them.", check: func(p *probe) {
			p.eachValues(oracle.MissingSeries)
		}},
		{ID: "L-2.values-match", Profile: Core, Level: report.Must, Since: "1.0", Rule: "LabelValues honours matchers exactly.", check: func(p *probe) { p.eachValues(oracle.ExtraSeries) }},
		{ID: "L-4.sorted", Profile: Core, Level: report.Must, Since: "1.0", Rule: "Values are sorted, unique and not empty.", check: func(p *probe) { p.eachValues(oracle.Unsorted) }},
		{ID: "L-5.empty-name", Profile: Core, Level: report.Must, Since: "1.0", Rule: "An empty Name MUST be refused with ErrInvalid.", check: func(p *probe) {
			minTime, maxTime := p.o.Bounds()
			p.requests++
			ctx, cancel := context.WithTimeout(p.ctx, patience)
			defer cancel()
			if _, err := p.s.Backend.LabelValues(ctx, &backend.LabelValuesRequest{MinTime: minTime, MaxTime: maxTime}); backend.Kind(err) != backend.ErrInvalid {
				p.fail(`LabelValues("")`, "want an error of kind ErrInvalid, got: %v", err)
			}
		}},
		{ID: "B-1.concurrent", Profile: Core, Level: report.Must, Since: "1.0", Rule: "A Backend MUST be safe for concurrent use.", check: concurrent},
		{ID: "B-3.requests", Profile: Core, Level: report.Must, Since: "1.0", Rule: "Requests belong to the caller and MUST NOT be changed.", inProcess: true, check: requestsKept},
		{ID: "S-0.memory", Profile: Core, Level: report.Must, Since: "1.0", Rule: "What was yielded belongs to the receiver: the backend MUST NOT change or reuse that memory, ever.", inProcess: true, check: memoryKept},
		{ID: "S-10.hints", Profile: Pushdown, Level: report.Must, Since: "1.0", Rule: "Hints never change which samples are right.", check: func(p *probe) {
			for g, i := p.generator(), 0; i < p.opts.Generated/2; i++ {
				req := g.Request()
				req.SkipChunks = false
				req.Hints = hints[i%len(hints)]
				p.expectThat(req, func(v oracle.Violation) bool {
					return slices.Contains([]oracle.Kind{oracle.MissingSeries, oracle.ExtraSeries, oracle.MissingSample, oracle.ExtraSample, oracle.WrongValue}, v.Kind)
				})
			}
		}},
	}
}

const day = int64(24 * time.Hour / time.Millisecond)

var hints = []backend.Hints{
	{StepMillis: 60000, RangeMillis: 300000, Func: "rate"},
	{StepMillis: 3600000, Func: "sum", By: true, Grouping: []string{"job"}},
	{Func: "max", Grouping: []string{"instance", "env"}},
	{StepMillis: 1, RangeMillis: 1, Func: "series"},
	{Func: "count_over_time", RangeMillis: math.MaxInt64},
}

// partial is a request for the metrics of one part.
func (p *probe) partial(part corpus.Part) *backend.SeriesRequest {
	var names []string
	for _, s := range p.c.Series {
		if s.Part == part {
			names = append(names, s.Labels.Get(metricName))
		}
	}
	slices.Sort(names)
	m := ""
	for i, n := range slices.Compact(names) {
		if i > 0 {
			m += "|"
		}
		m += n
	}
	return p.all(re(metricName, m))
}

func infoAnswers(p *probe) {
	p.requests++
	begun := time.Now()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	info, err := p.s.Backend.Info(ctx)
	switch took := time.Since(begun); {
	case err != nil:
		p.fail("Info", "the call failed: %v", err)
	case took > 5*time.Second:
		p.fail("Info", "it took %v", took.Round(time.Millisecond))
	case info.MinTime > info.MaxTime:
		p.fail("Info", "MinTime %s is after MaxTime %s", oracle.Stamp(info.MinTime), oracle.Stamp(info.MaxTime))
	}
}

func infoBounds(p *probe) {
	p.requests++
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	info, err := p.s.Backend.Info(ctx)
	if err != nil {
		p.fail("Info", "the call failed: %v", err)
		return
	}
	minTime, maxTime := p.o.Bounds()
	if info.MinTime > minTime || info.MaxTime < maxTime {
		p.failure(report.Failure{Request: "Info", Message: "the bounds do not enclose the data: a caller does not ask where they say that nothing is",
			Expected: []string{oracle.Stamp(minTime) + " or before", oracle.Stamp(maxTime) + " or after"}, Actual: []string{oracle.Stamp(info.MinTime), oracle.Stamp(info.MaxTime)}})
	}
}

func infoLabelSets(p *probe) {
	p.requests++
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	info, err := p.s.Backend.Info(ctx)
	if err != nil {
		p.fail("Info", "the call failed: %v", err)
		return
	}
	if len(info.LabelSets) == 0 {
		return
	}
	// Of what it really sends, not of what it was thought to have.
	req := p.narrow()
	req.SkipChunks = true
	got := p.get(p.ctx, req)
	if got.Err != nil {
		p.fail(oracle.Text(req), "the call failed: %v", got.Err)
		return
	}
	for _, s := range got.Pieces {
		if !slices.ContainsFunc(info.LabelSets, func(set labels.Labels) bool {
			ok := true
			set.Range(func(l labels.Label) { ok = ok && s.Labels.Get(l.Name) == l.Value })
			return ok
		}) {
			var sets []string
			for _, ls := range info.LabelSets {
				sets = append(sets, oracle.Show(ls))
			}
			p.failure(report.Failure{Request: "Info, " + oracle.Text(req), Message: "a series has the labels of none of the advertised sets", Expected: sets, Actual: []string{oracle.Show(s.Labels)}})
			return
		}
	}
	for _, ext := range p.external {
		if !slices.ContainsFunc(info.LabelSets, func(set labels.Labels) bool {
			ok := true
			set.Range(func(l labels.Label) { ok = ok && ext.Get(l.Name) == l.Value })
			return ok
		}) {
			p.fail("Info", "no advertised label set lets in what has the external labels %s", oracle.Show(ext))
		}
	}
}

// lists are the matchers with which names and values are asked for.
func (p *probe) lists() (out [][]*labels.Matcher) {
	out = [][]*labels.Matcher{{ne(metricName, "cert_wide")}, {eq(metricName, "cert_env")}, {eq(metricName, "cert_matrix"), ne("i", "")}, {re(metricName, "cert_.*s"), eq("env", "")}}
	g := p.generator()
	for range p.opts.Generated / 4 {
		out = append(out, g.Matchers())
	}
	return out
}

func (p *probe) eachNames(kinds ...oracle.Kind) {
	minTime, maxTime := p.o.Bounds()
	for _, list := range p.lists() {
		p.expectNames(&backend.LabelNamesRequest{MinTime: minTime, MaxTime: maxTime, Matchers: list}, kinds...)
	}
}

func (p *probe) eachValues(kinds ...oracle.Kind) {
	minTime, maxTime := p.o.Bounds()
	for i, list := range p.lists() {
		for k, name := range []string{metricName, "env", "i", "job", "zone"} {
			if k > 0 && (i+k)%3 > 0 {
				continue
			}
			p.expectValues(&backend.LabelValuesRequest{Name: name, MinTime: minTime, MaxTime: maxTime, Matchers: list}, kinds...)
		}
	}
}

func concurrent(p *probe) {
	const callers = 8
	var reqs []*backend.SeriesRequest
	g := p.generator()
	for range callers {
		reqs = append(reqs, g.Request())
	}
	type found struct {
		req *backend.SeriesRequest
		bad []oracle.Violation
	}
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		all []found
	)
	for c := range callers {
		wg.Go(func() {
			for k := range reqs {
				req := *reqs[(c+k)%callers]
				got := read(p.ctx, p.s.Backend, &req)
				mu.Lock()
				p.requests++
				if bad := p.o.Judge(&req, got); len(bad) > 0 {
					all = append(all, found{&req, bad})
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for _, f := range all {
		// What is wrong alone too is for other requirements.
		alone := p.get(p.ctx, f.req)
		if len(p.o.Judge(f.req, alone)) == 0 {
			v := f.bad[0]
			p.failure(report.Failure{Request: fmt.Sprintf("%d at once: %s", callers, oracle.Text(f.req)), Message: v.Text + "; alone the answer is right", Expected: v.Expected, Actual: v.Actual})
		}
	}
}

func requestsKept(p *probe) {
	minTime, maxTime := p.o.Bounds()
	// Not in the order in which a store would like to have them.
	list := func() []*labels.Matcher {
		return ms(nre("zone", "x"), ne("env", "y"), re(metricName, "cert_env|cert_matrix"))
	}
	mine, before := list(), list()
	same := func() bool {
		return slices.EqualFunc(mine, before, func(a, b *labels.Matcher) bool { return a.String() == b.String() })
	}
	req := &backend.SeriesRequest{MinTime: minTime, MaxTime: maxTime, Matchers: mine, Limit: 3, WithoutReplicaLabels: []string{"z", "replica"}, Shard: &backend.Shard{Index: 0, Total: 2, Labels: []string{"z", "a"}}}
	was := *req
	shard := *req.Shard
	p.get(p.ctx, req)
	if !same() || !reflect.DeepEqual(*req, was) || req.Shard == nil || !reflect.DeepEqual(*req.Shard, shard) || !slices.Equal(req.WithoutReplicaLabels, []string{"z", "replica"}) {
		p.fail(oracle.Text(&was), "the request was changed")
	}
	names := &backend.LabelNamesRequest{MinTime: minTime, MaxTime: maxTime, Matchers: mine, Limit: 3}
	wasNames := *names
	p.names(names)
	if !same() || !reflect.DeepEqual(*names, wasNames) {
		p.fail(oracle.NamesText(&wasNames), "the request was changed")
	}
	values := &backend.LabelValuesRequest{Name: "env", MinTime: minTime, MaxTime: maxTime, Matchers: mine, Limit: 3}
	wasValues := *values
	p.values(values)
	if !same() || !reflect.DeepEqual(*values, wasValues) {
		p.fail(oracle.ValuesText(&wasValues), "the request was changed")
	}
}

func memoryKept(p *probe) {
	p.requests++
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	req := p.narrow()
	req.BatchSize = 4
	type kept struct {
		s    backend.Series
		text string
		data [][]byte
	}
	var all []kept
	for b, err := range p.s.Backend.Series(ctx, req) {
		if err != nil {
			p.fail(oracle.Text(req), "the call failed: %v", err)
			return
		}
		for i := range b.Len() {
			k := kept{s: b.At(i)}
			k.text = string([]byte(oracle.Show(k.s.Labels)))
			for _, c := range k.s.Chunks {
				k.data = append(k.data, slices.Clone(c.Raw.Data))
			}
			all = append(all, k)
		}
	}
	p.get(p.ctx, req) // and once more, in case memory is given out again
	for _, k := range all {
		ok := oracle.Show(k.s.Labels) == k.text && len(k.data) == len(k.s.Chunks)
		for i := range k.data {
			ok = ok && slices.Equal(k.data[i], k.s.Chunks[i].Raw.Data)
		}
		if !ok {
			p.fail(oracle.Text(req), "the series %s was changed after it had been yielded; it is now %s", k.text, oracle.Show(k.s.Labels))
			return
		}
	}
}
