// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package builtin

import (
	"context"
	"iter"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/storepb"
)

// builtinBackend is a configured backend. Its batches are handed through as they are.
type builtinBackend struct {
	p    *Plugin
	b    backend.Backend
	gone atomic.Bool
}

var (
	_ backend.Closer            = (*builtinBackend)(nil)
	_ backend.ExemplarsBackend  = (*builtinBackend)(nil)
	_ backend.MetadataBackend   = (*builtinBackend)(nil)
	_ backend.RulesBackend      = (*builtinBackend)(nil)
	_ backend.TargetsBackend    = (*builtinBackend)(nil)
	_ backend.StatisticsBackend = (*builtinBackend)(nil)
)

// guarded runs f in the caller's goroutine: rule B-2 has the backend return when ctx is done.
func guarded[R any](ctx context.Context, b *builtinBackend, what string, f func() (R, error)) (out R, err error) {
	if err := b.p.begin(what); err != nil {
		return out, err
	}
	defer b.p.end()
	defer b.p.tally.Call()()
	defer func() {
		if v := recover(); v != nil {
			err = b.p.caught(what, v)
		} else if err != nil {
			err = b.p.said(ctx, what, err)
		}
	}()
	return f()
}

func (b *builtinBackend) Info(ctx context.Context) (backend.Info, error) {
	return guarded(ctx, b, "info", func() (backend.Info, error) {
		info, err := b.b.Info(ctx)
		info.Capabilities = wire.Served(b.b, info.Capabilities)
		return info, err
	})
}

func (b *builtinBackend) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	return guarded(ctx, b, "label names", func() (*backend.Labels, error) { return b.b.LabelNames(ctx, req) })
}

func (b *builtinBackend) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	return guarded(ctx, b, "label values", func() (*backend.Labels, error) { return b.b.LabelValues(ctx, req) })
}

// Series implements backend.Backend.
func (b *builtinBackend) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		if err := b.p.begin("series"); err != nil {
			yield(nil, err)
			return
		}
		defer b.p.end()
		defer b.p.tally.Call()()
		if wanted, err := b.stream(ctx, req, yield); err != nil && wanted {
			yield(nil, b.p.said(ctx, "series", err))
		}
	}
}

// stream yields batches until there are none, one is an error, or nobody wants more.
func (b *builtinBackend) stream(ctx context.Context, req *backend.SeriesRequest, yield func(*backend.Batch, error) bool) (wanted bool, err error) {
	// A panic of whoever receives passes through here; it is not the backend's.
	receiving := false
	wanted = true
	defer func() {
		if receiving {
			return
		}
		if v := recover(); v != nil {
			err = b.p.caught("series", v)
		}
	}()
	for batch, err := range b.b.Series(ctx, req) {
		if err != nil {
			return true, err
		}
		receiving = true
		wanted = yield(batch, nil)
		receiving = false
		if !wanted {
			break
		}
	}
	return wanted, nil
}

// Close implements backend.Closer.
func (b *builtinBackend) Close() error {
	if b.gone.Swap(true) {
		return nil
	}
	b.p.count(-1)
	if c, ok := b.b.(backend.Closer); ok {
		return c.Close()
	}
	return nil
}

func lacks(what string) error {
	return backend.Errorf(backend.ErrUnsupported, "%s are not served by this store", what)
}

type noted[R any] struct {
	r  R
	ns []backend.Notice
}

func optional[R any](ctx context.Context, b *builtinBackend, what string, ok bool, f func() (R, []backend.Notice, error)) (R, []backend.Notice, error) {
	out, err := guarded(ctx, b, what, func() (noted[R], error) {
		if !ok {
			return noted[R]{}, lacks(what)
		}
		r, ns, err := f()
		return noted[R]{r, ns}, err
	})
	return out.r, out.ns, err
}

// Exemplars implements backend.ExemplarsBackend.
func (b *builtinBackend) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	x, ok := b.b.(backend.ExemplarsBackend)
	return optional(ctx, b, "exemplars", ok, func() ([]*storepb.ExemplarData, []backend.Notice, error) {
		return x.Exemplars(ctx, selectors, minTime, maxTime)
	})
}

// MetricMetadata implements backend.MetadataBackend.
func (b *builtinBackend) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	x, ok := b.b.(backend.MetadataBackend)
	return optional(ctx, b, "metadata", ok, func() (map[string][]*storepb.Meta, []backend.Notice, error) {
		return x.MetricMetadata(ctx, metric, limit)
	})
}

// Rules implements backend.RulesBackend.
func (b *builtinBackend) Rules(ctx context.Context, req *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	x, ok := b.b.(backend.RulesBackend)
	return optional(ctx, b, "rules", ok, func() ([]*storepb.RuleGroup, []backend.Notice, error) { return x.Rules(ctx, req) })
}

// Targets implements backend.TargetsBackend.
func (b *builtinBackend) Targets(ctx context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	x, ok := b.b.(backend.TargetsBackend)
	return optional(ctx, b, "targets", ok, func() (*storepb.TargetDiscovery, []backend.Notice, error) { return x.Targets(ctx, state) })
}

// Statistics implements backend.StatisticsBackend.
func (b *builtinBackend) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	x, ok := b.b.(backend.StatisticsBackend)
	return optional(ctx, b, "statistics", ok, func() (*storepb.TSDBStatisticsEntry, []backend.Notice, error) { return x.Statistics(ctx, limit) })
}
