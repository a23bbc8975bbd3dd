// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter

// Opcodes that the rewriter treats by themselves or writes.
const (
	opUnreachable  = 0x00
	opNop          = 0x01
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opElse         = 0x05
	opEnd          = 0x0b
	opBr           = 0x0c
	opBrIf         = 0x0d
	opBrTable      = 0x0e
	opReturn       = 0x0f
	opCall         = 0x10
	opCallIndirect = 0x11
	opDrop         = 0x1a
	opSelect       = 0x1b
	opSelectTyped  = 0x1c
	opLocalGet     = 0x20
	opLocalSet     = 0x21
	opLocalTee     = 0x22
	opGlobalGet    = 0x23
	opGlobalSet    = 0x24
	opTableGet     = 0x25
	opTableSet     = 0x26
	opMemorySize   = 0x3f
	opMemoryGrow   = 0x40
	opI32Const     = 0x41
	opI64Const     = 0x42
	opF32Const     = 0x43
	opF64Const     = 0x44
	opI32GtU       = 0x4b
	opI32GeS       = 0x4e
	opI64GeS       = 0x59
	opI32Add       = 0x6a
	opI32Sub       = 0x6b
	opI64Sub       = 0x7d
	opI64Or        = 0x84
	opI64Shl       = 0x86
	opI64ShrU      = 0x88
	opI64ExtendS   = 0xac
	opI64ExtendU   = 0xad
	opRefNull      = 0xd0
	opRefIsNull    = 0xd1
	opRefFunc      = 0xd2
	opMisc         = 0xfc
	opVector       = 0xfd

	blockEmpty = 0x40

	vecStore   = 0x0b
	vecConst   = 0x0c
	vecShuffle = 0x0d
)

// pushes is what plain instructions, those without immediates, add to the number of operands.
// absent marks the opcodes that are not plain.
const absent = 127

var pushes = func() (t [256]int8) {
	for i := range t {
		t[i] = absent
	}
	set := func(from, to int, d int8) {
		for i := from; i <= to; i++ {
			t[i] = d
		}
	}
	set(opDrop, opDrop, -1)
	set(opSelect, opSelect, -2)
	set(0x45, 0x45, 0) // eqz
	set(0x46, 0x4f, -1)
	set(0x50, 0x50, 0)
	set(0x51, 0x66, -1)
	set(0x67, 0x69, 0) // clz, ctz, popcnt
	set(0x6a, 0x78, -1)
	set(0x79, 0x7b, 0)
	set(0x7c, 0x8a, -1)
	set(0x8b, 0x91, 0) // abs ... sqrt
	set(0x92, 0x98, -1)
	set(0x99, 0x9f, 0)
	set(0xa0, 0xa6, -1)
	set(0xa7, 0xc4, 0) // conversions, sign extension
	set(opRefIsNull, opRefIsNull, 0)
	return t
}()

// alignments is the largest exponent of a load's or store's alignment, by opcode from 0x28 on.
var alignments = [...]byte{2, 3, 2, 3, 0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 2, 3, 2, 3, 0, 1, 0, 1, 2}

// vecAlignments is the same for the first twelve vector instructions.
var vecAlignments = [...]byte{4, 3, 3, 3, 3, 3, 3, 0, 1, 2, 3, 4}

type editKind uint8

// Edits of a function's code.
const (
	// editRegion is where region arg begins.
	editRegion editKind = iota
	// editCall is a call of function arg.
	editCall
	// editIndirect is a call through a table of type arg, copied as it is.
	editIndirect
	// editRefFunc is a reference to function arg.
	editRefFunc
	// editReturn is a return, inside of arg blocks.
	editReturn
	// editBulk is an instruction whose work grows with the number on top of the stack, shifted left by arg - 32.
	editBulk
)

// An edit is a place in a function's code that is not just copied: src[pos:end].
type edit struct {
	pos, end int
	kind     editKind
	arg      uint32
}

// regionKind says whether a region is charged for where it begins.
type regionKind uint8

const (
	// regionPlain may be charged for by a region before it that always comes first.
	regionPlain regionKind = iota
	// regionCheck is charged for where it begins, and whether fuel is spent is asked there.
	regionCheck
	// regionLoop is a regionCheck at the head of a loop.
	regionLoop
)

