// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package header keeps of each block's index on disk what is needed to find anything in it: the
// symbols, and where the list of series of each label value lies. The file is the index-header,
// version 1, of Thanos' store gateway (pkg/block/indexheader), byte for byte, so that the
// directories of one serve the other:
//
//	 0  4  magic 0xBAAAD792
//	 4  1  version of this file, 1
//	 5  1  version of the index
//	 6  8  where the index has its table of postings offsets
//	14     a copy of the index from the symbols to the series
//	       a copy of the index from the table of postings offsets to its end
//	-20 8  where this file has the symbols
//	-12 8  where this file has the table of postings offsets
//	 -4 4  CRC-32C of those 16 bytes
//
// Numbers are big endian.
package header

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/blocks/meta"
)

const (
	magic       = 0xBAAAD792
	version     = 1
	prefixSize  = 14
	trailerSize = 20
	tocSize     = 6*8 + 4
)

// FileName is the name of the file in a block's local directory.
const FileName = "index-header"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrCorrupt is wrapped by errors about an index or a header that is there and cannot be used.
var ErrCorrupt = errors.New("is corrupt")

func corrupt(what, format string, args ...any) error {
	return fmt.Errorf("%s %w: "+format, append([]any{what, ErrCorrupt}, args...)...)
}

// tail is how much of the end of an index is read at first: of most blocks it holds the whole
// table of postings offsets.
const tail = 64 << 10

// toc says where the sections of an index begin.
type toc struct{ symbols, series, postingsTable uint64 }

// Build makes the header of a block from its index in a bucket, whose size in bytes is known.
// It appears in dir, which is made, when it is whole and on disk. Errors name the object.
func Build(ctx context.Context, bkt objstore.BucketReader, id ulid.ULID, size int64, dir string) (err error) {
	name := path.Join(id.String(), meta.IndexFile)
	if size < index.HeaderLen+tocSize {
		return corrupt(name, "it has %d bytes", size)
	}
	end, err := read(ctx, bkt, name, max(0, size-tail), min(size, tail))
	if err != nil {
		return err
	}
	t, err := parseTOC(name, end[len(end)-tocSize:], uint64(size))
	if err != nil {
		return err
	}
	// The header is right before the symbols, or they are elsewhere.
	from := min(t.symbols, index.HeaderLen)
	head, err := read(ctx, bkt, name, 0, int64(t.series))
	if err != nil {
		return err
	}
	v := head[4]
	if binary.BigEndian.Uint32(head) != index.MagicIndex || v != index.FormatV1 && v != index.FormatV2 || from != index.HeaderLen {
		return corrupt(name, "its header is %x: want an index of version 1 or 2", head[:index.HeaderLen])
	}
	symbols := head[t.symbols:t.series]
	if err := section(symbols); err != nil {
		return corrupt(name, "symbols: %w", err)
	}
	var table []byte
	if at := uint64(size - int64(len(end))); t.postingsTable >= at {
		table = end[t.postingsTable-at:]
	} else {
		more, err := read(ctx, bkt, name, int64(t.postingsTable), int64(at-t.postingsTable))
		if err != nil {
			return err
		}
		table = append(more, end...)
	}
	if err := section(table); err != nil {
		return corrupt(name, "table of postings offsets: %w", err)
	}
	return write(dir, v, t, symbols, table)
}

// read reads a range, all of it.
func read(ctx context.Context, bkt objstore.BucketReader, name string, off, n int64) (_ []byte, err error) {
	r, err := bkt.GetRange(ctx, name, off, n)
	if err != nil {
		return nil, fmt.Errorf("get %s, %d bytes from %d: %w", name, n, off, err)
	}
	defer r.Close()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("get %s, %d bytes from %d: %w", name, n, off, err)
	}
	return b, nil
}

func parseTOC(name string, b []byte, size uint64) (t toc, err error) {
	if crc32.Checksum(b[:tocSize-4], castagnoli) != binary.BigEndian.Uint32(b[tocSize-4:]) {
		return t, corrupt(name, "the checksum of its table of contents does not hold")
	}
	t = toc{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[40:])}
	if t.symbols < index.HeaderLen || t.series <= t.symbols || t.postingsTable <= t.series || t.postingsTable > size-tocSize {
		return t, corrupt(name, "its table of contents has symbols at %d, series at %d, postings offsets at %d of %d bytes", t.symbols, t.series, t.postingsTable, size)
	}
	return t, nil
}

// section checks a section at the beginning of b: its length in 4 bytes, the body and its
// checksum.
func section(b []byte) error {
	if len(b) < 8 {
		return errors.New("it is cut off")
	}
	n := uint64(binary.BigEndian.Uint32(b))
	if n+8 > uint64(len(b)) {
		return fmt.Errorf("it has %d bytes, of which %d are there", n, len(b)-8)
	}
	body := b[4 : 4+n]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(b[4+n:]) {
		return errors.New("its checksum does not hold")
	}
	return nil
}

func write(dir string, v byte, t toc, symbols, table []byte) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+FileName+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	head := binary.BigEndian.AppendUint32(nil, magic)
	head = append(head, version, v)
	head = binary.BigEndian.AppendUint64(head, t.postingsTable)
	end := binary.BigEndian.AppendUint64(nil, prefixSize)
	end = binary.BigEndian.AppendUint64(end, prefixSize+uint64(len(symbols)))
	end = binary.BigEndian.AppendUint32(end, crc32.Checksum(end, castagnoli))
	for _, b := range [][]byte{head, symbols, table, end} {
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, FileName))
}
