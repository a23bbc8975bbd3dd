// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/promweave/promweave/sdk/backend"
)

// Bucket is what is read of a bucket here.
type Bucket interface {
	// GetRange returns n bytes of an object from off on, fewer if it ends before.
	GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error)
}

// Usage is what the reads of a request cost. It is safe for concurrent use.
type Usage struct {
	Requests, Bytes atomic.Int64
	// Most is the most bytes that may be fetched, 0 for any number. It acts before they are: they
	// count once they are asked for.
	Most  int64
	asked atomic.Int64
}

// charge counts bytes that are about to be fetched.
func (u *Usage) charge(n int64) error {
	if sum := u.asked.Add(n); u.Most > 0 && sum > u.Most {
		return backend.Errorf(backend.ErrLimit, "the request would fetch more than %d bytes of the bucket, which max_request_bytes allows; ask for fewer series, or for less time", u.Most)
	}
	return nil
}

// maxGap is how many bytes that nobody wants are read to save a request: a request costs
// some 20 ms of waiting, in which a few hundred kilobytes come.
const maxGap = 256 << 10

// parallel is how many ranges of one object are read at once by one request.
const parallel = 8

// span is a part of an object that is wanted, or was read.
type span struct{ from, to int64 }

// coalesce makes few reads of many spans, which ascend by from.
func coalesce(spans []span) (reads []span) {
	for _, s := range spans {
		if n := len(reads); n > 0 && s.from <= reads[n-1].to+maxGap {
			reads[n-1].to = max(reads[n-1].to, s.to)
			continue
		}
		reads = append(reads, s)
	}
	return reads
}

// pieces are parts of an object that were read, ascending.
type pieces struct {
	spans []span
	data  [][]byte
}

// from returns what was read from an offset on, nil if nothing was.
func (p *pieces) from(off int64) []byte {
	i, ok := slices.BinarySearchFunc(p.spans, off, func(s span, off int64) int {
		switch {
		case s.to <= off:
			return -1
		case s.from > off:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return p.data[i][off-p.spans[i].from:]
}

// object reads spans of an object, which ascend, in few requests. What lies behind the end of
// the object is not there: guesses may reach beyond it.
func object(ctx context.Context, bkt Bucket, u *Usage, name string, spans []span) (*pieces, error) {
	p := &pieces{spans: coalesce(spans)}
	p.data = make([][]byte, len(p.spans))
	var n int64
	for _, s := range p.spans {
		n += s.to - s.from
	}
	if err := u.charge(n); err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, s := range p.spans {
		g.Go(func() (err error) {
			p.data[i], err = get(gctx, bkt, u, name, s)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i := range p.spans {
		p.spans[i].to = p.spans[i].from + int64(len(p.data[i]))
	}
	return p, nil
}

// mostAtOnce is how much memory is taken for a request before any of it is there.
const mostAtOnce = 8 << 20

func get(ctx context.Context, bkt Bucket, u *Usage, name string, s span) (_ []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("get %s, bytes %d to %d: %w", name, s.from, s.to, err)
		}
	}()
	u.Requests.Add(1)
	r, err := bkt.GetRange(ctx, name, s.from, s.to-s.from)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	// A length that is broken asks for up to 2 GiB: memory is taken for what comes.
	n := s.to - s.from
	b := bytes.NewBuffer(make([]byte, 0, min(n, mostAtOnce)+bytes.MinRead))
	if _, err := b.ReadFrom(io.LimitReader(r, n)); err != nil {
		return nil, err
	}
	u.Bytes.Add(int64(b.Len()))
	return b.Bytes(), ctx.Err()
}
