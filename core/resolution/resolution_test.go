// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package resolution

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"go.uber.org/goleak"

	"github.com/promweave/promweave/sdk/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t *testing.T, s string) int64 {
	t.Helper()
	switch s {
	case "auto":
		return Auto
	case "unlimited":
		return Unlimited
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d.Milliseconds()
}

var names = map[backend.Aggregate]string{
	backend.AggregateRaw: "raw", backend.AggregateCount: "count", backend.AggregateSum: "sum",
	backend.AggregateMin: "min", backend.AggregateMax: "max", backend.AggregateCounter: "counter",
}

func TestChoose(t *testing.T) {
	datadriven.RunTest(t, "testdata/choose", func(t *testing.T, d *datadriven.TestData) string {
		var out strings.Builder
		for line := range strings.Lines(d.Input) {
			f := strings.Fields(line)
			if len(f) == 0 {
				continue
			}
			switch d.Cmd {
			case "choose": // requested, range, step, function
				fn := ""
				if len(f) > 3 {
					fn = f[3]
				}
				c := Choose(parse(t, f[0]), parse(t, f[1]), parse(t, f[2]), fn)
				fmt.Fprintf(&out, "%s: %s\n", millis(c.MaxResolution), c.Reason)
			case "aggregates":
				for _, fn := range f {
					var a []string
					for _, g := range Aggregates(fn) {
						a = append(a, names[g])
					}
					fmt.Fprintf(&out, "%s: %s\n", fn, strings.Join(a, " "))
				}
			case "lookback": // base, resolutions
				for _, r := range f[1:] {
					fmt.Fprintf(&out, "%s at %s: %s\n", f[0], r, millis(Lookback(parse(t, f[0]), parse(t, r))))
				}
			default:
				t.Fatal("unknown command", d.Cmd)
			}
		}
		return out.String()
	})
}

func TestExtremes(t *testing.T) {
	if c := Choose(Unlimited, 0, 0, ""); c.MaxResolution != math.MaxInt64 {
		t.Error(c)
	}
	if c := Choose(math.MinInt64, 0, 0, ""); c.MaxResolution != 0 {
		t.Error(c)
	}
	if c := Choose(Auto, math.MaxInt64, math.MaxInt64, "rate"); c.MaxResolution != math.MaxInt64/5 || c.Reason == "" {
		t.Error(c)
	}
	if a, b := Aggregates(""), Aggregates(""); &a[0] == &b[0] {
		t.Error("the slice is shared")
	}
	for _, base := range []int64{0, 1, FiveMinutes, OneHour, math.MaxInt64} {
		for _, r := range []int64{0, 1, FiveMinutes, OneHour, math.MaxInt64} {
			if l := Lookback(base, r); l < base {
				t.Errorf("Lookback(%d, %d) = %d", base, r, l)
			}
		}
	}
}
