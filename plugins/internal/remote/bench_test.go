// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remote_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"iter"
	"math/big"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/promweave/promweave/plugins/internal/remote"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/serve"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
	"github.com/promweave/promweave/sdk/storeapi"
)

// fixed is a store whose answer is made already: 20 batches of 1,000 series, each with
// ten labels and a chunk of 120 samples.
type fixed struct {
	backend.Unimplemented
	batches []*backend.Batch
}

const (
	benchBatches = 20
	benchSeries  = 1000
)

func newFixed(tb testing.TB) *fixed {
	tb.Helper()
	f := &fixed{}
	for i := range benchBatches {
		b := backend.NewBatch(benchSeries)
		for k := range benchSeries {
			n := i*benchSeries + k
			ls := labels.FromStrings("__name__", "http_request_duration_seconds_count", "cluster", "eu-west-1", "code", fmt.Sprint(200+n%5),
				"container", "server", "handler", fmt.Sprintf("/api/v1/resource/%d", n%40), "instance", fmt.Sprintf("10.0.%d.%d:8080", n/250, n%250),
				"job", "api", "method", "GET", "namespace", fmt.Sprintf("team-%d", n%20), "pod", fmt.Sprintf("api-server-%08x", n))
			samples := make([]shaping.Sample, 120)
			for s := range samples {
				samples[s] = shaping.Sample{T: int64(s) * 15000, F: float64(n + s*(s%7))}
			}
			chunks, err := shaping.EncodeSamples(samples)
			if err != nil {
				tb.Fatal(err)
			}
			b.Append(backend.Series{Labels: ls, Chunks: chunks})
		}
		f.batches = append(f.batches, b)
	}
	return f
}

func (f *fixed) Info(context.Context) (backend.Info, error) { return backend.AllTime(), nil }

func (f *fixed) Series(context.Context, *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		for _, b := range f.batches {
			if !yield(b, nil) {
				return
			}
		}
	}
}

func (f *fixed) Describe() filter.Description                      { return filter.Description{Name: "fixed"} }
func (f *fixed) Configure(*filter.Config) (backend.Backend, error) { return f, nil }
func (f *fixed) plain() (out []*pluginpb.SeriesBatch) {
	for _, b := range f.batches {
		m := &pluginpb.SeriesBatch{}
		for i := range b.Len() {
			s := b.At(i)
			p := &pluginpb.PlainSeries{}
			s.Labels.Range(func(l labels.Label) { p.Labels = append(p.Labels, &pluginpb.Label{Name: l.Name, Value: l.Value}) })
			for k := range 120 {
				p.Samples = append(p.Samples, &pluginpb.PlainSample{Time: int64(k) * 15000, Value: float64(i + k)})
			}
			m.Series = append(m.Series, p)
		}
		out = append(out, m)
	}
	return out
}

// mutual returns what AutoMTLS would use: one certificate for both sides.
func mutual(tb testing.TB) (server, client credentials.TransportCredentials) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	cfg := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: pool, RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS13,
	}
	return credentials.NewTLS(cfg), credentials.NewTLS(cfg)
}

func unixSocket(tb testing.TB, p interface{ Register(grpc.ServiceRegistrar) }, server, client credentials.TransportCredentials) *grpc.ClientConn {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	g := grpc.NewServer(append(wire.ServerOptions(), grpc.Creds(server))...)
	p.Register(g)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = g.Serve(lis)
	}()
	cc, err := grpc.NewClient("unix://"+path, append(wire.DialOptions(), grpc.WithTransportCredentials(client))...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cc.Close()
		g.Stop()
		<-ended
	})
	return cc
}

// cpu is the time that this process has taken on all processors: what others do on a
// busy machine is not in it.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func metrics(b *testing.B, begun time.Duration) {
	n := float64(b.N) * benchBatches * benchSeries
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/series")
	b.ReportMetric(float64((cpu()-begun).Nanoseconds())/n, "cpu-ns/series")
}

// BenchmarkSeries reads 20,000 series, both ends in this process, with the ways that
// they can take. ns/series is wall time,
// cpu-ns/series that of both ends.
func BenchmarkSeries(b *testing.B) {
	f := newFixed(b)
	read := func(b *testing.B, from backend.Backend) {
		b.Helper()
		defer metrics(b, cpu())
		for b.Loop() {
			n := 0
			for batch, err := range from.Series(b.Context(), all()) {
				if err != nil {
					b.Fatal(err)
				}
				n += batch.Len()
			}
			if n != benchBatches*benchSeries {
				b.Fatal(n)
			}
		}
	}
	withLabels := func(b *testing.B, from backend.Backend) {
		b.Helper()
		defer metrics(b, cpu())
		for b.Loop() {
			n := 0
			for batch, err := range from.Series(b.Context(), all()) {
				if err != nil {
					b.Fatal(err)
				}
				for i := range batch.Len() {
					n += batch.At(i).Labels.Len()
				}
			}
			if n != benchBatches*benchSeries*10 {
				b.Fatal(n)
			}
		}
	}
	remoteOf := func(b *testing.B, cc *grpc.ClientConn) backend.Backend {
		b.Helper()
		h, _ := host(b, remote.Config{}, &life{conn: remote.NewConn(cc)})
		r, err := h.Backend(b.Context(), &filter.Config{})
		if err != nil {
			b.Fatal(err)
		}
		return r
	}
	plainText := insecure.NewCredentials()
	b.Run("in process", func(b *testing.B) { withLabels(b, f) })
	b.Run("frames", func(b *testing.B) {
		read(b, remoteOf(b, unixSocket(b, served(b, serve.Config{Backend: f}), plainText, plainText)))
	})
	b.Run("frames, label sets made", func(b *testing.B) {
		withLabels(b, remoteOf(b, unixSocket(b, served(b, serve.Config{Backend: f}), plainText, plainText)))
	})
	b.Run("frames, TLS", func(b *testing.B) {
		server, client := mutual(b)
		read(b, remoteOf(b, unixSocket(b, served(b, serve.Config{Backend: f}), server, client)))
	})
	b.Run("plain series", func(b *testing.B) {
		withLabels(b, remoteOf(b, unixSocket(b, &liar{batches: f.plain()}, plainText, plainText)))
	})
	b.Run("StoreAPI", func(b *testing.B) {
		s := served(b, serve.Config{Backend: f})
		if err := s.ConfigureDefault(b.Context(), []byte(`{}`)); err != nil {
			b.Fatal(err)
		}
		withLabels(b, storeapi.NewClient(unixSocket(b, s, plainText, plainText), storeapi.ClientConfig{}))
	})
}
