// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package trust says what a plug-in is, who made it, and whether it is still what they
// made: manifests, signatures, packages, and the lock file of what is installed.
//
// A root key is kept offline and signs certificates of signing keys; a signing key
// signs statements about files. A signature file, FILE.sig beside FILE, holds both, so
// that it can be checked with nothing but the root's public key and without a network.
// This is the model of Tailscale's distsign (root key, signing key, file); what is
// signed is enveloped as in DSSE (github.com/secure-systems-lab/dsse, protocol.md), so
// that the very bytes that were signed are those that are read.
package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// SignatureSuffix is what the name of a signature file adds to that of its file.
const SignatureSuffix = ".sig"

// What is signed, as the media types of its envelopes. A change of meaning is a new type.
const (
	certificateType = "application/vnd.promweave.signing-key.v1+json"
	statementType   = "application/vnd.promweave.plugin.v1+json"
)

const (
	maxSignature = 64 << 10
	maxKeyFile   = 64 << 10
	// MaxFile is the largest file of a plug-in, and the largest package, in bytes.
	MaxFile = 256 << 20
)

// Statement is what a signer says of a file. The file is that of a plug-in, or a
// package of one.
type Statement struct {
	Name        string   `json:"name"`
	Version     string   `json:"version"`
	Kind        string   `json:"kind"`
	File        string   `json:"file"`   // without directories
	SHA256      string   `json:"sha256"` // hex
	Size        int64    `json:"size"`   // bytes
	Permissions []string `json:"permissions"`
	// Time is when it was signed, in whole seconds.
	Time time.Time `json:"time"`
}

// certificate is what a root key says of a signing key.
type certificate struct {
	Root     []byte    `json:"root"`
	Key      []byte    `json:"key"`
	NotAfter time.Time `json:"not_after"`
}

// envelope is one of DSSE.
type envelope struct {
	PayloadType string       `json:"payloadType"`
	Payload     []byte       `json:"payload"`
	Signatures  []signatures `json:"signatures"`
}

type signatures struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// encoding is DSSE's pre-authentication encoding: what the signature is made of.
func (e *envelope) encoding() []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.PayloadType), e.PayloadType, len(e.Payload), e.Payload)
}

func seal(typ string, v any, key ed25519.PrivateKey) (envelope, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return envelope{}, err
	}
	e := envelope{PayloadType: typ, Payload: payload}
	e.Signatures = []signatures{{KeyID(key.Public().(ed25519.PublicKey)), ed25519.Sign(key, e.encoding())}}
	return e, nil
}

// open decodes the payload into v. who finds the key in what was decoded; nothing in v
// may be believed before open has returned.
func (e *envelope) open(what, typ string, v any, who func() (ed25519.PublicKey, error)) error {
	if e.PayloadType != typ {
		return fmt.Errorf("%s: is of type %.80q, this version knows %q", what, e.PayloadType, typ)
	}
	if len(e.Signatures) != 1 {
		return fmt.Errorf("%s: has %d signatures, want one", what, len(e.Signatures))
	}
	if err := strict(e.Payload, v); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	key, err := who()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	s := e.Signatures[0]
	if s.KeyID != KeyID(key) || !ed25519.Verify(key, e.encoding(), s.Sig) {
		return fmt.Errorf("%s: the signature is not that of key %s: something was changed after signing", what, KeyID(key))
	}
	return nil
}

func strict(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows after the end")
	}
	return nil
}

// KeyID is the short name of a key: the first 16 hexadecimal digits of its SHA-256.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:8])
}

// FormatKey is a public key as it is written in configurations: 44 characters of base64.
func FormatKey(key ed25519.PublicKey) string { return base64.StdEncoding.EncodeToString(key) }

// ParseKey reads what FormatKey wrote.
func ParseKey(s string) (ed25519.PublicKey, error) {
	// What is wrong is not shown: it may be the other half.
	if strings.Contains(s, "PRIVATE KEY") {
		return nil, errors.New("is a private key, which stays where it is: the public one is needed, BASE.pub of plugin keys new-root")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(s))
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, errors.New("is no Ed25519 public key: want 44 characters of base64, as plugin keys new-root prints them and writes them to BASE.pub")
	}
	return b, nil
}

