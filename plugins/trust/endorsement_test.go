// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package trust_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/promweave/promweave/plugins/trust"
)

const findingType = "application/vnd.promweave.finding.v1+json"

type finding struct {
	Text string `json:"text"`
}

// TestEndorsement: what was endorsed is read as it was, and nothing that was changed, is of
// another kind, or was signed too late.
func TestEndorsement(t *testing.T) {
	root, k := keys(t)
	other, _ := keys(t)
	_, m := project(t)
	file := filepath.Join(t.TempDir(), "finding.json")
	read := func(data []byte) (finding, *trust.Endorsement, error) {
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		var f finding
		e, err := trust.ReadEndorsement(file, findingType, &f)
		return f, e, err
	}
	if _, err := trust.ReadEndorsement(file, findingType, &finding{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is none: %v", err)
	}
	good, err := k.Endorse(findingType, finding{"well done"}, now.Add(time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	f, e, err := read(good)
	if err != nil || f.Text != "well done" || e.Signer != k.ID() || !e.Time.Equal(now.Truncate(time.Second)) {
		t.Fatalf("%+v %+v %v", f, e, err)
	}
	if !e.Trusted([]ed25519.PublicKey{other, root}) || e.Trusted([]ed25519.PublicKey{other}) || e.Trusted(nil) {
		t.Error("it is trusted by other roots than its own")
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 1
		if _, _, err := read(bad); err == nil {
			t.Errorf("byte %d, %q, can be changed", i, good[i])
		}
	}
	for name, data := range map[string][]byte{
		"a file's signature": sign(t, k, m, "x", nil),
		"another type":       bytes.Replace(good, []byte("finding.v1"), []byte("finding.v2"), 1),
		"nothing":            nil,
		"more":               append(slices.Clone(good), '\n'),
	} {
		if _, _, err := read(data); err == nil || !strings.HasPrefix(err.Error(), "finding.json: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := trust.ParseSignature(good); err == nil {
		t.Error("it passes for the signature of a file")
	}
	if _, err := k.Endorse(findingType, finding{}, now.Add(25*time.Hour)); err == nil || !strings.Contains(err.Error(), "new-signing") {
		t.Errorf("a key endorses after its end: %v", err)
	}
	if _, err := k.Endorse(findingType, make(chan int), now); err == nil {
		t.Error("what is no JSON is endorsed")
	}
}
