// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storepb_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/golang/snappy"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/promweave/promweave/sdk/storepb"
	"github.com/promweave/promweave/sdk/storepb/internal/pbtest"
)

var codec storepb.Codec

func decode(t testing.TB, b []byte, m any) {
	t.Helper()
	if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, m); err != nil {
		t.Fatal(err)
	}
}

func encode(t testing.TB, m any) []byte {
	t.Helper()
	b, err := codec.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	return b.Materialize()
}

func bigSeries(chunks int) *storepb.SeriesResponse {
	rng := rand.New(rand.NewPCG(1, 2))
	s := &storepb.Series{}
	for _, name := range []string{"__name__", "cluster", "instance", "job", "namespace", "pod"} {
		s.Labels = append(s.Labels, &storepb.Label{Name: name, Value: strings.Repeat(name, 2)})
	}
	for i := range chunks {
		data := make([]byte, 300)
		for j := range data {
			data[j] = byte(rng.Uint32())
		}
		s.Chunks = append(s.Chunks, &storepb.AggrChunk{
			MinTime: int64(i) * 7200e3,
			MaxTime: int64(i+1)*7200e3 - 1,
			Raw:     &storepb.Chunk{Data: data, Hash: storepb.Hash(data)},
		})
	}
	return storepb.NewSeriesResponse(s)
}

