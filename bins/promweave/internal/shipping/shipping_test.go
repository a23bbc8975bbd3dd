// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package shipping

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/thanos-io/objstore"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/ship"
	"github.com/promweave/promweave/blocks/view"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// prom is a Prometheus that says what it is told to.
type prom struct {
	labels labels.Labels
	flags  map[string]string
	err    error
}

func (p *prom) ExternalLabels(context.Context) (labels.Labels, error) { return p.labels, p.err }

func (p *prom) Flags(context.Context) (map[string]string, error) { return p.flags, p.err }

var (
	eu1  = labels.FromStrings("cluster", "eu1")
	even = map[string]string{flagMin: "2h", flagMax: "2h", flagPath: "/prometheus"}
)

// closing counts what closes a bucket.
type closing struct {
	objstore.Bucket
	n int
}

func (c *closing) Close() error { c.n++; return c.Bucket.Close() }

func TestCheck(t *testing.T) {
	flags := func(kv ...string) map[string]string {
		m := maps.Clone(even)
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	down := errors.New("connection refused")
	for name, x := range map[string]struct {
		prom      prom
		compacted bool
		want      string // of the error; "" is none
		refused   bool
	}{
		"good":                  {prom: prom{labels: eu1, flags: even}},
		"120m is 2h":            {prom: prom{labels: eu1, flags: flags(flagMax, "120m")}},
		"no labels":             {prom: prom{flags: even}, want: "set global.external_labels", refused: true},
		"no labels, compacted":  {prom: prom{flags: even}, compacted: true, want: "set global.external_labels", refused: true},
		"it compacts":           {prom: prom{labels: eu1, flags: flags(flagMax, "36h")}, want: "start it with 2h for both", refused: true},
		"it compacts, as asked": {prom: prom{labels: eu1, flags: flags(flagMax, "36h")}, compacted: true},
		"no flags":              {prom: prom{labels: eu1}, want: "start it with 2h for both", refused: true},
		"it waits for us":       {prom: prom{labels: eu1, flags: flags(flagMax, "36h", flagDelay, "/prometheus/thanos.shipper.json")}},
		"it waits for others":   {prom: prom{labels: eu1, flags: flags(flagMax, "36h", flagDelay, "/tmp/thanos.shipper.json")}, want: "it has to be /prometheus/thanos.shipper.json", refused: true},
		"down":                  {prom: prom{err: down}, want: "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			l := New(objstore.NewInMemBucket(), Config{Source: &x.prom, Ship: ship.Config{Compacted: x.compacted}})
			err := l.Check(t.Context())
			if (err == nil) != (x.want == "") || err != nil && !strings.Contains(err.Error(), x.want) || errors.Is(err, ErrRefused) != x.refused {
				t.Errorf("%v, want %q", err, x.want)
			}
		})
	}

	// What was known once is good enough while the Prometheus is down, but not after a refusal.
	p := &prom{labels: eu1, flags: even}
	l := New(objstore.NewInMemBucket(), Config{Source: p})
	for i, step := range []struct {
		flags map[string]string
		err   error
		ok    bool
	}{{even, nil, true}, {even, down, true}, {nil, nil, false}, {even, down, false}, {even, nil, true}} {
		p.flags, p.err = step.flags, step.err
		if err := l.Check(t.Context()); (err == nil) != step.ok {
			t.Errorf("step %d: %v", i, err)
		}
	}
}

func TestWait(t *testing.T) {
	for _, x := range []struct {
		interval time.Duration
		failures int
		want     time.Duration
	}{{30 * time.Second, 0, 30 * time.Second}, {30 * time.Second, 1, time.Minute}, {30 * time.Second, 2, 2 * time.Minute}, {30 * time.Second, 1000, 5 * time.Minute}, {time.Hour, 3, time.Hour}} {
		seen := map[time.Duration]bool{}
		for range 100 {
			d := wait(x.interval, x.failures)
			if d < x.want*95/100 || d > x.want*105/100 {
				t.Errorf("%s after %d failures: %s, want about %s", x.interval, x.failures, d, x.want)
			}
			seen[d] = true
		}
		if len(seen) < 10 {
			t.Errorf("%s is always the same", x.interval)
		}
	}
}

// loop is one whose runs are f.
func loop(f func(context.Context) (int, error)) (*Loop, *closing, *prometheus.Registry) {
	bkt, reg := &closing{Bucket: objstore.NewInMemBucket()}, prometheus.NewRegistry()
	l := New(bkt, Config{Interval: 30 * time.Second, Labels: eu1, Ship: ship.Config{Registerer: reg}})
	l.sync = f
	return l, bkt, reg
}

