// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"context"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a correct backend over a few series, with its external labels apart.
type memory struct {
	ext    labels.Labels
	series []backend.Series // in order of stored labels
	info   backend.Info
	fail   error // after all series
	notice []backend.Notice
	asked  []*backend.SeriesRequest
}

func (m *memory) Info(context.Context) (backend.Info, error) { return m.info, nil }

func (m *memory) matching(lo, hi int64, rest []*labels.Matcher) []backend.Series {
	var out []backend.Series
	for _, s := range m.series {
		// A stored label that an external one hides is not there for matchers.
		if !shaping.Matches(s.Labels, rest) {
			continue
		}
		var chunks []backend.Chunk
		for _, c := range s.Chunks {
			if c.MinTime <= hi && c.MaxTime >= lo {
				chunks = append(chunks, c)
			}
		}
		if len(chunks) > 0 {
			out = append(out, backend.Series{Labels: s.Labels, Chunks: chunks})
		}
	}
	return out
}

func (m *memory) Series(_ context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	m.asked = append(m.asked, req)
	rest, ok := shaping.SplitMatchers(m.ext, req.Matchers)
	if !ok {
		return backend.None()
	}
	return shaping.Apply(req, m.ext, func(yield func(*backend.Batch, error) bool) {
		if len(m.notice) > 0 && !yield(backend.NewNotices(m.notice...), nil) {
			return
		}
		for _, s := range m.matching(req.MinTime, req.MaxTime, rest) {
			b := backend.NewBatch(1)
			b.Append(s)
			if !yield(b, nil) {
				return
			}
		}
		if m.fail != nil {
			yield(nil, m.fail)
		}
	})
}

func (m *memory) LabelNames(_ context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	ls, err := shaping.LabelNames(m.ext, req, func(rest []*labels.Matcher) (names []string, _ error) {
		for _, s := range m.matching(req.MinTime, req.MaxTime, rest) {
			s.Labels.Range(func(l labels.Label) { names = append(names, l.Name) })
		}
		return names, m.fail
	})
	if err == nil {
		ls.Notices = m.notice
	}
	return ls, err
}

func (m *memory) LabelValues(_ context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	ls, err := shaping.LabelValues(m.ext, req, func(rest []*labels.Matcher) (values []string, _ error) {
		for _, s := range m.matching(req.MinTime, req.MaxTime, rest) {
			values = append(values, s.Labels.Get(req.Name))
		}
		return values, m.fail
	}, func(rest []*labels.Matcher) (bool, error) {
		return len(m.matching(req.MinTime, req.MaxTime, rest)) > 0, m.fail
	})
	if err == nil {
		ls.Notices = m.notice
	}
	return ls, err
}

// dial serves with register on a connection in memory.
func dial(t testing.TB, register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	if opts == nil {
		opts = ServerOptions()
	}
	lis := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(opts...)
	register(srv)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(lis)
	}()
	dc := DialConfig{Compression: "snappy"}
	if _, ok := t.(*testing.B); ok {
		dc.Compression = "none"
	}
	dopts, err := DialOptions(dc)
	if err != nil {
		t.Fatal(err)
	}
	dopts = append(dopts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	conn, err := grpc.NewClient("passthrough:///memory", dopts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		srv.Stop()
		<-done
	})
	return conn
}

// through is a client of a server of b.
func through(t testing.TB, b backend.Backend) *Client {
	return NewClient(dial(t, NewServer(b, ServerConfig{Name: "mem"}).Register), ClientConfig{Name: "peer"})
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
				text := fmt.Sprint(c.MinTime, c.MaxTime, c.Raw)
				if c.Aggregates != nil {
					text += fmt.Sprint(*c.Aggregates)
				}
				chunks = append(chunks, text)
			}
		}
		slices.Sort(chunks)
		out = append(out, series[i].Labels.String()+" "+strings.Join(chunks, " "))
		i = j
	}
	return out
}

func randomMemory(r *rand.Rand) *memory {
	m := &memory{ext: labels.FromStrings("cluster", "eu", "replica", "a")}
	sets := map[string]labels.Labels{}
	for range r.IntN(30) {
		b := labels.NewBuilder(labels.EmptyLabels())
		b.Set("__name__", []string{"", "up", "down"}[r.IntN(3)])
		for _, n := range []string{"A", "b", "cluster", "job", "replica", "zone"} {
			if r.IntN(2) == 0 {
				b.Set(n, []string{"1", "2"}[r.IntN(2)])
			}
		}
		if ls := b.Labels(); !ls.IsEmpty() {
			sets[ls.String()] = ls
		}
	}
	for _, ls := range sets {
		var chunks []backend.Chunk
		for range 1 + r.IntN(3) {
			t := r.Int64N(100)
			cs, err := shaping.EncodeSamples([]shaping.Sample{{T: t, F: r.Float64()}, {T: t + 5, F: r.Float64()}})
			if err != nil {
				panic(err)
			}
			if r.IntN(4) == 0 {
				cs[0].Aggregates = &backend.AggregateChunks{Count: cs[0].Raw, Max: cs[0].Raw}
				cs[0].Raw = backend.Encoded{}
			}
			chunks = append(chunks, cs...)
		}
		m.series = append(m.series, backend.Series{Labels: ls, Chunks: chunks})
	}
	slices.SortFunc(m.series, func(a, b backend.Series) int { return labels.Compare(a.Labels, b.Labels) })
	m.info = backend.Info{Component: "sidecar", LabelSets: []labels.Labels{m.ext}, MinTime: math.MinInt64, MaxTime: math.MaxInt64}
	return m
}

func randomMatchers(r *rand.Rand) (out []*labels.Matcher) {
	for range r.IntN(4) {
		out = append(out, labels.MustNewMatcher(labels.MatchType(r.IntN(4)),
			[]string{"__name__", "cluster", "job", "replica", "none"}[r.IntN(5)], []string{"", "1", "up", "eu", ".*", "up|1|eu|a", "a"}[r.IntN(7)]))
	}
	return out
}

func randomSeriesRequest(r *rand.Rand) *backend.SeriesRequest {
	req := &backend.SeriesRequest{
		MinTime: r.Int64N(100), MaxTime: r.Int64N(120), Matchers: randomMatchers(r),
		SkipChunks: r.IntN(2) == 0, Limit: r.IntN(6), BatchSize: []int{0, 1, 2, 64}[r.IntN(4)], PartialAllowed: r.IntN(2) == 0,
	}
	if r.IntN(3) == 0 {
		req.MinTime, req.MaxTime = math.MinInt64, math.MaxInt64
	}
	if r.IntN(3) == 0 {
		req.Shard = &backend.Shard{Index: r.Int64N(2), Total: 2, By: r.IntN(2) == 0, Labels: []string{"job", "replica"}}
	}
	if r.IntN(3) == 0 {
		req.WithoutReplicaLabels = []string{"replica"}
	}
	return req
}
