// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package faultfilter is the filter that the tests of carriers use: the reference
// filter of the SDKs, and on demand every kind of fault. It is built for all carriers, and has
// no dependencies that a module would carry.
//
// Settings beside those of the reference filter:
//
//	fault       panic, hang, exit, error, garbage or huge
//	fault_in    request, select or rewrite: the hook that it happens in; or configure
//	fault_from  the number of the first call of the hook that fails, 1 if it is absent
package faultfilter

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/guest/testfilter"
)

// The texts of its errors, for tests to look for.
const (
	PanicText = "the filter panics as it was told to"
	ErrorText = "the filter fails as it was told to"
)

// HugeBytes is the size of what the fault huge adds to a reply.
const HugeBytes = 5 << 20

// New returns the filter. hang is called by the fault of that name and should not return
// as long as anybody waits.
func New(hang func()) filter.Filter { return &faulty{Filter: testfilter.New(), hang: hang} }

type faulty struct {
	filter.Filter
	hang func()
}

func (f *faulty) Describe() filter.Description {
	d := f.Filter.Describe()
	d.Name, d.Summary = "faulty", "The filter that the tests of carriers use."
	d.ConfigSchema = `{"type":"object"}` // it has keys beside those of the reference filter
	return d
}

func (f *faulty) Configure(c *filter.Config) (filter.Instance, error) {
	in := &instance{hang: f.hang, from: 1}
	for _, s := range c.Settings {
		switch s.Path {
		case "fault":
			in.fault = s.Value
			switch s.Value {
			case "panic", "hang", "exit", "error", "garbage", "huge":
			default:
				return nil, errors.New("fault: " + strconv.Quote(s.Value) + " is not known; use panic, hang, exit, error, garbage or huge")
			}
		case "fault_in":
			in.in = s.Value
		case "fault_from":
			n, err := strconv.Atoi(s.Value)
			if err != nil {
				return nil, errors.New("fault_from: " + strconv.Quote(s.Value) + " is no number")
			}
			in.from = int64(n)
		}
	}
	inner, err := f.Filter.Configure(c)
	if err != nil {
		return nil, err
	}
	in.Instance = inner
	return in, in.happen("configure", nil)
}

// instance is an instance of the reference filter with a fault.
type instance struct {
	filter.Instance
	fault, in string
	from      int64
	calls     atomic.Int64
	hang      func()
}

// Plan names the hook with the fault besides those of the reference filter.
func (i *instance) Plan() filter.Plan {
	p := i.Instance.Plan()
	if i.in == filter.HookRequest || i.in == filter.HookSelect {
		for _, h := range p.Hooks {
			if h == i.in {
				return p
			}
		}
		p.Hooks = append(p.Hooks, i.in)
	}
	return p
}

// happen lets the fault happen if this is its hook and its time. out is the reply of
// Rewrite.
func (i *instance) happen(hook string, out *frame.Reply) error {
	if i.in != hook || i.fault == "" || i.calls.Add(1) < i.from {
		return nil
	}
	switch i.fault {
	case "panic":
		panic(PanicText)
	case "hang":
		i.hang()
	case "exit":
		os.Exit(3)
	case "error":
		return errors.New(ErrorText)
	case "garbage":
		if out != nil {
			// Symbols and columns that do not exist.
			out.Group(0)
			out.Constant(1<<30, 1<<30+1)
			out.Input(1<<30, 1<<20)
		}
	case "huge":
		if out != nil {
			out.Group(0)
			out.Constant(out.Intern("huge"), out.Intern(strings.Repeat("x", HugeBytes)))
		}
	}
	return nil
}

func (i *instance) Request(c *filter.RequestCall) (*filter.RequestReply, error) {
	if err := i.happen(filter.HookRequest, nil); err != nil {
		return nil, err
	}
	if r, ok := i.Instance.(filter.Requester); ok {
		return r.Request(c)
	}
	return nil, nil
}

func (i *instance) Select(c *filter.SelectCall) (*filter.SelectReply, error) {
	if err := i.happen(filter.HookSelect, nil); err != nil {
		return nil, err
	}
	if s, ok := i.Instance.(filter.Selector); ok {
		return s.Select(c)
	}
	return nil, nil
}

func (i *instance) Rewrite(in *frame.Frame, out *frame.Reply) error {
	if err := i.happen(filter.HookRewrite, out); err != nil {
		return err
	}
	if out.Touched() {
		return nil
	}
	return i.Instance.(filter.Rewriter).Rewrite(in, out)
}
