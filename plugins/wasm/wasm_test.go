// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/internal/tally"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// configOf is a configuration for a module in testdata.
func configOf(t testing.TB, file string, change ...func(*Config)) Config {
	t.Helper()
	path := filepath.Join("testdata", file)
	if filepath.IsAbs(file) {
		path = file
	}
	c := Config{Name: "guest", Path: path, SHA256: digest(t, path)}
	for _, f := range change {
		f(&c)
	}
	return c
}

func digest(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// open loads a module; at the end of the test nothing may be left of it.
func open(t testing.TB, file string, change ...func(*Config)) *Plugin {
	t.Helper()
	p, err := Open(t.Context(), configOf(t, file, change...), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if s := p.Status(); s.Instances != 0 || s.Busy != 0 || s.MemoryBytes != 0 || s.State != carrier.Closed {
			t.Errorf("left after Close: %+v", s)
		}
	})
	return p
}

func newFilter(t testing.TB, p *Plugin, name string) carrier.Filter {
	t.Helper()
	f, err := p.Filter(t.Context(), &filter.Config{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// podFrame is a frame of rows with ten labels.
func podFrame(t testing.TB, rows int) []byte {
	t.Helper()
	var b frame.Builder
	for i := range rows {
		b.AddRow(podLabels(i)...)
	}
	out, err := b.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func podLabels(i int) []string {
	return []string{
		"__name__", "container_cpu_usage_seconds_total", "container", fmt.Sprintf("app-%d", i%7), "cpu", fmt.Sprint(i % 8),
		"image", "registry.example.com/team/app:v1.2.3", "instance", fmt.Sprintf("10.0.%d.%d:10250", i%16, i%250), "job", "kubelet",
		"namespace", fmt.Sprintf("team-%d", i%20), "node", fmt.Sprintf("node-%d", i%50),
		"pod", fmt.Sprintf("app-%d-%x", i, i*7919), "pod_template_hash", fmt.Sprintf("%x", i*104729),
	}
}

// callHook calls one hook of a filter.
func callHook(ctx context.Context, f carrier.Filter, hook string, rows []byte) error {
	var err error
	switch hook {
	case "request":
		_, err = f.Request(ctx, &filter.RequestCall{Query: "up"})
	case "select":
		_, err = f.Select(ctx, &filter.SelectCall{Backend: "b"})
	case "rewrite":
		_, err = f.Rewrite(ctx, rows, nil)
	}
	return err
}

// TestHostile does the worst in each hook: the plug-in is named, the instance is gone,
// others go on, and memory stays within bounds.
func TestHostile(t *testing.T) {
	kinds := map[string]string{
		"trap": faultTrap, "divide": faultTrap, "spin": faultTimeout, "exponential": faultTimeout, "fill": faultTimeout,
		"endless": faultStack, "bomb": faultMemory, "outside": faultReply, "long": faultReply, "lie": faultReply,
		"garbage": faultReply, "wrong": faultReply, "pointer": faultReply,
	}
	rows := podFrame(t, 10)
	limit := func(c *Config) {
		c.Limits.InstanceMemory, c.Limits.Memory = 4<<20, 16<<20
		c.Limits.CallTime = 10 * time.Millisecond
	}
	for _, hook := range []string{"request", "select", "rewrite"} {
		for action, kind := range kinds {
			t.Run(hook+" "+action, func(t *testing.T) {
				p := open(t, "hostile.wasm", limit)
				good, bad := newFilter(t, p, "good"), newFilter(t, p, hook+" "+action)
				err := callHook(t.Context(), bad, hook, rows)
				var fault *Fault
				if !errors.As(err, &fault) || !errors.Is(err, carrier.ErrFault) {
					t.Fatalf("got %v, want a fault", err)
				}
				if fault.Kind != kind || fault.Plugin != "guest" || fault.Hook != hook || !strings.Contains(err.Error(), `plug-in "guest"`) {
					t.Errorf("got %q, want kind %q of hook %q", err, kind, hook)
				}
				s := p.Status()
				if diff := cmp.Diff(map[string]int{kind: 1}, s.Faults); diff != "" {
					t.Error(diff)
				}
				if s.MemoryBytes > 4<<20 || s.Instances != 1 || s.Busy != 0 || s.LastFault != err.Error() || s.State != carrier.Serving {
					t.Errorf("status is %+v", s)
				}
				for _, other := range []string{"request", "select", "rewrite"} {
					if err := callHook(t.Context(), good, other, rows); err != nil {
						t.Errorf("%s of the other instance: %v", other, err)
					}
				}
				// The faulty one is back with a fresh instance, and as bad as before.
				if err := callHook(t.Context(), bad, hook, rows); !errors.As(err, &fault) || fault.Kind != kind {
					t.Errorf("the second call: %v", err)
				}
			})
		}
	}
}

func TestHostileConfigure(t *testing.T) {
	for action, kind := range map[string]string{
		"trap": faultTrap, "endless": faultStack, "garbage": faultReply, "bomb": faultMemory, "outside": faultReply, "spin": faultTimeout,
	} {
		t.Run(action, func(t *testing.T) {
			p := open(t, "hostile.wasm", func(c *Config) { c.Limits.CallTime = time.Millisecond; c.Limits.InstanceMemory = 4 << 20 })
			_, err := p.Filter(t.Context(), &filter.Config{Name: "configure " + action})
			var fault *Fault
			if !errors.As(err, &fault) || fault.Kind != kind {
				t.Errorf("got %v, want %s", err, kind)
			}
			if err := callHook(t.Context(), newFilter(t, p, "good"), "request", nil); err != nil {
				t.Error(err)
			}
		})
	}
	p := open(t, "hostile.wasm")
	if _, err := p.Filter(t.Context(), &filter.Config{Name: "configure refuse"}); !errors.Is(err, backend.ErrLimit) || errors.Is(err, carrier.ErrFault) {
		t.Errorf("a configuration that is refused: %v", err)
	}
	if _, err := p.Backend(t.Context(), &filter.Config{}); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("a filter as a backend: %v", err)
	}
	if _, err := p.Filter(t.Context(), &filter.Config{JSON: []byte(`[]`)}); err == nil {
		t.Error("a configuration that is no object is taken")
	}
}

func TestAlloc(t *testing.T) {
	p := open(t, "hostile.wasm")
	rows := podFrame(t, 10)
	for mode, kind := range map[string]string{
		"alloc zero": faultMemory, "alloc odd": faultReply, "alloc far": faultReply, "alloc trap": faultTrap, "alloc endless": faultStack,
	} {
		var fault *Fault
		if err := callHook(t.Context(), newFilter(t, p, mode), "rewrite", rows); !errors.As(err, &fault) || fault.Kind != kind {
			t.Errorf("%s: got %v, want %s", mode, err, kind)
		}
		// The circuit must not open in this test.
		p.mu.Lock()
		p.recent = nil
		p.mu.Unlock()
	}
}

// TestNoFault has what a module may do without being at fault.
func TestNoFault(t *testing.T) {
	p := open(t, "hostile.wasm", func(c *Config) { c.Limits.InstanceMemory = 1 << 20 })
	err := callHook(t.Context(), newFilter(t, p, "request refuse"), "request", nil)
	if !errors.Is(err, backend.ErrLimit) || errors.Is(err, carrier.ErrFault) || !strings.Contains(err.Error(), "as asked for") {
		t.Errorf("an error of the module: %v", err)
	}
	for _, mode := range []string{"request grow", "request noise"} {
		if err := callHook(t.Context(), newFilter(t, p, mode), "request", nil); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
	}
	if s := p.Status(); len(s.Faults) != 0 || s.Instances != 3 {
		t.Errorf("status is %+v", s)
	}
	p.mu.Lock()
	dropped := p.dropped
	p.mu.Unlock()
	if dropped == 0 {
		t.Error("1000 lines at once are all logged")
	}
}

func TestFuelCap(t *testing.T) {
	p := open(t, "hostile.wasm", func(c *Config) { c.Limits.Fuel = 1e6; c.Limits.CallTime = time.Hour })
	var fault *Fault
	if err := callHook(t.Context(), newFilter(t, p, "request spin"), "request", nil); !errors.As(err, &fault) || fault.Kind != faultFuel {
		t.Errorf("got %v", err)
	}
	p.mu.Lock()
	fuel := p.fuel
	p.mu.Unlock()
	if fuel < 1e6 || fuel > 1e6+3*quantum {
		t.Errorf("%d units were used of a cap of 1e6", fuel)
	}
}

// TestBudget fills the plug-in's memory; what is there goes on.
func TestBudget(t *testing.T) {
	p := open(t, "hostile.wasm", func(c *Config) { c.Limits.InstanceMemory, c.Limits.Memory = 1<<20, 1<<20+2<<16 })
	good := newFilter(t, p, "good")
	if err := callHook(t.Context(), newFilter(t, p, "request grow"), "request", nil); err != nil {
		t.Fatal(err)
	}
	if used := p.Status().MemoryBytes; used > 1<<20+2<<16 {
		t.Errorf("%d bytes are in use", used)
	}
	_, err := p.Filter(t.Context(), &filter.Config{Name: "third"})
	var fault *Fault
	if !errors.As(err, &fault) || fault.Kind != faultMemory {
		t.Errorf("a third instance: %v", err)
	}
	if err := callHook(t.Context(), good, "request", nil); err != nil {
		t.Error(err)
	}
}

// TestCircuit opens the circuit with five faults, tries again after ever longer
// times, and closes it.
func TestCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := open(t, "hostile.wasm")
		bad, good := newFilter(t, p, "request trap"), newFilter(t, p, "good")
		for range circuitFaults {
			if err := callHook(t.Context(), bad, "request", nil); !errors.Is(err, carrier.ErrFault) || errors.Is(err, backend.ErrUnavailable) {
				t.Fatal(err)
			}
		}
		backoff := firstBackoff
		for range 8 {
			for range 2 { // one attempt only, the other is refused
				if s := p.Status(); s.State != carrier.Failed {
					t.Fatalf("state is %s at %v", s.State, backoff)
				}
				time.Sleep(backoff / 3)
				err := callHook(t.Context(), good, "request", nil)
				if !errors.Is(err, carrier.ErrFault) || !errors.Is(err, backend.ErrUnavailable) {
					t.Fatalf("the circuit is not open: %v", err)
				}
			}
			time.Sleep(backoff)
			if err := callHook(t.Context(), bad, "request", nil); errors.Is(err, backend.ErrUnavailable) {
				t.Fatalf("no attempt after %v: %v", backoff, err)
			}
			backoff = min(2*backoff, lastBackoff)
		}
		time.Sleep(backoff)
		if err := callHook(t.Context(), good, "request", nil); err != nil {
			t.Fatal(err)
		}
		if s := p.Status(); s.State != carrier.Serving || s.Faults[faultTrap] != circuitFaults+8 || s.Restarts != circuitFaults+8 {
			t.Errorf("status is %+v", s)
		}
		// Faults that are far apart do not open it.
		for range 2 * circuitFaults {
			if err := callHook(t.Context(), bad, "request", nil); errors.Is(err, backend.ErrUnavailable) {
				t.Fatal(err)
			}
			time.Sleep(circuitWindow / (circuitFaults - 1))
		}
	})
}

