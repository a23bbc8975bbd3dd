// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filters

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/filter"
)

// call is one of the request or of the select hook.
type call struct {
	request *filter.RequestCall
	sel     *filter.SelectCall
	// denied: it must be.
	denied bool
}

func (c call) clone() call {
	if c.sel != nil {
		x := *c.sel
		x.Matchers, x.Tenants = slices.Clone(x.Matchers), slices.Clone(x.Tenants)
		return call{sel: &x, denied: c.denied}
	}
	x := *c.request
	x.Selectors = slices.Clone(x.Selectors)
	for i := range x.Selectors {
		x.Selectors[i] = slices.Clone(x.Selectors[i])
	}
	x.Caller.Claims = slices.Clone(x.Caller.Claims)
	x.Caller.ClaimSettings = slices.Clone(x.Caller.ClaimSettings)
	x.Caller.Headers = slices.Clone(x.Caller.Headers)
	for i := range x.Caller.Headers {
		x.Caller.Headers[i].Values = slices.Clone(x.Caller.Headers[i].Values)
	}
	return call{request: &x, denied: c.denied}
}

func (c call) String() string {
	if c.sel != nil {
		return short(fmt.Sprintf("select from %s with %v for tenants %v", c.sel.Backend, c.sel.Matchers, c.sel.Tenants))
	}
	who := "nobody"
	if k := c.request.Caller; k.Method != "" {
		who = fmt.Sprintf("%s:%s with claims %s and headers %v", k.Method, k.Subject, k.Claims, k.Headers)
	}
	return short(fmt.Sprintf("request %s %q by %s", c.request.Kind, short(c.request.Query), who))
}

// decide makes a call and returns its decision as text, without bounds of time: those
// may move with the clock. An error is a decision too.
func (p *probe) decide(c call) (string, error) {
	if c.sel != nil {
		r, _, err := p.choose(c.sel)
		if err != nil {
			return "an error", err
		}
		return fmt.Sprintf("deny %s, none %v, require %v", denial(r.Deny), r.None, r.Require), nil
	}
	r, _, err := p.request(c.request)
	if err != nil {
		return "an error", err
	}
	if r.Deny != nil {
		return "deny " + denial(r.Deny), nil
	}
	return fmt.Sprintf("enforce %v, tenants %q, admin %v, time range %v, limits %d %d %d, subject %q",
		r.Enforce, r.Tenants, r.Admin, r.HasTimeRange, r.MaxSeries, r.MaxSamples, r.MaxBytes, r.Subject), nil
}

func denial(d *filter.Denial) string {
	if d == nil {
		return "nothing"
	}
	return fmt.Sprintf("with status %d", d.Status)
}

var kinds = []string{"instant", "range", "series", "label_names", "label_values", "exemplars", "read", "explain", "metadata", "rules", "targets", "status", "no such kind"}

func up() [][]filter.Matcher { return [][]filter.Matcher{{{Name: "__name__", Value: "up"}}} }

func ask(kind, query string, who filter.Caller) *filter.RequestCall {
	return &filter.RequestCall{Kind: kind, Query: query, Selectors: up(), Start: 1_700_000_000_000, End: 1_700_000_360_000, Step: 15_000, Window: 300_000, Caller: who}
}

func (p *probe) callers() []Caller {
	claims := []byte(`{"tenant":"acme","groups":["ops"]}`)
	settings := []filter.Setting{{Path: "tenant", Value: "acme"}, {Path: "groups[0]", Value: "ops"}}
	return append([]Caller{
		{},
		{Caller: filter.Caller{Method: "basic", Subject: "jane"}},
		{Caller: filter.Caller{Method: "basic"}},
		{Caller: filter.Caller{Method: "bearer", Subject: "jane", Claims: claims, ClaimSettings: settings}},
		{Caller: filter.Caller{Method: "mtls", Subject: "é*|,", Headers: []filter.Header{{Name: "thanos-tenant", Values: []string{"acme"}}}}},
		{Caller: filter.Caller{Method: "basic", Subject: "admin", Headers: []filter.Header{{Name: "thanos-tenant", Values: []string{"*"}}, {Name: "x-empty"}}}},
	}, p.s.Callers...)
}

