// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package membership_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func entry(name string, b backend.Backend) membership.Entry {
	return membership.Entry{Spec: membership.Spec{Name: name, Kind: "fake"}, Backend: b}
}

func info(kv ...string) backend.Info {
	i := backend.Info{MinTime: 100, MaxTime: 200}
	if len(kv) > 0 {
		i.LabelSets = []labels.Labels{labels.FromStrings(kv...)}
	}
	return i
}

func TestHealthComesAndGoes(t *testing.T) {
	var err error
	b := &fakestore.Script{OnInfo: func(context.Context) (backend.Info, error) { return info("cluster", "eu1"), err }}
	s := membership.New([]membership.Entry{entry("a", b)}, membership.Options{})
	defer s.Close()

	v := s.Acquire()
	if m := v.Members[0]; v.Checked || m.Healthy || m.Known || s.Ready() {
		t.Errorf("before the first round: checked %v, ready %v, %+v", v.Checked, s.Ready(), m.Status)
	}
	if m := v.Members[0]; m.Info.MinTime != math.MinInt64 || m.Info.MaxTime != math.MaxInt64 || m.Info.LabelSets != nil {
		t.Errorf("an unknown member must be taken to hold anything: %+v", m.Info)
	}
	v.Release()

	s.Refresh(t.Context())
	st := s.Status()[0]
	if !st.Healthy || !st.Known || st.LastError != "" || len(st.Info.LabelSets) != 1 || st.LastCheck.IsZero() {
		t.Errorf("healthy: %+v", st)
	}
	checked := st.LastCheck

	err = errors.New("no route to host")
	s.Refresh(t.Context())
	st = s.Status()[0]
	if st.Healthy || !st.Known || !strings.Contains(st.LastError, "no route to host") {
		t.Errorf("unhealthy: %+v", st)
	}
	if len(st.Info.LabelSets) != 1 || st.Info.MinTime != 100 {
		t.Errorf("what is known must survive: %+v", st.Info)
	}
	if !st.LastCheck.Equal(checked) {
		t.Errorf("LastCheck is of the last success: %v, was %v", st.LastCheck, checked)
	}

	err = nil
	s.Refresh(t.Context())
	if st = s.Status()[0]; !st.Healthy || st.LastError != "" {
		t.Errorf("healthy again: %+v", st)
	}
}

func TestNeverHealthyIsCheckedAndExpected(t *testing.T) {
	b := &fakestore.Script{OnInfo: func(context.Context) (backend.Info, error) { return backend.Info{}, errors.New("refused") }}
	s := membership.New([]membership.Entry{entry("a", b)}, membership.Options{})
	defer s.Close()
	s.Refresh(t.Context())
	v := s.Acquire()
	defer v.Release()
	if m := v.Members[0]; !v.Checked || m.Healthy || m.Known || m.LastError == "" {
		t.Errorf("checked %v, %+v", v.Checked, m.Status)
	}
}

// TestExternal: what the configuration says of a backend counts until it has said more.
func TestExternal(t *testing.T) {
	err := errors.New("refused")
	b := &fakestore.Script{OnInfo: func(context.Context) (backend.Info, error) { return info("cluster", "eu1", "replica", "a"), err }}
	e := entry("a", b)
	e.External = labels.FromStrings("cluster", "eu1")
	s := membership.New([]membership.Entry{e}, membership.Options{})
	defer s.Close()
	s.Refresh(t.Context())
	if st := s.Status()[0]; st.Known || len(st.Info.LabelSets) != 1 || !labels.Equal(st.Info.LabelSets[0], e.External) {
		t.Errorf("before it has said anything: %+v", st)
	}
	err = nil
	s.Refresh(t.Context())
	if st := s.Status()[0]; !st.Known || len(st.Info.LabelSets) != 1 || st.Info.LabelSets[0].Get("replica") != "a" {
		t.Errorf("afterwards: %+v", st)
	}
}

