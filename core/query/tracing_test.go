// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"context"
	"errors"
	"iter"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/sdk/backend"
)

// TestSpans: one span for each backend that was asked, none for one that was not.
func TestSpans(t *testing.T) {
	series := fakestore.Floats(labels.FromStrings("__name__", "up"), []int64{1000}, []float64{1})
	broken := fakestore.Holding(labels.FromStrings("cluster", "eu1", "replica", "b"), series)
	broken.Wrap = func(context.Context, iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
		return backend.Fail(errors.New("no disk"))
	}
	set := membership.New([]membership.Entry{
		{Spec: membership.Spec{Name: "asked", Kind: "test"}, Backend: fakestore.Holding(labels.FromStrings("cluster", "eu1", "replica", "a"), series)},
		{Spec: membership.Spec{Name: "broken", Kind: "test"}, Backend: broken},
		{Spec: membership.Spec{Name: "pruned", Kind: "test"}, Backend: fakestore.Holding(labels.FromStrings("cluster", "us1"), series)},
	}, membership.Options{})
	defer set.Close()
	set.Refresh(t.Context())

	spans := tracetest.NewSpanRecorder()
	provider := trace.NewTracerProvider(trace.WithSpanProcessor(spans))
	s, err := query.New(set, query.Config{ReplicaLabels: []string{"replica"}, Tracer: provider.Tracer("test")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	at := time.UnixMilli(2000)
	if _, err := s.Instant(t.Context(), &query.Request{Query: `up{cluster="eu1"}`, Start: at, End: at, Options: s.DefaultOptions()}); err != nil {
		t.Fatal(err)
	}
	got := map[string]codes.Code{}
	for _, x := range spans.Ended() {
		got[x.Name()] = x.Status().Code
	}
	if len(got) != 2 || got["backend broken"] != codes.Error {
		t.Errorf("spans %v, want one for asked and one with an error for broken", got)
	}
	if c, ok := got["backend asked"]; !ok || c == codes.Error {
		t.Errorf("spans %v, want one without an error for asked", got)
	}
}
