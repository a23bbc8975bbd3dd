// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package downsample

import (
	"slices"

	"github.com/oklog/ulid/v2"

	"github.com/promweave/promweave/blocks/meta"
)

// How long blocks have to be for it to be worth while, in ms: as long as those that Thanos'
// compactor makes of two days, or of two weeks, with gaps.
const (
	minRaw         int64 = 40 * 3_600_000
	minFiveMinutes int64 = 10 * 24 * 3_600_000
)

// Job is a block to downsample, and to which resolution, in ms.
type Job struct {
	Block      *meta.Meta
	Resolution int64
}

// Wanted are the blocks that are to be downsampled, in order of their ids: those that are long
// enough, are not marked (no-downsample-mark.json), and come from a block of a sidecar or
// receiver that no block of the target resolution and the same external labels comes from. What
// is made of them may be wanted in turn. The rule is that of Thanos (cmd/thanos, downsample),
// which does not look at the labels.
func Wanted(blocks []*meta.Meta, marked map[ulid.ULID]bool) []Job {
	type origin struct {
		resolution int64
		labels     string
		source     ulid.ULID
	}
	there := map[origin]bool{}
	for _, m := range blocks {
		external := m.External().String()
		for _, source := range m.Compaction.Sources {
			there[origin{m.Resolution(), external, source}] = true
		}
	}
	var jobs []Job
	for _, m := range blocks {
		to, ok := after(m.Resolution())
		if !ok || marked[m.ULID] || m.MaxTime-m.MinTime < minLength(m.Resolution()) {
			continue
		}
		external := m.External().String()
		if slices.ContainsFunc(m.Compaction.Sources, func(source ulid.ULID) bool { return !there[origin{to, external, source}] }) {
			jobs = append(jobs, Job{Block: m, Resolution: to})
		}
	}
	slices.SortFunc(jobs, func(a, b Job) int { return a.Block.ULID.Compare(b.Block.ULID) })
	return jobs
}

func minLength(resolution int64) int64 {
	if resolution == meta.Raw {
		return minRaw
	}
	return minFiveMinutes
}
