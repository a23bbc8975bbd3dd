// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucketcmd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/spf13/cobra"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/view"
)

// mark is a mark of a block.
type mark struct {
	Kind    meta.Kind `json:"kind"`
	Time    time.Time `json:"time"`
	Reason  string    `json:"reason,omitempty"`
	Details string    `json:"details,omitempty"`
}

func marksOf(marks map[meta.Kind]*meta.Mark) []mark {
	out := []mark{}
	for _, kind := range meta.Kinds() {
		if m := marks[kind]; m != nil {
			out = append(out, mark{kind, m.Time.UTC(), m.Reason, m.Details})
		}
	}
	return out
}

// row is a block in a list.
type row struct {
	ULID string `json:"ulid"`
	// State is loaded, duplicate, no-meta-json or corrupted-meta-json.
	State      view.State        `json:"state"`
	Reason     string            `json:"reason,omitempty"`
	MinTime    int64             `json:"minTime"`
	MaxTime    int64             `json:"maxTime"`
	Resolution int64             `json:"resolution"`
	Level      int               `json:"level"`
	Series     uint64            `json:"series"`
	Samples    uint64            `json:"samples"`
	Chunks     uint64            `json:"chunks"`
	SizeBytes  int64             `json:"sizeBytes"`
	Source     string            `json:"source"`
	Labels     map[string]string `json:"labels"`
	Marks      []mark            `json:"marks"`
}

func whole(b *view.Block, state view.State) row {
	m := b.Meta
	r := row{ULID: m.ULID.String(), State: state, MinTime: m.MinTime, MaxTime: m.MaxTime, Resolution: m.Resolution(), Level: m.Compaction.Level,
		Series: m.Stats.NumSeries, Samples: m.Stats.NumSamples, Chunks: m.Stats.NumChunks, Source: m.Thanos.Source, Labels: m.Thanos.Labels, Marks: marksOf(b.Marks)}
	for _, f := range m.Thanos.Files {
		r.SizeBytes += f.SizeBytes
	}
	return r
}

var sorts = map[string]func(a, b row) int{
	"id":     func(a, b row) int { return cmp.Compare(a.ULID, b.ULID) },
	"from":   func(a, b row) int { return cmp.Compare(a.MinTime, b.MinTime) },
	"to":     func(a, b row) int { return cmp.Compare(a.MaxTime, b.MaxTime) },
	"size":   func(a, b row) int { return cmp.Compare(b.SizeBytes, a.SizeBytes) },
	"series": func(a, b row) int { return cmp.Compare(b.Series, a.Series) },
	"labels": func(a, b row) int { return cmp.Compare(labelText(a.Labels), labelText(b.Labels)) },
}

func lsCmd(c *console.Console) *cobra.Command {
	var (
		f      = &common{c: c}
		choose choice
		all    bool
		by     string
	)
	cmd := &cobra.Command{
		Use:   "ls --objstore.config-file FILE",
		Short: "List the blocks of a bucket",
		Example: `  promweave bucket ls --objstore.config-file bucket.yaml --selector 'cluster="eu1"' --sort-by size
  promweave bucket ls --objstore.config-file bucket.yaml --min-time -7d -o ids`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			less, ok := sorts[by]
			if !ok {
				return console.Usage(cmd, "--sort-by %s: it is one of %s", by, strings.Join(slices.Sorted(maps.Keys(sorts)), ", "))
			}
			if err := choose.parse(cmd, c.Now()); err != nil {
				return err
			}
			return f.with(cmd, func(ctx context.Context, bkt objstore.Bucket) error {
				v, err := f.look(ctx, bkt)
				if err != nil {
					return err
				}
				rows := list(v, &choose, all)
				slices.SortStableFunc(rows, less)
				if n := len(v.Partial); n > 0 && !all {
					c.Say("not shown: what is there of %d blocks that are not whole; --all shows it", n)
				}
				if f.output == "ids" {
					for _, r := range rows {
						fmt.Fprintln(c.Out, r.ULID)
					}
				} else if err := c.Write(cmd, f.output, rows, func(w io.Writer) error { return lsText(w, rows) }); err != nil {
					return err
				}
				return end(v, false)
			})
		},
	}
	f.add(cmd, 5*time.Minute, "ids")
	choose.add(cmd, "exclude-delete", "selector")
	cmd.Flags().BoolVar(&all, "all", false, "with blocks that are not whole: uploads that go on or were broken off, and those whose meta.json is corrupt")
	cmd.Flags().StringVar(&by, "sort-by", "from", "order: "+strings.Join(slices.Sorted(maps.Keys(sorts)), ", "))
	return cmd
}

