// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"cmp"
	"encoding/json"
	"slices"
)

// SBOMFile is the name of the list of components in a package.
const SBOMFile = "sbom.cdx.json"

// Component is something that a plug-in is made of, or with.
type Component struct {
	Name, Version string
	// PURL is its package URL, "" for none.
	PURL string
	// Hash is its SHA-256 in hex, "" if it is not known.
	Hash string
	// Tool says that it made the file and is not part of it.
	Tool bool
}

// The parts of CycloneDX 1.5 (https://cyclonedx.org/docs/1.5/json/) that are used.
type (
	bom struct {
		Format     string         `json:"bomFormat"`
		Spec       string         `json:"specVersion"`
		Version    int            `json:"version"`
		Metadata   bomMetadata    `json:"metadata"`
		Components []bomComponent `json:"components"`
	}
	bomMetadata struct {
		Tools     *bomTools    `json:"tools,omitempty"`
		Component bomComponent `json:"component"`
	}
	bomTools struct {
		Components []bomComponent `json:"components"`
	}
	bomComponent struct {
		Type    string    `json:"type"`
		Name    string    `json:"name"`
		Version string    `json:"version,omitempty"`
		PURL    string    `json:"purl,omitempty"`
		Hashes  []bomHash `json:"hashes,omitempty"`
	}
	bomHash struct {
		Alg     string `json:"alg"`
		Content string `json:"content"`
	}
)

func (c *Component) bom(typ string) bomComponent {
	out := bomComponent{Type: typ, Name: c.Name, Version: c.Version, PURL: c.PURL}
	if c.Hash != "" {
		out.Hashes = []bomHash{{"SHA-256", c.Hash}}
	}
	return out
}

// SBOM lists what a plug-in is made of, in CycloneDX 1.5. digest is that of its file.
// There is no time and no serial number in it: the same parts make the same bytes.
func SBOM(m *Manifest, digest string, parts []Component) ([]byte, error) {
	self := Component{Name: m.Name, Version: m.Version, Hash: digest}
	b := bom{Format: "CycloneDX", Spec: "1.5", Version: 1, Components: []bomComponent{}}
	b.Metadata.Component = self.bom("application")
	parts = slices.Clone(parts)
	slices.SortFunc(parts, func(a, b Component) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	for _, c := range slices.Compact(parts) {
		if !c.Tool {
			b.Components = append(b.Components, c.bom("library"))
			continue
		}
		if b.Metadata.Tools == nil {
			b.Metadata.Tools = &bomTools{}
		}
		b.Metadata.Tools.Components = append(b.Metadata.Tools.Components, c.bom("application"))
	}
	out, err := json.MarshalIndent(b, "", "  ")
	return append(out, '\n'), err
}
