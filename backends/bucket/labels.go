// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/prometheus/model/labels"
	"golang.org/x/sync/errgroup"

	"github.com/promweave/promweave/backends/bucket/internal/block"
	"github.com/promweave/promweave/backends/bucket/internal/header"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// LabelNames implements backend.Backend. The time range is honoured by block.
func (b *Backend) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	t, u := &trouble{partial: req.PartialAllowed}, b.usage()
	var all []string
	for _, s := range sets(b.src.Blocks()) {
		unlimited := *req
		unlimited.Limit = 0
		out, err := shaping.LabelNames(s.ext, &unlimited, func(rest []*labels.Matcher) ([]string, error) {
			return b.collect(ctx, s.all(req.MinTime, req.MaxTime), t, func(r *block.Reader, h *header.Reader, p part) ([]string, error) {
				if len(rest) == 0 {
					return h.LabelNames(), nil
				}
				return b.each(ctx, u, r, h, p, rest, func(ls labels.Labels, add func(string)) {
					ls.Range(func(l labels.Label) { add(l.Name) })
				})
			})
		})
		if err != nil {
			return nil, err
		}
		all = append(all, out.Values...)
	}
	return &backend.Labels{Values: shaping.SortedUnique(all, req.Limit), Notices: t.take()}, nil
}

// LabelValues implements backend.Backend. The time range is honoured by block.
func (b *Backend) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if req.Name == "" {
		return nil, backend.Errorf(backend.ErrInvalid, "label values: the label name is empty; name a label")
	}
	t, u := &trouble{partial: req.PartialAllowed}, b.usage()
	var all []string
	for _, s := range sets(b.src.Blocks()) {
		unlimited := *req
		unlimited.Limit = 0
		parts := s.all(req.MinTime, req.MaxTime)
		if len(parts) == 0 {
			continue // not even the external value
		}
		values := func(rest []*labels.Matcher) ([]string, error) {
			return b.collect(ctx, parts, t, func(r *block.Reader, h *header.Reader, p part) ([]string, error) {
				if len(rest) == 0 {
					var out []string
					err := h.Values(req.Name, func(v []byte, _ header.Range) bool {
						out = append(out, string(v))
						return true
					})
					return out, err
				}
				return b.each(ctx, u, r, h, p, rest, func(ls labels.Labels, add func(string)) {
					if v := ls.Get(req.Name); v != "" {
						add(v)
					}
				})
			})
		}
		exists := func(rest []*labels.Matcher) (bool, error) {
			found, err := b.collect(ctx, parts, t, func(r *block.Reader, h *header.Reader, p part) ([]string, error) {
				return b.each(ctx, u, r, h, p, rest, func(_ labels.Labels, add func(string)) { add("x") })
			})
			return len(found) > 0, err
		}
		out, err := shaping.LabelValues(s.ext, &unlimited, values, exists)
		if err != nil {
			return nil, err
		}
		all = append(all, out.Values...)
	}
	return &backend.Labels{Values: shaping.SortedUnique(all, req.Limit), Notices: t.take()}, nil
}

// collect joins what the blocks say, several at a time.
func (b *Backend) collect(ctx context.Context, parts []part, t *trouble, from func(*block.Reader, *header.Reader, part) ([]string, error)) ([]string, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var (
		mu  sync.Mutex
		all []string
	)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(b.cfg.Concurrency)
	for _, p := range parts {
		g.Go(func() error {
			h, release, err := b.headers.acquire(gctx, p.m)
			var some []string
			if err == nil {
				defer release()
				some, err = from(block.NewReader(b.bkt, p.m), h, p)
			}
			if err != nil {
				return t.missing(ctx, p.m, err)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, some...)
			return nil
		})
	}
	err := g.Wait()
	return all, err
}

// each gives the label sets of series that match and have a chunk in the range to f, and returns
// what that adds, each once.
func (b *Backend) each(ctx context.Context, u *block.Usage, r *block.Reader, h *header.Reader, p part, ms []*labels.Matcher, f func(labels.Labels, func(string))) ([]string, error) {
	symbols := block.Symbols{}
	refs, err := r.Postings(ctx, h, u, ms)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for part := range slices.Chunk(refs, mostSeries) {
		series, err := r.Series(ctx, h, u, symbols, part, p.minTime, p.maxTime)
		if err != nil {
			return nil, err
		}
		for i := range series {
			f(series[i].Labels, func(s string) {
				if !seen[s] {
					seen[strings.Clone(s)] = true
				}
			})
		}
	}
	out := make([]string, 0, len(seen))
	for s := range seen {
		out = append(out, s)
	}
	return out, nil
}
