// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// errNotFound: the name servers know for sure that there are no such records.
// Any other error means that they could not say.
var errNotFound = errors.New("no such records in DNS")

const (
	exchangeTimeout = 3 * time.Second
	// udpSize is what gets through without fragments nearly everywhere; longer
	// answers come truncated and are asked for again over TCP.
	udpSize = 1232
	// maxTargets bounds what one name may lead to.
	maxTargets = 10000
)

// resolver asks name servers itself, because the standard library does not tell
// "there is none" from "nobody could say" for all record types, and orders and
// filters addresses for use by a single connection.
type resolver struct {
	server   string // "" for resolv.conf
	confPath string
}

func newResolver(server string) *resolver {
	return &resolver{server: server, confPath: "/etc/resolv.conf"}
}

// config is read for each round, it may change.
func (r *resolver) config() (*dns.ClientConfig, error) {
	if r.server != "" {
		host, port, err := net.SplitHostPort(r.server)
		if err != nil {
			return nil, fmt.Errorf("resolver %q: want host:port: %w", r.server, err)
		}
		return &dns.ClientConfig{Servers: []string{host}, Port: port, Ndots: 1}, nil
	}
	conf, err := dns.ClientConfigFromFile(r.confPath)
	if err != nil {
		return nil, err
	}
	if len(conf.Servers) == 0 {
		return nil, fmt.Errorf("%s names no server", r.confPath)
	}
	return conf, nil
}

// lookup returns the targets of a source, sorted.
func (r *resolver) lookup(ctx context.Context, s source) ([]target, error) {
	conf, err := r.config()
	if err != nil {
		return nil, err
	}
	var out []target
	switch s.prefix {
	case "dns", "dnsdualstack":
		ips, err := r.addresses(ctx, conf, s.host)
		if err != nil {
			return nil, err
		}
		for _, ip := range ips {
			out = append(out, target{addr: net.JoinHostPort(ip, s.port), serverName: s.host})
		}
	case "dnssrv", "dnssrvnoa":
		records, err := r.ask(ctx, conf, s.host, dns.TypeSRV)
		if err != nil {
			return nil, err
		}
		for _, rr := range records {
			srv, ok := rr.(*dns.SRV)
			if !ok {
				continue
			}
			port, host := cmp.Or(s.port, strconv.Itoa(int(srv.Port))), strings.TrimSuffix(srv.Target, ".")
			if host == "" {
				continue // A target of "." says that the service is not to be had.
			}
			if s.prefix == "dnssrvnoa" {
				out = append(out, target{addr: net.JoinHostPort(host, port), serverName: host})
				continue
			}
			ips, err := r.addresses(ctx, conf, srv.Target)
			if err != nil && !errors.Is(err, errNotFound) {
				return nil, err
			}
			for _, ip := range ips {
				out = append(out, target{addr: net.JoinHostPort(ip, port), serverName: host})
			}
		}
	}
	if len(out) > maxTargets {
		return nil, fmt.Errorf("%s leads to %d addresses, more than the %d allowed", s.text, len(out), maxTargets)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: %w", s.text, errNotFound)
	}
	slices.SortFunc(out, func(a, b target) int { return cmp.Compare(a.addr, b.addr) })
	return slices.CompactFunc(out, func(a, b target) bool { return a.addr == b.addr }), nil
}

// addresses asks for A and AAAA records; not to know either is a failure.
func (r *resolver) addresses(ctx context.Context, conf *dns.ClientConfig, host string) ([]string, error) {
	if ip := net.ParseIP(host); ip != nil {
		return []string{ip.String()}, nil
	}
	var out []string
	for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
		records, err := r.ask(ctx, conf, host, t)
		if err != nil && !errors.Is(err, errNotFound) {
			return nil, err
		}
		for _, rr := range records {
			switch rr := rr.(type) {
			case *dns.A:
				out = append(out, rr.A.String())
			case *dns.AAAA:
				out = append(out, rr.AAAA.String())
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: %w", host, errNotFound)
	}
	return out, nil
}

// ask tries the name in all search domains, and each on all servers.
func (r *resolver) ask(ctx context.Context, conf *dns.ClientConfig, name string, kind uint16) ([]dns.RR, error) {
	var failed error
	for _, fqdn := range conf.NameList(name) {
		records, err := r.askServers(ctx, conf, fqdn, kind)
		if err == nil {
			return records, nil
		}
		if !errors.Is(err, errNotFound) {
			failed = err
		}
	}
	if failed != nil {
		return nil, failed
	}
	return nil, fmt.Errorf("%s %s: %w", name, dns.TypeToString[kind], errNotFound)
}

func (r *resolver) askServers(ctx context.Context, conf *dns.ClientConfig, fqdn string, kind uint16) ([]dns.RR, error) {
	var errs []error
	for _, server := range conf.Servers {
		in, err := exchange(ctx, net.JoinHostPort(server, conf.Port), fqdn, kind)
		switch {
		case err != nil:
			errs = append(errs, err)
		case in.Rcode == dns.RcodeNameError:
			return nil, errNotFound
		case in.Rcode != dns.RcodeSuccess:
			errs = append(errs, fmt.Errorf("%s answered %s", server, dns.RcodeToString[in.Rcode]))
		default:
			// Besides the records there may be the aliases that led to them.
			records := slices.DeleteFunc(in.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype != kind })
			if len(records) == 0 {
				return nil, errNotFound
			}
			return records, nil
		}
	}
	return nil, fmt.Errorf("%s %s: %w", fqdn, dns.TypeToString[kind], errors.Join(errs...))
}

// exchange asks over UDP and, if the answer is too long for that, over TCP.
func exchange(ctx context.Context, server, fqdn string, kind uint16) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(fqdn, kind).SetEdns0(udpSize, false)
	var in *dns.Msg
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, Timeout: exchangeTimeout}
		var err error
		if in, _, err = c.ExchangeContext(ctx, q, server); err != nil {
			return nil, withoutSource(err)
		}
		if !in.Truncated {
			return in, nil
		}
	}
	return nil, fmt.Errorf("%s: the answer was truncated over TCP", server)
}

// withoutSource drops our own port, another one each time, from an error, so that
// the same failure has the same text.
func withoutSource(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Source != nil {
		same := *op
		same.Source = nil
		return &same
	}
	return err
}
