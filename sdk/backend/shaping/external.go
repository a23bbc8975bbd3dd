// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package shaping holds what makes a backend correct: external labels, order,
// replica-label removal, sharding, limits and the encoding of samples.
//
// Everything works on the sequences that [backend.Backend] returns, so that the
// pieces compose. A backend that can stream its own series in the order of
// their stored labels writes
//
//	rest, ok := shaping.SplitMatchers(ext, req.Matchers)
//	if !ok {
//		return backend.None()
//	}
//	return shaping.Apply(req, ext, storedSeries(ctx, req, rest))
//
// and may claim Sharding, WithoutReplicaLabels and SeriesLimit. A caller uses
// the same functions to make up for claims that a backend does not make: see
// [Reduce] and [Compensate].
//
// The sequences here are as lazy as what they read: each keeps at most a batch,
// except where the text says that it must buffer. None of them limits memory by
// itself; wrap what they read with a limit where the source is not trusted.
package shaping

import (
	"slices"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
)

// SplitMatchers evaluates the matchers on external labels against the external
// values (rule S-5) and returns the others. With ok false one of them failed and
// the answer is empty. ms is not changed, and rest shares no memory with it: the
// TSDB library, for one, sorts the matchers that it is given in place, and a
// request may be shared with calls to other backends (rule B-3).
func SplitMatchers(ext labels.Labels, ms []*labels.Matcher) (rest []*labels.Matcher, ok bool) {
	external := 0
	for _, m := range ms {
		v := ext.Get(m.Name)
		if v == "" {
			continue
		}
		if !m.Matches(v) {
			return nil, false
		}
		external++
	}
	rest = make([]*labels.Matcher, 0, len(ms)-external)
	for _, m := range ms {
		if ext.Get(m.Name) == "" {
			rest = append(rest, m)
		}
	}
	return rest, true
}

// Matches says whether all matchers hold for ls, a missing label being "".
func Matches(ls labels.Labels, ms []*labels.Matcher) bool {
	for _, m := range ms {
		if !m.Matches(ls.Get(m.Name)) {
			return false
		}
	}
	return true
}

// ExtendLabels returns stored with the external labels set, which win over
// stored ones of the same name, and without the labels named in drop, external
// or stored (rules S-1, S-4). To do so for a whole stream use [Extend].
func ExtendLabels(stored, ext labels.Labels, drop []string) labels.Labels {
	if ext.IsEmpty() && len(drop) == 0 {
		return stored
	}
	b := labels.NewBuilder(stored)
	ext.Range(func(l labels.Label) {
		// An external label without a value is none.
		if l.Value != "" {
			b.Set(l.Name, l.Value)
		}
	})
	b.Del(drop...)
	return b.Labels()
}

// LabelNames answers a LabelNames call of a backend with external labels by
// rules L-1 to L-3. stored returns the names on its series that match rest, in
// any order, and with repetitions if it likes; it is not called where the
// external labels decide alone.
func LabelNames(ext labels.Labels, req *backend.LabelNamesRequest, stored func(rest []*labels.Matcher) ([]string, error)) (*backend.Labels, error) {
	rest, ok := SplitMatchers(ext, req.Matchers)
	if !ok || req.MinTime > req.MaxTime {
		return &backend.Labels{}, nil
	}
	names, err := stored(rest)
	if err != nil || len(names) == 0 {
		return &backend.Labels{}, err
	}
	all := make([]string, 0, len(names)+ext.Len())
	all = append(all, names...)
	ext.Range(func(l labels.Label) {
		if l.Value != "" {
			all = append(all, l.Name)
		}
	})
	all = slices.DeleteFunc(all, func(n string) bool { return slices.Contains(req.WithoutReplicaLabels, n) })
	return &backend.Labels{Values: SortedUnique(all, req.Limit)}, nil
}

// LabelValues answers a LabelValues call of a backend with external labels by
// rules L-2 to L-7. stored returns the values of req.Name on its series that
// match rest, in any order; it is called unless the label is external. exists
// says whether any series matches rest; it is called for an external label and
// matchers on others.
func LabelValues(ext labels.Labels, req *backend.LabelValuesRequest,
	stored func(rest []*labels.Matcher) ([]string, error), exists func(rest []*labels.Matcher) (bool, error),
) (*backend.Labels, error) {
	if req.Name == "" {
		return nil, backend.Errorf(backend.ErrInvalid, "label values: the label name is empty; name a label")
	}
	rest, ok := SplitMatchers(ext, req.Matchers)
	if !ok || req.MinTime > req.MaxTime || slices.Contains(req.WithoutReplicaLabels, req.Name) {
		return &backend.Labels{}, nil
	}
	if v := ext.Get(req.Name); v != "" {
		if len(rest) > 0 {
			if ok, err := exists(rest); err != nil || !ok {
				return &backend.Labels{}, err
			}
		}
		return &backend.Labels{Values: []string{v}}, nil
	}
	values, err := stored(rest)
	if err != nil {
		return &backend.Labels{}, err
	}
	return &backend.Labels{Values: SortedUnique(slices.Clone(values), req.Limit)}, nil
}

// SortedUnique sorts list in place and returns it without repetitions and empty
// strings, cut to limit entries if limit is above zero.
func SortedUnique(list []string, limit int) []string {
	slices.Sort(list)
	list = slices.Compact(list)
	if len(list) > 0 && list[0] == "" {
		list = list[1:]
	}
	if limit > 0 && len(list) > limit {
		list = list[:limit]
	}
	return list
}
