// Copyright The Promweave Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/promweave/promweave/bins/promweave/internal/apiclient"
	"github.com/promweave/promweave/bins/promweave/internal/console"
	"github.com/promweave/promweave/core/report"
)

// store is what /api/v1/stores says of one backend. Thanos knows fewer keys.
type store struct {
	Name      string              `json:"name"`
	Kind      string              `json:"kind"`
	LastCheck time.Time           `json:"lastCheck"`
	LastError *string             `json:"lastError"`
	LabelSets []map[string]string `json:"labelSets"`
	MinTime   int64               `json:"minTime"`
	MaxTime   int64               `json:"maxTime"`
	Required  bool                `json:"required"`
	Healthy   *bool               `json:"healthy"`
	Warning   string              `json:"warning,omitempty"`
}

func (a *app) backendsCmd() *cobra.Command {
	var srv serverFlags
	cmd := &cobra.Command{
		Use:   "backends",
		Short: "Show the backends of a server",
		RunE:  console.Group,
	}
	srv.add(cmd)

	var output string
	list := &cobra.Command{
		Use:   "list",
		Short: "List the backends that are expected, healthy or not",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, ctx, cancel, err := srv.client(cmd)
			if err != nil {
				return err
			}
			defer cancel()
			ans, err := c.Get(ctx, "/api/v1/stores", nil)
			if err != nil {
				return console.Failed(errors.New(console.Clean(err.Error())))
			}
			var groups map[string][]store
			if err := json.Unmarshal(ans.Data, &groups); err != nil {
				return console.Failed(fmt.Errorf("list of the server's backends: %w", err))
			}
			return a.Write(cmd, output, ans.Data, func(w io.Writer) error { return a.listText(w, groups) })
		},
	}
	console.OutputFlag(list, &output, "text", "json", "yaml")

	var (
		eval      evalFlags
		rng       rangeFlags
		at        string
		outputWhy string
	)
	why := &cobra.Command{
		Use:     "why QUERY",
		Short:   "Say for each backend why a query would ask it or not",
		Example: `  promweave backends why 'up{cluster="eu1"}'`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.explain(cmd, args[0], &srv, &eval, &rng, at, outputWhy, a.whyText)
		},
	}
	eval.add(why)
	rng.add(why, "")
	why.Flags().StringVar(&at, "time", "", "the instant: now (default), -1h, RFC 3339, or seconds since 1970")
	console.OutputFlag(why, &outputWhy, "text", "json", "yaml")

	cmd.AddCommand(list, why)
	return cmd
}

func (a *app) listText(out io.Writer, groups map[string][]store) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "BACKEND\tTYPE\tSTATE\tREQUIRED\tLABELS\tFROM\tTO")
	n := 0
	for _, typ := range slices.Sorted(maps.Keys(groups)) {
		for _, s := range groups[typ] {
			n++
			state := "healthy"
			if s.LastError != nil || s.Healthy != nil && !*s.Healthy {
				state = "unhealthy"
				if s.LastError != nil {
					a.Say("%s: %s", s.Name, *s.LastError)
				}
			}
			if s.Warning != "" {
				a.Say("%s: %s", s.Name, s.Warning)
			}
			kind := s.Kind
			if kind == "" {
				kind = typ
			}
			sets := make([]string, len(s.LabelSets))
			for i, ls := range s.LabelSets {
				sets[i] = apiclient.Series{Labels: ls}.Name()
			}
			required := "no"
			if s.Required {
				required = "yes"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", console.Clean(s.Name), console.Clean(kind), state, required, console.Clean(strings.Join(sets, " ")), millis(s.MinTime), millis(s.MaxTime))
		}
	}
	if n == 0 {
		a.Say("the server has no backends")
		return nil
	}
	return w.Flush()
}

// whyText turns the selections of a report around: a line for every backend and
// selection.
func (a *app) whyText(out io.Writer, rep *report.Report) error {
	type line struct{ backend, text string }
	var lines []line
	for _, s := range rep.Selects {
		for _, r := range s.Backends {
			lines = append(lines, line{r.Backend, whyLine(s, r)})
		}
	}
	if len(lines) == 0 {
		a.Say("the query selects no series: no backend would be asked")
		return nil
	}
	slices.SortStableFunc(lines, func(x, y line) int { return strings.Compare(x.backend, y.backend) })
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, l := range lines {
		fmt.Fprintf(w, "%s\t%s\n", console.Clean(l.backend), console.Clean(l.text))
	}
	return w.Flush()
}

func whyLine(s *report.Select, r *report.Row) string {
	what := "{" + strings.Join(s.Matchers, ", ") + "}"
	switch r.State {
	case report.RowWouldAsk, report.RowAnswered, report.RowPartial, report.RowFailed, report.RowCancelled:
		return "asked for " + what
	}
	// The detail repeats the reason or adds to it, depending on the reason.
	why := r.Detail
	switch r.Reason {
	case report.ReasonTimeRange:
		why = fmt.Sprintf("it has data from %s to %s, the query needs %s to %s", millis(r.MinTime), millis(r.MaxTime), millis(s.MinTime), millis(s.MaxTime))
	case report.ReasonExternalLabels:
		if why == "" {
			why = "none of its external label sets matches"
		}
		if len(r.LabelSets) > 0 {
			sets := make([]string, len(r.LabelSets))
			for i, ls := range r.LabelSets {
				sets[i] = ls.String()
			}
			why += "; it has " + strings.Join(sets, " and ")
		}
	case report.ReasonStoreMatch:
		why = "the request left it out: " + cmp.Or(why, "storeMatch[]")
	case report.ReasonCapability:
		why = cmp.Or(why, "it does not offer what the query needs")
	case report.ReasonUnhealthy:
		why = "it is unhealthy: " + cmp.Or(why, "its last check failed")
	case report.ReasonGone:
		why = cmp.Or(why, "it is expected, but not to be found")
	default:
		why = cmp.Or(why, string(r.Reason))
	}
	verb := "not asked"
	if r.State == report.RowSkipped {
		verb = "missing"
	}
	return verb + " for " + what + ": " + why
}
