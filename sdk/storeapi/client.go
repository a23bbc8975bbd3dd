// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package storeapi carries the contract of package backend over gRPC in the form
// of the Thanos StoreAPI, in both directions: a [Server] makes an endpoint of a
// backend, a [Client] a backend of an endpoint. Either peer may be a Thanos
// program.
//
// What Thanos stores do differently from what they say is dealt with here, in
// the client, so that no one else has to know; each place says what was seen.
package storeapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/infopb"
)

// defaultBatch is the number of series asked for in a frame, as Thanos' querier
// does; a frame for each series costs several times as much.
const defaultBatch = 64

// The bounds of time that are sent. A sidecar answers with nothing if it is sent
// MaxInt64, since Prometheus turns milliseconds into nanoseconds or seconds on
// the way; these, 292,000 years off, were seen to work.
const (
	minSentTime = -9223309901257974
	maxSentTime = 9223309901257974
)

// metricName is the label with the name of the metric.
const metricName = "__name__"

// noLabel is a label that no series has, so that noLabel="" selects everything.
//
// A request with matchers on external labels only is one with no matcher at all
// for a Thanos store, which has checked and removed them: a bucket store answers
// with no series, sidecar and TSDB with InvalidArgument. Any other matcher
// avoids that; this one was seen to give everything on bucket store, sidecar and
// proxy, series without a metric name among them, which __name__!="" would lose.
const noLabel = "__promweave_none__"

// ClientConfig are the settings of a [Client].
type ClientConfig struct {
	// Name of the store in errors, usually its address.
	Name string
}

// Client is a StoreAPI endpoint as a backend, with all optional interfaces.
// It does not own the connection. It does not check the order of series, which
// needs to be seen by whoever merges them.
type Client struct {
	name  string
	store storepb.StoreClient
	infoc infopb.InfoClient
	conn  grpc.ClientConnInterface
	// info is what the endpoint said last, nil before.
	info atomic.Pointer[backend.Info]
}

var _ backend.Backend = (*Client)(nil)

// NewClient returns the endpoint behind conn as a backend. The connection should
// be made with [DialOptions].
func NewClient(conn grpc.ClientConnInterface, cfg ClientConfig) *Client {
	if cfg.Name == "" {
		cfg.Name = "store"
	}
	return &Client{name: cfg.Name, conn: conn, store: storepb.NewStoreClient(conn), infoc: infopb.NewInfoClient(conn)}
}

func (c *Client) fail(ctx context.Context, what string, err error) error {
	return fromStatus(ctx, c.name, what, err)
}

// Info implements backend.Backend.
func (c *Client) Info(ctx context.Context) (backend.Info, error) {
	m, err := c.infoc.Info(ctx, &infopb.InfoRequest{}, storepb.ClientCodec())
	if err != nil {
		return backend.Info{}, c.fail(ctx, "info", err)
	}
	info, err := InfoFromWire(m)
	if err != nil {
		return backend.Info{}, fmt.Errorf("%s: %w", c.name, err)
	}
	c.info.Store(&info)
	return info, nil
}

// Series implements backend.Backend.
//
// Limit is sent as it is and not relied upon. Where the endpoint claims
// sharding or replica-label removal, the client makes sure of it in the cases in
// which sidecars are known not to do it.
func (c *Client) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	minTime, maxTime, ok := sentRange(req.MinTime, req.MaxTime)
	if !ok {
		return backend.None()
	}
	m := SeriesRequestToWire(req)
	m.MinTime, m.MaxTime = minTime, maxTime
	if m.ResponseBatchSize == 0 {
		m.ResponseBatchSize = defaultBatch
	}
	var seq iter.Seq2[*backend.Batch, error]
	if req.SkipChunks && c.refusesMatchers(req.Matchers) {
		seq = c.namedAndNameless(ctx, req, m)
	} else {
		if !slices.ContainsFunc(req.Matchers, isNameMatcher) {
			m.Matchers = append(m.Matchers, &storepb.LabelMatcher{Type: storepb.LabelMatcher_EQ, Name: noLabel})
		}
		seq = c.call(ctx, m)
	}
	if req.SkipChunks && len(req.WithoutReplicaLabels) > 0 {
		// A sidecar removes external labels only from label sets without chunks.
		seq = withoutReplicas(seq, req.WithoutReplicaLabels)
	}
	// A sidecar does not shard label sets without chunks. Doing it again is cheap.
	return shaping.Sharded(seq, req.Shard)
}

