// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package carriertest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/carrier/carriertest/teststore"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/storepb"
)

// answer is what a call of Series gave, without regard to batches.
type answer struct {
	// Series are label sets and fingerprints of chunks.
	Series  []string
	Notices []backend.Notice
}

// fingerprint is everything that a chunk says, in a few characters.
func fingerprint(c *backend.Chunk) string {
	h := fnv.New64a()
	parts := []backend.Encoded{c.Raw}
	if a := c.Aggregates; a != nil {
		parts = append(parts, a.Count, a.Sum, a.Min, a.Max, a.Counter)
	}
	for _, e := range parts {
		fmt.Fprint(h, e.Encoding, len(e.Data), " ")
		_, _ = h.Write(e.Data)
	}
	return fmt.Sprintf(" %d-%d:%v:%x", c.MinTime, c.MaxTime, c.Aggregates != nil, h.Sum64())
}

// collect joins the pieces of series, which a carrier may cut.
func collect(ctx context.Context, b backend.Backend, req *backend.SeriesRequest) (answer, error) {
	var out answer
	var last labels.Labels
	for batch, err := range b.Series(ctx, req) {
		if err != nil {
			return out, err
		}
		out.Notices = append(out.Notices, batch.Notices()...)
		for i := range batch.Len() {
			s := batch.At(i)
			if n := len(out.Series); n == 0 || !labels.Equal(last, s.Labels) {
				out.Series = append(out.Series, s.Labels.String())
			}
			last = s.Labels
			for k := range s.Chunks {
				out.Series[len(out.Series)-1] += fingerprint(&s.Chunks[k])
			}
		}
	}
	return out, nil
}

var equalLabels = cmp.Options{cmp.Comparer(labels.Equal), cmpopts.EquateEmpty(), protocmp.Transform()}

func matcher(t labels.MatchType, name, value string) *labels.Matcher {
	return labels.MustNewMatcher(t, name, value)
}

func everything() *backend.SeriesRequest { return &backend.SeriesRequest{MinTime: 0, MaxTime: 1 << 40} }

func (c *Carrier) backends(t *testing.T) {
	t.Run("description", func(t *testing.T) {
		p := c.openBackend(t)
		testDescription(t, p, "teststore", true)
		if _, err := p.Filter(limited(t), config("{}")); err == nil {
			t.Error("a backend can be configured as a filter")
		}
	})
	t.Run("bad configuration", func(t *testing.T) {
		p := c.openBackend(t)
		testBadConfig(t, func(ctx context.Context, conf *filter.Config) error {
			_, err := p.Backend(ctx, conf)
			return err
		}, map[string]string{`{"series":"many"}`: "series", `{"series":-1}`: "series", `{"unknown":1}`: "unknown"})
	})
	t.Run("answers", c.testAnswers)
	t.Run("optional", c.testOptional)
	t.Run("concurrent", c.testConcurrentSeries)
	t.Run("own errors", c.testStoreErrors)
	t.Run("error mid-stream", c.testMidStream)
	t.Run("cancel", c.testCancelSeries)
	t.Run("break", func(t *testing.T) {
		b := configureStore(t, c.openBackend(t), `{"series":3000}`)
		for batch, err := range b.Series(limited(t), everything()) {
			if err != nil || batch.Len() == 0 {
				t.Fatal(batch, err)
			}
			break
		}
		if _, err := b.Info(limited(t)); err != nil {
			t.Fatal(err)
		}
	})
	faults := []string{"panic"}
	if c.Isolated {
		faults = append(faults, "exit")
	}
	for _, fault := range faults {
		for _, in := range []string{"info", "series", "names", "values", "exemplars"} {
			t.Run(fault+" in "+in, func(t *testing.T) { c.testStoreFault(t, fault, in) })
		}
	}
}

