// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/promweave/promweave/bins/promweave/internal/bucketstore"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/view"
	"github.com/promweave/promweave/core/httpapi"
	"github.com/promweave/promweave/sdk/backend"
)

// blockMark is a mark of a block in /api/v1/blocks.
type blockMark struct {
	Kind    meta.Kind `json:"kind"`
	Time    time.Time `json:"time"`
	Reason  string    `json:"reason,omitempty"`
	Details string    `json:"details,omitempty"`
}

// blockStatus is a meta.json, and what is known of the block besides.
type blockStatus struct {
	*meta.Meta
	Backend string `json:"backend"`
	// State says whether the block counts, or why it does not.
	State view.State  `json:"state"`
	Marks []blockMark `json:"marks"`
}

// partialStatus is a block that is not whole.
type partialStatus struct {
	ULID    ulid.ULID   `json:"ulid"`
	Backend string      `json:"backend"`
	State   view.State  `json:"state"`
	Reason  string      `json:"reason"`
	Newest  time.Time   `json:"newest"`
	Marks   []blockMark `json:"marks"`
}

func blockMarks(marks map[meta.Kind]*meta.Mark) []blockMark {
	out := []blockMark{}
	for _, kind := range meta.Kinds() {
		if m := marks[kind]; m != nil {
			out = append(out, blockMark{kind, m.Time.UTC(), m.Reason, m.Details})
		}
	}
	return out
}

// blocks are those of all backends over buckets, as each was last looked at.
func (s *stores) blocks(context.Context) httpapi.BlockList {
	s.mu.Lock()
	open := map[string]backend.Backend{}
	for name, st := range s.opened {
		if st.cfg.Bucket != nil {
			open[name] = st.core.v.b
		}
	}
	s.mu.Unlock()
	out := httpapi.BlockList{Blocks: []any{}, Partial: []any{}}
	fail := func(name string, err error) {
		text := fmt.Sprintf("backend %s: %v", name, err)
		out.Err = &text
	}
	for _, name := range slices.Sorted(maps.Keys(open)) {
		b := open[name]
		if l, ok := b.(*late); ok {
			var err error
			if b, err = l.now(); err != nil {
				fail(name, err)
				continue
			}
		}
		store, ok := b.(*bucketstore.Store)
		if !ok {
			continue
		}
		last := store.Last()
		if last.Err != nil {
			fail(name, last.Err)
		}
		if out.RefreshedAt.IsZero() || last.At.Before(out.RefreshedAt) {
			out.RefreshedAt = last.At
		}
		for _, b := range last.View.Blocks {
			out.Blocks = append(out.Blocks, blockStatus{b.Meta, name, cmp.Or(last.Selection.Dropped[b.Meta.ULID], view.Loaded), blockMarks(b.Marks)})
		}
		for _, id := range slices.SortedFunc(maps.Keys(last.View.Partial), ulid.ULID.Compare) {
			p := last.View.Partial[id]
			out.Partial = append(out.Partial, partialStatus{id, name, p.State, fmt.Sprint(p.Reason), p.Newest, blockMarks(p.Marks)})
		}
	}
	return out
}
