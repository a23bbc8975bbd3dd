// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/remoteread"
)

func TestLargeBody(t *testing.T) {
	s := newServer(t, &fake{}, func(o *Options) { o.MaxFormBytes = 100 })
	for _, tc := range []struct {
		size     int
		announce bool
		want     int
	}{{50, true, 200}, {101, true, 413}, {101, false, 413}, {1 << 20, false, 413}} {
		body := "query=" + strings.Repeat("a", tc.size-6)
		r := httptest.NewRequest(http.MethodPost, "/api/v1/query", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if !tc.announce {
			r.ContentLength = -1
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != tc.want {
			t.Errorf("%+v: %d %s", tc, w.Code, w.Body)
		}
		if tc.want == 413 && !strings.Contains(w.Body.String(), "100 bytes") {
			t.Errorf("the limit is not named: %s", w.Body)
		}
	}
}

// TestUnknownParameter: it is refused, with advice, or if so configured logged.
func TestUnknownParameter(t *testing.T) {
	strict := newServer(t, &fake{}, func(*Options) {})
	for path, want := range map[string]string{
		"query=up&partial_respone=false":   "partial_respone",
		"query=up&replicaLabels=a":         "did you mean replicaLabels[]?",
		"query=up&foo=bar":                 "max_source_resolution",
		"query=up&_=1&state=active&step=1": "",
	} {
		w := httptest.NewRecorder()
		strict.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/query?"+path, nil))
		if refused := w.Code == http.StatusBadRequest; refused != (want != "") || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s, want %q", path, w.Code, w.Body, want)
		}
	}

	log, text := logged(slog.LevelDebug)
	s := newServer(t, &fake{}, func(o *Options) { o.Logger, o.IgnoreUnknownParameters = log, true })
	r := httptest.NewRequest(http.MethodGet, "/api/v1/query?query=up&foo=1&timeout=3", nil)
	r.Header.Set("X-Dashboard-Uid", "dash")
	s.ServeHTTP(httptest.NewRecorder(), r)
	if !strings.Contains(text.String(), "parameter=foo") || strings.Contains(text.String(), "parameter=timeout") {
		t.Errorf("log:\n%s", text)
	}
	for _, want := range []string{"status=200", "dashboard=dash", "completeness=complete", "report=id-1"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, text)
		}
	}
}

