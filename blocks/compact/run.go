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
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/blocks/downsample"
	"github.com/promweave/promweave/blocks/lease"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/verify"
	"github.com/promweave/promweave/blocks/view"
	"github.com/promweave/promweave/core/dedup"
)

// Config of a Compactor.
type Config struct {
	// Dir is for the work, and can be lost. It needs room for the inputs of one compaction
	// and as much again.
	Dir string
	// Policy is how the bucket is seen. Its DeletionDelay is not looked at: it is DeleteDelay.
	Policy view.Policy
	// DeleteDelay is how long after its mark a block is deleted, so that those who read it
	// have seen what replaces it. PartialAge is the age from which an upload counts as broken off.
	DeleteDelay, PartialAge time.Duration
	Retention               Retention
	// Ranges are the lengths of blocks; nil is Ranges().
	Ranges []int64
	// Vertical allows blocks to overlap; it is needed for replicas.
	Vertical bool
	// Dedup chooses among replicas, which differ by Policy.ReplicaLabels; "" keeps what is the same in them
	// once and everything else. It is of use with Vertical.
	Dedup dedup.Algorithm
	// NoDownsampling leaves raw blocks alone.
	NoDownsampling bool
	// Concurrency is how many streams are compacted at once, and blocks downsampled; 0 is 1.
	Concurrency int
	// Files is how many files of a block are moved at once; 0 is 4.
	Files int
	// MaxIndexBytes is how large an index may become; 0 is DefaultMaxIndexBytes.
	MaxIndexBytes int64
	// Guard, if set, is asked before each change of the bucket whether this process may make it.
	// An error that wraps lease.ErrHeld ends the pass.
	Guard  func(context.Context) error
	Logger *slog.Logger
	// Registerer gets the metrics promweave_compact_…; nil is none.
	Registerer prometheus.Registerer
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// DefaultMaxIndexBytes is as large as an index can be.
const DefaultMaxIndexBytes = 64 << 30

// DefaultConfig has the delays of Thanos.
func DefaultConfig(dir string) Config {
	return Config{Dir: dir, DeleteDelay: 48 * time.Hour, PartialAge: 48 * time.Hour,
		Policy: view.Policy{ConsistencyDelay: 30 * time.Minute}}
}

// Compactor keeps a bucket in order: it alone, no other one may work on the same streams.
type Compactor struct {
	bkt  objstore.Bucket
	cfg  Config
	log  *slog.Logger
	view *view.Fetcher
	m    *metrics
	// halted are streams where somebody has to look.
	mu     sync.Mutex
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
	cfg.Concurrency = max(cfg.Concurrency, 1)
	if cfg.MaxIndexBytes <= 0 {
		cfg.MaxIndexBytes = DefaultMaxIndexBytes
	}
	cfg.Policy.DeletionDelay = cfg.DeleteDelay
	return &Compactor{bkt: bkt, cfg: cfg, log: cfg.Logger, halted: map[string]halt{}, m: newMetrics(cfg.Registerer, &cfg),
		view: view.NewFetcher(bkt, view.Config{CacheDir: filepath.Join(cfg.Dir, "metas"), Logger: cfg.Logger, Registerer: cfg.Registerer})}
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
// stream or block is a Problem; an error says that the bucket could not be seen, that another
// compactor is at work (lease.ErrHeld), or ctx is done.
//
// It may be killed at any moment: what it replaces is there until what replaces it is, and hidden
// from then on.
func (c *Compactor) Pass(ctx context.Context) (*Done, error) {
	d := &Done{}
	if err := c.alone(ctx); err != nil {
		return d, err
	}
	// Who finds another compactor stops all others of this pass.
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	err := c.pass(context.WithValue(ctx, stopKey{}, stop), d)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err == nil {
		c.m.iterations.Inc()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m.halted.Set(float64(min(len(c.halted), 1)))
	return d, err
}

func (c *Compactor) pass(ctx context.Context, d *Done) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o755); err != nil {
		return err
	}
	v, s, err := c.look(ctx)
	if err != nil {
		return err
	}
	c.m.todo(c.outlook(v, s))
	c.clean(ctx, v, s, d)
	c.outdated(ctx, v, s, d)
	groups := Groups(living(s))
	if err := c.tidy(groups); err != nil {
		return err
	}
	c.each(ctx, len(groups), d, func(i int, d *Done) { c.compact(ctx, groups[i], s, d) })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d.Compacted > 0 {
		if v, s, err = c.look(ctx); err != nil {
			return err
		}
	}
	jobs := c.jobs(s)
	wanted := make([]*meta.Meta, len(jobs))
	for i := range jobs {
		wanted[i] = jobs[i].Block
	}
	if err := c.forget(filepath.Join(c.cfg.Dir, "downsample"), wanted); err != nil {
		return err
	}
	c.each(ctx, len(jobs), d, func(i int, d *Done) { c.downsample(ctx, jobs[i], d) })
	for _, m := range c.cfg.Retention.Expired(living(s), c.cfg.Now()) {
		c.mark(ctx, &meta.Mark{ID: m.ULID, Kind: meta.Deletion, Details: "older than it is kept"}, "retention", d)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.m.todo(c.outlook(v, s))
	return nil
}

type stopKey struct{}

// alone says whether the bucket may be changed, and ends the pass if somebody else does.
func (c *Compactor) alone(ctx context.Context) error {
	if c.cfg.Guard == nil {
		return nil
	}
	err := c.cfg.Guard(ctx)
	if stop, ok := ctx.Value(stopKey{}).(context.CancelCauseFunc); ok && errors.Is(err, lease.ErrHeld) {
		stop(err)
	}
	return err
}

// each does n things, some at once, and adds up what they did in their order.
func (c *Compactor) each(ctx context.Context, n int, d *Done, do func(i int, d *Done)) {
	did := make([]Done, n)
	slots := make(chan struct{}, c.cfg.Concurrency)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			do(i, &did[i])
		})
	}
	wg.Wait()
	for _, x := range did {
		d.Compacted += x.Compacted
		d.Downsampled += x.Downsampled
		d.Marked += x.Marked
		d.Problems = append(d.Problems, x.Problems...)
	}
}

