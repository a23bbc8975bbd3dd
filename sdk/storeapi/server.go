// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/infopb"
)

// maxFrameBytes is where a frame is cut, as in Thanos.
const maxFrameBytes = 1 << 20

// maxFrameSeries bounds response_batch_size, which a peer chooses.
const maxFrameSeries = 4096

// ServerConfig are the settings of a [Server]. The zero value is complete.
type ServerConfig struct {
	// Name of the backend in errors and logs.
	Name string
	// QueryAPI says in Info that the same gRPC server has thanos.Query, by which a
	// querier hands over whole queries.
	QueryAPI bool
	// Logger gets panics of the backend, and notices that are not sent.
	Logger *slog.Logger
}

// Server serves a backend as a StoreAPI endpoint: thanos.Store and
// thanos.info.Info, and thanos.Exemplars, Metadata, Rules, Targets and Status
// where the backend has the optional interface.
//
// What the backend does not claim, the server does itself, so that peers, who
// cannot be told about all of it, get sharding, replica-label removal and limits
// in any case.
type Server struct {
	storepb.UnimplementedStoreServer
	infopb.UnimplementedInfoServer
	storepb.UnimplementedExemplarsServer
	storepb.UnimplementedMetadataServer
	storepb.UnimplementedRulesServer
	storepb.UnimplementedTargetsServer
	storepb.UnimplementedStatusServer

	b        backend.Backend
	name     string
	log      *slog.Logger
	queryAPI bool
	// caps are the claims as last heard of. A claim always holds (rule I-3), so
	// that they may be old.
	caps atomic.Pointer[backend.Capabilities]
}

