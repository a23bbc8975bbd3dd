// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !(linux || darwin || freebsd)

package memory

// Without a map the memory is the Go heap's, which gets pages from the system as
// they are touched.
func reserve(n int64) ([]byte, error)   { return make([]byte, n), nil }
func commit(_ []byte, _, _ int64) error { return nil }
func release(_ []byte)                  {}
