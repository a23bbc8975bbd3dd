// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package promweave holds no code, only the tests of the tree's own rules: who may
// import whom, and what every folder and file must have. ARCHITECTURE.md says why.
package promweave

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/promweave/promweave"

type pkg struct {
	ImportPath   string
	Dir          string
	Doc          string
	Name         string
	Imports      []string
	Deps         []string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Name,Imports,Deps,GoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages only", len(all))
	}
	return all
}

// area is the top-level folder that a package of ours is in, "" for others.
func area(path string) string {
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	top, _, _ := strings.Cut(rest, "/")
	return top
}

// TestWhoMayImportWhom keeps sdk ← core ← plugins ← bins, sdk ← core ← blocks ← backends, and
// conformance → sdk, for imports that are not a test's.
func TestWhoMayImportWhom(t *testing.T) {
	allowed := map[string]struct {
		may []string
		why string
	}{
		"sdk":         {[]string{"sdk"}, "a plug-in author gets sdk and nothing else of ours"},
		"core":        {[]string{"core", "sdk"}, "the engine knows no particular store and no particular program"},
		"plugins":     {[]string{"plugins", "core", "sdk"}, "the host side of plug-ins serves every program"},
		"blocks":      {[]string{"blocks", "core", "sdk"}, "what is done to blocks is done by commands and backends"},
		"backends":    {[]string{"backends", "blocks", "sdk"}, "our backends have no way in that a third party's lack"},
		"conformance": {[]string{"conformance", "sdk"}, "outsiders must be able to import the suite"},
		"bins":        {[]string{"bins", "plugins", "core", "backends", "blocks", "conformance", "sdk"}, "programs put it all together"},
	}
	for _, p := range list(t) {
		a := area(p.ImportPath)
		if a == "" {
			continue
		}
		rule, ok := allowed[a]
		if !ok {
			t.Errorf("%s: folder %q is not in the tree of ARCHITECTURE.md", p.ImportPath, a)
			continue
		}
		for _, imp := range p.Imports {
			if b := area(imp); b != "" && !slices.Contains(rule.may, b) {
				t.Errorf("%s imports %s, but %s may import only %v: %s", p.ImportPath, imp, a, rule.may, rule.why)
			}
			if a == "backends" && area(imp) == "backends" && !sameBackend(p.ImportPath, imp) {
				t.Errorf("%s imports %s: one kind of store does not lean on another", p.ImportPath, imp)
			}
		}
	}
}

func sameBackend(a, b string) bool {
	second := func(p string) string { return strings.Split(strings.TrimPrefix(p, module+"/"), "/")[1] }
	return second(a) == second(b)
}

// TestHeavyDependencies keeps out of an area, directly and through others, what
// would make everybody who imports it pay.
func TestHeavyDependencies(t *testing.T) {
	bans := []struct {
		areas  []string
		prefix string
		why    string
	}{
		{[]string{"sdk", "core"}, "github.com/prometheus/prometheus/storage/remote", "it drags the cloud SDKs along; sdk/remoteread is our codec"},
		{[]string{"sdk", "core"}, "github.com/prometheus/prometheus/config", "it drags service discovery and the cloud SDKs along"},
		{[]string{"sdk", "core"}, "github.com/aws/", "cloud SDKs belong to programs that need them"},
		{[]string{"sdk", "core"}, "github.com/Azure/", "cloud SDKs belong to programs that need them"},
		{[]string{"sdk", "core"}, "cloud.google.com/", "cloud SDKs belong to programs that need them"},
		{[]string{"sdk", "core"}, "k8s.io/", "nothing in the engine knows where it runs"},
		{[]string{"sdk", "core", "plugins", "backends", "bins"}, "sigs.k8s.io/kustomize", "manifests are rendered in tests only"},
		{[]string{"sdk", "core"}, "github.com/prometheus/prometheus/tsdb/wlog", "the engine reads chunks, whoever stores them"},
		{[]string{"sdk"}, "github.com/prometheus/prometheus/promql", "a backend selects series, it does not evaluate"},
		{[]string{"sdk"}, "github.com/prometheus/prometheus/tsdb/index", "only chunk encodings are part of the contract"},
		{[]string{"sdk", "core"}, "github.com/stretchr/testify", "test libraries stay out of programs"},
		{[]string{"sdk", "core", "plugins", "backends", "bins"}, "github.com/prometheus/prometheus/promql/promqltest", "test libraries stay out of programs"},
	}
	for _, p := range list(t) {
		for _, ban := range bans {
			if !slices.Contains(ban.areas, area(p.ImportPath)) || strings.HasSuffix(p.Name, "_test") {
				continue
			}
			for _, d := range p.Deps {
				if d == ban.prefix || strings.HasPrefix(d, strings.TrimSuffix(ban.prefix, "/")+"/") {
					t.Errorf("%s depends on %s: %s", p.ImportPath, d, ban.why)
					break
				}
			}
		}
	}
}

