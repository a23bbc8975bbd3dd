// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filters

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/conformance/report"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// hostRows is how many rows a host puts in the first frames, before it knows how long the
// filter takes for them; mostHostRows how many it puts in one at most.
const (
	hostRows     = 512
	mostHostRows = 2048
)

func tierless(p *probe) string {
	if p.plan.Tier == filter.TierNone {
		return "the plan's tier is none: rewrite is never called"
	}
	return ""
}

func uncalled(p *probe) string {
	if p.plan.Tier == filter.TierNone && !p.hook(filter.HookRequest) && !p.hook(filter.HookSelect) {
		return "with this plan the host does everything and never calls the filter"
	}
	return ""
}

func first(list ...func(*probe) string) func(*probe) string {
	return func(p *probe) string {
		for _, f := range list {
			if why := f(p); why != "" {
				return why
			}
		}
		return ""
	}
}

func impure(p *probe) string {
	if !p.plan.Pure {
		return "the plan does not say pure"
	}
	return ""
}

func hooks() []Requirement {
	must := func(id, rule string, unless func(*probe) string, check func(*probe)) Requirement {
		return Requirement{ID: id, Profile: Hooks, Level: report.Must, Rule: rule, Since: "1.0", unless: unless, check: check}
	}
	return []Requirement{
		must("F-plan.valid", "A plan can be carried out: label names are not empty and valid UTF-8, an operation has one field, a map has no value twice, matchers compile.", nil, (*probe).planValid),
		must("F-frames.ordinary", "A call answers with a valid reply of the plan's tier, and is no fault.", tierless, (*probe).ordinary),
		must("F-frames.odd", "Frames at the borders of the format (empty, empty rows, equal rows, many columns) are frames like others.", tierless, (*probe).odd),
		must("F-plan.writes", "Writes are the labels in which the result may differ: the host refuses a reply that writes another label.", tierless, (*probe).writes),
		must("F-plan.drops", "Rows may be left out only if the plan says Drops.", first(tierless, func(p *probe) string {
			if p.plan.Drops {
				return "the plan says Drops"
			}
			return ""
		}), (*probe).drops),
		must("F-plan.reads", "Reads are the labels that the result depends on: a label in neither Reads nor Writes changes nothing of it.", first(tierless, func(p *probe) string {
			if p.plan.WritesAny && len(p.plan.Keeps) == 0 {
				return "the plan may write every label"
			}
			return ""
		}), (*probe).reads),
		must("F-2.same", "Pure: the same label set always gives the same result.", first(tierless, impure), (*probe).same),
		must("F-2.batches", "The result of Rewrite for a row never depends on the rows beside it.", tierless, (*probe).batches),
		must("F-2.order", "The result of Rewrite for a row does not depend on its place.", tierless, (*probe).order),
		must("F-1.concurrent", "Filters and their instances are safe for concurrent use.", uncalled, (*probe).concurrent),
		must("F-3.time", "A call returns within the host's limit.", uncalled, (*probe).inTime),
		must("F-4.arguments", "Arguments belong to the host: a call does not change them.", uncalled, (*probe).arguments),
		must("F-4.kept", "Arguments are valid during the call only: what the host does to their memory afterwards changes nothing.", uncalled, (*probe).kept),
		must("F-5.instance", "An error fails the request; it never ends the instance.", uncalled, (*probe).instance),
		must("F-idempotent.twice", "Where it is promised, rewriting what was rewritten changes nothing.", func(p *probe) string {
			switch {
			case !p.s.Idempotent:
				return "nobody promises that the filter is idempotent"
			case !p.rewrites():
				return "the plan rewrites no label sets"
			}
			return ""
		}, (*probe).idempotent),
	}
}

func (p *probe) planValid() {
	if p.broken != nil {
		p.fail("plan", "%v", p.broken)
	}
}

func rowsText(sets []labels.Labels) string {
	var lines []string
	for i, ls := range sets {
		if i == 6 {
			lines = append(lines, fmt.Sprintf("and %d more", len(sets)-i))
			break
		}
		lines = append(lines, show(ls))
	}
	return fmt.Sprintf("rewrite of %d rows: %s", len(sets), strings.Join(lines, ", "))
}

// triesAfter is how often to try again: seldom where each time takes the whole limit.
func triesAfter(err error) int {
	if late(err) {
		return 8
	}
	return shrinkTries
}

