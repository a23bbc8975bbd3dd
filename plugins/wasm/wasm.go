// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package wasm carries plug-ins that are WebAssembly modules, by the ABI in
// sdk/guest/ABI.md. A module can do nothing but compute, unless its operator grants
// more; what it computes, how long, and in how much memory is bounded before it is
// spent. An instance that trapped or lied is thrown away, the others go on.
//
// The runtime is wazero. Its own means to stop a module are not used: they cost a
// multiple of the work and do not stop code without loops. Package meter, below this
// one, rewrites modules so that they count what they do and ask the host now and then.
package wasm

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/wasm/fetch"
	"github.com/promweave/promweave/sdk/filter"
)

// Config says which module to load and what it may do.
type Config struct {
	// Name of the plug-in, for errors, logs and the metrics' label "plugin".
	Name string
	// Path of the module, and the SHA-256 that it must have, in hex. Both are required:
	// the bytes that are hashed are those that are compiled.
	Path, SHA256 string
	// Permissions are what the module may import beyond nothing.
	Permissions []filter.Permission
	// HTTP says what a module with the permission http may ask.
	HTTP fetch.Config
	// CacheDir keeps compiled modules, which are executed: it must belong to this
	// user and be writable by nobody else. It is created with mode 0700. "" compiles
	// each time.
	CacheDir string
	// Limits; zero values are the defaults.
	Limits Limits
}

// Limits bound what a module may take. The zero value of each is its default.
type Limits struct {
	// ModuleBytes of the file: 16 MiB.
	ModuleBytes int64
	// InstanceMemory is linear memory of one instance in bytes, in steps of 64 KiB: 64 MiB.
	// Memory is that of all instances together: 512 MiB.
	InstanceMemory, Memory int64
	// Instances is the most that exist at a time, over all configurations: twice
	// GOMAXPROCS for filters, 32 for backends, where an instance is held while series
	// are read. It also bounds the memory of call stacks.
	Instances int
	// CallTime is what a call of a filter may take, and any call that only describes or
	// configures gets 20 times that: 50 ms. StoreTime is the same for calls of a
	// backend, 30 s; those also end with their request. Time in which the module waits
	// for the host is not counted.
	CallTime, StoreTime time.Duration
	// Fuel units that one call may use, for filters and backends: 20e9 and 2e12.
	Fuel, StoreFuel int64
	// ReplyBytes of one result that is not a rewrite's: 16 MiB.
	ReplyBytes int
	// BodyBytes of one HTTP response after decompression: 64 MiB.
	BodyBytes int64
	// IdleTime after which an instance that nobody used is closed: 1 min. One for each
	// configuration stays.
	IdleTime time.Duration
}

// Plugin is a loaded module: a carrier.Plugin.
type Plugin struct{}

// Open loads a module: it reads and verifies the file, refuses imports that are not
// granted, compiles, and asks the module to describe itself. The error names what is
// wrong and what to write in the configuration to change it.
func Open(ctx context.Context, c Config, log *slog.Logger, metrics prometheus.Registerer) (*Plugin, error) {
	return nil, errors.New("wasm: not built yet")
}

// Reload loads another version of the module beside this one, configures it for all
// instances, and lets it take over. Calls under way end on the old one. If anything
// is wrong the old one stays.
func (p *Plugin) Reload(ctx context.Context, path, sha256 string) error {
	return errors.New("wasm: not built yet")
}

// Description implements carrier.Plugin.
func (p *Plugin) Description() carrier.Description { return carrier.Description{} }
