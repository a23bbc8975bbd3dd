// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package promjson

import (
	"fmt"
	"strconv"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

// node is one node of an expression. Keys are those that the Prometheus UI reads
// from /api/v1/parse_query; durations are in ms.
type node map[string]any

// Tree returns the tree of an expression in the form of /api/v1/parse_query, to
// be marshalled. It fails on a kind of expression that this package does not
// know, which means that the parser is newer than it.
func Tree(e parser.Expr) (any, error) {
	switch e := e.(type) {
	case *parser.AggregateExpr:
		n := node{
			"type": "aggregation", "op": e.Op.String(),
			"grouping": orNone(e.Grouping), "without": e.Without, "param": nil,
		}
		if e.Param != nil {
			if err := n.add("param", e.Param); err != nil {
				return nil, err
			}
		}
		return n, n.add("expr", e.Expr)

	case *parser.BinaryExpr:
		n := node{"type": "binaryExpr", "op": e.Op.String(), "bool": e.ReturnBool, "matching": nil}
		if m := e.VectorMatching; m != nil {
			n["matching"] = node{
				"card": m.Card.String(), "on": m.On,
				"labels": orNone(m.MatchingLabels), "include": orNone(m.Include),
			}
		}
		if err := n.add("lhs", e.LHS); err != nil {
			return nil, err
		}
		return n, n.add("rhs", e.RHS)

	case *parser.Call:
		args := make([]any, len(e.Args))
		for i, a := range e.Args {
			var err error
			if args[i], err = Tree(a); err != nil {
				return nil, err
			}
		}
		return node{
			"type": "call", "args": args,
			"func": node{
				"name": e.Func.Name, "argTypes": e.Func.ArgTypes,
				"variadic": e.Func.Variadic, "returnType": e.Func.ReturnType,
			},
		}, nil

	case *parser.MatrixSelector:
		vs, ok := e.VectorSelector.(*parser.VectorSelector)
		if !ok {
			return nil, fmt.Errorf("a range of %T has no JSON form", e.VectorSelector)
		}
		n := selector("matrixSelector", vs)
		n["range"] = e.Range.Milliseconds()
		return n, nil

	case *parser.VectorSelector:
		return selector("vectorSelector", e), nil

	case *parser.SubqueryExpr:
		n := node{
			"type":  "subquery",
			"range": e.Range.Milliseconds(), "step": e.Step.Milliseconds(),
			"offset":    e.OriginalOffset.Milliseconds(),
			"timestamp": e.Timestamp, "startOrEnd": startOrEnd(e.StartOrEnd),
		}
		return n, n.add("expr", e.Expr)

	case *parser.ParenExpr:
		n := node{"type": "parenExpr"}
		return n, n.add("expr", e.Expr)

	case *parser.UnaryExpr:
		n := node{"type": "unaryExpr", "op": e.Op.String()}
		return n, n.add("expr", e.Expr)

	case *parser.NumberLiteral:
		// As a string, because it may be infinite.
		return node{"type": "numberLiteral", "val": strconv.FormatFloat(e.Val, 'f', -1, 64)}, nil

	case *parser.StringLiteral:
		return node{"type": "stringLiteral", "val": e.Val}, nil
	}
	return nil, fmt.Errorf("an expression of type %T has no JSON form", e)
}

func (n node) add(key string, e parser.Expr) error {
	child, err := Tree(e)
	n[key] = child
	return err
}

func selector(kind string, vs *parser.VectorSelector) node {
	return node{
		"type": kind, "name": vs.Name, "matchers": matchers(vs.LabelMatchers),
		"offset":    vs.OriginalOffset.Milliseconds(),
		"timestamp": vs.Timestamp, "startOrEnd": startOrEnd(vs.StartOrEnd),
		"anchored": vs.Anchored, "smoothed": vs.Smoothed,
	}
}

func matchers(ms []*labels.Matcher) []node {
	out := make([]node, len(ms))
	for i, m := range ms {
		out[i] = node{"type": m.Type.String(), "name": m.Name, "value": m.Value}
	}
	return out
}

func startOrEnd(t parser.ItemType) any {
	if t == 0 {
		return nil
	}
	return t.String()
}

func orNone(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
