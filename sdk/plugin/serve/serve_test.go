// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/guest/testfilter"
	"github.com/promweave/promweave/sdk/plugin/serve"
	"github.com/promweave/promweave/sdk/plugin/wire"
	"github.com/promweave/promweave/sdk/pluginpb"
	"github.com/promweave/promweave/sdk/storeapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connect serves s and returns a connection to it.
func connect(t testing.TB, s *serve.Server) *grpc.ClientConn {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	g := grpc.NewServer(wire.ServerOptions()...)
	s.Register(g)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = g.Serve(lis)
	}()
	cc, err := grpc.NewClient("passthrough:///", append(wire.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		g.Stop()
		<-ended
	})
	return cc
}

func newServer(t testing.TB, cfg serve.Config) *serve.Server {
	t.Helper()
	s, err := serve.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// memory is a store with one series per instance, which counts itself.
type memory struct {
	backend.Unimplemented
	name string
	open *atomic.Int64
	fail error
}

func (m *memory) Info(context.Context) (backend.Info, error) {
	info := backend.AllTime()
	info.LabelSets = []labels.Labels{labels.FromStrings("store", m.name)}
	info.Capabilities.Exemplars = true // It has none; the server knows better.
	return info, m.fail
}

func (m *memory) Series(_ context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		chunks, err := shaping.EncodeSamples([]shaping.Sample{{T: 1, F: 2}})
		if err != nil {
			yield(nil, err)
			return
		}
		b := backend.NewBatch(1)
		b.Append(backend.Series{Labels: labels.FromStrings("store", m.name), Chunks: chunks})
		yield(b, nil)
	}
}

func (m *memory) Close() error {
	m.open.Add(-1)
	return nil
}

type memorySpec struct {
	open atomic.Int64
	fail error
}

func (s *memorySpec) Describe() filter.Description {
	return filter.Description{Name: "memory", Version: "1.2.3"}
}

func (s *memorySpec) Configure(c *filter.Config) (backend.Backend, error) {
	for _, x := range c.Settings {
		if x.Path == "limit" {
			return nil, backend.Errorf(backend.ErrLimit, "limit: too high")
		}
		if x.Path == "wrong" {
			return nil, errors.New("wrong: is wrong")
		}
	}
	s.open.Add(1)
	return &memory{name: c.Name, open: &s.open, fail: s.fail}, nil
}

