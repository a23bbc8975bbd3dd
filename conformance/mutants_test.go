// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/promweave/promweave/conformance"
	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/conformance/internal/mutants"
	"github.com/promweave/promweave/conformance/reference"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/conformance/wire"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storeapi"
	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/infopb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	whole    = sync.OnceValue(func() *corpus.Corpus { return corpus.New(corpus.Options{}) })
	external = labels.FromStrings("cluster", "eu1", "replica", "r1")
)

// other is a second replica, which only queries are asked of.
var other = labels.FromStrings("cluster", "eu1", "replica", "r2")

// served is a backend behind StoreAPI, spoiled on the wire if that is wanted, with a query
// API beside it if there is one.
func served(t *testing.T, b backend.Backend, spoil func(storepb.StoreServer) storepb.StoreServer, query storepb.QueryServer, announced bool) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(storeapi.ServerOptions()...)
	if query != nil {
		storepb.RegisterQueryServer(srv, query)
	}
	if s := storeapi.NewServer(b, storeapi.ServerConfig{QueryAPI: announced}); spoil == nil {
		s.Register(srv)
	} else {
		storepb.RegisterStoreServer(srv, spoil(s))
		infopb.RegisterInfoServer(srv, s)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	opts, err := storeapi.DialOptions(storeapi.DialConfig{})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///bufconn", append(opts, grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); srv.Stop(); <-done })
	return conn
}

// subject is a mutant, or the reference, in process, or behind the wire.
func subject(t *testing.T, m *mutants.Mutant, ext labels.Labels) *conformance.Subject {
	t.Helper()
	b := m.New(whole(), ext)
	s := &conformance.Subject{Name: m.Name, Launch: "in process", Backend: b, Corpus: whole(), InProcess: true, LoadedBy: "hook"}
	s.Faults = []conformance.Fault{{
		Name:  "the store is away",
		Break: func(context.Context) error { b.Away.Store(true); return nil },
		Mend:  func(context.Context) error { b.Away.Store(false); return nil },
	}}
	switch {
	case m.Query != nil:
		conn := served(t, b, nil, m.Query(reference.NewQuery(b, m.New(whole(), other))), !m.Unannounced)
		s.Backend, s.Wire, s.InProcess, s.External = wire.New(conn), conn, false, []labels.Labels{ext, other}
	case m.Server != nil:
		conn := served(t, b, m.Server, nil, false)
		s.Backend, s.Wire, s.InProcess = wire.New(conn), conn, false
	}
	return s
}

// TestMutants: each is caught by the requirement that names its fault.
func TestMutants(t *testing.T) {
	for _, m := range mutants.All() {
		for _, id := range m.Kills {
			t.Run(strings.ReplaceAll(m.Name, " ", "_")+"/"+id, func(t *testing.T) {
				if id != "B-2.leak" { // which counts goroutines
					t.Parallel()
				}
				rep, err := conformance.Certify(t.Context(), subject(t, m, external), conformance.Options{Seed: 1, Run: func(x string) bool { return x == id }})
				if err != nil {
					t.Fatal(err)
				}
				if len(rep.Results) != 1 {
					t.Fatalf("there is no requirement %s", id)
				}
				if r := rep.Results[0]; r.Outcome != report.Failed || len(r.Failures) == 0 {
					t.Fatalf("it survives: %s %s", r.Outcome, r.Detail)
				}
				if rep.Certified {
					t.Fatal("it is certified")
				}
			})
		}
	}
}

// recorded notes what every expression came to, for all requests with it.
type recorded struct {
	storepb.QueryServer
	mu     sync.Mutex
	series map[string]int
	errs   map[string]error
}

func (r *recorded) note(text string, series int, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.series[text] += series
	if err != nil {
		r.errs[text] = err
	}
	return err
}

type counted[T any] struct {
	grpc.ServerStreamingServer[T]
	n int
}

func (c *counted[T]) Send(m *T) error { c.n++; return c.ServerStreamingServer.Send(m) }

func (r *recorded) Query(m *storepb.QueryRequest, out grpc.ServerStreamingServer[storepb.QueryResponse]) error {
	c := &counted[storepb.QueryResponse]{ServerStreamingServer: out}
	err := r.QueryServer.Query(m, c)
	return r.note(m.GetQuery(), c.n-1, err) // but for the statistics
}

func (r *recorded) QueryRange(m *storepb.QueryRangeRequest, out grpc.ServerStreamingServer[storepb.QueryRangeResponse]) error {
	c := &counted[storepb.QueryRangeResponse]{ServerStreamingServer: out}
	err := r.QueryServer.QueryRange(m, c)
	return r.note(m.GetQuery(), c.n-1, err)
}

