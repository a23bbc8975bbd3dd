// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package tsdb

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// point is a sample in a form that compares bit by bit.
func point(it chunkenc.Iterator, vt chunkenc.ValueType) (int64, string) {
	switch vt {
	case chunkenc.ValHistogram:
		t, h := it.AtHistogram(nil)
		h.CounterResetHint = histogram.UnknownCounterReset
		return t, "h" + fmt.Sprintf("%x", math.Float64bits(h.Sum)) + h.String()
	case chunkenc.ValFloatHistogram:
		t, h := it.AtFloatHistogram(nil)
		h.CounterResetHint = histogram.UnknownCounterReset
		return t, "f" + fmt.Sprintf("%x", math.Float64bits(h.Sum)) + h.String()
	default:
		t, v := it.At()
		return t, strconv.FormatUint(math.Float64bits(v), 16)
	}
}

type content map[string]map[int64]string

func (c content) add(series string, mint, maxt int64, it chunkenc.Iterator) error {
	if c[series] == nil {
		c[series] = map[int64]string{}
	}
	for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
		t, p := point(it, vt)
		if t < mint || t > maxt {
			continue
		}
		if was, ok := c[series][t]; ok && was != p {
			return fmt.Errorf("%s at %d: %s and %s", series, t, was, p)
		}
		c[series][t] = p
	}
	return it.Err()
}

// read drains Series and checks what the contract says of every answer.
func read(ctx context.Context, b *Backend, req *backend.SeriesRequest) (content, []backend.Notice, error) {
	out := content{}
	var notices []backend.Notice
	var last labels.Labels
	first := true
	for batch, err := range b.Series(ctx, req) {
		if err != nil {
			return nil, nil, err
		}
		notices = append(notices, batch.Notices()...)
		for i := range batch.Len() {
			s := batch.At(i)
			if !first && labels.Compare(last, s.Labels) > 0 {
				return nil, nil, fmt.Errorf("%s after %s", s.Labels, last)
			}
			first, last = false, s.Labels
			for _, c := range s.Chunks {
				if c.MaxTime < req.MinTime || c.MinTime > req.MaxTime {
					return nil, nil, fmt.Errorf("%s: chunk %d..%d is outside", s.Labels, c.MinTime, c.MaxTime)
				}
				chk, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
				if err != nil {
					return nil, nil, err
				}
				it := chk.Iterator(nil)
				for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
					if t := it.AtT(); t < c.MinTime || t > c.MaxTime {
						return nil, nil, fmt.Errorf("%s: sample at %d in chunk %d..%d", s.Labels, t, c.MinTime, c.MaxTime)
					}
				}
				if err := out.add(s.Labels.String(), req.MinTime, req.MaxTime, chk.Iterator(nil)); err != nil {
					return nil, nil, err
				}
			}
			if req.SkipChunks {
				out[s.Labels.String()] = nil
			}
		}
	}
	// A chunk that overlaps may have no sample in the range.
	if !req.SkipChunks {
		for k, v := range out {
			if len(v) == 0 {
				delete(out, k)
			}
		}
	}
	return out, notices, nil
}

