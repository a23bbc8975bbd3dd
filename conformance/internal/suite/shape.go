// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/backend"
)

// must is a requirement that every backend has to keep.
func must(profile, id, rule string, check func(*probe)) Requirement {
	return Requirement{ID: id, Profile: profile, Level: report.Must, Rule: rule, Since: "1.0", check: check}
}

func (r Requirement) should() Requirement { r.Level = report.Should; return r }

func (r Requirement) with(parts ...corpus.Part) Requirement { r.needs = parts; return r }

func (r Requirement) ext() Requirement { r.external = true; return r }

func (r Requirement) claimed(c *capability) Requirement { r.claim = c; return r }

func (r Requirement) without(c *capability) Requirement { r.claim, r.unclaimed = c, true; return r }

func labelling() []Requirement {
	const external = "External labels MUST be part of every series and override a stored label of the same name."
	const matched = "A matcher on an external label MUST be evaluated against the external value only. If it fails the answer is empty and no error."
	return []Requirement{
		must(Labels, "S-3.valid", "Label sets MUST be sorted by name, without duplicate or empty names and without empty values, in valid UTF-8.", func(p *probe) {
			p.expect(p.narrow(), oracle.LabelSet)
		}),
		must(Labels, "S-3.names", "Every name that is valid UTF-8 is a label's or a metric's name; a series need not have a metric name.", func(p *probe) {
			for _, s := range p.of(corpus.Names) {
				p.expectSeries(p.all(exactly(s)...))
			}
			p.expectSeries(p.all(eq(metricName, "")))
			p.expectSeries(p.all(re(metricName, "job:.*")))
		}).with(corpus.Names),
		must(Labels, "S-3.text", "Values are any UTF-8, kept byte for byte: quotes, backslashes, newlines, spaces at the ends.", func(p *probe) {
			p.expectSeries(p.all(eq(metricName, "cert_text")))
			for _, s := range p.of(corpus.LabelText) {
				p.expectSeries(p.all(exactly(s)...))
				p.expectSamples(p.all(exactly(s)...))
			}
			minTime, maxTime := p.o.Bounds()
			p.expectValues(&backend.LabelValuesRequest{Name: "text", MinTime: minTime, MaxTime: maxTime, Matchers: ms(eq(metricName, "cert_text"))}, oracle.MissingSeries, oracle.ExtraSeries)
		}).with(corpus.LabelText),
		must(Labels, "S-3.wide", "Long values are values: 70 kB in each of many series.", func(p *probe) {
			p.expectSamples(p.all(eq(metricName, "cert_wide")))
			minTime, maxTime := p.o.Bounds()
			p.expectValues(&backend.LabelValuesRequest{Name: "wide", MinTime: minTime, MaxTime: maxTime}, oracle.MissingSeries, oracle.ExtraSeries)
		}).with(corpus.Wide),
		must(Labels, "S-4.external", external, func(p *probe) {
			req := p.narrow()
			req.SkipChunks = true
			p.expectThat(req, func(v oracle.Violation) bool { return v.Kind == oracle.ExtraSeries })
			p.expectSamples(p.all(eq(metricName, "cert_matrix")))
		}).ext(),
		must(Labels, "S-4.override", external, func(p *probe) {
			p.expectSeries(p.all(eq(metricName, "cert_collision")))
		}).with(corpus.Collisions).ext(),
		must(Labels, "S-5.matcher", matched, func(p *probe) {
			p.eachExternal(func(name, value string) {
				for _, m := range []*labels.Matcher{eq(name, value), ne(name, "x"), re(name, ".+"), nre(name, "x.*"), re(name, regexp.QuoteMeta(value)+"|")} {
					p.expectSeries(p.all(eq(metricName, "cert_matrix"), m))
				}
			})
		}).ext(),
		must(Labels, "S-5.mismatch", matched, func(p *probe) {
			p.eachExternal(func(name, value string) {
				for _, m := range []*labels.Matcher{eq(name, "no such value"), ne(name, value), nre(name, ".+"), eq(name, ""), re(name, regexp.QuoteMeta(value[:len(value)-1]))} {
					p.expectSeries(p.all(eq(metricName, "cert_matrix"), m))
				}
				minTime, maxTime := p.o.Bounds()
				p.expectNames(&backend.LabelNamesRequest{MinTime: minTime, MaxTime: maxTime, Matchers: ms(eq(name, "no such value"))}, oracle.ExtraSeries)
				p.expectValues(&backend.LabelValuesRequest{Name: metricName, MinTime: minTime, MaxTime: maxTime, Matchers: ms(eq(name, "no such value"))}, oracle.ExtraSeries)
			})
		}).ext(),
		must(Labels, "S-5.stored", matched+" A stored label of that name is never looked at.", func(p *probe) {
			p.eachExternal(func(name, value string) {
				p.expectSeries(p.all(eq(metricName, "cert_collision"), eq(name, value)))
				p.expectSeries(p.all(eq(metricName, "cert_collision"), eq(name, "stored")))
			})
		}).with(corpus.Collisions).ext(),
		must(Labels, "S-6.external-alone", "A request with only matchers on external labels selects everything that is left. (Thanos' sidecar and TSDB refuse it.)", func(p *probe) {
			p.eachExternal(func(name, value string) {
				req := p.all(eq(name, value))
				req.SkipChunks = true
				p.expectSeries(req)
			})
		}).ext().should(),
		must(Labels, "L-1.external", "External labels are among the names, but only if at least one series matches.", func(p *probe) {
			minTime, maxTime := p.o.Bounds()
			for _, list := range [][]*labels.Matcher{{eq(metricName, "cert_matrix")}, {eq(metricName, "cert_no_such_metric")}, {eq(metricName, "cert_matrix"), eq("n", "no such")}} {
				p.expectNames(&backend.LabelNamesRequest{MinTime: minTime, MaxTime: maxTime, Matchers: list}, oracle.MissingSeries, oracle.ExtraSeries)
			}
		}).ext(),
		must(Labels, "L-6.external-values", "Of an external label the only value is the external one, returned if and only if at least one series matches.", func(p *probe) {
			minTime, maxTime := p.o.Bounds()
			p.eachExternal(func(name, value string) {
				for _, list := range [][]*labels.Matcher{nil, {eq(metricName, "cert_matrix")}, {eq(metricName, "cert_collision")}, {eq(metricName, "cert_no_such_metric")}, {eq(name, value)}, {eq(name, "no such value")}} {
					p.expectValues(&backend.LabelValuesRequest{Name: name, MinTime: minTime, MaxTime: maxTime, Matchers: list}, oracle.MissingSeries, oracle.ExtraSeries)
				}
			})
		}).ext(),
	}
}

