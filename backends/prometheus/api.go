// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package prometheus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/remoteread"
)

const (
	// maxSmall bounds the answers that are small: configuration, metrics.
	maxSmall = 32 << 20
	// maxQuery is the longest query string that goes into a URL; longer ones are
	// sent as a form.
	maxQuery = 4 << 10
)

// HTTPConfig says how to connect. Files are read when they are needed, so that
// their content can change.
type HTTPConfig struct {
	Username     string `koanf:"username"`
	Password     string `koanf:"password"`
	PasswordFile string `koanf:"password_file"`
	// BearerToken excludes Username.
	BearerToken     string `koanf:"bearer_token"`
	BearerTokenFile string `koanf:"bearer_token_file"`
	// Headers are sent with every request, for example for a tenant.
	Headers map[string]string `koanf:"headers"`
	TLS     TLSConfig         `koanf:"tls"`
}

// TLSConfig is for URLs with https.
type TLSConfig struct {
	CAFile             string `koanf:"ca_file"`
	CertFile           string `koanf:"cert_file"`
	KeyFile            string `koanf:"key_file"`
	ServerName         string `koanf:"server_name"`
	InsecureSkipVerify bool   `koanf:"insecure_skip_verify"`
}

func (c HTTPConfig) client() (*http.Client, error) {
	switch {
	case c.Password != "" && c.PasswordFile != "":
		return nil, errors.New("http: password and password_file exclude each other")
	case c.BearerToken != "" && c.BearerTokenFile != "":
		return nil, errors.New("http: bearer_token and bearer_token_file exclude each other")
	case c.Username != "" && (c.BearerToken != "" || c.BearerTokenFile != ""):
		return nil, errors.New("http: username and bearer_token exclude each other")
	case c.Username == "" && (c.Password != "" || c.PasswordFile != ""):
		return nil, errors.New("http: a password needs a username")
	case (c.TLS.CertFile == "") != (c.TLS.KeyFile == ""):
		return nil, errors.New("http: tls: cert_file and key_file need each other")
	}
	t := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: c.TLS.ServerName,
		InsecureSkipVerify: c.TLS.InsecureSkipVerify, //nolint:gosec // The operator asked for it.
	}
	if f := c.TLS.CAFile; f != "" {
		pem, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("http: tls: ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("http: tls: ca_file %s has no certificate", f)
		}
	}
	if f := c.TLS.CertFile; f != "" {
		if _, err := tls.LoadX509KeyPair(f, c.TLS.KeyFile); err != nil {
			return nil, fmt.Errorf("http: tls: %w", err)
		}
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(f, c.TLS.KeyFile)
			return &cert, err
		}
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.TLSClientConfig = t
	tr.MaxIdleConnsPerHost = 16
	// Some servers put gzip on top of snappy.
	tr.DisableCompression = true
	tr.IdleConnTimeout = time.Minute
	return &http.Client{Transport: &authTransport{cfg: c, next: tr}}, nil
}

// authTransport adds what identifies us.
type authTransport struct {
	cfg  HTTPConfig
	next *http.Transport
}

func (t *authTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	for k, v := range t.cfg.Headers {
		req.Header.Set(k, v)
	}
	secret := func(value, file string) (string, error) {
		if file == "" {
			return value, nil
		}
		b, err := os.ReadFile(file)
		return strings.TrimSpace(string(b)), err
	}
	switch {
	case t.cfg.Username != "":
		p, err := secret(t.cfg.Password, t.cfg.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("password_file: %w", err)
		}
		req.SetBasicAuth(t.cfg.Username, p)
	case t.cfg.BearerToken != "" || t.cfg.BearerTokenFile != "":
		p, err := secret(t.cfg.BearerToken, t.cfg.BearerTokenFile)
		if err != nil {
			return nil, fmt.Errorf("bearer_token_file: %w", err)
		}
		req.Header.Set("Authorization", "Bearer "+p)
	}
	return t.next.RoundTrip(req)
}

