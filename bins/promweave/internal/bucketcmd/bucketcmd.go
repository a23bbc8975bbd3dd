// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package bucketcmd is promweave bucket: looking into a bucket of blocks, and mending it.
package bucketcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/spf13/cobra"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/bins/promweave/internal/apiclient"
	"github.com/promweave/promweave/bins/promweave/internal/bucketclient"
	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/view"
	"github.com/promweave/promweave/core/syntax"
)

// Command is promweave bucket.
func Command(c *console.Console) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bucket",
		Short: "Look into a bucket of blocks, and mend it",
		RunE:  console.Group,
	}
	cmd.AddCommand(lsCmd(c), inspectCmd(c), verifyCmd(c), markCmd(c), cleanupCmd(c), retentionCmd(c), uploadCmd(c), replicateCmd(c))
	return cmd
}

// common are the flags of every command.
type common struct {
	c       *console.Console
	bucket  bucketclient.Flags
	timeout console.Duration
	output  string
}

// add adds them; timeout is the default, 0 for what may take hours.
func (f *common) add(cmd *cobra.Command, timeout time.Duration, outputs ...string) {
	f.timeout = console.Duration(timeout)
	f.bucket.AddFlags(cmd.Flags(), "objstore", "the bucket")
	cmd.Flags().Var(&f.timeout, "timeout", "how long all of it may take; 0 is for ever")
	console.OutputFlag(cmd, &f.output, append([]string{"text", "json", "yaml"}, outputs...)...)
}

// open opens a bucket that flags name.
func open(cmd *cobra.Command, f *bucketclient.Flags, name string) (objstore.Bucket, error) {
	bkt, err := f.Open(bucketclient.NewOpener(nil), name)
	if wrong := (*bucketclient.FlagsError)(nil); errors.As(err, &wrong) {
		return nil, console.Usage(cmd, "%w", err)
	} else if err != nil {
		return nil, console.Failed(err)
	}
	return bkt, nil
}

// with runs f with the bucket, for as long as it may take.
func (f *common) with(cmd *cobra.Command, do func(ctx context.Context, bkt objstore.Bucket) error) (err error) {
	// A form that there is not is found before anything is done.
	if flag := cmd.Flag("output"); !slices.Contains(strings.Split(strings.TrimPrefix(flag.Usage, "form of the output: "), ", "), f.output) {
		return console.Usage(cmd, "--output %s: there is no such form here", f.output)
	}
	bkt, err := open(cmd, &f.bucket, "bucket")
	if err != nil {
		return err
	}
	defer bkt.Close()
	ctx := cmd.Context()
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(f.timeout), fmt.Errorf("it took longer than --timeout %s", &f.timeout))
		defer cancel()
	}
	err = do(ctx, bkt)
	var end *console.Error
	switch {
	case err == nil || errors.As(err, &end):
		return err
	case ctx.Err() != nil && cmd.Context().Err() == nil:
		return console.Failed(context.Cause(ctx))
	}
	return console.Failed(err)
}

// look sees the bucket. What could not be read is said, and whether there was any.
func (f *common) look(ctx context.Context, bkt objstore.Bucket) (*view.View, error) {
	v, err := view.NewFetcher(bkt, view.Config{Logger: slog.New(slog.DiscardHandler)}).Fetch(ctx)
	if err != nil {
		return nil, fmt.Errorf("look into the bucket: %w", err)
	}
	for _, id := range slices.SortedFunc(maps.Keys(v.Problems), ulid.ULID.Compare) {
		f.c.Say("block %s cannot be read now and is left out: %v", id, v.Problems[id])
	}
	return v, nil
}

// end is how a command ends that saw a view: what was left out makes it partial.
func end(v *view.View, failed bool) error {
	switch {
	case failed:
		return &console.Error{Code: console.ExitFailed}
	case !v.Complete():
		return &console.Error{Code: console.ExitPartial}
	}
	return nil
}

// choice are flags by which blocks are chosen.
type choice struct {
	ids                       []string
	selector                  string
	min, max                  string
	from, to                  int64
	matchers                  []*labels.Matcher
	chosen                    map[ulid.ULID]bool
	excludeDelete             bool
	excludeName, selectorName string
}

