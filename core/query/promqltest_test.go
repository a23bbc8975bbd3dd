// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/teststorage"
	"github.com/prometheus/prometheus/util/testutil"
	"github.com/thanos-io/promql-engine/engine"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/core/internal/fakestore"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// split is a storage whose samples are spread over several stores, and read
// through the fan-out.
type split struct {
	stores  []*teststorage.TestStorage
	service *query.Service
	set     *membership.Set
	o       query.Options
	// route names the stores that get a sample.
	route func(l labels.Labels, t int64) []int
}

func newSplit(t testutil.T, n int, replicas bool, route func(l labels.Labels, t int64) []int) *split {
	s := &split{route: route}
	var entries []membership.Entry
	for i := range n {
		st := teststorage.New(t)
		s.stores = append(s.stores, st)
		var ext labels.Labels
		if replicas {
			ext = labels.FromStrings("replica", string(rune('a'+i)))
		}
		entries = append(entries, membership.Entry{
			Spec:    membership.Spec{Name: fmt.Sprint("store-", i), Kind: "test"},
			Backend: fakestore.Over(st, ext),
		})
	}
	s.set = membership.New(entries, membership.Options{})
	s.set.Refresh(context.Background())
	var err error
	if s.service, err = query.New(s.set, query.Config{ReplicaLabels: []string{"replica"}}); err != nil {
		t.Errorf("%v", err)
		t.FailNow()
	}
	s.o = s.service.DefaultOptions()
	s.o.PartialResponse = false
	return s
}

func (s *split) Querier(minTime, maxTime int64) (storage.Querier, error) {
	return s.service.Queryable(s.o).Querier(minTime, maxTime)
}

func (s *split) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) {
	return nil, errors.New("not used by the tests")
}
func (s *split) StartTime() (int64, error) { return 0, nil }

func (s *split) Close() error {
	s.set.Close()
	err := s.service.Close()
	for _, st := range s.stores {
		err = errors.Join(err, st.Close())
	}
	return err
}

func (s *split) Appender(ctx context.Context) storage.Appender {
	a := &splitAppender{s: s}
	for _, st := range s.stores {
		a.apps = append(a.apps, st.Appender(ctx))
	}
	return a
}

type splitAppender struct {
	s    *split
	apps []storage.Appender
}

