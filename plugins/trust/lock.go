// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// lockVersion is the version of the form of lock files.
const lockVersion = 1

const maxLock = 4 << 20

// Lock is a lock file: what is installed, and where it came from.
type Lock struct {
	Version int      `yaml:"version"`
	Plugins []Locked `yaml:"plugins"`
}

// Locked is one plug-in.
type Locked struct {
	Name    string `yaml:"name"`
	Version string `yaml:"version"`
	Kind    string `yaml:"kind"`
	Launch  string `yaml:"launch"`
	// Path of the file, relative to the directory of the lock file if it is below.
	Path   string `yaml:"path"`
	SHA256 string `yaml:"sha256"`
	// Signer is the short name of the key, Root the public root key that it leads to;
	// "" if it was installed by its digest alone.
	Signer string `yaml:"signer,omitempty"`
	Root   string `yaml:"root,omitempty"`
	// Origin is the package, PackageSHA256 its digest.
	Origin        string    `yaml:"origin"`
	PackageSHA256 string    `yaml:"package_sha256"`
	Permissions   []string  `yaml:"permissions"`
	Installed     time.Time `yaml:"installed"`
}

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ReadLock reads a lock file; one that does not exist is empty.
func ReadLock(file string) (*Lock, error) {
	data, err := readLimited(file, maxLock)
	if errors.Is(err, os.ErrNotExist) {
		return &Lock{Version: lockVersion}, nil
	}
	if err != nil {
		return nil, err
	}
	return ParseLock(file, data)
}

// ParseLock reads the bytes of a lock file. file is for errors.
func ParseLock(file string, data []byte) (*Lock, error) {
	if len(data) > maxLock {
		return nil, fmt.Errorf("%s has more than %d bytes, which no lock file has", file, maxLock)
	}
	var l Lock
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&l); err != nil {
		return nil, fmt.Errorf("%s: %s: restore it, or install the plug-ins again", file, strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: "), "\n", " "))
	}
	if err := dec.Decode(new(any)); err != io.EOF {
		return nil, fmt.Errorf("%s: something follows after the end", file)
	}
	if l.Version != lockVersion {
		return nil, fmt.Errorf("%s: version %d is not known here, only %d: is it of a newer Promweave?", file, l.Version, lockVersion)
	}
	seen := map[string]bool{}
	for i, p := range l.Plugins {
		switch {
		case p.Path == "" || seen[p.Path]:
			return nil, fmt.Errorf("%s: plugins[%d].path: %q is missing or there twice", file, i, p.Path)
		case !hexDigest.MatchString(p.SHA256):
			return nil, fmt.Errorf("%s: plugins[%d].sha256: %.80q is no SHA-256 digest", file, i, p.SHA256)
		}
		seen[p.Path] = true
	}
	return &l, nil
}

// lockPath is how a lock file names a file.
func lockPath(lock, file string) (string, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	dir, err := filepath.Abs(filepath.Dir(lock))
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(dir, abs); err == nil && filepath.IsLocal(rel) {
		return filepath.ToSlash(rel), nil
	}
	return abs, nil
}

// Find returns what a lock file says of a file, nil if nothing.
func (l *Lock) Find(lock, file string) (*Locked, error) {
	name, err := lockPath(lock, file)
	if err != nil {
		return nil, err
	}
	for i := range l.Plugins {
		if l.Plugins[i].Path == name {
			return &l.Plugins[i], nil
		}
	}
	return nil, nil
}

// Record writes what was installed to a lock file. Path in p is that of the file. Two
// who write at once do not lose an entry: the second is refused.
func Record(file string, p Locked) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	fresh := file + ".new"
	f, err := os.OpenFile(fresh, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there: another install is at it, or one was interrupted; in that case remove it", fresh)
	}
	if err != nil {
		return err
	}
	err = record(f, file, p)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(fresh, file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return nil
}

func record(f *os.File, file string, p Locked) error {
	l, err := ReadLock(file)
	if err != nil {
		return err
	}
	if p.Path, err = lockPath(file, p.Path); err != nil {
		return err
	}
	p.Installed = p.Installed.UTC().Truncate(time.Second)
	l.Plugins = slices.DeleteFunc(l.Plugins, func(q Locked) bool { return q.Path == p.Path })
	l.Plugins = append(l.Plugins, p)
	slices.SortFunc(l.Plugins, func(a, b Locked) int { return cmp.Compare(a.Path, b.Path) })
	if _, err := f.WriteString("# Written by promweave plugin install. What is here may run: treat changes as you treat changes of programs.\n"); err != nil {
		return err
	}
	enc := yaml.NewEncoder(f)
	enc.SetIndent(2)
	return errors.Join(enc.Encode(l), enc.Close(), f.Sync())
}

// Verifier decides about files of plug-ins before they are opened. It reads lock file
// and signatures each time, so that what is installed later counts.
type Verifier struct {
	// Roots, if there are any: a file needs a signature that leads to one of them.
	Roots []ed25519.PublicKey
	// LockFile has the digests of files that the configuration gives none for; "" is none.
	LockFile string
}

// Pinned implements registry.Pinner: it is the digest that the lock file has for a file, in hex.
func (v *Verifier) Pinned(path string) (string, error) {
	if v.LockFile == "" {
		return "", errors.New("sha256 is missing, and no plugins.lock_file is configured: only a file with a known digest is run")
	}
	l, err := ReadLock(v.LockFile)
	if err != nil {
		return "", err
	}
	p, err := l.Find(v.LockFile, path)
	if err != nil {
		return "", err
	}
	if p == nil {
		return "", fmt.Errorf("sha256 is missing, and %s has no entry for this file: install it with promweave plugin install --lock, or write its digest", v.LockFile)
	}
	return p.SHA256, nil
}

// Verify implements registry.Verifier: the signer is the short name of the key. That
// the file has the digest is for who executes it to check, on the bytes that are
// executed. A signature is not refused because its key ended since: whoever wrote the
// digest into the configuration or the lock file meant this very file.
func (v *Verifier) Verify(path, sha256 string) (signer string, err error) {
	if len(v.Roots) == 0 {
		return v.locked(path, sha256)
	}
	s, err := ReadSignature(path)
	if errors.Is(err, ErrUnsigned) {
		return "", fmt.Errorf("%w, and plugins.root_keys asks for that: get the signature from its maker, sign it yourself (promweave plugin sign), or remove root_keys", err)
	}
	if err != nil {
		return "", err
	}
	if s.SHA256 != sha256 {
		return "", fmt.Errorf("%s%s is the signature of a file with digest %s, and %s is to be run: was one of them replaced without the other?", path, SignatureSuffix, s.SHA256, sha256)
	}
	if err := s.By(v.Roots, time.Time{}); err != nil {
		return "", fmt.Errorf("%s %w (plugins.root_keys)", path, err)
	}
	return s.Signer, nil
}

// locked is the signer that was checked when the file was installed. Without a root
// key, what a signature file says anybody could have written.
func (v *Verifier) locked(path, sha256 string) (string, error) {
	if v.LockFile == "" {
		return "", nil
	}
	l, err := ReadLock(v.LockFile)
	if err != nil {
		return "", err
	}
	p, err := l.Find(v.LockFile, path)
	if err != nil || p == nil || p.SHA256 != sha256 {
		return "", err
	}
	return p.Signer, nil
}
