// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package labelrewrite

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// operate does a plan's operations as sdk/filter describes them.
func operate(ops []filter.Operation, ls labels.Labels) (labels.Labels, bool) {
	b := labels.NewBuilder(ls)
	for _, o := range ops {
		switch {
		case o.Rename != nil:
			v := b.Get(o.Rename.From)
			b.Del(o.Rename.From)
			b.Set(o.Rename.To, v)
		case o.Drop != nil:
			b.Del(o.Drop...)
		case o.Keep != nil:
			b.Keep(o.Keep...)
		case o.Set != nil:
			b.Set(o.Set.Name, o.Set.Value)
		case o.Map != nil:
			for _, p := range o.Map.Values {
				if b.Get(o.Map.Name) == p.From {
					b.Set(o.Map.Name, p.To)
					break
				}
			}
		case o.Require != nil:
			re := regexp.MustCompile("^(?s:" + o.Require.Value + ")$")
			if re.MatchString(b.Get(o.Require.Name)) != (o.Require.Type == filter.MatchRegexp) {
				return labels.EmptyLabels(), false
			}
		}
	}
	return b.Labels(), true
}

// host does what a host does with the filter: operations, then Rewrite on frames of
// the tier. "" stands for a series that is left out.
func host(t *testing.T, i filter.Instance, in []labels.Labels) []string {
	t.Helper()
	p := i.Plan()
	out := make([]string, len(in))
	var (
		rows []int
		b    frame.Builder
	)
	b.Reset()
	var kept []labels.Labels
	for k, ls := range in {
		ls, ok := operate(p.Operations, ls)
		if !ok {
			continue
		}
		kept, rows = append(kept, ls), append(rows, k)
		out[k] = ls.String()
		ls.Range(func(l labels.Label) { b.Label(l.Name, l.Value) })
		b.EndRow()
	}
	if p.Tier == filter.TierNone || len(kept) == 0 {
		return out
	}
	raw, err := b.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	var f, shown frame.Frame
	if err := f.Parse(raw); err != nil {
		t.Fatal(err)
	}
	shown, tier := f, frame.TierRows
	if p.Tier == filter.TierColumns {
		var values frame.ColumnValues
		raw, err := values.Append(nil, &f, p.Columns)
		if err != nil {
			t.Fatal(err)
		}
		shown = frame.Frame{}
		if err := shown.Parse(raw); err != nil {
			t.Fatal(err)
		}
		tier = frame.TierColumns
	}
	var reply frame.Reply
	reply.Reset(&shown)
	if err := i.(filter.Rewriter).Rewrite(&shown, &reply); err != nil {
		t.Fatal(err)
	}
	if !reply.Touched() {
		return out
	}
	var c frame.Changes
	if err := c.Parse(reply.Append(nil), &shown, tier); err != nil {
		t.Fatalf("reply: %v", err)
	}
	if tier == frame.TierColumns {
		for k, ls := range kept {
			lb := labels.NewBuilder(ls)
			for g := range shown.Groups() {
				col := shown.Group(g).Column(0)
				name := shown.Symbol(col.Name)
				for r := range shown.Group(g).Rows() {
					if shown.Symbol(col.Ref(r)) == ls.Get(name) && c.Group(g).Changed() {
						lb.Set(name, c.Symbol(c.Group(g).Column(0).Ref(r)))
					}
				}
			}
			out[rows[k]] = lb.Labels().String()
		}
		return out
	}
	k := 0
	for g := range shown.Groups() {
		ch := c.Group(g)
		for r := range shown.Group(g).Rows() {
			at := rows[k]
			k++
			if !ch.Keeps(r) {
				out[at] = ""
				continue
			}
			var sb labels.ScratchBuilder
			for j := range ch.Columns() {
				if ref := ch.Column(j).Ref(r); ref != 0 {
					sb.Add(c.Symbol(ch.Column(j).Name), c.Symbol(ref))
				}
			}
			out[at] = sb.Labels().String()
			checkWrites(t, &p, kept[k-1], sb.Labels())
		}
	}
	return out
}

