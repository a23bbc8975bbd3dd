// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package tenancy

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/filter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRequests runs testdata/requests: "configure" takes a configuration, "ask" a
// caller in JSON and prints what is decided.
func TestRequests(t *testing.T) {
	var i filter.Instance
	datadriven.RunTest(t, "testdata/requests", func(t *testing.T, d *datadriven.TestData) string {
		switch d.Cmd {
		case "configure":
			var err error
			if i, err = New().Configure(&filter.Config{Name: "t", JSON: []byte(d.Input)}); err != nil {
				return err.Error() + "\n"
			}
			return "ok\n"
		case "ask":
			var in struct {
				Method, Subject string
				Claims          json.RawMessage
				Headers         map[string][]string
			}
			if err := json.Unmarshal([]byte(d.Input), &in); err != nil {
				d.Fatalf(t, "%v", err)
			}
			c := &filter.RequestCall{Kind: "instant", Caller: filter.Caller{Method: in.Method, Subject: in.Subject, Claims: in.Claims}}
			for name, values := range in.Headers {
				c.Caller.Headers = append(c.Caller.Headers, filter.Header{Name: name, Values: values})
			}
			r, err := i.(filter.Requester).Request(c)
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
			fmt.Fprintf(&b, "tenants %q admin %v\n", r.Tenants, r.Admin)
			return b.String()
		}
		d.Fatalf(t, "unknown command %s", d.Cmd)
		return ""
	})
}

func TestDescription(t *testing.T) {
	d := New().Describe()
	if d.Role != filter.RoleTenancy || !json.Valid([]byte(d.ConfigSchema)) {
		t.Errorf("%+v", d)
	}
}
