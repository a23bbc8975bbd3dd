// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package matching compiles matchers of requests within bounds. A regular expression
// of ten kilobytes can become a program of a hundred megabytes, since repetitions are
// written out; whoever reads requests reads them before anybody has said who asks.
package matching

import (
	"regexp/syntax"
	"strings"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
)

// MaxInstructions is what all regular expressions of a request may have together, about
// 70 bytes each. Text without repetitions has no more of them than bytes.
const MaxInstructions = 300_000

// Budget is what the matchers of one request may still cost. The zero value is all of it.
type Budget struct{ used int }

// New is labels.NewMatcher, within the budget. An error has the kind ErrInvalid.
func (b *Budget) New(t labels.MatchType, name, value string) (*labels.Matcher, error) {
	if t == labels.MatchRegexp || t == labels.MatchNotRegexp {
		if err := b.Regexp(value); err != nil {
			return nil, backend.Errorf(backend.ErrInvalid, "matcher on %q: %w", name, err)
		}
	}
	m, err := labels.NewMatcher(t, name, value)
	if err != nil {
		return nil, backend.Errorf(backend.ErrInvalid, "matcher on %q: %w", name, err)
	}
	return m, nil
}

// Regexp charges for a pattern, and refuses it if that is more than is left. What is no
// regular expression costs nothing: compiling it will say so.
func (b *Budget) Regexp(pattern string) error {
	// Parsing is bounded by the text, but for classes that have names.
	const named = 140
	cost := named * (strings.Count(pattern, `\p`) + strings.Count(pattern, `\P`))
	if cost = max(cost, len(pattern)); b.used+cost > MaxInstructions {
		return tooCostly()
	}
	re, err := syntax.Parse(pattern, syntax.Perl|syntax.DotNL)
	if err != nil {
		return nil
	}
	b.used += min(max(instructions(re), 1), MaxInstructions+1)
	if b.used > MaxInstructions {
		return tooCostly()
	}
	return nil
}

func tooCostly() error {
	return backend.Errorf(backend.ErrInvalid, "the regular expressions of the request would take more than %d instructions; write smaller repetitions, as in .* for .{1000}, or ask for less at once", MaxInstructions)
}

// instructions is at least about what the compiler makes of re. It stops to count
// when it is too much.
func instructions(re *syntax.Regexp) int {
	n := 1
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpCharClass:
		n = 1 + len(re.Rune)/10 // ten runes take as much as an instruction
	case syntax.OpRepeat:
		n = 0
	}
	for _, sub := range re.Sub {
		if n += instructions(sub); n > MaxInstructions {
			return n
		}
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min, re.Max, 1)
	}
	return n
}
