// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package view_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/view"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC)

// block makes a meta with an id by number.
func block(n int, change ...func(*meta.Meta)) *meta.Meta {
	id := ulid.MustNew(ulid.Timestamp(start.Add(time.Duration(n)*time.Minute)), nil)
	m := &meta.Meta{BlockMeta: tsdb.BlockMeta{ULID: id, MinTime: int64(n) * 100, MaxTime: int64(n)*100 + 100, Version: 1}}
	m.Compaction.Level, m.Compaction.Sources = 1, []ulid.ULID{id}
	m.Thanos.Labels, m.Thanos.Source = map[string]string{"cluster": "eu1"}, meta.SourceSidecar
	for _, f := range change {
		f(m)
	}
	return m
}

func put(t testing.TB, bkt objstore.Bucket, name, text string) {
	t.Helper()
	if err := bkt.Upload(t.Context(), name, strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
}

func putMeta(t testing.TB, bkt objstore.Bucket, m *meta.Meta) {
	t.Helper()
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"chunks/000001", "index"} {
		put(t, bkt, m.ULID.String()+"/"+name, "x")
	}
	put(t, bkt, m.ULID.String()+"/meta.json", string(data))
}

// How buckets list.
const (
	timed     = "timed"     // recursively and with times, as S3, GCS, Azure and file systems do
	recursive = "recursive" // without times, as Swift, COS, OSS, OBS and OCI do
	plain     = "plain"     // one directory at a time
)

// observed is a bucket that counts, may list in poorer ways, and may fail.
type observed struct {
	objstore.Bucket
	mode string // "" is timed

	mu   sync.Mutex
	gets []string
	list int
	fail map[string]error
	get  func(ctx context.Context, name string) error // what is done before each Get, if set
	// If set, a listing that is done says so, and waits.
	seen, hold chan struct{}
}

func (o *observed) SupportedIterOptions() []objstore.IterOptionType {
	switch o.mode {
	case plain:
		return nil
	case recursive:
		return []objstore.IterOptionType{objstore.Recursive}
	}
	return o.Bucket.SupportedIterOptions()
}

func (o *observed) listing() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list++
}

func (o *observed) Iter(ctx context.Context, dir string, f func(string) error, opts ...objstore.IterOption) error {
	o.listing()
	if err := objstore.ValidateIterOptions(o.SupportedIterOptions(), opts...); err != nil {
		return err
	}
	if err := o.fail[dir]; err != nil {
		return err
	}
	return o.Bucket.Iter(ctx, dir, f, opts...)
}

func (o *observed) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, opts ...objstore.IterOption) error {
	o.listing()
	if err := objstore.ValidateIterOptions(o.SupportedIterOptions(), opts...); err != nil {
		return err
	}
	if err := o.fail[dir]; err != nil {
		return err
	}
	err := o.Bucket.IterWithAttributes(ctx, dir, f, opts...)
	if o.hold != nil {
		o.seen <- struct{}{}
		<-o.hold
	}
	return err
}

func (o *observed) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	o.mu.Lock()
	o.gets = append(o.gets, name)
	err := o.fail[name]
	o.mu.Unlock()
	if err == nil && o.get != nil {
		err = o.get(ctx, name)
	}
	if err != nil {
		return nil, err
	}
	return o.Bucket.Get(ctx, name)
}

func (o *observed) reset() { o.gets, o.list, o.fail = nil, 0, map[string]error{} }

func ids(v *view.View) (out []string) {
	for _, b := range v.Blocks {
		out = append(out, b.Meta.ULID.String())
	}
	return out
}

