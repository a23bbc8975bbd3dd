// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package prometheus_test

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/backends/prometheus"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/remoteread"
	"github.com/promweave/promweave/sdk/storepb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const base = 1_795_287_600_000

var euR1 = labels.FromStrings("region", "eu", "replica", "r1")

func open(t testing.TB, f *fake, change func(*prometheus.Config)) *prometheus.Backend {
	t.Helper()
	if f.lowest == "" {
		f.lowest = "1.7952876e+12"
	}
	cfg := prometheus.Config{URL: "http://user:secret@server:9090/prom/", Client: f.client()}
	if change != nil {
		change(&cfg)
	}
	b, err := prometheus.New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// TestContract runs every kind of call in every mode against the fake.
func TestContract(t *testing.T) {
	for name, c := range map[string]struct {
		ext               labels.Labels
		overlap, noStream bool
		mode              prometheus.ReadMode
		deaf              bool
	}{
		"streamed":               {ext: euR1},
		"streamed, no externals": {},
		"early external":         {ext: labels.FromStrings("AA", "x", "region", "eu", "zzz", "y")},
		"overlap":                {ext: euR1, overlap: true},
		"samples":                {ext: euR1, overlap: true, mode: prometheus.ReadSamples},
		"samples for want":       {ext: euR1, noStream: true},
		"streamed only":          {ext: euR1, mode: prometheus.ReadStreamed},
		"no matchers for lists":  {ext: euR1, overlap: true, deaf: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{data: dataset(base, c.overlap), ext: c.ext, noStream: c.noStream, deaf: c.deaf}
			b := open(t, f, func(cfg *prometheus.Config) { cfg.ReadMode = c.mode })
			contract(t, b, f.data, c.ext, base)
			info, err := b.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if want := !c.noStream && c.mode != prometheus.ReadSamples; info.Capabilities.NativeHistograms != want {
				t.Errorf("native histograms claimed: %v", !want)
			}
		})
	}
}

// TestConfiguredExternalLabels has the configuration replace the server's labels,
// which must not show through, whether or not the server shows its own.
func TestConfiguredExternalLabels(t *testing.T) {
	own := map[string]string{"cluster": "c1", "region": "eu"}
	for name, c := range map[string]struct {
		ext      labels.Labels
		noConfig bool
	}{
		"other":     {ext: euR1},
		"forbidden": {ext: labels.FromMap(own), noConfig: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{data: dataset(base, false), ext: c.ext, noConfig: c.noConfig}
			b := open(t, f, func(cfg *prometheus.Config) { cfg.ExternalLabels = own })
			contract(t, b, f.data, labels.FromMap(own), base)
		})
	}
	f := &fake{noConfig: true}
	if _, err := open(t, f, nil).Info(t.Context()); backend.Kind(err) != backend.ErrDenied {
		t.Errorf("no external labels to be had: %v", err)
	}
}

// TestForShipping: the external labels at this moment, and the flags.
func TestForShipping(t *testing.T) {
	f := &fake{ext: euR1}
	b := open(t, f, nil)
	if ls, err := b.ExternalLabels(t.Context()); err != nil || !labels.Equal(ls, euR1) {
		t.Errorf("%s, %v", ls, err)
	}
	f.ext = labels.EmptyLabels()
	if ls, err := b.ExternalLabels(t.Context()); err != nil || !ls.IsEmpty() {
		t.Errorf("they have changed: %s, %v", ls, err)
	}
	f.noConfig = true
	if _, err := b.ExternalLabels(t.Context()); backend.Kind(err) != backend.ErrDenied {
		t.Error(err)
	}
	own := open(t, f, func(c *prometheus.Config) { c.ExternalLabels = map[string]string{"cluster": "c1"} })
	if ls, err := own.ExternalLabels(t.Context()); err != nil || ls.String() != `{cluster="c1"}` {
		t.Errorf("%s, %v", ls, err)
	}
	if flags, err := b.Flags(t.Context()); err != nil || flags["storage.tsdb.path"] != "/data" {
		t.Errorf("%v, %v", flags, err)
	}
}

