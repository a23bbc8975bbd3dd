// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/sdk/backend"
)

const exampleData = `[
  {"labels": {"__name__": "room_celsius", "room": "south"}, "samples": [[0, 21], [15000, 21.25]]},
  {"labels": {"__name__": "room_celsius", "room": "north"}, "samples": [[15000, 18.75]]},
  {"labels": {"__name__": "room_celsius", "room": "north", "z": "1"}, "samples": [[30000, 18.5]]}
]`

func digestOf(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// selectedLines is one line for each series, with its samples as time:value. Pieces of
// a series are put together; a series that comes again is an error.
func selectedLines(ctx context.Context, b backend.Backend, req *backend.SeriesRequest) (out []string, err error) {
	seen := map[string]bool{}
	last := ""
	for batch, err := range b.Series(ctx, req) {
		if err != nil {
			return out, err
		}
		for i := range batch.Len() {
			s := batch.At(i)
			name := s.Labels.String()
			if name != last {
				if seen[name] {
					return out, fmt.Errorf("%s comes again after %s", name, last)
				}
				out, last, seen[name] = append(out, name), name, true
			}
			for _, c := range s.Chunks {
				chunk, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
				if err != nil {
					return out, err
				}
				it := chunk.Iterator(nil)
				for it.Next() != chunkenc.ValNone {
					if t, v := it.At(); t >= req.MinTime && t <= req.MaxTime {
						out[len(out)-1] += fmt.Sprintf(" %d:%v", t, v)
					}
				}
			}
		}
	}
	return out, nil
}

// TestExampleBackend: the example is what it is, spawned and dialled.
func TestExampleBackend(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	program, data := filepath.Join(dir, "backend-go"), filepath.Join(dir, "rooms.json")
	if err := os.WriteFile(data, []byte(exampleData), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", program, "github.com/promweave/promweave/sdk/examples/backend-go").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	config, err := json.Marshal(map[string]any{"file": data, "labels": map[string]string{"site": "attic"}})
	if err != nil {
		t.Fatal(err)
	}
	for way, spec := range map[string]registry.Spec{
		"spawn": {Launch: registry.Spawn, Path: program, SHA256: digestOf(t, program)},
		"dial":  {Launch: registry.Dial, Address: listen(t, program)},
	} {
		t.Run(way, func(t *testing.T) {
			r := newRegistry(t, nil)
			if _, _, err := r.Backend(ctx, "attic", spec, []byte(`{"path": "x"}`), true); !errors.Is(err, backend.ErrInvalid) || !strings.Contains(err.Error(), "path: unknown key") {
				t.Errorf("a wrong key: %v", err)
			}
			b, release, err := r.Backend(ctx, "attic", spec, config, true)
			if err != nil {
				t.Fatal(err)
			}
			defer release()
			defer func() {
				if err := b.(backend.Closer).Close(); err != nil {
					t.Error(err)
				}
			}()

			info, err := b.Info(ctx)
			if err != nil || info.MinTime != 0 || info.MaxTime != math.MaxInt64 || len(info.LabelSets) != 1 || info.LabelSets[0].String() != `{site="attic"}` || !info.Capabilities.SeriesLimit {
				t.Errorf("info: %+v, %v", info, err)
			}
			got, err := selectedLines(ctx, b, &backend.SeriesRequest{MinTime: 0, MaxTime: 30000, Matchers: []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, "room", "north|s.*")}})
			want := []string{
				`{__name__="room_celsius", room="north", site="attic"} 15000:18.75`,
				`{__name__="room_celsius", room="north", site="attic", z="1"} 30000:18.5`,
				`{__name__="room_celsius", room="south", site="attic"} 0:21 15000:21.25`,
			}
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("series: %v (-want +got):\n%s", err, diff)
			}
			names, err := b.LabelNames(ctx, &backend.LabelNamesRequest{MaxTime: 15000})
			if err != nil || strings.Join(names.Values, " ") != "__name__ room site" {
				t.Errorf("names: %v, %v", names, err)
			}
			values, err := b.LabelValues(ctx, &backend.LabelValuesRequest{Name: "room", MaxTime: 15000, Limit: 1})
			if err != nil || strings.Join(values.Values, " ") != "north" {
				t.Errorf("values: %v, %v", values, err)
			}

			// What is wrong with the store is said, and is no fault of the plug-in.
			if err := os.Rename(data, data+".gone"); err != nil {
				t.Fatal(err)
			}
			_, err = selectedLines(ctx, b, &backend.SeriesRequest{MaxTime: 1})
			if !errors.Is(err, backend.ErrUnavailable) || !strings.Contains(err.Error(), "no such file") {
				t.Errorf("without the file: %v", err)
			}
			if err := os.Rename(data+".gone", data); err != nil {
				t.Fatal(err)
			}
			if s := r.Statuses(); len(s) != 1 || len(s[0].Faults) != 0 || s[0].Description.Name != "backend-go" {
				t.Errorf("statuses: %+v", s)
			}
		})
	}
}
