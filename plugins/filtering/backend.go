// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/core/samples"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/backend/shaping"
	"github.com/promweave/promweave/sdk/filter"
)

// wrapped is a backend behind a chain.
type wrapped struct {
	b backend.Backend
	c *stages
	// member is the backend's name in its group.
	member string
}

var (
	_ backend.Backend = (*wrapped)(nil)
	_ backend.Closer  = (*wrapped)(nil)
)

// Close implements backend.Closer.
func (w *wrapped) Close() error {
	if c, ok := w.b.(backend.Closer); ok {
		return c.Close()
	}
	return nil
}

// name is the backend's for errors.
func (w *wrapped) name() string {
	switch {
	case w.c.o.Backend == "":
		return w.member
	case w.member == "":
		return w.c.o.Backend
	}
	return w.c.o.Backend + "/" + w.member
}

// Info implements backend.Backend. Label sets are those that users see, as far as
// operations say so exactly; if one is not known, none are advertised: a label set
// without a label that tells it apart from others would make another store cover for it.
func (w *wrapped) Info(ctx context.Context) (backend.Info, error) {
	if w.c.broken != nil {
		return backend.Info{}, w.c.broken
	}
	info, err := w.b.Info(ctx)
	if err != nil {
		return info, err
	}
	caps := &info.Capabilities
	_, ok := w.b.(backend.ExemplarsBackend)
	caps.Exemplars = caps.Exemplars && ok
	_, ok = w.b.(backend.MetadataBackend)
	caps.Metadata = caps.Metadata && ok && w.c.mapsMetricNames()
	_, ok = w.b.(backend.RulesBackend)
	caps.Rules = caps.Rules && ok
	_, ok = w.b.(backend.TargetsBackend)
	caps.Targets = caps.Targets && ok
	_, ok = w.b.(backend.StatisticsBackend)
	caps.Statistics = caps.Statistics && ok && !w.c.drops() && !w.c.narrows()
	if w.c.transparent {
		return info, nil
	}
	caps.Sharding, caps.WithoutReplicaLabels, caps.SeriesLimit = false, false, false

	sets, known := []labels.Labels(nil), true
	if len(info.LabelSets) == 0 {
		// Nothing is known of what the store has, but for what operations set.
		if out, none, ok := w.c.outward(labels.EmptyLabels()); ok && !none {
			sets = append(sets, out)
		}
	}
	for _, ls := range info.LabelSets {
		out, none, ok := w.c.outward(ls)
		known = known && ok
		if ok && !none && !slices.ContainsFunc(sets, func(x labels.Labels) bool { return labels.Equal(x, out) }) {
			sets = append(sets, out)
		}
	}
	var ranges []backend.LabelSetRange
	for _, x := range info.Ranges {
		out, none, ok := w.c.outward(x.Labels)
		known = known && ok
		if x.Labels = out; ok && !none {
			ranges = append(ranges, x)
		}
	}
	if info.LabelSets, info.Ranges = sets, ranges; !known {
		info.LabelSets, info.Ranges = nil, nil
	}
	return info, nil
}

// External is what a label set that all series of a backend have is to users: behind its
// filters, if it is one that Wrap returned. It is empty if that cannot be told.
func External(b backend.Backend, ls labels.Labels) labels.Labels {
	w, ok := b.(interface {
		external(labels.Labels) labels.Labels
	})
	if !ok {
		return ls
	}
	return w.external(ls)
}

func (w *wrapped) external(ls labels.Labels) labels.Labels {
	out, none, ok := w.c.outward(ls)
	if w.c.broken != nil || none || !ok {
		return labels.EmptyLabels()
	}
	return out
}

// narrows says whether a select hook may leave series out.
func (c *stages) narrows() bool {
	return slices.ContainsFunc(c.links, func(l *link) bool { return l.selects })
}

// drops says whether operations or filters may leave series out.
func (c *stages) drops() bool {
	return slices.ContainsFunc(c.links, func(l *link) bool {
		return l.rewrites && l.plan.Drops || slices.ContainsFunc(l.ops, func(o operation) bool { return o.require != nil })
	})
}