func (c *Carrier) testAnswers(t *testing.T) {
	doc := `{"series":300,"samples":130,"cluster":"eu1","notice":"a remark","missing":"a gap","batch":70}`
	b, ref := configureStore(t, c.openBackend(t), doc), configureStore(t, ReferenceStore(t), doc)
	a, errA := ref.Info(limited(t))
	i, errB := b.Info(limited(t))
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	if diff := cmp.Diff(a, i, equalLabels); diff != "" {
		t.Errorf("info (-builtin +carrier):\n%s", diff)
	}
	all := []backend.Aggregate{backend.AggregateCount, backend.AggregateSum, backend.AggregateMin, backend.AggregateMax, backend.AggregateCounter}
	for name, req := range map[string]*backend.SeriesRequest{
		"everything": everything(),
		"matchers": {MaxTime: 1 << 40, Matchers: []*labels.Matcher{
			matcher(labels.MatchRegexp, "__name__", "metric_00000[0-3]"), matcher(labels.MatchNotEqual, "instance", ""),
			matcher(labels.MatchEqual, "cluster", "eu1"), matcher(labels.MatchNotRegexp, "mode", "x{2,3}"),
		}},
		"nothing":           {MaxTime: 1 << 40, Matchers: []*labels.Matcher{matcher(labels.MatchEqual, "cluster", "us1")}},
		"empty range":       {MinTime: 10, MaxTime: 9},
		"all time":          {MinTime: -1 << 63, MaxTime: 1<<63 - 1, Limit: 10},
		"without chunks":    {MaxTime: 1 << 40, SkipChunks: true},
		"limit":             {MaxTime: 1 << 40, Limit: 71},
		"shard":             {MaxTime: 1 << 40, Shard: &backend.Shard{Index: 1, Total: 3, By: true, Labels: []string{"pod"}}},
		"replica labels":    {MaxTime: 1 << 40, WithoutReplicaLabels: []string{"instance"}},
		"aggregates":        {MaxTime: 1 << 40, MaxResolution: 300_000, Aggregates: all},
		"one aggregate":     {MaxTime: 1 << 40, MaxResolution: 300_000, Aggregates: all[1:2]},
		"no aggregate":      {MaxTime: 1 << 40, MaxResolution: 300_000},
		"hints and batches": {MaxTime: 1 << 40, BatchSize: 7, PartialAllowed: true, Hints: backend.Hints{StepMillis: 1, RangeMillis: 2, Func: "rate", Grouping: []string{"a"}, By: true}},
	} {
		want, errA := collect(limited(t), ref, req)
		got, errB := collect(limited(t), b, req)
		if errA != nil || errB != nil {
			t.Errorf("%s: builtin %v, carrier %v", name, errA, errB)
			continue
		}
		if diff := cmp.Diff(want, got, equalLabels); diff != "" {
			t.Errorf("%s (-builtin +carrier):\n%.2000s", name, diff)
		}
	}
	for _, ms := range [][]*labels.Matcher{nil, {matcher(labels.MatchEqual, "pod", "pod-000007")}, {matcher(labels.MatchEqual, "pod", "none")}} {
		req := &backend.LabelNamesRequest{MaxTime: 1 << 40, Matchers: ms, WithoutReplicaLabels: []string{"mode"}, Limit: 5, PartialAllowed: true}
		a, errA := ref.LabelNames(limited(t), req)
		g, errB := b.LabelNames(limited(t), req)
		if diff := cmp.Diff(a, g, equalLabels); diff != "" || errA != nil || errB != nil {
			t.Errorf("names: %v, %v (-builtin +carrier):\n%s", errA, errB, diff)
		}
		for _, name := range []string{"cluster", "pod", "job", "none"} {
			req := &backend.LabelValuesRequest{Name: name, MaxTime: 1 << 40, Matchers: ms, Limit: 50}
			a, errA := ref.LabelValues(limited(t), req)
			g, errB := b.LabelValues(limited(t), req)
			if diff := cmp.Diff(a, g, equalLabels); diff != "" || errA != nil || errB != nil {
				t.Errorf("values of %s: %v, %v (-builtin +carrier):\n%s", name, errA, errB, diff)
			}
		}
	}
	if _, err := b.LabelValues(limited(t), &backend.LabelValuesRequest{MaxTime: 1}); backend.Kind(err) != backend.ErrInvalid {
		t.Errorf("values of no label: %v", err)
	}
}

func (c *Carrier) testOptional(t *testing.T) {
	doc := `{"cluster":"eu1"}`
	b, ref := configureStore(t, c.openBackend(t), doc), configureStore(t, ReferenceStore(t), doc)
	info, err := b.Info(limited(t))
	if err != nil {
		t.Fatal(err)
	}
	compare := func(what string, claimed bool, call func(b backend.Backend) (any, error)) {
		if !claimed {
			return
		}
		want, errA := call(ref)
		got, errB := call(b)
		if diff := cmp.Diff(want, got, equalLabels); diff != "" || errA != nil || errB != nil {
			t.Errorf("%s: %v, %v (-builtin +carrier):\n%s", what, errA, errB, diff)
		}
	}
	ctx := limited(t)
	compare("exemplars", info.Capabilities.Exemplars, func(b backend.Backend) (any, error) {
		v, _, err := b.(backend.ExemplarsBackend).Exemplars(ctx, [][]*labels.Matcher{{matcher(labels.MatchRegexp, "a", `b"\.c`)}, {matcher(labels.MatchEqual, "x", "y")}}, 5, 10)
		for _, e := range v {
			for _, x := range e.GetExemplars() {
				if x.Labels == nil {
					x.Labels = &storepb.LabelSet{}
				}
			}
		}
		return v, err
	})
	compare("metadata", info.Capabilities.Metadata, func(b backend.Backend) (any, error) {
		v, _, err := b.(backend.MetadataBackend).MetricMetadata(ctx, "m", 7)
		return v, err
	})
	compare("rules", info.Capabilities.Rules, func(b backend.Backend) (any, error) {
		v, _, err := b.(backend.RulesBackend).Rules(ctx, &storepb.RulesRequest{})
		for _, g := range v {
			g.LastEvaluation, g.PartialResponseStrategy = nil, 0
		}
		return v, err
	})
	compare("targets", info.Capabilities.Targets, func(b backend.Backend) (any, error) {
		v, _, err := b.(backend.TargetsBackend).Targets(ctx, 0)
		var urls []string
		for _, a := range v.GetActiveTargets() {
			urls = append(urls, a.GetScrapePool(), a.GetScrapeUrl())
		}
		return urls, err
	})
	compare("statistics", info.Capabilities.Statistics, func(b backend.Backend) (any, error) {
		v, _, err := b.(backend.StatisticsBackend).Statistics(ctx, 0)
		return v.GetHeadStatistics().GetNumSeries(), err
	})
}

func (c *Carrier) testConcurrentSeries(t *testing.T) {
	p, ref := c.openBackend(t), ReferenceStore(t)
	var wg sync.WaitGroup
	for i := range 3 {
		doc := fmt.Sprintf(`{"series":500,"samples":20,"cluster":"c%d"}`, i)
		b, r := configureStore(t, p, doc), configureStore(t, ref, doc)
		want, err := collect(limited(t), r, everything())
		if err != nil {
			t.Fatal(err)
		}
		ctx := limited(t)
		for range 3 {
			wg.Go(func() {
				got, err := collect(ctx, b, everything())
				if err != nil || !cmp.Equal(want, got, equalLabels) {
					t.Errorf("instance %d: error %v, or the answer is another instance's", i, err)
				}
			})
		}
	}
	wg.Wait()
}

func (c *Carrier) testStoreErrors(t *testing.T) {
	p := c.openBackend(t)
	for word, kind := range map[string]error{
		"invalid": backend.ErrInvalid, "unsupported": backend.ErrUnsupported, "limit": backend.ErrLimit,
		"unavailable": backend.ErrUnavailable, "denied": backend.ErrDenied, "internal": backend.ErrInternal,
	} {
		for _, in := range []string{"info", "series", "names", "values"} {
			b := configureStore(t, p, fmt.Sprintf(`{"fault":%q,"in":%q}`, word, in))
			err := ask(limited(t), b, in)
			if backend.Kind(err) != kind || errors.Is(err, carrier.ErrFault) || !contains(err, teststore.ErrorText) {
				t.Errorf("%s in %s: %v (kind %v, fault %v)", word, in, err, backend.Kind(err), errors.Is(err, carrier.ErrFault))
			}
		}
	}
	if s := p.Status(); len(s.Faults) != 0 || s.State != carrier.Serving {
		t.Errorf("errors of a store's own count as faults: %+v", s)
	}
}

