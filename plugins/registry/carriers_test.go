// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/filters/auth"
	"github.com/promweave/promweave/plugins/filters/labelrewrite"
	"github.com/promweave/promweave/plugins/filters/tenancy"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// builtins of the tests, by kind; command is the main that carries the same filter.
var builtins = map[string]func() filter.Filter{"label_rewrite": labelrewrite.New, "tenancy": tenancy.New, "auth": auth.New}

func newRegistry(t *testing.T, change func(*registry.Options)) *registry.Registry {
	t.Helper()
	dir, err := os.MkdirTemp("", "pw") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	o := registry.Options{Dir: filepath.Join(dir, "p"), Builtins: builtins, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	r := registry.New(o)
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// built is where a command was built, by its name and kind.
var built = map[string]string{}

func build(t *testing.T, command string, wasm bool) (path, sum string) {
	t.Helper()
	key := fmt.Sprint(command, wasm)
	if built[key] == "" {
		dir, err := os.MkdirTemp("", "promweave-build")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir); delete(built, key) })
		path := filepath.Join(dir, command)
		args := []string{"build", "-o", path}
		cmd := exec.Command("go", args...)
		if wasm {
			path += ".wasm"
			cmd = exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", path)
			cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
		}
		cmd.Args = append(cmd.Args, "github.com/promweave/promweave/bins/"+command)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
		built[key] = path
	}
	data, err := os.ReadFile(built[key])
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(data)
	return built[key], hex.EncodeToString(h[:])
}

// listen starts a command as a service and returns its address.
func listen(t *testing.T, path string) string {
	t.Helper()
	cmd := exec.Command(path, "--listen", "127.0.0.1:0")
	cmd.Stderr = io.Discard
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("it says %q, %v", line, err)
	}
	return addr
}

// carried are the ways in which a filter of the program is carried.
func carried(t *testing.T, kind string) map[string]registry.Spec {
	command := "promweave-" + strings.ReplaceAll(kind, "_", "-")
	program, sum := build(t, command, false)
	module, moduleSum := build(t, command, true)
	wasm := registry.Spec{Launch: registry.WASM, Path: module, SHA256: moduleSum, CallTime: time.Minute}
	if kind == "auth" {
		wasm.Permissions = []filter.Permission{filter.PermissionClock}
	}
	return map[string]registry.Spec{
		"builtin": {Launch: registry.Builtin, Kind: kind, CallTime: time.Minute},
		"spawn":   {Launch: registry.Spawn, Path: program, SHA256: sum, CallTime: time.Minute},
		"dial":    {Launch: registry.Dial, Address: listen(t, program), CallTime: time.Minute},
		"wasm":    wasm,
	}
}

// said finds what a filter itself said in an error that tells where it comes from too.
var said = regexp.MustCompile(`(config of|label:|rules\[).*`)

