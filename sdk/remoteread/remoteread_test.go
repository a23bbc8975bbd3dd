// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remoteread_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/remoteread"
	"github.com/promweave/promweave/sdk/remoteread/readpb"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

var all = remoteread.Query{MinTime: math.MinInt64, MaxTime: math.MaxInt64}

// floats makes samples at 0, 1, ... with the time as value.
func floats(from, n int) []shaping.Sample {
	out := make([]shaping.Sample, n)
	for i := range out {
		out[i] = shaping.Sample{T: int64(from + i), F: float64(from + i)}
	}
	return out
}

func chunks(t testing.TB, samples []shaping.Sample) []backend.Chunk {
	t.Helper()
	out, err := remoteread.EncodeChunks(samples)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// dump prints the samples of a series, for comparison.
func dump(t testing.TB, s backend.Series) []string {
	t.Helper()
	var out []string
	for _, c := range s.Chunks {
		chunk, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
		if err != nil {
			t.Fatal(err)
		}
		it := chunk.Iterator(nil)
		for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
			switch vt {
			case chunkenc.ValFloat:
				ts, v := it.At()
				out = append(out, fmt.Sprintf("%s %d %x", s.Labels, ts, math.Float64bits(v)))
			case chunkenc.ValHistogram:
				ts, h := it.AtHistogram(nil)
				out = append(out, fmt.Sprintf("%s %d %s hint %d", s.Labels, ts, h, h.CounterResetHint))
			case chunkenc.ValFloatHistogram:
				ts, h := it.AtFloatHistogram(nil)
				out = append(out, fmt.Sprintf("%s %d float %s hint %d", s.Labels, ts, h, h.CounterResetHint))
			}
		}
		if it.Err() != nil {
			t.Fatal(it.Err())
		}
	}
	return out
}

// batches yields the series, and then fails if err is not nil.
func batches(err error, series ...backend.Series) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		b := backend.NewBatch(len(series))
		for _, s := range series {
			b.Append(s)
		}
		if yield(b, nil) && err != nil {
			yield(nil, err)
		}
	}
}

// exchangeWith serves one answer to one Read, without a network.
func exchangeWith(h http.HandlerFunc, q remoteread.Query) ([]backend.Series, error) {
	c := &remoteread.Client{URL: "http://user:secret@server/read", HTTP: &http.Client{Transport: handler(h)}}
	var out []backend.Series
	for p, err := range c.Read(context.Background(), q) {
		if err != nil {
			return out, err
		}
		out = append(out, p.Series)
	}
	return out, nil
}

type handler http.HandlerFunc

func (h handler) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h(w, r)
	return w.Result(), nil
}

// TestHeaders checks what the client sends.
func TestHeaders(t *testing.T) {
	_, err := exchangeWith(func(w http.ResponseWriter, r *http.Request) {
		got := map[string]string{}
		for _, k := range []string{"Content-Type", "Content-Encoding", "X-Prometheus-Remote-Read-Version", "Accept-Encoding"} {
			got[k] = r.Header.Get(k)
		}
		want := map[string]string{
			"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy",
			"X-Prometheus-Remote-Read-Version": "0.1.0", "Accept-Encoding": "snappy",
		}
		if d := cmp.Diff(want, got); d != "" || r.Method != http.MethodPost {
			t.Errorf("%s, headers (-want +got):\n%s", r.Method, d)
		}
		req, err := remoteread.DecodeRequest(r.Body, remoteread.RequestLimits{})
		if err != nil {
			t.Fatal(err)
		}
		if len(req.Queries) != 1 || req.Queries[0].Hints != nil {
			t.Errorf("%d queries, or hints were sent", len(req.Queries))
		}
		if d := cmp.Diff([]remoteread.ResponseType{remoteread.Streamed, remoteread.Samples}, req.Accept); d != "" {
			t.Error(d)
		}
		w.Header().Set("Content-Type", "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse")
	}, remoteread.Query{MaxTime: 1, Hints: &readpb.ReadHints{Func: "rate"}})
	if err != nil {
		t.Error(err)
	}
}

