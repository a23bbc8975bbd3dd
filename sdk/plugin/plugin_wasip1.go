// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build wasip1

package plugin

import (
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/guest"
)

// Filter registers the filter that this program offers. It is to be called once, in
// an init function.
func Filter(f func() filter.Filter) { guest.Filter(f()) }

// Main does nothing in a WASM module, where the host calls what is registered.
func Main() {}
