// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package httpapi serves queries over HTTP: the API of Prometheus, version 3, with
// the parameters that Thanos adds, remote read, and what an operator needs beside
// them (health, reload, metrics, profiles).
//
// All routes stand in one table, from which both the multiplexer and the OpenAPI
// document at /api/v1/openapi.json are built. Every answer under /api is JSON in
// the envelope of Prometheus, every error there names the parameter, what is wrong
// with it and what to do. Answers to queries say in the header
// Promweave-Completeness whether anything is missing.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzhttp"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/httpapi/promjson"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

// Queries answers requests; *query.Service does. Failed calls return a
// *query.Error, or an error of one of the kinds of package backend.
type Queries interface {
	DefaultOptions() query.Options
	Instant(context.Context, *query.Request) (*query.Result, error)
	Range(context.Context, *query.Request) (*query.Result, error)
	Explain(context.Context, *query.Request) (*report.Report, error)
	Series(context.Context, *query.MetaRequest) (*query.SeriesResult, error)
	LabelNames(context.Context, *query.MetaRequest) (*query.LabelsResult, error)
	LabelValues(context.Context, *query.MetaRequest) (*query.LabelsResult, error)
	Read(context.Context, *query.ReadRequest) (*query.ReadResult, error)
	Rules(context.Context, *storepb.RulesRequest, query.Options) (*query.RulesResult, error)
	Targets(context.Context, storepb.TargetsRequest_State, query.Options) (*query.TargetsResult, error)
	Metadata(ctx context.Context, metric string, limit int, o query.Options) (*query.MetadataResult, error)
	Exemplars(ctx context.Context, expr string, start, end time.Time, o query.Options) (*query.ExemplarsResult, error)
	Statistics(ctx context.Context, limit int, o query.Options) (*query.StatisticsResult, error)
	Stores(context.Context) ([]membership.Status, error)
	// Admit decides about requests that no other method stands for.
	Admit(context.Context, *access.Ask) (*access.Grant, error)
}

// BuildInfo is what /api/v1/status/buildinfo shows. Grafana decides by it what it
// may ask: a version that looks like one of Prometheus, and no other keys.
type BuildInfo struct {
	Version   string `json:"version"`
	Revision  string `json:"revision"`
	Branch    string `json:"branch"`
	BuildUser string `json:"buildUser"`
	BuildDate string `json:"buildDate"`
	GoVersion string `json:"goVersion"`
}

// RuntimeInfo is what /api/v1/status/runtimeinfo shows.
type RuntimeInfo struct {
	StartTime           time.Time `json:"startTime"`
	CWD                 string    `json:"CWD"`
	Hostname            string    `json:"hostname"`
	ServerTime          time.Time `json:"serverTime"`
	ReloadConfigSuccess bool      `json:"reloadConfigSuccess"`
	LastConfigTime      time.Time `json:"lastConfigTime"`
	CorruptionCount     int64     `json:"corruptionCount"`
	GoroutineCount      int       `json:"goroutineCount"`
	GOMAXPROCS          int       `json:"GOMAXPROCS"`
	GOMEMLIMIT          int64     `json:"GOMEMLIMIT"`
	GOGC                string    `json:"GOGC"`
	GODEBUG             string    `json:"GODEBUG"`
	StorageRetention    string    `json:"storageRetention"`
}

