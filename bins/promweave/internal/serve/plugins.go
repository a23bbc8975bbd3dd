// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/httpapi"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/filters/auth"
	"github.com/promweave/promweave/plugins/filters/labelrewrite"
	"github.com/promweave/promweave/plugins/filters/tenancy"
	"github.com/promweave/promweave/plugins/gate"
	"github.com/promweave/promweave/plugins/identity"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/plugins/trust"
	"github.com/promweave/promweave/sdk/filter"
)

// builtinFilters are those that are part of the program, by kind.
var builtinFilters = map[string]func() filter.Filter{
	config.FilterLabelRewrite: labelrewrite.New,
	config.FilterTenancy:      tenancy.New,
	config.FilterAuth:         auth.New,
}

// openTime is what opening one plug-in may take: compiling a large module, or
// starting a slow program.
const openTime = time.Minute

// filters are the open filters by name, and what decides about requests.
type filters struct {
	log      *slog.Logger
	registry *registry.Registry
	doors    doors

	// inForce and whatever is open for the configuration that comes are touched by
	// reloads only, which come one at a time.
	inForce map[string]*shared[*registry.Filter]
	config  map[string]config.Filter
	// absent are those whose plug-in has not come up since the start of this process, and
	// what lets it go.
	absent map[string]*absent
	links  []gate.Link
	gate   *gate.Gate
	who    *identity.Verifier
	// auth is what who was made of.
	auth config.Identity
}

// shared is something that several use and that ends with its last user.
type shared[T any] struct {
	v   T
	end func() error

	mu   sync.Mutex
	uses int
}

func share[T any](v T, end func() error) *shared[T] { return &shared[T]{v: v, end: end, uses: 1} }

func (s *shared[T]) use() *shared[T] {
	s.mu.Lock()
	s.uses++
	s.mu.Unlock()
	return s
}

func (s *shared[T]) release() error {
	s.mu.Lock()
	s.uses--
	last := s.uses == 0
	s.mu.Unlock()
	if last {
		return s.end()
	}
	return nil
}

func newFilters(cfg config.Plugins, log *slog.Logger, m *metrics) (*filters, error) {
	f := &filters{log: log, inForce: map[string]*shared[*registry.Filter]{}}
	v, err := verifierOf(cfg)
	if err != nil {
		return nil, err
	}
	f.registry = registry.New(registry.Options{
		Dir: cmp.Or(cfg.Dir, config.DefaultPluginDir), Builtins: builtinFilters, Logger: log, Verifier: v,
		Metrics: func(name string, reg *prometheus.Registry) { m.set("plugin/"+name, reg) },
	})
	return f, nil
}

var _ registry.Pinner = (*trust.Verifier)(nil)

// verifierOf is nil if nothing beyond digests is asked of plug-ins' files.
func verifierOf(c config.Plugins) (registry.Verifier, error) {
	if len(c.RootKeys) == 0 && c.LockFile == "" {
		return nil, nil
	}
	v := &trust.Verifier{LockFile: c.LockFile}
	for i, k := range c.RootKeys {
		key, err := trust.ParseKey(k)
		if err != nil {
			return nil, fmt.Errorf("plugins.root_keys[%d]: %w", i, err)
		}
		v.Roots = append(v.Roots, key)
	}
	if c.LockFile != "" {
		if _, err := trust.ReadLock(c.LockFile); err != nil {
			return nil, fmt.Errorf("plugins.lock_file: %w", err)
		}
	}
	return v, nil
}

// specOf turns what is configured into what the registry opens.
func specOf(p *config.Plugin) registry.Spec {
	s := registry.Spec{
		Launch: p.Launch, Path: p.Path, SHA256: p.SHA256, Address: p.Address, Secrets: p.Secrets, Env: p.Env, PlainSocket: p.PlainSocket,
		Memory: int64(p.Memory), TotalMemory: int64(p.TotalMemory), CallTime: p.Time, StartTime: p.StartTime, Instances: p.Instances,
		TLS: registry.TLS{
			Enabled: p.TLS.Enabled, CA: p.TLS.CA, Cert: p.TLS.Cert, Key: p.TLS.Key,
			ServerName: p.TLS.ServerName,
		},
	}
	for _, x := range p.Permissions {
		s.Permissions = append(s.Permissions, filter.Permission(x))
	}
	for _, h := range p.HTTP {
		s.HTTP = append(s.HTTP, registry.HTTPRule{URL: h.URL, Methods: h.Methods, AllowPrivate: h.AllowPrivate})
	}
	return s
}

