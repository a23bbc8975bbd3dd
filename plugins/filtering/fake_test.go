// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering_test

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/storepb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store is a correct backend over a list of series. It cuts its answer into batches,
// and series into pieces, as rnd has it.
type store struct {
	series []backend.Series // in order
	info   backend.Info
	rnd    *rand.Rand // nil: all in one batch
	framed bool

	mu       sync.Mutex
	requests []*backend.SeriesRequest
	sent     [][]*labels.Matcher
	closed   bool
	// spoil, if not nil, may change what is returned.
	spoil func(labels.Labels) labels.Labels
}

func (s *store) note(ms []*labels.Matcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, ms)
}

func (s *store) Close() error                               { s.closed = true; return nil }
func (s *store) Info(context.Context) (backend.Info, error) { return s.info, nil }

func (s *store) matching(ms []*labels.Matcher) (out []backend.Series) {
	for _, x := range s.series {
		if shaping.Matches(x.Labels, ms) {
			out = append(out, x)
		}
	}
	return out
}

func (s *store) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	s.note(req.Matchers)
	s.mu.Lock()
	s.requests = append(s.requests, req)
	s.mu.Unlock()
	return func(yield func(*backend.Batch, error) bool) {
		var pieces []backend.Series
		for _, x := range s.matching(req.Matchers) {
			if s.spoil != nil {
				x.Labels = s.spoil(x.Labels)
			}
			if req.SkipChunks {
				x.Chunks = nil
			}
			for s.rnd != nil && len(x.Chunks) > 1 && s.rnd.IntN(2) == 0 {
				pieces = append(pieces, backend.Series{Labels: x.Labels, Chunks: x.Chunks[:1:1]})
				x.Chunks = x.Chunks[1:]
			}
			pieces = append(pieces, x)
		}
		for len(pieces) > 0 {
			n := len(pieces)
			if s.rnd != nil {
				n = 1 + s.rnd.IntN(n)
			}
			b := backend.NewBatch(n)
			for _, x := range pieces[:n] {
				b.Append(x)
			}
			pieces = pieces[n:]
			if s.framed {
				enc, err := backend.AppendFrame(nil, b)
				if err == nil {
					b, err = backend.NewFramed(enc)
				}
				if err != nil {
					yield(nil, err)
					return
				}
			}
			if !yield(b, nil) {
				return
			}
			if ctx.Err() != nil {
				yield(nil, context.Cause(ctx))
				return
			}
		}
	}
}

func (s *store) LabelNames(_ context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	s.note(req.Matchers)
	var out []string
	for _, x := range s.matching(req.Matchers) {
		x.Labels.Range(func(l labels.Label) { out = append(out, l.Name) })
	}
	out = slices.DeleteFunc(out, func(n string) bool { return slices.Contains(req.WithoutReplicaLabels, n) })
	return &backend.Labels{Values: shaping.SortedUnique(out, req.Limit)}, nil
}

func (s *store) LabelValues(_ context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	s.note(req.Matchers)
	var out []string
	for _, x := range s.matching(req.Matchers) {
		out = append(out, x.Labels.Get(req.Name))
	}
	return &backend.Labels{Values: shaping.SortedUnique(out, req.Limit)}, nil
}

func (s *store) Exemplars(_ context.Context, selectors [][]*labels.Matcher, _, _ int64) ([]*storepb.ExemplarData, []backend.Notice, error) {
	var out []*storepb.ExemplarData
	for i, x := range s.series {
		if slices.ContainsFunc(selectors, func(ms []*labels.Matcher) bool { return shaping.Matches(x.Labels, ms) }) {
			out = append(out, &storepb.ExemplarData{SeriesLabels: wire(x.Labels), Exemplars: []*storepb.Exemplar{{Value: float64(i)}}})
		}
	}
	return out, nil, nil
}

