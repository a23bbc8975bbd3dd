// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"

	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/sdk/storeapi"
)

// controlHeader keeps web pages from stopping stores: a browser does not send such
// a header to another origin without asking it first.
const controlHeader = "Promweave-Demo"

// farm runs the stores. Each is a StoreAPI server with a port of its own, as a
// sidecar would be; stopping one closes its port and everything behind it.
type farm struct {
	dir string

	mu     sync.Mutex
	stores map[string]*stall
	closed bool
}

// stall is one store.
type stall struct {
	addr    string // stays the same from start to start
	server  *grpc.Server
	backend *tsdb.Backend
	done    chan struct{}
}

func newFarm(dir string) *farm { return &farm{dir: dir, stores: map[string]*stall{}} }

// start starts a store; one that runs is left alone.
func (f *farm) start(ctx context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stores[name]
	if s == nil {
		s = &stall{addr: "127.0.0.1:0"}
	}
	if f.closed || s.server != nil {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.addr)
	if err != nil {
		return fmt.Errorf("demo: store %s: %w", name, err)
	}
	cluster, replica, _ := strings.Cut(name, "-")
	b, err := tsdb.Open(tsdb.Config{
		Path: filepath.Join(f.dir, name), ExternalLabels: labels.FromStrings("cluster", cluster, "replica", replica),
	}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		l.Close()
		return fmt.Errorf("demo: store %s: %w", name, err)
	}
	s.addr, s.backend, s.done = l.Addr().String(), b, make(chan struct{})
	s.server = grpc.NewServer(storeapi.ServerOptions()...)
	storeapi.NewServer(b, storeapi.ServerConfig{Name: name}).Register(s.server)
	f.stores[name] = s
	go func(server *grpc.Server, done chan struct{}) {
		defer close(done)
		_ = server.Serve(l) // it ends when it is stopped
	}(s.server, s.done)
	return nil
}

// stop stops a store at once, as a crash would.
func (f *farm) stop(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stores[name]
	if s.server == nil {
		return nil
	}
	s.server.Stop()
	<-s.done
	s.server = nil
	if err := s.backend.Close(); err != nil {
		return fmt.Errorf("demo: store %s: %w", name, err)
	}
	return nil
}

func (f *farm) close() {
	f.mu.Lock()
	f.closed = true
	names := slices.Collect(maps.Keys(f.stores))
	f.mu.Unlock()
	for _, name := range names {
		_ = f.stop(name)
	}
}

// backends are the stores as the querier sees them: four StoreAPI endpoints.
func (f *farm) backends() []config.Backend {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []config.Backend
	for _, name := range slices.Sorted(maps.Keys(f.stores)) {
		out = append(out, config.Backend{
			Name: name, Kind: config.KindStoreAPI,
			StoreAPI: &config.StoreAPI{Address: f.stores[name].addr, Compression: "none"},
		})
	}
	return out
}

// ServeHTTP answers POST /demo/stop/STORE and /demo/start/STORE.
func (f *farm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, "/demo/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	fail := func(status int, format string, args ...any) {
		http.Error(w, "demo: "+fmt.Sprintf(format, args...), status)
	}
	if r.Method != http.MethodPost || r.Header.Get(controlHeader) == "" {
		fail(http.StatusMethodNotAllowed, "stores are stopped and started by a POST with the header %s: 1", controlHeader)
		return
	}
	verb, name, _ := strings.Cut(path, "/")
	f.mu.Lock()
	known := slices.Sorted(maps.Keys(f.stores))
	f.mu.Unlock()
	if !slices.Contains(known, name) {
		fail(http.StatusNotFound, "there is no store %q; there are %s", name, strings.Join(known, ", "))
		return
	}
	var err error
	switch verb {
	case "stop":
		err = f.stop(name)
	case "start":
		err = f.start(r.Context(), name)
	default:
		fail(http.StatusNotFound, "stores can be stopped and started, not %q", verb)
		return
	}
	if err != nil {
		fail(http.StatusInternalServerError, "%v", err)
		return
	}
	fmt.Fprintf(w, "demo: %s: done\n", name)
}
