// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"strings"
	"testing"

	"github.com/promweave/promweave/sdk/backend"
)

func TestFits(t *testing.T) {
	const schema = `{
		"type": "object", "additionalProperties": false, "required": ["url"],
		"properties": {
			"url": {"type": "string", "pattern": "^https?://"},
			"rules": {"type": "array", "items": {"type": "object", "additionalProperties": false, "properties": {"drop": {"type": "string"}}}}
		}
	}`
	for _, c := range []struct{ name, schema, config, want string }{
		{"nothing is said", "", `{"a": 1}`, ""},
		{"anything", `{"type": "object"}`, `{"a": 1}`, ""},
		{"good", schema, `{"url": "http://x", "rules": [{"drop": "a"}]}`, ""},
		{"missing", schema, `{}`, "config: missing property 'url'"},
		{"misspelt", schema, `{"url": "http://x", "rulez": []}`, "config: additional properties 'rulez' not allowed"},
		{"deep", schema, `{"url": "http://x", "rules": [{"drop": "a"}, {"drop": 1}]}`, "config: rules[1].drop: got number, want string"},
		{"two things", schema, `{"url": 7, "rules": 8}`, "; "},
		{"draft 7", `{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "additionalProperties": false}`, `{"a": 1}`, "additional properties 'a' not allowed"},
		{"no JSON", "{", `{}`, "cannot be used"},
		{"no schema", `{"type": 7}`, `{}`, "cannot be used"},
		{"a reference to itself", `{"$ref": "#"}`, `{}`, "$ref is not allowed"},
		{"a reference in a part", `{"properties": {"a": {"items": [{"$ref": "file:///etc/passwd"}]}}}`, `{}`, "$ref is not allowed"},
		{"a property called $ref", `{"properties": {"$ref": {"type": "string"}}}`, `{"$ref": "x"}`, ""},
		{"another vocabulary", `{"$schema": "http://127.0.0.1:1/x"}`, `{}`, "refers to nothing"},
		{"a costly pattern", `{"properties": {"a": {"pattern": "` + strings.Repeat(".{1000}", 400) + `"}}}`, `{}`, "cannot be used"},
		{"long", `{"description": "` + strings.Repeat("x", maxSchema) + `"}`, `{}`, "at most 65536"},
	} {
		err := fits(c.schema, []byte(c.config))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err != nil && strings.HasPrefix(c.want, "config:") && !errors.Is(err, backend.ErrInvalid) {
			t.Errorf("%s: the kind of %v", c.name, err)
		}
	}
}

// FuzzFits: a schema is a stranger's, and evaluating it ends.
func FuzzFits(f *testing.F) {
	f.Add(`{"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"minimum": 3}]}}}`, `{"a": 4}`)
	f.Add(`{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}`, `{}`)
	f.Add(`{"$dynamicRef": "#x", "$dynamicAnchor": "x"}`, `[]`)
	f.Fuzz(func(t *testing.T, schema, config string) { _ = fits(schema, []byte(config)) })
}
