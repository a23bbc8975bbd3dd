// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package tsdb

import (
	"context"
	"fmt"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// LabelNames implements backend.Backend. The time range is honoured by block.
func (b *Backend) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	var notices []backend.Notice
	out, err := shaping.LabelNames(b.ext, req, func(rest []*labels.Matcher) ([]string, error) {
		return b.collect(ctx, req.MinTime, req.MaxTime, req.PartialAllowed, &notices, func(s *source) ([]string, error) {
			return s.names(ctx, rest)
		})
	})
	if err != nil {
		return nil, err
	}
	out.Notices = append(out.Notices, notices...)
	return out, nil
}

// LabelValues implements backend.Backend. The time range is honoured by block.
func (b *Backend) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	var notices []backend.Notice
	out, err := shaping.LabelValues(b.ext, req,
		func(rest []*labels.Matcher) ([]string, error) {
			return b.collect(ctx, req.MinTime, req.MaxTime, req.PartialAllowed, &notices, func(s *source) ([]string, error) {
				return s.values(ctx, req.Name, rest)
			})
		},
		func(rest []*labels.Matcher) (bool, error) {
			found, err := b.collect(ctx, req.MinTime, req.MaxTime, req.PartialAllowed, &notices, func(s *source) ([]string, error) {
				return s.any(ctx, rest)
			})
			return len(found) > 0, err
		})
	if err != nil {
		return nil, err
	}
	out.Notices = append(out.Notices, notices...)
	return out, nil
}

// collect joins what the sources of the range say.
func (b *Backend) collect(ctx context.Context, mint, maxt int64, partial bool, notices *[]backend.Notice, from func(*source) ([]string, error)) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if mint > maxt {
		return nil, nil
	}
	sel, err := b.sources(mint, maxt, true)
	if err != nil {
		return nil, err
	}
	defer sel.close()
	var all []string
	for _, src := range sel.sources {
		some, err := from(src)
		if err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			sel.missing = append(sel.missing, fmt.Errorf("%s cannot be read: %w", src.what, err))
			continue
		}
		for _, s := range some {
			// The strings of a block lie in its map.
			all = append(all, strings.Clone(s))
		}
	}
	for _, err := range sel.missing {
		if !partial {
			return nil, backend.Errorf(backend.ErrInternal, "%w", err)
		}
		*notices = append(*notices, backend.Notice{Kind: backend.NoticeMissing, Text: err.Error()})
	}
	return all, nil
}

func (s *source) names(ctx context.Context, ms []*labels.Matcher) ([]string, error) {
	if s.labels != nil {
		names, _, err := s.labels.LabelNames(ctx, nil, ms...)
		return names, err
	}
	if len(ms) == 0 {
		return s.index.LabelNames(ctx)
	}
	p, err := tsdb.PostingsForMatchers(ctx, s.index, ms...)
	if err != nil {
		return nil, err
	}
	return s.index.LabelNamesFor(ctx, p)
}

func (s *source) values(ctx context.Context, name string, ms []*labels.Matcher) ([]string, error) {
	if s.labels != nil {
		values, _, err := s.labels.LabelValues(ctx, name, nil, ms...)
		return values, err
	}
	return s.index.LabelValues(ctx, name, nil, ms...)
}

// any returns a non-empty list if a series matches.
func (s *source) any(ctx context.Context, ms []*labels.Matcher) ([]string, error) {
	if s.labels != nil {
		names, _, err := s.labels.LabelNames(ctx, nil, ms...)
		return names, err
	}
	p, err := tsdb.PostingsForMatchers(ctx, s.index, orAll(ms)...)
	if err != nil {
		return nil, err
	}
	if p.Next() {
		return []string{"found"}, nil
	}
	return nil, p.Err()
}
