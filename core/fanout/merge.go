// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout

import (
	"fmt"
	"unicode/utf8"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/promweave/promweave/sdk/backend"
)

// protocolError is a broken rule of the contract.
type protocolError struct {
	rule, text string
}

func (e *protocolError) Error() string {
	return fmt.Sprintf("broke rule %s of the backend contract: %s", e.rule, e.text)
}

// checker verifies what every later step relies on: order (rules S-1 and S-2)
// and well-formed label sets (S-3). Bytes that are not UTF-8 reach this point
// because the wire codec lets them pass, so that one bad label fails one backend
// with a name and a place, and not a connection.
type checker struct {
	last  labels.Labels
	begun bool
}

func (c *checker) check(s backend.Series) error {
	if c.begun {
		switch d := labels.Compare(c.last, s.Labels); {
		case d > 0:
			return &protocolError{"S-1", fmt.Sprintf("series %s came after %s", s.Labels, c.last)}
		case d == 0:
			return nil // a further piece: its label set has been checked
		}
	}
	c.last, c.begun = s.Labels, true
	var (
		prev string
		err  error
	)
	i := 0
	s.Labels.Range(func(l labels.Label) {
		switch {
		case err != nil:
		case l.Name == "" || l.Value == "":
			err = &protocolError{"S-3", fmt.Sprintf("empty label name or value in %q=%q of %s", l.Name, l.Value, s.Labels)}
		case i > 0 && l.Name <= prev:
			err = &protocolError{"S-3", fmt.Sprintf("label names %q and %q are not in order or repeated in %s", prev, l.Name, s.Labels)}
		case !utf8.ValidString(l.Name) || !utf8.ValidString(l.Value):
			err = &protocolError{"S-3", fmt.Sprintf("label %q=%q is not valid UTF-8", l.Name, l.Value)}
		}
		prev = l.Name
		i++
	})
	return err
}

// CheckList verifies a list of label names or values (rules L-1 and L-4) as far as
// later steps rely on it: they sort it themselves, but cannot mend its bytes.
func CheckList(values []string) error {
	for _, v := range values {
		if !utf8.ValidString(v) {
			return &protocolError{"L-1, L-4", fmt.Sprintf("label name or value %q is not valid UTF-8", v)}
		}
	}
	return nil
}

// merger merges runs that are each in order of comparePieces; equal pieces come
// in order of their runs. It is a binary heap of the runs' heads: runs are few,
// and those without series never enter it.
type merger struct {
	heads []head
}

type head struct {
	rest  []piece
	order int
}

func newMerger(runs []run) *merger {
	m := &merger{}
	for i := range runs {
		if len(runs[i].pieces) > 0 {
			m.heads = append(m.heads, head{runs[i].pieces, i})
		}
	}
	for i := len(m.heads)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
	return m
}

func (m *merger) less(i, j int) bool {
	if c := comparePieces(&m.heads[i].rest[0], &m.heads[j].rest[0]); c != 0 {
		return c < 0
	}
	return m.heads[i].order < m.heads[j].order
}

func (m *merger) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(m.heads) {
			return
		}
		if c+1 < len(m.heads) && m.less(c+1, c) {
			c++
		}
		if !m.less(c, i) {
			return
		}
		m.heads[i], m.heads[c] = m.heads[c], m.heads[i]
		i = c
	}
}

// next returns the least piece, nil at the end.
func (m *merger) next() *piece {
	if len(m.heads) == 0 {
		return nil
	}
	h := &m.heads[0]
	p := &h.rest[0]
	if h.rest = h.rest[1:]; len(h.rest) == 0 {
		last := len(m.heads) - 1
		m.heads[0] = m.heads[last]
		m.heads = m.heads[:last]
	}
	m.down(0)
	return p
}
