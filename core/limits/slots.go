// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"context"
	"sync"
)

// slots are places for queries that run. One that becomes free goes to whoever waits
// and has the fewest, the longest waiting first: a caller with a hundred queries keeps
// another one with its first from nothing but the end of one of them.
type slots struct {
	most int

	mu      sync.Mutex
	running int
	by      map[string]int // running, by caller; none is 0
	waiting []*turn        // in the order in which they came
}

type turn struct {
	who   string
	ready chan struct{} // closed when it has its place
}

func newSlots(most int) *slots { return &slots{most: most, by: map[string]int{}} }

// take waits for a place, which give gives back.
func (s *slots) take(ctx context.Context, who string) error {
	s.mu.Lock()
	if s.running < s.most {
		s.begin(who)
		s.mu.Unlock()
		return nil
	}
	t := &turn{who, make(chan struct{})}
	s.waiting = append(s.waiting, t)
	s.mu.Unlock()
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, x := range s.waiting {
		if x == t {
			s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
			return context.Cause(ctx)
		}
	}
	return nil // it got its place meanwhile
}

func (s *slots) begin(who string) {
	s.running++
	s.by[who]++
}

func (s *slots) give(who string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	if s.by[who]--; s.by[who] == 0 {
		delete(s.by, who)
	}
	next := -1
	for i, t := range s.waiting {
		if next < 0 || s.by[t.who] < s.by[s.waiting[next].who] {
			next = i
		}
	}
	if next < 0 {
		return
	}
	t := s.waiting[next]
	s.waiting = append(s.waiting[:next], s.waiting[next+1:]...)
	s.begin(t.who)
	close(t.ready)
}

// taken is how many places are.
func (s *slots) taken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}
