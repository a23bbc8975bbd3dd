// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package guest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// module is an instance of a plug-in in a host that has nothing of the real one but the
// ABI: no limits, no permissions, no pool.
type module struct {
	t       testing.TB
	mod     api.Module
	alloc   api.Function
	calls   map[string]api.Function
	stack   [4]uint64
	imports []string
	exports []string

	log   []string
	emits [][]byte
	// wanted is after how many batches emit says that nobody wants more; 0 is never.
	wanted int
	// fetch answers http_fetch; bodies are those that are open.
	fetch   func(*pluginpb.HTTPRequest) (*pluginpb.HTTPResponse, string, error)
	bodies  map[int64]*body
	lastErr string
}

type body struct {
	head []byte
	text io.Reader
}

// guestError is an Error that a module returned.
type guestError struct{ kind, message string }

func (e *guestError) Error() string { return e.kind + ": " + e.message }

// compiledModules keeps what was compiled: a Go module takes a second.
var compiledModules = wazero.NewCompilationCache()

// open compiles and instantiates a module.
func open(t testing.TB, code []byte) *module {
	t.Helper()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithCoreFeatures(api.CoreFeaturesV2).WithCompilationCache(compiledModules))
	t.Cleanup(func() { _ = rt.Close(ctx) })
	wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	m := &module{t: t, calls: map[string]api.Function{}, bodies: map[int64]*body{}}
	if err := m.offer(ctx, rt); err != nil {
		t.Fatal(err)
	}
	compiled, err := rt.CompileModule(ctx, code)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range compiled.ImportedFunctions() {
		from, name, _ := f.Import()
		m.imports = append(m.imports, from+"."+name)
	}
	for name := range compiled.ExportedFunctions() {
		m.exports = append(m.exports, name)
	}
	slices.Sort(m.imports)
	slices.Sort(m.exports)
	m.mod, err = rt.InstantiateModule(ctx, compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions("_initialize"))
	if err != nil {
		t.Fatal(err)
	}
	m.alloc = m.mod.ExportedFunction("promweave_alloc")
	for _, name := range m.exports {
		m.calls[name] = m.mod.ExportedFunction(name)
	}
	return m
}

// call gives an argument to a function and returns a copy of its answer.
func (m *module) call(name string, arg []byte) ([]byte, error) {
	view, err := m.view(name, arg)
	return slices.Clone(view), err
}

// view is call, but the answer is the module's memory and valid until the next call.
func (m *module) view(name string, arg []byte) ([]byte, error) {
	f := m.calls["promweave_"+name]
	if f == nil {
		return nil, fmt.Errorf("the module exports no promweave_%s", name)
	}
	ctx := context.Background()
	m.stack[0] = uint64(len(arg))
	if err := m.alloc.CallWithStack(ctx, m.stack[:]); err != nil {
		return nil, err
	}
	p := uint32(m.stack[0])
	if p == 0 || p%8 != 0 || !m.mod.Memory().Write(p, arg) {
		return nil, fmt.Errorf("promweave_alloc(%d) returned %d", len(arg), p)
	}
	m.stack[0], m.stack[1] = uint64(p), uint64(len(arg))
	if err := f.CallWithStack(ctx, m.stack[:]); err != nil {
		return nil, err
	}
	at, n := uint32(m.stack[0]>>32), uint32(m.stack[0])
	out, ok := m.mod.Memory().Read(at, n&^(1<<31))
	if !ok {
		return nil, fmt.Errorf("promweave_%s returned memory that it does not have", name)
	}
	if n>>31 == 1 {
		kind, text, err := filter.DecodeError(out)
		if err != nil {
			return nil, err
		}
		return nil, &guestError{kind, text}
	}
	return out, nil
}

// configure makes an instance of a filter with settings path=value, one a line.
func (m *module) configure(settings string) (*filter.Plan, error) {
	c := &filter.Config{Name: "test", JSON: []byte("{}")}
	for line := range strings.Lines(settings) {
		path, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if path != "" {
			c.Settings = append(c.Settings, filter.Setting{Path: path, Value: value})
		}
	}
	out, err := m.call("configure", filter.AppendConfigureRequest(nil, c, 0))
	if err != nil {
		return nil, err
	}
	instance, plan, err := filter.DecodeConfigureReply(out)
	if err == nil && instance == 0 {
		err = errors.New("the instance has number 0")
	}
	return plan, err
}

// offer is what modules import.
func (m *module) offer(ctx context.Context, rt wazero.Runtime) error {
	bytes := func(p, n uint32) []byte {
		b, ok := m.mod.Memory().Read(p, n)
		if !ok {
			panic("a module gave the host memory that it does not have")
		}
		return b
	}
	give := func(p, room uint32, b []byte) uint32 {
		if len(b) <= int(room) {
			copy(bytes(p, room), b)
		}
		return uint32(len(b))
	}
	b := rt.NewHostModuleBuilder("promweave_v1")
	for name, f := range map[string]any{
		"log": func(level, p, n uint32) {
			m.log = append(m.log, fmt.Sprintf("%d %s", level, bytes(p, n)))
		},
		"log_enabled": func(level uint32) uint32 { return 1 },
		"now_ns":      func() uint64 { return 1_700_000_000_000_000_000 },
		"random":      func(p, n uint32) { clear(bytes(p, n)) },
		"metric_add": func(p, n uint32, v float64) {
			m.log = append(m.log, fmt.Sprintf("metric %s %g", bytes(p, n), v))
		},
		"emit": func(p, n uint32) uint32 {
			m.emits = append(m.emits, slices.Clone(bytes(p, n)))
			if m.wanted > 0 && len(m.emits) >= m.wanted {
				return 1
			}
			return 0
		},
		"http_fetch": func(p, n uint32) uint64 {
			var req pluginpb.HTTPRequest
			if err := req.UnmarshalVT(bytes(p, n)); err != nil {
				panic(err)
			}
			resp, text, err := m.fetch(&req)
			if err != nil {
				m.lastErr = err.Error()
				return 1<<64 - 1
			}
			head, err := resp.MarshalVTStrict()
			if err != nil {
				panic(err)
			}
			h := int64(len(m.bodies))
			m.bodies[h] = &body{head, strings.NewReader(text)}
			return uint64(h)
		},
		"http_response": func(h, p, room uint32) uint32 { return give(p, room, m.bodies[int64(h)].head) },
		"http_read": func(h, p, room uint32) uint32 {
			// Less than is asked for, as networks do.
			n, _ := m.bodies[int64(h)].text.Read(bytes(p, min(room, 1000)))
			return uint32(n)
		},
		"http_close": func(h uint32) { delete(m.bodies, int64(h)) },
		"http_error": func(p, room uint32) uint32 { return give(p, room, []byte(m.lastErr)) },
	} {
		b.NewFunctionBuilder().WithFunc(f).Export(name)
	}
	_, err := b.Instantiate(ctx)
	return err
}
