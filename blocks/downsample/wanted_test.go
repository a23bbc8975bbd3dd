// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package downsample

import (
	"fmt"
	"testing"

	"github.com/oklog/ulid/v2"

	"github.com/promweave/promweave/blocks/meta"
)

func TestWanted(t *testing.T) {
	const hour = 3_600_000
	id := func(n int) ulid.ULID { return ulid.ULID{15: byte(n)} }
	block := func(n int, resolution, length int64, replica string, sources ...int) *meta.Meta {
		m := &meta.Meta{}
		m.ULID, m.MinTime, m.MaxTime = id(n), 1000*hour, 1000*hour+length
		m.Thanos.Downsample.Resolution, m.Thanos.Labels = resolution, map[string]string{"replica": replica}
		for _, s := range sources {
			m.Compaction.Sources = append(m.Compaction.Sources, id(100+s))
		}
		return m
	}
	const raw, fine, coarse = meta.Raw, meta.FiveMinutes, meta.OneHour
	for _, c := range []struct {
		name   string
		blocks []*meta.Meta
		marked map[ulid.ULID]bool
		want   string // block>resolution
	}{
		{"long enough", []*meta.Meta{block(2, raw, 40*hour, "a", 2), block(1, raw, 40*hour-1, "a", 1), block(4, fine, 240*hour, "a", 4), block(3, fine, 240*hour-1, "a", 3)}, nil, "[2>300000 4>3600000]"},
		{"in order", []*meta.Meta{block(5, raw, 48*hour, "a", 2), block(2, fine, 240*hour, "a", 3), block(4, raw, 48*hour, "a", 4)}, nil, "[2>3600000 4>300000 5>300000]"},
		{"covered", []*meta.Meta{block(1, raw, 48*hour, "a", 1, 2), block(2, fine, 48*hour, "a", 1, 2), block(3, fine, 240*hour, "a", 3), block(4, coarse, 240*hour, "a", 3)}, nil, "[]"},
		{"covered by several", []*meta.Meta{block(1, raw, 48*hour, "a", 1, 2), block(2, fine, 48*hour, "a", 1), block(3, fine, 48*hour, "a", 2, 9)}, nil, "[]"},
		{"one source is not", []*meta.Meta{block(1, raw, 48*hour, "a", 1, 2), block(2, fine, 48*hour, "a", 1)}, nil, "[1>300000]"},
		{"by another resolution", []*meta.Meta{block(1, raw, 48*hour, "a", 1), block(2, coarse, 48*hour, "a", 1)}, nil, "[1>300000]"},
		{"of another stream", []*meta.Meta{block(1, raw, 48*hour, "a", 1), block(2, fine, 48*hour, "b", 1)}, nil, "[1>300000]"},
		{"coarsest", []*meta.Meta{block(1, coarse, 1000*hour, "a", 1)}, nil, "[]"},
		{"marked", []*meta.Meta{block(1, raw, 48*hour, "a", 1), block(2, raw, 48*hour, "a", 2)}, map[ulid.ULID]bool{id(1): true}, "[2>300000]"},
		{"unknown resolution", []*meta.Meta{block(1, 77, 1000*hour, "a", 1)}, nil, "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := []string{}
			for _, j := range Wanted(c.blocks, c.marked) {
				got = append(got, fmt.Sprintf("%d>%d", j.Block.ULID[15], j.Resolution))
			}
			if fmt.Sprint(got) != c.want {
				t.Errorf("%v, want %s", got, c.want)
			}
		})
	}
}