func (s *choice) add(cmd *cobra.Command, excludeName, selectorName string) {
	s.excludeName, s.selectorName = excludeName, selectorName
	cmd.Flags().StringSliceVar(&s.ids, "id", nil, "only these blocks")
	cmd.Flags().StringVar(&s.selector, selectorName, "", `only blocks whose external labels match: cluster="eu1",replica=~"a|b"`)
	cmd.Flags().StringVar(&s.min, "min-time", "", "only blocks that reach beyond this time: -30d, RFC 3339, or seconds since 1970")
	cmd.Flags().StringVar(&s.max, "max-time", "", "only blocks that begin before this time")
	cmd.Flags().BoolVar(&s.excludeDelete, excludeName, false, "without blocks that are marked for deletion")
}

func (s *choice) parse(cmd *cobra.Command, now time.Time) (err error) {
	s.from, s.to = -1<<63, 1<<63-1
	if s.chosen, err = parseIDs(cmd, s.ids); err != nil {
		return err
	}
	for _, b := range []struct {
		name, text string
		at         *int64
	}{{"min-time", s.min, &s.from}, {"max-time", s.max, &s.to}} {
		if b.text == "" {
			continue
		}
		t, err := apiclient.ParseTime(b.text, now)
		if err != nil {
			return console.Usage(cmd, "--%s: %w", b.name, err)
		}
		*b.at = t.UnixMilli()
	}
	if s.selector != "" {
		text := strings.TrimSpace(s.selector)
		if !strings.HasPrefix(text, "{") {
			text = "{" + text + "}"
		}
		if s.matchers, err = new(syntax.Reader).Selector(text); err != nil {
			return console.Usage(cmd, "--%s: %w", s.selectorName, err)
		}
	}
	return nil
}

// takes says whether a block is chosen.
func (s *choice) takes(b *view.Block) bool {
	m := b.Meta
	if len(s.chosen) > 0 && !s.chosen[m.ULID] || m.MaxTime <= s.from || m.MinTime >= s.to {
		return false
	}
	if s.excludeDelete && b.Marks[meta.Deletion] != nil {
		return false
	}
	return !slices.ContainsFunc(s.matchers, func(x *labels.Matcher) bool { return !x.Matches(m.Thanos.Labels[x.Name]) })
}

// missing are chosen ids that a view does not have.
func (s *choice) missing(v *view.View) (out []ulid.ULID) {
	for _, id := range slices.SortedFunc(maps.Keys(s.chosen), ulid.ULID.Compare) {
		if v.Partial[id] == nil && !slices.ContainsFunc(v.Blocks, func(b *view.Block) bool { return b.Meta.ULID == id }) {
			out = append(out, id)
		}
	}
	return out
}

func parseIDs(cmd *cobra.Command, texts []string) (map[ulid.ULID]bool, error) {
	out := map[ulid.ULID]bool{}
	for _, text := range texts {
		id, err := ulid.ParseStrict(text)
		if err != nil {
			return nil, console.Usage(cmd, "%q is no block: an id has 26 letters and digits, as promweave bucket ls shows them", text)
		}
		out[id] = true
	}
	return out, nil
}

// action is what was done with one block, or would be.
type action struct {
	ULID   string `json:"ulid"`
	Action string `json:"action"`
	Reason string `json:"reason,omitempty"`
	Error  string `json:"error,omitempty"`
}

// actions is the output of commands that change something.
type actions struct {
	DryRun  bool     `json:"dryRun"`
	Actions []action `json:"actions"`
}

// do does something to a block, unless nothing is to be done, and notes it.
func (a *actions) do(id ulid.ULID, what, reason string, f func() error) {
	x := action{ULID: id.String(), Action: what, Reason: reason}
	if !a.DryRun && f != nil {
		if err := f(); err != nil {
			x.Error = err.Error()
		}
	}
	a.Actions = append(a.Actions, x)
}

func (a *actions) failed() bool {
	return slices.ContainsFunc(a.Actions, func(x action) bool { return x.Error != "" })
}

func (a *actions) text(w io.Writer) error {
	if a.DryRun {
		fmt.Fprintln(w, "Nothing was done: this would be.")
	}
	if len(a.Actions) == 0 {
		fmt.Fprintln(w, "There is nothing to do.")
	}
	for _, x := range a.Actions {
		line := x.ULID + ": " + x.Action
		if x.Reason != "" {
			line += " (" + x.Reason + ")"
		}
		if x.Error != "" {
			line += ": failed: " + x.Error
		}
		if _, err := fmt.Fprintln(w, console.Clean(line)); err != nil {
			return err
		}
	}
	return nil
}
