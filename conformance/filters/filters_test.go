// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filters_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/promweave/promweave/conformance/filters"
	"github.com/promweave/promweave/conformance/filters/internal/broken"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// carried is a filter as hosts want it.
type carried struct{ filters.Filter }

func (carried) Close() error { return nil }

func subject(c *broken.Case, limit time.Duration) *filters.Subject {
	f := filters.InProcess(c.Instance, limit)
	if c.Carry != nil {
		f = c.Carry(f)
	}
	inner := f
	if c.Host != nil {
		inner = c.Host(f)
	}
	right := func(b backend.Backend) backend.Backend {
		return filtering.Wrap(b, []filtering.Link{{Name: c.Name, Filter: carried{inner}, Role: c.Role}}, filtering.Options{Backend: filters.Backend})
	}
	s := &filters.Subject{
		Name: c.Name, Launch: "in process", Role: c.Role, Filter: f, Wrap: right, Memory: filters.Heap, CallLimit: limit,
		Fault:      func(err error) bool { return errors.Is(err, carrier.ErrFault) },
		Idempotent: c.Idempotent, Callers: c.Callers, Series: c.Series,
	}
	if c.Spoil != nil {
		s.Wrap = func(b backend.Backend) backend.Backend { return c.Spoil(b, right) }
	}
	return s
}

func text(r report.Result) string {
	out := fmt.Sprintf("%s %s: %s", r.ID, r.Outcome, r.Detail)
	for _, f := range r.Failures {
		out += fmt.Sprintf("\n  %s\n  %s\n  expected %q\n  actual   %q", f.Request, f.Message, f.Expected, f.Actual)
	}
	return out
}

// TestCorrect: filters without a fault pass everything that applies to them.
func TestCorrect(t *testing.T) {
	for _, c := range broken.Correct() {
		t.Run(strings.ReplaceAll(c.Name, " ", "_"), func(t *testing.T) {
			for seed := range uint64(3) {
				o := filters.Options{Seed: seed}
				if seed > 0 && testing.Short() {
					break
				}
				partial := seed > 0 || testing.Short()
				if partial { // what depends on the seed
					o.Profiles = []string{filters.Hooks, filters.Law}
				}
				// These are made to be read, and take their time for 65,536 rows.
				rep := filters.Certify(t.Context(), subject(c, 10*time.Second), o)
				passed := 0
				for _, r := range rep.Results {
					switch r.Outcome {
					case report.Passed:
						passed++
					case report.NotApplicable:
					default:
						t.Error(text(r))
					}
				}
				if rep.Certified == partial || passed < 1 {
					t.Errorf("seed %d: %d requirements passed; %s", seed, passed, rep.Why)
				}
				t.Logf("seed %d: %d of %d passed, %d calls, %.1f s", seed, passed, len(rep.Results), rep.Requests, rep.Seconds)
			}
		})
	}
}

// TestMutants: each is caught by the requirement that names its fault.
func TestMutants(t *testing.T) {
	for k, m := range broken.Mutants() {
		for _, id := range m.Kills {
			t.Run(strings.ReplaceAll(m.Name, " ", "_")+"/"+id, func(t *testing.T) {
				c := broken.Mutants()[k] // whatever it remembers
				if c.Release != nil {
					defer c.Release()
				}
				limit := time.Duration(0)
				switch id {
				case "F-3.time", "F-hostile.cancelled":
					limit = 50 * time.Millisecond
				case "F-hostile.rows":
					limit = 10 * time.Second // being late with 65,536 of them is allowed
				}
				rep := filters.Certify(t.Context(), subject(c, limit), filters.Options{Seed: 1, Run: func(x string) bool { return x == id }})
				if len(rep.Results) != 1 {
					t.Fatalf("there is no requirement %s", id)
				}
				r := rep.Results[0]
				if r.Outcome != report.Failed || len(r.Failures) == 0 {
					t.Fatalf("it survives: %s", text(r))
				}
				t.Log(text(r))
				if rep.Certified {
					t.Fatal("it is certified")
				}
			})
		}
	}
}

