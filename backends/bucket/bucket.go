// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package bucket is the backend over blocks in an object-storage bucket, as Thanos keeps them:
// raw and downsampled, with external labels in their meta.json.
//
// Of a block nothing is kept but an index header on disk, which is made when somebody asks for the
// block first (package header). A request reads lists of series, series and chunks of each block
// in a few requests each (package block), a batch at a time, and merges the blocks as they
// stream: its memory is a batch of each block, however long the answer.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/backends/bucket/internal/block"
	"github.com/promweave/promweave/backends/bucket/internal/steady"
	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/sdk/backend"
)

// Source says which blocks there are now. Package view has one.
type Source interface {
	// Blocks are those to read. Neither they nor the list are changed afterwards.
	Blocks() []*meta.Meta
}

// Config of a Backend.
type Config struct {
	// Dir is for index headers, and can be lost.
	Dir string
	// Concurrency is how many blocks are read at once by one request, and how many reads of the
	// bucket run at once by all requests; 0 is 32.
	Concurrency int
	// MaxBytes is the most that one request may fetch of the bucket; 0 is any number.
	MaxBytes int64
	// HeaderIdle is how long an index header stays open without a use; 0 is five minutes.
	HeaderIdle time.Duration
}

// Backend serves the blocks of one bucket.
type Backend struct {
	bkt     objstore.BucketReader
	src     Source
	cfg     Config
	log     *slog.Logger
	headers *headers

	stop chan struct{}
	done chan struct{}
	once sync.Once
}

var (
	_ backend.Backend = (*Backend)(nil)
	_ backend.Closer  = (*Backend)(nil)
)

// New returns a backend that reads from bkt, which it does not close.
func New(bkt objstore.BucketReader, src Source, cfg Config, log *slog.Logger) (*Backend, error) {
	if cfg.Dir == "" {
		return nil, errors.New("bucket: a directory for index headers is needed")
	}
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = 32
	}
	if cfg.HeaderIdle <= 0 {
		cfg.HeaderIdle = 5 * time.Minute
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	bkt = steady.New(bkt, steady.Config{Concurrency: cfg.Concurrency})
	b := &Backend{bkt: bkt, src: src, cfg: cfg, log: log, stop: make(chan struct{}), done: make(chan struct{}), headers: newHeaders(bkt, cfg.Dir, cfg.HeaderIdle, log)}
	go b.sweep()
	return b, nil
}

// sweep closes headers that are not used any more.
func (b *Backend) sweep() {
	defer close(b.done)
	t := time.NewTicker(b.cfg.HeaderIdle / 5)
	defer t.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-t.C:
			known := map[ulid.ULID]bool{}
			for _, m := range b.src.Blocks() {
				known[m.ULID] = true
			}
			b.headers.sweep(func(id ulid.ULID) bool { return known[id] }, time.Now())
		}
	}
}

// Close implements backend.Closer.
func (b *Backend) Close() (err error) {
	b.once.Do(func() {
		close(b.stop)
		<-b.done
		err = b.headers.close()
	})
	return err
}

// usage is what a request may cost.
func (b *Backend) usage() *block.Usage { return &block.Usage{Most: b.cfg.MaxBytes} }

// set are the blocks that have the same external labels.
type set struct {
	ext labels.Labels
	// levels has the blocks of each level of downsampling, finest first, in order of time.
	levels [3][]*meta.Meta
}

// sets sorts blocks into sets, which are in the order of their external labels.
func sets(blocks []*meta.Meta) []*set {
	by := map[string]*set{}
	for _, m := range blocks {
		ext := m.External()
		s := by[ext.String()]
		if s == nil {
			s = &set{ext: ext}
			by[ext.String()] = s
		}
		if i := slices.Index(meta.Resolutions(), m.Resolution()); i >= 0 {
			s.levels[i] = append(s.levels[i], m)
		}
	}
	out := make([]*set, 0, len(by))
	for _, s := range by {
		for _, list := range s.levels {
			slices.SortFunc(list, func(a, b *meta.Meta) int {
				if a.MinTime != b.MinTime {
					return int(max(-1, min(1, a.MinTime-b.MinTime)))
				}
				return a.ULID.Compare(b.ULID)
			})
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *set) int { return labels.Compare(a.ext, b.ext) })
	return out
}

// part is a block, and the times for which it is read, both inclusive, ms.
type part struct {
	m                *meta.Meta
	minTime, maxTime int64
}