func wire(ls labels.Labels) *storepb.LabelSet {
	out := &storepb.LabelSet{}
	ls.Range(func(l labels.Label) { out.Labels = append(out.Labels, &storepb.Label{Name: l.Name, Value: l.Value}) })
	return out
}

// chunk is told apart by its times.
func chunk(i int) backend.Chunk {
	c := chunkenc.NewXORChunk()
	app, _ := c.Appender()
	app.Append(int64(i), float64(i))
	return backend.Chunk{MinTime: int64(i), MaxTime: int64(i), Raw: backend.Encoded{Data: c.Bytes(), Encoding: chunkenc.EncXOR}}
}

// fake is a carrier.Filter. Its meaning is apply, on a label set of names and values;
// Rewrite does the same on frames, of its tier.
type fake struct {
	plan   filter.Plan
	names  func(names []string) (set map[string]string, rename map[string]string, remove []string, keep bool)
	column map[string]func(v string) map[string]string
	row    func(map[string]string) bool // changes the map
	sel    func(*filter.SelectCall) (*filter.SelectReply, error)
	rnd    *rand.Rand // how the same is said

	// rewrite, if not nil, is called instead.
	rewrite func(ctx context.Context, f, reply []byte) ([]byte, error)

	mu       sync.Mutex
	calls    int
	rejected []error
}

func (f *fake) Plan() filter.Plan { return f.plan }
func (f *fake) Close() error      { return nil }
func (f *fake) Reject(err error)  { f.rejected = append(f.rejected, err) }
func (f *fake) Request(context.Context, *filter.RequestCall) (*filter.RequestReply, error) {
	panic("not called here")
}

func (f *fake) Select(_ context.Context, c *filter.SelectCall) (*filter.SelectReply, error) {
	return f.sel(c)
}

func (f *fake) Rewrite(ctx context.Context, b, reply []byte) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.rewrite != nil {
		return f.rewrite(ctx, b, reply)
	}
	var in frame.Frame
	if err := in.Parse(b); err != nil {
		return nil, err
	}
	var out frame.Reply
	out.Reset(&in)
	switch f.plan.Tier {
	case filter.TierNames:
		f.rewriteNames(&in, &out)
	case filter.TierColumns:
		f.rewriteColumns(&in, &out)
	case filter.TierRows:
		f.rewriteRows(&in, &out)
	default:
		panic("not called for tier none")
	}
	return out.Append(reply[:0]), nil
}

func symbol(in *frame.Frame, out *frame.Reply, name string) uint32 {
	if id := in.FindName(name); id != 0 {
		return id
	}
	return out.Intern(name)
}

func (f *fake) rewriteNames(in *frame.Frame, out *frame.Reply) {
	for i := range in.Groups() {
		g := in.Group(i)
		if g.Rows() != 1 {
			panic("tier names shows each list of names once")
		}
		var names []string
		for c := range g.Columns() {
			if g.Column(c).Form != frame.Withheld {
				panic("tier names shows no values")
			}
			names = append(names, in.Symbol(g.Column(c).Name))
		}
		set, rename, remove, keep := f.names(names)
		out.Group(i)
		if !keep {
			out.DropAll()
			continue
		}
		gone := map[string]bool{}
		for _, to := range rename {
			gone[to] = true
		}
		for n := range set {
			gone[n] = true
		}
		for _, n := range remove {
			gone[n] = true
		}
		for c, n := range names {
			if to, ok := rename[n]; ok {
				if _, over := set[to]; !over {
					out.Input(symbol(in, out, to), c)
				}
			} else if !gone[n] {
				out.Input(symbol(in, out, n), c)
			}
		}
		for n, v := range set {
			out.Constant(symbol(in, out, n), out.Intern(v))
		}
	}
}

