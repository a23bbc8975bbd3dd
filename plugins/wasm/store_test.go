// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/carrier/carriertest"
	"github.com/promweave/promweave/plugins/wasm/fetch"
	"github.com/promweave/promweave/plugins/wasm/meter"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

func newBackend(t testing.TB, p *Plugin, name string, settings ...filter.Setting) backend.Backend {
	t.Helper()
	b, err := p.Backend(t.Context(), &filter.Config{Name: name, Settings: append([]filter.Setting{}, settings...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.(backend.Closer).Close() })
	return b
}

var everything = &backend.SeriesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64}

// collect reads at most n batches.
func collect(ctx context.Context, b backend.Backend, n int) (series []string, notices []backend.Notice, err error) {
	for batch, err := range b.Series(ctx, everything) {
		if err != nil {
			return series, notices, err
		}
		for i := range batch.Len() {
			series = append(series, batch.At(i).Labels.String())
		}
		notices = append(notices, batch.Notices()...)
		if n--; n == 0 {
			break
		}
	}
	return series, notices, nil
}

func TestStore(t *testing.T) {
	p := open(t, "store.wasm")
	b := newBackend(t, p, "good")
	series, notices, err := collect(t.Context(), b, -1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`{a="1"}`, `{a="2"}`, `{a="3"}`}, series); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]backend.Notice{{Kind: backend.NoticeMissing, Text: "half of it"}}, notices); diff != "" {
		t.Error(diff)
	}
	names, err := b.LabelNames(t.Context(), &backend.LabelNamesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, names.Values); diff != "" {
		t.Error(diff)
	}
	if _, err := b.LabelValues(t.Context(), &backend.LabelValuesRequest{}); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("values of no label: %v", err)
	}
	info, err := b.Info(t.Context())
	if err != nil || info.MinTime != math.MinInt64 {
		t.Errorf("info is %+v, %v", info, err)
	}
	for range 2 * storeInstances { // stops early each time; instances come back
		if _, _, err := collect(t.Context(), b, 1); err != nil {
			t.Fatal(err)
		}
	}
	if s := p.Status(); s.Instances != 1 || len(s.Faults) != 0 || s.Busy != 0 {
		t.Errorf("status is %+v", s)
	}
}

func TestStoreFaults(t *testing.T) {
	for mode, want := range map[string]struct {
		kind   string
		series int
	}{
		"disorder": {faultReply, 1}, "garbage": {faultReply, 0}, "frame": {faultReply, 0}, "elements": {faultReply, 0},
		"outside": {faultReply, 0}, "spin": {faultTimeout, 1}, "trap": {faultTrap, 1}, "returns": {faultReply, 0},
	} {
		t.Run(mode, func(t *testing.T) {
			p := open(t, "store.wasm", func(c *Config) { c.Limits.StoreTime = 20 * time.Millisecond })
			good := newBackend(t, p, "good")
			series, _, err := collect(t.Context(), newBackend(t, p, mode), -1)
			var fault *Fault
			if !errors.As(err, &fault) || fault.Kind != want.kind || len(series) != want.series {
				t.Errorf("got %v after %d series, want %+v", err, len(series), want)
			}
			if series, _, err := collect(t.Context(), good, -1); err != nil || len(series) != 3 {
				t.Errorf("the other one: %v, %v", series, err)
			}
			if s := p.Status(); s.Busy != 0 || s.Faults[want.kind] != 1 {
				t.Errorf("status is %+v", s)
			}
		})
	}
	p := open(t, "store.wasm")
	if _, _, err := collect(t.Context(), newBackend(t, p, "error"), -1); !errors.Is(err, backend.ErrUnavailable) || errors.Is(err, carrier.ErrFault) {
		t.Errorf("an error of the module: %v", err)
	}
	var fault *Fault
	if _, err := newBackend(t, p, "stale").LabelNames(t.Context(), &backend.LabelNamesRequest{}); !errors.As(err, &fault) || fault.Kind != faultReply {
		t.Errorf("emit while nobody asked for series: %v", err)
	}
	if _, err := p.Filter(t.Context(), &filter.Config{}); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("a backend as a filter: %v", err)
	}
}