// calls are ordinary ones of the hooks that the plan names.
func (p *probe) calls() (out []call) {
	if p.hook(filter.HookRequest) {
		for _, c := range p.callers() {
			for _, kind := range []string{"instant", "range", "series"} {
				out = append(out, call{request: ask(kind, "up", c.Caller), denied: c.Denied})
			}
		}
	}
	if p.hook(filter.HookSelect) {
		for _, ms := range [][]filter.Matcher{
			nil, {{Name: "__name__", Value: "up"}}, {{Type: filter.MatchRegexp, Name: "é", Value: "a|b"}, {Type: filter.MatchNotEqual, Name: "x"}},
			{{Type: filter.MatchNotRegexp, Name: "tenant", Value: ".*"}},
		} {
			for _, tenants := range [][]string{nil, {"acme"}, {"acme", "é"}} {
				out = append(out, call{sel: &filter.SelectCall{Backend: Backend, Matchers: ms, MaxTime: 1 << 40, Tenants: tenants}})
			}
		}
	}
	for i := range out {
		out[i] = out[i].clone() // none shares memory with another
	}
	return out
}

// oddCalls are those that callers with bad intentions come up with, within what a host lets through.
func (p *probe) oddCalls() (out []call) {
	if p.hook(filter.HookRequest) {
		long := strings.Repeat("x", 200<<10)
		many := [][]filter.Matcher{}
		for i := range 1500 {
			many = append(many, []filter.Matcher{{Type: filter.MatchType(i % 4), Name: fmt.Sprint("l", i), Value: "(a|b)*"}})
		}
		who := filter.Caller{Method: "bearer", Subject: "jane"}
		with := func(f func(*filter.RequestCall)) {
			r := ask("range", "up", who)
			f(r)
			out = append(out, call{request: r})
		}
		with(func(r *filter.RequestCall) { r.Query = long })
		with(func(r *filter.RequestCall) { r.Query, r.Kind, r.Selectors = "", "", nil })
		with(func(r *filter.RequestCall) { r.Selectors = many })
		with(func(r *filter.RequestCall) { r.Selectors = [][]filter.Matcher{nil, {}, {{Type: 9, Name: ""}}} })
		with(func(r *filter.RequestCall) { r.Start, r.End, r.Window = math.MinInt64, math.MaxInt64, math.MaxInt64 })
		with(func(r *filter.RequestCall) { r.Start, r.End, r.Step, r.Window = 5, -5, -1, -1 })
		with(func(r *filter.RequestCall) { r.Caller.Subject = long })
		with(func(r *filter.RequestCall) { r.Caller.Subject = "\x00\n\"*|" })
		for _, claims := range []string{`null`, `[]`, `{`, `{"tenant":null,"groups":{}}`, `{"tenant":[[["x"]]],"groups":"ops"}`, `{"a":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}`, `{"tenant":1e400}`} {
			with(func(r *filter.RequestCall) { r.Caller.Claims = []byte(claims) })
		}
		with(func(r *filter.RequestCall) {
			for i := range 500 {
				r.Caller.Headers = append(r.Caller.Headers, filter.Header{Name: fmt.Sprint("h", i%9), Values: []string{"", "acme", long[:100]}})
			}
		})
	}
	if p.hook(filter.HookSelect) {
		many := []filter.Matcher{}
		for i := range 1500 {
			many = append(many, filter.Matcher{Type: filter.MatchType(i % 4), Name: "a", Value: fmt.Sprint(i)})
		}
		for _, c := range []*filter.SelectCall{
			{}, {Backend: Backend, Matchers: many, MinTime: math.MinInt64, MaxTime: math.MaxInt64}, {Backend: "é\x00", MinTime: 5, MaxTime: -5},
			{Backend: Backend, Tenants: []string{"", strings.Repeat("x", 100<<10)}}, {Matchers: []filter.Matcher{{Type: 9}, {Type: filter.MatchRegexp, Name: "a", Value: "("}}},
		} {
			out = append(out, call{sel: c})
		}
	}
	return out
}

