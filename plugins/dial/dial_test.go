// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package dial_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/carrier/carriertest"
	"github.com/promweave/promweave/plugins/carrier/carriertest/faultfilter"
	"github.com/promweave/promweave/plugins/carrier/carriertest/teststore"
	"github.com/promweave/promweave/plugins/dial"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/serve"
	"github.com/promweave/promweave/sdk/plugin/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service is a plug-in on the network that can be stopped and started again.
type service struct {
	t    *testing.T
	cfg  serve.Config
	addr string
	tls  *tls.Config

	mu     sync.Mutex
	server *grpc.Server
	plugin *serve.Server
	ended  chan struct{}
}

// start serves, at the address where it was before if there was one.
func (s *service) start() *service {
	s.t.Helper()
	addr := s.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.serve(lis)
	return s
}

func (s *service) serve(lis net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr = lis.Addr().String()
	opts := wire.ServerOptions()
	if s.tls != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(s.tls)))
	}
	plugin, err := serve.NewServer(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	g := grpc.NewServer(opts...)
	plugin.Register(g)
	s.server, s.plugin, s.ended = g, plugin, make(chan struct{})
	ended := s.ended
	go func() {
		defer close(ended)
		_ = g.Serve(lis)
	}()
}

func (s *service) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return
	}
	s.server.Stop()
	<-s.ended
	_ = s.plugin.Close()
	s.server = nil
}

func newService(t *testing.T, cfg serve.Config) *service {
	s := &service{t: t, cfg: cfg}
	t.Cleanup(s.stop)
	return s
}

func filterService(t *testing.T, hang func()) *service {
	return newService(t, serve.Config{Filter: faultfilter.New(hang)})
}