// TestLargeCalls: to be late with a large call is a fault that is counted, and takes nobody
// out, whether the circuit is closed or tries.
func TestLargeCalls(t *testing.T) {
	p := open(t, "hostile.wasm")
	spin, bad, good := newFilter(t, p, "request spin"), newFilter(t, p, "request trap"), newFilter(t, p, "good")
	large := carrier.Large(t.Context())
	for range circuitFaults + 1 {
		if err := callHook(large, spin, "request", nil); !errors.Is(err, carrier.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if s := p.Status(); s.State != carrier.Serving || s.Faults[faultTimeout] != circuitFaults+1 {
		t.Errorf("%+v", s)
	}
	for range circuitFaults {
		_ = callHook(large, bad, "request", nil) // a trap has nothing to do with the size
	}
	if s := p.Status(); s.State != carrier.Failed {
		t.Errorf("%+v", s)
	}
	time.Sleep(firstBackoff)
	if err := callHook(large, spin, "request", nil); !errors.Is(err, carrier.ErrTimeout) {
		t.Error(err)
	}
	// That attempt has taught nothing: the next one may be made at once.
	if err := callHook(t.Context(), good, "request", nil); err != nil {
		t.Error(err)
	}
	if s := p.Status(); s.State != carrier.Serving {
		t.Errorf("%+v", s)
	}
}

// TestTrial: configurations that are no good leave those in use alone, and one that is
// good is taken while the plug-in is out.
func TestTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := open(t, "hostile.wasm")
		good, bad := newFilter(t, p, "good"), newFilter(t, p, "request trap")
		for range 2 * circuitFaults {
			if _, err := p.Filter(t.Context(), &filter.Config{Name: "configure trap"}); !errors.Is(err, carrier.ErrFault) || errors.Is(err, backend.ErrUnavailable) {
				t.Fatalf("configure: %v", err)
			}
		}
		if err := callHook(t.Context(), good, "request", nil); err != nil {
			t.Errorf("a configuration that nothing uses took the plug-in out: %v", err)
		}
		if s := p.Status(); s.State != carrier.Serving || s.Faults[faultTrap] != 2*circuitFaults {
			t.Errorf("status is %+v", s)
		}
		for range circuitFaults {
			_ = callHook(t.Context(), bad, "request", nil)
		}
		if s := p.Status(); s.State != carrier.Failed {
			t.Fatalf("state is %s", s.State)
		}
		if _, err := p.Filter(t.Context(), &filter.Config{Name: "other"}); err != nil {
			t.Errorf("a configuration that would mend it is refused: %v", err)
		}
	})
}

