// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storeapi

import (
	"fmt"
	"math"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"

	"github.com/promweave/promweave/sdk/storepb"
)

const (
	// maxMessage is what Thanos programs allow for; the 4 MiB that gRPC has by
	// default are too few for one series over a long range.
	maxMessage = math.MaxInt32
	// pingFloor is below the 10 s at which Thanos clients ping, because a server
	// that wants longer pauses closes their connections.
	pingFloor = 5 * time.Second
	// pingEvery is above the 10 s that Thanos servers enforce.
	pingEvery   = 20 * time.Second
	pingTimeout = 5 * time.Second
)

// ServerOptions are the options of a gRPC server for StoreAPI peers: message
// sizes, keepalive and the codec; snappy comes with package storepb. Handlers,
// such as otelgrpc's, watch the calls.
func ServerOptions(handlers ...stats.Handler) []grpc.ServerOption {
	opts := []grpc.ServerOption{
		storepb.ServerCodec(),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		// A peer that is gone without a word is found out, and what it had asked for
		// ends; by default that takes two hours.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingFloor, PermitWithoutStream: true}),
	}
	for _, h := range handlers {
		opts = append(opts, grpc.StatsHandler(h))
	}
	return opts
}

// DialConfig is what [DialOptions] needs to know.
type DialConfig struct {
	// Credentials of the transport; nil is plain text.
	Credentials credentials.TransportCredentials
	// Compression of requests and, as the endpoint likes, answers: "" or "none",
	// or "snappy".
	Compression string
	// StatsHandlers watch the calls, such as otelgrpc's.
	StatsHandlers []stats.Handler
}

// DialOptions are the options of a connection to a StoreAPI endpoint.
func DialOptions(cfg DialConfig) ([]grpc.DialOption, error) {
	if cfg.Credentials == nil {
		cfg.Credentials = insecure.NewCredentials()
	}
	call := []grpc.CallOption{
		storepb.ClientCodec(),
		grpc.MaxCallRecvMsgSize(maxMessage),
		grpc.MaxCallSendMsgSize(maxMessage),
	}
	switch cfg.Compression {
	case "", "none":
	case storepb.Snappy:
		call = append(call, grpc.UseCompressor(storepb.Snappy))
	default:
		return nil, fmt.Errorf("unknown compression %q; use \"none\" or \"snappy\"", cfg.Compression)
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(cfg.Credentials),
		grpc.WithDefaultCallOptions(call...),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout}),
		// A store that comes back should be seen at the next look or the one after it;
		// by default the pauses between attempts grow to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
	for _, h := range cfg.StatsHandlers {
		opts = append(opts, grpc.WithStatsHandler(h))
	}
	return opts, nil
}