func (w *wrapped) observe(ctx context.Context, d *descent) {
	if w.c.o.Observe == nil || d == nil {
		return
	}
	for _, e := range d.effects {
		if e.Filter != "" || e.Call != "" {
			e.Backend = w.name()
			w.c.o.Observe(ctx, e)
		}
	}
}

// protect checks a label set of the store against what was enforced and required.
func (w *wrapped) protect(d *descent, ls labels.Labels) error {
	for i, m := range d.protected {
		if m.Matches(ls.Get(m.Name)) {
			continue
		}
		what := "a filter requires"
		if i < d.enforced {
			what = "is enforced"
		}
		// The label set is not for the eyes of who asked.
		return brokenRule(w.name(), "S-6", "it returned a series that does not match %s, which %s: nothing of its answer is used", m.Name, what)
	}
	return nil
}

const everythingText = "filters left no matcher that the store understands: all of its series were read"

// Series implements backend.Backend.
func (w *wrapped) Series(ctx context.Context, req *backend.SeriesRequest) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		if req.MinTime > req.MaxTime {
			return
		}
		d, err := w.c.descend(ctx, "series", req.Matchers, req.MinTime, req.MaxTime)
		defer w.observe(ctx, d)
		switch {
		case err != nil:
			yield(nil, err)
			return
		case d.none:
			return
		}
		if d.everything && !yield(backend.NewNotices(backend.Notice{Text: everythingText}), nil) {
			return
		}
		sent := *req
		sent.Matchers = d.sent
		if w.c.transparent {
			w.pass(ctx, d, &sent, yield)
			return
		}
		w.gather(ctx, d, &sent, yield)
	}
}

// pass hands on what the store sends, which no filter changes.
func (w *wrapped) pass(ctx context.Context, d *descent, sent *backend.SeriesRequest, yield func(*backend.Batch, error) bool) {
	// A protected label must still be there when it is checked.
	var all backend.Capabilities
	if !slices.ContainsFunc(d.protected, func(m *labels.Matcher) bool { return slices.Contains(sent.WithoutReplicaLabels, m.Name) }) {
		all = backend.Capabilities{Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true}
	}
	checked := func(yield func(*backend.Batch, error) bool) {
		var last labels.Labels
		for b, err := range w.b.Series(ctx, shaping.Reduce(all, sent)) {
			if err != nil {
				yield(b, err)
				return
			}
			for i := 0; i < b.Len() && len(d.protected) > 0; i++ {
				ls := b.At(i).Labels
				if i > 0 && labels.Equal(ls, last) {
					continue
				}
				last = ls
				if err := w.protect(d, ls); err != nil {
					yield(nil, err)
					return
				}
			}
			for i := range d.effects {
				d.effects[i].SeriesIn += b.Len()
				d.effects[i].SeriesOut += b.Len()
			}
			if !yield(b, nil) {
				return
			}
		}
	}
	for b, err := range shaping.Compensate(all, sent, checked) {
		if !yield(b, err) || err != nil {
			return
		}
	}
}

// gathered is a series, or a piece of one, under its new label set.
type gathered struct {
	labels labels.Labels
	chunks []backend.Chunk
	was    labels.Labels
	series int32 // pieces of one series have the same number
	piece  int32 // and come in order of this one, which is different for all
}

// runSeries is how many series are taken through the chain at a time at least, if
// their order has to be made anew anyway: a call of a filter costs the same for few.
const runSeries = 1024

// inward is the request for a store behind filters that change label sets: what is
// about labels of the result is not sent.
func inward(req backend.SeriesRequest) *backend.SeriesRequest {
	req.Limit, req.Shard, req.WithoutReplicaLabels = 0, nil, nil
	req.Hints = backend.Hints{StepMillis: req.Hints.StepMillis, RangeMillis: req.Hints.RangeMillis}
	return &req
}

// collector takes the store's series through the chain.
type collector struct {
	w       *wrapped
	d       *descent
	r       *runner
	replica []string

	last     labels.Labels // of the store, the last series that came
	begun    bool
	sets     []labels.Labels // distinct ones that wait for a run
	pieces   []backend.Series
	pieceOf  []int // place in sets; -1: a further piece of the series of the run before
	previous gathered
	kept     bool // previous was
	series   int32
	piece    int32
	out      []gathered

	held int    // bytes that are charged
	left amount // out, and not charged yet
	read bool   // everything is charged as it is read
}

