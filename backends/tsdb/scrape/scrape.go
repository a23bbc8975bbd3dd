// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package scrape fills an embedded TSDB with the metrics of a few fixed targets,
// Promweave itself first of all. It has no service discovery and no relabelling;
// whoever needs those runs Prometheus. What it writes looks as if Prometheus had
// written it: job and instance labels, the series up, scrape_duration_seconds and
// scrape_samples_scraped, and a stale marker where a series or a target ends.
//
// The scrape package of Prometheus is not used, because it brings the whole of
// service discovery along; the parser is Prometheus' own.
package scrape

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"

	"github.com/promweave/promweave/sdk/storepb"
)

// Target is one thing to scrape. One of URL, Handler and Gatherer is set.
type Target struct {
	// Job and Instance become labels, and together name the target.
	Job, Instance string
	// URL is fetched by HTTP.
	URL string
	// Handler serves metrics in this process.
	Handler http.Handler
	// Gatherer is a registry in this process.
	Gatherer prometheus.Gatherer
}

// Options of a Scraper. The zero value has the defaults.
type Options struct {
	// Interval is the time between scrapes; 0 is 15 s. A scrape may take as long.
	Interval time.Duration
	// BodyLimit is the largest answer of a target, in bytes; 0 is 16 MiB.
	BodyLimit int64
	// Client fetches URLs; nil is one without redirects.
	Client *http.Client
	Logger *slog.Logger
}

// Scraper scrapes targets. Make it with New, then call Run.
type Scraper struct {
	app  storage.Appendable
	opts Options

	mu       sync.Mutex
	targets  []Target
	pools    map[string]*pool
	metadata map[string]*storepb.Meta
}

// New makes a scraper that writes to app.
func New(app storage.Appendable, opts Options, targets ...Target) *Scraper {
	if opts.Interval <= 0 {
		opts.Interval = 15 * time.Second
	}
	if opts.BodyLimit <= 0 {
		opts.BodyLimit = 16 << 20
	}
	if opts.Client == nil {
		opts.Client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Scraper{app: app, opts: opts, targets: targets, pools: map[string]*pool{}, metadata: map[string]*storepb.Meta{}}
}

// SetTargets replaces the targets. Those that are gone get stale markers at the
// next scrape.
func (s *Scraper) SetTargets(targets ...Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.targets = targets
}

// Metadata is what the targets said about their metrics: of one, or of all with an
// empty name, at most limit of them unless limit is below zero.
func (s *Scraper) Metadata(metric string, limit int) map[string][]*storepb.Meta {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string][]*storepb.Meta{}
	for name, m := range s.metadata {
		if limit >= 0 && len(out) >= limit {
			break
		}
		if metric == "" || metric == name {
			out[name] = []*storepb.Meta{{Type: m.Type, Help: m.Help, Unit: m.Unit}}
		}
	}
	return out
}

