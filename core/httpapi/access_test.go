// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/access"
	"github.com/promweave/promweave/core/report"
	"github.com/promweave/promweave/sdk/backend"
)

// guarded is a Server that knows nobody, ann, and root. The fake does not ask for
// itself, so that what is admitted here are the routes that do not go to it.
func guarded(t *testing.T, change func(*Options)) (*Server, *[]string) {
	t.Helper()
	kinds := &[]string{}
	f := &fake{admit: func(ctx context.Context, ask *access.Ask) (*access.Grant, error) {
		*kinds = append(*kinds, ask.Kind)
		who := access.CallerOf(ctx).Subject
		if who == "" {
			return nil, access.Unauthenticated(`Bearer realm="r"`, "who are you")
		}
		g := access.Everything()
		g.Subject, g.Admin, g.Tenants, g.MaxSeries = who, who == "root", []string{"t"}, 5
		g.MinTime = 1000
		return g, nil
	}}
	return newServer(t, f, func(o *Options) {
		o.Profiling = true
		o.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "metric 1") })
		o.Reload = func(context.Context) error { return nil }
		o.UI = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ui") })
		o.Authenticate = func(r *http.Request) (context.Context, error) {
			switch who := r.Header.Get("Who"); who {
			case "stranger":
				return nil, access.Unauthenticated(`Basic realm="x"`, "wrong password")
			case "broken":
				return nil, errors.New("SECRET key file")
			case "down":
				return nil, backend.Errorf(backend.ErrUnavailable, "the identity provider cannot be reached")
			case "nil":
				return nil, nil
			default:
				return access.WithCaller(r.Context(), &access.Caller{Method: "basic", Subject: who}), nil
			}
		}
		if change != nil {
			change(o)
		}
	}), kinds
}

func do(s *Server, who, method, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Who", who)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// TestEveryRouteIsGuarded goes by the table, so that a route that is added without
// a thought shows up here.
func TestEveryRouteIsGuarded(t *testing.T) {
	s, kinds := guarded(t, nil)
	open := map[string]bool{"/-/healthy": true, "/-/ready": true}
	operators := map[string]bool{
		"/api/v1/status/config": true, "/api/v1/status/flags": true, "/api/v1/status/runtimeinfo": true, "/api/v1/blocks": true, "/api/v1/plugins": true, "/api/v1/plugins/{name}": true,
		"/api/v1/plugins/{name}/restart": true, "/-/reload": true, "/metrics": true, "/debug/pprof/{profile...}": true,
	}
	// Of these, whoever answers the query asks the gate.
	asks := map[string]bool{
		"query": true, "queryRange": true, "explain": true, "series": true, "labelNames": true, "labelValues": true, "queryExemplars": true, "metadata": true,
		"rules": true, "alerts": true, "targets": true, "stores": true, "tsdbStatus": true, "remoteRead": true,
	}
	seen := map[string]string{}
	for _, rt := range s.routes() {
		path := strings.NewReplacer("{profile...}", "cmdline", "{name}", "x", "{id}", "x").Replace(rt.path)
		for _, method := range rt.methods {
			if w := do(s, "stranger", method, path); (w.Code == 401) == open[rt.path] {
				t.Errorf("a stranger gets %d from %s %s", w.Code, method, path)
			} else if w.Code == 401 && (w.Header().Get("WWW-Authenticate") != `Basic realm="x"` || !strings.Contains(w.Body.String(), `"errorType":"unauthorized","error":"wrong password"`)) {
				t.Errorf("%s: %v %s", path, w.Header(), w.Body)
			}
			if open[rt.path] || asks[rt.id] {
				if rt.kind != "" {
					t.Errorf("%s asks twice", path)
				}
				continue
			}
			*kinds = nil
			if w := do(s, "", method, path); w.Code != 401 || w.Header().Get("WWW-Authenticate") != `Bearer realm="r"` {
				t.Errorf("nobody gets %d from %s %s", w.Code, method, path)
			}
			if len(*kinds) != 1 || (*kinds)[0] == "" || seen[(*kinds)[0]] != "" && seen[(*kinds)[0]] != path {
				t.Errorf("%s %s: asked as %q", method, path, *kinds)
			} else {
				seen[(*kinds)[0]] = path
			}
			if w := do(s, "ann", method, path); (w.Code == 403) != operators[rt.path] {
				t.Errorf("ann gets %d from %s %s: %s", w.Code, method, path, w.Body)
			}
			if w := do(s, "root", method, path); w.Code == 401 || w.Code == 403 {
				t.Errorf("root gets %d from %s %s", w.Code, method, path)
			}
		}
	}
	for _, path := range []string{"/graph", "/api/v1/nothing", "/"} {
		if w := do(s, "stranger", http.MethodGet, path); w.Code != 401 {
			t.Errorf("a stranger gets %d from %s", w.Code, path)
		}
	}
	r := httptest.NewRequest(http.MethodOptions, "/api/v1/query", nil)
	r.Header.Set("Who", "stranger")
	r.Header.Set("Access-Control-Request-Method", "GET")
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, r); w.Code != http.StatusNoContent {
		t.Errorf("a browser's preflight gets %d", w.Code)
	}
	if c := do(s, "ann", http.MethodGet, "/api/v1/query?query=up").Header().Get("Cache-Control"); c != "private" && c != "no-store" {
		t.Errorf("a shared cache may keep an answer: %q", c)
	}
}