// A region is code that is entered at its begin only, so that all of it may be paid for there.
type region struct {
	kind regionKind
	// dom is a region that control has passed, since it last passed the innermost
	// loop header around this one, when it gets here. -1 for the function's first.
	dom int32
	// cost in instructions, without what called functions cost.
	cost uint64
	// calls are the functions called in it; indirect says that there are calls through tables.
	calls    []uint32
	indirect bool
	// loop is the innermost loop, as an index of regions; -1 if there is none.
	loop int32
}

// frame is an open block.
type frame struct {
	op       byte
	targeted bool
	live     bool // where the block begins
	thenLive bool
	dom      int32
	loop     int32 // around the block
	serial   uint32
	join     int32 // of a loop, its header
	edges    uint32
	height   int
	params   int
	results  int
}

// scan is a function's code as the first pass sees it.
type scan struct {
	edits   []edit
	regions []region
	frames  []frame

	// What the call graph needs.
	calls    []uint32 // functions called, with repetition
	indirect []uint32 // types called through tables, with repetition
	loops    bool
	bulk     bool
	vectors  bool
	sets     int // assignments to locals
	height   int // of the operand stack, an upper bound
	outArgs  int // most parameters and results of a call

	work work
}

// Costs in fuel. A unit is one instruction; compiled code does some 3,000 to 10,000 of them in a µs, so that
// 65,536 take 5 to 30 µs.
const (
	costCall     = 2
	costImport   = 16 // leaving compiled code
	costIndirect = 4
	costBulk     = 32 // and more by length above smallBulk
	costGrow     = 512
	// smallBulk is how many bytes or elements a bulk instruction's fixed cost covers.
	smallBulk = 1024
	// longRegion is the cost of straight code after which fuel is asked for again.
	longRegion = 8192
)