func TestPanicInInfo(t *testing.T) {
	b := &fakestore.Script{OnInfo: func(context.Context) (backend.Info, error) { panic("boom") }}
	s := membership.New([]membership.Entry{entry("a", b), entry("b", &fakestore.Script{})}, membership.Options{})
	defer s.Close()
	s.Refresh(t.Context())
	st := s.Status()
	if st[0].Healthy || !strings.Contains(st[0].LastError, "boom") || !st[1].Healthy {
		t.Errorf("%+v", st)
	}
}

func TestHangingInfo(t *testing.T) {
	for _, heeds := range []bool{true, false} {
		t.Run(map[bool]string{true: "heeds its context", false: "ignores its context"}[heeds], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				var hang atomic.Bool
				var calls atomic.Int64
				hang.Store(true)
				b := &fakestore.Script{OnInfo: func(ctx context.Context) (backend.Info, error) {
					calls.Add(1)
					switch {
					case !hang.Load():
					case heeds:
						<-ctx.Done()
						return backend.Info{}, context.Cause(ctx)
					default:
						<-release
					}
					return info(), nil
				}}
				other := &fakestore.Script{}
				s := membership.New([]membership.Entry{entry("a", b), entry("b", other)}, membership.Options{Timeout: 5 * time.Second})
				begin := time.Now()
				s.Refresh(t.Context())
				if d := time.Since(begin); d < 5*time.Second || d > 6*time.Second {
					t.Errorf("a round took %v, want the timeout and at most a second", d)
				}
				st := s.Status()
				if st[0].Healthy || !strings.Contains(st[0].LastError, "5s") || !st[1].Healthy {
					t.Errorf("%+v", st)
				}
				v := s.Acquire()
				if !v.Checked {
					t.Error("a member that hangs has been asked, so the set has been checked")
				}
				v.Release()

				begin = time.Now()
				s.Refresh(t.Context())
				if heeds {
					if calls.Load() != 2 {
						t.Errorf("asked %d times", calls.Load())
					}
				} else {
					if calls.Load() != 1 {
						t.Errorf("asked %d times although the first call still hangs", calls.Load())
					}
					if d := time.Since(begin); d != 0 {
						t.Errorf("one that still hangs held up the next round for %v", d)
					}
				}
				hang.Store(false)
				close(release)
				synctest.Wait()
				if !heeds && !s.Status()[0].Healthy {
					t.Error("Info came back well, late as it was: healthy again")
				}
				s.Refresh(t.Context())
				if !s.Status()[0].Healthy {
					t.Errorf("%+v", s.Status()[0])
				}
				s.Close()
				if b.Closed.Load() != 1 || other.Closed.Load() != 1 {
					t.Errorf("closed %d and %d times", b.Closed.Load(), other.Closed.Load())
				}
			})
		})
	}
}

// TestManyHangingInfos: the time of a round must not grow with the number of
// members that hang.
func TestManyHangingInfos(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var es []membership.Entry
		for i := range 30 {
			es = append(es, entry(string(rune('a'+i)), &fakestore.Script{OnInfo: func(context.Context) (backend.Info, error) {
				<-release
				return info(), nil
			}}))
		}
		s := membership.New(es, membership.Options{Timeout: 5 * time.Second})
		begin := time.Now()
		s.Refresh(t.Context())
		if d := time.Since(begin); d > 6*time.Second {
			t.Errorf("%v", d)
		}
		close(release)
		synctest.Wait()
		s.Close()
	})
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rounds atomic.Int64
		b := &fakestore.Script{OnInfo: func(context.Context) (backend.Info, error) { rounds.Add(1); return info(), nil }}
		s := membership.New([]membership.Entry{entry("a", b)}, membership.Options{Interval: 5 * time.Second})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Second)
		if rounds.Load() != 1 || !s.Ready() {
			t.Errorf("%d rounds after a second", rounds.Load())
		}
		time.Sleep(10 * time.Second)
		if rounds.Load() != 3 {
			t.Errorf("%d rounds after 11 s", rounds.Load())
		}
		v := s.Acquire()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if b.Closed.Load() != 0 {
			t.Error("closed under a query")
		}
		v.Release()
		if n := b.Closed.Load(); n != 1 {
			t.Errorf("closed %d times after Run and the last query, want once", n)
		}
		s.Close()
		if n := b.Closed.Load(); n != 1 {
			t.Errorf("closed %d times", n)
		}
		if v := s.Acquire(); v.Checked {
			t.Error("a closed set has no backends, and must not pass for a complete one")
		}
	})
}

