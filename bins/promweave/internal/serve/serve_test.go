// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

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
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/sdk/storeapi"
)

// A cloud's client starts a goroutine when it is linked, so those that run already do not count.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

// server is a running process.
type server struct {
	t    *testing.T
	addr Addresses
	log  *syncBuffer
	stop context.CancelFunc
	done chan error
	http *http.Client
	base string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// testConfig is the default one with free ports and a directory of its own.
func testConfig(t *testing.T) config.Config {
	c := config.Default()
	c.HTTP.Listen, c.GRPC.Listen = "127.0.0.1:0", "127.0.0.1:0"
	c.Backends[0].TSDB.Path = filepath.Join(t.TempDir(), "data")
	return c
}

// start runs a process until the test ends.
func start(t *testing.T, o Options, scheme string, client *http.Client) *server {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	s := &server{t: t, log: &syncBuffer{}, stop: stop, done: make(chan error, 1), http: client}
	o.Log = s.log
	started := make(chan Addresses, 1)
	o.Started = func(a Addresses) { started <- a }
	go func() { s.done <- Run(ctx, o) }()
	select {
	case s.addr = <-started:
	case err := <-s.done:
		stop()
		t.Fatalf("did not start: %v\n%s", err, s.log)
	}
	s.base = scheme + "://" + s.addr.HTTP
	t.Cleanup(func() {
		stop()
		client.CloseIdleConnections()
		if err := <-s.done; err != nil {
			t.Errorf("ended with: %v\n%s", err, s.log)
		}
		s.done <- nil
	})
	return s
}

func plainClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
}

func (s *server) do(method, path string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.base+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", path, err, s.log)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// eventually polls until path answers with a text.
func (s *server) eventually(path, want string) {
	s.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		_, body := s.do("GET", path)
		if strings.Contains(body, want) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			s.t.Fatalf("%s never had %q:\n%.2000s\n%s", path, want, body, s.log)
		}
	}
}

