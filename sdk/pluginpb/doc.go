// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package pluginpb is the plug-in contract on the wire, generated from plugin.proto:
// what a process, a network service and a WASM module exchange with the host.
//
// Authors in Go use sdk/filter and sdk/backend instead, which hide it.
package pluginpb

// Minor is the minor version of the contract that this package speaks.
const Minor = 0

// InstanceKey is the gRPC metadata key that names the instance in calls of the
// thanos.* services, whose messages have no field for it.
const InstanceKey = "promweave-instance"