func open(t *testing.T, cfg dial.Config, reg prometheus.Registerer) *dial.Plugin {
	t.Helper()
	p, err := dial.Open(t.Context(), cfg, nil, reg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// gate holds back calls that hang until they are let go.
type gate struct {
	mu sync.Mutex
	ch chan struct{}
}

func (g *gate) wait() {
	g.mu.Lock()
	ch := g.ch
	g.mu.Unlock()
	<-ch
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.ch)
	g.ch = make(chan struct{})
}

func TestCarrier(t *testing.T) {
	g := &gate{ch: make(chan struct{})}
	long := dial.Config{Name: "faulty", OpenTime: 20 * time.Second, CallTime: 2 * time.Second}
	carriertest.Run(t, carriertest.Carrier{
		Filter: func(t *testing.T) carrier.Plugin {
			long := long
			long.Address = filterService(t, g.wait).start().addr
			return open(t, long, nil)
		},
		Backend: func(t *testing.T) carrier.Plugin {
			long := long
			long.Name = "teststore"
			long.Address = newService(t, serve.Config{Backend: teststore.New()}).start().addr
			return open(t, long, nil)
		},
		Unhang: g.open,
	})
}

// eventually calls f until it returns true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in 30 s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func closing(t *testing.T, p *dial.Plugin) {
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestRestart: a service that comes back, without knowing us, is used again; filters
// and backends that were configured before go on.
func TestRestart(t *testing.T) {
	s := filterService(t, func() {}).start()
	reg := prometheus.NewRegistry()
	p := open(t, dial.Config{Name: "f", Address: s.addr}, reg)
	closing(t, p)
	f, err := p.Filter(t.Context(), &filter.Config{Name: "i", JSON: []byte(`{"tier":"rows","set":"a=b"}`)})
	if err != nil {
		t.Fatal(err)
	}
	in := carriertest.Frames(t, filter.TierRows, nil)[1]
	want, err := f.Rewrite(t.Context(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		s.stop()
		eventually(t, "noticing that it is gone", func() bool { return p.Status().State != carrier.Serving })
		if _, err := f.Rewrite(t.Context(), in, nil); !errors.Is(err, carrier.ErrFault) || !errors.Is(err, backend.ErrUnavailable) {
			t.Fatalf("while it is gone: %v", err)
		}
		s.start()
		eventually(t, "using it again", func() bool { return p.Status().State == carrier.Serving })
		got, err := f.Rewrite(t.Context(), in, nil)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("restart %d: %v", i, err)
		}
	}
	if st := p.Status(); st.Restarts != 3 || st.Instances != 1 {
		t.Errorf("status %+v", st)
	}
	if n, err := testutil.GatherAndCount(reg, "promweave_plugin_state", "promweave_plugin_restarts_total"); err != nil || n != 6 {
		t.Errorf("%d metrics, %v", n, err)
	}
}

// TestQuickRestart: a stream ends with an error when its service goes; what was
// configured is asked again when it is back.
func TestQuickRestart(t *testing.T) {
	s := newService(t, serve.Config{Backend: teststore.New()}).start()
	p := open(t, dial.Config{Name: "s", Address: s.addr}, nil)
	closing(t, p)
	b, err := p.Backend(t.Context(), &filter.Config{JSON: []byte(`{"series":2000,"fault":"block","in":"series","after":1000}`)})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	var last error
	for batch, err := range b.Series(t.Context(), &backend.SeriesRequest{MaxTime: 1 << 40}) {
		if last = err; err != nil {
			break
		}
		if n += batch.Len(); n == 1000 {
			s.stop()
		}
	}
	if !errors.Is(last, carrier.ErrFault) || !errors.Is(last, backend.ErrUnavailable) {
		t.Errorf("a stream whose service is gone after %d series ends with %v", n, last)
	}
	s.start()
	eventually(t, "using it again", func() bool {
		_, err := b.Info(t.Context())
		return err == nil
	})
}

// TestDownAtFirst: what is configured while the service is down works when it is up.
func TestDownAtFirst(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := lis.Addr().String()
	_ = lis.Close()
	p := open(t, dial.Config{Name: "s", Address: addr, OpenTime: time.Millisecond, HealthEvery: 10 * time.Millisecond, FailAfter: 2}, nil)
	closing(t, p)
	if d := p.Description(); d.Name != "s" || d.Version != "" {
		t.Errorf("description before the first contact: %+v", d)
	}
	if _, err := p.Filter(t.Context(), &filter.Config{}); !errors.Is(err, carrier.ErrFault) || !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("a filter whose plan nobody knows: %v", err)
	}
	good, err := p.Backend(t.Context(), &filter.Config{Name: "g", JSON: []byte(`{"series":3}`)})
	if err != nil {
		t.Fatal(err)
	}
	bad, err := p.Backend(t.Context(), &filter.Config{Name: "b", JSON: []byte(`{"series":"x"}`)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := good.Info(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("info: %v", err)
	}
	eventually(t, "giving up", func() bool { return p.Status().State == carrier.Failed })
	if s := p.Status(); !strings.Contains(s.LastFault, addr) {
		t.Errorf("status %+v", s)
	}
	s := newService(t, serve.Config{Backend: teststore.New()})
	s.addr = addr
	s.start()
	eventually(t, "using it", func() bool {
		_, err := good.Info(t.Context())
		return err == nil
	})
	if d := p.Description(); d.Name != "teststore" || !d.Backend {
		t.Errorf("description %+v", d)
	}
	// One configuration that is wrong does not keep the others from working.
	if _, err := bad.Info(t.Context()); backend.Kind(err) != backend.ErrInvalid || !strings.Contains(err.Error(), "series") {
		t.Errorf("info of the wrong configuration: %v", err)
	}
}

// TestNoPlugin: something else at the address, or another plug-in after a restart, is
// said in one sentence.
func TestNoPlugin(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = g.Serve(lis)
	}()
	p := open(t, dial.Config{Name: "s", Address: lis.Addr().String(), OpenTime: time.Millisecond, HealthEvery: 10 * time.Millisecond}, nil)
	closing(t, p)
	eventually(t, "saying so", func() bool {
		return strings.Contains(p.Status().LastFault, "does not serve promweave.plugin.v1.Plugin")
	})
	g.Stop()
	<-ended

	s := filterService(t, func() {}).start()
	q := open(t, dial.Config{Name: "q", Address: s.addr, HealthEvery: 10 * time.Millisecond}, nil)
	closing(t, q)
	s.stop()
	other := newService(t, serve.Config{Backend: teststore.New()})
	other.addr = s.addr
	other.start()
	eventually(t, "saying so", func() bool {
		return strings.Contains(q.Status().LastFault, `there is now "teststore" instead of "faulty"`)
	})
}

// TestUnhealthy: a plug-in that says that it cannot work is not asked until it can.
func TestUnhealthy(t *testing.T) {
	var mu sync.Mutex
	problem := ""
	set := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		problem = s
	}
	s := newService(t, serve.Config{Backend: teststore.New(), Health: func() string {
		mu.Lock()
		defer mu.Unlock()
		return problem
	}}).start()
	p := open(t, dial.Config{Name: "s", Address: s.addr, HealthEvery: 5 * time.Millisecond}, nil)
	closing(t, p)
	b, err := p.Backend(t.Context(), &filter.Config{})
	if err != nil {
		t.Fatal(err)
	}
	set("the disk is full")
	eventually(t, "noticing", func() bool { return strings.Contains(p.Status().LastFault, "the disk is full") })
	eventually(t, "refusing", func() bool {
		_, err := b.Info(t.Context())
		return errors.Is(err, backend.ErrUnavailable) && strings.Contains(err.Error(), "the disk is full")
	})
	set("")
	eventually(t, "going on", func() bool {
		_, err := b.Info(t.Context())
		return err == nil
	})
}

