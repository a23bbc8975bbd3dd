// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// ConformanceFile is what the conformance suite found of a plug-in's file, signed: its
// name in a plug-in's directory and package.
const ConformanceFile = "conformance.json"

// Endorsement is who signed something else than a file: a finding about one, for example.
// Whether Root is to be trusted is for the reader to say.
type Endorsement struct {
	// Signer is the short name of the signing key.
	Signer string
	Root   ed25519.PublicKey
	// Time is when it was signed, in whole seconds.
	Time time.Time
}

// endorsed is the payload: what is said, and when.
type endorsed struct {
	Time time.Time       `json:"time"`
	Says json.RawMessage `json:"says"`
}

// Endorse returns a file that holds v as JSON and the key's signature of it. typ is the
// media type of v, which has to be of one's own: a signature of one kind is none of another.
func (k *SigningKey) Endorse(typ string, v any, at time.Time) ([]byte, error) {
	at = at.UTC().Truncate(time.Second)
	if at.After(k.NotAfter) {
		return nil, fmt.Errorf("key %s ended on %s: make a new one with plugin keys new-signing", k.ID(), k.NotAfter.Format(time.RFC3339))
	}
	says, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	e, err := seal(typ, endorsed{at, says}, k.key)
	if err != nil {
		return nil, err
	}
	return encodeSignature(&signatureFile{Statement: e, Certificate: k.certificate})
}

// ReadEndorsement reads the file of an endorsement of type typ into v. What is wrong with it
// is an error, one that wraps os.ErrNotExist if there is none; v is then as it was, or of no use.
func ReadEndorsement(path, typ string, v any) (*Endorsement, error) {
	data, err := readLimited(path, maxSignature)
	if err != nil {
		return nil, err
	}
	e, err := parseEndorsement(data, typ, v)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return e, nil
}

func parseEndorsement(data []byte, typ string, v any) (*Endorsement, error) {
	f, c, err := parseSigned(data)
	if err != nil {
		return nil, err
	}
	var p endorsed
	if err := f.Statement.open("what is signed", typ, &p, func() (ed25519.PublicKey, error) { return c.Key, nil }); err != nil {
		return nil, err
	}
	if p.Time.After(c.NotAfter) {
		return nil, fmt.Errorf("was signed on %s by key %s, which had ended on %s", p.Time.Format(time.RFC3339), KeyID(c.Key), c.NotAfter.Format(time.RFC3339))
	}
	if err := json.Unmarshal(p.Says, v); err != nil {
		return nil, fmt.Errorf("what is signed: %w", err)
	}
	return &Endorsement{Signer: KeyID(c.Key), Root: c.Root, Time: p.Time}, nil
}

// Trusted says whether one of the roots stands behind it.
func (e *Endorsement) Trusted(roots []ed25519.PublicKey) bool {
	return slices.ContainsFunc(roots, func(r ed25519.PublicKey) bool { return r.Equal(e.Root) })
}