func decisions() []Requirement {
	lacks := func(hook string) func(*probe) string {
		return func(p *probe) string {
			if !p.hook(hook) {
				return "the plan does not name the hook " + hook
			}
			return ""
		}
	}
	either := func(p *probe) string {
		if !p.hook(filter.HookRequest) && !p.hook(filter.HookSelect) {
			return "the plan names neither the request nor the select hook"
		}
		return ""
	}
	one := func(level report.Level, id, rule string, unless func(*probe) string, check func(*probe)) Requirement {
		return Requirement{ID: id, Profile: Decisions, Level: level, Rule: rule, Since: "1.0", unless: unless, check: check}
	}
	named := func(p *probe) string {
		if !slices.ContainsFunc(p.s.Callers, func(c Caller) bool { return c.Denied }) {
			return "the harness names no caller who must be denied"
		}
		return ""
	}
	request := lacks(filter.HookRequest)
	return []Requirement{
		one(report.Must, "F-request.answers", "A call of the request or of the select hook answers, or says an error; it is no fault.", either, (*probe).answers),
		one(report.Must, "F-deny.final", "Deny ends the request: who asks the same again gets the same decision, whoever asks in between.", request, (*probe).final),
		one(report.Must, "F-deny.callers", "Who must be denied is denied, whatever kind of request and whatever query.", first(request, named), (*probe).deniedCallers),
		one(report.Should, "F-deny.status", "The status of a denial is one of HTTP for errors, or 0 for 403.", either, (*probe).status),
		one(report.Must, "F-admin.nobody", "Admin: what belongs to the operator is not for a caller whom nobody knows.", request, (*probe).nobody),
		one(report.Must, "F-enforce.compiles", "Enforce must hold on every series: its matchers have a name and a type that there is, and compile.", request, (*probe).enforces),
		one(report.Must, "F-limits.lower", "Limits are those that are lower than the configured ones; 0 is none, and none is negative.", request, (*probe).limits),
		one(report.Should, "F-tenancy.enforces", "A tenancy filter enforces a matcher on every request that it allows, but for the operator's.", first(request, func(p *probe) string {
			if p.s.Role != filter.RoleTenancy {
				return "the filter's role is not tenancy"
			}
			return ""
		}), (*probe).bounded),
		one(report.Must, "F-select.compiles", "Require must hold on the backend's own labels: its matchers have a name and a type that there is, and compile.", lacks(filter.HookSelect), (*probe).requires),
		one(report.Must, "F-select.stable", "None and Deny, and what is required, are the same for the same selection.", lacks(filter.HookSelect), (*probe).final),
	}
}

func (p *probe) answers() {
	for _, c := range p.calls() {
		if _, err := p.decide(c); p.fault(err) {
			p.fail(c.String(), "%v", err)
		}
		if p.enough() {
			return
		}
	}
}

// final asks everything several times, in different orders.
func (p *probe) final() {
	calls := slices.DeleteFunc(p.calls(), func(c call) bool { return (c.sel != nil) != (p.r.ID == "F-select.stable") })
	want := make([]string, len(calls))
	for i, c := range calls {
		want[i], _ = p.decide(c.clone())
	}
	r := p.random()
	for round := range 3 {
		for _, i := range r.Perm(len(calls)) {
			if got, _ := p.decide(calls[i].clone()); got != want[i] {
				p.failure(report.Failure{
					Request: calls[i].String(), Message: fmt.Sprintf("another decision when it is asked again, in round %d", round+2),
					Expected: []string{want[i]}, Actual: []string{got},
				})
			}
			if p.enough() {
				return
			}
		}
	}
}

func (p *probe) deniedCallers() {
	for _, who := range p.s.Callers {
		if !who.Denied {
			continue
		}
		for _, kind := range kinds {
			for _, query := range []string{"up", "", "sum(rate(x[5m])) by (tenant)", "1"} {
				r := ask(kind, query, who.Caller)
				if query == "" || query == "1" {
					r.Selectors, r.Start, r.End, r.Window = nil, 0, 0, 0
				}
				// An error ends a request as a denial does.
				if reply, _, err := p.request(r); err == nil && reply.Deny == nil {
					p.fail(call{request: r}.String(), "it is allowed, and must be denied")
				}
				if p.enough() {
					return
				}
			}
		}
	}
}

