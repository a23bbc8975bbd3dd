// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package fanout_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/core/fanout"
	"github.com/promweave/promweave/core/membership"
	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestDecide: "member" describes a member, one property a line; "ask" asks a
// question of it and prints state, reason and detail.
func TestDecide(t *testing.T) {
	var m *membership.Member
	datadriven.RunTest(t, "testdata/decide", func(t *testing.T, d *datadriven.TestData) string {
		selector := func(s string) []*labels.Matcher {
			ms, err := parser.ParseMetricSelector(s)
			if err != nil {
				d.Fatalf(t, "%s: %v", s, err)
			}
			return ms
		}
		switch d.Cmd {
		case "member":
			m = membership.Always("prom-a", "prometheus", nil, backend.AllTime())
			for line := range strings.Lines(d.Input) {
				k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
				n, _ := strconv.ParseInt(v, 10, 64)
				switch k {
				case "set":
					l, err := parser.ParseMetric(v)
					if err != nil {
						d.Fatalf(t, "%v", err)
					}
					m.Info.LabelSets = append(m.Info.LabelSets, l)
				case "min":
					m.Info.MinTime = n
				case "max":
					m.Info.MaxTime = n
				case "gone":
					m.Gone = v
				case "error":
					m.Healthy, m.LastError = false, v
				case "unseen":
					m.Healthy, m.Known = false, false
				case "unhealthy":
					m.Healthy = false
				case "address":
					m.Address = v
				default:
					d.Fatalf(t, "unknown property %q", k)
				}
			}
			return ""
		case "ask":
			q := fanout.Question{MinTime: 1000, MaxTime: 2000}
			for line := range strings.Lines(d.Input) {
				k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
				switch k {
				case "match":
					q.Matchers = selector(v)
				case "store":
					q.StoreMatch = append(q.StoreMatch, selector(v))
				case "time":
					if _, err := fmt.Sscan(v, &q.MinTime, &q.MaxTime); err != nil {
						d.Fatalf(t, "%v", err)
					}
				}
			}
			state, reason, detail := fanout.Decide(m, q)
			return strings.TrimRight(fmt.Sprintf("%s %s %s", state, reason, detail), " ") + "\n"
		}
		d.Fatalf(t, "unknown command %s", d.Cmd)
		return ""
	})
}
