// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/util/testutil"
	"github.com/thanos-io/objstore/providers/filesystem"

	"github.com/promweave/promweave/backends/bucket"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/core/dedup"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
)

// sample is one of a series: a float, or one of the histograms.
type sample struct {
	ls labels.Labels
	t  int64
	f  float64
	h  *histogram.Histogram
	fh *histogram.FloatHistogram
}

// line is a series and its samples, in order of time.
type line struct {
	ls      labels.Labels
	samples []chunks.Sample
}

// writeRaw makes a raw block of samples in dir.
func writeRaw(dir string, ext labels.Labels, samples []sample) (*meta.Meta, error) {
	by := map[string]*line{}
	for _, s := range samples {
		key := s.ls.String()
		if by[key] == nil {
			by[key] = &line{ls: s.ls}
		}
		by[key].samples = append(by[key].samples, s)
	}
	for _, l := range by {
		slices.SortFunc(l.samples, func(a, b chunks.Sample) int { return cmp.Compare(a.T(), b.T()) })
	}
	first, last := bounds(samples)
	return writeLines(dir, ext, first, last+1, slices.Collect(maps.Values(by)))
}

// writeLines makes a raw block by the writers of the TSDB, but without its head, which costs too
// much for blocks of a few samples.
func writeLines(dir string, ext labels.Labels, minTime, maxTime int64, lines []*line) (_ *meta.Meta, err error) {
	symbols := map[string]bool{}
	for _, l := range lines {
		l.ls.Range(func(l labels.Label) { symbols[l.Name], symbols[l.Value] = true, true })
	}
	slices.SortFunc(lines, func(a, b *line) int { return labels.Compare(a.ls, b.ls) })
	id := ulid.MustNew(ulid.Now(), rand.Reader)
	block := filepath.Join(dir, id.String())
	cw, err := chunks.NewWriter(filepath.Join(block, "chunks"), chunks.WithSegmentSize(1<<20))
	if err != nil {
		return nil, err
	}
	iw, err := index.NewWriter(context.Background(), filepath.Join(block, meta.IndexFile))
	if err != nil {
		return nil, errors.Join(err, cw.Close())
	}
	for _, s := range slices.Sorted(maps.Keys(symbols)) {
		err = errors.Join(err, iw.AddSymbol(s))
	}
	for i, l := range lines {
		var metas []chunks.Meta
		it := storage.NewSeriesToChunkEncoder(storage.NewListSeries(l.ls, l.samples)).Iterator(nil)
		for it.Next() {
			metas = append(metas, it.At())
		}
		err = errors.Join(err, it.Err(), cw.WriteChunks(metas...))
		err = errors.Join(err, iw.AddSeries(storage.SeriesRef(i), l.ls, metas...))
	}
	if err = errors.Join(err, cw.Close(), iw.Close()); err != nil {
		return nil, err
	}
	data, err := json.Marshal(map[string]any{
		"ulid": id.String(), "version": 1, "minTime": minTime, "maxTime": maxTime, "stats": map[string]any{},
		"compaction": map[string]any{"level": 1, "sources": []string{id.String()}},
		"thanos":     map[string]any{"labels": ext.Map(), "downsample": map[string]any{"resolution": 0}, "source": "test"},
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(block, meta.File), data, 0o644); err != nil {
		return nil, err
	}
	return meta.Parse(id, data)
}

// The methods by which the TSDB encodes a sample.

func (s sample) T() int64                      { return s.t }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.f }
func (s sample) H() *histogram.Histogram       { return s.h }
func (s sample) FH() *histogram.FloatHistogram { return s.fh }
func (s sample) Type() chunkenc.ValueType {
	switch {
	case s.h != nil:
		return chunkenc.ValHistogram
	case s.fh != nil:
		return chunkenc.ValFloatHistogram
	}
	return chunkenc.ValFloat
}

func (s sample) Copy() chunks.Sample {
	if s.h != nil {
		s.h = s.h.Copy()
	}
	if s.fh != nil {
		s.fh = s.fh.Copy()
	}
	return s
}

const (
	minute = int64(60_000)
	hour   = 60 * minute
)

// source has the blocks that were made last.
type source struct{ blocks []*meta.Meta }

func (s *source) Blocks() []*meta.Meta { return s.blocks }

