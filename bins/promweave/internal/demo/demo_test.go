// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/promweave/promweave/bins/promweave/internal/apiclient"
	"github.com/promweave/promweave/core/report"
)

// A cloud's client starts a goroutine when it is linked, so those that run already do not count.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestReplicasCoverForEachOther: every replica has gaps, and no two of a cluster
// have them at once.
func TestReplicasCoverForEachOther(t *testing.T) {
	now := time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)
	all := replicas(now, 24*time.Hour, 600)
	if len(all) != 4 {
		t.Fatalf("%d replicas", len(all))
	}
	for i := 0; i < len(all); i += 2 {
		a, b := all[i], all[i+1]
		if a.cluster != b.cluster || b.spec.Offset-a.spec.Offset != 7*time.Second {
			t.Errorf("%s and %s are no pair: offsets %s, %s", a.store(), b.store(), a.spec.Offset, b.spec.Offset)
		}
		for _, r := range []replica{a, b} {
			if len(r.spec.Gaps) < 2 || len(r.spec.List()) < 500 {
				t.Errorf("%s has %d gaps and %d series", r.store(), len(r.spec.Gaps), len(r.spec.List()))
			}
			for _, g := range r.spec.Gaps {
				if g.From.Before(r.spec.Start) || g.To.After(now) {
					t.Errorf("%s: gap %v is not in the data", r.store(), g)
				}
			}
		}
		for _, x := range a.spec.Gaps {
			for _, y := range b.spec.Gaps {
				if x.From.Before(y.To) && y.From.Before(x.To) {
					t.Errorf("%s and %s both have a gap at %s", a.store(), b.store(), x.From)
				}
			}
		}
	}
}

// TestDemo does what the demo tells its user to do.
func TestDemo(t *testing.T) {
	// The ports that it would like are taken.
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	dir, started, done := t.TempDir(), make(chan string, 1), make(chan error, 1)
	var out, talk syncBuffer
	o := Options{
		Dir: dir, HTTP: busy.Addr().String(), GRPC: "127.0.0.1:0", Out: &out, Talk: &talk,
		Started: func(u string) { started <- u }, Series: 60, Span: 4 * time.Hour,
	}
	go func() { done <- Run(ctx, o) }()
	var server string
	select {
	case server = <-started:
	case err := <-done:
		t.Fatalf("%v\n%s", err, talk.String())
	}
	for _, want := range []string{server, "promweave query instant --server " + server, "promweave demo stop --server " + server + " eu1-a"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("does not tell %q:\n%s", want, out.String())
		}
	}
	for _, want := range []string{"is in use: the HTTP API takes a free port instead", "generating data: 100 %"} {
		if !strings.Contains(talk.String(), want) {
			t.Errorf("does not say %q:\n%s", want, talk.String())
		}
	}

	c, err := apiclient.New(apiclient.Options{Server: server})
	if err != nil {
		t.Fatal(err)
	}
	// ask waits until the answer has the completeness.
	ask := func(want report.State) *apiclient.Result {
		t.Helper()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			ans, err := c.Post(t.Context(), "/api/v1/query", url.Values{"query": {`count by (cluster) (up{cluster=~"eu1|us1"})`}})
			if err != nil {
				t.Fatal(err)
			}
			if ans.Completeness == want {
				res, err := apiclient.ParseResult(ans.Data)
				if err != nil {
					t.Fatal(err)
				}
				return res
			}
			if n == 1000 {
				t.Fatalf("completeness is %s and stays so, want %s: %q", ans.Completeness, want, ans.Warnings)
			}
			<-tick.C
		}
	}
	clusters := func(r *apiclient.Result) string {
		var names []string
		for _, s := range r.Series {
			names = append(names, s.Labels["cluster"])
		}
		return strings.Join(names, " ")
	}
	control := func(verb, store string) {
		t.Helper()
		if err := Control(t.Context(), server, verb, store); err != nil {
			t.Fatal(err)
		}
	}
	if got := clusters(ask(report.Complete)); got != "eu1 us1" {
		t.Errorf("clusters %s", got)
	}
	control("stop", "eu1-a")
	control("stop", "eu1-a") // it may be said twice
	if got := clusters(ask(report.Complete)); got != "eu1 us1" {
		t.Errorf("with one replica stopped: clusters %s", got)
	}
	control("stop", "eu1-b")
	if got := clusters(ask(report.Partial)); got != "us1" {
		t.Errorf("with both replicas stopped: clusters %s", got)
	}
	control("start", "eu1-b")
	if got := clusters(ask(report.Complete)); got != "eu1 us1" {
		t.Errorf("with one replica back: clusters %s", got)
	}

	// Mistakes are answered in words.
	if err := Control(t.Context(), server, "stop", "eu9-a"); err == nil || !strings.Contains(err.Error(), "there are eu1-a, eu1-b, us1-a, us1-b") {
		t.Errorf("a store that is not there: %v", err)
	}
	if err := Control(t.Context(), "127.0.0.1:1", "stop", "eu1-a"); err == nil {
		t.Error("nothing can be told to stop a store")
	}
	// A web page cannot do it: it cannot send the header.
	resp, err := http.Post(server+"/demo/stop/us1-a", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("stopped without the header: %s", resp.Status)
	}
	http.DefaultClient.CloseIdleConnections()

	stop()
	if err := <-done; err != nil {
		t.Errorf("%v\n%s", err, talk.String())
	}

	// The data are used again.
	ctx, stop = context.WithCancel(t.Context())
	defer stop()
	var again syncBuffer
	o.HTTP, o.Talk = "127.0.0.1:0", &again
	o.Started = func(string) { stop() }
	if err := Run(ctx, o); err != nil {
		t.Error(err)
	}
	if !strings.Contains(again.String(), "again") || strings.Contains(again.String(), "they end at") || strings.Contains(again.String(), "generating") {
		t.Errorf("the data are made anew:\n%s", again.String())
	}
}

func TestOldDataAreNoticed(t *testing.T) {
	dir := t.TempDir()
	var talk syncBuffer
	all := replicas(time.Now().Add(-100*time.Hour), 4*time.Hour, 60)[:1]
	for range 2 {
		if err := generate(t.Context(), dir, all, &talk); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(talk.String(), "they end at 20") {
		t.Errorf("old data are used without a word:\n%s", talk.String())
	}
}

// TestDemoLeavesNothing: interrupted while it generates, it removes what it made.
func TestDemoLeavesNothing(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := Run(ctx, Options{Out: io.Discard, Talk: io.Discard, HTTP: "127.0.0.1:0", GRPC: "127.0.0.1:0"}); err == nil {
		t.Error("interrupted, and no error")
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
