// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"cmp"
	"context"
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
	"github.com/promweave/promweave/bins/promweave/internal/bucketclient"
	"github.com/promweave/promweave/bins/promweave/internal/bucketstore"
	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/bins/promweave/internal/shipping"
	"github.com/promweave/promweave/blocks/view"
	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/sdk/backend"
)

// stores are the open backends by name. A backend whose configuration a reload
// does not change stays open; if only its filters change, what they are around does.
type stores struct {
	log     *slog.Logger
	metrics *metrics
	tracing *tracing
	plugins *registry.Registry
	buckets *bucketclient.Opener
	// ships: blocks are shipped where that is configured. Who only looks at a backend does not.
	ships bool

	mu     sync.Mutex
	opened map[string]*store
	// fresh are those opened for a configuration that is not in force yet.
	fresh []*store
}

// store is a backend as queries see it.
type store struct {
	cfg  config.Backend
	core *shared[*kernel]
	// uses are the filters around it, the outermost first.
	uses []*shared[*registry.Filter]
	// replicas are the labels that tell replicas apart, as the filters were told.
	replicas []string
	// missing is a filter that should be around it and is not there.
	missing *absent
	b       backend.Backend
	// end releases what it is made of, once.
	end func() error
}

// external are the labels that all its series have to users, by configuration.
func (st *store) external() labels.Labels {
	set := labels.FromMap(st.cfg.ExternalLabels)
	switch {
	case st.missing != nil:
		return labels.EmptyLabels() // who knows what the filter makes of them
	case st.cfg.Plugin != nil:
		set = labels.EmptyLabels() // a filter sets them
	}
	return filtering.External(st.b, set)
}

// kernel is a backend without the filters around it.
type kernel struct {
	b   backend.Backend
	reg *prometheus.Registry
	// loop ships its blocks; nil if nothing does.
	loop *shipping.Loop
}

func newStores(log *slog.Logger, m *metrics, t *tracing, plugins *registry.Registry) *stores {
	return &stores{log: log, metrics: m, tracing: t, plugins: plugins, buckets: bucketclient.NewOpener(m.base), opened: map[string]*store{}}
}

// get returns a backend without filters.
func (s *stores) get(name string) backend.Backend {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.opened[name]; st != nil {
		return st.core.v.b
	}
	for _, st := range s.fresh {
		if st.cfg.Name == name {
			return st.core.v.b
		}
	}
	return nil
}