// replies are those of the request hook to all ordinary and odd calls.
func (p *probe) replies(judge func(c call, r *filter.RequestReply)) {
	for _, c := range append(p.calls(), p.oddCalls()...) {
		if c.request == nil {
			continue
		}
		if r, _, err := p.request(c.request); err == nil {
			judge(c, r)
		}
		if p.enough() {
			return
		}
	}
}

func (p *probe) selections(judge func(c call, r *filter.SelectReply)) {
	for _, c := range append(p.calls(), p.oddCalls()...) {
		if c.sel == nil {
			continue
		}
		if r, _, err := p.choose(c.sel); err == nil {
			judge(c, r)
		}
		if p.enough() {
			return
		}
	}
}

func (p *probe) status() {
	judge := func(c call, d *filter.Denial) {
		if d != nil && d.Status != 0 && (d.Status < 400 || d.Status > 599) {
			p.fail(c.String(), "it is denied with the status %d, which is none of an error: hosts make it 403", d.Status)
		}
	}
	p.replies(func(c call, r *filter.RequestReply) { judge(c, r.Deny) })
	p.selections(func(c call, r *filter.SelectReply) { judge(c, r.Deny) })
}

func (p *probe) nobody() {
	for _, kind := range kinds {
		for _, headers := range [][]filter.Header{nil, {{Name: "thanos-tenant", Values: []string{"*"}}}, {{Name: "x-forwarded-user", Values: []string{"admin"}}}} {
			r := ask(kind, "up", filter.Caller{Headers: headers})
			if reply, _, err := p.request(r); err == nil && reply.Deny == nil && reply.Admin {
				p.fail(call{request: r}.String(), "nobody knows who asks, and gets Admin")
			}
			if p.enough() {
				return
			}
		}
	}
}

func (p *probe) enforces() {
	p.replies(func(c call, r *filter.RequestReply) {
		for _, m := range r.Enforce {
			if _, err := compile(m); err != nil && r.Deny == nil {
				p.fail(c.String(), "enforce: %v", err)
			}
		}
	})
}

func (p *probe) bounded() {
	p.replies(func(c call, r *filter.RequestReply) {
		if r.Deny == nil && !r.Admin && len(r.Enforce) == 0 {
			p.fail(c.String(), "it is allowed without Admin, and nothing is enforced: it sees the series of every tenant")
		}
	})
}

func (p *probe) requires() {
	p.selections(func(c call, r *filter.SelectReply) {
		for _, m := range r.Require {
			if _, err := compile(m); err != nil && r.Deny == nil {
				p.fail(c.String(), "require: %v", err)
			}
		}
	})
}

func (p *probe) limits() {
	p.replies(func(c call, r *filter.RequestReply) {
		for what, n := range map[string]uint64{"series": r.MaxSeries, "samples": r.MaxSamples, "bytes": r.MaxBytes} {
			if n > math.MaxInt64 && r.Deny == nil {
				p.fail(c.String(), "the limit of %s is %d, which is a negative number that was converted", what, n)
			}
		}
	})
}

func hostile() []Requirement {
	one := func(level report.Level, id, rule string, unless func(*probe) string, check func(*probe)) Requirement {
		return Requirement{ID: id, Profile: Hostile, Level: level, Rule: rule, Since: "1.0", unless: unless, check: check}
	}
	memory := one(report.Must, "F-hostile.memory", "Calls one after the other do not take ever more memory.", uncalled, (*probe).memory)
	memory.lacking = func(p *probe) string {
		if p.s.Memory == nil {
			return "the harness does not know the filter's memory"
		}
		return ""
	}
	return []Requirement{
		one(report.Must, "F-hostile.rows", "A frame has at most 65,536 rows: none of them is too many for a filter, whatever time it takes.", tierless, (*probe).manyRows),
		one(report.Should, "F-hostile.most", "A frame of 65,536 rows is answered within the host's limit.", tierless, (*probe).mostRows),
		one(report.Must, "F-hostile.values", "A value may have a megabyte.", tierless, (*probe).longValues),
		one(report.Must, "F-hostile.labels", "A row may have thousands of labels.", tierless, (*probe).manyLabels),
		one(report.Must, "F-hostile.text", "Names and values are any valid UTF-8.", tierless, (*probe).anyText),
		one(report.Must, "F-hostile.requests", "Callers may say anything: no request and no selection is a fault.", func(p *probe) string {
			if !p.hook(filter.HookRequest) && !p.hook(filter.HookSelect) {
				return "the plan names neither the request nor the select hook"
			}
			return ""
		}, (*probe).anyCall),
		one(report.Must, "F-hostile.repeated", "After thousands of calls a filter answers as after the first.", uncalled, (*probe).repeated),
		memory,
		one(report.Must, "F-hostile.cancelled", "A call ends when its context is done.", uncalled, (*probe).cancelled),
	}
}

