// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"

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

// Unmarshal decodes into v, replacing what it held.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error {
	var err error
	switch m := v.(type) {
	case *pluginpb.SeriesBatch:
		m.Reset()
		err = m.UnmarshalVTUnsafe(data.Materialize())
	case *pluginpb.LabelsReply:
		m.Reset()
		err = m.UnmarshalVTUnsafe(data.Materialize())
	case *pluginpb.RewriteCall:
		m.Reset()
		err = m.UnmarshalVTUnsafe(data.Materialize())
	case *pluginpb.RewriteReply:
		m.Reset()
		err = m.UnmarshalVTUnsafe(data.Materialize())
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
