// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package workbench is for those who write plug-ins: it builds a project by its
// manifest, opens what was built as a server would, tries to break it, and measures it.
package workbench

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/plugins/trust"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// Project is the directory of a plug-in.
type Project struct {
	Dir      string
	Manifest *trust.Manifest
}

// Load reads the manifest in dir.
func Load(dir string) (*Project, error) {
	m, err := trust.ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	if err := m.Works(); err != nil {
		return nil, fmt.Errorf("%s: protocol: %w", filepath.Join(dir, trust.ManifestFile), err)
	}
	return &Project{dir, m}, nil
}

// File is what is built.
func (p *Project) File() string { return filepath.Join(p.Dir, filepath.FromSlash(p.Manifest.File)) }

// Build runs the commands of the manifest. What they print goes to out.
func (p *Project) Build(ctx context.Context, out io.Writer) error {
	at := filepath.Join(p.Dir, trust.ManifestFile)
	if err := os.MkdirAll(filepath.Dir(p.File()), 0o755); err != nil {
		return err
	}
	t := newTools(ctx)
	for i, s := range p.Manifest.Build {
		if s.Unless != "" {
			if _, err := os.Stat(filepath.Join(p.Dir, filepath.FromSlash(s.Unless))); err == nil {
				continue
			}
		}
		env, words, err := t.command(s.Run)
		if err != nil {
			return fmt.Errorf("%s: build[%d]: %w", at, i, err)
		}
		fmt.Fprintln(out, strings.Join(append(slices.Clone(env), words...), " "))
		cmd := exec.CommandContext(ctx, words[0], words[1:]...)
		cmd.Dir, cmd.Env = p.Dir, append(os.Environ(), env...)
		said := &missingSums{to: out}
		cmd.Stdout, cmd.Stderr = said, said
		cmd.WaitDelay = 5 * time.Second
		if err := cmd.Run(); err != nil {
			err = fmt.Errorf("%s: build[%d]: %s: %w", at, i, words[0], errors.Join(err, ctx.Err()))
			if said.found {
				err = fmt.Errorf("%w: go.sum lacks modules: run go mod tidy in %s, or make the project anew with promweave plugin new --sdk CHECKOUT", err, p.Dir)
			}
			return err
		}
	}
	if _, err := os.Stat(p.File()); err != nil {
		return fmt.Errorf("%s: file: %w: the build commands ended well, but did not make it", at, err)
	}
	return nil
}

// missingSums passes on what a command says, and looks for Go's complaint about go.sum,
// which comes once for each module.
type missingSums struct {
	to    io.Writer
	found bool
}

func (m *missingSums) Write(b []byte) (int, error) {
	m.found = m.found || bytes.Contains(b, []byte("missing go.sum entry"))
	return m.to.Write(b)
}

// Spec is what a server opens, with all the permissions that the manifest wants.
func (p *Project) Spec() (registry.Spec, error) {
	path, err := filepath.Abs(p.File())
	if err != nil {
		return registry.Spec{}, err
	}
	_, digest, err := trust.ReadFile(path)
	if err != nil {
		return registry.Spec{}, err
	}
	s := registry.Spec{Launch: p.Manifest.Launch, Path: path, SHA256: digest}
	Grant(&s, p.Manifest)
	return s, nil
}

// Grant lets a plug-in do what its manifest asks for: here is where its author works.
func Grant(s *registry.Spec, m *trust.Manifest) {
	for _, x := range m.Permissions {
		s.Permissions = append(s.Permissions, filter.Permission(x))
	}
	for _, r := range m.HTTP {
		s.HTTP = append(s.HTTP, registry.HTTPRule{URL: r.URL, Methods: r.Methods, AllowPrivate: true})
	}
}

// TempDir makes a directory for this user alone whose path is short enough for sockets,
// which is not so of every TMPDIR.
func TempDir() (string, error) {
	const longest = 40
	parent := ""
	if len(os.TempDir()) > longest {
		parent = "/tmp"
		if _, err := os.Stat(parent); err != nil {
			parent = ""
		}
	}
	return os.MkdirTemp(parent, "pw-")
}

