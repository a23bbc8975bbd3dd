// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter

import (
	"encoding/binary"
	"fmt"
)

// Rewrite checks a module in the binary format and returns it with metering added.
// An error is an *Error, or says that a limit in o makes no sense.
//
// It decodes everything and checks everything that has to do with indices, nesting and sizes, but not the
// types of operands; those the runtime checks when it compiles the result. That is enough, because the result
// has a type error exactly if the original has one: each instruction of the original
// is there, in order, with the same immediates, except that functions defined in the module are
// numbered one higher everywhere (which maps valid numbers to those of the same function, and there
// are no others left); what is inserted takes nothing from the operand stack and leaves nothing there,
// except that the operand of a bulk instruction, an i32 in both, passes through a local; and
// a return becomes a branch out of a block with the function's results. What is added to
// types, locals and globals is behind those of the original, where no index of the original leads.
func Rewrite(src []byte, o Options) (res *Result, err error) {
	defaults := func(n *int, d, most int) {
		if *n == 0 {
			*n = d
		}
		if (*n < 0 || *n > most) && err == nil {
			err = fmt.Errorf("meter: limit %d is not between 0 and %d", *n, most)
		}
	}
	defaults(&o.Bytes, 16<<20, 1<<30)
	defaults(&o.StackBytes, 4<<20, maxStack)
	defaults(&o.TableElements, 1<<17, 1<<27)
	if err != nil {
		return nil, err
	}
	if len(src) > o.Bytes {
		return nil, &Error{Func: -1, What: fmt.Sprintf("it has %d bytes, and at most %d are allowed", len(src), o.Bytes)}
	}
	defer func() {
		if p := recover(); p != nil {
			e, ok := p.(*Error)
			if !ok {
				panic(p)
			}
			res, err = nil, e
		}
	}()

	m := decode(src, &o)
	nfunc := len(m.bodies)
	g := &graph{m: m, nfunc: nfunc, first: make([]int32, 1, nfunc+len(m.types)+1)}
	var s scan
	small := make([]int32, nfunc) // cost of what may be paid for by callers, else -1
	seen := make([]int32, nfunc+len(m.types))
	mutable, total := 0, 0.0
	for _, g := range m.globals {
		if g.mut {
			mutable++
		}
	}
	for i := range nfunc {
		m.function(m.importFuncs+i, &s)
		if total += m.checkWork(m.importFuncs+i, &s, mutable); total > maxModuleWork {
			return nil, &Error{Func: -1, What: fmt.Sprintf("its functions would together take too long to compile (an estimate of %.2g for the first %d of %d, and at most %.2g is allowed)",
				total, i+1, nfunc, float64(maxModuleWork))}
		}
		g.add(i, &s, seen)
		small[i] = -1
		if !s.loops && !s.bulk && len(s.indirect) == 0 {
			cost := uint64(0)
			for j := range s.regions {
				cost += s.regions[j].cost
			}
			if cost <= inlineCost {
				small[i] = int32(cost)
				for _, f := range s.calls {
					if int(f) < m.importFuncs {
						small[i] = -1
					}
				}
			}
		}
	}
	g.types()
	g.decide(func(i int32) (int, bool) {
		cost := int(small[i])
		for _, w := range g.edges[g.first[i]:g.first[i+1]] {
			if int(w) < nfunc {
				cost += int(g.inline[w])
			}
		}
		return cost, small[i] >= 0 && g.frame[i] <= chainCycle
	})

	w := &writer{m: m, g: g, o: &o, blocks: map[uint32]uint32{}}
	return &Result{
		Module:    w.module(&s),
		Imports:   m.imports,
		Exports:   m.exports,
		Memory:    m.memory,
		Start:     m.start >= 0,
		Functions: nfunc,
	}, nil
}

// writer writes the rewritten module.
type writer struct {
	m *module
	g *graph
	o *Options

	// blocks has, by a function's type, the type () → results.
	blocks map[uint32]uint32
	added  []uint32 // the functions' types, in order

	out  []byte
	code []byte // of one function

	// Of the function being written.
	local    bool // fuel is kept in a local
	headed   bool // the function begins with a loop, which pays for what is before it
	fuel     uint32
	scratch  uint32
	points   []int32  // for each region, the region that pays for it
	charges  []uint64 // by region
	borrowed []uint64 // what of charges is for other regions
}

