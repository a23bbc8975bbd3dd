// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/thanos-io/promql-engine/engine"
	"github.com/thanos-io/promql-engine/logicalplan"
	"go.opentelemetry.io/otel/trace"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/dedup"
	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/core/resolution"
	"github.com/promweave/promweave/core/syntax"
	"github.com/promweave/promweave/sdk/backend"
)

// The engines by the names that users give.
const (
	EnginePrometheus = "prometheus"
	EngineThanos     = "thanos"
)

// Config of a Service; zero values mean the defaults in brackets.
type Config struct {
	Engine           string        // [prometheus]
	Timeout          time.Duration // of one request [2m]
	LookbackDelta    time.Duration // [5m]
	ReplicaLabels    []string
	Dedup            dedup.Algorithm // [default]
	AutoDownsampling bool
	NoPartial        bool // refuse partial answers unless a request allows them
	// MaxPoints bounds the points per series of a range query [11,000].
	MaxPoints int
	// MaxSamples bounds the samples that the engine holds at a time [50,000,000].
	MaxSamples int
	// Limits are those of the process; nil is none. Services that follow each other
	// in one process share them, so that requests still running are counted.
	Limits     *limits.Process
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Tracer makes one span per backend asked; nil makes none.
	Tracer trace.Tracer
	// Gate decides about every request before anything is done for it; nil lets
	// everybody see everything.
	Gate access.Gate
}

// Service answers requests over a set of backends. It is safe for concurrent use.
type Service struct {
	cfg    Config
	set    *membership.Set
	limits *limits.Process
	prom   *promql.Engine
	thanos *engine.Engine
	// unmerged is for queries with marked selectors: it does not take one selector for a
	// part of another.
	unmerged *engine.Engine
	metrics  *metrics
}

