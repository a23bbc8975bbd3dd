// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package compact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/blocks/downsample"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/verify"
	"github.com/promweave/promweave/blocks/view"
)

// Config of a Compactor.
type Config struct {
	// Dir is for the work, and can be lost. It needs room for the inputs of one compaction
	// and as much again.
	Dir string
	// Policy is how the bucket is seen. Its DeletionDelay is to be less than DeleteDelay.
	Policy view.Policy
	// DeleteDelay is how long after its mark a block is deleted, so that those who read it
	// have seen what replaces it. PartialAge is the age from which an upload counts as broken off.
	DeleteDelay, PartialAge time.Duration
	Retention               Retention
	// Ranges are the lengths of blocks; nil is Ranges().
	Ranges []int64
	// Vertical allows blocks to overlap; it is needed for replicas.
	Vertical bool
	// NoDownsampling leaves raw blocks alone.
	NoDownsampling bool
	Logger         *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// DefaultConfig has the delays of Thanos.
func DefaultConfig(dir string) Config {
	return Config{Dir: dir, DeleteDelay: 48 * time.Hour, PartialAge: 48 * time.Hour,
		Policy: view.Policy{ConsistencyDelay: 30 * time.Minute, DeletionDelay: 24 * time.Hour}}
}

// Compactor keeps a bucket in order: it alone, no other one may work on the same streams.
type Compactor struct {
	bkt  objstore.Bucket
	cfg  Config
	log  *slog.Logger
	view *view.Fetcher
	// halted are streams where somebody has to look.
	halted map[string]halt
}

// halt is a plan that no other attempt will carry out, and why.
type halt struct {
	plan string
	err  error
}

// New returns a Compactor of a bucket.
func New(bkt objstore.Bucket, cfg Config) *Compactor {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Ranges == nil {
		cfg.Ranges = Ranges()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Compactor{bkt: bkt, cfg: cfg, log: cfg.Logger, halted: map[string]halt{},
		view: view.NewFetcher(bkt, view.Config{CacheDir: filepath.Join(cfg.Dir, "metas"), Logger: cfg.Logger})}
}

// Problem is what went wrong with one stream or block. The others went on.
type Problem struct {
	// Stream or block, as text.
	What string
	// Halted: it will not be tried again as long as the blocks are the same.
	Halted bool
	Err    error
}

// Done is what one pass did.
type Done struct {
	// Compacted and Downsampled are new blocks, Marked those that are to be deleted, Deleted
	// those that were, Cleaned uploads that had been broken off.
	Compacted, Downsampled, Marked, Deleted, Cleaned int
	Problems                                         []Problem
}

// More says whether another pass may find something to do.
func (d *Done) More() bool { return d.Compacted+d.Downsampled > 0 }

// Pass compacts once in each stream, downsamples what is long enough, and marks and deletes what
// is to go. So nothing waits until a backlog of something else is done. What is wrong with one
// stream or block is a Problem; an error says that the bucket could not be seen, or ctx is done.
//
// It may be killed at any moment: what it replaces is there until what replaces it is, and hidden
// from then on.
func (c *Compactor) Pass(ctx context.Context) (*Done, error) {
	d := &Done{}
	if err := os.MkdirAll(c.cfg.Dir, 0o755); err != nil {
		return d, err
	}
	v, s, err := c.look(ctx)
	if err != nil {
		return d, err
	}
	c.clean(ctx, v, d)
	c.outdated(ctx, v, s, d)
	for _, g := range Groups(living(s)) {
		if ctx.Err() != nil {
			return d, context.Cause(ctx)
		}
		c.compact(ctx, g, s, d)
	}
	if d.Compacted > 0 {
		if _, s, err = c.look(ctx); err != nil {
			return d, err
		}
	}
	if !c.cfg.NoDownsampling {
		for _, job := range downsample.Wanted(living(s), s.Marked(meta.NoDownsample)) {
			if ctx.Err() != nil {
				return d, context.Cause(ctx)
			}
			if c.cfg.Retention.past(job.Resolution, job.Block.MaxTime, c.cfg.Now()) {
				continue // it would go at once, and be wanted again
			}
			if err := c.downsample(ctx, job); err != nil {
				d.problem("block "+job.Block.ULID.String(), false, err)
				continue
			}
			d.Downsampled++
		}
	}
	for _, m := range c.cfg.Retention.Expired(living(s), c.cfg.Now()) {
		c.mark(ctx, m.ULID, "older than it is kept", d)
	}
	if ctx.Err() != nil {
		return d, context.Cause(ctx)
	}
	return d, nil
}

// living are the blocks that nobody has marked for deletion. Readers see the others for a
// while, but nothing is made of them any more.
func living(s *view.Selection) []*meta.Meta {
	going := s.Marked(meta.Deletion)
	return slices.DeleteFunc(s.Metas(), func(m *meta.Meta) bool { return going[m.ULID] })
}

func (d *Done) problem(what string, halted bool, err error) {
	d.Problems = append(d.Problems, Problem{what, halted, err})
}

// look sees the bucket as it is. Who deletes has to see all of it: a block that cannot be read
// now may be the one that another one is hidden by.
func (c *Compactor) look(ctx context.Context) (*view.View, *view.Selection, error) {
	v, err := c.view.Fetch(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !v.Complete() {
		ids := slices.SortedFunc(maps.Keys(v.Problems), ulid.ULID.Compare)
		return nil, nil, fmt.Errorf("%d blocks cannot be read now, the first is %s: %w", len(ids), ids[0], v.Problems[ids[0]])
	}
	return v, v.Select(c.cfg.Policy.Filters(c.cfg.Now())...), nil
}

// clean deletes blocks that were marked long enough ago, and uploads that were broken off.
func (c *Compactor) clean(ctx context.Context, v *view.View, d *Done) {
	now := c.cfg.Now()
	for _, b := range v.Blocks {
		if m := b.Marks[meta.Deletion]; m == nil || now.Sub(m.Time) <= c.cfg.DeleteDelay {
			continue
		}
		if err := transfer.Delete(ctx, c.bkt, b.Meta.ULID); err != nil {
			d.problem("block "+b.Meta.ULID.String(), false, err)
			continue
		}
		c.log.Info("deleted a block", "block", b)
		d.Deleted++
	}
	for id, p := range v.Partial {
		at := p.Newest
		if at.IsZero() {
			at = ulid.Time(id.Time())
		}
		if now.Sub(at) <= c.cfg.PartialAge {
			continue
		}
		if err := transfer.Delete(ctx, c.bkt, id); err != nil {
			d.problem("block "+id.String(), false, err)
			continue
		}
		c.log.Info("deleted what is left of an upload or a deletion", "block", id, "reason", p.Reason)
		d.Cleaned++
	}
}

// outdated marks blocks of which others were made.
func (c *Compactor) outdated(ctx context.Context, v *view.View, s *view.Selection, d *Done) {
	for _, b := range v.Blocks {
		if s.Dropped[b.Meta.ULID] == view.Duplicate && b.Marks[meta.Deletion] == nil {
			c.mark(ctx, b.Meta.ULID, "outdated block", d)
		}
	}
}

func (c *Compactor) mark(ctx context.Context, id ulid.ULID, details string, d *Done) {
	added, err := transfer.PutMark(ctx, c.bkt, &meta.Mark{ID: id, Kind: meta.Deletion, Details: details, Time: c.cfg.Now()})
	if err != nil {
		d.problem("block "+id.String(), false, err)
	} else if added {
		d.Marked++
	}
}

// compact carries out one plan of a group.
func (c *Compactor) compact(ctx context.Context, g Group, s *view.Selection, d *Done) {
	p := Next(g, s.Marked(meta.NoCompact), c.cfg.Ranges)
	if len(p.Blocks) == 0 {
		delete(c.halted, g.Stream)
		return
	}
	plan := ""
	for _, m := range p.Blocks {
		plan += m.ULID.String() + " "
	}
	if h, ok := c.halted[g.Stream]; ok && h.plan == plan {
		d.problem("stream "+g.Stream, true, h.err)
		return
	}
	err := c.carryOut(ctx, g, p, d)
	if err == nil {
		delete(c.halted, g.Stream)
		return
	}
	if ctx.Err() != nil {
		return
	}
	if errors.Is(err, ErrDownsampledOverlap) {
		// They stay as they are, side by side, for good.
		for _, m := range p.Blocks {
			if _, merr := transfer.PutMark(ctx, c.bkt, &meta.Mark{ID: m.ULID, Kind: meta.NoCompact, Time: c.cfg.Now(), Reason: meta.ReasonDownsampledVertically, Details: err.Error()}); merr != nil {
				err = errors.Join(err, merr)
			}
		}
		c.log.Warn("downsampled blocks overlap, and are left alone", "stream", g.Stream, "err", err)
		return
	}
	final := errors.Is(err, verify.ErrBroken) || errors.Is(err, ErrOverlap) || errors.Is(err, ErrSharedSources)
	if final {
		c.halted[g.Stream] = halt{plan, err}
	}
	d.problem("stream "+g.Stream, final, err)
}

// workDir is where a group is worked on.
func (c *Compactor) workDir(stream string) string {
	sum := sha256.Sum256([]byte(stream))
	return filepath.Join(c.cfg.Dir, "compact", hex.EncodeToString(sum[:8]))
}

func (c *Compactor) carryOut(ctx context.Context, g Group, p Plan, d *Done) error {
	began := c.cfg.Now()
	dir := c.workDir(g.Stream)
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	// What was downloaded before is of use still, what was made before is not.
	if err := errors.Join(c.forget(in, p.Blocks), os.RemoveAll(out), os.MkdirAll(in, 0o755), os.MkdirAll(out, 0o755)); err != nil {
		return err
	}
	var inputs []Input
	for _, m := range p.Blocks {
		if _, err := transfer.Download(ctx, c.bkt, m.ULID, in, transfer.Options{}); err != nil {
			return err
		}
		inputs = append(inputs, Input{m, filepath.Join(in, m.ULID.String())})
	}
	m, err := Merge(ctx, inputs, out, Options{Vertical: c.cfg.Vertical, Logger: c.log})
	if err != nil {
		return err
	}
	why := "it had no samples"
	if m != nil {
		if _, err := transfer.Upload(ctx, c.bkt, filepath.Join(out, m.ULID.String()), m, transfer.Options{Now: c.cfg.Now}); err != nil {
			return err
		}
		why = "source of compacted block " + m.ULID.String()
		d.Compacted++
		c.log.Info("compacted", "stream", g.Stream, "reason", p.Reason, "blocks", len(inputs), "into", m.ULID, "took", c.cfg.Now().Sub(began))
	}
	for _, b := range p.Blocks {
		c.mark(ctx, b.ULID, why, d)
	}
	return os.RemoveAll(dir)
}

// forget removes what is not of these blocks.
func (c *Compactor) forget(dir string, blocks []*meta.Meta) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !slices.ContainsFunc(blocks, func(m *meta.Meta) bool { return strings.HasPrefix(e.Name(), m.ULID.String()) }) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func (c *Compactor) downsample(ctx context.Context, job downsample.Job) error {
	began := c.cfg.Now()
	dir := filepath.Join(c.cfg.Dir, "downsample")
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := errors.Join(c.forget(in, []*meta.Meta{job.Block}), os.RemoveAll(out), os.MkdirAll(in, 0o755), os.MkdirAll(out, 0o755)); err != nil {
		return err
	}
	src, err := transfer.Download(ctx, c.bkt, job.Block.ULID, in, transfer.Options{})
	if err != nil {
		return err
	}
	m, err := downsample.Block(ctx, src, filepath.Join(in, src.ULID.String()), out, job.Resolution, downsample.Options{Logger: c.log})
	if err != nil {
		return err
	}
	if _, err := transfer.Upload(ctx, c.bkt, filepath.Join(out, m.ULID.String()), m, transfer.Options{Now: c.cfg.Now}); err != nil {
		return err
	}
	c.log.Info("downsampled", "block", src.ULID, "resolution", time.Duration(job.Resolution)*time.Millisecond, "into", m.ULID, "took", c.cfg.Now().Sub(began))
	return os.RemoveAll(dir)
}
