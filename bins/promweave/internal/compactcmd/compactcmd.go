// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package compactcmd is promweave compact: the process that keeps a bucket in order.
package compactcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/promslog"
	"github.com/spf13/cobra"

	"github.com/promweave/promweave/bins/promweave/internal/bucketclient"
	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/blocks/compact"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/core/dedup"
)

type flags struct {
	bucket                   bucketclient.Flags
	dir, http                string
	wait                     bool
	waitInterval             console.Duration
	consistency, deleteDelay console.Duration
	partial                  console.Duration
	raw, five, hour          console.Duration
	noDownsampling, vertical bool
	replicaLabels            []string
	dedup                    string
	concurrency, files       int
	output                   string
}

// Command is promweave compact.
func Command(c *console.Console) *cobra.Command {
	d := compact.DefaultConfig("")
	f := &flags{
		waitInterval: console.Duration(5 * time.Minute), consistency: console.Duration(d.Policy.ConsistencyDelay),
		deleteDelay: console.Duration(d.DeleteDelay), partial: console.Duration(d.PartialAge),
	}
	cmd := &cobra.Command{
		Use:   "compact --objstore.config-file FILE",
		Short: "Keep a bucket in order: compact, downsample, and delete what is old",
		Long: `Compacts the blocks of a bucket into longer ones, downsamples those that are long enough to
points of 5 minutes and of an hour, marks what is older than it is kept, and deletes what was
marked long enough ago. It does a little of each in turn, so that nothing waits for a backlog of
something else. Blocks are those of Thanos, whose tools can read them, and take over at any time.

One process does that for a bucket; a second one is noticed, and ends. After one that was killed, one
with another --data-dir waits some minutes, to see that it is gone. It may be killed at any moment.

Without --wait it ends once there is nothing left to do. The exit code is 1 if something could not
be done; the rest was.`,
		Example: `  promweave compact --objstore.config-file bucket.yaml --data-dir ./compact
  promweave compact --objstore.config-file bucket.yaml --wait --retention.resolution-raw 90d`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, c) },
	}
	f.bucket.AddFlags(cmd.Flags(), "objstore", "the bucket")
	fl := cmd.Flags()
	fl.StringVar(&f.dir, "data-dir", "./compact", "directory for the work, with room for the blocks of one compaction and as much again; it can be lost")
	fl.StringVar(&f.http, "http-address", "", "address for /metrics, /-/healthy and /-/ready; empty is none")
	fl.BoolVar(&f.wait, "wait", false, "go on for ever, and look for work again and again")
	fl.Var(&f.waitInterval, "wait-interval", "time between two looks once there is nothing to do")
	fl.Var(&f.consistency, "consistency-delay", "age from which an uploaded block is used; for providers whose listings lag behind")
	fl.Var(&f.deleteDelay, "delete-delay", "time after which a block that is marked for deletion is deleted; more than those who read wait")
	fl.Var(&f.partial, "partial-upload-age", "age from which an upload that is not complete counts as broken off, and is deleted")
	fl.Var(&f.raw, "retention.resolution-raw", "how long raw blocks are kept; 0 is for ever")
	fl.Var(&f.five, "retention.resolution-5m", "how long blocks of 5 minutes are kept; 0 is for ever")
	fl.Var(&f.hour, "retention.resolution-1h", "how long blocks of an hour are kept; 0 is for ever")
	fl.BoolVar(&f.noDownsampling, "downsampling.disable", false, "leave raw blocks alone")
	fl.BoolVar(&f.vertical, "compact.enable-vertical-compaction", false, "let blocks overlap: equal samples are kept once; it cannot be undone")
	fl.StringArrayVar(&f.replicaLabels, "deduplication.replica-label", nil, "external label by which replicas differ, may be repeated: it is taken off, and blocks may overlap; it cannot be undone")
	fl.StringVar(&f.dedup, "deduplication.func", "", `how to choose among replicas that differ: "default" as queries do, or "penalty"; "" keeps every distinct sample`)
	fl.IntVar(&f.concurrency, "compact.concurrency", 1, "streams that are compacted at once, and blocks that are downsampled")
	fl.IntVar(&f.files, "block-files-concurrency", 4, "files of a block that are moved at once")
	console.OutputFlag(cmd, &f.output, "text", "json", "yaml")
	return cmd
}

// summary is what a run did.
type summary struct {
	Passes      int       `json:"passes"`
	Compacted   int       `json:"compacted"`
	Downsampled int       `json:"downsampled"`
	Marked      int       `json:"marked"`
	Deleted     int       `json:"deleted"`
	Cleaned     int       `json:"cleaned"`
	Problems    []problem `json:"problems"`
}

type problem struct {
	What   string `json:"what"`
	Halted bool   `json:"halted"`
	Error  string `json:"error"`
}

