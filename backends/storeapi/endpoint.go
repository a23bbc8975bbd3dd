// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"context"
	"iter"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"
	grpcresolver "google.golang.org/grpc/resolver"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storeapi"
	"github.com/promweave/promweave/sdk/storepb"
)

// endpoint is a client that closes its connection when it is retired and the
// last call has ended. That takes no grace period, which would have to be as
// long as the longest query.
type endpoint struct {
	client *storeapi.Client
	conn   *grpc.ClientConn
	name   string

	mu      sync.Mutex
	calls   int
	retired bool
	closed  bool
}

var (
	_ backend.Backend           = (*endpoint)(nil)
	_ backend.ExemplarsBackend  = (*endpoint)(nil)
	_ backend.MetadataBackend   = (*endpoint)(nil)
	_ backend.RulesBackend      = (*endpoint)(nil)
	_ backend.TargetsBackend    = (*endpoint)(nil)
	_ backend.StatisticsBackend = (*endpoint)(nil)
)

func newEndpoint(name string, conn *grpc.ClientConn) *endpoint {
	return &endpoint{name: name, conn: conn, client: storeapi.NewClient(conn, storeapi.ClientConfig{Name: name})}
}

// begin counts a call in.
func (e *endpoint) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.retired {
		return backend.Errorf(backend.ErrUnavailable, "%s: the endpoint was removed", e.name)
	}
	e.calls++
	return nil
}

func (e *endpoint) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls--
	if e.retired && e.calls == 0 {
		_ = e.closeLocked()
	}
}

// retire lets no new calls in, and closes once those that run have ended.
func (e *endpoint) retire() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.retired = true
	if e.calls == 0 {
		_ = e.closeLocked()
	}
}

// close does not wait for calls.
func (e *endpoint) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.retired = true
	return e.closeLocked()
}

func (e *endpoint) closeLocked() error {
	if e.closed {
		return nil
	}
	e.closed = true
	return e.conn.Close()
}

func (e *endpoint) Info(ctx context.Context) (backend.Info, error) {
	if err := e.begin(); err != nil {
		return backend.Info{}, err
	}
	defer e.end()
	return e.client.Info(ctx)
}

func (e *endpoint) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		if err := e.begin(); err != nil {
			yield(nil, err)
			return
		}
		defer e.end()
		e.client.Series(ctx, req)(yield)
	}
}

func (e *endpoint) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.end()
	return e.client.LabelNames(ctx, req)
}

func (e *endpoint) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.end()
	return e.client.LabelValues(ctx, req)
}

func (e *endpoint) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	if err := e.begin(); err != nil {
		return nil, nil, err
	}
	defer e.end()
	return e.client.Exemplars(ctx, selectors, minTime, maxTime)
}

func (e *endpoint) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	if err := e.begin(); err != nil {
		return nil, nil, err
	}
	defer e.end()
	return e.client.MetricMetadata(ctx, metric, limit)
}

func (e *endpoint) Rules(ctx context.Context, req *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	if err := e.begin(); err != nil {
		return nil, nil, err
	}
	defer e.end()
	return e.client.Rules(ctx, req)
}

func (e *endpoint) Targets(ctx context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	if err := e.begin(); err != nil {
		return nil, nil, err
	}
	defer e.end()
	return e.client.Targets(ctx, state)
}

func (e *endpoint) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	if err := e.begin(); err != nil {
		return nil, nil, err
	}
	defer e.end()
	return e.client.Statistics(ctx, limit)
}

// lost stands for a name that led to no endpoint yet.
type lost struct{ why atomic.Pointer[string] }

func (l *lost) set(why string) { l.why.Store(&why) }

func (l *lost) err() error { return backend.Errorf(backend.ErrUnavailable, "%s", *l.why.Load()) }

func (l *lost) Info(context.Context) (backend.Info, error) { return backend.Info{}, l.err() }

func (l *lost) Series(context.Context, *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return backend.Fail(l.err())
}

func (l *lost) LabelNames(context.Context, *backend.LabelNamesRequest) (*backend.Labels, error) {
	return nil, l.err()
}

func (l *lost) LabelValues(context.Context, *backend.LabelValuesRequest) (*backend.Labels, error) {
	return nil, l.err()
}

// group is one connection to all endpoints, which gRPC uses in turn.
type group struct {
	*endpoint
	list *addressList
}

const roundRobin = `{"loadBalancingConfig":[{"round_robin":{}}]}`

func newGroup(e *Endpoints, name string) (*group, error) {
	g := &group{list: &addressList{}}
	conn, err := e.dial(g.list.Scheme()+":///group", "", grpc.WithResolvers(g.list), grpc.WithDefaultServiceConfig(roundRobin))
	if err != nil {
		return nil, err
	}
	g.endpoint = newEndpoint(name, conn)
	return g, nil
}

func (g *group) update(found []expected) backend.Member {
	var here []grpcresolver.Address
	var gone []string
	for _, x := range found {
		if x.gone != "" {
			gone = append(gone, x.gone)
			continue
		}
		// The name is what TLS expects in the certificate.
		here = append(here, grpcresolver.Address{Addr: x.addr, ServerName: x.serverName})
	}
	g.list.set(here)
	m := backend.Member{Name: g.name, Backend: g.endpoint}
	if len(here) == 0 {
		// With one of them left the data are all there.
		m.Gone = strings.Join(gone, "; ")
		if m.Gone == "" {
			m.Gone = "no endpoint is listed"
		}
	}
	return m
}

// addressList tells a gRPC connection its addresses.
type addressList struct {
	mu    sync.Mutex
	conn  grpcresolver.ClientConn
	addrs []grpcresolver.Address
}

func (*addressList) Scheme() string                            { return "promweave-group" }
func (*addressList) ResolveNow(grpcresolver.ResolveNowOptions) {}

func (l *addressList) Build(_ grpcresolver.Target, cc grpcresolver.ClientConn, _ grpcresolver.BuildOptions) (grpcresolver.Resolver, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = cc
	l.push()
	return l, nil
}

func (l *addressList) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = nil
}

func (l *addressList) set(addrs []grpcresolver.Address) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addrs = addrs
	l.push()
}

func (l *addressList) push() {
	if l.conn != nil {
		// An error says that the balancer wants to be told again; every refresh does.
		_ = l.conn.UpdateState(grpcresolver.State{Addresses: l.addrs})
	}
}
