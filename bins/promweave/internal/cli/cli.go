// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of Promweave. Data go to standard output, talk
// to standard error. The exit code is 0 if all is well, 1 if something failed or a
// check found something, 2 if the command was used wrongly, and 3 if there is an
// answer but it is not known to be whole.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/prometheus/common/version"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitPartial = 3
)

// Main runs the command line and returns the exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	// The second signal is not caught: it ends a process that does not end.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	a := &app{out: stdout, talk: stderr, now: time.Now}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var code *exitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		if code.err != nil {
			fmt.Fprintf(stderr, "promweave: %v\n", code.err)
		}
		if code.hint != "" {
			fmt.Fprintln(stderr, code.hint)
		}
		return code.code
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(stderr, "promweave: interrupted")
		return exitFailed
	}
	// What cobra itself complains about is how the command was called.
	fmt.Fprintf(stderr, "promweave: %v\n%s\n", err, helpHint(cmd))
	return exitUsage
}

// exitError ends the program with a code. A nil err has been talked about.
type exitError struct {
	code int
	err  error
	// hint is a line after the error.
	hint string
}

func (e *exitError) Error() string { return fmt.Sprint(e.err) }
func (e *exitError) Unwrap() error { return e.err }

func failed(err error) error { return &exitError{code: exitFailed, err: err} }

func helpHint(cmd *cobra.Command) string {
	return fmt.Sprintf("Run '%s --help' for what it takes.", cmd.CommandPath())
}

func usage(cmd *cobra.Command, format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...), helpHint(cmd)}
}

type app struct {
	out, talk io.Writer
	now       func() time.Time
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "promweave",
		Short: "One PromQL query over many stores",
		Long: `Promweave answers one PromQL query from many stores: Prometheus servers, TSDB
directories, and everything that speaks the Thanos StoreAPI. It merges replicas,
and says of every answer whether something is missing, and what.

Exit codes: 0 all is well, 1 something failed, 2 wrong usage, 3 the answer is partial.`,
		Example: `  promweave demo                              try it with generated data
  promweave serve --config promweave.yaml
  promweave query instant 'up'
  promweave query range 'sum(rate(http_requests_total[5m]))' --start -6h -o graph`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          group,
	}
	root.AddCommand(a.serveCmd(), a.demoCmd(), a.queryCmd(), a.explainCmd(), a.backendsCmd(), a.pluginCmd(), a.certifyCmd(), a.checkCmd(), a.versionCmd())
	// cobra's own command takes a shell that it does not know for a call for help.
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args, cmd.RunE = cobra.ArbitraryArgs, group
		}
	}
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
	return root
}

// group is run for a command that only holds others: without one of them it was
// called wrongly, not successfully.
func group(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		hint := ""
		if cmd.SuggestionsMinimumDistance <= 0 {
			cmd.SuggestionsMinimumDistance = 2
		}
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("; did you mean %q?", near[0])
		}
		return usage(cmd, "there is no command %q%s", cmd.CommandPath()+" "+args[0], hint)
	}
	cmd.SetOut(cmd.ErrOrStderr())
	_ = cmd.Help()
	return &exitError{code: exitUsage}
}

func (a *app) versionCmd() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show which version this is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version   string `json:"version" yaml:"version"`
				Revision  string `json:"revision" yaml:"revision"`
				BuildDate string `json:"buildDate" yaml:"buildDate"`
				GoVersion string `json:"goVersion" yaml:"goVersion"`
				Platform  string `json:"platform" yaml:"platform"`
			}{Version(), version.GetRevision(), version.BuildDate, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return a.write(cmd, output, v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "promweave %s (revision %s, %s, %s)\n", v.Version, v.Revision, v.GoVersion, v.Platform)
				return err
			})
		},
	}
	outputFlag(cmd, &output, "text", "json", "yaml")
	return cmd
}

// Version is that of the build; a build without one is called so.
func Version() string {
	if version.Version == "" {
		return "devel"
	}
	return version.Version
}

func outputFlag(cmd *cobra.Command, v *string, words ...string) {
	cmd.Flags().StringVarP(v, "output", "o", words[0], "form of the output: "+strings.Join(words, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// write puts v out in the chosen form; text makes the one for people.
func (a *app) write(cmd *cobra.Command, output string, v any, text func(io.Writer) error) error {
	switch output {
	case "text":
		return text(a.out)
	case "json":
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	case "yaml":
		// By way of JSON, so that both have the same keys and numbers.
		data, err := json.Marshal(v)
		if err != nil {
			return err
		}
		var n yaml.Node
		if err := yaml.Unmarshal(data, &n); err != nil {
			return err
		}
		blockStyle(&n)
		enc := yaml.NewEncoder(a.out)
		enc.SetIndent(2)
		return enc.Encode(&n)
	}
	return usage(cmd, "--output %s: there is no such form here", output)
}

// blockStyle undoes the flow style that JSON is in. Strings that need quotes keep
// them.
func blockStyle(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		n.SetString(n.Value)
	}
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// say puts a line of talk out.
func (a *app) say(format string, args ...any) {
	fmt.Fprintln(a.talk, clean(fmt.Sprintf(format, args...)))
}

// clean keeps text of others from steering the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return '�'
		}
		return r
	}, s)
}
