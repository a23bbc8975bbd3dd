// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver"
)

// TLS are the files and names of a TLS connection.
type TLS struct {
	// CAFile has the authorities that may sign the service's certificate, in PEM form;
	// "" takes the system's.
	CAFile string
	// CertFile and KeyFile are our certificate, for services that want one. They are
	// read for each connection, so that renewed files need no restart.
	CertFile, KeyFile string
	// ServerName is the name that the certificate must have; "" takes the address's.
	ServerName string
}

func (c *TLS) credentials() (credentials.TransportCredentials, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("authorities: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("authorities: %s holds no certificate in PEM form", c.CAFile)
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("a certificate and its key belong together")
	}
	if c.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &cert, err
		}
		if _, err := load(); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return credentials.NewTLS(cfg), nil
}

// resolve returns gRPC's target for an address, and what it needs to understand it.
func resolve(address string, log *slog.Logger) (target string, opts []grpc.DialOption, err error) {
	scheme, rest, prefixed := strings.Cut(address, "+")
	switch {
	case strings.HasPrefix(address, "unix:"):
		return address, nil, nil
	case prefixed && scheme == "dns":
		return "dns:///" + rest, nil, checkHostPort(rest)
	case prefixed && scheme == "dnssrv":
		if rest == "" || strings.Contains(rest, ":") {
			return "", nil, fmt.Errorf("address %q: want dnssrv+ and the name of a service record, which has the port in it", address)
		}
		return "srv:///" + rest, []grpc.DialOption{grpc.WithResolvers(&serviceRecords{log: log, lookup: lookupService, every: 30 * time.Second})}, nil
	case prefixed:
		return "", nil, fmt.Errorf("address %q: unknown prefix %q; use host:port, dns+host:port, dnssrv+name or unix:///path", address, scheme+"+")
	}
	return "dns:///" + address, nil, checkHostPort(address)
}

func checkHostPort(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("address %q: want host:port: %w", address, err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return fmt.Errorf("address %q: want host:port with a port from 1 to 65535", address)
	}
	return nil
}

// lookupService returns the addresses in a DNS service record (RFC 2782), in order of
// preference.
func lookupService(ctx context.Context, name string) ([]string, error) {
	_, records, err := net.DefaultResolver.LookupSRV(ctx, "", "", name)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range records {
		out = append(out, net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port))))
	}
	return out, nil
}

// serviceRecords is a gRPC resolver of DNS service records, looked up now and then and
// whenever a connection fails.
type serviceRecords struct {
	log    *slog.Logger
	lookup func(ctx context.Context, name string) ([]string, error)
	every  time.Duration
}

// Scheme implements resolver.Builder.
func (s *serviceRecords) Scheme() string { return "srv" }

// Build implements resolver.Builder.
func (s *serviceRecords) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	ctx, stop := context.WithCancel(context.Background())
	w := &serviceWatch{now: make(chan struct{}, 1), stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		w.run(ctx, s, target.Endpoint(), cc)
	}()
	return w, nil
}

type serviceWatch struct {
	now   chan struct{}
	stop  context.CancelFunc
	ended chan struct{}
}

func (w *serviceWatch) run(ctx context.Context, s *serviceRecords, name string, cc resolver.ClientConn) {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		limited, cancel := context.WithTimeout(ctx, 5*time.Second)
		list, err := s.lookup(limited, name)
		cancel()
		if err == nil && len(list) == 0 {
			err = fmt.Errorf("service record %s is empty", name)
		}
		var state resolver.State
		for _, a := range list {
			host, _, _ := net.SplitHostPort(a)
			state.Addresses = append(state.Addresses, resolver.Address{Addr: a, ServerName: host})
		}
		if err == nil {
			// An error of it asks for another look-up, which comes anyway.
			_ = cc.UpdateState(state)
		} else if ctx.Err() == nil {
			s.log.Warn("looking up a service record", "name", name, "error", err)
			cc.ReportError(err)
		}
		// A connection that fails asks at once and again; names do not change that fast.
		pause := time.NewTimer(min(time.Second, s.every))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
		select {
		case <-tick.C:
		case <-w.now:
		case <-ctx.Done():
			return
		}
	}
}

// ResolveNow implements resolver.Resolver.
func (w *serviceWatch) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case w.now <- struct{}{}:
	default:
	}
}

// Close implements resolver.Resolver.
func (w *serviceWatch) Close() {
	w.stop()
	<-w.ended
}
