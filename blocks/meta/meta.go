// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package meta reads and writes what is said of a block in a bucket: meta.json and the
// marks beside it. The forms are those of Thanos (pkg/block/metadata), byte for byte, so
// that its programs and ours can share a bucket.
package meta

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
)

// Names of objects below a block's own, <ULID>/.
const (
	File      = "meta.json"
	IndexFile = "index"
	ChunksDir = "chunks"
)

// The levels of downsampling, in ms: Resolution is one of them.
const (
	Raw         int64 = 0
	FiveMinutes int64 = 300_000
	OneHour     int64 = 3_600_000
)

// Resolutions are all levels, finest first.
func Resolutions() []int64 { return []int64{Raw, FiveMinutes, OneHour} }

// What made a block: Thanos.Source.
const (
	SourceSidecar         = "sidecar"
	SourceCompactor       = "compactor"
	SourceCompactorRepair = "compactor.repair"
	SourceBucketRepair    = "bucket.repair"
	SourceBucketRewrite   = "bucket.rewrite"
	SourceBucketUpload    = "bucket.upload"
)

// MaxBytes is the largest meta.json that is read: that of a compacted block of two weeks
// has some 100 kB.
const MaxBytes = 16 << 20

// Meta is a meta.json: what Prometheus says of a block, and what Thanos adds. Times are ms,
// and the block holds [MinTime, MaxTime).
type Meta struct {
	tsdb.BlockMeta
	Thanos Thanos `json:"thanos"`
}

// Thanos is what a block in a bucket has besides.
type Thanos struct {
	// Version of this section: 0 or 1.
	Version int `json:"version,omitempty"`
	// Labels are the external labels; not empty in a bucket.
	Labels     map[string]string `json:"labels"`
	Downsample Downsample        `json:"downsample"`
	Source     string            `json:"source"`
	// SegmentFiles are the names in chunks/, in order. Thanos' store needs them.
	SegmentFiles []string `json:"segment_files,omitempty"`
	// Files are all objects of the block with their sizes, in order of RelPath.
	Files []BlockFile `json:"files,omitempty"`
	// Rewrites are what a tool has changed in the block.
	Rewrites json.RawMessage `json:"rewrites,omitempty"`
	// IndexStats size first reads.
	IndexStats IndexStats `json:"index_stats"`
	// Extensions are whatever others keep here.
	Extensions json.RawMessage `json:"extensions,omitempty"`
	// UploadTime is when the upload was about to be complete. The zero time is written too.
	UploadTime time.Time `json:"upload_time"`
}

// Downsample is the level of a block.
type Downsample struct {
	Resolution int64 `json:"resolution"`
}

// BlockFile is one object of a block.
type BlockFile struct {
	// RelPath is below the block, with slashes.
	RelPath string `json:"rel_path"`
	// SizeBytes is 0 for meta.json.
	SizeBytes int64     `json:"size_bytes,omitempty"`
	Hash      *FileHash `json:"hash,omitempty"`
}

// FileHash is a digest of an object, in hex.
type FileHash struct {
	Func  string `json:"hashFunc"`
	Value string `json:"value"`
}

// IndexStats are the largest sizes in a block, in bytes; 0 is not known.
type IndexStats struct {
	SeriesMaxSize int64 `json:"series_max_size,omitempty"`
	ChunkMaxSize  int64 `json:"chunk_max_size,omitempty"`
}

// External are the external labels as a label set.
func (m *Meta) External() labels.Labels { return labels.FromMap(m.Thanos.Labels) }

// Resolution is the level of the block, in ms.
func (m *Meta) Resolution() int64 { return m.Thanos.Downsample.Resolution }

// Stream is what blocks have in common that are one sequence in time, and may be compacted
// with each other: the level and the external labels, in one form.
func (m *Meta) Stream() string {
	return fmt.Sprintf("%d@%s", m.Resolution(), m.External())
}

