// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/carrier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// process is a process that does what the test says.
type process struct {
	id     int
	done   chan struct{}
	once   sync.Once
	err    error
	busy   chan struct{} // closed when no call is under way; nil: none is
	stopc  chan struct{} // closed when Stop has returned
	stuck  bool          // it survives everything but Kill
	killed bool
	health func(context.Context) error
	mu     sync.Mutex
}

func (p *process) Health(ctx context.Context) error {
	p.mu.Lock()
	h := p.health
	p.mu.Unlock()
	if h == nil {
		return nil
	}
	return h(ctx)
}

func (p *process) setHealth(h func(context.Context) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.health = h
}

func (p *process) Done() <-chan struct{} { return p.done }
func (p *process) Err() error            { return p.err }
func (p *process) Drain(ctx context.Context) {
	if p.busy == nil {
		return
	}
	select {
	case <-p.busy:
	case <-ctx.Done():
	}
}

func (p *process) end(err error) {
	p.once.Do(func() {
		p.err = err
		close(p.done)
	})
}

func (p *process) Kill() {
	p.mu.Lock()
	p.killed = true
	p.mu.Unlock()
	p.end(errors.New("killed by us"))
}

func (p *process) Stop(ctx context.Context) {
	if p.stuck {
		<-ctx.Done()
		p.Kill()
	}
	p.end(errors.New("stopped"))
	close(p.stopc)
}

// host is the owner of a supervisor, and writes down what it is told.
type host struct {
	t     *testing.T
	began time.Time
	sup   *Supervisor[*process]

	mu      sync.Mutex
	log     []string
	started []*process
	// onStart is asked before the n-th start.
	onStart func(ctx context.Context, n int) error
	onServe func(p *process) error
}

func (h *host) note(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log = append(h.log, fmt.Sprintf("%v ", time.Since(h.began).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

func (h *host) start(ctx context.Context) (*process, error) {
	h.mu.Lock()
	n := len(h.started)
	p := &process{id: n, done: make(chan struct{}), stopc: make(chan struct{})}
	h.started = append(h.started, p)
	on := h.onStart
	h.mu.Unlock()
	if on != nil {
		if err := on(ctx, n); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (h *host) process(n int) *process {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n >= len(h.started) {
		h.t.Fatalf("there are only %d processes", len(h.started))
	}
	return h.started[n]
}

func (h *host) hooks() Hooks[*process] {
	return Hooks[*process]{
		Start: h.start,
		Serve: func(_ context.Context, p *process) error {
			if h.onServe != nil {
				return h.onServe(p)
			}
			return nil
		},
		Lost: func(p *process, fault *Fault, wait time.Duration) {
			switch {
			case p == nil:
				h.note("not started: %v, wait %v", fault, wait)
			case fault == nil:
				h.note("left %d", p.id)
			default:
				h.note("lost %d: %v, wait %v", p.id, fault, wait)
			}
		},
		Changed: func(s Snapshot) { h.note("%s", s.State) },
		Jitter:  func() float64 { return 0.5 },
	}
}

func open(t *testing.T, limits Limits, h *host) *Supervisor[*process] {
	t.Helper()
	h.t, h.began = t, time.Now()
	s, err := Open(t.Context(), limits, h.hooks())
	if err != nil {
		t.Fatal(err)
	}
	h.sup = s
	return s
}

func (h *host) want(lines ...string) {
	h.t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := cmp.Diff(lines, h.log); d != "" {
		h.t.Errorf("history (-want +got):\n%s", d)
	}
}

func TestRestartAtOnceThenBackoffThenFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		boom := errors.New("boom")
		h.onStart = func(_ context.Context, n int) error {
			if n > 0 && n < 7 {
				return boom
			}
			return nil
		}
		s := open(t, Limits{}, h)
		h.process(0).end(errors.New("exit status 2"))
		time.Sleep(4 * time.Minute)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		h.want(
			"0s starting", "0s serving", "0s lost 0: exit status 2, wait 10s",
			"0s backing off", "0s starting", // at once
			"0s not started: boom, wait 10.05s", "0s backing off",
			"50ms starting", "50ms not started: boom, wait 10.1s", "50ms backing off",
			"150ms starting", "150ms not started: boom, wait 10.2s", "150ms backing off",
			"350ms starting", "350ms not started: boom, wait 0s",
			"350ms failed", // the circuit is open: nobody is to wait
			"1m0.35s starting", "1m0.35s not started: boom, wait 0s",
			"1m0.35s failed", // one fault is enough now
			"2m0.35s starting", "2m0.35s not started: boom, wait 0s", "2m0.35s failed",
			"3m0.35s starting", "3m0.35s serving",
			"4m0s left 7", "4m0s closed",
		)
	})
}

func TestFailedUntilStable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		s := open(t, Limits{MaxFaults: 2, OpenFor: 10 * time.Minute}, h)
		defer s.Close()
		for i := range 2 {
			h.process(i).end(errors.New("a"))
			synctest.Wait()
		}
		if got := s.Snapshot().State; got != carrier.Failed {
			t.Fatalf("state %s", got)
		}
		time.Sleep(10*time.Minute + 30*time.Second) // serves, but is not stable yet
		h.process(2).end(errors.New("b"))
		synctest.Wait()
		if got := s.Snapshot().State; got != carrier.Failed {
			t.Fatalf("state %s", got)
		}
		time.Sleep(12 * time.Minute) // serves, and is stable
		h.process(3).end(errors.New("c"))
		synctest.Wait()
		if got := s.Snapshot(); got.State != carrier.Serving || got.Restarts != 4 || got.Faults[KindCrash] != 4 {
			t.Fatalf("%+v", got)
		}
	})
}

func TestFaultsOutsideTheWindowAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		s := open(t, Limits{MaxFaults: 3}, h)
		defer s.Close()
		for i := range 12 {
			h.process(i).end(errors.New("again"))
			time.Sleep(40 * time.Second)
			if got := s.Snapshot().State; got != carrier.Serving {
				t.Fatalf("after fault %d: %s", i, got)
			}
		}
	})
}

func TestHungProcessIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		s := open(t, Limits{}, h)
		hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		p := h.process(0)
		p.stuck = true
		p.setHealth(hang)
		time.Sleep(time.Minute)
		h.want("0s starting", "0s serving",
			"7s lost 0: 3 health checks in a row failed: context deadline exceeded, wait 10s",
			"7s backing off", "7s starting", "7s serving")
		<-p.stopc
		if !p.killed {
			t.Error("the hung process was not killed")
		}
		// One slow answer is no fault.
		q := h.process(1)
		q.setHealth(hang)
		time.Sleep(4 * time.Second)
		q.setHealth(nil)
		time.Sleep(time.Minute)
		if got := s.Current(); got != q {
			t.Error("a process that was slow once is gone")
		}
		// A fault that it knows itself ends it at once.
		q.setHealth(func(context.Context) error { return &Fault{Kind: KindMemory, Err: errors.New("too large")} })
		time.Sleep(3 * time.Second)
		if n := s.Snapshot().Faults; n[KindMemory] != 1 || n[KindUnhealthy] != 1 {
			t.Errorf("faults %v", n)
		}
		s.Close()
	})
}

func TestStartTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{t: t, began: time.Now()}
		h.onStart = func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }
		_, err := Open(t.Context(), Limits{StartTimeout: 3 * time.Second}, h.hooks())
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		h.want("0s starting", "3s closed")
	})
}

// TestBegin: a first start that fails is one like all others.
func TestBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{t: t, began: time.Now()}
		h.onStart = func(_ context.Context, n int) error {
			if n == 0 {
				time.Sleep(time.Second)
			}
			if n < 2 {
				return errors.New("boom")
			}
			return nil
		}
		s := Begin(Limits{}, h.hooks())
		select {
		case <-s.Tried():
			t.Error("tried already")
		default:
		}
		<-s.Tried()
		if d := time.Since(h.began); d != time.Second {
			t.Errorf("tried after %v", d)
		}
		time.Sleep(time.Minute)
		if n := s.Snapshot(); n.State != carrier.Serving || n.Restarts != 0 || n.Faults[KindStart] != 2 {
			t.Errorf("%+v", n)
		}
		s.Close()
		h.want("0s starting", "1s not started: boom, wait 10s", "1s backing off", "1s starting", "1s not started: boom, wait 10.05s",
			"1s backing off", "1.05s starting", "1.05s serving", "1m1s left 2", "1m1s closed")

		// Whoever waits for a start that never ends is told of the end.
		h = &host{t: t, began: time.Now()}
		h.onStart = func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }
		s = Begin(Limits{}, h.hooks())
		synctest.Wait()
		s.Close()
		<-s.Tried()
	})
}

