// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests in this file run the built program in front of real Prometheus
// servers (Debian's package, 2.42) that scrape real targets: themselves.

// process is a program under test; it ends with the test.
type process struct {
	t    *testing.T
	name string
	args []string
	out  *bytes.Buffer
	cmd  *exec.Cmd
	done chan struct{}
}

func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, args: args}
	p.start()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("%s %v printed:\n%s", name, args, tail(p.out.String()))
		}
	})
	return p
}

func tail(s string) string { return s[max(0, len(s)-20000):] }

func (p *process) start() {
	p.t.Helper()
	p.out = &bytes.Buffer{}
	p.cmd = exec.Command(p.name, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("%v; the tests need Debian's package prometheus and make build", err)
	}
	p.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { _ = cmd.Wait(); close(done) }(p.cmd, p.done)
}

func (p *process) stop() {
	select {
	case <-p.done:
		return
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
		p.t.Errorf("%s did not stop within 20 s of SIGTERM", p.name)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// eventually asks until it is so.
func eventually(t *testing.T, what string, within time.Duration, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
	}
}

func promweave(t *testing.T) string {
	t.Helper()
	bin, err := filepath.Abs("../../bin/promweave")
	if err == nil {
		_, err = os.Stat(bin)
	}
	if err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	return bin
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// prom is a real Prometheus that scrapes the targets given.
func prom(t *testing.T, addr, dir, extra string, targets ...string) *process {
	t.Helper()
	cfg := fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s, external_labels: {cluster: eu1, replica: a}}
rule_files: [%s]
scrape_configs: [{job_name: real, static_configs: [{targets: [%q]}]}]
%s`, write(t, filepath.Join(t.TempDir(), "rules.yml"), `
groups: [{name: g, rules: [{record: "job:up:sum", expr: sum by (job) (up)}, {alert: Always, expr: vector(1), labels: {severity: page}}]}]
`), strings.Join(targets, `", "`), extra)
	return start(t, "prometheus", "--config.file="+write(t, filepath.Join(t.TempDir(), "p.yml"), cfg), "--storage.tsdb.path="+dir, "--web.listen-address="+addr,
		"--enable-feature=exemplar-storage", "--log.level=warn")
}

// serve is the program with a configuration.
func serve(t *testing.T, config string) (p *process, http, grpc string) {
	t.Helper()
	http, grpc = freePort(t), freePort(t)
	cfg := fmt.Sprintf("http: {listen: %q}\ngrpc: {listen: %q}\nquery: {replica_labels: [replica]}\n%s", http, grpc, config)
	p = start(t, promweave(t), "serve", "--config", write(t, filepath.Join(t.TempDir(), "promweave.yaml"), cfg))
	eventually(t, "promweave is ready", 20*time.Second, func() error { _, _, err := get("http://" + http + "/-/ready"); return err })
	return p, http, grpc
}

func get(u string) ([]byte, http.Header, error) {
	resp, err := http.Get(u)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, tail(string(b)))
	}
	return b, resp.Header, err
}

type sample struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"`
	Values [][2]any          `json:"values"`
}

type answer struct {
	Data struct {
		ResultType string          `json:"resultType"`
		Result     json.RawMessage `json:"result"`
	} `json:"data"`
	Warnings []string `json:"warnings"`
	Infos    []string `json:"infos"`
}

// ask returns the samples of an answer, one line a series, sorted, the labels
// named left out.
func ask(addr, path string, params url.Values, without ...string) ([]string, answer, http.Header, error) {
	var a answer
	b, h, err := get("http://" + addr + "/api/v1/" + path + "?" + params.Encode())
	if err != nil {
		return nil, a, h, err
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, a, h, fmt.Errorf("%s: %w", b, err)
	}
	if a.Data.ResultType == "scalar" {
		return []string{string(a.Data.Result)}, a, h, nil
	}
	var result []sample
	if err := json.Unmarshal(a.Data.Result, &result); err != nil {
		return nil, a, h, fmt.Errorf("%s: %w", b, err)
	}
	var lines []string
	for _, s := range result {
		for _, n := range without {
			delete(s.Metric, n)
		}
		keys := make([]string, 0, len(s.Metric))
		for k := range s.Metric {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		var line strings.Builder
		for _, k := range keys {
			fmt.Fprintf(&line, "%s=%q ", k, s.Metric[k])
		}
		if s.Values == nil {
			s.Values = [][2]any{s.Value}
		}
		for _, v := range s.Values {
			f, err := strconv.ParseFloat(v[1].(string), 64)
			if err != nil {
				return nil, a, h, err
			}
			// Sums are not added up in the same order; what is equal to twelve digits
			// is equal.
			fmt.Fprintf(&line, " %.3f:%s", v[0], strconv.FormatFloat(f, 'g', 12, 64))
			if math.IsNaN(f) {
				line.WriteString("!")
			}
		}
		lines = append(lines, line.String())
	}
	slices.Sort(lines)
	return lines, a, h, nil
}

// Known differences between Prometheus 2.42 and ours, which follows 3.x: range
// selectors and the lookback are closed on the left in 2.42, so that queries are
// asked at times that are no sample's time plus a range; a dot in a regular
// expression leaves newlines out in 2.42, and no label here has one; and a counter
// that is so young that extrapolation would go below zero is cut at another point
// (2.42 compares the way to zero before, 3.x after bounding the way to the start of
// the range), so that counters are those that are far from zero.
var sameQueries = []string{
	`up`,
	`sum by (job) (rate(prometheus_tsdb_head_samples_appended_total[30s]))`,
	`rate(go_memstats_alloc_bytes_total[30s]) / rate(go_memstats_mallocs_total[30s])`,
	`histogram_quantile(0.9, sum by (le, handler) (rate(prometheus_http_request_duration_seconds_bucket[20s])))`,
	`increase(prometheus_tsdb_head_samples_appended_total[10s])`,
	`topk(3, prometheus_tsdb_head_series)`,
	`go_gc_duration_seconds{quantile!="0"}`,
	`{__name__=~"go_memstats_.*_bytes"}`,
	`max_over_time(go_goroutines[10s])`,
	`absent(no_such_metric)`,
	`count by (__name__) ({__name__=~"prometheus_tsdb_.+"})`,
	`up{instance=~".+"} == 1 unless on (instance) up{job="none"}`,
	`job:up:sum`,
	`ALERTS{alertname="Always"}`,
	`sum_over_time(up[5s:1s])`,
	`prometheus_build_info offset 1s`,
	`label_replace(up, "host", "$1", "instance", "(.*):.*")`,
	`time() - timestamp(up) > bool 100`,
	`1 + 1`,
	`stddev by (job) (scrape_duration_seconds)`,
	`changes(process_start_time_seconds[20s])`,
}

// quiet returns a time, in ms, well between the times at which anything was
// scraped, so that no range of whole seconds begins at a sample.
func quiet(t *testing.T, addr string) int64 {
	t.Helper()
	lines, a, _, err := ask(addr, "query", url.Values{"query": {`{__name__!=""}[5s]`}})
	if err != nil || len(lines) == 0 {
		t.Fatalf("samples of the last 5 s: %v, %d series", err, len(lines))
	}
	var series []sample
	if err := json.Unmarshal(a.Data.Result, &series); err != nil {
		t.Fatal(err)
	}
	var phases []int
	latest := int64(0)
	for _, s := range series {
		for _, v := range s.Values {
			ms := int64(math.Round(v[0].(float64) * 1000))
			phases = append(phases, int(ms%1000))
			latest = max(latest, ms)
		}
	}
	slices.Sort(phases)
	phases = append(slices.Compact(phases), phases[0]+1000)
	widest, at := 0, 0
	for i := 1; i < len(phases); i++ {
		if w := phases[i] - phases[i-1]; w > widest {
			widest, at = w, phases[i-1]+w/2
		}
	}
	if widest < 20 {
		t.Fatalf("no quiet time between scrapes: phases %v", phases)
	}
	return (latest/1000-2)*1000 + int64(at%1000)
}

func seconds(ms int64) string { return strconv.FormatFloat(float64(ms)/1000, 'f', 3, 64) }

// agree asks both sides everything and compares.
func agree(t *testing.T, want, got string, at int64, without ...string) {
	t.Helper()
	asked := 0
	for _, engine := range []string{"prometheus", "thanos"} {
		for _, q := range sameQueries {
			instant := url.Values{"query": {q}, "time": {seconds(at)}}
			ranged := url.Values{"query": {q}, "start": {seconds(at - 15_000)}, "end": {seconds(at)}, "step": {"1"}}
			for path, params := range map[string]url.Values{"query": instant, "query_range": ranged} {
				w, _, _, err := ask(want, path, params, without...)
				if err != nil {
					t.Fatalf("%s %s of the reference: %v", path, q, err)
				}
				params.Set("engine", engine)
				g, _, h, err := ask(got, path, params, without...)
				if err != nil {
					t.Errorf("%s %s (%s): %v", path, q, engine, err)
					continue
				}
				if c := h.Get("Promweave-Completeness"); c != "complete" {
					t.Errorf("%s %s: completeness is %q", path, q, c)
				}
				if !slices.Equal(w, g) {
					t.Errorf("%s %s (%s) at %d:\nreference %s\n      got %s", path, q, engine, at, strings.Join(w, "\n          "), strings.Join(g, "\n          "))
				}
				asked += len(w)
			}
		}
	}
	if asked < 400 {
		t.Errorf("only %d series were compared", asked)
	}
}

// TestIntegrationPrometheus puts the program in front of a real Prometheus in
// every way there is, and takes the server away and gives it back.
func TestIntegrationPrometheus(t *testing.T) {
	addr, dir := freePort(t), t.TempDir()
	server := prom(t, addr, dir, "", addr)
	eventually(t, "Prometheus has scraped for a while", time.Minute, func() error {
		lines, _, _, err := ask(addr, "query", url.Values{"query": {"count_over_time(up[1m]) > 20"}})
		if err == nil && len(lines) == 0 {
			err = errors.New("fewer than 20 scrapes")
		}
		return err
	})

	_, direct, grpc := serve(t, fmt.Sprintf("backends: [{name: p, kind: prometheus, config: {url: %q}}]", "http://"+addr))
	_, sampled, _ := serve(t, fmt.Sprintf("backends: [{name: p, kind: prometheus, config: {url: %q, read_mode: samples}}]", "http://"+addr))
	_, files, _ := serve(t, fmt.Sprintf("backends: [{name: d, kind: tsdb, external_labels: {cluster: eu1, replica: a}, config: {path: %q, read_only: true}}]", dir))
	_, over, _ := serve(t, fmt.Sprintf("backends: [{name: w, kind: storeapi, config: {address: %q}}]", grpc))
	_, all, _ := serve(t, fmt.Sprintf(`backends:
- {name: p, kind: prometheus, config: {url: %q}}
- {name: d, kind: tsdb, external_labels: {cluster: eu1, replica: a}, config: {path: %q, read_only: true}}
- {name: w, kind: storeapi, config: {address: %q}}
`, "http://"+addr, dir, grpc))

	at := quiet(t, addr)
	// The directory is followed, at most 15 s behind.
	eventually(t, "the directory has been followed", 15*time.Second, func() error {
		lines, _, _, err := ask(files, "query", url.Values{"query": {"max(timestamp(up))"}})
		if err != nil || len(lines) == 0 {
			return fmt.Errorf("nothing yet: %v", err)
		}
		_, v, _ := strings.Cut(lines[0], " ")
		_, v, _ = strings.Cut(v, ":")
		if f, err := strconv.ParseFloat(v, 64); err != nil || int64(f*1000) < at {
			return fmt.Errorf("it is at %s, want %d: %v", v, at, err)
		}
		return nil
	})
	for name, got := range map[string]string{
		"remote_read_streamed": direct, "remote_read_sampled": sampled, "tsdb_directory": files, "storeapi_of_promweave": over, "all_at_once": all,
	} {
		t.Run(name, func(t *testing.T) {
			agree(t, addr, got, at, "cluster", "replica")

			w, _, _, err := ask(addr, "query", url.Values{"query": {`count({__name__=~".+"})`}, "time": {seconds(at)}})
			if err != nil {
				t.Fatal(err)
			}
			g, _, _, err := ask(got, "query", url.Values{"query": {`count({cluster="eu1"})`}, "time": {seconds(at)}})
			if err != nil || !slices.Equal(w, g) {
				t.Errorf(`{cluster="eu1"}, which only an external label matches, selects %v (%v), want %v`, g, err, w)
			}
			if g, _, _, err = ask(got, "query", url.Values{"query": {`count({cluster="us1"})`}, "time": {seconds(at)}}); err != nil || len(g) != 0 {
				t.Errorf(`{cluster="us1"} selects %v (%v), want nothing`, g, err)
			}
		})
	}

	t.Run("labels_and_state", func(t *testing.T) {
		for _, x := range []struct{ path, want string }{
			{"labels", `"cluster"`},
			{"label/cluster/values", `["eu1"]`},
			{"label/__name__/values?match[]=up", `["up"]`},
			{"label/instance/values", addr},
			{"series?match[]=up", `"cluster":"eu1"`},
			{"metadata?metric=go_goroutines", `"gauge"`},
			{"rules", `"job:up:sum"`},
			{"alerts", `"Always"`},
			{"targets", addr},
			{"status/tsdb", `"headStats"`},
			{"stores", `"lastError":null`},
			{"query_exemplars?query=up&start=1&end=2", `"data":[]`},
		} {
			b, _, err := get("http://" + direct + "/api/v1/" + x.path)
			if err != nil || !strings.Contains(string(b), x.want) {
				t.Errorf("%s: %s (%v), want %s in it", x.path, tail(string(b)), err, x.want)
			}
		}
	})

	t.Run("prometheus_reads_through_promweave", func(t *testing.T) {
		reader := freePort(t)
		prom(t, reader, t.TempDir(), fmt.Sprintf("remote_read: [{url: %q, read_recent: true}]", "http://"+direct+"/api/v1/read"))
		q := url.Values{"query": {`go_goroutines{cluster="eu1"}`}, "time": {seconds(at)}}
		w, _, _, err := ask(direct, "query", q)
		if err != nil || len(w) == 0 {
			t.Fatalf("%v, %v", w, err)
		}
		eventually(t, "Prometheus answers with what it read", 20*time.Second, func() error {
			g, a, _, err := ask(reader, "query", q)
			if err == nil && !slices.Equal(w, g) {
				err = fmt.Errorf("got %v, want %v (warnings %v)", g, w, a.Warnings)
			}
			return err
		})
	})

	t.Run("stop_and_return", func(t *testing.T) {
		state := func(want string) func() error {
			return func() error {
				_, a, h, err := ask(direct, "query", url.Values{"query": {"up"}})
				if err != nil {
					return err
				}
				if got := h.Get("Promweave-Completeness"); got != want {
					return fmt.Errorf("completeness is %q, want %q", got, want)
				}
				if want == "partial" && (h.Get("Cache-Control") != "no-store" || !strings.Contains(strings.Join(a.Warnings, ";"), "p: ")) {
					return fmt.Errorf("Cache-Control %q, warnings %q", h.Get("Cache-Control"), a.Warnings)
				}
				return nil
			}
		}
		eventually(t, "complete", 10*time.Second, state("complete"))
		server.stop()
		eventually(t, "partial after the server stopped", 20*time.Second, state("partial"))

		out, err := exec.Command(promweave(t), "query", "instant", "up", "--server", "http://"+direct).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Errorf("promweave query: %v, want exit code 3; it printed %s", err, out)
		}
		if _, _, _, err := ask(direct, "query", url.Values{"query": {"up"}, "partial_response": {"false"}}); err == nil || !strings.Contains(err.Error(), "p") {
			t.Errorf("partial_response=false: %v, want an error that names the backend", err)
		}
		server.start()
		eventually(t, "complete after the server returned", 30*time.Second, state("complete"))
	})
}
