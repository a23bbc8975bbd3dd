// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/sdk/backend"
)

// JWT says which bearer tokens are accepted: those that one of the keys has signed,
// of the issuer if one is given, for one of the audiences, and not expired.
type JWT struct {
	// Issuer as in the claim iss. Without JWKSURL and JWKSFile its keys are found by
	// OIDC discovery.
	Issuer   string
	JWKSURL  string
	JWKSFile string
	// Audience must not be empty.
	Audience []string
	// CAFile is the CA of the issuer's certificate; "" takes the system's.
	CAFile string
}

// algorithms are those with public keys. With a shared secret whoever can verify a
// token could make one.
var algorithms = []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}

const (
	fetchTimeout = 10 * time.Second
	retryAfter   = 5 * time.Second
	maxToken     = 16 << 10
)

// tokens verifies bearer tokens.
type tokens struct {
	cfg    *JWT
	log    *slog.Logger
	client *http.Client

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier // nil until the keys are found
	err      error                 // of the last try
	at       time.Time
}

func newTokens(cfg *JWT, log *slog.Logger) (*tokens, error) {
	if len(cfg.Audience) == 0 {
		return nil, errors.New("bearer tokens: no audience: tokens made for any other service would do")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("CA of the issuer: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA of the issuer: %s holds no certificate in PEM form", cfg.CAFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	// Keys are fetched now and then: nothing is gained by a connection that waits.
	transport.DisableKeepAlives = true
	t := &tokens{cfg: cfg, log: log, client: &http.Client{Transport: transport, Timeout: fetchTimeout}}
	switch {
	case cfg.JWKSFile != "":
		keys, err := readKeys(cfg.JWKSFile)
		if err != nil {
			return nil, err
		}
		t.verifier = t.with(&oidc.StaticKeySet{PublicKeys: keys})
	case cfg.JWKSURL != "":
		// The set fetches its keys when it needs them, and outlives this request.
		t.verifier = t.with(oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), t.client), cfg.JWKSURL))
	}
	return t, nil
}

func (t *tokens) config() *oidc.Config {
	return &oidc.Config{SkipClientIDCheck: true, SkipIssuerCheck: t.cfg.Issuer == "", SupportedSigningAlgs: algorithms}
}

func (t *tokens) with(keys oidc.KeySet) *oidc.IDTokenVerifier {
	return oidc.NewVerifier(t.cfg.Issuer, keys, t.config())
}

func readKeys(path string) ([]crypto.PublicKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("keys of tokens: %w", err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("keys of tokens: %s is no JWK set: %w", path, err)
	}
	var out []crypto.PublicKey
	for _, k := range set.Keys {
		if k.IsPublic() {
			out = append(out, k.Key)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("keys of tokens: %s holds no public key", path)
	}
	return out, nil
}

// ready finds the issuer's keys, at most once in a while.
func (t *tokens) ready() (*oidc.IDTokenVerifier, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.verifier != nil {
		return t.verifier, nil
	}
	if t.err != nil && time.Since(t.at) < retryAfter {
		return nil, t.err
	}
	// Not the request's context: go-oidc keeps it for later fetches.
	p, err := oidc.NewProvider(oidc.ClientContext(context.Background(), t.client), t.cfg.Issuer)
	t.at = time.Now()
	if err != nil {
		t.log.Error("the keys of the token issuer cannot be found; tokens are refused until they are", "issuer", t.cfg.Issuer, "err", err)
		t.err = backend.Errorf(backend.ErrUnavailable, "tokens cannot be verified at the moment, ask again later")
		return nil, t.err
	}
	t.verifier, t.err = p.Verifier(t.config()), nil
	return t.verifier, nil
}

func (t *tokens) verify(ctx context.Context, raw string) (*access.Caller, error) {
	if raw == "" || len(raw) > maxToken {
		return nil, access.Unauthenticated("", "the bearer token is empty or too long")
	}
	v, err := t.ready()
	if err != nil {
		return nil, err
	}
	token, err := v.Verify(ctx, raw)
	if err != nil {
		var expired *oidc.TokenExpiredError
		if errors.As(err, &expired) {
			return nil, access.Unauthenticated("", "the token has expired: get a new one")
		}
		if strings.Contains(err.Error(), "fetching keys") {
			t.log.Error("the keys of the token issuer cannot be fetched", "err", err)
			return nil, backend.Errorf(backend.ErrUnavailable, "tokens cannot be verified at the moment, ask again later")
		}
		t.log.Warn("refused", "method", MethodBearer, "err", err)
		return nil, access.Unauthenticated("", "the token is not valid here")
	}
	if !slices.ContainsFunc(token.Audience, func(a string) bool { return slices.Contains(t.cfg.Audience, a) }) {
		t.log.Warn("refused", "method", MethodBearer, "subject", token.Subject, "audience", token.Audience)
		return nil, access.Unauthenticated("", "the token is for somebody else: it does not name this service as audience")
	}
	var claims json.RawMessage
	if err := token.Claims(&claims); err != nil {
		return nil, access.Unauthenticated("", "the token's claims cannot be read")
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, claims); err != nil {
		return nil, access.Unauthenticated("", "the token's claims cannot be read")
	}
	return &access.Caller{Method: MethodBearer, Subject: token.Subject, Claims: compact.Bytes()}, nil
}