// of are the stored series of a part.
func (p *probe) of(part corpus.Part) (out []corpus.Series) {
	for _, s := range p.c.Series {
		if s.Part == part {
			out = append(out, s)
		}
	}
	return out
}

// exactly selects one series.
func exactly(s corpus.Series) (out []*labels.Matcher) {
	s.Labels.Range(func(l labels.Label) { out = append(out, eq(l.Name, l.Value)) })
	return out
}

func (p *probe) eachExternal(f func(name, value string)) {
	seen := map[labels.Label]bool{}
	for _, ls := range p.external {
		ls.Range(func(l labels.Label) {
			if !seen[l] {
				seen[l] = true
				f(l.Name, l.Value)
			}
		})
	}
}

func ordering() []Requirement {
	const order = "Series MUST come in ascending order of their final label sets, compared pairwise by name bytes and then value bytes, the shorter set first on a common prefix."
	return []Requirement{
		must(Ordering, "S-1.order", order, func(p *probe) {
			p.expect(p.narrow(), oracle.Order)
			for g, i := p.generator(), 0; i < p.opts.Generated/2; i++ {
				p.expect(g.Request(), oracle.Order)
			}
		}),
		must(Ordering, "S-1.bytes", order+" Bytes, not UTF-16 units.", func(p *probe) {
			p.expect(p.all(eq(metricName, "cert_text")), oracle.Order)
		}).with(corpus.LabelText),
		must(Ordering, "S-1.prefix", order, func(p *probe) {
			p.expect(p.all(re("a", ".+")), oracle.Order)
			p.expect(p.all(ne("ab", ""), eq("a", "")), oracle.Order)
		}),
		must(Ordering, "S-1.external", order+" External labels are part of them, also where they sort between or override stored ones.", func(p *probe) {
			p.expect(p.all(re(metricName, "cert_(collision|matrix|env)")), oracle.Order)
			p.expect(p.all(re(metricName, "cert_.*"), eq("wide", "")), oracle.Order)
		}).ext(),
		must(Ordering, "S-2.pieces", "Once another series has started a series MUST NOT come again.", func(p *probe) {
			p.expect(p.narrow(), oracle.Reappears)
			for g, i := p.generator(), 0; i < p.opts.Generated/2; i++ {
				p.expect(g.Request(), oracle.Reappears)
			}
		}),
		must(Ordering, "S-1.batches", "The size of batches changes nothing: neither order nor series nor samples.", func(p *probe) {
			for _, n := range []int{1, 2, 3, 17, 64, 1000} {
				req := p.all(re(metricName, "cert_(matrix|env|collision|generated_.*)"))
				req.BatchSize = n
				p.expectThat(req, func(v oracle.Violation) bool {
					return v.Kind != oracle.ChunkOrder && v.Kind != oracle.ChunkSize && v.Kind != oracle.ZeroSign
				})
			}
		}),
	}
}

