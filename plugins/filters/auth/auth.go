// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package auth is a filter that decides who may ask what: by rules over what the
// host has verified of a caller, the first that applies counts, and none is no.
package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/promweave/promweave/sdk/filter"
)

// New returns the filter.
func New() filter.Filter { return auth{now: time.Now} }

type auth struct{ now func() time.Time }

const schema = `{
  "type": "object", "additionalProperties": false, "required": ["rules"],
  "properties": {"rules": {"type": "array", "minItems": 1, "description": "the first rule that applies counts; if none does the request is refused",
    "items": {"type": "object", "additionalProperties": false, "required": ["allow"], "properties": {
      "subjects": {"type": "array", "items": {"type": "string"}, "description": "callers, as in grafana, basic:grafana or bearer:*, where * stands for any text; empty is everybody, also those that nobody knows"},
      "methods": {"type": "array", "items": {"enum": ["basic", "bearer", "mtls"]}, "description": "how they said who they are"},
      "claims": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}, "description": "claims, each with values of which one is there"},
      "kinds": {"type": "array", "items": {"type": "string"}, "description": "requests: instant, range, series, label_names, label_values, read, rules, ..."},
      "allow": {"type": "boolean"},
      "admin": {"type": "boolean", "description": "may see configuration, plug-ins and so on"},
      "matchers": {"type": "array", "items": {"type": "string"}, "description": "hold on all that is seen, as in team=\"a\""},
      "since": {"type": "string", "description": "how far back is seen, as in 30d"},
      "max_range": {"type": "string", "description": "longest range of one request, and of one selector or subquery in it, as in 7d"},
      "max_series": {"type": "integer"}, "max_samples": {"type": "integer"}, "max_bytes": {"type": "integer"}}}}}
}`

func (auth) Describe() filter.Description {
	return filter.Description{
		Name: "auth", Version: "1.0.0", Role: filter.RoleAuth, ConfigSchema: schema, Hooks: []string{filter.HookRequest},
		Summary: "decides by rules who may ask what",
	}
}

type rule struct {
	Subjects   []string            `json:"subjects"`
	Methods    []string            `json:"methods"`
	Claims     map[string][]string `json:"claims"`
	Kinds      []string            `json:"kinds"`
	Allow      *bool               `json:"allow"`
	Admin      bool                `json:"admin"`
	Matchers   []string            `json:"matchers"`
	Since      string              `json:"since"`
	MaxRange   string              `json:"max_range"`
	MaxSeries  uint64              `json:"max_series"`
	MaxSamples uint64              `json:"max_samples"`
	MaxBytes   uint64              `json:"max_bytes"`

	enforce         []filter.Matcher
	since, maxRange time.Duration
}

type instance struct {
	Rules []*rule `json:"rules"`

	now func() time.Time
}