// stored is a storage that keeps what is appended as blocks in a bucket, and reads them through
// the fan-out.
type stored struct {
	dir     string
	samples []sample
	written int
	layout  layout
	src     *source
	backend *bucket.Backend
	set     *membership.Set
	service *query.Service
}

type layout struct {
	name  string
	dedup dedup.Algorithm
	// unseen are evals, by file, of which the warning cannot be expected.
	unseen map[string][]string
	// cut tells which blocks there are to be: their external labels and samples.
	cut func(samples []sample, block func(ext labels.Labels, samples []sample))
}

func newStored(t testutil.T, dir string, l layout) *stored {
	fail := func(err error) {
		if err != nil {
			t.Errorf("%v", err)
			t.FailNow()
		}
	}
	s := &stored{layout: l, src: &source{}}
	var err error
	s.dir, err = os.MkdirTemp(dir, "")
	fail(err)
	blocks := filepath.Join(s.dir, "bucket")
	fail(os.Mkdir(blocks, 0o755))
	bkt, err := filesystem.NewBucket(blocks)
	fail(err)
	s.backend, err = bucket.New(bkt, s.src, bucket.Config{Dir: filepath.Join(s.dir, "headers")}, nil)
	fail(err)
	s.set = membership.New([]membership.Entry{{Spec: membership.Spec{Name: "bucket", Kind: "bucket"}, Backend: s.backend}}, membership.Options{})
	s.service, err = query.New(s.set, query.Config{ReplicaLabels: []string{"replica"}, Dedup: l.dedup})
	fail(err)
	s.set.Refresh(context.Background())
	return s
}

// Querier writes the blocks anew if there is something new.
func (s *stored) Querier(minTime, maxTime int64) (storage.Querier, error) {
	if s.written != len(s.samples) {
		s.src.blocks = nil
		var err error
		s.layout.cut(s.samples, func(ext labels.Labels, samples []sample) {
			if len(samples) == 0 || err != nil {
				return
			}
			var m *meta.Meta
			if m, err = writeRaw(filepath.Join(s.dir, "bucket"), ext, samples); err == nil {
				s.src.blocks = append(s.src.blocks, m)
			}
		})
		if err != nil {
			return nil, err
		}
		s.written = len(s.samples)
		s.set.Refresh(context.Background())
	}
	o := s.service.DefaultOptions()
	o.PartialResponse = false
	return s.service.Queryable(o).Querier(minTime, maxTime)
}

func (s *stored) ChunkQuerier(int64, int64) (storage.ChunkQuerier, error) {
	return nil, errors.New("not used by the tests")
}
func (s *stored) StartTime() (int64, error) { return 0, nil }

func (s *stored) Close() error {
	s.set.Close() // and with it the backend
	return errors.Join(s.service.Close(), os.RemoveAll(s.dir))
}

func (s *stored) Appender(context.Context) storage.Appender { return &appender{s: s} }

type appender struct {
	s       *stored
	samples []sample
}

func (a *appender) Append(_ storage.SeriesRef, ls labels.Labels, t int64, v float64) (storage.SeriesRef, error) {
	a.samples = append(a.samples, sample{ls: ls, t: t, f: v})
	return 0, nil
}

func (a *appender) AppendHistogram(_ storage.SeriesRef, ls labels.Labels, t int64, h *histogram.Histogram, fh *histogram.FloatHistogram) (storage.SeriesRef, error) {
	x := sample{ls: ls, t: t}
	if h != nil {
		x.h = h.Copy()
	}
	if fh != nil {
		x.fh = fh.Copy()
	}
	a.samples = append(a.samples, x)
	return 0, nil
}

func (a *appender) Commit() error {
	a.s.samples = append(a.s.samples, a.samples...)
	return nil
}
func (*appender) Rollback() error                   { return nil }
func (*appender) SetOptions(*storage.AppendOptions) {}
func (*appender) AppendExemplar(storage.SeriesRef, labels.Labels, exemplar.Exemplar) (storage.SeriesRef, error) {
	return 0, nil
}
func (*appender) UpdateMetadata(storage.SeriesRef, labels.Labels, metadata.Metadata) (storage.SeriesRef, error) {
	return 0, nil
}
func (*appender) AppendSTZeroSample(storage.SeriesRef, labels.Labels, int64, int64) (storage.SeriesRef, error) {
	return 0, nil
}
func (*appender) AppendHistogramSTZeroSample(storage.SeriesRef, labels.Labels, int64, int64, *histogram.Histogram, *histogram.FloatHistogram) (storage.SeriesRef, error) {
	return 0, nil
}

