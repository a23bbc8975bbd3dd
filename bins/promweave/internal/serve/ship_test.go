// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/promweave/promweave/bins/promweave/internal/config"
)

// fakeProm answers with external labels and the longest block duration.
func fakeProm(t *testing.T, external, longest string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/v1/status/config":
			fmt.Fprintf(w, `{"status":"success","data":{"yaml":"global: {external_labels: {%s}}"}}`, external)
		case "/api/v1/status/flags":
			fmt.Fprintf(w, `{"status":"success","data":{"storage.tsdb.min-block-duration":"2h","storage.tsdb.max-block-duration":%q}}`, longest)
		case "/api/v1/labels", "/api/v1/label/__name__/values":
			fmt.Fprint(w, `{"status":"success","data":[]}`)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func shipTo(bucket, dir string) *config.Ship {
	s := config.DefaultShip()
	s.Objstore = config.Raw(fmt.Sprintf(`{"type":"FILESYSTEM","config":{"directory":%q}}`, bucket))
	s.Dir, s.Interval = dir, time.Second
	return &s
}

func promBackend(url string, ship *config.Ship) config.Backend {
	return config.Backend{Name: "prom", Kind: config.KindPrometheus, Prometheus: &config.Prometheus{URL: url, ReadMode: "auto", Ship: ship}}
}

// oldBlock writes a block of long ago.
func oldBlock(t *testing.T, dir string, mint int64) ulid.ULID {
	t.Helper()
	w, err := tsdb.NewBlockWriter(slog.New(slog.DiscardHandler), dir, 2*time.Hour.Milliseconds())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	app := w.Appender(t.Context())
	if _, err := app.Append(0, labels.FromStrings("__name__", "old"), mint, 1); err != nil {
		t.Fatal(err)
	}
	if err := app.Commit(); err != nil {
		t.Fatal(err)
	}
	id, err := w.Flush(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func shipped(t *testing.T, bucket string, id ulid.ULID) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := os.Stat(filepath.Join(bucket, id.String(), "meta.json"))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestShipRefused: what is known at the start to be wrong with shipping keeps the program from
// starting, and what is not known does not.
func TestShipRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "wal"), 0o755); err != nil {
		t.Fatal(err)
	}
	nowhere := shipTo(t.TempDir(), dir)
	nowhere.Objstore = `{"type":"NOWHERE"}`
	for name, x := range map[string]struct {
		b    config.Backend
		want string
	}{
		"no labels":   {promBackend(fakeProm(t, "", "2h"), shipTo(t.TempDir(), dir)), "set global.external_labels"},
		"it compacts": {promBackend(fakeProm(t, "cluster: eu1", "36h"), shipTo(t.TempDir(), dir)), "--storage.tsdb.max-block-duration=36h"},
		"no bucket":   {promBackend(fakeProm(t, "cluster: eu1", "2h"), nowhere), "NOWHERE"},
	} {
		cfg := testConfig(t)
		cfg.SelfScrape.Backend, cfg.Backends = "", []config.Backend{x.b}
		err := Run(t.Context(), Options{Load: func() (config.Config, error) { return cfg, nil }, Log: io.Discard})
		if err == nil || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), "backend prom") {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := testConfig(t)
	cfg.SelfScrape.Backend, cfg.Backends = "", []config.Backend{promBackend("http://127.0.0.1:1", shipTo(t.TempDir(), dir))}
	s := start(t, Options{Load: func() (config.Config, error) { return cfg, nil }}, "http", plainClient())
	s.eventually("/api/v1/stores", `"warning":"blocks are not shipped: the Prometheus cannot be asked`)
}

// TestShipReload: shipping goes on over reloads, by one at a time; the metrics stay, and a reload
// that is refused changes nothing.
func TestShipReload(t *testing.T) {
	dir, bucket := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "wal"), 0o755); err != nil {
		t.Fatal(err)
	}
	url := fakeProm(t, "cluster: eu1", "2h")
	var mu sync.Mutex
	cfg := testConfig(t)
	cfg.SelfScrape.Backend, cfg.Backends = "", []config.Backend{promBackend(url, shipTo(bucket, dir))}
	s := start(t, Options{Load: func() (config.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		return cfg, nil
	}}, "http", plainClient())
	reload := func(b config.Backend, want int) {
		t.Helper()
		mu.Lock()
		cfg.Backends = []config.Backend{b}
		mu.Unlock()
		if code, body := s.do("POST", "/-/reload"); code != want {
			t.Fatalf("%d %s", code, body)
		}
	}
	shipped(t, bucket, oldBlock(t, dir, 1))

	changed := shipTo(bucket, dir)
	changed.Concurrency = 2
	reload(promBackend(url, changed), 200)
	shipped(t, bucket, oldBlock(t, dir, 8_000_000))
	for _, want := range []string{`promweave_shipper_uploads_total{backend="prom"} 1`, `promweave_shipper_last_success_timestamp_seconds{backend="prom"}`, `objstore_bucket_operations_total{bucket="prom"`} {
		s.eventually("/metrics", want)
	}

	reload(promBackend(fakeProm(t, "", "2h"), changed), 500)
	shipped(t, bucket, oldBlock(t, dir, 16_000_000))
	reload(promBackend(url, nil), 200)
	if n := strings.Count(s.log.String(), "shipped a block"); n != 3 {
		t.Errorf("%d blocks were shipped, want 3\n%s", n, s.log)
	}
	late := oldBlock(t, dir, 24_000_000)
	s.stop()
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil
	if _, err := os.Stat(filepath.Join(bucket, late.String())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was turned off: %v", err)
	}
}

