// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package infopb holds the Info service, by which an endpoint tells what it
// is and serves (proto package thanos.info of Thanos).
package infopb
