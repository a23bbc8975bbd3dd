// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter

import "fmt"

// Compiling a module must not take much longer than reading it, whatever its author wants. wazero's compiler
// (1.12.0) does not promise that: its time is
//
//   - quadratic in the number of blocks of a function, because for each edge it walks up the dominator tree;
//   - for each edge to a place where control joins, quadratic in the number of variables that are alive there, as many times as
//     loops are nested, because it removes redundant φ values in rounds, each of which looks
//     again at all arguments of a branch for each of them;
//   - and after each call it loads every mutable global again, which takes memory, too, even if nothing uses them.
//
// A few hundred KiB would keep it busy for hours, and chains of a few million blocks overflow the process's stack. So
// what these three come to is estimated, from above, with factors that make it, at its limit, 1 to 20 times
// the nanoseconds that were measured on amd64, by kind of function, and what is too much is refused.
//
// Of what compilers write, the largest comes, in a Go module of 19 MiB with much of the standard library, to 0.5e9 for a function
// of go/types and 13e9 for the module, whose largest function has 61 KiB;
// in C, Rust, Zig and AssemblyScript to 0.06e9 and 0.09e9, in modules of up to 800 KiB.
const (
	maxWork       = 4e9
	maxModuleWork = 32e9
	// maxValues is for values that take few bytes in the module and many while it is compiled.
	maxValues = 2_000_000
	// maxBody is for a function's code: a byte of it can take 700 while it is compiled.
	maxBody = 512 << 10

	workBlocks = 16
	workPhis   = 2
	workValues = 150
)

// variable is a local as the estimate sees it. It is alive from where it is first set to where it
// is last mentioned, if all of that is in the block of the former. Otherwise, from the function's begin.
type variable struct {
	seen   bool
	early  bool   // alive from the function's begin
	depth  int32  // of the block where it is first set
	serial uint32 // of that block
	inner  int32  // the innermost loop there
	first  int32  // joins before it is set
	last   int32  // joins before it is last mentioned
	outer  int32  // outermost loop to the end of which it stays alive, -1 if none
}

// join is where edges of the control flow meet.
type join struct {
	edges  uint32
	values uint32 // parameters or results of the block
}

// work is what the estimate is made of.
type work struct {
	blocks int
	checks int // calls that metering adds
	values int // operands that calls and branches pass
	joins  []join
	vars   []variable
	outer  []int32 // joins before the end of each outermost loop
	depth  int     // of loops
	serial uint32
	// globals are the mutable globals that are mentioned; stamps has, by global, the function that last did.
	globals int
	stamps  []int32
}

func (w *work) reset(params, locals, globals int) {
	n := params + locals
	*w = work{joins: w.joins[:0], vars: w.vars[:0], outer: w.outer[:0], stamps: w.stamps}
	if cap(w.vars) < n {
		w.vars = make([]variable, n)
	}
	w.vars = w.vars[:n]
	clear(w.vars)
	for i := range params {
		w.vars[i] = variable{seen: true, early: true, outer: -1}
	}
	if len(w.stamps) < globals {
		w.stamps = make([]int32, globals)
	}
}

// block numbers a block, or an arm of one.
func (w *work) block() uint32 {
	w.serial++
	return w.serial
}

// mention takes note of a local that is read or, if set, written, in the blocks of frames. inner and outer are the innermost
// and the outermost loop, -1 if there is none.
func (w *work) mention(l uint32, set bool, frames []frame, inner, outer int32) {
	v := &w.vars[l]
	top := int32(len(frames) - 1)
	if !v.seen {
		*v = variable{seen: true, early: !set, depth: top, serial: frames[top].serial, inner: inner, first: int32(len(w.joins))}
	} else if !v.early && (v.depth > top || frames[v.depth].serial != v.serial) {
		v.early = true
	}
	v.last, v.outer = int32(len(w.joins)), -1
	if v.early || inner != v.inner {
		v.outer = outer
	}
}

// mentionGlobal takes note of a global that function i reads or writes.
func (w *work) mentionGlobal(g uint32, i int) {
	if w.stamps[g] != int32(i+1) {
		w.stamps[g] = int32(i + 1)
		w.globals++
	}
}

// estimate is how long compiling the function takes, in about nanoseconds, and how many values it takes.
func (w *work) estimate(calls, mutable int) (total float64, values int) {
	alive := make([]int32, len(w.joins)+1)
	for i := range w.vars {
		v := &w.vars[i]
		if !v.seen {
			continue
		}
		first, last := v.first, v.last
		if v.early {
			first = 0
		}
		if v.outer >= 0 {
			last = w.outer[v.outer]
		}
		alive[first]++
		alive[max(first, last)]--
	}
	const own = 4 // the memory's begin and length, fuel and the spare local
	phis, n := 0.0, int32(0)
	for i, j := range w.joins {
		n += alive[i]
		k := float64(n) + float64(j.values) + float64(w.globals) + own
		phis += float64(j.edges) * k * k
	}
	values = w.values + (calls+w.checks)*(mutable+own)
	blocks := float64(w.blocks)
	return workBlocks*blocks*blocks + workPhis*float64(w.depth+2)*phis + workValues*float64(values), values
}

// checkWork refuses function i of a module with so many mutable globals if it takes too much to compile, and returns the estimate.
func (m *module) checkWork(i int, s *scan, mutable int) float64 {
	total, values := s.work.estimate(len(s.calls)+len(s.indirect), mutable)
	what := ""
	switch {
	case total > maxWork:
		what = fmt.Sprintf("with %d blocks and branches, loops %d deep and %d locals it would take too long to compile (an estimate of %.2g, and at most %.2g is allowed)",
			s.work.blocks, s.work.depth, len(s.work.vars), total, float64(maxWork))
	case values > maxValues:
		what = fmt.Sprintf("its %d calls, with %d mutable globals, and its branches take too much memory to compile (%d values, and at most %d are allowed)",
			len(s.calls)+len(s.indirect), mutable, values, maxValues)
	default:
		return total
	}
	for _, a := range m.funcNames {
		if int(a.index) == i {
			what = fmt.Sprintf("%q: %s", a.name, what)
			break
		}
	}
	panic(&Error{Offset: m.bodies[i-m.importFuncs].code, Func: i, What: what + "; split it"})
}