func (f *fake) rewriteColumns(in *frame.Frame, out *frame.Reply) {
	for i := range in.Groups() {
		g := in.Group(i)
		if g.Columns() != 1 {
			panic("tier columns shows one column in a group")
		}
		name := in.Symbol(g.Column(0).Name)
		targets := map[string][]string{}
		for r := range g.Rows() {
			v := in.Symbol(g.Column(0).Ref(r))
			if v == "" {
				panic("tier columns shows no absent values")
			}
			for to, w := range f.column[name](v) {
				if targets[to] == nil {
					targets[to] = make([]string, g.Rows())
				}
				targets[to][r] = w
			}
		}
		if len(targets) == 0 {
			continue
		}
		out.Group(i)
		for to, vs := range targets {
			refs := out.Refs(symbol(in, out, to))
			for r, v := range vs {
				refs[r] = out.Intern(v)
			}
		}
	}
}

func (f *fake) rewriteRows(in *frame.Frame, out *frame.Reply) {
	for i := range in.Groups() {
		g := in.Group(i)
		rows := make([]map[string]string, g.Rows())
		dropped := map[int]bool{}
		names := map[string]bool{}
		changed := map[string]bool{}
		cols := map[string]int{}
		for r := range rows {
			rows[r] = map[string]string{}
			for c := range g.Columns() {
				n := in.Symbol(g.Column(c).Name)
				cols[n] = c
				if v := in.Symbol(g.Column(c).Ref(r)); v != "" {
					rows[r][n] = v
				}
			}
			before := maps.Clone(rows[r])
			dropped[r] = !f.row(rows[r])
			for n, v := range rows[r] {
				names[n] = true
				changed[n] = changed[n] || before[n] != v
			}
			for n := range before {
				changed[n] = changed[n] || rows[r][n] == ""
			}
		}
		any := len(changed) > 0
		for r := range rows {
			any = any || dropped[r]
		}
		if !any && f.rnd.IntN(2) == 0 {
			continue
		}
		out.Group(i)
		all := slices.Collect(maps.Keys(names))
		f.rnd.Shuffle(len(all), func(a, b int) { all[a], all[b] = all[b], all[a] })
		for _, n := range all {
			c, there := cols[n]
			if there && !changed[n] && f.rnd.IntN(3) > 0 {
				out.Input(symbol(in, out, n), c)
				continue
			}
			refs := out.Refs(symbol(in, out, n))
			for r := range rows {
				refs[r] = out.Intern(rows[r][n])
			}
		}
		for r := range rows {
			if dropped[r] {
				out.Drop(r)
			}
		}
	}
}

