// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb/tombstones"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const rawBlock = "../testdata/thanos/bucket-raw/01M7ZYC52JECNQ4F55W1Y2QEYW"

func load(t testing.TB, dir string) *meta.Meta {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, meta.File))
	if err != nil {
		t.Fatal(err)
	}
	m, err := meta.Parse(ulid.MustParse(filepath.Base(dir)), data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// faulty is a bucket that writes down what changes it, and fails one operation.
type faulty struct {
	objstore.Bucket
	mu   sync.Mutex
	done []string
	fail int // the operation that fails, from 1
}

var errFault = errors.New("the network is gone")

func (f *faulty) step(what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, what)
	if len(f.done) == f.fail {
		return errFault
	}
	return nil
}

func (f *faulty) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	if err := f.step("upload " + name); err != nil {
		// Half of it is there: providers do not all write at once.
		data, _ := io.ReadAll(io.LimitReader(r, 100))
		_ = f.Bucket.Upload(ctx, name, strings.NewReader(string(data)))
		return err
	}
	return f.Bucket.Upload(ctx, name, r, o...)
}

func (f *faulty) Delete(ctx context.Context, name string) error {
	if err := f.step("delete " + name); err != nil {
		return err
	}
	return f.Bucket.Delete(ctx, name)
}

func (f *faulty) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := f.step("get " + name); err != nil {
		return nil, err
	}
	return f.Bucket.Get(ctx, name)
}