// TestPool holds all instances; others wait, until they are given up.
func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := open(t, "hostile.wasm", func(c *Config) { c.Limits.Instances = 2; c.Limits.IdleTime = time.Hour })
		a, b, c := newFilter(t, p, "a").(*moduleFilter), newFilter(t, p, "b"), newFilter(t, p, "c")
		if s := p.Status(); s.Instances != 2 {
			t.Fatalf("%d instances, of 2", s.Instances)
		}
		var held []*instance
		for range 2 {
			in, err := p.acquire(t.Context(), a.c)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, in)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := callHook(ctx, b, "request", nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "all 2 instances are busy") {
			t.Errorf("got %v", err)
		}
		var wg sync.WaitGroup
		for _, f := range []carrier.Filter{b, c, a} {
			wg.Go(func() {
				if err := callHook(t.Context(), f, "request", nil); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		for _, in := range held {
			p.release(in, nil)
		}
		wg.Wait()
		if s := p.Status(); s.Busy != 0 || s.Instances > 2 || len(p.waiters) != 0 {
			t.Errorf("status is %+v", s)
		}
	})
}

// TestIdle lets a module tidy up after many calls, and closes what nobody uses.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := open(t, "hostile.wasm", func(c *Config) { c.Limits.Instances = 4 })
		f := newFilter(t, p, "good").(*moduleFilter)
		for range tidyAfter {
			if err := callHook(t.Context(), f, "request", nil); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if s := p.Status(); !cmp.Equal(s.LastLines, []string{"tidied up"}) || p.hooks[hookIdle].calls != 1 {
			t.Errorf("%d idle calls after %d calls; %+v", p.hooks[hookIdle].calls, tidyAfter, s)
		}
		var held []*instance
		for range 3 {
			in, err := p.acquire(t.Context(), f.c)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, in)
		}
		for _, in := range held {
			p.release(in, nil)
		}
		if n := p.Status().Instances; n != 3 {
			t.Fatalf("%d instances", n)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if n := p.Status().Instances; n != 1 {
			t.Errorf("%d instances are left", n)
		}
		bad := newFilter(t, p, "idle trap")
		for range tidyAfter {
			if err := callHook(t.Context(), bad, "request", nil); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if s := p.Status(); s.Faults[faultTrap] != 1 {
			t.Errorf("a trap in idle: %+v", s)
		}
	})
}

