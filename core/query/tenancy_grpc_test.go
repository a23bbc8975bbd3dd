// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/grpcapi"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/sdk/storeapi"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/infopb"
)

// identified is a stream whose caller is known.
type identified struct {
	grpc.ServerStream
	ctx context.Context
}

func (s identified) Context() context.Context { return s.ctx }

func identify(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	return access.WithCaller(ctx, &access.Caller{Method: "test", Subject: strings.Join(md.Get("who"), "")})
}

// dial serves a service over gRPC, with a caller taken from metadata, and returns a
// connection to it.
func dial(t *testing.T, w *tenancy) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(append(storeapi.ServerOptions(),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			return next(identify(ctx), req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			return next(srv, identified{ss, identify(ss.Context())})
		}))...)
	storeapi.NewServer(w.service.Proxy(), storeapi.ServerConfig{Name: "promweave", QueryAPI: true}).Register(srv)
	grpcapi.Register(srv, w.service)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	opts, err := storeapi.DialOptions(storeapi.DialConfig{Credentials: insecure.NewCredentials()})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///x", append(opts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// drain is all that a stream sends, headers and trailers too.
func drain[T any](s grpc.ServerStreamingClient[T], err error) (string, error) {
	var out strings.Builder
	if err != nil {
		return "", err
	}
	for {
		m, err := s.Recv()
		if err != nil {
			h, _ := s.Header()
			fmt.Fprint(&out, h, s.Trailer())
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return out.String(), err
		}
		fmt.Fprintln(&out, m)
	}
}

func unary[T any](m T, err error) (string, error) { return fmt.Sprint(m), err }

// calls are those of all services, with what a tenant may try in them.
func calls(conn *grpc.ClientConn) map[string]func(context.Context) (string, error) {
	var (
		store = storepb.NewStoreClient(conn)
		out   = map[string]func(context.Context) (string, error){}
		all   = &storepb.LabelMatcher{Type: storepb.LabelMatcher_RE, Name: "__name__", Value: ".+"}
		now   = theNow()
	)
	out["info"] = func(ctx context.Context) (string, error) {
		return unary(infopb.NewInfoClient(conn).Info(ctx, &infopb.InfoRequest{}))
	}
	for name, ms := range map[string][]*storepb.LabelMatcher{
		"all": {all}, "none": nil,
		"others": {all, {Type: storepb.LabelMatcher_NEQ, Name: "tenant", Value: "a"}},
		"any":    {{Type: storepb.LabelMatcher_RE, Name: "tenant", Value: ".*"}},
		"theirs": {{Type: storepb.LabelMatcher_RE, Name: "tenant", Value: "S.*"}},
	} {
		for _, partial := range []storepb.PartialResponseStrategy{storepb.PartialResponseStrategy_WARN, storepb.PartialResponseStrategy_ABORT} {
			id := fmt.Sprint(" ", name, " ", partial)
			for _, change := range []struct {
				name string
				do   func(*storepb.SeriesRequest)
			}{
				{"", func(*storepb.SeriesRequest) {}},
				{" skip", func(r *storepb.SeriesRequest) { r.SkipChunks = true }},
				{" limit", func(r *storepb.SeriesRequest) { r.Limit = 100 }},
				{" without tenant", func(r *storepb.SeriesRequest) { r.WithoutReplicaLabels = []string{"tenant"} }},
				{" shard", func(r *storepb.SeriesRequest) {
					r.ShardInfo = &storepb.ShardInfo{TotalShards: 1, By: true, Labels: []string{"tenant"}}
				}},
				{" batches", func(r *storepb.SeriesRequest) { r.ResponseBatchSize = 10 }},
			} {
				out["series"+id+change.name] = func(ctx context.Context) (string, error) {
					r := &storepb.SeriesRequest{MaxTime: math.MaxInt64, Matchers: ms, PartialResponseStrategy: partial}
					change.do(r)
					return drain(store.Series(ctx, r))
				}
			}
			out["names"+id] = func(ctx context.Context) (string, error) {
				return unary(store.LabelNames(ctx, &storepb.LabelNamesRequest{End: math.MaxInt64, Matchers: ms, PartialResponseStrategy: partial}))
			}
			for _, label := range []string{"tenant", "__name__", "job", "cluster"} {
				for _, without := range [][]string{nil, {"tenant"}} {
					out[fmt.Sprint("values ", label, id, without)] = func(ctx context.Context) (string, error) {
						return unary(store.LabelValues(ctx, &storepb.LabelValuesRequest{
							Label: label, End: math.MaxInt64, Matchers: ms, PartialResponseStrategy: partial, WithoutReplicaLabels: without,
						}))
					}
				}
			}
			out["rules"+id] = func(ctx context.Context) (string, error) {
				return drain(storepb.NewRulesClient(conn).Rules(ctx, &storepb.RulesRequest{PartialResponseStrategy: partial}))
			}
			out["targets"+id] = func(ctx context.Context) (string, error) {
				return drain(storepb.NewTargetsClient(conn).Targets(ctx, &storepb.TargetsRequest{PartialResponseStrategy: partial}))
			}
			out["metadata"+id] = func(ctx context.Context) (string, error) {
				return drain(storepb.NewMetadataClient(conn).MetricMetadata(ctx, &storepb.MetricMetadataRequest{Limit: -1, PartialResponseStrategy: partial}))
			}
			out["status"+id] = func(ctx context.Context) (string, error) {
				return drain(storepb.NewStatusClient(conn).TSDBStatistics(ctx, &storepb.TSDBStatisticsRequest{PartialResponseStrategy: partial}))
			}
			for _, q := range []string{`up`, `{__name__=~".+",tenant!="a"} + up`} {
				out["exemplars"+id+q] = func(ctx context.Context) (string, error) {
					return drain(storepb.NewExemplarsClient(conn).Exemplars(ctx, &storepb.ExemplarsRequest{Query: q, End: math.MaxInt64, PartialResponseStrategy: partial}))
				}
			}
		}
	}
	for _, q := range []string{`up`, `{__name__=~".+"}`, `up or {__name__=~".+",tenant!="a"}`, `sum by (tenant) (up)`, `absent(up{tenant!="a"})`, `max_over_time(up[10m:1m])`, `label_replace(up{tenant!="a"}, "tenant", "a", "", "")`} {
		for _, partial := range []bool{true, false} {
			for _, stores := range []string{"", ".*b:10901", ".*"} {
				var match []*storepb.StoreMatchers
				if stores != "" {
					match = []*storepb.StoreMatchers{{LabelMatchers: []*storepb.LabelMatcher{{Type: storepb.LabelMatcher_RE, Name: "__address__", Value: stores}}}}
				}
				id := fmt.Sprint(" ", q, " ", partial, " ", stores)
				out["query"+id] = func(ctx context.Context) (string, error) {
					return drain(storepb.NewQueryClient(conn).Query(ctx, &storepb.QueryRequest{
						Query: q, TimeSeconds: now.Unix(), EnablePartialResponse: partial, EnableDedup: true, ReplicaLabels: []string{"tenant"}, StoreMatchers: match,
					}))
				}
				out["range"+id] = func(ctx context.Context) (string, error) {
					return drain(storepb.NewQueryClient(conn).QueryRange(ctx, &storepb.QueryRangeRequest{
						Query: q, StartTimeSeconds: now.Unix() - 600, EndTimeSeconds: now.Unix(), IntervalSeconds: 60, EnablePartialResponse: partial, StoreMatchers: match,
					}))
				}
			}
		}
	}
	return out
}

