// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package apiclient

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/promweave/promweave/core/report"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func client(t *testing.T, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCredentialsAndPath(t *testing.T) {
	var got *http.Request
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		got = r
		_, _ = w.Write([]byte(`{"status":"success","data":1}`))
	}))
	defer srv.Close()
	c := client(t, Options{Server: strings.Replace(srv.URL, "http://", "http://u:p@", 1) + "/prefix/", Headers: []string{"X-Scope-OrgID: a:b"}})
	if _, err := c.Post(t.Context(), "/api/v1/query", url.Values{"query": {"a b"}}); err != nil {
		t.Fatal(err)
	}
	user, pw, _ := got.BasicAuth()
	if got.URL.Path != "/prefix/api/v1/query" || user != "u" || pw != "p" || got.Header.Get("X-Scope-OrgID") != "a:b" || got.Form.Get("query") != "a b" {
		t.Errorf("request %s %v %v", got.URL, got.Header, got.Form)
	}
}

func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		header, body string
		status       int
		wantErr      string
		whole        bool
		state        report.State
	}{
		"complete":         {"complete", `{"status":"success","data":1}`, 200, "", true, report.Complete},
		"partial":          {"partial", `{"status":"success","data":1}`, 200, "", false, report.Partial},
		"unknown":          {"unknown", `{"status":"success","data":1}`, 200, "", false, report.Unknown},
		"silent":           {"", `{"status":"success","data":1}`, 200, "", true, report.Unknown},
		"by report":        {"", `{"status":"success","data":1,"report":{"completeness":{"state":"partial"}}}`, 200, "", false, report.Partial},
		"of the future":    {"mostly", `{"status":"success","data":1}`, 200, "is this client older", false, ""},
		"error":            {"", `{"status":"error","errorType":"timeout","error":"too slow"}`, 503, "timeout: too slow", false, ""},
		"html":             {"", `<html>`, 200, "not in the form of the API", false, ""},
		"json of others":   {"", `{"message":"x"}`, 500, "not in the form of the API", false, ""},
		"cut":              {"", `{"status":"succ`, 200, "not in the form of the API", false, ""},
		"not found":        {"", `no`, 404, "has no /api/v1/query", false, ""},
		"without password": {"", `no`, 401, "refuses access", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if c.header != "" {
					w.Header().Set("Promweave-Completeness", c.header)
				}
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			}))
			defer srv.Close()
			a, err := client(t, Options{Server: srv.URL}).Get(t.Context(), "/api/v1/query", nil)
			if c.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), c.wantErr) {
					t.Errorf("error %v, want %q", err, c.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if a.Whole() != c.whole || a.Completeness != c.state {
				t.Errorf("whole %v, %s", a.Whole(), a.Completeness)
			}
		})
	}
}

func TestBrokenConnections(t *testing.T) {
	hang := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			return
		}
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte(`{"status":`))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer srv.Close()
	defer close(hang)
	c := client(t, Options{Server: srv.URL})
	if _, err := c.Get(t.Context(), "/cut", nil); err == nil || !strings.Contains(err.Error(), "broke off after 10 bytes") {
		t.Errorf("an answer that breaks off: %v", err)
	}
	late := errors.New("too late")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, late)
	defer cancel()
	if _, err := c.Get(ctx, "/hang", nil); !errors.Is(err, late) {
		t.Errorf("no answer: %v", err)
	}
}

func TestTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"status":"success","data":1}`))
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	if _, err := client(t, Options{Server: srv.URL}).Get(t.Context(), "/", nil); err == nil || !strings.Contains(err.Error(), "--ca-file") {
		t.Errorf("an unknown CA: %v", err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, Options{Server: srv.URL, CAFile: ca}).Get(t.Context(), "/", nil); err != nil {
		t.Error(err)
	}
	if _, err := New(Options{Server: srv.URL, CAFile: "apiclient_test.go"}); err == nil {
		t.Error("a CA file without certificates is taken")
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	c := client(t, Options{Server: "http://u:hunter2@127.0.0.1:1"})
	if _, err := c.Get(t.Context(), "/", nil); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %v", err)
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"now": now, "-1h": now.Add(-time.Hour), "-1d": now.AddDate(0, 0, -1), "0": time.Unix(0, 0),
		"1700000000.5": time.UnixMilli(1700000000500), "-5": time.Unix(-5, 0),
		"2025-01-01T00:00:00Z": time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := ParseTime(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q is %s (%v), want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "yesterday", "1e300", "NaN", "--1h", "1h"} {
		if got, err := ParseTime(in, now); err == nil {
			t.Errorf("%q is taken for %s", in, got)
		}
	}
}

// FuzzParseResult: no answer makes the client panic.
func FuzzParseResult(f *testing.F) {
	for _, s := range []string{
		`{"resultType":"vector","result":[{"metric":{"a":"b"},"value":[1,"2"]}]}`,
		`{"resultType":"matrix","result":[{"metric":{},"values":[[1,"NaN"]],"histograms":[[1,{"count":"1","sum":"2","buckets":[]}]]}]}`,
		`{"resultType":"scalar","result":[1,"+Inf"]}`, `{"resultType":"string","result":[1,"x"]}`, `{"resultType":"vector","result":[null]}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r, err := ParseResult(json.RawMessage(in))
		if err != nil {
			return
		}
		for _, s := range r.Series {
			_ = s.Name()
		}
	})
}
