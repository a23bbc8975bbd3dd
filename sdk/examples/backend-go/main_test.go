// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const begin = 1767600000000 // of testdata/rooms.json

func configure(t *testing.T, file string) backend.Backend {
	t.Helper()
	abs, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(map[string]any{"file": abs, "labels": map[string]string{"site": "attic"}})
	if err != nil {
		t.Fatal(err)
	}
	settings, err := filter.Settings(doc)
	if err != nil {
		t.Fatal(err)
	}
	b, err := kind{}.Configure(&filter.Config{JSON: doc, Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// selected is one line for each series, with its samples as time:value.
func selected(b backend.Backend, req *backend.SeriesRequest) (out []string, err error) {
	for batch, err := range b.Series(context.Background(), req) {
		if err != nil {
			return out, err
		}
		for i := range batch.Len() {
			s := batch.At(i)
			line := s.Labels.String()
			for _, c := range s.Chunks {
				chunk, err := chunkenc.FromData(c.Raw.Encoding, c.Raw.Data)
				if err != nil {
					return out, err
				}
				it := chunk.Iterator(nil)
				for it.Next() != chunkenc.ValNone {
					t, v := it.At()
					line += fmt.Sprintf(" %d:%v", t-begin, v)
				}
			}
			out = append(out, line)
		}
	}
	return out, nil
}

func matcher(t labels.MatchType, name, value string) []*labels.Matcher {
	return []*labels.Matcher{labels.MustNewMatcher(t, name, value)}
}

func TestSeries(t *testing.T) {
	b := configure(t, "testdata/rooms.json")
	const (
		cellar = `{__name__="room_humidity_ratio", room="cellar", site="attic"} 0:0.5`
		south  = `{__name__="room_celsius", room="south", site="attic"} 0:21 15000:21.25 30000:21.5`
		open   = `{__name__="room_celsius", room="north", site="attic", window="open"} 0:18.5 30000:18.25`
		north  = `{__name__="room_celsius", room="north", site="attic"} 45000:18.75`
	)
	all := backend.SeriesRequest{MinTime: math.MinInt64, MaxTime: math.MaxInt64}
	for name, test := range map[string]struct {
		change func(r *backend.SeriesRequest)
		want   []string
	}{
		"all":                 {func(*backend.SeriesRequest) {}, []string{north, open, south, cellar}},
		"equal":               {func(r *backend.SeriesRequest) { r.Matchers = matcher(labels.MatchEqual, "room", "south") }, []string{south}},
		"absent is empty":     {func(r *backend.SeriesRequest) { r.Matchers = matcher(labels.MatchEqual, "window", "") }, []string{north, south, cellar}},
		"regular expression":  {func(r *backend.SeriesRequest) { r.Matchers = matcher(labels.MatchRegexp, "room", "n.*|c.*") }, []string{north, open, cellar}},
		"external label":      {func(r *backend.SeriesRequest) { r.Matchers = matcher(labels.MatchEqual, "site", "attic") }, []string{north, open, south, cellar}},
		"overridden label":    {func(r *backend.SeriesRequest) { r.Matchers = matcher(labels.MatchEqual, "site", "overridden") }, nil},
		"another site":        {func(r *backend.SeriesRequest) { r.Matchers = matcher(labels.MatchNotEqual, "site", "attic") }, nil},
		"time, both included": {func(r *backend.SeriesRequest) { r.MinTime, r.MaxTime = begin+45000, begin+45000 }, []string{north}},
		"between samples":     {func(r *backend.SeriesRequest) { r.MinTime, r.MaxTime = begin+31000, begin+44999 }, nil},
		"limit":               {func(r *backend.SeriesRequest) { r.Limit = 2 }, []string{north, open}},
		"no chunks":           {func(r *backend.SeriesRequest) { r.SkipChunks, r.Limit = true, 1 }, []string{strings.TrimSuffix(north, " 45000:18.75")}},
		"without a label":     {func(r *backend.SeriesRequest) { r.WithoutReplicaLabels, r.Limit = []string{"site"}, 1 }, []string{`{__name__="room_celsius", room="north"} 45000:18.75`}},
	} {
		t.Run(name, func(t *testing.T) {
			req := all
			test.change(&req)
			got, err := selected(b, &req)
			if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestInfoAndLabels(t *testing.T) {
	b, ctx := configure(t, "testdata/rooms.json"), context.Background()
	info, err := b.Info(ctx)
	if err != nil || info.MinTime != begin || info.MaxTime != math.MaxInt64 || len(info.LabelSets) != 1 || info.LabelSets[0].String() != `{site="attic"}` {
		t.Errorf("%+v, %v", info, err)
	}
	names, err := b.LabelNames(ctx, &backend.LabelNamesRequest{MaxTime: math.MaxInt64, Matchers: matcher(labels.MatchEqual, "room", "south")})
	if diff := cmp.Diff(&backend.Labels{Values: []string{"__name__", "room", "site"}}, names); diff != "" || err != nil {
		t.Errorf("names: %v\n%s", err, diff)
	}
	for name, want := range map[string][]string{"room": {"cellar", "north", "south"}, "site": {"attic"}, "nothing": nil} {
		got, err := b.LabelValues(ctx, &backend.LabelValuesRequest{Name: name, MaxTime: math.MaxInt64, Matchers: matcher(labels.MatchRegexp, "__name__", "room_.+")})
		if err != nil || strings.Join(got.Values, " ") != strings.Join(want, " ") {
			t.Errorf("values of %s: %v, %v", name, got, err)
		}
	}
	if _, err := b.LabelValues(ctx, &backend.LabelValuesRequest{}); !errors.Is(err, backend.ErrInvalid) {
		t.Errorf("no name: %v", err)
	}
}

func TestConfigure(t *testing.T) {
	for doc, want := range map[string]string{
		`{}`:                          `file: ""`,
		`{"file": "rooms.json"}`:      `file: "rooms.json" is no absolute path`,
		`{"file": "/x"}`:              "labels: there are none",
		`{"file": "/x", "labels": 1}`: "labels: unknown key",
		`{"path": "/x"}`:              "path: unknown key",
	} {
		settings, err := filter.Settings([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (kind{}).Configure(&filter.Config{JSON: []byte(doc), Settings: settings}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", doc, err, want)
		}
	}
}

// TestFaults: what cannot be read is an error that says what, never an empty answer.
func TestFaults(t *testing.T) {
	big := filepath.Join(t.TempDir(), "big.json")
	f, err := os.Create(big)
	if err == nil {
		err = errors.Join(f.Truncate(64<<20+1), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) string {
		name := filepath.Join(t.TempDir(), "x.json")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for name, test := range map[string]struct {
		file, want string
		kind       error
	}{
		"gone":         {filepath.Join(t.TempDir(), "none.json"), "no such file", backend.ErrUnavailable},
		"too large":    {big, "64 MiB", backend.ErrLimit},
		"no JSON":      {write(`[{"labels": `), "unexpected end", backend.ErrInternal},
		"out of order": {write(`[{"labels": {"a": "1"}, "samples": [[2, 1], [1, 1]]}]`), `{a="1"}`, backend.ErrInternal},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := selected(configure(t, test.file), &backend.SeriesRequest{MaxTime: math.MaxInt64})
			if err == nil || backend.Kind(err) != test.kind || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := configure(t, "testdata/rooms.json").Info(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
