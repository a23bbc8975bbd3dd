// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucketcmd

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/blocks/meta"
)

func TestUpload(t *testing.T) {
	src, _ := bucket(t, "bucket-raw")
	dir, flag := bucket(t)
	for _, tc := range []struct {
		say  string
		args []string
	}{
		{"--label says whose", []string{"--path", src}},
		{"--path says which", []string{"--label", "a=b"}},
		{"like cluster", []string{"--path", src, "--label", "a"}},
		{"like cluster", []string{"--path", src, "--label", "a="}},
		{"like cluster", []string{"--path", src, "--label", "1-a=b"}},
		{"quoted", []string{"--path", src, "--label", `a="b`}},
		{"twice", []string{"--path", src, "--label", "a=b", "--label", "a=c"}},
	} {
		if _, talk, code := run(t, append([]string{"upload", flag}, tc.args...)...); code != console.ExitUsage || !strings.Contains(talk, tc.say) {
			t.Errorf("%v: exit %d: %s", tc.args, code, talk)
		}
	}
	args := []string{"upload", flag, "--path", src, "--label", `site="x"`}
	if out, _, code := run(t, append(args, "--dry-run")...); code != 0 || !strings.Contains(out, rawA+": uploaded") || exists(filepath.Join(dir, rawA)) {
		t.Error(code, out)
	}
	// One that is broken does not stop the other.
	write(t, filepath.Join(src, rawA, "index"), "x")
	if out, _, code := run(t, args...); code != console.ExitFailed || exists(filepath.Join(dir, rawA)) || !strings.Contains(out, rawA+": not uploaded") {
		t.Error(code, out)
	}
	m := readMeta(t, dir, rawB)
	if m.Thanos.Source != meta.SourceBucketUpload || labelText(m.Thanos.Labels) != `{site="x"}` {
		t.Errorf("%+v", m.Thanos)
	}
	if got := findings(t, console.ExitOK, flag); len(got) != 0 {
		t.Error(got)
	}
	if out, _, _ := run(t, args...); !strings.Contains(out, rawB+": left alone (the bucket has it)") {
		t.Error(out)
	}
}

func TestReplicate(t *testing.T) {
	src, flag := faulty(t)
	if err := os.CopyFS(src, os.DirFS(fixtures+"bucket-downsampled-extra")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(src, rawB, meta.Deletion.File()), fmt.Sprintf(`{"id":%q,"version":1,"deletion_time":1}`, rawB))
	replicate := func(code int, dir string, args ...string) (out actions) {
		t.Helper()
		text, talk, got := run(t, append([]string{"replicate", flag, strings.Replace(flagOf(dir), "objstore", "objstore-to", 1), "-o", "json"}, args...)...)
		if err := json.Unmarshal([]byte(text), &out); err != nil || got != code {
			t.Fatal(err, got, text, talk)
		}
		return out
	}
	for _, tc := range []struct {
		args []string
		want func(m *meta.Meta) bool
	}{
		{nil, func(*meta.Meta) bool { return true }},
		{[]string{"--single-run", "--resolution", "raw"}, func(m *meta.Meta) bool { return m.Resolution() == meta.Raw }},
		{[]string{"--resolution", "5m,1h"}, func(m *meta.Meta) bool { return m.Resolution() != meta.Raw }},
		{[]string{"--id", rawA}, func(m *meta.Meta) bool { return m.ULID.String() == rawA }},
		{[]string{"--ignore-marked-for-deletion"}, func(m *meta.Meta) bool { return m.ULID.String() != rawB }},
		{[]string{"--compaction", "9"}, func(*meta.Meta) bool { return false }},
		{[]string{"--matcher", `no_such="x"`}, func(*meta.Meta) bool { return false }},
	} {
		dir := t.TempDir()
		var want []string
		for _, id := range ids(t, "ls", flag, "--sort-by", "id") {
			if tc.want(readMeta(t, src, id)) {
				want = append(want, id)
			}
		}
		a := replicate(console.ExitOK, dir, tc.args...)
		if got := ids(t, "ls", flagOf(dir), "--sort-by", "id"); !slices.Equal(got, want) || len(a.Actions) != len(want) {
			t.Errorf("%v: %v, want %v", tc.args, got, want)
		}
		if !slices.IsSortedFunc(a.Actions, func(x, y action) int {
			return int(readMeta(t, src, x.ULID).MinTime - readMeta(t, src, y.ULID).MinTime)
		}) {
			t.Errorf("%v: not oldest first: %+v", tc.args, a)
		}
		for _, x := range replicate(console.ExitOK, dir, tc.args...).Actions {
			if x.Action != "left alone" {
				t.Errorf("again: %+v", x)
			}
		}
	}
	dir := t.TempDir()
	if replicate(console.ExitOK, dir, "--dry-run"); exists(filepath.Join(dir, rawA)) {
		t.Error("a dry run copied")
	}
	// One that cannot be copied does not stop the others.
	if err := os.Remove(filepath.Join(src, rawA, "index")); err != nil {
		t.Fatal(err)
	}
	replicate(console.ExitFailed, dir)
	if exists(filepath.Join(dir, rawA, meta.File)) || !exists(filepath.Join(dir, rawB, meta.File)) {
		t.Error("the wrong blocks are there")
	}
	if _, talk, code := run(t, "replicate", flag); code != console.ExitUsage || !strings.Contains(talk, "--objstore-to.config-file") {
		t.Error(code, talk)
	}
}
