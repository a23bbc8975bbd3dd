// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/spf13/cobra"

	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/corpus/export"
)

func (a *app) certifyCorpusCmd() *cobra.Command {
	var (
		out       string
		at        string
		seed      uint64
		generated int
		external  string
		levels    bool
	)
	cmd := &cobra.Command{
		Use:   "corpus --out DIR",
		Short: "Write the data that backends are certified with",
		Long: `Writes the conformance corpus to DIR: TSDB blocks (blocks/), OpenMetrics text
(openmetrics.txt), a list in JSON (series.json), and for each a manifest, by which promweave
certify --corpus knows what was loaded: manifest.json is that of the blocks.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return console.Usage(cmd, "--out says where to")
			}
			o := corpus.Options{Seed: seed, Generated: generated}
			if at != "" {
				t, err := time.Parse(time.RFC3339, at)
				if err != nil {
					return console.Usage(cmd, "--at %s: want a time such as 2026-01-05T08:00:00Z", at)
				}
				o.Start = t.UnixMilli()
			}
			ext := labels.EmptyLabels()
			if external != "" {
				var err error
				if ext, err = parseLabels(external); err != nil {
					return console.Usage(cmd, "--external %s: %v", external, err)
				}
			}
			if entries, err := os.ReadDir(out); err == nil && len(entries) > 0 {
				return console.Failed(fmt.Errorf("%s is not empty, and is not written over: take another directory", out))
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return console.Failed(err)
			}
			if levels && ext.IsEmpty() {
				return console.Usage(cmd, "--downsampled needs --external: Thanos knows the blocks of a bucket by their external labels")
			}
			c := corpus.New(o)
			c = c.Only(slices.DeleteFunc(c.Parts(), func(p corpus.Part) bool {
				return slices.Contains(notInBlocks, p) && !(levels && p == corpus.Downsampled)
			})...)
			if err := a.writeCorpus(cmd.Context(), out, c, ext); err != nil {
				return console.Failed(err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "directory to write to; it is made")
	cmd.Flags().StringVar(&at, "at", "", "time at which the data begin, for stores that take recent data only; it is rounded down to two hours")
	cmd.Flags().Uint64Var(&seed, "data-seed", 0, "another corpus: where the generated series begin")
	cmd.Flags().IntVar(&generated, "generated", 0, "number of generated series; 0 is 200")
	cmd.Flags().StringVar(&external, "external", "", `external labels for the meta.json of blocks, as 'cluster="eu1",replica="a"'`)
	cmd.Flags().BoolVar(&levels, "downsampled", false, "write downsampled blocks too, for stores that read buckets; it needs --external")
	return cmd
}

func (a *app) writeCorpus(ctx context.Context, out string, c *corpus.Corpus, ext labels.Labels) error {
	blocks := filepath.Join(out, "blocks")
	if err := os.MkdirAll(blocks, 0o755); err != nil {
		return err
	}
	ids, err := export.WriteBlocks(ctx, blocks, c, ext)
	if err != nil {
		return err
	}
	if len(c.Levels) > 0 {
		more, err := export.WriteDownsampled(ctx, blocks, c, ext)
		if err != nil {
			return err
		}
		ids = append(ids, more...)
	}
	if err := writeManifest(filepath.Join(out, "manifest.json"), c); err != nil {
		return err
	}
	names := []string{blocks, filepath.Join(out, "manifest.json")}
	downsampled := len(c.Levels) > 0
	c = c.Only(slices.DeleteFunc(c.Parts(), func(p corpus.Part) bool { return p == corpus.Downsampled })...)
	a.Say("%d series in %s, from %s on.", len(c.Series), count(len(ids), "block"), time.UnixMilli(c.Start).UTC().Format(time.RFC3339))
	for _, form := range []struct {
		file  string
		write func(io.Writer, *corpus.Corpus) (map[corpus.Part]string, error)
	}{{"openmetrics.txt", export.WriteOpenMetrics}, {"series.json", export.WriteJSON}} {
		file := filepath.Join(out, form.file)
		w, err := os.Create(file)
		if err != nil {
			return err
		}
		left, err := form.write(w, c)
		if err = errors.Join(err, w.Close()); err != nil {
			return err
		}
		has := c.Only(slices.DeleteFunc(c.Parts(), func(p corpus.Part) bool { return left[p] != "" })...)
		manifest := strings.TrimSuffix(file, filepath.Ext(file)) + ".manifest.json"
		if err := writeManifest(manifest, has); err != nil {
			return err
		}
		names = append(names, file, manifest)
		for _, part := range slices.Sorted(maps.Keys(left)) {
			a.Say("%s lacks %s: %s", form.file, part, left[part])
		}
	}
	for _, name := range names {
		if _, err := fmt.Fprintln(a.Out, name); err != nil {
			return err
		}
	}
	if downsampled {
		a.Say(`To serve the blocks:
  backends:
    - {name: corpus, kind: bucket, config: {objstore: {type: FILESYSTEM, config: {directory: %q}}}}
Then: promweave certify --endpoint 127.0.0.1:10901 --corpus %s`, blocks, filepath.Join(out, "manifest.json"))
		return nil
	}
	a.Say(`To serve the blocks:
  backends:
    - {name: corpus, kind: tsdb, external_labels: {cluster: eu1, replica: a}, config: {path: %q, read_only: true}}
Then: promweave certify --endpoint 127.0.0.1:10901 --corpus %s`, blocks, filepath.Join(out, "manifest.json"))
	return nil
}

func writeManifest(file string, c *corpus.Corpus) error {
	data, err := json.MarshalIndent(c.Manifest(), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
