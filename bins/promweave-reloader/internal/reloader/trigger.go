// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package reloader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Trigger has somebody read the configuration again.
type Trigger func(context.Context) error

// patience is how long an answer may take: a large configuration takes its time.
const patience = time.Minute

// Post asks by HTTP. Errors have nothing of the URL but the host and the path, and nothing of the
// answer: either may have passwords.
func Post(target string) (Trigger, error) {
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("it is no http or https URL: write http://127.0.0.1:9090/-/reload")
	}
	name := (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
	client := &http.Client{
		Timeout: patience,
		// Once in minutes: a connection that is kept would be stale.
		Transport:     &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
		if err != nil {
			return fmt.Errorf("%s cannot be asked", name)
		}
		resp, err := client.Do(req)
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s; the log there says why", name, resp.Status)
		}
		return nil
	}, nil
}

// ByPIDFile sends SIGHUP to the process that a file names.
func ByPIDFile(file string) Trigger {
	return func(context.Context) error {
		data, err := readFile(file)
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil || pid < 1 {
			return fmt.Errorf("%s has no process id", file)
		}
		return hangUp(pid)
	}
}

// ByName sends SIGHUP to the one process whose program has a name. It has to be seen from here: in
// Kubernetes that needs shareProcessNamespace.
func ByName(name string) Trigger { return byName("/proc", name) }

func byName(proc, name string) Trigger {
	return func(context.Context) error {
		entries, err := os.ReadDir(proc)
		if err != nil {
			return err
		}
		var found []int
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			line, err := os.ReadFile(filepath.Join(proc, e.Name(), "cmdline"))
			if err != nil {
				continue // it has ended, or is none of ours
			}
			program, _, _ := bytes.Cut(line, []byte{0})
			if filepath.Base(string(program)) == name {
				found = append(found, pid)
			}
		}
		switch len(found) {
		case 0:
			return fmt.Errorf("there is no process %s here", name)
		case 1:
			return hangUp(found[0])
		}
		return fmt.Errorf("there are %d processes %s: name one by --pid-file", len(found), name)
	}
}

func hangUp(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return fmt.Errorf("SIGHUP to process %d: %w", pid, err)
	}
	return nil
}
