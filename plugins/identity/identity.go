// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package identity finds out who asks: it verifies passwords, bearer tokens and
// client certificates, over HTTP and gRPC. What a caller may see is not decided
// here; filters get what was verified, and nothing that was only claimed.
package identity

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/crypto/bcrypt"

	"github.com/promweave/promweave/core/access"
)

// The methods by which a caller says who it is, as in access.Caller.
const (
	MethodBasic  = "basic"
	MethodBearer = "bearer"
	MethodMTLS   = "mtls"
)

// Config says by what callers may say who they are.
type Config struct {
	// Users are bcrypt hashes of passwords by user.
	Users map[string]string
	// JWT, if not nil, accepts bearer tokens.
	JWT *JWT
	// MTLS accepts the verified certificate of a client.
	MTLS bool
	// Headers are those that filters may see, in any case.
	Headers []string
	// Open are paths, and full names of gRPC methods, that need no name.
	Open []string
}

// Verifier verifies callers. It is safe for concurrent use.
type Verifier struct {
	cfg       Config
	log       *slog.Logger
	tokens    *tokens // nil: none are accepted
	challenge string
	open      map[string]bool

	// verified passwords, under a key that only this process knows: bcrypt takes
	// tens of milliseconds, and dashboards ask often.
	key      []byte
	mu       sync.Mutex
	verified map[[sha256.Size]byte]bool
	// busy bounds how many passwords are hashed at a time, which takes a processor each.
	busy chan struct{}
	// turns are one for each user and one, under "", for all names that are nobody's:
	// whoever tries many passwords waits for itself. The price is that, while somebody
	// does, a name that is nobody's waits longer than one that is somebody's; the other
	// way round users would stand behind all who guess.
	turns map[string]chan struct{}
	// nobody is the hash that passwords of unknown users are compared with, so that
	// the time of an answer does not tell which users there are.
	nobody []byte
}

// New checks cfg. Keys of an issuer are fetched when the first token comes, so that
// an issuer that is down does not keep a server from starting.
func New(cfg Config, log *slog.Logger) (*Verifier, error) {
	v := &Verifier{cfg: cfg, log: log, open: map[string]bool{}, key: make([]byte, 32), verified: map[[sha256.Size]byte]bool{},
		busy: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), turns: map[string]chan struct{}{"": make(chan struct{}, 1)}}
	_, _ = rand.Read(v.key) // never fails
	most := 0
	for user, hash := range cfg.Users {
		cost, err := bcrypt.Cost([]byte(hash))
		if err != nil {
			return nil, fmt.Errorf("password of user %q: no bcrypt hash: %w", user, err)
		}
		if cost > most {
			most, v.nobody = cost, []byte(hash)
		}
		v.turns[user] = make(chan struct{}, 1)
	}
	var challenges []string
	if len(cfg.Users) > 0 {
		challenges = append(challenges, `Basic realm="promweave", charset="UTF-8"`)
	}
	if cfg.JWT != nil {
		var err error
		if v.tokens, err = newTokens(cfg.JWT, log); err != nil {
			return nil, err
		}
		challenges = append(challenges, `Bearer realm="promweave"`)
	}
	v.challenge = strings.Join(challenges, ", ")
	for _, p := range cfg.Open {
		v.open[p] = true
	}
	return v, nil
}

// Required says whether callers have to say who they are.
func (v *Verifier) Required() bool { return len(v.cfg.Users) > 0 || v.tokens != nil || v.cfg.MTLS }

// Challenge is what goes with a refusal of somebody unknown: a value of the header
// WWW-Authenticate, "" where neither passwords nor tokens are accepted.
func (v *Verifier) Challenge() string { return v.challenge }

type openKey struct{}

// Open says whether a request is for one of Config.Open, which anybody may ask.
func Open(ctx context.Context) bool { return ctx.Value(openKey{}) != nil }

// HTTP verifies who sent a request and returns its context with the caller. The error
// is an *access.Denied, or of kind unavailable if the issuer's keys cannot be had.
func (v *Verifier) HTTP(r *http.Request) (context.Context, error) {
	var chains [][]*x509.Certificate
	if r.TLS != nil {
		chains = r.TLS.VerifiedChains
	}
	return v.verify(r.Context(), r.URL.Path, r.Header.Values("Authorization"), chains, func(name string) []string { return r.Header.Values(name) })
}

func (v *Verifier) verify(ctx context.Context, path string, auth []string, chains [][]*x509.Certificate, header func(string) []string) (context.Context, error) {
	c, err := v.caller(ctx, auth, chains)
	switch {
	case err != nil && v.open[path]:
		c = &access.Caller{} // known or not makes no difference there
	case err != nil:
		return nil, err
	}
	if c.Method != "" {
		// From somebody unknown a header says nothing.
		for _, name := range v.cfg.Headers {
			if values := header(name); len(values) > 0 {
				if c.Headers == nil {
					c.Headers = map[string][]string{}
				}
				c.Headers[strings.ToLower(name)] = values
			}
		}
	}
	if v.open[path] {
		ctx = context.WithValue(ctx, openKey{}, true)
	}
	return access.WithCaller(ctx, c), nil
}