// Options are what a Server needs. Only Queries must be given; a route whose part
// is missing answers that it is not available.
type Options struct {
	Queries Queries
	// Prefix, such as /promweave, comes before every path.
	Prefix string
	// Metrics serves /metrics.
	Metrics http.Handler
	// UI serves everything that is no route, with the prefix cut off.
	UI http.Handler
	// Reload reads the configuration again.
	Reload func(context.Context) error
	// Authenticate finds out who asks, before anything else is done for a request; nil
	// asks nobody. It returns the request's context with the caller (access.WithCaller),
	// or an error, which best is an *access.Denied. Only /-/healthy, /-/ready and what
	// a browser asks before it sends credentials go without.
	Authenticate func(*http.Request) (context.Context, error)
	// Blocks tells which blocks there are in buckets, for operators; nil: there are no buckets.
	Blocks func(context.Context) BlockList
	// Plugins tells what is known of each plug-in, for operators; nil: there are none.
	Plugins func(context.Context) []PluginStatus
	// RestartPlugin starts a plug-in anew. It returns ErrNoPlugin for a name that is
	// not known.
	RestartPlugin func(ctx context.Context, name string) error
	// Ready says why the process cannot answer yet; nil: it can.
	Ready func() error
	// Config is the configuration as YAML, without secrets.
	Config func() string
	// Flags are the command-line flags and their values, without secrets.
	Flags       map[string]string
	BuildInfo   BuildInfo
	RuntimeInfo func() RuntimeInfo
	// Profiling serves /debug/pprof/.
	Profiling bool
	// CORSOrigin, if not nil, must match an Origin as a whole for a browser to let
	// its pages read answers.
	CORSOrigin *regexp.Regexp
	// Logger gets panics and failures as errors, and every request at debug.
	Logger *slog.Logger

	// Limits. Zero means the value in parentheses.

	// IgnoreUnknownParameters accepts parameters that no route knows, as other
	// servers of this API do, instead of refusing the request.
	IgnoreUnknownParameters bool
	// MaxFormBytes bounds the body of a form (4 MiB).
	MaxFormBytes int64
	// MaxReadBytes bounds the body of a remote read, compressed and not (4 MiB).
	MaxReadBytes int64
	// MaxReadSamples bounds the samples per query of a remote read that is not
	// streamed (50,000,000).
	MaxReadSamples int
	// MaxPoints bounds the points per series of a range query (11,000).
	MaxPoints int64
	// DefaultStep is the least step of a range query that gives none (1s).
	DefaultStep time.Duration
	// MaxReports and MaxReportBytes bound what is kept for /api/v1/reports (256
	// reports, roughly 32 MiB).
	MaxReports     int
	MaxReportBytes int
}

// Server is an http.Handler for all routes. It holds no goroutines and needs no
// closing.
type Server struct {
	o       Options
	q       Queries
	log     *slog.Logger
	now     func() time.Time
	reports *reportRing
	openAPI []byte
	handler http.Handler
}

// New returns a Server.
func New(o Options) (*Server, error) {
	if o.Queries == nil {
		return nil, errors.New("httpapi: Options.Queries is missing")
	}
	o.Prefix = strings.TrimRight(o.Prefix, "/")
	if o.Prefix != "" && !strings.HasPrefix(o.Prefix, "/") || strings.ContainsAny(o.Prefix, "{}? #") {
		return nil, fmt.Errorf("httpapi: prefix %q: want a path such as /promweave", o.Prefix)
	}
	if o.CORSOrigin != nil {
		// A pattern that matches somewhere would let https://trusted.example.evil.test in.
		re, err := regexp.Compile("^(?:" + o.CORSOrigin.String() + ")$")
		if err != nil {
			return nil, fmt.Errorf("httpapi: CORS origin: %w", err)
		}
		o.CORSOrigin = re
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	orDefault(&o.MaxFormBytes, 4<<20)
	orDefault(&o.MaxReadBytes, 4<<20)
	orDefault(&o.MaxReadSamples, 50_000_000)
	orDefault(&o.MaxPoints, 11000)
	orDefault(&o.DefaultStep, time.Second)
	orDefault(&o.MaxReports, 256)
	orDefault(&o.MaxReportBytes, 32<<20)

	s := &Server{
		o: o, q: o.Queries, log: o.Logger, now: time.Now,
		reports: newReportRing(o.MaxReports, o.MaxReportBytes),
	}
	var err error
	routes := s.routes()
	if s.openAPI, err = openAPI(routes, o.Prefix); err != nil {
		return nil, fmt.Errorf("httpapi: OpenAPI document: %w", err)
	}
	gzip, err := gzhttp.NewWrapper(
		gzhttp.MinSize(1024),
		// Faster than most networks; smaller output is not worth the time of a query.
		gzhttp.CompressionLevel(1),
		gzhttp.ContentTypes([]string{"application/json", "text/plain", "text/html", "text/css", "text/javascript", "application/javascript", "image/svg+xml"}),
	)
	if err != nil {
		return nil, fmt.Errorf("httpapi: compression: %w", err)
	}
	s.handler = s.cors(gzip(s.guard(s.identify(s.mux(routes)))))
	return s, nil
}

func orDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

func (s *Server) mux(routes []route) http.Handler {
	mux := http.NewServeMux()
	known := knownParams(routes)
	for _, rt := range routes {
		mux.HandleFunc(s.o.Prefix+rt.path, s.serve(rt, known))
	}
	mux.HandleFunc(s.o.Prefix+"/api/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, notFound("path %s: there is no such route; %s/api/v1/openapi.json lists all", clip(r.URL.Path), s.o.Prefix))
	})
	if s.o.UI != nil {
		mux.Handle(s.o.Prefix+"/", http.StripPrefix(s.o.Prefix, s.o.UI))
	} else {
		mux.HandleFunc(s.o.Prefix+"/{$}", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, "Promweave. The API is at %[1]s/api/v1/, for example %[1]s/api/v1/query?query=up;\n%[1]s/api/v1/openapi.json lists all of it.\n", s.o.Prefix)
		})
	}
	return mux
}

