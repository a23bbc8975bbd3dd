// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build race

package query_test

// The race detector makes the engines some ten times slower. What it looks for
// needs each path once and not every script over every layout: those run without.
func init() { raceEnabled = true }