// Size of an object of the block in bytes, by its path below the block; false if
// meta.json does not say.
func (m *Meta) Size(rel string) (int64, bool) {
	i, ok := slices.BinarySearchFunc(m.Thanos.Files, rel, func(f BlockFile, rel string) int { return strings.Compare(f.RelPath, rel) })
	if !ok || m.Thanos.Files[i].SizeBytes == 0 {
		return 0, false
	}
	return m.Thanos.Files[i].SizeBytes, true
}

// ErrCorrupt is wrapped by errors about a meta.json or mark that is there and cannot be used.
var ErrCorrupt = errors.New("is corrupt")

func corrupt(what, format string, args ...any) error {
	return fmt.Errorf("%s %w: "+format, append([]any{what, ErrCorrupt}, args...)...)
}

var segmentName = regexp.MustCompile(`^[0-9]{6}$`)

// Parse reads the meta.json of block id and checks it: an error wraps ErrCorrupt. What this
// version does not know is ignored.
func Parse(id ulid.ULID, data []byte) (*Meta, error) {
	what := id.String() + "/" + File
	if len(data) > MaxBytes {
		return nil, corrupt(what, "it has %d bytes, more than the %d that one may have", len(data), MaxBytes)
	}
	var m Meta
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, corrupt(what, "%w", err)
	}
	switch {
	case m.Version != 1:
		return nil, corrupt(what, "it has version %d, this program reads version 1", m.Version)
	case m.Thanos.Version > 1 || m.Thanos.Version < 0:
		return nil, corrupt(what, "its section thanos has version %d, this program reads version 1", m.Thanos.Version)
	case m.ULID != id:
		return nil, corrupt(what, "it is that of block %s", m.ULID)
	case m.MinTime > m.MaxTime:
		return nil, corrupt(what, "its times are from %d to %d", m.MinTime, m.MaxTime)
	case !slices.Contains(Resolutions(), m.Resolution()):
		return nil, corrupt(what, "its resolution is %d ms, which is none of %v", m.Resolution(), Resolutions())
	}
	for name, value := range m.Thanos.Labels {
		if name == "" || value == "" {
			return nil, corrupt(what, "it has the external label %q=%q", name, value)
		}
	}
	for _, name := range m.Thanos.SegmentFiles {
		if !segmentName.MatchString(name) {
			return nil, corrupt(what, "it has the segment file %q", name)
		}
	}
	for _, f := range m.Thanos.Files {
		if f.RelPath == "" || path.IsAbs(f.RelPath) || path.Clean(f.RelPath) != f.RelPath || strings.HasPrefix(f.RelPath, "..") || f.SizeBytes < 0 {
			return nil, corrupt(what, "it has the file %q of %d bytes", f.RelPath, f.SizeBytes)
		}
	}
	slices.SortFunc(m.Thanos.Files, func(a, b BlockFile) int { return strings.Compare(a.RelPath, b.RelPath) })
	return &m, nil
}

// Encode is the file: indented by tabs, with a newline at the end.
func (m *Meta) Encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "\t")
	if err := enc.Encode(m); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Clone is a copy that shares nothing that is changed in place.
func (m *Meta) Clone() *Meta {
	c := *m
	c.Compaction.Sources = slices.Clone(m.Compaction.Sources)
	c.Compaction.Parents = slices.Clone(m.Compaction.Parents)
	c.Compaction.Hints = slices.Clone(m.Compaction.Hints)
	c.Thanos.Labels = maps.Clone(m.Thanos.Labels)
	c.Thanos.SegmentFiles = slices.Clone(m.Thanos.SegmentFiles)
	c.Thanos.Files = slices.Clone(m.Thanos.Files)
	return &c
}

// IDFromName is the block that an object belongs to, by the first part of its name.
func IDFromName(name string) (ulid.ULID, bool) {
	first, _, _ := strings.Cut(name, "/")
	id, err := ulid.ParseStrict(first)
	return id, err == nil && id.String() == first
}
