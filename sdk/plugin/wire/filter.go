// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package wire turns the messages of the plug-in contract (pluginpb) into what
// authors and hosts work with (packages filter and backend) and back, errors among
// them, and has the codec and sizes of the connections that they travel on. Both
// ends use it; authors do not need it.
//
// What comes from the other end is checked as far as the types demand; whether
// a promise is kept is for the host to see.
package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// DescriptionToWire returns the message for d.
func DescriptionToWire(d *filter.Description, kind pluginpb.Kind) *pluginpb.Description {
	out := &pluginpb.Description{
		Name: d.Name, Version: d.Version, Kind: kind, Role: pluginpb.Role(d.Role), Minor: d.Minor,
		Features: d.Features, ConfigSchema: d.ConfigSchema, Summary: d.Summary, Hooks: d.Hooks,
	}
	for _, p := range d.Permissions {
		out.Permissions = append(out.Permissions, string(p))
	}
	return out
}

// DescriptionFromWire returns what m says, and whether it is a backend.
func DescriptionFromWire(m *pluginpb.Description) (d filter.Description, isBackend bool, err error) {
	switch m.GetKind() {
	case pluginpb.Kind_KIND_BACKEND:
		isBackend = true
	case pluginpb.Kind_KIND_FILTER:
	default:
		return d, false, fmt.Errorf("describe: kind %d is neither a backend (1) nor a filter (2)", m.GetKind())
	}
	if m.GetRole() < pluginpb.Role_ROLE_REWRITE || m.GetRole() > pluginpb.Role_ROLE_TENANCY {
		return d, false, fmt.Errorf("describe: role %d is unknown to this host", m.GetRole())
	}
	d = filter.Description{
		Name: m.GetName(), Version: m.GetVersion(), Role: filter.Role(m.GetRole()), Summary: m.GetSummary(),
		ConfigSchema: m.GetConfigSchema(), Hooks: m.GetHooks(), Features: m.GetFeatures(), Minor: m.GetMinor(),
	}
	for _, p := range m.GetPermissions() {
		d.Permissions = append(d.Permissions, filter.Permission(p))
	}
	for _, s := range append([]string{d.Name, d.Version, d.Summary, d.ConfigSchema}, m.GetPermissions()...) {
		if !utf8.ValidString(s) {
			return d, false, fmt.Errorf("describe: %q is not valid UTF-8", s)
		}
	}
	return d, isBackend, nil
}

// ConfigToWire returns the message for c. Settings are taken from the JSON if there
// are none.
func ConfigToWire(c *filter.Config) (*pluginpb.ConfigureRequest, error) {
	out := &pluginpb.ConfigureRequest{Name: c.Name, Config: c.JSON, Minor: pluginpb.Minor}
	if len(out.Config) == 0 {
		out.Config = []byte("{}")
	}
	settings := c.Settings
	if settings == nil {
		var err error
		if settings, err = Settings(out.Config); err != nil {
			return nil, err
		}
	}
	out.Settings = settingsToWire(settings)
	return out, nil
}

// ConfigFromWire returns the configuration in m.
func ConfigFromWire(m *pluginpb.ConfigureRequest) *filter.Config {
	out := &filter.Config{Name: m.GetName(), JSON: m.GetConfig(), Settings: settingsFromWire(m.GetSettings())}
	if len(out.JSON) == 0 {
		out.JSON = []byte("{}")
	}
	return out
}

// Settings returns the scalars of a JSON object in the order of the document:
// path "rules[0].from" and the value as text, null as "". It refuses anything but one object.
func Settings(doc []byte) ([]filter.Setting, error) {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	out := []filter.Setting{}
	fail := func(err error) ([]filter.Setting, error) {
		return nil, backend.Errorf(backend.ErrInvalid, "configuration is not a JSON object: %w", err)
	}
	var value func(path string, depth int) error
	value = func(path string, depth int) error {
		if depth > 64 {
			return fmt.Errorf("%s: nested too deeply", path)
		}
		t, err := dec.Token()
		if err != nil {
			return err
		}
		text := ""
		switch t := t.(type) {
		case json.Delim:
			for i := 0; dec.More(); i++ {
				at := path + "[" + strconv.Itoa(i) + "]"
				if t == '{' {
					key, err := dec.Token()
					if err != nil {
						return err
					}
					at = key.(string)
					if path != "" {
						at = path + "." + at
					}
				}
				if err := value(at, depth+1); err != nil {
					return err
				}
			}
			_, err := dec.Token()
			return err
		case string:
			text = t
		case bool:
			text = strconv.FormatBool(t)
		case json.Number:
			text = t.String()
		}
		out = append(out, filter.Setting{Path: path, Value: text})
		return nil
	}
	if trimmed := bytes.TrimLeft(doc, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' {
		return fail(fmt.Errorf("it does not begin with {"))
	}
	if err := value("", 0); err != nil {
		return fail(err)
	}
	if dec.More() {
		return fail(fmt.Errorf("something follows the object"))
	}
	return out, nil
}

