// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/plugin/store"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
	"github.com/promweave/promweave/sdk/pluginpb/convert"
)

// maxInstances is far above what any configuration has; it ends a host that
// configures in a loop.
const maxInstances = 10_000

// Config says what a Server serves.
type Config struct {
	// Filter or Backend is what is served; one of them is set.
	Filter  filter.Filter
	Backend store.Spec
	// Health, if set, says what is wrong, "" for nothing. It must answer at once.
	Health func() string
	// IdleTime after which an instance that nobody has called is released: its host
	// is gone without a word, or configures it again at the next call. 0 is never.
	IdleTime time.Duration
	// Logger gets panics and what the plug-in is asked to be.
	Logger *slog.Logger
}

// Server serves a filter or a backend by the contract in pluginpb, and a backend
// as a StoreAPI endpoint as well: see Register.
type Server struct {
	pluginpb.UnimplementedPluginServer

	cfg Config
	log *slog.Logger
	now func() time.Time

	mu        sync.Mutex
	instances map[uint64]*instance
	// first is the instance that calls without an id go to, if there is one only.
	first uint64
}

// instance is one configuration of the plug-in.
type instance struct {
	id      uint64
	name    string
	filter  filter.Instance
	backend backend.Backend
	store   *storeServer

	// Guarded by Server.mu.
	calls    int
	used     time.Time
	released bool
}

// NewServer returns a server of what cfg names.
func NewServer(cfg Config) (*Server, error) {
	if (cfg.Filter == nil) == (cfg.Backend == nil) {
		return nil, errors.New("serve: a plug-in offers one filter or one backend; register exactly one, in an init function")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, log: cfg.Logger, now: time.Now, instances: map[uint64]*instance{}}, nil
}

// Register registers promweave.plugin.v1.Plugin and, for a backend, the thanos
// services. Their calls name the instance in the metadata key pluginpb.InstanceKey;
// calls without it, as from a Thanos querier, go to the only instance there is.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	pluginpb.RegisterPluginServer(r, s)
	if s.cfg.Backend != nil {
		registerStore(r, s)
	}
}

// Close releases all instances; those in use when their calls have ended.
func (s *Server) Close() error {
	s.mu.Lock()
	var ids []uint64
	for id := range s.instances {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	var all []error
	for _, id := range ids {
		all = append(all, s.release(id))
	}
	return errors.Join(all...)
}

// Describe implements pluginpb.PluginServer.
func (s *Server) Describe(ctx context.Context, _ *pluginpb.DescribeRequest) (out *pluginpb.Description, err error) {
	defer s.guard(ctx, "Describe", "", &err)
	return s.description(), nil
}

func (s *Server) description() *pluginpb.Description {
	kind, d := pluginpb.Kind_KIND_FILTER, filter.Description{}
	if s.cfg.Filter != nil {
		d = s.cfg.Filter.Describe()
	} else {
		kind, d = pluginpb.Kind_KIND_BACKEND, s.cfg.Backend.Describe()
	}
	d.Minor = pluginpb.Minor
	return wire.DescriptionToWire(&d, kind)
}

// Configure implements pluginpb.PluginServer.
func (s *Server) Configure(ctx context.Context, m *pluginpb.ConfigureRequest) (out *pluginpb.ConfigureReply, err error) {
	defer s.guard(ctx, "Configure", m.GetName(), &err)
	c, err := convert.FromConfigureRequest(m)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "configure: %w", err)
	}
	return s.configure(ctx, c)
}

