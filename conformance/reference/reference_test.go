// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package reference_test

import (
	"context"
	"errors"
	"iter"
	"math"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/reference"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storeapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	fiveMinutes = 300_000
	oneHour     = 3_600_000
)

var (
	whole    = sync.OnceValue(func() *corpus.Corpus { return corpus.New(corpus.Options{}) })
	external = labels.FromStrings("cluster", "eu1", "replica", "r1")
	every    = []backend.Aggregate{backend.AggregateCount, backend.AggregateSum, backend.AggregateMin, backend.AggregateMax, backend.AggregateCounter}
)

func all() backend.Capabilities {
	caps := reference.AllCapabilities()
	caps.Downsampled = true
	return caps
}

func always() *backend.SeriesRequest {
	return &backend.SeriesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64}
}

func equal(name, v string) []*labels.Matcher {
	return []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, name, v)}
}

func collect(t *testing.T, seq iter.Seq2[*backend.Batch, error]) (out []backend.Series) {
	t.Helper()
	for b, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Len() {
			out = append(out, b.At(i))
		}
	}
	return out
}

func samples(t *testing.T, e backend.Encoded) (out []shaping.Sample) {
	t.Helper()
	c, err := chunkenc.FromData(e.Encoding, e.Data)
	if err != nil {
		t.Fatal(err)
	}
	if c.NumSamples() > shaping.MaxSamplesPerChunk {
		t.Errorf("a chunk of %d samples", c.NumSamples())
	}
	it := c.Iterator(nil)
	for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
		x := shaping.Sample{T: it.AtT()}
		switch kind {
		case chunkenc.ValHistogram:
			_, x.H = it.AtHistogram(nil)
		case chunkenc.ValFloatHistogram:
			_, x.FH = it.AtFloatHistogram(nil)
		default:
			_, x.F = it.At()
		}
		out = append(out, x)
	}
	if it.Err() != nil {
		t.Fatal(it.Err())
	}
	return out
}

func same(a, b shaping.Sample) bool {
	switch {
	case a.T != b.T || (a.H == nil) != (b.H == nil) || (a.FH == nil) != (b.FH == nil):
		return false
	case a.H != nil:
		return a.H.Copy().Compact(0).Equals(b.H.Copy().Compact(0))
	case a.FH != nil:
		return a.FH.Copy().Compact(0).Equals(b.FH.Copy().Compact(0))
	}
	return math.Float64bits(a.F) == math.Float64bits(b.F)
}

// check compares raw series, which have to be in order, with all of the corpus.
func check(t *testing.T, got []backend.Series, ext labels.Labels) {
	t.Helper()
	want := map[string][]shaping.Sample{}
	for _, s := range whole().Series {
		want[shaping.ExtendLabels(s.Labels, ext, nil).String()] = append([]shaping.Sample(nil), s.Samples...)
	}
	have := map[string][]shaping.Sample{}
	for i, s := range got {
		if i > 0 && labels.Compare(got[i-1].Labels, s.Labels) > 0 {
			t.Fatalf("%.80s comes after %.80s", s.Labels, got[i-1].Labels)
		}
		for _, c := range s.Chunks {
			list := samples(t, c.Raw)
			if list[0].T != c.MinTime || list[len(list)-1].T != c.MaxTime {
				t.Errorf("%.80s: a chunk says %d to %d", s.Labels, c.MinTime, c.MaxTime)
			}
			have[s.Labels.String()] = append(have[s.Labels.String()], list...)
		}
	}
	// Series that the external replica label makes equal have the same samples.
	for name, list := range have {
		slices.SortStableFunc(list, func(a, b shaping.Sample) int { return int(a.T - b.T) })
		have[name] = slices.CompactFunc(list, same)
		if !slices.EqualFunc(have[name], want[name], same) {
			t.Errorf("%.80s: %d samples, want %d, or others", name, len(have[name]), len(want[name]))
		}
	}
	if len(have) != len(want) {
		t.Errorf("%d series, want %d", len(have), len(want))
	}
}

