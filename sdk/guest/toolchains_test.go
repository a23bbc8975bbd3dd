// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package guest_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// absent says that a compiler is not there, and why.
type absent struct{ why string }

func (a absent) Error() string { return a.why }

// language is one of those that plug-ins are written in.
type language struct {
	name string
	// golden is the committed module of the reference filter.
	golden string
	// build makes a module of an example and returns its code; absent without a compiler.
	build func(dir, example string) ([]byte, error)
}

var languages = []language{
	{"go", "../testdata/golden/v1.0/rewrite-go.wasm.gz", buildGo},
	{"c", "../testdata/golden/v1.0/rewrite-c.wasm", buildC},
	{"rust", "../testdata/golden/v1.0/rewrite-rust.wasm", buildRust},
	{"assemblyscript", "../testdata/golden/v1.0/rewrite-assemblyscript.wasm", buildAssemblyScript},
}

// example is where a language has its reference filter.
var example = map[string]string{
	"go":             "./testfilter/module",
	"c":              "../c/examples/rewrite.c",
	"rust":           "../rust/examples/rewrite.rs",
	"assemblyscript": "../assemblyscript/examples/rewrite.ts",
}

// run runs a command of a README: the error has what it said.
func run(dir string, env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func buildGo(dir, source string) ([]byte, error) {
	to := filepath.Join(dir, "filter.wasm")
	err := run(".", []string{"GOOS=wasip1", "GOARCH=wasm", "GOFLAGS="}, "go", "build", "-trimpath", "-buildmode=c-shared", "-ldflags=-s -w", "-o", to, source)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(to)
}

// find returns the first of several programs that is there.
func find(names ...string) (string, error) {
	for _, name := range names {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", absent{strings.Join(names, " or ") + " is not installed"}
}

func buildC(dir, source string) ([]byte, error) {
	clang, err := find("clang")
	if err != nil {
		return nil, err
	}
	lld, err := find("wasm-ld", "wasm-ld-14", "wasm-ld-16", "wasm-ld-19")
	if err != nil {
		return nil, err
	}
	object, to := filepath.Join(dir, "filter.o"), filepath.Join(dir, "filter.wasm")
	// Two steps: where Binaryen is installed the driver of clang runs it when linking,
	// and that refuses what -mbulk-memory makes.
	if err := run(".", nil, clang, "-std=c11", "-O3", "--target=wasm32", "-ffreestanding", "-nostdlib", "-mbulk-memory",
		"-Wall", "-Wextra", "-Werror", "-c", source, "-o", object); err != nil {
		return nil, err
	}
	if err := run(".", nil, lld, "--no-entry", "-z", "stack-size=65536", "--strip-all", object, "-o", to); err != nil {
		return nil, err
	}
	return os.ReadFile(to)
}

// rustCompiler is a compiler that has the target.
type rustCompiler struct {
	path string
	env  []string
	// last are options for the module itself.
	last []string
}

// rustc finds one: distributions and rustup put them in different places, and the first
// in PATH need not be the one.
var rustc = sync.OnceValues(func() (*rustCompiler, error) {
	why := "rustc is not installed"
	for _, name := range []string{"rustc", "/usr/bin/rustc"} {
		p, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		out, err := exec.Command(p, "--print", "target-libdir", "--target", "wasm32-unknown-unknown").Output()
		if err != nil {
			why = p + ": " + err.Error()
			continue
		}
		if cores, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "libcore-*.rlib")); len(cores) == 0 {
			why = p + " has no target wasm32-unknown-unknown"
			continue
		}
		c := &rustCompiler{path: p}
		out, err = exec.Command(p, "--version").Output()
		if err != nil {
			return nil, err
		}
		// Before 1.68 a program without the standard library has to ask for the usual
		// way to treat a lack of memory, which is to end.
		var major, minor int
		if _, err := fmt.Sscanf(string(out), "rustc %d.%d.", &major, &minor); err != nil {
			return nil, fmt.Errorf("%s --version: %q", p, out)
		}
		if major == 1 && minor < 68 {
			c.env = []string{"RUSTC_BOOTSTRAP=1"}
			c.last = []string{"-Zcrate-attr=feature(default_alloc_error_handler)"}
		}
		return c, nil
	}
	return nil, absent{why}
})

