// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package remoteread

import (
	"errors"
	"fmt"
	"iter"
	"net/http"

	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/remoteread/readpb"
	"github.com/promweave/promweave/sdk/storepb/prompb"
)

// DefaultFrame is the size that frames are kept under where one chunk allows it.
const DefaultFrame = 1 << 20

// flushAt is how much of an answer is held back. An answer that fails earlier
// gets a proper status.
const flushAt = 64 << 10

// StreamOptions change how a streamed answer is written.
type StreamOptions struct {
	// Frame is the size in bytes that frames are kept under; 0 means DefaultFrame.
	Frame int
	// OnNotice is told what backends say beside their data, since the protocol
	// has no place for it. An error ends the answer as any other would. Nil drops
	// notices that leave the answer complete and fails on the others.
	OnNotice func(query int, n backend.Notice) error
}

// StreamWriter writes a streamed answer.
type StreamWriter struct {
	w       http.ResponseWriter
	opts    StreamOptions
	buf     []byte
	scratch []byte
	started bool
	failed  bool
}

// NewStreamWriter writes to w. Nothing is sent before the first frames.
func NewStreamWriter(w http.ResponseWriter, opts StreamOptions) *StreamWriter {
	if opts.Frame <= 0 {
		opts.Frame = DefaultFrame
	}
	return &StreamWriter{w: w, opts: opts}
}

// Write sends the series of one query, one series in a frame, several frames for
// a long series. If seq fails the client is told, by a status if nothing was
// sent yet and else by plain text after the last frame, and the error returned;
// the answer is over then. Queries are written in the order of their index.
func (s *StreamWriter) Write(query int, seq iter.Seq2[*backend.Batch, error]) error {
	if s.failed {
		return errors.New("remote read: the answer has failed already")
	}
	for b, err := range seq {
		if err != nil {
			return s.Fail(err)
		}
		if b == nil {
			continue
		}
		for _, n := range b.Notices() {
			if err := s.notice(query, n); err != nil {
				return s.Fail(err)
			}
		}
		for i := range b.Len() {
			if err := s.series(query, b.At(i)); err != nil {
				return s.Fail(err)
			}
			if len(s.buf) >= flushAt {
				if err := s.flush(); err != nil {
					s.failed = true
					return err
				}
			}
		}
	}
	return nil
}

func (s *StreamWriter) notice(query int, n backend.Notice) error {
	if s.opts.OnNotice != nil {
		return s.opts.OnNotice(query, n)
	}
	if n.Kind == backend.NoticeMissing {
		return backend.Errorf(backend.ErrUnavailable, "data are missing: %s", n.Text)
	}
	return nil
}

func (s *StreamWriter) series(query int, series backend.Series) error {
	if len(series.Chunks) == 0 {
		return nil
	}
	lset := labelsToPB(series.Labels)
	base := 16
	for _, l := range lset {
		base += len(l.Name) + len(l.Value) + 8
	}
	out := &readpb.ChunkedSeries{Labels: lset}
	size := base
	send := func() error {
		var err error
		s.scratch, err = appendMessage(s.scratch[:0], &readpb.ChunkedReadResponse{
			ChunkedSeries: []*readpb.ChunkedSeries{out}, QueryIndex: int64(query),
		})
		if err != nil {
			return err
		}
		s.buf = AppendFrame(s.buf, s.scratch)
		out.Chunks, size = out.Chunks[:0], base
		return nil
	}
	for i := range series.Chunks {
		c, err := chunkToPB(&series.Chunks[i])
		if err != nil {
			return err
		}
		n := c.SizeVT() + 6
		if len(out.Chunks) > 0 && size+n > s.opts.Frame {
			if err := send(); err != nil {
				return err
			}
		}
		out.Chunks = append(out.Chunks, c)
		size += n
	}
	return send()
}

// start sends the headers.
func (s *StreamWriter) start() {
	if s.started {
		return
	}
	s.started = true
	s.w.Header().Set("Content-Type", contentStreamed)
	s.w.WriteHeader(http.StatusOK)
}

func (s *StreamWriter) flush() error {
	s.start()
	_, err := s.w.Write(s.buf)
	s.buf = s.buf[:0]
	if err != nil {
		return fmt.Errorf("write remote read answer: %w", err)
	}
	// A client that reads slowly is waited for in Write; this is for one that
	// waits. Writers that cannot flush send when they like.
	if err := http.NewResponseController(s.w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("write remote read answer: %w", err)
	}
	return nil
}

// Fail ends the answer with an error and returns it.
func (s *StreamWriter) Fail(err error) error {
	if s.failed {
		return err
	}
	s.failed = true
	if !s.started {
		s.buf = nil
		http.Error(s.w, err.Error(), Status(err))
		return err
	}
	// What is complete is sent, so that the text stands where a frame would.
	s.buf = append(s.buf, err.Error()...)
	s.buf = append(s.buf, '\n')
	if werr := s.flush(); werr != nil {
		return errors.Join(err, werr)
	}
	return err
}

// Close ends a good answer. It must be called, and does nothing after a failure.
func (s *StreamWriter) Close() error {
	if s.failed {
		return nil
	}
	return s.flush()
}

