// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package serve is the process that answers queries: it opens the backends of a
// configuration, puts the engine over them, and serves both over HTTP and gRPC
// until it is told to stop.
package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/oklog/run"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"go.opentelemetry.io/otel"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/promweave/promweave/backends/tsdb"
	"github.com/promweave/promweave/backends/tsdb/scrape"
	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/core/grpcapi"
	"github.com/promweave/promweave/core/httpapi"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/sdk/storeapi"
)

// Options of Run. Only Load must be given.
type Options struct {
	// Load reads the configuration, at the start and for every reload.
	Load func() (config.Config, error)
	// ConfigFile is shown in the log; "" for none.
	ConfigFile string
	Version    string
	// Flags are those that were given, for /api/v1/status/flags.
	Flags map[string]string
	// Log gets the log; standard error by default.
	Log io.Writer
	// Extra serves paths that are no routes of the API.
	Extra http.Handler
	// Started is called once requests are accepted.
	Started func(Addresses)
}

// Addresses are where a process listens.
type Addresses struct {
	HTTP string
	GRPC string // "" if there is no gRPC server
}

// Run serves until ctx is done, then lets running queries finish within
// query.timeout. It returns an error if it could not start, or if a part failed.
func Run(ctx context.Context, o Options) error {
	cfg, err := o.Load()
	if err != nil {
		return err
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
	logger, level := newLogger(cfg.Logging, o.Log)
	logger.Info("starting Promweave", "version", o.Version, "revision", version.GetRevision(), "go", runtime.Version(), "config", o.ConfigFile)

	// The only handler there is in OpenTelemetry is that of the whole process.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { logger.Warn("OpenTelemetry", "part", "tracing", "err", err) }))

	tr, err := newTracing(ctx, cfg.Tracing, o.Version)
	if err != nil {
		return err
	}
	p := &process{o: o, log: logger, level: level, tracing: tr, metrics: newMetrics(), started: time.Now(), query: &current{}}
	err = p.run(ctx, cfg)
	if terr := tr.close(); terr != nil {
		logger.Warn("last traces were not sent", "err", terr)
	}
	if err == nil {
		logger.Info("stopped")
	}
	return err
}

// process is one run.
type process struct {
	o       Options
	log     *slog.Logger
	level   func(string) error
	tracing *tracing
	metrics *metrics
	started time.Time

	filters *filters
	stores  *stores
	set     *membership.Set
	query   *current
	state   reloadState
}

func (p *process) run(ctx context.Context, cfg config.Config) (err error) {
	// Ports first: a second process is noticed before it touches a database.
	httpL, err := listen("http.listen", cfg.HTTP.Listen)
	if err != nil {
		return err
	}
	defer httpL.Close()
	var grpcL net.Listener
	if cfg.GRPC.Listen != "" {
		if grpcL, err = listen("grpc.listen", cfg.GRPC.Listen); err != nil {
			return err
		}
		defer grpcL.Close()
	}

	if p.filters, err = newFilters(cfg.Plugins, p.log, p.metrics); err != nil {
		return err
	}
	// Last of all: backends may be plug-ins.
	defer p.filters.close()
	filters, err := p.filters.open(ctx, cfg, true)
	if err != nil {
		return err
	}
	filters.commit()
	p.stores = newStores(p.log, p.metrics, p.tracing, p.filters.registry)
	p.stores.ships = true
	entries, commit, err := p.stores.open(ctx, cfg, filters)
	if err != nil {
		return err
	}
	scraper := p.selfScraper(cfg, httpL.Addr().String())
	p.set = membership.New(entries, membership.Options{Logger: p.log.With("part", "membership")})
	commit()
	// After the group, when no query runs any more.
	defer func() {
		p.query.close()
		p.set.Close()
	}()
	if err := p.query.use(cfg.Query, p.set, &p.filters.doors, p.log, p.metrics, p.tracing); err != nil {
		return err
	}
	p.state.reloaded(cfg, p.metrics, true)

	httpS, err := p.httpServer(cfg)
	if err != nil {
		return err
	}
	grpcS, err := p.grpcServer(cfg)
	if err != nil {
		return err
	}

	var g run.Group
	add := func(name string, f func(context.Context) error) {
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		g.Add(func() error {
			err := f(ctx)
			if err != nil {
				p.log.Error("a part failed", "part", name, "err", err)
			}
			return err
		}, func(error) { cancel() })
	}
	stop, stopped := context.WithCancel(ctx)
	g.Add(func() error {
		<-stop.Done()
		if ctx.Err() != nil {
			p.log.Info("stopping; running queries may finish", "within", p.state.config().Query.Timeout, "hint", "a second signal ends at once")
		}
		return nil
	}, func(error) { stopped() })

	// The backends go last: what the servers are still answering needs them, and so does shipping.
	var servers sync.WaitGroup
	g.Add(func() error {
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		go func() {
			servers.Wait()
			cancel()
		}()
		return p.set.Run(ctx)
	}, func(error) {})
	add("reload", p.reloadOnSignal)
	add("filters", p.awaitFilters)
	if scraper != nil {
		add("self-scrape", scraper.Run)
	}
	servers.Add(1)
	add("ship", func(ctx context.Context) error {
		defer servers.Done()
		<-ctx.Done()
		p.stores.stopShipping(lastShip)
		return nil
	})
	grace := func() time.Duration { return p.state.config().Query.Timeout }
	servers.Add(1)
	add("http", func(ctx context.Context) error {
		defer servers.Done()
		return serveHTTP(ctx, httpL, httpS, cfg.HTTP.WebConfigFile, grace, p.log)
	})
	if grpcL != nil {
		servers.Add(1)
		add("grpc", func(ctx context.Context) error {
			defer servers.Done()
			return serveGRPC(ctx, grpcL, grpcS, grace)
		})
	}
	a := Addresses{HTTP: httpL.Addr().String()}
	if grpcL != nil {
		a.GRPC = grpcL.Addr().String()
	}
	p.log.Info("listening", "http", a.HTTP, "grpc", cmp.Or(a.GRPC, "off"))
	if p.o.ConfigFile == "" && cfg.HTTP.WebConfigFile == "" {
		p.log.Info("there is no configuration file, only Promweave's own metrics are served; to try it, open "+
			"http://"+reachable(httpL.Addr())+"/api/v1/query?query=up", "hint", "name a file by --config")
	}
	if p.o.Started != nil {
		p.o.Started(a)
	}
	return g.Run()
}

// reachable is where a browser on this machine finds what listens at a.
func reachable(a net.Addr) string {
	if t, ok := a.(*net.TCPAddr); ok && t.IP.IsUnspecified() {
		return fmt.Sprintf("localhost:%d", t.Port)
	}
	return a.String()
}

func listen(key, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s: %s is in use: stop what listens there, or choose another address (--%s)", key, addr, key)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return l, nil
}

// selfScraper is nil if self-scraping is turned off.
func (p *process) selfScraper(cfg config.Config, instance string) *scrape.Scraper {
	if cfg.SelfScrape.Backend == "" {
		return nil
	}
	b, ok := p.stores.get(cfg.SelfScrape.Backend).(*tsdb.Backend)
	if !ok || b.Appendable() == nil { // validation of the configuration excludes it
		return nil
	}
	s := scrape.New(b.Appendable(), scrape.Options{Interval: cfg.SelfScrape.Interval, Logger: p.log.With("part", "self-scrape")},
		scrape.Target{Job: "promweave", Instance: instance, Gatherer: p.metrics})
	b.UseMetadata(s)
	return s
}

func (p *process) httpServer(cfg config.Config) (*http.Server, error) {
	build, _ := debug.ReadBuildInfo()
	api, err := httpapi.New(httpapi.Options{
		Queries: p.query,
		Metrics: promhttp.HandlerFor(p.metrics, promhttp.HandlerOpts{EnableOpenMetrics: true, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelWarn)}),
		UI:      p.o.Extra,
		Reload:  func(context.Context) error { return p.reload("HTTP") },
		Ready: func() error {
			if !p.set.Ready() {
				return errors.New("the backends have not all been asked yet")
			}
			return nil
		},
		Authenticate:  p.filters.doors.http,
		Blocks:        p.stores.blocks,
		Plugins:       p.filters.statuses,
		RestartPlugin: p.filters.restart,
		Config:        func() string { return p.state.config().Redacted() },
		Flags:         p.o.Flags,
		BuildInfo: httpapi.BuildInfo{
			Version: buildVersion(p.o.Version, build), Revision: version.GetRevision(), Branch: version.Branch,
			BuildUser: version.BuildUser, BuildDate: version.BuildDate, GoVersion: runtime.Version(),
		},
		RuntimeInfo:             p.runtimeInfo,
		Profiling:               true,
		Logger:                  p.log.With("part", "http"),
		IgnoreUnknownParameters: cfg.HTTP.IgnoreUnknownParameters,
	})
	if err != nil {
		return nil, err
	}
	return &http.Server{
		Handler:           p.tracing.http(api),
		ReadHeaderTimeout: 10 * time.Second,
		// A client that does not send its request, or does not read its answer, goes.
		ReadTimeout:  time.Minute,
		WriteTimeout: cfg.Query.Timeout + 2*time.Minute,
		IdleTimeout:  2 * time.Minute,
		ErrorLog:     slog.NewLogLogger(p.log.With("part", "http").Handler(), slog.LevelDebug),
	}, nil
}

