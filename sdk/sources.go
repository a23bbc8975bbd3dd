// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package sdk holds the sources of the SDKs for languages other than Go, for programs
// that make projects which are complete in themselves. The SDK for Go is in the
// packages below.
package sdk

import "embed"

// Sources are the files of the folders c, rust and assemblyscript that a plug-in is
// built with.
//
//go:embed c/promweave.h rust/Cargo.toml rust/src rust/template/backend.rs
//go:embed assemblyscript/package.json assemblyscript/package-lock.json assemblyscript/asconfig.json assemblyscript/assembly
var Sources embed.FS
