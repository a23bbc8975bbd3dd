// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newServer returns a Server at a fixed time. change may be nil.
func newServer(t testing.TB, f *fake, change func(*Options)) *Server {
	t.Helper()
	o := Options{
		Queries:   f,
		BuildInfo: BuildInfo{Version: "3.8.1", Revision: "abc", Branch: "main", BuildUser: "u", BuildDate: "d", GoVersion: "go1.26"},
		Flags:     map[string]string{"config": "promweave.yaml"},
		Config:    func() string { return "query:\n  engine: prometheus\n" },
		RuntimeInfo: func() RuntimeInfo {
			return RuntimeInfo{StartTime: time.Unix(1600000000, 0).UTC(), CWD: "/", Hostname: "h", ReloadConfigSuccess: true}
		},
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.now = func() time.Time { return time.Unix(1700000000, 0).UTC() }
	return s
}

// shown are the headers in the golden files.
var shown = []string{"Allow", "Cache-Control", "Content-Type", "Promweave-Completeness", "Promweave-Report-Id"}

// TestAPI runs testdata/api: a request line, headers, an empty line and a body;
// answered by status, headers, what the fake was asked ("-> "), and the body.
func TestAPI(t *testing.T) {
	datadriven.Walk(t, "testdata/api", func(t *testing.T, path string) {
		f := &fake{}
		s := newServer(t, f, func(o *Options) {
			o.MaxFormBytes = 1000
			if strings.Contains(path, "bare") {
				*o = Options{Queries: f}
			}
		})
		doc := document(t, s)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			r, err := parseRequest(d.Input)
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			var out strings.Builder
			fmt.Fprintln(&out, w.Code)
			for _, h := range shown {
				for _, v := range w.Header().Values(h) {
					fmt.Fprintf(&out, "%s: %s\n", h, v)
				}
			}
			if c := f.last(); c != "" {
				fmt.Fprintln(&out, "->", strings.TrimSpace(c))
			}
			body := w.Body.String()
			if w.Header().Get("Content-Type") == "application/json" {
				checkSchema(t, doc, r, w.Code, w.Body.Bytes())
			}
			if w.Code >= 400 && w.Header().Get("Cache-Control") != "no-store" && strings.HasPrefix(r.URL.Path, "/api/") {
				t.Errorf("%s: an error that may be cached", d.Pos)
			}
			out.WriteString(body)
			if !strings.HasSuffix(body, "\n") {
				out.WriteString("\n")
			}
			return out.String()
		})
	})
}

func parseRequest(input string) (*http.Request, error) {
	head, body, _ := strings.Cut(input, "\n\n")
	lines := strings.Split(head, "\n")
	method, target, ok := strings.Cut(lines[0], " ")
	if !ok {
		return nil, fmt.Errorf("no request line: %q", lines[0])
	}
	// Read as a server would, so that escapes in the path are treated alike.
	var raw strings.Builder
	fmt.Fprintf(&raw, "%s %s HTTP/1.1\r\nHost: x\r\n", method, target)
	for _, l := range lines[1:] {
		raw.WriteString(l + "\r\n")
	}
	if body != "" {
		fmt.Fprintf(&raw, "Content-Length: %d\r\n", len(body))
	}
	raw.WriteString("\r\n" + body)
	return http.ReadRequest(bufio.NewReader(strings.NewReader(raw.String())))
}

func document(t testing.TB, s *Server) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(s.openAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return doc
}

// find returns the operation for a request, nil if the document has none.
func find(doc *openapi3.T, method, path string) *openapi3.Operation {
	for pattern, item := range doc.Paths.Map() {
		re := regexp.MustCompile("^" + regexp.MustCompile(`\\\{\w+\\\}`).ReplaceAllString(regexp.QuoteMeta(pattern), "[^/]*") + "$")
		if re.MatchString(path) {
			if op := item.GetOperation(method); op != nil {
				return op
			}
		}
	}
	return nil
}

// checkSchema checks that an answer is what the document promises.
func checkSchema(t *testing.T, doc *openapi3.T, r *http.Request, code int, body []byte) {
	t.Helper()
	if len(body) == 0 && r.Method == http.MethodHead {
		return
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatalf("%s: no JSON: %v\n%s", r.URL, err, body)
	}
	schema := doc.Components.Schemas["Error"]
	if code == http.StatusOK {
		op := find(doc, r.Method, r.URL.EscapedPath())
		if op == nil {
			t.Fatalf("%s %s is not in the OpenAPI document", r.Method, r.URL.Path)
		}
		for name := range r.URL.Query() {
			if op.Parameters.GetByInAndName("query", name) == nil && !strings.HasPrefix(name, "_") && r.Method == http.MethodGet {
				t.Errorf("%s: parameter %q works and is not in the OpenAPI document", r.URL.Path, name)
			}
		}
		schema = op.Responses.Status(http.StatusOK).Value.Content.Get("application/json").Schema
	}
	if err := schema.Value.VisitJSON(v); err != nil {
		t.Errorf("%s: the answer is not as documented: %v", r.URL, err)
	}
}

