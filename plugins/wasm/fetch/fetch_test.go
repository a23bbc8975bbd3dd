// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPublic(t *testing.T) {
	for _, a := range []string{
		"127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1",
		"255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "64:ff9b::a00:1",
		"2002:a00:1::", "2001:db8::1", "::a00:1", "fec0::1", "2001:0:1::1", "fe80::1%eth0",
	} {
		if public(netip.MustParseAddr(a)) {
			t.Errorf("%s is public", a)
		}
	}
	for _, a := range []string{"1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111"} {
		if !public(netip.MustParseAddr(a)) {
			t.Errorf("%s is not public", a)
		}
	}
}

func TestNew(t *testing.T) {
	for want, c := range map[string]Config{
		"scheme is":             {Allow: []Target{{Host: "x"}}},
		"host is":               {Allow: []Target{{Scheme: "http", Host: "*.example.com"}}},
		"not among the secrets": {Allow: []Target{{Scheme: "http", Host: "x", Secrets: []string{"y"}}}},
		"Host belongs to":       {Headers: []string{"host"}},
		"Proxy-Authorization":   {Headers: []string{"proxy-authorization"}},
		"ordinary header":       {Secrets: map[string]Secret{"x": {Header: "Content-Length", Value: "1"}}},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestDo(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/gzip":
			if r.Header.Get("Accept-Encoding") != "gzip" {
				t.Errorf("headers %v", r.Header)
			}
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(make([]byte, 1000))
			_ = z.Close()
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/cookie":
			w.Header().Set("Set-Cookie", "a=b")
		case "/echo":
			b, _ := io.ReadAll(r.Body)
			_, _ = w.Write(b)
		case "/other":
			http.Redirect(w, r, strings.Replace("http://"+r.Host, "127.0.0.1", "localhost", 1)+"/", http.StatusTemporaryRedirect)
		default:
			_, _ = io.WriteString(w, r.Header.Get("Authorization")+r.Header.Get("X-Extra"))
		}
	}))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{
		Allow: []Target{
			{Scheme: "HTTP", Host: "127.0.0.1", Port: uint16(port), AllowPrivate: true, Methods: []string{"GET", "POST"}, Secrets: []string{"s"}},
			{Scheme: "http", Host: "localhost.", Port: uint16(port), AllowPrivate: true},
		},
		Headers:   []string{"x-extra"},
		Secrets:   map[string]Secret{"s": {Header: "Authorization", Value: "Bearer t"}},
		BodyBytes: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	get := func(r *Request) (string, error) {
		if r.URL[0] == '/' {
			r.URL = server.URL + r.URL
		}
		a, err := c.Do(t.Context(), r)
		if err != nil {
			return "", err
		}
		defer func() { _ = a.Body.Close() }()
		for _, h := range a.Headers {
			if h.Name == "Set-Cookie" {
				t.Error("cookies are shown")
			}
		}
		b, err := io.ReadAll(a.Body)
		return string(b), err
	}
	if got, err := get(&Request{URL: "/gzip"}); err != nil || len(got) != 1000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got, err := get(&Request{URL: "/", Secret: "s", Headers: []Header{{"X-extra", []string{"!"}}}}); err != nil || got != "Bearer t!" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := get(&Request{URL: "/cookie"}); err != nil {
		t.Error(err)
	}
	if got, err := get(&Request{Method: "POST", URL: "/echo", Body: bytes.Repeat([]byte("x"), 1000)}); err != nil || len(got) != 1000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got, err := get(&Request{Method: "POST", URL: "/echo", Body: bytes.Repeat([]byte("x"), 1001)}); !errors.Is(err, ErrTooLarge) || len(got) != 1000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for want, r := range map[error]*Request{
		ErrNotAllowed: {URL: "/", Headers: []Header{{"Authorization", []string{"x"}}}},
		ErrInvalid:    {URL: "http://a b/"},
	} {
		if _, err := get(r); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	if _, err := get(&Request{URL: "/loop"}); err == nil || !strings.Contains(err.Error(), "redirects") {
		t.Errorf("got %v", err)
	}
	// A redirect to a target that is allowed, but may not have the secret.
	if _, err := get(&Request{URL: "/other"}); err != nil {
		t.Error(err)
	}
	if _, err := get(&Request{URL: "/other", Secret: "s"}); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("got %v", err)
	}
	// Nor does a redirect make a method allowed.
	if _, err := get(&Request{Method: "POST", URL: "/other"}); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("got %v", err)
	}
}
