// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package carriertest

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/promweave/promweave/plugins/carrier"
	"github.com/promweave/promweave/plugins/carrier/carriertest/faultfilter"
	"github.com/promweave/promweave/sdk/backend"
	"github.com/promweave/promweave/sdk/filter"
	"github.com/promweave/promweave/sdk/frame"
)

// rewrites are configurations of the reference filter, of every tier.
var rewrites = []string{
	`{"tier":"names","rename":"pod=kubernetes_pod,__name__=metric","drop":"instance"}`,
	`{"tier":"names","set":"cluster=eu1"}`,
	`{"tier":"columns","map":"env:p=production,env:d=development,job:a=b"}`,
	`{"tier":"rows","rename":"pod=kubernetes_pod","map":"env:p=production","leave_out":"job=a","set":"cluster=eu1,source=x","drop":"instance"}`,
	`{"tier":"rows"}`,
}

// Frames returns frames of label sets as a filter of the tier gets them.
func Frames(t *testing.T, tier filter.Tier, columns []string) [][]byte {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	var out [][]byte
	for _, rows := range []int{1, 2, 33, 1000} {
		var b frame.Builder
		for i := range rows {
			pairs := []string{"__name__", fmt.Sprintf("metric_%d", i/10)}
			for _, name := range []string{"env", "instance", "job", "pod"} {
				// Runs with the same names, so that groups are of all lengths.
				if (i/7+len(name))%3 != 0 {
					pairs = append(pairs, name, string(rune('a'+r.IntN(20)))+strings.Repeat("é", r.IntN(3)))
				}
			}
			b.AddRow(pairs...)
		}
		whole, err := b.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		var f frame.Frame
		if err := f.Parse(whole); err != nil {
			t.Fatal(err)
		}
		switch tier {
		case filter.TierNames:
			var n frame.NameLists
			if whole, err = n.Append(nil, &f); err != nil {
				t.Fatal(err)
			}
		case filter.TierColumns:
			var v frame.ColumnValues
			if whole, err = v.Append(nil, &f, columns); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, whole)
	}
	return out
}

func (c *Carrier) filters(t *testing.T) {
	t.Run("description", func(t *testing.T) {
		p := c.openFilter(t)
		testDescription(t, p, "faulty", false)
		if got := p.Description().Hooks; !cmp.Equal(got, []string{"request", "select", "rewrite"}) {
			t.Errorf("hooks %v", got)
		}
		if _, err := p.Backend(limited(t), config("{}")); err == nil {
			t.Error("a filter can be configured as a backend")
		}
	})
	t.Run("rewrite", c.testRewrite)
	t.Run("golden", c.testGolden)
	t.Run("hooks", c.testHooks)
	t.Run("bad configuration", func(t *testing.T) {
		p := c.openFilter(t)
		testBadConfig(t, func(ctx context.Context, conf *filter.Config) error {
			_, err := p.Filter(ctx, conf)
			return err
		}, map[string]string{
			`{"tier":"some"}`:                      "tier",
			`{"tier":"rows","rename":"x"}`:         "rename",
			`{"fault":"unheard of"}`:               "fault",
			`{"fault":"panic","fault_from":"one"}`: "fault_from",
		})
		// What nobody knows is the author's to refuse.
		configure(t, p, `{"tier":"names","unknown":{"a":[1,2,null]}}`)
	})
	t.Run("concurrent instances", c.testConcurrent)
	t.Run("errors", c.testFilterErrors)
	for _, hook := range []string{filter.HookRequest, filter.HookSelect, filter.HookRewrite} {
		t.Run("panic in "+hook, func(t *testing.T) { c.testFault(t, "panic", hook) })
		t.Run("hang in "+hook, func(t *testing.T) { c.testFault(t, "hang", hook) })
		if c.Isolated {
			t.Run("exit in "+hook, func(t *testing.T) { c.testFault(t, "exit", hook) })
		}
	}
	t.Run("cancel", c.testCancel)
	t.Run("invalid reply", c.testInvalidReply)
	t.Run("huge reply", c.testHugeReply)
	t.Run("closed", func(t *testing.T) {
		p := c.Filter(t)
		f, err := p.Filter(limited(t), config(`{"tier":"rows"}`))
		if err != nil {
			t.Fatal(err)
		}
		closePlugin(t, p)
		if _, err := f.Rewrite(limited(t), Frames(t, filter.TierRows, nil)[0], nil); err == nil {
			t.Error("a closed plug-in answers")
		}
		if _, err := p.Filter(limited(t), config(`{}`)); err == nil {
			t.Error("a closed plug-in can be configured")
		}
		if err := f.Close(); err != nil {
			t.Errorf("closing the instance: %v", err)
		}
	})
}