func TestCodecSplitBuffers(t *testing.T) {
	want := bigSeries(20)
	b := encode(t, want)
	// Frames of HTTP/2 cut a message anywhere.
	var parts mem.BufferSlice
	for c := range slices.Chunk(b, 17) {
		parts = append(parts, mem.SliceBuffer(c))
	}
	var got storepb.SeriesResponse
	if err := codec.Unmarshal(parts, &got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(want, &got) {
		t.Error("message changed")
	}
}

// The receive buffer is reused after decoding, so nothing may point into it;
// within the message there must be no further copy.
func TestCodecOwnership(t *testing.T) {
	want := bigSeries(2)
	b := encode(t, want)
	var got storepb.SeriesResponse
	decode(t, b, &got)
	for i := range b {
		b[i] = 0xaa
	}
	if !proto.Equal(want, &got) {
		t.Error("message points into the receive buffer")
	}
	s := got.GetSeries()
	first := uintptr(unsafe.Pointer(unsafe.StringData(s.Labels[0].Name)))
	last := uintptr(unsafe.Pointer(unsafe.SliceData(s.Chunks[1].Raw.Data)))
	if last < first || last-first > uintptr(len(b)) {
		t.Error("the parts of the message are not in one buffer")
	}

	req := &storepb.SeriesRequest{Matchers: []*storepb.LabelMatcher{{Name: "a", Value: "b"}}}
	b = encode(t, req)
	var gotReq storepb.SeriesRequest
	decode(t, b, &gotReq)
	clear(b)
	if !proto.Equal(req, &gotReq) {
		t.Error("request points into the receive buffer")
	}
}

func TestCodecReplaces(t *testing.T) {
	got := &storepb.LabelNamesResponse{Names: []string{"old"}, Warnings: []string{"old"}}
	want := &storepb.LabelNamesResponse{Names: []string{"new"}}
	decode(t, encode(t, want), got)
	if !proto.Equal(want, got) {
		t.Errorf("got %v", got)
	}
}

func TestCodecInvalidUTF8(t *testing.T) {
	want := storepb.NewSeriesResponse(&storepb.Series{Labels: []*storepb.Label{{Name: "a", Value: "\xff\xfe"}}})
	var got storepb.SeriesResponse
	decode(t, encode(t, want), &got)
	if v := got.GetSeries().GetLabels()[0].Value; v != "\xff\xfe" {
		t.Errorf("value %q", v)
	}
	var names storepb.LabelNamesRequest
	decode(t, encode(t, &storepb.LabelNamesRequest{WithoutReplicaLabels: []string{"\xc0"}}), &names)
	if v := names.WithoutReplicaLabels[0]; v != "\xc0" {
		t.Errorf("value %q", v)
	}
}

func TestCodecUnknownFields(t *testing.T) {
	b := encode(t, bigSeries(1))
	b = protowire.AppendTag(b, 99, protowire.VarintType)
	b = protowire.AppendVarint(b, 1)
	b = protowire.AppendTag(b, 100, protowire.BytesType)
	b = protowire.AppendString(b, "new")
	b = protowire.AppendTag(b, 101, protowire.Fixed32Type)
	b = protowire.AppendFixed32(b, 1)
	b = protowire.AppendTag(b, 102, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, 1)
	var got storepb.SeriesResponse
	decode(t, b, &got)
	if len(got.GetSeries().GetChunks()) != 1 {
		t.Error("series lost")
	}
}

func TestCodecErrors(t *testing.T) {
	bad := mem.BufferSlice{mem.SliceBuffer{0x0a, 0x05, 0x01}}
	for _, m := range []any{&storepb.SeriesResponse{}, &storepb.SeriesRequest{}, &healthpb.HealthCheckRequest{}, "text"} {
		if err := codec.Unmarshal(bad, m); err == nil {
			t.Errorf("%T: no error", m)
		}
	}
	if _, err := codec.Marshal("text"); err == nil {
		t.Error("no error for a string")
	}
	if codec.Name() != "proto" {
		t.Errorf("name %q", codec.Name())
	}
}

type storeServer struct {
	storepb.UnimplementedStoreServer
	resp *storepb.SeriesResponse
}

func (s storeServer) Series(req *storepb.SeriesRequest, stream grpc.ServerStreamingServer[storepb.SeriesResponse]) error {
	if err := stream.Send(storepb.NewWarningResponse(req.Matchers[0].Value)); err != nil {
		return err
	}
	for range 3 {
		if err := stream.Send(s.resp); err != nil {
			return err
		}
	}
	return nil
}

// A peer with the stock codec and one with ours understand each other, with and
// without compression, and health checks work next to our services.
func TestGRPC(t *testing.T) {
	resp := bigSeries(50)
	stock := grpc.ForceCodecV2(encoding.GetCodecV2("proto"))
	for _, c := range []struct {
		name   string
		server []grpc.ServerOption
		client []grpc.CallOption
	}{
		{"both", []grpc.ServerOption{storepb.ServerCodec()}, []grpc.CallOption{storepb.ClientCodec()}},
		{"stock server", nil, []grpc.CallOption{storepb.ClientCodec()}},
		{"stock client", []grpc.ServerOption{storepb.ServerCodec()}, []grpc.CallOption{stock}},
		{"snappy", []grpc.ServerOption{storepb.ServerCodec()}, []grpc.CallOption{
			storepb.ClientCodec(), grpc.UseCompressor(storepb.Snappy),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lis := bufconn.Listen(1 << 16)
			srv := grpc.NewServer(c.server...)
			storepb.RegisterStoreServer(srv, storeServer{resp: resp})
			healthpb.RegisterHealthServer(srv, health.NewServer())
			done := make(chan error)
			go func() { done <- srv.Serve(lis) }()
			defer func() {
				srv.Stop()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			conn, err := grpc.NewClient("passthrough:///test",
				grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
				grpc.WithDefaultCallOptions(c.client...))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()

			stream, err := storepb.NewStoreClient(conn).Series(t.Context(), &storepb.SeriesRequest{
				Matchers: []*storepb.LabelMatcher{{Name: "a", Value: "echo"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			first, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if first.GetWarning() != "echo" {
				t.Errorf("got %v", first)
			}
			n := 0
			for {
				got, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				n++
				if !proto.Equal(resp, got) {
					t.Error("message changed")
				}
			}
			if n != 3 {
				t.Errorf("%d frames", n)
			}
			h, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if h.Status != healthpb.HealthCheckResponse_SERVING {
				t.Errorf("health %v", h.Status)
			}
		})
	}
}

// The compressor must speak the standard framing, whichever library reads it,
// and its pooled parts must not mix messages up.
func TestSnappy(t *testing.T) {
	c := encoding.GetCompressor("snappy")
	for i := range 5 {
		want := bytes.Repeat([]byte{byte(i), 'x'}, 100_000*i)
		var buf bytes.Buffer
		w, err := c.Compress(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(want); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(snappy.NewReader(bytes.NewReader(buf.Bytes()))); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, want %d: %v", len(got), len(want), err)
		}

		buf.Reset()
		sw := snappy.NewBufferedWriter(&buf)
		if _, err := sw.Write(want); err != nil {
			t.Fatal(err)
		}
		if err := sw.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := c.Decompress(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, want %d: %v", len(got), len(want), err)
		}
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("after the end: %v", err)
		}
	}
	r, err := c.Decompress(strings.NewReader("no snappy at all"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err == nil {
		t.Error("no error for garbage")
	}
}

func TestChunkEncoding(t *testing.T) {
	for e, want := range map[chunkenc.Encoding]storepb.Chunk_Encoding{
		chunkenc.EncXOR:            0,
		chunkenc.EncHistogram:      1,
		chunkenc.EncFloatHistogram: 2,
	} {
		got, err := storepb.EncodingFromTSDB(e)
		if err != nil || got != want {
			t.Errorf("%v: got %v, %v", e, got, err)
		}
		back, err := storepb.EncodingToTSDB(got)
		if err != nil || back != e {
			t.Errorf("%v: back %v, %v", e, back, err)
		}
	}
	for _, e := range []chunkenc.Encoding{chunkenc.EncNone, 4, 0xff} {
		if _, err := storepb.EncodingFromTSDB(e); err == nil {
			t.Errorf("%v: no error", e)
		}
	}
	for _, e := range []storepb.Chunk_Encoding{-1, 3} {
		if _, err := storepb.EncodingToTSDB(e); err == nil {
			t.Errorf("%v: no error", e)
		}
		if _, err := storepb.ChunkToTSDB(&storepb.Chunk{Type: e, Data: []byte{0, 0, 0}}); err == nil {
			t.Errorf("%v: no error", e)
		}
	}
	for _, c := range []*storepb.Chunk{
		nil, {}, {Data: []byte{0}}, {Type: storepb.Chunk_HISTOGRAM, Data: []byte{0, 0}},
	} {
		if _, err := storepb.ChunkToTSDB(c); err == nil {
			t.Errorf("%v: no error", c)
		}
	}
}

// fuzz checks that decoding never panics, that both ways of decoding agree, and
// that what was decoded can be sent on.
func fuzz(f *testing.F, empty proto.Message) {
	mt := empty.ProtoReflect().Type()
	for variant := range pbtest.Variants(mt) {
		b, err := pbtest.Filled(mt, variant).(pbtest.VTMessage).MarshalVTStrict()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	added := 0
	for _, r := range recordings(f) {
		if r.new(f).ProtoReflect().Type() == mt && len(r.bytes) < 2000 && added < 50 {
			f.Add(r.bytes)
			added++
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		safe := mt.New().Interface().(pbtest.VTMessage)
		shared := mt.New().Interface().(pbtest.VTMessage)
		err := safe.UnmarshalVT(b)
		errShared := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, shared)
		if (err == nil) != (errShared == nil) {
			t.Fatalf("UnmarshalVT: %v, codec: %v", err, errShared)
		}
		if err != nil {
			return
		}
		x, err := safe.MarshalVTStrict()
		if err != nil {
			t.Fatal(err)
		}
		if y := encode(t, shared); !bytes.Equal(x, y) {
			t.Fatalf("UnmarshalVT %x, codec %x", x, y)
		}
		again := mt.New().Interface().(pbtest.VTMessage)
		if err := again.UnmarshalVT(x); err != nil {
			t.Fatal(err)
		}
		y, err := again.MarshalVTStrict()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x, y) {
			t.Fatalf("first %x, second %x", x, y)
		}
		if resp, ok := safe.(*storepb.SeriesResponse); ok {
			for _, a := range resp.GetSeries().GetChunks() {
				if c, err := storepb.ChunkToTSDB(a.Raw); err == nil {
					_ = c.NumSamples()
					_ = c.Iterator(nil)
				}
			}
		}
	})
}

func FuzzSeriesResponse(f *testing.F)      { fuzz(f, &storepb.SeriesResponse{}) }
func FuzzSeriesRequest(f *testing.F)       { fuzz(f, &storepb.SeriesRequest{}) }
func FuzzLabelNamesResponse(f *testing.F)  { fuzz(f, &storepb.LabelNamesResponse{}) }
func FuzzLabelValuesResponse(f *testing.F) { fuzz(f, &storepb.LabelValuesResponse{}) }
func FuzzQueryResponse(f *testing.F)       { fuzz(f, &storepb.QueryResponse{}) }
func FuzzRulesResponse(f *testing.F)       { fuzz(f, &storepb.RulesResponse{}) }

func BenchmarkCodec(b *testing.B) {
	stock := encoding.GetCodecV2("proto")
	for _, size := range []struct {
		name   string
		chunks int
	}{{"chunks=0", 0}, {"chunks=1", 1}, {"chunks=100", 100}} {
		resp := bigSeries(size.chunks)
		raw := encode(b, resp)
		for _, c := range []struct {
			name string
			encoding.CodecV2
		}{{"ours", codec}, {"stock", stock}} {
			b.Run("Marshal/"+size.name+"/"+c.name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(raw)))
				for b.Loop() {
					data, err := c.Marshal(resp)
					if err != nil {
						b.Fatal(err)
					}
					data.Free()
				}
			})
			b.Run("Unmarshal/"+size.name+"/"+c.name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(raw)))
				data := mem.BufferSlice{mem.SliceBuffer(raw)}
				for b.Loop() {
					var got storepb.SeriesResponse
					if err := c.Unmarshal(data, &got); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
