// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command promweave-prometheus is the prometheus backend as a plug-in: a process that
// the host starts, or with --listen a service, beside a Prometheus in another network.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/promweave/promweave/backends/prometheus"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin"
	"github.com/promweave/promweave/sdk/plugin/store"
)

func init() { store.Backend(func() store.Spec { return spec{} }) }

func main() { plugin.Main() }

type spec struct{}

const schema = `{"type": "object", "additionalProperties": false, "required": ["url"], "properties": {
  "url": {"type": "string", "description": "URL of the server, without /api"},
  "timeout": {"type": "string", "description": "longest time for one request, as in 30s"},
  "read_mode": {"enum": ["auto", "streamed", "samples"]},
  "username": {"type": "string"}, "password_file": {"type": "string"}, "bearer_token_file": {"type": "string"},
  "ca": {"type": "string"}, "cert": {"type": "string"}, "key": {"type": "string"}}}`

func (spec) Describe() filter.Description {
	return filter.Description{Name: "prometheus", Version: "1.0.0", Summary: "a Prometheus server, by remote read", ConfigSchema: schema}
}

func (spec) Configure(c *filter.Config) (backend.Backend, error) {
	var in struct {
		URL             string `json:"url"`
		Timeout         string `json:"timeout"`
		ReadMode        string `json:"read_mode"`
		Username        string `json:"username"`
		PasswordFile    string `json:"password_file"`
		BearerTokenFile string `json:"bearer_token_file"`
		CA              string `json:"ca"`
		Cert            string `json:"cert"`
		Key             string `json:"key"`
	}
	dec := json.NewDecoder(bytes.NewReader(c.JSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return nil, fmt.Errorf("config of %s: %w", c.Name, err)
	}
	cfg := prometheus.Config{URL: in.URL, ReadMode: prometheus.ReadMode(in.ReadMode), HTTP: prometheus.HTTPConfig{
		Username: in.Username, PasswordFile: in.PasswordFile, BearerTokenFile: in.BearerTokenFile,
		TLS: prometheus.TLSConfig{CAFile: in.CA, CertFile: in.Cert, KeyFile: in.Key},
	}}
	if in.Timeout != "" {
		d, err := time.ParseDuration(in.Timeout)
		if err != nil {
			return nil, fmt.Errorf("timeout: %w", err)
		}
		cfg.Timeout = d
	}
	b, err := prometheus.New(cfg, slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("backend", c.Name))
	if err != nil {
		return nil, err
	}
	return b, nil
}