func sharding() []Requirement {
	const rule = "Shard selects the series whose xxhash64 over name 0xFF value 0xFF of the labels that count, in order of the final label set, modulo Total, is Index."
	ask := func(p *probe, kinds ...oracle.Kind) {
		g := p.generator()
		for i := range p.opts.Generated {
			req := p.narrow()
			if i > 0 {
				req = g.Request()
				req.MinTime, req.MaxTime = p.o.Bounds()
			}
			total := int64(1 + i%4)
			req.Shard = &backend.Shard{Index: int64(g.Rand().IntN(int(total))), Total: total, By: i%2 == 0, Labels: [][]string{{"n", "env", "job"}, nil, {metricName}, {"no_such_label"}}[i/2%4]}
			p.expect(req, kinds...)
		}
	}
	return []Requirement{
		must(Sharding, "S-10.shard", rule, func(p *probe) { ask(p, oracle.MissingSeries, oracle.ExtraSeries) }).claimed(claimSharding),
		must(Sharding, "S-10.shard-parts", "All shards together are everything, and none has what another has.", func(p *probe) {
			for _, by := range []bool{true, false} {
				seen := map[string]int64{}
				for i := range int64(3) {
					req := p.all(re(metricName, "cert_(matrix|env|collision|generated_.*)"))
					req.SkipChunks, req.Shard = true, &backend.Shard{Index: i, Total: 3, By: by, Labels: []string{metricName, "zone"}}
					got := p.get(p.ctx, req)
					if got.Err != nil {
						p.fail(oracle.Text(req), "the call failed: %v", got.Err)
						return
					}
					for _, s := range got.Pieces {
						k := s.Labels.String()
						if before, ok := seen[k]; ok && before != i {
							p.fail(oracle.Text(req), "%s is in shard %d too", k, before)
						}
						seen[k] = i
					}
				}
				for _, s := range p.o.Series() {
					if m := re(metricName, "cert_(matrix|env|collision|generated_.*)"); m.Matches(s.Labels.Get(metricName)) {
						if _, ok := seen[s.Labels.String()]; !ok {
							p.fail(fmt.Sprintf("Series of three shards, by=%v", by), "%s is in none of them", oracle.Show(s.Labels))
							return
						}
					}
				}
			}
		}).claimed(claimSharding),
		must(Sharding, "S-10.shard-order", "A shard is in order, as everything is.", func(p *probe) { ask(p, oracle.Order, oracle.Reappears) }).claimed(claimSharding),
		must(Sharding, "S-10.shard-unclaimed", "Shard MAY be ignored where it is not claimed; the caller filters. Series of the shard MUST be there, and all that are there MUST match.", func(p *probe) {
			ask(p, oracle.MissingSeries, oracle.ExtraSeries)
		}).without(claimSharding),
	}
}

