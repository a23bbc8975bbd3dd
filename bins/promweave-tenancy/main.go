// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command promweave-tenancy is the filter tenancy as a plug-in of its own: a process,
// a service (--listen), or, built for wasip1, a WASM module.
package main

import (
	"github.com/promweave/promweave/plugins/filters/tenancy"
	"github.com/promweave/promweave/sdk/plugin"
)

func init() { plugin.Filter(tenancy.New) }

func main() { plugin.Main() }
