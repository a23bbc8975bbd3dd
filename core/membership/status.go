// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package membership

import (
	"time"

	"github.com/promweave/promweave/sdk/backend"
)

// Status is what is known of one expected backend, for people and for the API.
type Status struct {
	// Name is unique; a member of a group is called group/member.
	Name string
	// Kind is the configured kind, Address the member's name in its group, or Name.
	Kind, Address string
	Required      bool
	// Healthy: Info succeeded the last time. Known: it ever did.
	Healthy, Known bool
	// Info is the last one that was learned, clipped to the configured time range.
	Info backend.Info
	// LastCheck is when Info last succeeded, LastError why it did not since, and
	// Gone why the backend is expected but not to be found.
	LastCheck time.Time
	LastError string
	Gone      string
	// Warning is what is wrong with it that queries do not notice.
	Warning string
}