func TestWhole(t *testing.T) {
	for _, ext := range []labels.Labels{labels.EmptyLabels(), external} {
		b := reference.New(whole(), reference.Options{External: ext, Capabilities: all()})
		check(t, collect(t, b.Series(t.Context(), always())), ext)
		info, err := b.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if lo, hi := whole().Bounds(); info.MinTime != lo || info.MaxTime != hi || (len(info.LabelSets) == 1) == ext.IsEmpty() {
			t.Errorf("info: %+v", info)
		}
	}
}

func TestStoreAPI(t *testing.T) {
	lis, srv, done := bufconn.Listen(1<<20), grpc.NewServer(storeapi.ServerOptions()...), make(chan struct{})
	b := reference.New(whole(), reference.Options{External: external, Capabilities: all()})
	storeapi.NewServer(b, storeapi.ServerConfig{}).Register(srv)
	go func() { defer close(done); _ = srv.Serve(lis) }()
	defer func() { srv.Stop(); <-done }()
	opts, err := storeapi.DialOptions(storeapi.DialConfig{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///bufconn", append(opts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := storeapi.NewClient(conn, storeapi.ClientConfig{Name: "reference"})
	check(t, collect(t, c.Series(t.Context(), always())), external)
	// A peer may write any number in there.
	req := &backend.SeriesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64, BatchSize: math.MaxInt, Matchers: equal("__name__", "cert_matrix")}
	if got := collect(t, c.Series(t.Context(), req)); len(got) != 5 {
		t.Errorf("with a huge batch size: %d series, want 5", len(got))
	}
}

func TestBatches(t *testing.T) {
	b := reference.New(whole(), reference.Options{External: external, Capabilities: all(), BatchSize: 7})
	for size, most := range map[int]int{0: 7, 3: 3, math.MaxInt: len(whole().Series)} {
		req := always()
		req.BatchSize = size
		for batch, err := range b.Series(t.Context(), req) {
			if err != nil {
				t.Fatal(err)
			}
			if batch.Len() > most || batch.Len() > 1 && batch.Bytes() > 1<<20 {
				t.Errorf("batch size %d: a batch of %d series and %d bytes", size, batch.Len(), batch.Bytes())
			}
		}
	}
}

func TestChunkSamples(t *testing.T) {
	b := reference.New(whole(), reference.Options{Capabilities: all(), ChunkSamples: 9})
	got := collect(t, b.Series(t.Context(), always()))
	check(t, got, labels.EmptyLabels())
	for _, s := range got {
		for _, c := range s.Chunks {
			if n := len(samples(t, c.Raw)); n > 9 {
				t.Fatalf("%.80s: a chunk of %d samples, want at most 9", s.Labels, n)
			}
		}
	}
}

// TestUnclaimed: what is not claimed is not done, and what cannot be left out is refused.
func TestUnclaimed(t *testing.T) {
	b := reference.New(whole(), reference.Options{External: external})
	req := always()
	req.Limit, req.Shard, req.WithoutReplicaLabels, req.MaxResolution, req.Aggregates = 1, &backend.Shard{Total: 9}, []string{"replica"}, oneHour, every
	check(t, collect(t, b.Series(t.Context(), req)), external)
	if _, _, err := b.Exemplars(t.Context(), nil, 0, 1); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("exemplars: %v", err)
	}
	if _, _, err := b.MetricMetadata(t.Context(), "", -1); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("metadata: %v", err)
	}
	if _, err := b.LabelValues(t.Context(), &backend.LabelValuesRequest{}); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("label values of no label: %v", err)
	}
	if got := collect(t, b.Series(t.Context(), &backend.SeriesRequest{MinTime: 1})); len(got) > 0 {
		t.Errorf("a reversed range has %d series", len(got))
	}
}

