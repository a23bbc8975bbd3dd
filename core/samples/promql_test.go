// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package samples

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// store answers every selector with one series.
type store struct {
	iterator func(o Options, reuse chunkenc.Iterator) chunkenc.Iterator
}

func (s store) Querier(from, to int64) (storage.Querier, error) { return querier{s, from, to}, nil }

type querier struct {
	store
	from, to int64
}

func (q querier) Select(_ context.Context, _ bool, h *storage.SelectHints, _ ...*labels.Matcher) storage.SeriesSet {
	return &set{q: q, fn: h.Func}
}

func (querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

func (querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}
func (querier) Close() error { return nil }

type set struct {
	q    querier
	fn   string
	read bool
}

func (s *set) Next() bool                        { next := !s.read; s.read = true; return next }
func (s *set) At() storage.Series                { return s }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }
func (s *set) Labels() labels.Labels             { return labels.FromStrings("__name__", "m") }
func (s *set) Iterator(reuse chunkenc.Iterator) chunkenc.Iterator {
	return s.q.iterator(Options{MinTime: s.q.from, MaxTime: s.q.to, Func: s.fn}, reuse)
}

// sample is a point for the library's own iterator over a list.
type sample struct{ point }

func (s sample) T() int64                      { return s.t }
func (s sample) F() float64                    { return s.v }
func (s sample) H() *histogram.Histogram       { return intHistogram(s.v) }
func (s sample) FH() *histogram.FloatHistogram { return intHistogram(s.v).ToFloat(nil) }
func (s sample) Copy() chunks.Sample           { return s }
func (s sample) Type() chunkenc.ValueType {
	switch s.kind {
	case chunkenc.EncHistogram:
		return chunkenc.ValHistogram
	case chunkenc.EncFloatHistogram:
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}

type sampleList []sample

func (l sampleList) Get(i int) chunks.Sample { return l[i] }
func (l sampleList) Len() int                { return len(l) }

// TestPromQL asks the engine the same over these iterators, with chunks that
// overlap or not, and over the plain list of samples, whose histograms say nothing
// about resets: whatever hints there are must not change an answer.
func TestPromQL(t *testing.T) {
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, LookbackDelta: 5 * time.Minute, EnableNegativeOffset: true, EnableAtModifier: true})
	t.Cleanup(func() { _ = engine.Close() })
	for _, kind := range kinds {
		for seed := range uint64(6) {
			r := rand.New(rand.NewPCG(seed, 9))
			var points []point
			v := 0.0
			for i := range 500 {
				switch r.IntN(40) {
				case 0:
					v = float64(r.IntN(5)) // a reset
				case 1:
					continue
				}
				v += float64(r.IntN(30))
				points = append(points, point{t: int64(i) * 30000, v: v, kind: kind})
			}
			plain := cut(t, points, 40)
			overlapping := Sort(append(slices.Clone(plain), cut(t, points[77:333], 60)...))
			list := make(sampleList, len(points))
			for i, p := range points {
				list[i] = sample{p}
			}
			for _, q := range []string{
				"m", "rate(m[5m])", "increase(m[2m])", "irate(m[5m])", "resets(m[10m])", "sum_over_time(m[3m])",
				"changes(m[7m])", "avg_over_time(m[4m])", "last_over_time(m[1m])", "histogram_count(rate(m[5m]))", "histogram_sum(m)", "rate(m[5m] offset 10m)", "m @ 3000",
			} {
				run := func(s store) string {
					qry, err := engine.NewRangeQuery(context.Background(), s, nil, q, time.Unix(0, 0), time.Unix(16000, 0), 47*time.Second)
					if err != nil {
						t.Fatal(err)
					}
					defer qry.Close()
					res := qry.Exec(context.Background())
					if res.Err != nil {
						t.Fatalf("%s: %v", q, res.Err)
					}
					return res.String()
				}
				want := run(store{func(o Options, _ chunkenc.Iterator) chunkenc.Iterator {
					from, _ := slices.BinarySearchFunc(list, o.MinTime, func(s sample, t int64) int { return int(s.t - t) })
					to, _ := slices.BinarySearchFunc(list, o.MaxTime+1, func(s sample, t int64) int { return int(s.t - t) })
					return storage.NewListSeriesIterator(list[from:to])
				}})
				for name, c := range map[string][]Chunk{"plain": plain, "overlapping": overlapping} {
					have := run(store{func(o Options, reuse chunkenc.Iterator) chunkenc.Iterator { return NewIterator(c, o, reuse) }})
					if have != want {
						t.Errorf("%s over %s chunks of %s, seed %d: have %.300s\nwant %.300s", q, name, kind, seed, have, want)
					}
				}
			}
		}
	}
}
