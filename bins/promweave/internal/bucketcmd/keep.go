// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucketcmd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/blocks/compact"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/view"
)

func markCmd(c *console.Console) *cobra.Command {
	var (
		f             = &common{c: c}
		ids           []string
		marker, about string
		remove        bool
	)
	files := []string{}
	for _, k := range meta.Kinds() {
		files = append(files, k.File())
	}
	cmd := &cobra.Command{
		Use:   "mark --id ULID --marker FILE --details TEXT",
		Short: "Mark blocks: for deletion, not to be compacted, not to be downsampled; or take marks away",
		Example: `  promweave bucket mark --id 01M7ZYC1STEW21SJ2T70SNVCXK --marker no-compact-mark.json --details 'broken index' \
    --objstore.config-file bucket.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := parseIDs(cmd, ids)
			if err != nil {
				return err
			}
			if len(set) == 0 {
				return console.Usage(cmd, "--id says which blocks")
			}
			if !slices.Contains(files, marker) {
				return console.Usage(cmd, "--marker %q: it is one of %s", marker, strings.Join(files, ", "))
			}
			if !remove && about == "" {
				return console.Usage(cmd, "--details says why, for whoever finds the mark")
			}
			kind := meta.Kind(strings.TrimSuffix(marker, ".json"))
			return f.with(cmd, func(ctx context.Context, bkt objstore.Bucket) error {
				a := &actions{Actions: []action{}}
				for _, id := range slices.SortedFunc(maps.Keys(set), ulid.ULID.Compare) {
					a.do(id, "", "", nil)
					x := &a.Actions[len(a.Actions)-1]
					if x.Action, err = setMark(ctx, bkt, id, kind, about, remove, c.Now()); err != nil {
						x.Error = err.Error()
					}
				}
				if err := c.Write(cmd, f.output, a, a.text); err != nil {
					return err
				}
				if a.failed() {
					return &console.Error{Code: console.ExitFailed}
				}
				return nil
			})
		},
	}
	f.add(cmd, 5*time.Minute)
	cmd.Flags().StringSliceVar(&ids, "id", nil, "the blocks")
	cmd.Flags().StringVar(&marker, "marker", "", "the mark: "+strings.Join(files, ", "))
	cmd.Flags().StringVar(&about, "details", "", "why, for whoever finds the mark")
	cmd.Flags().BoolVar(&remove, "remove", false, "take the mark away")
	_ = cmd.RegisterFlagCompletionFunc("marker", cobra.FixedCompletions(files, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

var errFound = errors.New("found")

// setMark sets a mark, or takes it away, and says what it did. A block has to have something in
// the bucket: a mark alone would be taken for what a deletion left.
func setMark(ctx context.Context, bkt objstore.Bucket, id ulid.ULID, kind meta.Kind, about string, remove bool, now time.Time) (string, error) {
	file := path.Join(id.String(), kind.File())
	if remove {
		there, err := bkt.Exists(ctx, file)
		if err != nil || !there {
			return "has no " + kind.File(), err
		}
		return "removed " + kind.File(), transfer.RemoveMark(ctx, bkt, id, kind)
	}
	err := bkt.Iter(ctx, id.String(), func(string) error { return errFound })
	if err == nil {
		return "set " + kind.File(), errors.New("there is no such block; promweave bucket ls --all shows those that there are")
	} else if !errors.Is(err, errFound) {
		return "set " + kind.File(), err
	}
	m := &meta.Mark{ID: id, Kind: kind, Details: about, Time: now, Reason: meta.ReasonManual}
	if kind == meta.Deletion {
		m.Reason = ""
	}
	added, err := transfer.PutMark(ctx, bkt, m)
	if err == nil && !added {
		return "has " + kind.File() + " already, which is left as it is", nil
	}
	return "set " + kind.File(), err
}

func cleanupCmd(c *console.Console) *cobra.Command {
	var (
		f       = &common{c: c}
		d       = compact.DefaultConfig("")
		delay   = console.Duration(d.DeleteDelay)
		partial = console.Duration(d.PartialAge)
		dry     bool
	)
	cmd := &cobra.Command{
		Use:   "cleanup --objstore.config-file FILE",
		Short: "Delete blocks that were marked for deletion long enough ago, and uploads that were broken off",
		Long: `Deletes blocks whose deletion mark is older than --delete-delay, and what is there of uploads
that nothing was added to for longer than --partial-age.

A block whose meta.json is corrupt may be whole otherwise, and is deleted only once it is marked.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.with(cmd, func(ctx context.Context, bkt objstore.Bucket) error {
				v, err := f.look(ctx, bkt)
				if err != nil {
					return err
				}
				a := &actions{DryRun: dry, Actions: []action{}}
				clean(ctx, c, bkt, v, time.Duration(delay), time.Duration(partial), a)
				if err := c.Write(cmd, f.output, a, a.text); err != nil {
					return err
				}
				return end(v, a.failed())
			})
		},
	}
	f.add(cmd, 0)
	cmd.Flags().Var(&delay, "delete-delay", "age from which a deletion mark counts; more than those who read wait")
	cmd.Flags().Var(&partial, "partial-age", "age from which an upload that is not complete counts as broken off")
	cmd.Flags().Var(&partial, "consistency-delay", "the same as --partial-age")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be done")
	return cmd
}

