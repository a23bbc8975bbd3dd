// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/promweave/promweave/bins/promweave/internal/serve"
	"github.com/promweave/promweave/bins/promweave/internal/workbench"
	"github.com/promweave/promweave/conformance/filters"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/plugins/trust"
	"github.com/promweave/promweave/sdk/backend"
)

// certifyFilter certifies a filter, in front of stores that the suite makes up.
func (a *app) certifyFilter(ctx context.Context, f *certifyFlags, run func(string) bool) (*report.Report, error) {
	spec := registry.Spec{Launch: registry.Builtin, Kind: f.kind}
	switch path := cmp.Or(f.plugin, f.wasm); {
	case f.dial != "":
		spec = registry.Spec{Launch: registry.Dial, Address: f.dial}
	case path != "":
		full, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		spec = registry.Spec{Launch: registry.Spawn, Path: full}
		if f.wasm != "" {
			spec.Launch = registry.WASM
		}
		if _, spec.SHA256, err = trust.ReadFile(full); err != nil {
			return nil, err
		}
	}
	settings, err := f.settingsText()
	if err != nil {
		return nil, err
	}
	dir, err := workbench.TempDir()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	log := slog.New(slog.NewTextHandler(a.talk, &slog.HandlerOptions{Level: slog.LevelError}))
	r := registry.New(registry.Options{Dir: dir, Logger: log, Builtins: serve.BuiltinFilters()})
	defer r.Close()
	x, err := r.Filter(ctx, filters.Backend, spec, []byte(settings), filtering.Closed)
	if err != nil {
		return nil, err
	}
	defer x.Close()
	status := func() registry.Status {
		for _, st := range r.Statuses() {
			return st
		}
		return registry.Status{}
	}
	st := status()
	s := &filters.Subject{
		Name: st.Description.Name, Launch: spec.Launch, Origin: cmp.Or(spec.Path, spec.Address, spec.Kind), SHA256: spec.SHA256, Version: st.Description.Version,
		Role: x.Link.Role, Filter: x.Link.Filter, Idempotent: f.idempotent,
		Wrap: func(inner backend.Backend) backend.Backend {
			// What is remembered would not be asked again.
			return filtering.Wrap(inner, []filtering.Link{x.Link}, filtering.Options{Backend: filters.Backend, MemoBytes: -1})
		},
		Fault: func(err error) bool { return errors.Is(err, carrier.ErrFault) },
	}
	switch spec.Launch {
	case registry.Builtin:
		s.Memory = filters.Heap
	case registry.WASM:
		s.Memory = func() int64 { return status().MemoryBytes }
	case registry.Spawn:
		if _, err := resident(st.PID); err == nil {
			s.Memory = func() int64 { n, _ := resident(status().PID); return n }
		}
	}
	done, of := 0, len(filters.Requirements())
	return filters.Certify(ctx, s, filters.Options{Seed: f.seed, Run: run, Profiles: f.profiles, Progress: func(res report.Result) {
		done++
		a.progress(f, done, of, &res)
	}}), nil
}

// resident is what a process holds in memory, in bytes, where /proc says so (proc(5)).
func resident(pid int) (int64, error) {
	if pid == 0 {
		return 0, errors.New("no process")
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data))
	if len(fields) < 2 {
		return 0, errors.New("statm is too short")
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize()), err
}
