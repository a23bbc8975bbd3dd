// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucketcmd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/spf13/cobra"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/bins/promweave/internal/bucketclient"
	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/replicate"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/verify"
	"github.com/promweave/promweave/blocks/view"
)

func uploadCmd(c *console.Console) *cobra.Command {
	var (
		f      = &common{c: c}
		dir    string
		labels []string
		dry    bool
	)
	cmd := &cobra.Command{
		Use:   "upload --path DIR --label 'k=\"v\"'",
		Short: "Upload the blocks of a TSDB directory",
		Long: `Reads each block below a directory whole, and uploads it if nothing is wrong with it and the
bucket does not have it. The labels become the external labels of the blocks. The directory is
only read.`,
		Example: `  promweave bucket upload --path ./data --label 'cluster="eu1"' --dry-run --objstore.config-file bucket.yaml`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			external, err := parseLabels(labels)
			if err != nil {
				return console.Usage(cmd, "--label: %w", err)
			}
			if len(external) == 0 {
				return console.Usage(cmd, "--label says whose the blocks are, for example --label 'cluster=\"eu1\"': blocks without external labels cannot be told apart")
			}
			if dir == "" {
				return console.Usage(cmd, "--path says which directory")
			}
			return f.with(cmd, func(ctx context.Context, bkt objstore.Bucket) error {
				found, err := blocksIn(dir)
				if err != nil {
					return err
				}
				a := &actions{DryRun: dry, Actions: []action{}}
				for _, id := range found {
					if ctx.Err() != nil {
						return context.Cause(ctx)
					}
					upload(ctx, c, bkt, dir, id, external, a)
				}
				if err := c.Write(cmd, f.output, a, a.text); err != nil {
					return err
				}
				return end(&view.View{}, a.failed())
			})
		},
	}
	f.add(cmd, 0)
	cmd.Flags().StringVar(&dir, "path", "", "directory with the blocks")
	cmd.Flags().StringArrayVar(&labels, "label", nil, `external label: k="v"`)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "read the blocks, and only say what would be done")
	return cmd
}

// parseLabels reads k="v", and k=v as it is left of it by a shell.
func parseLabels(texts []string) (map[string]string, error) {
	out := map[string]string{}
	for _, text := range texts {
		name, value, ok := strings.Cut(text, "=")
		if strings.HasPrefix(value, `"`) {
			v, err := strconv.Unquote(value)
			if err != nil {
				return nil, fmt.Errorf("%s: the value is no quoted text", text)
			}
			value = v
		}
		if !ok || value == "" || !model.LegacyValidation.IsValidLabelName(name) || !model.LabelValue(value).IsValid() {
			return nil, fmt.Errorf(`%s: it is to be like cluster="eu1"`, text)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		out[name] = value
	}
	return out, nil
}

// blocksIn are the blocks in a directory, in order of their ids.
func blocksIn(dir string) (out []ulid.ULID, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if id, err := ulid.ParseStrict(e.Name()); err == nil && e.IsDir() {
			out = append(out, id)
		}
	}
	return out, nil
}

func upload(ctx context.Context, c *console.Console, bkt objstore.Bucket, dir string, id ulid.ULID, external map[string]string, a *actions) {
	fail := func(err error) {
		a.Actions = append(a.Actions, action{ULID: id.String(), Action: "not uploaded", Error: err.Error()})
	}
	there, err := bkt.Exists(ctx, path.Join(id.String(), meta.File))
	if err != nil {
		fail(err)
		return
	}
	if there {
		a.do(id, "left alone", "the bucket has it", nil)
		return
	}
	block := filepath.Join(dir, id.String())
	data, err := os.ReadFile(filepath.Join(block, meta.File))
	if err != nil {
		fail(err)
		return
	}
	m, err := meta.Parse(id, data)
	if err != nil {
		fail(err)
		return
	}
	m.Thanos.Labels, m.Thanos.Source = external, meta.SourceBucketUpload
	found, err := verify.Block(ctx, block, m, verify.Options{Chunks: true})
	if err == nil {
		err = found.Err(m)
	}
	if err != nil {
		fail(err)
		return
	}
	a.do(id, "uploaded", fmt.Sprintf("%s to %s, %d series", clock(m.MinTime), clock(m.MaxTime), found.Series), func() error {
		_, err := transfer.Upload(ctx, bkt, block, m, transfer.Options{Now: c.Now})
		return err
	})
}