// Run scrapes until ctx is done, and returns nil. As with Prometheus, the end of
// the scraper itself leaves no stale markers.
func (s *Scraper) Run(ctx context.Context) error {
	tick := time.NewTicker(s.opts.Interval)
	defer tick.Stop()
	for {
		s.Once(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// pool is what is known of a target from one scrape to the next.
type pool struct {
	target Target
	// series are those of the last scrape, by their text in the exposition.
	series map[string]*known
	extra  map[string]storage.SeriesRef
	round  uint64
}

type known struct {
	ref   storage.SeriesRef
	lset  labels.Labels
	round uint64
	// first is the round in which it came.
	first uint64
}

// Once scrapes every target now, all with the time at.
func (s *Scraper) Once(ctx context.Context, at time.Time) {
	s.mu.Lock()
	now := map[string]*pool{}
	for _, t := range s.targets {
		key := t.Job + "\xff" + t.Instance
		p := s.pools[key]
		if p == nil {
			p = &pool{series: map[string]*known{}, extra: map[string]storage.SeriesRef{}}
		}
		p.target = t
		now[key] = p
		delete(s.pools, key)
	}
	gone := s.pools
	s.pools = now
	s.mu.Unlock()

	ctx, cancel := context.WithTimeoutCause(ctx, s.opts.Interval, fmt.Errorf("no answer within %s", s.opts.Interval))
	defer cancel()
	var wg sync.WaitGroup
	for _, p := range now {
		wg.Go(func() { s.scrape(ctx, p, at) })
	}
	for _, p := range gone {
		wg.Go(func() {
			if err := s.end(ctx, p, at); err != nil {
				s.opts.Logger.Warn("cannot mark the series of a target as ended", "job", p.target.Job, "instance", p.target.Instance, "err", err)
			}
		})
	}
	wg.Wait()
}

func (s *Scraper) scrape(ctx context.Context, p *pool, at time.Time) {
	start := time.Now()
	body, contentType, err := s.fetch(ctx, p.target)
	took := time.Since(start)
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return // shutting down is no failure of the target
	}
	p.round++
	n := 0
	app := s.app.Appender(ctx)
	if err == nil {
		n, err = s.append(app, p, body, contentType, at.UnixMilli())
		if err != nil {
			// All or nothing: a half-understood answer counts as none.
			if rerr := app.Rollback(); rerr != nil {
				err = errors.Join(err, rerr)
			}
			app = s.app.Appender(ctx)
			maps.DeleteFunc(p.series, func(_ string, k *known) bool { return k.first == p.round })
			p.round++
		}
	}
	up := 1.0
	if err != nil {
		up, n = 0, 0
		s.opts.Logger.Warn("scrape failed", "job", p.target.Job, "instance", p.target.Instance, "err", err)
	}
	err = p.markStale(app, at.UnixMilli(), p.round)
	for name, v := range map[string]float64{"up": up, "scrape_duration_seconds": took.Seconds(), "scrape_samples_scraped": float64(n)} {
		err = errors.Join(err, p.report(app, name, at.UnixMilli(), v))
	}
	if err = errors.Join(err, app.Commit()); err != nil {
		s.opts.Logger.Warn("cannot store a scrape", "job", p.target.Job, "instance", p.target.Instance, "err", err)
	}
}

// end marks everything of a target as stale.
func (s *Scraper) end(ctx context.Context, p *pool, at time.Time) error {
	app := s.app.Appender(ctx)
	p.round++
	err := p.markStale(app, at.UnixMilli(), p.round)
	for name := range p.extra {
		err = errors.Join(err, p.report(app, name, at.UnixMilli(), math.Float64frombits(value.StaleNaN)))
	}
	return errors.Join(err, app.Commit())
}

func (p *pool) report(app storage.Appender, name string, t int64, v float64) error {
	ls := labels.FromStrings(model.MetricNameLabel, name, "job", p.target.Job, "instance", p.target.Instance)
	ref, err := app.Append(p.extra[name], ls, t, v)
	p.extra[name] = ref
	return err
}

// markStale ends the series that were not seen in this round.
func (p *pool) markStale(app storage.Appender, t int64, round uint64) error {
	var all error
	for text, k := range p.series {
		if k.round == round {
			continue
		}
		if _, err := app.Append(k.ref, k.lset, t, math.Float64frombits(value.StaleNaN)); err != nil {
			all = errors.Join(all, err)
		}
		delete(p.series, text)
	}
	return all
}

// append parses an answer. Timestamps in it are ignored: the targets are few and
// ours, and a sample in the past would only be refused.
func (s *Scraper) append(app storage.Appender, p *pool, body []byte, contentType string, t int64) (int, error) {
	parser, err := textparse.New(body, contentType, labels.NewSymbolTable(), textparse.ParserOptions{FallbackContentType: "text/plain"})
	if parser == nil {
		return 0, err
	}
	n := 0
	for {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		switch entry {
		case textparse.EntryType:
			name, typ := parser.Type()
			s.meta(string(name), func(m *storepb.Meta) { m.Type = string(typ) })
		case textparse.EntryHelp:
			name, help := parser.Help()
			s.meta(string(name), func(m *storepb.Meta) { m.Help = string(help) })
		case textparse.EntryUnit:
			name, unit := parser.Unit()
			s.meta(string(name), func(m *storepb.Meta) { m.Unit = string(unit) })
		case textparse.EntrySeries:
			text, _, v := parser.Series()
			k := p.series[string(text)]
			if k == nil {
				var ls labels.Labels
				parser.Labels(&ls)
				k = &known{lset: p.target.label(ls), first: p.round}
				p.series[string(text)] = k
			}
			if k.ref, err = app.Append(k.ref, k.lset, t, v); err != nil {
				return n, fmt.Errorf("%s: %w", text, err)
			}
			k.round = p.round
			n++
			var e exemplar.Exemplar
			for parser.Exemplar(&e) {
				if !e.HasTs {
					e.Ts = t
				}
				if _, err := app.AppendExemplar(k.ref, k.lset, e); err != nil &&
					!errors.Is(err, storage.ErrOutOfOrderExemplar) && !errors.Is(err, storage.ErrDuplicateExemplar) {
					s.opts.Logger.Debug("exemplar refused", "series", k.lset, "err", err)
				}
				e = exemplar.Exemplar{}
			}
		}
	}
}

// label adds the target's labels; labels of that name in the answer are kept with
// the prefix exported_, as in Prometheus.
func (t Target) label(ls labels.Labels) labels.Labels {
	b := labels.NewBuilder(ls)
	for _, l := range []labels.Label{{Name: "job", Value: t.Job}, {Name: "instance", Value: t.Instance}} {
		if was := ls.Get(l.Name); was != "" {
			b.Set("exported_"+l.Name, was)
		}
		b.Set(l.Name, l.Value)
	}
	return b.Labels()
}

func (s *Scraper) meta(name string, set func(*storepb.Meta)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.metadata[name]
	if m == nil {
		m = &storepb.Meta{}
		s.metadata[name] = m
	}
	set(m)
}

const accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

func (s *Scraper) fetch(ctx context.Context, t Target) (body []byte, contentType string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.URL, nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", "promweave")
	h := t.Handler
	if t.Gatherer != nil {
		h = promhttp.HandlerFor(t.Gatherer, promhttp.HandlerOpts{EnableOpenMetrics: true})
	}
	if h != nil {
		w := &recorder{header: http.Header{}, status: http.StatusOK, limit: s.opts.BodyLimit}
		h.ServeHTTP(w, req)
		switch {
		case w.full:
			return nil, "", fmt.Errorf("the answer is longer than %d bytes", s.opts.BodyLimit)
		case w.status != http.StatusOK:
			return nil, "", fmt.Errorf("status %d", w.status)
		}
		return w.body, w.header.Get("Content-Type"), ctx.Err()
	}
	resp, err := s.opts.Client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("%s: status %s", t.URL, resp.Status)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, s.opts.BodyLimit+1))
	if err != nil {
		return nil, "", err
	}
	if int64(len(body)) > s.opts.BodyLimit {
		return nil, "", fmt.Errorf("%s: the answer is longer than %d bytes", t.URL, s.opts.BodyLimit)
	}
	return body, resp.Header.Get("Content-Type"), nil
}

// recorder is a ResponseWriter that keeps a bounded answer.
type recorder struct {
	header http.Header
	status int
	body   []byte
	limit  int64
	full   bool
}

func (w *recorder) Header() http.Header    { return w.header }
func (w *recorder) WriteHeader(status int) { w.status = status }
func (w *recorder) Write(p []byte) (int, error) {
	if int64(len(w.body)+len(p)) > w.limit {
		w.full = true
		return 0, errors.New("the answer is too long")
	}
	w.body = append(w.body, p...)
	return len(p), nil
}
