// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore/providers/filesystem"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/backends/bucket"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/conformance"
	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/corpus/export"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// list is a source that does not change.
type list []*meta.Meta

func (l list) Blocks() []*meta.Meta { return l }

// listed reads the metas of a directory that is a bucket.
func listed(t testing.TB, dir string) (out list) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name(), meta.File))
		if err != nil {
			t.Fatal(err)
		}
		m, err := meta.Parse(ulid.MustParse(e.Name()), data)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func open(t testing.TB, dir string) *bucket.Backend {
	t.Helper()
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bucket.New(bkt, listed(t, dir), bucket.Config{Dir: t.TempDir()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// TestConformance certifies the backend over blocks with one set of external labels, and over
// two replicas.
func TestConformance(t *testing.T) {
	for name, externals := range map[string][]labels.Labels{
		"one":      {labels.FromStrings("cluster", "eu1", "replica", "a")},
		"replicas": {labels.FromStrings("cluster", "eu1", "replica", "a"), labels.FromStrings("cluster", "eu1", "replica", "b")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := corpus.New(corpus.Options{})
			c = c.Only(corpus.Base, corpus.Names, corpus.LabelText, corpus.Collisions, corpus.Values, corpus.Stale, corpus.Times, corpus.Wide, corpus.Histograms, corpus.Downsampled)
			for _, ext := range externals {
				if _, err := export.WriteBlocks(context.Background(), dir, c, ext); err != nil {
					t.Fatal(err)
				}
				if _, err := export.WriteDownsampled(context.Background(), dir, c, ext); err != nil {
					t.Fatal(err)
				}
			}
			conformance.Run(t, &conformance.Subject{
				Name: "bucket", Launch: "in process", Backend: open(t, dir), Corpus: c, LoadedBy: "blocks", InProcess: true,
			})
		})
	}
}
