// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package wire shows a StoreAPI endpoint to the suite as it is. Package storeapi of the
// SDK has a client too, which makes up for what known stores do not do: it shards again,
// sorts, drops empty labels, adds a matcher. This one changes nothing.
package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storeapi"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/infopb"
)

// Endpoint is a StoreAPI endpoint. It does not own its connection.
type Endpoint struct {
	conn  grpc.ClientConnInterface
	store storepb.StoreClient
	// Client answers the optional calls, of which it hides nothing.
	*storeapi.Client
}

var (
	_ backend.Backend          = (*Endpoint)(nil)
	_ backend.ExemplarsBackend = (*Endpoint)(nil)
	_ backend.MetadataBackend  = (*Endpoint)(nil)
)

// New returns the endpoint behind conn.
func New(conn grpc.ClientConnInterface) *Endpoint {
	return &Endpoint{conn: conn, store: storepb.NewStoreClient(conn), Client: storeapi.NewClient(conn, storeapi.ClientConfig{Name: "endpoint"})}
}

// Info implements backend.Backend. What the message has no words for is claimed where
// every StoreAPI server keeps it (native histograms, stale markers, bounded labels), and
// not otherwise: downsampled data and exact limits have to be claimed by who runs the suite.
func (e *Endpoint) Info(ctx context.Context) (backend.Info, error) {
	m, err := infopb.NewInfoClient(e.conn).Info(ctx, &infopb.InfoRequest{}, storepb.ClientCodec())
	if err != nil {
		return backend.Info{}, kind(ctx, err)
	}
	info, err := storeapi.InfoFromWire(m)
	info.Capabilities.Downsampled, info.Capabilities.SeriesLimit = false, false
	return info, err
}

// Series implements backend.Backend.
func (e *Endpoint) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		st, err := e.store.Series(ctx, storeapi.SeriesRequestToWire(req), storepb.ClientCodec())
		if err != nil {
			yield(nil, kind(ctx, err))
			return
		}
		for {
			f, err := st.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(nil, kind(ctx, err))
				return
			}
			b, err := batch(f)
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

// batch copies a frame, with its faults.
func batch(f *storepb.SeriesResponse) (*backend.Batch, error) {
	list := f.GetBatch().GetSeries()
	if s := f.GetSeries(); s != nil {
		list = append(list[:len(list):len(list)], s)
	}
	b := backend.NewBatch(len(list))
	sb := labels.NewScratchBuilder(16)
	for _, s := range list {
		sb.Reset()
		for _, l := range s.GetLabels() {
			sb.Add(l.GetName(), l.GetValue()) // and not sorted
		}
		out := backend.Series{Labels: sb.Labels()}
		for _, c := range s.GetChunks() {
			x := backend.Chunk{MinTime: c.GetMinTime(), MaxTime: c.GetMaxTime()}
			var err error
			if x.Raw, err = encoded(c.GetRaw()); err != nil {
				return nil, err
			}
			if c.GetRaw() == nil {
				a := &backend.AggregateChunks{}
				for _, p := range []struct {
					from *storepb.Chunk
					to   *backend.Encoded
				}{{c.GetCount(), &a.Count}, {c.GetSum(), &a.Sum}, {c.GetMin(), &a.Min}, {c.GetMax(), &a.Max}, {c.GetCounter(), &a.Counter}} {
					if *p.to, err = encoded(p.from); err != nil {
						return nil, err
					}
				}
				x.Aggregates = a
			}
			out.Chunks = append(out.Chunks, x)
		}
		b.Append(out)
	}
	if w := f.GetWarning(); w != "" {
		b.Notify(backend.Notice{Kind: backend.NoticeMissing, Text: w})
	}
	return b, nil
}

func encoded(c *storepb.Chunk) (backend.Encoded, error) {
	if c == nil {
		return backend.Encoded{}, nil
	}
	enc, err := storepb.EncodingToTSDB(c.GetType())
	if err != nil {
		return backend.Encoded{}, backend.Errorf(backend.ErrInternal, "a chunk: %w", err)
	}
	return backend.Encoded{Data: c.GetData(), Encoding: enc}, nil
}

// LabelNames implements backend.Backend.
func (e *Endpoint) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	m, err := e.store.LabelNames(ctx, storeapi.LabelNamesRequestToWire(req), storepb.ClientCodec())
	if err != nil {
		return nil, kind(ctx, err)
	}
	return list(m.GetNames(), m.GetWarnings()), nil
}

// LabelValues implements backend.Backend.
func (e *Endpoint) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	m, err := e.store.LabelValues(ctx, storeapi.LabelValuesRequestToWire(req), storepb.ClientCodec())
	if err != nil {
		return nil, kind(ctx, err)
	}
	return list(m.GetValues(), m.GetWarnings()), nil
}

func list(values, warnings []string) *backend.Labels {
	out := &backend.Labels{Values: values}
	for _, w := range warnings {
		out.Notices = append(out.Notices, backend.Notice{Kind: backend.NoticeMissing, Text: w})
	}
	return out
}

// kind gives an error of a call its kind.
func kind(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	k := backend.ErrInternal
	switch status.Code(err) {
	case codes.InvalidArgument:
		k = backend.ErrInvalid
	case codes.Unimplemented:
		k = backend.ErrUnsupported
	case codes.ResourceExhausted:
		k = backend.ErrLimit
	case codes.Unavailable, codes.Aborted:
		k = backend.ErrUnavailable
	case codes.PermissionDenied, codes.Unauthenticated:
		k = backend.ErrDenied
	}
	return backend.Errorf(k, "%w", fmt.Errorf("%s: %s", status.Code(err), status.Convert(err).Message()))
}
