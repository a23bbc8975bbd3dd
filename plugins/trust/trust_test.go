// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const manifest = `name: acme
version: 1.0.0
kind: filter
language: c
launch: wasm
file: build/acme.wasm
protocol: {major: 1, min_minor: 0}
permissions: [clock]
config: {b: 1, a: [x, 2.5, true, null]}
files: [docs/more.md]
`

// TestManifestKeys: the guide for authors has every key of a manifest.
func TestManifestKeys(t *testing.T) {
	guide, err := os.ReadFile("../../sdk/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, err = trust.ParseManifest(trust.ManifestFile, []byte("no_such_key: 1\n"))
	_, list, ok := strings.Cut(err.Error(), "unknown key; there are ")
	if !ok {
		t.Fatal(err)
	}
	for name := range strings.SplitSeq(list, ", ") {
		if !strings.Contains(string(guide), "\n| `"+name+"` |") {
			t.Errorf("sdk/README.md lacks %s", name)
		}
	}
}

// keys are a root and a signing key that ends after a day.
func keys(t testing.TB) (ed25519.PublicKey, *trust.SigningKey) {
	t.Helper()
	root, err := trust.NewRoot()
	if err != nil {
		t.Fatal(err)
	}
	k, err := trust.NewSigningKey(root, now.Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return root.Public().(ed25519.PublicKey), k
}

func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func project(t testing.TB) (string, *trust.Manifest) {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, map[string]string{"plugin.yaml": manifest, "build/acme.wasm": "\x00asm\x01\x00\x00\x00", "README.md": "hello\n", "docs/more.md": "more\n"})
	m, err := trust.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, m
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func sign(t testing.TB, k *trust.SigningKey, m *trust.Manifest, name string, data []byte) []byte {
	t.Helper()
	st := m.Statement(name)
	st.SHA256, st.Size, st.Time = digestOf(data), int64(len(data)), now
	sig, err := k.Sign(st)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// accepted is what a verifier does with a file and its signature.
func accepted(data, sig []byte, m *trust.Manifest, roots []ed25519.PublicKey) error {
	s, err := trust.ParseSignature(sig)
	if err != nil {
		return err
	}
	return errors.Join(s.Of(digestOf(data), int64(len(data))), s.By(roots, now), m.Fits(&s.Statement))
}

// TestEveryByte: whichever byte of a file, or of its signature, is changed, in
// whichever way, added or taken away: it is found.
func TestEveryByte(t *testing.T) {
	root, k := keys(t)
	dir, m := project(t)
	pkg, err := trust.Pack(dir, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	roots := []ed25519.PublicKey{root}
	for name, data := range map[string][]byte{"acme.wasm": []byte("\x00asm\x01\x00\x00\x00"), "acme-1.0.0.tar.gz": pkg} {
		sig := sign(t, k, m, name, data)
		if err := accepted(data, sig, m, roots); err != nil {
			t.Fatal(err)
		}
		// The signature holds; what remains is whether it is of that file.
		s, err := trust.ParseSignature(sig)
		if err != nil {
			t.Fatal(err)
		}
		for i := range data {
			for bit := range 8 {
				bad := slices.Clone(data)
				bad[i] ^= 1 << bit
				if s.Of(digestOf(bad), int64(len(bad))) == nil {
					t.Errorf("%s: bit %d of byte %d can be changed", name, bit, i)
				}
			}
		}
		if name != "acme.wasm" {
			continue // signatures of packages are the same thing
		}
		for i := range sig {
			for _, with := range []byte{sig[i] ^ 1, sig[i] ^ 0x20, ' ', '"', 'A'} {
				bad := slices.Clone(sig)
				bad[i] = with
				if with != sig[i] && accepted(data, bad, m, roots) == nil {
					t.Errorf("%s: byte %d of the signature, %q, can be %q", name, i, sig[i], with)
				}
			}
			if accepted(data, slices.Delete(slices.Clone(sig), i, i+1), m, roots) == nil || accepted(data, slices.Insert(slices.Clone(sig), i, ' '), m, roots) == nil {
				t.Errorf("%s: a byte can be taken away, or a space added, at byte %d of the signature", name, i)
			}
		}
		if accepted(append(slices.Clone(data), 0), sig, m, roots) == nil || accepted(data, append(slices.Clone(sig), '\n'), m, roots) == nil {
			t.Errorf("%s: something can be added", name)
		}
	}
}

// TestForged: signatures that were made with care, by somebody else.
func TestForged(t *testing.T) {
	root, k := keys(t)
	otherRoot, other := keys(t)
	_, m := project(t)
	data := []byte("\x00asm")
	type file = map[string]any
	read := func(sig []byte) (f file) {
		if err := json.Unmarshal(sig, &f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	good, theirs := sign(t, k, m, "x", data), sign(t, other, m, "x", data)
	mixed := func(statement, certificate []byte) []byte {
		out, err := json.MarshalIndent(struct {
			Statement   any `json:"statement"`
			Certificate any `json:"certificate"`
		}{read(statement)["statement"], read(certificate)["certificate"]}, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		// Keys in the order of the struct, not of the map.
		return out
	}
	if err := accepted(data, theirs, m, []ed25519.PublicKey{root}); err == nil || !strings.Contains(err.Error(), trust.FormatKey(otherRoot)) {
		t.Errorf("another root: %v", err)
	}
	if _, err := trust.ParseSignature(mixed(theirs, good)); err == nil {
		t.Error("another key's statement under our certificate passes")
	}
	// A statement in place of a certificate, and the other way round: types are signed.
	for _, sig := range [][]byte{bytes.Replace(good, []byte("plugin.v1"), []byte("signing-key.v1"), 1), bytes.Replace(good, []byte("signing-key.v1"), []byte("plugin.v1"), 1)} {
		if _, err := trust.ParseSignature(sig); err == nil {
			t.Error("a changed type passes")
		}
	}
	m2 := *m
	m2.Permissions = []string{"clock", "http"}
	if err := accepted(data, good, &m2, []ed25519.PublicKey{root}); err == nil || !strings.Contains(err.Error(), "http") {
		t.Errorf("more permissions than were signed: %v", err)
	}
}

func TestExpiry(t *testing.T) {
	root, k := keys(t)
	_, m := project(t)
	st := m.Statement("x")
	st.SHA256, st.Time = digestOf(nil), now.Add(25*time.Hour)
	if _, err := k.Sign(st); err == nil || !strings.Contains(err.Error(), "new-signing") {
		t.Errorf("a key signs after its end: %v", err)
	}
	s, err := trust.ParseSignature(sign(t, k, m, "x", nil))
	if err != nil {
		t.Fatal(err)
	}
	late := now.Add(48 * time.Hour)
	if err := s.By([]ed25519.PublicKey{root}, late); err == nil || !strings.Contains(err.Error(), "ended on") {
		t.Errorf("something new by a key that ended: %v", err)
	}
	if err := s.By([]ed25519.PublicKey{root}, time.Time{}); err != nil {
		t.Errorf("something old by a key that ended since: %v", err)
	}
}

func TestKeyFiles(t *testing.T) {
	root, err := trust.NewRoot()
	if err != nil {
		t.Fatal(err)
	}
	pem, err := trust.EncodeRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	again, err := trust.ParseRoot(pem)
	if err != nil || !again.Equal(root) {
		t.Errorf("a root key came back as another: %v", err)
	}
	k, err := trust.NewSigningKey(root, now)
	if err != nil {
		t.Fatal(err)
	}
	file, err := k.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if k2, err := trust.ParseSigningKey(file); err != nil || k2.ID() != k.ID() || !k2.NotAfter.Equal(k.NotAfter) || !k2.Root.Equal(k.Root) {
		t.Errorf("a signing key came back as another: %v", err)
	}
	if _, err := trust.ParseRoot(file); err == nil || !strings.Contains(err.Error(), "is a signing key") {
		t.Errorf("a signing key as root: %v", err)
	}
	if _, err := trust.ParseSigningKey(pem); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("a root key as signing key: %v", err)
	}
	other, err := trust.NewSigningKey(root, now)
	if err != nil {
		t.Fatal(err)
	}
	file2, err := other.Encode()
	if err != nil {
		t.Fatal(err)
	}
	cut := func(b []byte) int { return bytes.Index(b, []byte("-----BEGIN PROMWEAVE")) }
	if _, err := trust.ParseSigningKey(append(slices.Clone(file[:cut(file)]), file2[cut(file2):]...)); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("a key with the certificate of another: %v", err)
	}
	public := trust.FormatKey(k.Root)
	if key, err := trust.ParseKey(public + "\n"); err != nil || !key.Equal(k.Root) {
		t.Errorf("%q: %v", public, err)
	}
	for _, bad := range []string{"", "x", public[:43], public + "A", strings.Repeat("A", 44)} {
		if _, err := trust.ParseKey(bad); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
	}
}

// TestPack: what is packed comes out again, and the same files make the same bytes
// whatever their times and modes.
func TestPack(t *testing.T) {
	dir, m := project(t)
	sbom, err := trust.SBOM(m, "00", []trust.Component{{Name: "b", Version: "1", Tool: true}, {Name: "a", Version: "2", PURL: "pkg:x/a@2"}, {Name: "a", Version: "2", PURL: "pkg:x/a@2"}})
	if err != nil {
		t.Fatal(err)
	}
	extra := map[string][]byte{trust.SBOMFile: sbom}
	first, err := trust.Pack(dir, m, extra)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "plugin.yaml"} {
		if err := errors.Join(os.Chtimes(filepath.Join(dir, name), now, now), os.Chmod(filepath.Join(dir, name), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dir, map[string]string{"secret.key": "not packed"})
	second, err := trust.Pack(dir, m, extra)
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("the same files make another package (%v)", err)
	}
	to := t.TempDir()
	if _, err := trust.Unpack(first, to); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	if err := fs.WalkDir(os.DirFS(to), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(filepath.Join(to, name))
		got[name] = string(data)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"plugin.yaml": manifest, "build/acme.wasm": "\x00asm\x01\x00\x00\x00", "README.md": "hello\n", "docs/more.md": "more\n", "sbom.cdx.json": string(sbom)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var b struct {
		Components []struct{ Name string }
		Metadata   struct {
			Component struct{ Name string }
			Tools     struct{ Components []struct{ Name string } }
		}
	}
	if err := json.Unmarshal(sbom, &b); err != nil || len(b.Components) != 1 || b.Components[0].Name != "a" || b.Metadata.Tools.Components[0].Name != "b" || b.Metadata.Component.Name != "acme" {
		t.Errorf("SBOM: %+v, %v", b, err)
	}
	if err := os.Remove(filepath.Join(dir, "docs/more.md")); err != nil {
		t.Fatal(err)
	}
	if _, err := trust.Pack(dir, m, nil); err == nil || !strings.Contains(err.Error(), "more.md") {
		t.Errorf("a file that is listed and not there: %v", err)
	}
}

// archive makes a package out of headers as they are.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for _, h := range headers {
		body := make([]byte, h.Size)
		if strings.HasSuffix(h.Name, "/plugin.yaml") {
			body = []byte(manifest)
			h.Size = int64(len(body))
		}
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func reg(name string, size int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size}
}

func TestHostilePackages(t *testing.T) {
	whole := []tar.Header{reg("acme-1.0.0/plugin.yaml", 0), reg("acme-1.0.0/build/acme.wasm", 9), reg("acme-1.0.0/docs/more.md", 1)}
	with := func(more ...tar.Header) []byte { return archive(t, append(slices.Clone(whole), more...)...) }
	var many []tar.Header
	for i := range 1001 {
		many = append(many, reg("acme-1.0.0/"+strings.Repeat("x", i%90+1)+hex.EncodeToString([]byte{byte(i >> 8), byte(i)}), 0))
	}
	good := archive(t, whole...)
	cases := map[string]struct {
		data []byte
		want string
	}{
		"nothing":          {nil, "is no package"},
		"no gzip":          {[]byte("hello, this is no archive"), "is no package"},
		"cut":              {good[:len(good)/2], "is broken"},
		"absolute":         {with(reg("/etc/passwd", 1)), "does not lie in one directory"},
		"upwards":          {with(reg("acme-1.0.0/../../x", 1)), "does not lie in one directory"},
		"upwards at once":  {archive(t, reg("../acme-1.0.0/plugin.yaml", 1)), "does not lie in one directory"},
		"no directory":     {archive(t, reg("plugin.yaml", 1)), "does not lie in one directory"},
		"two directories":  {with(reg("other/x", 1)), "does not lie in one directory"},
		"backslash":        {with(reg(`acme-1.0.0/..\x`, 1)), "does not lie in one directory"},
		"newline":          {with(reg("acme-1.0.0/a\nb", 1)), "does not lie in one directory"},
		"link":             {with(tar.Header{Typeflag: tar.TypeSymlink, Name: "acme-1.0.0/link", Linkname: "/etc"}), "is no plain file"},
		"hard link":        {with(tar.Header{Typeflag: tar.TypeLink, Name: "acme-1.0.0/link", Linkname: "acme-1.0.0/plugin.yaml"}), "is no plain file"},
		"directory":        {with(tar.Header{Typeflag: tar.TypeDir, Name: "acme-1.0.0/d/"}), "is no plain file"},
		"device":           {with(tar.Header{Typeflag: tar.TypeChar, Name: "acme-1.0.0/d"}), "is no plain file"},
		"twice":            {with(reg("acme-1.0.0/plugin.yaml", 0)), "twice"},
		"twice but case":   {with(reg("acme-1.0.0/Plugin.YAML", 0)), "twice"},
		"file below file":  {with(reg("acme-1.0.0/plugin.yaml/x", 1)), "is broken"},
		"not listed":       {with(reg("acme-1.0.0/extra", 1)), "does not name"},
		"lacks the file":   {archive(t, whole[0], whole[2]), "lacks build/acme.wasm"},
		"lacks all":        {archive(t), "there is no manifest"},
		"many":             {archive(t, many...), "more than 1000 files"},
		"another name":     {archive(t, reg("acme-2.0.0/plugin.yaml", 0), reg("acme-2.0.0/build/acme.wasm", 1), reg("acme-2.0.0/docs/more.md", 1)), "by its manifest"},
		"something behind": {append(slices.Clone(good), "more"...), "is broken"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			dir := filepath.Join(out, "in")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			_, err := trust.Unpack(c.data, dir)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if entries, _ := os.ReadDir(out); len(entries) != 1 {
				t.Error("something was written outside")
			}
		})
	}
	if _, err := trust.Unpack(good, t.TempDir()); err != nil {
		t.Errorf("the one that all are made from: %v", err)
	}
}

// TestBomb: a package that expands without end stops at the limit, and not after it.
func TestBomb(t *testing.T) {
	if testing.Short() {
		t.Skip("expands 256 MiB")
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	zero := make([]byte, 64<<20)
	for i := range 5 {
		h := reg("acme-1.0.0/"+string(rune('a'+i)), int64(len(zero)))
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(zero); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := trust.Unpack(out.Bytes(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "expands to more than") {
		t.Errorf("%d bytes that become 320 MiB: %v", out.Len(), err)
	}
	if _, err := trust.Unpack(archive(t, reg("acme-1.0.0/a", 1), reg("acme-1.0.0/b", 300<<20)), t.TempDir()); err == nil || !strings.Contains(err.Error(), "more than the limit") {
		t.Errorf("a file of 300 MiB: %v", err)
	}
}
