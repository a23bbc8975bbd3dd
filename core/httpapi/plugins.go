// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"errors"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/promweave/promweave/core/access"
)

// PluginStatus is what /api/v1/plugins shows of one plug-in.
type PluginStatus struct {
	Name string `json:"name"`
	// Kind is backend or filter, Role of a filter rewrite, tenancy or auth.
	Kind string `json:"kind"`
	Role string `json:"role"`
	// Launch is builtin, spawn, dial or wasm.
	Launch string `json:"launch"`
	// Origin is where it comes from: a file, an address, or the program itself.
	Origin  string `json:"origin"`
	Version string `json:"version"`
	// SHA256 is that of the file, in hexadecimal digits, and Signer the name of the
	// key that signed it; "" without a file, or a signature.
	SHA256      string   `json:"sha256"`
	Signer      string   `json:"signer"`
	Permissions []string `json:"permissions"`
	State       string   `json:"state"`
	// Since is when it entered the state.
	Since    time.Time `json:"since"`
	Restarts int64     `json:"restarts"`
	// Faults counts what went wrong by kind.
	Faults        map[string]int64 `json:"faults"`
	LastFault     string           `json:"lastFault"`
	LastFaultTime *time.Time       `json:"lastFaultTime"`
	// LastLines are the last that it wrote to standard error, or its log.
	LastLines []string `json:"lastLines"`
	// PID is 0 if it is no process.
	PID         int   `json:"pid"`
	MemoryBytes int64 `json:"memoryBytes"`
	// Instances are there to be called, Busy of them are being called.
	Instances int   `json:"instances"`
	Busy      int   `json:"busy"`
	Calls     int64 `json:"calls"`
	// UsedBy names the backends and chains that it is part of.
	UsedBy    []string `json:"usedBy"`
	OnFailure string   `json:"onFailure"`
	// ProtocolMinor is the minor version of the contract that it speaks.
	ProtocolMinor int `json:"protocolMinor"`
}

// ErrNoPlugin is what Options.RestartPlugin returns for a name that is not known.
var ErrNoPlugin = errors.New("there is no such plug-in")

func (s *Server) plugins(c *call) (*answer, error) {
	a := jsonAnswer(s.pluginList(c))
	a.noStore = true
	return a, nil
}

func (s *Server) plugin(c *call) (*answer, error) {
	name := c.r.PathValue("name")
	for _, p := range s.pluginList(c) {
		if p.Name == name || slices.Contains(p.UsedBy, name) {
			a := jsonAnswer(p)
			a.noStore = true
			return a, nil
		}
	}
	return nil, s.noPlugin(name)
}

func (s *Server) noPlugin(name string) error {
	return notFound("plug-in %s: there is none of that name; %s/api/v1/plugins lists all", clip(name), s.o.Prefix)
}

func (s *Server) pluginList(c *call) []PluginStatus {
	out := []PluginStatus{}
	if s.o.Plugins != nil {
		out = append(out, s.o.Plugins(c.ctx)...)
	}
	for i := range out {
		p := &out[i]
		for _, list := range []*[]string{&p.Permissions, &p.LastLines, &p.UsedBy} {
			if *list == nil {
				*list = []string{}
			}
		}
		if p.Faults == nil {
			p.Faults = map[string]int64{}
		}
	}
	return out
}

func (s *Server) restartPlugin(c *call) (*answer, error) {
	name := c.r.PathValue("name")
	err := ErrNoPlugin
	if s.o.RestartPlugin != nil {
		err = s.o.RestartPlugin(c.ctx, name)
	}
	switch {
	case errors.Is(err, ErrNoPlugin):
		return nil, s.noPlugin(name)
	case err != nil:
		s.log.ErrorContext(c.ctx, "a plug-in was not restarted", "plugin", name, "err", err)
		return nil, &apiError{status: http.StatusInternalServerError, typ: typeInternal, text: "plug-in " + clip(name) + " was not restarted: " + err.Error()}
	}
	s.log.InfoContext(c.ctx, "a plug-in was restarted", "plugin", name, "subject", access.GrantOf(c.ctx).Subject)
	a := jsonAnswer(map[string]string{"name": name})
	a.noStore = true
	return a, nil
}

// apiWhoami is what a caller may know of their own grant.
type apiWhoami struct {
	Subject  string       `json:"subject"`
	Method   string       `json:"method"`
	Tenants  []string     `json:"tenants"`
	Enforced []string     `json:"enforced"`
	Admin    bool         `json:"admin"`
	MinTime  *time.Time   `json:"minTime,omitempty"`
	MaxTime  *time.Time   `json:"maxTime,omitempty"`
	Limits   whoamiLimits `json:"limits"`
	Filters  []string     `json:"filters"`
}

// whoamiLimits are 0 where only the configured ones hold.
type whoamiLimits struct {
	Series  int64 `json:"series"`
	Samples int64 `json:"samples"`
	Bytes   int64 `json:"bytes"`
}

func (s *Server) whoami(c *call) (*answer, error) {
	g := access.GrantOf(c.ctx)
	out := apiWhoami{
		Subject: g.Subject, Method: access.CallerOf(c.ctx).Method, Admin: g.Admin,
		Tenants: append([]string{}, g.Tenants...), Enforced: []string{}, Filters: append([]string{}, g.Filters...),
		Limits: whoamiLimits{g.MaxSeries, g.MaxSamples, g.MaxBytes},
	}
	for _, m := range g.Enforce {
		out.Enforced = append(out.Enforced, m.String())
	}
	bound := func(ms, none int64) *time.Time {
		if ms == none {
			return nil
		}
		t := encodableTime(time.UnixMilli(ms).UTC())
		return &t
	}
	out.MinTime, out.MaxTime = bound(g.MinTime, math.MinInt64), bound(g.MaxTime, math.MaxInt64)
	a := jsonAnswer(out)
	a.noStore = true
	return a, nil
}
