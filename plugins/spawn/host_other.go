// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix && !linux

package spawn

import (
	"os/exec"
	"syscall"
)

// setAttributes makes the process the leader of a group of its own. There is no signal
// at the death of a parent here: that the process notices it is up to the SDK.
func setAttributes(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}

// limit does nothing: one process cannot limit another here.
func limit(int, *Config) error { return nil }

func seal() {}

func preferVictim(int) {}

// awaitExit says that it cannot wait without reaping.
func awaitExit(int) bool { return false }

func residentBytes(int) int64 { return 0 }
