// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package config is the configuration of the promweave command: what may be
// written in promweave.yaml, in PROMWEAVE_* environment variables and in flags,
// what it means when nothing is written, and what is wrong with it, by file and
// line. It knows no backend: it only describes them.
package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/model"
)

// DefaultFile is read by serve when no other file is named; it may be missing.
const DefaultFile = "promweave.yaml"

// DefaultDataDir holds the embedded TSDB of a configuration without backends.
const DefaultDataDir = "./promweave-data"

// defaultRetention is that of Prometheus.
const defaultRetention = 15 * 24 * time.Hour

// Kinds of backends of this release.
const (
	KindTSDB       = "tsdb"
	KindStoreAPI   = "storeapi"
	KindPrometheus = "prometheus"
	KindBucket     = "bucket"
)

// kindPlugin stands for the kind of a backend that is a plug-in, which has none.
const kindPlugin = "plugin"

// Kinds of filters that are part of the program.
const (
	FilterLabelRewrite = "label_rewrite"
	FilterTenancy      = "tenancy"
	FilterAuth         = "auth"
)

// Config is everything that can be configured. The tags name the keys and say
// what they are for: flags and the list of environment variables come from them.
type Config struct {
	HTTP       HTTP       `koanf:"http"`
	GRPC       GRPC       `koanf:"grpc"`
	Query      Query      `koanf:"query"`
	Logging    Logging    `koanf:"logging"`
	Tracing    Tracing    `koanf:"tracing"`
	SelfScrape SelfScrape `koanf:"self_scrape"`
	Auth       Identity   `koanf:"auth"`
	Plugins    Plugins    `koanf:"plugins"`
	// Filters work only where they are named: in query.filters or at a backend.
	Filters []Filter `koanf:"filters"`
	// Backends is never empty unless the file says "backends: []".
	Backends []Backend `koanf:"backends"`
}

// HTTP configures the HTTP server: API, metrics, health and reload.
type HTTP struct {
	Listen        string `koanf:"listen" doc:"address of the HTTP API, metrics and health checks; port 0 picks a free one"`
	WebConfigFile string `koanf:"web_config_file" path:"yes" doc:"TLS and basic authentication of the HTTP server, in the web configuration format of Prometheus"`
	// IgnoreUnknownParameters is what other servers of this API do.
	IgnoreUnknownParameters bool `koanf:"ignore_unknown_parameters" doc:"accept requests with URL parameters that are not known, instead of refusing them with status 400"`
}

// GRPC configures the gRPC server: StoreAPI, Info and Query API.
type GRPC struct {
	Listen string        `koanf:"listen" doc:"address of the gRPC server (StoreAPI, Info, Query); empty turns it off"`
	TLS    GRPCServerTLS `koanf:"tls"`
}

// GRPCServerTLS is TLS of the gRPC server. All empty is plain text.
type GRPCServerTLS struct {
	Cert     string `koanf:"cert" path:"yes" doc:"certificate of the gRPC server, PEM"`
	Key      string `koanf:"key" path:"yes" doc:"private key of the gRPC server, PEM"`
	ClientCA string `koanf:"client_ca" path:"yes" doc:"CA that client certificates must be signed by; set, it makes them mandatory"`
}

// Enabled says whether the gRPC server is to use TLS.
func (t GRPCServerTLS) Enabled() bool { return t.Cert != "" }

// Query configures how queries are answered.
type Query struct {
	Engine           string        `koanf:"engine" doc:"engine of queries that name none: prometheus or thanos"`
	Timeout          time.Duration `koanf:"timeout" doc:"longest time one query may take"`
	MaxConcurrent    int           `koanf:"max_concurrent" doc:"most queries that run at once; further ones wait"`
	LookbackDelta    time.Duration `koanf:"lookback_delta" doc:"how far back an instant looks for the last sample"`
	ReplicaLabels    []string      `koanf:"replica_labels" doc:"labels that tell replicas of the same data apart"`
	Dedup            string        `koanf:"dedup" doc:"how replicas are merged: default, penalty, chain or off"`
	AutoDownsampling bool          `koanf:"auto_downsampling" doc:"choose the resolution of downsampled data by the step"`
	PartialResponse  bool          `koanf:"partial_response" doc:"answer although a backend that is not required is missing, with a warning"`
	Filters          []string      `koanf:"filters" doc:"filters of every request and every backend, in order; auth and tenancy filters belong here"`
	Limits           Limits        `koanf:"limits"`
}

