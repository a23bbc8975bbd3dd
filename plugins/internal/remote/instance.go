// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/internal/tally"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
	"github.com/promweave/promweave/sdk/pluginpb/convert"
)

// controlBytes is the most that a reply may have that carries no data.
const controlBytes = 8 << 20

func control() []grpc.CallOption { return receiving(controlBytes) }

func receiving(n int) []grpc.CallOption {
	return append(wire.CallOptions(), grpc.MaxCallRecvMsgSize(n))
}

// instance is one configuration, over all lives of the plug-in.
type instance struct {
	h         *Host
	req       *pluginpb.ConfigureRequest
	isBackend bool

	// turn is held while configuring.
	turn chan struct{}

	mu       sync.Mutex
	ids      map[*Conn]uint64
	plan     *filter.Plan // nil before the first time
	released bool
}

// add configures a new instance on the life in use.
func (h *Host) add(ctx context.Context, c *filter.Config, isBackend bool) (*instance, error) {
	c, err := wire.Complete(c)
	if err != nil {
		return nil, err
	}
	req := convert.ToConfigureRequest(c, pluginpb.Minor)
	in := &instance{h: h, req: req, isBackend: isBackend, turn: make(chan struct{}, 1), ids: map[*Conn]uint64{}}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, tally.Fault(h.cfg.Name, "configure", backend.ErrUnavailable, errClosed)
	}
	h.instances[in] = struct{}{}
	h.mu.Unlock()
	// Configuring is a call like others: it is done again if the plug-in dies meanwhile.
	conn, _, err := in.bind(ctx, nil)
	if err == nil {
		conn.end()
		return in, nil
	}
	if !isBackend || !errors.Is(err, errNone) {
		h.remove(in)
		return nil, err
	}
	// A store that cannot be reached now is one that is down: Info will say so.
	return in, nil
}

func (h *Host) remove(in *instance) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.instances, in)
}

func (in *instance) forget(c *Conn) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.ids, c)
}

func (in *instance) worksOn(c *Conn) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.ids[c] != 0 && !in.released
}

// bind returns the life in use, counted as called, and the id of the instance there. A
// life may end between the two, with the id forgotten: then it is the next one.
func (in *instance) bind(ctx context.Context, avoid *Conn) (*Conn, uint64, error) {
	for attempt := 0; ; attempt++ {
		c, err := in.h.acquire(ctx, avoid)
		if err != nil {
			return nil, 0, err
		}
		id, raw, err := in.configure(ctx, c)
		if err == nil {
			return c, id, nil
		}
		var again bool
		if raw != nil {
			again, avoid = in.again(ctx, c, raw)
		}
		c.end()
		if attempt > 0 || !again {
			return nil, 0, err
		}
	}
}