// shrink leaves out of list what fails does not need, in a bounded number of tries.
func shrink[T any](list []T, tries *int, fails func([]T) bool) []T {
	for size := (len(list) + 1) / 2; size > 0; size /= 2 {
		for at := 0; at < len(list) && *tries > 0; {
			shorter := slices.Concat(list[:at], list[min(at+size, len(list)):])
			*tries--
			if fails(shorter) {
				list = shorter
			} else {
				at += size
			}
		}
	}
	return list
}

// material are label sets behind the operations, and what becomes of each by itself.
type material struct {
	sets []labels.Labels
	want []outcome
	why  error // there are none
}

// singles makes material of those sets that the filter does not refuse, and that give
// the same twice: of an impure filter others say nothing.
func (p *probe) singles(n int) *material {
	m := &material{}
	var refused error
	for _, ls := range p.behind(p.sets(p.random(), n, true)) {
		if p.enough() {
			break
		}
		w, err := p.rewrite([]labels.Labels{ls})
		if err == nil && !p.plan.Pure {
			var again *rewritten
			if again, err = p.rewrite([]labels.Labels{ls}); err == nil && !again.outs[0].equal(w.outs[0]) {
				continue
			}
		}
		switch {
		case p.fault(err):
			p.fail(rowsText([]labels.Labels{ls}), "%v", err)
		case err != nil:
			refused = err
		default:
			m.sets, m.want = append(m.sets, ls), append(m.want, w.outs[0])
		}
	}
	if len(m.sets) == 0 && refused != nil {
		m.why = refused
	}
	return m
}

// stable is singles for a requirement that says nothing without any.
func (p *probe) stable(n int) *material {
	m := p.singles(n)
	if len(m.sets) == 0 && p.res.Outcome == report.Passed {
		p.res.Outcome, p.res.Detail = report.NotApplicable, "no label set gives the same result twice"
		if m.why != nil {
			p.fail("rewrite of single rows", "it refuses every label set, the last with: %v", m.why)
		}
	}
	return m
}

func (p *probe) ordinary() {
	sets := p.behind(p.sets(p.random(), 300, true))
	refused, calls, last := 0, 0, error(nil)
	for _, size := range []int{1, 7, 300} {
		for part := range slices.Chunk(sets[:min(len(sets), 40*size)], size) {
			calls++
			_, err := p.rewrite(part)
			if p.fault(err) {
				tries := triesAfter(err)
				part = shrink(part, &tries, func(l []labels.Labels) bool {
					_, err := p.rewrite(l)
					return p.fault(err)
				})
				_, again := p.rewrite(part)
				if again != nil {
					err = again
				}
				p.fail(rowsText(part), "%v", err)
			} else if err != nil {
				refused, last = refused+1, err
			}
			if p.enough() {
				return
			}
		}
	}
	if refused == calls && calls > 0 {
		p.fail("rewrite", "it refuses each of %d ordinary frames, the last with: %v", calls, last)
	} else if refused > 0 {
		p.res.Detail = fmt.Sprintf("it refuses %d of %d ordinary frames, the last with: %v", refused, calls, last)
	}
}

// oddSets are frames, as rows, at the borders of what is allowed.
func (p *probe) oddSets() map[string][]labels.Labels {
	some := p.behind(p.sets(p.random(), 20, true))
	one := labels.FromStrings("series", "1")
	many := map[string]string{}
	for i := range 400 {
		many[fmt.Sprintf("l%03d", i)] = fmt.Sprint(i % 7)
	}
	out := map[string][]labels.Labels{
		"no rows": nil, "a row without labels": {labels.EmptyLabels()}, "one label": {one}, "equal rows": {one, one},
		"empty and other rows": {labels.EmptyLabels(), labels.EmptyLabels(), one}, "400 columns": {labels.FromMap(many)},
	}
	if len(some) > 0 {
		out["equal rows of many labels"] = []labels.Labels{some[0], some[0], some[0]}
	}
	return out
}

func sortedKeys[V any](m map[string]V) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (p *probe) odd() {
	frames := p.oddSets()
	for _, what := range sortedKeys(frames) {
		if _, err := p.rewrite(frames[what]); p.fault(err) {
			p.fail("rewrite of a frame with "+what, "%v", err)
		}
	}
}

