// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package storepb holds the messages and services with which stores and
// queriers talk to each other, and the gRPC codec that carries them.
//
// The wire form is that of the gRPC APIs of Thanos (proto package thanos), so
// that either side may be a Thanos program: field numbers, enum values and
// service names are theirs, restated in the .proto files here. The recordings
// in testdata hold both to it.
//
// # Names in the global registry
//
// The proto package names are part of the wire form of gRPC and of hints, so
// this package cannot be linked into one program with the generated code of
// Thanos.
//
// # Encoding
//
// Encode with [Codec], or with MarshalVTStrict; the latter writes fields in the
// order of their numbers. Fields that Thanos sends even when they are empty are
// pointers here and left out when nil: call the Normalize method of the message
// before sending rules, targets, exemplars, statistics, info or hints.
package storepb

//go:generate go run ./internal/protogen
