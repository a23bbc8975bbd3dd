// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/internal/pushdown"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/storepb"
)

// asked is a requirement of thanos.Query, for subjects that announce it.
func asked(id, rule string, check func(*probe)) Requirement {
	r := must(Pushdown, id, rule, check).claimed(claimQuery).with(corpus.Base)
	r.Since = "1.1"
	return r
}

func (r Requirement) and(c *capability) Requirement { r.also = c; return r }

func (r Requirement) replicas() Requirement { r.replica = true; return r }

// both asks expressions at one instant and over a range that crosses the ends of blocks
// and begins and ends between samples.
func both(exprs ...string) func(*probe) {
	return func(p *probe) {
		for _, text := range exprs {
			p.evaluates(p.instant(text))
			p.evaluates(p.over(text))
		}
	}
}

func instants(exprs ...string) func(*probe) {
	return func(p *probe) {
		for _, text := range exprs {
			p.evaluates(p.instant(text))
		}
	}
}

func pushedDown() []Requirement {
	const values = "Values MUST be those of Prometheus' engine over the subject's series, up to rounding; label sets and times exactly those."
	r := []Requirement{
		asked("P-1.instant", "An instant query MUST come to the same vector as in Prometheus, each series with one point at the time of the query.",
			instants(`cert_matrix`, `cert_matrix{n="1"}`, `cert_env{env=~"pr.*"}`, `{__name__=~"cert_(env|prefix)"}`, `cert_env{env=""}`, `cert_matrix{i!~"a|"}`, `abs(cert_temperature_celsius)`, `cert_requests_total > 40`)),
		asked("P-1.range", "A range query MUST come to the same matrix as in Prometheus.", func(p *probe) {
			for _, text := range []string{`cert_matrix`, `cert_temperature_celsius`, `cert_requests_total{job="api-1"}`, `cert_generated_7`, `vector(3)`, `time()`, `cert_requests_total > 40`} {
				p.evaluates(p.over(text))
			}
		}),
		asked("P-1.generated", "Whatever is asked, the answer MUST be that of Prometheus.", func(p *probe) {
			g := p.queries()
			for range p.opts.Generated {
				if q := g.Query(); q != nil {
					p.evaluates(q)
				}
			}
		}),
		asked("P-1.engines", "Whichever engine a request names, the answer MUST be that of Prometheus, or the engine be refused.", func(p *probe) {
			for _, e := range []storepb.EngineType{storepb.EngineType_prometheus, storepb.EngineType_thanos} {
				q := p.instant(`cert_matrix`)
				q.Engine = e
				if c := status.Code(p.query(q).Err); c == codes.InvalidArgument || c == codes.Unimplemented {
					continue
				}
				p.evaluates(q)
				for _, text := range []string{`sum by (job) (rate(cert_requests_total[5m]))`, `cert_matrix > 1050`, `avg_over_time(cert_temperature_celsius[10m])`, `cert_requests_total offset 17m`, `count(cert_env)`} {
					for _, q := range []*pushdown.Query{p.instant(text), p.over(text)} {
						q.Engine = e
						p.evaluates(q)
					}
				}
				g := p.queries()
				for range p.opts.Generated / 2 {
					if q := g.Query(); q != nil {
						q.Engine = e
						p.evaluates(q)
					}
				}
			}
		}),
		asked("P-2.scalar", "A scalar MUST come as one series without labels, with one point at the time of the query, or at each step.", both(`1+1`, `time()`, `scalar(cert_env{env="PROD"$first}) + 3`, `pi()`)),
		asked("P-2.string", "A string has no form in this API: the answer MUST have no series, and be no error.", instants(`"text"`)),
		asked("P-3.steps", "Points MUST be at start + k × step up to end, which is inclusive, and nowhere else: also where the end lies between steps, where there is one step only, and where the step is no round number.", func(p *probe) {
			for _, g := range [][3]int64{{2400, 3000, 60}, {2400, 3001, 60}, {2430, 3029, 60}, {2401, 2401, 60}, {2400, 2459, 3600}, {2413, 3399, 37}, {2400, 2410, 1}, {0, 17_940, 7001}, {-900, 900, 420}} {
				for _, text := range []string{`vector(1)`, `cert_matrix{n="2"}`, `sum(cert_requests_total)`, `time()`} {
					q := p.over(text)
					q.Start, q.End, q.Step = p.c.Start/1000+g[0], p.c.Start/1000+g[1], g[2]
					p.evaluates(q)
				}
			}
		}),
		asked("P-4.aggregations", values, both(`sum by (job) (cert_requests_total)`, `sum without (instance) (cert_requests_total)`, `avg(cert_requests_total)`, `avg(cert_temperature_celsius)`, `min by (job) (cert_requests_total)`,
			`max(cert_requests_total)`, `count by (env) (cert_env)`, `group(cert_matrix)`, `quantile by (job) (0.7, cert_requests_total)`, `quantile(0.5, cert_temperature_celsius)`,
			`stddev by (job) (cert_requests_total)`, `stdvar(cert_temperature_celsius)`, `count_values("v", cert_env)`, `topk by ($only) (2, cert_matrix)`, `bottomk by ($only) (1, cert_temperature_celsius)`,
			`sum by (job$and) (rate(cert_requests_total[5m]))`)),
		asked("P-4.counters", "Rates MUST know that a counter begins anew, and reach to the ends of their window, as in Prometheus.", both(`rate(cert_requests_total[5m])`, `increase(cert_requests_total[10m])`, `delta(cert_temperature_celsius[10m])`,
			`irate(cert_requests_total[5m])`, `idelta(cert_temperature_celsius[5m])`, `resets(cert_requests_total[3h])`, `changes(cert_requests_total[1h])`, `deriv(cert_temperature_celsius[10m])`, `rate(cert_requests_total[1h])`,
			`predict_linear(cert_matrix[10m], 3600)`, `rate(cert_generated_3[1h])`)),
		asked("P-4.over-time", values, both(`avg_over_time(cert_temperature_celsius[10m])`, `min_over_time(cert_temperature_celsius[10m])`, `max_over_time(cert_requests_total[2h])`, `sum_over_time(cert_matrix[7m])`,
			`count_over_time(cert_generated_5[1h])`, `quantile_over_time(0.3, cert_requests_total[1h])`, `stddev_over_time(cert_requests_total[30m])`, `last_over_time(cert_generated_5[30m])`, `present_over_time(cert_generated_5[10m])`)),
		asked("P-4.offset", "offset and @ MUST move what is read, in both directions, and not the times of the answer.", both(`cert_matrix offset 17m`, `cert_requests_total offset -13m`, `cert_matrix @ $hour`, `sum(cert_requests_total @ $hour offset 5m)`,
			`rate(cert_requests_total[5m] offset 20m)`, `rate(cert_requests_total[5m] @ $hour)`, `cert_requests_total - cert_requests_total offset 10m`, `cert_matrix @ end()`, `cert_matrix @ start()`)),
		asked("P-4.subqueries", values, both(`max_over_time(rate(cert_requests_total[5m])[30m:1m])`, `avg_over_time(sum by (job) (cert_requests_total)[20m:7m])`, `min_over_time((cert_matrix > 1050)[1h:13m])`,
			`sum_over_time(cert_matrix[10m:1m] offset 5m)`, `count_over_time(vector(1)[1h:17m])`, `max_over_time(sum_over_time(cert_matrix[5m])[20m:3m] @ $hour)`)),
		asked("P-4.operators", "Operators MUST match label sets as in Prometheus: on and ignoring, one to many, and, or, unless, comparisons that filter and that do not.", both(`cert_requests_total / 7`, `2 ^ cert_env`, `-cert_matrix`, `cert_requests_total % 7`,
			`cert_requests_total + on (instance$and) cert_requests_total`, `cert_requests_total / ignoring (instance) group_left () sum without (instance) (cert_requests_total)`,
			`cert_requests_total * on (job$and) group_left () count by (job$and) (cert_requests_total)`, `cert_matrix and on (n$and) cert_matrix{i="a"}`, `cert_matrix unless cert_matrix{i="b"}`,
			`cert_env{env="prod"} or cert_env{env="PROD"}`, `cert_matrix == 2 or cert_matrix > 3100`, `cert_requests_total > bool 40`, `cert_requests_total >= ignoring (nothing) cert_requests_total offset 1m`, `cert_temperature_celsius atan2 2`)),
		asked("P-4.labels", "Functions on labels, and absent, MUST make the label sets that Prometheus makes.", both(`absent(cert_no_such_metric{job="x", env=~"y"})`, `absent(cert_matrix)`, `absent_over_time(cert_no_such_metric{job="x"}[5m])`,
			`label_replace(cert_requests_total, "host", "$1", "instance", "([^:]+):.*")`, `label_join(cert_requests_total, "both", "/", "job", "instance")`, `label_replace(cert_matrix{i="a"}, "i", "", "i", ".*")`,
			`sum by (kind) (label_replace(cert_env, "kind", "$1", "env", "(..).*"))`, `count by (__name__) ({__name__=~"cert_(env|matrix)"})`)),
		asked("P-4.histograms", "Native histograms MUST come as such, bucket for bucket, and functions and aggregations over them be those of Prometheus.", both(`cert_histogram{kind="integer"}`, `cert_histogram{kind="float"}`, `cert_histogram{kind="mixed"}`,
			`histogram_quantile(0.9, cert_histogram{kind="integer"})`, `histogram_quantile(0.5, rate(cert_histogram{kind=~"integer|float"}[10m]))`, `histogram_count(cert_histogram{kind="gauge"})`, `histogram_sum(cert_histogram)`,
			`histogram_fraction(0, 2, cert_histogram{kind="float"})`, `rate(cert_histogram{kind="integer"}[10m])`, `sum(cert_histogram{kind=~"integer|float"})`, `avg_over_time(cert_histogram{kind="integer"}[5m])`)).and(claimHistograms).with(corpus.Base, corpus.Histograms),
		asked("P-5.values", "Values that are only selected MUST come back as they are: NaN, infinities, the largest and the smallest.", func(p *probe) {
			for k := range int64(8) {
				q := p.instant(`cert_value`)
				q.Start += 60 * k
				p.expectAnswer(q, 0)
			}
			p.expectAnswer(p.over(`cert_value`), 0)
			p.evaluates(p.over(`count(cert_value)`))
			p.evaluates(p.over(`cert_value{kind="mixed"} > 0`))
		}).with(corpus.Base, corpus.Values),
		asked("P-5.stale", "A series MUST end at a stale marker, and a marker be no value of any function.", func(p *probe) {
			for _, text := range []string{`cert_stale`, `count_over_time(cert_stale[10m])`, `sum_over_time(cert_stale[10m])`, `last_over_time(cert_stale[3m])`, `count(cert_stale)`, `rate(cert_stale[10m])`} {
				q := p.over(text)
				q.Start, q.End, q.Step = p.c.Start/1000+500, p.c.Start/1000+5000, 31
				p.evaluates(q)
				for _, after := range []int64{9*60 + 59, 10 * 60, 10*60 + 30, 11 * 60, 3601} {
					q := p.instant(text)
					q.Start = p.c.Start/1000 + after
					p.evaluates(q)
				}
			}
		}).and(claimStale).with(corpus.Base, corpus.Stale),
		asked("P-5.lookback", "lookback_delta_seconds MUST be how far back a sample may lie that is still taken.", func(p *probe) {
			for _, lookback := range []int64{30, 61, 240, 300, 900, 7200} {
				for _, text := range []string{`cert_time{kind=~"gap|early|late"}`, `cert_generated_2`, `sum(cert_generated_4)`} {
					for _, after := range []int64{545, 700, 1100, 1430, 3600, 9030} {
						q := p.instant(text)
						q.Start, q.Lookback = p.c.Start/1000+after, lookback
						p.evaluates(q)
					}
					q := p.over(text)
					q.Lookback = lookback
					p.evaluates(q)
				}
			}
		}).with(corpus.Base, corpus.Times),
		asked("P-6.external", "PromQL MUST see external labels: in matchers, in groupings, and on every series of the answer.", external).ext(),
		asked("P-6.every", "Without deduplication every series MUST be there, those of all replicas, and aggregations count each.", both(`cert_env`, `count(cert_env)`, `sum(cert_requests_total)`, `count by ($only) (cert_matrix)`, `sum by ($only) (rate(cert_requests_total[5m]))`)).ext(),
		asked("P-7.dedup", "With enable_dedup the replica label is gone, and series that differ in nothing else MUST count once.", func(p *probe) {
			p.deduplicated([]string{"replica"})
			g := p.queries()
			for range p.opts.Generated {
				if q := g.Query(); q != nil && !strings.Contains(q.Text, "replica") {
					q.ReplicaLabels = []string{"replica"}
					p.evaluates(q)
				}
			}
		}).replicas(),
		asked("P-7.replica-labels", "replica_labels of the request say which labels tell replicas apart, and no others.", func(p *probe) {
			for _, l := range p.externalNames() {
				p.deduplicated([]string{l})
			}
			p.deduplicated(p.externalNames())
		}).replicas(),
		asked("P-8.no-match", "A query that selects nothing MUST be an empty answer and no error.", both(`cert_no_such_metric`, `sum(cert_no_such_metric)`, `rate(cert_no_such_metric[5m])`, `cert_matrix{cert_no_such_label="x"}`, `cert_requests_total > 1e9`)),
		asked("P-8.bad-expression", "An expression that is none MUST be refused.", func(p *probe) { p.refusesExpressions(codes.OK) }),
		asked("P-8.bad-expression-code", "An expression that is none SHOULD be refused with InvalidArgument. (Thanos' querier says Aborted.)",
			func(p *probe) { p.refusesExpressions(codes.InvalidArgument) }).should(),
		asked("P-8.evaluation", "A query of which the evaluation fails MUST be an error: what is left of an answer looks like a whole one.", func(p *probe) {
			for _, text := range []string{`cert_env * on () group_left () cert_matrix`, `cert_requests_total + on (job) cert_requests_total`, `label_replace(cert_matrix, "n", "1", "n", ".*")`} {
				p.refuses(p.instant(text), codes.OK)
				p.refuses(p.over(text), codes.OK)
			}
		}),
		asked("P-8.engine", "An engine that is not known MUST be refused with InvalidArgument.", func(p *probe) {
			for _, q := range []*pushdown.Query{p.instant(`cert_matrix`), p.over(`cert_matrix`)} {
				q.Engine = 17
				p.refuses(q, codes.InvalidArgument)
			}
		}),
		asked("P-8.range", "A step of zero or less, and an end before the start, SHOULD be refused with InvalidArgument.", func(p *probe) {
			q := p.over(`cert_matrix`)
			q.Start, q.End = q.End, q.Start
			p.refuses(q, codes.InvalidArgument)
			q = p.over(`cert_matrix`)
			q.Step = -60
			p.refuses(q, codes.InvalidArgument)
		}).should(),
		asked("P-9.timeout", "With timeout_seconds a query MUST end soon after that time, with its answer or with an error.", func(p *probe) {
			short, long := p.instant(heavy), p.over(heaviest)
			short.Timeout, long.Timeout, long.Step = 1, 1, 5
			for _, q := range []*pushdown.Query{short, long} {
				if took, _, ok := p.ended(func() error { return p.query(q).Err }); !ok || took > time.Second+prompt {
					p.fail(q.String(), "it took %v", took.Round(time.Millisecond))
				}
			}
		}),
		asked("P-9.cancel", "A call that is cancelled MUST free everything: the subject answers as before, and soon.", func(p *probe) {
			for i := range 24 {
				ctx, cancel := context.WithTimeout(p.ctx, time.Duration(1+i)*time.Millisecond)
				took, _, ok := p.ended(func() error { return pushdown.Ask(ctx, p.s.Wire, p.over(heavy)).Err })
				cancel()
				if !ok || took > prompt {
					p.fail(p.over(heavy).String()+", cancelled", "it took %v", took.Round(time.Millisecond))
					return
				}
			}
			q := p.instant(`sum(cert_matrix)`)
			if took, _, ok := p.ended(func() error { return p.query(q).Err }); !ok || took > prompt {
				p.fail(q.String()+", after 24 calls that were cancelled", "it took %v", took.Round(time.Millisecond))
			}
			p.evaluates(q)
		}),
		asked("P-10.batches", "With response_batch_size n above 1 no message has more than n series, none comes as an empty batch, and the answer is the same.", func(p *probe) {
			for _, n := range []int64{1, 2, 7, 64, 1000} {
				for _, q := range []*pushdown.Query{p.instant(`cert_matrix`), p.over(`{__name__=~"cert_(env|prefix)"}`), p.over(`cert_no_such_metric`)} {
					q.Batch = n
					a := p.query(q)
					if int64(a.Batch) > n || a.EmptyBatch {
						p.fail(q.String(), "a message has %d series, an empty batch comes: %v", a.Batch, a.EmptyBatch)
					}
					p.evaluates(q)
				}
			}
		}),
		asked("P-10.stats", "One frame of statistics SHOULD come, after everything else.", func(p *probe) {
			for _, q := range []*pushdown.Query{p.instant(`cert_matrix`), p.over(`cert_matrix`), p.instant(`cert_no_such_metric`)} {
				if a := p.query(q); a.Err != nil || a.Stats != 1 || !a.Last {
					p.fail(q.String(), "there are %d frames of statistics, one of them last: %v, error: %v", a.Stats, a.Last, a.Err)
				}
			}
		}).should(),
	}
	unclaimed := must(Pushdown, "P-0.unclaimed", "Where Info does not announce the query API a query MUST be refused with Unimplemented, or answered: an empty answer would look like one.", func(p *probe) {
		for _, q := range []*pushdown.Query{p.instant(`cert_matrix`), p.over(`cert_matrix`)} {
			if a := p.query(q); status.Code(a.Err) != codes.Unimplemented {
				p.judge(q, a, pushdown.Tolerance)
			}
		}
	}).without(claimQuery).onWire().with(corpus.Base)
	unclaimed.Since = "1.1"
	return append(r, unclaimed)
}

