// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"net"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storeapi"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/infopb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broken sends what no store should.
type broken struct {
	storepb.UnimplementedStoreServer
	infopb.UnimplementedInfoServer
	asked *storepb.SeriesRequest
}

func (b *broken) Info(context.Context, *infopb.InfoRequest) (*infopb.InfoResponse, error) {
	return &infopb.InfoResponse{ComponentType: "odd", Store: &infopb.StoreInfo{MinTime: 1, MaxTime: 2, SupportsSharding: true}}, nil
}

func (b *broken) Series(m *storepb.SeriesRequest, st grpc.ServerStreamingServer[storepb.SeriesResponse]) error {
	b.asked = m
	set := func(pairs ...string) *storepb.Series {
		s := &storepb.Series{}
		for i := 0; i < len(pairs); i += 2 {
			s.Labels = append(s.Labels, &storepb.Label{Name: pairs[i], Value: pairs[i+1]})
		}
		return s
	}
	if err := st.Send(storepb.NewSeriesResponse(set("b", "1", "a", ""))); err != nil {
		return err
	}
	if err := st.Send(storepb.NewBatchResponse([]*storepb.Series{set("a", "2"), set("a", "1")})); err != nil {
		return err
	}
	return status.Error(codes.ResourceExhausted, "enough")
}

func (b *broken) LabelNames(context.Context, *storepb.LabelNamesRequest) (*storepb.LabelNamesResponse, error) {
	return &storepb.LabelNamesResponse{Names: []string{"b", "a", "a"}, Warnings: []string{"half of it"}}, nil
}

func dial(t *testing.T, b *broken) *Endpoint {
	t.Helper()
	l, srv, done := bufconn.Listen(1<<16), grpc.NewServer(storeapi.ServerOptions()...), make(chan struct{})
	storepb.RegisterStoreServer(srv, b)
	infopb.RegisterInfoServer(srv, b)
	go func() { defer close(done); _ = srv.Serve(l) }()
	opts, err := storeapi.DialOptions(storeapi.DialConfig{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///b", append(opts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); srv.Stop(); <-done })
	return New(conn)
}

// TestAsItIs: nothing is added to a request, and nothing is mended in an answer.
func TestAsItIs(t *testing.T) {
	b := &broken{}
	e := dial(t, b)
	var got []string
	var end error
	req := &backend.SeriesRequest{MinTime: 5, MaxTime: 6, Limit: 7, SkipChunks: true, Shard: &backend.Shard{Index: 1, Total: 2}}
	for batch, err := range e.Series(t.Context(), req) {
		if err != nil {
			end = err
			break
		}
		for i := range batch.Len() {
			got = append(got, batch.At(i).Labels.String())
		}
	}
	if want := []string{`{b="1", a=""}`, `{a="2"}`, `{a="1"}`}; len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(end, backend.ErrLimit) {
		t.Errorf("the end is %v, want a limit", end)
	}
	if len(b.asked.GetMatchers()) != 0 || b.asked.GetLimit() != 7 || b.asked.GetMinTime() != 5 || b.asked.GetShardInfo().GetTotalShards() != 2 || b.asked.GetResponseBatchSize() != 0 {
		t.Errorf("asked for %v", b.asked)
	}
	names, err := e.LabelNames(t.Context(), &backend.LabelNamesRequest{})
	if err != nil || len(names.Values) != 3 || len(names.Notices) != 1 || names.Notices[0].Kind != backend.NoticeMissing {
		t.Errorf("names %v, %v", names, err)
	}
	if _, err := e.LabelValues(t.Context(), &backend.LabelValuesRequest{Name: "a"}); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("values: %v, want unsupported", err)
	}
	info, err := e.Info(t.Context())
	if c := info.Capabilities; err != nil || !c.Sharding || c.WithoutReplicaLabels || c.Downsampled || c.SeriesLimit || !c.NativeHistograms {
		t.Errorf("info %+v, %v", info, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range e.Series(ctx, req) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
}
