// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remoteread_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/remoteread"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// exchange is a recorded request to a real server, its answer, and what another
// decoder found in them.
type exchange struct {
	Server, Name, Method string
	Request, Body        []byte
	Status               int
	Headers              map[string]string
	Broken               string
	Asked                *struct {
		Types   []any `json:"accepted_response_types"`
		Queries []struct {
			Start    int64 `json:"start_timestamp_ms"`
			End      int64 `json:"end_timestamp_ms"`
			Matchers []struct {
				Name, Value string
				Type        any
			} `json:"matchers"`
		} `json:"queries"`
	}
	Answer *struct {
		Format  string
		Results []struct {
			Series []seriesSummary
		}
		Frames []struct {
			PayloadBytes int `json:"payload_bytes"`
			QueryIndex   int `json:"query_index"`
			Series       []seriesSummary
		}
		Trailing string `json:"trailing_text"`
	}
}

type seriesSummary struct {
	Labels              [][2]string
	Samples, Histograms int
	Points, First, Last [][2]string
}

func exchanges(t testing.TB) []exchange {
	t.Helper()
	f, err := os.Open("testdata/exchanges.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []exchange
	if err := json.NewDecoder(z).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// roundTripper answers with what it is, and keeps the request.
type roundTripper struct {
	status int
	header http.Header
	body   io.Reader
	req    *http.Request
	sent   []byte
}

func (r *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	r.req = req
	if req.Body != nil {
		r.sent, _ = io.ReadAll(req.Body)
	}
	return &http.Response{StatusCode: r.status, Header: r.header, Body: io.NopCloser(r.body), Request: req}, nil
}

func (e *exchange) client() (*remoteread.Client, *roundTripper) {
	rt := &roundTripper{status: e.Status, header: http.Header{}, body: bytes.NewReader(e.Body)}
	for k, v := range e.Headers {
		rt.header.Set(k, v)
	}
	return &remoteread.Client{URL: "http://server/api/v1/read", HTTP: &http.Client{Transport: rt}}, rt
}

// point prints a float sample as the recordings do.
func point(ts int64, v float64) [2]string {
	s := strconv.FormatFloat(v, 'g', -1, 64)
	switch bits := math.Float64bits(v); {
	case bits == 0x7ff0000000000002:
		s = "StaleNaN"
	case math.IsNaN(v):
		s = "NaN"
	case v == 0 && math.Signbit(v):
		s = "-0"
	}
	return [2]string{strconv.FormatInt(ts, 10), s}
}

func samePoint(a, b [2]string) bool {
	if a[0] != b[0] {
		return false
	}
	if a[1] == b[1] || strings.HasPrefix(b[1], "NaN") && a[1] == "NaN" {
		return true
	}
	x, err1 := strconv.ParseFloat(a[1], 64)
	y, err2 := strconv.ParseFloat(b[1], 64)
	return err1 == nil && err2 == nil && math.Float64bits(x) == math.Float64bits(y)
}

// compare checks a series against the summary.
func compare(t *testing.T, got backend.Series, want seriesSummary) {
	t.Helper()
	var ls [][2]string
	got.Labels.Range(func(l labels.Label) {
		if len(l.Value) > 300 { // Shortened in the summaries.
			l.Value = fmt.Sprintf("%s...(%d bytes)", l.Value[:16], len(l.Value))
		}
		ls = append(ls, [2]string{l.Name, l.Value})
	})
	slices.SortFunc(want.Labels, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	if d := cmp.Diff(want.Labels, ls, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("labels (-want +got):\n%s", d)
		return
	}
	var points [][2]string
	hist := 0
	for _, c := range got.Chunks {
		chunk, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		it := chunk.Iterator(nil)
		for vt := it.Next(); vt != chunkenc.ValNone; vt = it.Next() {
			if n++; vt == chunkenc.ValFloat {
				points = append(points, point(it.At()))
			} else {
				hist++
			}
			if at := it.AtT(); at < c.MinTime || at > c.MaxTime {
				t.Errorf("%s: sample at %d outside its chunk %d..%d", got.Labels, at, c.MinTime, c.MaxTime)
			}
		}
		if err := it.Err(); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			t.Errorf("%s: a chunk without samples", got.Labels)
		}
	}
	if len(points) != want.Samples || hist != want.Histograms {
		t.Errorf("%s: %d samples and %d histograms, want %d and %d", got.Labels, len(points), hist, want.Samples, want.Histograms)
		return
	}
	check := func(got, want [][2]string) {
		t.Helper()
		if len(want) > 0 && !slices.EqualFunc(got, want, samePoint) {
			t.Errorf("points %v, want %v", got, want)
		}
	}
	check(points, want.Points)
	if n := len(want.First); n > 0 {
		check(points[:n], want.First)
		check(points[len(points)-n:], want.Last)
	}
}

// TestRecordedRequests decodes what another client sent, and encodes it again.
func TestRecordedRequests(t *testing.T) {
	checked := 0
	for _, e := range exchanges(t) {
		if e.Asked == nil || e.Method != http.MethodPost || strings.Contains(e.Name, "garbage") {
			continue
		}
		t.Run(e.Server+"/"+e.Name, func(t *testing.T) {
			req, err := remoteread.DecodeRequest(bytes.NewReader(e.Request), remoteread.RequestLimits{})
			if strings.Contains(e.Name, "bad-") || strings.Contains(e.Name, "then-error") || strings.Contains(e.Name, "not-snappy") || strings.Contains(e.Name, "empty-body") {
				if !errors.Is(err, backend.ErrInvalid) {
					t.Fatalf("error %v, want one of kind invalid", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(req.Queries) != len(e.Asked.Queries) || len(req.Accept) != len(e.Asked.Types) {
				t.Fatalf("%d queries, %d types", len(req.Queries), len(req.Accept))
			}
			for i, q := range req.Queries {
				w := e.Asked.Queries[i]
				if q.MinTime != w.Start || q.MaxTime != w.End || len(q.Matchers) != len(w.Matchers) {
					t.Fatalf("query %d is %+v, want %+v", i, q, w)
				}
				for j, m := range q.Matchers {
					typ := map[string]labels.MatchType{"EQ": labels.MatchEqual, "NEQ": labels.MatchNotEqual, "RE": labels.MatchRegexp, "NRE": labels.MatchNotRegexp}[fmt.Sprint(w.Matchers[j].Type)]
					if m.Name != w.Matchers[j].Name || m.Value != w.Matchers[j].Value || m.Type != typ {
						t.Errorf("matcher %s, want %+v", m, w.Matchers[j])
					}
				}
			}
			// Our encoding decodes to the same bytes: theirs, if they packed enums.
			b, err := remoteread.EncodeRequest(req)
			if err != nil {
				t.Fatal(err)
			}
			ours, err1 := snappy.Decode(nil, b)
			theirs, err2 := snappy.Decode(nil, e.Request)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(ours, theirs) {
				t.Errorf("encoded again:\n%x\nwas\n%x", ours, theirs)
			}
		})
		checked++
	}
	if checked < 100 {
		t.Errorf("only %d requests checked", checked)
	}
}

// TestRecordedAnswers decodes answers of real servers.
func TestRecordedAnswers(t *testing.T) {
	type count struct{ streamed, samples, failed, gzip int }
	var n count
	for _, e := range exchanges(t) {
		if e.Asked == nil || e.Method != http.MethodPost {
			continue
		}
		t.Run(e.Server+"/"+e.Name, func(t *testing.T) {
			c, _ := e.client()
			var (
				got    []backend.Series
				failed error
				typ    remoteread.ResponseType
			)
			for p, err := range c.Read(context.Background(), remoteread.Query{}) {
				if err != nil {
					failed = err
					break
				}
				got, typ = append(got, p.Series), p.Type
			}
			switch {
			case e.Status != http.StatusOK:
				n.failed++
				if failed == nil || !strings.Contains(failed.Error(), strconv.Itoa(e.Status)) {
					t.Errorf("error %v for status %d", failed, e.Status)
				}
				want := map[int]error{400: backend.ErrInvalid, 500: backend.ErrInternal}[e.Status]
				if strings.Contains(string(e.Body), "exceeded sample limit") {
					want = backend.ErrLimit
				}
				if want != nil && backend.Kind(failed) != want {
					t.Errorf("error %v is of kind %v, want %v", failed, backend.Kind(failed), want)
				}
				return
			case e.Broken != "":
				// Gzip around snappy, with and without a header that says so.
				n.gzip++
				if failed != nil || len(got) != 4 {
					t.Errorf("%d series, error %v", len(got), failed)
				}
				return
			case e.Answer == nil:
				t.Fatalf("nothing is known about this answer")
			case e.Answer.Trailing != "":
				n.failed++
				var text *remoteread.TextError
				if !errors.As(failed, &text) || text.Text != strings.TrimSpace(e.Answer.Trailing) {
					t.Errorf("error %v, want the text %q", failed, e.Answer.Trailing)
				}
			case len(e.Asked.Queries) != 1:
				several := len(e.Answer.Results) > 1
				for _, f := range e.Answer.Frames {
					several = several || f.QueryIndex > 0
				}
				if several && failed == nil && len(got) > 0 {
					last := e.Answer.Results
					if len(last) == 0 || len(last[len(last)-1].Series) > 0 {
						t.Error("an answer to several queries was taken for one")
					}
				}
				return
			case failed != nil:
				t.Fatal(failed)
			}
			var want []seriesSummary
			if e.Answer.Format == "SAMPLES" {
				n.samples++
				for _, r := range e.Answer.Results {
					want = append(want, r.Series...)
				}
				if len(got) > 0 && typ != remoteread.Samples {
					t.Error("wrong type")
				}
			} else {
				n.streamed++
				for _, f := range e.Answer.Frames {
					want = append(want, f.Series...)
				}
				if len(got) > 0 && typ != remoteread.Streamed {
					t.Error("wrong type")
				}
			}
			if len(got) != len(want) {
				t.Fatalf("%d series, want %d", len(got), len(want))
			}
			for i := range got {
				compare(t, got[i], want[i])
			}
		})
	}
	if n.streamed < 20 || n.samples < 100 || n.failed < 10 || n.gzip < 3 {
		t.Errorf("too few exchanges checked: %+v", n)
	}
}

// TestRecordedFrames writes recorded frames again, byte for byte.
func TestRecordedFrames(t *testing.T) {
	checked := 0
	for _, e := range exchanges(t) {
		if e.Answer == nil || e.Answer.Format != "STREAMED_XOR_CHUNKS" {
			continue
		}
		fr := remoteread.NewFrameReader(bytes.NewReader(e.Body), 0)
		var again []byte
		for _, f := range e.Answer.Frames {
			b, err := fr.Next()
			if err != nil || len(b) != f.PayloadBytes {
				t.Fatalf("%s: %d bytes, error %v, want %d", e.Name, len(b), err, f.PayloadBytes)
			}
			again = remoteread.AppendFrame(again, b)
			checked++
		}
		if !bytes.HasPrefix(e.Body, again) {
			t.Errorf("%s: written again, the frames differ", e.Name)
		}
		if _, err := fr.Next(); (err == io.EOF) != (e.Answer.Trailing == "") {
			t.Errorf("%s: at the end: %v", e.Name, err)
		}
	}
	if checked < 100 {
		t.Errorf("only %d frames checked", checked)
	}
}
