// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/promweave/promweave/bins/promweave/internal/bucketclient"
	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/bins/promweave/internal/shipping"
	"github.com/promweave/promweave/blocks/ship"
	"github.com/promweave/promweave/blocks/transfer"
	"github.com/promweave/promweave/sdk/backend"
)

const (
	// askTime is how long a start waits for a Prometheus to say whether its blocks may be shipped.
	askTime = 5 * time.Second
	// lastShip is how long the end of the process waits for the last blocks: less than the 30 s
	// that Kubernetes gives.
	lastShip = 20 * time.Second
)

// shipOf is how a backend's blocks are shipped, and from where; nil if they are not.
func shipOf(bc config.Backend) (*config.Ship, string) {
	switch {
	case bc.TSDB != nil && bc.TSDB.Ship != nil:
		return bc.TSDB.Ship, bc.TSDB.Path
	case bc.Prometheus != nil && bc.Prometheus.Ship != nil:
		return bc.Prometheus.Ship, bc.Prometheus.Ship.Dir
	}
	return nil, ""
}

// openShipping makes what ships the blocks of a backend. What is known to be wrong is an error; a
// Prometheus that cannot be asked yet is not.
func (s *stores) openShipping(ctx context.Context, bc config.Backend, c *config.Ship, dir string, b backend.Backend, log *slog.Logger, reg prometheus.Registerer) (*shipping.Loop, error) {
	log = log.With("part", "ship")
	bkt, err := s.buckets.Open(bucketclient.Config{Objstore: []byte(c.Objstore), Name: bc.Name})
	if err != nil {
		return nil, err
	}
	source, _ := b.(shipping.Source)
	l := shipping.New(bkt, shipping.Config{
		Labels: labels.FromMap(bc.ExternalLabels), Source: source, Interval: c.Interval,
		Ship: ship.Config{
			Dir: dir, Compacted: c.Compacted, OutOfOrder: c.OutOfOrder, SkipCorrupted: c.SkipCorrupted,
			Upload: transfer.Options{Concurrency: c.Concurrency, SHA256: c.HashFunc != ""},
			Logger: log, Registerer: reg,
		},
	})
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	switch err := l.Check(ctx); {
	case errors.Is(err, shipping.ErrRefused):
		return nil, errors.Join(err, l.Close())
	case err != nil:
		log.Warn("whether blocks may be shipped is not known yet; it is asked again", "err", err)
	}
	return l, nil
}

// notShipped keeps blocks that have yet to be shipped. It says so once for each.
func notShipped(dir string, compacted bool, log *slog.Logger) func(tsdb.BlockMeta) bool {
	var mu sync.Mutex
	told := map[ulid.ULID]bool{}
	return func(m tsdb.BlockMeta) bool {
		if m.Stats.NumSamples == 0 || m.Compaction.Level > 1 && !compacted {
			return false // it never will be
		}
		done, err := ship.Shipped(dir)
		if err == nil && slices.Contains(done, m.ULID) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		if !told[m.ULID] {
			told[m.ULID] = true
			log.Warn("a block is past its retention and stays until it was shipped", "block", m.ULID, "max", time.UnixMilli(m.MaxTime).UTC(), "err", err)
		}
		return true
	}
}

// warning is for membership.
func (k *kernel) warning() func() string {
	if k.loop == nil {
		return nil
	}
	return k.loop.Problem
}

func (k *kernel) stopShipping(within time.Duration) {
	if k.loop != nil {
		k.loop.Stop(within)
	}
}

// stopShipping ships what can be shipped in time, of all backends at once, and no more from then on.
func (s *stores) stopShipping(within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all sync.WaitGroup
	for _, st := range s.opened {
		all.Go(func() { st.core.v.stopShipping(within) })
	}
	all.Wait()
}