// jobs are the blocks that are to be downsampled.
func (c *Compactor) jobs(s *view.Selection) []downsample.Job {
	if c.cfg.NoDownsampling {
		return nil
	}
	return slices.DeleteFunc(downsample.Wanted(living(s), s.Marked(meta.NoDownsample)), func(j downsample.Job) bool {
		return c.cfg.Retention.past(j.Resolution, j.Block.MaxTime, c.cfg.Now()) // it would go at once, and be wanted again
	})
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
	// What goes away while it is looked at may be what another block is hidden by: what is left of it
	// is for the next look to say.
	for range 3 {
		if err != nil || len(v.Gone) == 0 {
			break
		}
		v, err = c.view.Fetch(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	if !v.Complete() {
		ids := slices.SortedFunc(maps.Keys(v.Problems), ulid.ULID.Compare)
		return nil, nil, fmt.Errorf("%d blocks cannot be read now, the first is %s: %w", len(ids), ids[0], v.Problems[ids[0]])
	}
	s := v.Select(view.ForCompactor(c.cfg.Policy, c.cfg.Now())...)
	c.view.Observe(s)
	return v, s, nil
}

// due says whether a block is to be deleted: it is of this share, and was marked long enough ago.
func (c *Compactor) due(b *view.Block, s *view.Selection) bool {
	m, why := b.Marks[meta.Deletion], s.Dropped[b.Meta.ULID]
	return m != nil && c.cfg.Now().Sub(m.Time) > c.cfg.DeleteDelay && why != view.TimeExcluded && why != view.LabelExcluded
}

// abandoned says whether what there is of a block is to be deleted. With a mark it is what a deletion
// left, or a block that is to go anyway: the mark's time counts, and not what was written last, which may be
// the mark.
func (c *Compactor) abandoned(id ulid.ULID, p *view.Partial) bool {
	now := c.cfg.Now()
	if m := p.Marks[meta.Deletion]; m != nil {
		return now.Sub(m.Time) > c.cfg.DeleteDelay
	}
	at := p.Newest
	if at.IsZero() {
		at = ulid.Time(id.Time())
	}
	return now.Sub(at) > c.cfg.PartialAge
}

// clean deletes blocks that were marked long enough ago, and what was broken off.
func (c *Compactor) clean(ctx context.Context, v *view.View, s *view.Selection, d *Done) {
	c.m.cleanups.Inc()
	for _, b := range v.Blocks {
		if c.due(b, s) && c.remove(ctx, b.Meta.ULID, d) {
			c.log.Info("deleted a block", "block", b)
			c.m.deleted.Inc()
			d.Deleted++
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(v.Partial), ulid.ULID.Compare) {
		if p := v.Partial[id]; c.abandoned(id, p) {
			c.m.partials.Inc()
			if c.remove(ctx, id, d) {
				c.log.Info("deleted what is left of an upload or a deletion", "block", id, "reason", p.Reason)
				d.Cleaned++
			}
		}
	}
}

func (c *Compactor) remove(ctx context.Context, id ulid.ULID, d *Done) bool {
	if ctx.Err() != nil {
		return false
	}
	err := c.alone(ctx)
	if err == nil {
		err = transfer.Delete(ctx, c.bkt, id)
	}
	if err != nil {
		c.m.deleteFailures.Inc()
		d.problem("block "+id.String(), false, err)
	}
	return err == nil
}

// outdated marks blocks of which others were made.
func (c *Compactor) outdated(ctx context.Context, v *view.View, s *view.Selection, d *Done) {
	for _, b := range v.Blocks {
		if s.Dropped[b.Meta.ULID] == view.Duplicate && b.Marks[meta.Deletion] == nil {
			if c.mark(ctx, &meta.Mark{ID: b.Meta.ULID, Kind: meta.Deletion, Details: "outdated block"}, "outdated", d) {
				c.m.garbage.Inc()
			}
		}
	}
}

// mark puts a mark on a block, and says whether there is one now. Its reason in the metrics is why.
func (c *Compactor) mark(ctx context.Context, m *meta.Mark, why string, d *Done) bool {
	if ctx.Err() != nil {
		return false
	}
	m.Time = c.cfg.Now()
	err := c.alone(ctx)
	added := false
	if err == nil {
		added, err = transfer.PutMark(ctx, c.bkt, m)
	}
	if err != nil {
		d.problem("block "+m.ID.String(), false, err)
		return false
	}
	if added {
		c.m.marked.WithLabelValues(m.Kind.File(), why).Inc()
		if m.Kind == meta.Deletion {
			d.Marked++
		}
	}
	return true
}

// next is the plan of a group whose index will not be too large. Sizes of indexes add up to no less
// than the index of all: labels and symbols that blocks have in common are there once.
func (c *Compactor) next(ctx context.Context, g Group, s *view.Selection, d *Done) (Plan, error) {
	noCompact := s.Marked(meta.NoCompact)
	for {
		p := Next(g, noCompact, c.cfg.Ranges)
		var sum, most int64
		var largest *meta.Meta
		for _, m := range p.Blocks {
			size, ok := m.Size(meta.IndexFile)
			if !ok || size <= 0 {
				a, err := c.bkt.Attributes(ctx, m.ULID.String()+"/"+meta.IndexFile)
				if err != nil {
					return Plan{}, fmt.Errorf("size of the index of %s: %w", m.ULID, err)
				}
				size = a.Size
			}
			if sum += size; size > most {
				most, largest = size, m
			}
		}
		if sum <= c.cfg.MaxIndexBytes || len(p.Blocks) < 2 {
			return p, nil
		}
		why := fmt.Sprintf("with the %d others of a compaction its index would be of up to %d bytes, and may be of %d", len(p.Blocks)-1, sum, c.cfg.MaxIndexBytes)
		if !c.mark(ctx, &meta.Mark{ID: largest.ULID, Kind: meta.NoCompact, Reason: meta.ReasonIndexTooLarge, Details: why}, meta.ReasonIndexTooLarge, d) {
			return Plan{}, nil
		}
		c.log.Warn("a block is not compacted any more", "block", largest.ULID, "stream", g.Stream, "why", why)
		noCompact[largest.ULID] = true
	}
}

func (c *Compactor) unhalt(stream string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.halted, stream)
}

// compact carries out one plan of a group.
func (c *Compactor) compact(ctx context.Context, g Group, s *view.Selection, d *Done) {
	p, err := c.next(ctx, g, s, d)
	if err != nil {
		d.problem("stream "+g.Stream, false, err)
		return
	}
	if len(p.Blocks) == 0 {
		c.unhalt(g.Stream)
		return
	}
	plan := ""
	for _, m := range p.Blocks {
		plan += m.ULID.String() + " "
	}
	c.mu.Lock()
	h, ok := c.halted[g.Stream]
	c.mu.Unlock()
	if ok && h.plan == plan {
		d.problem("stream "+g.Stream, true, h.err)
		return
	}
	of := level(p.Blocks[0].Resolution())
	c.m.started.WithLabelValues(of).Inc()
	err = c.carryOut(ctx, g, p, d)
	if err == nil {
		c.m.completed.WithLabelValues(of).Inc()
		c.unhalt(g.Stream)
		return
	}
	if ctx.Err() != nil {
		return
	}
	c.m.failed.WithLabelValues(of).Inc()
	if errors.Is(err, ErrDownsampledOverlap) {
		// They stay as they are, side by side, for good.
		for _, m := range p.Blocks {
			c.mark(ctx, &meta.Mark{ID: m.ULID, Kind: meta.NoCompact, Reason: meta.ReasonDownsampledVertically, Details: err.Error()}, meta.ReasonDownsampledVertically, d)
		}
		c.log.Warn("downsampled blocks overlap, and are left alone", "stream", g.Stream, "err", err)
		return
	}
	final := errors.Is(err, verify.ErrBroken) || errors.Is(err, ErrOverlap) || errors.Is(err, ErrSharedSources)
	if final {
		c.mu.Lock()
		c.halted[g.Stream] = halt{plan, err}
		c.mu.Unlock()
	}
	d.problem("stream "+g.Stream, final, err)
}

// tidy removes what is left of work on streams that are not there any more.
func (c *Compactor) tidy(groups []Group) error {
	parent := filepath.Join(c.cfg.Dir, "compact")
	entries, err := os.ReadDir(parent)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !slices.ContainsFunc(groups, func(g Group) bool { return filepath.Base(c.workDir(g.Stream)) == e.Name() }) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(parent, e.Name())))
		}
	}
	return err
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
		// The plan's has no replica labels any more.
		full, err := transfer.Download(ctx, c.bkt, m.ULID, in, c.moving())
		if err != nil {
			return err
		}
		inputs = append(inputs, Input{m, filepath.Join(in, m.ULID.String()), replica(full, c.cfg.Policy.ReplicaLabels)})
	}
	m, err := Merge(ctx, inputs, out, Options{Vertical: c.cfg.Vertical, Dedup: c.cfg.Dedup, Logger: c.log})
	if err != nil {
		return err
	}
	why := "it had no samples"
	if m != nil {
		if err := c.upload(ctx, filepath.Join(out, m.ULID.String()), m); err != nil {
			return err
		}
		of := level(m.Resolution())
		c.m.made.WithLabelValues(of).Inc()
		if p.Reason == Overlap {
			c.m.vertical.WithLabelValues(of).Inc()
		}
		why = "source of compacted block " + m.ULID.String()
		d.Compacted++
		c.log.Info("compacted", "stream", g.Stream, "reason", p.Reason, "blocks", len(inputs), "into", m.ULID, "took", c.cfg.Now().Sub(began))
	}
	for _, b := range p.Blocks {
		c.mark(ctx, &meta.Mark{ID: b.ULID, Kind: meta.Deletion, Details: why}, "compacted", d)
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

func (c *Compactor) moving() transfer.Options {
	return transfer.Options{Concurrency: c.cfg.Files, Now: c.cfg.Now}
}

func (c *Compactor) upload(ctx context.Context, dir string, m *meta.Meta) error {
	if err := c.alone(ctx); err != nil {
		return err
	}
	_, err := transfer.Upload(ctx, c.bkt, dir, m, c.moving())
	return err
}

func (c *Compactor) downsample(ctx context.Context, job downsample.Job, d *Done) {
	began, of := c.cfg.Now(), job.Block.Resolution()
	if err := c.makeCoarser(ctx, job); err != nil {
		if ctx.Err() == nil {
			c.m.downsampleFails.WithLabelValues(level(of)).Inc()
			d.problem("block "+job.Block.ULID.String(), false, err)
		}
		return
	}
	c.m.downsampled.WithLabelValues(level(of)).Inc()
	c.m.took(of, c.cfg.Now().Sub(began))
	d.Downsampled++
}

func (c *Compactor) makeCoarser(ctx context.Context, job downsample.Job) error {
	began := c.cfg.Now()
	dir := filepath.Join(c.cfg.Dir, "downsample", job.Block.ULID.String())
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := errors.Join(os.RemoveAll(out), os.MkdirAll(in, 0o755), os.MkdirAll(out, 0o755)); err != nil {
		return err
	}
	src, err := transfer.Download(ctx, c.bkt, job.Block.ULID, in, c.moving())
	if err != nil {
		return err
	}
	m, err := downsample.Block(ctx, src, filepath.Join(in, src.ULID.String()), out, job.Resolution, downsample.Options{Logger: c.log})
	if err != nil {
		return err
	}
	if err := c.upload(ctx, filepath.Join(out, m.ULID.String()), m); err != nil {
		return err
	}
	c.log.Info("downsampled", "block", src.ULID, "resolution", time.Duration(job.Resolution)*time.Millisecond, "into", m.ULID, "took", c.cfg.Now().Sub(began))
	return os.RemoveAll(dir)
}