// serve dispatches on the method: the multiplexer of net/http would answer a wrong
// one in plain text.
func (s *Server) serve(rt route, known map[string]bool) http.HandlerFunc {
	allow := rt.allow()
	return func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		if !rt.accepts(method) {
			w.Header().Set("Allow", allow)
			if r.Method == http.MethodOptions {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			err := &apiError{status: http.StatusMethodNotAllowed, typ: typeBadData,
				text: fmt.Sprintf("method %s: not allowed here; use one of %s", clip(r.Method), allow)}
			if rt.api == nil {
				http.Error(w, err.text, err.status)
				return
			}
			s.fail(w, r, err)
			return
		}
		if rt.kind != "" {
			grant, err := s.q.Admit(r.Context(), &access.Ask{Kind: rt.kind})
			if err == nil && rt.admin && !grant.Admin {
				err = access.Forbidden("path %s is for operators only", clip(r.URL.Path))
			}
			if err != nil {
				s.fail(w, r, err)
				return
			}
			r = r.WithContext(access.WithGrant(r.Context(), grant))
		}
		if rt.api == nil {
			rt.plain(w, r)
			return
		}
		f, err := readForm(w, r, s.o.MaxFormBytes)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		if err := s.checkParams(r, f, rt.params, known); err != nil {
			s.fail(w, r, err)
			return
		}
		a, err := rt.api(&call{ctx: r.Context(), r: r, form: f})
		if err != nil {
			s.fail(w, r, err)
			return
		}
		if a.done != nil {
			defer a.done()
		}
		s.respond(w, r, f, a)
	}
}

// knownParams are the parameters of all routes: one that means nothing here, but
// does elsewhere, is no mistake.
func knownParams(all []route) map[string]bool {
	m := map[string]bool{}
	for _, rt := range all {
		for _, p := range rt.params {
			m[p] = true
		}
	}
	return m
}

// checkParams refuses parameters that are not known. Ignored, a misspelt
// partial_response=false would silently be the opposite of what was asked. Names
// that begin with an underscore are what browsers and proxies add against caches.
func (s *Server) checkParams(r *http.Request, f form, here []string, known map[string]bool) error {
	for _, name := range slices.Sorted(maps.Keys(f.values)) {
		if known[name] || strings.HasPrefix(name, "_") {
			continue
		}
		if s.o.IgnoreUnknownParameters {
			s.log.DebugContext(r.Context(), "ignored an unknown parameter", "path", r.URL.Path, "parameter", name)
			continue
		}
		advice := "this route takes " + strings.Join(here, ", ")
		if len(here) == 0 {
			advice = "this route takes none"
		}
		if known[name+"[]"] {
			advice = fmt.Sprintf("did you mean %s[]?", name)
		}
		return badParam(strings.Trim(clip(name), `"`), "there is no such parameter; %s", advice)
	}
	return nil
}

