// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package guest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/frame"
)

const benchRows = 1000

// benchLabels is a label set as Kubernetes makes them: ten labels, about 300 bytes.
func benchLabels(i int) labels.Labels {
	return labels.FromStrings(
		"__name__", "container_cpu_usage_seconds_total",
		"cluster", "production-eu-west-1",
		"container", fmt.Sprintf("application-%d", i%7),
		"env", []string{"production", "staging", "development"}[i%3],
		"instance", fmt.Sprintf("10.0.%d.%d:9100", i/250, i%250),
		"job", "kubernetes-cadvisor",
		"namespace", fmt.Sprintf("team-%d", i%23),
		"node", fmt.Sprintf("ip-10-0-0-%d.eu-west-1.compute.internal", i%40),
		"pod", fmt.Sprintf("application-%d-5d8f7c9b6d-%05d", i%7, i),
		"pod_template_hash", fmt.Sprintf("5d8f7c9b%02d", i%7))
}

func benchFrame(t testing.TB, rows int) []byte {
	var b frame.Builder
	for i := range rows {
		benchLabels(i).Range(func(l labels.Label) { b.Label(l.Name, l.Value) })
		b.EndRow()
	}
	out, err := b.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// BenchmarkRewrite compares modules, called by themselves and without the checks of a
// host, to labels.Builder over the same 1000 label sets: ns for each set, and the ratio.
//
//	names    drop, rename, set; the filter sees names alone
//	rows     the same, and it sees the rows
//	map      and one label's values become others
//	all      the values of all ten labels go through a mapping
func BenchmarkRewrite(b *testing.B) {
	const ops = "drop=pod_template_hash\nrename=node=kubernetes_node\nset=tenant=acme\n"
	modes := []struct{ name, settings string }{
		{"names", "tier=names\n" + ops},
		{"rows", ops},
		{"map", ops + "map=env:production=prod,env:staging=stage"},
		{"all", "map=__name__:a=b,cluster:a=b,container:a=b,env:production=prod,instance:a=b,job:a=b,namespace:a=b,node:a=b,pod:a=b,pod_template_hash:a=b"},
	}
	sets := make([]labels.Labels, benchRows)
	for i := range sets {
		sets[i] = benchLabels(i)
	}
	lb := labels.NewBuilder(labels.EmptyLabels())
	native := func() {
		for _, ls := range sets {
			lb.Reset(ls)
			lb.Del("pod_template_hash", "node")
			lb.Set("kubernetes_node", ls.Get("node"))
			lb.Set("tenant", "acme")
			_ = lb.Labels()
		}
	}
	modules := built(b)
	for _, l := range languages {
		code, ok := modules[l.name]
		if !ok {
			code = modules[l.name+" golden"]
		}
		for _, mode := range modes {
			b.Run(l.name+"/"+mode.name, func(b *testing.B) {
				m := open(b, code)
				plan, err := m.configure(mode.settings)
				if err != nil {
					b.Fatal(err)
				}
				shown := show(b, benchFrame(b, benchRows), plan)
				call := func() {
					if _, err := m.view("rewrite", shown); err != nil {
						b.Fatal(err)
					}
				}
				for range 50 {
					call()
				}
				// In turns, so that whatever else the machine does meets both; the
				// fastest turn of each counts.
				fastest := func(f func(), before time.Duration) time.Duration {
					began := time.Now()
					f()
					return min(before, time.Since(began))
				}
				module, builder := time.Hour, time.Hour
				for b.Loop() {
					module = fastest(call, module)
					builder = fastest(native, builder)
				}
				b.ReportMetric(float64(module.Nanoseconds())/benchRows, "ns/set")
				b.ReportMetric(float64(module)/float64(builder), "x-of-labels.Builder")
			})
		}
	}
}
