// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package prompb holds samples, histograms and exemplars in the wire form of
// Prometheus remote write and remote read, under the proto package
// prometheus_copy by which Thanos refers to them.
package prompb