func TestNegotiate(t *testing.T) {
	for _, c := range []struct {
		in   []remoteread.ResponseType
		want remoteread.ResponseType
		bad  bool
	}{
		{in: nil, want: remoteread.Samples},
		{in: []remoteread.ResponseType{remoteread.Streamed, remoteread.Samples}, want: remoteread.Streamed},
		{in: []remoteread.ResponseType{remoteread.Samples, remoteread.Streamed}, want: remoteread.Samples},
		{in: []remoteread.ResponseType{99, remoteread.Streamed}, want: remoteread.Streamed},
		{in: []remoteread.ResponseType{99}, bad: true},
	} {
		got, err := remoteread.Negotiate(c.in)
		if got != c.want || (err != nil) != c.bad || c.bad && remoteread.Status(err) != 400 {
			t.Errorf("%v: %v, %v", c.in, got, err)
		}
	}
}

func TestRequestLimits(t *testing.T) {
	many := &remoteread.Request{}
	for range 5 {
		many.Queries = append(many.Queries, remoteread.Query{Matchers: []*labels.Matcher{
			labels.MustNewMatcher(labels.MatchRegexp, "a", strings.Repeat("a", 1000)),
		}})
	}
	b, err := remoteread.EncodeRequest(many)
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := (&readpb.ReadRequest{Queries: []*readpb.Query{{Matchers: []*readpb.LabelMatcher{{Type: 7, Name: "a"}}}}}).MarshalVTStrict()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		body  []byte
		limit remoteread.RequestLimits
		want  error
	}{
		"good":         {body: b},
		"queries":      {body: b, limit: remoteread.RequestLimits{Queries: 4}, want: backend.ErrLimit},
		"decompressed": {body: b, limit: remoteread.RequestLimits{Bytes: 4000}, want: backend.ErrLimit},
		"compressed":   {body: b, limit: remoteread.RequestLimits{Bytes: 10}, want: backend.ErrLimit},
		// A block that claims 2 GB must not cost them.
		"bomb":         {body: []byte{0xff, 0xff, 0xff, 0xff, 0x07, 0}, want: backend.ErrLimit},
		"matcher type": {body: snappy.Encode(nil, unknown), want: backend.ErrInvalid},
		"empty":        {want: backend.ErrInvalid},
	} {
		if _, err := remoteread.DecodeRequest(bytes.NewReader(c.body), c.limit); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
	if _, err := remoteread.DecodeRequest(iotest.ErrReader(io.ErrClosedPipe), remoteread.RequestLimits{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the body's error is lost: %v", err)
	}
}

func frame(t testing.TB, query int64, series ...*readpb.ChunkedSeries) []byte {
	t.Helper()
	b, err := (&readpb.ChunkedReadResponse{ChunkedSeries: series, QueryIndex: query}).MarshalVTStrict()
	if err != nil {
		t.Fatal(err)
	}
	return remoteread.AppendFrame(nil, b)
}

func pbSeries(value string, c ...*readpb.Chunk) *readpb.ChunkedSeries {
	return &readpb.ChunkedSeries{Labels: []*prompb.Label{{Name: "a", Value: value}}, Chunks: c}
}

// TestBrokenStreams are answers that went wrong after status 200.
func TestBrokenStreams(t *testing.T) {
	xor := &readpb.Chunk{MinTimeMs: 0, MaxTimeMs: 2, Type: readpb.Chunk_XOR, Data: chunks(t, floats(0, 3))[0].Raw.Data}
	good := frame(t, 0, pbSeries("1", xor))
	flip := bytes.Clone(good)
	flip[len(flip)-1] ^= 1
	with := func(more ...[]byte) []byte { return bytes.Join(append([][]byte{good}, more...), nil) }
	for name, c := range map[string]struct {
		body []byte
		kind error
		text string
		n    int
	}{
		"good":              {body: with(good), n: 2},
		"nothing":           {body: nil},
		"checksum":          {body: with(flip), kind: backend.ErrInternal, text: "checksum", n: 1},
		"text":              {body: with([]byte("expanding series: too many\nopen files\n")), kind: backend.ErrInternal, text: "after 1 frames: expanding series: too many open files", n: 1},
		"text of 2 kB":      {body: with([]byte(strings.Repeat("too long é ", 200))), kind: backend.ErrInternal, text: "after 1 frames: too long é", n: 1},
		"sample limit":      {body: []byte("exceeded sample limit (5)\n"), kind: backend.ErrLimit, text: "after 0 frames: exceeded"},
		"cut in length":     {body: with([]byte{0x80}), kind: backend.ErrUnavailable, text: "ends too early", n: 1},
		"cut in checksum":   {body: with(good[:3]), kind: backend.ErrUnavailable, text: "ends too early", n: 1},
		"cut in payload":    {body: with(good[:len(good)-2]), kind: backend.ErrUnavailable, text: "ends too early", n: 1},
		"above the cap":     {body: with([]byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0}), kind: backend.ErrInternal, text: "above the cap", n: 1},
		"length overflow":   {body: with(bytes.Repeat([]byte{0xff}, 11)), kind: backend.ErrInternal, text: "overflows", n: 1},
		"not a message":     {body: remoteread.AppendFrame(nil, []byte{0x0a, 0x55}), kind: backend.ErrInternal},
		"other query":       {body: frame(t, 1, pbSeries("1", xor)), kind: backend.ErrInternal, text: "query 1"},
		"chunk type 0":      {body: frame(t, 0, pbSeries("1", &readpb.Chunk{Data: xor.Data})), kind: backend.ErrInternal, text: "unknown type"},
		"chunk type 9":      {body: frame(t, 0, pbSeries("1", &readpb.Chunk{Type: 9, Data: xor.Data})), kind: backend.ErrInternal, text: "unknown type"},
		"chunk too short":   {body: frame(t, 0, pbSeries("1", &readpb.Chunk{Type: 2, Data: []byte{0, 1}})), kind: backend.ErrInternal, text: "header"},
		"chunk backwards":   {body: frame(t, 0, pbSeries("1", &readpb.Chunk{Type: 1, MinTimeMs: 1, Data: xor.Data})), kind: backend.ErrInternal, text: "before it begins"},
		"chunk empty":       {body: frame(t, 0, pbSeries("1", &readpb.Chunk{Type: 1, Data: []byte{0, 0}})), n: 1},
		"not UTF-8":         {body: frame(t, 0, pbSeries("\xff", xor)), kind: backend.ErrInternal, text: "UTF-8"},
		"a label twice":     {body: frame(t, 0, &readpb.ChunkedSeries{Labels: []*prompb.Label{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}}}), kind: backend.ErrInternal, text: "twice"},
		"a nameless label":  {body: frame(t, 0, &readpb.ChunkedSeries{Labels: []*prompb.Label{{Value: "1"}}}), kind: backend.ErrInternal, text: "without a name"},
		"labels to arrange": {body: frame(t, 0, &readpb.ChunkedSeries{Labels: []*prompb.Label{{Name: "b", Value: "1"}, {Name: "a", Value: "2"}, {Name: "c"}}}), n: 1},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := exchangeWith(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse")
				w.Write(c.body)
			}, all)
			if backend.Kind(err) != c.kind || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %q of kind %v", err, c.text, c.kind)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows a password: %v", err)
			}
			if len(got) != c.n {
				t.Fatalf("%d series, want %d", len(got), c.n)
			}
			if name == "labels to arrange" && got[0].Labels.String() != `{a="2", b="1"}` {
				t.Errorf("labels %s", got[0].Labels)
			}
		})
	}
}

