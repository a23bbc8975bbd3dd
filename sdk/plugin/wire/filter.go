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
	"fmt"
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

// Complete returns c with what a plug-in may rely on: a JSON object, {} if there is
// none, and its scalars as settings. What is no object is an error of kind ErrInvalid.
func Complete(c *filter.Config) (*filter.Config, error) {
	out := *c
	if len(out.JSON) == 0 {
		out.JSON = []byte("{}")
	}
	if out.Settings == nil {
		var err error
		if out.Settings, err = filter.Settings(out.JSON); err != nil {
			return nil, backend.Errorf(backend.ErrInvalid, "configuration: %w", err)
		}
	}
	return &out, nil
}
