// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin || freebsd

package memory

import "syscall"

// reserve maps addresses that cannot be used yet and count as no memory, also where
// the kernel does not overcommit.
func reserve(n int64) ([]byte, error) {
	if n == 0 {
		return []byte{}, nil
	}
	return syscall.Mmap(-1, 0, int(n), syscall.PROT_NONE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
}

// commit makes bytes from to to of b usable; both are whole WASM pages.
func commit(b []byte, from, to int64) error {
	return syscall.Mprotect(b[from:to], syscall.PROT_READ|syscall.PROT_WRITE)
}

func release(b []byte) {
	if len(b) > 0 {
		_ = syscall.Munmap(b)
	}
}
