// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/promweave/promweave/core/report"
)

type metrics struct {
	requests *prometheus.CounterVec
	denied   *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	backends *prometheus.CounterVec
	series   *prometheus.CounterVec
	bytes    *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, s *Service) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "promweave_requests_total", Help: "Requests by kind and completeness of the answer.",
		}, []string{"kind", "completeness"}),
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "promweave_requests_denied_total", Help: "Requests that were not admitted, by kind.",
		}, []string{"kind"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "promweave_request_duration_seconds", Help: "Time that requests took, by kind.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 60},
		}, []string{"kind"}),
		backends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "promweave_backend_selections_total", Help: "Selections that concerned a backend, by what became of them.",
		}, []string{"backend", "state"}),
		series: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "promweave_backend_series_total", Help: "Series received from a backend.",
		}, []string{"backend"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "promweave_backend_bytes_total", Help: "Bytes of label sets and chunks received from a backend.",
		}, []string{"backend"}),
	}
	if reg == nil {
		return m, nil
	}
	all := []prometheus.Collector{
		m.requests, m.denied, m.seconds, m.backends, m.series, m.bytes,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "promweave_requests_running", Help: "Requests that hold a slot just now.",
		}, func() float64 { return float64(s.limits.Running()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "promweave_query_bytes", Help: "Bytes of label sets and chunks that running requests hold.",
		}, func() float64 { return float64(s.limits.Bytes()) }),
		&healthCollector{s},
	}
	for i, c := range all {
		if err := reg.Register(c); err != nil {
			for _, done := range all[:i] {
				reg.Unregister(done)
			}
			return nil, fmt.Errorf("metrics of the query service: %w; give each service a registerer of its own", err)
		}
	}
	return m, nil
}

func (m *metrics) done(r *report.Report) {
	m.requests.WithLabelValues(r.Kind, r.Completeness.State.String()).Inc()
	m.seconds.WithLabelValues(r.Kind).Observe(r.Seconds)
	for _, sel := range r.Selects {
		for _, row := range sel.Backends {
			if row.State == report.RowPruned {
				continue // not asked, and rightly so
			}
			m.backends.WithLabelValues(row.Backend, string(row.State)).Inc()
			if row.Series > 0 {
				m.series.WithLabelValues(row.Backend).Add(float64(row.Series))
				m.bytes.WithLabelValues(row.Backend).Add(float64(row.Bytes))
			}
		}
	}
}

// healthCollector tells which backends are healthy, read when scraped so that a
// backend that left the configuration leaves the metrics too.
type healthCollector struct{ s *Service }

var healthDesc = prometheus.NewDesc("promweave_backend_healthy", "Whether the last Info of an expected backend succeeded.", []string{"backend", "kind"}, nil)

// Describe implements prometheus.Collector.
func (healthCollector) Describe(ch chan<- *prometheus.Desc) { ch <- healthDesc }

// Collect implements prometheus.Collector.
func (c healthCollector) Collect(ch chan<- prometheus.Metric) {
	for _, st := range c.s.set.Status() {
		v := 0.0
		if st.Healthy {
			v = 1
		}
		ch <- prometheus.MustNewConstMetric(healthDesc, prometheus.GaugeValue, v, st.Name, st.Kind)
	}
}
