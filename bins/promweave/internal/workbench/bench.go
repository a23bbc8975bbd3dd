// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package workbench

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// Result is one measurement.
type Result struct {
	What string `json:"what"`
	// Value in Unit.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Ratio to Prometheus' own rewrite of the same label sets, measured just before
	// and after; 0 where there is nothing to compare.
	Ratio float64 `json:"ratio,omitempty"`
}

// Bench measures a plug-in that is built, each measurement for about d.
func (p *Project) Bench(ctx context.Context, d time.Duration) ([]Result, error) {
	o, err := p.Open(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer o.Close()
	if o.Backend != nil {
		return benchBackend(ctx, o.Backend, d)
	}
	return benchFilter(ctx, o.Filter, d)
}

// measure is the time of one call of f.
func measure(ctx context.Context, d time.Duration, f func() error) (time.Duration, error) {
	if err := f(); err != nil { // what happens once is not counted
		return 0, err
	}
	n, begun := 0, time.Now()
	for time.Since(begun) < d {
		if err := f(); err != nil {
			return 0, err
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n++
	}
	return time.Since(begun) / time.Duration(n), nil
}

const benchSets = 1000

// pods are label sets like those of containers in a Kubernetes cluster.
func pods() []labels.Labels {
	var out []labels.Labels
	for i := range benchSets {
		out = append(out, labels.FromStrings("__name__", "container_cpu_usage_seconds_total", "cluster", "eu1", "container", fmt.Sprint("app-", i%7),
			"endpoint", "https-metrics", "instance", fmt.Sprintf("10.0.%d.%d:10250", i%200/10, i%200), "job", "kubelet", "namespace", fmt.Sprint("team-", i%40),
			"node", fmt.Sprintf("ip-10-0-%d-%d.eu-west-1.compute.internal", i%200/10, i%200), "pod", fmt.Sprintf("app-%d-5c8b9d7f4-%05x", i%7, i), "pod_template_hash", "5c8b9d7f4"))
	}
	slices.SortFunc(out, labels.Compare)
	return out
}

// native is the rewrite that filters are compared with: one label renamed, one set,
// one dropped, by Prometheus' labels.Builder.
func native(all []labels.Labels) func() error {
	b := labels.NewBuilder(labels.EmptyLabels())
	out := make([]labels.Labels, len(all))
	return func() error {
		for i, ls := range all {
			b.Reset(ls)
			b.Set("kubernetes_node", ls.Get("node"))
			b.Del("node", "pod_template_hash")
			b.Set("tenant", "acme")
			out[i] = b.Labels()
		}
		return nil
	}
}

// framed is a batch in the form in which the engine has those of plug-ins.
func framed(all []labels.Labels) (*backend.Batch, error) {
	b := backend.NewBatch(len(all))
	for _, ls := range all {
		b.Append(backend.Series{Labels: ls})
	}
	data, err := backend.AppendFrame(nil, b)
	if err != nil {
		return nil, err
	}
	return backend.NewFramed(data)
}

// ready hands out a batch that was made before.
type ready struct {
	backend.Unimplemented
	batch *backend.Batch
}

func (s *ready) Series(context.Context, *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) { yield(s.batch, nil) }
}

// drain reads the label sets of a backend.
func drain(ctx context.Context, b backend.Backend) error {
	n := 0
	for batch, err := range b.Series(ctx, &backend.SeriesRequest{SkipChunks: true}) {
		if err != nil {
			return err
		}
		for i := range batch.Len() {
			n += batch.At(i).Labels.Len()
		}
	}
	if n == 0 {
		return errors.New("nothing came through: config in plugin.yaml should let something pass")
	}
	return nil
}

func benchFilter(ctx context.Context, f *registryFilter, d time.Duration) ([]Result, error) {
	all := pods()
	plan := f.Link.Filter.Plan()
	before, err := measure(ctx, d/2, native(all))
	if err != nil {
		return nil, err
	}
	var out []Result
	add := func(what string, call func() error) error {
		t, err := measure(ctx, d, call)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		out = append(out, Result{What: what, Value: float64(t.Nanoseconds()) / benchSets, Unit: "ns/set"})
		return nil
	}
	if plan.Tier != filter.TierNone {
		data, err := FrameOf(plan, all)
		if err != nil {
			return nil, err
		}
		var reply []byte
		if err := add("calls of rewrite, tier "+tiers[plan.Tier], func() error {
			reply, err = f.Link.Filter.Rewrite(ctx, data, reply)
			return err
		}); err != nil {
			return nil, err
		}
	}
	if plan.Tier != filter.TierNone || len(plan.Operations) > 0 {
		batch, err := framed(all)
		if err != nil {
			return nil, err
		}
		for _, c := range []struct {
			what  string
			chain []filtering.Link
		}{{"a selection through the filter", []filtering.Link{f.Link}}, {"the same without the filter", nil}} {
			w := filtering.Wrap(&ready{batch: batch}, c.chain, filtering.Options{MemoBytes: -1})
			if err := add(c.what, func() error { return drain(ctx, w) }); err != nil {
				return nil, err
			}
		}
	}
	if slices.Contains(plan.Hooks, filter.HookRequest) {
		call := &filter.RequestCall{Kind: "query", Query: "up", Caller: filter.Caller{Method: "bearer", Subject: "jane", Claims: []byte(`{"tenant":"acme"}`), ClaimSettings: []filter.Setting{{Path: "tenant", Value: "acme"}}}}
		t, err := measure(ctx, d, func() error {
			_, err := f.Link.Filter.Request(ctx, call)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("request hook: %w", err)
		}
		out = append(out, Result{What: "request hook", Value: float64(t.Nanoseconds()), Unit: "ns/call"})
	}
	after, err := measure(ctx, d/2, native(all))
	if err != nil {
		return nil, err
	}
	ns := float64((before + after).Nanoseconds()) / 2 / benchSets
	for i := range out {
		if out[i].Unit == "ns/set" {
			out[i].Ratio = out[i].Value / ns
		}
	}
	return append(out, Result{What: "Prometheus' labels.Builder: rename, set, drop", Value: ns, Unit: "ns/set", Ratio: 1}), nil
}

func benchBackend(ctx context.Context, b backend.Backend, d time.Duration) ([]Result, error) {
	info, err := b.Info(ctx)
	if err != nil {
		return nil, err
	}
	req := backend.SeriesRequest{MaxTime: min(info.MaxTime, time.Now().UnixMilli())}
	req.MinTime = max(info.MinTime, req.MaxTime-hour)
	series, samples := 0, 0
	t, err := measure(ctx, d, func() error {
		all, err := collect(ctx, b, &req)
		if err != nil {
			return err
		}
		series, samples = len(all), 0
		for _, s := range all {
			n, err := samplesOf(s)
			if err != nil {
				return err
			}
			samples += n
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if series == 0 {
		return nil, errors.New("there are no series in the last hour that it has: config in plugin.yaml should name a store with some")
	}
	ns := float64(t.Nanoseconds())
	out := []Result{
		{What: "one selection of the last hour", Value: ns / 1e6, Unit: "ms"},
		{What: fmt.Sprintf("each of its %d series", series), Value: ns / float64(series), Unit: "ns/series"},
	}
	if samples > 0 {
		out = append(out, Result{What: fmt.Sprintf("each of its %d samples, decoded", samples), Value: ns / float64(samples), Unit: "ns/sample"})
	}
	return out, nil
}