func (a auth) Configure(c *filter.Config) (filter.Instance, error) {
	i := &instance{now: a.now}
	dec := json.NewDecoder(bytes.NewReader(c.JSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(i); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("config of %s: %w", c.Name, err)
	}
	if len(i.Rules) == 0 {
		return nil, errors.New("rules: missing: without any everything would be refused")
	}
	for k, r := range i.Rules {
		if r == nil {
			return nil, fmt.Errorf("rules[%d]: empty", k)
		}
		if err := r.complete(); err != nil {
			return nil, fmt.Errorf("rules[%d].%w", k, err)
		}
		if r.since > 0 && i.now().Year() < 2020 {
			return nil, fmt.Errorf("rules[%d].since: needs to know the time: grant the permission clock", k)
		}
	}
	return i, nil
}

func (r *rule) complete() (err error) {
	if r.Allow == nil {
		return errors.New("allow: missing: true or false")
	}
	if !*r.Allow && (r.Admin || len(r.Matchers) > 0 || r.Since != "" || r.MaxRange != "" || r.MaxSeries+r.MaxSamples+r.MaxBytes > 0) {
		return errors.New("allow: false allows nothing: the other keys have no meaning")
	}
	for k, p := range r.Subjects {
		if strings.ContainsAny(p, `?[\`) {
			return fmt.Errorf("subjects[%d]: %q: only * stands for something else", k, p)
		}
	}
	for k, m := range r.Methods {
		if !slices.Contains([]string{"basic", "bearer", "mtls"}, m) {
			return fmt.Errorf("methods[%d]: %q is none of basic, bearer, mtls", k, m)
		}
	}
	for k, text := range r.Matchers {
		m, err := matcher(text)
		if err != nil {
			return fmt.Errorf("matchers[%d]: %w", k, err)
		}
		r.enforce = append(r.enforce, m)
	}
	if r.since, err = duration(r.Since); err != nil {
		return fmt.Errorf("since: %w", err)
	}
	if r.maxRange, err = duration(r.MaxRange); err != nil {
		return fmt.Errorf("max_range: %w", err)
	}
	return nil
}

var matcherForm = regexp.MustCompile(`^\s*(?:([a-zA-Z_][a-zA-Z0-9_]*)|("(?:[^"\\]|\\.)+"))\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*")\s*$`)

// matcher reads one matcher as PromQL writes it.
func matcher(text string) (filter.Matcher, error) {
	p := matcherForm.FindStringSubmatch(text)
	if p == nil {
		return filter.Matcher{}, fmt.Errorf(`%q is no matcher: write name="value", with =, !=, =~ or !~`, text)
	}
	m := filter.Matcher{Name: p[1], Type: map[string]filter.MatchType{
		"=": filter.MatchEqual, "!=": filter.MatchNotEqual, "=~": filter.MatchRegexp, "!~": filter.MatchNotRegexp,
	}[p[3]]}
	var err error
	if p[2] != "" {
		if m.Name, err = strconv.Unquote(p[2]); err != nil {
			return m, fmt.Errorf("%q: %w", text, err)
		}
	}
	if m.Value, err = strconv.Unquote(p[4]); err != nil {
		return m, fmt.Errorf("%q: %w", text, err)
	}
	if m.Type >= filter.MatchRegexp {
		if _, err := regexp.Compile(m.Value); err != nil {
			return m, err
		}
	}
	return m, nil
}

var units = map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour, 'y': 365 * 24 * time.Hour}

// duration reads 30d and the like; "" is 0.
func duration(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	unit, ok := units[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if !ok || err != nil || n == 0 || n > uint64(math.MaxInt64/unit) {
		return 0, fmt.Errorf("%q is no duration: write a number and s, m, h, d, w or y, as in 30d", s)
	}
	return time.Duration(n) * unit, nil
}

func (i *instance) Plan() filter.Plan { return filter.Plan{Hooks: []string{filter.HookRequest}} }

func (i *instance) Request(c *filter.RequestCall) (*filter.RequestReply, error) {
	var claims map[string]any
	if len(c.Caller.Claims) > 0 {
		if err := json.Unmarshal(c.Caller.Claims, &claims); err != nil {
			return nil, fmt.Errorf("claims: %w", err)
		}
	}
	for _, r := range i.Rules {
		if r.applies(c, claims) {
			return i.decide(r, c), nil
		}
	}
	return i.refuse(c), nil
}

func (i *instance) refuse(c *filter.RequestCall) *filter.RequestReply {
	d := &filter.Denial{Status: 403, Message: "you may not ask this"}
	if c.Caller.Method == "" {
		d = &filter.Denial{Status: 401, Message: "say who you are"}
	}
	return &filter.RequestReply{Deny: d}
}

func (r *rule) applies(c *filter.RequestCall, claims map[string]any) bool {
	if len(r.Subjects) > 0 && (c.Caller.Method == "" || !slices.ContainsFunc(r.Subjects, func(p string) bool {
		method, pattern := filter.Names(p)
		return (method == "" || method == c.Caller.Method) && glob(pattern, c.Caller.Subject)
	})) {
		return false
	}
	if len(r.Methods) > 0 && !slices.Contains(r.Methods, c.Caller.Method) {
		return false
	}
	if len(r.Kinds) > 0 && !slices.Contains(r.Kinds, c.Kind) {
		return false
	}
	for name, want := range r.Claims {
		if !slices.ContainsFunc(texts(claims[name]), func(v string) bool { return slices.Contains(want, v) }) {
			return false
		}
	}
	return true
}

// glob matches a pattern in which * stands for any text.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	for _, p := range parts[1 : len(parts)-1] {
		k := strings.Index(s, p)
		if k < 0 {
			return false
		}
		s = s[k+len(p):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}

func (i *instance) decide(r *rule, c *filter.RequestCall) *filter.RequestReply {
	if !*r.Allow {
		return i.refuse(c)
	}
	// The range is compared without being added to: bounds reach over all of int64.
	most := r.maxRange.Milliseconds()
	if most > 0 && (c.End > c.Start && uint64(c.End)-uint64(c.Start) > uint64(most) || c.Window > most) {
		return &filter.RequestReply{Deny: &filter.Denial{Status: 403, Message: "you may ask for at most " + r.MaxRange + " at once: choose a shorter range"}}
	}
	out := &filter.RequestReply{
		Enforce: r.enforce, Admin: r.Admin, MaxSeries: r.MaxSeries, MaxSamples: r.MaxSamples, MaxBytes: r.MaxBytes,
	}
	if r.since > 0 {
		out.HasTimeRange, out.MinTime, out.MaxTime = true, i.now().Add(-r.since).UnixMilli(), math.MaxInt64
	}
	return out
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