func randomFrame(t *testing.T, r *rand.Rand) []byte {
	t.Helper()
	var b frame.Builder
	b.Reset()
	names := []string{"__name__", "a", "b", "c", "env", "instance", "job"}
	values := []string{"", "x", "PRD", "h:80", "é", "x;y"}
	for range 1 + r.IntN(200) {
		for _, n := range names {
			if v := values[r.IntN(len(values))]; v != "" {
				b.Label(n, v)
			}
		}
		b.EndRow()
	}
	out, err := b.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSameFilterInEveryCarrier: one source gives the same plans, the same replies to
// the byte, and the same refusals, whichever way it is carried.
func TestSameFilterInEveryCarrier(t *testing.T) {
	ctx := context.Background()
	configs := map[string][]string{
		"label_rewrite": {
			`{"rename": {"job": "service"}, "set": {"t": "1"}}`,
			`{"rules": [{"replace": {"source": "instance", "regex": "(.*):\\d+", "target": "host"}}, {"drop": ["b"]}, {"relabel": {"source_labels": ["a", "c"], "action": "drop", "regex": "x;x"}}]}`,
			`{"rules": [{"relabel": {"action": "labelmap", "regex": "(a|b)", "replacement": "new_$1"}}, {"relabel": {"action": "hashmod", "source_labels": ["a"], "target_label": "shard", "modulus": 7}}]}`,
			`{"rules": [{"replace": {"source": "instance", "regex": "(.*):\\d+"}}, {"relabel": {"source_labels": ["env"], "target_label": "env", "action": "lowercase"}}]}`,
			`{"rules": [{"replace": {"source": "a", "regex": "("}}]}`,
			`{"nonsense": 1}`,
		},
		"tenancy": {`{"label": "tenant", "from": [{"header": "thanos-tenant"}, {"claim": "t"}], "separator": "|", "admins": {"subjects": ["root"]}}`, `{}`},
		"auth":    {`{"rules": [{"subjects": ["a*"], "allow": true, "matchers": ["x=~\"y|z\""], "max_range": "1h", "max_series": 3}, {"claims": {"g": ["1"]}, "allow": true, "admin": true}]}`, `{"rules": [{}]}`},
	}
	var calls []*filter.RequestCall
	for _, subject := range []string{"", "alice", "bob", "root"} {
		for _, tenant := range []string{"", "a", "b|a", "*", "x\x01"} {
			c := &filter.RequestCall{Kind: "range", Query: "up", End: int64(len(tenant)) * 3_000_000, Caller: filter.Caller{Subject: subject}}
			if subject != "" {
				c.Caller.Method = "basic"
			}
			if tenant != "" {
				c.Caller.Headers = []filter.Header{{Name: "thanos-tenant", Values: []string{tenant}}}
				claims, _ := json.Marshal(map[string]any{"t": []string{tenant}, "g": "1"})
				c.Caller.Claims = claims
			}
			calls = append(calls, c)
		}
	}
	for kind, list := range configs {
		t.Run(kind, func(t *testing.T) {
			r := newRegistry(t, nil)
			specs := carried(t, kind)
			var open []*registry.Filter
			for n, conf := range list {
				type result struct {
					err     string
					plan    filter.Plan
					replies [][]byte
					answers []*filter.RequestReply
				}
				results := map[string]*result{}
				for way, spec := range specs {
					res := &result{}
					results[way] = res
					f, err := r.Filter(ctx, fmt.Sprintf("f%d", n), spec, []byte(conf), filtering.Closed)
					if err != nil {
						res.err = said.FindString(err.Error())
						continue
					}
					res.plan = f.Link.Filter.Plan()
					rng := rand.New(rand.NewPCG(uint64(n), 7))
					if res.plan.Tier != filter.TierNone {
						for range 20 {
							in := randomFrame(t, rng)
							if res.plan.Tier == filter.TierColumns {
								in = columnsOf(t, in, res.plan.Columns)
							}
							out, err := f.Link.Filter.Rewrite(ctx, in, nil)
							if err != nil {
								t.Fatalf("%s: %v", way, err)
							}
							res.replies = append(res.replies, bytes.Clone(out))
						}
					}
					if slices.Contains(res.plan.Hooks, filter.HookRequest) {
						for _, c := range calls {
							a, err := f.Link.Filter.Request(ctx, c)
							if err != nil {
								t.Fatalf("%s: %v", way, err)
							}
							res.answers = append(res.answers, a)
						}
					}
					// Closed in the end: as long as one is open, the plug-in is not loaded again.
					open = append(open, f)
				}
				want := results["builtin"]
				if n == len(list)-1 && want.err == "" {
					t.Errorf("%s is accepted", conf)
				}
				if want.err == "" && want.plan.Tier != filter.TierNone && !slices.ContainsFunc(want.replies, func(b []byte) bool { return len(b) > 0 }) {
					t.Errorf("%s changes nothing", conf)
				}
				for way, got := range results {
					if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{}), cmpopts.EquateEmpty()); diff != "" {
						t.Errorf("%s by %s (-builtin +%s):\n%s", conf, way, way, diff)
					}
				}
			}
			for _, f := range open {
				if err := f.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}
		})
	}
}

func columnsOf(t *testing.T, in []byte, names []string) []byte {
	t.Helper()
	var f frame.Frame
	if err := f.Parse(in); err != nil {
		t.Fatal(err)
	}
	var v frame.ColumnValues
	out, err := v.Append(nil, &f, names)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
