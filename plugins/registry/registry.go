// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package registry holds the plug-ins of a process: it opens each once, whoever uses
// it, gives out configured filters and backends, and tells operators what there is,
// where it comes from, what it may do and how it does.
package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// The ways to launch a plug-in.
const (
	Builtin = "builtin"
	Spawn   = "spawn"
	Dial    = "dial"
	WASM    = "wasm"
)

// Spec says where a plug-in comes from and what it may do. It is plain data: users
// whose specs are equal share one plug-in. Times are as in package time, sizes bytes;
// zero values are the carriers' defaults.
type Spec struct {
	Launch string
	// Kind of a builtin.
	Kind string
	// Path and SHA256 of a file, Address of a service.
	Path, SHA256, Address string
	TLS                   TLS
	Permissions           []filter.Permission
	HTTP                  []HTTPRule
	// Secrets are files with what is sent as Authorization, by name.
	Secrets map[string]string
	Env     map[string]string
	// PlainSocket turns TLS off between the host and a process that it started.
	PlainSocket         bool
	Memory, TotalMemory int64
	// CallTime bounds one call of a filter, StartTime how long a program takes to start.
	CallTime, StartTime time.Duration
	Instances           int
}

// TLS of a dialled plug-in. The files are PEM.
type TLS struct {
	Enabled       bool
	CA, Cert, Key string
	ServerName    string
}

// HTTPRule is what a module with the permission http may ask for: scheme, host and
// port of URL, and the methods; none is GET.
type HTTPRule struct {
	URL          string
	Methods      []string
	AllowPrivate bool
}

// origin is the file, the address or the kind.
func (s *Spec) origin() string {
	switch s.Launch {
	case Builtin:
		return s.Kind
	case Dial:
		return s.Address
	}
	return s.Path
}

// key is equal for equal specs.
func (s *Spec) key() string {
	out, err := json.Marshal(s)
	if err != nil {
		panic(err) // plain data always has a form
	}
	return string(out)
}

// Verifier decides whether a file may run: it returns who signed it, "" for nobody,
// or why it must not run.
type Verifier interface {
	Verify(path, sha256 string) (signer string, err error)
}

// Pinner is implemented by a Verifier that knows digests of files which the
// configuration gives none for.
type Pinner interface {
	// Pinned is the digest in hex, or why there is none.
	Pinned(path string) (sha256 string, err error)
}

// Options of a Registry.
type Options struct {
	// Dir is where plug-ins have their sockets and compiled modules.
	Dir string
	// Builtins are filters that are part of the program, by kind.
	Builtins map[string]func() filter.Filter
	// Verifier, if not nil, is asked about every file before it is opened.
	Verifier Verifier
	Logger   *slog.Logger
	// Metrics, if not nil, is told of the metrics of each plug-in, by name, and of their
	// end by nil.
	Metrics func(name string, reg *prometheus.Registry)
}

// Registry is safe for concurrent use.
type Registry struct {
	o Options

	mu     sync.Mutex
	opened map[string]*entry
	// names are under which the metrics of an entry are shown, the latest one's.
	names  map[string]*entry
	closed bool
	// closing are plug-ins that nobody uses any more and that are still ending.
	closing sync.WaitGroup
}

// entry is a plug-in and who uses it.
type entry struct {
	spec Spec
	// unpinned: the digest in spec is the Pinner's.
	unpinned bool

	name   string // that it was opened with
	signer string
	// ready is closed when plugin or err is set.
	ready  chan struct{}
	plugin carrier.Plugin
	err    error
	uses   map[*use]bool
}

// use is one configuration that uses a plug-in.
type use struct {
	name      string
	backend   bool
	onFailure filtering.OnFailure
	policy    string
}

// New returns an empty registry.
func New(o Options) *Registry {
	return &Registry{o: o, opened: map[string]*entry{}, names: map[string]*entry{}}
}

// errClosed is what a registry that ends says.
var errClosed = errors.New("the process is shutting down")

