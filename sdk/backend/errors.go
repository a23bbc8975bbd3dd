// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"errors"
	"fmt"
)

// Kinds of errors, to be tested with errors.Is. Each maps to one gRPC code and
// one HTTP status; an error of no kind counts as ErrInternal.
var (
	// ErrInvalid: the request itself is wrong; asking again is pointless.
	ErrInvalid = errors.New("invalid request")
	// ErrUnsupported: the request is right, but not to be had from this backend.
	ErrUnsupported = errors.New("not supported")
	// ErrLimit: a limit was exceeded.
	ErrLimit = errors.New("limit exceeded")
	// ErrUnavailable: the backend cannot be reached or is not ready.
	ErrUnavailable = errors.New("unavailable")
	// ErrDenied: the caller may not have this.
	ErrDenied = errors.New("denied")
	// ErrInternal: the backend failed.
	ErrInternal = errors.New("internal error")
)

// Error is an error with a kind. Its text is Text alone, or Text and the text of Err.
type Error struct {
	Kind error
	Text string
	Err  error
}

// Errorf makes an Error of a kind. %w works as in fmt.Errorf.
func Errorf(kind error, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Text: err.Error(), Err: errors.Unwrap(err)}
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

// Unwrap gives the kind and the cause to errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Kind returns the kind of err, ErrInternal if it has none and nil for nil.
func Kind(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range []error{ErrInvalid, ErrUnsupported, ErrLimit, ErrUnavailable, ErrDenied} {
		if errors.Is(err, k) {
			return k
		}
	}
	return ErrInternal
}
