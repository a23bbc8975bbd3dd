// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package broken

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestCases: names are unique, so that tests can tell them apart, and faults have a
// requirement.
func TestCases(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range append(Correct(), Mutants()...) {
		if seen[c.Name] {
			t.Errorf("two cases are called %q", c.Name)
		}
		seen[c.Name] = true
	}
	for _, c := range Mutants() {
		if len(c.Kills) == 0 {
			t.Errorf("nothing has to catch %q", c.Name)
		}
	}
}
