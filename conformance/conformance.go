// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package conformance certifies backends: it loads a store with known data, asks it
// thousands of questions, and compares every answer with what the contract of package
// backend says, rule by rule.
//
// In a test of your own:
//
//	func TestConformance(t *testing.T) {
//		conformance.Run(t, &conformance.Subject{Name: "mine", Backend: b, Load: load, InProcess: true})
//	}
//
// The same suite is promweave certify, for endpoints and plug-ins in any language. README.md
// beside this file lists the requirements; it is made from them.
package conformance

import (
	"context"
	"fmt"
	"strings"

	"github.com/promweave/promweave/conformance/internal/suite"
	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/backend"
)

type (
	// Subject is a backend that is to be certified, and what the harness may do with it.
	Subject = suite.Subject
	// Fault is one way to break what a subject relies on.
	Fault = suite.Fault
	// Options of a run.
	Options = suite.Options
	// Requirement is one thing that is tested.
	Requirement = suite.Requirement
)

// Version of the suite.
const Version = suite.Version

// Requirements are all of them, in the order in which they run.
func Requirements() []Requirement { return suite.Requirements() }

// Profiles are the names of all, in the order of reports.
func Profiles() []string { return suite.Profiles() }

// Claims are the words for capabilities that can be claimed for a subject.
func Claims() []string { return suite.ClaimNames() }

// SetClaim claims a capability by its word, or does not.
func SetClaim(c *backend.Capabilities, name string, on bool) error {
	return suite.SetClaim(c, name, on)
}

// Certify runs the suite against a subject. An error says that it could not be tested
// at all; what is wrong with it is in the report.
func Certify(ctx context.Context, s *Subject, o Options) (*report.Report, error) {
	return suite.Certify(ctx, s, o)
}

// T is *testing.T, without which a program can import this package.
type T[Self any] interface {
	Helper()
	Context() context.Context
	Run(name string, f func(Self)) bool
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Logf(format string, args ...any)
}

// Run certifies a subject in a test, with a subtest for each requirement. It returns the
// report. Whoever wants more than that nothing is wrong looks at it: a profile that is
// not claimed fails nothing.
func Run[Self T[Self]](t Self, s *Subject) *report.Report {
	t.Helper()
	rep, err := Certify(t.Context(), s, Options{})
	if err != nil {
		t.Fatalf("%v", err)
	}
	for _, r := range rep.Results {
		t.Run(r.Profile+"/"+r.ID, func(t Self) {
			t.Helper()
			switch {
			case r.Outcome == report.Skipped, r.Outcome == report.NotApplicable:
				t.Skipf("%s", r.Detail)
			case r.Outcome == report.Passed:
			case r.Level == report.Should:
				t.Logf("%s", explain(&r))
			default:
				t.Errorf("%s", explain(&r))
			}
		})
	}
	return rep
}

func explain(r *report.Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %s\n", r.Level, r.Outcome, r.Rule)
	if r.Detail != "" {
		fmt.Fprintln(&b, r.Detail)
	}
	for _, f := range r.Failures {
		fmt.Fprintf(&b, "%s\n  %s\n", f.Request, f.Message)
		for _, l := range f.Expected {
			fmt.Fprintf(&b, "  expected %s\n", l)
		}
		for _, l := range f.Actual {
			fmt.Fprintf(&b, "  actual   %s\n", l)
		}
	}
	if r.More > 0 {
		fmt.Fprintf(&b, "and %d more\n", r.More)
	}
	return b.String()
}
