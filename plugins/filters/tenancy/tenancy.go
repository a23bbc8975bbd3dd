// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package tenancy is a filter that finds out whose data a request is for, from what
// the host has verified of its caller, and has the host enforce it: a matcher on the
// tenant label in every selection. Who cannot be told gets nothing.
package tenancy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/promweave/promweave/sdk/filter"
)

// New returns the filter.
func New() filter.Filter { return tenancy{} }

type tenancy struct{}

const schema = `{
  "type": "object", "additionalProperties": false, "required": ["label", "from"],
  "properties": {
    "label": {"type": "string", "description": "label that says whose a series is"},
    "from": {"type": "array", "minItems": 1, "description": "where the tenant is found; the first that has one counts",
      "items": {"type": "object", "additionalProperties": false, "properties": {
        "header": {"type": "string", "description": "header of the request, in lower case; the host shows those of auth.headers"},
        "claim": {"type": "string", "description": "claim of the token or certificate: a text, or a list of texts"},
        "subject": {"type": "boolean", "description": "the caller's own name"},
        "value": {"type": "string", "description": "this tenant"},
        "subjects": {"type": "array", "items": {"type": "string"}, "description": "callers that it counts for, as in grafana or basic:grafana; empty is all who said who they are"}}}},
    "separator": {"type": "string", "description": "between several tenants in one header or claim; empty: there is only one"},
    "admins": {"type": "object", "additionalProperties": false, "description": "callers who may ask for everything, by naming the tenant *",
      "properties": {"subjects": {"type": "array", "items": {"type": "string"}},
        "claim": {"type": "string"}, "values": {"type": "array", "items": {"type": "string"}}}}
  }
}`

func (tenancy) Describe() filter.Description {
	return filter.Description{
		Name: "tenancy", Version: "1.0.0", Role: filter.RoleTenancy, ConfigSchema: schema, Hooks: []string{filter.HookRequest},
		Summary: "shows each tenant its own series alone",
	}
}

type source struct {
	Header   string   `json:"header"`
	Claim    string   `json:"claim"`
	Subject  bool     `json:"subject"`
	Value    string   `json:"value"`
	Subjects []string `json:"subjects"`
}

type admins struct {
	Subjects []string `json:"subjects"`
	Claim    string   `json:"claim"`
	Values   []string `json:"values"`
}

type instance struct {
	Label     string   `json:"label"`
	From      []source `json:"from"`
	Separator string   `json:"separator"`
	Admins    admins   `json:"admins"`
}

// all is the name by which an admin asks for every tenant.
const all = "*"