func (t *authTransport) CloseIdleConnections() { t.next.CloseIdleConnections() }

// url returns the URL of a path, which is escaped already.
func (b *Backend) url(path string) string {
	return strings.TrimRight(b.base.String(), "/") + path
}

// get asks for a path. Long queries travel in the body.
func (b *Backend) get(ctx context.Context, path string, params url.Values) (*http.Response, error) {
	method, target, body := http.MethodGet, b.url(path), io.Reader(nil)
	if q := params.Encode(); len(q) > maxQuery {
		method, body = http.MethodPost, strings.NewReader(q)
	} else if q != "" {
		target += "?" + q
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "%s: %w", path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := b.http.Do(req)
	if err != nil {
		return nil, b.failed(ctx, path, err)
	}
	return resp, nil
}

// failed wraps an error of the transport.
func (b *Backend) failed(ctx context.Context, path string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s of %s: %w", path, b.base.Redacted(), context.Cause(ctx))
	}
	return backend.Errorf(backend.ErrUnavailable, "%s of %s: %w", path, b.base.Redacted(), err)
}

// apiAnswer is the envelope of the HTTP API.
type apiAnswer struct {
	Status    string          `json:"status"`
	Data      json.RawMessage `json:"data"`
	ErrorType string          `json:"errorType"`
	Error     string          `json:"error"`
	Warnings  []string        `json:"warnings"`
}

// statusError makes an error of an answer that is no success.
func (b *Backend) statusError(resp *http.Response, path string) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var a apiAnswer
	if json.Unmarshal(text, &a) == nil && a.Error != "" {
		text = []byte(a.ErrorType + ": " + a.Error)
	}
	return remoteread.StatusError(path+" of "+b.base.Redacted(), resp.StatusCode, text)
}

// api asks the HTTP API and decodes the data. The warnings say that the server
// could not reach all of its data.
func (b *Backend) api(ctx context.Context, path string, params url.Values, data any) ([]string, error) {
	resp, err := b.get(ctx, path, params)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, b.statusError(resp, path)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, int64(b.cfg.MaxBuffered)+1))
	if err != nil {
		return nil, b.failed(ctx, path, err)
	}
	if len(text) > b.cfg.MaxBuffered {
		return nil, backend.Errorf(backend.ErrLimit, "%s of %s: the answer is larger than max_buffered (%d bytes); select less or raise it",
			path, b.base.Redacted(), b.cfg.MaxBuffered)
	}
	// Unmarshal wants one document and nothing after it. Some servers append a
	// second one when they fail late.
	var a apiAnswer
	if err := json.Unmarshal(text, &a); err != nil {
		return nil, backend.Errorf(backend.ErrInternal, "%s of %s: the answer is not the JSON of the Prometheus API: %w", path, b.base.Redacted(), err)
	}
	if a.Status != "success" {
		return nil, backend.Errorf(backend.ErrInternal, "%s of %s: status %q: %s: %s", path, b.base.Redacted(), a.Status, a.ErrorType, a.Error)
	}
	if len(a.Data) > 0 {
		if err := json.Unmarshal(a.Data, data); err != nil {
			return nil, backend.Errorf(backend.ErrInternal, "%s of %s: %w", path, b.base.Redacted(), err)
		}
	}
	return a.Warnings, nil
}

func notices(warnings []string) []backend.Notice {
	var out []backend.Notice
	for _, w := range warnings {
		out = append(out, backend.Notice{Kind: backend.NoticeMissing, Text: w})
	}
	return out
}

// complete turns warnings into an error for a caller without use for a part.
func complete(warnings []string, partialAllowed bool) error {
	if len(warnings) == 0 || partialAllowed {
		return nil
	}
	return backend.Errorf(backend.ErrUnavailable, "the server could not reach all of its data: %s", strings.Join(warnings, "; "))
}
