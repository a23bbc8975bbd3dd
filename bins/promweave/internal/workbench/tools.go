// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package workbench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/promweave/promweave/plugins/trust"
)

// tools finds compilers: distributions give them different names and places.
type tools struct {
	ctx   context.Context
	found map[string]string
}

func newTools(ctx context.Context) *tools { return &tools{ctx: ctx, found: map[string]string{}} }

// tool is a program that builds need: variable is how a manifest may name it.
type tool struct {
	variable string
	names    []string
	get      string
	// usable says why a program that is there does not do; nil is any does.
	usable func(t *tools, path string) error
}

var known = map[string]tool{
	"go":      {"GO", []string{"go"}, "install Go 1.26 or newer from https://go.dev/dl", nil},
	"clang":   {"CLANG", []string{"clang", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14"}, "Debian: apt install clang; others: https://releases.llvm.org", nil},
	"wasm-ld": {"WASM_LD", []string{"wasm-ld", "wasm-ld-19", "wasm-ld-18", "wasm-ld-17", "wasm-ld-16", "wasm-ld-15", "wasm-ld-14"}, "Debian: apt install lld; others: https://lld.llvm.org", nil},
	"rustc": {"RUSTC", []string{"rustc", "/usr/bin/rustc"},
		"rustup target add wasm32-unknown-unknown; Debian: apt install rustc libstd-rust-dev-wasm32", (*tools).hasWasmTarget},
	"node": {"NODE", []string{"node", "nodejs"}, "install Node 20 or newer: https://nodejs.org; Debian: apt install nodejs", nil},
	"npm":  {"NPM", []string{"npm"}, "it comes with Node: https://nodejs.org; Debian: apt install npm", nil},
}

// Available says what is missing to build plug-ins in a language, as it is called in
// manifests; nil is nothing.
func Available(ctx context.Context, language string) error {
	needs, ok := map[string][]string{
		"go": {"go"}, "c": {"clang", "wasm-ld"}, "rust": {"rustc", "wasm-ld"}, "assemblyscript": {"node", "npm"},
	}[language]
	if !ok {
		return fmt.Errorf("%q is no language that is known here", language)
	}
	t := newTools(ctx)
	for _, name := range needs {
		if _, err := t.find(name); err != nil {
			return err
		}
	}
	return nil
}

// find is the path of a tool.
func (t *tools) find(name string) (string, error) {
	if p, ok := t.found[name]; ok {
		return p, nil
	}
	k := known[name]
	names := k.names
	if v := os.Getenv(k.variable); v != "" {
		names = []string{v}
	}
	why := errors.New("it is not installed, or not in PATH")
	for _, n := range names {
		p, err := exec.LookPath(n)
		if err != nil {
			continue
		}
		if k.usable != nil {
			if err := k.usable(t, p); err != nil {
				why = err
				continue
			}
		}
		t.found[name] = p
		return p, nil
	}
	return "", fmt.Errorf("needs %s, and %w; %s; or set %s to its path", name, why, k.get, k.variable)
}

func (t *tools) hasWasmTarget(path string) error {
	out, err := exec.CommandContext(t.ctx, path, "--print", "target-libdir", "--target", "wasm32-unknown-unknown").Output()
	if err != nil {
		return fmt.Errorf("%s does not answer: %w%s", path, err, stderrOf(err))
	}
	if cores, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "libcore-*.rlib")); len(cores) == 0 {
		return fmt.Errorf("%s has no target wasm32-unknown-unknown", path)
	}
	return nil
}

// oldRust says whether a compiler is older than 1.68, and has to be told to end a
// program without the standard library that lacks memory.
func (t *tools) oldRust() bool {
	p, err := t.find("rustc")
	if err != nil {
		return false
	}
	out, err := exec.CommandContext(t.ctx, p, "--version").Output()
	var major, minor int
	if _, serr := fmt.Sscanf(string(out), "rustc %d.%d.", &major, &minor); err != nil || serr != nil {
		return false
	}
	return major == 1 && minor < 68
}

var (
	assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)
	variable   = regexp.MustCompile(`\$[A-Z_]+`)
)

// command turns a step of a build into environment and words.
func (t *tools) command(run string) (env, words []string, err error) {
	all, err := split(run)
	if err != nil {
		return nil, nil, err
	}
	for _, w := range all {
		if len(words) == 0 && assignment.MatchString(w) {
			env = append(env, w)
			continue
		}
		if w == "$RUSTC_COMPAT" {
			if v, ok := os.LookupEnv("RUSTC_COMPAT"); ok {
				words = append(words, strings.Fields(v)...)
			} else if t.oldRust() {
				env = append(env, "RUSTC_BOOTSTRAP=1")
				words = append(words, "-Zcrate-attr=feature(default_alloc_error_handler)")
			}
			continue
		}
		w = variable.ReplaceAllStringFunc(w, func(v string) string {
			for name, k := range known {
				if v == "$"+k.variable {
					p, ferr := t.find(name)
					err = errors.Join(err, ferr)
					return p
				}
			}
			err = errors.Join(err, fmt.Errorf("%s is no tool that is known here", v))
			return v
		})
		words = append(words, w)
	}
	if err != nil {
		return nil, nil, err
	}
	if len(words) == 0 {
		return nil, nil, errors.New("is no command")
	}
	if _, ok := known[words[0]]; ok {
		words[0], err = t.find(words[0])
	} else if _, lerr := exec.LookPath(words[0]); lerr != nil && !strings.ContainsRune(words[0], '/') {
		err = fmt.Errorf("needs %s, and it is not installed, or not in PATH", words[0])
	}
	return env, words, err
}

// split takes a line apart as a shell does, with quotes and without anything else.
func split(s string) (words []string, err error) {
	var b strings.Builder
	inside, quote := false, rune(0)
	for _, r := range s {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			b.WriteRune(r)
		case r == '\'' || r == '"':
			inside, quote = true, r
		case r == ' ' || r == '\t' || r == '\n':
			if inside {
				words = append(words, b.String())
				b.Reset()
			}
			inside = false
		case strings.ContainsRune("|&;<>`\\*?(", r):
			return nil, fmt.Errorf("%q has a meaning in shells, and there is none here: quote it, or run a script", r)
		default:
			inside = true
			b.WriteRune(r)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote %q is not closed", quote)
	}
	if inside {
		words = append(words, b.String())
	}
	return words, nil
}

// versions are the tools as components, as far as they are there.
func (t *tools) versions(names ...string) (out []trust.Component) {
	for _, name := range names {
		p, err := t.find(name)
		if err != nil {
			continue
		}
		arg := "--version"
		if name == "go" {
			arg = "version"
		}
		text, err := exec.CommandContext(t.ctx, p, arg).Output()
		if err != nil {
			continue
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
		out = append(out, trust.Component{Name: name, Version: line, Tool: true})
	}
	return out
}
