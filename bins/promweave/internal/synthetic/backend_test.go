// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package synthetic

import (
	"math"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/sdk/backend"
)

// TestReadByBackend reads a directory through the backend that the demo uses.
func TestReadByBackend(t *testing.T) {
	spec := Spec{Start: end.Add(-5 * time.Hour), End: end, Series: 200, Seed: 1, Cluster: "eu1"}
	b, err := tsdb.Open(tsdb.Config{Path: write(t, spec), ExternalLabels: labels.FromStrings("cluster", "eu1", "replica", "a")}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	truth := map[string]*Series{}
	for _, s := range spec.List() {
		truth[labels.NewBuilder(s.Labels).Set("cluster", "eu1").Labels().String()] = s
	}
	n := 0
	req := &backend.SeriesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64, WithoutReplicaLabels: []string{"replica"}}
	for batch, err := range b.Series(t.Context(), req) {
		if err != nil {
			t.Fatal(err)
		}
		for i := range batch.Len() {
			s := batch.At(i)
			for _, c := range s.Chunks {
				chk, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
				if err != nil {
					t.Fatal(err)
				}
				it := chk.Iterator(nil)
				for it.Next() == chunkenc.ValFloat {
					ts, v := it.At()
					if want := truth[s.Labels.String()].Value(ts); v != want {
						t.Fatalf("%s at %d: %v, want %v", s.Labels, ts, v, want)
					}
					n++
				}
			}
		}
	}
	if want := len(truth) * 600; n != want {
		t.Errorf("%d samples, want %d", n, want)
	}
}

// BenchmarkSeries reads a day of 3,000 series through the backend.
func BenchmarkSeries(b *testing.B) {
	dir := b.TempDir()
	if err := Write(b.Context(), dir, Spec{Start: end.Add(-24 * time.Hour), End: end, Series: 3000, Seed: 1, Cluster: "eu1"}, nil); err != nil {
		b.Fatal(err)
	}
	be, err := tsdb.Open(tsdb.Config{Path: dir, ExternalLabels: labels.FromStrings("cluster", "eu1", "replica", "a")}, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer be.Close()
	for name, req := range map[string]*backend.SeriesRequest{
		"day":        {MinTime: math.MinInt64, MaxTime: math.MaxInt64},
		"no chunks":  {MinTime: math.MinInt64, MaxTime: math.MaxInt64, SkipChunks: true},
		"up instant": {MinTime: end.UnixMilli() - 300_000, MaxTime: end.UnixMilli(), Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "__name__", "up")}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				series, bytes := 0, 0
				for batch, err := range be.Series(b.Context(), req) {
					if err != nil {
						b.Fatal(err)
					}
					series += batch.Len()
					bytes += batch.Bytes()
				}
				b.ReportMetric(float64(series), "series")
				b.ReportMetric(float64(bytes)/1e6, "MB")
			}
		})
	}
}
