// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/plugins/filters/auth"
	"github.com/promweave/promweave/plugins/filters/labelrewrite"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	pluginserve "github.com/promweave/promweave/sdk/plugin/serve"
	"github.com/promweave/promweave/sdk/plugin/wire"
)

func readOnly(path string, required bool) config.Backend {
	return config.Backend{Name: "later", Kind: "tsdb", TSDB: &config.TSDB{Path: path, ReadOnly: true}, Required: required}
}

// TestMissingDirectory: a database that is not there yet stops neither a start nor
// a reload, unless it is required; its absence is known.
func TestMissingDirectory(t *testing.T) {
	cfg := testConfig(t)
	dir := filepath.Join(t.TempDir(), "none")
	cfg.Backends = append(cfg.Backends, readOnly(dir, false))
	loaded := make(chan config.Config, 1)
	loaded <- cfg
	s := start(t, Options{Load: func() (config.Config, error) { return <-loaded, nil }}, "http", plainClient())
	s.eventually("/metrics", `promweave_backend_healthy{backend="later",kind="tsdb"} 0`)
	s.eventually("/api/v1/stores", dir+": no such file")
	s.eventually("/api/v1/query?query=up", `"warnings":[`)
	s.eventually("/api/v1/query?query=up", "later")

	// A reload leaves it, takes it out and puts one in.
	cfg.Query.LookbackDelta = time.Minute
	loaded <- cfg
	if code, body := s.do("POST", "/-/reload"); code != 200 {
		t.Errorf("reload: %d %s", code, body)
	}
	without := cfg
	without.Backends = cfg.Backends[:1]
	loaded <- without
	if code, body := s.do("POST", "/-/reload"); code != 200 {
		t.Errorf("reload without it: %d %s", code, body)
	}
	loaded <- cfg
	if code, body := s.do("POST", "/-/reload"); code != 200 {
		t.Errorf("reload with it: %d %s", code, body)
	}
	s.eventually("/api/v1/stores", dir+": no such file")

	cfg = testConfig(t)
	cfg.Backends = append(cfg.Backends, readOnly(dir, true))
	err := Run(t.Context(), Options{Load: func() (config.Config, error) { return cfg, nil }, Log: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "backend later") {
		t.Errorf("start without a required directory: %v", err)
	}
	// A file that the configuration names is part of it.
	cfg.Backends[1] = config.Backend{Name: "s", Kind: "storeapi", StoreAPI: &config.StoreAPI{
		Address: "127.0.0.1:1", Compression: "none", TLS: config.ClientTLS{Enabled: true, CA: filepath.Join(dir, "ca.pem")},
	}}
	err = Run(t.Context(), Options{Load: func() (config.Config, error) { return cfg, nil }, Log: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "ca.pem") {
		t.Errorf("start without a CA: %v", err)
	}
}

// TestLateOpens: the first Info after the directory is there opens it.
func TestLateOpens(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	reg := prometheus.NewRegistry()
	b, err := openReadOnly(false, func() (*tsdb.Backend, error) { return tsdb.Open(tsdb.Config{Path: dir}, nil, reg) })
	if err != nil {
		t.Fatal(err)
	}
	all := func() error {
		_, err1 := b.LabelNames(t.Context(), &backend.LabelNamesRequest{})
		_, err2 := b.LabelValues(t.Context(), &backend.LabelValuesRequest{Name: "a"})
		_, _, err3 := b.(backend.StatisticsBackend).Statistics(t.Context(), 1)
		var err4 error
		for _, err := range b.Series(t.Context(), &backend.SeriesRequest{}) {
			err4 = err
		}
		for _, err := range []error{err1, err2, err3, err4} {
			if (err == nil) != (err1 == nil) || err != nil && !errors.Is(err, backend.ErrUnavailable) {
				t.Errorf("the calls differ: %v, %v, %v, %v", err1, err2, err3, err4)
			}
		}
		return err1
	}
	for range 2 {
		if _, err := b.Info(t.Context()); !errors.Is(err, backend.ErrUnavailable) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("info without a directory: %v", err)
		}
		if err := all(); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("calls without a directory: %v", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	if info, err := b.Info(t.Context()); err != nil || !info.Capabilities.Statistics || info.Capabilities.Exemplars || info.Capabilities.Metadata {
		t.Errorf("info with a directory: %+v, %v", info, err)
	}
	if err := all(); err != nil {
		t.Errorf("calls with a directory: %v", err)
	}
	if ms, err := reg.Gather(); err != nil || len(ms) == 0 {
		t.Errorf("%d metrics once it is open (%v)", len(ms), err)
	}
	if err := b.(backend.Closer).Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.Info(t.Context()); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("info after the end: %v", err)
	}
}

// TestLateIsSlow: Info does not wait longer than it may, one try runs at a time,
// and what a try opens after the end is closed.
func TestLateIsSlow(t *testing.T) {
	dir := t.TempDir()
	for _, closeFirst := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			tries, opened := 0, (*tsdb.Backend)(nil)
			l := &late{err: os.ErrNotExist, open: func() (backend.Backend, func() error, error) {
				tries++
				time.Sleep(time.Minute)
				var err error
				opened, err = tsdb.Open(tsdb.Config{Path: dir}, nil, nil)
				return opened, opened.Close, err
			}}
			for range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				if _, err := l.Info(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, backend.ErrUnavailable) {
					t.Errorf("info while it is being opened: %v", err)
				}
				cancel()
			}
			if closeFirst {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			_, err := l.Info(t.Context())
			if tries != 1 || (err == nil) == closeFirst {
				t.Errorf("closed first: %v, tries: %d, info: %v", closeFirst, tries, err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := opened.Info(t.Context()); err == nil {
				t.Error("what was opened is open at the end")
			}
		})
	}
}

// TestPluginThatDoesNotStart: a backend that is not required and whose program ends at
// once is expected, and told of; one that is required, or a file that is not what it
// should be, stops the start.
func TestPluginThatDoesNotStart(t *testing.T) {
	dir, err := os.MkdirTemp("", "pw") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program := filepath.Join(dir, "ends")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho out of disk >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	p := &config.Plugin{Launch: config.LaunchSpawn, Path: program, SHA256: hex.EncodeToString(sum[:])}
	cfg := testConfig(t)
	cfg.Plugins.Dir = filepath.Join(dir, "p")
	cfg.Backends = append(cfg.Backends, config.Backend{Name: "acme", Plugin: p, ExternalLabels: map[string]string{"cluster": "far"}})
	s := start(t, Options{Load: func() (config.Config, error) { return cfg, nil }}, "http", plainClient())
	s.eventually("/api/v1/stores", "status 3")
	s.eventually("/api/v1/query?query=up", "missing acme")
	s.eventually(`/api/v1/query?query=up{cluster="far"}`, "missing acme")
	// It has never said what it has, but its external labels are known.
	if code, body := s.do("GET", `/api/v1/query?query=up{cluster="near"}&partial_response=false`); code != 200 || strings.Contains(body, "acme") {
		t.Errorf("a query that does not concern it: %d %s", code, body)
	}

	for what, change := range map[string]func(b *config.Backend){
		"required": func(b *config.Backend) { b.Required = true },
		"changed": func(b *config.Backend) {
			b.Plugin = &config.Plugin{Launch: p.Launch, Path: p.Path, SHA256: strings.Repeat("0", 64)}
		},
		"missing": func(b *config.Backend) {
			b.Plugin = &config.Plugin{Launch: p.Launch, Path: p.Path + "x", SHA256: p.SHA256}
		},
	} {
		bad := testConfig(t)
		bad.Plugins.Dir = filepath.Join(dir, what)
		b := cfg.Backends[len(cfg.Backends)-1]
		change(&b)
		bad.Backends = append(bad.Backends, b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // it would serve for ever
		err := Run(ctx, Options{Load: func() (config.Config, error) { return bad, nil }, Log: io.Discard})
		cancel()
		if err == nil || !strings.Contains(err.Error(), "backend acme") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestPluginThatDoesNotReplace: a reload does not put a backend that does not start in
// the place of one that is in force.
func TestPluginThatDoesNotReplace(t *testing.T) {
	dir, err := os.MkdirTemp("", "pw") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, script := filepath.Join(dir, "ends"), []byte("#!/bin/sh\nexit 3\n")
	if err := os.WriteFile(program, script, 0o700); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(script)
	cfg := testConfig(t)
	cfg.Plugins.Dir = filepath.Join(dir, "p")
	none := filepath.Join(t.TempDir(), "none")
	cfg.Backends = append(cfg.Backends, readOnly(none, false))
	loaded := make(chan config.Config, 1)
	loaded <- cfg
	s := start(t, Options{Load: func() (config.Config, error) { return <-loaded, nil }}, "http", plainClient())
	s.eventually("/api/v1/stores", none)

	changed := cfg
	changed.Backends = []config.Backend{cfg.Backends[0], {Name: "later", Plugin: &config.Plugin{
		Launch: config.LaunchSpawn, Path: program, SHA256: hex.EncodeToString(sum[:]),
	}}}
	loaded <- changed
	if code, body := s.do("POST", "/-/reload"); code != 500 || !strings.Contains(body, "status 3") {
		t.Errorf("reload: %d %s", code, body)
	}
	s.eventually("/api/v1/stores", none)
}

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
