// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
)

// TestDownBackendIsNotRuledOutByItsOldBounds: a backend of which the data go on
// with time, as a store gateway's do, is missed while it is down.
func TestDownBackendIsNotRuledOutByItsOldBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := false
		store := &fakestore.Script{OnInfo: func(context.Context) (backend.Info, error) {
			if down {
				return backend.Info{}, errors.New("connection refused")
			}
			return backend.Info{MinTime: 0, MaxTime: time.Now().UnixMilli()}, nil
		}}
		s, set := serve(t, query.Config{}, spec("gateway", store))
		began := time.Now()
		down = true
		time.Sleep(time.Hour)
		set.Refresh(t.Context())
		for at, want := range map[time.Time]report.State{
			time.Now():              report.Partial,
			began.Add(-time.Minute): report.Partial,
			// It says of itself that it has nothing before 1970.
			time.UnixMilli(-10_000_000): report.Complete,
		} {
			res, err := s.Instant(t.Context(), &query.Request{Query: "up", Start: at, End: at, Options: s.DefaultOptions()})
			if err != nil {
				t.Fatal(err)
			}
			if got := res.Report.Completeness.State; got != want {
				t.Errorf("at %s: %s, want %s", at, res.Report.Completeness, want)
			}
		}
	})
}

// TestWindowCutsSamples: what lies outside of a backend's window is not taken from
// it, although it may send whole chunks.
func TestWindowCutsSamples(t *testing.T) {
	var times []int64
	var older, newer []float64
	for i := range 60 {
		times, older, newer = append(times, int64(i)*60_000), append(older, 1000+float64(i)), append(newer, float64(i))
	}
	ls := labels.FromStrings("__name__", "c")
	left := spec("left", fakestore.Holding(labels.EmptyLabels(), fakestore.Floats(ls, times, older)))
	left.Window = membership.Window{Max: membership.Bound{Set: true, At: 10 * 60_000}}
	right := spec("right", fakestore.Holding(labels.EmptyLabels(), fakestore.Floats(ls, times, newer)))
	right.Window = membership.Window{Min: membership.Bound{Set: true, At: 11 * 60_000}}
	s, _ := serve(t, query.Config{}, left, right)
	for expr, want := range map[string]string{
		`count_over_time(c[60m])`: "60", `count_over_time((c > 999)[60m:1m])`: "11", `c @ 600`: "1010", `c @ 660`: "11",
	} {
		res, err := s.Instant(t.Context(), &query.Request{Query: expr, Start: at(59), End: at(59), Options: s.DefaultOptions()})
		if err != nil || !strings.Contains(res.Value.String(), "=> "+want+" @") {
			t.Errorf("%s: %v %v, want %s", expr, res.Value, err, want)
		}
	}
}

// TestChunksOfEqualTimes: the answer does not depend on which comes first.
func TestChunksOfEqualTimes(t *testing.T) {
	ls := labels.FromStrings("__name__", "c")
	x := fakestore.Floats(ls, []int64{0, 60_000}, []float64{1, 1}).Chunks[0]
	y := fakestore.Floats(ls, []int64{0, 60_000}, []float64{2, 2}).Chunks[0]
	var got []string
	for _, cs := range [][]backend.Chunk{{x, y}, {y, x}} {
		s, _ := serve(t, query.Config{}, spec("one", fakestore.Sends([]backend.Series{{Labels: ls, Chunks: cs}})))
		res, err := s.Instant(t.Context(), &query.Request{Query: "c", Start: at(1), End: at(1), Options: s.DefaultOptions()})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, res.Value.String())
	}
	if got[0] != got[1] {
		t.Errorf("%q", got)
	}
}

