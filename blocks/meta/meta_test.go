// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package meta_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/blocks/meta"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const raw = "01M7ZYC52JECNQ4F55W1Y2QEYW"

func files(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", dir, "*.json"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	out := map[string][]byte{}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimSuffix(filepath.Base(name), ".json")] = data
	}
	return out
}

// TestSameBytes: what Thanos' programs wrote (uploader, downsampler, compactor) is written
// again to the same bytes.
func TestSameBytes(t *testing.T) {
	for id, data := range files(t, "metas") {
		m, err := meta.Parse(ulid.MustParse(id), data)
		if err != nil {
			t.Fatal(err)
		}
		out, err := m.Clone().Encode()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out, data) {
			t.Errorf("%s\ngot  %s\nwant %s", id, out, data)
		}
	}
	id := ulid.MustParse("01M7ZYC1STEW21SJ2T70SNVCXK")
	marks := files(t, "marks")
	for _, kind := range meta.Kinds() {
		data := marks[string(kind)]
		m, err := meta.ParseMark(id, kind, data)
		if err != nil {
			t.Fatal(err)
		}
		if m.ID != id || m.Kind != kind || m.Details != "fixture: marked by hand" || !m.Time.Equal(time.Unix(1795295076, 0)) || (m.Reason == "manual") != (kind != meta.Deletion) {
			t.Errorf("%+v", m)
		}
		if out, err := m.Encode(); err != nil || !bytes.Equal(out, data) {
			t.Errorf("%v\ngot  %s\nwant %s", err, out, data)
		}
	}
}

func TestWhatItSays(t *testing.T) {
	m, err := meta.Parse(ulid.MustParse(raw), files(t, "metas")[raw])
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := m.Size("index"); n != 40683 || !ok {
		t.Errorf("the index has %d bytes, %v", n, ok)
	}
	for _, name := range []string{"meta.json", "chunks/000002", ""} {
		if n, ok := m.Size(name); ok {
			t.Errorf("%q has %d bytes", name, n)
		}
	}
	if s := m.Stream(); s != `0@{cluster="eu1", replica="b"}` {
		t.Errorf("stream %s", s)
	}
	c := m.Clone()
	c.Thanos.Labels["cluster"], c.Thanos.Files[0].SizeBytes = "x", 1
	if m.Thanos.Labels["cluster"] != "eu1" || m.Thanos.Files[0].SizeBytes == 1 {
		t.Error("a clone shares its labels or files")
	}
	for name, want := range map[string]bool{raw: true, raw + "/index": true, strings.ToLower(raw): false, "debug/metas/" + raw: false, raw[:25]: false, "": false, raw + "X": false} {
		if id, ok := meta.IDFromName(name); ok != want || ok && id.String() != raw {
			t.Errorf("%q: %v %v", name, id, ok)
		}
	}
}

func TestCorrupt(t *testing.T) {
	id, data := ulid.MustParse(raw), string(files(t, "metas")[raw])
	for _, c := range []struct{ old, new, want string }{
		{data, "", "unexpected end"},
		{data, "{}", "version 0"},
		{`"version": 1`, `"version": 2`, "version 2"},
		{`"thanos": {`, `"thanos": {"version": 2,`, "section thanos has version 2"},
		{raw, "01M7ZYC1STEW21SJ2T70SNVCXK", "that of block 01M7ZYC1STEW21SJ2T70SNVCXK"},
		{raw, "01M7", "ulid"},
		{`"minTime": 1793923207000`, `"minTime": 1893923207000`, "its times are from"},
		{`"resolution": 0`, `"resolution": 60000`, "resolution is 60000"},
		{`"cluster": "eu1"`, `"cluster": ""`, "external label"},
		{`"000001"`, `"../x"`, "segment file"},
		{`"chunks/000001"`, `"../../x"`, "file"},
		{`"chunks/000001"`, `"/x"`, "file"},
		{`"size_bytes": 40683`, `"size_bytes": -1`, "file"},
	} {
		_, err := meta.Parse(id, []byte(strings.Replace(data, c.old, c.new, 1)))
		if !errors.Is(err, meta.ErrCorrupt) || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), raw+"/meta.json is corrupt: ") {
			t.Errorf("%s → %s: want an error with %q, got %v", c.old[:min(len(c.old), 20)], c.new, c.want, err)
		}
	}
	if _, err := meta.Parse(id, make([]byte, meta.MaxBytes+1)); !errors.Is(err, meta.ErrCorrupt) {
		t.Error(err)
	}
	for _, text := range []string{"", "{}", `{"id":"x","version":1}`, `{"id":"` + raw + `","version":2}`} {
		if _, err := meta.ParseMark(id, meta.Deletion, []byte(text)); !errors.Is(err, meta.ErrCorrupt) {
			t.Errorf("%s: %v", text, err)
		}
	}
	// What others add is no fault, nor is a null where there is nothing.
	for _, with := range []string{`"thanos": {"extensions": null, "new": 1,`, `"thanos": {"rewrites": [{"sources": []}],`} {
		if _, err := meta.Parse(id, []byte(strings.Replace(data, `"thanos": {`, with, 1))); err != nil {
			t.Error(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	id := ulid.MustParse(raw)
	for _, data := range files(f, "metas") {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := meta.Parse(id, data)
		if err != nil {
			if !errors.Is(err, meta.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		out, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := meta.Parse(id, out)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if twice, _ := again.Encode(); !bytes.Equal(out, twice) {
			t.Fatalf("%s\n%s", out, twice)
		}
	})
}

// FuzzParseMark: a mark is refused as corrupt, or the same when written and read again.
func FuzzParseMark(f *testing.F) {
	id := ulid.MustParse("01M7ZYC1STEW21SJ2T70SNVCXK")
	for _, data := range files(f, "marks") {
		for i := range meta.Kinds() {
			f.Add(uint8(i), data)
		}
	}
	f.Add(uint8(0), []byte(`{"id":"01M7ZYC1STEW21SJ2T70SNVCXK","version":1,"deletion_time":-9223372036854775808}`))
	f.Fuzz(func(t *testing.T, k uint8, data []byte) {
		kind := meta.Kinds()[int(k)%len(meta.Kinds())]
		m, err := meta.ParseMark(id, kind, data)
		if err != nil {
			if !errors.Is(err, meta.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		out, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := meta.ParseMark(id, kind, out)
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%v: %+v is read again as %+v", err, m, again)
		}
	})
}
