// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filter_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/pluginpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// codec is one message: its type here, its type in pluginpb, and what this package does
// with its encoding.
type codec struct {
	plain   any // pointer to the zero value
	message proto.Message
	append  func(plain any) []byte
	decode  func(b []byte) (any, error)
	// not are fields of the message that the plain type does not have, by design.
	not []string
}

// What else Configure carries, so that every field is in some struct.
type (
	configureRequest struct {
		Config filter.Config
		Minor  uint32
	}
	configureReply struct {
		Instance uint64
		Plan     filter.Plan
	}
	describeRequest struct{ Minor uint32 }
	wireError       struct{ Kind, Message string }
)

var codecs = []codec{
	{&describeRequest{}, &pluginpb.DescribeRequest{},
		func(p any) []byte { return filter.AppendDescribeRequest(nil, p.(*describeRequest).Minor) },
		func(b []byte) (any, error) {
			m, err := filter.DecodeDescribeRequest(b)
			return &describeRequest{m}, err
		}, nil},
	{&filter.Description{}, &pluginpb.Description{},
		func(p any) []byte { return filter.AppendDescription(nil, p.(*filter.Description)) },
		func(b []byte) (any, error) { return filter.DecodeDescription(b) }, []string{"kind"}},
	{&configureRequest{}, &pluginpb.ConfigureRequest{},
		func(p any) []byte {
			c := p.(*configureRequest)
			return filter.AppendConfigureRequest(nil, &c.Config, c.Minor)
		},
		func(b []byte) (any, error) {
			c, minor, err := filter.DecodeConfigureRequest(b)
			if err != nil {
				return nil, err
			}
			return &configureRequest{*c, minor}, nil
		}, nil},
	{&configureReply{}, &pluginpb.ConfigureReply{},
		func(p any) []byte {
			c := p.(*configureReply)
			return filter.AppendConfigureReply(nil, c.Instance, &c.Plan)
		},
		func(b []byte) (any, error) {
			instance, plan, err := filter.DecodeConfigureReply(b)
			if err != nil {
				return nil, err
			}
			return &configureReply{instance, *plan}, nil
		}, []string{"capabilities"}},
	{&filter.Plan{}, &pluginpb.Plan{},
		func(p any) []byte { return filter.AppendPlan(nil, p.(*filter.Plan)) },
		func(b []byte) (any, error) { return filter.DecodePlan(b) }, nil},
	{&filter.RequestCall{}, &pluginpb.RequestCall{},
		func(p any) []byte { return filter.AppendRequestCall(nil, p.(*filter.RequestCall)) },
		func(b []byte) (any, error) { return filter.DecodeRequestCall(b) }, []string{"instance"}},
	{&filter.RequestReply{}, &pluginpb.RequestReply{},
		func(p any) []byte { return filter.AppendRequestReply(nil, p.(*filter.RequestReply)) },
		func(b []byte) (any, error) { return filter.DecodeRequestReply(b) }, nil},
	{&filter.SelectCall{}, &pluginpb.SelectCall{},
		func(p any) []byte { return filter.AppendSelectCall(nil, p.(*filter.SelectCall)) },
		func(b []byte) (any, error) { return filter.DecodeSelectCall(b) }, []string{"instance"}},
	{&filter.SelectReply{}, &pluginpb.SelectReply{},
		func(p any) []byte { return filter.AppendSelectReply(nil, p.(*filter.SelectReply)) },
		func(b []byte) (any, error) { return filter.DecodeSelectReply(b) }, nil},
	{&wireError{}, &pluginpb.Error{},
		func(p any) []byte {
			e := p.(*wireError)
			return filter.AppendError(nil, e.Kind, e.Message)
		},
		func(b []byte) (any, error) {
			kind, text, err := filter.DecodeError(b)
			return &wireError{kind, text}, err
		}, nil},
}

