// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package transfer_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
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
		"no labels":    {func(_ string, m *meta.Meta) error { m.Thanos.Labels = nil; return nil }, "no external labels"},
		"no index":     {func(dir string, _ *meta.Meta) error { return os.Remove(filepath.Join(dir, "index")) }, "index"},
		"index 3":      {poke("index", 4, 3), "version 1 or 2"},
		"no magic":     {poke("chunks/000001", 0, 0), "want a segment"},
		"an encoding":  {poke("chunks/000001", 9, 4), "encoding 4, which Thanos does not read"},
		"aggregates":   {poke("chunks/000001", 9, 0xff), "encoding 255"},
		"a short file": {func(dir string, _ *meta.Meta) error { return os.Truncate(filepath.Join(dir, "chunks/000001"), 1000) }, "ends at byte"},
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