// heavy is a query that takes an engine a tenth of a second, and heaviest one that takes it
// several with a small step: many series, of which each takes a part.
const (
	heavy    = `sum(max_over_time(rate(cert_requests_total[5m])[5h:1s]))`
	heaviest = `sum(quantile_over_time(0.3, ({__name__=~"cert_(env|matrix|prefix|requests_total)"})[2h:1s]))`
)

func external(p *probe) {
	for _, ext := range p.external {
		all := ""
		ext.Range(func(l labels.Label) {
			m := fmt.Sprintf("%s=%q", quoted(l.Name), l.Value)
			all += m + ", "
			both(fmt.Sprintf(`cert_matrix{%s}`, m), fmt.Sprintf(`sum by (%s, job) (rate(cert_requests_total{%s}[5m]))`, quoted(l.Name), m), fmt.Sprintf(`cert_matrix{%s!="", n="1"}`, quoted(l.Name)),
				fmt.Sprintf(`cert_matrix{%s=~".*", %s!=%q}`, quoted(l.Name), quoted(l.Name), l.Value), fmt.Sprintf(`count(cert_env{%s=~"no-such-value|"})`, quoted(l.Name)), fmt.Sprintf(`count by (%s) (cert_env)`, quoted(l.Name)))(p)
		})
		both(fmt.Sprintf(`cert_env{%s}`, strings.TrimSuffix(all, ", ")), `cert_requests_total`)(p)
	}
}

