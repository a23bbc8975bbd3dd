// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
	"github.com/promweave/promweave/sdk/storeapi"
	"github.com/promweave/promweave/sdk/storepb"
)

// The most that a message with data may have, in bytes: a frame and some notices, or
// a list of label values.
const (
	batchBytes  = frame.MaxBytes + 1<<20
	labelsBytes = 64 << 20
)

// remoteBackend is a configured backend.
type remoteBackend struct{ in *instance }

var (
	_ backend.Backend           = (*remoteBackend)(nil)
	_ backend.Closer            = (*remoteBackend)(nil)
	_ backend.ExemplarsBackend  = (*remoteBackend)(nil)
	_ backend.MetadataBackend   = (*remoteBackend)(nil)
	_ backend.RulesBackend      = (*remoteBackend)(nil)
	_ backend.TargetsBackend    = (*remoteBackend)(nil)
	_ backend.StatisticsBackend = (*remoteBackend)(nil)
)

func (b *remoteBackend) Info(ctx context.Context) (backend.Info, error) {
	return call(ctx, b.in, "info", b.in.h.cfg.ControlTime, func(ctx context.Context, c *Conn, id uint64) (backend.Info, error) {
		m, err := c.plugin.Info(ctx, &pluginpb.InfoCall{Instance: id}, control()...)
		if err != nil {
			return backend.Info{}, err
		}
		info, err := wire.InfoFromWire(m)
		return info, invalid(err)
	})
}

func (b *remoteBackend) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	return call(ctx, b.in, "label names", 0, func(ctx context.Context, c *Conn, id uint64) (*backend.Labels, error) {
		m, err := c.plugin.LabelNames(ctx, wire.LabelNamesToWire(id, req), receiving(labelsBytes)...)
		if err != nil {
			return nil, err
		}
		return wire.LabelsFromWire(m, req.Limit), nil
	})
}

func (b *remoteBackend) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if req.Name == "" {
		return nil, backend.Errorf(backend.ErrInvalid, "label values: the label name is empty")
	}
	return call(ctx, b.in, "label values", 0, func(ctx context.Context, c *Conn, id uint64) (*backend.Labels, error) {
		m, err := c.plugin.LabelValues(ctx, wire.LabelValuesToWire(id, req), receiving(labelsBytes)...)
		if err != nil {
			return nil, err
		}
		return wire.LabelsFromWire(m, req.Limit), nil
	})
}

// Series implements backend.Backend. The order is not checked, which needs to be
// seen by whoever merges.
func (b *remoteBackend) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		defer b.in.h.cfg.Tally.Call()()
		var avoid *Conn
		var first error
		for attempt := 0; ; attempt++ {
			c, id, err := b.in.bind(ctx, avoid)
			if err != nil {
				if first != nil {
					err = first
				}
				yield(nil, err)
				return
			}
			yielded, wanted, err := stream(ctx, c, id, req, yield)
			var again bool
			if err != nil {
				again, avoid = b.in.again(ctx, c, err)
				err = b.in.h.fail(ctx, ctx, c, "series", err)
			}
			c.end()
			switch {
			case err == nil || !wanted:
				return
			case attempt > 0 || yielded || !again:
				yield(nil, err)
				return
			}
			first = err
		}
	}
}

// stream yields the answer to one call. wanted is false once yield returned false.
func stream(ctx context.Context, c *Conn, id uint64, req *backend.SeriesRequest, yield func(*backend.Batch, error) bool) (yielded, wanted bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // Frees the stream however this ends.
	st, err := c.plugin.Series(ctx, wire.SeriesCallToWire(id, req), receiving(batchBytes)...)
	if err != nil {
		return false, true, err
	}
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return yielded, true, nil
		}
		if err != nil {
			return yielded, true, err
		}
		b, err := wire.BatchFromWire(m)
		if err != nil {
			return yielded, true, invalid(err)
		}
		if b.Len() == 0 && len(b.Notices()) == 0 {
			continue
		}
		yielded = true
		if !yield(b, nil) {
			return true, false, nil
		}
	}
}

// Close implements backend.Closer.
func (b *remoteBackend) Close() error { return b.in.close() }

// The optional calls go by the thanos services of the same connection.

// addressed adds the instance's id to calls and remembers how the last one failed,
// since the client of those services tells less.
type addressed struct {
	cc  grpc.ClientConnInterface
	id  uint64
	err error
}

func (a *addressed) context(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, pluginpb.InstanceKey, strconv.FormatUint(a.id, 10))
}

func (a *addressed) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	a.err = a.cc.Invoke(a.context(ctx), method, args, reply, slices.Concat(opts, receiving(labelsBytes))...)
	return a.err
}

func (a *addressed) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	st, err := a.cc.NewStream(a.context(ctx), desc, method, slices.Concat(opts, receiving(labelsBytes))...)
	if err != nil {
		a.err = err
		return nil, err
	}
	return &addressedStream{ClientStream: st, a: a}, nil
}

type addressedStream struct {
	grpc.ClientStream
	a *addressed
}

func (s *addressedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err != nil && !errors.Is(err, io.EOF) {
		s.a.err = err
	}
	return err
}

type noted[R any] struct {
	r  R
	ns []backend.Notice
}

func optional[R any](ctx context.Context, b *remoteBackend, what string, do func(ctx context.Context, client *storeapi.Client) (R, []backend.Notice, error)) (R, []backend.Notice, error) {
	out, err := call(ctx, b.in, what, 0, func(ctx context.Context, c *Conn, id uint64) (noted[R], error) {
		a := &addressed{cc: c.cc, id: id}
		r, ns, err := do(ctx, storeapi.NewClient(a, storeapi.ClientConfig{Name: b.in.h.cfg.Name}))
		if err != nil && a.err != nil {
			err = a.err
		} else if err != nil {
			err = invalid(fmt.Errorf("%s: %w", what, err))
		}
		return noted[R]{r, ns}, err
	})
	return out.r, out.ns, err
}

// Exemplars implements backend.ExemplarsBackend.
func (b *remoteBackend) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	return optional(ctx, b, "exemplars", func(ctx context.Context, c *storeapi.Client) ([]*storepb.ExemplarData, []backend.Notice, error) {
		return c.Exemplars(ctx, selectors, minTime, maxTime)
	})
}

// MetricMetadata implements backend.MetadataBackend.
func (b *remoteBackend) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	return optional(ctx, b, "metadata", func(ctx context.Context, c *storeapi.Client) (map[string][]*storepb.Meta, []backend.Notice, error) {
		return c.MetricMetadata(ctx, metric, limit)
	})
}

// Rules implements backend.RulesBackend.
func (b *remoteBackend) Rules(ctx context.Context, req *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	return optional(ctx, b, "rules", func(ctx context.Context, c *storeapi.Client) ([]*storepb.RuleGroup, []backend.Notice, error) {
		return c.Rules(ctx, req)
	})
}

// Targets implements backend.TargetsBackend.
func (b *remoteBackend) Targets(ctx context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	return optional(ctx, b, "targets", func(ctx context.Context, c *storeapi.Client) (*storepb.TargetDiscovery, []backend.Notice, error) {
		return c.Targets(ctx, state)
	})
}

// Statistics implements backend.StatisticsBackend.
func (b *remoteBackend) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	return optional(ctx, b, "statistics", func(ctx context.Context, c *storeapi.Client) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
		return c.Statistics(ctx, limit)
	})
}
