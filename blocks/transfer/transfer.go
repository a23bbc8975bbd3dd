// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

// Package transfer moves blocks between directories and buckets, in the order by which a
// block that is only half there is never taken for one: what Thanos keeps to (pkg/block).
//
// A block is there if its meta.json is. So meta.json is uploaded last, and goes first.
package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"

	"github.com/promweave/promweave/blocks/meta"
)

// Options of Upload and Download; the zero value will do.
type Options struct {
	// Concurrency is how many files are moved at once; 0 is 4.
	Concurrency int
	// SHA256 has Upload record the digest of each file, by which downloads can tell what they have.
	SHA256 bool
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

func (o *Options) concurrency() int {
	if o.Concurrency > 0 {
		return o.Concurrency
	}
	return 4
}

// Upload puts the block m from a directory into a bucket, and returns its meta as uploaded:
// with the list of its files and the time. A file that Thanos could not read is an error
// before anything is uploaded. After an error the upload may be done again, with the same
// result: nothing is removed, and without its meta.json the block is not there.
func Upload(ctx context.Context, bkt objstore.Bucket, dir string, m *meta.Meta, o Options) (*meta.Meta, error) {
	up := m.Clone()
	files, err := files(ctx, dir, o.SHA256)
	if err == nil {
		err = check(ctx, dir, m, files)
	}
	if err != nil {
		return nil, fmt.Errorf("upload of block %s: %w", m.ULID, err)
	}
	up.Thanos.SegmentFiles, up.Thanos.Files = nil, nil
	for _, f := range files {
		up.Thanos.Files = append(up.Thanos.Files, f)
		if name, ok := strings.CutPrefix(f.RelPath, meta.ChunksDir+"/"); ok {
			up.Thanos.SegmentFiles = append(up.Thanos.SegmentFiles, name)
		}
	}
	up.Thanos.Files = append(up.Thanos.Files, meta.BlockFile{RelPath: meta.File})
	slices.SortFunc(up.Thanos.Files, func(a, b meta.BlockFile) int { return strings.Compare(a.RelPath, b.RelPath) })

	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(o.concurrency())
	for _, name := range up.Thanos.SegmentFiles {
		g.Go(func() error { return put(gctx, bkt, dir, m.ULID, path.Join(meta.ChunksDir, name)) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := put(ctx, bkt, dir, m.ULID, meta.IndexFile); err != nil {
		return nil, err
	}
	now := time.Now
	if o.Now != nil {
		now = o.Now
	}
	up.Thanos.UploadTime = now().UTC()
	data, err := up.Encode()
	if err != nil {
		return nil, err
	}
	// What one program writes another one has to read.
	if _, err := meta.Parse(m.ULID, data); err != nil {
		return nil, fmt.Errorf("upload: %w", err)
	}
	name := path.Join(m.ULID.String(), meta.File)
	if err := bkt.Upload(ctx, name, strings.NewReader(string(data))); err != nil {
		return nil, fmt.Errorf("upload %s: %w", name, err)
	}
	return up, nil
}

func put(ctx context.Context, bkt objstore.Bucket, dir string, id ulid.ULID, rel string) (err error) {
	f, err := os.Open(filepath.Join(dir, filepath.FromSlash(rel)))
	if err != nil {
		return err
	}
	defer f.Close()
	name := path.Join(id.String(), rel)
	if err := bkt.Upload(ctx, name, f); err != nil {
		return fmt.Errorf("upload %s: %w", name, err)
	}
	return nil
}

// files are the index and the segments of a block with their sizes and, if wanted, digests, in
// order of their paths.
func files(ctx context.Context, dir string, digests bool) ([]meta.BlockFile, error) {
	segments, err := os.ReadDir(filepath.Join(dir, meta.ChunksDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a block without a series has none
		return nil, err
	}
	var out []meta.BlockFile
	add := func(rel string) error {
		name := filepath.Join(dir, filepath.FromSlash(rel))
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no file", rel)
		}
		f := meta.BlockFile{RelPath: rel, SizeBytes: info.Size()}
		if digests {
			sum, err := digest(ctx, name)
			if err != nil {
				return err
			}
			f.Hash = &meta.FileHash{Func: sha256Name, Value: sum}
		}
		out = append(out, f)
		return nil
	}
	for i, s := range segments {
		if want := fmt.Sprintf("%06d", i+1); s.Name() != want {
			return nil, fmt.Errorf("%s/%s: want %s there", meta.ChunksDir, s.Name(), want)
		}
		if err := add(path.Join(meta.ChunksDir, s.Name())); err != nil {
			return nil, err
		}
	}
	return out, add(meta.IndexFile)
}

// Delete removes a block from a bucket: first its meta.json, so that nobody sees it any more,
// then the rest, and its mark for deletion at the very end: as long as there is anything of the
// block it is known that it is to go. What is gone already is no error.
func Delete(ctx context.Context, bkt objstore.Bucket, id ulid.ULID) error {
	dir := id.String()
	first, last := path.Join(dir, meta.File), path.Join(dir, meta.Deletion.File())
	if err := remove(ctx, bkt, first); err != nil {
		return err
	}
	var names []string
	if err := bkt.Iter(ctx, dir, func(name string) error {
		names = append(names, name)
		return nil
	}, objstore.WithRecursiveIter()); err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	for _, name := range names {
		if name == first || name == last || strings.HasSuffix(name, objstore.DirDelim) {
			continue
		}
		if err := remove(ctx, bkt, name); err != nil {
			return err
		}
	}
	if err := remove(ctx, bkt, last); err != nil {
		return err
	}
	// Some providers keep objects that stand for directories.
	for _, name := range []string{path.Join(dir, meta.ChunksDir) + objstore.DirDelim, dir + objstore.DirDelim} {
		if ok, err := bkt.Exists(ctx, name); err == nil && ok {
			_ = bkt.Delete(ctx, name)
		}
	}
	return nil
}

// remove removes an object that may be gone.
func remove(ctx context.Context, bkt objstore.Bucket, name string) error {
	err := bkt.Delete(ctx, name)
	if err == nil || bkt.IsObjNotFoundErr(err) {
		return nil
	}
	// Not every provider has a word for it.
	if ok, existsErr := bkt.Exists(ctx, name); existsErr == nil && !ok {
		return nil
	}
	return fmt.Errorf("delete %s: %w", name, err)
}

// PutMark marks a block. A mark of that kind that is there already is left alone: false.
func PutMark(ctx context.Context, bkt objstore.Bucket, m *meta.Mark) (bool, error) {
	name := path.Join(m.ID.String(), m.Kind.File())
	ok, err := bkt.Exists(ctx, name)
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", name, err)
	}
	if ok {
		return false, nil
	}
	data, err := m.Encode()
	if err != nil {
		return false, err
	}
	if err := bkt.Upload(ctx, name, strings.NewReader(string(data))); err != nil {
		return false, fmt.Errorf("upload %s: %w", name, err)
	}
	return true, nil
}

// RemoveMark takes a mark away, if it is there.
func RemoveMark(ctx context.Context, bkt objstore.Bucket, id ulid.ULID, kind meta.Kind) error {
	return remove(ctx, bkt, path.Join(id.String(), kind.File()))
}

// partial is the ending of directories of downloads that are not complete.
const partial = ".tmp-for-download"

// Download gets the block id into a new directory parent/<ULID> and returns its meta. The
// directory appears when it has all that meta.json lists, or not at all. One that is there
// already is taken if it is that block, whole: sizes are compared, and digests where meta.json has
// them. Otherwise it is made anew, from its files with the right digest and from the bucket.
func Download(ctx context.Context, bkt objstore.BucketReader, id ulid.ULID, parent string, o Options) (_ *meta.Meta, err error) {
	m, data, err := readMeta(ctx, bkt, id)
	if err != nil {
		return nil, err
	}
	final := filepath.Join(parent, id.String())
	whole, good, err := local(ctx, final, m, data)
	if err != nil {
		return nil, err
	}
	if whole {
		return m, nil
	}
	tmp := final + partial
	if err := os.RemoveAll(tmp); err != nil {
		return nil, err
	}
	// What is there and not whole is no block from now on.
	if err := os.Remove(filepath.Join(final, meta.File)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(tmp, meta.ChunksDir), 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	files, err := objects(ctx, bkt, m)
	if err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(o.concurrency())
	for _, f := range files {
		rel := filepath.FromSlash(f.RelPath)
		if good[f.RelPath] && os.Link(filepath.Join(final, rel), filepath.Join(tmp, rel)) == nil {
			continue
		}
		g.Go(func() error { return get(gctx, bkt, tmp, m.ULID, f) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(tmp, meta.File), data, 0o644); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(final); err != nil {
		return nil, err
	}
	return m, os.Rename(tmp, final)
}

func readMeta(ctx context.Context, bkt objstore.BucketReader, id ulid.ULID) (*meta.Meta, []byte, error) {
	name := path.Join(id.String(), meta.File)
	r, err := bkt.Get(ctx, name)
	if err != nil {
		return nil, nil, fmt.Errorf("get %s: %w", name, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, meta.MaxBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("get %s: %w", name, err)
	}
	m, err := meta.Parse(id, data)
	return m, data, err
}

// local says whether a directory is a block, whole, and which of its files have the digest that
// meta.json has for them. data is its meta.json.
func local(ctx context.Context, dir string, m *meta.Meta, data []byte) (whole bool, good map[string]bool, err error) {
	had, err := os.ReadFile(filepath.Join(dir, meta.File))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, nil, err
	}
	good = map[string]bool{}
	whole = bytes.Equal(had, data) && lists(m, meta.IndexFile)
	for _, f := range m.Thanos.Files {
		name := filepath.Join(dir, filepath.FromSlash(f.RelPath))
		info, err := os.Stat(name)
		switch {
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return false, nil, err
		case err != nil || f.SizeBytes > 0 && info.Size() != f.SizeBytes:
			whole = false
		case hashed(f):
			sum, err := digest(ctx, name)
			if err != nil {
				return false, nil, err
			}
			good[f.RelPath] = sum == f.Hash.Value
			whole = whole && good[f.RelPath]
		}
	}
	return whole, good, nil
}

// sha256Name is what Thanos calls the digest.
const sha256Name = "SHA256"

// hashed says whether meta.json has a digest of a file that this program knows.
func hashed(f meta.BlockFile) bool { return f.Hash != nil && f.Hash.Func == sha256Name }

// digest is the SHA-256 of a file, in hex.
func digest(ctx context.Context, name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		switch _, err := io.CopyN(h, f, 16<<20); err {
		case nil:
		case io.EOF:
			return hex.EncodeToString(h.Sum(nil)), nil
		default:
			return "", err
		}
	}
}

func lists(m *meta.Meta, rel string) bool {
	return slices.ContainsFunc(m.Thanos.Files, func(f meta.BlockFile) bool { return f.RelPath == rel })
}

// objects are the index and the segments of a block, from meta.json, or of old blocks that do
// not say from the bucket.
func objects(ctx context.Context, bkt objstore.BucketReader, m *meta.Meta) (out []meta.BlockFile, err error) {
	wanted := func(rel string) bool {
		dir, name := path.Split(rel)
		return rel == meta.IndexFile || dir == meta.ChunksDir+"/" && name != ""
	}
	if lists(m, meta.IndexFile) {
		for _, f := range m.Thanos.Files {
			if wanted(f.RelPath) {
				out = append(out, f)
			}
		}
		return out, nil
	}
	prefix := m.ULID.String() + objstore.DirDelim
	err = bkt.Iter(ctx, m.ULID.String(), func(name string) error {
		if rel := strings.TrimPrefix(name, prefix); wanted(rel) {
			out = append(out, meta.BlockFile{RelPath: rel})
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", m.ULID, err)
	}
	if !slices.ContainsFunc(out, func(f meta.BlockFile) bool { return f.RelPath == meta.IndexFile }) {
		return nil, fmt.Errorf("block %s has no %s", m.ULID, meta.IndexFile)
	}
	return out, nil
}

// get reads an object of block id to below dir, and checks its size and digest where they are
// known.
func get(ctx context.Context, bkt objstore.BucketReader, dir string, id ulid.ULID, want meta.BlockFile) (err error) {
	name := path.Join(id.String(), want.RelPath)
	defer func() {
		if err != nil {
			err = fmt.Errorf("get %s: %w", name, err)
		}
	}()
	r, err := bkt.Get(ctx, name)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.OpenFile(filepath.Join(dir, filepath.FromSlash(want.RelPath)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	h := sha256.New()
	to := io.Writer(f)
	if hashed(want) {
		to = io.MultiWriter(f, h)
	}
	n, err := io.Copy(to, r)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if want.SizeBytes > 0 && n != want.SizeBytes {
		return fmt.Errorf("it has %d bytes, and %s says %d", n, meta.File, want.SizeBytes)
	}
	if sum := hex.EncodeToString(h.Sum(nil)); hashed(want) && sum != want.Hash.Value {
		return fmt.Errorf("its SHA-256 is %s, and %s says %s", sum, meta.File, want.Hash.Value)
	}
	return nil
}
