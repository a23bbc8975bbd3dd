// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package filtering

import (
	"context"

	"github.com/promweave/promweave/sdk/backend"
)

// stages is a compiled chain.
type stages struct {
	o      Options
	broken error
}

func compile(chain []Link, o Options) (*stages, error) {
	return &stages{o: o}, nil
}

// wrapped is a backend behind a chain.
type wrapped struct {
	backend.Unimplemented
	b      backend.Backend
	c      *stages
	member string
}

// Close implements backend.Closer.
func (w *wrapped) Close() error {
	if c, ok := w.b.(backend.Closer); ok {
		return c.Close()
	}
	return nil
}

// Info implements backend.Backend.
func (w *wrapped) Info(ctx context.Context) (backend.Info, error) { return w.b.Info(ctx) }