const (
	// ownCost is from what cost on a region is charged for by itself, and
	// borrowCost how much a region is charged for others. The larger, the fewer charges, and the
	// more is charged for code that is skipped.
	ownCost    = 128
	borrowCost = 384
	// headCost is up to what cost code before a loop is paid for by the loop.
	headCost = 8
	// fewCalls is with how many calls a function keeps fuel in a local although all its loops call. 2 was
	// the best of 0, 2, 5, 10 and any number on BenchmarkOverhead, by 0.02 to 0.04, much of which was Go's sum, which
	// varies by as much with where its code lies.
	fewCalls = 2
)

func (w *writer) u32(n uint32) { w.out = binary.AppendUvarint(w.out, uint64(n)) }

func (w *writer) name(s string) {
	w.u32(uint32(len(s)))
	w.out = append(w.out, s...)
}

func appendSigned(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

// shift is the new index of a function.
func (w *writer) shift(f uint32) uint32 {
	if int(f) >= w.m.importFuncs {
		f++
	}
	return f
}

// section writes a section whose content f writes.
func (w *writer) section(id byte, f func()) {
	w.out = append(w.out, id)
	start := len(w.out)
	f()
	var size [5]byte
	n := binary.PutUvarint(size[:], uint64(len(w.out)-start))
	w.out = append(w.out, size[:n]...)
	copy(w.out[start+n:], w.out[start:len(w.out)-n])
	copy(w.out[start:], size[:n])
}

// vector writes a vector of the original with functions renumbered, and more behind it.
func (w *writer) vector(id byte, more uint32) {
	v := &w.m.sections[id]
	w.u32(v.count + more)
	pos := v.start
	for _, r := range v.refs {
		w.out = append(w.out, w.m.src[pos:r.start]...)
		w.u32(w.shift(r.index))
		pos = r.end
	}
	w.out = append(w.out, w.m.src[pos:v.end]...)
}

func (w *writer) module(s *scan) []byte {
	m := w.m
	// Code first, because it says which types are needed.
	w.out = make([]byte, 0, len(m.src)+len(m.src)/4+256)
	w.section(secCode, func() {
		w.u32(uint32(len(m.bodies)))
		for i := range m.bodies {
			w.function(i, s)
		}
	})
	code := w.out
	w.out = make([]byte, 0, len(code)+len(m.src)-(len(m.src)/2)+256)
	w.out = append(w.out, "\x00asm\x01\x00\x00\x00"...)

	w.section(secType, func() {
		w.vector(secType, 1+uint32(len(w.added)))
		w.out = append(w.out, 0x60, 1, typeI32, 0)
		for _, t := range w.added {
			results := m.types[t].results
			w.out = append(w.out, 0x60, 0)
			w.u32(uint32(len(results)))
			w.out = append(w.out, results...)
		}
	})
	w.section(secImport, func() {
		w.vector(secImport, 1)
		w.name(ImportModule)
		w.name(Yield)
		w.out = append(w.out, byte(KindFunc))
		w.u32(uint32(len(m.types)))
	})
	if m.has[secFunction] {
		w.section(secFunction, func() { w.vector(secFunction, 0) })
	}
	if m.has[secTable] {
		w.section(secTable, w.tables)
	}
	if m.has[secMemory] {
		w.section(secMemory, func() { w.vector(secMemory, 0) })
	}
	w.section(secGlobal, func() {
		w.vector(secGlobal, 2)
		w.out = append(w.out, typeI64, 1, opI64Const, 0, opEnd)
		w.out = append(w.out, typeI32, 1, opI32Const)
		w.out = appendSigned(w.out, int64(w.o.StackBytes))
		w.out = append(w.out, opEnd)
	})
	w.section(secExport, func() {
		w.vector(secExport, 2)
		w.name(Fuel)
		w.out = append(w.out, byte(KindGlobal))
		w.u32(uint32(len(m.globals)))
		w.name(Stack)
		w.out = append(w.out, byte(KindGlobal))
		w.u32(uint32(len(m.globals) + 1))
	})
	if m.start >= 0 {
		w.section(secStart, func() { w.u32(w.shift(uint32(m.start))) })
	}
	if m.has[secElement] {
		w.section(secElement, func() { w.vector(secElement, 0) })
	}
	if m.has[secDataCount] {
		w.section(secDataCount, func() { w.u32(uint32(m.dataCount)) })
	}
	if m.has[secCode] {
		w.out = append(w.out, code...)
	}
	if m.has[secData] {
		w.section(secData, func() { w.vector(secData, 0) })
	}
	if m.hasNames {
		w.section(secCustom, w.names)
	}
	return w.out
}

// tables writes tables with a maximum of what they may grow to, which is shared out evenly.
func (w *writer) tables() {
	spare := uint32(w.o.TableElements)
	for _, t := range w.m.tables {
		spare -= t.min
	}
	w.u32(uint32(len(w.m.tables)))
	for _, t := range w.m.tables {
		most := t.min + spare/uint32(len(w.m.tables))
		if t.hasMax {
			most = min(most, t.max)
		}
		w.out = append(w.out, t.ref, 1)
		w.u32(t.min)
		w.u32(most)
	}
}

func (w *writer) names() {
	w.name("name")
	if w.m.moduleName != "" {
		w.section(0, func() { w.name(w.m.moduleName) })
	}
	w.section(1, func() {
		// By index; the first of two names for one function stays.
		byIndex := make([]string, len(w.m.funcs)+1)
		byIndex[w.m.importFuncs] = ImportModule + "." + Yield
		for _, a := range w.m.funcNames {
			if int64(a.index) >= int64(len(w.m.funcs)) {
				continue
			}
			if i := w.shift(a.index); byIndex[i] == "" {
				byIndex[i] = a.name
			}
		}
		n := uint32(0)
		for _, name := range byIndex {
			if name != "" {
				n++
			}
		}
		w.u32(n)
		for i, name := range byIndex {
			if name != "" {
				w.u32(uint32(i))
				w.name(name)
			}
		}
	})
}

// function writes the code of the i-th defined function.
func (w *writer) function(i int, s *scan) {
	m := w.m
	f := m.importFuncs + i
	m.function(f, s)
	b := &m.bodies[i]
	t := &m.types[m.funcs[f]]
	nlocals := uint32(len(t.params)) + b.nlocals
	metered := w.g.inline[i] == 0
	counted := w.g.counts[i]
	w.fuel, w.scratch = nlocals, nlocals+1
	w.local = metered && w.keepsLocal(s)
	w.headed = metered && headed(s)
	if metered {
		w.share(s)
	}

	c := w.code[:0]
	if metered {
		c = binary.AppendUvarint(c, uint64(b.ndecls)+2)
	} else {
		c = binary.AppendUvarint(c, uint64(b.ndecls))
	}
	c = append(c, m.src[b.decls:b.code]...)
	if metered {
		c = append(c, 1, typeI64, 1, typeI32)
	}
	wrapped := metered && (w.local || counted)
	switch {
	case !metered:
	case w.headed:
		if counted {
			c = w.takeStack(c, w.g.weight[i])
		}
		if w.local {
			c = w.loadFuel(c)
		}
	case counted:
		c = w.enter(c, w.charges[0], w.g.weight[i])
	default:
		c = w.charge(c, w.charges[0], true, true)
	}
	if wrapped {
		c = append(c, opBlock)
		switch len(t.results) {
		case 0:
			c = append(c, blockEmpty)
		case 1:
			c = append(c, t.results[0])
		default:
			c = appendSigned(c, int64(w.block(m.funcs[f])))
		}
	}
	pos := b.code
	for _, e := range s.edits {
		c = append(c, m.src[pos:e.pos]...)
		pos = e.end
		switch e.kind {
		case editRegion:
			if r := &s.regions[e.arg]; metered && e.arg > 0 && w.points[e.arg] == int32(e.arg) {
				c = w.charge(c, w.charges[e.arg], r.kind != regionPlain, false)
			}
		case editCall:
			sync := w.local && w.syncs(e.arg)
			if sync {
				c = w.storeFuel(c)
			}
			c = append(c, opCall)
			c = binary.AppendUvarint(c, uint64(w.shift(e.arg)))
			if sync {
				c = w.loadFuel(c)
			}
		case editIndirect:
			counts := w.g.counts[w.g.nfunc+int(e.arg)]
			weight := w.g.weight[w.g.nfunc+int(e.arg)]
			if w.local {
				c = w.storeFuel(c)
			}
			if counts {
				c = w.takeStack(c, weight)
			}
			c = append(c, m.src[e.pos:e.end]...)
			if counts {
				c = w.giveStack(c, weight)
			}
			if w.local {
				c = w.loadFuel(c)
			}
		case editRefFunc:
			c = append(c, opRefFunc)
			c = binary.AppendUvarint(c, uint64(w.shift(e.arg)))
		case editReturn:
			if wrapped {
				c = append(c, opBr)
				c = binary.AppendUvarint(c, uint64(e.arg))
			} else {
				c = append(c, opReturn)
			}
		case editBulk:
			c = w.chargeBulk(c, int(e.arg)-32)
			c = append(c, m.src[e.pos:e.end]...)
		}
	}
	c = append(c, m.src[pos:b.end]...)
	if wrapped {
		if w.local {
			c = w.storeFuel(c)
		}
		if counted {
			c = w.giveStack(c, w.g.weight[i])
		}
		c = append(c, opEnd)
	}
	w.u32(uint32(len(c)))
	w.out = append(w.out, c...)
	w.code = c
}

// block returns the type () → results of a function type.
func (w *writer) block(t uint32) uint32 {
	t = w.m.types[t].same
	n, ok := w.blocks[t]
	if !ok {
		n = uint32(len(w.m.types) + 1 + len(w.added))
		w.blocks[t] = n
		w.added = append(w.added, t)
	}
	return n
}

// syncs tells whether the counter in the global has to be right while function f is called.
func (w *writer) syncs(f uint32) bool {
	return int(f) < w.m.importFuncs || w.g.inline[int(f)-w.m.importFuncs] == 0
}

// keepsLocal tells whether keeping the fuel counter in a local pays: a loop then costs a subtraction and
// a comparison, while in the global it costs a load and a store that wait for each other; but a call that needs the
// counter costs a store and a load more. It does with a loop without such calls, and with few of them.
func (w *writer) keepsLocal(s *scan) bool {
	if !s.loops {
		return false
	}
	sites := len(s.indirect)
	for _, f := range s.calls {
		if w.syncs(f) {
			sites++
		}
	}
	if sites <= fewCalls {
		return true
	}
	called := make(map[int32]bool)
	for i := range s.regions {
		r := &s.regions[i]
		calls := r.indirect
		for _, f := range r.calls {
			calls = calls || w.syncs(f)
		}
		if !calls {
			continue
		}
		for l := r.loop; l >= 0 && !called[l]; {
			called[l] = true
			l = s.regions[s.regions[l].dom].loop
		}
	}
	for i := range s.regions {
		if s.regions[i].kind == regionLoop && !called[int32(i)] {
			return true
		}
	}
	return false
}

// headed tells whether the function's code begins with little else than a loop, which is so for whatever Go's toolchain
// compiles that has branches. What is before the loop is then paid for in every round, and
// nothing is asked where the function begins: its caller's and its loop's checks are on all cycles.
func headed(s *scan) bool {
	if len(s.regions) < 2 || s.regions[1].kind != regionLoop {
		return false // else the loop is what ends the first region
	}
	first := &s.regions[0]
	return first.cost <= headCost && len(first.calls) == 0 && !first.indirect
}

// share decides which regions are paid for where they begin, and which by a region that always comes before.
func (w *writer) share(s *scan) {
	w.points, w.charges, w.borrowed = w.points[:0], w.charges[:0], w.borrowed[:0]
	for i := range s.regions {
		r := &s.regions[i]
		cost := r.cost
		for _, f := range r.calls {
			if d := int(f) - w.m.importFuncs; d >= 0 {
				cost += uint64(w.g.inline[d])
			}
		}
		point := int32(i)
		if w.headed && i == 0 {
			point = 1 // which gets its own element below
			w.points = append(w.points, point)
			w.charges = append(w.charges, 0)
			w.borrowed = append(w.borrowed, 0)
			continue
		}
		if w.headed && i == 1 {
			cost += s.regions[0].cost
		}
		if r.kind == regionPlain && !(w.headed && r.dom == 0) {
			if p := w.points[r.dom]; cost < ownCost && w.borrowed[p]+cost <= borrowCost {
				point = p
			}
		}
		w.points = append(w.points, point)
		w.charges = append(w.charges, 0)
		w.borrowed = append(w.borrowed, 0)
		w.charges[point] += cost
		if point != int32(i) {
			w.borrowed[point] += cost
		}
	}
}

// The instructions below use the globals that are behind those of the original.

func (w *writer) global(c []byte, op byte, which int) []byte {
	c = append(c, op)
	return binary.AppendUvarint(c, uint64(len(w.m.globals)+which))
}

func at(c []byte, op byte, local uint32) []byte {
	c = append(c, op)
	return binary.AppendUvarint(c, uint64(local))
}

func (w *writer) storeFuel(c []byte) []byte {
	return w.global(at(c, opLocalGet, w.fuel), opGlobalSet, 0)
}

func (w *writer) loadFuel(c []byte) []byte {
	return at(w.global(c, opGlobalGet, 0), opLocalSet, w.fuel)
}

func (w *writer) yield(c []byte, reason byte) []byte {
	c = append(c, opI32Const, reason, opCall)
	return binary.AppendUvarint(c, uint64(w.m.importFuncs))
}

// charge takes n from the fuel counter and asks, if check is set, whether that is below 0.
func (w *writer) charge(c []byte, n uint64, check, entry bool) []byte {
	if w.local && !entry {
		c = at(c, opLocalGet, w.fuel)
	} else {
		c = w.global(c, opGlobalGet, 0)
	}
	c = appendSigned(append(c, opI64Const), int64(n))
	return w.subtract(c, check)
}

// subtract ends what charge and chargeBulk begin: the counter and what to take from it are operands.
func (w *writer) subtract(c []byte, check bool) []byte {
	c = append(c, opI64Sub)
	switch {
	case w.local && check:
		c = at(c, opLocalTee, w.fuel)
	case w.local:
		return at(c, opLocalSet, w.fuel)
	case check:
		c = w.global(at(c, opLocalTee, w.fuel), opGlobalSet, 0)
		c = at(c, opLocalGet, w.fuel)
	default:
		return w.global(c, opGlobalSet, 0)
	}
	// What is seldom done is in the else branch: wazero's register allocation takes over, where two
	// branches meet, what the first one has in registers, and a call leaves nothing in registers.
	c = append(c, opI64Const, 0, opI64GeS, opIf, blockEmpty, opElse)
	return append(w.yieldFuel(c), opEnd)
}

func (w *writer) yieldFuel(c []byte) []byte {
	if w.local {
		c = w.storeFuel(c)
	}
	c = w.yield(c, ReasonFuel)
	if w.local {
		c = w.loadFuel(c)
	}
	return c
}

// enter pays for fuel and stack where a function begins, with one question: whether one of the two is below 0.
func (w *writer) enter(c []byte, fuel uint64, stack int32) []byte {
	c = w.global(c, opGlobalGet, 1)
	c = appendSigned(append(c, opI32Const), int64(stack))
	c = w.global(at(append(c, opI32Sub), opLocalTee, w.scratch), opGlobalSet, 1)
	c = w.global(c, opGlobalGet, 0)
	c = append(appendSigned(append(c, opI64Const), int64(fuel)), opI64Sub)
	c = at(c, opLocalTee, w.fuel)
	if !w.local {
		c = at(w.global(c, opGlobalSet, 0), opLocalGet, w.fuel)
	}
	c = append(at(c, opLocalGet, w.scratch), opI64ExtendS, opI64Or)
	c = append(c, opI64Const, 0, opI64GeS, opIf, blockEmpty, opElse)
	c = append(at(c, opLocalGet, w.scratch), opI32Const, 0, opI32GeS, opIf, blockEmpty, opElse)
	c = append(w.yield(c, ReasonStack), opUnreachable, opEnd)
	return append(w.yieldFuel(c), opEnd)
}

// chargeBulk takes what a bulk instruction costs beyond its fixed cost, before it runs. Its length is the operand on top.
func (w *writer) chargeBulk(c []byte, shift int) []byte {
	above, op := int64(smallBulk), byte(opI64ShrU)
	if shift > 0 {
		above, op = 0, opI64Shl
	}
	c = at(c, opLocalTee, w.scratch)
	c = appendSigned(append(c, opI32Const), above)
	c = append(c, opI32GtU, opIf, blockEmpty)
	if w.local {
		c = at(c, opLocalGet, w.fuel)
	} else {
		c = w.global(c, opGlobalGet, 0)
	}
	c = append(at(c, opLocalGet, w.scratch), opI64ExtendU, opI64Const, byte(max(shift, -shift)), op)
	c = append(w.subtract(c, true), opEnd)
	return at(c, opLocalGet, w.scratch)
}

// takeStack pays for stack before a call, or at the begin of a function.
func (w *writer) takeStack(c []byte, n int32) []byte {
	c = w.global(c, opGlobalGet, 1)
	c = appendSigned(append(c, opI32Const), int64(n))
	c = w.global(at(append(c, opI32Sub), opLocalTee, w.scratch), opGlobalSet, 1)
	c = append(at(c, opLocalGet, w.scratch), opI32Const, 0, opI32GeS, opIf, blockEmpty, opElse)
	return append(w.yield(c, ReasonStack), opUnreachable, opEnd)
}

func (w *writer) giveStack(c []byte, n int32) []byte {
	c = w.global(c, opGlobalGet, 1)
	c = appendSigned(append(c, opI32Const), int64(n))
	return w.global(append(c, opI32Add), opGlobalSet, 1)
}
