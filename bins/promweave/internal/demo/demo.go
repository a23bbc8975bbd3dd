// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package demo is Promweave over generated data, for trying out: two clusters,
// each scraped by two replicas with gaps, in four stores that can be stopped.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/bins/promweave/internal/serve"
	"github.com/promweave/promweave/bins/promweave/internal/synthetic"
)

// Options of Run.
type Options struct {
	// Dir keeps the data; "" is a temporary directory, removed at the end.
	Dir string
	// HTTP and GRPC are the addresses wanted. If a port is in use, a free one is taken.
	HTTP, GRPC string
	Version    string
	// Command is how the user calls this program; "promweave" by default.
	Command string
	// Out gets what to do with the demo, Talk progress and the log.
	Out, Talk io.Writer
	// Started, if not nil, is called with the URL once requests are accepted.
	Started func(url string)
	// Now is what the data are generated around; the zero value is the present.
	Now time.Time
	// Series per replica and Span of time; zero values are 600 and a day.
	Series int
	Span   time.Duration
}

const (
	scrapeInterval = 30 * time.Second
	// ahead is how far the data reach beyond now, so that a demo that runs for a
	// while does not run dry: they are a function of time and need no waiting for.
	ahead = 4 * time.Hour
	// replicaOffset is how much later replica b scrapes than replica a.
	replicaOffset = 7 * time.Second
	seed          = 1
)

// replica is one of the four stores.
type replica struct {
	cluster, name string
	spec          synthetic.Spec
}

func (r replica) store() string { return r.cluster + "-" + r.name }

// replicas describes the data. Every replica has gaps, at other times than its
// twin, so that merged data have none.
func replicas(now time.Time, span time.Duration, series int) []replica {
	now = now.Truncate(scrapeInterval)
	start := now.Add(-span)
	var out []replica
	for c, cluster := range []string{"eu1", "us1"} {
		for i, name := range []string{"a", "b"} {
			// At an eighth, three eighths, ... of the span, and ten minutes in the last hour.
			first := start.Add(span * time.Duration(1+2*(2*c+i)) / 8)
			last := now.Add(-time.Duration(15+15*i+3*c) * time.Minute)
			out = append(out, replica{cluster, name, synthetic.Spec{
				Start: start, End: now.Add(ahead), Interval: scrapeInterval, Offset: replicaOffset * time.Duration(i),
				Series: series, Seed: seed, Cluster: cluster,
				Gaps: []synthetic.Interval{{From: first, To: first.Add(40 * time.Minute)}, {From: last, To: last.Add(10 * time.Minute)}},
			}})
		}
	}
	return out
}

// Run generates data, serves them until ctx is done, and cleans up.
func Run(ctx context.Context, o Options) (err error) {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	if o.Command == "" {
		o.Command = "promweave"
	}
	if o.Span == 0 {
		o.Span = 24 * time.Hour
	}
	if o.Series == 0 {
		o.Series = 600
	}
	dir := o.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "promweave-demo-"); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	all := replicas(o.Now, o.Span, o.Series)
	if err := generate(ctx, dir, all, o.Talk); err != nil {
		return err
	}

	farm := newFarm(dir)
	defer farm.close()
	for _, r := range all {
		if err := farm.start(ctx, r.store()); err != nil {
			return err
		}
	}
	cfg := config.Default()
	cfg.HTTP.Listen = free(o.HTTP, "HTTP API", "--http.listen", o.Talk)
	cfg.GRPC.Listen = free(o.GRPC, "StoreAPI", "--grpc.listen", o.Talk)
	cfg.Logging.Level = "warn"
	cfg.Backends[0].TSDB.Path = filepath.Join(dir, "self")
	cfg.Backends[0].Name = "self"
	cfg.Backends[0].ExternalLabels = map[string]string{"cluster": "demo"}
	cfg.SelfScrape = config.SelfScrape{Backend: "self", Interval: 5 * time.Second}
	cfg.Backends = append(cfg.Backends, farm.backends()...)
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return serve.Run(ctx, serve.Options{
		Load: func() (config.Config, error) { return cfg, nil }, Version: o.Version, Log: o.Talk,
		Extra: farm,
		Started: func(a serve.Addresses) {
			u := "http://" + a.HTTP
			introduce(o.Out, u, a, o)
			if o.Started != nil {
				o.Started(u)
			}
		},
	})
}

