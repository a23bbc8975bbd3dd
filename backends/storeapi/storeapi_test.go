// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
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
	"iter"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storeapi"
)

var discard = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is an endpoint with one series that tells its name.
type fake struct {
	backend.Unimplemented
	name string
	hold chan struct{} // if set, Series waits for it after the first batch
}

func (f *fake) Info(context.Context) (backend.Info, error) {
	info := backend.AllTime()
	info.Component, info.LabelSets = "store", []labels.Labels{labels.FromStrings("name", f.name)}
	return info, nil
}

func (f *fake) Series(context.Context, *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		for _, suffix := range []string{"", "-2"} {
			b := backend.NewBatch(1)
			b.Append(backend.Series{Labels: labels.FromStrings("name", f.name+suffix)})
			if !yield(b, nil) {
				return
			}
			if f.hold != nil && suffix == "" {
				<-f.hold
			}
		}
	}
}

// listen serves f on addr, an address of this machine, and returns where.
func listen(t *testing.T, addr string, f *fake, opts ...grpc.ServerOption) (string, func()) {
	t.Helper()
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(append(storeapi.ServerOptions(), opts...)...)
	storeapi.NewServer(f, storeapi.ServerConfig{}).Register(srv)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(lis)
	}()
	stop := sync.OnceFunc(func() {
		srv.Stop()
		<-done
	})
	t.Cleanup(stop)
	return lis.Addr().String(), stop
}

// zone is a DNS server on loopback.
type zone struct {
	mu      sync.Mutex
	records map[string][]string // by "name TYPE", as in a zone file
	broken  bool
	addr    string
}

func newZone(t *testing.T) *zone {
	t.Helper()
	z := &zone{records: map[string][]string{}}
	var pc net.PacketConn
	var lis net.Listener
	// Both need the same port, which may be taken for one of them.
	for try := 0; ; try++ {
		var err error
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if lis, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
		if try == 20 {
			t.Fatal(err)
		}
	}
	z.addr = pc.LocalAddr().String()
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: z}, {Listener: lis, Handler: z}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-done
		})
	}
	return z
}

func (z *zone) set(name, kind string, values ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if values == nil {
		delete(z.records, name+" "+kind)
		return
	}
	z.records[name+" "+kind] = values
}

func (z *zone) setBroken(b bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.broken = b
}

func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	name := strings.TrimSuffix(q.Question[0].Name, ".")
	kind := dns.TypeToString[q.Question[0].Qtype]
	values := z.records[name+" "+kind]
	switch {
	case z.broken:
		m.Rcode = dns.RcodeServerFailure
	case values == nil:
		m.Rcode = dns.RcodeNameError
		for k := range z.records {
			if strings.HasPrefix(k, name+" ") {
				m.Rcode = dns.RcodeSuccess // The name is there, of another type.
			}
		}
	}
	if m.Rcode == dns.RcodeSuccess {
		for _, v := range values {
			rr, err := dns.NewRR(fmt.Sprintf("%s. 5 IN %s %s", name, kind, v))
			if err != nil {
				panic(err)
			}
			m.Answer = append(m.Answer, rr)
		}
	}
	if _, udp := w.LocalAddr().(*net.UDPAddr); udp {
		m.Truncate(udpSize)
	}
	_ = w.WriteMsg(m)
}