// NewRoot makes a root key.
func NewRoot() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// EncodeRoot is the file of a root key: PKCS #8 in PEM, which OpenSSL reads too.
func EncodeRoot(key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseRoot reads what EncodeRoot wrote.
func ParseRoot(data []byte) (ed25519.PrivateKey, error) {
	key, rest, err := privateKey(data)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(rest); block != nil {
		return nil, errors.New("is a signing key; want a root key, as plugin keys new-root makes them")
	}
	return key, nil
}

func privateKey(data []byte) (ed25519.PrivateKey, []byte, error) {
	if len(data) > maxKeyFile {
		return nil, nil, fmt.Errorf("has more than %d bytes, which no key has", maxKeyFile)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, nil, errors.New("holds no private key in PEM form; plugin keys makes them")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("holds a key of type %T, want Ed25519", parsed)
	}
	return key, rest, nil
}

// SigningKey signs statements, by the authority of a root key.
type SigningKey struct {
	key         ed25519.PrivateKey
	certificate envelope
	// NotAfter is the end of what the root key allows.
	NotAfter time.Time
	Root     ed25519.PublicKey
}

// NewSigningKey makes a key that may sign until notAfter.
func NewSigningKey(root ed25519.PrivateKey, notAfter time.Time) (*SigningKey, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	k := &SigningKey{key: key, NotAfter: notAfter.UTC().Truncate(time.Second), Root: root.Public().(ed25519.PublicKey)}
	k.certificate, err = seal(certificateType, certificate{k.Root, public, k.NotAfter}, root)
	return k, err
}

// ID is the key's short name.
func (k *SigningKey) ID() string { return KeyID(k.key.Public().(ed25519.PublicKey)) }

const certificateBlock = "PROMWEAVE SIGNING CERTIFICATE"

// Encode is the file of the key: the key in PKCS #8 and its certificate, both in PEM.
func (k *SigningKey) Encode() ([]byte, error) {
	out, err := EncodeRoot(k.key)
	if err != nil {
		return nil, err
	}
	cert, err := json.Marshal(&k.certificate)
	if err != nil {
		return nil, err
	}
	return append(out, pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: cert})...), nil
}

// ParseSigningKey reads what Encode wrote, and checks the certificate.
func ParseSigningKey(data []byte) (*SigningKey, error) {
	key, rest, err := privateKey(data)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(rest)
	if block == nil || block.Type != certificateBlock {
		return nil, errors.New("has no certificate of a root key, so that nobody could check what it signs; plugin keys new-signing makes one with it")
	}
	k := &SigningKey{key: key}
	if err := strict(block.Bytes, &k.certificate); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	c, err := openCertificate(&k.certificate)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(c.Key, key.Public().(ed25519.PublicKey)) {
		return nil, errors.New("certificate: is that of another key")
	}
	k.NotAfter, k.Root = c.NotAfter, c.Root
	return k, nil
}

func openCertificate(e *envelope) (*certificate, error) {
	var c certificate
	err := e.open("certificate of the signing key", certificateType, &c, func() (ed25519.PublicKey, error) {
		if len(c.Root) != ed25519.PublicKeySize || len(c.Key) != ed25519.PublicKeySize {
			return nil, errors.New("its keys are not Ed25519 public keys")
		}
		return c.Root, nil
	})
	return &c, err
}

// Sign returns the signature file of a statement, whose Time has to be set. A key that
// has ended by then is refused.
func (k *SigningKey) Sign(s Statement) ([]byte, error) {
	s.Time = s.Time.UTC().Truncate(time.Second)
	if s.Time.After(k.NotAfter) {
		return nil, fmt.Errorf("key %s ended on %s: make a new one with plugin keys new-signing", k.ID(), k.NotAfter.Format(time.RFC3339))
	}
	if s.Permissions == nil {
		s.Permissions = []string{}
	}
	st, err := seal(statementType, s, k.key)
	if err != nil {
		return nil, err
	}
	return encodeSignature(&signatureFile{Statement: st, Certificate: k.certificate})
}

type signatureFile struct {
	Statement   envelope `json:"statement"`
	Certificate envelope `json:"certificate"`
}