func TestServe(t *testing.T) {
	cfg := testConfig(t)
	s := start(t, Options{Load: func() (config.Config, error) { return cfg, nil }, Version: "devel"}, "http", plainClient())
	s.eventually("/-/ready", "ready.")
	s.eventually("/-/healthy", "")
	s.eventually("/api/v1/query?query=1%2B1", `"2"]`)
	for _, want := range []string{
		"promweave_config_last_reload_successful 1", "promweave_build_info{", "go_goroutines ",
		`promweave_backend_healthy{backend="local",kind="tsdb"} 1`, `prometheus_tsdb_head_series{backend="local"}`,
	} {
		s.eventually("/metrics", want)
	}
	// It scrapes itself into its own database.
	s.eventually("/api/v1/query?query=up", `"job":"promweave"`)
	s.eventually("/api/v1/metadata?metric=promweave_build_info", `"gauge"`)
	s.eventually("/api/v1/status/config", "retention: 15d")
	s.eventually("/api/v1/status/buildinfo", `"version":"3.9.1+promweave.devel"`)
	for _, want := range []string{"http=" + s.addr.HTTP, "grpc=" + s.addr.GRPC, "http://" + s.addr.HTTP + "/api/v1/query?query=up"} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, s.log)
		}
	}

	opts, err := storeapi.DialOptions(storeapi.DialConfig{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.addr.GRPC, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	info, err := storeapi.NewClient(conn, storeapi.ClientConfig{Name: "test"}).Info(t.Context())
	if err != nil || info.Component != "query" {
		t.Errorf("StoreAPI info: %+v, %v", info, err)
	}

	// A second one on the same port does not start, and says what to do.
	second := cfg
	second.HTTP.Listen = s.addr.HTTP
	err = Run(t.Context(), Options{Load: func() (config.Config, error) { return second, nil }, Log: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "is in use") || !strings.Contains(err.Error(), "--http.listen") {
		t.Errorf("a second process on the same port: %v", err)
	}
	// Nor one on the same directory.
	second.HTTP.Listen = "127.0.0.1:0"
	err = Run(t.Context(), Options{Load: func() (config.Config, error) { return second, nil }, Log: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "backend local") {
		t.Errorf("a second process on the same directory: %v", err)
	}

	s.stop()
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil
	if c, err := net.Dial("tcp", s.addr.HTTP); err == nil {
		c.Close()
		t.Error("still listening after the end")
	}
}

func TestReload(t *testing.T) {
	var (
		mu  sync.Mutex
		cfg = testConfig(t)
		bad error
	)
	set := func(c config.Config, err error) {
		mu.Lock()
		defer mu.Unlock()
		cfg, bad = c, err
	}
	first := cfg
	s := start(t, Options{Load: func() (config.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		return cfg, bad
	}}, "http", plainClient())
	s.eventually("/-/ready", "ready.")

	// A file that cannot be read leaves all as it was.
	set(first, errors.New("p.yaml:7: no good"))
	if code, body := s.do("POST", "/-/reload"); code != 500 || !strings.Contains(body, "p.yaml:7: no good") {
		t.Errorf("reload of a bad file: %d %s", code, body)
	}
	s.eventually("/metrics", "promweave_config_last_reload_successful 0")
	s.eventually("/api/v1/stores", `"name":"local"`)
	s.eventually("/api/v1/query?query=up", `"job":"promweave"`)

	// So does one that reads well but cannot be put in force.
	broken := first
	broken.Backends = append(broken.Backends[:1:1], config.Backend{Name: "gone", Kind: "tsdb", TSDB: &config.TSDB{Path: filepath.Join(t.TempDir(), "none"), ReadOnly: true}, Required: true})
	set(broken, nil)
	if code, body := s.do("POST", "/-/reload"); code != 500 || !strings.Contains(body, "backend gone") {
		t.Errorf("reload with a missing directory: %d %s", code, body)
	}
	// A database in use cannot be opened a second time.
	moved := first
	moved.Backends = []config.Backend{first.Backends[0]}
	moved.Backends[0].ExternalLabels = map[string]string{"cluster": "x"}
	set(moved, nil)
	if code, body := s.do("POST", "/-/reload"); code != 500 || !strings.Contains(body, "needs a restart") {
		t.Errorf("reload with other labels for a database: %d %s", code, body)
	}

	// Nor does the backend go away that the process itself writes to.
	without := first
	without.Backends, without.SelfScrape.Backend = nil, ""
	set(without, nil)
	if code, body := s.do("POST", "/-/reload"); code != 500 || !strings.Contains(body, "self_scrape") {
		t.Errorf("reload without the backend of self_scrape: %d %s", code, body)
	}

	// A good one: a new backend, another limit; and what stays the same stays open.
	good := first
	good.Query.LookbackDelta = time.Minute
	good.Tracing.SampleRatio = 0.5
	good.Backends = append(good.Backends[:1:1], config.Backend{Name: "prom", Kind: "prometheus", Prometheus: &config.Prometheus{URL: "http://127.0.0.1:1", ReadMode: "auto"}})
	set(good, nil)
	if code, body := s.do("POST", "/-/reload"); code != 200 {
		t.Errorf("reload: %d %s", code, body)
	}
	s.eventually("/metrics", "promweave_config_last_reload_successful 1")
	s.eventually("/api/v1/stores", `"name":"prom"`)
	s.eventually("/api/v1/status/config", "lookback_delta: 1m")
	s.eventually("/api/v1/query?query=up", `"job":"promweave"`)
	if !strings.Contains(s.log.String(), "next restart only") {
		t.Error("the log does not say that tracing stays as it is")
	}

	// The same by signal.
	set(first, nil)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.eventually("/api/v1/status/config", "lookback_delta: 5m")
	if _, body := s.do("GET", "/api/v1/stores"); strings.Contains(body, `"name":"prom"`) {
		t.Errorf("a backend that left the configuration is still there: %s", body)
	}
}

// TestGracefulStop: requests that run when the end comes are answered, but not for
// longer than a query may take.
func TestGracefulStop(t *testing.T) {
	for _, patient := range []bool{true, false} {
		t.Run(fmt.Sprintf("finishes=%v", patient), func(t *testing.T) {
			cfg := testConfig(t)
			if !patient {
				cfg.Query.Timeout = 50 * time.Millisecond
			}
			running, finish := make(chan struct{}), make(chan struct{})
			s := start(t, Options{
				Load: func() (config.Config, error) { return cfg, nil },
				Extra: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					close(running)
					select {
					case <-finish:
						fmt.Fprint(w, "whole")
					case <-r.Context().Done():
					}
				}),
			}, "http", plainClient())
			got := make(chan string, 1)
			go func() {
				resp, err := s.http.Get(s.base + "/slow")
				if err != nil {
					got <- "cut"
					return
				}
				defer resp.Body.Close()
				b, _ := io.ReadAll(resp.Body)
				got <- string(b)
			}()
			<-running
			s.stop()
			want := "cut"
			if patient {
				// New requests are refused while the old one runs.
				for {
					c, err := net.Dial("tcp", s.addr.HTTP)
					if err != nil {
						break
					}
					c.Close()
				}
				close(finish)
				want = "whole"
			}
			if text := <-got; text != want {
				t.Errorf("the request got %q, want %q", text, want)
			}
			if err := <-s.done; err != nil {
				t.Error(err)
			}
			s.done <- nil
		})
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t, filepath.Join(dir, "ca.pem"))
	ca.issue(t, dir, "server")
	ca.issue(t, dir, "client")
	webConfig := filepath.Join(dir, "web.yaml")
	example, err := os.ReadFile("../../../../configs/tls/web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(webConfig, example, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t)
	cfg.HTTP.WebConfigFile = webConfig
	cfg.GRPC.TLS = config.GRPCServerTLS{
		Cert: filepath.Join(dir, "server.pem"), Key: filepath.Join(dir, "server-key.pem"), ClientCA: filepath.Join(dir, "ca.pem"),
	}
	tlsClient := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool}, DisableKeepAlives: true}}
	s := start(t, Options{Load: func() (config.Config, error) { return cfg, nil }}, "https", tlsClient)
	if code, _ := s.do("GET", "/-/ready"); code != http.StatusUnauthorized {
		t.Errorf("without a password: status %d", code)
	}
	s.base = "https://grafana:promweave@" + s.addr.HTTP // those of the example
	s.eventually("/-/ready", "ready.")

	info := func(certs ...tls.Certificate) error {
		opts, err := storeapi.DialOptions(storeapi.DialConfig{Credentials: credentials.NewTLS(&tls.Config{RootCAs: ca.pool, Certificates: certs})})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := grpc.NewClient(s.addr.GRPC, opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = storeapi.NewClient(conn, storeapi.ClientConfig{Name: "test"}).Info(t.Context())
		return err
	}
	if err := info(); err == nil {
		t.Error("a client without certificate is let in")
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := info(pair); err != nil {
		t.Errorf("a client with a certificate: %v", err)
	}

	// The same through the configuration of a backend, from a second Promweave.
	upper := testConfig(t)
	upper.Backends = append(upper.Backends, config.Backend{Name: "lower", Kind: "storeapi", StoreAPI: &config.StoreAPI{
		Address: s.addr.GRPC, Compression: "snappy", TLS: config.ClientTLS{
			Enabled: true, CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "client.pem"), Key: filepath.Join(dir, "client-key.pem"),
		},
	}})
	u := start(t, Options{Load: func() (config.Config, error) { return upper, nil }}, "http", plainClient())
	u.eventually("/metrics", `promweave_backend_healthy{backend="lower",kind="storeapi"} 1`)

	// A broken certificate is noticed at the start.
	cfg.GRPC.TLS.Cert = webConfig
	if err := Run(t.Context(), Options{Load: func() (config.Config, error) { return cfg, nil }, Log: io.Discard}); err == nil {
		t.Error("started with a certificate that is none")
	}
}