// TestStoreStop has readers that stop, panic, or whose request ends.
func TestStoreStop(t *testing.T) {
	p := open(t, "store.wasm")
	many := newBackend(t, p, "many")
	if series, _, err := collect(t.Context(), many, 3); err != nil || len(series) != 3 {
		t.Errorf("%v, %v", series, err)
	}
	func() {
		defer func() {
			if r := recover(); r != "reader" {
				t.Errorf("recovered %v", r)
			}
		}()
		for range many.Series(t.Context(), everything) {
			panic("reader")
		}
	}()
	cause := errors.New("no longer")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	n := 0
	for _, err := range many.Series(ctx, everything) {
		if err != nil {
			if !errors.Is(err, cause) {
				t.Errorf("got %v", err)
			}
			break
		}
		if n++; n == 3 {
			cancel(cause)
		}
	}
	if s := p.Status(); len(s.Faults) != 0 || s.Busy != 0 || s.Instances != 1 {
		t.Errorf("status is %+v", s)
	}
	// A module that goes on is stopped and at fault.
	if _, _, err := collect(t.Context(), newBackend(t, p, "after stop"), 1); err != nil {
		t.Error(err)
	}
	if s := p.Status(); s.Faults[faultReply] != 1 || s.Busy != 0 {
		t.Errorf("status is %+v", s)
	}
	// One that only works on is stopped.
	if _, _, err := collect(t.Context(), newBackend(t, p, "spin"), 1); err != nil {
		t.Error(err)
	}
	if s := p.Status(); s.Faults[faultTimeout] != 0 || s.Busy != 0 {
		t.Errorf("status is %+v", s)
	}
}

// TestStoreClose closes while a reader does not read.
func TestStoreClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := open(t, "store.wasm")
		b := newBackend(t, p, "many")
		var last error
		for _, err := range b.Series(t.Context(), everything) {
			if err != nil {
				last = err
				break
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		if !errors.Is(last, backend.ErrUnavailable) {
			t.Errorf("got %v", last)
		}
	})
}

// httpValue returns label values, which are the answer to a request of target.
func httpValue(t *testing.T, p *Plugin, mode, target string) []string {
	t.Helper()
	b := newBackend(t, p, mode, filter.Setting{Path: "url", Value: target})
	got, err := b.LabelValues(t.Context(), &backend.LabelValuesRequest{Name: "x"})
	if err != nil {
		t.Fatalf("%s %s: %v", mode, target, err)
	}
	return got.Values
}