// TestAnswersThatAreNone are answers of something else than remote read.
func TestAnswersThatAreNone(t *testing.T) {
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		kind error
		text string
	}{
		"web page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<html>log in first</html>")
		}, backend.ErrInternal, "log in first"},
		"other stream": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-streamed-protobuf; proto=else")
		}, backend.ErrInternal, "something else"},
		"not snappy": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-protobuf")
			io.WriteString(w, "hello")
		}, backend.ErrInternal, "snappy"},
		"not found": {func(w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) }, backend.ErrUnsupported, "check the URL"},
		"forbidden": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, backend.ErrDenied, "credentials"},
		"busy":      {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusServiceUnavailable) }, backend.ErrUnavailable, "busy"},
		"failed":    {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "\x00\x01", 500) }, backend.ErrInternal, "Internal Server Error"},
	} {
		if _, err := exchangeWith(c.h, all); backend.Kind(err) != c.kind || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: error %v, want %q of kind %v", name, err, c.text, c.kind)
		}
	}
	c := &remoteread.Client{URL: "http://server/", MaxResponse: 10, HTTP: &http.Client{Transport: handler(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-protobuf")
		w.Write([]byte{0xff, 0xff, 0xff, 0xff, 0x07, 0})
	})}}
	for _, err := range c.Read(context.Background(), all) {
		if backend.Kind(err) != backend.ErrLimit {
			t.Errorf("2 GB in a snappy header: %v", err)
		}
	}
}

