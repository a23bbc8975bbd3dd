// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/pluginpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fill sets every field of a message.
func fill(r *rand.Rand, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	oneof := r.IntN(max(fields.Len(), 1))
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.ContainingOneof() != nil && i != oneof {
			continue
		}
		switch {
		case f.IsList():
			list := m.Mutable(f).List()
			for range 1 + r.IntN(20) {
				if f.Message() != nil {
					fill(r, list.AppendMutable().Message())
				} else {
					list.Append(scalar(r, f))
				}
			}
		case f.Message() != nil:
			fill(r, m.Mutable(f).Message())
		default:
			m.Set(f, scalar(r, f))
		}
	}
}

func scalar(r *rand.Rand, f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprint("x", r.Uint32()))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(fmt.Sprint("y", r.Uint32())))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(1 + r.IntN(f.Enum().Values().Len()-1)))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1 + r.Uint32N(1e9))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1 + r.Uint64N(1e18))
	case protoreflect.Sint64Kind:
		return protoreflect.ValueOfInt64(-1 - r.Int64N(1e18))
	}
	panic("a field of kind " + f.Kind().String())
}

func both[M proto.Message, T any](t *testing.T, from func(M) (T, error), to func(M, T) M) {
	var zero M
	name := string(zero.ProtoReflect().Descriptor().Name())
	t.Run(name, func(t *testing.T) {
		for seed := range uint64(50) {
			want := zero.ProtoReflect().New()
			fill(rand.New(rand.NewPCG(seed, 0)), want)
			if d, ok := want.Interface().(*pluginpb.Description); ok {
				d.Kind = pluginpb.Kind_KIND_FILTER
			}
			plain, err := from(want.Interface().(M))
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if got := to(want.Interface().(M), plain); !proto.Equal(got, want.Interface()) {
				t.Fatalf("seed %d: got %v, want %v", seed, got, want)
			}
		}
	})
}

// No field of a message is lost on the way to a filter's struct and back.
func TestBothWays(t *testing.T) {
	both(t, FromDescription, func(_ *pluginpb.Description, d *filter.Description) *pluginpb.Description { return ToDescription(d) })
	both(t, FromConfigureRequest, func(m *pluginpb.ConfigureRequest, c *filter.Config) *pluginpb.ConfigureRequest {
		return ToConfigureRequest(c, m.Minor)
	})
	both(t, FromPlan, func(_ *pluginpb.Plan, p *filter.Plan) *pluginpb.Plan { return ToPlan(p) })
	both(t, FromRequestCall, func(m *pluginpb.RequestCall, c *filter.RequestCall) *pluginpb.RequestCall {
		return ToRequestCall(m.Instance, c)
	})
	both(t, FromRequestReply, func(_ *pluginpb.RequestReply, r *filter.RequestReply) *pluginpb.RequestReply {
		return ToRequestReply(r)
	})
	both(t, FromSelectCall, func(m *pluginpb.SelectCall, c *filter.SelectCall) *pluginpb.SelectCall {
		return ToSelectCall(m.Instance, c)
	})
	both(t, FromSelectReply, func(_ *pluginpb.SelectReply, r *filter.SelectReply) *pluginpb.SelectReply { return ToSelectReply(r) })
}

func TestRefuses(t *testing.T) {
	if _, err := FromDescription(&pluginpb.Description{Kind: pluginpb.Kind_KIND_BACKEND}); err == nil {
		t.Error("a backend is taken for a filter")
	}
	if _, err := FromRequestReply(&pluginpb.RequestReply{Subject: "\xff"}); err == nil {
		t.Error("text that is not UTF-8 is taken")
	}
	if _, err := FromPlan(&pluginpb.Plan{Tier: 9}); err == nil {
		t.Error("an unknown tier is taken")
	}
	if p, err := FromPlan(nil); err != nil || p == nil || p.Tier != filter.TierNone {
		t.Errorf("no plan: %v, %v", p, err)
	}
	if r := ToRequestReply(nil); !proto.Equal(r, &pluginpb.RequestReply{}) {
		t.Errorf("a nil reply is %v", r)
	}
	if r := ToSelectReply(nil); !proto.Equal(r, &pluginpb.SelectReply{}) {
		t.Errorf("a nil reply is %v", r)
	}
}
