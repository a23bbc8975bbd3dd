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
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/bins/promweave/internal/serve"
	"github.com/promweave/promweave/bins/promweave/internal/workbench"
	"github.com/promweave/promweave/conformance/filters"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// certifyFilter certifies a filter, in front of stores that the suite makes up.
func (a *app) certifyFilter(ctx context.Context, f *certifyFlags, run func(string) bool) (*report.Report, error) {
	spec, settings, err := f.launched()
	if err != nil {
		return nil, err
	}
	callers, series, err := f.samples()
	if err != nil {
		return nil, err
	}
	dir, err := workbench.TempDir()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	log := slog.New(slog.NewTextHandler(a.Talk, &slog.HandlerOptions{Level: slog.LevelError}))
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
		Role: x.Link.Role, Filter: patient{x.Link.Filter}, CallLimit: callLimit(spec), Idempotent: f.idempotent, Callers: callers, Series: series, NotClaimed: f.leftOut(),
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
	case registry.Dial:
		if f.pid != 0 {
			if _, err := resident(f.pid); err != nil {
				return nil, fmt.Errorf("--pid %d: %w", f.pid, err)
			}
			s.Memory = func() int64 { n, _ := resident(f.pid); return n }
		}
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

// callLimit is what a server lets a call of the filter take.
func callLimit(spec registry.Spec) time.Duration {
	switch {
	case spec.CallTime != 0:
		return spec.CallTime
	case spec.Launch == registry.WASM:
		return 50 * time.Millisecond
	}
	return 500 * time.Millisecond
}

// patient says of calls with more than a server sends at once that to be late with them
// is no reason to take the filter out, so that each call is judged by itself.
type patient struct{ carrier.Filter }

// largeFrame is more than the frames that a server makes of ordinary series, in bytes.
const largeFrame = 512 << 10

func (p patient) Rewrite(ctx context.Context, frame, reply []byte) ([]byte, error) {
	if len(frame) > largeFrame {
		ctx = carrier.Large(ctx)
	}
	return p.Filter.Rewrite(ctx, frame, reply)
}

// samples are the callers and the label sets that the settings are about.
func (f *certifyFlags) samples() (callers []filters.Caller, series []labels.Labels, err error) {
	for _, entry := range f.denied {
		method, subject := filter.Names(entry)
		if subject != "" && method == "" {
			method = "basic"
		}
		callers = append(callers, filters.Caller{Caller: filter.Caller{Method: method, Subject: subject}, Denied: true})
	}
	for _, text := range f.series {
		ls, err := parseLabels(text)
		if err != nil {
			return nil, nil, fmt.Errorf("--series %s: %w", text, err)
		}
		series = append(series, ls)
	}
	return callers, series, nil
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
