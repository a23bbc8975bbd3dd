// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package reloader

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func zipped(t testing.TB, data []byte) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func environment(name string) (string, bool) {
	v, ok := map[string]string{"POD": "prom-0", "_x1": "y", "EMPTY": "", "NESTED": "$(POD)"}[name]
	return v, ok
}

func TestExpand(t *testing.T) {
	for in, want := range map[string]struct{ out, missing string }{
		"":                         {"", ""},
		"replica: $(POD)":          {"replica: prom-0", ""},
		"$(POD)$(POD)-$(_x1)":      {"prom-0prom-0-y", ""},
		"a$(EMPTY)b":               {"ab", ""},
		"$(NESTED)":                {"$(POD)", ""},
		"$POD ${POD} $(POD":        {"$POD ${POD} $(POD", ""},
		"$1 $$ $() $(1X) $(a.b)":   {"$1 $$ $() $(1X) $(a.b)", ""},
		"$(NONE) $(POD) $(NONE)":   {"$(NONE) prom-0 $(NONE)", "NONE"},
		"$(B) $(A)":                {"$(B) $(A)", "B A"},
		"$$(POD)":                  {"$prom-0", ""},
		"regex: (a|b)$\nx: $(POD)": {"regex: (a|b)$\nx: prom-0", ""},
	} {
		out, missing := expand([]byte(in), environment)
		if string(out) != want.out || strings.Join(missing, " ") != want.missing {
			t.Errorf("%q: %q, missing %q", in, out, missing)
		}
	}
}

func TestPlain(t *testing.T) {
	big := zipped(t, make([]byte, maxFile+1))
	for name, x := range map[string]struct{ in, want, problem string }{
		"plain":     {"a: b", "a: b", ""},
		"empty":     {"", "", ""},
		"gzip":      {zipped(t, []byte("a: b")), "a: b", ""},
		"cut off":   {zipped(t, []byte("a: b"))[:15], "", "gzip"},
		"no header": {"\x1f\x8bxx", "", "gzip"},
		"a bomb":    {big, "", "larger than 32 MiB"},
	} {
		got, err := plain([]byte(x.in))
		if (err == nil) != (x.problem == "") || err != nil && !strings.Contains(err.Error(), x.problem) || string(got) != x.want {
			t.Errorf("%s: %.20q, %v", name, got, err)
		}
	}
}

// TestReplace: a file is there whole, and is left alone if nothing changes.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "out.yml")
	for range 2 {
		if err := replace(name, []byte("one")); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(name)
	if err != nil || before.Mode().Perm() != 0o644 {
		t.Fatal(before, err)
	}
	if err := replace(name, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(name); err != nil || !os.SameFile(before, after) {
		t.Error("the same content was written again", err)
	}
	old, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := replace(name, []byte("two")); err != nil {
		t.Fatal(err)
	}
	// Whoever reads the old one reads it to its end.
	if data, err := bounded(old); err != nil || string(data) != "one" {
		t.Errorf("%s %v", data, err)
	}
	if data, err := readFile(name); err != nil || string(data) != "two" {
		t.Errorf("%s %v", data, err)
	}
	if err := replace(filepath.Join(dir, "none", "x"), nil); err == nil {
		t.Error("no error for a directory that is not there")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

// TestTree: what changes the hash, and what does not.
func TestTree(t *testing.T) {
	dir := t.TempDir()
	hash := func() string {
		t.Helper()
		h := sha256.New()
		if _, err := tree(h, dir, 0); err != nil {
			t.Fatal(err)
		}
		return string(h.Sum(nil))
	}
	seen := []string{hash()}
	step := func(name string, changes bool, f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatal(err)
		}
		h := hash()
		if slices.Contains(seen, h) == changes {
			t.Errorf("%s: seen before %v", name, !changes)
		}
		seen = append(seen, h)
	}
	at := func(p string) string { return filepath.Join(dir, p) }
	put := func(p, text string) func() error {
		return func() error { write(t, at(p), text); return nil }
	}
	step("a file", true, put("a.yml", "1"))
	step("its content", true, put("a.yml", "2"))
	step("another", true, put("sub/b.yml", "2"))
	step("a name", true, func() error { return os.Rename(at("sub/b.yml"), at("sub/c.yml")) })
	step("the same content", false, put("a.yml", "2"))
	step("a temporary file", false, put(".a.yml.swp", "x"))
	step("a link to nowhere", false, func() error { return os.Symlink(at("none"), at("broken")) })
	step("removal", true, func() error { return os.Rename(at("a.yml"), at("sub/a.yml")) })

	h := sha256.New()
	if dirs, err := tree(h, dir, 0); err != nil || !slices.Contains(dirs, dir) || !slices.Contains(dirs, at("sub")) {
		t.Errorf("%v %v", dirs, err)
	}
	if err := os.Symlink(dir, at("circle")); err != nil {
		t.Fatal(err)
	}
	if _, err := tree(h, dir, 0); err == nil || !strings.Contains(err.Error(), "circle") {
		t.Errorf("a circle: %v", err)
	}
	if _, err := tree(h, at("none"), 0); err == nil {
		t.Error("no error for what is not there")
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	big := write(t, filepath.Join(dir, "big"), "")
	if err := os.Truncate(big, maxFile+1); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{big: "larger than 32 MiB", dir: "not a file", filepath.Join(dir, "none"): "no such file"} {
		if _, err := readFile(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