// TestCoverNeedsTheRange: a replica whose data of that label set end earlier does
// not cover for a missing one.
func TestCoverNeedsTheRange(t *testing.T) {
	set := func(cluster, replica string) labels.Labels {
		return labels.FromStrings("cluster", cluster, "replica", replica)
	}
	for _, tc := range []struct {
		end  int64
		want report.State
	}{{1000, report.Partial}, {6000, report.Complete}} {
		a := membership.Always("a", "x", &fakestore.Script{OnSeries: func(context.Context, *backend.SeriesRequest) fakestore.Seq { return backend.Fail(errors.New("down")) }},
			backend.Info{MaxTime: math.MaxInt64, LabelSets: []labels.Labels{set("eu1", "a")}})
		b := membership.Always("b", "x", fakestore.Holding(labels.EmptyLabels()), backend.Info{
			MaxTime: math.MaxInt64, LabelSets: []labels.Labels{set("eu1", "b"), set("us1", "b")},
			Ranges: []backend.LabelSetRange{{Labels: set("eu1", "b"), MaxTime: tc.end}, {Labels: set("us1", "b"), MaxTime: math.MaxInt64}},
		})
		charge, err := limits.NewProcess(limits.Config{}).Begin(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		s := fanout.NewSession(fanout.Options{View: membership.NewView(a, b), Limits: charge, Partial: true, ReplicaLabels: []string{"replica"}})
		if _, err := s.Collect(t.Context(), &backend.SeriesRequest{MinTime: 5000, MaxTime: 6000, Matchers: matchers(t, `{cluster="eu1"}`)}, []string{"replica"}, &report.Select{}); err != nil {
			t.Fatal(err)
		}
		if c := s.Completeness(); c.State != tc.want {
			t.Errorf("data to %d: %s", tc.end, c)
		}
	}
}

// TestClientThatDoesNotRead holds a slot no longer than its request may take.
func TestClientThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := serve(t, query.Config{Timeout: 2 * time.Minute, Limits: limits.NewProcess(limits.Config{Concurrent: 1})},
			spec("one", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "c"))))
		res, err := s.Read(t.Context(), &query.ReadRequest{MaxTime: 1e6, Options: s.DefaultOptions()})
		if err != nil {
			t.Fatal(err)
		}
		ask := func() error {
			res, err := s.Instant(t.Context(), &query.Request{Query: "c", Start: at(1), End: at(1), Options: s.DefaultOptions()})
			if res != nil {
				res.Close()
			}
			return err
		}
		began := time.Now()
		if err := ask(); err == nil && time.Since(began) < time.Minute {
			t.Error("the slot was not held at all")
		}
		time.Sleep(2 * time.Minute)
		if err := ask(); err != nil {
			t.Errorf("after the timeout: %v", err)
		}
		_, _ = res.Finish()

		next, stop := stream(t, s)
		defer stop()
		if next() == nil {
			t.Fatal("nothing came")
		}
		time.Sleep(3 * time.Minute)
		if err := ask(); err != nil {
			t.Errorf("after the timeout of a stream: %v", err)
		}
	})
}

func stream(t *testing.T, s *query.Service) (next func() *backend.Batch, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	got, more := make(chan *backend.Batch), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := range s.Proxy().Series(ctx, &backend.SeriesRequest{MaxTime: 1e9, PartialAllowed: true}) {
			select {
			case got <- b:
			case <-ctx.Done():
				return
			}
			<-more
		}
	}()
	return func() *backend.Batch {
			select {
			case b := <-got:
				return b
			case <-done:
				return nil
			}
		}, func() {
			close(more)
			cancel()
			<-done
		}
}

// TestShutDown: whoever still asks is told, and does not get an empty answer.
func TestShutDown(t *testing.T) {
	s, set := serve(t, query.Config{}, spec("one", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "up"))))
	set.Close()
	for _, partial := range []bool{true, false} {
		o := s.DefaultOptions()
		o.PartialResponse = partial
		if res, err := s.Instant(t.Context(), &query.Request{Query: "up", Start: at(30), End: at(30), Options: o}); !errors.Is(err, query.ErrUnavailable) {
			t.Errorf("%v, %v", res, err)
		}
		if _, err := s.Read(t.Context(), &query.ReadRequest{MaxTime: 1e6, Options: o}); !errors.Is(err, query.ErrUnavailable) {
			t.Errorf("read: %v", err)
		}
	}
}

// TestBounds: what would cost or loop without limit is refused at once, whatever
// the engine, and nobody is asked.
func TestBounds(t *testing.T) {
	store := fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "c"))
	s, _ := serve(t, query.Config{}, spec("one", store))
	far := time.Unix(math.MaxInt64/int64(time.Second)+1, 0)
	many := strings.TrimSuffix(strings.Repeat("c+", 1001), "+")
	for _, engine := range engines {
		o := s.DefaultOptions()
		o.Engine = engine
		for _, x := range []struct {
			req  query.Request
			text string
		}{
			{query.Request{Query: "1", Start: at(0), End: at(0).Add(12 * time.Hour), Step: time.Second}, "43200 points"},
			{query.Request{Query: "1", Start: time.Unix(0, 0), End: time.Unix(1<<33, 0), Step: time.Second}, "at most 11000"},
			{query.Request{Query: "1", Start: far, End: far, Step: time.Second}, "too far"},
			{query.Request{Query: "1", Start: time.Unix(-1<<40, 0), End: at(0), Step: time.Hour}, "at most 11000"},
			{query.Request{Query: many, Start: at(0), End: at(1), Step: time.Second}, "1001 selectors"},
			{query.Request{Query: "c" + strings.Repeat(" ", 1<<20), Start: at(0), End: at(1), Step: time.Second}, "bytes"},
		} {
			x.req.Options = o
			if _, err := s.Range(t.Context(), &x.req); !errors.Is(err, query.ErrBadData) || !strings.Contains(err.Error(), x.text) {
				t.Errorf("%.20s from %s: %v, want %q", x.req.Query, x.req.Start, err, x.text)
			}
		}
		if _, err := s.Instant(t.Context(), &query.Request{Query: "1", Start: far, End: far, Options: o}); !errors.Is(err, query.ErrBadData) {
			t.Errorf("instant: %v", err)
		}
	}
	lists := make([][]*labels.Matcher, 1001)
	for i := range lists {
		lists[i] = matchers(t, "c")
	}
	if _, err := s.LabelNames(t.Context(), &query.MetaRequest{Start: at(0), End: at(1), Matchers: lists, Options: s.DefaultOptions()}); !errors.Is(err, query.ErrBadData) {
		t.Errorf("1001 selectors: %v", err)
	}
	if n := store.Calls.Load(); n != 0 {
		t.Errorf("the backend was asked %d times", n)
	}
}

