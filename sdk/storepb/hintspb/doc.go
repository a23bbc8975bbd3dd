// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package hintspb holds the hints that bucket stores take and give in the Any
// fields of the store messages (proto package hintspb of Thanos).
package hintspb