func TestConcurrent(t *testing.T) {
	srv := httptest.NewServer(newServer(t, &fake{}, func(o *Options) { o.MaxReports = 3 }))
	defer srv.Close()
	paths := []string{
		"/api/v1/query?query=big&time=1", "/api/v1/query?query=partial&report=1", "/api/v1/query?query=fail_exec&report=1", "/api/v1/labels",
		"/api/v1/rules", "/api/v1/stores", "/api/v1/reports/id-5", "/api/v1/openapi.json", "/api/v1/query?query=", "/api/v1/query?query=fail_panic",
	}
	want := map[string]int{}
	for _, p := range paths {
		want[p] = 200
	}
	want[paths[2]], want[paths[8]], want[paths[9]] = 422, 400, 500
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 30 {
				p := paths[(i+j)%len(paths)]
				resp, err := srv.Client().Get(srv.URL + p)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != want[p] && !strings.Contains(p, "/reports/") {
					t.Errorf("%s: %d %v", p, resp.StatusCode, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestReportRing(t *testing.T) {
	rep := func(id, text string) *report.Report {
		return &report.Report{ID: id, Query: text, Selects: []*report.Select{{
			Matchers: []string{"a"}, Backends: []*report.Row{{Detail: "d", LabelSets: []labels.Labels{labels.FromStrings("a", "b")}, MatchersSent: []string{"m"}, Notices: []string{"n"}}},
		}}, Completeness: report.Completeness{Missing: []report.Missing{{Detail: "x"}}}}
	}
	size := reportSize(rep("1", ""))
	r := newReportRing(3, 5*size)
	has := func(want ...string) {
		t.Helper()
		var got []string
		for _, id := range []string{"1", "2", "3", "4", "5", "6", "7"} {
			if r.get(id) != nil {
				got = append(got, id)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if len(r.order) != len(r.byID) {
			t.Errorf("%d in order, %d by ID", len(r.order), len(r.byID))
		}
	}
	for _, id := range []string{"1", "2", "2", "3"} {
		r.add(rep(id, ""))
	}
	has("1", "2", "3")
	r.add(rep("4", "")) // one too many
	has("2", "3", "4")
	r.add(rep("5", strings.Repeat("x", 3*size))) // needs the room of two
	has("4", "5")
	r.add(rep("6", strings.Repeat("x", 5*size))) // larger than all
	has("4", "5")
	if want := 5 * size; r.bytes > want {
		t.Errorf("%d bytes, at most %d", r.bytes, want)
	}
}

// TestErrorTypes checks that the kind of a query.Error wins over what it wraps,
// and that errors of no kind are internal.
func TestErrorTypes(t *testing.T) {
	for _, tc := range []struct {
		err    error
		status int
		typ    string
	}{
		{fmt.Errorf("x: %w", &query.Error{Kind: query.ErrBadData, Err: backend.ErrInternal}), 400, typeBadData},
		{&query.Error{Err: backend.Errorf(backend.ErrUnavailable, "x")}, 503, typeUnavailable},
		{context.Canceled, 503, typeCanceled},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), 503, typeTimeout},
		{backend.Errorf(backend.ErrUnsupported, "x"), 422, typeExecution},
		{backend.Errorf(backend.ErrInvalid, "x"), 400, typeBadData},
		{errors.New("x"), 500, typeInternal},
	} {
		if e := toAPIError(tc.err); e.status != tc.status || e.typ != tc.typ {
			t.Errorf("%v: %d %s, want %d %s", tc.err, e.status, e.typ, tc.status, tc.typ)
		}
	}
}

func matcher(t testing.TB, value string) []*labels.Matcher {
	t.Helper()
	m, err := labels.NewMatcher(labels.MatchEqual, "__name__", value)
	if err != nil {
		t.Fatal(err)
	}
	return []*labels.Matcher{m}
}

// TestRead reads with the client of the same protocol, in both forms.
func TestRead(t *testing.T) {
	f := &fake{}
	srv := httptest.NewServer(newServer(t, f, nil))
	defer srv.Close()
	for _, form := range []remoteread.ResponseType{remoteread.Samples, remoteread.Streamed} {
		c := &remoteread.Client{URL: srv.URL + "/api/v1/read", HTTP: srv.Client(), Accept: []remoteread.ResponseType{form}}
		read := func(q remoteread.Query) (map[string][]int64, error) {
			got := map[string][]int64{}
			for p, err := range c.Read(t.Context(), q) {
				if err != nil {
					return got, err
				}
				for _, ch := range p.Series.Chunks {
					enc, err := chunkenc.FromData(ch.Raw.Encoding, ch.Raw.Data)
					if err != nil {
						return got, err
					}
					it := enc.Iterator(nil)
					for it.Next() != chunkenc.ValNone {
						got[p.Series.Labels.Get("instance")] = append(got[p.Series.Labels.Get("instance")], it.AtT())
					}
				}
			}
			return got, nil
		}

		got, err := read(remoteread.Query{MinTime: 1500, MaxTime: 4000, Matchers: matcher(t, "up")})
		if err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		want := map[string][]int64{"000000": {2000, 3000, 4000}, "000001": {2000, 3000, 4000}, "000002": {2000, 3000, 4000}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", form, diff)
		}
		// Raw data, and all of it, unless the client says otherwise.
		if call := f.last(); !strings.Contains(call, "partial=false resolution=0") {
			t.Errorf("%s: %s", form, call)
		}

		got, err = read(remoteread.Query{MinTime: math.MinInt64, MaxTime: math.MaxInt64, Matchers: matcher(t, "x#200")})
		if err != nil || len(got) != 200 || len(got["000199"]) != 300 {
			t.Errorf("%s: %d series, error %v", form, len(got), err)
		}
		if got, err = read(remoteread.Query{MinTime: 5, MaxTime: 4, Matchers: matcher(t, "up")}); err != nil || len(got) != 0 {
			t.Errorf("%s: an empty range gave %v, %v", form, got, err)
		}
		for value, want := range map[string]string{
			"partial":         "b: timeout",
			"fail_exec":       "backend b",
			"late_fail_limit": "too many series",
			// Frames are on their way when it fails.
			"late_fail_unavailable#500": "backend b is missing",
			"partial#500":               "b: timeout",
		} {
			if _, err := read(remoteread.Query{MaxTime: 1e9, Matchers: matcher(t, value)}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s, %s: error %v, want %q", form, value, err, want)
			}
		}
		c.URL += "?partial_response=true&dedup=0"
		if got, err = read(remoteread.Query{MaxTime: 1e9, Matchers: matcher(t, "partial")}); err != nil || len(got) != 3 {
			t.Errorf("%s: %d series, error %v, want the part that is there", form, len(got), err)
		}
		if call := f.last(); !strings.Contains(call, "dedup=false") || strings.Contains(call, "partial=false") {
			t.Errorf("%s: %s", form, call)
		}
	}
	// A client that stops, and one that never gets an answer.
	c := &remoteread.Client{URL: srv.URL + "/api/v1/read", HTTP: srv.Client()}
	for range c.Read(t.Context(), remoteread.Query{MaxTime: 1e9, Matchers: matcher(t, "x#2000")}) {
		break
	}
}

// post sends a remote read of several queries and returns the answer.
func post(t *testing.T, s *Server, accept remoteread.ResponseType, path string, values ...string) *http.Response {
	t.Helper()
	req := &remoteread.Request{Accept: []remoteread.ResponseType{accept}}
	for _, v := range values {
		req.Queries = append(req.Queries, remoteread.Query{MaxTime: 1e9, Matchers: matcher(t, v)})
	}
	b, err := remoteread.EncodeRequest(req)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, bytes.NewReader(b)))
	return w.Result()
}

func TestReadCompleteness(t *testing.T) {
	f := &fake{}
	s := newServer(t, f, nil)
	for _, tc := range []struct {
		values []string
		want   string
		ids    int
	}{
		{[]string{"up", "x"}, "complete", 2},
		{[]string{"up", "unknown", "x"}, "unknown", 3},
		{[]string{"partial", "unknown", "x"}, "partial", 3},
		{[]string{"noreport"}, "unknown", 0},
	} {
		before := f.finished.Load()
		for _, form := range []remoteread.ResponseType{remoteread.Samples, remoteread.Streamed} {
			resp := post(t, s, form, "/api/v1/read?partial_response=1", tc.values...)
			_, _ = io.Copy(io.Discard, resp.Body)
			h := resp.Header
			if form == remoteread.Streamed {
				h = resp.Trailer
			}
			if resp.StatusCode != 200 || h.Get(headerCompleteness) != tc.want || len(h.Values(headerReportID)) != tc.ids {
				t.Errorf("%v %s: %d %v, want %s", tc.values, form, resp.StatusCode, h, tc.want)
			}
		}
		if n := f.finished.Load() - before; n != int64(2*len(tc.values)) {
			t.Errorf("%v: Finish was called %d times", tc.values, n)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	s := newServer(t, &fake{}, func(o *Options) { o.MaxReadBytes = 1000; o.MaxReadSamples = 500 })
	for _, tc := range []struct {
		path string
		body []byte
		code int
		text string
	}{
		{"/api/v1/read", []byte("no snappy"), 400, "snappy"},
		{"/api/v1/read", snappy.Encode(nil, []byte{0xff}), 400, "decode"},
		{"/api/v1/read", bytes.Repeat([]byte{1}, 2000), 400, "larger than 1000 bytes"},
		{"/api/v1/read", snappy.Encode(nil, make([]byte, 2000)), 400, "larger than 1000 bytes"},
		{"/api/v1/read?dedup=maybe", nil, 400, "dedup"},
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, tc.path, bytes.NewReader(tc.body)))
		if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.text) || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s, want %d %s", tc.path, w.Code, w.Body, tc.code, tc.text)
		}
	}
	if resp := post(t, s, 7, "/api/v1/read", "up"); resp.StatusCode != 400 {
		t.Errorf("a response type that does not exist: %d", resp.StatusCode)
	}
	if resp := post(t, s, remoteread.Samples, "/api/v1/read", "up"); resp.StatusCode != 400 {
		t.Errorf("900 samples where 500 are allowed: %d", resp.StatusCode)
	}
	if resp := post(t, s, remoteread.Samples, "/api/v1/read", "fail_internal"); resp.StatusCode != 500 {
		t.Errorf("internal error: %d", resp.StatusCode)
	}
	if resp := post(t, s, remoteread.Samples, "/api/v1/read", "fail_timeout"); resp.StatusCode != 503 {
		t.Errorf("timeout: %d", resp.StatusCode)
	}
}