// call is a request under /api.
type call struct {
	ctx  context.Context
	r    *http.Request
	form form
}

// answer is what a handler has to say.
type answer struct {
	// data writes what belongs under the key data.
	data func(*promjson.Writer)
	// queried: the answer was made of backends' data, and report says how complete
	// it is; without a report it counts as unknown.
	queried bool
	report  *report.Report
	// noStore forbids caches to keep the answer even if it is complete.
	noStore         bool
	warnings, infos []string
	// done is called when the answer was written, or could not be; it may be nil.
	done func()
}

// jsonAnswer is an answer without a report.
func jsonAnswer(v any) *answer {
	return &answer{data: func(w *promjson.Writer) { w.JSON(v) }}
}

func (s *Server) respond(w http.ResponseWriter, r *http.Request, f form, a *answer) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	var warnings, infos []string
	warnings = append(warnings, a.warnings...)
	infos = append(infos, a.infos...)
	if a.queried {
		c := report.Completeness{}
		if a.report != nil {
			c = a.report.Completeness
		}
		s.describe(h, a.report)
		warnings = append(warnings, c.Warnings()...)
		infos = append(infos, c.Infos()...)
		if c.State != report.Complete {
			a.noStore = true
		}
	}
	if a.noStore {
		h.Set("Cache-Control", "no-store")
	}
	if r.Method == http.MethodHead {
		return
	}
	jw := promjson.NewWriter(w)
	jw.Raw(`{"status":"success","data":`)
	a.data(jw)
	writeList(jw, `,"warnings":`, warnings)
	writeList(jw, `,"infos":`, infos)
	s.writeReport(jw, f, a.report)
	jw.Raw("}")
	if err := jw.Err(); err != nil && !jw.Sent() {
		_ = jw.Close()
		s.fail(w, r, fmt.Errorf("an answer cannot be written as JSON: %w", err))
		return
	}
	if err := jw.Close(); err != nil {
		if r.Context().Err() == nil {
			s.log.ErrorContext(r.Context(), "an answer could not be written", "path", r.URL.Path, "err", err)
		}
		// A part may be on its way; an answer that ends in its middle must not look
		// like a whole one.
		panic(http.ErrAbortHandler)
	}
}

// describe keeps the report and sets the headers that point to it.
func (s *Server) describe(h http.Header, rep *report.Report) {
	state := report.Unknown
	if rep != nil {
		state = rep.Completeness.State
		if rep.ID != "" {
			h.Set(headerReportID, rep.ID)
			s.reports.add(rep)
		}
	}
	h.Set(headerCompleteness, state.String())
}

const (
	headerCompleteness = "Promweave-Completeness"
	headerReportID     = "Promweave-Report-Id"
)

func writeList(jw *promjson.Writer, key string, list []string) {
	if len(list) > 0 {
		jw.Raw(key)
		jw.Strings(list)
	}
}

func (s *Server) writeReport(jw *promjson.Writer, f form, rep *report.Report) {
	if rep == nil {
		return
	}
	if want, err := f.boolean("report", false); err == nil && want {
		jw.Raw(`,"report":`)
		jw.JSON(encodable(rep))
	}
}

// encodable is the report with times that JSON can hold: a request for all time
// reaches far beyond the year 9999.
func encodable(rep *report.Report) *report.Report {
	if rep == nil {
		return nil
	}
	c := *rep
	for _, t := range []*time.Time{&c.Start, &c.End, &c.StartedAt} {
		*t = encodableTime(*t)
	}
	return &c
}

func encodableTime(t time.Time) time.Time {
	switch y := t.UTC().Year(); {
	case y < 1:
		return time.Date(1, time.January, 1, 0, 0, 0, 1, time.UTC) // not zero, which would be left out
	case y > 9999:
		return time.Date(9999, time.December, 31, 23, 59, 59, 999999999, time.UTC)
	}
	return t
}

