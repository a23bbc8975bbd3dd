// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/matching"
)

// maxSchema bounds the text of a plug-in's schema.
const maxSchema = 64 << 10

// fits says what is wrong with a configuration by the schema that its plug-in declares,
// in JSON Schema (https://json-schema.org/draft/2020-12), and where. The schema is a
// stranger's: it may not refer to anything, neither elsewhere nor to parts of itself,
// since with references a few hundred bytes take years to evaluate.
func fits(schema string, config []byte) error {
	if strings.TrimSpace(schema) == "" {
		return nil
	}
	if len(schema) > maxSchema {
		return fmt.Errorf("its configuration schema has %d bytes, and at most %d are allowed", len(schema), maxSchema)
	}
	s, err := compile(schema)
	if err != nil {
		return fmt.Errorf("its configuration schema cannot be used: %w", err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(config))
	if err != nil {
		return backend.Errorf(backend.ErrInvalid, "config: %w", err)
	}
	var invalid *jsonschema.ValidationError
	if err := s.Validate(v); errors.As(err, &invalid) {
		lines := slices.Compact(leaves(invalid, nil))
		const most = 5
		if n := len(lines); n > most {
			lines = append(lines[:most:most], fmt.Sprintf("and %d more", n-most))
		}
		return backend.Errorf(backend.ErrInvalid, "config: %s", strings.Join(lines, "; "))
	} else if err != nil {
		return backend.Errorf(backend.ErrInvalid, "config: %w", err)
	}
	return nil
}

func compile(schema string) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	if err != nil {
		return nil, err
	}
	if err := selfContained(doc); err != nil {
		return nil, err
	}
	const url = "plugin:///config"
	var budget matching.Budget
	c := jsonschema.NewCompiler()
	c.UseLoader(nothing{})
	c.UseRegexpEngine(func(s string) (jsonschema.Regexp, error) {
		if err := budget.Regexp(s); err != nil {
			return nil, err
		}
		return regexp.Compile(s)
	})
	if err := c.AddResource(url, doc); err != nil {
		return nil, err
	}
	return c.Compile(url)
}

// selfContained refuses references.
func selfContained(v any) error {
	switch x := v.(type) {
	case map[string]any:
		for key, y := range x {
			// A property of that name is a schema, and no text.
			if _, text := y.(string); text && (key == "$ref" || key == "$dynamicRef" || key == "$recursiveRef") {
				return fmt.Errorf("%s is not allowed: write out what it stands for", key)
			}
			if err := selfContained(y); err != nil {
				return err
			}
		}
	case []any:
		for _, y := range x {
			if err := selfContained(y); err != nil {
				return err
			}
		}
	}
	return nil
}

// nothing loads nothing.
type nothing struct{}

// Load implements jsonschema.URLLoader.
func (nothing) Load(url string) (any, error) {
	return nil, fmt.Errorf("%s: a plug-in's schema refers to nothing", url)
}

// leaves are what is wrong at the places themselves.
func leaves(e *jsonschema.ValidationError, out []string) []string {
	if len(e.Causes) == 0 {
		return append(out, strings.TrimPrefix(place(e.InstanceLocation)+": ", ": ")+e.ErrorKind.LocalizedString(message.NewPrinter(language.English)))
	}
	for _, c := range e.Causes {
		out = leaves(c, out)
	}
	return out
}

// place is a location as configurations are written about: rules[0].rename.
func place(path []string) string {
	var b strings.Builder
	for _, p := range path {
		if _, err := strconv.ParseUint(p, 10, 32); err == nil {
			fmt.Fprintf(&b, "[%s]", p)
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(p)
	}
	return b.String()
}
