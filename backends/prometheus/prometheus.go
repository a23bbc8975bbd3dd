// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package prometheus makes a running Prometheus server a backend: samples by
// remote read, streamed where the server can, and all the rest by its HTTP API.
// Nothing has to be installed beside the server. External labels are those of
// the server's own configuration, and followed when they change.
package prometheus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"gopkg.in/yaml.v3"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/remoteread"
)

// ReadMode is the form in which samples are asked for.
type ReadMode string

// The read modes.
const (
	// ReadAuto takes streamed chunks, or samples from servers without them.
	ReadAuto ReadMode = "auto"
	// ReadStreamed takes nothing but streamed chunks.
	ReadStreamed ReadMode = "streamed"
	// ReadSamples asks for samples. Prometheus before 2.43 leaves out native
	// histograms then and does not say so.
	ReadSamples ReadMode = "samples"
)

// Config says where the server is and how to talk to it.
type Config struct {
	// URL of the server, with the path prefix that it may be under.
	URL string `koanf:"url"`
	// ExternalLabels, if there are any, replace those of the server's configuration.
	ExternalLabels map[string]string `koanf:"external_labels"`
	HTTP           HTTPConfig        `koanf:"http"`
	// Timeout bounds every call as a whole; 2 minutes by default.
	Timeout time.Duration `koanf:"timeout"`
	// RefreshInterval is how old external labels and time bounds may get before
	// Info reads them again; 10 seconds by default.
	RefreshInterval time.Duration `koanf:"refresh_interval"`
	// ReadMode is auto by default.
	ReadMode ReadMode `koanf:"read_mode"`
	// MaxBuffered bounds in bytes what one call keeps in memory: all series where
	// they have to be sorted here, and answers that are no streams. By default
	// 512 MiB.
	MaxBuffered int `koanf:"max_buffered"`
	// Client replaces the HTTP client that HTTP describes.
	Client *http.Client `koanf:"-"`
}

// Backend is one Prometheus server.
type Backend struct {
	cfg    Config
	log    *slog.Logger
	http   *http.Client
	base   *url.URL
	read   remoteread.Client
	config labels.Labels // of cfg.ExternalLabels

	loading chan struct{} // held while the state is loaded
	state   atomic.Pointer[state]
	// unsorted is set once the server's order was found wrong; everything is
	// sorted here from then on.
	unsorted atomic.Bool
	// sampled is set once the server answered with samples although it was
	// offered to stream.
	sampled atomic.Bool
}

// state is what is known about the server.
type state struct {
	at time.Time
	// external is what series carry; server is what the server adds in remote
	// read, which differs if the configuration of this backend replaces it.
	external, server labels.Labels
	// stored says that labels named as an external one are stored too.
	stored bool
	// deaf: lists of label names and values are of all series, whatever match[] says, as
	// in Prometheus before 2.24.
	deaf bool
	// bounded: the server holds what it answers with, and does not read on from
	// elsewhere.
	bounded bool
	minTime int64
	version string
}

// infoTimeout is less than what the contract allows for Info.
const infoTimeout = 4500 * time.Millisecond

var (
	_ backend.Backend           = (*Backend)(nil)
	_ backend.Closer            = (*Backend)(nil)
	_ backend.ExemplarsBackend  = (*Backend)(nil)
	_ backend.MetadataBackend   = (*Backend)(nil)
	_ backend.RulesBackend      = (*Backend)(nil)
	_ backend.TargetsBackend    = (*Backend)(nil)
	_ backend.StatisticsBackend = (*Backend)(nil)
)

// New makes a backend. It does not talk to the server: one that is down now may
// be up later.
func New(cfg Config, logger *slog.Logger) (*Backend, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "prometheus backend: url: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, backend.Errorf(backend.ErrInvalid, "prometheus backend: url %q must look like http://host:9090", u.Redacted())
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return nil, backend.Errorf(backend.ErrInvalid, "prometheus backend: url %q must have no query and no fragment", u.Redacted())
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	switch cfg.ReadMode {
	case "":
		cfg.ReadMode = ReadAuto
	case ReadAuto, ReadStreamed, ReadSamples:
	default:
		return nil, backend.Errorf(backend.ErrInvalid, "prometheus backend: read_mode %q is none of auto, streamed, samples", cfg.ReadMode)
	}
	if cfg.Timeout < 0 || cfg.RefreshInterval < 0 || cfg.MaxBuffered < 0 {
		return nil, backend.Errorf(backend.ErrInvalid, "prometheus backend: timeout, refresh_interval and max_buffered must not be negative")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Minute
	}
	if cfg.RefreshInterval == 0 {
		cfg.RefreshInterval = 10 * time.Second
	}
	if cfg.MaxBuffered == 0 {
		cfg.MaxBuffered = 512 << 20
	}
	ext, err := externalLabels(cfg.ExternalLabels)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "prometheus backend: %w", err)
	}
	client := cfg.Client
	if client == nil {
		if client, err = cfg.HTTP.client(); err != nil {
			return nil, backend.Errorf(backend.ErrInvalid, "prometheus backend: %w", err)
		}
	}
	b := &Backend{
		cfg: cfg, log: logger, http: client, base: u, config: ext,
		loading: make(chan struct{}, 1),
	}
	b.read = remoteread.Client{URL: b.url("/api/v1/read"), HTTP: client, MaxResponse: cfg.MaxBuffered}
	switch cfg.ReadMode {
	case ReadStreamed:
		b.read.Accept = []remoteread.ResponseType{remoteread.Streamed}
	case ReadSamples:
		b.read.Accept = []remoteread.ResponseType{remoteread.Samples}
	}
	return b, nil
}

