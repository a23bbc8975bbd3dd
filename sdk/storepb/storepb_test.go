// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storepb_test

import (
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/internal/pbtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type anyHints = anypb.Any

// unknown returns the number of bytes of unknown fields in m and below.
func unknown(m proto.Message) int {
	var walk func(protoreflect.Message) int
	walk = func(m protoreflect.Message) int {
		n := len(m.GetUnknown())
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case fd.Message() == nil || fd.IsMap():
			case fd.IsList():
				for i := range v.List().Len() {
					n += walk(v.List().Get(i).Message())
				}
			default:
				n += walk(v.Message())
			}
			return true
		})
		return n
	}
	return walk(m.ProtoReflect())
}

func TestRoundTrip(t *testing.T) {
	for _, file := range []protoreflect.FileDescriptor{
		storepb.File_sdk_storepb_exemplars_proto,
		storepb.File_sdk_storepb_labels_proto,
		storepb.File_sdk_storepb_metadata_proto,
		storepb.File_sdk_storepb_query_proto,
		storepb.File_sdk_storepb_rules_proto,
		storepb.File_sdk_storepb_status_proto,
		storepb.File_sdk_storepb_store_proto,
		storepb.File_sdk_storepb_targets_proto,
		storepb.File_sdk_storepb_write_proto,
	} {
		pbtest.Messages(t, file, pbtest.RoundTrip)
	}
}
