// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fakestore

import (
	"context"
	"iter"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
)

// Seq is an answer of Series.
type Seq = iter.Seq2[*backend.Batch, error]

// Script is a backend made of functions; those that are nil refuse, but for Info,
// which then says that nothing is known, and successfully so.
type Script struct {
	backend.Unimplemented
	OnInfo   func(context.Context) (backend.Info, error)
	OnSeries func(context.Context, *backend.SeriesRequest) Seq
	OnNames  func(context.Context, *backend.LabelNamesRequest) (*backend.Labels, error)
	OnValues func(context.Context, *backend.LabelValuesRequest) (*backend.Labels, error)
	// Closed counts the calls of Close.
	Closed atomic.Int64
}

// Info implements backend.Backend.
func (s *Script) Info(ctx context.Context) (backend.Info, error) {
	if s.OnInfo == nil {
		return backend.AllTime(), nil
	}
	return s.OnInfo(ctx)
}

// Series implements backend.Backend.
func (s *Script) Series(ctx context.Context, req *backend.SeriesRequest) Seq {
	if s.OnSeries == nil {
		return s.Unimplemented.Series(ctx, req)
	}
	return s.OnSeries(ctx, req)
}

// LabelNames implements backend.Backend.
func (s *Script) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	if s.OnNames == nil {
		return s.Unimplemented.LabelNames(ctx, req)
	}
	return s.OnNames(ctx, req)
}

// LabelValues implements backend.Backend.
func (s *Script) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if s.OnValues == nil {
		return s.Unimplemented.LabelValues(ctx, req)
	}
	return s.OnValues(ctx, req)
}

// Close implements backend.Closer.
func (s *Script) Close() error { s.Closed.Add(1); return nil }

// Sends is a Script that sends batches as they are, one for each list of series.
func Sends(batches ...[]backend.Series) *Script {
	return &Script{OnSeries: func(context.Context, *backend.SeriesRequest) Seq {
		return func(yield func(*backend.Batch, error) bool) {
			for _, list := range batches {
				b := backend.NewBatch(len(list))
				for _, s := range list {
					b.Append(s)
				}
				if !yield(b, nil) {
					return
				}
			}
		}
	}}
}

// Then puts end behind the first n batches of an answer. It is a Wrap of Store,
// and what end does is the fault.
func Then(n int, end func(ctx context.Context, yield func(*backend.Batch, error) bool)) func(context.Context, Seq) Seq {
	return func(ctx context.Context, seq Seq) Seq {
		return func(yield func(*backend.Batch, error) bool) {
			i := 0
			for b, err := range seq {
				if i == n {
					break
				}
				if !yield(b, err) {
					return
				}
				i++
			}
			end(ctx, yield)
		}
	}
}

// The faults, for Then.

// Break ends an answer with an error.
func Break(err error) func(context.Context, func(*backend.Batch, error) bool) {
	return func(_ context.Context, yield func(*backend.Batch, error) bool) { yield(nil, err) }
}

// Hang waits until its context is done, as rule B-2 has it.
func Hang(ctx context.Context, yield func(*backend.Batch, error) bool) {
	<-ctx.Done()
	yield(nil, context.Cause(ctx))
}

// HangSilently is Hang that conceals why it ends.
func HangSilently(ctx context.Context, _ func(*backend.Batch, error) bool) { <-ctx.Done() }

// HangDeaf does not look at its context: it waits for release, then sends late.
func HangDeaf(release <-chan struct{}, late *backend.Batch) func(context.Context, func(*backend.Batch, error) bool) {
	return func(_ context.Context, yield func(*backend.Batch, error) bool) {
		<-release
		if late != nil {
			yield(late, nil)
		}
	}
}

// Panic panics.
func Panic(context.Context, func(*backend.Batch, error) bool) { panic("on purpose") }

// BadUTF8 is a label set that is not valid UTF-8.
func BadUTF8() labels.Labels { return labels.FromStrings("__name__", "up", "zzz", "\xff\xfe") }
