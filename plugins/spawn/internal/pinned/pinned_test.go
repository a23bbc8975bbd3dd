// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package pinned

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func base(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T, base string) *Directory {
	t.Helper()
	d, _, err := OpenDirectory(base)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func file(t *testing.T, d *Directory, content string) *File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plug in;1")
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(content))
	f, err := NewFile(path, "sha256:"+strings.ToUpper(hex.EncodeToString(sum[:])), d)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSweepTakesOnlyWhatNobodyHolds(t *testing.T) {
	b := base(t)
	alive := open(t, b)
	dead := filepath.Join(b, "0badcafe")
	for _, name := range []string{"0badcafe/plugin-dir1", "keep-me", "12345678x"} {
		if err := os.MkdirAll(filepath.Join(b, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d, swept, err := OpenDirectory(b)
	if err != nil || swept != 1 {
		t.Fatalf("swept %d, %v", swept, err)
	}
	defer d.Close()
	for path, want := range map[string]bool{alive.Work(): true, dead: false, filepath.Join(b, "keep-me"): true, filepath.Join(b, "12345678x"): true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	if fi, err := os.Stat(d.Path); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi, err)
	}
}

// Directories that are opened and closed at once do not sweep each other away.
func TestConcurrentDirectories(t *testing.T) {
	b := base(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				d, _, err := OpenDirectory(b)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(d.Work()); err != nil {
					t.Error(err)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if left, err := filepath.Glob(filepath.Join(b, "????????")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestCopyIsVerifiedAgainAfterAnyChange(t *testing.T) {
	d := open(t, base(t))
	f := file(t, d, "#!/bin/true\n")
	path, err := f.Ready()
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(path) != "plug_in_1" {
		t.Errorf("name %s", path)
	}
	for name, change := range map[string]func() error{
		"removed":  func() error { return os.Remove(path) },
		"replaced": func() error { os.Remove(path); return os.WriteFile(path, []byte("#!/bin/fals\n"), 0o500) },
		"written": func() error {
			if err := os.Chmod(path, 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(path, []byte("#!/bin/fals\n"), 0); err != nil {
				return err
			}
			return os.Chmod(path, 0o500)
		},
		"linked": func() error { os.Remove(path); return os.Symlink("/bin/false", path) },
		"swept":  func() error { return os.RemoveAll(filepath.Dir(path)) },
	} {
		if err := change(); err != nil {
			t.Fatal(name, err)
		}
		again, err := f.Ready()
		if err != nil || again != path {
			t.Fatal(name, again, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "#!/bin/true\n" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	// Untouched, the file that was named is not needed any more.
	if err := os.Remove(f.Origin); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Ready(); err != nil {
		t.Error(err)
	}
	f.Remove()
	if _, err := f.Ready(); err == nil || !strings.Contains(err.Error(), "there is no file") {
		t.Errorf("error %v", err)
	}
}
