// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package guest_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
	"github.com/promweave/promweave/sdk/guest/testfilter"
)

// randomSettings are settings for labels a to f, of which some say the same.
func randomSettings(r *rand.Rand) string {
	name := func() string { return string(rune('a' + r.IntN(6))) }
	value := func() string { return []string{"", "1", "2", "3", "é"}[r.IntN(5)] }
	list := func(item func() string) string {
		var items []string
		for range r.IntN(4) {
			items = append(items, item())
		}
		return strings.Join(items, ",")
	}
	tier := []string{"rows", "columns", "names"}[r.IntN(3)]
	s := "tier=" + tier +
		"\ndrop=" + list(name) +
		"\nrename=" + list(func() string { return name() + "=" + name() }) +
		"\nset=" + list(func() string { return name() + "=" + value() })
	if tier != "names" {
		s += "\nmap=" + list(func() string { return name() + ":" + []string{"1", "2", "é"}[r.IntN(3)] + "=" + value() })
	}
	if tier == "rows" {
		s += "\nleave_out=" + list(func() string { return name() + "=" + []string{"1", "2"}[r.IntN(2)] })
	}
	return s
}

// randomFrame has rows with labels a to g.
func randomFrame(t testing.TB, r *rand.Rand) []byte {
	var b frame.Builder
	for range r.IntN(70) {
		for name := 'a'; name < 'h'; name++ {
			if r.IntN(3) > 0 {
				b.Label(string(name), []string{"1", "2", "é", fmt.Sprint(r.IntN(40))}[r.IntN(4)])
			}
		}
		b.EndRow()
	}
	out, err := b.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSameEverywhere gives random frames to the filter as it is compiled in and as a
// module of each language: the results must be the same.
func TestSameEverywhere(t *testing.T) {
	modules := built(t)
	for _, name := range sorted(modules) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rounds := 10
			if strings.HasPrefix(name, "go") {
				rounds = 2 // each takes a second to compile
			}
			for round := range rounds {
				r := rand.New(rand.NewPCG(uint64(round), 7))
				settings := randomSettings(r)
				m := open(t, modules[name])
				plan, err := m.configure(settings)
				if err != nil {
					t.Fatalf("%s: %v", settings, err)
				}
				native, nativePlan := nativeInstance(t, settings)
				if diff := cmp.Diff(planText(nativePlan), planText(plan)); diff != "" {
					t.Fatalf("plan of %s:\n%s", settings, diff)
				}
				for range 30 {
					shown := show(t, randomFrame(t, r), plan)
					reply, err := m.call("rewrite", shown)
					if err != nil {
						t.Fatal(err)
					}
					want := replyText(t, shown, nativeReply(t, native, shown), plan.Tier)
					if diff := cmp.Diff(want, replyText(t, shown, reply, plan.Tier)); diff != "" {
						t.Fatalf("%s (-compiled in +module):\n%s", settings, diff)
					}
				}
			}
		})
	}
}

// nativeInstance is the filter as it is compiled in.
func nativeInstance(t testing.TB, settings string) (filter.Rewriter, *filter.Plan) {
	c := &filter.Config{}
	for line := range strings.Lines(settings) {
		path, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		c.Settings = append(c.Settings, filter.Setting{Path: path, Value: value})
	}
	f, err := testfilter.New().Configure(c)
	if err != nil {
		t.Fatal(err)
	}
	plan := f.Plan()
	return f.(filter.Rewriter), &plan
}

func nativeReply(t testing.TB, f filter.Rewriter, shown []byte) []byte {
	var in frame.Frame
	var out frame.Reply
	if err := in.Parse(shown); err != nil {
		t.Fatal(err)
	}
	out.Reset(&in)
	if err := f.Rewrite(&in, &out); err != nil {
		t.Fatal(err)
	}
	return out.Append(nil)
}

// TestFaulty gives damaged frames to every module: whatever they answer, they stay
// inside their memory and answer the next call.
func TestFaulty(t *testing.T) {
	modules := built(t)
	for _, name := range sorted(modules) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(1, 2))
			m := open(t, modules[name])
			if _, err := m.configure("drop=a\nrename=b=c\nset=d=1\nmap=e:1=2\nleave_out=f=1"); err != nil {
				t.Fatal(err)
			}
			good := randomFrame(t, r)
			want, err := m.call("rewrite", good)
			if err != nil {
				t.Fatal(err)
			}
			for range 500 {
				bad := append([]byte(nil), good...)
				for range 1 + r.IntN(3) {
					at := 8 + r.IntN(len(bad)-8)
					if r.IntN(2) == 0 {
						at = 8 + r.IntN(48)
					}
					bad[at] = byte(r.IntN(256))
				}
				if _, err := m.call("rewrite", bad); err != nil {
					if _, ok := err.(*guestError); !ok {
						t.Fatalf("%v: frame with seed 1, 2, beginning %x", err, bad[:min(len(bad), 200)])
					}
				}
			}
			got, err := m.call("rewrite", good)
			if err != nil || string(got) != string(want) {
				t.Fatalf("after damaged frames the same one is answered differently: %v", err)
			}
		})
	}
}

// TestImports: a plain filter asks for nothing but what every module may have.
func TestImports(t *testing.T) {
	modules := built(t)
	for _, name := range sorted(modules) {
		m := open(t, modules[name])
		wasi := 0
		for _, i := range m.imports {
			switch {
			case strings.HasPrefix(i, "wasi_snapshot_preview1.") && strings.HasPrefix(name, "go"):
				wasi++
			case i != "promweave_v1.log":
				t.Errorf("%s imports %s", name, i)
			}
		}
		if wasi > 10 {
			t.Errorf("%s imports %d functions of WASI, and 10 are known to suffice: %q", name, wasi, m.imports)
		}
		for _, e := range []string{"abi_v1", "alloc", "describe", "configure", "request", "select", "rewrite"} {
			if m.calls["promweave_"+e] == nil {
				t.Errorf("%s does not export promweave_%s", name, e)
			}
		}
	}
}

// TestMemory: a module that is asked again and again does not grow.
func TestMemory(t *testing.T) {
	modules := built(t)
	for _, name := range sorted(modules) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := open(t, modules[name])
			if _, err := m.configure("map=a:1=2\nset=x=y\ndeny_subject=m"); err != nil {
				t.Fatal(err)
			}
			shown := benchFrame(t, 1000)
			call := filter.AppendRequestCall(nil, &filter.RequestCall{Caller: filter.Caller{Subject: strings.Repeat("s", 1000),
				ClaimSettings: []filter.Setting{{Path: "tenant", Value: strings.Repeat("t", 1000)}}}})
			size := func() uint32 {
				for range 1000 {
					if _, err := m.view("request", call); err != nil {
						t.Fatal(err)
					}
				}
				for range 30 {
					if _, err := m.view("rewrite", shown); err != nil {
						t.Fatal(err)
					}
				}
				if f := m.calls["promweave_idle"]; f != nil {
					if err := f.CallWithStack(t.Context(), m.stack[:]); err != nil {
						t.Fatal(err)
					}
				}
				return m.mod.Memory().Size()
			}
			first := size()
			for range 4 {
				if now := size(); now > first+first/4 {
					t.Fatalf("memory grew from %d to %d bytes", first, now)
				}
			}
		})
	}
}