func TestOpenAPIMatchesRoutes(t *testing.T) {
	s := newServer(t, &fake{}, nil)
	doc := document(t, s)
	// Both ways: what is served is documented, and what is documented is served.
	documented := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			documented[method+" "+path] = true
			target := strings.NewReplacer("{name}", "job", "{id}", "none", "{profile}", "").Replace(path)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(method, target, nil))
			if w.Code == http.StatusMethodNotAllowed || w.Code == http.StatusNotFound && strings.Contains(w.Body.String(), "no such route") {
				t.Errorf("%s %s is documented and not served: %d", method, path, w.Code)
			}
		}
	}
	ids := map[string]bool{}
	docs, used := paramDocs(), map[string]bool{}
	for _, rt := range s.routes() {
		path := strings.ReplaceAll(rt.path, "...}", "}")
		for _, m := range rt.methods {
			if !documented[m+" "+path] {
				t.Errorf("%s %s is served and not documented", m, path)
			}
			delete(documented, m+" "+path)
		}
		if rt.doc == "" || ids[rt.id] {
			t.Errorf("%s: no text, or an ID that is not unique", rt.path)
		}
		ids[rt.id] = true
		if (rt.api == nil) == (rt.plain == nil) {
			t.Errorf("%s: want one handler", rt.path)
		}
		for _, p := range rt.params {
			used[p] = true
			if docs[p].doc == "" {
				t.Errorf("%s: parameter %q has no text", rt.path, p)
			}
		}
	}
	for name := range docs {
		if !used[name] {
			t.Errorf("parameter %q is described and belongs to no route", name)
		}
	}
	if len(documented) > 0 {
		t.Errorf("documented and not in the table: %v", slices.Sorted(maps.Keys(documented)))
	}
}

func TestOpenAPIGolden(t *testing.T) {
	s := newServer(t, &fake{}, nil)
	golden := filepath.Join("testdata", "openapi.json")
	if f := os.Getenv("UPDATE_GOLDEN"); f != "" {
		if err := os.WriteFile(golden, append(s.openAPI, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(s.openAPI)+"\n"); diff != "" {
		t.Errorf("the API has changed; look at the difference, then run the test with UPDATE_GOLDEN=1 (-want +got)\n%s", diff)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/openapi.json", nil))
	if !bytes.Equal(w.Body.Bytes(), s.openAPI) {
		t.Error("the document that is served is another one")
	}
}

// logged is a logger and what it wrote.
func logged(level slog.Level) (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: level})), &b
}

func TestPanic(t *testing.T) {
	log, text := logged(slog.LevelInfo)
	s := newServer(t, &fake{}, func(o *Options) { o.Logger = log })
	srv := httptest.NewServer(s)
	defer srv.Close()
	for _, accept := range []string{"gzip", "identity"} {
		req, _ := http.NewRequest(http.MethodGet, srv.URL+"/api/v1/query?query=fail_panic", nil)
		req.Header.Set("Accept-Encoding", accept)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusInternalServerError || !strings.Contains(string(body), `"errorType":"internal"`) {
			t.Errorf("%s: %d %v\n%s", accept, resp.StatusCode, err, body)
		}
		if strings.Contains(string(body), "fake panic") {
			t.Error("the client sees what the panic says")
		}
	}
	if !strings.Contains(text.String(), "fake panic") || !strings.Contains(text.String(), "fake_test.go") {
		t.Errorf("the log lacks the panic or its stack:\n%s", text)
	}
}

// TestPanicMidway checks that an answer that breaks off does not look whole.
func TestPanicMidway(t *testing.T) {
	log, _ := logged(slog.LevelError)
	s := newServer(t, &fake{}, func(o *Options) {
		o.Logger = log
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = w.Write(bytes.Repeat([]byte("metric 1\n"), 100))
			panic("midway")
		})
	})
	srv := httptest.NewServer(s)
	defer srv.Close()
	for _, accept := range []string{"gzip", "identity"} {
		req, _ := http.NewRequest(http.MethodGet, srv.URL+"/metrics", nil)
		req.Header.Set("Accept-Encoding", accept)
		resp, err := srv.Client().Do(req)
		if err != nil {
			continue // broken before the headers
		}
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil {
			t.Errorf("%s: the answer looks whole", accept)
		}
	}
}

// failing is a client that goes away.
type failing struct {
	http.ResponseWriter
	left int
}

func (f *failing) Write(p []byte) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errors.New("connection reset")
	}
	return len(p), nil
}

func TestClientGone(t *testing.T) {
	s := newServer(t, &fake{}, nil)
	for left := range 3 {
		func() {
			defer func() {
				if p := recover(); p != http.ErrAbortHandler {
					t.Errorf("panic %v, want http.ErrAbortHandler", p)
				}
			}()
			s.ServeHTTP(&failing{httptest.NewRecorder(), left}, httptest.NewRequest(http.MethodGet, "/api/v1/query?query=big", nil))
			t.Errorf("after %d writes: no abort", left)
		}()
	}
}