// late is a fault that says no more than that the machine, or the filter, is slow.
func late(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

func (p *probe) rowsOf(n int) []labels.Labels {
	base := p.behind(p.sets(p.random(), 64, true))
	if len(base) == 0 {
		return nil
	}
	out := make([]labels.Labels, n)
	for i := range out {
		b := labels.NewBuilder(base[i%len(base)])
		b.Set("series", fmt.Sprint(i))
		if i%16 == 0 && len(p.plan.Columns) > 0 {
			b.Set(p.plan.Columns[0], fmt.Sprint("v", i))
		}
		out[i] = b.Labels()
	}
	return out
}

func (p *probe) manyRows() {
	for _, n := range []int{hostRows, mostHostRows, 1 << 16} {
		rows := p.rowsOf(n)
		if _, err := p.rewrite(rows); p.fault(err) && (n == hostRows || !late(err)) {
			p.fail(fmt.Sprintf("rewrite of a frame of %d rows", len(rows)), "%v", err)
		}
	}
}

func (p *probe) mostRows() {
	rows := p.rowsOf(1 << 16)
	if w, err := p.rewrite(rows); p.fault(err) || w != nil && w.took > p.limit {
		p.fail(fmt.Sprintf("rewrite of a frame of %d rows", len(rows)), "no answer within %v: %v", p.limit, err)
	}
}

// hostileNames are some of the names that the filter looks at or writes.
func (p *probe) hostileNames() []string {
	names, _, _ := p.words()
	names = append(slices.Concat(p.plan.Columns, p.plan.Reads, p.plan.Writes), names...)
	return names[:min(len(names), 8)]
}

func (p *probe) longValues() {
	for _, n := range p.hostileNames() {
		for _, unit := range []string{"x", "é", "a,b;", "\x00"} {
			v := strings.Repeat(unit, (1<<20)/len(unit))
			if _, err := p.rewrite([]labels.Labels{labels.FromStrings("__name__", "m", n, v)}); p.fault(err) {
				p.fail(fmt.Sprintf("rewrite of {__name__=\"m\", %s=%q repeated to 1 MB}", n, unit), "%v", err)
			}
			if p.enough() {
				return
			}
		}
	}
}

func (p *probe) manyLabels() {
	m := map[string]string{}
	for i := range 4000 {
		m[fmt.Sprintf("label_%04d", i)] = fmt.Sprint("value ", i%11)
	}
	for _, n := range p.hostileNames() {
		m[n] = "a"
	}
	ls := labels.FromMap(m)
	for _, rows := range [][]labels.Labels{{ls}, {ls, ls, labels.FromStrings("a", "b"), ls}} {
		if _, err := p.rewrite(rows); p.fault(err) {
			p.fail(fmt.Sprintf("rewrite of %d rows of %d labels", len(rows), ls.Len()), "%v", err)
		}
	}
}

func (p *probe) anyText() {
	odd := []string{"\x00", "\n\r\t", "\u2028", "\ufeff", "\U0010ffff", "\u202eabc", "é", "e\u0301", "\"\\'`", "${1}$2", "%s%n", "../..", " ", "{}=~,", "👩‍👩‍👧", strings.Repeat("\ufffd", 50)}
	for _, x := range odd {
		var rows []labels.Labels
		for _, n := range p.hostileNames() {
			rows = append(rows, labels.FromStrings(n, x), labels.FromStrings("__name__", "m", n, x+"z"))
		}
		rows = append(rows, labels.FromStrings(x, x), labels.FromStrings("__name__", x, x+"n", "1"))
		if _, err := p.rewrite(rows); p.fault(err) {
			p.fail(fmt.Sprintf("rewrite of rows with %q in names and values", x), "%v", err)
		}
		if p.enough() {
			return
		}
	}
}

func (p *probe) anyCall() {
	for _, c := range p.oddCalls() {
		if _, err := p.decide(c); p.fault(err) {
			p.fail(c.String(), "%v", err)
		}
		if p.enough() {
			return
		}
	}
}

// burst makes n calls, none of them quite like another.
func (p *probe) burst(from, n int) (faults int, err error) {
	base := p.behind(p.sets(p.random(), 8, true))
	base = base[:min(len(base), 8)]
	calls := p.calls()
	for i := from; i < from+n && p.ctx.Err() == nil; i++ {
		if p.plan.Tier != filter.TierNone {
			rows := make([]labels.Labels, len(base))
			for k, ls := range base {
				b := labels.NewBuilder(ls)
				b.Set("series", fmt.Sprint(i, "-", k))
				for _, n := range p.plan.Columns {
					b.Set(n, fmt.Sprint(i, "-", k))
				}
				rows[k] = b.Labels()
			}
			if _, e := p.rewrite(rows); p.fault(e) {
				faults, err = faults+1, e
			}
		}
		if len(calls) > 0 {
			c := calls[i%len(calls)].clone()
			if c.request != nil {
				c.request.Query = fmt.Sprint("up + ", i)
				if c.request.Caller.Method != "" {
					c.request.Caller.Subject += fmt.Sprint(i)
				}
			}
			if _, e := p.decide(c); p.fault(e) {
				faults, err = faults+1, e
			}
		}
		if faults > 3 {
			return faults, err
		}
	}
	return faults, err
}

const manyCalls = 2000

func (p *probe) repeated() {
	m := &material{}
	if p.plan.Tier != filter.TierNone {
		m = p.singles(40)
	}
	if faults, err := p.burst(0, manyCalls); faults > 0 {
		p.fail(fmt.Sprintf("%d calls one after the other", manyCalls), "%d faults, the last: %v", faults, err)
		return
	}
	for i, ls := range m.sets {
		if at, got, err := p.compare([]labels.Labels{ls}, m.want[i:i+1]); at >= 0 || err != nil {
			p.fail(rowsText([]labels.Labels{ls}), "after %d calls it becomes %s %v, and before %s", manyCalls, got, err, m.want[i])
			return
		}
	}
}

// growth is what thousands of calls may add to the memory of a filter: caches have a bound.
const growth = 32 << 20

func (p *probe) memory() {
	_, _ = p.burst(0, 200) // until caches, and memory for calls, are there
	before := p.s.Memory()
	_, _ = p.burst(200, manyCalls)
	if after := p.s.Memory(); after-before > growth {
		p.fail(fmt.Sprintf("%d calls one after the other", manyCalls), "its memory grows from %d to %d bytes", before, after)
	}
}

func (p *probe) cancelled() {
	within := p.limit + grace/2
	try := func(what string, f func(ctx context.Context)) {
		for _, after := range []time.Duration{0, 2 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(p.ctx, after)
			done := make(chan struct{})
			p.requests.Add(1)
			go func() {
				defer close(done)
				defer func() { _ = recover() }() // faults are for others to judge
				f(ctx)
			}()
			t := time.NewTimer(within)
			select {
			case <-done:
			case <-t.C:
				p.fail(what, "the context is done, and the call has not ended after %v", within)
			}
			t.Stop()
			cancel()
		}
	}
	if p.plan.Tier != filter.TierNone {
		if data, err := p.frameOf(p.rowsOf(hostRows)); err == nil {
			try(fmt.Sprintf("rewrite of %d rows", hostRows), func(ctx context.Context) { _, _ = p.s.Filter.Rewrite(ctx, data, nil) })
		}
	}
	if c := p.calls(); len(c) > 0 {
		try(c[0].String(), func(ctx context.Context) {
			if c[0].sel != nil {
				_, _ = p.s.Filter.Select(ctx, c[0].sel)
				return
			}
			_, _ = p.s.Filter.Request(ctx, c[0].request)
		})
	}
}