// TestRetry: what was well a while ago is asked often, and what has been down for long
// is not; one that hangs is left alone.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down, hangs atomic.Bool
		var asked atomic.Int64
		b := &fakestore.Script{OnInfo: func(ctx context.Context) (backend.Info, error) {
			asked.Add(1)
			if hangs.Load() {
				<-ctx.Done()
			}
			if down.Load() {
				return backend.Info{}, errors.New("down")
			}
			return info(), nil
		}}
		set := membership.New([]membership.Entry{entry("a", b)}, membership.Options{})
		healthy := func() bool { return set.Status()[0].Healthy }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- set.Run(ctx) }()
		down.Store(true)
		time.Sleep(5*time.Second + 100*time.Millisecond) // a round has found out
		if healthy() {
			t.Error("down, and healthy")
		}
		asked.Store(0)
		time.Sleep(3 * time.Second)
		if n := asked.Load(); n < 2 || n > 4 {
			t.Errorf("asked %d times in 3 s", n)
		}
		down.Store(false)
		time.Sleep(1100 * time.Millisecond)
		if !healthy() {
			t.Error("back for more than a second, and not healthy")
		}
		hangs.Store(true)
		time.Sleep(time.Minute)
		asked.Store(0)
		time.Sleep(time.Minute)
		if n := asked.Load(); n > 12 {
			t.Errorf("one that hangs was asked %d times in a minute", n)
		}
		hangs.Store(false)
		down.Store(true)
		time.Sleep(10 * time.Minute)
		asked.Store(0)
		time.Sleep(time.Minute)
		if n := asked.Load(); n < 11 || n > 13 {
			t.Errorf("one that has been down for long was asked %d times in a minute", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

type group struct {
	fakestore.Script
	mu      sync.Mutex
	members []backend.Member
	panics  bool
}

func (g *group) Members() []backend.Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.panics {
		panic("boom")
	}
	return g.members
}

func (g *group) set(ms ...backend.Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members = ms
}

func TestGroup(t *testing.T) {
	a := &fakestore.Script{OnInfo: func(context.Context) (backend.Info, error) { return info("cluster", "a"), nil }}
	b := &fakestore.Script{OnInfo: func(context.Context) (backend.Info, error) { return info("cluster", "b"), nil }}
	g := &group{}
	s := membership.New([]membership.Entry{entry("g", g)}, membership.Options{})
	s.Refresh(t.Context())
	if st := s.Status(); len(st) != 1 || st[0].Name != "g" || st[0].Gone == "" {
		t.Errorf("a group that found nothing is missing, not absent: %+v", st)
	}
	g.set(backend.Member{Name: "h:1", Backend: a}, backend.Member{Name: "h:2", Backend: b})
	s.Refresh(t.Context())
	st := s.Status()
	if len(st) != 2 || st[0].Name != "g/h:1" || st[0].Address != "h:1" || !st[0].Healthy || !st[1].Healthy {
		t.Errorf("%+v", st)
	}
	// One goes: still expected, still known, and not healthy before any refresh.
	g.set(backend.Member{Name: "h:1", Backend: a, Gone: "not in DNS"}, backend.Member{Name: "h:2", Backend: b})
	for range 2 {
		st = s.Status()
		if len(st) != 2 || st[0].Healthy || st[0].Gone != "not in DNS" || !st[0].Known || len(st[0].Info.LabelSets) != 1 || !st[1].Healthy {
			t.Errorf("%+v", st)
		}
		s.Refresh(t.Context())
	}
	v := s.Acquire()
	if !v.Checked {
		t.Error("a gone member leaves the set checked")
	}
	v.Release()
	// It comes back.
	g.set(backend.Member{Name: "h:1", Backend: a}, backend.Member{Name: "h:2", Backend: b})
	s.Refresh(t.Context())
	if st = s.Status(); !st[0].Healthy || st[0].Gone != "" {
		t.Errorf("%+v", st[0])
	}
	// Another store under the same name inherits nothing.
	g.set(backend.Member{Name: "h:1", Backend: b})
	if st = s.Status(); st[0].Known || st[0].Healthy || st[0].Info.LabelSets != nil {
		t.Errorf("%+v", st[0])
	}
	s.Close()
	if g.Closed.Load() != 1 || a.Closed.Load()+b.Closed.Load() != 0 {
		t.Error("the group is closed, its members are the group's to close")
	}
}

// TestGroupPanics: discovery is a third party's code too.
func TestGroupPanics(t *testing.T) {
	g := &group{panics: true}
	s := membership.New([]membership.Entry{entry("g", g), entry("h", &fakestore.Script{})}, membership.Options{})
	defer s.Close()
	s.Refresh(t.Context())
	if st := s.Status(); len(st) != 2 || !strings.Contains(st[0].Gone, "boom") || !st[1].Healthy {
		t.Errorf("%+v", st)
	}
}

func TestReplaceUnderQueries(t *testing.T) {
	closed := func(b *fakestore.Script, want int64) {
		t.Helper()
		if n := b.Closed.Load(); n != want {
			t.Errorf("closed %d times, want %d", n, want)
		}
	}
	a, b, c := &fakestore.Script{}, &fakestore.Script{}, &fakestore.Script{}
	s := membership.New([]membership.Entry{entry("a", a), entry("b", b)}, membership.Options{})
	s.Refresh(t.Context())
	v1, v2 := s.Acquire(), s.Acquire()
	s.Replace([]membership.Entry{entry("b", b), entry("c", c)})
	if v := s.Acquire(); v.Checked || len(v.Members) != 2 || v.Members[0].Name != "b" || !v.Members[0].Known || v.Members[1].Known {
		t.Errorf("after Replace: checked %v, %+v", v.Checked, v.Members)
	} else {
		v.Release()
	}
	closed(a, 0)
	v1.Release()
	v1.Release() // twice is once
	closed(a, 0)
	v2.Release()
	closed(a, 1)
	closed(b, 0)
	closed(c, 0)
	s.Close()
	closed(a, 1)
	closed(b, 1)
	closed(c, 1)
}

// TestReplaceTwiceUnderQueries: a backend of two retired generations is closed
// after the last query on either, and once.
func TestReplaceTwiceUnderQueries(t *testing.T) {
	x := &fakestore.Script{}
	s := membership.New([]membership.Entry{entry("x", x)}, membership.Options{})
	v1 := s.Acquire()
	s.Replace([]membership.Entry{entry("x", x)})
	v2 := s.Acquire()
	s.Replace(nil)
	v1.Release()
	if n := x.Closed.Load(); n != 0 {
		t.Errorf("closed %d times under a query", n)
	}
	v2.Release()
	if n := x.Closed.Load(); n != 1 {
		t.Errorf("closed %d times, want once", n)
	}
}

// TestSameBackendTwice: one backend under two names is one thing to close.
func TestSameBackendTwice(t *testing.T) {
	x := &fakestore.Script{}
	s := membership.New([]membership.Entry{entry("x", x), entry("y", x)}, membership.Options{})
	s.Refresh(t.Context())
	if st := s.Status(); !st[0].Healthy || !st[1].Healthy {
		t.Errorf("%+v", st)
	}
	s.Close()
	if n := x.Closed.Load(); n != 1 {
		t.Errorf("closed %d times, want once", n)
	}
}

// TestReplaceRaces closes each backend exactly once, whatever the interleaving.
func TestReplaceRaces(t *testing.T) {
	all := make([]*fakestore.Script, 40)
	for i := range all {
		all[i] = &fakestore.Script{}
	}
	at := func(i int) []membership.Entry {
		return []membership.Entry{entry("a", all[i]), entry("b", all[i+1])}
	}
	s := membership.New(at(0), membership.Options{Timeout: time.Second})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := s.Acquire()
				for _, m := range v.Members {
					if m.Backend.(*fakestore.Script).Closed.Load() != 0 {
						t.Error("a view holds a closed backend")
					}
				}
				v.Release()
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				s.Refresh(context.Background())
			}
		}
	})
	for i := range len(all) - 1 {
		s.Replace(at(i))
	}
	close(stop)
	wg.Wait()
	s.Close()
	for i, b := range all {
		if n := b.Closed.Load(); n != 1 {
			t.Errorf("backend %d closed %d times", i, n)
		}
	}
}

