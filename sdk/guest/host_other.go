// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !wasip1

package guest

import (
	"context"
	"crypto/rand"
	"log/slog"
	"time"
)

// Log writes a line to the log of the process. In a module it is the host's, which
// takes 100 lines a second.
func Log(level int, text string) { slog.Log(context.Background(), slogLevel(level), text) }

// LogEnabled says whether lines of a level are kept, to save making them.
func LogEnabled(level int) bool {
	return slog.Default().Enabled(context.Background(), slogLevel(level))
}

func slogLevel(level int) slog.Level { return slog.Level(4 * (level - LevelInfo)) }

// Now is the time in ns since 1970. In a module it needs the permission clock.
func Now() int64 { return time.Now().UnixNano() }

// Random fills b with random bytes. In a module it needs the permission random.
func Random(b []byte) { _, _ = rand.Read(b) }

// MetricAdd adds v, not below 0, to the counter with a name ([a-z_]{1,40}). In a
// module it needs the permission metrics; elsewhere it does nothing.
func MetricAdd(name string, v float64) {}
