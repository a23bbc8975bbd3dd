// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/plugins/identity"
	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

func hash(t *testing.T, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

func verifier(t *testing.T, cfg identity.Config) *identity.Verifier {
	t.Helper()
	v, err := identity.New(cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func ask(v *identity.Verifier, change func(*http.Request)) (*access.Caller, error) {
	r := httptest.NewRequest(http.MethodGet, "/api/v1/query", nil)
	if change != nil {
		change(r)
	}
	ctx, err := v.HTTP(r)
	if err != nil {
		return nil, err
	}
	return access.CallerOf(ctx), nil
}

func TestBasic(t *testing.T) {
	v := verifier(t, identity.Config{Users: map[string]string{"alice": hash(t, "s3cret"), "bob": hash(t, "other")}, Headers: []string{"Thanos-Tenant"}})
	for range 2 { // the second time from memory
		c, err := ask(v, func(r *http.Request) {
			r.SetBasicAuth("alice", "s3cret")
			r.Header.Set("THANOS-TENANT", "a")
			r.Header.Set("X-Other", "x")
		})
		if err != nil {
			t.Fatal(err)
		}
		if c.Method != "basic" || c.Subject != "alice" || string(c.Claims) != `{"sub":"alice"}` || len(c.Headers) != 1 || c.Headers["thanos-tenant"][0] != "a" {
			t.Errorf("got %+v", c)
		}
	}
	for name, change := range map[string]func(*http.Request){
		"nothing":        nil,
		"wrong password": func(r *http.Request) { r.SetBasicAuth("alice", "other") },
		"wrong user":     func(r *http.Request) { r.SetBasicAuth("carol", "s3cret") },
		"colons move":    func(r *http.Request) { r.SetBasicAuth("alice:s3cret", "") },
		"long":           func(r *http.Request) { r.SetBasicAuth("alice", strings.Repeat("x", 100)) },
		"not base64":     func(r *http.Request) { r.Header.Set("Authorization", "Basic !") },
		"bearer":         func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") },
		"twice": func(r *http.Request) {
			r.SetBasicAuth("alice", "s3cret")
			r.Header.Add("Authorization", "Basic eDp5")
		},
		"a certificate that is not asked for": func(r *http.Request) {
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: "alice"}}}}}
		},
	} {
		_, err := ask(v, change)
		var denied *access.Denied
		if !errors.As(err, &denied) || denied.Status != 401 || !strings.HasPrefix(denied.Challenge, "Basic ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestManyWrongPasswords: who tries many passwords, under whatever names, waits for
// itself; a user who comes meanwhile does not stand behind all of them.
func TestManyWrongPasswords(t *testing.T) {
	slow, err := bcrypt.GenerateFromPassword([]byte("x"), 10)
	if err != nil {
		t.Fatal(err)
	}
	v := verifier(t, identity.Config{Users: map[string]string{"alice": hash(t, "s3cret"), "slow": string(slow)}})
	const attempts = 50
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var ended atomic.Int64
	first := make(chan struct{}, attempts)
	for i := range attempts {
		wg.Go(func() {
			r := httptest.NewRequest(http.MethodGet, "/api/v1/query", nil).WithContext(ctx)
			r.SetBasicAuth(fmt.Sprint("nobody", i), "guess")
			if _, err := v.HTTP(r); err == nil {
				t.Error("a guess was right")
			}
			ended.Add(1)
			first <- struct{}{}
		})
	}
	<-first // by now the others wait
	c, err := ask(v, func(r *http.Request) { r.SetBasicAuth("alice", "s3cret") })
	if n := ended.Load(); err != nil || c.Subject != "alice" || n > attempts/2 {
		t.Errorf("%+v, %v, after %d of %d attempts of others", c, err, n, attempts)
	}
	cancel()
	wg.Wait()
}

func TestOpenPathsNeedNoName(t *testing.T) {
	v := verifier(t, identity.Config{Users: map[string]string{"alice": hash(t, "x")}, Open: []string{"/metrics"}, Headers: []string{"thanos-tenant"}})
	at := func(path string) (*access.Caller, error) {
		return ask(v, func(r *http.Request) {
			r.URL.Path = path
			r.Header.Set("thanos-tenant", "a")
		})
	}
	if c, err := at("/metrics"); err != nil || c.Method != "" || len(c.Headers) > 0 {
		t.Errorf("open: %+v, %v", c, err)
	}
	for _, p := range []string{"/metrics/", "/Metrics", "//metrics", "/api/v1/query"} {
		if _, err := at(p); err == nil {
			t.Errorf("%s is open", p)
		}
	}
}

func TestNobodyIsAskedWithoutAWay(t *testing.T) {
	v := verifier(t, identity.Config{Headers: []string{"thanos-tenant"}})
	c, err := ask(v, func(r *http.Request) {
		r.Header.Set("thanos-tenant", "a")
		r.SetBasicAuth("x", "y")
	})
	if err != nil || c.Method != "" || c.Subject != "" || len(c.Headers) > 0 {
		t.Errorf("got %+v, %v: a header from somebody unknown counts", c, err)
	}
}

func TestCertificates(t *testing.T) {
	v := verifier(t, identity.Config{MTLS: true})
	u, _ := url.Parse("spiffe://cluster/ns/a")
	for want, cert := range map[string]*x509.Certificate{
		"grafana":               {Subject: pkix.Name{CommonName: "grafana", Organization: []string{"team-a"}}, URIs: []*url.URL{u}},
		"spiffe://cluster/ns/a": {URIs: []*url.URL{u}, DNSNames: []string{"x"}},
	} {
		c, err := ask(v, func(r *http.Request) {
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert}}}
		})
		if err != nil || c.Method != "mtls" || c.Subject != want {
			t.Errorf("%s: %+v, %v", want, c, err)
		}
		var claims map[string]any
		if err := json.Unmarshal(c.Claims, &claims); err != nil || claims["sub"] != want {
			t.Errorf("claims %s", c.Claims)
		}
	}
	if _, err := ask(v, func(r *http.Request) {
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "not verified"}}}}
	}); err == nil {
		t.Error("a certificate that nobody verified counts")
	}
}