func (tenancy) Configure(c *filter.Config) (filter.Instance, error) {
	i := &instance{}
	dec := json.NewDecoder(bytes.NewReader(c.JSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(i); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("config of %s: %w", c.Name, err)
	}
	switch {
	case i.Label == "" || !utf8.ValidString(i.Label):
		return nil, errors.New("label: missing: the label that says whose a series is")
	case i.Label == "__name__":
		return nil, errors.New("label: __name__ says what is measured, not whose it is")
	case len(i.From) == 0:
		return nil, errors.New("from: missing: say where the tenant is found, as in [{header: thanos-tenant}] or [{claim: tenant}]")
	case i.Admins.Claim == "" && len(i.Admins.Values) > 0, i.Admins.Claim != "" && len(i.Admins.Values) == 0:
		return nil, errors.New("admins: claim and values belong together")
	}
	for k := range i.From {
		s := &i.From[k]
		given := 0
		for _, set := range []bool{s.Header != "", s.Claim != "", s.Subject, s.Value != ""} {
			if set {
				given++
			}
		}
		if given != 1 {
			return nil, fmt.Errorf("from[%d]: want one of header, claim, subject and value, found %d of them", k, given)
		}
		if s.Value != "" {
			if err := name(s.Value); err != nil {
				return nil, fmt.Errorf("from[%d].value: %w", k, err)
			}
		}
		s.Header = strings.ToLower(s.Header)
	}
	return i, nil
}

func (i *instance) Plan() filter.Plan {
	return filter.Plan{Reads: []string{i.Label}, Hooks: []string{filter.HookRequest}, Pure: true}
}

// Request finds the tenants. It never widens: without a tenant there is no answer.
func (i *instance) Request(c *filter.RequestCall) (*filter.RequestReply, error) {
	if c.Caller.Method == "" {
		return deny(401, "say who you are: without that it is not known whose data you may see"), nil
	}
	var claims map[string]any
	if len(c.Caller.Claims) > 0 {
		if err := json.Unmarshal(c.Caller.Claims, &claims); err != nil {
			return nil, fmt.Errorf("claims: %w", err)
		}
	}
	tenants, err := i.tenants(&c.Caller, claims)
	if err != nil {
		return deny(400, err.Error()), nil
	}
	admin := i.admin(&c.Caller, claims)
	switch {
	case len(tenants) == 0 && admin:
		return deny(403, "name the tenants that you ask for, or * for all of them"), nil
	case len(tenants) == 0:
		return deny(403, "you belong to no tenant here"), nil
	case slices.Contains(tenants, all):
		if !admin || len(tenants) > 1 {
			return deny(403, "you may not ask for all tenants"), nil
		}
		return &filter.RequestReply{Tenants: tenants, Admin: true}, nil
	}
	for _, t := range tenants {
		if err := name(t); err != nil {
			return deny(400, err.Error()), nil
		}
	}
	return &filter.RequestReply{Tenants: tenants, Admin: admin, Enforce: []filter.Matcher{i.matcher(tenants)}}, nil
}

func (i *instance) tenants(c *filter.Caller, claims map[string]any) ([]string, error) {
	for _, s := range i.From {
		if len(s.Subjects) > 0 && !slices.ContainsFunc(s.Subjects, c.Is) {
			continue
		}
		var found []string
		switch {
		case s.Header != "":
			for _, h := range c.Headers {
				if h.Name == s.Header {
					found = append(found, h.Values...)
				}
			}
			if len(found) > 1 {
				return nil, fmt.Errorf("header %s came %d times: send one", s.Header, len(found))
			}
		case s.Claim != "":
			found = texts(claims[s.Claim])
		case s.Subject:
			found = []string{c.Subject}
		default:
			found = []string{s.Value}
		}
		var out []string
		for _, f := range found {
			for _, p := range i.parts(&s, f) {
				if p != "" && !slices.Contains(out, p) {
					out = append(out, p)
				}
				if len(out) > most {
					return nil, fmt.Errorf("more than %d tenants at once", most)
				}
			}
		}
		if len(out) > 0 {
			slices.Sort(out)
			return out, nil
		}
	}
	return nil, nil
}

// parts are the tenants that a text names. Callers may have chosen their own names,
// and texts of their tokens: one who is called "a|b", or " a", is not to get what
// belongs to others. So a name is one tenant, and nothing is taken off a text but the
// blanks around separators.
func (i *instance) parts(s *source, text string) []string {
	if i.Separator == "" || s.Subject || s.Value != "" {
		return []string{text}
	}
	parts := strings.Split(text, i.Separator)
	if len(parts) > 1 {
		for k := range parts {
			parts[k] = strings.Trim(parts[k], " \t")
		}
	}
	return parts
}

// most bounds the tenants of one request, and longest their names.
const (
	most    = 100
	longest = 150
)

func name(t string) error {
	if t == "" || len(t) > longest || !utf8.ValidString(t) || strings.ContainsFunc(t, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("%q is no name of a tenant: want 1 to %d bytes of text", t, longest)
	}
	if t == all {
		return errors.New("* stands for all tenants and is no name of one")
	}
	return nil
}

func (i *instance) matcher(tenants []string) filter.Matcher {
	if len(tenants) == 1 {
		return filter.Matcher{Type: filter.MatchEqual, Name: i.Label, Value: tenants[0]}
	}
	quoted := make([]string, len(tenants))
	for k, t := range tenants {
		quoted[k] = regexp.QuoteMeta(t)
	}
	return filter.Matcher{Type: filter.MatchRegexp, Name: i.Label, Value: strings.Join(quoted, "|")}
}

func (i *instance) admin(c *filter.Caller, claims map[string]any) bool {
	if slices.ContainsFunc(i.Admins.Subjects, c.Is) {
		return true
	}
	return i.Admins.Claim != "" && slices.ContainsFunc(texts(claims[i.Admins.Claim]), func(v string) bool { return slices.Contains(i.Admins.Values, v) })
}

// texts is a claim that is a text or a list of texts; anything else says nothing.
func texts(v any) []string {
	switch x := v.(type) {
	case string:
		return []string{x}
	case []any:
		var out []string
		for _, e := range x {
			if s, ok := e.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

func deny(status uint32, message string) *filter.RequestReply {
	return &filter.RequestReply{Deny: &filter.Denial{Status: status, Message: message}}
}