// fill sets every field of a struct to something random; with all, to nothing that is zero.
func fill(t testing.TB, r *rand.Rand, v reflect.Value, all bool) {
	t.Helper()
	if !all && r.IntN(3) == 0 {
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[filter.Operation]() {
			fill(t, r, v.Field(r.IntN(v.NumField())), true)
			return
		}
		for i := range v.NumField() {
			fill(t, r, v.Field(i), all)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, r, v.Elem(), all)
	case reflect.Slice:
		n := 1 + r.IntN(3)
		if v.Type().Elem() == reflect.TypeFor[filter.Operation]() {
			n = 40 // so that each kind is among them
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(t, r, v.Index(i), all)
		}
	case reflect.String:
		v.SetString(strings.Repeat("ä", r.IntN(100)*r.IntN(2)) + fmt.Sprint(r.IntN(1000)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(1 + r.Int64())
		if r.IntN(2) == 0 {
			v.SetInt(-v.Int())
		}
	case reflect.Uint64, reflect.Uint32:
		v.SetUint(1 + r.Uint64()>>40)
	case reflect.Uint8:
		limit := map[reflect.Type]uint64{
			reflect.TypeFor[filter.Role](): 2, reflect.TypeFor[filter.Tier](): 3,
			reflect.TypeFor[filter.MatchType](): 3, reflect.TypeFor[byte](): 255,
		}[v.Type()]
		if limit == 0 {
			t.Fatalf("no limit for %s", v.Type())
		}
		v.SetUint(1 + r.Uint64N(limit))
	default:
		t.Fatalf("a field of type %s", v.Type())
	}
}

// unset are the fields of a message that have nothing in them, at any depth.
func unset(m protoreflect.Message, prefix string, out map[string]bool) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := prefix + string(f.Name())
		if !m.Has(f) {
			if f.ContainingOneof() == nil {
				out[name] = true
			}
			continue
		}
		if f.Kind() != protoreflect.MessageKind {
			continue
		}
		if !f.IsList() {
			unset(m.Get(f).Message(), name+".", out)
			continue
		}
		for k := range m.Get(f).List().Len() {
			unset(m.Get(f).List().Get(k).Message(), name+".", out)
		}
	}
}

// What is written here is read by the generated code, and the other way round; no field
// of either is forgotten.
func TestWire(t *testing.T) {
	for _, c := range codecs {
		name := string(c.message.ProtoReflect().Descriptor().Name())
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(100) {
				all := seed < 20
				r := rand.New(rand.NewPCG(seed, 0))
				want := reflect.New(reflect.TypeOf(c.plain).Elem())
				fill(t, r, want.Elem(), all)
				enc := c.append(want.Interface())
				m := c.message.ProtoReflect().New()
				if err := proto.Unmarshal(enc, m.Interface()); err != nil {
					t.Fatalf("seed %d: the generated code refuses it: %v", seed, err)
				}
				if all {
					missing := map[string]bool{}
					unset(m, "", missing)
					for _, f := range c.not {
						delete(missing, f)
					}
					if len(missing) > 0 {
						t.Fatalf("seed %d: fields %v are not written", seed, missing)
					}
				}
				theirs, err := proto.Marshal(m.Interface())
				if err != nil {
					t.Fatal(err)
				}
				for _, b := range [][]byte{enc, theirs} {
					got, err := c.decode(b)
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					if diff := cmp.Diff(want.Interface(), got, cmpopts.EquateEmpty()); diff != "" {
						t.Fatalf("seed %d: %s", seed, diff)
					}
				}
			}
		})
	}
}

// To keep no labels is not the same as to keep all.
func TestWireEmptyLists(t *testing.T) {
	want := &filter.Plan{Operations: []filter.Operation{{Keep: []string{}}, {Drop: []string{}}}}
	got, err := filter.DecodePlan(filter.AppendPlan(nil, want))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
}

func TestWireRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"unknown fields are skipped", []byte("\xa0\x06\x01\xaa\x06\x02ab\xa1\x06\x01\x02\x03\x04\x05\x06\x07\x08\xa5\x06\x01\x02\x03\x04"), ""},
		{"cut in a tag", []byte{0x80}, "no valid tag"},
		{"field 0", []byte{0x00, 0x01}, "no valid tag"},
		{"cut in a number", []byte{0x28, 0x80}, "cut off"},
		{"a number of eleven bytes", append([]byte{0x28}, strings.Repeat("\xff", 11)...), "cut off"},
		{"cut in a string", []byte{0x12, 0x05, 'a'}, "longer than what is there"},
		{"a length of 2^63", append([]byte{0x12}, binary.AppendUvarint(nil, 1<<63)...), "longer than what is there"},
		{"cut in 64 bits", []byte{0xa1, 0x06, 1, 2}, "cut off"},
		{"a group", []byte{0x0b, 0x0c}, "wire type 3"},
		{"a string that is a number", []byte{0x10, 0x01}, "wire type 0, should be 2"},
		{"a number that is a string", []byte{0x2a, 0x01, 'a'}, "wire type 2, should be 0"},
		{"not UTF-8", []byte{0x12, 0x01, 0xff}, "not valid UTF-8"},
		{"a tier that is unknown", []byte{0x08, 0x04}, "does not know"},
		{"an operation that is unknown", []byte{0x4a, 0x02, 0x3a, 0x00}, "operation 7 is not known"},
		{"too many elements", []byte(strings.Repeat("\x12\x00", 1<<18+1)), "elements in lists"},
		{"too long", make([]byte, filter.MaxMessage+1), "more than 16 MiB"},
	} {
		_, err := filter.DecodePlan(c.in)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := filter.DecodeDescription(nil); err == nil {
		t.Error("a description of no kind is that of a filter")
	}
}

