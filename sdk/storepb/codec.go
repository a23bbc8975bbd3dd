// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storepb

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// Codec is the gRPC codec for the messages of this package and its neighbours.
//
// It is not registered as the codec of the process: clients and servers take it
// explicitly, with [ClientCodec] and [ServerCodec]. The global codec is shared
// with every other user of gRPC in the program (trace exporters, discovery
// clients), and whoever registers last wins, so a program that imports this
// package as a library would have its own connections changed behind its back.
//
// # Ownership
//
// Frames of a stream and lists of label names and values are decoded without
// copying: their strings and byte slices point into one buffer that belongs to
// this message alone and is never reused. It lives as long as any of them does,
// so clone what is kept much longer than the rest of the message, such as a few
// labels out of a frame full of chunks. Nobody may write to the byte slices.
// All other messages, requests among them, own their strings one by one.
//
// # Invalid UTF-8
//
// Strings are not checked in either direction. Peers that use gogo/protobuf do
// not check them either and may send any bytes as a label value; failing the
// frame would lose every other series in it. Code that merges series checks
// labels where it can drop or report a single series.
//
// The zero value is ready for use.
type Codec struct{}

var _ encoding.CodecV2 = Codec{}

// ServerCodec makes a server use [Codec].
func ServerCodec() grpc.ServerOption { return grpc.ForceServerCodecV2(Codec{}) }

// ClientCodec makes a call use [Codec]; for a whole connection pass it through
// [grpc.WithDefaultCallOptions].
func ClientCodec() grpc.CallOption { return grpc.ForceCodecV2(Codec{}) }

// vtMessage has the methods of generated messages that encoding and decoding
// need. Messages of other modules (health, reflection) lack them.
type vtMessage interface {
	Reset()
	SizeVT() int
	MarshalToSizedBufferVTStrict(b []byte) (int, error)
	UnmarshalVT(b []byte) error
	UnmarshalVTUnsafe(b []byte) error
}

// Name returns the content subtype, which is the usual one: the wire form is
// plain protobuf.
func (Codec) Name() string { return "proto" }

// Marshal encodes v into a buffer from the default pool of gRPC, which frees it
// once it is written.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(vtMessage)
	if !ok {
		return marshalOther(v)
	}
	size := m.SizeVT()
	if mem.IsBelowBufferPoolingThreshold(size) {
		b := make([]byte, size)
		if err := marshalTo(m, b); err != nil {
			return nil, err
		}
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	pool := mem.DefaultBufferPool()
	b := pool.Get(size)
	if err := marshalTo(m, (*b)[:size]); err != nil {
		pool.Put(b)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(b, pool)}, nil
}

func marshalTo(m vtMessage, b []byte) error {
	n, err := m.MarshalToSizedBufferVTStrict(b)
	if err != nil {
		return fmt.Errorf("marshal %T: %w", m, err)
	}
	if n != len(b) {
		// Encoding runs backwards, so a shorter result would leave stale bytes
		// at the start. It means that the message was changed meanwhile.
		return fmt.Errorf("marshal %T: wrote %d of %d bytes", m, n, len(b))
	}
	return nil
}

// Unmarshal decodes into v, replacing what it held.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(vtMessage)
	if !ok {
		return unmarshalOther(data, v)
	}
	m.Reset()
	switch m.(type) {
	case *SeriesResponse, *LabelNamesResponse, *LabelValuesResponse, *QueryResponse, *QueryRangeResponse:
		// The receive buffers go back to their pool, hence the copy; it is the
		// only one.
		if err := m.UnmarshalVTUnsafe(data.Materialize()); err != nil {
			return fmt.Errorf("unmarshal %T: %w", m, err)
		}
		return nil
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	if err := m.UnmarshalVT(buf.ReadOnlyData()); err != nil {
		return fmt.Errorf("unmarshal %T: %w", m, err)
	}
	return nil
}

func marshalOther(v any) (mem.BufferSlice, error) {
	m := messageOf(v)
	if m == nil {
		return nil, fmt.Errorf("marshal %T: not a protobuf message", v)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func unmarshalOther(data mem.BufferSlice, v any) error {
	m := messageOf(v)
	if m == nil {
		return fmt.Errorf("unmarshal %T: not a protobuf message", v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	return proto.Unmarshal(buf.ReadOnlyData(), m)
}

func messageOf(v any) proto.Message {
	switch m := v.(type) {
	case proto.Message:
		return m
	case protoadapt.MessageV1:
		return protoadapt.MessageV2Of(m)
	}
	return nil
}
