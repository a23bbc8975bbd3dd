// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/pluginpb"
)

// BatchWriter turns batches into messages with frames of about FrameBytes. The zero
// value is ready for use; it is for one stream, whose messages share its memory.
type BatchWriter struct {
	encoder backend.FrameEncoder
	msg     pluginpb.SeriesBatch
}

// Send gives the messages for b to send, which must not keep them. An error is
// send's, or names a series that no frame can hold.
func (w *BatchWriter) Send(b *backend.Batch, send func(*pluginpb.SeriesBatch) error) error {
	// Notices come first: a receiver that stops at the data has seen them.
	w.msg.Notices = NoticesToWire(b.Notices())
	w.msg.Frame = nil
	if b.Len() == 0 {
		if len(w.msg.Notices) == 0 {
			return nil
		}
		return send(&w.msg)
	}
	w.encoder.Limit = FrameBytes
	for f, err := range w.encoder.Frames(b) {
		if err != nil {
			return err
		}
		w.msg.Frame = f
		if err := send(&w.msg); err != nil {
			return err
		}
		w.msg.Notices = nil
	}
	return nil
}

// BatchFromWire returns what m says. The batch keeps the memory of m's frame. A frame
// or a series that is not well-formed is an error.
func BatchFromWire(m *pluginpb.SeriesBatch) (*backend.Batch, error) {
	b := &backend.Batch{}
	if len(m.GetFrame()) > 0 {
		var err error
		if b, err = backend.NewFramed(m.GetFrame()); err != nil {
			return nil, err
		}
	}
	if err := AppendPlain(b, m.GetSeries()); err != nil {
		return nil, err
	}
	for _, n := range NoticesFromWire(m.GetNotices()) {
		b.Notify(n)
	}
	return b, nil
}
