// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

const (
	fiveMinutes = 300_000
	oneHour     = 3_600_000
)

func downsampled() []Requirement {
	const rule = "The coarsest level that is at most MaxResolution is used, gaps are filled with finer levels, never with coarser ones."
	metric := eq(metricName, "cert_downsampled")
	all := []backend.Aggregate{backend.AggregateCount, backend.AggregateSum, backend.AggregateMin, backend.AggregateMax, backend.AggregateCounter}
	return []Requirement{
		must(Downsampled, "S-11.ignored", "Without downsampled data MaxResolution and Aggregates MUST be ignored.", func(p *probe) {
			for _, r := range []int64{fiveMinutes, oneHour, math.MaxInt64} {
				req := p.all(re(metricName, "cert_(matrix|env)"))
				req.MaxResolution, req.Aggregates = r, all
				p.expect(req, oracle.Aggregated, oracle.MissingSample, oracle.ExtraSample, oracle.MissingSeries)
			}
		}),
		must(Downsampled, "S-11.raw", "With MaxResolution 0 the answer is raw data alone.", func(p *probe) {
			req := p.all(metric)
			req.Aggregates = all
			p.expect(req, oracle.Aggregated, oracle.MissingSample, oracle.ExtraSample, oracle.MissingSeries)
		}).claimed(claimDownsampled).with(corpus.Downsampled),
		must(Downsampled, "S-11.level", rule, func(p *probe) {
			for _, r := range []int64{fiveMinutes, oneHour, 10 * oneHour} {
				p.levels(metric, r, all)
			}
		}).claimed(claimDownsampled).with(corpus.Downsampled),
		must(Downsampled, "S-11.never-coarser", rule, func(p *probe) {
			minTime, _ := p.o.Bounds()
			req := p.between(minTime, p.c.Start-11*oneHour, metric)
			req.MaxResolution, req.Aggregates = fiveMinutes, all
			got := p.get(p.ctx, req)
			for _, s := range got.Pieces {
				for _, c := range s.Chunks {
					if c.Aggregates != nil {
						p.fail(oracle.Text(req), "%s has a chunk of aggregates where there are windows of one hour only", oracle.Show(s.Labels))
						return
					}
				}
			}
		}).claimed(claimDownsampled).with(corpus.Downsampled),
		must(Downsampled, "S-11.aggregates", "An aggregate chunk holds exactly the aggregates asked for.", func(p *probe) {
			for _, list := range [][]backend.Aggregate{{backend.AggregateCount}, {backend.AggregateSum, backend.AggregateCount}, {backend.AggregateMin}, {backend.AggregateMax}, {backend.AggregateCounter}, all} {
				p.aggregates(metric, list)
			}
		}).claimed(claimDownsampled).with(corpus.Downsampled),
	}
}

// parts are the encoded aggregates of a chunk, by kind.
func parts(a *backend.AggregateChunks) map[backend.Aggregate]backend.Encoded {
	return map[backend.Aggregate]backend.Encoded{
		backend.AggregateCount: a.Count, backend.AggregateSum: a.Sum, backend.AggregateMin: a.Min, backend.AggregateMax: a.Max, backend.AggregateCounter: a.Counter,
	}
}

func (p *probe) aggregates(m *labels.Matcher, asked []backend.Aggregate) {
	req := p.all(m)
	req.MaxResolution, req.Aggregates = fiveMinutes, asked
	got := p.get(p.ctx, req)
	if got.Err != nil {
		p.fail(oracle.Text(req), "the call failed: %v", got.Err)
		return
	}
	seen := false
	for _, s := range got.Pieces {
		for _, c := range s.Chunks {
			if c.Aggregates == nil {
				continue
			}
			seen = true
			for kind, e := range parts(c.Aggregates) {
				if e.Present() != slices.Contains(asked, kind) {
					p.fail(oracle.Text(req), "a chunk of %s at %s: aggregate %d is there: %v, asked for: %v", oracle.Show(s.Labels), oracle.Stamp(c.MinTime), kind, e.Present(), !e.Present())
					return
				}
			}
		}
	}
	if !seen {
		p.fail(oracle.Text(req), "there is no chunk of aggregates, although there are windows of five minutes")
	}
}

// levels compares windows with those of the corpus.
func (p *probe) levels(m *labels.Matcher, maxResolution int64, asked []backend.Aggregate) {
	req := p.all(m)
	req.MaxResolution, req.Aggregates = maxResolution, asked
	got := p.get(p.ctx, req)
	if got.Err != nil {
		p.fail(oracle.Text(req), "the call failed: %v", got.Err)
		return
	}
	for _, ext := range p.o.External() {
		for _, stored := range p.of(corpus.Downsampled) {
			final := labels.NewBuilder(stored.Labels)
			ext.Range(func(l labels.Label) { final.Set(l.Name, l.Value) })
			p.compareLevels(req, stored.Labels, final.Labels(), got)
		}
	}
}