func TestParseTime(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1.0006": 1001, "1.9996": 2000, "-1.5": -1500, "1435781451.781": 1435781451781, "1e3": 1000000,
		"2015-07-01T20:10:51.781Z": 1435781451781, "2015-07-01T22:10:51+02:00": 1435781451000,
	} {
		got, err := parseTime(in)
		if err != nil || got.UnixMilli() != want {
			t.Errorf("%s: %d %v, want %d", in, got.UnixMilli(), err, want)
		}
	}
}

// FuzzTimes: whatever is accepted is in bounds, survives printing, and leaves room
// for arithmetic in ms.
func FuzzTimes(f *testing.F) {
	for _, s := range []string{"0", "1.5", "-1", "NaN", "Inf", "1e300", "9.22e15", "2015-07-01T20:10:51.781Z", "0001-01-01T00:00:00Z", "5m", "1h30m", "0x1p4", "1_0", "-9.2e9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if tm, err := parseTime(s); err == nil {
			if tm.Before(minTime) || tm.After(maxTime.Add(time.Millisecond)) {
				t.Errorf("%q became %s", s, tm)
			}
			ms := tm.UnixMilli()
			if (ms > 0) != tm.After(time.UnixMilli(0)) && ms != 0 {
				t.Errorf("%q: %d ms have another sign than %s", s, ms, tm)
			}
		}
		if d, err := parseDuration(s); err == nil && strings.HasPrefix(s, "-") && d > 0 {
			t.Errorf("%q became %s", s, d)
		}
	})
}