func externalLabels(m map[string]string) (labels.Labels, error) {
	for n, v := range m {
		if n == "" || n == model.MetricNameLabel || !model.LabelValue(n).IsValid() || !model.LabelValue(v).IsValid() {
			return labels.EmptyLabels(), fmt.Errorf("external label %q=%q is invalid", n, v)
		}
	}
	return labels.FromMap(m).WithoutEmpty(), nil
}

// Close closes idle connections.
func (b *Backend) Close() error {
	b.http.CloseIdleConnections()
	return nil
}

// bound gives ctx the deadline of a call.
func bound(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d,
		backend.Errorf(backend.ErrUnavailable, "no complete answer within the backend's timeout of %s: %w", d, context.DeadlineExceeded))
}

// Info tells whether the server is ready, and what it holds.
func (b *Backend) Info(ctx context.Context) (backend.Info, error) {
	ctx, cancel := bound(ctx, infoTimeout)
	defer cancel()
	if err := b.ready(ctx); err != nil {
		// It may come back with another configuration.
		b.expire()
		return backend.Info{}, err
	}
	st, err := b.load(ctx, b.cfg.RefreshInterval)
	if err != nil {
		return backend.Info{}, err
	}
	info := backend.AllTime()
	info.Component = "sidecar"
	info.MinTime = st.minTime
	info.Version = st.version
	if !st.external.IsEmpty() {
		info.LabelSets = []labels.Labels{st.external}
		info.Ranges = []backend.LabelSetRange{{Labels: st.external, MinTime: info.MinTime, MaxTime: info.MaxTime}}
	}
	info.Capabilities = backend.Capabilities{
		Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true,
		BoundedLabels: true, StaleMarkers: true,
		// A server that reads on from elsewhere does not tell what is missing there.
		Completeness:     st.bounded,
		NativeHistograms: b.cfg.ReadMode != ReadSamples && !b.sampled.Load() && !experimental(st.version),
		Exemplars:        true, Metadata: true, Rules: true, Targets: true, Statistics: true,
	}
	return info, nil
}

// ready asks for readiness. A proxy that shows the API alone answers 404, which
// counts as ready.
func (b *Backend) ready(ctx context.Context) error {
	resp, err := b.get(ctx, "/-/ready", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 || resp.StatusCode == http.StatusNotFound {
		return nil
	}
	return b.statusError(resp, "/-/ready")
}

// expire makes the next Info read the configuration again. What is known stays
// in use until then.
func (b *Backend) expire() {
	if st := b.state.Load(); st != nil && !st.at.IsZero() {
		old := *st
		old.at = time.Time{}
		b.state.CompareAndSwap(st, &old)
	}
}

// current returns the state for a call for data, however old it is.
func (b *Backend) current(ctx context.Context) (*state, error) {
	return b.load(ctx, math.MaxInt64)
}

// load returns a state that is at most so old.
func (b *Backend) load(ctx context.Context, maxAge time.Duration) (*state, error) {
	fresh := func() *state {
		st := b.state.Load()
		if st == nil || maxAge != math.MaxInt64 && (st.at.IsZero() || time.Since(st.at) >= maxAge) {
			return nil
		}
		return st
	}
	if st := fresh(); st != nil {
		return st, nil
	}
	select {
	case b.loading <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("reading the configuration of %s: %w", b.base.Redacted(), context.Cause(ctx))
	}
	defer func() { <-b.loading }()
	if st := fresh(); st != nil {
		return st, nil // Somebody else did it meanwhile.
	}
	st, err := b.fetch(ctx)
	if err != nil {
		return nil, err
	}
	old := b.state.Load()
	if old != nil && !labels.Equal(old.external, st.external) {
		b.log.Info("external labels changed", "url", b.base.Redacted(), "from", old.external.String(), "to", st.external.String())
	}
	if st.deaf && (old == nil || !old.deaf) {
		b.log.Warn("the server does not heed match[] in lists of label names and values; they are read from series, which costs more", "url", b.base.Redacted())
	}
	b.state.Store(st)
	return st, nil
}

// serverConfig is what interests us of a Prometheus configuration.
type serverConfig struct {
	Global struct {
		ExternalLabels map[string]string `yaml:"external_labels"`
	} `yaml:"global"`
	RemoteRead []any `yaml:"remote_read"`
	Storage    struct {
		TSDB struct {
			OutOfOrder model.Duration `yaml:"out_of_order_time_window"`
		} `yaml:"tsdb"`
	} `yaml:"storage"`
}

func (b *Backend) fetch(ctx context.Context) (*state, error) {
	st := &state{at: time.Now(), minTime: math.MinInt64}
	var sc serverConfig
	err := b.serverConfig(ctx, &sc)
	st.bounded = err == nil && len(sc.RemoteRead) == 0
	switch {
	case err == nil:
		if st.server, err = externalLabels(sc.Global.ExternalLabels); err != nil {
			return nil, backend.Errorf(backend.ErrInternal, "configuration of %s: %w", b.base.Redacted(), err)
		}
	case b.config.IsEmpty() || !isRefusal(err):
		return nil, err
	default:
		// Enough is known without. Most likely both agree.
		st.server = b.config
		b.log.Warn("the server does not show its configuration; its external labels are taken to be the configured ones",
			"url", b.base.Redacted(), "err", err)
	}
	st.external = st.server
	if !b.config.IsEmpty() {
		st.external = b.config
	}
	names, _, err := b.labelsAPI(ctx, "/api/v1/labels", url.Values{})
	if err != nil {
		return nil, err
	}
	st.stored = slices.ContainsFunc(names, func(n string) bool { return st.server.Has(n) })
	if st.deaf, err = b.deaf(ctx); err != nil {
		return nil, err
	}
	if st.bounded {
		// A server that reads from further ones, or that may do so, has no bound.
		st.minTime = b.lowest(ctx, time.Duration(sc.Storage.TSDB.OutOfOrder))
	}
	st.version = b.version(ctx)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("reading the configuration of %s: %w", b.base.Redacted(), context.Cause(ctx))
	}
	return st, nil
}