// New returns a service over the set, which stays the caller's.
func New(set *membership.Set, cfg Config) (*Service, error) {
	switch cfg.Engine {
	case "":
		cfg.Engine = EnginePrometheus
	case EnginePrometheus, EngineThanos:
	default:
		return nil, fmt.Errorf("query.engine %q: want %s or %s", cfg.Engine, EnginePrometheus, EngineThanos)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 2 * time.Minute
	}
	if cfg.LookbackDelta <= 0 {
		cfg.LookbackDelta = 5 * time.Minute
	}
	if cfg.Dedup == "" {
		cfg.Dedup = dedup.Default
	}
	if cfg.MaxPoints <= 0 {
		cfg.MaxPoints = 11_000
	}
	if cfg.MaxSamples <= 0 {
		cfg.MaxSamples = 50_000_000
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	opts := promql.EngineOpts{
		Logger:               cfg.Logger,
		MaxSamples:           cfg.MaxSamples,
		Timeout:              cfg.Timeout,
		LookbackDelta:        cfg.LookbackDelta,
		EnableAtModifier:     true,
		EnableNegativeOffset: true,
		EnablePerStepStats:   true,
		NoStepSubqueryIntervalFn: func(int64) int64 {
			return time.Minute.Milliseconds()
		},
	}
	s := &Service{cfg: cfg, set: set, limits: cfg.Limits}
	if s.limits == nil {
		s.limits = limits.NewProcess(limits.Config{})
	}
	var err error
	if s.metrics, err = newMetrics(cfg.Registerer, s); err != nil {
		return nil, err
	}
	// Their metrics have the same names; ours says which engine ran.
	s.prom = promql.NewEngine(opts)
	s.thanos = engine.New(engine.Opts{EngineOpts: opts})
	s.unmerged = engine.New(engine.Opts{EngineOpts: opts, LogicalOptimizers: []logicalplan.Optimizer{logicalplan.SortMatchers{}, logicalplan.DetectHistogramStatsOptimizer{}}})
	return s, nil
}

// Close releases the engines.
func (s *Service) Close() error { return s.prom.Close() }

// DefaultOptions are what the configuration says.
func (s *Service) DefaultOptions() Options {
	o := Options{
		Dedup: true, Algorithm: s.cfg.Dedup, ReplicaLabels: s.cfg.ReplicaLabels,
		PartialResponse: !s.cfg.NoPartial, Engine: s.cfg.Engine, Timeout: s.cfg.Timeout,
	}
	if s.cfg.AutoDownsampling {
		o.MaxSourceResolution = AutoResolution
	}
	return o
}

// request is one request under way.
type request struct {
	s       *Service
	o       Options
	grant   *access.Grant
	view    *membership.View
	limits  *limits.Query
	session *fanout.Session
	report  *report.Report
	cancel  context.CancelFunc
	mu      sync.Mutex
	sets    []selected
}

// releaseAfter is how long after a request's deadline its backends stay open.
const releaseAfter = 5 * time.Second

// begin asks the gate, waits for a slot and sets everything up. end must be called.
// Whatever touches a backend comes through here.
func (s *Service) begin(ctx context.Context, q *access.Ask, o Options) (context.Context, *request, error) {
	timeout := s.cfg.Timeout
	if o.Timeout > 0 && o.Timeout < timeout {
		timeout = o.Timeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within the timeout of %s: %w", timeout, context.DeadlineExceeded))
	grant, err := s.Admit(ctx, q)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	ctx = access.WithGrant(ctx, grant)
	r := &request{s: s, o: o, grant: grant, cancel: cancel, report: &report.Report{
		Version: report.Version, ID: uuid.NewString(), Kind: q.Kind, StartedAt: time.Now(), Selects: []*report.Select{},
	}}
	if s.cfg.Gate != nil {
		r.report.Access = AccessOf(grant)
	}
	if r.limits, err = s.limits.Begin(ctx, whose(grant)); err != nil {
		cancel()
		kind := ErrUnavailable
		if errors.Is(err, context.Canceled) {
			kind = ErrCanceled
		}
		return nil, nil, &Error{Kind: kind, Err: err}
	}
	r.limits.Lower(grant.MaxSeries, grant.MaxSamples, grant.MaxBytes)
	r.view = s.set.Acquire()
	if r.view.Closed {
		r.view.Release()
		r.limits.End()
		cancel()
		return nil, nil, &Error{Kind: ErrUnavailable, Err: errors.New("the server is shutting down; ask another one")}
	}
	if !r.view.Checked && !o.PartialResponse {
		r.view.Release()
		r.limits.End()
		cancel()
		return nil, nil, &Error{Kind: ErrUnavailable, Err: errors.New(
			"not every backend has been looked at yet, and a partial answer is not allowed; ask again in a few seconds")}
	}
	// A client that does not read what it asked for holds up whoever writes to it,
	// but a slot, memory and backends no longer than the request may take.
	context.AfterFunc(ctx, func() {
		if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			return // end comes by itself
		}
		r.limits.End()
		// Calls that heed their context are back by then, and a backend may be closed.
		time.AfterFunc(releaseAfter, r.view.Release)
	})
	fo := fanout.Options{
		View: r.view, Limits: r.limits, Partial: o.PartialResponse, StoreMatch: o.StoreMatch, Tracer: s.cfg.Tracer,
		Grant: grant, RequestID: r.report.ID, Logger: s.cfg.Logger,
	}
	if o.Dedup {
		fo.ReplicaLabels = o.ReplicaLabels
	}
	r.session = fanout.NewSession(fo)
	return ctx, r, nil
}

// finish completes the report and returns it as the caller may see it; the session
// may still be in use.
func (r *request) finish() *report.Report {
	r.report.Completeness = r.session.Completeness()
	r.report.Selects = r.session.Selects()
	if r.report.Selects == nil {
		r.report.Selects = []*report.Select{}
	}
	r.report.Start, r.report.End = writable(r.report.Start), writable(r.report.End)
	r.report.Limits = r.limits.Use()
	r.report.Seconds = time.Since(r.report.StartedAt).Seconds()
	return r.session.Seen(r.report)
}

// writable cuts a time to the years that JSON has a form for. Requests for all of
// time lie far outside.
func writable(t time.Time) time.Time {
	first, last := time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	switch {
	case t.IsZero():
		return t
	case t.Before(first):
		return first
	case t.After(last):
		return last
	}
	return t
}

// end gives back what begin took.
func (r *request) end() {
	r.cancel()
	r.limits.End()
	r.view.Release()
	r.s.metrics.done(r.report)
}

// fail makes an Error of what went wrong.
func (r *request) fail(ctx context.Context, err error) error {
	return &Error{Kind: kindOf(ctx, err), Err: r.session.SeenError(err), Report: r.finish()}
}

func kindOf(ctx context.Context, err error) error {
	var (
		timeout  promql.ErrQueryTimeout
		canceled promql.ErrQueryCanceled
		missing  *fanout.MissingError
		exceeded *limits.Exceeded
	)
	switch {
	case errors.As(err, &missing):
		return ErrUnavailable
	case errors.As(err, &exceeded):
		return ErrExecution
	case errors.As(err, &timeout), errors.Is(err, context.DeadlineExceeded), errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return ErrTimeout
	case errors.As(err, &canceled), errors.Is(err, context.Canceled), ctx.Err() != nil:
		return ErrCanceled
	}
	switch backend.Kind(err) {
	case backend.ErrInvalid:
		return ErrBadData
	case backend.ErrUnavailable:
		return ErrUnavailable
	case backend.ErrLimit, backend.ErrUnsupported, backend.ErrDenied:
		return ErrExecution
	}
	return ErrExecution
}

// Instant answers a query at req.Start.
func (s *Service) Instant(ctx context.Context, req *Request) (*Result, error) {
	return s.run(ctx, req, "instant")
}

// Range answers a query from req.Start to req.End, both inclusive, every req.Step.
func (s *Service) Range(ctx context.Context, req *Request) (*Result, error) {
	if req.Step <= 0 {
		return nil, badData("step %s: it has to be more than zero", req.Step)
	}
	if req.End.Before(req.Start) {
		return nil, badData("end %s is before start %s", req.End.Format(time.RFC3339Nano), req.Start.Format(time.RFC3339Nano))
	}
	// Before anything is allocated: not every engine counts the steps of a query.
	// As in Prometheus it is steps that are counted, of which there is one less than
	// points.
	if n := req.End.Sub(req.Start) / req.Step; n > time.Duration(s.cfg.MaxPoints) || req.End.Sub(req.Start) == math.MaxInt64 {
		return nil, badData("a step of %s gives %d points per series, and at most %d are allowed; use a longer step or a shorter range", req.Step, n, s.cfg.MaxPoints)
	}
	return s.run(ctx, req, "range")
}

// maxSelectors bounds what may be asked at once, far above what people and dashboards
// do: a request of a few kilobytes must not cost without limit before the limits on
// what arrives can act. Package syntax has more of these.
const maxSelectors = 1000

// checkTime refuses what the engines, who count in nanoseconds since 1970, would
// take for another time.
func checkTime(t time.Time) error {
	if most := int64(math.MaxInt64 / time.Second); t.Unix() >= most || t.Unix() <= -most {
		return badData("time %s is too far away to be evaluated", t.Format(time.RFC3339))
	}
	return nil
}

func (s *Service) run(ctx context.Context, req *Request, kind string) (_ *Result, err error) {
	if strings.TrimSpace(req.Query) == "" {
		return nil, badData("the query is empty; try for example: up")
	}
	c, err := check(req)
	if err != nil {
		return nil, err
	}
	ctx, r, err := s.begin(ctx, req.ask(kind, c), req.Options)
	if err != nil {
		return nil, err
	}
	ended := false
	defer func() {
		if !ended {
			r.end()
		}
	}()
	p := r.report
	p.Query, p.Start, p.End, p.StepSeconds = req.Query, req.Start, req.End, req.Step.Seconds()

	q, err := r.prepare(ctx, req, kind, false)
	if err != nil {
		return nil, &Error{Kind: ErrBadData, Err: err, Report: r.finish()}
	}
	res := q.Exec(ctx)
	r.settle()
	err = res.Err
	if err == nil {
		err = r.session.Failure()
	}
	if err != nil {
		q.Close()
		var storage promql.ErrStorage
		if errors.As(err, &storage) {
			err = storage.Err
		}
		return nil, r.fail(ctx, err)
	}
	r.evaluated()
	// The backends are done with. The slot and the bytes stay charged until the answer
	// has been written, so that clients who read slowly cannot pile up answers.
	ended = true
	r.view.Release()
	rep := r.finish()
	s.metrics.done(r.report)
	return &Result{Value: res.Value, Annotations: res.Warnings, Statistics: q.Stats(), Report: rep, release: func() {
		q.Close()
		r.cancel()
		r.limits.End()
	}}, nil
}

// whose turn it is: a tenant's, or where there are none a caller's.
func whose(g *access.Grant) string {
	if len(g.Tenants) > 0 {
		return "tenant " + strings.Join(g.Tenants, "|")
	}
	return g.Subject
}

// reach returns the coarsest resolution allowed, in ms, and how far an engine
// looks back.
func (r *request) reach(req *Request) (maxResolution int64, lookback time.Duration) {
	maxResolution = r.o.MaxSourceResolution
	if maxResolution == AutoResolution {
		maxResolution = req.Step.Milliseconds() / 5
	}
	if r.o.LookbackDelta > 0 {
		return maxResolution, r.o.LookbackDelta
	}
	return maxResolution, time.Duration(resolution.Lookback(r.s.cfg.LookbackDelta.Milliseconds(), maxResolution)) * time.Millisecond
}

// downsampled says whether any backend may have downsampled data.
func (r *request) downsampled() bool {
	return slices.ContainsFunc(r.view.Members, func(m *membership.Member) bool { return m.Info.Capabilities.Downsampled })
}

// checked is what is known of a request before anybody was asked.
type checked struct {
	selectors [][]*labels.Matcher
	// window is the longest time that one selector reads before an instant.
	window time.Duration
}

// check refuses what can be refused without asking anybody.
func check(req *Request) (*checked, error) {
	for _, t := range []time.Time{req.Start, req.End} {
		if err := checkTime(t); err != nil {
			return nil, err
		}
	}
	expr, err := new(syntax.Reader).Expr(req.Query)
	if err != nil {
		return nil, &Error{Kind: ErrBadData, Err: err}
	}
	selectors := parser.ExtractSelectors(expr)
	if n := len(selectors); n > maxSelectors {
		return nil, badData("the query has %d selectors, and at most %d are allowed; split it, or select by one regular expression", n, maxSelectors)
	}
	return &checked{selectors, window(expr)}, nil
}

// window is the longest sum of the ranges around one selector.
func window(expr parser.Expr) (longest time.Duration) {
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		if _, ok := node.(*parser.VectorSelector); !ok {
			return nil
		}
		sum := time.Duration(0)
		for _, around := range path {
			d := time.Duration(0)
			switch x := around.(type) {
			case *parser.MatrixSelector:
				d = x.Range
			case *parser.SubqueryExpr:
				d = x.Range
			}
			if sum += d; sum < 0 { // more than 292 years
				sum = math.MaxInt64
			}
		}
		longest = max(longest, sum)
		return nil
	})
	return longest
}