type amount struct{ series, samples, bytes int }

func (g *collector) nextPiece() int32 {
	g.piece++
	return g.piece
}

func (w *wrapped) newCollector(ctx context.Context, d *descent, replicaLabels []string) *collector {
	g := &collector{w: w, d: d, r: w.c.newRunner(ctx, d), replica: w.c.replica}
	if len(replicaLabels) > 0 {
		names := slices.Concat(replicaLabels, g.replica)
		for _, l := range w.c.links {
			names = inwardNames(l.ops, names)
		}
		g.replica = names
	}
	return g
}

// take adds a batch of the store. The store's order is of no use but to know the
// pieces of a series, and a series that comes twice is found where equal ones meet.
func (g *collector) take(b *backend.Batch) error {
	for i := range b.Len() {
		s := b.At(i)
		if !g.begun || !labels.Equal(s.Labels, g.last) {
			if err := g.w.protect(g.d, s.Labels); err != nil {
				return err
			}
			g.sets = append(g.sets, s.Labels)
		}
		g.last, g.begun = s.Labels, true
		g.pieces = append(g.pieces, s)
		g.pieceOf = append(g.pieceOf, len(g.sets)-1)
	}
	return nil
}

// leaveOut notes a piece that nobody gets to see. It counts all the same: it was read.
func (g *collector) leaveOut(piece int) {
	o := &g.w.c.o
	if o.Charge == nil && o.Release == nil {
		return
	}
	s := &g.pieces[piece]
	g.left.series++
	g.left.bytes += s.Size()
	for _, c := range s.Chunks {
		g.left.samples += samples.Count(c)
	}
}

// settle charges what was left out.
func (g *collector) settle() error {
	left := g.left
	g.left = amount{}
	g.release(left.bytes)
	if g.w.c.o.Charge == nil || left.series == 0 || g.read {
		return nil
	}
	return g.w.c.o.Charge(g.r.ctx, left.series, left.samples, 0)
}

// hold charges a batch that is about to be gathered.
func (g *collector) hold(bytes int) error {
	if g.w.c.o.Charge == nil {
		return nil
	}
	g.held += bytes
	return g.w.c.o.Charge(g.r.ctx, 0, 0, bytes)
}

// release takes back what was charged.
func (g *collector) release(bytes int) {
	if bytes = min(bytes, g.held); bytes <= 0 {
		return
	}
	g.held -= bytes
	if g.w.c.o.Release != nil {
		g.w.c.o.Release(g.r.ctx, bytes)
	}
}

// run takes what has come through the chain, and appends what is left of it to out.
func (g *collector) run() error {
	piece := 0
	for ; piece < len(g.pieces) && g.pieceOf[piece] < 0; piece++ {
		if g.kept {
			p := g.previous
			p.chunks, p.piece = g.pieces[piece].Chunks, g.nextPiece()
			g.out = append(g.out, p)
		} else {
			g.leaveOut(piece)
		}
	}
	for from := 0; from < len(g.sets); from += runSeries {
		sets := g.sets[from:min(from+runSeries, len(g.sets))]
		if err := g.r.run(sets); err != nil {
			return err
		}
		g.kept = false
		if cap(g.out)-len(g.out) < len(g.pieces) {
			g.out = slices.Grow(g.out, max(len(g.pieces), len(g.out)))
		}
		err := g.r.each(func(src int, ls labels.Labels) {
			for ; piece < len(g.pieces) && g.pieceOf[piece] < from+src; piece++ {
				g.leaveOut(piece)
			}
			g.series++
			for ; piece < len(g.pieces) && g.pieceOf[piece] == from+src; piece++ {
				g.out = append(g.out, gathered{ls, g.pieces[piece].Chunks, sets[src], g.series, g.nextPiece()})
			}
			if from+src == len(g.sets)-1 {
				g.kept, g.previous = true, gathered{labels: ls, was: sets[src], series: g.series}
			}
		})
		if err != nil {
			return err
		}
		for ; piece < len(g.pieces) && g.pieceOf[piece] < from+len(sets); piece++ {
			g.leaveOut(piece)
		}
	}
	if err := g.settle(); err != nil {
		return err
	}
	clear(g.pieces)
	clear(g.sets)
	g.sets, g.pieces, g.pieceOf = g.sets[:0], g.pieces[:0], g.pieceOf[:0]
	return nil
}

