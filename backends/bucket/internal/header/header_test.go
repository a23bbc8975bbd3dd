// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package header_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/backends/bucket/internal/header"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const thanos = "../../../../blocks/testdata/thanos/"

// built builds the header of a block in a directory that is a bucket.
func built(t testing.TB, bucket, id string) string {
	t.Helper()
	bkt, err := filesystem.NewBucket(bucket)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(bucket, id, "index"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := header.Build(t.Context(), bkt, ulid.MustParse(id), info.Size(), dir); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, header.FileName)
}

// TestSameBytes: the headers are those that Thanos' store gateway made of the same blocks.
func TestSameBytes(t *testing.T) {
	for _, bucket := range []string{"bucket-raw", "bucket-downsampled-extra"} {
		entries, err := os.ReadDir(thanos + bucket)
		if err != nil || len(entries) < 2 {
			t.Fatal(err)
		}
		for _, e := range entries {
			got, err1 := os.ReadFile(built(t, thanos+bucket, e.Name()))
			want, err2 := os.ReadFile(filepath.Join(thanos+"index-headers", e.Name(), header.FileName))
			if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, want %d; %v %v", e.Name(), len(got), len(want), err1, err2)
			}
			compare(t, filepath.Join(thanos+bucket, e.Name(), "index"), built(t, thanos+bucket, e.Name()))
		}
	}
}

