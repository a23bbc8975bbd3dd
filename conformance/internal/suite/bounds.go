// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
)

// between asks for a range.
func (p *probe) between(minTime, maxTime int64, list ...*labels.Matcher) *backend.SeriesRequest {
	req := p.all(list...)
	req.MinTime, req.MaxTime = minTime, maxTime
	return req
}

// edges are the times of samples at which bounds are tried: the first, the last, and
// some between.
func edges(s []shaping.Sample) (out []int64) {
	for _, i := range []int{0, len(s) / 2, len(s) - 1} {
		out = append(out, s[i].T)
	}
	return out
}

func timing() []Requirement {
	everything := []oracle.Kind{oracle.MissingSeries, oracle.ExtraSeries, oracle.MissingSample, oracle.ExtraSample, oracle.WrongValue}
	return []Requirement{
		must(Time, "B-4.inclusive", "Both bounds of a request are inclusive.", func(p *probe) {
			for _, s := range append(p.of(corpus.Times), p.of(corpus.Base)[:6]...) {
				for _, t := range edges(s.Samples) {
					p.expect(p.between(t, t, exactly(s)...), everything...)
					p.expect(p.between(t, t+1, exactly(s)...), everything...)
					p.expect(p.between(t-1, t, exactly(s)...), everything...)
				}
				first, last := s.Samples[0].T, s.Samples[len(s.Samples)-1].T
				p.expect(p.between(first, last, exactly(s)...), everything...)
			}
		}).with(corpus.Base, corpus.Times),
		must(Time, "S-7.outside", "A series without a sample and without a chunk in the range MUST NOT be returned.", func(p *probe) {
			for _, s := range append(p.of(corpus.Times), p.of(corpus.Base)[:6]...) {
				first, last := s.Samples[0].T, s.Samples[len(s.Samples)-1].T
				p.expect(p.between(first-1000, first-1, exactly(s)...), oracle.ExtraSeries)
				p.expect(p.between(last+1, last+1000, exactly(s)...), oracle.ExtraSeries)
				bare := p.between(last+1, last+1000, exactly(s)...)
				bare.SkipChunks = true
				p.expect(bare, oracle.ExtraSeries)
			}
		}).with(corpus.Base, corpus.Times),
		must(Time, "S-7.gap", "A series with a gap keeps both sides of it, and MAY be there in between only with a chunk that reaches over.", func(p *probe) {
			for _, s := range p.of(corpus.Times) {
				for i := 1; i < len(s.Samples); i++ {
					if a, b := s.Samples[i-1].T, s.Samples[i].T; b-a > 600_000 {
						p.expect(p.between(a, b, exactly(s)...), everything...)
						p.expect(p.between(a+1, b-1, exactly(s)...), oracle.ExtraSeries, oracle.ExtraSample)
					}
				}
			}
		}).with(corpus.Times),
		must(Time, "B-4.milliseconds", "Times are milliseconds: neighbours that are 1 ms apart are two samples.", func(p *probe) {
			p.expect(p.partial(corpus.Times), everything...)
		}).with(corpus.Times),
		must(Time, "B-4.reversed", "MinTime > MaxTime selects nothing, and is no error.", func(p *probe) {
			minTime, maxTime := p.o.Bounds()
			p.expect(p.between(maxTime, minTime, eq(metricName, "cert_matrix")), oracle.ExtraSeries)
			p.expect(p.between(math.MaxInt64, math.MinInt64, eq(metricName, "cert_matrix")), oracle.ExtraSeries)
			req := p.between(maxTime, minTime, eq(metricName, "cert_matrix"))
			req.SkipChunks = true
			p.expect(req, oracle.ExtraSeries)
		}),
		must(Time, "B-4.extremes", "Bounds reach from MinInt64 to MaxInt64 and MUST NOT be added to without a check for overflow.", func(p *probe) {
			m := eq(metricName, "cert_matrix")
			minTime, maxTime := p.o.Bounds()
			for _, r := range [][2]int64{{math.MinInt64, math.MaxInt64}, {minTime, math.MaxInt64}, {math.MinInt64, maxTime}, {math.MinInt64, math.MinInt64}, {math.MaxInt64, math.MaxInt64}, {0, 0}, {-1, 1}, {math.MinInt64, minTime - 1}, {maxTime + 1, math.MaxInt64}} {
				p.expect(p.between(r[0], r[1], m), everything...)
				bare := p.between(r[0], r[1], m)
				bare.SkipChunks = true
				p.expect(bare, oracle.MissingSeries, oracle.ExtraSeries)
			}
			p.expectNames(&backend.LabelNamesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64, Matchers: ms(m)}, oracle.MissingSeries, oracle.ExtraSeries)
			p.expectValues(&backend.LabelValuesRequest{Name: "n", MinTime: math.MinInt64, MaxTime: math.MaxInt64, Matchers: ms(m)}, oracle.MissingSeries, oracle.ExtraSeries)
		}),
		must(Time, "S-7.generated", "A series MUST be returned if it has a sample in the range, with all of its samples in the range.", func(p *probe) {
			g := p.generator()
			for range p.opts.Generated {
				req := p.all(re(metricName, "cert_generated_.*"))
				req.MinTime, req.MaxTime = g.Range()
				p.expect(req, everything...)
			}
		}),
		must(Time, "L-2.bounded", "BoundedLabels: label names and values honour the time range, at least coarsely.", func(p *probe) {
			minTime, maxTime := p.o.Bounds()
			for _, r := range [][2]int64{{minTime - 20*day, minTime - 10*day}, {maxTime + 10*day, maxTime + 20*day}} {
				names := &backend.LabelNamesRequest{MinTime: r[0], MaxTime: r[1]}
				if got := p.names(names); len(got) > 0 {
					p.fail(oracle.NamesText(names), "ten days away from all data there are names: %.200q", got)
				}
				values := &backend.LabelValuesRequest{Name: metricName, MinTime: r[0], MaxTime: r[1]}
				if got := p.values(values); len(got) > 0 {
					p.fail(oracle.ValuesText(values), "ten days away from all data there are values: %.200q", got)
				}
			}
		}).claimed(claimBounded),
	}
}

