// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

// Package pinned runs no file but the one whose checksum was given: it keeps a verified
// copy of it in a directory that belongs to one plug-in of one host alone.
package pinned

import (
	"crypto/sha256"
	"crypto/subtle"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// MaxBaseLength bounds the path of the base directory: a socket's path of
// base/xxxxxxxx/plugin-dir0123456789/plugin0123456789 must fit into the 104 bytes that
// the strictest unix has for it.
const MaxBaseLength = 56

// maxFileSize bounds a plug-in's file, so that a wrong path does not fill the disk.
const maxFileSize = 2 << 30

// Directory is a private directory of one plug-in: it holds the verified copy of its
// file, its sockets, and the working directory of its processes.
//
// It is locked with flock for as long as it is in use. So the directories of hosts that
// were killed can be told from those of hosts that live, whatever became of their
// process IDs, and systemd-tmpfiles leaves it alone.
type Directory struct {
	// Path of the directory.
	Path string
	lock *os.File
}

// OpenDirectory makes a private directory under base, and removes those that hosts
// which are gone have left there.
func OpenDirectory(base string) (_ *Directory, swept int, err error) {
	if base == "" {
		name := "promweave-" + strconv.Itoa(os.Getuid())
		base = filepath.Join(os.TempDir(), name)
		if len(base) > MaxBaseLength {
			base = filepath.Join("/tmp", name)
		}
	}
	if base, err = filepath.Abs(base); err != nil {
		return nil, 0, err
	}
	if len(base) > MaxBaseLength {
		return nil, 0, fmt.Errorf("the runtime directory %s is too long for the path of a socket: choose one of at most %d bytes (plugins.dir)", base, MaxBaseLength)
	}
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, 0, fmt.Errorf("cannot make the runtime directory: %w", err)
	}
	// It may lie in a directory in which others can write: neither a link nor somebody
	// else's directory will do.
	if err := checkPrivate(base); err != nil {
		return nil, 0, err
	}
	// Whoever holds this lock makes and sweeps directories; a directory is never seen
	// before it is locked itself.
	all, err := lockFile(filepath.Join(base, ".lock"), true)
	if err != nil {
		return nil, 0, fmt.Errorf("cannot lock the runtime directory: %w", err)
	}
	defer all.Close()
	swept = sweep(base)
	d := &Directory{Path: filepath.Join(base, fmt.Sprintf("%08x", rand.Uint32()))}
	if err := os.Mkdir(d.Path, 0o700); err != nil {
		return nil, swept, fmt.Errorf("cannot make the runtime directory: %w", err)
	}
	if d.lock, err = lockFile(d.Path, true); err == nil {
		err = os.Mkdir(d.Work(), 0o700)
	}
	if err != nil {
		if d.lock != nil {
			d.lock.Close()
		}
		os.RemoveAll(d.Path)
		return nil, swept, fmt.Errorf("cannot use the runtime directory: %w", err)
	}
	return d, swept, nil
}

func checkPrivate(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("cannot use the runtime directory: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.IsDir():
		return fmt.Errorf("the runtime directory %s is not a directory (links are not followed): choose another one (plugins.dir)", path)
	case ok && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("the runtime directory %s belongs to user %d, not to %d: choose another one (plugins.dir)", path, st.Uid, os.Geteuid())
	case fi.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("the runtime directory %s is open to others (mode %04o): make it 0700 or choose another one (plugins.dir)", path, fi.Mode().Perm())
	}
	return nil
}

// sweep removes directories that nobody holds a lock on.
func sweep(base string) int {
	n := 0
	entries, err := os.ReadDir(base)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		// Only what OpenDirectory makes; an operator may have put other things here.
		if _, err := strconv.ParseUint(e.Name(), 16, 32); err != nil || len(e.Name()) != 8 || !e.IsDir() {
			continue
		}
		path := filepath.Join(base, e.Name())
		lock, err := lockFile(path, false)
		if err != nil {
			continue
		}
		if os.RemoveAll(path) == nil {
			n++
		}
		lock.Close()
	}
	return n
}

// lockFile locks a file, which it makes, or a directory.
func lockFile(path string, wait bool) (*os.File, error) {
	flags := os.O_RDONLY
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		flags = os.O_RDWR | os.O_CREATE
	}
	f, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	how := syscall.LOCK_EX
	if !wait {
		how |= syscall.LOCK_NB
	}
	for {
		switch err = syscall.Flock(int(f.Fd()), how); err {
		case nil:
			return f, nil
		case syscall.EINTR:
		default:
			f.Close()
			return nil, err
		}
	}
}

// Work is the working directory of processes.
func (d *Directory) Work() string { return filepath.Join(d.Path, "work") }

// Restore makes what somebody has removed from below.
func (d *Directory) Restore() error {
	return os.MkdirAll(d.Work(), 0o700)
}

// Close removes the directory.
func (d *Directory) Close() error {
	err := os.RemoveAll(d.Path)
	d.lock.Close()
	return err
}