func TestEncodeChunks(t *testing.T) {
	in := append(floats(100, 131), floats(0, 100)...)
	in = append(in, shaping.Sample{T: 7, F: 1}, shaping.Sample{T: 7, F: 42})
	got := chunks(t, in)
	if len(got) != 2 || got[0].MinTime != 0 || got[0].MaxTime != 119 || got[1].MinTime != 120 || got[1].MaxTime != 230 {
		t.Fatalf("chunks %+v", got)
	}
	d := dump(t, backend.Series{Chunks: got})
	if len(d) != 231 || d[7] != fmt.Sprintf("{} 7 %x", math.Float64bits(42)) {
		t.Errorf("%d samples, at 7: %s", len(d), d[7])
	}
	if got := chunks(t, nil); len(got) != 0 {
		t.Errorf("nothing became %v", got)
	}
}

func intHistogram(n int64) *histogram.Histogram {
	return &histogram.Histogram{
		Schema: 1, Count: uint64(2 * n), Sum: float64(n), PositiveSpans: []histogram.Span{{Offset: 1, Length: 2}}, PositiveBuckets: []int64{n, 0},
	}
}

// mixed is a series with all kinds of samples.
func mixed(t *testing.T) backend.Series {
	s := floats(0, 300)
	s[3].F = math.Float64frombits(0x7ff0000000000002)
	s[4].F = math.Copysign(0, -1)
	s[5].F = math.Inf(-1)
	for i := 300; i < 500; i++ {
		h := intHistogram(int64(i % 170)) // With a reset in a chunk.
		s = append(s, shaping.Sample{T: int64(i), H: h})
	}
	for i := 500; i < 700; i++ {
		s = append(s, shaping.Sample{T: int64(i), FH: intHistogram(int64(i)).ToFloat(nil)})
	}
	s = append(s, shaping.Sample{T: 700, H: &histogram.Histogram{
		Schema: -53, Count: 3, Sum: 4, PositiveSpans: []histogram.Span{{Length: 2}}, PositiveBuckets: []int64{1, 1}, CustomValues: []float64{1, 2},
	}}, shaping.Sample{T: 701, H: &histogram.Histogram{Schema: 3, Sum: 1, CounterResetHint: histogram.GaugeType}})
	return backend.Series{Labels: labels.FromStrings("__name__", "m", "k", "日本"), Chunks: chunks(t, s)}
}

