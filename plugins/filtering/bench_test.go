// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering_test

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// cpu is the time that this process has taken on all processors: what others do on a
// busy machine is not in it.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// ready hands out batches that were made before.
type ready struct {
	backend.Unimplemented
	batches []*backend.Batch
}

func (s *ready) Series(context.Context, *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		for _, b := range s.batches {
			if !yield(b, nil) {
				return
			}
		}
	}
}

// pods are series like those of containers in a Kubernetes cluster, ten labels each.
func pods(b *testing.B, n int, framed bool) *ready {
	var all []labels.Labels
	for i := range n {
		all = append(all, labels.FromStrings("__name__", "container_cpu_usage_seconds_total", "cluster", "eu1", "container", fmt.Sprint("app-", i%7),
			"endpoint", "https-metrics", "instance", fmt.Sprintf("10.0.%d.%d:10250", i%200/10, i%200), "job", "kubelet", "namespace", fmt.Sprint("team-", i%40),
			"node", fmt.Sprintf("ip-10-0-%d-%d.eu-west-1.compute.internal", i%200/10, i%200), "pod", fmt.Sprintf("app-%d-5c8b9d7f4-%05x", i%7, i), "pod_template_hash", "5c8b9d7f4"))
	}
	slices.SortFunc(all, labels.Compare)
	s := &ready{}
	for len(all) > 0 {
		n := min(1000, len(all))
		batch := backend.NewBatch(n)
		for i, ls := range all[:n] {
			batch.Append(backend.Series{Labels: ls, Chunks: []backend.Chunk{chunk(i)}})
		}
		all = all[n:]
		if framed {
			enc, err := backend.AppendFrame(nil, batch)
			if err == nil {
				batch, err = backend.NewFramed(enc)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		s.batches = append(s.batches, batch)
	}
	return s
}

// reference is the rewrite of the benchmarks in tier rows: drop one label, rename
// another, set a third.
func reference(_ context.Context, b, reply []byte) ([]byte, error) {
	var in frame.Frame
	if err := in.Parse(b); err != nil {
		return nil, err
	}
	var out frame.Reply
	out.Reset(&in)
	to, tenant, acme := out.Intern("kubernetes_node"), out.Intern("tenant"), out.Intern("acme")
	for i := range in.Groups() {
		g := in.Group(i)
		out.Group(i)
		for c := range g.Columns() {
			switch name := g.Column(c).Name; in.Symbol(name) {
			case "pod_template_hash":
			case "node":
				out.Input(to, c)
			default:
				out.Input(name, c)
			}
		}
		out.Constant(tenant, acme)
	}
	return out.Append(reply[:0]), nil
}

var writesOfReference = []string{"node", "kubernetes_node", "tenant", "pod_template_hash"}

func BenchmarkSeries(b *testing.B) {
	ops := &fake{plan: filter.Plan{Pure: true, Operations: []filter.Operation{
		{Drop: []string{"pod_template_hash"}}, {Rename: &filter.Rename{From: "node", To: "kubernetes_node"}}, {Set: &filter.Label{Name: "tenant", Value: "acme"}}}}}
	mapped := &fake{plan: filter.Plan{Operations: []filter.Operation{{Map: &filter.MapValues{Name: "namespace", Values: []filter.Pair{{From: "team-1", To: "team-one"}}}}}}}
	for _, c := range []struct {
		name  string
		chain []*fake
	}{
		{"none", nil},
		{"select-only", []*fake{{}}},
		{"operations", []*fake{ops}},
		{"operations-new", []*fake{ops}},
		{"operations-sort", []*fake{{plan: filter.Plan{Operations: []filter.Operation{{Rename: &filter.Rename{From: "container", To: "zone"}}, {Drop: []string{"instance"}}}}}}},
		{"operations-map", []*fake{mapped}},
		{"names", []*fake{{plan: filter.Plan{Tier: filter.TierNames, Writes: writesOfReference}, rewrite: reference}}},
		{"columns", []*fake{{plan: filter.Plan{Tier: filter.TierColumns, Columns: []string{"namespace"}, Writes: []string{"namespace"}},
			column: map[string]func(string) map[string]string{"namespace": func(v string) map[string]string { return map[string]string{"namespace": "ns-" + v} }}}}},
		{"rows", []*fake{{plan: filter.Plan{Tier: filter.TierRows, Writes: writesOfReference}, rewrite: reference}}},
		{"names-pure", []*fake{{plan: filter.Plan{Tier: filter.TierNames, Writes: writesOfReference, Pure: true}, rewrite: reference}}},
		{"rows-pure", []*fake{{plan: filter.Plan{Tier: filter.TierRows, Writes: writesOfReference, Pure: true}, rewrite: reference}}},
		{"rows-twice", []*fake{{plan: filter.Plan{Tier: filter.TierRows, Writes: writesOfReference}, rewrite: reference}, {plan: filter.Plan{Tier: filter.TierRows, Writes: []string{"x"}}, rewrite: func(context.Context, []byte, []byte) ([]byte, error) { return nil, nil }}}},
	} {
		for _, framed := range []bool{false, true} {
			form := "labels"
			if framed {
				form = "frames"
			}
			b.Run(c.name+"/"+form, func(b *testing.B) {
				s := pods(b, 10000, framed)
				var w backend.Backend = s
				if c.chain != nil {
					var links []filtering.Link
					for _, f := range c.chain {
						links = append(links, filtering.Link{Filter: f})
					}
					o := filtering.Options{}
					if strings.HasSuffix(c.name, "-new") {
						o.MemoBytes = -1 // as if no series had been there before
					}
					w = filtering.Wrap(s, links, o)
				}
				req := &backend.SeriesRequest{MaxTime: 1 << 40}
				b.ReportAllocs()
				n, begun := 0, cpu()
				for b.Loop() {
					n = 0
					for batch, err := range w.Series(context.Background(), req) {
						if err != nil {
							b.Fatal(err)
						}
						for i := range batch.Len() {
							n += batch.At(i).Labels.Len() & 1
							n++
						}
					}
				}
				if n < 10000 {
					b.Fatal(n)
				}
				b.ReportMetric(float64(cpu()-begun)/float64(b.N)/10000, "cpu-ns/series")
			})
		}
	}
	b.Run("labels.Builder", func(b *testing.B) {
		s := pods(b, 10000, false)
		lb := labels.NewBuilder(labels.EmptyLabels())
		b.ReportAllocs()
		begun := cpu()
		for b.Loop() {
			for _, batch := range s.batches {
				for i := range batch.Len() {
					ls := batch.At(i).Labels
					lb.Reset(ls)
					lb.Set("kubernetes_node", ls.Get("node"))
					lb.Del("node", "pod_template_hash")
					lb.Set("tenant", "acme")
					_ = lb.Labels()
				}
			}
		}
		b.ReportMetric(float64(cpu()-begun)/float64(b.N)/10000, "cpu-ns/series")
	})
}
