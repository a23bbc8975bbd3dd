// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package compact_test

import (
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/blocks/compact"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/verify"
	"github.com/promweave/promweave/core/dedup"
)

// mixed is a sample of any type.
type mixed struct {
	sample
	h  *histogram.Histogram
	fh *histogram.FloatHistogram
}

func (s mixed) H() *histogram.Histogram       { return s.h }
func (s mixed) FH() *histogram.FloatHistogram { return s.fh }
func (s mixed) Copy() chunks.Sample           { return s }
func (s mixed) Type() chunkenc.ValueType {
	switch {
	case s.h != nil:
		return chunkenc.ValHistogram
	case s.fh != nil:
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}

// scraped are samples every 15 s or so of [from, from+2h) with gaps, of kind i%4: counters with
// resets, histograms, histograms of floats, and gauges with stale markers.
func scraped(r *rand.Rand, from int64, i int) (out []chunks.Sample) {
	n := 0
	for at := from + r.Int64N(15_000); at < from+2*hour; at += 15_000 + r.Int64N(20) {
		if r.IntN(60) == 0 { // a gap of up to 10 minutes
			at += r.Int64N(600_000)
			if at >= from+2*hour {
				break
			}
		}
		if n++; r.IntN(300) == 0 {
			n = 0
		}
		s := mixed{sample: sample{at, float64(n)}}
		switch i % 4 {
		case 1:
			s.h = tsdbutil.GenerateTestHistogram(int64(n))
		case 2:
			s.fh = tsdbutil.GenerateTestFloatHistogram(int64(n))
		case 3:
			if s.v = r.NormFloat64(); r.IntN(100) == 0 {
				s.v = math.Float64frombits(value.StaleNaN)
			}
		}
		out = append(out, s)
	}
	return out
}

// replicaBlock writes a block of series that were scraped; of some series it has nothing.
func replicaBlock(t testing.TB, r *rand.Rand, from int64, ext map[string]string) compact.Input {
	t.Helper()
	var series []storage.Series
	for i := range 12 {
		if r.IntN(6) > 0 {
			if s := scraped(r, from, i); len(s) > 0 {
				series = append(series, storage.NewListSeries(labels.FromStrings("__name__", "m", "i", fmt.Sprint(i)), s))
			}
		}
	}
	path, err := tsdb.CreateBlock(series, t.TempDir(), 2*hour, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(path, meta.File))
	if err != nil {
		t.Fatal(err)
	}
	m, err := meta.Parse(ulid.MustParse(filepath.Base(path)), data)
	if err != nil {
		t.Fatal(err)
	}
	m.Thanos.Labels, m.Thanos.Source = ext, meta.SourceSidecar
	return compact.Input{Meta: m, Dir: path}
}

// openSeries are the iterators of all series of a block. They are of use until the test ends.
func openSeries(t testing.TB, dir string) map[string]chunkenc.Iterator {
	t.Helper()
	b, err := tsdb.OpenBlock(nil, dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	q, err := tsdb.NewBlockQuerier(b, math.MinInt64, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	out := map[string]chunkenc.Iterator{}
	set := q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "i", ".+"))
	for set.Next() {
		out[set.At().Labels().String()] = set.At().Iterator(nil)
	}
	if set.Err() != nil {
		t.Fatal(set.Err())
	}
	return out
}

// texts are the samples of an iterator, but for hints about resets, which say how they are stored.
func texts(t testing.TB, it chunkenc.Iterator) (out []string) {
	t.Helper()
	for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
		switch vt {
		case chunkenc.ValFloat:
			at, v := it.At()
			out = append(out, fmt.Sprintf("%d %x", at, math.Float64bits(v)))
		default:
			at, h := it.AtFloatHistogram(nil)
			out = append(out, fmt.Sprintf("%d %s %v %d", at, vt, h, h.Schema))
		}
	}
	if it.Err() != nil {
		t.Fatal(it.Err())
	}
	return out
}

// TestDedupAsQueried: a block that was made of replicas has of each series the samples that the
// query path chooses among those of the replicas, in chunks that Thanos reads.
func TestDedupAsQueried(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 1))
		algorithm := []dedup.Algorithm{dedup.Default, dedup.Penalty}[seed%2]
		var inputs []compact.Input
		for i := range 2 + seed%3/2 { // two, sometimes three
			in := replicaBlock(t, r, 100*hour, map[string]string{"cluster": "eu1"})
			in.Replica = []string{fmt.Sprint(i)}
			inputs = append(inputs, in)
		}
		want := map[string][]string{}
		its := map[string][]chunkenc.Iterator{}
		for _, in := range inputs {
			for ls, it := range openSeries(t, in.Dir) {
				its[ls] = append(its[ls], it)
			}
		}
		for ls, list := range its {
			want[ls] = texts(t, dedup.New(algorithm, false, list))
		}
		// The order of inputs is by time and id, and says nothing of replicas.
		r.Shuffle(len(inputs), func(i, j int) { inputs[i], inputs[j] = inputs[j], inputs[i] })
		out := t.TempDir()
		m, err := compact.Merge(t.Context(), inputs, out, compact.Options{Vertical: true, Dedup: algorithm})
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(out, m.ULID.String())
		if f, err := verify.Block(t.Context(), dir, m, verify.Options{Chunks: true}); err != nil || f.Err(m) != nil {
			t.Fatal(seed, err, f.Err(m))
		}
		got := openSeries(t, dir)
		if len(got) != len(want) {
			t.Errorf("seed %d: %d series, want %d", seed, len(got), len(want))
		}
		for ls, w := range want {
			if g := texts(t, got[ls]); !slices.Equal(g, w) {
				t.Errorf("seed %d, %s, series %s: %d samples, want %d", seed, algorithm, ls, len(g), len(w))
			}
		}
	}
}

// TestDedupInBucket: a pass over replicas in a bucket takes their labels off, and keeps about as
// many samples as one of them has.
func TestDedupInBucket(t *testing.T) {
	count := map[dedup.Algorithm]uint64{}
	for _, algorithm := range []dedup.Algorithm{"", dedup.Default} {
		bkt, now, r := objstore.NewInMemBucket(), time.Now(), rand.New(rand.NewPCG(7, 7))
		var most uint64
		for i := range int64(2) {
			for _, name := range []string{"b", "a"} {
				in := replicaBlock(t, r, i*2*hour, map[string]string{"cluster": "eu1", "replica": name})
				most += in.Meta.Stats.NumSamples
				if _, err := transfer.Upload(t.Context(), bkt, in.Dir, in.Meta, transfer.Options{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		cfg := config(t, &now)
		cfg.Vertical, cfg.Policy.ReplicaLabels, cfg.Dedup = true, []string{"replica"}, algorithm
		if d := passes(t, compact.New(bkt, cfg)); d.Compacted != 2 || len(d.Problems) > 0 {
			t.Fatalf("%+v", d)
		}
		now = now.Add(25 * time.Hour)
		got, n := seen(t, bkt, now, meta.Raw)
		if len(got) != 2 || got[0][:len(`0@{cluster="eu1"} `)] != `0@{cluster="eu1"} ` {
			t.Errorf("%q", got)
		}
		if count[algorithm] = n; algorithm == "" && (n > most || n < most-most/100) {
			t.Errorf("%d samples of %d, of which few are at the same time", n, most)
		}
	}
	if count[dedup.Default] > count[""]*2/3 {
		t.Errorf("%v samples", count)
	}
}
