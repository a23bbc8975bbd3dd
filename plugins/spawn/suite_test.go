// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package spawn_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/carrier/carriertest"
	"github.com/promweave/promweave/plugins/spawn"
)

func TestCarrier(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("mtls=%t", !plain), func(t *testing.T) {
			load := func(pkg, name string) func(t *testing.T) carrier.Plugin {
				return func(t *testing.T) carrier.Plugin {
					path, sum := program(t, "../carrier/carriertest/testplugin/"+pkg)
					dir := runtimeDir(t)
					p, err := spawn.Open(t.Context(), spawn.Config{
						Name: name, Path: path, SHA256: sum, RuntimeDir: dir, DisableMTLS: plain,
						CallTime: 3 * time.Second, RetryTime: 10 * time.Second,
						Limits: spawn.Limits{StartTimeout: time.Minute, HealthTimeout: 10 * time.Second, MaxFaults: 100},
					}, nil, nil)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { closeAll(t, p, dir) })
					return p
				}
			}
			carriertest.Run(t, carriertest.Carrier{Filter: load("filter", "faulty"), Backend: load("store", "teststore"), Isolated: true})
		})
	}
}