func names(t testing.TB, bkt objstore.Bucket) (out []string) {
	t.Helper()
	if err := bkt.Iter(t.Context(), "", func(name string) error {
		out = append(out, name)
		return nil
	}, objstore.WithRecursiveIter()); err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

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

// TestThereAndBack: a block goes into a bucket, is there when all of it is, and comes back the
// same, whichever operation fails on the way.
func TestThereAndBack(t *testing.T) {
	buckets(t, func(t *testing.T, inner objstore.Bucket) {
		m := load(t, rawBlock)
		id, now := m.ULID.String(), time.Date(2026, 1, 5, 8, 0, 0, 5, time.UTC)
		o := transfer.Options{Now: func() time.Time { return now }}
		for fail := 1; ; fail++ {
			bkt := &faulty{Bucket: inner, fail: fail}
			up, err := transfer.Upload(t.Context(), bkt, rawBlock, m, o)
			if err == nil {
				if fail != 4 {
					t.Fatalf("it takes %d operations: %q", fail-1, bkt.done)
				}
				want := []string{"upload " + id + "/chunks/000001", "upload " + id + "/index", "upload " + id + "/meta.json"}
				if !slices.Equal(bkt.done, want) {
					t.Errorf("%q", bkt.done)
				}
				if !up.Thanos.UploadTime.Equal(now) || !m.Thanos.UploadTime.Before(now.Add(365*24*time.Hour)) || len(up.Thanos.Files) != 3 {
					t.Errorf("%+v", up.Thanos)
				}
				break
			}
			if !errors.Is(err, errFault) {
				t.Fatal(err)
			}
			if r, err := inner.Get(t.Context(), id+"/meta.json"); err == nil {
				data, _ := io.ReadAll(r)
				_ = r.Close()
				if _, err := meta.Parse(m.ULID, data); err == nil {
					t.Errorf("operation %d failed, and the block is there", fail)
				}
			}
		}
		for fail := 1; ; fail++ {
			parent := t.TempDir()
			bkt := &faulty{Bucket: inner, fail: fail}
			got, err := transfer.Download(t.Context(), bkt, m.ULID, parent, o)
			entries, _ := os.ReadDir(parent)
			if err != nil {
				if !errors.Is(err, errFault) || len(entries) > 0 {
					t.Fatalf("%v, %v", err, entries)
				}
				continue
			}
			f, err := verify.Block(t.Context(), filepath.Join(parent, id), got, verify.Options{Chunks: true})
			if err != nil || f.Err(got) != nil || len(entries) != 1 {
				t.Fatal(err, f, entries)
			}
			// Once more, nothing but meta.json is read.
			again := &faulty{Bucket: inner}
			if _, err := transfer.Download(t.Context(), again, m.ULID, parent, o); err != nil || len(again.done) != 1 {
				t.Errorf("%v, %q", err, again.done)
			}
			// A file that has another size is none of that block.
			if err := os.Truncate(filepath.Join(parent, id, "index"), 10); err != nil {
				t.Fatal(err)
			}
			if _, err := transfer.Download(t.Context(), again, m.ULID, parent, o); err != nil || len(again.done) != 4 {
				t.Errorf("%v, %q", err, again.done)
			}
			break
		}

		mark := &meta.Mark{ID: m.ULID, Kind: meta.Deletion, Time: now}
		if ok, err := transfer.PutMark(t.Context(), inner, mark); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if ok, err := transfer.PutMark(t.Context(), inner, &meta.Mark{ID: m.ULID, Kind: meta.Deletion, Time: now.Add(time.Hour)}); ok || err != nil {
			t.Errorf("a second mark: %v %v", ok, err)
		}
		if ok, err := transfer.PutMark(t.Context(), inner, &meta.Mark{ID: m.ULID, Kind: meta.NoCompact, Time: now, Reason: meta.ReasonManual}); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if err := transfer.RemoveMark(t.Context(), inner, m.ULID, meta.NoCompact); err != nil {
			t.Fatal(err)
		}
		if err := transfer.RemoveMark(t.Context(), inner, m.ULID, meta.NoCompact); err != nil {
			t.Errorf("a mark that is not there: %v", err)
		}

		// Whichever operation fails, what is left is not seen, and is known to be going.
		for fail := 1; ; fail++ {
			bkt := &faulty{Bucket: inner, fail: fail}
			err := transfer.Delete(t.Context(), bkt, m.ULID)
			left := names(t, inner)
			if err == nil {
				if len(left) > 0 {
					t.Errorf("%q is left", left)
				}
				if first, last := bkt.done[0], bkt.done[len(bkt.done)-1]; first != "delete "+id+"/meta.json" || last != "delete "+id+"/deletion-mark.json" {
					t.Errorf("%q", bkt.done)
				}
				break
			}
			if !errors.Is(err, errFault) || !slices.Contains(left, id+"/deletion-mark.json") || fail > 1 && slices.Contains(left, id+"/meta.json") {
				t.Fatalf("operation %d: %v, %q is left", fail, err, left)
			}
		}
		if err := transfer.Delete(t.Context(), inner, m.ULID); err != nil {
			t.Errorf("what is gone: %v", err)
		}
		if _, err := transfer.Download(t.Context(), inner, m.ULID, t.TempDir(), o); err == nil {
			t.Error("what is gone can be downloaded")
		}
	})
}

// TestUnfit: nothing of a block that must not be in a bucket is uploaded.
func TestUnfit(t *testing.T) {
	for name, c := range map[string]struct {
		change func(dir string, m *meta.Meta) error
		want   string
	}{
		"no labels":      {func(_ string, m *meta.Meta) error { m.Thanos.Labels = nil; return nil }, "no external labels"},
		"no index":       {func(dir string, _ *meta.Meta) error { return os.Remove(filepath.Join(dir, "index")) }, "index"},
		"index 3":        {poke("index", 4, 3), "version 1 or 2"},
		"no magic":       {poke("chunks/000001", 0, 0), "want a segment"},
		"an encoding":    {poke("chunks/000001", 9, 4), "encoding 4, which Thanos does not read"},
		"aggregates":     {poke("chunks/000001", 9, 0xff), "encoding 255"},
		"a short file":   {func(dir string, _ *meta.Meta) error { return os.Truncate(filepath.Join(dir, "chunks/000001"), 1000) }, "ends beyond"},
		"no chunks":      {func(dir string, _ *meta.Meta) error { return os.RemoveAll(filepath.Join(dir, "chunks")) }, "its segments have 0 chunks"},
		"a lost segment": {func(_ string, m *meta.Meta) error { m.Stats.NumChunks++; return nil }, "one is missing"},
		"an empty file":  {func(dir string, _ *meta.Meta) error { return os.Truncate(filepath.Join(dir, "chunks/000001"), 0) }, "want a segment"},
		"tombstones": {func(dir string, _ *meta.Meta) error {
			_, err := tombstones.WriteFile(slog.New(slog.DiscardHandler), dir, tombstones.NewTestMemTombstones([]tombstones.Intervals{{{Mint: 1, Maxt: 2}}}))
			return err
		}, "1 times are deleted"},
		"bad tombstones": {func(dir string, _ *meta.Meta) error {
			return os.WriteFile(filepath.Join(dir, "tombstones"), []byte("tomb"), 0o644)
		}, "tombstones cannot be read"},
		"a gap": {func(dir string, _ *meta.Meta) error {
			return os.Rename(filepath.Join(dir, "chunks/000001"), filepath.Join(dir, "chunks/000002"))
		}, "want 000001"},
		"a directory": {func(dir string, _ *meta.Meta) error { return os.Mkdir(filepath.Join(dir, "chunks/000002"), 0o755) }, "is no file"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			m := load(t, rawBlock).Clone()
			dir := filepath.Join(t.TempDir(), m.ULID.String())
			if err := os.CopyFS(dir, os.DirFS(rawBlock)); err != nil {
				t.Fatal(err)
			}
			if err := c.change(dir, m); err != nil {
				t.Fatal(err)
			}
			bkt := objstore.NewInMemBucket()
			_, err := transfer.Upload(t.Context(), bkt, dir, m, transfer.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), m.ULID.String()) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if left := names(t, bkt); len(left) > 0 {
				t.Errorf("%q was uploaded", left)
			}
		})
	}
}

// poke puts a byte into a file.
func poke(file string, at int64, b byte) func(string, *meta.Meta) error {
	return func(dir string, _ *meta.Meta) error {
		f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte{b}, at)
		return errors.Join(err, f.Close())
	}
}

