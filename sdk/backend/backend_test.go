// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package backend_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKind(t *testing.T) {
	limit := backend.Errorf(backend.ErrLimit, "read: %w", io.ErrUnexpectedEOF)
	if limit.Error() != "read: unexpected EOF" {
		t.Errorf("text %q", limit)
	}
	if !errors.Is(limit, io.ErrUnexpectedEOF) {
		t.Error("the cause is lost")
	}
	for _, c := range []struct{ err, kind error }{
		{nil, nil},
		{io.EOF, backend.ErrInternal},
		{limit, backend.ErrLimit},
		{fmt.Errorf("store x: %w", limit), backend.ErrLimit},
		{backend.Errorf(backend.ErrInvalid, "no"), backend.ErrInvalid},
		{backend.Errorf(backend.ErrUnavailable, "%w", limit), backend.ErrLimit},
	} {
		if got := backend.Kind(c.err); got != c.kind {
			t.Errorf("kind of %v is %v, want %v", c.err, got, c.kind)
		}
	}
}

func TestBatch(t *testing.T) {
	b := backend.NewBatch(1)
	small := backend.Series{Labels: labels.FromStrings("a", "1")}
	large := backend.Series{Labels: labels.FromStrings("a", "2"), Chunks: []backend.Chunk{
		{MinTime: 1, MaxTime: 2, Raw: backend.Encoded{Encoding: chunkenc.EncXOR, Data: make([]byte, 1000)}},
		{MinTime: 3, MaxTime: 4, Aggregates: &backend.AggregateChunks{Sum: backend.Encoded{Encoding: chunkenc.EncXOR, Data: make([]byte, 2000)}}},
	}}
	b.Append(small)
	b.Append(large)
	if b.Len() != 2 || !labels.Equal(b.At(1).Labels, large.Labels) || len(b.At(1).Chunks) != 2 {
		t.Fatalf("batch of %d: %v", b.Len(), b.At(1))
	}
	if b.Bytes() != small.Size()+large.Size() || large.Size() < 3000 || small.Size() > 200 {
		t.Errorf("%d bytes of %d and %d", b.Bytes(), small.Size(), large.Size())
	}
	if large.Chunks[0].Raw.Present() == large.Chunks[1].Raw.Present() {
		t.Error("an absent encoding counts as present, or the other way round")
	}
	b.Notify(backend.Notice{Kind: backend.NoticeMissing, Text: "x"})
	if n := b.Notices(); len(n) != 1 || n[0].Kind != backend.NoticeMissing {
		t.Errorf("notices %v", n)
	}
}

// TestUnimplemented: what embeds it refuses, and does not answer with nothing.
func TestUnimplemented(t *testing.T) {
	var b backend.Backend = backend.Unimplemented{}
	ctx := context.Background()
	_, err1 := b.Info(ctx)
	_, err2 := b.LabelNames(ctx, &backend.LabelNamesRequest{})
	_, err3 := b.LabelValues(ctx, &backend.LabelValuesRequest{Name: "a"})
	errs := []error{err1, err2, err3}
	for _, err := range b.Series(ctx, &backend.SeriesRequest{}) {
		errs = append(errs, err)
	}
	if len(errs) != 4 {
		t.Fatalf("%d errors, want one a call", len(errs))
	}
	for i, err := range errs {
		if backend.Kind(err) != backend.ErrUnsupported {
			t.Errorf("call %d: %v is not a refusal", i, err)
		}
	}
	for range backend.None() {
		t.Error("None yields")
	}
}