// TestSubjectsOfUsers: what is configured for a user with a password is for nobody whom an
// issuer gives the same name.
func TestSubjectsOfUsers(t *testing.T) {
	i := newIssuer(t)
	v := verifier(t, identity.Config{MTLS: true, Users: map[string]string{"root": hash(t, "s3cret")}, JWT: &identity.JWT{Issuer: i.URL, Audience: []string{"promweave"}}})
	for subject, ok := range map[string]bool{"root": false, "alice": true} {
		_, err := ask(v, func(r *http.Request) {
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: subject}}}}}
		})
		if (err == nil) != ok {
			t.Errorf("a certificate of %s: %v", subject, err)
		}
		token := sign(t, jose.ES256, i.key, map[string]any{"iss": i.URL, "aud": "promweave", "sub": subject, "exp": time.Now().Add(time.Hour).Unix()})
		_, err = ask(v, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) })
		var denied *access.Denied
		if (err == nil) != ok || err != nil && (!errors.As(err, &denied) || denied.Status != 401) {
			t.Errorf("a token of %s: %v", subject, err)
		}
	}
	if c, err := ask(v, func(r *http.Request) { r.SetBasicAuth("root", "s3cret") }); err != nil || c.Subject != "root" {
		t.Errorf("the user: %+v %v", c, err)
	}
}

type issuer struct {
	*httptest.Server
	key  *ecdsa.PrivateKey
	down bool
}

func newIssuer(t *testing.T) *issuer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		if i.down {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "authorization_endpoint": i.URL, "token_endpoint": i.URL,
			"id_token_signing_alg_values_supported": []string{"ES256"},
		})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(i.jwks()) })
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) jwks() []byte {
	out, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	return out
}

