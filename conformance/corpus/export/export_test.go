// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/conformance/corpus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bits are the samples of a series, to be compared exactly.
type bits struct {
	t int64
	v uint64
	h string
}

func want(c *corpus.Corpus) map[string][]bits {
	out := map[string][]bits{}
	for _, s := range c.Series {
		for _, x := range s.Samples {
			b := bits{t: x.T}
			switch {
			case x.H != nil:
				b.h = x.H.ToFloat(nil).Compact(0).String()
			case x.FH != nil:
				b.h = x.FH.Copy().Compact(0).String()
			default:
				b.v = math.Float64bits(x.F)
			}
			out[s.Labels.String()] = append(out[s.Labels.String()], b)
		}
	}
	return out
}

func compare(t *testing.T, got, want map[string][]bits) {
	t.Helper()
	for name, w := range want {
		if !slices.Equal(got[name], w) {
			t.Errorf("%.100s: %d samples, want %d, or others", name, len(got[name]), len(w))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d series, want %d", len(got), len(want))
	}
}

func TestBlocks(t *testing.T) {
	c, dir := corpus.New(corpus.Options{}), t.TempDir()
	ids, err := WriteBlocks(t.Context(), dir, c, labels.FromStrings("cluster", "eu1"))
	if err != nil {
		t.Fatal(err)
	}
	if len(ids) != 5 {
		t.Errorf("%d blocks, want 5 of two hours", len(ids))
	}
	meta, err := os.ReadFile(filepath.Join(dir, ids[0], "meta.json"))
	if err != nil || !bytes.Contains(meta, []byte(`"cluster": "eu1"`)) {
		t.Errorf("meta.json lacks the external labels: %v\n%s", err, meta)
	}
	db, err := tsdb.OpenDBReadOnly(dir, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	blocks, err := db.Blocks()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]bits{}
	for _, b := range blocks {
		q, err := tsdb.NewBlockQuerier(b, math.MinInt64, math.MaxInt64)
		if err != nil {
			t.Fatal(err)
		}
		for name, list := range read(t, q.Select(t.Context(), true, nil, labels.MustNewMatcher(labels.MatchRegexp, "__name__", ".*"))) {
			got[name] = append(got[name], list...)
		}
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
	compare(t, got, want(c))
}

func read(t *testing.T, set storage.SeriesSet) map[string][]bits {
	t.Helper()
	got := map[string][]bits{}
	for set.Next() {
		name, it := set.At().Labels().String(), set.At().Iterator(nil)
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			b := bits{t: it.AtT()}
			switch kind {
			case chunkenc.ValFloat:
				_, v := it.At()
				b.v = math.Float64bits(v)
			default:
				_, h := it.AtFloatHistogram(nil)
				b.h = h.Compact(0).String()
			}
			got[name] = append(got[name], b)
		}
		if it.Err() != nil {
			t.Fatal(it.Err())
		}
	}
	if set.Err() != nil {
		t.Fatal(set.Err())
	}
	return got
}

func TestOpenMetrics(t *testing.T) {
	c := corpus.New(corpus.Options{})
	var out bytes.Buffer
	left, err := WriteOpenMetrics(&out, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []corpus.Part{corpus.Names, corpus.Stale, corpus.Histograms, corpus.Exemplars, corpus.Metadata} {
		if left[part] == "" {
			t.Errorf("%s is said to be there", part)
		}
	}
	if len(left) != 5 {
		t.Errorf("left out: %v", left)
	}
	var parts []corpus.Part
	for _, p := range c.Parts() {
		if _, no := left[p]; !no {
			parts = append(parts, p)
		}
	}
	got := map[string][]bits{}
	p := textparse.NewOpenMetricsParser(out.Bytes(), labels.NewSymbolTable())
	for {
		e, err := p.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e != textparse.EntrySeries {
			continue
		}
		_, ts, v := p.Series()
		var ls labels.Labels
		p.Labels(&ls)
		got[ls.String()] = append(got[ls.String()], bits{t: *ts, v: math.Float64bits(v)})
	}
	compare(t, got, want(c.Only(parts...)))
}

// TestOpenMetricsBefore1970: times have one sign.
func TestOpenMetricsBefore1970(t *testing.T) {
	var out bytes.Buffer
	if _, err := WriteOpenMetrics(&out, corpus.New(corpus.Options{Start: -3 * blockRange}).Only(corpus.Times)); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`cert_time{kind="before_edge"} 1 -14400.001`, `cert_time{kind="after_edge"} 1 -14399.999`} {
		if !bytes.Contains(out.Bytes(), []byte(line+"\n")) {
			t.Errorf("there is no line %s", line)
		}
	}
}

func TestJSON(t *testing.T) {
	c := corpus.New(corpus.Options{})
	var out bytes.Buffer
	left, err := WriteJSON(&out, c)
	if err != nil || len(left) != 4 {
		t.Fatalf("left out: %v, %v", left, err)
	}
	var list []struct {
		Labels  map[string]string
		Samples [][2]any
	}
	dec := json.NewDecoder(&out)
	dec.UseNumber()
	if err := dec.Decode(&list); err != nil {
		t.Fatal(err)
	}
	got := map[string][]bits{}
	for _, s := range list {
		name := labels.FromMap(s.Labels).String()
		for _, x := range s.Samples {
			ms, err := x[0].(json.Number).Int64()
			if err != nil {
				t.Fatal(err)
			}
			v, err := strconv.ParseFloat(fmt.Sprint(x[1]), 64)
			if err != nil {
				t.Fatal(err)
			}
			got[name] = append(got[name], bits{t: ms, v: math.Float64bits(v)})
		}
	}
	compare(t, got, want(c.Only(slices.DeleteFunc(c.Parts(), func(p corpus.Part) bool { return left[p] != "" })...)))
}

func TestRemoteWrite(t *testing.T) {
	c := corpus.New(corpus.Options{})
	got, exemplars, last := map[string][]bits{}, 0, int64(math.MinInt64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		packed, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		data, err := snappy.Decode(nil, packed)
		if err != nil {
			t.Error(err)
		}
		var m prompb.WriteRequest
		if err := m.Unmarshal(data); err != nil {
			t.Error(err)
		}
		first := int64(math.MaxInt64)
		for _, ts := range m.Timeseries {
			b := labels.NewScratchBuilder(len(ts.Labels))
			for _, l := range ts.Labels {
				b.Add(l.Name, l.Value)
			}
			name := b.Labels().String()
			exemplars += len(ts.Exemplars)
			i, k := 0, 0
			for i < len(ts.Samples) || k < len(ts.Histograms) {
				if k == len(ts.Histograms) || i < len(ts.Samples) && ts.Samples[i].Timestamp < ts.Histograms[k].Timestamp {
					got[name] = append(got[name], bits{t: ts.Samples[i].Timestamp, v: math.Float64bits(ts.Samples[i].Value)})
					first = min(first, ts.Samples[i].Timestamp)
					i++
					continue
				}
				got[name] = append(got[name], bits{t: ts.Histograms[k].Timestamp, h: ts.Histograms[k].ToFloatHistogram().Compact(0).String()})
				first = min(first, ts.Histograms[k].Timestamp)
				k++
			}
		}
		if first < last {
			t.Errorf("a request begins at %d, after one that began at %d", first, last)
		}
		last = first
		if r.Header.Get("X-Scope-OrgID") != "acme" {
			t.Error("the header is not there")
		}
	}))
	defer srv.Close()
	if err := RemoteWrite(t.Context(), srv.URL, http.Header{"X-Scope-Orgid": {"acme"}}, c); err != nil {
		t.Fatal(err)
	}
	w := want(c)
	for _, list := range w {
		for i := range list {
			if list[i].v == 1<<63 {
				list[i].v = 0 // the codec of every known sender and receiver drops the sign
			}
		}
	}
	compare(t, got, w)
	if exemplars != len(c.Exemplars) {
		t.Errorf("%d exemplars, want %d", exemplars, len(c.Exemplars))
	}
}