// TestQueries: the server that mutants are made of passes all that they are to fail, over
// two replicas; and what is asked is worth asking: where both sides fail, or both are
// empty, nothing is compared.
func TestQueries(t *testing.T) {
	var rec *recorded
	s := subject(t, &mutants.Mutant{Name: "none", Query: func(s storepb.QueryServer) storepb.QueryServer {
		rec = &recorded{QueryServer: s, series: map[string]int{}, errs: map[string]error{}}
		return rec
	}}, external)
	empty := []string{`absent(cert_matrix)`, `"text"`, `cert_requests_total >= ignoring (nothing) cert_requests_total offset 1m`}
	rep, err := conformance.Certify(t.Context(), s, conformance.Options{
		Seed: 1, Generated: 400, Run: func(id string) bool { return strings.HasPrefix(id, "P-") },
		Progress: func(_, _ int, r *report.Result) {
			rec.mu.Lock()
			defer rec.mu.Unlock()
			failed, nothing := 0, 0
			for text, n := range rec.series {
				err := rec.errs[text]
				if err != nil {
					failed++
				} else if n <= 0 {
					nothing++
				}
				switch {
				case r.ID == "P-1.generated", r.ID == "P-1.engines", r.ID == "P-7.dedup", strings.HasPrefix(r.ID, "P-8."), strings.HasPrefix(r.ID, "P-9."), strings.HasPrefix(r.ID, "P-10."):
				case err != nil:
					t.Errorf("%s: `%s` fails: %v", r.ID, text, err)
				case n <= 0 && !slices.Contains(empty, text) && r.ID != "P-6.external":
					t.Errorf("%s: `%s` is always empty", r.ID, text)
				}
			}
			if r.ID == "P-9.timeout" && failed == 0 {
				t.Error("no query is so long that its timeout ends it")
			}
			if r.ID == "P-1.generated" {
				t.Logf("of %d generated expressions %d fail and %d are empty", len(rec.series), failed, nothing)
				if failed*10 > len(rec.series) || nothing*2 > len(rec.series) {
					t.Error("too many generated queries compare nothing")
				}
			}
			clear(rec.series)
			clear(rec.errs)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Results) < 25 {
		t.Errorf("there are %d requirements only", len(rep.Results))
	}
	for _, r := range rep.Results {
		if r.Outcome != report.Passed && r.ID != "P-0.unclaimed" {
			t.Errorf("%s: %s %s %v", r.ID, r.Outcome, r.Detail, r.Failures)
		}
	}
}

// TestEveryMustKills: a requirement that no fault fails says nothing.
func TestEveryMustKills(t *testing.T) {
	killed := map[string]bool{}
	names := map[string]bool{}
	for _, m := range mutants.All() {
		if names[m.Name] {
			t.Errorf("two mutants are called %q", m.Name)
		}
		names[m.Name] = true
		for _, id := range m.Kills {
			killed[id] = true
		}
	}
	if len(names) < 30 {
		t.Errorf("there are %d mutants only", len(names))
	}
	ids := map[string]bool{}
	for _, r := range conformance.Requirements() {
		if ids[r.ID] {
			t.Errorf("%s is there twice", r.ID)
		}
		ids[r.ID] = true
		if r.Level == report.Must && !killed[r.ID] {
			t.Errorf("%s kills no mutant", r.ID)
		}
		if r.Rule == "" || r.Since == "" || !slices.Contains(conformance.Profiles(), r.Profile) {
			t.Errorf("%s: rule %q, since %q, profile %q", r.ID, r.Rule, r.Since, r.Profile)
		}
	}
}

// TestReference: a correct backend passes everything, with and without external labels and
// claims, in process and over the wire.
func TestReference(t *testing.T) {
	all := reference.AllCapabilities()
	all.Downsampled = true
	for _, c := range []struct {
		name   string
		ext    labels.Labels
		claims backend.Capabilities
		wire   bool
		query  bool
		not    []string
	}{
		{name: "all claims", ext: external, claims: all},
		{name: "no external labels", claims: all},
		{name: "no claims", ext: external, not: []string{"sharding", "replica-labels", "downsampled", "native-histograms", "exemplars", "metadata", "pushdown"}},
		{name: "wire", ext: external, claims: all, wire: true},
		{name: "wire with queries", ext: external, claims: all, wire: true, query: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			data := whole()
			if !c.claims.Downsampled {
				data = data.Only(slices.DeleteFunc(data.Parts(), func(p corpus.Part) bool { return p == corpus.Downsampled })...)
			}
			b := reference.New(data, reference.Options{External: c.ext, Capabilities: c.claims})
			s := &conformance.Subject{Name: "reference", Launch: "in process", Backend: b, Corpus: data, InProcess: true}
			if c.wire {
				var q storepb.QueryServer
				if c.query {
					q = reference.NewQuery(b)
				}
				conn := served(t, b, nil, q, c.query)
				s.Backend, s.Wire, s.InProcess = wire.New(conn), conn, false
				s.Claim = func(c *backend.Capabilities) { c.SeriesLimit, c.Downsampled = true, true }
			}
			rep := conformance.Run(t, s)
			if !rep.Certified {
				t.Errorf("not certified: %s", rep.Why)
			}
			for _, p := range rep.Profiles {
				if p.State != report.ProfilePassed && !(p.Name == "pushdown" && !c.query) && !slices.Contains(append(c.not, "faults"), p.Name) {
					t.Errorf("profile %s: %s, %s", p.Name, p.State, p.Reason)
				}
			}
			for _, r := range rep.Results {
				if r.Level == report.Should && r.Outcome == report.Failed {
					t.Errorf("%s: %v", r.ID, r.Failures)
				}
			}
			t.Logf("%d requests in %.1f s", rep.Requests, rep.Seconds)
		})
	}
}