// TestRoundTrip sends series through both forms of an answer.
func TestRoundTrip(t *testing.T) {
	a := mixed(t)
	b := backend.Series{Labels: labels.FromStrings("z", "1"), Chunks: chunks(t, floats(5, 10))}
	want := append(dump(t, a), dump(t, b)...)
	flat := func(series []backend.Series) (out []string) {
		for _, s := range series {
			out = append(out, dump(t, s)...)
		}
		return out
	}

	for _, size := range []int{0, 1000, 1} {
		got, err := exchangeWith(func(w http.ResponseWriter, _ *http.Request) {
			if err := remoteread.WriteStreamed(w, []iter.Seq2[*backend.Batch, error]{batches(nil, a, b)}, remoteread.StreamOptions{Frame: size}); err != nil {
				t.Error(err)
			}
		}, all)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, flat(got)); d != "" {
			t.Errorf("streamed in frames of %d (-want +got):\n%s", size, d)
		}
		// One series a frame; with a tiny limit one chunk a frame.
		if n := map[int]int{0: 2, 1: len(a.Chunks) + 1}[size]; n > 0 && len(got) != n || size == 1000 && (len(got) < 4 || len(got) >= len(a.Chunks)) {
			t.Errorf("frames of %d: %d of them for %d chunks", size, len(got), len(a.Chunks))
		}
	}

	got, err := exchangeWith(func(w http.ResponseWriter, _ *http.Request) {
		err := remoteread.WriteSamples(w, []remoteread.Query{all}, []iter.Seq2[remoteread.SampleSeries, error]{sampleSeries(t, a, b)}, remoteread.SamplesOptions{})
		if err != nil {
			t.Error(err)
		}
	}, all)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, flat(got)); d != "" {
		t.Errorf("as samples (-want +got):\n%s", d)
	}
	// The range is cut exactly, and a series without samples is left out.
	got, err = exchangeWith(func(w http.ResponseWriter, _ *http.Request) {
		q := []remoteread.Query{{MinTime: 20, MaxTime: 22}}
		if err := remoteread.WriteSamples(w, q, []iter.Seq2[remoteread.SampleSeries, error]{sampleSeries(t, a, b)}, remoteread.SamplesOptions{Limit: 3}); err != nil {
			t.Error(err)
		}
	}, all)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want[20:23], flat(got)); d != "" || len(got) != 1 {
		t.Errorf("cut to a range (-want +got):\n%s", d)
	}
}

func sampleSeries(t *testing.T, series ...backend.Series) iter.Seq2[remoteread.SampleSeries, error] {
	return func(yield func(remoteread.SampleSeries, error) bool) {
		for _, s := range series {
			var parts []chunkenc.Iterable
			for _, c := range s.Chunks {
				x, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
				if err != nil {
					t.Fatal(err)
				}
				parts = append(parts, x)
			}
			it := storage.ChainSampleIteratorFromIterables(nil, parts)
			if !yield(remoteread.SampleSeries{Labels: s.Labels, Samples: it}, nil) {
				return
			}
		}
	}
}

