// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package shaping_test

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func lset(pairs ...string) labels.Labels { return labels.FromStrings(pairs...) }

// chunk is a chunk that can be told from others.
func chunk(minTime, maxTime int64) backend.Chunk {
	return backend.Chunk{MinTime: minTime, MaxTime: maxTime, Raw: backend.Encoded{Encoding: chunkenc.EncXOR, Data: []byte{0, 0}}}
}

// stream yields series in batches of random sizes.
func stream(r *rand.Rand, series []backend.Series) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		for i := 0; i < len(series); {
			n := 1 + r.IntN(4)
			b := backend.NewBatch(n)
			for ; n > 0 && i < len(series); n, i = n-1, i+1 {
				b.Append(series[i])
			}
			if !yield(b, nil) {
				return
			}
		}
	}
}

func collect(seq iter.Seq2[*backend.Batch, error]) (out []backend.Series, notices []backend.Notice, err error) {
	for b, err := range seq {
		if err != nil {
			return out, notices, err
		}
		for i := range b.Len() {
			out = append(out, b.At(i))
		}
		notices = append(notices, b.Notices()...)
	}
	return out, notices, nil
}

// joined writes each distinct series with the chunks of all its pieces.
func joined(series []backend.Series) []string {
	var out []string
	for i := 0; i < len(series); {
		var chunks []string
		j := i
		for ; j < len(series) && labels.Equal(series[i].Labels, series[j].Labels); j++ {
			for _, c := range series[j].Chunks {
				chunks = append(chunks, fmt.Sprint(c.MinTime))
			}
		}
		slices.Sort(chunks)
		out = append(out, series[i].Labels.String()+" "+strings.Join(chunks, " "))
		i = j
	}
	return out
}

func TestSplitMatchers(t *testing.T) {
	ext := lset("region", "eu-west", "zone", "a")
	m := labels.MustNewMatcher
	foo := m(labels.MatchEqual, "foo", "x")
	for _, tc := range []struct {
		name string
		in   []*labels.Matcher
		rest int
		ok   bool
	}{
		{"none", nil, 0, true},
		{"only others", []*labels.Matcher{foo}, 1, true},
		{"equal", []*labels.Matcher{m(labels.MatchEqual, "region", "eu-west"), foo}, 1, true},
		{"not equal fails", []*labels.Matcher{m(labels.MatchNotEqual, "region", "eu-west"), foo}, 0, false},
		{"regexp", []*labels.Matcher{foo, m(labels.MatchRegexp, "region", "eu-.*")}, 1, true},
		{"regexp is anchored", []*labels.Matcher{m(labels.MatchRegexp, "region", "eu")}, 0, false},
		{"not regexp", []*labels.Matcher{m(labels.MatchNotRegexp, "region", "us-.*")}, 0, true},
		{"empty value fails", []*labels.Matcher{m(labels.MatchEqual, "region", "")}, 0, false},
		{"all must hold", []*labels.Matcher{m(labels.MatchNotEqual, "region", ""), m(labels.MatchEqual, "region", "us")}, 0, false},
	} {
		rest, ok := shaping.SplitMatchers(ext, tc.in)
		if ok != tc.ok || len(rest) != tc.rest {
			t.Errorf("%s: got %v, %v", tc.name, rest, ok)
		}
	}
}