// withoutReplicas removes labels and sorts only if there are any to remove.
func withoutReplicas(seq iter.Seq2[*backend.Batch, error], names []string) iter.Seq2[*backend.Batch, error] {
	removed := func(yield func(*backend.Batch, error) bool) {
		for in, err := range seq {
			if err != nil {
				yield(nil, err)
				return
			}
			out := in
			for i := range in.Len() {
				if hasAny(in.At(i).Labels, names) {
					out = backend.NewBatch(in.Len())
					break
				}
			}
			if out != in {
				for i := range in.Len() {
					s := in.At(i)
					out.Append(backend.Series{Labels: shaping.ExtendLabels(s.Labels, labels.EmptyLabels(), names), Chunks: s.Chunks})
				}
				for _, n := range in.Notices() {
					out.Notify(n)
				}
			}
			if !yield(out, nil) {
				return
			}
		}
	}
	return shaping.Resort(removed, nil)
}

func hasAny(ls labels.Labels, names []string) bool {
	return slices.ContainsFunc(names, ls.Has)
}

func isNameMatcher(m *labels.Matcher) bool { return m.Name == metricName }

// refusesMatchers says whether the endpoint may refuse these matchers in a
// request for label sets only. A sidecar then asks Prometheus' /api/v1/series,
// which wants a matcher that does not match "", other than on external labels. So
// do queriers, whose stores may be sidecars.
func (c *Client) refusesMatchers(ms []*labels.Matcher) bool {
	info := c.info.Load()
	if info != nil {
		switch info.Component {
		case "store", "receive", "rule", "debug":
			return false
		}
	}
	for _, m := range ms {
		if m.Matches("") {
			continue
		}
		if isNameMatcher(m) {
			return false
		}
		if info == nil || len(info.LabelSets) == 0 {
			continue // It may be external.
		}
		if !slices.ContainsFunc(info.LabelSets, func(ls labels.Labels) bool { return ls.Has(m.Name) }) {
			return false
		}
	}
	return true
}

// namedAndNameless asks for the label sets with a metric name, and for those
// without. With the latter no matcher rules out "", so chunks are asked for as
// well, which goes another way in a sidecar, and dropped. There are few of them.
func (c *Client) namedAndNameless(ctx context.Context, req *backend.SeriesRequest, m *storepb.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	other := SeriesRequestToWire(req)
	other.MinTime, other.MaxTime, other.ResponseBatchSize = m.MinTime, m.MaxTime, m.ResponseBatchSize
	m.Matchers = append(m.Matchers, &storepb.LabelMatcher{Type: storepb.LabelMatcher_NEQ, Name: metricName})
	other.Matchers = append(other.Matchers, &storepb.LabelMatcher{Type: storepb.LabelMatcher_EQ, Name: metricName})
	other.SkipChunks = false
	return shaping.Limit(merge(c.call(ctx, m), shaping.WithoutChunks(c.call(ctx, other))), req.Limit)
}

// merge merges two ordered sequences. Batches of a are cut as needed.
func merge(a, b iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		next, stop := iter.Pull2(b)
		defer stop()
		var rest *backend.Batch // of b
		pos := 0
		// upTo yields what b has before ls, or all of it.
		upTo := func(ls *labels.Labels) bool {
			for {
				for rest == nil {
					in, err, ok := next()
					if !ok {
						return true
					}
					if err != nil {
						yield(nil, err)
						return false
					}
					if n := in.Notices(); len(n) > 0 && !yield(backend.NewNotices(n...), nil) {
						return false
					}
					if in.Len() > 0 {
						rest, pos = in, 0
					}
				}
				out := backend.NewBatch(rest.Len() - pos)
				for pos < rest.Len() && (ls == nil || labels.Compare(rest.At(pos).Labels, *ls) < 0) {
					out.Append(rest.At(pos))
					pos++
				}
				if out.Len() > 0 && !yield(out, nil) {
					return false
				}
				if pos < rest.Len() {
					return true
				}
				rest = nil
			}
		}
		for in, err := range a {
			if err != nil {
				yield(nil, err)
				return
			}
			if n := in.Notices(); len(n) > 0 && !yield(backend.NewNotices(n...), nil) {
				return
			}
			for i := range in.Len() {
				s := in.At(i)
				if !upTo(&s.Labels) {
					return
				}
				one := backend.NewBatch(1)
				one.Append(s)
				if !yield(one, nil) {
					return
				}
			}
		}
		upTo(nil)
	}
}

// call streams the answer to m.
func (c *Client) call(ctx context.Context, m *storepb.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // Frees the stream however the loop ends.
		stream, err := c.store.Series(ctx, m, storepb.ClientCodec())
		if err != nil {
			yield(nil, c.fail(ctx, "series", err))
			return
		}
		sb := labels.NewScratchBuilder(16)
		for {
			frame, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(nil, c.fail(ctx, "series", err))
				return
			}
			b, err := c.batch(frame, &sb)
			if err != nil {
				yield(nil, &backend.Error{Kind: backend.ErrInternal, Text: fmt.Sprintf("%s: series: %v", c.name, err), Err: err})
				return
			}
			if b != nil && !yield(b, nil) {
				return
			}
		}
	}
}

