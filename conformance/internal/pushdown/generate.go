// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package pushdown

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/promweave/promweave/conformance/oracle"
)

// Generator makes queries at random, the same for the same seed. Its expressions have one
// right answer whatever the order in which an engine adds up: no difference of almost equal
// numbers, no comparison with a number that a sample may have, no first k of equal values.
type Generator struct {
	r *rand.Rand
	// metrics are their names, once for each series of many samples, so that most queries
	// find something; pairs are the labels on each, names those of all.
	metrics []string
	pairs   map[string][]labels.Label
	names   []string
	// start and end of the data, s.
	start, end int64
}

// metricName is the label with the name of the metric.
const metricName = "__name__"

// dense is the number of samples of which a series has something almost everywhere.
const dense = 100

// NewGenerator returns one for the metrics that keep picks out of series.
func NewGenerator(seed uint64, series []oracle.Series, keep func(metric string) bool) *Generator {
	g := &Generator{r: rand.New(rand.NewPCG(seed, 0x71756572)), pairs: map[string][]labels.Label{}}
	for _, s := range series {
		name := s.Labels.Get(metricName)
		if name == "" || !keep(name) || len(s.Samples) == 0 {
			continue
		}
		if g.start == 0 || s.Samples[0].T/1000 < g.start {
			g.start = s.Samples[0].T / 1000
		}
		g.end = max(g.end, s.Samples[len(s.Samples)-1].T/1000)
		s.Labels.Range(func(l labels.Label) {
			if l.Name != metricName && Plain(l.Name) {
				g.pairs[name] = append(g.pairs[name], l)
				g.names = append(g.names, l.Name)
			}
		})
		if len(s.Samples) >= dense || !slices.Contains(g.metrics, name) {
			g.metrics = append(g.metrics, name)
		}
	}
	slices.Sort(g.metrics)
	slices.Sort(g.names)
	g.names = slices.Compact(g.names)
	return g
}

var plain = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// Plain says that a label's name can be written in PromQL without quotes.
func Plain(name string) bool { return plain.MatchString(name) }

// Query is the next one, nil where no metric was kept.
func (g *Generator) Query() *Query {
	if len(g.metrics) == 0 {
		return nil
	}
	q := &Query{Text: g.vector(3), Start: g.start + g.r.Int64N(g.end-g.start+1)}
	if g.r.IntN(2) == 0 {
		q.Step = 1 + g.r.Int64N(900)
		q.End = q.Start + g.r.Int64N(12*q.Step)
	}
	if g.r.IntN(4) == 0 {
		q.Lookback = 30 + g.r.Int64N(900)
	}
	return q
}

func pick[T any](g *Generator, list ...T) T { return list[g.r.IntN(len(list))] }

func (g *Generator) vector(depth int) string {
	if depth == 0 || g.r.IntN(5) == 0 {
		return g.leaf()
	}
	x := g.vector(depth - 1)
	switch g.r.IntN(9) {
	case 0, 1:
		return fmt.Sprintf("%s %s (%s) (%s)", pick(g, "sum", "avg", "min", "max", "count", "group"), pick(g, "by", "without"), g.grouping(), x)
	case 2:
		return fmt.Sprintf("quantile by (%s) (%s, %s)", g.grouping(), pick(g, "0", "0.25", "0.5", "0.9", "1"), x)
	case 3:
		return fmt.Sprintf("%s(%s)", pick(g, "abs", "ceil", "sgn", "sqrt", "-"), x)
	case 4:
		return fmt.Sprintf("(%s) %s %s", x, pick(g, "+", "*", "/"), pick(g, "2", "0.5", "100"))
	case 5:
		return fmt.Sprintf("(%s) %s %s", x, pick(g, ">", "<=", "< bool", "!="), pick(g, "0.0317", "1.0317", "50.0317", "5000.0317"))
	case 6:
		return fmt.Sprintf("(%s) %s (%s)", x, pick(g, "+", "*", "/", "and", "or", "unless"), g.vector(depth-1))
	case 7:
		return fmt.Sprintf("clamp(%s, 0.5317, 500.0317)", x)
	}
	return fmt.Sprintf(`label_replace(%s, "made", "<$1>", %q, "(.).*")`, x, pick(g, g.names...))
}

func (g *Generator) grouping() string {
	n := g.r.IntN(3)
	var out []string
	for range n {
		out = append(out, pick(g, g.names...))
	}
	return strings.Join(out, ", ")
}

func (g *Generator) leaf() string {
	s := g.selector()
	over := pick(g, "1m", "90s", "5m", "20m", "1h")
	offset := pick(g, "", "", "", " offset 7m", " offset -7m", fmt.Sprintf(" @ %d", g.start+g.r.Int64N(g.end-g.start+1)))
	f := pick(g, "sum_over_time", "avg_over_time", "min_over_time", "max_over_time", "count_over_time", "last_over_time", "present_over_time", "changes", "resets", "rate", "increase", "irate")
	switch g.r.IntN(5) {
	case 0, 1:
		return s + offset
	case 2, 3:
		return fmt.Sprintf("%s(%s[%s]%s)", f, s, over, offset)
	}
	return fmt.Sprintf("%s(%s[%s:%s]%s)", f, s, over, pick(g, "30s", "1m", "7m"), offset)
}

func (g *Generator) selector() string {
	name := pick(g, g.metrics...)
	if g.r.IntN(2) == 0 || len(g.pairs[name]) == 0 {
		return name
	}
	l := pick(g, g.pairs[name]...)
	op := pick(g, "=", "!=", "=~", "!~")
	v := l.Value
	if strings.HasSuffix(op, "~") {
		v = pick(g, ".+", ".*", ".*[a-m1-5].*", "")
	}
	return fmt.Sprintf("%s{%s%s%q}", name, l.Name, op, v)
}

// Shrink looks for the shortest part of a query that still fails, with at most tries calls
// of fails: its vectors are what every function and operator is about, and each is a query.
func Shrink(q *Query, tries int, fails func(*Query) bool) *Query {
	root, err := parser.ParseExpr(q.Text)
	if err != nil {
		return q
	}
	var parts []string
	parser.Inspect(root, func(n parser.Node, path []parser.Node) error {
		if x, ok := n.(parser.Expr); ok && len(path) > 0 && x.Type() == parser.ValueTypeVector {
			parts = append(parts, x.String())
		}
		return nil
	})
	sort.SliceStable(parts, func(i, k int) bool { return len(parts[i]) < len(parts[k]) })
	parts = slices.Compact(parts)
	for _, text := range parts[:min(len(parts), tries)] {
		next := *q
		next.Text = text
		if len(text) < len(q.Text) && fails(&next) {
			return &next
		}
	}
	return q
}
