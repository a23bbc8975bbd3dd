// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package syntax parses PromQL of callers whom nobody has let in yet, within bounds.
// The parser itself has none: its time grows with the square of how deeply an
// expression is nested, its stack and that of an engine with the depth, until the
// process ends; and it compiles regular expressions, whatever they take.
package syntax

import (
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/util/strutil"

	"github.com/promweave/promweave/sdk/matching"
)

const (
	// MaxBytes of an expression.
	MaxBytes = 256 << 10
	// MaxTokens of an expression, such as names, numbers, operators and brackets. Nothing is
	// nested more deeply than it has tokens, nor is a chain of operators longer.
	MaxTokens = 10_000
)

// Reader reads the expressions of one request. The zero value is ready.
type Reader struct{ budget matching.Budget }

// Expr parses an expression.
func (r *Reader) Expr(text string) (parser.Expr, error) {
	if err := r.scan(text); err != nil {
		return nil, err
	}
	return parser.ParseExpr(text)
}

// Selector parses a series selector.
func (r *Reader) Selector(text string) ([]*labels.Matcher, error) {
	if err := r.scan(text); err != nil {
		return nil, err
	}
	return parser.ParseMetricSelector(text)
}

// scan looks at the tokens, which takes a time that is proportional to the text.
func (r *Reader) scan(text string) error {
	if n := len(text); n > MaxBytes {
		return fmt.Errorf("it has %d bytes, and at most %d are allowed", n, MaxBytes)
	}
	lexer := parser.Lex(text)
	var item parser.Item
	for n, pattern := 0, false; ; n++ {
		lexer.NextItem(&item)
		switch {
		case item.Typ == parser.EOF, item.Typ == parser.ERROR:
			return nil // the parser says what is wrong
		case n >= MaxTokens:
			return fmt.Errorf("it has more than %d names, numbers, operators and brackets; split it", MaxTokens)
		case item.Typ == parser.STRING && pattern:
			// What cannot be unquoted the parser refuses.
			if s, err := strutil.Unquote(item.Val); err == nil {
				if err := r.budget.Regexp(s); err != nil {
					return err
				}
			}
		}
		pattern = item.Typ == parser.EQL_REGEX || item.Typ == parser.NEQ_REGEX || pattern && item.Typ == parser.COMMENT
	}
}