// function scans the body of function i, which is what decides whether its indices are in range and
// its blocks are well nested. Operand types are the runtime's to check, see Rewrite.
func (m *module) function(i int, s *scan) {
	b := &m.bodies[i-m.importFuncs]
	t := &m.types[m.funcs[i]]
	r := &reader{src: m.src, pos: b.code, end: b.end, fn: i}
	nlocals := len(t.params) + int(b.nlocals)

	*s = scan{edits: s.edits[:0], regions: s.regions[:0], frames: s.frames[:0], calls: s.calls[:0], indirect: s.indirect[:0], work: s.work}
	k := &s.work
	k.reset(len(t.params), int(b.nlocals), len(m.globals))
	var (
		cur    int32 // the region, -1 in code that is never reached
		loop   = int32(-1)
		height int
		loops  int         // open ones
		outer  = int32(-1) // the outermost of them
	)
	begin := func(kind regionKind, dom int32) {
		if kind != regionPlain {
			k.blocks += 3
			k.checks++
		}
		cur = int32(len(s.regions))
		if cap(s.regions) > len(s.regions) {
			s.regions = s.regions[:cur+1]
			s.regions[cur] = region{kind: kind, dom: dom, loop: loop, calls: s.regions[cur].calls[:0]}
		} else {
			s.regions = append(s.regions, region{kind: kind, dom: dom, loop: loop})
		}
		if kind == regionLoop {
			loop = cur
			s.regions[cur].loop = cur
		}
		s.edits = append(s.edits, edit{r.pos, r.pos, editRegion, uint32(cur)})
	}
	cost := func(n uint64) {
		if cur >= 0 {
			s.regions[cur].cost += n
		}
	}
	push := func(n int) {
		height += n
		if height < s.frames[len(s.frames)-1].height {
			height = s.frames[len(s.frames)-1].height // below what is there only in unreachable code
		}
		s.height = max(s.height, height)
	}
	dead := func() {
		cur = -1
		height = s.frames[len(s.frames)-1].height
	}
	label := func(blocks int) {
		l := r.index(len(s.frames), "label")
		f := &s.frames[len(s.frames)-1-int(l)]
		f.targeted = true
		if cur < 0 {
			return
		}
		k.blocks += blocks
		if f.op == opLoop {
			k.joins[f.join].edges++
			k.values += f.params
		} else {
			f.edges++
			k.values += f.results
		}
	}
	memory := func(most byte) {
		if m.memory == nil {
			r.fail("it uses a memory and there is none")
		}
		if a := r.u32(); a > uint32(most) {
			r.fail("alignment 2^%d of an access of at most 2^%d bytes", a, most)
		}
		r.u32()
	}
	memIndex := func() {
		if m.memory == nil {
			r.fail("it uses a memory and there is none")
		}
		if r.byte() != 0 {
			r.pos--
			r.fail("memory %d does not exist", r.src[r.pos])
		}
	}
	bulk := func(at int, fixed uint64, shift int) {
		s.bulk = true
		cost(fixed)
		if cur >= 0 {
			k.blocks += 6 // wazero makes a loop of it, and metering asks for its length and then for fuel
			k.checks += 2
			s.edits = append(s.edits, edit{at, r.pos, editBulk, uint32(shift + 32)})
		}
	}
	local := func(set bool) {
		if l := r.index(nlocals, "local"); cur >= 0 {
			k.mention(l, set, s.frames, loop, outer)
		}
	}
	tables := func() uint32 { return r.index(len(m.tables), "table") }
	global := func() {
		if g := r.index(len(m.globals), "global"); cur >= 0 && m.globals[g].mut {
			k.mentionGlobal(g, i)
		}
	}

	s.frames = append(s.frames, frame{op: opBlock, live: true, dom: 0, loop: -1, serial: k.block(), results: len(t.results)})
	k.values += len(t.params) + len(t.results)
	k.blocks += 6 // and for stack
	begin(regionCheck, -1)

	for len(s.frames) > 0 {
		if cur >= 0 && s.regions[cur].cost >= longRegion {
			begin(regionCheck, cur)
		}
		at := r.pos
		op := r.byte()
		if d := pushes[op]; d != absent {
			push(int(d))
			cost(1)
			continue
		}
		switch op {
		case opUnreachable:
			cost(1)
			dead()
		case opNop:
		case opBlock, opLoop, opIf:
			f := frame{op: op, live: cur >= 0, dom: cur, loop: loop}
			f.params, f.results = m.blockType(r)
			if op == opIf {
				push(-1)
				cost(1)
			}
			f.height = max(height-f.params, s.frames[len(s.frames)-1].height)
			if len(s.frames) >= maxNesting {
				r.fail("blocks are nested more than %d deep", maxNesting)
			}
			f.serial = k.block()
			if cur >= 0 {
				k.values += f.params + f.results
				k.blocks++
				if op != opBlock {
					k.blocks++
				}
			}
			if cur >= 0 && op == opLoop {
				f.join = int32(len(k.joins))
				k.joins = append(k.joins, join{1, uint32(f.params)})
				if loops++; loops == 1 {
					outer = int32(len(k.outer))
					k.outer = append(k.outer, 0)
				}
				k.depth = max(k.depth, loops)
			}
			s.frames = append(s.frames, f)
			if cur >= 0 && op == opLoop {
				s.loops = true
				begin(regionLoop, cur)
			} else if cur >= 0 && op == opIf {
				begin(regionPlain, cur)
			}
		case opElse:
			f := &s.frames[len(s.frames)-1]
			if f.op != opIf {
				r.pos--
				r.fail("else without if")
			}
			f.op = opElse
			f.serial = k.block()
			f.thenLive = cur >= 0
			k.blocks++
			height = f.height
			push(f.params)
			if cur = -1; f.live {
				begin(regionPlain, f.dom)
			}
		case opEnd:
			f := s.frames[len(s.frames)-1]
			s.frames = s.frames[:len(s.frames)-1]
			switch {
			case f.op != opLoop:
				k.joins = append(k.joins, join{f.edges + 2, uint32(f.results)})
			case f.live:
				if loops--; loops == 0 {
					k.outer[outer] = int32(len(k.joins))
					outer = -1
				}
			}
			if len(s.frames) == 0 {
				break
			}
			height = f.height
			push(f.results)
			loop = f.loop
			switch {
			case !f.live:
				cur = -1
			case f.op == opLoop:
				// Only running out of it leads here. What follows is not in the loop.
				if cur >= 0 {
					begin(regionPlain, f.dom)
				}
			case f.op == opBlock && !f.targeted:
			case f.op == opElse && !f.targeted && !f.thenLive && cur < 0:
			default:
				begin(regionPlain, f.dom)
			}
		case opBr:
			label(2)
			cost(1)
			dead()
		case opBrIf:
			label(2)
			push(-1)
			cost(1)
			if cur >= 0 {
				begin(regionPlain, cur)
			}
		case opBrTable:
			for range r.count(1<<24, 1, "labels") {
				label(1)
			}
			label(1)
			cost(2)
			dead()
		case opReturn:
			s.edits = append(s.edits, edit{at, r.pos, editReturn, uint32(len(s.frames) - 1)})
			if cur >= 0 {
				s.frames[0].edges++
				k.blocks += 2
				k.values += len(t.results)
			}
			cost(1)
			dead()
		case opCall:
			f := r.index(len(m.funcs), "function")
			s.edits = append(s.edits, edit{at, r.pos, editCall, f})
			t := &m.types[m.funcs[f]]
			push(-len(t.params))
			push(len(t.results))
			s.outArgs = max(s.outArgs, len(t.params)+len(t.results))
			if cur >= 0 {
				k.values += len(t.params) + len(t.results)
				s.calls = append(s.calls, f)
				s.regions[cur].calls = append(s.regions[cur].calls, f)
				if int(f) < m.importFuncs {
					cost(costImport)
				} else {
					cost(costCall)
				}
			}
		case opCallIndirect:
			i := r.index(len(m.types), "type")
			if tb := tables(); m.tables[tb].ref != typeFunc {
				r.fail("a call through table %d, which holds no functions", tb)
			}
			t := &m.types[i]
			push(-1 - len(t.params))
			push(len(t.results))
			s.outArgs = max(s.outArgs, len(t.params)+len(t.results))
			if cur >= 0 {
				s.edits = append(s.edits, edit{at, r.pos, editIndirect, t.same})
				s.indirect = append(s.indirect, t.same)
				k.values += len(t.params) + len(t.results)
				k.blocks += 3
				k.checks++
				s.regions[cur].indirect = true
				cost(costIndirect)
			}
		case opSelectTyped:
			if r.byte() != 1 {
				r.fail("select of several values is not supported")
			}
			r.valueType()
			push(-2)
			cost(1)
		case opLocalGet:
			local(false)
			push(1)
			cost(1)
		case opLocalSet:
			local(true)
			s.sets++
			push(-1)
			cost(1)
		case opLocalTee:
			local(true)
			s.sets++
			cost(1)
		case opGlobalGet:
			global()
			push(1)
			cost(1)
		case opGlobalSet:
			global()
			push(-1)
			cost(1)
		case opTableGet:
			tables()
			cost(1)
		case opTableSet:
			tables()
			push(-2)
			cost(1)
		case opMemorySize:
			memIndex()
			push(1)
			cost(1)
		case opMemoryGrow:
			memIndex()
			bulk(at, costGrow, 10) // pages, of 1024 × 64 bytes
		case opI32Const:
			r.signed(32)
			push(1)
			cost(1)
		case opI64Const:
			r.signed(64)
			push(1)
			cost(1)
		case opF32Const:
			r.skip(4)
			push(1)
			cost(1)
		case opF64Const:
			r.skip(8)
			push(1)
			cost(1)
		case opRefNull:
			r.refType()
			push(1)
			cost(1)
		case opRefFunc:
			f := r.index(len(m.funcs), "function")
			m.inTables[f] = true
			s.edits = append(s.edits, edit{at, r.pos, editRefFunc, f})
			push(1)
			cost(1)
		case opMisc:
			switch sub := r.u32(); sub {
			case 0, 1, 2, 3, 4, 5, 6, 7: // saturating truncation
				cost(1)
			case 8: // memory.init
				if m.dataCount < 0 {
					r.fail("memory.init without a data count section")
				}
				r.index(m.dataCount, "data segment")
				memIndex()
				push(-3)
				bulk(at, costBulk, -6)
			case 9: // data.drop
				if m.dataCount < 0 {
					r.fail("data.drop without a data count section")
				}
				r.index(m.dataCount, "data segment")
				cost(1)
			case 10: // memory.copy
				memIndex()
				memIndex()
				push(-3)
				bulk(at, costBulk, -6)
			case 11: // memory.fill
				memIndex()
				push(-3)
				bulk(at, costBulk, -6)
			case 12: // table.init
				r.index(len(m.elemTypes), "element segment")
				tables()
				push(-3)
				bulk(at, costBulk, -3)
			case 13: // elem.drop
				r.index(len(m.elemTypes), "element segment")
				cost(1)
			case 14: // table.copy
				tables()
				tables()
				push(-3)
				bulk(at, costBulk, -3)
			case 15: // table.grow
				tables()
				push(-1)
				bulk(at, costGrow, -3)
			case 16: // table.size
				tables()
				push(1)
				cost(1)
			case 17: // table.fill
				tables()
				push(-3)
				bulk(at, costBulk, -3)
			default:
				r.pos = at
				r.fail("instruction 0xfc %d is not supported", sub)
			}
		case opVector:
			s.vectors = true
			m.vector(r, memory, push)
			cost(1)
		default:
			if op >= 0x28 && op <= 0x3e {
				memory(alignments[op-0x28])
				if op >= 0x36 {
					push(-2)
				}
				cost(1)
				continue
			}
			r.pos = at
			r.fail("%s", unsupported(op))
		}
	}
	if r.pos != r.end {
		r.fail("%d bytes of code behind its end", r.end-r.pos)
	}
}

