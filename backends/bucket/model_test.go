// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/promweave/promweave/backends/bucket"
	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/downsample"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/sdk/backend"
)

// modelBlock is all that a block holds, as the TSDB's own reader reads it.
type modelBlock struct {
	m      *meta.Meta
	series []backend.Series
}

func readBlock(t *testing.T, dir string, m *meta.Meta) (out modelBlock) {
	t.Helper()
	out.m = m
	b, err := tsdb.OpenBlock(nil, filepath.Join(dir, m.ULID.String()), aggregate.NewPool(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ir, err := b.Index()
	if err != nil {
		t.Fatal(err)
	}
	defer ir.Close()
	cr, err := b.Chunks()
	if err != nil {
		t.Fatal(err)
	}
	defer cr.Close()
	name, v := index.AllPostingsKey()
	p, err := ir.Postings(t.Context(), name, v)
	if err != nil {
		t.Fatal(err)
	}
	var lb labels.ScratchBuilder
	var metas []chunks.Meta
	for p.Next() {
		if err := ir.Series(p.At(), &lb, &metas); err != nil {
			t.Fatal(err)
		}
		s := backend.Series{Labels: lb.Labels().Copy()}
		for _, c := range metas {
			data, _, err := cr.ChunkOrIterable(c)
			if err != nil {
				t.Fatal(err)
			}
			k := backend.Chunk{MinTime: c.MinTime, MaxTime: c.MaxTime}
			bytes := slices.Clone(data.Bytes())
			if data.Encoding() != aggregate.Encoding {
				k.Raw = backend.Encoded{Encoding: data.Encoding(), Data: bytes}
			} else if k.Aggregates, err = aggregate.Parse(bytes); err != nil {
				t.Fatal(err)
			}
			s.Chunks = append(s.Chunks, k)
		}
		out.series = append(out.series, s)
	}
	return out
}

// uncovered is the first and the last moment of the range in which a block is read: one that no
// block of a coarser level that is allowed has.
func uncovered(b modelBlock, all []modelBlock, req *backend.SeriesRequest) (first, last int64, ok bool) {
	coarser := func(o modelBlock) bool {
		return o.m.Resolution() > b.m.Resolution() && o.m.Resolution() <= req.MaxResolution && labels.Equal(o.m.External(), b.m.External())
	}
	moments := []int64{req.MinTime, req.MaxTime, b.m.MinTime, b.m.MaxTime - 1}
	for _, o := range all {
		moments = append(moments, o.m.MinTime-1, o.m.MaxTime)
	}
	for _, at := range moments {
		if at < req.MinTime || at > req.MaxTime || at < b.m.MinTime || at >= b.m.MaxTime ||
			slices.ContainsFunc(all, func(o modelBlock) bool { return coarser(o) && o.m.MinTime <= at && at < o.m.MaxTime }) {
			continue
		}
		if !ok {
			first, last, ok = at, at, true
		}
		first, last = min(first, at), max(last, at)
	}
	return first, last, ok
}

// model is the answer, the plain way: of each label set the chunks.
func model(all []modelBlock, req *backend.SeriesRequest) map[string]map[string]bool {
	out := map[string]map[string]bool{}
	for _, b := range all {
		first, last, ok := uncovered(b, all, req)
		if !ok || b.m.Resolution() > req.MaxResolution {
			continue
		}
		for _, s := range b.series {
			lb := labels.NewBuilder(s.Labels)
			b.m.External().Range(func(l labels.Label) { lb.Set(l.Name, l.Value) })
			full := lb.Labels()
			if slices.ContainsFunc(req.Matchers, func(m *labels.Matcher) bool { return !m.Matches(full.Get(m.Name)) }) {
				continue
			}
			key := lb.Del(req.WithoutReplicaLabels...).Labels().String()
			for _, c := range s.Chunks {
				if c.MaxTime < first || c.MinTime > last {
					continue
				}
				if out[key] == nil {
					out[key] = map[string]bool{}
				}
				if !req.SkipChunks {
					out[key][chunkLine(c)] = true
				}
			}
		}
	}
	return out
}

func chunkLine(c backend.Chunk) string {
	if a := c.Aggregates; a != nil {
		return fmt.Sprintf("%d %d %x", c.MinTime, c.MaxTime, *a)
	}
	return fmt.Sprintf("%d %d %x", c.MinTime, c.MaxTime, c.Raw)
}

// randomBlocks are blocks of every level, of two replicas, which overlap, leave gaps, and of which
// some hold the same.
func randomBlocks(t *testing.T, rnd *rand.Rand, dir string) (out []modelBlock) {
	t.Helper()
	from := yearFrom
	var lines []*line
	for i := range 12 {
		l := &line{ls: labels.FromStrings("__name__", []string{"gauge", "counter", "histogram"}[i%3], "i", fmt.Sprint(i), []string{"a", "q", "z"}[rnd.IntN(3)], fmt.Sprint(rnd.IntN(3)))}
		v := 0.0
		for at := from; at < from+24*hour; at += minute/2 + rnd.Int64N(minute) {
			if rnd.IntN(300) == 0 {
				at += rnd.Int64N(3 * hour)
			}
			if v += float64(rnd.IntN(9)); rnd.IntN(200) == 0 {
				v = 0
			}
			s := sample{t: at, f: v}
			switch {
			case i%3 == 2:
				c := uint64(v)
				s.h = &histogram.Histogram{Count: c, ZeroCount: c, Sum: v, ZeroThreshold: 0.001}
			case rnd.IntN(100) == 0:
				s.f = math.Float64frombits(value.StaleNaN)
			}
			l.samples = append(l.samples, s)
		}
		lines = append(lines, l)
	}
	add := func(m *meta.Meta, err error) *meta.Meta {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, readBlock(t, dir, m))
		return m
	}
	for _, replica := range []string{"x", "y"} {
		for range 1 + rnd.IntN(5) {
			lo := from + rnd.Int64N(22*hour)
			hi := min(from+24*hour, lo+hour+rnd.Int64N(8*hour))
			var part []*line
			for _, l := range lines {
				p := &line{ls: l.ls}
				for _, s := range l.samples {
					if s.T() >= lo && s.T() < hi {
						p.samples = append(p.samples, s)
					}
				}
				if len(p.samples) > 0 && rnd.IntN(8) > 0 {
					part = append(part, p)
				}
			}
			if len(part) == 0 {
				continue
			}
			m := add(writeLines(dir, labels.FromStrings("cluster", "c", "replica", replica), lo, hi, part))
			if rnd.IntN(3) == 0 {
				add(writeLines(dir, labels.FromStrings("cluster", "c", "replica", replica), lo, hi, part))
			}
			for _, r := range meta.Resolutions()[1:] {
				if rnd.IntN(3) == 0 {
					break
				}
				m = add(downsample.Block(t.Context(), m, filepath.Join(dir, m.ULID.String()), dir, r, downsample.Options{SegmentBytes: 1 << 20}))
			}
		}
	}
	return out
}

// TestModel: whatever blocks there are, and in which order, whatever is asked for, and however it is
// read, the answer is that of the model, in order.
func TestModel(t *testing.T) {
	layouts := 25
	if testing.Short() {
		layouts = 5
	}
	for seed := range layouts {
		rnd := rand.New(rand.NewPCG(uint64(seed), 9))
		dir := quick(t)
		all := randomBlocks(t, rnd, dir)
		bkt, err := filesystem.NewBucket(dir)
		if err != nil {
			t.Fatal(err)
		}
		var src list
		for _, b := range all {
			src = append(src, b.m)
		}
		rnd.Shuffle(len(src), func(i, j int) { src[i], src[j] = src[j], src[i] })
		b, err := bucket.New(bkt, src, bucket.Config{Dir: t.TempDir(), Concurrency: 1 + rnd.IntN(6)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			req := &backend.SeriesRequest{
				MinTime: yearFrom - hour + rnd.Int64N(25*hour), MaxResolution: []int64{0, 299_999, meta.FiveMinutes, meta.OneHour}[rnd.IntN(4)],
				Aggregates: []backend.Aggregate{backend.AggregateCount, backend.AggregateSum, backend.AggregateMin, backend.AggregateMax, backend.AggregateCounter},
				BatchSize:  rnd.IntN(5), SkipChunks: rnd.IntN(5) == 0,
			}
			req.MaxTime = req.MinTime + rnd.Int64N(20*hour)
			if rnd.IntN(3) == 0 {
				req.WithoutReplicaLabels = []string{"replica"}
			}
			for range rnd.IntN(3) {
				names, values := []string{"__name__", "i", "a", "q", "replica", "cluster", "none"}, []string{"", "gauge", "1", "2", "x", "y", "c", "counter|gauge|1", ".+", ".*"}
				req.Matchers = append(req.Matchers, labels.MustNewMatcher(labels.MatchType(rnd.IntN(4)), names[rnd.IntN(len(names))], values[rnd.IntN(len(values))]))
			}
			want, got := model(all, req), map[string]map[string]bool{}
			var last labels.Labels
			for batch, err := range b.Series(t.Context(), req) {
				if err != nil {
					t.Fatalf("layout %d, %+v: %v", seed, req, err)
				}
				for i := range batch.Len() {
					s := batch.At(i)
					if labels.Compare(s.Labels, last) < 0 {
						t.Fatalf("layout %d, %+v: %s comes after %s", seed, req, s.Labels, last)
					}
					last = s.Labels.Copy()
					if got[last.String()] == nil {
						got[last.String()] = map[string]bool{}
					}
					for _, c := range s.Chunks {
						got[last.String()][chunkLine(c)] = true
					}
				}
			}
			if !maps.EqualFunc(got, want, maps.Equal) {
				for key := range want {
					if !maps.Equal(got[key], want[key]) {
						t.Logf("%s has %d chunks, want %d", key, len(got[key]), len(want[key]))
					}
				}
				t.Fatalf("layout %d, %+v: %d series, want %d", seed, req, len(got), len(want))
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