// TestShipOneAtATime: a backend that a running query still uses after a reload does not ship any more.
func TestShipOneAtATime(t *testing.T) {
	dir, bucket := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "wal"), 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t)
	cfg.Plugins.Dir = t.TempDir()
	ship := shipTo(bucket, dir)
	cfg.Backends = []config.Backend{promBackend(fakeProm(t, "cluster: eu1", "2h"), ship)}
	log, m := slog.New(slog.DiscardHandler), newMetrics()
	f, err := newFilters(cfg.Plugins, log, m)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	s := newStores(log, m, nil, f.registry)
	s.ships = true
	open := func() *store {
		o, err := f.open(t.Context(), cfg, false)
		if err != nil {
			t.Fatal(err)
		}
		o.commit()
		_, commit, err := s.open(t.Context(), cfg, o)
		if err != nil {
			t.Fatal(err)
		}
		commit()
		st := s.opened["prom"]
		t.Cleanup(func() {
			if err := st.end(); err != nil {
				t.Error(err)
			}
		})
		return st
	}
	syncs := func(st *store) (n float64) {
		families, err := st.core.v.reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "promweave_shipper_dir_syncs_total" {
				n = f.GetMetric()[0].GetCounter().GetValue()
			}
		}
		return n
	}
	old := open()
	shipped(t, bucket, oldBlock(t, dir, 1))
	changed := *ship
	changed.Concurrency = 2
	cfg.Backends = []config.Backend{promBackend(cfg.Backends[0].Prometheus.URL, &changed)}
	now := open()
	before := syncs(old)
	if before == 0 || old == now {
		t.Fatal("the old one never shipped")
	}
	for deadline := time.Now().Add(20 * time.Second); syncs(now) < 3; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the new one does not ship")
		}
	}
	if n := syncs(old); n != before {
		t.Errorf("the old one went on: %v runs, then %v", before, n)
	}
}

// TestShipTSDB: a database of our own, and the directory of somebody else's, are shipped under the
// external labels of the backend, by who serves it and not by who only looks at it.
func TestShipTSDB(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		cfg := testConfig(t)
		dir, bucket := cfg.Backends[0].TSDB.Path, t.TempDir()
		id := oldBlock(t, dir, 1)
		cfg.Backends[0].ExternalLabels = map[string]string{"cluster": "eu1"}
		cfg.Backends[0].TSDB.Ship = shipTo(bucket, "")
		if cfg.Backends[0].TSDB.ReadOnly = readOnly; readOnly {
			cfg.SelfScrape.Backend = ""
		}
		_, end, err := OpenBackend(t.Context(), cfg, "local", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond) // a loop ships at once
		end()
		if entries, err := os.ReadDir(bucket); err != nil || len(entries) != 0 {
			t.Errorf("somebody who only looked at it has shipped: %v %v", entries, err)
		}
		s := start(t, Options{Load: func() (config.Config, error) { return cfg, nil }}, "http", plainClient())
		shipped(t, bucket, id)
		s.eventually("/metrics", `promweave_shipper_uploads_total{backend="local"} 1`)
		data, err := os.ReadFile(filepath.Join(bucket, id.String(), "meta.json"))
		if err != nil || !strings.Contains(string(data), `"cluster": "eu1"`) {
			t.Errorf("%s, %v", data, err)
		}
	}
}

func TestNotShipped(t *testing.T) {
	dir := t.TempDir()
	log := &syncBuffer{}
	keep := notShipped(dir, false, slog.New(slog.NewTextHandler(log, nil)))
	id := ulid.MustNew(1, nil)
	m := tsdb.BlockMeta{ULID: id, Stats: tsdb.BlockStats{NumSamples: 1}, Compaction: tsdb.BlockMetaCompaction{Level: 1}}
	state := filepath.Join(dir, "thanos.shipper.json")
	for _, x := range []struct {
		name, state string
		change      func(*tsdb.BlockMeta)
		want        bool
	}{
		{"nothing was shipped", "", nil, true},
		{"another was", `{"version":1,"uploaded":["` + ulid.MustNew(2, nil).String() + `"]}`, nil, true},
		{"it was", `{"version":1,"uploaded":["` + id.String() + `"]}`, nil, false},
		{"nobody knows", `{"version":`, nil, true},
		{"it has no samples", "", func(m *tsdb.BlockMeta) { m.Stats.NumSamples = 0 }, false},
		{"it is not for shipping", "", func(m *tsdb.BlockMeta) { m.Compaction.Level = 2 }, false},
	} {
		if err := os.Remove(state); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if x.state != "" {
			if err := os.WriteFile(state, []byte(x.state), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m := m
		if x.change != nil {
			x.change(&m)
		}
		if got := keep(m); got != x.want {
			t.Errorf("%s: kept %v", x.name, got)
		}
	}
	if n := strings.Count(log.String(), "stays until it was shipped"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	m.Compaction.Level = 2
	if !notShipped(t.TempDir(), true, slog.New(slog.DiscardHandler))(m) {
		t.Error("a compacted block that is to be shipped goes")
	}
}
