// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/promweave/promweave/backends/bucket"
	"github.com/promweave/promweave/blocks/downsample"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
)

// year is what is in the bucket: a sample a minute of each series, 13 s past it.
type year struct {
	days, perBlock int
	values         [][]float64 // of each series; of the histogram it is the count
	src            *source
	dir            string
}

const (
	yearFrom = int64(1_704_067_200_000) // 2024-01-01
	gauges   = 9
	counters = 10
)

func (y *year) labels(i int) labels.Labels {
	name := "gauge"
	switch {
	case i >= gauges+counters:
		name = "histogram"
	case i >= gauges:
		name = "counter"
	}
	return labels.FromStrings("__name__", name, "i", fmt.Sprint(i))
}

// newYear makes the data and the blocks of all levels. The last block has none of 5m, that before
// it none of 1h, as it is with recent data.
func newYear(t *testing.T) *year {
	t.Helper()
	y := &year{days: 365, perBlock: 14, dir: quick(t), src: &source{}}
	if testing.Short() {
		y.days, y.perBlock = 30, 6
	}
	rnd := rand.New(rand.NewPCG(1, 365))
	n := y.days * 24 * 60
	for i := range gauges + counters + 1 {
		values, v := make([]float64, n), 0.0
		for k := range values {
			switch {
			case i < gauges:
				v = float64(rnd.IntN(20_001) - 10_000)
			case i < gauges+counters && rnd.IntN(4000) == 0 || i >= gauges+counters && k%100_000 == 7_777:
				v = float64(rnd.IntN(5)) // a restart
			default:
				v += float64(rnd.IntN(10))
			}
			values[k] = v
		}
		y.values = append(y.values, values)
	}
	ctx := context.Background()
	ext := labels.FromStrings("replica", "a")
	for day := 0; day < y.days; day += y.perBlock {
		end := min(day+y.perBlock, y.days)
		var lines []*line
		for i, values := range y.values {
			l := &line{ls: y.labels(i)}
			for k := day * 24 * 60; k < end*24*60; k++ {
				s := sample{t: y.at(k), f: values[k]}
				if i >= gauges+counters {
					c := uint64(values[k])
					s.h = &histogram.Histogram{
						Count: c, Sum: float64(c), ZeroThreshold: 0.001, ZeroCount: c - c/2,
						PositiveSpans: []histogram.Span{{Offset: 0, Length: 1}}, PositiveBuckets: []int64{int64(c / 2)},
					}
				}
				l.samples = append(l.samples, s)
			}
			lines = append(lines, l)
		}
		from, to := yearFrom+int64(day)*24*hour, yearFrom+int64(end)*24*hour
		m, err := writeLines(y.dir, ext, from, to, lines)
		if err != nil {
			t.Fatal(err)
		}
		y.src.blocks = append(y.src.blocks, m)
		for _, r := range meta.Resolutions()[1:] {
			if left := (y.days - end + y.perBlock - 1) / y.perBlock; left == 0 || left == 1 && r == meta.OneHour {
				break
			}
			if m, err = downsample.Block(ctx, m, y.dir+"/"+m.ULID.String(), y.dir, r, downsample.Options{SegmentBytes: 1 << 20}); err != nil {
				t.Fatal(err)
			}
			y.src.blocks = append(y.src.blocks, m)
		}
	}
	return y
}

// at is when sample k was taken.
func (y *year) at(k int) int64 { return yearFrom + int64(k)*minute + 13_000 }

// within are the samples of a series in (from, to].
func (y *year) within(i int, from, to int64) []float64 {
	index := func(t int64) int {
		// The last sample not after t; what is before the first must not be rounded up to it.
		return max(0, min(len(y.values[i]), int((t-yearFrom-13_000+hour)/minute)+1-60))
	}
	return y.values[i][index(from):index(to)]
}

// grown is what a counter counted in (from, to], from the sample before it on.
func (y *year) grown(i int, from, to int64) (sum float64) {
	list := y.within(i, from-minute, to)
	for k := 1; k < len(list); k++ {
		if sum += list[k]; list[k] >= list[k-1] {
			sum -= list[k-1]
		}
	}
	return sum
}

// restarted says whether a counter was reset in (from, to], or before in the same block. Within a
// chunk of windows of a histogram resets are taken out, and its format has no mark of that: where the
// next chunk begins, all that was counted since then is counted once more.
func (y *year) restarted(i int, from, to int64) bool {
	span := int64(y.perBlock) * 24 * hour
	list := y.within(i, yearFrom+(from-hour-yearFrom)/span*span, to)
	for k := 1; k < len(list); k++ {
		if list[k] < list[k-1] {
			return true
		}
	}
	return false
}

