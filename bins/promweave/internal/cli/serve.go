// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/bins/promweave/internal/demo"
	"github.com/promweave/promweave/bins/promweave/internal/serve"
)

func (a *app) serveCmd() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Answer queries",
		Long: `Serves the HTTP API and the StoreAPI over the backends of the configuration.

Values come from the file, then from PROMWEAVE_* environment variables, then from
flags. Without --config, ./` + config.DefaultFile + ` is read if it is there; without it, Promweave
keeps its own metrics in ` + config.DefaultDataDir + `.

SIGHUP and POST /-/reload read the file again. SIGINT and SIGTERM let running
queries finish; a second one ends at once.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (default ./"+config.DefaultFile+" if it is there)")
	configFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		path, err := configFile(file)
		if err != nil {
			return console.Failed(err)
		}
		flags := setFlags(cmd.Flags())
		load := func() (config.Config, error) { return config.Load(path, os.Environ(), flags) }
		if err := serve.Run(cmd.Context(), serve.Options{
			Load: load, ConfigFile: path, Version: Version(), Log: a.Talk, Flags: flags,
		}); err != nil {
			if wrongFlags(err) {
				return console.Usage(cmd, "%w", err)
			}
			return console.Failed(err)
		}
		return nil
	}
	return cmd
}

// wrongFlags says whether nothing is wrong with a configuration but its flags.
func wrongFlags(err error) bool {
	var all *config.Error
	return errors.As(err, &all) && !slices.ContainsFunc(all.Problems, func(p config.Problem) bool {
		return !strings.HasPrefix(p.Source, "flag --")
	})
}

// configFile is the file to read, "" for none.
func configFile(file string) (string, error) {
	if file != "" {
		return file, nil
	}
	switch _, err := os.Stat(config.DefaultFile); {
	case err == nil:
		return config.DefaultFile, nil
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	default:
		return "", fmt.Errorf("configuration file: %w", err)
	}
}

// configFlags adds a flag for every key that can have one.
func configFlags(fl *pflag.FlagSet) {
	for _, k := range config.Keys() {
		if !k.Settable {
			continue
		}
		fl.String(k.Name, "", k.Doc+" ("+k.Env()+")")
		f := fl.Lookup(k.Name)
		f.Value = typedValue{f.Value, k.Type()}
		if k.Type() == "bool" {
			f.NoOptDefVal = "true"
		}
	}
}

// typedValue shows the type of a key in the help.
type typedValue struct {
	pflag.Value
	typ string
}

// Type is the word in the help.
func (v typedValue) Type() string { return v.typ }

// setFlags are the keys that flags were given for.
func setFlags(fl *pflag.FlagSet) map[string]string {
	out := map[string]string{}
	fl.Visit(func(f *pflag.Flag) {
		if _, ok := f.Value.(typedValue); ok {
			out[f.Name] = f.Value.String()
		}
	})
	return out
}

func (a *app) demoCmd() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Serve generated data, to try things out",
		Long: `Generates a day of metrics of two clusters, each scraped by two replicas that have
gaps, and serves them from four stores that can be stopped one by one, to see what
becomes of answers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out, o.Talk, o.Version, o.Command = a.Out, a.Talk, Version(), os.Args[0]
			if err := demo.Run(cmd.Context(), o); err != nil {
				return console.Failed(err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&o.Dir, "data", "", "directory for the data, kept and used again; empty takes a temporary one")
	cmd.Flags().StringVar(&o.HTTP, "http.listen", "127.0.0.1:9090", "address of the HTTP API; another port is taken if this one is in use")
	cmd.Flags().StringVar(&o.GRPC, "grpc.listen", "127.0.0.1:10901", "address of the StoreAPI; another port is taken if this one is in use")

	for _, verb := range []string{"stop", "start"} {
		var server string
		sub := &cobra.Command{
			Use:   verb + " STORE",
			Short: strings.ToUpper(verb[:1]) + verb[1:] + " one store of a running demo",
			Args:  cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := demo.Control(cmd.Context(), server, verb, args[0]); err != nil {
					return console.Failed(err)
				}
				a.Say("%s: %s", args[0], map[string]string{"stop": "stopped", "start": "started"}[verb])
				return nil
			},
		}
		sub.Flags().StringVar(&server, "server", envServer(), "URL of the demo; PROMWEAVE_SERVER sets the default")
		cmd.AddCommand(sub)
	}
	return cmd
}