// keepsTo looks for replies against the plan.
func (p *probe) keepsTo(what func(*rewritten) []string, why string) {
	for part := range slices.Chunk(p.behind(p.sets(p.random(), 300, true)), 100) {
		w, err := p.rewrite(part)
		if err != nil {
			continue // for F-frames.ordinary to judge
		}
		if len(what(w)) == 0 {
			continue
		}
		tries := shrinkTries
		part = shrink(part, &tries, func(l []labels.Labels) bool {
			w, err := p.rewrite(l)
			return err == nil && len(what(w)) > 0
		})
		if again, err := p.rewrite(part); err == nil && len(what(again)) > 0 {
			w = again
		}
		p.fail(rowsText(part), "%s: %s", why, strings.Join(what(w)[:min(3, len(what(w)))], "; "))
		return
	}
}

func (p *probe) writes() {
	p.keepsTo(func(w *rewritten) []string { return w.writes }, "against the plan's writes")
}

func (p *probe) drops() {
	p.keepsTo(func(w *rewritten) []string { return w.drops }, "it leaves out, and the plan does not say Drops")
}

func (p *probe) reads() {
	names, _, _ := p.words()
	names = append(names, "zz_unread", "__name__")
	names = slices.DeleteFunc(names, func(n string) bool {
		return p.mayWrite(n) || slices.Contains(p.plan.Reads, n) || slices.Contains(p.plan.Columns, n)
	})
	m := p.stable(60)
	for i, ls := range m.sets {
		var changed []labels.Labels
		var by []string
		for _, n := range names {
			for _, v := range []string{"", "quite another"} {
				changed = append(changed, labels.NewBuilder(ls).Set(n, v).Labels())
				by = append(by, n)
			}
		}
		w, err := p.rewrite(changed)
		if err != nil {
			continue
		}
		for k, got := range w.outs {
			without := func(o outcome) outcome {
				return outcome{o.kept, labels.NewBuilder(o.out).Del(by[k]).Labels()}
			}
			if a, b := without(m.want[i]), without(got); !a.equal(b) {
				// Is it so by itself, too? Otherwise it is for F-2.batches.
				if alone, err := p.rewrite(changed[k : k+1]); err != nil || without(alone.outs[0]).equal(a) {
					continue
				}
				p.failure(report.Failure{
					Request:  fmt.Sprintf("rewrite of %s, and of %s", show(ls), show(changed[k])),
					Message:  fmt.Sprintf("the result depends on the label %q, which is in neither reads nor writes", by[k]),
					Expected: []string{a.String()}, Actual: []string{b.String()},
				})
				break
			}
		}
		if p.enough() {
			return
		}
	}
}

// compare sends rows in one frame and says where that differs from material.
func (p *probe) compare(sets []labels.Labels, want []outcome) (at int, got outcome, err error) {
	w, err := p.rewrite(sets)
	if err != nil {
		return 0, outcome{}, err
	}
	for i := range want {
		if !w.outs[i].equal(want[i]) {
			return i, w.outs[i], nil
		}
	}
	return -1, outcome{}, nil
}

// together compares rows in frames of places with what they are by themselves, and
// fails with the fewest rows that show a difference.
func (p *probe) together(m *material, places []int) {
	pick := func(places []int) (sets []labels.Labels, want []outcome) {
		for _, i := range places {
			sets, want = append(sets, m.sets[i]), append(want, m.want[i])
		}
		return sets, want
	}
	differs := func(places []int) (int, outcome, error) { sets, want := pick(places); return p.compare(sets, want) }
	at, _, err := differs(places)
	if at < 0 && err == nil {
		return
	}
	tries := triesAfter(err)
	shorter := shrink(places, &tries, func(l []int) bool {
		at, _, err := differs(l)
		return at >= 0 || err != nil
	})
	var got outcome
	at, got, err = differs(shorter)
	if at < 0 && err == nil { // it was not the rows: a longer run of calls matters
		if at, got, err = differs(places); at < 0 && err == nil {
			p.fail("the same frame twice", "it gives different results")
			return
		}
		shorter = places
	}
	sets, want := pick(shorter)
	if err != nil {
		p.fail(rowsText(sets), "each row is answered by itself, but together: %v", err)
		return
	}
	p.failure(report.Failure{
		Request:  rowsText(sets),
		Message:  fmt.Sprintf("row %d has another result than in a frame of its own", at),
		Expected: []string{want[at].String()}, Actual: []string{got.String()},
	})
}