func clean(ctx context.Context, c *console.Console, bkt objstore.Bucket, v *view.View, delay, partial time.Duration, a *actions) {
	now := c.Now()
	due := func(m *meta.Mark) bool { return m != nil && now.Sub(m.Time) > delay }
	for _, b := range v.Blocks {
		if m := b.Marks[meta.Deletion]; due(m) {
			a.do(b.Meta.ULID, "deleted", "marked for deletion "+m.Time.UTC().Format(time.RFC3339), func() error {
				return transfer.Delete(ctx, bkt, b.Meta.ULID)
			})
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(v.Partial), ulid.ULID.Compare) {
		p := v.Partial[id]
		at := p.Newest
		if at.IsZero() {
			at = ulid.Time(id.Time())
		}
		switch m := p.Marks[meta.Deletion]; {
		case due(m):
			a.do(id, "deleted", "the rest of a block that was marked for deletion "+m.Time.UTC().Format(time.RFC3339), func() error {
				return transfer.Delete(ctx, bkt, id)
			})
		case m != nil:
		case p.State == view.Corrupt:
			c.Say("block %s is left alone: %v; mark it for deletion by promweave bucket mark, or put its meta.json right", id, p.Reason)
		case now.Sub(at) > partial:
			a.do(id, "deleted", "an upload that was broken off "+at.UTC().Format(time.RFC3339), func() error {
				// Somebody may have completed it since.
				there, err := bkt.Exists(ctx, path.Join(id.String(), meta.File))
				if err == nil && there {
					err = fmt.Errorf("it has its %s by now, and is kept", meta.File)
				}
				if err != nil {
					return err
				}
				return transfer.Delete(ctx, bkt, id)
			})
		}
	}
}

func retentionCmd(c *console.Console) *cobra.Command {
	var (
		f               = &common{c: c}
		raw, five, hour console.Duration
		dry             bool
	)
	cmd := &cobra.Command{
		Use:     "retention --retention.resolution-raw DURATION",
		Short:   "Mark for deletion what is older than it is kept, once",
		Example: "  promweave bucket retention --retention.resolution-raw 90d --dry-run --objstore.config-file bucket.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := compact.Retention{meta.Raw: time.Duration(raw), meta.FiveMinutes: time.Duration(five), meta.OneHour: time.Duration(hour)}
			if raw == 0 && five == 0 && hour == 0 {
				return console.Usage(cmd, "--retention.resolution-raw, -5m or -1h says how long blocks are kept; without any they are kept for ever")
			}
			return f.with(cmd, func(ctx context.Context, bkt objstore.Bucket) error {
				v, err := f.look(ctx, bkt)
				if err != nil {
					return err
				}
				a := &actions{DryRun: dry, Actions: []action{}}
				for _, m := range r.Expired(living(v), c.Now()) {
					why := fmt.Sprintf("it ends %s, and %s is kept for %s", clock(m.MaxTime), level(m.Resolution()), model.Duration(r[m.Resolution()]))
					a.do(m.ULID, "marked for deletion", why, func() error {
						_, err := transfer.PutMark(ctx, bkt, &meta.Mark{ID: m.ULID, Kind: meta.Deletion, Details: why, Time: c.Now()})
						return err
					})
				}
				if err := c.Write(cmd, f.output, a, a.text); err != nil {
					return err
				}
				return end(v, a.failed())
			})
		},
	}
	f.add(cmd, 0)
	cmd.Flags().Var(&raw, "retention.resolution-raw", "how long raw blocks are kept; 0 is for ever")
	cmd.Flags().Var(&five, "retention.resolution-5m", "how long blocks of 5 minutes are kept; 0 is for ever")
	cmd.Flags().Var(&hour, "retention.resolution-1h", "how long blocks of an hour are kept; 0 is for ever")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be done")
	return cmd
}

// living are the metas of blocks that nobody has marked for deletion.
func living(v *view.View) (out []*meta.Meta) {
	for _, b := range v.Blocks {
		if b.Marks[meta.Deletion] == nil {
			out = append(out, b.Meta)
		}
	}
	return out
}
