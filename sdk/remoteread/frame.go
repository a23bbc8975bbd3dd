// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package remoteread is a small codec for Prometheus remote read, both ends of
// it: a client that turns answers into series of the backend contract, and what
// a server needs to answer in either response type.
//
// The format is described at
// https://prometheus.io/docs/prometheus/latest/querying/remote_read_api/. It is
// written anew here because the package in the Prometheus repository pulls the
// authentication kits of three clouds into every program that imports it.
package remoteread

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// DefaultMaxFrame is the largest frame that a FrameReader takes if not told
// otherwise. Servers aim at 1 MiB, but a label set and one chunk always fit,
// however large they are.
const DefaultMaxFrame = 50 << 20

// maxText is how much of a message inside a broken stream is shown.
const maxText = 512

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrTruncated is in errors of answers that end too early.
var ErrTruncated = errors.New("the answer ends too early")

// TextError is a message in plain text in the place of a frame. That is how a
// server reports what went wrong after it had begun to answer with status 200.
type TextError struct {
	// Text is the message, cut to a reasonable length.
	Text string
	// Frames is the number of good frames before it.
	Frames int
}

// Error returns the server's words.
func (e *TextError) Error() string {
	return fmt.Sprintf("the server reported, after %d frames: %s", e.Frames, e.Text)
}

// FrameReader reads the frames of a streamed answer: the length of the payload
// as an uvarint, its CRC-32 (Castagnoli) as four bytes, most significant first,
// and the payload.
type FrameReader struct {
	r      *bufio.Reader
	max    int
	frames int
	err    error
}

// NewFrameReader reads frames of at most max bytes; 0 means DefaultMaxFrame.
func NewFrameReader(r io.Reader, max int) *FrameReader {
	if max <= 0 {
		max = DefaultMaxFrame
	}
	return &FrameReader{r: bufio.NewReaderSize(r, 64<<10), max: max}
}

// Next returns the payload of the next frame, which belongs to the caller. At a
// clean end the error is io.EOF. After any error the reader is done.
func (f *FrameReader) Next() ([]byte, error) {
	if f.err != nil {
		return nil, f.err
	}
	b, err := f.next()
	if err != nil {
		f.err = err
		return nil, err
	}
	f.frames++
	return b, nil
}

func (f *FrameReader) next() ([]byte, error) {
	// Everything read of this frame is kept, because it may turn out to be text.
	var head [binary.MaxVarintLen64 + crc32.Size]byte
	n := 0
	var size uint64
	for {
		c, err := f.r.ReadByte()
		if err == io.EOF && n == 0 {
			return nil, io.EOF
		}
		if err != nil {
			return nil, f.broken(head[:n], nil, err, "its length")
		}
		head[n] = c
		n++
		if c < 0x80 {
			var k int
			if size, k = binary.Uvarint(head[:n]); k <= 0 {
				return nil, f.broken(head[:n], nil, nil, "the length overflows")
			}
			break
		}
		if n == binary.MaxVarintLen64 {
			return nil, f.broken(head[:n], nil, nil, "the length overflows")
		}
	}
	if size > uint64(f.max) {
		return nil, f.broken(head[:n], nil, nil, fmt.Sprintf("its length of %d bytes is above the cap of %d", size, f.max))
	}
	k, err := io.ReadFull(f.r, head[n:n+crc32.Size])
	n += k
	if err != nil {
		return nil, f.broken(head[:n], nil, err, "its checksum")
	}
	want := binary.BigEndian.Uint32(head[n-crc32.Size : n])
	payload, err := readAtMost(f.r, int(size))
	if err != nil {
		return nil, f.broken(head[:n], payload, err, "its payload")
	}
	if got := crc32.Checksum(payload, castagnoli); got != want {
		return nil, f.broken(head[:n], payload, nil, fmt.Sprintf("its checksum is %08x, but %08x was announced", got, want))
	}
	return payload, nil
}

// readAtMost reads n bytes, without believing a large n before they are there.
func readAtMost(r io.Reader, n int) ([]byte, error) {
	const step = 1 << 20
	b := make([]byte, min(n, step))
	for have := 0; ; {
		k, err := io.ReadFull(r, b[have:])
		have += k
		if err != nil {
			return b[:have], err
		}
		if have == n {
			return b, nil
		}
		more := make([]byte, min(n, 4*have))
		copy(more, b)
		b = more
	}
}

// broken explains why a frame cannot be read. What was read of it, and what
// follows, is shown instead if it looks like text.
func (f *FrameReader) broken(head, payload []byte, err error, why string) error {
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("reading frame %d, %s: %w", f.frames+1, why, err)
	}
	seen := append(append([]byte{}, head...), payload[:min(len(payload), maxText)]...)
	if err == nil && len(seen) < maxText {
		rest, _ := f.r.Peek(maxText - len(seen))
		seen = append(seen, rest...)
	}
	if text, ok := asText(seen); ok {
		return &TextError{Text: text, Frames: f.frames}
	}
	if err != nil {
		// A body that was cut by the network is an unexpected end already.
		return fmt.Errorf("frame %d lacks %s: %w (%w)", f.frames+1, why, ErrTruncated, io.ErrUnexpectedEOF)
	}
	return undecodable(fmt.Errorf("frame %d is broken: %s", f.frames+1, why))
}

// asText returns b as one line, if b looks like a message for people.
func asText(b []byte) (string, bool) {
	if len(b) > maxText {
		b = b[:maxText]
	}
	// The cut may have gone through a character.
	for i := 0; i < utf8.UTFMax && len(b) == maxText && !utf8.Valid(b); i++ {
		b = b[:len(b)-1]
	}
	if len(b) < 4 || !utf8.Valid(b) {
		return "", false
	}
	for _, r := range string(b) {
		if !unicode.IsPrint(r) && !unicode.IsSpace(r) {
			return "", false
		}
	}
	s := strings.Join(strings.Fields(string(b)), " ")
	return s, s != ""
}

// AppendFrame appends a frame with this payload to dst.
func AppendFrame(dst, payload []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(payload)))
	dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(payload, castagnoli))
	return append(dst, payload...)
}
