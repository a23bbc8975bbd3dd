// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package suite

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/sdk/storepb"
)

// stream reads the frames of one raw call.
func (p *probe) stream(m *storepb.SeriesRequest, each func(*storepb.SeriesResponse)) error {
	p.requests++
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	st, err := storepb.NewStoreClient(p.s.Wire).Series(ctx, m, storepb.ClientCodec())
	if err != nil {
		return err
	}
	for {
		f, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		each(f)
	}
}

func (p *probe) wireRefuses(t storepb.LabelMatcher_Type, value string) {
	minTime, maxTime := p.o.Bounds()
	list := []*storepb.LabelMatcher{{Type: t, Name: "env", Value: value}, {Name: metricName, Value: "cert_env"}}
	want := func(call string, err error) {
		if c := status.Code(err); c != codes.InvalidArgument {
			p.fail(call, "want InvalidArgument, got %s: %v", c, err)
		}
	}
	want("Series", p.stream(&storepb.SeriesRequest{MinTime: minTime, MaxTime: maxTime, Matchers: list}, func(*storepb.SeriesResponse) {}))
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	c := storepb.NewStoreClient(p.s.Wire)
	p.requests += 2
	_, err := c.LabelNames(ctx, &storepb.LabelNamesRequest{Start: minTime, End: maxTime, Matchers: list}, storepb.ClientCodec())
	want("LabelNames", err)
	_, err = c.LabelValues(ctx, &storepb.LabelValuesRequest{Label: "env", Start: minTime, End: maxTime, Matchers: list}, storepb.ClientCodec())
	want("LabelValues", err)
}

func series(f *storepb.SeriesResponse) (out []*storepb.Series) {
	if s := f.GetSeries(); s != nil {
		out = append(out, s)
	}
	if b := f.GetBatch(); b != nil {
		out = append(out, b.GetSeries()...)
	}
	return out
}

func (p *probe) wireRequest(batch int64) *storepb.SeriesRequest {
	minTime, maxTime := p.o.Bounds()
	return &storepb.SeriesRequest{MinTime: minTime, MaxTime: maxTime, ResponseBatchSize: batch, PartialResponseStrategy: storepb.PartialResponseStrategy_ABORT,
		Matchers: []*storepb.LabelMatcher{{Type: storepb.LabelMatcher_RE, Name: metricName, Value: "cert_(matrix|env)"}}}
}

func wireHashes(p *probe) {
	err := p.stream(p.wireRequest(0), func(f *storepb.SeriesResponse) {
		for _, s := range series(f) {
			for _, c := range s.GetChunks() {
				if raw := c.GetRaw(); raw != nil && raw.GetHash() != 0 && raw.GetHash() != storepb.Hash(raw.GetData()) {
					p.fail("Series", "a chunk's hash is %d, that of its data %d", raw.GetHash(), storepb.Hash(raw.GetData()))
				}
			}
		}
	})
	if err != nil {
		p.fail("Series", "the call failed: %v", err)
	}
}

func wireBatches(p *probe) {
	for _, n := range []int64{0, 1, 2, 5} {
		err := p.stream(p.wireRequest(n), func(f *storepb.SeriesResponse) {
			if f.GetBatch() != nil && len(f.GetBatch().GetSeries()) == 0 {
				p.fail("Series", "an empty batch, with response_batch_size %d", n)
			}
			if got := int64(len(series(f))); got > max(n, 1) {
				p.fail("Series", "%d series in one message, with response_batch_size %d", got, n)
			}
		})
		if err != nil {
			p.fail("Series", "the call failed: %v", err)
		}
	}
}