func (s *Server) configure(ctx context.Context, c *filter.Config) (*pluginpb.ConfigureReply, error) {
	s.sweep()
	in, out := &instance{name: c.Name}, &pluginpb.ConfigureReply{}
	if s.cfg.Filter != nil {
		f, err := s.cfg.Filter.Configure(c)
		if err != nil {
			return nil, asInvalid(err)
		}
		if f == nil {
			return nil, errors.New("Configure of the filter returned neither an instance nor an error")
		}
		plan := f.Plan()
		in.filter, out.Plan = f, convert.ToPlan(&plan)
	} else {
		b, err := s.cfg.Backend.Configure(c)
		if err != nil {
			return nil, asInvalid(err)
		}
		if b == nil {
			return nil, errors.New("Configure of the backend returned neither a backend nor an error")
		}
		in.backend, in.store = b, newStoreServer(b, c.Name, s.log)
		// What it claims comes again with Info; a store that is not there now claims nothing.
		quick, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if info, err := b.Info(quick); err == nil {
			out.Capabilities = wire.CapabilitiesToWire(wire.Served(b, info.Capabilities))
		}
	}
	if err := s.add(in); err != nil {
		closeInstance(in)
		return nil, err
	}
	out.Instance = in.id
	s.log.Debug("configured", "instance", in.name)
	return out, nil
}

// ConfigureDefault makes the instance for callers that name none, from a JSON object.
func (s *Server) ConfigureDefault(ctx context.Context, doc []byte) (err error) {
	defer s.guard(ctx, "Configure", "default", &err)
	c, err := wire.Complete(&filter.Config{Name: "default", JSON: doc})
	if err != nil {
		return err
	}
	out, err := s.configure(ctx, c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.first = out.GetInstance()
	s.mu.Unlock()
	return nil
}

// asInvalid gives a kind to the errors of Configure that have none.
func asInvalid(err error) error {
	if k := backend.Kind(err); k != backend.ErrInternal || errors.Is(err, backend.ErrInternal) {
		return err
	}
	return backend.Errorf(backend.ErrInvalid, "%w", err)
}

// add gives the instance its id. Ids are random, so that one from an earlier life
// of this plug-in, or from another replica of it, is unknown here and never another
// instance's.
func (s *Server) add(in *instance) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.instances) >= maxInstances {
		return backend.Errorf(backend.ErrLimit, "there are %d instances already; release some, or restart the plug-in", maxInstances)
	}
	for in.id == 0 || s.instances[in.id] != nil {
		var b [8]byte
		_, _ = rand.Read(b[:])
		in.id = binary.LittleEndian.Uint64(b[:])
	}
	in.used = s.now()
	s.instances[in.id] = in
	return nil
}