func buildRust(dir, source string) ([]byte, error) {
	c, err := rustc()
	if err != nil {
		return nil, err
	}
	lld, err := find("wasm-ld", "wasm-ld-14", "wasm-ld-16", "wasm-ld-19", "rust-lld")
	if err != nil {
		return nil, err
	}
	// What a panic logs names files by where they are in the SDK, not on this machine.
	root, err := filepath.Abs("../rust")
	if err != nil {
		return nil, err
	}
	lib, to := filepath.Join(dir, "libpromweave.rlib"), filepath.Join(dir, "filter.wasm")
	options := []string{"--edition", "2021", "--target", "wasm32-unknown-unknown", "-C", "opt-level=s", "-C", "panic=abort",
		"-C", "target-feature=+bulk-memory", "--remap-path-prefix", root + "=promweave"}
	if err := run(".", c.env, c.path, slices.Concat(options, []string{"-D", "warnings", "--crate-type", "rlib", "--crate-name", "promweave",
		"../rust/src/lib.rs", "-o", lib})...); err != nil {
		return nil, err
	}
	if err := run(".", c.env, c.path, slices.Concat(options, c.last, []string{"-D", "warnings", "--crate-type", "cdylib", "-C", "lto=fat",
		"-C", "strip=symbols", "-C", "linker=" + lld, "-C", "link-arg=-zstack-size=65536",
		"--extern", "promweave=" + lib, source, "-o", to})...); err != nil {
		return nil, err
	}
	return os.ReadFile(to)
}

// npm installs the compiler that package.json pins, once.
var npm = sync.OnceValues(func() (string, error) {
	if _, err := find("npm"); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "promweave-asc")
	if err != nil {
		return "", err
	}
	asc = dir
	if err := os.CopyFS(dir, os.DirFS("../assemblyscript")); err != nil {
		return "", err
	}
	if err := run(dir, nil, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"); err != nil {
		return "", absent{"npm cannot install assemblyscript: " + err.Error()}
	}
	return dir, nil
})

// asc is the directory that npm made.
var asc string

func buildAssemblyScript(to, source string) ([]byte, error) {
	dir, err := npm()
	if err != nil {
		return nil, err
	}
	to = filepath.Join(to, "filter.wasm")
	source = strings.TrimPrefix(source, "../assemblyscript/")
	if err := run(dir, nil, "npx", "asc", source, "--target", "release", "-o", to); err != nil {
		return nil, err
	}
	return os.ReadFile(to)
}

// golden reads a committed module.
func golden(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(path, ".gz") {
		return b, err
	}
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// built returns the modules that the tests run: the golden one of each language, and
// one that is built now where there is a compiler. Where there is none is logged.
func built(t testing.TB) map[string][]byte {
	t.Helper()
	modules := map[string][]byte{}
	for _, l := range languages {
		code, err := golden(l.golden)
		if err != nil {
			t.Error(err)
		} else {
			modules[l.name+" golden"] = code
		}
		code, err = build(l)
		var why absent
		switch {
		case errors.As(err, &why):
			t.Logf("%s: only the golden module was run: %s", l.name, why.why)
			t.Attr("golden-only-"+l.name, strings.ReplaceAll(why.why, "\n", " "))
		case err != nil:
			t.Errorf("%s: %v", l.name, err)
		default:
			modules[l.name] = code
		}
	}
	return modules
}

// build builds the reference filter of a language, once for all tests.
func build(l language) ([]byte, error) {
	b, ok := builds.Load(l.name)
	if !ok {
		b, _ = builds.LoadOrStore(l.name, sync.OnceValues(func() ([]byte, error) {
			dir, err := os.MkdirTemp("", "promweave-guest")
			if err != nil {
				return nil, err
			}
			defer os.RemoveAll(dir)
			return l.build(dir, example[l.name])
		}))
	}
	return b.(func() ([]byte, error))()
}

var builds sync.Map
