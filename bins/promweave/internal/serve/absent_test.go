// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/plugins/filters/auth"
	"github.com/promweave/promweave/plugins/filters/labelrewrite"
	"github.com/promweave/promweave/sdk/filter"
	pluginserve "github.com/promweave/promweave/sdk/plugin/serve"
	"github.com/promweave/promweave/sdk/plugin/wire"
)

// freeAddress is one where nothing listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serveFilter is a filter as a service.
func serveFilter(t *testing.T, f filter.Filter, address string) {
	t.Helper()
	srv, err := pluginserve.NewServer(pluginserve.Config{Filter: f})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(wire.ServerOptions()...)
	srv.Register(g)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l)
	}()
	t.Cleanup(func() {
		g.Stop()
		<-done
		_ = srv.Close()
	})
}

// TestFilterThatComesLater: a server starts without a filter that is a service which is
// down. What is behind the filter is missing, all else is answered; once the service is
// there the filter is in force, without anybody doing anything.
func TestFilterThatComesLater(t *testing.T) {
	address := freeAddress(t)
	cfg := testConfig(t)
	cfg.SelfScrape.Interval = 50e6
	cfg.Plugins.Dir = t.TempDir()
	cfg.Filters = []config.Filter{{Name: "names", Plugin: &config.Plugin{Launch: config.LaunchDial, Address: address}, OnFailure: "open", Config: `{"set": {"origin": "acme"}}`}}
	cfg.Backends = append(cfg.Backends, config.Backend{Name: "behind", TSDB: &config.TSDB{Path: cfg.Backends[0].TSDB.Path, ReadOnly: true}, Filters: []string{"names"}})
	var more atomic.Bool
	s := start(t, Options{Load: func() (config.Config, error) {
		if c := cfg; more.Load() {
			c.Filters = append(c.Filters[:1:1], config.Filter{Name: "further", Plugin: &config.Plugin{Launch: config.LaunchDial, Address: freeAddress(t)}})
			return c, nil
		}
		return cfg, nil
	}}, "http", plainClient())
	s.eventually("/api/v1/query?query=count(up)", `"1"]`)
	s.eventually("/api/v1/query?query=up", "missing behind")
	s.eventually("/api/v1/plugins", `"state":"backing off"`)
	// A reload that changes nothing about it is none of its business; one that brings a
	// further filter which is not there is refused.
	if code, body := s.do("POST", "/-/reload"); code != http.StatusOK {
		t.Errorf("reload: %d %s", code, body)
	}
	more.Store(true)
	if code, body := s.do("POST", "/-/reload"); code != http.StatusInternalServerError || !strings.Contains(body, "filter further") {
		t.Errorf("reload: %d %s", code, body)
	}
	more.Store(false)

	serveFilter(t, labelrewrite.New(), address)
	s.eventually("/api/v1/query?query=up", `"origin":"acme"`)
	if _, body := s.do("GET", "/api/v1/query?query=up"); strings.Contains(body, "missing") {
		t.Errorf("the filter is there: %s", body)
	}
	s.eventually("/api/v1/plugins", `"state":"serving"`)
}

// TestAuthThatComesLater: nobody is let in before the filter that decides is there.
func TestAuthThatComesLater(t *testing.T) {
	address := freeAddress(t)
	cfg := testConfig(t)
	cfg.SelfScrape.Interval = 50e6
	cfg.Plugins.Dir = t.TempDir()
	cfg.Filters = []config.Filter{{Name: "rules", Plugin: &config.Plugin{Launch: config.LaunchDial, Address: address}, Config: `{"rules": [{"allow": true}]}`}}
	cfg.Query.Filters = []string{"rules"}
	s := start(t, Options{Load: func() (config.Config, error) { return cfg, nil }}, "http", plainClient())
	for _, path := range []string{"/api/v1/query?query=up", "/api/v1/labels", "/api/v1/plugins", "/metrics"} {
		if code, body := s.do("GET", path); code != http.StatusServiceUnavailable || strings.Contains(body, `__name__`) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	serveFilter(t, auth.New(), address)
	s.eventually("/api/v1/query?query=up", `"job":"promweave"`)
}