// gather takes all that the store sends through the chain, and brings it into the
// order of the new label sets. If no link writes any label the order is right already,
// and nothing is kept back.
func (w *wrapped) gather(ctx context.Context, d *descent, req *backend.SeriesRequest, yield func(*backend.Batch, error) bool) {
	g := w.newCollector(ctx, d, req.WithoutReplicaLabels)
	defer func() { g.release(g.held) }()
	o := emitter{yield: yield, size: req.BatchSize}
	var failed error
	for b, err := range w.b.Series(ctx, inward(*req)) {
		if failed = err; err != nil {
			break
		}
		g.r.notices = append(g.r.notices, b.Notices()...)
		if !w.c.inOrder {
			if err := g.hold(b.Bytes()); err != nil {
				yield(nil, err)
				return
			}
		}
		if err := g.take(b); err != nil {
			yield(nil, err)
			return
		}
		if w.c.inOrder || len(g.pieces) >= runSeries {
			if err := g.run(); err != nil {
				yield(nil, err)
				return
			}
		}
		if !o.notify(g) || w.c.inOrder && !o.emit(ctx, g) {
			return
		}
	}
	if err := g.run(); err != nil {
		yield(nil, err)
		return
	}
	if !o.notify(g) {
		return
	}
	if !w.c.inOrder {
		g.sort()
	}
	if o.emit(ctx, g) && o.flush(g) && failed != nil {
		yield(nil, failed)
	}
}

// sort brings what was gathered into the order of the new label sets. Places are
// sorted, and what they stand for is moved once.
func (g *collector) sort() {
	less := func(a, b *gathered) int {
		return cmp.Or(labels.Compare(a.labels, b.labels), cmp.Compare(a.piece, b.piece))
	}
	sorted := true
	for i := 1; i < len(g.out) && sorted; i++ {
		sorted = less(&g.out[i-1], &g.out[i]) < 0
	}
	if sorted {
		return
	}
	places := make([]int32, len(g.out))
	for i := range places {
		places[i] = int32(i)
	}
	slices.SortFunc(places, func(a, b int32) int { return less(&g.out[a], &g.out[b]) })
	out := make([]gathered, len(places))
	for i, p := range places {
		out[i] = g.out[p]
	}
	g.out = out
}

// emitter puts what a collector has into batches.
type emitter struct {
	yield func(*backend.Batch, error) bool
	size  int
	batch *backend.Batch
}

func (o *emitter) notify(g *collector) bool {
	ns := g.r.notices
	g.r.notices = nil
	return len(ns) == 0 || o.yield(backend.NewNotices(ns...), nil)
}

const (
	batchSeries = 1024
	batchBytes  = 1 << 20
)

func (o *emitter) flush(g *collector) bool {
	b := o.batch
	if o.batch = nil; b == nil {
		return true
	}
	g.release(b.Bytes())
	return o.yield(b, nil)
}

