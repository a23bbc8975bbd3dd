// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package registry_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
)

const typescriptExample = "../../sdk/examples/backend-typescript"

// typescript builds the example as its README says, in a copy.
func typescript(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "tsconfig.json", "src/main.ts", "src/selection.ts"} {
		data, err := os.ReadFile(filepath.Join(typescriptExample, name))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"ci"}, {"run", "build"}} {
		cmd := exec.Command("npm", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("npm %v: %v (Node 20 with npm is needed, and its registry)\n%s", args, err, out)
		}
	}
	return dir
}

// startTypescript starts the service and returns its address, and what ends it.
func startTypescript(t *testing.T, dir, listen string) (addr string, stop func()) {
	t.Helper()
	proto, err := filepath.Abs("../../sdk/pluginpb/plugin.proto")
	if err != nil {
		t.Fatal(err)
	}
	// npm itself does not pass signals on.
	cmd := exec.Command("node", "dist/main.js", "--listen", listen, "--proto", proto)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	}
	t.Cleanup(stop)
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		t.Fatalf("it says %q, %v", line, err)
	}
	return addr, stop
}

// TestIntegrationTypeScript: the example in TypeScript keeps the rules, as far as a host
// can see, and answers PromQL.
func TestIntegrationTypeScript(t *testing.T) {
	ctx := context.Background()
	dir := typescript(t)
	addr, stop := startTypescript(t, dir, "127.0.0.1:0")
	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{2, "Unknown option '--lisen'", []string{"--lisen", "x"}},
		{2, "--listen 127.0.0.1: want host:port", []string{"--listen", "127.0.0.1"}},
		{2, "belong together", []string{"--tls-cert", "x.pem"}},
		{1, "no such file", []string{"--proto", filepath.Join(dir, "x.proto")}},
	} {
		cmd := exec.Command("node", append([]string{"dist/main.js"}, c.args...)...)
		cmd.Dir = dir
		out, _ := cmd.CombinedOutput()
		if text := string(out); cmd.ProcessState.ExitCode() != c.code || !strings.Contains(text, c.want) || strings.Count(text, "\n") != 1 {
			t.Errorf("%q: exit code %d, %s", c.args, cmd.ProcessState.ExitCode(), text)
		}
	}
	r := newRegistry(t, nil)
	spec := registry.Spec{Launch: registry.Dial, Address: addr}

	for config, want := range map[string]string{
		`{"room": []}`:                          "room: unknown key",
		`{"rooms": ["a", "a"]}`:                 "rooms: want",
		`{"rooms": [1]}`:                        "rooms: want",
		`{"labels": {"a": 1}}`:                  "labels: want",
		`{"labels": {"room": "x"}}`:             "labels: room",
		`{"step_seconds": 0}`:                   "step_seconds: want",
		`{"since": "yesterday"}`:                "since: want",
		`{"labels": {"site": ""}, "rooms": []}`: "labels: want",
	} {
		if _, _, err := r.Backend(ctx, "wrong", spec, []byte(config), true); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", config, err, want)
		}
	}

	// In bytes U+FF5E is before U+1F600, in UTF-16 behind it.
	rooms := []string{"south", "～", "😀", "north", "é", "line\nbreak", "a.b"}
	config := `{"rooms": ["south", "～", "😀", "north", "é", "line\nbreak", "a.b"], "labels": {"site": "attic", "A": "1"}, "since": 1000, "step_seconds": 1}`
	b, release, err := r.Backend(ctx, "rooms", spec, []byte(config), true)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	defer func() {
		if err := b.(backend.Closer).Close(); err != nil {
			t.Error(err)
		}
	}()
	var all []labels.Labels
	for _, room := range rooms {
		for _, metric := range []string{"room_humidity_ratio", "room_temperature_celsius"} {
			all = append(all, labels.FromStrings("__name__", metric, "room", room, "site", "attic", "A", "1"))
		}
	}
	slices.SortFunc(all, labels.Compare)

	info, err := b.Info(ctx)
	if err != nil || info.MinTime != 1000 || len(info.LabelSets) != 1 || info.LabelSets[0].String() != `{A="1", site="attic"}` || !info.Capabilities.SeriesLimit || info.Capabilities.Sharding {
		t.Errorf("info: %+v, %v", info, err)
	}

	t.Run("series", func(t *testing.T) {
		var want []string
		for _, ls := range all {
			want = append(want, ls.String())
		}
		req := &backend.SeriesRequest{MinTime: 500, MaxTime: 5000, SkipChunks: true}
		got, err := selectedLines(ctx, b, req)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("order: %v (-want +got):\n%s", err, diff)
		}
		req.Limit = 3
		if got, err = selectedLines(ctx, b, req); err != nil || !slices.Equal(got, want[:3]) {
			t.Errorf("limit: %v, %v", got, err)
		}
		req.MaxTime = 999
		if got, err = selectedLines(ctx, b, req); err != nil || len(got) != 0 {
			t.Errorf("before the first sample: %v, %v", got, err)
		}
		// Several pieces of one series.
		got, err = selectedLines(ctx, b, &backend.SeriesRequest{MinTime: 2000, MaxTime: 5_001_500, Limit: 1})
		if err != nil || len(got) != 1 || strings.Count(got[0], " ")-strings.Count(want[0], " ") != 5000 || !strings.Contains(got[0], " 2000:") || !strings.Contains(got[0], " 5001000:") {
			t.Errorf("pieces: %d series, %v", len(got), err)
		}
	})

	t.Run("matchers", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		names := []string{"__name__", "room", "site", "A", "absent"}
		values := append([]string{"", "room_humidity_ratio", "attic", "1"}, rooms...)
		patterns := []string{"", ".*", ".+", ".", "n.*|s.*", "(?i)NORTH|É", "[^n]orth", `a\.b`, `line.break`, `\d`, "room_(humidity|temperature)_.+", "north|", `[\x{FF5E}é]`, "ort",
			// What JavaScript's own expressions read differently, or not at all.
			`line\sbreak`, `\pL+`, `[[:alpha:]]+`, `north\z`, `(?P<n>n)orth`, `\Qa.b\E`, "(?i:NO)rth"}
		for range 300 {
			var ms []*labels.Matcher
			for range 1 + rng.IntN(2) {
				typ := labels.MatchType(rng.IntN(4))
				list := values
				if typ >= labels.MatchRegexp {
					list = patterns
				}
				ms = append(ms, labels.MustNewMatcher(typ, names[rng.IntN(len(names))], list[rng.IntN(len(list))]))
			}
			var want []string
			for _, ls := range all {
				if shaping.Matches(ls, ms) {
					want = append(want, ls.String())
				}
			}
			got, err := selectedLines(ctx, b, &backend.SeriesRequest{MinTime: 1000, MaxTime: 2000, SkipChunks: true, Matchers: ms})
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("%v: %v (-want +got):\n%s", ms, err, diff)
			}
		}
	})

	t.Run("labels", func(t *testing.T) {
		sorted := slices.Sorted(slices.Values(rooms))
		got, err := b.LabelValues(ctx, &backend.LabelValuesRequest{Name: "room", MaxTime: 2000, Limit: 4})
		if err != nil || !slices.Equal(got.Values, sorted[:4]) {
			t.Errorf("values: %q, %v", got, err)
		}
		got, err = b.LabelValues(ctx, &backend.LabelValuesRequest{Name: "site", MaxTime: 2000, WithoutReplicaLabels: []string{"site"}})
		if err != nil || len(got.Values) != 0 {
			t.Errorf("values of a replica label: %q, %v", got, err)
		}
		got, err = b.LabelNames(ctx, &backend.LabelNamesRequest{MaxTime: 2000, WithoutReplicaLabels: []string{"A"}})
		if err != nil || strings.Join(got.Values, " ") != "__name__ room site" {
			t.Errorf("names: %q, %v", got, err)
		}
		got, err = b.LabelNames(ctx, &backend.LabelNamesRequest{MaxTime: 2000, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "site", "cellar")}})
		if err != nil || len(got.Values) != 0 {
			t.Errorf("names of nothing: %q, %v", got, err)
		}
	})

	t.Run("stopping", func(t *testing.T) {
		if _, err := selectedLines(ctx, b, &backend.SeriesRequest{MaxTime: 1 << 40}); !errors.Is(err, backend.ErrLimit) {
			t.Errorf("too much: %v", err)
		}
		long := &backend.SeriesRequest{MaxTime: 300_000_000} // 300,000 samples of each series
		for range b.Series(ctx, long) {
			break
		}
		cause := errors.New("the user has left")
		cancelled, cancel := context.WithCancelCause(ctx)
		var err error
		for _, err = range b.Series(cancelled, long) {
			cancel(cause)
		}
		cancel(nil)
		if !errors.Is(err, cause) && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if _, err := b.Info(ctx); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})

	t.Run("PromQL", func(t *testing.T) {
		set := membership.New([]membership.Entry{{Spec: membership.Spec{Name: "rooms", Kind: "plugin"}, Backend: unclosed{b}}}, membership.Options{})
		defer set.Close()
		set.Refresh(ctx)
		s, err := query.New(set, query.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for q, want := range map[string]string{
			`count by (site) (room_temperature_celsius{room=~".+"})`:                                    `{site="attic"} => 7 @[1000000]`,
			`count_over_time(room_temperature_celsius{room="north"}[1m])`:                               `{A="1", room="north", site="attic"} => 60 @[1000000]`,
			`count(abs((room_temperature_celsius - 20) / 3 + (room_humidity_ratio - 0.5) * 10) < 1e-9)`: `{} => 7 @[1000000]`,
			`sum(room_temperature_celsius{site!="attic"}) or vector(0)`:                                 `{} => 0 @[1000000]`,
		} {
			at := time.UnixMilli(1_000_000)
			res, err := s.Instant(ctx, &query.Request{Query: q, Start: at, End: at, Options: s.DefaultOptions()})
			if err != nil {
				t.Errorf("%s: %v", q, err)
				continue
			}
			if got := fmt.Sprint(res.Value); got != want || res.Report.Completeness.State != "complete" {
				t.Errorf("%s: %s, want %s", q, got, want)
			}
			res.Close()
		}
	})

	// A service that comes back knows nothing of its instances; nobody has to care.
	t.Run("restart", func(t *testing.T) {
		stop()
		if _, err := b.Info(ctx); err == nil {
			t.Error("it answers although it is gone")
		}
		startTypescript(t, dir, addr)
		deadline, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		for {
			_, err := b.Info(deadline)
			if err == nil {
				break
			}
			select {
			case <-deadline.Done():
				t.Fatalf("it is not back: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
		}
		if got, err := selectedLines(ctx, b, &backend.SeriesRequest{MaxTime: 1000, SkipChunks: true}); err != nil || len(got) != len(all) {
			t.Errorf("afterwards: %d series, %v", len(got), err)
		}
	})
}

// unclosed is a backend that outlives who uses it.
type unclosed struct{ backend.Backend }
