// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"strings"
)

// Settle judges: it fills in counts and states of the profiles, and whether the subject
// is certified, from the results. Profiles have their names before, and those that are
// not claimed their state and reason. partial says that only a part of the suite ran.
func (r *Report) Settle(partial bool) {
	at := map[string]*Profile{}
	for i := range r.Profiles {
		at[r.Profiles[i].Name] = &r.Profiles[i]
	}
	failed, refused, skipped := map[string][]string{}, map[string][]string{}, map[string][]string{}
	for _, x := range r.Results {
		p := at[x.Profile]
		if p == nil {
			continue
		}
		p.Requests += x.Requests
		switch {
		case x.Outcome == Passed:
			p.Passed++
		case x.Outcome == Skipped:
			p.Skipped++
			skipped[x.Profile] = append(skipped[x.Profile], x.ID+" ("+x.Detail+")")
		case x.Outcome == NotApplicable:
		case x.Level == Should:
			p.Noted++
		case x.Outcome == Refused:
			p.Refused++
			refused[x.Profile] = append(refused[x.Profile], x.ID)
		default:
			p.Failed++
			failed[x.Profile] = append(failed[x.Profile], x.ID)
		}
	}
	var bad []string
	core := false
	for i := range r.Profiles {
		p := &r.Profiles[i]
		switch {
		case p.Failed > 0:
			p.State, p.Reason = ProfileFailed, "fails "+some(failed[p.Name])
		case p.Refused > 0 && p.State != ProfileNotClaimed:
			p.State, p.Reason = ProfileFailed, "refuses "+some(refused[p.Name])
		case p.State == ProfileNotClaimed:
		case p.Skipped > 0:
			p.State, p.Reason = ProfileIncomplete, "skipped: "+some(skipped[p.Name])
		case p.Passed > 0:
			p.State = ProfilePassed
		default:
			p.State, p.Reason = ProfileIncomplete, "nothing of it was tested"
		}
		core = core || p.State == ProfilePassed && (p.Name == "core" || p.Name == "hooks")
		if p.State == ProfileFailed || p.State == ProfileIncomplete {
			bad = append(bad, p.Name)
		}
	}
	switch {
	case partial:
		r.Why = "only a part of the suite was run"
	case len(bad) > 0:
		r.Why = "not passed: " + strings.Join(bad, ", ")
	case !core:
		r.Why = "the first of the profiles is not passed, without which there is no certificate"
	default:
		r.Certified = true
	}
}

// some are the first few of a list.
func some(list []string) string {
	if len(list) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:3], ", "), len(list)-3)
	}
	return strings.Join(list, ", ")
}
