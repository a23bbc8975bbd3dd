// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package limits_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEachLimit(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  limits.Config
	}{
		{"query.limits.series", limits.Config{Series: 10}},
		{"query.limits.samples", limits.Config{Samples: 10}},
		{"query.limits.bytes", limits.Config{Bytes: 10}},
		{"query.limits.process_bytes", limits.Config{ProcessBytes: 10}},
	} {
		p := limits.NewProcess(c.cfg)
		q, err := p.Begin(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Add(10, 10, 10); err != nil {
			t.Errorf("%s: its value is still allowed: %v", c.name, err)
		}
		err = q.Add(1, 1, 1)
		var x *limits.Exceeded
		if !errors.As(err, &x) || x.Name != c.name || x.Limit != 10 || x.Used != 11 || !errors.Is(err, backend.ErrLimit) || !strings.Contains(err.Error(), "narrow") {
			t.Errorf("%s: %v", c.name, err)
		}
		q.End()
		q.End()
		if p.Bytes() != 0 {
			t.Errorf("%s: %d bytes are left", c.name, p.Bytes())
		}
		if err := q.Add(0, 0, 1); err == nil || p.Bytes() != 0 {
			t.Errorf("%s: charged after the end: %v, %d bytes", c.name, err, p.Bytes())
		}
	}
}

func TestProcessBytesAreShared(t *testing.T) {
	p := limits.NewProcess(limits.Config{ProcessBytes: 10})
	a, _ := p.Begin(t.Context(), "")
	b, _ := p.Begin(t.Context(), "")
	if err := errors.Join(a.Add(0, 0, 6), b.Add(0, 0, 4)); err != nil {
		t.Error(err)
	}
	if b.Add(0, 0, 1) == nil {
		t.Error("11 of 10")
	}
	a.End()
	if err := b.Add(0, 0, 1); err != nil {
		t.Errorf("what another query gave back is free again: %v", err)
	}
	b.End()
	if p.Bytes() != 0 {
		t.Error(p.Bytes())
	}
}

func TestConcurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := limits.NewProcess(limits.Config{Concurrent: 2})
		a, _ := p.Begin(t.Context(), "")
		b, _ := p.Begin(t.Context(), "")
		if p.Running() != 2 {
			t.Error(p.Running())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := p.Begin(ctx, ""); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "query.max_concurrent") || !strings.Contains(err.Error(), "2") || time.Since(begin) != time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		time.AfterFunc(time.Minute, a.End)
		begin = time.Now()
		c, err := p.Begin(t.Context(), "")
		if err != nil || time.Since(begin) != time.Minute {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		a.End()
		if p.Running() != 2 {
			t.Errorf("%d: End twice gave a slot of somebody else back", p.Running())
		}
		b.End()
		c.End()
	})
}

// TestAddRacesEnd: a backend that comes back late must not leave bytes behind.
func TestAddRacesEnd(t *testing.T) {
	p := limits.NewProcess(limits.Config{})
	for range 2000 {
		q, _ := p.Begin(t.Context(), "")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { _ = q.Add(1, 1, 100) })
		}
		wg.Go(q.End)
		wg.Wait()
	}
	if n := p.Bytes(); n != 0 {
		t.Errorf("%d bytes are charged to nobody", n)
	}
}

// TestLowerLimits: a query of its own limits is held to the lower ones.
func TestLowerLimits(t *testing.T) {
	for _, c := range []struct {
		cfg                    limits.Config
		series, samples, bytes int64
		want                   string
	}{
		{limits.Config{}, 10, 0, 0, "access.series"},
		{limits.Config{}, 0, 10, 0, "access.samples"},
		{limits.Config{}, 0, 0, 10, "access.bytes"},
		{limits.Config{Series: 11, Samples: 11, Bytes: 11}, 10, 0, 0, "access.series"},
		{limits.Config{Series: 10}, 11, 0, 0, "query.limits.series"},
		{limits.Config{Bytes: 10}, 11, 11, 11, "query.limits.bytes"},
	} {
		q, err := limits.NewProcess(c.cfg).Begin(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		q.Lower(c.series, c.samples, c.bytes)
		if err := q.Add(10, 10, 10); err != nil {
			t.Errorf("%s: its value is still allowed: %v", c.want, err)
		}
		var x *limits.Exceeded
		if err := q.Add(1, 1, 1); !errors.As(err, &x) || x.Name != c.want || x.Limit != 10 || x.Used != 11 {
			t.Errorf("%s: %v", c.want, err)
		}
		for _, u := range q.Use() {
			if strings.HasSuffix(c.want, "."+u.Name) && u.Limit != 10 {
				t.Errorf("%s: %+v", c.want, u)
			}
		}
		q.End()
	}
}

// TestReturn: bytes that were given back do not count, neither as held nor as received.
func TestReturn(t *testing.T) {
	p := limits.NewProcess(limits.Config{Bytes: 10, ProcessBytes: 10})
	q, _ := p.Begin(t.Context(), "")
	defer q.End()
	for range 5 {
		if err := q.Add(0, 0, 8); err != nil {
			t.Fatal(err)
		}
		q.Return(8)
	}
	if p.Bytes() != 0 {
		t.Errorf("%d bytes are held", p.Bytes())
	}
}

// TestSlotsAreShared: who has the fewest is next, and of those who came first; who gives
// up waiting takes nothing with it.
func TestSlotsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := limits.NewProcess(limits.Config{Concurrent: 2})
		var mu sync.Mutex
		var order []string
		run := func(ctx context.Context, who string, d time.Duration) {
			q, err := p.Begin(ctx, who)
			mu.Lock()
			if err != nil {
				who += " gave up"
			}
			order = append(order, who)
			mu.Unlock()
			if err == nil {
				time.Sleep(d)
				q.End()
			}
		}
		begin := func(who string, d time.Duration) {
			go run(t.Context(), who, d)
			synctest.Wait()
		}
		for i := range 5 {
			begin("greedy", time.Second+time.Duration(i)*time.Millisecond)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		go run(short, "hasty", time.Second)
		begin("modest", time.Second)
		begin("late", time.Second)
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		want := []string{"greedy", "greedy", "hasty gave up", "modest", "greedy", "late", "greedy", "greedy"}
		if diff := cmp.Diff(want, order); diff != "" {
			t.Error(diff)
		}
		if n := p.Running(); n != 0 {
			t.Errorf("%d run", n)
		}
	})
}
