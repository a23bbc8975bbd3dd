#!/bin/sh
# Copyright The Promweave Authors
# SPDX-License-Identifier: Apache-2.0

# Builds the golden modules in testdata from the sources here. Needs clang and wasm-ld of LLVM 14 or newer, and
# rustc with the wasm32-unknown-unknown target.
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -r "$tmp"' EXIT
clang -O2 --target=wasm32 -ffreestanding -nostdlib -fno-builtin-memset -mbulk-memory -msign-ext -c work.c -o "$tmp/work.o"
wasm-ld --no-entry -z stack-size=65536 "$tmp/work.o" -o ../work_c.wasm
"${RUSTC:-rustc}" --target wasm32-unknown-unknown --crate-type cdylib --crate-name work -C opt-level=3 -C panic=abort -C lto=fat \
	-C debuginfo=0 -C linker=wasm-ld -C link-arg=-zstack-size=65536 -C link-arg=--strip-debug -o ../work_rust.wasm work.rs
