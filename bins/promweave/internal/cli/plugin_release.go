// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/plugins/trust"
)

func (a *app) pluginKeysCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make the keys that plug-ins are signed with",
		Long: `A root key says which signing keys are its own; it is needed once a year or so and is
kept where no network is. Signing keys sign plug-ins. Users trust root keys.`,
		RunE: console.Group,
	}
	root := &cobra.Command{
		Use:   "new-root BASE",
		Short: "Make a root key: BASE.key, which is secret, and BASE.pub",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := trust.NewRoot()
			if err != nil {
				return console.Failed(err)
			}
			secret, err := trust.EncodeRoot(key)
			if err != nil {
				return console.Failed(err)
			}
			public := trust.FormatKey(key.Public().(ed25519.PublicKey))
			if err := create(args[0]+".key", secret, 0o600); err != nil {
				return console.Failed(err)
			}
			if err := create(args[0]+".pub", []byte(public+"\n"), 0o644); err != nil {
				return console.Failed(err)
			}
			a.Say("%s.key is the root key: keep it secret, offline, and more than once. %s.pub is for everybody.", args[0], args[0])
			_, err = fmt.Fprintln(a.Out, public)
			return err
		},
	}
	var (
		rootFile string
		valid    time.Duration
	)
	signing := &cobra.Command{
		Use:   "new-signing --root ROOT.key BASE",
		Short: "Make a signing key: BASE.key",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if rootFile == "" {
				return console.Usage(cmd, "--root names the root key that the signing key gets its authority from")
			}
			data, err := os.ReadFile(rootFile)
			if err != nil {
				return console.Failed(err)
			}
			key, err := trust.ParseRoot(data)
			if err != nil {
				return console.Failed(fmt.Errorf("%s %w", rootFile, err))
			}
			k, err := trust.NewSigningKey(key, a.Now().Add(valid))
			if err != nil {
				return console.Failed(err)
			}
			out, err := k.Encode()
			if err != nil {
				return console.Failed(err)
			}
			if err := create(args[0]+".key", out, 0o600); err != nil {
				return console.Failed(err)
			}
			a.Say("%s.key signs until %s; keep it secret. Its short name:", args[0], k.NotAfter.Format(time.RFC3339))
			_, err = fmt.Fprintln(a.Out, k.ID())
			return err
		},
	}
	signing.Flags().StringVar(&rootFile, "root", "", "file of the root key")
	signing.Flags().DurationVar(&valid, "valid", 365*24*time.Hour, "how long from now it may sign")
	cmd.AddCommand(root, signing)
	return cmd
}

// create writes a file that must not be there yet.
func create(name string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already, and is not written over: take another name", name)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func signingKey(file string) (*trust.SigningKey, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	k, err := trust.ParseSigningKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s %w", file, err)
	}
	return k, nil
}

// signTime is now, or what SOURCE_DATE_EPOCH says, for builds that are to be repeated
// (https://reproducible-builds.org/specs/source-date-epoch/).
func (a *app) signTime() (time.Time, error) {
	s := os.Getenv("SOURCE_DATE_EPOCH")
	if s == "" {
		return a.Now(), nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%s: want seconds since 1970", s)
	}
	return time.Unix(n, 0), nil
}

// sign writes the signature beside a file.
func (a *app) sign(k *trust.SigningKey, m *trust.Manifest, path string) error {
	data, digest, err := trust.ReadFile(path)
	if err != nil {
		return err
	}
	st := m.Statement(filepath.Base(path))
	st.SHA256, st.Size = digest, int64(len(data))
	if st.Time, err = a.signTime(); err != nil {
		return err
	}
	sig, err := k.Sign(st)
	if err != nil {
		return err
	}
	return os.WriteFile(path+trust.SignatureSuffix, sig, 0o644)
}

// manifestOf is the manifest of what is in a package, or of the project that a
// directory or file belongs to, and the file that is signed.
func manifestOf(path string) (m *trust.Manifest, file string, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, "", err
	}
	if st.IsDir() {
		if m, err = trust.ReadManifest(path); err != nil {
			return nil, "", err
		}
		return m, filepath.Join(path, filepath.FromSlash(m.File)), nil
	}
	if strings.HasSuffix(path, trust.PackageSuffix) {
		data, _, err := trust.ReadFile(path)
		if err != nil {
			return nil, "", err
		}
		m, err := unpacked(data, func(string, *trust.Manifest) error { return nil })
		if err != nil {
			return nil, "", fmt.Errorf("%s %w", path, err)
		}
		return m, path, nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, "", err
	}
	for dir := filepath.Dir(abs); ; dir = filepath.Dir(dir) {
		if m, err := trust.ReadManifest(dir); err == nil && filepath.Join(dir, filepath.FromSlash(m.File)) == abs {
			return m, path, nil
		}
		if dir == filepath.Dir(dir) {
			return nil, "", fmt.Errorf("%s belongs to no plug-in: no %s above it names it as file", path, trust.ManifestFile)
		}
	}
}

