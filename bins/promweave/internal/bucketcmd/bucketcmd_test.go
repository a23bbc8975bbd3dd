// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package bucketcmd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/blocks/lease"
	"github.com/promweave/promweave/blocks/meta"
)

// A cloud's client starts a goroutine when it is linked, so those that run already do not count.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

const (
	fixtures = "../../../../blocks/testdata/thanos/"
	rawA     = "01M7ZYC1STEW21SJ2T70SNVCXK"
	rawB     = "01M7ZYC52JECNQ4F55W1Y2QEYW"
)

// now is after all blocks were made.
var now = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// run runs a command and returns what it printed, and its exit code.
func run(t *testing.T, args ...string) (out, talk string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	cmd := Command(&console.Console{Out: &o, Talk: &e, Now: func() time.Time { return now }})
	cmd.SetArgs(args)
	cmd.SetErr(io.Discard)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(t.Context())
	var ce *console.Error
	switch {
	case errors.As(err, &ce):
		if ce.Err != nil {
			fmt.Fprintln(&e, ce.Err)
		}
		return o.String(), e.String(), ce.Code
	case err != nil:
		return o.String(), e.String() + err.Error(), console.ExitUsage
	}
	return o.String(), e.String(), console.ExitOK
}

// bucket is a directory with fixtures, and the flag that names it.
func bucket(t *testing.T, from ...string) (dir, flag string) {
	t.Helper()
	dir = t.TempDir()
	for _, f := range from {
		if err := os.CopyFS(dir, os.DirFS(fixtures+f)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, flagOf(dir)
}

func flagOf(dir string) string {
	return fmt.Sprintf("--objstore.config={type: FILESYSTEM, config: {directory: %q}}", dir)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// age sets the time of a file.
func age(t *testing.T, path string, at time.Time) {
	t.Helper()
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// readMeta reads the meta.json of a block in a directory.
func readMeta(t *testing.T, dir, id string) *meta.Meta {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, id, meta.File))
	if err != nil {
		t.Fatal(err)
	}
	m, err := meta.Parse(ulid.MustParse(id), data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func writeMeta(t *testing.T, dir string, m *meta.Meta) {
	t.Helper()
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, m.ULID.String(), meta.File), string(data))
}

func ids(t *testing.T, args ...string) []string {
	t.Helper()
	out, talk, code := run(t, append(args, "-o", "ids")...)
	if code != console.ExitOK {
		t.Fatalf("exit %d: %s", code, talk)
	}
	return strings.Fields(out)
}

const (
	partialID = "01M7ZYD0000000000000000001"
	corruptID = "01M7ZYD0000000000000000002"
	goneID    = "01M7ZYD0000000000000000003"
)

// faulty is a bucket with two blocks and some that are none.
func faulty(t *testing.T) (dir, flag string) {
	dir, flag = bucket(t, "bucket-raw")
	write(t, filepath.Join(dir, partialID, "index"), "x")
	write(t, filepath.Join(dir, corruptID, meta.File), "{")
	write(t, filepath.Join(dir, corruptID, "index"), "x")
	write(t, filepath.Join(dir, goneID, meta.Deletion.File()), `{"id":"`+goneID+`","version":1,"deletion_time":1}`)
	return dir, flag
}

func TestUsage(t *testing.T) {
	_, flag := bucket(t, "bucket-raw")
	for _, tc := range []struct {
		say  string
		args []string
	}{
		{"--objstore.config-file says which bucket", []string{"ls"}},
		{"--sort-by x", []string{"ls", flag, "--sort-by", "x"}},
		{"--selector", []string{"ls", flag, "--selector", "cluster=eu1"}},
		{"--min-time", []string{"ls", flag, "--min-time", "yesterday"}},
		{"--output x: there is no such form", []string{"cleanup", flag, "-o", "x"}},
		{`"x" is no block`, []string{"inspect", "x", flag}},
		{"--issues x", []string{"verify", flag, "--issues", "x"}},
		{"--id says which", []string{"mark", flag}},
		{"--marker", []string{"mark", flag, "--id", rawA, "--marker", "x"}},
		{"--details says why", []string{"mark", flag, "--id", rawA, "--marker", "deletion-mark.json"}},
		{"kept for ever", []string{"retention", flag}},
	} {
		if _, talk, code := run(t, tc.args...); code != console.ExitUsage || !strings.Contains(talk, tc.say) {
			t.Errorf("%v: exit %d: %s", tc.args, code, talk)
		}
	}
}

func TestLs(t *testing.T) {
	dir, flag := faulty(t)
	a, b := readMeta(t, dir, rawA), readMeta(t, dir, rawB)
	for _, tc := range []struct {
		want []string
		args []string
	}{
		{[]string{rawA, rawB}, []string{"--sort-by", "id"}},
		{[]string{rawA, rawB, partialID, corruptID, goneID}, []string{"--sort-by", "id", "--all"}},
		{[]string{rawB}, []string{"--id", rawB}},
		{nil, []string{"--max-time", fmt.Sprint(min(a.MinTime, b.MinTime) / 1000)}},
		{nil, []string{"--min-time", fmt.Sprint(max(a.MaxTime, b.MaxTime)/1000 + 1)}},
		{[]string{rawA}, []string{"--id", rawA, "--selector", strings.Trim(labelText(a.Thanos.Labels), "{}")}},
		{nil, []string{"--selector", `no_such_label="x"`}},
	} {
		if got := ids(t, append([]string{"ls", flag}, tc.args...)...); !slices.Equal(got, tc.want) {
			t.Errorf("%v: %v, want %v", tc.args, got, tc.want)
		}
	}
	out, talk, _ := run(t, "ls", flag)
	if !strings.Contains(talk, "3 blocks that are not whole; --all") || !strings.Contains(out, labelText(a.Thanos.Labels)) {
		t.Error(out, talk)
	}
	out, _, _ = run(t, "ls", flag, "--all")
	for _, state := range []string{"no-meta-json", "corrupted-meta-json", "loaded"} {
		if !strings.Contains(out, state) {
			t.Errorf("no %s in\n%s", state, out)
		}
	}
	if _, talk, code := run(t, "mark", flag, "--id", rawA, "--marker", "deletion-mark.json", "--details", "old"); code != 0 {
		t.Fatal(talk)
	}
	if got := ids(t, "ls", flag, "--exclude-delete"); !slices.Equal(got, []string{rawB}) {
		t.Error(got)
	}
}

func TestInspect(t *testing.T) {
	dir, flag := faulty(t)
	info, err := os.Stat(filepath.Join(dir, rawA, "index"))
	if err != nil {
		t.Fatal(err)
	}
	out, talk, code := run(t, "inspect", rawA, corruptID, flag, "-o", "json")
	var got []details
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || len(got) != 2 {
		t.Fatal(err, code, out, talk)
	}
	if !slices.Contains(got[0].Objects, object{"index", info.Size()}) || !strings.Contains(string(got[0].Meta), rawA) || got[1].State != "corrupted-meta-json" {
		t.Errorf("%+v", got)
	}
	out, _, _ = run(t, "inspect", rawA, flag)
	if !strings.Contains(out, "chunks/000001") || !strings.Contains(out, readMeta(t, dir, rawA).Compaction.Sources[0].String()) {
		t.Error(out)
	}
	if _, talk, code := run(t, "inspect", "01M7ZYD0000000000000000009", flag); code != console.ExitFailed || !strings.Contains(talk, "there is no block") {
		t.Error(code, talk)
	}
}

func TestMark(t *testing.T) {
	dir, flag := bucket(t, "bucket-raw")
	for _, kind := range meta.Kinds() {
		file := filepath.Join(dir, rawA, kind.File())
		args := []string{"mark", flag, "--id", rawA, "--marker", kind.File(), "--details", "why not"}
		out, talk, code := run(t, args...)
		data, err := os.ReadFile(file)
		if code != 0 || err != nil {
			t.Fatal(code, err, out, talk)
		}
		m, err := meta.ParseMark(ulid.MustParse(rawA), kind, data)
		if err != nil || m.Details != "why not" || !m.Time.Equal(now) || (m.Reason == "manual") != (kind != meta.Deletion) {
			t.Errorf("%+v %v", m, err)
		}
		if out, _, code := run(t, args...); code != 0 || !strings.Contains(out, "already") {
			t.Error(code, out)
		}
		if out, _, code := run(t, append(args, "--remove")...); code != 0 || exists(file) {
			t.Error(code, out)
		}
		if out, _, code := run(t, append(args, "--remove")...); code != 0 || !strings.Contains(out, "has no "+kind.File()) {
			t.Error(code, out)
		}
	}
	// One that is not there gets no mark, and the other one does.
	if out, _, code := run(t, "mark", flag, "--id", goneID, "--id", rawB, "--marker", "no-compact-mark.json", "--details", "x"); code != console.ExitFailed || !strings.Contains(out, "there is no such block") {
		t.Error(code, out)
	}
	if exists(filepath.Join(dir, goneID)) || !exists(filepath.Join(dir, rawB, "no-compact-mark.json")) {
		t.Error("the wrong block is marked")
	}
}

func TestCleanup(t *testing.T) {
	dir, flag := faulty(t)
	mark := func(id string, ago time.Duration) {
		write(t, filepath.Join(dir, id, meta.Deletion.File()), fmt.Sprintf(`{"id":%q,"version":1,"deletion_time":%d}`, id, now.Add(-ago).Unix()))
	}
	mark(rawA, 49*time.Hour)
	mark(rawB, 47*time.Hour)
	age(t, filepath.Join(dir, partialID, "index"), now.Add(-49*time.Hour))
	fresh := "01M7ZYD0000000000000000004"
	write(t, filepath.Join(dir, fresh, "index"), "x")
	age(t, filepath.Join(dir, fresh, "index"), now.Add(-47*time.Hour))
	there := func() (out []string) {
		for _, id := range []string{rawA, rawB, partialID, corruptID, goneID, fresh} {
			if exists(filepath.Join(dir, id)) {
				out = append(out, id)
			}
		}
		return out
	}
	out, _, code := run(t, "cleanup", flag, "--dry-run")
	if code != 0 || len(there()) != 6 || !strings.Contains(out, "Nothing was done") || strings.Count(out, ": deleted") != 3 {
		t.Error(code, there(), out)
	}
	out, talk, code := run(t, "cleanup", flag)
	if got := there(); code != 0 || !slices.Equal(got, []string{rawB, corruptID, fresh}) {
		t.Error(code, got, out)
	}
	if !strings.Contains(talk, corruptID+" is left alone") {
		t.Error(talk)
	}
	mark(corruptID, 49*time.Hour)
	if out, _, code := run(t, "cleanup", flag, "--partial-age", "1h", "--delete-delay", "1h"); code != 0 || there() != nil {
		t.Error(code, there(), out)
	}
}

func TestRetention(t *testing.T) {
	dir, flag := bucket(t, "bucket-raw", "bucket-downsampled-extra")
	marked := func() (out []int64) {
		for _, id := range ids(t, "ls", flag) {
			if exists(filepath.Join(dir, id, meta.Deletion.File())) {
				out = append(out, readMeta(t, dir, id).Resolution())
			}
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	if out, _, code := run(t, "retention", flag, "--retention.resolution-raw", "1d", "--dry-run"); code != 0 || marked() != nil || !strings.Contains(out, rawA) {
		t.Error(code, out)
	}
	if out, _, code := run(t, "retention", flag, "--retention.resolution-raw", "1d", "--retention.resolution-5m", "100y"); code != 0 || !slices.Equal(marked(), []int64{0}) {
		t.Error(code, out, marked())
	}
	if out, _, code := run(t, "retention", flag, "--retention.resolution-raw", "1d"); code != 0 || !strings.Contains(out, "nothing to do") {
		t.Error(code, out)
	}
}

// findings runs verify.
func findings(t *testing.T, want int, args ...string) map[string][]finding {
	t.Helper()
	out, talk, code := run(t, append(append([]string{"verify"}, args...), "-o", "json")...)
	var v verified
	if err := json.Unmarshal([]byte(out), &v); err != nil || code != want {
		t.Fatal(err, code, out, talk)
	}
	by := map[string][]finding{}
	for _, x := range v.Findings {
		by[x.ULID] = append(by[x.ULID], x)
	}
	return by
}

func TestVerify(t *testing.T) {
	dir, flag := bucket(t, "bucket-raw")
	write(t, filepath.Join(dir, lease.Name), "{}") // a compactor is at work
	if got := findings(t, console.ExitOK, flag); len(got) != 0 {
		t.Error(got)
	}
	dir, flag = faulty(t)
	chunk := filepath.Join(dir, rawA, "chunks/000001")
	data, err := os.ReadFile(chunk)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	write(t, chunk, string(data))
	write(t, filepath.Join(dir, rawB, "notes.txt"), "x")
	write(t, filepath.Join(dir, "README"), "x")
	got := findings(t, console.ExitFailed, flag)
	for id, issue := range map[string]string{rawA: issueIndex, rawB: issueStray, "README": issueStray, partialID: issuePartial, corruptID: issuePartial} {
		if len(got[id]) == 0 || got[id][0].Issue != issue || got[id][0].Next == "" {
			t.Errorf("%s: %+v", id, got[id])
		}
	}
	if got := findings(t, console.ExitOK, flag, "--id", rawB, "--issues", issueIndex); len(got) != 0 {
		t.Error(got)
	}
	if got := findings(t, console.ExitFailed, flag, "--id", rawA); len(got) != 1 || len(got[rawA]) == 0 {
		t.Error(got)
	}
}

// copyOf puts a copy of a block into the bucket under another id, which f changes.
func copyOf(t *testing.T, dir, of, id string, f func(m *meta.Meta)) {
	t.Helper()
	if err := os.CopyFS(filepath.Join(dir, id), os.DirFS(filepath.Join(dir, of))); err != nil {
		t.Fatal(err)
	}
	m := readMeta(t, dir, of)
	m.ULID = ulid.MustParse(id)
	f(m)
	writeMeta(t, dir, m)
}

// TestRepair: what a sound block was made of is marked, and nothing else is.
func TestRepair(t *testing.T) {
	const later = "01M7ZYZ0000000000000000001"
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, dir string)
		say    string
	}{
		{"sound", func(*testing.T, string) {}, ""},
		{"broken", func(t *testing.T, dir string) { write(t, filepath.Join(dir, rawA, "index"), "x") }, "is broken"},
		{"fewer samples", func(t *testing.T, dir string) {
			m := readMeta(t, dir, rawA)
			m.Stats.NumSamples--
			writeMeta(t, dir, m)
		}, "samples"},
		{"shorter", func(t *testing.T, dir string) {
			m := readMeta(t, dir, rawA)
			m.MaxTime--
			writeMeta(t, dir, m)
		}, "does not cover"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, flag := bucket(t, "bucket-raw")
			copyOf(t, dir, rawA, later, func(*meta.Meta) {})
			tc.change(t, dir)
			if got := findings(t, console.ExitFailed, flag, "--issues", issueDuplicate); len(got[later]) != 1 || len(got) != 1 {
				t.Fatal(got)
			}
			if exists(filepath.Join(dir, later, meta.Deletion.File())) {
				t.Fatal("marked without --repair")
			}
			got := findings(t, console.ExitFailed, flag, "--issues", issueDuplicate, "--repair")
			marked := exists(filepath.Join(dir, later, meta.Deletion.File()))
			if marked != (tc.say == "") || !strings.Contains(got[later][0].Next, tc.say) || marked != (got[later][0].Done != "") {
				t.Errorf("marked: %v, %+v", marked, got)
			}
			if exists(filepath.Join(dir, rawA, meta.Deletion.File())) || !exists(filepath.Join(dir, later, "index")) {
				t.Error("it did something else")
			}
		})
	}
}

func TestOverlap(t *testing.T) {
	const later = "01M7ZYZ0000000000000000001"
	dir, flag := bucket(t, "bucket-raw")
	copyOf(t, dir, rawA, later, func(m *meta.Meta) {
		m.Compaction.Sources = []ulid.ULID{m.ULID}
		m.MinTime++
	})
	got := findings(t, console.ExitFailed, flag, "--issues", issueOverlap)
	if len(got) != 1 || len(got[later]) != 1 || !strings.Contains(got[later][0].Problem, rawA) {
		t.Error(got)
	}
}
