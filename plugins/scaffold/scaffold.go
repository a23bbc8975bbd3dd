// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package scaffold writes new plug-ins: projects that build, pass their tests and do
// something before the first edit.
package scaffold

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/promweave/promweave/plugins/trust"
	"github.com/promweave/promweave/sdk"
)

//go:embed templates
var templates embed.FS

// TryServer is the file, in projects that have it, of a server that the plug-in is tried
// with: it has to run for plugin test.
const TryServer = "try/server.py"

// Options say what to write.
type Options struct {
	// Name of the plug-in.
	Name string
	// Kind is filter or backend, Language one of Languages(Kind).
	Kind, Language string
	// SDK is a checkout of Promweave that a project in Go is built with; "" is a release.
	SDK string
	// Version of Promweave, for projects in Go without SDK, as v1.2.3: what is no release
	// cannot be downloaded, and is refused.
	Version string
}

// language is one that plug-ins are written in.
type language struct {
	name   string
	kinds  []string
	source string
	needs  string
	// files are written from templates, by path in the project.
	files map[string]string
	// vendored is the folder of sdk.Sources that goes to promweave, or the file.
	vendored string
	first    []string
}

var languages = map[string]language{
	"go": {
		name: "Go", kinds: []string{"filter", "backend"}, source: "`main.go`", needs: "Go 1.26 or newer, and `promweave`.",
		files: map[string]string{"main.go": "main.go", "store.go": "store.go", "go.mod": "common/go.mod"},
	},
	"c": {
		name: "C", kinds: []string{"filter"}, source: "`filter.c`",
		needs:    "`clang` and `wasm-ld` (Debian: `apt install clang lld`), and `promweave`.",
		files:    map[string]string{"filter.c": "filter.c"},
		vendored: "c/promweave.h",
	},
	"rust": {
		name: "Rust", kinds: []string{"filter", "backend"}, source: "`src/lib.rs`",
		needs: "`rustc` 1.63 or newer with the target wasm32-unknown-unknown (`rustup target add wasm32-unknown-unknown`, or Debian:\n" +
			"`apt install rustc libstd-rust-dev-wasm32`), `wasm-ld` (`apt install lld`), and `promweave`.",
		files:    map[string]string{"src/lib.rs": "src_lib.rs", "Cargo.toml": "common/cargo.toml"},
		vendored: "rust",
	},
	"assemblyscript": {
		name: "AssemblyScript", kinds: []string{"filter"}, source: "`filter.ts`",
		needs:    "Node 20 or newer with `npm`, which downloads the compiler, and `promweave`.",
		files:    map[string]string{"filter.ts": "filter.ts"},
		vendored: "assemblyscript/assembly",
	},
}