// TestTracingEndpointMayBeDown: traces are a matter of their own.
func TestTracingEndpointMayBeDown(t *testing.T) {
	cfg := testConfig(t)
	cfg.GRPC.Listen = ""
	cfg.Tracing = config.Tracing{Endpoint: "127.0.0.1:1", Insecure: true, SampleRatio: 1}
	s := start(t, Options{ConfigFile: "p.yaml", Load: func() (config.Config, error) { return cfg, nil }}, "http", plainClient())
	s.eventually("/api/v1/query?query=1%2B1", `"2"]`)
	// What OpenTelemetry has to say comes in the log and nowhere else.
	otel.Handle(errors.New("no receiver"))
	if !strings.Contains(s.log.String(), `part=tracing err="no receiver"`) {
		t.Errorf("an error of OpenTelemetry is not in the log:\n%s", s.log)
	}
	// A configuration file needs no hint that there is none; addresses are logged.
	if log := s.log.String(); strings.Contains(log, "query?query=up") || !strings.Contains(log, "grpc=off") {
		t.Errorf("log:\n%s", log)
	}
}

// TestUnknownParameters: they are refused unless the configuration says otherwise.
func TestUnknownParameters(t *testing.T) {
	for ignore, want := range map[bool]int{false: 400, true: 200} {
		cfg := testConfig(t)
		cfg.HTTP.IgnoreUnknownParameters = ignore
		s := start(t, Options{Load: func() (config.Config, error) { return cfg, nil }}, "http", plainClient())
		s.eventually("/-/ready", "ready.")
		if code, body := s.do("GET", "/api/v1/query?query=1&tiem=5"); code != want {
			t.Errorf("http.ignore_unknown_parameters %v: %d %s", ignore, code, body)
		}
		if code, body := s.do("GET", "/api/v1/query?query=1&_=5"); code != 200 {
			t.Errorf("an underscore, http.ignore_unknown_parameters %v: %d %s", ignore, code, body)
		}
	}
}