// Limits bound memory. 0 turns a limit off.
type Limits struct {
	Series       int64 `koanf:"series" doc:"most series that one query may select; 0 is no limit"`
	Samples      int64 `koanf:"samples" doc:"most samples that one query may hold in memory; 0 is no limit"`
	Bytes        Size  `koanf:"bytes" doc:"most bytes that one query may receive from backends; 0 is no limit"`
	ProcessBytes Size  `koanf:"process_bytes" doc:"most bytes that all running queries together may hold; 0 is no limit"`
}

// Logging configures the log on standard error.
type Logging struct {
	Level  string `koanf:"level" doc:"debug, info, warn or error"`
	Format string `koanf:"format" doc:"logfmt or json"`
}

// Tracing configures OpenTelemetry traces by OTLP over gRPC.
type Tracing struct {
	Endpoint    string  `koanf:"endpoint" doc:"host:port of an OTLP gRPC receiver; empty turns tracing off"`
	Insecure    bool    `koanf:"insecure" doc:"send traces without TLS"`
	SampleRatio float64 `koanf:"sample_ratio" doc:"share of traces that is kept, 0 to 1"`
}

// SelfScrape configures that Promweave stores its own metrics.
type SelfScrape struct {
	Backend  string        `koanf:"backend" doc:"name of a writable tsdb backend that receives Promweave's own metrics; empty turns it off"`
	Interval time.Duration `koanf:"interval" doc:"time between two scrapes of Promweave's own metrics"`
}

// Backend is one store, or a group of them. Exactly the field that belongs to
// Kind is set.
type Backend struct {
	Name           string            `koanf:"name" doc:"unique name, of a-z 0-9 - _ ."`
	Kind           string            `koanf:"kind" doc:"tsdb, bucket, storeapi or prometheus"`
	ExternalLabels map[string]string `koanf:"external_labels" doc:"labels added to every series of the backend"`
	Required       bool              `koanf:"required" doc:"without it a query fails, even where partial answers are allowed"`
	Timeout        time.Duration     `koanf:"timeout" doc:"longest time the backend may take for its share; 0 is that of the query"`
	Time           TimeRange         `koanf:"time"`
	Filters        []string          `koanf:"filters" doc:"filters of this backend, in order, after those of query.filters"`
	Plugin         *Plugin           `koanf:"plugin"`

	TSDB       *TSDB       `koanf:"config" kind:"tsdb"`
	StoreAPI   *StoreAPI   `koanf:"config" kind:"storeapi"`
	Prometheus *Prometheus `koanf:"config" kind:"prometheus"`
	Bucket     *Bucket     `koanf:"config" kind:"bucket"`
	// Config is that of a plug-in, as JSON.
	Config Raw `koanf:"config" kind:"plugin" doc:"what the plug-in's own documentation says"`
}

// TimeRange bounds what may be asked of a backend.
type TimeRange struct {
	Min TimeBound `koanf:"min" doc:"no data before it are asked for: RFC 3339, or relative to now as in -30d"`
	Max TimeBound `koanf:"max" doc:"no data after it are asked for: RFC 3339, or relative to now as in -2h"`
}

// TSDB is a directory with a Prometheus TSDB.
type TSDB struct {
	Path     string `koanf:"path" path:"yes" doc:"directory of the TSDB"`
	ReadOnly bool   `koanf:"read_only" doc:"never write to the directory, not even its lock; needed when a Prometheus owns it"`
	// Retention is for a directory that is written to.
	Retention time.Duration `koanf:"retention" doc:"how long samples are kept in a directory that is written to"`
	Ship      *Ship         `koanf:"ship"`
}

// StoreAPI is one or more endpoints that speak the Thanos StoreAPI. One of
// Address, Addresses and Files is set.
type StoreAPI struct {
	Address     string    `koanf:"address" doc:"host:port, or a name to look up: dns+, dnssrv+ or dnssrvnoa+"`
	Addresses   []string  `koanf:"addresses" doc:"several of what address takes"`
	Files       []string  `koanf:"files" path:"yes" doc:"file_sd files with addresses, globs allowed, read again when they change"`
	Group       bool      `koanf:"group" doc:"all addresses hold the same data: ask one of them, not all"`
	Compression string    `koanf:"compression" doc:"none or snappy"`
	TLS         ClientTLS `koanf:"tls"`
}

