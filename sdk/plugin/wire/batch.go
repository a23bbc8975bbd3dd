// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// BatchWriter turns batches into messages with frames. The zero value is ready for
// use; it is for one stream.
type BatchWriter struct {
	buf []byte
	msg pluginpb.SeriesBatch
}

// Send gives the messages for b to send, which must not keep them.
func (w *BatchWriter) Send(b *backend.Batch, send func(*pluginpb.SeriesBatch) error) error {
	panic("not yet")
}

// BatchFromWire returns what m says. The batch keeps the memory of m's frame. A frame
// or a series that is not well-formed is an error.
func BatchFromWire(m *pluginpb.SeriesBatch) (*backend.Batch, error) {
	panic("not yet")
}
