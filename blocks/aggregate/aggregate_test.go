// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package aggregate_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/aggregate"
	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func xor(t testing.TB, times ...int64) backend.Encoded {
	t.Helper()
	c := chunkenc.NewXORChunk()
	app, err := c.Appender()
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range times {
		app.Append(at, float64(i))
	}
	return backend.Encoded{Encoding: chunkenc.EncXOR, Data: c.Bytes()}
}

// fixtures calls f with the data of each chunk of the downsampled blocks that Thanos wrote.
func fixtures(t testing.TB, f func(block string, data []byte)) {
	t.Helper()
	dirs, err := filepath.Glob("../testdata/thanos/bucket-downsampled-extra/*")
	if err != nil || len(dirs) != 4 {
		t.Fatal(dirs, err)
	}
	for _, dir := range dirs {
		ir, err := index.NewFileReader(filepath.Join(dir, "index"), index.DecodePostingsRaw)
		if err != nil {
			t.Fatal(err)
		}
		cr, err := chunks.NewDirReader(filepath.Join(dir, "chunks"), aggregate.NewPool())
		if err != nil {
			t.Fatal(err)
		}
		name, value := index.AllPostingsKey()
		p, err := ir.Postings(context.Background(), name, value)
		if err != nil {
			t.Fatal(err)
		}
		var b labels.ScratchBuilder
		var metas []chunks.Meta
		for p.Next() {
			if err := ir.Series(p.At(), &b, &metas); err != nil {
				t.Fatal(err)
			}
			for _, m := range metas {
				c, _, err := cr.ChunkOrIterable(m)
				if err != nil {
					t.Fatal(err)
				}
				if c.Encoding() != aggregate.Encoding {
					t.Fatalf("a chunk with encoding %d", c.Encoding())
				}
				f(filepath.Base(dir), c.Bytes())
			}
		}
		if err := errors.Join(p.Err(), ir.Close(), cr.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestThanos: all chunks of Thanos' blocks are read, written again to the same bytes, and
// have as many points as its meta.json says.
func TestThanos(t *testing.T) {
	samples, histograms := map[string]int{}, 0
	fixtures(t, func(block string, data []byte) {
		a, err := aggregate.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		if got := aggregate.Append(nil, a); !bytes.Equal(got, data) {
			t.Fatalf("%d bytes were written again to %d others", len(data), len(got))
		}
		if a.Counter.Encoding == chunkenc.EncFloatHistogram {
			histograms++
			if a.Min.Present() || a.Max.Present() || a.Sum.Encoding != chunkenc.EncFloatHistogram {
				t.Error("a histogram has a minimum, a maximum, or no sum")
			}
		}
		samples[block] += aggregate.Chunk(data).NumSamples()
	})
	want := map[string]int{
		"01M7ZYCQSY2DRZV8HZV11GRFWG": 139692, "01M7ZYCQXH093FB6H0XR2T0SHJ": 137020,
		"01M7ZYCR10SFW94Q4QKKNJEQDC": 11779, "01M7ZYCR2CT37VR2QD8MFD7GJM": 11558,
	}
	if !reflect.DeepEqual(samples, want) || histograms == 0 {
		t.Errorf("points %v, want %v; %d chunks of histograms", samples, want, histograms)
	}
}

func TestAbsent(t *testing.T) {
	full := [5]backend.Encoded{xor(t, 1), xor(t, 1, 2), xor(t), xor(t, 5), xor(t, 1, 2, 2)}
	for mask := range 1 << 5 {
		var a backend.AggregateChunks
		for i, e := range []*backend.Encoded{&a.Count, &a.Sum, &a.Min, &a.Max, &a.Counter} {
			if mask>>i&1 == 1 {
				*e = full[i]
			}
		}
		data := aggregate.Append([]byte("before"), &a)
		if !bytes.HasPrefix(data, []byte("before")) {
			t.Fatal("what was there before is gone")
		}
		got, err := aggregate.Parse(data[len("before"):])
		if err != nil || !reflect.DeepEqual(got, &a) {
			t.Errorf("mask %05b: %v, %+v", mask, err, got)
		}
	}
	// The last one as Thanos writes it that is absent.
	a, err := aggregate.Parse([]byte{0, 0, 0, 0, 0})
	if err != nil || !reflect.DeepEqual(a, &backend.AggregateChunks{}) {
		t.Errorf("nothing at all: %v, %+v", err, a)
	}
	if got := aggregate.Append(nil, &backend.AggregateChunks{Sum: backend.Encoded{Encoding: chunkenc.EncXOR}}); !bytes.Equal(got, make([]byte, 5)) {
		t.Errorf("a sum without data was written as %v", got)
	}
}

func TestZeroCopy(t *testing.T) {
	data := aggregate.Append(nil, &backend.AggregateChunks{Count: xor(t, 1, 2), Sum: xor(t, 1, 2)})
	a, err := aggregate.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if unsafe.SliceData(a.Count.Data) != &data[2] {
		t.Error("the count was copied")
	}
	if cap(a.Count.Data) != len(a.Count.Data) {
		t.Error("an append to the count would overwrite the sum")
	}
}

func TestCorrupt(t *testing.T) {
	whole := string(aggregate.Append(nil, &backend.AggregateChunks{Count: xor(t, 1), Counter: xor(t, 1)}))
	for _, c := range []struct{ data, want string }{
		{"", "ends before count"},
		{whole + "\x00", "1 bytes are left over"},
		{"\x02\x01\x00\x00", "ends before sum"},
		{"\x00\x00\x00\x00", "ends before counter"},
		{"\x03\x01\x00\x00", "count has 3 bytes, of which 2 are there"},
		{"\x01", "count has 1 bytes, of which 0 are there"},
		{"\x00\x02\x00\x00\x00\x00\x00\x00", "sum has encoding 0"},
		{"\x00\x02\x04\x00\x00\x00\x00\x00", "sum has encoding 4"},
		{"\x00\x02\xff\x00\x00\x00\x00\x00", "sum has encoding 255"},
		{"\x01\x01\x00\x00\x00\x00\x00", "count has 1 bytes, fewer than the 2"},
		{"\x02\x03\x00\x00\x00\x00\x00\x00", "count has 2 bytes, fewer than the 3"},
		{"\x80", "ends before count"},
		{strings.Repeat("\xff", 11), "length of count overflows"},
		{"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01", "count has 18446744073709551615 bytes"},
	} {
		if a, err := aggregate.Parse([]byte(c.data)); !errors.Is(err, aggregate.ErrCorrupt) || !strings.Contains(err.Error(), c.want) || a != nil {
			t.Errorf("%q: want an error with %q, got %v", c.data, c.want, err)
		}
	}
	for n := range len(whole) {
		if _, err := aggregate.Parse([]byte(whole[:n])); err == nil {
			t.Errorf("the first %d of %d bytes were read", n, len(whole))
		}
	}
}

// TestPool: a chunk that is no aggregate comes from the library's own pool.
func TestPool(t *testing.T) {
	p := aggregate.NewPool()
	x := xor(t, 1, 2)
	plain, err := p.Get(chunkenc.EncXOR, x.Data)
	if err != nil || plain.NumSamples() != 2 {
		t.Error(plain, err)
	}
	agg, err := p.Get(aggregate.Encoding, []byte{0, 0, 0, 0, 0})
	if err != nil || agg.Encoding() != 0xff || agg.NumSamples() != 0 {
		t.Error(agg, err)
	}
	if err := errors.Join(p.Put(plain), p.Put(agg)); err != nil {
		t.Error(err)
	}
	if _, err := p.Get(77, nil); err == nil {
		t.Error("a chunk with encoding 77")
	}
	if _, err := agg.Appender(); err == nil {
		t.Error("an appender to an aggregate chunk")
	}
	if agg.Iterator(nil).Next() != chunkenc.ValNone {
		t.Error("an aggregate chunk has samples of its own")
	}
}

// FuzzParse: whatever is accepted lies in the data, and is the same when written and read again.
func FuzzParse(f *testing.F) {
	n := 0
	fixtures(f, func(_ string, data []byte) {
		if n++; n%200 == 0 {
			f.Add(bytes.Clone(data)) // the block is closed before it is used
		}
	})
	f.Add([]byte{0, 0, 0, 0, 0})
	f.Add([]byte{2, 1, 0, 0, 0, 0x80, 0, 1, 2, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := aggregate.Parse(data)
		if err != nil {
			if !errors.Is(err, aggregate.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again := aggregate.Append(nil, a)
		if len(again) > len(data) {
			t.Fatalf("%d bytes became %d", len(data), len(again))
		}
		b, err := aggregate.Parse(again)
		if err != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("%v: %+v is read again as %+v", err, a, b)
		}
	})
}