func (p *probe) replicated() bool { return slices.Contains(p.externalNames(), "replica") }

// deduplicated asks what comes out right only if replicas count once. They are identical
// copies, so that there is one right answer.
func (p *probe) deduplicated(over []string) {
	for _, text := range []string{`cert_matrix`, `count(cert_env)`, `sum by (job) (cert_requests_total)`, `rate(cert_requests_total[5m])`, `cert_generated_6`, `sum_over_time(cert_generated_6[1h])`} {
		for _, q := range []*pushdown.Query{p.instant(text), p.over(text)} {
			q.ReplicaLabels = over
			p.evaluates(q)
		}
	}
}

func quoted(name string) string {
	if pushdown.Plain(name) {
		return name
	}
	return fmt.Sprintf("%q", name)
}

// filled puts in what depends on the subject: $only are the names of external labels, $and
// the same behind others, $first matchers of the first set, $hour an instant.
func (p *probe) filled(text string) string {
	names := p.externalNames()
	for i, n := range names {
		names[i] = quoted(n)
	}
	and, first := "", ""
	for _, n := range names {
		and += ", " + n
	}
	if len(p.external) > 0 {
		p.external[0].Range(func(l labels.Label) { first += fmt.Sprintf(", %s=%q", quoted(l.Name), l.Value) })
	}
	return strings.NewReplacer("$only", strings.Join(names, ", "), "$and", and, "$first", first, "$hour", fmt.Sprint(p.c.Start/1000+3600)).Replace(text)
}

