// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package ship uploads the finished blocks of a TSDB directory to a bucket, as Thanos' sidecar
// does (pkg/shipper), beside the program that writes them and that removes them some day. A
// process that is killed at any moment loses none and uploads none under two names.
package ship

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/blocks/meta"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/blocks/view"
)

// Config of a Shipper.
type Config struct {
	// Dir is the data directory of the TSDB.
	Dir string
	// StateFile is the name of the file in Dir that says what was shipped; "" is that of Thanos.
	StateFile string
	// Labels are the external labels at this moment. Nothing is shipped without any: nobody could
	// tell whose the blocks are. They win over those that a block may have already.
	Labels func() labels.Labels
	// Source is what is said of where blocks come from; "" is meta.SourceSidecar.
	Source string
	// Compacted has blocks shipped that were compacted locally, if the bucket has nothing yet
	// that they overlap.
	Compacted bool
	// OutOfOrder has younger blocks shipped though an older one failed, and compacted ones without
	// a look at what they overlap. A compactor that has gone past may then find overlaps.
	OutOfOrder bool
	// SkipCorrupted goes on past blocks that cannot be read, or that are not fit for a bucket:
	// they are logged and counted. Without it they are an error, and end a run.
	SkipCorrupted bool
	// Upload is how blocks are uploaded.
	Upload transfer.Options
	Logger *slog.Logger
	// Registerer gets the metrics promweave_shipper_…; nil is none.
	Registerer prometheus.Registerer
}

// Shipper ships the blocks of one directory. There is one for a directory.
type Shipper struct {
	bkt     objstore.Bucket
	cfg     Config
	log     *slog.Logger
	view    *view.Fetcher
	metrics *metrics

	mu        sync.Mutex         // held by a run
	removeAll func(string) error // os.RemoveAll, which tests look at
}

// New returns a Shipper.
func New(bkt objstore.Bucket, cfg Config) *Shipper {
	if cfg.StateFile == "" {
		cfg.StateFile = stateFile
	}
	if cfg.Source == "" {
		cfg.Source = meta.SourceSidecar
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Shipper{bkt: bkt, cfg: cfg, log: cfg.Logger, view: view.NewFetcher(bkt, view.Config{Logger: cfg.Logger}), metrics: newMetrics(cfg.Registerer, cfg.Logger), removeAll: os.RemoveAll}
}

// ErrNoLabels says that there are no external labels.
var ErrNoLabels = errors.New("there are no external labels: without them blocks are not shipped")

// errVanished says that the TSDB removed a block while it was looked at.
var errVanished = errors.New("the block is not there any more")

// Sync ships what has not been shipped, oldest first, and says how many blocks it uploaded. After
// an error it is for the caller to wait, longer each time, and to call again: what is in the
// bucket by then is not uploaded again.
func (s *Shipper) Sync(ctx context.Context) (uploaded int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metrics.syncs.Inc()
	defer func() {
		if err != nil {
			s.metrics.syncFailures.Inc()
		}
	}()
	external := s.cfg.Labels()
	if external.IsEmpty() {
		return 0, ErrNoLabels
	}
	list, problems, err := s.candidates()
	if err != nil {
		return 0, err
	}
	if len(problems) > 0 && !s.cfg.SkipCorrupted {
		return 0, errors.Join(problems...)
	}
	problems = nil
	st := s.readState()
	// What is not on disk any more need not be known.
	st.keep(func(id ulid.ULID) bool {
		return slices.ContainsFunc(list, func(c candidate) bool { return c.meta.ULID == id })
	})
	if err := s.writeState(st); err != nil {
		return 0, err
	}
	var overlap *overlaps
	failedCompacted := false
	for _, c := range list {
		compacted := c.meta.Compaction.Level > 1
		if st.has(c.meta.ULID) || c.meta.Stats.NumSamples == 0 || compacted && !s.cfg.Compacted {
			if c.links && st.has(c.meta.ULID) {
				if err := s.tidy(c.meta.ULID); err != nil {
					return uploaded, err
				}
			}
			continue
		}
		did, err := s.ship(ctx, c, external, &overlap)
		if did {
			uploaded++
			s.metrics.uploads.Inc()
		}
		if err == nil {
			st.add(c.meta.ULID)
			if err := s.writeState(st); err != nil {
				return uploaded, err
			}
			if err := s.tidy(c.meta.ULID); err != nil {
				return uploaded, err
			}
			continue
		}
		if errors.Is(err, errVanished) {
			if err := s.tidy(c.meta.ULID); err != nil {
				return uploaded, err
			}
			continue
		}
		err = fmt.Errorf("ship block %s: %w", c.meta.ULID, err)
		failedCompacted = failedCompacted || compacted
		unfit := errors.Is(err, transfer.ErrUnfit)
		if unfit {
			s.metrics.corrupted.Inc()
			if s.cfg.SkipCorrupted {
				s.log.Error("a block is not shipped", "err", err)
				continue
			}
		} else {
			s.metrics.uploadFailures.Inc()
		}
		problems = append(problems, err)
		if ctx.Err() != nil || unfit || !s.cfg.OutOfOrder {
			break
		}
	}
	if s.cfg.Compacted && !failedCompacted {
		s.metrics.compactedDone.Set(1)
	} else {
		s.metrics.compactedDone.Set(0)
	}
	return uploaded, errors.Join(problems...)
}

// candidate is a block that may have to be shipped.
type candidate struct {
	meta *meta.Meta
	// links are there of an earlier run.
	links bool
	// left: they are all there is, because the TSDB has removed the block since; meta is what
	// that run was about to upload.
	left bool
}

// candidates are the blocks of the directory by their times, and errors about others that
// cannot be read.
func (s *Shipper) candidates() (out []candidate, problems []error, err error) {
	known := map[ulid.ULID]bool{}
	links := map[ulid.ULID]bool{}
	for _, in := range []struct {
		dir  string
		left bool
	}{{s.cfg.Dir, false}, {s.uploads(), true}} {
		entries, err := os.ReadDir(in.dir)
		if err != nil && (!in.left || !errors.Is(err, os.ErrNotExist)) {
			return nil, nil, err
		}
		for _, e := range entries {
			id, ok := meta.IDFromName(e.Name())
			if !ok || !e.IsDir() {
				continue
			}
			links[id] = in.left
			if known[id] {
				continue
			}
			dir := filepath.Join(in.dir, e.Name())
			m, err := readMeta(id, dir)
			if errors.Is(err, errVanished) {
				continue
			}
			if err != nil && in.left {
				// It was not complete when the process went, and there is nothing to make it of.
				if err := s.tidy(id); err != nil {
					return nil, nil, err
				}
				continue
			}
			// The links of a block that is there are made anew.
			known[id] = true
			if err != nil {
				s.metrics.corrupted.Inc()
				s.log.Error("a block of the TSDB cannot be read, and is not shipped", "block", id, "err", err)
				problems = append(problems, err)
				continue
			}
			out = append(out, candidate{meta: m, left: in.left})
		}
	}
	for i, c := range out {
		out[i].links = links[c.meta.ULID]
	}
	slices.SortFunc(out, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.meta.MinTime, b.meta.MinTime), a.meta.ULID.Compare(b.meta.ULID))
	})
	return out, problems, nil
}

