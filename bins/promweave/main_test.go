// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package main_test

import (
	"testing"

	"go.uber.org/goleak"
)

// A cloud's client starts a goroutine when it is linked, so those that run already do not count.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }
