// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Promweave answers one PromQL query from many stores.
package main

import (
	"os"

	"github.com/promweave/promweave/bins/promweave/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr)) }
