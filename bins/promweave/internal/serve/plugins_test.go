// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/plugins/identity"
)

// TestVerifierStays: a reload that leaves auth as it is forgets neither passwords nor
// the keys of an issuer. What comes from a file is read again.
func TestVerifierStays(t *testing.T) {
	f, err := newFilters(config.Plugins{Dir: t.TempDir()}, slog.New(slog.DiscardHandler), newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	apply := func(auth config.Identity) *identity.Verifier {
		t.Helper()
		o, err := f.open(t.Context(), config.Config{Auth: auth}, false)
		if err != nil {
			t.Fatal(err)
		}
		o.commit()
		return f.who
	}
	// The hash is that of "secret".
	users := map[string]string{"alice": "$2a$04$Ejn/4jFmw9ztWQW5TEnhCuFpB8Qj0vWDmW26nw2K1riSPKWpRY52i"}
	first := apply(config.Identity{Users: users})
	if apply(config.Identity{Users: users}) != first {
		t.Error("nothing has changed, and yet the verifier is another one")
	}
	if apply(config.Identity{Users: users, MTLS: true}) == first {
		t.Error("a change has no effect")
	}
	keys := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(keys, []byte(`{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	file := config.Identity{JWT: config.JWT{JWKSFile: keys, Audience: []string{"promweave"}}}
	first = apply(file)
	if apply(file) == first {
		t.Error("the keys in a file are not read again")
	}
}

// TestOperators: they may look and mend although the filters let nobody in, and see
// no series for it.
func TestOperators(t *testing.T) {
	f, err := newFilters(config.Plugins{Dir: t.TempDir()}, slog.New(slog.DiscardHandler), newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	o, err := f.open(t.Context(), config.Config{
		Auth:    config.Identity{Operators: []string{"root"}},
		Query:   config.Query{Filters: []string{"nobody"}},
		Filters: []config.Filter{{Name: "nobody", Kind: config.FilterAuth, Config: `{"rules": [{"allow": false}]}`}},
	}, true)
	if err != nil {
		t.Fatal(err)
	}
	o.commit()
	for _, tc := range []struct {
		method, subject, kind string
		let                   bool
	}{
		{"basic", "root", "plugins", true},
		{"basic", "root", "plugin_restart", true},
		{"basic", "root", "reload", true},
		{"basic", "root", "instant", false},
		{"basic", "root", "report", false},
		{"basic", "alice", "plugins", false},
		{"", "root", "plugins", false},
	} {
		ctx := access.WithCaller(t.Context(), &access.Caller{Method: tc.method, Subject: tc.subject})
		g, err := f.doors.Admit(ctx, &access.Ask{Kind: tc.kind})
		if (err == nil) != tc.let || err == nil && !g.Admin {
			t.Errorf("%+v: %+v, %v", tc, g, err)
		}
	}
}

// TestUnused: a filter that rewrites, and that nothing names, is worth a line in the log.
func TestUnused(t *testing.T) {
	var log bytes.Buffer
	f, err := newFilters(config.Plugins{Dir: t.TempDir()}, slog.New(slog.NewTextHandler(&log, nil)), newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	rules := config.Raw(`{"rules": [{"drop": ["x"]}]}`)
	c := config.Config{
		Query: config.Query{Filters: []string{"used"}},
		Filters: []config.Filter{
			{Name: "used", Kind: config.FilterLabelRewrite, Config: rules},
			{Name: "idle", Kind: config.FilterLabelRewrite, Config: rules},
		},
	}
	o, err := f.open(t.Context(), c, true)
	if err != nil {
		t.Fatal(err)
	}
	o.discard()
	if s := log.String(); !strings.Contains(s, "filter=idle") || strings.Contains(s, "filter=used") {
		t.Errorf("the log is:\n%s", s)
	}
}