// emit yields what is in order in g.out, one series for those that are one.
func (o *emitter) emit(ctx context.Context, g *collector) bool {
	size := o.size
	if size <= 0 {
		size = batchSeries
	}
	for i := 0; i < len(g.out); {
		x := &g.out[i]
		j, bytes, mixed := i+1, 0, false
		for ; j < len(g.out) && labels.Equal(g.out[j].labels, x.labels); j++ {
			if y := &g.out[j]; y.series != g.out[j-1].series {
				if err := g.w.mayMerge(ctx, g.out[j-1].was, y.was, y.labels, g.replica); err != nil {
					o.batch = nil
					o.yield(nil, err)
					return false
				}
				mixed = true
			}
		}
		s := backend.Series{Labels: x.labels, Chunks: x.chunks}
		if j > i+1 {
			// Pieces of one series come in order, and small enough; those of several are
			// brought into order (rule S-8), and then belong together.
			n := 0
			for k := i; k < j; k++ {
				n += len(g.out[k].chunks)
			}
			s.Chunks = make([]backend.Chunk, 0, n)
			k := i
			for ; k < j && (mixed || bytes < batchBytes); k++ {
				for c := range g.out[k].chunks {
					bytes += g.out[k].chunks[c].Size()
				}
				s.Chunks = append(s.Chunks, g.out[k].chunks...)
			}
			j = k
			if mixed {
				slices.SortStableFunc(s.Chunks, func(a, b backend.Chunk) int {
					return cmp.Or(cmp.Compare(a.MinTime, b.MinTime), cmp.Compare(a.MaxTime, b.MaxTime))
				})
			}
			if n == 0 {
				s.Chunks = nil
			}
		}
		if o.batch == nil {
			o.batch = backend.NewBatch(min(size, len(g.out)))
		}
		o.batch.Append(s)
		clear(g.out[i:j]) // the receiver may be done with it long before the end
		i = j
		if (o.batch.Len() >= size || o.batch.Bytes() >= batchBytes) && !o.flush(g) {
			g.out = nil
			return false
		}
	}
	g.out = g.out[:0]
	return !g.w.c.inOrder || o.flush(g)
}

// mayMerge says whether two series that have become equal are one.
func (w *wrapped) mayMerge(ctx context.Context, a, b, out labels.Labels, replica []string) error {
	if labels.Equal(a, b) {
		return brokenRule(w.name(), "S-2", "series %s came again after another one", a)
	}
	if len(replica) > 0 && labels.Equal(a.MatchLabels(false, replica...), b.MatchLabels(false, replica...)) {
		return nil
	}
	merging, writing := 0, 0
	for _, l := range w.c.links {
		if l.changes {
			writing++
			if l.plan.Merge {
				merging++
			}
		}
	}
	if merging == writing {
		return nil
	}
	by := ""
	if writing == 1 || merging > 0 {
		i, err := w.c.equalAt(ctx, a, b)
		if err != nil {
			return err
		}
		if i >= 0 {
			if w.c.links[i].plan.Merge {
				return nil
			}
			by = fmt.Sprintf(" behind filter %q", w.c.links[i].Name)
		}
	}
	return backend.Errorf(backend.ErrInternal, "backend %s: series %s and %s both become %s%s: keep a label that tells them apart, or let the filter declare that it merges series", w.name(), a, b, out, by)
}

// through sends one selection of label sets through the chain and calls f with what
// comes out, in no order.
func (w *wrapped) through(ctx context.Context, d *descent, minTime, maxTime int64, partial bool, f func(ls labels.Labels)) ([]backend.Notice, error) {
	g := w.newCollector(ctx, d, nil)
	g.read = true
	req := &backend.SeriesRequest{MinTime: minTime, MaxTime: maxTime, Matchers: d.sent, SkipChunks: true, PartialAllowed: partial}
	hand := func() error {
		err := g.run()
		for i := range g.out {
			f(g.out[i].labels)
		}
		clear(g.out)
		g.out = g.out[:0]
		return err
	}
	if d.everything {
		g.r.notices = append(g.r.notices, backend.Notice{Text: everythingText})
	}
	for b, err := range w.b.Series(ctx, req) {
		if err != nil {
			return g.r.notices, err
		}
		g.r.notices = append(g.r.notices, b.Notices()...)
		if w.c.o.Charge != nil {
			if err := w.c.o.Charge(ctx, b.Len(), 0, 0); err != nil {
				return g.r.notices, err
			}
		}
		if err := g.take(b); err != nil {
			return g.r.notices, err
		}
		if len(g.pieces) >= runSeries {
			if err := hand(); err != nil {
				return g.r.notices, err
			}
		}
	}
	return g.r.notices, hand()
}

