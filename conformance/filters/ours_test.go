// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filters_test

import (
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/filters"
	"github.com/promweave/promweave/conformance/filters/internal/broken"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/plugins/filters/auth"
	"github.com/promweave/promweave/plugins/filters/labelrewrite"
	"github.com/promweave/promweave/plugins/filters/tenancy"
	"github.com/promweave/promweave/sdk/filter"
)

// TestOurs certifies the filters that are compiled in, with configurations that use
// every tier and hook.
func TestOurs(t *testing.T) {
	mallory := filters.Caller{Caller: filter.Caller{Method: "basic", Subject: "mallory"}, Denied: true}
	for _, c := range []struct {
		name, config string
		f            filter.Filter
		callers      []filters.Caller
		series       []labels.Labels
	}{
		{"operations", `{"rename":{"instance":"node"},"drop":["pod"],"map":{"environment":{"production":"prod","live":"prod"}},"set":{"cluster":"all"}}`, labelrewrite.New(), nil, nil},
		{"relabel", `{"rules":[{"relabel":{"source_labels":["job","namespace"],"separator":"/","target_label":"where"}},{"relabel":{"source_labels":["tenant"],"regex":"a","action":"drop"}}],"merge":true}`, labelrewrite.New(), nil, nil},
		{"replace", `{"rules":[{"replace":{"source":"node","regex":"(.*):\\d+","target":"node","replacement":"$1"}}]}`, labelrewrite.New(), nil,
			[]labels.Labels{labels.FromStrings("__name__", "m", "node", "10.0.0.1:1"), labels.FromStrings("__name__", "m", "node", "10.0.0.1:2"), labels.FromStrings("__name__", "m", "node", "10.0.0.1")}},
		{"labelmap", `{"rules":[{"relabel":{"regex":"k8s_(.+)","action":"labelmap"}},{"relabel":{"regex":"k8s_(.+)","action":"labeldrop"}}],"protect":["tenant"]}`, labelrewrite.New(), nil,
			[]labels.Labels{labels.FromStrings("__name__", "m", "k8s_pod", "p", "pod", "q", "series", "1")}},
		{"tenancy", `{"label":"tenant","from":[{"claim":"tenant"},{"header":"thanos-tenant"}]}`, tenancy.New(), []filters.Caller{mallory, {Denied: true}}, nil},
		{"auth", `{"rules":[{"subjects":["mallory"],"allow":false},{"methods":["basic","bearer"],"allow":true,"matchers":["tenant=~\"a|b\""],"max_range":"30d"}]}`, auth.New(), []filters.Caller{mallory, {Denied: true}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, err := c.f.Configure(&filter.Config{Name: c.name, JSON: []byte(c.config)})
			if err != nil {
				t.Fatal(err)
			}
			o := filters.Options{Seed: 1}
			if testing.Short() {
				o.Profiles = []string{filters.Hooks, filters.Law, filters.Decisions}
			}
			rep := filters.Certify(t.Context(), subject(&broken.Case{
				Name: c.name, Instance: i, Role: c.f.Describe().Role, Callers: c.callers, Series: c.series,
			}, 5*time.Second), o)
			for _, r := range rep.Results {
				if r.Outcome != report.Passed && r.Outcome != report.NotApplicable {
					t.Error(text(r))
				}
			}
			if !rep.Certified && !testing.Short() {
				t.Error(rep.Why)
			}
			t.Logf("%d calls, %.1f s", rep.Requests, rep.Seconds)
		})
	}
}