func TestExtendLabels(t *testing.T) {
	got := shaping.ExtendLabels(lset("a", "1", "region", "inner", "replica", "x"), lset("region", "eu", "zone", "z"), []string{"replica", "zone"})
	if want := lset("a", "1", "region", "eu"); !labels.Equal(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}

// randomSeries makes sorted series out of few names and values, so that
// prefixes, overridden and removed labels are common, in one or more pieces.
func randomSeries(r *rand.Rand, names []string) []backend.Series {
	sets := map[string]labels.Labels{}
	for range r.IntN(40) {
		b := labels.NewBuilder(labels.EmptyLabels())
		b.Set("__name__", []string{"", "up", "down"}[r.IntN(3)])
		for _, n := range names {
			if r.IntN(2) == 0 {
				b.Set(n, []string{"1", "2"}[r.IntN(2)])
			}
		}
		if ls := b.Labels(); !ls.IsEmpty() {
			sets[ls.String()] = ls
		}
	}
	var out []backend.Series
	next := int64(0)
	for _, ls := range sets {
		for range 1 + r.IntN(2) {
			next++
			out = append(out, backend.Series{Labels: ls, Chunks: []backend.Chunk{chunk(next, next)}})
		}
	}
	slices.SortStableFunc(out, func(a, b backend.Series) int { return labels.Compare(a.Labels, b.Labels) })
	return out
}

var labelPool = []string{"A", "Z", "b", "cluster", "dd", "replica", "s", "zone"}

// TestExtendEqualsSorting compares the streaming with sorting everything.
func TestExtendEqualsSorting(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		series := randomSeries(r, labelPool)
		eb := labels.NewBuilder(labels.EmptyLabels())
		for range r.IntN(4) {
			eb.Set(append(labelPool, "__a", "zz")[r.IntN(10)], "e")
		}
		ext := eb.Labels()
		var drop []string
		for range r.IntN(3) {
			drop = append(drop, labelPool[r.IntN(len(labelPool))])
		}

		var want []backend.Series
		bare := false
		for _, s := range series {
			ls := shaping.ExtendLabels(s.Labels, ext, drop)
			bare = bare || ls.IsEmpty()
			want = append(want, backend.Series{Labels: ls, Chunks: s.Chunks})
		}
		slices.SortStableFunc(want, func(a, b backend.Series) int { return labels.Compare(a.Labels, b.Labels) })

		got, _, err := collect(shaping.Extend(stream(r, series), ext, drop))
		if bare && err != nil {
			continue // Documented: series made of removed labels alone.
		}
		if err != nil {
			t.Fatalf("seed %d: ext %s, drop %v: %v", seed, ext, drop, err)
		}
		if d := gocmp.Diff(joined(want), joined(got)); d != "" {
			t.Fatalf("seed %d: ext %s, drop %v (-want +got):\n%s", seed, ext, drop, d)
		}
		for _, s := range got {
			if !slices.IsSortedFunc(s.Chunks, func(a, b backend.Chunk) int { return cmp.Compare(a.MinTime, b.MinTime) }) {
				t.Fatalf("seed %d: chunks of %s are not in order", seed, s.Labels)
			}
		}

		shuffled := slices.Clone(want)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		got, _, err = collect(shaping.Resort(stream(r, shuffled), nil))
		if err != nil {
			t.Fatal(err)
		}
		if d := gocmp.Diff(joined(want), joined(got)); d != "" {
			t.Fatalf("seed %d: Resort (-want +got):\n%s", seed, d)
		}
	}
}

// TestExtendStreams holds Extend to its promise that external labels alone do
// not make it buffer.
func TestExtendStreams(t *testing.T) {
	read := 0
	seq := func(yield func(*backend.Batch, error) bool) {
		for i := range 1000 {
			read++
			b := backend.NewBatch(1)
			b.Append(backend.Series{Labels: lset("__name__", "up", "instance", fmt.Sprintf("%04d", i), "job", "x")})
			if !yield(b, nil) {
				return
			}
		}
	}
	for b, err := range shaping.Extend(seq, lset("cluster", "eu", "replica", "a"), nil) {
		if err != nil {
			t.Fatal(err)
		}
		_ = b
		break
	}
	if read > 3 {
		t.Errorf("%d series were read before the first came out", read)
	}
}

func TestOrderIsChecked(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	bad := []backend.Series{{Labels: lset("a", "2")}, {Labels: lset("a", "1")}}
	for name, seq := range map[string]iter.Seq2[*backend.Batch, error]{
		"Extend":     shaping.Extend(stream(r, bad), lset("x", "y"), nil),
		"no change":  shaping.Extend(stream(r, bad), labels.EmptyLabels(), nil),
		"CheckOrder": shaping.CheckOrder(stream(r, bad)),
	} {
		_, _, err := collect(seq)
		if !errors.Is(err, backend.ErrInternal) || !strings.Contains(err.Error(), `{a="1"}`) || !strings.Contains(err.Error(), `{a="2"}`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestErrorsNoticesAndBreaks passes each wrapper an error, notices, and a
// receiver that stops at once.
func TestErrorsNoticesAndBreaks(t *testing.T) {
	boom := errors.New("boom")
	stopped := false
	seq := func(yield func(*backend.Batch, error) bool) {
		defer func() { stopped = true }()
		b := backend.NewBatch(1)
		b.Append(backend.Series{Labels: lset("a", "1")})
		b.Notify(backend.Notice{Kind: backend.NoticeMissing, Text: "gone"})
		if yield(b, nil) {
			yield(nil, boom)
		}
	}
	for name, f := range map[string]func(iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error]{
		"Extend": func(s iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
			return shaping.Extend(s, lset("z", "1"), nil)
		},
		"CheckOrder": shaping.CheckOrder,
		"Resort": func(s iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
			return shaping.Resort(s, nil)
		},
		"Limit":         func(s iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] { return shaping.Limit(s, 7) },
		"WithoutChunks": shaping.WithoutChunks,
		"WithoutLabels": func(s iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
			return shaping.WithoutLabels(s, []string{"r"})
		},
		"Sharded": func(s iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
			return shaping.Sharded(s, &backend.Shard{Total: 1})
		},
	} {
		series, notices, err := collect(f(seq))
		if len(series) != 1 || len(notices) != 1 || !errors.Is(err, boom) {
			t.Errorf("%s: %v, %v, %v", name, series, notices, err)
		}
		stopped = false
		for range f(seq) {
			break
		}
		if !stopped {
			t.Errorf("%s: the source was not ended", name)
		}
	}
}

func TestLimitCountsSeriesNotPieces(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 2))
		series := randomSeries(r, labelPool)
		n := r.IntN(8)
		want := joined(series)
		if n > 0 {
			want = want[:min(n, len(want))]
		}
		got, _, err := collect(shaping.Limit(stream(r, series), n))
		if err != nil {
			t.Fatal(err)
		}
		if d := gocmp.Diff(want, joined(got)); d != "" {
			t.Fatalf("seed %d: limit %d (-want +got):\n%s", seed, n, d)
		}
	}
}