// ask makes one of the calls.
func ask(ctx context.Context, b backend.Backend, in string) (err error) {
	switch in {
	case "info":
		_, err = b.Info(ctx)
	case "series":
		_, err = collect(ctx, b, everything())
	case "names":
		_, err = b.LabelNames(ctx, &backend.LabelNamesRequest{MaxTime: 1 << 40})
	case "values":
		_, err = b.LabelValues(ctx, &backend.LabelValuesRequest{Name: "pod", MaxTime: 1 << 40})
	case "exemplars":
		_, _, err = b.(backend.ExemplarsBackend).Exemplars(ctx, [][]*labels.Matcher{{matcher(labels.MatchEqual, "x", "y")}}, 5, 10)
	}
	return err
}

func (c *Carrier) testMidStream(t *testing.T) {
	p := c.openBackend(t)
	b := configureStore(t, p, `{"series":1000,"batch":50,"fault":"limit","in":"series","after":500}`)
	got, err := collect(limited(t), b, everything())
	if backend.Kind(err) != backend.ErrLimit || !strings.Contains(err.Error(), teststore.ErrorText) {
		t.Errorf("error %v", err)
	}
	if len(got.Series) != 500 {
		t.Errorf("%d series came before the error, of 500", len(got.Series))
	}
	b = configureStore(t, p, `{"series":1000,"batch":50,"fault":"panic","in":"series","after":500}`)
	_, err = collect(limited(t), b, everything())
	isFault(t, p, err)
}

func (c *Carrier) testCancelSeries(t *testing.T) {
	p := c.openBackend(t)
	b := configureStore(t, p, `{"series":1000,"batch":50,"fault":"block","in":"series","after":500}`)
	ctx, cancel := context.WithCancelCause(limited(t))
	why := errors.New("the caller is gone")
	n := 0
	var last error
	for batch, err := range b.Series(ctx, everything()) {
		if last = err; err != nil {
			break
		}
		if n += batch.Len(); n == 500 {
			cancel(why)
		}
	}
	cancel(nil)
	if n != 500 || !errors.Is(last, why) && !errors.Is(last, context.Canceled) {
		t.Errorf("%d series, error %v", n, last)
	}
	if errors.Is(last, carrier.ErrFault) {
		t.Errorf("that the caller is gone counts as a fault: %v", last)
	}
	done, stop := context.WithCancel(t.Context())
	stop()
	for _, in := range []string{"info", "series", "names", "values"} {
		if err := ask(done, b, in); !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a context that is done: %v", in, err)
		}
	}
}

func (c *Carrier) testStoreFault(t *testing.T, fault, in string) {
	p := c.openBackend(t)
	good := configureStore(t, p, `{"cluster":"good"}`)
	want, err := collect(limited(t), good, everything())
	if err != nil {
		t.Fatal(err)
	}
	var bad backend.Backend
	if in != "info" {
		bad = configureStore(t, p, fmt.Sprintf(`{"fault":%q,"in":%q}`, fault, in))
	} else if b, err := p.Backend(limited(t), config(fmt.Sprintf(`{"fault":%q,"in":%q}`, fault, in))); err == nil {
		// Configuring may ask for Info, and fail with it.
		t.Cleanup(func() { _ = b.(backend.Closer).Close() })
		bad = b
	} else {
		isFault(t, p, err)
	}
	if bad != nil {
		err = ask(limited(t), bad, in)
		isFault(t, p, err)
		if !contains(err, p.Description().Name) {
			t.Errorf("error %v does not name the plug-in", err)
		}
		if fault == "exit" {
			// It would go on ending the process whenever it is brought back and asked.
			_ = bad.(backend.Closer).Close()
		}
	}
	eventually(t, "the other instance", func(ctx context.Context) error {
		got, err := collect(ctx, good, everything())
		if err == nil {
			if diff := cmp.Diff(want, got, equalLabels); diff != "" {
				t.Fatalf("the other instance answers differently after the fault:\n%.1000s", diff)
			}
		}
		return err
	})
}