// TestCircuit: too many faults of calls and the plug-in is left alone for a while.
func TestCircuit(t *testing.T) {
	s := newService(t, serve.Config{Backend: teststore.New()}).start()
	p := open(t, dial.Config{Name: "s", Address: s.addr, MaxFaults: 3, FaultTime: time.Second}, nil)
	closing(t, p)
	bad, err := p.Backend(t.Context(), &filter.Config{JSON: []byte(`{"fault":"panic","in":"names"}`)})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "opening the circuit", func() bool {
		_, err := bad.LabelNames(t.Context(), &backend.LabelNamesRequest{MaxTime: 1})
		if !errors.Is(err, carrier.ErrFault) {
			t.Fatalf("error %v", err)
		}
		return errors.Is(err, backend.ErrUnavailable)
	})
	eventually(t, "closing it", func() bool {
		_, err := bad.Info(t.Context())
		return err == nil && p.Status().State == carrier.Serving
	})
}

func TestBadConfiguration(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cfg  dial.Config
		want string
	}{
		{dial.Config{}, "host:port"},
		{dial.Config{Address: "host"}, "host:port"},
		{dial.Config{Address: "host:port"}, "1 to 65535"},
		{dial.Config{Address: ":1"}, "host:port"},
		{dial.Config{Address: "http+host:1"}, "unknown prefix"},
		{dial.Config{Address: "dnssrv+a:1"}, "service record"},
		{dial.Config{Address: "h:1", TLS: &dial.TLS{CAFile: filepath.Join(dir, "none")}}, "authorities"},
		{dial.Config{Address: "h:1", TLS: &dial.TLS{CAFile: empty}}, "no certificate"},
		{dial.Config{Address: "h:1", TLS: &dial.TLS{CertFile: empty}}, "belong together"},
		{dial.Config{Address: "h:1", TLS: &dial.TLS{CertFile: empty, KeyFile: empty}}, "certificate"},
	} {
		p, err := dial.Open(t.Context(), c.cfg, nil, nil)
		if err == nil {
			_ = p.Close()
			t.Errorf("%+v is accepted", c.cfg)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v does not say %q", c.cfg, err, c.want)
		}
	}
}

// pair writes a certificate and its key, signed by ca, or by itself.
func pair(t *testing.T, dir, name string, ca *tls.Certificate) (cert tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{name},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:        ca == nil, BasicConstraintsValid: true,
	}
	parent, signer := template, any(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	certFile, keyFile = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	if err := errors.Join(os.WriteFile(certFile, certPEM, 0o600), os.WriteFile(keyFile, keyPEM, 0o600)); err != nil {
		t.Fatal(err)
	}
	if cert, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	return cert, certFile, keyFile
}

// TestMutualTLS: only those who have the right certificates speak with each other.
func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	ca, caFile, _ := pair(t, dir, "ca", nil)
	server, _, _ := pair(t, dir, "server", &ca)
	_, certFile, keyFile := pair(t, dir, "client", &ca)
	_, otherFile, _ := pair(t, dir, "otherca", nil)
	_, strayCert, strayKey := pair(t, dir, "stray", nil)

	s := filterService(t, func() {})
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	s.tls = &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	s.start()
	for name, c := range map[string]struct {
		tls *dial.TLS
		ok  bool
	}{
		"both":              {&dial.TLS{CAFile: caFile, CertFile: certFile, KeyFile: keyFile}, true},
		"another name":      {&dial.TLS{CAFile: caFile, CertFile: certFile, KeyFile: keyFile, ServerName: "server"}, true},
		"a wrong name":      {&dial.TLS{CAFile: caFile, CertFile: certFile, KeyFile: keyFile, ServerName: "elsewhere"}, false},
		"no certificate":    {&dial.TLS{CAFile: caFile}, false},
		"stray certificate": {&dial.TLS{CAFile: caFile, CertFile: strayCert, KeyFile: strayKey}, false},
		"wrong authority":   {&dial.TLS{CAFile: otherFile, CertFile: certFile, KeyFile: keyFile}, false},
		"plain text":        {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := dial.Config{Name: "f", Address: s.addr, TLS: c.tls, OpenTime: 20 * time.Second}
			if !c.ok {
				cfg.OpenTime = time.Millisecond
			}
			p := open(t, cfg, nil)
			closing(t, p)
			if !c.ok {
				eventually(t, "failing", func() bool { return p.Status().LastFault != "" })
			}
			if got := p.Status().State == carrier.Serving; got != c.ok {
				t.Errorf("status %+v", p.Status())
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			f, err := p.Filter(ctx, &filter.Config{JSON: []byte(`{"tier":"rows"}`)})
			if (err == nil) != c.ok {
				t.Errorf("configuring: %v", err)
			}
			if err == nil {
				_ = f.Close()
			}
		})
	}
}