// TestEveryRequirementKills: one that no fault fails says nothing.
func TestEveryRequirementKills(t *testing.T) {
	killed := map[string]bool{}
	for _, m := range broken.Mutants() {
		for _, id := range m.Kills {
			killed[id] = true
		}
	}
	seen := map[string]bool{}
	for _, r := range filters.Requirements() {
		if seen[r.ID] {
			t.Errorf("%s is there twice", r.ID)
		}
		seen[r.ID] = true
		if !killed[r.ID] {
			t.Errorf("no mutant is caught by %s", r.ID)
		}
		if !slices.Contains(filters.Profiles(), r.Profile) || r.Rule == "" || r.Since == "" {
			t.Errorf("%+v lacks something", r)
		}
	}
	for id := range killed {
		if !seen[id] {
			t.Errorf("mutants name %s, which there is not", id)
		}
	}
}

// TestShortest: a failure carries few series and few matchers.
func TestShortest(t *testing.T) {
	for _, m := range broken.Mutants() {
		if m.Name != "matchers go to the store as they are" {
			continue
		}
		rep := filters.Certify(t.Context(), subject(m, 0), filters.Options{Seed: 3, Run: func(id string) bool { return id == "F-law.random" }})
		for _, f := range rep.Results[0].Failures {
			if strings.Contains(f.Request, " more") || strings.Count(f.Request, "→") > 2 {
				t.Errorf("not short: %s", f.Request)
			}
		}
	}
}

// TestSkips: what the harness does not give is skipped, and what is not claimed is not.
func TestSkips(t *testing.T) {
	c := broken.Correct()[3]
	s := subject(c, 0)
	s.Wrap, s.Memory = nil, nil
	var told []string
	rep := filters.Certify(t.Context(), s, filters.Options{Profiles: []string{filters.Law, filters.Decisions}, Progress: func(r report.Result) { told = append(told, r.ID) }})
	for _, r := range rep.Results {
		want := report.Skipped
		if r.Profile == filters.Decisions {
			want = report.NotApplicable
		}
		if r.Outcome != want {
			t.Errorf("%s, want %s", text(r), want)
		}
	}
	if len(told) != len(rep.Results) || rep.Certified {
		t.Errorf("told of %d of %d, certified %v", len(told), len(rep.Results), rep.Certified)
	}
	if s := rep.Profiles[2].State; s != report.ProfileNotClaimed {
		t.Errorf("decisions: %s", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, r := range filters.Certify(ctx, s, filters.Options{}).Results {
		if r.Outcome != report.Skipped {
			t.Errorf("after the end: %s", text(r))
		}
	}
}

type panics struct{ wait chan struct{} }

func (panics) Plan() filter.Plan { return filter.Plan{} }

func (p panics) Request(*filter.RequestCall) (*filter.RequestReply, error) {
	if p.wait != nil {
		<-p.wait
	}
	panic("oh")
}

// TestInProcess: what carriers call faults are faults here.
func TestInProcess(t *testing.T) {
	f := filters.InProcess(panics{}, 0)
	if _, err := f.Request(t.Context(), nil); !errors.Is(err, filters.ErrFault) || !strings.Contains(err.Error(), "oh") {
		t.Errorf("a panic: %v", err)
	}
	if _, err := f.Select(t.Context(), nil); backend.Kind(err) != backend.ErrUnsupported || errors.Is(err, filters.ErrFault) {
		t.Errorf("no hook: %v", err)
	}
	wait := make(chan struct{})
	defer close(wait)
	f = filters.InProcess(panics{wait}, time.Millisecond)
	if _, err := f.Request(t.Context(), nil); !errors.Is(err, filters.ErrFault) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call that hangs: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := filters.InProcess(panics{wait}, 0).Request(ctx, nil); !errors.Is(err, context.Canceled) || errors.Is(err, filters.ErrFault) {
		t.Errorf("a call that nobody waits for: %v", err)
	}
}
