// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package synthetic

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var end = time.Date(2026, 11, 6, 13, 17, 3, 500e6, time.UTC)

// samples reads a directory through the TSDB library.
func samples(t *testing.T, dir string) map[string]map[int64]float64 {
	t.Helper()
	db, err := tsdb.OpenDBReadOnly(dir, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	q, err := db.Querier(math.MinInt64, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	out := map[string]map[int64]float64{}
	set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchEqual, "", ""))
	for set.Next() {
		m := map[int64]float64{}
		it := set.At().Iterator(nil)
		for it.Next() == chunkenc.ValFloat {
			ts, v := it.At()
			m[ts] = v
		}
		if it.Err() != nil {
			t.Fatal(it.Err())
		}
		out[set.At().Labels().String()] = m
	}
	if set.Err() != nil {
		t.Fatal(set.Err())
	}
	return out
}

func write(t *testing.T, spec Spec) string {
	t.Helper()
	dir := t.TempDir()
	if err := Write(t.Context(), dir, spec, nil); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestWrittenIsTruth reads everything back and compares with the functions.
func TestWrittenIsTruth(t *testing.T) {
	spec := Spec{
		Start: end.Add(-5 * time.Hour), End: end, Offset: 7 * time.Second, Series: 200, Seed: 1, Cluster: "eu1",
		Gaps: []Interval{{end.Add(-4 * time.Hour), end.Add(-4*time.Hour + 10*time.Minute)}, {end.Add(-time.Minute), end.Add(-30 * time.Second)}},
	}
	got := samples(t, write(t, spec))
	list := spec.List()
	if len(got) != len(list) || len(list) < 150 || len(list) > 200 {
		t.Fatalf("%d series read, %d in the list", len(got), len(list))
	}
	times := spec.Scrapes(spec.Start.UnixMilli(), spec.End.UnixMilli())
	// 5 hours of 30 s are 600 scrapes; the gaps take 20 and 1.
	if len(times) != 579 {
		t.Fatalf("%d scrapes", len(times))
	}
	for _, s := range list {
		want := map[int64]float64{}
		for _, ts := range times {
			if ts < spec.Start.UnixMilli() || ts >= spec.End.UnixMilli() || ts%30_000 != 7_000 {
				t.Fatalf("scrape at %d", ts)
			}
			want[ts] = s.Value(ts)
		}
		if d := cmp.Diff(want, got[s.Labels.String()]); d != "" {
			t.Fatalf("%s: %s", s.Labels, d)
		}
	}
}

// TestSameBytes writes the same spec twice.
func TestSameBytes(t *testing.T) {
	spec := Spec{Start: end.Add(-3 * time.Hour), End: end, Series: 100, Seed: 7, Clusters: []string{"eu1", "us1"}}
	a, b := write(t, spec), write(t, spec)
	n := 0
	err := filepath.WalkDir(a, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(a, path)
		x, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		y, err := os.ReadFile(filepath.Join(b, rel))
		if err != nil {
			return err
		}
		if string(x) != string(y) {
			t.Errorf("%s differs", rel)
		}
		n++
		return nil
	})
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	spec.Seed = 8
	if cmp.Equal(samples(t, a), samples(t, write(t, spec))) {
		t.Error("another seed gives the same samples")
	}
}

// TestReferenceHoldsTheSameTruth compares the list with a cluster label with that
// of one cluster.
func TestReferenceHoldsTheSameTruth(t *testing.T) {
	ref := Spec{Clusters: []string{"eu1", "us1"}, Series: 300, Seed: 3}.List()
	byName := map[string]*Series{}
	for i, s := range ref {
		if i > 0 && labels.Compare(ref[i-1].Labels, s.Labels) >= 0 {
			t.Fatalf("%s comes twice or too late", s.Labels)
		}
		byName[s.Labels.String()] = s
	}
	one := Spec{Cluster: "us1", Series: 300, Seed: 3}.List()
	if 2*len(one) != len(ref) {
		t.Fatalf("%d and %d series", len(one), len(ref))
	}
	for _, s := range one {
		r := byName[labels.NewBuilder(s.Labels).Set("cluster", "us1").Labels().String()]
		for _, ts := range []int64{end.UnixMilli(), end.UnixMilli() - 7919_123} {
			if r == nil || r.Value(ts) != s.Value(ts) {
				t.Fatalf("%s differs", s.Labels)
			}
		}
	}
}

// TestModel checks what queries rely on: counters grow but for restarts, buckets
// contain each other, and the true increase is what the values show.
func TestModel(t *testing.T) {
	list := Cluster("eu1", 1000, 1, false)
	from, to := end.Add(-24*time.Hour).UnixMilli(), end.UnixMilli()
	resets := 0
	names := map[string]int{}
	buckets := map[string][]*Series{}
	for _, s := range list {
		name := s.Labels.Get("__name__")
		names[name]++
		if s.Kind == Bucket {
			k := labels.NewBuilder(s.Labels).Del("le").Labels().String()
			buckets[k] = append(buckets[k], s)
		}
		if s.Kind == Gauge {
			continue
		}
		seen, last := 0.0, s.Value(from)
		unit := max(s.unit, 1e-9) * float64(len(s.waves))
		for ts := from + 10_000; ts <= to; ts += 10_000 {
			v := s.Value(ts)
			if s.Restart(ts) > ts-10_000 && s.life > 0 {
				// What the scraper did not see before the restart is lost to it.
				seen += s.Increase(ts-10_000, s.Restart(ts)) + v
				resets++
			} else {
				if v < last {
					t.Fatalf("%s falls from %v to %v at %d", s.Labels, last, v, ts)
				}
				seen += v - last
			}
			last = v
		}
		if truth := s.Increase(from, to); math.Abs(seen-truth) > 20*unit+1e-6*truth {
			t.Errorf("%s: %v seen, %v true", s.Labels, seen, truth)
		}
	}
	if resets == 0 {
		t.Error("no restarts in a day")
	}
	for k, bs := range buckets {
		if len(bs) != len(bounds) {
			t.Fatalf("%s has %d buckets", k, len(bs))
		}
		for ts := from; ts < to; ts += 600_000 {
			below := 0.0
			for _, le := range bounds {
				for _, s := range bs {
					if s.Labels.Get("le") == le {
						if v := s.Value(ts); v < below {
							t.Fatalf("%s at %d: %v below %v", s.Labels, ts, v, below)
						} else {
							below = v
						}
					}
				}
			}
		}
	}
	for _, n := range []string{"up", "http_requests_total", "http_request_duration_seconds_bucket", "node_cpu_seconds_total",
		"container_memory_working_set_bytes", "container_cpu_usage_seconds_total", "kube_pod_info"} {
		if names[n] == 0 {
			t.Errorf("no %s", n)
		}
	}
}

func TestRefusals(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for want, spec := range map[string]Spec{
		"not before": {Start: end, End: end, Series: 100},
		"no series":  {Start: end.Add(-time.Hour), End: end, Series: 3},
		"millisec":   {Start: end.Add(-time.Hour), End: end, Series: 100, Interval: 1},
	} {
		if err := Write(t.Context(), t.TempDir(), spec, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	dir := t.TempDir()
	if err := Write(ctx, dir, Spec{Start: end.Add(-time.Hour), End: end, Series: 100}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Name() != "wal" {
		t.Error(left)
	}
}

// BenchmarkDay is one replica's day of 500 series.
func BenchmarkDay(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		if err := Write(b.Context(), dir, Spec{Start: end.Add(-24 * time.Hour), End: end, Series: 520, Seed: 1, Cluster: "eu1"}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