// TestTenancyOverGRPC is TestTenancyCannotBeEscaped for what peers speak.
func TestTenancyOverGRPC(t *testing.T) {
	honest := func(e membership.Entry) bool {
		return e.Name != "mine" && e.Name != "mixed" && e.Name != "shared" && e.Name != "store-SECRET-b" && e.Name != "store-SECRET-else"
	}
	for _, hood := range []string{"all", "honest"} {
		pick := func(entries []membership.Entry) []membership.Entry {
			var out []membership.Entry
			for _, e := range entries {
				if hood == "all" || !honest(e) {
					out = append(out, e)
				}
			}
			return out
		}
		w1 := calls(dial(t, live(t, pick(neighbourhood("SECRET-b", 7777777, 0, nil)))))
		w2 := calls(dial(t, live(t, pick(neighbourhood("SECRET-else", 5, 2, nil)))))
		as := func(who string) context.Context { return metadata.AppendToOutgoingContext(t.Context(), "who", who) }
		told, mine := 0, 0
		for name, call := range w1 {
			text, err := call(as("operator"))
			if secret.MatchString(text + fmt.Sprint(err)) {
				told++
			}
			for _, who := range []string{alice, "several"} {
				text, err := call(as(who))
				text += fmt.Sprint(err)
				if found := secret.FindStringIndex(text); found != nil {
					t.Errorf("%s: %s: %s tells …%s…", hood, who, name, text[max(0, found[0]-100):min(len(text), found[1]+100)])
				}
				if strings.Contains(text, "mine") {
					mine++
				}
				if hood == "all" {
					other, err := w2[name](as(who))
					if a, b := stable(text), stable(other+fmt.Sprint(err)); a != b {
						t.Errorf("%s: %s: what another tenant has makes a difference:\n%s\n%s", who, name, a, b)
					}
				}
			}
			if text, err := call(as("")); status.Code(err) != codes.Unauthenticated {
				t.Errorf("%s: nobody gets %s %v", name, text, err)
			}
		}
		if n := len(w1); told < n/2 || mine < n/3 {
			t.Errorf("%s: of %d calls the operator sees the secret in %d, and tenants their own in %d answers", hood, n, told, mine)
		}
	}
}

func TestStatisticsOverGRPCAreForOperators(t *testing.T) {
	conn := dial(t, live(t, neighbourhood("SECRET-b", 7777777, 0, nil)))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "who", alice)
	if _, err := drain(storepb.NewStatusClient(conn).TSDBStatistics(ctx, &storepb.TSDBStatisticsRequest{})); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v", err)
	}
}
