// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storepb_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/hintspb"
	"github.com/promweave/promweave/sdk/storepb/infopb"
)

// message is one recorded message.
type message struct {
	name    string
	method  string
	request bool
	bytes   []byte
}

// recordings returns the messages of testdata/storeapi.tar.gz.
func recordings(tb testing.TB) []message {
	tb.Helper()
	f, err := os.Open("testdata/storeapi.tar.gz")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	methods := map[string]string{}
	var out []message
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			tb.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			tb.Fatal(err)
		}
		// The index comes first.
		if h.Name == "index.tsv" {
			for line := range strings.Lines(string(b)) {
				c := strings.Split(line, "\t")
				methods[c[0]+"/"+c[1]] = c[2]
			}
			continue
		}
		dir, file := path.Split(h.Name)
		method := methods[path.Clean(dir)]
		switch file {
		case "request.pb":
			out = append(out, message{h.Name, method, true, b})
		case "response.pb":
			out = append(out, message{h.Name, method, false, b})
		case "responses.pb":
			for len(b) > 0 {
				n, w := binary.Uvarint(b)
				if w <= 0 || uint64(len(b)-w) < n {
					tb.Fatalf("%s: bad frame length", h.Name)
				}
				out = append(out, message{h.Name, method, false, b[w : w+int(n)]})
				b = b[w+int(n):]
			}
		}
	}
}

func (m message) new(tb testing.TB) proto.Message {
	tb.Helper()
	switch m.method {
	case "Info":
		if m.request {
			return &infopb.InfoRequest{}
		}
		return &infopb.InfoResponse{}
	case "Series":
		if m.request {
			return &storepb.SeriesRequest{}
		}
		return &storepb.SeriesResponse{}
	case "LabelNames":
		if m.request {
			return &storepb.LabelNamesRequest{}
		}
		return &storepb.LabelNamesResponse{}
	case "LabelValues":
		if m.request {
			return &storepb.LabelValuesRequest{}
		}
		return &storepb.LabelValuesResponse{}
	}
	tb.Fatalf("%s: method %q", m.name, m.method)
	return nil
}

// What we send is what Thanos would send.
func TestRecordings(t *testing.T) {
	all := recordings(t)
	if len(all) < 1000 {
		t.Errorf("only %d messages", len(all))
	}
	seen := map[string]int{}
	for _, r := range all {
		m := r.new(t)
		if err := (storepb.Codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(r.bytes)}, m); err != nil {
			t.Errorf("%s: %v", r.name, err)
			continue
		}
		if n := unknown(m); n > 0 {
			t.Errorf("%s: %d bytes of unknown fields", r.name, n)
		}
		got, err := (storepb.Codec{}).Marshal(m)
		if err != nil {
			t.Errorf("%s: %v", r.name, err)
			continue
		}
		if !bytes.Equal(got.Materialize(), r.bytes) {
			t.Errorf("%s:\ngot  %x\nwant %x", r.name, got.Materialize(), r.bytes)
		}
		got.Free()
		seen[string(m.ProtoReflect().Descriptor().Name())]++
		checkHints(t, r.name, m)
		checkChunks(t, r.name, m, seen)
	}
	t.Log(seen)
}

// checkHints does the same for the message inside an Any.
func checkHints(t *testing.T, name string, m proto.Message) {
	t.Helper()
	h, ok := m.(interface{ GetHints() *anyHints })
	if !ok || h.GetHints() == nil {
		return
	}
	inner, err := h.GetHints().UnmarshalNew()
	if err != nil {
		// One case sends a hint of a wrong type on purpose.
		if !strings.Contains(name, "hints-bad") {
			t.Errorf("%s: %v", name, err)
		}
		return
	}
	b, err := inner.(interface{ MarshalVTStrict() ([]byte, error) }).MarshalVTStrict()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, h.GetHints().GetValue()) {
		t.Errorf("%s: hints:\ngot  %x\nwant %x", name, b, h.GetHints().GetValue())
	}
}

