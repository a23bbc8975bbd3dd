// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/dedup"
	"github.com/promweave/promweave/core/httpapi"
	"github.com/promweave/promweave/core/limits"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/core/query"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

// reloadState is the configuration in force, and how the last reload went.
type reloadState struct {
	// one keeps reloads apart.
	one sync.Mutex

	mu  sync.Mutex
	cfg config.Config
	ok  bool
	at  time.Time
}

func (s *reloadState) config() config.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg
}

func (s *reloadState) last() (ok bool, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ok, s.at
}

func (s *reloadState) reloaded(cfg config.Config, m *metrics, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ok = ok
	if ok {
		s.cfg, s.at = cfg, time.Now()
	}
	m.reloaded(ok, s.at)
}

// reload reads the configuration and puts it in force, or leaves everything as it
// was.
func (p *process) reload(by string) error {
	p.state.one.Lock()
	defer p.state.one.Unlock()
	old := p.state.config()
	cfg, err := p.apply(old, p.o.Load)
	p.state.reloaded(cfg, p.metrics, err == nil)
	if err != nil {
		return err
	}
	p.log.Info("configuration reloaded", "by", by, "config", p.o.ConfigFile, "backends", len(cfg.Backends))
	for _, x := range []struct {
		key      string
		old, now any
	}{
		{"http.listen", old.HTTP.Listen, cfg.HTTP.Listen},
		{"http.web_config_file", old.HTTP.WebConfigFile, cfg.HTTP.WebConfigFile},
		{"http.ignore_unknown_parameters", old.HTTP.IgnoreUnknownParameters, cfg.HTTP.IgnoreUnknownParameters},
		{"grpc", old.GRPC, cfg.GRPC},
		{"logging.format", old.Logging.Format, cfg.Logging.Format},
		{"tracing", old.Tracing, cfg.Tracing},
		{"self_scrape", old.SelfScrape, cfg.SelfScrape},
		{"plugins", old.Plugins, cfg.Plugins},
	} {
		if !reflect.DeepEqual(x.old, x.now) {
			p.log.Warn("a change takes effect at the next restart only", "key", x.key)
		}
	}
	return nil
}

// awaitFilters puts the configuration in force once more when a filter has come that
// was not there at the start.
func (p *process) awaitFilters(ctx context.Context) error {
	const shortest, longest = 250 * time.Millisecond, 5 * time.Second
	pause := shortest
	for {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		p.state.one.Lock()
		missing := p.filters.missing()
		p.state.one.Unlock()
		if len(missing) == 0 {
			<-ctx.Done() // none is waited for later than from the start on
			return nil
		}
		pause = min(2*pause, longest)
		for _, a := range missing {
			if !p.filters.arrived(ctx, a) {
				continue
			}
			if err := p.again(); err != nil {
				p.log.Error("a filter is there now, and the configuration is still not in force", "filter", a.cfg.Name, "err", err)
			} else {
				p.log.Info("a filter is there now", "filter", a.cfg.Name)
				pause = shortest
			}
			break
		}
	}
}

// again puts the configuration in force once more.
func (p *process) again() error {
	p.state.one.Lock()
	defer p.state.one.Unlock()
	old := p.state.config()
	_, err := p.apply(old, func() (config.Config, error) { return old, nil })
	return err
}

func (p *process) apply(old config.Config, load func() (config.Config, error)) (config.Config, error) {
	cfg, err := load()
	if err != nil {
		return old, err
	}
	if name := old.SelfScrape.Backend; name != "" && !p.stores.keeps(cfg, name) {
		return old, fmt.Errorf("backend %s receives Promweave's own metrics (self_scrape): to change or remove it needs a restart", name)
	}
	filters, err := p.filters.open(context.Background(), cfg, false)
	if err != nil {
		return old, err
	}
	entries, commit, err := p.stores.open(context.Background(), cfg, filters)
	if err != nil {
		filters.discard()
		return old, err
	}
	filters.between()
	if !reflect.DeepEqual(old.Query, cfg.Query) {
		if err := p.query.use(cfg.Query, p.set, &p.filters.doors, p.log, p.metrics, p.tracing); err != nil {
			p.filters.restore()
			p.stores.discard()
			filters.discard()
			return old, err
		}
	}
	p.set.Swap(context.Background(), entries)
	commit()
	filters.commit()
	if err := p.level(cfg.Logging.Level); err != nil { // checked when it was loaded
		p.log.Warn("log level", "err", err)
	}
	return cfg, nil
}

// current is the query service in force. A reload that changes the query section
// replaces it; requests that run stay with the one that they began with.
type current struct {
	p atomic.Pointer[query.Service]
	// limits go on counting running requests over a reload that leaves them as they
	// are. Only use touches it, which reloads call one at a time.
	limits *limits.Process
}

var _ httpapi.Queries = (*current)(nil)

