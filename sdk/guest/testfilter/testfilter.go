// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package testfilter is the reference filter, which every SDK has in its language so
// that all of them can be compared. It shows most of what a filter can do.
//
// Its settings are text. A list is separated by commas; nothing can be escaped.
//
//	tier          rows (default), columns or names: how much Rewrite asks to see
//	drop          labels that are gone: "pod_template_hash,uid"
//	rename        "node=kubernetes_node": to gets from's value, also if that is absent
//	set           "cluster=eu1": every series has this label
//	map           "env:p=production,env:d=development": values become others; not with names
//	leave_out     "job=debug": series with this value are left out; rows only
//	merge         "true": series that become equal are one
//	deny_subject  who may not query. With it all others must have a claim "tenant", which
//	              their requests are bound to
//	require       "cluster=eu1": what backends are asked for beside all else
//
// They are applied in the order drop, rename, set, map; leave_out looks at labels as
// they came.
package testfilter

import (
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// New returns the filter.
func New() filter.Filter { return reference{} }

type reference struct{}

const schema = `{"type":"object","additionalProperties":false,"properties":{
  "tier":{"type":"string"},"drop":{"type":"string"},"rename":{"type":"string"},"set":{"type":"string"},
  "map":{"type":"string"},"leave_out":{"type":"string"},"merge":{"type":"string"},
  "deny_subject":{"type":"string"},"require":{"type":"string"}}}`

func (reference) Describe() filter.Description {
	return filter.Description{
		Name:         "rewrite",
		Version:      "1.0.0",
		Summary:      "The reference filter of the SDKs.",
		ConfigSchema: schema,
		Hooks:        []string{filter.HookRequest, filter.HookSelect, filter.HookRewrite},
	}
}

// entry is one item of a list: "from", "from=to" or "name:from=to".
type entry struct{ name, from, to string }

type instance struct {
	tier                                            filter.Tier
	merge                                           bool
	denySubject                                     string
	drop, rename, set, mapValues, leaveOut, require []entry
	// mapped are the labels of mapValues, each once, and byLabel their entries.
	mapped  []string
	byLabel [][]entry
	// scratch is what a Rewrite works with: instances are used concurrently.
	scratch sync.Pool
}

func (reference) Configure(c *filter.Config) (filter.Instance, error) {
	f := &instance{
		merge:       get(c, "merge") == "true",
		denySubject: get(c, "deny_subject"),
		scratch:     sync.Pool{New: func() any { return new(edit) }},
	}
	switch get(c, "tier") {
	case "", "rows":
		f.tier = filter.TierRows
	case "columns":
		f.tier = filter.TierColumns
	case "names":
		f.tier = filter.TierNames
	default:
		return nil, errors.New("tier: must be names, columns or rows")
	}
	for _, list := range []struct {
		path  string
		parts int
		to    *[]entry
	}{
		{"drop", 1, &f.drop}, {"rename", 2, &f.rename}, {"set", 2, &f.set},
		{"map", 3, &f.mapValues}, {"leave_out", 2, &f.leaveOut}, {"require", 2, &f.require},
	} {
		if err := parse(c, list.path, list.parts, list.to); err != nil {
			return nil, err
		}
	}
	if len(f.mapValues) > 0 && f.tier == filter.TierNames {
		return nil, errors.New("map: the names tier shows no values")
	}
	if len(f.leaveOut) > 0 && f.tier != filter.TierRows {
		return nil, errors.New("leave_out: needs the rows tier")
	}
	for _, e := range f.mapValues {
		k := slices.Index(f.mapped, e.name)
		if k < 0 {
			k = len(f.mapped)
			f.mapped = append(f.mapped, e.name)
			f.byLabel = append(f.byLabel, nil)
		}
		f.byLabel[k] = append(f.byLabel[k], e)
	}
	return f, nil
}

// get is the setting with a path, "" without.
func get(c *filter.Config, path string) string {
	for _, s := range c.Settings {
		if s.Path == path {
			return s.Value
		}
	}
	return ""
}

func parse(c *filter.Config, path string, parts int, to *[]entry) error {
	for part := range strings.SplitSeq(get(c, path), ",") {
		e, ok := entry{from: part}, true
		if parts == 3 {
			e.name, e.from, ok = strings.Cut(part, ":")
		}
		if parts >= 2 && ok {
			e.from, e.to, ok = strings.Cut(e.from, "=")
		}
		switch {
		case part == "":
		case !ok || e.from == "" || parts == 3 && e.name == "":
			return errors.New(path + `: cannot read "` + part + `"`)
		default:
			*to = append(*to, e)
		}
	}
	return nil
}

// Plan names every label that Rewrite may change. In the columns tier values alone are
// shown: what is done to names is left to the host, which does it before.
func (f *instance) Plan() filter.Plan {
	p := filter.Plan{Tier: f.tier, Pure: true, Merge: f.merge, Drops: len(f.leaveOut) > 0}
	if f.tier == filter.TierColumns {
		for _, e := range f.drop {
			p.Operations = append(p.Operations, filter.Operation{Drop: []string{e.from}})
		}
		for _, e := range f.rename {
			p.Operations = append(p.Operations, filter.Operation{Rename: &filter.Rename{From: e.from, To: e.to}})
		}
		for _, e := range f.set {
			p.Operations = append(p.Operations, filter.Operation{Set: &filter.Label{Name: e.from, Value: e.to}})
		}
		p.Columns = f.mapped
		if len(f.mapped) == 0 {
			p.Tier = filter.TierNone
		}
	} else {
		for _, e := range f.drop {
			p.Writes = append(p.Writes, e.from)
		}
		for _, e := range f.rename {
			p.Reads = append(p.Reads, e.from)
			p.Writes = append(p.Writes, e.from, e.to)
		}
		for _, e := range f.set {
			p.Writes = append(p.Writes, e.from)
		}
	}
	p.Reads = append(p.Reads, f.mapped...)
	p.Writes = append(p.Writes, f.mapped...)
	for _, e := range f.leaveOut {
		p.Reads = append(p.Reads, e.from)
	}
	if f.denySubject != "" {
		p.Hooks = append(p.Hooks, filter.HookRequest)
	}
	if len(f.require) > 0 {
		p.Hooks = append(p.Hooks, filter.HookSelect)
	}
	return p
}

// Request denies one subject and binds all others to the tenant of their claim.
func (f *instance) Request(c *filter.RequestCall) (*filter.RequestReply, error) {
	if c.Caller.Subject == f.denySubject {
		return &filter.RequestReply{Deny: &filter.Denial{Status: 403, Message: c.Caller.Subject + " may not query"}}, nil
	}
	for _, s := range c.Caller.ClaimSettings {
		if s.Path == "tenant" && s.Value != "" {
			return &filter.RequestReply{
				Enforce: []filter.Matcher{{Type: filter.MatchEqual, Name: "tenant", Value: s.Value}},
				Tenants: []string{s.Value},
			}, nil
		}
	}
	return &filter.RequestReply{Deny: &filter.Denial{Status: 403, Message: "no tenant is known"}}, nil
}

// Select narrows what backends are asked.
func (f *instance) Select(*filter.SelectCall) (*filter.SelectReply, error) {
	var r filter.SelectReply
	for _, e := range f.require {
		r.Require = append(r.Require, filter.Matcher{Type: filter.MatchEqual, Name: e.from, Value: e.to})
	}
	return &r, nil
}

// mapValue is asked once for each distinct value of label k.
func (f *instance) mapValue(k int, value string) string {
	for i := range f.byLabel[k] {
		if e := &f.byLabel[k][i]; e.from == value {
			return e.to
		}
	}
	return value
}

// Rewrite decides per group which columns there are, and per distinct value what it
// becomes: rows are only gone through where values change.
func (f *instance) Rewrite(in *frame.Frame, out *frame.Reply) error {
	e := f.scratch.Get().(*edit)
	defer f.scratch.Put(e)
	e.begin(in, out, len(f.mapped))
	for i := range in.Groups() {
		e.group(i)
		for k := range f.leaveOut {
			e.leaveOut(f.leaveOut[k].from, f.leaveOut[k].to)
		}
		if f.tier != filter.TierColumns {
			for k := range f.drop {
				e.drop(f.drop[k].from)
			}
			for k := range f.rename {
				e.rename(f.rename[k].from, f.rename[k].to)
			}
			for k := range f.set {
				e.set(f.set[k].from, f.set[k].to)
			}
		}
		for k, name := range f.mapped {
			e.mapValues(name, k, f)
		}
		e.end()
	}
	return nil
}