func limits() []Requirement {
	const rule = "Limit N > 0 means the first N series of the order."
	ask := func(p *probe) {
		g := p.generator()
		for i := range p.opts.Generated {
			req := p.all(re(metricName, "cert_(matrix|env|collision|requests_total)"))
			if i > 6 {
				req = g.Request()
				req.MinTime, req.MaxTime = p.o.Bounds()
			}
			req.Limit = []int{1, 2, 3, 5, 1000, 7, 4}[i%7]
			req.SkipChunks = i%2 == 0
			p.expect(req, oracle.MissingSeries, oracle.ExtraSeries, oracle.TooMany)
		}
	}
	return []Requirement{
		must(Limits, "S-10.limit", rule, ask).claimed(claimLimit),
		must(Limits, "S-10.limit-whole", "Limit counts series, not samples or pieces: those that come are whole.", func(p *probe) {
			req := p.all(re(metricName, "cert_(matrix|requests_total)"))
			req.Limit = 2
			p.expect(req, oracle.MissingSample, oracle.ExtraSample, oracle.WrongValue)
		}).claimed(claimLimit),
		must(Limits, "S-10.limit-unclaimed", "Limit MAY be ignored where it is not claimed; the caller cuts. The first N MUST be there.", ask).without(claimLimit),
		must(Limits, "L-3.names", "Limit N > 0 is the first N of the sorted names.", func(p *probe) {
			minTime, maxTime := p.o.Bounds()
			for _, n := range []int{1, 2, 1000} {
				for _, m := range []*labels.Matcher{eq(metricName, "cert_matrix"), re(metricName, "cert_(matrix|env)")} {
					p.expectNames(&backend.LabelNamesRequest{MinTime: minTime, MaxTime: maxTime, Matchers: ms(m), Limit: n}, oracle.TooMany, oracle.MissingSeries, oracle.ExtraSeries)
				}
			}
		}),
		must(Limits, "L-3.values", "Limit N > 0 is the first N of the sorted values.", func(p *probe) {
			minTime, maxTime := p.o.Bounds()
			for _, n := range []int{1, 2, 3, 1000} {
				for _, name := range []string{metricName, "env", "n"} {
					p.expectValues(&backend.LabelValuesRequest{Name: name, MinTime: minTime, MaxTime: maxTime, Matchers: ms(ne(metricName, "cert_wide")), Limit: n}, oracle.TooMany, oracle.MissingSeries, oracle.ExtraSeries)
				}
			}
		}),
		must(Limits, "S-2.batch-size", "A batch of several series MUST fit into 4 MiB, which is what a peer takes in one message unless it was told to take more.", func(p *probe) {
			req := p.all(eq(metricName, "cert_wide"))
			req.SkipChunks, req.BatchSize = true, 1000
			p.expect(req, oracle.BatchBytes)
		}).with(corpus.Wide),
	}
}

