// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package scaffold_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/scaffold"
	"github.com/promweave/promweave/plugins/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestWrite: every template is filled in completely, its manifest is sound, and names
// what is in the source.
func TestWrite(t *testing.T) {
	for _, kind := range []string{"filter", "backend"} {
		for _, language := range scaffold.Languages(kind) {
			for _, sdk := range []string{"", "../.."} {
				dir := filepath.Join(t.TempDir(), "acme")
				files, err := scaffold.Write(dir, scaffold.Options{Name: "acme.9-x", Kind: kind, Language: language, SDK: sdk, Version: "v1.2.3"})
				if err != nil {
					t.Errorf("%s %s: %v", kind, language, err)
					continue
				}
				m, err := trust.ReadManifest(dir)
				if err != nil {
					t.Error(err)
					continue
				}
				if m.Name != "acme.9-x" || m.Kind != kind || m.Language != language || m.Config == "" || len(m.Build) == 0 || m.Works() != nil {
					t.Errorf("%s %s: manifest is %+v", kind, language, m)
				}
				named := false
				for _, name := range files {
					data, err := os.ReadFile(filepath.Join(dir, name))
					if err != nil {
						t.Error(err)
					}
					if bytes.Contains(data, []byte("<%")) || bytes.Contains(data, []byte("<no value>")) {
						t.Errorf("%s %s: %s has something left of the template", kind, language, name)
					}
					if ext := filepath.Ext(name); !strings.HasPrefix(name, "promweave") && slices.Contains([]string{".go", ".c", ".rs", ".ts"}, ext) {
						named = named || bytes.Contains(data, []byte(`"acme.9-x"`))
						if lines := bytes.Count(data, []byte("\n")); lines > 150 {
							t.Errorf("%s %s: %s has %d lines", kind, language, name, lines)
						}
					}
				}
				if !named {
					t.Errorf("%s %s: the source does not say the name", kind, language)
				}
				if !slices.Contains(files, ".gitignore") || !slices.Contains(files, "README.md") {
					t.Errorf("%s %s: files are %q", kind, language, files)
				}
			}
		}
	}
}

// TestModulePath: a project's module has a path that Go takes, and for its own.
func TestModulePath(t *testing.T) {
	for name, want := range map[string]string{"fmt": "plugin.example/fmt", "go": "plugin.example/go", "con": "plugin.example/plugin-con", "a.9-x": "plugin.example/a.9-x"} {
		dir := filepath.Join(t.TempDir(), name)
		if _, err := scaffold.Write(dir, scaffold.Options{Name: name, Kind: "filter", Language: "go", SDK: "../.."}); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("go", "list", ".")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, want)
		}
	}
}

func TestCheckout(t *testing.T) {
	want, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{filepath.Join(want, "plugins", "scaffold"): want, want: want, t.TempDir(): "", "/": ""} {
		if got := scaffold.Checkout(dir); got != want {
			t.Errorf("%s: %q, want %q", dir, got, want)
		}
	}
}

func TestRefused(t *testing.T) {
	full := t.TempDir()
	file := filepath.Join(full, "x")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir  string
		o    scaffold.Options
		want string
	}{
		{"", scaffold.Options{Name: "../x", Kind: "filter", Language: "go"}, "is no name of a plug-in"},
		{"", scaffold.Options{Name: "x", Kind: "function", Language: "go"}, "is no kind of plug-in"},
		{"", scaffold.Options{Name: "x", Kind: "filter", Language: "zig"}, `there is no template of a filter in "zig": there are assemblyscript, c, go, rust`},
		{"", scaffold.Options{Name: "x", Kind: "filter", Language: "go", SDK: full}, "is no checkout of Promweave"},
		{full, scaffold.Options{Name: "x", Kind: "filter", Language: "c"}, "is there and not empty"},
		{file, scaffold.Options{Name: "x", Kind: "filter", Language: "c"}, "is a file"},
		{"", scaffold.Options{Name: "x", Kind: "filter", Language: "go", Version: "v6338ef8"}, "this promweave (6338ef8) is of no release"},
		{"", scaffold.Options{Name: "x", Kind: "filter", Language: "go", Version: "v1.2.3-4-g6338ef8"}, "--sdk CHECKOUT"},
	} {
		dir := c.dir
		if dir == "" {
			dir = filepath.Join(t.TempDir(), "p")
		}
		if _, err := scaffold.Write(dir, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}