func settingsToWire(list []filter.Setting) []*pluginpb.Setting {
	out := make([]*pluginpb.Setting, len(list))
	for i, s := range list {
		out[i] = &pluginpb.Setting{Path: s.Path, Value: s.Value}
	}
	return out
}

func settingsFromWire(list []*pluginpb.Setting) []filter.Setting {
	out := make([]filter.Setting, len(list))
	for i, s := range list {
		out[i] = filter.Setting{Path: s.GetPath(), Value: s.GetValue()}
	}
	return out
}

// PlanToWire returns the message for p.
func PlanToWire(p *filter.Plan) (*pluginpb.Plan, error) {
	out := &pluginpb.Plan{
		Tier: pluginpb.Tier(p.Tier), Columns: p.Columns, Reads: p.Reads, Writes: p.Writes,
		WritesAny: p.WritesAny, Keeps: p.Keeps, Drops: p.Drops, Merge: p.Merge, Hooks: p.Hooks, Pure: p.Pure,
	}
	for i := range p.Operations {
		o, err := operationToWire(&p.Operations[i])
		if err != nil {
			return nil, fmt.Errorf("plan: operation %d: %w", i, err)
		}
		out.Operations = append(out.Operations, o)
	}
	return out, nil
}

// PlanFromWire returns the plan in m. A tier or an operation that is not known here
// is an error: the host cannot do what it does not know.
func PlanFromWire(m *pluginpb.Plan) (filter.Plan, error) {
	out := filter.Plan{
		Tier: filter.Tier(m.GetTier()), Columns: m.GetColumns(), Reads: m.GetReads(), Writes: m.GetWrites(),
		WritesAny: m.GetWritesAny(), Keeps: m.GetKeeps(), Drops: m.GetDrops(), Merge: m.GetMerge(),
		Hooks: m.GetHooks(), Pure: m.GetPure(),
	}
	if m.GetTier() < pluginpb.Tier_TIER_NONE || m.GetTier() > pluginpb.Tier_TIER_ROWS {
		return out, fmt.Errorf("plan: tier %d is unknown to this host", m.GetTier())
	}
	for i, o := range m.GetOperations() {
		op, err := operationFromWire(o)
		if err != nil {
			return out, fmt.Errorf("plan: operation %d: %w", i, err)
		}
		out.Operations = append(out.Operations, op)
	}
	return out, nil
}

func operationToWire(o *filter.Operation) (*pluginpb.Operation, error) {
	switch {
	case o.Rename != nil:
		return &pluginpb.Operation{Op: &pluginpb.Operation_Rename{Rename: &pluginpb.Rename{From: o.Rename.From, To: o.Rename.To}}}, nil
	case o.Drop != nil:
		return &pluginpb.Operation{Op: &pluginpb.Operation_Drop{Drop: &pluginpb.Names{Names: o.Drop}}}, nil
	case o.Keep != nil:
		return &pluginpb.Operation{Op: &pluginpb.Operation_Keep{Keep: &pluginpb.Names{Names: o.Keep}}}, nil
	case o.Set != nil:
		return &pluginpb.Operation{Op: &pluginpb.Operation_Set{Set: &pluginpb.Label{Name: o.Set.Name, Value: o.Set.Value}}}, nil
	case o.Map != nil:
		m := &pluginpb.MapValues{Name: o.Map.Name}
		for _, p := range o.Map.Values {
			m.Values = append(m.Values, &pluginpb.Pair{From: p.From, To: p.To})
		}
		return &pluginpb.Operation{Op: &pluginpb.Operation_Map{Map: m}}, nil
	case o.Require != nil:
		return &pluginpb.Operation{Op: &pluginpb.Operation_Require{Require: matcherToWire(*o.Require)}}, nil
	}
	return nil, fmt.Errorf("no field is set")
}