// TestDeep: what is as deep, or as long a chain, as is allowed is answered by both
// engines in the memory of an ordinary query; their stacks are as deep as it.
func TestDeep(t *testing.T) {
	s, _ := serve(t, query.Config{}, spec("one", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "c"))))
	for name, expr := range map[string]string{
		"functions": strings.Repeat("abs(", 3300) + "c" + strings.Repeat(")", 3300),
		"brackets":  strings.Repeat("(", 4990) + "c" + strings.Repeat(")", 4990),
		"a chain":   strings.Repeat("1 * ", 4990) + "1",
		"signs":     strings.Repeat("-", 9990) + "c",
	} {
		for _, engine := range engines {
			o := s.DefaultOptions()
			o.Engine = engine
			res, err := s.Instant(t.Context(), &query.Request{Query: expr, Start: at(30), End: at(30), Options: o})
			if err != nil {
				t.Errorf("%s, %s: %v", name, engine, err)
				continue
			}
			if v := res.Value.String(); !strings.Contains(v, "1") {
				t.Errorf("%s, %s: %s", name, engine, v)
			}
			res.Close()
		}
	}
}

// TestEmbeddedFailsOnCorruption: nobody asks an embedded querier how complete it was.
func TestEmbeddedFailsOnCorruption(t *testing.T) {
	bad := fakestore.Floats(labels.FromStrings("__name__", "c"), []int64{0, 1000, 2000}, []float64{1, 2, 3})
	bad.Chunks[0].Raw.Data = bad.Chunks[0].Raw.Data[:len(bad.Chunks[0].Raw.Data)-3]
	s, _ := serve(t, query.Config{}, spec("one", fakestore.Holding(labels.EmptyLabels(), bad)))
	o := s.DefaultOptions()
	o.PartialResponse = false
	q, err := s.Queryable(o).Querier(0, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	set := q.Select(t.Context(), true, nil, matchers(t, "c")...)
	if !set.Next() {
		t.Fatalf("no series: %v", set.Err())
	}
	it := set.At().Iterator(nil)
	n := 0
	for it.Next() != 0 {
		n++
	}
	if it.Err() == nil {
		t.Errorf("%d samples of 3 and no error", n)
	}
}

// TestAllOfTheSteps: as many steps as are allowed are allowed, as in Prometheus.
func TestAllOfTheSteps(t *testing.T) {
	s, _ := serve(t, query.Config{}, spec("one", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "c"))))
	for _, x := range []struct {
		steps int
		ok    bool
	}{{11_000, true}, {11_001, false}} {
		res, err := s.Range(t.Context(), &query.Request{Query: "1", Start: at(0), End: at(0).Add(time.Duration(x.steps) * time.Second), Step: time.Second, Options: s.DefaultOptions()})
		if (err == nil) != x.ok {
			t.Errorf("%d steps: %v", x.steps, err)
		}
		if res != nil {
			res.Close()
		}
	}
}

// TestAnswersThatAreNotYetWritten are charged: they hold a slot until Close.
func TestAnswersThatAreNotYetWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		process := limits.NewProcess(limits.Config{Concurrent: 1})
		s, _ := serve(t, query.Config{Timeout: time.Minute, Limits: process}, spec("one", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "c"))))
		ask := func() (*query.Result, error) {
			return s.Instant(t.Context(), &query.Request{Query: "c", Start: at(1), End: at(1), Options: s.DefaultOptions()})
		}
		res, err := ask()
		if err != nil || process.Running() != 1 || process.Bytes() == 0 {
			t.Fatalf("%v, %d running, %d bytes", err, process.Running(), process.Bytes())
		}
		res.Close()
		if process.Running() != 0 || process.Bytes() != 0 {
			t.Errorf("after Close: %d running, %d bytes", process.Running(), process.Bytes())
		}
		if _, err = ask(); err != nil { // never closed
			t.Fatal(err)
		}
		began := time.Now()
		res, err = ask()
		if err == nil && time.Since(began) < time.Minute-time.Second {
			t.Errorf("a second one after %s", time.Since(began))
		}
		if res != nil {
			res.Close()
		}
		time.Sleep(2 * time.Minute)
		if process.Running() != 0 {
			t.Errorf("%d running at the end", process.Running())
		}
	})
}

// TestOrderOfSelections: the report lists them as the query does, every time.
func TestOrderOfSelections(t *testing.T) {
	s, _ := serve(t, query.Config{}, spec("one", fakestore.Holding(labels.EmptyLabels(), gauge(1, "__name__", "c"))))
	want := ""
	for range 50 {
		res, err := s.Instant(t.Context(), &query.Request{Query: "a + b + c + d", Start: at(1), End: at(1), Options: s.DefaultOptions()})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, sel := range res.Report.Selects {
			got += strings.Join(sel.Matchers, ",")
		}
		res.Close()
		if want == "" {
			want = got
		}
		if got != want {
			t.Fatalf("%s, and before %s", got, want)
		}
	}
}
