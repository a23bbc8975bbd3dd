// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build wasip1

package guest

import "unsafe"

// What is imported here is in a module only if the author's code reaches it: the
// linker drops the rest, and with it the permission that the module would need.

//go:wasmimport promweave_v1 log
//go:noescape
func hostLog(level int32, p unsafe.Pointer, n int32)

//go:wasmimport promweave_v1 log_enabled
func hostLogEnabled(level int32) int32

//go:wasmimport promweave_v1 now_ns
func hostNow() int64

//go:wasmimport promweave_v1 random
//go:noescape
func hostRandom(p unsafe.Pointer, n int32)

//go:wasmimport promweave_v1 metric_add
//go:noescape
func hostMetricAdd(p unsafe.Pointer, n int32, v float64)

// Log writes a line to the host's log. The host takes 100 lines a second.
func Log(level int, text string) {
	hostLog(int32(level), unsafe.Pointer(unsafe.StringData(text)), int32(len(text)))
}

// LogEnabled says whether lines of a level are kept, to save making them.
func LogEnabled(level int) bool { return hostLogEnabled(int32(level)) != 0 }

// Now is the time in ns since 1970. It needs the permission clock.
func Now() int64 { return hostNow() }

// Random fills b with random bytes. It needs the permission random.
func Random(b []byte) {
	if len(b) > 0 {
		hostRandom(unsafe.Pointer(unsafe.SliceData(b)), int32(len(b)))
	}
}

// MetricAdd adds v, not below 0, to the counter with a name ([a-z_]{1,40}). It needs
// the permission metrics.
func MetricAdd(name string, v float64) {
	hostMetricAdd(unsafe.Pointer(unsafe.StringData(name)), int32(len(name)), v)
}
