// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package compact keeps a bucket in order: it says which blocks are to be made one,
// downsampled, or to go, and does it.
//
// What is planned, and in which order, is what Thanos' compactor plans (pkg/compact,
// planner.go), which in turn plans as Prometheus does for its own directory: a bucket that
// one of them has kept in order is in order for the other.
package compact

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/promweave/promweave/blocks/downsample"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/view"
)

// Ranges are the lengths of blocks, ms, ascending: a block that is uploaded has the first or
// the second, and is compacted up to the last.
func Ranges() []int64 {
	hour := time.Hour.Milliseconds()
	return []int64{hour, 2 * hour, 8 * hour, 2 * 24 * hour, 14 * 24 * hour}
}

// Group are the blocks of one stream: one level of downsampling and one set of external
// labels. Only those are compacted with each other.
type Group struct {
	// Stream is what they have in common, as meta.Stream has it.
	Stream string
	// Blocks ascend by time.
	Blocks []*meta.Meta
}

// Groups sorts blocks into groups, which are in the order of their streams.
func Groups(blocks []*meta.Meta) []Group {
	of := map[string][]*meta.Meta{}
	for _, m := range blocks {
		of[m.Stream()] = append(of[m.Stream()], m)
	}
	out := make([]Group, 0, len(of))
	for stream, list := range of {
		sortByTime(list)
		out = append(out, Group{stream, list})
	}
	slices.SortFunc(out, func(a, b Group) int { return cmp.Compare(a.Stream, b.Stream) })
	return out
}

func sortByTime(list []*meta.Meta) {
	slices.SortFunc(list, func(a, b *meta.Meta) int {
		return cmp.Or(cmp.Compare(a.MinTime, b.MinTime), cmp.Compare(a.MaxTime, b.MaxTime), a.ULID.Compare(b.ULID))
	})
}

// Reason is why blocks are to be compacted.
type Reason string

// The reasons, in the order in which they are looked for.
const (
	// Overlap: they overlap in time.
	Overlap Reason = "overlap"
	// Range: together they are all that there will be of a longer range.
	Range Reason = "range"
	// Tombstones: one block, of which more than a twentieth of the series was deleted from.
	Tombstones Reason = "tombstones"
)

// Plan is what is to be made one block; without Blocks there is nothing to do.
type Plan struct {
	Reason Reason
	// Blocks ascend by time.
	Blocks []*meta.Meta
}

// Next plans the next compaction of a group. Blocks in noCompact are left alone. The block
// that begins last is left alone too unless it overlaps: more may come that belongs to it.
func Next(g Group, noCompact map[ulid.ULID]bool, ranges []int64) Plan {
	may := slices.DeleteFunc(slices.Clone(g.Blocks), func(m *meta.Meta) bool { return noCompact[m.ULID] })
	if over := firstOverlap(may); len(over) > 0 {
		return Plan{Overlap, over}
	}
	if len(g.Blocks) == 0 {
		return Plan{}
	}
	settled := g.Blocks[:len(g.Blocks)-1]
	if part := fullRange(settled, noCompact, ranges); len(part) > 0 {
		return Plan{Range, part}
	}
	for _, m := range slices.Backward(settled) {
		if !noCompact[m.ULID] && m.MaxTime-m.MinTime >= ranges[len(ranges)/2] && 20*m.Stats.NumTombstones > m.Stats.NumSeries+1 {
			return Plan{Tombstones, []*meta.Meta{m}}
		}
	}
	return Plan{}
}

// firstOverlap is the first run of blocks of which each begins before those before it end.
func firstOverlap(list []*meta.Meta) []*meta.Meta {
	for from := 0; from < len(list); {
		end, to := list[from].MaxTime, from+1
		for to < len(list) && list[to].MinTime < end {
			end, to = max(end, list[to].MaxTime), to+1
		}
		if to-from > 1 {
			return list[from:to]
		}
		from = to
	}
	return nil
}

// fullRange is the first part, of the shortest range that has one, that is complete: it
// spans the range, or what comes after it has begun.
func fullRange(list []*meta.Meta, noCompact map[ulid.ULID]bool, ranges []int64) []*meta.Meta {
	if len(ranges) < 2 || len(list) == 0 {
		return nil
	}
	last := list[len(list)-1].MinTime
	for _, r := range ranges[1:] {
		for _, part := range split(list, r) {
			length, end := part[len(part)-1].MaxTime-part[0].MinTime, part[len(part)-1].MaxTime
			failed := slices.ContainsFunc(part, func(m *meta.Meta) bool { return m.Compaction.Failed })
			if failed || len(part) < 2 || length != r && end > last {
				continue
			}
			if run := firstRun(part, noCompact); run != nil {
				return run
			}
		}
	}
	return nil
}