// call calls a hook with plain arguments.
func callHook(ctx context.Context, f carrier.Filter, hook string, in []byte) error {
	var err error
	switch hook {
	case filter.HookRequest:
		_, err = f.Request(ctx, &filter.RequestCall{Kind: "instant", Query: "up"})
	case filter.HookSelect:
		_, err = f.Select(ctx, &filter.SelectCall{Backend: "b"})
	default:
		_, err = f.Rewrite(ctx, in, nil)
	}
	return err
}

func (c *Carrier) testRewrite(t *testing.T) {
	p, ref := c.openFilter(t), Reference(t)
	for _, doc := range rewrites {
		f, want := configure(t, p, doc), configure(t, ref, doc)
		if diff := cmp.Diff(want.Plan(), f.Plan()); diff != "" {
			t.Errorf("%s: plan (-builtin +carrier):\n%s", doc, diff)
			continue
		}
		plan := f.Plan()
		var reply []byte
		for i, in := range Frames(t, plan.Tier, plan.Columns) {
			before := bytes.Clone(in)
			expected, err := want.Rewrite(limited(t), in, nil)
			if err != nil {
				t.Fatalf("%s: builtin: %v", doc, err)
			}
			if reply, err = f.Rewrite(limited(t), in, reply); err != nil {
				t.Fatalf("%s: frame %d: %v", doc, i, err)
			}
			if !bytes.Equal(reply, expected) {
				t.Errorf("%s: frame %d: the reply of %d bytes differs from builtin's of %d", doc, i, len(reply), len(expected))
			}
			if !bytes.Equal(in, before) {
				t.Errorf("%s: frame %d was changed", doc, i)
			}
			var view frame.Frame
			if err := view.Parse(in); err != nil {
				t.Fatal(err)
			}
			var changes frame.Changes
			if len(reply) > 0 {
				if err := changes.Parse(reply, &view, frame.Tier(plan.Tier)); err != nil {
					t.Errorf("%s: frame %d: the reply is invalid: %v", doc, i, err)
				}
			}
		}
	}
}

func (c *Carrier) testHooks(t *testing.T) {
	p, ref := c.openFilter(t), Reference(t)
	doc := `{"tier":"names","deny_subject":"eve","require":"cluster=eu1,x=é\"\\"}`
	f, want := configure(t, p, doc), configure(t, ref, doc)
	for _, caller := range []filter.Caller{
		{},
		{Method: "basic", Subject: "eve"},
		{
			Method: "bearer", Subject: "bob", Claims: []byte(`{"tenant":"blue"}`),
			ClaimSettings: []filter.Setting{{Path: "other", Value: ""}, {Path: "tenant", Value: "blue é"}},
			Headers:       []filter.Header{{Name: "x-scope", Values: []string{"a", ""}}},
		},
	} {
		call := &filter.RequestCall{
			Kind: "range", Query: `sum(rate(up[5m]))`, Start: -1 << 63, End: 1<<63 - 1, Step: 15000, Caller: caller,
			Selectors: [][]filter.Matcher{{{Type: filter.MatchNotRegexp, Name: "a", Value: "b.*"}}, nil},
		}
		a, errA := want.Request(limited(t), call)
		b, errB := f.Request(limited(t), call)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if diff := cmp.Diff(a, b); diff != "" {
			t.Errorf("request of %q (-builtin +carrier):\n%s", caller.Subject, diff)
		}
	}
	sel := &filter.SelectCall{Backend: "b", MinTime: -1 << 63, MaxTime: 1<<63 - 1, Tenants: []string{"blue"}, Matchers: []filter.Matcher{{Name: "a", Value: ""}}}
	a, errA := want.Select(limited(t), sel)
	b, errB := f.Select(limited(t), sel)
	if errA != nil || errB != nil {
		t.Fatal(errA, errB)
	}
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("select (-builtin +carrier):\n%s", diff)
	}
}

