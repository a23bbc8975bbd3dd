// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package downsample

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/fileutil"
	"github.com/prometheus/prometheus/tsdb/index"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/sdk/backend"
)

const (
	first  = "01M7ZYC1STEW21SJ2T70SNVCXK"
	second = "01M7ZYC52JECNQ4F55W1Y2QEYW"
)

// writeBlock makes a raw block of the chunks of series a, b, …
func writeBlock(t testing.TB, series ...[]stored) (*meta.Meta, string) {
	t.Helper()
	dir := t.TempDir()
	cw, err := chunks.NewWriter(filepath.Join(dir, meta.ChunksDir))
	if err != nil {
		t.Fatal(err)
	}
	iw, err := index.NewWriter(context.Background(), filepath.Join(dir, meta.IndexFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"a", "b", "c", "name"} {
		if err := iw.AddSymbol(s); err != nil {
			t.Fatal(err)
		}
	}
	m := &meta.Meta{BlockMeta: tsdb.BlockMeta{ULID: ulid.MustParse(first), Version: 1, MaxTime: 1 << 40, Compaction: tsdb.BlockMetaCompaction{
		Level: 3, Sources: []ulid.ULID{ulid.MustParse(first), ulid.MustParse(second)}, Parents: []tsdb.BlockDesc{{ULID: ulid.MustParse(second), MaxTime: 7}},
	}}}
	m.Thanos.Labels = map[string]string{"cluster": "x"}
	for i, s := range series {
		var metas []chunks.Meta
		for _, c := range s {
			chunk, err := aggregate.NewPool().Get(c.Encoding, c.Data)
			if err != nil {
				t.Fatal(err)
			}
			metas = append(metas, chunks.Meta{MinTime: c.minTime, MaxTime: c.maxTime, Chunk: chunk})
		}
		if err := cw.WriteChunks(metas...); err != nil {
			t.Fatal(err)
		}
		if err := iw.AddSeries(storage.SeriesRef(i), labels.FromStrings("name", string(rune('a'+i))), metas...); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(cw.Close(), iw.Close()); err != nil {
		t.Fatal(err)
	}
	return m, dir
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// TestLeftOut: series with custom buckets and series of nothing are not in the new block, and
// are counted and told; what there is besides is.
func TestLeftOut(t *testing.T) {
	m, dir := writeBlock(t,
		[]stored{xor(point{1, 1}), custom(t, 200)},
		[]stored{xor(point{1, staleNaN}, point{2, staleNaN})},
		[]stored{xor(point{1, 1}, point{300_000, 4})})
	out := t.TempDir()
	var log bytes.Buffer
	var stats Stats
	got, err := Block(t.Context(), m, dir, out, meta.FiveMinutes, Options{Stats: &stats, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if stats != (Stats{Written: 1, Empty: 1, CustomBuckets: 1}) {
		t.Errorf("%+v", stats)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 2 || !strings.Contains(log.String(), `name=\"a\"`) || !strings.Contains(log.String(), first) {
		t.Errorf("%d warnings: %s", n, &log)
	}
	s := readBlock(t, filepath.Join(out, got.ULID.String()))
	if len(s) != 1 || s[0].labels != `{name="c"}` || len(s[0].chunks) != 1 {
		t.Errorf("%+v", s)
	}
	if st := got.Stats; st.NumSeries != 1 || st.NumChunks != 1 || st.NumSamples != 2 {
		t.Errorf("%+v", st)
	}
	if !reflect.DeepEqual(got.Compaction, m.Compaction) || got.MinTime != m.MinTime || got.MaxTime != m.MaxTime || got.Thanos.Source != meta.SourceCompactor || !reflect.DeepEqual(got.Thanos.Labels, m.Thanos.Labels) {
		t.Errorf("what has to be inherited is not: %+v", got)
	}
	if m.ULID.String() != first || m.Resolution() != 0 {
		t.Error("the meta of the source has changed")
	}
}

// TestNothing: a block without any series to write is a block all the same; so nobody tries again.
func TestNothing(t *testing.T) {
	m, dir := writeBlock(t, []stored{custom(t, 1)})
	m.MaxTime = m.MinTime + minRaw
	out := t.TempDir()
	got, err := Block(t.Context(), m, dir, out, meta.FiveMinutes, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if s := readBlock(t, filepath.Join(out, got.ULID.String())); len(s) != 0 || got.Stats.NumSeries != 0 || len(got.Thanos.SegmentFiles) != 0 || len(got.Thanos.Files) != 2 {
		t.Errorf("%v %+v", s, got)
	}
	if jobs := Wanted([]*meta.Meta{m}, nil); len(jobs) != 1 {
		t.Errorf("%+v", jobs)
	}
	if jobs := Wanted([]*meta.Meta{m, got}, nil); len(jobs) != 0 {
		t.Errorf("%+v", jobs)
	}
}

// TestSegments: over several segment files the chunks are the same.
func TestSegments(t *testing.T) {
	dir := filepath.Join(rawBlocks, first)
	out := t.TempDir()
	var all [2][]blockSeries
	for i, bytes := range []int64{0, 100_000} {
		m, err := Block(t.Context(), readMeta(t, dir), dir, out, meta.FiveMinutes, Options{SegmentBytes: bytes})
		if err != nil {
			t.Fatal(err)
		}
		all[i] = readBlock(t, filepath.Join(out, m.ULID.String()))
		if n := len(m.Thanos.SegmentFiles); n != []int{1, 13}[i] || m.Thanos.SegmentFiles[n-1] != fmt.Sprintf("%06d", n) {
			t.Errorf("segments %v", m.Thanos.SegmentFiles)
		}
		for i := range all {
			for k := range all[i] {
				for j := range all[i][k].chunks {
					all[i][k].chunks[j].ref = 0
				}
			}
		}
	}
	if !reflect.DeepEqual(all[0], all[1]) {
		t.Error("the chunks differ")
	}
	if n := names(t, out); len(n) != 2 {
		t.Errorf("%v in the directory, not two blocks", n)
	}
}

// TestBothSteps: of a block that we made another one is made.
func TestBothSteps(t *testing.T) {
	dir, out := filepath.Join(rawBlocks, first), t.TempDir()
	fine, err := Block(t.Context(), readMeta(t, dir), dir, out, meta.FiveMinutes, Options{})
	if err != nil {
		t.Fatal(err)
	}
	coarse, err := Block(t.Context(), fine, filepath.Join(out, fine.ULID.String()), out, meta.OneHour, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want, got := readBlock(t, filepath.Join(downsampled, thanos[0][2])), readBlock(t, filepath.Join(out, coarse.ULID.String()))
	equal, differ := 0, map[string]int{}
	for i := range want {
		for k, c := range want[i].chunks {
			if bytes.Equal(c.Data, got[i].chunks[k].Data) {
				equal++
			} else {
				differ[want[i].labels]++
			}
		}
	}
	if equal != 133 || len(differ) != 2 || coarse.Resolution() != meta.OneHour {
		t.Errorf("%d chunks are Thanos', not so are %v", equal, differ)
	}
}

// TestCorruptBlocks: the error names block, series and chunk, and nothing is left behind.
func TestCorruptBlocks(t *testing.T) {
	flip := func(name string, at int64) func(dir string) {
		return func(dir string) {
			name := filepath.Join(dir, name)
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if at < 0 {
				at += int64(len(data))
			}
			data[at] ^= 0x10
			if err := os.WriteFile(name, data, 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	good := []stored{xor(point{1, 1}, point{2, 2}), xor(point{3, 1}, point{9, 2})}
	for _, c := range []struct {
		name   string
		series []stored
		spoil  func(dir string)
		want   []string
	}{
		{"checksum", good, flip("chunks/000001", -1), []string{`series {name="b"}: the chunk from 3 to 9 at byte `, "segment 000001", "checksum"}},
		{"data", good, flip("chunks/000001", -6), []string{`series {name="b"}: the chunk from 3 to 9 at byte `, "checksum"}},
		{"chunk", []stored{good[0], {minTime: 3, maxTime: 4, Encoded: backend.Encoded{Encoding: chunkenc.EncXOR, Data: []byte{0, 9, 1}}}}, nil, []string{`series {name="b"}: the chunk from 3 to 4 at byte `, "EOF"}},
		{"overlap", []stored{good[0], {minTime: 3, maxTime: 9, Encoded: xor(point{2, 1}, point{9, 1}).Encoded}}, nil, []string{`series {name="b"}: the chunk from 3 to 9 at byte `, "a sample at 2"}},
		{"aggregate", []stored{{minTime: 3, maxTime: 9, Encoded: backend.Encoded{Encoding: aggregate.Encoding, Data: make([]byte, 5)}}}, nil, []string{`series {name="b"}: the chunk from 3 to 9 at byte `, "an aggregate chunk in a raw block"}},
		{"index", good, flip("index", -1), []string{"its index", "checksum"}},
		{"no chunks", good, func(dir string) {
			if err := os.Remove(filepath.Join(dir, "chunks/000001")); err != nil {
				t.Fatal(err)
			}
		}, []string{`series {name="a"}: the chunk from 1 to 1 at byte 8 of segment 000001: `, "out of range"}},
		{"no index", good, func(dir string) {
			if err := os.Remove(filepath.Join(dir, "index")); err != nil {
				t.Fatal(err)
			}
		}, []string{"its index", "no such file"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, dir := writeBlock(t, []stored{xor(point{1, 1})}, c.series)
			if c.spoil != nil {
				c.spoil(dir)
			}
			out := t.TempDir()
			got, err := Block(t.Context(), m, dir, out, meta.FiveMinutes, Options{})
			if err == nil || got != nil {
				t.Fatal("no error")
			}
			for _, want := range append(c.want, "downsample block "+first+": ") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("want an error with %q, got %v", want, err)
				}
			}
			if n := names(t, out); len(n) != 0 {
				t.Errorf("%v is left", n)
			}
		})
	}
}

func TestNoSuchStep(t *testing.T) {
	m, dir := writeBlock(t, []stored{xor(point{1, 1})})
	for _, c := range [][2]int64{{0, 0}, {0, meta.OneHour}, {0, 60_000}, {meta.FiveMinutes, meta.FiveMinutes}, {meta.OneHour, 2 * meta.OneHour}, {meta.OneHour, 0}} {
		m.Thanos.Downsample.Resolution = c[0]
		if _, err := Block(t.Context(), m, dir, t.TempDir(), c[1], Options{}); err == nil || !strings.Contains(err.Error(), "not a step") {
			t.Errorf("from %d to %d: %v", c[0], c[1], err)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m, dir := writeBlock(t, []stored{xor(point{1, 1})})
	out := t.TempDir()
	if _, err := Block(ctx, m, dir, out, meta.FiveMinutes, Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := names(t, out); len(n) != 0 {
		t.Errorf("%v is left", n)
	}
}

// TestUnfinished: what a process left that died is removed by the next, under a name that nobody
// takes for a block; what another one works on is not touched, and blocks neither.
func TestUnfinished(t *testing.T) {
	m, dir := writeBlock(t, []stored{xor(point{1, 1})})
	out := t.TempDir()
	ids := []string{"01M7ZYCQSY2DRZV8HZV11GRFWG", "01M7ZYCQXH093FB6H0XR2T0SHJ", "01M7ZYCR10SFW94Q4QKKNJEQDC", "01M7ZYCR2CT37VR2QD8MFD7GJM"}
	mkdir := func(name string) {
		if err := os.MkdirAll(filepath.Join(out, name, "chunks"), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	dead, alive, only, finished := ids[0]+creating, ids[1]+creating, ids[2]+locked, ids[3]
	mkdir(dead)
	mkdir(alive)
	mkdir(finished)
	mkdir("other" + creating)
	for _, name := range []string{dead + ".lock", only} {
		if err := os.WriteFile(filepath.Join(out, name), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := meta.IDFromName(dead); ok {
		t.Error("an unfinished block is taken for a block")
	}
	release, _, err := fileutil.Flock(filepath.Join(out, ids[1]+locked))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Block(t.Context(), m, dir, out, meta.FiveMinutes, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{alive, ids[1] + locked, finished, got.ULID.String(), "other" + creating}
	if n := names(t, out); !reflect.DeepEqual(n, want) {
		t.Errorf("%v is there, want %v", n, want)
	}
	if err := release.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := Block(t.Context(), m, dir, out, meta.FiveMinutes, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if n := names(t, out); len(n) != 4 || again.ULID == got.ULID {
		t.Errorf("%v is there", n)
	}
}

// TestAtOnce: several at a time in one directory do not remove each other's.
func TestAtOnce(t *testing.T) {
	m, dir := writeBlock(t, []stored{xor(point{1, 1})})
	out := t.TempDir()
	const n = 8
	errs := make(chan error, n)
	for range n {
		go func() {
			_, err := Block(t.Context(), m, dir, out, meta.FiveMinutes, Options{})
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := names(t, out); len(got) != n {
		t.Errorf("%v is there", got)
	}
}