func TestInstances(t *testing.T) {
	spec := &memorySpec{}
	s := newServer(t, serve.Config{Backend: spec})
	p := pluginpb.NewPluginClient(connect(t, s))
	ctx := t.Context()
	ids := map[uint64]string{}
	for i := range 5 {
		name := fmt.Sprint("i", i)
		m, err := p.Configure(ctx, &pluginpb.ConfigureRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if m.GetInstance() == 0 || ids[m.GetInstance()] != "" || m.GetCapabilities().GetExemplars() {
			t.Fatalf("reply %v", m)
		}
		ids[m.GetInstance()] = name
	}
	for id, name := range ids {
		m, err := p.Info(ctx, &pluginpb.InfoCall{Instance: id})
		if err != nil {
			t.Fatal(err)
		}
		if got := m.GetLabelSets()[0].GetLabels()[0].GetValue(); got != name || m.GetCapabilities().GetExemplars() {
			t.Errorf("instance %s answers %v", name, m)
		}
		if _, err := p.Release(ctx, &pluginpb.ReleaseRequest{Instance: id}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Release(ctx, &pluginpb.ReleaseRequest{Instance: id}); err != nil {
			t.Errorf("releasing again: %v", err)
		}
		if _, err := p.Info(ctx, &pluginpb.InfoCall{Instance: id}); status.Code(err) != codes.NotFound {
			t.Errorf("a released instance: %v", err)
		}
	}
	if n := spec.open.Load(); n != 0 {
		t.Errorf("%d instances were not closed", n)
	}
	for _, c := range []struct {
		doc, setting string
		code         codes.Code
		word         string
	}{{`{"wrong":1}`, "wrong", codes.InvalidArgument, wire.Invalid}, {`{"limit":1}`, "limit", codes.ResourceExhausted, wire.Limit}} {
		_, err := p.Configure(ctx, &pluginpb.ConfigureRequest{Config: []byte(c.doc), Settings: []*pluginpb.Setting{{Path: c.setting, Value: "1"}}})
		if status.Code(err) != c.code || wire.Said(err) != c.word || !strings.Contains(err.Error(), c.setting+":") {
			t.Errorf("%s: %v, %q", c.doc, err, wire.Said(err))
		}
	}
	// Hooks of filters are refused as the contract says.
	if _, err := p.Rewrite(ctx, &pluginpb.RewriteCall{Instance: 1}); status.Code(err) != codes.NotFound {
		t.Errorf("rewrite: %v", err)
	}
	m, err := p.Configure(ctx, &pluginpb.ConfigureRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Rewrite(ctx, &pluginpb.RewriteCall{Instance: m.GetInstance()}); status.Code(err) != codes.Unimplemented || wire.Said(err) != wire.Unsupported {
		t.Errorf("rewrite: %v", err)
	}
}

// TestIdle: what a host has left behind goes, what is used stays.
func TestIdle(t *testing.T) {
	spec := &memorySpec{}
	s := newServer(t, serve.Config{Backend: spec, IdleTime: time.Hour})
	now := time.Unix(0, 0)
	s.SetClock(func() time.Time { return now })
	ctx := t.Context()
	if err := s.ConfigureDefault(ctx, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	configure := func() uint64 {
		m, err := s.Configure(ctx, &pluginpb.ConfigureRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return m.GetInstance()
	}
	left, used := configure(), configure()
	for range 3 {
		now = now.Add(40 * time.Minute)
		if _, err := s.Info(ctx, &pluginpb.InfoCall{Instance: used}); err != nil {
			t.Fatal(err)
		}
	}
	configure()
	if _, err := s.Info(ctx, &pluginpb.InfoCall{Instance: left}); status.Code(err) != codes.NotFound {
		t.Errorf("an instance that nobody used: %v", err)
	}
	if _, err := s.Info(ctx, &pluginpb.InfoCall{Instance: used}); err != nil {
		t.Error(err)
	}
	if n := spec.open.Load(); n != 3 { // the default one, the used one and the last
		t.Errorf("%d instances are open", n)
	}
}

// TestStoreAPI: the only instance answers a plain Thanos client; several are told apart
// by metadata.
func TestStoreAPI(t *testing.T) {
	s := newServer(t, serve.Config{Backend: &memorySpec{}})
	cc := connect(t, s)
	ctx := t.Context()
	client := storeapi.NewClient(cc, storeapi.ClientConfig{})
	if _, err := client.Info(ctx); err == nil || !strings.Contains(err.Error(), "0 instances are configured") {
		t.Errorf("without an instance: %v", err)
	}
	a, err := s.Configure(ctx, &pluginpb.ConfigureRequest{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	series := func(ctx context.Context) (out []string) {
		t.Helper()
		for b, err := range client.Series(ctx, &backend.SeriesRequest{MaxTime: 10}) {
			if err != nil {
				return append(out, err.Error())
			}
			for i := range b.Len() {
				out = append(out, b.At(i).Labels.String())
			}
		}
		return out
	}
	if diff := cmp.Diff([]string{`{store="a"}`}, series(ctx)); diff != "" {
		t.Error(diff)
	}
	b, err := s.Configure(ctx, &pluginpb.ConfigureRequest{Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if got := series(ctx); len(got) != 1 || !strings.Contains(got[0], "2 instances are configured") {
		t.Errorf("two instances: %v", got)
	}
	for id, want := range map[uint64]string{a.GetInstance(): "a", b.GetInstance(): "b"} {
		named := metadata.AppendToOutgoingContext(ctx, pluginpb.InstanceKey, strconv.FormatUint(id, 10))
		if diff := cmp.Diff([]string{`{store="` + want + `"}`}, series(named)); diff != "" {
			t.Error(diff)
		}
	}
	if got := series(metadata.AppendToOutgoingContext(ctx, pluginpb.InstanceKey, "x")); len(got) != 1 || !strings.Contains(got[0], "no instance id") {
		t.Errorf("a wrong id: %v", got)
	}
}

func TestWatchParent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		gone := false
		done := make(chan struct{})
		go func() {
			defer close(done)
			serve.WatchParent(-1, ended, func() { gone = true })
		}()
		<-done
		if !gone {
			t.Error("a parent that is another one is not noticed")
		}
	})
}

// TestRaiseHeap: what is set by hand stands, and of a small limit little is taken.
func TestRaiseHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	if n := serve.RaiseHeap(); n != 64<<20 {
		t.Errorf("%d bytes", n)
	}
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(128 << 20))
	if n := serve.RaiseHeap(); n != 8<<20 {
		t.Errorf("of 128 MiB: %d bytes", n)
	}
	t.Setenv("GOGC", "50")
	if n := serve.RaiseHeap(); n != 0 {
		t.Errorf("with GOGC: %d bytes", n)
	}
}

func TestVersionMismatch(t *testing.T) {
	s := newServer(t, serve.Config{Backend: &memorySpec{}})
	for list, ok := range map[string]bool{"": true, "1": true, "2,1": true, "2": false, "2,3": false, "11": false} {
		t.Setenv("PLUGIN_PROTOCOL_VERSIONS", list)
		err := serve.CheckVersion(s)
		if (err == nil) != ok {
			t.Errorf("%q: %v", list, err)
		}
		if err != nil && err.Error() != "memory 1.2.3 speaks version 1 of the Promweave plug-in contract and this host only "+list+"; use a release of the plug-in that was built for this host" {
			t.Errorf("%q: %v", list, err)
		}
	}
}

// TestRun is what an author sees who starts a plug-in by hand.
func TestRun(t *testing.T) {
	t.Setenv(serve.CookieKey, "")
	for _, c := range []struct {
		name string
		o    serve.Options
		args []string
		code int
		out  string
	}{
		{"nothing is registered", serve.Options{}, nil, 1, "call plugin.Filter or store.Backend in an init function"},
		{"both", serve.Options{Filter: testfilter.New(), Backend: &memorySpec{}}, nil, 1, "register exactly one"},
		{"by hand", serve.Options{Backend: &memorySpec{}}, nil, 2, "memory 1.2.3 is a store backend for Promweave"},
		{"filter by hand", serve.Options{Filter: testfilter.New()}, nil, 2, "is a filter for Promweave, which starts it by itself"},
		{"help", serve.Options{Backend: &memorySpec{}}, []string{"--help"}, 0, "-client-ca file"},
		{"wrong flag", serve.Options{Backend: &memorySpec{}}, []string{"--nope"}, 2, "-nope"},
		{"argument", serve.Options{Backend: &memorySpec{}}, []string{"x"}, 2, `unexpected argument "x"`},
		{"describe", serve.Options{Backend: &memorySpec{}}, []string{"--describe"}, 0, `"kind": "KIND_BACKEND"`},
		{"address", serve.Options{Backend: &memorySpec{}}, []string{"--listen", "nowhere"}, 1, "--listen"},
		{"half a certificate", serve.Options{Backend: &memorySpec{}}, []string{"--listen", "127.0.0.1:0", "--tls-cert", "x"}, 1, "belong together"},
		{"client authorities", serve.Options{Backend: &memorySpec{}}, []string{"--listen", "127.0.0.1:0", "--client-ca", "x"}, 1, "--client-ca needs"},
		{"configuration", serve.Options{Backend: &memorySpec{}}, []string{"--listen", "127.0.0.1:0", "--config", "testdata/none.json"}, 1, "--config"},
		{"wrong configuration", serve.Options{Backend: &memorySpec{}}, []string{"--listen", "127.0.0.1:0", "--config", "testdata/wrong.json"}, 1, "wrong: is wrong"},
	} {
		var out bytes.Buffer
		code := serve.Run(c.o, c.args, &out, &out)
		if code != c.code || !strings.Contains(out.String(), c.out) {
			t.Errorf("%s: exit code %d, output %s", c.name, code, out.String())
		}
	}
}