func (p *probe) compareLevels(req *backend.SeriesRequest, stored, final labels.Labels, got *oracle.Got) {
	have := map[int64]map[backend.Aggregate]float64{}
	for _, s := range got.Pieces {
		if !labels.Equal(s.Labels, final) {
			continue
		}
		for _, c := range s.Chunks {
			if c.Aggregates == nil {
				continue
			}
			for kind, e := range parts(c.Aggregates) {
				samples, err := oracle.Decode(e)
				if err != nil {
					p.fail(oracle.Text(req), "aggregate %d of %s cannot be decoded: %v", kind, oracle.Show(final), err)
					return
				}
				for _, x := range samples {
					if have[x.T] == nil {
						have[x.T] = map[backend.Aggregate]float64{}
					}
					have[x.T][kind] = x.F
				}
			}
		}
	}
	coarsest := int64(0)
	known, need := map[int64][]corpus.Window{}, map[int64]corpus.Window{}
	for _, l := range p.c.Levels {
		if labels.Equal(l.Labels, stored) && l.Resolution <= req.MaxResolution {
			coarsest = max(coarsest, l.Resolution)
			for _, w := range l.Windows {
				known[w.T] = append(known[w.T], w)
			}
		}
	}
	covered := map[int64]bool{}
	for _, l := range p.c.Levels {
		if labels.Equal(l.Labels, stored) && l.Resolution == coarsest {
			for _, w := range l.Windows {
				need[w.T] = w
				covered[w.T/oneHour] = true
			}
		}
	}
	if coarsest == oneHour {
		for _, l := range p.c.Levels {
			if labels.Equal(l.Labels, stored) && l.Resolution < coarsest {
				for _, w := range l.Windows {
					if !covered[w.T/oneHour] {
						need[w.T] = w
					}
				}
			}
		}
	}
	values := func(w corpus.Window) map[backend.Aggregate]float64 {
		return map[backend.Aggregate]float64{backend.AggregateCount: w.Count, backend.AggregateSum: w.Sum, backend.AggregateMin: w.Min, backend.AggregateMax: w.Max, backend.AggregateCounter: w.Counter}
	}
	for t := range need {
		if _, ok := have[t]; !ok {
			p.fail(oracle.Text(req), "%s: the window that ends at %s is missing", oracle.Show(final), oracle.Stamp(t))
			return
		}
	}
	for t, x := range have {
		ok := slices.ContainsFunc(known[t], func(w corpus.Window) bool {
			for kind, v := range values(w) {
				if g, there := x[kind]; !there || g != v {
					return false
				}
			}
			return true
		})
		if !ok && len(known[t]) > 0 {
			p.fail(oracle.Text(req), "%s: the window that ends at %s has %v, want %v", oracle.Show(final), oracle.Stamp(t), x, values(known[t][0]))
			return
		}
		// Counters have samples of their own besides, the first and the last raw value.
		if len(known[t]) == 0 && (len(x) > 1 || x[backend.AggregateCounter] == 0) {
			p.fail(oracle.Text(req), "%s: there is a window at %s that is in no level of at most %d ms", oracle.Show(final), oracle.Stamp(t), req.MaxResolution)
			return
		}
	}
}

func optional() []Requirement {
	const exemplars = "Exemplars of the series that match any of the selectors, in [min, max] ms, with external labels added."
	const metadata = "MetricMetadata of one metric, or of all with an empty name; limit < 0 is none."
	return []Requirement{
		must(NativeHistograms, "S-7.histograms", "NativeHistograms: native histogram chunks are kept, of integers and of floats.", func(p *probe) {
			p.expectSamples(p.partial(corpus.Histograms))
			g := p.generator()
			for range p.opts.Generated / 4 {
				req := p.partial(corpus.Histograms)
				req.MinTime, req.MaxTime = g.Range()
				p.expectSamples(req)
			}
		}).claimed(claimHistograms).with(corpus.Histograms),
		must(NativeHistograms, "S-7.histograms-unclaimed", "A histogram that is not kept MUST be left out, and never become something else.", func(p *probe) {
			p.expectSamples(p.partial(corpus.Histograms))
		}).without(claimHistograms).with(corpus.Histograms),
		must(Exemplars, "E-1.selected", exemplars, func(p *probe) { p.exemplars(p.c.Start-day, p.c.Start+day, "cert_requests_total") }).claimed(claimExemplars).with(corpus.Exemplars),
		must(Exemplars, "E-2.range", exemplars, func(p *probe) {
			for _, e := range p.c.Exemplars[:min(3, len(p.c.Exemplars))] {
				p.exemplars(e.Time, e.Time, "cert_requests_total")
			}
			p.exemplars(p.c.Start-day, p.c.Start-1, "cert_requests_total")
		}).claimed(claimExemplars).with(corpus.Exemplars),
		must(Exemplars, "E-3.no-match", exemplars, func(p *probe) { p.exemplars(p.c.Start-day, p.c.Start+day, "cert_no_such_metric") }).claimed(claimExemplars),
		must(Exemplars, "E-4.unclaimed", "Where exemplars are not claimed the call MUST be refused with ErrUnsupported.", func(p *probe) {
			b, ok := p.s.Backend.(backend.ExemplarsBackend)
			if !ok {
				return
			}
			p.requests++
			ctx, cancel := context.WithTimeout(p.ctx, patience)
			defer cancel()
			if _, _, err := b.Exemplars(ctx, [][]*labels.Matcher{{eq(metricName, "cert_requests_total")}}, p.c.Start, p.c.Start+day); !errors.Is(err, backend.ErrUnsupported) {
				p.fail("Exemplars", "want an error of kind ErrUnsupported, got: %v", err)
			}
		}).without(claimExemplars),
		must(Metadata, "M-1.one", metadata, func(p *probe) {
			for _, m := range p.c.Metadata {
				p.metadata(m.Metric, -1)
			}
			p.metadata("cert_no_such_metric", -1)
		}).claimed(claimMetadata).with(corpus.Metadata),
		must(Metadata, "M-2.all", metadata, func(p *probe) { p.metadata("", -1) }).claimed(claimMetadata).with(corpus.Metadata),
		must(Metadata, "M-3.limit", metadata, func(p *probe) { p.metadata("", 2) }).claimed(claimMetadata).with(corpus.Metadata),
		must(Metadata, "M-4.unclaimed", "Where metadata are not claimed the call MUST be refused with ErrUnsupported.", func(p *probe) {
			b, ok := p.s.Backend.(backend.MetadataBackend)
			if !ok {
				return
			}
			p.requests++
			ctx, cancel := context.WithTimeout(p.ctx, patience)
			defer cancel()
			if _, _, err := b.MetricMetadata(ctx, "", -1); !errors.Is(err, backend.ErrUnsupported) {
				p.fail("MetricMetadata", "want an error of kind ErrUnsupported, got: %v", err)
			}
		}).without(claimMetadata),
	}
}

