// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package registry_test

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/promweave/promweave/plugins/filtering"
	"github.com/promweave/promweave/plugins/registry"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/guest/testfilter"
)

// TestGoldenModules: the modules of every released minor, in every language, load in
// this host and do what the same filter does compiled in.
func TestGoldenModules(t *testing.T) {
	ctx := context.Background()
	paths, err := filepath.Glob(filepath.Join("..", "..", "sdk", "testdata", "golden", "*", "rewrite-*"))
	if err != nil || len(paths) < 4 {
		t.Fatalf("golden modules: %v, %v", paths, err)
	}
	r := newRegistry(t, func(o *registry.Options) {
		o.Builtins = map[string]func() filter.Filter{"reference": testfilter.New}
	})
	configs := []string{
		`{"tier": "names", "drop": "b", "rename": "job=service", "set": "added=1"}`,
		`{"tier": "columns", "map": "a:x=long-x"}`,
		`{"tier": "rows", "drop": "env", "rename": "instance=host", "set": "added=1", "map": "a:x=long-x"}`,
	}
	open := func(name string, spec registry.Spec, conf string) *registry.Filter {
		f, err := r.Filter(ctx, name, spec, []byte(conf), filtering.Closed)
		if err != nil {
			t.Fatalf("%s with %s: %v", name, conf, err)
		}
		t.Cleanup(func() {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
		return f
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, ".gz") {
			path = filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(path), ".gz"))
			data = gunzip(t, data)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		sum := sha256.Sum256(data)
		module := registry.Spec{Launch: registry.WASM, Path: path, SHA256: hex.EncodeToString(sum[:]), CallTime: time.Minute}
		for n, conf := range configs {
			got := open(fmt.Sprint(filepath.Base(path), n), module, conf)
			want := open(fmt.Sprint("reference", n), registry.Spec{Launch: registry.Builtin, Kind: "reference"}, conf)
			plan := got.Link.Filter.Plan()
			if plan.Tier != want.Link.Filter.Plan().Tier || plan.Tier == filter.TierNone {
				t.Fatalf("%s with %s: tier %d", path, conf, plan.Tier)
			}
			rng := rand.New(rand.NewPCG(uint64(n), 3))
			for range 20 {
				in := randomFrame(t, rng)
				switch plan.Tier {
				case filter.TierNames:
					in = namesOf(t, in)
				case filter.TierColumns:
					in = columnsOf(t, in, plan.Columns)
				}
				if diff := cmp.Diff(rewritten(t, want, in), rewritten(t, got, in)); diff != "" {
					t.Fatalf("%s with %s (-compiled in +module):\n%s", path, conf, diff)
				}
			}
		}
	}
}

func gunzip(t *testing.T, data []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(strings.NewReader(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func namesOf(t *testing.T, in []byte) []byte {
	t.Helper()
	var f frame.Frame
	if err := f.Parse(in); err != nil {
		t.Fatal(err)
	}
	var n frame.NameLists
	out, err := n.Append(nil, &f)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// rewritten is what becomes of each row, in words: modules need not write the same
// bytes to mean the same.
func rewritten(t *testing.T, f *registry.Filter, in []byte) (out []string) {
	t.Helper()
	reply, err := f.Link.Filter.Rewrite(context.Background(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	var v frame.Frame
	if err := v.Parse(in); err != nil {
		t.Fatal(err)
	}
	if len(reply) == 0 {
		return []string{"unchanged"}
	}
	var c frame.Changes
	if err := c.Parse(reply, &v, frame.Tier(f.Link.Filter.Plan().Tier)); err != nil {
		t.Fatalf("reply: %v", err)
	}
	for g := range v.Groups() {
		ch := c.Group(g)
		for row := range v.Group(g).Rows() {
			var b strings.Builder
			fmt.Fprint(&b, ch.Keeps(row))
			for j := range ch.Columns() {
				col := ch.Column(j)
				if col.Withheld() {
					fmt.Fprintf(&b, " %s=<%d>", c.Symbol(col.Name), col.Input)
				} else if ref := col.Ref(row); ref != 0 {
					fmt.Fprintf(&b, " %s=%q", c.Symbol(col.Name), c.Symbol(ref))
				}
			}
			out = append(out, b.String())
		}
	}
	return out
}

// TestNoPlaceForModules: where no compiled module can be kept, the error names the key.
func TestNoPlaceForModules(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join("..", "..", "sdk", "testdata", "golden", "*", "rewrite-c.wasm"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%v, %v", paths, err)
	}
	data, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	taken := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRegistry(t, func(o *registry.Options) { o.Dir = taken })
	sum := sha256.Sum256(data)
	_, err = r.Filter(t.Context(), "x", registry.Spec{Launch: registry.WASM, Path: paths[0], SHA256: hex.EncodeToString(sum[:])}, []byte(`{"tier": "names"}`), filtering.Closed)
	if err == nil || !strings.Contains(err.Error(), "plugins.dir") {
		t.Errorf("got: %v", err)
	}
}
