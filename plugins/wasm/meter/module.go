// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits on what is decoded, so that a hostile module is refused before anything,
// here or in the runtime, allocates by its numbers. They are far above what compilers
// write: Go's toolchain needs some 10,000 functions for a 6 MiB module.
const (
	maxTypes     = 10_000
	maxFunctions = 200_000
	maxImports   = 1_000
	maxExports   = 10_000
	maxGlobals   = 10_000
	maxTables    = 16
	maxSegments  = 100_000 // what Go's linker keeps to
	maxElements  = 1_000_000
	maxParams    = 1_000
	maxLocals    = 20_000
	maxLocalsSum = 4_000_000
	maxNesting   = 50_000
	maxPages     = 65_536
)

// Section ids of the binary format.
const (
	secCustom = iota
	secType
	secImport
	secFunction
	secTable
	secMemory
	secGlobal
	secExport
	secStart
	secElement
	secCode
	secData
	secDataCount
)

var sectionNames = [...]string{"custom", "type", "import", "function", "table", "memory", "global", "export", "start", "element", "code", "data", "data count"}

// sectionOrder is each section's place among the others.
var sectionOrder = [...]int{secType: 1, secImport: 2, secFunction: 3, secTable: 4, secMemory: 5, secGlobal: 6, secExport: 7, secStart: 8, secElement: 9, secDataCount: 10, secCode: 11, secData: 12}

// Value types of the binary format.
const (
	typeI32    = 0x7f
	typeI64    = 0x7e
	typeF32    = 0x7d
	typeF64    = 0x7c
	typeV128   = 0x7b
	typeFunc   = 0x70
	typeExtern = 0x6f
)

var valueNames = map[byte]string{typeI32: "i32", typeI64: "i64", typeF32: "f32", typeF64: "f64", typeV128: "v128", typeFunc: "funcref", typeExtern: "externref"}

type funcType struct {
	params, results []byte
	// same is the first type equal to this one; indirect calls compare types by what they are.
	same uint32
}

func (t *funcType) String() string {
	var b strings.Builder
	list := func(types []byte) {
		b.WriteByte('(')
		for i, v := range types {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(valueNames[v])
		}
		b.WriteByte(')')
	}
	list(t.params)
	b.WriteString(" -> ")
	list(t.results)
	return b.String()
}

type limits struct {
	min, max uint32
	hasMax   bool
}

func (l limits) String() string {
	s := strconv.FormatUint(uint64(l.min), 10)
	if l.hasMax {
		s += " " + strconv.FormatUint(uint64(l.max), 10)
	}
	return s
}

type table struct {
	ref byte
	limits
}

type global struct {
	value byte
	mut   bool
}

func (g global) String() string {
	if g.mut {
		return "mut " + valueNames[g.value]
	}
	return valueNames[g.value]
}

// A funcRef is a place in the module where a function's index is written.
type funcRef struct {
	start, end int
	index      uint32
}

// vector is a section that is a vector: its count, the bytes after it, and the function indices in those.
type vector struct {
	count      uint32
	start, end int
	refs       []funcRef
}

// body is a function's code.
type body struct {
	// decls is where the vector of local declarations begins behind its count, code where the first
	// instruction is and end is behind the last one.
	ndecls           uint32
	decls, code, end int
	nlocals          uint32 // without parameters
	v128             bool   // among parameters or locals
}

// module is a decoded module. Byte offsets are those of src.
type module struct {
	src   []byte
	types []funcType
	// funcs has each function's type, imported functions first.
	funcs       []uint32
	importFuncs int
	tables      []table
	memory      *Memory
	globals     []global
	importGlob  int
	imports     []Extern
	exports     []Extern
	start       int // -1: none
	elemTypes   []byte
	dataCount   int // -1: none
	data        int
	bodies      []body
	// inTables marks the functions that an indirect call may reach.
	inTables []bool

	sections [secDataCount + 1]vector
	has      [secDataCount + 1]bool

	hasNames   bool
	moduleName string
	funcNames  []nameAssoc
}

type nameAssoc struct {
	index uint32
	name  string
}

// reader reads one section, or part of one. It panics with an *Error, which Rewrite recovers.
type reader struct {
	src  []byte
	pos  int
	end  int
	fn   int
	what string
}

