// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filter

import "encoding/binary"

// The messages of sdk/pluginpb/plugin.proto in protobuf's wire format
// (https://protobuf.dev/programming-guides/encoding/), written by hand so that a WASM
// module does not need a protobuf library, which would be most of its size.
// Every AppendX appends the encoding to b; DecodeX is in wire_decode.go.

const (
	wireVarint = 0
	wireBytes  = 2
	kindFilter = 2
)

func appendTag(b []byte, num, wire int) []byte {
	return binary.AppendUvarint(b, uint64(num)<<3|uint64(wire))
}

// Fields with their zero value are left out, as proto3 does.

func appendUint(b []byte, num int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(appendTag(b, num, wireVarint), v)
}

func appendSint(b []byte, num int, v int64) []byte {
	return appendUint(b, num, uint64(v)<<1^uint64(v>>63))
}

func appendBool(b []byte, num int, v bool) []byte {
	if !v {
		return b
	}
	return append(appendTag(b, num, wireVarint), 1)
}

func appendString(b []byte, num int, s string) []byte {
	if s == "" {
		return b
	}
	return appendElement(b, num, s)
}

// appendElement is appendString for elements of a list, which may be empty.
func appendElement(b []byte, num int, s string) []byte {
	b = binary.AppendUvarint(appendTag(b, num, wireBytes), uint64(len(s)))
	return append(b, s...)
}

func appendBytes(b []byte, num int, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = binary.AppendUvarint(appendTag(b, num, wireBytes), uint64(len(v)))
	return append(b, v...)
}

func appendStrings[S ~string](b []byte, num int, list []S) []byte {
	for _, s := range list {
		b = appendElement(b, num, string(s))
	}
	return b
}

// appendMessage appends a message, even if it is empty, behind its length.
func appendMessage[M any](b []byte, num int, m *M, fields func([]byte, *M) []byte) []byte {
	b = appendTag(b, num, wireBytes)
	begin := len(b)
	b = fields(append(b, 0), m)
	n := len(b) - begin - 1
	if n < 0x80 {
		b[begin] = byte(n)
		return b
	}
	var length [binary.MaxVarintLen64]byte
	size := binary.PutUvarint(length[:], uint64(n))
	b = append(b, length[:size-1]...)
	copy(b[begin+size:], b[begin+1:begin+1+n])
	copy(b[begin:], length[:size])
	return b
}

func appendMessages[M any](b []byte, num int, list []M, fields func([]byte, *M) []byte) []byte {
	for i := range list {
		b = appendMessage(b, num, &list[i], fields)
	}
	return b
}

// AppendDescribeRequest appends a DescribeRequest of a host with a minor version.
func AppendDescribeRequest(b []byte, minor uint32) []byte { return appendUint(b, 1, uint64(minor)) }

// AppendDescription appends a Description of the kind filter.
func AppendDescription(b []byte, d *Description) []byte {
	b = appendString(b, 1, d.Name)
	b = appendString(b, 2, d.Version)
	b = appendUint(b, 3, kindFilter)
	b = appendUint(b, 4, uint64(d.Role))
	b = appendUint(b, 5, uint64(d.Minor))
	b = appendStrings(b, 6, d.Features)
	b = appendStrings(b, 7, d.Permissions)
	b = appendString(b, 8, d.ConfigSchema)
	b = appendString(b, 9, d.Summary)
	return appendStrings(b, 10, d.Hooks)
}

func appendSetting(b []byte, s *Setting) []byte {
	return appendString(appendString(b, 1, s.Path), 2, s.Value)
}

// AppendConfigureRequest appends a ConfigureRequest of a host with a minor version.
func AppendConfigureRequest(b []byte, c *Config, minor uint32) []byte {
	b = appendString(b, 1, c.Name)
	b = appendBytes(b, 2, c.JSON)
	b = appendMessages(b, 3, c.Settings, appendSetting)
	return appendUint(b, 4, uint64(minor))
}

// AppendConfigureReply appends a ConfigureReply of a filter. WASM modules, of which
// each has one instance only, say 1.
func AppendConfigureReply(b []byte, instance uint64, p *Plan) []byte {
	return appendMessage(appendUint(b, 1, instance), 2, p, AppendPlan)
}

// AppendPlan appends a Plan.
func AppendPlan(b []byte, p *Plan) []byte {
	b = appendUint(b, 1, uint64(p.Tier))
	b = appendStrings(b, 2, p.Columns)
	b = appendStrings(b, 3, p.Reads)
	b = appendStrings(b, 4, p.Writes)
	b = appendBool(b, 5, p.WritesAny)
	b = appendStrings(b, 6, p.Keeps)
	b = appendBool(b, 7, p.Drops)
	b = appendBool(b, 8, p.Merge)
	b = appendMessages(b, 9, p.Operations, appendOperation)
	b = appendStrings(b, 10, p.Hooks)
	return appendBool(b, 11, p.Pure)
}