func replicateCmd(c *console.Console) *cobra.Command {
	var (
		f           = &common{c: c}
		target      bucketclient.Flags
		choose      choice
		resolutions []string
		levels      []int
		wait        console.Duration
		single, dry bool
	)
	cmd := &cobra.Command{
		Use:   "replicate --objstore.config-file FILE --objstore-to.config-file FILE",
		Short: "Copy blocks into another bucket, oldest first",
		Long: `Copies the blocks that are chosen and that the target does not have: segments, index, and meta.json
last, so that a copy that is broken off is never taken for a block. It may be killed at any moment;
the next run goes on. Marks are not copied.`,
		Example: `  promweave bucket replicate --objstore.config-file from.yaml --objstore-to.config-file to.yaml \
    --matcher 'cluster="eu1"' --resolution 5m,1h`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := choose.parse(cmd, c.Now()); err != nil {
				return err
			}
			want := map[int64]bool{}
			for _, text := range resolutions {
				i := slices.IndexFunc(meta.Resolutions(), func(r int64) bool { return level(r) == text || text == "0s" && r == meta.Raw })
				if i < 0 {
					return console.Usage(cmd, "--resolution %s: it is of raw, 5m, 1h", text)
				}
				want[meta.Resolutions()[i]] = true
			}
			if single && wait > 0 {
				return console.Usage(cmd, "of --single-run and --wait-interval there can be one")
			}
			takes := func(b *view.Block) bool {
				return choose.takes(b) && (len(want) == 0 || want[b.Meta.Resolution()]) && (len(levels) == 0 || slices.Contains(levels, b.Meta.Compaction.Level))
			}
			return f.with(cmd, func(ctx context.Context, bkt objstore.Bucket) error {
				to, err := open(cmd, &target, "target")
				if err != nil {
					return err
				}
				defer to.Close()
				for {
					err := f.replicate(cmd, ctx, bkt, to, takes, dry)
					if wait == 0 || ctx.Err() != nil {
						return err
					}
					if err != nil && !errors.As(err, new(*console.Error)) {
						c.Say("a round failed, the next one tries again: %v", err)
					}
					select {
					case <-ctx.Done():
						return context.Cause(ctx)
					case <-time.After(time.Duration(wait)):
					}
				}
			})
		},
	}
	f.add(cmd, 0)
	target.AddFlags(cmd.Flags(), "objstore-to", "the bucket that blocks are copied to")
	choose.add(cmd, "ignore-marked-for-deletion", "matcher")
	cmd.Flags().StringSliceVar(&resolutions, "resolution", nil, "only blocks of these levels: raw, 5m, 1h")
	cmd.Flags().IntSliceVar(&levels, "compaction", nil, "only blocks that were compacted so often: 1, 2, …")
	cmd.Flags().BoolVar(&single, "single-run", false, "copy once, which is what is done without --wait-interval")
	cmd.Flags().Var(&wait, "wait-interval", "go on for ever, and look for blocks so often")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be copied, if the target does not have it")
	return cmd
}

func (f *common) replicate(cmd *cobra.Command, ctx context.Context, from, to objstore.Bucket, takes func(*view.Block) bool, dry bool) error {
	v, err := f.look(ctx, from)
	if err != nil {
		return err
	}
	blocks := slices.DeleteFunc(slices.Clone(v.Blocks), func(b *view.Block) bool { return !takes(b) })
	slices.SortStableFunc(blocks, func(a, b *view.Block) int { return cmp.Compare(a.Meta.MinTime, b.Meta.MinTime) })
	a := &actions{DryRun: dry, Actions: []action{}}
	for _, b := range blocks {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		copied := true
		a.do(b.Meta.ULID, "copied", "", func() (err error) {
			copied, err = replicate.Block(ctx, from, to, b.Meta.ULID)
			if errors.Is(err, replicate.ErrDiffers) {
				err = fmt.Errorf("%w; look at it by promweave bucket inspect, and delete the one that is wrong", err)
			}
			return err
		})
		if x := &a.Actions[len(a.Actions)-1]; !copied && x.Error == "" {
			x.Action, x.Reason = "left alone", "the target has it"
		}
	}
	if err := f.c.Write(cmd, f.output, a, a.text); err != nil {
		return err
	}
	return end(v, a.failed())
}