// TestShardHash uses the golden values of the Thanos StoreAPI.
func TestShardHash(t *testing.T) {
	ls := lset("container", "nginx", "node", "node-1", "pod", "nginx")
	for _, tc := range []struct {
		shard backend.Shard
		want  uint64
	}{
		{backend.Shard{By: true}, 17241709254077376921},
		{backend.Shard{}, 7268187997799345588},
		{backend.Shard{By: true, Labels: []string{"pod", "node"}}, 16646913194661497883},
		{backend.Shard{Labels: []string{"node"}}, 13530338726863438044},
	} {
		if got := shaping.Hash(&tc.shard, ls); got != tc.want {
			t.Errorf("%+v: %d, want %d", tc.shard, got, tc.want)
		}
		tc.shard.Total = 2
		for tc.shard.Index = range int64(2) {
			if got, want := shaping.InShard(&tc.shard, ls), int64(tc.want%2) == tc.shard.Index; got != want {
				t.Errorf("%+v: %v, want %v", tc.shard, got, want)
			}
		}
	}
	if !shaping.InShard(nil, ls) || !shaping.InShard(&backend.Shard{Index: 3}, ls) {
		t.Error("no shard, or one of no parts, must keep all")
	}
}

// TestApplyEqualsCompensate: a backend that does everything and a caller that
// makes up for one which does nothing come to the same answer.
func TestApplyEqualsCompensate(t *testing.T) {
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 3))
		series := randomSeries(r, labelPool)
		ext := lset("cluster", "eu", "replica", "a")
		req := &backend.SeriesRequest{MaxTime: 1, Limit: r.IntN(10), SkipChunks: r.IntN(2) == 0}
		if r.IntN(2) == 0 {
			req.WithoutReplicaLabels = []string{"replica", "b"}[:1+r.IntN(2)]
		}
		if r.IntN(2) == 0 {
			req.Shard = &backend.Shard{Index: r.Int64N(2), Total: 2, By: r.IntN(2) == 0, Labels: []string{"s", "b", "replica"}}
		}
		caps := backend.Capabilities{Sharding: r.IntN(2) == 0, WithoutReplicaLabels: r.IntN(2) == 0, SeriesLimit: r.IntN(2) == 0}
		want, _, err := collect(shaping.Apply(req, ext, stream(r, series)))
		if err != nil {
			t.Fatal(err)
		}
		sent := shaping.Reduce(caps, req)
		if len(sent.WithoutReplicaLabels) > 0 && !caps.WithoutReplicaLabels || sent.Shard != nil && !caps.Sharding || sent.Limit > 0 && !caps.SeriesLimit {
			t.Fatalf("seed %d: an unclaimed field was sent: %+v", seed, sent)
		}
		got, _, err := collect(shaping.Compensate(caps, req, shaping.Apply(sent, ext, stream(r, series))))
		if err != nil {
			t.Fatal(err)
		}
		if d := gocmp.Diff(joined(want), joined(got)); d != "" {
			t.Fatalf("seed %d: %+v with %+v (-apply +compensate):\n%s", seed, req, caps, d)
		}
	}
}