// compare compares a header with the index that it was made of, by the TSDB's own reader.
func compare(t *testing.T, indexFile, headerFile string) {
	t.Helper()
	r, err := header.Open(headerFile)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ir, err := index.NewFileReader(indexFile, index.DecodePostingsRaw)
	if err != nil {
		t.Fatal(err)
	}
	defer ir.Close()
	raw, err := os.ReadFile(indexFile)
	if err != nil {
		t.Fatal(err)
	}

	symbols := ir.Symbols()
	n := uint32(0)
	for ; symbols.Next(); n++ {
		if s, err := r.Symbol(n); err != nil || s != symbols.At() {
			t.Fatalf("symbol %d: %q, want %q, %v", n, s, symbols.At(), err)
		}
	}
	if s, err := r.Symbol(n); !errors.Is(err, header.ErrCorrupt) {
		t.Errorf("symbol %d of %d: %q", n, n, s)
	}
	names, err := ir.LabelNames(t.Context())
	if err != nil || !slices.Equal(names, r.LabelNames()) {
		t.Errorf("%q, want %q, %v", r.LabelNames(), names, err)
	}
	check := func(name, value string, list header.Range) {
		t.Helper()
		p, err := ir.Postings(t.Context(), name, value)
		if err != nil {
			t.Fatal(err)
		}
		i := list.Start
		for p.Next() {
			if i+4 > list.End || uint32(p.At()) != binary.BigEndian.Uint32(raw[i:]) {
				t.Fatalf("%s=%q: the list at %v is another one", name, value, list)
			}
			i += 4
		}
		if i != list.End || list.Series() != (list.End-list.Start)/4 {
			t.Errorf("%s=%q: the list at %v is longer than its series", name, value, list)
		}
	}
	for _, name := range names {
		values, err := ir.SortedLabelValues(t.Context(), name, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if err := r.Values(name, func(v []byte, list header.Range) bool {
			got = append(got, string(v))
			check(name, string(v), list)
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, values) {
			t.Errorf("values of %s: %q, want %q", name, got, values)
		}
		stopped := 0
		if err := r.Values(name, func([]byte, header.Range) bool { stopped++; return stopped < 2 }); err != nil || stopped > 2 {
			t.Errorf("it does not stop: %d, %v", stopped, err)
		}
		// Some of them, and some that there are not.
		rnd := rand.New(rand.NewPCG(1, 2))
		for range 20 {
			var ask []string
			for _, v := range values {
				if rnd.IntN(3) == 0 {
					ask = append(ask, v)
				}
				if rnd.IntN(5) == 0 {
					ask = append(ask, v+"~"[:rnd.IntN(2)]+"\x01")
				}
			}
			if rnd.IntN(2) == 0 {
				ask = append(ask, "\xff")
			}
			if rnd.IntN(2) == 0 {
				ask = append(ask, "")
			}
			slices.Sort(ask)
			ask = slices.Compact(ask)
			lists, err := r.Postings(name, ask...)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range ask {
				if _, there := slices.BinarySearch(values, v); there {
					check(name, v, lists[i])
				} else if lists[i] != (header.Range{}) {
					t.Errorf("%s=%q, which there is not, is at %v", name, v, lists[i])
				}
			}
		}
	}
	all, err := r.All()
	if err != nil {
		t.Fatal(err)
	}
	check("", "", all)
	if lists, err := r.Postings("no such label", "x"); err != nil || lists[0] != (header.Range{}) {
		t.Errorf("%v, %v", lists, err)
	}
}

// large writes an index with many and long values.
func large(t testing.TB, values int) (bucket, id string) {
	t.Helper()
	bucket, id = t.TempDir(), ulid.MustNew(1, nil).String()
	if err := os.MkdirAll(filepath.Join(bucket, id), 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := index.NewWriter(t.Context(), filepath.Join(bucket, id, "index"))
	if err != nil {
		t.Fatal(err)
	}
	var sets []labels.Labels
	texts := map[string]bool{}
	for i := range values {
		v := fmt.Sprintf("v%05d", i)
		if i%97 == 0 {
			v += strings.Repeat("x", 5000)
		}
		ls := labels.FromStrings("__name__", "m", "v", v, "w", fmt.Sprint(i%40))
		sets = append(sets, ls)
		ls.Range(func(l labels.Label) { texts[l.Name], texts[l.Value] = true, true })
	}
	sorted := make([]string, 0, len(texts))
	for s := range texts {
		sorted = append(sorted, s)
	}
	slices.Sort(sorted)
	for _, s := range sorted {
		if err := w.AddSymbol(s); err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(sets, labels.Compare)
	for i, ls := range sets {
		if err := w.AddSeries(storage.SeriesRef(i), ls, chunks.Meta{Ref: 8, MinTime: 1, MaxTime: 2}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bucket, id
}

func TestLarge(t *testing.T) {
	for _, n := range []int{1, 31, 32, 33, 64, 65, 5000} {
		bucket, id := large(t, n)
		compare(t, filepath.Join(bucket, id, "index"), built(t, bucket, id))
	}
}

// TestBrokenIndex: an index that is cut off or has a bit flipped makes no header, or the same.
func TestBrokenIndex(t *testing.T) {
	bucket, name := large(t, 100)
	id := ulid.MustParse(name)
	data, err := os.ReadFile(filepath.Join(bucket, name, "index"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(built(t, bucket, name))
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, b []byte, size int) {
		bkt := objstore.NewInMemBucket()
		if err := bkt.Upload(t.Context(), name+"/index", bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		err := header.Build(t.Context(), bkt, id, int64(size), dir)
		if err != nil {
			if !strings.Contains(err.Error(), name+"/index") {
				t.Errorf("%s: %v names no object", what, err)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("%s: %s is left", what, left[0].Name())
			}
			return
		}
		got, err := os.ReadFile(filepath.Join(dir, header.FileName))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: another header, %v", what, err)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		bad := slices.Clone(data)
		at := rnd.IntN(len(bad))
		bad[at] ^= 1 << rnd.IntN(8)
		try(fmt.Sprintf("a bit of byte %d of %d", at, len(bad)), bad, len(bad))
	}
	for _, n := range []int{0, 4, 56, 57, 58, len(data) / 2, len(data) - 1} {
		try(fmt.Sprintf("%d bytes", n), data[:n], n)
		try(fmt.Sprintf("%d bytes of %d", n, len(data)), data[:n], len(data))
	}
}

func FuzzOpen(f *testing.F) {
	bucket, id := large(f, 70)
	data, err := os.ReadFile(built(f, bucket, id))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "h")
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := header.Open(file)
		if err != nil {
			if !errors.Is(err, header.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		defer r.Close()
		// What passes the checks can be read.
		for i := range uint32(100) {
			_, _ = r.Symbol(i)
		}
		for _, name := range r.LabelNames() {
			if err := r.Values(name, func(v []byte, list header.Range) bool {
				got, err := r.Postings(name, string(v))
				if err != nil || got[0] != list {
					t.Fatalf("%s=%q: %v, %v, want %v", name, v, got, err, list)
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzRepaired: where the checksums are right, whatever they are of, a header is refused or can be
// read, and takes no memory that it does not have.
func FuzzRepaired(f *testing.F) {
	bucket, id := large(f, 70)
	good, err := os.ReadFile(built(f, bucket, id))
	if err != nil {
		f.Fatal(err)
	}
	end := len(good) - 20
	symbols, tables := binary.BigEndian.Uint64(good[end:]), binary.BigEndian.Uint64(good[end+8:])
	for _, at := range []uint64{symbols, symbols + 4, symbols + 8, tables, tables + 4, tables + 8, tables + 9, uint64(end), uint64(end + 8), 6} {
		f.Add(uint32(at), []byte{0xff, 0xff, 0xff, 0xff, 0x0f})
		f.Add(uint32(at), []byte{0, 0, 0, 0})
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, at uint32, with []byte) {
		data := slices.Clone(good)
		copy(data[at%uint32(len(data)):], with)
		for _, from := range []uint64{binary.BigEndian.Uint64(data[end:]), binary.BigEndian.Uint64(data[end+8:])} {
			if from > uint64(end)-8 {
				continue
			}
			if n := uint64(binary.BigEndian.Uint32(data[from:])); from+4+n+4 <= uint64(end) {
				binary.BigEndian.PutUint32(data[from+4+n:], crc32.Checksum(data[from+4:from+4+n], table))
			}
		}
		binary.BigEndian.PutUint32(data[end+16:], crc32.Checksum(data[end:end+16], table))
		file := filepath.Join(dir, fmt.Sprint(os.Getpid()))
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		defer func() {
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
				t.Errorf("%d bytes were allocated for %d", n, len(data))
			}
		}()
		r, err := header.Open(file)
		if err != nil {
			if !errors.Is(err, header.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		defer r.Close()
		for i := range uint32(200) {
			_, _ = r.Symbol(i * i * i)
		}
		_, _ = r.All()
		for _, name := range r.LabelNames() {
			_ = r.Values(name, func(v []byte, list header.Range) bool {
				_, _ = r.Postings(name, string(v), "absent")
				return true
			})
		}
	})
}
