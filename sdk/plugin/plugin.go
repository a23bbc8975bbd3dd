// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !wasip1

package plugin

import (
	"os"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/serve"
	"github.com/promweave/promweave/sdk/plugin/store"
)

var registered func() filter.Filter

// Filter registers the filter that this program offers. It is to be called once, in
// an init function.
func Filter(f func() filter.Filter) {
	if registered != nil {
		panic("plugin.Filter is called twice: a plug-in offers one filter")
	}
	registered = f
}

// Main serves what is registered, until the host or a signal ends it, and exits.
// Flags are those of the command line; --help lists them. To add something of one's
// own, such as tracing, call serve.Run instead.
func Main() {
	var o serve.Options
	if registered != nil {
		o.Filter = registered()
	}
	if spec := store.Registered(); spec != nil {
		o.Backend = spec()
	}
	os.Exit(serve.Run(o, os.Args[1:], os.Stdout, os.Stderr))
}
