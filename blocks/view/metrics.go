// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package view

import (
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/promweave/promweave/blocks/meta"
)

// The operations that requests are counted by.
const (
	opList = "list"
	opGet  = "get"
)

// metrics of a Fetcher. A process with several buckets gives each a Registerer that adds a label.
type metrics struct {
	requests *prometheus.CounterVec
	looks    *prometheus.CounterVec
	complete prometheus.Gauge
	blocks   *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer, log *slog.Logger) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "promweave_bucket_view_requests_total", Help: "Requests to the bucket by operation; a listing of many pages counts as one.",
		}, []string{"operation"}),
		looks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "promweave_bucket_view_fetches_total", Help: "Looks into the bucket by result: complete, incomplete, failed.",
		}, []string{"result"}),
		complete: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "promweave_bucket_view_last_complete_timestamp_seconds", Help: "When a look into the bucket was last complete.",
		}),
		blocks: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "promweave_bucket_view_blocks", Help: "Blocks of the bucket by state.",
		}, []string{"state"}),
	}
	if reg == nil {
		return m
	}
	for _, c := range []prometheus.Collector{m.requests, m.looks, m.complete, m.blocks} {
		if err := reg.Register(c); err != nil {
			log.Warn("a metric of a bucket is not exposed: give each bucket a registerer with a label of its own", "err", err)
		}
	}
	return m
}

// looked counts a look, of which v is nil if it failed.
func (m *metrics) looked(v *View, err error) {
	switch {
	case err != nil:
		m.looks.WithLabelValues("failed").Inc()
		return
	case !v.Complete():
		m.looks.WithLabelValues("incomplete").Inc()
	default:
		m.looks.WithLabelValues("complete").Inc()
		m.complete.SetToCurrentTime()
	}
	count := map[State]int{NoMeta: 0, Corrupt: 0}
	for _, p := range v.Partial {
		count[p.State]++
	}
	for state, n := range count {
		m.blocks.WithLabelValues(string(state)).Set(float64(n))
	}
	m.blocks.WithLabelValues(string(Failed)).Set(float64(len(v.Problems)))
}

// Observe exposes what became of the whole blocks of a view; Fetch does so with the others.
func (f *Fetcher) Observe(s *Selection) {
	count := map[State]int{Loaded: len(s.Blocks), MarkedNoCompact: len(s.Marked(meta.NoCompact)), MarkedNoDownsample: len(s.Marked(meta.NoDownsample))}
	for _, state := range []State{TimeExcluded, LabelExcluded, TooFresh, MarkedForDeletion, Duplicate} {
		count[state] = 0
	}
	for _, state := range s.Dropped {
		count[state]++
	}
	for state, n := range count {
		f.metrics.blocks.WithLabelValues(string(state)).Set(float64(n))
	}
}
