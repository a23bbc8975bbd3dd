// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package block_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/backends/bucket/internal/block"
	"github.com/promweave/promweave/backends/bucket/internal/header"
	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const thanos = "../../../../blocks/testdata/thanos/"

var all = []string{"bucket-raw", "bucket-downsampled-extra", "compaction/default"}

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

func open(t testing.TB, bkt objstore.Bucket, m *meta.Meta) *header.Reader {
	t.Helper()
	size, _ := m.Size(meta.IndexFile)
	dir := t.TempDir()
	if err := header.Build(t.Context(), bkt, m.ULID, size, dir); err != nil {
		t.Fatal(err)
	}
	h, err := header.Open(filepath.Join(dir, header.FileName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// line is a series with its chunks, down to their bytes.
func line(ls labels.Labels, cs []string) string { return ls.String() + " " + strings.Join(cs, " ") }

func ours(t testing.TB, b *block.Reader, h *header.Reader, u *block.Usage, minTime, maxTime int64, ms ...*labels.Matcher) (out []string, err error) {
	t.Helper()
	refs, err := b.Postings(t.Context(), h, u, ms)
	if err != nil {
		return nil, err
	}
	symbols := block.Symbols{}
	for len(refs) > 0 {
		n := min(len(refs), 7)
		series, err := b.Series(t.Context(), h, u, symbols, refs[:n], minTime, maxTime)
		if err != nil {
			return nil, err
		}
		if err := b.Load(t.Context(), u, series); err != nil {
			return nil, err
		}
		for _, s := range series {
			var cs []string
			for _, c := range s.Chunks {
				cs = append(cs, fmt.Sprintf("[%d %d %d %x]", c.MinTime, c.MaxTime, c.Encoding, c.Data))
			}
			out = append(out, line(s.Labels, cs))
		}
		refs = refs[n:]
	}
	return out, nil
}

func theirs(t testing.TB, b *tsdb.Block, minTime, maxTime int64, ms ...*labels.Matcher) (out []string) {
	t.Helper()
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
	p, err := tsdb.PostingsForMatchers(t.Context(), ir, ms...)
	if err != nil {
		t.Fatal(err)
	}
	var lb labels.ScratchBuilder
	var list []chunks.Meta
	for p.Next() {
		if err := ir.Series(p.At(), &lb, &list); err != nil {
			t.Fatal(err)
		}
		var cs []string
		for _, c := range list {
			if c.MaxTime < minTime || c.MinTime > maxTime {
				continue
			}
			chk, _, err := cr.ChunkOrIterable(c)
			if err != nil {
				t.Fatal(err)
			}
			cs = append(cs, fmt.Sprintf("[%d %d %d %x]", c.MinTime, c.MaxTime, chk.Encoding(), chk.Bytes()))
		}
		if len(cs) > 0 {
			out = append(out, line(lb.Labels(), cs))
		}
	}
	return out
}

// TestAsTSDB: whatever the matchers and the range, it reads what the TSDB's own reader reads of
// the same blocks.
func TestAsTSDB(t *testing.T) {
	for _, bucket := range all {
		bkt, err := filesystem.NewBucket(thanos + bucket)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(thanos + bucket)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			dir := filepath.Join(thanos+bucket, e.Name())
			m := load(t, dir)
			h, b := open(t, bkt, m), block.NewReader(bkt, m)
			tb, err := tsdb.OpenBlock(nil, dir, aggregate.NewPool(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tb.Close()
			names := append(slices.Clone(h.LabelNames()), "absent", "cluster")
			values := []string{"", "a", "i1", "edge", "ctr_total", "0.5"}
			for _, n := range h.LabelNames() {
				_ = h.Values(n, func(v []byte, _ header.Range) bool { values = append(values, string(v)); return true })
			}
			patterns := []string{"", ".*", ".+", "a|b", "i.*", "ctr_.*|gauge_.*", "[^a]*", "edge|", "(?i)I1", "lat_seconds_(bucket|sum)", "x|y"}
			rnd := rand.New(rand.NewPCG(7, 1))
			for k := range 150 {
				var ms []*labels.Matcher
				for range rnd.IntN(4) {
					typ, name := labels.MatchType(rnd.IntN(4)), names[rnd.IntN(len(names))]
					v := values[rnd.IntN(len(values))]
					if typ >= labels.MatchRegexp {
						v = patterns[rnd.IntN(len(patterns))]
					}
					ms = append(ms, labels.MustNewMatcher(typ, name, v))
				}
				if len(ms) == 0 {
					ms = append(ms, labels.MustNewMatcher(labels.MatchEqual, "", ""))
				}
				lo, hi := int64(math.MinInt64), int64(math.MaxInt64)
				if k%2 == 0 {
					lo = m.MinTime + rnd.Int64N(m.MaxTime-m.MinTime)
					hi = lo + rnd.Int64N(3*24*3_600_000)
				}
				u := &block.Usage{}
				got, err := ours(t, b, h, u, lo, hi, ms...)
				if err != nil {
					t.Fatalf("%s %v: %v", m.ULID, ms, err)
				}
				if want := theirs(t, tb, lo, hi, ms...); !slices.Equal(got, want) {
					t.Fatalf("%s %v %d to %d: %d series, want %d", m.ULID, ms, lo, hi, len(got), len(want))
				}
			}
			u := &block.Usage{}
			got, err := ours(t, b, h, u, math.MinInt64, math.MaxInt64, labels.MustNewMatcher(labels.MatchEqual, "__name__", "ctr_total"))
			t.Logf("%s, level %d: ctr_total is %d series, %d requests of %d bytes; %v", m.ULID, m.Resolution(), len(got), u.Requests.Load(), u.Bytes.Load(), err)
		}
	}
}

// spoiled is a bucket with one object changed.
type spoiled struct {
	objstore.Bucket
	name string
	data []byte
	err  error
}

func (s *spoiled) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if name != s.name {
		return s.Bucket.GetRange(ctx, name, off, n)
	}
	if s.err != nil {
		return nil, s.err
	}
	off = min(off, int64(len(s.data)))
	return io.NopCloser(bytes.NewReader(s.data[off:min(off+n, int64(len(s.data)))])), nil
}

// TestBroken: bits that are flipped, and objects that end early or fail, are errors that name
// the object; what is read in spite of them is right.
func TestBroken(t *testing.T) {
	const bucket = "bucket-downsampled-extra"
	bkt, err := filesystem.NewBucket(thanos + bucket)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(thanos + bucket)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(thanos+bucket, entries[len(entries)-1].Name())
	m := load(t, dir)
	h := open(t, bkt, m)
	every := labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".*")
	want, err := ours(t, block.NewReader(bkt, m), h, &block.Usage{}, math.MinInt64, math.MaxInt64, every)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, object := range []string{"index", "chunks/000001"} {
		data, err := os.ReadFile(filepath.Join(dir, object))
		if err != nil {
			t.Fatal(err)
		}
		name := m.ULID.String() + "/" + object
		found := 0
		try := func(s *spoiled) {
			s.Bucket, s.name = bkt, name
			got, err := ours(t, block.NewReader(s, m), h, &block.Usage{}, math.MinInt64, math.MaxInt64, every)
			switch {
			case err == nil && !slices.Equal(got, want):
				t.Errorf("%s: another answer and no error", object)
			case err != nil:
				found++
				if !strings.Contains(err.Error(), name) || s.err == nil && !errors.Is(err, block.ErrBroken) || s.err != nil && !errors.Is(err, s.err) {
					t.Errorf("%s: %v", object, err)
				}
			}
		}
		const tries = 150
		for range tries {
			bad := slices.Clone(data)
			bad[rnd.IntN(len(bad))] ^= 1 << rnd.IntN(8)
			try(&spoiled{data: bad})
		}
		if object != "index" && found < tries*9/10 {
			t.Errorf("%s: of %d broken bits %d are found", object, tries, found)
		}
		for _, n := range []int{0, 1, 100, len(data) / 2, len(data) - 1} {
			try(&spoiled{data: data[:n]})
		}
		before := found
		try(&spoiled{err: errors.New("404")})
		if found == before {
			t.Errorf("%s: a failure is not seen", object)
		}
	}
	for _, most := range []int64{1, 1000} {
		u := &block.Usage{Most: most}
		if _, err := ours(t, block.NewReader(bkt, m), h, u, math.MinInt64, math.MaxInt64, every); !errors.Is(err, backend.ErrLimit) || u.Bytes.Load() > most {
			t.Errorf("of at most %d bytes %d are fetched: %v", most, u.Bytes.Load(), err)
		}
	}
}