// NewServer returns a server for b, which it does not close.
func NewServer(b backend.Backend, cfg ServerConfig) *Server {
	s := &Server{b: b, name: cfg.Name, log: cfg.Logger, queryAPI: cfg.QueryAPI}
	if s.name == "" {
		s.name = fmt.Sprintf("%T", b)
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Register registers all services that the backend can answer.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	storepb.RegisterStoreServer(r, s)
	infopb.RegisterInfoServer(r, s)
	if _, ok := s.b.(backend.ExemplarsBackend); ok {
		storepb.RegisterExemplarsServer(r, s)
	}
	if _, ok := s.b.(backend.MetadataBackend); ok {
		storepb.RegisterMetadataServer(r, s)
	}
	if _, ok := s.b.(backend.RulesBackend); ok {
		storepb.RegisterRulesServer(r, s)
	}
	if _, ok := s.b.(backend.TargetsBackend); ok {
		storepb.RegisterTargetsServer(r, s)
	}
	if _, ok := s.b.(backend.StatisticsBackend); ok {
		storepb.RegisterStatusServer(r, s)
	}
}

// guard makes an error of a panic in the backend, and a status of an error.
func (s *Server) guard(ctx context.Context, call string, err *error) {
	if p := recover(); p != nil {
		s.log.Error("backend panicked", "backend", s.name, "call", call, "panic", p, "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "backend %s panicked in %s: %v; this is a bug of the backend", s.name, call, p)
		return
	}
	if _, ok := (*err).(interface{ GRPCStatus() *status.Status }); *err != nil && !ok {
		*err = toStatus(ctx, *err)
	}
}

// Info implements thanos.info.Info.
func (s *Server) Info(ctx context.Context, _ *infopb.InfoRequest) (_ *infopb.InfoResponse, err error) {
	defer s.guard(ctx, "Info", &err)
	info, err := s.info(ctx)
	if err != nil {
		return nil, err
	}
	out := InfoToWire(&info)
	if s.queryAPI {
		out.Query = &infopb.QueryAPIInfo{}
	}
	return out, nil
}

func (s *Server) info(ctx context.Context) (backend.Info, error) {
	info, err := s.b.Info(ctx)
	if err != nil {
		return info, err
	}
	caps := info.Capabilities
	s.caps.Store(&caps)
	info.Capabilities.Sharding = true
	info.Capabilities.WithoutReplicaLabels = true
	c := &info.Capabilities
	_, ok := s.b.(backend.ExemplarsBackend)
	c.Exemplars = c.Exemplars && ok
	_, ok = s.b.(backend.MetadataBackend)
	c.Metadata = c.Metadata && ok
	_, ok = s.b.(backend.RulesBackend)
	c.Rules = c.Rules && ok
	_, ok = s.b.(backend.TargetsBackend)
	c.Targets = c.Targets && ok
	_, ok = s.b.(backend.StatisticsBackend)
	c.Statistics = c.Statistics && ok
	return info, nil
}

// claims are the capabilities of the backend. One that cannot say now is taken
// for the least capable.
func (s *Server) claims(ctx context.Context) backend.Capabilities {
	if c := s.caps.Load(); c != nil {
		return *c
	}
	if _, err := s.info(ctx); err != nil {
		return backend.Capabilities{}
	}
	return *s.caps.Load()
}

// Series implements thanos.Store.
func (s *Server) Series(m *storepb.SeriesRequest, stream grpc.ServerStreamingServer[storepb.SeriesResponse]) (err error) {
	ctx := stream.Context()
	defer s.guard(ctx, "Series", &err)
	req, err := SeriesRequestFromWire(m)
	if err != nil {
		return err
	}
	seq := s.series(ctx, req)
	f := newFramer(stream, req.BatchSize)
	for b, err := range seq {
		if err != nil {
			// What came before the error is valid.
			if ferr := f.flush(); ferr != nil {
				return ferr
			}
			return err
		}
		if err := s.sendNotices(f, req.PartialAllowed, b.Notices()); err != nil {
			return err
		}
		for i := range b.Len() {
			if err := f.add(b.At(i)); err != nil {
				return fmt.Errorf("series %s: %w", b.At(i).Labels, err)
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return f.flush()
}

// series does what the backend does not claim.
func (s *Server) series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	if len(req.WithoutReplicaLabels) == 0 && req.Shard == nil && req.Limit == 0 {
		return s.b.Series(ctx, req)
	}
	caps := s.claims(ctx)
	return shaping.Compensate(caps, req, s.b.Series(ctx, shaping.Reduce(caps, req)))
}

func (s *Server) sendNotices(f *framer, partialAllowed bool, ns []backend.Notice) error {
	if len(ns) == 0 {
		return nil
	}
	warnings, err := s.warnings(partialAllowed, ns)
	for _, w := range warnings {
		if err := f.warn(w); err != nil {
			return err
		}
	}
	return err
}

// warnings are what to send of the notices, or an error if something is missing
// and the peer cannot use the rest.
func (s *Server) warnings(partialAllowed bool, ns []backend.Notice) ([]string, error) {
	for _, n := range ns {
		if n.Kind != backend.NoticeMissing {
			s.log.Debug("notice", "backend", s.name, "text", n.Text)
		}
	}
	w := missing(ns)
	if len(w) > 0 && !partialAllowed {
		return nil, status.Error(codes.Aborted, strings.Join(w, "; "))
	}
	return w, nil
}

// LabelNames implements thanos.Store.
func (s *Server) LabelNames(ctx context.Context, m *storepb.LabelNamesRequest) (_ *storepb.LabelNamesResponse, err error) {
	defer s.guard(ctx, "LabelNames", &err)
	req, err := LabelNamesRequestFromWire(m)
	if err != nil {
		return nil, err
	}
	ls, err := s.b.LabelNames(ctx, req)
	if err != nil {
		return nil, err
	}
	w, err := s.warnings(req.PartialAllowed, ls.Notices)
	return &storepb.LabelNamesResponse{Names: ls.Values, Warnings: w}, err
}

// LabelValues implements thanos.Store.
func (s *Server) LabelValues(ctx context.Context, m *storepb.LabelValuesRequest) (_ *storepb.LabelValuesResponse, err error) {
	defer s.guard(ctx, "LabelValues", &err)
	req, err := LabelValuesRequestFromWire(m)
	if err != nil {
		return nil, err
	}
	ls, err := s.b.LabelValues(ctx, req)
	if err != nil {
		return nil, err
	}
	w, err := s.warnings(req.PartialAllowed, ls.Notices)
	return &storepb.LabelValuesResponse{Values: ls.Values, Warnings: w}, err
}

// framer puts series into frames. Its messages are used again for the next frame,
// which is safe because gRPC has encoded a message when Send returns.
type framer struct {
	stream  grpc.ServerStreamingServer[storepb.SeriesResponse]
	perSend int // series a frame; 0: one, and not as a batch
	batch   []*storepb.Series
	bytes   int

	series slab[storepb.Series]
	labels slab[storepb.Label]
	aggrs  slab[storepb.AggrChunk]
	chunks slab[storepb.Chunk]
}

func newFramer(stream grpc.ServerStreamingServer[storepb.SeriesResponse], batchSize int) *framer {
	f := &framer{stream: stream}
	if batchSize > 1 {
		f.perSend = min(batchSize, maxFrameSeries)
	}
	return f
}

// add takes a series, in pieces if it is too large for a frame.
func (f *framer) add(s backend.Series) error {
	for {
		n, size := 0, int(s.Labels.ByteSize())
		for n < len(s.Chunks) && (n == 0 || size+s.Chunks[n].Size() <= maxFrameBytes) {
			size += s.Chunks[n].Size()
			n++
		}
		if len(f.batch) > 0 && f.bytes+size > maxFrameBytes {
			if err := f.flush(); err != nil {
				return err
			}
		}
		m, err := f.message(s.Labels, s.Chunks[:n])
		if err != nil {
			return err
		}
		f.batch = append(f.batch, m)
		f.bytes += size
		if len(f.batch) >= max(f.perSend, 1) {
			if err := f.flush(); err != nil {
				return err
			}
		}
		if s.Chunks = s.Chunks[n:]; len(s.Chunks) == 0 {
			return nil
		}
	}
}

func (f *framer) message(ls labels.Labels, chunks []backend.Chunk) (*storepb.Series, error) {
	m := f.series.next()
	m.Labels, m.Chunks = m.Labels[:0], m.Chunks[:0]
	ls.Range(func(l labels.Label) {
		p := f.labels.next()
		p.Name, p.Value = l.Name, l.Value
		m.Labels = append(m.Labels, p)
	})
	for i := range chunks {
		c := &chunks[i]
		p := f.aggrs.next()
		p.MinTime, p.MaxTime = c.MinTime, c.MaxTime
		var err error
		set := func(to **storepb.Chunk, e backend.Encoded) {
			*to = nil
			if err == nil && e.Present() {
				*to, err = f.encoded(e)
			}
		}
		a := c.Aggregates
		if a == nil {
			a = &backend.AggregateChunks{}
		}
		set(&p.Raw, c.Raw)
		set(&p.Count, a.Count)
		set(&p.Sum, a.Sum)
		set(&p.Min, a.Min)
		set(&p.Max, a.Max)
		set(&p.Counter, a.Counter)
		if err != nil {
			return nil, err
		}
		m.Chunks = append(m.Chunks, p)
	}
	return m, nil
}

func (f *framer) encoded(e backend.Encoded) (*storepb.Chunk, error) {
	enc, err := storepb.EncodingFromTSDB(e.Encoding)
	if err != nil {
		return nil, err
	}
	p := f.chunks.next()
	p.Type, p.Data, p.Hash = enc, e.Data, storepb.Hash(e.Data)
	return p, nil
}

func (f *framer) flush() error {
	if len(f.batch) == 0 {
		return nil
	}
	var m *storepb.SeriesResponse
	if f.perSend == 0 {
		m = storepb.NewSeriesResponse(f.batch[0])
	} else {
		m = storepb.NewBatchResponse(f.batch)
	}
	err := f.stream.Send(m)
	f.batch, f.bytes = f.batch[:0], 0
	f.series.reset()
	f.labels.reset()
	f.aggrs.reset()
	f.chunks.reset()
	return err
}

func (f *framer) warn(text string) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.stream.Send(storepb.NewWarningResponse(strings.ToValidUTF8(text, "\uFFFD")))
}

// slab hands out messages one by one, and all of them again after reset.
type slab[T any] struct {
	blocks     [][]T
	block, pos int
}

func (s *slab[T]) next() *T {
	for s.block < len(s.blocks) && s.pos == len(s.blocks[s.block]) {
		s.block, s.pos = s.block+1, 0
	}
	if s.block == len(s.blocks) {
		s.blocks = append(s.blocks, make([]T, 16<<min(len(s.blocks), 8)))
	}
	p := &s.blocks[s.block][s.pos]
	s.pos++
	return p
}

func (s *slab[T]) reset() { s.block, s.pos = 0, 0 }