// queries are those at random, over the metrics that every subject has.
func (p *probe) queries() *pushdown.Generator {
	return pushdown.NewGenerator(p.seed(), p.o.Series(), func(m string) bool {
		return strings.HasPrefix(m, "cert_generated_") || slices.Contains([]string{"cert_matrix", "cert_env", "cert_prefix", "cert_requests_total", "cert_temperature_celsius"}, m)
	})
}

// instant is a query two and a half hours after the start, half a minute after a sample.
func (p *probe) instant(text string) *pushdown.Query {
	return &pushdown.Query{Text: p.filled(text), Start: p.c.Start/1000 + 9030}
}

// over is a query over two hours, in which counters begin anew.
func (p *probe) over(text string) *pushdown.Query {
	return &pushdown.Query{Text: p.filled(text), Start: p.c.Start/1000 + 2415, End: p.c.Start/1000 + 9700, Step: 410}
}

// query asks once.
func (p *probe) query(q *pushdown.Query) *pushdown.Answer {
	p.requests++
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	return pushdown.Ask(ctx, p.s.Wire, q)
}

// expected is what a query comes to. An error is one that the answer has to be too, or
// pushdown.ErrAmbiguous.
func (p *probe) expected(q *pushdown.Query) ([]pushdown.Series, error) {
	if p.evaluator == nil {
		p.evaluator = pushdown.NewEvaluator(p.o.Series())
	}
	return p.evaluator.Evaluate(p.ctx, q)
}

