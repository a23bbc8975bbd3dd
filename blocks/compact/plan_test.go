// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package compact_test

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/compact"
	"github.com/promweave/promweave/blocks/meta"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var blockText = regexp.MustCompile(`^(-?\d+)-(-?\d+)(?::(.*))?$`)

var ranges = []int64{20, 60, 180, 540, 1620}

// group reads blocks as testdata/plans has them.
func group(t *testing.T, text string) (g compact.Group, noCompact map[ulid.ULID]bool) {
	t.Helper()
	noCompact = map[ulid.ULID]bool{}
	for i, word := range strings.Fields(text) {
		m := blockText.FindStringSubmatch(word)
		if m == nil {
			t.Fatalf("%q is no block", word)
		}
		b := &meta.Meta{BlockMeta: tsdb.BlockMeta{ULID: ulid.MustNew(uint64(i+1), nil), Stats: tsdb.BlockStats{NumSeries: 10}}}
		b.MinTime, _ = strconv.ParseInt(m[1], 10, 64)
		b.MaxTime, _ = strconv.ParseInt(m[2], 10, 64)
		b.Compaction.Failed = strings.Contains(m[3], "f")
		noCompact[b.ULID] = strings.Contains(m[3], "n")
		if _, n, ok := strings.Cut(m[3], "t"); ok {
			b.Stats.NumTombstones, _ = strconv.ParseUint(n, 10, 64)
		}
		g.Blocks = append(g.Blocks, b)
	}
	return g, noCompact
}

func TestPlans(t *testing.T) {
	datadriven.RunTest(t, "testdata/plans", func(t *testing.T, d *datadriven.TestData) string {
		g, noCompact := group(t, d.Input)
		if d.Cmd == "todo" {
			todo := compact.Simulate([]compact.Group{g}, noCompact, ranges)
			return fmt.Sprintf("%d compactions of %d blocks\n", todo.Compactions, todo.Blocks)
		}
		p := compact.Next(g, noCompact, ranges)
		if len(p.Blocks) == 0 {
			return "nothing\n"
		}
		out := string(p.Reason) + ":"
		for _, m := range p.Blocks {
			out += fmt.Sprintf(" %d-%d", m.MinTime, m.MaxTime)
		}
		return out + "\n"
	})
}

// TestOrderDoesNotMatter: groups and plans are the same for the same blocks in any order, no
// plan has a block that is to be left alone, and planning comes to an end.
func TestOrderDoesNotMatter(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var list []*meta.Meta
		noCompact := map[ulid.ULID]bool{}
		for i := range 1 + rnd.IntN(40) {
			m := &meta.Meta{BlockMeta: tsdb.BlockMeta{ULID: ulid.MustNew(uint64(i), nil)}}
			m.MinTime = 20 * rnd.Int64N(60)
			m.MaxTime = m.MinTime + []int64{20, 60, 180}[rnd.IntN(3)]
			m.Thanos.Labels = map[string]string{"cluster": fmt.Sprint(rnd.IntN(2))}
			m.Thanos.Downsample.Resolution = meta.Resolutions()[rnd.IntN(2)]
			noCompact[m.ULID] = rnd.IntN(10) == 0
			list = append(list, m)
		}
		show := func(groups []compact.Group) (out []string) {
			for _, g := range groups {
				p := compact.Next(g, noCompact, ranges)
				line := g.Stream + " " + string(p.Reason)
				for i, m := range p.Blocks {
					if noCompact[m.ULID] || m.Stream() != g.Stream {
						t.Fatalf("seed %d: block %s is not to be compacted here", seed, m.ULID)
					}
					if i > 0 && m.MinTime < p.Blocks[i-1].MinTime {
						t.Fatalf("seed %d: not in order", seed)
					}
					line += " " + m.ULID.String()
				}
				out = append(out, line)
			}
			return out
		}
		want := show(compact.Groups(list))
		rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		groups := compact.Groups(list)
		if got := show(groups); !slices.Equal(want, got) {
			t.Fatalf("seed %d:\n%q\n%q", seed, want, got)
		}
		n := 0
		for _, g := range groups {
			n += len(g.Blocks)
		}
		if todo := compact.Simulate(groups, noCompact, ranges); n != len(list) || todo.Compactions > n {
			t.Fatalf("seed %d: %d of %d blocks in groups, %+v", seed, n, len(list), todo)
		}
	}
}

func TestRetention(t *testing.T) {
	now := time.UnixMilli(1_000_000_000)
	var list []*meta.Meta
	for i, c := range []struct {
		resolution int64
		age        time.Duration
	}{{meta.Raw, time.Hour}, {meta.Raw, time.Hour + time.Millisecond}, {meta.FiveMinutes, 3 * time.Hour}, {meta.OneHour, 1000 * time.Hour}} {
		m := &meta.Meta{BlockMeta: tsdb.BlockMeta{ULID: ulid.MustNew(uint64(i), nil), MaxTime: now.Add(-c.age).UnixMilli()}}
		m.Thanos.Downsample.Resolution = c.resolution
		list = append(list, m)
	}
	got := compact.Retention{meta.Raw: time.Hour, meta.FiveMinutes: 2 * time.Hour}.Expired(list, now)
	if len(got) != 2 || got[0] != list[1] || got[1] != list[2] {
		t.Errorf("%d are expired", len(got))
	}
}
