// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package backend_test

import (
	"context"
	"fmt"
	"iter"
	"math"
	"net"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storeapi"
)

// thermometers is a whole backend: a few series, their external labels, and
// package shaping for everything that the contract asks of their form.
type thermometers struct {
	external labels.Labels
	readings map[string][]shaping.Sample // by room
}

func (b *thermometers) Info(context.Context) (backend.Info, error) {
	return backend.Info{
		LabelSets: []labels.Labels{b.external},
		MinTime:   0, MaxTime: math.MaxInt64,
		// shaping.Apply does these, so that they may be claimed.
		Capabilities: backend.Capabilities{Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true, Completeness: true},
	}, nil
}

// stored yields what is stored and matches, in order of the stored labels.
func (b *thermometers) stored(minTime, maxTime int64, ms []*labels.Matcher) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		out := backend.NewBatch(len(b.readings))
		for room, readings := range b.readings {
			ls := labels.FromStrings("__name__", "temperature_celsius", "room", room)
			if !shaping.Matches(ls, ms) {
				continue
			}
			chunks, err := shaping.EncodeSamples(readings)
			if err != nil {
				yield(nil, err)
				return
			}
			if len(chunks) > 0 && chunks[0].MinTime <= maxTime && chunks[len(chunks)-1].MaxTime >= minTime {
				out.Append(backend.Series{Labels: ls, Chunks: chunks})
			}
		}
		yield(out, nil)
	}
}

func (b *thermometers) Series(_ context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	rest, ok := shaping.SplitMatchers(b.external, req.Matchers)
	if !ok {
		return backend.None() // another cluster is meant
	}
	// A Go map has no order, so it is sorted first.
	return shaping.Apply(req, b.external, shaping.Resort(b.stored(req.MinTime, req.MaxTime, rest), labels.Compare))
}

func (b *thermometers) LabelNames(_ context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	return shaping.LabelNames(b.external, req, func(rest []*labels.Matcher) (names []string, err error) {
		for batch, err := range b.stored(req.MinTime, req.MaxTime, rest) {
			if err != nil {
				return nil, err
			}
			for i := range batch.Len() {
				batch.At(i).Labels.Range(func(l labels.Label) { names = append(names, l.Name) })
			}
		}
		return names, nil
	})
}

func (b *thermometers) LabelValues(_ context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	values := func(rest []*labels.Matcher) (values []string, err error) {
		for batch, err := range b.stored(req.MinTime, req.MaxTime, rest) {
			if err != nil {
				return nil, err
			}
			for i := range batch.Len() {
				values = append(values, batch.At(i).Labels.Get(req.Name))
			}
		}
		return values, nil
	}
	return shaping.LabelValues(b.external, req, values, func(rest []*labels.Matcher) (bool, error) {
		v, err := values(rest)
		return len(v) > 0, err
	})
}

// Example serves a backend over gRPC and asks it as Promweave, or a Thanos
// querier, would.
func Example() {
	b := &thermometers{
		external: labels.FromStrings("site", "attic"),
		readings: map[string][]shaping.Sample{
			"north": {{T: 1000, F: 18.5}, {T: 2000, F: 18.75}},
			"south": {{T: 1000, F: 21}},
		},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	srv := grpc.NewServer(storeapi.ServerOptions()...)
	storeapi.NewServer(b, storeapi.ServerConfig{Name: "thermometers"}).Register(srv)
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()

	opts, err := storeapi.DialOptions(storeapi.DialConfig{Credentials: insecure.NewCredentials()})
	if err != nil {
		panic(err)
	}
	conn, err := grpc.NewClient(l.Addr().String(), opts...)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	req := &backend.SeriesRequest{MaxTime: 10_000, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "site", "attic")}}
	for batch, err := range storeapi.NewClient(conn, storeapi.ClientConfig{}).Series(context.Background(), req) {
		if err != nil {
			panic(err)
		}
		for i := range batch.Len() {
			fmt.Println(batch.At(i).Labels, len(batch.At(i).Chunks))
		}
	}
	// Output:
	// {__name__="temperature_celsius", room="north", site="attic"} 1
	// {__name__="temperature_celsius", room="south", site="attic"} 1
}
