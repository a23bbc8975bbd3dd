// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package downsample

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/core/samples"
	"github.com/promweave/promweave/sdk/backend"
)

var staleNaN = math.Float64frombits(value.StaleNaN)

// xor is a stored chunk of the points, from the first to the last of them.
func xor(points ...point) stored {
	var x xorChunk
	for _, p := range points {
		x.append(p.t, p.v)
	}
	return stored{minTime: points[0].t, maxTime: points[len(points)-1].t, Encoded: x.encoded()}
}

func decoded(t testing.TB, e backend.Encoded) []point {
	t.Helper()
	if !e.Present() {
		return nil
	}
	out, err := readFloats(e, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestVectors are the numbers that Thanos' own downsampler is tested with.
func TestVectors(t *testing.T) {
	in := []point{{20, 1}, {40, 2}, {60, 3}, {80, 1}, {100, 2}, {101, staleNaN}, {120, 5}, {180, 10}, {250, 1}}
	made, err := raw([]stored{xor(in...)}, 100)
	if err != nil || len(made) != 1 {
		t.Fatal(made, err)
	}
	c := made[0]
	if c.MinTime != 99 || c.MaxTime != 250 {
		t.Errorf("from %d to %d", c.MinTime, c.MaxTime)
	}
	for _, v := range []struct {
		name string
		got  backend.Encoded
		want []point
	}{
		{"count", c.Aggregates.Count, []point{{99, 4}, {199, 3}, {250, 1}}},
		{"sum", c.Aggregates.Sum, []point{{99, 7}, {199, 17}, {250, 1}}},
		{"min", c.Aggregates.Min, []point{{99, 1}, {199, 2}, {250, 1}}},
		{"max", c.Aggregates.Max, []point{{99, 3}, {199, 10}, {250, 1}}},
		{"counter", c.Aggregates.Counter, []point{{20, 1}, {99, 4}, {199, 13}, {250, 14}, {250, 1}}},
	} {
		if got := decoded(t, v.got); !reflect.DeepEqual(got, v.want) {
			t.Errorf("%s %v, want %v", v.name, got, v.want)
		}
	}

	// To a coarser resolution; a chunk begins at each drop of the time.
	var counter xorChunk
	for _, p := range []point{{99, 100}, {299, 150}, {499, 210}, {499, 10}, {599, 20}, {799, 50}, {999, 120}, {999, 50}, {1099, 40}, {1199, 80}, {1299, 110}} {
		counter.append(p.t, p.v)
	}
	s := stored{minTime: 99, maxTime: 1299, Encoded: backend.Encoded{Encoding: aggregate.Encoding,
		Data: aggregate.Append(nil, &backend.AggregateChunks{Counter: counter.encoded()})}}
	made, err = coarser([]stored{s}, 100, 500)
	if err != nil || len(made) != 1 {
		t.Fatal(made, err)
	}
	want := []point{{99, 100}, {499, 210}, {999, 320}, {1299, 430}, {1299, 110}}
	if got := decoded(t, made[0].Aggregates.Counter); !reflect.DeepEqual(got, want) {
		t.Errorf("counter %v, want %v", got, want)
	}
	if a := made[0].Aggregates; a.Count.Present() || a.Sum.Present() || a.Min.Present() || a.Max.Present() {
		t.Error("aggregates that the input has not")
	}
	if made[0].MinTime != 499 || made[0].MaxTime != 1299 {
		t.Errorf("from %d to %d", made[0].MinTime, made[0].MaxTime)
	}
}

func TestWindowEnd(t *testing.T) {
	for _, c := range [][3]int64{
		{0, 100, 99}, {99, 100, 99}, {100, 100, 199}, {-1, 100, -1}, {-100, 100, -1}, {-101, 100, -101},
		{1793923200000, meta.FiveMinutes, 1793923499999}, {1793923499999, meta.FiveMinutes, 1793923499999}, {1793923200000, meta.OneHour, 1793926799999},
	} {
		if got := windowEnd(c[0], c[1]); got != c[2] {
			t.Errorf("%d at %d is in the window to %d, want %d", c[0], c[1], got, c[2])
		}
	}
}

// TestChunkCount: the closed form is the smallest number of chunks that brings the average down.
func TestChunkCount(t *testing.T) {
	for _, c := range []struct {
		mint, maxt, in, out int64
		n, want             int
	}{
		{0, 14 * 86_400_000, 60_000, meta.FiveMinutes, 20_160, 29},
		{0, 14 * 86_400_000, 60_000, meta.FiveMinutes, 2_016, 3},
		{0, 14 * 86_400_000, 60_000, meta.FiveMinutes, 1 << 30, 29},
		{0, 140 * meta.FiveMinutes, meta.FiveMinutes, meta.FiveMinutes, 140, 2},
		{0, 139 * meta.FiveMinutes, meta.FiveMinutes, meta.FiveMinutes, 139, 1},
		{5, 5, 60_000, meta.FiveMinutes, 1, 1},
		{0, 1 << 40, 60_000, meta.FiveMinutes, 0, 1},
	} {
		if got := chunkCount(c.mint, c.maxt, c.in, c.out, c.n); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
	for expected := range 3000 {
		x := 1
		for ; (expected+1)/x > 140; x++ {
		}
		if got := chunkCount(0, int64(expected)*100+1, 1, 100, 1<<40); got != x {
			t.Fatalf("%d expected points are cut into %d chunks, want %d", expected+1, got, x)
		}
	}
}

// series is a random counter or gauge of whole numbers, whose sums are exact: gaps, samples on
// both edges of windows, more than one at a time, NaN, resets.
func series(r *rand.Rand, resolution int64, twice bool) []point {
	var out []point
	t, v := r.Int64N(3*resolution), 0.0
	for range 1 + r.IntN(3000) {
		switch r.IntN(12) {
		case 0:
			if end := windowEnd(t, resolution); end > t || twice {
				t = end
			} else {
				t += resolution
			}
		case 1:
			t = windowEnd(t, resolution) + 1
		case 2:
			t += r.Int64N(5 * resolution)
		case 3:
			if !twice {
				t++
			}
		default:
			t += 1 + r.Int64N(resolution/5)
		}
		if r.IntN(50) == 0 {
			v = float64(r.IntN(10))
		}
		v += float64(r.IntN(100))
		p := point{t, v}
		if r.IntN(20) == 0 {
			p.v = math.NaN()
		}
		out = append(out, p)
	}
	return out
}

// naive is what a window comes to, computed from nothing but the samples in it.
type naive struct {
	count, sum, min, max float64
	last                 int64
}

func oracle(in []point, resolution int64) map[int64]naive {
	out := map[int64]naive{}
	for _, p := range in {
		if math.IsNaN(p.v) {
			continue
		}
		// The window by its number from the epoch.
		end := (p.t/resolution+1)*resolution - 1
		w, ok := out[end]
		if !ok {
			w = naive{min: math.Inf(1), max: math.Inf(-1)}
		}
		out[end] = naive{w.count + 1, w.sum + p.v, math.Min(w.min, p.v), math.Max(w.max, p.v), p.t}
	}
	return out
}

// increase is by how much a counter went up, resets counted from 0.
func increase(in []point) float64 {
	total, last := 0.0, math.NaN()
	for _, p := range in {
		if math.IsNaN(p.v) {
			continue
		}
		if p.v < last {
			last = 0
		}
		if !math.IsNaN(last) {
			total += p.v - last
		}
		last = p.v
	}
	return total
}

// read is what the query engine's reader makes of the counter of chunks.
// Samples at one time are more than it takes.
func read(t *testing.T, in []backend.Chunk) float64 {
	t.Helper()
	chunks := make([]samples.Chunk, len(in))
	for i := range in {
		chunks[i].Chunk = in[i]
	}
	it := samples.NewIterator(chunks, samples.Options{MinTime: math.MinInt64, MaxTime: math.MaxInt64, Func: "increase"}, nil)
	first, last, n := 0.0, 0.0, 0
	for ; it.Next() != chunkenc.ValNone; n++ {
		if _, last = it.At(); n == 0 {
			first = last
		}
	}
	if it.Err() != nil || n == 0 {
		t.Fatal(n, it.Err())
	}
	return last - first
}

// check holds chunks against the samples that they come from.
func check(chunks []backend.Chunk, in []point, resolution int64, t *testing.T) error {
	want := oracle(in, resolution)
	got := map[int64]naive{}
	end := int64(math.MinInt64)
	for i, c := range chunks {
		var of [4][]point
		for k, e := range []backend.Encoded{c.Aggregates.Count, c.Aggregates.Sum, c.Aggregates.Min, c.Aggregates.Max} {
			of[k] = decoded(t, e)
		}
		n := len(of[0])
		if c.MinTime <= end || c.MinTime != of[0][0].t || c.MaxTime != of[0][n-1].t {
			return fmt.Errorf("chunk %d is from %d to %d, has points from %d to %d, and the one before ends at %d", i, c.MinTime, c.MaxTime, of[0][0].t, of[0][n-1].t, end)
		}
		end = c.MaxTime
		for j, p := range of[0] {
			window := windowEnd(p.t, resolution)
			if of[1][j].t != p.t || of[2][j].t != p.t || of[3][j].t != p.t {
				return fmt.Errorf("the aggregates at %d are not together", p.t)
			}
			if p.t != window && (j != n-1 || p.t != want[window].last) {
				return fmt.Errorf("a point at %d, which is neither the end of a window nor that of a batch", p.t)
			}
			w, ok := got[window]
			if !ok {
				w = naive{min: math.Inf(1), max: math.Inf(-1), last: want[window].last}
			}
			got[window] = naive{w.count + p.v, w.sum + of[1][j].v, min(w.min, of[2][j].v), max(w.max, of[3][j].v), w.last}
		}
	}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("%d windows, want %d:\n%v\n%v", len(got), len(want), got, want)
	}
	return nil
}

func store(in []backend.Chunk) []stored {
	out := make([]stored, len(in))
	for i, c := range in {
		out[i] = stored{ref: uint64(i), minTime: c.MinTime, maxTime: c.MaxTime, Encoded: backend.Encoded{Encoding: aggregate.Encoding, Data: aggregate.Append(nil, c.Aggregates)}}
	}
	return out
}

// TestOracle: count, sum, min and max are exact and each window is whole, however the samples
// are cut into chunks; and a reader finds the increase of a counter, over resets, in both levels.
func TestOracle(t *testing.T) {
	chunks := 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		const fine, coarse = 1000, 12000
		twice := seed%4 == 0
		in := series(r, fine, twice)
		real := oracle(in, fine)
		if len(real) == 0 {
			continue
		}
		// Chunks of any size, which do not cut samples of one time apart.
		var all []stored
		for rest := in; len(rest) > 0; {
			n := min(1+r.IntN(200), len(rest))
			for n < len(rest) && rest[n].t == rest[n-1].t {
				n++
			}
			all, rest = append(all, xor(rest[:n]...)), rest[n:]
		}
		made, err := raw(all, fine)
		if err == nil {
			err = check(made, in, fine, t)
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !twice {
			if want, got := increase(in), read(t, made); got != want {
				t.Fatalf("seed %d: the increase is %g, want %g", seed, got, want)
			}
		}
		again, err := coarser(store(made), fine, coarse)
		if err == nil {
			err = checkCoarse(again, in, coarse, t)
		}
		if err != nil {
			t.Fatalf("seed %d, coarser: %v", seed, err)
		}
		if !twice {
			if want, got := increase(in), read(t, again); got != want {
				t.Fatalf("seed %d, coarser: the increase is %g, want %g", seed, got, want)
			}
		}
		chunks += len(made)
	}
	if chunks < 600 {
		t.Errorf("%d chunks only: no batch was ever cut", chunks)
	}
}

// checkCoarse is check for batches that end within a window: that has two points then.
func checkCoarse(chunks []backend.Chunk, in []point, resolution int64, t *testing.T) error {
	want, got := oracle(in, resolution), map[int64]naive{}
	end := int64(math.MinInt64)
	for _, c := range chunks {
		if c.MinTime <= end || c.MaxTime < c.MinTime {
			return fmt.Errorf("a chunk from %d to %d after one to %d", c.MinTime, c.MaxTime, end)
		}
		end = c.MaxTime
		count, sum, low, high := decoded(t, c.Aggregates.Count), decoded(t, c.Aggregates.Sum), decoded(t, c.Aggregates.Min), decoded(t, c.Aggregates.Max)
		for j, p := range count {
			window := windowEnd(p.t, resolution)
			w, ok := got[window]
			if !ok {
				w = naive{min: math.Inf(1), max: math.Inf(-1), last: want[window].last}
			}
			got[window] = naive{w.count + p.v, w.sum + sum[j].v, min(w.min, low[j].v), max(w.max, high[j].v), w.last}
		}
	}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("%d windows, want %d:\n%v\n%v", len(got), len(want), got, want)
	}
	return nil
}

// TestBatches: wherever batches are cut, the windows are the same, and none is cut.
func TestBatches(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 2))
		const resolution = 1000
		var in []point
		for _, p := range series(r, resolution, false) {
			if !math.IsNaN(p.v) {
				in = append(in, p)
			}
		}
		if len(in) == 0 {
			continue
		}
		size := 1 + r.IntN(len(in)+10)
		var made []backend.Chunk
		for i := 0; i < len(in); {
			end := batchEnd(func(i int) int64 { return in[i].t }, i, len(in), size, resolution)
			if end < min(i+size, len(in)) || end < len(in) && windowEnd(in[end].t, resolution) == windowEnd(in[end-1].t, resolution) {
				t.Fatalf("seed %d: a batch of %d from %d ends at %d of %d", seed, size, i, end, len(in))
			}
			made = append(made, rawFloats(in[i:end], resolution))
			i = end
		}
		if err := check(made, in, resolution, t); err != nil {
			t.Fatalf("seed %d, batches of %d: %v", seed, size, err)
		}
		if want, got := increase(in), read(t, made); got != want {
			t.Fatalf("seed %d, batches of %d: the increase is %g, want %g", seed, size, got, want)
		}
	}
}

