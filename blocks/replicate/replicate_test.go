// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package replicate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/meta"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var id = ulid.MustParse("01M7ZYC1STEW21SJ2T70SNVCXK")

func source(t *testing.T) objstore.Bucket {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../testdata/thanos/bucket-raw")); err != nil {
		t.Fatal(err)
	}
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		t.Fatal(err)
	}
	return bkt
}

// target counts uploads, and breaks one off.
type target struct {
	objstore.Bucket
	uploads []string
	breakAt int
	short   bool
}

var errKilled = errors.New("killed")

func (b *target) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	b.uploads = append(b.uploads, strings.TrimPrefix(name, id.String()+"/"))
	if len(b.uploads) != b.breakAt {
		return b.Bucket.Upload(ctx, name, r, opts...)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := b.Bucket.Upload(ctx, name, bytes.NewReader(data[:len(data)/2]), opts...); err != nil || b.short {
		return err
	}
	return errKilled
}

func content(t *testing.T, bkt objstore.Bucket, name string) []byte {
	t.Helper()
	r, err := bkt.Get(t.Context(), id.String()+"/"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestBlock(t *testing.T) {
	from, to := source(t), &target{Bucket: objstore.NewInMemBucket()}
	copied, err := Block(t.Context(), from, to, id)
	if want := "chunks/000001 index meta.json"; err != nil || !copied || strings.Join(to.uploads, " ") != want {
		t.Fatal(copied, err, to.uploads)
	}
	for _, name := range to.uploads {
		if !bytes.Equal(content(t, from, name), content(t, to, name)) {
			t.Errorf("%s differs", name)
		}
	}
	if copied, err := Block(t.Context(), from, to, id); err != nil || copied || len(to.uploads) != 3 {
		t.Error(copied, err, to.uploads)
	}
	if err := from.Upload(t.Context(), id.String()+"/"+meta.File, bytes.NewReader(append(content(t, from, meta.File), '\n'))); err != nil {
		t.Fatal(err)
	}
	if _, err := Block(t.Context(), from, to, id); !errors.Is(err, ErrDiffers) {
		t.Error(err)
	}
}

// TestBrokenOff: whichever object is broken off, meta.json is not there before all is, and the next attempt
// copies only what is missing.
func TestBrokenOff(t *testing.T) {
	for at := 1; at <= 2; at++ {
		for _, short := range []bool{false, true} {
			from, to := source(t), &target{Bucket: objstore.NewInMemBucket(), breakAt: at, short: short}
			if _, err := Block(t.Context(), from, to, id); err == nil {
				t.Fatal("it was not noticed")
			}
			if there, err := to.Exists(t.Context(), id.String()+"/"+meta.File); err != nil || there {
				t.Fatal(there, err)
			}
			to.uploads, to.breakAt = nil, -1
			if copied, err := Block(t.Context(), from, to, id); err != nil || !copied || len(to.uploads) != 4-at {
				t.Error(copied, err, to.uploads)
			}
			if !bytes.Equal(content(t, from, "index"), content(t, to, "index")) {
				t.Error("index differs")
			}
		}
	}
}

func TestSourceIsNotWhole(t *testing.T) {
	for name, spoil := range map[string]func(bkt objstore.Bucket) error{
		"no segment": func(bkt objstore.Bucket) error { return bkt.Delete(t.Context(), id.String()+"/chunks/000001") },
		"no index":   func(bkt objstore.Bucket) error { return bkt.Delete(t.Context(), id.String()+"/index") },
		"short index": func(bkt objstore.Bucket) error {
			return bkt.Upload(t.Context(), id.String()+"/index", strings.NewReader("x"))
		},
		"corrupt meta": func(bkt objstore.Bucket) error {
			return bkt.Upload(t.Context(), id.String()+"/meta.json", strings.NewReader("{"))
		},
	} {
		from, to := source(t), objstore.NewInMemBucket()
		if err := spoil(from); err != nil {
			t.Fatal(err)
		}
		if _, err := Block(t.Context(), from, to, id); err == nil || !strings.Contains(err.Error(), id.String()) {
			t.Errorf("%s: %v", name, err)
		}
		if there, _ := to.Exists(t.Context(), id.String()+"/"+meta.File); there {
			t.Errorf("%s: the target has the block", name)
		}
	}
}
