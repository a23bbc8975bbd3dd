// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package labelrewrite is a filter that gives labels other names and values, so that
// backends that name things differently are queried alike. What can be turned round
// exactly (rename, drop, keep, set, map) is left to the host as operations; what
// cannot (regular expressions, Prometheus' relabelling) is done here.
package labelrewrite

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// New returns the filter.
func New() filter.Filter { return labelRewrite{} }

type labelRewrite struct{}

const schema = `{
  "type": "object", "additionalProperties": false,
  "description": "rename, drop, keep, map and set are done in this order, then the rules in theirs",
  "properties": {
    "rename": {"type": "object", "additionalProperties": {"type": "string"}, "description": "new names by old ones; the new one takes the old one's value also where that is absent"},
    "drop": {"type": "array", "items": {"type": "string"}, "description": "labels to take away"},
    "keep": {"type": "array", "items": {"type": "string"}, "description": "labels to leave, alone of all"},
    "map": {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": {"type": "string"}}, "description": "by label, new values by old ones; others stay"},
    "set": {"type": "object", "additionalProperties": {"type": "string"}, "description": "values of labels on every series"},
    "rules": {"type": "array", "description": "in order, each with one key", "items": {"type": "object", "additionalProperties": false, "maxProperties": 1, "minProperties": 1, "properties": {
      "rename": {"type": "object", "properties": {"from": {"type": "string"}, "to": {"type": "string"}}},
      "drop": {"type": "array", "items": {"type": "string"}},
      "keep": {"type": "array", "items": {"type": "string"}},
      "map": {"type": "object", "properties": {"name": {"type": "string"}, "values": {"type": "object"}}},
      "set": {"type": "object", "properties": {"name": {"type": "string"}, "value": {"type": "string"}}},
      "replace": {"type": "object", "properties": {"source": {"type": "string"}, "regex": {"type": "string"}, "target": {"type": "string"}, "replacement": {"type": "string"}}},
      "relabel": {"type": "object", "description": "one entry of Prometheus' relabel_configs"}}}},
    "protect": {"type": "array", "items": {"type": "string"}, "description": "labels that no regular expression over names may touch, such as that of the tenant"},
    "merge": {"type": "boolean", "description": "series that become equal are one; otherwise that is an error"}
  }
}`

func (labelRewrite) Describe() filter.Description {
	return filter.Description{
		Name: "label_rewrite", Version: "1.0.0", Role: filter.RoleRewrite, ConfigSchema: schema, Hooks: []string{filter.HookRewrite},
		Summary: "renames, drops, sets and maps labels, in both directions",
	}
}

type config struct {
	Rename  map[string]string            `json:"rename"`
	Drop    []string                     `json:"drop"`
	Keep    []string                     `json:"keep"`
	Map     map[string]map[string]string `json:"map"`
	Set     map[string]string            `json:"set"`
	Rules   []rule                       `json:"rules"`
	Protect []string                     `json:"protect"`
	Merge   bool                         `json:"merge"`
}

type rule struct {
	Rename  *filter.Rename `json:"rename"`
	Drop    []string       `json:"drop"`
	Keep    []string       `json:"keep"`
	Map     *mapRule       `json:"map"`
	Set     *filter.Label  `json:"set"`
	Replace *replaceRule   `json:"replace"`
	Relabel *relabelRule   `json:"relabel"`
}

type mapRule struct {
	Name   string            `json:"name"`
	Values map[string]string `json:"values"`
}

type replaceRule struct {
	Source      string  `json:"source"`
	Regex       *string `json:"regex"`
	Target      string  `json:"target"`
	Replacement *string `json:"replacement"`
}

type instance struct {
	plan  filter.Plan
	steps []step
	// names that a step looks at or changes; any: it may be every name.
	names   map[string]bool
	any     bool
	protect map[string]bool
	pool    sync.Pool
}

