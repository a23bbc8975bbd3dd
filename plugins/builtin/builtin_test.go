// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package builtin_test

import (
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/builtin"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/carrier/carriertest"
	"github.com/promweave/promweave/plugins/carrier/carriertest/faultfilter"
	"github.com/promweave/promweave/plugins/carrier/carriertest/teststore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gate holds back calls that hang until they are let go.
type gate struct {
	mu sync.Mutex
	ch chan struct{}
}

func newGate() *gate { return &gate{ch: make(chan struct{})} }

func (g *gate) wait() {
	g.mu.Lock()
	ch := g.ch
	g.mu.Unlock()
	<-ch
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.ch)
	g.ch = make(chan struct{})
}

func open(t *testing.T, cfg builtin.Config) carrier.Plugin {
	t.Helper()
	p, err := builtin.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCarrier(t *testing.T) {
	g := newGate()
	carriertest.Run(t, carriertest.Carrier{
		Filter: func(t *testing.T) carrier.Plugin {
			return open(t, builtin.Config{Filter: faultfilter.New(g.wait), CallTime: time.Second})
		},
		Backend: func(t *testing.T) carrier.Plugin { return open(t, builtin.Config{Backend: teststore.New()}) },
		Unhang:  g.open,
	})
}