// TestBackoff: after failures the next run comes later and later, the problem is told, and is gone
// when it is over.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		began := time.Now()
		l, _, reg := loop(func(context.Context) (int, error) {
			at = append(at, time.Since(began))
			if n := len(at); n >= 2 && n <= 4 {
				return 0, fmt.Errorf("failure %d", n)
			}
			return 0, nil
		})
		l.Start()
		l.Start() // is the same
		time.Sleep(time.Minute)
		if p := l.Problem(); !strings.Contains(p, "failure 2") {
			t.Errorf("problem %q", p)
		}
		time.Sleep(10 * time.Minute)
		if p := l.Problem(); p != "" {
			t.Errorf("problem %q", p)
		}
		if n, err := testutil.GatherAndCount(reg, "promweave_shipper_last_success_timestamp_seconds"); err != nil || n != 1 {
			t.Errorf("%d metrics, %v", n, err)
		}
		if got, want := testutil.ToFloat64(l.success), float64(began.Add(9*time.Minute).Unix()); got < want {
			t.Errorf("last success at %v, want after %v", got, want)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for i, w := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 30 * time.Second} {
			if d := at[i+1] - at[i]; d < w*95/100 || d > w*105/100 {
				t.Errorf("wait %d is %s, want about %s", i, d, w)
			}
		}
	})
}

// TestStop: at the end the run that is under way may finish within the time, and one more follows.
func TestStop(t *testing.T) {
	for _, x := range []struct {
		name         string
		first        time.Duration // how long the first run takes
		stop, within time.Duration
		runs, cut    int
		took         time.Duration
	}{
		{"idle", 0, 10 * time.Second, 20 * time.Second, 2, 0, 0},
		{"busy", 15 * time.Second, 10 * time.Second, 20 * time.Second, 2, 0, 5 * time.Second},
		{"too busy", time.Hour, 10 * time.Second, 20 * time.Second, 1, 1, 20 * time.Second},
		{"at once", time.Hour, 10 * time.Second, 0, 1, 1, 0},
		{"idle, at once", 0, 10 * time.Second, 0, 1, 0, 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				runs, cut := 0, 0
				l, bkt, _ := loop(func(ctx context.Context) (int, error) {
					if runs++; runs == 1 {
						select {
						case <-time.After(x.first):
						case <-ctx.Done():
							cut++
						}
					} else if ctx.Err() != nil {
						runs-- // it had no time to do anything
					}
					return 0, ctx.Err()
				})
				l.Start()
				time.Sleep(x.stop)
				began := time.Now()
				l.Stop(x.within)
				if took := time.Since(began); took != x.took || runs != x.runs || cut != x.cut {
					t.Errorf("%s, %d runs, %d cut; want %s, %d, %d", took, runs, cut, x.took, x.runs, x.cut)
				}
				if p := l.Problem(); p != "" {
					t.Errorf("the end is a problem: %s", p)
				}
				l.Stop(x.within)
				l.Start() // too late
				if err := l.Close(); err != nil || bkt.n != 1 {
					t.Error(err, bkt.n)
				}
				time.Sleep(time.Hour)
				if runs != x.runs {
					t.Errorf("%d runs after the end", runs)
				}
			})
		})
	}
	l, bkt, _ := loop(nil)
	if err := l.Close(); err != nil || bkt.n != 1 {
		t.Error("one that never started:", err, bkt.n)
	}
}

// block writes a block of one series into a directory.
func block(t *testing.T, dir string) {
	t.Helper()
	w, err := tsdb.NewBlockWriter(slog.New(slog.DiscardHandler), dir, 2*time.Hour.Milliseconds())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	app := w.Appender(t.Context())
	if _, err := app.Append(0, labels.FromStrings("__name__", "up"), 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestLabels: blocks are shipped under the labels that the Prometheus has at that moment, and not
// from a directory that is none of a Prometheus.
func TestLabels(t *testing.T) {
	dir, bkt := t.TempDir(), objstore.NewInMemBucket()
	block(t, dir)
	p := &prom{flags: even}
	l := New(bkt, Config{Source: p, Interval: time.Hour, Ship: ship.Config{Dir: dir}})
	if err := l.once(t.Context()); !errors.Is(err, ErrRefused) || !strings.Contains(l.Problem(), "external_labels") {
		t.Errorf("%v, %q", err, l.Problem())
	}
	p.labels = eu1
	if err := l.once(t.Context()); err == nil || !strings.Contains(l.Problem(), "with wal in it") {
		t.Errorf("%v, %q", err, l.Problem())
	}
	if n := len(bkt.Objects()); n != 0 {
		t.Errorf("%d objects", n)
	}
	if err := os.Mkdir(filepath.Join(dir, "wal"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := l.once(t.Context()); err != nil || l.Problem() != "" {
		t.Errorf("%v, %q", err, l.Problem())
	}
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil || len(v.Blocks) != 1 {
		t.Fatal(err, v)
	}
	for _, b := range v.Blocks {
		if b.Meta.Thanos.Labels["cluster"] != "eu1" {
			t.Errorf("labels %v", b.Meta.Thanos.Labels)
		}
	}
}
