// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"math/bits"
	"strings"
	"sync"
	"unsafe"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"

	"github.com/promweave/promweave/sdk/pluginpb"
	"github.com/promweave/promweave/sdk/storepb"
)

// The sizes that both ends use. A frame of series is cut at FrameBytes; what is
// received may be as large as the format allows.
const (
	FrameBytes = 1 << 20
	// MaxMessage is a frame, or a reply to one, of the greatest size, and something
	// around it.
	MaxMessage = 4*(16<<20) + 2<<20
	// Windows and buffers of connections. With gRPC's own, a frame takes several
	// round trips.
	StreamWindow     = 8 << 20
	ConnectionWindow = 32 << 20
	SocketBuffer     = 512 << 10
)

// Codec is storepb.Codec, and decodes messages with frames and lists of labels
// without copying: their bytes and strings share one buffer that belongs to the
// message alone. The zero value is ready for use.
type Codec struct{ storepb.Codec }

var _ encoding.CodecV2 = Codec{}

// Marshal encodes v into a buffer that gRPC frees once it is written.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(interface {
		SizeVT() int
		MarshalToSizedBufferVTStrict(b []byte) (int, error)
	})
	if !ok {
		return c.Codec.Marshal(v)
	}
	// gRPC's own buffers are of 32 KiB and 1 MiB, and cleared each time that they are
	// used again, which for most messages is more work than what is put into them.
	size := m.SizeVT()
	if size < 1<<minBuffer {
		return c.Codec.Marshal(v)
	}
	b := buffers.Get(size)
	if n, err := m.MarshalToSizedBufferVTStrict(*b); err != nil || n != size {
		buffers.Put(b)
		if err == nil {
			err = fmt.Errorf("wrote %d of %d bytes", n, size)
		}
		return nil, fmt.Errorf("marshal %T: %w", v, err)
	}
	return mem.BufferSlice{mem.NewBuffer(b, &buffers)}, nil
}

// The sizes of pooled buffers are powers of 2, from 4 KiB to 4 MiB.
const (
	minBuffer = 12
	maxBuffer = 22
)

// buffers are for messages on their way out.
var buffers bufferPool

// bufferPool is a mem.BufferPool that does not clear buffers: all of what it gives out
// must be written.
type bufferPool struct {
	bySize [maxBuffer - minBuffer + 1]sync.Pool
}

// Get returns a buffer of n bytes, at least 1<<minBuffer.
func (p *bufferPool) Get(n int) *[]byte {
	size := bits.Len(uint(n - 1))
	if size > maxBuffer {
		b := make([]byte, n)
		return &b
	}
	if b, ok := p.bySize[size-minBuffer].Get().(*[]byte); ok {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, 1<<size)
	return &b
}

// Put takes a buffer back.
func (p *bufferPool) Put(b *[]byte) {
	if size := bits.Len(uint(cap(*b) - 1)); cap(*b) == 1<<size && size >= minBuffer && size <= maxBuffer {
		p.bySize[size-minBuffer].Put(b)
	}
}

// whole is all of a message in memory of its own, which must not be written to. Memory
// for a string is not cleared before it is filled.
func whole(data mem.BufferSlice) []byte {
	var s strings.Builder
	s.Grow(data.Len())
	for _, b := range data {
		s.Write(b.ReadOnlyData())
	}
	return unsafe.Slice(unsafe.StringData(s.String()), s.Len())
}

// Unmarshal decodes into v, replacing what it held.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error {
	var err error
	switch m := v.(type) {
	case *pluginpb.SeriesBatch:
		m.Reset()
		err = m.UnmarshalVTUnsafe(whole(data))
	case *pluginpb.LabelsReply:
		m.Reset()
		err = m.UnmarshalVTUnsafe(whole(data))
	case *pluginpb.RewriteCall:
		m.Reset()
		err = m.UnmarshalVTUnsafe(whole(data))
	case *pluginpb.RewriteReply:
		m.Reset()
		err = m.UnmarshalVTUnsafe(whole(data))
	default:
		return c.Codec.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("unmarshal %T: %w", v, err)
	}
	return nil
}

// ServerOptions are the options of a gRPC server of a plug-in.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(Codec{}),
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage),
		grpc.InitialWindowSize(StreamWindow), grpc.InitialConnWindowSize(ConnectionWindow),
		grpc.WriteBufferSize(SocketBuffer), grpc.ReadBufferSize(SocketBuffer),
	}
}

// DialOptions are the options of a connection to a plug-in.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(CallOptions()...),
		grpc.WithInitialWindowSize(StreamWindow), grpc.WithInitialConnWindowSize(ConnectionWindow),
		grpc.WithWriteBufferSize(SocketBuffer), grpc.WithReadBufferSize(SocketBuffer),
	}
}

// CallOptions are those of one call, for connections made without DialOptions.
func CallOptions() []grpc.CallOption {
	return []grpc.CallOption{
		grpc.ForceCodecV2(Codec{}),
		grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage),
	}
}