// list are the blocks that are chosen. Of what is not whole only the id is known.
func list(v *view.View, choose *choice, all bool) []row {
	rows := []row{}
	s := v.Select(view.Deduplicate())
	for _, b := range v.Blocks {
		if choose.takes(b) {
			rows = append(rows, whole(b, cmp.Or(s.Dropped[b.Meta.ULID], view.Loaded)))
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(v.Partial), ulid.ULID.Compare) {
		if p := v.Partial[id]; all && (len(choose.chosen) == 0 || choose.chosen[id]) {
			rows = append(rows, row{ULID: id.String(), State: p.State, Reason: fmt.Sprint(p.Reason), Labels: map[string]string{}, Marks: marksOf(p.Marks)})
		}
	}
	return rows
}

func lsText(out io.Writer, rows []row) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "BLOCK\tFROM\tTO\tRESOLUTION\tLEVEL\tSERIES\tSAMPLES\tCHUNKS\tSIZE\tSTATE\tMARKS\tLABELS")
	for _, r := range rows {
		marks := []string{}
		for _, m := range r.Marks {
			marks = append(marks, strings.TrimSuffix(string(m.Kind), "-mark"))
		}
		marked := cmp.Or(strings.Join(marks, ","), "-")
		if r.State == view.NoMeta || r.State == view.Corrupt {
			fmt.Fprintf(w, "%s\t-\t-\t-\t-\t-\t-\t-\t-\t%s\t%s\t-\n", r.ULID, r.State, marked)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", r.ULID, clock(r.MinTime), clock(r.MaxTime), level(r.Resolution), r.Level,
			r.Series, r.Samples, r.Chunks, size(r.SizeBytes), r.State, marked, console.Clean(labelText(r.Labels)))
	}
	return w.Flush()
}

