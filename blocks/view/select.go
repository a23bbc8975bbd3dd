// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"

	"github.com/promweave/promweave/blocks/meta"
)

// State is what became of a block. The words are those of Thanos' metrics.
type State string

// The states.
const (
	// Loaded blocks count.
	Loaded State = "loaded"
	// NoMeta and Corrupt are those of Partial, and Failed those that could not be read.
	NoMeta  State = "no-meta-json"
	Corrupt State = "corrupted-meta-json"
	Failed  State = "failed"
	// The others are why a whole block does not count, or what a mark of one that does says.
	TimeExcluded      State = "time-excluded"
	LabelExcluded     State = "label-excluded"
	TooFresh          State = "too-fresh"
	MarkedForDeletion State = "marked-for-deletion"
	Duplicate         State = "duplicate"

	MarkedNoCompact    State = "marked-for-no-compact"
	MarkedNoDownsample State = "marked-for-no-downsample"
)

// Filter takes blocks away, or replaces them by copies. It says why by drop.
type Filter func(blocks []*Block, drop func(*Block, State)) []*Block

// Selection are the blocks that count.
type Selection struct {
	// Blocks ascend by id.
	Blocks []*Block
	// Dropped are the others of the view.
	Dropped map[ulid.ULID]State
}

// Select applies filters in their order.
func (v *View) Select(filters ...Filter) *Selection {
	s := &Selection{Blocks: slices.Clone(v.Blocks), Dropped: map[ulid.ULID]State{}}
	for _, f := range filters {
		s.Blocks = f(s.Blocks, func(b *Block, why State) { s.Dropped[b.Meta.ULID] = why })
	}
	slices.SortFunc(s.Blocks, byID)
	return s
}

// Metas are those of the blocks, in their order.
func (s *Selection) Metas() []*meta.Meta {
	out := make([]*meta.Meta, len(s.Blocks))
	for i, b := range s.Blocks {
		out[i] = b.Meta
	}
	return out
}

// Marked are the blocks that have a mark.
func (s *Selection) Marked(kind meta.Kind) map[ulid.ULID]bool {
	out := map[ulid.ULID]bool{}
	for _, b := range s.Blocks {
		if b.Marks[kind] != nil {
			out[b.Meta.ULID] = true
		}
	}
	return out
}

// keep is the filter that keeps the blocks for which f is true.
func keep(why State, f func(*Block) bool) Filter {
	return func(blocks []*Block, drop func(*Block, State)) []*Block {
		return slices.DeleteFunc(blocks, func(b *Block) bool {
			ok := f(b)
			if !ok {
				drop(b, why)
			}
			return !ok
		})
	}
}

// Time keeps blocks that reach into [minTime, maxTime], ms.
func Time(minTime, maxTime int64) Filter {
	return keep(TimeExcluded, func(b *Block) bool { return b.Meta.MaxTime >= minTime && b.Meta.MinTime <= maxTime })
}

// BlockIDLabel is the label by which Relabel sees the id of a block.
const BlockIDLabel = "__block_id"

// Relabel keeps blocks whose external labels, with __block_id, come out of the rules not
// empty. Labels in without are not shown to them: those by which replicas differ that have to
// get to one place.
func Relabel(rules []*relabel.Config, without ...string) Filter {
	if len(rules) == 0 {
		return func(blocks []*Block, _ func(*Block, State)) []*Block { return blocks }
	}
	return keep(LabelExcluded, func(b *Block) bool {
		lb := labels.NewBuilder(b.Meta.External())
		lb.Del(without...)
		lb.Set(BlockIDLabel, b.Meta.ULID.String())
		return relabel.ProcessBuilder(lb, rules...) && !lb.Labels().IsEmpty()
	})
}

// exempt are the sources of blocks that are there at once: what they were made of is there
// until it is known that they are.
var exempt = []string{meta.SourceCompactor, meta.SourceCompactorRepair, meta.SourceBucketRepair}

// ConsistencyDelay keeps blocks that were uploaded at least so long before now, for providers
// where not everybody sees at once what was written.
func ConsistencyDelay(now time.Time, delay time.Duration) Filter {
	if delay <= 0 {
		// Not even one whose uploader's clock is fast.
		return func(blocks []*Block, _ func(*Block, State)) []*Block { return blocks }
	}
	return keep(TooFresh, func(b *Block) bool {
		at := b.Meta.Thanos.UploadTime
		if at.IsZero() {
			at = ulid.Time(b.Meta.ULID.Time())
		}
		return slices.Contains(exempt, b.Meta.Thanos.Source) || now.Sub(at) >= delay
	})
}

// DeletionMarks drops blocks that were marked for deletion longer before now than the delay:
// until then what replaces them may not be there for everybody.
func DeletionMarks(now time.Time, delay time.Duration) Filter {
	return keep(MarkedForDeletion, func(b *Block) bool {
		m := b.Marks[meta.Deletion]
		return m == nil || now.Sub(m.Time) <= delay
	})
}

