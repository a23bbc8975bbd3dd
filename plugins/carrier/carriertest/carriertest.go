// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package carriertest is the suite that every carrier of plug-ins passes: the same
// traffic, with the same answers to the byte, and the same faults, after which the
// host goes on. The plug-ins that it uses are in testplugin, built as the carrier needs
// them; what they do is in faultfilter and teststore.
package carriertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/promweave/promweave/plugins/builtin"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/carrier/carriertest/faultfilter"
	"github.com/promweave/promweave/plugins/carrier/carriertest/teststore"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// Carrier is what is tested.
type Carrier struct {
	// Filter and Backend load testplugin/filter and testplugin/store. Each test loads its
	// own and closes it. One that is nil is what the carrier cannot carry. A call of a
	// hook must be limited to a few seconds at most.
	Filter, Backend func(t *testing.T) carrier.Plugin
	// Isolated: the plug-in may end its process or trap, and is brought back.
	Isolated bool
	// Unhang, if set, ends the calls that hang, for carriers that cannot.
	Unhang func()
}

// patience is how long the suite waits for what has to happen; it is not measured.
const patience = 30 * time.Second

// Run runs the suite.
func Run(t *testing.T, c Carrier) {
	if c.Filter != nil {
		t.Run("filter", func(t *testing.T) { c.filters(t) })
	}
	if c.Backend != nil {
		t.Run("backend", func(t *testing.T) { c.backends(t) })
	}
}

// Reference returns the filter, compiled in, that answers are compared with.
func Reference(t *testing.T) carrier.Plugin {
	t.Helper()
	p, err := builtin.New(builtin.Config{Filter: faultfilter.New(func() {}), CallTime: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePlugin(t, p) })
	return p
}

// ReferenceStore returns the store, compiled in, that answers are compared with.
func ReferenceStore(t *testing.T) carrier.Plugin {
	t.Helper()
	p, err := builtin.New(builtin.Config{Backend: teststore.New(), CallTime: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closePlugin(t, p) })
	return p
}

func closePlugin(t *testing.T, p carrier.Plugin) {
	if err := p.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if s := p.Status(); s.State != carrier.Closed {
		t.Errorf("after Close the state is %q", s.State)
	}
	if err := p.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

func (c *Carrier) openFilter(t *testing.T) carrier.Plugin {
	t.Helper()
	p := c.Filter(t)
	t.Cleanup(func() { closePlugin(t, p) })
	return p
}

func (c *Carrier) openBackend(t *testing.T) carrier.Plugin {
	t.Helper()
	p := c.Backend(t)
	t.Cleanup(func() { closePlugin(t, p) })
	return p
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// config is a configuration as the host makes it of a document.
func config(doc string) *filter.Config {
	settings, err := filter.Settings([]byte(doc))
	if err != nil {
		panic(err) // The suite's own documents are well-formed.
	}
	return &filter.Config{Name: "test", JSON: []byte(doc), Settings: settings}
}

func configure(t *testing.T, p carrier.Plugin, doc string) carrier.Filter {
	t.Helper()
	f, err := p.Filter(limited(t), config(doc))
	if err != nil {
		t.Fatalf("configuring %s: %v", doc, err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("closing the instance: %v", err)
		}
	})
	return f
}

func configureStore(t *testing.T, p carrier.Plugin, doc string) backend.Backend {
	t.Helper()
	b, err := p.Backend(limited(t), config(doc))
	if err != nil {
		t.Fatalf("configuring %s: %v", doc, err)
	}
	t.Cleanup(func() {
		if err := b.(backend.Closer).Close(); err != nil {
			t.Errorf("closing the instance: %v", err)
		}
	})
	return b
}

// isFault fails unless err is a fault by rule C-2.
func isFault(t *testing.T, p carrier.Plugin, err error) {
	t.Helper()
	if !errors.Is(err, carrier.ErrFault) {
		t.Errorf("error %v is no fault", err)
	}
	// A call can fail some moments before whoever watches the process sees its end.
	eventually(t, "the status does not show the fault", func(context.Context) error {
		s := p.Status()
		n := 0
		for _, k := range s.Faults {
			n += k
		}
		if n == 0 || s.LastFault == "" || s.LastFaultTime.IsZero() {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// eventually calls f until it returns nil.
func eventually(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx := limited(t)
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func testDescription(t *testing.T, p carrier.Plugin, name string, isBackend bool) {
	t.Helper()
	d := p.Description()
	if d.Name != name || d.Version != "1.0.0" || d.Backend != isBackend || d.ConfigSchema != `{"type":"object"}` || d.Summary == "" {
		t.Errorf("description %+v", d)
	}
	s := p.Status()
	if s.State != carrier.Serving || s.Launch == "" || s.Origin == "" || s.Since.IsZero() {
		t.Errorf("status %+v", s)
	}
}

func testBadConfig(t *testing.T, configure func(ctx context.Context, c *filter.Config) error, docs map[string]string) {
	for doc, key := range docs {
		err := configure(limited(t), config(doc))
		if err == nil {
			t.Errorf("%s is accepted", doc)
			continue
		}
		if backend.Kind(err) != backend.ErrInvalid || errors.Is(err, carrier.ErrFault) {
			t.Errorf("%s: error %v has kind %v, or is a fault", doc, err, backend.Kind(err))
		}
		if !contains(err, key) {
			t.Errorf("%s: error %v does not name %q", doc, err, key)
		}
	}
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }
