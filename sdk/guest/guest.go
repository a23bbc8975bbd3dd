// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package guest makes a WASM module of a filter: it is the plug-in's side of the
// ABI in ABI.md. A module is a main package with an empty main function whose init
// function calls Filter:
//
//	func init() { guest.Filter(myfilter.New()) }
//	func main() {}
//
// and is built with
//
//	GOOS=wasip1 GOARCH=wasm go build -trimpath -buildmode=c-shared -ldflags="-s -w" -o filter.wasm .
//
// Everything here compiles for every platform, so that the same source is compiled
// in or built as a process; only a WASM module exports anything.
//
// A module serves one call at a time and has one thread, so nothing here locks. A
// panic ends the instance, whose last words are in the host's log.
package guest

import "github.com/promweave/promweave/sdk/filter"

// Minor is the minor version of the contract that this package implements.
const Minor = 0

// The levels of Log.
const (
	LevelDebug = iota
	LevelInfo
	LevelWarn
	LevelError
)

// registered is the filter that the module offers.
var registered filter.Filter

// Filter makes f the filter that the module offers. It is to be called once, in an
// init function: the host asks for nothing before these have run.
func Filter(f filter.Filter) {
	if registered != nil {
		panic("guest.Filter is called twice: a module offers one filter")
	}
	registered = f
}