func unsupported(op byte) string {
	const digits = "0123456789abcdef"
	name := "opcode 0x" + string([]byte{digits[op>>4], digits[op&15]})
	switch {
	case op >= 0x06 && op <= 0x0a || op == 0x18 || op == 0x19 || op == 0x1f:
		return name + " (exception handling) is not supported"
	case op == 0x12 || op == 0x13:
		return name + " (tail calls) is not supported"
	case op == 0x14 || op == 0x15 || op >= 0xd3 && op <= 0xd6:
		return name + " (typed function references) is not supported"
	case op == 0xfb:
		return name + " (garbage collection) is not supported"
	case op == 0xfe:
		return name + " (threads) is not supported"
	}
	return name + " is not supported"
}

// blockType reads the type of a block and returns how many parameters and results it has.
func (m *module) blockType(r *reader) (params, results int) {
	switch b := r.byte(); b {
	case blockEmpty:
		return 0, 0
	case typeI32, typeI64, typeF32, typeF64, typeV128, typeFunc, typeExtern:
		return 0, 1
	}
	r.pos--
	i := r.signed(33)
	if i < 0 || i >= int64(len(m.types)) {
		r.fail("block type %d does not exist, there are %d", i, len(m.types))
	}
	t := &m.types[i]
	return len(t.params), len(t.results)
}

