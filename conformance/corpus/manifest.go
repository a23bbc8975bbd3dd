// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package corpus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// ManifestVersion is that of the data: another one is another corpus.
const ManifestVersion = 2

// Manifest says which corpus a store was loaded with.
type Manifest struct {
	Version   int    `json:"version"`
	Start     int64  `json:"start"`
	Seed      uint64 `json:"seed"`
	Generated int    `json:"generated"`
	Parts     []Part `json:"parts"`
	Digest    string `json:"digest"`
	// Series and Samples are for people.
	Series  int `json:"series"`
	Samples int `json:"samples"`
}

// Manifest of the corpus.
func (c *Corpus) Manifest() Manifest {
	return Manifest{ManifestVersion, c.Start, c.Seed, c.Generated, c.Parts(), c.Digest(), len(c.Series), c.Samples()}
}

// ParseManifest reads the JSON form.
func ParseManifest(data []byte) (m Manifest, err error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err = dec.Decode(&m); err != nil {
		return m, fmt.Errorf("no manifest of a corpus: %w; promweave certify corpus writes one", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return m, fmt.Errorf("no manifest of a corpus: there is something behind it")
	}
	return m, nil
}

// maxGenerated bounds what a manifest can have made.
const maxGenerated = 1_000_000

// Corpus makes the data anew, and refuses if they would be others than those loaded.
func (m Manifest) Corpus() (*Corpus, error) {
	switch {
	case m.Version != ManifestVersion:
		return nil, fmt.Errorf("the manifest is of version %d, and this program knows version %d: load the corpus that it writes", m.Version, ManifestVersion)
	case m.Generated < 1 || m.Generated > maxGenerated:
		return nil, fmt.Errorf("generated: %d is not between 1 and %d", m.Generated, maxGenerated)
	}
	for _, p := range m.Parts {
		if !slices.Contains(All(), p) {
			return nil, fmt.Errorf("parts: there is no part %q: %v", p, All())
		}
	}
	c := New(Options{Start: m.Start, Seed: m.Seed, Generated: m.Generated}).Only(m.Parts...)
	if d := c.Digest(); d != m.Digest {
		return nil, fmt.Errorf("the data would not be those of the manifest (digest %.12s, want %.12s): it was written by another version, or changed; load the corpus that this program writes", d, m.Digest)
	}
	return c, nil
}