func TestHTTP(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/metadata":
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		case "/here":
			http.Redirect(w, r, "/", http.StatusFound)
		case "/off":
			http.Redirect(w, r, "http://elsewhere.test/", http.StatusFound)
		case "/large":
			_, _ = w.Write(make([]byte, 1<<20))
		default:
			fmt.Fprintf(w, "%s token=%q host=%s", r.Method, r.Header.Get("X-Token"), strings.Split(r.Host, ":")[0])
		}
	}))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(n)
	lookups := 0
	p := open(t, "store_http.wasm", func(c *Config) {
		c.Permissions = []filter.Permission{filter.PermissionHTTP}
		c.Limits.BodyBytes = 1 << 19
		c.HTTP = fetch.Config{
			Allow: []fetch.Target{
				{Scheme: "http", Host: "store.test", Port: port, AllowPrivate: true, Secrets: []string{"token"}},
				{Scheme: "http", Host: "rebind.test", Port: port},
				{Scheme: "http", Host: "169.254.169.254"},
				{Scheme: "http", Host: "mapped.test", Port: port},
			},
			Secrets: map[string]fetch.Secret{"token": {Header: "X-Token", Value: "s3cret"}},
			Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
				switch host {
				case "store.test":
					return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
				case "rebind.test": // public for whoever checks first, then not
					if lookups++; lookups > 1 {
						return []netip.Addr{netip.MustParseAddr("203.0.112.1")}, nil
					}
					return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
				case "mapped.test":
					return []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("64:ff9b::a00:1"), netip.MustParseAddr("100.64.0.1")}, nil
				}
				return nil, errors.New("no such host")
			},
		}
	})
	base := fmt.Sprintf("http://store.test:%d", port)
	for _, c := range []struct{ mode, target, want string }{
		{"get", base + "/", `GET token="" host=store.test`},
		{"secret", base + "/", `GET token="s3cret" host=store.test`},
		{"get", base + "/here", `GET token="" host=store.test`},
		{"large", base + "/", ""},
		{"large", base + "/large", "body too large"},
		{"leak", base + "/", "4"},
		// What is not allowed.
		{"post", base + "/", "1 not allowed: POST"},
		{"other secret", base + "/", "1 not allowed: secret"},
		{"host header", base + "/", "1 not allowed: header Host"},
		{"get", base + "/metadata", "1 Get \"http://169.254.169.254/latest/meta-data\": not allowed: 169.254.169.254 has the address"},
		{"get", base + "/off", "redirect: "},
		{"get", "http://169.254.169.254/latest/", "which is not public"},
		{"get", fmt.Sprintf("http://127.0.0.1:%d/", port), "1 not allowed: GET http://127.0.0.1"},
		{"get", "https://store.test/", "1 not allowed"},
		{"get", "file:///etc/passwd", "2 invalid"},
		{"get", "http://user@store.test/", "2 invalid"},
		{"get", fmt.Sprintf("http://rebind.test:%d/", port), "rebind.test has the address 127.0.0.1, which is not public"},
		{"get", fmt.Sprintf("http://mapped.test:%d/", port), "which is not public"},
	} {
		got := strings.Join(httpValue(t, p, c.mode, c.target), " ")
		if !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s %s: got %q, want %q", c.mode, c.target, got, c.want)
		}
		if strings.Contains(got, "s3cret") && c.mode != "secret" {
			t.Errorf("%s %s shows the secret: %q", c.mode, c.target, got)
		}
	}
	if s := p.Status(); len(s.Faults) != 0 {
		t.Errorf("status is %+v", s)
	}
}

// TestHTTPEnds: a request that hangs ends with the call's.
func TestHTTPEnds(t *testing.T) {
	arrived, leave := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-leave
	}))
	defer server.Close()
	defer close(leave)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	p := open(t, "store_http.wasm", func(c *Config) {
		c.Permissions = []filter.Permission{filter.PermissionHTTP}
		c.HTTP.Allow = []fetch.Target{{Scheme: "http", Host: "127.0.0.1", Port: uint16(port), AllowPrivate: true}}
	})
	b := newBackend(t, p, "get", filter.Setting{Path: "url", Value: server.URL})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	got, err := b.LabelValues(ctx, &backend.LabelValuesRequest{Name: "x"})
	if err != nil || !slices.Equal(got.Values, []string{"5", "context canceled"}) {
		t.Errorf("got %v, %v", got, err)
	}
}

// What follows assembles modules by hand.

type assembly struct {
	types, imports, functions, exports, code, rest []byte
	nTypes, nImports, nFunctions, nExports         int
	memory                                         []byte
	start                                          int // 1 + the function's index
}

func vec(n int, b []byte) []byte { return append(binary.AppendUvarint(nil, uint64(n)), b...) }

func name(s string) []byte { return vec(len(s), []byte(s)) }

const (
	i32 = 0x7f
	i64 = 0x7e
)

func (a *assembly) typ(params, results []byte) int {
	a.types = slices.Concat(a.types, []byte{0x60}, vec(len(params), params), vec(len(results), results))
	a.nTypes++
	return a.nTypes - 1
}