// WriteStreamed writes a whole streamed answer, one sequence for each query. The
// client has been told of the error that it returns.
func WriteStreamed(w http.ResponseWriter, results []iter.Seq2[*backend.Batch, error], opts StreamOptions) error {
	s := NewStreamWriter(w, opts)
	for i, seq := range results {
		if err := s.Write(i, seq); err != nil {
			return err
		}
	}
	return s.Close()
}

// SampleSeries is a series with its samples in order of time, without duplicates:
// what overlapping chunks of several sources have been merged to.
type SampleSeries struct {
	Labels  labels.Labels
	Samples chunkenc.Iterator
}

// SamplesOptions change how an answer with samples is written.
type SamplesOptions struct {
	// Limit is the most samples for one query, all its series together; 0 is no
	// limit. It acts as samples are decoded.
	Limit int
	// MaxBytes bounds the answer before compression; 0 means DefaultMaxResponse.
	MaxBytes int
}

// WriteSamples writes an answer with samples, one sequence for each query.
// Samples outside the query's range are left out; series without a sample are
// left out too. All of it is in memory until it is complete, so errors get a
// status; the client has been told of the error that is returned.
func WriteSamples(w http.ResponseWriter, queries []Query, results []iter.Seq2[SampleSeries, error], opts SamplesOptions) error {
	b, err := encodeSamples(queries, results, opts)
	if err != nil {
		http.Error(w, err.Error(), Status(err))
		return err
	}
	w.Header().Set("Content-Type", typeProtobuf)
	w.Header().Set("Content-Encoding", "snappy")
	if _, err := w.Write(snappy.Encode(nil, b)); err != nil {
		return fmt.Errorf("write remote read answer: %w", err)
	}
	return nil
}

func encodeSamples(queries []Query, results []iter.Seq2[SampleSeries, error], opts SamplesOptions) ([]byte, error) {
	if len(queries) != len(results) {
		return nil, fmt.Errorf("remote read: %d queries but %d results", len(queries), len(results))
	}
	if opts.MaxBytes <= 0 {
		opts.MaxBytes = DefaultMaxResponse
	}
	var out, result, one []byte
	for i, seq := range results {
		result = result[:0]
		left := opts.Limit
		for s, err := range seq {
			if err != nil {
				return nil, err
			}
			var n int
			if one, n, err = appendTimeSeries(one[:0], s, queries[i], left, opts); err != nil {
				return nil, err
			}
			if n == 0 {
				continue
			}
			left -= n
			if len(out)+len(result)+len(one) > opts.MaxBytes {
				return nil, tooLarge(opts.MaxBytes)
			}
			result = protowire.AppendTag(result, 1, protowire.BytesType)
			result = protowire.AppendBytes(result, one)
		}
		// A query without a result has an empty one, so that the others keep
		// their places.
		out = protowire.AppendTag(out, 1, protowire.BytesType)
		out = protowire.AppendBytes(out, result)
	}
	return out, nil
}

func tooLarge(max int) error {
	return backend.Errorf(backend.ErrLimit, "the answer is larger than %d bytes; select less, or ask for STREAMED_XOR_CHUNKS", max)
}

func appendTimeSeries(b []byte, s SampleSeries, q Query, left int, opts SamplesOptions) ([]byte, int, error) {
	for _, l := range labelsToPB(s.Labels) {
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(l.SizeVT()))
		var err error
		if b, err = appendMessage(b, l); err != nil {
			return b, 0, err
		}
	}
	n := 0
	vt := chunkenc.ValNone
	if q.MinTime <= q.MaxTime {
		vt = s.Samples.Seek(q.MinTime)
	}
	for ; vt != chunkenc.ValNone; vt = s.Samples.Next() {
		if s.Samples.AtT() > q.MaxTime {
			break
		}
		if n++; opts.Limit > 0 && n > left {
			return b, 0, backend.Errorf(backend.ErrLimit, "exceeded sample limit (%d)", opts.Limit)
		}
		var h *prompb.Histogram
		switch vt {
		case chunkenc.ValFloat:
			t, v := s.Samples.At()
			b = appendSample(b, t, v)
		case chunkenc.ValHistogram:
			t, v := s.Samples.AtHistogram(nil)
			h = histogramToPB(t, v)
		case chunkenc.ValFloatHistogram:
			t, v := s.Samples.AtFloatHistogram(nil)
			h = floatHistogramToPB(t, v)
		default:
			return b, 0, fmt.Errorf("series %s has a sample of the unknown type %s", s.Labels, vt)
		}
		if h != nil {
			b = protowire.AppendTag(b, 4, protowire.BytesType)
			b = protowire.AppendVarint(b, uint64(h.SizeVT()))
			var err error
			if b, err = appendMessage(b, h); err != nil {
				return b, 0, err
			}
		}
		if len(b) > opts.MaxBytes {
			return b, 0, tooLarge(opts.MaxBytes)
		}
	}
	if err := s.Samples.Err(); err != nil {
		return b, 0, fmt.Errorf("series %s: %w", s.Labels, err)
	}
	return b, n, nil
}
