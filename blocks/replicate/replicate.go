// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package replicate copies blocks from one bucket to another, object by object. A copy that is
// broken off at any moment is an upload that is not whole, which nobody reads, and goes on with
// the next attempt.
package replicate

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"

	"github.com/promweave/promweave/blocks/meta"
)

// ErrDiffers says that the target has another block of the same id.
var ErrDiffers = errors.New("the target has another " + meta.File + " for this id")

// Block copies the block id: segments, index, and meta.json last. It returns false if the target
// has it already, to the byte of its meta.json. Objects that the target has in their size are not
// copied again: a block does not change. Marks are not copied.
func Block(ctx context.Context, from objstore.BucketReader, to objstore.Bucket, id ulid.ULID) (copied bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("replicate block %s: %w", id, err)
		}
	}()
	name := path.Join(id.String(), meta.File)
	data, err := read(ctx, from, name)
	if err != nil {
		return false, err
	}
	m, err := meta.Parse(id, data)
	if err != nil {
		return false, err
	}
	had, err := read(ctx, to, name)
	switch {
	case err == nil && bytes.Equal(had, data):
		return false, nil
	case err == nil:
		return false, ErrDiffers
	case !to.IsObjNotFoundErr(err):
		return false, fmt.Errorf("target: %w", err)
	}
	objects, err := list(ctx, from, m)
	if err != nil {
		return false, err
	}
	for _, o := range objects {
		if err := object(ctx, from, to, m, o); err != nil {
			return false, err
		}
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err := to.Upload(ctx, name, bytes.NewReader(data)); err != nil {
		return false, fmt.Errorf("upload %s: %w", meta.File, err)
	}
	return true, nil
}

func read(ctx context.Context, bkt objstore.BucketReader, name string) ([]byte, error) {
	r, err := bkt.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, meta.MaxBytes+1))
	if err = errors.Join(err, r.Close()); err == nil && len(data) > meta.MaxBytes {
		err = fmt.Errorf("%s is larger than %d bytes", name, meta.MaxBytes)
	}
	return data, err
}

// list are the segments of a block as they are in the bucket, and its index at the end.
func list(ctx context.Context, bkt objstore.BucketReader, m *meta.Meta) (out []string, err error) {
	prefix := m.ULID.String() + objstore.DirDelim
	err = bkt.Iter(ctx, m.ULID.String(), func(name string) error {
		rel := strings.TrimPrefix(name, prefix)
		if dir, file := path.Split(rel); rel == meta.IndexFile || dir == meta.ChunksDir+objstore.DirDelim && file != "" {
			out = append(out, rel)
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return nil, fmt.Errorf("list it: %w", err)
	}
	for _, f := range m.Thanos.Files {
		if f.RelPath != meta.File && !slices.Contains(out, f.RelPath) {
			return nil, fmt.Errorf("%s lists %s, which is not there", meta.File, f.RelPath)
		}
	}
	if !slices.Contains(out, meta.IndexFile) {
		return nil, fmt.Errorf("it has no %s", meta.IndexFile)
	}
	slices.SortFunc(out, func(a, b string) int {
		if a == meta.IndexFile {
			return 1
		} else if b == meta.IndexFile {
			return -1
		}
		return cmp.Compare(a, b)
	})
	return out, nil
}

// object streams one object, and looks at what arrived: not every provider notices a stream that
// ended early.
func object(ctx context.Context, from objstore.BucketReader, to objstore.Bucket, m *meta.Meta, rel string) error {
	name := path.Join(m.ULID.String(), rel)
	a, err := from.Attributes(ctx, name)
	if err != nil {
		return fmt.Errorf("size of %s: %w", rel, err)
	}
	if size, ok := m.Size(rel); ok && size != a.Size {
		return fmt.Errorf("%s has %d bytes, and %s says %d", rel, a.Size, meta.File, size)
	}
	if had, err := to.Attributes(ctx, name); err == nil && had.Size == a.Size {
		return nil
	} else if err != nil && !to.IsObjNotFoundErr(err) {
		return fmt.Errorf("size of %s in the target: %w", rel, err)
	}
	r, err := from.Get(ctx, name)
	if err != nil {
		return fmt.Errorf("get %s: %w", rel, err)
	}
	err = to.Upload(ctx, name, &sized{ctx, r, a.Size})
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", rel, err)
	}
	got, err := to.Attributes(ctx, name)
	if err == nil && got.Size != a.Size {
		err = fmt.Errorf("%d bytes of %d arrived", got.Size, a.Size)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", rel, err)
	}
	return nil
}

// sized is a stream that says how long it is, and ends with its context.
type sized struct {
	ctx  context.Context
	r    io.Reader
	size int64
}

func (s *sized) ObjectSize() (int64, error) { return s.size, nil }

func (s *sized) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}
