// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/promweave/promweave/backends/bucket"
	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/corpus/export"
	"github.com/promweave/promweave/sdk/backend"
)

// answered is what a request comes to: chunks by series, and the texts of notices.
func answered(ctx context.Context, b backend.Backend, partial bool) (chunks map[string]int, notices []string, err error) {
	chunks = map[string]int{}
	req := &backend.SeriesRequest{MinTime: 0, MaxTime: 1 << 45, PartialAllowed: partial, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, "__name__", "cert_.+")}}
	for batch, err := range b.Series(ctx, req) {
		if err != nil {
			return chunks, notices, err
		}
		for _, n := range batch.Notices() {
			notices = append(notices, n.Text)
		}
		for i := range batch.Len() {
			s := batch.At(i)
			chunks[s.Labels.String()] += len(s.Chunks)
		}
	}
	return chunks, notices, nil
}

// TestFaults: whatever is wrong with an object of one block, the answer lacks that block and says
// which, or there is none; what comes of the others is right.
func TestFaults(t *testing.T) {
	dir := t.TempDir()
	ids, err := export.WriteBlocks(t.Context(), dir, corpus.New(corpus.Options{}).Only(corpus.Base), labels.FromStrings("cluster", "eu1"))
	if err != nil || len(ids) < 2 {
		t.Fatal(ids, err)
	}
	whole, _, err := answered(t.Context(), open(t, dir), false)
	if err != nil {
		t.Fatal(err)
	}
	bad := ids[1]
	hidden := t.TempDir() // what there is without the block
	for _, id := range ids {
		if id != bad {
			if err := os.CopyFS(filepath.Join(hidden, id), os.DirFS(filepath.Join(dir, id))); err != nil {
				t.Fatal(err)
			}
		}
	}
	without, _, err := answered(t.Context(), open(t, hidden), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range []string{"index", "chunks/000001"} {
		file := filepath.Join(dir, bad, object)
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for name, spoil := range map[string]func() error{
			"gone":      func() error { return os.Remove(file) },
			"empty":     func() error { return os.WriteFile(file, nil, 0o644) },
			"half":      func() error { return os.WriteFile(file, good[:len(good)/2], 0o644) },
			"cut short": func() error { return os.WriteFile(file, good[:len(good)-1], 0o644) },
			"flipped": func() error {
				x := slices.Clone(good)
				for i := range x {
					x[i] ^= 0x10
				}
				return os.WriteFile(file, x, 0o644)
			},
		} {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			if object == "chunks/000001" && name == "cut short" {
				// The last byte may be one that nobody asks for.
				name = ""
			}
			_, _, err := answered(t.Context(), open(t, dir), false)
			if name != "" && (!errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), bad)) {
				t.Errorf("%s %s: %v", object, name, err)
			}
			got, notices, err := answered(t.Context(), open(t, dir), true)
			if err != nil {
				t.Errorf("%s %s: %v", object, name, err)
			}
			if name != "" && !slices.ContainsFunc(notices, func(s string) bool { return strings.Contains(s, bad) }) {
				t.Errorf("%s %s: notices %q", object, name, notices)
			}
			for series, n := range without {
				if got[series] < n {
					t.Errorf("%s %s: %d chunks of %s, the other blocks have %d", object, name, got[series], series, n)
				}
			}
			for series, n := range got {
				if n > whole[series] {
					t.Errorf("%s %s: %d chunks of %s, and there are %d", object, name, n, series, whole[series])
				}
			}
			if err := os.WriteFile(file, good, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestMaxBytes: the limit is on all blocks of a request together.
func TestMaxBytes(t *testing.T) {
	dir := t.TempDir()
	if _, err := export.WriteBlocks(t.Context(), dir, corpus.New(corpus.Options{}).Only(corpus.Base), labels.FromStrings("cluster", "eu1")); err != nil {
		t.Fatal(err)
	}
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(most int64) error {
		b, err := bucket.New(bkt, listed(t, dir), bucket.Config{Dir: t.TempDir(), MaxBytes: most}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		_, _, err = answered(t.Context(), b, true)
		return err
	}
	low, high := int64(0), int64(1<<30)
	for high-low > 1 {
		if mid := (low + high) / 2; ask(mid) == nil {
			high = mid
		} else {
			low = mid
		}
	}
	if err := ask(low); !errors.Is(err, backend.ErrLimit) || !strings.Contains(err.Error(), "max_request_bytes") {
		t.Errorf("%d bytes: %v", low, err)
	}
	if err := ask(0); err != nil {
		t.Errorf("no limit: %v", err)
	}
	// One block alone costs less than all of them.
	if size := high; size < 10_000 {
		t.Errorf("all of it costs %d bytes", size)
	}
}
