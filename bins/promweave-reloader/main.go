// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command promweave-reloader has a Prometheus, or whatever reloads in the same way, read its
// configuration again when a file of it changes. It is small, because it runs beside each of them.
package main

import (
	"os"

	"github.com/promweave/promweave/bins/promweave-reloader/internal/reloader"
)

func main() { os.Exit(reloader.Main(os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr)) }