// TestOldBlocks: meta.json need not list the files, and blocks need not have samples.
func TestOldBlocks(t *testing.T) {
	m := load(t, rawBlock).Clone()
	bkt := objstore.NewInMemBucket()
	if _, err := transfer.Upload(t.Context(), bkt, rawBlock, m, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	m.Thanos.Files, m.Thanos.SegmentFiles = nil, nil
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := bkt.Upload(t.Context(), m.ULID.String()+"/meta.json", strings.NewReader(string(data))); err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	if _, err := transfer.Download(t.Context(), bkt, m.ULID, parent, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"index", "chunks/000001", "meta.json"} {
		if _, err := os.Stat(filepath.Join(parent, m.ULID.String(), name)); err != nil {
			t.Error(err)
		}
	}
}

// TestDigests: recorded digests tell what need not be downloaded again, and what is not what was
// uploaded, though its size is the same.
func TestDigests(t *testing.T) {
	buckets(t, func(t *testing.T, inner objstore.Bucket) {
		m := load(t, rawBlock)
		id, parent := m.ULID.String(), t.TempDir()
		up, err := transfer.Upload(t.Context(), inner, rawBlock, m, transfer.Options{SHA256: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range up.Thanos.Files {
			if (f.Hash == nil) != (f.RelPath == meta.File) {
				t.Errorf("%+v", f)
			}
		}
		download := func(want ...string) {
			t.Helper()
			bkt := &faulty{Bucket: inner}
			if _, err := transfer.Download(t.Context(), bkt, m.ULID, parent, transfer.Options{}); err != nil {
				t.Fatal(err)
			}
			for i := range want {
				want[i] = "get " + id + "/" + want[i]
			}
			slices.Sort(bkt.done)
			if !slices.Equal(bkt.done, want) {
				t.Errorf("read %q, want %q", bkt.done, want)
			}
			f, err := verify.Block(t.Context(), filepath.Join(parent, id), up, verify.Options{Chunks: true})
			if err != nil || f.Err(up) != nil {
				t.Fatal(err, f)
			}
			if got := load(t, filepath.Join(parent, id)); !got.Thanos.UploadTime.Equal(up.Thanos.UploadTime) {
				t.Errorf("its meta.json is of an upload at %s, want %s", got.Thanos.UploadTime, up.Thanos.UploadTime)
			}
		}
		download("chunks/000001", "index", "meta.json")
		download("meta.json")
		// A bit of the local copy changes.
		if err := poke("index", 100, 0xa5)(filepath.Join(parent, id), nil); err != nil {
			t.Fatal(err)
		}
		download("index", "meta.json")
		// What makes a directory a block is missing, or is that of another upload.
		if err := os.Remove(filepath.Join(parent, id, "meta.json")); err != nil {
			t.Fatal(err)
		}
		download("meta.json")
		if err := os.WriteFile(filepath.Join(parent, id, "meta.json"), []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
		download("meta.json")
		// A bit of the object changes: no block appears, and the broken one is none any more.
		r, err := inner.Get(t.Context(), id+"/index")
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		data[100] ^= 1
		if err := inner.Upload(t.Context(), id+"/index", strings.NewReader(string(data))); err != nil {
			t.Fatal(err)
		}
		if err := poke("index", 100, 0xa5)(filepath.Join(parent, id), nil); err != nil {
			t.Fatal(err)
		}
		_, err = transfer.Download(t.Context(), inner, m.ULID, parent, transfer.Options{})
		if err == nil || !strings.Contains(err.Error(), "its SHA-256 is") {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(parent, id, "meta.json")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the broken block can be taken for one: %v", err)
		}
		if _, err := os.Stat(filepath.Join(parent, id+".tmp-for-download")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("half a download is left: %v", err)
		}
	})
}

// TestFixturesAreFit: what Thanos has uploaded is fit for a bucket, and an empty file of
// tombstones is nothing to mind.
func TestFixturesAreFit(t *testing.T) {
	dirs, err := filepath.Glob("../testdata/thanos/bucket-*/*")
	if err != nil || len(dirs) != 6 {
		t.Fatal(dirs, err)
	}
	for _, dir := range dirs {
		m, bkt := load(t, dir), objstore.NewInMemBucket()
		copied := filepath.Join(t.TempDir(), m.ULID.String())
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := tombstones.WriteFile(slog.New(slog.DiscardHandler), copied, tombstones.NewMemTombstones()); err != nil {
			t.Fatal(err)
		}
		up, err := transfer.Upload(t.Context(), bkt, copied, m, transfer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		up.Thanos.UploadTime = m.Thanos.UploadTime
		got, _ := up.Encode()
		want, _ := m.Encode()
		if string(got) != string(want) {
			t.Errorf("got %s, want %s", got, want)
		}
		if all := names(t, bkt); len(all) != 3 {
			t.Errorf("%q", all)
		}
	}
}

// TestFaulty: what the other tests look through is a bucket.
func TestFaulty(t *testing.T) {
	bkt, err := filesystem.NewBucket(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	objstore.AcceptanceTest(t, &faulty{Bucket: bkt})
}