// Languages are those that there is a template in, for a kind.
func Languages(kind string) []string {
	var out []string
	for name, l := range languages {
		if slices.Contains(l.kinds, kind) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Write writes a project to dir, which must not exist or be empty, and returns its
// files. After an error a part may be there.
func Write(dir string, o Options) ([]string, error) {
	if err := trust.CheckName(o.Name); err != nil {
		return nil, err
	}
	l, ok := languages[o.Language]
	if !ok || !slices.Contains(l.kinds, o.Kind) {
		if list := Languages(o.Kind); len(list) > 0 {
			return nil, fmt.Errorf("there is no template of a %s in %q: there are %s; sdk/guest/ABI.md is what any language can be used with", o.Kind, o.Language, strings.Join(list, ", "))
		}
		return nil, fmt.Errorf("%q is no kind of plug-in: filter or backend", o.Kind)
	}
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return nil, fmt.Errorf("%s is a file, where the project's directory would be: take another name, or remove it", dir)
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("%s is there and not empty: take another name, or remove it", dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	p := &project{o: o, l: l, files: map[string][]byte{}}
	if err := p.make(); err != nil {
		return nil, err
	}
	var names []string
	for name, data := range p.files {
		names = append(names, name)
		to := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return nil, err
		}
	}
	slices.Sort(names)
	return names, nil
}

// project is one that is being made.
type project struct {
	o     Options
	l     language
	files map[string][]byte
	values
}

// values are what templates can name.
type values struct {
	Name, Kind, LanguageName, Source, Needs string
	First                                   []string
	Vendored, TryServer                     string
	SDK, Requires, Version, Crate, Module   string
}

var letters = regexp.MustCompile(`^[a-z]`)

func (p *project) make() error {
	v := &p.values
	v.Name, v.Kind, v.LanguageName, v.Source, v.Needs = p.o.Name, p.o.Kind, p.l.name, p.l.source, p.l.needs
	v.First = append([]string{"cd " + p.o.Name}, p.l.first...)
	v.Crate = strings.ReplaceAll(p.o.Name, ".", "_")
	if !letters.MatchString(v.Crate) {
		v.Crate = "plugin_" + v.Crate
	}
	if p.o.Language == "go" {
		if err := p.goModule(); err != nil {
			return err
		}
	}
	if err := p.vendor(); err != nil {
		return err
	}
	for to, from := range p.l.files {
		if p.files[to] != nil || to == "store.go" && p.o.Kind != "backend" {
			continue // from the SDK itself, or not of this kind
		}
		if !strings.Contains(from, "/") {
			from = p.o.Kind + "-" + p.o.Language + "/" + from
		}
		if err := p.fill(to, from); err != nil {
			return err
		}
	}
	return errors.Join(p.fill(trust.ManifestFile, p.o.Kind+"-"+p.o.Language+"/plugin.yaml"), p.fill("README.md", "common/README.md"), p.fill(".gitignore", "common/gitignore"))
}

func (p *project) fill(to, from string) error {
	t, err := template.New(path.Base(from)+".tmpl").Delims("<%", "%>").ParseFS(templates, "templates/"+from+".tmpl", "templates/common/rust-build.tmpl")
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p.values); err != nil {
		return err
	}
	p.files[to] = b.Bytes()
	return nil
}

// modulePath of Promweave itself.
const modulePath = "github.com/promweave/promweave"

// Checkout is the checkout of Promweave that dir is in; "" is none.
func Checkout(dir string) string {
	for {
		if _, ok := checkout(dir); ok {
			return dir
		}
		above := filepath.Dir(dir)
		if above == dir {
			return ""
		}
		dir = above
	}
}

// checkout returns the go.mod file of a checkout.
func checkout(dir string) (mod []byte, ok bool) {
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	first, _, _ := strings.Cut(string(mod), "\n")
	return mod, err == nil && strings.TrimSpace(first) == "module "+modulePath
}

var (
	release = regexp.MustCompile(`^v\d+\.\d+\.\d+(-(alpha|beta|rc)\.?\d+)?$`)
	// device names cannot be elements of module paths, because of Windows.
	device = regexp.MustCompile(`^(con|prn|aux|nul|com\d|lpt\d)(\.|$)`)
)

// goModule fills in what the go.mod file needs. The path of the module is below a
// domain, without which it could be that of a standard package.
func (p *project) goModule() error {
	p.Module = "plugin.example/" + p.o.Name
	if device.MatchString(p.o.Name) {
		p.Module = "plugin.example/plugin-" + p.o.Name
	}
	if p.o.SDK == "" {
		p.Version = p.o.Version
		if !release.MatchString(p.Version) {
			return fmt.Errorf("a project in Go is built with the SDK, and this promweave (%s) is of no release that the SDK could be downloaded of: "+
				"git clone https://%s, and run this in it, or say where it is by --sdk CHECKOUT", strings.TrimPrefix(p.Version, "v"), modulePath)
		}
		p.First = append(p.First, "go mod tidy")
		return nil
	}
	abs, err := filepath.Abs(p.o.SDK)
	if err != nil {
		return err
	}
	mod, ok := checkout(abs)
	if !ok {
		return fmt.Errorf("--sdk %s: is no checkout of Promweave: want the directory with its go.mod", p.o.SDK)
	}
	sum, err := os.ReadFile(filepath.Join(abs, "go.sum"))
	if err != nil {
		return err
	}
	p.SDK, p.Requires, p.files["go.sum"] = quoted(filepath.ToSlash(abs)), requires(string(mod)), sum
	return nil
}

// quoted is a path as it can be written in a go.mod file.
func quoted(path string) string {
	if strings.ContainsAny(path, " \t\"'`(),") {
		return fmt.Sprintf("%q", path)
	}
	return path
}

// requires are the blocks of a go.mod file that require modules.
func requires(mod string) string {
	var b strings.Builder
	inside := false
	for line := range strings.Lines(mod) {
		if strings.HasPrefix(line, "require (") {
			inside = true
		}
		if inside {
			b.WriteString(line)
		}
		if strings.HasPrefix(line, ")") {
			inside = false
		}
	}
	return b.String()
}

// vendor copies the SDK of a language into the project.
func (p *project) vendor() error {
	from := p.l.vendored
	switch p.o.Language {
	case "c":
		p.Vendored = ".h"
		return p.copy(from, "promweave.h")
	case "rust":
		p.Vendored = "/"
		if p.o.Kind == "backend" {
			if err := p.rustBackend(); err != nil {
				return err
			}
		}
		return errors.Join(p.copy(from+"/Cargo.toml", "promweave/Cargo.toml"), p.copyAll(from+"/src", "promweave/src"))
	case "assemblyscript":
		p.Vendored = "/"
		for _, name := range []string{"package.json", "package-lock.json", "asconfig.json"} {
			if err := p.copy("assemblyscript/"+name, name); err != nil {
				return err
			}
		}
		// The project is its own package and pins the compiler as the SDK does.
		p.files["package.json"] = fmt.Appendf(nil, `{
  "name": %q,
  "version": "0.1.0",
  "private": true,
  "type": "module",
  "devDependencies": {
    "assemblyscript": %q
  }
}
`, p.o.Name, compiler(p.files["package.json"]))
		p.files["package-lock.json"] = bytes.ReplaceAll(p.files["package-lock.json"], []byte(`"@promweave/plugin"`), fmt.Appendf(nil, "%q", p.o.Name))
		return p.copyAll(from, "promweave/assembly")
	}
	return nil
}

// rustBackend is the SDK's example, under the name of the project.
func (p *project) rustBackend() error {
	data, err := sdk.Sources.ReadFile("rust/template/backend.rs")
	if err != nil {
		return err
	}
	_, text, _ := strings.Cut(string(data), "\n\n") // after the licence
	p.First = append(p.First, fmt.Sprintf("%-34s # something to read from, see below", "python3 "+TryServer+" &"))
	p.TryServer = TryServer
	p.files["src/lib.rs"] = []byte(strings.NewReplacer(`"json-api"`, fmt.Sprintf("%q", p.o.Name), `"1.0.0"`, `"0.1.0"`).Replace(text))
	return p.fill(TryServer, "backend-rust/try_server.py")
}

var pinned = regexp.MustCompile(`"assemblyscript": "([^"]+)"`)

func compiler(pkg []byte) string {
	if m := pinned.FindSubmatch(pkg); m != nil {
		return string(m[1])
	}
	return "*"
}

func (p *project) copy(from, to string) error {
	data, err := sdk.Sources.ReadFile(from)
	p.files[to] = data
	return err
}

func (p *project) copyAll(from, to string) error {
	return fs.WalkDir(sdk.Sources, from, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return p.copy(name, to+strings.TrimPrefix(name, from))
	})
}
