// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucketstore

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore/providers/filesystem"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/view"
	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/corpus/export"
	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, dir string) (*Store, error) {
	t.Helper()
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		t.Fatal(err)
	}
	return Open(t.Context(), bkt, Config{Dir: t.TempDir(), SyncInterval: 20 * time.Millisecond, Policy: view.Policy{DeletionDelay: 24 * time.Hour}}, slog.New(slog.DiscardHandler))
}

func count(t testing.TB, s *Store) (n int) {
	t.Helper()
	for b, err := range s.Series(t.Context(), &backend.SeriesRequest{MaxTime: 1 << 45, SkipChunks: true, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "__name__", "cert_matrix")}}) {
		if err != nil {
			t.Fatal(err)
		}
		n += b.Len()
	}
	return n
}

// TestStore: what is in the bucket is served, what comes is found, and what goes goes.
func TestStore(t *testing.T) {
	dir := t.TempDir()
	s, err := open(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if info, err := s.Info(t.Context()); err != nil || len(info.LabelSets) != 0 || info.MinTime <= info.MaxTime {
		t.Errorf("an empty bucket: %+v, %v", info, err)
	}
	if n := count(t, s); n != 0 {
		t.Errorf("%d series", n)
	}
	c := corpus.New(corpus.Options{}).Only(corpus.Base)
	// They are put there whole: an upload writes meta.json last.
	made := t.TempDir()
	ids, err := export.WriteBlocks(context.Background(), made, c, labels.FromStrings("cluster", "eu1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if err := os.Rename(filepath.Join(made, id), filepath.Join(dir, id)); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for count(t, s) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("new blocks are not found")
		}
		time.Sleep(10 * time.Millisecond)
	}
	info, err := s.Info(t.Context())
	if err != nil || len(info.LabelSets) != 1 || info.LabelSets[0].Get("cluster") != "eu1" || info.MinTime > c.Start {
		t.Errorf("%+v, %v", info, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name(), "meta.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	for len(s.Blocks()) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("blocks that are gone are still there")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
