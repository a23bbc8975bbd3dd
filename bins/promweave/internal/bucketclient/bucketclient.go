// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package bucketclient opens a bucket by its configuration. It alone links the clients of every
// cloud, which are most of the program.
package bucketclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/go-kit/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/client"
	"gopkg.in/yaml.v3"
)

// Config is how a bucket is opened.
type Config struct {
	// Objstore is the bucket as Thanos has it: YAML, or JSON, with type, config and prefix.
	// It may have secrets, and is never logged.
	Objstore []byte
	// Name tells the bucket's metrics from others': that of the backend, or of the command.
	Name string
	// RoundTripper, if set, wraps the HTTP client of providers that have one.
	RoundTripper func(http.RoundTripper) http.RoundTripper
}

// Opener opens the buckets of a program. Their metrics are registered once for each name and stay:
// a configuration that is loaded again opens a bucket before it closes the one it had.
type Opener struct {
	reg prometheus.Registerer

	mu      sync.Mutex
	metrics map[string]*objstore.Metrics
}

// NewOpener returns one that registers the metrics objstore_bucket_… with reg; nil is none.
func NewOpener(reg prometheus.Registerer) *Opener {
	return &Opener{reg: reg, metrics: map[string]*objstore.Metrics{}}
}

// Open opens a bucket. Most providers do not ask for it until the first request. Who opens it
// closes it.
func (o *Opener) Open(cfg Config) (objstore.InstrumentedBucket, error) {
	if err := checkKeys(cfg.Objstore); err != nil {
		return nil, fmt.Errorf("objstore: %w", err)
	}
	bkt, err := client.NewBucket(log.NewNopLogger(), cfg.Objstore, "promweave", cfg.RoundTripper)
	if err != nil {
		return nil, fmt.Errorf("objstore: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.metrics[cfg.Name]
	if m == nil {
		m = objstore.BucketMetrics(o.reg, cfg.Name)
		o.metrics[cfg.Name] = m
	}
	return objstore.WrapWith(bkt, m), nil
}

// checkKeys finds what objstore does not: of a directory it takes any keys, and says then that
// the directory is missing.
func checkKeys(text []byte) error {
	var c struct {
		Type   string               `yaml:"type"`
		Config map[string]yaml.Node `yaml:"config"`
	}
	if err := yaml.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("want type, config and prefix: %w", err)
	}
	if c.Type != string(objstore.FILESYSTEM) {
		return nil
	}
	for key := range c.Config {
		if key != "directory" {
			return fmt.Errorf("config.%s: unknown key: a FILESYSTEM bucket has directory", key)
		}
	}
	return nil
}

// Reach asks the bucket for anything at all, so that what is wrong with its address or its keys
// is said when a program starts and not when it is needed.
func Reach(ctx context.Context, bkt objstore.Bucket) error {
	stop := errors.New("there is one")
	err := bkt.Iter(ctx, "", func(string) error { return stop })
	if err != nil && !errors.Is(err, stop) {
		return fmt.Errorf("the bucket cannot be listed: %w", err)
	}
	return nil
}
