// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package reloader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted is a watcher that notices what it is told to.
type scripted struct {
	changes chan string
	errs    chan error
	dirs    []string
}

func (s *scripted) watch(dirs []string) error { s.dirs = dirs; return nil }
func (s *scripted) changed() <-chan string    { return s.changes }
func (s *scripted) failed() <-chan error      { return s.errs }

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestTimes: the first reload is at once, many changes are one reload after the delay, what is not
// noticed is found by the interval, a failure is tried again, and nothing is reloaded for nothing.
func TestTimes(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "p.yml"), "0")
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		var at []string
		var fail error
		failing := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			fail = err
		}
		log := &buffer{}
		reg := prometheus.NewRegistry()
		w := &scripted{changes: make(chan string), errs: make(chan error)}
		r := New(Config{
			File: file, Interval: 3 * time.Minute, Delay: time.Second, Retry: 5 * time.Second, Registerer: reg,
			Logger: slog.New(slog.NewTextHandler(log, nil)),
			Trigger: func(context.Context) error {
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Since(began).String())
				return fail
			},
		})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.loop(ctx, w); close(done) }()
		want := func(times ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(at, times) {
				t.Fatalf("reloads at %v, want %v", at, times)
			}
		}
		until := func(d time.Duration) { time.Sleep(d - time.Since(began)); synctest.Wait() }
		want("0s")
		if !r.Ready() || !slices.Equal(w.dirs, []string{dir}) {
			t.Error(r.Ready(), w.dirs)
		}
		// A change that is none.
		until(10 * time.Second)
		w.changes <- "p.yml"
		until(20 * time.Second)
		want("0s")
		// Changes without an end are still seen.
		write(t, file, "1")
		for range 30 {
			w.changes <- "p.yml"
			time.Sleep(100 * time.Millisecond)
		}
		want("0s", "21s")
		// One that nobody noticed.
		until(time.Minute)
		write(t, file, "2")
		until(4 * time.Minute)
		want("0s", "21s", "3m23s")
		// One after which reloading fails for a while.
		until(5 * time.Minute)
		failing(errors.New("not now"))
		write(t, file, "3")
		w.changes <- "p.yml"
		until(5*time.Minute + 12*time.Second)
		failing(nil)
		if testutil.ToFloat64(r.metrics.success) != 0 {
			t.Error("it looks like a success")
		}
		until(9 * time.Minute)
		want("0s", "21s", "3m23s", "5m1s", "5m6s", "5m11s", "5m16s")
		if n := strings.Count(log.String(), "not now"); n != 1 {
			t.Errorf("the failure is logged %d times\n%s", n, log)
		}
		if testutil.ToFloat64(r.metrics.success) != 1 || testutil.ToFloat64(r.metrics.reloadFailures) != 3 || testutil.ToFloat64(r.metrics.reloads) != 7 {
			t.Error("metrics are wrong")
		}
		// The file goes, and comes back as it was.
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		w.changes <- "p.yml"
		until(9*time.Minute + 20*time.Second)
		if n := testutil.ToFloat64(r.metrics.applyFailures); n < 3 || !strings.Contains(log.String(), "no such file") {
			t.Errorf("%v failures\n%s", n, log)
		}
		write(t, file, "3")
		until(10 * time.Minute)
		want("0s", "21s", "3m23s", "5m1s", "5m6s", "5m11s", "5m16s")
		if !strings.Contains(log.String(), "in force again") {
			t.Error(log)
		}
		// A watcher that fails leaves the interval.
		w.errs <- errors.New("too many files")
		write(t, file, "4")
		until(20 * time.Minute)
		synctest.Wait()
		if len(at) != 8 || testutil.ToFloat64(r.metrics.watchErrors) != 1 {
			t.Error(at)
		}
		stop()
		<-done
	})
}

// TestOutput: what is written, and that nothing is triggered over what cannot be.
func TestOutput(t *testing.T) {
	for name, x := range map[string]struct {
		in        string
		tolerate  bool
		out       string
		problem   string
		truncated int64
	}{
		"plain":     {in: "replica: $(POD)", out: "replica: prom-0"},
		"gzip":      {in: zipped(t, []byte("replica: $(POD)")), out: "replica: prom-0"},
		"unset":     {in: "a: $(NONE)", problem: "not set in the environment: NONE"},
		"tolerated": {in: "a: $(NONE) $(POD)", tolerate: true, out: "a: $(NONE) prom-0"},
		"too big":   {truncated: maxFile + 1, problem: "larger than 32 MiB"},
	} {
		dir := t.TempDir()
		file, out := write(t, filepath.Join(dir, "p.yml"), x.in), filepath.Join(dir, "out", "p.yml")
		write(t, out, "old")
		if x.truncated > 0 {
			if err := os.Truncate(file, x.truncated); err != nil {
				t.Fatal(err)
			}
		}
		triggered := 0
		r := New(Config{File: file, Output: out, Lookup: environment, TolerateUnset: x.tolerate, Trigger: func(context.Context) error { triggered++; return nil }})
		err := r.apply(t.Context(), &scripted{})
		if (err == nil) != (x.problem == "") || err != nil && !strings.Contains(err.Error(), x.problem) {
			t.Errorf("%s: %v", name, err)
		}
		want := x.out
		if x.problem != "" {
			want = "old"
		}
		if got, err := os.ReadFile(out); err != nil || string(got) != want || (triggered == 1) != (x.problem == "") {
			t.Errorf("%s: %q, %v, triggered %d times", name, got, err, triggered)
		}
	}
}