// vector reads an instruction of the SIMD proposal behind its prefix. Its number is a LEB128 number, which
// wazero 1.12 reads as one byte: of 0xfd 0x80 0x01 it takes 0x01 for a nop. Both readings agree for
// exactly the shortest encoding of numbers below 256, so others are refused.
func (m *module) vector(r *reader, memory func(byte), push func(int)) {
	sub := r.byte()
	if sub >= 0x80 && r.byte() != 1 {
		r.fail("vector instruction %#x and above are not supported (relaxed SIMD)", 0x100)
	}
	lane := func(n byte) {
		if b := r.byte(); b >= n {
			r.fail("lane %d of %d", b, n)
		}
	}
	switch {
	case sub < vecStore:
		memory(vecAlignments[sub])
	case sub == vecStore:
		memory(vecAlignments[sub])
		push(-2)
	case sub == vecConst:
		r.skip(16)
		push(1)
	case sub == vecShuffle:
		for range 16 {
			lane(32)
		}
		push(-1)
	case sub >= 0x15 && sub <= 0x22: // extract_lane and replace_lane
		lane([...]byte{16, 16, 16, 8, 8, 8, 4, 4, 2, 2, 4, 4, 2, 2}[sub-0x15])
	case sub >= 0x54 && sub <= 0x5b: // load_lane and store_lane
		memory((sub - 0x54) & 3)
		lane(16 >> ((sub - 0x54) & 3))
		push(-1)
	case sub == 0x5c || sub == 0x5d: // load_zero
		memory(sub - 0x5c + 2)
	}
	// The height of the operand stack is an upper bound: binary operations count as unary.
}
