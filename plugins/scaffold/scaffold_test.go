// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package scaffold_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/scaffold"
	"github.com/promweave/promweave/plugins/trust"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestWrite: every template is filled in completely, its manifest is sound, and names
// what is in the source.
func TestWrite(t *testing.T) {
	for _, kind := range []string{"filter", "backend"} {
		for _, language := range scaffold.Languages(kind) {
			for _, sdk := range []string{"", "../.."} {
				dir := filepath.Join(t.TempDir(), "acme")
				files, err := scaffold.Write(dir, scaffold.Options{Name: "acme.9-x", Kind: kind, Language: language, SDK: sdk, Version: "v1.2.3"})
				if err != nil {
					t.Errorf("%s %s: %v", kind, language, err)
					continue
				}
				m, err := trust.ReadManifest(dir)
				if err != nil {
					t.Error(err)
					continue
				}
				if m.Name != "acme.9-x" || m.Kind != kind || m.Language != language || m.Config == "" || len(m.Build) == 0 || m.Works() != nil {
					t.Errorf("%s %s: manifest is %+v", kind, language, m)
				}
				named := false
				for _, name := range files {
					data, err := os.ReadFile(filepath.Join(dir, name))
					if err != nil {
						t.Error(err)
					}
					if bytes.Contains(data, []byte("<%")) || bytes.Contains(data, []byte("<no value>")) {
						t.Errorf("%s %s: %s has something left of the template", kind, language, name)
					}
					if ext := filepath.Ext(name); !strings.HasPrefix(name, "promweave") && slices.Contains([]string{".go", ".c", ".rs", ".ts"}, ext) {
						named = named || bytes.Contains(data, []byte(`"acme.9-x"`))
						if lines := bytes.Count(data, []byte("\n")); lines > 150 {
							t.Errorf("%s %s: %s has %d lines", kind, language, name, lines)
						}
					}
				}
				if !named {
					t.Errorf("%s %s: the source does not say the name", kind, language)
				}
				if !slices.Contains(files, ".gitignore") || !slices.Contains(files, "README.md") {
					t.Errorf("%s %s: files are %q", kind, language, files)
				}
			}
		}
	}
}

// TestModulePath: a project's module has a path that Go takes, and for its own.
func TestModulePath(t *testing.T) {
	for name, want := range map[string]string{"fmt": "plugin.example/fmt", "go": "plugin.example/go", "con": "plugin.example/plugin-con", "a.9-x": "plugin.example/a.9-x"} {
		dir := filepath.Join(t.TempDir(), name)
		if _, err := scaffold.Write(dir, scaffold.Options{Name: name, Kind: "filter", Language: "go", SDK: "../.."}); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("go", "list", ".")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, want)
		}
	}
}

func TestCheckout(t *testing.T) {
	want, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{filepath.Join(want, "plugins", "scaffold"): want, want: want, t.TempDir(): "", "/": ""} {
		if got := scaffold.Checkout(dir); got != want {
			t.Errorf("%s: %q, want %q", dir, got, want)
		}
	}
}

// TestTryServer: the server that the backend in Rust is tried with applies matchers as
// PromQL does.
func TestTryServer(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip(err)
	}
	dir := filepath.Join(t.TempDir(), "x")
	if _, err := scaffold.Write(dir, scaffold.Options{Name: "x", Kind: "backend", Language: "rust"}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, filepath.FromSlash(scaffold.TryServer))
	source, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, bytes.ReplaceAll(source, []byte("8080"), []byte(port)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(selector string, from, to int64) (rooms []string, points int) {
		t.Helper()
		query := url.Values{"match": {selector}, "start": {fmt.Sprint(from)}, "end": {fmt.Sprint(to)}}
		resp, err := client.Get("http://127.0.0.1:" + port + "/series?" + query.Encode())
		for deadline := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond) // it is still starting
			resp, err = client.Get("http://127.0.0.1:" + port + "/series?" + query.Encode())
		}
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer struct {
			Series []struct {
				Labels map[string]string
				Points [][2]float64
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		for _, s := range answer.Series {
			rooms = append(rooms, s.Labels["room"])
			points += len(s.Points)
		}
		return rooms, points
	}
	now := time.Now().UnixMilli()
	for selector, want := range map[string]string{
		`{}`:             "north south",
		`{room="north"}`: "north",
		`{room!="north",__name__="room_temperature_celsius"}`: "south",
		`{room=~"n.*|x"}`:         "north",
		`{room=~"or"}`:            "",
		`{room!~"nor",room!~""}`:  "north south",
		`{absent=""}`:             "north south",
		`{absent!=""}`:            "",
		`{absent=~"|x"}`:          "north south",
		`{"a.\"b\\"!="x\n\"}"}`:   "north south",
		`{"a.b"="",room="south"}`: "south",
	} {
		if rooms, _ := ask(selector, now-60_000, now); strings.Join(rooms, " ") != want {
			t.Errorf("%s: %q, want %q", selector, rooms, want)
		}
	}
	if _, n := ask("{}", now-60_000, now); n != 8 {
		t.Errorf("%d points in a minute of two series", n)
	}
	if _, n := ask("{}", math.MinInt64, math.MaxInt64); n < 2800 {
		t.Errorf("%d points in all", n)
	}
}

func TestRefused(t *testing.T) {
	full := t.TempDir()
	file := filepath.Join(full, "x")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir  string
		o    scaffold.Options
		want string
	}{
		{"", scaffold.Options{Name: "../x", Kind: "filter", Language: "go"}, "is no name of a plug-in"},
		{"", scaffold.Options{Name: "x", Kind: "function", Language: "go"}, "is no kind of plug-in"},
		{"", scaffold.Options{Name: "x", Kind: "filter", Language: "zig"}, `there is no template of a filter in "zig": there are assemblyscript, c, go, rust`},
		{"", scaffold.Options{Name: "x", Kind: "filter", Language: "go", SDK: full}, "is no checkout of Promweave"},
		{full, scaffold.Options{Name: "x", Kind: "filter", Language: "c"}, "is there and not empty"},
		{file, scaffold.Options{Name: "x", Kind: "filter", Language: "c"}, "is a file"},
		{"", scaffold.Options{Name: "x", Kind: "filter", Language: "go", Version: "v6338ef8"}, "this promweave (6338ef8) is of no release"},
		{"", scaffold.Options{Name: "x", Kind: "filter", Language: "go", Version: "v1.2.3-4-g6338ef8"}, "--sdk CHECKOUT"},
	} {
		dir := c.dir
		if dir == "" {
			dir = filepath.Join(t.TempDir(), "p")
		}
		if _, err := scaffold.Write(dir, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}