func checkChunks(t *testing.T, name string, m proto.Message, seen map[string]int) {
	t.Helper()
	resp, ok := m.(*storepb.SeriesResponse)
	if !ok {
		return
	}
	series := resp.GetBatch().GetSeries()
	if s := resp.GetSeries(); s != nil {
		series = append(series, s)
	}
	for _, s := range series {
		for _, a := range s.Chunks {
			for _, c := range []*storepb.Chunk{a.Raw, a.Count, a.Sum, a.Min, a.Max, a.Counter} {
				if c == nil {
					continue
				}
				seen["chunks "+c.Type.String()]++
				if c.Hash != 0 && c.Hash != storepb.Hash(c.Data) {
					t.Errorf("%s: hash %d of %x", name, c.Hash, c.Data)
				}
				if storepb.HashOf(c) != storepb.Hash(c.Data) {
					t.Errorf("%s: HashOf %x", name, c.Data)
				}
				tc, err := storepb.ChunkToTSDB(c)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				back, err := storepb.ChunkFromTSDB(tc)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if back.Type != c.Type || !bytes.Equal(back.Data, c.Data) {
					t.Errorf("%s: chunk changed on the way", name)
				}
				it := tc.Iterator(nil)
				n := 0
				for it.Next() != 0 {
					n++
				}
				if it.Err() != nil || n != tc.NumSamples() {
					t.Errorf("%s: %d of %d samples: %v", name, n, tc.NumSamples(), it.Err())
				}
			}
		}
	}
}

// Values worked out by hand and by an independent encoder.
func TestGolden(t *testing.T) {
	data, err := hex.DecodeString("0003023ff000000000000001c25fff6c06")
	if err != nil {
		t.Fatal(err)
	}
	const hash = 14853728993738741392
	if got := storepb.Hash(data); got != hash {
		t.Errorf("hash %d", got)
	}
	resp := storepb.NewSeriesResponse(&storepb.Series{
		Labels: []*storepb.Label{{Name: "a", Value: "1"}, {Name: "region", Value: "eu-west"}},
		Chunks: []*storepb.AggrChunk{{
			MinTime: 1,
			MaxTime: 3,
			Raw:     &storepb.Chunk{Type: storepb.Chunk_XOR, Data: data, Hash: hash},
		}},
	})
	b, err := storepb.Codec{}.Marshal(resp)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	const want = "0a410a060a01611201310a110a06726567696f6e120765752d776573741224080110031a1e12110003023ff000000000000001c25fff6c061890addfada4fac291ce01"
	if got := hex.EncodeToString(b.Materialize()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestNormalize(t *testing.T) {
	// Year 1 as a timestamp: -62135596800 seconds.
	const never = "0b" + "088092b8c398feffffff01"
	for _, c := range []struct {
		name string
		m    interface {
			Normalize()
			MarshalVTStrict() ([]byte, error)
		}
		want string
	}{
		{"rules", &storepb.RulesResponse{Result: &storepb.RulesResponse_Group{Group: &storepb.RuleGroup{
			Rules: []*storepb.Rule{
				{Result: &storepb.Rule_Recording{Recording: &storepb.RecordingRule{}}},
				{Result: &storepb.Rule_Alert{Alert: &storepb.Alert{Alerts: []*storepb.AlertInstance{{}}}}},
			},
		}}}, "0a" + "3b" +
			"1a11" + "0a0f" + "1a00" + "3a" + never +
			"1a19" + "1217" + "2a00" + "3200" + "3a04" + "0a00" + "1200" + "5a" + never +
			"32" + never},
		{"targets", &storepb.TargetsResponse{Result: &storepb.TargetsResponse_Targets{Targets: &storepb.TargetDiscovery{
			ActiveTargets:  []*storepb.ActiveTarget{{}},
			DroppedTargets: []*storepb.DroppedTarget{{}},
		}}}, "0a" + "17" + "0a11" + "0a00" + "1200" + "3a" + never + "1202" + "0a00"},
		{"exemplars", &storepb.ExemplarsResponse{Result: &storepb.ExemplarsResponse_Data{Data: &storepb.ExemplarData{
			Exemplars: []*storepb.Exemplar{{}},
		}}}, "0a" + "06" + "0a00" + "1202" + "0a00"},
		{"statistics", &storepb.TSDBStatisticsResponse{Result: &storepb.TSDBStatisticsResponse_Statistics{
			Statistics: &storepb.TSDBStatistics{Statistics: map[string]*storepb.TSDBStatisticsEntry{"t": {}}},
		}}, "0a" + "09" + "0a07" + "0a0174" + "1202" + "0a00"},
		{"rules warning", &storepb.RulesResponse{Result: &storepb.RulesResponse_Warning{}}, "1200"},
		{"targets warning", &storepb.TargetsResponse{Result: &storepb.TargetsResponse_Warning{}}, "1200"},
		{"exemplars warning", &storepb.ExemplarsResponse{Result: &storepb.ExemplarsResponse_Warning{}}, "1200"},
		{"statistics warning", &storepb.TSDBStatisticsResponse{Result: &storepb.TSDBStatisticsResponse_Warning{}}, "1200"},
	} {
		c.m.Normalize()
		b, err := c.m.MarshalVTStrict()
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(b); got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, got, c.want)
		}
	}
}

// The hint messages must be registered for UnmarshalNew.
var _ = hintspb.File_sdk_storepb_hintspb_hints_proto
