// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package filter is the contract between Promweave and a filter: a plug-in that
// decides about requests, narrows what a backend is asked, or rewrites label sets.
//
// The same source is compiled in, built as a process, or built as a WASM module
// (GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared); sdk/plugin has the main
// function for all of them. This package has no dependencies beyond frames, so that
// a module stays small.
//
// # The law of selection
//
// For every set of matchers M, what is selected through a filter f is
//
//	merge(sort(f(s) for every series s of the store that f keeps and whose f(s) matches M))
//
// and label names and values are those of that result. The host keeps the law, not
// the filter: a Plan says which labels the result may differ in, the host withholds
// matchers on those labels from the store unless operations tell it what they mean
// there, and evaluates them on what comes back.
package filter

import (
	"strings"

	"github.com/promweave/promweave/sdk/frame"
)

// Filter is a kind of filter.
//
//	F-1  A Filter and its Instances MUST be safe for concurrent use.
//	F-2  The result of Rewrite for a row MUST depend on that row and the
//	     configuration alone, if the Plan says pure; never on the rows beside it.
//	F-3  A call MUST return within the host's limit (50 ms unless configured).
//	F-4  Arguments belong to the host and are valid during the call only.
//	F-5  An error fails the request, or by the operator's choice skips a rewrite
//	     filter; it never ends the instance.
type Filter interface {
	// Describe says what the filter is.
	Describe() Description
	// Configure makes an instance. An error names the key that is wrong.
	Configure(c *Config) (Instance, error)
}

// Instance is a configured filter. What else it does is in the optional interfaces
// Requester, Selector and Rewriter, named in Plan.
type Instance interface {
	// Plan is asked once, after Configure.
	Plan() Plan
}

// Requester decides about requests.
type Requester interface {
	Request(c *RequestCall) (*RequestReply, error)
}

// Selector narrows what one backend is asked.
type Selector interface {
	Select(c *SelectCall) (*SelectReply, error)
}

// Rewriter rewrites the label sets of a frame, as far as its tier shows them.
type Rewriter interface {
	// Rewrite fills out; leaving it untouched changes nothing.
	Rewrite(in *frame.Frame, out *frame.Reply) error
}

// Role is what a filter is for.
type Role uint8

// The roles. Auth and tenancy filters always fail closed.
const (
	RoleRewrite Role = iota
	RoleAuth
	RoleTenancy
)

// Permission is something that a WASM module can do only if the operator grants it.
type Permission string

// The permissions.
const (
	PermissionClock   Permission = "clock"
	PermissionRandom  Permission = "random"
	PermissionMetrics Permission = "metrics"
	PermissionHTTP    Permission = "http"
)

// The hooks.
const (
	HookRequest = "request"
	HookSelect  = "select"
	HookRewrite = "rewrite"
)

// Description is what a filter says of itself without configuration.
type Description struct {
	Name, Version string
	Role          Role
	Summary       string
	// ConfigSchema is a JSON Schema; "" accepts anything.
	ConfigSchema string
	Permissions  []Permission
	// Hooks that instances may offer.
	Hooks []string
	// Features and Minor are filled in by the SDK.
	Features []string
	Minor    uint32
}

// Config is what an instance is made of.
type Config struct {
	// Name of the instance in the host's configuration.
	Name string
	// JSON is the configuration as a JSON object, {} if there is none.
	JSON []byte
	// Settings are its scalars in the order of the document.
	Settings []Setting
}

// Setting is one scalar: path "rules[0].from" and the value as text.
type Setting struct{ Path, Value string }

// Tier is how much of a label set Rewrite needs to see.
type Tier uint8

// The tiers, from the cheapest. What each shows and allows is in sdk/frame/README.md.
const (
	TierNone Tier = iota
	TierNames
	TierColumns
	TierRows
)

// Plan is what an instance promises. The zero value does nothing.
type Plan struct {
	Tier Tier
	// Columns of TierColumns.
	Columns []string
	// Reads are the labels that the result depends on, Writes those in which it may
	// differ. The host refuses a reply that writes another label.
	Reads, Writes []string
	// WritesAny stands for all names but those in Keeps.
	WritesAny bool
	Keeps     []string
	// Drops: rows may be left out.
	Drops bool
	// Merge: series that become equal are one, otherwise that is an error.
	Merge bool
	// Operations are done by the host, in order, before Rewrite sees anything. The
	// labels that they write need not be in Writes.
	Operations []Operation
	// Hooks to call: HookRequest, HookSelect.
	Hooks []string
	// Pure: the same label set always gives the same result.
	Pure bool
}

