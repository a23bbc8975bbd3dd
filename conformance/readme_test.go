// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package conformance_test

import (
	"os"
	"strings"
	"testing"

	"github.com/promweave/promweave/conformance"
)

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
	want := head + begin + "\n" + conformance.Table() + end + tail
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
