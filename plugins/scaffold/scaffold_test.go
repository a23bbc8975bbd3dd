// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package scaffold_test

import (
	"bytes"
	"os"
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

func TestRefused(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o644); err != nil {
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
