// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package compactcmd

import (
	"context"
	"log/slog"
	"time"

	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/blocks/lease"
)

// alone holds the lease of the bucket for as long as the command runs, and takes it anew after it
// was lost.
type alone struct {
	bkt objstore.Bucket
	dir string
	log *slog.Logger
	l   *lease.Lease
}

func (a *alone) hold(ctx context.Context) (err error) {
	if a.l != nil && !a.l.Lost() {
		return nil
	}
	a.release()
	a.l = nil
	l, err := lease.Hold(ctx, a.bkt, lease.Config{Dir: a.dir, Logger: a.log})
	if err == nil {
		a.l = l
	}
	return err
}

func (a *alone) check(ctx context.Context) error { return a.l.Check(ctx) }

func (a *alone) release() {
	if a.l == nil {
		return
	}
	// It is also released when the command was told to end.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := a.l.Release(ctx); err != nil {
		a.log.Warn("the next compactor with another --data-dir will wait some minutes for this one", "err", err)
	}
}