// TestServerFailures checks what a client sees of them.
func TestServerFailures(t *testing.T) {
	small := backend.Series{Labels: labels.FromStrings("a", "1"), Chunks: chunks(t, floats(0, 10))}
	large := backend.Series{Labels: labels.FromStrings("b", strings.Repeat("x", 100_000)), Chunks: chunks(t, floats(0, 10))}
	boom := backend.Errorf(backend.ErrUnavailable, "store eu is down")
	stream := func(opts remoteread.StreamOptions, seq iter.Seq2[*backend.Batch, error]) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if remoteread.WriteStreamed(w, []iter.Seq2[*backend.Batch, error]{seq}, opts) == nil {
				t.Error("no error")
			}
		}
	}
	samples := func(opts remoteread.SamplesOptions, seq iter.Seq2[remoteread.SampleSeries, error]) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if remoteread.WriteSamples(w, []remoteread.Query{all}, []iter.Seq2[remoteread.SampleSeries, error]{seq}, opts) == nil {
				t.Error("no error")
			}
		}
	}
	missing := func(yield func(*backend.Batch, error) bool) {
		yield(backend.NewNotices(backend.Notice{Kind: backend.NoticeMissing, Text: "half is gone"}), nil)
	}
	down := small
	down.Chunks = []backend.Chunk{{Aggregates: &backend.AggregateChunks{}}}
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		kind error
		text string
		n    int
	}{
		"before the first byte": {stream(remoteread.StreamOptions{}, batches(boom)), backend.ErrUnavailable, "status 503: store eu is down", 0},
		"early":                 {stream(remoteread.StreamOptions{}, batches(boom, small)), backend.ErrUnavailable, "status 503: store eu is down", 0},
		"late":                  {stream(remoteread.StreamOptions{}, batches(boom, small, large)), backend.ErrInternal, "after 2 frames: store eu is down", 2},
		"missing data":          {stream(remoteread.StreamOptions{}, missing), backend.ErrUnavailable, "half is gone", 0},
		"refused notice": {stream(remoteread.StreamOptions{OnNotice: func(int, backend.Notice) error { return boom }}, missing),
			backend.ErrUnavailable, "store eu", 0},
		"downsampled":   {stream(remoteread.StreamOptions{}, batches(nil, down)), backend.ErrUnsupported, "downsampled", 0},
		"sample limit":  {samples(remoteread.SamplesOptions{Limit: 19}, sampleSeries(t, small, small)), backend.ErrLimit, "status 400: exceeded sample limit (19)", 0},
		"byte limit":    {samples(remoteread.SamplesOptions{MaxBytes: 10_000}, sampleSeries(t, small, large)), backend.ErrInvalid, "larger than 10000", 0},
		"samples, late": {samples(remoteread.SamplesOptions{}, func(y func(remoteread.SampleSeries, error) bool) { y(remoteread.SampleSeries{}, boom) }), backend.ErrUnavailable, "store eu", 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := exchangeWith(c.h, all)
			if backend.Kind(err) != c.kind || !strings.Contains(err.Error(), c.text) || len(got) != c.n {
				t.Errorf("%d series, error %v, want %d and %q of kind %v", len(got), err, c.n, c.text, c.kind)
			}
		})
	}
	// A limit of samples is per query.
	w := httptest.NewRecorder()
	twice := []iter.Seq2[remoteread.SampleSeries, error]{sampleSeries(t, small), sampleSeries(t, small)}
	if err := remoteread.WriteSamples(w, []remoteread.Query{all, all}, twice, remoteread.SamplesOptions{Limit: 10}); err != nil || w.Code != 200 {
		t.Errorf("status %d, error %v", w.Code, err)
	}
	b, err := snappy.Decode(nil, w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var pb readpb.ReadResponse
	if err := pb.UnmarshalVT(b); err != nil || len(pb.Results) != 2 || len(pb.Results[1].Timeseries) != 1 {
		t.Errorf("%v, error %v", &pb, err)
	}
}

// TestCancel breaks off, and has the context end, in the middle of a stream.
func TestCancel(t *testing.T) {
	for _, how := range []string{"break", "cancel", "broken connection"} {
		t.Run(how, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(context.Background())
			defer cancel(nil)
			why := errors.New("enough")
			r, w := io.Pipe()
			one := frame(t, 0, pbSeries("1"))
			done := make(chan struct{})
			go func() {
				defer close(done)
				w.Write(one)
				if how == "broken connection" {
					w.CloseWithError(io.ErrUnexpectedEOF)
				}
			}()
			rt := roundTripFunc(func(req *http.Request) (*http.Response, error) {
				// Like a transport, the body fails when the context ends.
				context.AfterFunc(req.Context(), func() { w.CloseWithError(req.Context().Err()) })
				return &http.Response{StatusCode: 200, Body: r, Header: http.Header{"Content-Type": {"application/x-streamed-protobuf"}}}, nil
			})
			c := remoteread.Client{URL: "http://x/", HTTP: &http.Client{Transport: rt}}
			n := 0
			var last error
			for _, err := range c.Read(ctx, all) {
				if err != nil {
					last = err
					break
				}
				n++
				if how == "break" {
					break
				}
				if how == "cancel" {
					cancel(why)
				}
			}
			if n != 1 {
				t.Errorf("%d series", n)
			}
			if how == "cancel" && !errors.Is(last, why) {
				t.Errorf("error %v does not say why", last)
			}
			if how == "broken connection" && backend.Kind(last) != backend.ErrUnavailable {
				t.Errorf("error %v", last)
			}
			<-done
			if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the body was left open: %v", err)
			}
		})
	}
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func FuzzFrames(f *testing.F) {
	for _, e := range exchanges(f) {
		if e.Answer != nil && e.Answer.Format != "SAMPLES" && len(e.Body) < 4000 {
			f.Add(e.Body)
			if b, err := remoteread.NewFrameReader(bytes.NewReader(e.Body), 0).Next(); err == nil {
				f.Add(b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		// As a stream, and as the payload of a frame, which gets past the checksum.
		for _, body := range [][]byte{body, remoteread.AppendFrame(nil, body)} {
			got, _ := exchangeWith(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/x-streamed-protobuf")
				w.Write(body)
			}, all)
			for _, s := range got {
				checkSeries(t, s)
			}
		}
	})
}

func FuzzSamples(f *testing.F) {
	for _, e := range exchanges(f) {
		if b, err := snappy.Decode(nil, e.Body); err == nil && len(b) < 4000 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n := 0
		for s, err := range remoteread.DecodeSamples(body) {
			if err != nil {
				return
			}
			checkSeries(t, s.Series)
			dump(t, s.Series)
			n++
		}
		// What is good for us is good for the generated decoder.
		var pb readpb.ReadResponse
		if err := pb.UnmarshalVT(body); err != nil {
			return // It looks into fields that are skipped here.
		}
		for _, r := range pb.Results {
			n -= len(r.Timeseries)
		}
		if n != 0 {
			t.Errorf("%d series more than the generated decoder finds", n)
		}
	})
}