func setOf(m *storepb.LabelSet) labels.Labels {
	b := labels.NewScratchBuilder(len(m.GetLabels()))
	for _, l := range m.GetLabels() {
		b.Add(l.GetName(), l.GetValue())
	}
	b.Sort()
	return b.Labels()
}

func (p *probe) exemplars(minTime, maxTime int64, metric string) {
	request := fmt.Sprintf("Exemplars {__name__=%q} %s to %s", metric, oracle.Stamp(minTime), oracle.Stamp(maxTime))
	b, ok := p.s.Backend.(backend.ExemplarsBackend)
	if !ok {
		p.fail(request, "exemplars are claimed, and there is no such call")
		return
	}
	p.requests++
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	data, _, err := b.Exemplars(ctx, [][]*labels.Matcher{{eq(metricName, metric)}}, minTime, maxTime)
	if err != nil {
		p.fail(request, "the call failed: %v", err)
		return
	}
	var got, want []string
	for _, d := range data {
		for _, e := range d.GetExemplars() {
			got = append(got, fmt.Sprintf("%s %s %s %v", oracle.Show(setOf(d.GetSeriesLabels())), oracle.Show(setOf(e.GetLabels())), oracle.Stamp(e.GetTs()), e.GetValue()))
		}
	}
	for _, ext := range p.o.External() {
		for _, e := range p.c.Exemplars {
			if e.Series.Get(metricName) != metric || e.Time < minTime || e.Time > maxTime {
				continue
			}
			final := labels.NewBuilder(e.Series)
			ext.Range(func(l labels.Label) { final.Set(l.Name, l.Value) })
			want = append(want, fmt.Sprintf("%s %s %s %v", oracle.Show(final.Labels()), oracle.Show(e.Labels), oracle.Stamp(e.Time), e.Value))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(slices.Compact(got), slices.Compact(want)) {
		p.failure(report.Failure{Request: request, Message: "other exemplars than there are", Expected: want, Actual: got})
	}
}

func (p *probe) metadata(metric string, limit int) {
	request := fmt.Sprintf("MetricMetadata %q limit=%d", metric, limit)
	b, ok := p.s.Backend.(backend.MetadataBackend)
	if !ok {
		p.fail(request, "metadata are claimed, and there is no such call")
		return
	}
	p.requests++
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	data, _, err := b.MetricMetadata(ctx, metric, limit)
	if err != nil {
		p.fail(request, "the call failed: %v", err)
		return
	}
	if limit >= 0 && len(data) > limit {
		p.fail(request, "there are %d metrics", len(data))
	}
	known := map[string]bool{}
	for _, m := range p.c.Metadata {
		known[m.Metric] = true
		if metric != "" && metric != m.Metric || limit >= 0 && data[m.Metric] == nil {
			continue
		}
		var got []string
		for _, x := range data[m.Metric] {
			got = append(got, fmt.Sprintf("%s %q %q", x.GetType(), x.GetHelp(), x.GetUnit()))
		}
		if want := fmt.Sprintf("%s %q %q", m.Type, m.Help, m.Unit); len(got) != 1 || got[0] != want {
			p.failure(report.Failure{Request: request, Message: "other metadata of " + m.Metric, Expected: []string{want}, Actual: got})
		}
	}
	for name := range data {
		if metric != "" && name != metric {
			p.fail(request, "there are metadata of %q", name)
		}
	}
}
