// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package wire is what both ends of a gRPC connection to a plug-in have in common:
// the messages of backends (those of filters are in pluginpb/convert), errors, the
// codec, and the sizes of what travels. Authors do not need it.
//
// What comes from the other end is checked as far as the types demand; whether
// a promise is kept is for the host to see.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
		return fail(errors.New("it does not begin with {"))
	}
	if err := value("", 0); errors.Is(err, io.EOF) {
		return fail(io.ErrUnexpectedEOF)
	} else if err != nil {
		return fail(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fail(errors.New("something follows the object"))
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
