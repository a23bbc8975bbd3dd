// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/promweave/promweave/bins/promweave/internal/config"
	"github.com/promweave/promweave/blocks/meta"
)

// TestBlocks: what is in the bucket of a backend is told, whole and not.
func TestBlocks(t *testing.T) {
	const id, partial = "01M7ZYC1STEW21SJ2T70SNVCXK", "01M7ZYD0000000000000000001"
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../../../blocks/testdata/thanos/bucket-raw")); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		id + "/" + meta.NoCompact.File(): `{"id":"` + id + `","version":1,"no_compact_time":1700000000,"reason":"manual","details":"why not"}`,
		partial + "/index":               "x",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "promweave.yaml")
	text := fmt.Sprintf(`http: {listen: "127.0.0.1:0"}
grpc: {listen: ""}
backends:
  - name: long
    kind: bucket
    config:
      data_dir: %q
      objstore: {type: FILESYSTEM, config: {directory: %q}}
`, t.TempDir(), dir)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{Load: func() (config.Config, error) { return config.Load(file, nil, nil) }, ConfigFile: file}, "http", plainClient())
	status, body := s.do(http.MethodGet, "/api/v1/blocks")
	var got struct {
		Data struct {
			Blocks []struct {
				ULID, Backend, State string
				MinTime              int64
				Thanos               struct{ Labels map[string]string }
				Marks                []blockMark
			}
			Err     *string
			Partial []struct{ ULID, State string }
		}
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != http.StatusOK {
		t.Fatal(status, err, body)
	}
	d := got.Data
	if len(d.Blocks) != 2 || len(d.Partial) != 1 || d.Err != nil {
		t.Fatal(body)
	}
	b := d.Blocks[0]
	if b.ULID != id || b.Backend != "long" || b.State != "loaded" || b.MinTime == 0 || len(b.Thanos.Labels) == 0 || len(b.Marks) != 1 || b.Marks[0].Details != "why not" {
		t.Errorf("%+v", b)
	}
	if p := d.Partial[0]; p.ULID != partial || p.State != "no-meta-json" {
		t.Errorf("%+v", p)
	}
}