// unpacked unpacks a package for a moment.
func unpacked(data []byte, f func(dir string, m *trust.Manifest) error) (*trust.Manifest, error) {
	dir, err := os.MkdirTemp("", "promweave-package-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	m, err := trust.Unpack(data, dir)
	if err != nil {
		return nil, err
	}
	return m, f(dir, m)
}

func (a *app) pluginSignCmd() *cobra.Command {
	var keyFile string
	cmd := &cobra.Command{
		Use:   "sign --key SIGNING.key DIR|FILE|PACKAGE",
		Short: "Sign a plug-in's file, or a package",
		Long: `Writes the signature beside the file: FILE.sig. It says what the file is and who says
so, and holds all that is needed to check it with the root's public key.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if keyFile == "" {
				return console.Usage(cmd, "--key names the signing key; promweave plugin keys makes one")
			}
			k, err := signingKey(keyFile)
			if err != nil {
				return console.Failed(err)
			}
			m, file, err := manifestOf(args[0])
			if err != nil {
				return console.Failed(err)
			}
			if err := a.sign(k, m, file); err != nil {
				return console.Failed(err)
			}
			a.Say("signed by key %s for %s %s", k.ID(), m.Name, m.Version)
			_, err = fmt.Fprintln(a.Out, file+trust.SignatureSuffix)
			return err
		},
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "file of the signing key")
	return cmd
}

func (a *app) pluginPackageCmd() *cobra.Command {
	var (
		keyFile, out string
		noBuild      bool
	)
	cmd := &cobra.Command{
		Use:   "package [--key SIGNING.key] [DIR]",
		Short: "Build a plug-in and put it into a signed package",
		Long: `Builds the plug-in in DIR and writes NAME-VERSION.tar.gz with its manifest, its file,
README.md, the list of its components (SBOM), and what promweave certify --summary has
written to conformance.json, if that is about this very file. With --key both the file and the
package are signed.

Without --key the same files make the same package. A signature says when it was made,
and is in the package: with --key set SOURCE_DATE_EPOCH to that time, in seconds since
1970, to make the same package again.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var k *trust.SigningKey
			var err error
			if keyFile != "" {
				if k, err = signingKey(keyFile); err != nil {
					return console.Failed(err)
				}
			}
			p, err := a.project(cmd, args, !noBuild)
			if err != nil {
				return err
			}
			m := p.Manifest
			// What is signed is what the manifest says.
			if err := p.Agrees(cmd.Context()); err != nil {
				return console.Failed(err)
			}
			content, digest, err := trust.ReadFile(p.File())
			if err != nil {
				return console.Failed(err)
			}
			found, err := certificationIn(p.Dir, m, digest)
			if err != nil {
				return console.Failed(err)
			}
			if found != nil {
				a.Say("certified for %s", found)
			}
			if k != nil {
				if err := a.sign(k, m, p.File()); err != nil {
					return console.Failed(err)
				}
			} else if s, err := trust.ReadSignature(p.File()); err == nil {
				if err := errors.Join(s.Of(digest, int64(len(content))), m.Fits(&s.Statement)); err != nil {
					return console.Failed(fmt.Errorf("%s%s: %w; sign it again, or remove it", p.File(), trust.SignatureSuffix, err))
				}
			} else if !errors.Is(err, trust.ErrUnsigned) {
				return console.Failed(err)
			}
			parts, err := p.Components(cmd.Context())
			if err != nil {
				return console.Failed(err)
			}
			sbom, err := trust.SBOM(m, digest, parts)
			if err != nil {
				return console.Failed(err)
			}
			data, err := trust.Pack(p.Dir, m, map[string][]byte{trust.SBOMFile: sbom})
			if err != nil {
				return console.Failed(err)
			}
			if err := os.MkdirAll(out, 0o755); err != nil {
				return console.Failed(err)
			}
			file := filepath.Join(out, m.PackageName()+trust.PackageSuffix)
			if err := os.WriteFile(file, data, 0o644); err != nil {
				return console.Failed(err)
			}
			if k != nil {
				if err := a.sign(k, m, file); err != nil {
					return console.Failed(err)
				}
				a.Say("signed by key %s: hand out %s with %s%s", k.ID(), file, filepath.Base(file), trust.SignatureSuffix)
			} else {
				if err := os.Remove(file + trust.SignatureSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
					return console.Failed(err)
				}
				a.Say("not signed: who installs it has to be told its digest by you. --key signs it.")
			}
			_, digest, err = trust.ReadFile(file)
			if err != nil {
				return console.Failed(err)
			}
			_, err = fmt.Fprintf(a.Out, "%s  %s\n", digest, file)
			return err
		},
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "file of the signing key")
	cmd.Flags().StringVar(&out, "out", ".", "directory for the package; it is made if it is missing")
	noBuildFlag(cmd, &noBuild)
	return cmd
}