func TestLabelCalls(t *testing.T) {
	ext := lset("region", "eu", "replica", "a")
	m := labels.MustNewMatcher
	other := m(labels.MatchEqual, "foo", "x")
	names := func(stored ...string) func([]*labels.Matcher) ([]string, error) {
		return func([]*labels.Matcher) ([]string, error) { return stored, nil }
	}
	for _, tc := range []struct {
		name   string
		req    backend.LabelNamesRequest
		stored []string
		want   []string
	}{
		{"nothing stored", backend.LabelNamesRequest{}, nil, nil},
		{"union", backend.LabelNamesRequest{}, []string{"z", "a", "region", "a"}, []string{"a", "region", "replica", "z"}},
		{"without replica", backend.LabelNamesRequest{WithoutReplicaLabels: []string{"replica"}}, []string{"a"}, []string{"a", "region"}},
		{"limit after sorting", backend.LabelNamesRequest{Limit: 1}, []string{"z", "a"}, []string{"a"}},
		{"inverted range", backend.LabelNamesRequest{MinTime: 1}, []string{"a"}, nil},
		{"mismatch", backend.LabelNamesRequest{Matchers: []*labels.Matcher{m(labels.MatchEqual, "region", "us")}}, []string{"a"}, nil},
	} {
		got, err := shaping.LabelNames(ext, &tc.req, names(tc.stored...))
		if err != nil || !slices.Equal(got.Values, tc.want) {
			t.Errorf("names, %s: %v, %v", tc.name, got, err)
		}
	}
	for _, tc := range []struct {
		name   string
		req    backend.LabelValuesRequest
		stored []string
		exists bool
		want   []string
	}{
		{"stored", backend.LabelValuesRequest{Name: "foo"}, []string{"b", "", "a", "b"}, true, []string{"a", "b"}},
		{"limit", backend.LabelValuesRequest{Name: "foo", Limit: 1}, []string{"b", "", "a"}, true, []string{"a"}},
		{"external", backend.LabelValuesRequest{Name: "region"}, []string{"inner"}, false, []string{"eu"}},
		{"external, other matches", backend.LabelValuesRequest{Name: "region", Matchers: []*labels.Matcher{other}}, nil, true, []string{"eu"}},
		{"external, other does not", backend.LabelValuesRequest{Name: "region", Matchers: []*labels.Matcher{other}}, nil, false, nil},
		{"removed", backend.LabelValuesRequest{Name: "replica", WithoutReplicaLabels: []string{"replica"}}, []string{"a"}, true, nil},
	} {
		got, err := shaping.LabelValues(ext, &tc.req, names(tc.stored...), func([]*labels.Matcher) (bool, error) { return tc.exists, nil })
		if err != nil || !slices.Equal(got.Values, tc.want) {
			t.Errorf("values, %s: %v, %v", tc.name, got, err)
		}
	}
	if _, err := shaping.LabelValues(ext, &backend.LabelValuesRequest{}, nil, nil); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("empty name: %v", err)
	}
}

func BenchmarkExtend(b *testing.B) {
	var series []backend.Series
	for i := range 10000 {
		series = append(series, backend.Series{Labels: lset("__name__", "http_requests_total", "cluster", "eu", "instance", fmt.Sprintf("%05d", i), "job", "api", "replica", "a")})
	}
	r := rand.New(rand.NewPCG(1, 1))
	for name, f := range map[string]func(iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error]{
		"external": func(s iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
			return shaping.Extend(s, lset("region", "x", "zone", "y"), nil)
		},
		"drop": func(s iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
			return shaping.WithoutLabels(s, []string{"replica"})
		},
		"shard": func(s iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
			return shaping.Sharded(s, &backend.Shard{Total: 2})
		},
		"limit": func(s iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
			return shaping.Limit(s, 1<<30)
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range f(stream(r, series)) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(series)), "ns/series")
		})
	}
}

// TestSplitMatchersOwnsItsResult: the TSDB library sorts matchers in place.
func TestSplitMatchersOwnsItsResult(t *testing.T) {
	ms := []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "a", "1"), labels.MustNewMatcher(labels.MatchEqual, "b", "2")}
	for _, ext := range []labels.Labels{labels.EmptyLabels(), labels.FromStrings("c", "3")} {
		rest, ok := shaping.SplitMatchers(ext, ms)
		if !ok || len(rest) != 2 {
			t.Fatalf("%v %v", rest, ok)
		}
		rest[0], rest[1] = rest[1], rest[0]
		if ms[0].Name != "a" {
			t.Fatal("what SplitMatchers returns is the request's own memory")
		}
	}
}