// quick is a directory in memory where there is one: thousands of small files are synced.
func quick(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "bucket-test")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// between are the samples of a time, half-open.
func between(samples []sample, from, to int64) (out []sample) {
	for _, s := range samples {
		if s.t >= from && s.t < to {
			out = append(out, s)
		}
	}
	return out
}

func bounds(samples []sample) (first, last int64) {
	first, last = samples[0].t, samples[0].t
	for _, s := range samples {
		first, last = min(first, s.t), max(last, s.t)
	}
	return first, last
}

// hints: the first histogram of a chunk cannot know whether the one before it, which is in another
// block, was reset: its hint is "unknown", and the conflict that these evals warn of is not seen.
// Their values still have to hold.
var hints = map[string][]string{"native_histograms.test": {
	"eval instant at 11m histogram_count(sum_over_time(mixed[2m]))",
	"eval instant at 11m histogram_count(avg_over_time(mixed[2m]))",
}}

// layouts are the ways in which the data of a script lie in a bucket.
func layouts() []layout {
	a, b := labels.FromStrings("replica", "a"), labels.FromStrings("replica", "b")
	return []layout{
		{name: "blocks_of_two_hours", cut: func(samples []sample, block func(labels.Labels, []sample)) {
			by := map[int64][]sample{}
			for _, s := range samples {
				by[s.t/(2*hour)] = append(by[s.t/(2*hour)], s)
			}
			for _, list := range by {
				block(a, list)
			}
		}},
		// Blocks and their chunks overlap, and one is there twice.
		{name: "odd_blocks_that_overlap", unseen: hints, cut: func(samples []sample, block func(labels.Labels, []sample)) {
			first, last := bounds(samples)
			width := (last-first)/3 + 1
			width += width/7 + 1
			for from := first; from <= last; from += width {
				block(a, between(samples, from, from+width+width/3))
			}
			block(a, between(samples, first, first+width))
		}},
		{name: "two_replicas", cut: func(samples []sample, block func(labels.Labels, []sample)) {
			block(a, samples)
			block(b, samples)
		}},
		// What one replica lacks, the other one has. These are copies of samples, for which there is
		// "chain": "default" takes them for two scrapes, and waits for a while before it changes over.
		{name: "two_replicas_with_gaps", dedup: dedup.Chain, unseen: hints, cut: func(samples []sample, block func(labels.Labels, []sample)) {
			first, last := bounds(samples)
			width := (last-first)/7 + 1
			var inA, inB []sample
			for i := range int64(7) {
				part := between(samples, first+i*width, first+(i+1)*width)
				if i%2 == 0 {
					inA = append(inA, part...)
				}
				if i%2 == 1 || i%4 == 2 {
					inB = append(inB, part...)
				}
			}
			block(a, inA)
			block(b, inB)
		}},
	}
}

// TestPromQL runs Prometheus' own test scripts over blocks in a bucket: the expectations are the
// answers of Prometheus. The scripts are read from the module that is linked.
func TestPromQL(t *testing.T) {
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
	dir := quick(t)
	for i, l := range layouts() {
		for j, f := range files {
			name := filepath.Base(f)
			if raceEnabled && name != "functions.test" || testing.Short() && !raceEnabled && i != j%4 {
				continue
			}
			t.Run(l.name+"/"+name, func(t *testing.T) {
				data, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				script := string(data)
				for _, eval := range l.unseen[name] {
					before, rest, ok := strings.Cut(script, eval+"\n  expect warn ")
					if !ok {
						t.Fatalf("no %q with a warning in the script", eval)
					}
					_, rest, _ = strings.Cut(rest, "\n")
					script = before + eval + "\n" + rest
				}
				e := promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery)
				promqltest.RunTestWithStorage(t, script, e, func(t testutil.T) storage.Storage { return newStored(t, dir, l) })
			})
		}
	}
}

// raceEnabled: see race_test.go.
var raceEnabled bool
