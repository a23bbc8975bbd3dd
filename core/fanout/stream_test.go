// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
)

// TestSlowConsumer: the time in which a backend waits for the consumer, or for
// another backend, is not the backend's.
func TestSlowConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		steady := func(name string, every time.Duration) backend.Backend {
			return &fakestore.Script{OnSeries: func(ctx context.Context, _ *backend.SeriesRequest) fakestore.Seq {
				return func(yield func(*backend.Batch, error) bool) {
					for i := range 20 {
						select {
						case <-time.After(every):
						case <-ctx.Done():
							yield(nil, context.Cause(ctx))
							return
						}
						b := backend.NewBatch(1)
						b.Append(one("m", fmt.Sprintf("%08d-%s", i, name)))
						if !yield(b, nil) {
							return
						}
					}
				}
			}}
		}
		quick, slow := member("quick", steady("quick", time.Millisecond)), member("slow", steady("slow", 100*time.Millisecond))
		quick.Timeout, slow.Timeout = time.Second, 3*time.Second
		w := newWorld(t, limits.Config{}, true, quick, slow)
		req := request()
		req.BatchSize = 1
		n := 0
		for b, err := range w.session.Stream(t.Context(), req, w.sel) {
			if err != nil {
				t.Fatal(err)
			}
			n += b.Len()
			time.Sleep(time.Minute)
		}
		if n != 40 {
			t.Errorf("%d series of 40", n)
		}
		for _, r := range w.sel.Backends {
			if r.State != report.RowAnswered {
				t.Errorf("%s is %s: %s", r.Backend, r.State, r.Detail)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		// Its own silence is its own.
		late := member("late", &fakestore.Script{OnSeries: func(ctx context.Context, _ *backend.SeriesRequest) fakestore.Seq {
			return func(yield func(*backend.Batch, error) bool) {
				b := backend.NewBatch(1)
				b.Append(one("m", "1"))
				if !yield(b, nil) {
					return
				}
				<-ctx.Done()
				yield(nil, context.Cause(ctx))
			}
		}})
		late.Timeout = time.Second
		w := newWorld(t, limits.Config{}, true, late)
		began := time.Now()
		for _, err := range w.session.Stream(t.Context(), request(), w.sel) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(began); d != time.Second {
			t.Errorf("it was left after %s, want 1s", d)
		}
		if r := w.sel.Backends[0]; r.Reason != report.ReasonTimeout {
			t.Errorf("it is %s for %q", r.State, r.Reason)
		}
	})
}

// TestBackendsDoNotShareMatchers: a backend that breaks rule B-3 by reordering the
// matchers that it gets, as the TSDB library does, harms no other.
func TestBackendsDoNotShareMatchers(t *testing.T) {
	both(t, func(t *testing.T, ask func(context.Context, *world, *backend.SeriesRequest) ([]string, error)) {
		req := request()
		req.Matchers = []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "a", "1"), labels.MustNewMatcher(labels.MatchEqual, "b", "2")}
		spoiler := func() backend.Backend {
			return &fakestore.Script{OnSeries: func(_ context.Context, req *backend.SeriesRequest) fakestore.Seq {
				if req.Matchers[0].Name != "a" {
					t.Errorf("the first matcher is %s", req.Matchers[0])
				}
				req.Matchers[0], req.Matchers[1] = req.Matchers[1], req.Matchers[0]
				return backend.None()
			}}
		}
		w := newWorld(t, limits.Config{}, true, member("x", spoiler()), member("y", spoiler()), member("z", spoiler()))
		if _, err := ask(t.Context(), w, req); err != nil {
			t.Fatal(err)
		}
		if req.Matchers[0].Name != "a" {
			t.Error("the caller's matchers were changed")
		}
	})
}

// TestLongSeriesGoesOnInPieces: a series that only one backend has is not gathered,
// and what was handed on is not charged to the process any more.
func TestLongSeriesGoesOnInPieces(t *testing.T) {
	const pieces, bytes = 2000, 10_000
	long := &fakestore.Script{OnSeries: func(context.Context, *backend.SeriesRequest) fakestore.Seq {
		return func(yield func(*backend.Batch, error) bool) {
			for i := range pieces {
				b := backend.NewBatch(1)
				b.Append(backend.Series{Labels: labels.FromStrings("i", "z"), Chunks: []backend.Chunk{{
					MinTime: int64(i), MaxTime: int64(i), Raw: backend.Encoded{Encoding: 1, Data: make([]byte, bytes)},
				}}})
				if !yield(b, nil) {
					return
				}
			}
		}
	}}
	w := newWorld(t, limits.Config{}, true, member("long", long))
	var largest, chunks, held int64
	for b, err := range w.session.Stream(t.Context(), &backend.SeriesRequest{MaxTime: 1e9, Limit: 1}, w.sel) {
		if err != nil {
			t.Fatal(err)
		}
		largest, held = max(largest, int64(b.Bytes())), max(held, w.process.Bytes())
		for i := range b.Len() {
			chunks += int64(len(b.At(i).Chunks))
		}
	}
	if chunks != pieces {
		t.Errorf("%d chunks of %d", chunks, pieces)
	}
	if largest > 3<<20 || held > 6<<20 {
		t.Errorf("batches of %d bytes and %d held, of %d in all", largest, held, pieces*bytes)
	}
	if n := w.process.Bytes(); n > 3<<20 {
		t.Errorf("%d bytes are charged at the end", n)
	}
	w.query.End()
	if n := w.process.Bytes(); n != 0 {
		t.Errorf("%d bytes are charged after the end", n)
	}
}
