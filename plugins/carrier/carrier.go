// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package carrier is what the host sees of a plug-in, however it is carried:
// compiled in, as a process, over the network, or as a WASM module. Each carrier has
// a package beside this one; all pass the suite in carriertest.
package carrier

import (
	"context"
	"errors"
	"time"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

// Plugin is a plug-in that is loaded, or is being loaded again after a fault. It is
// safe for concurrent use.
//
//	C-1  Every call MUST return promptly after its context is done, whatever the
//	     plug-in does; the host is never stopped by a plug-in that hangs.
//	C-2  A fault of the plug-in (a crash, a trap, a timeout, an invalid reply) MUST
//	     come as an error that wraps ErrFault and names the plug-in. What a plug-in
//	     says by itself is an error with a kind of sdk/backend.
//	C-3  After a fault the carrier MUST bring the plug-in back by itself, with
//	     backoff, and refuse meanwhile with an error that wraps ErrFault and
//	     backend.ErrUnavailable.
type Plugin interface {
	// Description is what the plug-in said of itself when it was first loaded, or met.
	Description() Description
	// Filter configures an instance of a filter. It outlives restarts of the plug-in.
	Filter(ctx context.Context, c *filter.Config) (Filter, error)
	// Backend configures an instance of a store backend, which is a backend.Closer.
	Backend(ctx context.Context, c *filter.Config) (backend.Backend, error)
	// Status is cheap and never waits for the plug-in.
	Status() Status
	// Close ends the plug-in, and waits until nothing of it is left. Calls under way
	// may finish first, for a few seconds.
	Close() error
}

// Filter is a configured instance of a filter.
type Filter interface {
	// Plan does not change.
	Plan() filter.Plan
	// Request and Select call the hooks; a hook that the plan does not name is not called.
	Request(ctx context.Context, c *filter.RequestCall) (*filter.RequestReply, error)
	Select(ctx context.Context, c *filter.SelectCall) (*filter.SelectReply, error)
	// Rewrite gives a frame to the filter and appends its reply to reply[:0], which it
	// returns; nil is "unchanged". The reply is not validated yet.
	Rewrite(ctx context.Context, frame, reply []byte) ([]byte, error)
	// Close releases the instance.
	Close() error
}

// Rejecter is implemented by filters whose carrier wants to know when a reply of
// Rewrite turned out to be invalid.
type Rejecter interface {
	// Reject counts a fault and throws away what may have made the reply. It returns
	// err as an error that wraps ErrFault and names the plug-in.
	Reject(err error) error
}

// ErrFault is wrapped by errors that are the plug-in's fault.
var ErrFault = errors.New("plug-in fault")

// ErrTimeout is wrapped by faults that are calls which took too long. To errors.Is it is
// context.DeadlineExceeded too.
var ErrTimeout error = timeout{}

type timeout struct{}

func (timeout) Error() string { return "no answer in time" }

// Is implements what errors.Is asks for.
func (timeout) Is(target error) bool { return target == context.DeadlineExceeded }

type largeKey struct{}

// Large marks the context of a call whose argument is so large that to be late with it
// says nothing about the plug-in: such a fault is one for who asked, and opens no circuit.
func Large(ctx context.Context) context.Context { return context.WithValue(ctx, largeKey{}, true) }

// IsLarge says whether a call is one of those.
func IsLarge(ctx context.Context) bool { return ctx.Value(largeKey{}) != nil }

// Description is filter.Description for plug-ins of any kind.
type Description struct {
	filter.Description
	// Backend says that it is a store backend; otherwise it is a filter.
	Backend bool
	// Known is false as long as the plug-in has never answered: all that there is then is
	// a name, that of the configuration.
	Known bool
}

// State is what a plug-in is doing.
type State string

// The states.
const (
	Starting   State = "starting"
	Serving    State = "serving"
	BackingOff State = "backing off" // after a fault, until the next attempt
	Failed     State = "failed"      // too many faults: the circuit is open, attempts are rare
	Closed     State = "closed"
)

// Status is what operators see of a plug-in.
type Status struct {
	// Launch is builtin, spawn, dial or wasm; Origin the path or address.
	Launch, Origin string
	// SHA256 of the file that runs, in hex; "" without a file.
	SHA256 string
	State  State
	Since  time.Time
	// Restarts since the start of this process, and faults by kind: crash, trap,
	// timeout, invalid reply, ...
	Restarts int
	Faults   map[string]int
	// LastFault in words, when it was, and what the plug-in wrote last before it.
	LastFault     string
	LastFaultTime time.Time
	LastLines     []string
	// PID of a process; 0 otherwise.
	PID int
	// MemoryBytes that it takes, as far as is known.
	MemoryBytes int64
	// Instances alive and busy: of a WASM module its pool, otherwise configurations. One
	// that tidies up between calls is busy.
	Instances, Busy int
	// Calls so far.
	Calls int64
	// Permissions granted.
	Permissions []string
}