func open(t *testing.T, cfg Config) (*Endpoints, <-chan struct{}) {
	t.Helper()
	updated := make(chan struct{}, 1)
	cfg.RefreshInterval = time.Hour // Tests refresh by hand.
	e, err := newEndpoints(cfg, nil, func() {
		select {
		case updated <- struct{}{}:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, updated
}

// names are the members, those that are gone in brackets.
func names(e *Endpoints) string {
	var out []string
	for _, m := range e.Members() {
		if m.Gone != "" {
			m.Name = "(" + m.Name + ")"
		}
		out = append(out, m.Name)
	}
	return strings.Join(out, " ")
}

func wantNames(t *testing.T, e *Endpoints, want ...string) {
	t.Helper()
	if got := names(e); got != strings.Join(want, " ") {
		t.Errorf("members %q, want %q", got, want)
	}
}

func member(t *testing.T, e *Endpoints, name string) backend.Backend {
	t.Helper()
	for _, m := range e.Members() {
		if m.Name == name {
			return m.Backend
		}
	}
	t.Fatalf("no member %s in %s", name, names(e))
	return nil
}

func nameOf(t *testing.T, b backend.Backend) string {
	t.Helper()
	info, err := b.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info.LabelSets[0].Get("name")
}

func TestStaticAndRestart(t *testing.T) {
	addr, stop := listen(t, "127.0.0.1:0", &fake{name: "one"})
	e, _ := open(t, Config{Address: addr, Addresses: []string{addr}})
	wantNames(t, e, addr)
	b := member(t, e, addr)
	if nameOf(t, b) != "one" {
		t.Error("wrong endpoint")
	}
	stop()
	if _, err := b.Info(t.Context()); !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), addr) {
		t.Errorf("stopped: %v", err)
	}
	e.refresh(t.Context())
	wantNames(t, e, addr)
	listen(t, addr, &fake{name: "again"})
	// The connection comes back by itself, after a pause that gRPC chooses.
	deadline := time.Now().Add(20 * time.Second)
	for {
		e.mu.Lock()
		e.open[addr].conn.ResetConnectBackoff()
		e.mu.Unlock()
		info, err := b.Info(t.Context())
		if err == nil && info.LabelSets[0].Get("name") == "again" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a restart: %v", err)
		}
	}
}

func TestDNS(t *testing.T) {
	z := newZone(t)
	z.set("st.test", "A", "127.0.0.1", "127.0.0.2")
	z.set("st.test", "AAAA", "::1")
	z.set("_grpc._tcp.st.test", "SRV", "1 1 1001 a.test.", "1 1 1002 b.test.")
	z.set("a.test", "A", "10.0.0.1")
	z.set("b.test", "A", "10.0.0.2", "10.0.0.3")
	for name, want := range map[string][]string{
		"dns+st.test:10901":                 {"127.0.0.1:10901", "127.0.0.2:10901", "[::1]:10901"},
		"dnssrv+_grpc._tcp.st.test":         {"10.0.0.1:1001", "10.0.0.2:1002", "10.0.0.3:1002"},
		"dnssrvnoa+_grpc._tcp.st.test":      {"a.test:1001", "b.test:1002"},
		"dnssrvnoa+_grpc._tcp.st.test:7777": {"a.test:7777", "b.test:7777"},
		"dns+nowhere.test:1":                {"(dns+nowhere.test:1)"},
		"dns+127.0.0.9:5":                   {"127.0.0.9:5"},
	} {
		e, _ := open(t, Config{Address: name, Resolver: z.addr})
		wantNames(t, e, want...)
	}
	e, _ := open(t, Config{Address: "dns+nowhere.test:1", Resolver: z.addr})
	b := e.Members()[0].Backend
	_, err := b.Info(t.Context())
	if !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "dns+nowhere.test:1") {
		t.Errorf("member without an endpoint: %v", err)
	}
	e.refresh(t.Context())
	if e.Members()[0].Backend != b {
		t.Error("the member is another value after a refresh")
	}
}

func TestDNSManyAddressesOverTCP(t *testing.T) {
	z := newZone(t)
	var values []string
	for i := range 300 {
		values = append(values, fmt.Sprintf("10.1.%d.%d", i/200, i%200))
	}
	z.set("many.test", "A", values...)
	e, _ := open(t, Config{Address: "dns+many.test:1", Resolver: z.addr})
	if n := len(e.Members()); n != 300 {
		t.Errorf("%d members, want 300", n)
	}
}