func (v *Verifier) caller(ctx context.Context, auth []string, chains [][]*x509.Certificate) (*access.Caller, error) {
	if !v.Required() {
		return &access.Caller{}, nil
	}
	if len(auth) > 1 {
		return nil, v.unknown("several Authorization headers: send one")
	}
	if len(auth) == 1 {
		scheme, value, _ := strings.Cut(auth[0], " ")
		switch {
		case strings.EqualFold(scheme, "Basic") && len(v.cfg.Users) > 0:
			return v.basic(ctx, value)
		case strings.EqualFold(scheme, "Bearer") && v.tokens != nil:
			c, err := v.tokens.verify(ctx, strings.TrimSpace(value))
			if err == nil {
				err = v.notUser(c)
			}
			var denied *access.Denied
			if errors.As(err, &denied) {
				denied.Challenge = v.challenge
			}
			if err != nil {
				return nil, err
			}
			return c, nil
		}
		return nil, v.unknown("this kind of Authorization is not accepted here")
	}
	if v.cfg.MTLS && len(chains) > 0 && len(chains[0]) > 0 {
		c := certificate(chains[0][0])
		if err := v.notUser(c); err != nil {
			return nil, err
		}
		return c, nil
	}
	return nil, v.unknown("say who you are: %s", v.ways())
}

// notUser refuses a token or a certificate whose subject is the name of a user with a
// password: what is configured for that user would be for whoever the issuer says.
func (v *Verifier) notUser(c *access.Caller) error {
	if _, ok := v.cfg.Users[c.Subject]; !ok {
		return nil
	}
	v.log.Warn("refused: the subject is the name of a user with a password", "method", c.Method, "subject", c.Subject)
	return v.unknown("what you send names somebody who has a password here: use that")
}

func (v *Verifier) ways() string {
	var ways []string
	if len(v.cfg.Users) > 0 {
		ways = append(ways, "user and password")
	}
	if v.tokens != nil {
		ways = append(ways, "a bearer token")
	}
	if v.cfg.MTLS {
		ways = append(ways, "a client certificate")
	}
	return strings.Join(ways, " or ")
}

func (v *Verifier) unknown(format string, args ...any) error {
	return access.Unauthenticated(v.challenge, format, args...)
}

// mostVerified bounds the remembered passwords.
const mostVerified = 1000

func (v *Verifier) basic(ctx context.Context, encoded string) (*access.Caller, error) {
	wrong := v.unknown("user or password is wrong")
	plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	user, password, ok := strings.Cut(string(plain), ":")
	if err != nil || !ok || len(password) > 72 { // bcrypt's bound
		return nil, wrong
	}
	mac := hmac.New(sha256.New, v.key)
	fmt.Fprintf(mac, "%d:%s:%s", len(user), user, password)
	id := [sha256.Size]byte(mac.Sum(nil))
	known := func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.verified[id]
	}
	if !known() {
		hash, exists := []byte(v.cfg.Users[user]), v.cfg.Users[user] != ""
		turn := v.turns[user]
		if !exists {
			// The most expensive of the hashes, whatever the comparison says.
			hash, turn = v.nobody, v.turns[""]
		}
		for _, c := range []chan struct{}{turn, v.busy} {
			select {
			case c <- struct{}{}:
				defer func() { <-c }()
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			if known() { // since another request of the same user had its turn
				break
			}
		}
		if !known() {
			err := bcrypt.CompareHashAndPassword(hash, []byte(password))
			if err != nil || !exists {
				v.log.Warn("refused", "user", user, "method", MethodBasic)
				return nil, wrong
			}
			v.mu.Lock()
			if len(v.verified) >= mostVerified {
				clear(v.verified)
			}
			v.verified[id] = true
			v.mu.Unlock()
		}
	}
	claims, _ := json.Marshal(map[string]string{"sub": user})
	return &access.Caller{Method: MethodBasic, Subject: user, Claims: claims}, nil
}

// certificate is who a verified client certificate names: its common name, or the
// first of its other names.
func certificate(c *x509.Certificate) *access.Caller {
	claims := map[string]any{}
	add := func(key string, list []string) {
		if len(list) > 0 {
			claims[key] = list
		}
	}
	var uris []string
	for _, u := range c.URIs {
		uris = append(uris, u.String())
	}
	add("dns", c.DNSNames)
	add("uri", uris)
	add("email", c.EmailAddresses)
	add("organization", c.Subject.Organization)
	add("organizational_unit", c.Subject.OrganizationalUnit)
	subject := c.Subject.CommonName
	if subject != "" {
		claims["common_name"] = subject
	}
	for _, list := range [][]string{uris, c.DNSNames, c.EmailAddresses} {
		if subject == "" && len(list) > 0 {
			subject = list[0]
		}
	}
	claims["sub"] = subject
	out, _ := json.Marshal(claims)
	return &access.Caller{Method: MethodMTLS, Subject: subject, Claims: out}
}
