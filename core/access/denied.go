// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package access

import (
	"fmt"
	"net/http"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/storepb"
)

// Denied is a refusal in words that the caller may read. It is of kind
// backend.ErrDenied. Every API has a form for it: HTTP the status and the challenge,
// gRPC PermissionDenied or Unauthenticated.
type Denied struct {
	// Status is that of HTTP: 401 if nobody is known, 403, or another one from 400 to 599
	// that says why, such as 413; anything else counts as 403.
	Status int
	// Message is for the caller.
	Message string
	// Challenge is the value of WWW-Authenticate that goes with a 401 (RFC 9110,
	// 11.6.1).
	Challenge string
}

// Unauthenticated refuses somebody who has not said who they are, or not
// convincingly. challenge may be empty.
func Unauthenticated(challenge, format string, args ...any) *Denied {
	return &Denied{Status: http.StatusUnauthorized, Message: fmt.Sprintf(format, args...), Challenge: challenge}
}

// Forbidden refuses somebody who is known.
func Forbidden(format string, args ...any) *Denied {
	return &Denied{Status: http.StatusForbidden, Message: fmt.Sprintf(format, args...)}
}

// Error returns the message.
func (d *Denied) Error() string { return d.Message }

// Unwrap gives the kind.
func (d *Denied) Unwrap() error { return backend.ErrDenied }

// GRPCStatus is what package status of gRPC looks for.
func (d *Denied) GRPCStatus() *status.Status {
	if d.Status == http.StatusUnauthorized {
		return status.New(codes.Unauthenticated, d.Message)
	}
	return status.New(codes.PermissionDenied, d.Message)
}

// Permits says whether the grant's matchers hold on a series. As everywhere in
// PromQL, a label that the series lacks is an empty one. The label set may come from
// anybody: names need not be in order, and one that stands there twice with an
// enforced name is never permitted.
func (g *Grant) Permits(ls labels.Labels) bool {
	for _, m := range g.Enforce {
		value, n := "", 0
		ls.Range(func(l labels.Label) {
			if l.Name == m.Name {
				value = l.Value
				n++
			}
		})
		if n > 1 || !m.Matches(value) {
			return false
		}
	}
	return true
}

// PermitsSet is Permits for a label set of the wire.
func (g *Grant) PermitsSet(ls *storepb.LabelSet) bool {
	for _, m := range g.Enforce {
		if v, n := find(ls, m.Name); n > 1 || !m.Matches(v) {
			return false
		}
	}
	return true
}

// Owns is PermitsSet for what is no series, such as a rule or a target: there,
// that a label is lacking says nothing, so that each enforced one has to be there.
func (g *Grant) Owns(ls *storepb.LabelSet) bool {
	for _, m := range g.Enforce {
		if v, n := find(ls, m.Name); n != 1 || v == "" || !m.Matches(v) {
			return false
		}
	}
	return true
}

func find(ls *storepb.LabelSet, name string) (value string, n int) {
	for _, l := range ls.GetLabels() {
		if l.GetName() == name {
			value = l.GetValue()
			n++
		}
	}
	return value, n
}

// Enforcing returns the matchers with those of the grant behind them, in a slice
// of its own.
func (g *Grant) Enforcing(ms []*labels.Matcher) []*labels.Matcher {
	out := make([]*labels.Matcher, 0, len(ms)+len(g.Enforce))
	return append(append(out, ms...), g.Enforce...)
}

// Clip cuts a range of ms, both bounds inclusive, to what is visible. What is left
// may be empty: the first is then after the second.
func (g *Grant) Clip(minTime, maxTime int64) (int64, int64) {
	return max(minTime, g.MinTime), min(maxTime, g.MaxTime)
}