func envServer() string {
	if s := os.Getenv("PROMWEAVE_SERVER"); s != "" {
		return s
	}
	return "http://127.0.0.1:9090"
}

func (a *app) checkCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check files before they are used",
		RunE:  console.Group,
	}
	var (
		syntaxOnly, print bool
		output            string
	)
	conf := &cobra.Command{
		Use:   "config FILE...",
		Short: "Check configuration files",
		Long: `Reports everything that is wrong with configuration files, by line. Files and
directories that a configuration names (certificates, web configuration, databases
that are only read) are checked too, and so are plug-ins: digests and signatures of
all files, and modules are loaded and configured, as nothing that they do leads
anywhere. Programs and services are not started or dialled. Environment variables
and flags are not taken into account.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			all, bad := make([]checked, len(args)), 0
			for i, path := range args {
				if all[i] = check(cmd.Context(), path, !syntaxOnly, print); !all[i].OK {
					bad++
				}
			}
			if err := a.Write(cmd, output, all, func(w io.Writer) error { return a.checkedText(w, all) }); err != nil {
				return err
			}
			if bad > 0 {
				return console.Failed(fmt.Errorf("%d of %s %s errors", bad, count(len(args), "file"), map[bool]string{true: "has", false: "have"}[bad == 1]))
			}
			return nil
		},
	}
	conf.Flags().BoolVar(&syntaxOnly, "syntax-only", false, "do not look at files that the configuration names")
	conf.Flags().BoolVar(&print, "print", false, "print the configuration with all defaults, without secrets")
	console.OutputFlag(conf, &output, "text", "json", "yaml")
	cmd.AddCommand(conf)
	return cmd
}

// checked is what came out for one file.
type checked struct {
	File     string           `json:"file"`
	OK       bool             `json:"ok"`
	Backends int              `json:"backends"`
	Problems []config.Problem `json:"problems"`
	// Notes are what a start would warn of.
	Notes []string `json:"notes,omitempty"`
	// Config is the configuration in effect, where that was asked for.
	Config string `json:"config,omitempty"`
}

func check(ctx context.Context, path string, files, print bool) checked {
	out := checked{File: path, Problems: []config.Problem{}}
	load := func(path string) (config.Config, error) {
		return config.Check(path, func(c *config.Config, bad func(key, format string, args ...any)) {
			serve.CheckPlugins(ctx, c, bad, func(text string) { out.Notes = append(out.Notes, text) })
		})
	}
	if !files {
		load = func(path string) (config.Config, error) { return config.Load(path, nil, nil) }
	}
	c, err := load(path)
	var all *config.Error
	switch {
	case errors.As(err, &all):
		out.Problems = all.Problems
	case err != nil:
		out.Problems = append(out.Problems, config.Problem{Text: err.Error()})
	default:
		out.OK, out.Backends = true, len(c.Backends)
		if print {
			out.Config = c.Redacted()
		}
	}
	return out
}

func (a *app) checkedText(w io.Writer, all []checked) error {
	for _, c := range all {
		for _, p := range c.Problems {
			a.Say("%s", p)
		}
		for _, n := range c.Notes {
			a.Say("%s: note: %s", c.File, n)
		}
		var err error
		switch {
		case c.Config != "":
			_, err = io.WriteString(w, c.Config)
		case c.OK:
			_, err = fmt.Fprintf(w, "%s: ok, %s\n", c.File, count(c.Backends, "backend"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// count is a number of things: 1 file, 2 files.
func count(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}