func TestDNSChangesAndFailures(t *testing.T) {
	z := newZone(t)
	z.set("st.test", "A", "127.0.0.1", "127.0.0.2")
	f, err := newFinder([]string{"dns+st.test:1", "127.0.0.7:1"}, nil, 5*time.Minute, newResolver(z.addr), discard)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	check := func(after time.Duration, want string) {
		t.Helper()
		now = now.Add(after)
		var got []string
		for _, x := range f.round(t.Context(), now) {
			if x.gone != "" {
				x.name = "(" + x.name + ")"
			}
			got = append(got, x.name)
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("at %s: %q, want %q", now.UTC().Format("15:04:05"), g, want)
		}
	}
	check(0, "127.0.0.1:1 127.0.0.2:1 127.0.0.7:1")
	z.set("st.test", "A", "127.0.0.2", "127.0.0.3")
	check(time.Minute, "(127.0.0.1:1) 127.0.0.2:1 127.0.0.3:1 127.0.0.7:1")
	z.setBroken(true) // Nobody can say: all stays as it is, for however long.
	check(time.Hour, "(127.0.0.1:1) 127.0.0.2:1 127.0.0.3:1 127.0.0.7:1")
	z.setBroken(false)
	check(time.Second, "127.0.0.2:1 127.0.0.3:1 127.0.0.7:1")
	z.set("st.test", "A") // NXDOMAIN
	check(time.Minute, "(127.0.0.2:1) (127.0.0.3:1) 127.0.0.7:1")
	check(4*time.Minute, "(127.0.0.2:1) (127.0.0.3:1) 127.0.0.7:1")
	z.set("st.test", "A", "127.0.0.3")
	check(30*time.Second, "(127.0.0.2:1) 127.0.0.3:1 127.0.0.7:1")
	z.set("st.test", "A")
	check(30*time.Second, "(127.0.0.3:1) 127.0.0.7:1")
	check(5*time.Minute, "127.0.0.7:1 (dns+st.test:1)")
	z.set("st.test", "A", "127.0.0.3")
	check(time.Second, "127.0.0.3:1 127.0.0.7:1")
}

func TestDNSFailsFromTheStart(t *testing.T) {
	z := newZone(t)
	z.setBroken(true)
	z.set("st.test", "A", "127.0.0.1")
	e, _ := open(t, Config{Address: "dns+st.test:1", Resolver: z.addr})
	wantNames(t, e, "(dns+st.test:1)")
	if g := e.Members()[0].Gone; !strings.Contains(g, "SERVFAIL") {
		t.Errorf("reason %q", g)
	}
	z.setBroken(false)
	e.refresh(t.Context())
	wantNames(t, e, "127.0.0.1:1")
}

