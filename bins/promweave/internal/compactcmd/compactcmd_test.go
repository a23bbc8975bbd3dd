// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package compactcmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/blocks/lease"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/view"
)

// A cloud's client starts a goroutine when it is linked, so those that run already do not count.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

const hour = int64(3_600_000)

type sample struct {
	t int64
	v float64
}

func (s sample) T() int64                      { return s.t }
func (s sample) F() float64                    { return s.v }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

// days fills a bucket with blocks of two hours of some days of a cluster, and returns their ids.
func days(t *testing.T, bkt objstore.Bucket, cluster string, n int) (ids []ulid.ULID) {
	t.Helper()
	for from := int64(0); from < int64(n)*24*hour; from += 2 * hour {
		var samples []chunks.Sample
		for at := from; at < from+2*hour; at += 60_000 {
			samples = append(samples, sample{at, float64(at)})
		}
		path, err := tsdb.CreateBlock([]storage.Series{storage.NewListSeries(labels.FromStrings("__name__", "m"), samples)}, t.TempDir(), 2*hour, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(path, meta.File))
		if err != nil {
			t.Fatal(err)
		}
		m, err := meta.Parse(ulid.MustParse(filepath.Base(path)), data)
		if err != nil {
			t.Fatal(err)
		}
		m.Thanos.Labels, m.Thanos.Source = map[string]string{"cluster": cluster}, meta.SourceSidecar
		if _, err := transfer.Upload(t.Context(), bkt, path, m, transfer.Options{}); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.ULID)
	}
	return ids
}

// run runs the command and returns what it printed, and its exit code.
func run(ctx context.Context, args ...string) (out, talk string, code int) {
	var o, e bytes.Buffer
	cmd := Command(&console.Console{Out: &o, Talk: &e, Now: time.Now})
	cmd.SetArgs(args)
	cmd.SetErr(io.Discard)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(ctx)
	var ce *console.Error
	switch {
	case errors.As(err, &ce):
		if ce.Err != nil {
			fmt.Fprintln(&e, ce.Err)
		}
		return o.String(), e.String(), ce.Code
	case err != nil:
		return o.String(), e.String() + err.Error(), console.ExitUsage
	}
	return o.String(), e.String(), console.ExitOK
}

func bucket(t *testing.T) (objstore.Bucket, []string) {
	t.Helper()
	dir := t.TempDir()
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		t.Fatal(err)
	}
	return bkt, []string{"--objstore.config", fmt.Sprintf("{type: FILESYSTEM, config: {directory: %q}}", dir), "--data-dir", t.TempDir(), "--consistency-delay", "0s"}
}

// TestCompact: days of blocks become few, and are downsampled; what was replaced is marked, and
// deleted once its time is over. A block that is broken stops nothing else.
func TestCompact(t *testing.T) {
	bkt, args := bucket(t)
	days(t, bkt, "eu1", 5)
	bad := days(t, bkt, "us1", 5)[3]
	index := bad.String() + "/index"
	a, err := bkt.Attributes(t.Context(), index)
	if err != nil {
		t.Fatal(err)
	}
	if err := bkt.Upload(t.Context(), index, strings.NewReader(strings.Repeat("x", int(a.Size)))); err != nil {
		t.Fatal(err)
	}
	out, talk, code := run(t.Context(), append(args, "-o", "json")...)
	var s summary
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatal(err, out, talk)
	}
	if code != console.ExitFailed || len(s.Problems) != 1 || !s.Problems[0].Halted || !strings.Contains(s.Problems[0].What, "us1") || !strings.Contains(s.Problems[0].Error, bad.String()) {
		t.Errorf("exit %d, %+v", code, s)
	}
	if s.Compacted == 0 || s.Downsampled == 0 || s.Marked == 0 || s.Deleted != 0 {
		t.Errorf("%+v", s)
	}
	// It says the same again: nothing was forgotten.
	if _, _, code := run(t.Context(), args...); code != console.ExitFailed {
		t.Errorf("exit %d", code)
	}
	if err := transfer.Delete(t.Context(), bkt, bad); err != nil {
		t.Fatal(err)
	}
	out, talk, code = run(t.Context(), append(args, "--delete-delay", "0s", "--retention.resolution-5m", "1d", "--retention.resolution-1h", "0s")...)
	if code != console.ExitOK || !strings.HasPrefix(out, "compacted ") {
		t.Errorf("exit %d, %s, %s", code, out, talk)
	}
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	samples := map[string]uint64{}
	for _, b := range v.Blocks {
		if b.Marks[meta.Deletion] == nil {
			samples[fmt.Sprint(b.Meta.External().Get("cluster"), b.Meta.Resolution())] += b.Meta.Stats.NumSamples
		}
	}
	if samples["eu10"] != 5*24*60 || samples["us10"] != 5*24*60-120 || samples["eu1300000"] != 0 {
		t.Errorf("%v", samples)
	}
}

