// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/wasm/meter"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if err := cache.Close(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}))
}

// cache has what tests compile more than once.
var cache = wazero.NewCompilationCache()

var (
	errFuel  = errors.New("no fuel left")
	errStack = errors.New("calls are nested too deeply")
)

// quantum is how much fuel a yield gives.
const quantum = 65536

// A machine is an instance of a module and the host side of metering, as small as it can be.
type machine struct {
	t      testing.TB
	mod    api.Module
	fuel   api.MutableGlobal
	limit  int64 // 0: none
	used   int64 // granted by yields
	yields int
	// onYield may end the call with an error.
	onYield func() error
}

// config of an engine with the memory limit that all tests use.
func config(interpreter bool) wazero.RuntimeConfig {
	c := wazero.NewRuntimeConfigCompiler()
	if interpreter {
		c = wazero.NewRuntimeConfigInterpreter()
	}
	return c.WithMemoryLimitPages(1024).WithCompilationCache(cache)
}

// start compiles and instantiates a module that is metered or not.
func start(t testing.TB, cfg wazero.RuntimeConfig, wasm []byte, set ...func(*machine)) (*machine, error) {
	t.Helper()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, cfg)
	t.Cleanup(func() {
		if err := rt.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	m := &machine{t: t}
	for _, f := range set {
		f(m)
	}
	if _, err := rt.NewHostModuleBuilder(meter.ImportModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(m.yield), []api.ValueType{api.ValueTypeI32}, nil).
		Export(meter.Yield).Instantiate(ctx); err != nil {
		t.Fatal(err)
	}
	wasi_snapshot_preview1.MustInstantiate(ctx, rt)
	code, err := rt.CompileModule(ctx, wasm)
	if err != nil {
		return nil, fmt.Errorf("compile: %w", err)
	}
	m.mod, err = rt.InstantiateModule(ctx, code, wazero.NewModuleConfig().WithStartFunctions("_initialize"))
	if err != nil {
		return nil, err
	}
	if g := m.mod.ExportedGlobal(meter.Fuel); g != nil {
		m.fuel = g.(api.MutableGlobal)
	}
	return m, nil
}

func (m *machine) yield(_ context.Context, mod api.Module, stack []uint64) {
	m.yields++
	if api.DecodeU32(stack[0]) == meter.ReasonStack {
		panic(errStack)
	}
	if m.onYield != nil {
		if err := m.onYield(); err != nil {
			panic(err)
		}
	}
	fuel := mod.ExportedGlobal(meter.Fuel).(api.MutableGlobal)
	m.used += quantum - int64(fuel.Get())
	if m.limit > 0 && m.used > m.limit {
		panic(errFuel)
	}
	fuel.Set(quantum)
}

// spent is all fuel that was used so far.
func (m *machine) spent() int64 { return m.used - int64(m.fuel.Get()) }

// call calls an exported function.
func (m *machine) call(name string, args ...uint64) ([]uint64, error) {
	m.t.Helper()
	f := m.mod.ExportedFunction(name)
	if f == nil {
		m.t.Fatalf("no function %q is exported", name)
	}
	return f.Call(context.Background(), args...)
}

func rewrite(t testing.TB, wasm []byte) *meter.Result {
	t.Helper()
	res, err := meter.Rewrite(wasm, meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var goModule = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "meter")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "gofilter.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-o", out, "./testdata/src/gofilter")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, text)
	}
	return os.ReadFile(out)
})

// goBuilt is what Go's toolchain makes of testdata/src/gofilter.
func goBuilt(t testing.TB) []byte {
	t.Helper()
	b, err := goModule()
	if err != nil {
		t.Fatal(err)
	}
	return b
}
