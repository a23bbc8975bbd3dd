// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package steady

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errThrottled = errors.New("slow down")

// faulty fails its first requests, or breaks them off after some bytes.
type faulty struct {
	objstore.Bucket
	refuse, breaks atomic.Int64
	after          int64
	requests       atomic.Int64
	running, most  atomic.Int64
	took           time.Duration
}

func (f *faulty) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	f.requests.Add(1)
	now := f.running.Add(1)
	defer f.running.Add(-1)
	for {
		most := f.most.Load()
		if now <= most || f.most.CompareAndSwap(most, now) {
			break
		}
	}
	if f.took > 0 {
		select {
		case <-time.After(f.took):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if f.refuse.Add(-1) >= 0 {
		return nil, errThrottled
	}
	r, err := f.Bucket.GetRange(ctx, name, off, n)
	if err == nil && f.breaks.Add(-1) >= 0 {
		return io.NopCloser(io.MultiReader(io.LimitReader(r, f.after), iotest.ErrReader(io.ErrUnexpectedEOF))), nil
	}
	return r, err
}

func open(t *testing.T) *faulty {
	t.Helper()
	f := &faulty{Bucket: objstore.NewInMemBucket()}
	if err := f.Upload(t.Context(), "x", strings.NewReader("0123456789")); err != nil {
		t.Fatal(err)
	}
	return f
}

func read(ctx context.Context, b *Bucket, name string, off, n int64) (string, error) {
	r, err := b.GetRange(ctx, name, off, n)
	if err != nil {
		return "", err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	return string(data), err
}

// TestGoesOn: whatever fails for a moment, what is read is what is there, and no byte twice.
func TestGoesOn(t *testing.T) {
	for _, c := range []struct {
		refuse, breaks, after, off, n int64
		want                          string
		err                           error
		requests                      int64
	}{
		{off: 2, n: 5, want: "23456", requests: 1},
		{off: 8, n: 5, want: "89", requests: 1}, // beyond the end
		{off: 3, n: -1, want: "3456789", requests: 1},
		{refuse: 2, off: 2, n: 5, want: "23456", requests: 3},
		{refuse: 3, off: 2, n: 5, err: errThrottled, requests: 3},
		{breaks: 2, after: 2, off: 2, n: 5, want: "23456", requests: 3},
		{breaks: 2, after: 2, off: 3, n: -1, want: "3456789", requests: 3},
		{breaks: 1, after: 0, off: 0, n: 10, want: "0123456789", requests: 2},
		{breaks: 1, after: 5, off: 2, n: 5, want: "23456", requests: 1}, // broken off behind the end
		{breaks: 9, after: 1, off: 2, n: 5, want: "234", err: io.ErrUnexpectedEOF, requests: 3},
		{refuse: 1, breaks: 1, after: 1, off: 2, n: 5, want: "23456", requests: 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := open(t)
			f.refuse.Store(c.refuse)
			f.breaks.Store(c.breaks)
			f.after = c.after
			b := New(f, Config{Concurrency: 1})
			began := time.Now()
			got, err := read(t.Context(), b, "x", c.off, c.n)
			if got != c.want || !errors.Is(err, c.err) || f.requests.Load() != c.requests {
				t.Errorf("%+v: %q, %v, %d requests", c, got, err, f.requests.Load())
			}
			if took := time.Since(began); c.requests > 1 && (took < 100*time.Millisecond || took > 600*time.Millisecond) {
				t.Errorf("%+v: it took %s", c, took)
			}
			// The slot was given back, whatever happened.
			f.refuse.Store(0)
			f.breaks.Store(0)
			if got, err := read(t.Context(), b, "x", 0, 1); got != "0" || err != nil {
				t.Errorf("afterwards: %q, %v", got, err)
			}
		})
	}
}

// TestFinal: what is not there is not tried again, nor what nobody waits for.
func TestFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t)
		b := New(f, Config{})
		if _, err := read(t.Context(), b, "y", 0, 1); err == nil || !b.IsObjNotFoundErr(err) || f.requests.Load() != 1 {
			t.Errorf("%v, %d requests", err, f.requests.Load())
		}
		f.refuse.Store(100)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		if _, err := read(ctx, b, "x", 0, 1); err == nil || time.Since(began) > 60*time.Millisecond {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// TestTried: what the provider's client has tried for long is not tried again on top of that.
func TestTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t)
		f.took = 3 * time.Second
		f.refuse.Store(100)
		if _, err := read(t.Context(), New(f, Config{}), "x", 0, 1); !errors.Is(err, errThrottled) || f.requests.Load() != 1 {
			t.Errorf("%v, %d requests", err, f.requests.Load())
		}
	})
}

// TestAtOnce: no more reads run at once than is allowed, and all get their turn.
func TestAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t)
		f.took = time.Second
		b := New(f, Config{Concurrency: 3})
		var wg sync.WaitGroup
		var out [10][]byte
		for i := range out {
			wg.Go(func() {
				s, err := read(t.Context(), b, "x", int64(i), 1)
				if err != nil {
					t.Error(err)
				}
				out[i] = []byte(s)
			})
		}
		// One that does not want to wait for its turn need not.
		time.Sleep(time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := b.GetRange(ctx, "x", 0, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		wg.Wait()
		if got := string(bytes.Join(out[:], nil)); got != "0123456789" || f.most.Load() != 3 {
			t.Errorf("%q, %d at once", got, f.most.Load())
		}
	})
}