// Error types of the envelope, those of Prometheus.
const (
	typeBadData     = "bad_data"
	typeExecution   = "execution"
	typeTimeout     = "timeout"
	typeCanceled    = "canceled"
	typeInternal    = "internal"
	typeUnavailable = "unavailable"
	typeNotFound    = "not_found"
	// Not of Prometheus, which has no such answers.
	typeForbidden    = "forbidden"
	typeUnauthorized = "unauthorized"
)

// apiError is an error in the terms of the envelope.
type apiError struct {
	status    int
	typ, text string
	challenge string // for WWW-Authenticate
	report    *report.Report
}

func (e *apiError) Error() string { return e.text }

func badData(format string, args ...any) error {
	return &apiError{status: http.StatusBadRequest, typ: typeBadData, text: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &apiError{status: http.StatusNotFound, typ: typeNotFound, text: fmt.Sprintf(format, args...)}
}

// errorTypes maps kinds of errors, the kinds of package query first.
var errorTypes = []struct {
	kind   error
	status int
	typ    string
}{
	{query.ErrBadData, http.StatusBadRequest, typeBadData},
	{query.ErrExecution, http.StatusUnprocessableEntity, typeExecution},
	{query.ErrTimeout, http.StatusServiceUnavailable, typeTimeout},
	{query.ErrCanceled, http.StatusServiceUnavailable, typeCanceled},
	{query.ErrUnavailable, http.StatusServiceUnavailable, typeUnavailable},
	{query.ErrDenied, http.StatusForbidden, typeForbidden},
	{query.ErrInternal, http.StatusInternalServerError, typeInternal},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, typeTimeout},
	{context.Canceled, http.StatusServiceUnavailable, typeCanceled},
	{backend.ErrInvalid, http.StatusBadRequest, typeBadData},
	{backend.ErrUnsupported, http.StatusUnprocessableEntity, typeExecution},
	{backend.ErrLimit, http.StatusUnprocessableEntity, typeExecution},
	{backend.ErrUnavailable, http.StatusServiceUnavailable, typeUnavailable},
	{backend.ErrDenied, http.StatusForbidden, typeExecution},
}

// toAPIError never returns nil.
func toAPIError(err error) *apiError {
	var ae *apiError
	if errors.As(err, &ae) {
		return ae
	}
	out := &apiError{status: http.StatusInternalServerError, typ: typeInternal, text: err.Error()}
	kind := err
	var qe *query.Error
	if errors.As(err, &qe) {
		out.report = qe.Report
		if qe.Kind != nil {
			// Not what it wraps: a failed query may well wrap the timeout of one backend.
			kind = qe.Kind
		}
	}
	var denied *access.Denied
	if (qe == nil || errors.Is(kind, query.ErrDenied)) && errors.As(err, &denied) {
		out.status, out.typ, out.text = denied.Status, typeForbidden, denied.Message
		switch s := denied.Status; {
		case s == http.StatusUnauthorized:
			out.typ, out.challenge = typeUnauthorized, denied.Challenge
		case s == http.StatusBadRequest || s == http.StatusRequestEntityTooLarge || s == http.StatusUnprocessableEntity:
			out.typ = typeBadData
		case s >= 500 && s <= 599:
			out.typ = typeUnavailable
		case s < 400 || s > 599:
			out.status = http.StatusForbidden
		}
		return out
	}
	for _, t := range errorTypes {
		if errors.Is(kind, t.kind) {
			out.status, out.typ = t.status, t.typ
			break
		}
	}
	return out
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := toAPIError(err)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	if e.challenge != "" {
		h.Set("WWW-Authenticate", e.challenge)
	}
	if e.report != nil {
		s.describe(h, e.report)
		if e.report.Completeness.State == report.Complete {
			// The backends did all they should, but there is no answer to be complete.
			h.Del(headerCompleteness)
		}
	}
	level := slog.LevelDebug
	if e.typ == typeInternal {
		level = slog.LevelError
	}
	s.log.Log(r.Context(), level, "request failed", "path", r.URL.Path, "type", e.typ, "err", e.text)
	w.WriteHeader(e.status)
	if r.Method == http.MethodHead {
		return
	}
	jw := promjson.NewWriter(w)
	jw.Raw(`{"status":"error","errorType":`)
	jw.String(e.typ)
	jw.Raw(`,"error":`)
	jw.String(e.text)
	s.writeReport(jw, newForm(r.Form), e.report)
	jw.Raw("}")
	if jw.Close() != nil {
		panic(http.ErrAbortHandler)
	}
}