func operationFromWire(m *pluginpb.Operation) (filter.Operation, error) {
	switch o := m.GetOp().(type) {
	case *pluginpb.Operation_Rename:
		return filter.Operation{Rename: &filter.Rename{From: o.Rename.GetFrom(), To: o.Rename.GetTo()}}, nil
	case *pluginpb.Operation_Drop:
		return filter.Operation{Drop: notNil(o.Drop.GetNames())}, nil
	case *pluginpb.Operation_Keep:
		return filter.Operation{Keep: notNil(o.Keep.GetNames())}, nil
	case *pluginpb.Operation_Set:
		return filter.Operation{Set: &filter.Label{Name: o.Set.GetName(), Value: o.Set.GetValue()}}, nil
	case *pluginpb.Operation_Map:
		v := &filter.MapValues{Name: o.Map.GetName()}
		for _, p := range o.Map.GetValues() {
			v.Values = append(v.Values, filter.Pair{From: p.GetFrom(), To: p.GetTo()})
		}
		return filter.Operation{Map: v}, nil
	case *pluginpb.Operation_Require:
		r, err := matcherFromWire(o.Require)
		return filter.Operation{Require: &r}, err
	}
	return filter.Operation{}, fmt.Errorf("it is of a kind that this host does not know")
}

// notNil keeps "no names" apart from "not this operation".
func notNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func matcherToWire(m filter.Matcher) *pluginpb.Matcher {
	return &pluginpb.Matcher{Type: pluginpb.Matcher_Type(m.Type), Name: m.Name, Value: m.Value}
}

func matcherFromWire(m *pluginpb.Matcher) (filter.Matcher, error) {
	out := filter.Matcher{Type: filter.MatchType(m.GetType()), Name: m.GetName(), Value: m.GetValue()}
	switch {
	case m.GetType() < pluginpb.Matcher_EQ || m.GetType() > pluginpb.Matcher_NRE:
		return out, fmt.Errorf("matcher on %q is of unknown type %d", m.GetName(), m.GetType())
	case m.GetName() == "":
		return out, fmt.Errorf("a matcher has no label name")
	}
	return out, nil
}

func matchersToWire(list []filter.Matcher) []*pluginpb.Matcher {
	if len(list) == 0 {
		return nil
	}
	out := make([]*pluginpb.Matcher, len(list))
	for i, m := range list {
		out[i] = matcherToWire(m)
	}
	return out
}

