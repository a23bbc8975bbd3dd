// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package storeapi is the backend for endpoints that speak the Thanos StoreAPI:
// sidecars, store gateways, receivers, rulers, queriers, and Promweave itself.
// One configured backend stands for any number of them, found by name, by DNS or
// in files, and is a [backend.Group].
//
// # Which endpoints are expected
//
// An endpoint with a plain address in the configuration is expected for ever. One
// that DNS named, or a file listed, and does so no more is expected, as gone, for
// Config.Forget: long enough that a restart, a node that is lost, or a program that
// wrote too short a list shows as a gap in answers instead of passing for a
// complete answer without it; short enough that scaling down ends by itself. A
// lookup that fails, a file that cannot be read, or one that is not there, changes
// nothing: what it said before holds. A name or file that never led to an endpoint
// is a member by itself that is gone, so that a slip in the configuration is not
// taken for an empty store. A target in a file that is no address at all is one
// too, but only as long as it is there.
package storeapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storeapi"
)

// Config is the configuration of the backend.
type Config struct {
	// Address and Addresses name endpoints:
	//
	//	host:port                    one endpoint
	//	dns+host:port                each address that A and AAAA records give
	//	dnssrv+_grpc._tcp.name       SRV records, and addresses of their targets
	//	dnssrvnoa+_grpc._tcp.name    SRV records, their targets dialled by name
	Address   string   `koanf:"address"`
	Addresses []string `koanf:"addresses"`
	// Files are paths or patterns of YAML or JSON files with lists of targets in
	// the format of Prometheus' file_sd; labels are ignored. A target may be
	// anything that Address may be. Changes are seen in a fraction of a second.
	Files []string `koanf:"files"`
	// Group makes one endpoint of all: they must hold the same data, and calls go
	// to one at a time in turn.
	Group bool `koanf:"group"`
	// TLS, if set, is used for all endpoints.
	TLS *TLSConfig `koanf:"tls"`
	// Compression is "none", the default, or "snappy".
	Compression string `koanf:"compression"`
	// RefreshInterval is the time between lookups; 30s if zero.
	RefreshInterval time.Duration `koanf:"refresh_interval"`
	// Forget is how long an endpoint stays expected, as gone, that DNS does not name
	// or a file does not list any more; 5m if zero, which is when Thanos forgets
	// endpoints too.
	Forget time.Duration `koanf:"forget"`
	// Resolver is the host:port of a DNS server; those of /etc/resolv.conf if empty.
	Resolver string `koanf:"resolver"`

	// StatsHandlers watch the calls, for traces and metrics.
	StatsHandlers []stats.Handler `koanf:"-"`
}

// TLSConfig says how endpoints prove who they are, and how we do.
type TLSConfig struct {
	// CA is the file with the certificates to trust; those of the system if empty.
	CA string `koanf:"ca"`
	// Cert and Key are the files of the client certificate, read for each new
	// connection so that they may be renewed.
	Cert string `koanf:"cert"`
	Key  string `koanf:"key"`
	// ServerName is expected in the certificate; if empty, the host as configured
	// (with dns+), as the SRV record has it, or as in the address.
	ServerName         string `koanf:"server_name"`
	InsecureSkipVerify bool   `koanf:"insecure_skip_verify"`
	// MinVersion is TLS12, the default, or TLS13.
	MinVersion string `koanf:"min_version"`
}

const (
	defaultRefresh = 30 * time.Second
	defaultForget  = 5 * time.Minute
	// lookupTimeout bounds one round of lookups.
	lookupTimeout = 10 * time.Second
)

// Endpoints are the endpoints of one configured backend.
type Endpoints struct {
	backend.Unimplemented

	cfg  Config
	log  *slog.Logger
	tls  *tls.Config // nil: plain text
	stop context.CancelFunc
	done sync.WaitGroup

	// round is held during a round of discovery.
	round  sync.Mutex
	finder *finder
	// updated, if set, is called after every round; for tests.
	updated func()

	mu      sync.Mutex
	open    map[string]*endpoint // by address
	lost    map[string]*lost     // by source
	group   *group               // with Config.Group
	members []backend.Member
	// single: one address that is no name of several.
	single bool
}

var (
	_ backend.Group  = (*Endpoints)(nil)
	_ backend.Closer = (*Endpoints)(nil)
)

// New checks cfg, looks endpoints up once and keeps doing so until Close. It does
// not fail if none is found; connections are made when they are first used.
func New(cfg Config, logger *slog.Logger) (*Endpoints, error) {
	return newEndpoints(cfg, logger, nil)
}