// LabelNames implements backend.Backend.
func (w *wrapped) LabelNames(ctx context.Context, req *backend.LabelNamesRequest) (*backend.Labels, error) {
	if req.MinTime > req.MaxTime {
		return &backend.Labels{}, nil
	}
	d, err := w.c.descend(ctx, "label_names", req.Matchers, req.MinTime, req.MaxTime)
	defer w.observe(ctx, d)
	if err != nil || d.none {
		return &backend.Labels{}, err
	}
	sent := *req
	sent.Matchers = d.sent
	if w.c.transparent {
		return w.b.LabelNames(ctx, &sent)
	}
	sent.WithoutReplicaLabels, sent.Limit = nil, 0
	if d.exact && w.c.exactNames {
		out, err := w.b.LabelNames(ctx, &sent)
		if err != nil {
			return out, err
		}
		if len(out.Values) == 0 {
			return out, nil
		}
		return &backend.Labels{Values: cutLabels(w.c.outwardNames(out.Values), req.WithoutReplicaLabels, req.Limit), Notices: out.Notices}, nil
	}
	seen := map[string]struct{}{}
	notices, err := w.through(ctx, d, req.MinTime, req.MaxTime, req.PartialAllowed, func(ls labels.Labels) {
		ls.Range(func(l labels.Label) {
			if _, ok := seen[l.Name]; !ok {
				seen[l.Name] = struct{}{}
			}
		})
	})
	if err != nil {
		return nil, err
	}
	return &backend.Labels{Values: cutLabels(keys(seen), req.WithoutReplicaLabels, req.Limit), Notices: notices}, nil
}

func keys(m map[string]struct{}) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

func cutLabels(names, without []string, limit int) []string {
	names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(without, n) })
	return shaping.SortedUnique(names, limit)
}

// outwardNames are the names on series which have these names in the store. It needs exactNames.
func (c *stages) outwardNames(names []string) []string {
	out := make(map[string]struct{}, len(names))
	for _, n := range names {
		out[n] = struct{}{}
	}
	for i := len(c.links) - 1; i >= 0; i-- {
		for _, o := range c.links[i].ops {
			switch {
			case o.rename != nil:
				_, there := out[o.rename.From]
				delete(out, o.rename.From)
				if delete(out, o.rename.To); there {
					out[o.rename.To] = struct{}{}
				}
			case o.set != nil:
				if out[o.set.Name] = struct{}{}; o.set.Value == "" {
					delete(out, o.set.Name)
				}
			case o.drop != nil || o.keep != nil:
				for n := range out {
					if slices.Contains(o.drop, n) || o.keep != nil && !slices.Contains(o.keep, n) {
						delete(out, n)
					}
				}
			}
		}
	}
	return keys(out)
}

// valuesPlan is how the values of a label come of the values of one in the store.
type valuesPlan struct {
	name     string // in the store
	constant bool   // it is the same on all series: value
	value    string
	steps    []valuesStep // from the outermost to the innermost
}

// valuesStep is a mapping, or a filter of tier columns with this one column.
type valuesStep struct {
	mapping *mapping
	link    int
}

// inwardValues finds the plan for a label; ok is false if its values depend on more.
func (c *stages) inwardValues(name string) (p valuesPlan, ok bool) {
	p.name = name
	for i, l := range c.links {
		if l.rewrites && mayWrite(&l.plan, p.name) {
			if l.plan.Tier != filter.TierColumns || len(l.plan.Columns) != 1 || l.plan.Columns[0] != p.name {
				return p, false
			}
			p.steps = append(p.steps, valuesStep{link: i})
		}
		for j := len(l.ops) - 1; j >= 0; j-- {
			o := &l.ops[j]
			switch {
			case o.rename != nil && o.rename.To == p.name:
				p.name = o.rename.From
			case o.rename != nil && o.rename.From == p.name, slices.Contains(o.drop, p.name), o.keep != nil && !slices.Contains(o.keep, p.name):
				p.constant = true
			case o.set != nil && o.set.Name == p.name:
				p.constant, p.value = true, o.set.Value
			case o.mapping != nil && o.mapping.name == p.name:
				if o.mapping.apply("") != "" {
					return p, false // series without the label get one
				}
				p.steps = append(p.steps, valuesStep{mapping: o.mapping})
			}
			if p.constant {
				return p, true
			}
		}
	}
	return p, true
}

