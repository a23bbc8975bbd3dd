// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package tally_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/internal/tally"
	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFault(t *testing.T) {
	err := tally.Fault("acme", "series", backend.ErrUnavailable, context.DeadlineExceeded)
	if !errors.Is(err, carrier.ErrFault) || !errors.Is(err, context.DeadlineExceeded) || backend.Kind(err) != backend.ErrUnavailable {
		t.Errorf("%v", err)
	}
	if err.Error() != "plug-in acme: series: context deadline exceeded" {
		t.Error(err)
	}
}

func TestTally(t *testing.T) {
	// Plug-ins share a registry.
	reg := prometheus.NewRegistry()
	a, b := tally.New("a", "dial", "here"), tally.New("b", "dial", "there")
	reg.MustRegister(a, b)
	done := a.Call()
	a.Fault(tally.Crash, errors.New("x"))
	a.Fault(tally.Crash, errors.New("y"))
	a.Restarted()
	a.State(carrier.Closed)
	a.State(carrier.Serving)
	s := a.Status()
	if s.State != carrier.Closed || s.Busy != 1 || s.Calls != 1 || s.Restarts != 1 || s.Faults[tally.Crash] != 2 || s.LastFault != "y" || s.LastFaultTime.IsZero() {
		t.Errorf("%+v", s)
	}
	s.Faults["mine"] = 1
	if len(a.Status().Faults) != 1 {
		t.Error("the status is not a copy")
	}
	done()
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP promweave_plugin_calls_running Calls of a plug-in that are running.
# TYPE promweave_plugin_calls_running gauge
promweave_plugin_calls_running{launch="dial",plugin="a"} 0
promweave_plugin_calls_running{launch="dial",plugin="b"} 0
# HELP promweave_plugin_faults_total Faults of a plug-in.
# TYPE promweave_plugin_faults_total counter
promweave_plugin_faults_total{kind="crash",launch="dial",plugin="a"} 2
# HELP promweave_plugin_restarts_total Times that a plug-in was started again.
# TYPE promweave_plugin_restarts_total counter
promweave_plugin_restarts_total{launch="dial",plugin="a"} 1
promweave_plugin_restarts_total{launch="dial",plugin="b"} 0
`), "promweave_plugin_calls_running", "promweave_plugin_faults_total", "promweave_plugin_restarts_total"); err != nil {
		t.Error(err)
	}
}