// Opened is a plug-in that is open.
type Opened struct {
	Filter  *registry.Filter
	Backend backend.Backend

	registry *registry.Registry
	release  func()
	dir      string
}

// Open opens the built plug-in with the sample configuration of the manifest.
func (p *Project) Open(ctx context.Context, log *slog.Logger) (*Opened, error) {
	spec, err := p.Spec()
	if err != nil {
		return nil, err
	}
	dir, err := TempDir()
	if err != nil {
		return nil, err
	}
	o := &Opened{dir: dir, registry: registry.New(registry.Options{Dir: dir, Logger: log})}
	if o.Filter, o.Backend, o.release, err = o.configure(ctx, p.Manifest, spec, p.Manifest.Config); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

func (o *Opened) configure(ctx context.Context, m *trust.Manifest, spec registry.Spec, config string) (*registry.Filter, backend.Backend, func(), error) {
	if m.Kind == "backend" {
		b, release, err := o.registry.Backend(ctx, m.Name, spec, []byte(config), true)
		if err != nil {
			return nil, nil, nil, err
		}
		return nil, b, func() {
			if c, ok := b.(backend.Closer); ok {
				_ = c.Close()
			}
			release()
		}, nil
	}
	f, err := o.registry.Filter(ctx, m.Name, spec, []byte(config), filtering.Closed)
	if err != nil {
		return nil, nil, nil, err
	}
	return f, nil, func() { _ = f.Close() }, nil
}

// Status is what operators would see.
func (o *Opened) Status() registry.Status {
	for _, s := range o.registry.Statuses() {
		return s
	}
	return registry.Status{}
}

// Close ends the plug-in.
func (o *Opened) Close() {
	if o.release != nil {
		o.release()
	}
	_ = o.registry.Close()
	_ = os.RemoveAll(o.dir)
}

// Components are what the built file is made of and with, for its SBOM.
func (p *Project) Components(ctx context.Context) ([]trust.Component, error) {
	t := newTools(ctx)
	switch p.Manifest.Language {
	case "go":
		return p.goModules(ctx, t)
	case "c":
		return append(t.versions("clang", "wasm-ld"), trust.Component{Name: "promweave.h", PURL: "pkg:github/promweave/promweave"}), nil
	case "rust":
		return append(t.versions("rustc", "wasm-ld"), trust.Component{Name: "promweave (Rust SDK)", PURL: "pkg:github/promweave/promweave"}), nil
	case "assemblyscript":
		return append(t.versions("node"), trust.Component{Name: "@promweave/plugin", PURL: "pkg:github/promweave/promweave"}), nil
	}
	return nil, nil
}

// goModules are the modules that a file was built from: programs tell, modules of WASM
// have to be worked out from their source.
func (p *Project) goModules(ctx context.Context, t *tools) ([]trust.Component, error) {
	var out []trust.Component
	if info, err := buildinfo.ReadFile(p.File()); err == nil {
		out = append(out, trust.Component{Name: "go", Version: info.GoVersion, Tool: true})
		for _, d := range info.Deps {
			out = append(out, goModule(d.Path, d.Version))
		}
		return out, nil
	}
	goTool, err := t.find("go")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, goTool, "list", "-deps", "-f", "{{with .Module}}{{.Path}} {{.Version}}{{end}}", ".")
	cmd.Dir, cmd.Env = p.Dir, append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	list, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing the modules of %s: %w%s", p.Dir, err, stderrOf(err))
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(list)) {
		path, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		// The main module has no version, and is the plug-in itself.
		if path != "" && version != "" && !seen[path] {
			seen[path] = true
			out = append(out, goModule(path, version))
		}
	}
	return append(out, t.versions("go")...), nil
}

func goModule(path, version string) trust.Component {
	return trust.Component{Name: path, Version: version, PURL: "pkg:golang/" + path + "@" + version}
}

func stderrOf(err error) string {
	var e *exec.ExitError
	if errors.As(err, &e) && len(e.Stderr) > 0 {
		return ": " + strings.TrimSpace(string(e.Stderr))
	}
	return ""
}
