// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package view_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/view"
)

// buckets runs a test over buckets of both kinds that need no server.
func buckets(t *testing.T, f func(t *testing.T, bkt objstore.Bucket)) {
	t.Run("memory", func(t *testing.T) { f(t, objstore.NewInMemBucket()) })
	t.Run("filesystem", func(t *testing.T) {
		bkt, err := filesystem.NewBucket(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		f(t, bkt)
	})
}

func fetch(t testing.TB, f *view.Fetcher) *view.View {
	t.Helper()
	v, err := f.Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestObserved: what the other tests look through is a bucket.
func TestObserved(t *testing.T) {
	bkt, err := filesystem.NewBucket(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	objstore.AcceptanceTest(t, &observed{Bucket: bkt})
}

// TestGone: a block that is deleted between the listing and the reading is no fault, and
// neither here nor there; so is a mark that is taken away.
func TestGone(t *testing.T) {
	buckets(t, func(t *testing.T, inner objstore.Bucket) {
		a, b := block(1), block(2)
		bkt := &observed{Bucket: inner}
		bkt.reset()
		putMeta(t, inner, a)
		putMeta(t, inner, b)
		mark := &meta.Mark{ID: b.ULID, Kind: meta.NoCompact, Time: start, Reason: meta.ReasonManual}
		if _, err := transfer.PutMark(t.Context(), inner, mark); err != nil {
			t.Fatal(err)
		}
		bkt.get = func(ctx context.Context, name string) error {
			switch {
			case name == a.ULID.String()+"/meta.json":
				return transfer.Delete(ctx, inner, a.ULID)
			case strings.HasSuffix(name, mark.Kind.File()):
				return transfer.RemoveMark(ctx, inner, b.ULID, mark.Kind)
			}
			return nil
		}
		f := view.NewFetcher(bkt, view.Config{})
		v := fetch(t, f)
		if !v.Complete() || !slices.Equal(v.Gone, []ulid.ULID{a.ULID}) || len(v.Partial) != 0 || len(v.Blocks) != 1 || len(v.Blocks[0].Marks) != 0 {
			t.Errorf("%v, gone %v, partial %v, problems %v", ids(v), v.Gone, v.Partial, v.Problems)
		}
		if v = fetch(t, f); !v.Complete() || len(v.Gone) != 0 || len(v.Blocks) != 1 {
			t.Errorf("%v, gone %v, problems %v", ids(v), v.Gone, v.Problems)
		}
	})
}

// TestPoorProviders: what cannot be listed of one block is that block's problem; a mark that was
// made anew between two looks counts from then, though no time in the listing says so.
func TestPoorProviders(t *testing.T) {
	a, b := block(1), block(2)
	bkt := &observed{Bucket: objstore.NewInMemBucket(), mode: plain}
	bkt.reset()
	putMeta(t, bkt.Bucket, a)
	f := view.NewFetcher(bkt, view.Config{})
	fetch(t, f)
	putMeta(t, bkt.Bucket, b)
	fault := errors.New("slow down")
	bkt.fail = map[string]error{a.ULID.String(): fault}
	v := fetch(t, f)
	if len(v.Blocks) != 2 || len(v.Problems) != 1 || !errors.Is(v.Problems[a.ULID], fault) || len(v.Partial) != 0 {
		t.Errorf("%v, problems %v", ids(v), v.Problems)
	}
	bkt.fail = map[string]error{"": fault}
	if _, err := f.Fetch(t.Context()); !errors.Is(err, fault) {
		t.Error(err)
	}
	bkt.reset()
	for _, mode := range []string{timed, recursive, plain} {
		bkt.mode = mode
		f := view.NewFetcher(bkt, view.Config{})
		for i := range 2 {
			at := start.Add(time.Duration(i) * time.Hour)
			if _, err := transfer.PutMark(t.Context(), bkt, &meta.Mark{ID: a.ULID, Kind: meta.Deletion, Time: at}); err != nil {
				t.Fatal(err)
			}
			if m := fetch(t, f).Blocks[0].Marks[meta.Deletion]; m == nil || !m.Time.Equal(at) {
				t.Errorf("%s: %v, want %v", mode, m, at)
			}
			if err := transfer.RemoveMark(t.Context(), bkt, a.ULID, meta.Deletion); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestListingRaces: a file that goes while a file system lists it is no reason to see nothing,
// but a provider that says so for ever is.
func TestListingRaces(t *testing.T) {
	root := t.TempDir()
	bkt, err := filesystem.NewBucket(root)
	if err != nil {
		t.Fatal(err)
	}
	putMeta(t, bkt, block(1))
	// A link to nowhere is listed, and not there.
	link := filepath.Join(root, "link")
	if err := os.Symlink(filepath.Join(root, "nowhere"), link); err != nil {
		t.Fatal(err)
	}
	o := &observed{Bucket: bkt}
	f := view.NewFetcher(o, view.Config{})
	if _, err := f.Fetch(t.Context()); !bkt.IsObjNotFoundErr(errors.Unwrap(err)) || o.list != 5 {
		t.Errorf("%v after %d listings", err, o.list)
	}
	again := &vanishing{Bucket: bkt, link: link}
	if v := fetch(t, view.NewFetcher(again, view.Config{})); len(v.Blocks) != 1 || v.Requests != 3 {
		t.Errorf("%v, %d requests", ids(v), v.Requests)
	}
}

// vanishing removes a link after the first listing.
type vanishing struct {
	objstore.Bucket
	link string
}

func (b *vanishing) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, opts ...objstore.IterOption) error {
	defer os.Remove(b.link)
	return b.Bucket.IterWithAttributes(ctx, dir, f, opts...)
}

// TestChanged: a meta.json is read again if the listing has another time for it, also after a
// restart with the one of before on disk.
func TestChanged(t *testing.T) {
	inner := objstore.NewInMemBucket()
	bkt := &observed{Bucket: inner}
	cache := t.TempDir()
	m := block(1)
	putMeta(t, inner, m)
	name := m.ULID.String() + "/meta.json"
	f := view.NewFetcher(bkt, view.Config{CacheDir: cache})
	fetch(t, f)
	for i, again := range []*view.Fetcher{f, view.NewFetcher(bkt, view.Config{CacheDir: cache})} {
		bkt.reset()
		m.Stats.NumSamples = uint64(100 + i)
		putMeta(t, inner, m)
		if err := inner.ChangeLastModified(name, start.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
		if v := fetch(t, again); v.Blocks[0].Meta.Stats.NumSamples != m.Stats.NumSamples || !slices.Equal(bkt.gets, []string{name}) {
			t.Errorf("%d: %d samples, read %q", i, v.Blocks[0].Meta.Stats.NumSamples, bkt.gets)
		}
	}
	bkt.reset()
	if v := fetch(t, view.NewFetcher(bkt, view.Config{CacheDir: cache})); len(bkt.gets) != 0 || v.Blocks[0].Meta.Stats.NumSamples != 101 {
		t.Errorf("read %q", bkt.gets)
	}
}

// TestHangs: an object that does not come is the problem of its block after a while, and the
// others are there.
func TestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := block(1), block(2), block(3)
		bkt := &observed{Bucket: objstore.NewInMemBucket()}
		bkt.reset()
		putMeta(t, bkt.Bucket, a)
		putMeta(t, bkt.Bucket, b)
		f := view.NewFetcher(bkt, view.Config{Timeout: 10 * time.Second, Concurrency: 2})
		fetch(t, f)
		time.Sleep(time.Second) // what is written now has another time
		putMeta(t, bkt.Bucket, a)
		putMeta(t, bkt.Bucket, c)
		bkt.get = func(ctx context.Context, name string) error {
			if strings.HasPrefix(name, a.ULID.String()) {
				<-ctx.Done()
				return ctx.Err()
			}
			time.Sleep(9 * time.Second)
			return nil
		}
		began := time.Now()
		v := fetch(t, f)
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it took %v", took)
		}
		if len(v.Blocks) != 3 || len(v.Problems) != 1 || !errors.Is(v.Problems[a.ULID], context.DeadlineExceeded) {
			t.Errorf("%v, problems %v", ids(v), v.Problems)
		}
		// A caller who goes away gets his own error, and spoils nothing for the next one.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.Fetch(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		bkt.get = nil
		if v = fetch(t, f); len(v.Blocks) != 3 || !v.Complete() {
			t.Errorf("%v, problems %v", ids(v), v.Problems)
		}
	})
}

// TestPartial: what is left of a deletion that was broken off is known to be going, for the
// price of one reading.
func TestPartial(t *testing.T) {
	inner := objstore.NewInMemBucket()
	bkt := &observed{Bucket: inner}
	bkt.reset()
	m := block(1)
	putMeta(t, inner, m)
	mark := &meta.Mark{ID: m.ULID, Kind: meta.Deletion, Time: start}
	if _, err := transfer.PutMark(t.Context(), inner, mark); err != nil {
		t.Fatal(err)
	}
	if err := inner.Delete(t.Context(), m.ULID.String()+"/meta.json"); err != nil {
		t.Fatal(err)
	}
	newest := start.Add(5 * time.Hour)
	for i, name := range []string{"/index", "/chunks/000001", "/deletion-mark.json"} {
		if err := inner.ChangeLastModified(m.ULID.String()+name, newest.Add(-time.Duration(i)*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	f := view.NewFetcher(bkt, view.Config{})
	for range 3 {
		v := fetch(t, f)
		p := v.Partial[m.ULID]
		if len(v.Blocks) != 0 || p == nil || p.State != view.NoMeta || p.Objects != 3 || !p.Newest.Equal(newest) || p.Marks[meta.Deletion] == nil || !p.Marks[meta.Deletion].Time.Equal(start) {
			t.Fatalf("%+v", p)
		}
	}
	if len(bkt.gets) != 1 {
		t.Errorf("read %q", bkt.gets)
	}
	// A mark that cannot be read leaves what was known.
	put(t, inner, m.ULID.String()+"/deletion-mark.json", "{}")
	bkt.fail = map[string]error{m.ULID.String() + "/deletion-mark.json": errors.New("slow down")}
	if v := fetch(t, f); v.Complete() || v.Partial[m.ULID] == nil || v.Partial[m.ULID].Marks[meta.Deletion] == nil {
		t.Errorf("partial %v, problems %v", v.Partial, v.Problems)
	}
	// A mark that was read half is read again, though its time is the same.
	bkt.reset()
	for range 2 {
		if v := fetch(t, f); !v.Complete() || len(v.Partial[m.ULID].Marks) != 0 {
			t.Errorf("%+v", v.Partial[m.ULID])
		}
	}
	if len(bkt.gets) != 2 {
		t.Errorf("read %q", bkt.gets)
	}
}

// TestMetrics: what was seen, what was asked and what counts is exposed; a registerer that has
// had another bucket already is no reason not to work.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	bkt := &observed{Bucket: objstore.NewInMemBucket()}
	bkt.reset()
	for i := range 4 {
		putMeta(t, bkt.Bucket, block(i))
	}
	put(t, bkt.Bucket, block(8).ULID.String()+"/index", "x")
	put(t, bkt.Bucket, block(9).ULID.String()+"/meta.json", "x")
	if _, err := transfer.PutMark(t.Context(), bkt.Bucket, &meta.Mark{ID: block(1).ULID, Kind: meta.NoDownsample, Time: start}); err != nil {
		t.Fatal(err)
	}
	f := view.NewFetcher(bkt, view.Config{Registerer: reg})
	f.Observe(fetch(t, f).Select(view.Time(0, 250)))
	bkt.fail = map[string]error{block(9).ULID.String() + "/meta.json": errors.New("slow down")}
	fetch(t, f)
	bkt.fail = map[string]error{"": errors.New("slow down")}
	if _, err := f.Fetch(t.Context()); err == nil {
		t.Error("no error")
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP promweave_bucket_view_blocks Blocks of the bucket by state.
# TYPE promweave_bucket_view_blocks gauge
promweave_bucket_view_blocks{state="corrupted-meta-json"} 1
promweave_bucket_view_blocks{state="duplicate"} 0
promweave_bucket_view_blocks{state="failed"} 1
promweave_bucket_view_blocks{state="label-excluded"} 0
promweave_bucket_view_blocks{state="loaded"} 3
promweave_bucket_view_blocks{state="marked-for-deletion"} 0
promweave_bucket_view_blocks{state="marked-for-no-compact"} 0
promweave_bucket_view_blocks{state="marked-for-no-downsample"} 1
promweave_bucket_view_blocks{state="no-meta-json"} 1
promweave_bucket_view_blocks{state="time-excluded"} 1
promweave_bucket_view_blocks{state="too-fresh"} 0
# HELP promweave_bucket_view_fetches_total Looks into the bucket by result: complete, incomplete, failed.
# TYPE promweave_bucket_view_fetches_total counter
promweave_bucket_view_fetches_total{result="complete"} 1
promweave_bucket_view_fetches_total{result="failed"} 1
promweave_bucket_view_fetches_total{result="incomplete"} 1
# HELP promweave_bucket_view_requests_total Requests to the bucket by operation; a listing of many pages counts as one.
# TYPE promweave_bucket_view_requests_total counter
promweave_bucket_view_requests_total{operation="get"} 7
promweave_bucket_view_requests_total{operation="list"} 3
`), "promweave_bucket_view_blocks", "promweave_bucket_view_fetches_total", "promweave_bucket_view_requests_total"); err != nil {
		t.Error(err)
	}
	bkt.reset()
	if v := fetch(t, view.NewFetcher(bkt, view.Config{Registerer: reg})); len(v.Blocks) != 4 {
		t.Error(v)
	}
}

// TestPolicies: a compactor leaves blocks alone from half the deletion delay on and takes
// replicas for one; a store does neither; bounds that move are taken anew each time.
func TestPolicies(t *testing.T) {
	bkt := objstore.NewInMemBucket()
	now := start.Add(100 * time.Hour)
	replica := func(m *meta.Meta, r string) *meta.Meta { m.Thanos.Labels["replica"] = r; return m }
	metas := []*meta.Meta{replica(block(1), "a"), replica(block(2), "b"), replica(block(3), "a"), replica(block(4), "a")}
	metas[1].Compaction.Sources = metas[0].Compaction.Sources
	for _, m := range metas {
		putMeta(t, bkt, m)
	}
	if _, err := transfer.PutMark(t.Context(), bkt, &meta.Mark{ID: metas[2].ULID, Kind: meta.Deletion, Time: now.Add(-25 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	v := fetch(t, view.NewFetcher(bkt, view.Config{}))
	p := view.Policy{DeletionDelay: 48 * time.Hour, ReplicaLabels: []string{"replica"}, Bounds: func(now time.Time) (int64, int64) {
		return 0, 350 + int64(now.Sub(start.Add(100*time.Hour))/time.Hour)*100
	}}
	for want, filters := range map[string][]view.Filter{
		"0 1 2 time-excluded":                           view.ForStore(p, now),
		"0 1 marked-for-deletion 3":                     view.ForStore(p, now.Add(24*time.Hour)),
		"0 duplicate marked-for-deletion time-excluded": view.ForCompactor(p, now),
		"0 duplicate 2 time-excluded":                   view.ForCompactor(view.Policy{MinTime: 0, MaxTime: 350, DeletionDelay: 50 * time.Hour, ReplicaLabels: p.ReplicaLabels}, now),
		"time-excluded time-excluded time-excluded 3":   view.ForStore(view.Policy{MinTime: 450, MaxTime: 1000, DeletionDelay: time.Hour}, now),
		fmt.Sprintf("0 1 %s 3", view.MarkedForDeletion): view.ForStore(view.Policy{DeletionDelay: time.Hour}, now.Add(-time.Second)),
		"too-fresh too-fresh too-fresh too-fresh":       view.ForStore(view.Policy{ConsistencyDelay: 101 * time.Hour}, now),
	} {
		if got := kept(v.Select(filters...), metas); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
