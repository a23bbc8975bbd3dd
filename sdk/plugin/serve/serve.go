// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package serve is the plug-in's side of the contract in pluginpb over gRPC: the
// service itself, as a process that a host spawns and as a network service.
// Authors call plugin.Main, which is Run with what they have registered.
package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/plugin/store"
	"github.com/promweave/promweave/sdk/plugin/wire"
)

// What host and plug-in have to agree on before they can speak by go-plugin.
const (
	// ProtocolVersion is the major version of the contract.
	ProtocolVersion = 1
	// CookieKey and CookieValue are the environment variable by which a plug-in knows
	// that a host has started it. It is no secret.
	CookieKey   = "PROMWEAVE_PLUGIN"
	CookieValue = "promweave.plugin.v1"
	// DispenseName is what the host dispenses.
	DispenseName = "promweave"
	// ParentKey is an environment variable with the process id of the host, which it
	// may set so that a plug-in whose host died while it started does not stay.
	ParentKey = "PROMWEAVE_HOST_PID"
)

// Handshake is go-plugin's.
func Handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{ProtocolVersion: ProtocolVersion, MagicCookieKey: CookieKey, MagicCookieValue: CookieValue}
}

// GRPC is the plug-in for go-plugin, on both sides: dispensing it gives the host the
// *grpc.ClientConn.
type GRPC struct {
	goplugin.NetRPCUnsupportedPlugin
	// Plugin is needed on the side of the plug-in only.
	Plugin *Server
}

var _ goplugin.GRPCPlugin = (*GRPC)(nil)

// GRPCServer implements goplugin.GRPCPlugin.
func (p *GRPC) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	p.Plugin.Register(s)
	return nil
}

// GRPCClient implements goplugin.GRPCPlugin.
func (p *GRPC) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// Versions are the sets of plug-ins for go-plugin, on either side; s is nil for a host.
func Versions(s *Server) map[int]goplugin.PluginSet {
	return map[int]goplugin.PluginSet{ProtocolVersion: {DispenseName: &GRPC{Plugin: s}}}
}

// Options say what Run serves.
type Options struct {
	Filter  filter.Filter
	Backend store.Spec
	// Health, if set, says what is wrong, "" for nothing. It must answer at once.
	Health func() string
	// StatsHandlers watch the calls, such as otelgrpc's for traces.
	StatsHandlers []stats.Handler
	// Logger; nil is JSON on stderr.
	Logger *slog.Logger
}

// idleTime is what a network service keeps an instance for that nobody uses.
const idleTime = time.Hour

// stopTime is what calls get to end in when the process is to stop.
const stopTime = 5 * time.Second

// Run is a plug-in's main function: it serves o to the host that started the
// process, or on the network with --listen, and returns the exit code.
func Run(o Options, args []string, stdout, stderr io.Writer) int {
	name := filepath.Base(os.Args[0])
	fail := func(err error) int {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return 1
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.NewJSONHandler(stderr, nil))
	}
	if o.Filter == nil && o.Backend == nil {
		return fail(errNothingToServe)
	}
	server, err := NewServer(Config{Filter: o.Filter, Backend: o.Backend, Health: o.Health, Logger: log})
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			log.Warn("closing", "error", err)
		}
	}()
	if os.Getenv(CookieKey) == CookieValue {
		if err := checkVersion(server); err != nil {
			return fail(err)
		}
		if o.Backend != nil {
			raiseHeap()
		}
		spawned(server, o, log)
		return 0
	}

	var f flags
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&f.listen, "listen", "", "serve on this `host:port`; port 0 takes a free one and prints it")
	fs.StringVar(&f.cert, "tls-cert", "", "PEM `file` with the certificate of the service")
	fs.StringVar(&f.key, "tls-key", "", "PEM `file` with its key")
	fs.StringVar(&f.clientCA, "client-ca", "", "PEM `file` with the authorities of clients, which then need a certificate")
	fs.StringVar(&f.config, "config", "", "JSON `file`: one instance for callers that name none, such as Thanos queriers")
	describe := fs.Bool("describe", false, "print what this plug-in is, as JSON")
	fs.Usage = func() {
		fmt.Fprintln(stderr, sentence(server, name))
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	switch {
	case fs.NArg() > 0:
		fmt.Fprintf(stderr, "%s: unexpected argument %q; %s --help lists the flags\n", name, fs.Arg(0), name)
		return 2
	case *describe:
		// protojson varies its spacing on purpose; what is printed here does not.
		raw, err := protojson.Marshal(server.description())
		var doc any
		if err == nil {
			err = json.Unmarshal(raw, &doc)
		}
		if err == nil {
			raw, err = json.MarshalIndent(doc, "", "  ")
		}
		if err != nil {
			return fail(err)
		}
		fmt.Fprintf(stdout, "%s\n", raw)
		return 0
	case f.listen == "":
		fmt.Fprintln(stderr, sentence(server, name))
		return 2
	}
	if o.Backend != nil {
		raiseHeap()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	server.cfg.IdleTime = idleTime
	if err := listen(ctx, server, o, f, log, stdout); err != nil {
		return fail(err)
	}
	return 0
}

// unused is memory that nobody writes to, so that it takes none of the machine's.
var unused []byte

// raiseHeap has garbage collected once there are 64 MiB more of it. A backend keeps
// little and streams much, which is garbage as soon as it is sent: while its heap is
// small it would be collected several times within one query, at a third of all its
// time. What GOGC says stands, and of GOMEMLIMIT this is a small part.
func raiseHeap() {
	if os.Getenv("GOGC") == "" {
		unused = make([]byte, min(64<<20, debug.SetMemoryLimit(-1)/16))
	}
}

// sentence is for whoever starts a plug-in by hand.
func sentence(s *Server, name string) string {
	d, what := s.description(), "filter"
	if s.cfg.Backend != nil {
		what = "store backend"
	}
	return fmt.Sprintf("%s %s is a %s for Promweave, which starts it by itself (plugin: {launch: spawn, path: %s}); "+
		"to run it as a network service (plugin: {launch: dial, ...}) start it with --listen HOST:PORT, and --describe says more.",
		d.GetName(), d.GetVersion(), what, name)
}

// checkVersion compares the major versions that the host speaks, as go-plugin tells
// them, with ours.
func checkVersion(s *Server) error {
	list := os.Getenv("PLUGIN_PROTOCOL_VERSIONS")
	if list == "" || slices.Contains(strings.Split(list, ","), strconv.Itoa(ProtocolVersion)) {
		return nil
	}
	d := s.description()
	return fmt.Errorf("%s %s speaks version %d of the Promweave plug-in contract and this host only %s; use a release of the plug-in that was built for this host",
		d.GetName(), d.GetVersion(), ProtocolVersion, list)
}

// spawned serves the process that started this one, until it says so or is gone.
func spawned(s *Server, o Options, log *slog.Logger) {
	parent := os.Getppid()
	if v, err := strconv.Atoi(os.Getenv(ParentKey)); err == nil {
		parent = v
	}
	ended := make(chan struct{})
	defer close(ended)
	go watchParent(parent, ended, func() {
		log.Warn("the host is gone; exiting", "pid", parent)
		os.Exit(1)
	})
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  Handshake(),
		VersionedPlugins: Versions(s),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, options(o)...)...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr, JSONFormat: true}),
	})
}

