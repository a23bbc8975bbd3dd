// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package compact_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/blocks/compact"
	"github.com/promweave/promweave/blocks/lease"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/verify"
	"github.com/promweave/promweave/blocks/view"
)

// unreliable is a bucket that fails at one of its operations, and from then on, as one does for
// a process that was killed.
type unreliable struct {
	objstore.Bucket
	mu    sync.Mutex
	count int
	dies  int
}

var errKilled = errors.New("killed")

func (u *unreliable) step() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.count++
	if u.dies > 0 && u.count >= u.dies {
		return errKilled
	}
	return nil
}

func (u *unreliable) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := u.step(); err != nil {
		return nil, err
	}
	return u.Bucket.Get(ctx, name)
}

func (u *unreliable) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if err := u.step(); err != nil {
		// Half of the object got there.
		half, _ := io.ReadAll(io.LimitReader(r, 50))
		_ = u.Bucket.Upload(ctx, name, strings.NewReader(string(half)))
		return err
	}
	return u.Bucket.Upload(ctx, name, r, o...)
}

func (u *unreliable) Delete(ctx context.Context, name string) error {
	if err := u.step(); err != nil {
		return err
	}
	return u.Bucket.Delete(ctx, name)
}

const hour = int64(3_600_000)

// short makes a block of two hours with a few series and writes it to the bucket.
func short(t testing.TB, bkt objstore.Bucket, from int64, ext map[string]string, value float64) *meta.Meta {
	t.Helper()
	dir := t.TempDir()
	var series []storage.Series
	for i := range 3 {
		var samples []chunks.Sample
		for at := from; at < from+2*hour; at += hour / 6 {
			samples = append(samples, sample{at, value + float64(i)})
		}
		samples = append(samples, sample{from + 2*hour - 1, value})
		series = append(series, storage.NewListSeries(labels.FromStrings("__name__", "m", "i", fmt.Sprint(i)), samples))
	}
	path, err := tsdb.CreateBlock(series, dir, 2*hour, slog.New(slog.DiscardHandler))
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
	if _, err := transfer.Upload(t.Context(), bkt, path, m, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	return m
}

type sample struct {
	t int64
	v float64
}

func (s sample) T() int64                    { return s.t }
func (s sample) F() float64                  { return s.v }
func (sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample         { return s }
func (sample) H() *histogram.Histogram       { return nil }
func (sample) FH() *histogram.FloatHistogram { return nil }

// seen are the series that a reader of the bucket gets, each as often as it is there, and the
// number of their samples, for one level.
func seen(t testing.TB, bkt objstore.Bucket, now time.Time, resolution int64) (out []string, samples uint64) {
	t.Helper()
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := view.Policy{DeletionDelay: 24 * time.Hour}
	for _, m := range v.Select(p.Filters(now)...).Metas() {
		if m.Resolution() != resolution {
			continue
		}
		dir := t.TempDir()
		if _, err := transfer.Download(t.Context(), bkt, m.ULID, dir, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		f, err := verify.Block(t.Context(), filepath.Join(dir, m.ULID.String()), m, verify.Options{Chunks: true})
		if err != nil || f.Err(m) != nil {
			t.Fatal(err, f.Err(m))
		}
		samples += f.Samples
		out = append(out, fmt.Sprintf("%s %d-%d %d series %d samples", m.Stream(), m.MinTime/hour, m.MaxTime/hour, f.Series, f.Samples))
	}
	slices.Sort(out)
	return out, samples
}

func config(t testing.TB, now *time.Time) compact.Config {
	c := compact.DefaultConfig(t.TempDir())
	c.Policy.ConsistencyDelay, c.Concurrency = 0, 3
	c.Now = func() time.Time { return *now }
	return c
}

// passes makes passes until there is nothing to do.
func passes(t testing.TB, c *compact.Compactor) (all compact.Done) {
	t.Helper()
	for range 20 {
		d, err := c.Pass(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all.Compacted += d.Compacted
		all.Downsampled += d.Downsampled
		all.Marked += d.Marked
		all.Deleted += d.Deleted
		all.Cleaned += d.Cleaned
		all.Problems = append(all.Problems, d.Problems...)
		if !d.More() {
			return all
		}
	}
	t.Fatal("it does not come to an end")
	return all
}

// TestPass: blocks of two hours become blocks of eight, and of two days, what they were made of
// is hidden at once and gone later.
func TestPass(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	now := time.Now()
	for i := range int64(25) {
		short(t, bkt, i*2*hour, map[string]string{"cluster": "eu1"}, 1)
		if i < 5 {
			short(t, bkt, i*2*hour, map[string]string{"cluster": "eu2"}, 2)
		}
	}
	_, before := seen(t, bkt, now, meta.Raw)
	c := compact.New(bkt, config(t, &now))
	if d := passes(t, c); d.Compacted != 8 || d.Marked != 34 || len(d.Problems) > 0 || d.Downsampled != 1 {
		t.Errorf("%+v", d)
	}
	got, after := seen(t, bkt, now, meta.Raw)
	want := []string{
		`0@{cluster="eu1"} 0-48 3 series 936 samples`, `0@{cluster="eu1"} 48-50 3 series 39 samples`,
		`0@{cluster="eu2"} 0-8 3 series 156 samples`, `0@{cluster="eu2"} 8-10 3 series 39 samples`,
	}
	if !slices.Equal(got, want) || before != after {
		t.Errorf("%d samples, %d before\n%s", after, before, strings.Join(got, "\n"))
	}
	if got, _ := seen(t, bkt, now, meta.FiveMinutes); len(got) != 1 || !strings.HasPrefix(got[0], `300000@{cluster="eu1"} 0-48 3 series`) {
		t.Errorf("downsampled: %q", got)
	}
	// Two days later what was replaced is gone, and nothing else.
	now = now.Add(49 * time.Hour)
	if d := passes(t, c); d.Deleted != 34 || d.Compacted > 0 || len(d.Problems) > 0 {
		t.Errorf("%+v", d)
	}
	if got, _ := seen(t, bkt, now, meta.Raw); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil || len(v.Blocks) != 5 || len(v.Partial) > 0 {
		t.Errorf("%d blocks, %v", len(v.Blocks), err)
	}
}

// TestKilled: whichever operation on the bucket is the last one of a process, its successor
// brings everything to the same end: nothing is lost, and nothing is there twice, at any time.
func TestKilled(t *testing.T) {
	now := time.Now()
	build := func() *objstore.InMemBucket {
		bkt := objstore.NewInMemBucket()
		for i := range int64(6) {
			short(t, bkt, i*2*hour, map[string]string{"cluster": "eu1"}, 1)
		}
		return bkt
	}
	whole := &unreliable{Bucket: build()}
	passes(t, compact.New(whole, config(t, &now)))
	want, samples := seen(t, whole.Bucket, now, meta.Raw)
	step := 1
	if testing.Short() {
		step = 7
	}
	for dies := 1; dies <= whole.count; dies += step {
		bkt := build()
		cfg := config(t, &now)
		for _, at := range []int{dies, dies / 2} {
			c := compact.New(&unreliable{Bucket: bkt, dies: max(at, 1)}, cfg)
			for range 3 {
				if d, err := c.Pass(t.Context()); err != nil || len(d.Problems) > 0 {
					break
				}
			}
			if _, n := seen(t, bkt, now, meta.Raw); n != samples {
				t.Fatalf("killed at operation %d of %d: a reader sees %d samples of %d", at, whole.count, n, samples)
			}
		}
		if d := passes(t, compact.New(bkt, cfg)); len(d.Problems) > 0 {
			t.Fatalf("killed at operation %d: %+v", dies, d.Problems)
		}
		if got, _ := seen(t, bkt, now, meta.Raw); !slices.Equal(got, want) {
			t.Fatalf("killed at operation %d of %d\ngot  %q\nwant %q", dies, whole.count, got, want)
		}
	}
}

// TestOneBadBlock: a broken block, and blocks that overlap, stop their stream and no other.
func TestOneBadBlock(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	now := time.Now()
	var bad *meta.Meta
	for i := range int64(5) {
		for _, cluster := range []string{"a", "b", "c"} {
			m := short(t, bkt, i*2*hour, map[string]string{"cluster": cluster}, 1)
			if i == 1 && cluster == "a" {
				bad = m
			}
		}
	}
	short(t, bkt, hour, map[string]string{"cluster": "b"}, 1) // overlaps
	name := bad.ULID.String() + "/index"
	r, err := bkt.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	data, _ := io.ReadAll(r)
	data[20] ^= 0xff // among the symbols
	if err := bkt.Upload(t.Context(), name, strings.NewReader(string(data))); err != nil {
		t.Fatal(err)
	}
	c := compact.New(bkt, config(t, &now))
	d, err := c.Pass(t.Context())
	if err != nil || d.Compacted != 1 || len(d.Problems) != 2 {
		t.Fatalf("%+v, %v", d, err)
	}
	for i, want := range []error{verify.ErrBroken, compact.ErrOverlap} {
		if p := d.Problems[i]; !p.Halted || !errors.Is(p.Err, want) {
			t.Errorf("%+v, want %v", p, want)
		}
	}
	if !strings.Contains(d.Problems[0].Err.Error(), bad.ULID.String()) {
		t.Errorf("%v does not name the block", d.Problems[0].Err)
	}
	// It is not tried again, until the blocks are others, and said again.
	again, err := c.Pass(t.Context())
	if err != nil || again.Compacted != 0 || !slices.Equal(again.Problems, d.Problems) /* the same errors, not such as them */ {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := transfer.PutMark(t.Context(), bkt, &meta.Mark{ID: bad.ULID, Kind: meta.NoCompact, Time: now, Reason: meta.ReasonManual}); err != nil {
		t.Fatal(err)
	}
	if d, err = c.Pass(t.Context()); err != nil || d.Compacted != 1 || !slices.Equal(d.Problems, again.Problems[1:]) {
		t.Errorf("with a mark: %+v, %v", d, err)
	}
}

// TestReplicas: with vertical compaction over replica labels, blocks of replicas become one
// stream; without it that is an error.
func TestReplicas(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	now := time.Now()
	for i := range int64(2) {
		for _, replica := range []string{"a", "b"} {
			short(t, bkt, i*2*hour, map[string]string{"cluster": "eu1", "replica": replica}, 1)
		}
	}
	cfg := config(t, &now)
	cfg.Vertical, cfg.Policy.ReplicaLabels = true, []string{"replica"}
	if d := passes(t, compact.New(bkt, cfg)); d.Compacted != 2 || len(d.Problems) > 0 {
		t.Errorf("%+v", d)
	}
	// Until what they were made of goes, queries deduplicate it by its replica label.
	want := []string{`0@{cluster="eu1"} 0-2 3 series 39 samples`, `0@{cluster="eu1"} 2-4 3 series 39 samples`}
	if got, _ := seen(t, bkt, now, meta.Raw); len(got) != 6 || !slices.Equal(got[4:], want) {
		t.Errorf("%q", got)
	}
	now = now.Add(25 * time.Hour)
	if got, _ := seen(t, bkt, now, meta.Raw); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestRetentionAndLeftovers: what is too old is marked, and uploads that were broken off go when
// they are old enough.
func TestRetentionAndLeftovers(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	now := time.Now()
	old := short(t, bkt, 0, map[string]string{"cluster": "eu1"}, 1)
	fresh := short(t, bkt, now.UnixMilli()/(2*hour)*2*hour, map[string]string{"cluster": "eu1"}, 1)
	left := ulid.MustNew(ulid.Now(), nil)
	if err := bkt.Upload(t.Context(), left.String()+"/index", strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, &now)
	cfg.Retention = compact.Retention{meta.Raw: 24 * time.Hour}
	c := compact.New(bkt, cfg)
	if d := passes(t, c); d.Marked != 1 || d.Cleaned != 0 || d.Deleted != 0 {
		t.Errorf("%+v", d)
	}
	now = now.Add(49 * time.Hour)
	if d := passes(t, c); d.Deleted != 1 || d.Cleaned != 1 {
		t.Errorf("%+v", d)
	}
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil || len(v.Blocks) != 1 || v.Blocks[0].Meta.ULID != fresh.ULID || len(v.Partial) != 0 {
		t.Errorf("%v %v, and %s is the old one", v, err, old.ULID)
	}
}

// TestDownsampling: raw blocks of two weeks become blocks of five minutes, and those hourly
// ones, each once.
func TestDownsampling(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	now := time.Now()
	for _, in := range read(t, "../testdata/thanos/bucket-raw") {
		if _, err := transfer.Upload(t.Context(), bkt, in.Dir, in.Meta, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	c := compact.New(bkt, config(t, &now))
	if d := passes(t, c); d.Downsampled != 4 || d.Compacted+d.Marked > 0 || len(d.Problems) > 0 {
		t.Errorf("%+v", d)
	}
	for _, resolution := range meta.Resolutions() {
		if got, _ := seen(t, bkt, now, resolution); len(got) != 2 {
			t.Errorf("level %d: %q", resolution, got)
		}
	}
	if d := passes(t, c); d.Downsampled > 0 {
		t.Errorf("again: %+v", d)
	}
}

// TestNotMadeToGo: what would be older than it is kept is not made: it would go at once, and be
// wanted again.
func TestNotMadeToGo(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	for from := int64(0); from < 5*24*hour; from += 2 * hour {
		short(t, bkt, from, map[string]string{"cluster": "eu1"}, 1)
	}
	cfg := compact.DefaultConfig(t.TempDir())
	cfg.Policy.ConsistencyDelay = 0
	cfg.Retention = compact.Retention{meta.FiveMinutes: 24 * time.Hour}
	c := compact.New(bkt, cfg)
	for passes := 1; ; passes++ {
		d, err := c.Pass(t.Context())
		if err != nil || len(d.Problems) > 0 || d.Downsampled > 0 || passes > 100 {
			t.Fatal(err, d, passes)
		}
		if !d.More() {
			return
		}
	}
}

// TestNotAlone: once another compactor has the bucket, nothing is changed any more, at whichever
// change it is found out.
func TestNotAlone(t *testing.T) {
	now := time.Now()
	for at := 1; ; at++ {
		bkt := objstore.NewInMemBucket()
		for i := range int64(5) {
			for _, cluster := range []string{"eu1", "us1"} {
				short(t, bkt, i*2*hour, map[string]string{"cluster": cluster}, 1)
			}
		}
		asked, after := 0, map[string][]byte(nil)
		cfg := config(t, &now)
		cfg.Concurrency = 1 // what another stream is just uploading gets there
		cfg.Guard = func(context.Context) error {
			if asked++; asked < at {
				return nil
			}
			if after == nil {
				after = maps.Clone(bkt.Objects())
			}
			return fmt.Errorf("%w: somebody", lease.ErrHeld)
		}
		_, err := compact.New(bkt, cfg).Pass(t.Context())
		if asked < at {
			if err != nil || at < 10 {
				t.Errorf("%d changes, %v", asked, err)
			}
			return
		}
		if !errors.Is(err, lease.ErrHeld) || len(after) != len(bkt.Objects()) || asked != at {
			t.Errorf("change %d: %v, %d objects, %d then, asked %d times", at, err, len(bkt.Objects()), len(after), asked)
		}
	}
}

// TestLeftoversWithMark: what a deletion left goes when its mark is old enough, and not before.
func TestLeftoversWithMark(t *testing.T) {
	bkt, now := objstore.NewInMemBucket(), time.Now()
	m := short(t, bkt, 0, map[string]string{"cluster": "eu1"}, 1)
	if _, err := transfer.PutMark(t.Context(), bkt, &meta.Mark{ID: m.ULID, Kind: meta.Deletion, Time: now.Add(-47 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if err := bkt.Delete(t.Context(), m.ULID.String()+"/"+meta.File); err != nil {
		t.Fatal(err)
	}
	c := compact.New(bkt, config(t, &now))
	if d := passes(t, c); d.Cleaned != 0 {
		t.Errorf("too early: %+v", d)
	}
	now = now.Add(2 * time.Hour) // by what was written last it would be too early still
	if d := passes(t, c); d.Cleaned != 1 || len(bkt.Objects()) != 0 {
		t.Errorf("%+v, %d objects", d, len(bkt.Objects()))
	}
}

// TestIndexTooLarge: the largest block of a compaction whose index would be too large is marked, and
// the others go on without it.
func TestIndexTooLarge(t *testing.T) {
	bkt, now := objstore.NewInMemBucket(), time.Now()
	var size int64
	for i := range int64(5) {
		m := short(t, bkt, i*2*hour, map[string]string{"cluster": "eu1"}, 1)
		a, err := bkt.Attributes(t.Context(), m.ULID.String()+"/index")
		if err != nil {
			t.Fatal(err)
		}
		size = max(size, a.Size)
	}
	cfg := config(t, &now)
	cfg.MaxIndexBytes = 7 * size / 2 // three, and not four
	d, err := compact.New(bkt, cfg).Pass(t.Context())
	if err != nil || d.Compacted != 1 || len(d.Problems) > 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	marked := 0
	for _, b := range v.Blocks {
		if m := b.Marks[meta.NoCompact]; m != nil && m.Reason == meta.ReasonIndexTooLarge {
			marked++
		}
	}
	if marked != 1 {
		t.Errorf("%d blocks are marked", marked)
	}
}