func clock(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05Z") }

func level(ms int64) string {
	if ms == meta.Raw {
		return "raw"
	}
	return model.Duration(time.Duration(ms) * time.Millisecond).String()
}

// size is for people; meta.json of old blocks does not have it.
func size(n int64) string {
	if n == 0 {
		return "-"
	}
	units := []string{"B", "KiB", "MiB", "GiB"}
	v := float64(n)
	for len(units) > 1 && v >= 1024 {
		v, units = v/1024, units[1:]
	}
	if v == float64(n) {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[0])
}

func labelText(m map[string]string) string { return labels.FromMap(m).String() }

// details are what inspect says of a block.
type details struct {
	ULID    string          `json:"ulid"`
	State   view.State      `json:"state"`
	Reason  string          `json:"reason,omitempty"`
	Meta    json.RawMessage `json:"meta,omitempty"`
	Marks   []mark          `json:"marks"`
	Objects []object        `json:"objects"`
}

type object struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"sizeBytes"`
}

func inspectCmd(c *console.Console) *cobra.Command {
	f := &common{c: c}
	cmd := &cobra.Command{
		Use:     "inspect ULID...",
		Short:   "Say everything of blocks: meta.json, marks, objects with their sizes",
		Example: "  promweave bucket inspect 01M7ZYC1STEW21SJ2T70SNVCXK --objstore.config-file bucket.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			choose := choice{ids: args}
			if err := choose.parse(cmd, c.Now()); err != nil {
				return err
			}
			return f.with(cmd, func(ctx context.Context, bkt objstore.Bucket) error {
				v, err := f.look(ctx, bkt)
				if err != nil {
					return err
				}
				failed := false
				for _, id := range choose.missing(v) {
					failed = true
					if v.Problems[id] == nil {
						c.Say("there is no block %s in the bucket; promweave bucket ls --all shows those that there are", id)
					}
				}
				out := []details{}
				for _, r := range list(v, &choose, true) {
					d, err := inspect(ctx, bkt, v, r)
					if err != nil {
						return err
					}
					out = append(out, d)
				}
				if err := c.Write(cmd, f.output, out, func(w io.Writer) error { return inspectText(w, out) }); err != nil {
					return err
				}
				if failed {
					return &console.Error{Code: console.ExitFailed}
				}
				return nil
			})
		},
	}
	f.add(cmd, 5*time.Minute)
	return cmd
}

func inspect(ctx context.Context, bkt objstore.Bucket, v *view.View, r row) (details, error) {
	d := details{ULID: r.ULID, State: r.State, Reason: r.Reason, Marks: r.Marks, Objects: []object{}}
	for _, b := range v.Blocks {
		if b.Meta.ULID.String() == r.ULID {
			data, err := b.Meta.Encode()
			if err != nil {
				return d, err
			}
			d.Meta = data
		}
	}
	var names []string
	if err := bkt.Iter(ctx, r.ULID, func(name string) error { names = append(names, name); return nil }, objstore.WithRecursiveIter()); err != nil {
		return d, fmt.Errorf("list block %s: %w", r.ULID, err)
	}
	slices.Sort(names)
	for _, name := range names {
		a, err := bkt.Attributes(ctx, name)
		if err != nil {
			return d, fmt.Errorf("size of %s: %w", name, err)
		}
		d.Objects = append(d.Objects, object{strings.TrimPrefix(name, r.ULID+"/"), a.Size})
	}
	return d, nil
}

func inspectText(out io.Writer, all []details) error {
	for i, d := range all {
		if i > 0 {
			fmt.Fprintln(out)
		}
		w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
		line := func(key, format string, args ...any) {
			fmt.Fprintf(w, "%s\t%s\n", key, console.Clean(fmt.Sprintf(format, args...)))
		}
		line("block", "%s", d.ULID)
		line("state", "%s", d.State)
		if d.Reason != "" {
			line("reason", "%s", d.Reason)
		}
		if d.Meta != nil {
			var m meta.Meta
			if err := json.Unmarshal(d.Meta, &m); err != nil {
				return err
			}
			line("times", "%s to %s (%s)", clock(m.MinTime), clock(m.MaxTime), model.Duration(time.Duration(m.MaxTime-m.MinTime)*time.Millisecond))
			line("labels", "%s", labelText(m.Thanos.Labels))
			line("resolution", "%s", level(m.Resolution()))
			line("made by", "%s", cmp.Or(m.Thanos.Source, "-"))
			if !m.Thanos.UploadTime.IsZero() {
				line("uploaded", "%s", m.Thanos.UploadTime.UTC().Format(time.RFC3339))
			}
			line("holds", "%d series, %d samples, %d chunks, %d tombstones", m.Stats.NumSeries, m.Stats.NumSamples, m.Stats.NumChunks, m.Stats.NumTombstones)
			line("compaction", "level %d", m.Compaction.Level)
			line("sources", "%s", join(m.Compaction.Sources))
			for _, p := range m.Compaction.Parents {
				line("parent", "%s, %s to %s", p.ULID, clock(p.MinTime), clock(p.MaxTime))
			}
			if s := m.Thanos.IndexStats; s.SeriesMaxSize > 0 {
				line("largest", "series %d B, chunk %d B", s.SeriesMaxSize, s.ChunkMaxSize)
			}
			if len(m.Thanos.Rewrites) > 0 && string(m.Thanos.Rewrites) != "null" {
				line("rewrites", "%s", m.Thanos.Rewrites)
			}
			if len(m.Thanos.Extensions) > 0 && string(m.Thanos.Extensions) != "null" {
				line("extensions", "%s", m.Thanos.Extensions)
			}
		}
		for _, m := range d.Marks {
			line(string(m.Kind), "%s %s %s", m.Time.Format(time.RFC3339), m.Reason, m.Details)
		}
		for _, o := range d.Objects {
			line("object", "%s  %s", o.Name, cmp.Or(size(o.SizeBytes), "-"))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func join(ids []ulid.ULID) string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = id.String()
	}
	return strings.Join(out, " ")
}