// trustFlags say what is trusted.
type trustFlags struct {
	rootKeys []string
	sha256   string
}

func (f *trustFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.rootKeys, "root-key", nil, "public root key that is trusted, in base64 or as a file; may be repeated")
	cmd.Flags().StringVar(&f.sha256, "sha256", "", "digest that the file must have, where it is known from its maker")
}

func (f *trustFlags) roots() (out []ed25519.PublicKey, err error) {
	for _, s := range f.rootKeys {
		key, err := trust.ParseKey(s)
		if err != nil {
			data, ferr := os.ReadFile(s)
			if ferr != nil {
				return nil, fmt.Errorf("--root-key %s: is neither a key nor a file with one: %w", s, ferr)
			}
			if key, err = trust.ParseKey(string(data)); err != nil {
				return nil, fmt.Errorf("--root-key %s: %w", s, err)
			}
		}
		out = append(out, key)
	}
	if f.sha256 != "" {
		if b, err := hex.DecodeString(f.sha256); err != nil || len(b) != 32 || strings.ToLower(f.sha256) != f.sha256 {
			return nil, fmt.Errorf("--sha256 %s: is no SHA-256 digest: want 64 hexadecimal digits in lower case", f.sha256)
		}
	}
	return out, nil
}

// verified is a file that may be trusted, and why.
type verified struct {
	File    string `json:"file"`
	SHA256  string `json:"sha256"`
	Size    int    `json:"size"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Kind    string `json:"kind"`
	// By is signature or sha256.
	By     string `json:"by"`
	Signer string `json:"signer,omitempty"`
	Root   string `json:"root,omitempty"`
	Signed string `json:"signed,omitempty"`
	// Conformance is what the suite found, by whom.
	Conformance string `json:"conformance,omitempty"`

	data []byte
}

// verify checks a file, and what is in it if it is a package, without unpacking
// anything before the whole is known to be right.
func (f *trustFlags) verify(path string, now time.Time) (*verified, error) {
	roots, err := f.roots()
	if err != nil {
		return nil, err
	}
	m, dir := (*trust.Manifest)(nil), ""
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		if m, err = trust.ReadManifest(path); err != nil {
			return nil, err
		}
		dir = path
		path = filepath.Join(path, filepath.FromSlash(m.File))
	}
	v := &verified{File: path, By: "sha256"}
	if v.data, v.SHA256, err = trust.ReadFile(path); err != nil {
		return nil, err
	}
	v.Size = len(v.data)
	if f.sha256 != "" && f.sha256 != v.SHA256 {
		return nil, fmt.Errorf("%s has the digest %s, not %s: it is another file, or was changed", path, v.SHA256, f.sha256)
	}
	s, err := trust.ReadSignature(path)
	switch {
	case errors.Is(err, trust.ErrUnsigned) && len(roots) == 0 && f.sha256 != "":
		return v, v.inside(path, dir, m, nil, nil)
	case errors.Is(err, trust.ErrUnsigned):
		return nil, fmt.Errorf("%w: get %s from where the file is from; if there is none, ask its maker for the digest and give it by --sha256", err, filepath.Base(path)+trust.SignatureSuffix)
	case err != nil:
		return nil, err
	}
	if err := s.Of(v.SHA256, int64(v.Size)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case len(roots) > 0:
		if err := s.By(roots, now); err != nil {
			return nil, fmt.Errorf("%s %w (--root-key)", path, err)
		}
		v.By, v.Signer, v.Root, v.Signed = "signature", s.Signer, trust.FormatKey(s.Root), s.Time.Format(time.RFC3339)
	case f.sha256 == "":
		return nil, fmt.Errorf("%s is unchanged since key %s signed it, under the root key %s: nothing says that this is to be trusted; if its maker told you that key, give it by --root-key", path, s.Signer, trust.FormatKey(s.Root))
	}
	v.Name, v.Version, v.Kind = s.Name, s.Version, s.Kind
	return v, v.inside(path, dir, m, s, roots)
}

// inside compares a manifest with the signature, and looks at the signature of the
// file within a package, which a server will ask for.
func (v *verified) inside(path, dir string, m *trust.Manifest, s *trust.Signed, roots []ed25519.PublicKey) error {
	packaged := strings.HasSuffix(path, trust.PackageSuffix)
	fits := func(dir string, m *trust.Manifest) error {
		v.Name, v.Version, v.Kind = m.Name, m.Version, m.Kind
		if s != nil {
			if err := m.Fits(&s.Statement); err != nil {
				return err
			}
		}
		file := filepath.Join(dir, filepath.FromSlash(m.File))
		data, digest, err := trust.ReadFile(file)
		if err != nil {
			return err
		}
		found, err := certificationIn(dir, m, digest)
		if err != nil {
			return err
		}
		v.Conformance = found.say(roots)
		if !packaged || len(roots) == 0 {
			return nil
		}
		in, err := trust.ReadSignature(file)
		if err != nil {
			return fmt.Errorf("%s in it: %w; promweave plugin package --key signs both", m.File, errors.Join(trust.ErrUnsigned, withoutPath(err, dir)))
		}
		if err := cmp.Or(in.Of(digest, int64(len(data))), in.By(roots, time.Time{}), m.Fits(&in.Statement)); err != nil {
			return fmt.Errorf("%s in it: %w", m.File, err)
		}
		return nil
	}
	if packaged {
		if _, err := unpacked(v.data, fits); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
	if m == nil {
		return nil
	}
	if err := fits(dir, m); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// withoutPath takes a directory that is gone by then out of an error.
func withoutPath(err error, dir string) error {
	return errors.New(strings.ReplaceAll(err.Error(), dir+string(filepath.Separator), ""))
}

func (a *app) pluginVerifyCmd() *cobra.Command {
	var (
		f      trustFlags
		output string
	)
	cmd := &cobra.Command{
		Use:   "verify --root-key KEY DIR|FILE|PACKAGE",
		Short: "Check that a plug-in is unchanged and by whom",
		Long: `Checks the signature beside a file, and that it leads to a root key that is trusted.
Without --root-key the digest has to be known (--sha256). Nothing else says whether a
file is what its maker made.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := f.verify(args[0], a.Now())
			if err != nil {
				return console.Failed(err)
			}
			return a.Write(cmd, output, v, func(w io.Writer) error { return objectText(w, v) })
		},
	}
	f.add(cmd)
	console.OutputFlag(cmd, &output, "text", "json", "yaml")
	return cmd
}

