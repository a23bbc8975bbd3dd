// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"crypto/sha256"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write the golden files")

// sample has every outcome, and text that would like to break out.
func sample() *Report {
	r := &Report{
		Suite: "1.0", Kind: "backend", Seed: 1, Began: time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC), Seconds: 3.25, Requests: 33,
		Subject: Subject{Name: "acme\x1b[31m <store>", Launch: "spawn", Origin: "./acme", SHA256: "00ff", Claims: []string{"sharding"}, External: []string{`{cluster="eu1"}`}},
		Corpus:  &Corpus{Digest: "d4914231e67d6a75", Parts: []string{"base", "times"}, Missing: map[string]string{"wide": "too wide"}, Series: 3, Samples: 9, Start: 1767600000000, LoadedBy: "hook"},
		Profiles: []Profile{
			{Name: "core"}, {Name: "labels"}, {Name: "time"}, {Name: "sharding", State: ProfileNotClaimed, Reason: "the capability sharding is not claimed"}, {Name: "limits"},
		},
		Results: []Result{
			{ID: "S-6.equal", Profile: "core", Level: Must, Rule: "Matchers are PromQL's.", Since: "1.0", Outcome: Passed, Requests: 8, Seconds: 0.5},
			{ID: "S-6.anchored", Profile: "core", Level: Must, Rule: "Matchers are PromQL's: " + strings.Repeat("a missing label equals \"\", ", 6), Since: "1.0", Outcome: Failed, Requests: 10, More: 2, Failures: []Failure{
				{Request: `Series {env=~"pro"}`, Message: "a series is there that should not be", Expected: []string{`{env="a"}`, "same"}, Actual: []string{"</script>\x00", "same", "more"}},
			}},
			{ID: "S-8.chunk-size", Profile: "core", Level: Should, Rule: "At most 120.", Since: "1.0", Outcome: Failed, Requests: 1, Failures: []Failure{{Request: "Series {}", Message: "a chunk has many samples"}}},
			{ID: "S-3.wide", Profile: "labels", Level: Must, Rule: "Long values.", Since: "1.0", Outcome: Skipped, Detail: "the part wide of the corpus is not loaded: too wide"},
			{ID: "S-3.valid", Profile: "labels", Level: Must, Rule: "Valid.", Since: "1.0", Outcome: Passed, Requests: 1},
			{ID: "B-4.inclusive", Profile: "time", Level: Must, Rule: "Inclusive.", Since: "1.0", Outcome: Refused, Detail: "Series {}: not supported", Requests: 2},
			{ID: "S-10.shard", Profile: "sharding", Level: Must, Rule: "Shards.", Since: "1.0", Outcome: NotApplicable, Detail: "the capability sharding is not claimed"},
			{ID: "S-10.limit", Profile: "limits", Level: Must, Rule: "Limits.", Since: "1.0", Outcome: Passed, Requests: 11},
		},
	}
	r.Settle(false)
	return r
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: another form, see with -update and git diff:\n%s", name, got)
	}
}

func TestForms(t *testing.T) {
	for name, write := range map[string]func(*Report, io.Writer) error{
		"report.txt":  func(r *Report, w io.Writer) error { return r.Text(w, true) },
		"report.xml":  (*Report).JUnit,
		"report.html": (*Report).HTML,
		"report.json": (*Report).JSON,
	} {
		var b bytes.Buffer
		if err := write(sample(), &b); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
		if bytes.ContainsRune(b.Bytes(), 0x1b) || bytes.ContainsRune(b.Bytes(), 0) {
			t.Errorf("%s has control characters", name)
		}
		switch name {
		case "report.xml":
			var s junitSuites
			if err := xml.Unmarshal(b.Bytes(), &s); err != nil {
				t.Errorf("JUnit: %v", err)
			}
			if s.Tests != 8 || s.Failures != 2 {
				t.Errorf("JUnit: %d tests and %d failures, want 8 and 2", s.Tests, s.Failures)
			}
		case "report.html":
			if strings.Contains(b.String(), "</script>") || strings.Contains(b.String(), "<store>") {
				t.Error("HTML: text is not escaped")
			}
		case "report.json":
			if _, err := Parse(b.Bytes()); err != nil {
				t.Errorf("JSON: %v", err)
			}
		}
	}
}