// TestBuildVersion: it follows the module, and go.mod agrees with what is said
// where the module is not known.
func TestBuildVersion(t *testing.T) {
	mod, err := os.ReadFile("../../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\s*github\.com/prometheus/prometheus (\S+)$`).FindSubmatch(mod)
	if m == nil {
		t.Fatal("go.mod does not name Prometheus")
	}
	if got := fromModule(string(m[1])); got != prometheusVersion {
		t.Errorf("go.mod has %s, which is Prometheus %q, not %s", m[1], got, prometheusVersion)
	}
	dep := func(path, v string) *debug.BuildInfo {
		return &debug.BuildInfo{Deps: []*debug.Module{{Path: path, Version: v}}}
	}
	for _, tc := range []struct {
		own, want string
		info      *debug.BuildInfo
	}{
		{"devel", prometheusVersion + "+promweave.devel", nil},
		{"", prometheusVersion + "+promweave.devel", &debug.BuildInfo{}},
		{"v1.2.3", "3.11.2+promweave.1.2.3", dep(modulePath, "v0.311.2")},
		{"1.2.3+dirty", "3.0.0+promweave.1.2.3-dirty", dep(modulePath, "v0.300.0")},
		{"1", prometheusVersion + "+promweave.1", dep(modulePath, "v0.0.0-20250101000000-abcdef123456")},
		{"1", prometheusVersion + "+promweave.1", dep("example.org/other", "v0.311.2")},
		{"1", "3.12.0+promweave.1", &debug.BuildInfo{Deps: []*debug.Module{{Path: modulePath, Version: "v0.311.2",
			Replace: &debug.Module{Path: "example.org/fork", Version: "v0.312.0"}}}}},
	} {
		if got := buildVersion(tc.own, tc.info); got != tc.want {
			t.Errorf("version of %q is %s, want %s", tc.own, got, tc.want)
		}
	}
}

func TestReachable(t *testing.T) {
	for in, want := range map[*net.TCPAddr]string{
		{IP: net.IPv4zero, Port: 1}: "localhost:1", {IP: net.IPv6unspecified, Port: 1}: "localhost:1",
		{IP: net.IPv6loopback, Port: 1}: "[::1]:1", {IP: net.IPv4(10, 0, 0, 1), Port: 1}: "10.0.0.1:1",
	} {
		if got := reachable(in); got != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newCA(t *testing.T, file string) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	der := a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	var err error
	if a.cert, err = x509.ParseCertificate(der.der); err != nil {
		t.Fatal(err)
	}
	a.key = der.key
	a.pool.AddCert(a.cert)
	writePEM(t, file, "CERTIFICATE", der.der)
	return a
}

type signed struct {
	der []byte
	key *ecdsa.PrivateKey
}

func (a *authority) sign(t *testing.T, c *x509.Certificate) signed {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return signed{der, key}
}

func (a *authority) issue(t *testing.T, dir, name string) {
	t.Helper()
	s := a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	key, err := x509.MarshalECPrivateKey(s.key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".pem"), "CERTIFICATE", s.der)
	writePEM(t, filepath.Join(dir, name+"-key.pem"), "EC PRIVATE KEY", key)
}

func writePEM(t *testing.T, file, typ string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
