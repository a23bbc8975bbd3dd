// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command module is the reference filter as a plug-in: a program, or a WASM module.
package main

import (
	"github.com/promweave/promweave/sdk/guest/testfilter"
	"github.com/promweave/promweave/sdk/plugin"
)

func init() { plugin.Filter(testfilter.New) }

func main() { plugin.Main() }
