// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of Promweave. Data go to standard output, talk
// to standard error. The exit code is 0 if all is well, 1 if something failed or a
// check found something, 2 if the command was used wrongly, and 3 if there is an
// answer but it is not known to be whole.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/prometheus/common/version"
	"github.com/spf13/cobra"

	"github.com/promweave/promweave/bins/promweave/internal/bucketcmd"
	"github.com/promweave/promweave/bins/promweave/internal/compactcmd"
	"github.com/promweave/promweave/bins/promweave/internal/console"
)

// Main runs the command line and returns the exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	// The second signal is not caught: it ends a process that does not end.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	a := &app{&console.Console{Out: stdout, Talk: stderr, Now: time.Now}}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var code *console.Error
	switch {
	case err == nil:
		return console.ExitOK
	case errors.As(err, &code):
		if code.Err != nil {
			fmt.Fprintf(stderr, "promweave: %v\n", code.Err)
		}
		if code.Hint != "" {
			fmt.Fprintln(stderr, code.Hint)
		}
		return code.Code
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(stderr, "promweave: interrupted")
		return console.ExitFailed
	}
	// What cobra itself complains about is how the command was called.
	fmt.Fprintf(stderr, "promweave: %v\n%s\n", err, console.HelpHint(cmd))
	return console.ExitUsage
}

type app struct{ *console.Console }

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
		RunE:          console.Group,
	}
	root.AddCommand(a.serveCmd(), a.demoCmd(), a.queryCmd(), a.explainCmd(), a.backendsCmd(), a.pluginCmd(), a.certifyCmd(), bucketcmd.Command(a.Console), compactcmd.Command(a.Console), a.checkCmd(), a.versionCmd())
	// cobra's own command takes a shell that it does not know for a call for help.
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args, cmd.RunE = cobra.ArbitraryArgs, console.Group
		}
	}
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
	return root
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
			return a.Write(cmd, output, v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "promweave %s (revision %s, %s, %s)\n", v.Version, v.Revision, v.GoVersion, v.Platform)
				return err
			})
		},
	}
	console.OutputFlag(cmd, &output, "text", "json", "yaml")
	return cmd
}

// Version is that of the build; a build without one is called so.
func Version() string {
	if version.Version == "" {
		return "devel"
	}
	return version.Version
}