// TestFolders: each has one package comment, tests, and a check for leaked
// goroutines in its TestMain.
func TestFolders(t *testing.T) {
	generated := regexp.MustCompile(`(\.pb|_grpc\.pb|_vtproto\.pb)\.go$`)
	for _, p := range list(t) {
		if area(p.ImportPath) == "" || len(p.GoFiles) == 0 {
			continue
		}
		docs, written := 0, 0
		for _, f := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if !generated.MatchString(f) {
				written++
			}
			if packageComment.Match(b) && !generated.MatchString(f) {
				docs++
			}
		}
		if docs != 1 {
			t.Errorf("%s: %d files have a package comment, want one", p.ImportPath, docs)
		}
		base := filepath.Base(p.Dir)
		if slices.Contains([]string{"util", "utils", "common", "helpers", "manager", "misc"}, base) {
			t.Errorf("%s: the name says nothing; name the folder for its concept", p.ImportPath)
		}
		tests := slices.Concat(p.TestGoFiles, p.XTestGoFiles)
		if written == 0 || slices.Contains(untested, strings.TrimPrefix(p.ImportPath, module+"/")) {
			continue
		}
		leak := false
		for _, f := range tests {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			leak = leak || bytes.Contains(b, []byte("goleak.VerifyTestMain")) || bytes.Contains(b, []byte("goleak.Find()"))
		}
		if !leak {
			t.Errorf("%s: no test file calls goleak.VerifyTestMain in TestMain", p.ImportPath)
		}
	}
}

var packageComment = regexp.MustCompile(`(?m)(^//.*\n|\*/\n)package \w+`)

// untested are folders without tests of their own, each for a reason.
var untested = []string{
	// Mains of a few lines, run by the tests of plugins/registry and bins/promweave.
	"bins/promweave", "bins/promweave-auth", "bins/promweave-label-rewrite", "bins/promweave-prometheus", "bins/promweave-reloader", "bins/promweave-tenancy", "bins/promweave-tsdb",
	// Test doubles and suites, used by the tests of others.
	"core/internal/fakestore", "sdk/storepb/internal/pbtest",
	"plugins/carrier/carriertest", "plugins/carrier/carriertest/faultfilter", "plugins/carrier/carriertest/teststore",
	"plugins/carrier/carriertest/testplugin/filter", "plugins/carrier/carriertest/testplugin/store",
	"sdk/guest/testfilter", "sdk/guest/testfilter/module",
	// What the suite consists of, run by the tests of conformance.
	"conformance/internal/suite", "conformance/internal/mutants",
	// Built by the tests of sdk/guest.
	"sdk/guest/template",
	// Plain data and interfaces, tested where they are filled in.
	"core/report", "plugins/carrier", "sdk/pluginpb", "sdk/plugin/store",
	// Run by make check.
	"sdk/storepb/internal/protogen",
}

// TestFiles: hand-written files carry the licence, stay readable in one sitting,
// and say nothing of the machine they were written on.
func TestFiles(t *testing.T) {
	const most = 40 << 10
	machine := regexp.MustCompile(`(?i)/work/|/root/|\.\./shared|proxy\.golang\.org`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == ".git" || name == "bin" || name == "testdata" || name == "node_modules" {
				return filepath.SkipDir
			}
			return nil
		}
		if path == "architecture_test.go" || strings.HasPrefix(path, "promweave-data") {
			return nil
		}
		switch filepath.Ext(path) {
		case ".go", ".proto", ".md", ".yaml", ".yml", ".txtar":
		default:
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if m := machine.Find(b); m != nil {
			t.Errorf("%s names %q", path, m)
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		first, _ := bufio.NewReader(bytes.NewReader(b)).ReadString('\n')
		if strings.HasPrefix(first, "// Code generated") || bytes.Contains(b[:min(len(b), 4000)], []byte("// Code generated by protoc")) {
			return nil
		}
		if len(b) > most {
			t.Errorf("%s has %d bytes, more than %d: split it by concept", path, len(b), most)
		}
		if !bytes.Contains(b[:min(len(b), 300)], []byte("SPDX-License-Identifier: Apache-2.0")) {
			t.Errorf("%s lacks the licence line", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
