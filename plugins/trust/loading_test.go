// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"crypto/ed25519"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/plugins/trust"
)

// TestLoading: a module is loaded by the digest of the lock file and the signature
// beside it, and not at all if a byte of it, or of the signature, is another.
func TestLoading(t *testing.T) {
	root, k := keys(t)
	_, m := project(t)
	code, err := os.ReadFile("../../sdk/testdata/golden/v1.0/rewrite-c.wasm")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, lock := filepath.Join(dir, "rewrite.wasm"), filepath.Join(dir, "promweave.lock")
	put := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sig := sign(t, k, m, "rewrite.wasm", code)
	record := func(data []byte) {
		t.Helper()
		p := locked(file)
		p.SHA256 = digestOf(data)
		if err := trust.Record(lock, p); err != nil {
			t.Fatal(err)
		}
	}
	put(file, code)
	put(file+".sig", sig)
	v := &trust.Verifier{Roots: []ed25519.PublicKey{root}, LockFile: lock}
	load := func() (signer string, err error) {
		r := registry.New(registry.Options{Dir: t.TempDir(), Verifier: v, Logger: slog.New(slog.DiscardHandler)})
		defer r.Close()
		f, err := r.Filter(t.Context(), "f", registry.Spec{Launch: registry.WASM, Path: file}, []byte(`{"set":"a=b"}`), filtering.Closed)
		if err != nil {
			return "", err
		}
		defer f.Close()
		return r.Statuses()[0].Signer, nil
	}
	refused := func(what, want string) {
		t.Helper()
		if _, err := load(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	refused("not installed", "has no entry for this file")
	record(code)
	if signer, err := load(); err != nil || signer != k.ID() {
		t.Errorf("signer %q, %v", signer, err)
	}
	for _, at := range []int{0, 9, len(code) / 2, len(code) - 1} {
		bad := append([]byte{}, code...)
		bad[at] ^= 1
		put(file, bad)
		refused("a byte of the module", digestOf(bad))
		// And with a lock file for it, as somebody with access to all of that would write.
		record(bad)
		refused("a byte of the module, and its digest", "was one of them replaced")
		record(code)
	}
	put(file, code)
	for _, at := range []int{0, 100, len(sig) / 2, len(sig) - 2} {
		bad := append([]byte{}, sig...)
		bad[at] ^= 1
		put(file+".sig", bad)
		refused("a byte of the signature", "rewrite.wasm.sig")
	}
	if err := os.Remove(file + ".sig"); err != nil {
		t.Fatal(err)
	}
	refused("no signature", "plugins.root_keys asks for that")
	v.Roots = nil
	if signer, err := load(); err != nil || signer != "0123456789abcdef" {
		t.Errorf("without root keys: signer %q of the lock file, %v", signer, err)
	}
}
