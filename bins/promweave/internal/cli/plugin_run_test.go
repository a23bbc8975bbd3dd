// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/bins/promweave/internal/workbench"
)

// TestPluginRun: a project is served, a change takes its place, and one that does not
// build leaves what is there.
func TestPluginRun(t *testing.T) {
	dir := t.TempDir()
	code, err := os.ReadFile("../../../../sdk/testdata/golden/v1.0/rewrite-c.wasm")
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	manifest := `name: rewrite
version: 1.0.0
kind: filter
launch: wasm
file: build/rewrite.wasm
build: [cp source.wasm build/rewrite.wasm]
protocol: {major: 1, min_minor: 0}
config: {set: "cluster=eu1"}
`
	put("plugin.yaml", []byte(manifest))
	put("source.wasm", code)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	outR, outW := io.Pipe()
	talkR, talkW := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		root := (&app{&console.Console{Out: outW, Talk: talkW, Now: time.Now}}).root()
		root.SetArgs([]string{"plugin", "run", dir})
		err := root.ExecuteContext(ctx)
		outW.Close()
		talkW.Close()
		ended <- err
	}()
	talk := make(chan string, 1000)
	go func() {
		defer close(talk)
		for s := bufio.NewScanner(talkR); s.Scan(); {
			talk <- s.Text()
		}
	}()
	until := func(want string) {
		t.Helper()
		var all []string
		for line := range talk {
			if all = append(all, line); strings.Contains(line, want) {
				return
			}
		}
		t.Fatalf("nothing was said of %q:\n%s", want, strings.Join(all, "\n"))
	}
	url, err := bufio.NewReader(outR).ReadString('\n')
	if err != nil {
		t.Fatal(err, <-ended)
	}
	url = strings.TrimSpace(url)
	// version is what is served, once what was served before is gone: its calls may
	// still end while the next one serves.
	plugins := func() []struct{ Name, SHA256, State string } {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/api/v1/plugins", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Close = true
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var ans struct {
			Data []struct{ Name, SHA256, State string }
		}
		if err := json.NewDecoder(resp.Body).Decode(&ans); err != nil {
			t.Fatal(err)
		}
		return ans.Data
	}
	version := func() string {
		t.Helper()
		for patience := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			switch list := plugins(); {
			case len(list) == 1 && list[0].State == "serving":
				return list[0].SHA256
			case time.Now().After(patience):
				t.Fatalf("%+v", list)
			}
		}
	}
	until("answers there")
	first := version()

	put("plugin.yaml", []byte(strings.Replace(manifest, "cp source", "cp nothing", 1)))
	until("The one before goes on")
	if version() != first {
		t.Error("what does not build took the place of what ran")
	}
	// A custom section is a change that means nothing.
	put("source.wasm", append(append([]byte{}, code...), 0, 2, 1, 'x'))
	put("plugin.yaml", []byte(manifest))
	until("built again, and serving")
	if version() == first {
		t.Error("the change is not served")
	}
	cancel()
	for range talk {
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestRebuildMissesNothing: a change that came while the first build ran, or before
// anybody watched, is built.
func TestRebuildMissesNothing(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("plugin.yaml", "{name: x, version: 1.0.0, kind: filter, launch: wasm, file: build/x.wasm, build: [cp source.wasm build/x.wasm], protocol: {major: 1}}")
	put("source.wasm", "one")
	p, err := workbench.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	built := sources(p)
	put("source.wasm", "the other")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	(&app{&console.Console{Out: io.Discard, Talk: io.Discard, Now: time.Now}}).rebuild(ctx, p, built, func() error { cancel(); return nil })
	if got, err := os.ReadFile(filepath.Join(dir, "build/x.wasm")); err != nil || string(got) != "the other" {
		t.Errorf("built of %q, %v", got, err)
	}
}
