// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/promweave/promweave/bins/promweave/internal/bucketstore"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
)

// counting counts the requests to a bucket. A listing counts once.
type counting struct {
	objstore.Bucket
	n atomic.Int64
}

func (c *counting) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	c.n.Add(1)
	return c.Bucket.Get(ctx, name)
}

func (c *counting) GetRange(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	c.n.Add(1)
	return c.Bucket.GetRange(ctx, name, off, n)
}

func (c *counting) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	c.n.Add(1)
	return c.Bucket.Attributes(ctx, name)
}

func (c *counting) Exists(ctx context.Context, name string) (bool, error) {
	c.n.Add(1)
	return c.Bucket.Exists(ctx, name)
}

func (c *counting) Iter(ctx context.Context, dir string, f func(string) error, o ...objstore.IterOption) error {
	c.n.Add(1)
	return c.Bucket.Iter(ctx, dir, f, o...)
}

func (c *counting) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, o ...objstore.IterOption) error {
	c.n.Add(1)
	return c.Bucket.IterWithAttributes(ctx, dir, f, o...)
}

// bucketOf puts the blocks of the replicas into a bucket, once per run.
var bucketOf = sync.OnceValues(func() (string, error) {
	d, err := written()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "bucket")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		return "", err
	}
	for name, from := range d.replicas {
		cluster, replica, _ := strings.Cut(name, "/")
		entries, err := os.ReadDir(from)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			id, ok := meta.IDFromName(e.Name())
			if !ok {
				continue
			}
			if err := put(bkt, filepath.Join(from, e.Name()), id, map[string]string{"cluster": cluster, "replica": replica}); err != nil {
				return "", err
			}
		}
	}
	return dir, nil
})

// put uploads a block with these external labels.
func put(bkt objstore.Bucket, dir string, id ulid.ULID, external map[string]string) error {
	data, err := os.ReadFile(filepath.Join(dir, meta.File))
	if err != nil {
		return err
	}
	m, err := meta.Parse(id, data)
	if err != nil {
		return err
	}
	m.Thanos.Labels, m.Thanos.Source = external, meta.SourceSidecar
	_, err = transfer.Upload(context.Background(), bkt, dir, m, transfer.Options{})
	return err
}

// openBucket is a backend over a directory that is a bucket; cache is where its index headers are.
func openBucket(tb testing.TB, dir, cache string) (*bucketstore.Store, *counting) {
	tb.Helper()
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		tb.Fatal(err)
	}
	c := &counting{Bucket: bkt}
	s, err := bucketstore.Open(context.Background(), c, bucketstore.Config{Dir: cache, SyncInterval: time.Hour}, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	return s, c
}

// BenchmarkRatioBucket: the replicas' blocks in a bucket, against tsdb backends over the same
// blocks. Warm, index headers are there; cold, each query is the first of a process.
func BenchmarkRatioBucket(b *testing.B) {
	d := open(b)
	dir, err := bucketOf()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("warm", func(b *testing.B) {
		s, c := openBucket(b, dir, b.TempDir())
		b.ReportMetric(float64(c.n.Load()), "requests/sync")
		before, n := c.n.Load(), int64(0)
		side := ours(b, query.EnginePrometheus, membership.Entry{Spec: membership.Spec{Name: "archive", Kind: "bucket"}, Backend: s})
		compare(b, func(ctx context.Context, q testQuery, at time.Time) (string, error) {
			n++
			return side(ctx, q, at)
		}, ours(b, query.EnginePrometheus, replicaEntries(b, d)...))
		b.ReportMetric(float64(c.n.Load()-before)/float64(n), "requests/query")
	})
	b.Run("cold", func(b *testing.B) {
		compare(b, func(ctx context.Context, q testQuery, at time.Time) (string, error) {
			s, _ := openBucket(b, dir, b.TempDir())
			set := membership.New([]membership.Entry{{Spec: membership.Spec{Name: "archive", Kind: "bucket"}, Backend: s}}, membership.Options{})
			defer set.Close()
			set.Refresh(ctx)
			return ask(ctx, set, q, at)
		}, ours(b, query.EnginePrometheus, replicaEntries(b, d)...))
	})
}

// ask asks a service that is made for one query.
func ask(ctx context.Context, set *membership.Set, q testQuery, at time.Time) (string, error) {
	s, err := query.New(set, query.Config{ReplicaLabels: []string{"replica"}, MaxSamples: 1 << 40, Timeout: time.Hour})
	if err != nil {
		return "", err
	}
	defer s.Close()
	req := &query.Request{Query: q.expr, Start: at.Add(-q.span), End: at, Step: q.step, Options: s.DefaultOptions()}
	run := s.Range
	if q.span == 0 {
		run = s.Instant
	}
	res, err := run(ctx, req)
	if err != nil {
		return "", err
	}
	defer res.Close()
	if st := res.Report.Completeness; st.State != "complete" {
		return "", fmt.Errorf("answer is %s", st)
	}
	return shape(res.Value), nil
}

// heaviest is the query that reads most samples.
const heaviest = "hist_p99_24h"

// childDir, in the environment, is the bucket that a process of this program asks the heaviest
// query, and ends.
const childDir = "BENCH_CHILD_BUCKET"