// TestWait: with --wait work that comes later is done, metrics are served, and the end is no fault.
func TestWait(t *testing.T) {
	bkt, args := bucket(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type end struct {
		out, talk string
		code      int
	}
	ended := make(chan end, 1)
	talk := &lines{found: make(chan string, 1), wanted: regexp.MustCompile(`address=(\S+)`)}
	go func() {
		var o bytes.Buffer
		cmd := Command(&console.Console{Out: &o, Talk: talk, Now: time.Now})
		cmd.SetArgs(append(args, "--wait", "--wait-interval", "10ms", "--http-address", "127.0.0.1:0"))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.ExecuteContext(ctx)
		code := 0
		if err != nil {
			code = 1
		}
		ended <- end{out: o.String(), talk: fmt.Sprint(err), code: code}
	}()
	addr := <-talk.found
	days(t, bkt, "eu1", 2)
	deadline := time.Now().Add(30 * time.Second)
	for {
		v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
		if err == nil && slices.ContainsFunc(v.Blocks, func(b *view.Block) bool { return b.Meta.Compaction.Level > 1 }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is compacted")
		}
		time.Sleep(10 * time.Millisecond)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !bytes.Contains(data, []byte(`objstore_bucket_operations_total{bucket="compact"`)) || !bytes.Contains(data, []byte(`promweave_compact_todo_compactions `)) {
		t.Errorf("%v: %.300s", err, data)
	}
	// A second one finds that this one holds the bucket; with the same directory it would take over.
	if ok, err := bkt.Exists(t.Context(), lease.Name); !ok || err != nil {
		t.Errorf("the lease is not held: %v", err)
	}
	cancel()
	if e := <-ended; e.code != 0 || !strings.HasPrefix(e.out, "compacted ") {
		t.Errorf("%+v", e)
	}
}

// TestReleased: the end gives the bucket free for the next one.
func TestReleased(t *testing.T) {
	bkt, args := bucket(t)
	if _, talk, code := run(t.Context(), args...); code != console.ExitOK {
		t.Fatal(code, talk)
	}
	if ok, err := bkt.Exists(t.Context(), lease.Name); ok || err != nil {
		t.Errorf("the lease is held still: %v", err)
	}
}

// lines is a writer that looks for something in what is written, once.
type lines struct {
	wanted *regexp.Regexp
	found  chan string
}

func (l *lines) Write(p []byte) (int, error) {
	if m := l.wanted.FindSubmatch(p); m != nil {
		select {
		case l.found <- string(m[1]):
		default:
		}
	}
	return len(p), nil
}

// TestUsage: what is wrong with the flags is said before anything is done.
func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"": "--objstore.config-file says which bucket",
		"--objstore.config {} --objstore.config-file x":        "one is enough",
		"--objstore.config {} --delete-delay 1m":               "--delete-delay 1m is less",
		"--objstore.config {} --retention.resolution-raw soon": "soon",
		"--objstore.config {} --wait-interval -1s":             "-1s",
		"--objstore.config {} --deduplication.func default":    "needs --deduplication.replica-label",
		"--objstore.config {} --deduplication.func chain":      "every distinct sample",
		"--objstore.config {} --compact.concurrency 0":         "1 at least",
	} {
		if out, talk, code := run(t.Context(), strings.Fields(args)...); code != console.ExitUsage || out != "" || !strings.Contains(talk, want) {
			t.Errorf("%s: exit %d, %s, %s", args, code, out, talk)
		}
	}
	if _, talk, code := run(t.Context(), "--objstore.config", "{type: TAPE}"); code != console.ExitFailed || !strings.Contains(talk, "TAPE") {
		t.Errorf("exit %d, %s", code, talk)
	}
}
