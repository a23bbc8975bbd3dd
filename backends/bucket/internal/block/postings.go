// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/backends/bucket/internal/header"
)

// group is what one matcher says of lists of series: they are in one of add, or in none of
// remove.
type group struct {
	add, remove []header.Range
	removes     bool
}

// Postings are the references of the series that match all matchers, ascending.
func (b *Reader) Postings(ctx context.Context, h *header.Reader, u *Usage, matchers []*labels.Matcher) ([]uint32, error) {
	var groups []group
	onlyRemoves := true
	for _, m := range matchers {
		g, all, err := b.group(h, m)
		if err != nil {
			return nil, err
		}
		if all {
			continue
		}
		if !g.removes && len(g.add) == 0 {
			return nil, nil
		}
		onlyRemoves = onlyRemoves && g.removes
		groups = append(groups, g)
	}
	if onlyRemoves {
		all, err := h.All()
		if err != nil {
			return nil, err
		}
		groups = append(groups, group{add: []header.Range{all}})
	}
	lists, err := b.lists(ctx, u, groups)
	if err != nil {
		return nil, err
	}
	var out []uint32
	first := true
	for i, g := range groups {
		if g.removes {
			continue
		}
		list := union(lists[i])
		if first {
			out, first = list, false
		} else {
			out = intersect(out, list)
		}
	}
	for i, g := range groups {
		if g.removes && len(out) > 0 {
			out = subtract(out, union(lists[i]))
		}
	}
	return out, nil
}

// group says where the lists are that a matcher asks for. all says that every series matches.
func (b *Reader) group(h *header.Reader, m *labels.Matcher) (g group, all bool, err error) {
	// A missing label is "": who matches that is found by who does not.
	g.removes = m.Matches("")
	put := func(list header.Range) {
		if g.removes {
			g.remove = append(g.remove, list)
		} else {
			g.add = append(g.add, list)
		}
	}
	named := func(values ...string) error {
		values = slices.Clone(values)
		slices.Sort(values)
		lists, err := h.Postings(m.Name, slices.Compact(values)...)
		for _, l := range lists {
			if l != (header.Range{}) {
				put(l)
			}
		}
		return err
	}
	switch {
	case m.Type == labels.MatchEqual && m.Value != "", m.Type == labels.MatchNotEqual && m.Value != "":
		return g, false, named(m.Value)
	case m.Type == labels.MatchRegexp && m.Value == ".*":
		return g, true, nil
	case m.Type == labels.MatchRegexp && len(m.SetMatches()) > 0 && !g.removes, m.Type == labels.MatchNotRegexp && len(m.SetMatches()) > 0 && g.removes:
		return g, false, named(m.SetMatches()...)
	}
	err = h.Values(m.Name, func(value []byte, list header.Range) bool {
		if m.Matches(string(value)) != g.removes {
			put(list)
		}
		return true
	})
	return g, g.removes && len(g.remove) == 0, err
}

// lists reads all lists of the groups.
func (b *Reader) lists(ctx context.Context, u *Usage, groups []group) ([][][]uint32, error) {
	var spans []span
	for _, g := range groups {
		for _, l := range slices.Concat(g.add, g.remove) {
			// With its length and count before, and its checksum behind.
			spans = append(spans, span{l.Start - 8, l.End + 4})
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return int(a.from - b.from) })
	read, err := object(ctx, b.bkt, u, b.indexName, slices.Compact(spans))
	if err != nil {
		return nil, err
	}
	out := make([][][]uint32, len(groups))
	for i, g := range groups {
		for _, l := range slices.Concat(g.add, g.remove) {
			list, err := parseList(read.from(l.Start-8), l)
			if err != nil {
				return nil, fmt.Errorf("%w: %s: the list of series at byte %d: %w", ErrBroken, b.indexName, l.Start-8, err)
			}
			out[i] = append(out[i], list)
		}
	}
	return out, nil
}

// parseList takes a list of series apart: its length and count in 4 bytes each, references of
// 4 bytes, and the checksum of all but the length.
func parseList(b []byte, l header.Range) ([]uint32, error) {
	n := l.End - l.Start
	if n < 0 || n%4 != 0 || int64(len(b)) < n+12 {
		return nil, fmt.Errorf("it has %d bytes, of which %d are there", n+12, len(b))
	}
	size, count := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if int64(size) != n+4 || int64(count) != n/4 {
		return nil, fmt.Errorf("it says that it has %d bytes and %d series, and has %d bytes", size, count, n+4)
	}
	if crc32.Checksum(b[4:8+n], castagnoli) != binary.BigEndian.Uint32(b[8+n:]) {
		return nil, errChecksum
	}
	out := make([]uint32, count)
	for i := range out {
		out[i] = binary.BigEndian.Uint32(b[8+4*i:])
		if i > 0 && out[i] <= out[i-1] {
			return nil, fmt.Errorf("%d comes behind %d", out[i], out[i-1])
		}
	}
	return out, nil
}

// union merges lists that ascend.
func union(lists [][]uint32) []uint32 {
	switch len(lists) {
	case 0:
		return nil
	case 1:
		return lists[0]
	}
	n := 0
	for _, l := range lists {
		n += len(l)
	}
	all := make([]uint32, 0, n)
	for _, l := range lists {
		all = append(all, l...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func intersect(a, b []uint32) []uint32 {
	out := a[:0:0]
	for i, k := 0, 0; i < len(a) && k < len(b); {
		switch {
		case a[i] < b[k]:
			i++
		case a[i] > b[k]:
			k++
		default:
			out = append(out, a[i])
			i, k = i+1, k+1
		}
	}
	return out
}

func subtract(a, b []uint32) []uint32 {
	out := a[:0:0]
	k := 0
	for _, x := range a {
		for k < len(b) && b[k] < x {
			k++
		}
		if k == len(b) || b[k] != x {
			out = append(out, x)
		}
	}
	return out
}