// batch turns a frame into a batch, nil if there is nothing in it for us.
func (c *Client) batch(frame *storepb.SeriesResponse, sb *labels.ScratchBuilder) (*backend.Batch, error) {
	switch r := frame.GetResult().(type) {
	case *storepb.SeriesResponse_Series:
		b := backend.NewBatch(1)
		return b, c.appendSeries(b, r.Series, sb)
	case *storepb.SeriesResponse_Batch:
		b := backend.NewBatch(len(r.Batch.GetSeries()))
		for _, s := range r.Batch.GetSeries() {
			if err := c.appendSeries(b, s, sb); err != nil {
				return nil, err
			}
		}
		return b, nil
	case *storepb.SeriesResponse_Warning:
		return backend.NewNotices(backend.Notice{Kind: backend.NoticeMissing, Text: r.Warning}), nil
	}
	// Hints, and kinds of frames that came later than us, hold no data.
	return nil, nil
}

func (c *Client) appendSeries(b *backend.Batch, m *storepb.Series, sb *labels.ScratchBuilder) error {
	ls, err := seriesLabels(sb, m.GetLabels())
	if errors.Is(err, errBadText) {
		b.Notify(backend.Notice{Kind: backend.NoticeMissing, Text: fmt.Sprintf("a series was left out because its labels are not valid UTF-8: %q", labelText(m))})
		return nil
	}
	if err != nil {
		return fmt.Errorf("series with labels %q: %w", labelText(m), err)
	}
	s := backend.Series{Labels: ls}
	if n := len(m.GetChunks()); n > 0 {
		s.Chunks = make([]backend.Chunk, n)
	}
	for i, ch := range m.GetChunks() {
		if s.Chunks[i], err = chunkFromWire(ch); err != nil {
			return fmt.Errorf("%s: chunk %d to %d: %w", ls, ch.GetMinTime(), ch.GetMaxTime(), err)
		}
	}
	b.Append(s)
	return nil
}

func labelText(m *storepb.Series) string {
	var out []byte
	for _, l := range m.GetLabels() {
		out = fmt.Appendf(out, "%s=%s,", l.GetName(), l.GetValue())
	}
	return string(out)
}

// sentRange cuts a range to what may be sent; with ok false it is empty.
func sentRange(lo, hi int64) (sentLo, sentHi int64, ok bool) {
	lo, hi = max(lo, minSentTime), min(hi, maxSentTime)
	return lo, hi, lo <= hi
}

// LabelNames implements backend.Backend.
func (c *Client) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	lo, hi, ok := sentRange(req.MinTime, req.MaxTime)
	if !ok {
		return &backend.Labels{}, nil
	}
	m := LabelNamesRequestToWire(req)
	// Stores count names twice that are stored and external, and some leave names
	// in that were to be removed, so that the first N are only known here. There
	// are never many.
	m.Start, m.End, m.Limit = lo, hi, 0
	r, err := c.store.LabelNames(ctx, m, storepb.ClientCodec())
	if err != nil {
		return nil, c.fail(ctx, "label names", err)
	}
	names := slices.DeleteFunc(cloneStrings(r.GetNames()), func(n string) bool { return slices.Contains(req.WithoutReplicaLabels, n) })
	return &backend.Labels{Values: shaping.SortedUnique(names, req.Limit), Notices: noticesFromWire(r.GetWarnings())}, nil
}

// LabelValues implements backend.Backend.
func (c *Client) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if req.Name == "" {
		// A bucket store would answer with an empty string.
		return nil, errNoLabel()
	}
	lo, hi, ok := sentRange(req.MinTime, req.MaxTime)
	if !ok || slices.Contains(req.WithoutReplicaLabels, req.Name) {
		return &backend.Labels{}, nil
	}
	m := LabelValuesRequestToWire(req)
	m.Start, m.End = lo, hi
	r, err := c.store.LabelValues(ctx, m, storepb.ClientCodec())
	if err != nil {
		return nil, c.fail(ctx, "label values", err)
	}
	return &backend.Labels{Values: shaping.SortedUnique(cloneStrings(r.GetValues()), req.Limit), Notices: noticesFromWire(r.GetWarnings())}, nil
}

// cloneStrings copies the slice; strings stay in the buffer of the message,
// which they fill.
func cloneStrings(list []string) []string { return append(make([]string, 0, len(list)), list...) }
