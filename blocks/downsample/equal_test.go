// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package downsample

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	rawBlocks   = "../testdata/thanos/bucket-raw"
	downsampled = "../testdata/thanos/bucket-downsampled-extra"
)

// Thanos' blocks: raw, five minutes, one hour.
var thanos = [][3]string{
	{"01M7ZYC1STEW21SJ2T70SNVCXK", "01M7ZYCQSY2DRZV8HZV11GRFWG", "01M7ZYCR10SFW94Q4QKKNJEQDC"},
	{"01M7ZYC52JECNQ4F55W1Y2QEYW", "01M7ZYCQXH093FB6H0XR2T0SHJ", "01M7ZYCR2CT37VR2QD8MFD7GJM"},
}

func readMeta(t testing.TB, dir string) *meta.Meta {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, meta.File))
	if err != nil {
		t.Fatal(err)
	}
	id, _ := meta.IDFromName(filepath.Base(dir))
	m, err := meta.Parse(id, data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// series of a block: their labels, and chunks with copies of the bytes.
type blockSeries struct {
	labels string
	chunks []stored
}

func readBlock(t testing.TB, dir string) []blockSeries {
	t.Helper()
	in, err := openInput(dir)
	if err != nil {
		t.Fatal(err)
	}
	key, value := index.AllPostingsKey()
	p, err := in.index.Postings(context.Background(), key, value)
	if err != nil {
		t.Fatal(err)
	}
	var out []blockSeries
	var b labels.ScratchBuilder
	var metas []chunks.Meta
	for p.Next() {
		if err := in.index.Series(p.At(), &b, &metas); err != nil {
			t.Fatal(err)
		}
		s := blockSeries{labels: b.Labels().String()}
		for _, m := range metas {
			c, _, err := in.chunks.ChunkOrIterable(m)
			if err != nil {
				t.Fatal(err)
			}
			s.chunks = append(s.chunks, stored{ref: uint64(m.Ref), minTime: m.MinTime, maxTime: m.MaxTime,
				Encoded: backend.Encoded{Encoding: c.Encoding(), Data: bytes.Clone(c.Bytes())}})
		}
		out = append(out, s)
	}
	if err := errors.Join(p.Err(), in.close()); err != nil {
		t.Fatal(err)
	}
	return out
}

// steps are what Thanos did, with what it made.
type step struct {
	name          string
	dir, made     string
	resolution    int64
	equal, differ int // chunks
}

func steps() []step {
	var all []step
	for i, ids := range thanos {
		n := [][4]int{{734, 2, 133, 2}, {734, 1, 132, 2}}[i]
		all = append(all,
			step{"5m of " + ids[0], filepath.Join(rawBlocks, ids[0]), filepath.Join(downsampled, ids[1]), meta.FiveMinutes, n[0], n[1]},
			step{"1h of " + ids[1], filepath.Join(downsampled, ids[1]), filepath.Join(downsampled, ids[2]), meta.OneHour, n[2], n[3]})
	}
	return all
}

// TestSameAsThanos: every chunk of every series has the bytes of Thanos' block, but for the
// counters of histograms whose schema changes within the chunk. Those are what the input comes
// to, and Thanos' are not.
func TestSameAsThanos(t *testing.T) {
	for _, s := range steps() {
		t.Run(s.name, func(t *testing.T) {
			out := t.TempDir()
			src := readMeta(t, s.dir)
			var stats Stats
			m, err := Block(t.Context(), src, s.dir, out, s.resolution, Options{Stats: &stats})
			if err != nil {
				t.Fatal(err)
			}
			if stats != (Stats{Written: 36}) {
				t.Errorf("%+v", stats)
			}
			input, want, got := readBlock(t, s.dir), readBlock(t, s.made), readBlock(t, filepath.Join(out, m.ULID.String()))
			if len(want) != len(got) {
				t.Fatalf("%d series, want %d", len(got), len(want))
			}
			equal, differ := 0, 0
			for i, w := range want {
				g := got[i]
				if w.labels != g.labels || len(w.chunks) != len(g.chunks) {
					t.Fatalf("%s with %d chunks, want %s with %d", g.labels, len(g.chunks), w.labels, len(w.chunks))
				}
				for k := range w.chunks {
					w, g := w.chunks[k], g.chunks[k]
					if w.minTime != g.minTime || w.maxTime != g.maxTime || w.Encoding != g.Encoding {
						t.Fatalf("%s: %d to %d, want %d to %d", want[i].labels, g.minTime, g.maxTime, w.minTime, w.maxTime)
					}
					if bytes.Equal(w.Data, g.Data) {
						equal++
						continue
					}
					differ++
					checkCounter(t, want[i].labels, input[i], g, w, s.resolution)
				}
			}
			if equal != s.equal || differ != s.differ {
				t.Errorf("%d chunks are equal and %d differ, want %d and %d", equal, differ, s.equal, s.differ)
			}
			sameMeta(t, src, readMeta(t, s.made), m, filepath.Join(out, m.ULID.String()))
		})
	}
}

// checkCounter: of an aggregate chunk that is not Thanos' only the counter differs, and it ends
// where the input does when its observations are added up one by one.
func checkCounter(t *testing.T, name string, in blockSeries, got, want stored, resolution int64) {
	t.Helper()
	g, err := aggregate.Parse(got.Data)
	if err != nil {
		t.Fatal(err)
	}
	w, err := aggregate.Parse(want.Data)
	if err != nil {
		t.Fatal(err)
	}
	counters := [2]backend.Encoded{g.Counter, w.Counter}
	g.Counter, w.Counter = backend.Encoded{}, backend.Encoded{}
	if !isHistogram(counters[0]) || !reflect.DeepEqual(g, w) {
		t.Errorf("%s from %d: more than the counter of a histogram differs", name, got.minTime)
	}
	// The first window of the chunk begins a resolution before the end of it.
	from := windowEnd(got.minTime, resolution) - resolution
	var truth increases
	schemas := map[int32]bool{}
	for _, c := range in.chunks {
		e := c.Encoded
		if e.Encoding == aggregate.Encoding {
			a, err := aggregate.Parse(e.Data)
			if err != nil {
				t.Fatal(err)
			}
			e = a.Counter
		}
		if !isHistogram(e) || c.maxTime <= from || c.minTime > got.maxTime {
			continue
		}
		r := newHistogramReader(e)
		for r.next() {
			if r.t > from && r.t <= got.maxTime {
				truth.add(r.h.Count)
				schemas[r.h.Schema] = true
			}
		}
		if r.err != nil {
			t.Fatal(r.err)
		}
	}
	var ends [2]float64
	for i, e := range counters {
		r := newHistogramReader(e)
		for r.next() {
			ends[i] = r.h.Count
		}
	}
	if ends[0] != truth.total || ends[1] < 1.05*truth.total || len(schemas) < 2 {
		t.Errorf("%s from %d: the counter ends at %g, Thanos' at %g, and the input comes to %g in schemas %v", name, got.minTime, ends[0], ends[1], truth.total, schemas)
	}
}

// sameMeta: the meta of a new block says what Thanos' says, but for what has to differ.
func sameMeta(t *testing.T, src, want, got *meta.Meta, dir string) {
	t.Helper()
	if written := readMeta(t, dir); !reflect.DeepEqual(written, got) {
		t.Errorf("meta.json is not what was returned: %+v %+v", written, got)
	}
	for _, f := range got.Thanos.Files {
		info, err := os.Stat(filepath.Join(dir, f.RelPath))
		if err != nil || f.RelPath != meta.File && info.Size() != f.SizeBytes {
			t.Errorf("%s: %v, %d bytes, not %d", f.RelPath, err, info.Size(), f.SizeBytes)
		}
	}
	if !got.Thanos.UploadTime.IsZero() {
		t.Error("it was not uploaded yet")
	}
	if got.ULID == src.ULID || got.ULID == want.ULID {
		t.Error("no id of its own")
	}
	// A size that readers believe must not be too small; Thanos' leaves out some chunks.
	if got.Thanos.IndexStats.ChunkMaxSize < want.Thanos.IndexStats.ChunkMaxSize {
		t.Errorf("largest chunk %d, Thanos says %d", got.Thanos.IndexStats.ChunkMaxSize, want.Thanos.IndexStats.ChunkMaxSize)
	}
	g := got.Clone()
	g.ULID, g.Thanos.UploadTime, g.Thanos.IndexStats.ChunkMaxSize = want.ULID, want.Thanos.UploadTime, want.Thanos.IndexStats.ChunkMaxSize
	i := slices.IndexFunc(g.Thanos.Files, func(f meta.BlockFile) bool { return f.RelPath == "chunks/000001" })
	if j := slices.IndexFunc(want.Thanos.Files, func(f meta.BlockFile) bool { return f.RelPath == "chunks/000001" }); i != j || i < 0 {
		t.Fatalf("files %v, want %v", g.Thanos.Files, want.Thanos.Files)
	}
	g.Thanos.Files[i].SizeBytes = want.Thanos.Files[i].SizeBytes
	a, err := g.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := want.Encode()
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("%v: meta\n%s\nwant\n%s", err, a, b)
	}
}
