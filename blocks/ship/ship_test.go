// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package ship

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/verify"
	"github.com/promweave/promweave/blocks/view"
)

func TestMain(m *testing.M) {
	if os.Getenv(childDir) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

var quiet = slog.New(slog.DiscardHandler)

const hour = 3_600_000

// block writes a block of the n-th two hours with so many series of 100 samples into a TSDB.
func block(t testing.TB, dir string, n, series int, change ...func(*meta.Meta)) ulid.ULID {
	t.Helper()
	w, err := tsdb.NewBlockWriter(quiet, dir, 2*hour)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	app := w.Appender(t.Context())
	for s := range series {
		ls := labels.FromStrings("__name__", "up", "instance", fmt.Sprint(s))
		for i := range int64(samplesPerSeries) {
			if _, err := app.Append(0, ls, int64(n)*2*hour+i*60_000, float64(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
	id, err := w.Flush(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := local(t, dir, id)
	for _, f := range change {
		f(m)
	}
	put(t, dir, m)
	return id
}

const samplesPerSeries = 100

func local(t testing.TB, dir string, id ulid.ULID) *meta.Meta {
	t.Helper()
	m, err := readMeta(id, filepath.Join(dir, id.String()))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// put writes a local meta.json.
func put(t testing.TB, dir string, m *meta.Meta) {
	t.Helper()
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, m.ULID.String(), meta.File), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func level2(m *meta.Meta) { m.Compaction.Level = 2 }

// blocks are what a bucket has, whole, by id.
func blocks(t testing.TB, bkt objstore.Bucket) map[ulid.ULID]*meta.Meta {
	t.Helper()
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil || !v.Complete() {
		t.Fatal(err, v)
	}
	out := map[ulid.ULID]*meta.Meta{}
	for _, b := range v.Blocks {
		out[b.Meta.ULID] = b.Meta
	}
	return out
}

// faulty is a bucket in which operations on some objects fail.
type faulty struct {
	objstore.Bucket
	fail   map[string]bool // by the end of the name
	gets   atomic.Int64
	before func(name string)
}

var errFault = errors.New("the network is gone")

func (f *faulty) failing(name string) bool {
	for end, ok := range f.fail {
		if ok && strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

func (f *faulty) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if f.before != nil {
		f.before(name)
	}
	if f.failing(name) {
		return errFault
	}
	return f.Bucket.Upload(ctx, name, r, o...)
}

func (f *faulty) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	f.gets.Add(1)
	if f.failing(name) {
		return nil, errFault
	}
	return f.Bucket.Get(ctx, name)
}

func newBucket(t testing.TB) *faulty {
	t.Helper()
	bkt, err := filesystem.NewBucket(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &faulty{Bucket: bkt, fail: map[string]bool{}}
}

func eu1() labels.Labels { return labels.FromStrings("cluster", "eu1") }

func shipAll(t testing.TB, s *Shipper, want int, problem string) {
	t.Helper()
	n, err := s.Sync(t.Context())
	if n != want || (err == nil) != (problem == "") || err != nil && !strings.Contains(err.Error(), problem) {
		t.Fatalf("%d blocks, %v; want %d and %q", n, err, want, problem)
	}
}

func uploaded(t testing.TB, dir string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "thanos.shipper.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s stateJSON
	if err := json.Unmarshal(data, &s); err != nil || s.Version != 1 {
		t.Fatal(err, s)
	}
	return s.Uploaded
}

func texts(ids ...ulid.ULID) (out []string) {
	for _, id := range ids {
		out = append(out, id.String())
	}
	return out
}

// TestSync: finished blocks are shipped with their labels, once, and others are not.
func TestSync(t *testing.T) {
	dir, bkt := t.TempDir(), newBucket(t)
	late := block(t, dir, 5, 3)
	early := block(t, dir, 1, 2, func(m *meta.Meta) { m.Thanos.Labels = map[string]string{"cluster": "old", "zone": "z"} })
	block(t, dir, 2, 1, level2)
	block(t, dir, 3, 1, func(m *meta.Meta) { m.Stats.NumSamples = 0 })
	for _, name := range []string{"wal", "chunks_head", early.String() + ".tmp-for-creation"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var order []string
	bkt.before = func(name string) { order = append(order, name) }
	reg := prometheus.NewRegistry()
	var external labels.Labels
	s := New(bkt, Config{Dir: dir, Labels: func() labels.Labels { return external }, Registerer: reg, Upload: transfer.Options{Concurrency: 1}})
	if _, err := s.Sync(t.Context()); !errors.Is(err, ErrNoLabels) || len(order) > 0 {
		t.Errorf("%v, %q", err, order)
	}
	external = eu1()
	shipAll(t, s, 2, "")
	var want []string
	for _, id := range texts(early, late) {
		want = append(want, id+"/chunks/000001", id+"/index", id+"/meta.json")
	}
	if !slices.Equal(order, want) {
		t.Errorf("uploaded %q, want %q", order, want)
	}
	there := blocks(t, bkt)
	for id, labels := range map[ulid.ULID]map[string]string{early: {"cluster": "eu1", "zone": "z"}, late: {"cluster": "eu1"}} {
		m := there[id]
		if m == nil || fmt.Sprint(m.Thanos.Labels) != fmt.Sprint(labels) || m.Thanos.Source != meta.SourceSidecar || !slices.Equal(m.Thanos.SegmentFiles, []string{"000001"}) || m.Thanos.UploadTime.IsZero() {
			t.Errorf("%s: %+v", id, m)
		}
	}
	if got := uploaded(t, dir); !slices.Equal(got, texts(early, late)) {
		t.Errorf("state %q", got)
	}
	if got, err := Shipped(dir); err != nil || !slices.Equal(texts(got...), texts(early, late)) {
		t.Errorf("shipped %v, %v", got, err)
	}
	if got, err := Shipped(t.TempDir()); err != nil || len(got) > 0 {
		t.Errorf("shipped of an empty directory: %v, %v", got, err)
	}
	if left, err := os.ReadDir(s.uploads()); err != nil || len(left) > 0 {
		t.Errorf("%v %v", left, err)
	}
	if m := local(t, dir, late); len(m.Thanos.Labels) != 0 {
		t.Error("the meta.json of the TSDB was changed")
	}

	// Nothing is asked of the bucket for what is known; without the file, one object per block.
	order = nil
	bkt.gets.Store(0)
	shipAll(t, s, 0, "")
	if bkt.gets.Load() != 0 {
		t.Errorf("%d reads", bkt.gets.Load())
	}
	for _, broken := range []string{"", "{", `{"version":2}`, `{"version":1,"uploaded":["x"]}`} {
		bkt.gets.Store(0)
		if err := os.WriteFile(filepath.Join(dir, "thanos.shipper.json"), []byte(broken), 0o644); err != nil {
			t.Fatal(err)
		}
		shipAll(t, s, 0, "")
		if bkt.gets.Load() != 2 || !slices.Equal(uploaded(t, dir), texts(early, late)) {
			t.Errorf("%d reads, state %q", bkt.gets.Load(), uploaded(t, dir))
		}
	}
	// What the TSDB has removed is forgotten.
	if err := os.RemoveAll(filepath.Join(dir, early.String())); err != nil {
		t.Fatal(err)
	}
	shipAll(t, s, 0, "")
	if got := uploaded(t, dir); len(order) > 0 || !slices.Equal(got, texts(late)) {
		t.Errorf("uploaded %q, state %q", order, got)
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP promweave_shipper_dir_sync_failures_total Runs that ended with an error.
# TYPE promweave_shipper_dir_sync_failures_total counter
promweave_shipper_dir_sync_failures_total 1
# HELP promweave_shipper_dir_syncs_total Runs over the blocks of the directory.
# TYPE promweave_shipper_dir_syncs_total counter
promweave_shipper_dir_syncs_total 8
# HELP promweave_shipper_uploads_total Blocks that were uploaded.
# TYPE promweave_shipper_uploads_total counter
promweave_shipper_uploads_total 2
`), "promweave_shipper_dir_sync_failures_total", "promweave_shipper_dir_syncs_total", "promweave_shipper_uploads_total"); err != nil {
		t.Error(err)
	}
}

// TestFaults: after a fault a run ends, unless the order is of no account, and the next one goes
// on; a meta.json that was written half does not count as a block.
func TestFaults(t *testing.T) {
	for _, outOfOrder := range []bool{false, true} {
		dir, bkt := t.TempDir(), newBucket(t)
		a, b, c := block(t, dir, 1, 1), block(t, dir, 2, 1), block(t, dir, 3, 1)
		s := New(bkt, Config{Dir: dir, Labels: eu1, OutOfOrder: outOfOrder})
		bkt.fail[b.String()+"/index"] = true
		if outOfOrder {
			shipAll(t, s, 2, errFault.Error())
		} else {
			shipAll(t, s, 1, errFault.Error())
		}
		if there := blocks(t, bkt); there[a] == nil || there[b] != nil || (there[c] != nil) != outOfOrder {
			t.Errorf("%v", there)
		}
		clear(bkt.fail)
		bkt.fail["meta.json"] = true // it is not known whether the block is there
		shipAll(t, s, 0, errFault.Error())
		clear(bkt.fail)
		if err := bkt.Upload(t.Context(), b.String()+"/meta.json", strings.NewReader(`{"ulid":`)); err != nil {
			t.Fatal(err)
		}
		if outOfOrder {
			shipAll(t, s, 1, "")
		} else {
			shipAll(t, s, 2, "")
		}
		if there := blocks(t, bkt); len(there) != 3 {
			t.Errorf("%v", there)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := os.Remove(filepath.Join(dir, "thanos.shipper.json")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Sync(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

// TestCorrupted: a block that cannot be read, or not be had in a bucket, ends the run, or is
// left out.
func TestCorrupted(t *testing.T) {
	for name, c := range map[string]struct {
		change func(dir string) error
		want   string
	}{
		"no meta":  {func(dir string) error { return os.Remove(filepath.Join(dir, "meta.json")) }, "it has no meta.json"},
		"bad meta": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "meta.json"), []byte("{"), 0o644) }, "is corrupt"},
		"no index": {func(dir string) error { return os.Remove(filepath.Join(dir, "index")) }, "index"},
		"a segment broke off": {func(dir string) error {
			return os.Truncate(filepath.Join(dir, "chunks", "000001"), 50)
		}, "ends beyond"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			dir, bkt := t.TempDir(), newBucket(t)
			a, b := block(t, dir, 1, 1), block(t, dir, 2, 1)
			if err := c.change(filepath.Join(dir, a.String())); err != nil {
				t.Fatal(err)
			}
			shipAll(t, New(bkt, Config{Dir: dir, Labels: eu1}), 0, c.want)
			if there := blocks(t, bkt); len(there) != 0 {
				t.Errorf("%v", there)
			}
			want := ""
			if name == "no index" { // links cannot be made: a fault, and not known to be for ever
				shipAll(t, New(bkt, Config{Dir: dir, Labels: eu1, OutOfOrder: true}), 1, c.want)
				return
			}
			s := New(bkt, Config{Dir: dir, Labels: eu1, SkipCorrupted: true})
			shipAll(t, s, 1, want)
			if there := blocks(t, bkt); len(there) != 1 || there[b] == nil || testutil.ToFloat64(s.metrics.corrupted) != 1 {
				t.Errorf("%v", there)
			}
		})
	}
	// Tombstones stay behind.
	dir, bkt := t.TempDir(), newBucket(t)
	a := block(t, dir, 1, 1, func(m *meta.Meta) { m.Stats.NumTombstones = 1 })
	if _, err := tombstones.WriteFile(quiet, filepath.Join(dir, a.String()), tombstones.NewTestMemTombstones([]tombstones.Intervals{{{Mint: 1, Maxt: 2}}})); err != nil {
		t.Fatal(err)
	}
	shipAll(t, New(bkt, Config{Dir: dir, Labels: eu1}), 1, "")
	if ok, err := bkt.Exists(t.Context(), a.String()+"/tombstones"); ok || err != nil {
		t.Error(ok, err)
	}
}

// TestCompacted: blocks that were compacted locally are shipped if that is wanted and the bucket
// has nothing of their time, unless it is of other labels or downsampled.
func TestCompacted(t *testing.T) {
	dir, bkt := t.TempDir(), newBucket(t)
	a := block(t, dir, 1, 1)
	s := New(bkt, Config{Dir: dir, Labels: eu1, Compacted: true})
	shipAll(t, s, 1, "")
	// The same time with other labels, and the same labels in five minutes.
	other := func(n int, change func(*meta.Meta)) {
		m := local(t, dir, a).Clone()
		m.ULID = ulid.MustNew(uint64(n), nil)
		m.MinTime, m.MaxTime = int64(n)*2*hour, int64(n+1)*2*hour
		m.Thanos.Labels = map[string]string{"cluster": "eu1"}
		change(m)
		data, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := bkt.Upload(t.Context(), m.ULID.String()+"/meta.json", strings.NewReader(string(data))); err != nil {
			t.Fatal(err)
		}
	}
	other(2, func(m *meta.Meta) { m.Thanos.Labels["cluster"] = "eu2" })
	other(3, func(m *meta.Meta) { m.Thanos.Downsample.Resolution = meta.FiveMinutes })
	other(4, func(*meta.Meta) {})
	b, c := block(t, dir, 2, 1, level2), block(t, dir, 3, 1, level2)
	shipAll(t, s, 2, "")
	if testutil.ToFloat64(s.metrics.compactedDone) != 1 {
		t.Error("not done")
	}
	d := block(t, dir, 4, 1, level2)
	later := block(t, dir, 5, 1)
	shipAll(t, s, 0, "which it overlaps")
	if testutil.ToFloat64(s.metrics.compactedDone) != 0 {
		t.Error("done")
	}
	there := blocks(t, bkt)
	if there[a] == nil || there[b] == nil || there[c] == nil || there[d] != nil || there[later] != nil {
		t.Errorf("%v", there)
	}
	// What this run uploaded counts too.
	if err := os.RemoveAll(filepath.Join(dir, d.String())); err != nil {
		t.Fatal(err)
	}
	e, f := block(t, dir, 6, 1, level2), block(t, dir, 6, 2, level2)
	shipAll(t, s, 2, "which it overlaps")
	there = blocks(t, bkt)
	if there[later] == nil || (there[e] != nil) == (there[f] != nil) {
		t.Errorf("%v", there)
	}
	// What cannot be seen may overlap.
	bkt.fail[ulid.MustNew(4, nil).String()+"/meta.json"] = true
	shipAll(t, New(bkt, Config{Dir: dir, Labels: eu1, Compacted: true}), 0, "is not known")
	shipAll(t, New(bkt, Config{Dir: dir, Labels: eu1, Compacted: true, OutOfOrder: true}), 1, "")
}

// TestVanishes: the TSDB removes a block while it is uploaded, or between two lives of the
// process: its links are enough. If it goes before they are made there is nothing to ship.
func TestVanishes(t *testing.T) {
	dir, bkt := t.TempDir(), newBucket(t)
	a, b, c := block(t, dir, 1, 4), block(t, dir, 2, 4), block(t, dir, 3, 4)
	remove := func(id ulid.ULID) {
		if err := os.RemoveAll(filepath.Join(dir, id.String())); err != nil {
			t.Error(err)
		}
	}
	bkt.before = func(name string) {
		if strings.HasPrefix(name, a.String()+"/chunks") {
			remove(a)
			remove(b)
		}
	}
	bkt.fail[c.String()+"/index"] = true
	s := New(bkt, Config{Dir: dir, Labels: eu1})
	shipAll(t, s, 1, errFault.Error())
	remove(c)
	if there := blocks(t, bkt); len(there) != 1 || there[a] == nil {
		t.Errorf("%v", there)
	}
	// Links that were not complete are of no use.
	half := filepath.Join(s.uploads(), b.String())
	if err := os.MkdirAll(filepath.Join(half, "chunks"), 0o755); err != nil {
		t.Fatal(err)
	}
	clear(bkt.fail)
	shipAll(t, New(bkt, Config{Dir: dir, Labels: func() labels.Labels { return labels.FromStrings("cluster", "eu2") }}), 1, "")
	there := blocks(t, bkt)
	if len(there) != 2 || there[c] == nil || there[c].Thanos.Labels["cluster"] != "eu1" {
		t.Errorf("%v", there)
	}
	f, err := verify.Block(t.Context(), filepath.Join(strings.TrimPrefix(bkt.Name(), "fs: "), c.String()), there[c], verify.Options{Chunks: true})
	if err != nil || f.Err(there[c]) != nil || f.Samples != 4*samplesPerSeries {
		t.Error(err, f)
	}
	if left, err := os.ReadDir(s.uploads()); err != nil || len(left) > 0 {
		t.Errorf("%v %v", left, err)
	}
}

// TestLinks: what a run that was killed has left of a block is removed, whether the block was
// recorded by then or not; and what is removed can at no moment be taken for all of a block.
func TestLinks(t *testing.T) {
	dir, bkt := t.TempDir(), newBucket(t)
	a, b := block(t, dir, 1, 1), block(t, dir, 2, 1)
	s := New(bkt, Config{Dir: dir, Labels: eu1})
	stale := func(id ulid.ULID) {
		if err := os.CopyFS(filepath.Join(s.uploads(), id.String()), os.DirFS(filepath.Join(dir, id.String()))); err != nil {
			t.Fatal(err)
		}
	}
	bkt.fail[b.String()+"/index"] = true
	shipAll(t, s, 1, errFault.Error())
	clear(bkt.fail)
	stale(a)
	removed := map[string]int{}
	s.removeAll = func(dir string) error {
		if _, err := os.Stat(filepath.Join(dir, "meta.json")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is removed beginning anywhere: %v", dir, err)
		}
		removed[filepath.Base(dir)]++
		return os.RemoveAll(dir)
	}
	shipAll(t, s, 1, "")
	if left, err := os.ReadDir(s.uploads()); err != nil || len(left) > 0 || removed[a.String()] != 1 || removed[b.String()] != 2 {
		t.Errorf("%v, %v left, %v", err, left, removed)
	}
}

// TestState: the file has the bytes of Thanos.
func TestState(t *testing.T) {
	const some = "{\n\t\"version\": 1,\n\t\"uploaded\": [\n\t\t\"01M7ZYC1STEW21SJ2T70SNVCXK\",\n\t\t\"01M7ZYC52JECNQ4F55W1Y2QEYW\"\n\t]\n}\n"
	for _, text := range []string{some, "{\n\t\"version\": 1,\n\t\"uploaded\": null\n}\n"} {
		st, err := parseState([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if out, err := st.encode(); err != nil || string(out) != text {
			t.Errorf("%v, got %s want %s", err, out, text)
		}
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"uploaded":["01M7ZYC1STEW21SJ2T70SNVCXK","01M7ZYC1STEW21SJ2T70SNVCXK"]}`))
	f.Add([]byte(`{"version":1,"uploaded":null}`))
	f.Add([]byte(`{"version":1,"uploaded":[""]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		st, err := parseState(data)
		if err != nil {
			return
		}
		out, err := st.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseState(out)
		if err != nil || !slices.Equal(again.uploaded, st.uploaded) {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}
