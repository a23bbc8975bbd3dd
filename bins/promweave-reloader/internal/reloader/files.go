// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package reloader

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxFile bounds what one file may take, before and after decompression.
	maxFile = 32 << 20
	// maxDepth bounds directories in directories, among which links may make a circle.
	maxDepth = 8
)

// readFile reads a file that is not too big.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	data, err := bounded(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

func bounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("it is larger than %d MiB", maxFile>>20)
	}
	return data, err
}

// plain is data, decompressed if it is by gzip.
func plain(data []byte) ([]byte, error) {
	if !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return data, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	out, err := bounded(z)
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	return out, nil
}

var variable = regexp.MustCompile(`\$\([A-Za-z_][A-Za-z0-9_]*\)`)

// expand puts variables of the environment in the place of $(NAME), and says which there are not:
// they stay as they are.
func expand(data []byte, lookup func(string) (string, bool)) (out []byte, missing []string) {
	out = variable.ReplaceAllFunc(data, func(m []byte) []byte {
		name := string(m[2 : len(m)-1])
		if v, ok := lookup(name); ok {
			return []byte(v)
		}
		if !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
		return m
	})
	return out, missing
}

// replace puts a file in its place, whole, unless it is there already.
func replace(name string, data []byte) (err error) {
	if had, err := readFile(name); err == nil && bytes.Equal(had, data) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		// The one who reads it may be another user.
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// tree hashes a file, or all files of a directory, and returns the directories that changes of it
// are seen in.
func tree(h hash.Hash, path string, depth int) (dirs []string, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		data, err := readFile(path)
		if err != nil {
			return nil, err
		}
		add(h, path, data)
		return []string{filepath.Dir(path)}, nil
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: more than %d directories deep: is there a link in a circle?", path, maxDepth)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	dirs = []string{path}
	for _, e := range entries {
		// Kubernetes keeps the versions of a ConfigMap in such directories, and links to them; ours
		// and editors' temporary files are none of the configuration.
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		in, err := tree(h, filepath.Join(path, e.Name()), depth+1)
		if errors.Is(err, os.ErrNotExist) {
			continue // it went meanwhile, or is a link to nowhere, which nobody can read either
		}
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, in...)
	}
	return dirs, nil
}

// add hashes a file so that no two sets of files look alike.
func add(h hash.Hash, path string, data []byte) {
	sum := sha256.Sum256(data)
	fmt.Fprintf(h, "%q %x\n", path, sum)
}