// guard logs requests, and turns a panic into an error of this one request. It
// sits inside the compression, which would send what it has buffered as a good
// answer on the way out.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		t := &tracked{ResponseWriter: w}
		defer func() {
			p := recover()
			if p != nil && p != http.ErrAbortHandler {
				s.log.ErrorContext(r.Context(), "a request panicked",
					"method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				if t.status == 0 {
					clear(t.Header())
					s.fail(t, r, &apiError{status: http.StatusInternalServerError, typ: typeInternal,
						text: "the request failed for a reason of the server's own; its log has the details"})
					p = nil
				}
			}
			s.log.DebugContext(r.Context(), "request", "method", r.Method, "path", r.URL.Path,
				"status", t.status, "bytes", t.bytes, "seconds", time.Since(start).Seconds(), "remote", r.RemoteAddr,
				"dashboard", r.Header.Get("X-Dashboard-Uid"), "panel", r.Header.Get("X-Panel-Id"),
				"completeness", t.Header().Get(headerCompleteness), "report", t.Header().Get(headerReportID))
			if p != nil {
				// Something has been sent: break the connection off. net/http takes
				// this value for what it is.
				panic(http.ErrAbortHandler)
			}
		}()
		next.ServeHTTP(t, r)
	})
}

// identify finds out who asks. It sits before all routes and the user interface.
func (s *Server) identify(next http.Handler) http.Handler {
	if s.o.Authenticate == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := strings.TrimPrefix(r.URL.Path, s.o.Prefix); {
		case path == "/-/healthy", path == "/-/ready":
			next.ServeHTTP(w, r)
			return
		case r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "":
			// A browser asks without credentials whether it may send them.
			w.WriteHeader(http.StatusNoContent)
			return
		}
		ctx, err := s.o.Authenticate(r)
		if err == nil && ctx == nil {
			err = errors.New("authentication returned nothing")
		}
		if err != nil {
			if denied := (*access.Denied)(nil); !errors.As(err, &denied) && !errors.Is(err, backend.ErrUnavailable) {
				s.log.ErrorContext(r.Context(), "authentication failed", "path", r.URL.Path, "err", err)
				err = access.Forbidden("it could not be found out who asks; the log of the server has the reason")
			}
			s.fail(w, r, err)
			return
		}
		// What one caller gets is no answer for another, whatever it was that told them
		// apart; a cache in between cannot know.
		w.Header().Set("Cache-Control", "private")
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// tracked notes what was sent.
type tracked struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (t *tracked) WriteHeader(status int) {
	if t.status == 0 && status >= 200 {
		t.status = status
	}
	t.ResponseWriter.WriteHeader(status)
}

func (t *tracked) Write(p []byte) (int, error) {
	if t.status == 0 {
		t.status = http.StatusOK
	}
	n, err := t.ResponseWriter.Write(p)
	t.bytes += int64(n)
	return n, err
}

// Flush is here and not only behind Unwrap for handlers that assert http.Flusher.
func (t *tracked) Flush() {
	if t.status == 0 {
		t.status = http.StatusOK
	}
	_ = http.NewResponseController(t.ResponseWriter).Flush()
}

// Unwrap serves http.ResponseController.
func (t *tracked) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (s *Server) cors(next http.Handler) http.Handler {
	if s.o.CORSOrigin == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Vary", "Origin")
		if origin := r.Header.Get("Origin"); origin != "" && s.o.CORSOrigin.MatchString(origin) {
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
			h.Set("Access-Control-Allow-Headers", "Accept, Accept-Encoding, Authorization, Content-Type, Origin")
			h.Set("Access-Control-Expose-Headers", "Date, "+headerCompleteness+", "+headerReportID)
		}
		next.ServeHTTP(w, r)
	})
}