// sweep releases what has been idle for too long.
func (s *Server) sweep() {
	if s.cfg.IdleTime == 0 {
		return
	}
	s.mu.Lock()
	var ids []uint64
	for id, in := range s.instances {
		if in.calls == 0 && id != s.first && s.now().Sub(in.used) > s.cfg.IdleTime {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	for _, id := range ids {
		if err := s.release(id); err != nil {
			s.log.Warn("releasing an idle instance", "error", err)
		}
	}
}

// Release implements pluginpb.PluginServer.
func (s *Server) Release(ctx context.Context, m *pluginpb.ReleaseRequest) (_ *pluginpb.ReleaseReply, err error) {
	defer s.guard(ctx, "Release", "", &err)
	return &pluginpb.ReleaseReply{}, s.release(m.GetInstance())
}

func (s *Server) release(id uint64) error {
	s.mu.Lock()
	in := s.instances[id]
	if in == nil {
		s.mu.Unlock()
		return nil
	}
	delete(s.instances, id)
	in.released = true
	idle := in.calls == 0
	s.mu.Unlock()
	if idle {
		return closeInstance(in)
	}
	return nil
}

func closeInstance(in *instance) error {
	for _, v := range []any{in.filter, in.backend} {
		if c, ok := v.(backend.Closer); ok {
			return c.Close()
		}
	}
	return nil
}

// use returns an instance and what ends its use. An id that is not known is
// NOT_FOUND, by which a host knows that it has to configure again.
func (s *Server) use(id uint64) (*instance, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.instances[id]
	if in == nil {
		return nil, nil, status.Errorf(codes.NotFound, "instance %d is not configured here: the plug-in has been restarted, or the instance was released; call Configure", id)
	}
	in.calls++
	return in, func() {
		s.mu.Lock()
		in.calls--
		in.used = s.now()
		last := in.released && in.calls == 0
		s.mu.Unlock()
		if last {
			if err := closeInstance(in); err != nil {
				s.log.Warn("closing an instance", "instance", in.name, "error", err)
			}
		}
	}, nil
}

// only returns the instance for calls that name none.
func (s *Server) only() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first != 0 {
		return s.first, nil
	}
	if len(s.instances) == 1 {
		for id := range s.instances {
			return id, nil
		}
	}
	return 0, status.Errorf(codes.FailedPrecondition, "%d instances are configured: name one in the metadata key %q, or start the plug-in with --config", len(s.instances), pluginpb.InstanceKey)
}

// Health implements pluginpb.PluginServer.
func (s *Server) Health(ctx context.Context, _ *pluginpb.HealthRequest) (out *pluginpb.HealthReply, err error) {
	defer s.guard(ctx, "Health", "", &err)
	out = &pluginpb.HealthReply{}
	if s.cfg.Health != nil {
		out.Problem = s.cfg.Health()
	}
	return out, nil
}

// guard makes an error of a panic, and a status of an error.
func (s *Server) guard(ctx context.Context, call, name string, err *error) {
	if p := recover(); p != nil {
		s.log.Error("a call panicked; this is a bug of the plug-in", "call", call, "instance", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = wire.PanicStatus(fmt.Sprintf("%s panicked: %v", call, p))
		return
	}
	if *err == nil {
		return
	}
	if _, ok := (*err).(interface{ GRPCStatus() *status.Status }); !ok {
		*err = wire.Status(ctx, *err)
	}
}

func unimplemented(what string) error {
	return backend.Errorf(backend.ErrUnsupported, "this plug-in has no %s", what)
}

// Request implements pluginpb.PluginServer.
func (s *Server) Request(ctx context.Context, m *pluginpb.RequestCall) (out *pluginpb.RequestReply, err error) {
	in, done, err := s.use(m.GetInstance())
	if err != nil {
		return nil, err
	}
	defer done()
	defer s.guard(ctx, "Request", in.name, &err)
	f, ok := in.filter.(filter.Requester)
	if !ok {
		return nil, unimplemented("request hook")
	}
	c, err := convert.FromRequestCall(m)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "request: %w", err)
	}
	r, err := f.Request(c)
	if err != nil {
		return nil, err
	}
	return convert.ToRequestReply(r), nil
}

// Select implements pluginpb.PluginServer.
func (s *Server) Select(ctx context.Context, m *pluginpb.SelectCall) (out *pluginpb.SelectReply, err error) {
	in, done, err := s.use(m.GetInstance())
	if err != nil {
		return nil, err
	}
	defer done()
	defer s.guard(ctx, "Select", in.name, &err)
	f, ok := in.filter.(filter.Selector)
	if !ok {
		return nil, unimplemented("select hook")
	}
	c, err := convert.FromSelectCall(m)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "select: %w", err)
	}
	r, err := f.Select(c)
	if err != nil {
		return nil, err
	}
	return convert.ToSelectReply(r), nil
}

// rewriting is what one call of Rewrite needs, kept for the next one.
type rewriting struct {
	in  frame.Frame
	out frame.Reply
}

var rewritings = sync.Pool{New: func() any { return new(rewriting) }}

// Rewrite implements pluginpb.PluginServer.
func (s *Server) Rewrite(ctx context.Context, m *pluginpb.RewriteCall) (out *pluginpb.RewriteReply, err error) {
	in, done, err := s.use(m.GetInstance())
	if err != nil {
		return nil, err
	}
	defer done()
	defer s.guard(ctx, "Rewrite", in.name, &err)
	f, ok := in.filter.(filter.Rewriter)
	if !ok {
		return nil, unimplemented("rewrite hook")
	}
	w := rewritings.Get().(*rewriting)
	if err := w.in.Parse(m.GetFrame()); err != nil {
		rewritings.Put(w)
		return nil, backend.Errorf(backend.ErrInvalid, "rewrite: the frame is invalid: %w", err)
	}
	w.out.Reset(&w.in)
	// After a panic w is not used again: nobody knows what state it is in.
	if err := f.Rewrite(&w.in, &w.out); err != nil {
		return nil, err
	}
	out = &pluginpb.RewriteReply{Reply: w.out.Append(nil)}
	rewritings.Put(w)
	return out, nil
}
