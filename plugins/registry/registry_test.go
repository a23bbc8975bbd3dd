// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

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
	b, release, err := r.Backend(t.Context(), "far", registry.Spec{Launch: registry.Dial, Address: addr}, nil)
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
	_, _, err := r.Backend(context.Background(), "b", registry.Spec{Launch: registry.Dial, Address: listen(t, program)}, nil)
	if err == nil || !strings.Contains(err.Error(), "is a filter, not a store backend") {
		t.Errorf("got %v", err)
	}
}