// File is a file of a plug-in with a pinned checksum, of which a verified copy
// in a private directory is what runs.
//
// Why a copy: a checksum of the file that the operator named says nothing about what
// runs, as the file can be replaced, or written to, between the two. The copy lies where
// no other user can write, is read-only, and was verified after it was written. Against
// a change by our own user, for instance by the plug-in itself, inode and change time
// are compared before every start; nobody but root can forge the latter. Executing a
// sealed memory file would do as well, but such "fileless" execution is what intrusion
// detection raises alarms about, and can be forbidden (vm.memfd_noexec).
type File struct {
	// Origin is the path of the file that is copied, Sum its SHA-256 in hex.
	Origin, Sum string
	path        string // of the copy

	mu sync.Mutex
	at *stamp
}

// stamp tells whether a file is still the same, unchanged.
type stamp struct {
	dev, ino uint64
	size     int64
	changed  int64 // time of the last change of inode or contents, ns
	mode     uint32
}

// NewFile is the file at origin with the SHA-256 sum, in hex with or without the prefix
// "sha256:". Its copy will be in d.
func NewFile(origin, sum string, d *Directory) (*File, error) {
	want, err := hex.DecodeString(strings.TrimPrefix(strings.TrimSpace(sum), "sha256:"))
	if sum == "" {
		return nil, fmt.Errorf("no sha256 is given for %s: pin the file with the output of sha256sum", origin)
	}
	if err != nil || len(want) != sha256.Size {
		return nil, fmt.Errorf("the sha256 of %s is not 64 hexadecimal digits: %q", origin, sum)
	}
	// The name of the copy is what ps shows.
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.' {
			return r
		}
		return '_'
	}, filepath.Base(origin))
	name = name[:min(len(name), 40)]
	e := &File{Origin: origin, Sum: hex.EncodeToString(want)}
	e.path = filepath.Join(d.Path, fmt.Sprintf("%08x", rand.Uint32()), name)
	return e, nil
}

// Ready makes sure that the copy is there and verified, and returns its path.
func (e *File) Ready() (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.at != nil {
		if now, err := stampOf(e.path); err == nil && *now == *e.at {
			return e.path, nil
		}
		e.at = nil
	}
	if err := e.copy(); err != nil {
		os.RemoveAll(filepath.Dir(e.path))
		return "", err
	}
	return e.path, nil
}

// Remove removes the copy.
func (e *File) Remove() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.at = nil
	os.RemoveAll(filepath.Dir(e.path))
}

func (e *File) copy() error {
	// O_NONBLOCK: a FIFO must not keep us here.
	src, err := os.OpenFile(e.Origin, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("there is no file %s: check the path", e.Origin)
		}
		return fmt.Errorf("cannot read the plug-in's file: %w", err)
	}
	defer src.Close()
	fi, err := src.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("cannot read the plug-in's file: %w", err)
	case fi.IsDir():
		return fmt.Errorf("%s is a directory, not a program", e.Origin)
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", e.Origin)
	case fi.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s is not executable (mode %04o): chmod +x it", e.Origin, fi.Mode().Perm())
	case fi.Size() > maxFileSize:
		return fmt.Errorf("%s is larger than %d bytes: that is no plug-in", e.Origin, maxFileSize)
	}
	dir := filepath.Dir(e.path)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("cannot clear the runtime directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot use the runtime directory: %w", err)
	}
	dst, err := os.OpenFile(e.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o500)
	if err != nil {
		return fmt.Errorf("cannot copy the plug-in's file: %w", err)
	}
	_, err = io.Copy(dst, io.LimitReader(src, maxFileSize))
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("cannot copy the plug-in's file to the runtime directory: %w", err)
	}
	// What was written is what is verified: by reading it again, between two stamps.
	before, err := stampOf(e.path)
	if err != nil {
		return fmt.Errorf("cannot verify the copy of the plug-in's file: %w", err)
	}
	got, err := sumOf(e.path)
	if err != nil {
		return fmt.Errorf("cannot verify the copy of the plug-in's file: %w", err)
	}
	after, err := stampOf(e.path)
	if err != nil || *before != *after {
		return fmt.Errorf("the copy of %s in the runtime directory was changed while it was verified", e.Origin)
	}
	if subtle.ConstantTimeCompare([]byte(got), []byte(e.Sum)) != 1 {
		return fmt.Errorf("%s has sha256 %s, but %s is pinned: it is not the file that was trusted, and is not run", e.Origin, got, e.Sum)
	}
	e.at = after
	return nil
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// ExplainExec says in words why a file could not be executed.
func (e *File) ExplainExec(err error) error {
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		if f, ferr := elf.Open(e.path); ferr == nil {
			defer f.Close()
			return fmt.Errorf("%s is a program for %s, this is %s/%s: build it for this platform",
				e.Origin, strings.ToLower(strings.TrimPrefix(f.Machine.String(), "EM_")), runtime.GOOS, runtime.GOARCH)
		}
		return fmt.Errorf("%s is not a program that %s/%s can execute", e.Origin, runtime.GOOS, runtime.GOARCH)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s needs a program loader or interpreter that is not installed here (a different libc, or the #! line): link it statically or install that", e.Origin)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s may not be executed from the runtime directory %s, which is probably mounted noexec: choose another runtime directory", e.Origin, filepath.Dir(filepath.Dir(e.path)))
	}
	return fmt.Errorf("cannot execute %s: %w", e.Origin, err)
}
