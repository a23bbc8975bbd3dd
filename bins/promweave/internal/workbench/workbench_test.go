// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package workbench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden is a project whose module is one of the SDKs' tests, for which no compiler is
// needed: config is put into its manifest.
func golden(t *testing.T, change ...string) *Project {
	t.Helper()
	dir := t.TempDir()
	code, err := os.ReadFile("../../../../sdk/testdata/golden/v1.0/rewrite-c.wasm")
	if err != nil {
		t.Fatal(err)
	}
	manifest := strings.NewReplacer(change...).Replace(`name: rewrite
version: 1.0.0
kind: filter
launch: wasm
file: build/rewrite.wasm
build: [cp source.wasm build/rewrite.wasm]
protocol: {major: 1, min_minor: 0}
config: {drop: pod_template_hash, rename: "node=kubernetes_node", set: "tenant=acme", merge: "true", deny_subject: jane, require: "cluster=eu1"}
`)
	for name, data := range map[string][]byte{"plugin.yaml": []byte(manifest), "source.wasm": code} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Build(t.Context(), io.Discard); err != nil {
		t.Fatal(err)
	}
	return p
}

// results are the checks that did not go well, and how many there were.
func results(checks []Check) (bad []string, n int) {
	for _, c := range checks {
		if c.Result != OK {
			bad = append(bad, c.Name+" "+c.Result+": "+c.Detail)
		}
	}
	return bad, len(checks)
}

