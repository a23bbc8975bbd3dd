// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !wasip1

// Command store is the store backend that the tests of carriers use, as a plug-in.
package main

import (
	"github.com/promweave/promweave/plugins/carrier/carriertest/teststore"
	"github.com/promweave/promweave/sdk/plugin"
	"github.com/promweave/promweave/sdk/plugin/store"
)

func init() { store.Backend(teststore.New) }

func main() { plugin.Main() }