// Deduped is the value of the first replica label of blocks that have no other labels.
const Deduped = "deduped"

// WithoutReplicaLabels takes labels off copies of the blocks, so that those of replicas are
// of one stream.
func WithoutReplicaLabels(names ...string) Filter {
	return func(blocks []*Block, _ func(*Block, State)) []*Block {
		if len(names) == 0 {
			return blocks
		}
		out := make([]*Block, len(blocks))
		for i, b := range blocks {
			m := b.Meta.Clone()
			for _, n := range names {
				delete(m.Thanos.Labels, n)
			}
			if len(m.Thanos.Labels) == 0 {
				m.Thanos.Labels = map[string]string{names[0]: Deduped}
			}
			out[i] = &Block{Meta: m, Marks: b.Marks}
		}
		return out
	}
}

// Deduplicate drops blocks that others were made of: whose sources are all those of one other
// block of the stream. Of several with the same sources the first by id is kept.
func Deduplicate() Filter {
	return func(blocks []*Block, drop func(*Block, State)) []*Block {
		streams := map[string][]*Block{}
		for _, b := range blocks {
			streams[b.Meta.Stream()] = append(streams[b.Meta.Stream()], b)
		}
		var out []*Block
		for _, list := range streams {
			slices.SortFunc(list, func(a, b *Block) int {
				if d := len(sources(b)) - len(sources(a)); d != 0 {
					return d
				}
				return byID(a, b)
			})
			// covers has for each source the kept blocks that were made of it.
			covers := map[ulid.ULID][]int{}
			var kept []*Block
			for _, b := range list {
				from := sources(b)
				if covered(from, covers) {
					drop(b, Duplicate)
					continue
				}
				for _, s := range from {
					covers[s] = append(covers[s], len(kept))
				}
				kept = append(kept, b)
			}
			out = append(out, kept...)
		}
		return out
	}
}

// sources are the blocks that a block was made of; one that does not say was made of itself.
func sources(b *Block) []ulid.ULID {
	if s := b.Meta.Compaction.Sources; len(s) > 0 {
		return s
	}
	return []ulid.ULID{b.Meta.ULID}
}

// covered says whether one of the kept blocks has all sources.
func covered(sources []ulid.ULID, covers map[ulid.ULID][]int) bool {
	return slices.ContainsFunc(covers[sources[0]], func(k int) bool {
		return !slices.ContainsFunc(sources[1:], func(s ulid.ULID) bool { return !slices.Contains(covers[s], k) })
	})
}

// Policy is how a program sees a bucket.
type Policy struct {
	// MinTime and MaxTime, ms, are the share in time; both 0 is all.
	MinTime, MaxTime int64
	// Bounds, if set, are what they are at a moment, for a share that moves with the clock.
	Bounds func(now time.Time) (minTime, maxTime int64)
	// Relabel is the share by labels.
	Relabel []*relabel.Config
	// ConsistencyDelay and DeletionDelay are those of the filters.
	ConsistencyDelay, DeletionDelay time.Duration
	// ReplicaLabels are taken off, by who compacts replicas into one.
	ReplicaLabels []string
}

// Filters are the filters of the policy at one moment, in the order that Thanos has.
func (p *Policy) Filters(now time.Time) []Filter {
	var out []Filter
	if p.Bounds != nil {
		out = append(out, Time(p.Bounds(now)))
	} else if p.MinTime != 0 || p.MaxTime != 0 {
		out = append(out, Time(p.MinTime, p.MaxTime))
	}
	return append(out, Relabel(p.Relabel, p.ReplicaLabels...), ConsistencyDelay(now, p.ConsistencyDelay),
		DeletionMarks(now, p.DeletionDelay), WithoutReplicaLabels(p.ReplicaLabels...), Deduplicate())
}

// ForStore are the filters of a reader at one moment: replicas are told apart, and blocks that
// are marked for deletion count until the policy's delay is over.
func ForStore(p Policy, now time.Time) []Filter {
	p.ReplicaLabels = nil
	return p.Filters(now)
}

// ForCompactor are the filters of a compactor at one moment. The policy's delay is that by which
// it deletes marked blocks: it leaves them alone from the half of it on, so that nothing is made
// of a block that is about to go.
func ForCompactor(p Policy, now time.Time) []Filter {
	p.DeletionDelay /= 2
	return p.Filters(now)
}

// String names a block for people.
func (b *Block) String() string {
	return fmt.Sprintf("%s (%s, %s to %s)", b.Meta.ULID, b.Meta.Stream(), time.UnixMilli(b.Meta.MinTime).UTC().Format(time.RFC3339), time.UnixMilli(b.Meta.MaxTime).UTC().Format(time.RFC3339))
}
