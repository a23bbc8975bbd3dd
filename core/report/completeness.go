// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"strings"
)

// State says how much of what should have been asked is in an answer.
type State string

const (
	// Unknown: nobody can say, for example because the set of backends has not been
	// learned yet. The zero value, so that a forgotten assignment never reads as
	// complete.
	Unknown State = ""
	// Complete: every expected backend that could hold data answered, or what is
	// missing is covered by another one.
	Complete State = "complete"
	// Partial: something that should be in the answer is not.
	Partial State = "partial"
)

// String returns the state, "unknown" for the zero value.
func (s State) String() string {
	if s == Unknown {
		return "unknown"
	}
	return string(s)
}

// MarshalText writes the state as String does.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *State) UnmarshalText(b []byte) error {
	switch string(b) {
	case "unknown", "":
		*s = Unknown
	case "complete":
		*s = Complete
	case "partial":
		*s = Partial
	default:
		return fmt.Errorf("completeness %q: want complete, partial or unknown", b)
	}
	return nil
}

// Reason says why a backend was not asked, or why its share is missing. Reasons
// are data: tests, the console and scripts compare them, texts they never parse.
type Reason string

// Reasons for not asking a backend. None of these makes an answer partial.
const (
	ReasonTimeRange      Reason = "time_range"      // its data, or what may be asked of it, lie outside the range
	ReasonExternalLabels Reason = "external_labels" // a matcher contradicts all its external label sets
	ReasonStoreMatch     Reason = "store_match"     // the request's storeMatch[] left it out
	ReasonCapability     Reason = "capability"      // it does not offer what was asked for
	ReasonTenantPolicy   Reason = "tenant_policy"   // what the caller may see contradicts all its external label sets
)

// Reasons why the share of a backend is missing. Each makes an answer partial,
// unless another backend covers for it.
const (
	ReasonUnhealthy  Reason = "unhealthy"  // Info failed the last time; not asked
	ReasonGone       Reason = "gone"       // expected, but not to be found by discovery
	ReasonFailed     Reason = "failed"     // it answered with an error, or broke off
	ReasonTimeout    Reason = "timeout"    // its time budget ran out
	ReasonProtocol   Reason = "protocol"   // it broke the contract, e.g. unsorted series
	ReasonCorrupt    Reason = "corrupt"    // it sent chunks that do not decode
	ReasonIncomplete Reason = "incomplete" // it said itself that something is missing
	ReasonLimit      Reason = "limit"      // a limit for this backend was hit
	ReasonDenied     Reason = "denied"     // it, or a filter before it, refused
)

// Missing is the share of one backend that should be in the answer and is not.
type Missing struct {
	Backend string `json:"backend"`
	Reason  Reason `json:"reason"`
	// Detail is for people.
	Detail string `json:"detail,omitempty"`
}

// String is one line for people.
func (m Missing) String() string {
	if m.Detail == "" {
		return fmt.Sprintf("%s: %s", m.Backend, m.Reason)
	}
	return fmt.Sprintf("%s: %s: %s", m.Backend, m.Reason, m.Detail)
}

// Completeness says whether an answer holds all it should, and if not what is
// missing and why. HTTP warnings, Cache-Control, the exit code of the command
// line and what the console shows are derived from it, and it from no text.
type Completeness struct {
	State   State     `json:"state"`
	Missing []Missing `json:"missing,omitempty"`
	// Covered are backends whose share is missing but was answered by another
	// backend with the same external labels, replica labels aside.
	Covered []Missing `json:"covered,omitempty"`
	// OnPeersWord names backends that speak plain StoreAPI: they have no words for
	// completeness, so that silence from them counts as complete.
	OnPeersWord []string `json:"onPeersWord,omitempty"`
}

// Warnings are the lines that tell a person what is missing, none when complete.
func (c Completeness) Warnings() []string {
	switch c.State {
	case Complete:
		return nil
	case Unknown:
		return []string{"completeness of this answer is unknown: the backends have not been checked yet"}
	}
	out := make([]string, 0, len(c.Missing))
	for _, m := range c.Missing {
		out = append(out, "partial answer, missing "+m.String())
	}
	if len(out) == 0 {
		out = append(out, "partial answer")
	}
	return out
}

// Infos are remarks that leave the answer complete.
func (c Completeness) Infos() []string {
	out := make([]string, 0, len(c.Covered))
	for _, m := range c.Covered {
		out = append(out, "missing but covered by a replica: "+m.String())
	}
	return out
}

// String is one line.
func (c Completeness) String() string {
	if len(c.Missing) == 0 {
		return c.State.String()
	}
	names := make([]string, len(c.Missing))
	for i, m := range c.Missing {
		names[i] = m.String()
	}
	return c.State.String() + " (" + strings.Join(names, "; ") + ")"
}