// Prometheus is a Prometheus server, or something with its remote-read API.
type Prometheus struct {
	URL      string        `koanf:"url" doc:"URL of the server, without /api"`
	Auth     Auth          `koanf:"auth"`
	TLS      ClientTLS     `koanf:"tls"`
	Timeout  time.Duration `koanf:"timeout" doc:"longest time for one request to the server; 0 is 2m"`
	ReadMode string        `koanf:"read_mode" doc:"form of remote read: auto, streamed or samples"`
	Ship     *Ship         `koanf:"ship"`
}

// Ship has the finished blocks of a TSDB directory uploaded to a bucket; nil is off.
type Ship struct {
	Objstore Raw `koanf:"objstore" doc:"the bucket that blocks go to, as Thanos has it: {type: S3, config: {bucket: …, endpoint: …}, prefix: …}"`
	// Dir is for a Prometheus: a tsdb has its own.
	Dir           string        `koanf:"dir" path:"yes" doc:"data directory of the Prometheus, the one with its blocks; none for a tsdb, which ships its own"`
	Interval      time.Duration `koanf:"interval" doc:"time between two looks for new blocks"`
	Compacted     bool          `koanf:"compacted" doc:"ship blocks that were compacted in the directory too, unless they overlap what the bucket has"`
	OutOfOrder    bool          `koanf:"out_of_order" doc:"ship younger blocks although an older one failed"`
	SkipCorrupted bool          `koanf:"skip_corrupted" doc:"go on past blocks that cannot be read"`
	Concurrency   int           `koanf:"concurrency" doc:"most files of a block that are uploaded at once"`
	HashFunc      string        `koanf:"hash_func" doc:"digest of each file for the block's meta.json: SHA256, or empty for none"`
}

// DefaultShip has what shipping has if nothing is said.
func DefaultShip() Ship { return Ship{Interval: 30 * time.Second, Concurrency: 4} }

// Bucket is an object-storage bucket with blocks, as Thanos keeps them.
type Bucket struct {
	Objstore Raw    `koanf:"objstore" doc:"the bucket, as Thanos has it: {type: S3, config: {bucket: …, endpoint: …}, prefix: …}"`
	DataDir  string `koanf:"data_dir" path:"yes" doc:"directory for index headers and what is known of blocks; it can be lost and is made anew"`
	// SyncInterval and the delays are those of Thanos' store gateway.
	SyncInterval time.Duration `koanf:"sync_interval" doc:"time between two looks at which blocks there are"`
	// ConsistencyDelay hides fresh uploads.
	ConsistencyDelay        time.Duration `koanf:"consistency_delay" doc:"age from which an uploaded block is used; for providers whose listings lag behind"`
	IgnoreDeletionMarkDelay time.Duration `koanf:"ignore_deletion_marks_delay" doc:"time after which a block that is marked for deletion is not used any more"`
	Concurrency             int           `koanf:"concurrency" doc:"most reads of the bucket at once, by all queries together, and by a look at which blocks there are"`
	MaxRequestBytes         int64         `koanf:"max_request_bytes" doc:"most bytes of the bucket that one request may fetch; 0 is any number"`
}

// DefaultBucket has what a bucket has if nothing is said.
func DefaultBucket() Bucket {
	return Bucket{DataDir: "bucket-cache", SyncInterval: 15 * time.Minute, IgnoreDeletionMarkDelay: 24 * time.Hour, Concurrency: 32}
}

// Auth is how a client says who it is over HTTP: nothing, a user or a token.
type Auth struct {
	Username        string `koanf:"username" doc:"user of basic authentication"`
	Password        Secret `koanf:"password" doc:"its password; better in password_file"`
	PasswordFile    string `koanf:"password_file" path:"yes" doc:"file with the password, read for every connection"`
	BearerToken     Secret `koanf:"bearer_token" doc:"token to send; better in bearer_token_file"`
	BearerTokenFile string `koanf:"bearer_token_file" path:"yes" doc:"file with the token, read for every connection"`
}

// ClientTLS is TLS towards a backend.
type ClientTLS struct {
	Enabled            bool   `koanf:"enabled" doc:"use TLS; for https URLs it always is"`
	CA                 string `koanf:"ca" path:"yes" doc:"CA of the server's certificate, PEM; empty takes the system's"`
	Cert               string `koanf:"cert" path:"yes" doc:"certificate of the client, PEM"`
	Key                string `koanf:"key" path:"yes" doc:"private key of the client, PEM"`
	ServerName         string `koanf:"server_name" doc:"name expected in the server's certificate"`
	InsecureSkipVerify bool   `koanf:"insecure_skip_verify" doc:"accept any certificate: no protection against a false server"`
}