// configure returns the id of the instance on c, and asks for one if there is none. raw
// is the error of that call as it came, if it is what failed.
func (in *instance) configure(ctx context.Context, c *Conn) (id uint64, raw, err error) {
	known := func() (uint64, error) {
		in.mu.Lock()
		defer in.mu.Unlock()
		if in.released {
			return 0, &backend.Error{Kind: backend.ErrUnavailable, Text: fmt.Sprintf("plug-in %s: instance %q is closed", in.h.cfg.Name, in.req.GetName()), Err: errReleased}
		}
		return in.ids[c], nil
	}
	if id, err := known(); id != 0 || err != nil {
		return id, nil, err
	}
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-ctx.Done():
		return 0, nil, fmt.Errorf("plug-in %s: configure: %w", in.h.cfg.Name, context.Cause(ctx))
	}
	if id, err := known(); id != 0 || err != nil {
		return id, nil, err
	}
	limited, cancel := context.WithTimeout(ctx, in.h.cfg.ControlTime)
	defer cancel()
	m, err := c.plugin.Configure(limited, in.req, control()...)
	if err != nil {
		return 0, err, in.h.fail(ctx, limited, c, "configure "+in.req.GetName(), err)
	}
	if m.GetInstance() == 0 {
		return 0, nil, in.h.lied(c, "configure "+in.req.GetName(), errors.New("the instance id is 0"))
	}
	plan := &filter.Plan{}
	if !in.isBackend {
		if plan, err = convert.FromPlan(m.GetPlan()); err != nil {
			return 0, nil, in.h.lied(c, "configure "+in.req.GetName(), err)
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.plan != nil && !reflect.DeepEqual(plan, in.plan) {
		return 0, nil, in.h.lied(c, "configure "+in.req.GetName(), errors.New("its plan is not the one that it had before it was started again; reload the configuration"))
	}
	in.plan = plan
	in.ids[c] = m.GetInstance()
	return m.GetInstance(), nil, nil
}

// close releases the instance where it is configured.
func (in *instance) close() error {
	in.mu.Lock()
	if in.released {
		in.mu.Unlock()
		return nil
	}
	in.released = true
	ids := in.ids
	in.ids = map[*Conn]uint64{}
	in.mu.Unlock()
	in.h.remove(in)
	for c, id := range ids {
		if !c.begin() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if _, err := c.plugin.Release(ctx, &pluginpb.ReleaseRequest{Instance: id}, control()...); err != nil {
			// It is gone with the process, or after some time of not being used.
			in.h.log.Debug("release", "plugin", in.h.cfg.Name, "instance", in.req.GetName(), "error", err)
		}
		cancel()
		c.end()
	}
	return nil
}

// call makes one unary call, and once more if the plug-in died or does not know the
// instance any more. limit 0 leaves only the caller's deadline.
func call[R any](ctx context.Context, in *instance, what string, limit time.Duration, do func(ctx context.Context, c *Conn, id uint64) (R, error)) (R, error) {
	defer in.h.cfg.Tally.Call()()
	var none R
	var avoid *Conn
	var first error
	for attempt := 0; ; attempt++ {
		c, id, err := in.bind(ctx, avoid)
		if err != nil {
			if first != nil {
				err = first
			}
			return none, err
		}
		limited, cancel := ctx, context.CancelFunc(func() {})
		if limit > 0 {
			limited, cancel = context.WithTimeout(ctx, limit)
		}
		r, err := do(limited, c, id)
		if err == nil {
			cancel()
			c.end()
			return r, nil
		}
		var again bool
		again, avoid = in.again(ctx, c, err)
		err = in.h.fail(ctx, limited, c, what, err)
		cancel()
		c.end()
		if attempt > 0 || !again {
			return none, err
		}
		first = err
	}
}

// again says whether a call that yielded nothing may be made once more, and on
// another life than which.
func (in *instance) again(ctx context.Context, c *Conn, err error) (again bool, avoid *Conn) {
	if ctx.Err() != nil || wire.Said(err) != "" {
		return false, nil
	}
	// An error that is no status has code Unknown.
	switch status.Code(err) {
	case codes.NotFound:
		in.forget(c)
		return true, nil
	case codes.Unavailable, codes.Canceled:
		return true, c
	}
	return false, nil
}

// lied is the fault of a reply that is not what the contract says.
func (h *Host) lied(c *Conn, what string, err error) error {
	return h.fault(c, tally.InvalidReply, tally.Fault(h.cfg.Name, what, backend.ErrInternal, err))
}

func (h *Host) fault(c *Conn, kind string, err error) error {
	// The end of a process or a connection is one fault, which its owner counts, however
	// many calls it breaks.
	if kind != tally.Crash {
		h.cfg.Tally.Fault(kind, err)
	}
	if h.cfg.OnFault != nil {
		h.cfg.OnFault(c, kind, err)
	}
	return err
}

// late is the fault of a call that took too long.
func (h *Host) late(ctx context.Context, c *Conn, err error) error {
	if carrier.IsLarge(ctx) {
		h.cfg.Tally.Fault(tally.Timeout, err)
		return err
	}
	return h.fault(c, tally.Timeout, err)
}

// fail is the error of a call. ctx is the caller's, limited the one that the call
// was made with. What the plug-in says itself keeps its kind; all else is a fault.
func (h *Host) fail(ctx, limited context.Context, c *Conn, what string, err error) error {
	var bad invalidReply
	if errors.As(err, &bad) {
		return h.lied(c, what, bad.error)
	}
	name := h.cfg.Name
	st := status.Convert(err)
	said := wire.Said(err)
	if said == wire.Panic {
		return h.fault(c, tally.Panic, tally.Fault(name, what, backend.ErrInternal, errors.New(st.Message())))
	}
	if said != "" {
		return &backend.Error{Kind: wire.Kind(said), Text: fmt.Sprintf("plug-in %s: %s: %s", name, what, st.Message())}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("plug-in %s: %s: %w", name, what, context.Cause(ctx))
	}
	if limited.Err() != nil {
		return h.late(ctx, c, tally.Fault(name, what, backend.ErrUnavailable, carrier.ErrTimeout))
	}
	own := func(kind error) error {
		return &backend.Error{Kind: kind, Text: fmt.Sprintf("plug-in %s: %s: %s", name, what, st.Message())}
	}
	switch st.Code() {
	case codes.InvalidArgument, codes.OutOfRange:
		return own(backend.ErrInvalid)
	case codes.Unimplemented:
		return own(backend.ErrUnsupported)
	case codes.PermissionDenied, codes.Unauthenticated:
		return own(backend.ErrDenied)
	case codes.ResourceExhausted:
		// gRPC itself says this of messages that are too large.
		if !strings.Contains(st.Message(), "larger than max") {
			return own(backend.ErrLimit)
		}
		return h.lied(c, what, errors.New(st.Message()))
	case codes.DeadlineExceeded:
		return h.late(ctx, c, tally.Fault(name, what, backend.ErrUnavailable, fmt.Errorf("%s: %w", st.Message(), carrier.ErrTimeout)))
	case codes.Unavailable, codes.Canceled, codes.Aborted:
		return h.fault(c, tally.Crash, tally.Fault(name, what, backend.ErrUnavailable, errors.New(st.Message())))
	case codes.NotFound:
		return h.fault(c, tally.InvalidReply, tally.Fault(name, what, backend.ErrUnavailable, errors.New(st.Message())))
	}
	return h.fault(c, tally.InvalidReply, tally.Fault(name, what, backend.ErrInternal, err))
}

// invalidReply marks the error of a message that could not be used.
type invalidReply struct{ error }

func invalid(err error) error {
	if err == nil {
		return nil
	}
	return invalidReply{err}
}