func options(o Options) []grpc.ServerOption {
	opts := wire.ServerOptions()
	for _, h := range o.StatsHandlers {
		opts = append(opts, grpc.StatsHandler(h))
	}
	return opts
}

// watchParent calls gone when the parent of this process is another one than it
// was. A death signal from the kernel would follow the thread that forked, not the process.
func watchParent(parent int, ended <-chan struct{}, gone func()) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if os.Getppid() != parent {
			gone()
			return
		}
		select {
		case <-ended:
			return
		case <-tick.C:
		}
	}
}

type flags struct{ listen, cert, key, clientCA, config string }

// listen serves on the network until ctx is done.
func listen(ctx context.Context, s *Server, o Options, f flags, log *slog.Logger, stdout io.Writer) error {
	opts := append(options(o),
		// Hosts and Thanos queriers ping every 10 s or more.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 5 * time.Second}),
	)
	creds, err := transport(f)
	if err != nil {
		return err
	}
	if creds != nil {
		opts = append(opts, grpc.Creds(creds))
	}
	if f.config != "" {
		doc, err := os.ReadFile(f.config)
		if err != nil {
			return fmt.Errorf("--config: %w", err)
		}
		if err := s.ConfigureDefault(ctx, doc); err != nil {
			return fmt.Errorf("--config %s: %w", f.config, err)
		}
	}
	lis, err := net.Listen("tcp", f.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	g := grpc.NewServer(opts...)
	s.Register(g)
	h := health.NewServer()
	grpc_health_v1.RegisterHealthServer(g, h)
	reflection.Register(g)
	fmt.Fprintf(stdout, "listening on %s\n", lis.Addr())
	log.Info("serving", "address", lis.Addr().String(), "tls", creds != nil, "client_certificates", f.clientCA != "")

	served := make(chan error, 1)
	go func() { served <- g.Serve(lis) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// Those who look at health stop sending; calls under way get some time.
	h.Shutdown()
	graceful := make(chan struct{})
	go func() {
		g.GracefulStop()
		close(graceful)
	}()
	select {
	case <-graceful:
	case <-time.After(stopTime):
		g.Stop()
		<-graceful
	}
	return <-served
}

// transport returns nil for plain text.
func transport(f flags) (credentials.TransportCredentials, error) {
	if f.cert == "" && f.key == "" {
		if f.clientCA != "" {
			return nil, errors.New("--client-ca needs --tls-cert and --tls-key")
		}
		return nil, nil
	}
	if f.cert == "" || f.key == "" {
		return nil, errors.New("--tls-cert and --tls-key belong together")
	}
	if _, err := tls.LoadX509KeyPair(f.cert, f.key); err != nil {
		return nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
		// Read for each connection, so that renewed files need no restart.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(f.cert, f.key)
			return &c, err
		},
	}
	if f.clientCA != "" {
		pem, err := os.ReadFile(f.clientCA)
		if err != nil {
			return nil, fmt.Errorf("--client-ca: %w", err)
		}
		cfg.ClientCAs = x509.NewCertPool()
		if !cfg.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--client-ca: %s holds no certificate in PEM form", f.clientCA)
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return credentials.NewTLS(cfg), nil
}
