// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package backend

// Group is implemented by a configured backend that stands for several stores,
// found by discovery. A Group's own four calls are never used; its members are
// asked one by one, so that each is pruned, timed and reported by itself.
type Group interface {
	Backend
	// Members are the stores that are expected now, in a stable order. A store
	// that was configured stays in the list when it cannot be found any more, and
	// one that was found stays at least for some minutes, so that it counts as
	// missing and not as absent. The same store MUST be the same Backend value from call to call.
	// A Group closes its members.
	Members() []Member
}

// Member is one store of a Group.
type Member struct {
	// Name is unique in the group and stable, usually the address. It is empty if
	// the group never has more than this one: the group's own name says enough.
	Name string
	// Address is where the store is; Name if empty.
	Address string
	// Backend answers for it. It is there even if the store is gone, and fails then.
	Backend Backend
	// Gone says, in words for people, why the store is expected but not to be
	// found; "" if it is there.
	Gone string
}