func (a *splitAppender) Append(_ storage.SeriesRef, l labels.Labels, t int64, v float64) (storage.SeriesRef, error) {
	for _, i := range a.s.route(l, t) {
		if _, err := a.apps[i].Append(0, l, t, v); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

func (a *splitAppender) AppendHistogram(_ storage.SeriesRef, l labels.Labels, t int64, h *histogram.Histogram, fh *histogram.FloatHistogram) (storage.SeriesRef, error) {
	for _, i := range a.s.route(l, t) {
		x, y := h, fh
		if h != nil {
			x = h.Copy()
		}
		if fh != nil {
			y = fh.Copy()
		}
		if _, err := a.apps[i].AppendHistogram(0, l, t, x, y); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

func (a *splitAppender) Commit() error {
	var err error
	for _, x := range a.apps {
		err = errors.Join(err, x.Commit())
	}
	return err
}

func (a *splitAppender) Rollback() error {
	var err error
	for _, x := range a.apps {
		err = errors.Join(err, x.Rollback())
	}
	return err
}

func (*splitAppender) SetOptions(*storage.AppendOptions) {}
func (*splitAppender) AppendExemplar(storage.SeriesRef, labels.Labels, exemplar.Exemplar) (storage.SeriesRef, error) {
	return 0, nil
}
func (*splitAppender) UpdateMetadata(storage.SeriesRef, labels.Labels, metadata.Metadata) (storage.SeriesRef, error) {
	return 0, nil
}
func (*splitAppender) AppendSTZeroSample(storage.SeriesRef, labels.Labels, int64, int64) (storage.SeriesRef, error) {
	return 0, nil
}
func (*splitAppender) AppendHistogramSTZeroSample(storage.SeriesRef, labels.Labels, int64, int64, *histogram.Histogram, *histogram.FloatHistogram) (storage.SeriesRef, error) {
	return 0, nil
}

// TestPromQL runs Prometheus' own test scripts with both engines reading through
// the fan-out, the data spread in each of four ways.
func TestPromQL(t *testing.T) {
	hash := func(l labels.Labels) int {
		h := fnv.New32a()
		fmt.Fprint(h, l)
		return int(h.Sum32() & 0xffff)
	}
	layouts := []struct {
		name     string
		stores   int
		replicas bool
		route    func(labels.Labels, int64) []int
	}{
		{"one_store", 1, false, func(labels.Labels, int64) []int { return []int{0} }},
		{"series_split_over_stores", 3, false, func(l labels.Labels, _ int64) []int { return []int{hash(l) % 3} }},
		{"samples_split_by_time", 3, false, func(_ labels.Labels, ts int64) []int { return []int{int(ts/600_000) % 3} }},
		{"two_replicas_of_everything", 2, true, func(labels.Labels, int64) []int { return []int{0, 1} }},
	}
	all := exceptions(t)
	if raceEnabled {
		layouts = layouts[len(layouts)-1:]
	}
	for _, l := range layouts {
		newStorage := func(t testutil.T) storage.Storage { return newSplit(t, l.stores, l.replicas, l.route) }
		t.Run("prometheus/"+l.name, func(t *testing.T) {
			e := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
			if except := all.of("prometheus", l.name); len(except) > 0 || raceEnabled {
				runExcept(t, e, newStorage, except)
			} else {
				promqltest.RunBuiltinTestsWithStorage(t, e, newStorage)
			}
		})
		t.Run("thanos/"+l.name, func(t *testing.T) {
			runExcept(t, engine.New(engine.Opts{EngineOpts: promql.EngineOpts{
				MaxSamples: promqltest.DefaultMaxSamplesPerQuery, Timeout: 100 * time.Minute, EnableAtModifier: true, EnableNegativeOffset: true,
				NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() },
			}}), newStorage, all.of("thanos", l.name))
		})
	}
}

type exception struct {
	engine, layout, file string
	lines                []int
}

type exceptionList []exception

// exceptions reads testdata/promqltest_exceptions.txt, which says what they are.
func exceptions(t *testing.T) (out exceptionList) {
	t.Helper()
	b, err := os.ReadFile("testdata/promqltest_exceptions.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		x := exception{engine: f[0], layout: f[1], file: f[2]}
		for _, s := range f[3:] {
			n, err := strconv.Atoi(s)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			x.lines = append(x.lines, n)
		}
		out = append(out, x)
	}
	return out
}

func (l exceptionList) of(engine, layout string) map[string][]int {
	out := map[string][]int{}
	for _, x := range l {
		if x.engine == engine && (x.layout == "*" || x.layout == layout) {
			out[x.file] = append(out[x.file], x.lines...)
		}
	}
	return out
}

// raceEnabled: see race_test.go.
var raceEnabled bool

// begins is true of what ends the expectations of an eval.
var begins = regexp.MustCompile(`^\s*($|#|eval|load|clear)`)

// runExcept is promqltest.RunBuiltinTestsWithStorage without some evals. The
// scripts are read from the module that is linked, so that they are its own.
func runExcept(t *testing.T, e promql.QueryEngine, newStorage func(testutil.T) storage.Storage, except map[string][]int) {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/prometheus/prometheus").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "promql/promqltest/testdata/*.test"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d test scripts: %v", len(files), err)
	}
	parser.EnableExperimentalFunctions, parser.ExperimentalDurationExpr, parser.EnableExtendedRangeSelectors = true, true, true
	defer func() {
		parser.EnableExperimentalFunctions, parser.ExperimentalDurationExpr, parser.EnableExtendedRangeSelectors = false, false, false
	}()
	for _, f := range files {
		name := filepath.Base(f)
		if raceEnabled && name != "functions.test" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(string(b), "\n")
			for _, n := range except[name] {
				if !strings.HasPrefix(lines[n-1], "eval") {
					t.Fatalf("testdata/promqltest_exceptions.txt: line %d of %s is %q and no eval", n, name, lines[n-1])
				}
				lines[n-1] = "" // numbers of other lines stay
				for i := n; i < len(lines) && !begins.MatchString(lines[i]); i++ {
					lines[i] = ""
				}
			}
			promqltest.RunTestWithStorage(t, strings.Join(lines, "\n"), e, newStorage)
		})
	}
}