func oracle(t *testing.T, db storage.Queryable, mint, maxt int64, ms ...*labels.Matcher) content {
	t.Helper()
	q, err := db.Querier(mint, maxt)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	out := content{}
	set := q.Select(t.Context(), true, nil, orAll(ms)...)
	for set.Next() {
		if err := out.add(set.At().Labels().String(), mint, maxt, set.At().Iterator(nil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Err(); err != nil {
		t.Fatal(err)
	}
	for k, v := range out {
		if len(v) == 0 {
			delete(out, k)
		}
	}
	return out
}

const (
	minute = int64(60_000)
	hour   = 60 * minute
)

// writer is the Prometheus that owns the directory.
type writer struct {
	t   *testing.T
	db  *tsdb.DB
	rnd *rand.Rand
	dir string
}

func newWriter(t *testing.T, dir string) *writer {
	t.Helper()
	opts := tsdb.DefaultOptions()
	opts.OutOfOrderTimeWindow = 3 * hour
	opts.RetentionDuration = 0
	opts.WALSegmentSize = 64 << 10
	db, err := tsdb.Open(dir, nil, nil, opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	db.DisableCompactions()
	return &writer{t: t, db: db, dir: dir, rnd: rand.New(rand.NewPCG(1, 2))}
}

// write appends samples of all kinds between two times, some out of order.
func (w *writer) write(from, to int64) {
	w.t.Helper()
	for ts := from; ts < to; ts += minute / 2 {
		app := w.db.Appender(w.t.Context())
		for i := range 12 {
			ls := labels.FromStrings("__name__", fmt.Sprintf("m%d", i%3), "i", fmt.Sprint(i), "odd", map[bool]string{true: "yes"}[i%2 == 1])
			at := ts + int64(i)
			if i == 11 && ts%hour != 0 {
				continue
			}
			if i == 10 && w.rnd.IntN(10) == 0 {
				at -= int64(w.rnd.IntN(int(hour)))
			}
			var err error
			switch i {
			case 7:
				_, err = app.AppendHistogram(0, ls, at, tsdbutil.GenerateTestHistogram((ts/minute)%50), nil)
			case 8:
				_, err = app.AppendHistogram(0, ls, at, nil, tsdbutil.GenerateTestFloatHistogram((ts/minute)%70))
			case 9:
				v := w.rnd.Float64()
				if w.rnd.IntN(20) == 0 {
					v = math.Float64frombits(value.StaleNaN)
				}
				_, err = app.Append(0, ls, at, v)
			default:
				_, err = app.Append(0, ls, at, float64(ts)+float64(i))
			}
			if err != nil && !errors.Is(err, storage.ErrOutOfOrderSample) && !errors.Is(err, storage.ErrDuplicateSampleForTimestamp) && !errors.Is(err, storage.ErrTooOldSample) {
				w.t.Fatal(err)
			}
		}
		if err := app.Commit(); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *writer) compact() {
	w.t.Helper()
	if err := w.db.Compact(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func open(t *testing.T, dir string, ext labels.Labels) *Backend {
	t.Helper()
	b, err := Open(Config{Path: dir, ExternalLabels: ext}, nil, nil)
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

func refresh(t *testing.T, b *Backend) {
	t.Helper()
	if err := b.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
}

var someMatchers = [][]*labels.Matcher{
	nil,
	{labels.MustNewMatcher(labels.MatchEqual, "__name__", "m1")},
	{labels.MustNewMatcher(labels.MatchRegexp, "i", "1|7|8|1.")},
	{labels.MustNewMatcher(labels.MatchEqual, "odd", "")},
	{labels.MustNewMatcher(labels.MatchNotRegexp, "odd", ".+")},
	{labels.MustNewMatcher(labels.MatchNotEqual, "i", "9"), labels.MustNewMatcher(labels.MatchRegexp, "__name__", "m[02]")},
	{labels.MustNewMatcher(labels.MatchEqual, "nothing", "x")},
}

func same(t *testing.T, what string, w *writer, b *Backend, mint, maxt int64, ms ...*labels.Matcher) {
	t.Helper()
	want := oracle(t, w.db, mint, maxt, ms...)
	got, notices, err := read(t.Context(), b, &backend.SeriesRequest{MinTime: mint, MaxTime: maxt, Matchers: ms})
	if err != nil || len(notices) > 0 {
		t.Fatalf("%s: %v %v", what, err, notices)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s: %d..%d %v: %s", what, mint, maxt, ms, d[:min(len(d), 2000)])
	}
	// Without chunks come all of these, and perhaps those of which only chunks,
	// but no samples, overlap the range.
	names, _, err := read(t.Context(), b, &backend.SeriesRequest{MinTime: mint, MaxTime: maxt, Matchers: ms, SkipChunks: true})
	if err != nil {
		t.Fatal(err)
	}
	for s := range want {
		if _, ok := names[s]; !ok {
			t.Fatalf("%s: %s is missing without chunks", what, s)
		}
	}
}

// TestFollowsWriter compares with the writer's own querier while the writer
// appends, compacts, cuts off its logs, deletes, restarts.
func TestFollowsWriter(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir)
	defer func() { w.db.Close() }()
	start := 1000 * 2 * hour
	now := start
	w.write(now, now+hour)
	now += hour
	b := open(t, dir, labels.EmptyLabels())
	rnd := rand.New(rand.NewPCG(3, 4))
	for step := range 24 {
		d := int64(1+rnd.IntN(50)) * minute
		w.write(now, now+d)
		now += d
		what := fmt.Sprintf("step %d", step)
		switch rnd.IntN(6) {
		case 0, 1:
			w.compact()
			what += " compacted"
		case 3:
			if err := w.db.Close(); err != nil {
				t.Fatal(err)
			}
			w2 := newWriter(t, dir)
			w.db = w2.db
			what += " restarted"
		}
		if step%8 == 5 {
			// Reaches into blocks and the head.
			if err := w.db.Delete(t.Context(), now-3*hour, now-5*minute, labels.MustNewMatcher(labels.MatchEqual, "i", "3")); err != nil {
				t.Fatal(err)
			}
			what += " deleted"
		}
		refresh(t, b)
		same(t, what, w, b, math.MinInt64, math.MaxInt64)
		for range 4 {
			mint := start + rnd.Int64N(now-start+hour)
			same(t, what, w, b, mint, mint+rnd.Int64N(4*hour), someMatchers[rnd.IntN(len(someMatchers))]...)
		}
		// A backend that starts now sees the same.
		if step%8 == 7 {
			fresh := open(t, dir, labels.EmptyLabels())
			same(t, what+" fresh", w, fresh, math.MinInt64, math.MaxInt64)
		}
	}
}

// TestQueriesInFlight runs queries through compactions and log truncations: a
// query never loses a sample that was there when it began.
func TestQueriesInFlight(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir)
	defer func() { w.db.Close() }()
	start := 1000 * 2 * hour
	w.write(start, start+2*hour)
	b := open(t, dir, labels.FromStrings("cluster", "eu1", "replica", "a"))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			seen := 0
			for ctx.Err() == nil {
				got, _, err := read(context.Background(), b, &backend.SeriesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64, BatchSize: 1})
				if err != nil {
					t.Error(err)
					return
				}
				n := len(got[`{__name__="m0", cluster="eu1", i="0", replica="a"}`])
				if n < seen {
					t.Errorf("%d samples, %d before", n, seen)
					return
				}
				seen = n
			}
		}()
	}
	now := start + 2*hour
	for range 15 {
		w.write(now, now+45*minute)
		now += 45 * minute
		w.compact()
		refresh(t, b)
	}
	cancel()
	wg.Wait()
	want := int((now - start) / (minute / 2))
	got, _, err := read(t.Context(), b, &backend.SeriesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got[`{__name__="m0", cluster="eu1", i="0", replica="a"}`]); n != want {
		t.Fatalf("%d samples, want %d", n, want)
	}
}