func (r *reader) fail(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	if r.what != "" {
		what = r.what + ": " + what
	}
	panic(&Error{Offset: r.pos, Func: r.fn, What: what})
}

func (r *reader) byte() byte {
	if r.pos >= r.end {
		r.fail("it ends too early")
	}
	b := r.src[r.pos]
	r.pos++
	return b
}

func (r *reader) skip(n int) {
	if n > r.end-r.pos {
		r.fail("it ends too early")
	}
	r.pos += n
}

// u32 reads an unsigned LEB128 number of at most 32 bits.
func (r *reader) u32() uint32 {
	if r.pos < r.end && r.src[r.pos] < 0x80 {
		r.pos++
		return uint32(r.src[r.pos-1])
	}
	var v uint32
	for shift := 0; shift < 35; shift += 7 {
		b := r.byte()
		if shift == 28 && b > 0x0f {
			break
		}
		v |= uint32(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	r.fail("a number has more than 32 bits")
	return 0
}

// signed reads a signed LEB128 number of at most the given bits, which are 32, 33 or 64.
func (r *reader) signed(bits int) int64 {
	var v int64
	for shift := 0; ; shift += 7 {
		b := r.byte()
		v |= int64(b&0x7f) << shift
		if left := bits - shift; left <= 7 {
			// The last byte: what is above the number's bits repeats its sign.
			top := int8(b<<1) >> left // arithmetic; bit left-1 of b is the sign
			if b >= 0x80 || top != 0 && top != -1 {
				r.fail("a number has more than %d bits", bits)
			}
		}
		if b < 0x80 {
			if shift+7 < 64 && b&0x40 != 0 {
				v |= -1 << (shift + 7)
			}
			return v
		}
	}
}

// count reads a vector's length, of which each element takes size bytes or more.
func (r *reader) count(limit uint32, size int, of string) uint32 {
	n := r.u32()
	if n > limit {
		r.fail("%d %s, and at most %d are allowed", n, of, limit)
	}
	if int(n)*size > r.end-r.pos {
		r.fail("%d %s do not fit in what is left of the section", n, of)
	}
	return n
}

func (r *reader) name() string {
	n := r.u32()
	if int64(n) > int64(r.end-r.pos) {
		r.fail("a name is longer than what is left")
	}
	b := r.src[r.pos : r.pos+int(n)]
	if !utf8.Valid(b) {
		r.fail("a name is not UTF-8")
	}
	r.pos += int(n)
	return string(b)
}

func (r *reader) index(n int, of string) uint32 {
	i := r.u32()
	if int64(i) >= int64(n) {
		r.fail("%s %d does not exist, there are %d", of, i, n)
	}
	return i
}

func (r *reader) valueType() byte {
	b := r.byte()
	switch b {
	case typeI32, typeI64, typeF32, typeF64, typeV128, typeFunc, typeExtern:
		return b
	}
	r.pos--
	r.fail("%#x is no value type that is supported", b)
	return 0
}

func (r *reader) refType() byte {
	b := r.byte()
	if b != typeFunc && b != typeExtern {
		r.pos--
		r.fail("%#x is no reference type that is supported", b)
	}
	return b
}

func (r *reader) limits(of string, most uint32) limits {
	var l limits
	flag := r.byte()
	if flag > 1 {
		r.fail("a %s that is shared or has 64-bit addresses is not supported (limits %#x)", of, flag)
	}
	l.min = r.u32()
	if l.min > most {
		r.fail("a %s of at least %d, and at most %d is allowed", of, l.min, most)
	}
	if flag == 1 {
		l.hasMax, l.max = true, r.u32()
		if l.max < l.min {
			r.fail("a %s of at least %d and at most %d", of, l.min, l.max)
		}
	}
	return l
}

func (r *reader) table(o *Options) table {
	t := table{ref: r.refType()}
	t.limits = r.limits("table", uint32(o.TableElements))
	return t
}

func (r *reader) memory(m *module, imported bool) limits {
	l := r.limits("memory", maxPages)
	if l.hasMax && l.max > maxPages {
		r.fail("a memory of up to %d pages, and %d is what 32-bit addresses reach", l.max, maxPages)
	}
	if m.memory != nil {
		r.fail("more than one memory is not supported")
	}
	m.memory = &Memory{Min: l.min, Max: l.max, HasMax: l.hasMax, Imported: imported}
	return l
}

func (r *reader) global() global {
	g := global{value: r.valueType()}
	switch r.byte() {
	case 0:
	case 1:
		g.mut = true
	default:
		r.pos--
		r.fail("%#x is no mutability", r.src[r.pos])
	}
	return g
}

// constant reads a constant expression: one instruction and end.
func (r *reader) constant(m *module, v *vector) {
	switch op := r.byte(); op {
	case opI32Const:
		r.signed(32)
	case opI64Const:
		r.signed(64)
	case opF32Const:
		r.skip(4)
	case opF64Const:
		r.skip(8)
	case opGlobalGet:
		r.index(m.importGlob, "imported global")
	case opRefNull:
		r.refType()
	case opRefFunc:
		r.funcRef(m, v)
	case opVector:
		if r.byte() != vecConst {
			r.fail("a constant expression with another vector instruction than v128.const")
		}
		r.skip(16)
	default:
		r.pos--
		r.fail("opcode %#x is not supported in a constant expression", op)
	}
	if r.byte() != opEnd {
		r.pos--
		r.fail("a constant expression of more than one instruction is not supported")
	}
}

// funcRef reads the index of a function that the expression or segment around it makes reachable by reference.
func (r *reader) funcRef(m *module, v *vector) {
	start := r.pos
	i := r.index(len(m.funcs), "function")
	v.refs = append(v.refs, funcRef{start, r.pos, i})
	m.inTables[i] = true
}

// decode reads all of a module but the code in function bodies.
func decode(src []byte, o *Options) *module {
	m := &module{src: src, start: -1, dataCount: -1}
	r := &reader{src: src, end: len(src), fn: -1}
	if len(src) < 8 || string(src[:4]) != "\x00asm" {
		r.fail("this is no WebAssembly module: it does not begin with \\0asm")
	}
	if string(src[4:8]) != "\x01\x00\x00\x00" {
		r.fail("version % x of the binary format is not supported; a component has to be unpacked to its core module", src[4:8])
	}
	r.pos = 8
	last := 0
	for r.pos < len(src) {
		r.what = ""
		id := r.byte()
		if id > secDataCount {
			r.pos--
			r.fail("section %d is not supported (exception handling and others)", id)
		}
		size := r.u32()
		if int64(size) > int64(len(src)-r.pos) {
			r.fail("the %s section has %d bytes, and %d are left", sectionNames[id], size, len(src)-r.pos)
		}
		s := &reader{src: src, pos: r.pos, end: r.pos + int(size), fn: -1, what: sectionNames[id] + " section"}
		r.pos = s.end
		if id == secCustom {
			if s.name() == "name" {
				m.names(s)
			}
			continue
		}
		if order := sectionOrder[id]; order <= last {
			s.fail("it is there twice or out of order")
		} else {
			last = order
		}
		m.has[id] = true
		m.section(s, int(id), o)
		if s.pos != s.end {
			s.fail("%d bytes too many", s.end-s.pos)
		}
	}
	r.what = ""
	if defined := len(m.funcs) - m.importFuncs; defined != len(m.bodies) {
		r.fail("%d functions are declared and %d have code", defined, len(m.bodies))
	}
	if m.dataCount >= 0 && m.dataCount != m.data {
		r.fail("%d data segments were announced and there are %d", m.dataCount, m.data)
	}
	return m
}

func (m *module) section(r *reader, id int, o *Options) {
	v := &m.sections[id]
	open := func(limit uint32, size int, of string) {
		v.count = r.count(limit, size, of)
		v.start, v.end = r.pos, r.end
	}
	switch id {
	case secType:
		open(maxTypes, 3, "types")
		known := make(map[string]uint32)
		for i := range v.count {
			if b := r.byte(); b != 0x60 {
				r.pos--
				r.fail("type %d is no function (%#x): the GC proposal is not supported", i, b)
			}
			var t funcType
			for _, list := range []*[]byte{&t.params, &t.results} {
				n := r.count(maxParams, 1, "parameters or results")
				from := r.pos
				for range n {
					r.valueType()
				}
				*list = r.src[from:r.pos]
			}
			same, ok := known[t.String()]
			if !ok {
				same = i
				known[t.String()] = i
			}
			t.same = same
			m.types = append(m.types, t)
		}
	case secImport:
		open(maxImports, 4, "imports")
		for range v.count {
			e := Extern{Module: r.name(), Name: r.name(), Kind: Kind(r.byte())}
			if e.Module == ImportModule {
				r.fail("it imports %q from %q, which is reserved for metering", e.Name, e.Module)
			}
			switch e.Kind {
			case KindFunc:
				t := r.index(len(m.types), "type")
				m.funcs = append(m.funcs, t)
				m.importFuncs++
				e.Type = m.types[t].String()
			case KindTable:
				r.fail("it imports a table, %s.%s: what that holds could not be metered", e.Module, e.Name)
			case KindMemory:
				e.Type = r.memory(m, true).String()
			case KindGlobal:
				g := r.global()
				m.globals = append(m.globals, g)
				m.importGlob++
				e.Type = g.String()
			default:
				r.pos--
				r.fail("import %s.%s is of kind %d, which is not supported", e.Module, e.Name, e.Kind)
			}
			m.imports = append(m.imports, e)
		}
		m.inTables = make([]bool, len(m.funcs))
	case secFunction:
		open(maxFunctions, 1, "functions")
		for range v.count {
			m.funcs = append(m.funcs, r.index(len(m.types), "type"))
		}
		m.inTables = make([]bool, len(m.funcs))
	case secTable:
		open(maxTables, 3, "tables")
		sum := 0
		for range v.count {
			t := r.table(o)
			sum += int(t.min)
			m.tables = append(m.tables, t)
		}
		if sum > o.TableElements {
			r.fail("its tables have %d elements together, and at most %d are allowed", sum, o.TableElements)
		}
	case secMemory:
		open(100, 2, "memories")
		for range v.count {
			r.memory(m, false)
		}
	case secGlobal:
		open(maxGlobals, 4, "globals")
		for range v.count {
			g := r.global()
			r.constant(m, v)
			m.globals = append(m.globals, g)
		}
	case secExport:
		open(maxExports, 3, "exports")
		seen := make(map[string]bool, v.count)
		for range v.count {
			e := Extern{Name: r.name(), Kind: Kind(r.byte())}
			if e.Name == Fuel || e.Name == Stack {
				r.fail("it exports %q, which is reserved for metering", e.Name)
			}
			if seen[e.Name] {
				r.fail("it exports %q twice", e.Name)
			}
			seen[e.Name] = true
			switch e.Kind {
			case KindFunc:
				start := r.pos
				i := r.index(len(m.funcs), "function")
				v.refs = append(v.refs, funcRef{start, r.pos, i})
				e.Type = m.types[m.funcs[i]].String()
			case KindTable:
				t := m.tables[r.index(len(m.tables), "table")]
				e.Type = valueNames[t.ref] + " " + t.String()
			case KindMemory:
				n := 0
				if m.memory != nil {
					n = 1
				}
				r.index(n, "memory")
				e.Type = limits{m.memory.Min, m.memory.Max, m.memory.HasMax}.String()
			case KindGlobal:
				e.Type = m.globals[r.index(len(m.globals), "global")].String()
			default:
				r.pos--
				r.fail("export %s is of kind %d, which is not supported", e.Name, e.Kind)
			}
			m.exports = append(m.exports, e)
		}
	case secStart:
		m.start = int(r.index(len(m.funcs), "function"))
		if t := m.types[m.funcs[m.start]]; len(t.params)+len(t.results) > 0 {
			r.fail("the start function is of type %s", t.String())
		}
	case secElement:
		open(maxSegments, 2, "element segments")
		for range v.count {
			m.element(r, v)
		}
	case secDataCount:
		m.dataCount = int(r.count(maxSegments, 0, "data segments"))
	case secCode:
		n := r.count(maxFunctions, 3, "function bodies")
		if int(n) != len(m.funcs)-m.importFuncs {
			r.fail("%d functions are declared and %d have code", len(m.funcs)-m.importFuncs, n)
		}
		m.bodies = make([]body, 0, n)
		total := uint64(0)
		for i := range int(n) {
			r.fn = m.importFuncs + i
			total += uint64(m.body(r).nlocals)
			if total > maxLocalsSum {
				r.fail("more than %d locals in all functions together", maxLocalsSum)
			}
		}
		r.fn = -1
	case secData:
		open(maxSegments, 2, "data segments")
		for range v.count {
			flag := r.u32()
			switch {
			case flag > 2:
				r.fail("data segments of kind %d are not supported", flag)
			case flag == 2 && r.u32() != 0:
				r.fail("a data segment for a second memory")
			}
			if flag != 1 {
				if m.memory == nil {
					r.fail("a data segment without a memory")
				}
				r.constant(m, v)
			}
			n := r.u32()
			if int64(n) > int64(r.end-r.pos) {
				r.fail("a data segment of %d bytes, and %d are left", n, r.end-r.pos)
			}
			r.pos += int(n)
		}
		m.data = int(v.count)
	}
}

// element reads an element segment. Bit 0 of its kind says passive or declarative, bit 1 an
// explicit table or declarative, bit 2 expressions instead of function indices.
func (m *module) element(r *reader, v *vector) {
	kind := r.u32()
	if kind > 7 {
		r.fail("element segments of kind %d are not supported", kind)
	}
	if kind&1 == 0 {
		t := uint32(0)
		if kind&2 != 0 {
			t = r.u32()
		}
		if int64(t) >= int64(len(m.tables)) {
			r.fail("table %d does not exist, there are %d", t, len(m.tables))
		}
		r.constant(m, v)
	}
	ref := byte(typeFunc)
	if kind&3 != 0 {
		if kind&4 != 0 {
			ref = r.refType()
		} else if r.byte() != 0 {
			r.pos--
			r.fail("element kind %#x is not supported", r.src[r.pos])
		}
	}
	m.elemTypes = append(m.elemTypes, ref)
	for range r.count(maxElements, 1, "elements") {
		if kind&4 != 0 {
			r.constant(m, v)
		} else {
			r.funcRef(m, v)
		}
	}
}

// body reads where a function's locals and code are.
func (m *module) body(r *reader) *body {
	size := r.u32()
	if int64(size) > int64(r.end-r.pos) {
		r.fail("its code has %d bytes, and %d are left in the section", size, r.end-r.pos)
	}
	if size > maxBody {
		r.fail("its code has %d bytes, and at most %d are allowed; split it", size, maxBody)
	}
	b := &reader{src: r.src, pos: r.pos, end: r.pos + int(size), fn: r.fn}
	r.pos = b.end
	f := body{end: b.end}
	f.ndecls = b.count(maxLocals, 2, "local declarations")
	f.decls = b.pos
	for range f.ndecls {
		n := b.u32()
		if n > maxLocals-f.nlocals {
			b.fail("more than %d locals", maxLocals)
		}
		f.nlocals += n
		f.v128 = b.valueType() == typeV128 || f.v128
	}
	f.code = b.pos
	m.bodies = append(m.bodies, f)
	return &m.bodies[len(m.bodies)-1]
}

// names reads a name section, of which the names of the module and of functions are kept.
func (m *module) names(r *reader) {
	r.what = "name section"
	if m.hasNames {
		r.fail("it is there twice")
	}
	m.hasNames = true
	pairs := func(r *reader, each func(nameAssoc)) {
		for range r.count(maxFunctions, 2, "names") {
			each(nameAssoc{r.u32(), r.name()})
		}
	}
	for r.pos < r.end {
		id := r.byte()
		size := r.u32()
		if int64(size) > int64(r.end-r.pos) {
			r.fail("part %d has %d bytes, and %d are left", id, size, r.end-r.pos)
		}
		s := &reader{src: r.src, pos: r.pos, end: r.pos + int(size), fn: -1, what: r.what}
		r.pos = s.end
		switch id {
		case 0:
			m.moduleName = s.name()
		case 1:
			if m.funcNames != nil {
				s.fail("the names of functions are there twice")
			}
			pairs(s, func(a nameAssoc) { m.funcNames = append(m.funcNames, a) })
		case 2: // Names of locals are checked, since wazero does, and dropped, since nothing shows them.
			for range s.count(maxFunctions, 2, "functions with named locals") {
				s.u32()
				pairs(s, func(nameAssoc) {})
			}
		default:
			continue
		}
		if s.pos != s.end {
			s.fail("part %d has %d bytes too many", id, s.end-s.pos)
		}
	}
}
