// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import "time"

// SetClock replaces the clock.
func (s *Server) SetClock(now func() time.Time) { s.now = now }

// WatchParent is watchParent.
var WatchParent = watchParent

// CheckVersion is checkVersion.
var CheckVersion = checkVersion

// RaiseHeap is raiseHeap, and how much it takes.
func RaiseHeap() int {
	unused = nil
	raiseHeap()
	return len(unused)
}
