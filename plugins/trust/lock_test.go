// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"

	"github.com/promweave/promweave/plugins/trust"
)

func locked(path string) trust.Locked {
	return trust.Locked{
		Name: "acme", Version: "1.0.0", Kind: "filter", Launch: "wasm", Path: path, SHA256: digestOf([]byte(path)), Signer: "0123456789abcdef", Root: "r",
		Origin: "/somewhere/acme.tar.gz", PackageSHA256: digestOf(nil), Permissions: []string{"clock"}, Installed: now,
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "promweave.lock")
	inside, outside := filepath.Join(dir, "plugins", "a.wasm"), filepath.Join(t.TempDir(), "b.wasm")
	for _, path := range []string{outside, inside, inside} {
		if err := trust.Record(file, locked(path)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := trust.ReadLock(file)
	if err != nil {
		t.Fatal(err)
	}
	a, b := locked("plugins/a.wasm"), locked(outside)
	a.SHA256 = digestOf([]byte(inside))
	if diff := cmp.Diff([]trust.Locked{b, a}, l.Plugins); diff != "" {
		t.Error(diff)
	}

	v := trust.Verifier{LockFile: file}
	if got, err := v.Pinned(inside); err != nil || got != a.SHA256 {
		t.Errorf("%q, %v", got, err)
	}
	if signer, err := v.Verify(inside, a.SHA256); err != nil || signer != a.Signer {
		t.Errorf("signer %q, %v", signer, err)
	}
	if signer, err := v.Verify(inside, b.SHA256); err != nil || signer != "" {
		t.Errorf("another digest: signer %q, %v", signer, err)
	}
	if _, err := v.Pinned(filepath.Join(dir, "c")); err == nil || !strings.Contains(err.Error(), "has no entry for this file") {
		t.Error(err)
	}
	if _, err := new(trust.Verifier).Pinned(inside); err == nil || !strings.Contains(err.Error(), "sha256 is missing") {
		t.Error(err)
	}
}

// TestRecordAtOnce: of installs at the same time, none is lost that was not refused.
func TestRecordAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "promweave.lock")
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { errs[i] = trust.Record(file, locked(fmt.Sprint("p", i))) })
	}
	wg.Wait()
	done := 0
	for _, err := range errs {
		if err == nil {
			done++
		} else if !strings.Contains(err.Error(), "another install is at it") {
			t.Error(err)
		}
	}
	l, err := trust.ReadLock(file)
	if err != nil || len(l.Plugins) != done || done == 0 {
		t.Errorf("%d were recorded, %d are there (%v)", done, len(l.Plugins), err)
	}
	if _, err := os.Stat(file + ".new"); err == nil {
		t.Error("something is left over")
	}
}

// TestVerifier: with root keys, only what leads to one of them may run.
func TestVerifier(t *testing.T) {
	root, k := keys(t)
	_, other := keys(t)
	dir, m := project(t)
	file := filepath.Join(dir, "build", "acme.wasm")
	data, digest, err := trust.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	v := trust.Verifier{Roots: []ed25519.PublicKey{root}}
	refused := func(want string) {
		t.Helper()
		if signer, err := v.Verify(file, digest); err == nil || signer != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%q, %v, want %q", signer, err, want)
		}
	}
	put := func(sig []byte) {
		if err := os.WriteFile(file+".sig", sig, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	refused("plugins.root_keys asks for that")
	put(sign(t, other, m, "acme.wasm", data))
	refused("none of those that are trusted")
	put(sign(t, k, m, "acme.wasm", []byte("another")))
	refused("was one of them replaced")
	put([]byte("{}"))
	refused("acme.wasm.sig: ")
	put(sign(t, k, m, "acme.wasm", data))
	if signer, err := v.Verify(file, digest); err != nil || signer != k.ID() {
		t.Errorf("%q, %v", signer, err)
	}
}

// TestManifests runs testdata/manifests: "parse" reads a manifest and prints it, or
// what is wrong with it.
func TestManifests(t *testing.T) {
	datadriven.RunTest(t, "testdata/manifests", func(t *testing.T, d *datadriven.TestData) string {
		m, err := trust.ParseManifest("plugin.yaml", []byte(d.Input))
		if err != nil {
			return err.Error() + "\n"
		}
		out := fmt.Sprintf("%+v\n", *m)
		if err := m.Works(); err != nil {
			out += err.Error() + "\n"
		}
		return out
	})
}

func TestLocksRefused(t *testing.T) {
	datadriven.RunTest(t, "testdata/locks", func(t *testing.T, d *datadriven.TestData) string {
		if _, err := trust.ParseLock("promweave.lock", []byte(d.Input)); err != nil {
			return err.Error() + "\n"
		}
		return "ok\n"
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(manifest))
	f.Add([]byte("a: &x [*x]\n"))
	f.Add([]byte("build: [{run: a, unless: ..}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := trust.ParseManifest("plugin.yaml", data)
		if err != nil {
			return
		}
		for _, name := range append([]string{m.File}, m.Files...) {
			if !filepath.IsLocal(name) {
				t.Errorf("%q is not below the manifest", name)
			}
		}
		if !filepath.IsLocal(m.PackageName()) || strings.ContainsAny(m.PackageName(), `/\`) {
			t.Errorf("the package would be %q", m.PackageName())
		}
	})
}

func FuzzSignature(f *testing.F) {
	root, k := keys(f)
	_, m := project(f)
	good := sign(f, k, m, "x", nil)
	f.Add(good)
	f.Add([]byte(`{"statement":{"payloadType":"","payload":"","signatures":null},"certificate":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := trust.ParseSignature(data)
		if err != nil || string(data) == string(good) {
			return
		}
		if s.By([]ed25519.PublicKey{root}, time.Time{}) == nil {
			t.Errorf("a signature was forged:\n%s", data)
		}
	})
}

func FuzzLock(f *testing.F) {
	f.Add([]byte("version: 1\nplugins: [{path: a, sha256: " + digestOf(nil) + "}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := trust.ParseLock("promweave.lock", data)
		if err != nil {
			return
		}
		for _, p := range l.Plugins {
			if len(p.SHA256) != 64 || p.Path == "" {
				t.Errorf("%+v", p)
			}
		}
	})
}

func FuzzUnpack(f *testing.F) {
	dir, m := project(f)
	pkg, err := trust.Pack(dir, m, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pkg)
	f.Add(archive(f, reg("acme-1.0.0/../x", 3)))
	f.Fuzz(func(t *testing.T, data []byte) {
		out := t.TempDir()
		dir := filepath.Join(out, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = trust.Unpack(data, dir)
		if entries, err := os.ReadDir(out); err != nil || len(entries) != 1 {
			t.Errorf("something was written outside (%v)", err)
		}
	})
}