func TestSettle(t *testing.T) {
	want := map[string]State{"core": ProfileFailed, "labels": ProfileIncomplete, "time": ProfileFailed, "sharding": ProfileNotClaimed, "limits": ProfilePassed}
	r := sample()
	for _, p := range r.Profiles {
		if p.State != want[p.Name] {
			t.Errorf("%s: %s (%s), want %s", p.Name, p.State, p.Reason, want[p.Name])
		}
	}
	if r.Certified || r.Why != "not passed: core, labels, time" {
		t.Errorf("certified %v, why %q", r.Certified, r.Why)
	}
	result := func(profile string, l Level, o Outcome) Result {
		return Result{ID: profile + "." + string(o), Profile: profile, Level: l, Outcome: o}
	}
	for _, c := range []struct {
		name      string
		profiles  []Profile
		results   []Result
		partial   bool
		certified bool
	}{
		{"all is well", []Profile{{Name: "core"}}, []Result{result("core", Must, Passed)}, false, true},
		{"a SHOULD fails nothing", []Profile{{Name: "core"}}, []Result{result("core", Must, Passed), result("core", Should, Failed), result("core", Should, Refused)}, false, true},
		{"a skip is no pass", []Profile{{Name: "core"}}, []Result{result("core", Must, Passed), result("core", Must, Skipped)}, false, false},
		{"nor is a skipped SHOULD", []Profile{{Name: "core"}}, []Result{result("core", Must, Passed), result("core", Should, Skipped)}, false, false},
		{"a refusal is no pass", []Profile{{Name: "core"}}, []Result{result("core", Must, Passed), result("core", Must, Refused)}, false, false},
		{"nothing tested is no pass", []Profile{{Name: "core"}}, nil, false, false},
		{"not claimed is left out", []Profile{{Name: "core"}, {Name: "x", State: ProfileNotClaimed}}, []Result{result("core", Must, Passed), result("x", Must, Refused)}, false, true},
		{"but not if it is wrong", []Profile{{Name: "core"}, {Name: "x", State: ProfileNotClaimed}}, []Result{result("core", Must, Passed), result("x", Must, Failed)}, false, false},
		{"core cannot be left out", []Profile{{Name: "core", State: ProfileNotClaimed}}, []Result{result("core", Must, Passed)}, false, false},
		{"a part is no certificate", []Profile{{Name: "core"}}, []Result{result("core", Must, Passed)}, true, false},
	} {
		r := &Report{Profiles: c.profiles, Results: c.results}
		r.Settle(c.partial)
		if r.Certified != c.certified || r.Certified == (r.Why != "") {
			t.Errorf("%s: certified %v, %q", c.name, r.Certified, r.Why)
		}
	}
}

func TestParse(t *testing.T) {
	var b bytes.Buffer
	if err := sample().JSON(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, c := range []struct{ old, new, want string }{
		{`"outcome": "passed"`, `"outcome": "perfect"`, "no outcome"},
		{`"certified": false`, `"certified": true`, "certified"},
		{`"level": "MUST"`, `"level": "COULD"`, "no level"},
		{`"state": "failed"`, `"state": "passed"`, "profile core"},
		{`"suite"`, `"sweet"`, "sweet"},
	} {
		if _, err := Parse([]byte(strings.Replace(text, c.old, c.new, 1))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want an error with %q, got %v", c.new, c.want, err)
		}
	}
	if _, err := Parse([]byte(text + "{}")); err == nil {
		t.Error("what is behind the report is not seen")
	}
}

// TestSummary: a certificate has what was found, of a file that passed, and of nothing else.
func TestSummary(t *testing.T) {
	r := sample()
	if _, err := r.Summary(); err == nil || !strings.Contains(err.Error(), r.Why) {
		t.Errorf("of what is not certified: %v", err)
	}
	r.Results = slices.DeleteFunc(r.Results, func(x Result) bool { return x.Outcome != Passed && x.Outcome != NotApplicable })
	r.Profiles = []Profile{{Name: "core"}, {Name: "labels"}, {Name: "limits"}, {Name: "sharding", State: ProfileNotClaimed, Reason: "the capability sharding is not claimed"}}
	r.Certified, r.Why = false, ""
	r.Settle(false)
	s, err := r.Summary()
	if err != nil {
		t.Fatal(err)
	}
	var whole bytes.Buffer
	if err := r.JSON(&whole); err != nil {
		t.Fatal(err)
	}
	want := &Summary{
		Suite: "1.0", Kind: "backend", Name: r.Subject.Name, Launch: "spawn", SHA256: "00ff", Corpus: "d4914231e67d6a75",
		Profiles: []string{"core", "labels", "limits"}, NotClaimed: map[string]string{"sharding": "the capability sharding is not claimed"}, Claims: []string{"sharding"},
		Requirements: 3, Requests: 33, Seed: 1, Began: r.Began, Report: fmt.Sprintf("%x", sha256.Sum256(whole.Bytes())),
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	r.Subject.SHA256 = ""
	if _, err := r.Summary(); err == nil {
		t.Error("of no file")
	}
}

func FuzzParse(f *testing.F) {
	var b bytes.Buffer
	if err := sample().JSON(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(data)
		if err != nil {
			return
		}
		for _, write := range []func(io.Writer) error{r.JSON, r.JUnit, r.HTML, func(w io.Writer) error { return r.Text(w, true) }} {
			if err := write(io.Discard); err != nil {
				t.Fatal(err)
			}
		}
	})
}
