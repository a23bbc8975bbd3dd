// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/wasm/meter"
	"github.com/promweave/promweave/plugins/wasm/wasi"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// The exports of the ABI that every module has beside its hooks.
const (
	exportMemory     = "memory"
	exportABI        = "promweave_abi_v1"
	exportABIPrefix  = "promweave_abi_v"
	exportAlloc      = "promweave_alloc"
	abiMajor         = "1"
	typeHook         = "(i32, i32) -> (i64)"
	typeNothing      = "() -> ()"
	typeABI          = "() -> (i32)"
	typeAlloc        = "(i32) -> (i32)"
	maxStackBytes    = 1 << 20
	maxTableElements = 1 << 17
)

// version is one module that was loaded: a runtime of its own, which is closed when
// the last instance is gone.
type version struct {
	plugin       *Plugin
	path, sha256 string
	runtime      wazero.Runtime
	cache        wazero.CompilationCache
	compiled     wazero.CompiledModule
	memory       meter.Memory
	maxMemory    int64
	exports      map[string]bool
	emits        bool
	description  carrier.Description

	// Of the pool, under its lock.
	alive   int
	retired bool
}

// read returns the bytes of a module that have the digest that was asked for.
func read(path, digest string, limit int64) ([]byte, string, error) {
	digest = strings.ToLower(strings.TrimPrefix(digest, "sha256:"))
	if want, err := hex.DecodeString(digest); err != nil || len(want) != sha256.Size {
		return nil, "", fmt.Errorf("sha256 of %s is not pinned: set sha256 to the 64 hex digits that `sha256sum %s` prints for the file you trust", path, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, "", fmt.Errorf("%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, "", err
	}
	if int64(len(b)) > limit {
		return nil, "", fmt.Errorf("%s is larger than %d bytes, the limit for modules", path, limit)
	}
	sum := sha256.Sum256(b)
	if got := hex.EncodeToString(sum[:]); got != digest {
		return nil, "", fmt.Errorf("%s has sha256 %s, but %s is pinned: it is not the file that was meant", path, got, digest)
	}
	return b, digest, nil
}

// load makes a version of the bytes of a file, up to its description.
func (p *Plugin) load(ctx context.Context, path, digest string) (*version, error) {
	b, digest, err := read(path, digest, p.config.Limits.ModuleBytes)
	if err != nil {
		return nil, err
	}
	// The original is what is validated: rewriting adds functions and globals, which
	// could make an index valid that was not.
	metered, err := meter.Rewrite(b, meter.Options{
		Bytes: int(p.config.Limits.ModuleBytes), StackBytes: maxStackBytes, TableElements: maxTableElements,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	v := &version{plugin: p, path: path, sha256: digest, maxMemory: p.config.Limits.InstanceMemory, exports: map[string]bool{}}
	if err := v.checkExports(metered); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := v.checkImports(metered.Imports); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	v.memory = *metered.Memory
	if v.memory.HasMax {
		v.maxMemory = min(v.maxMemory, int64(v.memory.Max)<<16)
	}
	if least := int64(v.memory.Min) << 16; least > v.maxMemory {
		return nil, fmt.Errorf("%s: the module begins with %d bytes of memory, an instance may have %d: raise memory or build it smaller", path, least, v.maxMemory)
	}
	if err := v.compile(ctx, metered); err != nil {
		v.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := v.describe(ctx); err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

// checkExports looks at the ABI's version before any code runs, and at types.
func (v *version) checkExports(m *meter.Result) error {
	types := map[string]string{exportABI: typeABI, exportAlloc: typeAlloc}
	for h := range hookCount {
		types[h.export()] = typeHook
	}
	types[hookIdle.export()], types[hookInitialize.export()] = typeNothing, typeNothing
	var majors []string
	for _, e := range m.Exports {
		if n, ok := strings.CutPrefix(e.Name, exportABIPrefix); ok {
			majors = append(majors, n)
		}
		v.exports[e.Name] = true
	}
	// The version first: nothing else can be expected of another one.
	switch {
	case len(majors) == 0:
		return fmt.Errorf("the module is not a Promweave plug-in: it does not export %s", exportABI)
	case !slices.Contains(majors, abiMajor):
		return fmt.Errorf("the module speaks ABI v%s, this host v%s: use a build of the plug-in for v%s, or a Promweave that speaks v%s",
			strings.Join(majors, " and v"), abiMajor, abiMajor, majors[0])
	}
	for _, e := range m.Exports {
		switch want, known := types[e.Name]; {
		case e.Name == exportMemory && e.Kind != meter.KindMemory:
			return fmt.Errorf("the export %q is a %s and must be the memory", exportMemory, e.Kind)
		case known && (e.Kind != meter.KindFunc || e.Type != want):
			return fmt.Errorf("the export %s is %s %s; the ABI says func %s", e.Name, e.Kind, e.Type, want)
		}
	}
	for _, name := range []string{exportMemory, exportAlloc, hookDescribe.export(), hookConfigure.export()} {
		if !v.exports[name] {
			return fmt.Errorf("the module does not export %s, which the ABI demands", name)
		}
	}
	if m.Memory == nil || m.Memory.Imported {
		return fmt.Errorf("the module must have its own memory; it imports one")
	}
	return nil
}

// checkImports refuses what is not in the ABI or not granted. All that is wrong is
// in one error, so that the operator reads it once.
func (v *version) checkImports(imports []meter.Extern) error {
	functions := map[string]string{}
	permissions := map[string]filter.Permission{}
	for _, f := range hostFunctions() {
		functions[hostModule+"."+f.name] = signature(f.params, f.results)
		permissions[hostModule+"."+f.name] = f.permission
	}
	for _, f := range wasi.Functions() {
		functions[wasi.Module+"."+f.Name] = signature(f.Params, f.Results)
	}
	var wrong []string
	var missing []filter.Permission
	for _, e := range imports {
		name := e.Module + "." + e.Name
		want, known := functions[name]
		switch permission := permissions[name]; {
		case !known && e.Module == wasi.Module:
			wrong = append(wrong, name+" (no files, sockets or processes exist for modules)")
		case !known && strings.HasPrefix(e.Module, hostModulePrefix) && e.Module != hostModule:
			return fmt.Errorf("the module imports %s, this host speaks ABI v%s: use a build of the plug-in for v%s", name, abiMajor, abiMajor)
		case !known && e.Module == hostModule:
			wrong = append(wrong, name+" (unknown to this host: a newer Promweave may have it)")
		case !known:
			wrong = append(wrong, name+" (not in the ABI)")
		case e.Kind != meter.KindFunc || e.Type != want:
			wrong = append(wrong, fmt.Sprintf("%s as %s %s (it is func %s)", name, e.Kind, e.Type, want))
		case permission != "" && !v.plugin.granted(permission):
			wrong = append(wrong, fmt.Sprintf("%s (needs the permission %s)", name, permission))
			if !slices.Contains(missing, permission) {
				missing = append(missing, permission)
			}
		case e.Name == emitName && e.Module == hostModule:
			v.emits = true
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	text := "the module imports what it may not: " + strings.Join(wrong, ", ")
	if len(missing) > 0 {
		text += "; " + toGrant(append(slices.Clone(v.plugin.config.Permissions), missing...))
	}
	return errors.New(text)
}

// toGrant says what to write so that a plug-in has all these permissions.
func toGrant(all []filter.Permission) string {
	words := make([]string, len(all))
	for i, p := range all {
		words[i] = string(p)
	}
	return fmt.Sprintf("to grant it, set permissions: [%s] on the plug-in", strings.Join(words, ", "))
}

// signature is a type as package meter writes it.
func signature(params, results []api.ValueType) string {
	list := func(ts []api.ValueType) string {
		names := make([]string, len(ts))
		for i, t := range ts {
			names[i] = api.ValueTypeName(t)
		}
		return "(" + strings.Join(names, ", ") + ")"
	}
	return list(params) + " -> " + list(results)
}

// features are what package meter knows: all of core 2.0, and nothing later.
const features = api.CoreFeaturesV2

// compile makes machine code, or takes it from the cache, and the host's functions.
func (v *version) compile(ctx context.Context, m *meter.Result) (err error) {
	defer func() {
		// A module that makes the compiler panic is no reason to stop the host. This
		// holds because the compiler works on this goroutine alone.
		if r := recover(); r != nil {
			v.plugin.log.Error("compiler panicked", "plugin", v.plugin.config.Name, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("the compiler cannot cope with the module: %v", r)
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	// The limit of memory is not given to the runtime: the allocator has it, and knows
	// then who was refused.
	config := wazero.NewRuntimeConfig().WithCoreFeatures(features).WithDebugInfoEnabled(false)
	if dir := v.plugin.config.CacheDir; dir != "" {
		if dir, err = cacheDir(dir, fmt.Sprintf("m%d-%s", meter.Version, v.sha256)); err != nil {
			return err
		}
		if v.cache, err = wazero.NewCompilationCacheWithDir(dir); err != nil {
			return fmt.Errorf("%w: %w", ErrCache, err)
		}
		config = config.WithCompilationCache(v.cache)
	}
	v.runtime = wazero.NewRuntimeWithConfig(ctx, config)
	if v.compiled, err = v.runtime.CompileModule(ctx, m.Module); err != nil {
		return fmt.Errorf("compile: %w", err)
	}
	return v.link(ctx, m.Imports)
}

// link makes the functions that the module imports, and no others.
func (v *version) link(ctx context.Context, imports []meter.Extern) error {
	wanted := func(module, name string) bool {
		return slices.ContainsFunc(imports, func(e meter.Extern) bool { return e.Module == module && e.Name == name })
	}
	builders := map[string]wazero.HostModuleBuilder{}
	add := func(module, name string, f api.GoModuleFunc, params, results []api.ValueType) {
		b, ok := builders[module]
		if !ok {
			b = v.runtime.NewHostModuleBuilder(module)
			builders[module] = b
		}
		b.NewFunctionBuilder().WithGoModuleFunction(f, params, results).Export(name)
	}
	for _, f := range hostFunctions() {
		if wanted(hostModule, f.name) {
			add(hostModule, f.name, goFunction(f.call), f.params, f.results)
		}
	}
	for _, f := range wasi.Functions() {
		if wanted(wasi.Module, f.Name) {
			add(wasi.Module, f.Name, goFunction(wasiFunction(f)), f.Params, f.Results)
		}
	}
	add(meter.ImportModule, meter.Yield, func(ctx context.Context, m api.Module, stack []uint64) {
		in := instanceOf(ctx)
		in.bind(m)
		in.yield(uint32(stack[0]))
	}, []api.ValueType{api.ValueTypeI32}, nil)
	for name, b := range builders {
		if _, err := b.Instantiate(ctx); err != nil {
			return fmt.Errorf("host functions %s: %w", name, err)
		}
	}
	return nil
}

// describe asks an instance of its own, which nobody has configured.
func (v *version) describe(ctx context.Context) error {
	p := v.plugin
	in, err := v.instantiate(ctx)
	if err != nil {
		return err
	}
	defer in.close()
	in.begin(ctx, hookDescribe)
	defer in.done()
	request, err := (&pluginpb.DescribeRequest{Minor: pluginpb.Minor}).MarshalVTStrict()
	if err != nil {
		return err
	}
	b, err := in.invoke(hookDescribe, request, maxMessageBytes)
	if err != nil {
		return err
	}
	var m pluginpb.Description
	if err := m.UnmarshalVT(b); err != nil {
		return in.fault(faultReply, "not a Description: "+err.Error())
	}
	v.description.Description, v.description.Backend, err = wire.DescriptionFromWire(&m)
	if err != nil {
		return in.fault(faultReply, err.Error())
	}
	var missing []filter.Permission
	v.description.Known = true
	for _, need := range v.description.Permissions {
		if !p.granted(need) {
			missing = append(missing, need)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("plug-in %q says that it needs permissions that are not granted; %s", p.config.Name,
			toGrant(append(slices.Clone(p.config.Permissions), missing...)))
	}
	if v.emits && !v.description.Backend {
		return fmt.Errorf("plug-in %q: the module imports %s.%s, which is for backends, but says that it is a filter", p.config.Name, hostModule, emitName)
	}
	if v.description.Backend {
		for h := hookInfo; h <= hookLabelValues; h++ {
			if !v.exports[h.export()] {
				return fmt.Errorf("plug-in %q: the module says that it is a backend, but does not export %s", p.config.Name, h.export())
			}
		}
	}
	return nil
}

// close frees the compiled code. Nothing of the module runs any more.
func (v *version) close() {
	ctx := context.Background()
	if v.compiled != nil {
		_ = v.compiled.Close(ctx)
	}
	if v.runtime != nil {
		_ = v.runtime.Close(ctx)
	}
	if v.cache != nil {
		_ = v.cache.Close(ctx)
	}
}

// ErrCache is in errors that say that Config.CacheDir cannot be used.
var ErrCache = errors.New("cache of compiled modules")

// cacheDir makes a folder for one module in dir, and refuses one that somebody else
// could put code in.
func cacheDir(dir, name string) (string, error) {
	sub := filepath.Join(dir, name)
	if err := os.MkdirAll(sub, 0o700); err != nil {
		return "", fmt.Errorf("%w: %w", ErrCache, err)
	}
	refuse := func(err error) (string, error) {
		return "", fmt.Errorf("%w: %w: what is in it is executed; give a folder of this user with mode 0700", ErrCache, err)
	}
	// Who can write to the folder around it can put another one in its place.
	if err := heldSafe(filepath.Dir(dir)); err != nil {
		return refuse(err)
	}
	for _, d := range []string{dir, sub} {
		if err := ownedAlone(d); err != nil {
			return refuse(err)
		}
	}
	return sub, nil
}