// opened are the filters of a configuration that is not in force yet.
type opened struct {
	f      *filters
	cfg    config.Config
	byName map[string]*shared[*registry.Filter]
	fresh  []*shared[*registry.Filter]
	// absent are those that are waited for.
	absent map[string]*absent
	links  []gate.Link
	gate   *gate.Gate // nil: nobody decides
	who    *identity.Verifier
}

// startPatience is what the first start waits for a filter that is a program or a
// service: it does without until the filter is there.
const startPatience = 3 * time.Second

// open opens the filters of cfg that are not open yet. After an error everything is as
// it was; commit or discard ends it. At the first start, and until it has been there
// once, a filter whose program or service is not there is waited for; later it is an error.
func (f *filters) open(ctx context.Context, cfg config.Config, first bool) (_ *opened, err error) {
	o := &opened{f: f, cfg: cfg, byName: map[string]*shared[*registry.Filter]{}, absent: map[string]*absent{}}
	defer func() {
		if err != nil {
			o.discard()
		}
	}()
	results := make([]found, len(cfg.Filters))
	var all sync.WaitGroup
	for i, fc := range cfg.Filters {
		if old := f.inForce[fc.Name]; old != nil && reflect.DeepEqual(f.config[fc.Name], fc) {
			o.byName[fc.Name] = old
			continue
		}
		all.Go(func() { results[i] = f.find(ctx, fc, first) })
	}
	all.Wait()
	for i, x := range results {
		name := cfg.Filters[i].Name
		if x.filter != nil {
			s := share(x.filter, x.filter.Close)
			o.byName[name] = s
			o.fresh = append(o.fresh, s)
		}
		if x.absent != nil {
			o.absent[name] = x.absent
		}
		if x.err != nil && err == nil {
			err = fmt.Errorf("filter %s: %w", name, x.err)
		}
	}
	if err != nil {
		return nil, err
	}
	unused, err := o.check()
	if err != nil {
		return nil, err
	}
	for _, name := range unused {
		f.log.Warn(namedNowhere, "filter", name)
	}
	// A verifier remembers passwords and the keys of an issuer that may be down by now: it
	// stays, unless it has files that may have changed.
	if j := cfg.Auth.JWT; f.who != nil && j.JWKSFile == "" && j.CA == "" && reflect.DeepEqual(f.auth, cfg.Auth) {
		o.who = f.who
	} else if o.who, err = identity.New(identityOf(cfg.Auth), f.log.With("part", "auth")); err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	for _, name := range cfg.Query.Filters {
		if a := o.absent[name]; a != nil {
			o.links = append(o.links, gate.Link{Name: name, Filter: a})
			continue
		}
		x := o.byName[name].v
		o.links = append(o.links, gate.Link{Name: name, Filter: x.Link.Filter})
	}
	o.gate = o.gateOf(o.links)
	return o, nil
}

// found is what came of opening one filter.
type found struct {
	filter *registry.Filter
	absent *absent
	err    error
}

