// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package mutants

import (
	"cmp"
	"context"
	"hash/fnv"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/reference"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// bare is the reference without external labels.
func (b *Backend) bare() *reference.Backend {
	return reference.New(b.corpus, reference.Options{Capabilities: reference.AllCapabilities()})
}

// stored answers without external labels and adds them by f.
func stored(rest func(b *Backend, ms []*labels.Matcher) []*labels.Matcher, f func(b *Backend, ls labels.Labels) labels.Labels) call {
	return func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
		r := *req
		r.Matchers, r.Limit, r.Shard, r.WithoutReplicaLabels = rest(b, req.Matchers), 0, nil, nil
		all, err := gather(b.bare().Series(ctx, &r))
		if err != nil {
			return backend.Fail(err)
		}
		for i := range all {
			all[i].Labels = f(b, all[i].Labels)
		}
		return shaping.Limit(emit(ordered(all, labels.Compare), 16), req.Limit)
	}
}

func split(b *Backend, ms []*labels.Matcher) []*labels.Matcher {
	rest, ok := shaping.SplitMatchers(b.external, ms)
	if !ok {
		return []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "no_such_label", "x")}
	}
	return rest
}

func shapes() []*Mutant {
	swap := func(_ *Backend, _ *backend.SeriesRequest, all []backend.Series) []backend.Series {
		if n := len(all); n > 1 {
			all[n-2], all[n-1] = all[n-1], all[n-2]
		}
		return all
	}
	sorted := func(compare func(a, b labels.Labels) int) call {
		return answered(func(_ *Backend, _ *backend.SeriesRequest, all []backend.Series) []backend.Series {
			return ordered(all, compare)
		})
	}
	value := func(name, label string, f func(string) string) call {
		return each(func(_ *backend.SeriesRequest, s backend.Series) backend.Series {
			if v := s.Labels.Get(label); v != "" && strings.HasPrefix(s.Labels.Get("__name__"), name) {
				s.Labels = labels.NewBuilder(s.Labels).Set(label, f(v)).Labels()
			}
			return s
		})
	}
	out := []*Mutant{
		{Name: "a label has an empty value", Kills: []string{"S-3.valid"}, series: each(func(_ *backend.SeriesRequest, s backend.Series) backend.Series {
			b := labels.NewScratchBuilder(s.Labels.Len() + 1)
			s.Labels.Range(func(l labels.Label) { b.Add(l.Name, l.Value) })
			b.Add("zzz", "")
			s.Labels = b.Labels()
			return s
		})},
		{Name: "dots of names become underscores", Kills: []string{"S-3.names"}, series: each(func(_ *backend.SeriesRequest, s backend.Series) backend.Series {
			b := labels.NewBuilder(labels.EmptyLabels())
			s.Labels.Range(func(l labels.Label) {
				if l.Name == "__name__" {
					l.Value = strings.NewReplacer(".", "_", "-", "_", ":", "_").Replace(l.Value)
				}
				b.Set(strings.ReplaceAll(l.Name, ".", "_"), l.Value)
			})
			s.Labels = b.Labels()
			return s
		})},
		{Name: "series without a metric name are lost", Kills: []string{"S-3.names"}, series: each(func(_ *backend.SeriesRequest, s backend.Series) backend.Series {
			if !s.Labels.Has("__name__") {
				s.Labels = labels.EmptyLabels()
			}
			return s
		})},
		{Name: "spaces at the ends of values are trimmed", Kills: []string{"S-3.text"}, series: value("cert_text", "text", strings.TrimSpace)},
		{Name: "backslashes are doubled", Kills: []string{"S-3.text"}, series: value("cert_text", "text", func(s string) string { return strings.ReplaceAll(s, `\`, `\\`) })},
		{Name: "values end after 65535 bytes", Kills: []string{"S-3.wide"}, series: value("cert_wide", "wide", func(s string) string { return s[:min(len(s), 65535)] })},
		{Name: "external labels are not added", Kills: []string{"S-4.external"}, series: stored(split, func(_ *Backend, ls labels.Labels) labels.Labels { return ls })},
		{Name: "stored labels win over external ones", Kills: []string{"S-4.override"}, series: stored(split, func(b *Backend, ls labels.Labels) labels.Labels {
			x := labels.NewBuilder(ls)
			b.external.Range(func(l labels.Label) {
				if !ls.Has(l.Name) {
					x.Set(l.Name, l.Value)
				}
			})
			return x.Labels()
		})},
		{Name: "matchers on external labels are passed to the store", Kills: []string{"S-5.matcher"}, series: stored(func(_ *Backend, ms []*labels.Matcher) []*labels.Matcher { return ms }, func(b *Backend, ls labels.Labels) labels.Labels {
			return shaping.ExtendLabels(ls, b.external, nil)
		})},
		{Name: "matchers on external labels are dropped", Kills: []string{"S-5.mismatch"}, series: stored(func(b *Backend, ms []*labels.Matcher) []*labels.Matcher {
			return slices.DeleteFunc(slices.Clone(ms), func(m *labels.Matcher) bool { return b.external.Has(m.Name) })
		}, func(b *Backend, ls labels.Labels) labels.Labels { return shaping.ExtendLabels(ls, b.external, nil) })},
		{Name: "a stored label hides the external one from matchers", Kills: []string{"S-5.stored"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			r := *req
			r.Matchers = nil
			all, err := gather(b.bare().Series(ctx, &r))
			if err != nil {
				return backend.Fail(err)
			}
			var kept []backend.Series
			for _, s := range all {
				seen := labels.NewBuilder(s.Labels)
				b.external.Range(func(l labels.Label) {
					if !s.Labels.Has(l.Name) {
						seen.Set(l.Name, l.Value)
					}
				})
				if shaping.Matches(seen.Labels(), req.Matchers) {
					s.Labels = shaping.ExtendLabels(s.Labels, b.external, nil)
					kept = append(kept, s)
				}
			}
			return emit(ordered(kept, labels.Compare), 16)
		}},
		{Name: "external labels alone select nothing", Kills: []string{"S-6.external-alone"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			if rest, ok := shaping.SplitMatchers(b.external, req.Matchers); ok && len(rest) == 0 {
				return backend.None()
			}
			return b.Backend.Series(ctx, req)
		}},
		{Name: "the last two series come the wrong way round", Kills: []string{"S-1.order"}, series: answered(swap)},
		{Name: "values are compared as UTF-16", Kills: []string{"S-1.bytes"}, series: sorted(func(a, b labels.Labels) int {
			if a.Get("__name__") != b.Get("__name__") || !a.Has("text") || !b.Has("text") {
				return labels.Compare(a, b)
			}
			return slices.Compare(utf16.Encode([]rune(a.Get("text"))), utf16.Encode([]rune(b.Get("text"))))
		})},
		{Name: "the longer of two label sets comes first", Kills: []string{"S-1.prefix"}, series: sorted(func(a, b labels.Labels) int {
			if x, y := a.String(), b.String(); a.Len() != b.Len() && (strings.HasPrefix(x, strings.TrimSuffix(y, "}")) || strings.HasPrefix(y, strings.TrimSuffix(x, "}"))) {
				return cmp.Compare(b.Len(), a.Len())
			}
			return labels.Compare(a, b)
		})},
		{Name: "series are sorted before external labels are added", Kills: []string{"S-1.external"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			r := *req
			r.Matchers = split(b, req.Matchers)
			all, err := gather(b.bare().Series(ctx, &r))
			if err != nil {
				return backend.Fail(err)
			}
			for i := range all {
				all[i].Labels = shaping.ExtendLabels(all[i].Labels, b.external, nil)
			}
			return emit(all, 16)
		}},
		{Name: "the first series comes again at the end", Kills: []string{"S-2.pieces"}, series: answered(func(_ *Backend, _ *backend.SeriesRequest, all []backend.Series) []backend.Series {
			if len(all) > 1 {
				all = append(all, all[0])
			}
			return all
		})},
		{Name: "two series are mixed piece by piece", Kills: []string{"S-2.pieces"}, series: answered(func(_ *Backend, _ *backend.SeriesRequest, all []backend.Series) []backend.Series {
			if len(all) < 2 || len(all[0].Chunks) < 2 {
				return all
			}
			first, rest := all[0], all[0]
			first.Chunks, rest.Chunks = all[0].Chunks[:1], all[0].Chunks[1:]
			return slices.Concat([]backend.Series{first, all[1], rest}, all[2:])
		})},
		{Name: "a batch of one loses the last series", Kills: []string{"S-1.batches"}, series: answered(func(_ *Backend, req *backend.SeriesRequest, all []backend.Series) []backend.Series {
			if req.BatchSize == 1 && len(all) > 1 {
				return all[:len(all)-1]
			}
			return all
		})},
	}
	return slices.Concat(out, shards(), replicaLabels())
}

func shards() []*Mutant {
	sharded := func(keep func(sh *backend.Shard, ls labels.Labels) bool) call {
		return func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			r := *req
			r.Shard, r.Limit = nil, 0
			all, err := gather(b.Backend.Series(ctx, &r))
			if err != nil {
				return backend.Fail(err)
			}
			if req.Shard != nil {
				all = slices.DeleteFunc(all, func(s backend.Series) bool { return !keep(req.Shard, s.Labels) })
			}
			return shaping.Limit(emit(all, 16), req.Limit)
		}
	}
	other := func(sh *backend.Shard, ls labels.Labels) bool {
		h := fnv.New64a()
		ls.Range(func(l labels.Label) {
			if slices.Contains(sh.Labels, l.Name) == sh.By {
				_, _ = h.Write([]byte(l.Name + l.Value))
			}
		})
		return h.Sum64()%uint64(sh.Total) == uint64(sh.Index)
	}
	return []*Mutant{
		{Name: "shards are made by another hash", Kills: []string{"S-10.shard"}, series: sharded(other)},
		{Name: "by and without are exchanged", Kills: []string{"S-10.shard"}, series: changed(func(r *backend.SeriesRequest) {
			if r.Shard != nil {
				sh := *r.Shard
				sh.By = !sh.By
				r.Shard = &sh
			}
		})},
		{Name: "shards overlap", Kills: []string{"S-10.shard-parts"}, series: sharded(func(sh *backend.Shard, ls labels.Labels) bool {
			next := *sh
			next.Index = (sh.Index + 1) % sh.Total
			return shaping.InShard(sh, ls) || shaping.InShard(&next, ls)
		})},
		{Name: "a shard comes in the order of hashes", Kills: []string{"S-10.shard-order"}, series: answered(func(_ *Backend, req *backend.SeriesRequest, all []backend.Series) []backend.Series {
			if req.Shard == nil {
				return all
			}
			slices.SortFunc(all, func(a, b backend.Series) int {
				return cmp.Compare(shaping.Hash(&backend.Shard{}, a.Labels), shaping.Hash(&backend.Shard{}, b.Labels))
			})
			return all
		})},
		{Name: "shards that are not claimed are made by another hash", Kills: []string{"S-10.shard-unclaimed"}, claims: func(c *backend.Capabilities) { c.Sharding = false }, series: sharded(other)},
	}
}

func replicaLabels() []*Mutant {
	removed := func(external, stored, sorted, merged bool) call {
		return func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			r := *req
			r.WithoutReplicaLabels, r.Limit, r.Shard = nil, 0, nil
			all, err := gather(b.Backend.Series(ctx, &r))
			if err != nil {
				return backend.Fail(err)
			}
			for i := range all {
				for _, name := range req.WithoutReplicaLabels {
					if b.external.Has(name) && external || !b.external.Has(name) && stored {
						all[i].Labels = without(all[i].Labels, name)
					}
				}
			}
			if sorted {
				all = ordered(all, labels.Compare)
			}
			if merged {
				all = slices.CompactFunc(all, func(x, y backend.Series) bool { return labels.Equal(x.Labels, y.Labels) })
			}
			return shaping.Limit(shaping.Sharded(emit(all, 16), req.Shard), req.Limit)
		}
	}
	return []*Mutant{
		{Name: "replica labels are removed from external labels only", Kills: []string{"S-10.replica"}, series: removed(true, false, true, false)},
		{Name: "series are not sorted again without replica labels", Kills: []string{"S-10.replica-order"}, series: removed(true, true, false, false)},
		{Name: "samples are lost where replicas become one", Kills: []string{"S-10.replica-samples"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			if len(req.WithoutReplicaLabels) == 0 {
				return b.Backend.Series(ctx, req)
			}
			return each(func(_ *backend.SeriesRequest, s backend.Series) backend.Series {
				s.Chunks = s.Chunks[:min(1, len(s.Chunks))]
				return s
			})(b, ctx, req)
		}},
		{Name: "matchers are applied after replica labels are gone", Kills: []string{"S-10.replica-matchers"}, series: func(b *Backend, ctx context.Context, req *backend.SeriesRequest) sequence {
			r := *req
			r.Matchers, r.Limit, r.Shard = nil, 0, nil
			all, err := gather(b.Backend.Series(ctx, &r))
			if err != nil {
				return backend.Fail(err)
			}
			all = slices.DeleteFunc(all, func(s backend.Series) bool { return !shaping.Matches(s.Labels, req.Matchers) })
			return emit(all, 16)
		}},
		{Name: "replica-label removal that is not claimed is done by halves", Kills: []string{"S-10.replica-unclaimed"}, claims: func(c *backend.Capabilities) { c.WithoutReplicaLabels = false }, series: removed(true, false, false, false)},
	}
}
