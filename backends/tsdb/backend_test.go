// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package tsdb

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/promweave/promweave/sdk/backend"
)

// TestExternalLabels runs testdata/external_labels over a read-only and over a
// writable backend.
func TestExternalLabels(t *testing.T) {
	for _, mode := range []string{"read-only", "writable"} {
		t.Run(mode, func(t *testing.T) {
			var b *Backend
			datadriven.RunTest(t, "testdata/external_labels", func(t *testing.T, d *datadriven.TestData) string {
				if d.Cmd == "store" {
					b = storeOf(t, d, mode == "writable")
					return ""
				}
				return answers(t, b, d)
			})
		})
	}
}

// argument is what the test file gives for a key.
func argument(d *datadriven.TestData, key string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key && len(a.Vals) > 0 {
			return strings.Join(a.Vals, ",")
		}
	}
	return ""
}

func number(t *testing.T, d *datadriven.TestData, key string, otherwise int64) int64 {
	v := argument(d, key)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func selector(t *testing.T, s string) []*labels.Matcher {
	t.Helper()
	if s == "-" {
		return nil
	}
	// A selector by itself must not be able to match everything; a bare set of
	// matchers may.
	ms, err := parser.ParseMetricSelector(s)
	if err != nil {
		e, err2 := parser.ParseExpr(`x` + s)
		if err2 != nil {
			t.Fatal(err, err2)
		}
		ms = slices.DeleteFunc(e.(*parser.VectorSelector).LabelMatchers, func(m *labels.Matcher) bool { return m.Name == model.MetricNameLabel })
	}
	return ms
}

func labelsOf(t *testing.T, s string) labels.Labels {
	t.Helper()
	ls := labels.NewScratchBuilder(2)
	for _, m := range selector(t, s) {
		ls.Add(m.Name, m.Value)
	}
	ls.Sort()
	return ls.Labels()
}

func storeOf(t *testing.T, d *datadriven.TestData, writable bool) *Backend {
	t.Helper()
	dir := t.TempDir()
	_, arg, _ := strings.Cut(d.CmdArgs[0].String(), "=")
	_ = arg
	ext := labelsOf(t, "{"+strings.Trim(strings.TrimPrefix(strings.TrimSpace(firstLine(d)), "store ext="), "{}")+"}")
	own, err := OpenWritable(Config{Path: dir, ExternalLabels: ext}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Close() })
	app := own.Appendable().Appender(t.Context())
	for i, line := range strings.Split(d.Input, "\n") {
		if line == "" {
			continue
		}
		if _, err := app.Append(0, labelsOf(t, line), 1000, float64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
	if writable {
		return own
	}
	return open(t, dir, ext)
}

// firstLine is the command line itself, which datadriven does not keep: label
// sets are in it with their braces.
func firstLine(d *datadriven.TestData) string {
	path, line, _ := strings.Cut(d.Pos, ":")
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	n, err := strconv.Atoi(line)
	if err != nil {
		return ""
	}
	return strings.Split(string(raw), "\n")[n-1]
}

func answers(t *testing.T, b *Backend, d *datadriven.TestData) string {
	t.Helper()
	mint, maxt := number(t, d, "mint", math.MinInt64), number(t, d, "maxt", math.MaxInt64)
	var without []string
	if w := argument(d, "without"); w != "" {
		without = strings.Split(w, ",")
	}
	limit := int(number(t, d, "limit", 0))
	var shard *backend.Shard
	if s := argument(d, "shard"); s != "" {
		shard = &backend.Shard{}
		if _, err := fmt.Sscanf(s, "%d/%d", &shard.Index, &shard.Total); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	for _, line := range strings.Split(d.Input, "\n") {
		var got []string
		switch d.Cmd {
		case "names":
			l, err := b.LabelNames(t.Context(), &backend.LabelNamesRequest{
				MinTime: mint, MaxTime: maxt, Matchers: selector(t, line), WithoutReplicaLabels: without, Limit: limit,
			})
			if err != nil {
				return "error: " + backend.Kind(err).Error()
			}
			got = l.Values
		case "values":
			l, err := b.LabelValues(t.Context(), &backend.LabelValuesRequest{
				Name: argument(d, "name"), MinTime: mint, MaxTime: maxt, Matchers: selector(t, line), WithoutReplicaLabels: without, Limit: limit,
			})
			if err != nil {
				return "error: " + backend.Kind(err).Error()
			}
			got = l.Values
		case "series", "matrix":
			req := &backend.SeriesRequest{
				MinTime: mint, MaxTime: maxt, Matchers: selector(t, line), WithoutReplicaLabels: without, Limit: limit,
				Shard: shard, SkipChunks: d.HasArg("skip"),
			}
			var last labels.Labels
			for batch, err := range b.Series(t.Context(), req) {
				if err != nil {
					return "error: " + err.Error()
				}
				for i := range batch.Len() {
					s := batch.At(i)
					if (len(s.Chunks) == 0) != req.SkipChunks {
						t.Fatalf("%s has %d chunks", s.Labels, len(s.Chunks))
					}
					if labels.Equal(last, s.Labels) {
						continue // another piece
					}
					last = s.Labels
					got = append(got, s.Labels.String())
				}
			}
		default:
			t.Fatalf("%s: no such command", d.Pos)
		}
		if d.Cmd == "matrix" {
			ids := map[string]string{
				`{n="1", region="eu-west"}`: "1", `{i="a", n="1", region="eu-west"}`: "2", `{i="b", n="1", region="eu-west"}`: "3",
				`{n="2", region="eu-west"}`: "4", `{n="2.5", region="eu-west"}`: "5",
			}
			for i := range got {
				got[i] = ids[got[i]]
			}
			if len(got) == 0 {
				got = []string{"none"}
			}
		}
		if len(got) == 0 {
			got = []string{"(none)"}
		}
		fmt.Fprintf(&out, "%s: %s\n", line, strings.Join(got, " "))
	}
	return out.String()
}

// tree is every file with its size and time of change.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		out[path] = fmt.Sprint(st.Mode(), st.Size(), st.ModTime().UnixNano())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestWritesNothing takes the permission to write away and compares the tree.
func TestWritesNothing(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir)
	w.write(2000*hour, 2006*hour)
	w.compact()
	w.write(2006*hour, 2007*hour)
	if err := w.db.Close(); err != nil {
		t.Fatal(err)
	}
	chmod(t, dir, 0o555, 0o444)
	before := tree(t, dir)
	b := open(t, dir, labels.EmptyLabels())
	for range 3 {
		refresh(t, b)
		if got, _, err := read(t.Context(), b, &backend.SeriesRequest{MaxTime: math.MaxInt64}); err != nil || len(got) != 12 {
			t.Fatal(len(got), err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, tree(t, dir)); d != "" {
		t.Error(d)
	}
	chmod(t, dir, 0o755, 0o644)
}

func chmod(t *testing.T, dir string, d, f fs.FileMode) {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			dirs = append(dirs, path)
			return os.Chmod(path, 0o755)
		}
		return os.Chmod(path, f)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range dirs {
		if err := os.Chmod(p, d); err != nil {
			t.Fatal(err)
		}
	}
}

// blocksIn is a directory with three blocks and a head, and the writer's answer.
func blocksIn(t *testing.T) (dir string, want content) {
	t.Helper()
	dir = t.TempDir()
	w := newWriter(t, dir)
	w.write(2000*hour, 2007*hour)
	w.compact()
	want = oracle(t, w.db, math.MinInt64, math.MaxInt64)
	if err := w.db.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, want
}

func blockDirs(t *testing.T, dir string) []string {
	t.Helper()
	names, err := blockNames(dir)
	if err != nil || len(names) < 2 {
		t.Fatal(names, err)
	}
	slices.Sort(names)
	return names
}

func damage(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(raw), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestDamage: an error that names the file and says what to do, or the rest of the
// data with a notice.
func TestDamage(t *testing.T) {
	for _, c := range []struct {
		name, file string
		change     func([]byte) []byte
		// labelsToo says that label calls find it too.
		labelsToo bool
	}{
		{"index cut", "index", func(b []byte) []byte { return b[:len(b)/2] }, true},
		{"index magic", "index", func(b []byte) []byte { b[0] ^= 1; return b }, true},
		{"chunk bit", "chunks/000001", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, false},
		{"meta", "meta.json", func(b []byte) []byte { return b[:10] }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, want := blocksIn(t)
			bad := blockDirs(t, dir)[0]
			meta, err := readMeta(filepath.Join(dir, bad))
			if err != nil {
				t.Fatal(err)
			}
			damage(t, filepath.Join(dir, bad, c.file), c.change)
			b := open(t, dir, labels.EmptyLabels())
			req := &backend.SeriesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64}
			_, _, err = read(t.Context(), b, req)
			if err == nil || !strings.Contains(err.Error(), bad) || !strings.Contains(err.Error(), "move it out of the directory") {
				t.Fatal(err)
			}
			partial := *req
			partial.PartialAllowed = true
			got, notices, err := read(t.Context(), b, &partial)
			if err != nil || len(notices) != 1 || notices[0].Kind != backend.NoticeMissing || !strings.Contains(notices[0].Text, bad) {
				t.Fatal(notices, err)
			}
			for series, samples := range want {
				for ts, v := range samples {
					if (ts < meta.MinTime || ts >= meta.MaxTime) && got[series][ts] != v {
						t.Fatalf("%s at %d: %q, want %q", series, ts, got[series][ts], v)
					}
				}
			}
			// What does not touch the block is not affected, unless nobody can say.
			if c.name != "meta" {
				if _, notices, err := read(t.Context(), b, &backend.SeriesRequest{MinTime: meta.MaxTime, MaxTime: math.MaxInt64}); err != nil || len(notices) > 0 {
					t.Error(notices, err)
				}
			}
			_, err = b.LabelNames(t.Context(), &backend.LabelNamesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64})
			if (err != nil) != c.labelsToo {
				t.Error(err)
			}
		})
	}
}

// TestDamagedLog: a broken record in the log hides what follows and says so, until
// the log is repaired.
func TestDamagedLog(t *testing.T) {
	dir, want := blocksIn(t)
	segments, err := filepath.Glob(filepath.Join(dir, "wal", "0*"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	good, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	damage(t, segments[0], func(b []byte) []byte {
		for i := range min(200, len(b)) {
			b[i] = 0xff
		}
		return b
	})
	synctest.Test(t, func(t *testing.T) {
		b, err := Open(Config{Path: dir}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		all := &backend.SeriesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64}
		if _, _, err := read(t.Context(), b, all); err == nil || !strings.Contains(err.Error(), "segment") {
			t.Fatal(err)
		}
		// Blocks alone still answer.
		if got, notices, err := read(t.Context(), b, &backend.SeriesRequest{MinTime: 2000 * hour, MaxTime: 2002 * hour}); err != nil || len(notices) > 0 || len(got) == 0 {
			t.Fatal(got, notices, err)
		}
		damage(t, segments[0], func([]byte) []byte { return good })
		time.Sleep(90 * time.Second)
		synctest.Wait()
		got, _, err := read(t.Context(), b, all)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d[:min(len(d), 1000)])
		}
	})
}

// TestFixture reads a block that Thanos wrote and compares with the samples that
// went into it.
func TestFixture(t *testing.T) {
	dir := t.TempDir()
	unpack(t, "testdata/raw-block", dir)
	// Without external labels: the block holds two series that differ only in a
	// stored label of such a name.
	b := open(t, dir, labels.EmptyLabels())
	f, err := os.Open("testdata/truth-a.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := read(t.Context(), b, &backend.SeriesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 36 {
		t.Errorf("%d series, want 36", len(got))
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 64<<20)
	n, compared := 0, 0
	for ; lines.Scan(); n++ {
		var row struct {
			Labels  map[string]string
			Samples [][2]json.RawMessage
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			t.Fatal(err)
		}
		name := labels.FromMap(row.Labels).String()
		if len(got[name]) != len(row.Samples) {
			t.Errorf("%s: %d samples, want %d", name, len(got[name]), len(row.Samples))
		}
		for _, s := range row.Samples {
			ts, err := strconv.ParseInt(string(s[0]), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			v := strings.Trim(string(s[1]), `"`)
			if strings.HasPrefix(v, "{") {
				if !strings.HasPrefix(got[name][ts], "h") && !strings.HasPrefix(got[name][ts], "f") {
					t.Fatalf("%s at %d: %q is no histogram", name, ts, got[name][ts])
				}
				continue
			}
			var bits uint64
			switch v {
			case "NaN":
				bits = value.NormalNaN
			case "StaleNaN":
				bits = value.StaleNaN
			default:
				x, err := strconv.ParseFloat(v, 64)
				if err != nil {
					t.Fatal(err)
				}
				bits = math.Float64bits(x)
			}
			if want := fmt.Sprintf("%x", bits); got[name][ts] != want {
				t.Fatalf("%s at %d: %q, want %q (%s)", name, ts, got[name][ts], want, v)
			}
			compared++
		}
	}
	if lines.Err() != nil || n != 33 || compared < 100_000 {
		t.Error(lines.Err(), n, compared)
	}
}

func unpack(t *testing.T, from, dir string) {
	t.Helper()
	meta, err := os.ReadFile(filepath.Join(from, "meta.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m tsdb.BlockMeta
	if err := json.Unmarshal(meta, &m); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, m.ULID.String())
	for src, dst := range map[string]string{"index.gz": "index", "chunks.gz": "chunks/000001"} {
		f, err := os.Open(filepath.Join(from, src))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(to, dst)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.ReadFrom(z); err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(to, "meta.json"), meta, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCancelled(t *testing.T) {
	dir, _ := blocksIn(t)
	b := open(t, dir, labels.EmptyLabels())
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	n := 0
	var got error
	for _, err := range b.Series(ctx, &backend.SeriesRequest{MaxTime: math.MaxInt64, BatchSize: 1}) {
		if got = err; err != nil {
			break
		}
		if n++; n == 1 {
			cancel(why)
		}
	}
	// Few series: the end may come before the check.
	if got != nil && !errors.Is(got, why) {
		t.Error(got)
	}
	for _, err := range b.Series(ctx, &backend.SeriesRequest{MaxTime: math.MaxInt64}) {
		if !errors.Is(err, why) {
			t.Error(err)
		}
	}
	if _, err := b.LabelNames(ctx, &backend.LabelNamesRequest{MaxTime: math.MaxInt64}); !errors.Is(err, why) {
		t.Error(err)
	}
	// Leaving early frees the view.
	for range b.Series(t.Context(), &backend.SeriesRequest{MaxTime: math.MaxInt64, BatchSize: 1}) {
		break
	}
	cancel(nil)
	if v, _, err := b.acquire(); err != nil || v.refs != 2 {
		t.Error(v, err)
	} else {
		b.release(v)
	}
}

func TestOpenRefusals(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]Config{
		"no such file":  {Path: filepath.Join(t.TempDir(), "missing")},
		"not a dir":     {Path: file},
		"at most 15s":   {Path: t.TempDir(), Refresh: maxRefresh + 1},
		"at most 15s, ": {Path: t.TempDir(), Refresh: -1},
	} {
		if _, err := Open(cfg, nil, nil); err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(want, ", ")) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := OpenWritable(Config{Path: t.TempDir(), Retention: -1}, nil, nil); err == nil {
		t.Error("no error")
	}
}

func TestInfo(t *testing.T) {
	empty := open(t, t.TempDir(), labels.EmptyLabels())
	info, err := empty.Info(t.Context())
	if err != nil || info.MinTime != math.MinInt64 || info.MaxTime != math.MaxInt64 || info.LabelSets != nil {
		t.Error(info, err)
	}
	dir, _ := blocksIn(t)
	b := open(t, dir, labels.FromStrings("cluster", "eu1", "empty", ""))
	info, err = b.Info(t.Context())
	// Out-of-order samples reach an hour back, and their block to a bound.
	if err != nil || info.MinTime > 2000*hour || info.MinTime < 1996*hour || info.MaxTime != math.MaxInt64 ||
		info.LabelSets[0].String() != `{cluster="eu1"}` || info.Capabilities.Exemplars {
		t.Error(info, err)
	}
	if err := os.Rename(dir, dir+"x"); err != nil {
		t.Fatal(err)
	}
	if err := b.refresh(t.Context()); err == nil {
		t.Error("no error for a directory that is gone")
	}
	if _, err := b.Info(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Error(err)
	}
	if err := os.Rename(dir+"x", dir); err != nil {
		t.Fatal(err)
	}
	refresh(t, b)
	if _, err := b.Info(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestUncompacted: a directory that is shipped keeps its blocks as they are, and those past their
// retention that somebody needs.
func TestUncompacted(t *testing.T) {
	const block = 2 * hour
	dir := t.TempDir()
	for i := range int64(5) {
		w, err := tsdb.NewBlockWriter(slog.New(slog.DiscardHandler), dir, block)
		if err != nil {
			t.Fatal(err)
		}
		app := w.Appender(t.Context())
		// The last reaches into the one before.
		for _, at := range []int64{0, minute} {
			if _, err := app.Append(0, labels.FromStrings("a", "b"), min(i, 3)*block+i+at, 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := app.Commit(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	run := func(dir string, cfg Config) int {
		cfg.Path = dir
		if cfg.Retention == 0 {
			cfg.Retention = 100 * time.Hour
		}
		b, err := OpenWritable(cfg, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		app := b.Appendable().Appender(t.Context())
		if _, err := app.Append(0, labels.FromStrings("a", "b"), 5*block, 1); err != nil {
			t.Fatal(err)
		}
		if err := app.Commit(); err != nil {
			t.Fatal(err)
		}
		// It looks at what is past its retention when it has made a block.
		if err := errors.Join(b.DB().CompactHead(tsdb.NewRangeHead(b.DB().Head(), 5*block, 6*block-1)), b.DB().Compact(t.Context())); err != nil {
			t.Fatal(err)
		}
		names, err := blockNames(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	copied := func() string {
		to := filepath.Join(t.TempDir(), "tsdb")
		if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		return to
	}
	asked := 0
	for name, x := range map[string]struct {
		cfg  Config
		want int
	}{
		"uncompacted": {Config{Uncompacted: true}, 6},
		"gone":        {Config{Uncompacted: true, Retention: 3 * time.Hour}, 1},
		"kept": {Config{Uncompacted: true, Retention: 3 * time.Hour, Keep: func(m tsdb.BlockMeta) bool {
			asked++
			return m.MinTime < block
		}}, 2},
	} {
		if got := run(copied(), x.cfg); got != x.want {
			t.Errorf("%s: %d blocks, want %d", name, got, x.want)
		}
	}
	if got := run(copied(), Config{}); got >= 6 {
		t.Errorf("nothing is compacted in any case: %d blocks", got)
	}
	if asked == 0 {
		t.Error("nobody was asked what to keep")
	}
}

func TestWritable(t *testing.T) {
	reg := prometheus.NewRegistry()
	dir := t.TempDir()
	for range 2 { // the registry takes it a second time
		b, err := OpenWritable(Config{Path: dir, ExternalLabels: labels.FromStrings("c", "1")}, nil, reg)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		app := b.Appendable().Appender(t.Context())
		ls := labels.FromStrings("__name__", "x", "a", "b")
		now := int64(1_700_000_000_000)
		ref, err := app.Append(0, ls, now, 1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := app.AppendExemplar(ref, ls, exemplar.Exemplar{Labels: labels.FromStrings("trace", "t"), Value: 2, Ts: now, HasTs: true}); err != nil {
			t.Fatal(err)
		}
		if err := app.Commit(); err != nil {
			t.Fatal(err)
		}
		ex, _, err := b.Exemplars(t.Context(), [][]*labels.Matcher{
			{labels.MustNewMatcher(labels.MatchEqual, "__name__", "x"), labels.MustNewMatcher(labels.MatchEqual, "c", "1")},
			{labels.MustNewMatcher(labels.MatchEqual, "c", "2")},
		}, now, now)
		if err != nil || len(ex) != 1 || len(ex[0].Exemplars) != 1 || len(ex[0].SeriesLabels.Labels) != 3 {
			t.Error(ex, err)
		}
		if ex, _, err := b.Exemplars(t.Context(), [][]*labels.Matcher{{labels.MustNewMatcher(labels.MatchEqual, "c", "2")}}, now, now); err != nil || ex != nil {
			t.Error(ex, err)
		}
		st, _, err := b.Statistics(t.Context(), 5)
		if err != nil || st.HeadStatistics.NumSeries != 1 || st.HeadStatistics.ChunkCount != 1 || st.SeriesCountByMetricName[0].Name != "x" {
			t.Error(st, err)
		}
		if _, _, err := b.MetricMetadata(t.Context(), "", -1); !errors.Is(err, backend.ErrUnsupported) {
			t.Error(err)
		}
		ro := open(t, dir, labels.EmptyLabels())
		st, _, err = ro.Statistics(t.Context(), 5)
		if err != nil || st.HeadStatistics.NumSeries != 1 || st.HeadStatistics.ChunkCount != 1 || st.HeadStatistics.MaxTime != now {
			t.Error(st, err)
		}
		if _, _, err := ro.Exemplars(t.Context(), nil, 0, 1); !errors.Is(err, backend.ErrUnsupported) {
			t.Error(err)
		}
		if err := ro.Close(); err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestImageFreesMemory: what is in blocks leaves memory once no query needs it.
func TestImageFreesMemory(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir)
	defer func() { w.db.Close() }()
	w.write(2000*hour, 2003*hour)
	b := open(t, dir, labels.EmptyLabels())
	v, _, err := b.acquire()
	if err != nil {
		t.Fatal(err)
	}
	w.write(2003*hour, 2008*hour)
	w.compact()
	refresh(t, b)
	if lo, _, _ := v.head.Bounds(); lo > 2000*hour {
		t.Errorf("a view still needs %d, %d is left", 2000*hour, lo)
	}
	b.release(v)
	refresh(t, b)
	lo, _, _ := b.current.head.Bounds()
	if lo < 2004*hour {
		t.Errorf("samples from %d on are still held", lo)
	}
	same(t, "after freeing", w, b, math.MinInt64, math.MaxInt64)
}