func matchersFromWire(list []*pluginpb.Matcher) ([]filter.Matcher, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make([]filter.Matcher, len(list))
	for i, m := range list {
		var err error
		if out[i], err = matcherFromWire(m); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// RequestCallToWire returns the message for c.
func RequestCallToWire(instance uint64, c *filter.RequestCall) *pluginpb.RequestCall {
	out := &pluginpb.RequestCall{
		Instance: instance, Kind: c.Kind, Query: c.Query, Start: c.Start, End: c.End, Step: c.Step,
		Caller: &pluginpb.Caller{
			Method: c.Caller.Method, Subject: c.Caller.Subject, Claims: c.Caller.Claims,
			ClaimSettings: settingsToWire(c.Caller.ClaimSettings),
		},
	}
	for _, s := range c.Selectors {
		out.Selectors = append(out.Selectors, &pluginpb.Matchers{Matchers: matchersToWire(s)})
	}
	for _, h := range c.Caller.Headers {
		out.Caller.Headers = append(out.Caller.Headers, &pluginpb.Header{Name: h.Name, Values: h.Values})
	}
	return out
}

// RequestCallFromWire returns the call in m.
func RequestCallFromWire(m *pluginpb.RequestCall) (*filter.RequestCall, error) {
	c := m.GetCaller()
	out := &filter.RequestCall{
		Kind: m.GetKind(), Query: m.GetQuery(), Start: m.GetStart(), End: m.GetEnd(), Step: m.GetStep(),
		Caller: filter.Caller{
			Method: c.GetMethod(), Subject: c.GetSubject(), Claims: c.GetClaims(),
			ClaimSettings: settingsFromWire(c.GetClaimSettings()),
		},
	}
	for _, s := range m.GetSelectors() {
		ms, err := matchersFromWire(s.GetMatchers())
		if err != nil {
			return nil, backend.Errorf(backend.ErrInvalid, "request: %w", err)
		}
		out.Selectors = append(out.Selectors, ms)
	}
	for _, h := range c.GetHeaders() {
		out.Caller.Headers = append(out.Caller.Headers, filter.Header{Name: h.GetName(), Values: h.GetValues()})
	}
	return out, nil
}

// RequestReplyToWire returns the message for r; nil is the zero value.
func RequestReplyToWire(r *filter.RequestReply) *pluginpb.RequestReply {
	if r == nil {
		return &pluginpb.RequestReply{}
	}
	return &pluginpb.RequestReply{
		Deny: denialToWire(r.Deny), Enforce: matchersToWire(r.Enforce), Tenants: r.Tenants, Admin: r.Admin,
		HasTimeRange: r.HasTimeRange, MinTime: r.MinTime, MaxTime: r.MaxTime,
		MaxSeries: r.MaxSeries, MaxSamples: r.MaxSamples, MaxBytes: r.MaxBytes, Subject: r.Subject,
	}
}

// RequestReplyFromWire returns the reply in m. A matcher that is not well-formed is
// an error: leaving it out would widen what the filter meant to narrow.
func RequestReplyFromWire(m *pluginpb.RequestReply) (*filter.RequestReply, error) {
	ms, err := matchersFromWire(m.GetEnforce())
	if err != nil {
		return nil, fmt.Errorf("request: enforce: %w", err)
	}
	return &filter.RequestReply{
		Deny: denialFromWire(m.GetDeny()), Enforce: ms, Tenants: m.GetTenants(), Admin: m.GetAdmin(),
		HasTimeRange: m.GetHasTimeRange(), MinTime: m.GetMinTime(), MaxTime: m.GetMaxTime(),
		MaxSeries: m.GetMaxSeries(), MaxSamples: m.GetMaxSamples(), MaxBytes: m.GetMaxBytes(), Subject: m.GetSubject(),
	}, nil
}

func denialToWire(d *filter.Denial) *pluginpb.Denial {
	if d == nil {
		return nil
	}
	return &pluginpb.Denial{Status: d.Status, Message: d.Message}
}

func denialFromWire(m *pluginpb.Denial) *filter.Denial {
	if m == nil {
		return nil
	}
	return &filter.Denial{Status: m.GetStatus(), Message: m.GetMessage()}
}

// SelectCallToWire returns the message for c.
func SelectCallToWire(instance uint64, c *filter.SelectCall) *pluginpb.SelectCall {
	return &pluginpb.SelectCall{
		Instance: instance, Backend: c.Backend, Matchers: matchersToWire(c.Matchers),
		MinTime: c.MinTime, MaxTime: c.MaxTime, Tenants: c.Tenants,
	}
}

// SelectCallFromWire returns the call in m.
func SelectCallFromWire(m *pluginpb.SelectCall) (*filter.SelectCall, error) {
	ms, err := matchersFromWire(m.GetMatchers())
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "select: %w", err)
	}
	return &filter.SelectCall{
		Backend: m.GetBackend(), Matchers: ms, MinTime: m.GetMinTime(), MaxTime: m.GetMaxTime(), Tenants: m.GetTenants(),
	}, nil
}

// SelectReplyToWire returns the message for r; nil is the zero value.
func SelectReplyToWire(r *filter.SelectReply) *pluginpb.SelectReply {
	if r == nil {
		return &pluginpb.SelectReply{}
	}
	return &pluginpb.SelectReply{Deny: denialToWire(r.Deny), None: r.None, Require: matchersToWire(r.Require)}
}

// SelectReplyFromWire returns the reply in m, as RequestReplyFromWire.
func SelectReplyFromWire(m *pluginpb.SelectReply) (*filter.SelectReply, error) {
	ms, err := matchersFromWire(m.GetRequire())
	if err != nil {
		return nil, fmt.Errorf("select: require: %w", err)
	}
	return &filter.SelectReply{Deny: denialFromWire(m.GetDeny()), None: m.GetNone(), Require: ms}, nil
}