func (s *summary) add(d *compact.Done) {
	s.Passes++
	s.Compacted += d.Compacted
	s.Downsampled += d.Downsampled
	s.Marked += d.Marked
	s.Deleted += d.Deleted
	s.Cleaned += d.Cleaned
	for _, p := range d.Problems {
		s.Problems = append(s.Problems, problem{p.What, p.Halted, p.Err.Error()})
	}
}

func (s *summary) text(w io.Writer) error {
	if _, err := fmt.Fprintf(w, "compacted %d, downsampled %d, marked for deletion %d, deleted %d, cleaned up %d, in %d passes\n",
		s.Compacted, s.Downsampled, s.Marked, s.Deleted, s.Cleaned, s.Passes); err != nil {
		return err
	}
	for _, p := range s.Problems {
		next := "it is tried again with the next run"
		if p.Halted {
			next = "look at its blocks with promweave bucket verify, mark the one that is wrong, and run again"
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n  %s\n", console.Clean(p.What), console.Clean(p.Error), next); err != nil {
			return err
		}
	}
	return nil
}

func (f *flags) run(cmd *cobra.Command, c *console.Console) error {
	if f.deleteDelay > 0 && f.deleteDelay < f.consistency {
		return console.Usage(cmd, "--delete-delay %s is less than --consistency-delay %s: blocks would go before others see what replaces them", &f.deleteDelay, &f.consistency)
	}
	algorithm := dedup.Algorithm(f.dedup)
	switch {
	case algorithm != "" && algorithm != dedup.Default && algorithm != dedup.Penalty:
		return console.Usage(cmd, "--deduplication.func %q: use %q or %q, or leave it out to keep every distinct sample", f.dedup, dedup.Default, dedup.Penalty)
	case algorithm != "" && len(f.replicaLabels) == 0:
		return console.Usage(cmd, "--deduplication.func needs --deduplication.replica-label, which says what replicas are")
	case f.concurrency < 1 || f.files < 1:
		return console.Usage(cmd, "--compact.concurrency and --block-files-concurrency are 1 at least")
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	bkt, err := f.bucket.Open(bucketclient.NewOpener(reg), "compact")
	if wrong := (*bucketclient.FlagsError)(nil); errors.As(err, &wrong) {
		return console.Usage(cmd, "%w", err)
	} else if err != nil {
		return console.Failed(err)
	}
	defer bkt.Close()
	log := promslog.New(&promslog.Config{Writer: c.Talk})
	cfg := compact.DefaultConfig(f.dir)
	cfg.Policy.ConsistencyDelay = time.Duration(f.consistency)
	cfg.DeleteDelay, cfg.PartialAge = time.Duration(f.deleteDelay), time.Duration(f.partial)
	cfg.Retention = compact.Retention{meta.Raw: time.Duration(f.raw), meta.FiveMinutes: time.Duration(f.five), meta.OneHour: time.Duration(f.hour)}
	cfg.Vertical, cfg.NoDownsampling, cfg.Logger = f.vertical || len(f.replicaLabels) > 0, f.noDownsampling, log
	cfg.Policy.ReplicaLabels, cfg.Dedup = f.replicaLabels, algorithm
	cfg.Concurrency, cfg.Files, cfg.Registerer = f.concurrency, f.files, reg

	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	serving, err := serveHTTP(ctx, f.http, reg, log)
	if err != nil {
		return console.Failed(err)
	}
	defer serving()

	s := &summary{Problems: []problem{}}
	a := &alone{bkt: bkt, dir: f.dir, log: log}
	defer a.release()
	cfg.Guard = a.check
	err = f.loop(ctx, a, compact.New(bkt, cfg), log, s)
	if err != nil && !(f.wait && ctx.Err() != nil) {
		return console.Failed(err)
	}
	if err := c.Write(cmd, f.output, s, s.text); err != nil {
		return err
	}
	if len(s.Problems) > 0 {
		return &console.Error{Code: console.ExitFailed}
	}
	return nil
}

// loop makes passes, and keeps those of the last one's problems: one that is mended is none.
func (f *flags) loop(ctx context.Context, a *alone, cc *compact.Compactor, log *slog.Logger, s *summary) error {
	said := map[problem]bool{}
	for {
		d := &compact.Done{}
		err := a.hold(ctx)
		if err == nil {
			d, err = cc.Pass(ctx)
		}
		s.Problems = s.Problems[:0]
		s.add(d)
		if err != nil && (!f.wait || ctx.Err() != nil) {
			return err
		}
		if err != nil {
			log.Error("a pass could not be made; the next one tries again", "err", err)
		}
		now := map[problem]bool{}
		for _, p := range s.Problems {
			if now[p] = true; !said[p] {
				log.Error("something could not be done; the rest was", "what", p.What, "halted", p.Halted, "err", p.Error)
			}
		}
		said = now
		if err == nil && d.More() {
			continue
		}
		if !f.wait {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(f.waitInterval)):
		}
	}
}