// evaluates asks, and compares up to rounding.
func (p *probe) evaluates(q *pushdown.Query) { p.expectAnswer(q, pushdown.Tolerance) }

// expectAnswer asks, and shows the shortest part of the expression of which the answer is
// wrong too.
func (p *probe) expectAnswer(q *pushdown.Query, eps float64) {
	if p.enough() {
		return
	}
	d := p.wrong(q, p.query(q), eps)
	if d == nil {
		return
	}
	shortest := pushdown.Shrink(q, shrinkTries, func(r *pushdown.Query) bool {
		again := p.wrong(r, p.query(r), eps)
		if again != nil {
			d = again
		}
		return again != nil
	})
	p.failure(report.Failure{Request: shortest.String(), Message: d.Message, Expected: d.Expected, Actual: d.Actual})
}

func (p *probe) judge(q *pushdown.Query, a *pushdown.Answer, eps float64) {
	if d := p.wrong(q, a, eps); d != nil {
		p.failure(report.Failure{Request: q.String(), Message: d.Message, Expected: d.Expected, Actual: d.Actual})
	}
}

// wrong says what is wrong with an answer, nil if nothing is, or if nobody can say.
func (p *probe) wrong(q *pushdown.Query, a *pushdown.Answer, eps float64) *pushdown.Difference {
	want, err := p.expected(q)
	switch {
	case errors.Is(err, pushdown.ErrAmbiguous), p.ctx.Err() != nil:
		return nil
	case err != nil && a.Err == nil:
		return &pushdown.Difference{Message: fmt.Sprintf("there is an answer, of %d series, and it has to be an error", len(a.Series)), Expected: []string{err.Error()}}
	case err != nil:
		return nil
	case a.Err != nil:
		return &pushdown.Difference{Message: fmt.Sprintf("the call failed: %v", a.Err)}
	}
	return pushdown.Compare(want, a.Series, eps)
}

// refusesExpressions asks for what is no expression, or no such result.
func (p *probe) refusesExpressions(want codes.Code) {
	for _, text := range []string{``, `sum(`, `cert_matrix{`, `rate(cert_matrix)`, `no_such_function(cert_matrix)`, `cert_matrix{n=~"("}`, `1 + "x"`, `cert_matrix[5m] + 1`, `{}`} {
		p.refuses(p.instant(text), want)
		p.refuses(p.over(text), want)
	}
	p.refuses(p.over(`"text"`), want)
	p.refuses(p.over(`cert_matrix[5m]`), want)
}

// refuses wants an error, of the code unless that is OK.
func (p *probe) refuses(q *pushdown.Query, want codes.Code) {
	a := p.query(q)
	switch got := status.Code(a.Err); {
	case got == codes.OK:
		p.fail(q.String(), "there is an answer, of %d series, warnings %q", len(a.Series), a.Warnings)
	case want != codes.OK && got != want:
		p.fail(q.String(), "want %s, got %s: %v", want, got, status.Convert(a.Err).Message())
	case got == codes.Unimplemented, got == codes.Unavailable:
		p.fail(q.String(), "want an error of the evaluation, got %s: %v", got, status.Convert(a.Err).Message())
	}
}