func (c *Carrier) testConcurrent(t *testing.T) {
	p, ref := c.openFilter(t), Reference(t)
	var wg sync.WaitGroup
	for i := range 4 {
		doc := fmt.Sprintf(`{"tier":"rows","set":"instance_number=%d"}`, i)
		f, want := configure(t, p, doc), configure(t, ref, doc)
		in := Frames(t, filter.TierRows, nil)[2]
		expected, err := want.Rewrite(limited(t), in, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx := limited(t)
		for range 3 {
			wg.Go(func() {
				var reply []byte
				for range 20 {
					var err error
					if reply, err = f.Rewrite(ctx, in, reply); err != nil || !bytes.Equal(reply, expected) {
						t.Errorf("instance %d: error %v, or the answer is another instance's", i, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	if s := p.Status(); s.Calls < 240 {
		t.Errorf("status counts %d calls, 240 were made", s.Calls)
	}
	// Not at once: a carrier may let an instance tidy up, which counts as running.
	eventually(t, "no call is running", func(context.Context) error {
		if s := p.Status(); s.Busy != 0 {
			return fmt.Errorf("status counts %d", s.Busy)
		}
		return nil
	})
}

func (c *Carrier) testFilterErrors(t *testing.T) {
	p := c.openFilter(t)
	for _, hook := range []string{filter.HookRequest, filter.HookSelect, filter.HookRewrite} {
		f := configure(t, p, fmt.Sprintf(`{"tier":"rows","fault":"error","fault_in":%q}`, hook))
		err := callHook(limited(t), f, hook, Frames(t, filter.TierRows, nil)[0])
		if !contains(err, faultfilter.ErrorText) || errors.Is(err, carrier.ErrFault) || backend.Kind(err) != backend.ErrInternal {
			t.Errorf("%s: error %v (kind %v, fault %v)", hook, err, backend.Kind(err), errors.Is(err, carrier.ErrFault))
		}
	}
	if s := p.Status(); len(s.Faults) != 0 || s.State != carrier.Serving {
		t.Errorf("errors of a filter's own count as faults: %+v", s)
	}
	f := configure(t, p, `{"tier":"rows"}`)
	if _, err := f.Rewrite(limited(t), []byte("PWF1 this is no frame"), nil); err == nil {
		t.Error("a frame that is none gets an answer")
	}
	eventually(t, "rewriting after a frame that is none", func(ctx context.Context) error {
		return callHook(ctx, f, filter.HookRewrite, Frames(t, filter.TierRows, nil)[0])
	})
}

// testFault sees to it that a fault is one, and that after it the other instance of
// the same plug-in works.
func (c *Carrier) testFault(t *testing.T, fault, hook string) {
	p := c.openFilter(t)
	in := Frames(t, filter.TierRows, nil)[1]
	good := configure(t, p, `{"tier":"rows","set":"x=y"}`)
	want, err := good.Rewrite(limited(t), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	bad := configure(t, p, fmt.Sprintf(`{"tier":"rows","fault":%q,"fault_in":%q}`, fault, hook))
	if fault == "hang" && c.Unhang != nil {
		defer c.Unhang()
	}
	err = callHook(limited(t), bad, hook, in)
	if err == nil {
		t.Fatalf("%s in %s is no error", fault, hook)
	}
	isFault(t, p, err)
	if !contains(err, "faulty") && !contains(err, p.Description().Name) {
		t.Errorf("error %v does not name the plug-in", err)
	}
	eventually(t, "the other instance", func(ctx context.Context) error {
		got, err := good.Rewrite(ctx, in, nil)
		if err == nil && !bytes.Equal(got, want) {
			t.Fatal("the other instance answers differently after the fault")
		}
		return err
	})
}

func (c *Carrier) testCancel(t *testing.T) {
	p := c.openFilter(t)
	f := configure(t, p, `{"tier":"rows","fault":"hang","fault_in":"rewrite"}`)
	if c.Unhang != nil {
		defer c.Unhang()
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the caller is gone")
	done := make(chan error, 1)
	go func() {
		_, err := f.Rewrite(ctx, Frames(t, filter.TierRows, nil)[0], nil)
		done <- err
	}()
	cancel(why)
	select {
	case err := <-done:
		if !errors.Is(err, why) && !errors.Is(err, context.Canceled) && !errors.Is(err, carrier.ErrFault) {
			t.Errorf("error %v", err)
		}
	case <-limited(t).Done():
		t.Fatal("a call whose context is done does not return")
	}
}

func (c *Carrier) testInvalidReply(t *testing.T) {
	p := c.openFilter(t)
	in := Frames(t, filter.TierRows, nil)[1]
	f := configure(t, p, `{"tier":"rows","fault":"garbage","fault_in":"rewrite"}`)
	reply, err := f.Rewrite(limited(t), in, nil)
	if err != nil {
		isFault(t, p, err)
		return
	}
	// The carrier need not look; the host does.
	var view frame.Frame
	if err := view.Parse(in); err != nil {
		t.Fatal(err)
	}
	var changes frame.Changes
	if err = changes.Parse(reply, &view, frame.TierRows); err == nil {
		t.Fatal("the reply is valid; this test is wrong")
	}
	if r, ok := f.(carrier.Rejecter); ok {
		isFault(t, p, r.Reject(err))
	}
}

func (c *Carrier) testHugeReply(t *testing.T) {
	p := c.openFilter(t)
	in := Frames(t, filter.TierRows, nil)[0]
	f := configure(t, p, `{"tier":"rows","fault":"huge","fault_in":"rewrite"}`)
	_, err := f.Rewrite(limited(t), in, nil)
	if err == nil {
		t.Fatal("a reply of 5 MiB to a small frame is accepted")
	}
	isFault(t, p, err)
	good := configure(t, p, `{"tier":"rows"}`)
	eventually(t, "rewriting after a huge reply", func(ctx context.Context) error {
		return callHook(ctx, good, filter.HookRewrite, in)
	})
}

// golden returns the frames of sdk/frame/testdata/golden.
func golden(t *testing.T) [][]byte {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			t.Fatal("the golden frames are not there: this is not run inside the module")
		}
		root = filepath.Dir(root)
	}
	var out [][]byte
	for _, name := range []string{"build", "frames"} {
		doc, err := os.ReadFile(filepath.Join(root, "sdk/frame/testdata/golden", name))
		if err != nil {
			t.Fatal(err)
		}
		for block := range strings.SplitSeq(string(doc), "\n\n") {
			// Frames are the blocks of hexadecimal digits that begin with PWF1.
			at := strings.Index(block, "50574631 ")
			if at < 0 {
				continue
			}
			digits := strings.Fields(block[at:])
			if end := slices.Index(digits, "----"); end >= 0 {
				digits = digits[:end]
			}
			b, err := hex.DecodeString(strings.Join(digits, ""))
			if err != nil {
				t.Fatalf("%s: %v in %q", name, err, block)
			}
			var f frame.Frame
			if err := f.Parse(b); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			out = append(out, b)
		}
	}
	if len(out) < 5 {
		t.Fatalf("%d golden frames", len(out))
	}
	return out
}

// testGolden gives the golden frames to the carrier, those with chunks among them.
func (c *Carrier) testGolden(t *testing.T) {
	p, ref := c.openFilter(t), Reference(t)
	doc := `{"tier":"rows","rename":"instance=host","set":"cluster=eu1","map":"job:a=b","drop":"x"}`
	f, want := configure(t, p, doc), configure(t, ref, doc)
	for i, in := range golden(t) {
		expected, errA := want.Rewrite(limited(t), in, nil)
		got, errB := f.Rewrite(limited(t), in, nil)
		if errA != nil || errB != nil || !bytes.Equal(expected, got) {
			t.Errorf("golden frame %d: builtin %d bytes, %v; carrier %d bytes, %v", i, len(expected), errA, len(got), errB)
		}
	}
}
