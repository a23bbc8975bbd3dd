// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"testing"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/teststorage"
	"github.com/prometheus/prometheus/util/testutil"
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

// TestPromQL runs Prometheus' own test scripts with the engine reading through
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
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			engine := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
			promqltest.RunBuiltinTestsWithStorage(t, engine, func(t testutil.T) storage.Storage {
				return newSplit(t, l.stores, l.replicas, l.route)
			})
			var _ promql.QueryEngine = engine
		})
	}
}
