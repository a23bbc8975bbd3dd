// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package report_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/core/report"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCompletenessAsJSON(t *testing.T) {
	for want, c := range map[string]report.Completeness{
		`{"state":"unknown"}`:  {},
		`{"state":"complete"}`: {State: report.Complete},
		`{"state":"partial","missing":[{"backend":"b","reason":"timeout","detail":"5s"}]}`: {
			State: report.Partial, Missing: []report.Missing{{Backend: "b", Reason: report.ReasonTimeout, Detail: "5s"}},
		},
	} {
		got, err := json.Marshal(c)
		if err != nil || string(got) != want {
			t.Errorf("%s, want %s: %v", got, want, err)
		}
		var back report.Completeness
		if err := json.Unmarshal(got, &back); err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(c, back); d != "" {
			t.Error(d)
		}
	}
	var s report.State
	if s.UnmarshalText([]byte("mostly")) == nil {
		t.Error("an unknown state was read")
	}
}

func TestWarnings(t *testing.T) {
	b := report.Missing{Backend: "b", Reason: report.ReasonTimeout, Detail: "5s"}
	for _, c := range []struct {
		c               report.Completeness
		warnings, infos string
	}{
		{report.Completeness{}, "completeness of this answer is unknown: the backends have not been checked yet", ""},
		{report.Completeness{State: report.Complete, Covered: []report.Missing{b}}, "", "missing but covered by a replica: b: timeout: 5s"},
		{report.Completeness{State: report.Partial, Missing: []report.Missing{b}}, "partial answer, missing b: timeout: 5s", ""},
		{report.Completeness{State: report.Partial}, "partial answer", ""},
	} {
		if w, i := strings.Join(c.c.Warnings(), "\n"), strings.Join(c.c.Infos(), "\n"); w != c.warnings || i != c.infos {
			t.Errorf("%s: warnings %q, infos %q", c.c, w, i)
		}
	}
}
