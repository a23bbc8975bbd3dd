// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package spawn

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// setAttributes makes the process the leader of a group of its own, so that what it
// forks can be ended with it, and has the kernel kill it when the thread that started
// it ends, which is when we end: see runner.run.
func setAttributes(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// reserve is how much more data a process may map than it may take. Runtimes map what
// they never touch: a program in Go that takes 20 MiB does not start with less than this.
const reserve = 128 << 20

// limit sets the limits of a process that was just started. This is done from outside,
// and not by a small program that limits itself and then executes the plug-in: the file
// that is verified stays the file that is executed, and the host needs no second
// personality. The price are the first microseconds without limits, which is no loss:
// limits guard against a plug-in that leaks, not against one that was trusted and then
// races us. Programs that raise soft limits as they start, as those in Go do with open
// files, may do so between: therefore it is called again once the process has shaken hands.
func limit(pid int, c *Config) error {
	set := func(what string, resource int, v uint64) error {
		var old unix.Rlimit
		if err := unix.Prlimit(pid, resource, nil, &old); err != nil {
			return fmt.Errorf("cannot read the limit of %s: %w", what, err)
		}
		// Never above what the host itself may do.
		v = min(v, old.Max)
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: v, Max: v}, nil); err != nil {
			return fmt.Errorf("cannot limit %s to %d: %w", what, v, err)
		}
		return nil
	}
	var errs []error
	errs = append(errs, set("core files", unix.RLIMIT_CORE, 0))
	if c.OpenFiles > 0 {
		errs = append(errs, set("open files", unix.RLIMIT_NOFILE, c.OpenFiles))
	}
	if c.Memory > 0 {
		errs = append(errs, set("memory (data)", unix.RLIMIT_DATA, c.Memory+reserve))
	}
	if c.AddressSpace > 0 {
		errs = append(errs, set("address space", unix.RLIMIT_AS, c.AddressSpace))
	}
	if c.Processes > 0 {
		errs = append(errs, set("processes", unix.RLIMIT_NPROC, c.Processes))
	}
	err := errors.Join(errs...)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has ended; that is reported by whoever waits
	}
	return err
}

// seal keeps files that this process was started with, such as a pipe of whoever did,
// from its children. What Go opens is closed for them anyway.
func seal() {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
		}
	}
}

// preferVictim has the kernel take the plug-in before the host when memory runs out.
func preferVictim(pid int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("500"), 0)
}

// awaitExit returns when the process has ended, and leaves it a zombie: while it is
// one, its process ID and that of its group cannot be given to another process.
func awaitExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}

// residentBytes is the memory of a process that is resident, 0 if that is unknown.
func residentBytes(pid int) int64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.ParseInt(string(f[1]), 10, 64)
	return n * int64(os.Getpagesize())
}
