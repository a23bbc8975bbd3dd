// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package workbench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/trust"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// Check is what came out of one test.
type Check struct {
	Name   string `json:"check"`
	Result string `json:"result"` // ok, failed or skipped
	Detail string `json:"detail"`
}

// The results.
const (
	OK      = "ok"
	Failed  = "failed"
	Skipped = "skipped"
)

// report collects checks.
type report struct{ checks []Check }

// do runs a check; its text is for people who want to know what was done.
func (r *report) do(name string, f func() (string, error)) bool {
	text, err := f()
	c := Check{name, OK, text}
	if err != nil {
		c.Result, c.Detail = Failed, err.Error()
	}
	r.checks = append(r.checks, c)
	return err == nil
}

func (r *report) skip(name, why string) { r.checks = append(r.checks, Check{name, Skipped, why}) }

// Test tries a plug-in that is built. A fault in one check does not hide the others.
func (p *Project) Test(ctx context.Context, talk io.Writer) []Check {
	r := &report{}
	var o *Opened
	log := slog.New(slog.NewTextHandler(talk, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if !r.do("load", func() (_ string, err error) {
		if o, err = p.Open(ctx, log); err != nil {
			return "", err
		}
		s := o.Status()
		return fmt.Sprintf("%s, %s", s.Launch, s.SHA256), nil
	}) {
		return r.checks
	}
	defer o.Close()
	r.do("description", func() (string, error) { return "as in plugin.yaml", describes(p.Manifest, o.Status().Description) })
	r.do("wrong configurations", func() (string, error) { return p.wrongConfigs(ctx, o) })
	if o.Backend != nil {
		testBackend(ctx, r, o.Backend)
		p.notThere(r.checks)
	} else {
		testFilter(ctx, r, o.Filter)
	}
	r.do("faults", func() (string, error) {
		s := o.Status()
		if len(s.Faults) > 0 {
			return "", fmt.Errorf("%v; the last: %s; it wrote last: %s", s.Faults, s.LastFault, strings.Join(s.LastLines, " / "))
		}
		return "none", nil
	})
	return r.checks
}

// Agrees loads the plug-in that is built, and says in what plugin.yaml differs from what
// it says of itself.
func (p *Project) Agrees(ctx context.Context) error {
	o, err := p.Open(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer o.Close()
	return describes(p.Manifest, o.Status().Description)
}

func describes(m *trust.Manifest, d carrier.Description) error {
	var errs []error
	differ := func(what, manifest, source string) {
		if manifest != source {
			errs = append(errs, fmt.Errorf("%s: plugin.yaml says %q, the plug-in itself %q", what, manifest, source))
		}
	}
	differ("name", m.Name, d.Name)
	differ("version", m.Version, d.Version)
	kind := "filter"
	if d.Backend {
		kind = "backend"
	}
	differ("kind", m.Kind, kind)
	if !d.Backend {
		differ("role", m.Role, map[filter.Role]string{filter.RoleRewrite: "rewrite", filter.RoleAuth: "auth", filter.RoleTenancy: "tenancy"}[d.Role])
	}
	var want []string
	for _, x := range d.Permissions {
		want = append(want, string(x))
	}
	list := func(s []string) string {
		s = slices.Clone(s)
		slices.Sort(s)
		return strings.Join(s, ", ")
	}
	if m.Launch == "wasm" {
		differ("permissions", list(m.Permissions), list(want))
	}
	if m.ConfigSchema != "" && d.ConfigSchema != "" && !sameJSON(m.ConfigSchema, d.ConfigSchema) {
		differ("config_schema", m.ConfigSchema, d.ConfigSchema)
	}
	return errors.Join(errs...)
}

func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

// wrongConfigs hands over configurations that make no sense: each is refused or
// accepted, but none breaks anything.
func (p *Project) wrongConfigs(ctx context.Context, o *Opened) (string, error) {
	spec, err := p.Spec()
	if err != nil {
		return "", err
	}
	docs := []string{`{}`, `{"no_such_key":"x"}`, `{"":""}`, `{"a":[[[[[[1]]]]]]}`, `{"a":"` + strings.Repeat("x", 1<<16) + `"}`}
	if settings, err := filter.Settings([]byte(p.Manifest.Config)); err == nil {
		for _, s := range settings {
			if strings.ContainsAny(s.Path, `.[\`) {
				continue
			}
			for _, v := range []string{`null`, `-1`, `1e400`, `{"a":{}}`, `["\u0000","é"]`, `"` + strings.Repeat(`\\u00ff,=:`, 3000) + `"`} {
				docs = append(docs, fmt.Sprintf("{%q:%s}", s.Path, v))
			}
		}
	}
	// Whoever misspells a key has the others right.
	misspelt := ""
	var config map[string]any
	if json.Unmarshal([]byte(p.Manifest.Config), &config) == nil && config != nil {
		config["no_such_key"] = "x"
		if data, err := json.Marshal(config); err == nil {
			misspelt = string(data)
			docs = append(docs, misspelt)
		}
	}
	refused, note := 0, ""
	for _, doc := range docs {
		_, _, release, err := o.configure(ctx, p.Manifest, spec, doc)
		switch {
		case errors.Is(err, carrier.ErrFault):
			return "", fmt.Errorf("configured with %.100s: %w", doc, err)
		case err != nil:
			refused++
		default:
			release()
			if doc == misspelt {
				note = "; a key that there is not is accepted, so that nobody notices one that is misspelt: a config_schema with additionalProperties: false refuses it"
			}
		}
	}
	return fmt.Sprintf("%d refused, %d accepted, none breaks it%s", refused, len(docs)-refused, note), nil
}

// sets are label sets in order, as stores have them, and names that the plan speaks of.
func sets(n int, plan filter.Plan) []labels.Labels {
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"cluster", "container", "environment", "job", "namespace", "node", "pod", "pod_template_hash", "tenant", "überschrift.name"}
	for _, list := range [][]string{plan.Reads, plan.Writes, plan.Columns, plan.Keeps} {
		for _, name := range list {
			if name != "__name__" && !slices.Contains(names, name) && len(names) < 60 {
				names = append(names, name)
			}
		}
	}
	values := []string{"a", "b", "production", "eu1", "é ü 漢字", "\x00\n\"", strings.Repeat("long ", 400)}
	var out []labels.Labels
	for i := range n {
		b := labels.NewScratchBuilder(len(names) + 2)
		b.Add("__name__", fmt.Sprint("metric_", r.IntN(20)))
		b.Add("series", fmt.Sprint(i))
		for _, name := range names {
			if name == "series" || r.IntN(4) == 0 {
				continue
			}
			b.Add(name, values[r.IntN(len(values)-1+r.IntN(100)/99)])
		}
		b.Sort()
		out = append(out, b.Labels())
	}
	slices.SortFunc(out, labels.Compare)
	return out
}

// listed is a store of label sets.
type listed struct {
	backend.Unimplemented
	sets []labels.Labels
	size int
}

func (s *listed) Info(context.Context) (backend.Info, error) { return backend.AllTime(), nil }

func (s *listed) Series(_ context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		for part := range slices.Chunk(s.sets, s.size) {
			b := backend.NewBatch(len(part))
			for _, ls := range part {
				// A filter's select hook may ask for matchers.
				if shaping.Matches(ls, req.Matchers) {
					b.Append(backend.Series{Labels: ls})
				}
			}
			if !yield(b, nil) {
				return
			}
		}
	}
}

// through sends label sets through a filter as a server does, in batches of size.
func through(ctx context.Context, f *registryFilter, all []labels.Labels, size int, observe func(filtering.Effect)) ([]string, error) {
	o := filtering.Options{Backend: "test", MemoBytes: -1}
	if observe != nil {
		o.Observe = func(_ context.Context, e filtering.Effect) { observe(e) }
	}
	w := filtering.Wrap(&listed{sets: all, size: size}, []filtering.Link{f.Link}, o)
	var out []string
	for b, err := range w.Series(ctx, &backend.SeriesRequest{MaxTime: 1 << 40, SkipChunks: true, PartialAllowed: true}) {
		if err != nil {
			return nil, err
		}
		for _, n := range b.Notices() {
			if n.Kind == backend.NoticeMissing {
				return nil, errors.New(n.Text)
			}
		}
		for i := range b.Len() {
			out = append(out, b.At(i).Labels.String())
		}
	}
	return out, nil
}

func testFilter(ctx context.Context, r *report, f *registryFilter) {
	plan := f.Link.Filter.Plan()
	if !r.do("plan", func() (string, error) {
		if err := filtering.Check([]filtering.Link{f.Link}); err != nil {
			return "", err
		}
		if plan.Tier == filter.TierColumns && len(plan.Columns) == 0 {
			return "", errors.New("tier columns without columns: rewrite is never called; name the labels whose values it changes in the plan's columns, or take the tier none")
		}
		return fmt.Sprintf("tier %s, %d operations, hooks %v", tiers[plan.Tier], len(plan.Operations), plan.Hooks), nil
	}) {
		return
	}
	testHooks(ctx, r, f.Link.Filter, plan)
	if plan.Tier != filter.TierNone {
		r.do("frames of every shape", func() (string, error) { return oddFrames(ctx, f.Link.Filter, plan) })
	}
	if plan.Tier == filter.TierNone && len(plan.Operations) == 0 {
		r.skip("label sets", "the plan rewrites none with this configuration")
		return
	}
	all := sets(2000, plan)
	var want []string
	if !r.do("label sets", func() (string, error) {
		var err error
		want, err = through(ctx, f, all, 1000, nil)
		if err != nil && strings.Contains(err.Error(), "both become") {
			return "refused, as the plan does not merge: " + err.Error(), nil
		}
		return fmt.Sprintf("%d became %d", len(all), len(want)), err
	}) || want == nil {
		return
	}
	r.do("same again", func() (string, error) {
		got, err := through(ctx, f, all, 1000, nil)
		if err := same(want, got, err); err != nil {
			return "", fmt.Errorf("the second time: %w", err)
		}
		return "same input, same output", nil
	})
	r.do("other batches", func() (string, error) {
		for _, size := range []int{1, 7, 300} {
			n := len(all)
			if size == 1 {
				n = 200
			}
			one, err := through(ctx, f, all[:n], 1000, nil)
			if err != nil {
				return "", err
			}
			got, err := through(ctx, f, all[:n], size, nil)
			if err := same(one, got, err); err != nil {
				return "", fmt.Errorf("in batches of %d (rule F-2: rows must not depend on those beside them): %w", size, err)
			}
		}
		return "of 1, 7, 300 and 1000: same output", nil
	})
}

var tiers = map[filter.Tier]string{filter.TierNone: "none", filter.TierNames: "names", filter.TierColumns: "columns", filter.TierRows: "rows"}

func same(want, got []string, err error) error {
	if err != nil {
		return err
	}
	if len(want) != len(got) {
		return fmt.Errorf("want %d label sets, got %d", len(want), len(got))
	}
	for i := range want {
		if want[i] != got[i] {
			return fmt.Errorf("want %s, got %s", want[i], got[i])
		}
	}
	return nil
}

// testHooks calls the hooks of the plan with all sorts of callers.
func testHooks(ctx context.Context, r *report, f carrier.Filter, plan filter.Plan) {
	tenant := []filter.Setting{{Path: "tenant", Value: "acme"}, {Path: "groups[0]", Value: "ops"}}
	if slices.Contains(plan.Hooks, filter.HookRequest) {
		r.do("request hook", func() (string, error) {
			denied, callers := 0, []filter.Caller{
				{},
				{Method: "basic", Subject: "jane"},
				{Method: "bearer", Subject: "jane", Claims: []byte(`{"tenant":"acme","groups":["ops"]}`), ClaimSettings: tenant},
				{Method: "mtls", Subject: strings.Repeat("x", 1<<14), Headers: []filter.Header{{Name: "thanos-tenant", Values: []string{"acme", "é"}}}},
			}
			for _, c := range callers {
				reply, err := f.Request(ctx, &filter.RequestCall{Kind: "query", Query: "up", Selectors: [][]filter.Matcher{{{Name: "__name__", Value: "up"}}}, Caller: c})
				switch {
				case errors.Is(err, carrier.ErrFault):
					return "", err
				case err != nil || reply.Deny != nil:
					denied++
				}
			}
			return fmt.Sprintf("%d callers, %d denied", len(callers), denied), nil
		})
	}
	if slices.Contains(plan.Hooks, filter.HookSelect) {
		r.do("select hook", func() (string, error) {
			for _, ms := range [][]filter.Matcher{nil, {{Name: "__name__", Value: "up"}}, {{Type: filter.MatchRegexp, Name: "é", Value: "a|b"}, {Type: filter.MatchNotEqual, Name: "x"}}} {
				if _, err := f.Select(ctx, &filter.SelectCall{Backend: "test", Matchers: ms, MaxTime: 1 << 40, Tenants: []string{"acme"}}); errors.Is(err, carrier.ErrFault) {
					return "", err
				}
			}
			return "3 selections", nil
		})
	}
}

// oddFrames are frames of the filter's tier at the borders of what is allowed.
func oddFrames(ctx context.Context, f carrier.Filter, plan filter.Plan) (string, error) {
	frames, err := framesOf(plan)
	if err != nil {
		return "", err
	}
	changed, refused := 0, 0
	for i, data := range frames {
		reply, err := f.Rewrite(ctx, data, nil)
		if err != nil {
			if errors.Is(err, carrier.ErrFault) {
				return "", fmt.Errorf("frame %d: %w", i, err)
			}
			// It says that it does not want that; but something it has to want.
			if refused++; refused == len(frames) {
				return "", fmt.Errorf("rewrite returned an error for each of %d frames, the last: %w", len(frames), err)
			}
			continue
		}
		var in frame.Frame
		if err := in.Parse(data); err != nil {
			return "", err
		}
		var c frame.Changes
		if err := c.Parse(reply, &in, frame.Tier(plan.Tier)); err != nil {
			return "", fmt.Errorf("the reply to frame %d is not valid: %w", i, err)
		}
		if len(reply) > 0 {
			changed++
		}
	}
	text := fmt.Sprintf("%d, of which %d were changed", len(frames), changed)
	if refused > 0 {
		text += fmt.Sprintf(" and %d refused", refused)
	}
	return text, nil
}

// framesOf are frames as a filter with this plan gets them.
func framesOf(plan filter.Plan) (out [][]byte, err error) {
	some := sets(300, plan)
	none := labels.FromStrings("series", "1")
	many := labels.NewScratchBuilder(400)
	for i := range 400 {
		many.Add(fmt.Sprintf("l%03d", i), fmt.Sprint(i%7))
	}
	for _, list := range [][]labels.Labels{nil, {labels.EmptyLabels()}, {none}, {none, none}, {many.Labels()}, some[:1], some} {
		b, err := FrameOf(plan, list)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// FrameOf is the frame that a filter with this plan is given for label sets.
func FrameOf(plan filter.Plan, list []labels.Labels) ([]byte, error) {
	var b frame.Builder
	for _, ls := range list {
		ls.Range(func(l labels.Label) { b.Label(l.Name, l.Value) })
		b.EndRow()
	}
	data, err := b.Append(nil)
	if err != nil || plan.Tier == filter.TierRows {
		return data, err
	}
	var all frame.Frame
	if err := all.Parse(data); err != nil {
		return nil, err
	}
	if plan.Tier == filter.TierNames {
		return new(frame.NameLists).Append(nil, &all)
	}
	return new(frame.ColumnValues).Append(nil, &all, plan.Columns)
}
