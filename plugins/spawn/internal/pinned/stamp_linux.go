// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package pinned

import (
	"fmt"
	"os"
	"syscall"
)

func stampOf(path string) (*stamp, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return &stamp{dev: st.Dev, ino: st.Ino, size: st.Size, changed: st.Ctim.Nano(), mode: uint32(fi.Mode())}, nil
}
