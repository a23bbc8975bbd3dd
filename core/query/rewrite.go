// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package query

import (
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/promweave/promweave/core/syntax"
)

// countsLabel marks a selector that wants how many samples there were and not what they were. It
// is one of ours only in a query that was rewritten here.
const countsLabel = "__promweave_counts__"

// overWindows rewrites what an engine gets wrong where one point stands for many samples: it
// counts points, and averages averages as if each stood for as many samples.
//
//	count_over_time(x[d])  is  sum_over_time(counts of x[d])
//	avg_over_time(x[d])    is  sum_over_time(sums of x[d]) / sum_over_time(counts of x[d])
//
// A raw sample counts 1, so mixed data are right too. It returns false, and nothing, if there is
// nothing to rewrite.
func overWindows(query string) (string, bool) {
	expr, err := new(syntax.Reader).Expr(query)
	if err != nil {
		return "", false // it was checked; the engine says what is wrong
	}
	for _, ms := range parser.ExtractSelectors(expr) {
		for _, m := range ms {
			if m.Name == countsLabel {
				return "", false
			}
		}
	}
	w := windows{}
	expr = w.expr(expr)
	return expr.String(), w.changed
}

type windows struct{ changed bool }

func (w *windows) expr(e parser.Expr) parser.Expr {
	switch x := e.(type) {
	case *parser.AggregateExpr:
		x.Expr = w.expr(x.Expr)
		if x.Param != nil {
			x.Param = w.expr(x.Param)
		}
	case *parser.BinaryExpr:
		x.LHS, x.RHS = w.expr(x.LHS), w.expr(x.RHS)
	case *parser.ParenExpr:
		x.Expr = w.expr(x.Expr)
	case *parser.UnaryExpr:
		x.Expr = w.expr(x.Expr)
	case *parser.StepInvariantExpr:
		x.Expr = w.expr(x.Expr)
	case *parser.SubqueryExpr:
		x.Expr = w.expr(x.Expr)
	case *parser.Call:
		if e := w.call(x); e != nil {
			return e
		}
		for i, a := range x.Args {
			x.Args[i] = w.expr(a)
		}
	}
	return e
}

// call returns what a call is rewritten to, nil if it stays.
func (w *windows) call(c *parser.Call) parser.Expr {
	if c.Func.Name != "count_over_time" && c.Func.Name != "avg_over_time" || len(c.Args) != 1 {
		return nil
	}
	arg := c.Args[0]
	for {
		p, ok := arg.(*parser.ParenExpr)
		if !ok {
			break
		}
		arg = p.Expr
	}
	m, ok := arg.(*parser.MatrixSelector) // a subquery has samples of its own
	if !ok {
		return nil
	}
	v, ok := m.VectorSelector.(*parser.VectorSelector)
	if !ok {
		return nil
	}
	w.changed = true
	counted, counts := *m, *v
	counts.LabelMatchers = append(append([]*labels.Matcher{}, v.LabelMatchers...), labels.MustNewMatcher(labels.MatchEqual, countsLabel, "1"))
	counted.VectorSelector = &counts
	total := func(m *parser.MatrixSelector) parser.Expr {
		return &parser.Call{Func: parser.Functions["sum_over_time"], Args: parser.Expressions{m}, PosRange: c.PosRange}
	}
	if c.Func.Name == "count_over_time" {
		return total(&counted)
	}
	return &parser.ParenExpr{Expr: &parser.BinaryExpr{
		Op: parser.DIV, LHS: total(m), RHS: total(&counted), VectorMatching: &parser.VectorMatching{Card: parser.CardOneToOne},
	}, PosRange: c.PosRange}
}

// counted takes the mark off a selector, and says whether it was there.
func counted(matchers []*labels.Matcher) ([]*labels.Matcher, bool) {
	for i, m := range matchers {
		if m.Name == countsLabel {
			return append(append([]*labels.Matcher{}, matchers[:i]...), matchers[i+1:]...), true
		}
	}
	return matchers, false
}
