// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// CheckPlugins tells bad what a start would refuse about filters and plug-ins, and note
// what it would log a warning of. It loads
// and configures what cannot do anything but compute: filters of this program, and
// modules. Of programs it looks at the file alone, and services are not asked.
func CheckPlugins(ctx context.Context, c *config.Config, bad func(key, format string, args ...any), note func(string)) {
	v, err := verifierOf(c.Plugins)
	if err != nil {
		bad("plugins", "%v", err)
		return
	}
	dir, err := os.MkdirTemp("", "promweave-check-")
	if err != nil {
		bad("", "%v", err)
		return
	}
	defer os.RemoveAll(dir)
	log := slog.New(slog.DiscardHandler)
	r := registry.New(registry.Options{Dir: dir, Builtins: builtinFilters, Logger: log, Verifier: v})
	defer r.Close()

	o := &opened{cfg: *c, byName: map[string]*shared[*registry.Filter]{}, absent: map[string]*absent{}}
	for i, fc := range c.Filters {
		key := fmt.Sprintf("filters[%d]", i)
		spec := registry.Spec{Launch: registry.Builtin, Kind: fc.Kind}
		if fc.Plugin != nil {
			spec = specOf(fc.Plugin)
			key += ".plugin"
		}
		// What is not known cannot be compared with where it is named.
		o.absent[fc.Name] = &absent{cfg: fc}
		if err := r.Examine(spec); err != nil {
			bad(key, "%v", err)
			continue
		}
		if !computes(spec) {
			continue
		}
		x, err := r.Filter(ctx, fc.Name, spec, []byte(fc.Config), filtering.Closed)
		if err != nil {
			bad(key, "%v", err)
			continue
		}
		defer x.Close()
		o.byName[fc.Name] = share(x, x.Close)
		delete(o.absent, fc.Name)
	}
	unused, err := o.check()
	if err != nil {
		bad("filters", "%v", err)
	}
	for _, name := range unused {
		note(fmt.Sprintf("filter %s: %s", name, namedNowhere))
	}
	for i, bc := range c.Backends {
		if bc.Plugin == nil {
			continue
		}
		key, spec := fmt.Sprintf("backends[%d].plugin", i), specOf(bc.Plugin)
		if err := r.Examine(spec); err != nil {
			bad(key, "%v", err)
			continue
		}
		if !computes(spec) {
			continue
		}
		b, release, err := r.Backend(ctx, bc.Name, spec, []byte(bc.Config), true)
		if err != nil {
			bad(key, "%v", err)
			continue
		}
		if x, ok := b.(backend.Closer); ok {
			_ = x.Close()
		}
		release()
	}
}

// computes says that loading what a spec names does nothing else.
func computes(s registry.Spec) bool { return s.Launch == registry.Builtin || s.Launch == registry.WASM }

// OpenBackend opens one backend of a configuration as queries see it, with its external
// labels and behind its filters, and nothing else: for who wants to look at it alone.
func OpenBackend(ctx context.Context, cfg config.Config, name string, log *slog.Logger) (b backend.Backend, end func(), err error) {
	i := slices.IndexFunc(cfg.Backends, func(bc config.Backend) bool { return bc.Name == name })
	if i < 0 {
		var names []string
		for _, bc := range cfg.Backends {
			names = append(names, bc.Name)
		}
		return nil, nil, fmt.Errorf("there is no backend %q in the configuration; there are: %s", name, strings.Join(names, ", "))
	}
	cfg.Backends = cfg.Backends[i : i+1]
	cfg.Filters = slices.DeleteFunc(slices.Clone(cfg.Filters), func(f config.Filter) bool { return !slices.Contains(cfg.Backends[0].Filters, f.Name) })
	cfg.Query.Filters = nil
	// A server that runs with the same configuration has its own.
	if cfg.Plugins.Dir, err = os.MkdirTemp("", "pw-"); err != nil {
		return nil, nil, err
	}
	m := newMetrics()
	f, err := newFilters(cfg.Plugins, log, m)
	if err != nil {
		_ = os.RemoveAll(cfg.Plugins.Dir)
		return nil, nil, err
	}
	done := func() {
		f.close()
		_ = os.RemoveAll(cfg.Plugins.Dir)
	}
	o, err := f.open(ctx, cfg, false)
	if err != nil {
		done()
		return nil, nil, err
	}
	o.commit()
	entries, commit, err := newStores(log, m, nil, f.registry).open(ctx, cfg, o)
	if err != nil {
		done()
		return nil, nil, err
	}
	commit()
	end = func() {
		if err := entries[0].Close(); err != nil {
			log.Warn("closing a backend", "backend", name, "err", err)
		}
		done()
	}
	b = entries[0].Backend
	if g, ok := b.(backend.Group); ok {
		members := g.Members()
		if len(members) != 1 {
			end()
			return nil, nil, fmt.Errorf("backend %q stands for %d stores: certify each by its address, with --endpoint", name, len(members))
		}
		b = members[0].Backend
	}
	return b, end, nil
}

// BuiltinFilters are the filters that are part of the program, by kind.
func BuiltinFilters() map[string]func() filter.Filter { return maps.Clone(builtinFilters) }
