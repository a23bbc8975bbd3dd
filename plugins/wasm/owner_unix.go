// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package wasm

import (
	"fmt"
	"os"
	"syscall"
)

// ownedAlone says what is wrong if somebody else may write to a folder.
func ownedAlone(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, not to this one (%d)", dir, s.Uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s has mode %#o: others can write to it", dir, info.Mode().Perm())
	}
	return nil
}

// heldSafe says what is wrong if somebody else may take folders out of a folder, or put
// others in their place: only their owners may where the sticky bit is set, as in /tmp.
func heldSafe(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() && s.Uid != 0 {
		return fmt.Errorf("%s belongs to user %d, not to this one (%d)", dir, s.Uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&os.ModeSticky == 0 {
		return fmt.Errorf("%s has mode %#o: others can write to it", dir, info.Mode().Perm())
	}
	return nil
}