// configMap makes a version of a ConfigMap as the kubelet does: a directory, and a link that is
// swapped.
func configMap(t *testing.T, dir, name, text string) {
	t.Helper()
	write(t, filepath.Join(dir, name, "p.yml"), text)
	link := filepath.Join(dir, "..data_tmp")
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link, filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

// TestCommand: the whole program over real files, a ConfigMap and a directory of rules, with a server
// that fails at first. Nothing but a change is what reloads: the interval is an hour.
func TestCommand(t *testing.T) {
	const secret = "hunter2"
	var mu sync.Mutex
	calls, fail := 0, 2
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if fail > 0 {
			fail--
			http.Error(w, "no", http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	soon := func(what string, so func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("not in time: " + what)
			}
		}
	}
	count := func(n int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return calls == n
		}
	}
	cm, rules, out := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "p.yml")
	configMap(t, cm, "..v1", "replica: $(POD)")
	if err := os.Symlink(filepath.Join("..data", "p.yml"), filepath.Join(cm, "p.yml")); err != nil {
		t.Fatal(err)
	}
	log := &buffer{}
	ctx, stop := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{
			"--config-file", filepath.Join(cm, "p.yml"), "--output-file", out, "--rules", rules, "--watch-interval", "1h", "--delay", "10ms", "--retry-interval", "20ms",
			"--reload-url", strings.Replace(s.URL, "http://", "http://u:"+secret+"@", 1) + "/-/reload?token=" + secret, "--listen-address", "127.0.0.1:0",
		}, environment, io.Discard, log)
	}()
	output := func(want string) func() bool {
		return func() bool {
			data, err := os.ReadFile(out)
			return err == nil && string(data) == want
		}
	}
	soon("the first reload", count(3))
	soon("the output", output("replica: prom-0"))
	address := regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(log.String())
	get := func(path string) (int, string) {
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get("http://" + address[1] + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	soon("readiness", func() bool { code, _ := get("/-/ready"); return code == 200 })

	configMap(t, cm, "..v2", "replica: $(POD)\nv: 2")
	soon("the new version", output("replica: prom-0\nv: 2"))
	soon("its reload", count(4))
	rule := write(t, filepath.Join(rules, "a.yml"), "groups: []")
	soon("the reload of a rule", count(5))
	if err := os.Remove(rule); err != nil {
		t.Fatal(err)
	}
	soon("the reload without it", count(6))
	if _, body := get("/metrics"); !strings.Contains(body, "promweave_reloader_last_reload_successful 1") || !strings.Contains(body, "promweave_reloader_reloads_failed_total 2") {
		t.Error(body)
	}
	if code, _ := get("/-/healthy"); code != 200 {
		t.Error(code)
	}
	stop()
	if c := <-code; c != 0 {
		t.Errorf("exit code %d\n%s", c, log)
	}
	if strings.Contains(log.String(), secret) || !strings.Contains(log.String(), "503") {
		t.Errorf("the log:\n%s", log)
	}
}

func TestUsage(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "p.yml"), "")
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"":                      {2, "there is nothing to watch"},
		"--config-file " + file: {2, "want one of --reload-url"},
		"--config-file " + file + " --reload-url http://h --pid-file x":      {2, "want one of"},
		"--config-file " + file + " --reload-url h:1":                        {2, "no http or https URL"},
		"--config-file " + file + " --output-file " + file + " --pid-file x": {2, "overwritten"},
		"--rules x --output-file y --pid-file x":                             {2, "needs --config-file"},
		"--rules x --pid-file x --retry-interval 0s":                         {2, "more than 0"},
		"--rules x --pid-file x y":                                           {2, "unknown command"},
		"--nothing":                                                          {2, "unknown flag"},
		"--rules x --pid-file x --listen-address nowhere:none":               {1, "--listen-address"},
		"--help": {0, ""},
	} {
		var stderr bytes.Buffer
		if code := run(t.Context(), strings.Fields(args), environment, io.Discard, &stderr); code != want.code || !strings.Contains(stderr.String(), want.text) {
			t.Errorf("%s: %d %s", fmt.Sprintf("%q", args), code, stderr.String())
		}
	}
}