// TestReject: a reply that turned out to be invalid costs all instances of the
// configuration.
func TestReject(t *testing.T) {
	p := open(t, "hostile.wasm")
	f := newFilter(t, p, "good")
	busy, err := p.acquire(t.Context(), f.(*moduleFilter).c)
	if err != nil {
		t.Fatal(err)
	}
	err = f.(carrier.Rejecter).Reject(errors.New("label x is written, which the plan does not name"))
	if !errors.Is(err, carrier.ErrFault) || !strings.Contains(err.Error(), `plug-in "guest": rewrite: invalid reply: label x`) {
		t.Error(err)
	}
	p.release(busy, nil)
	if s := p.Status(); s.Instances != 0 || s.Faults[faultReply] != 1 {
		t.Errorf("status is %+v", s)
	}
	if err := callHook(t.Context(), f, "request", nil); err != nil {
		t.Error(err)
	}
}

// TestCancelled: a request that ends while the module works costs the instance and
// is no fault.
func TestCancelled(t *testing.T) {
	p := open(t, "hostile.wasm", func(c *Config) { c.Limits.CallTime = time.Hour })
	f := newFilter(t, p, "request spin")
	cause := errors.New("nobody wants it")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error)
	go func() { done <- callHook(ctx, f, "request", nil) }()
	for p.Status().Busy == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) || errors.Is(err, carrier.ErrFault) {
		t.Errorf("got %v", err)
	}
	if s := p.Status(); len(s.Faults) != 0 || s.Instances != 0 {
		t.Errorf("status is %+v", s)
	}
}