// choose are the blocks of a range: those of the coarsest level that will do, and in its gaps
// those of finer ones (rule S-11). A block in two gaps is there once, for all between them.
func (s *set) choose(minTime, maxTime, maxResolution int64) []part {
	level := 0
	for i, r := range meta.Resolutions() {
		if r <= maxResolution {
			level = i
		}
	}
	var out []part
	at := map[ulid.ULID]int{}
	s.fill(minTime, maxTime, level, func(p part) {
		if i, ok := at[p.m.ULID]; ok {
			out[i].minTime, out[i].maxTime = min(out[i].minTime, p.minTime), max(out[i].maxTime, p.maxTime)
			return
		}
		at[p.m.ULID] = len(out)
		out = append(out, p)
	})
	return out
}

// all are the blocks of a range, of every level: for labels, of which a level may lack some.
func (s *set) all(minTime, maxTime int64) (out []part) {
	for _, list := range s.levels {
		for _, m := range list {
			if m.MinTime <= maxTime && m.MaxTime > minTime {
				out = append(out, part{m, minTime, maxTime})
			}
		}
	}
	return out
}

func (s *set) fill(minTime, maxTime int64, level int, add func(part)) {
	if level < 0 || minTime > maxTime {
		return
	}
	start := minTime
	for _, m := range s.levels[level] {
		// The times of a block are half-open; an empty one has none.
		if m.MinTime > maxTime || m.MaxTime <= minTime || m.MinTime == m.MaxTime {
			continue
		}
		if m.MinTime > start {
			s.fill(start, m.MinTime-1, level-1, add)
		}
		add(part{m, minTime, maxTime})
		start = max(start, m.MaxTime)
	}
	s.fill(start, maxTime, level-1, add)
}

// levelsRead says which levels an answer was read from, for the report; "" if only raw data were
// asked for. Nobody could tell otherwise whether an answer is so coarse because it was allowed to be.
func levelsRead(maxResolution int64, n [3]int) string {
	if maxResolution < meta.Resolutions()[1] {
		return ""
	}
	var said []string
	for i, name := range [...]string{"raw", "5m", "1h"} {
		if n[i] > 0 {
			said = append(said, fmt.Sprintf("%s (%d blocks)", name, n[i]))
		}
	}
	slices.Reverse(said)
	if said == nil {
		return ""
	}
	return "resolution: " + strings.Join(said, ", ")
}

// Info implements backend.Backend.
func (b *Backend) Info(context.Context) (backend.Info, error) {
	info := backend.Info{
		Component: "store",
		// Nothing is there until there is a block.
		MinTime: 1<<63 - 1, MaxTime: -1 << 63,
		Capabilities: backend.Capabilities{
			Sharding: true, WithoutReplicaLabels: true, SeriesLimit: true, Downsampled: true, BoundedLabels: true,
			NativeHistograms: true, StaleMarkers: true, Completeness: true,
		},
	}
	for _, s := range sets(b.src.Blocks()) {
		r := backend.LabelSetRange{Labels: s.ext, MinTime: 1<<63 - 1, MaxTime: -1 << 63}
		for _, list := range s.levels {
			for _, m := range list {
				r.MinTime, r.MaxTime = min(r.MinTime, m.MinTime), max(r.MaxTime, m.MaxTime-1)
			}
		}
		info.LabelSets = append(info.LabelSets, s.ext)
		info.Ranges = append(info.Ranges, r)
		info.MinTime, info.MaxTime = min(info.MinTime, r.MinTime), max(info.MaxTime, r.MaxTime)
	}
	return info, nil
}

// trouble is what a request could not read.
type trouble struct {
	partial bool
	mu      sync.Mutex
	notices []backend.Notice
}

// missing takes note of a block that cannot be read, or returns the error that ends the request.
func (t *trouble) missing(ctx context.Context, m *meta.Meta, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var own *backend.Error
	if errors.As(err, &own) { // a limit, for example, is not the block's fault
		return err
	}
	err = fmt.Errorf("block %s cannot be read: %w", m.ULID, err)
	if !t.partial {
		return backend.Errorf(backend.ErrUnavailable, "%w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notices = append(t.notices, backend.Notice{Kind: backend.NoticeMissing, Text: strings.ToValidUTF8(err.Error(), "\uFFFD")})
	return nil
}

func (t *trouble) take() []backend.Notice {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.notices
	t.notices = nil
	return n
}
