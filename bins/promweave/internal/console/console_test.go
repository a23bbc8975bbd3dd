// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/spf13/cobra"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestWrite: JSON and YAML have the same keys, and text that looks like something else stays text.
func TestWrite(t *testing.T) {
	v := struct {
		Name  string   `json:"name"`
		Lines []string `json:"lines"`
		Size  int64    `json:"size"`
	}{"yes", []string{"<a>", "1e3"}, 1 << 53}
	for form, want := range map[string]string{
		"text": "yes",
		"json": "{\n  \"name\": \"yes\",\n  \"lines\": [\n    \"<a>\",\n    \"1e3\"\n  ],\n  \"size\": 9007199254740992\n}\n",
		"yaml": "name: yes\nlines:\n  - <a>\n  - \"1e3\"\nsize: 9007199254740992\n",
	} {
		var out bytes.Buffer
		c := &Console{Out: &out}
		if err := c.Write(&cobra.Command{Use: "x"}, form, v, func(w io.Writer) error { _, err := io.WriteString(w, v.Name); return err }); err != nil || out.String() != want {
			t.Errorf("%s: %v, %q", form, err, out.String())
		}
	}
	var e *Error
	if err := (&Console{}).Write(&cobra.Command{Use: "x"}, "xml", v, nil); !errors.As(err, &e) || e.Code != ExitUsage || e.Hint != "Run 'x --help' for what it takes." {
		t.Error(err)
	}
}

// TestSay: text of others does not steer the terminal.
func TestSay(t *testing.T) {
	var talk bytes.Buffer
	(&Console{Talk: &talk}).Say("a %s", "\x1b[2Jb\nc")
	if talk.String() != "a \uFFFD[2Jb\nc\n" {
		t.Errorf("%q", talk.String())
	}
}
