// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// built builds a command of this module, as a program or as a WASM module, and
// returns its path and digest.
func built(t *testing.T, command string, wasm bool) (path, sum string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), command)
	args := []string{"build", "-o", path}
	env := os.Environ()
	if wasm {
		args = append(args, "-buildmode=c-shared", "-ldflags=-s -w")
		env = append(env, "GOOS=wasip1", "GOARCH=wasm")
	}
	cmd := exec.Command("go", append(args, "github.com/promweave/promweave/bins/"+command)...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", command, err, out)
	}
	return path, digest(t, path)
}

func digest(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// jsonAPI is a small JSON API over a Prometheus, for the example module that reads one.
func jsonAPI(t *testing.T, prometheus string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer of the module" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		now := time.Now().UnixMilli()
		start, _ := strconv.ParseInt(r.URL.Query().Get("start"), 10, 64)
		end, _ := strconv.ParseInt(r.URL.Query().Get("end"), 10, 64)
		start, end = max(start, now-time.Hour.Milliseconds()), min(end, now)
		if start >= end {
			start = end - 1
		}
		match := r.URL.Query().Get("match")
		if match == "" || match == "{}" {
			match = `{__name__!=""}` // no matchers are everything (rule S-6), which PromQL does not let one ask for
		}
		q := url.Values{"query": {fmt.Sprintf("%s[%dms]", match, end-start)}, "time": {seconds(end)}}
		_, a, _, err := ask(prometheus, "query", q)
		var series []sample
		if err == nil {
			err = json.Unmarshal(a.Data.Result, &series)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		type out struct {
			Labels map[string]string `json:"labels"`
			Points [][2]any          `json:"points"`
		}
		list := []out{}
		for _, s := range series {
			o := out{Labels: s.Metric}
			for _, v := range s.Values {
				f, _ := strconv.ParseFloat(v[1].(string), 64)
				if !math.IsNaN(f) && !math.IsInf(f, 0) {
					o.Points = append(o.Points, [2]any{int64(math.Round(v[0].(float64) * 1000)), f})
				}
			}
			if len(o.Points) > 0 {
				list = append(list, o)
			}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"series": list})
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// plugin is what the tests look at in /api/v1/plugins.
type plugin struct {
	Name, Launch, State, SHA256, LastFault string
	PID, Restarts                          int
	Calls                                  int
	Faults                                 map[string]int
	UsedBy                                 []string
}

func plugins(t *testing.T, addr string) map[string]plugin {
	t.Helper()
	b, _, err := get("http://root:secret@" + addr + "/api/v1/plugins")
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Data []plugin }
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	out := map[string]plugin{}
	for _, p := range list.Data {
		out[p.Name] = p
	}
	return out
}

// TestIntegrationPlugins has a spawned, a dialled and a WASM backend over a real
// Prometheus, one tenant's each, behind filters in WASM, and takes them all down.
func TestIntegrationPlugins(t *testing.T) {
	addr := freePort(t)
	prom(t, addr, t.TempDir(), "", addr)

	program, programSum := built(t, "promweave-prometheus", false)
	tenancy, tenancySum := built(t, "promweave-tenancy", true)
	rewrite, rewriteSum := built(t, "promweave-label-rewrite", true)
	auth, authSum := built(t, "promweave-auth", true)
	module, err := filepath.Abs("../../sdk/testdata/golden/v1.0/json-backend-rust.wasm")
	if err != nil {
		t.Fatal(err)
	}
	dialled := freePort(t)
	service := start(t, program, "--listen", dialled)
	api := jsonAPI(t, addr)

	// The hash is that of "secret".
	const hash = "$2a$04$Ejn/4jFmw9ztWQW5TEnhCuFpB8Qj0vWDmW26nw2K1riSPKWpRY52i"
	config := fmt.Sprintf(`
  filters: [auth, tenancy, host]
  timeout: 20s
auth: {users: {alice: %[1]q, bob: %[1]q, carol: %[1]q, root: %[1]q, mallory: %[1]q}}
plugins: {dir: %[2]q}
filters:
  - {name: auth, plugin: {launch: wasm, path: %[3]q, sha256: %[4]q, time: 2s}, config: {rules: [{subjects: [mallory], allow: false}, {allow: true}]}}
  - {name: tenancy, plugin: {launch: wasm, path: %[5]q, sha256: %[6]q, time: 2s}, config: {label: tenant, from: [{subject: true}], admins: {subjects: [root]}}}
  - {name: host, plugin: {launch: wasm, path: %[7]q, sha256: %[8]q, time: 2s}, config: {rules: [{replace: {source: instance, regex: "(.*):\\d+", target: host}}]}}
backends:
  - {name: spawned, external_labels: {tenant: alice}, plugin: {launch: spawn, path: %[9]q, sha256: %[10]q}, config: {url: %[11]q}}
  - {name: dialled, external_labels: {tenant: bob}, plugin: {launch: dial, address: %[12]q}, config: {url: %[11]q}}
  - name: wasm
    external_labels: {tenant: carol}
    plugin: {launch: wasm, path: %[13]q, sha256: %[14]q, permissions: [http], http: [{url: %[15]q, allow_private: true}], secrets: {api: %[16]q}}
    config: {url: %[15]q, secret: api}
`, hash, filepath.Join(short(t), "p"), auth, authSum, tenancy, tenancySum, rewrite, rewriteSum, program, programSum, "http://"+addr,
		dialled, module, digest(t, module), api, write(t, filepath.Join(t.TempDir(), "token"), "Bearer of the module\n"))
	config = strings.TrimPrefix(config, "\n")
	_, host, _ := serveWith(t, config)
	as := func(user string) string { return user + ":secret@" + host }

	eventually(t, "Prometheus has scraped for a while", time.Minute, func() error {
		lines, _, _, err := ask(addr, "query", url.Values{"query": {"count_over_time(up[1m]) > 20"}})
		if err == nil && len(lines) == 0 {
			err = errors.New("fewer than 20 scrapes")
		}
		return err
	})
	at := quiet(t, addr)

	for _, user := range []string{"alice", "bob"} {
		t.Run(user, func(t *testing.T) { agree(t, addr, as(user), at, "cluster", "replica", "tenant", "host") })
	}
	t.Run("carol", func(t *testing.T) {
		for _, q := range []string{"up", `sum by (job) (rate(prometheus_tsdb_head_samples_appended_total[30s]))`, `topk(3, prometheus_tsdb_head_series)`, `max_over_time(go_goroutines[10s])`, `count by (__name__) ({__name__=~"prometheus_tsdb_head_series.*"})`} {
			p := url.Values{"query": {q}, "time": {seconds(at)}}
			w, _, _, err := ask(addr, "query", p)
			if err != nil {
				t.Fatal(err)
			}
			g, _, h, err := ask(as("carol"), "query", p, "cluster", "replica", "tenant", "host")
			if err != nil || !slices.Equal(w, g) || h.Get("Promweave-Completeness") != "complete" {
				t.Errorf("%s: %v\nwant %v\ngot  %v (%s)", q, err, w, g, h.Get("Promweave-Completeness"))
			}
		}
	})

	t.Run("who_sees_what", func(t *testing.T) {
		for user, want := range map[string]string{"alice": `["alice"]`, "bob": `["bob"]`, "carol": `["carol"]`} {
			b, _, err := get("http://" + as(user) + "/api/v1/label/tenant/values")
			if err != nil || !strings.Contains(string(b), want) {
				t.Errorf("%s sees the tenants %s (%v)", user, b, err)
			}
			b, _, err = get("http://" + as(user) + "/api/v1/query?" + url.Values{"query": {`count by (tenant, host) (up) or count by (tenant) ({tenant=~".+"})`}}.Encode())
			for _, other := range []string{"alice", "bob", "carol"} {
				if other != user && strings.Contains(string(b), other) {
					t.Errorf("%s sees %s: %s (%v)", user, other, b, err)
				}
			}
			if !strings.Contains(string(b), `"host":"127.0.0.1"`) {
				t.Errorf("%s: the rewritten label is not there: %s", user, b)
			}
			if _, _, err := get("http://" + as(user) + "/api/v1/plugins"); err == nil || !strings.Contains(err.Error(), "403") {
				t.Errorf("%s may see the plug-ins: %v", user, err)
			}
		}
		for who, want := range map[string]string{"mallory:secret@": "403", "": "401", "alice:wrong@": "401"} {
			if _, _, err := get("http://" + who + host + "/api/v1/query?query=up"); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q gets %v, want %s", who, err, want)
			}
		}
	})

	t.Run("shown", func(t *testing.T) {
		list := plugins(t, host)
		for name, launch := range map[string]string{"auth": "wasm", "tenancy": "wasm", "host": "wasm", "spawned": "spawn", "dialled": "dial", "wasm": "wasm"} {
			p := list[name]
			if p.Launch != launch || p.State != "serving" || p.Calls == 0 || (launch != "dial") != (len(p.SHA256) == 64) || (launch == "spawn") != (p.PID > 0) {
				t.Errorf("%s: %+v", name, p)
			}
		}
		out, _, err := get("http://root:secret@" + host + "/metrics")
		if err != nil || !strings.Contains(string(out), `plugin="spawned"`) {
			t.Errorf("no metrics of plug-ins: %v", err)
		}
	})

	up := func(user string) (int, string) {
		lines, _, h, err := ask(as(user), "query", url.Values{"query": {"up"}, "time": {seconds(at)}})
		if err != nil {
			return 0, err.Error()
		}
		return len(lines), h.Get("Promweave-Completeness")
	}
	whole := func(user string) func() error {
		return func() error {
			if n, c := up(user); n != 1 || c != "complete" {
				return fmt.Errorf("%d series, %s", n, c)
			}
			return nil
		}
	}

	t.Run("kill", func(t *testing.T) {
		// Under load, every query is answered: at once by the next process, or late.
		var (
			wg     sync.WaitGroup
			asked  atomic.Int64
			failed atomic.Value
		)
		stop := make(chan struct{})
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if n, c := up("alice"); n != 1 || c != "complete" {
						failed.Store(fmt.Sprintf("%d series, %s", n, c))
					}
					asked.Add(1)
				}
			})
		}
		for range 3 {
			before := plugins(t, host)["spawned"]
			if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "another process serves", 30*time.Second, func() error {
				if p := plugins(t, host)["spawned"]; p.State != "serving" || p.PID == before.PID || p.Restarts <= before.Restarts {
					return fmt.Errorf("%+v", p)
				}
				return nil
			})
			eventually(t, "it answers", 30*time.Second, whole("alice"))
		}
		close(stop)
		wg.Wait()
		t.Logf("%d queries while it was killed three times", asked.Load())
		if x := failed.Load(); x != nil {
			t.Errorf("a query was not answered in whole: %v", x)
		}
	})

	t.Run("stop", func(t *testing.T) {
		before := plugins(t, host)["spawned"]
		if err := syscall.Kill(before.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		// Nobody else notices.
		if n, c := up("bob"); n != 1 || c != "complete" {
			t.Errorf("bob gets %d series, %s", n, c)
		}
		eventually(t, "it is replaced", time.Minute, whole("alice"))
		if p := plugins(t, host)["spawned"]; p.PID == before.PID || p.LastFault == "" {
			t.Errorf("%+v", p)
		}
		if err := syscall.Kill(before.PID, 0); err == nil {
			t.Error("the stopped process is still there")
		}
	})

	t.Run("away", func(t *testing.T) {
		service.stop()
		eventually(t, "bob's share is missing", time.Minute, func() error {
			if n, c := up("bob"); n != 0 || c != "partial" {
				return fmt.Errorf("%d series, %s", n, c)
			}
			return nil
		})
		if n, c := up("alice"); n != 1 || c != "complete" {
			t.Errorf("alice gets %d series, %s", n, c)
		}
		service.start()
		eventually(t, "it is back", time.Minute, whole("bob"))
	})

	t.Run("flipped", func(t *testing.T) {
		data, err := os.ReadFile(tenancy)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		bad := write(t, filepath.Join(t.TempDir(), "bad.wasm"), string(data))
		cfg := fmt.Sprintf(`filters: [{name: t, plugin: {launch: wasm, path: %q, sha256: %q}, config: {label: t, from: [{subject: true}]}}]
query: {filters: [t]}
backends: []
http: {listen: "127.0.0.1:0"}
grpc: {listen: ""}
plugins: {dir: %q}
`, bad, tenancySum, filepath.Join(short(t), "p"))
		cmd := exec.Command(promweave(t), "serve", "--config", write(t, filepath.Join(t.TempDir(), "bad.yaml"), cfg))
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "bad.wasm") || !strings.Contains(strings.ToLower(string(out)), "sha") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// short is a directory with a short name: sockets lie in it.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// serveWith is serve for a server where one has to say who one is; config begins
// inside of query.
func serveWith(t *testing.T, config string) (p *process, addr, grpc string) {
	t.Helper()
	addr, grpc = freePort(t), freePort(t)
	cfg := fmt.Sprintf("http: {listen: %q}\ngrpc: {listen: %q}\nquery:\n  replica_labels: [replica]\n%s", addr, grpc, config)
	p = start(t, promweave(t), "serve", "--config", write(t, filepath.Join(t.TempDir(), "promweave.yaml"), cfg))
	eventually(t, "promweave is ready", time.Minute, func() error {
		resp, err := http.Get("http://" + addr + "/-/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, b)
		}
		return nil
	})
	return p, addr, grpc
}
