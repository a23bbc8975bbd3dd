// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"encoding/binary"
	"errors"
	"strconv"
	"unicode/utf8"
)

// The limits of a message. An element of a list takes up to 60 times as much memory as
// its encoding, so their number has a limit of its own.
const (
	// MaxMessage is the most bytes that a DecodeX takes.
	MaxMessage  = 16 << 20
	maxElements = 1 << 18
)

// decoder reads messages. What it returns shares no memory with the input. Fields that
// it does not know are skipped; known ones with another type are an error.
type decoder struct {
	message  string
	elements int
	err      error
}

// field is one field of a message.
type field struct {
	d    *decoder
	num  int
	wire int
	// n is the value of a varint, b that of everything with a length.
	n uint64
	b []byte
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = errors.New("decoding " + d.message + ": " + what)
	}
}

// next takes a field off b. It is false at the end and after an error.
func (d *decoder) next(b *[]byte, f *field) bool {
	if d.err != nil || len(*b) == 0 {
		return false
	}
	tag, n := binary.Uvarint(*b)
	if n <= 0 || tag>>3 == 0 || tag>>3 > 1<<29-1 {
		d.fail("a field has no valid tag")
		return false
	}
	rest := (*b)[n:]
	*f = field{d: d, num: int(tag >> 3), wire: int(tag & 7)}
	switch f.wire {
	case wireVarint:
		if f.n, n = binary.Uvarint(rest); n <= 0 {
			d.fail("field " + strconv.Itoa(f.num) + " is cut off")
			return false
		}
		rest = rest[n:]
	case 1, 5:
		size := 8
		if f.wire == 5 {
			size = 4
		}
		if len(rest) < size {
			d.fail("field " + strconv.Itoa(f.num) + " is cut off")
			return false
		}
		rest = rest[size:]
	case wireBytes:
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > uint64(len(rest)-n) {
			d.fail("field " + strconv.Itoa(f.num) + " is longer than what is there")
			return false
		}
		f.b, rest = rest[n:n+int(size)], rest[n+int(size):]
	default:
		// Groups: proto3 has none.
		d.fail("field " + strconv.Itoa(f.num) + " has wire type " + strconv.Itoa(f.wire))
		return false
	}
	*b = rest
	return true
}

func (f *field) is(wire int) bool {
	if f.wire != wire {
		f.d.fail("field " + strconv.Itoa(f.num) + " has wire type " + strconv.Itoa(f.wire) + ", should be " + strconv.Itoa(wire))
	}
	return f.d.err == nil
}

func (f *field) uint() uint64 {
	if !f.is(wireVarint) {
		return 0
	}
	return f.n
}

// uint32 cuts larger numbers, as protobuf demands.
func (f *field) uint32() uint32 { return uint32(f.uint()) }

func (f *field) bool() bool { return f.uint() != 0 }

func (f *field) sint() int64 {
	n := f.uint()
	return int64(n>>1) ^ -int64(n&1)
}

// enum refuses what it does not know: there is no safe guess for a role, a tier or the
// type of a matcher.
func (f *field) enum(limit uint64) uint8 {
	n := f.uint()
	if n > limit {
		f.d.fail("field " + strconv.Itoa(f.num) + " is " + strconv.FormatUint(n, 10) + ", which this version does not know")
		return 0
	}
	return uint8(n)
}

func (f *field) string() string {
	if !f.is(wireBytes) {
		return ""
	}
	if !utf8.Valid(f.b) {
		f.d.fail("field " + strconv.Itoa(f.num) + " is not valid UTF-8")
		return ""
	}
	return string(f.b)
}

func (f *field) bytes() []byte {
	if !f.is(wireBytes) {
		return nil
	}
	return append([]byte(nil), f.b...)
}

// element counts an element of a list.
func (f *field) element() bool {
	if !f.is(wireBytes) {
		return false
	}
	if f.d.elements++; f.d.elements > maxElements {
		f.d.fail("more than " + strconv.Itoa(maxElements) + " elements in lists")
	}
	return f.d.err == nil
}

func addString[S ~string](list *[]S, f *field) {
	if f.element() {
		*list = append(*list, S(f.string()))
	}
}

func addMessage[M any](list *[]M, f *field, fields func(*M, *field)) {
	if f.element() {
		var m M
		message(&m, f, fields)
		*list = append(*list, m)
	}
}

// message reads the fields of a message into m, which may have some already: parts of
// one message may come apart.
func message[M any](m *M, f *field, fields func(*M, *field)) {
	if f.is(wireBytes) {
		readFields(f.d, m, f.b, fields)
	}
}

func readFields[M any](d *decoder, m *M, b []byte, fields func(*M, *field)) {
	var f field
	for d.next(&b, &f) {
		fields(m, &f)
	}
}

