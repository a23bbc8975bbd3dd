// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build race

package meter_test

// raced says that the race detector is on. It makes the compiler of modules some twenty times slower.
const raced = true
