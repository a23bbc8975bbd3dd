// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package store registers the store backend that a plug-in offers:
//
//	func init() { store.Backend(func() store.Spec { return acme{} }) }
//
//	func main() { plugin.Main() }
//
// It is apart from package plugin so that a filter does not carry what a backend needs.
// A backend in Go is a process or a network service; as a WASM module it would be
// large and slow at reading text, for which the SDKs of other languages are better.
package store

import (
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// Spec is a kind of store backend. It MUST be safe for concurrent use.
type Spec interface {
	// Describe says what the backend is. Role and Hooks are not used, Features and
	// Minor are filled in by the SDK.
	Describe() filter.Description
	// Configure makes a backend. An error names the key that is wrong; it counts as
	// backend.ErrInvalid unless it has another kind. Configure SHOULD NOT wait for the
	// store to be reachable: Info says that.
	//
	// If the result is a backend.Closer it is closed when nobody needs it any more. Its
	// optional interfaces (backend.ExemplarsBackend, ...) are served.
	Configure(c *filter.Config) (backend.Backend, error)
}

var registered func() Spec

// Backend registers the backend that this program offers. It is to be called once,
// in an init function; spec is called when the program starts to serve.
func Backend(spec func() Spec) {
	if registered != nil {
		panic("store.Backend is called twice: a plug-in offers one backend")
	}
	registered = spec
}

// Registered returns what Backend was called with, nil if it was not.
func Registered() func() Spec { return registered }
