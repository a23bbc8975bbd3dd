// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package frame

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// The files in testdata/golden are for every implementation of frames: bytes in
// hexadecimal, four to a word, and what they mean. Lines with # are remarks.
//
//	frame       bytes -> meaning, or the error. It is the one that what follows refers to.
//	build       rows, name=value ..., and chunks -> bytes
//	names       -> the frame of tier names of the frame, and the group of each row
//	columns     the same for tier columns, with the names of labels
//	answer      what a filter says of the frame -> the bytes of the reply
//	reply       the bytes of a reply of a tier to the frame -> meaning, or the error
func TestGolden(t *testing.T) {
	datadriven.Walk(t, "testdata/golden", func(t *testing.T, path string) {
		var current Frame
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "frame":
				b := unhex(t, d.Input)
				if err := current.Parse(b); err != nil {
					return "error: " + err.Error() + "\n"
				}
				return meaning(&current)
			case "build":
				return hexOf(read(t, &current, buildText(t, d.Input)))
			case "names":
				var n NameLists
				b, err := n.Append(nil, &current)
				if err != nil {
					t.Fatal(err)
				}
				var of []string
				for row := range current.Rows() {
					of = append(of, strconv.Itoa(n.Of(row)))
				}
				return "rows are of " + strings.Join(of, " ") + "\n" + hexOf(read(t, new(Frame), b)) + meaning(read(t, &current, b))
			case "columns":
				var v ColumnValues
				b, err := v.Append(nil, &current, strings.Fields(d.Input))
				if err != nil {
					t.Fatal(err)
				}
				checkColumns(t, &current, &v, b)
				return hexOf(read(t, new(Frame), b)) + meaning(read(t, &current, b))
			case "answer":
				return hexWords(answer(t, &current, d.Input))
			case "reply":
				var tier string
				d.ScanArgs(t, "tier", &tier)
				var c Changes
				if err := c.Parse(unhex(t, d.Input), &current, map[string]Tier{"names": TierNames, "columns": TierColumns, "rows": TierRows}[tier]); err != nil {
					return "error: " + err.Error() + "\n"
				}
				return changesMeaning(&c, &current)
			}
			t.Fatalf("unknown directive %s", d.Cmd)
			return ""
		})
	})
}

func read(t *testing.T, f *Frame, b []byte) *Frame {
	t.Helper()
	if err := f.Parse(b); err != nil {
		t.Fatal(err)
	}
	return f
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	var out []byte
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "#")
		b, err := hex.DecodeString(strings.Join(strings.Fields(line), ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

func hexOf(f *Frame) string { return hexWords(f.Bytes()) }

func hexWords(b []byte) string {
	var out strings.Builder
	for i := 0; i < len(b); i += 4 {
		sep := " "
		if i%16 == 12 || i+4 >= len(b) {
			sep = "\n"
		}
		fmt.Fprintf(&out, "%x%s", b[i:i+4], sep)
	}
	return out.String()
}

func buildText(t *testing.T, text string) []byte {
	t.Helper()
	var b Builder
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) > 0 && words[0] == "chunk" {
			var c Chunk
			var data string
			if _, err := fmt.Sscanf(line, "chunk %d..%d kind %d encoding %d %x", &c.MinTime, &c.MaxTime, &c.Kind, &c.Encoding, &data); err != nil && c.Encoding != EncodingNone {
				t.Fatal(line, err)
			}
			c.Data = []byte(data)
			b.AddChunk(c)
			continue
		}
		for _, w := range words[1:] {
			name, value, _ := strings.Cut(w, "=")
			if value == "?" {
				b.Withhold(name)
			} else {
				b.Label(name, value)
			}
		}
		b.EndRow()
	}
	out, err := b.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func meaning(f *Frame) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%d rows\n", f.Rows())
	for i := range f.Symbols() {
		what := "value"
		if i <= f.Names() {
			what = "name"
		}
		if i > 0 {
			fmt.Fprintf(&out, "symbol %d, a %s: %q\n", i, what, f.Symbol(uint32(i)))
		}
	}
	for i := range f.Groups() {
		g := f.Group(i)
		fmt.Fprintf(&out, "group %d\n", i)
		for r := range g.Rows() {
			fmt.Fprintf(&out, "  row %d:", r)
			for c := range g.Columns() {
				col := g.Column(c)
				switch ref := col.Ref(r); {
				case col.Form == Withheld:
					fmt.Fprintf(&out, " %s withheld", f.Symbol(col.Name))
				case ref != 0:
					fmt.Fprintf(&out, " %s=%q", f.Symbol(col.Name), f.Symbol(ref))
				}
			}
			out.WriteString("\n")
			chunks := f.Chunks(g.First() + r)
			for k := range chunks.Len() {
				c := chunks.At(k)
				fmt.Fprintf(&out, "    chunk %d..%d kind %d encoding %d %x\n", c.MinTime, c.MaxTime, c.Kind, c.Encoding, c.Data)
			}
		}
	}
	return out.String()
}

// checkColumns follows every value of a frame to the frame of tier columns and back.
func checkColumns(t *testing.T, f *Frame, v *ColumnValues, b []byte) {
	t.Helper()
	out := read(t, new(Frame), b)
	for i := range f.Groups() {
		g := f.Group(i)
		for c := range g.Columns() {
			col := g.Column(c)
			group := v.Group(col.Name)
			for r := range g.Rows() {
				if ref := col.Ref(r); ref != 0 && group >= 0 {
					in := out.Group(group).Column(0)
					if got := in.Ref(v.Row(group, ref)); v.Origin(got) != ref || v.Origin(in.Name) != col.Name || out.Symbol(got) != f.Symbol(ref) {
						t.Fatalf("value %q of %s is not where it should be", f.Symbol(ref), f.Symbol(col.Name))
					}
				}
			}
		}
	}
}