func replicas() []Requirement {
	const rule = "WithoutReplicaLabels: these labels are removed, stored and external ones, matchers see them all the same, and the result is in the order of what remains."
	ask := func(p *probe, kinds ...oracle.Kind) {
		names := append([]string{"replica", "instance", "i"}, p.externalNames()...)
		g := p.generator()
		for i := range p.opts.Generated {
			req := p.all(re(metricName, "cert_(collision|matrix|env|requests_total)"))
			if i > 4 {
				req = g.Request()
				req.MinTime, req.MaxTime = p.o.Bounds()
			}
			if i%3 == 0 {
				req.SkipChunks = !req.SkipChunks
			}
			req.WithoutReplicaLabels = names[i%len(names) : min(len(names), i%len(names)+1+i%2)]
			p.expect(req, kinds...)
		}
	}
	return []Requirement{
		must(ReplicaLabels, "S-10.replica", rule, func(p *probe) { ask(p, oracle.MissingSeries, oracle.ExtraSeries) }).claimed(claimReplica),
		must(ReplicaLabels, "S-10.replica-order", rule, func(p *probe) { ask(p, oracle.Order, oracle.Reappears) }).claimed(claimReplica),
		must(ReplicaLabels, "S-10.replica-samples", "Series that become equal come one after another, and none of their samples is lost.", func(p *probe) {
			req := p.all(re(metricName, "cert_(collision|requests_total)"))
			req.WithoutReplicaLabels = []string{"replica"}
			p.expectSamples(req)
		}).claimed(claimReplica),
		must(ReplicaLabels, "S-10.replica-matchers", "Matchers on a label that is removed see its value.", func(p *probe) {
			for _, m := range []*labels.Matcher{ne("replica", ""), eq("replica", ""), re("replica", "a|b|r1"), eq("replica", "no such value")} {
				req := p.all(re(metricName, "cert_(collision|matrix)"), m)
				req.WithoutReplicaLabels = []string{"replica"}
				p.expectSeries(req)
			}
		}).claimed(claimReplica),
		must(ReplicaLabels, "S-10.replica-unclaimed", "WithoutReplicaLabels MAY be ignored where it is not claimed; the caller removes. Half of it is wrong.", func(p *probe) {
			ask(p, oracle.MissingSeries, oracle.ExtraSeries, oracle.Order, oracle.Reappears)
		}).without(claimReplica),
		must(ReplicaLabels, "L-1.replica", "External names in WithoutReplicaLabels are left out of label names.", func(p *probe) { p.replicaNames(true) }).ext(),
		must(ReplicaLabels, "L-1.replica-stored", "So are stored ones. (Thanos' TSDB and sidecar show them.)", func(p *probe) { p.replicaNames(false) }).should(),
		must(ReplicaLabels, "L-7.replica", "A Name in WithoutReplicaLabels has no values.", func(p *probe) {
			minTime, maxTime := p.o.Bounds()
			for _, name := range append([]string{"replica"}, p.externalNames()...) {
				req := &backend.LabelValuesRequest{Name: name, MinTime: minTime, MaxTime: maxTime, WithoutReplicaLabels: []string{name}}
				p.expectValues(req, oracle.ExtraSeries)
			}
		}),
	}
}

func (p *probe) externalNames() (out []string) {
	p.eachExternal(func(name, _ string) { out = append(out, name) })
	slices.Sort(out)
	return slices.Compact(out)
}

// replicaNames asks for label names without one, which is external or not.
func (p *probe) replicaNames(external bool) {
	minTime, maxTime := p.o.Bounds()
	names := p.externalNames()
	if !external {
		names = slices.DeleteFunc([]string{"replica", "instance"}, func(n string) bool { return slices.Contains(names, n) })
	}
	for _, name := range names {
		req := &backend.LabelNamesRequest{MinTime: minTime, MaxTime: maxTime, WithoutReplicaLabels: []string{name}}
		if slices.Contains(p.names(req), name) {
			p.fail(oracle.NamesText(req), "%q is there", name)
		}
	}
}
