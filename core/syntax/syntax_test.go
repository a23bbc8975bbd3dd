// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package syntax

import (
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBounds(t *testing.T) {
	costly := `{a=~"` + strings.Repeat(".{1000}", 100) + `"}`
	for _, c := range []struct{ name, text, want string }{
		{"usual", `sum by (app) (rate(http_requests_total{code=~"5.."}[5m])) / ignoring(code) group_left sum(rate(x[5m] offset 1h))`, ""},
		{"a comment", "up # {a=~\"" + strings.Repeat(".{1000}", 1500) + "\"}", ""},
		{"text that is no pattern", `label_replace(up, "a", "` + strings.Repeat("x", 100_000) + `", "b", "")`, ""},
		{"a long list of selectors", strings.Repeat(`up{job="a"} or `, 900) + "up", ""},
		{"brackets", strings.Repeat("(", 100_000) + "up" + strings.Repeat(")", 100_000), "more than 10000"},
		{"functions", strings.Repeat("ln(", 60_000) + "up" + strings.Repeat(")", 60_000), "more than 10000"},
		{"a chain", strings.Repeat("1+", 100_000) + "1", "more than 10000"},
		{"signs", strings.Repeat("-", 200_000) + "1", "more than 10000"},
		{"long", strings.Repeat(" ", MaxBytes) + "up", "at most 262144"},
		{"patterns", strings.Repeat(costly+" or ", 3) + costly, "instructions"},
		{"a pattern in back quotes", "{a=~`" + strings.Repeat(".{1000}", 1500) + "`}", "instructions"},
		{"a pattern that is not to match", `{a !~ "` + strings.Repeat(".{1000}", 1500) + `"}`, "instructions"},
		{"a pattern after a comment", "{a=~ # x\n\"" + strings.Repeat(".{1000}", 1500) + `"}`, "instructions"},
		{"no PromQL", "sum(", "parse error"},
		{"no text", `{a="\xq"}`, "parse error"},
	} {
		var r Reader
		_, err := r.Expr(c.text)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %.200v", c.name, err)
		}
		if err != nil && len(err.Error()) > 1000 && c.name != "no PromQL" {
			t.Errorf("%s: an error of %d bytes", c.name, len(err.Error()))
		}
	}
	// The bounds are those of a request.
	var r Reader
	for range 2 {
		if _, err := r.Selector(costly); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Selector(costly); err == nil {
		t.Error("three costly selectors go into one request")
	}
}

// FuzzExpr: what the parser takes is taken, within the bounds, and nothing else is.
func FuzzExpr(f *testing.F) {
	for _, s := range []string{`up`, `sum(rate({a=~"b|c"}[5m]))`, `{"a.b"!~'x'}`, "1 + # x\n2", `{a=~"("}`, "[", "up @ end()"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 2000 {
			return
		}
		_, want := parser.ParseExpr(s)
		var r Reader
		if _, err := r.Expr(s); (err == nil) != (want == nil) && (err == nil || !strings.Contains(err.Error(), "instructions")) {
			t.Errorf("%q: %v, and the parser says %v", s, err, want)
		}
	})
}
