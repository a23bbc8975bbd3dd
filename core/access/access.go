// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package access is who may see what: the caller as the API layer has verified it,
// and the grant that the request's filters have given. The engine enforces grants
// below PromQL; who gives them is not its business.
package access

import (
	"context"
	"math"

	"github.com/prometheus/prometheus/model/labels"
)

// Caller is who asks, as far as it was verified.
type Caller struct {
	// Method is basic, bearer or mtls; "" if nobody is known.
	Method  string
	Subject string
	// Claims is a JSON object, nil without claims.
	Claims []byte
	// Headers are those that filters may see. Names in lower case.
	Headers map[string][]string
}

// Ask is a request that wants to begin.
type Ask struct {
	// Kind as in report.Report.
	Kind, Query string
	Selectors   [][]*labels.Matcher
	// Start, End and Step are ms, and so is Window: the longest time that one selector of
	// Query reads before what Start and End ask for, by its range and by subqueries.
	Start, End, Step, Window int64
}

// Gate decides about requests. An error denies; it says no more than the caller
// may know. It is asked once for every request, before anything else is done.
type Gate interface {
	Admit(ctx context.Context, ask *Ask) (*Grant, error)
}

// Grant is what a request may see and use. It is immutable.
type Grant struct {
	// Subject and Tenants are for logs and the report.
	Subject string
	Tenants []string
	// Enforce must hold on every series, and everything else, that the request sees.
	Enforce []*labels.Matcher
	// Admin: the request may see what belongs to the operator, such as configuration.
	Admin bool
	// MinTime and MaxTime bound what is visible, ms, both inclusive.
	MinTime, MaxTime int64
	// Limits where they are lower than the configured ones; 0 is none.
	MaxSeries, MaxSamples, MaxBytes int64
	// Filters that decided, in order, for the report.
	Filters []string
}

// Everything is the grant where no gate is configured.
func Everything() *Grant {
	return &Grant{Admin: true, MinTime: math.MinInt64, MaxTime: math.MaxInt64}
}

// Scoped says whether there is anything that the request must not see.
func (g *Grant) Scoped() bool { return len(g.Enforce) > 0 }

type callerKey struct{}
type grantKey struct{}

// WithCaller adds the verified caller.
func WithCaller(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf returns the caller, one that nobody knows if there is none.
func CallerOf(ctx context.Context) *Caller {
	if c, ok := ctx.Value(callerKey{}).(*Caller); ok {
		return c
	}
	return &Caller{}
}

// WithGrant adds the grant of a request that was admitted.
func WithGrant(ctx context.Context, g *Grant) context.Context {
	return context.WithValue(ctx, grantKey{}, g)
}

// GrantOf returns the grant; nil outside of a request.
func GrantOf(ctx context.Context) *Grant {
	g, _ := ctx.Value(grantKey{}).(*Grant)
	return g
}
