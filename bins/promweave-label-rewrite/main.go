// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command promweave-label-rewrite is the filter label_rewrite as a plug-in of its own: a process,
// a service (--listen), or, built for wasip1, a WASM module.
package main

import (
	"github.com/promweave/promweave/plugins/filters/labelrewrite"
	"github.com/promweave/promweave/sdk/plugin"
)

func init() { plugin.Filter(labelrewrite.New) }

func main() { plugin.Main() }