// open opens what cfg has and is not open yet. After an error everything is as it
// was. The entries are not in force before commit is called; discard undoes open.
func (s *stores) open(ctx context.Context, cfg config.Config, filters *opened) (entries []membership.Entry, commit func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A database, a program and a service may each take a while to open.
	cores, errs := make([]*shared[*kernel], len(cfg.Backends)), make([]error, len(cfg.Backends))
	var all sync.WaitGroup
	for i, bc := range cfg.Backends {
		if st := s.opened[bc.Name]; st != nil && sameStore(st.cfg, bc) {
			continue
		}
		if errs[i] = s.busy(bc); errs[i] == nil {
			all.Go(func() { cores[i], errs[i] = s.openOne(ctx, bc) })
		}
	}
	all.Wait()
	for i, e := range errs {
		if e == nil {
			continue
		}
		for _, core := range cores {
			if core != nil {
				_ = core.release()
			}
		}
		return nil, nil, fmt.Errorf("backend %s: %w", cfg.Backends[i].Name, e)
	}
	next := map[string]*store{}
	for i, bc := range cfg.Backends {
		st := s.opened[bc.Name]
		switch links, uses, missing := filters.chain(bc); {
		case cores[i] != nil:
			st = s.around(cores[i], bc, links, uses, cfg.Query.ReplicaLabels, missing)
			s.fresh = append(s.fresh, st)
		case st.missing != missing || !slices.Equal(st.uses, uses) || len(uses) > 0 && !slices.Equal(st.replicas, cfg.Query.ReplicaLabels):
			st = s.around(st.core.use(), bc, links, uses, cfg.Query.ReplicaLabels, missing)
			s.fresh = append(s.fresh, st)
		}
		next[bc.Name] = st
		entries = append(entries, membership.Entry{
			Spec: membership.Spec{
				Name: bc.Name, Kind: cmp.Or(bc.Kind, "plugin"), Required: bc.Required, Timeout: bc.Timeout,
				Window: membership.Window{Min: bound(bc.Time.Min), Max: bound(bc.Time.Max)},
				// Ours, and nothing between them and us.
				TrustLabels:   (bc.TSDB != nil || bc.Prometheus != nil) && len(st.uses) == 0,
				CheckMatchers: bc.Plugin != nil,
				External:      st.external(),
				Warning:       st.core.v.warning(),
			},
			Backend: st.b, Close: st.end,
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
			s.metrics.set("backend/"+st.cfg.Name, st.core.v.reg)
		}
		// Two must not ship one directory, and the set of members may close the old one later.
		for name, st := range s.opened {
			if n := next[name]; n == nil || n.core != st.core {
				st.core.v.stopShipping(0)
			}
		}
		for _, st := range next {
			if st.core.v.loop != nil {
				st.core.v.loop.Start()
			}
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
		if err := st.end(); err != nil {
			s.log.Warn("closing a backend", "backend", st.cfg.Name, "err", err)
		}
	}
	s.fresh = nil
}

// around puts filters around a backend. The store has the use of the backend that
// it is given, and takes those of the filters.
func (s *stores) around(core *shared[*kernel], bc config.Backend, links []filtering.Link, uses []*shared[*registry.Filter], replicas []string, missing *absent) *store {
	st := &store{cfg: bc, core: core, uses: uses, replicas: replicas, b: core.v.b, missing: missing}
	switch {
	case missing != nil:
		// What it has must not be seen without the filter.
		st.b = &late{open: func() (backend.Backend, func() error, error) { return nil, nil, missing.err() }, err: missing.err()}
	case len(links) > 0:
		st.b = filtering.Wrap(core.v.b, links, filtering.Options{Backend: bc.Name, ReplicaLabels: replicas, Charge: charge, Release: release, Observe: observe})
	}
	for _, u := range uses {
		u.use()
	}
	st.end = sync.OnceValue(func() error {
		errs := []error{core.release()}
		for _, u := range uses {
			errs = append(errs, u.release())
		}
		return errors.Join(errs...)
	})
	return st
}

func charge(ctx context.Context, series, samples, bytes int) error {
	return fanout.AccountOf(ctx).Charge(series, samples, bytes)
}

func release(ctx context.Context, bytes int) { fanout.AccountOf(ctx).Release(bytes) }

// observe writes what filters did into the report.
func observe(ctx context.Context, e filtering.Effect) {
	if e.Filter == externalName {
		return // part of the backend as users see it
	}
	note := e.Error
	if e.Failures > 1 {
		note = fmt.Sprintf("failed %d times, last: %s", e.Failures, e.Error)
	}
	fanout.AccountOf(ctx).Filter(report.FilterEffect{
		Name: e.Filter, SeriesIn: int64(e.SeriesIn), SeriesOut: int64(e.SeriesOut), Withheld: e.Withheld,
		Calls: int64(e.Calls), Seconds: e.Seconds, Note: note,
	})
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
	a.Required, a.Timeout, a.Time, a.Filters = b.Required, b.Timeout, b.Time, b.Filters
	return reflect.DeepEqual(a, b)
}

// busy refuses a directory that is still locked by the configuration in force.
func (s *stores) busy(bc config.Backend) error {
	if bc.TSDB == nil || bc.TSDB.ReadOnly {
		return nil
	}
	for _, st := range s.opened {
		if t := st.cfg.TSDB; t != nil && !t.ReadOnly && filepath.Clean(t.Path) == filepath.Clean(bc.TSDB.Path) {
			return fmt.Errorf("%s is open for writing as %q: such a change needs a restart", t.Path, st.cfg.Name)
		}
	}
	return nil
}

func bound(t config.TimeBound) membership.Bound {
	ms, relative, set := t.Value()
	return membership.Bound{Set: set, At: ms, Relative: relative}
}

func (s *stores) openOne(ctx context.Context, bc config.Backend) (*shared[*kernel], error) {
	st := &kernel{reg: prometheus.NewRegistry()}
	end := func() error {
		if c, ok := st.b.(backend.Closer); ok {
			return c.Close()
		}
		return nil
	}
	log := s.log.With("backend", bc.Name)
	reg := prometheus.WrapRegistererWith(prometheus.Labels{"backend": bc.Name}, st.reg)
	var err error
	switch {
	case bc.TSDB != nil:
		c := tsdb.Config{Path: bc.TSDB.Path, ExternalLabels: labels.FromMap(bc.ExternalLabels), Retention: bc.TSDB.Retention}
		if bc.TSDB.Ship != nil {
			// The compactor of the bucket compacts, and would find the same samples twice.
			c.Uncompacted, c.Keep = true, notShipped(bc.TSDB.Path, bc.TSDB.Ship.Compacted, log)
		}
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
	case bc.Bucket != nil:
		st.b, end, err = s.openBucket(ctx, bc, log)
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
	case bc.Plugin != nil:
		st.b, end, err = s.openPlugin(ctx, bc, log)
	default:
		err = errors.New("its kind is missing")
	}
	if err != nil {
		return nil, err
	}
	if c, dir := shipOf(bc); c != nil && s.ships {
		if st.loop, err = s.openShipping(ctx, bc, c, dir, st.b, log, reg); err != nil {
			return nil, errors.Join(err, end())
		}
		closeBackend := end
		end = func() error { return errors.Join(st.loop.Close(), closeBackend()) }
	}
	return share(st, end), nil
}

// openBucket opens a backend over a bucket. One that is required has to be there; any other may
// come later, unless what is wrong is in the configuration.
func (s *stores) openBucket(ctx context.Context, bc config.Backend, log *slog.Logger) (backend.Backend, func() error, error) {
	c := bc.Bucket
	// What is wrong with the configuration is found before anything is asked for.
	if bkt, err := s.buckets.Open(bucketclient.Config{Objstore: []byte(c.Objstore), Name: bc.Name}); err != nil {
		return nil, nil, err
	} else if err := bkt.Close(); err != nil {
		return nil, nil, err
	}
	open := func(ctx context.Context) (backend.Backend, func() error, error) {
		bkt, err := s.buckets.Open(bucketclient.Config{Objstore: []byte(c.Objstore), Name: bc.Name})
		if err != nil {
			return nil, nil, err
		}
		b, err := bucketstore.Open(ctx, bkt, bucketstore.Config{
			Dir: c.DataDir, SyncInterval: c.SyncInterval, Concurrency: c.Concurrency, MaxBytes: c.MaxRequestBytes,
			Policy: view.Policy{ConsistencyDelay: c.ConsistencyDelay, DeletionDelay: c.IgnoreDeletionMarkDelay},
		}, log)
		if err != nil {
			return nil, nil, err
		}
		return b, b.Close, nil
	}
	b, end, err := open(ctx)
	if err == nil || ctx.Err() != nil || bc.Required || s.opened[bc.Name] != nil {
		return b, end, err
	}
	log.Warn("a bucket cannot be read; it is expected all the same, and tried again", "err", err)
	l := &late{open: func() (backend.Backend, func() error, error) { return open(context.WithoutCancel(ctx)) }, err: err}
	return l, l.Close, nil
}

// openPlugin opens a backend that is a plug-in. One that is required has to start, and
// so has one that takes the place of a backend in force, which stays otherwise; any other
// may come later, unless what is wrong is in the configuration.
func (s *stores) openPlugin(ctx context.Context, bc config.Backend, log *slog.Logger) (backend.Backend, func() error, error) {
	serving := s.opened[bc.Name] != nil || bc.Required && bc.Plugin.Launch == config.LaunchSpawn
	open := func(ctx context.Context) (backend.Backend, func() error, error) {
		ctx, cancel := context.WithTimeout(ctx, openTime)
		defer cancel()
		b, release, err := s.plugins.Backend(ctx, bc.Name, specOf(bc.Plugin), []byte(bc.Config), serving)
		if err != nil {
			return nil, nil, err
		}
		return b, func() error {
			defer release()
			if c, ok := b.(backend.Closer); ok {
				return c.Close()
			}
			return nil
		}, nil
	}
	b, end, err := open(ctx)
	if err == nil || ctx.Err() != nil || bc.Required || s.opened[bc.Name] != nil || !errors.Is(err, carrier.ErrFault) {
		return b, end, err
	}
	log.Warn("a plug-in does not start; it is expected all the same, and tried again", "err", err)
	l := &late{open: func() (backend.Backend, func() error, error) { return open(context.WithoutCancel(ctx)) }, err: err}
	return l, l.Close, nil
}

// openTSDB keeps a nil pointer from becoming a backend that is not nil.
func openTSDB(b *tsdb.Backend, err error) (backend.Backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}
