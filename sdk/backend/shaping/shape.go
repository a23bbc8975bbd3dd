// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package shaping

import (
	"iter"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
)

// Apply makes the answer to req out of the stored series that match what
// [SplitMatchers] left of the matchers and are in the time range. seq MUST be in
// order of the stored labels; wrap it with [Resort] if it is not. All of
// external labels, WithoutReplicaLabels, Shard, Limit and SkipChunks are done.
func Apply(req *backend.SeriesRequest, ext labels.Labels, seq iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
	if req.MinTime > req.MaxTime {
		return backend.None()
	}
	if req.SkipChunks {
		seq = WithoutChunks(seq)
	}
	return Limit(Sharded(Extend(seq, ext, req.WithoutReplicaLabels), req.Shard), req.Limit)
}

// Reduce returns the request to send to a backend with these capabilities: req
// without the fields that it does not claim to honour. A later step is left to
// the caller as well if an earlier one is: replica labels are removed before
// the hash for sharding is taken, and both before series are counted. req is
// returned as it is if nothing changes, and otherwise copied.
func Reduce(caps backend.Capabilities, req *backend.SeriesRequest) *backend.SeriesRequest {
	todo := reduced(caps, req)
	if todo == (steps{}) {
		return req
	}
	out := *req
	if todo.replica {
		out.WithoutReplicaLabels = nil
	}
	if todo.shard {
		out.Shard = nil
	}
	if todo.limit {
		out.Limit = 0
	}
	return &out
}

// Compensate does to the answer what [Reduce] took out of the request. Both get
// the same arguments.
func Compensate(caps backend.Capabilities, req *backend.SeriesRequest, seq iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
	todo := reduced(caps, req)
	if todo.replica {
		seq = Extend(seq, labels.EmptyLabels(), req.WithoutReplicaLabels)
	}
	if todo.shard {
		seq = Sharded(seq, req.Shard)
	}
	if todo.limit {
		seq = Limit(seq, req.Limit)
	}
	return seq
}

// steps are those that the caller does.
type steps struct{ replica, shard, limit bool }

func reduced(caps backend.Capabilities, req *backend.SeriesRequest) (s steps) {
	s.replica = len(req.WithoutReplicaLabels) > 0 && !caps.WithoutReplicaLabels
	s.shard = req.Shard != nil && (s.replica || !caps.Sharding)
	s.limit = req.Limit > 0 && (s.replica || s.shard || !caps.SeriesLimit)
	return s
}

// Limit passes on the first n series, all pieces of each, and then stops
// reading. n < 1 is no limit. Only consecutive pieces count as one series, as
// rule S-2 has it.
func Limit(seq iter.Seq2[*backend.Batch, error], n int) iter.Seq2[*backend.Batch, error] {
	if n < 1 {
		return seq
	}
	return func(yield func(*backend.Batch, error) bool) {
		count := 0
		var last labels.Labels
		for in, err := range seq {
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range in.Len() {
				s := in.At(i)
				if count > 0 && labels.Equal(s.Labels, last) {
					continue
				}
				if count == n {
					if i > 0 || len(in.Notices()) > 0 {
						yield(head(in, i), nil)
					}
					return
				}
				count, last = count+1, s.Labels
			}
			if !yield(in, nil) {
				return
			}
		}
	}
}

// head is b cut to its first n series.
func head(b *backend.Batch, n int) *backend.Batch {
	out := backend.NewBatch(n)
	for i := range n {
		out.Append(b.At(i))
	}
	for _, notice := range b.Notices() {
		out.Notify(notice)
	}
	return out
}

// Sharded passes on the series that belong to the shard, by their labels as
// they are in seq. A nil shard, and one of less than one part, keeps all.
func Sharded(seq iter.Seq2[*backend.Batch, error], shard *backend.Shard) iter.Seq2[*backend.Batch, error] {
	if shard == nil || shard.Total < 1 {
		return seq
	}
	return func(yield func(*backend.Batch, error) bool) {
		var buf []byte
		for in, err := range seq {
			if err != nil {
				yield(nil, err)
				return
			}
			var out *backend.Batch // stays nil as long as all series are kept
			for i := range in.Len() {
				s := in.At(i)
				var keep bool
				keep, buf = inShard(shard, s.Labels, buf)
				switch {
				case keep && out != nil:
					out.Append(s)
				case !keep && out == nil:
					out = head(in, i)
				}
			}
			if out == nil {
				out = in
			} else if out.Len() == 0 && len(out.Notices()) == 0 {
				continue
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}

// InShard says whether a series with the final label set ls is in the shard.
func InShard(shard *backend.Shard, ls labels.Labels) bool {
	if shard == nil || shard.Total < 1 {
		return true
	}
	ok, _ := inShard(shard, ls, nil)
	return ok
}

// Hash is the number that shards are chosen by: xxhash64, seed 0, over name,
// 0xFF, value, 0xFF of each label that counts, in order. It is the function of
// the Thanos StoreAPI, so that both make the same parts.
func Hash(shard *backend.Shard, ls labels.Labels) uint64 {
	return xxhash.Sum64(hashInput(shard, ls, nil))
}

func inShard(shard *backend.Shard, ls labels.Labels, buf []byte) (bool, []byte) {
	buf = hashInput(shard, ls, buf[:0])
	return xxhash.Sum64(buf)%uint64(shard.Total) == uint64(shard.Index), buf
}

func hashInput(shard *backend.Shard, ls labels.Labels, buf []byte) []byte {
	ls.Range(func(l labels.Label) {
		if slices.Contains(shard.Labels, l.Name) != shard.By {
			return
		}
		buf = append(buf, l.Name...)
		buf = append(buf, 0xFF)
		buf = append(buf, l.Value...)
		buf = append(buf, 0xFF)
	})
	return buf
}

// WithoutLabels removes labels from all series and restores the order; see
// [Extend] for what it buffers.
func WithoutLabels(seq iter.Seq2[*backend.Batch, error], names []string) iter.Seq2[*backend.Batch, error] {
	if len(names) == 0 {
		return seq
	}
	return Extend(seq, labels.EmptyLabels(), names)
}

// WithoutChunks removes the chunks, for requests with SkipChunks. Pieces of one
// series that meet in a batch become one.
func WithoutChunks(seq iter.Seq2[*backend.Batch, error]) iter.Seq2[*backend.Batch, error] {
	return func(yield func(*backend.Batch, error) bool) {
		for in, err := range seq {
			if err != nil {
				yield(nil, err)
				return
			}
			out := backend.NewBatch(in.Len())
			for i := range in.Len() {
				ls := in.At(i).Labels
				if n := out.Len(); n > 0 && labels.Equal(out.At(n-1).Labels, ls) {
					continue
				}
				out.Append(backend.Series{Labels: ls})
			}
			for _, n := range in.Notices() {
				out.Notify(n)
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}
