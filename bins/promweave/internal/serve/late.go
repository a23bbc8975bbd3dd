// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/storepb"
)

// late is a backend that could not be opened yet: a read-only TSDB whose directory is
// not mounted, a plug-in that does not start. It is expected and unhealthy, and every
// Info tries again; once it is open, it is that backend.
type late struct {
	// open returns the backend and what ends it.
	open func() (backend.Backend, func() error, error)

	mu     sync.Mutex
	b      backend.Backend
	end    func() error
	err    error         // of the last try
	trying chan struct{} // closed at the end of the try that runs; nil if none does
	closed bool
}

var (
	_ backend.Backend           = (*late)(nil)
	_ backend.Closer            = (*late)(nil)
	_ backend.ExemplarsBackend  = (*late)(nil)
	_ backend.MetadataBackend   = (*late)(nil)
	_ backend.RulesBackend      = (*late)(nil)
	_ backend.TargetsBackend    = (*late)(nil)
	_ backend.StatisticsBackend = (*late)(nil)
)

// Info tries to open the backend. A try takes as long as it takes to read a log, or
// to start a program; one that outlasts ctx goes on, and a later Info finds what it opened.
func (l *late) Info(ctx context.Context) (backend.Info, error) {
	l.mu.Lock()
	if l.b == nil && !l.closed && l.trying == nil {
		l.trying = make(chan struct{})
		go l.try(l.trying)
	}
	trying := l.trying
	l.mu.Unlock()
	if trying != nil {
		select {
		case <-trying:
		case <-ctx.Done():
			return backend.Info{}, backend.Errorf(backend.ErrUnavailable, "it is still being opened: %w", context.Cause(ctx))
		}
	}
	b, err := l.now()
	if err != nil {
		return backend.Info{}, err
	}
	return b.Info(ctx)
}

func (l *late) try(done chan struct{}) {
	b, end, err := l.open()
	l.mu.Lock()
	closed := l.closed
	if !closed && err == nil {
		l.b, l.end = b, end
	}
	l.err, l.trying = err, nil
	l.mu.Unlock()
	if closed && err == nil {
		_ = end() // nobody has ever used it
	}
	close(done)
}

// now is the open backend, or why there is none.
func (l *late) now() (backend.Backend, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.b != nil:
		return l.b, nil
	case l.closed:
		return nil, backend.Errorf(backend.ErrUnavailable, "the backend was closed")
	case l.err == nil:
		return nil, backend.Errorf(backend.ErrUnavailable, "it is not open yet")
	}
	return nil, backend.Errorf(backend.ErrUnavailable, "%w", l.err)
}

// Series asks the backend.
func (l *late) Series(ctx context.Context, r *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	b, err := l.now()
	if err != nil {
		return backend.Fail(err)
	}
	return b.Series(ctx, r)
}

// LabelNames asks the backend.
func (l *late) LabelNames(ctx context.Context, r *backend.LabelNamesRequest) (*backend.Labels, error) {
	b, err := l.now()
	if err != nil {
		return nil, err
	}
	return b.LabelNames(ctx, r)
}

// LabelValues asks the backend.
func (l *late) LabelValues(ctx context.Context, r *backend.LabelValuesRequest) (*backend.Labels, error) {
	b, err := l.now()
	if err != nil {
		return nil, err
	}
	return b.LabelValues(ctx, r)
}

// Exemplars asks the backend.
func (l *late) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	b, err := offered[backend.ExemplarsBackend](l, "exemplars")
	if err != nil {
		return nil, nil, err
	}
	return b.Exemplars(ctx, selectors, minTime, maxTime)
}

// MetricMetadata asks the backend.
func (l *late) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	b, err := offered[backend.MetadataBackend](l, "metadata")
	if err != nil {
		return nil, nil, err
	}
	return b.MetricMetadata(ctx, metric, limit)
}

// Rules asks the backend.
func (l *late) Rules(ctx context.Context, r *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	b, err := offered[backend.RulesBackend](l, "rules")
	if err != nil {
		return nil, nil, err
	}
	return b.Rules(ctx, r)
}

// Targets asks the backend.
func (l *late) Targets(ctx context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	b, err := offered[backend.TargetsBackend](l, "targets")
	if err != nil {
		return nil, nil, err
	}
	return b.Targets(ctx, state)
}

// Statistics asks the backend.
func (l *late) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	b, err := offered[backend.StatisticsBackend](l, "statistics")
	if err != nil {
		return nil, nil, err
	}
	return b.Statistics(ctx, limit)
}

// offered is the open backend as one of the optional interfaces. What it does not
// claim in Info nobody asks for.
func offered[T any](l *late, what string) (T, error) {
	var none T
	b, err := l.now()
	if err != nil {
		return none, err
	}
	x, ok := b.(T)
	if !ok {
		return none, backend.Errorf(backend.ErrUnsupported, "%s are not supported", what)
	}
	return x, nil
}

// Close closes the backend if it is open. A try that still runs cannot be stopped: it
// closes what it opens.
func (l *late) Close() error {
	l.mu.Lock()
	end := l.end
	l.b, l.end, l.closed = nil, nil, true
	l.mu.Unlock()
	if end == nil {
		return nil
	}
	return end()
}

// openReadOnly opens a TSDB that is only read. One that is required must be there;
// any other may come later.
func openReadOnly(required bool, open func() (*tsdb.Backend, error)) (backend.Backend, error) {
	b, err := open()
	switch {
	case err == nil:
		return b, nil
	case required:
		return nil, err
	}
	return &late{err: err, open: func() (backend.Backend, func() error, error) {
		b, err := open()
		if err != nil {
			return nil, nil, err
		}
		return b, b.Close, nil
	}}, nil
}

// absent is a filter of which nothing is known yet. As long as it is not there nobody
// is let in where it would decide, and backends behind it are down: it may be what keeps
// tenants apart.
type absent struct {
	cfg     config.Filter
	why     error
	release func()
}

var _ carrier.Filter = (*absent)(nil)

// Plan implements carrier.Filter.
func (*absent) Plan() filter.Plan { return filter.Plan{Hooks: []string{filter.HookRequest}} }

func (a *absent) err() error {
	return &backend.Error{Kind: backend.ErrUnavailable, Text: fmt.Sprintf("filter %s is not there yet: %v", a.cfg.Name, a.why), Err: carrier.ErrFault}
}

// Request implements carrier.Filter.
func (a *absent) Request(context.Context, *filter.RequestCall) (*filter.RequestReply, error) {
	return nil, a.err()
}

// Select implements carrier.Filter.
func (a *absent) Select(context.Context, *filter.SelectCall) (*filter.SelectReply, error) {
	return nil, a.err()
}

// Rewrite implements carrier.Filter.
func (a *absent) Rewrite(context.Context, []byte, []byte) ([]byte, error) { return nil, a.err() }

// Close implements carrier.Filter.
func (*absent) Close() error { return nil }

// missing are the filters that are waited for.
func (f *filters) missing() []*absent { return slices.Collect(maps.Values(f.absent)) }

// arrived says whether a filter that is waited for is there.
func (f *filters) arrived(ctx context.Context, a *absent) bool {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	x, err := f.registry.Filter(ctx, a.cfg.Name, specOf(a.cfg.Plugin), []byte(a.cfg.Config), filtering.Closed)
	if err != nil {
		return false
	}
	_ = x.Close()
	return true
}
