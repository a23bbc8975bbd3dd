// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package backend is the contract between Promweave and a store of time series.
//
// A backend answers four calls: Info, Series, LabelNames and LabelValues. Their
// semantics are those of the Thanos StoreAPI, written down here as numbered
// rules that the conformance suite tests one by one; how the calls travel
// (compiled in, gRPC, a plug-in process, WASM) is not a backend's business.
// Everything else that a store may offer — exemplars, metadata, rules, targets —
// is an optional interface found by type assertion.
//
// Package shaping, below this one, holds what makes a correct backend easy:
// external labels, sorting, replica-label removal, sharding, limits, encoding.
package backend

import (
	"context"
	"iter"
)

// Backend is one store of time series. Implementations are written by third
// parties: this interface never grows, new abilities come as optional interfaces.
//
// # Rules for every call
//
//	B-1  A Backend MUST be safe for concurrent use, and comparable (a pointer).
//	B-2  A call MUST return promptly (well under a second) after its context is
//	     done, with an error that wraps context.Cause or ctx.Err(), and MUST leave
//	     no goroutine, file or connection of its own behind.
//	B-3  Requests belong to the caller and MUST NOT be changed. They MAY be shared
//	     between concurrent calls to several backends.
//	B-4  All times are milliseconds since the Unix epoch. Both bounds of a request
//	     are inclusive; they reach from MinInt64 to MaxInt64 and MUST NOT be added
//	     to without a check for overflow. MinTime > MaxTime selects nothing.
//	B-5  A request that the backend cannot honour exactly MUST be refused with an
//	     error of kind ErrUnsupported, unless the field in question is one that the
//	     caller compensates for (see Capabilities). An empty answer that looks
//	     answered is worse than an error.
//	B-6  Errors SHOULD carry one of the kinds of this package (see Error); an error
//	     without a kind counts as ErrInternal.
//	B-7  A backend that answers although part of its own data was out of reach MUST
//	     say so with a Notice of kind NoticeMissing. Silence means complete.
type Backend interface {
	// Info describes the backend as it is now. It is asked again every few seconds.
	//
	//	I-1  It MUST answer within five seconds; an error means that the backend is
	//	     unhealthy, and is not asked until Info succeeds again.
	//	I-2  LabelSets and the time bounds MUST over-approximate the data: a caller
	//	     never asks a backend whose advertised sets or bounds cannot match.
	//	     No LabelSets means "cannot say" and matches everything.
	//	I-3  A capability MUST be claimed only if it always holds. Unclaimed is safe.
	Info(ctx context.Context) (Info, error)

	// Series streams the series that match, in order.
	//
	//	S-1  Series MUST come in ascending order of their final label sets (external
	//	     labels merged in, replica labels removed where that was asked and is
	//	     claimed), compared pairwise by name bytes and then value bytes, the
	//	     shorter set first on a common prefix: labels.Compare.
	//	S-2  A series MAY come in several consecutive pieces with equal label sets;
	//	     once another series has started it MUST NOT come again.
	//	S-3  Label sets MUST be sorted by name, without duplicate or empty names and
	//	     without empty values. Names and values MUST be valid UTF-8.
	//	S-4  External labels MUST be part of every series and override a stored label
	//	     of the same name.
	//	S-5  A matcher on an external label MUST be evaluated against the external
	//	     value only. If it fails the answer is empty and no error.
	//	S-6  Matchers are PromQL's: a missing label equals "", regular expressions are
	//	     RE2 and anchored at both ends, a dot matches a newline, and several
	//	     matchers on one name are all to hold. Every returned series MUST match all
	//	     of them. A request with only matchers on external labels, or with none,
	//	     selects everything that is left.
	//	S-7  A series MUST be returned if and only if it has a chunk, or a sample, in
	//	     the range. Chunks that overlap the range are returned whole or cut, as is
	//	     cheaper: samples outside the range MAY be there, the caller cuts.
	//	S-8  Chunks SHOULD be ordered by MinTime and then MaxTime and MAY overlap.
	//	     MinTime and MaxTime MUST enclose the samples. A backend that encodes
	//	     chunks itself SHOULD put at most 120 samples in one.
	//	S-9  With SkipChunks a series has no chunks, but is selected as in S-7.
	//	S-10 Limit, Shard and WithoutReplicaLabels MAY be ignored where they are not
	//	     claimed; Hints MAY always be ignored. Limit N > 0 means the first N series
	//	     of the order above.
	//	S-11 Without downsampled data, MaxResolution and Aggregates MUST be ignored.
	//	     With it: the coarsest level that is at most MaxResolution is used, gaps
	//	     are filled with finer levels, never with coarser ones; an aggregate chunk
	//	     holds exactly the aggregates asked for.
	//	S-12 No match is an empty sequence, not an error.
	//
	// The sequence is single use. Breaking out of it cancels the call and MUST free
	// everything. An error ends the sequence; what came before it is valid. Batches
	// and all they refer to belong to the receiver from the moment they are yielded:
	// the backend MUST NOT change or reuse that memory, ever, and MUST keep nothing
	// that goes away with a file or a map behind it.
	Series(ctx context.Context, req *SeriesRequest) iter.Seq2[*Batch, error]

	// LabelNames returns the names of labels on matching series.
	//
	//	L-1  Names are sorted and unique, external labels among them, but only if at
	//	     least one series matches. Names in WithoutReplicaLabels are left out.
	//	L-2  The time range MAY be honoured coarsely (a superset), matchers exactly.
	//	L-3  Limit N > 0 is the first N of the sorted result.
	LabelNames(ctx context.Context, req *LabelNamesRequest) (*Labels, error)

	// LabelValues returns the values of one label on matching series.
	//
	//	L-4  Values are sorted, unique and not empty. L-2 and L-3 hold here too.
	//	L-5  An empty Name MUST be refused with ErrInvalid.
	//	L-6  Of an external label the only value is the external one, returned if and
	//	     only if at least one series matches; without matchers on other labels it
	//	     MAY be returned although no series is there.
	//	L-7  A Name in WithoutReplicaLabels has no values.
	LabelValues(ctx context.Context, req *LabelValuesRequest) (*Labels, error)
}

// Closer is implemented by backends that hold something open. Close is called
// once, after the last call has returned.
type Closer interface {
	Close() error
}
