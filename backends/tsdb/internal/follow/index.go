// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"context"
	"maps"
	"slices"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/index"
)

// Symbols implements tsdb.IndexReader.
func (r *Reader) Symbols() index.StringIter { return r.head.postings.Symbols() }

// LabelValues implements tsdb.IndexReader.
func (r *Reader) LabelValues(ctx context.Context, name string, _ *storage.LabelHints, ms ...*labels.Matcher) ([]string, error) {
	if len(ms) == 0 {
		return r.head.postings.LabelValues(ctx, name, nil), nil
	}
	p, err := tsdb.PostingsForMatchers(ctx, r, ms...)
	if err != nil {
		return nil, err
	}
	values := map[string]struct{}{}
	for n := 0; p.Next(); n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if s := r.head.get(p.At()); s != nil {
			if v := s.lset.Get(name); v != "" {
				values[v] = struct{}{}
			}
		}
	}
	return slices.Collect(maps.Keys(values)), p.Err()
}

// SortedLabelValues implements tsdb.IndexReader.
func (r *Reader) SortedLabelValues(ctx context.Context, name string, h *storage.LabelHints, ms ...*labels.Matcher) ([]string, error) {
	values, err := r.LabelValues(ctx, name, h, ms...)
	values = slices.Clone(values)
	slices.Sort(values)
	return values, err
}

// Postings implements tsdb.IndexReader.
func (r *Reader) Postings(ctx context.Context, name string, values ...string) (index.Postings, error) {
	return r.head.postings.Postings(ctx, name, values...), nil
}

// PostingsForLabelMatching implements tsdb.IndexReader.
func (r *Reader) PostingsForLabelMatching(ctx context.Context, name string, match func(string) bool) index.Postings {
	return r.head.postings.PostingsForLabelMatching(ctx, name, match)
}

// PostingsForAllLabelValues implements tsdb.IndexReader.
func (r *Reader) PostingsForAllLabelValues(ctx context.Context, name string) index.Postings {
	return r.head.postings.PostingsForAllLabelValues(ctx, name)
}

// SortedPostings implements tsdb.IndexReader.
func (r *Reader) SortedPostings(p index.Postings) index.Postings {
	var all []*series
	for p.Next() {
		if s := r.head.get(p.At()); s != nil {
			all = append(all, s)
		}
	}
	if err := p.Err(); err != nil {
		return index.ErrPostings(err)
	}
	slices.SortFunc(all, func(a, b *series) int { return labels.Compare(a.lset, b.lset) })
	refs := make([]storage.SeriesRef, len(all))
	for i, s := range all {
		refs[i] = s.id
	}
	return index.NewListPostings(refs)
}

// ShardedPostings implements tsdb.IndexReader.
func (r *Reader) ShardedPostings(p index.Postings, shard, count uint64) index.Postings {
	var refs []storage.SeriesRef
	for p.Next() {
		if s := r.head.get(p.At()); s != nil && labels.StableHash(s.lset)%count == shard {
			refs = append(refs, s.id)
		}
	}
	if err := p.Err(); err != nil {
		return index.ErrPostings(err)
	}
	return index.NewListPostings(refs)
}

// LabelNames implements tsdb.IndexReader.
func (r *Reader) LabelNames(ctx context.Context, ms ...*labels.Matcher) ([]string, error) {
	if len(ms) > 0 {
		p, err := tsdb.PostingsForMatchers(ctx, r, ms...)
		if err != nil {
			return nil, err
		}
		return r.LabelNamesFor(ctx, p)
	}
	names := slices.Clone(r.head.postings.LabelNames())
	slices.Sort(names)
	return names, nil
}

// LabelNamesFor implements tsdb.IndexReader.
func (r *Reader) LabelNamesFor(ctx context.Context, p index.Postings) ([]string, error) {
	names := map[string]struct{}{}
	for n := 0; p.Next(); n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if s := r.head.get(p.At()); s != nil {
			s.lset.Range(func(l labels.Label) { names[l.Name] = struct{}{} })
		}
	}
	return slices.Sorted(maps.Keys(names)), p.Err()
}

// Close implements tsdb.IndexReader.
func (*Reader) Close() error { return nil }
