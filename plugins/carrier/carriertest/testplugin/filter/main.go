// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command filter is the filter that the tests of carriers use, as a plug-in:
//
//	go build .
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o filter.wasm .
package main

import (
	"time"

	"github.com/promweave/promweave/plugins/carrier/carriertest/faultfilter"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin"
)

func init() {
	plugin.Filter(func() filter.Filter { return faultfilter.New(hang) })
}

func main() { plugin.Main() }

// hang does not return for an hour. Where the clock stands still it never does.
func hang() {
	for begin := time.Now(); time.Since(begin) < time.Hour; {
		time.Sleep(time.Second)
	}
}