// TestYear: over a year of raw blocks and what is made of them, counts, sums, minima and maxima are
// exact where windows end, rates lack at most what a window grew at each edge, and the report says
// which levels were read.
func TestYear(t *testing.T) {
	y := newYear(t)
	bkt, err := filesystem.NewBucket(y.dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := bucket.New(bkt, y.src, bucket.Config{Dir: t.TempDir()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	set := membership.New([]membership.Entry{{Spec: membership.Spec{Name: "bucket", Kind: "bucket"}, Backend: b}}, membership.Options{})
	defer set.Close()
	set.Refresh(t.Context())
	service, err := query.New(set, query.Config{ReplicaLabels: []string{"replica"}})
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()

	ask := func(t *testing.T, expr string, resolution, span, offset int64, wantRead string) promql.Matrix {
		t.Helper()
		o := service.DefaultOptions()
		o.PartialResponse, o.MaxSourceResolution = false, resolution
		from, to := yearFrom+span-1+offset, yearFrom+int64(y.days)*24*hour-1
		res, err := service.Range(t.Context(), &query.Request{
			Query: expr, Start: time.UnixMilli(from), End: time.UnixMilli(to), Step: time.Duration(span) * time.Millisecond, Options: o,
		})
		if err != nil {
			t.Fatalf("%s: %v", expr, err)
		}
		t.Cleanup(res.Close)
		for _, sel := range res.Report.Selects {
			if said := strings.Join(sel.Backends[0].Notices, "; "); said != wantRead {
				t.Errorf("%s: the report says %q, want %q", expr, said, wantRead)
			}
		}
		m := res.Value.(promql.Matrix)
		for _, s := range m {
			want := int((to-from)/span) + 1
			if len(s.Floats)+len(s.Histograms) != want {
				t.Fatalf("%s of %s: %d points, want %d", expr, s.Metric, len(s.Floats)+len(s.Histograms), want)
			}
		}
		return m
	}
	number := func(t *testing.T, ls labels.Labels) (i int) {
		t.Helper()
		if _, err := fmt.Sscan(ls.Get("i"), &i); err != nil {
			t.Fatalf("%s: %v", ls, err)
		}
		return i
	}

	exact := []struct {
		expr string
		n    int
		of   func(list []float64) float64
	}{
		{`count_over_time({i=~".+"}[%s])`, gauges + counters + 1, func(list []float64) float64 { return float64(len(list)) }},
		{`sum_over_time({__name__=~"gauge|counter"}[%s])`, gauges + counters, sum},
		{`avg_over_time(gauge[%s])`, gauges, func(list []float64) float64 { return sum(list) / float64(len(list)) }},
		{`min_over_time({__name__=~"gauge|counter"}[%s])`, gauges + counters, func(list []float64) float64 {
			least := math.Inf(1)
			for _, v := range list {
				least = min(least, v)
			}
			return least
		}},
		{`max_over_time({__name__=~"gauge|counter"}[%s])`, gauges + counters, func(list []float64) float64 {
			most := math.Inf(-1)
			for _, v := range list {
				most = max(most, v)
			}
			return most
		}},
		{`histogram_count(sum_over_time(histogram[%s]))`, 1, sum},
	}
	blocks := (y.days + y.perBlock - 1) / y.perBlock
	for _, level := range []struct {
		resolution, span int64
		read             string
	}{
		{0, 24 * hour, ""},
		{meta.FiveMinutes, hour, fmt.Sprintf("resolution: 5m (%d blocks), raw (1 blocks)", blocks-1)},
		{meta.OneHour, 6 * hour, fmt.Sprintf("resolution: 1h (%d blocks), 5m (1 blocks), raw (1 blocks)", blocks-2)},
	} {
		span := fmt.Sprintf("%dm", level.span/minute)
		for _, e := range exact {
			t.Run(fmt.Sprintf("%d/%s", level.resolution/minute, e.expr[:strings.IndexAny(e.expr, "({")]), func(t *testing.T) {
				m := ask(t, fmt.Sprintf(e.expr, span), level.resolution, level.span, 0, level.read)
				if len(m) != e.n {
					t.Fatalf("%d series, want %d", len(m), e.n)
				}
				for _, s := range m {
					i := number(t, s.Metric)
					for _, p := range s.Floats {
						if want := e.of(y.within(i, p.T-level.span, p.T)); p.F != want {
							t.Fatalf("%s at %d: %v, want %v", s.Metric, p.T, p.F, want)
						}
					}
				}
			})
		}
		// Where windows do not end, too.
		for _, offset := range []int64{0, 17 * minute} {
			for _, expr := range []string{`increase(counter[%s])`, `histogram_count(increase(histogram[%s]))`} {
				t.Run(fmt.Sprintf("%d/increase/%s/%d", level.resolution/minute, expr[:9], offset), func(t *testing.T) {
					m := ask(t, fmt.Sprintf(expr, span), level.resolution, level.span, offset, level.read)
					if len(m) == 0 {
						t.Fatal("nothing")
					}
					window := max(level.resolution, 2*minute)
					for _, s := range m {
						i := number(t, s.Metric)
						checked := 0
						for _, p := range s.Floats {
							from := p.T - level.span
							if i >= gauges+counters && level.resolution > 0 && y.restarted(i, from, p.T) {
								continue
							}
							checked++
							edge := 0.0
							for at := from - window; at < p.T; at += window {
								edge = max(edge, y.grown(i, at, at+2*window))
							}
							if want := y.grown(i, from, p.T); math.Abs(p.F-want) > 2*edge {
								t.Fatalf("%s at %d: %v, want %v, give or take what grew in two windows, %v", s.Metric, p.T, p.F, want, 2*edge)
							}
						}
						if checked < len(s.Floats)/2 {
							t.Errorf("%s: only %d of %d points were looked at", s.Metric, checked, len(s.Floats))
						}
					}
				})
			}
		}
	}
}

func sum(list []float64) (s float64) {
	for _, v := range list {
		s += v
	}
	return s
}
