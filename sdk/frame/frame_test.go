// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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

// A Builder says what is wrong, and Reset forgets it.
func TestBuilderRefuses(t *testing.T) {
	var b Builder
	for want, add := range map[string]func(){
		"row 1: label \"a\" comes after \"b\"": func() { b.AddRow("b", "x", "a", "x") },
		"row 1: label \"a\" comes after \"a\"": func() { b.AddRow("a", "x", "a", "y") },
		"row 1: a label without a name":        func() { b.AddRow("", "x") },
		"row 1: not valid UTF-8: \"\\xff\"":    func() { b.AddRow("a", "\xff") },
		"more than 16 MiB":                     func() { b.AddRow("a", strings.Repeat("x", MaxBytes)) },
		"row 65536: a frame has at most 65536": func() {
			for range MaxRows {
				b.AddRow("a", "b")
			}
		},
		"row 0: a chunk before any row": func() {
			b.Reset()
			b.AddChunk(Chunk{})
		},
	} {
		b.Reset()
		b.AddRow("a", "b")
		add()
		dst := []byte("before")
		if out, err := b.Append(dst); err == nil || !strings.Contains(err.Error(), want) || string(out) != "before" {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	b.Reset()
	b.AddRow("a", "", "b", "x") // a label without a value is none
	out, err := b.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	var f Frame
	if err := f.Parse(out); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]row{{labels: []string{"b", "x"}}}, rowsOf(&f), compareRows); diff != "" {
		t.Error(diff)
	}
}

// Symbols and ids of a caller's own make the same frame as strings.
func TestBuilderIDs(t *testing.T) {
	rows := randomRows(rand.New(rand.NewPCG(1, 1)), 50)
	want := build(t, rows)
	var b Builder
	for _, r := range rows {
		for i := 0; i < len(r.labels); i += 2 {
			b.LabelIDs(b.Name(r.labels[i]), b.Value(r.labels[i+1]))
		}
		b.EndRow()
		for _, c := range r.chunks {
			b.AddChunk(c)
		}
	}
	if got, err := b.Append(nil); err != nil || !slices.Equal(got, want) {
		t.Fatalf("another frame (%v)", err)
	}
}

// A frame of a few bytes must not stand for a label set of any size, nor take long.
func TestHostileFrames(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	var pairs []string
	for i := range 30 {
		pairs = append(pairs, fmt.Sprintf("n%02d", i), long)
	}
	var b Builder
	b.AddRow("a", "b")
	b.AddRow(pairs...)
	out, err := b.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	var f Frame
	if err := f.Parse(out); err == nil || !strings.Contains(err.Error(), "group 1: a label set of more than 16 MiB") {
		t.Errorf("a label set of 30 MiB in %d bytes: error %v", len(out), err)
	}
	if f.Rows() != 0 || f.Groups() != 0 || f.Symbols() != 0 || f.HasChunks() || f.Bytes() != nil {
		t.Error("there is something in a Frame after an error")
	}
	// Long names with the same beginning, in many groups: Parse compares them once.
	b.Reset()
	names := []string{long + "1", long + "2", long + "3", long + "4", long + "5", long + "6"}
	for i := range 200 {
		for k, n := range names {
			if k < 4 || k-4 == i%2 {
				b.LabelIDs(b.Name(n), b.Value("v"))
			}
		}
		b.EndRow()
	}
	if out, err = b.Append(nil); err != nil {
		t.Fatal(err)
	}
	if err := f.Parse(out); err != nil {
		t.Fatal(err)
	}
	// A reply may be 4 times the frame and 1 MiB.
	f.Parse(build(t, nil))
	var c Changes
	reply := make([]byte, 4*len(f.Bytes())+1<<20+4)
	copy(reply, "PWR1")
	if err := c.Parse(reply, &f, TierRows); err == nil || !strings.Contains(err.Error(), "4 times the frame") {
		t.Errorf("a reply that is too long: error %v", err)
	}
	if err := c.Parse(reply[:32], &f, 0); err == nil {
		t.Error("a reply to no tier: no error")
	}
}

