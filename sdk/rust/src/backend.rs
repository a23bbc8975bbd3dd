// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//! What the author of a store backend writes; sdk/backend/backend.go has the rules (B-1,
//! S-1, ...) that it keeps.