func FuzzRequest(f *testing.F) {
	for _, e := range exchanges(f) {
		f.Add(e.Request)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := remoteread.DecodeRequest(bytes.NewReader(body), remoteread.RequestLimits{})
		if err != nil {
			return
		}
		b, err := remoteread.EncodeRequest(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remoteread.DecodeRequest(bytes.NewReader(b), remoteread.RequestLimits{Bytes: 64 << 20}); err != nil {
			t.Fatal(err)
		}
	})
}

func checkSeries(t *testing.T, s backend.Series) {
	if name, dup := s.Labels.HasDuplicateLabelNames(); dup {
		t.Errorf("label %q twice", name)
	}
	last := ""
	s.Labels.Range(func(l labels.Label) {
		if l.Name <= last || l.Value == "" {
			t.Errorf("labels %s", s.Labels)
		}
		last = l.Name
	})
	for _, c := range s.Chunks {
		if c.MinTime > c.MaxTime || !chunkenc.IsValidEncoding(c.Raw.Encoding) {
			t.Errorf("chunk %+v", c)
		}
	}
}

func BenchmarkStream(b *testing.B) {
	s := backend.Series{Labels: labels.FromStrings("__name__", "m", "k", "v"), Chunks: chunks(b, floats(0, 5760))}
	w := httptest.NewRecorder()
	series := make([]backend.Series, 200)
	for i := range series {
		series[i] = s
	}
	if err := remoteread.WriteStreamed(w, []iter.Seq2[*backend.Batch, error]{batches(nil, series...)}, remoteread.StreamOptions{}); err != nil {
		b.Fatal(err)
	}
	body := w.Body.Bytes()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		got, err := exchangeWith(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-streamed-protobuf")
			w.Write(body)
		}, all)
		if err != nil || len(got) != 200 {
			b.Fatal(err)
		}
	}
}

func BenchmarkSamples(b *testing.B) {
	var ts prompb.TimeSeries
	for i := range 5760 {
		ts.Samples = append(ts.Samples, &prompb.Sample{Timestamp: int64(i) * 15000, Value: float64(i) / 7})
	}
	var r readpb.QueryResult
	for i := range 200 {
		ts := &prompb.TimeSeries{Labels: []*prompb.Label{{Name: "k", Value: fmt.Sprint(i)}}, Samples: ts.Samples}
		r.Timeseries = append(r.Timeseries, ts)
	}
	body, err := (&readpb.ReadResponse{Results: []*readpb.QueryResult{&r}}).MarshalVTStrict()
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		for _, err := range remoteread.DecodeSamples(body) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}
