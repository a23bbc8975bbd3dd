// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/internal/tally"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/pluginpb"
	"github.com/promweave/promweave/sdk/pluginpb/convert"
)

// remoteFilter is a configured filter.
type remoteFilter struct{ in *instance }

var (
	_ carrier.Filter   = (*remoteFilter)(nil)
	_ carrier.Rejecter = (*remoteFilter)(nil)
)

func (f *remoteFilter) Plan() filter.Plan {
	f.in.mu.Lock()
	defer f.in.mu.Unlock()
	return *f.in.plan
}

func (f *remoteFilter) Request(ctx context.Context, c *filter.RequestCall) (*filter.RequestReply, error) {
	return call(ctx, f.in, "request", f.in.h.cfg.CallTime, func(ctx context.Context, conn *Conn, id uint64) (*filter.RequestReply, error) {
		m, err := conn.plugin.Request(ctx, convert.ToRequestCall(id, c), control()...)
		if err != nil {
			return nil, err
		}
		r, err := convert.FromRequestReply(m)
		return r, invalid(err)
	})
}

func (f *remoteFilter) Select(ctx context.Context, c *filter.SelectCall) (*filter.SelectReply, error) {
	return call(ctx, f.in, "select", f.in.h.cfg.CallTime, func(ctx context.Context, conn *Conn, id uint64) (*filter.SelectReply, error) {
		m, err := conn.plugin.Select(ctx, convert.ToSelectCall(id, c), control()...)
		if err != nil {
			return nil, err
		}
		r, err := convert.FromSelectReply(m)
		return r, invalid(err)
	})
}

// Rewrite implements carrier.Filter. The reply is a new slice: gRPC needs one anyway.
func (f *remoteFilter) Rewrite(ctx context.Context, in, reply []byte) ([]byte, error) {
	if len(in) > frame.MaxBytes {
		return nil, backend.Errorf(backend.ErrLimit, "a frame of %d bytes is larger than %d", len(in), frame.MaxBytes)
	}
	limit := 4*len(in) + 1<<20
	return call(ctx, f.in, "rewrite", f.in.h.cfg.CallTime, func(ctx context.Context, conn *Conn, id uint64) ([]byte, error) {
		m, err := conn.plugin.Rewrite(ctx, &pluginpb.RewriteCall{Instance: id, Frame: in}, receiving(limit+1024)...)
		if err != nil || len(m.GetReply()) == 0 {
			return nil, err
		}
		return append(reply[:0], m.GetReply()...), nil
	})
}

// Reject implements carrier.Rejecter.
func (f *remoteFilter) Reject(err error) error {
	return f.in.h.fault(nil, tally.InvalidReply, tally.Fault(f.in.h.cfg.Name, "rewrite", backend.ErrInternal, err))
}

func (f *remoteFilter) Close() error { return f.in.close() }