func TestRemoteWriteRefused(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "out of order sample", http.StatusBadRequest)
	}))
	defer srv.Close()
	err := RemoteWrite(t.Context(), srv.URL, nil, corpus.New(corpus.Options{Generated: 1}))
	if err == nil || !strings.Contains(err.Error(), "out of order sample") || !strings.Contains(err.Error(), "400") {
		t.Errorf("want what the server said, got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := RemoteWrite(ctx, srv.URL, nil, corpus.New(corpus.Options{Generated: 1})); !errors.Is(err, context.Canceled) {
		t.Errorf("want the context's error, got %v", err)
	}
}

// TestDownsampled: blocks of windows are read by tsdb, hold what the corpus has, and leave the gap
// in which a finer level counts.
func TestDownsampled(t *testing.T) {
	c, dir := corpus.New(corpus.Options{}).Only(corpus.Downsampled), t.TempDir()
	if _, err := WriteDownsampled(t.Context(), dir, c, labels.EmptyLabels()); err == nil {
		t.Error("blocks without external labels are written")
	}
	ids, err := WriteDownsampled(t.Context(), dir, c, labels.FromStrings("cluster", "eu1"))
	if err != nil || len(ids) != 3 {
		t.Fatal(ids, err)
	}
	type window struct {
		labels     string
		resolution int64
		t          int64
	}
	missing := map[window]corpus.Window{}
	for _, l := range c.Levels {
		for _, w := range l.Windows {
			missing[window{l.Labels.String(), l.Resolution, w.T}] = w
		}
	}
	for _, id := range ids {
		var meta struct {
			MinTime, MaxTime int64
			Stats            struct{ NumSamples, NumSeries int }
			Thanos           struct {
				Labels     map[string]string
				Downsample struct{ Resolution int64 }
				Files      []struct {
					Path string `json:"rel_path"`
					Size int64  `json:"size_bytes"`
				}
			}
		}
		data, err := os.ReadFile(filepath.Join(dir, id, "meta.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &meta); err != nil {
			t.Fatal(err)
		}
		if meta.Thanos.Labels["cluster"] != "eu1" || len(meta.Thanos.Files) != 3 || meta.Thanos.Files[1].Path != "index" || meta.Thanos.Files[1].Size == 0 || meta.Stats.NumSeries != 3 {
			t.Errorf("%+v", meta)
		}
		ir, err := index.NewFileReader(filepath.Join(dir, id, "index"), index.DecodePostingsRaw)
		if err != nil {
			t.Fatal(err)
		}
		cr, err := chunks.NewDirReader(filepath.Join(dir, id, "chunks"), anyPool{})
		if err != nil {
			t.Fatal(err)
		}
		name, value := index.AllPostingsKey()
		p, err := ir.Postings(t.Context(), name, value)
		if err != nil {
			t.Fatal(err)
		}
		var b labels.ScratchBuilder
		for p.Next() {
			var metas []chunks.Meta
			if err := ir.Series(p.At(), &b, &metas); err != nil {
				t.Fatal(err)
			}
			for _, m := range metas {
				chk, _, err := cr.ChunkOrIterable(m)
				if err != nil {
					t.Fatal(err)
				}
				var got [5][]bits
				for i, rest := 0, chk.Bytes(); i < 5; i++ {
					n, k := binary.Uvarint(rest)
					x := chunkenc.NewXORChunk()
					x.Reset(rest[k+1 : k+1+int(n)])
					rest = rest[k+1+int(n):]
					for it := x.Iterator(nil); it.Next() != chunkenc.ValNone; {
						at, v := it.At()
						got[i] = append(got[i], bits{t: at, v: math.Float64bits(v)})
					}
				}
				for k := range got[0] {
					at := got[0][k].t
					key := window{b.Labels().String(), meta.Thanos.Downsample.Resolution, at}
					w, ok := missing[key]
					if !ok || at < meta.MinTime || at >= meta.MaxTime {
						t.Errorf("%v is there in %d to %d", key, meta.MinTime, meta.MaxTime)
					}
					delete(missing, key)
					for i, want := range []float64{w.Count, w.Sum, w.Min, w.Max, w.Counter} {
						if got[i][k] != (bits{t: at, v: math.Float64bits(want)}) {
							t.Errorf("%v: aggregate %d is not %v", key, i, want)
						}
					}
				}
				if n := len(got[4]); n != len(got[0])+1 || got[4][n-1] != got[4][n-2] {
					t.Errorf("%d counters of %d windows", n, len(got[0]))
				}
			}
		}
		if err := errors.Join(p.Err(), ir.Close(), cr.Close()); err != nil {
			t.Error(err)
		}
	}
	if len(missing) > 0 {
		t.Errorf("%d windows are missing", len(missing))
	}
}

// anyPool gives chunks of any encoding, as their bytes.
type anyPool struct{}

func (anyPool) Put(chunkenc.Chunk) error { return nil }
func (anyPool) Get(_ chunkenc.Encoding, data []byte) (chunkenc.Chunk, error) {
	return bytesChunk{data: data}, nil
}