// acquire opens the plug-in of a spec, or waits for whoever does.
func (r *Registry) acquire(ctx context.Context, spec Spec, u *use) (*entry, error) {
	unpinned := spec.SHA256 == ""
	if err := r.pin(&spec); err != nil {
		return nil, err
	}
	key := spec.key()
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, errClosed
	}
	e := r.opened[key]
	if e == nil {
		e = &entry{spec: spec, unpinned: unpinned, name: u.name, ready: make(chan struct{}), uses: map[*use]bool{}}
		r.opened[key] = e
		go func() {
			reg := prometheus.NewRegistry()
			// Not for the one who came first alone: others wait for it too.
			e.plugin, e.signer, e.err = r.open(context.WithoutCancel(ctx), u.name, spec, reg)
			if e.err == nil {
				reg.MustRegister(info{r, e})
				r.show(e, reg)
			}
			close(e.ready)
		}()
	}
	e.uses[u] = true
	r.mu.Unlock()
	select {
	case <-e.ready:
	case <-ctx.Done():
		r.release(e, u)
		return nil, context.Cause(ctx)
	}
	if e.err != nil {
		r.release(e, u)
		return nil, e.err
	}
	return e, nil
}

// pin fills in the digest of a file where the configuration has none.
func (r *Registry) pin(s *Spec) error {
	p, ok := r.o.Verifier.(Pinner)
	if !ok || s.SHA256 != "" || s.Launch != Spawn && s.Launch != WASM {
		return nil
	}
	var err error
	if s.SHA256, err = p.Pinned(s.Path); err != nil {
		return fmt.Errorf("%s %s: %w", s.Launch, s.origin(), err)
	}
	return nil
}

// Examine says why the file of a spec would not run, nil if it would: its digest, and
// what the Verifier says. Nothing of it runs.
func (r *Registry) Examine(spec Spec) error {
	if spec.Launch != Spawn && spec.Launch != WASM {
		return nil
	}
	if err := r.pin(&spec); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("%s %s: %w", spec.Launch, spec.origin(), err) }
	f, err := os.Open(spec.Path)
	if err != nil {
		return fmt.Errorf("%s: %w", spec.Launch, err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", spec.Launch, err)
	case !st.Mode().IsRegular():
		return fail(errors.New("is no file"))
	case spec.Launch == Spawn && st.Mode()&0o111 == 0:
		return fail(fmt.Errorf("is not executable: chmod +x %s", spec.Path))
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fail(err)
	}
	if sum := hex.EncodeToString(h.Sum(nil)); spec.SHA256 != "" && sum != spec.SHA256 {
		return fail(fmt.Errorf("has sha256 %s, not %s: it is another file than the configuration means, or was changed", sum, spec.SHA256))
	}
	if r.o.Verifier != nil {
		if _, err := r.o.Verifier.Verify(spec.Path, spec.SHA256); err != nil {
			return fail(err)
		}
	}
	return nil
}

// show has the metrics of a plug-in gathered, in place of those of the one with the
// same name that it follows.
func (r *Registry) show(e *entry, reg *prometheus.Registry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[e.name] = e
	if r.o.Metrics != nil {
		r.o.Metrics(e.name, reg)
	}
}

// hide is the end of show.
func (r *Registry) hide(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names[e.name] != e {
		return
	}
	delete(r.names, e.name)
	if r.o.Metrics != nil {
		r.o.Metrics(e.name, nil)
	}
}

// release ends a use; the plug-in ends with its last.
func (r *Registry) release(e *entry, u *use) {
	r.mu.Lock()
	delete(e.uses, u)
	last := len(e.uses) == 0 && r.opened[e.spec.key()] == e
	if last {
		delete(r.opened, e.spec.key())
		r.closing.Add(1)
	}
	r.mu.Unlock()
	if !last {
		return
	}
	go func() {
		defer r.closing.Done()
		<-e.ready
		if e.plugin == nil {
			return
		}
		r.hide(e)
		if err := e.plugin.Close(); err != nil {
			r.o.Logger.Warn("ending a plug-in", "plugin", u.name, "origin", e.spec.origin(), "err", err)
		}
	}()
}

// Filter is a filter that is configured and may stand in a chain.
type Filter struct {
	Link filtering.Link

	r    *Registry
	e    *entry
	u    *use
	once sync.Once
}