func TestContext(t *testing.T) {
	b := reference.New(whole(), reference.Options{External: external, Capabilities: all()})
	away := errors.New("the caller went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var last error
	n := 0
	for _, err := range b.Series(ctx, always()) {
		last = err
		n++
		cancel(away)
	}
	if !errors.Is(last, away) || n > 3 {
		t.Errorf("after %d batches: %v", n, last)
	}
	_, info := b.Info(ctx)
	_, names := b.LabelNames(ctx, &backend.LabelNamesRequest{})
	_, values := b.LabelValues(ctx, &backend.LabelValuesRequest{Name: "job"})
	_, _, exemplars := b.Exemplars(ctx, nil, 0, 1)
	_, _, metadata := b.MetricMetadata(ctx, "", -1)
	for name, err := range map[string]error{"Info": info, "LabelNames": names, "LabelValues": values, "Exemplars": exemplars, "MetricMetadata": metadata} {
		if !errors.Is(err, away) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLevels: where only downsampled data are, the calls for labels know of them, and
// aggregates are those asked for.
func TestLevels(t *testing.T) {
	b, start := reference.New(whole(), reference.Options{Capabilities: all()}), whole().Start
	lo, hi := start-20*oneHour, start-15*oneHour
	req := &backend.SeriesRequest{MinTime: lo, MaxTime: hi, MaxResolution: oneHour, Aggregates: []backend.Aggregate{backend.AggregateSum}}
	got := collect(t, b.Series(t.Context(), req))
	if len(got) != 3 {
		t.Fatalf("%d series, want 3", len(got))
	}
	for _, c := range got[0].Chunks {
		if a := c.Aggregates; a == nil || !a.Sum.Present() || a.Count.Present() || a.Min.Present() || a.Max.Present() || a.Counter.Present() {
			t.Errorf("aggregates: %+v", a)
		}
	}
	names, err := b.LabelNames(t.Context(), &backend.LabelNamesRequest{MinTime: lo, MaxTime: hi})
	if err != nil || !slices.Equal(names.Values, []string{"__name__", "app"}) {
		t.Errorf("label names: %v, %v", names, err)
	}
	values, err := b.LabelValues(t.Context(), &backend.LabelValuesRequest{Name: "app", MinTime: lo, MaxTime: hi})
	if err != nil || len(values.Values) != 3 {
		t.Errorf("label values: %v, %v", values, err)
	}
}

// TestLevelEndsInChunk: raw samples after the last window are not lost with the chunk
// that they share with samples before it.
func TestLevelEndsInChunk(t *testing.T) {
	ls := labels.FromStrings("__name__", "x")
	s := corpus.Series{Part: corpus.Downsampled, Labels: ls}
	for i := range int64(100) {
		s.Samples = append(s.Samples, shaping.Sample{T: i * 60_000, F: float64(i)})
	}
	c := &corpus.Corpus{Series: []corpus.Series{s}, Levels: []corpus.Level{{Labels: ls, Resolution: fiveMinutes, Windows: []corpus.Window{{T: fiveMinutes - 1, Count: 5, Sum: 10, Max: 4, Counter: 4}}}}}
	b := reference.New(c, reference.Options{Capabilities: all()})
	req := always()
	req.MaxResolution, req.Aggregates = fiveMinutes, every
	var raw []int64
	windows := 0
	for _, s := range collect(t, b.Series(t.Context(), req)) {
		for _, c := range s.Chunks {
			if c.Aggregates != nil {
				windows += len(samples(t, c.Aggregates.Count))
				continue
			}
			for _, x := range samples(t, c.Raw) {
				raw = append(raw, x.T)
			}
		}
	}
	if windows != 1 || len(raw) != 95 || raw[0] != fiveMinutes {
		t.Errorf("%d windows and %d raw samples, want 1 and 95", windows, len(raw))
	}
}

func TestBeside(t *testing.T) {
	b := reference.New(whole(), reference.Options{External: external, Capabilities: all()})
	got, _, err := b.Exemplars(t.Context(), [][]*labels.Matcher{equal("cluster", "eu1")}, math.MinInt64, math.MaxInt64)
	if err != nil || len(got) != len(whole().Exemplars) {
		t.Errorf("%d exemplars, want %d: %v", len(got), len(whole().Exemplars), err)
	}
	meta, _, err := b.MetricMetadata(t.Context(), "", -1)
	if err != nil || len(meta) != len(whole().Metadata) {
		t.Errorf("metadata of %d metrics, want %d: %v", len(meta), len(whole().Metadata), err)
	}
}