func encodeSignature(s *signatureFile) ([]byte, error) {
	out, err := json.MarshalIndent(s, "", "  ")
	return append(out, '\n'), err
}

// Signed is a statement whose signatures hold. Whether Root is to be trusted is for
// the reader to say.
type Signed struct {
	Statement
	// Signer is the short name of the signing key.
	Signer   string
	NotAfter time.Time
	Root     ed25519.PublicKey
}

// ParseSignature reads a signature file and checks that its signatures hold. A file
// has one form only: a byte that is changed anywhere is found.
func ParseSignature(data []byte) (*Signed, error) {
	f, c, err := parseSigned(data)
	if err != nil {
		return nil, err
	}
	s := &Signed{Signer: KeyID(c.Key), NotAfter: c.NotAfter, Root: c.Root}
	if err := f.Statement.open("statement", statementType, &s.Statement, func() (ed25519.PublicKey, error) { return c.Key, nil }); err != nil {
		return nil, err
	}
	if s.Time.After(c.NotAfter) {
		return nil, fmt.Errorf("was made on %s by key %s, which had ended on %s", s.Time.Format(time.RFC3339), s.Signer, c.NotAfter.Format(time.RFC3339))
	}
	return s, nil
}

// parseSigned reads a file of a statement and the certificate of its key, and checks the
// latter. The statement is to be opened with the key of the certificate.
func parseSigned(data []byte) (*signatureFile, *certificate, error) {
	if len(data) > maxSignature {
		return nil, nil, fmt.Errorf("has more than %d bytes, which no signature has", maxSignature)
	}
	f := &signatureFile{}
	if err := strict(data, f); err != nil {
		return nil, nil, fmt.Errorf("is no signature file: %w", err)
	}
	// JSON has many forms of one thing, and Go reads keys in any case.
	if again, err := encodeSignature(f); err != nil || !bytes.Equal(again, data) {
		return nil, nil, errors.New("is not in the form in which it was written: something was changed after signing")
	}
	c, err := openCertificate(&f.Certificate)
	return f, c, err
}

// By says whether one of the roots stands behind the signature. A time that is not
// zero is now: what is new must not have been signed by a key that has ended, because
// one that was lost could have been used since, under any date.
func (s *Signed) By(roots []ed25519.PublicKey, now time.Time) error {
	if !slices.ContainsFunc(roots, func(r ed25519.PublicKey) bool { return r.Equal(s.Root) }) {
		return fmt.Errorf("is signed by key %s under the root key %s, which is none of those that are trusted here: ask its maker for their root key, and if it is this one add it", s.Signer, FormatKey(s.Root))
	}
	if !now.IsZero() && now.After(s.NotAfter) {
		return fmt.Errorf("is signed by key %s, which ended on %s: ask its maker to sign it anew", s.Signer, s.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// Of says whether the statement is about a file with this digest and size.
func (s *Signed) Of(digest string, size int64) error {
	if s.SHA256 != digest || s.Size != size {
		return fmt.Errorf("the signature is of a file %s with digest %s and %d bytes, this one has %s and %d bytes: it was changed after signing, or belongs to another signature",
			s.File, s.SHA256, s.Size, digest, size)
	}
	return nil
}

// ReadFile reads a file of a plug-in, or a package, and its digest in hex.
func ReadFile(path string) (data []byte, digest string, err error) {
	data, err = readLimited(path, MaxFile)
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(data)
	return data, hex.EncodeToString(sum[:]), nil
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes, which is the limit", path, limit)
	}
	return data, nil
}

// ErrUnsigned is wrapped by errors about files that have no signature.
var ErrUnsigned = errors.New("is not signed")

// ReadSignature reads the signature file beside a file. Nothing of the file itself is
// looked at.
func ReadSignature(path string) (*Signed, error) {
	data, err := readLimited(path+SignatureSuffix, maxSignature)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%s %w: there is no %s beside it", path, ErrUnsigned, filepath.Base(path)+SignatureSuffix)
	case err != nil:
		return nil, err
	}
	s, err := ParseSignature(data)
	if err != nil {
		return nil, fmt.Errorf("%s%s: %w", path, SignatureSuffix, err)
	}
	return s, nil
}