// Operation is a rewrite that the host does itself and can turn round. One field
// is set. A label that is absent has the value "".
type Operation struct {
	// Rename: To gets the value of From, also if that is "", and From is gone.
	Rename *Rename
	// Drop: these labels are gone.
	Drop []string
	// Keep: all other labels are gone.
	Keep []string
	// Set: the label has this value on every series.
	Set *Label
	// Map: values of a label become others; a value that is not listed stays.
	Map *MapValues
	// Require: series that do not match are left out.
	Require *Matcher
}

// Rename renames a label.
type Rename struct{ From, To string }

// Label is a name and a value.
type Label struct{ Name, Value string }

// MapValues maps values of one label.
type MapValues struct {
	Name string
	// Values are pairs of from and to; no from twice.
	Values []Pair
}

// Pair is a value and what becomes of it.
type Pair struct{ From, To string }

// MatchType is how a Matcher compares.
type MatchType uint8

// The types of matchers, numbered as on the wire.
const (
	MatchEqual MatchType = iota
	MatchNotEqual
	MatchRegexp
	MatchNotRegexp
)

// Matcher is a PromQL matcher. Regular expressions are RE2, anchored at both ends.
type Matcher struct {
	Type        MatchType
	Name, Value string
}

// Caller is who asks, as far as the host has verified it.
type Caller struct {
	// Method is basic, bearer or mtls; "" if nobody is known.
	Method  string
	Subject string
	// Claims is a JSON object; ClaimSettings are its scalars.
	Claims        []byte
	ClaimSettings []Setting
	// Headers are those that the operator lets filters see, names in lower case.
	Headers []Header
}

// Names splits an entry of a configuration that names callers: "basic:grafana" is the
// user grafana, and neither a token nor a certificate with that subject; "grafana" is
// the subject by whatever method, "" here.
func Names(entry string) (method, subject string) {
	for _, m := range []string{"basic", "bearer", "mtls"} {
		if rest, ok := strings.CutPrefix(entry, m+":"); ok {
			return m, rest
		}
	}
	return "", entry
}

// Is says whether an entry of a configuration, as for Names, means this caller. Nobody
// means one who is not known.
func (c *Caller) Is(entry string) bool {
	method, subject := Names(entry)
	return c.Method != "" && (method == "" || method == c.Method) && subject == c.Subject
}

// Header is a header of the request.
type Header struct {
	Name   string
	Values []string
}

// RequestCall is a request that is about to begin. Times are ms.
type RequestCall struct {
	Kind, Query      string
	Selectors        [][]Matcher
	Start, End, Step int64
	// Window is the longest time that one selector of Query reads before what Start and
	// End ask for: its range, and those of subqueries around it.
	Window int64
	Caller Caller
}

// RequestReply bounds a request. The zero value lets it go on without bounds.
type RequestReply struct {
	// Deny, if set, ends the request.
	Deny *Denial
	// Enforce must hold on every series that the request gets to see.
	Enforce []Matcher
	// Tenants are who the request is for, for logs and the report.
	Tenants []string
	// Admin: the request may see what belongs to the operator.
	Admin bool
	// MinTime and MaxTime bound what is visible, if HasTimeRange; ms, inclusive.
	HasTimeRange     bool
	MinTime, MaxTime int64
	// Limits where they are lower than the configured ones; 0 is none.
	MaxSeries, MaxSamples, MaxBytes uint64
	// Subject replaces the caller's in logs if not "".
	Subject string
}

// Denial says why not. Status is an HTTP status, 403 if 0.
type Denial struct {
	Status  uint32
	Message string
}

// SelectCall is a selection from one backend that is about to begin. Times are ms.
type SelectCall struct {
	Backend          string
	Matchers         []Matcher
	MinTime, MaxTime int64
	Tenants          []string
}

// SelectReply narrows a selection. The zero value leaves it as it is.
type SelectReply struct {
	Deny *Denial
	// None: nothing can match.
	None bool
	// Require must hold on the backend's own labels, besides all else.
	Require []Matcher
}