func decode[M any](name string, b []byte, m *M, fields func(*M, *field)) error {
	d := decoder{message: name}
	if len(b) > MaxMessage {
		d.fail(strconv.Itoa(len(b)) + " bytes are more than 16 MiB")
	}
	readFields(&d, m, b, fields)
	return d.err
}

// pointer is *p, made if it is nil.
func pointer[M any](p **M) *M {
	if *p == nil {
		*p = new(M)
	}
	return *p
}

// DecodeDescribeRequest returns the minor version of the host.
func DecodeDescribeRequest(b []byte) (minor uint32, err error) {
	err = decode("DescribeRequest", b, &minor, func(minor *uint32, f *field) {
		if f.num == 1 {
			*minor = f.uint32()
		}
	})
	return minor, err
}

// DecodeDescription decodes a Description, which must be that of a filter.
func DecodeDescription(b []byte) (*Description, error) {
	d, kind := &Description{}, uint64(0)
	err := decode("Description", b, d, func(d *Description, f *field) {
		switch f.num {
		case 1:
			d.Name = f.string()
		case 2:
			d.Version = f.string()
		case 3:
			kind = f.uint()
		case 4:
			d.Role = Role(f.enum(uint64(RoleTenancy)))
		case 5:
			d.Minor = f.uint32()
		case 6:
			addString(&d.Features, f)
		case 7:
			addString(&d.Permissions, f)
		case 8:
			d.ConfigSchema = f.string()
		case 9:
			d.Summary = f.string()
		case 10:
			addString(&d.Hooks, f)
		}
	})
	if err == nil && kind != kindFilter {
		err = errors.New("decoding Description: kind is " + strconv.FormatUint(kind, 10) + ", which is not that of a filter, 2")
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

func settingField(s *Setting, f *field) {
	switch f.num {
	case 1:
		s.Path = f.string()
	case 2:
		s.Value = f.string()
	}
}

// DecodeConfigureRequest returns the configuration and the minor version of the host.
func DecodeConfigureRequest(b []byte) (c *Config, minor uint32, err error) {
	c = &Config{}
	err = decode("ConfigureRequest", b, c, func(c *Config, f *field) {
		switch f.num {
		case 1:
			c.Name = f.string()
		case 2:
			c.JSON = f.bytes()
		case 3:
			addMessage(&c.Settings, f, settingField)
		case 4:
			minor = f.uint32()
		}
	})
	if err != nil {
		return nil, 0, err
	}
	return c, minor, nil
}

// DecodeConfigureReply returns the instance and its plan, which does nothing if the
// reply has none.
func DecodeConfigureReply(b []byte) (instance uint64, p *Plan, err error) {
	p = &Plan{}
	err = decode("ConfigureReply", b, p, func(p *Plan, f *field) {
		switch f.num {
		case 1:
			instance = f.uint()
		case 2:
			message(p, f, planField)
		}
	})
	if err != nil {
		return 0, nil, err
	}
	return instance, p, nil
}

// DecodePlan decodes a Plan.
func DecodePlan(b []byte) (*Plan, error) { return decoded("Plan", b, planField) }

// decoded is decode for messages that need nothing else.
func decoded[M any](name string, b []byte, fields func(*M, *field)) (*M, error) {
	m := new(M)
	if err := decode(name, b, m, fields); err != nil {
		return nil, err
	}
	return m, nil
}

func planField(p *Plan, f *field) {
	switch f.num {
	case 1:
		p.Tier = Tier(f.enum(uint64(TierRows)))
	case 2:
		addString(&p.Columns, f)
	case 3:
		addString(&p.Reads, f)
	case 4:
		addString(&p.Writes, f)
	case 5:
		p.WritesAny = f.bool()
	case 6:
		addString(&p.Keeps, f)
	case 7:
		p.Drops = f.bool()
	case 8:
		p.Merge = f.bool()
	case 9:
		addMessage(&p.Operations, f, operationField)
	case 10:
		addString(&p.Hooks, f)
	case 11:
		p.Pure = f.bool()
	}
}

// operationField keeps the last one that is set, as protobuf demands of a oneof.
func operationField(o *Operation, f *field) {
	var was Operation
	was, *o = *o, Operation{}
	switch f.num {
	case 1:
		o.Rename = was.Rename
		message(pointer(&o.Rename), f, renameField)
	case 2:
		o.Drop = names(was.Drop, f)
	case 3:
		o.Keep = names(was.Keep, f)
	case 4:
		o.Set = was.Set
		message(pointer(&o.Set), f, labelField)
	case 5:
		o.Map = was.Map
		message(pointer(&o.Map), f, mapField)
	case 6:
		o.Require = was.Require
		message(pointer(&o.Require), f, matcherField)
	default:
		*o = was
		// An operation that this version does not know cannot be left out: what the
		// filter promises would not hold.
		f.d.fail("operation " + strconv.Itoa(f.num) + " is not known to this version")
	}
}

// names is not nil, even if there are none.
func names(list []string, f *field) []string {
	if list == nil {
		list = []string{}
	}
	message(&list, f, func(list *[]string, f *field) {
		if f.num == 1 {
			addString(list, f)
		}
	})
	return list
}

func renameField(r *Rename, f *field) {
	switch f.num {
	case 1:
		r.From = f.string()
	case 2:
		r.To = f.string()
	}
}

func labelField(l *Label, f *field) {
	switch f.num {
	case 1:
		l.Name = f.string()
	case 2:
		l.Value = f.string()
	}
}

func mapField(m *MapValues, f *field) {
	switch f.num {
	case 1:
		m.Name = f.string()
	case 2:
		addMessage(&m.Values, f, func(p *Pair, f *field) {
			switch f.num {
			case 1:
				p.From = f.string()
			case 2:
				p.To = f.string()
			}
		})
	}
}

func matcherField(m *Matcher, f *field) {
	switch f.num {
	case 1:
		m.Type = MatchType(f.enum(uint64(MatchNotRegexp)))
	case 2:
		m.Name = f.string()
	case 3:
		m.Value = f.string()
	}
}

func matchersField(ms *[]Matcher, f *field) {
	if f.num == 1 {
		addMessage(ms, f, matcherField)
	}
}

func callerField(c *Caller, f *field) {
	switch f.num {
	case 1:
		c.Method = f.string()
	case 2:
		c.Subject = f.string()
	case 3:
		c.Claims = f.bytes()
	case 4:
		addMessage(&c.ClaimSettings, f, settingField)
	case 5:
		addMessage(&c.Headers, f, func(h *Header, f *field) {
			switch f.num {
			case 1:
				h.Name = f.string()
			case 2:
				addString(&h.Values, f)
			}
		})
	}
}

// DecodeRequestCall decodes a RequestCall but for its instance.
func DecodeRequestCall(b []byte) (*RequestCall, error) {
	return decoded("RequestCall", b, func(c *RequestCall, f *field) {
		switch f.num {
		case 2:
			c.Kind = f.string()
		case 3:
			c.Query = f.string()
		case 4:
			addMessage(&c.Selectors, f, matchersField)
		case 5:
			c.Start = f.sint()
		case 6:
			c.End = f.sint()
		case 7:
			c.Step = f.sint()
		case 8:
			message(&c.Caller, f, callerField)
		case 9:
			c.Window = f.sint()
		}
	})
}

// DecodeRequestReply decodes a RequestReply.
func DecodeRequestReply(b []byte) (*RequestReply, error) {
	return decoded("RequestReply", b, func(r *RequestReply, f *field) {
		switch f.num {
		case 1:
			message(pointer(&r.Deny), f, denialField)
		case 2:
			addMessage(&r.Enforce, f, matcherField)
		case 3:
			addString(&r.Tenants, f)
		case 4:
			r.Admin = f.bool()
		case 5:
			r.HasTimeRange = f.bool()
		case 6:
			r.MinTime = f.sint()
		case 7:
			r.MaxTime = f.sint()
		case 8:
			r.MaxSeries = f.uint()
		case 9:
			r.MaxSamples = f.uint()
		case 10:
			r.MaxBytes = f.uint()
		case 11:
			r.Subject = f.string()
		}
	})
}

func denialField(d *Denial, f *field) {
	switch f.num {
	case 1:
		d.Status = f.uint32()
	case 2:
		d.Message = f.string()
	}
}

// DecodeSelectCall decodes a SelectCall but for its instance.
func DecodeSelectCall(b []byte) (*SelectCall, error) {
	return decoded("SelectCall", b, func(c *SelectCall, f *field) {
		switch f.num {
		case 2:
			c.Backend = f.string()
		case 3:
			addMessage(&c.Matchers, f, matcherField)
		case 4:
			c.MinTime = f.sint()
		case 5:
			c.MaxTime = f.sint()
		case 6:
			addString(&c.Tenants, f)
		}
	})
}

// DecodeSelectReply decodes a SelectReply.
func DecodeSelectReply(b []byte) (*SelectReply, error) {
	return decoded("SelectReply", b, func(r *SelectReply, f *field) {
		switch f.num {
		case 1:
			message(pointer(&r.Deny), f, denialField)
		case 2:
			r.None = f.bool()
		case 3:
			addMessage(&r.Require, f, matcherField)
		}
	})
}

// DecodeError decodes an Error.
func DecodeError(b []byte) (kind, text string, err error) {
	err = decode("Error", b, &kind, func(kind *string, f *field) {
		switch f.num {
		case 1:
			*kind = f.string()
		case 2:
			text = f.string()
		}
	})
	return kind, text, err
}