func (f *filters) find(ctx context.Context, fc config.Filter, first bool) (out found) {
	spec := registry.Spec{Launch: registry.Builtin, Kind: fc.Kind}
	if fc.Plugin != nil {
		spec = specOf(fc.Plugin)
	}
	policy := filtering.Closed
	if fc.OnFailure == "open" {
		policy = filtering.Open
	}
	patience := openTime
	known := f.absent[fc.Name]
	if known != nil && !reflect.DeepEqual(known.cfg, fc) {
		known = nil
	}
	if spec.Launch == registry.Spawn || spec.Launch == registry.Dial {
		switch {
		case known != nil:
			patience, out.absent = time.Second, known
		case first:
			release, err := f.registry.Hold(ctx, fc.Name, spec)
			if err != nil {
				return found{err: err}
			}
			patience, out.absent = startPatience, &absent{cfg: fc, release: release}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	x, err := f.registry.Filter(ctx, fc.Name, spec, []byte(fc.Config), policy)
	switch {
	case err == nil:
		if fc.OnFailure == "open" && x.Link.Policy() != filtering.Open {
			f.log.Warn("on_failure: open has no effect: the filter drops or refuses what must not be seen", "filter", fc.Name)
		}
		if out.absent != nil && known == nil {
			out.absent.release()
		}
		return found{filter: x}
	case out.absent != nil && errors.Is(err, carrier.ErrFault):
		if known == nil {
			f.log.Error("a filter is not there: what it stands for is refused or missing until it is", "filter", fc.Name, "err", err)
			out.absent.why = err
		}
		return out
	case out.absent != nil && known == nil:
		out.absent.release()
	}
	return found{err: err}
}

// gateOf is nil if nobody is asked and nothing decides.
func (o *opened) gateOf(links []gate.Link) *gate.Gate {
	if len(links) == 0 && !o.who.Required() {
		return nil
	}
	return gate.New(links, o.who.Challenge(), o.f.log.With("part", "access"))
}

// between lets in what both the old and the new filters let in, until commit or
// restore: while backends change, nobody sees the new ones by the old rules or the
// other way round.
func (o *opened) between() {
	links := slices.Concat(o.f.links, o.links)
	if o.f.gate == nil && o.gate == nil {
		return
	}
	who := o.who
	if !who.Required() && o.f.who != nil {
		who = o.f.who
	}
	both := slices.DeleteFunc(slices.Clone(o.cfg.Auth.Operators), func(s string) bool { return !slices.Contains(o.f.auth.Operators, s) })
	o.f.doors.use(o.gateOf(links), who, both)
}

// restore undoes between.
func (f *filters) restore() { f.doors.use(f.gate, f.who, f.auth.Operators) }

// namedNowhere is said of filters that rewrite, and that nothing uses.
const namedNowhere = "a filter is named nowhere and rewrites nothing: add it to query.filters or to the filters of a backend"

// check refuses what the configuration alone could not tell: what a plug-in's filter
// is for is known when it has said so. It returns the filters that are namedNowhere.
func (o *opened) check() (unused []string, err error) {
	used := map[string]bool{}
	for _, b := range o.cfg.Backends {
		for _, name := range b.Filters {
			used[name] = true
			if o.absent[name] != nil {
				continue
			}
			if x := o.byName[name].v; x.Link.Role != filter.RoleRewrite || slices.Contains(x.Link.Filter.Plan().Hooks, filter.HookRequest) {
				return nil, fmt.Errorf("backend %s: filter %s decides about whole requests: name it in query.filters", b.Name, name)
			}
		}
	}
	for _, name := range o.cfg.Query.Filters {
		used[name] = true
	}
	var protected []string
	for name, s := range o.byName {
		x := s.v
		if x.Link.Role == filter.RoleRewrite {
			continue
		}
		if !used[name] {
			return nil, fmt.Errorf("filter %s is for %s, is named nowhere and protects nothing: add it to query.filters, or remove it", name,
				map[filter.Role]string{filter.RoleAuth: "authorization", filter.RoleTenancy: "tenancy"}[x.Link.Role])
		}
		if x.Link.Role == filter.RoleTenancy {
			protected = append(protected, x.Link.Filter.Plan().Reads...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.byName)) {
		x := o.byName[name].v
		if x.Link.Role != filter.RoleRewrite {
			continue
		}
		if !used[name] {
			unused = append(unused, name)
			continue
		}
		if err := filtering.CheckProtected(x.Link.Filter.Plan(), protected); err != nil {
			return nil, fmt.Errorf("filter %s: %w", name, err)
		}
	}
	return unused, nil
}

// chain are the filters around one backend, the outermost first, or the one that is
// waited for.
func (o *opened) chain(b config.Backend) (links []filtering.Link, uses []*shared[*registry.Filter], missing *absent) {
	for _, name := range slices.Concat(o.cfg.Query.Filters, b.Filters) {
		if a := o.absent[name]; a != nil {
			return nil, nil, a
		}
		s := o.byName[name]
		p := s.v.Link.Filter.Plan()
		if p.Tier == filter.TierNone && len(p.Operations) == 0 && !slices.Contains(p.Hooks, filter.HookSelect) {
			continue // has nothing to do with series
		}
		links, uses = append(links, s.v.Link), append(uses, s)
	}
	if b.Plugin != nil && len(b.ExternalLabels) > 0 {
		links = append(links, externalLabels(b.ExternalLabels))
	}
	return links, uses, nil
}

// commit puts the filters in force. What was in force before ends when nothing uses
// it any more.
func (o *opened) commit() {
	f := o.f
	f.doors.use(o.gate, o.who, o.cfg.Auth.Operators)
	var old []*shared[*registry.Filter]
	for name, s := range f.inForce {
		if o.byName[name] != s {
			old = append(old, s)
		}
	}
	f.doors.retire(func() {
		for _, s := range old {
			if err := s.release(); err != nil {
				f.log.Warn("ending a filter", "filter", s.v.Link.Name, "err", err)
			}
		}
	})
	f.inForce, f.config, f.links, f.gate, f.who = o.byName, map[string]config.Filter{}, o.links, o.gate, o.who
	f.auth = o.cfg.Auth
	for name, a := range f.absent {
		if o.absent[name] != a {
			a.release()
		}
	}
	f.absent = o.absent
	for _, fc := range o.cfg.Filters {
		f.config[fc.Name] = fc
	}
	o.fresh = nil
}

// discard ends what was opened, instead of commit.
func (o *opened) discard() {
	for name, a := range o.absent {
		if o.f.absent[name] != a {
			a.release()
		}
	}
	o.absent = nil
	for _, s := range o.fresh {
		if err := s.release(); err != nil {
			o.f.log.Warn("ending a filter", "filter", s.v.Link.Name, "err", err)
		}
	}
	o.fresh = nil
}

// close ends all filters, once no query runs any more.
func (f *filters) close() {
	f.doors.retiring.Wait()
	for name, s := range f.inForce {
		if err := s.release(); err != nil {
			f.log.Warn("ending a filter", "filter", name, "err", err)
		}
	}
	f.inForce = nil
	for _, a := range f.absent {
		a.release()
	}
	if err := f.registry.Close(); err != nil {
		f.log.Warn("ending plug-ins", "err", err)
	}
}

func identityOf(c config.Identity) identity.Config {
	out := identity.Config{Users: c.Users, MTLS: c.MTLS, Headers: c.Headers, Open: c.Open}
	if j := c.JWT; j.Enabled() {
		out.JWT = &identity.JWT{Issuer: j.Issuer, JWKSURL: j.JWKSURL, JWKSFile: j.JWKSFile, Audience: j.Audience, CAFile: j.CA}
	}
	return out
}

// constant is a filter that is only a plan.
type constant struct{ plan filter.Plan }

var _ carrier.Filter = constant{}

func (c constant) Plan() filter.Plan { return c.plan }

func (constant) Request(context.Context, *filter.RequestCall) (*filter.RequestReply, error) {
	return nil, errors.ErrUnsupported
}

func (constant) Select(context.Context, *filter.SelectCall) (*filter.SelectReply, error) {
	return nil, errors.ErrUnsupported
}

func (constant) Rewrite(context.Context, []byte, []byte) ([]byte, error) { return nil, nil }

func (constant) Close() error { return nil }

// externalName is the name of the link that adds external labels: no filter of a
// configuration can have it.
const externalName = "external_labels:"

// externalLabels adds the external labels of a plug-in's backend, which does not know
// of them.
func externalLabels(ext map[string]string) filtering.Link {
	p := filter.Plan{Pure: true}
	for _, name := range slices.Sorted(maps.Keys(ext)) {
		p.Operations = append(p.Operations, filter.Operation{Set: &filter.Label{Name: name, Value: ext[name]}})
	}
	return filtering.Link{Name: externalName, Filter: constant{p}, OfStore: true}
}

// doors are where requests come in: who asks, and whether they may. What is in force
// changes with reloads; a request that has begun to be decided about stays with what
// it began with.
type doors struct {
	who atomic.Pointer[identity.Verifier]

	mu      sync.Mutex
	current *door
	// past are doors out of use that somebody may still be in.
	past     []*door
	retiring sync.WaitGroup
}

// door is a gate, and the requests that are in it.
type door struct {
	gate      *gate.Gate // nil: nobody decides
	operators []string
	in        sync.WaitGroup
}

var _ access.Gate = (*doors)(nil)

// use puts a gate in force.
func (d *doors) use(g *gate.Gate, who *identity.Verifier, operators []string) {
	d.who.Store(who)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current != nil {
		d.past = append(d.past, d.current)
	}
	d.current = &door{gate: g, operators: operators}
}

// retire does something once nobody is in a door that is out of use.
func (d *doors) retire(then func()) {
	d.mu.Lock()
	past := d.past
	d.past = nil
	d.mu.Unlock()
	d.retiring.Go(func() {
		for _, x := range past {
			x.in.Wait()
		}
		then()
	})
}

// Admit implements access.Gate.
func (d *doors) Admit(ctx context.Context, ask *access.Ask) (*access.Grant, error) {
	d.mu.Lock()
	x := d.current
	x.in.Add(1)
	d.mu.Unlock()
	defer x.in.Done()
	if x.gate == nil || identity.Open(ctx) && slices.Contains(openKinds, ask.Kind) {
		return access.Everything(), nil
	}
	if slices.Contains(operatorKinds, ask.Kind) {
		// Somebody has to see why a filter decides about nothing any more, and mend it.
		c := access.CallerOf(ctx)
		if who := (&filter.Caller{Method: c.Method, Subject: c.Subject}); slices.ContainsFunc(x.operators, who.Is) {
			g := access.Everything()
			g.Subject = c.Subject
			return g, nil
		}
	}
	return x.gate.Admit(ctx, ask)
}

// operatorKinds are requests that show no series.
var operatorKinds = []string{"plugins", "plugin", "plugin_restart", "reload", "config", "flags", "runtimeinfo", "buildinfo", "metrics", "profile", "stores", "openapi"}

// openKinds are requests that auth.open can let anybody make. They show no series;
// for all others an unknown caller is what it is, and filters decide.
var openKinds = []string{"metrics", "buildinfo", "runtimeinfo", "flags", "openapi"}

func (d *doors) http(r *http.Request) (context.Context, error) { return d.who.Load().HTTP(r) }

func (d *doors) grpc() []grpc.ServerOption { return identity.GRPC(d.who.Load) }

// statuses are what operators see of plug-ins.
func (f *filters) statuses(context.Context) []httpapi.PluginStatus {
	var out []httpapi.PluginStatus
	for _, s := range f.registry.Statuses() {
		p := httpapi.PluginStatus{
			Name: s.Name, Kind: "filter", Role: roles[s.Description.Role], Launch: s.Launch, Origin: s.Origin, Version: s.Description.Version,
			SHA256: s.SHA256, Signer: s.Signer, Permissions: s.Permissions, State: string(s.State), Since: s.Since, Restarts: int64(s.Restarts),
			LastFault: s.LastFault, LastLines: s.LastLines, PID: s.PID, MemoryBytes: s.MemoryBytes, Instances: s.Instances, Busy: s.Busy,
			Calls: s.Calls, UsedBy: s.UsedBy, OnFailure: s.OnFailure, ProtocolMinor: int(s.Description.Minor),
			Faults: map[string]int64{},
		}
		switch {
		case s.Backend:
			p.Kind, p.Role = "backend", ""
		case !s.Description.Known:
			p.Role = ""
		}
		for kind, n := range s.Faults {
			p.Faults[kind] = int64(n)
		}
		if !s.LastFaultTime.IsZero() {
			p.LastFaultTime = &s.LastFaultTime
		}
		out = append(out, p)
	}
	return out
}

var roles = map[filter.Role]string{filter.RoleRewrite: "rewrite", filter.RoleAuth: "auth", filter.RoleTenancy: "tenancy"}

// restart starts a plug-in anew.
func (f *filters) restart(ctx context.Context, name string) error {
	err := f.registry.Restart(ctx, name)
	if errors.Is(err, registry.ErrUnknown) {
		return httpapi.ErrNoPlugin
	}
	return err
}