// ended waits for a call to end, and says how long it took and how it ended.
func (p *probe) ended(call func() error) (time.Duration, error, bool) {
	p.requests++
	done := make(chan error, 1)
	begun := time.Now()
	go func() { done <- call() }()
	select {
	case err := <-done:
		return time.Since(begun), err, true
	case <-time.After(patience):
		return patience, nil, false
	}
}

func cancellation() []Requirement {
	const prompt2 = "A call MUST return promptly after its context is done, with an error that wraps the cause."
	return []Requirement{
		must(Cancellation, "B-2.before", prompt2+" Also if it was done before; an empty answer would look like one.", func(p *probe) {
			ctx, cancel := context.WithCancel(p.ctx)
			cancel()
			minTime, maxTime := p.o.Bounds()
			series := func() error {
				for _, err := range p.s.Backend.Series(ctx, p.narrow()) {
					if err != nil {
						return err
					}
				}
				return nil
			}
			names := func() error {
				_, err := p.s.Backend.LabelNames(ctx, &backend.LabelNamesRequest{MinTime: minTime, MaxTime: maxTime})
				return err
			}
			values := func() error {
				_, err := p.s.Backend.LabelValues(ctx, &backend.LabelValuesRequest{Name: metricName, MinTime: minTime, MaxTime: maxTime})
				return err
			}
			for _, c := range []struct {
				what string
				call func() error
			}{{"Series", series}, {"LabelNames", names}, {"LabelValues", values}} {
				p.mustEnd(c.what+" with a context that is done", c.call)
			}
		}),
		must(Cancellation, "B-2.midway", prompt2, func(p *probe) {
			ctx, cancel := context.WithCancel(p.ctx)
			defer cancel()
			req := p.all()
			req.Matchers = ms(re(metricName, ".*"))
			req.BatchSize = 1
			var after time.Time
			took, _, ok := p.ended(func() error {
				for _, err := range p.s.Backend.Series(ctx, req) {
					if after.IsZero() {
						after = time.Now()
						cancel()
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
			if !ok || took-0 > patience {
				p.fail(oracle.Text(req)+", cancelled after the first batch", "it had not ended after %v", patience)
				return
			}
			if since := time.Since(after); !after.IsZero() && since > prompt {
				p.fail(oracle.Text(req)+", cancelled after the first batch", "it ended %v later", since.Round(time.Millisecond))
			}
		}),
		must(Cancellation, "B-2.deadline", prompt2+" A deadline is such a cause.", func(p *probe) {
			for _, d := range []time.Duration{time.Nanosecond, time.Millisecond} {
				ctx, cancel := context.WithTimeout(p.ctx, d)
				took, err, ok := p.ended(func() error {
					for _, err := range p.s.Backend.Series(ctx, p.narrow()) {
						if err != nil {
							return err
						}
					}
					return nil
				})
				cancel()
				if !ok || took > prompt+d {
					p.fail(fmt.Sprintf("%s with a deadline in %v", oracle.Text(p.narrow()), d), "it took %v", took.Round(time.Millisecond))
				}
				if ok && err == nil && d == time.Nanosecond {
					p.fail(fmt.Sprintf("%s with a deadline in %v", oracle.Text(p.narrow()), d), "it ended without an error")
				}
			}
		}),
		must(Cancellation, "B-2.break", "Breaking out of the sequence cancels the call and MUST free everything: the subject answers as before.", func(p *probe) {
			for range 50 {
				req := p.all(re(metricName, "cert_.*"))
				req.BatchSize = 1
				p.mustStop(oracle.Text(req)+", left after one batch", func() error {
					for _, err := range p.s.Backend.Series(p.ctx, req) {
						return err
					}
					return nil
				})
				if p.enough() {
					return
				}
			}
			p.expectSeries(p.all(eq(metricName, "cert_matrix")))
		}),
		must(Cancellation, "B-2.leak", "A call that has ended MUST leave no goroutine of its own behind.", leaks),
	}
}

// mustEnd wants an error, and soon.
func (p *probe) mustEnd(what string, call func() error) {
	took, err, ok := p.ended(call)
	switch {
	case !ok || took > prompt:
		p.fail(what, "it took %v", took.Round(time.Millisecond))
	case err == nil:
		p.fail(what, "it ended without an error, which looks like a complete answer")
	case p.s.InProcess && !errors.Is(err, context.Canceled):
		p.fail(what, "the error does not wrap the context's: %v", err)
	}
}

func (p *probe) mustStop(what string, call func() error) {
	took, err, ok := p.ended(call)
	switch {
	case !ok || took > prompt:
		p.fail(what, "it took %v", took.Round(time.Millisecond))
	case err != nil:
		p.fail(what, "the call failed: %v", err)
	}
}

// leaks cancels many calls. What is left of them is looked for among the goroutines where
// they are in this process; everywhere the subject has to answer afterwards.
func leaks(p *probe) {
	const calls = 64
	before := runtime.NumGoroutine()
	for i := range calls {
		ctx, cancel := context.WithCancel(p.ctx)
		req := p.all(re(metricName, "cert_.*"), ne(metricName, "cert_wide"))
		req.BatchSize = 1 + i%3
		n := 0
		took, _, ok := p.ended(func() error {
			for _, err := range p.s.Backend.Series(ctx, req) {
				if n++; n > i%4 {
					cancel()
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		cancel()
		if !ok || took > prompt {
			p.fail(oracle.Text(req)+", cancelled", "it took %v", took.Round(time.Millisecond))
			return
		}
	}
	p.expectSeries(p.all(eq(metricName, "cert_matrix")))
	if !p.s.InProcess {
		return
	}
	// What ends by itself gets a moment to do so.
	deadline := time.Now().Add(prompt / 2)
	for runtime.NumGoroutine() > before+calls/4 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if now := runtime.NumGoroutine(); now > before+calls/4 {
		buf := make([]byte, 1<<16)
		stacks := string(buf[:runtime.Stack(buf, true)])
		last := stacks[strings.LastIndex(strings.TrimSpace(stacks), "\n\n")+1:]
		p.fail(fmt.Sprintf("%d calls of Series, cancelled", calls), "there are %d goroutines more than before, one of them: %.800s", now-before, strings.TrimSpace(last))
	}
}

func faults() []Requirement {
	return []Requirement{
		must(Core, "W-1.bad-regex", "A regular expression that does not parse MUST be refused with InvalidArgument, by every call.", func(p *probe) { p.wireRefuses(storepb.LabelMatcher_RE, "a(b") }).onWire(),
		must(Core, "W-2.matcher-type", "An unknown type of matcher MUST be refused with InvalidArgument, by every call.", func(p *probe) { p.wireRefuses(storepb.LabelMatcher_Type(17), "x") }).onWire(),
		must(Core, "W-3.hash", "Where a chunk comes with a hash, it is the xxhash64 of its data.", wireHashes).onWire(),
		must(Core, "W-4.batches", "With response_batch_size n above 1 no message has more than n series, and none comes as an empty one.", wireBatches).onWire(),
		must(Faults, "B-7.away", "What cannot be reached MUST be an error or a NoticeMissing: silence means complete.", func(p *probe) { p.eachFault(whileAway) }).breaking(),
		must(Faults, "B-2.away", "With what is behind it away or hanging, a call still ends soon after its context does.", func(p *probe) { p.eachFault(whileHanging) }).breaking(),
		must(Faults, "I-1.away", "With what is behind it away, Info answers within five seconds or fails.", func(p *probe) {
			p.eachFault(func(p *probe, f Fault) {
				ctx, cancel := context.WithTimeout(p.ctx, 5*time.Second)
				defer cancel()
				if took, _, ok := p.ended(func() error { _, err := p.s.Backend.Info(ctx); return err }); !ok || took > 5*time.Second+prompt {
					p.fail("Info, "+f.Name, "it took %v", took.Round(time.Millisecond))
				}
			})
		}).breaking(),
		must(Faults, "B-7.back", "When what is behind it is back, the subject answers as before, without being started anew.", func(p *probe) {
			p.eachFault(func(p *probe, _ Fault) {
				ctx, cancel := context.WithTimeout(p.ctx, awayTime)
				defer cancel()
				p.get(ctx, p.all(eq(metricName, "cert_matrix")))
			})
			deadline := time.Now().Add(patience)
			for {
				req := p.all(eq(metricName, "cert_matrix"))
				bad := p.o.Judge(req, p.get(p.ctx, req))
				if len(bad) == 0 {
					return
				}
				if time.Now().After(deadline) {
					p.fail(oracle.Text(req), "%v after everything is back: %s", patience, bad[0].Text)
					return
				}
				time.Sleep(200 * time.Millisecond)
			}
		}).breaking(),
	}
}

func (r Requirement) onWire() Requirement { r.wire = true; return r }

func (r Requirement) breaking() Requirement { r.faults = true; return r }

func (p *probe) eachFault(f func(*probe, Fault)) {
	for _, fault := range p.s.Faults {
		if err := fault.Break(p.ctx); err != nil {
			p.fail(fault.Name, "the harness could not break it: %v", err)
			continue
		}
		p.guard(func() { f(p, fault) })
		if err := fault.Mend(p.ctx); err != nil {
			p.fail(fault.Name, "the harness could not mend it: %v", err)
			panic(stop{})
		}
	}
}

// awayTime is what a call is given while what is behind the subject may be hanging.
const awayTime = 3 * time.Second

func whileAway(p *probe, f Fault) {
	for _, m := range []*labels.Matcher{eq(metricName, "cert_matrix"), re(metricName, "cert_(env|matrix)")} {
		req := p.all(m)
		req.PartialAllowed = true
		ctx, cancel := context.WithTimeout(p.ctx, awayTime)
		got := p.get(ctx, req)
		cancel()
		if bad := p.o.Judge(req, got); len(bad) == 0 || got.Err != nil {
			continue // from memory, or honest
		}
		missing := false
		for _, n := range got.Notices {
			missing = missing || n.Kind == backend.NoticeMissing
		}
		if !missing {
			p.fail(oracle.Text(req)+", "+f.Name, "it answers with %d pieces of series, no error and no notice that something is missing", len(got.Pieces))
		}
	}
	minTime, maxTime := p.o.Bounds()
	p.requests++
	ctx, cancel := context.WithTimeout(p.ctx, awayTime)
	defer cancel()
	req := &backend.LabelValuesRequest{Name: "n", MinTime: minTime, MaxTime: maxTime, Matchers: ms(eq(metricName, "cert_matrix")), PartialAllowed: true}
	got, err := p.s.Backend.LabelValues(ctx, req)
	if err == nil && len(got.Notices) == 0 {
		if must, may := p.o.Values(req); len(oracle.JudgeList(got.Values, must, may, 0)) > 0 {
			p.fail(oracle.ValuesText(req)+", "+f.Name, "it answers %q, no error and no notice that something is missing", got.Values)
		}
	}
}

func whileHanging(p *probe, f Fault) {
	ctx, cancel := context.WithTimeout(p.ctx, time.Second)
	defer cancel()
	req := p.all(eq(metricName, "cert_matrix"))
	took, _, ok := p.ended(func() error {
		for _, err := range p.s.Backend.Series(ctx, req) {
			if err != nil {
				return err
			}
		}
		return nil
	})
	if !ok || took > time.Second+prompt {
		p.fail(oracle.Text(req)+" with a deadline in 1s, "+f.Name, "it took %v", took.Round(time.Millisecond))
	}
}
