// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// The words for kinds of errors in pluginpb.Error. Panic stands for a fault of the
// plug-in that it survived; the others are what the plug-in says.
const (
	Invalid     = "invalid"
	Unsupported = "unsupported"
	Limit       = "limit"
	Unavailable = "unavailable"
	Denied      = "denied"
	Internal    = "internal"
	Panic       = "panic"
)

var kinds = map[string]error{
	Invalid:     backend.ErrInvalid,
	Unsupported: backend.ErrUnsupported,
	Limit:       backend.ErrLimit,
	Unavailable: backend.ErrUnavailable,
	Denied:      backend.ErrDenied,
	Internal:    backend.ErrInternal,
	Panic:       backend.ErrInternal,
}

// Kind returns the kind that a word stands for; ErrInternal for words that came
// later than us.
func Kind(word string) error {
	if k, ok := kinds[word]; ok {
		return k
	}
	return backend.ErrInternal
}

// Word returns the word for the kind of err.
func Word(err error) string {
	switch backend.Kind(err) {
	case backend.ErrInvalid:
		return Invalid
	case backend.ErrUnsupported:
		return Unsupported
	case backend.ErrLimit:
		return Limit
	case backend.ErrUnavailable:
		return Unavailable
	case backend.ErrDenied:
		return Denied
	}
	return Internal
}

// Status is err for gRPC: the code that fits its kind, and the kind itself as a
// detail of type promweave.plugin.v1.Error, by which a client tells what the plug-in
// says from what happened to the connection. ctx is the call's.
func Status(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	word, code := Word(err), codes.Internal
	switch word {
	case Invalid:
		code = codes.InvalidArgument
	case Unsupported:
		code = codes.Unimplemented
	case Limit:
		code = codes.ResourceExhausted
	case Unavailable:
		code = codes.Unavailable
	case Denied:
		code = codes.PermissionDenied
	default:
		switch {
		case errors.Is(err, context.Canceled) || errors.Is(ctx.Err(), context.Canceled):
			return status.Error(codes.Canceled, err.Error())
		case errors.Is(err, context.DeadlineExceeded) || errors.Is(ctx.Err(), context.DeadlineExceeded):
			return status.Error(codes.DeadlineExceeded, err.Error())
		}
	}
	return detailed(code, word, err.Error())
}

// Mark adds the kind that fits the code of a status to it, so that a client takes it
// for what the plug-in says. Codes that tell nothing stay as they are.
func Mark(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok || Said(err) != "" {
		return err
	}
	word := ""
	switch st.Code() {
	case codes.InvalidArgument, codes.OutOfRange:
		word = Invalid
	case codes.Unimplemented:
		word = Unsupported
	case codes.ResourceExhausted:
		word = Limit
	case codes.Unavailable, codes.Aborted:
		word = Unavailable
	case codes.PermissionDenied, codes.Unauthenticated:
		word = Denied
	default:
		return err
	}
	return detailed(st.Code(), word, st.Message())
}

// PanicStatus is the error of a call that panicked.
func PanicStatus(text string) error { return detailed(codes.Internal, Panic, text) }

func detailed(code codes.Code, word, text string) error {
	st := status.New(code, text)
	if d, err := st.WithDetails(&pluginpb.Error{Kind: word}); err == nil {
		st = d
	}
	return st.Err()
}

// Said returns the word for the kind that a plug-in gave to the error of a call, ""
// if the error has none: it is the connection's then, or of a plug-in that knows
// only gRPC codes.
func Said(err error) string {
	st, ok := status.FromError(err)
	if !ok {
		return ""
	}
	for _, d := range st.Details() {
		if e, ok := d.(*pluginpb.Error); ok {
			return e.GetKind()
		}
	}
	return ""
}
