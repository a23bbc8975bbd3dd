// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/promweave/promweave/blocks/verify"
	"github.com/promweave/promweave/blocks/view"
)

const (
	shipBlocks  = 6
	shipSeries  = 4000
	shipSamples = 120 // one a minute
)

// shipBlock writes a block of the two hours that begin at mint.
func shipBlock(t *testing.T, dir string, mint int64, series int) ulid.ULID {
	t.Helper()
	w, err := tsdb.NewBlockWriter(slog.New(slog.DiscardHandler), dir, 2*time.Hour.Milliseconds())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	app := w.Appender(t.Context())
	for s := range series {
		ls := labels.FromStrings("__name__", "shipped", "instance", fmt.Sprint(s))
		for i := range int64(shipSamples) {
			if _, err := app.Append(0, ls, mint+i*60_000, rand.Float64()); err != nil {
				t.Fatal(err)
			}
		}
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

// finished counts the whole blocks in a bucket, and the begun ones.
func finished(t *testing.T, bucket string) (whole, begun int) {
	t.Helper()
	entries, err := os.ReadDir(bucket)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := ulid.ParseStrict(e.Name()); err != nil {
			continue
		}
		switch _, err := os.Stat(filepath.Join(bucket, e.Name(), "meta.json")); {
		case err == nil:
			whole++
		case errors.Is(err, fs.ErrNotExist):
			begun++
		default:
			t.Fatal(err)
		}
	}
	return whole, begun
}

// TestIntegrationShip: beside a real Prometheus its finished blocks come into a bucket, each once,
// however often the shipping process is killed, and are served from there.
func TestIntegrationShip(t *testing.T) {
	data, bucket, cache := t.TempDir(), t.TempDir(), t.TempDir()
	start0 := time.Now().Add(-(2*shipBlocks + 4) * time.Hour).Truncate(2 * time.Hour).UnixMilli()
	want := map[ulid.ULID]bool{}
	for i := range int64(shipBlocks) {
		want[shipBlock(t, data, start0+i*2*time.Hour.Milliseconds(), shipSeries)] = true
	}
	addr := freePort(t)
	promCfg := write(t, filepath.Join(t.TempDir(), "p.yml"), "global: {external_labels: {cluster: eu1, replica: a}}\n")
	args := []string{"--config.file=" + promCfg, "--storage.tsdb.path=" + data, "--web.listen-address=" + addr, "--log.level=warn"}
	ready := func() error { _, _, err := get("http://" + addr + "/-/ready"); return err }

	config := fmt.Sprintf(`
query: {replica_labels: [replica]}
backends:
  - name: prom
    kind: prometheus
    time: {min: -1h}
    config: {url: "http://%s", ship: {dir: %q, interval: 1s, objstore: {type: FILESYSTEM, config: {directory: %q}}}}
  - name: archive
    kind: bucket
    config: {data_dir: %q, sync_interval: 1s, objstore: {type: FILESYSTEM, config: {directory: %q}}}
`, addr, data, bucket, cache, bucket)
	http := freePort(t)
	file := write(t, filepath.Join(t.TempDir(), "promweave.yaml"), fmt.Sprintf("http: {listen: %q}\ngrpc: {listen: \"\"}\n%s", http, config))

	// A Prometheus that compacts is refused, with what to do.
	wrong := start(t, "prometheus", append(slices.Clone(args), "--no-storage.tsdb.wal-compression")...)
	eventually(t, "prometheus is ready", 60*time.Second, ready)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, promweave(t), "serve", "--config", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "start it with 2h for both") {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("refused: %s", tail(string(out)))
	wrong.stop()
	start(t, "prometheus", append(args, "--storage.tsdb.min-block-duration=2h", "--storage.tsdb.max-block-duration=2h")...)
	eventually(t, "prometheus is ready again", 60*time.Second, ready)

	// Killed as soon as something has come into the bucket, or somewhat later.
	kills, halves := 0, 0
	for round := 0; ; round++ {
		before, was := finished(t, bucket)
		if before == shipBlocks || round == 20 {
			break
		}
		p := start(t, promweave(t), "serve", "--config", file)
		eventuallyFast(t, "something is uploaded", func() bool {
			whole, begun := finished(t, bucket)
			return whole != before || begun != was
		})
		time.Sleep(time.Duration(rand.IntN(4000)) * time.Microsecond)
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.done
		kills++
		if _, begun := finished(t, bucket); begun > 0 {
			halves++
		}
	}
	t.Logf("%d kills, %d in the middle of a block", kills, halves)

	p := start(t, promweave(t), "serve", "--config", file)
	eventually(t, "all blocks are in the bucket", 30*time.Second, func() error {
		if n, _ := finished(t, bucket); n != shipBlocks {
			return fmt.Errorf("%d blocks\n%s", n, p.out.String())
		}
		return nil
	})
	bkt, err := filesystem.NewBucket(bucket)
	if err != nil {
		t.Fatal(err)
	}
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil || !v.Complete() || len(v.Blocks) != shipBlocks || len(v.Partial) != 0 {
		t.Fatalf("%v, %+v", err, v)
	}
	for _, b := range v.Blocks {
		id := b.Meta.ULID
		f, err := verify.Block(t.Context(), filepath.Join(bucket, id.String()), b.Meta, verify.Options{Chunks: true})
		if err != nil || f.Err(b.Meta) != nil || f.Samples != shipSeries*shipSamples || !want[id] {
			t.Errorf("%s: %v, %v, %d samples", id, err, f.Err(b.Meta), f.Samples)
		}
		if got := fmt.Sprint(b.Meta.Thanos.Labels); got != "map[cluster:eu1 replica:a]" {
			t.Errorf("%s has the labels %s", id, got)
		}
	}

	end := start0 + shipBlocks*2*time.Hour.Milliseconds()
	query := url.Values{"query": {fmt.Sprintf("sum by (cluster) (count_over_time(shipped[%dh]))", 2*shipBlocks)}, "time": {seconds(end - 1)}}
	eventually(t, "the bucket answers", 30*time.Second, func() error {
		lines, _, h, err := ask(http, "query", query)
		if err != nil {
			return err
		}
		total := fmt.Sprintf(`cluster="eu1"  %s:%d`, seconds(end-1), shipBlocks*shipSeries*shipSamples)
		if len(lines) != 1 || lines[0] != total || h.Get("Promweave-Completeness") != "complete" {
			return fmt.Errorf("%q, %s, want %q", lines, h.Get("Promweave-Completeness"), total)
		}
		return nil
	})
	metrics, _, err := get("http://" + http + "/metrics")
	if err != nil || !strings.Contains(string(metrics), `promweave_shipper_dir_syncs_total{backend="prom"}`) || !strings.Contains(string(metrics), `promweave_shipper_last_success_timestamp_seconds{backend="prom"}`) {
		t.Errorf("the metrics of shipping are missing: %v", err)
	}

	// A block that comes at the end is shipped before the process is gone.
	last := shipBlock(t, data, start0-2*time.Hour.Milliseconds(), 1)
	p.stop()
	if _, err := os.Stat(filepath.Join(bucket, last.String(), "meta.json")); err != nil {
		t.Errorf("%v\n%s", err, tail(p.out.String()))
	}

	// What fails is told where backends are listed, and the backend is healthy all the same.
	if err := os.Rename(filepath.Join(data, last.String(), "meta.json"), filepath.Join(data, last.String(), "meta.gone")); err != nil {
		t.Fatal(err)
	}
	start(t, promweave(t), "serve", "--config", file)
	eventually(t, "the warning is shown", 30*time.Second, func() error {
		b, _, err := get("http://" + http + "/api/v1/stores")
		if err != nil {
			return err
		}
		var stores struct {
			Data map[string][]struct {
				Name, Warning string
				Healthy       bool
			}
		}
		if err := json.Unmarshal(b, &stores); err != nil {
			return err
		}
		for _, list := range stores.Data {
			for _, s := range list {
				if s.Name == "prom" && s.Healthy && strings.Contains(s.Warning, last.String()) {
					return nil
				}
			}
		}
		return errors.New(string(b))
	})
	out, err = exec.CommandContext(t.Context(), promweave(t), "backends", "list", "--server", "http://"+http).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "prom: blocks are not shipped") {
		t.Errorf("%v\n%s", err, out)
	}
}

// eventuallyFast looks every half millisecond.
func eventuallyFast(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !so(); time.Sleep(500 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 30 s: " + what)
		}
	}
}