func child(dir string) int {
	err := func() error {
		bkt, err := filesystem.NewBucket(dir)
		if err != nil {
			return err
		}
		cache, err := os.MkdirTemp("", "promweave-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(cache)
		s, err := bucketstore.Open(context.Background(), bkt, bucketstore.Config{Dir: cache, SyncInterval: time.Hour}, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		set := membership.New([]membership.Entry{{Spec: membership.Spec{Name: "archive", Kind: "bucket"}, Backend: s}}, membership.Options{})
		defer set.Close()
		set.Refresh(context.Background())
		fmt.Printf("idle %d\n", peak())
		q := testQuery{expr: os.Getenv("BENCH_CHILD_QUERY"), span: 24 * time.Hour, step: 5 * time.Minute}
		answer, err := ask(context.Background(), set, q, end.Add(-time.Minute).Truncate(q.step))
		if err != nil {
			return err
		}
		fmt.Printf("answer %s\npeak %d\n", answer, peak())
		return nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// peak is the most memory that the process has had, in bytes.
func peak() int64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// BenchmarkRatioBucketMemory is the most memory that a process needs for the heaviest query over
// the bucket, cold. With BENCH_SERIES=13000 it is the query of 28,800 series over a day.
func BenchmarkRatioBucketMemory(b *testing.B) {
	dir, err := bucketOf()
	if err != nil {
		b.Fatal(err)
	}
	expr := ""
	for _, q := range queries(b) {
		if q.name == heaviest {
			expr = q.expr
		}
	}
	for range b.N {
		began := time.Now()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir, "BENCH_CHILD_QUERY="+expr)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			b.Fatal(err, string(out))
		}
		took := time.Since(began)
		fmt.Printf("\n  %s", b.Name())
		for line := range strings.Lines(string(out)) {
			what, n, _ := strings.Cut(strings.TrimSpace(line), " ")
			if bytes, err := strconv.ParseInt(n, 10, 64); err == nil {
				n = fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20))
				b.ReportMetric(float64(bytes)/(1<<20), "MiB-"+what)
			}
			fmt.Printf("\n    %-8s %s", what, n)
		}
		fmt.Printf("\n    took     %.1f s\n", took.Seconds())
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRatioIdleBlocks is what a block costs that nobody asks for: bytes of the heap, and
// milliseconds until the backend is ready, with metas on disk from the run before and without.
func BenchmarkRatioIdleBlocks(b *testing.B) {
	src := b.TempDir()
	made, err := tinyBlock(src)
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{100, 1000, 10000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			dir, cache := b.TempDir(), b.TempDir()
			if err := clones(src, made, dir, n); err != nil {
				b.Fatal(err)
			}
			for range b.N {
				var took []float64
				var size uint64
				for range 2 {
					var before, after runtime.MemStats
					runtime.GC()
					runtime.ReadMemStats(&before)
					began := time.Now()
					s, c := openBucket(b, dir, cache)
					took = append(took, 1e3*time.Since(began).Seconds()/float64(n))
					if len(s.Blocks()) != n {
						b.Fatalf("%d blocks", len(s.Blocks()))
					}
					runtime.GC()
					runtime.ReadMemStats(&after)
					size = (after.HeapAlloc - min(before.HeapAlloc, after.HeapAlloc)) / uint64(n)
					b.ReportMetric(float64(c.n.Load()), "requests/sync")
					if err := s.Close(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(size), "B/block")
				b.ReportMetric(took[0], "ms/block-first")
				b.ReportMetric(took[1], "ms/block-again")
				fmt.Printf("\n  %s: %d bytes and %.3f ms per block, %.3f ms when its meta.json is known\n", b.Name(), size, took[0], took[1])
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// tinyBlock writes a block of a few series and returns its id.
func tinyBlock(dir string) (ulid.ULID, error) {
	d, err := written()
	if err != nil {
		return ulid.ULID{}, err
	}
	names, err := filepath.Glob(filepath.Join(d.reference, "*", meta.File))
	if err != nil || len(names) == 0 {
		return ulid.ULID{}, errors.Join(err, errors.New("the reference has no block"))
	}
	slices.Sort(names)
	from := filepath.Dir(names[0])
	id, _ := meta.IDFromName(filepath.Base(from))
	bkt, err := filesystem.NewBucket(dir)
	if err != nil {
		return id, err
	}
	return id, put(bkt, from, id, labels.FromStrings("cluster", "eu1").Map())
}

// clones makes n blocks of one. Only their meta.json are there: nothing else is read of a block
// that nobody asks for.
func clones(src string, of ulid.ULID, dir string, n int) error {
	data, err := os.ReadFile(filepath.Join(src, of.String(), meta.File))
	if err != nil {
		return err
	}
	m, err := meta.Parse(of, data)
	if err != nil {
		return err
	}
	length := m.MaxTime - m.MinTime
	for i := range n {
		x := m.Clone()
		x.ULID = ulid.MustNew(uint64(i+1), nil)
		x.Compaction.Sources, x.Compaction.Parents = []ulid.ULID{x.ULID}, nil
		x.MinTime, x.MaxTime = m.MinTime+int64(i)*length, m.MaxTime+int64(i)*length
		data, err := x.Encode()
		if err != nil {
			return err
		}
		block := filepath.Join(dir, x.ULID.String())
		if err := os.MkdirAll(block, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(block, meta.File), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
