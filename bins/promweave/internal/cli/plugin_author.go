// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/bins/promweave/internal/serve"
	"github.com/promweave/promweave/bins/promweave/internal/workbench"
	"github.com/promweave/promweave/plugins/scaffold"
)

func (a *app) pluginNewCmd() *cobra.Command {
	o := scaffold.Options{Version: "v" + strings.TrimPrefix(Version(), "v")}
	cmd := &cobra.Command{
		Use:   "new --kind backend|filter --lang go|rust|assemblyscript|c NAME",
		Short: "Write a new plug-in to ./NAME",
		Long: `Writes a project to ./NAME that can be built and tested as it is. NAME may be a path;
its last part is the name of the plug-in.

A project in Go is built with the checkout of Promweave that this is run in, or with
the one that --sdk names; without either with the SDK of this release.`,
		Example: `  promweave plugin new --kind filter --lang go my-filter
  promweave plugin new --kind backend --lang rust my-store`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := newUsage(cmd, o); err != nil {
				return err
			}
			o.Name = filepath.Base(filepath.Clean(args[0]))
			if o.Language == "go" && o.SDK == "" {
				if dir, err := os.Getwd(); err == nil {
					o.SDK = scaffold.Checkout(dir)
				}
			}
			files, err := scaffold.Write(args[0], o)
			if err != nil {
				return console.Failed(err)
			}
			for _, f := range files {
				if _, err := fmt.Fprintln(a.Out, filepath.Join(args[0], filepath.FromSlash(f))); err != nil {
					return err
				}
			}
			a.Say("%s is there. Next: promweave plugin test %s; its README.md has the rest.", args[0], args[0])
			if slices.Contains(files, scaffold.TryServer) {
				a.Say("Before that, start what it reads from: python3 %s &", filepath.Join(args[0], filepath.FromSlash(scaffold.TryServer)))
			}
			switch {
			case o.Language != "go":
			case o.SDK == "":
				a.Say("Before that, run go mod tidy in it: it downloads the SDK. --sdk CHECKOUT does without.")
			case !cmd.Flags().Changed("sdk"):
				a.Say("It is built with the checkout of Promweave in %s; --sdk names another.", o.SDK)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&o.Kind, "kind", "", "what to make: backend, filter")
	cmd.Flags().StringVar(&o.Language, "lang", "", "language: go, rust, assemblyscript, c")
	cmd.Flags().StringVar(&o.SDK, "sdk", "", "checkout of Promweave that a project in Go is built with; empty is the one that this is run in")
	return cmd
}

// newUsage says what is wrong with how plugin new was called.
func newUsage(cmd *cobra.Command, o scaffold.Options) error {
	kinds := []string{"filter", "backend"}
	all := func(kind string) string {
		return fmt.Sprintf("--kind %s --lang %s", kind, strings.Join(scaffold.Languages(kind), "|"))
	}
	switch {
	case o.Kind == "" || o.Language == "":
		return console.Usage(cmd, "--kind and --lang say what to make: %s, or %s", all(kinds[0]), all(kinds[1]))
	case !slices.Contains(kinds, o.Kind):
		return console.Usage(cmd, "--kind %s: a plug-in is a %s", o.Kind, strings.Join(kinds, " or a "))
	case !slices.Contains(scaffold.Languages(o.Kind), o.Language):
		return console.Usage(cmd, "--lang %s: there is no template of a %s in it: %s; sdk/guest/ABI.md and sdk/pluginpb/plugin.proto are what any language can be used with",
			o.Language, o.Kind, all(o.Kind))
	}
	return nil
}

// project reads a project and builds it, if that is wanted.
func (a *app) project(cmd *cobra.Command, args []string, build bool) (*workbench.Project, error) {
	dir := "."
	if len(args) > 0 {
		dir = args[0]
	}
	p, err := workbench.Load(dir)
	if err != nil {
		return nil, console.Failed(err)
	}
	if build {
		if err := p.Build(cmd.Context(), a.Talk); err != nil {
			return nil, console.Failed(err)
		}
	}
	return p, nil
}

func noBuildFlag(cmd *cobra.Command, v *bool) {
	cmd.Flags().BoolVar(v, "no-build", false, "take what was built before")
}

func (a *app) pluginTestCmd() *cobra.Command {
	var (
		output  string
		noBuild bool
	)
	cmd := &cobra.Command{
		Use:   "test [DIR]",
		Short: "Build a plug-in, load it as a server would, and try to break it",
		Long: `Builds the plug-in in DIR (the working directory by default) by its plugin.yaml, loads
it as a server would, with the permissions and the sample configuration that are
there, and tries it: a filter with label sets and frames of every shape, a backend
with all its calls. promweave certify asks a backend for more.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.project(cmd, args, !noBuild)
			if err != nil {
				return err
			}
			checks := p.Test(cmd.Context(), a.Talk)
			if err := a.Write(cmd, output, checks, func(w io.Writer) error { return checksText(w, checks) }); err != nil {
				return err
			}
			bad := 0
			for _, c := range checks {
				if c.Result == workbench.Failed {
					bad++
				}
			}
			if bad > 0 {
				return console.Failed(fmt.Errorf("%d of %s failed", bad, count(len(checks), "check")))
			}
			next := ""
			if p.Manifest.Kind == "backend" {
				next = ": promweave certify gives one"
			}
			a.Say("%s %s: all well. This is no certificate%s.", p.Manifest.Name, p.Manifest.Version, next)
			return nil
		},
	}
	noBuildFlag(cmd, &noBuild)
	console.OutputFlag(cmd, &output, "text", "json", "yaml")
	return cmd
}

func checksText(out io.Writer, checks []workbench.Check) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "CHECK\tRESULT\tDETAIL")
	for _, c := range checks {
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.Name, c.Result, console.Clean(strings.ReplaceAll(c.Detail, "\n", "; ")))
	}
	return w.Flush()
}

func (a *app) pluginBenchCmd() *cobra.Command {
	var (
		output  string
		noBuild bool
		d       time.Duration
	)
	cmd := &cobra.Command{
		Use:   "bench [DIR]",
		Short: "Measure what a plug-in costs",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.project(cmd, args, !noBuild)
			if err != nil {
				return err
			}
			results, err := p.Bench(cmd.Context(), d)
			if err != nil {
				return console.Failed(err)
			}
			return a.Write(cmd, output, results, func(w io.Writer) error { return resultsText(w, results) })
		},
	}
	cmd.Flags().DurationVar(&d, "time", time.Second, "time that each measurement takes")
	noBuildFlag(cmd, &noBuild)
	console.OutputFlag(cmd, &output, "text", "json", "yaml")
	return cmd
}

func resultsText(out io.Writer, results []workbench.Result) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "MEASURED\tVALUE\tUNIT\tRATIO")
	for _, r := range results {
		ratio := "-"
		if r.Ratio > 0 {
			ratio = fmt.Sprintf("%.3f", r.Ratio)
		}
		fmt.Fprintf(w, "%s\t%.3g\t%s\t%s\n", r.What, r.Value, r.Unit, ratio)
	}
	return w.Flush()
}

func (a *app) pluginRunCmd() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "run [DIR]",
		Short: "Build and serve a plug-in, again after each change",
		Long: `Builds the plug-in in DIR and serves it: a backend alone, a filter in front of a store
with Promweave's own metrics, for every query. When a file changes it is built again
and takes the place of the one before; when that fails, the one before stays.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.project(cmd, args, false)
			if err != nil {
				return err
			}
			// Before the build: what changes from here on is built again.
			built := sources(p)
			if err := p.Build(cmd.Context(), a.Talk); err != nil {
				return console.Failed(err)
			}
			dir, err := workbench.TempDir()
			if err != nil {
				return console.Failed(err)
			}
			defer os.RemoveAll(dir)
			if err := a.serveProject(cmd.Context(), p, built, dir, listen); err != nil {
				return console.Failed(err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&listen, "http.listen", "127.0.0.1:0", "address of the HTTP API; port 0 takes a free one")
	return cmd
}

// serveProject serves a project, which was built of the sources built, until ctx is
// done. dir is for what it runs of.
func (a *app) serveProject(ctx context.Context, p *workbench.Project, built, dir, listen string) error {
	file := filepath.Join(dir, "promweave.yaml")
	if err := writeRunConfig(p, dir, file, listen); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	watching := make(chan struct{})
	close(watching)
	err := serve.Run(ctx, serve.Options{
		Load:       func() (config.Config, error) { return config.Load(file, nil, nil) },
		ConfigFile: file, Version: Version(), Log: a.Talk,
		Started: func(at serve.Addresses) {
			fmt.Fprintf(a.Out, "http://%s\n", at.HTTP)
			a.Say("%s %s answers there. Try: promweave query instant --server http://%s '{__name__=~\".+\"}'", p.Manifest.Name, p.Manifest.Version, at.HTTP)
			watching = make(chan struct{})
			go func(done chan struct{}) {
				defer close(done)
				a.rebuild(ctx, p, built, func() error {
					if err := writeRunConfig(p, dir, file, listen); err != nil {
						return err
					}
					return reload(ctx, "http://"+at.HTTP)
				})
			}(watching)
		},
	})
	stop()
	<-watching
	return err
}

// writeRunConfig writes the configuration that a project is served with. What runs is
// a copy: the next build may write over the file at any time.
func writeRunConfig(p *workbench.Project, dir, file, listen string) error {
	spec, err := p.Spec()
	if err != nil {
		return err
	}
	running := filepath.Join(dir, spec.SHA256[:16])
	if err := copyFile(running, spec.Path); err != nil {
		return err
	}
	m := p.Manifest
	var b strings.Builder
	fmt.Fprintf(&b, "http: {listen: %q}\ngrpc: {listen: \"\"}\nplugins: {dir: %q}\n", listen, filepath.Join(dir, "p"))
	var plugin strings.Builder
	fmt.Fprintf(&plugin, "{launch: %s, path: %q, sha256: %q", m.Launch, running, spec.SHA256)
	if len(m.Permissions) > 0 {
		fmt.Fprintf(&plugin, ", permissions: [%s]", strings.Join(m.Permissions, ", "))
	}
	if len(m.HTTP) > 0 {
		var rules []string
		for _, r := range m.HTTP {
			rules = append(rules, fmt.Sprintf("{url: %q, methods: [%s], allow_private: true}", r.URL, strings.Join(r.Methods, ", ")))
		}
		fmt.Fprintf(&plugin, ", http: [%s]", strings.Join(rules, ", "))
	}
	plugin.WriteString("}")
	settings := cmp.Or(m.Config, "{}")
	if m.Kind == "backend" {
		fmt.Fprintf(&b, "backends:\n  - {name: %q, plugin: %s, config: %s}\n", m.Name, plugin.String(), settings)
	} else {
		fmt.Fprintf(&b, "backends:\n  - {name: local, kind: tsdb, config: {path: %q}}\nself_scrape: {backend: local, interval: 5s}\n", filepath.Join(dir, "data"))
		fmt.Fprintf(&b, "filters:\n  - {name: %q, plugin: %s, config: %s}\nquery: {filters: [%q]}\n", m.Name, plugin.String(), settings, m.Name)
	}
	return os.WriteFile(file, []byte(b.String()), 0o600)
}

func copyFile(to, from string) error {
	if _, err := os.Stat(to); err == nil {
		return nil // it is named by its digest
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o700)
}

// rebuild builds and calls changed whenever the sources are no longer those that were
// built, until ctx is done.
func (a *app) rebuild(ctx context.Context, p *workbench.Project, built string, changed func() error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := sources(p)
		if now == built {
			continue
		}
		built = now
		next, err := workbench.Load(p.Dir)
		if err == nil {
			p.Manifest = next.Manifest
			err = p.Build(ctx, a.Talk)
		}
		if err == nil {
			err = changed()
		}
		if err != nil {
			a.Say("%v\nThe one before goes on; change it again.", err)
			continue
		}
		a.Say("built again, and serving")
	}
}

// sources is a text that differs when a source does: names, sizes and times. What is
// built, and what begins with a dot, is left out.
func sources(p *workbench.Project) string {
	var b strings.Builder
	skip := []string{"node_modules", "build", "target", "promweave-data", "promweave-plugins"}
	_ = filepath.WalkDir(p.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone while we look: the next look tells
		}
		if path != p.Dir && (strings.HasPrefix(d.Name(), ".") || d.IsDir() && slices.Contains(skip, d.Name())) || path == p.File() {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if info, err := d.Info(); err == nil && !d.IsDir() {
			fmt.Fprintln(&b, path, info.Size(), info.ModTime().UnixNano())
		}
		return nil
	})
	return b.String()
}

// reload has a server read its configuration again.
func reload(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/-/reload", nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	return err
}