func (p *probe) same() {
	m := p.stable(120)
	for round := range 3 {
		for i, ls := range m.sets {
			at, got, err := p.compare([]labels.Labels{ls}, m.want[i:i+1])
			if err != nil {
				p.fail(rowsText([]labels.Labels{ls}), "it was answered once, and in round %d: %v", round+2, err)
			} else if at >= 0 {
				p.failure(report.Failure{
					Request: rowsText([]labels.Labels{ls}), Message: fmt.Sprintf("another result in round %d", round+2),
					Expected: []string{m.want[i].String()}, Actual: []string{got.String()},
				})
			}
			if p.enough() {
				return
			}
		}
	}
}

func (p *probe) batches() {
	m := p.stable(150)
	var all, twice []int
	for i := range m.sets {
		all, twice = append(all, i), append(twice, i, i)
	}
	for _, list := range [][]int{all, twice} {
		for _, size := range []int{2, 7, 64, len(list)} {
			for part := range slices.Chunk(list, max(size, 1)) {
				if p.together(m, part); p.enough() {
					return
				}
			}
		}
	}
}

func (p *probe) order() {
	m := p.stable(150)
	r := p.random()
	for range 8 {
		if places := r.Perm(len(m.sets)); len(places) > 0 {
			p.together(m, places)
		}
		if p.enough() {
			return
		}
	}
}

func (p *probe) concurrent() {
	m := &material{}
	if p.plan.Tier != filter.TierNone {
		m = p.singles(80)
	}
	calls := p.calls()
	want := make([]string, len(calls))
	for i, c := range calls {
		want[i], _ = p.decide(c)
	}
	var (
		mu sync.Mutex
		wg sync.WaitGroup
	)
	fail := func(request, format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		p.fail(request, format, args...)
	}
	for g := range 8 {
		wg.Go(func() {
			for k := range 25 {
				if len(m.sets) > 0 {
					from := (g*31 + k*7) % len(m.sets)
					to := min(from+1+g, len(m.sets))
					at, got, err := p.compare(m.sets[from:to], m.want[from:to])
					switch {
					case err != nil:
						fail(rowsText(m.sets[from:to]), "with 8 calls at the same time: %v", err)
					case at >= 0:
						fail(rowsText(m.sets[from:to]), "with 8 calls at the same time row %d becomes %s, and by itself %s", at, got, m.want[from+at])
					}
				}
				if len(calls) > 0 {
					i := (g*17 + k) % len(calls)
					if got, err := p.decide(calls[i]); p.fault(err) {
						fail(calls[i].String(), "with 8 calls at the same time: %v", err)
					} else if got != want[i] {
						fail(calls[i].String(), "with 8 calls at the same time it says %s, and by itself %s", got, want[i])
					}
				}
			}
		})
	}
	wg.Wait()
}

// inTime gives each call three tries: a busy machine is not the filter's fault.
func (p *probe) inTime() {
	judge := func(what string, call func() (time.Duration, error)) {
		best := time.Duration(1 << 62)
		for range 3 {
			took, err := call()
			if p.fault(err) {
				took = max(took, p.limit)
			}
			if best = min(best, took); best < p.limit || p.ctx.Err() != nil {
				return
			}
		}
		p.fail(what, "it takes %v at best, and the limit is %v", best.Round(time.Millisecond), p.limit)
	}
	if p.plan.Tier != filter.TierNone {
		sets := p.behind(p.sets(p.random(), hostRows, true))
		for _, n := range []int{1, 50, len(sets)} {
			if n > len(sets) || n == 0 {
				continue
			}
			judge(rowsText(sets[:n]), func() (time.Duration, error) {
				w, err := p.rewrite(sets[:n])
				if w == nil {
					return 0, err
				}
				return w.took, err
			})
			if p.enough() {
				return
			}
		}
	}
	for _, c := range p.calls() {
		judge(c.String(), func() (took time.Duration, err error) {
			began := time.Now()
			_, err = p.decide(c)
			return time.Since(began), err
		})
		if p.enough() {
			return
		}
	}
}

