// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package pushdown

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/oracle"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

// Tolerance is the relative difference that computed values may have: engines add up in
// different orders.
const Tolerance = 1e-9

// Difference is the first thing that is wrong with an answer. Expected and Actual are
// lines, cut to what differs.
type Difference struct {
	Message          string
	Expected, Actual []string
}

// lines is the most of each side that a report shows.
const lines = 6

// Compare says what is wrong with an answer, nil if nothing is: the same label sets, each
// once, in any order, with the same times in ascending order and the same values, up to a
// relative difference of eps. It only reads.
func Compare(want, got []Series, eps float64) *Difference {
	want, got = sorted(want), sorted(got)
	for i := 1; i < len(got); i++ {
		if labels.Equal(got[i-1].Labels, got[i].Labels) {
			return &Difference{Message: fmt.Sprintf("%s comes twice", oracle.Show(got[i].Labels)), Actual: shown(got[i-1 : i+1])}
		}
	}
	var missing, extra []Series
	i, k := 0, 0
	for i < len(want) || k < len(got) {
		switch c := at(want, i, got, k); {
		case c < 0:
			missing, i = append(missing, want[i]), i+1
		case c > 0:
			extra, k = append(extra, got[k]), k+1
		default:
			if d := compare(want[i], got[k], eps); d != nil {
				return d
			}
			i, k = i+1, k+1
		}
	}
	switch {
	case len(missing) > 0 && len(extra) > 0:
		return &Difference{fmt.Sprintf("%d series are missing, and %d come that should not", len(missing), len(extra)), shown(missing), shown(extra)}
	case len(missing) > 0:
		return &Difference{fmt.Sprintf("of %d series %d are missing", len(want), len(missing)), shown(missing), nil}
	case len(extra) > 0:
		return &Difference{fmt.Sprintf("%d series come that should not", len(extra)), nil, shown(extra)}
	}
	return nil
}

// at compares the heads of two lists, one of which may have ended.
func at(a []Series, i int, b []Series, k int) int {
	switch {
	case i == len(a):
		return 1
	case k == len(b):
		return -1
	}
	return labels.Compare(a[i].Labels, b[k].Labels)
}

func sorted(in []Series) []Series {
	out := slices.Clone(in)
	slices.SortStableFunc(out, func(a, b Series) int { return labels.Compare(a.Labels, b.Labels) })
	return out
}

func compare(want, got Series, eps float64) *Difference {
	d := &Difference{}
	note := func(message string, w, g *shaping.Sample) {
		if d.Message == "" {
			d.Message = oracle.Show(want.Labels) + ": " + message
		}
		if w != nil && len(d.Expected) < lines {
			d.Expected = append(d.Expected, text(*w))
		}
		if g != nil && len(d.Actual) < lines {
			d.Actual = append(d.Actual, text(*g))
		}
	}
	for i := 1; i < len(got.Points); i++ {
		if got.Points[i-1].T >= got.Points[i].T {
			note("a point is not later than the one before", nil, &got.Points[i])
			return d
		}
	}
	w, g := want.Points, got.Points
	for len(w) > 0 || len(g) > 0 {
		switch {
		case len(g) == 0 || len(w) > 0 && w[0].T < g[0].T:
			note("a point is missing", &w[0], nil)
			w = w[1:]
		case len(w) == 0 || g[0].T < w[0].T:
			note("there is a point that should not be", nil, &g[0])
			g = g[1:]
		default:
			if !equal(w[0], g[0], eps) {
				note("another value", &w[0], &g[0])
			}
			w, g = w[1:], g[1:]
		}
	}
	if d.Message == "" {
		return nil
	}
	return d
}

func shown(list []Series) (out []string) {
	for _, s := range list {
		if len(out) == lines {
			return append(out, fmt.Sprintf("and %d more", len(list)-lines))
		}
		line := oracle.Show(s.Labels)
		for i, p := range s.Points {
			if i == 3 {
				line += fmt.Sprintf(" … %d points", len(s.Points))
				break
			}
			line += " " + text(p)
		}
		out = append(out, line)
	}
	return out
}

func text(s shaping.Sample) string {
	if h := float(s); h != nil {
		return oracle.Stamp(s.T) + " " + h.String()
	}
	return oracle.Stamp(s.T) + " " + strconv.FormatFloat(s.F, 'g', -1, 64)
}
