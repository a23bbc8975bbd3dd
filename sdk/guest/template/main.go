// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command template is a filter that renames a label and gives all series another one, as
// a program that Promweave spawns or, with -buildmode=c-shared, as a WASM module.
// Settings: from, to, and cluster, the value of the label "cluster".
package main

import (
	"errors"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/plugin"
)

// It is registered here because the main function of a module is never run.
func init() { plugin.Filter(func() filter.Filter { return rename{} }) }

func main() { plugin.Main() }

type rename struct{}

// schema says which keys there are: a configuration with others is wrong.
const schema = `{"type":"object","additionalProperties":false,"required":["from","to"],
	"properties":{"from":{"type":"string"},"to":{"type":"string"},"cluster":{"type":"string"}}}`

func (rename) Describe() filter.Description {
	return filter.Description{Name: "rename", Version: "0.1.0", Summary: "Renames a label.", ConfigSchema: schema, Hooks: []string{filter.HookRewrite}}
}

type instance struct{ from, to, cluster string }

func (rename) Configure(c *filter.Config) (filter.Instance, error) {
	f := &instance{}
	settings := map[string]*string{"from": &f.from, "to": &f.to, "cluster": &f.cluster}
	for _, s := range c.Settings {
		if p := settings[s.Path]; p != nil {
			*p = s.Value
		}
	}
	if f.from == "" || f.to == "" {
		return nil, errors.New("from, to: are missing")
	}
	return f, nil
}

// Plan asks for the names of labels alone: nothing here depends on a value.
func (f *instance) Plan() filter.Plan {
	return filter.Plan{Tier: filter.TierNames, Pure: true, Reads: []string{f.from}, Writes: []string{f.from, f.to, "cluster"}}
}

// Rewrite gets each list of label names of a batch once, as a group.
func (f *instance) Rewrite(in *frame.Frame, out *frame.Reply) error {
	symbol := func(name string) uint32 {
		if id := in.FindName(name); id != 0 {
			return id
		}
		return out.Intern(name)
	}
	from, to, cluster := in.FindName(f.from), symbol(f.to), symbol("cluster")
	for i := range in.Groups() {
		out.Group(i)
		g := in.Group(i)
		for c := range g.Columns() {
			switch name := g.Column(c).Name; name {
			case from:
				out.Input(to, c)
			case to, cluster: // replaced
			default:
				out.Input(name, c)
			}
		}
		if f.cluster != "" {
			out.Constant(cluster, out.Intern(f.cluster))
		}
	}
	return nil
}
