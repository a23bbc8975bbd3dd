// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package apiclient asks a Promweave server, or anything with the HTTP API of
// Prometheus, on behalf of the command line.
package apiclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/promweave/promweave/core/report"
)

// maxAnswer bounds what is read of one answer.
const maxAnswer = 1 << 30

// Options of a Client.
type Options struct {
	// Server is the URL of the server, without /api. It may hold a user and password.
	Server string
	// Headers are sent along, each as "Name: value".
	Headers []string
	// CAFile, if given, holds the CA of the server's certificate.
	CAFile string
}

// Client asks one server.
type Client struct {
	base    *url.URL
	headers http.Header
	http    *http.Client
}

// New checks the options and returns a client. It opens no connection.
func New(o Options) (*Client, error) {
	raw := o.Server
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is no URL of a server: write it as http://127.0.0.1:9090", o.Server)
	}
	c := &Client{base: u, headers: http.Header{}}
	for _, h := range o.Headers {
		name, val, ok := strings.Cut(h, ":")
		if !ok || strings.TrimSpace(name) == "" {
			return nil, fmt.Errorf("%q is no header: write it as 'Name: value'", h)
		}
		c.headers.Add(strings.TrimSpace(name), strings.TrimSpace(val))
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.DisableKeepAlives = true // one question and done
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("CA file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA file %s holds no certificate in PEM form", o.CAFile)
		}
		tr.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	c.http = &http.Client{Transport: tr}
	return c, nil
}

// Answer is what the server said.
type Answer struct {
	// Data is the part of the envelope under data.
	Data            json.RawMessage
	Warnings, Infos []string
	// Completeness is the server's own word for it. Stated is false if the server
	// says nothing of the kind, as a plain Prometheus.
	Completeness report.State
	Stated       bool
	// Report is there if it was asked for and the server has such a thing.
	Report json.RawMessage
}

// Whole says whether nothing is known to be missing. An answer of which the
// server itself does not know counts as not whole.
func (a *Answer) Whole() bool { return !a.Stated || a.Completeness == report.Complete }

// Error is an answer that reports an error.
type Error struct {
	Status int
	// Type is that of the API: bad_data, timeout, ...; "" if the answer was none
	// of the API.
	Type, Text string
	// Report says how far the request came; nil if the server did not say.
	Report json.RawMessage
}

// Error returns the text with its type.
func (e *Error) Error() string {
	if e.Type == "" {
		return e.Text
	}
	return e.Type + ": " + e.Text
}

// Post asks path, such as /api/v1/query, with form parameters.
func (c *Client) Post(ctx context.Context, path string, params url.Values) (*Answer, error) {
	return c.do(ctx, http.MethodPost, path, params)
}

// Get asks path with parameters in the URL.
func (c *Client) Get(ctx context.Context, path string, params url.Values) (*Answer, error) {
	return c.do(ctx, http.MethodGet, path, params)
}

func (c *Client) do(ctx context.Context, method, path string, params url.Values) (*Answer, error) {
	u := *c.base
	user := u.User
	u.User = nil
	u.Path = strings.TrimSuffix(u.Path, "/") + path
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(params.Encode())
	} else {
		u.RawQuery = params.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header = c.headers.Clone()
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Accept", "application/json")
	if user != nil {
		pw, _ := user.Password()
		req.SetBasicAuth(user.Username(), pw)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	defer resp.Body.Close()
	return c.read(ctx, resp)
}

func (c *Client) read(ctx context.Context, resp *http.Response) (*Answer, error) {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("the answer of %s broke off after %d bytes: %w; the server's log says why", c.base.Redacted(), len(data), c.cause(ctx, err))
	}
	if len(data) > maxAnswer {
		return nil, fmt.Errorf("the answer of %s is larger than %d MiB: ask for less, or use curl", c.base.Redacted(), maxAnswer>>20)
	}
	var env struct {
		Status    string          `json:"status"`
		Data      json.RawMessage `json:"data"`
		ErrorType string          `json:"errorType"`
		Error     string          `json:"error"`
		Warnings  []string        `json:"warnings"`
		Infos     []string        `json:"infos"`
		Report    json.RawMessage `json:"report"`
	}
	if err := json.Unmarshal(data, &env); err != nil || env.Status == "" {
		return nil, &Error{Status: resp.StatusCode, Text: c.foreign(resp, data)}
	}
	if env.Status != "success" {
		return nil, &Error{Status: resp.StatusCode, Type: env.ErrorType, Text: env.Error, Report: env.Report}
	}
	a := &Answer{Data: env.Data, Warnings: env.Warnings, Infos: env.Infos, Report: env.Report}
	if h := resp.Header.Get("Promweave-Completeness"); h != "" {
		a.Stated = true
		if err := a.Completeness.UnmarshalText([]byte(h)); err != nil {
			return nil, fmt.Errorf("the server at %s says %w; is this client older than the server?", c.base.Redacted(), err)
		}
	} else if len(env.Report) > 0 {
		var rep struct {
			Completeness report.Completeness `json:"completeness"`
		}
		if json.Unmarshal(env.Report, &rep) == nil {
			a.Stated, a.Completeness = true, rep.Completeness.State
		}
	}
	return a, nil
}

// foreign describes an answer that is none of the API.
func (c *Client) foreign(resp *http.Response, data []byte) string {
	text := strings.TrimSpace(string(data[:min(len(data), 200)]))
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Sprintf("%s refuses access (%s): give a user and password in the URL, or a token by --header 'Authorization: Bearer ...'", c.base.Redacted(), resp.Status)
	case http.StatusNotFound:
		return fmt.Sprintf("%s has no %s: is this the address of a Promweave server?", c.base.Redacted(), resp.Request.URL.Path)
	}
	return fmt.Sprintf("%s answered %s, and not in the form of the API: %.200q; is this the address of a Promweave server?", c.base.Redacted(), resp.Status, text)
}

func (c *Client) cause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// explain turns a failed request into what to do about it.
func (c *Client) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("no answer from %s: %w", c.base.Redacted(), cause)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	hint := "name another server by --server or PROMWEAVE_SERVER"
	var (
		op   *net.OpError
		cert *tls.CertificateVerificationError
	)
	switch {
	case errors.As(err, &cert):
		hint = "name the CA by --ca-file"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		hint = "write http:// instead of https://"
	case errors.As(err, &op):
		hint = "is promweave serve running there? Otherwise " + hint
	}
	return fmt.Errorf("cannot reach %s: %w; %s", c.base.Redacted(), err, hint)
}