func (p *probe) arguments() {
	if p.plan.Tier != filter.TierNone {
		for part := range slices.Chunk(p.behind(p.sets(p.random(), 60, true)), 20) {
			data, err := p.frameOf(part)
			if err != nil {
				p.fail(rowsText(part), "the suite cannot make a frame: %v", err)
				return
			}
			given := slices.Clone(data)
			if _, _, err := p.exchange(given); p.fault(err) {
				continue // it may still be at work, and F-frames.ordinary says so
			}
			if at := firstDifference(given, data); at >= 0 {
				p.fail(rowsText(part), "the frame is changed by the call, at byte %d of %d", at, len(data))
				return
			}
		}
	}
	for _, c := range p.calls() {
		before := c.clone()
		if _, err := p.decide(c); !p.fault(err) && !reflect.DeepEqual(before, c) {
			p.fail(before.String(), "the call's arguments are changed by it: %s", c)
			return
		}
	}
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

func (p *probe) kept() {
	if p.plan.Tier != filter.TierNone {
		m := p.singles(60)
		for round := range 2 {
			for from := 0; from < len(m.sets); from += 10 {
				to := min(from+10, len(m.sets))
				data, err := p.frameOf(m.sets[from:to])
				if err != nil {
					continue
				}
				given := slices.Clone(data)
				if reply, _, err := p.exchange(given); err == nil {
					p.spoilt(given, reply, data)
				}
				at, got, err := p.compare(m.sets[from:to], m.want[from:to])
				if at >= 0 && err == nil {
					p.failure(report.Failure{
						Request:  rowsText(m.sets[from:to]),
						Message:  fmt.Sprintf("row %d has another result, in round %d, after the memory of earlier frames was used for something else", at, round+1),
						Expected: []string{m.want[from+at].String()}, Actual: []string{got.String()},
					})
				} else if err != nil {
					p.fail(rowsText(m.sets[from:to]), "after the memory of earlier frames was used for something else: %v", err)
				}
				if p.enough() {
					return
				}
			}
		}
	}
	for _, c := range p.calls() {
		want, err := p.decide(c.clone())
		if err != nil {
			continue
		}
		given := c.clone()
		if _, err := p.decide(given); err != nil {
			continue
		}
		if given.request != nil {
			for i := range given.request.Caller.Claims {
				given.request.Caller.Claims[i] = 'z'
			}
			for i := range given.request.Caller.Headers {
				clear(given.request.Caller.Headers[i].Values)
			}
		}
		if got, err := p.decide(c.clone()); err != nil || got != want {
			p.fail(c.String(), "after the memory of an earlier call was used for something else it says %s %v, and before %s", got, err, want)
			return
		}
	}
}

// spoilt uses the memory of a frame for something else. A reply that shares it would
// have been copied by every host, so that it is read before.
func (p *probe) spoilt(given, reply, data []byte) {
	var in frame.Frame
	var c frame.Changes
	if in.Parse(data) == nil {
		_ = c.Parse(reply, &in, frame.Tier(p.plan.Tier))
	}
	for i := range given {
		given[i] = 'z'
	}
}

func (p *probe) instance() {
	m := &material{}
	if p.plan.Tier != filter.TierNone {
		m = p.singles(30)
		frames := p.oddSets()
		for _, what := range sortedKeys(frames) {
			_, _ = p.rewrite(frames[what])
		}
	}
	calls := p.calls()
	for _, c := range p.oddCalls() {
		_, _ = p.decide(c)
	}
	for i, ls := range m.sets {
		at, got, err := p.compare([]labels.Labels{ls}, m.want[i:i+1])
		if err != nil {
			p.fail(rowsText([]labels.Labels{ls}), "it was answered, and after odd frames no more: %v", err)
		} else if at >= 0 {
			p.fail(rowsText([]labels.Labels{ls}), "after odd frames it becomes %s, and before %s", got, m.want[i])
		}
		if p.enough() {
			return
		}
	}
	for _, c := range calls {
		if _, err := p.decide(c); p.fault(err) {
			p.fail(c.String(), "after odd calls: %v", err)
		}
	}
}

func (p *probe) idempotent() {
	for _, ls := range p.sets(p.random(), 120, true) {
		once, err := p.of(ls)
		if err != nil || !once.kept {
			continue
		}
		if twice, err := p.of(once.out); err != nil {
			p.fail("f(f("+show(ls)+"))", "f of it is answered, and then: %v", err)
		} else if !twice.equal(once) {
			p.failure(report.Failure{
				Request: "f(f(" + show(ls) + "))", Message: "the second time changes something again",
				Expected: []string{once.String()}, Actual: []string{twice.String()},
			})
		}
		if p.enough() {
			return
		}
	}
}
