// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package fetch makes HTTP requests for modules that are not trusted: to an
// allow-list of targets, checked again on the address that is dialled and on every
// redirect, with secrets that the module names but never sees.
package fetch

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config says what may be asked. The zero value allows nothing.
type Config struct {
	// Allow are the targets; a request must match one of them, and so must every
	// redirect.
	Allow []Target
	// Headers are names of request headers that may be set besides Accept,
	// Accept-Language, Content-Type, If-None-Match and X-Scope-OrgID. Host and headers of the
	// connection never may.
	Headers []string
	// Secrets by the name that the module uses.
	Secrets map[string]Secret
	// Timeout of one request with its body: 30 s.
	Timeout time.Duration
	// BodyBytes is the most that is read of a response, after decompression: 64 MiB.
	BodyBytes int64
	// TLS of https targets; nil is the system's authorities.
	TLS *tls.Config
	// Resolve replaces the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Target is what requests may go to.
type Target struct {
	// Scheme is http or https; Host a name or an address, as it stands in the URL.
	Scheme, Host string
	// Port; 0 is the scheme's.
	Port uint16
	// Methods in upper case; none is GET alone.
	Methods []string
	// AllowPrivate: the host may have an address that is private, link-local,
	// loopback or otherwise not of the public Internet.
	AllowPrivate bool
	// Secrets that may be sent to this target.
	Secrets []string
}

// Secret is a header that the host adds.
//
// A target that repeats the request in its response shows the secret to the module;
// nothing can be done about that here, so send secrets only where that does not happen.
type Secret struct {
	// Header is its name; Value the whole value, such as "Bearer ...".
	Header, Value string
}

// Request is what a module asks for.
type Request struct {
	Method, URL string
	Headers     []Header
	Body        []byte
	// Secret to add, by name; "" for none.
	Secret string
}

// Header is a name and its values.
type Header struct {
	Name   string
	Values []string
}

// Response is the answer. Whoever has it closes Body, which fails with ErrTooLarge at
// the limit. Length is -1 if it is not known, as it is after decompression.
type Response struct {
	Status  int
	Headers []Header
	Length  int64
	Body    io.ReadCloser
}

// What is wrong with a request, for errors.Is; any other error means that the target
// could not be reached or broke off.
var (
	ErrNotAllowed = errors.New("not allowed")
	ErrInvalid    = errors.New("invalid request")
	ErrTooLarge   = errors.New("body too large")
)

const (
	defaultTimeout   = 30 * time.Second
	defaultBodyBytes = 64 << 20
	maxRedirects     = 5
	maxHeaderBytes   = 64 << 10
)

// Client makes requests. It is safe for concurrent use.
type Client struct {
	config    Config
	headers   map[string]bool
	transport *http.Transport
}

// New checks a configuration. Close the Client when it is done with.
func New(c Config) (*Client, error) {
	c.Allow = slices.Clone(c.Allow)
	for i := range c.Allow {
		if err := c.Allow[i].normalize(c.Secrets); err != nil {
			return nil, fmt.Errorf("allow[%d]: %w", i, err)
		}
	}
	headers := map[string]bool{"Accept": true, "Accept-Language": true, "Content-Type": true, "If-None-Match": true, "X-Scope-Orgid": true}
	for _, name := range c.Headers {
		name = http.CanonicalHeaderKey(name)
		if ofConnection(name) {
			return nil, fmt.Errorf("headers: %s belongs to the connection; a module cannot be allowed to set it", name)
		}
		headers[name] = true
	}
	for name, s := range c.Secrets {
		if s.Header == "" || s.Value == "" || ofConnection(http.CanonicalHeaderKey(s.Header)) {
			return nil, fmt.Errorf("secrets: %q needs the name of an ordinary header and a value", name)
		}
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.BodyBytes <= 0 {
		c.BodyBytes = defaultBodyBytes
	}
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	client := &Client{config: c, headers: headers}
	// No proxy, whatever the environment says: it would resolve names out of our sight.
	client.transport = &http.Transport{
		DialContext:            client.dial,
		TLSClientConfig:        c.TLS,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  c.Timeout,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	return client, nil
}

// Close closes connections that are not in use.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

func (t *Target) normalize(secrets map[string]Secret) error {
	t.Scheme, t.Host = strings.ToLower(t.Scheme), hostname(t.Host)
	switch {
	case t.Scheme != "http" && t.Scheme != "https":
		return fmt.Errorf("scheme is %q; it must be http or https", t.Scheme)
	case t.Host == "" || strings.ContainsAny(t.Host, "/@*"):
		return fmt.Errorf("host is %q; it must be one name or address", t.Host)
	}
	if t.Port == 0 {
		t.Port = map[string]uint16{"http": 80, "https": 443}[t.Scheme]
	}
	if len(t.Methods) == 0 {
		t.Methods = []string{http.MethodGet}
	}
	for _, s := range t.Secrets {
		if _, ok := secrets[s]; !ok {
			return fmt.Errorf("secret %q is not among the secrets", s)
		}
	}
	return nil
}

// hostname brings a host of a URL to one spelling.
func hostname(h string) string {
	h = strings.TrimSuffix(strings.ToLower(strings.Trim(h, "[]")), ".")
	if a, err := netip.ParseAddr(h); err == nil {
		return a.Unmap().String()
	}
	return h
}

// ofConnection are headers that change whom a request is for, how it is framed, or
// what the transport does with the answer.
func ofConnection(name string) bool {
	switch name {
	case "Host", "Connection", "Content-Length", "Transfer-Encoding", "Te", "Trailer", "Upgrade", "Expect", "Keep-Alive",
		"Accept-Encoding", "Http2-Settings":
		return true
	}
	return strings.HasPrefix(name, "Proxy-")
}

// target returns the entry of the allow-list for a request.
func (c *Client) target(method string, u *url.URL) (*Target, error) {
	switch {
	case u.Opaque != "" || u.Host == "":
		return nil, fmt.Errorf("%w: the URL names no host", ErrInvalid)
	case u.User != nil:
		return nil, fmt.Errorf("%w: the URL holds a user; name a secret instead", ErrInvalid)
	}
	scheme, host := strings.ToLower(u.Scheme), hostname(u.Hostname())
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if u.Port() == "" {
		port, err = map[string]uint64{"http": 80, "https": 443}[scheme], nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: port %q", ErrInvalid, u.Port())
	}
	for i := range c.config.Allow {
		t := &c.config.Allow[i]
		if t.Scheme == scheme && t.Host == host && uint64(t.Port) == port && slices.Contains(t.Methods, method) {
			return t, nil
		}
	}
	return nil, fmt.Errorf("%w: %s %s://%s:%d is not in the allow-list; add it to http of the plug-in, url and methods, if it should be",
		ErrNotAllowed, method, scheme, host, port)
}

// Do makes a request. It ends with ctx, and so does the body.
func (c *Client) Do(ctx context.Context, r *Request) (*Response, error) {
	method := r.Method
	if method == "" {
		method = http.MethodGet
	}
	u, err := url.Parse(r.URL)
	if err != nil {
		return nil, fmt.Errorf("%w: the URL cannot be parsed", ErrInvalid)
	}
	t, err := c.target(method, u)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	response, err := c.do(ctx, method, u, t, r)
	if err != nil {
		cancel()
		return nil, err
	}
	response.Body = &body{ReadCloser: response.Body, left: c.config.BodyBytes, cancel: cancel}
	return response, nil
}

func (c *Client) do(ctx context.Context, method string, u *url.URL, t *Target, r *Request) (*Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(r.Body))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, h := range r.Headers {
		name := http.CanonicalHeaderKey(h.Name)
		if !c.headers[name] {
			return nil, fmt.Errorf("%w: header %s; there may be %s, and a secret by its name", ErrNotAllowed, name, strings.Join(slices.Sorted(maps.Keys(c.headers)), ", "))
		}
		request.Header[name] = append(request.Header[name], h.Values...)
	}
	if r.Secret != "" {
		// One answer for "does not exist" and "not for this target".
		if !slices.Contains(t.Secrets, r.Secret) {
			return nil, fmt.Errorf("%w: secret %q is not among those that this target gets (plugin.secrets)", ErrNotAllowed, r.Secret)
		}
		s := c.config.Secrets[r.Secret]
		request.Header.Set(s.Header, s.Value)
	}
	client := http.Client{Transport: c.transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		t, err := c.target(next.Method, next.URL)
		if err != nil {
			return fmt.Errorf("redirect: %w", err)
		}
		if r.Secret != "" && !slices.Contains(t.Secrets, r.Secret) {
			return fmt.Errorf("redirect: %w: secret %q is not among the secrets of %s", ErrNotAllowed, r.Secret, t.Host)
		}
		return nil
	}}
	response, err := client.Do(request)
	var with *url.Error
	if errors.As(err, &with) && with.URL == u.String() { // not where it was sent on to
		err = with.Err // who asked knows the URL
	}
	if err != nil {
		return nil, err
	}
	out := &Response{Status: response.StatusCode, Length: response.ContentLength, Body: response.Body}
	for name, values := range response.Header {
		if name != "Set-Cookie" {
			out.Headers = append(out.Headers, Header{name, values})
		}
	}
	slices.SortFunc(out.Headers, func(a, b Header) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// dial resolves a name itself and connects to an address that was looked at, so that
// a name that resolves to something else the next time gains nothing.
func (c *Client) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	private := c.allowsPrivate(hostname(host), port)
	var addresses []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addresses = []netip.Addr{a}
	} else if addresses, err = c.config.Resolve(ctx, host); err != nil {
		return nil, err
	}
	err = fmt.Errorf("%s has no address", host)
	for _, a := range addresses {
		a = a.Unmap()
		if !private && !public(a) {
			err = fmt.Errorf("%w: %s has the address %s, which is not public; set allow_private on it in http of the plug-in if that is right",
				ErrNotAllowed, host, a)
			continue
		}
		var conn net.Conn
		var d net.Dialer
		if conn, err = d.DialContext(ctx, network, net.JoinHostPort(a.String(), port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

func (c *Client) allowsPrivate(host, port string) bool {
	return slices.ContainsFunc(c.config.Allow, func(t Target) bool {
		return t.AllowPrivate && t.Host == host && strconv.Itoa(int(t.Port)) == port
	})
}

// special are ranges that are global unicast by their bits and yet not the public
// Internet, or a way to reach something else: the IANA special-purpose registries
// https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6-.
var special = func() (p []netip.Prefix) {
	for _, s := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "240.0.0.0/4", "::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32",
		"2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
	} {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}()

func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && a.Zone() == "" &&
		!slices.ContainsFunc(special, func(p netip.Prefix) bool { return p.Contains(a) })
}

// body ends at the limit, and ends the request when it is closed.
type body struct {
	io.ReadCloser
	left   int64
	cancel context.CancelFunc
}

func (b *body) Read(p []byte) (int, error) {
	if b.left <= 0 {
		// One more byte tells a body of just that size from a larger one.
		var one [1]byte
		n, err := b.ReadCloser.Read(one[:])
		if n > 0 {
			return 0, ErrTooLarge
		}
		return 0, err
	}
	p = p[:min(int64(len(p)), b.left)]
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

func (b *body) Close() error {
	err := b.ReadCloser.Close()
	b.cancel()
	return err
}
