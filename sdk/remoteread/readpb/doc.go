// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package readpb holds the messages of Prometheus remote read, field for field
// those of prompb in the Prometheus repository. The proto package has a name of
// our own, because the protocol is plain HTTP and names do not travel: so it can
// be linked next to any other copy.
package readpb
