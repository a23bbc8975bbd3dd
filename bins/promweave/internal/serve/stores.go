// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"

	promserver "github.com/promweave/promweave/backends/prometheus"
	"github.com/promweave/promweave/backends/storeapi"
	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/sdk/backend"
)

// stores are the open backends by name. A backend whose configuration a reload
// does not change stays open.
type stores struct {
	log     *slog.Logger
	metrics *metrics
	tracing *tracing

	mu     sync.Mutex
	opened map[string]*store
	// fresh are those opened for a configuration that is not in force yet.
	fresh []*store
}

type store struct {
	cfg config.Backend
	b   backend.Backend
	reg *prometheus.Registry
}

func newStores(log *slog.Logger, m *metrics, t *tracing) *stores {
	return &stores{log: log, metrics: m, tracing: t, opened: map[string]*store{}}
}

func (s *stores) get(name string) backend.Backend {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.opened[name]; st != nil {
		return st.b
	}
	for _, st := range s.fresh {
		if st.cfg.Name == name {
			return st.b
		}
	}
	return nil
}

// open opens what cfg has and is not open yet. After an error everything is as it
// was. The entries are not in force before commit is called; discard undoes open.
func (s *stores) open(cfg config.Config) (entries []membership.Entry, commit func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[string]*store{}
	for _, bc := range cfg.Backends {
		st := s.opened[bc.Name]
		if st == nil || !sameStore(st.cfg, bc) {
			if err := s.busy(bc); err != nil {
				s.closeFresh()
				return nil, nil, err
			}
			if st, err = s.openOne(bc); err != nil {
				s.closeFresh()
				return nil, nil, fmt.Errorf("backend %s: %w", bc.Name, err)
			}
			s.fresh = append(s.fresh, st)
		}
		next[bc.Name] = st
		entries = append(entries, membership.Entry{
			Spec: membership.Spec{
				Name: bc.Name, Kind: bc.Kind, Required: bc.Required, Timeout: bc.Timeout,
				Window: membership.Window{Min: bound(bc.Time.Min), Max: bound(bc.Time.Max)},
			},
			Backend: st.b,
		})
	}
	return entries, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for name := range s.opened {
			if next[name] == nil {
				s.metrics.set("backend/"+name, nil)
			}
		}
		for _, st := range s.fresh {
			s.metrics.set("backend/"+st.cfg.Name, st.reg)
		}
		// The set of members closes what is not in it any more.
		s.opened, s.fresh = next, nil
	}, nil
}

// discard closes what the last open has opened, instead of commit.
func (s *stores) discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeFresh()
}

func (s *stores) closeFresh() {
	for _, st := range s.fresh {
		if c, ok := st.b.(backend.Closer); ok {
			if err := c.Close(); err != nil {
				s.log.Warn("closing a backend", "backend", st.cfg.Name, "err", err)
			}
		}
	}
	s.fresh = nil
}

// keeps says whether cfg leaves an open backend as it is.
func (s *stores) keeps(cfg config.Config, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.opened[name]
	return st != nil && slices.ContainsFunc(cfg.Backends, func(b config.Backend) bool { return b.Name == name && sameStore(st.cfg, b) })
}

// sameStore compares what a backend is opened with; the rest belongs to the entry.
func sameStore(a, b config.Backend) bool {
	a.Required, a.Timeout, a.Time = b.Required, b.Timeout, b.Time
	return reflect.DeepEqual(a, b)
}

// busy refuses a directory that is still locked by the configuration in force.
func (s *stores) busy(bc config.Backend) error {
	if bc.TSDB == nil || bc.TSDB.ReadOnly {
		return nil
	}
	for _, st := range s.opened {
		if t := st.cfg.TSDB; t != nil && !t.ReadOnly && filepath.Clean(t.Path) == filepath.Clean(bc.TSDB.Path) {
			return fmt.Errorf("backend %s: %s is open for writing as %q: such a change needs a restart", bc.Name, t.Path, st.cfg.Name)
		}
	}
	return nil
}

func bound(t config.TimeBound) membership.Bound {
	ms, relative, set := t.Value()
	return membership.Bound{Set: set, At: ms, Relative: relative}
}

func (s *stores) openOne(bc config.Backend) (*store, error) {
	st := &store{cfg: bc, reg: prometheus.NewRegistry()}
	log := s.log.With("backend", bc.Name)
	reg := prometheus.WrapRegistererWith(prometheus.Labels{"backend": bc.Name}, st.reg)
	var err error
	switch {
	case bc.TSDB != nil:
		c := tsdb.Config{Path: bc.TSDB.Path, ExternalLabels: labels.FromMap(bc.ExternalLabels), Retention: bc.TSDB.Retention}
		if bc.TSDB.ReadOnly {
			st.b, err = openReadOnly(bc.Required, func() (*tsdb.Backend, error) { return tsdb.Open(c, log, reg) })
		} else {
			st.b, err = openTSDB(tsdb.OpenWritable(c, log, reg))
		}
	case bc.Prometheus != nil:
		p := bc.Prometheus
		var b *promserver.Backend
		b, err = promserver.New(promserver.Config{
			URL: p.URL, ExternalLabels: bc.ExternalLabels, Timeout: p.Timeout, ReadMode: promserver.ReadMode(p.ReadMode),
			HTTP: promserver.HTTPConfig{
				Username: p.Auth.Username, Password: p.Auth.Password.Reveal(), PasswordFile: p.Auth.PasswordFile,
				BearerToken: p.Auth.BearerToken.Reveal(), BearerTokenFile: p.Auth.BearerTokenFile,
				TLS: promserver.TLSConfig{
					CAFile: p.TLS.CA, CertFile: p.TLS.Cert, KeyFile: p.TLS.Key,
					ServerName: p.TLS.ServerName, InsecureSkipVerify: p.TLS.InsecureSkipVerify,
				},
			},
		}, log)
		if err == nil {
			st.b = b
		}
	case bc.StoreAPI != nil:
		c := bc.StoreAPI
		sc := storeapi.Config{
			Address: c.Address, Addresses: c.Addresses, Files: c.Files, Group: c.Group, Compression: c.Compression,
			StatsHandlers: s.tracing.grpcClient(),
		}
		if t := c.TLS; t.Enabled {
			sc.TLS = &storeapi.TLSConfig{CA: t.CA, Cert: t.Cert, Key: t.Key, ServerName: t.ServerName, InsecureSkipVerify: t.InsecureSkipVerify}
		}
		var b *storeapi.Endpoints
		if b, err = storeapi.New(sc, log); err == nil {
			st.b = b
		}
	default:
		err = errors.New("its kind is missing")
	}
	if err != nil {
		return nil, err
	}
	return st, nil
}

// openTSDB keeps a nil pointer from becoming a backend that is not nil.
func openTSDB(b *tsdb.Backend, err error) (backend.Backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}
