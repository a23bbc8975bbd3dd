// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"strings"
)

// Table is the list of requirements of backends as Markdown, of which README.md beside
// this file is made: a test compares the two.
func Table() string {
	var b strings.Builder
	for _, profile := range Profiles() {
		fmt.Fprintf(&b, "#### %s\n\n| id | level | since | the contract says | needs |\n|---|---|---|---|---|\n", profile)
		for _, r := range Requirements() {
			if r.Profile == profile {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", r.ID, r.Level, r.Since, strings.ReplaceAll(r.Rule, "|", `\|`), r.Needs())
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