func (c *current) use(cfg config.Query, set *membership.Set, gate access.Gate, log *slog.Logger, m *metrics, t *tracing) error {
	// Without replica labels there is nothing to merge, unless a request names some.
	algorithm, replicas := dedup.Algorithm(cfg.Dedup), cfg.ReplicaLabels
	if cfg.Dedup == "off" {
		algorithm, replicas = dedup.Default, nil
	}
	samples := int(cfg.Limits.Samples)
	if samples == 0 {
		samples = math.MaxInt // 0 would be the engine's own default
	}
	bounds := limits.Config{
		Series: cfg.Limits.Series, Samples: cfg.Limits.Samples, Bytes: int64(cfg.Limits.Bytes),
		ProcessBytes: int64(cfg.Limits.ProcessBytes), Concurrent: cfg.MaxConcurrent,
	}
	if c.limits == nil || c.limits.Config() != bounds {
		c.limits = limits.NewProcess(bounds)
	}
	reg := prometheus.NewRegistry()
	s, err := query.New(set, query.Config{
		Engine: cfg.Engine, Timeout: cfg.Timeout, LookbackDelta: cfg.LookbackDelta,
		ReplicaLabels: replicas, Dedup: algorithm,
		AutoDownsampling: cfg.AutoDownsampling, NoPartial: !cfg.PartialResponse,
		MaxSamples: samples, Gate: gate,
		Limits: c.limits,
		Logger: log.With("part", "query"), Registerer: reg, Tracer: t.tracer(),
	})
	if err != nil {
		return err
	}
	m.set("query", reg)
	if old := c.p.Swap(s); old != nil {
		// Its engine keeps nothing open that a running query would miss.
		return old.Close()
	}
	return nil
}

func (c *current) close() {
	if s := c.p.Load(); s != nil {
		_ = s.Close()
	}
}

func (c *current) DefaultOptions() query.Options { return c.p.Load().DefaultOptions() }

func (c *current) Instant(ctx context.Context, r *query.Request) (*query.Result, error) {
	return c.p.Load().Instant(ctx, r)
}

func (c *current) Range(ctx context.Context, r *query.Request) (*query.Result, error) {
	return c.p.Load().Range(ctx, r)
}

func (c *current) Explain(ctx context.Context, r *query.Request) (*report.Report, error) {
	return c.p.Load().Explain(ctx, r)
}

func (c *current) Series(ctx context.Context, r *query.MetaRequest) (*query.SeriesResult, error) {
	return c.p.Load().Series(ctx, r)
}

func (c *current) LabelNames(ctx context.Context, r *query.MetaRequest) (*query.LabelsResult, error) {
	return c.p.Load().LabelNames(ctx, r)
}

func (c *current) LabelValues(ctx context.Context, r *query.MetaRequest) (*query.LabelsResult, error) {
	return c.p.Load().LabelValues(ctx, r)
}

func (c *current) Read(ctx context.Context, r *query.ReadRequest) (*query.ReadResult, error) {
	return c.p.Load().Read(ctx, r)
}

func (c *current) Rules(ctx context.Context, r *storepb.RulesRequest, o query.Options) (*query.RulesResult, error) {
	return c.p.Load().Rules(ctx, r, o)
}

func (c *current) Targets(ctx context.Context, s storepb.TargetsRequest_State, o query.Options) (*query.TargetsResult, error) {
	return c.p.Load().Targets(ctx, s, o)
}

func (c *current) Metadata(ctx context.Context, metric string, limit int, o query.Options) (*query.MetadataResult, error) {
	return c.p.Load().Metadata(ctx, metric, limit, o)
}

func (c *current) Exemplars(ctx context.Context, expr string, start, end time.Time, o query.Options) (*query.ExemplarsResult, error) {
	return c.p.Load().Exemplars(ctx, expr, start, end, o)
}

func (c *current) Statistics(ctx context.Context, limit int, o query.Options) (*query.StatisticsResult, error) {
	return c.p.Load().Statistics(ctx, limit, o)
}

func (c *current) Stores(ctx context.Context) ([]membership.Status, error) {
	return c.p.Load().Stores(ctx)
}

func (c *current) Admit(ctx context.Context, ask *access.Ask) (*access.Grant, error) {
	return c.p.Load().Admit(ctx, ask)
}

// proxy is the service in force as a backend, for StoreAPI.
type proxy struct{ c *current }

var (
	_ backend.Backend           = proxy{}
	_ backend.ExemplarsBackend  = proxy{}
	_ backend.MetadataBackend   = proxy{}
	_ backend.RulesBackend      = proxy{}
	_ backend.TargetsBackend    = proxy{}
	_ backend.StatisticsBackend = proxy{}
)

func (p proxy) now() query.Proxy { return p.c.p.Load().Proxy() }

func (p proxy) Info(ctx context.Context) (backend.Info, error) { return p.now().Info(ctx) }

func (p proxy) Series(ctx context.Context, r *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return p.now().Series(ctx, r)
}

func (p proxy) LabelNames(ctx context.Context, r *backend.LabelNamesRequest) (*backend.Labels, error) {
	return p.now().LabelNames(ctx, r)
}

func (p proxy) LabelValues(ctx context.Context, r *backend.LabelValuesRequest) (*backend.Labels, error) {
	return p.now().LabelValues(ctx, r)
}

func (p proxy) Exemplars(ctx context.Context, selectors [][]*labels.Matcher, minTime, maxTime int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	return p.now().Exemplars(ctx, selectors, minTime, maxTime)
}

func (p proxy) MetricMetadata(ctx context.Context, metric string, limit int) (map[string][]*storepb.Meta, []backend.Notice, error) {
	return p.now().MetricMetadata(ctx, metric, limit)
}

func (p proxy) Rules(ctx context.Context, r *storepb.RulesRequest) ([]*storepb.RuleGroup, []backend.Notice, error) {
	return p.now().Rules(ctx, r)
}

func (p proxy) Targets(ctx context.Context, state storepb.TargetsRequest_State) (*storepb.TargetDiscovery, []backend.Notice, error) {
	return p.now().Targets(ctx, state)
}

func (p proxy) Statistics(ctx context.Context, limit int) (*storepb.TSDBStatisticsEntry, []backend.Notice, error) {
	return p.now().Statistics(ctx, limit)
}
