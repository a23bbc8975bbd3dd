// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package spawn_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/carrier/carriertest"
	"github.com/promweave/promweave/plugins/spawn"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

func TestCarrier(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("mtls=%t", !plain), func(t *testing.T) {
			load := func(pkg, name string) func(t *testing.T) carrier.Plugin {
				return func(t *testing.T) carrier.Plugin {
					path, sum := program(t, "../carrier/carriertest/testplugin/"+pkg)
					dir := runtimeDir(t)
					p, err := spawn.Open(t.Context(), spawn.Config{
						Name: name, Path: path, SHA256: sum, RuntimeDir: dir, DisableMTLS: plain,
						CallTime: 2 * time.Second, RetryTime: 10 * time.Second,
						Limits: spawn.Limits{StartTimeout: time.Minute, HealthTimeout: 10 * time.Second, MaxFaults: 100},
					}, nil, nil)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { closeAll(t, p, dir) })
					return p
				}
			}
			carriertest.Run(t, carriertest.Carrier{Filter: load("filter", "faulty"), Backend: load("store", "teststore"), Isolated: true})
		})
	}
}

// Streams of several instances of one process go on over a replacement, and over a kill
// fail only if they had begun to answer.
func TestStreamsUnderLoad(t *testing.T) {
	path, sum := program(t, "../carrier/carriertest/testplugin/store")
	p := open(t, spawn.Config{Name: "teststore", Path: path, SHA256: sum, RuntimeDir: runtimeDir(t), RetryTime: time.Minute,
		Limits: spawn.Limits{StartTimeout: time.Minute, DrainTimeout: time.Minute, HealthTimeout: 10 * time.Second}})
	const series = 3000
	all := labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+")
	var killing atomic.Bool
	var whole, broken atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 4 {
		b, err := p.Backend(t.Context(), &filter.Config{Name: fmt.Sprint("s", i), JSON: fmt.Appendf(nil, `{"series":%d,"samples":5,"batch":100,"cluster":"c%d"}`, series, i)})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				n := 0
				var failed error
				for batch, err := range b.Series(t.Context(), &backend.SeriesRequest{MaxTime: 1 << 40, Matchers: []*labels.Matcher{all}}) {
					if err != nil {
						failed = err
						break
					}
					n += batch.Len()
				}
				switch {
				case failed == nil && n == series:
					whole.Add(1)
				case failed == nil:
					t.Errorf("%d series and no error", n)
				case !killing.Load():
					t.Errorf("after %d series: %v", n, failed)
				case n == 0:
					t.Errorf("a stream that had yielded nothing was not tried again: %v", failed)
				case !errors.Is(failed, carrier.ErrFault) || !errors.Is(failed, backend.ErrUnavailable):
					t.Errorf("error %v", failed)
				default:
					broken.Add(1)
				}
			}
		})
	}
	goOn := func() {
		at := whole.Load()
		eventually(t, "streams go on", func() bool { return whole.Load() > at+8 })
	}
	goOn()
	for range 2 {
		if err := p.Replace(t.Context(), path, sum); err != nil {
			t.Error(err)
		}
		goOn()
	}
	killing.Store(true)
	for range 2 {
		before := p.Status().Restarts
		syscall.Kill(p.Status().PID, syscall.SIGKILL)
		eventually(t, "serving again", func() bool { s := p.Status(); return s.Restarts > before && s.State == carrier.Serving })
		goOn()
	}
	stop()
	wg.Wait()
	t.Logf("%d streams whole, %d broken", whole.Load(), broken.Load())
}
