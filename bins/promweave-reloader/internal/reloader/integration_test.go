// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package reloader

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestIntegrationPrometheus: a real Prometheus gets what is in the file, by HTTP and by SIGHUP.
func TestIntegrationPrometheus(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, out, pid := filepath.Join(dir, "in", "p.yml"), filepath.Join(dir, "p.yml"), filepath.Join(dir, "pid")
	put := func(cluster string) {
		write(t, file, "global: {external_labels: {replica: $(POD), cluster: "+cluster+"}}\n")
	}
	shows := func(want string) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for {
			var body []byte
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + addr + "/api/v1/status/config")
			if err == nil {
				body, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if err == nil && strings.Contains(string(body), want) && strings.Contains(string(body), "replica: prom-0") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is not there: %s %v", want, body, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	// The reloader is there first, as in a pod: what Prometheus starts with is what it wrote.
	put("one")
	log := &buffer{}
	follow := func(args ...string) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		code := make(chan int, 1)
		go func() {
			code <- run(ctx, append([]string{"--config-file", file, "--output-file", out, "--watch-interval", "1h", "--delay", "50ms", "--retry-interval", "100ms"}, args...), environment, io.Discard, log)
		}()
		return func() {
			cancel()
			if c := <-code; c != 0 {
				t.Errorf("exit code %d\n%s", c, log)
			}
		}
	}
	stop := follow("--reload-url", "http://"+addr+"/-/reload")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := readFile(out); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	p := exec.Command("prometheus", "--config.file="+out, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr, "--web.enable-lifecycle", "--log.level=error")
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Process.Kill(); _ = p.Wait() }()
	shows("cluster: one")
	put("two")
	shows("cluster: two")
	stop()
	if !strings.Contains(log.String(), "in force again") {
		t.Errorf("it was tried until the server was there:\n%s", log)
	}
	write(t, pid, fmt.Sprint(p.Process.Pid))
	stop = follow("--pid-file", pid)
	put("three")
	shows("cluster: three")
	stop()
}
