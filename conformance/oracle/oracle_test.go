// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestHash compares the hash with a library's, at every length that takes another way.
func TestHash(t *testing.T) {
	b := make([]byte, 200)
	for i := range b {
		b[i] = byte(i * 131)
	}
	for n := range b {
		if got, want := xxh64(b[:n]), xxhash.Sum64(b[:n]); got != want {
			t.Errorf("%d bytes: %x, want %x", n, got, want)
		}
	}
}

var (
	all   = Claims{Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true, StaleMarkers: true, NativeHistograms: true}
	start = corpus.DefaultStart
)

// small is three series of three samples a minute apart.
func small() *corpus.Corpus {
	c := &corpus.Corpus{Start: start}
	for i, n := range []string{"a", "b", "c"} {
		var samples []shaping.Sample
		for k := range 3 {
			samples = append(samples, shaping.Sample{T: start + int64(k)*60_000, F: float64(10*i + k)})
		}
		c.Series = append(c.Series, corpus.Series{Part: corpus.Base, Labels: labels.FromStrings("__name__", "m", "n", n), Samples: samples})
	}
	return c
}

func right(t *testing.T, o *Oracle) []backend.Series {
	t.Helper()
	var out []backend.Series
	for _, s := range o.Series() {
		chunks, err := shaping.EncodeSamples(slices.Clone(s.Samples))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, backend.Series{Labels: s.Labels, Chunks: chunks})
	}
	return out
}

func kinds(v []Violation) string {
	var out []string
	for _, x := range v {
		out = append(out, string(x.Kind))
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ", ")
}

func TestJudge(t *testing.T) {
	req := func(lo, hi int64) *backend.SeriesRequest { return &backend.SeriesRequest{MinTime: lo, MaxTime: hi} }
	one := func(samples ...shaping.Sample) []backend.Chunk {
		c, err := shaping.EncodeSamples(samples)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, c := range []struct {
		name string
		req  *backend.SeriesRequest
		edit func([]backend.Series) []backend.Series
		want string
	}{
		{"right", req(start, start+120_000), nil, ""},
		{"whole chunks", req(start+60_000, start+60_000), nil, ""},
		{"all time", req(math.MinInt64, math.MaxInt64), nil, ""},
		{"a chunk over a range without samples may come", req(start+1, start+2), nil, ""},
		{"and need not", req(start+1, start+2), func([]backend.Series) []backend.Series { return nil }, ""},
		{"outside of everything", req(start-2, start-1), nil, "extra series"},
		{"reversed", req(start+1, start), nil, "extra series"},
		{"one too few", req(start, start), func(s []backend.Series) []backend.Series { return s[1:] }, "missing series"},
		{"twice", req(start, start), func(s []backend.Series) []backend.Series { return append(s, s[0]) }, "reappears"},
		{"pieces in a row", req(start, start), func(s []backend.Series) []backend.Series { return slices.Insert(s, 1, s[0]) }, ""},
		{"wrong order", req(start, start), func(s []backend.Series) []backend.Series { s[0], s[1] = s[1], s[0]; return s }, "order"},
		{"cut samples", req(start, start), func(s []backend.Series) []backend.Series {
			s[0].Chunks = one(shaping.Sample{T: start, F: 0})
			return s
		}, ""},
		{"a sample too few", req(start, start+60_000), func(s []backend.Series) []backend.Series {
			s[0].Chunks = one(shaping.Sample{T: start, F: 0})
			return s
		}, "missing sample"},
		{"a sample too many, out of range", req(start, start), func(s []backend.Series) []backend.Series {
			s[0].Chunks = one(shaping.Sample{T: start, F: 0}, shaping.Sample{T: start + 61_000, F: 1})
			return s
		}, "extra sample"},
		{"another value", req(start, start), func(s []backend.Series) []backend.Series {
			s[1].Chunks = one(shaping.Sample{T: start, F: 11})
			return s
		}, "wrong value"},
		{"the sign of zero", req(start, start), func(s []backend.Series) []backend.Series {
			s[0].Chunks = one(shaping.Sample{T: start, F: math.Copysign(0, -1)})
			return s
		}, "sign of zero"},
		{"bounds of chunks", req(start, start), func(s []backend.Series) []backend.Series {
			s[2].Chunks[0].MaxTime = start
			return s
		}, "chunk bounds"},
		{"rubbish", req(start, start), func(s []backend.Series) []backend.Series {
			s[2].Chunks[0].Raw.Data = []byte{0, 9, 1}
			return s
		}, "missing sample, undecodable chunk"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := New(small(), nil, all)
			got := right(t, o)
			if c.edit != nil {
				got = c.edit(got)
			}
			if k := kinds(o.Judge(c.req, &Got{Pieces: got})); k != c.want {
				t.Errorf("found %q, want %q", k, c.want)
			}
		})
	}
}