func TestCloseDuringEveryState(t *testing.T) {
	for _, c := range []struct {
		state carrier.State
		do    func(h *host)
	}{
		{carrier.Serving, func(*host) {}},
		{carrier.Starting, func(h *host) {
			h.onStart = func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }
			h.process(0).end(errors.New("x"))
		}},
		{carrier.BackingOff, func(h *host) {
			h.onStart = func(context.Context, int) error { return errors.New("no") }
			h.process(0).end(errors.New("x"))
		}},
		{carrier.Failed, func(h *host) {
			h.onStart = func(context.Context, int) error { return errors.New("no") }
			h.process(0).end(errors.New("x"))
			time.Sleep(10 * time.Second)
		}},
	} {
		t.Run(string(c.state), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &host{}
				s := open(t, Limits{}, h)
				c.do(h)
				synctest.Wait()
				if got := s.Snapshot().State; got != c.state {
					t.Fatalf("state %s", got)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error("again:", err)
				}
				if got := s.Snapshot().State; got != carrier.Closed {
					t.Errorf("state %s", got)
				}
				if p := s.Current(); p != nil {
					t.Errorf("process %d", p.id)
				}
				if err := s.Replace(t.Context(), h.start); !errors.Is(err, ErrClosed) {
					t.Errorf("Replace: %v", err)
				}
			})
		})
	}
}

func TestReplace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		s := open(t, Limits{}, h)
		old := h.process(0)
		old.busy = make(chan struct{})
		old.setHealth(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		time.Sleep(2500 * time.Millisecond) // a question is under way
		if err := s.Replace(t.Context(), h.start); err != nil {
			t.Fatal(err)
		}
		if p := s.Current(); p.id != 1 {
			t.Errorf("process %d serves", p.id)
		}
		synctest.Wait()
		select {
		case <-old.done:
			t.Error("the old process ended with a call under way")
		default:
		}
		close(old.busy)
		<-old.stopc
		time.Sleep(time.Hour)

		// What cannot start, or is refused, changes nothing.
		no := errors.New("no")
		if err := s.Replace(t.Context(), func(context.Context) (*process, error) { return nil, no }); !errors.Is(err, no) {
			t.Errorf("error %v", err)
		}
		h.onServe = func(p *process) error {
			if p.id == 2 {
				return no
			}
			return nil
		}
		if err := s.Replace(t.Context(), h.start); !errors.Is(err, no) {
			t.Errorf("error %v", err)
		}
		<-h.process(2).stopc
		if p := s.Current(); p.id != 1 {
			t.Errorf("process %d serves", p.id)
		}
		if n := s.Snapshot(); len(n.Faults) != 0 || n.Restarts != 1 {
			t.Errorf("%+v", n)
		}
		s.Close()
	})
}

func TestReplaceEndsFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		s := open(t, Limits{}, h)
		defer s.Close()
		var good atomic.Bool
		h.onStart = func(context.Context, int) error {
			if !good.Load() {
				return errors.New("bad")
			}
			return nil
		}
		h.process(0).end(errors.New("x"))
		time.Sleep(10 * time.Second)
		if got := s.Snapshot().State; got != carrier.Failed {
			t.Fatal(got)
		}
		good.Store(true)
		if err := s.Replace(t.Context(), h.start); err != nil {
			t.Fatal(err)
		}
		if got := s.Snapshot().State; got != carrier.Serving {
			t.Fatal(got)
		}
	})
}

func TestRefusedConfigurationIsAFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{}
		s := open(t, Limits{}, h)
		defer s.Close()
		h.onServe = func(p *process) error {
			if p.id == 1 {
				return errors.New("unknown key")
			}
			return nil
		}
		h.process(0).end(errors.New("x"))
		<-func() chan struct{} { synctest.Wait(); return h.process(1).stopc }()
		time.Sleep(time.Second)
		if n := s.Snapshot(); n.State != carrier.Serving || n.Faults[KindConfigure] != 1 {
			t.Errorf("%+v", n)
		}
	})
}
