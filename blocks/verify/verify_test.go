// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package verify_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// thanos are blocks that Thanos' programs wrote.
func thanos(t testing.TB) map[string]*meta.Meta {
	t.Helper()
	dirs, err := filepath.Glob("../testdata/thanos/bucket-*/*")
	if err != nil || len(dirs) < 6 {
		t.Fatal(dirs, err)
	}
	out := map[string]*meta.Meta{}
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, meta.File))
		if err != nil {
			t.Fatal(err)
		}
		m, err := meta.Parse(ulid.MustParse(filepath.Base(dir)), data)
		if err != nil {
			t.Fatal(err)
		}
		out[dir] = m
	}
	return out
}

// TestThanosBlocks: there is nothing wrong with them, and what was found is what their
// meta.json says.
func TestThanosBlocks(t *testing.T) {
	for dir, m := range thanos(t) {
		for _, deep := range []bool{false, true} {
			f, err := verify.Block(t.Context(), dir, m, verify.Options{Chunks: deep})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Err(m); err != nil {
				t.Error(err)
			}
			if deep && f.Samples != m.Stats.NumSamples {
				t.Errorf("%s: %d samples, want %d", m.ULID, f.Samples, m.Stats.NumSamples)
			}
			// Thanos does not count the last chunk of a series.
			if want := m.Thanos.IndexStats; want != (meta.IndexStats{}) && (f.IndexStats.SeriesMaxSize != want.SeriesMaxSize || f.IndexStats.ChunkMaxSize < want.ChunkMaxSize) {
				t.Errorf("%s: %+v, want %+v", m.ULID, f.IndexStats, want)
			}
			if f.MinTime < m.MinTime || f.MaxTime >= m.MaxTime || f.IndexStats.ChunkMaxSize == 0 || f.IndexStats.SeriesMaxSize == 0 {
				t.Errorf("%s: %+v", m.ULID, f)
			}
		}
	}
}

// copied is a copy of a block that may be broken.
func copied(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(dir))
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestBrokenBits: a bit that is flipped anywhere in the index or in the chunks never crashes
// the walk, and one in what is read is found.
func TestBrokenBits(t *testing.T) {
	for dir, m := range thanos(t) {
		if m.Resolution() != meta.OneHour {
			continue // larger, and alike
		}
		broken := copied(t, dir)
		rnd := rand.New(rand.NewPCG(1, 2))
		for _, file := range []string{"index", "chunks/000001"} {
			path := filepath.Join(broken, file)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found := 0
			const tries = 40
			for range tries {
				at := rnd.IntN(len(data))
				data[at] ^= 1 << rnd.IntN(8)
				if err := os.WriteFile(path, data, 0o644); err != nil {
					t.Fatal(err)
				}
				f, err := verify.Block(t.Context(), broken, m, verify.Options{Chunks: true})
				if err != nil {
					t.Fatal(err)
				}
				if f.Err(m) != nil {
					found++
				}
				orig, err := os.ReadFile(filepath.Join(dir, file))
				if err != nil {
					t.Fatal(err)
				}
				copy(data, orig)
			}
			// Padding, and label indices that nobody reads, may change.
			if found < tries*8/10 {
				t.Errorf("%s: %s: of %d broken bits %d are found", m.ULID, file, tries, found)
			}
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestTruncated: files that end early, or are not there.
func TestTruncated(t *testing.T) {
	for dir, m := range thanos(t) {
		if m.Resolution() != meta.OneHour {
			continue
		}
		for _, file := range []string{"index", "chunks/000001"} {
			for _, keep := range []float64{0, 0.001, 0.5, 0.99} {
				broken := copied(t, dir)
				path := filepath.Join(broken, file)
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(path, int64(keep*float64(info.Size()))); err != nil {
					t.Fatal(err)
				}
				f, err := verify.Block(t.Context(), broken, m, verify.Options{Chunks: true})
				if err != nil {
					t.Fatal(err)
				}
				if err := f.Err(m); !errors.Is(err, verify.ErrBroken) || !strings.Contains(err.Error(), m.ULID.String()) {
					t.Errorf("%s, %v of it: %v", file, keep, err)
				}
			}
			broken := copied(t, dir)
			if err := os.Remove(filepath.Join(broken, file)); err != nil {
				t.Fatal(err)
			}
			if f, err := verify.Block(t.Context(), broken, m, verify.Options{Chunks: true}); err != nil || f.Err(m) == nil {
				t.Errorf("without %s: %v %v", file, f, err)
			}
		}
		if _, err := verify.Block(t.Context(), filepath.Join(dir, "nowhere"), m, verify.Options{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("no directory: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := verify.Block(ctx, dir, m, verify.Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("called off: %v", err)
		}
	}
}

// TestMeta: what meta.json says is compared with what is there.
func TestMeta(t *testing.T) {
	for dir, m := range thanos(t) {
		for name, change := range map[verify.Kind]func(*tsdb.BlockMeta){
			verify.OutsideRange: func(m *tsdb.BlockMeta) { m.MaxTime -= 6 * 3_600_000 },
			verify.WrongCounts:  func(m *tsdb.BlockMeta) { m.Stats.NumSamples++ },
		} {
			other := m.Clone()
			change(&other.BlockMeta)
			f, err := verify.Block(t.Context(), dir, other, verify.Options{Chunks: true})
			if err != nil {
				t.Fatal(err)
			}
			if len(f.Problems) != 1 || !f.Has(name) {
				t.Errorf("%s: %v", name, f.Err(other))
			}
		}
	}
}

// TestEncoding: a chunk in an encoding that Thanos does not read.
func TestEncoding(t *testing.T) {
	for dir, m := range thanos(t) {
		if m.Resolution() != meta.Raw {
			continue
		}
		broken := copied(t, dir)
		path := filepath.Join(broken, "chunks/000001")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// The first chunk lies behind the header of 8 bytes: length, encoding, data, CRC.
		n, at := int(data[8]), 9
		for shift := 7; data[at-1]&0x80 != 0; shift, at = shift+7, at+1 {
			n = n&(1<<shift-1) | int(data[at])<<shift
		}
		data[at] = 5
		sum := crc32.Checksum(data[at:at+1+n], crc32.MakeTable(crc32.Castagnoli))
		for i := range 4 {
			data[at+1+n+i] = byte(sum >> (24 - 8*i))
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := verify.Block(t.Context(), broken, m, verify.Options{Chunks: true})
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint(f.Err(m))
		if !strings.Contains(text, "encoding 5") && !strings.Contains(text, "invalid chunk encoding") {
			t.Errorf("%s", text)
		}
		return
	}
}
