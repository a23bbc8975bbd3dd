// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Command promweave-tsdb is the tsdb backend, read only, as a plug-in: a process that
// the host starts, or with --listen a service beside the disk that the data are on.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin"
	"github.com/promweave/promweave/sdk/plugin/store"
)

func init() { store.Backend(func() store.Spec { return spec{} }) }

func main() { plugin.Main() }

type spec struct{}

const schema = `{"type": "object", "additionalProperties": false, "required": ["path"], "properties": {
  "path": {"type": "string", "description": "directory of a Prometheus TSDB; nothing is written there"}}}`

func (spec) Describe() filter.Description {
	return filter.Description{Name: "tsdb", Version: "1.0.0", Summary: "the directory of a Prometheus TSDB", ConfigSchema: schema}
}

func (spec) Configure(c *filter.Config) (backend.Backend, error) {
	var in struct {
		Path string `json:"path"`
	}
	dec := json.NewDecoder(bytes.NewReader(c.JSON))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return nil, fmt.Errorf("config of %s: %w", c.Name, err)
	}
	if in.Path == "" {
		return nil, errors.New("path: missing: the directory of the TSDB")
	}
	b, err := tsdb.Open(tsdb.Config{Path: in.Path}, slog.New(slog.NewJSONHandler(os.Stderr, nil)).With("backend", c.Name), prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	return b, nil
}
