// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout

import (
	"context"
	"slices"

	"github.com/promweave/promweave/core/report"
)

// Account is one backend's share of one selection, as far as it concerns what is
// wrapped around the backend: the context of each call to a backend carries it. All
// methods may be called on nil, concurrently, and after the call is over.
type Account struct{ a *ask }

type accountKey struct{}

// AccountOf returns the account of a call to a backend; nil outside of one.
func AccountOf(ctx context.Context) *Account {
	a, _ := ctx.Value(accountKey{}).(*Account)
	return a
}

// Charge counts what a wrapper gathers against the limits of the request, before it
// gathers more. Its error fails the request and is to be returned as it is. Series
// and samples that are handed on are counted as they arrive: they are not to be
// charged here.
func (c *Account) Charge(series, samples, bytes int) error {
	if c == nil {
		return nil
	}
	c.a.s.mu.Lock()
	defer c.a.s.mu.Unlock()
	if c.a.over {
		return errOver
	}
	return c.a.s.Limits.Add(series, samples, bytes)
}

// Release takes charged bytes back: those that are handed on, which are charged
// again when they arrive, and those that are not held any more.
func (c *Account) Release(bytes int) {
	if c != nil {
		c.a.s.Limits.Return(bytes)
	}
}

// Filter notes in the report what a filter did. The numbers of several calls with
// one name add up, the last note stays.
func (c *Account) Filter(e report.FilterEffect) {
	if c == nil {
		return
	}
	c.a.s.mu.Lock()
	defer c.a.s.mu.Unlock()
	if c.a.over {
		return
	}
	row := c.a.row
	i := slices.IndexFunc(row.Filters, func(x report.FilterEffect) bool { return x.Name == e.Name })
	if i < 0 {
		e.Withheld = slices.Clone(e.Withheld)
		row.Filters = append(row.Filters, e)
		return
	}
	f := &row.Filters[i]
	f.SeriesIn += e.SeriesIn
	f.SeriesOut += e.SeriesOut
	f.Calls += e.Calls
	f.Seconds += e.Seconds
	for _, m := range e.Withheld {
		if !slices.Contains(f.Withheld, m) {
			f.Withheld = append(f.Withheld, m)
		}
	}
	if e.Note != "" {
		f.Note = e.Note
	}
}
