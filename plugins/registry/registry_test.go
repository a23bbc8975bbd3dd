// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/sdk/backend"
)

// TestServiceThatIsDown: a backend whose service does not answer is one that is down,
// and no mistake in the configuration.
func TestServiceThatIsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	r := newRegistry(t, nil)
	b, release, err := r.Backend(t.Context(), "far", registry.Spec{Launch: registry.Dial, Address: addr}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	defer func() {
		if err := b.(backend.Closer).Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := b.Info(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("info: %v", err)
	}
	if s := r.Statuses(); len(s) != 1 || s[0].Name != "far" || s[0].State == "serving" {
		t.Errorf("%+v", s)
	}
}

// TestServiceOfAnotherKind: what a service is counts as soon as it has said so.
func TestServiceOfAnotherKind(t *testing.T) {
	program, _ := build(t, "promweave-tenancy", false)
	r := newRegistry(t, nil)
	_, _, err := r.Backend(context.Background(), "b", registry.Spec{Launch: registry.Dial, Address: listen(t, program)}, nil, false)
	if err == nil || !strings.Contains(err.Error(), "is a filter, not a store backend") {
		t.Errorf("got %v", err)
	}
}

// TestProgramThatEnds: a program that ends as soon as it starts is a backend that is
// down, is shown as that, and is left alone after a few attempts. The path of the
// directory may be too long for sockets.
func TestProgramThatEnds(t *testing.T) {
	dir := t.TempDir()
	program, starts := filepath.Join(dir, "ends"), filepath.Join(dir, "starts")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho >>"+starts+"\necho no database >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	spec := registry.Spec{Launch: registry.Spawn, Path: program, SHA256: digestOf(t, program)}
	metrics := make(chan *prometheus.Registry, 2)
	r := newRegistry(t, func(o *registry.Options) {
		o.Dir = filepath.Join(dir, strings.Repeat("x", 80))
		o.Metrics = func(_ string, reg *prometheus.Registry) { metrics <- reg }
	})
	if _, _, err := r.Backend(t.Context(), "must", spec, nil, true); !errors.Is(err, carrier.ErrFault) || !strings.Contains(err.Error(), "no database") {
		t.Errorf("one that has to serve: %v", err)
	}
	<-metrics
	<-metrics // it is gone
	b, release, err := r.Backend(t.Context(), "acme", spec, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	defer func() { _ = b.(backend.Closer).Close() }()
	var s registry.Status
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s = r.Statuses()[0]
		if s.State == carrier.Failed {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", s)
		}
	}
	if s.Name != "acme" || !s.Backend || s.Description.Known || s.Faults["start"] != 5 || s.SHA256 != spec.SHA256 ||
		!strings.Contains(s.LastFault, "status 3") || len(s.LastLines) != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := b.Info(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("info: %v", err)
	}
	if _, err := r.Filter(t.Context(), "f", spec, nil, filtering.Closed); !errors.Is(err, carrier.ErrFault) {
		t.Errorf("a filter: %v", err)
	}
	if err := testutil.GatherAndCompare(<-metrics, strings.NewReader(`
# HELP promweave_plugin_info 1 for each plug-in: where it is from, who signed it and what it may do.
# TYPE promweave_plugin_info gauge
promweave_plugin_info{kind="backend",launch="spawn",name="",origin="`+program+`",permissions="",plugin="acme",sha256="`+spec.SHA256+`",signer="",version=""} 1
`), "promweave_plugin_info"); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(starts); err != nil || len(b) < 6 {
		t.Errorf("%q %v", b, err)
	}
}