// prometheusVersion is that of the Prometheus whose API is served, for a build that
// does not tell its modules.
const prometheusVersion = "3.9.1"

// modulePath and moduleVersion are how Prometheus is released as a Go module: 3.9.1
// is v0.309.1, see RELEASE.md of Prometheus.
const modulePath = "github.com/prometheus/prometheus"

var moduleVersion = regexp.MustCompile(`^v0\.([1-9])(\d\d)\.(\d+)$`)

// buildVersion is what clients compare with versions of Prometheus, to know what
// they may ask: the version of Prometheus whose API is served, with our own as
// metadata, which does not take part in comparisons (semver.org, 10).
func buildVersion(own string, info *debug.BuildInfo) string {
	prom := prometheusVersion
	if info != nil {
		for _, m := range info.Deps {
			if m.Path == modulePath {
				if m.Replace != nil {
					m = m.Replace
				}
				prom = cmp.Or(fromModule(m.Version), prom)
			}
		}
	}
	own = strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return '-'
	}, strings.TrimPrefix(own, "v"))
	return prom + "+promweave." + cmp.Or(own, "devel")
}

// fromModule is the version of Prometheus that a version of its module stands for,
// "" if it stands for none.
func fromModule(v string) string {
	m := moduleVersion.FindStringSubmatch(v)
	if m == nil {
		return ""
	}
	return m[1] + "." + strings.TrimPrefix(m[2], "0") + "." + m[3]
}