func TestWindow(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	for _, c := range []struct {
		name     string
		w        membership.Window
		min, max int64
	}{
		{"none", membership.Window{}, math.MinInt64, math.MaxInt64},
		{"absolute", membership.Window{Min: membership.Bound{Set: true, At: 5}, Max: membership.Bound{Set: true, At: 7}}, 5, 7},
		{"absolute zero", membership.Window{Min: membership.Bound{Set: true}}, 0, math.MaxInt64},
		{"relative", membership.Window{Min: membership.Bound{Set: true, At: -400_000, Relative: true}, Max: membership.Bound{Set: true, Relative: true}}, 600_000, 1_000_000},
		{"beyond all time", membership.Window{Min: membership.Bound{Set: true, At: math.MinInt64, Relative: true}, Max: membership.Bound{Set: true, At: math.MaxInt64, Relative: true}}, math.MinInt64 + 1_000_000, math.MaxInt64},
	} {
		lo, hi := c.w.Range(now)
		if lo != c.min || hi != c.max {
			t.Errorf("%s: %d to %d, want %d to %d", c.name, lo, hi, c.min, c.max)
		}
	}
}

func TestWindowMovesWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := entry("a", &fakestore.Script{})
		e.Window.Max = membership.Bound{Set: true, At: -3_600_000, Relative: true}
		e.Timeout, e.Required = time.Minute, true
		s := membership.New([]membership.Entry{e}, membership.Options{})
		s.Refresh(t.Context())
		for range 2 {
			v := s.Acquire()
			want := time.Now().Add(-time.Hour).UnixMilli()
			if m := v.Members[0]; m.AskMax != want || m.Info.MaxTime != want || m.AskMin != math.MinInt64 || m.Timeout != time.Minute || !m.Required {
				t.Errorf("%+v, want up to %d", m, want)
			}
			v.Release()
			time.Sleep(time.Hour)
		}
		s.Close()
	})
}

// TestSwap: a query right after it knows the new backends, even if one of them
// hangs, and the old ones are closed.
func TestSwap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		info := func(labels.Labels) *fakestore.Store { return fakestore.Holding(labels.FromStrings("a", "1")) }
		old := fakestore.Sends()
		s := membership.New([]membership.Entry{{Spec: membership.Spec{Name: "old", Kind: "test"}, Backend: old}}, membership.Options{})
		s.Refresh(t.Context())
		hang := info(labels.EmptyLabels())
		hang.InfoError = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		s.Swap(t.Context(), []membership.Entry{
			{Spec: membership.Spec{Name: "hang", Kind: "test"}, Backend: hang},
			{Spec: membership.Spec{Name: "new", Kind: "test"}, Backend: info(labels.EmptyLabels())},
		})
		v := s.Acquire()
		defer v.Release()
		if !v.Checked || len(v.Members) != 2 || v.Members[0].Healthy || v.Members[0].LastError == "" || !v.Members[1].Healthy {
			t.Errorf("checked %v, members %+v", v.Checked, v.Members)
		}
		if old.Closed.Load() != 1 {
			t.Errorf("the old backend was closed %d times", old.Closed.Load())
		}
	})
}
