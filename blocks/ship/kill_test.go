// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package ship

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/verify"
)

// The test binary runs itself as a shipper, with these in its environment.
const (
	childDir    = "PROMWEAVE_TEST_SHIP_DIR"
	childBucket = "PROMWEAVE_TEST_SHIP_BUCKET"
	childStep   = "PROMWEAVE_TEST_SHIP_STEP"  // the step at which it is killed
	childAfter  = "PROMWEAVE_TEST_SHIP_AFTER" // or how long after it began
)

// deadly is a bucket whose user is killed at some step: before, in the middle of and after each
// change, and before and after each reading.
type deadly struct {
	objstore.Bucket
	at, steps atomic.Int64
}

func (d *deadly) step() {
	if d.steps.Add(1) == d.at.Load() {
		die()
	}
	time.Sleep(300 * time.Microsecond)
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func (d *deadly) Upload(ctx context.Context, name string, r io.Reader, o ...objstore.ObjectUploadOption) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	d.step()
	half := len(data) / 2
	err = d.Bucket.Upload(ctx, name, io.MultiReader(bytes.NewReader(data[:half]), stepping{d}, bytes.NewReader(data[half:])), o...)
	d.step()
	return err
}

// stepping is an empty reader that takes a step.
type stepping struct{ d *deadly }

func (s stepping) Read([]byte) (int, error) { s.d.step(); return 0, io.EOF }

func (d *deadly) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	d.step()
	defer d.step()
	return d.Bucket.Get(ctx, name)
}

func child() {
	inner, err := filesystem.NewBucket(os.Getenv(childBucket))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	bkt := &deadly{Bucket: inner}
	step, _ := strconv.Atoi(os.Getenv(childStep))
	bkt.at.Store(int64(step))
	s := New(bkt, Config{Dir: os.Getenv(childDir), Labels: eu1, Upload: transfer.Options{Concurrency: 1}})
	death := time.AfterFunc(time.Hour, die)
	if after, err := time.ParseDuration(os.Getenv(childAfter)); err == nil {
		death.Reset(after)
	}
	began := time.Now()
	if _, err := s.Sync(context.Background()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if !death.Stop() {
		select {}
	}
	fmt.Printf("%d steps in %s\n", bkt.steps.Load(), time.Since(began))
	os.Exit(0)
}

// run runs the shipper in a process of its own, and says whether it was killed.
func run(t *testing.T, dir, bucket, name, value string) (killed bool, out string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childBucket+"="+bucket, name+"="+value, "GORACE=atexit_sleep_ms=0")
	data, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true, ""
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return false, string(data)
}

// shipped checks that a bucket has exactly the blocks, with exactly their samples.
func shipped(t *testing.T, bucket string, want map[ulid.ULID]int) {
	t.Helper()
	bkt, err := filesystem.NewBucket(bucket)
	if err != nil {
		t.Fatal(err)
	}
	there := blocks(t, bkt)
	for id, m := range there {
		f, err := verify.Block(t.Context(), filepath.Join(bucket, id.String()), m, verify.Options{Chunks: true})
		if err != nil || f.Err(m) != nil || int(f.Samples) != want[id] {
			t.Errorf("%s: %v, %v, %d samples, want %d", id, err, f.Err(m), f.Samples, want[id])
		}
		for _, file := range m.Thanos.Files {
			info, err := os.Stat(filepath.Join(bucket, id.String(), file.RelPath))
			if err != nil || file.SizeBytes > 0 && info.Size() != file.SizeBytes {
				t.Errorf("%s: %v, want %d bytes", file.RelPath, err, file.SizeBytes)
			}
		}
	}
	if len(there) != len(want) {
		t.Errorf("%d blocks, want %d", len(there), len(want))
	}
}

// TestKilled: the shipper is killed at each step of its work, and at random moments again and
// again, while the TSDB removes blocks; in the end each sample is in the bucket, once.
func TestKilled(t *testing.T) {
	template := t.TempDir()
	want := map[ulid.ULID]int{}
	for i := range 3 {
		want[block(t, template, i, i+1)] = (i + 1) * samplesPerSeries
	}
	fresh := func() (dir, bucket string) {
		dir, bucket = filepath.Join(t.TempDir(), "tsdb"), t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(template)); err != nil {
			t.Fatal(err)
		}
		return dir, bucket
	}
	// removable are blocks of which all links are there: from then on the TSDB may remove them.
	removable := func(dir string) (out []string) {
		metas, err := filepath.Glob(filepath.Join(dir, "thanos", "upload", "*", "meta.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range metas {
			out = append(out, filepath.Join(dir, filepath.Base(filepath.Dir(m))))
		}
		return out
	}

	steps, stride := 0, 1
	if testing.Short() {
		stride = 5
	}
	saved := 0
	for step := 1; ; step += stride {
		dir, bucket := fresh()
		killed, _ := run(t, dir, bucket, childStep, fmt.Sprint(step))
		if !killed {
			steps = step - 1
			shipped(t, bucket, want)
			break
		}
		for _, b := range removable(dir) {
			saved++
			if err := os.RemoveAll(b); err != nil {
				t.Fatal(err)
			}
		}
		if killed, _ := run(t, dir, bucket, childStep, "0"); killed {
			t.Fatal("killed without need")
		}
		shipped(t, bucket, want)
		if t.Failed() {
			t.Fatalf("after a kill at step %d", step)
		}
	}
	// 2 for the look at meta.json and 3 for each of three objects, of each of three blocks.
	if stride == 1 && steps != 3*(2+3*3) || saved == 0 {
		t.Errorf("%d steps, %d blocks were removed by the TSDB", steps, saved)
	}

	rounds := 6
	if testing.Short() {
		rounds = 1
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		dir, bucket := fresh()
		kills := 0
		for {
			// Longer each time, so that it comes to an end on slow machines too.
			after := time.Duration(rnd.IntN(5_000*(kills+1))) * time.Microsecond
			killed, out := run(t, dir, bucket, childAfter, after.String())
			if !killed {
				if !strings.Contains(out, "steps in") {
					t.Fatal(out)
				}
				break
			}
			kills++
			for _, b := range removable(dir) {
				if rnd.IntN(3) == 0 {
					if err := os.RemoveAll(b); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		shipped(t, bucket, want)
		t.Logf("%d kills", kills)
	}
}
