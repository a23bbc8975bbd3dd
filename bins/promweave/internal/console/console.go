// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package console is what the commands of the command line have in common: where data and talk
// go, forms of output, and the ways in which a command ends.
package console

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"
)

// Exit codes.
const (
	ExitOK      = 0
	ExitFailed  = 1
	ExitUsage   = 2
	ExitPartial = 3
)

// Console is where a command runs: data go to Out, talk goes to Talk.
type Console struct {
	Out, Talk io.Writer
	Now       func() time.Time
}

// Error ends the program with a code. A nil err has been talked about.
type Error struct {
	Code int
	Err  error
	// Hint is a line after the error.
	Hint string
}

func (e *Error) Error() string { return fmt.Sprint(e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Failed ends the program because something went wrong.
func Failed(err error) error { return &Error{Code: ExitFailed, Err: err} }

// HelpHint says where help is.
func HelpHint(cmd *cobra.Command) string {
	return fmt.Sprintf("Run '%s --help' for what it takes.", cmd.CommandPath())
}

// Usage ends the program because it was called wrongly.
func Usage(cmd *cobra.Command, format string, args ...any) error {
	return &Error{ExitUsage, fmt.Errorf(format, args...), HelpHint(cmd)}
}

// Group is run for a command that only holds others: without one of them it was
// called wrongly, not successfully.
func Group(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		hint := ""
		if cmd.SuggestionsMinimumDistance <= 0 {
			cmd.SuggestionsMinimumDistance = 2
		}
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("; did you mean %q?", near[0])
		}
		return Usage(cmd, "there is no command %q%s", cmd.CommandPath()+" "+args[0], hint)
	}
	cmd.SetOut(cmd.ErrOrStderr())
	_ = cmd.Help()
	return &Error{Code: ExitUsage}
}

// OutputFlag adds the flag for the form of the output, of which the first word is the default.
func OutputFlag(cmd *cobra.Command, v *string, words ...string) {
	cmd.Flags().StringVarP(v, "output", "o", words[0], "form of the output: "+strings.Join(words, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// Write puts v out in the chosen form; text makes the one for people.
func (c *Console) Write(cmd *cobra.Command, output string, v any, text func(io.Writer) error) error {
	switch output {
	case "text":
		return text(c.Out)
	case "json":
		enc := json.NewEncoder(c.Out)
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
		BlockStyle(&n)
		enc := yaml.NewEncoder(c.Out)
		enc.SetIndent(2)
		return enc.Encode(&n)
	}
	return Usage(cmd, "--output %s: there is no such form here", output)
}

// BlockStyle undoes the flow style that JSON is in. Strings that need quotes keep
// them.
func BlockStyle(n *yaml.Node) {
	n.Style = 0
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" {
		n.SetString(n.Value)
	}
	for _, c := range n.Content {
		BlockStyle(c)
	}
}

// Say puts a line of talk out.
func (c *Console) Say(format string, args ...any) {
	fmt.Fprintln(c.Talk, Clean(fmt.Sprintf(format, args...)))
}

// Clean keeps text of others from steering the terminal.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return '�'
		}
		return r
	}, s)
}

// Duration is a flag as Prometheus writes durations: 30d, 1h30m; 0 is none.
type Duration time.Duration

// String implements pflag.Value.
func (d *Duration) String() string { return model.Duration(*d).String() }

// Type implements pflag.Value.
func (d *Duration) Type() string { return "duration" }

// Set implements pflag.Value.
func (d *Duration) Set(s string) error {
	x, err := model.ParseDuration(s)
	*d = Duration(x)
	return err
}
