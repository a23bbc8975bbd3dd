// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/filter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRequests runs testdata/requests: "configure" takes a configuration, "ask" a
// request in JSON and prints what is decided. It is the first of January 2025.
func TestRequests(t *testing.T) {
	var i filter.Instance
	now := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	datadriven.RunTest(t, "testdata/requests", func(t *testing.T, d *datadriven.TestData) string {
		f := auth{now: func() time.Time { return now }}
		switch d.Cmd {
		case "configure":
			if d.HasArg("no-clock") {
				f.now = func() time.Time { return time.Unix(0, 0) }
			}
			var err error
			if i, err = f.Configure(&filter.Config{Name: "t", JSON: []byte(d.Input)}); err != nil {
				return err.Error() + "\n"
			}
			return "ok\n"
		case "ask":
			var in struct {
				Kind, Method, Subject string
				Claims                json.RawMessage
				Start, End, Window    int64
			}
			if err := json.Unmarshal([]byte(d.Input), &in); err != nil {
				d.Fatalf(t, "%v", err)
			}
			r, err := i.(filter.Requester).Request(&filter.RequestCall{
				Kind: in.Kind, Start: in.Start, End: in.End, Window: in.Window, Caller: filter.Caller{Method: in.Method, Subject: in.Subject, Claims: in.Claims},
			})
			switch {
			case err != nil:
				return "error: " + err.Error() + "\n"
			case r.Deny != nil:
				return fmt.Sprintf("%d %s\n", r.Deny.Status, r.Deny.Message)
			}
			var b strings.Builder
			for _, m := range r.Enforce {
				fmt.Fprintf(&b, "enforce %s%s%q ", m.Name, []string{"=", "!=", "=~", "!~"}[m.Type], m.Value)
			}
			if r.HasTimeRange {
				fmt.Fprintf(&b, "from %s ", time.UnixMilli(r.MinTime).UTC().Format(time.RFC3339))
			}
			fmt.Fprintf(&b, "admin %v limits %d %d %d\n", r.Admin, r.MaxSeries, r.MaxSamples, r.MaxBytes)
			return b.String()
		}
		d.Fatalf(t, "unknown command %s", d.Cmd)
		return ""
	})
}

func TestDescription(t *testing.T) {
	d := New().Describe()
	if d.Role != filter.RoleAuth || !json.Valid([]byte(d.ConfigSchema)) {
		t.Errorf("%+v", d)
	}
}
