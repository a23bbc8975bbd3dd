// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meta

import (
	"encoding/json"
	"time"

	"github.com/oklog/ulid/v2"
)

// Kind is what a mark is for.
type Kind string

// The kinds of marks: the name of their object below the block, without .json.
const (
	// Deletion: the block is to go, after some delay.
	Deletion Kind = "deletion-mark"
	// NoCompact: it is not to be compacted.
	NoCompact Kind = "no-compact-mark"
	// NoDownsample: it is not to be downsampled.
	NoDownsample Kind = "no-downsample-mark"
)

// Kinds are all of them.
func Kinds() []Kind { return []Kind{Deletion, NoCompact, NoDownsample} }

// File is the name of the mark's object below the block.
func (k Kind) File() string { return string(k) + ".json" }

// Reasons of marks.
const (
	ReasonManual                = "manual"
	ReasonIndexTooLarge         = "index-size-exceeding"
	ReasonOutOfOrderChunks      = "block-index-out-of-order-chunk"
	ReasonDownsampledVertically = "downsample-vertical-compaction"
)

// Mark is one mark of a block.
type Mark struct {
	ID   ulid.ULID
	Kind Kind
	// Details are for people.
	Details string
	// Time of marking, in whole seconds.
	Time time.Time
	// Reason in a word; deletion marks have none.
	Reason string
}

// The fields of the three files, in their order.
type (
	deletionMark struct {
		ID      string `json:"id"`
		Version int    `json:"version"`
		Details string `json:"details,omitempty"`
		Time    int64  `json:"deletion_time"`
	}
	noCompactMark struct {
		ID      string `json:"id"`
		Version int    `json:"version"`
		Details string `json:"details,omitempty"`
		Time    int64  `json:"no_compact_time"`
		Reason  string `json:"reason"`
	}
	noDownsampleMark struct {
		ID      string `json:"id"`
		Version int    `json:"version"`
		Details string `json:"details,omitempty"`
		Time    int64  `json:"no_downsample_time"`
		Reason  string `json:"reason"`
	}
	anyMark struct {
		ID               string `json:"id"`
		Version          int    `json:"version"`
		Details          string `json:"details"`
		DeletionTime     int64  `json:"deletion_time"`
		NoCompactTime    int64  `json:"no_compact_time"`
		NoDownsampleTime int64  `json:"no_downsample_time"`
		Reason           string `json:"reason"`
	}
)

// Encode is the mark's file: JSON on one line, without a newline.
func (m *Mark) Encode() ([]byte, error) {
	switch id, at := m.ID.String(), m.Time.Unix(); m.Kind {
	case NoCompact:
		return json.Marshal(noCompactMark{id, 1, m.Details, at, m.Reason})
	case NoDownsample:
		return json.Marshal(noDownsampleMark{id, 1, m.Details, at, m.Reason})
	}
	return json.Marshal(deletionMark{m.ID.String(), 1, m.Details, m.Time.Unix()})
}

// maxMark is the largest mark that is read, in bytes.
const maxMark = 1 << 20

// ParseMark reads the mark of a kind of block id; an error wraps ErrCorrupt.
func ParseMark(id ulid.ULID, kind Kind, data []byte) (*Mark, error) {
	what := id.String() + "/" + kind.File()
	var a anyMark
	if len(data) > maxMark {
		return nil, corrupt(what, "it has %d bytes", len(data))
	}
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, corrupt(what, "%w", err)
	}
	if a.Version != 1 {
		return nil, corrupt(what, "it has version %d, this program reads version 1", a.Version)
	}
	if a.ID != id.String() {
		return nil, corrupt(what, "it is that of block %.40q", a.ID)
	}
	m := &Mark{ID: id, Kind: kind, Details: a.Details, Reason: a.Reason}
	switch kind {
	case Deletion:
		m.Time, m.Reason = time.Unix(a.DeletionTime, 0), ""
	case NoCompact:
		m.Time = time.Unix(a.NoCompactTime, 0)
	case NoDownsample:
		m.Time = time.Unix(a.NoDownsampleTime, 0)
	}
	return m, nil
}