// TestUnclaimed: what is not claimed may be ignored or honoured, and not done by halves.
func TestUnclaimed(t *testing.T) {
	ext := labels.FromStrings("replica", "r1")
	claimed, not := New(small(), []labels.Labels{ext}, all), New(small(), []labels.Labels{ext}, Claims{})
	everything := right(t, claimed)
	bare := slices.Clone(everything)
	for i := range bare {
		bare[i].Labels = labels.NewBuilder(bare[i].Labels).Del("replica").Labels()
	}
	half := slices.Clone(everything)
	half[1] = bare[1]
	req := &backend.SeriesRequest{MinTime: start, MaxTime: start, WithoutReplicaLabels: []string{"replica"}}
	limit := &backend.SeriesRequest{MinTime: start, MaxTime: start, Limit: 2}
	var shard *backend.SeriesRequest
	var mine []backend.Series
	for i := range int64(3) {
		shard = &backend.SeriesRequest{MinTime: start, MaxTime: start, Shard: &backend.Shard{Index: i, Total: 3}}
		mine = slices.DeleteFunc(slices.Clone(everything), func(s backend.Series) bool { return !InShard(shard.Shard, s.Labels) })
		if len(mine) > 0 && len(mine) < 3 {
			break
		}
	}
	for i, c := range []struct {
		o      *Oracle
		req    *backend.SeriesRequest
		answer []backend.Series
		ok     bool
	}{
		{claimed, req, bare, true}, {claimed, req, everything, false}, {claimed, req, half, false},
		{not, req, bare, true}, {not, req, everything, true}, {not, req, half, false},
		{claimed, limit, everything[:2], true}, {claimed, limit, everything, false}, {claimed, limit, everything[1:], false}, {claimed, limit, everything[:1], false},
		{not, limit, everything[:2], true}, {not, limit, everything, true}, {not, limit, everything[1:], false}, {not, limit, everything[:1], false},
		{claimed, shard, mine, true}, {claimed, shard, everything, false}, {not, shard, mine, true}, {not, shard, everything, true}, {not, shard, nil, false},
	} {
		if bad := c.o.Judge(c.req, &Got{Pieces: c.answer}); (len(bad) == 0) != c.ok {
			t.Errorf("case %d, %s: %v", i, Text(c.req), bad)
		}
	}
}

func TestLists(t *testing.T) {
	for i, c := range []struct {
		got, must, may string
		limit          int
		want           string
	}{
		{"a b", "a b", "a b c", 0, ""}, {"a b c", "a b", "a b c", 0, ""}, {"a", "a b", "a b", 0, "missing series"}, {"a b d", "a b", "a b", 0, "extra series"},
		{"b a", "a b", "a b", 0, "unsorted list"}, {"a a b", "a b", "a b", 0, "unsorted list"}, {"a b", "a b c", "a b c", 2, ""}, {"a b c", "a b c", "a b c", 2, "too many"},
		{"b c", "a b c", "a b c", 2, "missing series"}, {"a", "a b c", "a b c", 2, "missing series"}, {"", "", "", 0, ""},
	} {
		if k := kinds(JudgeList(strings.Fields(c.got), strings.Fields(c.must), strings.Fields(c.may), c.limit)); k != c.want {
			t.Errorf("case %d: found %q, want %q", i, k, c.want)
		}
	}
}

// TestShrink finds the one matcher that matters.
func TestShrink(t *testing.T) {
	eq := func(n string) *labels.Matcher { return labels.MustNewMatcher(labels.MatchEqual, n, "x") }
	req := &backend.SeriesRequest{MinTime: 5, MaxTime: 6, Matchers: []*labels.Matcher{eq("a"), eq("b"), eq("c")}, Limit: 3, BatchSize: 2, WithoutReplicaLabels: []string{"r"}}
	calls := 0
	got := Shrink(req, [2]int64{0, 100}, 25, func(r *backend.SeriesRequest) bool {
		calls++
		return slices.ContainsFunc(r.Matchers, func(m *labels.Matcher) bool { return m.Name == "b" }) && r.Limit == 3
	})
	if text := Text(got); len(got.Matchers) != 1 || got.Matchers[0].Name != "b" || got.MinTime != 0 || got.MaxTime != 100 || got.BatchSize != 0 || got.WithoutReplicaLabels != nil {
		t.Errorf("it is not short: %s", text)
	}
	if len(req.Matchers) != 3 || calls > 25 {
		t.Errorf("%d calls, and the request has %d matchers", calls, len(req.Matchers))
	}
}

// TestGenerator: the same seed asks the same, another one something else.
func TestGenerator(t *testing.T) {
	o := New(corpus.New(corpus.Options{Generated: 20}), nil, all)
	texts := func(seed uint64) (out []string) {
		for g, i := o.NewGenerator(seed), 0; i < 30; i++ {
			out = append(out, Text(g.Request()))
		}
		return out
	}
	if a, b := texts(1), texts(1); !slices.Equal(a, b) {
		t.Error("the same seed asks something else")
	}
	if a, b := fmt.Sprint(texts(1)), fmt.Sprint(texts(2)); a == b {
		t.Error("another seed asks the same")
	}
}