// A Frame, a Reply and Changes that were used before need no more memory.
func TestNoAllocation(t *testing.T) {
	b := build(t, randomRows(rand.New(rand.NewPCG(2, 2)), 100))
	unaligned := append(make([]byte, 1), b...)[1:]
	var f Frame
	var r Reply
	var c Changes
	var out []byte
	round := func() {
		if f.Parse(unaligned) != nil || f.Parse(b) != nil {
			panic("refused")
		}
		r.Reset(&f)
		for i := range f.Groups() {
			r.Group(i)
			r.Refs(r.Intern("new"))
			r.Drop(0)
		}
		out = r.Append(out[:0])
		if c.Parse(out, &f, TierRows) != nil {
			panic("refused")
		}
	}
	round()
	if n := testing.AllocsPerRun(10, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// plausible gives bytes the magic and total that they need, so that a fuzzer gets past them.
func plausible(b []byte, magic string) []byte {
	b = append(make([]byte, 0, len(b)+8), b...)
	for len(b) < 8 || len(b)%4 != 0 {
		b = append(b, 0)
	}
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	return b
}

func FuzzParse(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(build(f, randomRows(rand.New(rand.NewPCG(seed, 0)), int(seed))))
	}
	var b Builder
	b.Withhold("a")
	b.EndRow()
	b.AddRow("a", "b")
	withheld, err := b.Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(withheld)
	f.Fuzz(func(t *testing.T, in []byte) { checkParse(t, plausible(in, frameMagic)) })
}

// checkParse says whether in is a frame, and if so, whether everything in it can be read
// and written again.
func checkParse(t *testing.T, in []byte) bool {
	t.Helper()
	var f, view Frame
	viewed := view.View(in) // of whatever: an error, or a view, and no panic
	if f.Parse(in) != nil {
		return false
	}
	rows := rowsOf(&f)
	if viewed != nil {
		t.Fatalf("a frame that can be parsed cannot be viewed: %v", viewed)
	}
	bare := slices.Clone(rows)
	for i := range bare {
		bare[i].chunks = nil
	}
	if diff := cmp.Diff(bare, rowsOf(&view), cmp.AllowUnexported(row{}), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("a view differs (-parsed +viewed):\n%s", diff)
	}
	for id := range f.Names() + 1 {
		if name := f.Symbol(uint32(id)); name != view.Symbol(uint32(id)) || f.FindName(name) != uint32(id) || view.FindName(name) != uint32(id) {
			t.Fatalf("name %d, %q, is not found", id, name)
		}
	}
	var b Builder
	for i, row := range rows {
		g := f.Group(f.GroupOf(i))
		for k := 0; k < len(row.labels); k += 2 {
			if col := g.Column(g.Find(f.FindName(row.labels[k]))); col.Form == Withheld {
				b.Withhold(row.labels[k])
			} else {
				b.Label(row.labels[k], row.labels[k+1])
			}
		}
		b.EndRow()
		for _, c := range row.chunks {
			b.AddChunk(c)
		}
	}
	out, err := b.Append(nil)
	if err != nil {
		return true // what is shared in the frame may be too much once it is not
	}
	var again Frame
	if err := again.Parse(out); err != nil {
		t.Fatal(err)
	}
	if got := rowsOf(&again); !reflect.DeepEqual(rows, got) {
		if diff := cmp.Diff(rows, got, compareRows, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	}
	var n NameLists
	if names, err := n.Append(nil, &f); err == nil {
		if err := again.Parse(names); err != nil {
			t.Fatal(err)
		}
	}
	var v ColumnValues
	var all []string
	for id := range f.Names() {
		all = append(all, f.Symbol(uint32(id+1)))
	}
	if columns, err := v.Append(nil, &f, all); err == nil {
		if err := again.Parse(columns); err != nil {
			t.Fatal(err)
		}
	}
	return true
}

// One number of a frame is another one: Parse refuses it, or all of it can be read.
func TestMutations(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	frames := 0
	for range 300 {
		b := build(t, randomRows(r, 1+r.IntN(10)))
		for range 30 {
			bad := slices.Clone(b)
			at := 8 + 4*r.IntN(len(b)/4-2)
			v := binary.LittleEndian.Uint32(bad[at:])
			switch r.IntN(4) {
			case 0:
				v += uint32(r.IntN(9)) - 4
			case 1:
				v = uint32(r.IntN(20))
			case 2:
				v = uint32(r.IntN(len(b)+8)) / 4 * 4
			default:
				v = r.Uint32()
			}
			binary.LittleEndian.PutUint32(bad[at:], v)
			if checkParse(t, bad) {
				frames++
			}
		}
	}
	if frames < 500 || frames > 8500 {
		t.Errorf("%d of 9000 are frames: that tells nothing", frames)
	}
}

// changedRows are the rows as a reply leaves them, by their number, nil for those that
// are left out.
func changedRows(c *Changes, group, row int) map[string]string {
	g := c.Group(group)
	if !g.Keeps(row) {
		return nil
	}
	out := map[string]string{}
	for j := range g.Columns() {
		if ref := g.Column(j).Ref(row); ref != 0 {
			out[c.Symbol(g.Column(j).Name)] = c.Symbol(ref)
		}
	}
	return out
}

// A reply to lists of names, lifted to the frame that they were made of, says of each row
// what it said of the row's list.
func TestLift(t *testing.T) {
	var f, names Frame
	var n NameLists
	var c, lifted Changes
	var r Reply
	for seed := range uint64(500) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		if err := f.Parse(build(t, randomRows(rnd, rnd.IntN(40)))); err != nil {
			t.Fatal(err)
		}
		b, err := n.Append(nil, &f)
		if err != nil {
			t.Fatal(err)
		}
		if err := names.Parse(b); err != nil {
			t.Fatal(err)
		}
		r.Reset(&names)
		for i := range names.Groups() {
			if rnd.IntN(4) == 0 {
				continue
			}
			r.Group(i)
			for j := range names.Group(i).Columns() {
				switch rnd.IntN(4) {
				case 0:
				case 1:
					r.Input(r.Intern(fmt.Sprintf("new%d", j)), j)
				case 2:
					r.Constant(names.Group(i).Column(j).Name, r.Intern("x"))
				default:
					r.Input(names.Group(i).Column(j).Name, j)
				}
			}
			if rnd.IntN(8) == 0 {
				r.DropAll()
			}
		}
		reply := r.Append(nil)
		if err := c.Parse(reply, &names, TierNames); err != nil {
			t.Fatal(err)
		}
		n.Lift(&c, &lifted)
		for i := range f.Groups() {
			g := f.Group(i)
			for j := 1; j < lifted.Group(i).Columns(); j++ {
				if x, y := lifted.Symbol(lifted.Group(i).Column(j-1).Name), lifted.Symbol(lifted.Group(i).Column(j).Name); x >= y {
					t.Fatalf("seed %d: column %q before %q", seed, x, y)
				}
			}
			for row := range g.Rows() {
				var want map[string]string
				if of := c.Group(n.Of(g.First() + row)); of.Keeps(0) {
					want = map[string]string{}
					had := map[string]string{}
					var shown []string
					for k := range g.Columns() {
						if ref := g.Column(k).Ref(row); ref != 0 {
							had[f.Symbol(g.Column(k).Name)] = f.Symbol(ref)
							shown = append(shown, f.Symbol(ref))
						}
					}
					if !of.Changed() {
						want = had
					}
					for k := range of.Columns() {
						if col := of.Column(k); of.Changed() && col.Input >= 0 {
							want[c.Symbol(col.Name)] = shown[col.Input]
						} else if of.Changed() {
							want[c.Symbol(col.Name)] = c.Symbol(col.Ref(0))
						}
					}
				}
				if got := changedRows(&lifted, i, row); !reflect.DeepEqual(want, got) {
					t.Fatalf("seed %d, group %d, row %d: %s", seed, i, row, cmp.Diff(want, got))
				}
			}
		}
	}
}

func FuzzParseReply(f *testing.F) {
	in := build(f, []row{{labels: []string{"a", "1", "b", "2"}}, {labels: []string{"a", "1", "b", "3"}}, {labels: []string{"c", "2"}}})
	var frame Frame
	if err := frame.Parse(in); err != nil {
		f.Fatal(err)
	}
	var r Reply
	for tier := TierNames; tier <= TierRows; tier++ {
		r.Reset(&frame)
		r.Group(0)
		r.Input(r.Intern("x"), 1)
		r.Constant(1, r.Intern("y"))
		if tier >= TierColumns {
			r.Refs(2)[1] = r.Intern("z")
		}
		r.Group(1)
		if tier == TierRows {
			r.Drop(0)
		}
		f.Add(r.Append(nil), uint8(tier))
	}
	f.Fuzz(func(t *testing.T, b []byte, tier uint8) {
		var c Changes
		if c.Parse(plausible(b, replyMagic), &frame, Tier(tier%4)) != nil {
			return
		}
		// All that was said can be said again.
		text := changesMeaning(&c, &frame)
		var r Reply
		r.Reset(&frame)
		for i := range frame.Groups() {
			g := c.Group(i)
			if !g.Changed() {
				continue
			}
			r.Group(i)
			symbol := func(id uint32) uint32 {
				if int(id) < frame.Symbols() {
					return id
				}
				return r.Intern(c.Symbol(id))
			}
			for j := range g.Columns() {
				switch col := g.Column(j); col.Source {
				case FromInput:
					r.Input(symbol(col.Name), col.Input)
				case FromConstant:
					r.Constant(symbol(col.Name), symbol(col.Ref(0)))
				case FromRefs:
					refs := r.Refs(symbol(col.Name))
					for k, ref := range col.Refs() {
						refs[k] = symbol(ref)
					}
				}
			}
			if g.KeepsNone() {
				r.DropAll()
			}
			for k := range g.Input().Rows() {
				size := uint64(0)
				for j := range g.Columns() {
					if ref := g.Column(j).Ref(k); ref != 0 {
						size += uint64(len(c.Symbol(g.Column(j).Name)) + len(c.Symbol(ref)))
					}
				}
				if g.RowBytes(k) != size {
					t.Fatalf("RowBytes says %d, the labels have %d", g.RowBytes(k), size)
				}
				if !g.KeepsAll() && !g.KeepsNone() && !g.Keeps(k) {
					r.Drop(k)
				}
			}
		}
		out := r.Append(nil)
		if len(out) > 4*len(in)+1<<20 {
			return
		}
		var again Changes
		if err := again.Parse(out, &frame, Tier(tier%4)); err != nil {
			t.Fatal(err)
		}
		if got := changesMeaning(&again, &frame); got != text {
			t.Fatalf("got\n%s\nwant\n%s", got, text)
		}
	})
}
