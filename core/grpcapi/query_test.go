// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package grpcapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/promweave/promweave/core/grpcapi"
	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve is a Query API over stores, and a client of it.
func serve(t *testing.T, cfg query.Config, entries ...membership.Entry) storepb.QueryClient {
	t.Helper()
	set := membership.New(entries, membership.Options{})
	t.Cleanup(set.Close)
	set.Refresh(t.Context())
	cfg.ReplicaLabels = []string{"replica"}
	s, err := query.New(set, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return client(t, s)
}

func client(t *testing.T, q grpcapi.Queries) storepb.QueryClient {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	srv := grpc.NewServer(storepb.ServerCodec())
	grpcapi.Register(srv, q)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(storepb.ClientCodec()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return storepb.NewQueryClient(conn)
}

func entry(name string, b backend.Backend) membership.Entry {
	return membership.Entry{Spec: membership.Spec{Name: name, Kind: "test"}, Backend: b}
}

func gauge(replica string, n int) backend.Backend {
	var all []backend.Series
	for i := range n {
		all = append(all, fakestore.Floats(labels.FromStrings("__name__", "g", "i", fmt.Sprint(i)), []int64{10_000, 20_000, 30_000}, []float64{1, 2, float64(3 + i)}))
	}
	return fakestore.Holding(labels.FromStrings("replica", replica), all...)
}

// frames are what the API sent, one word each with what is in it.
func frames[T any, P interface {
	*T
	GetWarnings() string
	GetTimeseries() *prompb.TimeSeries
	GetTimeseriesBatch() *storepb.TimeSeriesBatch
	GetStats() *storepb.QueryStats
}](t *testing.T, stream grpc.ServerStreamingClient[T], err error) (out []string, final error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	show := func(ts *prompb.TimeSeries) string {
		var b strings.Builder
		for _, l := range ts.Labels {
			fmt.Fprintf(&b, "%s=%s,", l.Name, l.Value)
		}
		for _, s := range ts.Samples {
			fmt.Fprintf(&b, " %d:%g", s.Timestamp, s.Value)
		}
		for _, h := range ts.Histograms {
			fmt.Fprintf(&b, " %d:hist(%g,%g,%v)", h.Timestamp, h.GetCountFloat(), h.Sum, h.PositiveCounts)
		}
		return b.String()
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		p := P(m)
		switch {
		case p.GetWarnings() != "":
			out = append(out, "warnings "+p.GetWarnings())
		case p.GetTimeseries() != nil:
			out = append(out, "series "+show(p.GetTimeseries()))
		case p.GetTimeseriesBatch() != nil:
			var all []string
			for _, ts := range p.GetTimeseriesBatch().Series {
				all = append(all, show(ts))
			}
			out = append(out, "batch "+strings.Join(all, "; "))
		case p.GetStats() != nil:
			out = append(out, "stats")
		}
	}
}

func TestQuery(t *testing.T) {
	c := serve(t, query.Config{}, entry("a", gauge("a", 3)), entry("b", gauge("b", 3)))
	for _, x := range []struct {
		name string
		req  *storepb.QueryRequest
		want []string
	}{
		{"deduplicated", &storepb.QueryRequest{Query: `g{i="0"}`, TimeSeconds: 30, EnableDedup: true}, []string{"series __name__=g,i=0, 30000:3", "stats"}},
		{"apart", &storepb.QueryRequest{Query: `g{i="0"}`, TimeSeconds: 30}, []string{"series __name__=g,i=0,replica=a, 30000:3", "series __name__=g,i=0,replica=b, 30000:3", "stats"}},
		{"other replica label", &storepb.QueryRequest{Query: `count(g)`, TimeSeconds: 30, EnableDedup: true, ReplicaLabels: []string{"i", "replica"}}, []string{"series  30000:1", "stats"}},
		{
			"batches", &storepb.QueryRequest{Query: `sort(g)`, TimeSeconds: 30, EnableDedup: true, ResponseBatchSize: 2},
			[]string{"batch __name__=g,i=0, 30000:3; __name__=g,i=1, 30000:4", "batch __name__=g,i=2, 30000:5", "stats"},
		},
		{"scalar", &storepb.QueryRequest{Query: `1+1`, TimeSeconds: 30}, []string{"series  30000:2", "stats"}},
		{"string", &storepb.QueryRequest{Query: `"x"`, TimeSeconds: 30}, []string{"stats"}},
		{"matrix", &storepb.QueryRequest{Query: `g[30s]`, TimeSeconds: 30}, []string{"stats"}},
		{"nothing", &storepb.QueryRequest{Query: `none`, TimeSeconds: 30}, []string{"stats"}},
		{"other engine", &storepb.QueryRequest{Query: `sum(g)`, TimeSeconds: 30, EnableDedup: true, Engine: storepb.EngineType_thanos}, []string{"series  30000:12", "stats"}},
		{
			"one store", &storepb.QueryRequest{Query: `g{i="0"}`, TimeSeconds: 30, StoreMatchers: []*storepb.StoreMatchers{{LabelMatchers: []*storepb.LabelMatcher{{Name: "__address__", Value: "b"}}}}},
			[]string{"series __name__=g,i=0,replica=b, 30000:3", "stats"},
		},
		{
			"lookback", &storepb.QueryRequest{Query: `g{i="0"}`, TimeSeconds: 50, EnableDedup: true, LookbackDeltaSeconds: 10},
			[]string{"stats"},
		},
	} {
		t.Run(x.name, func(t *testing.T) {
			stream, err := c.Query(t.Context(), x.req)
			got, err := frames(t, stream, err)
			if err != nil || strings.Join(got, "\n") != strings.Join(x.want, "\n") {
				t.Errorf("%v\ngot  %q\nwant %q", err, got, x.want)
			}
		})
	}
}

func TestQueryRange(t *testing.T) {
	c := serve(t, query.Config{}, entry("a", gauge("a", 1)))
	stream, err := c.QueryRange(t.Context(), &storepb.QueryRangeRequest{Query: "g", StartTimeSeconds: 10, EndTimeSeconds: 30, IntervalSeconds: 10, EnableDedup: true})
	got, err := frames(t, stream, err)
	if want := []string{"series __name__=g,i=0, 10000:1 20000:2 30000:3", "stats"}; err != nil || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%v\ngot  %q\nwant %q", err, got, want)
	}
	// Both shards together are the whole.
	total := 0
	for i := range int64(2) {
		stream, err := c.QueryRange(t.Context(), &storepb.QueryRangeRequest{
			Query: "g", StartTimeSeconds: 10, EndTimeSeconds: 30, IntervalSeconds: 10, EnableDedup: true,
			ShardInfo: &storepb.ShardInfo{ShardIndex: i, TotalShards: 2, By: false},
		})
		got, err := frames(t, stream, err)
		if err != nil {
			t.Fatal(err)
		}
		total += len(got) - 1
	}
	if total != 1 {
		t.Errorf("two shards hold %d series together, want 1", total)
	}
}

func TestHistogram(t *testing.T) {
	h := &histogram.FloatHistogram{Schema: 0, Count: 6, Sum: 9, PositiveSpans: []histogram.Span{{Offset: 0, Length: 2}}, PositiveBuckets: []float64{2, 4}}
	chunk := chunkenc.NewFloatHistogramChunk()
	app, err := chunk.Appender()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := app.AppendFloatHistogram(nil, 10_000, h, false); err != nil {
		t.Fatal(err)
	}
	c := serve(t, query.Config{}, entry("a", fakestore.Holding(labels.EmptyLabels(), backend.Series{
		Labels: labels.FromStrings("__name__", "h"),
		Chunks: []backend.Chunk{{MinTime: 10_000, MaxTime: 10_000, Raw: backend.Encoded{Encoding: chunk.Encoding(), Data: chunk.Bytes()}}},
	})))
	stream, err := c.Query(t.Context(), &storepb.QueryRequest{Query: "h", TimeSeconds: 10})
	got, err := frames(t, stream, err)
	if want := "series __name__=h, 10000:hist(6,9,[2 4])"; err != nil || got[0] != want {
		t.Errorf("%v %q, want %q", err, got, want)
	}
}

// TestFaults: what is missing is said before the data; without partial answers it
// is an error, and so is what is wrong with the request.
func TestFaults(t *testing.T) {
	broken := fakestore.Holding(labels.FromStrings("cluster", "eu1"))
	broken.Wrap = func(context.Context, iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
		return backend.Fail(errors.New("no disk"))
	}
	c := serve(t, query.Config{Limits: limits.NewProcess(limits.Config{Series: 2})}, entry("a", gauge("a", 1)), entry("broken", broken), entry("many", gauge("z", 9)))
	only := func(name string) []*storepb.StoreMatchers {
		return []*storepb.StoreMatchers{{LabelMatchers: []*storepb.LabelMatcher{{Name: "__address__", Type: storepb.LabelMatcher_RE, Value: name}}}}
	}
	stream, err := c.Query(t.Context(), &storepb.QueryRequest{Query: "g", TimeSeconds: 30, EnableDedup: true, EnablePartialResponse: true, StoreMatchers: only("a|broken")})
	got, err := frames(t, stream, err)
	if err != nil || len(got) != 3 || !strings.HasPrefix(got[0], "warnings ") || !strings.Contains(got[0], "broken") || !strings.Contains(got[0], "no disk") {
		t.Errorf("partial answer: %v %q", err, got)
	}
	for _, x := range []struct {
		req  *storepb.QueryRequest
		code codes.Code
		text string
	}{
		{&storepb.QueryRequest{Query: "g", StoreMatchers: only("a|broken")}, codes.Aborted, "broken"},
		{&storepb.QueryRequest{Query: "g{"}, codes.InvalidArgument, "parse"},
		{&storepb.QueryRequest{Query: ""}, codes.InvalidArgument, "empty"},
		{&storepb.QueryRequest{Query: "g", Engine: 7}, codes.InvalidArgument, "engine"},
		{&storepb.QueryRequest{Query: "g", TimeoutSeconds: -1}, codes.InvalidArgument, "timeout_seconds"},
		{&storepb.QueryRequest{Query: "g", LookbackDeltaSeconds: 1 << 40}, codes.InvalidArgument, "lookback_delta_seconds"},
		{&storepb.QueryRequest{Query: "g", StoreMatchers: only("(")}, codes.InvalidArgument, "store matcher"},
		{&storepb.QueryRequest{Query: "g", TimeSeconds: 30, StoreMatchers: only("many")}, codes.ResourceExhausted, "query.limits.series"},
	} {
		stream, err := c.Query(t.Context(), x.req)
		got, err := frames(t, stream, err)
		if status.Code(err) != x.code || !strings.Contains(fmt.Sprint(err), x.text) {
			t.Errorf("%v: %v after %q, want %s with %q", x.req, err, got, x.code, x.text)
		}
	}
	r, err := c.QueryRange(t.Context(), &storepb.QueryRangeRequest{Query: "g", StartTimeSeconds: 10, EndTimeSeconds: 30})
	if _, err := frames(t, r, err); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "step") {
		t.Errorf("no interval: %v", err)
	}
}

type panicking struct{ *query.Service }

func (panicking) Instant(context.Context, *query.Request) (*query.Result, error) { panic("on purpose") }

// TestPanicIsAnError: it ends the call and not the process.
func TestPanicIsAnError(t *testing.T) {
	s, err := query.New(membership.New(nil, membership.Options{}), query.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c := client(t, panicking{s})
	stream, err := c.Query(t.Context(), &storepb.QueryRequest{Query: "1"})
	if _, err := frames(t, stream, err); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("%v", err)
	}
	for _, r := range []*storepb.QueryRangeRequest{
		{Query: "1", EndTimeSeconds: 1_000_000, IntervalSeconds: 1},
		{Query: "1", EndTimeSeconds: 1, IntervalSeconds: 18446744074},
		{Query: "1", EndTimeSeconds: 1, IntervalSeconds: -1},
		{Query: "1", StartTimeSeconds: 9223372036854775, EndTimeSeconds: 9223372036854775, IntervalSeconds: 1, Engine: storepb.EngineType_thanos},
	} {
		stream, err := c.QueryRange(t.Context(), r)
		if _, err := frames(t, stream, err); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", r, err)
		}
	}
}
