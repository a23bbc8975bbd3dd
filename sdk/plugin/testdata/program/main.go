// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command program is a plug-in for tests: the reference filter.
package main

import (
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/guest/testfilter"
	"github.com/promweave/promweave/sdk/plugin"
)

func init() { plugin.Filter(func() filter.Filter { return testfilter.New() }) }

func main() { plugin.Main() }
