// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/storeapi"
)

// truth is a set of series that layouts spread over stores.
type truth struct {
	labels  labels.Labels
	samples []shaping.Sample
}

func randomTruth(r *rand.Rand) (out []truth) {
	for i := range 4 + r.IntN(8) {
		hist := i%4 == 3
		name := []string{"requests_total", "temperature"}[i%2]
		if hist {
			name = "latency"
		}
		x := truth{labels: labels.FromStrings("__name__", name, "instance", fmt.Sprint(i), "job", []string{"a", "b"}[r.IntN(2)])}
		v, n := 0.0, int64(0)
		for t := int64(r.IntN(15_000)); t < 1_800_000; t += 15_000 {
			switch r.IntN(40) {
			case 0: // a gap
				t += int64(r.IntN(20)) * 15_000
			case 1: // a reset
				v = 0
			}
			switch {
			case hist:
				n++
				x.samples = append(x.samples, shaping.Sample{T: t, H: tsdbutil.GenerateTestHistogram(n)})
			case r.IntN(50) == 0:
				x.samples = append(x.samples, shaping.Sample{T: t, F: math.Float64frombits(value.StaleNaN)})
			case i%2 == 0:
				v += r.Float64() * 10
				x.samples = append(x.samples, shaping.Sample{T: t, F: v})
			case r.IntN(50) == 0:
				x.samples = append(x.samples, shaping.Sample{T: t, F: []float64{math.NaN(), math.Inf(1), math.Inf(-1)}[r.IntN(3)]})
			default:
				x.samples = append(x.samples, shaping.Sample{T: t, F: r.NormFloat64()})
			}
		}
		out = append(out, x)
	}
	return out
}

func encode(t *testing.T, ls labels.Labels, s []shaping.Sample) backend.Series {
	t.Helper()
	// The encoder may change histograms.
	s = slices.Clone(s)
	for i := range s {
		if s[i].H != nil {
			s[i].H = s[i].H.Copy()
		}
	}
	cs, err := shaping.EncodeSamples(s)
	if err != nil {
		t.Fatal(err)
	}
	return backend.Series{Labels: ls, Chunks: cs}
}

// layouts spread the truth over stores; each must give the same answers.
var layouts = []struct {
	name string
	make func(t *testing.T, r *rand.Rand, data []truth) []*fakestore.Store
}{
	{"one store", func(t *testing.T, _ *rand.Rand, data []truth) []*fakestore.Store {
		return spread(t, data, 1, func(int, int64) []int { return []int{0} })
	}},
	{"by series", func(t *testing.T, r *rand.Rand, data []truth) []*fakestore.Store {
		n, off := 2+r.IntN(4), r.IntN(10)
		return spread(t, data, n, func(i int, _ int64) []int { return []int{(i*7 + off) % n} })
	}},
	{"by time", func(t *testing.T, r *rand.Rand, data []truth) []*fakestore.Store {
		n, width := 2+r.IntN(3), int64(60_000+r.IntN(600_000))
		return spread(t, data, n, func(_ int, ts int64) []int { return []int{int(ts/width) % n} })
	}},
	{"duplicates", func(t *testing.T, r *rand.Rand, data []truth) []*fakestore.Store {
		cut := int64(r.IntN(1_800_000))
		return spread(t, data, 3, func(_ int, ts int64) []int {
			if ts < cut {
				return []int{0, 1}
			}
			return []int{1, 2}
		})
	}},
	{"same chunks", func(t *testing.T, _ *rand.Rand, data []truth) []*fakestore.Store {
		return spread(t, data, 3, func(int, int64) []int { return []int{0, 1, 2} })
	}},
	{"replicas alike", func(t *testing.T, r *rand.Rand, data []truth) []*fakestore.Store {
		s := spread(t, data, 2, func(int, int64) []int { return []int{0, 1} })
		s[0].External, s[1].External = labels.FromStrings("replica", "a"), labels.FromStrings("replica", "b")
		return s
	}},
}

func spread(t *testing.T, data []truth, n int, route func(i int, ts int64) []int) []*fakestore.Store {
	parts := make([][]backend.Series, n)
	for i, x := range data {
		mine := make([][]shaping.Sample, n)
		for _, s := range x.samples {
			for _, k := range route(i, s.T) {
				mine[k] = append(mine[k], s)
			}
		}
		for k := range mine {
			if len(mine[k]) > 0 {
				parts[k] = append(parts[k], encode(t, x.labels, mine[k]))
			}
		}
	}
	out := make([]*fakestore.Store, n)
	for k := range out {
		out[k] = fakestore.Holding(labels.EmptyLabels(), parts[k]...)
	}
	return out
}

var metamorphicQueries = []string{
	`temperature`, `requests_total`, `latency`, `{job="a"}`, `temperature offset 3m`,
	`rate(requests_total[2m])`, `increase(requests_total[5m])`, `resets(requests_total[10m])`, `irate(requests_total[1m])`,
	`max_over_time(temperature[5m])`, `count_over_time(temperature[5m])`, `last_over_time(temperature[90s])`,
	`count(temperature)`, `max by (job) (requests_total)`, `topk(2, requests_total)`,
	`max_over_time(rate(requests_total[1m])[5m:30s])`, `requests_total > 20`, `absent(temperature{instance="99"})`,
	`histogram_count(latency)`, `histogram_quantile(0.9, rate(latency[3m]))`, `count_over_time(latency[2m])`,
	`sum by (job) (rate(requests_total[2m]))`, `avg_over_time(temperature[4m])`,
}

