// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/plugins/filters/auth"
	"github.com/promweave/promweave/plugins/filters/labelrewrite"
	"github.com/promweave/promweave/plugins/filters/tenancy"
	"github.com/promweave/promweave/sdk/filter"
)

// block is a fenced block of commands in a document, with a comment in front: run, then
// optionally "needs" and the tools that it cannot do without, or "prints" and what is to
// be found in its output.
var block = regexp.MustCompile("(?m)^<!-- run(?: needs (.+)| prints (.+))? -->\n```sh\n((?s:.*?))^```$")

// TestIntegrationReadmeOfPlugins runs the commands of sdk/README.md in their order, in
// one directory, as a stranger would. Addresses are free ones instead of the default.
func TestIntegrationReadmeOfPlugins(t *testing.T) {
	checkout, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	http := freePort(t)
	_, port, _ := strings.Cut(freePort(t), ":")
	addresses := strings.NewReplacer("127.0.0.1:9090", http, "127.0.0.1:10901", freePort(t),
		"127.0.0.1:8080", "127.0.0.1:"+port,
		// The server that a new project is tried with has its address in files.
		"python3 readings/try/server.py", "sed -i s/8080/"+port+"/ readings/plugin.yaml readings/try/server.py\npython3 readings/try/server.py")
	runBlocks(t, "../../sdk/README.md", 10, short(t), addresses, "CHECKOUT="+checkout, "PROMWEAVE_SERVER=http://"+http)
}

// TestIntegrationReadme runs the commands of README.md, in a clone of
// which there is what they need.
func TestIntegrationReadme(t *testing.T) {
	clone := short(t)
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile("../../" + name)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(clone, name), string(data))
	}
	if err := os.CopyFS(filepath.Join(clone, "sdk"), os.DirFS("../../sdk")); err != nil {
		t.Fatal(err)
	}
	runBlocks(t, "../../README.md", 2, clone, strings.NewReplacer())
}

// TestIntegrationReadmeOfC runs the commands of sdk/c/README.md in a copy of its folder.
func TestIntegrationReadmeOfC(t *testing.T) {
	dir := short(t)
	if err := os.CopyFS(dir, os.DirFS("../../sdk/c")); err != nil {
		t.Fatal(err)
	}
	runBlocks(t, "../../sdk/c/README.md", 1, dir, strings.NewReplacer())
}

// runBlocks runs the blocks of a document, of which there are some.
func runBlocks(t *testing.T, file string, atLeast int, dir string, replace *strings.Replacer, env ...string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	bin := promweave(t)
	blocks := block.FindAllSubmatch(text, -1)
	if n := strings.Count(string(text), "<!-- run"); n != len(blocks) || n < atLeast {
		t.Fatalf("%d of %d blocks are understood", len(blocks), n)
	}
	for i, b := range blocks {
		script := replace.Replace(string(b[3]))
		first, _, _ := strings.Cut(script, "\n")
		ok := t.Run(fmt.Sprintf("%02d_%s", i, first), func(t *testing.T) {
			for _, tool := range strings.Fields(string(b[1])) {
				if _, err := exec.LookPath(tool); err != nil {
					t.Skipf("%v: this block needs it", err)
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "sh", "-euc", script)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(bin)+string(filepath.ListSeparator)+os.Getenv("PATH"))
			cmd.Env = append(cmd.Env, env...)
			// What a block leaves behind ends with it.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
			cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
			cmd.WaitDelay = 10 * time.Second
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			if cmd.Process != nil {
				if kill := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); kill == nil {
					err = errors.Join(err, errors.New("it left processes behind"))
				}
			}
			if err == nil && !strings.Contains(stdout.String(), string(b[2])) {
				err = fmt.Errorf("it does not print %s", b[2])
			}
			if err != nil {
				t.Errorf("%v\n%s\nit printed\n%s\nand to standard error\n%s", err, script, tail(stdout.String()), tail(stderr.String()))
			}
		})
		if !ok {
			return // what follows builds on it
		}
	}
}

var snippet = regexp.MustCompile("(?m)^```yaml\n((?s:.*?))^```$")

// TestIntegrationReadmeSnippets: what the guides show of configurations can be loaded.
func TestIntegrationReadmeSnippets(t *testing.T) {
	bin := promweave(t)
	kinds := map[string]func() filter.Filter{"label_rewrite": labelrewrite.New, "tenancy": tenancy.New, "auth": auth.New}
	for file, atLeast := range map[string]int{"../../plugins/README.md": 6, "../../sdk/examples/backend-typescript/README.md": 1} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all := snippet.FindAllSubmatch(text, -1)
		if n := strings.Count(string(text), "```yaml"); n != len(all) || n < atLeast {
			t.Fatalf("%s: %d of %d snippets are understood", file, len(all), n)
		}
		for i, s := range all {
			// The snippets name files that are not here.
			path := write(t, filepath.Join(t.TempDir(), "promweave.yaml"), string(s[1]))
			if out, err := exec.Command(bin, "check", "config", "--syntax-only", path).CombinedOutput(); err != nil {
				t.Errorf("%s, snippet %d: %v\n%s\n%s", file, i, err, out, s[1])
				continue
			}
			conf, err := config.Load(path, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range conf.Filters {
				if f.Kind == "" {
					continue
				}
				c := &filter.Config{Name: f.Name, JSON: []byte(f.Config)}
				if c.Settings, err = filter.Settings(c.JSON); err == nil {
					_, err = kinds[f.Kind]().Configure(c)
				}
				if err != nil {
					t.Errorf("%s, snippet %d: filter %s: %v", file, i, f.Name, err)
				}
			}
		}
	}
}
