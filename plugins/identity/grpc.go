// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/core/access"
)

// GRPC are the options that make a server verify its callers, each by the verifier
// that is in force then. Health checks need no name.
func GRPC(current func() *Verifier) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			ctx, err := current().call(ctx, info.FullMethod)
			if err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			ctx, err := current().call(s.Context(), info.FullMethod)
			if err != nil {
				return err
			}
			return next(srv, &stream{s, ctx})
		}),
	}
}

// stream is a server stream with a caller in its context.
type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *stream) Context() context.Context { return s.ctx }

func (v *Verifier) call(ctx context.Context, method string) (context.Context, error) {
	if strings.HasPrefix(method, "/"+healthpb.Health_ServiceDesc.ServiceName+"/") {
		return ctx, nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	var chains [][]*x509.Certificate
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			chains = info.State.VerifiedChains
		}
	}
	out, err := v.verify(ctx, method, md.Get("authorization"), chains, md.Get)
	if err == nil {
		return out, nil
	}
	var denied *access.Denied
	if errors.As(err, &denied) {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return nil, status.Error(codes.Unavailable, err.Error())
}
