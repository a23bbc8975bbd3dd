// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

//go:build integration

package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
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

	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/verify"
	"github.com/promweave/promweave/blocks/view"
)

const hourMillis = int64(3_600_000)

// point is a float sample of a block.
type point struct {
	t int64
	v float64
}

func (s point) T() int64                      { return s.t }
func (s point) F() float64                    { return s.v }
func (s point) H() *histogram.Histogram       { return nil }
func (s point) FH() *histogram.FloatHistogram { return nil }
func (s point) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s point) Copy() chunks.Sample           { return s }

// tally counts samples by what tells them apart.
type tally map[string]int

func tallied(ls labels.Labels, external labels.Labels, t int64, v float64) string {
	return fmt.Sprint(external, ls, t, v)
}

// twoHours writes a block of two hours, and counts its samples.
func twoHours(t *testing.T, dir string, from int64, external labels.Labels, count tally) string {
	t.Helper()
	var series []storage.Series
	for i := range 3 {
		ls := labels.FromStrings("__name__", "m", "i", fmt.Sprint(i))
		var samples []chunks.Sample
		for at := from; at < from+2*hourMillis; at += 120_000 {
			samples = append(samples, point{at, float64(at) + float64(i)})
			count[tallied(ls, external, at, float64(at)+float64(i))]++
		}
		series = append(series, storage.NewListSeries(ls, samples))
	}
	path, err := tsdb.CreateBlock(series, dir, 2*hourMillis, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// raw reads every raw sample of the blocks that count, after each block was verified.
func raw(t *testing.T, bkt objstore.Bucket) tally {
	t.Helper()
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil || !v.Complete() {
		t.Fatal(err, v)
	}
	got := tally{}
	sel := v.Select(view.ForStore(view.Policy{DeletionDelay: time.Nanosecond}, time.Now())...)
	for _, m := range sel.Metas() {
		dir := t.TempDir()
		down, err := transfer.Download(t.Context(), bkt, m.ULID, dir, transfer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		block := filepath.Join(dir, m.ULID.String())
		if found, err := verify.Block(t.Context(), block, down, verify.Options{}); err != nil || found.Err(down) != nil {
			t.Errorf("%s: %v, %+v", m.ULID, err, found)
		}
		if m.Resolution() != meta.Raw {
			continue
		}
		b, err := tsdb.OpenBlock(nil, block, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		q, err := tsdb.NewBlockQuerier(b, 0, 1<<60)
		if err != nil {
			t.Fatal(err)
		}
		set := q.Select(t.Context(), false, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".+"))
		for set.Next() {
			it := set.At().Iterator(nil)
			for it.Next() == chunkenc.ValFloat {
				at, v := it.At()
				got[tallied(set.At().Labels(), m.External(), at, v)]++
			}
			if it.Err() != nil {
				t.Error(it.Err())
			}
		}
		if err := errors.Join(set.Err(), q.Close(), b.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

func (want tally) compare(t *testing.T, got tally) {
	t.Helper()
	wrong := 0
	for s, n := range want {
		if got[s] != n {
			wrong++
			if wrong < 5 {
				t.Errorf("%s is there %d times, want %d", s, got[s], n)
			}
		}
	}
	for s, n := range got {
		if want[s] == 0 {
			wrong++
			if wrong < 5 {
				t.Errorf("%s is there %d times, want none", s, n)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d samples are not there once", wrong, len(want))
	}
}

// killed runs a command again and again, and kills it a little later each time, until it ends by
// itself. It returns how often it was killed.
func killed(t *testing.T, bin string, args ...string) (times int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; times++ {
		cmd := exec.Command(bin, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		death := time.AfterFunc(100*time.Millisecond+time.Duration(times)*(10*time.Millisecond+rand.N(20*time.Millisecond)), func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		death.Stop()
		var exit *exec.ExitError
		switch {
		case err == nil:
			return times
		case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		default:
			t.Fatalf("%v\n%s", err, out.String())
		}
		if time.Now().After(deadline) {
			t.Fatalf("it is not done after being killed %d times", times)
		}
	}
}

// TestIntegrationKilledCompactor: promweave compact is killed again and again until it is done. All
// samples are there, once, in blocks that are whole; and nothing is left of what it was at.
func TestIntegrationKilledCompactor(t *testing.T) {
	bin, dir, data := promweave(t), t.TempDir(), t.TempDir()
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := tally{}
	for _, cluster := range []string{"eu1", "us1"} {
		external := labels.FromStrings("cluster", cluster)
		for from := int64(0); from < 60*hourMillis; from += 2 * hourMillis {
			path := twoHours(t, t.TempDir(), from, external, want)
			id := ulid.MustParse(filepath.Base(path))
			text, err := os.ReadFile(filepath.Join(path, meta.File))
			if err != nil {
				t.Fatal(err)
			}
			m, err := meta.Parse(id, text)
			if err != nil {
				t.Fatal(err)
			}
			m.Thanos.Labels, m.Thanos.Source = external.Map(), meta.SourceSidecar
			if _, err := transfer.Upload(t.Context(), bkt, path, m, transfer.Options{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	want.compare(t, raw(t, bkt))
	args := []string{"compact", "--objstore.config", fmt.Sprintf("{type: FILESYSTEM, config: {directory: %q}}", dir), "--data-dir", data, "--consistency-delay", "0s"}
	times := killed(t, bin, args...)
	want.compare(t, raw(t, bkt))
	// And while what is marked is deleted, and what was broken off is cleaned up.
	times += killed(t, bin, append(args, "--delete-delay", "0s", "--partial-upload-age", "0s")...)
	want.compare(t, raw(t, bkt))
	v, err := view.NewFetcher(bkt, view.Config{}).Fetch(t.Context())
	if err != nil || len(v.Partial) > 0 {
		t.Errorf("%v, %d partial blocks", err, len(v.Partial))
	}
	levels := map[int64]int{}
	for _, b := range v.Blocks {
		levels[b.Meta.Resolution()]++
		if b.Marks[meta.Deletion] != nil {
			t.Errorf("%s is marked and there", b)
		}
	}
	if levels[meta.Raw] >= 60 || levels[meta.FiveMinutes] != 2 {
		t.Errorf("blocks by level: %v", levels)
	}
	if times < 3 {
		t.Errorf("it was killed %d times only", times)
	}
	t.Logf("killed %d times; %d samples; blocks by level %v", times, len(want), levels)
}
