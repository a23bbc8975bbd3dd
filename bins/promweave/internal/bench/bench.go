// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package bench measures Promweave against Prometheus' engine in one process, on
// the same data and the same queries, as ratios. It holds only benchmarks; they
// stand here because they need the engine, the backends and the generator at once.
package bench