func answer(t *testing.T, f *Frame, script string) []byte {
	t.Helper()
	var r Reply
	r.Reset(f)
	name := func(s string) uint32 {
		if id := f.FindName(s); id != 0 {
			return id
		}
		return r.Intern(s)
	}
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		number := func(i int) int {
			n, err := strconv.Atoi(words[i])
			if err != nil {
				t.Fatal(line, err)
			}
			return n
		}
		switch words[0] {
		case "group":
			r.Group(number(1))
		case "input":
			r.Input(name(words[1]), number(2))
		case "constant":
			r.Constant(name(words[1]), r.Intern(strings.Trim(words[2], `"`)))
		case "refs":
			refs := r.Refs(name(words[1]))
			for i, w := range words[2:] {
				refs[i] = r.Intern(strings.Trim(w, `"`))
			}
		case "drop":
			for i := range words[1:] {
				r.Drop(number(i + 1))
			}
		case "drop-all":
			r.DropAll()
		default:
			t.Fatal(line)
		}
	}
	out := r.Append([]byte("xyz"))
	if r.Touched() != (len(out) > 3) {
		t.Fatal("Touched and Append disagree")
	}
	return out[3:]
}

func changesMeaning(c *Changes, in *Frame) string {
	var out strings.Builder
	for i := range in.Groups() {
		g := c.Group(i)
		switch {
		case !g.Changed():
			fmt.Fprintf(&out, "group %d as it was\n", i)
		case g.KeepsNone():
			fmt.Fprintf(&out, "group %d is gone\n", i)
		default:
			fmt.Fprintf(&out, "group %d\n", i)
		}
		for j := range g.Columns() {
			col := g.Column(j)
			fmt.Fprintf(&out, "  %s:", c.Symbol(col.Name))
			for r := range g.Input().Rows() {
				switch ref := col.Ref(r); {
				case !g.Keeps(r):
					out.WriteString(" gone")
				case col.Withheld():
					fmt.Fprintf(&out, " that of column %d", col.Input)
				case ref == 0:
					out.WriteString(" none")
				default:
					fmt.Fprintf(&out, " %q", c.Symbol(ref))
				}
			}
			out.WriteString("\n")
		}
	}
	return out.String()
}

// What a Reply says is what Changes read, whatever is said.
func TestReplyRoundTrip(t *testing.T) {
	in := read(t, new(Frame), build(t, []row{
		{labels: []string{"a", "1", "b", "2"}}, {labels: []string{"a", "1", "b", "3"}}, {labels: []string{"a", "2"}}, {labels: []string{"c", "2"}},
	}))
	var r Reply
	var c Changes
	for range 2 { // the second time with used memory
		r.Reset(in)
		b := r.Append(nil)
		if r.Touched() || len(b) != 0 {
			t.Fatal("a reply that says nothing is not empty")
		}
		if err := c.Parse(b, in, TierRows); err != nil || c.Group(0).Changed() || c.Group(0).Columns() != 2 || !c.Group(0).KeepsAll() {
			t.Fatalf("an empty reply changes something (%v)", err)
		}
		r.Group(0)
		r.Constant(r.Intern("b"), r.Intern("x"))
		r.Group(0) // forgets the above
		refs := r.Refs(r.Intern("z"))
		for i := range 1000 { // other columns must not move the references
			_ = r.Refs(r.Intern(fmt.Sprint("n", i)))
		}
		refs[1] = r.Intern("y")
		r.Input(in.FindName("a"), 0)
		r.Drop(0)
		r.Group(1)
		r.DropAll()
		if err := c.Parse(r.Append(nil), in, TierRows); err != nil {
			t.Fatal(err)
		}
		g := c.Group(0)
		if g.Columns() != 1002 || g.Keeps(0) || !g.Keeps(1) || !g.Keeps(2) || g.KeepsAll() || g.KeepsNone() || !c.Group(1).KeepsNone() {
			t.Fatalf("%d columns, or other rows than those", g.Columns())
		}
		first, last := g.Column(0), g.Column(1001)
		if c.Symbol(first.Name) != "a" || c.Symbol(first.Ref(1)) != "1" || first.Input != 0 {
			t.Fatalf("first column %v", first)
		}
		if c.Symbol(last.Name) != "z" || last.Ref(0) != 0 || c.Symbol(last.Ref(1)) != "y" || last.Input != -1 || !slices.Equal(last.Refs(), refs) {
			t.Fatalf("last column %v", last)
		}
		if n := g.RowBytes(1); n != 4 {
			t.Fatalf("row 1 has %d bytes, want 4", n)
		}
	}
}

// TestIntern: a symbol is the same however many there are.
func TestIntern(t *testing.T) {
	var f Frame
	if err := f.Parse(build(t, []row{{labels: []string{"a", "1"}}})); err != nil {
		t.Fatal(err)
	}
	var r Reply
	for range 2 { // the second time with what Reset left
		r.Reset(&f)
		for round := range 3 {
			for i := range uint32(40) {
				if id, want := r.Intern(strconv.Itoa(int(i))), uint32(f.Symbols())+i; id != want {
					t.Fatalf("round %d: %d is symbol %d, want %d", round, i, id, want)
				}
			}
		}
	}
}
