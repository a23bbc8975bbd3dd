// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import "time"

// BlockList is what /api/v1/blocks shows. The first four fields are those of Thanos' block viewer.
type BlockList struct {
	// Blocks are metas, as in meta.json, each with what is known of it here besides.
	Blocks []any  `json:"blocks"`
	Label  string `json:"label"`
	// RefreshedAt is when the bucket that was looked at least recently was looked at.
	RefreshedAt time.Time `json:"refreshedAt"`
	// Err is that of the last look at a bucket that failed.
	Err *string `json:"err"`
	// Partial are blocks that are not whole: their meta.json is missing or corrupt.
	Partial []any `json:"partial"`
}

func (s *Server) blocks(c *call) (*answer, error) {
	list := BlockList{Blocks: []any{}, Partial: []any{}}
	if s.o.Blocks != nil {
		list = s.o.Blocks(c.ctx)
	}
	a := jsonAnswer(list)
	a.noStore = true
	return a, nil
}
