// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build race

package bucket_test

// Engines are some ten times slower with the race detector, which needs each path once and not
// every script over every layout.
func init() { raceEnabled = true }
