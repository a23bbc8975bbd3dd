// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package compact_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/compact"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/verify"
)

// read reads the blocks below a directory.
func read(t testing.TB, dir string) (out []compact.Input) {
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
		out = append(out, compact.Input{Meta: m, Dir: filepath.Join(dir, e.Name())})
	}
	if len(out) == 0 {
		t.Fatalf("%s has no blocks", dir)
	}
	return out
}

// lines are the series of a block, each with its chunks, down to their bytes.
func lines(t testing.TB, dir string) (out []string) {
	t.Helper()
	b, err := tsdb.OpenBlock(nil, dir, aggregate.NewPool(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ir, err := b.Index()
	if err != nil {
		t.Fatal(err)
	}
	defer ir.Close()
	cr, err := b.Chunks()
	if err != nil {
		t.Fatal(err)
	}
	defer cr.Close()
	name, value := index.AllPostingsKey()
	p, err := ir.Postings(t.Context(), name, value)
	if err != nil {
		t.Fatal(err)
	}
	var lb labels.ScratchBuilder
	var list []chunks.Meta
	for p.Next() {
		if err := ir.Series(p.At(), &lb, &list); err != nil {
			t.Fatal(err)
		}
		line := lb.Labels().String()
		for _, c := range list {
			chk, _, err := cr.ChunkOrIterable(c)
			if err != nil {
				t.Fatal(err)
			}
			line += fmt.Sprintf(" [%d %d %d %x]", c.MinTime, c.MaxTime, chk.Encoding(), chk.Bytes())
		}
		out = append(out, line)
	}
	return out
}

// compactAll plans and merges until there is nothing to do, and returns what is left.
func compactAll(t testing.TB, inputs []compact.Input, o compact.Options) []compact.Input {
	t.Helper()
	out := t.TempDir()
	dirs := map[ulid.ULID]string{}
	var list []*meta.Meta
	for _, in := range inputs {
		dirs[in.Meta.ULID] = in.Dir
		list = append(list, in.Meta)
	}
	for again := true; again; {
		again = false
		for _, g := range compact.Groups(list) {
			p := compact.Next(g, nil, compact.Ranges())
			if len(p.Blocks) == 0 {
				continue
			}
			again = true
			var in []compact.Input
			for _, m := range p.Blocks {
				in = append(in, compact.Input{Meta: m, Dir: dirs[m.ULID]})
			}
			m, err := compact.Merge(t.Context(), in, out, o)
			if err != nil {
				t.Fatal(err)
			}
			dirs[m.ULID] = filepath.Join(out, m.ULID.String())
			list = append(slices.DeleteFunc(list, func(m *meta.Meta) bool { return slices.Contains(p.Blocks, m) }), m)
		}
	}
	var left []compact.Input
	for _, g := range compact.Groups(list) {
		for _, m := range g.Blocks {
			left = append(left, compact.Input{Meta: m, Dir: dirs[m.ULID]})
		}
	}
	return left
}

// TestAsThanos: of the same twelve blocks of two replicas, whose label is taken away, Thanos'
// compactor made the same four blocks, down to the bytes of the chunks.
func TestAsThanos(t *testing.T) {
	inputs := read(t, "../testdata/thanos/compaction/input")
	for _, in := range inputs {
		delete(in.Meta.Thanos.Labels, "replica")
	}
	got := compactAll(t, inputs, compact.Options{Vertical: true})
	want := read(t, "../testdata/thanos/compaction/default")
	slices.SortFunc(want, func(a, b compact.Input) int { return int(a.Meta.MinTime - b.Meta.MinTime) })
	if len(got) != len(want) {
		t.Fatalf("%d blocks, want %d", len(got), len(want))
	}
	for i := range want {
		g, w := got[i].Meta, want[i].Meta
		if g.MinTime != w.MinTime || g.MaxTime != w.MaxTime || g.Stats != w.Stats || g.Compaction.Level != w.Compaction.Level || !slices.Equal(g.Compaction.Sources, w.Compaction.Sources) ||
			g.Thanos.Source != w.Thanos.Source || g.Stream() != w.Stream() || !slices.Equal(g.Thanos.SegmentFiles, w.Thanos.SegmentFiles) {
			t.Errorf("meta.json\ngot  %+v\nwant %+v", g, w)
		}
		for k, f := range w.Thanos.Files {
			if f.SizeBytes != g.Thanos.Files[k].SizeBytes || f.RelPath != g.Thanos.Files[k].RelPath {
				t.Errorf("file %+v, want %+v", g.Thanos.Files[k], f)
			}
		}
		if gl, wl := lines(t, got[i].Dir), lines(t, want[i].Dir); !slices.Equal(gl, wl) {
			t.Errorf("block %d: the series are not the same: %d and %d", i, len(gl), len(wl))
		}
		if f, err := verify.Block(t.Context(), got[i].Dir, g, verify.Options{Chunks: true}); err != nil || f.Err(g) != nil {
			t.Error(err, f.Err(g))
		}
		for _, name := range []string{"index", "chunks/000001"} {
			a, err1 := os.ReadFile(filepath.Join(got[i].Dir, name))
			b, err2 := os.ReadFile(filepath.Join(want[i].Dir, name))
			if err1 != nil || err2 != nil || string(a) != string(b) {
				t.Errorf("%s of block %d is not the same, byte for byte: %v %v", name, i, err1, err2)
			}
		}
	}
}

// TestDownsampled: blocks of aggregates one after the other become one, in which every chunk is
// as it was; those that overlap are refused.
func TestDownsampled(t *testing.T) {
	var five []compact.Input
	for _, in := range read(t, "../testdata/thanos/bucket-downsampled-extra") {
		if in.Meta.Resolution() == meta.FiveMinutes {
			delete(in.Meta.Thanos.Labels, "replica")
			five = append(five, in)
		}
	}
	if _, err := compact.Merge(t.Context(), five, t.TempDir(), compact.Options{Vertical: true}); !errors.Is(err, compact.ErrDownsampledOverlap) {
		t.Errorf("two replicas: %v", err)
	}
	out := t.TempDir()
	m, err := compact.Merge(t.Context(), five[:1], out, compact.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(out, m.ULID.String())
	if got, want := lines(t, dir), lines(t, five[0].Dir); !slices.Equal(got, want) {
		t.Error("the chunks changed")
	}
	if m.Resolution() != meta.FiveMinutes || m.Compaction.Level != 2 || m.Thanos.Labels["cluster"] != "eu1" {
		t.Errorf("%+v", m)
	}
}

// TestRefused: what must not be merged, and what is broken, is named, and nothing is left.
func TestRefused(t *testing.T) {
	all := read(t, "../testdata/thanos/compaction/input")
	without := func(in compact.Input) compact.Input {
		m := in.Meta.Clone()
		delete(m.Thanos.Labels, "replica")
		return compact.Input{Meta: m, Dir: in.Dir}
	}
	broken := func(file string, change func([]byte) []byte) compact.Input {
		dir := filepath.Join(t.TempDir(), all[1].Meta.ULID.String())
		if err := os.CopyFS(dir, os.DirFS(all[1].Dir)); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), change(data), 0o644); err != nil {
			t.Fatal(err)
		}
		return compact.Input{Meta: all[1].Meta, Dir: dir}
	}
	twin := compact.Input{Meta: all[0].Meta.Clone(), Dir: all[0].Dir}
	twin.Meta.ULID = ulid.MustNew(1, nil)
	twin.Meta.MinTime, twin.Meta.MaxTime = twin.Meta.MaxTime, twin.Meta.MaxTime+1
	for name, c := range map[string]struct {
		in   []compact.Input
		want error
		text string
	}{
		"nothing":       {nil, nil, "no blocks"},
		"two streams":   {[]compact.Input{all[0], without(all[1])}, nil, "two streams"},
		"overlap":       {[]compact.Input{without(all[0]), without(all[6])}, compact.ErrOverlap, all[6].Meta.ULID.String()},
		"shared source": {[]compact.Input{all[0], twin}, compact.ErrSharedSources, "were both made of " + all[0].Meta.ULID.String()},
		"short index":   {[]compact.Input{all[0], broken("index", func(b []byte) []byte { return b[:len(b)/2] })}, verify.ErrBroken, all[1].Meta.ULID.String()},
		"a chunk": {[]compact.Input{without(all[0]), func() compact.Input {
			// Read only where blocks overlap, or copied as it is and found by whoever reads it.
			in := without(broken("chunks/000001", func(b []byte) []byte { return b[:len(b)-20] }))
			return in
		}()}, nil, all[1].Meta.ULID.String()},
	} {
		out := t.TempDir()
		_, err := compact.Merge(t.Context(), c.in, out, compact.Options{})
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		if entries, _ := os.ReadDir(out); len(entries) > 0 {
			t.Errorf("%s: %s is left", name, entries[0].Name())
		}
	}
	if again := read(t, "../testdata/thanos/compaction/input"); again[0].Meta.Stream() != all[0].Meta.Stream() || again[0].Meta.Compaction.Failed {
		t.Error("an input was written to")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := compact.Merge(ctx, all[:2], t.TempDir(), compact.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}
