// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package guest_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/promweave/promweave/sdk/frame"
)

// TestTemplates builds what new plug-ins begin with, and runs it.
func TestTemplates(t *testing.T) {
	sources := map[string]string{
		"go":             "./template",
		"c":              "../c/template/filter.c",
		"rust":           "../rust/template/filter.rs",
		"assemblyscript": "../assemblyscript/template/filter.ts",
	}
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			code, err := l.build(t.TempDir(), sources[l.name])
			var why absent
			if errors.As(err, &why) {
				t.Logf("not built: %s", why.why)
				t.Attr("template-not-built-"+l.name, strings.ReplaceAll(why.why, "\n", " "))
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			m := open(t, code)
			if _, err := m.configure(""); err == nil || err.Error() != "invalid: from, to: are missing" {
				t.Errorf("without settings: %v", err)
			}
			m = open(t, code)
			plan, err := m.configure("from=node\nto=host\ncluster=eu1")
			if err != nil {
				t.Fatal(err)
			}
			var b frame.Builder
			b.AddRow("cluster", "x", "job", "a", "node", "n")
			b.AddRow("host", "h", "job", "a")
			full, err := b.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			shown := show(t, full, plan)
			reply, err := m.call("rewrite", shown)
			if err != nil {
				t.Fatal(err)
			}
			want := "cluster=\"eu1\" host<-node job<-job\ncluster=\"eu1\" job<-job\n"
			if diff := cmp.Diff(want, replyText(t, shown, reply, plan.Tier)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestPurityIsClaimed: in Rust too a plan is pure only if its filter says so.
func TestPurityIsClaimed(t *testing.T) {
	text, err := os.ReadFile("../rust/template/filter.rs")
	if err != nil {
		t.Fatal(err)
	}
	const claim = "plan.pure = true;"
	for text, want := range map[string]bool{string(text): true, strings.Replace(string(text), claim, "", 1): false} {
		source := filepath.Join(t.TempDir(), "filter.rs")
		if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, err := buildRust(t.TempDir(), source)
		var why absent
		if errors.As(err, &why) {
			t.Skip(why.why)
		}
		if err != nil {
			t.Fatal(err)
		}
		plan, err := open(t, code).configure("from=node\nto=host")
		if err != nil {
			t.Fatal(err)
		}
		if plan.Pure != want {
			t.Errorf("with %q: %v, pure: %v", claim, want, plan.Pure)
		}
	}
}

// TestBackendTemplate: the template is the example, which is tested.
func TestBackendTemplate(t *testing.T) {
	a, err1 := os.ReadFile("../rust/examples/json_backend.rs")
	b, err2 := os.ReadFile("../rust/template/backend.rs")
	if err1 != nil || err2 != nil || string(a) != string(b) {
		t.Errorf("rust/template/backend.rs is not rust/examples/json_backend.rs: %v %v", err1, err2)
	}
}