// imported adds an import; all must come before functions.
func (a *assembly) imported(module, field string, params, results []byte) {
	a.imports = slices.Concat(a.imports, name(module), name(field), []byte{0, byte(a.typ(params, results))})
	a.nImports++
}

func (a *assembly) function(export string, params, results []byte, body ...byte) int {
	a.functions = append(a.functions, byte(a.typ(params, results)))
	body = slices.Concat([]byte{0}, body, []byte{0x0b})
	a.code = slices.Concat(a.code, vec(len(body), body))
	index := a.nImports + a.nFunctions
	a.nFunctions++
	if export != "" {
		a.exports = slices.Concat(a.exports, name(export), []byte{0, byte(index)})
		a.nExports++
	}
	return index
}

func (a *assembly) build() []byte {
	out := []byte("\x00asm\x01\x00\x00\x00")
	section := func(id byte, b []byte) { out = slices.Concat(out, []byte{id}, vec(len(b), b)) }
	section(1, vec(a.nTypes, a.types))
	section(2, vec(a.nImports, a.imports))
	section(3, vec(a.nFunctions, a.functions))
	if a.memory != nil {
		section(5, vec(1, a.memory))
		a.exports = slices.Concat(a.exports, name("memory"), []byte{2, 0})
		a.nExports++
	}
	section(7, vec(a.nExports, a.exports))
	if a.start > 0 {
		section(8, []byte{byte(a.start - 1)})
	}
	section(10, vec(a.nFunctions, a.code))
	return append(out, a.rest...)
}

// complete adds what the ABI demands, if it is not there.
func (a *assembly) complete(describe ...byte) *assembly {
	if a.memory == nil {
		a.memory = []byte{0, 1}
	}
	if describe == nil {
		describe = []byte{0x42, 0}
	}
	pn := []byte{i32, i32}
	a.function("promweave_abi_v1", nil, []byte{i32}, 0x41, 0)
	a.function("promweave_alloc", []byte{i32}, []byte{i32}, 0x41, 8)
	a.function("promweave_describe", pn, []byte{i64}, describe...)
	a.function("promweave_configure", pn, []byte{i64}, 0x42, 0)
	return a
}