// Filter opens a filter. name is that of the configuration, config a JSON object or
// empty. The plug-in has to serve, for which it waits: what a filter is for it says itself.
func (r *Registry) Filter(ctx context.Context, name string, spec Spec, config []byte, onFailure filtering.OnFailure) (*Filter, error) {
	u := &use{name: name, onFailure: onFailure}
	e, err := r.acquire(ctx, spec, u)
	if err != nil {
		return nil, err
	}
	if err := e.serving(ctx); err != nil {
		r.release(e, u)
		return nil, err
	}
	d := e.plugin.Description()
	if err := check(&d, &spec, false); err != nil {
		r.release(e, u)
		return nil, err
	}
	c, err := configOf(name, config)
	if err != nil {
		r.release(e, u)
		return nil, fmt.Errorf("%s %s: %w", spec.Launch, spec.origin(), err)
	}
	f, err := e.plugin.Filter(ctx, c)
	if err != nil {
		r.release(e, u)
		return nil, fmt.Errorf("%s %s: %w", spec.Launch, spec.origin(), err)
	}
	// After the filter itself has looked, whose words are better.
	if err := fits(d.ConfigSchema, c.JSON); err != nil {
		_ = f.Close()
		r.release(e, u)
		return nil, fmt.Errorf("%s %s: %s: %w", spec.Launch, spec.origin(), d.Name, err)
	}
	out := &Filter{Link: filtering.Link{Name: name, Filter: f, Role: d.Role, OnFailure: onFailure}, r: r, e: e, u: u}
	r.mu.Lock()
	u.policy = "closed"
	if out.Link.Policy() == filtering.Open {
		u.policy = "open"
	}
	r.mu.Unlock()
	return out, nil
}

// Close releases the filter, once.
func (f *Filter) Close() error {
	var err error
	f.once.Do(func() {
		err = f.Link.Filter.Close()
		f.r.release(f.e, f.u)
	})
	return err
}

// Hold keeps a plug-in open, whether it works or not, until release is called: it is
// supervised and shown, so that Filter finds out soon when it is there.
func (r *Registry) Hold(ctx context.Context, name string, spec Spec) (release func(), err error) {
	u := &use{name: name, policy: "closed"}
	e, err := r.acquire(ctx, spec, u)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { r.release(e, u) }), nil
}

// serving waits while the plug-in starts, and returns why it does not serve. Modules
// are there, or are not opened; one that is out for its faults may be mended by another
// configuration.
func (e *entry) serving(ctx context.Context) error {
	if e.spec.Launch != Spawn && e.spec.Launch != Dial {
		return nil
	}
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		fail := func(format string, args ...any) error {
			return &backend.Error{Kind: backend.ErrUnavailable, Text: fmt.Sprintf("%s %s: ", e.spec.Launch, e.spec.origin()) + fmt.Sprintf(format, args...), Err: carrier.ErrFault}
		}
		switch s := e.plugin.Status(); s.State {
		case carrier.Serving:
			return nil
		case carrier.Starting:
		default:
			return fail("it is %s: %s", s.State, s.LastFault)
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return fail("it is still starting")
		}
	}
}

// Backend opens a store backend. What is returned is the plug-in's backend, with all
// its interfaces; release is to be called after its Close. A program or service that is
// not there is a backend that is down, unless serving: then it is an error.
func (r *Registry) Backend(ctx context.Context, name string, spec Spec, config []byte, serving bool) (b backend.Backend, release func(), err error) {
	u := &use{name: name, backend: true}
	e, err := r.acquire(ctx, spec, u)
	if err != nil {
		return nil, nil, err
	}
	if serving {
		if err := e.serving(ctx); err != nil {
			r.release(e, u)
			return nil, nil, err
		}
	}
	d := e.plugin.Description()
	if err := check(&d, &spec, true); err != nil {
		r.release(e, u)
		return nil, nil, err
	}
	c, err := configOf(name, config)
	if err != nil {
		r.release(e, u)
		return nil, nil, fmt.Errorf("%s %s: %w", spec.Launch, spec.origin(), err)
	}
	if b, err = e.plugin.Backend(ctx, c); err != nil {
		r.release(e, u)
		return nil, nil, fmt.Errorf("%s %s: %w", spec.Launch, spec.origin(), err)
	}
	if err := fits(d.ConfigSchema, c.JSON); err != nil {
		if x, ok := b.(backend.Closer); ok {
			_ = x.Close()
		}
		r.release(e, u)
		return nil, nil, fmt.Errorf("%s %s: %s: %w", spec.Launch, spec.origin(), d.Name, err)
	}
	return b, sync.OnceFunc(func() { r.release(e, u) }), nil
}

