// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/bins/promweave/internal/workbench"
)

func TestMain(m *testing.M) {
	testscript.Main(leaks{m}, map[string]func(){
		"promweave": func() { os.Exit(Main(os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// leaks is what goleak.VerifyTestMain does, within testscript's Main.
type leaks struct{ m *testing.M }

func (l leaks) Run() int {
	linked := goleak.IgnoreCurrent() // a cloud's client starts a goroutine when it is linked
	code := l.m.Run()
	if err := goleak.Find(linked); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// TestScripts runs the commands as processes, against a server that answers each
// path with the file of its name in the script: api/v1/query.json for
// /api/v1/query, and headers in api/v1/query.headers. What was asked is in
// requests.txt.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		// UPDATE_SCRIPTS=1 go test writes what came instead of what was expected.
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			srv := httptest.NewServer(fake(env.WorkDir))
			env.Defer(srv.Close)
			env.Setenv("PROMWEAVE_SERVER", srv.URL)
			env.Setenv("CONFIGS", mustAbs("../../../../configs"))
			env.Setenv("COLUMNS", "60")
			env.Setenv("CHECKOUT", mustAbs("../../../.."))
			// Projects in Go are built by what is there, as this was.
			for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
				out, err := exec.Command("go", "env", name).Output()
				if err != nil {
					return err
				}
				env.Setenv(name, strings.TrimSpace(string(out)))
			}
			env.Setenv("GOPROXY", "off")
			env.Setenv("GOFLAGS", "")
			return nil
		},
		Cmds:      map[string]func(*testscript.TestScript, bool, []string){"exit": exit, "flip": flip},
		Condition: compiler,
	})
}

// exit runs a command and compares its exit code: exit 3 promweave query ...
func exit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// flip changes one byte of a file: flip FILE OFFSET, from its end if that is negative.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET")
	}
	name := ts.MkAbs(args[0])
	data, err := os.ReadFile(name)
	ts.Check(err)
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	if at < 0 {
		at += len(data)
	}
	data[at] ^= 1
	ts.Check(os.WriteFile(name, data, 0o666))
}

// compiler is the condition [compiler:LANGUAGE]: whether a language can be built here.
func compiler(cond string) (bool, error) {
	language, ok := strings.CutPrefix(cond, "compiler:")
	if !ok {
		return false, fmt.Errorf("unknown condition %q", cond)
	}
	return workbench.Available(context.Background(), language) == nil, nil
}

func mustAbs(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		panic(err)
	}
	return abs
}

func fake(dir string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		f, err := os.OpenFile(filepath.Join(dir, "requests.txt"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o666)
		if err == nil {
			fmt.Fprintf(f, "%s %s %s %s\n", r.Method, r.URL.Path, r.Form.Encode(), r.Header.Get("X-Test"))
			f.Close()
		}
		base := filepath.Join(dir, filepath.FromSlash(r.URL.Path))
		status := http.StatusOK
		if headers, err := os.ReadFile(base + ".headers"); err == nil {
			for line := range strings.Lines(string(headers)) {
				k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
				if k == "Status" {
					fmt.Sscan(v, &status)
					continue
				}
				w.Header().Set(k, v)
			}
		}
		body, err := os.ReadFile(base + ".json")
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}
}

// TestHelpNamesEverything: every command and flag has a description, and serve has
// a flag for every key that can have one.
func TestHelpNamesEverything(t *testing.T) {
	a := &app{&console.Console{Out: io.Discard, Talk: io.Discard}}
	cmds := a.root().Commands()
	for i := 0; i < len(cmds); i++ {
		cmds = append(cmds, cmds[i].Commands()...)
		if cmds[i].Short == "" && !cmds[i].Hidden {
			t.Errorf("%s has no description", cmds[i].CommandPath())
		}
	}
	serve, _, err := a.root().Find([]string{"serve"})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range config.Keys() {
		f := serve.Flags().Lookup(k.Name)
		if (f != nil) != k.Settable {
			t.Errorf("flag for %s: %v, settable: %v", k.Name, f != nil, k.Settable)
		}
		if f != nil && !strings.Contains(f.Usage, k.Env()) {
			t.Errorf("help of --%s does not name %s", k.Name, k.Env())
		}
	}
}