func sign(t *testing.T, alg jose.SignatureAlgorithm, key any, claims map[string]any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := jwt.Signed(s).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTokens(t *testing.T) {
	i := newIssuer(t)
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, i.jwks(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]*identity.JWT{
		"discovery": {Issuer: i.URL, Audience: []string{"promweave", "other"}},
		"url":       {Issuer: i.URL, JWKSURL: i.URL + "/keys", Audience: []string{"promweave"}},
		"file":      {Issuer: i.URL, JWKSFile: file, Audience: []string{"promweave"}},
	} {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, identity.Config{JWT: cfg})
			claims := func(change func(map[string]any)) map[string]any {
				out := map[string]any{"iss": i.URL, "sub": "alice", "aud": "promweave", "exp": time.Now().Add(time.Hour).Unix(), "tenant": "a"}
				if change != nil {
					change(out)
				}
				return out
			}
			bearer := func(token string) (*access.Caller, error) {
				return ask(v, func(r *http.Request) { r.Header.Set("Authorization", "bearer "+token) })
			}
			good := sign(t, jose.ES256, i.key, claims(nil))
			c, err := bearer(good)
			if err != nil || c.Method != "bearer" || c.Subject != "alice" || !strings.Contains(string(c.Claims), `"tenant":"a"`) {
				t.Fatalf("%+v, %v", c, err)
			}
			stranger, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			parts := strings.Split(good, ".")
			for name, token := range map[string]string{
				"another key":     sign(t, jose.ES256, stranger, claims(nil)),
				"shared secret":   sign(t, jose.HS256, []byte(strings.Repeat("k", 32)), claims(nil)),
				"expired":         sign(t, jose.ES256, i.key, claims(func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() })),
				"no expiry":       sign(t, jose.ES256, i.key, claims(func(c map[string]any) { delete(c, "exp") })),
				"another issuer":  sign(t, jose.ES256, i.key, claims(func(c map[string]any) { c["iss"] = "https://evil" })),
				"another service": sign(t, jose.ES256, i.key, claims(func(c map[string]any) { c["aud"] = "grafana" })),
				"no signature":    parts[0] + "." + parts[1] + ".",
				"alg none":        "eyJhbGciOiJub25lIn0." + parts[1] + ".",
				"changed":         parts[0] + "." + parts[1] + "A." + parts[2],
				"empty":           "",
				"long":            strings.Repeat("x", 20<<10),
			} {
				_, err := bearer(token)
				var denied *access.Denied
				if !errors.As(err, &denied) || denied.Status != 401 || !strings.HasPrefix(denied.Challenge, "Bearer ") {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

func TestIssuerThatIsDown(t *testing.T) {
	i := newIssuer(t)
	i.down = true
	v := verifier(t, identity.Config{JWT: &identity.JWT{Issuer: i.URL, Audience: []string{"promweave"}}})
	token := sign(t, jose.ES256, i.key, map[string]any{"iss": i.URL, "sub": "a", "aud": "promweave", "exp": time.Now().Add(time.Hour).Unix()})
	_, err := ask(v, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) })
	if !errors.Is(err, backend.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestBadConfiguration(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]identity.Config{
		"plain password": {Users: map[string]string{"a": "plain"}},
		"no audience":    {JWT: &identity.JWT{Issuer: "https://i"}},
		"no file":        {JWT: &identity.JWT{JWKSFile: bad + "x", Audience: []string{"a"}}},
		"no keys":        {JWT: &identity.JWT{JWKSFile: bad, Audience: []string{"a"}}},
		"no CA":          {JWT: &identity.JWT{Issuer: "https://i", CAFile: bad, Audience: []string{"a"}}},
	} {
		if _, err := identity.New(cfg, quiet); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestGRPC calls what the interceptors call.
func TestGRPC(t *testing.T) {
	v := verifier(t, identity.Config{Users: map[string]string{"alice": hash(t, "x")}, MTLS: true, Headers: []string{"thanos-tenant"}})
	md := metadata.Pairs("authorization", "Basic YWxpY2U6eA==", "Thanos-Tenant", "a")
	c, err := identity.Call(metadata.NewIncomingContext(context.Background(), md), v, "/thanos.Store/Series")
	if err != nil || c.Subject != "alice" || c.Headers["thanos-tenant"][0] != "a" {
		t.Errorf("%+v, %v", c, err)
	}
	ctx := peer.NewContext(context.Background(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{
		VerifiedChains: [][]*x509.Certificate{{{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "querier"}}}},
	}}})
	if c, err = identity.Call(ctx, v, "/thanos.Store/Series"); err != nil || c.Subject != "querier" {
		t.Errorf("%+v, %v", c, err)
	}
	_, err = identity.Call(context.Background(), v, "/thanos.Store/Series")
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("nobody: %v", err)
	}
	if _, err = identity.Call(context.Background(), v, "/grpc.health.v1.Health/Check"); err != nil {
		t.Errorf("health: %v", err)
	}
}