// generate writes the data that are not there yet, and shows how far it is.
func generate(ctx context.Context, dir string, all []replica, talk io.Writer) error {
	begun := time.Now()
	var done, total atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	shown := -1
	show := func() {
		mu.Lock()
		defer mu.Unlock()
		if n := int(done.Load() * 100 / max(total.Load(), 1)); n/10 > shown/10 || shown < 0 {
			shown = n
			fmt.Fprintf(talk, "generating data: %d %%\n", n)
		}
	}
	for _, r := range all {
		path := filepath.Join(dir, r.store())
		if old, err := filepath.Glob(filepath.Join(path, "*", "meta.json")); err == nil && len(old) > 0 {
			fmt.Fprintf(talk, "using the data in %s again\n", path)
			if end := newest(old); !end.IsZero() && end.Before(begun) {
				fmt.Fprintf(talk, "they end at %s: ask for times before it, or remove the directory to have new ones\n", end.UTC().Format(time.RFC3339))
			}
			continue
		}
		var counted atomic.Int64
		g.Go(func() error {
			var once sync.Once
			return synthetic.Write(ctx, path, r.spec, func(n, of int) {
				once.Do(func() { total.Add(int64(of)) })
				for {
					old := counted.Load()
					if int64(n) <= old {
						return
					}
					if counted.CompareAndSwap(old, int64(n)) {
						done.Add(int64(n) - old)
						break
					}
				}
				// Until all have begun, the total is not known.
				if total.Load() >= int64(of*len(all)) {
					show()
				}
			})
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("generating data: %w", err)
	}
	if total.Load() > 0 {
		fmt.Fprintf(talk, "generated in %s: %s\n", time.Since(begun).Round(100*time.Millisecond), dir)
	}
	return nil
}

// newest is where the data of blocks end; zero if their metadata cannot be read.
func newest(metas []string) time.Time {
	var out time.Time
	for _, path := range metas {
		var meta struct {
			MaxTime int64 `json:"maxTime"`
		}
		data, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(data, &meta) != nil {
			return time.Time{}
		}
		if t := time.UnixMilli(meta.MaxTime); t.After(out) {
			out = t
		}
	}
	return out
}

// free returns addr, or one with another port if addr is in use.
func free(addr, what, flag string, talk io.Writer) string {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		l.Close()
		return addr
	}
	host, _, splitErr := net.SplitHostPort(addr)
	if splitErr != nil || !errors.Is(err, syscall.EADDRINUSE) {
		return addr // serve says what is wrong with it
	}
	fmt.Fprintf(talk, "%s is in use: the %s takes a free port instead (%s chooses one)\n", addr, what, flag)
	return net.JoinHostPort(host, "0")
}

// introduce says what there is to try.
func introduce(w io.Writer, u string, a serve.Addresses, o Options) {
	server := ""
	if u != "http://127.0.0.1:9090" {
		server = " --server " + u
	}
	fmt.Fprintf(w, `
Promweave demo: %[3]s (HTTP API), %[4]s (StoreAPI)
Two clusters (eu1, us1) x two replicas (a, b), %[5]s of data (and the next %[6]s), every replica with gaps.

Try:
  %[1]s query instant%[2]s 'sum by (cluster) (rate(http_requests_total[5m]))'
  %[1]s query range%[2]s 'sum by (cluster) (rate(http_requests_total[5m]))' --start -6h -o graph
  %[1]s backends why%[2]s 'up{cluster="eu1"}'
  curl -s %[3]s/api/v1/query --data-urlencode 'query=count by (cluster) (up)' -d report=1

Stop both replicas of a cluster, ask again, and see a partial answer (exit code 3):
  %[1]s demo stop%[2]s eu1-a && %[1]s demo stop%[2]s eu1-b
With one of them stopped, the other covers for it. This brings it back within a few seconds:
  %[1]s demo start%[2]s eu1-a

Ctrl-C ends the demo.
`, o.Command, server, u, a.GRPC, model.Duration(o.Span), model.Duration(ahead))
}

// Control tells a running demo to stop or start a store.
func Control(ctx context.Context, server, verb, store string) error {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(server, "/")+"/demo/"+verb+"/"+url.PathEscape(store), nil)
	if err != nil {
		return fmt.Errorf("--server %q: %w", server, err)
	}
	req.Header.Set(controlHeader, "1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("cannot reach the demo: %w; is promweave demo running? --server names another address", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if resp.StatusCode != http.StatusOK {
		if !strings.HasPrefix(string(text), "demo: ") {
			return fmt.Errorf("%s is no demo (%s): start one by promweave demo, and name it by --server", server, resp.Status)
		}
		return errors.New(strings.TrimSpace(string(text)))
	}
	return nil
}
