// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package storepb

import (
	"io"
	"sync"

	"github.com/klauspost/compress/s2"
	"google.golang.org/grpc/encoding"
)

// Snappy is the name of the gRPC compressor with framed snappy. Thanos can be
// told to send requests with it, so servers must know it. Importing this package
// registers it; unlike a codec it has no effect on calls that do not ask for it.
const Snappy = "snappy"

func init() { encoding.RegisterCompressor(&snappyCompressor{}) }

type snappyCompressor struct {
	writers sync.Pool
	readers sync.Pool
}

func (*snappyCompressor) Name() string { return Snappy }

func (c *snappyCompressor) Compress(w io.Writer) (io.WriteCloser, error) {
	sw, ok := c.writers.Get().(*snappyWriter)
	if !ok {
		// Without the option each writer runs goroutines of its own; one message
		// is too little work to share out.
		sw = &snappyWriter{
			w:    s2.NewWriter(w, s2.WriterSnappyCompat(), s2.WriterConcurrency(1)),
			pool: &c.writers,
		}
		return sw, nil
	}
	sw.w.Reset(w)
	return sw, nil
}

func (c *snappyCompressor) Decompress(r io.Reader) (io.Reader, error) {
	sr, ok := c.readers.Get().(*s2.Reader)
	if !ok {
		// Snappy has no larger blocks, so larger ones are not worth the memory.
		sr = s2.NewReader(r, s2.ReaderMaxBlockSize(64<<10), s2.ReaderAllocBlock(64<<10))
	} else {
		sr.Reset(r)
	}
	return &snappyReader{r: sr, pool: &c.readers}, nil
}

type snappyWriter struct {
	w    *s2.Writer
	pool *sync.Pool
}

func (w *snappyWriter) Write(p []byte) (int, error) { return w.w.Write(p) }

func (w *snappyWriter) Close() error {
	err := w.w.Close()
	// Let go of the connection's buffer while waiting in the pool.
	w.w.Reset(nil)
	w.pool.Put(w)
	return err
}

// snappyReader gives the reader below back at the end of the stream. The
// wrapper is not pooled, so that reading on after the end cannot touch a reader
// that somebody else has by then.
type snappyReader struct {
	r    *s2.Reader
	pool *sync.Pool
	err  error
}

func (r *snappyReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.r.Read(p)
	if err != nil {
		r.err = err
		r.r.Reset(nil)
		r.pool.Put(r.r)
		r.r = nil
	}
	return n, err
}
