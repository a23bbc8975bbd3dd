// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

var infoDesc = prometheus.NewDesc("promweave_plugin_info", "1 for each plug-in: where it is from, who signed it and what it may do.",
	[]string{"plugin", "launch", "kind", "name", "version", "origin", "sha256", "signer", "permissions"}, nil)

// info is the metric that says what a plug-in is. What it says changes when the plug-in
// is replaced, or met for the first time.
type info struct {
	r *Registry
	e *entry
}

var _ prometheus.Collector = info{}

// Describe implements prometheus.Collector.
func (info) Describe(ch chan<- *prometheus.Desc) { ch <- infoDesc }

// Collect implements prometheus.Collector.
func (i info) Collect(ch chan<- prometheus.Metric) {
	s, d := i.e.plugin.Status(), i.e.plugin.Description()
	kind := "filter"
	i.r.mu.Lock()
	for u := range i.e.uses {
		if u.backend {
			kind = "backend"
		}
	}
	i.r.mu.Unlock()
	name := d.Name
	if !d.Known {
		name = ""
	}
	values := []string{i.e.name, s.Launch, kind, name, d.Version, s.Origin, s.SHA256, i.e.signer, strings.Join(s.Permissions, ",")}
	for k, v := range values {
		values[k] = strings.ToValidUTF8(v, "\uFFFD") // some of it are a plug-in's own words
	}
	ch <- prometheus.MustNewConstMetric(infoDesc, prometheus.GaugeValue, 1, values...)
}