// check refuses a plug-in that is something else, or that needs what it was not granted.
func check(d *carrier.Description, spec *Spec, wantBackend bool) error {
	if !d.Known {
		return nil // once it has answered its carrier looks
	}
	kinds := map[bool]string{true: "a store backend", false: "a filter"}
	if d.Backend != wantBackend {
		return fmt.Errorf("%s %s: %s %s is %s, not %s", spec.Launch, spec.origin(), d.Name, d.Version, kinds[d.Backend], kinds[wantBackend])
	}
	if spec.Launch != WASM {
		return nil
	}
	var lack []string
	for _, p := range d.Permissions {
		if !slices.Contains(spec.Permissions, p) {
			lack = append(lack, string(p))
		}
	}
	if len(lack) > 0 {
		return fmt.Errorf("%s %s: %s %s needs %s: grant it with permissions, if you trust it that far", spec.Launch, spec.origin(), d.Name, d.Version, strings.Join(lack, ", "))
	}
	return nil
}

func configOf(name string, config []byte) (*filter.Config, error) {
	if len(config) == 0 {
		config = []byte("{}")
	}
	settings, err := filter.Settings(config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return &filter.Config{Name: name, JSON: config, Settings: settings}, nil
}

// Status is what operators see of a plug-in.
type Status struct {
	carrier.Status
	// Name is that under which it was opened, which is the one of its metrics too.
	Name        string
	Description carrier.Description
	// Backend says what it is used as.
	Backend bool
	// Signer is who signed the file, "" for nobody.
	Signer string
	// UsedBy are the filters and backends of the configuration.
	UsedBy []string
	// OnFailure is closed or open, of filters; "" of backends.
	OnFailure string
	// Minor is the host's minor version of the contract.
	Minor uint32
}

// Statuses are those of all plug-ins that are open, in order of their names.
func (r *Registry) Statuses() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Status
	for _, e := range r.opened {
		select {
		case <-e.ready:
		default:
			continue // is being opened, and may come to nothing
		}
		if e.plugin == nil {
			continue
		}
		s := Status{Status: e.plugin.Status(), Name: e.name, Description: e.plugin.Description(), Signer: e.signer, Minor: pluginpb.Minor}
		for u := range e.uses {
			s.UsedBy, s.Backend = append(s.UsedBy, u.name), u.backend
			if s.OnFailure == "" || u.policy == "open" {
				s.OnFailure = u.policy
			}
		}
		slices.Sort(s.UsedBy)
		if s.UsedBy = slices.Compact(s.UsedBy); len(s.UsedBy) == 0 {
			continue
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// ErrUnknown is a name that no plug-in is used by.
var ErrUnknown = errors.New("no such plug-in")

// Restart starts a plug-in anew, found by the name of one of its users, without a
// call that fails: the new one takes over when it is ready.
func (r *Registry) Restart(ctx context.Context, name string) error {
	r.mu.Lock()
	var found *entry
	for _, e := range r.opened {
		for u := range e.uses {
			if u.name == name {
				found = e
			}
		}
	}
	r.mu.Unlock()
	if found == nil {
		return fmt.Errorf("%q: %w", name, ErrUnknown)
	}
	select {
	case <-found.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	spec := found.spec
	if found.unpinned {
		spec.SHA256 = ""
		if err := r.pin(&spec); err != nil {
			return err
		}
	}
	if r.o.Verifier != nil && (spec.Launch == Spawn || spec.Launch == WASM) {
		if _, err := r.o.Verifier.Verify(spec.Path, spec.SHA256); err != nil {
			return fmt.Errorf("%s %s: %w", spec.Launch, spec.origin(), err)
		}
	}
	switch p := found.plugin.(type) {
	case interface {
		Replace(ctx context.Context, path, sha256 string) error
	}:
		return p.Replace(ctx, spec.Path, spec.SHA256)
	case interface {
		Reload(ctx context.Context, path, sha256 string) error
	}:
		return p.Reload(ctx, spec.Path, spec.SHA256)
	}
	return backend.Errorf(backend.ErrUnsupported, "%s is %s: only programs and modules are started here", name, found.spec.Launch)
}

// Close ends what is still open, and waits for everything.
func (r *Registry) Close() error {
	r.mu.Lock()
	r.closed = true
	var left []*entry
	for k, e := range r.opened {
		left = append(left, e)
		delete(r.opened, k)
	}
	r.mu.Unlock()
	var errs []error
	for _, e := range left {
		<-e.ready
		if e.plugin != nil {
			r.hide(e)
			errs = append(errs, e.plugin.Close())
		}
	}
	r.closing.Wait()
	return errors.Join(errs...)
}