// TestSpecialValues: NaN is no sample, infinities are; a window of +Inf alone has the largest
// float for its minimum, as Thanos has it; -0 and 0 are the same.
func TestSpecialValues(t *testing.T) {
	inf := math.Inf(1)
	made, err := raw([]stored{
		xor(point{10, inf}, point{20, inf}, point{110, 1}, point{120, -inf}, point{210, math.NaN()}, point{310, math.Copysign(0, -1)}, point{320, 0}, point{400, staleNaN}),
	}, 100)
	if err != nil || len(made) != 1 {
		t.Fatal(made, err)
	}
	a := made[0].Aggregates
	for i, want := range [][]point{
		{{99, 2}, {199, 2}, {320, 2}},
		{{99, inf}, {199, -inf}, {320, 0}},
		{{99, math.MaxFloat64}, {199, -inf}, {320, math.Copysign(0, -1)}},
		{{99, inf}, {199, 1}, {320, math.Copysign(0, -1)}},
	} {
		got := decoded(t, []backend.Encoded{a.Count, a.Sum, a.Min, a.Max}[i])
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("aggregate %d: %v, want %v", i, got, want)
		}
	}
	made, err = raw([]stored{xor(point{10, staleNaN}, point{20, math.NaN()}), xor(point{30, math.NaN()})}, 100)
	if err != nil || len(made) != 0 {
		t.Error("chunks of nothing", made, err)
	}
}

// TestManyWindows: a chunk has no more points than its 16 bits count.
func TestManyWindows(t *testing.T) {
	// So many samples at the start that few chunks are expected to do, then one in each window.
	var in []point
	for i := range int64(200_000) {
		in = append(in, point{i / 2000, 1})
	}
	for i := range int64(70_000) {
		in = append(in, point{100 + i*10, 1})
	}
	n := 0
	for i := 0; i < len(in); {
		end := batchEnd(func(i int) int64 { return in[i].t }, i, len(in), len(in), 10)
		c := rawFloats(in[i:end], 10)
		if got := aggregate.Points(c.Aggregates.Counter); got != aggregate.Points(c.Aggregates.Count)+2 {
			t.Errorf("%d points of the counter, %d of the count", got, aggregate.Points(c.Aggregates.Count))
		}
		if len(decoded(t, c.Aggregates.Counter)) != aggregate.Points(c.Aggregates.Counter) {
			t.Error("the number of points began at 0 again")
		}
		n += aggregate.Points(c.Aggregates.Count)
		i = end
	}
	if n != 70_010 {
		t.Errorf("%d windows", n)
	}
}