func (labelRewrite) Configure(c *filter.Config) (filter.Instance, error) {
	var cfg config
	dec := json.NewDecoder(bytes.NewReader(c.JSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&cfg); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("config of %s: %w", c.Name, err)
	}
	rules, err := cfg.first()
	if err != nil {
		return nil, err
	}
	i := &instance{names: map[string]bool{}, protect: map[string]bool{}}
	for _, n := range cfg.Protect {
		i.protect[n] = true
	}
	for k := range rules {
		if err := i.add(&rules[k]); err != nil {
			return nil, err
		}
	}
	for k := range cfg.Rules {
		if err := i.add(&cfg.Rules[k]); err != nil {
			return nil, fmt.Errorf("rules[%d].%w", k, err)
		}
	}
	i.complete(&cfg)
	return i, nil
}

// first are the keys beside rules, in the order that is promised for them. Within
// one key order must not matter, because a mapping has none.
func (cfg *config) first() ([]rule, error) {
	var out []rule
	to := map[string]string{}
	for _, from := range slices.Sorted(maps.Keys(cfg.Rename)) {
		name := cfg.Rename[from]
		if other, twice := to[name]; twice {
			return nil, fmt.Errorf("rename: %q and %q both become %q", other, from, name)
		}
		if _, chain := cfg.Rename[name]; chain && name != from {
			return nil, fmt.Errorf("rename: %q becomes %q, which is renamed itself: use rules, which have an order", from, name)
		}
		to[name] = from
		out = append(out, rule{Rename: &filter.Rename{From: from, To: name}})
	}
	if len(cfg.Drop) > 0 {
		out = append(out, rule{Drop: cfg.Drop})
	}
	if len(cfg.Keep) > 0 {
		out = append(out, rule{Keep: cfg.Keep})
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Map)) {
		out = append(out, rule{Map: &mapRule{Name: name, Values: cfg.Map[name]}})
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Set)) {
		out = append(out, rule{Set: &filter.Label{Name: name, Value: cfg.Set[name]}})
	}
	return out, nil
}

// add puts a rule behind the others: as an operation as long as everything before
// it is one, as a step after that.
func (i *instance) add(r *rule) error {
	s, err := r.step(i.protect)
	if err != nil {
		return err
	}
	for _, n := range s.writes {
		if i.protect[n] {
			return fmt.Errorf("protect: %q is protected, and a rule writes it", n)
		}
	}
	if s.operation != nil && len(i.steps) == 0 {
		i.plan.Operations = append(i.plan.Operations, *s.operation)
		return nil
	}
	i.steps = append(i.steps, s)
	return nil
}

// complete makes the plan.
func (i *instance) complete(cfg *config) {
	p := &i.plan
	p.Merge, p.Pure = cfg.Merge, true
	if len(i.steps) == 0 {
		return
	}
	p.Tier = filter.TierColumns
	for _, s := range i.steps {
		p.Drops = p.Drops || s.drops
		p.WritesAny = p.WritesAny || s.writesAny
		i.any = i.any || s.writesAny
		for _, n := range s.reads {
			i.names[n] = true
			if !slices.Contains(p.Reads, n) {
				p.Reads = append(p.Reads, n)
			}
		}
		for _, n := range s.writes {
			i.names[n] = true
			if !slices.Contains(p.Writes, n) {
				p.Writes = append(p.Writes, n)
			}
		}
		if len(s.reads) != 1 || len(s.writes) != 1 || s.reads[0] != s.writes[0] || s.drops || s.writesAny || s.fills {
			p.Tier = filter.TierRows
		}
	}
	if p.Tier == filter.TierColumns {
		p.Columns = p.Writes
	}
	if p.WritesAny {
		p.Keeps = cfg.Protect
	}
	i.pool.New = func() any { return &evaluation{i: i} }
}

func (i *instance) Plan() filter.Plan { return i.plan }

// Rewrite implements filter.Rewriter.
func (i *instance) Rewrite(in *frame.Frame, out *frame.Reply) error {
	e := i.pool.Get().(*evaluation)
	defer i.pool.Put(e)
	if i.plan.Tier == filter.TierColumns {
		e.columns(in, out)
	} else {
		e.rows(in, out)
	}
	return nil
}
