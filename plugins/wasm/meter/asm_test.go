// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meter_test

import "encoding/binary"

// A small assembler: modules are put together from sections, sections from bytes.

const (
	i32 = 0x7f
	i64 = 0x7e
)

// raw joins bytes: a number below 256 is itself, a u an unsigned LEB128 number, an s a signed one.
type (
	u uint32
	s int64
)

func raw(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = append(b, byte(p))
		case []byte:
			b = append(b, p...)
		case string:
			b = binary.AppendUvarint(b, uint64(len(p)))
			b = append(b, p...)
		case u:
			b = binary.AppendUvarint(b, uint64(p))
		case s:
			for v := int64(p); ; v >>= 7 {
				if v >= -64 && v < 64 {
					b = append(b, byte(v&0x7f))
					break
				}
				b = append(b, byte(v&0x7f)|0x80)
			}
		default:
			panic(p)
		}
	}
	return b
}

// vec is a vector of what is given.
func vec(items ...[]byte) []byte {
	b := raw(u(len(items)))
	for _, i := range items {
		b = append(b, i...)
	}
	return b
}

// sec is a section.
func sec(id int, content []byte) []byte { return raw(id, u(len(content)), content) }

// module is a module of sections.
func module(sections ...[]byte) []byte {
	b := []byte("\x00asm\x01\x00\x00\x00")
	for _, s := range sections {
		b = append(b, s...)
	}
	return b
}

// ft is a function type.
func ft(params, results []byte) []byte {
	return raw(0x60, u(len(params)), params, u(len(results)), results)
}

// fn is a body with locals, pairs of a count and a type, and code without its last end.
func fn(locals []byte, code ...any) []byte {
	b := raw(u(len(locals)/2), locals, raw(code...), 0x0b)
	return raw(u(len(b)), b)
}

// export of a function.
func export(name string, kind, index int) []byte { return raw(name, kind, u(index)) }

// one is a module with a single function that is exported as "f", of the type, and one page of memory, at most 16,
// and a table of ten functions of which all but the first are missing.
func one(typ, body []byte) []byte {
	return module(
		sec(1, vec(typ)),
		sec(3, vec(raw(0))),
		sec(4, vec(raw(0x70, 0, 10))),
		sec(5, vec(raw(1, 1, 16))),
		sec(7, vec(export("f", 0, 0), export("memory", 2, 0))),
		sec(9, vec(raw(0, 0x41, 0, 0x0b, vec(raw(0))))),
		sec(10, vec(body)),
	)
}
