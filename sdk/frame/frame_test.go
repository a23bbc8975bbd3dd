// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// row is a label set and chunks as a test writes it.
type row struct {
	labels []string // names and values in turn
	chunks []Chunk
}

// rowsOf reads a frame through every accessor there is.
func rowsOf(f *Frame) []row {
	rows := []row{}
	for i := range f.Groups() {
		g := f.Group(i)
		for r := range g.Rows() {
			var out row
			size := uint64(0)
			for c := range g.Columns() {
				col := g.Column(c)
				name := f.Symbol(col.Name)
				if f.FindName(name) != col.Name || g.Find(col.Name) != c || f.GroupOf(g.First()+r) != i {
					panic("Find and Column disagree")
				}
				if col.Form == Withheld {
					out.labels = append(out.labels, name, "(withheld)")
				} else if ref := col.Ref(r); ref != 0 {
					out.labels = append(out.labels, name, f.Symbol(ref))
					size += uint64(len(name) + len(f.Symbol(ref)))
				}
			}
			if size != g.RowBytes(r) {
				panic("RowBytes and the labels disagree")
			}
			chunks := f.Chunks(g.First() + r)
			for k := range chunks.Len() {
				c := chunks.At(k)
				c.Data = slices.Clone(c.Data)
				out.chunks = append(out.chunks, c)
			}
			rows = append(rows, out)
		}
	}
	return rows
}

func build(t testing.TB, rows []row) []byte {
	t.Helper()
	var b Builder
	for i := range rows {
		b.AddRow(rows[i].labels...)
		for _, c := range rows[i].chunks {
			b.AddChunk(c)
		}
	}
	if b.Rows() != len(rows) {
		t.Fatalf("%d rows, added %d", b.Rows(), len(rows))
	}
	bound := b.Size()
	out, err := b.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) > bound {
		t.Fatalf("%d bytes, Size said at most %d", len(out), bound)
	}
	return out
}

func randomRows(r *rand.Rand, n int) []row {
	rows := make([]row, 0, n)
	withChunks := r.IntN(2) == 0
	for range n {
		set := map[string]string{}
		for range r.IntN(6) {
			set[fmt.Sprintf("n%d", r.IntN(8))] = strings.Repeat("ü", r.IntN(3)) + fmt.Sprint(r.IntN(5))
		}
		var out row
		for _, name := range slices.Sorted(maps.Keys(set)) {
			out.labels = append(out.labels, name, set[name])
		}
		for k := 0; withChunks && k < r.IntN(4); k++ {
			c := Chunk{MinTime: -r.Int64N(1e12), MaxTime: r.Int64N(1e12), Kind: uint32(r.IntN(6)), Encoding: uint32(1 + r.IntN(3)), Data: make([]byte, 3+r.IntN(30))}
			for i := range c.Data {
				c.Data[i] = byte(r.Uint32())
			}
			out.chunks = append(out.chunks, c)
		}
		rows = append(rows, out)
	}
	return rows
}

var compareRows = cmp.AllowUnexported(row{})

// What a Builder makes of rows, Parse reads, at every alignment and into a used Frame.
func TestRoundTrip(t *testing.T) {
	var f Frame
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 0))
		want := randomRows(r, r.IntN(40))
		b := build(t, want)
		shifted := append(make([]byte, seed%5), b...)[seed%5:]
		if err := f.Parse(shifted); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if diff := cmp.Diff(want, rowsOf(&f), compareRows); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
		if f.Rows() != len(want) {
			t.Fatalf("%d rows, want %d", f.Rows(), len(want))
		}
	}
}