func TestCompression(t *testing.T) {
	srv := httptest.NewServer(newServer(t, &fake{}, nil))
	defer srv.Close()
	get := func(query, accept string) (*http.Response, int) {
		req, _ := http.NewRequest(http.MethodGet, srv.URL+"/api/v1/query?query="+query, nil)
		req.Header.Set("Accept-Encoding", accept)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		return resp, len(b)
	}
	plain, size := get("big", "identity")
	if e := plain.Header.Get("Content-Encoding"); e != "" {
		t.Errorf("compressed as %q and not asked for", e)
	}
	packed, small := get("big", "gzip")
	if packed.Header.Get("Content-Encoding") != "gzip" || small > size/4 {
		t.Errorf("%d bytes of %d, encoding %q", small, size, packed.Header.Get("Content-Encoding"))
	}
	if v := packed.Header.Values("Vary"); !slices.Contains(v, "Accept-Encoding") {
		t.Errorf("Vary %q", v)
	}
	if resp, _ := get("up", "gzip"); resp.Header.Get("Content-Encoding") != "" {
		t.Error("a tiny answer was compressed")
	}
	if resp, _ := get("big", "gzip;q=0"); resp.Header.Get("Content-Encoding") != "" {
		t.Error("compressed although refused")
	}
}

func TestCORS(t *testing.T) {
	s := newServer(t, &fake{}, func(o *Options) { o.CORSOrigin = regexp.MustCompile(`https://.*\.good\.test|https://one\.test`) })
	for origin, want := range map[string]string{
		"https://a.good.test":           "https://a.good.test",
		"https://one.test":              "https://one.test",
		"https://one.test.evil.test":    "",
		"https://evil.test/.good.test/": "",
		"":                              "",
	} {
		for _, method := range []string{http.MethodGet, http.MethodOptions} {
			r := httptest.NewRequest(method, "/api/v1/labels", nil)
			if origin != "" {
				r.Header.Set("Origin", origin)
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if got := w.Header().Get("Access-Control-Allow-Origin"); got != want {
				t.Errorf("%s %q: %q, want %q", method, origin, got, want)
			}
			if w.Header().Get("Vary") == "" {
				t.Error("a cache may mix origins up")
			}
			if method == http.MethodOptions && w.Code != http.StatusNoContent {
				t.Errorf("OPTIONS: %d", w.Code)
			}
		}
	}
	w := httptest.NewRecorder()
	newServer(t, &fake{}, nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/labels", nil))
	if w.Header().Get("Vary") == "Origin" {
		t.Error("CORS headers although it is off")
	}
}

func TestPrefix(t *testing.T) {
	s := newServer(t, &fake{}, func(o *Options) {
		o.Prefix = "/pw/"
		o.Profiling = true
		o.UI = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ui ", r.URL.Path) })
	})
	for path, want := range map[string]string{
		"/pw/api/v1/labels":            `"success"`,
		"/pw/api/v1/nowhere":           `/pw/api/v1/openapi.json lists`,
		"/pw/-/ready":                  "Promweave is ready.",
		"/pw/graph/x":                  "ui /graph/x",
		"/pw/":                         "ui /",
		"/pw/debug/pprof/":             "Types of profiles available",
		"/pw/debug/pprof/heap?debug=1": "heap profile",
		"/pw/api/v1/openapi.json":      `"url": "/pw"`,
		"/api/v1/labels":               "404",
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s, want %s", path, w.Code, w.Body, want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{{}, {Queries: &fake{}, Prefix: "pw"}, {Queries: &fake{}, Prefix: "/{x}"}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

func TestOperations(t *testing.T) {
	var reloadErr, readyErr error
	s := newServer(t, &fake{}, func(o *Options) {
		o.Reload = func(context.Context) error { return reloadErr }
		o.Ready = func() error { return readyErr }
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "x 1") })
	})
	check := func(method, path string, code int, text string) {
		t.Helper()
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		if w.Code != code || !strings.Contains(w.Body.String(), text) {
			t.Errorf("%s %s: %d %s, want %d %s", method, path, w.Code, w.Body, code, text)
		}
	}
	check("GET", "/-/healthy", 200, "healthy")
	check("HEAD", "/-/healthy", 200, "")
	check("GET", "/-/ready", 200, "is ready")
	check("POST", "/-/reload", 200, "was reloaded")
	check("PUT", "/-/reload", 200, "was reloaded")
	check("GET", "/-/reload", 405, "POST, PUT")
	check("GET", "/metrics", 200, "x 1")
	check("GET", "/debug/pprof/heap", 404, "turned off")
	reloadErr, readyErr = errors.New("line 3"), errors.New("no backend was checked yet")
	check("GET", "/-/ready", 503, "no backend was checked yet")
	check("POST", "/-/reload", 500, "stays in force: line 3")
}
