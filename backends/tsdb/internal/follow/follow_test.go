// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package follow

import (
	"context"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/record"
	"github.com/prometheus/prometheus/tsdb/wlog"
	"github.com/prometheus/prometheus/util/compression"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var discard = slog.New(slog.DiscardHandler)

// log is a write-ahead log written record by record.
type log struct {
	t   testing.TB
	dir string
	w   *wlog.WL
	enc record.Encoder
}

func newLog(t testing.TB) *log {
	t.Helper()
	dir := t.TempDir()
	w, err := wlog.NewSize(discard, nil, filepath.Join(dir, "wal"), 32<<10, compression.Snappy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return &log{t: t, dir: dir, w: w}
}

func (l *log) write(rec []byte) {
	l.t.Helper()
	if err := l.w.Log(rec); err != nil {
		l.t.Fatal(err)
	}
}

func (l *log) series(ref chunks.HeadSeriesRef, pairs ...string) {
	l.write(l.enc.Series([]record.RefSeries{{Ref: ref, Labels: labels.FromStrings(pairs...)}}, nil))
}

func (l *log) sample(ref chunks.HeadSeriesRef, t int64, v float64) {
	l.write(l.enc.Samples([]record.RefSample{{Ref: ref, T: t, V: v}}, nil))
}

// count is the number of samples of the series with a="v".
func count(t *testing.T, h *Head, v string) int {
	t.Helper()
	r := h.Reader(Window{MinTime: math.MinInt64}, false)
	p, err := r.Postings(t.Context(), "a", v)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for p.Next() {
		var b labels.ScratchBuilder
		var metas []chunks.Meta
		if err := r.Series(p.At(), &b, &metas); err != nil {
			t.Fatal(err)
		}
		for _, m := range metas {
			n += m.Chunk.NumSamples()
		}
	}
	return n
}

func poll(t *testing.T, f *Follower, want bool) {
	t.Helper()
	restarted, err := f.Poll(t.Context())
	if err != nil || restarted != want {
		t.Fatalf("restarted %v, %v", restarted, err)
	}
}

// TestReferences: two references for one label set, a reference given anew, and a
// sample before its series.
func TestReferences(t *testing.T) {
	l := newLog(t)
	f := New(l.dir, math.MinInt64, discard)
	defer f.Close()
	poll(t, f, true)
	l.sample(9, 1, 1)
	l.series(1, "a", "x")
	l.sample(1, 1000, 1)
	poll(t, f, false)
	l.series(2, "a", "x")
	l.sample(2, 2000, 1)
	l.sample(2, 2000, 7) // refused by the writer after it was logged
	l.sample(1, 3000, 1)
	l.series(1, "a", "y")
	l.sample(1, 2500, 1)
	poll(t, f, false)
	if x, y := count(t, f.Head(), "x"), count(t, f.Head(), "y"); x != 3 || y != 1 || f.head.unknown != 1 {
		t.Errorf("%d and %d samples, %d unknown", x, y, f.head.unknown)
	}
	lo, hi, empty := f.Head().Bounds()
	if lo != 1000 || hi != 3000 || empty {
		t.Error(lo, hi, empty)
	}
}

// TestSeriesWithoutSamplesComesBack: the log names a series once, so freeing its
// samples must not forget it.
func TestSeriesWithoutSamplesComesBack(t *testing.T) {
	l := newLog(t)
	l.series(1, "a", "x")
	l.sample(1, 1000, 1)
	f := New(l.dir, math.MinInt64, discard)
	defer f.Close()
	poll(t, f, true)
	f.Truncate(Window{MinTime: 5000})
	if n, _ := f.Head().Stats(); n != 0 || count(t, f.Head(), "x") != 0 {
		t.Errorf("%d series", n)
	}
	if _, _, empty := f.Head().Bounds(); !empty {
		t.Error("not empty")
	}
	l.sample(1, 6000, 1)
	poll(t, f, false)
	if n := count(t, f.Head(), "x"); n != 1 {
		t.Errorf("%d samples", n)
	}
}

// TestLeftBehind: segments cut off before they were read, behind a checkpoint.
func TestLeftBehind(t *testing.T) {
	l := newLog(t)
	l.series(1, "a", "x")
	f := New(l.dir, math.MinInt64, discard)
	defer f.Close()
	poll(t, f, true)
	for i := range int64(9) {
		l.sample(1, 1000*i, 1)
		if _, err := l.w.NextSegment(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := wlog.Checkpoint(discard, l.w, 0, 5, func(chunks.HeadSeriesRef) bool { return true }, 3000); err != nil {
		t.Fatal(err)
	}
	if err := l.w.Truncate(6); err != nil {
		t.Fatal(err)
	}
	poll(t, f, true)
	// Those before the checkpoint's time are in blocks.
	if n := count(t, f.Head(), "x"); n != 6 {
		t.Errorf("%d samples", n)
	}
	l.sample(1, 100_000, 1)
	poll(t, f, false)
	if n := count(t, f.Head(), "x"); n != 7 {
		t.Errorf("%d samples", n)
	}
}

// TestCostIsWhatIsNew: a poll with nothing new reads nothing.
func TestCostIsWhatIsNew(t *testing.T) {
	l := newLog(t)
	l.series(1, "a", "x")
	for i := range int64(100) {
		l.sample(1, i, 1)
	}
	f := New(l.dir, math.MinInt64, discard)
	defer f.Close()
	poll(t, f, true)
	at := f.wal.reader.Offset()
	l.sample(1, 1000, 1)
	poll(t, f, false)
	if n := f.wal.reader.Offset() - at; n < 10 || n > 100 {
		t.Errorf("%d bytes read for one sample", n)
	}
}

// FuzzSegment reads any bytes as a segment, without and with a checkpoint's frame.
func FuzzSegment(f *testing.F) {
	l := newLog(f)
	l.series(1, "a", "x")
	l.sample(1, 1000, 1)
	raw, err := os.ReadFile(filepath.Join(l.dir, "wal", "00000000"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:len(raw)-3])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		for _, sub := range []string{"wal", "wbl", "wal/checkpoint.00000000"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"wal/00000001", "wbl/00000000", "wal/checkpoint.00000000/00000000"} {
			if err := os.WriteFile(filepath.Join(dir, name), raw, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		fo := New(dir, math.MinInt64, discard)
		defer fo.Close()
		_, _ = fo.Poll(context.Background())
		_, _ = fo.Poll(context.Background())
	})
}

// FuzzRecord applies any bytes as a record to a head that has a series.
func FuzzRecord(f *testing.F) {
	var enc record.Encoder
	f.Add(enc.Series([]record.RefSeries{{Ref: 1, Labels: labels.FromStrings("a", "x")}}, nil))
	f.Add(enc.Samples([]record.RefSample{{Ref: 1, T: math.MaxInt64, V: 1}, {Ref: 1, T: math.MinInt64}}, nil))
	f.Fuzz(func(t *testing.T, rec []byte) {
		fo := New(t.TempDir(), math.MinInt64, discard)
		fo.head = newHead()
		fo.dec = record.NewDecoder(labels.NewSymbolTable(), discard)
		fo.head.addSeries(1, labels.FromStrings("a", "x"))
		_ = fo.inOrder(0, rec)
		_ = fo.outOfOrder(0, rec)
	})
}
