// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	promtsdb "github.com/prometheus/prometheus/tsdb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/bins/promweave/internal/synthetic"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storeapi"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(child(dir))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if root != "" {
			os.RemoveAll(root)
		}
		os.Exit(code)
	}))
}

// root is the folder of the data, "" until it is made.
var root string

// The data: one day at 30 s of two clusters. The series per cluster are
// BENCH_SERIES, 2000 if not set.
var (
	end      = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	start    = end.Add(-24 * time.Hour)
	clusters = []string{"eu1", "us1"}
)

func seriesPerCluster() int {
	if n, err := strconv.Atoi(os.Getenv("BENCH_SERIES")); err == nil && n > 0 {
		return n
	}
	return 2000
}

// data are the directories, written once per run of the benchmarks.
type data struct {
	reference string
	replicas  map[string]string // by cluster/replica
}

var written = sync.OnceValues(func() (*data, error) {
	var err error
	if root, err = os.MkdirTemp("", "promweave-bench-"); err != nil {
		return nil, err
	}
	d := &data{reference: filepath.Join(root, "reference"), replicas: map[string]string{}}
	spec := synthetic.Spec{Start: start, End: end, Series: seriesPerCluster(), Seed: 1}
	ref := spec
	ref.Clusters = clusters
	if err := synthetic.Write(context.Background(), d.reference, ref, nil); err != nil {
		return nil, err
	}
	for c, cluster := range clusters {
		for r, replica := range []string{"a", "b"} {
			s := spec
			s.Cluster = cluster
			s.Offset = time.Duration(7*r) * time.Second
			gap := start.Add(time.Duration(3+5*c+9*r) * time.Hour)
			s.Gaps = []synthetic.Interval{{From: gap, To: gap.Add(10 * time.Minute)}}
			dir := filepath.Join(root, cluster+"-"+replica)
			if err := synthetic.Write(context.Background(), dir, s, nil); err != nil {
				return nil, err
			}
			d.replicas[cluster+"/"+replica] = dir
		}
	}
	return d, nil
})

func open(b *testing.B) *data {
	b.Helper()
	d, err := written()
	if err != nil {
		b.Fatal(err)
	}
	return d
}

type testQuery struct {
	name, expr string
	span, step time.Duration
}

func queries(b *testing.B) []testQuery {
	b.Helper()
	f, err := os.Open("testdata/queries.txt")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var out []testQuery
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		p := strings.SplitN(line, " | ", 4)
		span, err1 := model.ParseDuration(p[1])
		step, err2 := model.ParseDuration(p[2])
		if err := cmp.Or(err1, err2); err != nil {
			b.Fatalf("%s: %v", line, err)
		}
		out = append(out, testQuery{name: p[0], expr: p[3], span: time.Duration(span), step: time.Duration(step)})
	}
	return out
}

// side answers queries; the time of one answer is what is compared.
type side func(ctx context.Context, q testQuery, at time.Time) (string, error)