// Default is the configuration of an empty file: one embedded TSDB that holds
// Promweave's own metrics.
func Default() Config {
	c := base()
	c.embed()
	return c
}

// base is Default without backends, which values are decoded onto.
func base() Config {
	return Config{
		HTTP: HTTP{Listen: "127.0.0.1:9090"},
		GRPC: GRPC{Listen: "127.0.0.1:10901"},
		Query: Query{
			Engine:           "prometheus",
			Timeout:          2 * time.Minute,
			MaxConcurrent:    20,
			LookbackDelta:    5 * time.Minute,
			ReplicaLabels:    []string{"replica"},
			Dedup:            "default",
			AutoDownsampling: true,
			PartialResponse:  true,
			Limits: Limits{
				Series:       1_000_000,
				Samples:      50_000_000,
				Bytes:        2 << 30,
				ProcessBytes: 4 << 30,
			},
		},
		Logging:    Logging{Level: "info", Format: "logfmt"},
		Tracing:    Tracing{SampleRatio: 1},
		SelfScrape: SelfScrape{Interval: 15 * time.Second},
	}
}

func (c *Config) embed() {
	c.Backends = []Backend{{Name: "local", Kind: KindTSDB, TSDB: &TSDB{Path: DefaultDataDir, Retention: defaultRetention}}}
	if c.SelfScrape.Backend == "" {
		c.SelfScrape.Backend = "local"
	}
}

// Secret is a string that is never shown.
type Secret string

// String hides the value from logs.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "<redacted>"
}

// GoString hides the value from %#v.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// Reveal returns the value.
func (s Secret) Reveal() string { return string(s) }

// TimeBound is a point in time, fixed or relative to now. The zero value is no bound.
type TimeBound struct {
	abs time.Time
	rel time.Duration
	set bool
}

// ParseTimeBound reads "2025-03-01T00:00:00Z", "-30d" or "now".
func ParseTimeBound(s string) (TimeBound, error) {
	if s == "now" {
		return TimeBound{set: true}, nil
	}
	if ago, ok := strings.CutPrefix(s, "-"); ok {
		d, err := model.ParseDuration(ago)
		if err != nil {
			return TimeBound{}, fmt.Errorf("%q is no time relative to now: write -30d or -2h", s)
		}
		return TimeBound{rel: -time.Duration(d), set: true}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return TimeBound{}, fmt.Errorf("%q is no time: write RFC 3339 as in 2025-03-01T00:00:00Z, or relative to now as in -30d", s)
	}
	return TimeBound{abs: t, set: true}, nil
}

// IsSet says whether there is a bound.
func (t TimeBound) IsSet() bool { return t.set }

// At is the bound in ms since the epoch, seen from now; false if there is none.
func (t TimeBound) At(now time.Time) (int64, bool) {
	switch {
	case !t.set:
		return 0, false
	case !t.abs.IsZero():
		return t.abs.UnixMilli(), true
	default:
		return now.Add(t.rel).UnixMilli(), true
	}
}

// Value is the bound as a number: ms since the epoch or, if relative, ms to be
// added to now. set is false if there is no bound.
func (t TimeBound) Value() (ms int64, relative, set bool) {
	if !t.abs.IsZero() {
		return t.abs.UnixMilli(), false, t.set
	}
	return t.rel.Milliseconds(), true, t.set
}

// String is what ParseTimeBound reads, "" without a bound.
func (t TimeBound) String() string {
	switch {
	case !t.set:
		return ""
	case !t.abs.IsZero():
		return t.abs.Format(time.RFC3339)
	case t.rel == 0:
		return "now"
	default:
		return "-" + model.Duration(-t.rel).String()
	}
}

// Size is a number of bytes.
type Size int64

var sizeUnits = []struct {
	suffix string
	factor int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

// ParseSize reads a number of bytes with or without a unit: 1048576, 64MiB, 2GB.
func ParseSize(s string) (Size, error) {
	num, factor := strings.TrimSpace(s), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(num, u.suffix); ok {
			num, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil || math.IsNaN(f) {
		return 0, fmt.Errorf("%q is no size: write a number of bytes or one with a unit, as in 64MiB or 2GB", s)
	}
	f *= float64(factor)
	if f < 0 || f >= math.MaxInt64 {
		return 0, fmt.Errorf("size %q is out of range", s)
	}
	return Size(f), nil
}

// String is the size in the largest binary unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.factor == 0 {
			return strconv.FormatInt(int64(s)/u.factor, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