func (p *process) runtimeInfo() httpapi.RuntimeInfo {
	ok, at := p.state.last()
	host, _ := os.Hostname()
	wd, _ := os.Getwd()
	return httpapi.RuntimeInfo{
		StartTime: p.started, CWD: wd, Hostname: host, ServerTime: time.Now(),
		ReloadConfigSuccess: ok, LastConfigTime: at,
		GoroutineCount: runtime.NumGoroutine(), GOMAXPROCS: runtime.GOMAXPROCS(0),
		GOMEMLIMIT: debug.SetMemoryLimit(-1), GOGC: os.Getenv("GOGC"), GODEBUG: os.Getenv("GODEBUG"),
	}
}

// serveHTTP serves until ctx is done and then lets requests finish.
func serveHTTP(ctx context.Context, l net.Listener, s *http.Server, webConfig string, grace func() time.Duration, log *slog.Logger) error {
	done := make(chan error, 1)
	go func() {
		none := false
		addrs := []string{l.Addr().String()}
		done <- web.ServeMultiple([]net.Listener{l}, s, &web.FlagConfig{
			WebListenAddresses: &addrs, WebSystemdSocket: &none, WebConfigFile: &webConfig,
		}, log)
	}()
	select {
	case err := <-done:
		return fmt.Errorf("HTTP server: %w", err)
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace())
	defer cancel()
	if err := s.Shutdown(late); err != nil {
		s.Close()
		log.Warn("requests were cut off at the end", "err", err)
	}
	<-done
	return nil
}

func (p *process) grpcServer(cfg config.Config) (*grpc.Server, error) {
	opts := storeapi.ServerOptions(p.tracing.grpcServer()...)
	opts = append(opts, p.filters.doors.grpc()...)
	if t := cfg.GRPC.TLS; t.Enabled() {
		tlsCfg, err := serverTLS(t)
		if err != nil {
			return nil, fmt.Errorf("grpc.tls: %w", err)
		}
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsCfg)))
	}
	s := grpc.NewServer(opts...)
	storeapi.NewServer(proxy{p.query}, storeapi.ServerConfig{Name: "promweave", QueryAPI: true, Logger: p.log.With("part", "grpc")}).Register(s)
	grpcapi.Register(s, p.query)
	// What every Thanos server has too: probes and grpcurl use them.
	healthpb.RegisterHealthServer(s, health.NewServer())
	reflection.Register(s)
	return s, nil
}

// serveGRPC serves until ctx is done and then lets calls finish.
func serveGRPC(ctx context.Context, l net.Listener, s *grpc.Server, grace func() time.Duration) error {
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("gRPC server: %w", err)
	case <-ctx.Done():
	}
	// Stop makes GracefulStop return; both wait for handlers to return.
	cut := time.AfterFunc(grace(), s.Stop)
	defer cut.Stop()
	s.GracefulStop()
	<-done
	return nil
}

func (p *process) reloadOnSignal(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-hup:
			if err := p.reload("SIGHUP"); err != nil {
				p.log.Error("reload failed, the old configuration stays in force", "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

var _ prometheus.Gatherer = (*metrics)(nil)