func newEndpoints(cfg Config, logger *slog.Logger, updated func()) (*Endpoints, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if cfg.RefreshInterval == 0 {
		cfg.RefreshInterval = defaultRefresh
	}
	if cfg.Forget == 0 {
		cfg.Forget = defaultForget
	}
	if cfg.RefreshInterval < 0 || cfg.Forget < 0 {
		return nil, errors.New("storeapi: refresh_interval and forget must not be negative")
	}
	names := cfg.Addresses
	if cfg.Address != "" {
		names = append([]string{cfg.Address}, names...)
	}
	if len(names)+len(cfg.Files) == 0 {
		return nil, errors.New("storeapi: no endpoint is configured; set address, addresses or files")
	}
	single := len(names) == 1 && len(cfg.Files) == 0 && !strings.Contains(names[0], "+")
	e := &Endpoints{cfg: cfg, single: single, log: logger, open: map[string]*endpoint{}, lost: map[string]*lost{}, updated: updated}
	var err error
	if e.tls, err = cfg.TLS.build(); err != nil {
		return nil, fmt.Errorf("storeapi: tls: %w", err)
	}
	if _, err = storeapi.DialOptions(storeapi.DialConfig{Compression: cfg.Compression}); err != nil {
		return nil, fmt.Errorf("storeapi: compression: %w", err)
	}
	e.finder, err = newFinder(names, cfg.Files, cfg.Forget, newResolver(cfg.Resolver), logger)
	if err != nil {
		return nil, fmt.Errorf("storeapi: %w", err)
	}
	if cfg.Group {
		if e.group, err = newGroup(e, strings.Join(slices.Concat(names, cfg.Files), ",")); err != nil {
			return nil, err
		}
	}
	w, err := newWatcher(cfg.Files, logger)
	if err != nil {
		e.closeAll()
		return nil, fmt.Errorf("storeapi: watch files: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.stop = cancel
	e.refresh(ctx)
	e.done.Go(func() { w.run(ctx) })
	e.done.Go(func() { e.run(ctx, w.changed) })
	return e, nil
}

func (e *Endpoints) run(ctx context.Context, changed <-chan struct{}) {
	tick := time.NewTicker(e.cfg.RefreshInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
		}
		e.refresh(ctx)
	}
}

// refresh does one round of discovery.
func (e *Endpoints) refresh(ctx context.Context) {
	e.round.Lock()
	defer e.round.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	e.apply(e.finder.round(ctx, time.Now()))
	if e.updated != nil {
		e.updated()
	}
}

// apply makes members of what was found.
func (e *Endpoints) apply(found []expected) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.group != nil {
		m := e.group.update(found)
		m.Name, m.Address = "", m.Name
		e.members = []backend.Member{m}
		return
	}
	var members []backend.Member
	keep := map[string]bool{}
	for _, x := range found {
		keep[x.name] = true
		m := backend.Member{Name: x.name, Address: x.name, Gone: x.gone}
		if e.single {
			m.Name = ""
		}
		ep := e.open[x.name]
		if ep == nil && x.addr != "" {
			conn, err := e.dial("passthrough:///"+x.addr, x.serverName)
			if err == nil {
				ep = newEndpoint(x.name, conn)
				e.open[x.name] = ep
			} else {
				m.Gone = fmt.Sprintf("%s cannot be used as an address: %s", x.addr, err)
				if e.lost[x.name] == nil {
					e.log.Warn("endpoint cannot be used and counts as missing", "address", x.addr, "err", err)
				}
			}
		}
		if ep != nil {
			m.Backend = ep
		} else {
			l := e.lost[x.name]
			if l == nil {
				l = &lost{}
				e.lost[x.name] = l
			}
			l.set(m.Gone)
			m.Backend = l
		}
		members = append(members, m)
	}
	for name, ep := range e.open {
		if !keep[name] {
			ep.retire()
			delete(e.open, name)
		}
	}
	for name := range e.lost {
		if !keep[name] {
			delete(e.lost, name)
		}
	}
	e.members = members
}

func (e *Endpoints) dial(target, serverName string, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	dc := storeapi.DialConfig{Compression: e.cfg.Compression, StatsHandlers: e.cfg.StatsHandlers}
	if e.tls != nil {
		c := e.tls.Clone()
		if c.ServerName == "" {
			c.ServerName = serverName
		}
		dc.Credentials = credentials.NewTLS(c)
	}
	opts, err := storeapi.DialOptions(dc)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(target, append(opts, more...)...)
}

// Members implements backend.Group.
func (e *Endpoints) Members() []backend.Member {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.members)
}

// Close ends discovery and closes all connections; calls that run fail.
func (e *Endpoints) Close() error {
	e.stop()
	e.done.Wait()
	return e.closeAll()
}

func (e *Endpoints) closeAll() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for _, ep := range e.open {
		errs = append(errs, ep.close())
	}
	if e.group != nil {
		errs = append(errs, e.group.close())
	}
	e.open, e.members = map[string]*endpoint{}, nil
	return errors.Join(errs...)
}

// build returns nil for no TLS.
func (c *TLSConfig) build() (*tls.Config, error) {
	if c == nil {
		return nil, nil
	}
	out := &tls.Config{ServerName: c.ServerName, InsecureSkipVerify: c.InsecureSkipVerify, MinVersion: tls.VersionTLS12}
	switch c.MinVersion {
	case "", "TLS12":
	case "TLS13":
		out.MinVersion = tls.VersionTLS13
	default:
		return nil, fmt.Errorf("min_version %q is unknown; use TLS12 or TLS13", c.MinVersion)
	}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, err
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca %s holds no certificate in PEM form", c.CA)
		}
	}
	if (c.Cert == "") != (c.Key == "") {
		return nil, errors.New("cert and key must be set together")
	}
	if c.Cert != "" {
		if _, err := tls.LoadX509KeyPair(c.Cert, c.Key); err != nil {
			return nil, fmt.Errorf("cert %s, key %s: %w", c.Cert, c.Key, err)
		}
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
			return &pair, err
		}
	}
	return out, nil
}
