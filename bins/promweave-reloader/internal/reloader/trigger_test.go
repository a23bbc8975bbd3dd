// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package reloader

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestPost: only 200 is success, and no error tells a password.
func TestPost(t *testing.T) {
	const secret = "hunter2"
	var method, user string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, password, _ := r.BasicAuth()
		method, user = r.Method, name+":"+password
		switch r.URL.Path {
		case "/fails":
			http.Error(w, "bad config: password "+secret, http.StatusInternalServerError)
		case "/moved":
			http.Redirect(w, r, "/ok", http.StatusFound)
		}
	}))
	defer s.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	for _, x := range []struct{ base, path, want string }{
		{s.URL, "/ok", ""},
		{s.URL, "/fails", "500 Internal Server Error"},
		{s.URL, "/moved", "302 Found"},
		{gone.URL, "/ok", "refused"},
	} {
		f, err := Post(strings.Replace(x.base, "http://", "http://u:"+secret+"@", 1) + x.path + "?token=" + secret)
		if err != nil {
			t.Fatal(err)
		}
		err = f(t.Context())
		if (err == nil) != (x.want == "") || err != nil && (!strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), x.path) || strings.Contains(err.Error(), secret)) {
			t.Errorf("%s: %v", x.path, err)
		}
	}
	if method != "POST" || user != "u:"+secret {
		t.Errorf("%s by %s", method, user)
	}
	for _, bad := range []string{"", "127.0.0.1:9090", "ftp://x", "http://", "http://u:hunter2@h:x/"} {
		if _, err := Post(bad); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// child is a process that ends at SIGHUP.
func child(t *testing.T) *exec.Cmd {
	t.Helper()
	c := exec.Command("sleep", "60")
	// Under nohup the signal is ignored, and would be by the child; one that is caught is not.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	defer signal.Stop(caught)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	return c
}

func hungUp(t *testing.T, c *exec.Cmd) {
	t.Helper()
	_ = c.Wait()
	if s, ok := c.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGHUP {
		t.Errorf("it ended by %v", c.ProcessState)
	}
}

func TestSignals(t *testing.T) {
	dir := t.TempDir()
	pid := filepath.Join(dir, "pid")
	f := ByPIDFile(pid)
	fails := func(f Trigger, want string) {
		t.Helper()
		if err := f(context.Background()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	fails(f, "no such file")
	for _, text := range []string{"", "x", "0", "-1"} {
		write(t, pid, text)
		fails(f, "has no process id")
	}
	c := child(t)
	write(t, pid, fmt.Sprintln(c.Process.Pid))
	if err := f(t.Context()); err != nil {
		t.Fatal(err)
	}
	hungUp(t, c)
	fails(f, "SIGHUP to process")

	proc := filepath.Join(dir, "proc")
	write(t, filepath.Join(proc, "version"), "")
	write(t, filepath.Join(proc, fmt.Sprint(os.Getpid()), "cmdline"), "/bin/prometheus\x00")
	named := byName(proc, "prometheus")
	fails(named, "no process prometheus")
	c = child(t)
	write(t, filepath.Join(proc, fmt.Sprint(c.Process.Pid), "cmdline"), "/bin/prometheus\x00--x=y\x00")
	write(t, filepath.Join(proc, "2", "cmdline"), "/bin/prometheus-other\x00prometheus\x00")
	if err := named(t.Context()); err != nil {
		t.Fatal(err)
	}
	hungUp(t, c)
	write(t, filepath.Join(proc, "3", "cmdline"), "prometheus\x00")
	fails(named, "2 processes prometheus")
	fails(ByName("no-such-program-anywhere"), "no process")
}