func TestSearchDomains(t *testing.T) {
	z := newZone(t)
	z.set("st.mon.svc.cluster.test", "A", "127.0.0.1")
	host, port, _ := net.SplitHostPort(z.addr)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("search cluster.test\noptions ndots:5\nnameserver "+host+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := dns.ClientConfigFromFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	c.Port = port // resolv.conf cannot say it.
	ips, err := newResolver("").addresses(t.Context(), c, "st.mon.svc")
	if err != nil || !slices.Equal(ips, []string{"127.0.0.1"}) {
		t.Errorf("got %v, %v", ips, err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	// As careful writers do it.
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "targets.yaml")
	missing := filepath.Join(dir, "missing.yaml")
	write(t, path, "- targets: ['127.0.0.1:1', '127.0.0.1:2']\n  labels: {a: b}\n- targets: ['127.0.0.1:3']\n")
	e, updated := open(t, Config{Files: []string{path, filepath.Join(dir, "*.json"), missing}})
	lost := "(" + missing + ")"
	wantNames(t, e, lost, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
	two := member(t, e, "127.0.0.1:2")

	// until waits for changes to be seen by themselves.
	until := func(want ...string) {
		t.Helper()
		timeout := time.After(20 * time.Second)
		for names(e) != strings.Join(want, " ") {
			select {
			case <-updated:
			case <-timeout:
				t.Fatalf("members %q, want %q", names(e), want)
			}
		}
	}
	write(t, path, "- targets: ['127.0.0.1:2']\n")
	until(lost, "(127.0.0.1:1)", "127.0.0.1:2", "(127.0.0.1:3)")
	if member(t, e, "127.0.0.1:2") != two {
		t.Error("the member is another value after a change")
	}
	write(t, filepath.Join(dir, "more.json"), `[{"targets": ["127.0.0.1:9"]}]`)
	until(lost, "(127.0.0.1:1)", "127.0.0.1:2", "(127.0.0.1:3)", "127.0.0.1:9")
	write(t, missing, "[]")
	until("(127.0.0.1:1)", "127.0.0.1:2", "(127.0.0.1:3)", "127.0.0.1:9")
	// Damage and absence change nothing.
	write(t, path, "- targets: {")
	write(t, missing, "")
	if err := os.Remove(filepath.Join(dir, "more.json")); err != nil {
		t.Fatal(err)
	}
	e.refresh(t.Context())
	wantNames(t, e, "(127.0.0.1:1)", "127.0.0.1:2", "(127.0.0.1:3)", "127.0.0.1:9")
	write(t, path, "- targets: ['no port', 'x+y:1', '127.0.0.1:2', '127.0.0.1:3']\n")
	until("(127.0.0.1:1)", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:9", "(no port)", "(x+y:1)")
}

// logged is the log of a test: its lines, without times.
type logged struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) logger() *slog.Logger { return l.tee(io.Discard) }

// tee logs to w too.
func (l *logged) tee(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(io.MultiWriter(l, w), &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// take returns the lines since the last call.
func (l *logged) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.buf.Reset()
	return strings.FieldsFunc(l.buf.String(), func(r rune) bool { return r == '\n' })
}

// want checks that there is one new line for each of parts, which holds it.
func (l *logged) want(t *testing.T, parts ...string) {
	t.Helper()
	lines := l.take()
	ok := len(lines) == len(parts)
	for i := 0; ok && i < len(parts); i++ {
		ok = strings.Contains(lines[i], parts[i])
	}
	if !ok {
		t.Errorf("log %q, want lines with %q", lines, parts)
	}
}

// TestFileGetsShorter: what leaves a file is missing, not absent, until it is
// forgotten, and only a file that can be read says so.
func TestFileGetsShorter(t *testing.T) {
	z := newZone(t)
	z.set("st.test", "A", "127.0.0.8", "127.0.0.9")
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	write(t, a, "- targets: ['127.0.0.1:1', '127.0.0.2:1', 'dns+st.test:1', 'dns+nowhere.test:1', '127.0.0.7:1', 'no port']\n")
	write(t, b, "[]")
	var log logged
	f, err := newFinder([]string{"127.0.0.7:1"}, []string{filepath.Join(dir, "*.yaml")}, 5*time.Minute, newResolver(z.addr), log.logger())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	check := func(after time.Duration, want string) {
		t.Helper()
		now = now.Add(after)
		var got []string
		for _, x := range f.round(t.Context(), now) {
			if x.gone != "" {
				x.name = "(" + x.name + ")"
			}
			if strings.HasPrefix(x.gone, "no longer in "+a) {
				x.name += "a"
			}
			if strings.HasPrefix(x.gone, "no longer in "+b) {
				x.name += "b"
			}
			got = append(got, x.name)
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("at %s: %q, want %q", now.UTC().Format("15:04:05"), g, want)
		}
	}
	check(0, "127.0.0.1:1 127.0.0.2:1 127.0.0.7:1 127.0.0.8:1 127.0.0.9:1 (dns+nowhere.test:1) (no port)")
	// What is configured, or in another file, or found by a name, stays.
	write(t, a, "[]")
	write(t, b, "- targets: ['127.0.0.2:1', '127.0.0.9:1']\n")
	check(time.Minute, "(127.0.0.1:1)a 127.0.0.2:1 127.0.0.7:1 (127.0.0.8:1)a 127.0.0.9:1 (dns+nowhere.test:1)a")
	write(t, b, "- targets: ['127.0.0.9:1']\n")
	check(time.Minute, "(127.0.0.1:1)a (127.0.0.2:1)b 127.0.0.7:1 (127.0.0.8:1)a 127.0.0.9:1 (dns+nowhere.test:1)a")
	// Nobody can say what is in it: all stays.
	write(t, a, "- targets: {")
	check(time.Hour, "(127.0.0.1:1)a (127.0.0.2:1)a 127.0.0.7:1 (127.0.0.8:1)a 127.0.0.9:1 (dns+nowhere.test:1)a")
	log.take()
	// One that comes back is as it was.
	write(t, a, "- targets: ['127.0.0.1:1']\n")
	check(0, "127.0.0.1:1 127.0.0.7:1 127.0.0.9:1")
	for _, line := range log.take() {
		if strings.Contains(line, "forgotten") {
			log.Write([]byte(line + "\n"))
		}
	}
	log.want(t, `endpoint=127.0.0.2:1 why="no longer in `+a, "endpoint=127.0.0.8:1 why=", "endpoint=dns+nowhere.test:1 why=")
	write(t, a, "[]")
	check(time.Second, "(127.0.0.1:1)a 127.0.0.7:1 127.0.0.9:1")
	check(5*time.Minute-1, "(127.0.0.1:1)a 127.0.0.7:1 127.0.0.9:1")
	check(1, "127.0.0.7:1 127.0.0.9:1")
}

// TestRemovedWhileInUse: a call that runs when its endpoint is removed ends in
// order, and the next one does not start.
func TestRemovedWhileInUse(t *testing.T) {
	f := &fake{name: "x", hold: make(chan struct{})}
	addr, _ := listen(t, "127.0.0.1:0", f)
	path := filepath.Join(t.TempDir(), "t.yaml")
	write(t, path, "- targets: ['"+addr+"']\n")
	e, _ := open(t, Config{Files: []string{path}, Forget: 1})
	b := member(t, e, addr)
	n := 0
	for batch, err := range b.Series(t.Context(), &backend.SeriesRequest{BatchSize: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		if n += batch.Len(); n == 1 {
			write(t, path, "[]")
			e.refresh(t.Context()) // Gone,
			e.refresh(t.Context()) // and forgotten.
			wantNames(t, e)
			close(f.hold)
		}
	}
	if n != 2 {
		t.Errorf("%d series, want 2", n)
	}
	if _, _, err := first(b.Series(t.Context(), &backend.SeriesRequest{})); !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "removed") {
		t.Errorf("afterwards: %v", err)
	}
	if ep := b.(*endpoint); !ep.closed || ep.calls != 0 {
		t.Error("the connection is still open")
	}
}

func first(seq iter.Seq2[*backend.Batch, error]) (*backend.Batch, bool, error) {
	for b, err := range seq {
		return b, true, err
	}
	return nil, false, nil
}

func TestGroup(t *testing.T) {
	a, stopA := listen(t, "127.0.0.1:0", &fake{name: "a"})
	b, _ := listen(t, "127.0.0.1:0", &fake{name: "b"})
	path := filepath.Join(t.TempDir(), "t.yaml")
	write(t, path, "- targets: ['"+a+"', '"+b+"']\n")
	e, _ := open(t, Config{Files: []string{path}, Group: true})
	ms := e.Members()
	if len(ms) != 1 || ms[0].Gone != "" {
		t.Fatalf("members %+v", ms)
	}
	seen := map[string]int{}
	deadline := time.Now().Add(20 * time.Second)
	for len(seen) < 2 && time.Now().Before(deadline) {
		seen[nameOf(t, ms[0].Backend)]++
	}
	if len(seen) != 2 {
		t.Errorf("calls went to %v only", seen)
	}
	stopA()
	for range 20 {
		// A call may be on its way as the connection breaks.
		if info, err := ms[0].Backend.Info(t.Context()); err == nil && info.LabelSets[0].Get("name") != "b" {
			t.Errorf("answered by %v", info.LabelSets)
		}
	}
	if nameOf(t, ms[0].Backend) != "b" {
		t.Error("the one that is left does not answer")
	}
	write(t, path, "[]")
	e.refresh(t.Context())
	if m := e.Members(); m[0].Gone == "" || m[0].Backend != ms[0].Backend {
		t.Errorf("empty group: %+v", m)
	}
	if _, err := ms[0].Backend.Info(t.Context()); !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("empty group: %v", err)
	}
}

func TestConfigErrors(t *testing.T) {
	junk := filepath.Join(t.TempDir(), "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]Config{
		"no endpoint is configured": {},
		"with a port":               {Address: "host"},
		"unknown prefix":            {Address: "consul+x:1"},
		"no name of SRV records":    {Address: "dnssrv+"},
		"compression":               {Address: "h:1", Compression: "lzma"},
		"min_version":               {Address: "h:1", TLS: &TLSConfig{MinVersion: "SSL3"}},
		"set together":              {Address: "h:1", TLS: &TLSConfig{Cert: "x"}},
		"no certificate in PEM":     {Address: "h:1", TLS: &TLSConfig{CA: junk}},
		"no such file":              {Address: "h:1", TLS: &TLSConfig{CA: "/does/not/exist"}},
		"negative":                  {Address: "h:1", Forget: -1},
		"watch files":               {Files: []string{"/does/not/exist/x.yaml"}},
		"syntax error":              {Files: []string{"[x"}},
	} {
		e, err := New(cfg, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
		if err == nil {
			_ = e.Close()
		}
	}
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
	n    int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{dir: t.TempDir()}
	a.key, a.cert = a.make(t, "ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// make writes name.pem and name.key.
func (a *authority) make(t *testing.T, name string, tmpl *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.n++
	tmpl.SerialNumber, tmpl.Subject = big.NewInt(a.n), pkix.Name{CommonName: name}
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{"pem": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "EC PRIVATE KEY", Bytes: kder}} {
		if err := os.WriteFile(a.file(name+"."+file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return key, cert
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func TestTLS(t *testing.T) {
	a := newAuthority(t)
	a.make(t, "server", &x509.Certificate{DNSNames: []string{"st.test"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	a.make(t, "client", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	pair, err := tls.LoadX509KeyPair(a.file("server.pem"), a.file("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	plain, _ := listen(t, "127.0.0.1:0", &fake{name: "tls"}, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}})))
	mutual, _ := listen(t, "127.0.0.1:0", &fake{name: "mtls"}, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	z := newZone(t)
	z.set("st.test", "A", "127.0.0.1")
	dnsName := "dns+st.test:" + plain[strings.LastIndex(plain, ":")+1:]
	ca := a.file("ca.pem")

	for name, tc := range map[string]struct {
		cfg  Config
		want string // "" is an error
	}{
		"server name":             {Config{Address: plain, TLS: &TLSConfig{CA: ca, ServerName: "st.test"}}, "tls"},
		"name in DNS":             {Config{Address: dnsName, Resolver: z.addr, TLS: &TLSConfig{CA: ca, MinVersion: "TLS13"}}, "tls"},
		"name in DNS, group":      {Config{Address: dnsName, Resolver: z.addr, Group: true, TLS: &TLSConfig{CA: ca}}, "tls"},
		"wrong name":              {Config{Address: plain, TLS: &TLSConfig{CA: ca}}, ""},
		"unknown authority":       {Config{Address: plain, TLS: &TLSConfig{ServerName: "st.test"}}, ""},
		"insecure":                {Config{Address: plain, TLS: &TLSConfig{InsecureSkipVerify: true}}, "tls"},
		"no TLS":                  {Config{Address: plain}, ""},
		"client certificate":      {Config{Address: mutual, Compression: "snappy", TLS: &TLSConfig{CA: ca, ServerName: "st.test", Cert: a.file("client.pem"), Key: a.file("client.key")}}, "mtls"},
		"no client certificate":   {Config{Address: mutual, TLS: &TLSConfig{CA: ca, ServerName: "st.test"}}, ""},
		"wrong client cert usage": {Config{Address: mutual, TLS: &TLSConfig{CA: ca, ServerName: "st.test", Cert: a.file("server.pem"), Key: a.file("server.key")}}, ""},
	} {
		e, _ := open(t, tc.cfg)
		info, err := e.Members()[0].Backend.Info(t.Context())
		switch {
		case tc.want == "" && !errors.Is(err, backend.ErrUnavailable):
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (err != nil || info.LabelSets[0].Get("name") != tc.want):
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func FuzzParseTargets(f *testing.F) {
	f.Add([]byte("- targets: ['a:1']\n"))
	f.Add([]byte(`[{"targets": ["a:1"], "labels": {"x": "y"}}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		targets, err := parseTargets("f", data)
		if err != nil && targets != nil {
			t.Error("targets and an error")
		}
		for _, x := range targets {
			_, _ = parseSource(x)
		}
	})
}