func TestGoodFilter(t *testing.T) {
	for _, tier := range []string{"names", "rows", "columns"} {
		p := golden(t, "config: {", "config: {tier: "+tier+", ")
		if bad, n := results(p.Test(t.Context(), io.Discard)); len(bad) > 0 || n < 10 {
			t.Errorf("%s: %d checks, not well: %q", tier, n, bad)
		}
	}
	got, err := golden(t).Bench(t.Context(), time.Millisecond)
	if err != nil || len(got) != 5 || got[0].Ratio <= 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestManifestAndPluginDiffer(t *testing.T) {
	p := golden(t, "name: rewrite", "name: other", "version: 1.0.0", "version: 2.0.0\npermissions: [clock]\nrole: auth\nconfig_schema: {type: array}")
	bad, _ := results(p.Test(t.Context(), io.Discard))
	if len(bad) != 1 {
		t.Fatalf("%q", bad)
	}
	for _, want := range []string{`name: plugin.yaml says "other", the plug-in itself "rewrite"`, "version:", "role:", "permissions:", `config_schema: plugin.yaml says "{\"type\":\"array\"}"`} {
		if !strings.Contains(bad[0], want) {
			t.Errorf("%q lacks %q", bad[0], want)
		}
	}
	p = golden(t, "kind: filter", "kind: backend")
	if bad, n := results(p.Test(t.Context(), io.Discard)); n != 1 || !strings.Contains(bad[0], "is a filter, not a store backend") {
		t.Errorf("%d checks, %q", n, bad)
	}
}

func TestBuildFails(t *testing.T) {
	for change, want := range map[string]string{
		"cp nothing build/x":       "build[0]: cp: exit status",
		"no-such-tool-anywhere":    "needs no-such-tool-anywhere, and it is not installed",
		"true":                     "did not make it",
		"A=1 $NO_TOOL x":           "$NO_TOOL is no tool that is known here",
		"cp a b && rm -rf /tmp/x1": `'&' has a meaning in shells`,
		"go build .":               "run go mod tidy in ",
	} {
		p := golden(t)
		if err := os.RemoveAll(filepath.Join(p.Dir, "build")); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"go.mod":  "module plugin.example/x\n\ngo 1.26.0\n\nrequire github.com/promweave/promweave v1.0.0\n",
			"main.go": "package main\n\nimport _ \"github.com/promweave/promweave/sdk/plugin\"\n\nfunc main() {}\n",
		} {
			if err := os.WriteFile(filepath.Join(p.Dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p.Manifest.Build[0].Run = change
		if err := p.Build(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "plugin.yaml") {
			t.Errorf("%s: %v, want %q", change, err, want)
		}
	}
}

func TestSplit(t *testing.T) {
	for in, want := range map[string][]string{
		"":                          nil,
		"  a  b\tc ":                {"a", "b", "c"},
		`a "b c" 'd "e' f"g h"i`:    {"a", "b c", `d "e`, "fg hi"},
		`A=1 -DX='a b' ""`:          {"A=1", "-DX=a b", ""},
		"-Zcrate-attr='feature(x)'": {"-Zcrate-attr=feature(x)"},
	} {
		got, err := split(in)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{`"a`, "a | b", "$(x)", "a;b", "`x`", "a > b", "*"} {
		if got, err := split(in); err == nil {
			t.Errorf("%q became %q", in, got)
		}
	}
}

// fake is a filter of the host's own making, to be found out.
type fake struct {
	plan    filter.Plan
	rewrite func(in *frame.Frame, out *frame.Reply) error
	raw     func() []byte
	err     error
}

func (f *fake) Plan() filter.Plan { return f.plan }
func (f *fake) Request(context.Context, *filter.RequestCall) (*filter.RequestReply, error) {
	return &filter.RequestReply{}, f.err
}
func (f *fake) Select(context.Context, *filter.SelectCall) (*filter.SelectReply, error) {
	return &filter.SelectReply{}, f.err
}
func (f *fake) Close() error { return nil }
func (f *fake) Rewrite(_ context.Context, b, reply []byte) ([]byte, error) {
	if f.raw != nil {
		return f.raw(), nil
	}
	var in frame.Frame
	if err := in.Parse(b); err != nil {
		return nil, err
	}
	var out frame.Reply
	out.Reset(&in)
	if err := f.rewrite(&in, &out); err != nil {
		return nil, err
	}
	return out.Append(reply[:0]), nil
}

// setTo writes a label on all rows of all groups.
func setTo(label string, value func(in *frame.Frame) string) func(in *frame.Frame, out *frame.Reply) error {
	return func(in *frame.Frame, out *frame.Reply) error {
		name := in.FindName(label)
		if name == 0 {
			name = out.Intern(label)
		}
		v := out.Intern(value(in))
		for i := range in.Groups() {
			g := in.Group(i)
			out.Group(i)
			for c := range g.Columns() {
				if n := g.Column(c).Name; n != name {
					out.Input(n, c)
				}
			}
			out.Constant(name, v)
		}
		return nil
	}
}

func always(s string) func(*frame.Frame) string { return func(*frame.Frame) string { return s } }

// TestBadFilters: each is found by the check that is there for it.
func TestBadFilters(t *testing.T) {
	calls := 0
	rows := filter.Plan{Tier: filter.TierRows, Writes: []string{"tenant"}, Merge: true}
	for name, c := range map[string]struct {
		f    *fake
		want string
	}{
		"good":                       {&fake{plan: rows, rewrite: setTo("tenant", always("x"))}, ""},
		"writes what is not planned": {&fake{plan: rows, rewrite: setTo("job", always("x"))}, `label sets failed: filter "fake": plug-in fault: against its plan: it writes the label "job": declare it in the plan's writes`},
		"wants none":                 {&fake{plan: rows, rewrite: func(*frame.Frame, *frame.Reply) error { return errors.New("nothing for me") }}, "frames of every shape failed: rewrite returned an error for each of 7 frames, the last: nothing for me"},
		"no columns":                 {&fake{plan: filter.Plan{Tier: filter.TierColumns}}, "plan failed: tier columns without columns: rewrite is never called"},
		"garbage":                    {&fake{plan: rows, raw: func() []byte { return []byte("garbage!") }}, "frames of every shape failed"},
		"other every time": {&fake{plan: rows, rewrite: setTo("tenant", func(*frame.Frame) string {
			calls++
			return fmt.Sprint(calls)
		})}, "same again failed: the second time: want {"},
		"looks at its neighbours": {&fake{plan: rows, rewrite: setTo("tenant", func(in *frame.Frame) string { return fmt.Sprint(in.Rows()) })}, "other batches failed: in batches of"},
		"a plan that cannot be":   {&fake{plan: filter.Plan{Operations: []filter.Operation{{Rename: &filter.Rename{}}}}}, "plan failed"},
		"breaks when asked":       {&fake{plan: filter.Plan{Hooks: []string{filter.HookRequest}}, err: fmt.Errorf("trap: %w", carrier.ErrFault)}, "request hook failed: trap"},
		"breaks at select":        {&fake{plan: filter.Plan{Hooks: []string{filter.HookSelect}}, err: fmt.Errorf("trap: %w", carrier.ErrFault)}, "select hook failed: trap"},
		"denies":                  {&fake{plan: filter.Plan{Hooks: []string{filter.HookRequest}}, err: errors.New("no")}, ""},
	} {
		var r report
		testFilter(t.Context(), &r, &registryFilter{Link: filtering.Link{Name: "fake", Filter: c.f}})
		bad, _ := results(slices.DeleteFunc(r.checks, func(c Check) bool { return c.Result == Skipped }))
		if c.want == "" && len(bad) > 0 || c.want != "" && !slices.ContainsFunc(bad, func(s string) bool { return strings.HasPrefix(s, c.want) }) {
			t.Errorf("%s: %q, want %q", name, bad, c.want)
		}
	}
}

// memory is a store that can be made to break one rule after the other.
type memory struct {
	sets   []labels.Labels
	breaks string
}

func (m *memory) Info(context.Context) (backend.Info, error) {
	if m.breaks == "times" {
		return backend.Info{MinTime: 1}, nil
	}
	return backend.Info{MaxTime: math.MaxInt64}, nil
}

func (m *memory) stored(req *backend.SeriesRequest, ms []*labels.Matcher) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		b := backend.NewBatch(len(m.sets))
		for _, ls := range m.sets {
			if m.breaks != "matchers" && !shaping.Matches(ls, ms) {
				continue
			}
			s := backend.Series{Labels: ls}
			if !req.SkipChunks || m.breaks == "chunks" {
				s.Chunks, _ = shaping.EncodeSamples([]shaping.Sample{{T: req.MaxTime - 1}, {T: req.MaxTime}})
				if m.breaks == "bounds" {
					s.Chunks[0].MaxTime--
				}
				if m.breaks == "bytes" {
					s.Chunks[0].Raw.Data = s.Chunks[0].Raw.Data[:5]
				}
			}
			b.Append(s)
		}
		yield(b, nil)
	}
}

func (m *memory) Series(_ context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return m.stored(req, req.Matchers)
}

func (m *memory) LabelNames(_ context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	names := []string{"__name__", "job"}
	switch m.breaks {
	case "names":
		names = names[:1]
	case "order of names":
		slices.Reverse(names)
	}
	return &backend.Labels{Values: names}, nil
}

func (m *memory) LabelValues(_ context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	var values []string
	for _, ls := range m.sets {
		values = append(values, ls.Get(req.Name))
	}
	slices.Sort(values)
	if m.breaks == "values" {
		return &backend.Labels{}, nil
	}
	return &backend.Labels{Values: slices.Compact(values)}, nil
}

func TestBackends(t *testing.T) {
	sorted := []labels.Labels{labels.FromStrings("__name__", "up", "job", "a"), labels.FromStrings("__name__", "up", "job", "b")}
	for breaks, want := range map[string]string{
		"":               "",
		"times":          "info failed: MinTime",
		"order":          "series failed",
		"matchers":       `matchers failed: {__name__!="up"}: want 0 label sets, got 2 (rule S-6)`,
		"chunks":         "without chunks failed",
		"bounds":         "series failed: {__name__",
		"bytes":          "series failed: {__name__",
		"names":          `label names and values failed: names: "job" is missing`,
		"order of names": "label names and values failed: names: are not sorted",
		"values":         "label names and values failed: values of ",
	} {
		m := &memory{sets: slices.Clone(sorted), breaks: breaks}
		if breaks == "order" {
			slices.Reverse(m.sets)
		}
		var r report
		testBackend(t.Context(), &r, m)
		bad, n := results(r.checks)
		if want == "" && (len(bad) > 0 || n != 6) || want != "" && (len(bad) == 0 || !strings.HasPrefix(bad[0], want)) {
			t.Errorf("%q: %d checks, %q, want %q", breaks, n, bad, want)
		}
	}
}

// TestFrameOf: the frames that filters are tried with are those that hosts send.
func TestFrameOf(t *testing.T) {
	list := []labels.Labels{labels.FromStrings("a", "1", "b", "2"), labels.FromStrings("a", "1", "b", "3")}
	for tier, want := range map[filter.Tier][2]int{filter.TierRows: {1, 2}, filter.TierNames: {1, 1}, filter.TierColumns: {1, 2}} {
		data, err := FrameOf(filter.Plan{Tier: tier, Columns: []string{"b"}}, list)
		if err != nil {
			t.Fatal(err)
		}
		var f frame.Frame
		if err := f.Parse(data); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, [2]int{f.Groups(), f.Rows()}); diff != "" {
			t.Errorf("%s: %s", tiers[tier], diff)
		}
	}
}
