// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wasm

import (
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/filter"
)

// BenchmarkCall is a call through the pool: without a message either way, with 64
// bytes of one, and over 1,000 label sets with 10 labels each.
func BenchmarkCall(b *testing.B) {
	p := open(b, "hostile.wasm")
	f := newFilter(b, p, "good").(*moduleFilter)
	b.Run("empty", func(b *testing.B) {
		b.ReportAllocs()
		in, err := p.acquire(b.Context(), f.c)
		if err != nil {
			b.Fatal(err)
		}
		defer p.release(in, nil)
		in.begin(b.Context(), hookRewrite)
		defer in.end()
		for b.Loop() {
			in.call.spent, in.call.units = 0, 0 // it is one call to the accounts
			in.stack[0], in.stack[1] = 0, 0
			if err := in.hooks[hookRewrite].CallWithStack(in, in.stack[:2]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("pooled 64 bytes", func(b *testing.B) {
		b.ReportAllocs()
		message := make([]byte, 64)
		for b.Loop() {
			if _, err := f.Rewrite(b.Context(), message, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("request", func(b *testing.B) {
		b.ReportAllocs()
		call := &filter.RequestCall{Kind: "range", Query: `up{job="x"}`, Selectors: [][]filter.Matcher{{{Name: "job", Value: "x"}}}}
		for b.Loop() {
			if _, err := f.Request(b.Context(), call); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRewrite compares 1,000 label sets through a C module, which sees all rows,
// with labels.Builder over the same. The ratio is of times in one run.
func BenchmarkRewrite(b *testing.B) {
	const rows = 1000
	f := newFilter(b, open(b, "rewrite.wasm"), "x")
	frame := podFrame(b, rows)
	sets := make([]labels.Labels, rows)
	for i := range sets {
		sets[i] = labels.FromStrings(podLabels(i)...)
	}
	builder := labels.NewBuilder(labels.EmptyLabels())
	var reply []byte
	var module, native time.Duration
	for b.Loop() {
		start := time.Now()
		var err error
		if reply, err = f.Rewrite(b.Context(), frame, reply); err != nil {
			b.Fatal(err)
		}
		module += time.Since(start)
		start = time.Now()
		for i := range sets {
			builder.Reset(sets[i])
			rewritten(builder)
			_ = builder.Labels()
		}
		native += time.Since(start)
	}
	b.ReportMetric(float64(module.Nanoseconds())/float64(b.N*rows), "ns/set")
	b.ReportMetric(float64(native.Nanoseconds())/float64(b.N*rows), "ns/set-native")
	b.ReportMetric(float64(module)/float64(native), "ratio")
}

// BenchmarkInstance makes, configures and closes an instance.
func BenchmarkInstance(b *testing.B) {
	p := open(b, "rewrite.wasm")
	f := newFilter(b, p, "x").(*moduleFilter)
	for b.Loop() {
		in, err := p.build(b.Context(), p.current, f.c)
		if err != nil {
			b.Fatal(err)
		}
		in.close()
	}
}