func written(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "module.wasm")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRefused has modules that are refused before any of their code runs, and some
// that are refused for what it does then.
func TestRefused(t *testing.T) {
	module := func(change func(a *assembly)) []byte {
		a := &assembly{}
		change(a)
		if a.nExports == 0 {
			a.complete()
		}
		return a.build()
	}
	for what, c := range map[string]struct {
		module []byte
		want   string
		change func(*Config)
	}{
		"file": {module: module(func(a *assembly) {
			a.imported("wasi_snapshot_preview1", "path_open", []byte{i32, i32, i32, i32, i32, i64, i64, i32, i32}, []byte{i32})
			a.imported("wasi_snapshot_preview1", "sock_accept", []byte{i32, i32, i32}, []byte{i32})
		}), want: "wasi_snapshot_preview1.path_open (no files, sockets or processes exist for modules), wasi_snapshot_preview1.sock_accept"},
		"clock and http": {module: module(func(a *assembly) {
			a.imported("promweave_v1", "now_ns", nil, []byte{i64})
			a.imported("promweave_v1", "http_fetch", []byte{i32, i32}, []byte{i64})
		}), want: "promweave_v1.now_ns (needs the permission clock), promweave_v1.http_fetch (needs the permission http); to grant it, set permissions: [metrics, clock, http] on the plug-in",
			change: func(c *Config) { c.Permissions = []filter.Permission{filter.PermissionMetrics} }},
		"newer minor": {module: module(func(a *assembly) { a.imported("promweave_v1", "teleport", nil, nil) }), want: "promweave_v1.teleport (unknown to this host: a newer Promweave may have it)"},
		"newer major": {module: module(func(a *assembly) { a.imported("promweave_v2", "log", nil, nil) }), want: "imports promweave_v2.log, this host speaks ABI v1"},
		"env":         {module: module(func(a *assembly) { a.imported("env", "system", nil, nil) }), want: "env.system (not in the ABI)"},
		"meter":       {module: module(func(a *assembly) { a.imported("meter", "yield", []byte{i32}, nil) }), want: "meter"},
		"import type": {module: module(func(a *assembly) { a.imported("promweave_v1", "log", []byte{i32}, nil) }), want: "promweave_v1.log as func (i32) -> () (it is func (i32, i32, i32) -> ())"},
		"other ABI":   {module: module(func(a *assembly) { a.function("promweave_abi_v2", nil, []byte{i32}, 0x41, 0) }), want: "speaks ABI v2, this host v1: use a build"},
		"no plug-in":  {module: module(func(a *assembly) { a.function("main", nil, nil) }), want: "is not a Promweave plug-in"},
		"no alloc": {module: module(func(a *assembly) {
			a.memory = []byte{0, 1}
			a.function("promweave_abi_v1", nil, []byte{i32}, 0x41, 0)
		}), want: "does not export promweave_alloc"},
		"export type": {module: module(func(a *assembly) {
			a.function("promweave_rewrite", []byte{i32}, []byte{i64}, 0x42, 0)
			a.complete()
		}), want: "the export promweave_rewrite is func (i32) -> (i64); the ABI says func (i32, i32) -> (i64)"},
		"memory": {module: module(func(a *assembly) { a.memory = []byte{0, 0x81, 0x08}; a.complete() }), want: "raise memory"},
		"emits": {module: module(func(a *assembly) {
			a.imported("promweave_v1", "emit", []byte{i32, i32}, []byte{i32})
			a.memory = []byte{0, 1}
			a.complete()
			a.rest = data(0, "\x18\x02")
			// describe returns the two bytes at 0: kind 2.
			a.code = slices.Concat(a.code[:0], replaceDescribe(0, 2))
		}), want: "promweave_v1.emit, which is for backends"},
		"needs more": {module: described(filterDescription("clock")), want: "says that it needs permissions that are not granted; to grant it, set permissions: [clock]"},
		"start": {module: module(func(a *assembly) {
			a.start = 1 + a.function("", nil, nil, 0x03, 0x40, 0x0c, 0, 0x0b) // loop: br 0
			a.complete()
		}), want: "timeout: it ran for more than", change: func(c *Config) { c.Limits.CallTime = time.Millisecond }},
		"initialize": {module: module(func(a *assembly) { a.function("_initialize", nil, nil, 0x00); a.complete() }), want: "initialize: trap: unreachable"},
		"exit": {module: module(func(a *assembly) {
			a.imported("wasi_snapshot_preview1", "proc_exit", []byte{i32}, nil)
			a.function("_initialize", nil, nil, 0x41, 7, 0x10, 0)
			a.complete()
		}), want: "exit: it exited with code 7"},
		"data outside": {module: module(func(a *assembly) { a.complete(); a.rest = data(65530, "0123456789") }), want: "out of bounds"},
		"kind":         {module: module(func(a *assembly) {}), want: "describe: invalid reply: describe: kind 0 is neither"},
		"empty":        {module: nil, want: "wasm module"},
		"garbage":      {module: []byte("\x00asm\x01\x00\x00\x00\x01\xff\xff\xff\xff\x0f"), want: "wasm module"},
		"permission":   {module: nil, want: `there is no permission "root"`, change: func(c *Config) { c.Permissions = []filter.Permission{"root"} }},
		"no digest":    {module: nil, want: "is not pinned: set sha256", change: func(c *Config) { c.SHA256 = "" }},
		"digest":       {module: nil, want: "is pinned: it is not the file that was meant", change: func(c *Config) { c.SHA256 = strings.Repeat("0", 64) }},
		"large":        {module: make([]byte, 1000), want: "is larger than 999 bytes", change: func(c *Config) { c.Limits.ModuleBytes = 999 }},
		"folder":       {module: nil, want: "is not a regular file", change: func(c *Config) { c.Path = "testdata" }},
		"http": {module: nil, want: `http: allow[0]: scheme is "ftp"`, change: func(c *Config) {
			c.Permissions = []filter.Permission{filter.PermissionHTTP}
			c.HTTP.Allow = []fetch.Target{{Scheme: "ftp", Host: "x"}}
		}},
	} {
		t.Run(what, func(t *testing.T) {
			path := written(t, c.module)
			sum := sha256.Sum256(c.module)
			config := Config{Name: "guest", Path: path, SHA256: hex.EncodeToString(sum[:])}
			if c.change != nil {
				c.change(&config)
			}
			p, err := Open(t.Context(), config, nil, nil)
			if err == nil {
				_ = p.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `plug-in "guest"`) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

// data is a data section with one segment.
func data(at int32, s string) []byte {
	b := append([]byte{1, 0, 0x41}, sleb(at)...)
	b = slices.Concat(b, []byte{0x0b}, name(s))
	return slices.Concat([]byte{11}, vec(len(b), b))
}

// sleb is a signed LEB128 number.
func sleb[T int32 | int64](v T) []byte {
	var b []byte
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

// replaceDescribe is the code of complete with a description of n bytes at a place.
func replaceDescribe(at, n int64) []byte {
	a := &assembly{}
	a.complete(append([]byte{0x42}, sleb(at<<32|n)...)...)
	return a.code
}

// described is a module with a description.
func described(d []byte) []byte {
	a := (&assembly{}).complete(append([]byte{0x42}, sleb(int64(1024)<<32|int64(len(d)))...)...)
	a.rest = data(1024, string(d))
	return a.build()
}

func filterDescription(permissions ...string) []byte {
	b := protowire.AppendTag(nil, 3, protowire.VarintType)
	b = protowire.AppendVarint(b, 2)
	for _, p := range permissions {
		b = protowire.AppendTag(b, 7, protowire.BytesType)
		b = protowire.AppendString(b, p)
	}
	return b
}

// TestCache compiles once, and refuses folders that others can write to.
func TestCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	cached := func(c *Config) { c.CacheDir = dir }
	for range 2 {
		f := newFilter(t, open(t, "rewrite.wasm", cached), "x")
		if _, err := f.Rewrite(t.Context(), podFrame(t, 3), nil); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || !strings.HasPrefix(entries[0].Name(), fmt.Sprintf("m%d-%s", meter.Version, digest(t, "testdata/rewrite.wasm"))) {
		t.Errorf("the cache holds %v, %v", entries, err)
	}
	if err := os.Chmod(dir, 0o770); err != nil { //nolint:gosec // this is what is refused
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), configOf(t, "rewrite.wasm", cached), nil, nil); err == nil || !strings.Contains(err.Error(), "others can write to it") {
		t.Errorf("got %v", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a folder
		t.Fatal(err)
	}
	for mode, refused := range map[os.FileMode]bool{0o777: true, 0o775: true, 0o777 | os.ModeSticky: false, 0o755: false} {
		if err := os.Chmod(filepath.Dir(dir), mode); err != nil {
			t.Fatal(err)
		}
		p, err := Open(t.Context(), configOf(t, "rewrite.wasm", cached), nil, nil)
		if (err != nil) != refused {
			t.Errorf("around it is a folder of mode %v: %v", mode, err)
		}
		if err == nil {
			_ = p.Close()
		}
	}
}

// TestRewrite applies a whole reply of a C module.
func TestRewrite(t *testing.T) {
	f := newFilter(t, open(t, "rewrite.wasm"), "x")
	rows := podFrame(t, 300)
	reply, err := f.Rewrite(t.Context(), rows, make([]byte, 5))
	if err != nil {
		t.Fatal(err)
	}
	var in frame.Frame
	var changes frame.Changes
	if err := in.Parse(rows); err != nil {
		t.Fatal(err)
	}
	if err := changes.Parse(reply, &in, frame.TierRows); err != nil {
		t.Fatal(err)
	}
	row := 0
	for g := range in.Groups() {
		group := changes.Group(g)
		for r := range group.Input().Rows() {
			var got []string
			for c := range group.Columns() {
				column := group.Column(c)
				got = append(got, changes.Symbol(column.Name), changes.Symbol(column.Ref(r)))
			}
			builder := labels.NewBuilder(labels.FromStrings(podLabels(row)...))
			rewritten(builder)
			if diff := cmp.Diff(builder.Labels(), labels.FromStrings(got...), cmp.Comparer(labels.Equal)); diff != "" {
				t.Fatalf("row %d: %s", row, diff)
			}
			row++
		}
	}
}

// rewritten does what rewrite.c does.
func rewritten(b *labels.Builder) {
	b.Del("pod_template_hash")
	b.Set("kubernetes_node", b.Get("node"))
	b.Del("node")
	b.Set("tenant", b.Get("namespace"))
}

// goModule builds a main package.
func goModule(t testing.TB, source string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", path, source)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// TestCarrier is the suite of all carriers.
func TestCarrier(t *testing.T) {
	path := goModule(t, "../carrier/carriertest/testplugin/filter")
	config := Config{Name: "faulty", Path: path, SHA256: digest(t, path), CacheDir: filepath.Join(t.TempDir(), "cache")}
	config.Permissions = []filter.Permission{filter.PermissionClock}
	config.Limits.CallTime = time.Second
	carriertest.Run(t, carriertest.Carrier{
		Isolated: true,
		Filter: func(t *testing.T) carrier.Plugin {
			p, err := Open(t.Context(), config, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			p.untried = true
			return p
		},
	})
}

// TestGo runs a module that Go's toolchain built: its runtime needs WASI, sleeps, and
// dies loudly.
func TestGo(t *testing.T) {
	path := goModule(t, "./testdata/goguest")
	cached := filepath.Join(t.TempDir(), "cache")
	c := Config{Name: "gopher", Path: path, SHA256: digest(t, path), CacheDir: cached}
	c.Limits.CallTime = time.Second
	p, err := Open(t.Context(), c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	for mode, want := range map[string]string{
		"sleep": "", "random": "", "collect": "", "stdout": "",
		"panic":  `trap: unreachable (it said: panic: words of a gopher`,
		"exit":   "exit: it exited with code 3",
		"memory": "memory: unreachable",
	} {
		f := newFilter(t, p, mode)
		err := callHook(t.Context(), f, "request", nil)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %s", mode, err, want)
		}
		_ = f.Close()
	}
	if s := p.Status(); !slices.ContainsFunc(s.LastLines, func(l string) bool { return strings.Contains(l, "goroutine") }) {
		t.Errorf("last lines are %q", s.LastLines)
	}
}

// TestHTTPClose closes while a module waits for an answer that does not come.
func TestHTTPClose(t *testing.T) {
	arrived, leave := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-leave
	}))
	defer server.Close()
	defer close(leave)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	p := open(t, "store_http.wasm", func(c *Config) {
		c.Permissions = []filter.Permission{filter.PermissionHTTP}
		c.HTTP.Allow = []fetch.Target{{Scheme: "http", Host: "127.0.0.1", Port: uint16(port), AllowPrivate: true}}
	})
	p.closeTime = time.Millisecond
	b := newBackend(t, p, "get", filter.Setting{Path: "url", Value: server.URL})
	done := make(chan error)
	go func() {
		_, err := b.LabelValues(t.Context(), &backend.LabelValuesRequest{Name: "x"})
		done <- err
	}()
	<-arrived
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}
