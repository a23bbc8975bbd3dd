// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Promweave answers one PromQL query from many stores.
package main

func main() {}