// checkWrites: what a plan does not name stays.
func checkWrites(t *testing.T, p *filter.Plan, before, after labels.Labels) {
	t.Helper()
	names := map[string]bool{}
	before.Range(func(l labels.Label) { names[l.Name] = true })
	after.Range(func(l labels.Label) { names[l.Name] = true })
	for n := range names {
		may := p.WritesAny && !slices.Contains(p.Keeps, n) || slices.Contains(p.Writes, n)
		if !may && before.Get(n) != after.Get(n) {
			t.Errorf("%s became %s: the plan does not say that %q is written", before, after, n)
		}
	}
}

var (
	names  = []string{"__name__", "a", "b", "c", "d", "a_x", "b_x"}
	values = []string{"", "x", "y", "X-1", "x;y", "zz", "é\nb"}
	regex  = []string{"(.*)", "x", "x|y", "(.+)-(.+)", "(.*);(.*)", "", "[xy]", "z+|", "a_(.*)", "(a|b)_x", "a|c"}
)

// randomSets has, besides, wide labels in some sets.
func randomSets(r *rand.Rand, wide int) []labels.Labels {
	out := make([]labels.Labels, 1+r.IntN(30))
	for k := range out {
		b := labels.NewBuilder(labels.EmptyLabels())
		for _, n := range names {
			b.Set(n, values[r.IntN(len(values))])
		}
		for w := range wide {
			if k%3 < 2 {
				b.Set(fmt.Sprintf("%s_%03d", []string{"a", "w"}[w%2], w), values[1+r.IntN(len(values)-1)])
			}
		}
		out[k] = b.Labels()
	}
	slices.SortFunc(out, labels.Compare)
	return out
}

func pick(r *rand.Rand, list []string) string { return list[r.IntN(len(list))] }

// TestRelabelAsPrometheus compares random entries of relabel_configs with what
// Prometheus' own code makes of them.
func TestRelabelAsPrometheus(t *testing.T) {
	actions := []string{"replace", "keep", "drop", "keepequal", "dropequal", "hashmod", "labelmap", "labeldrop", "labelkeep", "lowercase", "uppercase"}
	tiers := map[filter.Tier]int{}
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		var (
			theirs []*relabel.Config
			ours   []map[string]any
		)
		only := ""
		if r.IntN(3) == 0 {
			only = pick(r, names) // rules of one label
		}
		for range 1 + r.IntN(4) {
			c := map[string]any{"action": pick(r, actions), "regex": pick(r, regex)}
			var source []string
			for range r.IntN(3) {
				source = append(source, pick(r, names))
			}
			target, replacement := pick(r, append(names, "new", "a_$1")), pick(r, []string{"$1", "x", "", "$2-$1", "new_$1"})
			if only != "" {
				c["action"] = pick(r, []string{"replace", "lowercase", "uppercase"})
				source, target, c["regex"] = []string{only}, only, pick(r, []string{"x", "x|y", "(.+)-(.+)", "[xy]", "z+"})
			} else if c["action"] != "replace" {
				target = pick(r, names)
			}
			if c["action"] == "labelmap" {
				// Theirs can make a label without a name, which no series may have; and where
				// two labels become one, which of them counts depends on the history of its
				// label builder.
				replacement, c["regex"] = "new_$1", pick(r, []string{"(.*)", "a_(.*)", "(a|b)_x", "([abc])"})
			}
			if source != nil {
				c["source_labels"] = source
			}
			c["target_label"], c["replacement"], c["modulus"] = target, replacement, 1+r.IntN(5)
			if r.IntN(2) == 0 {
				c["separator"] = "-"
			}
			x := &relabel.Config{
				Action: relabel.Action(c["action"].(string)), Regex: relabel.MustNewRegexp(c["regex"].(string)), TargetLabel: target,
				Replacement: replacement, Modulus: uint64(c["modulus"].(int)), Separator: ";", NameValidationScheme: model.UTF8Validation,
			}
			if s, ok := c["separator"]; ok {
				x.Separator = s.(string)
			}
			for _, s := range source {
				x.SourceLabels = append(x.SourceLabels, model.LabelName(s))
			}
			theirs = append(theirs, x)
			ours = append(ours, map[string]any{"relabel": c})
		}
		conf, err := json.Marshal(map[string]any{"rules": ours})
		if err != nil {
			t.Fatal(err)
		}
		i, err := New().Configure(&filter.Config{JSON: conf})
		if err != nil {
			t.Fatalf("seed %d: %s: %v", seed, conf, err)
		}
		tiers[i.Plan().Tier]++
		wide := 0
		if seed%16 == 0 {
			wide = 200 // so many that there are maps
		}
		in := randomSets(r, wide)
		got := host(t, i, in)
		for k, ls := range in {
			want := ""
			if res, keep := relabel.Process(ls.Copy(), theirs...); keep {
				want = res.String()
			}
			if got[k] != want {
				t.Fatalf("seed %d: %s\n of %s\ngot  %s\nwant %s", seed, conf, ls, got[k], want)
			}
		}
	}
	for _, tier := range []filter.Tier{filter.TierNone, filter.TierColumns, filter.TierRows} {
		if tiers[tier] < 50 {
			t.Errorf("tier %d was tried %d times only", tier, tiers[tier])
		}
	}
}