func TestAuthenticationFailsClosed(t *testing.T) {
	s, _ := guarded(t, func(o *Options) { o.Prefix = "/pw" })
	for who, want := range map[string]struct {
		status int
		text   string
	}{
		"broken": {403, `"errorType":"forbidden","error":"it could not be found out who asks`},
		"nil":    {403, `"errorType":"forbidden"`},
		"down":   {503, `"errorType":"unavailable"`},
	} {
		w := do(s, who, http.MethodGet, "/pw/api/v1/query?query=up")
		if w.Code != want.status || !strings.Contains(w.Body.String(), want.text) || strings.Contains(w.Body.String(), "SECRET") {
			t.Errorf("%s: %d %s", who, w.Code, w.Body)
		}
	}
	if w := do(s, "stranger", http.MethodGet, "/pw/-/healthy"); w.Code != 200 {
		t.Errorf("health is closed: %d", w.Code)
	}
	// Not by an odd way to write a path, either.
	for _, path := range []string{"/pw/-/healthy/../metrics", "/pw//-/healthy/", "/-/healthy"} {
		if w := do(s, "stranger", http.MethodGet, path); w.Code == 200 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestWhoami(t *testing.T) {
	s, _ := guarded(t, nil)
	const want = `"data":{"subject":"ann","method":"basic","tenants":["t"],"enforced":[],"admin":false,"minTime":"1970-01-01T00:00:01Z","limits":{"series":5,"samples":0,"bytes":0},"filters":[]}`
	if w := do(s, "ann", http.MethodGet, "/api/v1/status/whoami"); w.Code != 200 || !strings.Contains(w.Body.String(), want) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestBlocks(t *testing.T) {
	const none = `"data":{"blocks":[],"label":"","refreshedAt":"0001-01-01T00:00:00Z","err":null,"partial":[]}`
	s, _ := guarded(t, nil)
	if w := do(s, "root", http.MethodGet, "/api/v1/blocks"); w.Code != 200 || !strings.Contains(w.Body.String(), none) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	s, _ = guarded(t, func(o *Options) {
		o.Blocks = func(context.Context) BlockList {
			return BlockList{Blocks: []any{map[string]string{"ulid": "SECRET"}}, Partial: []any{}}
		}
	})
	if w := do(s, "root", http.MethodGet, "/api/v1/blocks"); w.Code != 200 || !strings.Contains(w.Body.String(), `"blocks":[{"ulid":"SECRET"}]`) || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := do(s, "ann", http.MethodGet, "/api/v1/blocks"); w.Code != 403 || strings.Contains(w.Body.String(), "SECRET") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestPlugins(t *testing.T) {
	var restarted []string
	at := time.Unix(1700000000, 0).UTC()
	s, _ := guarded(t, func(o *Options) {
		o.Plugins = func(context.Context) []PluginStatus {
			return []PluginStatus{{Name: "a", Kind: "filter", State: "serving", Since: at, LastFaultTime: &at, Faults: map[string]int64{"trap": 2}}}
		}
		o.RestartPlugin = func(_ context.Context, name string) error {
			restarted = append(restarted, name)
			switch name {
			case "a":
				return nil
			case "b":
				return errors.New("it does not start")
			}
			return fmt.Errorf("%q: %w", name, ErrNoPlugin)
		}
	})
	const want = `"data":[{"name":"a","kind":"filter","role":"","launch":"","origin":"","version":"","sha256":"","signer":"","permissions":[],"state":"serving",` +
		`"since":"2023-11-14T22:13:20Z","restarts":0,"faults":{"trap":2},"lastFault":"","lastFaultTime":"2023-11-14T22:13:20Z","lastLines":[],"pid":0,"memoryBytes":0,` +
		`"instances":0,"busy":0,"calls":0,"usedBy":[],"onFailure":"","protocolMinor":0}]`
	if w := do(s, "root", http.MethodGet, "/api/v1/plugins"); w.Code != 200 || !strings.Contains(w.Body.String(), want) || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := do(s, "root", http.MethodGet, "/api/v1/plugins/a"); w.Code != 200 || !strings.Contains(w.Body.String(), want[len(`"data":[`):len(want)-1]) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := do(s, "root", http.MethodGet, "/api/v1/plugins/none"); w.Code != 404 || !strings.Contains(w.Body.String(), "/api/v1/plugins lists all") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for name, want := range map[string]struct {
		status int
		text   string
	}{"a": {200, `{"name":"a"}`}, "b": {500, "it does not start"}, "c": {404, "/api/v1/plugins lists all"}} {
		if w := do(s, "root", http.MethodPost, "/api/v1/plugins/"+name+"/restart"); w.Code != want.status || !strings.Contains(w.Body.String(), want.text) {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	do(s, "ann", http.MethodPost, "/api/v1/plugins/ann/restart")
	do(s, "root", http.MethodGet, "/api/v1/plugins/get/restart")
	for _, name := range restarted {
		if name == "ann" || name == "get" {
			t.Errorf("%s restarted a plug-in", name)
		}
	}
	none := newServer(t, &fake{}, nil)
	if w := do(none, "", http.MethodGet, "/api/v1/plugins"); w.Code != 200 || !strings.Contains(w.Body.String(), `"data":[]`) {
		t.Errorf("without plug-ins: %d %s", w.Code, w.Body)
	}
	if w := do(none, "", http.MethodPost, "/api/v1/plugins/a/restart"); w.Code != 404 {
		t.Errorf("without plug-ins: %d %s", w.Code, w.Body)
	}
}

func TestMayRead(t *testing.T) {
	grant := func(subject, tenant string, enforced ...string) *access.Grant {
		g := &access.Grant{Subject: subject, Tenants: []string{tenant}}
		for _, v := range enforced {
			g.Enforce = append(g.Enforce, labels.MustNewMatcher(labels.MatchEqual, "tenant", v))
		}
		return g
	}
	rep := &report.Report{Access: &report.Access{Subject: "ann", Tenants: []string{"t"}, Enforced: []string{`tenant="t"`}}}
	for _, c := range []struct {
		g    *access.Grant
		rep  *report.Report
		want bool
	}{
		{grant("ann", "t", "t"), rep, true},
		{grant("bob", "t", "t"), rep, false},
		{grant("ann", "u", "t"), rep, false},
		{grant("ann", "t", "u"), rep, false},
		{grant("ann", "t"), rep, false},
		{grant("ann", "t", "t"), &report.Report{}, false},
		{&access.Grant{Admin: true}, rep, true},
		{&access.Grant{}, &report.Report{Access: &report.Access{Admin: true}}, false},
		{nil, rep, false},
	} {
		if got := mayRead(c.g, c.rep); got != c.want {
			t.Errorf("%+v: %t", c.g, got)
		}
	}
}