func TestInfo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{data: dataset(base, false), ext: euR1}
		b := open(t, f, nil)
		info, err := b.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(info.LabelSets) != 1 || !labels.Equal(info.LabelSets[0], euR1) || info.Component != "sidecar" || info.Version != "3.5.0" {
			t.Errorf("info %+v", info)
		}
		// Below the lowest timestamp by what the head may still take.
		if info.MinTime != base-7_200_000 || info.MaxTime != math.MaxInt64 {
			t.Errorf("%d..%d", info.MinTime, info.MaxTime)
		}
		// External labels change at run time.
		f.mu.Lock()
		f.ext = labels.FromStrings("region", "us")
		f.mu.Unlock()
		if info, _ = b.Info(t.Context()); !labels.Equal(info.LabelSets[0], euR1) {
			t.Errorf("%s was asked for at once", info.LabelSets)
		}
		time.Sleep(10 * time.Second)
		if info, _ = b.Info(t.Context()); !labels.Equal(info.LabelSets[0], f.ext) {
			t.Errorf("still %s", info.LabelSets)
		}
		contract(t, b, f.data, f.ext, base)
		// The server goes away, and comes back with other labels.
		f.mu.Lock()
		f.down = true
		f.mu.Unlock()
		if _, err := b.Info(t.Context()); backend.Kind(err) != backend.ErrUnavailable || strings.Contains(err.Error(), "secret") {
			t.Errorf("down: %v", err)
		}
		if _, err := collect(t, b, &backend.SeriesRequest{MaxTime: math.MaxInt64}); backend.Kind(err) != backend.ErrUnavailable {
			t.Errorf("down: %v", err)
		}
		f.mu.Lock()
		f.down, f.ext = false, labels.EmptyLabels()
		f.mu.Unlock()
		if info, err = b.Info(t.Context()); err != nil || len(info.LabelSets) > 0 {
			t.Errorf("back: %s, %v", info.LabelSets, err)
		}
	})
}

func TestLowestTimestamp(t *testing.T) {
	for value, want := range map[string]int64{
		"1.7952876e+12": base - 7_200_000, "9.223372036854776e+18": math.MinInt64, "NaN": math.MinInt64, "x": math.MinInt64,
		"0": -7_200_000, "-1.5": -7_200_002,
	} {
		info, err := open(t, &fake{lowest: value}, nil).Info(t.Context())
		if err != nil || info.MinTime != want {
			t.Errorf("%s: %d, %v, want %d", value, info.MinTime, err, want)
		}
	}
	// What a further store holds has no bound.
	if info, err := open(t, &fake{remote: true}, nil).Info(t.Context()); err != nil || info.MinTime != math.MinInt64 {
		t.Errorf("%d, %v", info.MinTime, err)
	}
}

// TestSurprises are servers whose order is not what it was known to be.
func TestSurprises(t *testing.T) {
	// Labels that were no external ones when they were asked for are stored since.
	f := &fake{ext: euR1}
	b := open(t, f, nil)
	if _, err := b.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.data = dataset(base, true)
	req := &backend.SeriesRequest{MinTime: base, MaxTime: base + 10_000}
	got, err := collect(t, b, req)
	if err != nil {
		// Loud, and right the next time.
		if backend.Kind(err) != backend.ErrUnavailable || !strings.Contains(err.Error(), "ask again") {
			t.Fatal(err)
		}
		if got, err = collect(t, b, req); err != nil {
			t.Fatal(err)
		}
	} else {
		t.Error("the order of the dataset is no surprise any more")
	}
	if d := cmp.Diff(want(f.data, euR1, req), got); d != "" {
		t.Error(d)
	}
}

