// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix && !linux

package pinned

import (
	"fmt"
	"os"
	"syscall"
)

// stampOf knows the time of the last write only, which the owner of a file can forge.
func stampOf(path string) (*stamp, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return &stamp{dev: uint64(st.Dev), ino: uint64(st.Ino), size: fi.Size(), changed: fi.ModTime().UnixNano(), mode: uint32(fi.Mode())}, nil
}
