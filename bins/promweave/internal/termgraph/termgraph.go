// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package termgraph draws series in a terminal: a graph of dots in Braille
// characters, eight to a cell, and a line of blocks beside a table.
package termgraph

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Series is what is drawn: one value per column of time, NaN where there is none.
type Series struct {
	Name   string
	Times  []time.Time
	Values []float64
}

// Options of Graph.
type Options struct {
	// Width and Height in characters, axes included.
	Width, Height int
	Start, End    time.Time
	// Color tells series apart by ANSI colours; without it, only the legend does.
	Color bool
}

// maxSeries is how many are drawn; more cannot be told apart.
const maxSeries = 12

var colors = []int{36, 33, 35, 32, 34, 31, 96, 93, 95, 92, 94, 91}

// Graph draws the series one over the other with axes and a legend.
func Graph(w io.Writer, series []Series, o Options) error {
	o.Width, o.Height = max(o.Width, 40), max(o.Height, 6)
	left := len(series)
	shown := series[:min(left, maxSeries)]
	lo, hi := bounds(shown)
	if math.IsInf(lo, 0) {
		_, err := fmt.Fprintln(w, "no data to draw")
		return err
	}
	if lo == hi { // a flat line runs through the middle
		pad := math.Max(math.Abs(lo)*0.1, 1e-9)
		if lo == 0 {
			pad = 1
		}
		lo, hi = math.Max(lo-pad, -math.MaxFloat64), math.Min(hi+pad, math.MaxFloat64)
	}

	const axis = 10
	cols, rows := o.Width-axis-2, o.Height-2
	cells := make([][]cell, rows)
	for i := range cells {
		cells[i] = make([]cell, cols)
	}
	for i, s := range shown {
		draw(cells, s, i, lo, hi, o)
	}

	var b strings.Builder
	for r := range cells {
		label := ""
		if r == 0 || r == rows-1 || r == rows/2 {
			f := float64(r) / float64(rows-1)
			label = Value(lo*f + hi*(1-f))
		}
		fmt.Fprintf(&b, "%*s ┤", axis, label)
		last := -1
		for _, c := range cells[r] {
			if o.Color && c.bits != 0 && c.series != last {
				last = c.series
				fmt.Fprintf(&b, "\x1b[%dm", colors[last%len(colors)])
			}
			if c.bits == 0 {
				b.WriteByte(' ')
			} else {
				b.WriteRune(rune(0x2800 + int(c.bits)))
			}
		}
		if last >= 0 {
			b.WriteString("\x1b[0m")
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%*s └%s\n", axis, "", strings.Repeat("─", cols))
	from, to := clock(o.Start, o.End)
	fmt.Fprintf(&b, "%*s  %s%s%s\n", axis, "", from, strings.Repeat(" ", max(1, cols-len(from)-len(to))), to)
	for i, s := range shown {
		mark := "•"
		if o.Color {
			mark = fmt.Sprintf("\x1b[%dm•\x1b[0m", colors[i%len(colors)])
		}
		fmt.Fprintf(&b, "%s %s\n", mark, cut(s.Name, o.Width-2))
	}
	if left > maxSeries {
		fmt.Fprintf(&b, "… and %d more series, which are not drawn\n", left-maxSeries)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

type cell struct {
	bits   byte
	series int
}

// dots are the bits of a Braille character by row and column (Unicode, block
// Braille Patterns).
var dots = [4][2]byte{{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}}

func draw(cells [][]cell, s Series, index int, lo, hi float64, o Options) {
	h, w := len(cells)*4, len(cells[0])*2
	span := o.End.Sub(o.Start).Seconds()
	prevX, prevY, line := 0, 0, false
	var gap float64
	for i, v := range s.Values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			line = false
			continue
		}
		var fx float64
		if span > 0 {
			fx = s.Times[i].Sub(o.Start).Seconds() / span
		}
		// Halves, because the difference of two numbers may be none any more.
		fy := (hi/2 - v/2) / (hi/2 - lo/2)
		if !(fx >= 0 && fx <= 1 && fy >= 0 && fy <= 1) {
			line = false
			continue
		}
		x, y := int(fx*float64(w-1)), int(math.Round(fy*float64(h-1)))
		if i > 0 {
			// Points that are missing leave a hole and no line across it.
			d := s.Times[i].Sub(s.Times[i-1]).Seconds()
			if gap == 0 || d < gap {
				gap = d
			}
			line = line && d <= gap*1.5
		}
		if line {
			segment(prevX, prevY, x, y, func(x, y int) { set(cells, x, y, index) })
		} else {
			set(cells, x, y, index)
		}
		prevX, prevY, line = x, y, true
	}
}

func set(cells [][]cell, x, y, index int) {
	c := &cells[y/4][x/2]
	c.bits |= dots[y%4][x%2]
	c.series = index
}

// segment visits the dots between two points (Bresenham).
func segment(x0, y0, x1, y1 int, visit func(x, y int)) {
	dx, dy := abs(x1-x0), -abs(y1-y0)
	sx, sy := sign(x1-x0), sign(y1-y0)
	e := dx + dy
	for {
		visit(x0, y0)
		if x0 == x1 && y0 == y1 {
			return
		}
		e2 := 2 * e
		if e2 >= dy {
			e += dy
			x0 += sx
		}
		if e2 <= dx {
			e += dx
			y0 += sy
		}
	}
}

func abs(n int) int { return max(n, -n) }

func sign(n int) int {
	switch {
	case n > 0:
		return 1
	case n < 0:
		return -1
	}
	return 0
}

func bounds(series []Series) (lo, hi float64) {
	lo, hi = math.Inf(1), math.Inf(-1)
	for _, s := range series {
		for _, v := range s.Values {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				lo, hi = math.Min(lo, v), math.Max(hi, v)
			}
		}
	}
	return lo, hi
}

var blocks = []rune("▁▂▃▄▅▆▇█")

// Spark draws values in one line of at most width characters. Values that fall on
// one character are represented by the largest of them.
func Spark(values []float64, width int) string {
	lo, hi := bounds([]Series{{Values: values}})
	n := min(width, len(values))
	out := make([]rune, 0, n)
	for i := range n {
		best := math.NaN()
		for _, v := range values[i*len(values)/n : (i+1)*len(values)/n] {
			if math.IsNaN(best) || v > best {
				best = v
			}
		}
		switch {
		case math.IsNaN(best):
			out = append(out, ' ')
		case math.IsInf(best, 0), hi == lo:
			out = append(out, blocks[len(blocks)/2])
		default:
			out = append(out, blocks[int((best/2-lo/2)/(hi/2-lo/2)*float64(len(blocks)-1)+0.5)])
		}
	}
	return string(out)
}

// Value is a number in a few characters, with a unit prefix from a thousand on.
func Value(v float64) string {
	switch a := math.Abs(v); {
	case v == 0 || math.IsNaN(v) || math.IsInf(v, 0):
		return strconv.FormatFloat(v, 'g', -1, 64)
	case a >= 1e15 || a < 1e-4:
		return strconv.FormatFloat(v, 'e', 2, 64)
	case a >= 1e3:
		for _, u := range []struct {
			f float64
			s string
		}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
			if a >= u.f {
				return strconv.FormatFloat(v/u.f, 'g', 4, 64) + u.s
			}
		}
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

func clock(start, end time.Time) (from, to string) {
	layout := "15:04:05"
	if end.Sub(start) > 12*time.Hour || start.YearDay() != end.YearDay() {
		layout = "2006-01-02 15:04"
	}
	return start.Format(layout), end.Format(layout)
}

func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:max(n-1, 1)]) + "…"
}