func FuzzDecode(f *testing.F) {
	for i, c := range codecs {
		r := rand.New(rand.NewPCG(uint64(i), 0))
		v := reflect.New(reflect.TypeOf(c.plain).Elem())
		fill(f, r, v.Elem(), true)
		f.Add(uint8(i), c.append(v.Interface()))
	}
	f.Fuzz(func(t *testing.T, i uint8, b []byte) {
		c := codecs[int(i)%len(codecs)]
		got, err := c.decode(b)
		if err != nil {
			return
		}
		// The generated code reads the same: it is laxer in what it takes.
		m := c.message.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(b, m); err != nil {
			// An unknown field that it looks into, or UTF-8 in a field that is not ours.
			return
		}
		theirs, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.decode(theirs)
		if err != nil {
			t.Fatalf("after the generated code: %v", err)
		}
		if diff := cmp.Diff(got, again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
		back, err := c.decode(c.append(got))
		if err != nil {
			t.Fatalf("our own encoding: %v", err)
		}
		if diff := cmp.Diff(got, back, cmpopts.EquateEmpty()); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestSettings(t *testing.T) {
	got, err := filter.Settings([]byte(`{
		"b": "x", "a": {"n": -1.50e3, "null": null, "none": {}, "t": true},
		"rules": [{"from": "a", "to": ["b", 2]}, false, []],
		"https://a.b/c[0]\\": "ü", "": {"": 7}
	}`))
	if err != nil {
		t.Fatal(err)
	}
	want := []filter.Setting{
		{Path: "b", Value: "x"}, {Path: "a.n", Value: "-1.50e3"}, {Path: "a.t", Value: "true"},
		{Path: "rules[0].from", Value: "a"}, {Path: "rules[0].to[0]", Value: "b"}, {Path: "rules[0].to[1]", Value: "2"},
		{Path: "rules[1]", Value: "false"}, {Path: `https://a\.b/c\[0\]\\`, Value: "ü"}, {Path: ".", Value: "7"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := filter.Settings(nil); got != nil || err != nil {
		t.Errorf("nothing: %v, %v", got, err)
	}
	for in, want := range map[string]string{
		`[]`: "not an object", `null`: "not an object", `{`: "unexpected EOF", `{"a":1`: "unexpected EOF", `{"a":[1`: "unexpected EOF",
		`{"a":}`: "invalid", `{"a" 1}`: "invalid", `{} {}`: "something follows", `{"a":1,"a":2}`: "twice", `{"a":tru}`: "invalid",
		`{"a":` + strings.Repeat("[", 70) + strings.Repeat("]", 70) + `}`:                                      "64 levels",
		`{"a":[` + strings.Repeat("1,", 1<<16) + `1]}`:                                                         "65536 values",
		`{"` + strings.Repeat("a", 1<<20) + `":[` + strings.Repeat("1,", 100) + `1]}`:                          "16 MiB",
		`{"` + strings.Repeat("a", 1<<20) + `":[` + strings.TrimSuffix(strings.Repeat("[],", 100), ",") + `]}`: "16 MiB",
	} {
		if _, err := filter.Settings([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: error %v, want %q", in, err, want)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte(`{"":{"a":1},"a":2,"a.b":3,".a":4}`))
	f.Add([]byte(`{"a":[{"b":1},null,"x",true],"c.d":{"e":[]}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := filter.Settings(in)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, s := range out {
			if seen[s.Path] {
				t.Fatalf("path %q twice", s.Path)
			}
			seen[s.Path] = true
		}
	})
}