// TestFaults are the ways in which an answer goes wrong.
func TestFaults(t *testing.T) {
	streamed := func(w http.ResponseWriter, body string) {
		w.Header().Set("Content-Type", "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse")
		io.WriteString(w, body)
	}
	on := func(path string, h http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, path) {
				h(w, r)
				return true
			}
			return false
		}
	}
	status := func(code int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, text, code) }
	}
	type test struct {
		path string
		h    http.HandlerFunc
		kind error
		text string
	}
	read, series, values := &backend.SeriesRequest{MaxTime: math.MaxInt64}, &backend.SeriesRequest{MaxTime: math.MaxInt64, SkipChunks: true, Matchers: matchers(t, `{a="b"}`)}, "values"
	for name, c := range map[string]struct {
		test
		call any
	}{
		"text in a stream":   {test{"/read", func(w http.ResponseWriter, _ *http.Request) { streamed(w, "expanding series: query timed out\n") }, backend.ErrInternal, "query timed out"}, read},
		"stream cut":         {test{"/read", func(w http.ResponseWriter, _ *http.Request) { streamed(w, "\x4b\x01\x02") }, backend.ErrUnavailable, "too early"}, read},
		"read: bad request":  {test{"/read", status(400, "snappy: corrupt input"), backend.ErrInvalid, "corrupt input"}, read},
		"read: limit":        {test{"/read", status(400, "exceeded sample limit (5)"), backend.ErrLimit, "sample limit"}, read},
		"read: no such path": {test{"/read", status(404, "404 page not found"), backend.ErrUnsupported, "check the URL"}, read},
		"read: 500":          {test{"/read", status(500, "error parsing regexp"), backend.ErrInternal, "regexp"}, read},
		"read: 502":          {test{"/read", status(502, "Bad Gateway"), backend.ErrUnavailable, "Gateway"}, read},
		"read: web page":     {test{"/read", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, backend.ErrInternal, "content type"}, read},
		"series: 422":        {test{"/series", status(422, `{"status":"error","errorType":"execution","error":"too many"}`), backend.ErrInternal, "execution: too many"}, series},
		"series: 503":        {test{"/series", status(503, `{"status":"error","errorType":"timeout","error":"late"}`), backend.ErrUnavailable, "timeout: late"}, series},
		"series: two answers": {test{"/series", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"status":"success","data":[]}{"status":"error"}`)
		}, backend.ErrInternal, "not the JSON"}, series},
		"series: no answer":    {test{"/series", func(w http.ResponseWriter, _ *http.Request) {}, backend.ErrInternal, "not the JSON"}, series},
		"series: error in 200": {test{"/series", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"status":"error","error":"odd"}`) }, backend.ErrInternal, "odd"}, series},
		"series: warning": {test{"/series", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"status":"success","data":[],"warnings":["remote store is down"]}`)
		}, backend.ErrUnavailable, "remote store is down"}, series},
		"series: too large": {test{"/series", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"status":"success","data":["`+strings.Repeat("x", 5000)+`"]}`)
		}, backend.ErrLimit, "max_buffered"}, series},
		"values: 401":    {test{"/values", status(401, ""), backend.ErrDenied, "credentials"}, values},
		"labels: failed": {test{"/labels", status(500, "disk"), backend.ErrInternal, "disk"}, read},
		"config: failed": {test{"/config", status(503, "starting"), backend.ErrUnavailable, "starting"}, read},
		"config: not YAML": {test{"/config", func(w http.ResponseWriter, _ *http.Request) {
			reply(w, map[string]string{"yaml": "global: [1"})
		}, backend.ErrInternal, "configuration"}, read},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, &fake{ext: euR1, intercept: on(c.path, c.h)}, func(cfg *prometheus.Config) { cfg.MaxBuffered = 4000 })
			var err error
			if req, ok := c.call.(*backend.SeriesRequest); ok {
				_, err = collect(t, b, req)
			} else {
				_, err = b.LabelValues(t.Context(), &backend.LabelValuesRequest{Name: "a", MaxTime: 1})
			}
			if backend.Kind(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %q of kind %v", err, c.text, c.kind)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows a password: %v", err)
			}
		})
	}
	// A part is of use where the caller says so.
	f := &fake{intercept: on("/series", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"status":"success","data":[{"a":"b"},{"a":"c"}],"warnings":["remote store is down"]}`)
	})}
	req := *series
	req.PartialAllowed = true
	n, missing := 0, 0
	for batch, err := range open(t, f, nil).Series(t.Context(), &req) {
		if err != nil {
			t.Fatal(err)
		}
		n += batch.Len()
		for _, x := range batch.Notices() {
			if x.Kind == backend.NoticeMissing {
				missing++
			}
		}
	}
	if n != 1 || missing != 1 {
		t.Errorf("%d series, %d notices of missing data", n, missing)
	}
}

// TestFramesThenError keeps what came before an error.
func TestFramesThenError(t *testing.T) {
	f := &fake{data: dataset(base, false)}
	f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/read") {
			f.read(w, r)
			io.WriteString(w, "expanding series: context deadline exceeded\n")
			return true
		}
		return false
	}
	req := &backend.SeriesRequest{MinTime: base, MaxTime: base + 10_000, Matchers: matchers(t, `{__name__="cpu"}`)}
	got, err := collect(t, open(t, f, nil), req)
	if backend.Kind(err) != backend.ErrInternal || !strings.Contains(err.Error(), "deadline exceeded") {
		t.Errorf("error %v", err)
	}
	if d := cmp.Diff(want(f.data, labels.EmptyLabels(), req), got); d != "" {
		t.Error(d)
	}
}

// TestSloppyRange is a server that sends whole series whatever the range.
func TestSloppyRange(t *testing.T) {
	f := &fake{data: []stored{
		{labels.FromStrings("a", "early"), base, 1000, 5}, {labels.FromStrings("a", "long"), base, 1000, 700},
	}}
	f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/read") {
			return false
		}
		seq := func(yield func(*backend.Batch, error) bool) {
			for _, s := range f.data {
				b := backend.NewBatch(1)
				chunks, err := remoteread.EncodeChunks(s.samples(math.MinInt64, math.MaxInt64))
				b.Append(backend.Series{Labels: s.labels, Chunks: chunks})
				if !yield(b, err) {
					return
				}
			}
		}
		remoteread.WriteStreamed(w, []iter.Seq2[*backend.Batch, error]{seq}, remoteread.StreamOptions{})
		return true
	}
	req := &backend.SeriesRequest{MinTime: base + 200_000, MaxTime: base + 210_000}
	got, err := collect(t, open(t, f, nil), req) // Checks each chunk, too.
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want(f.data, labels.EmptyLabels(), req), got); d != "" {
		t.Error(d)
	}
}

func TestBufferLimit(t *testing.T) {
	for name, c := range map[string]struct {
		f    *fake
		want error
	}{
		"streamed": {&fake{data: dataset(base, false), ext: euR1}, nil},
		"sorted":   {&fake{data: dataset(base, true), ext: euR1}, backend.ErrLimit},
		"samples":  {&fake{data: dataset(base, false), ext: euR1, noStream: true}, backend.ErrLimit},
	} {
		b := open(t, c.f, func(cfg *prometheus.Config) { cfg.MaxBuffered = 3000 })
		if _, err := collect(t, b, &backend.SeriesRequest{MinTime: base, MaxTime: base + 1e9}); backend.Kind(err) != c.want {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
}

func TestStreamedOnly(t *testing.T) {
	b := open(t, &fake{data: dataset(base, false), noStream: true}, func(cfg *prometheus.Config) { cfg.ReadMode = prometheus.ReadStreamed })
	if _, err := collect(t, b, &backend.SeriesRequest{MinTime: base, MaxTime: base + 1e9}); backend.Kind(err) != backend.ErrUnsupported {
		t.Errorf("error %v", err)
	}
}

// stall is a server that begins to answer and then is silent.
type stall struct {
	*fake
	first []byte
}

func (s stall) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Path, "/read") {
		return s.fake.RoundTrip(r)
	}
	if s.first == nil { // Not even a header.
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	pr, pw := io.Pipe()
	go func() {
		pw.Write(s.first)
		<-r.Context().Done()
		pw.CloseWithError(r.Context().Err())
	}()
	return &http.Response{StatusCode: 200, Body: pr, Header: http.Header{"Content-Type": {"application/x-streamed-protobuf"}}}, nil
}

// TestStall has the timeout, and the caller, end a call that gets no further.
func TestStall(t *testing.T) {
	for name, first := range map[string][]byte{"header": nil, "body": {0x4b}} {
		for _, who := range []string{"timeout", "caller"} {
			t.Run(name+" "+who, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := &fake{}
					b := open(t, f, func(cfg *prometheus.Config) {
						cfg.Client = &http.Client{Transport: stall{f, first}}
						cfg.Timeout = time.Minute
					})
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					why := errors.New("the user left")
					if who == "caller" {
						time.AfterFunc(time.Second, func() { cancel(why) })
					}
					began := time.Now()
					var last error
					for _, err := range b.Series(ctx, &backend.SeriesRequest{MaxTime: 1}) {
						last = err
					}
					took := time.Since(began)
					if who == "caller" && (!errors.Is(last, why) || took != time.Second) {
						t.Errorf("after %s: %v", took, last)
					}
					if who == "timeout" && (backend.Kind(last) != backend.ErrUnavailable || !errors.Is(last, context.DeadlineExceeded) || took != time.Minute) {
						t.Errorf("after %s: %v", took, last)
					}
				})
			})
		}
	}
}

// TestBreak leaves a stream early.
func TestBreak(t *testing.T) {
	f := &fake{data: dataset(base, false), ext: euR1}
	b := open(t, f, nil)
	for range b.Series(t.Context(), &backend.SeriesRequest{MinTime: base, MaxTime: base + 1e9, BatchSize: 1}) {
		break
	}
	if n := f.asked("/api/v1/read"); n != 1 {
		t.Errorf("%d reads", n)
	}
}

func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]prometheus.Config{
		"no url":         {},
		"no scheme":      {URL: "server:9090"},
		"query":          {URL: "http://server/?a=b"},
		"mode":           {URL: "http://server", ReadMode: "fast"},
		"timeout":        {URL: "http://server", Timeout: -1},
		"external name":  {URL: "http://server", ExternalLabels: map[string]string{"__name__": "x"}},
		"external bytes": {URL: "http://server", ExternalLabels: map[string]string{"a": "\xff"}},
		"two secrets":    {URL: "http://server", HTTP: prometheus.HTTPConfig{Username: "u", BearerToken: "t"}},
		"two passwords":  {URL: "http://server", HTTP: prometheus.HTTPConfig{Username: "u", Password: "p", PasswordFile: "f"}},
		"two tokens":     {URL: "http://server", HTTP: prometheus.HTTPConfig{BearerTokenFile: "u", BearerToken: "t"}},
		"no user":        {URL: "http://server", HTTP: prometheus.HTTPConfig{Password: "p"}},
		"half a pair":    {URL: "http://server", HTTP: prometheus.HTTPConfig{TLS: prometheus.TLSConfig{CertFile: "x"}}},
		"no pair":        {URL: "http://server", HTTP: prometheus.HTTPConfig{TLS: prometheus.TLSConfig{CertFile: empty, KeyFile: empty}}},
		"no CA":          {URL: "http://server", HTTP: prometheus.HTTPConfig{TLS: prometheus.TLSConfig{CAFile: filepath.Join(dir, "none")}}},
		"empty CA":       {URL: "http://server", HTTP: prometheus.HTTPConfig{TLS: prometheus.TLSConfig{CAFile: empty}}},
	} {
		if _, err := prometheus.New(c, nil); backend.Kind(err) != backend.ErrInvalid {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestHTTPConfig connects over TLS with every kind of identification.
func TestHTTPConfig(t *testing.T) {
	f := &fake{lowest: "0"}
	var seen http.Header
	f.intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		seen = r.Header.Clone()
		return false
	}
	srv := httptest.NewTLSServer(f)
	defer srv.Close()
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	ca := file("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	secret := file("secret", "s3\n")
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("u:s3"))
	for name, c := range map[string]struct {
		http prometheus.HTTPConfig
		want string
		kind error
	}{
		"basic":        {http: prometheus.HTTPConfig{Username: "u", Password: "s3"}, want: basic},
		"basic file":   {http: prometheus.HTTPConfig{Username: "u", PasswordFile: secret}, want: basic},
		"bearer":       {http: prometheus.HTTPConfig{BearerToken: "s3", Headers: map[string]string{"X-Scope-OrgID": "t"}}, want: "Bearer s3"},
		"bearer file":  {http: prometheus.HTTPConfig{BearerTokenFile: secret}, want: "Bearer s3"},
		"file gone":    {http: prometheus.HTTPConfig{BearerTokenFile: secret + "x"}, kind: backend.ErrUnavailable},
		"unknown CA":   {http: prometheus.HTTPConfig{TLS: prometheus.TLSConfig{ServerName: "nobody.example"}}, kind: backend.ErrUnavailable},
		"any CA":       {http: prometheus.HTTPConfig{TLS: prometheus.TLSConfig{InsecureSkipVerify: true}}},
		"example name": {http: prometheus.HTTPConfig{TLS: prometheus.TLSConfig{ServerName: "example.com"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.http.TLS.ServerName != "nobody.example" && !c.http.TLS.InsecureSkipVerify {
				c.http.TLS.CAFile = ca
			}
			b := open(t, f, func(cfg *prometheus.Config) { cfg.URL, cfg.Client, cfg.HTTP = srv.URL, nil, c.http })
			_, err := b.Info(t.Context())
			if backend.Kind(err) != c.kind {
				t.Fatalf("error %v, want kind %v", err, c.kind)
			}
			if err == nil && (seen.Get("Authorization") != c.want || seen.Get("X-Scope-OrgID") != c.http.Headers["X-Scope-OrgID"] || seen.Get("Accept-Encoding") == "gzip") {
				t.Errorf("headers %v", seen)
			}
		})
	}
}

// TestPushedMatchers shows what is sent to the server for a selector.
func TestPushedMatchers(t *testing.T) {
	datadriven.RunTest(t, "testdata/pushed", func(t *testing.T, d *datadriven.TestData) string {
		var sent []string
		f := &fake{ext: euR1}
		f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case strings.HasSuffix(r.URL.Path, "/read"):
				req, err := remoteread.DecodeRequest(r.Body, remoteread.RequestLimits{})
				if err != nil {
					t.Fatal(err)
				}
				sent = append(sent, fmt.Sprintf("read %v", req.Queries[0].Matchers))
			case strings.HasSuffix(r.URL.Path, "/status/config") || r.URL.Query().Get("start") == "":
				return false
			default:
				path := strings.TrimPrefix(r.URL.EscapedPath(), "/prom/api/v1")
				sent = append(sent, strings.TrimSpace(fmt.Sprintf("%s %s", path, r.URL.Query().Get("match[]"))))
				return false
			}
			w.Header().Set("Content-Type", "application/x-streamed-protobuf")
			return true
		}
		b := open(t, f, nil)
		ms := []*labels.Matcher{}
		for l := range strings.Lines(d.Input) {
			if l = strings.TrimSpace(l); l != "" {
				ms = append(ms, matchers(t, l)...)
			}
		}
		switch d.Cmd {
		case "series", "skip-chunks":
			if _, err := collect(t, b, &backend.SeriesRequest{MinTime: 1, MaxTime: 2, Matchers: ms, SkipChunks: d.Cmd == "skip-chunks"}); err != nil {
				return err.Error()
			}
		case "names":
			if _, err := b.LabelNames(t.Context(), &backend.LabelNamesRequest{MinTime: 1, MaxTime: 2, Matchers: ms}); err != nil {
				return err.Error()
			}
		case "values":
			var name string
			d.ScanArgs(t, "name", &name)
			if _, err := b.LabelValues(t.Context(), &backend.LabelValuesRequest{Name: name, MinTime: 1, MaxTime: 2, Matchers: ms}); err != nil {
				return err.Error()
			}
		default:
			d.Fatalf(t, "unknown command")
		}
		if len(sent) == 0 {
			return "nothing"
		}
		return strings.Join(sent, "\n")
	})
}

// TestMetadataCalls converts answers of the HTTP API, with external labels added.
func TestMetadataCalls(t *testing.T) {
	answers := map[string]string{
		"/api/v1/rules": `{"groups":[{"name":"g","file":"f.yml","interval":60,"limit":3,"evaluationTime":0.5,"lastEvaluation":"2026-11-21T19:00:00Z","rules":[
			{"type":"recording","name":"job:x","query":"x","labels":{"team":"a","region":"own"},"health":"ok","evaluationTime":0.25,"lastEvaluation":"2026-11-21T19:00:00Z"},
			{"type":"alerting","name":"Down","query":"up == 0","state":"firing","duration":300,"keepFiringFor":10,"labels":{"team":"b"},"annotations":{"s":"t"},"health":"err","lastError":"e",
			 "alerts":[{"labels":{"alertname":"Down"},"annotations":{"s":"t"},"state":"pending","activeAt":"2026-11-21T19:00:00Z","value":"1e+00"}]}]},
			{"name":"h","file":"f.yml","rules":[{"type":"recording","name":"y","query":"y","labels":{"team":"c"}}]}]}`,
		"/api/v1/targets": `{"activeTargets":[{"discoveredLabels":{"__address__":"a:1"},"labels":{"job":"j"},"scrapePool":"p","scrapeUrl":"http://a:1/","globalUrl":"http://g:1/",
			"lastError":"refused","lastScrape":"2026-11-21T19:00:00Z","lastScrapeDuration":0.5,"health":"up"},{"labels":{"job":"k"},"lastScrape":"0001-01-01T00:00:00Z","health":"unknown"}],
			"droppedTargets":[{"discoveredLabels":{"job":"gone"}}]}`,
		"/api/v1/metadata": `{"up":[{"type":"gauge","help":"h","unit":"s"}],"b":[{"type":"counter","help":"","unit":""}]}`,
		"/api/v1/query_exemplars": `[{"seriesLabels":{"__name__":"x","region":"own"},"exemplars":[{"labels":{"trace_id":"1"},"value":"1.5","timestamp":1795287600.123},{"labels":{},"value":"+Inf","timestamp":1}]},
			{"seriesLabels":{"__name__":"other"},"exemplars":[{"labels":{},"value":"2","timestamp":1795287600}]}]`,
		"/api/v1/status/tsdb": `{"headStats":{"numSeries":59,"numLabelPairs":91,"chunkCount":74,"minTime":1,"maxTime":2},"seriesCountByMetricName":[{"name":"a","value":1},{"name":"b","value":8}],
			"labelValueCountByLabelName":[{"name":"l","value":3}],"memoryInBytesByLabelName":[],"seriesCountByLabelValuePair":[{"name":"a=b","value":4}]}`,
	}
	queries := map[string]string{}
	f := &fake{ext: euR1}
	f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		path := strings.TrimPrefix(r.URL.Path, "/prom")
		a, ok := answers[path]
		if ok {
			queries[path] = r.URL.Query().Get("query")
			io.WriteString(w, `{"status":"success","data":`+a+`}`)
		}
		return ok
	}
	b := open(t, f, nil)
	ctx := t.Context()
	str := func(l *storepb.LabelSet) string {
		var out []string
		for _, x := range l.GetLabels() {
			out = append(out, x.Name+"="+x.Value)
		}
		return strings.Join(out, ",")
	}
	check := func(what, got, want string, err error) {
		t.Helper()
		if err != nil || got != want {
			t.Errorf("%s: %s, %v\nwant %s", what, got, err, want)
		}
	}
	rules := func(req *storepb.RulesRequest) (string, error) {
		groups, _, err := b.Rules(ctx, req)
		var out []string
		for _, g := range groups {
			for _, r := range g.Rules {
				if rec := r.GetRecording(); rec != nil {
					out = append(out, g.Name+"/"+rec.Name+"{"+str(rec.Labels)+"}")
				}
				if a := r.GetAlert(); a != nil {
					out = append(out, fmt.Sprintf("%s/%s{%s} %s %v [%s %s %d]", g.Name, a.Name, str(a.Labels), a.State, a.DurationSeconds, str(a.Alerts[0].Labels), a.Alerts[0].State, a.Alerts[0].ActiveAt.AsTime().UnixMilli()))
				}
			}
		}
		return strings.Join(out, "; "), err
	}
	recording, alert, other := "g/job:x{region=eu,replica=r1,team=a}", "g/Down{region=eu,replica=r1,team=b} FIRING 300 [alertname=Down,region=eu,replica=r1 PENDING 1795287600000]", "h/y{region=eu,replica=r1,team=c}"
	for want, req := range map[string]*storepb.RulesRequest{
		recording + "; " + alert + "; " + other: {},
		recording + "; " + other:                {Type: storepb.RulesRequest_RECORD},
		alert:                                   {Type: storepb.RulesRequest_ALERT},
		other:                                   {RuleGroup: []string{"h"}, RuleName: []string{"y"}, File: []string{"f.yml"}},
		recording:                               {MatcherString: []string{`{team="a",region="eu"}`, `{region="own"}`}},
		"":                                      {File: []string{"other.yml"}},
	} {
		got, err := rules(req)
		check(fmt.Sprint("rules ", req), got, want, err)
	}
	if _, _, err := b.Rules(ctx, &storepb.RulesRequest{MatcherString: []string{"{"}}); backend.Kind(err) != backend.ErrInvalid {
		t.Errorf("rules with a bad matcher: %v", err)
	}

	td, _, err := b.Targets(ctx, storepb.TargetsRequest_ANY)
	if err != nil || len(td.ActiveTargets) != 2 || len(td.DroppedTargets) != 1 {
		t.Fatalf("targets: %v, %v", td, err)
	}
	a := td.ActiveTargets[0]
	check("target", fmt.Sprint(str(a.Labels), " ", str(a.DiscoveredLabels), " ", a.Health, a.LastScrapeDuration, a.LastError), "job=j,region=eu,replica=r1 __address__=a:1,region=eu,replica=r1 UP 0.5refused", nil)
	if a := td.ActiveTargets[1]; a.Health != storepb.ActiveTarget_UNKNOWN || a.LastScrape != nil {
		t.Errorf("target never scraped: %v", a)
	}
	if td, _, err = b.Targets(ctx, storepb.TargetsRequest_DROPPED); err != nil || len(td.ActiveTargets) != 0 || len(td.DroppedTargets) != 1 {
		t.Errorf("dropped targets: %v, %v", td, err)
	}

	for limit, want := range map[int]int{-1: 2, 0: 0, 1: 1, 5: 2} {
		if got, _, err := b.MetricMetadata(ctx, "", limit); err != nil || len(got) != want {
			t.Errorf("metadata, limit %d: %v, %v", limit, got, err)
		}
	}
	if got, _, err := b.MetricMetadata(ctx, "up", -1); err != nil || len(got) != 1 || got["up"][0].Help != "h" {
		t.Errorf("metadata of up: %v, %v", got, err)
	}

	sel := [][]*labels.Matcher{matchers(t, `{__name__="x",region=~"e."}`), matchers(t, `{region="us"}`), matchers(t, `{env=""}`)}
	ex, _, err := b.Exemplars(ctx, sel[:2], base, base+1000)
	if err != nil || len(ex) != 1 || len(ex[0].Exemplars) != 1 || ex[0].Exemplars[0].Ts != base+123 || ex[0].Exemplars[0].Value != 1.5 {
		t.Errorf("exemplars: %v, %v", ex, err)
	} else {
		check("exemplar", str(ex[0].SeriesLabels), "__name__=x,region=eu,replica=r1", nil)
	}
	check("exemplar query", queries["/api/v1/query_exemplars"], `{__name__="x"}`, nil)
	if ex, _, err = b.Exemplars(ctx, sel, math.MinInt64, math.MaxInt64); err != nil || len(ex) != 2 || len(ex[0].Exemplars) != 2 {
		t.Errorf("exemplars: %v, %v", ex, err)
	}
	check("exemplar query", queries["/api/v1/query_exemplars"], `{__name__="x"} or {env="",__name__!=""}`, nil)
	if ex, _, err = b.Exemplars(ctx, sel[1:2], 0, 1); err != nil || len(ex) != 0 {
		t.Errorf("exemplars of another region: %v, %v", ex, err)
	}

	st, _, err := b.Statistics(ctx, 1)
	if err != nil || st.HeadStatistics.NumSeries != 59 || len(st.SeriesCountByMetricName) != 1 || st.SeriesCountByMetricName[0].Name != "b" || len(st.SeriesCountByLabelValuePair) != 1 {
		t.Errorf("statistics: %v, %v", st, err)
	}
}