// TestPlans runs testdata/plans: a configuration, and what the host is told of it, or
// what is wrong with it; "labels" arguments are rewritten.
func TestPlans(t *testing.T) {
	datadriven.RunTest(t, "testdata/plans", func(t *testing.T, d *datadriven.TestData) string {
		conf, sets, _ := strings.Cut(d.Input, "\n\n")
		i, err := New().Configure(&filter.Config{Name: "t", JSON: []byte(conf)})
		if err != nil {
			return err.Error() + "\n"
		}
		p := i.Plan()
		var b strings.Builder
		for _, o := range p.Operations {
			text, _ := json.Marshal(o)
			fmt.Fprintf(&b, "operation %s\n", regexp.MustCompile(`"\w+":null,?`).ReplaceAllString(string(text), ""))
		}
		fmt.Fprintf(&b, "tier %d", p.Tier)
		if p.Tier != filter.TierNone {
			fmt.Fprintf(&b, " columns %v reads %v writes %v any %v keeps %v drops %v", p.Columns, p.Reads, p.Writes, p.WritesAny, p.Keeps, p.Drops)
		}
		b.WriteString("\n")
		var in []labels.Labels
		for line := range strings.Lines(sets) {
			var m map[string]string
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				d.Fatalf(t, "%s: %v", line, err)
			}
			in = append(in, labels.FromMap(m))
		}
		for _, s := range host(t, i, in) {
			fmt.Fprintln(&b, s)
		}
		return b.String()
	})
}

func TestDescription(t *testing.T) {
	if d := New().Describe(); !json.Valid([]byte(d.ConfigSchema)) {
		t.Error("the schema is no JSON")
	}
}

// BenchmarkRows rewrites by one label, by two and all names, and label sets with
// thousands of labels.
func BenchmarkRows(b *testing.B) {
	all := `{"rules": [{"relabel": {"source_labels": ["job", "instance"], "separator": "/", "target_label": "where"}}, {"relabel": {"regex": "k8s_(.+)", "action": "labelmap"}}]}`
	ordinary := func(fb *frame.Builder) {
		for k := range 1000 {
			fb.AddRow("__name__", "up", "instance", fmt.Sprintf("host-%03d:9100", k/10), "job", "node", "pod", fmt.Sprintf("p-%d", k))
		}
	}
	for _, c := range []struct {
		name, conf string
		rows       func(*frame.Builder)
	}{
		{"one", `{"rules": [{"relabel": {"source_labels": ["instance"], "regex": "(.*):\\d+", "target_label": "host"}}]}`, ordinary},
		{"names", all, ordinary},
		{"wide", all, func(fb *frame.Builder) {
			for k := range 4 {
				for n := range 4000 {
					fb.Label(fmt.Sprintf("label_%04d", n), fmt.Sprint(k))
				}
				fb.EndRow()
			}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			i, err := New().Configure(&filter.Config{JSON: []byte(c.conf)})
			if err != nil {
				b.Fatal(err)
			}
			var fb frame.Builder
			fb.Reset()
			c.rows(&fb)
			raw, err := fb.Append(nil)
			if err != nil {
				b.Fatal(err)
			}
			var f frame.Frame
			if err := f.Parse(raw); err != nil {
				b.Fatal(err)
			}
			var (
				reply frame.Reply
				out   []byte
			)
			b.ReportAllocs()
			for b.Loop() {
				reply.Reset(&f)
				if err := i.(filter.Rewriter).Rewrite(&f, &reply); err != nil {
					b.Fatal(err)
				}
				out = reply.Append(out[:0])
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(f.Rows()), "ns/series")
		})
	}
}