// apply is what the filter means, by its words: operations in order, then the rewrite.
// It changes m; false leaves it out.
func (f *fake) apply(m map[string]string) bool {
	set := func(n, v string) {
		if m[n] = v; v == "" {
			delete(m, n)
		}
	}
	for _, o := range f.plan.Operations {
		switch {
		case o.Rename != nil:
			v := m[o.Rename.From]
			delete(m, o.Rename.From)
			set(o.Rename.To, v)
		case o.Drop != nil:
			for _, n := range o.Drop {
				delete(m, n)
			}
		case o.Keep != nil:
			for n := range m {
				if !slices.Contains(o.Keep, n) {
					delete(m, n)
				}
			}
		case o.Set != nil:
			set(o.Set.Name, o.Set.Value)
		case o.Map != nil:
			for _, p := range o.Map.Values {
				if m[o.Map.Name] == p.From {
					set(o.Map.Name, p.To)
					break
				}
			}
		case o.Require != nil:
			if !labels.MustNewMatcher(labels.MatchType(o.Require.Type), o.Require.Name, o.Require.Value).Matches(m[o.Require.Name]) {
				return false
			}
		}
	}
	switch f.plan.Tier {
	case filter.TierNames:
		names := slices.Sorted(maps.Keys(m))
		sets, rename, remove, keep := f.names(names)
		if !keep {
			return false
		}
		before := maps.Clone(m)
		for from := range rename {
			delete(m, from)
		}
		for _, n := range remove {
			delete(m, n)
		}
		for from, to := range rename {
			set(to, before[from])
		}
		for n, v := range sets {
			set(n, v)
		}
	case filter.TierColumns:
		before := maps.Clone(m)
		for _, c := range f.plan.Columns {
			if v := before[c]; v != "" {
				for n, w := range f.column[c](v) {
					set(n, w)
				}
			}
		}
	case filter.TierRows:
		return f.row(m)
	}
	return true
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

var (
	someNames  = []string{"__name__", "a", "b", "c", "d"}
	someValues = []string{"1", "2", "3", "x1"}
)

func randomMatcher(r *rand.Rand, names ...string) *labels.Matcher {
	t := pick(r, labels.MatchEqual, labels.MatchNotEqual, labels.MatchRegexp, labels.MatchNotRegexp)
	v := pick(r, append([]string{""}, someValues...)...)
	if t == labels.MatchRegexp || t == labels.MatchNotRegexp {
		v = pick(r, "1|2", "1|", ".*", ".+", "x.*", "[12]", "3", "(?i:X1)|2", "m1|1")
	}
	return labels.MustNewMatcher(t, pick(r, names...), v)
}

func filterMatcher(m *labels.Matcher) filter.Matcher {
	return filter.Matcher{Type: filter.MatchType(m.Type), Name: m.Name, Value: m.Value}
}

func randomOperation(r *rand.Rand) filter.Operation {
	n := func() string { return pick(r, someNames...) }
	switch r.IntN(8) {
	case 0, 1:
		return filter.Operation{Rename: &filter.Rename{From: n(), To: pick(r, append(someNames, "z")...)}}
	case 2:
		return filter.Operation{Drop: []string{n()}}
	case 3:
		return filter.Operation{Keep: []string{n(), n(), n(), n()}}
	case 4:
		return filter.Operation{Set: &filter.Label{Name: n(), Value: pick(r, "1", "9", "")}}
	case 5:
		return filter.Operation{Require: new(filter.Matcher)}
	default:
		m := &filter.MapValues{Name: n()}
		for _, v := range append([]string{"", "m1"}, someValues...) {
			if r.IntN(3) == 0 {
				m.Values = append(m.Values, filter.Pair{From: v, To: pick(r, "1", "2", "9", "x9", "")})
			}
		}
		return filter.Operation{Map: m}
	}
}

// randomFilter makes a filter that keeps to its plan.
func randomFilter(r *rand.Rand) *fake {
	f := &fake{rnd: r}
	p := &f.plan
	p.Pure, p.Merge = r.IntN(2) == 0, r.IntN(3) == 0
	for range r.IntN(4) {
		o := randomOperation(r)
		if o.Require != nil {
			*o.Require = filterMatcher(randomMatcher(r, someNames...))
		}
		p.Operations = append(p.Operations, o)
	}
	p.Tier = filter.Tier(r.IntN(4))
	p.Drops = r.IntN(3) == 0
	x, y, z := pick(r, someNames...), pick(r, someNames...), pick(r, append(someNames, "n")...)
	switch p.Tier {
	case filter.TierNames:
		p.Writes = []string{x, y, z}
		if r.IntN(4) == 0 {
			p.Writes, p.WritesAny = nil, true
			for _, n := range someNames {
				if n != x && n != y && n != z {
					p.Keeps = append(p.Keeps, n)
				}
			}
		}
		mode, drops := r.IntN(4), p.Drops
		f.names = func(names []string) (set, rename map[string]string, remove []string, keep bool) {
			set, rename, keep = map[string]string{}, map[string]string{}, true
			if drops && slices.Contains(names, x) && slices.Contains(names, "b") {
				return set, rename, nil, false
			}
			switch mode {
			case 0:
				set[z] = "7"
			case 1:
				if slices.Contains(names, x) && x != y {
					rename[x] = y
				}
			case 2:
				remove = []string{y}
			default:
				if slices.Contains(names, y) && y != z {
					rename[y] = z
				}
				if x != z && x != y {
					set[x] = fmt.Sprint(len(names))
				}
			}
			return set, rename, remove, keep
		}
	case filter.TierColumns:
		p.Columns = []string{x}
		if y != x && r.IntN(2) == 0 {
			p.Columns = append(p.Columns, y)
		}
		p.Writes = []string{x, z}
		f.column = map[string]func(string) map[string]string{}
		for i, c := range p.Columns {
			mode := r.IntN(4)
			f.column[c] = func(v string) map[string]string {
				switch mode {
				case 0:
					return map[string]string{z: v + "k"}
				case 1:
					if v == "1" {
						return map[string]string{x: "", z: "q"}
					}
					return map[string]string{x: "2", z: "1"}
				case 2:
					if i > 0 {
						return nil
					}
					return map[string]string{c: pick(rand.New(rand.NewPCG(uint64(len(v)), 1)), "1", "2")}
				}
				return nil
			}
		}
	case filter.TierRows:
		p.Writes = []string{x, y}
		if r.IntN(4) == 0 {
			p.WritesAny = true
			p.Keeps = []string{z}
		}
		mode, drops := r.IntN(4), p.Drops
		f.row = func(m map[string]string) bool {
			if drops && m["c"] == "2" {
				return false
			}
			set := func(n, v string) {
				if m[n] = v; v == "" {
					delete(m, n)
				}
			}
			switch mode {
			case 0:
				set(x, m["a"]+m["c"])
			case 1:
				if m["b"] != "" {
					delete(m, y)
				}
			case 2:
				if m["a"] == "1" {
					set(y, m["b"])
				}
			}
			return true
		}
	}
	if r.IntN(5) == 0 {
		p.Hooks = []string{filter.HookSelect}
		reply := &filter.SelectReply{}
		if r.IntN(10) == 0 {
			reply.None = true
		} else {
			reply.Require = append(reply.Require, filterMatcher(randomMatcher(r, someNames...)))
		}
		f.sel = func(*filter.SelectCall) (*filter.SelectReply, error) { return reply, nil }
	}
	return f
}

func randomStore(r *rand.Rand) *store {
	s := &store{rnd: r, framed: r.IntN(3) == 0}
	seen := map[string]bool{}
	var ext []labels.Labels
	for range r.IntN(3) {
		b := labels.NewScratchBuilder(1)
		b.Add("a", pick(r, someValues...))
		if r.IntN(2) == 0 {
			b.Add("r", pick(r, "1", "2"))
		}
		ext = append(ext, b.Labels())
	}
	n := r.IntN(40)
	for i := range n {
		b := labels.NewBuilder(labels.FromStrings("__name__", pick(r, someValues...)))
		for _, l := range []string{"a", "b", "c", "d", "r"} {
			if r.IntN(2) == 0 {
				b.Set(l, pick(r, someValues...))
			}
		}
		if len(ext) > 0 {
			pick(r, ext...).Range(func(l labels.Label) { b.Set(l.Name, l.Value) })
		}
		x := backend.Series{Labels: b.Labels()}
		if key := x.Labels.String(); seen[key] {
			continue
		} else {
			seen[key] = true
		}
		for c := range 1 + r.IntN(3) {
			x.Chunks = append(x.Chunks, chunk(100*i+c))
		}
		s.series = append(s.series, x)
	}
	slices.SortFunc(s.series, func(a, b backend.Series) int { return labels.Compare(a.Labels, b.Labels) })
	s.info = backend.Info{LabelSets: ext, MinTime: math.MinInt64, MaxTime: math.MaxInt64, Capabilities: backend.Capabilities{Sharding: true, SeriesLimit: true, Exemplars: true}}
	for _, ls := range ext {
		s.info.Ranges = append(s.info.Ranges, backend.LabelSetRange{Labels: ls, MinTime: 1, MaxTime: 2})
	}
	return s
}