// LabelValues implements backend.Backend.
func (w *wrapped) LabelValues(ctx context.Context, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	if req.Name == "" {
		return nil, backend.Errorf(backend.ErrInvalid, "label values: the label name is empty; name a label")
	}
	if req.MinTime > req.MaxTime || slices.Contains(req.WithoutReplicaLabels, req.Name) {
		return &backend.Labels{}, nil
	}
	d, err := w.c.descend(ctx, "label_values", req.Matchers, req.MinTime, req.MaxTime)
	defer w.observe(ctx, d)
	if err != nil || d.none {
		return &backend.Labels{}, err
	}
	sent := *req
	sent.Matchers = d.sent
	if w.c.transparent {
		out, err := w.b.LabelValues(ctx, &sent)
		if err == nil {
			err = w.protectValues(d, req.Name, out.Values)
		}
		return out, err
	}
	sent.WithoutReplicaLabels, sent.Limit = nil, 0
	if p, ok := w.c.inwardValues(req.Name); ok && d.exact {
		out, err := w.valuesBy(ctx, d, &p, &sent)
		if err != nil {
			return nil, err
		}
		out.Values = shaping.SortedUnique(out.Values, req.Limit)
		return out, nil
	}
	seen := map[string]struct{}{}
	notices, err := w.through(ctx, d, req.MinTime, req.MaxTime, req.PartialAllowed, func(ls labels.Labels) {
		v := ls.Get(req.Name)
		if _, ok := seen[v]; !ok {
			seen[v] = struct{}{}
		}
	})
	if err != nil {
		return nil, err
	}
	return &backend.Labels{Values: shaping.SortedUnique(keys(seen), req.Limit), Notices: notices}, nil
}

func (w *wrapped) protectValues(d *descent, name string, values []string) error {
	for _, m := range d.protected {
		if m.Name == name && slices.ContainsFunc(values, func(v string) bool { return !m.Matches(v) }) {
			return brokenRule(w.name(), "L-2", "it returned values of %q that do not match what is enforced: nothing of its answer is used", name)
		}
	}
	return nil
}

// valuesBy asks the store for the values that p says and makes those of it that users see.
func (w *wrapped) valuesBy(ctx context.Context, d *descent, p *valuesPlan, req *backend.LabelValuesRequest) (*backend.Labels, error) {
	out := &backend.Labels{}
	values := []string{p.value}
	if p.constant {
		any, err := w.b.LabelNames(ctx, &backend.LabelNamesRequest{MinTime: req.MinTime, MaxTime: req.MaxTime, Matchers: req.Matchers, Limit: 1, PartialAllowed: req.PartialAllowed})
		if err != nil {
			return nil, err
		}
		if out.Notices = any.Notices; len(any.Values) == 0 {
			return out, nil
		}
	} else {
		sent := *req
		sent.Name = p.name
		got, err := w.b.LabelValues(ctx, &sent)
		if err != nil {
			return nil, err
		}
		if err := w.protectValues(d, p.name, got.Values); err != nil {
			return nil, err
		}
		values, out.Notices = slices.Clone(got.Values), got.Notices
	}
	r := w.c.newRunner(ctx, d)
	if err := w.c.valuesOut(r, p, values); err != nil {
		return nil, err
	}
	out.Values, out.Notices = values, append(slices.Clip(out.Notices), r.notices...)
	return out, nil
}

// valuesOut puts in the place of each value in the store what users see of it, "" if
// that is nothing.
func (c *stages) valuesOut(r *runner, p *valuesPlan, values []string) error {
	for i := len(p.steps) - 1; i >= 0; i-- {
		step := p.steps[i]
		if step.mapping != nil {
			for j, v := range values {
				if v != "" {
					values[j] = step.mapping.apply(v)
				}
			}
			continue
		}
		l := c.links[step.link]
		only := r.schemaOf(l.plan.Columns)
		r.rows = r.rows[:0]
		for j, v := range values {
			if v != "" {
				r.rows = append(r.rows, row{schema: only, vals: []string{v}, src: j})
			}
		}
		if len(r.rows) == 0 || r.links[step.link].off {
			continue
		}
		if err := r.rewrite(l, &r.links[step.link], &r.effects[step.link]); err != nil {
			if err = r.failed(l, &r.links[step.link], err); err != nil {
				return err
			}
		}
		for _, x := range r.rows {
			values[x.src] = ""
			if k, ok := slices.BinarySearch(x.schema.names, l.plan.Columns[0]); ok {
				values[x.src] = x.vals[k]
			}
		}
	}
	return nil
}
