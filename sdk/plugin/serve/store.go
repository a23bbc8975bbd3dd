// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"log/slog"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
	"github.com/promweave/promweave/sdk/storeapi"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/infopb"
)

// storeServer is a configured backend as a StoreAPI endpoint.
type storeServer = storeapi.Server

func newStoreServer(b backend.Backend, name string, log *slog.Logger) *storeServer {
	return storeapi.NewServer(b, storeapi.ServerConfig{Name: name, Logger: log})
}

func (s *Server) useBackend(id uint64) (*instance, func(), error) {
	in, done, err := s.use(id)
	if err == nil && in.backend == nil {
		done()
		return nil, nil, unimplemented("backend: it is a filter")
	}
	return in, done, err
}

// Info implements pluginpb.PluginServer.
func (s *Server) Info(ctx context.Context, m *pluginpb.InfoCall) (out *pluginpb.InfoReply, err error) {
	defer s.guard(ctx, "Info", "", &err)
	in, done, err := s.useBackend(m.GetInstance())
	if err != nil {
		return nil, err
	}
	defer done()
	info, err := in.backend.Info(ctx)
	if err != nil {
		return nil, err
	}
	info.Capabilities = wire.Served(in.backend, info.Capabilities)
	return wire.InfoToWire(&info), nil
}

// LabelNames implements pluginpb.PluginServer.
func (s *Server) LabelNames(ctx context.Context, m *pluginpb.LabelsCall) (out *pluginpb.LabelsReply, err error) {
	defer s.guard(ctx, "LabelNames", "", &err)
	in, done, err := s.useBackend(m.GetInstance())
	if err != nil {
		return nil, err
	}
	defer done()
	req, err := wire.LabelNamesFromWire(m)
	if err != nil {
		return nil, err
	}
	ls, err := in.backend.LabelNames(ctx, req)
	if err != nil {
		return nil, err
	}
	return wire.LabelsToWire(ls), nil
}

// LabelValues implements pluginpb.PluginServer.
func (s *Server) LabelValues(ctx context.Context, m *pluginpb.LabelsCall) (out *pluginpb.LabelsReply, err error) {
	defer s.guard(ctx, "LabelValues", "", &err)
	in, done, err := s.useBackend(m.GetInstance())
	if err != nil {
		return nil, err
	}
	defer done()
	req, err := wire.LabelValuesFromWire(m)
	if err != nil {
		return nil, err
	}
	ls, err := in.backend.LabelValues(ctx, req)
	if err != nil {
		return nil, err
	}
	return wire.LabelsToWire(ls), nil
}

// Series implements pluginpb.PluginServer.
func (s *Server) Series(m *pluginpb.SeriesCall, stream grpc.ServerStreamingServer[pluginpb.SeriesBatch]) (err error) {
	ctx := stream.Context()
	defer s.guard(ctx, "Series", "", &err)
	in, done, err := s.useBackend(m.GetInstance())
	if err != nil {
		return err
	}
	defer done()
	req, err := wire.SeriesCallFromWire(m)
	if err != nil {
		return err
	}
	var w wire.BatchWriter
	for b, err := range in.backend.Series(ctx, req) {
		if err != nil {
			return err
		}
		if err := w.Send(b, stream.Send); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// registerStore registers the thanos services. Each call goes to the instance that
// its metadata name.
func registerStore(r grpc.ServiceRegistrar, s *Server) {
	d := &dispatcher{s: s}
	storepb.RegisterStoreServer(r, d)
	infopb.RegisterInfoServer(r, d)
	storepb.RegisterExemplarsServer(r, d)
	storepb.RegisterMetadataServer(r, d)
	storepb.RegisterRulesServer(r, d)
	storepb.RegisterTargetsServer(r, d)
	storepb.RegisterStatusServer(r, d)
}

type dispatcher struct {
	storepb.UnimplementedStoreServer
	infopb.UnimplementedInfoServer
	storepb.UnimplementedExemplarsServer
	storepb.UnimplementedMetadataServer
	storepb.UnimplementedRulesServer
	storepb.UnimplementedTargetsServer
	storepb.UnimplementedStatusServer

	s *Server
}

func (d *dispatcher) use(ctx context.Context) (*storeServer, func(), error) {
	var id uint64
	var err error
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(pluginpb.InstanceKey); len(v) > 0 {
		if id, err = strconv.ParseUint(v[0], 10, 64); err != nil {
			return nil, nil, status.Errorf(codes.InvalidArgument, "metadata key %q is %q, which is no instance id", pluginpb.InstanceKey, v[0])
		}
	} else if id, err = d.s.only(); err != nil {
		return nil, nil, err
	}
	in, done, err := d.s.useBackend(id)
	if err != nil {
		return nil, nil, err
	}
	return in.store, done, nil
}

func unary[A, R any](d *dispatcher, ctx context.Context, arg A, call func(*storeServer, context.Context, A) (R, error)) (R, error) {
	st, done, err := d.use(ctx)
	if err != nil {
		var none R
		return none, err
	}
	defer done()
	out, err := call(st, ctx, arg)
	return out, wire.Mark(err)
}

func streaming[A any, M any](d *dispatcher, arg A, stream grpc.ServerStreamingServer[M], call func(*storeServer, A, grpc.ServerStreamingServer[M]) error) error {
	st, done, err := d.use(stream.Context())
	if err != nil {
		return err
	}
	defer done()
	return wire.Mark(call(st, arg, stream))
}

func (d *dispatcher) Info(ctx context.Context, m *infopb.InfoRequest) (*infopb.InfoResponse, error) {
	return unary(d, ctx, m, (*storeServer).Info)
}

func (d *dispatcher) Series(m *storepb.SeriesRequest, st grpc.ServerStreamingServer[storepb.SeriesResponse]) error {
	return streaming(d, m, st, (*storeServer).Series)
}

func (d *dispatcher) LabelNames(ctx context.Context, m *storepb.LabelNamesRequest) (*storepb.LabelNamesResponse, error) {
	return unary(d, ctx, m, (*storeServer).LabelNames)
}

func (d *dispatcher) LabelValues(ctx context.Context, m *storepb.LabelValuesRequest) (*storepb.LabelValuesResponse, error) {
	return unary(d, ctx, m, (*storeServer).LabelValues)
}

func (d *dispatcher) Exemplars(m *storepb.ExemplarsRequest, st grpc.ServerStreamingServer[storepb.ExemplarsResponse]) error {
	return streaming(d, m, st, (*storeServer).Exemplars)
}

func (d *dispatcher) MetricMetadata(m *storepb.MetricMetadataRequest, st grpc.ServerStreamingServer[storepb.MetricMetadataResponse]) error {
	return streaming(d, m, st, (*storeServer).MetricMetadata)
}

func (d *dispatcher) Rules(m *storepb.RulesRequest, st grpc.ServerStreamingServer[storepb.RulesResponse]) error {
	return streaming(d, m, st, (*storeServer).Rules)
}

func (d *dispatcher) Targets(m *storepb.TargetsRequest, st grpc.ServerStreamingServer[storepb.TargetsResponse]) error {
	return streaming(d, m, st, (*storeServer).Targets)
}

func (d *dispatcher) TSDBStatistics(m *storepb.TSDBStatisticsRequest, st grpc.ServerStreamingServer[storepb.TSDBStatisticsResponse]) error {
	return streaming(d, m, st, (*storeServer).TSDBStatistics)
}

var errNothingToServe = errors.New("nothing is registered: call plugin.Filter or store.Backend in an init function")