// firstRun is the first run of more than one block without a block that is left alone.
// Those stay in the part until here so that the ranges are the same with and without them.
func firstRun(part []*meta.Meta, noCompact map[ulid.ULID]bool) []*meta.Meta {
	for from := 0; from < len(part); {
		to := from
		for to < len(part) && !noCompact[part[to].ULID] {
			to++
		}
		if to-from > 1 {
			return part[from:to]
		}
		from = to + 1
	}
	return nil
}

// split cuts a list into the windows of a range, which begin at multiples of it. Blocks
// that do not lie in one window are left out.
func split(list []*meta.Meta, r int64) (parts [][]*meta.Meta) {
	for i := 0; i < len(list); {
		end := floor(list[i].MinTime, r) + r
		if list[i].MaxTime > end {
			i++
			continue
		}
		from := i
		for i < len(list) && list[i].MaxTime <= end {
			i++
		}
		parts = append(parts, list[from:i])
	}
	return parts
}

// floor is the largest multiple of r that is not above t.
func floor(t, r int64) int64 {
	f := t / r * r
	if f > t {
		f -= r
	}
	return f
}

// Todo is what a compactor has before it.
type Todo struct {
	// Compactions that will be made, and the blocks that will go into them, with those
	// that are made on the way.
	Compactions, Blocks int
}

// Simulate plans on and on, as if each compaction had been made.
func Simulate(groups []Group, noCompact map[ulid.ULID]bool, ranges []int64) (todo Todo) {
	for _, g := range groups {
		g.Blocks = slices.Clone(g.Blocks)
		for {
			p := Next(g, noCompact, ranges)
			if len(p.Blocks) == 0 || p.Reason == Tombstones {
				todo.Compactions += min(len(p.Blocks), 1)
				todo.Blocks += len(p.Blocks)
				break
			}
			todo.Compactions++
			todo.Blocks += len(p.Blocks)
			made := p.Blocks[0].Clone()
			for _, m := range p.Blocks {
				made.MaxTime = max(made.MaxTime, m.MaxTime)
			}
			gone := p.Blocks
			g.Blocks = append(slices.DeleteFunc(slices.Clone(g.Blocks), func(m *meta.Meta) bool { return slices.Contains(gone, m) }), made)
			sortByTime(g.Blocks)
		}
	}
	return todo
}

// Retention is how long blocks are kept, by their level; 0 is for ever.
type Retention map[int64]time.Duration

// Expired are the blocks that are older than they are kept.
func (r Retention) Expired(blocks []*meta.Meta, now time.Time) (out []*meta.Meta) {
	for _, m := range blocks {
		if r.past(m.Resolution(), m.MaxTime, now) {
			out = append(out, m)
		}
	}
	return out
}

// past says whether data of a level that end at maxTime, ms, are older than they are kept.
func (r Retention) past(resolution, maxTime int64, now time.Time) bool {
	keep := r[resolution]
	return keep > 0 && now.After(time.UnixMilli(maxTime).Add(keep))
}

// Outlook is what a pass would do, and what is still to be done.
type Outlook struct {
	// Compact has the next compaction of each stream that has one.
	Compact []Step
	// Downsample are the blocks to downsample.
	Downsample []downsample.Job
	// Outdated and Expired are to be marked for deletion: others were made of them, or they are older
	// than they are kept. Delete were marked long enough ago.
	Outdated, Expired, Delete []*meta.Meta
	// Clean are uploads and deletions that were broken off.
	Clean []ulid.ULID
	// Todo counts compactions until nothing is left.
	Todo Todo
}

// Step is what is to be made one block in a stream.
type Step struct {
	Stream string
	Plan   Plan
}

// Outlook looks and changes nothing.
func (c *Compactor) Outlook(ctx context.Context) (*Outlook, error) {
	v, s, err := c.look(ctx)
	if err != nil {
		return nil, err
	}
	return c.outlook(v, s), nil
}

func (c *Compactor) outlook(v *view.View, s *view.Selection) *Outlook {
	alive := living(s)
	groups, noCompact := Groups(alive), s.Marked(meta.NoCompact)
	o := &Outlook{Downsample: c.jobs(s), Expired: c.cfg.Retention.Expired(alive, c.cfg.Now()), Todo: Simulate(groups, noCompact, c.cfg.Ranges)}
	for _, g := range groups {
		if p := Next(g, noCompact, c.cfg.Ranges); len(p.Blocks) > 0 {
			o.Compact = append(o.Compact, Step{g.Stream, p})
		}
	}
	for _, b := range v.Blocks {
		if c.due(b, s) {
			o.Delete = append(o.Delete, b.Meta)
		} else if s.Dropped[b.Meta.ULID] == view.Duplicate && b.Marks[meta.Deletion] == nil {
			o.Outdated = append(o.Outdated, b.Meta)
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(v.Partial), ulid.ULID.Compare) {
		if c.abandoned(id, v.Partial[id]) {
			o.Clean = append(o.Clean, id)
		}
	}
	return o
}