func (a *app) pluginInstallCmd() *cobra.Command {
	var (
		f         trustFlags
		dir, lock string
	)
	cmd := &cobra.Command{
		Use:   "install --root-key KEY PACKAGE",
		Short: "Check a package, unpack it, and say how to use it",
		Long: `Checks a package as plugin verify does, and only then unpacks it, to DIR/NAME-VERSION.
Where it came from is written to the lock file, which a configuration can name as
plugins.lock_file. What is to be added to the configuration is printed.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !strings.HasSuffix(args[0], trust.PackageSuffix) {
				return console.Usage(cmd, "%s is no package: its name ends with %s", args[0], trust.PackageSuffix)
			}
			v, err := f.verify(args[0], a.Now())
			if err != nil {
				return console.Failed(err)
			}
			m, file, err := a.install(v, dir)
			if err != nil {
				return console.Failed(err)
			}
			_, digest, err := trust.ReadFile(file)
			if err != nil {
				return console.Failed(err)
			}
			origin, err := filepath.Abs(args[0])
			if err != nil {
				return console.Failed(err)
			}
			if err := trust.Record(lock, trust.Locked{
				Name: m.Name, Version: m.Version, Kind: m.Kind, Launch: m.Launch, Path: file, SHA256: digest, Signer: v.Signer, Root: v.Root,
				Origin: origin, PackageSHA256: v.SHA256, Permissions: append([]string{}, m.Permissions...), Installed: a.Now(),
			}); err != nil {
				return console.Failed(err)
			}
			if v.Conformance != "" {
				a.Say("certified: %s", v.Conformance)
			}
			a.Say("%s %s is in %s, and in %s. Add this to the configuration; its paths start from the directory that the file is in.", m.Name, m.Version, filepath.Dir(file), lock)
			return snippet(a.Out, m, file, digest, v.Root, lock)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&dir, "dir", "plugins", "directory that plug-ins are installed to")
	cmd.Flags().StringVar(&lock, "lock", "promweave.lock", "lock file")
	return cmd
}

// install unpacks what is verified. A version that is there already has to be the same.
func (a *app) install(v *verified, dir string) (*trust.Manifest, string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", err
	}
	fresh, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(fresh)
	m, err := trust.Unpack(v.data, fresh)
	if err != nil {
		return nil, "", fmt.Errorf("%s %w", v.File, err)
	}
	if err := m.Works(); err != nil {
		return nil, "", err
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return nil, "", err
	}
	to := filepath.Join(dir, m.PackageName())
	file := filepath.Join(to, filepath.FromSlash(m.File))
	if _, err := os.Stat(to); err == nil {
		if name, err := differs(os.DirFS(to), os.DirFS(fresh)); err != nil {
			return nil, "", err
		} else if name != "" {
			return nil, "", fmt.Errorf("%s is there and has another %s: remove it if nothing uses it, or have its maker give the new one a new version", to, name)
		}
		a.Say("%s is there already, and the same", to)
		return m, file, nil
	}
	return m, file, os.Rename(fresh, to)
}

// differs is the name of a file that is not the same in both directories, or only in one;
// "" if there is none.
func differs(a, b fs.FS) (name string, err error) {
	for _, pair := range [][2]fs.FS{{a, b}, {b, a}} {
		err := fs.WalkDir(pair[0], ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || name != "" {
				return err
			}
			x, err := fs.ReadFile(pair[0], path)
			if err != nil {
				return err
			}
			y, err := fs.ReadFile(pair[1], path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err != nil || !bytes.Equal(x, y) {
				name = path
			}
			return nil
		})
		if err != nil || name != "" {
			return name, err
		}
	}
	return "", nil
}

// snippet writes what a configuration needs to use a plug-in.
func snippet(w io.Writer, m *trust.Manifest, file, digest, root, lock string) error {
	type rule struct {
		URL     yaml.Node `yaml:"url"`
		Methods []string  `yaml:"methods,omitempty,flow"`
	}
	type plugin struct {
		Launch      string   `yaml:"launch"`
		Path        string   `yaml:"path"`
		SHA256      string   `yaml:"sha256"`
		Permissions []string `yaml:"permissions,omitempty,flow"`
		HTTP        []rule   `yaml:"http,omitempty"`
	}
	type use struct {
		Name   string    `yaml:"name"`
		Plugin plugin    `yaml:"plugin"`
		Config yaml.Node `yaml:"config,omitempty"`
	}
	u := use{Name: m.Name, Plugin: plugin{Launch: m.Launch, Path: filepath.ToSlash(file), SHA256: digest, Permissions: m.Permissions}}
	for _, r := range m.HTTP {
		n := yaml.Node{Kind: yaml.ScalarNode, Value: r.URL}
		if private(r.URL) {
			n.LineComment = "# a private address: add allow_private: true if that is meant"
		}
		u.Plugin.HTTP = append(u.Plugin.HTTP, rule{n, r.Methods})
	}
	if m.Config != "" {
		var doc yaml.Node
		if err := yaml.Unmarshal([]byte(m.Config), &doc); err != nil {
			return err
		}
		console.BlockStyle(&doc)
		u.Config = *doc.Content[0]
	}
	key, hint := "backends", ""
	if m.Kind == "filter" {
		key, hint = "filters", fmt.Sprintf("# A filter works where it is named: query: {filters: [%s]}", m.Name)
		if m.Role == "rewrite" {
			hint += ", or filters: of a backend."
		}
		hint += "\n"
	}
	if root != "" {
		// A comment, since a configuration has one "plugins" and this one may have it already.
		hint = fmt.Sprintf("# So that the server checks this too: plugins: {root_keys: [%s], lock_file: %s}\n", root, filepath.ToSlash(lock)) + hint
	}
	if _, err := io.WriteString(w, hint); err != nil {
		return err
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	return enc.Encode(map[string][]use{key: {u}})
}

// private says whether a URL names this machine or a private network by its address.
func private(s string) bool {
	u, err := url.Parse(s)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && (ip.IsPrivate() || ip.IsLoopback())
}
