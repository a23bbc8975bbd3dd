// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package guest_test

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if asc != "" {
		_ = os.RemoveAll(asc)
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var updateGolden = flag.Bool("update-golden", false, "write the modules that are built now over the golden ones, which is right before a release only")

// TestVectors runs each file of vectors over each language. All must say the same.
func TestVectors(t *testing.T) {
	if *updateGolden {
		writeGolden(t)
	}
	files, err := filepath.Glob("../testdata/vectors/v1.0/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no vectors", err)
	}
	modules := built(t)
	for _, name := range sorted(modules) {
		t.Run(name, func(t *testing.T) {
			for _, file := range files {
				t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
					v := vector{code: modules[name]}
					datadriven.RunTest(t, file, v.run)
				})
			}
		})
	}
}

func sorted[V any](m map[string]V) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// writeGolden makes the golden modules anew.
func writeGolden(t *testing.T) {
	backend, err := buildRust(t.TempDir(), "../rust/examples/json_backend.rs")
	if err == nil {
		err = os.WriteFile("../testdata/golden/v1.0/json-backend-rust.wasm", backend, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range languages {
		code, err := build(l)
		if err != nil {
			t.Fatalf("%s: %v", l.name, err)
		}
		if strings.HasSuffix(l.golden, ".gz") {
			var b bytes.Buffer
			w, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
			_, _ = w.Write(code)
			_ = w.Close()
			code = b.Bytes()
		}
		if err := os.WriteFile(l.golden, code, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// vector is what the lines of one file talk to.
type vector struct {
	code []byte
	m    *module
	plan *filter.Plan
}

func (v *vector) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "describe":
		b, err := open(t, v.code).call("describe", filter.AppendDescribeRequest(nil, 0))
		if err != nil {
			return err.Error() + "\n"
		}
		desc, err := filter.DecodeDescription(b)
		if err != nil {
			t.Fatal(err)
		}
		// Each language writes the same schema in its own way.
		var schema any
		if err := json.Unmarshal([]byte(desc.ConfigSchema), &schema); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(schema)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s %s: %s\nrole %d, minor %d, schema %s, permissions %v, features %v, hooks %v\n", desc.Name, desc.Version,
			desc.Summary, desc.Role, desc.Minor, text, desc.Permissions, desc.Features, desc.Hooks)
	case "configure": // a new instance, with settings path=value
		v.m = open(t, v.code)
		var err error
		if v.plan, err = v.m.configure(d.Input); err != nil {
			return err.Error() + "\n"
		}
		return planText(v.plan)
	case "request":
		return v.request(t, d)
	case "select":
		b, err := v.m.call("select", filter.AppendSelectCall(nil, &filter.SelectCall{Backend: "b", MinTime: -5, MaxTime: 1 << 40,
			Matchers: []filter.Matcher{{Type: filter.MatchRegexp, Name: "job", Value: "a|b"}}, Tenants: []string{"", "x"}}))
		if err != nil {
			return err.Error() + "\n"
		}
		r, err := filter.DecodeSelectReply(b)
		if err != nil {
			t.Fatal(err)
		}
		return denialText(r.Deny) + matchersText("require", r.Require)
	case "rewrite": // rows: name=value name=value ..., values in Go's quotes if they need them
		return v.rewrite(t, d)
	case "raw": // what is no frame, in hex: an error of the kind that is printed, and the instance goes on
		b, err := hex.DecodeString(strings.Join(strings.Fields(d.Input), ""))
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.m.call("rewrite", b)
		var said *guestError
		if !errors.As(err, &said) {
			return fmt.Sprintf("no error of the plug-in: %v\n", err)
		}
		return said.kind + "\n"
	}
	t.Fatalf("%s: unknown", d.Cmd)
	return ""
}

func (v *vector) request(t *testing.T, d *datadriven.TestData) string {
	c := &filter.RequestCall{Kind: "range", Query: "up{a=\"é\"}", Start: -1, End: 1 << 41, Step: 15000,
		Selectors: [][]filter.Matcher{{{Name: "__name__", Value: "up"}}, {}}}
	c.Caller.Method = "bearer"
	c.Caller.Headers = []filter.Header{{Name: "x-scope", Values: []string{"1", ""}}}
	for _, a := range d.CmdArgs {
		if a.Key == "subject" {
			c.Caller.Subject = a.Vals[0]
		} else {
			c.Caller.ClaimSettings = append(c.Caller.ClaimSettings, filter.Setting{Path: a.Key, Value: a.Vals[0]})
		}
	}
	b, err := v.m.call("request", filter.AppendRequestCall(nil, c))
	if err != nil {
		return err.Error() + "\n"
	}
	r, err := filter.DecodeRequestReply(b)
	if err != nil {
		t.Fatal(err)
	}
	s := denialText(r.Deny) + matchersText("enforce", r.Enforce)
	if len(r.Tenants) > 0 {
		s += fmt.Sprintf("tenants %q\n", r.Tenants)
	}
	return s
}

func denialText(d *filter.Denial) string {
	if d == nil {
		return ""
	}
	return fmt.Sprintf("deny %d %s\n", d.Status, d.Message)
}

func matchersText(word string, ms []filter.Matcher) string {
	var s strings.Builder
	for _, m := range ms {
		fmt.Fprintf(&s, "%s %s%s%q\n", word, m.Name, [...]string{"=", "!=", "=~", "!~"}[m.Type], m.Value)
	}
	return s.String()
}

func planText(p *filter.Plan) string {
	var s strings.Builder
	fmt.Fprintf(&s, "tier %s", [...]string{"none", "names", "columns", "rows"}[p.Tier])
	for _, f := range []struct {
		on   bool
		word string
	}{{p.Pure, "pure"}, {p.Drops, "drops"}, {p.Merge, "merge"}, {p.WritesAny, "writes any"}} {
		if f.on {
			s.WriteString(", " + f.word)
		}
	}
	s.WriteByte('\n')
	for _, l := range []struct {
		word string
		list []string
	}{{"columns", p.Columns}, {"reads", p.Reads}, {"writes", p.Writes}, {"keeps", p.Keeps}, {"hooks", p.Hooks}} {
		if len(l.list) > 0 {
			fmt.Fprintf(&s, "%s %s\n", l.word, strings.Join(l.list, " "))
		}
	}
	for _, o := range p.Operations {
		switch {
		case o.Rename != nil:
			fmt.Fprintf(&s, "operation rename %s %s\n", o.Rename.From, o.Rename.To)
		case o.Drop != nil:
			fmt.Fprintf(&s, "operation drop %s\n", strings.Join(o.Drop, " "))
		case o.Set != nil:
			fmt.Fprintf(&s, "operation set %s=%q\n", o.Set.Name, o.Set.Value)
		default:
			fmt.Fprintf(&s, "operation %+v\n", o)
		}
	}
	return s.String()
}

func (v *vector) rewrite(t *testing.T, d *datadriven.TestData) string {
	var b frame.Builder
	for line := range strings.Lines(d.Input) {
		for _, field := range strings.Fields(line) {
			name, value, ok := strings.Cut(field, "=")
			if !ok {
				t.Fatalf("%s: %q is not name=value", d.Pos, field)
			}
			if strings.HasPrefix(value, `"`) {
				var err error
				if value, err = strconv.Unquote(value); err != nil {
					t.Fatal(err)
				}
			}
			b.Label(name, value)
		}
		b.EndRow()
	}
	full, err := b.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	shown := show(t, full, v.plan)
	reply, err := v.m.call("rewrite", shown)
	if err != nil {
		return err.Error() + "\n"
	}
	return replyText(t, shown, reply, v.plan.Tier)
}

// show is the frame that a filter with a plan gets to see of another.
func show(t testing.TB, full []byte, p *filter.Plan) []byte {
	var f frame.Frame
	if err := f.Parse(full); err != nil {
		t.Fatal(err)
	}
	var err error
	shown := full
	switch p.Tier {
	case filter.TierNames:
		shown, err = new(frame.NameLists).Append(nil, &f)
	case filter.TierColumns:
		shown, err = new(frame.ColumnValues).Append(nil, &f, p.Columns)
	}
	if err != nil {
		t.Fatal(err)
	}
	return shown
}

// replyText is what becomes of each row of a frame, after the checks that the host makes.
// Of values that are withheld it says whose they are.
func replyText(t testing.TB, shown, reply []byte, tier filter.Tier) string {
	var f frame.Frame
	if err := f.Parse(shown); err != nil {
		t.Fatal(err)
	}
	var c frame.Changes
	if err := c.Parse(reply, &f, frame.Tier(tier)); err != nil {
		return "fault: " + err.Error() + "\n"
	}
	var s strings.Builder
	for i := range f.Groups() {
		g := c.Group(i)
		for r := range g.Input().Rows() {
			if !g.Keeps(r) {
				s.WriteString("-\n")
				continue
			}
			if tier == filter.TierColumns {
				in := g.Input().Column(0)
				fmt.Fprintf(&s, "%s=%q:", f.Symbol(in.Name), f.Symbol(in.Ref(r)))
			}
			sep := ""
			for j := range g.Columns() {
				col := g.Column(j)
				if col.Withheld() {
					fmt.Fprintf(&s, "%s%s<-%s", sep, c.Symbol(col.Name), f.Symbol(g.Input().Column(col.Input).Name))
				} else if ref := col.Ref(r); ref != 0 {
					fmt.Fprintf(&s, "%s%s=%q", sep, c.Symbol(col.Name), c.Symbol(ref))
				} else {
					continue
				}
				sep = " "
			}
			s.WriteByte('\n')
		}
	}
	return s.String()
}
