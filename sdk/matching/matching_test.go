// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package matching

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBudget(t *testing.T) {
	var list []string
	for i := range 5000 {
		list = append(list, fmt.Sprintf("%x-%d.example.com", i*7919, i))
	}
	hosts := strings.Join(list, "|")
	for _, c := range []struct {
		name, pattern string
		times         int // that it goes into one request
		refused       bool
	}{
		{"plain", "a|b.*", 1000, false},
		{"a long list", hosts, 1, false},
		{"too many long lists", hosts, 4, true},
		{"written out", strings.Repeat(".{1000}", 10), 1, false},
		{"written out too often", strings.Repeat(".{1000}", 1500), 1, true},
		{"over several matchers", strings.Repeat(".{1000}", 100), 4, true},
		{"nested", "((a{30}){30})", 1, false},
		{"a class with a name", `\p{L}+`, 100, false},
		{"classes with names", strings.Repeat(`\pL`, 50000), 1, true},
		{"a class, written out", `[^\p{L}\p{N}]{999}`, 10, true},
		{"upper and lower case", "(?i)" + strings.Repeat("k", 1000), 10, false},
	} {
		var b Budget
		var err error
		for range c.times {
			if _, err = b.New(labels.MatchRegexp, "a", c.pattern); err != nil {
				break
			}
		}
		if (err != nil) != c.refused || err != nil && (!errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "instructions")) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	var b Budget
	if _, err := b.New(labels.MatchNotRegexp, "a", "("); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), `matcher on "a"`) {
		t.Errorf("no regular expression: %v", err)
	}
	// What is compared and not matched costs nothing.
	if _, err := b.New(labels.MatchEqual, "a", strings.Repeat(".{1000}", 1500)); err != nil {
		t.Error(err)
	}
}

// FuzzInstructions compares the estimate with what the compiler makes.
func FuzzInstructions(f *testing.F) {
	for _, s := range []string{"a|b", ".{1000}", "(a{3,5}b?)*", `[^\p{Greek}x]{2,}`, "(?i)straße", "(?s:.)+?", "", "x{0}", "(|a)*", `\bfoo\b`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 200 {
			return
		}
		re, err := syntax.Parse(s, syntax.Perl|syntax.DotNL)
		if err != nil {
			return
		}
		estimate := instructions(re)
		prog, err := syntax.Compile(re.Simplify())
		if err != nil {
			return
		}
		// Each node may take a few more: captures, alternatives and the ends of loops.
		if n := len(prog.Inst); estimate < MaxInstructions && n > 4*estimate+8 {
			t.Errorf("%q: %d instructions, estimated %d", s, n, estimate)
		}
	})
}