func readMeta(id ulid.ULID, dir string) (*meta.Meta, error) {
	data, err := os.ReadFile(filepath.Join(dir, meta.File))
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			return nil, errVanished
		}
		return nil, fmt.Errorf("block %s %w: it has no %s", id, meta.ErrCorrupt, meta.File)
	}
	if err != nil {
		return nil, err
	}
	return meta.Parse(id, data)
}

// uploads is the directory of the links, that of Thanos.
func (s *Shipper) uploads() string { return filepath.Join(s.cfg.Dir, "thanos", "upload") }

// tidy removes the links of a block: meta.json, which says that all are there, goes first.
func (s *Shipper) tidy(id ulid.ULID) error {
	dir := filepath.Join(s.uploads(), id.String())
	switch err := os.Remove(filepath.Join(dir, meta.File)); {
	case err == nil:
		if err := syncDir(dir); err != nil {
			return err
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	return s.removeAll(dir)
}

// ship uploads a block if it is not in the bucket, and says whether it did.
func (s *Shipper) ship(ctx context.Context, c candidate, external labels.Labels, overlap **overlaps) (bool, error) {
	id := c.meta.ULID
	there, err := s.there(ctx, id)
	if err != nil || there {
		return false, err
	}
	m := c.meta
	if !c.left {
		m = c.meta.Clone()
		m.Thanos.Labels = map[string]string{}
		maps.Copy(m.Thanos.Labels, c.meta.Thanos.Labels)
		external.Range(func(l labels.Label) { m.Thanos.Labels[l.Name] = l.Value })
		m.Thanos.Source = s.cfg.Source
	}
	if m.Compaction.Level > 1 && !s.cfg.OutOfOrder {
		if *overlap == nil {
			if *overlap, err = s.look(ctx); err != nil {
				return false, err
			}
		}
		if err := (*overlap).check(m); err != nil {
			return false, err
		}
	}
	dir := filepath.Join(s.uploads(), id.String())
	if !c.left {
		if err := s.link(m, dir); err != nil {
			return false, err
		}
	}
	up, err := transfer.Upload(ctx, s.bkt, dir, m, s.cfg.Upload)
	if err != nil {
		return false, err
	}
	if *overlap != nil {
		(*overlap).add(up)
	}
	s.log.Info("shipped a block", "block", id, "min", time.UnixMilli(m.MinTime).UTC(), "max", time.UnixMilli(m.MaxTime).UTC(), "compaction_level", m.Compaction.Level)
	return true, nil
}

// there says whether the bucket has a block. A meta.json that cannot be parsed does not count:
// some providers keep what was written until the writer was killed.
func (s *Shipper) there(ctx context.Context, id ulid.ULID) (bool, error) {
	name := path.Join(id.String(), meta.File)
	r, err := s.bkt.Get(ctx, name)
	if err != nil {
		if s.bkt.IsObjNotFoundErr(err) {
			return false, nil
		}
		return false, fmt.Errorf("get %s: %w", name, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, meta.MaxBytes+1))
	if err != nil {
		if s.bkt.IsObjNotFoundErr(err) { // some providers ask only when they are read
			return false, nil
		}
		return false, fmt.Errorf("get %s: %w", name, err)
	}
	if _, err := meta.Parse(id, data); err != nil {
		s.log.Warn("a block is in the bucket with a broken meta.json, and is uploaded again", "block", id, "err", err)
		return false, nil
	}
	return true, nil
}

// link makes hard links of the files of a block, which the TSDB may remove at any moment, and
// writes m beside them when they are all there. Only what goes into the bucket is linked:
// tombstones do not, so samples that were deleted by them are there again, as with Thanos.
func (s *Shipper) link(m *meta.Meta, to string) error {
	from := filepath.Join(s.cfg.Dir, m.ULID.String())
	vanished := func(err error) error {
		if _, serr := os.Stat(from); errors.Is(err, os.ErrNotExist) && errors.Is(serr, os.ErrNotExist) {
			return errVanished
		}
		return err
	}
	if m.Stats.NumTombstones > 0 {
		s.log.Warn("a block has tombstones, and a bucket does not: what they delete is there again", "block", m.ULID, "tombstones", m.Stats.NumTombstones)
	}
	chunks := filepath.Join(to, meta.ChunksDir)
	if err := s.tidy(m.ULID); err != nil {
		return err
	}
	if err := os.MkdirAll(chunks, 0o755); err != nil {
		return err
	}
	segments, err := os.ReadDir(filepath.Join(from, meta.ChunksDir))
	if err != nil {
		return vanished(err)
	}
	for _, e := range segments {
		if err := os.Link(filepath.Join(from, meta.ChunksDir, e.Name()), filepath.Join(chunks, e.Name())); err != nil {
			return vanished(err)
		}
	}
	if err := os.Link(filepath.Join(from, meta.IndexFile), filepath.Join(to, meta.IndexFile)); err != nil {
		return vanished(err)
	}
	data, err := m.Encode()
	if err != nil {
		return err
	}
	if err := errors.Join(syncDir(chunks), syncDir(to)); err != nil {
		return err
	}
	return writeFile(filepath.Join(to, meta.File), data)
}

// overlaps knows what the bucket has, for compacted blocks.
type overlaps struct {
	// streams are the blocks by what they are a part of.
	streams map[string][]*meta.Meta
}

func (s *Shipper) look(ctx context.Context) (*overlaps, error) {
	v, err := s.view.Fetch(ctx)
	if err != nil {
		return nil, err
	}
	if !v.Complete() {
		return nil, fmt.Errorf("whether it overlaps others is not known: %d blocks of the bucket cannot be read now", len(v.Problems))
	}
	o := &overlaps{streams: map[string][]*meta.Meta{}}
	for _, b := range v.Blocks {
		o.add(b.Meta)
	}
	return o, nil
}

func (o *overlaps) add(m *meta.Meta) {
	o.streams[m.Stream()] = append(o.streams[m.Stream()], m)
}

// check says which block of the same level and labels a block overlaps. Thanos compares with
// downsampled ones too, which always overlap what they were made of.
func (o *overlaps) check(m *meta.Meta) error {
	for _, b := range o.streams[m.Stream()] {
		if b.ULID != m.ULID && b.MinTime < m.MaxTime && m.MinTime < b.MaxTime {
			return fmt.Errorf("it was compacted to level %d, and the bucket has block %s, which it overlaps", m.Compaction.Level, b.ULID)
		}
	}
	return nil
}