// TestCloseBusy closes under a call that does not end by itself.
func TestCloseBusy(t *testing.T) {
	p := open(t, "hostile.wasm", func(c *Config) { c.Limits.CallTime = time.Hour })
	p.closeTime = 10 * time.Millisecond
	f := newFilter(t, p, "request spin")
	done := make(chan error)
	go func() { done <- callHook(t.Context(), f, "request", nil) }()
	for p.Status().Busy == 0 {
		time.Sleep(time.Millisecond)
	}
	closed := make(chan error)
	go func() { closed <- p.Close() }()
	if err := <-done; !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("the call: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := callHook(t.Context(), f, "request", nil); !errors.Is(err, carrier.ErrFault) || !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := p.Filter(t.Context(), &filter.Config{}); err == nil {
		t.Error("a filter after Close")
	}
	if err := p.Reload(t.Context(), p.config.Path, p.config.SHA256); err == nil {
		t.Error("Reload after Close")
	}
}

// TestMetrics also registers the metrics of another carrier beside these: names and
// help must agree.
func TestMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(tally.New("other", "spawn", "x")); err != nil {
		t.Fatal(err)
	}
	p, err := Open(t.Context(), configOf(t, "hostile.wasm"), nil, registry)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), configOf(t, "hostile.wasm"), nil, registry); err == nil {
		t.Error("two plug-ins with one name")
	}
	f := newFilter(t, p, "request trap")
	if err := callHook(t.Context(), f, "request", nil); err == nil {
		t.Error("no trap")
	}
	got := map[string]bool{}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		got[family.GetName()] = true
	}
	for _, name := range []string{"calls_total", "faults_total", "state", "wasm_hook_seconds_total", "wasm_fuel_units_total", "wasm_instances", "wasm_memory_bytes"} {
		if !got["promweave_plugin_"+name] {
			t.Errorf("no metric %s among %v", name, got)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	families, err = registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == "guest" {
					t.Errorf("%s is left after Close", family.GetName())
				}
			}
		}
	}
}

// TestReload replaces the module under load: no call fails.
func TestReload(t *testing.T) {
	p := open(t, "hostile.wasm", func(c *Config) { c.Limits.CallTime = time.Minute })
	filters := []carrier.Filter{newFilter(t, p, "one"), newFilter(t, p, "two")}
	// Another version: a custom section at the end changes the bytes and nothing else.
	b, err := os.ReadFile("testdata/hostile.wasm")
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for i := range 4 {
		path := filepath.Join(t.TempDir(), fmt.Sprintf("v%d.wasm", i))
		if err := os.WriteFile(path, append(b[:len(b):len(b)], 0, 3, 1, 'v', byte('0'+i)), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	rows := podFrame(t, 100)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := callHook(t.Context(), filters[i%2], []string{"request", "rewrite", "select"}[n%3], rows); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for _, path := range paths {
		if err := p.Reload(t.Context(), path, digest(t, path)); err != nil {
			t.Error(err)
		}
		if s := p.Status(); s.SHA256 != digest(t, path) || s.Origin != path {
			t.Errorf("status is %+v", s)
		}
	}
	close(stop)
	wg.Wait()
	// An instance of an old one may be with the tidier still, which nobody waits for.
	left := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.versions)
	}
	for deadline := time.Now().Add(10 * time.Second); left() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d versions are left", left())
		}
	}
	// What is wrong leaves the old one.
	want := p.Status().SHA256
	for _, file := range []string{"store.wasm", "rewrite.wasm"} {
		if err := p.Reload(t.Context(), filepath.Join("testdata", file), digest(t, filepath.Join("testdata", file))); err == nil {
			t.Errorf("%s took over", file)
		}
	}
	if err := p.Reload(t.Context(), paths[0], want[1:]+"0"); err == nil {
		t.Error("a wrong digest")
	}
	if s := p.Status(); s.SHA256 != want || s.State != carrier.Serving {
		t.Errorf("status is %+v", s)
	}
	if err := callHook(t.Context(), filters[0], "rewrite", rows); err != nil {
		t.Error(err)
	}
}