// reference is Prometheus' engine reading a TSDB directly.
func reference(b *testing.B, dir string) side {
	b.Helper()
	db, err := promtsdb.Open(dir, nil, nil, noCompaction(), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	e := promql.NewEngine(promql.EngineOpts{MaxSamples: math.MaxInt, Timeout: time.Hour, LookbackDelta: 5 * time.Minute, EnableAtModifier: true, EnableNegativeOffset: true})
	b.Cleanup(func() { e.Close() })
	return func(ctx context.Context, q testQuery, at time.Time) (string, error) {
		var (
			x   promql.Query
			err error
		)
		if q.span == 0 {
			x, err = e.NewInstantQuery(ctx, db, nil, q.expr, at)
		} else {
			x, err = e.NewRangeQuery(ctx, db, nil, q.expr, at.Add(-q.span), at, q.step)
		}
		if err != nil {
			return "", err
		}
		defer x.Close()
		res := x.Exec(ctx)
		if res.Err != nil {
			return "", res.Err
		}
		return shape(res.Value), nil
	}
}

func noCompaction() *promtsdb.Options {
	o := promtsdb.DefaultOptions()
	o.RetentionDuration = 0
	return o
}

// shape says how much an answer holds, so that a side which answers nothing fast
// is found out.
func shape(v fmt.Stringer) string {
	switch v := v.(type) {
	case promql.Matrix:
		n := 0
		for _, s := range v {
			n += len(s.Floats)
		}
		return fmt.Sprintf("%d series, %d points", len(v), n)
	case promql.Vector:
		return fmt.Sprintf("%d series", len(v))
	}
	return v.String()
}

// ours is a Service over backends.
func ours(b *testing.B, engine string, entries ...membership.Entry) side {
	b.Helper()
	set := membership.New(entries, membership.Options{})
	b.Cleanup(set.Close)
	set.Refresh(context.Background())
	for _, st := range set.Status() {
		if !st.Healthy {
			b.Fatalf("%s: %s", st.Name, st.LastError)
		}
	}
	s, err := query.New(set, query.Config{ReplicaLabels: []string{"replica"}, MaxSamples: math.MaxInt, Timeout: time.Hour, Engine: engine})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return func(ctx context.Context, q testQuery, at time.Time) (string, error) {
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
}

func tsdbEntry(b *testing.B, name, dir string, ext labels.Labels) membership.Entry {
	b.Helper()
	t, err := tsdb.Open(tsdb.Config{Path: dir, ExternalLabels: ext}, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	return membership.Entry{Spec: membership.Spec{Name: name, Kind: "tsdb"}, Backend: t}
}

func replicaEntries(b *testing.B, d *data) []membership.Entry {
	b.Helper()
	var out []membership.Entry
	for name, dir := range d.replicas {
		cluster, replica, _ := strings.Cut(name, "/")
		out = append(out, tsdbEntry(b, name, dir, labels.FromStrings("cluster", cluster, "replica", replica)))
	}
	slices.SortFunc(out, func(x, y membership.Entry) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

// overGRPC puts a loopback connection between the engine and a backend.
func overGRPC(b *testing.B, e membership.Entry) membership.Entry {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := grpc.NewServer(storeapi.ServerOptions()...)
	storeapi.NewServer(e.Backend, storeapi.ServerConfig{Name: e.Name}).Register(srv)
	go func() { _ = srv.Serve(l) }()
	opts, err := storeapi.DialOptions(storeapi.DialConfig{Credentials: insecure.NewCredentials()})
	if err != nil {
		b.Fatal(err)
	}
	conn, err := grpc.NewClient(l.Addr().String(), opts...)
	if err != nil {
		b.Fatal(err)
	}
	inner := e.Backend
	b.Cleanup(func() {
		conn.Close()
		srv.Stop()
		if c, ok := inner.(backend.Closer); ok {
			c.Close()
		}
	})
	e.Backend, e.Kind = storeapi.NewClient(conn, storeapi.ClientConfig{Name: e.Name}), "storeapi"
	return e
}

// compare runs both sides in turn, each run shifted by one step, and reports the
// geometric mean of the queries' ratios of medians.
func compare(b *testing.B, got, want side) {
	b.Helper()
	const rounds = 5
	ctx := context.Background()
	var product float64
	worst := 0.0
	qs := queries(b)
	for range b.N {
		fmt.Printf("\n  %s", b.Name())
		product, worst = 0, 0
		for _, q := range qs {
			var g, w []float64
			for i := range rounds + 1 {
				at := end.Add(-time.Minute - time.Duration(i)*max(q.step, 30*time.Second))
				if q.span > 0 {
					at = at.Truncate(q.step)
				}
				t0 := time.Now()
				a1, err := got(ctx, q, at)
				d1 := time.Since(t0)
				if err != nil {
					b.Fatalf("%s: %v", q.name, err)
				}
				runtime.GC()
				t0 = time.Now()
				a2, err := want(ctx, q, at)
				d2 := time.Since(t0)
				if err != nil {
					b.Fatalf("%s, reference: %v", q.name, err)
				}
				runtime.GC()
				if a1 != a2 {
					b.Fatalf("%s at %s: %s, the reference has %s", q.name, at, a1, a2)
				}
				if i > 0 { // the first warms up
					g, w = append(g, d1.Seconds()), append(w, d2.Seconds())
				}
			}
			slices.Sort(g)
			slices.Sort(w)
			ratio := g[rounds/2] / w[rounds/2]
			product += math.Log(ratio)
			worst = max(worst, ratio)
			// Not b.Log, which cuts long lists.
			fmt.Printf("\n    %-20s %8.2f ms  reference %8.2f ms  %.2fx", q.name, 1e3*g[rounds/2], 1e3*w[rounds/2], ratio)
		}
	}
	fmt.Println()
	b.ReportMetric(math.Exp(product/float64(len(qs))), "x-reference")
	b.ReportMetric(worst, "x-worst")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRatioOneTSDB: one tsdb backend against Prometheus' engine reading the
// same directory.
func BenchmarkRatioOneTSDB(b *testing.B) {
	d := open(b)
	for _, engine := range []string{query.EnginePrometheus, query.EngineThanos} {
		b.Run(engine, func(b *testing.B) {
			compare(b, ours(b, engine, tsdbEntry(b, "one", d.reference, labels.EmptyLabels())), reference(b, d.reference))
		})
	}
}

// BenchmarkRatioReplicas: two clusters of two replicas, deduplicated, against one
// TSDB that holds the same without replicas.
func BenchmarkRatioReplicas(b *testing.B) {
	d := open(b)
	for _, engine := range []string{query.EnginePrometheus, query.EngineThanos} {
		b.Run(engine, func(b *testing.B) {
			compare(b, ours(b, engine, replicaEntries(b, d)...), reference(b, d.reference))
		})
	}
}

// BenchmarkRatioGRPC: the same with gRPC on loopback in between.
func BenchmarkRatioGRPC(b *testing.B) {
	d := open(b)
	entries := replicaEntries(b, d)
	for i := range entries {
		entries[i] = overGRPC(b, entries[i])
	}
	compare(b, ours(b, query.EnginePrometheus, entries...), reference(b, d.reference))
}

// timed returns the median time of an instant query.
func timed(b *testing.B, s side, expr string) float64 {
	b.Helper()
	const rounds = 15
	var ts []float64
	for i := range rounds + 2 {
		t0 := time.Now()
		if _, err := s(context.Background(), testQuery{expr: expr}, end.Add(-time.Minute)); err != nil {
			b.Fatal(err)
		}
		if i >= 2 {
			ts = append(ts, time.Since(t0).Seconds())
		}
	}
	slices.Sort(ts)
	return ts[rounds/2]
}

// BenchmarkRatioGrowth: four times the series, or four times the stores with
// series, should cost about four times; stores that are pruned about nothing.
func BenchmarkRatioGrowth(b *testing.B) {
	times := []int64{end.Add(-2 * time.Minute).UnixMilli(), end.Add(-90 * time.Second).UnixMilli()}
	stores := func(n, series int, first int) []membership.Entry {
		var out []membership.Entry
		for i := range n {
			m := newMemory(labels.FromStrings("store", fmt.Sprintf("s%04d", first+i)), series, times)
			out = append(out, membership.Entry{Spec: membership.Spec{Name: fmt.Sprintf("s%04d", first+i), Kind: "memory"}, Backend: m})
		}
		return out
	}
	const expr = `count({store=~"s000."})`
	small := timed(b, ours(b, "", stores(1, 2000, 0)...), expr)
	b.ReportMetric(timed(b, ours(b, "", stores(1, 8000, 0)...), expr)/small, "x-4-times-series")
	b.ReportMetric(timed(b, ours(b, "", stores(4, 2000, 0)...), expr)/small, "x-4-times-stores")
	b.ReportMetric(timed(b, ours(b, "", append(stores(3, 2000, 0), stores(997, 10, 1000)...)...), expr)/
		timed(b, ours(b, "", stores(3, 2000, 0)...), expr), "x-997-pruned")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkPruned is for profiles of what a pruned backend costs.
func BenchmarkPruned(b *testing.B) {
	times := []int64{end.Add(-2 * time.Minute).UnixMilli(), end.Add(-90 * time.Second).UnixMilli()}
	var entries []membership.Entry
	for i := range 1000 {
		name := fmt.Sprintf("s%04d", i)
		entries = append(entries, membership.Entry{Spec: membership.Spec{Name: name, Kind: "memory"}, Backend: newMemory(labels.FromStrings("store", name), 10, times)})
	}
	s := ours(b, "", entries...)
	for b.Loop() {
		if _, err := s(context.Background(), testQuery{expr: `count({store="s0000"})`}, end.Add(-time.Minute)); err != nil {
			b.Fatal(err)
		}
	}
}
