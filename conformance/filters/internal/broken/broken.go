// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package broken holds filters, and hosts around them, with one deliberate fault each,
// and correct ones of every tier beside them. They certify the suite of filters: each
// fault has to be caught by the requirement that names it.
package broken

import (
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/filters"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// Case is a filter with what the suite is told of it.
type Case struct {
	Name string
	// Kills are the requirements that have to catch it; none of a correct one.
	Kills []string
	Role  filter.Role
	// Instance is carried in process, by Carry if that is not nil.
	Instance filter.Instance
	Carry    func(filters.Filter) filters.Filter
	// Host, if not nil, is what the host gets in place of the filter, and Spoil what it
	// makes of a store, given a correct host.
	Host       func(filters.Filter) filters.Filter
	Spoil      func(inner backend.Backend, host func(backend.Backend) backend.Backend) backend.Backend
	Idempotent bool
	Callers    []filters.Caller
	Series     []labels.Labels
	// Release, if not nil, lets calls go that hang.
	Release func()
}

// instance is a filter by its meaning.
type instance struct {
	plan filter.Plan
	// rows changes label sets in place, and says which stay; nil are all.
	rows func(rows []map[string]string) (keep []bool, err error)
	// names says what becomes of a list of names: new names of columns, "" to remove
	// one; and labels to set.
	names func(names []string) (rename, set map[string]string, keep bool)
	// column says what a value of a column sets.
	column  func(name, value string) map[string]string
	rewrite func(in *frame.Frame, out *frame.Reply) error // in place of all of these
	request func(c *filter.RequestCall) (*filter.RequestReply, error)
	sel     func(c *filter.SelectCall) (*filter.SelectReply, error)
}

func (i *instance) Plan() filter.Plan { return i.plan }

func (i *instance) Request(c *filter.RequestCall) (*filter.RequestReply, error) { return i.request(c) }

func (i *instance) Select(c *filter.SelectCall) (*filter.SelectReply, error) { return i.sel(c) }

func (i *instance) Rewrite(in *frame.Frame, out *frame.Reply) error {
	switch {
	case i.rewrite != nil:
		return i.rewrite(in, out)
	case i.names != nil:
		i.rewriteNames(in, out)
		return nil
	case i.column != nil:
		i.rewriteColumns(in, out)
		return nil
	}
	return i.rewriteRows(in, out)
}

func symbol(in *frame.Frame, out *frame.Reply, name string) uint32 {
	if id := in.FindName(name); id != 0 {
		return id
	}
	return out.Intern(name)
}

func (i *instance) rewriteNames(in *frame.Frame, out *frame.Reply) {
	for k := range in.Groups() {
		g := in.Group(k)
		var names []string
		for c := range g.Columns() {
			names = append(names, in.Symbol(g.Name(c)))
		}
		rename, set, keep := i.names(names)
		if len(rename)+len(set) == 0 && keep {
			continue
		}
		out.Group(k)
		if !keep {
			out.DropAll()
			continue
		}
		taken := map[string]bool{}
		for n := range set {
			taken[n] = true
		}
		for _, to := range rename {
			taken[to] = true
		}
		for c, n := range names {
			switch to, ok := rename[n]; {
			case ok && to != "":
				out.Input(symbol(in, out, to), c)
			case !ok && !taken[n]:
				out.Input(g.Name(c), c)
			}
		}
		for n, v := range set {
			out.Constant(symbol(in, out, n), out.Intern(v))
		}
	}
}

func (i *instance) rewriteColumns(in *frame.Frame, out *frame.Reply) {
	for k := range in.Groups() {
		g := in.Group(k)
		name := in.Symbol(g.Name(0))
		columns := map[string][]uint32{}
		for r := range g.Rows() {
			for n, v := range i.column(name, in.Symbol(g.Column(0).Ref(r))) {
				if columns[n] == nil {
					if len(columns) == 0 {
						out.Group(k)
					}
					columns[n] = out.Refs(symbol(in, out, n))
					if n == name { // others keep theirs
						for r := range columns[n] {
							columns[n][r] = g.Column(0).Ref(r)
						}
					}
				}
				columns[n][r] = out.Intern(v)
			}
		}
	}
}

func (i *instance) rewriteRows(in *frame.Frame, out *frame.Reply) error {
	var before, after []map[string]string
	for k := range in.Groups() {
		g := in.Group(k)
		for r := range g.Rows() {
			m := map[string]string{}
			for c := range g.Columns() {
				if v := in.Symbol(g.Column(c).Ref(r)); v != "" {
					m[in.Symbol(g.Name(c))] = v
				}
			}
			before, after = append(before, m), append(after, maps.Clone(m))
		}
	}
	keep, err := i.rows(after)
	if err != nil {
		return err
	}
	for k := range in.Groups() {
		g := in.Group(k)
		same := true
		names := map[string]bool{}
		for r := range g.Rows() {
			at := g.First() + r
			same = same && maps.Equal(before[at], after[at]) && (keep == nil || keep[at])
			for n, v := range after[at] {
				names[n] = names[n] || v != ""
			}
		}
		if same {
			continue
		}
		out.Group(k)
		for _, n := range slices.Sorted(maps.Keys(names)) {
			refs := out.Refs(symbol(in, out, n))
			for r := range refs {
				refs[r] = out.Intern(after[g.First()+r][n])
			}
		}
		for r := range g.Rows() {
			if keep != nil && !keep[g.First()+r] {
				out.Drop(r)
			}
		}
	}
	return nil
}

// zone is what the filter of tier rows is for: a label made of two others, and series
// of one tenant left out.
func zone(m map[string]string) (keep bool) {
	if m["cluster"] != "" && m["environment"] != "" {
		m["zone"] = m["cluster"] + "-" + m["environment"]
	}
	return m["tenant"] != "secret"
}

func eachRow(f func(map[string]string) bool) func([]map[string]string) ([]bool, error) {
	return func(rows []map[string]string) ([]bool, error) {
		keep := make([]bool, len(rows))
		for i, m := range rows {
			keep[i] = f(m)
		}
		return keep, nil
	}
}

func rowsPlan() filter.Plan {
	return filter.Plan{Tier: filter.TierRows, Reads: []string{"cluster", "environment", "tenant"}, Writes: []string{"zone"}, Drops: true, Pure: true}
}

func rows() *instance { return &instance{plan: rowsPlan(), rows: eachRow(zone)} }

func secret() []labels.Labels {
	return []labels.Labels{
		labels.FromStrings("__name__", "metric_1", "tenant", "secret", "series", "s"), labels.FromStrings("__name__", "metric_1", "tenant", "acme", "series", "s"),
		labels.FromStrings("__name__", "metric_1", "cluster", "eu1", "environment", "live", "zone", "old", "series", "t"),
	}
}

func names() *instance {
	return &instance{
		plan: filter.Plan{Tier: filter.TierNames, Reads: []string{"kubernetes_node"}, Writes: []string{"kubernetes_node", "node", "origin"}, Pure: true},
		names: func(names []string) (rename, set map[string]string, keep bool) {
			rename = map[string]string{}
			if slices.Contains(names, "kubernetes_node") {
				rename["kubernetes_node"] = "node"
			}
			return rename, map[string]string{"origin": "k8s"}, true
		},
	}
}

// stage maps several values to one.
func stage(_, v string) map[string]string {
	switch v {
	case "production", "live", "prd":
		return map[string]string{"environment": "prod"}
	case "gone":
		return map[string]string{"environment": ""}
	}
	return nil
}

func stages() []labels.Labels {
	var out []labels.Labels
	for _, v := range []string{"production", "live", "prd", "prod", "gone", "test"} {
		out = append(out, labels.FromStrings("__name__", "stage", "environment", v), labels.FromStrings("__name__", "stage", "environment", v, "series", v))
	}
	return out
}

func columns() *instance {
	return &instance{
		plan:   filter.Plan{Tier: filter.TierColumns, Columns: []string{"environment"}, Reads: []string{"environment"}, Writes: []string{"environment"}, Pure: true},
		column: stage,
	}
}

func operations() *instance {
	return &instance{plan: filter.Plan{Pure: true, Operations: []filter.Operation{
		{Rename: &filter.Rename{From: "instance", To: "node"}},
		{Map: &filter.MapValues{Name: "environment", Values: []filter.Pair{{From: "production", To: "prod"}, {From: "live", To: "prod"}, {From: "x1", To: ""}, {From: "", To: "none"}}}},
		{Set: &filter.Label{Name: "cluster", Value: "all"}},
		{Drop: []string{"pod"}},
		{Require: &filter.Matcher{Type: filter.MatchNotRegexp, Name: "tenant", Value: "secret|hidden"}},
	}}}
}

func merging() *instance {
	i := rows()
	i.plan.Merge, i.plan.Writes, i.plan.Operations = true, []string{"zone", "pod", "replica", "series"}, []filter.Operation{{Rename: &filter.Rename{From: "node", To: "instance"}}}
	i.rows = eachRow(func(m map[string]string) bool {
		delete(m, "pod")
		delete(m, "replica")
		delete(m, "series")
		return zone(m)
	})
	return i
}

func anyName() *instance {
	i := &instance{plan: filter.Plan{Tier: filter.TierRows, WritesAny: true, Keeps: []string{"__name__", "tenant"}, Reads: []string{}, Pure: true}}
	i.rows = eachRow(func(m map[string]string) bool {
		for n, v := range maps.Clone(m) {
			if strings.HasPrefix(n, "k8s_") {
				delete(m, n)
				m[strings.TrimPrefix(n, "k8s_")] = v
			}
		}
		return true
	})
	return i
}

func jane() filter.Caller { return filter.Caller{Method: "basic", Subject: "jane"} }

func mallory() filter.Caller { return filter.Caller{Method: "basic", Subject: "mallory"} }

// decide lets who is known see a tenant, and mallory nothing.
func decide(c *filter.RequestCall) (*filter.RequestReply, error) {
	switch {
	case c.Caller.Method == "":
		return &filter.RequestReply{Deny: &filter.Denial{Status: 401, Message: "say who you are"}}, nil
	case c.Caller.Subject == "mallory":
		return &filter.RequestReply{Deny: &filter.Denial{Message: "not you"}}, nil
	}
	return &filter.RequestReply{Enforce: []filter.Matcher{{Type: filter.MatchRegexp, Name: "tenant", Value: "acme|umbrella"}}, Tenants: []string{"acme"}, MaxSeries: 1000}, nil
}

func request() *instance {
	return &instance{plan: filter.Plan{Hooks: []string{filter.HookRequest}}, request: decide}
}

func choose(*filter.SelectCall) (*filter.SelectReply, error) {
	return &filter.SelectReply{Require: []filter.Matcher{{Type: filter.MatchNotEqual, Name: "namespace", Value: "a"}}}, nil
}

func selecting() *instance {
	i := rows()
	i.plan.Hooks, i.sel = []string{filter.HookSelect}, choose
	return i
}

func callers() []filters.Caller {
	return []filters.Caller{{Caller: jane()}, {Caller: mallory(), Denied: true}, {Denied: true}}
}

// Correct are filters without a fault, of every tier and with every hook.
func Correct() []*Case {
	return []*Case{
		{Name: "operations", Instance: operations(), Series: secret()},
		{Name: "names", Instance: names(), Series: []labels.Labels{labels.FromStrings("kubernetes_node", "k", "node", "n", "series", "x"), labels.FromStrings("kubernetes_node", "k2", "series", "y")}},
		{Name: "columns", Instance: columns(), Series: stages(), Idempotent: true},
		{Name: "rows", Instance: rows(), Series: secret(), Idempotent: true},
		{Name: "merging rows", Instance: merging(), Series: secret()},
		{Name: "any name", Instance: anyName(), Series: []labels.Labels{labels.FromStrings("__name__", "m", "k8s_pod", "p", "series", "1")}},
		{Name: "request", Instance: request(), Role: filter.RoleAuth, Callers: callers()},
		{Name: "tenancy", Instance: request(), Role: filter.RoleTenancy, Callers: callers()},
		{Name: "select", Instance: selecting(), Series: secret()},
	}
}
