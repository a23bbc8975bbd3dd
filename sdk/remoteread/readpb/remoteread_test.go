// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package readpb

import (
	"bytes"
	"testing"

	"github.com/prometheus/prometheus/prompb"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	ourprompb "github.com/promweave/promweave/sdk/storepb/prompb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Each message survives the way through the types of Prometheus unchanged,
// which it would not if a field number or type differed: Prometheus drops what
// it does not know.
func TestSameBytesAsPrometheus(t *testing.T) {
	series := &ourprompb.TimeSeries{
		Labels:  []*ourprompb.Label{{Name: "a", Value: "b"}},
		Samples: []*ourprompb.Sample{{Value: 1.5, Timestamp: -7}},
	}
	for _, c := range []struct {
		name   string
		ours   interface{ MarshalVTStrict() ([]byte, error) }
		theirs interface {
			Unmarshal([]byte) error
			Marshal() ([]byte, error)
		}
		again interface {
			proto.Message
			UnmarshalVT([]byte) error
		}
	}{
		{
			name: "request",
			ours: &ReadRequest{
				Queries: []*Query{{
					StartTimestampMs: -1,
					EndTimestampMs:   1 << 50,
					Matchers: []*LabelMatcher{
						{Type: LabelMatcher_EQ, Name: "a", Value: "b"},
						{Type: LabelMatcher_NEQ, Name: "c", Value: "d"},
						{Type: LabelMatcher_RE, Name: "e", Value: "f"},
						{Type: LabelMatcher_NRE, Name: "g", Value: "h"},
					},
					Hints: &ReadHints{
						StepMs: 1, Func: "rate", StartMs: 2, EndMs: 3,
						Grouping: []string{"a", ""}, By: true, RangeMs: 4,
					},
				}},
				AcceptedResponseTypes: []ReadRequest_ResponseType{
					ReadRequest_STREAMED_XOR_CHUNKS, ReadRequest_SAMPLES,
				},
			},
			theirs: &prompb.ReadRequest{},
			again:  &ReadRequest{},
		},
		{
			name:   "response",
			ours:   &ReadResponse{Results: []*QueryResult{{Timeseries: []*ourprompb.TimeSeries{series}}, {}}},
			theirs: &prompb.ReadResponse{},
			again:  &ReadResponse{},
		},
		{
			name: "chunked",
			ours: &ChunkedReadResponse{
				ChunkedSeries: []*ChunkedSeries{{
					Labels: series.Labels,
					Chunks: []*Chunk{
						{MinTimeMs: 1, MaxTimeMs: 2, Type: Chunk_XOR, Data: []byte{1, 2}},
						{MinTimeMs: 3, MaxTimeMs: 4, Type: Chunk_HISTOGRAM, Data: []byte{3}},
						{MinTimeMs: 5, MaxTimeMs: 6, Type: Chunk_FLOAT_HISTOGRAM},
					},
				}},
				QueryIndex: 3,
			},
			theirs: &prompb.ChunkedReadResponse{},
			again:  &ChunkedReadResponse{},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			ours, err := c.ours.MarshalVTStrict()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.theirs.Unmarshal(ours); err != nil {
				t.Fatal(err)
			}
			theirs, err := c.theirs.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(ours, theirs) {
				t.Errorf("ours   %x\ntheirs %x", ours, theirs)
			}
			if err := c.again.UnmarshalVT(theirs); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(c.ours.(proto.Message), c.again) {
				t.Errorf("got %v, want %v", c.again, c.ours)
			}
		})
	}
}