// TestFetch: what is in a bucket is seen, at the cost of one listing once it is known.
func TestFetch(t *testing.T) {
	for _, mode := range []string{timed, recursive, plain} {
		t.Run(mode, func(t *testing.T) {
			bkt := &observed{Bucket: objstore.NewInMemBucket(), mode: mode}
			bkt.reset()
			cache := filepath.Join(t.TempDir(), "metas")
			f := view.NewFetcher(bkt, view.Config{CacheDir: cache})
			fetch := func(blocks, partial, gets int) *view.View {
				t.Helper()
				bkt.mu.Lock()
				bkt.gets, bkt.list = nil, 0
				bkt.mu.Unlock()
				v, err := f.Fetch(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				listings := 1
				if mode == plain {
					listings += len(v.Blocks) + len(v.Partial)
				}
				if len(v.Blocks) != blocks || len(v.Partial) != partial || len(bkt.gets) != gets || bkt.list != listings || v.Requests != gets+listings {
					t.Errorf("%d blocks, %d partial, objects read %q, %d listings, %d requests; want %d, %d, %d", len(v.Blocks), len(v.Partial), bkt.gets, bkt.list, v.Requests, blocks, partial, gets)
				}
				return v
			}
			fetch(0, 0, 0)
			n := 1000
			if mode == plain {
				n = 100 // a bucket in memory goes through all objects for each listing
			}
			for i := range n {
				putMeta(t, bkt.Bucket, block(i))
			}
			put(t, bkt.Bucket, "debug/metas/"+block(1).ULID.String()+".json", "x")
			put(t, bkt.Bucket, "readme.txt", "x")
			v := fetch(n, 0, n)
			if !v.Complete() || !slices.IsSorted(ids(v)) {
				t.Error("incomplete, or in no order")
			}
			again := fetch(n, 0, 0)
			if again.Blocks[7] != v.Blocks[7] {
				t.Error("a block that did not change is another one")
			}

			// A mark; an upload that goes on; a corrupt meta.json; a block that goes.
			if _, err := transfer.PutMark(t.Context(), bkt.Bucket, &meta.Mark{ID: block(3).ULID, Kind: meta.NoCompact, Time: start, Reason: meta.ReasonManual}); err != nil {
				t.Fatal(err)
			}
			put(t, bkt.Bucket, block(n).ULID.String()+"/chunks/000001", "x")
			put(t, bkt.Bucket, block(n+1).ULID.String()+"/meta.json", "{")
			if err := transfer.Delete(t.Context(), bkt.Bucket, block(5).ULID); err != nil {
				t.Fatal(err)
			}
			v = fetch(n-1, 2, 2)
			if m := v.Blocks[3].Marks[meta.NoCompact]; m == nil || m.Reason != meta.ReasonManual || again.Blocks[3].Marks[meta.NoCompact] != nil {
				t.Error("the mark is not there, or in the view of before")
			}
			if p := v.Partial[block(n).ULID]; p == nil || p.Newest.IsZero() != (mode != timed) || p.State != view.NoMeta || p.Objects != 1 {
				t.Errorf("%+v", p)
			}
			if p := v.Partial[block(n+1).ULID]; p == nil || !errors.Is(p.Reason, meta.ErrCorrupt) || p.State != view.Corrupt {
				t.Errorf("%+v", p)
			}
			if err := transfer.RemoveMark(t.Context(), bkt.Bucket, block(3).ULID, meta.NoCompact); err != nil {
				t.Fatal(err)
			}
			// What is corrupt is read again: it may be mended, without a word if there are no times.
			if v = fetch(n-1, 2, 1); len(v.Blocks[3].Marks) != 0 {
				t.Error("a mark that was taken away is still there")
			}

			// Another life of the process reads metas from the disk, but for those that are broken
			// there, and removes those of blocks that are gone.
			if err := os.WriteFile(filepath.Join(cache, block(8).ULID.String()+".json"), []byte("{"), 0o644); err != nil {
				t.Fatal(err)
			}
			f = view.NewFetcher(bkt, view.Config{CacheDir: cache})
			fetch(n-1, 2, 2)
			if files, err := os.ReadDir(cache); err != nil || len(files) != n-1 {
				t.Errorf("%d files, %v", len(files), err)
			}
		})
	}
}

// TestTransientErrors: what cannot be read now is what it was before, and is said.
func TestTransientErrors(t *testing.T) {
	bkt := &observed{Bucket: objstore.NewInMemBucket()}
	bkt.reset()
	f := view.NewFetcher(bkt, view.Config{})
	a, b, c := block(1), block(2), block(3)
	putMeta(t, bkt.Bucket, a)
	if _, err := f.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone := errors.New("slow down")
	putMeta(t, bkt.Bucket, b)
	putMeta(t, bkt.Bucket, c)
	mark := &meta.Mark{ID: a.ULID, Kind: meta.Deletion, Time: start}
	if _, err := transfer.PutMark(t.Context(), bkt.Bucket, mark); err != nil {
		t.Fatal(err)
	}
	bkt.fail = map[string]error{b.ULID.String() + "/meta.json": gone, a.ULID.String() + "/deletion-mark.json": gone}
	v, err := f.Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if v.Complete() || len(v.Problems) != 2 || !errors.Is(v.Problems[a.ULID], gone) || !errors.Is(v.Problems[b.ULID], gone) || !slices.Equal(ids(v), []string{a.ULID.String(), c.ULID.String()}) {
		t.Errorf("%v, problems %v", ids(v), v.Problems)
	}
	bkt.reset()
	v, err = f.Fetch(t.Context())
	if err != nil || !v.Complete() || len(v.Blocks) != 3 || v.Blocks[0].Marks[meta.Deletion] == nil {
		t.Errorf("%v, %v", ids(v), err)
	}
	// What is overwritten is read again.
	put(t, bkt.Bucket, a.ULID.String()+"/meta.json", "{")
	if v, err = f.Fetch(t.Context()); err != nil || !v.Complete() || len(v.Blocks) != 2 || v.Partial[a.ULID] == nil {
		t.Errorf("%v, %v", ids(v), err)
	}
	bkt.fail = map[string]error{"": gone}
	if _, err := f.Fetch(t.Context()); !errors.Is(err, gone) {
		t.Errorf("no listing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Fetch(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}

// TestFresh: a call never gets a look that began before it, and those that wait share one.
func TestFresh(t *testing.T) {
	bkt := &observed{Bucket: objstore.NewInMemBucket(), seen: make(chan struct{}, 10), hold: make(chan struct{})}
	bkt.reset()
	f := view.NewFetcher(bkt, view.Config{})
	results := make(chan *view.View, 10)
	fetch := func() {
		v, err := f.Fetch(context.Background())
		if err != nil {
			t.Error(err)
		}
		results <- v
	}
	go fetch()
	<-bkt.seen
	// The first look has listed what there is. What is uploaded now is seen by whoever asks now.
	putMeta(t, bkt.Bucket, block(1))
	const later = 5
	for range later {
		go fetch()
	}
	time.Sleep(20 * time.Millisecond) // they wait
	close(bkt.hold)
	with := 0
	for range later + 1 {
		if v := <-results; v != nil && len(v.Blocks) == 1 {
			with++
		}
	}
	if with < later {
		t.Errorf("%d of %d who asked after an upload see it", with, later)
	}
	bkt.mu.Lock()
	defer bkt.mu.Unlock()
	if bkt.list > 3 {
		t.Errorf("%d listings for %d calls", bkt.list, later+1)
	}
}

func viewOf(t testing.TB, metas ...*meta.Meta) *view.View {
	t.Helper()
	bkt := objstore.NewInMemBucket()
	for _, m := range metas {
		putMeta(t, bkt, m)
	}
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil || len(v.Blocks) != len(metas) {
		t.Fatal(err, v)
	}
	return v
}

// kept are the numbers of the metas that are left, and states of the others.
func kept(s *view.Selection, metas []*meta.Meta) string {
	var out []string
	for i, m := range metas {
		if slices.ContainsFunc(s.Blocks, func(b *view.Block) bool { return b.Meta.ULID == m.ULID }) {
			out = append(out, fmt.Sprint(i))
		} else {
			out = append(out, string(s.Dropped[m.ULID]))
		}
	}
	return strings.Join(out, " ")
}

func TestFilters(t *testing.T) {
	sources := func(n ...int) func(*meta.Meta) {
		return func(m *meta.Meta) {
			m.Compaction.Sources = nil
			for _, i := range n {
				m.Compaction.Sources = append(m.Compaction.Sources, block(i).ULID)
			}
		}
	}
	labelled := func(pairs ...string) func(*meta.Meta) {
		return func(m *meta.Meta) {
			m.Thanos.Labels = map[string]string{}
			for i := 0; i < len(pairs); i += 2 {
				m.Thanos.Labels[pairs[i]] = pairs[i+1]
			}
		}
	}
	from := func(source string, at time.Time) func(*meta.Meta) {
		return func(m *meta.Meta) { m.Thanos.Source, m.Thanos.UploadTime = source, at }
	}
	level := func(r int64) func(*meta.Meta) { return func(m *meta.Meta) { m.Thanos.Downsample.Resolution = r } }
	rule := &relabel.Config{Action: relabel.Drop, SourceLabels: []model.LabelName{"cluster"}, Regex: relabel.MustNewRegexp("eu2")}
	byID := &relabel.Config{Action: relabel.Keep, SourceLabels: []model.LabelName{view.BlockIDLabel}, Regex: relabel.MustNewRegexp(block(1).ULID.String())}
	now := start.Add(time.Hour)
	for name, c := range map[string]struct {
		metas   []*meta.Meta
		filters []view.Filter
		want    string
	}{
		"time": {[]*meta.Meta{block(0), block(1), block(2), block(3), block(4)}, []view.Filter{view.Time(200, 300)}, "time-excluded 1 2 3 time-excluded"},
		"labels": {[]*meta.Meta{block(1), block(2, labelled("cluster", "eu2")), block(3, labelled("replica", "a"))},
			[]view.Filter{view.Relabel([]*relabel.Config{rule})}, "0 label-excluded 2"},
		"labels by id":           {[]*meta.Meta{block(1), block(2)}, []view.Filter{view.Relabel([]*relabel.Config{byID})}, "0 label-excluded"},
		"without replica labels": {[]*meta.Meta{block(1, labelled("cluster", "eu2", "x", "y"))}, []view.Filter{view.Relabel([]*relabel.Config{rule}, "cluster")}, "0"},
		// By id they are 59, 58 and 55 minutes old.
		"fresh": {[]*meta.Meta{block(1), block(2), block(5), block(3, from(meta.SourceCompactor, now)), block(4, from(meta.SourceSidecar, now.Add(-time.Minute))), block(6, from(meta.SourceSidecar, now.Add(-time.Hour)))},
			[]view.Filter{view.ConsistencyDelay(now, 58*time.Minute)}, "0 1 too-fresh 3 too-fresh 5"},
		"sources": {[]*meta.Meta{block(1), block(2), block(3), block(4, sources(1, 2)), block(5, sources(1, 2, 9)), block(6, sources(2, 3))},
			[]view.Filter{view.Deduplicate()}, "duplicate duplicate duplicate duplicate 4 5"},
		"same sources":    {[]*meta.Meta{block(3, sources(1, 2)), block(4, sources(2, 1))}, []view.Filter{view.Deduplicate()}, "0 duplicate"},
		"other streams":   {[]*meta.Meta{block(1), block(2, sources(1), labelled("cluster", "eu2")), block(3, sources(1), level(meta.FiveMinutes))}, []view.Filter{view.Deduplicate()}, "0 1 2"},
		"without sources": {[]*meta.Meta{block(1, sources()), block(2), block(3, sources(1, 2))}, []view.Filter{view.Deduplicate()}, "duplicate duplicate 2"},
		// Two halves are no whole: who made one of them may have lost something.
		"two halves": {[]*meta.Meta{block(1, sources(1, 2)), block(3, sources(1, 9)), block(4, sources(2, 8))}, []view.Filter{view.Deduplicate()}, "0 1 2"},
		"replicas": {[]*meta.Meta{block(1, labelled("cluster", "eu1", "replica", "a")), block(2, sources(1), labelled("cluster", "eu1", "replica", "b"))},
			[]view.Filter{view.WithoutReplicaLabels("replica"), view.Deduplicate()}, "0 duplicate"},
	} {
		if got := kept(viewOf(t, c.metas...).Select(c.filters...), c.metas); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}

	v := viewOf(t, block(1, labelled("replica", "a")))
	s := v.Select(view.WithoutReplicaLabels("replica", "rule_replica"))
	if got := s.Metas()[0].Thanos.Labels; len(got) != 1 || got["replica"] != view.Deduped || v.Blocks[0].Meta.Thanos.Labels["replica"] != "a" {
		t.Errorf("%v, and the view has %v", got, v.Blocks[0].Meta.Thanos.Labels)
	}
}

func TestDeletionMarks(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	now := start.Add(100 * time.Hour)
	metas := []*meta.Meta{block(1), block(2), block(3)}
	for i, age := range []time.Duration{-1, 24 * time.Hour, 24*time.Hour + time.Second} {
		putMeta(t, bkt, metas[i])
		if age > 0 {
			if _, err := transfer.PutMark(t.Context(), bkt, &meta.Mark{ID: metas[i].ULID, Kind: meta.Deletion, Time: now.Add(-age)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(t, bkt, metas[0].ULID.String()+"/deletion-mark.json", "garbage") // counts as none
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := view.Policy{DeletionDelay: 24 * time.Hour}
	s := v.Select(p.Filters(now)...)
	if got := kept(s, metas); got != "0 1 marked-for-deletion" {
		t.Error(got)
	}
	if m := s.Marked(meta.Deletion); len(m) != 1 || !m[metas[1].ULID] {
		t.Errorf("%v", m)
	}
}

// TestDeduplicateAnyOrder: the same blocks are kept in whichever order they come, no source
// is lost, and none that is kept is a part of another.
func TestDeduplicateAnyOrder(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var blocks []*view.Block
		for i := range 1 + rnd.IntN(25) {
			m := block(i)
			m.Compaction.Sources = nil
			for range 1 + rnd.IntN(5) {
				m.Compaction.Sources = append(m.Compaction.Sources, block(rnd.IntN(12)).ULID)
			}
			m.Thanos.Labels["cluster"] = fmt.Sprint(rnd.IntN(2))
			blocks = append(blocks, &view.Block{Meta: m})
		}
		all := map[string]bool{}
		for _, b := range blocks {
			for _, s := range b.Meta.Compaction.Sources {
				all[b.Meta.Stream()+s.String()] = true
			}
		}
		var first []string
		for range 3 {
			rnd.Shuffle(len(blocks), func(i, j int) { blocks[i], blocks[j] = blocks[j], blocks[i] })
			s := (&view.View{Blocks: blocks}).Select(view.Deduplicate())
			for _, b := range blocks {
				if s.Dropped[b.Meta.ULID] == view.Duplicate && !slices.ContainsFunc(s.Blocks, func(k *view.Block) bool {
					return k.Meta.Stream() == b.Meta.Stream() && !slices.ContainsFunc(b.Meta.Compaction.Sources, func(id ulid.ULID) bool { return !slices.Contains(k.Meta.Compaction.Sources, id) })
				}) {
					t.Fatalf("seed %d: %s is dropped, and no block that is kept has all of it", seed, b)
				}
			}
			var got []string
			seen := map[string]bool{}
			for _, b := range s.Blocks {
				got = append(got, b.Meta.ULID.String())
				for _, x := range b.Meta.Compaction.Sources {
					seen[b.Meta.Stream()+x.String()] = true
				}
			}
			if len(seen) != len(all) || len(got)+len(s.Dropped) != len(blocks) {
				t.Fatalf("seed %d: %d of %d sources are left", seed, len(seen), len(all))
			}
			if first == nil {
				first = got
			}
			if !slices.Equal(first, got) {
				t.Fatalf("seed %d: %v and %v", seed, first, got)
			}
		}
	}
}