// FuzzRequest sends any parameters to the routes that read many: never a panic
// or an internal error, always the envelope.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"query=up&start=0&end=10&step=1&match[]=up", "query=up&time=1&timeout=5s&limit=3&stats=all&report=1",
		"dedup=false&dedup_algorithm=chain&replicaLabels[]=a&partial_response=0&max_source_resolution=auto&query=1",
		`storeMatch[]={a="b"}&engine=thanos&lookback_delta=5m&shard_info={"total_shards":2}&query=x`,
		"start=-1e15&end=1e15&step=0.001&query=up", "match[]={a=~\"(\"}", "%zz", "a;b", "type=alert&group_limit=1&state=active&limit_per_metric=-3&metric=x",
	} {
		f.Add(s)
	}
	fk := &fake{}
	s := newServer(f, fk, nil)
	f.Fuzz(func(t *testing.T, raw string) {
		if strings.Contains(raw, "fail") || strings.Contains(raw, "%") && strings.Contains(raw, "%6") {
			return // the fake's own failures
		}
		for _, path := range []string{"query", "query_range", "explain", "series", "labels", "label/a/values", "rules", "targets", "metadata", "query_exemplars", "status/tsdb", "parse_query", "format_query"} {
			w := httptest.NewRecorder()
			r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/api/v1/" + path, RawQuery: raw}, Header: http.Header{}}
			s.ServeHTTP(w, r.WithContext(t.Context()))
			if w.Code >= 500 || !strings.HasPrefix(w.Body.String(), `{"status":"`) {
				t.Fatalf("%s?%s: %d %s", path, raw, w.Code, w.Body)
			}
		}
	})
}
