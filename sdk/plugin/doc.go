// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package plugin is what the main package of a plug-in imports. One source makes
// every form of it:
//
//	func init() { plugin.Filter(func() filter.Filter { return myfilter.New() }) }
//
//	func main() { plugin.Main() }
//
// Built as usual it is a program that Promweave spawns, or that serves the same
// contract on the network when started with --listen. Built with GOOS=wasip1
// GOARCH=wasm and -buildmode=c-shared it is a WASM module; registering has to happen
// in an init function because a module's main function is never run.
//
// A store backend is registered with package store.
package plugin
