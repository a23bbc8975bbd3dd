// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package suite holds the requirements of the conformance suite and what runs them.
// Package conformance is its public face.
package suite

import (
	"context"

	"github.com/prometheus/prometheus/model/labels"
	"google.golang.org/grpc"

	"github.com/promweave/promweave/conformance/corpus"
	"github.com/promweave/promweave/sdk/backend"
)

// Subject is a backend that is to be certified, and what the harness may do with it.
type Subject struct {
	// Name, Launch, Origin and SHA256 are for the report.
	Name, Launch, Origin, SHA256 string
	// Backend is asked. It must not make up for what the subject lacks: for an endpoint
	// use package wire.
	Backend backend.Backend
	// Wire, if not nil, is a connection to the subject's StoreAPI, for what can only be
	// seen there.
	Wire grpc.ClientConnInterface
	// Corpus is what the subject is loaded with; nil is the whole one, as far as Load can.
	Corpus *corpus.Corpus
	// Load, if not nil, loads the corpus and says which parts it could not, and why. It
	// is the harness's word and not the backend's: a part that is not loaded is skipped.
	Load func(ctx context.Context, c *corpus.Corpus) (missing map[corpus.Part]string, err error)
	// LoadedBy says in a word or two how, for the report.
	LoadedBy string
	// External are the label sets that the subject adds, the corpus once for each; nil
	// takes what Info says.
	External []labels.Labels
	// Claim changes what Info claims, for what a peer has no words for; nil changes nothing.
	Claim func(*backend.Capabilities)
	// NotClaimed are profiles that its owner leaves out, with the reason.
	NotClaimed map[string]string
	// InProcess says that the subject's goroutines are in this process and that its
	// memory is shared: leaks and changes of both are looked for.
	InProcess bool
	// Faults are ways to take away what is behind the subject.
	Faults []Fault
}

// Fault is one way to break what a subject relies on.
type Fault struct {
	Name string
	// Break does it; the subject has Settle-d when it returns. Mend undoes it.
	Break, Mend func(ctx context.Context) error
}
