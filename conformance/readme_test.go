// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/promweave/promweave/conformance"
	"github.com/promweave/promweave/conformance/filters"
)

// filterTable is the list of requirements of filters as Markdown.
func filterTable() string {
	var b strings.Builder
	for _, profile := range filters.Profiles() {
		fmt.Fprintf(&b, "#### %s\n\n| id | level | since | the contract says |\n|---|---|---|---|\n", profile)
		for _, r := range filters.Requirements() {
			if r.Profile == profile {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", r.ID, r.Level, r.Since, strings.ReplaceAll(r.Rule, "|", `\|`))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// TestREADME: the list of requirements there is that of the code.
func TestREADME(t *testing.T) {
	const begin, end = "<!-- generated: UPDATE=1 go test ./conformance -run TestREADME -->\n", "<!-- end -->"
	data, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(data), begin)
	_, tail, there := strings.Cut(rest, end)
	if !ok || !there {
		t.Fatal("README.md has no place for the list")
	}
	want := head + begin + "\n### Of backends\n\n" + conformance.Table() + "### Of filters\n\n" + filterTable() + end + tail
	if want == string(data) {
		return
	}
	if os.Getenv("UPDATE") == "" {
		t.Fatal("the list of requirements in README.md is not that of the code: UPDATE=1 go test ./conformance -run TestREADME")
	}
	if err := os.WriteFile("README.md", []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