// canonical writes a value so that equal texts are equal values, bit for bit but
// for the payloads of NaN, whatever the order of a vector.
func canonical(v parser.Value) string {
	number := func(f float64) string {
		if math.IsNaN(f) {
			return "NaN"
		}
		return strconv.FormatUint(math.Float64bits(f), 16)
	}
	one := func(ts int64, f float64, h *histogram.FloatHistogram) string {
		if h != nil {
			return fmt.Sprintf(" %d:%s", ts, h.Copy().Compact(0).String())
		}
		return fmt.Sprintf(" %d:%s", ts, number(f))
	}
	var lines []string
	switch v := v.(type) {
	case promql.Vector:
		for _, s := range v {
			lines = append(lines, s.Metric.String()+one(s.T, s.F, s.H))
		}
	case promql.Matrix:
		for _, s := range v {
			l := s.Metric.String()
			i, j := 0, 0
			for i < len(s.Floats) || j < len(s.Histograms) {
				if j >= len(s.Histograms) || i < len(s.Floats) && s.Floats[i].T < s.Histograms[j].T {
					l += one(s.Floats[i].T, s.Floats[i].F, nil)
					i++
				} else {
					l += one(s.Histograms[j].T, 0, s.Histograms[j].H)
					j++
				}
			}
			lines = append(lines, l)
		}
	case promql.Scalar:
		lines = append(lines, number(v.V))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// overGRPC puts StoreAPI between the engine and a backend.
func overGRPC(t *testing.T, b backend.Backend) backend.Backend {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	srv := grpc.NewServer(storeapi.ServerOptions()...)
	storeapi.NewServer(b, storeapi.ServerConfig{}).Register(srv)
	go func() { _ = srv.Serve(l) }()
	opts, err := storeapi.DialOptions(storeapi.DialConfig{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///store", append(opts,
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		srv.Stop()
	})
	return storeapi.NewClient(conn, storeapi.ClientConfig{Name: "store"})
}

// TestMetamorphic: answers are the same whatever the order and the split of
// stores, in process, by gRPC and through another Promweave. PROMWEAVE_SEED=n runs one seed alone.
func TestMetamorphic(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6}
	if raceEnabled {
		seeds = seeds[:1]
	}
	if x := os.Getenv("PROMWEAVE_SEED"); x != "" {
		n, err := strconv.ParseUint(x, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{n}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			data := randomTruth(r)
			want := map[string]string{}
			filled := 0
			for _, l := range layouts {
				for variant := range 4 {
					stores := l.make(t, r, data)
					names := r.Perm(len(stores))
					var entries []membership.Entry
					for i, s := range stores {
						s.BatchSize = 1 + r.IntN(7)
						entries = append(entries, spec(fmt.Sprint("store-", names[i]), s))
					}
					r.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
					switch variant {
					case 2: // each store behind a gRPC connection
						for i := range entries {
							entries[i].Backend = overGRPC(t, entries[i].Backend)
						}
					case 3: // all of them behind another Promweave
						lower, _ := serve(t, query.Config{}, entries...)
						entries = []membership.Entry{spec("lower", overGRPC(t, lower.Proxy()))}
					}
					s, _ := serve(t, query.Config{}, entries...)
					for _, engine := range engines {
						for _, q := range metamorphicQueries {
							for _, step := range []int64{0, 37_000} {
								o := s.DefaultOptions()
								o.Engine = engine
								req := &query.Request{Query: q, Start: at(20), End: at(20), Options: o}
								ask := s.Instant
								if step > 0 {
									ask, req.Start, req.End, req.Step = s.Range, at(2), at(33), 37e9
								}
								res, err := ask(t.Context(), req)
								if err != nil {
									t.Fatalf("seed %d, %s, %s, %s: %v", seed, l.name, engine, q, err)
								}
								if res.Report.Completeness.State != report.Complete {
									t.Errorf("seed %d, %s: %s", seed, l.name, res.Report.Completeness)
								}
								got := canonical(res.Value)
								key := fmt.Sprint(engine, " ", q, " ", step)
								if _, ok := want[key]; !ok {
									want[key] = got
									if got != "" {
										filled++
									}
								}
								if want[key] != got {
									t.Errorf("seed %d, layout %q variant %d, %s\nwant %.600s\ngot  %.600s", seed, l.name, variant, key, want[key], got)
								}
								res.Close()
							}
						}
					}
				}
			}
			if filled < len(want)/2 {
				t.Errorf("only %d of %d answers hold anything: the test tests nothing", filled, len(want))
			}
			// Between the engines: bit for bit, but for these.
			for _, q := range metamorphicQueries {
				for _, step := range []int64{0, 37_000} {
					p, x := want[fmt.Sprint(query.EnginePrometheus, " ", q, " ", step)], want[fmt.Sprint(query.EngineThanos, " ", q, " ", step)]
					if p != x && enginesDiffer[q] == "" {
						t.Errorf("seed %d: the engines differ on %s, step %d\nprometheus %.600s\nthanos     %.600s", seed, q, step, p, x)
					}
				}
			}
		})
	}
}

// enginesDiffer are queries on which the engines disagree over the same samples,
// and how. Within one engine nothing is excused.
var enginesDiffer = map[string]string{
	`avg_over_time(temperature[4m])`: "the last bit: promql-engine adds up in another order",
}
