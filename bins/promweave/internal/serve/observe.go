// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/promslog"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/stats"

	"github.com/promweave/promweave/bins/promweave/internal/config"
)

// newLogger also returns what changes the level later.
func newLogger(c config.Logging, w io.Writer) (*slog.Logger, func(string) error) {
	level, format := promslog.NewLevel(), promslog.NewFormat()
	// The configuration has been checked.
	_ = level.Set(c.Level)
	_ = format.Set(c.Format)
	return promslog.New(&promslog.Config{Level: level, Format: format, Writer: w}), level.Set
}

// metrics gathers the metrics of the process and of the parts that come and go
// with reloads, each of which has a registry of its own.
type metrics struct {
	base     *prometheus.Registry
	reloadOK prometheus.Gauge
	reloadAt prometheus.Gauge

	mu    sync.Mutex
	parts map[string]*prometheus.Registry
}

func newMetrics() *metrics {
	m := &metrics{
		base: prometheus.NewRegistry(),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "promweave_config_last_reload_successful", Help: "Whether the last attempt to load the configuration succeeded.",
		}),
		reloadAt: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "promweave_config_last_reload_success_timestamp_seconds", Help: "When the configuration in force was loaded.",
		}),
		parts: map[string]*prometheus.Registry{},
	}
	m.base.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		versioncollector.NewCollector("promweave"), m.reloadOK, m.reloadAt,
	)
	return m
}

// set replaces the registry of a part; nil removes it.
func (m *metrics) set(part string, reg *prometheus.Registry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if reg == nil {
		delete(m.parts, part)
		return
	}
	m.parts[part] = reg
}

func (m *metrics) reloaded(ok bool, at time.Time) {
	if !ok {
		m.reloadOK.Set(0)
		return
	}
	m.reloadOK.Set(1)
	m.reloadAt.Set(float64(at.UnixMilli()) / 1000)
}

// Gather implements prometheus.Gatherer.
func (m *metrics) Gather() ([]*dto.MetricFamily, error) {
	m.mu.Lock()
	all := prometheus.Gatherers{m.base}
	for _, name := range slices.Sorted(maps.Keys(m.parts)) {
		all = append(all, m.parts[name])
	}
	m.mu.Unlock()
	return all.Gather()
}

// tracing is nil if it is turned off; its methods then do nothing.
type tracing struct {
	exporter   trace.SpanExporter
	provider   *trace.TracerProvider
	propagator propagation.TextMapPropagator
}

func newTracing(ctx context.Context, c config.Tracing, version string) (*tracing, error) {
	if c.Endpoint == "" {
		return nil, nil
	}
	opts := []otlptracegrpc.Option{
		otlptracegrpc.WithEndpoint(c.Endpoint), otlptracegrpc.WithTimeout(2 * time.Second),
		// The default tries for a minute, which would hold up the end of the process.
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: true, InitialInterval: 200 * time.Millisecond, MaxInterval: time.Second, MaxElapsedTime: 2 * time.Second}),
	}
	if c.Insecure {
		opts = append(opts, otlptracegrpc.WithInsecure())
	}
	exp, err := otlptracegrpc.New(ctx, opts...) // connects later
	if err != nil {
		return nil, fmt.Errorf("tracing.endpoint: %w", err)
	}
	return &tracing{
		exporter: exp,
		provider: trace.NewTracerProvider(
			trace.WithBatcher(exp),
			trace.WithSampler(trace.ParentBased(trace.TraceIDRatioBased(c.SampleRatio))),
			trace.WithResource(resource.NewSchemaless(
				attribute.String("service.name", "promweave"), attribute.String("service.version", version),
			)),
		),
		propagator: propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}),
	}, nil
}

func (t *tracing) close() error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	err := t.provider.Shutdown(ctx)
	if err != nil {
		// What the provider gave up waiting for goes on until its exporter ends.
		_ = t.exporter.Shutdown(context.WithoutCancel(ctx))
	}
	return err
}

func (t *tracing) http(next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	return otelhttp.NewHandler(next, "promweave",
		otelhttp.WithTracerProvider(t.provider), otelhttp.WithPropagators(t.propagator),
		otelhttp.WithSpanNameFormatter(func(_ string, r *http.Request) string { return r.Method + " " + r.URL.Path }),
		otelhttp.WithFilter(func(r *http.Request) bool {
			switch r.URL.Path {
			case "/metrics", "/-/healthy", "/-/ready":
				return false
			}
			return true
		}))
}

// tracer makes the spans of the query engine's fan-out; nil makes none.
func (t *tracing) tracer() oteltrace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer("github.com/promweave/promweave/core/fanout")
}

func (t *tracing) grpcServer() []stats.Handler {
	if t == nil {
		return nil
	}
	return []stats.Handler{otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(t.propagator))}
}

func (t *tracing) grpcClient() []stats.Handler {
	if t == nil {
		return nil
	}
	return []stats.Handler{otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(t.propagator))}
}

// serverTLS reads its files for every connection, so that certificates can be
// renewed without a restart. That they can be read now is checked here.
func serverTLS(c config.GRPCServerTLS) (*tls.Config, error) {
	load := func() (*tls.Config, error) {
		cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, err
		}
		out := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}
		if c.ClientCA != "" {
			if out.ClientCAs, err = pool(c.ClientCA); err != nil {
				return nil, err
			}
			out.ClientAuth = tls.RequireAndVerifyClientCert
		}
		return out, nil
	}
	first, err := load()
	if err != nil {
		return nil, err
	}
	first.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return load() }
	return first, nil
}

func pool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		return nil, errors.New(file + " holds no certificate in PEM form")
	}
	return p, nil
}
