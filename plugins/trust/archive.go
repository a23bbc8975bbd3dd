// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A package is a tar archive, compressed by gzip, of one directory NAME-VERSION with
// the manifest, the file, its signature, README.md, the SBOM, what the conformance suite
// found, and what the manifest lists. The same files make the same bytes. The signature beside a package is of all
// of it, so that nothing is unpacked before it is checked.

const (
	readmeFile = "README.md"
	// PackageSuffix is what the names of packages end with.
	PackageSuffix = ".tar.gz"
	maxEntries    = 1000
)

// PackageName is the name of the plug-in's package, and of its directory.
func (m *Manifest) PackageName() string { return m.Name + "-" + m.Version }

// contents are the files of a package in the order they have there; those that may be
// missing are optional.
func (m *Manifest) contents() (files []string, optional map[string]bool) {
	files = append([]string{ManifestFile, m.File, m.File + SignatureSuffix, SBOMFile, ConformanceFile, readmeFile}, m.Files...)
	slices.Sort(files)
	return files, map[string]bool{m.File + SignatureSuffix: true, SBOMFile: true, ConformanceFile: true, readmeFile: true}
}

// Pack returns the package of the plug-in in dir. Files in extra take the place of
// those in dir.
func Pack(dir string, m *Manifest, extra map[string][]byte) ([]byte, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(z)
	files, optional := m.contents()
	var total int64
	for _, name := range files {
		data, ok := extra[name]
		if !ok {
			data, err = readLimited(filepath.Join(dir, filepath.FromSlash(name)), MaxFile)
			if errors.Is(err, os.ErrNotExist) && optional[name] {
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		if total += int64(len(data)); total > MaxFile {
			return nil, fmt.Errorf("%s: the files have more than %d bytes together, which is the limit of a package", dir, MaxFile)
		}
		h := tar.Header{Typeflag: tar.TypeReg, Name: m.PackageName() + "/" + name, Size: int64(len(data)), Mode: m.mode(name), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, err := w.Write(data); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// mode of a file: programs are executed.
func (m *Manifest) mode(name string) int64 {
	if name == m.File && m.Launch == "spawn" {
		return 0o755
	}
	return 0o644
}

// Unpack writes the files of a package into dir, which has to be empty, without the
// directory that they are in. What is unpacked should have been checked before; all
// the same, nothing is written outside of dir, no link is made, and what expands
// without end is stopped. After an error dir may hold a part.
func Unpack(data []byte, dir string) (*Manifest, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("is no package: %w", err)
	}
	// Room for the headers too, so that an archive of nothing but those ends as well.
	limited := &io.LimitedReader{R: z, N: MaxFile + maxEntries*4<<10}
	r := tar.NewReader(limited)
	top, have := "", map[string]bool{}
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, broken(limited, err)
		}
		t, name, _ := strings.Cut(h.Name, "/")
		switch {
		case h.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("%.200q is no plain file: a package has nothing else", h.Name)
		case !localPath(h.Name) || name == "" || top != "" && t != top:
			return nil, fmt.Errorf("%.200q does not lie in one directory with plain names", h.Name)
		case have[strings.ToLower(name)]:
			return nil, fmt.Errorf("%.200q is in the package twice", h.Name)
		case len(have) >= maxEntries:
			return nil, fmt.Errorf("has more than %d files", maxEntries)
		case h.Size > MaxFile:
			return nil, fmt.Errorf("%.200q has %d bytes, more than the limit of %d", h.Name, h.Size, MaxFile)
		}
		top, have[strings.ToLower(name)] = t, true
		if err := unpackFile(root, name, r); err != nil {
			return nil, broken(limited, err)
		}
	}
	if _, err := io.Copy(io.Discard, limited); err != nil || limited.N <= 0 {
		return nil, broken(limited, err)
	}
	m, err := ReadManifest(dir)
	if err != nil {
		return nil, err
	}
	if top != m.PackageName() {
		return nil, fmt.Errorf("is the package of %.200q by its directory, and of %s by its manifest", top, m.PackageName())
	}
	return m, unpacked(root, m, have)
}

func broken(limited *io.LimitedReader, err error) error {
	if limited.N <= 0 {
		return fmt.Errorf("expands to more than %d bytes, which is the limit of a package", MaxFile)
	}
	return fmt.Errorf("is broken: %w", err)
}

func unpackFile(root *os.Root, name string, r io.Reader) error {
	if d := path.Dir(name); d != "." {
		if err := root.MkdirAll(filepath.FromSlash(d), 0o755); err != nil {
			return err
		}
	}
	f, err := root.OpenFile(filepath.FromSlash(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// unpacked checks that there is what the manifest lists, and nothing else.
func unpacked(root *os.Root, m *Manifest, have map[string]bool) error {
	files, optional := m.contents()
	for _, name := range files {
		if !have[strings.ToLower(name)] && !optional[name] {
			return fmt.Errorf("lacks %s, which its manifest names", name)
		}
		delete(have, strings.ToLower(name))
	}
	for name := range have {
		return fmt.Errorf("holds %.200q, which its manifest does not name", name)
	}
	return root.Chmod(filepath.FromSlash(m.File), os.FileMode(m.mode(m.File)))
}