// deaf asks for the names and values of series that nobody has. What a server says that
// takes matchers for noise would show one tenant's names to another.
func (b *Backend) deaf(ctx context.Context) (bool, error) {
	none := url.Values{"match[]": {`{__name__="promweave:no_series_has_this_name"}`}}
	for _, path := range []string{"/api/v1/labels", "/api/v1/label/" + model.MetricNameLabel + "/values"} {
		switch found, _, err := b.labelsAPI(ctx, path, none); {
		case len(found) > 0:
			return true, nil
		case err != nil && !isRefusal(err) && !errors.Is(err, backend.ErrInvalid):
			return false, err
		case err != nil:
			return true, nil // what it takes for a mistake it does not know
		}
	}
	return false, nil
}

func isRefusal(err error) bool {
	return errors.Is(err, backend.ErrDenied) || errors.Is(err, backend.ErrUnsupported)
}

func (b *Backend) serverConfig(ctx context.Context, out *serverConfig) error {
	var data struct {
		YAML *string `json:"yaml"`
	}
	if _, err := b.api(ctx, "/api/v1/status/config", nil, &data); err != nil {
		return err
	}
	if data.YAML == nil {
		return backend.Errorf(backend.ErrUnsupported, "%s does not show its configuration; set external_labels", b.base.Redacted())
	}
	if err := yaml.Unmarshal([]byte(*data.YAML), out); err != nil {
		return backend.Errorf(backend.ErrInternal, "configuration of %s: %w", b.base.Redacted(), err)
	}
	return nil
}

// margin is how far below the lowest timestamp samples may still be stored: the
// head takes them for half of its two hours. Twice that is on the safe side.
const margin = 2 * time.Hour

// lowest returns a lower bound of the times in the database, in ms; the metric
// is in ms too. Without it, or in an empty database, there is no bound.
func (b *Backend) lowest(ctx context.Context, outOfOrder time.Duration) int64 {
	resp, err := b.get(ctx, "/metrics", nil)
	if err != nil {
		return math.MinInt64
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return math.MinInt64
	}
	lines := bufio.NewScanner(http.MaxBytesReader(nil, resp.Body, maxSmall))
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "prometheus_tsdb_lowest_timestamp")
		if !ok {
			continue
		}
		if strings.HasPrefix(rest, "{") {
			if _, rest, ok = strings.Cut(rest, "}"); !ok {
				continue
			}
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 || !strings.HasPrefix(rest, " ") {
			continue // Another metric, with a longer name.
		}
		v, err := strconv.ParseFloat(fields[0], 64)
		// An empty head says MaxInt64.
		if err != nil || math.IsNaN(v) || math.Abs(v) > 1<<52 {
			return math.MinInt64
		}
		return int64(math.Floor(v)) - (margin + outOfOrder).Milliseconds()
	}
	return math.MinInt64
}

// experimental says that native histograms of a server with this version are: 2.42 cannot
// read a gauge histogram back by remote read ("detected unexpected counter reset").
func experimental(version string) bool { return strings.HasPrefix(version, "2.") }

// version is for display and for that; its absence is no error.
func (b *Backend) version(ctx context.Context) string {
	var data struct {
		Version string `json:"version"`
	}
	if _, err := b.api(ctx, "/api/v1/status/buildinfo", nil, &data); err != nil {
		return ""
	}
	return data.Version
}
