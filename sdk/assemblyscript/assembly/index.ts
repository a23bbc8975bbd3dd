// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Filters for Promweave in AssemblyScript: the author's side of the WASM ABI
// (sdk/guest/ABI.md). See the examples.
export * from "./memory";
export * from "./frame";
export * from "./filter";
export * from "./host";
export { register } from "./exports";
