// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/promweave/promweave/bins/promweave/internal/config"
)

// TestCheckPlugins: what a start would refuse is known before, and nothing is started.
func TestCheckPlugins(t *testing.T) {
	const module = "../../../../sdk/testdata/golden/v1.0/rewrite-c.wasm"
	dir := t.TempDir()
	program, trace := filepath.Join(dir, "program"), filepath.Join(dir, "it-ran")
	if err := os.WriteFile(program, []byte("#!/bin/sh\ntouch "+trace+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	if err := os.WriteFile(data, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	digest := func(file string) string {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		return hex.EncodeToString(sum[:])
	}
	plugin := func(launch, file string) *config.Plugin {
		return &config.Plugin{Launch: launch, Path: file, SHA256: digest(file)}
	}
	other := plugin(config.LaunchWASM, module)
	other.SHA256 = strings.Repeat("0", 64)

	c := &config.Config{
		Filters: []config.Filter{
			{Name: "good", Plugin: plugin(config.LaunchWASM, module), Config: `{"set": "a=b"}`},
			// The same module, and therefore the same plug-in.
			{Name: "key", Plugin: plugin(config.LaunchWASM, module), Config: `{"tier": "none of them"}`},
			{Name: "digest", Plugin: other},
			{Name: "tenants", Kind: config.FilterTenancy, Config: `{}`},
			{Name: "program", Plugin: plugin(config.LaunchSpawn, program)},
			{Name: "data", Plugin: plugin(config.LaunchSpawn, data)},
			{Name: "service", Plugin: &config.Plugin{Launch: config.LaunchDial, Address: "127.0.0.1:1"}},
		},
		Backends: []config.Backend{
			{Name: "kind", Plugin: plugin(config.LaunchWASM, module)},
			{Name: "junk", Plugin: plugin(config.LaunchWASM, data)},
		},
		Query: config.Query{Filters: []string{"good", "key", "digest", "tenants", "program", "data", "service"}},
	}
	var got []string
	quiet := func(text string) { t.Errorf("noted: %s", text) }
	CheckPlugins(t.Context(), c, func(key, format string, args ...any) {
		got = append(got, key+": "+strings.ReplaceAll(fmt.Sprintf(format, args...), dir, "DIR"))
	}, quiet)
	want := []string{
		`filters[1].plugin: wasm ` + module + `: plug-in "good": configure: tier: must be names, columns or rows`,
		`filters[2].plugin: wasm ` + module + `: has sha256 ` + digest(module) + `, not ` + other.SHA256 + `: it is another file than the configuration means, or was changed`,
		`filters[3]: builtin tenancy: plug-in tenants: configure tenants: label: missing: the label that says whose a series is`,
		`filters[5].plugin: spawn DIR/data: is not executable: chmod +x DIR/data`,
		`backends[0].plugin: wasm ` + module + `: rewrite 1.0.0 is a filter, not a store backend`,
	}
	if len(got) == 0 || !strings.HasPrefix(got[len(got)-1], "backends[1].plugin: wasm DIR/data: ") {
		t.Fatalf("%q", got)
	}
	if diff := cmp.Diff(want, got[:len(got)-1]); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(trace); err == nil {
		t.Error("a program was started")
	}

	// A lock file knows who may run: what is not in it may not.
	c = &config.Config{
		Plugins:  config.Plugins{LockFile: filepath.Join(dir, "lock")},
		Backends: []config.Backend{{Name: "unknown", Plugin: &config.Plugin{Launch: config.LaunchSpawn, Path: program}}},
	}
	got = nil
	CheckPlugins(t.Context(), c, func(key, format string, args ...any) { got = append(got, key+": "+fmt.Sprintf(format, args...)) }, quiet)
	if len(got) != 1 || !strings.HasPrefix(got[0], "backends[0].plugin: ") || !strings.Contains(got[0], "has no entry for this file") {
		t.Errorf("%q", got)
	}

	// What a start only warns of is noted, and no mistake.
	c = &config.Config{Filters: []config.Filter{{Name: "idle", Kind: config.FilterLabelRewrite, Config: `{"drop": ["x"]}`}}}
	got = nil
	CheckPlugins(t.Context(), c, func(key, format string, args ...any) { t.Errorf("%s: "+format, append([]any{key}, args...)...) },
		func(text string) { got = append(got, text) })
	if len(got) != 1 || !strings.HasPrefix(got[0], "filter idle: ") {
		t.Errorf("%q", got)
	}
}
