// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package meter_test

// raced says that the race detector is on.
const raced = false