// appendOperation writes the first field that is set. Lists count as set if they are
// not nil: to keep no labels is something else than nothing.
func appendOperation(b []byte, o *Operation) []byte {
	switch {
	case o.Rename != nil:
		return appendMessage(b, 1, o.Rename, appendRename)
	case o.Drop != nil:
		return appendMessage(b, 2, &o.Drop, appendNames)
	case o.Keep != nil:
		return appendMessage(b, 3, &o.Keep, appendNames)
	case o.Set != nil:
		return appendMessage(b, 4, o.Set, appendLabel)
	case o.Map != nil:
		return appendMessage(b, 5, o.Map, appendMapValues)
	case o.Require != nil:
		return appendMessage(b, 6, o.Require, appendMatcher)
	}
	return b
}

func appendRename(b []byte, r *Rename) []byte {
	return appendString(appendString(b, 1, r.From), 2, r.To)
}

func appendNames(b []byte, names *[]string) []byte { return appendStrings(b, 1, *names) }

func appendLabel(b []byte, l *Label) []byte {
	return appendString(appendString(b, 1, l.Name), 2, l.Value)
}

func appendMapValues(b []byte, m *MapValues) []byte {
	return appendMessages(appendString(b, 1, m.Name), 2, m.Values, appendPair)
}

func appendPair(b []byte, p *Pair) []byte {
	return appendString(appendString(b, 1, p.From), 2, p.To)
}

func appendMatcher(b []byte, m *Matcher) []byte {
	b = appendUint(b, 1, uint64(m.Type))
	return appendString(appendString(b, 2, m.Name), 3, m.Value)
}

func appendMatchers(b []byte, ms *[]Matcher) []byte {
	return appendMessages(b, 1, *ms, appendMatcher)
}

func appendCaller(b []byte, c *Caller) []byte {
	b = appendString(b, 1, c.Method)
	b = appendString(b, 2, c.Subject)
	b = appendBytes(b, 3, c.Claims)
	b = appendMessages(b, 4, c.ClaimSettings, appendSetting)
	return appendMessages(b, 5, c.Headers, appendHeader)
}

func appendHeader(b []byte, h *Header) []byte {
	return appendStrings(appendString(b, 1, h.Name), 2, h.Values)
}

// AppendRequestCall appends a RequestCall to the instance 0, which is that of a WASM
// module.
func AppendRequestCall(b []byte, c *RequestCall) []byte {
	b = appendString(b, 2, c.Kind)
	b = appendString(b, 3, c.Query)
	b = appendMessages(b, 4, c.Selectors, appendMatchers)
	b = appendSint(b, 5, c.Start)
	b = appendSint(b, 6, c.End)
	b = appendSint(b, 7, c.Step)
	b = appendMessage(b, 8, &c.Caller, appendCaller)
	return appendSint(b, 9, c.Window)
}

// AppendRequestReply appends a RequestReply; nothing for the zero value.
func AppendRequestReply(b []byte, r *RequestReply) []byte {
	if r.Deny != nil {
		b = appendMessage(b, 1, r.Deny, appendDenial)
	}
	b = appendMessages(b, 2, r.Enforce, appendMatcher)
	b = appendStrings(b, 3, r.Tenants)
	b = appendBool(b, 4, r.Admin)
	b = appendBool(b, 5, r.HasTimeRange)
	b = appendSint(b, 6, r.MinTime)
	b = appendSint(b, 7, r.MaxTime)
	b = appendUint(b, 8, r.MaxSeries)
	b = appendUint(b, 9, r.MaxSamples)
	b = appendUint(b, 10, r.MaxBytes)
	return appendString(b, 11, r.Subject)
}

func appendDenial(b []byte, d *Denial) []byte {
	return appendString(appendUint(b, 1, uint64(d.Status)), 2, d.Message)
}

// AppendSelectCall appends a SelectCall to the instance 0, which is that of a WASM
// module.
func AppendSelectCall(b []byte, c *SelectCall) []byte {
	b = appendString(b, 2, c.Backend)
	b = appendMessages(b, 3, c.Matchers, appendMatcher)
	b = appendSint(b, 4, c.MinTime)
	b = appendSint(b, 5, c.MaxTime)
	return appendStrings(b, 6, c.Tenants)
}

// AppendSelectReply appends a SelectReply; nothing for the zero value.
func AppendSelectReply(b []byte, r *SelectReply) []byte {
	if r.Deny != nil {
		b = appendMessage(b, 1, r.Deny, appendDenial)
	}
	b = appendBool(b, 2, r.None)
	return appendMessages(b, 3, r.Require, appendMatcher)
}

// AppendError appends an Error, which is how a WASM module says that a call failed.
func AppendError(b []byte, kind, message string) []byte {
	return appendString(appendString(b, 1, kind), 2, message)
}
