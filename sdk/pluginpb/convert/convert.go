// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package convert turns the messages of a filter into those of pluginpb, for carriers
// that speak gRPC, and back.
//
// It goes through their common encoding, so that one place knows which field is which
// (sdk/filter/wire.go) and every carrier refuses the same messages. That costs about a
// microsecond a call, and there is one call for a request or a selection, none for a
// series.
package convert

import (
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/pluginpb"
)

type message interface {
	MarshalVTStrict() ([]byte, error)
	UnmarshalVT([]byte) error
}

// to fills m with an encoding that was made here. That cannot fail.
func to[M message](m M, b []byte) M {
	if err := m.UnmarshalVT(b); err != nil {
		panic("convert: an encoding of our own is refused: " + err.Error())
	}
	return m
}

func from[T any](m message, decode func([]byte) (T, error)) (T, error) {
	b, err := m.MarshalVTStrict()
	if err != nil {
		var none T
		return none, err
	}
	return decode(b)
}

// ToDescription makes the message of the kind filter.
func ToDescription(d *filter.Description) *pluginpb.Description {
	return to(&pluginpb.Description{}, filter.AppendDescription(nil, d))
}

// FromDescription refuses a description that is not that of a filter.
func FromDescription(d *pluginpb.Description) (*filter.Description, error) {
	return from(d, filter.DecodeDescription)
}

// ToConfigureRequest makes the message of a host with a minor version.
func ToConfigureRequest(c *filter.Config, minor uint32) *pluginpb.ConfigureRequest {
	return to(&pluginpb.ConfigureRequest{}, filter.AppendConfigureRequest(nil, c, minor))
}

// FromConfigureRequest returns the configuration; the minor version is r.Minor.
func FromConfigureRequest(r *pluginpb.ConfigureRequest) (*filter.Config, error) {
	return from(r, func(b []byte) (*filter.Config, error) {
		c, _, err := filter.DecodeConfigureRequest(b)
		return c, err
	})
}

// ToPlan makes the message of a plan.
func ToPlan(p *filter.Plan) *pluginpb.Plan { return to(&pluginpb.Plan{}, filter.AppendPlan(nil, p)) }

// FromPlan is the plan of a ConfigureReply. A nil one does nothing.
func FromPlan(p *pluginpb.Plan) (*filter.Plan, error) { return from(p, filter.DecodePlan) }

// ToRequestCall makes the message to an instance.
func ToRequestCall(instance uint64, c *filter.RequestCall) *pluginpb.RequestCall {
	m := to(&pluginpb.RequestCall{}, filter.AppendRequestCall(nil, c))
	m.Instance = instance
	return m
}

// FromRequestCall returns the call; the instance is c.Instance.
func FromRequestCall(c *pluginpb.RequestCall) (*filter.RequestCall, error) {
	return from(c, filter.DecodeRequestCall)
}

// ToRequestReply makes the message; nil is the zero value.
func ToRequestReply(r *filter.RequestReply) *pluginpb.RequestReply {
	if r == nil {
		r = &filter.RequestReply{}
	}
	return to(&pluginpb.RequestReply{}, filter.AppendRequestReply(nil, r))
}

// FromRequestReply returns the reply.
func FromRequestReply(r *pluginpb.RequestReply) (*filter.RequestReply, error) {
	return from(r, filter.DecodeRequestReply)
}

// ToSelectCall makes the message to an instance.
func ToSelectCall(instance uint64, c *filter.SelectCall) *pluginpb.SelectCall {
	m := to(&pluginpb.SelectCall{}, filter.AppendSelectCall(nil, c))
	m.Instance = instance
	return m
}

// FromSelectCall returns the call; the instance is c.Instance.
func FromSelectCall(c *pluginpb.SelectCall) (*filter.SelectCall, error) {
	return from(c, filter.DecodeSelectCall)
}

// ToSelectReply makes the message; nil is the zero value.
func ToSelectReply(r *filter.SelectReply) *pluginpb.SelectReply {
	if r == nil {
		r = &filter.SelectReply{}
	}
	return to(&pluginpb.SelectReply{}, filter.AppendSelectReply(nil, r))
}

// FromSelectReply returns the reply.
func FromSelectReply(r *pluginpb.SelectReply) (*filter.SelectReply, error) {
	return from(r, filter.DecodeSelectReply)
}
