// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package pbtest checks generated messages of the store APIs against the
// reference implementation of protobuf.
package pbtest

import (
	"bytes"
	"fmt"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// VTMessage is what the generator makes of every message.
type VTMessage interface {
	proto.Message
	SizeVT() int
	MarshalVTStrict() ([]byte, error)
	UnmarshalVT([]byte) error
	UnmarshalVTUnsafe([]byte) error
}

// Messages calls fn for every message type declared in the file.
func Messages(t *testing.T, file protoreflect.FileDescriptor, fn func(t *testing.T, mt protoreflect.MessageType)) {
	t.Helper()
	msgs := file.Messages()
	for i := range msgs.Len() {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(msgs.Get(i).FullName())
		if err != nil {
			t.Fatal(err)
		}
		t.Run(string(mt.Descriptor().Name()), func(t *testing.T) { fn(t, mt) })
	}
}

// RoundTrip fills every field of the message type and checks that both
// implementations read what the other one wrote. Of a oneof only one field can
// be set, so it is done once for each.
func RoundTrip(t *testing.T, mt protoreflect.MessageType) {
	for variant := range Variants(mt) {
		t.Run(fmt.Sprint(variant), func(t *testing.T) {
			m := Filled(mt, variant)
			vt, ok := m.(VTMessage)
			if !ok {
				t.Fatalf("%T lacks generated methods", m)
			}
			ours, err := vt.MarshalVTStrict()
			if err != nil {
				t.Fatal(err)
			}
			if len(ours) != vt.SizeVT() || len(ours) != proto.Size(m) {
				t.Fatalf("%d bytes, SizeVT %d, proto.Size %d", len(ours), vt.SizeVT(), proto.Size(m))
			}
			theirs, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}

			got := mt.New().Interface()
			if err := proto.Unmarshal(ours, got); err != nil {
				t.Fatal(err)
			}
			equal(t, "reference implementation", m, got)

			got = mt.New().Interface()
			if err := got.(VTMessage).UnmarshalVT(theirs); err != nil {
				t.Fatal(err)
			}
			equal(t, "UnmarshalVT", m, got)

			got = mt.New().Interface()
			if err := got.(VTMessage).UnmarshalVTUnsafe(bytes.Clone(theirs)); err != nil {
				t.Fatal(err)
			}
			equal(t, "UnmarshalVTUnsafe", m, got)

			c, ok := m.(interface{ CloneMessageVT() proto.Message })
			if !ok {
				t.Fatalf("%T has no CloneMessageVT", m)
			}
			clone := c.CloneMessageVT()
			equal(t, "clone", m, clone)
			e, ok := m.(interface{ EqualMessageVT(proto.Message) bool })
			if !ok {
				t.Fatalf("%T has no EqualMessageVT", m)
			}
			if !e.EqualMessageVT(clone) {
				t.Error("EqualVT does not find the clone equal")
			}
		})
	}
}

func equal(t *testing.T, what string, want, got proto.Message) {
	t.Helper()
	if !proto.Equal(want, got) {
		t.Errorf("%s:\nwant %v\ngot  %v", what, want, got)
	}
}

// Variants returns how many fillings it takes to set each field of each oneof
// in the message and below.
func Variants(mt protoreflect.MessageType) int {
	n := 1
	var walk func(md protoreflect.MessageDescriptor)
	walk = func(md protoreflect.MessageDescriptor) {
		for i := range md.Oneofs().Len() {
			n = max(n, md.Oneofs().Get(i).Fields().Len())
		}
		for i := range md.Fields().Len() {
			if f := md.Fields().Get(i); f.Message() != nil {
				walk(f.Message())
			}
		}
	}
	walk(mt.Descriptor())
	return n
}

// Filled returns a message with every field set to a value of its own, and of
// each oneof the field that variant selects.
func Filled(mt protoreflect.MessageType, variant int) proto.Message {
	m := mt.New()
	f := &filler{variant: variant}
	f.message(m)
	return m.Interface()
}

type filler struct {
	variant int
	n       int
}

func (f *filler) message(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if o := fd.ContainingOneof(); o != nil && o.Fields().Get(f.variant%o.Fields().Len()) != fd {
			continue
		}
		switch {
		case fd.IsMap():
			mv := m.Mutable(fd).Map()
			for range 2 {
				key := f.scalar(fd.MapKey()).MapKey()
				if fd.MapValue().Message() != nil {
					f.message(mv.Mutable(key).Message())
				} else {
					mv.Set(key, f.scalar(fd.MapValue()))
				}
			}
		case fd.IsList():
			l := m.Mutable(fd).List()
			for range 3 {
				if fd.Message() != nil {
					f.message(l.AppendMutable().Message())
				} else {
					l.Append(f.scalar(fd))
				}
			}
		case fd.Message() != nil:
			f.message(m.Mutable(fd).Message())
		default:
			m.Set(fd, f.scalar(fd))
		}
	}
}

// scalar alternates small, large and negative values: they differ in length.
func (f *filler) scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	f.n++
	n := int64(f.n)
	switch f.n % 3 {
	case 1:
		n = math.MaxInt32 - n
	case 2:
		n = -n
	}
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		values := fd.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(1 + f.n%(values.Len()-1)).Number())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(n << 20)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n) / 4)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n) / 4)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprintf("ä%d", f.n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{0, 0xff, byte(f.n)})
	}
	panic("kind " + fd.Kind().String())
}