// prepare makes the engine's query. An expression that promql-engine does not
// know goes to Prometheus' engine, and the report says so. Dry, its selections ask
// nobody.
func (r *request) prepare(ctx context.Context, req *Request, kind string, dry bool) (promql.Query, error) {
	s := r.s
	maxRes, lookback := r.reach(req)
	opts := promql.NewPrometheusQueryOpts(r.o.PerStepStats, lookback)
	qb := &queryable{r: r, maxResolution: maxRes, step: req.Step.Milliseconds(), dry: dry}
	text, thanos := req.Query, s.thanos
	if maxRes > 0 && r.downsampled() {
		if t, ok := overWindows(req.Query); ok {
			text, thanos, qb.rewritten = t, s.unmerged, true
		}
	}
	build := func(e promql.QueryEngine) (promql.Query, error) {
		if kind == "range" {
			return e.NewRangeQuery(ctx, qb, opts, text, req.Start, req.End, req.Step)
		}
		return e.NewInstantQuery(ctx, qb, opts, text, req.Start)
	}
	switch r.o.Engine {
	case EngineThanos:
		q, err := build(thanos)
		if err == nil {
			r.report.Engine = EngineThanos
			return q, nil
		}
		if !engine.IsUnimplemented(err) {
			return nil, err
		}
		r.report.EngineFallback = fmt.Sprintf("promql-engine cannot run this expression: %v", err)
	case EnginePrometheus, "":
	default:
		return nil, fmt.Errorf("engine %q: want %s or %s", r.o.Engine, EnginePrometheus, EngineThanos)
	}
	r.report.Engine = EnginePrometheus
	return build(s.prom)
}

// Explain tells which backends a query would ask, and asks none. The selections
// are those of the engine, so that ranges, offsets and subqueries count.
func (s *Service) Explain(ctx context.Context, req *Request) (*report.Report, error) {
	c, err := check(req)
	if err != nil {
		return nil, err
	}
	kind := "instant"
	if req.Step > 0 {
		kind = "range"
	}
	ctx, r, err := s.begin(ctx, req.ask("explain", c), req.Options)
	if err != nil {
		return nil, err
	}
	defer r.end()
	r.report.Query, r.report.Start, r.report.End, r.report.StepSeconds = req.Query, req.Start, req.End, req.Step.Seconds()
	r.o.Engine = EnginePrometheus // it selects eagerly, in one place
	q, err := r.prepare(ctx, req, kind, true)
	if err != nil {
		return nil, &Error{Kind: ErrBadData, Err: err}
	}
	defer q.Close()
	if res := q.Exec(ctx); res.Err != nil && ctx.Err() != nil {
		return nil, r.fail(ctx, res.Err)
	}
	return r.finish(), nil
}
